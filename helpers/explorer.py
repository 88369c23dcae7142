"""Sliders for layer and force (notebook 05).

What the panel shows is made by pure functions, ``compute`` and the ``draw_…`` and ``write_…``
below; the notebook draws its static twin with the same ones. The panel only decides when.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from math import isnan
from os.path import commonprefix

import ipywidgets as widgets
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from . import plots
from .activations import typical_norm
from .directions import SteeringVector
from .evaluation import DEV_PROMPTS, NEGATIVE_WORDS, POSITIVE_WORDS, perplexity, word_ids
from .models import SteeringError, encode
from .steering import generate, steer

# Shares of the typical norm on the force slider: finer near 0, where the text still makes sense.
SHARES = [0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5]
SHARES = [-share for share in SHARES[:0:-1]] + SHARES


@dataclass(frozen=True)
class Setting:
    """Everything that decides what the panel shows."""

    prompt: str
    vector: str  # its name
    layer: int
    force: float
    length: int  # new tokens
    seed: int


@dataclass(frozen=True)
class Result:
    """What a setting does. Each pair is (unsteered, steered)."""

    setting: Setting
    share: float  # of the typical norm at this layer
    texts: tuple[str, str]
    log_odds: tuple[float, float]
    perplexity: tuple[float, float]
    # The ten next tokens that changed most, at force 0 the likeliest: word, before, after.
    words: list[tuple[str, float, float]]


@torch.inference_mode()  # a little faster than no_grad; only numbers and text leave it
def compute(model, tokenizer, vector, setting, norm) -> Result:
    """Text and next-word probabilities without and with steering.

    ``norm`` is the typical norm at the setting's layer. Raises SteeringError as ``generate`` does.
    """
    prompts, layer = [setting.prompt] * 2, setting.layer
    forces = torch.tensor([0, setting.force])
    text = generate(
        model, tokenizer, prompts[:1], vector, setting.force, layer,
        max_new_tokens=setting.length, seed=setting.seed,
    )[0]  # fmt: skip
    surprise = perplexity(model, tokenizer, prompts, [text.base, text.steered])
    with steer(model, vector, forces, layer):
        batch = encode(model, tokenizer, prompts)
        logits = model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1].float().cpu()
    good, bad = (word_ids(tokenizer, words) for words in (POSITIVE_WORDS, NEGATIVE_WORDS))
    odds = logits[:, good].logsumexp(1) - logits[:, bad].logsumexp(1)  # as in ``log_odds``
    before, after = logits.softmax(-1)
    moved = (after - before).abs() if setting.force else before  # or the likeliest
    changed = moved.topk(10).indices
    ordered = changed[(after - before)[changed].argsort(descending=True, stable=True)]
    words = [(tokenizer.decode([i]), before[i].item(), after[i].item()) for i in ordered]
    return Result(
        setting,
        setting.force / norm,
        (text.base, text.steered),
        tuple(odds.tolist()),
        tuple(surprise.tolist()),
        words,
    )


def write_sentence(result, limit=None) -> str:
    """The result in words, with a warning if the share is beyond ``limit`` to either side."""
    s = result.setting
    if s.force == 0:
        return "No steering: both texts are the model's own."
    effect = result.log_odds[1] - result.log_odds[0]
    ratio = result.perplexity[1] / result.perplexity[0]
    cost = "a text is empty" if isnan(ratio) else f"perplexity ×{ratio:.1f}"
    sentence = (
        f"Layer {s.layer}, force {s.force:+g}, {abs(result.share):.2f} of the typical norm: "
        f"log-odds {effect:+.1f}, {cost}."
    )
    if limit is not None and round(abs(result.share), 2) > round(limit, 2):
        sentence += f" Beyond {limit:.2f} norms the text tends to break at this layer."
    return sentence


def write_code(setting, by_layer=True) -> str:
    """A line that makes the same texts; ``by_layer`` if its vector is a list, one a layer."""
    where = f"[{setting.layer}]" if by_layer else ""
    layer = "" if by_layer else f"layer={setting.layer}, "
    return (
        f"generate(model, tokenizer, [{setting.prompt!r}], "
        f"vectors[{setting.vector!r}]{where}, force={setting.force:.10g}, {layer}"
        f"max_new_tokens={setting.length}, seed={setting.seed})"
    )


def write_texts(result) -> str:
    """HTML of both texts side by side, one above the other on a narrow screen.

    The prompt is bold; what steering changed is underlined.
    """
    base, steered = result.texts
    same = len(commonprefix([base, steered]))
    columns = ""
    for i, name, text in ((0, "Unsteered", base), (1, "Steered", steered)):
        changed = escape(text[same:])
        surprise = result.perplexity[i]
        cost = "empty" if isnan(surprise) else f"perplexity {surprise:.0f}"
        columns += (
            '<div style="flex:1 1 260px;height:9.5em;overflow-y:auto;padding:0 1em 0 0">'
            f"<div><b>{name}</b> · log-odds {result.log_odds[i]:+.1f} · {cost}</div>"
            '<div style="white-space:pre-wrap;line-height:1.4">'
            f"<b>{escape(result.setting.prompt)}</b>{escape(text[:same])}"
            f"{f'<u>{changed}</u>' if i else changed}</div></div>"
        )
    return f'<div style="display:flex;flex-wrap:wrap">{columns}</div>'


def draw_words(result) -> Figure:
    """Bar chart of the next tokens whose probability changed most, before and after."""
    figure = Figure(figsize=(7, 3.2), dpi=90, layout="none")  # twice as fast as a fitted layout
    ax = figure.add_axes((0.18, 0.15, 0.8, 0.73))
    words, before, after = zip(*result.words, strict=True)
    rows = -np.arange(len(words))
    outline = {"color": "white", "edgecolor": plots.NEUTRAL}  # tells them apart without colour
    ax.barh(rows + 0.2, before, 0.36, label="unsteered", **outline)
    ax.barh(rows - 0.2, after, 0.36, color=plots.POSITIVE, label="steered")
    ax.set_yticks([])  # plain text draws faster than ticks
    beside = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "center"}
    for row, word in zip(rows, words, strict=True):
        ax.text(-0.01, row, word.strip() or repr(word), parse_math=False, **beside)  # "$" is text
    ax.locator_params(axis="x", nbins=4)
    ax.set(xlabel="probability of the next token")
    title = "next tokens that changed most" if result.setting.force else "likeliest next tokens"
    figure.suptitle(title, x=0.18, y=0.97, ha="left", fontsize=10)
    figure.legend(loc="upper right", ncols=2)
    return figure


def completions(model, tokenizer, prompt, vectors, layers, shares, scale, seed=0):
    """Steered texts of one prompt for some layers and forces, as the rows of a table.

    One batch: each row of it has its own layer and force. The first row is the head.
    """
    pairs = [(layer, share) for layer in layers for share in shares]
    forces = torch.zeros(len(layers), len(pairs))
    for row, (layer, share) in enumerate(pairs):
        forces[layers.index(layer), row] = share * scale[layer]
    chosen = [vectors[layer] for layer in layers]
    texts = generate(model, tokenizer, [prompt] * len(pairs), chosen, forces, seed=seed)
    rows = [
        (str(layer), f"{share:+.2f}", " ".join(text.steered.split()))
        for (layer, share), text in zip(pairs, texts, strict=True)
    ]
    return [("Layer", "Share of the norm", f"{prompt} …"), *rows]


def show_table(rows):
    """Display a table whose first row is its head: as HTML, and as text where that is shown."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)) for row in rows]
    text = "\n".join(line.rstrip() for line in lines)
    display({"text/html": plots.html_table(rows), "text/plain": text}, raw=True)


