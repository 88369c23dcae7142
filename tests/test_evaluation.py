import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import BertConfig, BertForSequenceClassification

from helpers import evaluation
from helpers.evaluation import (
    DEV_PROMPTS,
    NEGATIVE_SENTENCES,
    NEGATIVE_WORDS,
    POSITIVE_SENTENCES,
    POSITIVE_WORDS,
    TEST_PROMPTS,
    auc_with_interval,
    distinct,
    judge,
    log_odds,
    log_price,
    mean_with_interval,
    next_token_logits,
    odds,
    perplexity,
    repetition,
    word_ids,
)
from helpers.generation import SteeredText
from helpers.models import SteeringError, encode
from helpers.pairs import SENTIMENT_PAIRS
from helpers.steering import steer
from tiny_models import (
    FAMILIES,
    PROMPTS,
    logits_of,
    make_vector,
    new_model,
    no_hook_left,
    plain_log_odds,
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


def test_mistake_16_notebook_06_chooses_before_it_meets_the_test_prompts():
    path = Path(__file__).parents[1] / "notebooks" / "06_measuring_the_effect.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = {c["id"]: "".join(c["source"]) for c in cells if c["cell_type"] == "code"}
    order = list(code)
    choice = order.index("choose")
    uses = {"DEV_PROMPTS": [], "TEST_PROMPTS": []}
    for number, name in enumerate(order):
        for prompts, places in uses.items():
            if f"tokenizer, {prompts}" in code[name]:  # an argument, not only imported or shown
                places.append(number)
    assert uses["DEV_PROMPTS"] and max(uses["DEV_PROMPTS"]) < choice
    assert uses["TEST_PROMPTS"] and min(uses["TEST_PROMPTS"]) > choice


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


@pytest.mark.parametrize("family", FAMILIES)
def test_mistake_08_next_token_logits_are_those_behind_the_last_real_token(family):
    model = tiny_model(family)
    with no_hook_left(model), torch.no_grad():
        found = next_token_logits(model, encode(model, tokenizer(), PROMPTS))
    expected = torch.stack([logits_of(model, token_ids(prompt))[0, -1] for prompt in PROMPTS])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1


def test_mistake_06_next_token_logits_leave_nothing_if_the_model_fails():
    model = new_model()

    def fail(module, args, output):
        raise KeyboardInterrupt

    model.transformer.ln_f.register_forward_hook(fail)
    with no_hook_left(model), pytest.raises(KeyboardInterrupt):
        next_token_logits(model, encode(model, tokenizer(), PROMPTS))


def test_odds():
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.25, 0.125, 0.125]])
    logits = probabilities.log() + torch.tensor([[3.0], [-2.0]])
    expected = [math.log(0.5 / 0.3), math.log(0.625 / 0.125)]
    assert odds(logits, [[0, 3], [2]]).tolist() == pytest.approx(expected, abs=1e-5)
    assert odds(logits, [[2], [0, 3]]).tolist() == pytest.approx([-x for x in expected], abs=1e-5)
    assert odds(logits.half(), [[0], [1]]).dtype == torch.float32


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


def test_perplexity_inside_of_steer_is_that_of_the_steered_model():
    model, v = tiny_model(), make_vector()
    with plain_push(model, v.layer, FORCE * v.direction):
        expected = [perplexity(model, tokenizer(), [p], [PROMPTS[1]]).item() for p in PROMPTS]
    with steer(model, v, FORCE):
        found = perplexity(model, tokenizer(), PROMPTS, [PROMPTS[1]] * 3)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    unsteered = perplexity(model, tokenizer(), PROMPTS, [PROMPTS[1]] * 3)
    assert (found / unsteered).log().abs().min() > 1e-3


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


def test_log_price_is_the_log_of_the_perplexity_ratio_text_by_text():
    model, (soup, film, liked) = tiny_model(), PROMPTS
    texts = [
        SteeredText(soup, TAILS[0], TAILS[2]),
        SteeredText(film, TAILS[0], TAILS[1]),  # the same base, but behind another prompt
        SteeredText(soup, TAILS[0], TAILS[1]),
        SteeredText(liked, TAILS[1], TAILS[1]),
        SteeredText(liked, "", TAILS[1]),
        SteeredText(liked, TAILS[1], ""),
    ]
    prices = log_price(model, tokenizer(), texts)
    assert prices.shape == (6,) and prices.dtype == torch.float32
    for price, (prompt, base, steered) in zip(prices[:4], texts, strict=False):
        before, after = (
            perplexity(model, tokenizer(), [prompt], [text]).item() for text in (base, steered)
        )
        assert price.item() == pytest.approx(math.log(after / before), abs=1e-4)
    assert prices[:3].abs().min() > 0.01 and prices[3] == 0
    assert prices.isnan().tolist() == [False] * 4 + [True] * 2


def test_a_base_that_many_texts_share_is_priced_once(monkeypatch):
    read = []

    def count(model, tokenizer, prompts, continuations):
        read.append(len(prompts))
        return perplexity(model, tokenizer, prompts, continuations)

    monkeypatch.setattr(evaluation, "perplexity", count)
    texts = [SteeredText(p, TAILS[0], tail) for p in PROMPTS[:2] for tail in TAILS]
    assert log_price(tiny_model(), tokenizer(), texts).shape == (6,)
    assert sorted(read) == [2, 6]


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


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["one two three four"], 2, 1.0),
        (["good good good good good"], 2, 0.25),
        (["a b c", "a b d"], 2, 0.75),  # they repeat each other
        (["a b", "c a", "b"], 2, 1.0),  # no n-gram reaches into the next text
        (["The food", "the FOOD"], 2, 0.5),
        (["a b a", "c"], 1, 0.75),
        (["alone", ""], 2, math.nan),
        ([], 2, math.nan),
    ],
)
def test_distinct(texts, n, expected):
    assert distinct(texts, n) == pytest.approx(expected, nan_ok=True)


