"""Exercises of notebook 03, the sentiment direction."""

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from .exercise import Exercise, Explanation

# -- 3.1 · A pair that did not take part

left_out = Exercise(
    "3.1",
    "write",
    minutes=8,
    difficulty=2,
    given=("positive", "negative"),
    why="a pair that had no part in a direction is the first fair question to it.",
    hints=(
        "For pair i: which rows are left if row i is taken out? Make the direction from those.",
        "keep = torch.arange(len(positive)) != i picks the others: positive[keep].mean(0). The "
        "amount is the pair's own difference times the unit direction.",
    ),
)


@left_out.tried_by
def _in_one_layer(left_out_amounts, positive, negative):
    found = left_out_amounts(positive, negative)
    return torch.tensor(found) if isinstance(found, list) else found


@left_out.solution
def left_out_amounts(positive, negative):
    amounts = []
    for i in range(len(positive)):
        others = torch.arange(len(positive)) != i
        difference = positive[others].mean(0) - negative[others].mean(0)
        amounts.append((positive[i] - negative[i]) @ (difference / difference.norm()))
    return torch.stack(amounts)


@left_out.mistake(
    "the direction is made from all pairs: so each pair is measured by a direction that it helped "
    "to make."
)
def _with_all(positive, negative):
    difference = positive.mean(0) - negative.mean(0)
    return (positive - negative) @ (difference / difference.norm())


@left_out.mistake(
    "the sign is turned: subtract the negative side from the positive one, for the pair and for "
    "the others."
)
def _turned(positive, negative):
    return -left_out_amounts(positive, negative)


@left_out.mistake("the direction has not norm one: divide the others' difference by its norm.")
def _not_normalised(positive, negative):
    differences = positive - negative
    return ((differences.sum(0) - differences) / (len(positive) - 1) * differences).sum(1)


@left_out.mistake(
    "the pair is measured by its own difference: that gives its size, whatever it is about."
)
def _itself(positive, negative):
    return (positive - negative).norm(dim=-1)


@left_out.mistake("that is a cosine: the pair's difference keeps its size, only v has norm one.")
def _cosine(positive, negative):
    return left_out_amounts(positive, negative) / (positive - negative).norm(dim=-1)


@left_out.mistake(
    "each difference is given norm one before the mean: take the mean of the differences as they "
    "are, and divide that by its norm."
)
def _units_first(positive, negative):
    differences = positive - negative
    units = differences / differences.norm(dim=-1, keepdim=True)
    others = units.sum(0) - units
    return (differences * others).sum(1) / others.norm(dim=-1)


@left_out.mistake(
    "that says which amounts are above 0: give the amounts, and the question answers itself."
)
def _above_0(positive, negative):
    return left_out_amounts(positive, negative) > 0


@left_out.mistake("that is the positive prompt alone: its projection less its partner's is meant.")
def _positive_alone(positive, negative):
    return left_out_amounts(positive, negative) + _partner(positive, negative)


def _partner(positive, negative):
    """The projections of the negative prompts on the directions of the other pairs."""
    differences = positive - negative
    rest = differences.sum(0) - differences
    return (negative * rest).sum(1) / rest.norm(dim=-1)


# -- 3.2 · The axis that misses

centred = Exercise(
    "3.2",
    "find the bug",
    minutes=5,
    difficulty=2,
    given=("positive", "negative"),
    why="whatever centres its input throws a common part away: here the part that was wanted.",
    hints=(
        "What does PCA do to its input before anything else, and what is the mean of the "
        "differences?",
        "Let the mean be zero without losing anything: each difference may come twice.",
    ),
)


@centred.tried_by
def _axis_without_sign(pca_axis, positive, negative):
    axis = pca_axis(positive, negative)
    if isinstance(axis, np.ndarray):
        axis = torch.from_numpy(axis)
    if not isinstance(axis, torch.Tensor):
        return axis
    return axis * axis.flatten()[axis.abs().argmax()].sign()


@centred.begins_with
def pca_axis(positive, negative):
    """The axis that the pairs' differences share, [d_model]."""
    differences = positive - negative
    found = PCA(1).fit(differences)
    return torch.from_numpy(found.components_[0])


@centred.solution
def both_signs_axis(positive, negative):
    differences = positive - negative
    found = PCA(1).fit(torch.cat([differences, -differences]))
    return torch.from_numpy(found.components_[0])


@centred.mistake(
    "it is the same axis still: neither more of these differences nor centring or turning them "
    "all helps, since PCA subtracts their mean, and the mean is the direction."
)
def _more_of_them(positive, negative):
    return pca_axis(torch.cat([positive, positive]), torch.cat([negative, negative]))


