import math
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import pytest
import torch
from torch import nn

from helpers.activations import capture
from helpers.models import SteeringError, blocks
from helpers.positions import steered_tokens
from helpers.steering import ablate, force_matrix, steer
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
    make_vector,
    new_model,
    no_hook_left,
    plain_push,
    tiny_model,
    token_ids,
)

FORCE = 3.0
WIDE = r"made on 'tiny-gpt2' \(width 48\) and cannot steer 'tiny-gpt2' \(width 32\)"
IDS = token_ids(PROMPTS[1])


# -- What steering adds, and where


@pytest.mark.parametrize("family", FAMILIES)
def test_force_zero_and_leaving_are_bit_identical(family):
    model, v = tiny_model(family), make_vector()
    plain = logits_of(model, IDS)
    with no_hook_left(model), steer(model, v, 0.0):
        assert logits_of(model, IDS).equal(plain)
    with no_hook_left(model), steer(model, v, FORCE):
        assert (logits_of(model, IDS) - plain).abs().max() > 0.1
    assert logits_of(model, IDS).equal(plain)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_mistakes_09_and_10_exactly_one_push_at_the_output_of_the_layer(family, layer):
    model, v = tiny_model(family), make_vector(layer=layer)
    at = layer % DEPTH[family]
    with capture(model) as plain:
        logits_of(model, IDS)
    with steer(model, v, FORCE), capture(model) as steered:
        logits_of(model, IDS)
    assert steered[at].equal(plain[at] + FORCE * v.direction)
    for below in range(at):
        assert steered[below].equal(plain[below])
    for above in range(at + 1, DEPTH[family]):
        assert not steered[above].allclose(plain[above])


def test_mistake_05_every_row_of_a_batch_is_steered_in_every_family():
    for family in FAMILIES:
        model, v = tiny_model(family), make_vector()
        two = torch.cat([IDS, IDS.flip(1)])
        with steer(model, v, FORCE):
            together = logits_of(model, two)
            assert together.shape[:2] == two.shape
            for row in range(2):
                alone = logits_of(model, two[row : row + 1])
                torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


