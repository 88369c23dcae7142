from dataclasses import replace

import pytest
import torch

from helpers.activations import capture, residual_stream, typical_norm
from helpers.concepts import SENTIMENT
from helpers.models import SteeringError, blocks
from tiny_models import (
    DEPTH,
    FAMILIES,
    PROMPTS,
    WIDTH,
    bare,
    block_list,
    fail_at_second_hook,
    hooks,
    logits_of,
    new_model,
    no_hook_left,
    tiny_model,
    token_ids,
    tokenizer,
)


@torch.no_grad()
def stream_of(model, prompt):
    """[layer, token, d_model] of one prompt alone, by a hook on every block."""
    seen = []

    def hook(module, args, output):
        seen.append(bare(output)[0].clone())

    handles = [block.register_forward_hook(hook) for block in block_list(model)]
    logits_of(model, token_ids(prompt))
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_mistake_04_layer_is_the_output_of_its_block(family):
    model, ids = tiny_model(family), token_ids(PROMPTS[1])
    with torch.no_grad(), capture(model) as stream:
        entries = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    *inner, last = range(DEPTH[family])
    assert sorted(stream) == [*inner, last] and len(entries) == DEPTH[family] + 1
    for layer in inner:
        assert stream[layer].equal(entries[layer + 1])
        assert not stream[layer].allclose(entries[layer])
    assert not stream[last].allclose(entries[-1])  # the last entry is after the final norm
    # The cache keeps the same convention.
    cache = residual_stream(model, tokenizer(), [PROMPTS[1]])
    for layer in stream:
        torch.testing.assert_close(cache[layer, 0], stream[layer][0, -1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("position", [-1, 0, 1, -2, "mean"])
def test_mistake_08_padded_rows_equal_single_prompts(family, position):
    model = tiny_model(family)
    cache = residual_stream(model, tokenizer(), PROMPTS, position)
    assert cache.shape == (DEPTH[family], len(PROMPTS), WIDTH)
    assert cache.dtype == torch.float32 and cache.device.type == "cpu"
    for row, prompt in enumerate(PROMPTS):
        alone = stream_of(model, prompt)
        expected = alone[:, 1:].mean(1) if position == "mean" else alone[:, position]
        torch.testing.assert_close(cache[:, row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 16, 50])
@pytest.mark.parametrize("position", [-1, "mean"])
def test_order_survives_any_size_of_the_batches(batch_tokens, position):
    many = [*SENTIMENT.pair_prompts, *PROMPTS]  # neither all alike nor in the order of length
    expected = residual_stream(tiny_model(), tokenizer(), many, position)
    cache = residual_stream(tiny_model(), tokenizer(), many, position, batch_tokens)
    torch.testing.assert_close(cache, expected)
    assert cache[-1].unique(dim=0).shape[0] > len(many) / 2  # not one row everywhere


def test_capture_of_some_layers_counts_from_either_end():
    with capture(tiny_model(), layers=[0, -1]) as stream:
        logits_of(tiny_model(), token_ids(PROMPTS[0]))
    assert sorted(stream) == [0, 2]


def test_mistake_12_what_was_captured_does_not_change_later():
    model = new_model()

    def wipe(module, args, output):
        bare(output).zero_()

    with capture(model, layers=[1]) as stream:
        later = blocks(model)[1].register_forward_hook(wipe)
        logits_of(model, token_ids(PROMPTS[0]))
    later.remove()
    torch.testing.assert_close(stream[1][0], stream_of(model, PROMPTS[0])[1])


@pytest.mark.parametrize("position", [2, -3, 99])
def test_a_position_that_some_prompt_lacks(position):
    with pytest.raises(SteeringError, match=rf"{position} does not exist.*shortest has 2 token"):
        residual_stream(tiny_model(), tokenizer(), PROMPTS, position)


def test_a_mean_needs_a_second_token():
    assert token_ids("The").shape == (1, 1)
    with pytest.raises(SteeringError, match="shortest has 1 token"):
        residual_stream(tiny_model(), tokenizer(), ["The", PROMPTS[0]], "mean")
    with pytest.raises(SteeringError, match="No prompt has a second token"):
        typical_norm(tiny_model(), tokenizer(), prompts=["The"])


@pytest.mark.parametrize("position", ["last", None, 1.0])
def test_unknown_position(position):
    message = f"position must be an integer, 'mean' or 'answer', got {position!r}"
    with pytest.raises(SteeringError, match=message):
        residual_stream(tiny_model(), tokenizer(), PROMPTS, position)


@pytest.mark.parametrize("measure", [residual_stream, typical_norm])
@pytest.mark.parametrize(
    ("prompts", "message"),
    [("one string", "one string"), ([], "empty"), ([""], "empty"), (["word " * 65], "at most 64")],
)
def test_unusable_prompts_leave_no_hook(measure, prompts, message):
    with no_hook_left(tiny_model()), pytest.raises(SteeringError, match=message):
        measure(tiny_model(), tokenizer(), prompts=prompts)


@pytest.fixture
def massive_start():
    """A model whose first position is as massive as GPT-2's."""
    model = new_model()
    model.transformer.wpe.weight[0] *= 1000
    return model


def test_mistake_15_typical_norm_leaves_out_position_0_and_padding(massive_start):
    streams = [stream_of(massive_start, prompt)[:, 1:] for prompt in PROMPTS]
    expected = torch.cat(streams, 1).norm(dim=-1).median(1).values
    found = typical_norm(massive_start, tokenizer(), prompts=PROMPTS)
    torch.testing.assert_close(found, expected)
    assert found.shape == (3,) and found.dtype == torch.float32
    # Two tokens a prompt: were the first counted, it would be half of all.
    short = typical_norm(massive_start, tokenizer(), prompts=["We liked", "The soup"])
    assert (short < stream_of(massive_start, "We liked")[:, 0].norm(dim=-1) / 10).all()


def test_mistake_15_mean_leaves_out_position_0(massive_start):
    mean = residual_stream(massive_start, tokenizer(), ["We liked"], "mean")
    torch.testing.assert_close(mean[:, 0], stream_of(massive_start, "We liked")[:, 1])


def test_typical_norm_reads_the_pairs_of_the_concept_by_default():
    other = replace(SENTIMENT, pairs=[("We liked it a lot", "No"), ("Such a good day", "Rain")])
    for concept in (SENTIMENT, other):
        sentences = [sentence for pair in concept.pairs for sentence in pair]
        expected = typical_norm(tiny_model(), tokenizer(), prompts=sentences)
        torch.testing.assert_close(typical_norm(tiny_model(), tokenizer(), concept), expected)
    norms = typical_norm(tiny_model(), tokenizer())
    assert norms.equal(typical_norm(tiny_model(), tokenizer(), SENTIMENT))
    assert not norms.allclose(expected)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_mistake_06_capture_leaves_no_hook_after(error):
    model = new_model()
    with no_hook_left(model), pytest.raises(error), capture(model):
        raise error


def test_mistake_06_capture_that_fails_midway_leaves_no_hook(monkeypatch):
    model, calls = new_model(), fail_at_second_hook(monkeypatch)
    with no_hook_left(model), pytest.raises(RuntimeError, match="no more hooks"), capture(model):
        pass
    assert len(calls) == 2


def test_mistake_06_capture_of_a_missing_layer_leaves_no_hook():
    model = new_model()
    with no_hook_left(model), pytest.raises(SteeringError, match="has 3 layers"):
        with capture(model, layers=[0, 7]):
            pass


def test_mistake_06_hooks_of_others_stay():
    model, heard = new_model(), []
    blocks(model)[1].register_forward_hook(lambda *args: heard.append(1))
    with torch.no_grad():
        model(input_ids=token_ids(PROMPTS[0]), output_hidden_states=True)  # installs its own
    theirs = hooks(model)
    residual_stream(model, tokenizer(), PROMPTS)
    typical_norm(model, tokenizer())
    assert hooks(model) == theirs and len(heard) == 3
