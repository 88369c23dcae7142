"""Choose layer and force by a rule that was fixed beforehand (notebook 05)."""

from typing import NamedTuple

import torch

from .checks import SteeringError, checked
from .directions import SteeringVector
from .sweeps import sweep_texts


class Choice(NamedTuple):
    """The setting that a rule picked from a sweep."""

    vector: SteeringVector
    force: float  # its size; push with both signs
    index: int  # of the vector among those of the sweep
    size: int  # of the force among the sweep's sizes
    pull: float  # mean over prompts, nats
    price: float  # of the dearer sign, mean over prompts, bits per token


@checked
def choose(swept, written, limit=0.5) -> Choice:
    """The largest pull among the settings whose price stays below ``limit`` in both directions.

    ``swept`` and ``written`` are the ``Sweep`` and the ``TextSweep`` of the same vectors and
    forces on development prompts: what is reported afterwards needs other prompts.

    Raises SteeringError if they differ, the texts have no price, or no setting is that cheap.
    """
    same = swept.forces.shape == written.forces.shape
    same = same and torch.equal(swept.forces, written.forces)
    pairs = zip(swept.vectors, written.vectors, strict=False)
    if not same or not all(
        one.layer == other.layer and one.direction.equal(other.direction) for one, other in pairs
    ):
        raise SteeringError("The sweep and the texts were made with different vectors or forces.")
    pull, dearer = swept.pull.mean(-1), written.dearer
    affordable = pull.where(dearer < limit, -torch.inf)
    index, size = (int(i) for i in torch.unravel_index(affordable.argmax(), affordable.shape))
    if affordable[index, size] == -torch.inf:
        _refuse(dearer, limit)
    return _choice(swept, index, size, dearer[index, size])


@checked
def search(model, tokenizer, swept, limit=0.5, **options) -> Choice:
    """What ``choose`` would pick, from fewer texts: those of the largest pulls come first.

    Texts are written for six settings at a time, until one of them is affordable; the rest pull
    less, so their price does not matter. ``options`` go to ``sweep_texts``.

    Raises SteeringError if no setting is that cheap, and as ``sweep_texts`` does.
    """
    pull, known = swept.pull.mean(-1), []
    for some in pull.flatten().argsort(descending=True, stable=True).split(6):
        rows, columns = torch.unravel_index(some, pull.shape)
        vectors, sizes = [swept.vectors[row] for row in rows], swept.sizes[rows, columns]
        both = torch.stack([sizes, -sizes], dim=1)
        known.append(
            sweep_texts(model, tokenizer, swept.prompts, vectors, both, **options).dearer[:, 0]
        )
        if (cheap := known[-1] < limit).any():
            first = int(cheap.nonzero()[0])
            return _choice(swept, int(rows[first]), int(columns[first]), known[-1][first])
    _refuse(torch.cat(known), limit)


def _choice(swept, index, size, dearer) -> Choice:
    force, pull = swept.sizes[index, size].item(), swept.pull[index, size].mean().item()
    return Choice(swept.vectors[index], force, index, size, pull, dearer.item())


def _refuse(dearer, limit):
    known = dearer[~dearer.isnan()]
    cheapest = f"the cheapest costs {known.min():.2f}" if len(known) else "no price is known"
    raise SteeringError(
        f"No setting costs less than {limit} bits per token in both directions; {cheapest}. "
        "Try smaller forces or a higher limit."
    )