class InTuple(nn.Module):
    """A block that returns its hidden state in a tuple, with something behind it."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden, *args, **kwargs):
        output = self.block(hidden, *args, **kwargs)
        return bare(output), "something else"


def test_mistake_05_blocks_that_return_tuples():
    v, plain, tuples = make_vector(), tiny_model(), new_model()
    tuples.transformer.h = nn.ModuleList(map(InTuple, tuples.transformer.h))
    for module in (*tuples.transformer.h, tuples.transformer.ln_f):
        module.register_forward_pre_hook(lambda module, args: (bare(args[0]), *args[1:]))
    with no_hook_left(tuples), steer(tuples, v, FORCE), capture(tuples) as stream:
        logits = logits_of(tuples, IDS)
    with steer(plain, v, FORCE), capture(plain) as expected:
        torch.testing.assert_close(logits, logits_of(plain, IDS))
    for layer in expected:
        assert stream[layer].equal(expected[layer])


def test_another_layer_than_the_vector_s_own():
    model, v = tiny_model(), make_vector(layer=0)
    with steer(model, v, FORCE, layer=2), plain_push(model, 2, -FORCE * v.direction):
        back = logits_of(model, IDS)
    torch.testing.assert_close(back, logits_of(model, IDS), atol=1e-4, rtol=0)


def test_negative_force_subtracts():
    model, v = tiny_model(), make_vector()
    with steer(model, v, -FORCE):
        subtracted = logits_of(model, IDS)
    with steer(model, -v, FORCE):
        assert logits_of(model, IDS).equal(subtracted)


@pytest.mark.parametrize("layers", [(0, 2), (1, 1)])
def test_mistake_10_several_vectors_add_up(layers):
    model = tiny_model()
    v, w = (make_vector(layer, seed) for seed, layer in enumerate(layers))
    with plain_push(model, layers[0], 2 * v.direction):
        with plain_push(model, layers[1], -w.direction):
            expected = logits_of(model, IDS)
    with steer(model, [v, w], [2.0, -1.0]):
        torch.testing.assert_close(logits_of(model, IDS), expected, atol=1e-5, rtol=0)
    with steer(model, v, 2.0), steer(model, w, -1.0):  # one inside the other
        torch.testing.assert_close(logits_of(model, IDS), expected, atol=1e-5, rtol=0)


def test_mistake_10_each_row_has_its_own_force_and_layer():
    model, four = tiny_model(), IDS.repeat(4, 1)
    v, w = make_vector(layer=0), make_vector(layer=2, seed=1)
    forces = torch.tensor([[0.0, FORCE, 0.0, 1.0], [0.0, 0.0, -FORCE, 2.0]])
    with steer(model, [v, w], forces):
        together = logits_of(model, four)
    for row, (first, second) in enumerate(forces.T.tolist()):
        with plain_push(model, 0, first * v.direction):
            with plain_push(model, 2, second * w.direction):
                alone = logits_of(model, IDS)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mistake_11_half_precision_stays_half(dtype):
    model, v = new_model().to(dtype), make_vector()
    with capture(model) as plain:
        logits_of(model, IDS)
    with steer(model, v, FORCE), capture(model) as steered:
        assert logits_of(model, IDS).dtype == dtype
    assert {stream.dtype for stream in steered.values()} == {dtype}
    assert steered[1].equal(plain[1] + (FORCE * v.direction).to(dtype))


def test_mistake_11_vector_follows_the_block_to_its_device(monkeypatch):
    model = new_model()
    last = blocks(model)[-1]
    compute = last.forward

    def compute_elsewhere(*args, **kwargs):
        # A device without data, where adding a tensor of the CPU still fails.
        output = compute(*args, **kwargs)
        moved = bare(output).to("meta")
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    monkeypatch.setattr(last, "forward", compute_elsewhere)
    model.transformer.ln_f.to("meta")
    with steer(model, make_vector(layer=-1), FORCE), capture(model, layers=[-1]) as stream:
        model.transformer(IDS, use_cache=False)
    assert stream[2].device.type == "meta"


def test_mistake_12_a_tensor_that_another_hook_holds_is_not_changed():
    model, held = new_model(), []

    def hold(module, args, output):
        held.append(bare(output))

    with capture(model) as plain:
        logits_of(model, IDS)
    with steer(model, make_vector(), FORCE):
        blocks(model)[1].register_forward_hook(hold, prepend=True)  # runs before the steering
        logits_of(model, IDS)
    assert held[0].equal(plain[1])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama"])
def test_mistake_07_hooks_that_were_there_before_see_the_steered_stream(family):
    model, v = new_model(family), make_vector()

    @torch.no_grad()
    def hidden_states():
        return model(input_ids=IDS, output_hidden_states=True).hidden_states

    plain = hidden_states()  # from now on transformers' own hooks hang on the blocks
    with capture(model) as stream, steer(model, v, FORCE):
        steered = hidden_states()
    assert steered[v.layer + 1].equal(plain[v.layer + 1] + FORCE * v.direction)
    assert stream[v.layer].equal(steered[v.layer + 1])


# -- Positions: the same with and without cache and padding


@torch.no_grad()
def stepwise_logits(model, ids, mask, prompt_columns):
    """Feed the prompt at once and then one token at a time, with the KV cache."""
    cache, parts = None, []
    steps = [0, *range(prompt_columns, ids.shape[1] + 1)]
    for start, end in pairwise(steps):
        kwargs = position_kwargs(model, mask[:, :end], start)
        output = model(
            input_ids=ids[:, start:end],
            attention_mask=mask[:, :end],
            past_key_values=cache,
            use_cache=True,
            **kwargs,
        )
        cache = output.past_key_values
        parts.append(output.logits)
    return torch.cat(parts, 1)


def position_kwargs(model, mask, start=0):
    """Position ids that count real tokens only, for models that do not count by the mask."""
    if model.config.model_type in ("bloom", "opt"):
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, start:]}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
def test_mistakes_01_02_08_positions_are_the_same_with_cache_and_padding(family, positions):
    model, v, n_new = tiny_model(family), make_vector(), 4
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 2, 7])
    rows = [torch.randint(1, 8000, [n + n_new], generator=generator) for n in lengths.tolist()]
    width = max(len(row) for row in rows)
    ids, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):  # left padding
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, 1

    with no_hook_left(model), steer(model, v, FORCE, positions=positions, prompt_lengths=lengths):
        whole = logits_of(model, ids, attention_mask=mask, **position_kwargs(model, mask))
        cached = stepwise_logits(model, ids, mask, width - n_new)
    for i, (row, n) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        row = row[None]
        pushed = {"all": slice(None), "prompt": slice(n), "generated": slice(n, None)}[positions]
        with plain_push(model, v.layer, FORCE * v.direction, pushed):
            expected = logits_of(model, row)
        with steer(model, v, FORCE, positions=positions, prompt_lengths=n):
            alone = logits_of(model, row)
            alone_cached = stepwise_logits(model, row, torch.ones_like(row), n)
        in_batch = [logits[i : i + 1, width - len(row[0]) :] for logits in (whole, cached)]
        for logits in (alone, alone_cached, *in_batch):
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        unsteered = (logits_of(model, row) - expected).abs().amax(-1)[0]
        if positions == "generated":  # the prompt knows nothing of it
            assert (unsteered[:n] == 0).all() and (unsteered[n:] > 0.1).all()
        else:
            assert (unsteered[:n] > 0.1).all()


def test_mistake_17_scoring_a_whole_text_steers_what_generating_it_steered():
    model, v = tiny_model(), make_vector()
    with steer(model, v, FORCE):
        whole = logits_of(model, IDS)
        grown = [logits_of(model, IDS[:, : n + 1])[:, -1] for n in range(IDS.shape[1])]
        stepwise = stepwise_logits(model, IDS, torch.ones_like(IDS), 1)
    torch.testing.assert_close(torch.stack(grown, 1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(stepwise, whole, atol=1e-5, rtol=0)


def test_mistake_17_generated_texts_are_the_likeliest_when_scored_whole():
    model, v, n_new = tiny_model(), make_vector(), 6
    with steer(model, v, FORCE):
        tokens = model.generate(IDS, max_new_tokens=n_new, do_sample=False, eos_token_id=None)
        whole = logits_of(model, tokens)
    n = IDS.shape[1]
    assert tokens[0, n:].tolist() == whole[0, n - 1 : -1].argmax(-1).tolist()
    assert tokens[0].tolist() != model.generate(IDS, max_new_tokens=n_new)[0].tolist()


LEFT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("mask", "n_new", "past", "positions", "lengths", "expected"),
    [
        (None, 3, 0, "all", None, None),
        (torch.ones(2, 3), 3, 0, "all", None, None),
        (LEFT, 5, 0, "all", None, LEFT),
        (LEFT.flip(1), 5, 0, "all", None, LEFT.flip(1)),
        (LEFT, 5, 0, "prompt", [2, 3], [[0, 0, 1, 1, 0], [1, 1, 1, 0, 0]]),
        (LEFT, 5, 0, "generated", [2, 3], [[0, 0, 0, 0, 1], [0, 0, 0, 1, 1]]),
        (LEFT.flip(1), 5, 0, "prompt", [2, 3], [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]),
        (LEFT.flip(1), 5, 0, "generated", [2, 3], [[0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]),
        (LEFT, 1, 4, "generated", [2, 5], [[1], [0]]),
        (LEFT, 1, 4, "prompt", [2, 5], [[0], [1]]),
        (LEFT, 1, 4, "prompt", [3, 5], None),
        (LEFT, 2, 3, "generated", 2, [[0, 1], [1, 1]]),
        (None, 1, 4, "generated", 4, None),
        (None, 1, 3, "generated", 4, [[0]]),
        (None, 4, 0, "prompt", torch.tensor([1, 3]), [[1, 0, 0, 0], [1, 1, 1, 0]]),
    ],
)
def test_steered_tokens(mask, n_new, past, positions, lengths, expected):
    where = steered_tokens(n_new, mask, past, positions, lengths)
    if expected is None:
        assert where is None
    else:
        assert where.dtype == torch.bool
        assert where.equal(torch.as_tensor(expected, dtype=torch.bool))


@pytest.mark.parametrize(
    ("mask", "past"),
    [(torch.ones(1, 2, 2), 0), ("causal", 0), (torch.ones(1, 3), 2), (torch.ones(1, 2), 2)],
)
def test_a_mask_of_another_kind_is_refused(mask, past):
    with pytest.raises(SteeringError, match=r"attention mask as a tensor \[row, token\]"):
        steered_tokens(2, mask, past, "all")


# -- Forces


@pytest.mark.parametrize(
    ("force", "n_vectors", "n_rows", "expected"),
    [
        (2, 1, None, [[2]]),
        (2.0, 2, None, [[2], [2]]),
        (2.0, 1, 3, [[2, 2, 2]]),
        ([1, 2, 3], 1, None, [[1, 2, 3]]),
        ([1, 2, 3], 1, 3, [[1, 2, 3]]),
        ([1, 2], 2, None, [[1], [2]]),
        ([1, 2], 2, 3, [[1, 1, 1], [2, 2, 2]]),
        (torch.tensor([[1, 2, 3], [4, 5, 6]]), 2, 3, [[1, 2, 3], [4, 5, 6]]),
        (torch.tensor(5), 2, 2, [[5, 5], [5, 5]]),
    ],
)
def test_force_matrix(force, n_vectors, n_rows, expected):
    matrix = force_matrix(force, n_vectors, n_rows)
    assert matrix.tolist() == expected and matrix.dtype == torch.float32


@pytest.mark.parametrize(
    ("force", "n_vectors", "n_rows", "message"),
    [
        ([1, 2, 3], 2, None, r"shape \[3\] do not fit 2 vector\(s\)\."),
        ([1, 2, 3], 1, 2, r"shape \[3\] do not fit 1 vector\(s\) and 2 prompts"),
        ([[1, 2], [3, 4], [5, 6]], 2, 2, r"shape \[3, 2\] do not fit 2"),
        ([[[1.0]]], 1, None, r"shape \[1, 1, 1\] do not fit"),
        ([], 1, 2, r"shape \[0\] do not fit"),
        (math.nan, 1, None, "force must be a finite number, got nan"),
        ([1, math.inf], 1, None, "force must be a finite number"),
    ],
)
def test_forces_that_do_not_fit(force, n_vectors, n_rows, message):
    with pytest.raises(SteeringError, match=message):
        force_matrix(force, n_vectors, n_rows)


# -- Bad input, and what is left behind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"force": math.nan}, "force must be a finite number, got nan"),
        ({"force": -math.inf}, "force must be a finite number, got -inf"),
        ({"force": [1.0, 2.0, 3.0], "vector": [make_vector(), make_vector()]}, "do not fit 2"),
        (
            {"vector": make_vector(width=48)},
            WIDE,
        ),
        ({"vector": []}, "No vector to steer with"),
        ({"vector": make_vector(layer=3)}, "Layer 3 does not exist: tiny-gpt2 has 3 layers"),
        ({"layer": -4}, "Layer -4 does not exist: tiny-gpt2 has 3 layers"),
        ({"vector": [make_vector(), make_vector(layer=9)]}, "Layer 9 does not exist"),
        ({"positions": "last"}, "Unknown positions 'last': choose all, prompt, generated"),
        ({"positions": "prompt"}, "positions='prompt' needs prompt_lengths"),
        ({"positions": "generated"}, "positions='generated' needs prompt_lengths"),
    ],
)
def test_bad_input_leaves_the_model_untouched(change, message):
    model = tiny_model()
    with no_hook_left(model), pytest.raises(SteeringError, match=message):
        with steer(model, **{"vector": make_vector(), "force": FORCE, **change}):
            raise AssertionError("The block of code must not be entered.")


def test_forces_that_could_be_the_vectors_or_the_rows_are_refused():
    model, two = tiny_model(), IDS.repeat(2, 1)
    v, w = make_vector(layer=0), make_vector(layer=2, seed=1)
    with (
        no_hook_left(model),
        pytest.raises(SteeringError, match="2 forces for 2 vectors and"),
    ):
        with steer(model, [v, w], [1.0, 2.0]):
            logits_of(model, two)
    with pytest.raises(SteeringError, match="3 forces for 3 vectors and 3 rows"):
        force_matrix([1.0, 2.0, 3.0], 3, 3)
    with steer(model, [v, w], [[1.0], [2.0]]):  # said clearly: each is a vector's
        both = logits_of(model, two)
    with plain_push(model, 0, v.direction), plain_push(model, 2, 2 * w.direction):
        torch.testing.assert_close(both, logits_of(model, two), atol=1e-5, rtol=0)


def test_forces_for_another_number_of_rows_than_the_batch_has():
    model = tiny_model()
    with no_hook_left(model), pytest.raises(SteeringError, match="for 3 rows.*batch has 1"):
        with steer(model, make_vector(), [1.0, 2.0, 3.0]):
            logits_of(model, IDS)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_mistake_06_no_hook_survives(error):
    model = new_model()
    plain = logits_of(model, IDS)
    with no_hook_left(model), pytest.raises(error):
        with steer(model, [make_vector(0), make_vector(2)], FORCE):
            raise error
    assert logits_of(model, IDS).equal(plain)


def test_mistake_06_no_hook_survives_a_failed_registration(monkeypatch):
    model, calls = new_model(), fail_at_second_hook(monkeypatch)
    with no_hook_left(model), pytest.raises(RuntimeError, match="no more hooks"):
        with steer(model, [make_vector(0), make_vector(2)], FORCE):
            pass
    assert len(calls) == 2


def test_mistake_06_hooks_of_others_stay():
    model, heard = new_model(), []
    blocks(model)[1].register_forward_hook(lambda *args: heard.append(1))
    with torch.no_grad():
        model(input_ids=IDS, output_hidden_states=True)  # installs its own
    theirs = hooks(model)
    with steer(model, make_vector(), FORCE):
        assert sum(hooks(model).values()) > sum(theirs.values())
        blocks(model)[0].register_forward_hook(hear := lambda *args: heard.append(2))
        logits_of(model, IDS)
    assert heard == [1, 2, 1]
    assert not theirs - hooks(model)
    assert [hook for _, _, hook in hooks(model) - theirs] == [hear]


# -- Taking a direction out


@contextmanager
def plain_ablation(model, layers, direction):
    """What ablation should do, one token and row at a time."""

    def hook(module, args, output):
        hidden = bare(output).clone()
        for row in hidden:
            for token in row:
                token -= (token * direction).sum() * direction
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(block_list(model)[layer].register_forward_hook(hook).remove)
        yield


def components(stream, direction):
    """The part along a direction in the stream behind each block, as a share of its length."""
    return [
        ((hidden @ direction).abs() / hidden.norm(dim=-1)).max().item()
        for _, hidden in sorted(stream.items())
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_ablated_direction_is_gone_behind_every_block(family):
    model, v = tiny_model(family), make_vector()
    two = torch.cat([IDS, IDS.flip(1)])
    with capture(model) as stream:
        plain = logits_of(model, two)
    assert min(components(stream, v.direction)) > 0.1
    with no_hook_left(model), ablate(model, v), capture(model) as stream:
        ablated = logits_of(model, two)
    assert len(stream) == DEPTH[family] and max(components(stream, v.direction)) < 1e-4
    with plain_ablation(model, range(DEPTH[family]), v.direction):
        expected = logits_of(model, two)
    torch.testing.assert_close(ablated, expected, atol=1e-4, rtol=0)
    assert (ablated - plain).abs().max() > 0.1
    assert logits_of(model, two).equal(plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_is_the_same_with_the_cache(family):
    model = tiny_model(family)
    with no_hook_left(model), ablate(model, make_vector()):
        whole = logits_of(model, IDS)
        cached = stepwise_logits(model, IDS, torch.ones_like(IDS), 3)
    torch.testing.assert_close(cached, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layers", [[0], [-1], [0, 2], [1, -2], range(1, 3)])
def test_ablation_behind_some_blocks(layers):
    model, v = tiny_model(), make_vector(layer=2)
    chosen = {layer % 3 for layer in layers}
    with ablate(model, v, layers), capture(model) as stream:
        ablated = logits_of(model, IDS)
    shares = components(stream, v.direction)
    for layer in range(3):
        assert shares[layer] < 1e-4 if layer in chosen else shares[layer] > 0.01
    with plain_ablation(model, chosen, v.direction):
        torch.testing.assert_close(ablated, logits_of(model, IDS), atol=1e-4, rtol=0)


def test_nothing_can_be_pushed_along_an_ablated_direction():
    model, v = tiny_model(), make_vector()
    with ablate(model, v):
        expected = logits_of(model, IDS)
        with steer(model, v, 10 * FORCE):
            torch.testing.assert_close(logits_of(model, IDS), expected, atol=1e-4, rtol=0)
        with steer(model, make_vector(seed=1), FORCE):
            assert (logits_of(model, IDS) - expected).abs().max() > 0.1


def test_mistake_11_ablation_in_half_precision():
    model, v = new_model().to(torch.bfloat16), make_vector()
    with ablate(model, v), capture(model) as stream:
        assert logits_of(model, IDS).dtype == torch.bfloat16
    assert {hidden.dtype for hidden in stream.values()} == {torch.bfloat16}
    stream = {layer: hidden.float() for layer, hidden in stream.items()}
    assert max(components(stream, v.direction)) < 0.02


def test_mistake_12_ablation_changes_no_tensor_that_another_hook_holds():
    model, held = new_model(), []
    with capture(model) as plain:
        logits_of(model, IDS)
    with ablate(model, make_vector()):
        hold = lambda module, args, output: held.append(bare(output))  # noqa: E731
        blocks(model)[0].register_forward_hook(hold, prepend=True)  # runs before the ablation
        logits_of(model, IDS)
    assert held[0].equal(plain[0])


def test_mistakes_06_and_07_ablation_and_the_hooks_of_others():
    model, v, heard = new_model(), make_vector(), {}
    for layer, block in enumerate(blocks(model)):
        hear = lambda module, args, output, at=layer: heard.update({at: bare(output)})  # noqa: E731
        block.register_forward_hook(hear)
    theirs = hooks(model)
    with ablate(model, v):
        added = hooks(model) - theirs
        assert not theirs - hooks(model)
        assert sum(n for (name, *_), n in added.items() if ".h." in name) == 3
        logits_of(model, IDS)
    assert hooks(model) == theirs
    assert len(heard) == 3 and max(components(heard, v.direction)) < 1e-4


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_mistake_06_no_hook_survives_an_interrupted_ablation(error):
    model = new_model()
    plain = logits_of(model, IDS)
    with no_hook_left(model), pytest.raises(error):
        with ablate(model, make_vector()):
            raise error
    assert logits_of(model, IDS).equal(plain)


def test_mistake_06_no_hook_survives_an_ablation_that_fails_to_begin(monkeypatch):
    model, tries = new_model(), fail_at_second_hook(monkeypatch)
    with no_hook_left(model), pytest.raises(RuntimeError, match="no more hooks"):
        with ablate(model, make_vector()):
            pass
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("vector", "layers", "message"),
    [
        (make_vector(), [0, 3], "Layer 3 does not exist: tiny-gpt2 has 3 layers"),
        (make_vector(), [-4], "Layer -4 does not exist"),
        (
            make_vector(width=48),
            None,
            WIDE,
        ),
    ],
)
def test_bad_input_of_ablate_leaves_the_model_untouched(vector, layers, message):
    model = tiny_model()
    with no_hook_left(model), pytest.raises(SteeringError, match=message):
        with ablate(model, vector, layers):
            raise AssertionError("The block of code must not be entered.")


def test_plain_references_see_the_same_blocks():
    for family in FAMILIES:
        assert blocks(tiny_model(family)) is block_list(tiny_model(family))
    assert make_vector().direction.shape == (WIDTH,)
