from functools import lru_cache

import numpy as np
import pytest
import torch

from helpers.activations import typical_norm
from helpers.calibration import MOST_NORMS, ORDINARY, TOLERANCE, _Search, calibrate
from helpers.concepts import SENTIMENT
from helpers.directions import find_vectors
from helpers.generation import generate
from helpers.models import SteeringError, load_model
from helpers.sweeps import sweep_damage
from real_model import LACKING
from tiny_models import PROMPTS, make_vector, new_model, tiny_model, tokenizer

TEXTS = ORDINARY[:6]
VECTORS = [make_vector(layer, seed=seed, model_name="") for layer in (0, 1, -1) for seed in (0, 1)]


@lru_cache
def own_texts(family):
    """What the model itself writes, so that it reads it well: there is something to damage."""
    texts = generate(
        tiny_model(family), tokenizer(), PROMPTS, VECTORS[0], 0.0, max_new_tokens=30, temperature=0
    )
    return [text.prompt + text.base for text in texts]


def from_grid(model, tokenizer, vector, sign, budget, texts):
    """The first force at which a fine grid of damage crosses the budget, or NaN."""
    norm = typical_norm(model, tokenizer, prompts=texts)[vector.layer].item()
    grid = norm * np.geomspace(0.01, MOST_NORMS, 120)
    lost = sweep_damage(model, tokenizer, texts, vector, (sign * grid).tolist())[0].mean(-1).numpy()
    above = np.flatnonzero(lost >= budget)
    if not len(above):
        return float("nan")
    i = above[0]
    return sign * np.interp(budget, lost[i - 1 : i + 1], grid[i - 1 : i + 1])


@pytest.mark.parametrize("budget", [0.1, 0.25, 0.5, 1.0])
def test_the_force_is_that_of_a_fine_grid(budget):
    model, own = load_model("pocket")
    vectors = find_vectors(model, own, SENTIMENT.pairs)[1::4]
    found = calibrate(model, own, vectors, budget, TEXTS)
    assert found.evaluations <= 5
    for vector, row in zip(vectors, found.forces.tolist(), strict=True):
        for sign, force in zip((1, -1), row, strict=True):
            expected = from_grid(model, own, vector, sign, budget, TEXTS)
            assert force == pytest.approx(expected, rel=0.05)


@pytest.mark.skipif(bool(LACKING), reason=LACKING)
def test_the_force_is_that_of_a_fine_grid_on_a_real_model():
    model, own = load_model("smollm2")
    vectors = [find_vectors(model, own, SENTIMENT.pairs)[layer] for layer in (13, 26)]
    found = calibrate(model, own, vectors, 0.25, ORDINARY[:2])
    for vector, row in zip(vectors, found.forces.tolist(), strict=True):
        for sign, force in zip((1, -1), row, strict=True):
            expected = from_grid(model, own, vector, sign, 0.25, ORDINARY[:2])
            assert force == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_on_a_random_model_the_force_is_that_of_a_fine_grid(family):
    model, texts = tiny_model(family), own_texts(family)
    found = calibrate(model, tokenizer(), VECTORS, 0.5, texts)
    assert found.evaluations <= 5
    for vector, row in zip(VECTORS, found.forces.tolist(), strict=True):
        for sign, force in zip((1, -1), row, strict=True):
            expected = from_grid(model, tokenizer(), vector, sign, 0.5, texts)
            assert force == pytest.approx(expected, rel=0.05)


def test_the_damage_is_that_of_the_forces():
    texts = own_texts("gpt2")
    found = calibrate(tiny_model(), tokenizer(), VECTORS, 0.5, texts)
    expected = sweep_damage(tiny_model(), tokenizer(), texts, VECTORS, found.forces)
    torch.testing.assert_close(found.damage, expected, atol=1e-4, rtol=0)
    assert (found.damage.mean(-1) / 0.5 - 1).abs().max() <= 2 * TOLERANCE
    assert (found.forces[:, 0] > 0).all() and (found.forces[:, 1] < 0).all()
    assert found.reached.all()


