"""Hooks that a block of code puts on a model, and that end with it, however it ends.

What ``steer``, ``ablate`` and ``capture`` share. A hook of ours works only while its block of
code runs, only in the thread that runs it, and no forward pass may miss it.
"""

import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from inspect import signature
from threading import get_ident

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
        self.model, self.what, self.scope = decoder(model), what, None
        self.hooks, self.undo, self.closed, self.thread = [], [], False, get_ident()
        self.mark = weakref.ref(mark)  # dies with the block of code, even where close never ran

    @property
    def under_way(self) -> bool:
        """Whether the block of code still runs."""
        return not self.closed and self.mark() is not None

    @property
    def ours(self) -> bool:
        """Whether whoever asks stands inside the block of code."""
        return self.under_way and self in _here.get() and self.thread == get_ident()

    @property
    def hanging(self) -> bool:
        """Whether all hooks are still where they were registered."""
        return all(
            hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            for module, hook in self.hooks
        )

    def hook(self, register, function, **options):
        """Register a hook; a forward pass of another thread does not reach it, or is refused."""

        def hook(*args):
            if self.ours:
                return function(*args)
            if self.under_way and self.what:
                _refuse_stranger()

        # Before it is there: an exception from outside can come between any two lines.
        self.hooks.append((register.__self__, hook))
        register(hook, **options)

    def close(self):
        """Take everything back. To do it twice does no harm."""
        self.closed = True
        _here.set(tuple(change for change in _here.get() if change.under_way))
        for step in reversed(self.undo):
            step()
        for module, hook in self.hooks:
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in [key for key, found in hooks.items() if found is hook]:
                    del hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)
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
    except RuntimeError as error:
        new.close()
        raise SteeringError("Compile the model, not the function that steers it.") from error
    try:
        yield new
    finally:
        new.close()


def under_way(part, *what) -> list[Change]:
    """The changes of some kinds that are under way in a model, given by its ``decoder``."""
    return [c for c in _changes if c.what in what and c.model is part and c.under_way]


def refuse_inside_steer(model, only_rows=False):
    """Raise SteeringError inside a ``steer`` block, where no unsteered text or number is had.

    If ``only_rows``, then only where rows are pushed differently: batches put them in an order
    of their own.
    """
    for steering in under_way(decoder(model), "steer"):
        if not only_rows or steering.scope.n_rows > 1:
            raise SteeringError(
                "A `with steer(...)` block is under way: call this outside of the block, since it "
                + ("sorts its rows." if only_rows else "compares with the unsteered model.")
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
    names, heard, ever = list(signature(part.forward).parameters), set(), set()
    check_depth(model)
    if not hooks or len(set(blocks(model))) < n_layer:
        which = "layers is empty: give at least one" if not hooks else "A block serves two layers"
        raise SteeringError(f"{which}.")

    def begin(module, args, kwargs):
        heard.clear()
        if scope is not None:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            scope.begin(given, "past_key_values" in names, pushes())

    def pushes():
        return {other.scope.push for other in under_way(part, "steer", "ablate")} - {None}

    def listen(layer, replace, module, args, output):
        heard.add(layer)
        hidden = replace(hidden_state(output))
        return None if hidden is None else with_hidden_state(output, hidden)

    def end(module, args, output):
        ever.update(heard)
        # Assisted generation drafts with the first layers alone, then reads with all of them.
        check({layer for layer in hooks if layer < config.num_hidden_layers} - heard)
        if scope is not None:
            scope.end(output, pushes())

    def check(missed):
        if missed:
            raise SteeringError(
                f"Inside `{what}` no forward pass of {model_name(model)} reached layer "
                f"{min(missed)}: run the model that was given, no copy or export of it, run it "
                "before the block ends, and leave its hooks alone."
            )

    with change(model, what) as ours:
        ours.scope = scope
        # An assisted generation that fails leaves a smaller number behind.
        ours.undo.append(partial(setattr, config, "num_hidden_layers", n_layer))
        ours.hook(part.register_forward_pre_hook, begin, with_kwargs=True)
        for layer, replace in hooks.items():
            register = blocks(model)[layer].register_forward_hook
            ours.hook(register, partial(listen, layer, replace), prepend=prepend)
        ours.hook(part.register_forward_hook, end)
        yield
        check(set(hooks) - ever if ours.hanging else set(hooks))
        check_depth(model)
