import math
import warnings
from dataclasses import replace
from functools import lru_cache, partial

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from helpers import batches
from helpers.concepts import SENTIMENT
from helpers.evaluation import price
from helpers.generation import SteeredTexts, generate
from helpers.models import SteeringError
from helpers.sweeps import Sweep, sweep, sweep_damage, sweep_texts
from tiny_models import (
    DEPTH,
    FAMILIES,
    PROMPTS,
    block_list,
    fail_at_second_hook,
    logits_of,
    make_vector,
    new_model,
    no_hook_left,
    plain_log_odds,
    plain_push,
    tiny_model,
    token_ids,
    tokenizer,
)

# Two share a layer, one names the last layer by its negative index.
VECTORS = [make_vector(1), make_vector(0, seed=1), make_vector(-1, seed=2), make_vector(1, seed=3)]
FORCES = [-3.0, 0.5, 4.0]
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."
WIDE = r"made on 'tiny-gpt2' \(width 48\) and cannot steer 'tiny-gpt2' \(width 32\)"


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
    positive, negative = SENTIMENT.words
    turned = replace(SENTIMENT, positive_words=negative, negative_words=positive)
    swapped = swept(concept=turned)
    torch.testing.assert_close(swapped.effect, -swept().effect)
    torch.testing.assert_close(swapped.base, -swept().base)


def test_mistake_11_half_precision():
    half = swept(new_model().to(torch.bfloat16))
    assert half.effect.dtype == half.base.dtype == torch.float32
    torch.testing.assert_close(half.effect, swept().effect, atol=0.05, rtol=0)


def test_mistake_12_what_others_change_in_place_is_not_changed_twice():
    model, v = new_model(), make_vector(layer=1)

    def double(module, args):
        args[0].mul_(2)  # the very tensor that block 1 returned

    block_list(model)[2].register_forward_pre_hook(double)
    result = swept(model, vectors=v)
    for force, effects in zip(FORCES, result.effect[0], strict=True):
        pushed = [plain_log_odds(model, p, [(1, force * v.direction)]) for p in PROMPTS]
        torch.testing.assert_close(result.base + effects, torch.tensor(pushed), atol=1e-4, rtol=0)


# -- Damage while reading


def plain_bits(model, text, vector=None, force=0.0):
    """Mean surprisal of a text's tokens but the first, one token at a time."""
    ids = token_ids(text)
    if vector is None:
        logits = logits_of(model, ids)[0]
    else:
        with plain_push(model, vector.layer, force * vector.direction):
            logits = logits_of(model, ids)[0]
    pairs = zip(logits[:-1], ids[0, 1:], strict=True)
    bits = [-row.log_softmax(0)[token] / math.log(2) for row, token in pairs]
    return (sum(bits) / len(bits)).item()


@lru_cache
def damage_one_at_a_time(family):
    """[vector, force, text]"""
    model = tiny_model(family)
    base = torch.tensor([plain_bits(model, text) for text in PROMPTS])
    cells = [[[plain_bits(model, t, v, f) for t in PROMPTS] for f in FORCES] for v in VECTORS]
    return torch.tensor(cells) - base


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [1, 40, 2048])
def test_mistake_17_damage_equals_reading_each_text_with_every_token_steered(family, batch_tokens):
    model, expected = tiny_model(family), damage_one_at_a_time(family)
    with no_hook_left(model):
        found = sweep_damage(
            model, tokenizer(), PROMPTS, VECTORS, FORCES, batch_tokens=batch_tokens
        )
    assert found.shape == (len(VECTORS), len(FORCES), len(PROMPTS))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert expected.abs().median() > 0.02  # far above the tolerance


def test_mistake_17_a_push_on_the_last_token_only_would_do_no_damage():
    text, v = PROMPTS[1], make_vector()
    plain = plain_bits(tiny_model(), text)
    with plain_push(tiny_model(), v.layer, 20.0 * v.direction, -1):
        assert plain_bits(tiny_model(), text) == plain
    found = sweep_damage(tiny_model(), tokenizer(), [text], v, [20.0])
    assert found.shape == (1, 1, 1) and found.abs().item() > 0.02


def halfway(h, v, share):
    """No sum of h and a multiple of v: the lengths along v shrink, and the others grow."""
    return h * (1 + share) - 2 * share * (h * v).sum(-1, keepdim=True) * v


def otherwise_pushed(model, vector, share):
    """A hook that changes the stream by ``halfway``, but at position 0."""

    def change(module, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, 1:] = halfway(hidden[:, 1:], vector.direction, share)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return block_list(model)[vector.layer].register_forward_hook(change)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neo"])
