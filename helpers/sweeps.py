"""Run many steering experiments as few batches: vectors × forces × prompts (notebook 06)."""

import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from .directions import SteeringVector
from .evaluation import NEGATIVE_WORDS, POSITIVE_WORDS, next_token_logits, odds, word_ids
from .generation import SteeredTexts, generate, seed_list
from .models import (
    SteeringError,
    blocks,
    check_prompts,
    encode,
    hidden_state,
    progress,
    with_hidden_state,
)
from .steering import as_list, force_matrix, layer_of


@dataclass(frozen=True, eq=False)
class Sweep:
    """What every experiment of a sweep did to the log-odds, with the labels of its axes."""

    effect: Tensor  # [vector, force, prompt]: log-odds with the push minus without, in nats
    base: Tensor  # [prompt]: log-odds without
    vectors: list[SteeringVector]
    forces: Tensor  # [vector, force]
    prompts: list[str]

    @property
    def slopes(self) -> Tensor:
        """Steerability [vector, prompt]: nats for each unit of force (Tan et al. 2024).

        Least squares through the origin, where the effect is 0 by definition (arXiv
        2407.12404). One number stands for a whole curve: give forces at which it is straight.
        """
        forces = self.forces[..., None]
        return (forces * self.effect).sum(1) / forces.square().sum(1)

    @property
    def wrong_way(self) -> Tensor:
        """Share [vector, force] of prompts not moved the way of the force; NaN at force 0."""
        wrong = (self.effect * self.forces.sign()[..., None] <= 0).float().mean(-1)
        return wrong.where(self.forces != 0, torch.nan)

    def __repr__(self):
        return "Sweep({} vectors × {} forces × {} prompts)".format(*self.effect.shape)


