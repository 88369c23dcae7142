"""Right calls, drawn by Hypothesis, give what references say that are written in the plainest way.

Every run draws the same ones, unless STEERING_FUZZ_MINUTES says for how long to go on with others.
"""

import math
import warnings
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.activations import capture, residual_stream
from helpers.batches import Batches
from helpers.calibration import calibrate
from helpers.directions import METHODS, SteeringVector, cosines
from helpers.evaluation import distinct, log_odds, perplexity, price, repetition
from helpers.generation import SteeredText, generate
from helpers.models import encode
from helpers.statistics import auc_with_interval, mean_with_interval
from helpers.steering import ablate, steer
from helpers.sweeps import sweep, sweep_damage
from test_checks import MODEL, TOKENIZER
from tiny_models import logits_of, make_vector, plain_log_odds, plain_push, tiny_model, token_ids

pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as of_numpy  # noqa: E402

from odd_values import search  # noqa: E402

WORDS = "the soup was good bad and we like it a lot of long films so 🙂 don't".split()
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
TEXTS = st.lists(TEXT, min_size=1, max_size=4)
FAMILY = st.sampled_from(["gpt2", "llama", "gemma2", "bloom"]).map(tiny_model)
VECTOR = st.builds(make_vector, st.integers(0, 2), st.integers(0, 99))
VECTORS = st.lists(VECTOR, min_size=1, max_size=3)
BATCH = st.sampled_from([1, 7, 2048])
SAMPLE = st.lists(st.floats(-99, 99), min_size=2, max_size=9)
ROWS = of_numpy.arrays("f4", (3, 4), elements=st.floats(-9, 9, width=16)).map(torch.from_numpy)


@st.composite
def pushes(draw):
    """Prompts, vectors, a force in any form that is right for them; and what that means.

    Which is, for each prompt, a list of (layer, what to add).
    """
    prompts, vectors = draw(TEXTS), draw(VECTORS)
    n, m = len(vectors), len(prompts)
    form = draw(st.sampled_from(["one", "row" if n == 1 else "vector", "column", "table"]))
    form = "column" if n == m and form == "vector" else form  # the list would be ambiguous
    width = m if form in ("row", "table") else 1
    own = st.lists(st.just(0.0) | st.floats(-20, 20, width=16), min_size=width, max_size=width)
    table = draw(st.lists(own, min_size=n, max_size=n))
    force = {"row": table[0], "vector": [row[0] for row in table]}.get(form, table)
    if form == "one":
        force, table = table[0][0], [table[0]] * n
    kind = draw(st.sampled_from([lambda x: x, np.array, torch.tensor]))
    layer = draw(st.none() | st.integers(-3, 2))
    meant = [
        [
            (v.layer if layer is None else layer % 3, row[at % width] * v.direction)
            for v, row in zip(vectors, table, strict=True)
        ]
        for at in range(m)
    ]
    return (
        prompts,
        (vectors[0] if n == 1 and draw(st.booleans()) else vectors, kind(force), layer),
        meant,
    )


def near_to(found, expected):
    expected = torch.as_tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)


def plain_logits(model, ids, pushed=(), columns=slice(None)):
    with ExitStack() as stack:
        for layer, delta in pushed:
            stack.enter_context(plain_push(model, layer, delta, columns))
        return logits_of(model, torch.tensor([ids]))[0]


def plain_bits(model, ids, start=1, pushed=()):
    """Mean surprisal of the tokens from ``start`` on, in bits."""
    chances = plain_logits(model, ids, pushed)[:-1].log_softmax(-1)
    own = [-chances[i - 1, ids[i]].item() / math.log(2) for i in range(start, len(ids))]
    return sum(own) / len(own) if own else math.nan


def the_log_odds(model, pushed, batch):
    prompts, given, meant = pushed
    expected = [plain_log_odds(model, *row) for row in zip(prompts, meant, strict=True)]
    near_to(log_odds(model, TOKENIZER, prompts, *given, batch_tokens=batch), expected)


def the_steered_tokens(model, pushed, positions, lengths):
    prompts, given, meant = pushed
    batch = encode(model, TOKENIZER, prompts)
    with steer(model, *given, positions, lengths[: len(prompts)]):
        found = logits_of(model, batch["input_ids"], attention_mask=batch["attention_mask"])
    for row, n in enumerate(lengths[: len(prompts)]):
        where = {"all": slice(None), "prompt": slice(n), "generated": slice(n, None)}[positions]
        ids = TOKENIZER(prompts[row])["input_ids"]
        near_to(found[row, : len(ids)], plain_logits(model, ids, meant[row], where))


