"""Run many steering experiments as few batches: vectors × forces × prompts (notebook 05)."""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .batches import READING, WRITING, Batches, progress
from .checks import RULES, SteeringError, checked, finite, refuse
from .concepts import SENTIMENT
from .directions import SteeringVector
from .evaluation import log_odds_from, mean_surprisal, next_token_logits, price, word_sides
from .generation import SteeredTexts, generate, seed_list
from .hooks import change, refuse_inside_steer
from .models import (
    blocks,
    encode,
    hidden_state,
    rows_of,
    with_hidden_state,
)
from .steering import as_list, layers_of


@dataclass(frozen=True, eq=False)
class Sweep:
    """What every experiment of a sweep did to the log-odds, with the labels of its axes."""

    effect: Tensor  # [vector, force, prompt]: log-odds with the push minus without, in nats
    base: Tensor  # [prompt]: log-odds without
    vectors: list[SteeringVector]
    forces: Tensor  # [vector, force]
    prompts: list[str]

    @property
    def pull(self) -> Tensor:
        """Half of (up minus down) for each size of the force: [vector, size, prompt], in nats.

        Sizes in ascending order. One number a prompt for both directions; what a push does whatever
        its sign cancels. Raises SteeringError unless every force was tried with either sign.
        """
        forces, order = self.forces.sort(dim=1)
        n, width = int((forces > 0).sum(1).max()), forces.shape[1]
        up, down, rest = forces[:, width - n :], forces[:, :n].flip(1), forces[:, n : width - n]
        if not n or not (up > 0).all() or not torch.allclose(up, -down) or bool(rest.any()):
            raise SteeringError("A pull needs every force with either sign: give [force, -force].")
        rows = torch.arange(len(forces))[:, None]
        moved = self.effect[rows, order]
        return (moved[:, width - n :] - moved[:, :n].flip(1)) / 2

    @property
    def wrong_way(self) -> Tensor:
        """Share [vector, force] of prompts not moved the way of the force; NaN at force 0."""
        wrong = (self.effect * self.forces.sign()[..., None] <= 0).float().mean(-1)
        return wrong.where(self.forces != 0, torch.nan)

    def __repr__(self):
        return "Sweep({} vectors × {} forces × {} prompts)".format(*self.effect.shape)


@dataclass(frozen=True, eq=False)
class TextSweep:
    """The texts of every experiment of a sweep and their price, with the labels of the axes."""

    texts: list[list[SteeredTexts]]  # [vector][force], each of all prompts
    price: Tensor | None  # [vector, force, prompt]: bits per token, NaN where a text is empty
    vectors: list[SteeringVector]
    forces: Tensor  # [vector, force]
    prompts: list[str]

    def __repr__(self):
        shape = (*self.forces.shape, len(self.prompts))
        return "TextSweep({} vectors × {} forces × {} prompts)".format(*shape)


@checked
@torch.no_grad()
def sweep(
    model, tokenizer, prompts, vectors, forces, concept=SENTIMENT, batch_tokens=READING, way=None
) -> Sweep:
    """The log-odds of the next word for every vector × force × prompt, as in ``log_odds``.

    Many experiments share a batch, and each starts behind the block at whose output it pushes,
    from a copy of the unsteered stream.

    Parameters
    ----------
    prompts : list of str
    vectors : SteeringVector or list of SteeringVector
        Each pushes at its own layer; several may have the same.
    forces : Tensor [force] or [vector, force]
        The same for all vectors, or each vector's own: ``shares * scale[:, None]``.
    concept : Concept
        Whose words are counted.
    batch_tokens : int
        Tokens in one forward pass. A batch too large for the memory is halved, with a warning.
    way : callable, optional
        Another way to push than adding: ``way(h, v, force)`` gives what takes the place of the
        stream h [row, token, d_model]; v [row, 1, d_model] and force [row, 1, 1]. Position 0 it
        does not get, and leaves alone: what is there is a massive activation.

    Call it outside of ``steer``. Raises SteeringError as ``steer``, ``encode`` and ``word_ids`` do,
    and for a way that gives another shape.
    """
    vectors = as_list(vectors)
    forces = _force_table(forces, len(vectors))
    sides = word_sides(tokenizer, concept)
    batch = encode(model, tokenizer, prompts)

    def read(batch):
        return log_odds_from(next_token_logits(model, batch), sides)

    where = (model, batch, vectors, forces, read, batch_tokens)
    base, steered = _experiments(*where, "sweep", way)
    return Sweep(steered - base, base, vectors, forces, prompts)


