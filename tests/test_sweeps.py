import math
import re
import warnings
from functools import lru_cache, partial
from itertools import combinations

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from helpers import sweeps
from helpers.activations import capture, residual_stream, typical_norm
from helpers.directions import SteeringVector, cosines, find_vectors, mean_difference
from helpers.evaluation import (
    NEGATIVE_WORDS,
    POSITIVE_WORDS,
    TEST_PROMPTS,
    mean_with_interval,
    word_ids,
)
from helpers.generation import generate
from helpers.models import SteeringError, encode, load_model
from helpers.pairs import SENTIMENT_PAIRS, check_pairs, split
from helpers.steering import steer
from helpers.sweeps import Sweep, sweep, sweep_texts
from tiny_models import (
    DEPTH,
    FAMILIES,
    PROMPTS,
    block_list,
    fail_at_second_hook,
    make_vector,
    new_model,
    no_hook_left,
    plain_log_odds,
    tiny_model,
    tokenizer,
)

# Two share a layer, one names the last layer by its negative index.
VECTORS = [make_vector(1), make_vector(0, seed=1), make_vector(-1, seed=2), make_vector(1, seed=3)]
FORCES = [-3.0, 0.5, 4.0]
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."


def swept(model=None, prompts=PROMPTS, vectors=VECTORS, forces=FORCES, **options):
    model = tiny_model() if model is None else model
    return sweep(model, tokenizer(), prompts, vectors, forces, **options)


# -- The same as one experiment at a time


@lru_cache
def one_at_a_time(family):
    """The unsteered log-odds and every experiment's, each from a forward pass of its own."""
    model, forces = tiny_model(family), FORCES
    base = [plain_log_odds(model, prompt) for prompt in PROMPTS]
    cells = [
        [[plain_log_odds(model, p, [(v.layer, f * v.direction)]) for p in PROMPTS] for f in forces]
        for v in VECTORS
    ]
    return torch.tensor(base), torch.tensor(cells)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [1, 16, 2048])
def test_every_cell_equals_an_experiment_of_its_own(family, batch_tokens):
    base, cells = one_at_a_time(family)
    result = swept(tiny_model(family), batch_tokens=batch_tokens)
    assert result.effect.shape == (len(VECTORS), len(FORCES), len(PROMPTS))
    assert result.effect.dtype == result.base.dtype == torch.float32
    torch.testing.assert_close(result.base, base, atol=1e-4, rtol=0)
    torch.testing.assert_close(result.effect, cells - base, atol=1e-4, rtol=0)
    assert (cells - base).abs().median() > 0.02  # far above the tolerance


def test_the_result_carries_the_labels_of_its_axes():
    result = swept(prompts=tuple(PROMPTS))
    assert result.vectors == VECTORS and result.prompts == PROMPTS
    assert result.forces.tolist() == [FORCES] * len(VECTORS)
    assert repr(result) == "Sweep(4 vectors × 3 forces × 3 prompts)"
    single = swept(vectors=VECTORS[0], forces=[2.0])
    assert single.vectors == [VECTORS[0]] and single.effect.shape == (1, 1, 3)


