"""How sure is a number, and what would chance have given? (notebook 07)"""

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import bootstrap, rankdata

from .activations import residual_stream
from .checks import RULES, SteeringError, checked, from_0, scores
from .concepts import SENTIMENT
from .directions import SteeringVector
from .pairs import split
from .steering import layers_of


class Estimate(NamedTuple):
    """A mean with its bootstrap confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self):
        mean, low, high = (round(value, 2) + 0.0 for value in self)  # no minus before a zero
        return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


@checked(seed=from_0)
def mean_with_interval(values, confidence=0.95, seed=0) -> Estimate:
    """Mean over prompts, with a bootstrap interval (percentile, 10,000 resamples).

    For a paired effect give the differences, one for each prompt.

    Raises SteeringError for fewer than two values: one prompt has a mean but no interval.
    """
    if values.size < 2:
        raise SteeringError(f"An interval over {values.size} prompt(s) does not exist: give more.")
    return _estimate([values], np.mean, 10_000, confidence, seed)


@checked(positive=scores, negative=scores, seed=from_0)
def auc_with_interval(positive, negative, confidence=0.95, seed=0) -> Estimate:
    """Area under the ROC curve: chance that a positive text scores above a negative one.

    Ties count half; 0.5 is guessing, below it the direction points the wrong way. The interval
    draws texts of either class anew (percentile bootstrap, 2,000 resamples). Inputs are scores
    [text] of each class. Raises SteeringError for a class of fewer than two texts.
    """
    sides = positive, negative
    if min(side.size for side in sides) < 2:
        raise SteeringError("An interval needs two texts of each class or more.")

    def auc(above, below, axis=-1):
        # Mann and Whitney: the ranks of one class among all tell how often it lies above.
        n, m = above.shape[-1], below.shape[-1]
        ranks = rankdata(np.concatenate([above, below], axis=-1), axis=-1)[..., :n]
        return (ranks.sum(-1) - n * (n + 1) / 2) / (n * m)

    return _estimate(sides, auc, 2_000, confidence, seed)


def _estimate(samples, statistic, n_resamples, confidence, seed) -> Estimate:
    """A statistic of samples, with its percentile bootstrap interval."""
    low, high = bootstrap(
        samples,
        statistic,
        n_resamples=n_resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(float(statistic(*samples)), float(low), float(high))


@checked(vector=RULES["other"], seed=from_0)
def controls(
    model, tokenizer, vector, concept=SENTIMENT, n_random=20, n_shuffled=70, n_orthogonal=5, seed=0
) -> dict[str, list[SteeringVector]]:
    """Rivals of a steering vector for its layer: whatever they do, too, is not the concept's doing.

    ``"random"``: no relation to anything. ``"shuffled"``: the mean difference of the same pairs
    after half of them, rounded down, were turned round: every way to do so, or ``n_shuffled`` of
    them drawn by ``seed`` if there are more. ``"orthogonal"``: the directions in which the pairs'
    activations vary most once the vector is projected out, the widest first.

    Where half of the labels are turned round, what the pairs share cancels (for an odd number
    all but one part in n), and what each pair brings along by itself is left. Raises SteeringError
    for a vector that does not fit the model.

    The activations are those of the pairs' last tokens. Push with each at the vector's force.
    """
    [layer] = layers_of(model, [vector])
    sides = [residual_stream(model, tokenizer, side)[layer] for side in split(concept.pairs)]
    differences = sides[0] - sides[1]  # [pair, d_model]
    n_pairs = len(differences)

    streams = torch.cat(sides) - torch.cat(sides).mean(0)
    across = streams - (streams @ vector.direction)[:, None] * vector.direction
    widest = torch.linalg.svd(across, full_matrices=False)
    rank = int((widest.S > 1e-4 * widest.S[0]).sum())  # beyond it there is only rounding
    return {
        "random": [vector.random_like(seed + number) for number in range(n_random)],
        "shuffled": [
            vector.like(difference, "shuffled labels", n_pairs)
            for difference in _signs(n_pairs, n_shuffled, seed) @ differences / n_pairs
        ],
        "orthogonal": [
            vector.like(vector.raw_norm * axis, "orthogonal", n_pairs)
            for axis in widest.Vh[: min(n_orthogonal, rank)]
        ],
    }


def _signs(n_pairs, most, seed) -> torch.Tensor:
    """±1 [way, pair]: different ways to turn half of the pairs round, at most so many."""
    half = n_pairs // 2
    if comb(n_pairs, half) <= most:
        ways = set(combinations(range(n_pairs), half))
    else:
        generator, ways = torch.Generator().manual_seed(seed), set()
        while len(ways) < most:
            drawn = torch.randperm(n_pairs, generator=generator)[:half]
            ways.add(tuple(drawn.sort().values.tolist()))
    signs = torch.ones(len(ways), n_pairs)
    for row, way in zip(signs, sorted(ways), strict=True):
        row[list(way)] = -1
    return signs
