"""Right or refused: a call that cannot be right raises, and says what is wrong.

``helpers.checks`` is imported inside the tests of the module itself; all others see only the
functions that use it.
"""

import inspect
import math
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

from helpers.activations import capture, residual_stream, typical_norm
from helpers.batches import Batches
from helpers.calibration import calibrate
from helpers.choice import choose
from helpers.concepts import SENTIMENT
from helpers.directions import SteeringVector, cosines, find_vectors, mean_difference, pca, probe
from helpers.evaluation import (
    balanced_prompts,
    distinct,
    judge,
    log_odds,
    perplexity,
    price,
    repetition,
    usable_words,
    word_ids,
    word_sides,
)
from helpers.explorer import Explorer
from helpers.generation import SteeredText, generate
from helpers.models import SteeringError, encode
from helpers.pairs import check_pairs, split, tokens
from helpers.panels import LayerExplorer
from helpers.protocol import evaluate
from helpers.statistics import auc_with_interval, controls, mean_with_interval
from helpers.steering import ablate, steer
from helpers.sweeps import sweep, sweep_damage, sweep_texts
from helpers.views import Setting, completions, compute
from tiny_models import (
    PROMPTS,
    logits_of,
    make_vector,
    new_model,
    no_hook_left,
    tiny_model,
    token_ids,
    tokenizer,
)

MODEL, TOKENIZER = tiny_model(), tokenizer()
V = [make_vector(layer) for layer in range(3)]
PAIRS = [("We love it", "We hate it"), ("So warm", "So cold")]
CHAT = [{"role": "user", "content": "Hello"}]
STREAM = torch.arange(12.0).reshape(3, 4)
SETTING = Setting("We liked", "a", 1, 2.0, 3, 0)
SCALE = [5.0, 6.0, 7.0]


# What the model itself reads well.
WRITTEN = [
    text.prompt + text.base
    for text in generate(MODEL, TOKENIZER, PROMPTS, V[0], 0.0, max_new_tokens=30, temperature=0)
]


FEW = replace(SENTIMENT, test_prompts=SENTIMENT.test_prompts[:2], dev_prompts=PROMPTS)
FEW = replace(FEW, positive_requests=[], negative_requests=[])


def alone(function, **options):
    return function, options


def with_model(function, **options):
    return function, {"model": MODEL, "tokenizer": TOKENIZER, **options}


