from matplotlib.figure import Figure

from helpers.panels import LayerExplorer


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
