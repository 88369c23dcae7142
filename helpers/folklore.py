"""The rules of thumb on trial (notebook 08), the same for every model."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import ttest_1samp
from torch import Tensor

from . import plots
from .activations import residual_stream, typical_norm
from .calibration import Calibration, calibrate
from .checks import SteeringError, checked
from .concepts import SENTIMENT, Concept
from .directions import METHODS, SteeringVector, cosines, find_vectors
from .evaluation import judge, log_odds, next_token_logits
from .models import blocks, encode, model_name, some_layers
from .pairs import split
from .statistics import Estimate, mean_with_interval
from .steering import steer
from .sweeps import sweep, sweep_texts
from .tables import Table

SAYINGS = [
    "Layers 7 and 8 of 12 are the golden ones.",
    "Short symmetric pairs give purer vectors than long varied ones.",
    "A force below 10 is subtle, 30 to 50 is the sweet spot, above 80 the text breaks.",
    "Adding and subtracting are symmetric.",
    "More pairs are better.",
    "PCA and mean difference find the same direction.",
    "Steering beats asking.",
    "Twenty samples are enough.",
]
ALLOWED = 0.25  # bits per token: the damage at which layers are compared


class Verdict(NamedTuple):
    """What a claim says, what was found, and whether it is so; ``rule`` makes it."""

    claim: str  # begins with the number of its rule of thumb, 1 to 8
    found: Estimate
    side: str  # of the border on which the claim puts the quantity: "above" or "below"
    border: float
    verdict: str  # "holds", "fails" or "open"


@dataclass(frozen=True, eq=False)
class Trial:
    """The verdicts on one model, and the pulls behind the first."""

    model_name: str
    n_layer: int
    golden: list[int]  # the layers that stand where 7 and 8 stand among 12
    rival: int  # the best of the others, chosen on the development prompts
    layers: list[int]  # those that were compared
    equal: list[list[float]]  # by compared layer: typical norms, up and down, that cost ALLOWED
    pull: list[Estimate]  # by compared layer: nats at that force; NaN where no force costs as much
    verdicts: list[Verdict]

    def __repr__(self):
        return f"Trial of {self.model_name}: {len(self.verdicts)} verdicts"


@checked
def rule(claim, found, above=None, below=None) -> Verdict:
    """The verdict on: the quantity lies above, or below, a border.

    It holds if the whole interval of the Estimate lies on that side, fails if it lies on the
    other, and is open if the interval covers the border, or is NaN.
    Raises SteeringError unless exactly one border is given.
    """
    if (above is None) == (below is None):
        raise SteeringError("A claim has one border: give above=... or below=...")
    side, border = ("above", above) if below is None else ("below", below)
    over, under = found.low > border, found.high < border
    holds, fails = (over, under) if below is None else (under, over)
    verdict = "holds" if holds else "fails" if fails else "open"
    return Verdict(claim, found, side, float(border), verdict)


@checked
def trial(model, tokenizer, concept=SENTIMENT) -> Trial:
    """Try the eight rules of thumb on a model, as notebook 08 does.

    The layers compared are at most eight, and the golden ones. The claims are the same for every
    model on which the concept's words can be counted, in the same order.

    Raises SteeringError for a model of fewer than two layers, a concept without sentences,
    unrelated prompts, requests or a judge, and as ``find_vectors``, ``sweep`` and ``sweep_texts``
    do.
    """
    concept.need("positive_sentences", "negative_sentences", "unrelated_prompts")
    concept.need("positive_requests", "negative_requests", "judge")
    here = _Here(model, tokenizer, concept)
    n_layer = len(blocks(model))
    if n_layer < 2:
        raise SteeringError(f"{model_name(model)} has one layer: there is none to compare it with.")
    first, layers = _golden_layers(here)
    others = (_short_pairs, _sweet_spot, _symmetry, _many_pairs, _methods, _asking, _twenty)
    verdicts = [
        verdict for claims in (first, *(claim(here) for claim in others)) for verdict in claims
    ]
    return Trial(here.vectors[0].model_name, n_layer, here.golden, **layers, verdicts=verdicts)


@dataclass(frozen=True, eq=False)
class _Here:
    """What all claims are tried on."""

    model: object
    tokenizer: object
    concept: Concept

    @property
    def both(self):
        return self.model, self.tokenizer

    @cached_property
    def vectors(self) -> list[SteeringVector]:
        return find_vectors(*self.both, self.concept.pairs)

    @cached_property
    def scale(self) -> Tensor:
        return typical_norm(*self.both, self.concept)

    @property
    def golden(self):
        """The layers that stand where 7 and 8 stand among 12."""
        n_layer = len(self.vectors)
        return [min(round(place * n_layer / 12), n_layer - 1) for place in (7, 8)]

    @property
    def vector(self):
        return self.vectors[self.golden[-1]]

    @property
    def norm(self):
        return self.scale[self.golden[-1]].item()

    @cached_property
    def deals(self):
        """Both sides' activations [pair, d_model], twenty orders of the pairs, how many to take."""
        pool = [*self.concept.pairs, *self.concept.more_pairs]
        sides = [residual_stream(*self.both, side)[self.golden[-1]] for side in split(pool)]
        generator = torch.Generator().manual_seed(0)
        deals = [torch.randperm(len(pool), generator=generator) for _ in range(20)]
        return sides, deals, [n for n in (1, 2, 4, 8, 16) if n <= len(pool)]

    def pulls(self, prompts, vectors, sizes) -> Tensor:
        """Half of (up minus down) [vector, size, prompt] for sizes as they are given."""
        sizes = torch.as_tensor(sizes, dtype=torch.float32)
        both = torch.cat([sizes, -sizes], dim=-1)
        effect = sweep(*self.both, prompts, vectors, both, self.concept).effect
        up, down = effect.split(sizes.shape[-1], dim=1)
        return (up - down) / 2