# For each function one call that is right, as (function, its arguments).
GOOD = {
    "encode": with_model(encode, prompts=PROMPTS),
    "tokens": (tokens, {"tokenizer": TOKENIZER, "text": "We"}),
    "check_pairs": (check_pairs, {"tokenizer": TOKENIZER, "pairs": PAIRS, "strict": False}),
    "split": alone(split, pairs=PAIRS),
    "capture": (capture, {"model": MODEL, "layers": [0], "keep": torch.clone}),
    "steer": alone(steer, model=MODEL, vector=V[0], force=2.0, layer=0, prompt_lengths=2),
    "ablate": alone(ablate, model=MODEL, vector=V[0], layers=[0]),
    "residual_stream": with_model(residual_stream, prompts=PROMPTS, position=0, batch_tokens=2048),
    "typical_norm": with_model(typical_norm, concept=SENTIMENT, prompts=PROMPTS),
    "find_vectors": with_model(find_vectors, pairs=PAIRS, method="pca", position=-2),
    "cosines": alone(cosines, vectors=V),
    "mean_difference": alone(mean_difference, positive=STREAM, negative=-STREAM),
    "pca": alone(pca, positive=STREAM, negative=-STREAM),
    "probe": alone(probe, positive=STREAM, negative=-STREAM),
    "generate": with_model(
        generate, prompts=PROMPTS, vector=V[0], force=2.0, layer=0, max_new_tokens=2, seed=1,
        temperature=1.0, top_k=3, positions="all",
    ),
    "word_ids": (word_ids, {"tokenizer": TOKENIZER, "words": ["good"]}),
    "word_sides": (word_sides, {"tokenizer": TOKENIZER, "concept": SENTIMENT}),
    "usable_words": (usable_words, {"tokenizer": TOKENIZER, "concept": SENTIMENT}),
    "log_odds": with_model(log_odds, prompts=PROMPTS, vector=V[0], force=2.0, concept=SENTIMENT),
    "balanced_prompts": with_model(balanced_prompts, concept=SENTIMENT, n=2),
    "perplexity": with_model(perplexity, prompts=PROMPTS, continuations=[" it", " a", " so"]),
    "price": with_model(price, texts=[SteeredText("We", " a", " b")]),
    "repetition": alone(repetition, texts=PROMPTS, n=1),
    "distinct": alone(distinct, texts=PROMPTS, n=1),
    "judge": alone(judge, texts=PROMPTS, by="vader"),
    "sweep": with_model(sweep, prompts=PROMPTS, vectors=V, forces=[1.0], batch_tokens=2048),
    "sweep_damage": with_model(
        sweep_damage, texts=PROMPTS, vectors=V, forces=[1.0], batch_tokens=2048
    ),
    "sweep_texts": with_model(
        sweep_texts, prompts=PROMPTS, vectors=V, forces=[1.0], max_new_tokens=2, priced=False,
        seed=0, batch_tokens=8192,
    ),
    "calibrate": with_model(
        calibrate, vectors=V, budget=0.5, texts=WRITTEN, start=SCALE, middle=[0.0, 0.1, 0.2]
    ),
    "choose": with_model(choose, vectors=V, budget=0.5, concept=SENTIMENT, texts=WRITTEN),
    "evaluate": with_model(
        evaluate, concept=FEW, budget=0.5, layers=[0], texts=WRITTEN, seed=0, max_new_tokens=2
    ),
    "mean_with_interval": alone(mean_with_interval, values=[1.0, 2.0], confidence=0.9, seed=0),
    "auc_with_interval": alone(
        auc_with_interval, positive=[1.0, 2.0], negative=[0.0, 1.0], confidence=0.9
    ),
    "controls": with_model(
        controls, vector=V[0], n_random=1, n_shuffled=1, n_orthogonal=1, seed=0, concept=SENTIMENT
    ),
    "compute": with_model(compute, vectors=V, scale=SCALE, setting=SETTING),
    "completions": with_model(
        completions, prompt="We", vectors=V, layers=[0], shares=[0.1], scale=SCALE
    ),
    "Explorer": with_model(
        Explorer, vectors={"a": V}, prompt="We", limits=[[1.0, 2.0]] * 3, budget=0.25
    ),
    "LayerExplorer": alone(LayerExplorer, draw=print, n_layer=3),
    "Batches": alone(Batches, tokens=5),
    "from_raw": alone(
        SteeringVector.from_raw, raw=V[0].raw, layer=1, method="m", model_name="n", n_pairs=2
    ),
    "SteeringVector": alone(partial(replace, V[0]), layer=1),
    "like": alone(V[0].like, raw=V[0].raw, method="m", n_pairs=0),
    "random_like": alone(V[0].random_like, seed=0),
    "Concept": alone(partial(replace, SENTIMENT), name="own"),
}  # fmt: skip
READERS = ["encode", "residual_stream", "typical_norm", "generate", "log_odds", "perplexity"]
READERS += ["sweep", "sweep_texts"]
BLOCKS = ["capture", "steer", "ablate"]
OF_TEXTS = ["repetition", "distinct", "judge"]
OF_MODELS = [name for name, (_, given) in GOOD.items() if {"model", "tokenizer"} <= set(given)]
PUSHERS = ["steer", "generate", "log_odds", "sweep", "sweep_damage", "sweep_texts"]

