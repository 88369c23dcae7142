"""Any call gives a result or a SteeringError, whatever its arguments, and leaves nothing behind.

Hypothesis replaces up to three arguments of a right call by anything at all. Every run draws the
same ones, unless STEERING_FUZZ_MINUTES says for how long to go on with others.
"""

import math
import warnings
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import get_origin

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from helpers.concepts import SENTIMENT, load_concept
from helpers.directions import METHODS, SteeringVector, cosines
from helpers.evaluation import judge, word_ids
from helpers.generation import SteeredText
from helpers.models import SteeringError, load_model, some_layers
from helpers.pair_files import read_pairs
from helpers.plots import heatmap
from helpers.statistics import mean_with_interval
from test_checks import BLOCKS, GOOD, MODEL, SETTING, TOKENIZER, V
from tiny_models import PROMPTS, hooks, logits_of, make_vector, token_ids

pytest.importorskip("hypothesis")
from odd_values import given_by, odd_arguments, search  # noqa: E402

IDS = token_ids(PROMPTS[1])
BEFORE, HOOKS = logits_of(MODEL, IDS), hooks(MODEL)


def with_setting(**given):
    function, others = GOOD["compute"]
    return function(**others | {"setting": replace(SETTING, **given)})


OWN = """
positive_words = ["high"]
negative_words = ["low"]
dev_prompts = ["We"]
test_prompts = ["So"]
"""
OF_MODEL = {"model": MODEL, "other_weights": False}
CALLS = {
    **{name: call for name, call in GOOD.items() if name != "LayerExplorer"},
    "heatmap": (
        lambda **given: heatmap(Figure().add_subplot(), **given),
        {"values": [[1.0, -2.0]], "xlabels": ["a", "b"], "ylabels": ["c"], "limit": 1.0},
    ),
    "Setting": (with_setting, given_by(SETTING)),
    "Concept": (partial(replace, SENTIMENT), given_by(SENTIMENT)),
    "SteeringVector": (SteeringVector, given_by(V[0])),
    "load_concept": (
        load_concept,
        {"source": "own.toml", "pairs": "pairs.csv", "judge": "vader", "sides": ["up", "down"]},
    ),
    "read_pairs": (read_pairs, {"path": "pairs.csv", "sides": ["up", "down"]}),
    "load_model": (load_model, {"name": "pocket", "device": "cpu", "dtype": "float32"}),
    "some_layers": (some_layers, {"model": MODEL, "most": 2}),
    "save": (V[0].save, {"path": "v"}),
    "load": (SteeringVector.load, {"path": "right", **OF_MODEL}),
    "on": (V[0].on, OF_MODEL),
    "cosines": (cosines, {"vectors": V, "others": V}),
    "*": (lambda factor: V[0] * factor, {"factor": 2}),
    "/": (lambda factor: V[0] / factor, {"factor": 2}),
    "+": (lambda other: V[0] + other, {"other": V[0]}),
    "-": (lambda other: V[0] - other, {"other": make_vector(0, 1)}),
}
NAN = (
    "calibrate",
    "choose",
    "perplexity",
    "price",
    "repetition",
    "distinct",
    "sweep_texts",
    "compute",
    "Setting",
)


def check_call(name, change):
    """A call gives a result or a SteeringError, and the model is what it was."""
    function, right = CALLS[name]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            result = function(**{**right, **change})
            kind = getattr(function, "__annotations__", {}).get("return")
            kind = get_origin(kind) or kind
            assert not isinstance(kind, type) or isinstance(result, kind)
            if name in BLOCKS:
                with result:
                    logits_of(MODEL, IDS)
        except SteeringError:
            return
        finally:
            assert hooks(MODEL) == HOOKS
            assert logits_of(MODEL, IDS).equal(BEFORE)
    check_result(result, name in NAN)