@checked(texts=RULES["prompts"])
@torch.no_grad()
def sweep_damage(
    model, tokenizer, texts, vectors, forces, batch_tokens=READING, way=None
) -> Tensor:
    """How much worse the steered model reads ordinary texts: bits per token [vector, force, text].

    The mean surprisal of each text's tokens but the first, with the push minus without; negative
    where the push helps to read. ``vectors``, ``forces`` and ``way`` are as in ``sweep``, as are
    the errors; a text needs two tokens.
    """
    vectors = as_list(vectors)
    forces = _force_table(forces, len(vectors))
    batch = encode(model, tokenizer, texts)
    if batch["attention_mask"].sum(1).min() < 2:
        raise SteeringError("A text of one token has nothing to predict: give longer texts.")

    def read(batch):
        return mean_surprisal(model, batch, batch["attention_mask"].bool())

    where = (model, batch, vectors, forces, read, batch_tokens)
    base, steered = _experiments(*where, "damage", way)
    return steered - base


@checked
@torch.no_grad()
def sweep_texts(
    model,
    tokenizer,
    prompts,
    vectors,
    forces,
    seed=0,
    max_new_tokens=24,
    priced=True,
    batch_tokens=WRITING,
    **options,
) -> TextSweep:
    """Continue every prompt under every vector and force; the text form of ``sweep``.

    ``prompts``, ``vectors`` and ``forces`` are those of ``sweep``; ``seed`` is one number for all
    prompts or one for each, and ``options`` go to ``generate``. ``priced=False`` leaves out the
    price, which costs another reading of all texts. Raises SteeringError as ``generate`` does.
    """
    vectors = as_list(vectors)
    forces = _force_table(forces, len(vectors))
    seeds = seed_list(seed, len(prompts))
    widths = encode(model, tokenizer, prompts, new_tokens=max_new_tokens)["attention_mask"].sum(1)
    # Prompt by prompt: rows of one batch then share their unsteered text and its length.
    shape = (len(prompts), *forces.shape)
    cells = torch.cartesian_prod(*map(torch.arange, shape))
    texts = [None] * len(cells)

    def write(rows):
        number, which, step = cells[rows].T
        used, place = which.unique(return_inverse=True)
        own = torch.zeros(len(used), len(rows))  # 0 for all vectors but the row's own
        own[place, torch.arange(len(rows))] = forces[which, step]
        written = generate(
            model,
            tokenizer,
            [prompts[i] for i in number],
            [vectors[i] for i in used],
            own,
            seed=[seeds[i] for i in number],
            max_new_tokens=max_new_tokens,
            **options,
        )
        for row, text in zip(rows, written, strict=True):
            texts[row] = text

    lengths = (widths[cells[:, 0]] + max_new_tokens).tolist()
    Batches(batch_tokens).run(write, lengths, "texts")
    bits = price(model, tokenizer, texts).view(shape).permute(1, 2, 0) if priced else None
    places = torch.arange(len(cells)).view(shape).permute(1, 2, 0).tolist()
    by_cell = [[SteeredTexts(texts[i] for i in cell) for cell in row] for row in places]
    return TextSweep(by_cell, bits, vectors, forces, prompts)


def _force_table(forces, n_vectors) -> Tensor:
    """[force] or [vector, force] as [vector, force], or a SteeringError."""
    fits = forces.ndim == 1 or (forces.ndim == 2 and len(forces) == n_vectors)
    if not fits or not forces.numel():
        raise SteeringError(
            f"Forces of shape {list(forces.shape)} do not fit {n_vectors} vector(s): give [force], "
            "the same for all, or [vector, force]."
        )
    return forces.expand(n_vectors, -1)


