"""The strength that costs a stated damage, for a fair comparison of pushes (notebook 05)."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .activations import typical_norm
from .checks import RULES, SteeringError, checked, fitted, numbers, refuse
from .directions import SteeringVector
from .steering import as_list, layers_of
from .sweeps import sweep_damage

ORDINARY = json.loads(Path(__file__).with_name("ordinary.json").read_text(encoding="utf-8"))
TOLERANCE = 0.05  # of the budget
MOST = 40  # times the first force tried: none beyond is
MOST_EVALUATIONS = 5


@dataclass(frozen=True, eq=False)
class Calibration:
    """For each vector the force up and the force down that cost the budget."""

    forces: Tensor  # [vector, 2]: for + and for −; NaN where none costs as much
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
def calibrate(
    model, tokenizer, vectors, budget=0.25, texts=ORDINARY, way=None, start=None, middle=None
) -> Calibration:
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
    way : callable, optional
        Another way to push than adding, as in ``sweep``. Its force may be in another unit.
    start : Tensor [vector], optional
        The first size of a force to try, instead of a fifth of the norm; the largest is 40 times
        as large. (Eight typical norms: beyond, what is left of the stream is the vector alone.)
    middle : Tensor [vector], optional
        The force that pushes neither up nor down, if that is not 0: + and − are sought on its
        two sides.

    Warns of vectors for which no force costs as much, or none was found: theirs are NaN. Raises
    SteeringError as ``sweep_damage`` does, and unless there is a start, or a middle, for each
    vector.
    """
    vectors = as_list(vectors)
    if start is None:
        start = 0.2 * typical_norm(model, tokenizer, prompts=texts)[layers_of(model, vectors)]
    middle = torch.zeros(len(vectors)) if middle is None else middle
    if not len(vectors) == start.numel() == middle.numel():
        raise SteeringError(f"Give a start and a middle for each of the {len(vectors)} vectors.")
    start, middle = (each.flatten().repeat_interleave(2) for each in (start, middle))
    signs = torch.tensor([1.0, -1.0]).repeat(len(vectors))  # a row a vector and sign

    def cost(rows, sizes):
        tried, forces = [vectors[row // 2] for row in rows], middle[rows] + signs[rows] * sizes
        return sweep_damage(model, tokenizer, texts, tried, forces[:, None], way=way)[:, 0]

    sizes, damage, evaluations = strength_at(cost, start, MOST * start, budget)
    forces, damage = (each.view(len(vectors), 2, -1) for each in (middle + signs * sizes, damage))
    return _with_warning(Calibration(forces[..., 0], damage, vectors, budget, evaluations))


class Strengths(NamedTuple):
    """For each row the strength that costs the budget."""

    strengths: Tensor  # [row]; NaN where none was found
    damage: Tensor  # [row, text]: bits per token, measured at these strengths
    evaluations: int  # how often the cost was asked for


@checked
def strength_at(cost, start, end, budget=0.25) -> Strengths:
    """Find the strength at which a push of any kind costs a budget of damage.

    Every row is a push of its own, and all are tried at once: first at ``start``, then where the
    damage found so far lets the budget be expected. ``calibrate`` says when a strength is taken.

    Parameters
    ----------
    cost : callable
        ``cost(rows, strengths)`` gives the damage [row, text] of some rows, numbered from 0, each
        at its own strength [row]. The mean over the texts is held against the budget.
    start, end : Tensor [row]
        The first and the largest strength to try, above 0, in a unit of your own.
    budget : float
        Bits per token, above 0.

    A row is NaN where no strength up to ``end`` costs as much, or none was found within five
    tries: if even the weakest push costs more, say. Raises SteeringError unless start and end have
    as many rows, and cost gives a row of finite numbers for each that it is asked for.
    """
    if start.shape != end.shape:
        raise SteeringError(f"start has {len(start)} rows, end has {len(end)}: give as many.")
    search, damage, evaluations = _Search(start, end, budget), None, 0
    while evaluations < MOST_EVALUATIONS and len(rows := search.left):
        found = fitted(cost(rows, search.strength[rows]), "damage", numbers)
        if found.ndim != 2 or len(found) != len(rows):
            refuse(list(found.shape), "The shape of what cost gives", f"[{len(rows)}, text]")
        damage = found.clone() if damage is None else damage
        damage[rows] = found
        search.learn(rows, found.mean(-1))
        evaluations += 1
    return Strengths(search.strength.where(search.found, torch.nan), damage, evaluations)


class _Search:
    """Where each row's budget lies, by a few measurements of what a strength costs."""

    def __init__(self, start, end, budget):
        self.budget, self.top = budget, end
        self.strength = start.clone()  # the next to try, or the one that was found
        self.found = torch.zeros(len(start), dtype=torch.bool)
        # The largest strength that cost too little and the smallest that cost too much, with
        # their damage: [strength and damage, row].
        self.low = torch.zeros(2, len(start))
        self.high = torch.full((2, len(start)), torch.inf)
        self.slope = torch.full((len(start),), 2.0)  # of log damage over log strength, at first

    @property
    def left(self) -> list[int]:
        """The rows whose strength is not found, and could be."""
        return (~self.found & (self.low[0] < self.top)).nonzero()[:, 0].tolist()

    def learn(self, rows, damage):
        """Take in what the rows' strengths cost, and set the next ones."""
        strength, budget = self.strength[rows], self.budget
        new = torch.stack([strength, damage])
        little = damage < budget
        before = self.low[:, rows].where(little, self.high[:, rows])
        slope = (damage.log() - before[1].log()) / (strength.log() - before[0].log())
        self.slope[rows] = slope.clip(1, 6).where(slope.isfinite(), self.slope[rows])
        self.low[:, rows] = new.where(little, self.low[:, rows])
        self.high[:, rows] = self.high[:, rows].where(little, new)
        low, high = self.low[:, rows], self.high[:, rows]
        self.found[rows] = ((damage / budget - 1).abs() <= TOLERANCE) | (high[0] <= 1.04 * low[0])

        # Outside of all that is known, as a power of the strength; if a push helps, just further.
        further = (budget / damage).pow(1 / self.slope[rows]).clip(0.25, 4).where(damage > 0, 3.0)
        # Between two known strengths as a square, which is nearly straight under the root.
        roots = [x.sign() * x.abs().sqrt() for x in (low[1], high[1])]
        share = (budget**0.5 - roots[0]) / (roots[1] - roots[0])
        inside = low[0] + share * (high[0] - low[0])
        bracketed = (low[0] > 0) & high[0].isfinite()
        guess = inside.where(bracketed, (strength * further).minimum(self.top[rows]))
        self.strength[rows] = strength.where(self.found[rows], guess)


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
