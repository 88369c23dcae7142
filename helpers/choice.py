"""Choose a layer by a rule that was fixed beforehand (notebook 05)."""

from typing import NamedTuple

from torch import Tensor

from .calibration import Calibration, calibrate
from .checks import SteeringError, checked
from .concepts import SENTIMENT
from .directions import SteeringVector
from .sweeps import sweep


class Choice(NamedTuple):
    """The vector that the rule picked, and what it was picked from."""

    vector: SteeringVector
    up: float  # the force above 0 that costs the budget
    down: float  # the force below 0 that does
    index: int  # of the vector among those that were tried
    pull: Tensor  # [vector, prompt]: nats at equal damage; NaN where the budget is out of reach
    calibration: Calibration


@checked
def choose(model, tokenizer, vectors, concept=SENTIMENT, budget=0.25, **options) -> Choice:
    """The vector with the largest pull on the development prompts, at equal damage.

    Each vector is pushed up and down by the forces that cost the ``budget`` of damage; the pull is
    half of (up minus down), as a mean over the prompts. What is reported afterwards needs other
    prompts. ``options`` go to ``calibrate``.

    Raises SteeringError if no vector can cost as much, and as ``calibrate`` and ``sweep`` do.
    """
    found = calibrate(model, tokenizer, vectors, budget, **options)
    if not found.reached.any():
        raise SteeringError(f"No force costs {budget:g} bits, up and down: try another budget.")
    forces = found.forces.nan_to_num(0.0)
    moved = sweep(model, tokenizer, concept.dev_prompts, found.vectors, forces, concept).effect
    pull = (moved[:, 0] - moved[:, 1]) / 2
    pull = pull.where(found.reached[:, None], float("nan"))
    index = int(pull.mean(-1).nan_to_num(-float("inf")).argmax())
    up, down = found.forces[index].tolist()
    return Choice(found.vectors[index], up, down, index, pull, found)