# The busy sign shows only when an answer takes longer than 0.2 s: quick ones do not flicker.
BUSY = (
    "<style>@keyframes steering-busy{to{opacity:1}}</style><span role='status' "
    "style='opacity:0;animation:steering-busy 0s .2s forwards'>computing …</span>"
)


# A larger picture, made sooner.
QUICK = {"pil_kwargs": {"compress_level": 1}}


class Explorer:
    """The panel. Its controls are ipywidgets, so that ``panel.force.value = 40`` moves it.

    ``panel.result`` is what it shows: a ``Result``, or None after an error, which stands in the
    panel. A setting made by code is computed at once, and its error is raised there. One made
    in the browser waits until all that were made meanwhile have come in: the latest counts.
    """

    def __init__(self, model, tokenizer, vectors, limits=None, prompt=DEV_PROMPTS[0]):
        self.scale, self.limits = typical_norm(model, tokenizer).tolist(), limits
        self.result, self._quiet, self._scheduled = None, True, False

        @lru_cache(maxsize=500)
        def answer(setting):
            vector = vectors[setting.vector]
            by_layer = not isinstance(vector, SteeringVector)
            vector = vector[setting.layer] if by_layer else vector
            result = compute(model, tokenizer, vector, setting, self.scale[setting.layer])
            return (
                result,
                plots.png(draw_words(result), **QUICK),
                write_code(setting, by_layer),
            )

        self._answer = answer
        layer, top = len(self.scale) // 3, len(self.scale) - 1
        self.layer_slider = _control(widgets.IntSlider, "Layer", value=layer, max=top)
        self.layer = _control(widgets.BoundedIntText, "Layer number", value=layer, max=top)
        self.force_slider = _control(
            widgets.SelectionSlider, "Force", options=self._marks(layer), value=0
        )
        self.force = _control(widgets.BoundedFloatText, "Force number", value=0.0)
        self.prompt = _control(widgets.Combobox, "Prompt", value=prompt, options=tuple(DEV_PROMPTS))
        self.vector = _control(widgets.Dropdown, "Vector", options=list(vectors))
        self.length = _control(widgets.BoundedIntText, "New tokens", value=24, min=1, max=60)
        self.seed = _control(widgets.BoundedIntText, "Seed", value=0, max=9999)
        # What makes a setting, in the order of its fields; the sliders only follow.
        self._fields = (self.prompt, self.vector, self.layer, self.force, self.length, self.seed)
        start = [control.value for control in self._fields]
        self.none = widgets.Button(description="No steering", tooltip="Set the force to 0")
        self.none.on_click(lambda button: self._set([self.force], [0.0]))
        self.reset = widgets.Button(description="Reset", tooltip="All as at the start")
        self.reset.on_click(lambda button: self._set(self._fields, start))

        self.busy = widgets.HTML()
        self.code = widgets.HTML(layout=widgets.Layout(height="6em", overflow="auto"))
        self.sentence = widgets.HTML(layout=widgets.Layout(height="4.4em", overflow="auto"))
        self.texts = widgets.HTML(layout=widgets.Layout(min_height="11em"))
        self.chart = widgets.Image(width=630, height=288)
        self.chart.layout = widgets.Layout(max_width="100%", object_fit="contain")
        rows = [
            (self.layer_slider, self.layer),
            (self.force_slider, self.force),
            (self.prompt, self.length),
            (self.vector, self.seed),
            (self.none, self.reset, self.busy),
        ]
        flow = widgets.Layout(flex_flow="row wrap", align_items="center")
        boxes = [widgets.Box(row, layout=flow) for row in rows]
        view = [self.sentence, self.texts, self.chart, self.code]
        self.widget = widgets.VBox(boxes + view)
        for control in (*self._fields, self.layer_slider, self.force_slider):
            control.observe(self._changed, "value")
        self._align(None)
        self._quiet = False
        self.update()

    @property
    def setting(self) -> Setting:
        """What the controls say now."""
        return Setting(*(control.value for control in self._fields))

    def update(self):
        """Show the current setting: from the cache, or computed now."""
        setting = self.setting
        self.busy.value = BUSY
        try:
            self.result, self.chart.value, code = self._answer(setting)
            self.chart.layout.visibility = "visible"
            limit = None if self.limits is None else float(self.limits[setting.layer])
            self.sentence.value = _message(write_sentence(self.result, limit), "status")
            self.texts.value = write_texts(self.result)
            self.code.value = f"<pre style='white-space:pre-wrap'>{escape(code)}</pre>"
        except Exception as error:
            kind = "" if isinstance(error, SteeringError) else f"{type(error).__name__}: "
            self.result = None
            self.sentence.value = _message(f"{kind}{error}", "alert")
            self.texts.value = self.code.value = ""
            self.chart.layout.visibility = "hidden"  # it keeps its place
            raise
        finally:
            self.busy.value = ""

    def _changed(self, change):
        if self._quiet:
            return
        self._quiet = True
        try:
            self._align(change.owner)
        finally:
            self._quiet = False
        self._request()

    def _align(self, moved):
        """Bring sliders and numbers to one setting after a control was moved."""
        if moved is self.layer_slider:
            self.layer.value = self.layer_slider.value
        if moved is self.force_slider:
            self.force.value = _rounded(self.force_slider.value * self.scale[self.layer.value])
            return
        # The force stays when the layer changes; the norm, and with it the marks, do not.
        norm = self.scale[self.layer.value]
        self.layer_slider.value = self.layer.value
        self.force.min, self.force.max = (_rounded(SHARES[i] * norm) for i in (0, -1))
        self.force.step = float(f"{norm / 100:.1g}")
        self.force_slider.options = self._marks(self.layer.value)
        self.force_slider.value = min(SHARES, key=lambda x: abs(x - self.force.value / norm))

    def _marks(self, layer):
        norm = self.scale[layer]
        return [(f"{_rounded(share * norm):+g} ({share:+.2f} norms)", share) for share in SHARES]

    def _set(self, controls, values):
        """Move several controls as one change."""
        self._quiet = True
        try:
            for control, value in zip(controls, values, strict=True):
                control.value = value
            self._align(None)
        finally:
            self._quiet = False
        self._request()

    def _request(self):
        kernel = getattr(get_ipython(), "kernel", None)
        if kernel is None or kernel.get_parent().get("msg_type") != "comm_msg":
            self.update()
        elif not self._scheduled:
            self._scheduled = True
            self.busy.value = BUSY
            # JupyterLab's messages come in a thread beside that of the cells. Computed there, a
            # setting would steer what a cell runs on the same model, and be steered by it.
            loop = kernel.io_loop
            # Whatever was moved during a computation is read before this fires.
            loop.add_callback(loop.call_later, 0.02, self._answer_browser)

    def _answer_browser(self):
        self._scheduled = False
        with suppress(SteeringError):  # it stands in the panel; others go to the kernel's log too
            self.update()


