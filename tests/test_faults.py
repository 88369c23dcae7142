"""An exception at any point of ``helpers`` leaves nothing behind.

A trace function raises at one instruction, drawn by a seed, of ``helpers`` or of ``contextlib``:
as an interrupt does, or an exception that another thread sends. Afterwards the model gives the
logits that it gave before, bit for bit, and the next use of ``helpers`` finds no hook too many.
"""

import random
import sys
import threading
import time
from collections import Counter
from ctypes import c_ulong, py_object, pythonapi

import pytest
import torch
from transformers.utils import logging

from helpers.activations import capture, residual_stream, typical_norm
from helpers.directions import find_vectors
from helpers.evaluation import log_odds, perplexity
from helpers.generation import generate
from helpers.models import blocks
from helpers.steering import ablate, steer
from helpers.sweeps import sweep, sweep_damage
from tiny_models import PROMPTS, hooks, logits_of, make_vector, new_model, token_ids, tokenizer

IDS, V, W = token_ids(PROMPTS[2]), make_vector(), make_vector(2, seed=1)
TWO, PAIRS = ["The soup was", "We liked"], [("I love it", "I hate it"), ("So good", "So bad")]
POINTS = 3000  # shared between the uses


class Fault(BaseException):
    """What nobody expects."""


def steered(model):
    with steer(model, [V, W], [1.0, -1.0]), steer(model, V, 1.0):
        logits_of(model, IDS)


def ablated_and_captured(model):
    with ablate(model, V), capture(model):
        logits_of(model, IDS)


USES = {
    "steer": steered,
    "ablate and capture": ablated_and_captured,
    "residual_stream": lambda model: residual_stream(model, tokenizer(), TWO),
    "typical_norm": lambda model: typical_norm(model, tokenizer(), prompts=TWO),
    "find_vectors": lambda model: find_vectors(model, tokenizer(), PAIRS),
    "log_odds": lambda model: log_odds(model, tokenizer(), TWO, V, 1.0),
    "perplexity": lambda model: perplexity(model, tokenizer(), TWO, [" good", " it"]),
    "generate": lambda model: generate(model, tokenizer(), TWO, V, 1.0, max_new_tokens=2),
    "sweep": lambda model: sweep(model, tokenizer(), TWO, [V, W], [-1.0, 1.0]),
    "sweep_damage": lambda model: sweep_damage(model, tokenizer(), TWO, [V], [1.0]),
}


def traced(use, model, at=None):
    """Run a use; raise Fault at the instruction number ``at``. Returns how many there are."""
    count = 0

    def step(frame, event, arg):
        nonlocal count
        if event == "opcode":
            count += 1
            if count == at:
                raise Fault
        return step

    def enter(frame, event, arg):
        name = frame.f_code.co_filename.replace("\\", "/")
        if "/helpers/" in name or name.endswith("/contextlib.py"):
            frame.f_trace_opcodes = True
            return step

    sys.settrace(enter)
    try:
        use(model)
    finally:
        sys.settrace(None)
    return count


def state(model):
    """All that a use may change for a while and must give back."""
    return (
        hooks(model),
        [("forward" in block.__dict__) for block in blocks(model)],
        model.config.num_hidden_layers,
        logging.get_verbosity(),
        torch._dynamo.eval_frame._stance.stance,
        model.training,
        torch.is_grad_enabled(),
    )


@pytest.fixture(scope="module")
def model():
    return new_model()


@pytest.mark.parametrize("name", USES)
def test_a_fault_at_any_instruction_leaves_nothing_behind(name, model):
    use = USES[name]
    use(model)  # what is done once is done
    before, plain = state(model), logits_of(model, IDS)
    n, draw, found = traced(use, model), random.Random(name), Counter()
    for at in draw.choices(range(1, n + 1), k=POINTS // len(USES)):
        try:
            traced(use, model, at)
            found["swallowed"] += 1  # in a finalizer, say
        except Fault:
            found["raised"] += 1
        # First without helpers: whatever is left must be deaf, then a use sweeps it away.
        assert logits_of(model, IDS).equal(plain), at
        with capture(model):
            logits_of(model, IDS)
        assert state(model) == before, at
    assert found["raised"] > 0.9 * found.total()


def test_an_interrupt_from_another_thread_leaves_nothing_behind(model, monkeypatch):
    before, plain, draw = state(model), logits_of(model, IDS), random.Random(0)
    caught, over = [], []
    # What reports a hit in a finalizer must not be Python: it would be hit in its turn.
    monkeypatch.setattr(sys, "unraisablehook", [].append)
    monkeypatch.setattr(threading, "excepthook", [].append)

    def work():
        while not over:
            try:
                for use in USES.values():
                    use(model)
            except Fault:
                caught.append(1)

    end, worker = time.monotonic() + 5, None
    while time.monotonic() < end:
        if worker is None or not worker.is_alive():  # hit between two tries, which is rare
            worker = threading.Thread(target=work, daemon=True)
            worker.start()
        time.sleep(draw.uniform(0.001, 0.02))
        pythonapi.PyThreadState_SetAsyncExc(c_ulong(worker.ident), py_object(Fault))
    over.append(1)
    worker.join(60)
    assert not worker.is_alive()
    assert len(caught) > 20
    assert logits_of(model, IDS).equal(plain)
    with capture(model):
        logits_of(model, IDS)
    assert state(model) == before
