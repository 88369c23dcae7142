"""What steering, ablation and capture share: compiled code, threads, interrupts, other models."""

import asyncio
import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch

from helpers.activations import capture, residual_stream
from helpers.directions import find_vectors
from helpers.evaluation import balanced_prompts, log_odds, perplexity, price
from helpers.generation import SteeredText, generate
from helpers.models import SteeringError, blocks, decoder
from helpers.steering import ablate, steer
from helpers.sweeps import sweep, sweep_damage, sweep_texts
from tiny_models import (
    DEPTH,
    PROMPTS,
    hooks,
    logits_of,
    make_vector,
    new_model,
    no_hook_left,
    plain_push,
    tiny_model,
    token_ids,
    tokenizer,
)

FORCE, V = 3.0, make_vector()
IDS = token_ids(PROMPTS[1])
PAIRS = [("I love it", "I hate it"), ("What a good day", "What a bad day")]


def steered_logits(family="gpt2", force=FORCE):
    with plain_push(tiny_model(family), V.layer, force * V.direction):
        return logits_of(tiny_model(family), IDS)


def close(logits, expected):
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


# -- Compiled models


def whole(model):
    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


def decoder_in_place(model):
    decoder(model).compile(backend="eager")
    return model


def blocks_in_place(model):
    for block in blocks(model):
        block.compile(backend="eager")
    return model


def blocks_wrapped(model):
    found = blocks(model)
    for i in range(len(found)):
        found[i] = torch.compile(found[i], backend="eager")
    return model


COMPILED = [whole, in_place, decoder_in_place, blocks_in_place, blocks_wrapped]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("handed", ["model", "compiled"])
@pytest.mark.parametrize("called_before", [True, False])
@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_compiled_models_are_steered_ablated_and_captured(family, compiled, called_before, handed):
    plain = logits_of(tiny_model(family), IDS)
    with capture(tiny_model(family)) as stream:
        logits_of(tiny_model(family), IDS)
    with ablate(tiny_model(family), V):
        ablated = logits_of(tiny_model(family), IDS)
    model = new_model(family)
    runs = compiled(model)
    given = model if handed == "model" else runs
    if called_before:
        close(logits_of(runs, IDS), plain)
    with no_hook_left(model), steer(given, V, FORCE):
        close(logits_of(runs, IDS), steered_logits(family))
    with no_hook_left(model), ablate(given, V):
        close(logits_of(runs, IDS), ablated)
    with no_hook_left(model), capture(given) as found:
        logits_of(runs, IDS)
    assert found.keys() == stream.keys()
    for layer in found:
        close(found[layer], stream[layer])
    close(logits_of(runs, IDS), plain)
    with steer(given, V, -FORCE):
        close(logits_of(runs, IDS), steered_logits(family, -FORCE))
    close(logits_of(runs, IDS), plain)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("compiled", COMPILED)
def test_a_model_compiled_inside_the_block_is_steered_there_and_not_afterwards(compiled):
    model = new_model()
    plain = logits_of(model, IDS)
    with steer(model, V, FORCE):
        runs = compiled(model)
        close(logits_of(runs, IDS), steered_logits())
    close(logits_of(runs, IDS), plain)


@pytest.mark.usefixtures("fresh_compiler")
def test_every_measure_of_a_compiled_model_is_that_of_the_model():
    model = new_model()
    runs = whole(model)
    vectors = find_vectors(model, tokenizer(), PAIRS)
    logits_of(runs, IDS)
    for measure in (
        lambda m: log_odds(m, tokenizer(), PROMPTS, vectors[1], FORCE),
        lambda m: residual_stream(m, tokenizer(), PROMPTS),
        lambda m: sweep(m, tokenizer(), PROMPTS, vectors, [-1.0, 1.0]).effect,
        lambda m: sweep_damage(m, tokenizer(), PROMPTS, vectors, [1.0]),
    ):
        close(measure(runs), measure(model))
    assert generate(runs, tokenizer(), PROMPTS, vectors[1], FORCE) == generate(
        model, tokenizer(), PROMPTS, vectors[1], FORCE
    )


@pytest.mark.usefixtures("fresh_compiler")
def test_the_reader_s_own_stance_towards_compiled_code_comes_back():
    stance = torch._dynamo.eval_frame
    with torch.compiler.set_stance("eager_on_recompile"):
        with steer(tiny_model(), V, FORCE), capture(tiny_model()):
            assert stance._stance.stance == "force_eager"
            logits_of(tiny_model(), IDS)
        assert stance._stance.stance == "eager_on_recompile"


# -- A forward pass that does not reach the hooks


