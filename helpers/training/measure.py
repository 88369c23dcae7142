"""Measure a model the way ``MODEL_CARD.md`` reports it; prints Markdown.

    python -m helpers.pocket.measure                         # the bundled model
    python -m helpers.pocket.measure --corpus my_texts       # also on texts it never saw

Everything but the timings is fixed by the model: prompts, seeds and the choice of layer and
force, which is made on DEV_PROMPTS and reported on TEST_PROMPTS.
"""

import argparse
import json
import random
import re
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from helpers import plots
from helpers.activations import residual_stream, typical_norm
from helpers.directions import find_vectors, probe
from helpers.evaluation import (
    DEV_PROMPTS,
    NEGATIVE_SENTENCES,
    POSITIVE_SENTENCES,
    TEST_PROMPTS,
    log_price,
    mean_with_interval,
)
from helpers.generation import generate
from helpers.models import POCKET, encode, load_model, model_name
from helpers.pairs import SENTIMENT_PAIRS
from helpers.sweeps import sweep, sweep_texts
from helpers.training.corpus import is_held_out, is_suitable, read_corpus
from helpers.training.train import bits_per_character

TARGET = 2.0  # nats of log-odds: the shift whose price is reported
GRID = [0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0]
CURVE = [0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0]
SNIPPETS = 400  # of each label at most
SAMPLE_PROMPTS = [
    "The hotel room was",
    "The weather is",
    "My day was",
    "He is a very",
    "I think this movie is",
    "The food at this restaurant is",
    "Our flight to London was",
    "This dress is",
    "The new phone",
    "Once upon a time there was",
]