BAD = [
    # Blocks
    *[
        (name, {"model": odd}, "model must be the first of")
        for name in BLOCKS
        for odd in (None, "a")
    ],
    *[(name, {"layers": []}, "layers is empty") for name in ("capture", "ablate")],
    *[("ablate", {"layers": odd}, "layers must be") for odd in (3, [True], [1.5], "01")],
    ("ablate", {"vector": V}, "vector must be a SteeringVector"),
    ("steer", {"layer": True}, "layer must be a whole number"),
    ("steer", {"layer": "1"}, "layer must be a whole number"),
    ("steer", {"positions": 5}, "no text"),
    *[
        ("steer", {"prompt_lengths": odd}, "prompt_lengths must be")
        for odd in (0, 2.5, "2", [True])
    ],
    ("steer", {"vector": V, "force": []}, "do not fit 3"),
    # Texts
    *[(name, {"prompts": "abc"}, r"one string: use \['abc'\]") for name in READERS],
    *[(name, {"prompts": 5}, "prompts must be a list of prompts, got 5") for name in READERS],
    *[(name, {"prompts": b"x"}, "prompts must be a list of prompts, got b'x'") for name in READERS],
    *[(name, {"prompts": {"a": 1}}, "must be a list of prompts, got {'a': 1}") for name in READERS],
    *[(name, {"prompts": ["a", 5]}, r"Prompt 2 of 2 is no text \(5\)") for name in READERS],
    *[
        (name, {"prompts": CHAT}, r"is a chat message .*a list of dialogues, \[\[\.\.\.\]")
        for name in READERS
    ],
    *[(name, {"prompts": ["\ud800"]}, r"holds half a character \('\\ud800'\)") for name in READERS],
    *[(name, {"prompts": ["word " * 400_000] * 3}, "2000000 characters") for name in READERS],
    *[
        (name, {"prompts": None}, "prompts must be a list")
        for name in READERS
        if "norm" not in name
    ],
    ("sweep_damage", {"texts": "abc"}, r"list of texts, got one string: use \['abc'\]"),
    ("sweep_damage", {"texts": ["a b", ""]}, "Text 2 of 2 is empty"),
    *[(name, {"texts": "good film"}, r"one string: use \['good film'\]") for name in OF_TEXTS],
    *[(name, {"texts": [None]}, r"The text is no text \(None\)") for name in OF_TEXTS],
    ("perplexity", {"continuations": "abc"}, r"list of continuations, got one string"),
    ("perplexity", {"continuations": ["a", "b", 3]}, "Continuation 3 of 3 is no text"),
    ("tokens", {"text": None}, r"The text is no text \(None\)"),
    ("completions", {"prompt": 5}, r"The prompt is no text \(5\)"),
    ("Explorer", {"prompt": 5}, r"The prompt is no text \(5\)"),
    # Words
    ("word_ids", {"words": "good"}, r"list of words, got one string: use \['good'\]"),
    ("word_ids", {"words": []}, "list of words is empty"),
    ("word_ids", {"words": ["good", ""]}, "Word 2 of 2 is empty"),
    ("word_ids", {"words": ["good", "good"]}, r"words must be different, got \['good', 'good'\]"),
    ("word_ids", {"words": ["good", " good"]}, "the same token"),
    ("word_ids", {"words": None}, "words must be a list of words, got None"),
    ("Concept", {"positive_words": "good"}, "positive_words of 'own': .*one string"),
    (
        "Concept",
        {"positive_words": []},
        "positive_words of 'own': The list of words is empty",
    ),
    ("Concept", {"positive_words": [""]}, "positive_words of 'own': The word is empty"),
    ("Concept", {"positive_words": ["odd"] * 2}, "positive_words must be different"),
    ("Concept", {"positive_words": SENTIMENT.negative_words}, "has words on both sides: .*'bad'"),
    ("Concept", {"sides": ["up", "up"]}, "sides must be different"),
    ("Concept", {"dev_prompts": CHAT}, "dev_prompts of 'own': The prompt is a chat message"),
    ("Concept", {"judge": 5}, r"The judge is no text \(5\)"),
    ("Concept", {"more_pairs": 5}, "more_pairs must be a list of pairs"),
    # Pairs
    *[("split", {"pairs": odd}, "pairs must be a list of pairs") for odd in (None, 5, {"a": "b"})],
    ("split", {"pairs": [5]}, r"Expected a pair \(positive, negative\), got 5"),
    ("split", {"pairs": [("a", None)]}, r"The prompt is no text \(None\)"),
    ("split", {"pairs": [("a", "a ")]}, "Both prompts of a pair are 'a': there is no contrast"),
    ("check_pairs", {"strict": "yes"}, "strict must be True or False, got 'yes'"),
    ("find_vectors", {"pairs": [("a", " a")]}, "no contrast"),
    ("find_vectors", {"method": ["pca"]}, "method is no text"),
    # Model and tokenizer
    *[(name, {"model": "gpt2"}, r"model must be the first of .*load_model") for name in OF_MODELS],
    *[(name, {"model": None}, "model must be the first of .*got None") for name in OF_MODELS],
    *[
        (name, {"tokenizer": None}, "tokenizer must be the second of .*got None")
        for name in OF_MODELS
    ],
    *[
        (
            name,
            {"model": TOKENIZER, "tokenizer": MODEL},
            "model must be the first of .*, tokenizer = load",
        )
        for name in OF_MODELS
    ],
    # Numbers
    *[
        (name, {"batch_tokens": odd}, "batch_tokens must be a whole number above 0")
        for name in ("residual_stream", "sweep", "sweep_damage", "sweep_texts")
        for odd in (0, -1, True, None, 2.5, "2048", math.nan, 10**400)
    ],
    *[
        (name, {"max_new_tokens": odd}, "max_new_tokens must be a whole number above 0")
        for name in ("generate", "sweep_texts")
        for odd in (0, -1, True, None, 2.5)
    ],
    *[
        ("generate", {"top_k": odd}, "top_k must be a whole number above 0, got")
        for odd in (0, -1, None, 2.5)
    ],
    *[
        ("generate", {"temperature": odd}, "temperature must be a number, 0 or above, got")
        for odd in (-1, math.nan, math.inf, None, "hot", True, 1j)
    ],
    *[
        (name, {"seed": odd}, "seed must be a whole number")
        for name in ("generate", "sweep_texts")
        for odd in (1.7, [1.7, 2.2, 3.1], None, "a", -1, True, {1, 2, 3})
    ],
    *[
        (name, {"seed": odd}, "seed must be a whole number, 0 or above, got")
        for name in ("mean_with_interval", "controls", "random_like")
        for odd in ([1], None, 1.5, True, -1)
    ],
    *[
        (name, {"confidence": odd}, "confidence must be a number between 0 and 1")
        for name in ("mean_with_interval", "auc_with_interval")
        for odd in (95, 0, 1, None, math.nan)
    ],
    ("mean_with_interval", {"values": [1.0, math.nan]}, "Every value must be a finite number"),
    ("mean_with_interval", {"values": [[1.0, 2.0]]}, "values must be a list of numbers"),
    ("mean_with_interval", {"values": ["1", "2"]}, "values must be numbers"),
    ("auc_with_interval", {"positive": [1.0, math.inf]}, "Every positive must be a finite number"),
    *[
        ("controls", {name: odd}, f"{name} must be a whole number, 0 or above")
        for name in ("n_random", "n_shuffled", "n_orthogonal")
        for odd in (-1, 2.5, None)
    ],
    ("balanced_prompts", {"n": 99}, "n=99, but there are 16 dev_prompts"),
    ("balanced_prompts", {"n": 0}, "n must be a whole number above 0"),
    ("repetition", {"n": 0}, "n must be a whole number above 0"),
    ("distinct", {"n": 1.5}, "n must be a whole number above 0"),
    ("LayerExplorer", {"n_layer": 0}, "n_layer must be a whole number above 0"),
    ("LayerExplorer", {"draw": None}, "draw must be a function, got None"),
    *[
        (name, {"layer": odd}, "layer must be a whole number, got")
        for name in ("generate", "log_odds", "from_raw", "SteeringVector")
        for odd in (True, 1.5, "1")
    ],
    *[("capture", {"layers": odd}, "layers must be") for odd in (3, [True], [1.5], "01")],
    ("capture", {"keep": None}, "keep must be a function, got None"),
    *[
        (name, {"position": odd}, "position must be an integer, 'mean' or 'answer', got")
        for name in ("residual_stream", "find_vectors")
        for odd in (True, "last", None, 1.5)
    ],
    # Forces and vectors
    *[
        (name, {"force" if name in ("steer", "generate", "log_odds") else "forces": odd}, message)
        for name in PUSHERS
        for odd, message in [
            (None, "must be numbers"),
            ("a", "must be numbers"),
            (True, "must be numbers"),
            ([1.0, True], "must be numbers"),
            (1j, "must be numbers"),
            ([[1.0, 2.0], [3.0]], "must be numbers"),
            (torch.tensor([True]), "must be numbers"),
            (1e30, r"Every force must be a finite number, got 1e\+30: beyond ±1.8e\+19"),
            ([math.nan], "Every force must be a finite number, got nan"),
            (10**400, r"got 1000.*0: beyond ±1.8e\+19"),
        ]
    ],
    ("log_odds", {"vector": None}, "A force needs a vector to push along"),
    *[
        (
            name,
            {"vector" if name in ("steer", "generate", "log_odds", "controls") else "vectors": odd},
            text,
        )
        for name in [*PUSHERS, "controls"]
        for odd, text in [
            (V[0].direction, "must be a SteeringVector.*tensor"),
            ([1.0, 2.0], r"must be a SteeringVector .*SteeringVector.from_raw"),
            ({"a": V[0]}, "must be a SteeringVector"),
            ("up", "must be a SteeringVector.*got 'up'"),
            ([V], "must be a SteeringVector"),
        ]
    ],
    ("generate", {"vector": None}, "vector must be a SteeringVector .*got None"),
    ("controls", {"vector": V}, "vector must be a SteeringVector"),
    ("cosines", {"vectors": []}, "vectors must be vectors of one width"),
    ("cosines", {"vectors": [V[0], make_vector(width=8)]}, r"of one width, got \[8, 32\]"),
    ("cosines", {"others": [make_vector(width=8)]}, r"do not fit: \[32\] against \[8\]"),
    ("cosines", {"vectors": [1.0]}, "vectors must be a SteeringVector"),
    ("cosines", {"vectors": torch.ones(3)}, "must be a tensor"),
    ("cosines", {"vectors": torch.zeros(1, 3)}, "is 0 and has no direction"),
    *[
        (name, change, message)
        for name in ("mean_difference", "pca", "probe")
        for change, message in [
            ({"negative": STREAM[:, :2]}, "do not fit"),
            ({"negative": STREAM * math.nan}, "negative must be a tensor .* of finite floats"),
            ({"positive": [[1.0]]}, "positive must be a tensor"),
            ({"positive": STREAM[0]}, "positive must be a tensor"),
        ]
    ],
    ("pca", {"negative": STREAM[:1]}, "do not fit"),
    # The fields of a vector
    *[
        ("SteeringVector", change, message)
        for change, message in [
            ({"raw_norm": math.nan}, "raw_norm must be a number above 0, got nan"),
            ({"raw_norm": -5}, "raw_norm must be a number above 0, got -5"),
            ({"n_pairs": -5}, "n_pairs must be a whole number, 0 or above"),
            ({"n_pairs": 2.5}, "n_pairs must be a whole number, 0 or above"),
            ({"method": None}, "The method is no text"),
            ({"model_name": 5}, "The model_name is no text"),
            ({"fingerprint": None}, "The fingerprint is no text"),
            ({"direction": [1.0, 0.0]}, "direction must be a tensor or an array of floats"),
            ({"direction": torch.tensor([1, 0])}, "direction must be a tensor or an array of fl"),
            ({"direction": torch.tensor([True])}, "direction must be a tensor or an array of fl"),
            ({"direction": np.array([1, 0])}, "direction must be a tensor or an array of floats"),
        ]
    ],
    *[
        ("from_raw", {"raw": odd}, message)
        for odd, message in [
            (None, "raw must be numbers"),
            ("abc", "raw must be numbers"),
            ([0.0, 0.0], "has no direction"),
            ([math.nan, 1.0], "Every raw must be a finite number"),
            (torch.ones(2, 2), "one vector of unit norm"),
        ]
    ],
    ("like", {"n_pairs": -1}, "n_pairs must be a whole number, 0 or above"),
    # Results of other functions
    ("price", {"texts": PROMPTS}, r"texts must be what generate.*has its \.price already"),
    ("price", {"texts": [[[("a", "b", "c")]]]}, r"texts must be what generate.*\.price already"),
    ("sweep", {"concept": "sentiment"}, "concept must be a Concept, as load_concept"),
    ("judge", {"by": None}, "There is no judge: give 'vader', a classifier's name or a function"),
    ("judge", {"by": 5}, "The by is no text"),
    ("judge", {"by": lambda texts: [math.nan] * 3}, "The judge <lambda> .*Every answer must be a"),
    # What is shown by layer
    ("compute", {"vectors": V[:2]}, "vectors has 2 entries, but tiny-gpt2 has 3 layers"),
    ("compute", {"scale": [5.0]}, "scale has 1 entries, but tiny-gpt2 has 3 layers"),
    ("compute", {"scale": None}, "scale must be numbers"),
    ("compute", {"setting": 5}, "setting must be a Setting, got 5"),
    ("compute", {"setting": replace(SETTING, force=[1.0])}, "force must be a finite number"),
    ("compute", {"setting": replace(SETTING, layer=True)}, "layer must be a whole number"),
    ("completions", {"vectors": V[0]}, "vectors must be a SteeringVector or a list"),
    ("completions", {"layers": [7]}, "Layer 7 does not exist"),
    ("completions", {"scale": [5.0]}, "scale has 1 entries"),
    ("completions", {"shares": ["a"]}, "shares must be numbers"),
    ("Explorer", {"vectors": {}}, "vectors must be a dict such as"),
    ("Explorer", {"vectors": V}, "vectors must be a dict such as"),
    ("Explorer", {"vectors": {"a": 5}}, r"vectors\['a'\] must be a SteeringVector .*got 5"),
    ("Explorer", {"vectors": {"a": V[:2]}}, "a has 2 entries, but tiny-gpt2 has 3 layers"),
    ("Explorer", {"limits": [[1.0, 1.0]]}, "limits has 1 entries, but tiny-gpt2 has 3 layers"),
    *[
        (name, {"way": 3}, "way must be a function")
        for name in ("sweep", "sweep_damage", "calibrate")
    ],
    ("calibrate", {"start": [1.0, 2.0, 0.0]}, "start must be a list of numbers above 0"),
    ("calibrate", {"start": [1.0]}, "Give a start and a middle for each of the 3 vectors"),
    ("calibrate", {"middle": ["a"] * 3}, "middle must be numbers"),
    ("calibrate", {"middle": [float("nan")] * 3}, "Every middle must be a finite number"),
    ("Explorer", {"budget": "a"}, "budget must be a number above 0"),
    ("Explorer", {"limits": [0.5]}, "limits must be a table"),
]