def test_mistake_10_vectors_of_one_layer_are_experiments_of_their_own():
    same_layer, other_layer = VECTORS[3], VECTORS[1]
    together = swept(vectors=[VECTORS[0], same_layer, other_layer, VECTORS[0]]).effect
    for row, vector in zip(together, [VECTORS[0], same_layer, other_layer], strict=False):
        torch.testing.assert_close(row, swept(vectors=vector).effect[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(together[3], together[0], atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_forces_of_all_and_of_each_vector():
    own = torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
    both = swept(vectors=VECTORS[:2], forces=own)
    assert both.forces.equal(own)
    for i in range(2):
        alone = swept(vectors=VECTORS[i], forces=own[i].tolist())
        torch.testing.assert_close(both.effect[i], alone.effect[0], atol=1e-5, rtol=0)
    for forces in (FORCES, torch.tensor(FORCES), [FORCES] * 4):
        assert swept(forces=forces).effect.equal(swept().effect)
    assert swept(forces=[0.0]).effect.abs().max() < 1e-5
    opposite = swept(vectors=[-v for v in VECTORS], forces=[-f for f in FORCES])
    assert opposite.effect.equal(swept().effect)


def test_the_order_of_prompts_does_not_matter():
    prompts = [*PROMPTS, "We", PROMPTS[0]]
    order = [2, 0, 4, 3, 1]
    plain = swept(prompts=prompts, batch_tokens=32)
    mixed = swept(prompts=[prompts[i] for i in order], batch_tokens=32)
    torch.testing.assert_close(mixed.base, plain.base[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed.effect, plain.effect[..., order], atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.effect[..., 0], plain.effect[..., 4], atol=1e-5, rtol=0)


def test_words_of_one_s_own():
    swapped = swept(positive=NEGATIVE_WORDS, negative=POSITIVE_WORDS)
    torch.testing.assert_close(swapped.effect, -swept().effect)
    torch.testing.assert_close(swapped.base, -swept().base)


def test_mistake_11_half_precision():
    half = swept(new_model().to(torch.bfloat16))
    assert half.effect.dtype == half.base.dtype == torch.float32
    torch.testing.assert_close(half.effect, swept().effect, atol=0.05, rtol=0)


# -- Only what has to be computed


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_below_the_push_and_logits_of_other_tokens_are_not_computed(family):
    model = new_model(family)
    rows = [0] * DEPTH[family]  # that each block computed

    def count(layer, module, args, kwargs):
        rows[layer] += len(args[0] if args else kwargs["hidden_states"])

    for layer, block in enumerate(block_list(model)):
        # On a part of the block: the block itself is called and hands on what it is given.
        inside = next(block.children())
        inside.register_forward_pre_hook(partial(count, layer), with_kwargs=True)
    widths = set()
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, logits: widths.add(logits.shape[1]))
    swept(model)
    experiments = len(FORCES) * len(PROMPTS)
    layers = [vector.layer % DEPTH[family] for vector in VECTORS]
    for layer, found in enumerate(rows):
        below = sum(at < layer for at in layers)
        assert found == len(PROMPTS) + below * experiments
    assert widths == {1}


# -- Nothing is left behind


def own_forwards(model):
    """What hides the ``forward`` of its class on each block."""
    return [block.__dict__.get("forward") for block in block_list(model)]


def test_mistake_06_a_sweep_leaves_nothing():
    model = new_model()
    with no_hook_left(model):
        swept(model)
    for block in block_list(model):
        assert "forward" not in block.__dict__


def test_mistake_06_a_block_s_own_forward_is_put_back():
    model = new_model()
    for block in block_list(model)[1:]:  # as on a model that lies on several devices
        add_hook_to_module(block, ModelHook())
    own = own_forwards(model)
    with no_hook_left(model):
        result = swept(model)
    assert result.effect.equal(swept().effect)
    assert own[0] is None and None not in own[1:]
    assert all(now is before for now, before in zip(own_forwards(model), own, strict=True))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("moment", [1, 2, 4])
@pytest.mark.parametrize("accelerated", [False, True])
def test_mistake_06_an_interrupted_sweep_leaves_nothing(error, moment, accelerated):
    model, calls = new_model(), []

    def interrupt(module, args, output):
        calls.append(1)
        if len(calls) == moment:
            raise error("stop")

    if accelerated:
        add_hook_to_module(block_list(model)[0], ModelHook())
    block_list(model)[-1].register_forward_hook(interrupt)
    own = own_forwards(model)
    with no_hook_left(model), pytest.raises(error, match="stop"):
        swept(model)
    assert len(calls) == moment
    assert all(now is before for now, before in zip(own_forwards(model), own, strict=True))
    assert ("forward" in block_list(model)[0].__dict__) == accelerated
    assert swept(model).effect.equal(swept().effect)


def test_mistake_06_nothing_survives_a_failed_registration(monkeypatch):
    model, tries = new_model(), fail_at_second_hook(monkeypatch)
    with no_hook_left(model), pytest.raises(RuntimeError, match="no more hooks"):
        swept(model)
    assert len(tries) == 2


# -- Too little memory


def allow_rows(model, most, message=NO_MEMORY):
    """Let larger batches fail as they do without memory; returns the sizes that were tried."""
    tried = []

    def check(module, args, kwargs):
        tried.append(len(kwargs["input_ids"]))
        if tried[-1] > most:
            raise RuntimeError(message)

    model.register_forward_pre_hook(check, with_kwargs=True)
    return tried


def texts_of(model, **options):
    options = {"max_new_tokens": 3, **options}
    return sweep_texts(model, tokenizer(), PROMPTS, VECTORS[:2], FORCES, **options)


@pytest.fixture
def cleared(monkeypatch):
    """Counts the times that memory was asked back, which would take long in this process."""
    calls = []
    monkeypatch.setattr(sweeps, "clear_device_cache", lambda **kwargs: calls.append(kwargs))
    return calls


@pytest.mark.parametrize("most", [1, 4, 9])
def test_a_sweep_too_large_for_the_memory_goes_on_in_smaller_parts(most, cleared):
    model = new_model()
    tried = allow_rows(model, most)
    with no_hook_left(model), pytest.warns(UserWarning) as caught:
        result = swept(model)
    torch.testing.assert_close(result.effect, swept().effect, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.base, swept().base, atol=1e-5, rtol=0)
    sizes = [
        int(re.fullmatch(r"Out of memory: going on with (\d+) at a time\.", str(x.message))[1])
        for x in caught
    ]
    assert min(sizes) == most
    assert len(sizes) == len(cleared) == sum(size > most for size in tried)
    # What is learnt from one layer holds for the next: prompts and cells halve once each.
    assert len(set(sizes)) >= len(sizes) - 2
    assert own_forwards(model) == [None] * 3


def test_texts_too_many_for_the_memory_go_on_in_smaller_parts(cleared):
    model = new_model()
    tried = allow_rows(model, 5)
    with pytest.warns(UserWarning, match="going on with 2 at a time"):
        found = texts_of(model, batch_size=4)
    assert found == texts_of(tiny_model())
    assert max(size for size in tried if size <= 5) == 4


@pytest.mark.parametrize("run", [swept, texts_of])
def test_a_single_experiment_that_does_not_fit_fails(run, cleared):
    model = new_model()
    tried = allow_rows(model, 0)
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="can't allocate"):
        warnings.simplefilter("ignore")
        run(model)
    assert tried[-1] <= 2  # of a text there are two rows, without steering and with it
    assert own_forwards(model) == [None] * 3


@pytest.mark.parametrize("run", [swept, texts_of])
def test_another_error_is_no_reason_to_try_again(run):
    model = new_model()
    tried = allow_rows(model, 3, "shapes do not match")
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="shapes do not match"):
        warnings.simplefilter("error")
        run(model)
    assert [size > 3 for size in tried] == [False] * (len(tried) - 1) + [True]


# -- Bad input


BAD_INPUT = [
    ({"prompts": []}, "list of prompts is empty: give at least one"),
    ({"prompts": "one string"}, r"got one string: use \['one string'\]"),
    ({"prompts": ["The soup", " "]}, "Prompt 1 is empty"),
    ({"prompts": ["word " * 65]}, r"has 6\d tokens.*tiny-gpt2 reads at most 64. Shorten it"),
    ({"forces": [1.0, math.nan]}, "force must be a finite number, got nan"),
    ({"forces": [[1.0], [2.0], [3.0], [-math.inf]]}, "force must be a finite number, got -inf"),
    ({"forces": []}, r"shape \[0\] do not fit 4 vector\(s\): give \[force\]"),
    ({"forces": [[], [], [], []]}, r"shape \[4, 0\] do not fit 4 vector\(s\)"),
    ({"forces": 2.0}, r"shape \[\] do not fit 4 vector\(s\)"),
    ({"forces": [[1.0, 2.0]]}, r"shape \[1, 2\] do not fit 4 .*or \[vector, force\]"),
    ({"forces": [[[1.0]]]}, r"shape \[1, 1, 1\] do not fit 4"),
    ({"vectors": []}, "No vector to steer with: give at least one"),
    ({"vectors": [make_vector(3)]}, "Layer 3 does not exist: tiny-gpt2 has 3 layers"),
    ({"vectors": [make_vector(), make_vector(-4)]}, "Layer -4 does not exist"),
    ({"vectors": [make_vector(width=48)]}, "has 48 entries .*tiny-gpt2.*stream here 32"),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUT)
@pytest.mark.parametrize("run", [sweep, sweep_texts])
def test_bad_input_is_refused_and_leaves_the_model_untouched(run, change, message):
    model = tiny_model()
    arguments = {"prompts": PROMPTS, "vectors": VECTORS, "forces": FORCES, **change}
    with no_hook_left(model), pytest.raises(SteeringError, match=message):
        run(model, tokenizer(), **arguments)
    assert own_forwards(model) == [None] * 3


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_words_of_several_tokens_are_named_with_their_pieces(side):
    pieces = tokenizer().tokenize(" zzyzx")
    with pytest.raises(SteeringError, match="Not one token") as error:
        swept(**{side: ["good", "zzyzx"]})
    assert len(pieces) > 1 and f"zzyzx = {' + '.join(pieces)}. Drop" in str(error.value)


# -- What a sweep says


def by_hand(effect, forces):
    """A sweep of two prompts with these effects [vector, force, prompt]."""
    effect = torch.tensor(effect)
    return Sweep(effect, torch.zeros(effect.shape[-1]), [], torch.tensor(forces), [])


def test_slopes_of_effects_in_proportion_to_the_force_are_exact():
    slopes = torch.tensor([[0.5, -2.0, 0.0], [3.0, 1.0, 0.25]])
    forces = torch.tensor([[-4.0, 0.0, 1.0, 8.0], [2.0, 4.0, -2.0, 0.5]])
    result = by_hand((slopes[:, None] * forces[..., None]).tolist(), forces.tolist())
    torch.testing.assert_close(result.slopes, slopes)


def test_slopes_are_least_squares_through_the_origin():
    result = by_hand([[[1.0, 0.0], [4.0, -1.0]]], [[1.0, 2.0]])
    # (1·1 + 2·4) / (1² + 2²) and (1·0 - 2·1) / 5
    torch.testing.assert_close(result.slopes, torch.tensor([[1.8, -0.4]]))
    # An effect that ignores the sign of the force is no steering.
    assert by_hand([[[2.0], [2.0]]], [[-1.0, 1.0]]).slopes.item() == 0


def test_wrong_way_counts_the_prompts_that_do_not_follow_the_force():
    effect = [[[-1.0, -2.0, 3.0, -0.5], [9.0, 9.0, 9.0, 9.0], [1.0, -2.0, -3.0, 0.0]]]
    result = by_hand([effect[0], [[1.0] * 4] * 3], [[-2.0, 0.0, 2.0], [1.0, -1.0, 0.0]])
    expected = torch.tensor([[0.25, torch.nan, 0.75], [0.0, 1.0, torch.nan]])
    torch.testing.assert_close(result.wrong_way, expected, equal_nan=True)


# -- Texts


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"seed": [3, 1, 2]}, {"temperature": 0, "positions": "generated"}],
    ids=["greedy", "sampled, a seed each", "generated only"],
)
def test_texts_equal_those_of_generate_cell_by_cell(family, options):
    model, vectors = tiny_model(family), VECTORS[:3]
    forces = torch.tensor([[-8.0, 8.0], [-4.0, 12.0], [-6.0, 3.0]])
    options = {"max_new_tokens": 4, **options}
    expected = [
        [generate(model, tokenizer(), PROMPTS, v, force, **options) for force in own.tolist()]
        for v, own in zip(vectors, forces, strict=True)
    ]
    # Vectors and forces tell their texts apart, so an exchange would be seen.
    assert len({str(texts) for row in expected for texts in row}) == 6
    for batch_size in (1, 4, 256):
        with no_hook_left(model):
            found = sweep_texts(
                model, tokenizer(), PROMPTS, vectors, forces, batch_size=batch_size, **options
            )
        assert found == expected
    assert type(found[0][0]) is type(expected[0][0])  # shows as a table
    common = sweep_texts(model, tokenizer(), PROMPTS, vectors, forces[0], **options)
    assert common[0] == expected[0]


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
    for check in check_pairs(tokenizer(), SENTIMENT_PAIRS, strict=True):
        for sign, text in ((1, check.positive), (-1, check.negative)):
            embeddings[tokenizer()(text)["input_ids"][check.differing[0]]] = sign * WORD
    model.lm_head.weight.zero_()
    model.lm_head.weight[word_ids(tokenizer(), POSITIVE_WORDS)] = READ
    model.lm_head.weight[word_ids(tokenizer(), NEGATIVE_WORDS)] = -READ
    model.config._name_or_path = "planted"
    return model


