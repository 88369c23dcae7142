import math

import matplotlib
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from IPython.core.interactiveshell import InteractiveShell  # noqa: E402
from IPython.utils.capture import capture_output  # noqa: E402
from traitlets.config import Config  # noqa: E402

from helpers import plots  # noqa: E402
from helpers.models import SteeringError  # noqa: E402


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.fixture
def shell(tmp_path):
    quiet = Config({"HistoryManager": {"enabled": False}})
    yield InteractiveShell.instance(ipython_dir=str(tmp_path), config=quiet)
    InteractiveShell.clear_instance()


def test_show_gives_a_png_with_its_text_alternative(ax, shell):
    with capture_output() as shown:
        plots.show(ax.figure, "Norms rise with the layer.")
    (output,) = shown.outputs
    assert output.data["image/png"][:8] == b"\x89PNG\r\n\x1a\n"
    assert output.data["text/plain"] == "Norms rise with the layer."
    assert output.metadata["image/png"]["alt"] == "Norms rise with the layer."
    assert not plt.fignum_exists(ax.figure.number)


def test_figures_have_an_opaque_background(ax):
    assert ax.figure.get_facecolor() == (1, 1, 1, 1)


def test_classes_differ_in_colour_and_marker(ax):
    plots.scatter_classes(ax, [[0, 1], [2, 3], [4, 5]], [True, False, True], "Layer 2")
    positive, negative = ax.collections
    assert positive.get_offsets().tolist() == [[0, 1], [4, 5]]
    assert negative.get_offsets().tolist() == [[2, 3]]
    assert not np.array_equal(positive.get_facecolor(), negative.get_facecolor())
    assert len(positive.get_paths()[0].vertices) != len(negative.get_paths()[0].vertices)
    assert ax.get_title() == "Layer 2"
    assert ax.get_legend_handles_labels()[1] == ["positive", "negative"]


def test_classes_carry_the_names_of_the_concept_s_sides(ax):
    plots.scatter_classes(ax, [[0, 1], [2, 3]], [False, True], sides=("formal", "casual"))
    (first, second), names = ax.get_legend_handles_labels()
    assert names == ["formal", "casual"]
    assert first.get_offsets().tolist() == [[2, 3]] and second.get_offsets().tolist() == [[0, 1]]


def test_lines_differ_in_marker_and_are_named(ax):
    series = {"one": [1, 2], "two": [3, 4], "three": [5, 6]}
    plots.lines(ax, [0, 1], series, "layer", "norm")
    assert [line.get_label() for line in ax.lines] == list(series)
    assert [line.get_ydata().tolist() for line in ax.lines] == list(series.values())
    assert len({line.get_marker() for line in ax.lines}) == 3
    assert ax.get_legend() is not None


def test_no_line_is_silently_left_out(ax):
    with pytest.raises(ValueError):
        plots.lines(ax, [0], {str(number): [number] for number in range(5)}, "layer", "norm")


def test_one_line_needs_no_legend(ax):
    plots.lines(ax, [0, 1], {"one": [1, 2]}, "layer", "norm")
    assert ax.get_legend() is None


def test_heatmap_writes_every_number_and_is_centred_on_zero(ax):
    plots.heatmap(ax, [[-4, 1], [2, 3]], ["a", "b"], ["c", "d"])
    assert [text.get_text() for text in ax.texts] == ["-4.0", "1.0", "2.0", "3.0"]
    assert ax.images[0].get_clim() == (-4, 4)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["c", "d"]


def test_heatmap_frames_what_is_marked_and_writes_no_negative_zero(ax):
    plots.heatmap(ax, [[-0.01, 1], [2, 3]], ["a", "b"], ["c", "d"], marked=[(1, 0)], cmap="RdBu_r")
    assert [text.get_text() for text in ax.texts] == ["0.0", "1.0", "2.0", "3.0"]
    [frame] = ax.patches
    assert frame.get_bbox().extents.tolist() == [-0.5, 0.5, 0.5, 1.5]  # x0, y0, x1, y1
    assert ax.images[0].get_cmap().name == "RdBu_r"


