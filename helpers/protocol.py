"""Steer a concept and report it honestly, in one call (notebook 10).

What notebooks 05 and 07 do step by step: directions, forces at equal damage, the choice on the
development prompts, and on the test prompts once the effects with intervals, controls, prices,
loops, a judge, and the rival that simply asks.
"""

import json
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from . import plots
from .activations import typical_norm
from .calibration import ORDINARY
from .checks import RULES, Dialogue, SteeringError, checked
from .choice import Choice, choose
from .concepts import Concept
from .directions import find_vectors
from .evaluation import judge, log_odds, repetition, usable_words
from .models import resolve_layer, some_layers
from .statistics import controls, mean_with_interval
from .sweeps import sweep, sweep_texts
from .tables import Table

SIGNS = {"up": 1, "down": -1}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What steering a concept did to the test prompts, and what it is to be compared with.

    Shows as a table. ``draw(ax)`` makes a figure of it, ``texts`` are to be read, and ``save``
    keeps the numbers and texts.
    """

    concept: Concept
    choice: Choice
    budget: float
    norms: tuple[float, float]  # the forces up and down, in typical norms of the layer
    effect: Tensor  # [up and down, prompt]: log-odds with the push minus without, in nats
    rivals: dict[str, Tensor]  # pull [direction] of each kind of control, at the same forces
    price: Tensor  # [up and down, prompt]: bits per token, NaN where a text is empty
    loops: Tensor  # [unsteered, up and down, prompt]: share of what stood before in the same text
    judged: Tensor | None  # [up and down, prompt]: change of the judge; None without a judge
    asked: dict[str, tuple[str, Tensor]]  # by side the best request, and its effect [prompt]
    texts: list  # SteeredTexts pushed up, and pushed down

    @property
    def pull(self) -> Tensor:
        """Half of (up minus down), [prompt], in nats."""
        return (self.effect[0] - self.effect[1]) / 2

    @property
    def wrong_way(self) -> list[float]:
        """The share of prompts that the push up, and the push down, moved the other way."""
        return [(x * sign <= 0).float().mean().item() for x, sign in self._by_sign(self.effect)]

    @property
    def verdicts(self) -> dict[str, bool]:
        """Whether steering surely worked: on the next word and, with a judge, on whole texts.

        On the next word both effects have their sign and no control pulls as much, which is the
        plan of notebook 07; on the texts what the judge saw has its sign both ways. Neither says
        whether asking does better.
        """
        largest = max(some.abs().max() for some in self.rivals.values())
        found = {"next word": self._sure(self.effect) and bool(self.pull.mean() > largest)}
        if self.judged is not None:
            found["written texts"] = self._sure(self.judged)
        return found

    @property
    def worked(self) -> bool:
        """Whether it worked on all that was judged."""
        return all(self.verdicts.values())

    def _sure(self, changes) -> bool:
        """Whether the mean change up is surely above 0, and the one down surely below."""
        known = (mean_with_interval(x[~x.isnan()]) for x in changes)
        return all(min(sign * x.low, sign * x.high) > 0 for x, sign in self._by_sign(known))

    @staticmethod
    def _by_sign(values):
        return zip(values, SIGNS.values(), strict=True)

    @property
    def table(self) -> Table:
        """A row a measure, a column a direction."""
        rows = [
            ("force, typical norms", *(f"{share:+.2f}" for share in self.norms)),
            ("effect on the log-odds", *map(_interval, self.effect)),
            ("prompts the wrong way", *(f"{share:.0%}" for share in self.wrong_way)),
            ("price, bits per token", *map(_interval, self.price)),
            ("loops, over those unsteered", *map(_interval, self.loops[1:] - self.loops[0])),
        ]
        if self.judged is not None:
            rows.append(("change of the judge", *map(_interval, self.judged)))
        if self.asked:
            gains = [
                sign * (pushed - self.asked[side][1])
                for pushed, (side, sign) in zip(self.effect, SIGNS.items(), strict=True)
            ]
            rows.append(("best request instead", *(_interval(x) for _, x in self.asked.values())))
            rows.append(("push beyond the request", *map(_interval, gains)))
        return Table(["", *(f"{side}: {name}" for side, name in self._sides())], rows)

    def _sides(self):
        return zip(SIGNS, self.concept.sides, strict=True)

    @property
    def _notes(self) -> list[str]:
        vector, pull = self.choice.vector, _interval(self.pull)
        works = {True: "surely works", False: "does not surely work"}
        verdict = "; ".join(f"{works[sure]} on the {x}" for x, sure in self.verdicts.items())
        return [
            f"{self.concept.name}: steering {verdict}. Layer {vector.layer} of "
            f"{vector.model_name}, {self.budget:g} bits of damage, {len(self.pull)} held-out "
            f"prompts: pull {pull}.",
            *(
                f"   {name}: the largest of {len(some)} pulls {some.abs().max():.2f}"
                for name, some in self.rivals.items()
            ),
            *(f"   best request {side}: {ask!r}" for side, (ask, _) in self.asked.items()),
        ]

    def __repr__(self):
        return "\n".join([*self._notes, repr(self.table)])

    def _repr_html_(self):
        lines = Table(["report"], [[note] for note in self._notes])
        return lines._repr_html_() + self.table._repr_html_()

    def draw(self, ax) -> None:
        """The pull of every control as a bar, our own as a point with its interval."""
        for row, values in enumerate(self.rivals.values()):
            ax.plot(values, [row] * len(values), "|", color=plots.NEUTRAL, ms=14)
        pull, row = mean_with_interval(self.pull), len(self.rivals)
        ax.plot([pull.low, pull.high], [row, row], color=plots.POSITIVE, lw=2)
        ax.plot(pull.mean, row, "o", color=plots.POSITIVE)
        ax.axvline(0, color="black", lw=0.8)
        ax.set_yticks(range(row + 1), [*self.rivals, self.concept.name])
        ax.set(ylim=(-0.6, row + 0.6), xlabel="pull on the log-odds, in nats")

    def save(self, path) -> None:
        """Write all numbers and texts as JSON. Raises SteeringError if that is not possible."""
        vector = self.choice.vector
        kept = {
            "concept": self.concept.name,
            "model": vector.model_name,
            "fingerprint": vector.fingerprint,
            "layer": vector.layer,
            "budget": self.budget,
            "forces": [self.choice.up, self.choice.down],
            "norms": self.norms,
            "worked": self.verdicts,
            "effect": self.effect,
            "rivals": self.rivals,
            "price": self.price,
            "loops": self.loops,
            "judged": self.judged,
            "asked": self.asked,
            "texts": [[text._asdict() for text in side] for side in self.texts],
        }
        try:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(kept, file, ensure_ascii=False, indent=1, default=_plain)
        except OSError as error:
            raise SteeringError(f"Nothing could be written to {str(path)!r}: {error}.") from error


def _plain(value):
    """A tensor as lists; NaN, which JSON does not know, as null."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if value != value else value