def _interval(value, draws) -> Estimate:
    """A value with the middle 95 % of what the bootstrap drew."""
    return Estimate(float(value), *np.percentile(draws, [2.5, 97.5]).tolist())


# -- 1 · Layers 7 and 8 are golden


def _golden_layers(here):
    concept, golden = here.concept, here.golden
    layers = sorted({*some_layers(here.model, 8), *golden})
    compared = [here.vectors[i] for i in layers]
    equal = calibrate(*here.both, compared, ALLOWED)
    on_dev = _moves(*here.both, concept.dev_prompts, equal, concept)
    on_test = _moves(*here.both, concept.test_prompts, equal, concept)
    tried = (on_dev[:, 0] - on_dev[:, 1]).mean(-1) / 2
    tried[np.isnan(tried) | np.isin(layers, golden)] = -np.inf
    rival = int(tried.argmax())
    drawn, found = _drawn(on_test, equal), (on_test[:, 0] - on_test[:, 1]).mean(-1) / 2

    verdicts = []
    for place, layer in zip((7, 8), golden, strict=True):
        i = layers.index(layer)
        margin = _interval(found[i] - found[rival], drawn[:, i] - drawn[:, rival])
        verdicts.append(rule(f"1 · layer {place}/12 beats the best other", margin, above=0))
    pull = [_interval(found[i], drawn[:, i]) for i in range(len(layers))]
    shares = (equal.forces / here.scale[layers, None]).tolist()
    return verdicts, {"rival": layers[rival], "layers": layers, "equal": shares, "pull": pull}


@checked
def equal_pull(
    model, tokenizer, vectors, concept=SENTIMENT, budget=ALLOWED, way=None, start=None, middle=None
) -> tuple[Calibration, np.ndarray]:
    """What pushes do to the test prompts when each costs the same, as in claim 1 of notebook 08.

    Returns the calibration, and the pull in nats [draw, vector], scaled to exactly the budget:
    first of the test prompts and sentences as they are, then of 500 draws of the bootstrap, which
    are the same in every call, so that two calls can be compared draw by draw. NaN where no force
    costs as much. ``way``, ``start`` and ``middle`` are those of ``calibrate``, as are warnings
    and errors.
    """
    how = {"way": way, "start": start, "middle": middle}
    equal = calibrate(model, tokenizer, vectors, budget, **how)
    effect = _moves(model, tokenizer, concept.test_prompts, equal, concept, way)
    whole = _at_budget(effect, equal.damage.numpy(), budget)
    return equal, np.concatenate([whole[None], _drawn(effect, equal)])


