"""What one setting of the explorer does: computed, written and drawn (notebook 06).

Pure functions: the notebook draws its static twin with the same ones as the panel.
"""

from dataclasses import dataclass, replace
from html import escape
from math import isnan, log2
from os.path import commonprefix

import numpy as np
import torch
from matplotlib.figure import Figure

from . import plots
from .checks import RULES, SteeringError, by_layer, checked, real, whole
from .concepts import SENTIMENT
from .directions import SteeringVector
from .evaluation import log_odds_from, next_token_logits, perplexity, word_sides
from .generation import generate
from .models import blocks, encode, model_name, resolve_layer
from .steering import steer
from .sweeps import sweep_texts
from .tables import Table


@dataclass(frozen=True)
class Setting:
    """Everything that decides what the panel shows."""

    prompt: str
    vector_name: str
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

    @property
    def price(self) -> float:
        """Bits per token, as ``evaluation.price``; NaN if a text is empty."""
        return log2(self.perplexity[1] / self.perplexity[0])


def check_layers(model, **values):
    """SteeringError for a list without one entry for each layer; a single vector has no layers."""
    for name, value in values.items():
        if not isinstance(value, SteeringVector) and len(value) != len(blocks(model)):
            layers = f"{model_name(model)} has {len(blocks(model))} layers"
            raise SteeringError(f"{name} has {len(value)} entries, but {layers}.")


def vector_at(vectors, layer) -> SteeringVector:
    """The vector for a layer: of a list by layer that one, else the one and only."""
    return vectors if isinstance(vectors, SteeringVector) else vectors[layer]


@checked
@torch.inference_mode()  # a little faster than no_grad; only numbers and text leave it
def compute(model, tokenizer, vectors, scale, setting, concept=SENTIMENT, watch=None) -> Result:
    """Text and next-word probabilities without and with steering.

    ``vectors`` is a list by layer, or one vector for any layer; ``scale`` the typical norm by
    layer. ``watch`` is that of ``generate``, and is called once more between the measurements.
    Raises SteeringError as ``generate`` does, and for a list of another length.
    """
    check_layers(model, vectors=vectors, scale=scale)
    setting = replace(setting, prompt=RULES["prompt"](setting.prompt, "prompt"))
    prompts, layer = [setting.prompt] * 2, resolve_layer(model, whole(setting.layer, "layer"))
    vector = vector_at(vectors, layer)
    forces = torch.tensor([0, real(setting.force, "force")])
    texts = generate(
        model, tokenizer, prompts[:1], vector, setting.force, layer,
        max_new_tokens=setting.length, seed=setting.seed, watch=watch,
    )  # fmt: skip
    (text,) = texts
    surprise = perplexity(model, tokenizer, prompts, [text.base, text.steered])
    if watch is not None:
        watch(texts)
    with steer(model, vector, forces, layer):
        batch = encode(model, tokenizer, prompts)
        logits = next_token_logits(model, batch).float().cpu()
    before, after = logits.softmax(-1)
    moved = (after - before).abs() if setting.force else before  # or the likeliest
    changed = moved.topk(10).indices
    ordered = changed[(after - before)[changed].argsort(descending=True, stable=True)]
    words = [(tokenizer.decode([i]), before[i].item(), after[i].item()) for i in ordered]
    return Result(
        setting,
        float(setting.force / scale[layer]),
        (text.base, text.steered),
        tuple(log_odds_from(logits, word_sides(tokenizer, concept)).tolist()),
        tuple(surprise.tolist()),
        words,
    )


@checked
def write_sentence(result, limits=None, budget=0.25) -> str:
    """The result in words.

    With a warning if the share is beyond its side of ``limits`` (up, down), the shares that cost
    the ``budget`` of damage.
    """
    s = result.setting
    if s.force == 0:
        return "No steering: both texts are the model's own."
    before, after = result.log_odds
    cost = "a text is empty" if isnan(result.price) else f"price {result.price:+.1f} bits per token"
    sentence = (
        f"Layer {s.layer}, force {s.force:+g}, which is {abs(result.share):.2f} typical norms: "
        f"log-odds from {before:+.1f} to {after:+.1f}, a change of {after - before:+.1f}; {cost}."
    )
    if limits is not None:
        limit = abs(limits[0 if s.force > 0 else 1].item())
        if round(abs(result.share), 2) > round(limit, 2):
            sentence += (
                f" Beyond {limit:.2f} norms this layer loses more than {budget:g} bits per token "
                "when it reads: texts begin to break."
            )
    return sentence


def write_code(setting, by_layer=True) -> str:
    """A line that makes the same texts; ``by_layer`` if its vector is a list, one a layer."""
    where = f"[{setting.layer}]" if by_layer else ""
    layer = "" if by_layer else f"layer={setting.layer}, "
    return (
        f"generate(model, tokenizer, [{setting.prompt!r}], "
        f"vectors[{setting.vector_name!r}]{where}, force={setting.force:.10g}, {layer}"
        f"max_new_tokens={setting.length}, seed={setting.seed})"
    )


def write_texts(result) -> str:
    """HTML of both texts side by side, one above the other on a narrow screen.

    The prompt is bold; what steering changed is underlined.
    """
    costs = ["empty" if isnan(x) else f"perplexity {x:.0f}" for x in result.perplexity]
    notes = [f"log-odds {x:+.1f} · {cost}" for x, cost in zip(result.log_odds, costs, strict=True)]
    return _side_by_side(result.setting.prompt, result.texts, notes)


def write_draft(written) -> str:
    """The same HTML of a ``SteeredText`` that is not at its end and not measured yet."""
    texts = [text.rstrip("\ufffd") for text in written[1:]]  # a character that is half there
    return _side_by_side(written.prompt, texts, ["writing …"] * 2)


def _side_by_side(prompt, texts, notes) -> str:
    same = len(commonprefix(texts))
    columns = ""
    for i, name in enumerate(("Unsteered", "Steered")):
        changed = escape(texts[i][same:])
        columns += (
            '<div style="flex:1 1 260px;height:9.5em;overflow-y:auto;padding:0 1em 0 0">'
            f"<div><b>{name}</b> · {notes[i]}</div>"
            '<div style="white-space:pre-wrap;line-height:1.4">'
            f"<b>{escape(prompt)}</b>{escape(texts[i][:same])}"
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


@checked(vectors=by_layer)
def completions(model, tokenizer, prompt, vectors, layers, shares, scale, seed=0) -> Table:
    """Steered texts of one prompt for some layers and forces, as a table.

    One batch: each row of it has its own layer and force. Raises SteeringError as ``generate``
    does, and for vectors or a scale without one entry for each layer.
    """
    check_layers(model, vectors=vectors, scale=scale)
    layers = [resolve_layer(model, layer) for layer in layers]
    chosen = [vectors[layer] for layer in layers]
    forces = [[float(share * scale[layer]) for share in shares] for layer in layers]
    written = sweep_texts(model, tokenizer, [prompt], chosen, forces, seed=seed, priced=False).texts
    rows = [
        (str(layer), f"{share:+.2f}", " ".join(text.steered.split()))
        for layer, by_share in zip(layers, written, strict=True)
        for share, [text] in zip(shares, by_share, strict=True)
    ]
    return Table(["Layer", "Share of the norm", f"{prompt} …"], rows)
