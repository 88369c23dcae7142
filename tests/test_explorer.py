import asyncio
import logging
import math
import threading
from html.parser import HTMLParser
from types import SimpleNamespace

import ipywidgets as widgets
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure
from tornado.ioloop import IOLoop
from traitlets.config import Config

from helpers import explorer, plots
from helpers.activations import typical_norm
from helpers.directions import find_vectors
from helpers.evaluation import DEV_PROMPTS, log_odds, perplexity
from helpers.explorer import SHARES, Explorer, LayerExplorer, explore, explore_layers
from helpers.generation import generate
from helpers.models import SteeringError, load_model
from helpers.pairs import SENTIMENT_PAIRS
from helpers.views import (
    Result,
    Setting,
    completions,
    compute,
    draw_words,
    write_code,
    write_sentence,
    write_texts,
)
from tiny_models import (
    hooks,
    logits_of,
    make_vector,
    no_hook_left,
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
    vectors = find_vectors(model, its_tokenizer, SENTIMENT_PAIRS)
    return model, its_tokenizer, vectors, typical_norm(model, its_tokenizer).tolist()


def a_result(force=40.0, share=0.45, odds=(1.0, 3.1), surprise=(10.0, 12.0), texts=None, **setting):
    """A result that no model had to compute."""
    words = [(f" word{i}", 0.01 * i, 0.2 - 0.01 * i) for i in range(10)]
    fields = {"prompt": PROMPT, "vector": "sentiment", "layer": 6, "length": 24, "seed": 0}
    made = Setting(force=force, **{**fields, **setting})
    return Result(made, share, texts or (" big.", " bad."), odds, surprise, words)


class Page(HTMLParser):
    """What a browser makes of a piece of HTML: its text, its tags, and the text inside each."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.inside, self.open = "", [], {}, []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(tag)
        self.inside.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        for tag in set(self.open):
            self.inside[tag][-1] += data


# -- What a setting does


@pytest.mark.parametrize("force", [466.4, -600.0])
def test_result_equals_the_measurements_made_one_by_one(pocket, force):
    model, its_tokenizer, vectors, norms = pocket
    setting = Setting(PROMPT, "sentiment", 4, force, 20, 3)
    before = hooks(model)
    found = compute(model, its_tokenizer, vectors[4], setting, norms[4])
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


def test_words_are_those_whose_probability_changed_most():
    model, v = tiny_model(), make_vector()
    found = compute(model, tokenizer(), v, Setting(PROMPT, "v", 1, 3.0, 1, 0), 5.0).words
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
    found = compute(model, its_tokenizer, vectors[4], setting, norms[4])
    for unsteered, steered in (found.texts, found.log_odds, found.perplexity):
        assert unsteered == steered
    probabilities = logits_of(model, token_ids(PROMPT))[0, -1].softmax(0)
    likeliest = sorted(its_tokenizer.decode([i]) for i in probabilities.topk(10).indices)
    assert sorted(word for word, *_ in found.words) == likeliest
    assert all(before == after for _, before, after in found.words)
    assert "No steering" in write_sentence(found)


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
        compute(tiny_model(), tokenizer(), make_vector(), setting, 5.0)


# -- The same in words, as code and as HTML


def test_sentence():
    assert write_sentence(a_result()) == (
        "Layer 6, force +40, 0.45 of the typical norm: log-odds +2.1, perplexity ×1.2."
    )
    opposite = a_result(force=-66.4, share=-0.2, odds=(1.0, -2.04), layer=0)
    assert write_sentence(opposite) == (
        "Layer 0, force -66.4, 0.20 of the typical norm: log-odds -3.0, perplexity ×1.2."
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("share", "warns"), [(0.25, False), (0.3001, False), (0.31, True)])
def test_sentence_warns_beyond_the_limit_to_either_side(sign, share, warns):
    result = a_result(force=sign * 40, share=sign * share)
    assert "Beyond" not in write_sentence(result)
    sentence = write_sentence(result, limit=0.3)
    assert ("Beyond 0.30 norms" in sentence) == warns
    assert sentence.startswith(write_sentence(result))


def test_an_empty_text_has_no_perplexity():
    result = a_result(surprise=(10.0, math.nan), texts=(" big.", ""))
    assert "a text is empty" in write_sentence(result) and "nan" not in write_sentence(result)
    page = Page(write_texts(result)).text
    assert "perplexity 10" in page and "empty" in page and "nan" not in page


@pytest.mark.parametrize("prompt", [PROMPT, 'It\'s "odd" \\ here\nand', "ein schöner Tag, 5 €"])
@pytest.mark.parametrize("force", [66.4, -123.456789, 0.0])
def test_code_makes_the_same_texts(pocket, prompt, force):
    model, its_tokenizer, vectors, norms = pocket
    setting = Setting(prompt, "its 'sentiment'", 4, force, 8, 5)
    shown = compute(model, its_tokenizer, vectors[4], setting, norms[4])
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


def test_completions_equal_those_made_one_by_one(pocket):
    model, its_tokenizer, vectors, norms = pocket
    layers, shares = [2, 7], [-0.3, 0, 0.2]
    head, *rows = completions(model, its_tokenizer, PROMPT, vectors, layers, shares, norms, seed=4)
    assert PROMPT in head[2] and len(rows) == 6
    expected = [(layer, share) for layer in layers for share in shares]
    for (layer, share), row in zip(expected, rows, strict=True):
        force = share * norms[layer]
        (text,) = generate(model, its_tokenizer, [PROMPT], vectors[layer], force, seed=4)
        assert row == (str(layer), f"{share:+.2f}", " ".join(text.steered.split()))
    assert len({row[2] for row in rows}) >= 4


# -- The panel, without a browser

VECTORS = {
    "each layer": [make_vector(layer=layer, seed=layer) for layer in range(3)],
    "one": make_vector(seed=9),
}


@pytest.fixture
def computed(monkeypatch):
    """The settings that were computed, in order."""
    settings = []

    def count(model, its_tokenizer, vector, setting, norm):
        settings.append(setting)
        return compute(model, its_tokenizer, vector, setting, norm)

    monkeypatch.setattr(explorer, "compute", count)
    return settings


@pytest.fixture
def panel(computed):
    made = Explorer(tiny_model(), tokenizer(), VECTORS, limits=[0.5, 0.5, 0.5])
    computed.clear()
    return made


def controls(widget):
    """Everything in the panel that a visitor can move or press."""
    for child in getattr(widget, "children", ()):
        yield from controls(child)
    if not isinstance(widget, widgets.Box | widgets.HTML | widgets.Image):
        yield widget


def expected_result(setting):
    vector = VECTORS[setting.vector]
    vector = vector if setting.vector == "one" else vector[setting.layer]
    norm = typical_norm(tiny_model(), tokenizer())[setting.layer].item()
    return compute(tiny_model(), tokenizer(), vector, setting, norm)


def assert_shows(panel, setting):
    """The whole view is that of this setting."""
    assert panel.setting == panel.result.setting == setting
    expected = expected_result(setting)
    assert panel.result == expected
    assert write_sentence(expected, 0.5) in Page(panel.sentence.value).text
    assert panel.texts.value == write_texts(expected)
    assert panel.chart.value == plots.png(draw_words(expected), **explorer.QUICK)
    assert panel.chart.layout.visibility != "hidden"
    assert Page(panel.code.value).text == write_code(setting, setting.vector != "one")
    assert panel.busy.value == ""


@pytest.mark.filterwarnings("error:Passing unrecognized arguments")
def test_view_follows_every_control(panel):
    assert_shows(panel, Setting(DEV_PROMPTS[0], "each layer", 1, 0.0, 24, 0))
    panel.force.value = 3.0
    panel.layer.value = 2
    panel.prompt.value = prompt = "<script>alert(1)</script> &amp; it's"
    panel.vector.value = "one"
    panel.length.value = 7
    panel.seed.value = 11
    assert_shows(panel, Setting(prompt, "one", 2, 3.0, 7, 11))
    assert set(Page(panel.texts.value).tags) == {"div", "b", "u"}
    assert set(Page(panel.code.value).tags) == {"pre"}


def test_sliders_and_numbers_follow_each_other(panel, computed):
    panel.layer_slider.value = 2
    assert panel.layer.value == 2
    panel.layer.value = 0
    assert panel.layer_slider.value == 0
    panel.force_slider.value = 0.5
    assert panel.force.value == pytest.approx(0.5 * panel.scale[0], rel=0.01)
    panel.force.value = -1.02 * panel.scale[0]
    assert panel.force_slider.value == -1
    # One setting each, whichever of the two controls was moved.
    assert len(computed) == 4
    assert panel.result.setting == panel.setting
    assert panel.setting.force == panel.force.value != panel.scale[0]


def test_marks_tell_force_and_share_at_every_layer(panel):
    for layer, norm in enumerate(panel.scale):
        panel.layer.value = layer
        assert [share for _, share in panel.force_slider.options] == SHARES
        for label, share in panel.force_slider.options:
            force, of_norm = label.rstrip(" norms)").split(" (")
            assert float(force) == pytest.approx(share * norm, rel=0.01)
            assert float(of_norm) == pytest.approx(share, abs=0.005)
    assert SHARES[0] == -1.5 and SHARES[-1] == 1.5 and sorted(SHARES) == SHARES
    assert [-share for share in reversed(SHARES)] == SHARES


def test_force_stays_when_the_layer_changes_and_its_marks_do_not(panel):
    low, high = sorted(range(3), key=lambda layer: panel.scale[layer])[::2]
    panel.layer.value = low
    panel.force.value = force = round(panel.scale[low], 3)
    before = panel.force_slider.options
    panel.layer.value = high
    assert panel.force.value == force
    assert panel.force_slider.options != before
    nearest = min(SHARES, key=lambda share: abs(share * panel.scale[high] - force))
    assert panel.force_slider.value == nearest
    assert panel.result.share == pytest.approx(force / panel.scale[high])


def test_numbers_are_clipped_to_the_range(panel):
    top = 1.5 * panel.scale[1]
    for asked, expected in ((1e6, top), (-1e6, -top)):
        panel.force.value = asked
        assert panel.force.value == pytest.approx(expected, rel=0.01)
        assert panel.result.setting.force == panel.force.value
        assert abs(panel.force_slider.value) == 1.5
    panel.layer.value = 99
    assert panel.layer.value == panel.layer_slider.value == 2
    panel.length.value = 0
    assert panel.result.setting.length == 1


def test_a_layer_with_a_smaller_norm_clips_the_force(panel):
    low, high = sorted(range(3), key=lambda layer: panel.scale[layer])[::2]
    panel.layer.value = high
    panel.force.value = 1e6
    panel.layer.value = low
    assert panel.force.value == pytest.approx(1.5 * panel.scale[low], rel=0.01)
    assert panel.result.setting == panel.setting


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_forces_are_told_apart_at_any_scale(scale, monkeypatch):
    norms = typical_norm(tiny_model(), tokenizer()) * scale
    monkeypatch.setattr(explorer, "typical_norm", lambda model, its_tokenizer: norms)
    panel = Explorer(tiny_model(), tokenizer(), VECTORS)
    labels = [label.split()[0] for label, _ in panel.force_slider.options]
    assert len(set(labels)) == len(SHARES)
    panel.force_slider.value = 0.02
    assert panel.result.share == pytest.approx(0.02, rel=0.01)
    assert panel.force.step < 0.02 * norms[1]


def test_an_answer_is_computed_once(panel, computed):
    panel.force.value = 3.0
    shown = panel.texts.value, panel.chart.value, panel.sentence.value
    panel.force.value = -3.0
    assert (panel.texts.value, panel.chart.value, panel.sentence.value) != shown
    assert len(computed) == 2
    panel.force.value = 3.0
    panel.force.value = 0.0
    panel.force.value = 3.0
    assert len(computed) == 2
    assert (panel.texts.value, panel.chart.value, panel.sentence.value) == shown
    assert panel.result.setting == panel.setting


def test_buttons(panel, computed):
    start = panel.setting
    panel.layer.value, panel.force.value, panel.vector.value = 2, 3.0, "one"
    panel.none.click()
    assert panel.setting == Setting(start.prompt, "one", 2, 0.0, 24, 0)
    assert panel.force_slider.value == 0 and "No steering" in panel.sentence.value
    panel.force.value, panel.seed.value, panel.length.value, panel.prompt.value = 4, 5, 6, "We"
    computed.clear()
    panel.reset.click()
    assert_shows(panel, start)
    assert panel.layer_slider.value == 1 and panel.force_slider.value == 0
    assert not computed  # one change, to a setting known from the start


def test_every_control_has_a_visible_label(panel):
    found = list(controls(panel.widget))
    assert len(found) == 10
    for control in found:
        assert control.description.strip(), control
    names = [control.description for control in found]
    assert len(set(names)) == len(names)
    layers = LayerExplorer(lambda layer: Figure(), 3)
    assert all(control.description for control in controls(layers.widget))


def test_nothing_fires_while_a_slider_is_dragged(panel):
    layers = LayerExplorer(lambda layer: Figure(), 3)
    for control in (*controls(panel.widget), *controls(layers.widget)):
        assert getattr(control, "continuous_update", False) is False


def assert_shows_error(panel, words):
    assert words in Page(panel.sentence.value).text
    assert "alert" in panel.sentence.value
    assert panel.result is None
    # Nothing of the setting before stays as if it were the answer.
    assert panel.texts.value == panel.code.value == panel.busy.value == ""
    assert panel.chart.layout.visibility == "hidden"


@pytest.mark.parametrize(("prompt", "words"), [("", "is empty"), ("<i> " * 70, "reads at most 64")])
def test_an_error_is_raised_and_stands_in_the_panel(panel, prompt, words):
    with no_hook_left(tiny_model()):
        with pytest.raises(SteeringError, match=words):
            panel.prompt.value = prompt
        assert_shows_error(panel, words)
        assert "<i>" not in panel.sentence.value
        with pytest.raises(SteeringError, match=words):  # it does not vanish
            panel.force.value = 3.0
        assert_shows_error(panel, words)
        panel.prompt.value = "We liked"
    assert_shows(panel, Setting("We liked", "each layer", 1, 3.0, 24, 0))


def test_a_foreign_error_is_named_with_its_kind(panel, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(explorer, "compute", fail)
    with pytest.raises(RuntimeError):
        panel.force.value = 3.0
    assert_shows_error(panel, "RuntimeError: out of memory")


def test_a_panel_whose_first_setting_fails_is_not_made():
    with no_hook_left(tiny_model()), pytest.raises(SteeringError, match="is empty"):
        Explorer(tiny_model(), tokenizer(), VECTORS, prompt="")


# -- Settings that come from a browser


def in_browser(monkeypatch, story):
    """Run a coroutine in which the panel believes that every change came from a browser."""

    async def run():
        errors = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, what: errors.append(what))
        kernel = SimpleNamespace(
            get_parent=lambda: {"msg_type": "comm_msg"}, io_loop=IOLoop.current()
        )
        monkeypatch.setattr(explorer, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
        await story()
        return errors

    with no_hook_left(tiny_model()):
        assert asyncio.run(run()) == []


async def settled(panel):
    """Wait until nothing is left to be answered."""
    for _ in range(500):
        await asyncio.sleep(0.01)
        if not panel._scheduled:
            return
    raise TimeoutError


def test_of_a_burst_of_settings_only_the_latest_is_computed(panel, computed, monkeypatch):
    async def story():
        for force in (1.0, 2.0, 3.0, 4.0):
            panel.force.value = force
            await asyncio.sleep(0)
        panel.layer.value = 2
        assert not computed and panel.busy.value
        await settled(panel)
        assert [(setting.layer, setting.force) for setting in computed] == [(2, 4.0)]

    in_browser(monkeypatch, story)
    assert_shows(panel, Setting(DEV_PROMPTS[0], "each layer", 2, 4.0, 24, 0))


def test_a_setting_chosen_during_a_computation_supersedes_it(panel, computed, monkeypatch):
    counted = explorer.compute

    def compute_while_the_visitor_goes_on(*args):
        result = counted(*args)
        if len(computed) == 1:
            for seed in (1, 2, 3):
                panel.seed.value = seed
        return result

    monkeypatch.setattr(explorer, "compute", compute_while_the_visitor_goes_on)

    async def story():
        panel.force.value = 3.0
        await settled(panel)

    in_browser(monkeypatch, story)
    assert [setting.seed for setting in computed] == [0, 3]
    assert_shows(panel, Setting(DEV_PROMPTS[0], "each layer", 1, 3.0, 24, 3))


def test_computed_in_the_thread_of_the_cells(panel, monkeypatch):
    """JupyterLab's messages come in another thread; two on one model would steer each other."""
    threads, counted = [], explorer.compute

    def note_thread(*args):
        threads.append(threading.current_thread())
        return counted(*args)

    monkeypatch.setattr(explorer, "compute", note_thread)

    async def story():
        mover = threading.Thread(target=lambda: setattr(panel.force, "value", 3.0))
        mover.start()
        mover.join()
        await settled(panel)

    in_browser(monkeypatch, story)
    assert threads == [threading.current_thread()]
    assert_shows(panel, Setting(DEV_PROMPTS[0], "each layer", 1, 3.0, 24, 0))


def test_errors_of_a_browser_setting_stay_in_the_panel(panel, monkeypatch, caplog):
    async def story():
        panel.prompt.value = ""
        await settled(panel)
        assert_shows_error(panel, "is empty")
        panel.prompt.value = "We liked"
        await settled(panel)

    with caplog.at_level(logging.DEBUG, "tornado"):
        in_browser(monkeypatch, story)
    assert not [record for record in caplog.records if record.exc_info]
    assert_shows(panel, Setting("We liked", "each layer", 1, 0.0, 24, 0))


def test_foreign_errors_of_a_browser_setting_are_logged_too(panel, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("out of memory")

    async def story():
        with monkeypatch.context() as broken:
            broken.setattr(explorer, "compute", fail)
            panel.force.value = 3.0
            await settled(panel)
        assert_shows_error(panel, "RuntimeError: out of memory")
        panel.force.value = 0.0
        await settled(panel)

    in_browser(monkeypatch, story)
    assert "out of memory" in caplog.text
    assert panel.result is not None and panel.chart.layout.visibility == "visible"


# -- What a page shows


@pytest.fixture
def shell(tmp_path):
    quiet = Config({"HistoryManager": {"enabled": False}})
    yield InteractiveShell.instance(ipython_dir=str(tmp_path), config=quiet)
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("kind", [explore, explore_layers])
def test_what_is_shown_has_words_for_a_page_without_widgets(kind, shell):
    with capture_output() as shown:
        if kind is explore:
            panel = explore(tiny_model(), tokenizer(), VECTORS)
        else:
            panel = explore_layers(lambda layer: Figure(), 3)
    (output,) = shown.outputs
    view = output.data["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == panel.widget.model_id
    assert "run this cell" in output.data["text/plain"]
    assert "PNG" not in repr(output.data) and "VBox" not in repr(output.data)


def test_each_layer_is_drawn_once():
    drawn = []

    def draw(layer):
        drawn.append(layer)
        figure = Figure()
        figure.suptitle(f"layer {layer}")
        return figure

    panel = LayerExplorer(draw, 5)
    pictures = {2: panel.image.value}
    for layer in (3, 0, 2, 3, 0):
        panel.layer_slider.value = layer
        assert panel.layer.value == layer
        assert pictures.setdefault(layer, panel.image.value) == panel.image.value
    panel.layer.value = 99
    assert panel.layer_slider.value == 4
    assert drawn == [2, 3, 0, 4]
    assert len(set(pictures.values())) == 3 and panel.image.value not in pictures.values()
