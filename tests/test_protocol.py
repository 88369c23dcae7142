import json
import math
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache

import matplotlib.pyplot as plt
import pytest
import torch

from helpers.activations import typical_norm
from helpers.choice import choose
from helpers.concepts import SENTIMENT, Concept
from helpers.directions import find_vectors
from helpers.evaluation import judge, log_odds, price, repetition
from helpers.generation import generate
from helpers.models import SteeringError, load_model
from helpers.protocol import evaluate
from helpers.statistics import controls, mean_with_interval
from helpers.sweeps import sweep
from tiny_models import PROMPTS, make_vector, new_model, tiny_model, tokenizer

LAYERS = [3, 8]
SMALL = replace(
    SENTIMENT,
    dev_prompts=SENTIMENT.dev_prompts[:4],
    test_prompts=SENTIMENT.test_prompts[:6],
    positive_requests=SENTIMENT.positive_requests[:2],
    negative_requests=SENTIMENT.negative_requests[:2],
)
BARE = Concept(
    "tense",
    pairs=[("He ran", "He runs"), ("We saw it", "We see it"), ("They went", "They go")],
    positive_words=["was", "had"],
    negative_words=["is", "has"],
    dev_prompts=PROMPTS,
    test_prompts=["The house", "My sister", "The train"],
)


@lru_cache
def bundled():
    return evaluate(*load_model("pocket"), SMALL, layers=LAYERS, max_new_tokens=6)


@lru_cache
def own_texts(family):
    """What a random model reads well: there is something to damage."""
    vector = make_vector(1, model_name="")
    how = {"max_new_tokens": 30, "temperature": 0}
    texts = generate(tiny_model(family), tokenizer(), PROMPTS, vector, 0.0, **how)
    return [text.prompt + text.base for text in texts]


def bare(**changes):
    concept, family = replace(BARE, **changes), "llama"
    how = {"texts": own_texts(family), "max_new_tokens": 4}
    return evaluate(tiny_model(family), tokenizer(), concept, **how)


def test_every_number_is_that_of_the_steps_of_notebooks_05_and_07():
    both, found = load_model("pocket"), bundled()
    vectors = find_vectors(*both, SMALL.pairs)
    choice = choose(*both, [vectors[layer] for layer in LAYERS], SMALL, 0.5)
    assert found.choice.vector.layer == choice.vector.layer
    assert (found.choice.up, found.choice.down) == pytest.approx((choice.up, choice.down))
    norm = typical_norm(*both, SMALL)[choice.vector.layer].item()
    assert found.norms == pytest.approx((choice.up / norm, choice.down / norm))

    forces, plain = [choice.up, choice.down], log_odds(*both, SMALL.test_prompts, concept=SMALL)
    for row, force in zip(found.effect, forces, strict=True):
        pushed = log_odds(*both, SMALL.test_prompts, choice.vector, force, concept=SMALL)
        torch.testing.assert_close(row, pushed - plain, atol=1e-4, rtol=0)

    kinds = controls(*both, choice.vector, SMALL, n_shuffled=20)
    assert {name: len(some) for name, some in kinds.items()} == {
        name: len(some) for name, some in found.rivals.items()
    }
    where = SMALL.test_prompts, kinds["shuffled"], forces, SMALL
    moved = sweep(*both, *where).effect
    expected = (moved[:, 0] - moved[:, 1]).mean(-1) / 2
    torch.testing.assert_close(found.rivals["shuffled"], expected)

    for number, force in enumerate(forces):
        texts = generate(*both, SMALL.test_prompts, choice.vector, force, max_new_tokens=6)
        assert list(found.texts[number]) == list(texts)
        torch.testing.assert_close(found.price[number], price(*both, texts), equal_nan=True)
        steered, base = [t.steered for t in texts], [t.base for t in texts]
        torch.testing.assert_close(found.judged[number], judge(steered) - judge(base))
        torch.testing.assert_close(
            found.loops[number + 1], repetition(steered, 4, "character"), equal_nan=True
        )


