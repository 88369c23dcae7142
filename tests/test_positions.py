"""The same tokens are pushed however the text is read: every cache, every way of decoding.

The reference knows no cache, no padding and nothing of ``helpers``: one prompt at a time, read
again from its start for every new token, with a plain hook on the columns that are to be pushed.
"""

import copy
import warnings
from functools import lru_cache

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.models import SteeringError
from helpers.positions import steered_tokens
from helpers.steering import ablate, steer
from tiny_models import (
    FAMILIES,
    PROMPTS,
    logits_of,
    make_vector,
    no_hook_left,
    plain_push,
    token_ids,
    tokenizer,
)

V, W, FORCE, NEW = make_vector(), make_vector(0, seed=1), 6.0, 8
BATCH = tokenizer()(PROMPTS, padding=True, padding_side="left", return_tensors="pt")
LENGTHS = BATCH["attention_mask"].sum(1)
POSITIONS = ["all", "prompt", "generated"]
# The window of the two that have one is shorter than the longest prompt.
KINDS = {"gpt2": {}, "llama": {}, "mistral": {"sliding_window": 6}, "gemma2": {"sliding_window": 6}}


@lru_cache
def model_of(family, seed=0):
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer()), **ids, **{**FAMILIES[family], **KINDS.get(family, {})}
    )
    model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def written(model, ids, mask, **options):
    """New tokens [row, NEW], the likeliest each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            **options,
        )
    return out[:, ids.shape[1] :]


def pushed(positions, length):
    return {"all": slice(None), "prompt": slice(length), "generated": slice(length, None)}[
        positions
    ]


@lru_cache
def reference(family, positions, row, beams=1, returned=1):
    model, ids = model_of(family), token_ids(PROMPTS[row])
    with plain_push(model, V.layer, FORCE * V.direction, pushed(positions, ids.shape[1])):
        return written(
            model,
            ids,
            torch.ones_like(ids),
            use_cache=False,
            num_beams=beams,
            num_return_sequences=returned,
        )


@pytest.mark.parametrize("family", KINDS)
def test_the_three_ways_to_push_and_none_write_different_texts(family):
    rows = range(len(PROMPTS))
    texts = [
        torch.cat([reference(family, positions, row) for row in rows]) for positions in POSITIONS
    ]
    texts.append(written(model_of(family), BATCH["input_ids"], BATCH["attention_mask"]))
    assert len({str(text.tolist()) for text in texts}) == 4


WAYS = {
    "default cache": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 4},
    "chunked prefill, static": {"prefill_chunk_size": 4, "cache_implementation": "static"},
    "beams": {"num_beams": 3},
    "beams, static": {"num_beams": 3, "cache_implementation": "static"},
    "several returned": {"num_beams": 3, "num_return_sequences": 2},
}


def skip_if_unsteered_texts_are_wrong(model, ids, mask, **options):
    """Releases before 5.3 write other texts in chunks, or fail with drafts, unsteered too."""
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 3):
        try:
            right = written(model, ids, mask).equal(written(model, ids, mask, **options))
        except (TypeError, IndexError):
            right = False
        if not right:
            pytest.skip("This release of transformers cannot.")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", KINDS)
def test_a_padded_batch_is_written_as_its_prompts_are_alone(family, positions, way):
    model, options = model_of(family), WAYS[way]
    if "prefill_chunk_size" in options:
        batch = BATCH["input_ids"], BATCH["attention_mask"]
        skip_if_unsteered_texts_are_wrong(model, *batch, **options)
    beams, returned = options.get("num_beams", 1), options.get("num_return_sequences", 1)
    lengths = LENGTHS.repeat_interleave(beams)
    with no_hook_left(model), steer(model, V, FORCE, positions=positions, prompt_lengths=lengths):
        together = written(model, BATCH["input_ids"], BATCH["attention_mask"], **options)
    alone = [reference(family, positions, row, beams, returned) for row in range(len(PROMPTS))]
    assert together.equal(torch.cat(alone))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", KINDS)
def test_drafts_change_no_text(family, positions):
    model, ids = model_of(family), token_ids(PROMPTS[0])
    draft = {"assistant_model": model_of(family, seed=1)}
    ways = [draft, {"prompt_lookup_num_tokens": 2}]
    if family != "gpt2":  # transformers itself cannot, where a model runs all of its blocks
        ways += [{"assistant_early_exit": 1}, {"assistant_early_exit": 2}]
    for way in ways:
        skip_if_unsteered_texts_are_wrong(model, ids, torch.ones_like(ids), **way)
        lengths = ids.shape[1]
        with steer(model, V, FORCE, positions=positions, prompt_lengths=lengths):
            text = written(model, ids, torch.ones_like(ids), **way)
        assert text.equal(reference(family, positions, 0)), list(way)
        assert model.config.num_hidden_layers == 3


# -- A cache that is used again


def continued(model, ids, cache, start):
    with torch.no_grad():
        return model(ids[:, start:], past_key_values=copy.deepcopy(cache), use_cache=True).logits


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_prefix_that_was_read_under_the_same_push_can_be_used_again(family, positions):
    model, start = model_of(family), 4
    long = [token_ids(f"{PROMPTS[1]} {end}") for end in ("good", "bad")]
    length = token_ids(PROMPTS[1]).shape[1]
    for ids in long:
        with plain_push(model, V.layer, FORCE * V.direction, pushed(positions, length)):
            expected = logits_of(model, ids)[:, start:]
        push = {"positions": positions, "prompt_lengths": length}
        with steer(model, V, FORCE, **push), torch.no_grad():
            cache = model(ids[:, :start], use_cache=True).past_key_values
            inside = continued(model, ids, cache, start)
        with steer(model, V, FORCE, **push):  # another block, the same push
            later = continued(model, ids, cache, start)
        for logits in (inside, later):
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", KINDS)
def test_a_prefix_that_was_read_unsteered_is_refused_where_it_should_have_been_pushed(family):
    model, ids = model_of(family), token_ids(PROMPTS[1])
    with torch.no_grad():
        plain = model(ids[:, :4], use_cache=True).past_key_values
    with steer(model, V, FORCE / 2), torch.no_grad():
        other_push = model(ids[:, :4], use_cache=True).past_key_values
    for cache in (plain, other_push):
        for push in ({}, {"positions": "prompt", "prompt_lengths": 6}):
            with pytest.raises(SteeringError, match="cache holds 4 tokens.*without this push"):
                with steer(model, V, FORCE, **push):
                    continued(model, ids, cache, 4)
        with pytest.raises(SteeringError, match="cache holds 4 tokens"):
            with steer(model, V, FORCE, positions="generated", prompt_lengths=3):
                continued(model, ids, cache, 4)
    # What was generated begins after the prefix: nothing in it should have been pushed.
    with plain_push(model, V.layer, FORCE * V.direction, slice(4, None)):
        expected = logits_of(model, ids)[:, 4:]
    with steer(model, V, FORCE, positions="generated", prompt_lengths=4):
        torch.testing.assert_close(continued(model, ids, plain, 4), expected, atol=1e-5, rtol=0)


def test_unsteered_prompts_of_a_padded_batch_are_continued_with_steering():
    model, ids, mask = model_of("gpt2"), BATCH["input_ids"], BATCH["attention_mask"]
    place = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        cache = model(ids, attention_mask=mask, position_ids=place, use_cache=True).past_key_values
        more = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
        with steer(model, V, FORCE, positions="generated", prompt_lengths=LENGTHS):
            logits = model(
                ids[:, -1:],
                attention_mask=more,
                position_ids=LENGTHS[:, None],
                past_key_values=cache,
            ).logits
    for row, prompt in enumerate(PROMPTS):
        alone = torch.cat([token_ids(prompt), ids[row : row + 1, -1:]], 1)
        with plain_push(model, V.layer, FORCE * V.direction, slice(int(LENGTHS[row]), None)):
            expected = logits_of(model, alone)[:, -1:]
        torch.testing.assert_close(logits[row : row + 1], expected, atol=1e-5, rtol=0)


def filled(model, ids, vector, force):
    with steer(model, vector, force):
        return model(ids[:, :6], use_cache=True).past_key_values


def read_on_unsteered(model, ids):
    with steer(model, V, FORCE):
        cache = model(ids[:, :4], use_cache=True).past_key_values
    model(ids[:, 4:6], past_key_values=cache)
    return cache


CACHES = {
    "read on unsteered": read_on_unsteered,
    "another force": lambda model, ids: filled(model, ids, V, FORCE / 2),
    "a push more": lambda model, ids: filled(model, ids, [V, W], FORCE),
}


@pytest.mark.parametrize("made", CACHES)
@torch.no_grad()
def test_a_cache_that_was_read_under_other_pushes_is_refused(made):
    model, ids = model_of("llama"), token_ids(PROMPTS[1])
    cache = CACHES[made](model, ids)
    with pytest.raises(SteeringError, match="without this push, or with another"):
        with steer(model, V, FORCE):
            model(ids[:, 6:], past_key_values=cache)


def test_ablation_needs_a_cache_of_its_own():
    model, ids = model_of("llama"), token_ids(PROMPTS[1])
    with torch.no_grad():
        plain = model(ids[:, :4], use_cache=True).past_key_values
        with pytest.raises(SteeringError, match="fill the cache inside"), ablate(model, V):
            continued(model, ids, plain, 4)
        with ablate(model, V):
            own = model(ids[:, :4], use_cache=True).past_key_values
            whole = logits_of(model, ids)[:, 4:]
            torch.testing.assert_close(continued(model, ids, own, 4), whole, atol=1e-5, rtol=0)
        with pytest.raises(SteeringError, match="fill the cache inside"), steer(model, V, FORCE):
            continued(model, ids, own, 4)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_mask_as_long_as_a_static_cache(family, positions):
    model, ids = model_of(family), token_ids(PROMPTS[1])
    n = ids.shape[1]
    mask = torch.zeros(1, 20, dtype=torch.long)
    mask[:, :n] = 1
    cache = transformers.StaticCache(config=model.config, max_cache_len=20)
    with steer(model, V, FORCE, positions=positions, prompt_lengths=5), torch.no_grad():
        logits = model(ids, attention_mask=mask, past_key_values=cache).logits
    with plain_push(model, V.layer, FORCE * V.direction, pushed(positions, 5)):
        torch.testing.assert_close(logits, logits_of(model, ids), atol=1e-5, rtol=0)


# -- What cannot be told is refused


def test_several_texts_in_one_row_have_no_one_prompt():
    model, ids = model_of("llama"), token_ids(PROMPTS[1])
    place = torch.cat([torch.arange(5), torch.arange(ids.shape[1] - 5)])[None]
    with pytest.raises(SteeringError, match="pass one text a row"):
        with steer(model, V, FORCE, positions="prompt", prompt_lengths=2):
            logits_of(model, ids, position_ids=place)


def test_a_model_without_a_kv_cache_knows_all_positions_only():
    config = AutoConfig.for_model(
        "mamba", vocab_size=len(tokenizer()), hidden_size=32, num_hidden_layers=3, state_size=4
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = token_ids(PROMPTS[1])
    with steer(model, V, FORCE), torch.no_grad():
        model(ids)
    with pytest.raises(SteeringError, match="without a KV cache only positions='all'"):
        with steer(model, V, FORCE, positions="generated", prompt_lengths=3):
            model(ids)


@pytest.mark.parametrize("what", ["prompt_lengths", "force"])
def test_beams_need_their_values_repeated(what):
    model, given = model_of("gpt2"), {"prompt_lengths": LENGTHS, "force": [1.0, 2.0, 3.0]}
    push = {"force": FORCE, "positions": "generated", "prompt_lengths": 3, what: given[what]}
    with (
        no_hook_left(model),
        pytest.raises(SteeringError, match="for 3 rows, but the batch has 9"),
    ):
        with steer(model, V, **push):
            written(model, BATCH["input_ids"], BATCH["attention_mask"], num_beams=3)


@pytest.mark.parametrize(
    "lengths", [0, -3, 2.5, float("nan"), True, [3, 0, 2], [[3, 4, 2]], "3", {}, [3, None]]
)
def test_lengths_that_no_prompt_has(lengths):
    model = model_of("gpt2")
    with no_hook_left(model), pytest.raises(SteeringError, match="prompt_lengths must be a whole"):
        with steer(model, V, FORCE, positions="prompt", prompt_lengths=lengths):
            raise AssertionError("The block of code must not be entered.")


CAUSAL = torch.ones(3, 3).tril().bool()[None, None]
PADDED = CAUSAL & torch.tensor([False, True, True])


@pytest.mark.parametrize(
    ("mask", "n_new", "past", "positions", "place", "expected"),
    [
        (CAUSAL, 3, 0, "all", None, None),
        (PADDED, 3, 0, "all", None, [[0, 1, 1]]),
        (torch.zeros(1, 1, 3, 3).masked_fill(~PADDED, -1e9), 3, 0, "all", None, [[0, 1, 1]]),
        ({"sliding": CAUSAL, "full": CAUSAL}, 3, 0, "all", None, None),
        (PADDED, 3, 0, "prompt", [[0, 0, 1]], [[0, 1, 0]]),
        (torch.ones(1, 1, 1, 9).bool(), 1, 4, "generated", [[4]], None),
        (torch.ones(1, 1, 1, 6).bool(), 1, 13, "prompt", [[13]], [[0]]),  # a window that slid
    ],
)
def test_masks_of_caches_of_a_fixed_size(mask, n_new, past, positions, place, expected):
    place = None if place is None else torch.tensor(place)
    where = steered_tokens(n_new, mask, past, positions, 1, place)
    assert (where is None) if expected is None else where.tolist() == expected


def test_a_mask_without_positions_cannot_tell_the_prompt_from_the_rest():
    with pytest.raises(SteeringError, match="position_ids, or use a cache that grows"):
        steered_tokens(3, CAUSAL, 0, "prompt", 2)
