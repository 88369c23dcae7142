"""Exercises of notebook 07, an honest test."""

import numpy as np
import torch

from ..activations import residual_stream
from ..evaluation import log_odds
from ..steering import steer
from .exercise import Exercise, Explanation, once

# -- 7.1 · The winner's flattery

flattered = Exercise(
    "7.1",
    "write",
    minutes=8,
    difficulty=3,
    why="whoever chooses and reports on the same prompts reports luck as well.",
    hints=(
        "Four steps: the mean of each setting on `dev`, the place of the largest, its mean on "
        "`dev`, and the mean of *that same place* on `test`.",
        "`best = dev.mean(-1).argmax(-1)` has a place for each trial, and "
        "`test.mean(-1)[torch.arange(len(test)), best]` reads another table at these places.",
    ),
)


def _noise(trials, settings, prompts):
    """Effects of settings that are equally good, on two halves of the prompts."""
    generator = torch.Generator().manual_seed(0)
    return 1 + torch.randn(2, trials, settings, prompts, generator=generator)


@flattered.tried_by
def _on_noise(answer):
    return answer(*_noise(200, 30, 16))


@flattered.solution
def flattery(dev, test):
    promised = dev.mean(-1)  # [trial, setting]
    best = promised.argmax(-1)
    trials = torch.arange(len(best))
    kept = test.mean(-1)[trials, best]
    return (promised[trials, best] - kept).mean()


@flattered.mistake(
    "the test half chose a winner of its own: then either half flatters as much as the other. "
    "The choice is made once."
)
def _chosen_twice(dev, test):
    return (dev.mean(-1).amax(-1) - test.mean(-1).amax(-1)).mean()


@flattered.mistake(
    "averaged over all settings there is no flattery, it is true; but only the chosen setting is "
    "reported."
)
def _all_settings(dev, test):
    return (dev - test).mean()


@flattered.mistake(
    "here the best is chosen on each prompt by itself: a rule takes one setting for all prompts."
)
def _best_on_each_prompt(dev, test):
    return (dev.amax(1) - test.gather(1, dev.argmax(1, keepdim=True))[:, 0]).mean()


@flattered.mistake("one winner was chosen over all trials together: each trial chooses its own.")
def _one_winner(dev, test):
    best = dev.mean((0, 2)).argmax()
    return (dev - test)[:, best].mean()


@flattered.mistake("that is what was promised: what the chosen setting kept is to be taken off.")
def _promised(dev, test):
    return dev.mean(-1).amax(-1).mean()


@flattered.mistake("promised and kept are swapped: what flatters is larger than what was kept.")
def _turned(dev, test):
    return -flattery(dev, test)


@flattered.mistake(
    "you took off the mean of all settings on `test`: only what the chosen one kept is asked for."
)
def _against_all(dev, test):
    return dev.mean(-1).amax(-1).mean() - test.mean()


@flattered.mistake(
    "`[:, best]` reads the winners of all trials in each trial: pair each trial with its own."
)
def _crossed(dev, test):
    best = dev.mean(-1).argmax(-1)
    return dev.mean(-1).amax(-1).mean() - test.mean(-1)[:, best].mean()


# -- 7.2 · The interval of a paired number

paired = Exercise(
    "7.2",
    "write",
    minutes=8,
    difficulty=2,
    within=0.1,  # a bootstrap is random
    why="what is a pair stays a pair: each drawn prompt brings its up and its down along.",
    hints=(
        "What is one prompt's own pull? The mean of which numbers do you want an interval for?",
        "Draw the numbers of prompts with `rng.integers(0, n, size=(10_000, n))`, and use the same "
        "draw for up and down.",
    ),
)


@paired.tried_by
def _ends(answer):
    """Both ends, in standard errors from the mean, for prompts whose up and down go together."""
    generator = torch.Generator().manual_seed(0)
    mood, up, down = torch.randn(3, 30, generator=generator)  # not 40, as in the notebook
    up, down = 2 + 3 * mood + up, -1 + 3 * mood + down
    pull = (up - down) / 2
    error = float(pull.std() / len(pull) ** 0.5)
    ends = answer(up, down)
    if not hasattr(ends, "__len__"):  # nothing, or one number
        return ends
    return [round(float(end - pull.mean()) / error, 3) for end in ends]


@paired.solution
def my_interval(up, down):
    pull = (np.asarray(up) - np.asarray(down)) / 2  # [prompt]
    drawn = np.random.default_rng(0).integers(0, len(pull), size=(10_000, len(pull)))
    return np.percentile(pull[drawn].mean(axis=1), [2.5, 97.5])


@paired.mistake(
    "up and down were drawn apart: a prompt's up then meets another prompt's down, and what the "
    "two share no longer cancels."
)
def _apart(up, down):
    rng, n = np.random.default_rng(0), len(up)
    one, other = rng.integers(0, n, size=(2, 10_000, n))
    means = (np.asarray(up)[one].mean(1) - np.asarray(down)[other].mean(1)) / 2
    return np.percentile(means, [2.5, 97.5])


@paired.mistake(
    "that is the spread of single prompts: an interval is about their mean, which scatters less."
)
def _of_the_data(up, down):
    return np.percentile((np.asarray(up) - np.asarray(down)) / 2, [2.5, 97.5])