@pytest.mark.parametrize(("side", "sign"), [("up", 1), ("down", -1)])
def test_the_rival_is_the_request_that_moves_the_development_prompts_most(side, sign):
    both = load_model("pocket")
    requests = {"up": SMALL.positive_requests, "down": SMALL.negative_requests}[side]

    def effect(ask, prompts):
        told = [ask + prompt for prompt in prompts]
        odds = [log_odds(*both, some, concept=SMALL) for some in (told, prompts)]
        return odds[0] - odds[1]

    best = max(requests, key=lambda ask: sign * effect(ask, SMALL.dev_prompts).mean())
    ask, moved = bundled().asked[side]
    assert ask == best
    torch.testing.assert_close(moved, effect(best, SMALL.test_prompts))


def test_the_report_says_what_was_found():
    found = bundled()
    table = {row[0]: row[1:] for row in found.table.rows}
    assert table["effect on the log-odds"] == [str(mean_with_interval(x)) for x in found.effect]
    assert table["change of the judge"] == [str(mean_with_interval(x)) for x in found.judged]
    gain = found.effect[0] - found.asked["up"][1], found.asked["down"][1] - found.effect[1]
    assert table["push beyond the request"] == [str(mean_with_interval(x)) for x in gain]
    assert table["prompts the wrong way"] == ["0%", "0%"]
    text = repr(found)
    works = {True: "surely works", False: "does not surely work"}
    said = "; ".join(f"{works[sure]} on the {where}" for where, sure in found.verdicts.items())
    assert f"sentiment: steering {said}. Layer 8 of pocket" in text
    assert repr(found.table) in text
    assert "best request up" in found._repr_html_()


def test_it_works_on_the_next_word_if_both_signs_are_sure_and_no_control_does_as_much():
    found = bundled()

    def works(**changes):
        return replace(found, **changes).verdicts["next word"]

    assert works()
    assert not works(effect=-found.effect)
    assert not works(effect=found.effect * torch.tensor([[1.0], [-1.0]]))
    unsure = found.effect.clone()
    unsure[1, ::2] *= -1
    assert not works(effect=unsure)
    large = {**found.rivals, "random": torch.tensor([0.1, -found.pull.mean() - 0.1])}
    assert not works(rivals=large)
    assert "does not surely work on the next word" in repr(replace(found, rivals=large))
    assert replace(found, effect=-found.effect).wrong_way == [1, 1]


def test_it_works_on_texts_if_the_judge_saw_it_both_ways():
    seen = torch.tensor([[0.2, 0.4, 0.3], [-0.5, -0.4, -0.6]])
    for judged, sure in [(seen, True), (-seen, False), (seen.abs(), False), (seen * 0, False)]:
        found = replace(bundled(), judged=judged)
        assert found.verdicts == {"next word": True, "written texts": sure}
        assert found.worked is sure
    assert replace(bundled(), judged=None).verdicts == {"next word": True}


def test_a_figure_shows_every_control_and_our_own():
    figure, ax = plt.subplots()
    bundled().draw(ax)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["random", "shuffled", "orthogonal", "sentiment"]
    drawn = [line for line in ax.lines if line.get_marker() == "|"]
    assert [len(line.get_xdata()) for line in drawn] == [20, 20, 5]
    plt.close(figure)


def test_what_is_saved_can_be_read(tmp_path):
    found = replace(bundled(), price=torch.tensor([[math.nan] * 6, [0.5] * 6]))
    found.save(tmp_path / "found.json")
    text = (tmp_path / "found.json").read_text(encoding="utf-8")
    kept = json.loads(text, parse_constant=pytest.fail)
    assert kept["price"] == [[None] * 6, [0.5] * 6]
    assert kept["layer"] == found.choice.vector.layer and kept["worked"] == found.verdicts
    assert kept["effect"] == found.effect.tolist()
    assert kept["texts"][1][2]["steered"] == found.texts[1][2].steered
    with pytest.raises(SteeringError, match="Nothing could be written"):
        found.save(tmp_path / "none" / "found.json")