def _moves(model, tokenizer, prompts, equal, concept, way=None) -> np.ndarray:
    """Effect of calibrated pushes [vector, up and down, prompt]; NaN where one is missing."""
    where = (model, tokenizer, prompts, equal.vectors, equal.forces.nan_to_num(0.0), concept)
    effect = sweep(*where, way=way).effect
    return effect.where(equal.reached[:, None, None], torch.nan).numpy()


def _at_budget(effect, lost, budget) -> np.ndarray:
    """Pull [vector] if each push cost exactly the budget."""
    # Damage grows about with the square of the force, the effect in proportion to it.
    room = (budget / lost.mean(-1).clip(budget / 16)) ** 0.5
    up, down = (effect.mean(-1) * room).T
    return (up - down) / 2


def _drawn(effect, equal) -> np.ndarray:
    """Pull [draw, vector] at the budget, with sentences and prompts drawn anew."""
    rng, drawn, lost = np.random.default_rng(0), [], equal.damage.numpy()
    for _ in range(500):
        some = rng.integers(0, effect.shape[-1], effect.shape[-1])
        read = rng.integers(0, lost.shape[-1], lost.shape[-1])
        drawn.append(_at_budget(effect[..., some], lost[..., read], equal.budget))
    return np.array(drawn)


# -- 2 · Short symmetric pairs give purer vectors


def _short_pairs(here):
    concept, layer, gentle = here.concept, here.golden[-1], 0.1 * here.norm
    sides = zip(concept.positive_sentences, concept.negative_sentences, strict=False)
    varied = concept.varied_pairs or list(sides)[: len(concept.pairs)]
    kinds = [here.vector]
    kinds += [find_vectors(*here.both, varied, position=place)[layer] for place in (-1, "mean")]
    on_dev, pulls = (
        here.pulls(prompts, kinds, [gentle])[:, 0]
        for prompts in (concept.dev_prompts, concept.test_prompts)
    )
    other = 1 + int(on_dev[1:].mean(-1).argmax())
    unrelated = encode(*here.both, concept.unrelated_prompts)
    disturbed = [_side_effect(here.model, unrelated, kinds[i], gentle) for i in (0, other)]
    # Disturbance grows with the square of a gentle force, as damage does.
    ratio = pulls[other].mean() / pulls[0].mean()
    gain = (disturbed[0] * ratio**2 / disturbed[1]).log2()
    more = mean_with_interval(pulls[0] - pulls[other])
    return [
        rule("2 · short pairs pull more", more, above=0),
        rule("2 · doublings of disturbance at equal pull", mean_with_interval(gain), below=0),
    ]


@torch.no_grad()
def _side_effect(model, batch, vector, force) -> Tensor:
    """Bits [row] by which the chances of the next token move, over both signs."""
    before = next_token_logits(model, batch).log_softmax(-1)
    moved = 0
    for sign in (1, -1):
        with steer(model, vector, sign * force):
            after = next_token_logits(model, batch).log_softmax(-1)
        moved = moved + (after.exp() * (after - before)).sum(-1) / 2
    return moved.cpu() / np.log(2)


# -- 3 · Below 10 subtle, 30 to 50 sweet, above 80 broken


