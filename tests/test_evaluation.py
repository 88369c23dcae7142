import math
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from helpers import evaluation
from helpers.concepts import SENTIMENT
from helpers.evaluation import (
    balanced_prompts,
    distinct,
    judge,
    log_odds,
    log_odds_from,
    mean_surprisal,
    next_token_logits,
    perplexity,
    price,
    repetition,
    surprisal,
    usable_words,
    word_ids,
    word_sides,
)
from helpers.generation import SteeredText
from helpers.models import SteeringError, encode
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


# -- Words


def test_words_are_single_tokens_with_a_space_before_them():
    ids = word_ids(tokenizer(), ["good", "bad"])
    assert [tokenizer().decode([i]) for i in ids] == [" good", " bad"]


def test_the_words_of_a_concept_side_by_side():
    own = replace(SENTIMENT, positive_words=["good", "nice", "fun"], negative_words=["bad"])
    positive, negative = word_sides(tokenizer(), own)
    assert positive == word_ids(tokenizer(), ["good", "nice", "fun"])
    assert negative == word_ids(tokenizer(), ["bad"])


def test_words_of_several_tokens_are_named_with_their_pieces():
    broken = ["flabbergasting", "zzyzx"]
    with pytest.raises(SteeringError, match="Not one token") as error:
        word_ids(tokenizer(), ["good", *broken])
    for word in broken:
        pieces = tokenizer().tokenize(" " + word)
        assert len(pieces) > 1 and f"{word} = {' + '.join(pieces)}" in str(error.value)
    assert "good =" not in str(error.value)


def test_words_that_cannot_be_counted_are_left_out_with_their_reasons():
    own = replace(
        SENTIMENT,
        positive_words=["good", "zzyzx", " nice", "fun", "nice", "best"],
        negative_words=["bad", " fun", "flabbergasting", " best", "worse"],
    )
    with pytest.warns(UserWarning) as caught:
        found = usable_words(tokenizer(), own)
    assert found.words == (["good", " nice"], ["bad", "worse"])
    assert found.dev_prompts == own.dev_prompts and len(own.positive_words) == 6
    assert word_sides(tokenizer(), found) == word_sides(
        tokenizer(), replace(own, positive_words=["good", "nice"], negative_words=["bad", "worse"])
    )
    [warning] = caught
    assert warning.filename == __file__  # it points to the caller
    pieces = {word: " + ".join(tokenizer().tokenize(f" {word}")) for word in own.negative_words}
    for part in (
        "Words of 'sentiment' are left out in this vocabulary: zzyzx = ",
        "; 'nice' is the same token as ' nice'; ",
        f"; flabbergasting = {pieces['flabbergasting']}; ",
        "; 'fun' stands on both sides; 'best' stands on both sides.",
    ):
        assert part in str(warning.message)
    assert "good" not in str(warning.message) and "worse" not in str(warning.message)


def test_usable_words_stay_as_they_are_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable_words(tokenizer(), SENTIMENT).words == SENTIMENT.words


@pytest.mark.parametrize(
    ("negative", "reason"),
    [
        (["zzyzx", "flabbergasting"], "zzyzx = .*; flabbergasting = "),
        ([" good"], "'good' stands on both sides"),
    ],
)
def test_a_side_without_a_usable_word_is_refused(negative, reason):
    own = replace(SENTIMENT, negative_words=negative, sides=["warm", "cold"])
    expected = (
        f"No cold word of 'sentiment' is usable in this vocabulary: {reason}.*Give it other words"
    )
    with pytest.raises(SteeringError, match=expected):
        usable_words(tokenizer(), own)


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


def test_log_odds_from_logits():
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.25, 0.125, 0.125]])
    logits = probabilities.log() + torch.tensor([[3.0], [-2.0]])
    expected = torch.tensor([math.log(0.5 / 0.3), math.log(0.625 / 0.125)])
    torch.testing.assert_close(log_odds_from(logits, [[0, 3], [2]]), expected)
    torch.testing.assert_close(log_odds_from(logits, [[2], [0, 3]]), -expected)
    assert log_odds_from(logits.half(), [[0], [1]]).dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [12, 2048])
