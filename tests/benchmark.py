"""What things cost on this machine, beside what they are compared with; all from one run.

    python tests/benchmark.py                everything
    python tests/benchmark.py sweep caching  some parts, by the names of their functions

Not a test: seconds differ from machine to machine. Ratios differ less, so read those. Torch
gets two threads; set OMP_NUM_THREADS for another number.
"""

import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import cycle, islice, product
from threading import Timer

os.environ.setdefault("OMP_NUM_THREADS", "2")

# First, because transformers reads the environment when it is imported.
import conftest  # noqa: E402, F401  sets the rest of a test run's environment

# isort: split
import torch  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402

from helpers import sweeps  # noqa: E402
from helpers.activations import residual_stream, typical_norm  # noqa: E402
from helpers.concepts import SENTIMENT  # noqa: E402
from helpers.directions import SteeringVector, find_vectors  # noqa: E402
from helpers.evaluation import log_odds, log_odds_from, perplexity, word_sides  # noqa: E402
from helpers.explorer import Explorer, Superseded  # noqa: E402
from helpers.generation import generate  # noqa: E402
from helpers.models import blocks, d_model, encode, load_model, some_layers  # noqa: E402
from helpers.steering import steer  # noqa: E402
from helpers.views import compute  # noqa: E402
from real_model import LACKING  # noqa: E402

NEW_TOKENS = 24
N_FORCES = 9


def explorer(model, tokenizer):
    """From a new setting of the panel to its finished view, over layers and forces."""
    vectors = find_vectors(model, tokenizer, SENTIMENT.pairs)
    prompt = SENTIMENT.dev_prompts[0]
    batch = encode(model, tokenizer, [prompt] * 2)
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    panel = Explorer(model, tokenizer, {"sentiment": vectors}, prompt=prompt)
    panel.length.value = NEW_TOKENS

    def plain():
        model.generate(**batch, **length, do_sample=False, pad_token_id=tokenizer.pad_token_id)

    def texts():
        layer, force = panel.layer.value, panel.force.value
        generate(model, tokenizer, [prompt], vectors[layer], force, max_new_tokens=NEW_TOKENS)

    def move(share):
        panel.force.value = share * panel.scale[panel.layer.value]

    rows = {
        f"model.generate of two rows, {NEW_TOKENS} tokens, greedy": [],
        "generate of the same two texts": [],
        "the panel, a new setting": [],
        "the panel, a cached setting": [],
    }
    for layer in range(0, len(vectors), 3):
        panel.layer.value = layer
        for share in (-0.4, -0.2, 0.1, 0.2, 0.3):
            new = seconds(lambda s=share: move(s))
            calls = [seconds(plain), seconds(texts), new]
            move(0)
            calls.append(seconds(lambda s=share: move(s)))
            for row, call in zip(rows.values(), calls, strict=True):
                row.append(call)
            move(0)
    return rows