def check_result(result, nan):
    """No result holds infinity, nor NaN unless that is documented; every vector has a direction."""
    if isinstance(result, torch.Tensor | float):
        result = torch.as_tensor(result)
        assert (result.isfinite() | (result.isnan() & nan)).all()
    if isinstance(result, SteeringVector):
        assert result.direction.ndim == 1 and abs(result.direction.norm() - 1) < 1e-3
        assert 0 < result.raw_norm < math.inf and result.raw.isfinite().all()
    entries = result.values() if isinstance(result, dict) else result
    for entry in entries if isinstance(result, list | tuple | dict) else ():
        check_result(entry, nan)


@pytest.mark.parametrize("name", CALLS)
def test_an_odd_argument_gives_a_result_or_a_steering_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    V[0].save("right")
    Path("own.toml").write_text(OWN)
    Path("pairs.csv").write_text("up,down\nWe rise,We fall\nSo high,So low\n")
    search(partial(check_call, name), odd_arguments(CALLS[name][1]), share=0.7 / len(CALLS))


META = torch.ones((), device="meta")
GRAD = torch.ones((), requires_grad=True)
FOUND = [
    ("steer", {"force": META}),
    ("steer", {"vector": np.array("a")}),
    ("log_odds", {"force": [GRAD, GRAD, GRAD]}),
    ("random_like", {"seed": META}),
    ("SteeringVector", {"raw_norm": META}),
    ("SteeringVector", {"raw_norm": Fraction(1, 10**400)}),
    ("SteeringVector", {"direction": META.expand(32)}),
    ("SteeringVector", {"direction": V[0].direction.to_sparse()}),
    ("mean_difference", {"positive": torch.full((3, 4), 1e38)}),
    ("pca", {"positive": torch.eye(3).to_sparse()}),
    ("pca", {"positive": torch.ones(1, 3, 4), "negative": torch.zeros(1, 3, 4)}),
    ("probe", {"positive": torch.ones(1, 3, 4), "negative": torch.zeros(1, 3, 4)}),
    ("cosines", {"vectors": torch.ones(1, 3, 32)}),
    ("load_concept", {"source": torch.ones(2)}),
    ("encode", {"model": MODEL.transformer}),
    ("encode", {"model": type(MODEL)}),
    ("encode", {"padding_side": Path("left")}),
    ("tokens", {"tokenizer": TOKENIZER._tokenizer}),
    ("tokens", {"tokenizer": type(TOKENIZER)}),
    ("on", {"model": None}),
    ("on", {"other_weights": "no"}),
    ("load", {"model": ()}),
    ("save", {"path": "\ud800"}),
    ("+", {"other": make_vector(0, width=1)}),
    ("+", {"other": make_vector(0, width=8)}),
    ("price", {"texts": [SteeredText]}),
    ("price", {"texts": [SteeredText(5, "a", "b")]}),
    ("price", {"texts": [SteeredText("We", [], "b")]}),
    ("price", {"texts": [SteeredText("We", "a", "\ud800")]}),
    ("repetition", {"n": np.dtype("f8")}),
]


@pytest.mark.parametrize(("name", "change"), FOUND)
def test_what_was_found_is_refused(name, change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    V[0].save("right")
    with pytest.raises(SteeringError):
        function, right = CALLS[name]
        with function(**right | change):
            pass


def test_numbers_that_were_wrong():
    found = cosines(torch.tensor([[1e-20, 0.0], [1e14, 1e14]]))
    torch.testing.assert_close(found, torch.tensor([[1, 0.5**0.5], [0.5**0.5, 1]]))
    for word in ("load", "gram"):  # tokens, but not behind a space
        with pytest.raises(SteeringError, match=f"Not one token in this vocabulary: {word} = "):
            word_ids(TOKENIZER, [word])
    equal = torch.ones(3, 4)
    assert METHODS["probe"](equal, equal).equal(torch.zeros(4))
    with pytest.raises(SteeringError, match="must be a finite number, got 1e\\+300"):
        judge(PROMPTS, lambda texts: [1e300] * len(texts))
    with pytest.raises(SteeringError, match="must be a finite number, got 1e\\+308"):
        mean_with_interval([1e308, 1e308])
