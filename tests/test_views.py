import math
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

from helpers import plots
from helpers.activations import typical_norm
from helpers.concepts import SENTIMENT
from helpers.directions import find_vectors
from helpers.evaluation import log_odds, perplexity, price
from helpers.generation import SteeredText, generate
from helpers.models import SteeringError, load_model
from helpers.tables import Table
from helpers.views import (
    Result,
    Setting,
    completions,
    compute,
    draw_words,
    vector_at,
    write_code,
    write_draft,
    write_sentence,
    write_texts,
)
from pages import Page
from tiny_models import (
    hooks,
    logits_of,
    make_vector,
    no_hook_left,
    plain_log_odds,
    plain_push,
    tiny_model,
    token_ids,
    tokenizer,
)

PROMPT = "The hotel room was"
HOSTILE = '<script>alert(1)</script> **bold** `code` [a](b) $x$ "it\'s" &amp; \\n </b><u>'


@pytest.fixture(scope="module")
def pocket():
    """The bundled model, its tokenizer, its sentiment vectors and its typical norms."""
    model, its_tokenizer = load_model("pocket")
    vectors = find_vectors(model, its_tokenizer, SENTIMENT.pairs)
    return model, its_tokenizer, vectors, typical_norm(model, its_tokenizer).tolist()


def a_result(force=40.0, share=0.45, odds=(1.0, 3.1), surprise=(10.0, 12.0), texts=None, **setting):
    """A result that no model had to compute."""
    words = [(f" word{i}", 0.01 * i, 0.2 - 0.01 * i) for i in range(10)]
    fields = {"prompt": PROMPT, "vector_name": "sentiment", "layer": 6, "length": 24, "seed": 0}
    made = Setting(force=force, **{**fields, **setting})
    return Result(made, share, texts or (" big.", " bad."), odds, surprise, words)


# -- What a setting does


@pytest.mark.parametrize("force", [466.4, -600.0])
def test_result_equals_the_measurements_made_one_by_one(pocket, force):
    model, its_tokenizer, vectors, norms = pocket
    setting = Setting(PROMPT, "sentiment", 4, force, 20, 3)
    before = hooks(model)
    found = compute(model, its_tokenizer, vectors, norms, setting)
    assert hooks(model) == before
    prompts, lists = [PROMPT], (model, its_tokenizer)
    text = generate(*lists, prompts, vectors[4], force, max_new_tokens=20, seed=3)[0]
    assert found.setting == setting
    assert found.share == force / norms[4]
    assert found.texts == (text.base, text.steered) and text.base != text.steered
    odds = log_odds(*lists, prompts).item(), log_odds(*lists, prompts, vectors[4], force).item()
    assert found.log_odds == pytest.approx(odds, abs=1e-4)
    surprise = perplexity(*lists, prompts * 2, found.texts).tolist()
    assert found.perplexity == pytest.approx(surprise, rel=1e-4)
    assert found.price == pytest.approx(price(*lists, [text]).item(), abs=1e-3)
    assert found == compute(model, its_tokenizer, vectors[4], norms, setting)
    of_tensor = compute(model, its_tokenizer, vectors, torch.tensor(norms), setting).share
    assert type(of_tensor) is float and of_tensor == pytest.approx(found.share)


def test_a_list_has_a_vector_for_each_layer_and_one_alone_serves_any():
    vectors = [make_vector(layer, seed=layer) for layer in range(3)]
    assert [vector_at(vectors, layer) for layer in range(3)] == vectors
    assert vector_at(vectors[0], 2) is vectors[0]
    setting = Setting(PROMPT, "v", 2, 3.0, 4, 0)
    of_list = compute(tiny_model(), tokenizer(), vectors, [5.0, 6.0, 8.0], setting)
    assert of_list == compute(tiny_model(), tokenizer(), vectors[2], [5.0, 6.0, 8.0], setting)
    alone = compute(tiny_model(), tokenizer(), vectors[0], [5.0, 6.0, 8.0], setting)
    push = (2, 3.0 * vectors[0].direction)  # at the layer that is set, not at its own
    expected = [plain_log_odds(tiny_model(), PROMPT, pushes) for pushes in ([], [push])]
    assert alone.log_odds == pytest.approx(expected, abs=1e-4)
    options = {"max_new_tokens": 4, "seed": 0}
    at_2, at_0 = (
        generate(tiny_model(), tokenizer(), [PROMPT], vectors[0], 3.0, layer, **options)[0]
        for layer in (2, 0)
    )
    assert alone.texts == (at_2.base, at_2.steered) and at_2.steered != at_0.steered
    assert alone.share == of_list.share == 3 / 8


