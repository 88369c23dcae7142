"""What validates the method rather than a module: that it finds what was planted in a model whose
computation is known by hand, and how often the interval holds zero where there is nothing to find.
"""

from functools import lru_cache

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from helpers import choice
from helpers.activations import capture, typical_norm
from helpers.calibration import Calibration
from helpers.choice import choose
from helpers.concepts import SENTIMENT
from helpers.directions import SteeringVector, cosines, find_vectors
from helpers.evaluation import word_ids
from helpers.models import encode, load_model
from helpers.pairs import check_pairs
from helpers.statistics import controls, mean_with_interval
from helpers.steering import steer
from helpers.sweeps import sweep
from tiny_models import PROMPTS, make_vector, tiny_model, tokenizer

# -- A truth that is known: the sweep finds what was planted

WIDTH, BEST = 16, 1
MOVED, AMPLIFIED = 0.5, 3.0
# Orthonormal: the concept as the words carry it, the direction that is read out, and a bystander.
WORD, READ, BYSTANDER = torch.linalg.qr(
    torch.randn(WIDTH, 3, generator=torch.Generator().manual_seed(0))
).Q.T
# What each block adds to the stream h is MAPS[layer] @ h: block 1 moves the concept from WORD to
# READ, block 2 makes it larger, and blocks 0 and 3 do nothing.
MAPS = [
    torch.zeros(WIDTH, WIDTH),
    torch.outer(MOVED * READ - WORD, WORD),
    AMPLIFIED * torch.outer(READ, READ),
    torch.zeros(WIDTH, WIDTH),
]
# Where the concept is, and what a unit of it does to the log-odds: READ counts +1 in the logit
# of each positive word and -1 in that of each negative one.
PLANTED = [WORD, READ, READ, READ]
PER_FORCE = [2 * MOVED * (1 + AMPLIFIED), 2 * (1 + AMPLIFIED), 2, 2]


