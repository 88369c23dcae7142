import json
import math
import re
from functools import lru_cache
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.activations import typical_norm
from helpers.calibration import ORDINARY
from helpers.concepts import SENTIMENT, load_concept
from helpers.directions import find_vectors
from helpers.folklore import (
    ALLOWED,
    SAYINGS,
    Trial,
    Verdict,
    equal_pull,
    pull_by_depth,
    rule,
    side_by_side,
    summary,
    trial,
)
from helpers.models import SteeringError, load_model
from helpers.statistics import Estimate
from helpers.sweeps import sweep_damage
from tiny_models import tiny_model, tokenizer

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "08_testing_the_folklore.ipynb"
BOTH_MODELS = ROOT / "notebooks" / "09_a_real_language_model.ipynb"
OTHER_CONCEPT = load_concept(Path(__file__).with_name("other_concept.json"))
NUMBER = r"([+-](?:\d+\.\d+|nan))"


def stored_tables(path):
    """Every table of verdicts among a notebook's outputs, as lists of its cells."""
    notebook = nbformat.from_dict(json.loads(path.read_text(encoding="utf-8")))
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            lines = "".join(output.get("data", {}).get("text/plain", "")).splitlines()
            if lines and re.match(r"claim +claimed .*verdict$", lines[0]):
                yield [re.split(r" {2,}", line) for line in (lines[0], *lines[2:])]


def verdicts_in(rows, column=2):
    """The verdicts that a table shows in two columns, with numbers as they were rounded."""
    found = []
    for row in rows[1:]:
        side, border = row[1].split()
        numbers = re.fullmatch(rf"{NUMBER} \[{NUMBER}, {NUMBER}\]", row[column]).groups()
        estimate = Estimate(*map(float, numbers))
        found.append(Verdict(row[0], estimate, side, float(border), row[column + 1]))
    return found


def trial_of(verdicts):
    return Trial("any", 12, [7, 8], 0, [], [], [], verdicts)


@lru_cache
def bundled():
    return trial(*load_model("pocket", device="cpu"))


@lru_cache
def tiny(family):
    return trial(tiny_model(family), tokenizer(), OTHER_CONCEPT)


# -- The court


@pytest.mark.parametrize(
    ("interval", "above", "below"),
    [
        ((0.5, 0.1, 0.9), "holds", "fails"),
        ((-0.5, -0.9, -0.1), "fails", "holds"),
        ((0.5, -0.1, 0.9), "open", "open"),
        ((0.5, 0.0, 0.9), "open", "open"),  # an end on the border is on neither side
        ((-0.5, -0.9, 0.0), "open", "open"),
        ((math.nan, math.nan, math.nan), "open", "open"),
    ],
)
@pytest.mark.parametrize("border", [0, 2.5])
def test_a_verdict_is_sure_if_the_interval_lies_on_one_side(interval, above, below, border):
    found = Estimate(*(value + border for value in interval))
    assert rule("a", found, above=border) == ("a", found, "above", border, above)
    assert rule("a", found, below=border) == ("a", found, "below", border, below)


@pytest.mark.parametrize("borders", [{}, {"above": 0, "below": 1}])
def test_a_claim_has_one_border(borders):
    with pytest.raises(SteeringError, match="A claim has one border"):
        rule("a", Estimate(0, -1, 1), **borders)


# -- The trial


def test_the_trial_is_that_of_notebook_08():
    [table] = stored_tables(NOTEBOOK)
    now = verdicts_in([[], *side_by_side({"pocket": bundled()}).rows])
    stored = verdicts_in(table)
    assert now == stored[: len(now)]
    # The ways to push of the ninth rule are the notebook's own.
    assert [verdict.claim[:4] for verdict in stored[len(now) :]] == ["9 · "] * 3


def test_the_pull_at_equal_damage_is_that_of_the_trial():
    found, (model, tokens) = bundled(), load_model("pocket", device="cpu")
    vectors = find_vectors(model, tokens, SENTIMENT.pairs)
    equal, pull = equal_pull(model, tokens, [vectors[layer] for layer in found.layers])
    assert pull.shape == (501, len(found.layers))
    assert np.percentile(pull[1:], 2.5, axis=0) == pytest.approx([x.low for x in found.pull])
    assert np.percentile(pull[1:], 97.5, axis=0) == pytest.approx([x.high for x in found.pull])
    # The damage is within 5 % of the budget, and the pull grows with its root.
    assert pull[0] == pytest.approx([x.mean for x in found.pull], rel=0.03)
    assert equal.budget == ALLOWED


def test_a_way_to_push_that_turns_round_turns_the_pull_round():
    model, tokens = load_model("pocket", device="cpu")
    vector = find_vectors(model, tokens, SENTIMENT.pairs)[8]
    how = {"concept": OTHER_CONCEPT, "budget": 0.5}
    _, there = equal_pull(model, tokens, vector, **how, way=lambda h, v, s: h + s * v)
    _, back = equal_pull(model, tokens, vector, **how, way=lambda h, v, s: h - s * v)
    assert back == pytest.approx(-there, rel=0.05)
    assert there.mean() > 0.5


