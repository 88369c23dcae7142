import asyncio
import logging
import threading
from contextlib import contextmanager
from dataclasses import replace
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
from helpers.concepts import SENTIMENT
from helpers.explorer import SHARES, Explorer, explore
from helpers.models import SteeringError
from helpers.panels import LayerExplorer, explore_layers
from helpers.views import (
    Setting,
    compute,
    draw_words,
    write_code,
    write_draft,
    write_sentence,
    write_texts,
)
from pages import Page
from tiny_models import make_vector, no_hook_left, plain_log_odds, tiny_model, tokenizer

# Of the development prompts the one whose log-odds are closest to 0, from which a panel starts.
FIRST = min(SENTIMENT.dev_prompts, key=lambda p: abs(plain_log_odds(tiny_model(), p)))
START = 2  # the layer at two thirds of the depth
VECTORS = {
    "each layer": [make_vector(layer=layer, seed=layer) for layer in range(3)],
    "one": make_vector(seed=9),
}


@pytest.fixture
def computed(monkeypatch):
    """The settings that were computed, in order."""
    settings = []

    def count(model, its_tokenizer, vectors, scale, setting, *others):
        settings.append(setting)
        return compute(model, its_tokenizer, vectors, scale, setting, *others)

    monkeypatch.setattr(explorer, "compute", count)
    return settings


@pytest.fixture
def panel(computed):
    made = Explorer(tiny_model(), tokenizer(), VECTORS, limits=[[0.5, 0.5]] * 3)
    computed.clear()
    return made


def controls(widget):
    """Everything in the panel that a visitor can move or press."""
    for child in getattr(widget, "children", ()):
        yield from controls(child)
    if not isinstance(widget, widgets.Box | widgets.HTML | widgets.Image):
        yield widget


def expected_result(setting):
    vectors = VECTORS[setting.vector_name]
    vector = vectors if setting.vector_name == "one" else vectors[setting.layer]
    scale = typical_norm(tiny_model(), tokenizer()).tolist()
    return compute(tiny_model(), tokenizer(), vector, scale, setting)


def assert_shows(panel, setting):
    """The whole view is that of this setting."""
    assert panel.setting == panel.result.setting == setting
    expected = expected_result(setting)
    assert panel.result == expected
    assert write_sentence(expected, [0.5, 0.5]) in Page(panel.sentence.value).text
    assert panel.texts.value == write_texts(expected)
    assert panel.chart.value == plots.png(draw_words(expected), **explorer.QUICK)
    assert panel.chart.layout.visibility != "hidden"
    assert Page(panel.code.value).text == write_code(setting, setting.vector_name != "one")
    assert panel.busy.value == ""


@pytest.mark.filterwarnings("error:Passing unrecognized arguments")
def test_view_follows_every_control(panel):
    assert_shows(panel, Setting(FIRST, "each layer", START, 0.0, 24, 0))
    panel.force.value = 3.0
    panel.layer.value = 0
    panel.prompt.value = prompt = "<script>alert(1)</script> &amp; it's"
    panel.vector.value = "one"
    panel.length.value = 7
    panel.seed.value = 11
    assert_shows(panel, Setting(prompt, "one", 0, 3.0, 7, 11))
    assert set(Page(panel.texts.value).tags) == {"div", "b", "u"}
    assert set(Page(panel.code.value).tags) == {"pre"}


def test_sliders_and_numbers_follow_each_other(panel, computed):
    panel.layer_slider.value = 1
    assert panel.layer.value == 1
    panel.layer.value = 0
    assert panel.layer_slider.value == 0
    _, panel.force_slider.value = panel.force_slider.options[-6]
    assert panel.force.value == pytest.approx(0.5 * panel.scale[0], rel=0.01)
    panel.force.value = force = -1.02 * panel.scale[0]
    assert panel.force_slider.value == force  # not the nearest of the usual marks
    # One setting each, whichever of the two controls was moved.
    assert len(computed) == 4
    assert panel.result.setting == panel.setting
    assert panel.setting.force == force


def marks(panel):
    """[(force and share on the label, force), …]"""
    return [
        (*(float(part) for part in label.removesuffix(" norms)").split(" (")), force)
        for label, force in panel.force_slider.options
    ]


def test_marks_tell_force_and_share_at_every_layer(panel):
    for layer, norm in enumerate(panel.scale):
        panel.layer.value = layer
        assert len(marks(panel)) == len(SHARES)
        for share, (labelled, of_norm, force) in zip(SHARES, marks(panel), strict=True):
            assert labelled == force == pytest.approx(share * norm, rel=0.01)
            assert of_norm == pytest.approx(share, abs=0.005)
    assert SHARES[0] == -1.5 and SHARES[-1] == 1.5 and sorted(SHARES) == SHARES
    assert [-share for share in reversed(SHARES)] == SHARES