@lru_cache
def planted_model():
    """A GPT-2 without attention, positions and norms, whose blocks are the linear MAPS."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer()),
            n_layer=len(MAPS),
            n_embd=WIDTH,
            n_head=2,
            tie_word_embeddings=False,
        )
    )
    model.eval().requires_grad_(False)
    for block, linear in zip(model.transformer.h, MAPS, strict=True):
        block.attn.c_proj.weight.zero_()
        block.attn.c_proj.bias.zero_()
        block.ln_1 = block.ln_2 = nn.Identity()
        block.mlp = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
        block.mlp.weight.copy_(linear)
    model.transformer.ln_f = nn.Identity()
    model.transformer.wpe.weight.zero_()
    embeddings = model.transformer.wte.weight.normal_()
    for check in check_pairs(tokenizer(), SENTIMENT.pairs, strict=True):
        for sign, text in ((1, check.positive), (-1, check.negative)):
            embeddings[tokenizer()(text)["input_ids"][check.differing[0]]] = sign * WORD
    model.lm_head.weight.zero_()
    model.lm_head.weight[word_ids(tokenizer(), SENTIMENT.positive_words)] = READ
    model.lm_head.weight[word_ids(tokenizer(), SENTIMENT.negative_words)] = -READ
    model.config._name_or_path = "planted"
    return model


def planted_sweep(vectors, forces=(-2.0, 1.0, 3.0)):
    return sweep(planted_model(), tokenizer(), SENTIMENT.test_prompts, vectors, forces)


def planted_controls():
    # Six of the pairs differ in exactly the same way, so that turning three of them round leaves
    # nothing: here there are no shuffled labels.
    vector = found_vectors()[BEST]
    return controls(planted_model(), tokenizer(), vector, n_shuffled=0)


@lru_cache
def found_vectors():
    return find_vectors(planted_model(), tokenizer(), SENTIMENT.pairs, position=-1)


def test_planted_direction_is_found_at_every_layer():
    vectors = found_vectors()
    for vector, planted in zip(vectors, PLANTED, strict=True):
        assert cosines([vector], planted[None]).item() == pytest.approx(1, abs=1e-5)
    # In six of the eight pairs the last token is the contrast word; in two it is the same word.
    sizes = [1, MOVED, MOVED * (1 + AMPLIFIED), MOVED * (1 + AMPLIFIED)]
    assert [v.raw_norm for v in vectors] == pytest.approx([1.5 * x for x in sizes], rel=1e-4)


def test_planted_layer_sign_and_size_are_found():
    result = planted_sweep(found_vectors())
    expected = torch.tensor(PER_FORCE)[:, None, None] * result.forces[..., None]
    torch.testing.assert_close(result.effect, expected.expand_as(result.effect), atol=1e-3, rtol=0)
    per_force = result.effect / result.forces[..., None]
    assert (per_force.argmax(0) == BEST).all()
    assert (result.wrong_way == 0).all()
    opposite = planted_sweep([-vector for vector in found_vectors()])
    torch.testing.assert_close(opposite.effect, -result.effect, atol=1e-3, rtol=0)
    assert (opposite.wrong_way == 1).all()


def test_planted_layer_is_chosen_where_all_are_pushed_alike(monkeypatch):
    def alike(model, tokenizer, vectors, budget):
        forces = torch.tensor([[3.0, -3.0]] * len(vectors))
        return Calibration(forces, torch.zeros(len(vectors), 2, 1), vectors, budget, 1)

    monkeypatch.setattr(choice, "calibrate", alike)
    chosen = choose(planted_model(), tokenizer(), found_vectors())
    assert chosen.index == BEST
    assert chosen.vector is found_vectors()[BEST]
    assert chosen.pull[BEST].tolist() == pytest.approx([3 * PER_FORCE[BEST]] * 16, abs=1e-3)


def test_planted_log_odds_without_steering():
    through = torch.eye(WIDTH)
    for linear in MAPS:
        through = (torch.eye(WIDTH) + linear) @ through
    last = [tokenizer()(prompt)["input_ids"][-1] for prompt in SENTIMENT.test_prompts]
    stream = planted_model().transformer.wte.weight[last] @ through.T
    base = planted_sweep(found_vectors()).base
    torch.testing.assert_close(base, 2 * stream @ READ, atol=1e-4, rtol=0)
    assert base.std() > 1


def test_mistake_13_a_projection_that_rises_by_the_force_proves_nothing():
    model, force = planted_model(), 5.0
    batch = encode(model, tokenizer(), SENTIMENT.test_prompts)
    for layer in range(len(MAPS)):
        bystander = SteeringVector.from_raw(
            BYSTANDER, layer=layer, method="", model_name="planted", n_pairs=0
        )
        with capture(model) as plain:
            model(**batch)
        with steer(model, bystander, force), capture(model) as steered:
            model(**batch)
        rise = (steered[layer] - plain[layer])[batch["attention_mask"].bool()] @ BYSTANDER
        assert rise.tolist() == pytest.approx([force] * len(rise), abs=1e-4)
        # A success, by the projection. The model says what it said before.
        assert planted_sweep(bystander, [force]).effect.abs().max() < 1e-4
    assert planted_sweep(found_vectors(), [force]).effect.min() > 1


def test_mistake_14_no_control_a_random_vector_of_equal_length_moves_the_logits_too():
    one = sweep(tiny_model(), tokenizer(), PROMPTS, make_vector().random_like(0), [4.0])
    assert one.effect.abs().mean() > 0.1
    planted = found_vectors()[BEST]
    random = planted_controls()["random"]
    assert len(random) == 20
    for control in random:
        assert control.direction.norm() == pytest.approx(1, abs=1e-5)
        assert control.layer == planted.layer
        assert control.raw_norm == pytest.approx(planted.raw_norm)
    effect = planted_sweep([planted, *random], [4.0]).effect[:, 0].mean(1)
    assert (effect[1:].abs() > 0.1).sum() >= 15
    assert effect[0] > effect[1:].abs().max() + 1


def test_mistake_14_directions_across_the_planted_one_do_nothing_however_wide_they_are():
    across = planted_controls()["orthogonal"]
    assert len(across) == 2  # the pairs end in the contrast words or in one of two others
    assert planted_sweep(across, [4.0]).effect.abs().max() < 1e-3
    assert planted_sweep(found_vectors()[BEST], [4.0]).effect.min() > 1


# -- Where there is nothing to find, the interval says so
#
# One random direction is no null: on a given model it has an effect of its own, which more
# prompts only measure better. The null is "a direction drawn at random". So in each simulated
# experiment every prompt draws its own; then the 40 effects are independent of each other, as
# the bootstrap takes them to be. The pull, half the difference between the pushes +force and
# -force, leaves out what a push does whatever its direction, so that the values lie evenly
# around zero.

RUNS = 500


@lru_cache
def bundled():
    """The bundled model, its tokenizer, its vector of the last layer but one, and a force."""
    model, tokenizer = load_model("pocket")
    vector = find_vectors(model, tokenizer, SENTIMENT.pairs)[-2]
    return model, tokenizer, vector, typical_norm(model, tokenizer)[vector.layer].item() / 2


def pulls(vectors):
    """[vector, prompt], on the test prompts."""
    model, tokenizer, _, force = bundled()
    return sweep(model, tokenizer, SENTIMENT.test_prompts, vectors, [-force, force]).pull[:, 0]


@lru_cache
def rivals():
    model, tokenizer, vector, _ = bundled()
    return controls(model, tokenizer, vector, n_random=250, n_orthogonal=0)


@lru_cache
def random_directions():
    # A direction and its opposite are equally likely, and have opposite pulls.
    found = pulls(rivals()["random"])
    return torch.cat([found, -found])


@lru_cache
def shuffled_labels():
    """Half of the pairs turned round: 70 ways for eight pairs, each with its opposite."""
    found = pulls(rivals()["shuffled"])
    assert len(found) == 70
    torch.testing.assert_close(found.sum(0), torch.zeros(found.shape[1]), atol=0.01, rtol=0)
    return found


def coverage(effects, runs=RUNS, seed=2, one_for_all=False, true_effect=0.0):
    """The share of simulated experiments in which the 95 % interval holds zero."""
    n_directions, n_prompts = effects.shape
    shape = (runs, 1 if one_for_all else n_prompts)
    drawn = torch.randint(n_directions, shape, generator=torch.Generator().manual_seed(seed))
    values = effects[drawn, torch.arange(n_prompts)] + true_effect
    intervals = [mean_with_interval(run) for run in values]
    return sum(low <= 0 <= high for _, low, high in intervals) / runs


NULLS = [random_directions, shuffled_labels]


@pytest.mark.parametrize("null", NULLS)
def test_interval_holds_zero_in_95_of_100_experiments_without_an_effect(null):
    effects = null()
    assert effects.std(0).min() > 0.1
    # About 94 is right: with 40 values a percentile interval is a little too narrow. Over the
    # seeds 0 to 11 the shares lie between 92.2 and 95.8.
    assert 0.92 <= coverage(effects) <= 0.98


@pytest.mark.parametrize("null", NULLS)
def test_interval_leaves_zero_out_where_there_is_an_effect(null):
    true_effect = pulls(bundled()[2]).mean().item()
    assert coverage(null(), runs=100, true_effect=true_effect) < 0.05


@pytest.mark.parametrize("null", NULLS)
def test_mistake_14_one_random_direction_for_all_prompts_is_no_null(null):
    assert coverage(null(), runs=100, one_for_all=True) < 0.3