def test_another_way_to_push_equals_a_hook_that_spares_position_0(family):
    model, shares = tiny_model(family), [0.2, -0.3]
    found = swept(model, forces=shares, way=halfway)
    damage = sweep_damage(model, tokenizer(), PROMPTS, VECTORS, shares, way=halfway)
    for i, vector in enumerate(VECTORS):
        for j, share in enumerate(shares):
            hook = otherwise_pushed(model, vector, share)
            odds = [plain_log_odds(model, prompt) for prompt in PROMPTS]
            bits = [plain_bits(model, prompt) for prompt in PROMPTS]
            hook.remove()
            assert (found.effect + found.base)[i, j].tolist() == pytest.approx(odds, abs=1e-4)
            lost = torch.tensor(bits) - torch.tensor([plain_bits(model, p) for p in PROMPTS])
            assert damage[i, j].tolist() == pytest.approx(lost.tolist(), abs=1e-4)
    assert found.effect.abs().max() > 0.01


@pytest.mark.parametrize("way", [lambda h, v, s: None, lambda h, v, s: h[..., :1]])
def test_a_way_that_gives_no_stream_is_refused(way):
    with no_hook_left(tiny_model()), pytest.raises(SteeringError, match="What way gives must be"):
        swept(way=way)


def test_a_push_of_no_force_does_no_damage():
    for options in ({}, {"batch_tokens": 1}):
        found = sweep_damage(tiny_model(), tokenizer(), PROMPTS, VECTORS, [0.0], **options)
        assert found.abs().max() < 1e-5


def test_a_text_of_one_token_has_nothing_to_predict():
    assert token_ids("The").shape == (1, 1)
    with no_hook_left(tiny_model()), pytest.raises(SteeringError, match="nothing to predict"):
        sweep_damage(tiny_model(), tokenizer(), ["The soup", "The"], VECTORS, FORCES)


# -- Only what has to be computed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("run", [sweep, sweep_damage])
def test_blocks_below_the_push_and_logits_that_nobody_asks_for_are_not_computed(run, family):
    model = new_model(family)
    rows = [0] * DEPTH[family]  # that each block computed

    def count(layer, module, args, kwargs):
        rows[layer] += len(args[0] if args else kwargs["hidden_states"])

    for layer, block in enumerate(block_list(model)):
        # On a part of the block: the block itself is called and hands on what it is given.
        inside = next(block.children())
        inside.register_forward_pre_hook(partial(count, layer), with_kwargs=True)
    unembedded = []  # how many tokens met the unembedding, pass by pass
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, logits: unembedded.append(logits[..., 0]))
    run(model, tokenizer(), PROMPTS, VECTORS, FORCES)
    experiments = len(FORCES) * len(PROMPTS)
    layers = [vector.layer % DEPTH[family] for vector in VECTORS]
    for layer, found in enumerate(rows):
        below = sum(at < layer for at in layers)
        assert found == len(PROMPTS) + below * experiments
    # The last token of a prompt, or all of a text that have a next one; never padding.
    wanted = sum(1 if run is sweep else len(token_ids(p)[0]) - 1 for p in PROMPTS)
    passes = 1 + len(VECTORS) * len(FORCES)
    assert sum(map(torch.numel, unembedded)) == wanted * passes


def test_the_logits_of_all_prompts_are_one_product_of_matrices():
    model, whole = new_model(), []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, logits: whole.append(args[0].is_contiguous()))
    options = {"max_new_tokens": 2, "priced": False}
    with no_hook_left(model):
        sweep_texts(model, tokenizer(), PROMPTS, VECTORS, FORCES, **options)
    assert len(whole) == 2 and all(whole)


# -- Nothing is left behind


def own_forwards(model):
    """What hides the ``forward`` of its class on each block."""
    return [block.__dict__.get("forward") for block in block_list(model)]


@pytest.mark.parametrize("run", [sweep, sweep_damage])
def test_mistake_06_a_sweep_leaves_nothing(run):
    model = new_model()
    with no_hook_left(model):
        run(model, tokenizer(), PROMPTS, VECTORS, FORCES)
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


def damage_of(model, **options):
    return sweep_damage(model, tokenizer(), PROMPTS, VECTORS[:2], FORCES, **options)


@pytest.fixture
def cleared(monkeypatch):
    """Counts the times that memory was asked back, which would take long in this process."""
    calls = []
    monkeypatch.setattr(batches, "clear_device_cache", lambda **kwargs: calls.append(kwargs))
    return calls


