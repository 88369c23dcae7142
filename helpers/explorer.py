"""Sliders for layer and force (notebook 06).

What the panel shows is made by the pure functions of ``views``. The panel only decides when.
"""

from functools import lru_cache
from html import escape
from time import monotonic

import ipywidgets as widgets
from IPython import get_ipython

from . import plots
from .activations import typical_norm
from .checks import SteeringError, by_name, checked
from .concepts import SENTIMENT
from .evaluation import balanced_prompts
from .panels import labelled, message_waits, show_widget
from .views import (
    Setting,
    check_layers,
    compute,
    draw_words,
    vector_at,
    write_code,
    write_draft,
    write_sentence,
    write_texts,
)

# Shares of the typical norm on the force slider: finer near 0, where the text still makes sense.
SHARES = [0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5]
SHARES = [-share for share in SHARES[:0:-1]] + SHARES

# The busy sign shows only when an answer takes longer than 0.2 s: quick ones do not flicker.
BUSY = (
    "<style>@keyframes steering-busy{to{opacity:1}}</style><span role='status' "
    "style='opacity:0;animation:steering-busy 0s .2s forwards'>computing …</span>"
)

# A larger picture, made sooner.
QUICK = {"pil_kwargs": {"compress_level": 1}}


class Superseded(Exception):
    """A newer setting, or a cell, waits for the computation of an older setting."""


