"""Exercises of notebook 08, testing the folklore."""

import torch

from ..sweeps import sweep
from .exercise import Exercise, Explanation, once

# -- 8.1 · Open in two ways

WORDS = ("holds", "fails", "nearly none", "unknown")

in_words = Exercise(
    "8.1",
    "write",
    minutes=6,
    difficulty=2,
    why="no proof of an effect is not a proof of no effect: the width of the interval tells.",
    hints=(
        "Where does [0.01, 0.05] lie, and where [-0.05, 0.10]? Begin with the two sure words.",
        "Of the open ones: both ends must lie within ±matters to say that there is nearly nothing.",
    ),
)


@in_words.tried_by
def _words(reading):
    """The word for each of many intervals: all the ways in which one can lie."""
    found = {}
    ends = (-0.3, -0.12, -0.05, 0.02, 0.1, 0.3)
    for low, high in ((low, high) for low in ends for high in ends if low < high):
        for matters in (0.08, 0.2):
            word = reading(low, high, matters)
            if word not in WORDS:
                raise ValueError(f"it answers {word!r}, which is none of the four words")
            found[f"[{low:+.2f}, {high:+.2f}] and matters={matters}"] = word
    return found


@in_words.solution
def reading(low, high, matters):
    if low > 0:
        return "holds"
    if high < 0:
        return "fails"
    return "nearly none" if -matters < low and high < matters else "unknown"


@in_words.mistake(
    "an interval that covers 0 does not say that there is no difference: a wide one leaves room "
    "for a large effect."
)
def _no_difference(low, high, matters):
    return "holds" if low > 0 else "fails" if high < 0 else "nearly none"


@in_words.mistake(
    "a claim does not fail for want of proof: it fails if the whole interval lies below 0."
)
def _fails_unless_it_holds(low, high, matters):
    word = reading(low, high, matters)
    return "fails" if word == "unknown" else word


@in_words.mistake("you judge by the middle of the interval: what is it there for, then?")
def _by_the_mean(low, high, matters):
    middle = (low + high) / 2
    if abs(middle) < matters:
        return "nearly none"
    return "holds" if middle > 0 else "fails"


@in_words.mistake(
    "the width alone says nothing: it is both ends that must lie within ±matters, not the "
    "distance between them."
)
def _by_the_width(low, high, matters):
    word = reading(low, high, matters)
    if word in ("holds", "fails"):
        return word
    return "nearly none" if high - low < 2 * matters else "unknown"


@in_words.mistake(
    "an effect that is sure and small still lies above 0, and so the claim holds: ask for the "
    "two sure words first."
)
def _small_first(low, high, matters):
    if -matters < low and high < matters:
        return "nearly none"
    return reading(low, high, matters)


# -- 8.2 · Layers at one force

one_force = Exercise(
    "8.2",
    "find the bug",
    minutes=5,
    difficulty=2,
    given=("model", "tokenizer", "dev_prompts", "compared", "sizes", "concept"),
    why="one force for all layers is a nudge where the stream is long and a shove where it is "
    "short: the ranking is that of the streams.",
    hints=(
        "How many different forces are there, and how many layers?",
        "`sweep` takes forces [vector, force]: a row for each layer, up and down side by side.",
    ),
)