@paired.mistake(
    "both ends are the mean: without repetition each draw is all the prompts, in another order."
)
def _without_repetition(up, down):
    return [((up - down) / 2).mean()] * 2


def _between(up, down, ends):
    """Percentiles of ten thousand bootstrap means of the pull."""
    pull = (np.asarray(up) - np.asarray(down)) / 2
    drawn = np.random.default_rng(0).integers(0, len(pull), size=(10_000, len(pull)))
    return np.percentile(pull[drawn].mean(axis=1), ends)


@paired.mistake("that holds the middle 90 % of the means: 95 % leave out 2.5 on either side.")
def _ninety(up, down):
    return _between(up, down, [5, 95])


@paired.mistake("the pull is half of (up minus down): yours is twice as large.")
def _not_halved(up, down):
    return 2 * my_interval(up, down)


@paired.mistake(
    "`np.percentile` counts to 100: 0.025 and 0.975 of a percent are both at the lower end."
)
def _shares_of_a_percent(up, down):
    return _between(up, down, [0.025, 0.975])


@paired.mistake("you added up and down: the pull is half of (up minus down).")
def _added(up, down):
    return my_interval(up, -down)


@paired.mistake("the upper end comes first: (low, high) is wanted.")
def _high_first(up, down):
    return my_interval(up, down)[::-1]


# -- 7.3 · Seventy of seventy

ranked = Explanation(
    "7.3",
    minutes=5,
    difficulty=2,
    why="a rank among controls says what these controls could have done, no more.",
    hints=(
        "Turn round the first four of eight pairs, or the last four: how do the two directions "
        "differ? So how many different sizes are there among the seventy?",
        "In how many of the shuffles do the pairs agree as all of ours do?",
    ),
    answer="Each way to turn half of the pairs has its opposite among the seventy (with an even "
    "number of pairs), the same direction with the other sign; so there are only thirty-five "
    "different sizes, and first among so few may be luck once in thirty-six times. A rank can "
    "never show a chance of zero. And the shuffles are not what the plan must fear most: half of "
    "their pairs always point against the other half, so none is nearly as consistent as ours.",
    points={
        "a": "the shuffles come in opposite pairs, so there are half as many different sizes",
        "b": "to come first among so many may be luck, with a small chance that is not zero",
        "c": "in no shuffle do all pairs agree: they are weaker rivals than, say, all but one",
    },
)


# -- 7.4 · A success that cannot fail

success = Exercise(
    "7.4",
    "find the bug",
    minutes=6,
    difficulty=2,
    given=("model", "tokenizer", "concept", "vector", "norm"),
    within=0.01,
    why="where the push was made, any direction rises by the force: look at what comes out.",
    hints=(
        "Which value would a random vector get? Try `vector.random_like(0)`.",
        "What the model makes of the push shows in its next word: `log_odds(model, tokenizer, "
        "prompts, vector, force, concept=concept)`. Each prompt is its own control.",
    ),
)


@once
def _two_prompts(concept):
    return concept.dev_prompts[:2]


@success.tried_by
def _measured(answer, model, tokenizer, concept, vector, norm):
    """The answer for a push down, so that an effect has a sign."""
    return answer(model, tokenizer, concept, _two_prompts(concept), vector, -0.2 * norm)


@success.begins_with
def effect_of(model, tokenizer, concept, prompts, vector, force):
    """What the push does to the log-odds: the mean effect over the prompts."""
    before = residual_stream(model, tokenizer, prompts)[vector.layer]
    with steer(model, vector, force):
        after = residual_stream(model, tokenizer, prompts)[vector.layer]
    return ((after - before) @ vector.direction).mean()


@success.solution
@once
def honest_effect(model, tokenizer, concept, prompts, vector, force):
    before = log_odds(model, tokenizer, prompts, concept=concept)
    after = log_odds(model, tokenizer, prompts, vector, force, concept=concept)
    return (after - before).mean()


@success.mistake(
    "it is still a projection on v, only further up: it says how much of the push has come "
    "through, not what the model says."
)
def _further_up(model, tokenizer, concept, prompts, vector, force):
    before = residual_stream(model, tokenizer, prompts)[-1]
    with steer(model, vector, force):
        after = residual_stream(model, tokenizer, prompts)[-1]
    return ((after - before) @ vector.direction).mean()


@success.mistake(
    "those are values, not effects: what the prompts leaned to before the push is still in it."
)
def _values(model, tokenizer, concept, prompts, vector, force):
    return log_odds(model, tokenizer, prompts, vector, force, concept=concept).mean()


@success.mistake(
    "the size is right, the sign is not: an effect is after minus before, and may be below 0."
)
def _swapped(model, tokenizer, concept, prompts, vector, force):
    return -honest_effect(model, tokenizer, concept, prompts, vector, force)


@success.mistake("before and after were read in the same state of the model: nothing differs.")
def _same_state(model, tokenizer, concept, prompts, vector, force):
    return 0.0


@success.mistake("the measure is right, but the model was not pushed by `force`.")
def _other_force(model, tokenizer, concept, prompts, vector, force):
    return honest_effect(model, tokenizer, concept, prompts, vector, 1.0)