def test_force_stays_when_the_layer_changes_and_its_marks_do_not(panel):
    low, high = sorted(range(3), key=lambda layer: panel.scale[layer])[::2]
    panel.layer.value = low
    panel.force.value = force = round(panel.scale[low], 3)
    before = panel.force_slider.options
    panel.layer.value = high
    assert panel.force.value == panel.force_slider.value == force
    assert panel.force_slider.options != before
    assert panel.result.share == pytest.approx(force / panel.scale[high])


def assert_slider_tells_the_force(panel):
    """The mark at which the slider stands is the number beside it, among marks in order."""
    found = marks(panel)
    forces = [force for *_, force in found]
    assert forces == sorted(set(forces)) and panel.force.value in forces
    labelled, share, force = found[panel.force_slider.index]
    assert force == panel.force_slider.value == panel.force.value == panel.setting.force
    assert labelled == pytest.approx(force, rel=1e-5)
    assert share == pytest.approx(panel.result.share, abs=0.0051)


@pytest.mark.parametrize("share", [0.33, -0.071, 1.4999, 0.0001, -1.5, 2.0, 0.2])
def test_slider_and_number_never_disagree(panel, share):
    panel.length.value = 1  # quicker
    for layer in (0, 2, 1):
        panel.force.value = share * panel.scale[layer]
        assert_slider_tells_the_force(panel)
        panel.layer_slider.value = layer
        assert_slider_tells_the_force(panel)
        assert len(panel.force_slider.options) <= len(SHARES) + 1
    _, panel.force_slider.value = panel.force_slider.options[3]
    assert_slider_tells_the_force(panel)
    assert len(panel.force_slider.options) == len(SHARES)  # the mark in between is gone
    panel.none.click()
    assert_slider_tells_the_force(panel)
    assert panel.force.value == 0


def test_numbers_are_clipped_to_the_range(panel):
    top = 1.5 * panel.scale[START]
    for asked, expected in ((1e6, top), (-1e6, -top)):
        panel.force.value = asked
        assert panel.force.value == pytest.approx(expected, rel=0.01)
        assert panel.result.setting.force == panel.force.value
        assert panel.force_slider.value == panel.force.value
        assert len(panel.force_slider.options) == len(SHARES)
    for asked, expected in ((-5, 0), (99, 2)):
        panel.layer.value = asked
        assert panel.layer.value == panel.layer_slider.value == expected
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
    monkeypatch.setattr(explorer, "typical_norm", lambda model, its_tokenizer, concept: norms)
    panel = Explorer(tiny_model(), tokenizer(), VECTORS)
    labels = [label.split()[0] for label, _ in panel.force_slider.options]
    assert len(set(labels)) == len(SHARES)
    _, panel.force_slider.value = panel.force_slider.options[SHARES.index(0.02)]
    assert panel.result.share == pytest.approx(0.02, rel=0.01)
    assert panel.force.step < 0.02 * norms[START]


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
    panel.layer.value, panel.force.value, panel.vector.value = 0, 3.0, "one"
    panel.none.click()
    assert panel.setting == Setting(start.prompt, "one", 0, 0.0, 24, 0)
    assert panel.force_slider.value == 0 and "No steering" in panel.sentence.value
    panel.force.value, panel.seed.value, panel.length.value, panel.prompt.value = 4, 5, 6, "We"
    computed.clear()
    panel.reset.click()
    assert_shows(panel, start)
    assert panel.layer_slider.value == START and panel.force_slider.value == 0
    assert not computed  # one change, to a setting known from the start


def test_a_panel_starts_at_two_thirds_of_the_depth():
    vectors = {"one": make_vector()}
    for family, layer in (("gpt2", START), ("gpt_neo", 2)):  # of three layers and of four
        panel = Explorer(tiny_model(family), tokenizer(), vectors)
        assert panel.layer.value == panel.layer_slider.value == layer


def test_a_panel_starts_where_the_model_leans_to_neither_side(panel):
    leans = {p: abs(plain_log_odds(tiny_model(), p)) for p in SENTIMENT.dev_prompts}
    assert panel.prompt.value == FIRST
    assert list(panel.prompt.options) == sorted(leans, key=leans.get)
    given = Explorer(tiny_model(), tokenizer(), VECTORS, prompt="We liked")
    assert given.setting.prompt == given.result.setting.prompt == "We liked"
    assert given.prompt.options == panel.prompt.options