def test_where_a_push_helps_to_read_no_force_is_made_up():
    # A random model reads ordinary text as badly with a push as without.
    with pytest.warns(UserWarning, match="No force that costs 0.5 bits was found"):
        found = calibrate(tiny_model(), tokenizer(), VECTORS, 0.5, TEXTS)
    known = ~found.forces.isnan()
    assert not known.all() and not found.reached.all()
    off = (found.damage.mean(-1) / 0.5 - 1).abs()
    assert (off[known] <= 2 * TOLERANCE).all() and (off[~known] > TOLERANCE).all()


def test_a_budget_that_nothing_costs_is_said_and_nan():
    with pytest.warns(UserWarning, match=r"costs 500 bits .* for \+ in layer 1, - in layer 1: the"):
        found = calibrate(tiny_model(), tokenizer(), make_vector(1), 500, TEXTS)
    assert found.forces.isnan().all() and not found.reached.any()


CURVES = {
    "square": lambda f: f**2,
    "straight": lambda f: f,
    "steep": lambda f: f**5,
    "helps at first": lambda f: f**2 - 0.3 * f,
    "tiny": lambda f: 0.05 * f**2,
    "huge": lambda f: 1000 * f**2,
    "saturates": lambda f: 3 * torch.tanh(f**2),
}
HARD = {
    "helps for long": lambda f: (f - 0.8) ** 3 + 0.2 * (f - 0.8),
    "late": lambda f: 0.01 * f + torch.relu(f - 1) ** 2,
    "never": lambda f: -f,
    "up and down": lambda f: torch.sin(3 * f),
    "a step": lambda f: 5.0 * (f > 1.5),
    "flat": lambda f: 0 * f,
}


@pytest.mark.parametrize("budget", [0.1, 0.25, 1.0, 2.0])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_many_shapes_of_damage_are_solved_within_five_tries(curve, budget):
    search = _Search(torch.tensor([1.0, 1.0]), budget)
    for _ in range(5):
        if rows := search.left:
            search.learn(rows, curve(search.force[rows]))
    assert search.found.all()
    assert curve(search.force) == pytest.approx([budget] * 2, rel=TOLERANCE + 1e-6)


@pytest.mark.parametrize("budget", [0.1, 0.25, 1.0, 2.0])
@pytest.mark.parametrize("curve", HARD.values(), ids=HARD)
def test_what_is_not_found_is_not_made_up(curve, budget):
    search = _Search(torch.tensor([1.0]), budget)
    for _ in range(5):
        if rows := search.left:
            search.learn(rows, curve(search.force[rows]))
    if search.found.item():
        near = curve(search.force * torch.linspace(0.95, 1.05, 101))
        assert near.min() <= budget * (1 + TOLERANCE) and near.max() >= budget * (1 - TOLERANCE)


def test_a_row_that_is_found_stays_while_others_are_sought():
    search = _Search(torch.tensor([1.0, 1.0, 1.0]), 0.04)
    curves = torch.tensor([1.0, 100.0, 1e-9])
    seen = []
    for _ in range(5):
        if rows := search.left:
            search.learn(rows, curves[rows] * search.force[rows] ** 2)
        seen.append(search.force[0].item())
    assert seen == [pytest.approx(0.2)] * 5
    assert search.found.tolist() == [True, True, False]
    assert search.left == []  # out of reach, so not tried again


def test_no_hook_and_no_number_is_left_on_the_model():
    model = new_model()
    before = model(torch.tensor([[1, 2, 3]])).logits
    calibrate(model, tokenizer(), make_vector(1), 0.5, TEXTS)
    assert model(torch.tensor([[1, 2, 3]])).logits.equal(before)


@pytest.mark.parametrize("budget", [0, -1, float("nan"), "much", None])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(SteeringError, match="budget must be a number above 0"):
        calibrate(tiny_model(), tokenizer(), make_vector(1), budget, TEXTS)


@pytest.mark.parametrize("texts", [[], "We", ["We"], [""]])
def test_texts_that_cannot_be_read_are_refused(texts):
    with pytest.raises(SteeringError):
        calibrate(tiny_model(), tokenizer(), make_vector(1), 0.5, texts)


def test_the_ordinary_texts_say_nothing_of_the_pairs():
    words = {word.strip(".,").lower() for text in ORDINARY for word in text.split()}
    for field in (SENTIMENT.positive_words, SENTIMENT.negative_words):
        assert not words & set(field)
    assert len(ORDINARY) == len(set(ORDINARY)) == 16
    assert not {*ORDINARY} & {*PROMPTS, *SENTIMENT.sentences}