def _adding(hidden, direction, force):
    return hidden + (force * direction).to(hidden)  # h' = h + α·v


def _sparing(way):
    """A way to push that leaves position 0 alone."""

    def push(hidden, direction, force):
        rest = hidden[:, 1:]
        pushed = way(rest, direction.to(hidden), force.to(hidden))
        if not isinstance(pushed, Tensor) or pushed.shape != rest.shape:
            refuse(getattr(pushed, "shape", pushed), "What way gives", f"of {rest.shape}")
        return torch.cat([hidden[:, :1], pushed.to(hidden)], dim=1)

    return push


def _experiments(model, everything, vectors, forces, read, batch_tokens, desc, way):
    """What ``read(batch)`` [row] gives unsteered [row], and under every push [vector, force, row].

    ``everything`` is the right-padded batch of all rows; each vector pushes at its own layer.
    """
    refuse_inside_steer(model)
    layers = torch.tensor(layers_of(model, vectors))
    directions = torch.stack([vector.direction for vector in vectors])
    lengths = everything["attention_mask"].sum(1).tolist()
    base = torch.empty(len(lengths))
    steered = torch.empty(*forces.shape, len(lengths))
    prompts_at_once, cells_at_once = Batches(batch_tokens), Batches(batch_tokens)
    bar = progress(total=steered.numel(), desc=desc)

    def under_all_pushes(rows):
        batch = rows_of(everything, rows)
        outputs, base[rows] = _unsteered(model, batch, layers.tolist(), read)
        for layer, output in outputs.items():
            own = (layers == layer).nonzero()[:, 0]
            pushes = directions[own], forces[own], _sparing(way) if way else _adding
            values = _behind(model, batch, layer, output, pushes, read, cells_at_once, bar)
            steered[own[:, None, None], torch.arange(forces.shape[1])[:, None], rows] = values

    with bar:
        prompts_at_once.run(under_all_pushes, lengths)
    return finite(base, desc, model), finite(steered, desc, model)


def _unsteered(model, batch, layers, read):
    """One plain forward pass: what the blocks in ``layers`` returned, by layer, and ``read``."""
    outputs = {}

    def keep(layer, module, args, output):
        outputs[layer] = with_hidden_state(output, hidden_state(output).clone())

    with change(model) as ours:
        for layer in sorted(set(layers)):
            register = blocks(model)[layer].register_forward_hook
            # Before all other hooks: those act again behind every push.
            ours.hook(register, partial(keep, layer), prepend=True)
        return outputs, read(batch)


def _behind(model, batch, layer, output, pushes, read, batches, bar) -> Tensor:
    """``read`` for all vectors and forces of one layer on every row: [vector, force, row]."""
    directions, forces, way = pushes
    n_rows, width = batch["input_ids"].shape
    shape = (*forces.shape, n_rows)
    cells = torch.cartesian_prod(*map(torch.arange, shape))
    values = torch.empty(len(cells))

    def push(part):
        which, step, rows = cells[part].T
        hidden = hidden_state(output)[rows]
        own = directions[which, None], forces[which, step, None, None]
        pushed = way(hidden, *(part.to(hidden.device) for part in own))
        with _starting_behind(model, layer, with_hidden_state(output, pushed)):
            values[part] = read({name: tensor[rows] for name, tensor in batch.items()})

    batches.run(push, [width] * len(cells), bar=bar)
    return values.view(shape)


@contextmanager
def _starting_behind(model, layer, output):
    """Inside, the blocks up to ``layer`` compute nothing: what they return is ``output``."""

    def skip(block):
        own, run = block.__dict__.get("forward"), block.forward  # Accelerate sets one, say

        def forward(*args, **kwargs):
            return output if ours.ours else run(*args, **kwargs)

        def restore():
            if block.__dict__.get("forward") is forward:
                del block.forward
                if own is not None:
                    block.forward = own

        ours.undo.append(restore)
        block.forward = forward

    with change(model) as ours:
        for block in blocks(model)[: layer + 1]:
            skip(block)
        yield