@pytest.mark.parametrize("most", [1, 4, 9])
def test_a_sweep_too_large_for_the_memory_goes_on_in_smaller_parts(most, cleared):
    model = new_model()
    tried = allow_rows(model, most)
    with no_hook_left(model), pytest.warns(UserWarning) as caught:
        result = swept(model)
    torch.testing.assert_close(result.effect, swept().effect, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.base, swept().base, atol=1e-5, rtol=0)
    failed = [size for size in tried if size > most]
    assert len(caught) == len(cleared) == len(failed)
    # What is learnt from one layer holds for the next: prompts and cells halve once each.
    assert len(failed) <= 2 + math.log2(len(PROMPTS) * len(FORCES) * 2 / most)
    assert own_forwards(model) == [None] * 3


def test_texts_too_many_for_the_memory_go_on_in_smaller_parts(cleared):
    model = new_model()
    tried = allow_rows(model, 5)
    with pytest.warns(UserWarning, match="going on with .* tokens at a time"):
        found = texts_of(model)
    expected = texts_of(tiny_model())
    assert found.texts == expected.texts
    torch.testing.assert_close(found.price, expected.price, atol=1e-4, rtol=0)
    assert max(tried) > 5 and max(size for size in tried if size <= 5) >= 4


@pytest.mark.parametrize("run", [swept, damage_of, texts_of])
def test_a_single_experiment_that_does_not_fit_fails(run, cleared):
    model = new_model()
    tried = allow_rows(model, 0)
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="can't allocate"):
        warnings.simplefilter("ignore")
        run(model)
    assert tried[-1] <= 2  # of a text there are two rows, without steering and with it
    assert own_forwards(model) == [None] * 3


@pytest.mark.parametrize("run", [swept, damage_of, texts_of])
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
    ({"prompts": ["The soup", " "]}, "Prompt 2 of 2 is empty"),
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
    ({"vectors": [make_vector(width=48)]}, WIDE),
    ({"batch_tokens": 0}, "batch_tokens must be a whole number above 0, got 0"),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUT)
@pytest.mark.parametrize("run", [sweep, sweep_damage, sweep_texts])
def test_bad_input_is_refused_and_leaves_the_model_untouched(run, change, message):
    model = tiny_model()
    arguments = {"prompts": PROMPTS, "vectors": VECTORS, "forces": FORCES, **change}
    prompts = arguments.pop("prompts")
    if run is sweep_damage:  # it reads texts
        message = message.replace("Prompt 2", "Text 2").replace("list of prompts", "list of texts")
    with no_hook_left(model), pytest.raises(SteeringError, match=message):
        run(model, tokenizer(), prompts, **arguments)
    assert own_forwards(model) == [None] * 3


@pytest.mark.parametrize("side", ["positive_words", "negative_words"])
def test_words_of_several_tokens_are_named_with_their_pieces(side):
    pieces = tokenizer().tokenize(" zzyzx")
    with pytest.raises(SteeringError, match="Not one token") as error:
        swept(concept=replace(SENTIMENT, **{side: [getattr(SENTIMENT, side)[0], "zzyzx"]}))
    assert len(pieces) > 1 and f"zzyzx = {' + '.join(pieces)}. Drop" in str(error.value)


# -- What a sweep says


def by_hand(effect, forces):
    """A sweep of two prompts with these effects [vector, force, prompt]."""
    effect = torch.tensor(effect)
    return Sweep(effect, torch.zeros(effect.shape[-1]), [], torch.tensor(forces), [])


def test_wrong_way_counts_the_prompts_that_do_not_follow_the_force():
    effect = [[[-1.0, -2.0, 3.0, -0.5], [9.0, 9.0, 9.0, 9.0], [1.0, -2.0, -3.0, 0.0]]]
    result = by_hand([effect[0], [[1.0] * 4] * 3], [[-2.0, 0.0, 2.0], [1.0, -1.0, 0.0]])
    expected = torch.tensor([[0.25, torch.nan, 0.75], [0.0, 1.0, torch.nan]])
    torch.testing.assert_close(result.wrong_way, expected, equal_nan=True)


def test_pull_is_half_of_up_minus_down_for_each_size_of_the_force():
    # Not in the order of the forces, and with a force of 0 among them.
    forces = [[2.0, -4.0, 0.0, 4.0, -2.0], [-1.0, 3.0, -3.0, 0.0, 1.0]]
    effect = [
        [[5.0, 1.0], [-2.0, 0.5], [9.0, 9.0], [8.0, 1.5], [-1.0, 3.0]],
        [[0.0, 1.0], [7.0, 7.0], [1.0, 2.0], [9.0, 9.0], [4.0, -1.0]],
    ]
    result = by_hand(effect, forces)
    assert result.pull.tolist() == [[[3, -1], [5, 0.5]], [[2, -1], [3, 2.5]]]


