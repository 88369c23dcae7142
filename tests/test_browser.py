"""The notebooks as a visitor meets them: in JupyterLab and as a Voilà app, in Chromium.

Needs a Chromium or Chrome on this machine; without one these tests are skipped, unless
STEERING_NEEDS_BROWSER=1 forbids it. With STEERING_SCREENSHOT=1 the picture of the README is
made anew; otherwise nothing in the working tree changes.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from real_model import LACKING

BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "google-chrome", "chromium-browser"])), ""
)
try:
    from playwright.sync_api import TimeoutError, expect, sync_playwright
except ImportError:
    sync_playwright = None
if not (BROWSER and sync_playwright):
    get = "pip install -r requirements.txt, and on Debian or Ubuntu apt-get install chromium"
    lacking = f"the browser tests need playwright and a chromium or google-chrome in PATH: {get}"
    if os.environ.get("STEERING_NEEDS_BROWSER") == "1":
        pytest.fail(lacking, pytrace=False)
    pytest.skip(lacking, allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "06_steering_explorer.ipynb"
FIRST = ROOT / "notebooks" / "01_contrastive_pairs.ipynb"
PICTURE = ROOT / "images" / "explorer.png"
SECONDS_TO_START = 60
SECONDS_TO_RUN = 240  # all cells, on a busy machine
SECONDS_TO_ANSWER = 20  # one setting, likewise
SECONDS_TO_WRITE = 120  # one setting on the slow models
QUIET = ["gpu", "quic", "background-networking", "component-update", "sync"]
FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{word}" for word in QUIET)]
SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "docmanager-extension/plugin": '{"autosave": false}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',  # keeps every cell in the page
}
CONTROLS = [
    "Layer", "Layer number", "Force", "Force number", "Prompt", "New tokens", "Vector", "Seed",
    "No steering", "Reset",
]  # fmt: skip


@contextmanager
def serving(application, folder, *options):
    """Start a server on loopback, with configuration of its own; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    homes = ["CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"]
    environment = {**os.environ, **{f"JUPYTER_{home}": str(folder / home) for home in homes}}
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
    environment["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / "workspaces")
    environment["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this Python
    command = [sys.executable, "-m", application, *options, "--no-browser", f"--port={port}"]
    log = folder / f"{application}.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        for _ in range(5 * SECONDS_TO_START):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None:
                break
            time.sleep(0.2)
        else:
            pytest.fail(f"{application} did not start:\n{log.read_text()[-3000:]}")
        assert server.poll() is None, f"{application} ended:\n{log.read_text()[-3000:]}"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


# The explorer on a model that takes seconds: its passes are counted, and each may sleep a while.
SLOW = """
from time import sleep
import ipywidgets as widgets
from helpers.concepts import SENTIMENT
from helpers.directions import find_vectors
from helpers.explorer import explore
from helpers.models import load_model

model, tokenizer = load_model({model!r})
panel = explore(model, tokenizer, {{"found": find_vectors(model, tokenizer, SENTIMENT.pairs)}})

passes, clicks, counted = [], [], widgets.Label("not counted")


def hooks():
    parts = model.modules()
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)


def count(button):
    clicks.append(1)
    counted.value = f"counted {{len(clicks)}}: {{len(passes)}} passes, {{hooks() - 1}} hooks"


def slow(module, args):
    passes.append(1)
    sleep({seconds})


model.register_forward_pre_hook(slow)
button = widgets.Button(description="Count")
button.on_click(count)
widgets.HBox([button, counted])
"""
SLOW_MODELS = {"slow-bundled": ("pocket", 0.12), "real": ("smollm2", 0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the explorer without its outputs, so that what is seen has just been computed.

    One of the first notebook as it is stored. And the explorer alone on slow models.
    """
    folder = tmp_path_factory.mktemp("served")
    shutil.copy(FIRST, folder)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / NOTEBOOK.name)
    for name, (model, seconds) in SLOW_MODELS.items():
        notebook.cells = [nbformat.v4.new_code_cell(SLOW.format(model=model, seconds=seconds))]
        nbformat.write(notebook, folder / f"{name}.ipynb")
    for name, setting in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(setting)
    return folder


@pytest.fixture(scope="module")
def new_page():
    """Opens pages, each with a list ``complaints`` of what its console says is wrong."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        expect.set_options(timeout=1000 * SECONDS_TO_ANSWER)

        def new_page(width):
            page = browser.new_page(
                viewport={"width": width, "height": 1300}, device_scale_factor=2
            )
            page.complaints = []
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.on("console", lambda message: note(page, message))
            return page

        yield new_page
        browser.close()


def note(page, message):
    """Keep an error, unless another site is out of reach: Voilà asks one for icons."""
    url = message.location.get("url", "")
    elsewhere = url.startswith("http") and not url.startswith("http://127.0.0.1:")
    if message.type == "error" and not (elsewhere and "Failed to load resource" in message.text):
        page.complaints.append(f"{message.text} ({url})")


class Panel:
    """The panel in a page, and what a visitor can see of it."""

    def __init__(self, page):
        self.page = page
        label = page.get_by_text("Force number", exact=True)
        self.box = page.locator(".widget-vbox").filter(has=label)
        self.sentence = self.box.locator("div[role=status], b[role=alert]")
        self.texts = self.box.locator(".widget-html").filter(has_text="Unsteered")
        self.chart = self.box.locator("img")

    def control(self, name):
        return self.box.get_by_label(name, exact=True)

    def slider(self, name):
        label = self.page.locator(".widget-label").get_by_text(name, exact=True)
        return self.box.locator(".widget-slider").filter(has=label)

    def handle(self, name):
        return self.slider(name).get_by_role("slider")

    def button(self, name):
        return self.box.get_by_role("button", name=name, exact=True)

    def height(self):
        return self.box.bounding_box()["height"]

    def view(self):
        """What stands there now; the chart by the address of its picture."""
        texts = self.texts.inner_text() if self.texts.count() else ""
        return self.sentence.inner_text(), texts, self.chart.get_attribute("src")

    def start_again(self):
        self.button("Reset").click()
        expect(self.sentence).to_contain_text("No steering")
        expect(self.control("Force number")).to_have_value("0")


def run_all(page, first_prompt):
    """Choose Run All Cells until it is heard: on a fresh kernel it is lost now and then."""
    for attempt in range(10):
        try:
            page.keyboard.press("Escape")  # closes a menu that was left open
            page.get_by_role("menuitem", name="Run", exact=True).click(timeout=4000)
            page.get_by_text("Run All Cells", exact=True).click(timeout=4000)
            expect(first_prompt).to_have_text(re.compile(r"\[[*\d]+\]"), timeout=4000)
            return
        except (AssertionError, TimeoutError):
            if attempt == 9:
                raise


@pytest.fixture(scope="module")
def lab(folder):
    """The address of a JupyterLab that serves the folder."""
    options = ["--allow-root", "--ip=127.0.0.1", "--IdentityProvider.token="]
    with serving("jupyterlab", folder, *options) as address:
        yield address


def open_notebook(page, lab, notebook):
    """Open a notebook in JupyterLab; returns the prompts of its code cells."""
    page.goto(f"{lab}/lab/workspaces/{notebook.stem}/tree/{notebook.name}")
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    idle.wait_for(timeout=1000 * SECONDS_TO_START)
    return page.locator(".jp-CodeCell .jp-InputPrompt")


@pytest.fixture(scope="module")
def opened(lab, new_page):
    """The panel in JupyterLab, after all cells were run."""
    page = new_page(1150)
    prompts = open_notebook(page, lab, NOTEBOOK)
    run_all(page, prompts.first)
    expect(prompts.last).to_have_text(re.compile(r"\[\d+\]"), timeout=1000 * SECONDS_TO_RUN)
    assert page.locator(".jp-OutputArea-output[data-mime-type*=error]").count() == 0
    yield Panel(page)
    page.close()


@pytest.fixture
def panel(opened):
    """The panel as it is at the start; the page must not complain."""
    opened.start_again()
    yield opened
    assert opened.page.complaints == []


def number(control):
    return float(control.input_value())


def test_predictions_are_folded_until_they_are_run(lab, new_page):
    cells = nbformat.read(FIRST, as_version=4).cells
    predicted = [c for c in cells if c.metadata.get("jupyter", {}).get("outputs_hidden")]
    assert predicted
    page = new_page(1150)
    prompts = open_notebook(page, lab, FIRST)
    folded = page.locator(".jp-CodeCell .jp-OutputPlaceholder")
    expect(folded).to_have_count(len(predicted))
    for placeholder in folded.all():
        assert len(placeholder.inner_text()) < 150  # one line of the output, no more
    run_all(page, prompts.first)
    expect(prompts.last).to_have_text(re.compile(r"\[\d+\]"), timeout=1000 * SECONDS_TO_RUN)
    expect(folded).to_have_count(0)
    page.close()


def test_arrow_keys_move_the_force(panel):
    before = panel.view()
    panel.handle("Force").focus()
    for key, sign in (("ArrowRight", 1), ("PageUp", 1), ("End", 1), ("Home", -1), ("PageDown", -1)):
        panel.button("No steering").press("Enter")
        expect(panel.control("Force number")).to_have_value("0")
        panel.handle("Force").press(key)
        expect(panel.control("Force number")).not_to_have_value("0")
        force = number(panel.control("Force number"))
        assert force * sign > 0, key
        expect(panel.sentence).to_contain_text(f"force {force:+g}")
        expect(panel.slider("Force")).to_contain_text(f"{force:+g}")
    expect(panel.box.locator("u")).not_to_be_empty()
    expect(panel.chart).not_to_have_attribute("src", before[2])
    assert all(new != old for new, old in zip(panel.view(), before, strict=True))


def test_quick_keys_end_at_the_latest_setting(panel):
    panel.handle("Force").focus()
    for key in ("ArrowRight",) * 8 + ("ArrowLeft",) * 2:
        panel.page.keyboard.press(key)
    expect(panel.slider("Force")).to_contain_text("+0.25 norms")
    expect(panel.sentence).to_contain_text("0.25 typical norms")
    expect(panel.box.locator("pre")).to_contain_text(
        f"force={number(panel.control('Force number')):g}"
    )
    panel.page.wait_for_timeout(500)  # nothing older comes in afterwards
    expect(panel.sentence).to_contain_text("0.25 typical norms")


def test_nothing_fires_while_the_slider_is_dragged(panel):
    mouse, before = panel.page.mouse, panel.view()
    panel.handle("Force").scroll_into_view_if_needed()
    handle = panel.handle("Force").bounding_box()
    track = panel.slider("Force").locator(".noUi-base").bounding_box()
    y = handle["y"] + handle["height"] / 2
    mouse.move(handle["x"] + handle["width"] / 2, y)
    mouse.down()
    for share in (0.4, 0.3, 0.2, 0.25):
        mouse.move(track["x"] + share * track["width"], y, steps=4)
        panel.page.wait_for_timeout(150)
    expect(panel.slider("Force")).not_to_contain_text("+0.00 norms")  # the reading moves along
    panel.page.wait_for_timeout(600)
    assert panel.view() == before
    assert panel.control("Force number").input_value() == "0"
    mouse.up()
    expect(panel.sentence).to_contain_text("force -")
    expect(panel.chart).not_to_have_attribute("src", before[2])
    assert number(panel.control("Force number")) < 0
    assert panel.view()[1] != before[1]


def test_layer_and_numbers_follow_each_other(panel):
    panel.control("Force number").fill("60")
    panel.control("Force number").press("Enter")
    expect(panel.sentence).to_contain_text("force +60")
    expect(panel.slider("Force")).to_contain_text("+60 (")  # no mark of its own: it gets one
    shown = panel.view()
    layer = int(number(panel.control("Layer number")))
    panel.handle("Layer").press("ArrowRight")
    expect(panel.sentence).to_contain_text(f"Layer {layer + 1}, force +60")
    expect(panel.control("Layer number")).to_have_value(str(layer + 1))
    expect(panel.chart).not_to_have_attribute("src", shown[2])
    panel.control("Layer number").fill(str(layer))
    panel.control("Layer number").press("Enter")
    expect(panel.sentence).to_have_text(shown[0])
    expect(panel.slider("Layer").locator(".widget-readout")).to_have_text(str(layer))
    assert panel.view()[:2] == shown[:2]  # back, from the cache


def test_prompt_vector_length_and_seed(panel):
    prompt = panel.control("Prompt")
    prompt.fill('<b>The zebra</b> & "it\'s" **was**')
    panel.page.wait_for_timeout(300)
    assert "zebra" not in panel.view()[1]  # typing alone starts nothing
    prompt.press("Enter")
    expect(panel.texts).to_contain_text('<b>The zebra</b> & "it\'s" **was**')
    for name, value in (("New tokens", "5"), ("Seed", "7")):
        old = panel.view()[1]
        panel.control(name).fill(value)
        panel.control(name).press("Enter")
        expect(panel.texts).not_to_have_text(old)
    panel.control("Force number").fill("100")
    panel.control("Force number").press("Enter")
    expect(panel.sentence).to_contain_text("force +100")
    sentence = panel.sentence.inner_text()
    names = panel.control("Vector").locator("option").all_inner_texts()
    assert len(names) >= 2
    panel.control("Vector").select_option(names[1])
    expect(panel.sentence).not_to_have_text(sentence)
    expect(panel.box.locator("pre")).to_contain_text(f"vectors['{names[1]}']")


def test_buttons(panel):
    start = panel.view()
    panel.handle("Layer").press("End")
    panel.handle("Force").press("Home")
    panel.control("Prompt").fill("We liked")
    panel.control("Prompt").press("Enter")
    expect(panel.texts).to_contain_text("We liked")
    expect(panel.sentence).to_contain_text("force -")
    panel.button("No steering").click()
    expect(panel.sentence).to_contain_text("No steering")
    expect(panel.texts).to_contain_text("We liked")
    expect(panel.slider("Force")).to_contain_text("+0.00 norms")
    panel.button("Reset").click()
    expect(panel.texts).not_to_contain_text("We liked")
    assert panel.view()[:2] == start[:2]


def test_error_stands_in_the_panel_until_the_next_good_setting(panel):
    height = panel.height()
    panel.control("Prompt").fill(" ")
    panel.control("Prompt").press("Enter")
    alert = panel.box.get_by_role("alert")
    expect(alert).to_contain_text("empty")
    expect(panel.chart).not_to_be_visible()
    assert abs(panel.height() - height) <= 2
    panel.handle("Force").press("ArrowRight")
    panel.page.wait_for_timeout(500)
    expect(alert).to_contain_text("empty")
    panel.control("Prompt").fill("We liked")
    panel.control("Prompt").press("Enter")
    expect(panel.sentence).to_contain_text("force +")
    expect(panel.chart).to_be_visible()
    assert alert.count() == 0


def tab_to(page, control):
    """Press Tab until the control has the focus; the reading of a slider may come between."""
    page.keyboard.press("Tab")
    if not control.evaluate("control => control === document.activeElement"):
        page.keyboard.press("Tab")
    expect(control).to_be_focused()


def test_the_keyboard_alone_reaches_and_moves_everything(panel):
    """In the order of the labels; no mouse is used once the first control has the focus."""
    keyboard, force = panel.page.keyboard, panel.control("Force number")
    labels = panel.box.locator(".widget-label, button").filter(visible=True)
    assert [label.strip() for label in labels.all_inner_texts() if label.strip()] == CONTROLS
    for name in CONTROLS:
        if name == "Layer":
            panel.handle(name).focus()
            keyboard.press("ArrowRight")
            expect(panel.control("Layer number")).not_to_have_value("0")
        elif name == "Force":
            tab_to(panel.page, panel.handle(name))
            keyboard.press("ArrowRight")
            expect(panel.sentence).to_contain_text("force +")
        elif name in ("No steering", "Reset"):
            tab_to(panel.page, panel.button(name))
            keyboard.press("Space")
            expect(force).to_have_value("0")
        else:
            tab_to(panel.page, panel.control(name))
            value = panel.control(name).input_value()
            if name == "Prompt":
                keyboard.press("Control+a")
                keyboard.type("We liked")
            # Space opens the list; JupyterLab takes the arrow keys of a closed one for itself.
            for key in (
                ("Space", "ArrowDown", "Enter") if name == "Vector" else ("ArrowUp", "Enter")
            ):
                keyboard.press(key)
            expect(panel.control(name)).not_to_have_value(value)
    expect(panel.control("Prompt")).not_to_have_value("We liked")  # the last key was Reset


def test_nothing_jumps_from_setting_to_setting(panel):
    heights = [panel.height()]
    for layer, share in (("Home", "End"), ("End", "End"), ("Home", "Home"), ("End", "Home")):
        panel.handle("Layer").press(layer)
        panel.handle("Force").press(share)
        expect(panel.sentence).to_contain_text("force +" if share == "End" else "force -")
        expect(panel.sentence).to_contain_text(
            "Layer 0," if layer == "Home" else re.compile("Layer [1-9]")
        )
        heights.append(panel.height())
    panel.control("New tokens").fill("60")
    panel.control("New tokens").press("Enter")
    expect(panel.box.locator("pre")).to_contain_text("max_new_tokens=60")
    heights.append(panel.height())
    assert max(heights) - min(heights) <= 2, heights


def test_a_picture_worth_showing(panel, tmp_path):
    panel.control("Layer number").fill("8")
    panel.control("Layer number").press("Enter")
    panel.handle("Force").focus()
    for _ in range(5):
        panel.page.keyboard.press("ArrowLeft")
    expect(panel.sentence).to_contain_text("Layer 8, force -")
    expect(panel.sentence).to_contain_text("0.20 typical norms")
    expect(panel.box.locator("u")).not_to_be_empty()
    assert panel.chart.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    panel.page.mouse.move(0, 0)
    file = PICTURE if os.environ.get("STEERING_SCREENSHOT") == "1" else tmp_path / PICTURE.name
    panel.box.scroll_into_view_if_needed()
    box = panel.box.bounding_box()
    corner = {"x": box["x"] - 10, "y": box["y"]}  # a margin at the left; no other cell
    panel.page.screenshot(
        path=file, clip={**corner, "width": box["width"] + 10, "height": box["height"] - 8}
    )
    assert file.stat().st_size > 20_000


@contextmanager
def as_app(folder, name, page, kind):
    """The panel of a notebook that Voilà serves."""
    with serving("voila", folder, name, "--Voila.ip=127.0.0.1") as address:
        page.goto(address, wait_until="commit")
        panel = kind(page)
        panel.box.wait_for(timeout=1000 * SECONDS_TO_RUN)
        yield panel
        page.close()


@pytest.fixture(scope="module")
def app(folder, new_page):
    """The panel in a Voilà app on a narrow screen."""
    with as_app(folder, NOTEBOOK.name, new_page(400), Panel) as panel:
        yield panel


def test_app_on_a_narrow_screen(app):
    expect(app.sentence).to_contain_text("No steering")
    before, height = app.view(), app.height()
    assert app.page.get_by_text("from helpers").count() == 0  # no code cells
    app.handle("Force").press("End")
    expect(app.sentence).to_contain_text("1.50 typical norms")
    expect(app.chart).not_to_have_attribute("src", before[2])
    assert app.view()[1] != before[1]
    app.handle("Layer").press("Home")
    expect(app.sentence).to_contain_text("Layer 0")
    app.control("Prompt").fill("We liked")
    app.control("Prompt").press("Enter")
    expect(app.texts).to_contain_text("We liked")
    assert abs(app.height() - height) <= 2
    unsteered = app.texts.get_by_text("Unsteered", exact=True).bounding_box()
    steered = app.texts.get_by_text("Steered", exact=True).bounding_box()
    assert steered["x"] == unsteered["x"] and steered["y"] > unsteered["y"] + 100
    for shown in (app.sentence, app.texts, app.chart, *map(app.control, CONTROLS[4:8])):
        box = shown.bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= 400
    app.button("Reset").click()
    expect(app.sentence).to_contain_text("No steering")
    assert app.view()[:2] == before[:2]
    assert app.page.complaints == []


class SlowPanel(Panel):
    """The panel on a slow model, with all that it has shown since the latest setting."""

    def press(self, name, key):
        self.box.evaluate(
            """box => {
                window.shown = [];
                window.began = performance.now();
                window.observer?.disconnect();
                window.observer = new MutationObserver(() => window.shown.push(
                    [performance.now() - window.began, box.innerText]));
                const all = {subtree: true, childList: true, characterData: true};
                window.observer.observe(box, all);
            }"""
        )
        self.handle(name).press(key)

    def drafts(self):
        """[(seconds since the key, both texts)], of each text that was not at its end."""
        found = []
        for milliseconds, text in self.page.evaluate("window.shown"):
            texts = text.partition("Unsteered")[2].split(" · writing …")
            if len(texts) == 3 and (not found or texts != found[-1][1]):
                found.append((milliseconds / 1000, texts))
        return found

    def wait_for_words(self):
        expect(self.texts).to_contain_text("writing …", timeout=1000 * SECONDS_TO_WRITE)

    def wait_for_answer(self):
        """Until all of the view is that of the controls."""
        expect(self.texts).to_contain_text("perplexity", timeout=1000 * SECONDS_TO_WRITE)
        layer, force = (number(self.control(f"{name} number")) for name in ("Layer", "Force"))
        expect(self.sentence).to_contain_text(f"Layer {layer:g}, force {force:+g}")
        expect(self.box.locator("pre")).to_contain_text(f"[{layer:g}], force={force:g}")
        expect(self.texts).not_to_contain_text("writing")
        expect(self.chart).to_be_visible()

    def count(self):
        """Forward passes so far, and hooks that are not the test's."""
        label = self.page.locator(".widget-label").filter(has_text="counted")
        before = label.inner_text()
        self.page.get_by_role("button", name="Count", exact=True).click()
        expect(label).not_to_have_text(before)
        return map(int, re.findall(r"(\d+) passes, (\d+) hooks", label.inner_text())[0])


@pytest.fixture(scope="module", params=["lab, slow-bundled", "voila, slow-bundled", "lab, real"])
def slow(request, folder, new_page):
    """The panel on a slow model, in JupyterLab or as a Voilà app."""
    application, name = request.param.split(", ")
    if name == "real" and LACKING:
        pytest.skip(LACKING)
    notebook = folder / f"{name}.ipynb"
    page = new_page(1150)
    if application == "voila":
        with as_app(folder, notebook.name, page, SlowPanel) as panel:
            yield panel
        return
    prompts = open_notebook(page, request.getfixturevalue("lab"), notebook)
    run_all(page, prompts.first)
    expect(prompts.last).to_have_text(re.compile(r"\[\d+\]"), timeout=1000 * SECONDS_TO_RUN)
    panel = SlowPanel(page)
    panel.box.wait_for(timeout=1000 * SECONDS_TO_RUN)
    yield panel
    page.close()


def test_a_slow_text_appears_word_by_word_until_a_newer_setting_stops_it(slow):
    before, _ = slow.count()
    slow.press("Force", "PageUp")
    slow.wait_for_words()
    slow.wait_for_answer()
    drafts = slow.drafts()
    assert len(drafts) >= 5 and drafts[0][0] < SECONDS_TO_ANSWER
    for column in (1, 2):
        lengths = [len(texts[column]) for _, texts in drafts]
        assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
    assert drafts[-1][0] - drafts[0][0] > 0.5  # they came one after the other
    view, hooks = slow.count()
    view -= before
    assert 10 < view <= 26 and hooks == 0

    # A control that was not moved before is heard on another way than one that was.
    # Each setting is a new one: the panel keeps its answers, and writes none of them again.
    onwards = {"Force": "ArrowRight", "Layer": "ArrowLeft"}
    for first, second in (("Force", "Layer"), ("Layer", "Layer"), ("Layer", "Force")):
        before, _ = slow.count()
        slow.press(first, onwards[first])
        slow.wait_for_words()
        slow.press(second, onwards[second])
        slow.wait_for_words()
        slow.wait_for_answer()
        passes, hooks = slow.count()
        assert passes - before < 26 + 16, (first, second)  # both in full are 52
        assert hooks == 0
    shown = slow.view()
    slow.page.wait_for_timeout(1000)  # nothing older comes in afterwards
    assert slow.view() == shown
    assert slow.page.complaints == []
