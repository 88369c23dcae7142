"""Let the model write, without and with steering, side by side (notebook 04)."""

import zlib
from functools import partial
from typing import NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.utils import logging

from .chat import answer_starts
from .checks import SteeringError, checked, finite
from .hooks import change, refuse_inside_steer
from .models import encode
from .steering import as_list, force_matrix, steer
from .tables import Table


class SteeredText(NamedTuple):
    """One prompt, and how the model goes on from it without and with steering."""

    prompt: str
    base: str
    steered: str


class SteeredTexts(list):
    """A list of ``SteeredText`` that shows as a table, base and steered side by side."""

    def __repr__(self):
        line = "{}\n   unsteered  {}\n   steered    {}"
        return "\n".join(line.format(*(" ".join(x.split()) for x in text)) for text in self)

    def _repr_html_(self):
        return Table(["Prompt", "Unsteered", "Steered"], self)._repr_html_()


@checked
@torch.no_grad()
def generate(
    model,
    tokenizer,
    prompts,
    vector,
    force,
    layer=None,
    positions="all",
    max_new_tokens=24,
    temperature=0.8,
    top_k=40,
    seed=0,
    watch=None,
) -> SteeredTexts:
    """Continue prompts twice in one batch: without steering, and with it.

    Both sample with the same random numbers, so every difference is the steering's; at force 0
    the texts are equal. A text depends on its prompt, force and seed, not on the rest of the
    batch.

    Parameters
    ----------
    prompts : list of str or of dialogues
    vector, force, layer, positions
        As in ``steer``; a row is a prompt. An answer that a dialogue has begun counts as
        generated.
    temperature : float
        0 takes the likeliest token each time and ignores the seed.
    top_k : int
        Sample among the so many likeliest tokens.
    seed : int or list of int
        One for all prompts, or one for each.
    watch : callable, optional
        Is given the texts so far, in the form of the result, after each new token. An exception
        that it raises ends the generation.

    Returns a list of ``SteeredText(prompt, base, steered)`` that shows as a table. Raises
    SteeringError as ``steer`` does, and for prompts that cannot be used.
    """
    refuse_inside_steer(model)
    batch = encode(model, tokenizer, prompts, padding_side="left", new_tokens=max_new_tokens)
    n, width = batch["input_ids"].shape
    forces = force_matrix(force, len(as_list(vector)), n)
    keys = list(zip(seed_list(seed, n), prompts, strict=True))
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    bases = list(first.values())  # rows of one prompt and seed share their unsteered text
    pushed = forces.any(0).nonzero()[:, 0].tolist()  # at force 0 that is their text, too
    rows = torch.tensor([*bases, *pushed])
    both = torch.cat([torch.zeros(len(forces), len(bases)), forces[:, pushed]], 1)
    lengths = _prompt_lengths(tokenizer, prompts, batch["attention_mask"])[rows]
    noise = _SharedNoise(model, [keys[row] for row in rows], temperature, top_k)

    def read(ids):
        new = tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
        base = dict(zip(first, new, strict=False))
        steered = dict(zip(pushed, new[len(bases) :], strict=True))
        return SteeredTexts(
            SteeredText(key[1], base[key], steered.get(row, base[key]))
            for row, key in enumerate(keys)
        )

    def look(ids, scores, **kwargs):
        watch(read(ids))
        return False  # the text is not at its end

    with change(model) as quiet, steer(model, vector, both, layer, positions, lengths):
        # A row that ended early is filled with padding; the model would warn of it.
        quiet.undo.append(partial(logging.set_verbosity, logging.get_verbosity()))
        logging.set_verbosity_error()
        # The last tokens of all prompts come as a slice, which torch multiplies row by row.
        register = model.get_output_embeddings().register_forward_pre_hook
        quiet.hook(register, lambda head, args: (args[0].contiguous(),))
        output = model.generate(
            **{name: tensor[rows] for name, tensor in batch.items()},
            max_new_tokens=max_new_tokens,
            logits_processor=LogitsProcessorList([noise]),
            stopping_criteria=StoppingCriteriaList([] if watch is None else [look]),
            do_sample=False,  # the noise makes the choice random
            num_beams=1,
            num_return_sequences=1,
            return_dict_in_generate=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    return read(output)


def _prompt_lengths(tokenizer, prompts, attention_mask) -> torch.Tensor:
    """Tokens [prompt] of each; an answer that a dialogue has begun does not belong to it."""
    lengths = attention_mask.sum(1)
    for row, prompt in enumerate(prompts):
        if getattr(prompt, "answer", None) is not None:
            [lengths[row]] = answer_starts(tokenizer, [prompt])
    return lengths


def seed_list(seed, n) -> list[int]:
    """One seed for each of n prompts; SteeringError if there are not as many."""
    seeds = [seed] * n if isinstance(seed, int) else seed
    if len(seeds) != n:
        raise SteeringError(f"{len(seeds)} seeds were given for {n} prompts.")
    return seeds


class _SharedNoise(LogitsProcessor):
    """Turns greedy choice into sampling, with the same luck for base and steered text.

    The largest of logit/temperature + Gumbel noise is a sample from the softmax (Gumbel-max
    trick). A row's noise comes from its seed and prompt, so rows that share both share it.
    """

    def __init__(self, model, seeds_and_prompts, temperature, top_k):
        self.model, self.temperature, self.top_k = model, temperature, top_k
        numbers = [zlib.crc32(repr(pair).encode()) for pair in seeds_and_prompts]
        self.generators = {number: torch.Generator().manual_seed(number) for number in numbers}
        places = {number: row for row, number in enumerate(self.generators)}
        self.rows = torch.tensor([places[number] for number in numbers])

    def __call__(self, input_ids, scores):
        best, tokens = scores.topk(min(self.top_k, scores.shape[1]))
        finite(best[:, 0], "the next token", self.model)  # NaN counts as the largest
        if self.temperature < 1e-30:  # no luck could change the choice
            return scores
        draws = [
            torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators.values()
        ]
        gumbel = -torch.stack(draws).log().to(scores.device)
        noisy = best / self.temperature + gumbel[self.rows.to(scores.device)[:, None], tokens]
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, noisy)