def test_log_odds_are_those_of_the_concept_s_words():
    positive, negative = SENTIMENT.words
    turned = replace(SENTIMENT, positive_words=negative, negative_words=positive)
    setting = Setting(PROMPT, "v", 1, 3.0, 2, 0)
    found, other = (
        compute(tiny_model(), tokenizer(), make_vector(), [5.0] * 3, setting, concept).log_odds
        for concept in (SENTIMENT, turned)
    )
    assert other == pytest.approx([-x for x in found], abs=1e-5) and found[0] != found[1]


def test_words_are_those_whose_probability_changed_most():
    model, v = tiny_model(), make_vector()
    found = compute(model, tokenizer(), v, [5.0] * 3, Setting(PROMPT, "v", 1, 3.0, 1, 0)).words
    before = logits_of(model, token_ids(PROMPT))[0, -1].softmax(0)
    with plain_push(model, 1, 3.0 * v.direction):
        after = logits_of(model, token_ids(PROMPT))[0, -1].softmax(0)
    most = (after - before).abs().argsort(descending=True)[:10]
    expected = [(tokenizer().decode([i]), before[i].item(), after[i].item()) for i in most]
    assert sorted(word for word, *_ in found) == sorted(word for word, *_ in expected)
    pairs = {word: pair for word, *pair in found}
    for word, *pair in expected:
        assert pairs[word] == pytest.approx(pair, abs=1e-6)
    changes = [after - before for _, before, after in found]
    assert changes == sorted(changes, reverse=True)


def test_force_zero_changes_nothing_and_shows_the_likeliest_words(pocket):
    model, its_tokenizer, vectors, norms = pocket
    setting = Setting(PROMPT, "sentiment", 4, 0.0, 12, 0)
    found = compute(model, its_tokenizer, vectors, norms, setting)
    for unsteered, steered in (found.texts, found.log_odds, found.perplexity):
        assert unsteered == steered
    probabilities = logits_of(model, token_ids(PROMPT))[0, -1].softmax(0)
    likeliest = sorted(its_tokenizer.decode([i]) for i in probabilities.topk(10).indices)
    assert sorted(word for word, *_ in found.words) == likeliest
    assert all(before == after for _, before, after in found.words)
    assert found.price == 0
    assert "No steering" in write_sentence(found)


def test_a_watcher_is_called_after_each_token_and_between_the_measurements():
    model, setting, seen = tiny_model(), Setting(PROMPT, "v", 1, 3.0, 6, 0), []
    given = (model, tokenizer(), make_vector(), [5.0] * 3, setting, SENTIMENT)
    result = compute(*given, seen.append)
    assert result == compute(*given)
    assert len(seen) == 6 + 1
    assert [(text.base, text.steered) for (text,) in seen[-2:]] == [result.texts] * 2
    for last in range(1, len(seen) + 1):
        passes, calls = [], []

        def watch(texts, calls=calls, last=last):
            calls.append(texts)
            if len(calls) == last:
                raise InterruptedError

        counter = model.register_forward_pre_hook(lambda *args, passes=passes: passes.append(1))
        with no_hook_left(model), pytest.raises(InterruptedError):
            compute(*given, watch)
        counter.remove()
        assert len(passes) == len(calls) == last  # no forward pass after the watcher's error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "is empty"),
        ({"prompt": "word " * 100}, "reads at most 64"),
        ({"force": math.inf}, "finite"),
        ({"layer": 3}, "has 3 layers"),
    ],
)
def test_a_setting_that_cannot_be(change, message):
    setting = Setting(**{**vars(a_result(layer=1).setting), **change})
    with no_hook_left(tiny_model()), pytest.raises(SteeringError, match=message):
        compute(tiny_model(), tokenizer(), make_vector(), [5.0] * 3, setting)