def test_heatmap_of_zeros_is_drawn_without_a_warning(ax, recwarn):
    plots.heatmap(ax, [[0, 0.0]], ["a", "b"], ["c"])
    ax.figure.canvas.draw()
    assert ax.images[0].get_clim() == (-1, 1) and not recwarn.list
    assert [text.get_text() for text in ax.texts] == ["0.0", "0.0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xlabels": ["a"]}, r"Values of shape \[2, 2\].* need 2 ylabels and 1 xlabels"),
        ({"ylabels": ["a", "b", "c"]}, r"Values of shape \[2, 2\].* need 3 ylabels and 2 xlabels"),
        ({"values": [1.0, 2.0]}, r"Values of shape \[2\]"),
        ({"values": [[math.nan] * 2] * 2}, "not all NaN"),
        ({"values": [["a", "b"]] * 2}, "values must be numbers"),
        ({"xlabels": "ab"}, "xlabels must be a list of labels, got 'ab'"),
        ({"limit": -1}, "limit must be a number, 0 or above, got -1"),
        ({"limit": math.nan}, "limit must be a number, 0 or above, got nan"),
    ],
)
def test_heatmap_refuses_what_does_not_fit_together(ax, change, message):
    given = {"values": [[1, math.nan], [3, 4]], "xlabels": ["a", "b"], "ylabels": range(2)}
    plots.heatmap(ax, **given)
    with pytest.raises(SteeringError, match=message):
        plots.heatmap(ax, **{**given, **change})


def test_paired_orders_by_base_and_keeps_labels_beside_their_values(ax):
    plots.paired(ax, [1.0, 0.0, 2.0], [1.5, 2.0, 4.0], [-3.0, -1.0, 1.0], ["b", "a", "c"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert ax.lines[0].get_xdata().tolist() == [0, 1, 2]
    ends = [arrow.xyann if arrow.xyann != arrow.xy else None for arrow in ax.texts]
    assert ends == [(0, 0), (0, 0), (1, 1), (1, 1), (2, 2), (2, 2)]  # arrows start at the dots
    assert [arrow.xy[0] for arrow in ax.texts] == [2, -1, 1.5, -3, 4, 1]
    low, high = ax.get_xlim()
    assert low < -3 and high > 4  # no arrow leaves the picture


def test_intervals_are_drawn_where_they_lie(ax):
    plots.intervals(ax, [1, 2], [(0.0, -1.0, 3.0), (5.0, 4.0, 5.5)], border=2.0, marker="X")
    points, *_ = ax.containers[0].lines
    assert points.get_xydata().tolist() == [[1, 0], [2, 5]]
    bars = ax.containers[0].lines[2][0].get_segments()
    assert [bar[:, 1].tolist() for bar in bars] == [[-1, 3], [4, 5.5]]
    assert ax.lines[-1].get_ydata() == [2, 2] and ax.lines[-1].get_linestyle() == "--"


@pytest.fixture
def shown(monkeypatch):
    """The figures that are shown meanwhile, each with its text alternative."""
    figures = []
    monkeypatch.setattr(plots, "show", lambda figure, alt: figures.append((figure, alt)))
    yield figures
    plt.close("all")


def test_pull_and_price_have_their_borders(shown):
    shares, some = [0.01, 0.1, 0.5], [(1.0, 0.5, 1.5)] * 3
    plots.pull_and_price(np.array(shares), some, some[1:])
    [(figure, alt)] = shown
    pull, price = figure.axes
    points = [ax.containers[0].lines[0].get_xdata().tolist() for ax in (pull, price)]
    assert points == [shares, shares[1:]]
    borders = [ax.lines[-1].get_ydata()[0] for ax in (pull, price)]
    assert borders == [pytest.approx(math.log(2)), 1] and "price" in alt


def test_every_deal_of_pairs_is_a_point_and_their_mean_a_line(shown):
    plots.pull_by_pairs(np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]), [1, 2])
    [(figure, alt)] = shown
    *deals, mean = figure.axes[0].lines
    assert [line.get_ydata().tolist() for line in deals] == [[1, 3], [2, 4], [3, 5]]
    assert mean.get_ydata().tolist() == [2, 4] and "deals" in alt


def test_draws_are_split_into_seen_and_missed(shown):
    means, seen = np.array([0.0, 0.1, 0.9, 1.0]), np.array([False, False, False, True])
    plots.seen_or_missed({"a": (means, seen, 0.5), "b": (means, ~seen, 0.2)})
    [(figure, alt)] = shown
    for ax, name, flags in zip(figure.axes, "ab", (seen, ~seen), strict=True):
        bars = [sum(bar.get_height() for bar in kind) for kind in ax.containers]
        assert bars == [(~flags).sum(), flags.sum()] and ax.get_ylabel() == name
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["missed", "seen"] and "histograms" in alt
