"""Pieces of panels: labelled controls, and a figure with a slider for the layer."""

from functools import lru_cache

import ipywidgets as widgets
import zmq
from IPython.display import display

from . import plots
from .checks import checked


class LayerExplorer:
    """A figure that depends on the layer, with a slider: ``panel.layer.value = 3`` moves it."""

    @checked
    def __init__(self, draw, n_layer):
        top = n_layer - 1
        self.layer_slider = labelled(widgets.IntSlider, "Layer", value=top // 2, max=top)
        self.layer = labelled(widgets.BoundedIntText, "Layer number", value=top // 2, max=top)
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
    show_widget(panel.widget, "Figure by layer: run this cell for its slider.")
    return panel


def labelled(kind, name, **values):
    """A labelled control; one that would fire while it is dragged or typed in does not."""
    wide = kind in (widgets.IntSlider, widgets.SelectionSlider, widgets.Combobox, widgets.Dropdown)
    layout = widgets.Layout(width="440px" if wide else "190px", max_width="100%")
    style = {"description_width": "100px"}
    if kind is not widgets.Dropdown:
        values["continuous_update"] = False
    return kind(description=name, style=style, layout=layout, **values)


def message_waits(kernel) -> bool:
    """Whether something waits until the thread of the cells is free: a cell, or a moved control.

    False for a kernel that keeps its messages elsewhere. What waits is handled no sooner for it.
    """
    try:
        beside = kernel.shell_channel_thread  # hands on what comes, since ipykernel 7
        pair = beside and beside.manager.get_shell_channel_to_subshell_pair(None)
        stream = pair.to_stream if pair else kernel.shell_stream
        return stream.flush(zmq.POLLIN) > 0  # turns each message into a task of the event loop
    except AttributeError:
        return False


def show_widget(widget, text):
    """Display a widget with a text of our own where widgets cannot be shown."""
    display({**widget._repr_mimebundle_(), "text/plain": text}, raw=True)