def call(name, **change):
    """Call a function; where it gives a ``with`` block, run the model inside."""
    function, given = GOOD[name]
    result = function(**{**given, **change})
    if name in BLOCKS:
        with result:
            logits_of(MODEL, token_ids(PROMPTS[0]))


@pytest.mark.parametrize("name", [name for name in GOOD if name != "LayerExplorer"])
def test_the_call_that_each_bad_one_is_made_from_is_right(name):
    with no_hook_left(MODEL):
        call(name)


@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_what_cannot_be_right_is_refused_with_its_name(name, change, message):
    with no_hook_left(MODEL), pytest.raises(SteeringError, match=message):
        call(name, **change)


@pytest.mark.parametrize("kind", [tuple, iter, np.array, lambda x: dict.fromkeys(x).keys()])
def test_any_iterable_in_order_is_a_list_of_texts(kind):
    expected = log_odds(MODEL, TOKENIZER, PROMPTS)
    assert log_odds(MODEL, TOKENIZER, kind(PROMPTS)).equal(expected)
    assert repetition(kind(PROMPTS), 1).equal(repetition(PROMPTS, 1))
    words = kind(["good", "nice"])
    assert word_ids(TOKENIZER, words) == word_ids(TOKENIZER, ["good", "nice"])


@pytest.mark.parametrize(
    "kind", [np.array, torch.tensor, tuple, lambda x: list(map(torch.tensor, x))]
)
def test_forces_may_be_numbers_of_any_kind(kind):
    found = log_odds(MODEL, TOKENIZER, PROMPTS, V[0], kind([1.0, 2.0, -3.0]))
    assert found.equal(log_odds(MODEL, TOKENIZER, PROMPTS, V[0], [1, 2, -3]))
    for one in (2, Fraction(2), np.int64(2), np.float32(2), torch.tensor(2)):
        same = log_odds(MODEL, TOKENIZER, PROMPTS, V[0], one)
        assert same.equal(log_odds(MODEL, TOKENIZER, PROMPTS, V[0], 2.0))