# -- The same in words, as code and as HTML


def test_price_of_a_result_is_in_bits_per_token():
    assert a_result(surprise=(8.0, 32.0)).price == 2
    assert a_result(surprise=(8.0, 4.0)).price == -1
    assert math.isnan(a_result(surprise=(8.0, math.nan)).price)
    assert math.isnan(a_result(surprise=(math.nan, 8.0)).price)


def test_sentence():
    assert write_sentence(a_result(surprise=(8.0, 16.0))) == (
        "Layer 6, force +40, which is 0.45 typical norms: log-odds from +1.0 to +3.1, a change of "
        "+2.1; price +1.0 bits per token."
    )
    opposite = a_result(force=-66.4, share=-0.2, odds=(1.0, -2.04), surprise=(8.0, 6.0), layer=0)
    assert write_sentence(opposite) == (
        "Layer 0, force -66.4, which is 0.20 typical norms: log-odds from +1.0 to -2.0, a change "
        "of -3.0; price -0.4 bits per token."
    )
    assert write_sentence(a_result(force=0.0)) == "No steering: both texts are the model's own."


@pytest.mark.parametrize(("sign", "limits"), [(1, [0.3, 9]), (-1, [9, 0.3])])
@pytest.mark.parametrize(("share", "warns"), [(0.25, False), (0.3001, False), (0.31, True)])
def test_sentence_warns_beyond_the_limit_of_its_side(sign, limits, share, warns):
    result = a_result(force=sign * 40, share=sign * share)
    assert "Beyond" not in write_sentence(result)
    sentence, plain = write_sentence(result, limits), write_sentence(result)
    warning = (
        " Beyond 0.30 norms this layer loses more than 0.25 bits per token when it reads: texts "
        "begin to break."
    )
    assert sentence == plain + warning * warns
    other = write_sentence(result, torch.tensor(limits), budget=1.5)
    assert other == plain + warning.replace("0.25 bits", "1.5 bits") * warns
    assert write_sentence(result, limits[::-1]) == plain
    assert "Beyond" not in write_sentence(a_result(force=0.0, share=0.0), [0.0, 0.0])


@pytest.mark.parametrize("limits", [0.3, [0.3], [0.1, 0.2, 0.3], "ab", [float("nan"), 1.0]])
def test_limits_that_are_not_up_and_down_are_refused(limits):
    with pytest.raises(SteeringError, match="limit"):
        write_sentence(a_result(), limits)


def test_an_empty_text_has_neither_perplexity_nor_price():
    result = a_result(surprise=(10.0, math.nan), texts=(" big.", ""))
    assert write_sentence(result).endswith("a change of +2.1; a text is empty.")
    page = Page(write_texts(result)).text
    assert "perplexity 10" in page and "empty" in page and "nan" not in page


@pytest.mark.parametrize("prompt", [PROMPT, 'It\'s "odd" \\ here\nand', "ein schöner Tag, 5 €"])
@pytest.mark.parametrize("force", [66.4, -123.456789, 0.0])
def test_code_makes_the_same_texts(pocket, prompt, force):
    model, its_tokenizer, vectors, norms = pocket
    setting = Setting(prompt, "its 'sentiment'", 4, force, 8, 5)
    shown = compute(model, its_tokenizer, vectors, norms, setting)
    names = {"model": model, "tokenizer": its_tokenizer, "generate": generate}
    for by_layer, vector in ((True, vectors), (False, vectors[4])):
        code = write_code(setting, by_layer)
        assert "\n" not in code
        (made,) = eval(code, {**names, "vectors": {"its 'sentiment'": vector}})
        assert (made.prompt, made.base, made.steered) == (prompt, *shown.texts)


def test_prompt_and_text_of_the_model_come_out_as_text():
    result = a_result(prompt=HOSTILE, texts=(f" same {HOSTILE}", f" same {HOSTILE[::-1]}"))
    page = Page(write_texts(result))
    assert set(page.tags) == {"div", "b", "u"}
    assert page.text.count(HOSTILE) == 3 and HOSTILE[::-1] in page.text
    assert HOSTILE in page.inside["b"]