# -- A judge of whole texts


def test_vader_knows_clear_sentences():
    clear = ["This is wonderful, I love it!", "A horrible, disgusting failure.", "It is a table."]
    scores = judge(clear)
    assert scores.shape == (3,) and scores.abs().max() <= 1
    assert scores[0] > 0.5 and scores[1] < -0.5 and scores[2] == 0
    assert judge(clear, "vader").equal(scores) and judge(iter(clear)).equal(scores)


def test_vader_tells_the_labelled_sentences_apart():
    right = torch.cat([judge(POSITIVE_SENTENCES) > 0, judge(NEGATIVE_SENTENCES) < 0])
    assert right.float().mean() >= 0.75  # a coin gets half
    for half in right.view(2, -1):
        assert half.float().mean() > 0.5


def save_classifier(folder, labels, **options):
    """A random classifier of texts with these labels, as a folder that transformers reads."""
    config = BertConfig(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        **options,
    )
    torch.manual_seed(4)
    model = BertForSequenceClassification(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # larger than usual: this seed and size tell the texts apart
            parameter.normal_()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("labels", "positive", "negative"),
    [
        (["NEGATIVE", "POSITIVE"], 1, 0),
        (["positive", "negative"], 0, 1),
        (["Negative", "Neutral", "Positive"], 2, 0),
    ],
)
def test_a_classifier_judges_by_its_own_probabilities(tmp_path, labels, positive, negative):
    model, texts = save_classifier(tmp_path, labels), [*TAILS, *PROMPTS]
    expected = []
    for text in texts:
        p = model(token_ids(text)).logits[0].softmax(0)
        expected.append((p[positive] - p[negative]).item())
    assert max(expected) - min(expected) > 0.5
    assert judge(texts, str(tmp_path)).tolist() == pytest.approx(expected, abs=1e-5)
    assert judge(texts[:1], str(tmp_path)).tolist() == pytest.approx(expected[:1], abs=1e-5)


def test_a_classifier_of_something_else_is_refused(tmp_path):
    save_classifier(tmp_path, ["LABEL_0", "LABEL_1"])
    with pytest.raises(SteeringError, match=r"(?i)cannot judge.*\['label_0', 'label_1'\]") as error:
        judge(TAILS, str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_an_unknown_judge():
    with pytest.raises(SteeringError, match="No judge .*'nobody/no-judge'.*'vader' needs no net"):
        judge(TAILS, "nobody/no-judge")


def test_a_judge_in_a_format_that_can_run_code_is_refused(tmp_path):
    model = save_classifier(tmp_path, ["NEGATIVE", "POSITIVE"])
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SteeringError, match="No judge could be loaded"):
        judge(TAILS, str(tmp_path))


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


# -- Area under the ROC curve


def scores_of(n, shift, seed, ties=False):
    scores = torch.randn(n, generator=torch.Generator().manual_seed(seed)) + shift
    return scores.round() if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "m", "shift"), [(20, 20, 0.8), (7, 31, 0.0), (15, 6, -0.5)])
def test_auc_equals_that_of_scikit_learn(n, m, shift, ties):
    positive, negative = scores_of(n, shift, 0, ties), scores_of(m, 0, 1, ties)
    found = auc_with_interval(positive, negative)
    expected = roc_auc_score([1] * n + [0] * m, torch.cat([positive, negative]))
    assert found.mean == pytest.approx(expected)
    assert 0 <= found.low < found.mean < found.high <= 1
    turned = auc_with_interval(-positive, -negative)
    assert turned == pytest.approx((1 - found.mean, 1 - found.high, 1 - found.low))
    wider = auc_with_interval(positive, negative, confidence=0.99)
    assert wider.low <= found.low and found.high <= wider.high and wider != found


def test_auc_interval_repeats_itself_and_equals_resampling_by_hand():
    positive, negative = (scores_of(25, shift, seed).numpy() for shift, seed in ((1.0, 2), (0, 3)))
    first, again, other = (auc_with_interval(positive, negative, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    random = np.random.default_rng(5)
    above, below = (random.choice(side, (2000, 25)) for side in (positive, negative))
    resampled = (above[:, :, None] > below[:, None]).mean((1, 2))
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert (first.low, first.high) == pytest.approx((low, high), abs=0.02)


def test_auc_of_classes_that_do_not_overlap():
    assert auc_with_interval([2.0, 3.0, 4.0], [-1.0, 0.0, 1.0]) == (1, 1, 1)
    assert auc_with_interval([0.0, 1.0], [2.0, 3.0]) == (0, 0, 0)
    assert auc_with_interval([1.0, 1.0], [1.0, 1.0, 1.0]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("positive", "negative"), [([1.0], [0.0, 2.0]), ([1.0, 2.0], []), ([], [])]
)
def test_no_auc_interval_over_fewer_than_two_texts(positive, negative):
    with pytest.raises(SteeringError, match="two texts of each class"):
        auc_with_interval(positive, negative)
