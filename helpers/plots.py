"""One look for all figures. Draws numbers and words; knows no model.

Colours are from the Okabe-Ito palette, which colour-blind readers can tell apart, and every
class has its own marker or style of line too.
"""

import io
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from .checks import SteeringError, checked, not_negative, numbers

POSITIVE, NEGATIVE, NEUTRAL = "#0072B2", "#D55E00", "#595959"
LOOKS = tuple(zip((POSITIVE, NEGATIVE, NEUTRAL, "black"), "oXs^", strict=True))

STYLE = {
    "figure.figsize": (7, 3.5),
    "figure.dpi": 110,
    "figure.facecolor": "white",  # opaque, so that labels stay readable on a dark page
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "font.size": 10,
    "legend.frameon": False,
}
plt.rcParams.update(STYLE)


def png(figure, **options) -> bytes:
    """The figure as a PNG file; options are those of ``savefig``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", **options)
    return buffer.getvalue()


def show(figure, alt) -> None:
    """Display a figure with its text alternative, for readers who cannot see it, and close it."""
    data = {"image/png": png(figure), "text/plain": alt}
    display(data, metadata={"image/png": {"alt": alt}}, raw=True)
    plt.close(figure)


def scatter_classes(ax, points, is_positive, title="", sides=("positive", "negative")) -> None:
    """Two classes of points [n, 2], told apart by colour and marker."""
    points, is_positive = np.asarray(points), np.asarray(is_positive, dtype=bool)
    ax.scatter(*points[is_positive].T, c=POSITIVE, marker="o", label=sides[0])
    ax.scatter(*points[~is_positive].T, c=NEGATIVE, marker="X", label=sides[1])
    ax.set(title=title, xlabel="PC 1", ylabel="PC 2")


def lines(ax, x, series, xlabel, ylabel) -> None:
    """Up to four curves over one axis; ``series`` maps a label to its values."""
    for (label, values), (colour, marker) in zip(series.items(), LOOKS[: len(series)], strict=True):
        ax.plot(x, values, color=colour, marker=marker, ms=5, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(series) > 1:
        ax.legend()


@checked(values=partial(numbers, nan=True, dtype=torch.float64), limit=not_negative)
def heatmap(ax, values, xlabels, ylabels, limit=None, fmt="{:.1f}", marked=(), cmap="RdBu") -> None:
    """Numbers in coloured cells; the colours diverge from 0 and end at ±limit.

    The cells (row, column) in ``marked`` get a frame; ``cmap="RdBu_r"`` shows more as worse.
    Raises SteeringError for labels that do not match the values, or values that are all NaN.
    """
    values = values.numpy()
    if values.shape != (len(ylabels), len(xlabels)) or np.isnan(values).all():
        labels = f"{len(ylabels)} ylabels and {len(xlabels)} xlabels"
        raise SteeringError(f"Values of shape {list(values.shape)}, not all NaN, need {labels}.")
    limit = limit or np.nanmax(np.abs(values)) or 1
    cells = ax.imshow(values, cmap=cmap, vmin=-limit, vmax=limit, aspect="auto")
    ax.set_xticks(range(len(xlabels)), xlabels)
    ax.set_yticks(range(len(ylabels)), ylabels)
    ax.grid(False)
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if _light(cells.to_rgba(value)) < 0.18 else "black"
        text = fmt.format(value)
        text = text if float(text) else text.lstrip("-")  # no minus sign before a zero
        ax.text(column, row, text, ha="center", va="center", c=colour, fontsize=8)
    for row, column in marked:
        frame = {"fill": False, "edgecolor": "black", "linewidth": 2.5, "clip_on": False}
        ax.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, **frame))


def _light(rgba) -> float:
    """Relative luminance of a colour on white, from 0 to 1; black reads better from 0.18 on."""
    *rgb, opaque = rgba
    return 1 - opaque + opaque * np.power(rgb, 2.2) @ (0.2126, 0.7152, 0.0722)


def paired(ax, base, up, down, labels) -> None:
    """One row for each prompt, lowest base first: from its dot an arrow up, a dashed one down."""
    base, up, down = np.asarray(base), np.asarray(up), np.asarray(down)
    order = np.argsort(base, kind="stable")
    for row, i in enumerate(order):
        for end, colour, style in ((up[i], POSITIVE, "-"), (down[i], NEGATIVE, "--")):
            look = {"arrowstyle": "->", "color": colour, "linestyle": style}
            ax.annotate("", (end, row), (base[i], row), arrowprops=look)
    ax.plot(base[order], range(len(order)), "o", color=NEUTRAL, ms=4)
    # Arrows do not widen the axis by themselves.
    ax.set_xlim(np.min([base, up, down]) - 0.3, np.max([base, up, down]) + 0.3)
    ax.set_yticks(range(len(order)), [labels[i] for i in order], fontsize=8)


def intervals(ax, x, estimates, border=None, marker="o", colour=POSITIVE, label=None) -> None:
    """A point with its interval at each x; ``border`` is drawn as a dashed line.

    ``estimates`` are (mean, low, high), as ``statistics.Estimate``.
    """
    mean, low, high = np.array([tuple(estimate) for estimate in estimates]).T
    bars = [mean - low, high - mean]
    ax.errorbar(x, mean, bars, fmt=marker, ms=6, color=colour, label=label)
    if border is not None:
        ax.axhline(border, color="black", ls="--", lw=1)
    ax.margins(y=0.15)


def pull_and_price(shares, pull, price) -> None:
    """Show pull and price over forces as shares of the norm, with the borders of notebook 08.

    ``pull`` are estimates of all shares, ``price`` of all but the first.
    """
    figure, axes = plt.subplots(2, 1, figsize=(7, 4.4), sharex=True)
    intervals(axes[0], shares, pull, border=np.log(2))
    intervals(axes[1], shares[1:], price, border=1)
    axes[0].set(ylabel="pull (line: felt)")
    axes[1].set(ylabel="price (line: broken)", xlabel="typical norms", xscale="log")
    axes[1].set_xticks(shares, [f"{share:.2f}" for share in shares])
    axes[1].minorticks_off()
    show(figure, "Pull and price over the forces, with dashed borders.")


def pull_by_pairs(pull, numbers) -> None:
    """Show the pull [number, deal] of each deal of so many pairs, and the deals' mean."""
    figure, ax = plt.subplots(figsize=(7, 2.8))
    ax.plot(range(len(numbers)), pull, "o", color=NEUTRAL, alpha=0.4, ms=4)
    ax.plot(pull.mean(1), "s-", color=POSITIVE, label="mean of the deals")
    ax.set(xticks=range(len(numbers)), xticklabels=numbers, xlabel="pairs", ylabel="pull")
    ax.legend(loc="lower right")
    show(figure, "Pull by number of pairs: twenty deals each, and their mean.")


def seen_or_missed(draws) -> None:
    """Show a histogram a row of the means of small samples, split by whether each saw the effect.

    ``draws`` maps a row's name to (means [draw], seen [draw], the mean of all texts).
    """
    figure, axes = plt.subplots(len(draws), 1, figsize=(7, 3.6), sharex=True)
    for ax, (name, (means, seen, whole)) in zip(axes, draws.items(), strict=True):
        looks = {"color": ["white", POSITIVE], "label": ["missed", "seen"]}
        ax.hist([means[~seen], means[seen]], 40, stacked=True, ec=NEUTRAL, **looks)
        ax.axvline(whole, color="black", ls="--")
        ax.set(ylabel=name, yticks=[])
    axes[0].legend()
    axes[-1].set_xlabel("mean change of the judge in twenty texts (line: in all)")
    show(figure, "Three histograms: means of twenty texts, seen or missed.")
