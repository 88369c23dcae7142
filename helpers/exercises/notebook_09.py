"""Exercises of notebook 09, a real language model."""

import torch

from ..models import blocks
from ..statistics import mean_with_interval
from .exercise import Exercise, once

# -- 9.1 · A mean that one token makes

first_token = Exercise(
    "9.1",
    "find the bug",
    minutes=5,
    difficulty=1,
    given=("model", "tokenizer"),
    why="one token a hundred times as long as the others decides any mean that it enters.",
    hints=(
        "Print the norm of each token. Which one makes the mean?",
        "The massive activation stands at position 0, whatever the text: leave that token out.",
    ),
)


@first_token.tried_by
def _in_the_middle(usual_norm, model, tokenizer):
    """The answer for a short text, halfway up."""
    return usual_norm(model, tokenizer, "The food at this place was", len(blocks(model)) // 2 - 1)


@first_token.begins_with
def usual_norm(model, tokenizer, text, layer):
    batch = tokenizer(text, return_tensors="pt").to(model.device)
    states = model(**batch, output_hidden_states=True).hidden_states
    hidden = states[layer + 1][0]  # [token, d_model]; states[0] is the embedding
    return hidden.norm(dim=-1).mean().item()


@first_token.solution
def usual_norm_of_the_rest(model, tokenizer, text, layer):
    batch = tokenizer(text, return_tensors="pt").to(model.device)
    states = model(**batch, output_hidden_states=True).hidden_states
    hidden = states[layer + 1][0, 1:]  # position 0 carries a massive activation
    return hidden.norm(dim=-1).mean().item()


@once
def _states(model, tokenizer, text):
    batch = tokenizer(text, return_tensors="pt").to(model.device)
    return model(**batch, output_hidden_states=True).hidden_states


def _norms(model, tokenizer, text, layer):
    return _states(model, tokenizer, text)[layer + 1][0].norm(dim=-1)


@first_token.mistake(
    "the layer was right: states[0] is the embedding, so block L stands at L + 1. Look at the "
    "tokens."
)
def _other_layer(model, tokenizer, text, layer):
    return _norms(model, tokenizer, text, layer - 1).mean().item()


@first_token.mistake("you leave out a token at the end: the massive one stands elsewhere.")
def _without_the_last(model, tokenizer, text, layer):
    return _norms(model, tokenizer, text, layer)[:-1].mean().item()


@first_token.mistake(
    "the sum leaves position 0 out, but the number it is divided by still counts that token."
)
def _wrong_count(model, tokenizer, text, layer):
    norms = _norms(model, tokenizer, text, layer)
    return (norms[1:].sum() / len(norms)).item()


@first_token.mistake(
    "a median bears with one odd token, and so hides that it is there: leave it out, and take "
    "the mean."
)
def _median(model, tokenizer, text, layer):
    return _norms(model, tokenizer, text, layer).median().item()


@first_token.mistake(
    "[1:] of [batch, token, d_model] leaves out the first text, and there is no other: take row 0 "
    "first."
)
def _wrong_axis(model, tokenizer, text, layer):
    return float("nan")  # the mean of nothing


@first_token.mistake(
    "the token is the right one, but the layer was right as well: states[0] is the embedding, so "
    "block L stands at L + 1."
)
def _right_token_other_layer(model, tokenizer, text, layer):
    return _norms(model, tokenizer, text, layer - 1)[1:].mean().item()


@first_token.mistake(
    "that is the norm of the mean: tokens that point different ways cancel there. Take the norm "
    "of each first."
)
def _norm_of_the_mean(model, tokenizer, text, layer):
    return _states(model, tokenizer, text)[layer + 1][0, 1:].mean(0).norm().item()


# -- 9.2 · The same push in another model

translated = Exercise(
    "9.2",
    "predict",
    minutes=3,
    difficulty=1,
    given=("norm", "other_norm"),
    within=0.02,
    why="a share of the typical norm travels from model to model, a force does not.",
    hints=(
        "Which share of its norm is a force of 50 on the real model?",
        "Take that share of the other model's norm.",
    ),
)


@translated.solution
def same_push(norm, other_norm):
    return 50 / norm * other_norm


@translated.mistake("that is the same force, and so a quite different push: streams differ.")
def _same_force(norm, other_norm):
    return 50


@translated.mistake("the ratio is turned round: where the stream is longer, a push has to be, too.")
def _turned(norm, other_norm):
    return 50 * norm / other_norm


@translated.mistake("that is the share; now take that share of the other model's norm.")
def _share(norm, other_norm):
    return 50 / norm


@translated.mistake("that is 50 as a share of the other model's norm: which push is it here?")
def _other_share(norm, other_norm):
    return 50 / other_norm


# -- 9.3 · Where a question ends

in_a_form = Exercise(
    "9.3",
    "write",
    minutes=7,
    difficulty=3,
    given=("tokenizer",),
    why="position -1 of a chat template is its own last token, the same for all questions.",
    hints=(
        "Find where the question ends in the text, in characters. Which token reaches that place?",
        "`tokenizer(text, return_offsets_mapping=True)` also gives the start and the end of each "
        "token in characters; or count the tokens of the text up to there.",
    ),
)


@in_a_form.tried_by
def _some_forms(last_of_question, tokenizer):
    """The position in a form of the exercise's own, whatever the model's is."""
    questions = ("How was the film?", "Write one sentence about a hotel.", "Hello")
    # Behind the question a quotation mark, which shares a token with its full stop.
    form = '[system] You are a helpful assistant. [user] "Say: {}" [assistant] Well,'
    return {
        repr(question): last_of_question(tokenizer, form.format(question), question)
        for question in questions
    }


@in_a_form.solution
def last_of_question(tokenizer, text, question):
    end = text.index(question) + len(question)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(i for i, (start, stop) in enumerate(offsets) if start < min(end, stop))


@in_a_form.mistake(
    "that is the last token of the whole text: it belongs to the form, and stands behind every "
    "question alike."
)
def _last_of_all(tokenizer, text, question):
    return len(tokenizer(text)["input_ids"]) - 1


@in_a_form.mistake(
    "-1 is the last token of the text, counted from its end: it belongs to the form. Count from 0."
)
def _from_the_end(tokenizer, text, question):
    return -1


@in_a_form.mistake("you count in the question alone, and forget what the form puts before it.")
def _in_the_question(tokenizer, text, question):
    return len(tokenizer(question)["input_ids"]) - 1


@in_a_form.mistake(
    "the token that holds the question's last character may reach beyond it, and still belongs."
)
def _wholly_within(tokenizer, text, question):
    end = text.index(question) + len(question)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(i for i, (_, stop) in enumerate(offsets) if stop <= end)


@in_a_form.mistake("that is a place in characters: which token reaches it?")
def _in_characters(tokenizer, text, question):
    return text.index(question) + len(question) - 1


@in_a_form.mistake(
    "one too far: as many tokens as stand up to the question's end, counted from 0, make its last "
    "one that number less one."
)
def _one_behind(tokenizer, text, question):
    return last_of_question(tokenizer, text, question) + 1


# -- 9.4 · Two intervals, or one

paired = Exercise(
    "9.4",
    "find the bug",
    minutes=5,
    difficulty=2,
    why="what both answers to a question share cancels in their difference, and the interval of "
    "the differences is the narrower.",
    hints=(
        "push[i] and ask[i] are answers to the same question. Where does the function use that?",
        "Take the differences question by question, then one interval: where must it lie?",
    ),
)


@paired.tried_by
def _made_up(surely_further):
    """The answer on twelve questions that differ much, with a push that does this or that."""
    torch.manual_seed(0)
    questions, noise, mixed = torch.randn(3, 12)
    ask, mixed = questions + 0.1 * noise, mixed - mixed.mean()
    cases = {
        "a push ahead by a little on every question": questions + 0.3,
        "a push ahead on most questions, and behind on others": questions + mixed + 0.1,
        "a push behind on most questions, and ahead on others": questions + mixed - 0.1,
        "a push behind by a little on every question": questions - 0.3,
        "a push ahead by 1 on all questions but one": questions + 1 - 1.2 * (mixed == mixed.max()),
        "a push far ahead": questions + 4,
        "a push of steadier tone, and hardly further": ask.mean() + 0.3 * (ask - ask.mean()) + 0.05,
    }
    return {case: _yes_or_no(surely_further(push, ask)) for case, push in cases.items()}


def _yes_or_no(answer):
    plain = answer.item() if getattr(answer, "shape", None) == () else answer
    if not isinstance(plain, bool):
        kind = "an interval" if isinstance(plain, tuple) else f"a {type(plain).__name__}"
        raise TypeError(f"it gives {kind}, and yes or no is wanted: True or False")
    return plain


@paired.begins_with
def surely_further(push, ask):
    return mean_with_interval(push).low > mean_with_interval(ask).high


@paired.solution
def surely_further_in_pairs(push, ask):
    return mean_with_interval(push - ask).low > 0


@paired.mistake("a higher mean is not yet a sure one: where is the interval?")
def _higher_mean(push, ask):
    return push.mean() > ask.mean()


@paired.mistake("an interval that lies below 0 is sure as well, but of the opposite.")
def _either_side(push, ask):
    found = mean_with_interval(push - ask)
    return found.low > 0 or found.high < 0


@paired.mistake("the sides are swapped: that asks whether the instruction went further.")
def _swapped(push, ask):
    return mean_with_interval(ask - push).low > 0


@paired.mistake(
    "an upper end above 0 says only that it may be further: the whole interval has to lie there."
)
def _may_be(push, ask):
    return mean_with_interval(push - ask).high > 0
