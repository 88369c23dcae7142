"""What Hypothesis draws for test_fuzz.py: arguments that nobody would give on purpose."""

import decimal
import math
import os
import time
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from helpers.concepts import SENTIMENT, Concept
from helpers.directions import SteeringVector
from helpers.generation import SteeredText
from helpers.views import Setting
from test_checks import MODEL, PAIRS, SETTING, STREAM, TOKENIZER, V
from tiny_models import PROMPTS, make_vector

MINUTES = float(os.environ.get("STEERING_FUZZ_MINUTES", 0))
VECTORS = [*V, make_vector(5), make_vector(-1), make_vector(width=8), SteeringVector]
VECTORS += [make_vector(0, width=8), make_vector(0, width=1)]
VECTORS += [make_vector(fingerprint="other"), make_vector(model_name="b")]
MODELS = [MODEL, MODEL.transformer, type(MODEL), TOKENIZER, type(TOKENIZER), TOKENIZER._tokenizer]
TEXTS = ["We", "", " it", "\ud800", "🙂", "\0", "a\nb", "word " * 90, "a" * 9000, "{", "mean"]
TEXTS += ["all", "generated", "left", "pca", "vader", np.str_("We"), "<|endoftext|>"]
NUMBERS = [10**400, 2**63 - 1, 2**63, 1e-320, 1e30, 1e38, 1e308, -0.0, Fraction(1, 10**400), True]
TENSORS = [
    *(torch.ones(32, requires_grad=True), torch.ones((), requires_grad=True), torch.zeros(3, 0)),
    *(torch.ones(32, device="meta"), torch.ones((), device="meta"), torch.full((3,), math.nan)),
    *(torch.eye(3).to_sparse(), torch.ones(32).to_sparse(), torch.ones(3).to_sparse().sum()),
    *(torch.full((3, 4), 1e38), torch.full((3, 4), 1e-30), torch.zeros(3, 4)),
]
OBJECTS = [
    *(object, object(), int, len, print, Ellipsis, NotImplemented, math, torch, np.float32),
    *(lambda *args: 1.0, range(3), slice(3), Path("a"), Path("mean"), Path("left"), Path()),
    *(np.dtype("f8"), np.datetime64(5, "s"), np.timedelta64(5, "s"), np.bool_(True), MODEL.config),
    *(torch.nn.Linear(2, 2), SENTIMENT, Concept, V, SETTING, Setting, PROMPTS, PAIRS, STREAM),
    *([SteeredText("We", "", " b")], [SteeredText], [{"role": "user", "content": "Hi"}]),
    *({"a": V}, decimal.Decimal("NaN"), np.array("mean"), np.array(None), [[1.0], [2.0, 3]]),
    *([1e300, 1e300], [1e-320, 1.0], [np.zeros((2, 2)), np.zeros((2, 3))]),
    *(MODELS + VECTORS + TEXTS + NUMBERS + TENSORS),
]
DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
ARRAYS = of_numpy.arrays(
    of_numpy.scalar_dtypes() | st.just("O"), of_numpy.array_shapes(min_dims=0, max_side=4)
)
ONES = st.one_of(
    st.none() | st.booleans() | st.integers() | st.integers(-4, 70) | st.floats(),
    st.complex_numbers() | st.fractions() | st.decimals() | st.binary(max_size=9),
    st.text(st.characters(exclude_categories=()), max_size=9),
    st.sampled_from(OBJECTS),
    ARRAYS | ARRAYS.map(lambda array: array.flat[0]),
    st.builds(
        lambda kind, shape, x: torch.full(shape, x).to(kind),
        st.sampled_from([torch.float32, *DTYPES]),
        st.sampled_from([[], [0], [3], [32], [3, 4], [1, 4], [2, 3, 4]]),
        st.floats(-9, 9, width=32) | st.floats(width=32),
    ),
)


