import math
from dataclasses import replace

import pytest
import torch

from helpers import choice
from helpers.choice import choose, search
from helpers.evaluation import price
from helpers.generation import generate
from helpers.models import SteeringError
from helpers.sweeps import Sweep, TextSweep, sweep, sweep_texts
from tiny_models import PROMPTS, make_vector, plain_log_odds, tiny_model, tokenizer

# Two share a layer, one names the last layer by its negative index.
VECTORS = [make_vector(1), make_vector(0, seed=1), make_vector(-1, seed=2), make_vector(1, seed=3)]
FOUR = [[-1.0, 1.0, -2.0, 2.0]] * 3


def both_sweeps(pull, prices, forces=FOUR, **changes):
    """The sweep and the texts of these pulls [vector, size] and prices [vector, force]."""
    forces = torch.tensor(forces)
    places = [sorted({abs(f) for f in row}) for row in forces.tolist()]
    effect = [
        [[math.copysign(own[sizes.index(abs(f))], f * own[sizes.index(abs(f))])] for f in row]
        for row, sizes, own in zip(forces.tolist(), places, pull, strict=True)
    ]
    vectors = changes.pop("vectors", VECTORS[: len(forces)])
    swept = Sweep(torch.tensor(effect), torch.zeros(1), vectors, forces, ["The soup was"])
    written = TextSweep([], torch.tensor(prices)[..., None], vectors, forces, ["The soup was"])
    return swept, replace(written, **changes)


PULL = [[1.0, 2.0], [1.5, 3.0], [0.5, 2.5]]
PRICES = [[0.1, 0.2, 0.3, 0.4], [0.1, 0.45, 0.2, 0.9], [0.0, 0.0, 0.6, 0.1]]


def test_the_largest_pull_that_is_cheap_in_both_directions_is_chosen():
    swept, written = both_sweeps(PULL, PRICES)
    assert swept.pull[..., 0].tolist() == PULL
    # 3.0 and 2.5 are larger, but cost 0.9 up and 0.6 down.
    chosen = choose(swept, written)
    assert (chosen.index, chosen.size, chosen.force) == (0, 1, 2)
    assert chosen.vector is VECTORS[0]
    assert (chosen.pull, chosen.price) == pytest.approx((2.0, 0.4))


@pytest.mark.parametrize(
    ("limit", "index", "size"), [(1.0, 1, 1), (0.61, 2, 1), (0.46, 0, 1), (0.3, 0, 0), (0.15, 2, 0)]
)
def test_the_limit_decides_what_is_cheap(limit, index, size):
    chosen = choose(*both_sweeps(PULL, PRICES), limit=limit)
    assert (chosen.index, chosen.size) == (index, size)
    assert chosen.price < limit and chosen.force == [1, 2][size]


def test_a_price_at_the_limit_is_too_much():
    swept, written = both_sweeps(PULL, [[0.25, 0.125, 0.5, 0.0], *[[0.5] * 4] * 2])
    assert choose(swept, written, limit=0.5).size == 0
    assert choose(swept, written, limit=0.51).pull == 3.0


def test_forces_of_each_vector_in_any_order_are_chosen_from():
    forces = [[4.0, -4.0, 0.0, 3.0, -3.0], [-8.0, 0.0, 8.0, 5.0, -5.0]]
    prices = [[0.0, 0.0, 9.0, 0.0, 0.0], [2.0, 9.0, 0.0, 0.1, 0.3]]
    pull = [[1.0, 1.5], [2.0, 4.0]]  # by size, smallest first; at force 0 nothing is asked
    effect = torch.tensor(
        [[[1.5], [-1.5], [7.0], [1.0], [-1.0]], [[-4.0], [7.0], [4.0], [2.0], [-2.0]]]
    )
    swept = Sweep(effect, torch.zeros(1), VECTORS[:2], torch.tensor(forces), ["The soup was"])
    written = TextSweep(
        [], torch.tensor(prices)[..., None], VECTORS[:2], torch.tensor(forces), ["The soup was"]
    )
    assert swept.pull[..., 0].tolist() == pull
    chosen = choose(swept, written)
    assert (chosen.vector, chosen.force, chosen.size) == (VECTORS[1], 5.0, 0)
    assert chosen.price == pytest.approx(0.3)
    assert choose(swept, written, limit=3.0).force == 8.0


def test_a_setting_whose_texts_are_empty_is_not_chosen():
    prices = [[0.1, 0.2, 0.3, 0.4], [0.1, 0.45, math.nan, 0.1], [0.0, 0.0, 0.6, 0.1]]
    assert choose(*both_sweeps(PULL, prices)).index == 0


