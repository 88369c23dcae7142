"""Exercises of notebook 06, the steering explorer."""

import torch

from ..evaluation import judge, log_odds
from ..sweeps import sweep
from .exercise import Exercise, Explanation, once

# -- 6.1 · Which of five is broken?

broken = Exercise(
    "6.1",
    "predict",
    minutes=4,
    difficulty=1,
    given=("five",),
    why="tone and fluency are two things: a sad text can be sound, a happy one in pieces.",
    hints=(
        "Never mind what a text says: read where it stops being English.",
        "Count for each text the words that nobody would put there. The price counts surprise.",
    ),
)


def _letter(scores):
    """The letter of the largest score; a text without one counts as broken."""
    return "abcde"[int(scores.flatten().nan_to_num(torch.inf).argmax())]


@broken.solution
def which_is_broken(five):
    return "abcde"[int(five.price.flatten().nan_to_num(torch.inf).argmax())]


@broken.mistake(
    "that is the text that sounds worst: a negative tone is what the push was for, not damage."
)
def _sounds_worst(five):
    texts = [text.steered for [[text]] in five.texts]
    return _letter(-judge(texts))


@broken.mistake("that is the largest force as a number: late layers have longer streams.")
def _largest_force(five):
    return _letter(five.forces.abs())


@broken.mistake("that is the most fluent of the five: its words surprise the model least.")
def _most_fluent(five):
    return _letter(-five.price)


# -- 6.2 · The least share that turns a sentence round

turned = Exercise(
    "6.2",
    "write",
    minutes=8,
    difficulty=2,
    given=("model", "tokenizer", "concept", "prompt", "vectors", "scale"),
    why="where a sign turns needs no seed and no eye, so two readers must agree.",
    hints=(
        "The sentence above the texts says three numbers: from, to, and the change. Which of them "
        "is to change its sign?",
        "Set prompt and layer, then click the handle of the force slider and go mark by mark with "
        "the arrow keys. Each mark says its share in brackets.",
    ),
)