def tried(function, value, otherwise=None):
    """What a function makes of a value, if it can."""
    try:
        with np.errstate(all="ignore"):
            return function(value)
    except (OverflowError, ValueError, TypeError, RuntimeError):
        return otherwise


def around(one):
    """Containers of what ``one`` gives."""
    keys = st.lists(one.filter(lambda x: tried(hash, x) is not None), max_size=3)
    wraps = [list, tuple, iter, lambda x: (y for y in x), lambda x: dict(enumerate(x)).values()]
    return st.one_of(
        st.builds(lambda wrap, x: wrap(x), st.sampled_from(wraps), st.lists(one, max_size=4)),
        keys.map(set) | keys.map(frozenset) | keys.map(lambda x: dict.fromkeys(x, 1.0)),
        st.builds(lambda entry, n: [entry] * n, one, st.integers(1, 4)),
    )


ANYTHING = st.recursive(ONES, around, max_leaves=5)


def near(right):
    """What looks like a right argument, and may be one."""
    if isinstance(right, int | float):
        kinds = [lambda x: x, lambda x: x, np.array, torch.tensor, np.float32, np.int64]
        kinds = st.sampled_from([*kinds, Fraction, lambda x: [x]])
        numbers = st.integers(-4, 9) | st.floats(-9, 9) | st.integers() | st.floats()
        return st.builds(lambda kind, x: tried(kind, x, x), kinds, numbers)
    if isinstance(right, SteeredText):
        return st.builds(SteeredText, *[near("") | ONES] * 3)
    if isinstance(right, str):
        return st.sampled_from(TEXTS) | st.text()
    if isinstance(right, SteeringVector):
        return st.sampled_from(VECTORS)
    if isinstance(right, Setting):
        return st.sampled_from([SETTING, Setting])
    if isinstance(right, torch.Tensor):
        values = st.floats(-9, 9) | st.floats(width=32)
        shapes = st.sampled_from([list(right.shape), [1, 4], [2, 4], [4], [2, 3, 4]])
        full = st.builds(lambda shape, x: right.new_full(shape, x), shapes, values)
        return full | values.map(lambda x: right * x)
    if isinstance(right, list | tuple) and len(right):
        kinds = st.sampled_from([list, tuple, iter, lambda x: tried(np.array, x, x)])
        entries = st.lists(near(right[0]) | st.sampled_from(right), max_size=4)
        return st.builds(lambda kind, x: kind(x), kinds, entries)
    return st.sampled_from(MODELS)


@st.composite
def odd_arguments(draw, right):
    """One to three of the arguments of a right call, replaced."""
    own = [one for one in right if one not in ("model", "tokenizer")]
    one = st.sampled_from(own * 5 + list(right))
    names = draw(st.lists(one, min_size=1, max_size=3, unique=True))
    others = st.sampled_from(list(right.values()))
    change = {one: draw(near(right[one]) | ANYTHING | others) for one in names}
    for name, value in change.items():
        number = tried(int, value)
        if name in ("n_random", "n_shuffled", "n_orthogonal") and number is not None:
            change[name] = min(number, 3)  # a billion is right, and takes its time
        # What it raises is the caller's own.
        if name in ("keep", "watch") and callable(value):
            change[name] = draw(st.sampled_from([lambda x: None, lambda x: x]))
    return change


def given_by(owner):
    """The fields of a dataclass, as arguments."""
    return {field.name: getattr(owner, field.name) for field in fields(owner)}


def search(test, *arguments, share):
    """Let Hypothesis look for arguments at which the test fails."""
    tries, end = [], time.monotonic() + 60 * MINUTES * share
    options = settings(
        max_examples=100 if MINUTES else 15,
        derandomize=not MINUTES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    @options
    @given(st.tuples(*arguments))
    def once(drawn):
        tries.append(1)
        test(*drawn)

    once()
    while time.monotonic() < end:
        once()
    print(f"{len(tries)} examples")
