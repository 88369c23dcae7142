"""Judge an answer: right, not yet and why, not attempted, or impossible to judge."""

import inspect
import linecache
import textwrap
import traceback
from contextlib import contextmanager
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .exercise import Fault, forget

RIGHT, NOT_YET, NOT_ATTEMPTED = "right", "not yet", "not attempted"
CANNOT_BE_JUDGED = "can't be judged"


class Outcome(NamedTuple):
    """One of four words, and what to say with it."""

    word: str
    text: str


@torch.no_grad()
def judge(exercise, answer, given) -> Outcome:
    """The outcome of an answer; whatever it hangs on a model is gone afterwards."""
    forget()
    try:
        return _judge(exercise, answer, given)
    finally:
        forget()


def _judge(exercise, answer, given):
    if untouched(answer, exercise.stub):
        return Outcome(NOT_ATTEMPTED, f'when you are stuck: hint("{exercise.number}")')
    call = ", ".join([f'"{exercise.number}"', "your answer", *exercise.given])
    if len(given) != len(exercise.given):
        return Outcome(CANNOT_BE_JUDGED, f"call check({call}).")
    wants_function = exercise.run is not None
    if callable(answer) != wants_function:
        wanted = "the function itself, without brackets" if wants_function else "a value"
        return Outcome(CANNOT_BE_JUDGED, f"give {wanted}, not {_kind(answer)}.")
    try:
        want = _plain(exercise.reference(exercise.right, given))
    except Exception as error:  # the solution is right, so what it was given is not
        return Outcome(CANNOT_BE_JUDGED, f"call check({call}): what you gave fails ({error}).")
    with _restored(given) as left:
        try:
            got = _plain(exercise.outcome(answer, given))
        except Exception as error:
            return Outcome(CANNOT_BE_JUDGED, _place(error, answer))
    if left:
        return Outcome(NOT_YET, left[0])
    # Even the solution's own texts may not suit a vocabulary: right is what has no fault.
    if got is None if exercise.look else same(got, want, exercise.within):
        return Outcome(RIGHT, exercise.why)
    known = list(exercise.mistakes)
    if exercise.stub:
        known.append(("it still does what the code did before you changed it.", exercise.stub))
    for message, mistake in known:
        if same(got, _plain(exercise.reference(mistake, given)), exercise.within):
            return Outcome(NOT_YET, filled(message, got))
    return Outcome(NOT_YET, difference(got, want, exercise.within))


def filled(message, got) -> str:
    """A mistake's message, with what the answer's own fault names."""
    return message.format(*got.named) if isinstance(got, Fault) else message


def untouched(answer, stub=None) -> bool:
    """Whether an answer is the stub: ``...``, a function of nothing else, or the given code."""
    if answer is ... or answer is None:
        return True
    code = getattr(inspect.unwrap(answer), "__code__", None) if callable(answer) else None
    stubs = [_nothing, lambda: ..., *([inspect.unwrap(stub), _typed(stub)] if stub else [])]
    return code is not None and any(_same_code(code, one.__code__) for one in stubs)


def _nothing(): ...


def _typed(stub):
    """The stub as a notebook compiles it: names that a module imports are called otherwise."""
    lines = textwrap.dedent(inspect.getsource(stub)).splitlines()
    defined = {}
    exec("\n".join(line for line in lines if not line.startswith("@")), defined)
    return defined[stub.__name__]


def _same_code(one, other):
    """Whether two functions take the same steps, whatever their names and documentation."""
    if one.co_code != other.co_code or one.co_names != other.co_names:
        return False
    (plain, inner), (others_plain, others_inner) = map(_constants, (one, other))
    return plain == others_plain and all(map(_same_code, inner, others_inner))


def _constants(code):
    """The numbers and texts in some code, without its documentation, and the functions within."""
    inner = [x for x in code.co_consts if hasattr(x, "co_code")]
    documented = isinstance(code.co_consts[0], str) if code.co_consts else False
    kinds = int | float | complex | str | tuple
    plain = [x for x in code.co_consts[documented:] if isinstance(x, kinds)]
    names = [x.co_name for x in inner]  # Python 3.10 keeps them as texts
    return [x for x in plain if x not in names and "<locals>" not in str(x)], inner