def test_a_choice_equals_one_made_by_hand():
    forces, options = [-6.0, 2.0, 6.0, -2.0], {"max_new_tokens": 4}
    arguments = tiny_model(), tokenizer(), PROMPTS, VECTORS, forces
    found, limit = None, 1.0
    for v in VECTORS:
        for force in (2.0, 6.0):
            up, down = (
                torch.tensor(
                    [plain_log_odds(tiny_model(), p, [(v.layer, f * v.direction)]) for p in PROMPTS]
                )
                for f in (force, -force)
            )
            costs = [
                price(*arguments[:2], generate(*arguments[:3], v, f, **options)).mean().item()
                for f in (force, -force)
            ]
            pull = ((up - down) / 2).mean().item()
            if max(costs) < limit and (found is None or pull > found[2]):
                found = v, force, pull, max(costs)
    chosen = choose(sweep(*arguments), sweep_texts(*arguments, **options), limit)
    assert (chosen.vector, chosen.force) == found[:2]
    assert (chosen.pull, chosen.price) == pytest.approx(found[2:], abs=1e-3)


def test_where_nothing_is_cheap_enough_the_cheapest_is_named():
    swept, written = both_sweeps(PULL, PRICES)
    with pytest.raises(SteeringError, match="less than -0.1 bits .*costs 0.00. Try smaller forces"):
        choose(swept, written, limit=-0.1)
    prices = [[0.8, 0.7, math.nan, 0.9], [1.0, 0.5, 2.0, 2.0], [5.0] * 4]
    with pytest.raises(SteeringError, match="less than 0.5 bits .*the cheapest costs 0.80"):
        choose(*both_sweeps(PULL, prices))


@pytest.mark.parametrize(
    "forces", [[-1.0, 1.0, -2.0, 3.0], [-1.0, 1.0], [1.0, -1.0, 2.0, -2.0]], ids=str
)
def test_sweeps_of_different_forces_are_refused(forces):
    swept, _ = both_sweeps(PULL, PRICES)
    other = torch.tensor([forces] * 3)
    written = TextSweep([], torch.zeros(*other.shape, 1), VECTORS[:3], other, ["The soup was"])
    with pytest.raises(SteeringError, match="different vectors or forces"):
        choose(swept, written)


@pytest.mark.parametrize("vectors", [VECTORS[2::-1], VECTORS[1:4]], ids=["turned", "others"])
def test_sweeps_of_different_vectors_are_refused(vectors):
    swept, written = both_sweeps(PULL, PRICES)
    with pytest.raises(SteeringError, match="different vectors or forces"):
        choose(swept, replace(written, vectors=vectors))


def test_where_no_price_is_known_nothing_is_chosen():
    with pytest.raises(SteeringError):
        choose(*both_sweeps(PULL, [[math.nan] * 4] * 3))


@pytest.mark.parametrize("limit", [0.05, 0.2, 1.0])
def test_a_search_finds_the_same_setting_from_fewer_texts(limit, monkeypatch):
    vectors = [make_vector(layer, seed=seed) for layer in range(3) for seed in range(2)]
    forces = [-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 8.0]
    where = (tiny_model(), tokenizer(), PROMPTS, vectors, forces)
    how = {"seed": 1, "max_new_tokens": 6}
    swept, written = sweep(*where), sweep_texts(*where, **how)
    expected, tried = choose(swept, written, limit=limit), []

    def spy(model, tokenizer, prompts, vectors, forces, **options):
        tried.append(len(vectors))
        return sweep_texts(model, tokenizer, prompts, vectors, forces, **options)

    monkeypatch.setattr(choice, "sweep_texts", spy)
    found = search(*where[:2], swept, limit=limit, **how)
    assert found.vector is expected.vector
    assert found[1:4] == expected[1:4]
    assert found[4:] == pytest.approx(expected[4:], abs=1e-4)
    above = (swept.pull.mean(-1) > expected.pull).sum().item()
    assert sum(tried) == min(6 * (above // 6 + 1), swept.pull[..., 0].numel())


def test_a_search_without_an_affordable_setting_names_the_cheapest():
    where = (tiny_model(), tokenizer(), PROMPTS, VECTORS[:2], [-50.0, 50.0])
    swept, written = sweep(*where), sweep_texts(*where, seed=1, max_new_tokens=6)
    with pytest.raises(SteeringError) as expected:
        choose(swept, written, limit=1e-3)
    with pytest.raises(SteeringError) as error:
        search(*where[:2], swept, limit=1e-3, seed=1, max_new_tokens=6)
    assert str(error.value) == str(expected.value)