@centred.mistake(
    "that is the widest axis of the prompts: it showed the kind of the last word, not the side. "
    "Stay with the differences."
)
def _of_the_prompts(positive, negative):
    found = PCA(1).fit(torch.cat([positive, negative]))
    return torch.from_numpy(found.components_[0])


@centred.mistake(
    "the second axis is centred, too: what was subtracted is in none of the components."
)
def _second(positive, negative):
    return torch.from_numpy(PCA(2).fit(positive - negative).components_[1])


@centred.mistake("that is the mean difference itself, a good direction: but PCA's was asked for.")
def _mean_difference(positive, negative):
    difference = positive.mean(0) - negative.mean(0)
    return difference / difference.norm()


# -- 3.3 · The first token

first_token = Explanation(
    "3.3",
    minutes=4,
    difficulty=2,
    why="where two prompts have been alike so far, a model cannot hold a difference.",
    hints=(
        "Which tokens stand at position 0 of the two prompts of a pair? What do they see?",
        "Notebook 02 drew where a difference shows, and where it does not.",
    ),
    answer="Nothing at all is left. Both prompts of each pair begin with the same token, and the "
    "first token sees no token but itself. So its vectors agree in every layer, bit for bit, in "
    "both prompts; every difference is exactly zero, and so is their mean. A vector of norm zero "
    "has no direction: find_vectors stops with an error, which is better than a division by zero.",
    points={
        "a": "the two prompts of a pair have the same token at position 0",
        "b": "the first token sees only itself, so no later word can change its vector",
        "c": "the difference is exactly zero, not only small: there is no direction",
    },
)


# -- 3.4 · What changes an AUC

auc_changes = Exercise(
    "3.4",
    "predict",
    minutes=4,
    difficulty=2,
    given=("scores", "labels"),
    within=2e-3,
    why="an AUC knows the order of the scores alone: no threshold, no unit, but a sign.",
    hints=(
        "Take one couple, a positive and a negative sentence: which of the two scores higher "
        "before the change, and which after it?",
        "Adding 1000 to all leaves each couple as it was. Turning the sign turns each couple.",
    ),
)


@auc_changes.solution
def shifted_and_turned(scores, labels):
    auc = roc_auc_score(labels, scores)
    return auc, 1 - auc


@auc_changes.mistake(
    "with 1000 added, all lie above 0, but the AUC has no threshold: it asks only which of two "
    "scores is higher."
)
def _accuracy_above_0(scores, labels):
    return 0.5, 1 - roc_auc_score(labels, scores)


@auc_changes.mistake("turning the sign turns every couple: it does not leave the AUC as it was.")
def _sign_ignored(scores, labels):
    return [roc_auc_score(labels, scores)] * 2


@auc_changes.mistake("an AUC is a share of couples, so it is never below 0.")
def _negative(scores, labels):
    auc = roc_auc_score(labels, scores)
    return auc, -auc


@auc_changes.mistake("1000 is added to the scores: the AUC is a share of couples, never above 1.")
def _added_to_the_auc(scores, labels):
    auc = roc_auc_score(labels, scores)
    return auc + 1000, 1 - auc


@auc_changes.mistake("the two answers are in the other order: first the shift, then the sign.")
def _other_order(scores, labels):
    return shifted_and_turned(scores, labels)[::-1]


# -- 3.5 · How positive is sarcasm?

sarcasm = Exercise(
    "3.5",
    "write",
    minutes=5,
    difficulty=1,
    given=("scores", "score"),
    why="a score means something beside others only; a share of them travels to any model.",
    hints=(
        "How many of the labelled sentences have a lower score, and how many are there? (Do not "
        "round.)",
        "A comparison of a tensor with a number gives True and False; .float().mean() is the "
        "share of True.",
    ),
)


@sarcasm.solution
def share_below(scores, score):
    return (scores < score).double().mean().item()


@sarcasm.mistake("that is the raw score: without the others' it says nothing.")
def _raw(scores, score):
    return score


@sarcasm.mistake("that is a number of sentences: divide it by how many there are.")
def _count(scores, score):
    return (scores < score).sum()


@sarcasm.mistake("that is the share above it: the share below is asked for.")
def _above(scores, score):
    return (scores > score).double().mean()


@sarcasm.mistake("that is among the positive sentences only: take all that are labelled.")
def _among_the_positive(scores, score):
    return share_below(scores[: len(scores) // 2], score)


@sarcasm.mistake("that is among the negative sentences only: take all that are labelled.")
def _among_the_negative(scores, score):
    return share_below(scores[len(scores) // 2 :], score)


@sarcasm.mistake(
    "that is how far it lies between the lowest and the highest score: count the sentences below."
)
def _between_the_ends(scores, score):
    return (score - scores.min()) / (scores.max() - scores.min())


@sarcasm.mistake("that is a percentage: give the share, a number from 0 to 1.")
def _percentage(scores, score):
    return 100 * share_below(scores, score)