def planted_sweep(vectors, forces=(-2.0, 1.0, 3.0)):
    return sweep(planted_model(), tokenizer(), TEST_PROMPTS, vectors, forces)


@lru_cache
def found_vectors():
    return find_vectors(planted_model(), tokenizer(), SENTIMENT_PAIRS, position=-1)


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
    assert result.slopes.mean(1).tolist() == pytest.approx(PER_FORCE, abs=1e-3)
    for each_prompt in result.slopes.T:
        assert each_prompt.argmax() == BEST
    assert (result.wrong_way == 0).all()
    opposite = planted_sweep([-vector for vector in found_vectors()])
    torch.testing.assert_close(opposite.effect, -result.effect, atol=1e-3, rtol=0)
    assert (opposite.wrong_way == 1).all()


def test_planted_log_odds_without_steering():
    through = torch.eye(WIDTH)
    for linear in MAPS:
        through = (torch.eye(WIDTH) + linear) @ through
    last = [tokenizer()(prompt)["input_ids"][-1] for prompt in TEST_PROMPTS]
    stream = planted_model().transformer.wte.weight[last] @ through.T
    base = planted_sweep(found_vectors()).base
    torch.testing.assert_close(base, 2 * stream @ READ, atol=1e-4, rtol=0)
    assert base.std() > 1