@once
def _trial(prompts, compared, sizes):
    """One prompt, the middle and the last layer, and a push that is not gentle."""
    some = [len(compared) // 2, len(compared) - 1]
    return prompts[:1], [compared[i] for i in some], 3 * sizes[some]


@one_force.tried_by
def _two_layers(fair_pull, model, tokenizer, dev_prompts, compared, sizes, concept):
    return fair_pull(model, tokenizer, *_trial(dev_prompts, compared, sizes), concept)


@one_force.begins_with
@once
def fair_pull(model, tokenizer, prompts, compared, sizes, concept):
    forces = [sizes.median(), -sizes.median()]
    return sweep(model, tokenizer, prompts, compared, forces, concept).pull.mean((1, 2))


@one_force.solution
@once
def fair_pull_of_each(model, tokenizer, prompts, compared, sizes, concept):
    forces = torch.cat([sizes, -sizes], 1)  # [layer, up and down]
    return sweep(model, tokenizer, prompts, compared, forces, concept).pull.mean((1, 2))


@one_force.mistake("that is still one force for all layers, only another one.")
def _mean_force(model, tokenizer, prompts, compared, sizes, concept):
    forces = [sizes.mean(), -sizes.mean()]
    return sweep(model, tokenizer, prompts, compared, forces, concept).pull.mean((1, 2))


@one_force.mistake(
    "to scale the pull afterwards is not to push with another force: pull does not grow in "
    "proportion to it."
)
def _scaled_afterwards(model, tokenizer, prompts, compared, sizes, concept):
    pull = fair_pull(model, tokenizer, prompts, compared, sizes, concept)
    return pull * sizes[:, 0] / sizes.median()


@one_force.mistake(
    "pull per unit of force favours the layers with a short stream, as the one force did."
)
def _per_unit(model, tokenizer, prompts, compared, sizes, concept):
    return fair_pull_of_each(model, tokenizer, prompts, compared, sizes, concept) / sizes[:, 0]


@one_force.mistake("that is the move up alone: a pull is half of (up minus down).")
def _up_alone(model, tokenizer, prompts, compared, sizes, concept):
    return sweep(model, tokenizer, prompts, compared, sizes, concept).effect.mean((1, 2))


# -- 8.3 · Too large

exaggerated = Explanation(
    "8.3",
    minutes=4,
    difficulty=2,
    why="a significant effect from a small sample is likely to shrink when it is repeated.",
    hints=(
        "Which of the thousand draws enter the last column, and which were left out?",
        "How large must the mean of twenty be to pass the test? Compare that with the effect.",
    ),
    answer="The last column averages only those draws whose t test came out. With twenty texts "
    "and this much noise, the mean has to be larger than the true effect to pass, so only draws "
    "that lie too high by luck are let in, and those that lie too low are missed. No single text "
    "needs to be odd for that: it is a selection of draws. Where the effect is large nearly all "
    "draws pass, and the selection does nothing.",
    points={
        "a": "only the draws that passed the test are averaged, so they are a selection",
        "b": "to pass, a mean of twenty must be larger than the small effect is",
        "c": "it is luck in whole draws, not an odd text, and it goes away where the effect, or "
        "the sample, is large",
    },
)


# -- 8.4 · At least one

at_least_one = Exercise(
    "8.4",
    "predict",
    minutes=3,
    difficulty=1,
    given=("verdicts",),
    within=0.01,
    why="among many verdicts a false one is the rule: that is why their number is told.",
    hints=(
        "How likely is it that one verdict is not false? And that none of them is?",
        "None is false with a chance of 0.95 × 0.95 × …, once for each verdict.",
    ),
)


@at_least_one.solution
def chance(verdicts):
    return 1 - 0.95 ** len(verdicts)


@at_least_one.mistake("that is the chance for one verdict: there are many that may go wrong.")
def _for_one(verdicts):
    return 0.05


@at_least_one.mistake(
    "that is how many false ones to expect, and it can be above 1: asked is how likely it is that "
    "there is one at all."
)
def _expected(verdicts):
    return 0.05 * len(verdicts)


@at_least_one.mistake("that is the chance that none of them is false.")
def _none(verdicts):
    return 0.95 ** len(verdicts)


@at_least_one.mistake(
    "that all of them are false is next to impossible, that one of them is, is not: a 95 % "
    "interval misses the true value one time in twenty."
)
def _never(verdicts):
    return 0


@at_least_one.mistake("1 would be certainty: it may happen that none of them is false.")
def _certain(verdicts):
    return 1


@at_least_one.mistake(
    "an interval can miss on either side, and both are sure and false: 5 %, not 2.5 %."
)
def _one_side(verdicts):
    return 1 - 0.975 ** len(verdicts)


@at_least_one.mistake("a number between 0 and 1 was asked for, not a percentage.")
def _percentage(verdicts):
    return 100 * chance(verdicts)