class Explorer:
    """The panel. Its controls are ipywidgets, so that ``panel.force.value = 40`` moves it.

    ``panel.result`` is what it shows: a ``Result``, or None while texts are written on a slow
    model, and after an error, which stands in the panel. A setting made by code is computed at
    once, and its error is raised there. One made in the browser waits until all that were made
    meanwhile have come in: the latest counts. It stops within a token once a newer one is made.
    """

    @checked(vectors=by_name)
    def __init__(
        self, model, tokenizer, vectors, concept=SENTIMENT, limits=None, budget=0.25, prompt=None
    ):
        check_layers(model, **vectors, **({} if limits is None else {"limits": limits}))
        self.scale = typical_norm(model, tokenizer, concept).tolist()
        self.limits, self.budget = limits, budget
        self.result, self._quiet, self._scheduled = None, True, False

        @lru_cache(maxsize=500)
        def answer(setting):
            chosen = vectors[setting.vector_name]
            result = compute(model, tokenizer, chosen, self.scale, setting, concept, self._watch)
            by_layer = vector_at(chosen, setting.layer) is not chosen
            return (
                result,
                plots.png(draw_words(result), **QUICK),
                write_code(setting, by_layer),
            )

        self._answer = answer
        suggested = balanced_prompts(model, tokenizer, concept, len(concept.dev_prompts))
        self._make_controls(suggested[0] if prompt is None else prompt, suggested, list(vectors))
        self._make_view()
        self._lay_out()
        for control in (*self._fields, self.layer_slider, self.force_slider):
            control.observe(self._changed, "value")
        self._align(None)
        self._quiet = False
        self.update()

    def _make_controls(self, prompt, suggested, names):
        layer, top = 2 * len(self.scale) // 3, len(self.scale) - 1
        self.layer_slider = labelled(widgets.IntSlider, "Layer", value=layer, max=top)
        self.layer = labelled(widgets.BoundedIntText, "Layer number", value=layer, max=top)
        self.force_slider = labelled(
            widgets.SelectionSlider, "Force", options=self._marks(layer), value=0.0
        )
        self.force = labelled(widgets.BoundedFloatText, "Force number", value=0.0)
        self._prompts = {str(one): one for one in (prompt, *suggested)}  # perhaps dialogues
        shown = {"value": str(prompt), "options": list(map(str, suggested))}
        self.prompt = labelled(widgets.Combobox, "Prompt", **shown)
        self.vector = labelled(widgets.Dropdown, "Vector", options=names)
        self.length = labelled(widgets.BoundedIntText, "New tokens", value=24, min=1, max=60)
        self.seed = labelled(widgets.BoundedIntText, "Seed", value=0, max=9999)
        # What makes a setting, in the order of its fields; the sliders only follow.
        self._fields = (self.prompt, self.vector, self.layer, self.force, self.length, self.seed)
        start = [control.value for control in self._fields]
        self.none = widgets.Button(description="No steering", tooltip="Set the force to 0")
        self.none.on_click(lambda button: self._set([self.force], [0.0]))
        self.reset = widgets.Button(description="Reset", tooltip="All as at the start")
        self.reset.on_click(lambda button: self._set(self._fields, start))

    def _make_view(self):
        self.busy = widgets.HTML()
        self.code = widgets.HTML(layout=widgets.Layout(height="6em", overflow="auto"))
        self.sentence = widgets.HTML(layout=widgets.Layout(height="4.4em", overflow="auto"))
        self.texts = widgets.HTML(layout=widgets.Layout(min_height="11em"))
        self.chart = widgets.Image(width=630, height=288)
        self.chart.layout = widgets.Layout(max_width="100%", object_fit="contain")

    def _lay_out(self):
        rows = [
            (self.layer_slider, self.layer),
            (self.force_slider, self.force),
            (self.prompt, self.length),
            (self.vector, self.seed),
            (self.none, self.reset, self.busy),
        ]
        flow = widgets.Layout(flex_flow="row wrap", align_items="center")
        boxes = [widgets.Box(row, layout=flow) for row in rows]
        self.widget = widgets.VBox([*boxes, self.sentence, self.texts, self.chart, self.code])

    @property
    def setting(self) -> Setting:
        """What the controls say now."""
        prompt, *others = (control.value for control in self._fields)
        return Setting(self._prompts.get(prompt, prompt), *others)

    def update(self, superseded=lambda: False):
        """Show the current setting: from the cache, or computed now.

        Raises ``Superseded`` as soon as the function of that name says so.
        """
        setting = self.setting
        self.busy.value = BUSY
        self._watch = self._watcher(setting.length, superseded)
        try:
            self.result, self.chart.value, code = self._answer(setting)
            self.chart.layout.visibility = "visible"
            limits = None if self.limits is None else self.limits[setting.layer]
            sentence = write_sentence(self.result, limits, self.budget)
            self.sentence.value = _message(sentence, "status")
            self.texts.value = write_texts(self.result)
            self.code.value = f"<pre style='white-space:pre-wrap'>{escape(code)}</pre>"
        except Superseded:
            raise  # still busy
        except BaseException as error:  # an interrupt must not leave half a text either
            kind = "" if isinstance(error, SteeringError) else type(error).__name__
            self._clear(_message(": ".join(filter(None, [kind, str(error)])), "alert"), "")
            self.busy.value = ""
            raise
        self.busy.value = ""

    def _clear(self, sentence, texts):
        """Show these alone: nothing of the setting before stays as if it were the answer."""
        self.result = None
        self.chart.layout.visibility = "hidden"  # it keeps its place
        self.sentence.value, self.code.value, self.texts.value = sentence, "", texts

    def _watcher(self, length, superseded):
        """What is called after each token: stops a superseded text, shows one that takes long."""
        began = shown = monotonic()
        tokens = 0

        def watch(texts):
            nonlocal shown, tokens
            if superseded():
                raise Superseded
            tokens, now = tokens + 1, monotonic()
            # At its pace the whole takes over a second: a quick text would only flicker.
            slow = now - began > 0.2 and (now - began) * length > tokens
            if slow and now - shown > 0.1:
                shown = now
                self._clear("", write_draft(texts[0]))

        return watch

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
            self.force.value = self.force_slider.value
        # The force stays when the layer changes; the norm, and with it the marks, do not.
        norm = self.scale[self.layer.value]
        self.layer_slider.value = self.layer.value
        self.force.min, self.force.max = (_rounded(SHARES[i] * norm) for i in (0, -1))
        self.force.step = float(f"{norm / 100:.1g}")
        marks = self._marks(self.layer.value, self.force.value)
        if list(self.force_slider.options) != marks:
            self.force_slider.options = marks
        self.force_slider.value = self.force.value

    def _marks(self, layer, force=0.0):
        """The forces on the slider: the usual shares of the norm, and the one that is set."""
        norm = self.scale[layer]
        forces = sorted({_rounded(share * norm) for share in SHARES} | {force})
        return [(f"{force:+g} ({force / norm:+.2f} norms)", force) for force in forces]

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
        else:
            self._schedule(kernel)

    def _schedule(self, kernel):
        """Have the setting answered in the thread of the cells, once that is free.

        JupyterLab's messages come in a thread beside it. Computed there, a setting would steer
        what a cell runs on the same model, and be steered by it.
        """
        if not self._scheduled:
            self._scheduled = True
            self.busy.value = BUSY
            loop = kernel.io_loop
            # Whatever was moved during a computation is read before this fires.
            loop.add_callback(loop.call_later, 0.02, self._answer_browser, kernel)

    def _answer_browser(self, kernel):
        self._scheduled = False
        try:
            # A newer setting comes in the other thread, or waits for this one, as in Voilà.
            self.update(lambda: self._scheduled or message_waits(kernel))
        except Superseded:
            self._schedule(kernel)
        except SteeringError:
            pass  # it stands in the panel; others go to the kernel's log too


def explore(model, tokenizer, vectors, concept=SENTIMENT, limits=None, budget=0.25, prompt=None):
    """Show the panel, and return it: an ``Explorer``.

    Parameters
    ----------
    vectors : dict of str to (list of SteeringVector, or one of them)
        What can be added, by name. A list has one vector for each layer, as ``find_vectors``
        returns it; a single vector is added at whichever layer is chosen.
    concept : Concept
        Whose words the log-odds count, and whose development prompts are offered.
    limits : Tensor [layer, 2], optional
        For each layer the shares of its typical norm, up and down, that cost the ``budget`` of
        damage (``calibrate``): beyond them the panel warns that texts begin to break.
    prompt : str, optional
        To begin with; default: the development prompt whose log-odds are closest to 0.
    """
    panel = Explorer(model, tokenizer, vectors, concept, limits, budget, prompt)
    show_widget(panel.widget, "Steering explorer: run this cell for its sliders.")
    return panel


def _rounded(force):
    """To three figures: enough to tell forces apart at any scale of the residual stream."""
    return float(f"{force:.3g}")


def _message(text, role):
    tag = "b" if role == "alert" else "div"
    return f"<{tag} role='{role}' style='line-height:1.4'>{escape(text)}</{tag}>"