def test_another_model_than_the_one_that_runs_is_noticed():
    model, other = new_model(), new_model()
    for block in (steer(model, V, FORCE), ablate(model, V), capture(model)):
        with (
            no_hook_left(model),
            pytest.raises(SteeringError, match="no forward pass of tiny-gpt2"),
        ):
            with block:
                logits_of(other, IDS)


def test_an_exported_copy_is_noticed():
    model = new_model()
    with torch.no_grad():
        traced = torch.jit.trace(lambda ids: model(ids, use_cache=False).logits, IDS)
    with pytest.raises(SteeringError, match="no copy or export"), steer(model, V, FORCE):
        traced(IDS)


def test_a_copy_made_inside_the_block_is_deaf_afterwards():
    model = new_model()
    plain = logits_of(model, IDS)
    with steer(model, V, FORCE):
        logits_of(model, IDS)
        copied = copy.deepcopy(model)
    assert logits_of(copied, IDS).equal(plain)


def test_a_block_left_out_of_one_forward_pass_is_noticed(monkeypatch):
    model = new_model()
    with no_hook_left(model), pytest.raises(SteeringError, match="reached layer 1"):
        with steer(model, V, FORCE):
            logits_of(model, IDS)  # this one reaches it
            block = type(model.transformer.h[1])  # from here on its hooks are not called
            monkeypatch.setattr(block, "__call__", lambda self, *a, **k: self.forward(*a, **k))
            logits_of(model, IDS)


def test_another_error_is_not_hidden_by_a_pass_that_never_came():
    with pytest.raises(KeyError), steer(tiny_model(), V, FORCE):
        raise KeyError("of the reader")


# -- The configuration


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_a_configuration_that_was_changed_by_others_is_named(family):
    model = new_model(family)
    model.config.num_hidden_layers = 2
    assert len(blocks(model)) == DEPTH[family]
    mend = r"has 3 layers, but 2 by its configuration.*set model.config.num_hidden_layers = 3"
    for use in (
        lambda: steer(model, V, FORCE).__enter__(),
        lambda: capture(model).__enter__(),
        lambda: log_odds(model, tokenizer(), PROMPTS),
        lambda: generate(model, tokenizer(), PROMPTS, V, FORCE),
    ):
        with no_hook_left(model), pytest.raises(SteeringError, match=mend):
            use()
    model.config.num_hidden_layers = 3
    with steer(model, V, FORCE):
        close(logits_of(model, IDS), steered_logits(family))


def test_an_assisted_generation_that_fails_leaves_the_configuration_as_it_was():
    model = new_model()

    def fail(module, args):
        raise RuntimeError("in the draft")

    with pytest.raises(RuntimeError, match="in the draft"), steer(model, V, FORCE):
        model.config.num_hidden_layers = 1  # as while it drafts
        handle = blocks(model)[0].register_forward_pre_hook(fail)
        logits_of(model, IDS)
    handle.remove()
    assert model.config.num_hidden_layers == 3
    with pytest.raises(SteeringError, match="has 3 layers, but 1"), steer(model, V, FORCE):
        logits_of(model, IDS)
        model.config.num_hidden_layers = 1


# -- One at a time