@torch.no_grad()
def sweep(
    model,
    tokenizer,
    prompts,
    vectors,
    forces,
    positive=POSITIVE_WORDS,
    negative=NEGATIVE_WORDS,
    batch_tokens=2048,
):
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
    positive, negative : list of str
        Words of one token each.
    batch_tokens : int
        Tokens in one forward pass. A batch too large for the memory is halved, with a warning.

    Returns a ``Sweep``. Call it outside of ``steer``. Raises SteeringError as ``steer``,
    ``encode`` and ``word_ids`` do.
    """
    prompts, vectors = check_prompts(prompts), as_list(vectors)
    forces = _force_table(forces, len(vectors))
    layers = torch.tensor([layer_of(model, vector) for vector in vectors])
    directions = torch.stack([vector.direction for vector in vectors])
    sides = [word_ids(tokenizer, words) for words in (positive, negative)]
    everything = encode(model, tokenizer, prompts)
    lengths = everything["attention_mask"].sum(1).cpu()
    base = torch.empty(len(prompts))
    steered = torch.empty(*forces.shape, len(prompts))
    size = max(1, batch_tokens // int(lengths.max()))
    prompts_at_once, cells_at_once = _Parts(size), _Parts(size)

    def experiments(numbers):
        """All vectors and forces on some of the prompts."""
        batch = {name: x[numbers, : lengths[numbers].max()] for name, x in everything.items()}
        outputs, logits = _unsteered(model, batch)
        base[numbers] = odds(logits, sides)

        def push_behind(layer, cells):
            which, step, rows = cells.T
            hidden = hidden_state(outputs[layer])[rows]
            push = forces[which, step, None] * directions[which]
            pushed = hidden + push.to(hidden)[:, None, :]  # h' = h + α·v
            with _starting_behind(model, layer, with_hidden_state(outputs[layer], pushed)):
                logits = next_token_logits(model, {name: x[rows] for name, x in batch.items()})
            steered[which, step, numbers[rows]] = odds(logits, sides)
            bar.update(len(cells))

        for layer in layers.unique().tolist():
            own = (layers == layer).nonzero()[:, 0]
            axes = own, torch.arange(forces.shape[1]), torch.arange(len(numbers))
            cells_at_once.run(partial(push_behind, layer), torch.cartesian_prod(*axes))

    with progress(total=steered.numel(), desc="sweep") as bar:
        prompts_at_once.run(experiments, lengths.argsort())  # similar lengths together
    return Sweep(steered - base, base, vectors, forces, prompts)


def sweep_texts(model, tokenizer, prompts, vectors, forces, seed=0, batch_size=256, **options):
    """Continue every prompt under every vector and force; the text form of ``sweep``.

    Arguments are those of ``sweep``; ``seed`` is one number for all prompts or one for each,
    and ``options`` go to ``generate``. ``batch_size`` counts texts and is halved, with a
    warning, if they do not fit into the memory.

    Returns ``texts[vector][force]``, each the ``SteeredTexts`` of all prompts. Raises
    SteeringError as ``generate`` does.
    """
    prompts, vectors = check_prompts(prompts), as_list(vectors)
    forces = _force_table(forces, len(vectors))
    seeds = seed_list(seed, len(prompts))
    axes = (len(vectors), forces.shape[1], len(prompts))
    cells = torch.cartesian_prod(*map(torch.arange, axes))

    def continued(part):
        which, step, rows = part.T
        used, place = which.unique(return_inverse=True)
        own = torch.zeros(len(used), len(part))  # 0 for all vectors but the row's own
        own[place, torch.arange(len(part))] = forces[which, step]
        chosen = [vectors[i] for i in used]
        given, luck = [prompts[i] for i in rows], [seeds[i] for i in rows]
        texts = generate(model, tokenizer, given, chosen, own, seed=luck, **options)
        bar.update(len(part))
        return texts

    with progress(total=len(cells), desc="texts") as bar:
        texts = sum(_Parts(batch_size).run(continued, cells), [])
    starts = torch.arange(len(cells)).view(axes)[..., 0]
    return [[SteeredTexts(texts[i : i + axes[2]]) for i in row] for row in starts.tolist()]


def _force_table(forces, n_vectors):
    """[force] or [vector, force] as [vector, force], or a SteeringError."""
    table = torch.as_tensor(forces, dtype=torch.float32, device="cpu")
    fits = table.ndim == 1 or (table.ndim == 2 and len(table) == n_vectors)
    if not fits or not table.numel():
        raise SteeringError(
            f"Forces of shape {list(table.shape)} do not fit {n_vectors} vector(s): give [force], "
            "the same for all, or [vector, force]."
        )
    return force_matrix(table.expand(n_vectors, -1), n_vectors)  # raises unless all are finite


def _unsteered(model, batch):
    """One plain forward pass: what every block returned, by layer, and the next-token logits."""
    outputs = {}

    def keep(layer, module, args, output):
        outputs[layer] = with_hidden_state(output, hidden_state(output).clone())

    with ExitStack() as stack:
        for layer, block in enumerate(blocks(model)):
            stack.callback(block.register_forward_hook(partial(keep, layer)).remove)
        return outputs, next_token_logits(model, batch)


@contextmanager
def _starting_behind(model, layer, output):
    """Inside, the blocks up to ``layer`` compute nothing: what they return is ``output``."""
    skipped = blocks(model)[: layer + 1]
    own = [block.__dict__.get("forward") for block in skipped]  # Accelerate sets one, say
    try:
        for block in skipped:
            block.forward = lambda *args, **kwargs: output
        yield
    finally:
        for block, forward in zip(skipped, own, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward


class _Parts:
    """Work in parts of at most ``size`` items, for good half as many when memory runs out."""

    def __init__(self, size):
        self.size = size

    def run(self, work, items):
        """The results of ``work`` on the parts of ``items``, as a list."""
        results, start = [], 0
        while start < len(items):
            part = items[start : start + self.size]
            try:
                results.append(work(part))
                start += len(part)
                continue
            except RuntimeError as error:
                if len(part) == 1 or not should_reduce_batch_size(error):
                    raise
            # Only here is the error gone, and with it what the failed pass kept in memory.
            self.size = len(part) // 2
            warnings.warn(f"Out of memory: going on with {self.size} at a time.", stacklevel=2)
            clear_device_cache(garbage_collection=True)
        return results
