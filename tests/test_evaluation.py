import math

import pytest
import torch

from helpers import evaluation
from helpers.evaluation import (
    DEV_PROMPTS,
    NEGATIVE_SENTENCES,
    NEGATIVE_WORDS,
    POSITIVE_SENTENCES,
    POSITIVE_WORDS,
    TEST_PROMPTS,
    log_odds,
    mean_with_interval,
    perplexity,
    repetition,
    word_ids,
)
from helpers.models import SteeringError
from helpers.pairs import SENTIMENT_PAIRS
from tiny_models import (
    FAMILIES,
    PROMPTS,
    logits_of,
    make_vector,
    no_hook_left,
    plain_push,
    tiny_model,
    token_ids,
    tokenizer,
)

FORCE = 3.0
TAILS = [" cold and had no taste.", " good", " the wine, the staff and the view from the room."]


def words_of(text):
    return text.lower().replace(".", "").replace(",", "").split()


# -- The measuring texts


def test_nothing_measured_was_used_to_find_the_direction():
    contrast = set()
    for positive, negative in SENTIMENT_PAIRS:
        contrast |= set(words_of(positive)) ^ set(words_of(negative))
    assert len(contrast) == 16
    texts = DEV_PROMPTS + TEST_PROMPTS + POSITIVE_SENTENCES + NEGATIVE_SENTENCES
    for text in texts + POSITIVE_WORDS + NEGATIVE_WORDS:
        assert not contrast & set(words_of(text)), text
    beginnings = []
    for positive, negative in SENTIMENT_PAIRS:
        both = list(zip(words_of(positive), words_of(negative), strict=True))
        beginnings.append([a for a, b in both[: [a == b for a, b in both].index(False)]])
    for prompt in DEV_PROMPTS + TEST_PROMPTS:
        for beginning in beginnings:
            assert words_of(prompt)[: len(beginning)] != beginning, prompt


def test_mistake_16_choosing_and_reporting_prompts_are_disjoint():
    assert not set(DEV_PROMPTS) & set(TEST_PROMPTS)
    for prompts in (DEV_PROMPTS, TEST_PROMPTS):
        assert len(set(prompts)) == len(prompts)
    assert len(TEST_PROMPTS) >= 40


def test_word_lists_are_distinct_single_tokens_of_the_bundled_model():
    words = POSITIVE_WORDS + NEGATIVE_WORDS
    assert len(POSITIVE_WORDS) == len(NEGATIVE_WORDS)
    ids = word_ids(tokenizer(), words)
    assert len(set(ids)) == len(words)
    assert [tokenizer().decode([i]) for i in ids] == [" " + word for word in words]


def test_sentences_are_distinct_and_balanced():
    assert len(POSITIVE_SENTENCES) == len(NEGATIVE_SENTENCES)
    sentences = POSITIVE_SENTENCES + NEGATIVE_SENTENCES
    assert len(set(sentences)) == len(sentences)


def test_words_of_several_tokens_are_named_with_their_pieces():
    broken = ["flabbergasting", "zzyzx"]
    with pytest.raises(SteeringError, match="Not one token") as error:
        word_ids(tokenizer(), ["good", *broken])
    for word in broken:
        pieces = tokenizer().tokenize(" " + word)
        assert len(pieces) > 1 and f"{word} = {' + '.join(pieces)}" in str(error.value)
    assert "good =" not in str(error.value)


# -- Log-odds


def plain_log_odds(model, prompt, pushes=()):
    """From the full logits of one prompt; ``pushes`` are (layer, delta)."""
    if pushes:
        with plain_push(model, *pushes[0]):
            return plain_log_odds(model, prompt, pushes[1:])
    log_probabilities = logits_of(model, token_ids(prompt))[0, -1].log_softmax(0)
    sides = []
    for words in (POSITIVE_WORDS, NEGATIVE_WORDS):
        ids = [token_ids(" " + word).item() for word in words]
        sides.append(sum(log_probabilities[i].exp() for i in ids).log())
    return (sides[0] - sides[1]).item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [2, 128])
def test_mistake_08_log_odds_equal_one_prompt_at_a_time(family, batch_size):
    model, v = tiny_model(family), make_vector()
    plain = log_odds(model, tokenizer(), PROMPTS, batch_size=batch_size)
    assert plain.dtype == torch.float32 and plain.shape == (3,)
    expected = [plain_log_odds(model, prompt) for prompt in PROMPTS]
    assert plain.tolist() == pytest.approx(expected, abs=1e-4)
    with no_hook_left(model):
        steered = log_odds(model, tokenizer(), PROMPTS, v, FORCE, batch_size=batch_size)
    push = (v.layer, FORCE * v.direction)
    expected = [plain_log_odds(model, prompt, [push]) for prompt in PROMPTS]
    assert steered.tolist() == pytest.approx(expected, abs=1e-4)
    assert (steered - plain).abs().max() > 0.01