def table(head, rows):
    """Print a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |")
    print()


def held_out_records(folder):
    """{source: records} of the texts in a corpus that no training on it sees."""
    found = {}
    for source, record in read_corpus(folder):
        if is_held_out(record["text"]) and is_suitable(record["text"]):
            found.setdefault(source, []).append(record)
    return found


def report_training(model):
    """What ``train.py`` noted beside the weights; nothing for a model of another make."""
    name = model_name(model)
    notes = (POCKET if name == "pocket" else Path(name)) / "training.json"
    if not notes.exists():
        return
    found = json.loads(notes.read_text(encoding="utf-8"))
    settings, sources = found["settings"], found["sources"]
    rows = [
        ["parameters", f"{found['parameters'] / 1e6:.1f} million"],
        ["training", f"{found['seconds'] / 60:.0f} minutes on {found['hardware']}"],
        ["arithmetic", f"{settings['dtype']}, PyTorch {found['torch']}"],
        ["tokens seen", f"{found['tokens_seen'] / 1e6:.1f} million"],
        ["passes over the corpus", f"{found['passes']:.1f}"],
        ["steps", f"{found['step']:,} of {settings['batch']} windows"],
        ["loss on training text, at the end", f"{found['loss']:.2f} nats per token"],
        ["loss on held-out text", f"{found['held_out_curve'][-1][1]:.2f} nats per token"],
    ]
    print("### Training\n")
    table(["", ""], rows)
    rows = []
    for source, share in found["shares"].items():
        facts = sources[source]
        kept = facts["train_texts"] + facts["held_out_texts"]
        left_out = facts["left_out"] / (kept + facts["left_out"])
        rows.append([source, f"{facts['train_texts']:,}", f"{left_out:.1%}", f"{share:.1%}"])
    table(["source", "texts trained on", "left out by the filter", "share of windows"], rows)


def report_bits(model, tokenizer, records, characters):
    print("### Bits per character on held-out text\n")
    print(f"Of each source about {characters:,} characters, or all there are.\n")
    rows = []
    for source, members in records.items():
        texts = [record["text"] for record in members]
        random.Random(0).shuffle(texts)
        bits = bits_per_character(model, tokenizer, texts, characters)
        rows.append([source, len(texts), f"{bits:.2f}"])
    table(["source", "held-out texts", "bits per character"], rows)


def labelled_sentences(records):
    """Sentences of held-out reviews: {name of the set: {label: [sentence]}}.

    A review of one sentence is one; of a longer one, the last sentence, often its verdict, is.
    """
    sets = {
        "reviews of one sentence": {"pos": [], "neg": []},
        "last sentences of longer reviews": {"pos": [], "neg": []},
    }
    short, long = sets.values()
    for record in (record for members in records.values() for record in members):
        if record.get("label") in ("pos", "neg"):
            sentences = re.split(r"(?<=[.!?])\s+|\n+", record["text"].strip())
            if 20 <= len(sentences[-1]) <= 200:
                (short if len(sentences) == 1 else long)[record["label"]].append(sentences[-1])
    for by_label in sets.values():
        n = min(SNIPPETS, *map(len, by_label.values()))
        for label, sentences in by_label.items():
            random.Random(0).shuffle(sentences)
            by_label[label] = sentences[:n]
    return {name: s for name, s in sets.items() if len(s["pos"]) >= 20}


def area(positive, negative, direction):
    """Area under the ROC curve of the projections on a direction: 0.5 is chance, 1 is perfect."""
    scores = torch.cat([positive, negative]) @ direction
    return roc_auc_score([1] * len(positive) + [0] * len(negative), scores.numpy())


def probe_area(positive, negative, folds=5):
    """The same for a logistic probe, each fold read by a probe fitted on the others."""
    both = torch.cat([positive, negative])
    labels = torch.tensor([1] * len(positive) + [0] * len(negative))
    areas = []
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    for fit, test in splits.split(both, labels):
        x, y = both[fit], labels[fit]
        direction = probe(x[y == 1], x[y == 0])
        x, y = both[test], labels[test]
        areas.append(area(x[y == 1], x[y == 0], direction))
    return sum(areas) / folds


def report_reading(model, tokenizer, vectors, records):
    sets = {"sentences of `helpers.evaluation`": (POSITIVE_SENTENCES, NEGATIVE_SENTENCES)}
    for name, by_label in labelled_sentences(records).items():
        sets[name] = (by_label["pos"], by_label["neg"])
    print("### Reading: area under the ROC curve by layer\n")
    print("Sentences scored by the mean of their residual stream (first token left out): its")
    print("projection on the mean difference of the eight pairs, and a logistic probe")
    print("(five-fold cross-validation).\n")
    columns, head = [], ["layer"]
    for name, (positive, negative) in sets.items():
        cache = residual_stream(model, tokenizer, [*positive, *negative], position="mean")
        good, bad = cache[:, : len(positive)], cache[:, len(positive) :]
        directions = [vector.direction for vector in vectors]
        columns.append([area(*args) for args in zip(good, bad, directions, strict=True)])
        columns.append([probe_area(*args) for args in zip(good, bad, strict=True)])
        head += [f"{name} ({len(positive)} + {len(negative)}): direction", "probe"]
    by_layer = enumerate(zip(*columns, strict=True))
    rows = [[layer, *(f"{x:.2f}" for x in row)] for layer, row in by_layer]
    rows.append(["best", *(f"**{max(column):.2f}**" for column in columns)])
    table(head, rows)


def shifts(model, tokenizer, prompts, vector, forces):
    """Change of the log-odds towards the side pushed to: [force, sign (+, -), prompt]."""
    signed = [sign * force for force in forces for sign in (1, -1)]
    effect = sweep(model, tokenizer, prompts, vector, signed).effect[0]
    return effect.view(len(forces), 2, -1) * torch.tensor([1.0, -1.0])[:, None]


def log_prices(model, tokenizer, prompts, vector, force, n_seeds=3):
    """Log of the perplexity ratio, steered to unsteered text: [sign (+, -), prompt], over seeds."""
    prices = []
    for seed in range(n_seeds):
        up, down = sweep_texts(model, tokenizer, prompts, vector, [force, -force], seed=seed)[0]
        prices.append(log_price(model, tokenizer, up + down).view(2, -1))
    return torch.stack(prices).nanmean(0)


def force_for_target(sizes):
    """The share of the norm at which the mean shift first reaches TARGET, or None."""
    before, low = 0.0, 0.0
    for share, size in zip(GRID, sizes, strict=True):
        if size >= TARGET:
            return low + (share - low) * (TARGET - before) / (size - before)
        low, before = share, size
    return None


def choose(model, tokenizer, vectors, norms):
    """Layer and force, on DEV_PROMPTS: the layer where a shift of TARGET costs least."""
    print("### Choice of layer and force, on the development prompts\n")
    rows, best = [], None
    for layer, (vector, norm) in enumerate(zip(vectors, norms.tolist(), strict=True)):
        change = shifts(model, tokenizer, DEV_PROMPTS, vector, [s * norm for s in GRID])
        share = force_for_target(change.mean((1, 2)).tolist())
        if share is None:
            rows.append([layer, f"{norm:.1f}", "never reached", ""])
            continue
        price = log_prices(model, tokenizer, DEV_PROMPTS, vector, share * norm)
        price = price[~price.isnan()].mean().exp().item()
        rows.append([layer, f"{norm:.1f}", f"{share:.2f}", f"{price:.2f}"])
        if best is None or price < best[0]:
            best = (price, layer, share)
    table(["layer", "typical norm", f"share of it that shifts by {TARGET:g}", "price"], rows)
    print("Price: perplexity of the steered over that of the unsteered text.\n")
    return best and best[1:]


def report_steering(model, tokenizer, vector, norm, share):
    force = share * norm
    change = shifts(model, tokenizer, TEST_PROMPTS, vector, [force])[0]
    controls = [vector.random_like(seed) for seed in range(20)]
    by_control = sweep(model, tokenizer, TEST_PROMPTS, controls, [force, -force]).effect
    random_sizes = by_control.mean(2).abs()  # [direction, sign]
    price = log_prices(model, tokenizer, TEST_PROMPTS, vector, force)
    print(f"### Steering {len(TEST_PROMPTS)} held-out prompts\n")
    print(f"Layer {vector.layer}, force {force:.2f} = {share:.2f} typical norms.\n")
    columns = []
    for side in (slice(0, 2), slice(0, 1), slice(1, 2)):
        size = change[side].mean(0)
        mean, low, high = mean_with_interval(size)
        cost = price[side].nanmean(0)
        cost = mean_with_interval(cost[~cost.isnan()])
        columns.append(
            [
                f"{mean:.2f} [{low:.2f}, {high:.2f}]",
                f"{(change[side] <= 0).float().mean():.1%}",
                f"{mean / random_sizes[:, side].mean():.1f}",
                "{:.2f} [{:.2f}, {:.2f}]".format(*torch.tensor(cost).exp().tolist()),
            ]
        )
    names = [
        "shift of the log-odds, 95 % interval",
        "prompts that move the wrong way",
        "ratio to the mean of 20 random directions",
        "perplexity ratio, 95 % interval",
    ]
    table(["", "both signs", "positive", "negative"], list(zip(names, *columns, strict=True)))


def report_curve(model, tokenizer, vector, norm, share, picture=None):
    """Shift and price over force: a weak, a useful and a broken region."""
    print("Over force, at the same layer:\n")
    moved, costs = [], []  # [force, sign]
    for step in CURVE:
        up, down = shifts(model, tokenizer, TEST_PROMPTS, vector, [step * norm])[0].mean(1)
        moved.append([up.item(), -down.item()])
        cost = log_prices(model, tokenizer, TEST_PROMPTS, vector, step * norm, n_seeds=1)
        costs.append(cost.nanmean(1).exp().tolist())
    rows = [
        [f"{step:g}", *(f"{x:+.2f}" for x in shift), *(f"{x:.2f}" for x in cost)]
        for step, shift, cost in zip(CURVE, moved, costs, strict=True)
    ]
    head = ["typical norms", "shift, positive", "shift, negative"]
    table([*head, "perplexity ratio, positive", "perplexity ratio, negative"], rows)
    if picture:
        draw_curve(moved, costs, vector.layer, share, picture)


def draw_curve(moved, costs, layer, share, picture):
    """Both columns of numbers over force, into a file."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 5.2), sharex=True)
    for ax, pairs, label in (
        (axes[0], moved, "shift of the log-odds"),
        (axes[1], costs, "perplexity ratio"),
    ):
        up, down = zip(*pairs, strict=True)
        plots.lines(ax, CURVE, {"positive force": up, "negative force": down}, "", label)
        ax.axvline(share, color=plots.NEUTRAL, ls="--")
    axes[0].set_title(f"layer {layer}; dashed: the force that shifts by {TARGET:g}")
    axes[1].set(yscale="log", xscale="log", xlabel="force in typical norms")
    axes[1].set_xticks(CURVE, [f"{step:g}" for step in CURVE])
    axes[1].minorticks_off()
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def report_samples(model, tokenizer, vector, force):
    print("### Samples, as they came (temperature 0.8, top 40, seed 0, 24 tokens)\n")
    up = generate(model, tokenizer, SAMPLE_PROMPTS, vector, force)
    down = generate(model, tokenizer, SAMPLE_PROMPTS, vector, -force)
    rows = [
        [" ".join(f"**{a.prompt}**{text}".split()) for text in (a.base, a.steered, b.steered)]
        for a, b in zip(up, down, strict=True)
    ]
    table(["unsteered", f"force +{force:.1f}", f"force −{force:.1f}"], rows)