def test_mistake_13_a_projection_that_rises_by_the_force_proves_nothing():
    model, force = planted_model(), 5.0
    batch = encode(model, tokenizer(), TEST_PROMPTS)
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
    one = swept(vectors=make_vector().random_like(0), forces=[4.0])
    assert one.effect.abs().mean() > 0.1
    planted = found_vectors()[BEST]
    controls = [planted.random_like(seed) for seed in range(20)]
    for control in controls:
        assert control.direction.norm() == pytest.approx(1, abs=1e-5)
        assert (control.layer, control.raw_norm) == (planted.layer, planted.raw_norm)
    effect = planted_sweep([planted, *controls], [4.0]).effect[:, 0].mean(1)
    assert (effect[1:].abs() > 0.1).sum() >= 15
    assert effect[0] > effect[1:].abs().max() + 1


# -- Where there is nothing to find, the interval says so
#
# One random direction is no null: on a given model it has an effect of its own, which more
# prompts only measure better. The null is "a direction drawn at random". So in each simulated
# experiment every prompt draws its own; then the 40 effects are independent of each other, as
# the bootstrap takes them to be. Half the difference between the pushes +force and -force leaves
# out what a push does whatever its direction, so that the effects lie evenly around zero.

RUNS = 500


@lru_cache
def bundled():
    """The bundled model, its tokenizer, its vector of the last layer but one, and a force."""
    model, tokenizer = load_model("pocket")
    vector = find_vectors(model, tokenizer, SENTIMENT_PAIRS)[-2]
    return model, tokenizer, vector, typical_norm(model, tokenizer)[vector.layer].item() / 2