def test_a_panel_is_that_of_its_concept():
    positive, negative = SENTIMENT.words
    own = replace(
        SENTIMENT,
        pairs=[("We love it so", "No"), ("It is warm and bright", "Rain")],
        positive_words=negative,
        negative_words=positive,
        dev_prompts=["We liked", "The soup was"],
    )
    panel = Explorer(tiny_model(), tokenizer(), VECTORS, own)
    assert sorted(panel.prompt.options) == ["The soup was", "We liked"]
    assert panel.scale == typical_norm(tiny_model(), tokenizer(), own).tolist()
    assert panel.scale != typical_norm(tiny_model(), tokenizer()).tolist()
    panel.force.value = 3.0
    push = (START, 3.0 * VECTORS["each layer"][START].direction)
    expected = [-plain_log_odds(tiny_model(), panel.prompt.value, p) for p in ([], [push])]
    assert panel.result.log_odds == pytest.approx(expected, abs=1e-4)


def test_a_panel_warns_beyond_the_limit_of_its_layer_and_sign_and_names_the_budget():
    limits = [[9, 9], [9, 9], [0.2, 0.3]]
    panel = Explorer(tiny_model(), tokenizer(), VECTORS, limits=limits, budget=0.5)
    panel.force.value = 0.25 * panel.scale[START]
    warning = "Beyond 0.20 norms this layer loses more than 0.5 bits per token when it reads"
    assert warning in Page(panel.sentence.value).text
    panel.layer.value = 0
    assert "Beyond" not in panel.sentence.value
    panel.layer.value = START
    panel.force.value = -0.25 * panel.scale[START]
    assert "Beyond" not in panel.sentence.value
    panel.force.value = -0.35 * panel.scale[START]
    assert "Beyond 0.30 norms" in panel.sentence.value
    panel.force.value = 0.15 * panel.scale[START]
    assert "Beyond" not in panel.sentence.value


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
    assert_shows(panel, Setting("We liked", "each layer", START, 3.0, 24, 0))


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


