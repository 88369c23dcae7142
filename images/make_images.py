"""Draw the figures of the README: `python images/make_images.py`, from the repository's root."""

import math
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from helpers import plots
from helpers.activations import typical_norm
from helpers.directions import find_vectors
from helpers.evaluation import DEV_PROMPTS, log_price
from helpers.generation import generate
from helpers.models import load_model
from helpers.pairs import SENTIMENT_PAIRS
from helpers.sweeps import sweep, sweep_texts

FOLDER = Path(__file__).parent
PROMPT = "The hotel room was"


def draw_ladder(model, tokenizer, vectors, scale):
    """One prompt and one seed, continued under five forces."""
    layer = len(vectors) // 3
    fractions = torch.tensor([0.2, 0.1, 0.0, -0.1, -0.2])
    rows = [PROMPT] * len(fractions)
    forces = fractions * scale[layer]
    texts = generate(model, tokenizer, rows, vectors[layer], forces, max_new_tokens=20)
    figure, ax = plt.subplots(figsize=(8.5, 3.6))
    colours = plt.get_cmap("RdBu")(0.5 + 2 * fractions.numpy())
    for y, (text, colour) in enumerate(zip(texts, colours, strict=True)):
        ax.barh(-y, 1, height=0.86, color=(*colour[:3], 0.35))
        words = textwrap.fill(f"{PROMPT} … {' '.join(text.steered.split())}", 84)
        ax.text(0.015, -y, words, va="center", fontsize=10)
    ax.set(xlim=(0, 1), xticks=[], ylim=(-4.5, 0.5))
    ax.set_yticks([-y for y in range(5)], [f"force {force:+.0f}" for force in forces.tolist()])
    ax.set_title(f"h' = h + force · v behind block {layer}: same prompt, same random numbers")
    ax.grid(False)
    figure.savefig(FOLDER / "steered_text.png", dpi=120)


def draw_maps(model, tokenizer, vectors, scale):
    """Effect on the next word, and price of the text, by layer and force."""
    shares = torch.tensor([-0.4, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.4])
    forces = shares * scale[:, None]
    effect = sweep(model, tokenizer, DEV_PROMPTS, vectors, forces).effect
    how = {"max_new_tokens": 16, "seed": 1}
    texts = sweep_texts(model, tokenizer, DEV_PROMPTS, vectors, forces, **how)
    every_text = [text for row in texts for cell in row for text in cell]
    bits = log_price(model, tokenizer, every_text).view(effect.shape) / math.log(2)
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.6), sharey=True)
    names = [f"{share:+.2f}" for share in shares.tolist()]
    plots.heatmap(axes[0], effect.mean(-1), names, range(len(vectors)))
    plots.heatmap(axes[1], bits.nanmean(-1), names, range(len(vectors)), cmap="RdBu_r")
    axes[0].set(title="effect: change of the log-odds of positive words", ylabel="layer")
    axes[1].set(title="price: extra bits per token of text")
    figure.supxlabel("force, as a share of the layer's typical norm", fontsize=10)
    figure.savefig(FOLDER / "layer_by_force.png", dpi=120)


if __name__ == "__main__":
    model, tokenizer = load_model("pocket", device="cpu")
    vectors = find_vectors(model, tokenizer, SENTIMENT_PAIRS)
    scale = typical_norm(model, tokenizer)
    draw_ladder(model, tokenizer, vectors, scale)
    draw_maps(model, tokenizer, vectors, scale)