def writing(model, tokenizer, moves=3):
    """A new setting of the panel while its text is written, and the end of one that is stopped."""
    vectors = find_vectors(model, tokenizer, SENTIMENT.pairs)
    panel = Explorer(model, tokenizer, {"sentiment": vectors}, prompt=SENTIMENT.dev_prompts[0])
    layer = panel.layer.value
    rows = {"the finished view": [], "its first word": [], "from a newer setting to the stop": []}

    def looked_at(force, watch):
        setting = replace(panel.setting, force=force)
        compute(model, tokenizer, vectors, panel.scale, setting, SENTIMENT, watch)

    for share in torch.linspace(0.05, 0.35, moves).tolist():
        force, moments, newer = share * panel.scale[layer], [], []
        finished = seconds(lambda f=force: setattr(panel.force, "value", f))
        start = time.perf_counter()
        looked_at(force, lambda texts, m=moments: m.append(time.perf_counter()))
        # A move in the middle of the text, at any moment of a token.
        middle = moments[len(moments) // 2] - start
        timer = Timer(middle, lambda n=newer: n.append(time.perf_counter()))

        def stop(texts, newer=newer):
            if newer:
                raise Superseded

        timer.start()
        with suppress(Superseded):
            while True:  # until it is stopped, should a text be done before the move
                looked_at(force, stop)
        stopped = time.perf_counter() - newer[0]
        for row, call in zip(rows.values(), (finished, moments[0] - start, stopped), strict=True):
            row.append(call)
    return rows


def on_the_real_model(part, **options):
    """What a part gives on the real model; where that is not installed, a line that says so."""
    if LACKING:
        print(f"left out: {LACKING}")
        return {}
    return part(*load_model("smollm2"), **options)


def writing_real(_, __):
    """The same on the real model."""
    return on_the_real_model(writing)


def sweep(model, tokenizer):
    """The log-odds for every layer, 9 forces and 16 prompts."""
    vectors = find_vectors(model, tokenizer, SENTIMENT.pairs)
    forces = typical_norm(model, tokenizer)[:, None] * torch.linspace(-1, 1, N_FORCES)
    sides = word_sides(tokenizer, SENTIMENT)
    cells = list(product(range(len(vectors)), range(N_FORCES), SENTIMENT.dev_prompts))
    some = cells[::17]  # of every layer, force and prompt
    products = needed_products(model, tokenizer)

    def one_at_a_time():
        for layer, step, prompt in some:
            batch = encode(model, tokenizer, [prompt])
            with steer(model, vectors[layer], forces[layer, step]):
                log_odds_from(model(**batch, use_cache=False).logits[:, -1], sides)

    def prompts_together():
        for layer, step in product(range(len(vectors)), range(N_FORCES)):
            force = forces[layer, step].item()
            log_odds(model, tokenizer, SENTIMENT.dev_prompts, vectors[layer], force)

    def together():
        sweeps.sweep(model, tokenizer, SENTIMENT.dev_prompts, vectors, forces)

    rows = {f"one forward a cell (from {len(some)} of {len(cells)} cells)": []}
    rows |= {"all prompts of a setting in one batch": [], "sweep": []}
    rows |= {"the matrix products that it needs": []}
    for _ in range(3):
        naive = seconds(one_at_a_time) * len(cells) / len(some)
        times = [naive, seconds(prompts_together), seconds(together), seconds(products)]
        for row, call in zip(rows.values(), times, strict=True):
            row.append(call)
    return rows


def damage(model, tokenizer, most=12, repetitions=2):
    """How much worse the steered model reads 20 sentences: every layer, 8 forces."""
    layers = some_layers(model, most)
    vectors = find_vectors(model, tokenizer, SENTIMENT.pairs)
    vectors = [vectors[layer] for layer in layers]
    shares = torch.tensor([-0.8, -0.4, -0.2, -0.1, 0.1, 0.2, 0.4, 0.8])
    forces = typical_norm(model, tokenizer)[layers, None] * shares
    sentences = SENTIMENT.sentences[::2]
    firsts, rests = zip(*(sentence.split(" ", 1) for sentence in sentences), strict=True)
    rests = [" " + rest for rest in rests]
    cells = list(product(range(len(vectors)), range(len(shares)), range(len(sentences))))
    some = cells[::17]

    def one_at_a_time():
        for layer, step, i in some:
            with steer(model, vectors[layer], forces[layer, step].item()):
                perplexity(model, tokenizer, firsts[i : i + 1], rests[i : i + 1])

    def one_setting_at_a_time():
        for layer, step in product(range(len(vectors)), range(len(shares))):
            with steer(model, vectors[layer], forces[layer, step].item()):
                perplexity(model, tokenizer, firsts, rests)

    def together():
        sweeps.sweep_damage(model, tokenizer, sentences, vectors, forces)

    rows = {f"one forward a cell (from {len(some)} of {len(cells)} cells)": []}
    rows |= {"all sentences of a setting in one batch": [], "sweep_damage": []}
    for _ in range(repetitions):
        naive = seconds(one_at_a_time) * len(cells) / len(some)
        times = [naive, seconds(one_setting_at_a_time), seconds(together)]
        for row, call in zip(rows.values(), times, strict=True):
            row.append(call)
    return rows


def damage_real(_, __):
    """The same on the real model, for six of its layers, once."""
    return on_the_real_model(damage, most=6, repetitions=1)


def needed_products(model, tokenizer):
    """A call that multiplies all matrices of the sweep once, and does nothing else.

    Every token behind every push meets the weights of the blocks above it and the tokens of its
    prompt; the last ones meet the unembedding. For a GPT-2, where a weight is [in, out].
    """
    lengths = encode(model, tokenizer, SENTIMENT.dev_prompts)["attention_mask"].sum(1).tolist()
    heads = model.config.num_attention_heads
    width = d_model(model)
    inputs = {n * width: torch.randn(N_FORCES * sum(lengths), n * width) for n in (1, 4)}
    attention = [
        torch.randn(N_FORCES * n * heads, length, width // heads)
        for length, n in Counter(lengths).items()
    ]
    last = torch.randn(N_FORCES * len(lengths), width)
    weights = [[w for w in block.parameters() if w.ndim == 2] for block in blocks(model)]
    unembedding = model.get_output_embeddings().weight

    def multiply():
        for layer in range(len(weights)):
            for above in weights[layer + 1 :]:
                for weight in above:
                    inputs[len(weight)] @ weight
                for tokens in attention:
                    tokens @ tokens.mT @ tokens
            last @ unembedding.T

    return multiply


def caching(model, tokenizer):
    """The residual stream of all layers for 1,000 short prompts."""
    prompts = list(islice(cycle(SENTIMENT.dev_prompts + SENTIMENT.test_prompts), 1000))
    some = prompts[::5]

    def one_at_a_time():
        for prompt in some:
            residual_stream(model, tokenizer, [prompt])

    rows = {f"one prompt at a time (from {len(some)} of {len(prompts)})": []}
    rows |= {"residual_stream of all": []}
    for _ in range(3):
        naive = seconds(one_at_a_time) * len(prompts) / len(some)
        times = [naive, seconds(lambda: residual_stream(model, tokenizer, prompts))]
        for row, call in zip(rows.values(), times, strict=True):
            row.append(call)
    return rows


def hook(model, tokenizer, repetitions=20):
    """What steering adds to model.generate: 8 prompts, 24 tokens, greedy."""
    batch = encode(
        model, tokenizer, SENTIMENT.dev_prompts[:8], padding_side="left", new_tokens=NEW_TOKENS
    )
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    raw = torch.randn(d_model(model), generator=torch.Generator().manual_seed(0))
    middle = len(blocks(model)) // 2
    vector = SteeringVector.from_raw(raw, layer=middle, method="", model_name="", n_pairs=0)

    def plain():
        model.generate(**batch, **length, do_sample=False, pad_token_id=tokenizer.pad_token_id)

    def steered():
        with steer(model, vector, 5.0):
            plain()

    rows = {"model.generate": [], "model.generate under steer": []}
    plain()  # the first call of a model is slower
    for repetition in range(repetitions):
        calls = list(zip(rows.values(), (plain, steered), strict=True))
        # Either goes first in turn, so that neither profits from the other.
        for row, call in calls[:: 1 if repetition % 2 else -1]:
            row.append(seconds(call))
    return rows


def hook_gpt2(_, tokenizer):
    """The same on a model of the size of GPT-2 small, with random weights."""
    model = GPT2LMHeadModel(GPT2Config()).eval().requires_grad_(False)
    return hook(model, tokenizer, repetitions=2)


def busy(model, tokenizer):
    """A slider move on an idle machine, and beside another process that is busy."""
    vectors = find_vectors(model, tokenizer, SENTIMENT.pairs)
    panel = Explorer(model, tokenizer, {"sentiment": vectors})
    neighbour = (
        "import torch\na = torch.randn(700, 700)\nprint('busy', flush=True)\nwhile True: a @ a"
    )
    shares = iter(torch.linspace(0.02, 0.4, 40).tolist())
    rows = {"a new setting, nothing else busy": [], "beside a process of one thread": []}

    def move():
        panel.force.value = next(shares) * panel.scale[panel.layer.value]

    for row in rows.values():
        process = None
        if row is not rows["a new setting, nothing else busy"]:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", neighbour]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
            process.stdout.readline()
        try:
            row.extend(seconds(move) for _ in range(15))
        finally:
            if process is not None:
                process.kill()
                process.wait()
    return rows


PARTS = [
    explorer,
    writing,
    writing_real,
    busy,
    sweep,
    damage,
    damage_real,
    caching,
    hook,
    hook_gpt2,
]


def seconds(call):
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(names):
    model, tokenizer = load_model("pocket")
    print(f"{'median of the calls':<50} {'calls':>5} {'ms':>9} {'ratio':>7} {'faster':>7}")
    for part in PARTS:
        if names and part.__name__ not in names:
            continue
        print(f"-- {part.__name__}: {part.__doc__}")
        rows = part(model, tokenizer)
        if not rows:
            continue
        # Within a part each line is compared with the first.
        reference = statistics.median(next(iter(rows.values())))
        for name, times in rows.items():
            median = statistics.median(times)
            line = f"{name:<50} {len(times):>5} {1000 * median:>9.1f}"
            print(f"{line} {median / reference:>7.3f} {reference / median:>6.1f}x")


if __name__ == "__main__":
    main(sys.argv[1:])