def test_numbers_of_any_kind_are_counts_and_seeds():
    expected = generate(MODEL, TOKENIZER, PROMPTS, V[0], 2.0, seed=[1, 2, 3], max_new_tokens=3)
    for kind in (torch.tensor, np.array, tuple, iter):
        for n in (np.int64(3), torch.tensor(3)):
            options = {"seed": kind([1, 2, 3]), "max_new_tokens": n}
            assert generate(MODEL, TOKENIZER, PROMPTS, V[0], 2.0, **options) == expected
    assert mean_with_interval([True, False]).mean == 0.5  # a share


# -- Results that are no numbers


@pytest.fixture
def broken():
    """A model with a weight that is no number."""
    model = new_model()
    model.transformer.h[1].mlp.c_fc.weight[0, 0] = math.nan
    return model


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("residual_stream", "the residual stream"),
        ("typical_norm", "the norm of the residual stream"),
        ("find_vectors", "the residual stream"),
        ("controls", "the residual stream"),
        ("log_odds", "the log-odds"),
        ("balanced_prompts", "the log-odds"),
        ("sweep", "sweep"),
        ("sweep_damage", "damage"),
        ("perplexity", "a perplexity"),
        ("generate", "the next token"),
        ("sweep_texts", "the next token"),
    ],
)
def test_a_model_that_gives_no_numbers_is_named(name, what, broken):
    function, given = GOOD[name]
    message = rf"gives NaN or infinity for {what}: its weights or the force .* torch.float32"
    with no_hook_left(broken), pytest.raises(SteeringError, match=message):
        function(**{**given, "model": broken})