def test_mistake_08_log_odds_equal_one_prompt_at_a_time(family, batch_tokens):
    model, v = tiny_model(family), make_vector()
    plain = log_odds(model, tokenizer(), PROMPTS, batch_tokens=batch_tokens)
    assert plain.dtype == torch.float32 and plain.shape == (3,)
    expected = [plain_log_odds(model, prompt) for prompt in PROMPTS]
    assert plain.tolist() == pytest.approx(expected, abs=1e-4)
    with no_hook_left(model):
        steered = log_odds(model, tokenizer(), PROMPTS, v, FORCE, batch_tokens=batch_tokens)
    push = (v.layer, FORCE * v.direction)
    expected = [plain_log_odds(model, prompt, [push]) for prompt in PROMPTS]
    assert steered.tolist() == pytest.approx(expected, abs=1e-4)
    assert (steered - plain).abs().max() > 0.01


@pytest.mark.parametrize("batch_tokens", [1, 12, 2048])
def test_log_odds_of_forces_and_layers_of_each_prompt(batch_tokens):
    model, v, w = tiny_model(), make_vector(layer=0), make_vector(layer=2, seed=1)
    forces = [[0.0, FORCE, 1.0], [-FORCE, 0.0, 2.0]]
    found = log_odds(model, tokenizer(), PROMPTS, [v, w], forces, batch_tokens=batch_tokens)
    for value, prompt, a, b in zip(found, PROMPTS, *forces, strict=True):
        pushes = [(0, a * v.direction), (2, b * w.direction)]
        assert value.item() == pytest.approx(plain_log_odds(model, prompt, pushes), abs=1e-4)
    moved = log_odds(model, tokenizer(), PROMPTS, v, FORCE, layer=-1, batch_tokens=batch_tokens)
    push = [(2, FORCE * v.direction)]
    expected = [plain_log_odds(model, prompt, push) for prompt in PROMPTS]
    assert moved.tolist() == pytest.approx(expected, abs=1e-4)


def test_log_odds_turn_their_sign_with_the_lists():
    positive, negative = SENTIMENT.words
    swapped = replace(SENTIMENT, positive_words=negative, negative_words=positive)
    plain = log_odds(tiny_model(), tokenizer(), PROMPTS)
    turned = log_odds(tiny_model(), tokenizer(), PROMPTS, concept=swapped)
    torch.testing.assert_close(turned, -plain)


@pytest.mark.parametrize("n", [1, 3, 16])
def test_balanced_prompts_are_the_development_prompts_of_least_lean_closest_first(n):
    leans = {p: abs(plain_log_odds(tiny_model(), p)) for p in SENTIMENT.dev_prompts}
    assert len(leans) == len(SENTIMENT.dev_prompts)
    found = balanced_prompts(tiny_model(), tokenizer(), n=n)
    assert found == sorted(leans, key=leans.get)[:n]
    assert len(balanced_prompts(tiny_model(), tokenizer())) == 3


def test_balanced_prompts_are_those_of_the_concept_s_prompts_and_words():
    leaning = replace(SENTIMENT, dev_prompts=PROMPTS, positive_words=["good"])
    ids = [token_ids(f" {word}").item() for word in ["good", *leaning.negative_words]]
    leans = {}
    for prompt in PROMPTS:
        good, *bad = logits_of(tiny_model(), token_ids(prompt))[0, -1][ids].tolist()
        leans[prompt] = abs(good - math.log(sum(map(math.exp, bad))))
    found = balanced_prompts(tiny_model(), tokenizer(), leaning)
    assert found == sorted(leans, key=leans.get)


@pytest.mark.parametrize(
    ("prompts", "change", "message"),
    [
        ("one string", {}, "one string"),
        ([], {}, "empty"),
        (["The soup", " "], {}, "Prompt 2 of 2 is empty"),
        (["word " * 65], {}, "reads at most 64"),
        (PROMPTS, {"force": math.inf}, "finite"),
        (PROMPTS, {"force": [1.0, 2.0]}, r"shape \[2\] do not fit 1 vector\(s\) and 3 prompts"),
        (PROMPTS, {"vector": []}, "No vector"),
        (PROMPTS, {"layer": 3}, "has 3 layers"),
        (PROMPTS, {"concept": replace(SENTIMENT, positive_words=["zzyzx"])}, "Not one token"),
        (PROMPTS, {"concept": replace(SENTIMENT, negative_words=["zzyzx"])}, "Not one token"),
        (PROMPTS, {"batch_tokens": 0}, "batch_tokens must be a whole number above 0"),
    ],
)
def test_unusable_input_of_log_odds(prompts, change, message):
    change = {"vector": make_vector(), "force": FORCE, **change}
    with no_hook_left(tiny_model()), pytest.raises(SteeringError, match=message):
        log_odds(tiny_model(), tokenizer(), prompts, **change)