def test_a_draft_looks_like_the_result_and_claims_no_measurement():
    written = SteeredText(HOSTILE, " same & big", " same & bad \ufffd")
    page = Page(write_draft(written))
    assert set(page.tags) == {"div", "b", "u"}
    assert page.text.count(HOSTILE) == 2 and page.inside["u"] == ["ad "]
    assert "log-odds" not in page.text and "perplexity" not in page.text
    assert "Unsteered · writing …" in page.text and "Steered · writing …" in page.text
    assert "\ufffd" not in page.text  # the first bytes of a character
    done = Page(write_texts(a_result(prompt=HOSTILE, texts=(" same & big", " same & bad "))))
    assert done.tags == page.tags and done.inside["u"] == page.inside["u"]
    assert not any(Page(write_draft(SteeredText(PROMPT, "", ""))).inside["u"])


def test_only_what_differs_is_underlined():
    page = Page(write_texts(a_result(texts=(" really large & clean.", " really loud."))))
    assert page.inside["u"] == ["oud."]
    assert page.inside["b"].count(PROMPT) == 2
    assert f"{PROMPT} really large & clean." in page.text
    assert f"{PROMPT} really loud." in page.text
    equal = Page(write_texts(a_result(texts=(" large.", " large."))))
    assert not any(equal.inside["u"])


def test_both_texts_are_named_and_measured():
    text = Page(write_texts(a_result(odds=(1.04, -2.0), surprise=(9.6, 31.0)))).text
    first, second = text.split("Steered")
    assert "Unsteered · log-odds +1.0 · perplexity 10" in first
    assert " · log-odds -2.0 · perplexity 31" in second


def test_chart_has_ten_named_pairs_of_bars():
    result = a_result()
    figure = draw_words(result)
    assert isinstance(figure, Figure)
    (ax,) = figure.axes
    unsteered, steered = ax.containers
    assert [bar.get_width() for bar in unsteered] == [before for _, before, _ in result.words]
    assert [bar.get_width() for bar in steered] == [after for _, _, after in result.words]
    # Each word stands beside its own pair, the unsteered bar above the steered one.
    for label, (word, *_), upper, lower in zip(
        ax.texts, result.words, unsteered, steered, strict=True
    ):
        assert label.get_text() == word.strip()
        middle = (upper.get_y() + lower.get_y() + lower.get_height()) / 2
        assert label.get_position()[1] == pytest.approx(middle)
        assert upper.get_y() > lower.get_y()
    assert unsteered[0].get_facecolor() != steered[0].get_facecolor()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["unsteered", "steered"]
    assert plots.png(figure)[:4] == b"\x89PNG"


def test_any_token_can_be_drawn():
    result = a_result()
    odd = ["$$", " $x^{$", "\n", "", " ", "\\frac", "<b>", "_", "\ufffd", '"']
    result.words[:] = [(word, 0.1, 0.2) for word in odd]
    figure = draw_words(result)
    plots.png(figure)
    assert all(label.get_text().strip() for label in figure.axes[0].texts)


def test_completions_are_a_table_and_equal_those_made_one_by_one(pocket):
    model, its_tokenizer, vectors, norms = pocket
    layers, shares = [2, 7], [-0.3, 0, 0.2]
    table = completions(model, its_tokenizer, PROMPT, vectors, layers, shares, norms, seed=4)
    assert type(table) is Table
    assert table.head[:2] == ["Layer", "Share of the norm"] and PROMPT in table.head[2]
    assert len(table.rows) == 6
    expected = [(layer, share) for layer in layers for share in shares]
    for (layer, share), row in zip(expected, table.rows, strict=True):
        force = share * norms[layer]
        (text,) = generate(model, its_tokenizer, [PROMPT], vectors[layer], force, seed=4)
        assert row == [str(layer), f"{share:+.2f}", " ".join(text.steered.split())]
    assert len({row[2] for row in table.rows}) >= 4