def test_a_greedy_text_of_no_numbers_is_refused_too(broken):
    with pytest.raises(SteeringError, match="gives NaN or infinity for the next token"):
        generate(broken, TOKENIZER, PROMPTS, V[0], 0.0, temperature=0)


def test_infinite_perplexity_is_refused():
    model = new_model()
    model.lm_head.weight = torch.nn.Parameter(1e4 * model.lm_head.weight)
    with pytest.raises(SteeringError, match="gives NaN or infinity for a perplexity"):
        perplexity(model, TOKENIZER, PROMPTS, [" it", " a", " so"])


# -- The module itself


def test_a_decorated_function_keeps_its_signature_and_the_errors_of_python():
    from helpers.checks import checked

    @checked(texts=lambda value, name: f"{name} {value}")
    def example(texts, seed=None, *, n=3, **options):
        """What it does."""
        return texts, seed, n, options

    names = ["texts", "seed", "n", "options"]
    assert list(inspect.signature(example).parameters) == names
    assert example.__name__ == "example" and example.__doc__ == "What it does."
    assert example(1, (4, 5), n=np.int64(2), force="x") == ("texts 1", [4, 5], 2, {"force": "x"})
    assert example(1, None, n=3) == ("texts 1", None, 3, {})  # the defaults
    for given, options in [((), {}), ((1, 2, 3), {}), ((1,), {"texts": 1})]:
        with pytest.raises(TypeError, match="example"):
            example(*given, **options)