def the_texts(model, pushed, seed, temperature, top_k, positions):
    prompts, (vector, force, layer), meant = pushed
    options = {"temperature": temperature, "top_k": top_k, "positions": positions}
    options |= {"max_new_tokens": 3}
    seeds = [seed + row for row in range(len(prompts))]
    found = generate(model, TOKENIZER, prompts, vector, force, layer, seed=seeds, **options)
    for row, prompt in enumerate(prompts):
        # A text by itself: all its pushes as vectors of force 1.
        delta = [(at, d) for at, d in meant[row] if d.any()]
        if not delta:
            assert found[row].base == found[row].steered
            continue
        one = [make_vector(at).like(d, "own") for at, d in delta]
        force = [[vector.raw_norm] for vector in one]
        own = generate(model, TOKENIZER, [prompt], one, force, seed=seeds[row], **options)
        assert own == [found[row]]
    if temperature == 0 or top_k == 1:
        start = ids = TOKENIZER(prompts[0])["input_ids"]
        while len(ids) < len(start) + 3 and 0 not in ids[len(start) :]:
            ids = [*ids, plain_logits(model, ids)[-1].argmax().item()]
        assert found[0].base == TOKENIZER.decode(ids[len(start) :], skip_special_tokens=True)


def the_sweeps(model, prompts, vectors, sizes, batch, budget):
    forces = torch.tensor(sorted({*sizes, *(-size for size in sizes)}))
    swept = sweep(model, TOKENIZER, prompts, vectors, forces, batch_tokens=batch)
    texts = [f"{prompt} it is" for prompt in prompts]
    damage = sweep_damage(model, TOKENIZER, texts, vectors, forces, batch)
    for v, f, row in np.ndindex(damage.shape):
        push = [(vectors[v].layer, forces[f] * vectors[v].direction)]
        effect = plain_log_odds(model, prompts[row], push) - plain_log_odds(model, prompts[row])
        near_to(swept.effect[v, f, row], effect)
        ids = TOKENIZER(texts[row])["input_ids"]
        near_to(damage[v, f, row], plain_bits(model, ids, 1, push) - plain_bits(model, ids))
    for v, f in np.ndindex(len(vectors), len(sizes)):
        up, down = len(sizes) + f, len(sizes) - 1 - f
        pull = (swept.effect[v, up] - swept.effect[v, down]) / 2
        near_to(swept.pull[v, f].mean(), pull.mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where no force costs as much
        equal = calibrate(model, TOKENIZER, vectors, budget / 10, texts)
    for v, sign in (~equal.forces.isnan()).nonzero().tolist():
        force = equal.forces[v, sign].item()
        assert (force > 0) == (sign == 0)
        lost = sweep_damage(model, TOKENIZER, texts, vectors[v], [force], batch)[0, 0]
        near_to(equal.damage[v, sign].mean(), lost.mean())


def the_perplexities(model, prompts, tails, batch):
    prompts = (prompts * 4)[:4]
    ids = [TOKENIZER(prompt)["input_ids"] for prompt in prompts]
    ends = [TOKENIZER(tail)["input_ids"] for tail in tails]
    bits = [plain_bits(model, x + y, len(x)) for x, y in zip(ids, ends, strict=True)]
    near_to(perplexity(model, TOKENIZER, prompts, tails, batch).log2(), bits)
    texts = [SteeredText(prompts[0], tails[0], tail) for tail in tails]
    bits = torch.tensor([plain_bits(model, ids[0] + end, len(ids[0])) for end in ends])
    near_to(price(model, TOKENIZER, texts), bits - bits[0])


def the_stream(model, prompts, position, batch, vector):
    prompts = [f"so {prompt}" for prompt in prompts]
    found = residual_stream(model, TOKENIZER, prompts, position, batch)
    for row, prompt in enumerate(prompts):
        with capture(model) as stream:
            logits_of(model, token_ids(prompt))
        for layer, hidden in stream.items():
            mean = position == "mean"
            near_to(found[layer, row], hidden[0, 1:].mean(0) if mean else hidden[0, position])
    with ablate(model, vector), capture(model) as stream:
        logits_of(model, token_ids(prompts[0]))
    near_to(torch.stack([h @ vector.direction for h in stream.values()]).abs().max(), 0)


def the_directions(above, below, scale):
    difference, values, axes = (above - below).mean(0), *torch.linalg.svd(above - below)[1:]
    near_to(METHODS["mean_difference"](above * scale, below * scale) / scale, difference)
    if values[0] > 1.1 * values[1]:
        expected = axes[0] * (axes[0] @ difference)
        near_to(METHODS["pca"](above * scale, below * scale) / scale, expected)
    assert METHODS["probe"](above * scale, below * scale) @ difference >= -1e-6 * scale
    if above.any(1).all() and below.any(1).all():
        lengths = above.double().norm(dim=1)[:, None] * below.double().norm(dim=1)
        near_to(cosines(above * scale, below * scale), above.double() @ below.double().T / lengths)


def the_algebra(one, other, factor, seed):
    other = replace(other, layer=one.layer)
    near_to(sum([one, other]).raw, one.raw + other.raw)
    near_to((one - 3 * other).raw, one.raw - 3 * other.raw)
    near_to((factor * one / 2).raw, factor * one.raw / 2)
    assert math.isclose(one.random_like(seed).raw_norm, one.raw_norm, rel_tol=1e-5)
    one.save("v")
    again = SteeringVector.load("v", MODEL)
    assert again.direction.equal(one.direction) and repr(again) == repr(one)


def the_statistics(above, below, confidence, seed):
    mean, low, high = mean_with_interval(above, confidence, seed)
    assert math.isclose(mean, np.mean(above), abs_tol=1e-9)
    assert min(above) - 1e-9 <= low <= high + 1e-9 <= max(above) + 2e-9
    area, low, high = auc_with_interval(above, below, confidence, seed)
    assert math.isclose(area, np.mean([(a > b) + (a == b) / 2 for a in above for b in below]))
    assert 0 <= low <= high + 1e-9 <= 1 + 2e-9


def the_words(texts, n, lengths, tokens):
    words = [text.lower().split() for text in texts]
    grams = [[tuple(one[i : i + n]) for i in range(len(one) - n + 1)] for one in words]
    share = lambda one: len(set(one)) / len(one) if one else math.nan  # noqa: E731
    near_to(repetition(texts, n), [1 - share(one) for one in grams])
    near_to(torch.tensor(distinct(texts, n)), share(sum(grams, [])))
    seen = []
    Batches(tokens).run(seen.append, lengths)
    assert sorted(sum(seen, [])) == list(range(len(lengths)))
    assert all(len(x) * max(lengths[i] for i in x) <= tokens for x in seen if len(x) > 1)


POSITIONS = st.sampled_from(["all", "prompt", "generated"])
FEW, SEED = st.integers(1, 9), st.integers(0, 2**62)
FOUR = {"min_size": 4, "max_size": 4}
RIGHT = {
    the_log_odds: (FAMILY, pushes(), BATCH),
    the_steered_tokens: (FAMILY, pushes(), POSITIONS, st.lists(FEW, **FOUR)),
    the_texts: (
        *(FAMILY, pushes(), st.integers(0, 2**40), st.sampled_from([0, 0.5, 1, 9])),
        *(st.sampled_from([1, 2, 40, 10**6]), POSITIONS),
    ),
    the_sweeps: (
        FAMILY,
        TEXTS,
        VECTORS,
        st.sets(FEW.map(float), min_size=1, max_size=3),
        BATCH,
        FEW,
    ),
    the_perplexities: (
        FAMILY,
        TEXTS,
        st.lists(TEXT.map(" {}".format) | st.just(""), **FOUR),
        BATCH,
    ),
    the_stream: (FAMILY, TEXTS, st.sampled_from([0, 1, -1, -2, "mean"]), BATCH, VECTOR),
    the_directions: (ROWS, ROWS, st.sampled_from([1e-6, 1.0, 1e6])),
    the_algebra: (VECTOR, VECTOR, st.floats(0.01, 99) | st.floats(-99, -0.01), SEED),
    the_statistics: (SAMPLE, SAMPLE, st.floats(0.01, 0.99), SEED),
    the_words: (st.lists(TEXT | st.just(""), min_size=1), FEW, st.lists(FEW), st.integers(1, 99)),
}


@pytest.mark.parametrize("test", RIGHT)
def test_a_right_call_is_right(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    search(test, *RIGHT[test], share=0.3 / len(RIGHT))
