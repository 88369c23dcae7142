"""What readers need who do not see, do not see colours, or read by headings.

Colour blindness is simulated by the matrices of Machado, Oliveira and Fernandes 2009 ("A
Physiologically-based Model for Simulation of Color Vision Deficiency", severity 1.0), which take
linear RGB. Alt text and text beside figures are in ``test_notebooks.py``.
"""

import itertools
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402

from helpers import plots  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
READMES = ["README.md", "CONTRIBUTING.md", "notebooks/README.md", "tests/README.md"]
READMES += ["helpers/SMOLLM2.md", "helpers/pocket/MODEL_CARD.md"]
FENCED_CODE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.M | re.S)
VISION = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
APART = 25  # CIE Lab; 2 is just noticeable side by side, 100 is black and white
GRAPHIC, TEXT = 3.0, 4.5  # contrast that WCAG 2.2 wants of graphics (1.4.11) and of text (1.4.3)
PALETTE = [colour for colour, _ in plots.LOOKS]
# What tells two things of one figure apart without their colour.
SECOND_SIGN = re.compile(
    r"marker|hatch|edgecolor|\bls=|linestyle|\"(--|\||[osX^]-?)\"|ticklabels|axes\[1\]"
)


def linear(colour):
    """Linear RGB [3] of an sRGB colour."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(colour, vision):
    """CIE Lab [3] of a colour as it is seen."""
    seen = np.clip(np.array(VISION[vision]) @ linear(colour), 0, 1)
    share = (XYZ @ seen) / XYZ.sum(1)
    root = np.where(share > (6 / 29) ** 3, np.cbrt(share), share / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one, other, vision):
    return np.linalg.norm(lab(one, vision) - lab(other, vision))


def contrast(one, other):
    dark, light = sorted(XYZ[1] @ linear(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def cells(path, kind):
    """(id, source) of the cells of a notebook."""
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == kind:
            yield cell["id"], "".join(cell["source"])


def test_the_measures_are_right():
    assert contrast("black", "white") == pytest.approx(21)
    assert distance("black", "white", "all cones") == pytest.approx(100, abs=0.1)
    assert lab("red", "all cones") == pytest.approx([53.24, 80.09, 67.20], abs=0.1)
    # The confusion that gives red-green blindness its name, and what is spared by it.
    for vision in ("protanopia", "deuteranopia"):
        assert distance("#A05000", "#607000", vision) < distance("#A05000", "#607000", "all cones")
        assert distance("white", "blue", vision) > 100
    for vision in VISION:
        assert lab("#777777", vision)[1:] == pytest.approx([0, 0], abs=0.5)


@pytest.mark.parametrize("vision", VISION)
def test_colours_can_be_told_apart(vision):
    for one, other in itertools.combinations(PALETTE, 2):
        assert distance(one, other, vision) > APART, (one, other)


def test_colours_stand_out_from_the_background():
    for colour in PALETTE:
        assert contrast(colour, plots.STYLE["figure.facecolor"]) > GRAPHIC, colour


@pytest.mark.parametrize("vision", VISION)
def test_other_colours_can_be_told_from_those_of_the_style(vision):
    scripts = [*(ROOT / "helpers").glob("*.py"), *(ROOT / "images").glob("*.py")]
    texts = {path.name: path.read_text("utf-8") for path in scripts}
    texts |= {path.name: "\n".join(dict(cells(path, "code")).values()) for path in NOTEBOOKS}
    for name, text in texts.items():
        for colour in set(re.findall(r"#[0-9A-Fa-f]{6}\b", text)) - set(PALETTE):
            for other in (plots.POSITIVE, plots.NEGATIVE, plots.NEUTRAL):
                assert distance(colour, other, vision) > APART, (name, colour, other)


def test_lines_and_classes_differ_by_more_than_colour(ax):
    plots.lines(ax, [0, 1], {name: [0, 1] for name in "abcd"}, "x", "y")
    assert len({line.get_marker() for line in ax.lines}) == 4
    assert [line.get_color() for line in ax.lines] == PALETTE


def test_arrows_up_and_down_differ_by_more_than_colour(ax):
    plots.paired(ax, [0.0], [1.0], [2.0], ["a"])  # both point to the same side
    up, down = (arrow.arrow_patch for arrow in ax.texts)
    assert up.get_linestyle() != down.get_linestyle()


@pytest.mark.parametrize("cmap", ["RdBu", "RdBu_r"])
def test_numbers_in_a_heatmap_can_be_read(cmap, ax):
    values = np.linspace(-1, 1, 81)[None]
    plots.heatmap(ax, values, range(81), ["a"], fmt="{:.3f}", cmap=cmap)
    [image] = ax.images
    for value, text in zip(values[0], ax.texts, strict=True):
        assert contrast(image.to_rgba(value)[:3], text.get_color()) > TEXT, value
        assert (value < 0) == text.get_text().startswith("-")  # the sign is no colour alone


def test_a_gap_in_a_heatmap_is_black_on_white(ax):
    plots.heatmap(ax, [[np.nan, 1.0]], ["a", "b"], ["c"])
    assert ax.texts[0].get_color() == "black"


@pytest.mark.parametrize("vision", VISION)
def test_the_ends_of_a_heatmap_differ(vision):
    ends = [plt.get_cmap("RdBu")(end)[:3] for end in (0.1, 0.5, 0.9)]
    for one, other in itertools.combinations(ends, 2):
        assert distance(one, other, vision) > APART


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cell_with_two_colours_has_a_second_sign(path):
    for name, source in cells(path, "code"):
        if len(set(re.findall(r"plots\.(POSITIVE|NEGATIVE|NEUTRAL)", source))) > 1:
            assert SECOND_SIGN.search(source), f"{path.name} [{name}]: told apart by colour alone"


@pytest.mark.parametrize("path", [*READMES, *NOTEBOOKS], ids=lambda path: Path(path).stem)
def test_headings_are_in_order(path):
    text = (ROOT / path).read_text("utf-8")
    if str(path).endswith(".ipynb"):
        text = "\n\n".join(source for _, source in cells(path, "markdown"))
    headings = re.findall(r"^(#+) +(.*)", FENCED_CODE.sub("", text), re.M)
    ranks = [len(marks) for marks, _ in headings]
    assert ranks[0] == 1 and ranks.count(1) == 1
    for before, (marks, words) in zip(ranks, headings[1:], strict=False):
        assert len(marks) <= before + 1, f"a level is skipped before {words!r}"