# -- Cost: surprisal, perplexity, price and repetition


def test_surprisal_is_minus_the_binary_logarithm_of_each_next_token_s_probability():
    probabilities = torch.tensor([[[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [1.0, 1.0, 1.0]]])
    logits = probabilities.log() + torch.tensor([[[3.0], [-1.0], [0.0]]])
    ids = torch.tensor([[0, 1, 2]])  # the first token is given, behind the last nothing is asked
    assert surprisal(logits, ids).tolist() == [pytest.approx([2, 3], abs=1e-5)]
    two = surprisal(logits.repeat(2, 1, 1), torch.tensor([[0, 1, 2], [2, 0, 1]]))
    assert two.tolist() == [pytest.approx([2, 3], abs=1e-5), pytest.approx([1, -math.log2(0.75)])]
    assert surprisal(logits.half(), ids).dtype == torch.float32
    assert surprisal(logits[:, :1], ids[:, :1]).shape == (1, 0)


def test_mean_surprisal_counts_the_marked_tokens_alone():
    model, batch = tiny_model(), encode(tiny_model(), tokenizer(), PROMPTS)
    bits = surprisal(model(**batch).logits, batch["input_ids"])
    scored = batch["attention_mask"].bool()
    scored[1, 1:] = False  # the first token, which nothing predicts, is left
    scored[0, 1] = False
    before = scored.clone()
    found = mean_surprisal(model, batch, scored)
    assert torch.equal(scored, before)
    for row, (own, marked) in enumerate(zip(bits, scored[:, 1:], strict=True)):
        if row != 1:
            assert found[row].item() == pytest.approx(own[marked].mean().item(), rel=1e-5)
    assert found[1].isnan()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [20, 2048])
def test_mistake_08_perplexity_equals_one_text_at_a_time(family, batch_tokens):
    model = tiny_model(family)
    expected = []
    for prompt, tail in zip(PROMPTS, TAILS, strict=True):
        head, tail = token_ids(prompt), token_ids(tail)
        logits = logits_of(model, torch.cat([head, tail], 1))[0, head.shape[1] - 1 : -1]
        likelihoods = [row.log_softmax(0)[i].item() for row, i in zip(logits, tail[0], strict=True)]
        expected.append(math.exp(-sum(likelihoods) / len(likelihoods)))
    found = perplexity(model, tokenizer(), PROMPTS, TAILS, batch_tokens=batch_tokens)
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


def plain_bits(prompt, text):
    """Bits per token of a text behind its prompt, token by token."""
    head, tail = token_ids(prompt), token_ids(text)
    logits = logits_of(tiny_model(), torch.cat([head, tail], 1))[0, head.shape[1] - 1 : -1]
    bits = [-math.log2(row.softmax(0)[i]) for row, i in zip(logits, tail[0], strict=True)]
    return sum(bits) / len(bits)


def test_price_is_how_many_bits_per_token_the_steered_text_is_more_surprising():
    soup, film, liked = PROMPTS
    texts = [
        SteeredText(soup, TAILS[0], TAILS[2]),
        SteeredText(film, TAILS[0], TAILS[1]),  # the same base, but behind another prompt
        SteeredText(soup, TAILS[0], TAILS[1]),
        SteeredText(liked, TAILS[1], TAILS[1]),
        SteeredText(liked, "", TAILS[1]),
        SteeredText(liked, TAILS[1], ""),
    ]
    prices = price(tiny_model(), tokenizer(), texts)
    assert prices.shape == (6,) and prices.dtype == torch.float32
    for found, (prompt, base, steered) in zip(prices[:4], texts, strict=False):
        expected = plain_bits(prompt, steered) - plain_bits(prompt, base)
        assert found.item() == pytest.approx(expected, abs=1e-4)
        before, after = (
            perplexity(tiny_model(), tokenizer(), [prompt], [x]).item() for x in (base, steered)
        )
        assert found.item() == pytest.approx(math.log2(after / before), abs=1e-4)
    assert prices[:3].abs().min() > 0.01 and prices[3] == 0
    assert prices.isnan().tolist() == [False] * 4 + [True] * 2