def _plain(value):
    """Numbers as Python's own, arrays as tensors, also inside lists."""
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if getattr(value, "shape", None) == ():
        return value.item()
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def same(got, want, within) -> bool:
    """Whether two results agree: numbers about, by the largest in a list, all else exactly."""
    if isinstance(want, Tensor) or isinstance(got, Tensor):
        if not (isinstance(got, Tensor) and isinstance(want, Tensor) and got.shape == want.shape):
            return False
        got, want = got.detach().cpu().double(), want.detach().cpu().double()
        largest = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0
        return torch.allclose(got, want, rtol=0, atol=within * largest + 1e-9, equal_nan=True)
    if _is_number(got) and _is_number(want):
        return same(torch.tensor(float(got)), torch.tensor(float(want)), within)
    if isinstance(want, list) and isinstance(got, list):
        if got and want and all(map(_is_number, [*got, *want])):
            return same(*(torch.tensor(list(map(float, one))) for one in (got, want)), within)
        pairs = zip(got, want, strict=False)
        return len(got) == len(want) and all(same(*pair, within) for pair in pairs)
    if isinstance(want, dict) and isinstance(got, dict):
        return want.keys() == got.keys() and all(same(got[k], want[k], within) for k in want)
    if isinstance(want, str) and isinstance(got, str):
        return got.strip().lower() == want.strip().lower()  # "C" is as good as "c"
    return type(got) is type(want) and bool(got == want)


def difference(got, want, within) -> str:
    """In which way a result is not the one that is wanted, without telling that one."""
    if _is_number(got) and _is_number(want):
        return f"{float(got):.4g} is too {'large' if got > want else 'small'}."
    if type(got) is not type(want):
        ask = ": is there a return?" if got is None else "."
        return f"it gives {_kind(got)}, and {_kind(want)} is wanted{ask}"
    if isinstance(want, Tensor) and got.shape != want.shape:
        return f"its shape is {list(got.shape)}, and {list(want.shape)} is wanted."
    if isinstance(want, Tensor) and want.is_floating_point():
        largest = (got.double() - want.double()).abs().max().item()
        right = sum(same(*pair, within) for pair in zip(got, want, strict=True)) if got.ndim else 0
        some = f"; {right} of its {len(want)} entries are right" if right else ""
        return f"its shape is right, its values are not: one is off by {largest:.3g}{some}."
    if isinstance(want, list) and len(got) != len(want):
        return f"it has {len(got)} entries, and {len(want)} are wanted."
    if isinstance(want, list):
        wrong = (i for i, pair in enumerate(zip(got, want, strict=True)) if not same(*pair, within))
        first = next(wrong)
        return f"number {first + 1} of {len(want)}: {difference(got[first], want[first], within)}"
    if isinstance(want, dict) and got.keys() == want.keys():
        case = next(key for key in want if not same(got[key], want[key], within))
        if isinstance(want[case], Tensor) or type(got[case]) is not type(want[case]):
            return f"for {case}: {difference(got[case], want[case], within)}"
        return f"for {case} it gives {got[case]!r}, and that is not so."
    return "it has the right form, but it is not the answer."


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool)


def _kind(value):
    if callable(value):
        return "a function"
    names = {"str": "a text", "int": "a number", "float": "a number", "Tensor": "a tensor"}
    names["bool"] = "True or False"
    name = type(value).__name__
    return names.get(name, "nothing" if value is None else f"a {name}")


def _place(error, answer):
    """What went wrong in the reader's code, and where."""
    said = traceback.format_exception_only(error)[-1].strip()
    said = said.removeprefix(f"{type(error).__module__}.")
    file = getattr(getattr(answer, "__code__", None), "co_filename", None)
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if not own:
        return f"{said.rstrip('.')}."
    line = linecache.getline(file, own[-1].lineno).strip()
    return f"line {own[-1].lineno} of its cell, `{line}`: {said}"


@contextmanager
def _restored(given):
    """Takes back what an answer leaves on a model; yields what to say about it, filled at the end.

    Weights cannot be taken back: torch counts the changes of each.
    """
    said = []
    models = [one for one in given if isinstance(one, torch.nn.Module)]
    before = [_state(model) for model in models]
    try:
        yield said
    finally:
        for model, (hooks, versions, training) in zip(models, before, strict=True):
            for table, entries in hooks:
                keep = {key: hook for key, hook in table.items() if _is_library(hook)} | entries
                if table.keys() != keep.keys():
                    table.clear()
                    table.update(keep)
                    said[:] = said or ["it left a hook on the model: remove it, whatever happens."]
            model.train(training)
            if [parameter._version for parameter in model.parameters()] != versions:
                said[:] = [
                    "it changed the model's weights: load the model again, then add to a "
                    "new tensor instead of writing into theirs."
                ]


def _is_library(hook):
    """Whether transformers hung it up, as it does once, at the first ``output_hidden_states``."""
    return (getattr(hook, "__module__", None) or "").startswith("transformers.")


def _state(model):
    tables = [
        (table, dict(table))
        for module in model.modules()
        for table in (module._forward_hooks, module._forward_pre_hooks)
    ]
    return tables, [parameter._version for parameter in model.parameters()], model.training