@turned.solution
@once
def least_shares(model, tokenizer, concept, prompt, vectors, scale):
    from helpers.explorer import SHARES  # the marks of the slider

    n_layer, marks = len(vectors), torch.tensor([share for share in SHARES if share > 0])
    layers = [n_layer // 6, 2 * n_layer // 3, n_layer - 1]
    lean = log_odds(model, tokenizer, [prompt], concept=concept).sign()  # which side leads
    forces = marks * scale[layers][:, None] * -lean
    swept = sweep(model, tokenizer, [prompt], [vectors[i] for i in layers], forces, concept)
    turns = (swept.base + swept.effect)[..., 0] * lean < 0  # [layer, mark]
    return [round(marks[row][0].item(), 2) if row.any() else 2.0 for row in turns]


@turned.mistake("those are forces: divide each by the typical norm of its layer.")
def _forces(model, tokenizer, concept, prompt, vectors, scale):
    shares = least_shares(model, tokenizer, concept, prompt, vectors, scale)
    layers = [len(vectors) // 6, 2 * len(vectors) // 3, len(vectors) - 1]
    return [share * scale[layer] for share, layer in zip(shares, layers, strict=True)]


@turned.mistake(
    "you read the change: it has the sign of the push from the first mark on. The log-odds "
    'themselves, the value after "to", are to change their sign.'
)
def _change(model, tokenizer, concept, prompt, vectors, scale):
    from ..explorer import SHARES

    return [min(share for share in SHARES if share > 0)] * 3


@turned.mistake("you stopped one mark early: at these shares the sign is still the old one.")
def _one_early(model, tokenizer, concept, prompt, vectors, scale):
    from ..explorer import SHARES

    shares = least_shares(model, tokenizer, concept, prompt, vectors, scale)
    return [max(mark for mark in SHARES if mark < share) for share in shares]


@turned.mistake("you stopped one mark late: at one mark less the sign has turned already.")
def _one_late(model, tokenizer, concept, prompt, vectors, scale):
    from ..explorer import SHARES

    shares = least_shares(model, tokenizer, concept, prompt, vectors, scale)
    return [min((mark for mark in SHARES if mark > share), default=2.0) for share in shares]


@turned.mistake(
    "at least one of these layers does turn it: push against the side that the prompt leans to."
)
def _none_turned(model, tokenizer, concept, prompt, vectors, scale):
    return [2.0] * 3


@turned.mistake("the sizes are right: give them without a sign, since the direction is known.")
def _signed(model, tokenizer, concept, prompt, vectors, scale):
    return [-share for share in least_shares(model, tokenizer, concept, prompt, vectors, scale)]


# -- 6.3 · A control that is too long

fair = Exercise(
    "6.3",
    "find the bug",
    minutes=5,
    difficulty=2,
    given=("vectors",),
    why="a control of another length compares two forces, not two directions.",
    hints=(
        "Print the norm of what the function returns, and that of `vector.direction`.",
        "`steer` multiplies the force by the *unit* vector, so the push is as long as the force "
        "says. A control must be as long.",
    ),
)


@fair.tried_by
def _lengths(answer, vectors):
    """Lengths of the pushes, and whether they are random: see what is returned."""
    vector = vectors[len(vectors) // 3]
    found = [answer(vector, 10.0, seed) for seed in (0, 1, 2, 0)]
    if any(push is None for push in found):
        return None
    found = [torch.as_tensor(getattr(push, "raw", push)).float() for push in found]
    differ = not found[0].equal(found[1])
    elsewhere = all(torch.cosine_similarity(x, vector.direction, 0).abs() < 0.9 for x in found)
    both_signs = all(bool((x > 0).any() and (x < 0).any()) for x in found)
    again = found[0].equal(found[3])
    lengths = [x.norm().item() for x in found[:3]]
    return [*lengths, differ, elsewhere, both_signs, again]


@fair.begins_with
def random_push(vector, force, seed):
    """A random push, as long as force * vector.direction, to be added."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(vector.direction), generator=generator)
    return force * noise


@fair.solution
def fair_push(vector, force, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(vector.direction), generator=generator)
    return force * noise / noise.norm()


@fair.mistake(
    "it is as long as the raw mean difference now: the force is to be the whole length, and "
    "`vector.direction` has length one."
)
def _raw_length(vector, force, seed):
    return vector.raw_norm * fair_push(vector, force, seed)


@fair.mistake("the force is gone: every push has length one now, however hard we meant to push.")
def _unit(vector, force, seed):
    return fair_push(vector, force, seed) / force


@fair.mistake(
    "the length is right, but every number has the same sign: that is no random direction. "
    "Draw from both sides of 0."
)
def _one_sided(vector, force, seed):
    return fair_push(vector, force, seed).abs()


@fair.mistake("every seed gives the same push now: one direction is one anecdote.")
def _one_seed(vector, force, seed):
    return fair_push(vector, force, 0)


@fair.mistake(
    "that is the length which such noise has on average: each has one of its own, to be divided by."
)
def _usual_length(vector, force, seed):
    return random_push(vector, force, seed) / len(vector.direction) ** 0.5


@fair.mistake("the same seed gives another push each time: nobody can repeat this control.")
def _no_seed(vector, force, seed):
    noise = torch.randn(len(vector.direction))
    return force * noise / noise.norm()


@fair.mistake("that is the vector itself: the control must not know the concept.")
def _no_control(vector, force, seed):
    return force * vector.direction


# -- 6.4 · Why random moves too

moved_too = Explanation(
    "6.4",
    minutes=4,
    difficulty=2,
    why="a number that moved says that something was pushed, not what.",
    hints=(
        "What does a later block do with a stream that was changed, in whatever direction?",
        "Compare the signs: what do the two directions of one random push do, and what do those "
        "of our vector?",
    ),
    answer="Any change of the stream is read by the later blocks, and changes the chances of all "
    "words, so also the balance of our two lists; nothing says that it must come out at 0. But "
    "which way it goes has nothing to do with the concept: it differs from one random direction "
    "to the next, and both signs of a push may move it the same way. So an effect counts only as "
    "far as it exceeds what random directions of the same length do.",
    points={
        "a": "any push changes the chances of all words, those of our two lists among them",
        "b": "the way it goes has nothing to do with the concept: it differs between directions",
        "c": "so an effect must exceed that of random pushes of the same length",
    },
)