def _sweet_spot(here):
    prompts = here.concept.test_prompts
    names = ["force 10", "force 30", "force 50", "force 80", "half the norm"]
    forces = torch.tensor([10.0, 30.0, 50.0, 80.0, here.norm / 2])
    pulls = here.pulls(prompts, here.vector, forces)[0]
    felt = dict(zip(names, map(mean_with_interval, pulls), strict=True))
    cost = []
    for sign, some in ((1, prompts[::4]), (-1, prompts[2::4])):
        where = (*here.both, some, here.vector, sign * forces[1:])
        cost.append(sweep_texts(*where, seed=1, max_new_tokens=12).price[0])
    cost = torch.cat(cost, dim=1)
    cost = cost[:, ~cost.isnan().any(0)]  # a text may be empty
    paid = dict(zip(names[1:], map(mean_with_interval, cost), strict=True))
    verdicts = [rule("3 · force 10 is subtle", felt["force 10"], below=np.log(2))]
    for name in ("force 30", "force 50", "half the norm"):
        verdicts.append(rule(f"3 · {name} is felt", felt[name], above=np.log(2)))
        verdicts.append(rule(f"3 · {name} does not break", paid[name], below=1))
    return [*verdicts, rule("3 · force 80 breaks the text", paid["force 80"], above=1)]


# -- 4 · Adding and subtracting are symmetric


def _symmetry(here):
    shares = torch.tensor([0.05, 0.4])
    both = torch.cat([shares, -shares]) * here.norm
    swept = sweep(*here.both, here.concept.test_prompts, here.vector, both, here.concept)
    up, down = swept.effect[0].split(len(shares))
    tilt = (up + down) / (up - down).mean(1, keepdim=True)  # [share, prompt]
    sizes = [mean_with_interval(row) for row in tilt.abs()]
    names = [f"4 · symmetric at {share:.2f} norms" for share in shares]
    return [rule(name, size, below=0.1) for name, size in zip(names, sizes, strict=True)]


# -- 5 · More pairs are better, and 6 · PCA and mean difference find the same direction


def _many_pairs(here):
    (positive, negative), deals, numbers = here.deals
    rows = positive - negative
    dealt = [
        here.vector.like(rows[deal[:n]].mean(0), "subset", n) for n in numbers for deal in deals
    ]
    pulls = here.pulls(here.concept.test_prompts[::5], dealt, [0.1 * here.norm])
    pulls = pulls.mean((1, 2)).view(len(numbers), -1)  # [number, deal]
    return [
        rule(f"5 · {more} pairs pull more than {few}", mean_with_interval(gain), above=0)
        for few, more, gain in zip(numbers, numbers[1:], pulls.diff(dim=0), strict=False)
    ]


def _methods(here):
    sides, deals, numbers = here.deals
    size = numbers[max(0, len(numbers) - 2)]
    sets = [[side[deal[:size]] for side in sides] for deal in deals]
    mean = torch.stack([METHODS["mean_difference"](*pairs) for pairs in sets])
    verdicts = []
    for method in ("pca", "probe"):
        ours = torch.stack([METHODS[method](*pairs) for pairs in sets])
        found = mean_with_interval(cosines(ours, mean).diagonal())
        verdicts.append(rule(f"6 · {method} is the mean difference", found, above=0.95))
    return verdicts


# -- 7 · Steering beats asking


def _asking(here):
    concept = here.concept
    dev, test = concept.dev_prompts[::2], concept.test_prompts

    def asked(request, prompts, *push):
        some = [request + prompt for prompt in prompts]
        return log_odds(*here.both, some, *push, concept=concept)

    plain, verdicts = asked("", test), []
    sides = (concept.positive_requests, concept.negative_requests)
    for side, sign, requests in zip(("up", "down"), (1, -1), sides, strict=True):
        best = max(requests, key=lambda request: sign * asked(request, dev).mean().item())  # noqa: B023
        pushed = asked("", test, here.vector, sign * 0.2 * here.norm) - plain
        told = asked(best, test) - plain
        margin = mean_with_interval(sign * (pushed - told))
        verdicts.append(rule(f"7 · steering beats asking, {side}", margin, above=0))
    return verdicts


# -- 8 · Twenty samples are enough