def report_speed(name):
    began = time.perf_counter()
    model, tokenizer = load_model(name)
    loading = time.perf_counter() - began
    rows = [["load_model", f"{loading:.1f} s"]]
    for n in (1, 8):
        batch = encode(model, tokenizer, ["The hotel room was"] * n)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            ids = model.generate(**batch, max_new_tokens=60, min_new_tokens=60, do_sample=False)
            seconds.append(time.perf_counter() - began)
        speed = n * (ids.shape[1] - batch["input_ids"].shape[1]) / min(seconds)
        rows.append([f"generating, {n} at a time", f"{speed:,.0f} tokens/s"])
    print(f"### Speed, on {model.device.type}, {torch.get_num_threads()} threads\n")
    table(["", ""], rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="as in load_model; default: the bundled one")
    parser.add_argument("--corpus", help="folder of JSON-lines files the model was trained on")
    parser.add_argument(
        "--characters", type=int, default=100_000, help="of each source, for the bits per character"
    )
    parser.add_argument("--picture", help="file to draw the curve over force into, such as x.png")
    args = parser.parse_args(argv)
    report_speed(args.model)
    model, tokenizer = load_model(args.model)
    report_training(model)
    records = held_out_records(args.corpus) if args.corpus else {}
    if records:
        report_bits(model, tokenizer, records, args.characters)
    vectors = find_vectors(model, tokenizer, SENTIMENT_PAIRS)
    report_reading(model, tokenizer, vectors, records)
    norms = typical_norm(model, tokenizer)
    choice = choose(model, tokenizer, vectors, norms)
    if choice is None:
        print(f"No layer shifts the log-odds by {TARGET:g} within {GRID[-1]:g} typical norms.")
        return
    layer, share = choice
    norm = norms[layer].item()
    report_steering(model, tokenizer, vectors[layer], norm, share)
    report_curve(model, tokenizer, vectors[layer], norm, share, args.picture)
    report_samples(model, tokenizer, vectors[layer], share * norm)


if __name__ == "__main__":
    main()
