"""The force that costs a stated damage, for a fair comparison of pushes (notebook 05)."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .activations import typical_norm
from .checks import RULES, checked
from .directions import SteeringVector
from .steering import as_list, layers_of
from .sweeps import sweep_damage

ORDINARY = json.loads(Path(__file__).with_name("ordinary.json").read_text(encoding="utf-8"))
TOLERANCE = 0.05  # of the budget
MOST_NORMS = 8  # typical norms beyond which no force is tried: what is left is the vector alone
MOST_EVALUATIONS = 5


@dataclass(frozen=True, eq=False)
class Calibration:
    """For each vector the force up and the force down that cost the budget."""

    forces: Tensor  # [vector, 2]: the first above 0, the second below; NaN where none costs as much
    damage: Tensor  # [vector, 2, text]: bits per token, measured at these forces
    vectors: list[SteeringVector]
    budget: float
    evaluations: int  # how often the texts were read

    @property
    def reached(self) -> Tensor:
        """Whether both signs can cost as much: bool [vector]."""
        return ~self.forces.isnan().any(1)

    def __repr__(self):
        return f"Calibration({len(self.vectors)} vectors at {self.budget:g} bits of damage)"


@checked(texts=RULES["prompts"])
def calibrate(model, tokenizer, vectors, budget=0.25, texts=ORDINARY) -> Calibration:
    """Find the force that costs a budget of damage, for + and − apart.

    Damage is how many bits per token worse the steered model reads ordinary texts, on average
    over them, as in ``sweep_damage``. It grows about with the square of a small force, by another
    factor in every layer, vector and sign: only at equal damage are their effects comparable.

    All vectors and signs are tried at once, each at a force of its own: first at a fifth of the
    layer's typical norm, then where the damage found so far lets the budget be expected. A force
    is taken when its damage is within 5 % of the budget, or when two forces 4 % apart enclose it;
    after five tries the search ends.

    Parameters
    ----------
    vectors : SteeringVector or list of SteeringVector
        Each pushes at its own layer.
    budget : float
        Bits per token, above 0.
    texts : list of str
        What is read; by default sixteen sentences of everyday life.

    Warns of vectors for which no force up to eight typical norms costs as much, or none was found:
    theirs are NaN. Raises SteeringError as ``sweep_damage`` does.
    """
    vectors = as_list(vectors)
    norms = typical_norm(model, tokenizer, prompts=texts)[layers_of(model, vectors)]
    signs = torch.tensor([1.0, -1.0]).repeat(len(vectors))  # a row a vector and sign
    search = _Search(norms.repeat_interleave(2), budget)
    damage = torch.full((len(signs), len(texts)), torch.nan)
    evaluations = 0
    while evaluations < MOST_EVALUATIONS and len(rows := search.left):
        tried = [vectors[row // 2] for row in rows]
        forces = (signs * search.force)[rows, None]
        damage[rows] = sweep_damage(model, tokenizer, texts, tried, forces)[:, 0]
        search.learn(rows, damage[rows].mean(-1))
        evaluations += 1
    forces = (signs * search.force).where(search.found, torch.nan)
    return _with_warning(
        Calibration(
            forces.view(-1, 2), damage.view(len(vectors), 2, -1), vectors, budget, evaluations
        )
    )


class _Search:
    """Where each row's budget lies, by a few measurements of what a force costs."""

    def __init__(self, norms, budget):
        self.budget, self.top = budget, MOST_NORMS * norms
        self.force = 0.2 * norms  # the next to try, or the one that was found
        self.found = torch.zeros(len(norms), dtype=torch.bool)
        # The largest force that cost too little and the smallest that cost too much, with their
        # damage: [force and damage, row].
        self.low = torch.zeros(2, len(norms))
        self.high = torch.full((2, len(norms)), torch.inf)
        self.slope = torch.full((len(norms),), 2.0)  # of log damage over log force, at first

    @property
    def left(self) -> list[int]:
        """The rows whose force is not found, and could be."""
        return (~self.found & (self.low[0] < self.top)).nonzero()[:, 0].tolist()

    def learn(self, rows, damage):
        """Take in what the rows' forces cost, and set the next ones."""
        force, budget, new = self.force[rows], self.budget, torch.stack([self.force[rows], damage])
        little = damage < budget
        before = self.low[:, rows].where(little, self.high[:, rows])
        slope = (damage.log() - before[1].log()) / (force.log() - before[0].log())
        self.slope[rows] = slope.clip(1, 6).where(slope.isfinite(), self.slope[rows])
        self.low[:, rows] = new.where(little, self.low[:, rows])
        self.high[:, rows] = self.high[:, rows].where(little, new)
        low, high = self.low[:, rows], self.high[:, rows]
        self.found[rows] = ((damage / budget - 1).abs() <= TOLERANCE) | (high[0] <= 1.04 * low[0])

        # Outside of all that is known, as a power of the force; where a push helps, just further.
        further = (budget / damage).pow(1 / self.slope[rows]).clip(0.25, 4).where(damage > 0, 3.0)
        # Between two known forces as a square, which is nearly straight under the root.
        roots = [x.sign() * x.abs().sqrt() for x in (low[1], high[1])]
        share = (budget**0.5 - roots[0]) / (roots[1] - roots[0])
        inside = low[0] + share * (high[0] - low[0])
        bracketed = (low[0] > 0) & high[0].isfinite()
        guess = inside.where(bracketed, (force * further).minimum(self.top[rows]))
        self.force[rows] = force.where(self.found[rows], guess)


def _with_warning(result):
    """The calibration; warns of the vectors for which no force was found."""
    missing = result.forces.isnan()
    if missing.any():
        names = [
            f"{sign} in layer {vector.layer}"
            for vector, row in zip(result.vectors, missing.tolist(), strict=True)
            for sign, lacks in zip("+-", row, strict=True)
            if lacks
        ]
        warnings.warn(
            f"No force that costs {result.budget:g} bits was found for {', '.join(names)}: these "
            "are NaN. Try another budget, or leave these layers out.",
            stacklevel=4,
        )
    return result