def test_every_different_text_is_read_once_for_its_price(monkeypatch):
    read = []

    def count(model, tokenizer, prompts, continuations):
        read.extend(zip(prompts, continuations, strict=True))
        return perplexity(model, tokenizer, prompts, continuations)

    monkeypatch.setattr(evaluation, "perplexity", count)
    texts = [SteeredText(p, TAILS[0], tail) for p in PROMPTS[:2] for tail in TAILS]
    assert price(tiny_model(), tokenizer(), texts).shape == (6,)
    assert sorted(read) == sorted((p, tail) for p in PROMPTS[:2] for tail in TAILS)


def test_a_text_that_just_fits_is_priced_and_one_that_does_not_has_no_price():
    prompt, room = "The soup was", 64  # of the tiny model
    left = room - len(token_ids(prompt)[0])
    fits, too_long = (
        tokenizer().decode([tokenizer().encode(" good")[0]] * n) for n in (left, left + 1)
    )
    texts = [SteeredText(prompt, TAILS[0], tail) for tail in (fits, too_long, TAILS[1])]
    found = price(tiny_model(), tokenizer(), texts)
    assert found.isnan().tolist() == [False, True, False]


def test_no_texts_have_no_price():
    with pytest.raises(SteeringError):
        price(tiny_model(), tokenizer(), [])


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
    assert judge(clear, SENTIMENT.judge).equal(scores)


def test_vader_tells_the_labelled_sentences_apart():
    right = torch.cat(
        [judge(SENTIMENT.positive_sentences) > 0, judge(SENTIMENT.negative_sentences) < 0]
    )
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


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, np.array])
def test_a_judge_of_one_s_own_is_asked_for_all_texts_at_once(kind):
    asked = []

    def count_words(texts):
        asked.append(texts)
        return kind([len(text.split()) for text in texts])

    found = judge((text for text in TAILS), by=count_words)
    assert asked == [TAILS]
    assert found.tolist() == [5, 1, 10] and found.dtype == torch.float32


def giving(answer):
    """A judge that gives always this."""

    def my_judge(texts):
        return answer

    return my_judge


@pytest.mark.parametrize(
    ("answer", "shape"),
    [([1.0], r"\[1\]"), ([1.0] * 4, r"\[4\]"), (2.0, r"\[\]"), ([[1.0]] * 3, r"\[3, 1\]")],
)
def test_a_judge_that_does_not_give_a_number_for_each_text_is_refused(answer, shape):
    with pytest.raises(SteeringError, match=f"The judge my_judge gave {shape} for 3 texts"):
        judge(TAILS, by=giving(answer))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "answers must be numbers: .*got None"),
        ("good", "answers must be numbers: .*got 'good'"),
        (["good"] * 3, "answers must be numbers"),
        ([1.0, None, 2.0], "answers must be numbers"),
        ({"a": 1.0}, "answers must be numbers"),
        ([1.0, math.nan, 2.0], "Every answer must be a finite number, got nan"),
        (torch.tensor([1.0, math.nan, 2.0]), "Every answer must be a finite number, got nan"),
        ([1.0, math.inf, 2.0], "Every answer must be a finite number, got inf"),
        (torch.ones(3, device="meta"), "answers cannot be read"),
    ],
    ids=str,
)
def test_a_judge_that_gives_no_numbers_is_refused(answer, message):
    expected = f"The judge my_judge must give one number for each text. {message}"
    with pytest.raises(SteeringError, match=expected):
        judge(TAILS, by=giving(answer))


@pytest.mark.parametrize("problem", [KeyError("tone"), ZeroDivisionError("by zero")], ids=repr)
def test_what_goes_wrong_in_a_judge_is_the_cause(problem):
    def my_judge(texts):
        raise problem

    class Judge:
        __call__ = staticmethod(my_judge)

    for by, name in ((my_judge, "my_judge"), (Judge(), "Judge"), (partial(my_judge), "partial")):
        with pytest.raises(SteeringError, match=f"The judge {name} failed on 3 texts") as error:
            judge(TAILS, by)
        assert error.value.__cause__ is problem
        assert f"({type(problem).__name__}: {problem})" in str(error.value)


def test_a_judge_cannot_change_the_texts_and_an_interrupt_passes():
    texts = list(TAILS)
    with pytest.raises(SteeringError, match=r"gave \[0\] for 3 texts"):
        judge(texts, by=lambda texts: texts.clear() or [])
    assert texts == TAILS

    def interrupted(texts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(TAILS, by=interrupted)


def test_a_judge_in_a_format_that_can_run_code_is_refused(tmp_path):
    model = save_classifier(tmp_path, ["NEGATIVE", "POSITIVE"])
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SteeringError, match="No judge could be loaded"):
        judge(TAILS, str(tmp_path))