def _twenty(here):
    concept = here.concept
    names, shares = ("0.05 norms", "0.2 norms"), (0.05, 0.2)
    n_prompts, n_seeds = len(concept.test_prompts), 2
    prompts = concept.test_prompts * n_seeds
    seeds = [i // n_prompts for i in range(len(prompts))]
    how = {"seed": seeds, "max_new_tokens": 12, "priced": False}
    forces = [share * here.norm for share in shares]
    [written] = sweep_texts(*here.both, prompts, here.vector, forces, **how).texts
    rng, verdicts = np.random.default_rng(0), []
    for name, cell in zip(names, written, strict=True):
        steered, base = [text.steered for text in cell], [text.base for text in cell]
        change = (judge(steered, concept.judge) - judge(base, concept.judge)).numpy()
        seen, by_prompt = _seen(rng, change, 1000), change.reshape(-1, n_prompts)
        again = []
        for _ in range(200):
            some = by_prompt[:, rng.integers(0, n_prompts, n_prompts)]
            again.append(_seen(rng, some.ravel(), 200))
        verdicts.append(rule(f"8 · twenty mostly show {name}", _interval(seen, again), above=0.8))
    return verdicts


def _seen(rng, change, times) -> float:
    """Of so many draws of twenty changes the share whose t test sees an effect."""
    few = rng.choice(change, size=(times, 20))
    return (ttest_1samp(few, 0, axis=1).pvalue < 0.05).mean()


# -- Models side by side


def _aligned(trials):
    """The verdicts of all models, claim by claim; SteeringError unless they are the same claims."""
    if not trials:
        raise SteeringError("There is no trial: give a dict such as {'pocket': trial(...)}.")
    claims = [[verdict.claim for verdict in one.verdicts] for one in trials.values()]
    if any(other != claims[0] for other in claims):
        raise SteeringError("The trials are not of the same claims: use one concept for all.")
    return list(zip(*(one.verdicts for one in trials.values()), strict=True))


@checked
def side_by_side(trials) -> Table:
    """A row a claim, and for each model what was found and the verdict.

    ``trials`` maps a model's label to its Trial.
    """
    rows = []
    for verdicts in _aligned(trials):
        claim, _, side, border, _ = verdicts[0]
        cells = (cell for one in verdicts for cell in (str(one.found), one.verdict))
        rows.append([claim, f"{side} {border:.2f}", *cells])
    heads = [head for label in trials for head in (label, "verdict")]
    return Table(["claim", "claimed", *heads], rows)


@checked
def summary(trials) -> Table:
    """A row a rule of thumb, and for each model the verdicts on its claims with what was found."""
    aligned, rows = _aligned(trials), []
    for number, saying in enumerate(SAYINGS, start=1):
        own = [verdicts for verdicts in aligned if verdicts[0].claim.startswith(f"{number} · ")]
        rows.append([saying, *map(_in_short, zip(*own, strict=True))] if own else None)
    return Table(["claim", *trials], filter(None, rows))


def _in_short(verdicts):
    """Claims of one rule of thumb as text, by verdict, each with its mean."""
    kinds = {}
    for claim, found, *_, verdict in verdicts:
        part = f"{claim.split(' · ')[1]} ({str(found).split()[0]})"
        kinds.setdefault(verdict, []).append(part)
    return "; ".join(f"**{verdict}**: {', '.join(parts)}" for verdict, parts in kinds.items())


@checked
def pull_by_depth(ax, trials) -> None:
    """The pull at equal damage over relative depth, by model; the golden layers are ringed.

    ``trials`` maps a model's label to its Trial, up to three; each has its own colour and marker.
    """
    looks = list(zip((plots.POSITIVE, plots.NEGATIVE, plots.NEUTRAL), "os^", strict=True))
    for (label, one), (colour, marker) in zip(trials.items(), looks[: len(trials)], strict=True):
        depth = [layer / (one.n_layer - 1) for layer in one.layers]
        plots.intervals(ax, depth, one.pull, marker=marker, colour=colour, label=label)
        rings = [one.layers.index(layer) for layer in one.golden]
        places = [depth[i] for i in rings], [one.pull[i].mean for i in rings]
        ax.plot(*places, "o", ms=13, mfc="none", color=colour)
    ax.set(xlabel="depth (0: first layer, 1: last)", ylabel=f"pull at {ALLOWED} bits of damage")
    ax.legend(loc="upper left")
