"""Measure a model the way the card of the bundled one reports it; prints Markdown.

    python -m helpers.training.measure                         # the bundled model
    python -m helpers.training.measure --corpus my_texts       # also on texts it never saw

The card is ``helpers/pocket/MODEL_CARD.md``. Everything but the timings is fixed by the model:
prompts, seeds and the choice of layer and force, which is made on the development prompts and
reported on the test prompts.
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
from helpers.concepts import SENTIMENT
from helpers.directions import find_vectors, probe
from helpers.generation import generate
from helpers.models import POCKET, encode, load_model, model_name
from helpers.statistics import mean_with_interval
from helpers.sweeps import sweep, sweep_texts
from helpers.tables import Table
from helpers.training.corpus import is_held_out, is_suitable, read_corpus
from helpers.training.train import bits_per_character

TARGET = 2.0  # nats of log-odds: the pull whose price is reported
GRID = [0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0]
CURVE = [0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0]
N_SEEDS = 3  # texts of each prompt that a price is the mean of
N_RANDOM = 20  # directions to compare with
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


def print_table(head, rows, formats=None):
    """As Markdown, with an empty line behind it."""
    print(Table(head, rows, formats).markdown(), end="\n\n")


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
    print_table(["", ""], rows)
    rows = []
    for source, share in found["shares"].items():
        facts = sources[source]
        kept = facts["train_texts"] + facts["held_out_texts"]
        left_out = facts["left_out"] / (kept + facts["left_out"])
        rows.append([source, facts["train_texts"], left_out, share])
    head = ["source", "texts trained on", "left out by the filter", "share of windows"]
    print_table(head, rows, ["", ",", ".1%", ".1%"])


def report_bits(model, tokenizer, records, characters):
    print("### Bits per character on held-out text\n")
    print(f"Of each source about {characters:,} characters, or all there are.\n")
    rows = []
    for source, members in records.items():
        texts = [record["text"] for record in members]
        random.Random(0).shuffle(texts)
        bits = bits_per_character(model, tokenizer, texts, characters)
        rows.append([source, len(texts), bits])
    print_table(["source", "held-out texts", "bits per character"], rows, ["", ",", ".2f"])


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
    bundled = (SENTIMENT.positive_sentences, SENTIMENT.negative_sentences)
    sets = {"sentences of `sentiment.json`": bundled}
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
    rows = [[layer, *row] for layer, row in enumerate(zip(*columns, strict=True))]
    rows.append(["best", *(f"**{max(column):.2f}**" for column in columns)])
    print_table(head, rows, ["", *[".2f"] * len(columns)])


def both_signs(sizes):
    """[..., size] to [..., 2 × size]: the forces upwards, then the same downwards."""
    sizes = torch.as_tensor(sizes)
    return torch.cat([sizes, -sizes], -1)


def prices(model, tokenizer, prompts, vectors, forces, n_seeds=N_SEEDS):
    """Bits per token, mean over seeds: [vector, force, prompt]; NaN where all texts are empty."""
    seeds = [seed for seed in range(n_seeds) for _ in prompts]
    written = sweep_texts(model, tokenizer, prompts * n_seeds, vectors, forces, seed=seeds)
    return written.price.unflatten(-1, (n_seeds, len(prompts))).nanmean(-2)


def mean_price(bits):
    """The mean over prompts, with its interval; a prompt without any text does not count."""
    return mean_with_interval(bits[~bits.isnan()])


def share_for_target(pulls):
    """The share of the norm at which the mean pull first reaches TARGET, or None."""
    before, low = 0.0, 0.0
    for share, pull in zip(GRID, pulls, strict=True):
        if pull >= TARGET:
            return low + (share - low) * (TARGET - before) / (pull - before)
        low, before = share, pull
    return None


def choose(model, tokenizer, vectors, norms):
    """Layer and share of its norm, on the development prompts: where a pull of TARGET costs least.

    None if no layer reaches it.
    """
    print("### Choice of layer and force, on the development prompts\n")
    prompts = SENTIMENT.dev_prompts
    forces = both_signs(torch.tensor(GRID) * norms[:, None])
    swept = sweep(model, tokenizer, prompts, vectors, forces)
    shares = [share_for_target(pulls) for pulls in swept.pull.mean(-1).tolist()]
    reached = [layer for layer, share in enumerate(shares) if share is not None]
    costs = {}
    if reached:
        sizes = torch.tensor([[shares[layer]] for layer in reached]) * norms[reached, None]
        pushed = [vectors[layer] for layer in reached]
        bits = prices(model, tokenizer, prompts, pushed, both_signs(sizes))
        for layer, by_sign in zip(reached, bits, strict=True):
            costs[layer] = mean_price(by_sign[by_sign.nanmean(-1).argmax()])
    rows = [
        [layer, norm, "never reached" if share is None else share, str(costs.get(layer, ""))]
        for layer, (norm, share) in enumerate(zip(norms.tolist(), shares, strict=True))
    ]
    head = ["layer", "typical norm", f"share of it that pulls by {TARGET:g}"]
    print_table([*head, "price, 95 % interval"], rows, ["", ".1f", ".2f", ""])
    print("Price: bits per token, of the dearer sign. So few prompts do not tell layers apart")
    print("whose intervals overlap: among them the choice is chance.\n")
    if not costs:
        return None
    layer = min(costs, key=lambda layer: costs[layer].mean)
    return layer, shares[layer]


def report_steering(model, tokenizer, vector, norm, share):
    prompts, forces = SENTIMENT.test_prompts, both_signs([share * norm])
    swept = sweep(model, tokenizer, prompts, vector, forces)
    random_vectors = [vector.random_like(seed) for seed in range(N_RANDOM)]
    by_chance = sweep(model, tokenizer, prompts, random_vectors, forces)
    bits = prices(model, tokenizer, prompts, vector, forces)[0]
    print(f"### Steering {len(prompts)} held-out prompts\n")
    print(f"Layer {vector.layer}, force {share * norm:.2f} = {share:.2f} typical norms.\n")
    wrong = swept.wrong_way[0]
    columns = [
        steering_column(swept.pull[0, 0], by_chance.pull[:, 0], wrong.mean(), bits.nanmean(0)),
        steering_column(swept.effect[0, 0], by_chance.effect[:, 0], wrong[0], bits[0]),
        steering_column(swept.effect[0, 1], by_chance.effect[:, 1], wrong[1], bits[1]),
    ]
    names = [
        "change of the log-odds in nats, 95 % interval",
        "pushes that move a prompt the wrong way",
        f"size beside the mean of {N_RANDOM} random directions",
        "price in bits per token, 95 % interval",
    ]
    head = ["", "pull, both signs", "effect, positive force", "effect, negative force"]
    print_table(head, list(zip(names, *columns, strict=True)))


def steering_column(moved, by_chance, wrong_way, bits):
    """One column: of ``moved`` and ``bits`` [prompt] and ``by_chance`` [direction, prompt]."""
    found = mean_with_interval(moved)
    size_by_chance = by_chance.mean(-1).abs().mean().item()
    return [
        str(found),
        f"{wrong_way:.1%}",
        f"{abs(found.mean) / size_by_chance:.1f} times",
        str(mean_price(bits)),
    ]


def report_curve(model, tokenizer, vector, norm, share, picture=None):
    """Effect and price over force: a weak, a useful and a broken region."""
    print("Over force, at the same layer:\n")
    prompts, forces = SENTIMENT.test_prompts, both_signs(torch.tensor(CURVE) * norm)
    effect = sweep(model, tokenizer, prompts, vector, forces).effect[0].mean(-1)
    bits = prices(model, tokenizer, prompts, vector, forces, n_seeds=1)[0].nanmean(-1)
    curves = [*effect.view(2, -1).tolist(), *bits.view(2, -1).tolist()]
    head = ["typical norms", "effect, positive force", "effect, negative force"]
    head += ["price, positive force", "price, negative force"]
    print_table(head, list(zip(CURVE, *curves, strict=True)), ["g", *["+.2f"] * 4])
    if picture:
        draw_curve(curves, vector.layer, share, picture)


def draw_curve(curves, layer, share, picture):
    """Effects and prices over force, either sign, into a file."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 5.2), sharex=True)
    labels = ["effect on the log-odds (nats)", "price (bits per token)"]
    for ax, (up, down), label in zip(axes, (curves[:2], curves[2:]), labels, strict=True):
        plots.lines(ax, CURVE, {"positive force": up, "negative force": down}, "", label)
        ax.axvline(share, color=plots.NEUTRAL, ls="--")
    axes[0].set_title(f"layer {layer}; dashed: the force that pulls by {TARGET:g}")
    axes[1].set(xscale="log", xlabel="force in typical norms")
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
    print_table(["unsteered", f"force +{force:.1f}", f"force −{force:.1f}"], rows)


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
    print_table(["", ""], rows)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m helpers.training.measure", description=__doc__.split("\n\n")[0]
    )
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
    vectors = find_vectors(model, tokenizer, SENTIMENT.pairs)
    report_reading(model, tokenizer, vectors, records)
    norms = typical_norm(model, tokenizer)
    choice = choose(model, tokenizer, vectors, norms)
    if choice is None:
        print(f"No layer pulls the log-odds by {TARGET:g} within {GRID[-1]:g} typical norms.")
        return
    layer, share = choice
    norm = norms[layer].item()
    report_steering(model, tokenizer, vectors[layer], norm, share)
    report_curve(model, tokenizer, vectors[layer], norm, share, args.picture)
    report_samples(model, tokenizer, vectors[layer], share * norm)


if __name__ == "__main__":
    main()
