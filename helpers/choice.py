"""Choose layer and force by a rule that was fixed beforehand (notebook 05)."""

from typing import NamedTuple

import torch

from .checks import SteeringError, checked
from .directions import SteeringVector


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
        known = dearer[~dearer.isnan()]
        cheapest = f"the cheapest costs {known.min():.2f}" if len(known) else "no price is known"
        raise SteeringError(
            f"No setting costs less than {limit} bits per token in both directions; {cheapest}. "
            "Try smaller forces or a higher limit."
        )
    force = swept.sizes[index, size].item()
    found = pull[index, size].item(), dearer[index, size].item()
    return Choice(swept.vectors[index], force, index, size, *found)