def odd_effects(vectors):
    """[vector, prompt]: half the difference between the pushes in both directions."""
    model, tokenizer, _, force = bundled()
    down, up = sweep(model, tokenizer, TEST_PROMPTS, vectors, [-force, force]).effect.unbind(1)
    return (up - down) / 2


def with_opposites(effects):
    """A direction and its opposite are equally likely, and have opposite odd effects."""
    return torch.cat([effects, -effects])


@lru_cache
def random_directions():
    vector = bundled()[2]
    return with_opposites(odd_effects([vector.random_like(seed) for seed in range(250)]))


@lru_cache
def shuffled_labels():
    """Half of the pairs turned round: 70 ways for eight pairs, of which 35 are opposites."""
    model, tokenizer, vector, _ = bundled()
    positive, negative = (
        residual_stream(model, tokenizer, side)[vector.layer] for side in split(SENTIMENT_PAIRS)
    )
    turned = [list(pairs) for pairs in combinations(range(8), 4) if 0 in pairs]
    assert len(positive) == 8 and len(turned) == 35
    vectors = []
    for pairs in turned:
        first, second = positive.clone(), negative.clone()
        first[pairs], second[pairs] = negative[pairs], positive[pairs]
        raw = mean_difference(first, second)
        fields = {"method": "shuffled labels", "model_name": "pocket", "n_pairs": 8}
        vectors.append(SteeringVector.from_raw(raw, layer=vector.layer, **fields))
    return with_opposites(odd_effects(vectors))


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
    # seeds 0 to 11 the shares lie between 92.4 and 95.8.
    assert 0.92 <= coverage(effects) <= 0.98


@pytest.mark.parametrize("null", NULLS)
def test_interval_leaves_zero_out_where_there_is_an_effect(null):
    true_effect = odd_effects(bundled()[2]).mean().item()
    assert coverage(null(), runs=100, true_effect=true_effect) < 0.05


@pytest.mark.parametrize("null", NULLS)
def test_mistake_14_one_random_direction_for_all_prompts_is_no_null(null):
    assert coverage(null(), runs=100, one_for_all=True) < 0.3