@pytest.mark.parametrize("batch_size", [1, 2, 128])
def test_log_odds_of_forces_and_layers_of_each_prompt(batch_size):
    model, v, w = tiny_model(), make_vector(layer=0), make_vector(layer=2, seed=1)
    forces = [[0.0, FORCE, 1.0], [-FORCE, 0.0, 2.0]]
    found = log_odds(model, tokenizer(), PROMPTS, [v, w], forces, batch_size=batch_size)
    for value, prompt, a, b in zip(found, PROMPTS, *forces, strict=True):
        pushes = [(0, a * v.direction), (2, b * w.direction)]
        assert value.item() == pytest.approx(plain_log_odds(model, prompt, pushes), abs=1e-4)
    moved = log_odds(model, tokenizer(), PROMPTS, v, FORCE, layer=-1, batch_size=batch_size)
    push = [(2, FORCE * v.direction)]
    expected = [plain_log_odds(model, prompt, push) for prompt in PROMPTS]
    assert moved.tolist() == pytest.approx(expected, abs=1e-4)


def test_log_odds_turn_their_sign_with_the_lists():
    swapped = {"positive": NEGATIVE_WORDS, "negative": POSITIVE_WORDS}
    plain = log_odds(tiny_model(), tokenizer(), PROMPTS)
    torch.testing.assert_close(log_odds(tiny_model(), tokenizer(), PROMPTS, **swapped), -plain)
    equal = {"positive": ["good"], "negative": ["good"]}
    assert log_odds(tiny_model(), tokenizer(), PROMPTS, **equal).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("prompts", "change", "message"),
    [
        ("one string", {}, "one string"),
        ([], {}, "empty"),
        (["The soup", " "], {}, "Prompt 1 is empty"),
        (["word " * 65], {}, "reads at most 64"),
        (PROMPTS, {"force": math.inf}, "finite"),
        (PROMPTS, {"force": [1.0, 2.0]}, r"shape \[2\] do not fit 1 vector\(s\) and 3 prompts"),
        (PROMPTS, {"vector": []}, "No vector"),
        (PROMPTS, {"layer": 3}, "has 3 layers"),
        (PROMPTS, {"positive": ["zzyzx"]}, "Not one token"),
    ],
)
def test_unusable_input_of_log_odds(prompts, change, message):
    change = {"vector": make_vector(), "force": FORCE, **change}
    with no_hook_left(tiny_model()), pytest.raises(SteeringError, match=message):
        log_odds(tiny_model(), tokenizer(), prompts, **change)


# -- Cost: perplexity and repetition


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [2, 64])
def test_mistake_08_perplexity_equals_one_text_at_a_time(family, batch_size):
    model = tiny_model(family)
    expected = []
    for prompt, tail in zip(PROMPTS, TAILS, strict=True):
        head, tail = token_ids(prompt), token_ids(tail)
        logits = logits_of(model, torch.cat([head, tail], 1))[0, head.shape[1] - 1 : -1]
        likelihoods = [row.log_softmax(0)[i].item() for row, i in zip(logits, tail[0], strict=True)]
        expected.append(math.exp(-sum(likelihoods) / len(likelihoods)))
    found = perplexity(model, tokenizer(), PROMPTS, TAILS, batch_size=batch_size)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert found.dtype == torch.float32


def test_perplexity_of_nothing_is_not_a_number():
    found = perplexity(tiny_model(), tokenizer(), PROMPTS, [TAILS[0], "", TAILS[2]])
    assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("prompts", "tails", "message"),
    [
        (PROMPTS, TAILS[:2], "2 continuations for 3 prompts"),
        ("one string", TAILS, "one string"),
        ([], [], "empty"),
        (["We liked"], ["word " * 65], r"A text has \d+ tokens: more than tiny-gpt2 reads"),
    ],
)
def test_unusable_input_of_perplexity(prompts, tails, message):
    with pytest.raises(SteeringError, match=message):
        perplexity(tiny_model(), tokenizer(), prompts, tails)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("one two three four", 2, 0.0),
        ("good good good good good", 2, 0.75),
        ("the food the food the food", 2, 0.6),
        ("The food the FOOD", 2, 1 / 3),
        ("a b a b", 1, 0.5),
        ("a b c a b c", 3, 0.25),
        ("alone", 2, math.nan),
        ("", 1, math.nan),
    ],
)
def test_repetition(text, n, expected):
    assert repetition([text], n).item() == pytest.approx(expected, nan_ok=True)


def test_repetition_is_text_by_text():
    assert repetition(["a b c", "a b a b"]).tolist() == pytest.approx([0, 1 / 3])


# -- Intervals


def test_interval_holds_the_mean_and_repeats_itself():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)) + 1
    first, again, other = (mean_with_interval(values, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.mean == pytest.approx(values.mean().item())
    assert first.low < first.mean < first.high
    # Close to the textbook interval of a mean.
    half = 1.96 * values.std().item() / math.sqrt(len(values))
    assert (first.high - first.low) / 2 == pytest.approx(half, rel=0.1)
    wider = mean_with_interval(values, confidence=0.99)
    assert wider.low < first.low and first.high < wider.high
    assert str(evaluation.Estimate(1.234, -0.5, 3)) == "+1.23 [-0.50, +3.00]"


def test_interval_of_equal_values_is_a_point():
    assert mean_with_interval([2.0, 2.0, 2.0]) == (2, 2, 2)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_no_interval_over_fewer_than_two_prompts(values):
    with pytest.raises(SteeringError, match=rf"interval over {len(values)} prompt\(s\) does not"):
        mean_with_interval(values)