def test_a_concept_of_five_fields_is_evaluated_on_a_random_llama():
    found = bare()
    assert found.judged is None and found.asked == {}
    assert found.effect.shape == (2, 3) and found.loops.shape == (3, 3)
    names = [row[0] for row in found.table.rows]
    assert "change of the judge" not in names and "best request instead" not in names


def test_words_that_cannot_be_counted_are_left_out():
    with pytest.warns(UserWarning, match="antidisestablishment"):
        found = bare(positive_words=["was", "had", "antidisestablishmentarian"])
    assert found.concept.positive_words == ["was", "had"]


def test_a_judge_may_be_a_function():
    found = bare(judge=lambda texts: [float(len(text)) for text in texts])
    lengths = [[float(len(t.steered) - len(t.base)) for t in side] for side in found.texts]
    assert found.judged.tolist() == lengths


def test_dialogues_are_evaluated_and_asked_in_their_system_message():
    own = deepcopy(tokenizer())
    own.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )

    def talk(text):
        return [{"role": "user", "content": text}]

    model, ask = tiny_model("llama"), ["Talk of yesterday.", "Say what was."]
    concept = replace(
        BARE,
        dev_prompts=[talk("How is it?"), talk("Where?")],
        test_prompts=[talk("And now?"), talk("Who is it?"), talk("Why?")],
        positive_instructions=ask,
        negative_instructions=["Talk of today."],
    )
    found = evaluate(model, own, concept, texts=own_texts("llama"), max_new_tokens=3)
    told = [
        [{"role": "system", "content": found.asked["up"][0]}, *talk(text)]
        for text in ("And now?", "Who is it?", "Why?")
    ]
    odds = [log_odds(model, own, some, concept=concept) for some in (told, concept.test_prompts)]
    torch.testing.assert_close(found.asked["up"][1], odds[0] - odds[1])
    mixed = replace(concept, dev_prompts=["The house", "It"])
    with pytest.raises(SteeringError, match="one kind"):
        evaluate(model, own, mixed, texts=own_texts("llama"), max_new_tokens=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [99]}, "Layer 99 does not exist"),
        ({"layers": []}, "No vector"),
        ({"budget": 0}, "budget must be a number above 0"),
        ({"texts": []}, "texts"),
        ({"concept": None}, "concept must be a Concept"),
        ({"concept": replace(BARE, test_prompts=["One"])}, "One test prompt has no interval"),
        ({"concept": replace(BARE, judge=lambda texts: [1.0])}, "judge"),
    ],
    ids=["layer", "no layer", "budget", "texts", "concept", "one prompt", "judge"],
)
def test_what_cannot_be_right_is_refused(changes, message):
    given = {"concept": BARE, "texts": own_texts("llama"), "max_new_tokens": 3, **changes}
    with pytest.raises(SteeringError, match=message):
        evaluate(tiny_model("llama"), tokenizer(), given.pop("concept"), **given)


def test_the_model_is_left_as_it_was():
    model = new_model("llama")
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    evaluate(model, tokenizer(), BARE, texts=own_texts("llama"), max_new_tokens=3)
    assert model(ids).logits.equal(before)


LOOPS = [("had had, had had", True), ("hahahahahaha", True), ("so it is, and so it is", True)]
LOOPS += [("The train leaves at nine.", False), ("We saw a film about the sea", False)]


@pytest.mark.parametrize(("text", "loops"), LOOPS)
def test_characters_show_a_loop_that_words_miss(text, loops):
    share = repetition([text], 4, "character").item()
    assert (share > 0.2) == loops
    words = repetition([text]).item()
    assert not words > 0.5  # NaN for a single word


def test_another_unit_is_refused():
    with pytest.raises(SteeringError, match="unit must be 'word' or 'character'"):
        repetition(["a b c"], unit="letter")
