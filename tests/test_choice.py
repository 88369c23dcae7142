from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from helpers import choice
from helpers.calibration import Calibration, calibrate
from helpers.choice import choose
from helpers.concepts import SENTIMENT
from helpers.generation import generate
from helpers.models import SteeringError
from helpers.steering import as_list
from tiny_models import PROMPTS, make_vector, plain_log_odds, tiny_model, tokenizer

# Two share a layer, one names the last layer by its negative index.
VECTORS = [make_vector(1), make_vector(0, seed=1), make_vector(-1, seed=2), make_vector(1, seed=3)]
OWN = replace(SENTIMENT, dev_prompts=PROMPTS)
TEXTS = ["The train leaves at nine.", "He wrote the number on a piece of paper."]


def pretend(monkeypatch, forces, seen=None):
    """Let ``calibrate`` find these forces [vector, 2]; ``seen`` takes down how it was called."""
    seen = [] if seen is None else seen

    def found(model, tokenizer, vectors, budget, **options):
        seen.append((budget, options))
        damage = torch.zeros(*forces.shape, 1)
        return Calibration(forces, damage, as_list(vectors), budget, 1)

    monkeypatch.setattr(choice, "calibrate", found)


@lru_cache
def own_texts():
    """What the model itself writes, so that it reads it well: there is something to damage."""
    texts = generate(
        tiny_model(), tokenizer(), PROMPTS, VECTORS[0], 0.0, max_new_tokens=30, temperature=0
    )
    return [text.prompt + text.base for text in texts]


def effects(vector, forces):
    """The effect [prompt] of each force, one experiment at a time."""
    at, v = vector.layer, vector.direction
    base = torch.tensor([plain_log_odds(tiny_model(), prompt) for prompt in PROMPTS])
    return [
        torch.tensor([plain_log_odds(tiny_model(), p, [(at, f * v)]) for p in PROMPTS]) - base
        for f in forces
    ]


def test_the_choice_equals_one_made_by_hand():
    found = calibrate(tiny_model(), tokenizer(), VECTORS, 0.5, own_texts())
    chosen = choose(tiny_model(), tokenizer(), VECTORS, OWN, 0.5, texts=own_texts())
    pulls = []
    for vector, forces in zip(VECTORS, found.forces.tolist(), strict=True):
        up, down = effects(vector, forces)
        pulls.append((up - down) / 2)
    torch.testing.assert_close(chosen.pull, torch.stack(pulls), atol=1e-3, rtol=0)
    best = max(range(len(pulls)), key=lambda i: pulls[i].mean())
    assert (chosen.index, chosen.vector) == (best, VECTORS[best])
    assert [chosen.up, chosen.down] == found.forces[best].tolist()


def test_forces_up_and_down_may_differ(monkeypatch):
    forces = torch.tensor([[1.0, -3.0], [2.0, -0.5], [0.1, -0.1], [4.0, -1.0]])
    pretend(monkeypatch, forces)
    chosen = choose(tiny_model(), tokenizer(), VECTORS, OWN)
    for vector, row, pull in zip(VECTORS, forces.tolist(), chosen.pull, strict=True):
        up, down = effects(vector, row)
        torch.testing.assert_close(pull, (up - down) / 2, atol=1e-4, rtol=0)
    assert chosen.index == int(chosen.pull.mean(-1).argmax())


def test_a_vector_that_cannot_cost_as_much_is_not_chosen(monkeypatch):
    forces = torch.tensor([[3.0, -3.0]] * 4)
    pretend(monkeypatch, forces)
    first = choose(tiny_model(), tokenizer(), VECTORS, OWN).index
    forces[first, 1] = torch.nan
    second = choose(tiny_model(), tokenizer(), VECTORS, OWN)
    assert second.index != first
    assert second.pull[first].isnan().all()
    assert second.pull.isnan().any(1).sum() == 1


def test_where_no_vector_can_cost_as_much_nothing_is_chosen(monkeypatch):
    pretend(monkeypatch, torch.tensor([[1.0, torch.nan], [torch.nan, -1.0]]))
    with pytest.raises(SteeringError, match="No force costs 0.25 bits, up and down: try another"):
        choose(tiny_model(), tokenizer(), VECTORS[:2], OWN)


def test_the_budget_and_other_options_reach_the_calibration(monkeypatch):
    seen = []
    pretend(monkeypatch, torch.tensor([[1.0, -1.0]]), seen)
    chosen = choose(tiny_model(), tokenizer(), VECTORS[0], OWN, budget=0.7, texts=TEXTS)
    assert seen == [(0.7, {"texts": TEXTS})]
    assert chosen.calibration.budget == 0.7
