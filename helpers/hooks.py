"""Hooks that a block of code puts on a model, and that end with it, however it ends.

What ``steer``, ``ablate`` and ``capture`` share. A hook of ours works only while its block of
code runs, only in the thread that runs it, and no forward pass may miss it.
"""

import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from inspect import signature

import torch

from .checks import SteeringError
from .models import (
    blocks,
    check_depth,
    decoder,
    hidden_state,
    model_name,
    with_hidden_state,
)

_changes = []  # under way, or left behind by an exception at the worst moment
_here = ContextVar("changes", default=())  # those of this thread, or of this asyncio task
_stance = []  # towards compiled code, before it was told to run as it was written


class Change:
    """What one block of code has changed in a model, and how to take it back."""

    def __init__(self, model, what, mark):
        self.model, self.what, self.undo, self.closed = decoder(model), what, [], False
        self.mark = weakref.ref(mark)  # dies with the block of code, even where close never ran

    @property
    def under_way(self) -> bool:
        """Whether the block of code still runs."""
        return not self.closed and self.mark() is not None

    @property
    def ours(self) -> bool:
        """Whether whoever asks stands inside the block of code."""
        return self.under_way and self in _here.get()

    def hook(self, register, function, **options):
        """Register a hook; a forward pass of another thread does not reach it, or is refused."""

        def hook(*args):
            if self.ours:
                return function(*args)
            if self.under_way and self.what:
                _refuse_stranger()

        def remove(module=register.__self__):
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in [key for key, found in hooks.items() if found is hook]:
                    del hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)

        # Before it is there: an exception from outside can come between any two lines.
        self.undo.append(remove)
        register(hook, **options)

    def close(self):
        """Take everything back. To do it twice does no harm."""
        self.closed = True
        _here.set(tuple(change for change in _here.get() if change.under_way))
        for step in reversed(self.undo):
            step()
        if self in _changes:
            _changes.remove(self)
        if _stance and not any(other.under_way for other in _changes):
            _stance[0].__exit__(None, None, None)
            _stance.clear()


def _refuse_stranger():
    raise SteeringError(
        "Another thread is steering or reading this model. Take turns, or load the model twice; "
        "a thread that is to be steered needs the `with` block in the function that it runs."
    )


@contextmanager
def change(model, what=""):
    """A ``with`` block that changes a model: yields its ``Change``, which ends with the block.

    What an interrupt has left behind of earlier ones is swept away first. Compiled code cannot
    know what came after it: inside, it runs as it was written. Raises SteeringError while
    another thread changes the same model.
    """
    for left in [other for other in _changes if not other.under_way]:
        left.close()
    mark = set()  # lives as long as this frame
    new = Change(model, what, mark)
    if any(other.model is new.model and not other.ours for other in _changes):
        _refuse_stranger()
    _changes.append(new)
    try:
        _here.set((*_here.get(), new))
        if not _stance:  # in one step: what is told is noted down
            _stance.extend(map(torch.compiler.set_stance, ["force_eager"]))
        yield new
    finally:
        new.close()


def refuse_inside_steer(model):
    """Raise SteeringError inside a ``steer`` block, where no unsteered text or number is had."""
    part = decoder(model)
    if any(other.what == "steer" and other.model is part and other.under_way for other in _changes):
        raise SteeringError(
            "This compares with the unsteered model: call it outside of `with steer(...)`."
        )


@contextmanager
def hooked(model, what, hooks, scope=None, prepend=False):
    """Hooks at the output of blocks, inside a ``with`` block.

    Parameters
    ----------
    hooks : dict of int to callable
        For a layer a function of the hidden state [batch, token, d_model]; what it returns
        replaces the hidden state, unless it is None.
    scope : Scope, optional
        Is told the arguments of each forward pass of the decoder, and its output.
    prepend : bool
        First in line: whoever else listens to these blocks hears the replaced stream.

    Raises SteeringError in a forward pass that misses a hook or belongs to another thread, and
    at the end if there was no pass at all: then another model ran, or a copy of this one.
    """
    part, config, n_layer = decoder(model), model.config.get_text_config(), len(blocks(model))
    arguments, heard, ever = signature(part.forward), set(), set()
    check_depth(model)
    if not hooks:
        raise SteeringError("layers is empty: give at least one.")

    def begin(module, args, kwargs):
        heard.clear()
        if scope is not None:
            scope.begin(arguments.bind_partial(*args, **kwargs).arguments)

    def listen(layer, replace, module, args, output):
        heard.add(layer)
        hidden = replace(hidden_state(output))
        return None if hidden is None else with_hidden_state(output, hidden)

    def end(module, args, output):
        ever.update(heard)
        # Assisted generation drafts with the first layers alone, then reads with all of them.
        check({layer for layer in hooks if layer < config.num_hidden_layers} - heard)
        if scope is not None:
            scope.end(output)

    def check(missed):
        if missed:
            raise SteeringError(
                f"Inside `{what}` no forward pass of {model_name(model)} reached layer "
                f"{min(missed)}: run the model that was given, no copy or export of it, and run "
                "it before the block ends."
            )

    with change(model, what) as ours:
        # An assisted generation that fails leaves a smaller number behind.
        ours.undo.append(partial(setattr, config, "num_hidden_layers", n_layer))
        ours.hook(part.register_forward_pre_hook, begin, with_kwargs=True)
        for layer, replace in hooks.items():
            register = blocks(model)[layer].register_forward_hook
            ours.hook(register, partial(listen, layer, replace), prepend=prepend)
        ours.hook(part.register_forward_hook, end)
        yield
        check(set(hooks) - ever)
        check_depth(model)