def test_what_a_push_does_whatever_its_sign_is_no_pull():
    assert by_hand([[[2.0, -1.0], [2.0, -1.0]]], [[-1.5, 1.5]]).pull.tolist() == [[[0, 0]]]
    odd = by_hand([[[2.0, -1.0], [-2.0, 1.0]]], [[1.5, -1.5]])
    assert odd.pull.tolist() == [[[2, -1]]]


def test_pull_of_a_sweep_equals_that_of_its_experiments():
    _, cells = one_at_a_time("gpt2")
    result = swept(forces=[4.0, 0.5, -3.0, 3.0, -0.5, -4.0])
    assert result.pull.shape == (len(VECTORS), 3, len(PROMPTS))
    downwards = swept(vectors=[-v for v in VECTORS])  # by the same forces
    torch.testing.assert_close(
        result.pull[:, [0, 2]],
        (cells - downwards.effect - downwards.base)[:, 1:] / 2,
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize(
    "forces",
    [
        [1.0, 2.0],
        [-1.0, 1.0, 2.0],
        [1.0, -1.5],
        [-2.0, 1.0, 2.0, -2.0],
        [-2.0, -1.0, 2.0],
        [0.0],
        [-1.0],
    ],
    ids=str,
)
def test_forces_without_their_opposites_have_no_pull(forces):
    result = by_hand(torch.zeros(2, len(forces), 1).tolist(), [forces] * 2)
    with pytest.raises(SteeringError, match=r"either sign: give \[force, -force\]"):
        _ = result.pull


def test_forces_of_one_vector_alone_without_their_opposites_have_no_pull():
    with pytest.raises(SteeringError, match="A pull needs every force with either sign"):
        _ = by_hand(torch.zeros(2, 2, 1).tolist(), [[1.0, -1.0], [1.0, -2.0]]).pull


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
    for batch_tokens in (1, 40, 8192):
        with no_hook_left(model):
            found = sweep_texts(
                model, tokenizer(), PROMPTS, vectors, forces, batch_tokens=batch_tokens, **options
            )
        assert found.texts == expected
        assert found.price.shape == (3, 2, len(PROMPTS))
        for prices, row in zip(found.price, expected, strict=True):
            for cell, texts in zip(prices, row, strict=True):
                plain = price(model, tokenizer(), texts)
                torch.testing.assert_close(cell, plain, atol=1e-3, rtol=0, equal_nan=True)
    assert type(found.texts[0][0]) is SteeredTexts  # shows as a table
    common = sweep_texts(model, tokenizer(), PROMPTS, vectors, forces[0], **options)
    assert common.texts[0] == expected[0]


def test_texts_carry_the_labels_of_their_axes():
    options = {"max_new_tokens": 2}
    found = sweep_texts(tiny_model(), tokenizer(), tuple(PROMPTS), VECTORS, FORCES, **options)
    assert found.vectors == VECTORS and found.prompts == PROMPTS
    assert found.forces.tolist() == [FORCES] * len(VECTORS)
    assert repr(found) == "TextSweep(4 vectors × 3 forces × 3 prompts)"
    for row in found.texts:
        for texts in row:
            assert [text.prompt for text in texts] == PROMPTS
    single = sweep_texts(tiny_model(), tokenizer(), ["We liked"], VECTORS[0], [2.0], **options)
    assert single.price.shape == (1, 1, 1) and len(single.texts[0][0]) == 1


def test_texts_need_not_be_priced():
    options = {"max_new_tokens": 2, "seed": 4}
    arguments = tiny_model(), tokenizer(), PROMPTS, VECTORS[:2], FORCES
    found = sweep_texts(*arguments, priced=False, **options)
    assert found.price is None and found.texts == sweep_texts(*arguments, **options).texts


def test_texts_up_to_the_end_of_the_context_are_priced_too():
    prompt = tokenizer().decode(token_ids("word " * 60)[0, :40])
    assert len(token_ids(prompt)[0]) == 40  # of 64
    options = {"max_new_tokens": 24, "seed": list(range(5))}
    arguments = tiny_model(), tokenizer(), [prompt] * 5, VECTORS[:1], [-4.0, 4.0]
    texts = sweep_texts(*arguments, priced=False, **options).texts
    found = sweep_texts(*arguments, **options)
    assert found.texts == texts