def test_the_largest_force_is_one_whose_square_a_float_can_hold():
    from helpers.checks import forces

    most = math.sqrt(torch.finfo(torch.float32).max)
    assert forces(0.99 * most, "force").square().isfinite()
    for force in (1.01 * most, -1.01 * most, [[0.0, 1.01 * most]]):
        with pytest.raises(SteeringError, match="Every force must be a finite number"):
            forces(force, "force")
    assert forces([[1, 2.5], [3, 4]], "forces").tolist() == [[1, 2.5], [3, 4]]
    assert forces([], "forces").shape == (0,) and forces(2, "force").dtype == torch.float32


def test_every_parameter_that_has_a_rule_is_checked_in_every_module():
    import helpers.checks as checks
    from helpers import activations, directions, evaluation, generation, pairs, statistics, sweeps
    from helpers.pair_files import read_pairs

    assert hasattr(read_pairs, "__wrapped__")
    inner = {"seed_list", "check_fit"}
    for module in (activations, directions, evaluation, generation, pairs, statistics, sweeps):
        for name, function in vars(module).items():
            own = inspect.isfunction(function) and function.__module__ == module.__name__
            if own and not name.startswith("_") and name not in inner:
                ruled = set(inspect.signature(function).parameters) & set(checks.RULES)
                assert not ruled or hasattr(function, "__wrapped__"), name