def test_the_stored_table_of_ways_to_push_begins_with_what_the_notebook_prints():
    notebook = nbformat.from_dict(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    cells = {cell.id: cell for cell in notebook.cells}
    [table] = [x.data for x in cells["ways-verdict"].outputs if "text/html" in x.get("data", {})]
    printed = [
        re.split(r" {2,}", line.strip()) for line in "".join(table["text/plain"]).splitlines()
    ]
    lines = "".join(cells["ways-table"].source).splitlines()
    stored = [line.strip("| ").split(" | ") for line in lines]
    assert [row[2:7] for row in stored[2:5]] == printed[2:]
    assert [row[:2] for row in stored[2:5]] == [["bundled", f"{ALLOWED:g}"]] * 3


def test_layers_were_compared_at_equal_damage():
    found, (model, tokens) = bundled(), load_model("pocket", device="cpu")
    vectors, scale = find_vectors(model, tokens, SENTIMENT.pairs), typical_norm(model, tokens)
    forces = torch.tensor(found.equal) * scale[found.layers][:, None]
    some = [vectors[layer] for layer in found.layers]
    lost = sweep_damage(model, tokens, ORDINARY, some, forces).mean(2)
    assert lost.numpy() == pytest.approx(np.full((len(some), 2), ALLOWED), rel=0.06)
    assert found.golden == [7, 8] and found.rival not in found.golden
    assert {*found.golden, found.rival, 0, 11} <= set(found.layers)


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
def test_any_model_and_concept_can_be_tried(family):
    found = tiny(family)
    assert found.golden == {"llama": [2, 2], "gpt_neo": [2, 3]}[family]
    assert found.rival not in found.golden
    assert {verdict.claim[0] for verdict in found.verdicts} == set("12345678")
    assert len({verdict.claim for verdict in found.verdicts}) == len(found.verdicts)
    for claim, estimate, side, border, verdict in found.verdicts:
        assert rule(claim, estimate, **{side: border}).verdict == verdict
    # Layers that cannot be damaged as much have no pull, and a claim about them stays open.
    for equal, pull in zip(found.equal, found.pull, strict=True):
        assert math.isnan(pull.mean) == math.isnan(sum(equal))
    missing = math.isnan(sum(found.equal[found.layers.index(found.golden[0])]))
    assert not missing or found.verdicts[0].verdict == "open"


def test_a_model_of_one_layer_is_refused():
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer()), intermediate_size=64, **sizes
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(SteeringError, match="has one layer"):
        trial(model, tokenizer(), OTHER_CONCEPT)


def test_odd_arguments_are_refused():
    with pytest.raises(SteeringError, match="model must be"):
        trial(None, tokenizer())
    with pytest.raises(SteeringError, match="concept must be"):
        trial(tiny_model(), tokenizer(), "sentiment")


# -- Models side by side


def test_models_stand_side_by_side():
    trials = {"one": tiny("llama"), "other": tiny("gpt_neo")}
    table = side_by_side(trials)
    assert table.head == ["claim", "claimed", "one", "verdict", "other", "verdict"]
    for row, one, other in zip(
        table.rows, tiny("llama").verdicts, tiny("gpt_neo").verdicts, strict=True
    ):
        assert row[0] == one.claim == other.claim
        assert row[2:] == [str(one.found), one.verdict, str(other.found), other.verdict]


@pytest.mark.parametrize("call", [side_by_side, summary])
def test_other_claims_do_not_stand_side_by_side(call):
    with pytest.raises(SteeringError, match="not of the same claims"):
        call({"one": tiny("llama"), "other": trial_of(tiny("llama").verdicts[1:])})
    with pytest.raises(SteeringError, match="There is no trial"):
        call({})


def test_the_summary_has_a_line_a_rule_of_thumb_and_every_claim():
    table = summary({"one": tiny("llama")})
    assert [row[0] for row in table.rows] == SAYINGS
    for verdict in tiny("llama").verdicts:
        number, name = verdict.claim.split(" · ")
        cell = table.rows[int(number) - 1][1]
        groups = dict(re.findall(r"\*\*(\w+)\*\*: ([^;]*)", cell))
        assert f"{name} ({str(verdict.found).split()[0]})" in groups[verdict.verdict]


def readme_block():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"<!-- verdicts -->\n(.*?)\n<!-- /verdicts -->", text, re.S)
    return [line.strip("| ").split(" | ") for line in block.splitlines()]


def test_readme_says_of_the_bundled_model_what_notebook_08_found():
    [stored] = stored_tables(NOTEBOOK)
    told = summary({"stored": trial_of(verdicts_in(stored))}).rows
    assert [row[:2] for row in readme_block()[2:]] == told


@pytest.mark.skipif(not BOTH_MODELS.exists(), reason="there is no notebook of both models")
def test_readme_says_of_both_models_what_notebook_09_found():
    tables = [rows for rows in stored_tables(BOTH_MODELS) if len(rows[0]) == 6]
    assert len(tables) == 1, "one table by side_by_side(...) is expected"
    columns = {str(column): trial_of(verdicts_in(tables[0], column)) for column in (2, 4)}
    assert readme_block()[2:] == summary(columns).rows


def test_the_figure_shows_each_layer_at_its_depth():
    ax = Figure().add_subplot()
    trials = {"one": tiny("llama"), "other": bundled()}
    pull_by_depth(ax, trials)
    lines = [container.lines[0] for container in ax.containers]
    for line, found in zip(lines, trials.values(), strict=True):
        assert line.get_xdata() == pytest.approx([i / (found.n_layer - 1) for i in found.layers])
        assert line.get_ydata() == pytest.approx([p.mean for p in found.pull], nan_ok=True)
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(trials)


@pytest.mark.parametrize("function", [side_by_side, summary])
@pytest.mark.parametrize("trials", [None, [1], {"pocket": 3}, "trial"])
def test_what_is_no_dict_of_trials_is_refused(function, trials):
    with pytest.raises(SteeringError, match="trials must be a dict such as"):
        function(trials)


def test_a_verdict_needs_an_estimate():
    with pytest.raises(SteeringError, match="found must be an Estimate"):
        rule("1 · a claim", 0.3, above=0)