def in_browser(monkeypatch, story, waits=lambda: 0):
    """Run a coroutine in which the panel believes that every change came from a browser.

    ``waits`` tells how many messages wait for the thread of the cells.
    """

    async def run():
        errors = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, what: errors.append(what))
        kernel = SimpleNamespace(
            get_parent=lambda: {"msg_type": "comm_msg"},
            io_loop=IOLoop.current(),
            shell_channel_thread=None,
            shell_stream=SimpleNamespace(flush=lambda flag: waits()),
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
        panel.layer.value = 0
        assert not computed and panel.busy.value
        await settled(panel)
        assert [(setting.layer, setting.force) for setting in computed] == [(0, 4.0)]

    in_browser(monkeypatch, story)
    assert_shows(panel, Setting(FIRST, "each layer", 0, 4.0, 24, 0))


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
    assert_shows(panel, Setting(FIRST, "each layer", START, 3.0, 24, 3))


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
    assert_shows(panel, Setting(FIRST, "each layer", START, 3.0, 24, 0))


@contextmanager
def counting(passes, at=None, then=None):
    """Count the forward passes of the model; during one of them something happens."""

    def count(module, args):
        passes.append(1)
        if len(passes) == at:
            then()

    counter = tiny_model().register_forward_pre_hook(count)
    try:
        yield
    finally:
        counter.remove()


def in_another_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def passes_of_a_view(setting):
    with counting(passes := []):
        expected_result(setting)
    return len(passes)


@pytest.mark.parametrize("at", [1, 5, 24, 25])
def test_a_newer_setting_stops_the_older_within_a_token(panel, computed, monkeypatch, at):
    """From the other thread, as in JupyterLab; the 25th pass measures the finished text."""
    older = Setting(FIRST, "each layer", START, 3.0, 24, 0)
    newer = replace(older, seed=1)
    view, older_view = map(passes_of_a_view, (newer, older))
    assert at < older_view  # the text does not end before
    computed.clear()
    shown = []

    async def story():
        panel.force.value = 3.0
        await settled(panel)

    def move():
        shown.append((panel.result.setting, panel.busy.value))
        in_another_thread(lambda: setattr(panel.seed, "value", 1))

    with counting(passes := [], at, move):
        in_browser(monkeypatch, story)
    assert len(passes) == at + view
    assert computed == [older, newer]
    assert shown == [(Setting(FIRST, "each layer", START, 0.0, 24, 0), explorer.BUSY)]
    assert_shows(panel, newer)
    monkeypatch.setattr(explorer, "get_ipython", lambda: None)
    panel.seed.value = 0  # what was stopped is no answer
    assert computed == [older, newer, older]
    assert_shows(panel, older)


def test_whoever_waits_for_the_thread_of_the_cells_comes_first(panel, computed, monkeypatch):
    """As in Voilà, or when a cell is run: the same setting is then computed anew."""
    asked, between, done = [], [], []

    def waits():
        asked.append(1)
        if len(asked) == 7:
            IOLoop.current().add_callback(between.append, list(computed))
            return 2
        return 0

    async def story():
        panel.force.value = 3.0
        for _ in range(500):
            await asyncio.sleep(0.01)
            if panel.result is not None and panel.result.setting == panel.setting:
                done.append(1)
                break

    setting = Setting(FIRST, "each layer", START, 3.0, 24, 0)
    view = passes_of_a_view(setting)
    with counting(passes := []):
        in_browser(monkeypatch, story, waits)
    assert done and len(passes) == 7 + view
    assert between == [[setting]]
    assert computed == [setting, setting]
    assert_shows(panel, setting)


def test_a_setting_made_by_code_is_finished_whoever_waits(panel, computed, monkeypatch):
    kernel = SimpleNamespace(
        get_parent=lambda: {"msg_type": "execute_request"},
        shell_channel_thread=None,
        shell_stream=SimpleNamespace(flush=lambda flag: 1),
    )
    monkeypatch.setattr(explorer, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    panel.force.value = 3.0
    assert_shows(panel, Setting(FIRST, "each layer", START, 3.0, 24, 0))
    assert len(computed) == 1


class Frames:
    """What the panel shows, change by change, with a clock of its own."""

    def __init__(self, panel, monkeypatch, seconds):
        self.now, self.seen, self.panel = 0.0, [], panel
        monkeypatch.setattr(explorer, "monotonic", self.clock)
        self.seconds = seconds  # from one look at the clock to the next
        panel.texts.observe(self.note, "value")

    def clock(self):
        self.now += self.seconds
        return self.now

    def note(self, change):
        others = self.panel.sentence.value, self.panel.code.value, self.panel.result
        hidden = self.panel.chart.layout.visibility == "hidden"
        self.seen.append((change.new, self.panel.busy.value, *others, hidden))


@pytest.mark.parametrize(
    ("seconds", "drafts"), [(0.3, 24), (0.15, 23), (0.06, 11), (0.03, 0), (0.001, 0)]
)
def test_a_slow_text_is_shown_word_by_word(panel, monkeypatch, seconds, drafts):
    """A quick one is not: it would only flicker. At most ten frames a second are shown."""
    seen, computed_by = [], explorer.compute

    def watched(*args):
        *given, watch = args

        def look(texts):
            seen.append(texts[0])
            watch(texts)

        return computed_by(*given, look)

    monkeypatch.setattr(explorer, "compute", watched)
    frames = Frames(panel, monkeypatch, seconds)
    panel.force.value = 3.0
    *shown, (last, *_) = frames.seen
    assert len(shown) == drafts
    pages = [write_draft(text) for text in seen]
    places = [pages.index(html) for html, *_ in shown]
    assert places == sorted(set(places))  # base and steered grow together
    for _, busy, sentence, code, result, hidden in shown:
        # Nothing of the setting before stands beside the new text.
        assert busy == explorer.BUSY and result is None and hidden and not sentence + code
    assert last == panel.texts.value and "writing" not in last
    assert_shows(panel, Setting(FIRST, "each layer", START, 3.0, 24, 0))


def test_a_draft_is_never_left_as_if_it_were_final(panel, monkeypatch):
    """Neither of a text that was stopped nor of one that failed or was interrupted."""
    frames = Frames(panel, monkeypatch, 0.3)

    async def story():
        panel.force.value = 3.0
        await settled(panel)

    with counting([], 9, lambda: in_another_thread(lambda: panel.none.click())):
        in_browser(monkeypatch, story)
    assert sum("writing" in html for html, *_ in frames.seen) == 8
    assert_shows(panel, Setting(FIRST, "each layer", START, 0.0, 24, 0))  # it was in the cache
    monkeypatch.setattr(explorer, "get_ipython", lambda: None)
    for error, words in ((KeyboardInterrupt(), "KeyboardInterrupt"), (OSError("x"), "OSError: x")):

        def fail(error=error):
            raise error

        with no_hook_left(tiny_model()), pytest.raises(type(error)), counting([], 9, fail):
            panel.force.value = 3.0
        assert "writing" in frames.seen[-2][0]
        assert_shows_error(panel, words)
        panel.force.value = 0.0
        assert_shows(panel, Setting(FIRST, "each layer", START, 0.0, 24, 0))
    panel.force.value = 3.0
    assert_shows(panel, Setting(FIRST, "each layer", START, 3.0, 24, 0))


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
    assert_shows(panel, Setting("We liked", "each layer", START, 0.0, 24, 0))


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