def in_thread(function):
    """The result of a function in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=60)


def test_threads_that_steer_one_model_are_right_or_refused():
    model, outcomes = new_model(), []
    expected = {force: steered_logits(force=force) for force in (FORCE, -FORCE)}
    start = threading.Barrier(2, timeout=60)

    def push(force):
        start.wait()
        for _ in range(40):
            try:
                with steer(model, V, force):
                    close(logits_of(model, IDS), expected[force])
                outcomes.append("right")
            except SteeringError as error:
                assert "Another thread" in str(error)
                outcomes.append("refused")

    with no_hook_left(model), ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(push, force) for force in expected]:
            done.result(timeout=120)
    assert len(outcomes) == 80 and "right" in outcomes


@pytest.mark.parametrize("started", ["before", "inside"])
def test_a_plain_pass_of_another_thread_is_refused_while_the_model_is_steered(started):
    model = new_model()
    with ThreadPoolExecutor(1) as pool:
        if started == "before":
            pool.submit(int).result()
        with steer(model, V, FORCE):
            for use in (
                lambda: logits_of(model, IDS),
                lambda: log_odds(model, tokenizer(), PROMPTS),
                lambda: steer(model, V, -FORCE).__enter__(),
            ):
                with pytest.raises(SteeringError, match="Another thread.*in the function that it"):
                    pool.submit(use).result(timeout=60)
            close(logits_of(model, IDS), steered_logits())
        assert pool.submit(logits_of, model, IDS).result(60).equal(logits_of(tiny_model(), IDS))


def test_a_thread_that_outlives_the_block_leaves_no_text_in_doubt():
    model, written = new_model(), []
    began, go_on = threading.Event(), threading.Event()

    def write():
        began.set()
        go_on.wait(60)
        written.append(logits_of(model, IDS))

    thread = threading.Thread(target=write)
    with pytest.raises(SteeringError, match="before the block ends"), steer(model, V, FORCE):
        thread.start()
        began.wait(60)
    go_on.set()
    thread.join(60)
    assert written[0].equal(logits_of(tiny_model(), IDS))


def test_a_thread_with_its_own_block_is_steered():
    def write():
        with steer(model, V, FORCE):
            return logits_of(model, IDS)

    model = new_model()
    close(in_thread(write), steered_logits())


def test_measuring_in_one_thread_and_sweeping_in_another_is_right_or_refused():
    model, vectors = new_model(), [make_vector(layer) for layer in range(3)]
    alone = log_odds(model, tokenizer(), PROMPTS)
    effect = sweep(model, tokenizer(), PROMPTS, vectors, [-1.0, 1.0]).effect
    outcomes = []

    def repeat(use):
        for _ in range(25):
            try:
                use()
                outcomes.append("right")
            except SteeringError as error:
                assert "Another thread" in str(error)

    with no_hook_left(model), ThreadPoolExecutor(3) as pool:
        uses = (
            lambda: close(sweep(model, tokenizer(), PROMPTS, vectors, [-1.0, 1.0]).effect, effect),
            lambda: close(log_odds(model, tokenizer(), PROMPTS), alone),
            lambda: close(logits_of(model, IDS), logits_of(tiny_model(), IDS)),
        )
        for done in [pool.submit(repeat, use) for use in uses]:
            done.result(timeout=120)
    assert outcomes


def test_two_models_are_steered_in_two_threads():
    one, other = new_model(), new_model()
    with steer(one, V, FORCE):

        def beside():
            with steer(other, V, -FORCE):
                return logits_of(other, IDS)

        close(in_thread(beside), steered_logits(force=-FORCE))
        close(logits_of(one, IDS), steered_logits())


def test_tasks_of_one_thread_do_not_steer_each_other():
    model = new_model()

    async def pushed():
        with steer(model, V, FORCE):
            await asyncio.sleep(0.05)
            close(logits_of(model, IDS), steered_logits())

    async def plain():
        await asyncio.sleep(0.01)
        with pytest.raises(SteeringError, match="Another thread"):
            logits_of(model, IDS)

    async def both():
        await asyncio.gather(pushed(), plain())

    asyncio.run(both())


def test_nested_on_purpose_adds_up():
    model = new_model()
    with steer(model, V, FORCE), steer(model, V, FORCE):
        close(logits_of(model, IDS), steered_logits(force=2 * FORCE))


def test_what_compares_with_the_unsteered_model_is_refused_inside():
    model = new_model()
    vectors = [make_vector(layer) for layer in range(3)]
    inside = {
        "generate": lambda: generate(model, tokenizer(), PROMPTS, V, FORCE),
        "sweep": lambda: sweep(model, tokenizer(), PROMPTS, vectors, [1.0]),
        "sweep_damage": lambda: sweep_damage(model, tokenizer(), PROMPTS, vectors, [1.0]),
        "sweep_texts": lambda: sweep_texts(model, tokenizer(), PROMPTS, vectors, [1.0]),
        "find_vectors": lambda: find_vectors(model, tokenizer(), PAIRS),
        "price": lambda: price(model, tokenizer(), [SteeredText("The", " a b", " c d")]),
    }
    for name, use in inside.items():
        with (
            no_hook_left(model),
            pytest.raises(SteeringError, match="call this outside of the block"),
        ):
            with steer(model, V, FORCE):
                use()
        with ablate(model, V):  # which changes both sides alike
            use()
        assert use() is not None, name


# -- What an exception at the worst moment leaves behind


def test_a_block_that_was_dropped_is_over():
    model = new_model()
    plain = logits_of(model, IDS)
    with no_hook_left(model):
        steer(model, V, FORCE).__enter__()
        gc.collect()
    assert logits_of(model, IDS).equal(plain)


def test_hooks_that_outlive_their_block_are_deaf_and_swept_away_by_the_next_use(monkeypatch):
    model = new_model()
    plain, theirs = logits_of(model, IDS), hooks(model)
    with monkeypatch.context() as patch:  # as if an interrupt came before each removal
        patch.setattr("helpers.hooks.Change.close", lambda self: None)
        with steer(model, V, FORCE):
            logits_of(model, IDS)
    assert hooks(model) != theirs
    assert logits_of(model, IDS).equal(plain)
    with steer(tiny_model(), V, FORCE):  # any use of any model
        assert hooks(model) == theirs
        logits_of(tiny_model(), IDS)


def test_a_with_block_need_not_be_a_with_statement():
    model = new_model()
    with ExitStack() as stack:
        stack.enter_context(steer(model, V, FORCE))
        close(logits_of(model, IDS), steered_logits())
    assert logits_of(model, IDS).equal(logits_of(tiny_model(), IDS))


# -- What else a block meets


def test_measures_that_sort_their_rows_are_refused_where_rows_are_pushed_differently():
    model, forces = new_model(), [0.0, 3.0, -3.0]
    uses = (
        lambda: log_odds(model, tokenizer(), PROMPTS),
        lambda: perplexity(model, tokenizer(), PROMPTS, [" a"] * 3),
        lambda: residual_stream(model, tokenizer(), PROMPTS),
    )
    for use in uses:
        with no_hook_left(model), pytest.raises(SteeringError, match="since it sorts its rows"):
            with steer(model, V, forces):
                use()
        with steer(model, V, FORCE):  # one force for all rows is fine
            use()


def test_the_prompts_that_are_balanced_without_steering_are_not_asked_for_inside():
    with pytest.raises(SteeringError, match="outside of the block"), steer(tiny_model(), V, FORCE):
        balanced_prompts(tiny_model(), tokenizer())


def test_a_block_that_serves_two_layers_is_refused():
    model = new_model()
    model.transformer.h[2] = model.transformer.h[1]
    with no_hook_left(model), pytest.raises(SteeringError, match="serves two layers"):
        steer(model, V, FORCE).__enter__()


@pytest.mark.parametrize("shape", [(4, 1, 3, 32), (3, 32)])
def test_a_block_whose_stream_has_other_axes_is_refused(shape):
    model = new_model()
    blocks(model)[1].register_forward_hook(lambda *args: torch.zeros(shape))
    with no_hook_left(model), pytest.raises(SteeringError, match=r"as \[batch, token, d_model\]"):
        with capture(model, layers=[1]):
            logits_of(model, IDS)


def test_hooks_that_others_take_away_are_missed():
    model = new_model()
    with pytest.raises(SteeringError, match="leave its hooks alone"), steer(model, V, FORCE):
        logits_of(model, IDS)
        for part in model.modules():
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
        logits_of(model, IDS)


def test_a_thread_that_inherits_the_context_is_a_thread_of_its_own():
    async def both():
        with steer(model, V, FORCE):
            close(logits_of(model, IDS), steered_logits())
            with pytest.raises(SteeringError, match="Another thread"):
                await asyncio.to_thread(logits_of, model, IDS)

    model = new_model()
    asyncio.run(both())


def test_a_block_run_by_hand_after_a_pass_is_refused():
    model, padded_ids = new_model(), torch.cat([IDS, IDS])
    mask = torch.ones_like(padded_ids)
    mask[1, :2] = 0
    with pytest.raises(SteeringError, match="while the whole model runs"), steer(model, V, FORCE):
        logits_of(model, padded_ids, attention_mask=mask)
        blocks(model)[1](torch.zeros(2, IDS.shape[1], 32))


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_function_that_steers_is_refused_with_the_mend():
    model = new_model()

    def push(ids):
        with steer(model, V, FORCE):
            return model(ids, use_cache=False).logits

    with no_hook_left(model), pytest.raises(SteeringError, match="Compile the model, not the func"):
        torch.compile(push, backend="eager")(IDS)
    close(push(IDS).detach(), steered_logits())


def test_hooks_of_a_reader_act_once_in_a_sweep():
    model = new_model()
    delta = 2 * make_vector(seed=5).direction
    with plain_push(model, 1, delta):
        swept = sweep(model, tokenizer(), PROMPTS, V, [-1.0, 1.0])
        pushed = log_odds(model, tokenizer(), PROMPTS, V, 1.0)
        plain = log_odds(model, tokenizer(), PROMPTS)
    close(swept.effect[0, 1], pushed - plain)


def test_a_learned_force_gets_its_gradient():
    model, force = new_model(), torch.tensor(2.0, requires_grad=True)

    def loss(force):
        with steer(model, V, force):
            return model(IDS, use_cache=False).logits.square().mean()

    loss(force).backward()
    slope = (loss(2.01) - loss(1.99)) / 0.02
    torch.testing.assert_close(force.grad, slope, rtol=0.01, atol=0.01)


def test_what_is_not_pushed_stays_finite_where_the_push_overflows():
    model = new_model().half()
    n = IDS.shape[1] - 2
    with capture(model, layers=[1]) as plain:
        logits_of(model, IDS)
    with capture(model, layers=[1]) as stream:
        with steer(model, V, 4e5, positions="generated", prompt_lengths=n):
            logits_of(model, IDS)
    assert stream[1][:, :n].equal(plain[1][:, :n]) and not stream[1][:, n:].isfinite().all()