def explore(model, tokenizer, vectors, limits=None, prompt=DEV_PROMPTS[0]) -> Explorer:
    """Show the panel, and return it.

    Parameters
    ----------
    vectors : dict of str to (list of SteeringVector, or one of them)
        What can be added, by name. A list has one vector for each layer, as ``find_vectors``
        returns it; a single vector is added at whichever layer is chosen.
    limits : sequence of float, optional
        For each layer the share of its typical norm beyond which to warn.
    prompt : str
        To begin with.
    """
    panel = Explorer(model, tokenizer, vectors, limits, prompt)
    _show(panel.widget, "Steering explorer: run this cell for its sliders.")
    return panel


class LayerExplorer:
    """A figure that depends on the layer, with a slider: ``panel.layer.value = 3`` moves it."""

    def __init__(self, draw, n_layer):
        top = n_layer - 1
        self.layer_slider = _control(widgets.IntSlider, "Layer", value=top // 2, max=top)
        self.layer = _control(widgets.BoundedIntText, "Layer number", value=top // 2, max=top)
        self.image = widgets.Image(layout=widgets.Layout(max_width="100%"))
        widgets.link((self.layer_slider, "value"), (self.layer, "value"))
        picture = lru_cache(lambda layer: plots.png(draw(layer)))

        def update(change):
            self.image.value = picture(self.layer.value)

        self.layer.observe(update, "value")
        update(None)
        flow = widgets.Layout(flex_flow="row wrap", align_items="center")
        row = widgets.Box([self.layer_slider, self.layer], layout=flow)
        self.widget = widgets.VBox([row, self.image])


def explore_layers(draw, n_layer) -> LayerExplorer:
    """Show ``draw(layer)``, a function that returns a figure, with a slider; return the panel."""
    panel = LayerExplorer(draw, n_layer)
    _show(panel.widget, "Figure by layer: run this cell for its slider.")
    return panel


def _control(kind, name, **values):
    """A labelled control; one that would fire while it is dragged or typed in does not."""
    wide = kind in (widgets.IntSlider, widgets.SelectionSlider, widgets.Combobox, widgets.Dropdown)
    layout = widgets.Layout(width="440px" if wide else "190px", max_width="100%")
    style = {"description_width": "100px"}
    if kind is not widgets.Dropdown:
        values["continuous_update"] = False
    return kind(description=name, style=style, layout=layout, **values)


def _rounded(force):
    """To three figures: enough to tell forces apart at any scale of the residual stream."""
    return float(f"{force:.3g}")


def _message(text, role):
    tag = "b" if role == "alert" else "div"
    return f"<{tag} role='{role}' style='line-height:1.4'>{escape(text)}</{tag}>"


def _show(widget, text):
    """Display a widget with a text of our own where widgets cannot be shown."""
    display({**widget._repr_mimebundle_(), "text/plain": text}, raw=True)
