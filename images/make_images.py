"""Draw the figures of the README and of notebook 04, and write the table at 04's end.

    python images/make_images.py          from the root of the repository

The real model must be installed (README, "Use a real model").
"""

import helpers  # noqa: F401  # isort: skip  # first: it sets how torch's threads wait

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import torch

from helpers import plots
from helpers.activations import typical_norm
from helpers.concepts import SENTIMENT
from helpers.directions import find_vectors
from helpers.evaluation import balanced_prompts
from helpers.models import load_model
from helpers.sweeps import sweep, sweep_texts
from helpers.tables import Table

FOLDER = Path(__file__).parent
NOTEBOOK = FOLDER.parent / "notebooks" / "04_steering_with_hooks.ipynb"
TABLE_CELL = "real-model-table"
SEEDS = [0, 1, 2]
SHARES = torch.tensor([-0.4, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.4])


def push_texts(model, tokenizer, vectors, scale, prompt):
    """One prompt pushed up, left alone and pushed down, and each force: layer, [(force, texts)].

    At two thirds of the depth, by a fifth of its typical norm.
    """
    layer = 2 * len(vectors) // 3
    force = 0.2 * scale[layer].item()
    forces = [force, 0.0, -force]
    where = (model, tokenizer, [prompt] * len(SEEDS), vectors[layer], forces)
    groups = sweep_texts(*where, seed=SEEDS, max_new_tokens=20, priced=False).texts[0]
    return layer, list(zip(forces, groups, strict=True))


def draw_texts(layer, groups, file):
    """The texts as a picture, one block of rows for each force."""
    looks = [(plots.POSITIVE, 0.30), (plots.NEUTRAL, 0.12), (plots.NEGATIVE, 0.30)]
    figure, ax = plt.subplots(figsize=(8.5, 4.9))
    y, ticks = 0.0, {}
    for (force, texts), (colour, alpha) in zip(groups, looks, strict=True):
        for seed, text in zip(SEEDS, texts, strict=True):
            ax.barh(y, 1, height=0.86, color=colour, alpha=alpha)
            words = textwrap.fill(f"{text.prompt} … {' '.join(text.steered.split())}", 104)
            ax.text(0.012, y, words, va="center", fontsize=9.5, parse_math=False)
            ticks[y] = f"force {_signed(force)}\nseed {seed}"
            y -= 1
        y -= 0.35
    ax.set(xlim=(0, 1), xticks=[], ylim=(y + 0.8, 0.55))
    ax.set_yticks(list(ticks), list(ticks.values()), fontsize=8.5)
    ax.set_title(f"h' = h + force · v after block {layer}, v from eight pairs of sentences")
    ax.grid(False)
    figure.savefig(FOLDER / file, dpi=120)


def write_table(layer, groups):
    """The texts as a table in the cell of notebook 04 that shows the real model."""
    rows = [
        (_signed(force), f"{text.prompt} {' '.join(text.steered.split())}")
        for force, texts in groups
        for text in texts
    ]
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [cell] = [cell for cell in notebook.cells if cell.id == TABLE_CELL]
    cell.source = Table([f"force, layer {layer}", "text, seeds 0, 1, 2"], rows).markdown()
    nbformat.write(notebook, NOTEBOOK)


def _signed(force):
    return f"{force:+.0f}".replace("-", "−").replace("+0", "0")


def draw_maps(model, tokenizer, vectors, scale):
    """Effect on the next word, and price of the text, by layer and force."""
    where = (model, tokenizer, SENTIMENT.dev_prompts, vectors, SHARES * scale[:, None])
    effect = sweep(*where).effect.mean(-1)
    bits = sweep_texts(*where, seed=1, max_new_tokens=16).price.nanmean(-1)
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.6), sharey=True)
    names = [f"{share:+.2f}" for share in SHARES.tolist()]
    plots.heatmap(axes[0], effect, names, range(len(vectors)))
    plots.heatmap(axes[1], bits, names, range(len(vectors)), cmap="RdBu_r")
    axes[0].set(title="effect: change of the log-odds of positive words", ylabel="layer")
    axes[1].set(title="price: extra bits per token of text")
    figure.supxlabel("force, as a share of the layer's typical norm", fontsize=10)
    figure.savefig(FOLDER / "layer_by_force.png", dpi=120)


def find(name):
    """A model with its tokenizer, its vectors and their scale."""
    model, tokenizer = load_model(name, device="cpu")
    vectors = find_vectors(model, tokenizer, SENTIMENT.pairs)
    return model, tokenizer, vectors, typical_norm(model, tokenizer)


if __name__ == "__main__":
    bundled = find("pocket")
    draw_maps(*bundled)
    # Where positive and negative next words are most nearly equally likely.
    [prompt] = balanced_prompts(*bundled[:2], SENTIMENT, 1)
    draw_texts(*push_texts(*bundled, prompt), "steered_text_bundled.png")
    # Picked by eye among the development prompts, since both directions show.
    texts = push_texts(*find("smollm2"), "Our flight to London was")
    draw_texts(*texts, "steered_text.png")
    write_table(*texts)
