from functools import lru_cache

import numpy as np
import pytest
import torch

from helpers.activations import residual_stream, typical_norm
from helpers.calibration import ORDINARY, TOLERANCE, _Search, calibrate, strength_at
from helpers.concepts import SENTIMENT
from helpers.directions import find_vectors
from helpers.generation import generate
from helpers.models import SteeringError, load_model
from helpers.sweeps import sweep_damage
from real_model import LACKING
from tiny_models import PROMPTS, make_vector, new_model, tiny_model, tokenizer

TEXTS = ORDINARY[:6]
MOST_NORMS = 8  # typical norms beyond which no force is tried
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


def rotate(h, v, angle):
    """Turn h by an angle towards v, in their plane: by polar coordinates."""
    across = h - (h * v).sum(-1, keepdim=True) * v
    aside = across / across.norm(dim=-1, keepdim=True)
    height = torch.atan2((h * v).sum(-1), (h * aside).sum(-1))[..., None] + angle
    return h.norm(dim=-1, keepdim=True) * (height.sin() * v + height.cos() * aside)


def clamp(h, v, value):
    return h - (h * v).sum(-1, keepdim=True) * v + value * v


@pytest.mark.parametrize("family", ["pocket", "llama"])
@pytest.mark.parametrize("way", [rotate, clamp])
def test_the_strength_of_another_way_to_push_is_that_of_a_fine_grid(way, family):
    if family == "pocket":
        model, own = load_model("pocket")
        vectors, texts = find_vectors(model, own, SENTIMENT.pairs)[4:11:6], TEXTS
    else:
        model, own, vectors, texts = (
            tiny_model(family),
            tokenizer(),
            VECTORS[::2],
            own_texts(family),
        )
    unit, middle = torch.ones(len(vectors)), torch.zeros(len(vectors))
    if way is clamp:
        unit = typical_norm(model, own, prompts=texts)[[v.layer for v in vectors]]
        means = residual_stream(model, own, texts, position="mean")
        middle = torch.stack([(means[v.layer] @ v.direction).mean() for v in vectors])
    found = calibrate(model, own, vectors, 0.5, texts, way=way, start=0.2 * unit, middle=middle)
    assert found.evaluations <= 5 and found.reached.any()
    grid = np.geomspace(0.01, np.pi / 2 if way is rotate else MOST_NORMS, 120)
    for sign, forces in zip((1, -1), found.forces.T, strict=True):
        tried = middle[:, None] + sign * unit[:, None] * torch.tensor(grid).float()
        lost = sweep_damage(model, own, texts, vectors, tried, way=way).mean(-1).numpy()
        sizes = sign * (forces - middle) / unit
        for size, row in zip(sizes.tolist(), lost, strict=True):
            i = int((row >= 0.5).argmax())
            assert i > 0  # it is reached, and not at once
            expected = np.interp(0.5, row[i - 1 : i + 1], grid[i - 1 : i + 1])
            assert size == pytest.approx(expected, rel=0.05)


def cost_of(*curves):
    """What rows cost: each has a curve of damage over strength; two texts of that mean."""

    def cost(rows, strengths):
        means = [curves[row](x) for row, x in zip(rows, strengths, strict=True)]
        return torch.stack([torch.stack([0.5 * mean, 1.5 * mean]) for mean in means])

    return cost


def test_strengths_of_any_kind_are_found():
    cost = cost_of(lambda x: 30 * x**2, lambda x: 0.1 + x**2, lambda x: 0.01 * x, lambda x: x + 1)
    found = strength_at(cost, [0.2, 0.2, 0.2, 0.2], [2.0, 2.0, 2.0, 2.0], 0.3)
    assert found.strengths.numpy() == pytest.approx(
        [0.1, 0.2**0.5, np.nan, np.nan], 0.05, nan_ok=True
    )
    assert found.damage[:2].mean(1).numpy() == pytest.approx([0.3, 0.3], rel=TOLERANCE)
    assert found.damage.shape == (4, 2) and found.evaluations <= 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": [0.2, 0.2]}, "start has 2 rows, end has 1"),
        ({"start": [0.0]}, "start must be a list of numbers above 0"),
        ({"end": 3.0}, "end must be a list of numbers above 0"),
        ({"cost": 3}, "cost must be a function"),
        ({"cost": lambda rows, strengths: strengths}, r"cost gives must be \[1, text\]"),
        ({"cost": lambda rows, strengths: torch.tensor([[np.nan]])}, "must be a finite number"),
        ({"budget": -1}, "budget must be a number above 0"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(change, message):
    good = {"cost": cost_of(lambda x: x**2), "start": [0.2], "end": [2.0]}
    assert strength_at(**good).strengths.item() == pytest.approx(0.5, rel=0.03)
    with pytest.raises(SteeringError, match=message):
        strength_at(**{**good, **change})


@pytest.mark.parametrize("name", ["start", "middle"])
def test_every_vector_has_its_own_start_and_middle(name):
    with pytest.raises(SteeringError, match="a start and a middle for each of the 6 vectors"):
        calibrate(tiny_model(), tokenizer(), VECTORS, 0.5, TEXTS, **{name: [1.0, 2.0]})


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


def search_of(norms, budget):
    """The search for forces in layers of these typical norms."""
    norms = torch.tensor(norms)
    return _Search(0.2 * norms, MOST_NORMS * norms, budget)


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
    search = search_of([1.0, 1.0], budget)
    for _ in range(5):
        if rows := search.left:
            search.learn(rows, curve(search.strength[rows]))
    assert search.found.all()
    assert curve(search.strength) == pytest.approx([budget] * 2, rel=TOLERANCE + 1e-6)


@pytest.mark.parametrize("budget", [0.1, 0.25, 1.0, 2.0])
@pytest.mark.parametrize("curve", HARD.values(), ids=HARD)
def test_what_is_not_found_is_not_made_up(curve, budget):
    search = search_of([1.0], budget)
    for _ in range(5):
        if rows := search.left:
            search.learn(rows, curve(search.strength[rows]))
    if search.found.item():
        near = curve(search.strength * torch.linspace(0.95, 1.05, 101))
        assert near.min() <= budget * (1 + TOLERANCE) and near.max() >= budget * (1 - TOLERANCE)


def test_a_row_that_is_found_stays_while_others_are_sought():
    search = search_of([1.0, 1.0, 1.0], 0.04)
    curves = torch.tensor([1.0, 100.0, 1e-9])
    seen = []
    for _ in range(5):
        if rows := search.left:
            search.learn(rows, curves[rows] * search.strength[rows] ** 2)
        seen.append(search.strength[0].item())
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