def _interval(values) -> str:
    """Mean and interval of what is known of some prompts."""
    known = values[~values.isnan()]
    return str(mean_with_interval(known)) if len(known) > 1 else "–"


@checked(texts=RULES["prompts"])
def evaluate(
    model,
    tokenizer,
    concept,
    budget=0.5,
    layers=None,
    texts=ORDINARY,
    seed=0,
    max_new_tokens=16,
) -> Evaluation:
    """Find, choose and test the direction of a concept; returns an ``Evaluation``.

    Parameters
    ----------
    concept : Concept
        Words that this vocabulary cannot count are left out, with a warning. With requests
        (for dialogues: instructions) asking is the rival; with a judge it judges the texts.
    budget : float
        Bits per token of damage that each push may cost.
    layers : list of int, optional
        Among which to choose; default: a dozen, evenly spread (``some_layers``).
    texts : list of str
        On which damage is measured, as in ``calibrate``: of the language of the concept.

    Raises SteeringError as the functions that it calls do, and for fewer than two test prompts.
    """
    concept = usable_words(tokenizer, concept)
    if len(concept.test_prompts) < 2:
        raise SteeringError("One test prompt has no interval: give more test_prompts.")
    vectors = find_vectors(model, tokenizer, concept.pairs)
    layers = some_layers(model) if layers is None else layers
    tried = [vectors[resolve_layer(model, layer)] for layer in layers]
    choice = choose(model, tokenizer, tried, concept, budget, texts=texts)
    forces, test = [choice.up, choice.down], concept.test_prompts
    kinds = controls(model, tokenizer, choice.vector, concept, n_shuffled=20)
    everyone = [choice.vector, *(vector for some in kinds.values() for vector in some)]
    moved = sweep(model, tokenizer, test, everyone, forces, concept).effect
    own, *others = moved.split([1, *map(len, kinds.values())])
    rivals = {
        name: (some[:, 0] - some[:, 1]).mean(-1) / 2
        for name, some in zip(kinds, others, strict=True)
        if len(some)
    }

    how = {"seed": seed, "max_new_tokens": max_new_tokens}
    written = sweep_texts(model, tokenizer, test, choice.vector, forces, **how)
    ups, downs = written.texts[0]
    versions = [[text.base for text in ups], *([t.steered for t in x] for x in (ups, downs))]
    judged = None
    if concept.judge is not None:
        verdicts = torch.stack([judge(some, concept.judge) for some in versions])
        judged = verdicts[1:] - verdicts[0]
    norm = typical_norm(model, tokenizer, concept)[choice.vector.layer].item()
    return Evaluation(
        concept=concept,
        choice=choice,
        budget=budget,
        norms=tuple(force / norm for force in forces),
        effect=own[0],
        rivals=rivals,
        price=written.price[0],
        loops=torch.stack([repetition(some, unit="character", n=4) for some in versions]),
        judged=judged,
        asked=_asked(model, tokenizer, concept),
        texts=written.texts[0],
    )


def _asked(model, tokenizer, concept) -> dict[str, tuple[str, Tensor]]:
    """By side the request that moves the development prompts most, and what it does to the test."""
    kinds = {isinstance(p, Dialogue) for p in concept.dev_prompts + concept.test_prompts}
    if len(kinds) > 1:
        raise SteeringError("Asking needs prompts of one kind: all texts, or all dialogues.")
    kind = "instructions" if kinds.pop() else "requests"
    requests = [getattr(concept, f"{side}_{kind}") for side in ("positive", "negative")]
    if not all(requests):
        return {}

    def effect(ask, prompts):
        told = [_telling(prompt, ask) for prompt in prompts]
        odds = partial(log_odds, model, tokenizer, concept=concept)
        return odds(told) - odds(prompts)

    best = {}
    for (side, sign), some in zip(SIGNS.items(), requests, strict=True):
        gain = {ask: sign * effect(ask, concept.dev_prompts).mean().item() for ask in some}
        ask = max(gain, key=gain.get)
        best[side] = ask, effect(ask, concept.test_prompts)
    return best


def _telling(prompt, ask):
    """A prompt with a request before it; of a dialogue in its system message."""
    if not isinstance(prompt, Dialogue):
        return ask + prompt
    rest = [message for message in prompt.dicts if message["role"] != "system"]
    return [{"role": "system", "content": ask}, *rest]
