"""Draw the figures of the README: `python images/make_images.py`, from the repository's root."""

import helpers  # noqa: F401  # isort: skip  # first: it sets how torch's threads wait

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from helpers import plots
from helpers.activations import typical_norm
from helpers.concepts import SENTIMENT
from helpers.directions import find_vectors
from helpers.evaluation import balanced_prompts
from helpers.models import load_model
from helpers.sweeps import sweep, sweep_texts

FOLDER = Path(__file__).parent
SHARES = torch.tensor([-0.4, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.4])


def draw_texts(model, tokenizer, vectors, scale):
    """One prompt, pushed up, left alone and pushed down, with three seeds each."""
    layer = 2 * len(vectors) // 3
    force = 0.2 * scale[layer].item()
    [prompt] = balanced_prompts(model, tokenizer, SENTIMENT, 1)
    prompts, seeds = [prompt] * 3, [0, 1, 2]
    where = (model, tokenizer, prompts, vectors[layer], [force, 0.0, -force])
    groups = sweep_texts(*where, seed=seeds, max_new_tokens=20, priced=False).texts[0]
    looks = [
        (f"+{force:.0f}", plots.POSITIVE, 0.30),
        ("0", plots.NEUTRAL, 0.12),
        (f"−{force:.0f}", plots.NEGATIVE, 0.30),
    ]
    figure, ax = plt.subplots(figsize=(8.5, 4.9))
    y, ticks = 0.0, {}
    for texts, (name, colour, alpha) in zip(groups, looks, strict=True):
        for seed, text in zip(seeds, texts, strict=True):
            ax.barh(y, 1, height=0.86, color=colour, alpha=alpha)
            words = textwrap.fill(f"{prompt} … {' '.join(text.steered.split())}", 104)
            ax.text(0.012, y, words, va="center", fontsize=9.5)
            ticks[y] = f"force {name}\nseed {seed}"
            y -= 1
        y -= 0.35
    ax.set(xlim=(0, 1), xticks=[], ylim=(y + 0.8, 0.55))
    ax.set_yticks(list(ticks), list(ticks.values()), fontsize=8.5)
    ax.set_title(f"h' = h + force · v after block {layer}, v from eight pairs of sentences")
    ax.grid(False)
    figure.savefig(FOLDER / "steered_text.png", dpi=120)


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


if __name__ == "__main__":
    model, tokenizer = load_model("pocket", device="cpu")
    vectors = find_vectors(model, tokenizer, SENTIMENT.pairs)
    scale = typical_norm(model, tokenizer)
    draw_texts(model, tokenizer, vectors, scale)
    draw_maps(model, tokenizer, vectors, scale)
