"""Every exercise: the stub, the solution and the wrong answers, on the bundled model and a Llama.

What the engine promises (nothing left on the model, where an error stands, what is kept) is
tested on exercises made for the purpose.
"""

import ast
import inspect
import json
import re
import textwrap
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from helpers.activations import residual_stream, typical_norm
from helpers.checks import SteeringError
from helpers.concepts import SENTIMENT
from helpers.directions import find_vectors
from helpers.evaluation import balanced_prompts
from helpers.exercises import check, compare, hint, predict, record, score, solution
from helpers.exercises.__main__ import main
from helpers.exercises.asking import find, load_all
from helpers.exercises.exercise import EXERCISES, KINDS, Exercise, Explanation, Fault, once
from helpers.exercises.judging import difference, filled, judge, same, untouched
from helpers.models import load_model
from helpers.pairs import split
from helpers.sweeps import sweep_texts
from tiny_models import hooks, logits_of, new_model, token_ids, tokenizer

ROOT = Path(__file__).resolve().parents[1]
ALL = load_all()
JUDGED = {number: one for number, one in ALL.items() if isinstance(one, Exercise)}
EXPLAINED = {number: one for number, one in ALL.items() if isinstance(one, Explanation)}
MODELS = ("bundled", "llama")


@pytest.fixture(autouse=True)
def own_record(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_PROGRESS", str(tmp_path / "progress.json"))


@lru_cache
def model_and_tokenizer(which):
    return load_model("pocket") if which == "bundled" else (new_model("llama"), tokenizer())


@lru_cache
def given_for(names, which):
    """What the notebook's cell hands over, by the names that the exercise gives."""
    model, tok = model_and_tokenizer(which)
    values = {"model": model, "tokenizer": tok, "concept": SENTIMENT}
    values["FRENCH"] = set("le la les des une du et est dans pour que qui au avec sur il".split())
    if set(names) - set(values):
        vectors = find_vectors(model, tok, SENTIMENT.pairs)
        layer = 2 * len(vectors) // 3
        scale = typical_norm(model, tok, SENTIMENT)
        values |= {"vectors": vectors, "layer": layer, "vector": vectors[layer], "scale": scale}
        values |= {"norm": scale[layer].item(), "prompt": SENTIMENT.dev_prompts[0]}
        sides = [residual_stream(model, tok, side)[layer] for side in split(SENTIMENT.pairs)]
        read = residual_stream(model, tok, SENTIMENT.sentences, position="mean")[layer]
        scores = read @ vectors[layer].direction
        values |= dict(zip(("positive", "negative"), sides, strict=True))
        values["labels"] = [1] * len(SENTIMENT.positive_sentences)
        values["labels"] += [0] * len(SENTIMENT.negative_sentences)
        values |= {"scores": scores, "score": scores.quantile(0.6).item()}
        values |= {"five": five_texts(model, tok, vectors, scale)}
        values |= {"compared": vectors, "sizes": 0.1 * scale[:, None], "verdicts": range(24)}
        if "past" in names:  # notebook 10 hands over two vectors of one layer
            values["positive"] = vectors[layer]
            values["past"] = vectors[layer].random_like(0) + vectors[layer]
        values |= {"dev_prompts": SENTIMENT.dev_prompts, "other_norm": 7 * values["norm"]}
    return tuple(values[name] for name in names)


def five_texts(model, tok, vectors, scale):
    """What notebook 06 writes under five settings."""
    n = len(vectors)
    places = [2 * n // 3, 3 * n // 4, n // 6, n // 3, n - 1]
    forces = torch.tensor([-0.4, 0.3, 0.4, -0.1, 0.4]) * scale[places]
    where = (model, tok, balanced_prompts(model, tok, n=1), [vectors[i] for i in places])
    return sweep_texts(*where, forces[:, None], seed=1, max_new_tokens=24)


def answer_like(exercise, function, given):
    """A reader's answer: the function, or the value that it gives."""
    return function if exercise.run else function(*given)


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("number", JUDGED)
def test_solution_and_mistakes_are_told_apart(number, which):
    exercise = JUDGED[number]
    given = given_for(exercise.given, which)
    outcome = judge(exercise, answer_like(exercise, exercise.right, given), given)
    assert outcome.word == "right", outcome
    assert outcome.text == exercise.why
    assert len(exercise.mistakes) >= 2
    messages = [message for message, _ in exercise.mistakes]
    assert len(set(messages)) == len(messages)
    for message, mistake in exercise.mistakes:
        outcome = judge(exercise, answer_like(exercise, mistake, given), given)
        said = filled(message, exercise.reference(mistake, given))
        assert outcome == ("not yet", said), mistake.__name__


def nothing(*args):
    """What a stub says."""
    ...


@pytest.mark.parametrize("number", JUDGED)
def test_a_stub_is_not_attempted(number):
    exercise = JUDGED[number]
    given = given_for(exercise.given, "bundled")
    stub = exercise.stub or (nothing if exercise.run else ...)
    assert judge(exercise, stub, given).word == "not attempted"
    assert (exercise.kind == "find the bug") == (exercise.stub is not None)


@pytest.mark.parametrize("number", EXPLAINED)
def test_an_explanation_is_ticked_off(number, capsys):
    exercise, answer = EXPLAINED[number], "Because of something or other, I think."
    check(number, ...)
    assert "not attempted" in capsys.readouterr().out
    check(number, answer)
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(exercise.answer.split()) in shown
    assert all(text in shown for text in exercise.points.values())
    for letter, text in exercise.points.items():
        check(number, answer, "".join(exercise.points).replace(letter, ""))
        said = " ".join(capsys.readouterr().out.split())
        assert "not yet" in said and text in said
    check(number, answer, "".join(exercise.points))
    assert "right" in capsys.readouterr().out
    assert len(exercise.points) >= 2


@pytest.mark.parametrize("number", ALL)
def test_an_exercise_is_complete(number, capsys):
    exercise = ALL[number]
    assert exercise.kind in KINDS and exercise.difficulty in (1, 2, 3) and exercise.minutes > 0
    assert exercise.hints and exercise.why
    for _ in range(len(exercise.hints) + 1):
        hint(number)
    said = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(text.split()) in said for text in exercise.hints)
    solution(number)
    shown = capsys.readouterr().out
    if isinstance(exercise, Exercise):
        ast.parse(shown)
        assert f"def {exercise.right.__name__}(" in shown


def notebook_of(number):
    [path] = (ROOT / "notebooks").glob(f"{int(number.split('.')[0]):02}_*.ipynb")
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("number", ALL)
def test_a_notebook_asks_it(number):
    """Its heading says kind, minutes and difficulty; its cell runs as it is."""
    exercise, cells = ALL[number], notebook_of(number)
    level = "●" * exercise.difficulty + "○" * (3 - exercise.difficulty)
    head = f"### Exercise {number} · {exercise.kind} · {exercise.minutes} min · {level}"
    assert any(head in "".join(cell["source"]) for cell in cells), head
    [cell] = [
        cell
        for cell in cells
        if cell["cell_type"] == "code" and f'check("{number}"' in "".join(cell["source"])
    ]
    source = "".join(cell["source"])
    [output] = cell["outputs"]
    assert re.search(rf"· {number} not attempted", "".join(output["text"]))
    [call] = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check"
    ]
    assert len(call.args) == 2 + len(getattr(exercise, "given", ()))
    if getattr(exercise, "stub", None):
        lines = textwrap.dedent(inspect.getsource(exercise.stub)).splitlines()
        lines = [line for line in lines if not line.startswith("@")]
        assert "\n".join(lines) in source


@pytest.mark.parametrize("number", ALL)
def test_a_cell_can_be_run_again_later(number):
    """What it hands over is set in no later cell: readers come back to an exercise at the end."""
    trees = [
        ast.parse("".join(cell["source"]))
        for cell in notebook_of(number)
        if cell["cell_type"] == "code"
    ]
    [here] = [i for i, tree in enumerate(trees) if f"check('{number}'" in ast.unparse(tree)]
    outside = [step for step in trees[here].body if not isinstance(step, ast.FunctionDef)]
    own = {step.name for step in trees[here].body if isinstance(step, ast.FunctionDef)}
    own = own.union(*(names_of(step, ast.Store) for step in outside))
    used = set().union(*(names_of(step, ast.Load) for step in outside)) - own
    for later in trees[here + 1 :]:
        for step in later.body:
            if not isinstance(step, ast.FunctionDef):
                assert not used & names_of(step, ast.Store), ast.unparse(step)


def names_of(step, context):
    return {
        node.id
        for node in ast.walk(step)
        if isinstance(node, ast.Name) and isinstance(node.ctx, context)
    }


def test_each_notebook_has_exercises_and_ends_with_a_score():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = str(int(path.name[:2]))
        own = [number for number in ALL if number.split(".")[0] == notebook]
        assert 3 <= len(own) <= 5, path.name
        minutes = sum(ALL[number].minutes for number in own)
        first = "".join(notebook_of(f"{notebook}.1")[0]["source"])
        assert f"{minutes} more for the exercises" in first, path.name
        code = [cell for cell in notebook_of(f"{notebook}.1") if cell["cell_type"] == "code"]
        assert f'score("{notebook}")' in "".join(code[-1]["source"])


def test_each_prediction_is_kept_and_compared():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        asked = text.count("**Predict, then run.**")
        guessed, compared = (
            re.findall(rf'{word}\(\s*"([\d.]+)"', text) for word in ("predict", "compare")
        )
        assert sorted(guessed) == sorted(compared) == sorted(set(guessed)), path.name
        assert len(guessed) >= asked, path.name


# -- The engine


@pytest.fixture
def doubled():
    """An exercise of its own, which is gone afterwards: double what a block returns."""
    exercise = Exercise("99.1", "write", 1, 1, "well.", ("think.",), given=("model",))

    @exercise.tried_by
    def run(answer, model):
        return answer(model, token_ids("The soup was"))

    @exercise.solution
    def right(model, ids):
        return 2 * model(ids).logits[0, -1]

    @exercise.mistake("not doubled.")
    def once(model, ids):
        return model(ids).logits[0, -1]

    @exercise.mistake("halved.")
    def half(model, ids):
        return model(ids).logits[0, -1] / 2

    yield exercise
    del EXERCISES["99.1"]


def test_what_an_answer_leaves_on_the_model_is_gone_and_said(doubled):
    model = new_model()
    before, plain = hooks(model), logits_of(model, token_ids("We liked"))
    model.lm_head.register_forward_hook(lambda *args: None)
    own = hooks(model)

    def answer(model, ids):
        model.train()
        model.transformer.h[0].register_forward_hook(lambda module, args, output: None)
        return 2 * model.eval()(ids).logits[0, -1]

    word, text = judge(doubled, answer, (model,))
    assert (word, text[:11]) == ("not yet", "it left a h")
    assert hooks(model) == own != before
    assert logits_of(model, token_ids("We liked")).equal(plain) and not model.training


def test_a_changed_weight_is_said(doubled):
    model = new_model()

    def answer(model, ids):
        model.lm_head.weight *= 2
        return model(ids).logits[0, -1]

    word, text = judge(doubled, answer, (model,))
    assert word == "not yet" and "load the model again" in text


def test_an_error_is_named_with_its_place(doubled):
    def answer(model, ids):
        logits = model(ids).logits
        return logits[99]

    word, text = judge(doubled, answer, (new_model(),))
    assert word == "can't be judged"
    assert "`return logits[99]`" in text and "IndexError" in text


def test_small_numbers_of_a_list_are_measured_by_its_largest():
    assert same([0.912, 0.088], [0.9125, 0.0875], 1e-3)
    assert not same([0.912, 0.089], [0.9125, 0.0875], 1e-3)


def test_forms_are_told_apart(doubled):
    model = new_model()

    def said(answer):
        return judge(doubled, answer, (model,))

    word, text = said(3.0)
    assert word == "can't be judged" and text.startswith("give the function itself")
    assert "shape is [1" in said(lambda model, ids: model(ids).logits).text
    assert "a number, and a tensor is wanted" in said(lambda model, ids: 1).text
    assert "off by" in said(lambda model, ids: 3 * model(ids).logits[0, -1]).text
    assert "; 1 of its 2 entries are right." in difference(torch.ones(2), torch.arange(2.0), 1e-3)
    assert (
        judge(doubled, lambda model, ids: 1, ()).text == 'call check("99.1", your answer, model).'
    )


def test_the_first_wrong_one_of_several_is_named():
    assert difference([1.0, 2, None], [1, 3, 4], 1e-3) == "number 2 of 3: 2 is too small."
    assert difference([[1], None], [[1], True], 1e-3).startswith("number 2 of 2: it gives nothing")


def test_an_error_that_ends_in_a_full_stop_gets_no_other(doubled):
    def answer(model, ids):
        raise SteeringError("No.")

    other = eval("lambda model, ids: answer(model, ids)", {"answer": answer})  # another file
    assert judge(doubled, other, (new_model(),)).text.endswith(": SteeringError: No.")


def test_the_case_that_differs_is_named():
    got, want = {"x": 1, "y": "no"}, {"x": 1, "y": "yes"}
    assert difference(got, want, 1e-3) == "for y it gives 'no', and that is not so."
    assert difference({"x": 1}, {"x": torch.ones(2)}, 1e-3).startswith("for x: it gives a number")
    assert difference({"x": None}, {"x": True}, 1e-3).endswith("is wanted: is there a return?")


def test_ticks_may_be_written_as_one_likes(capsys):
    for ticks in ("abc", "A, b, C"):
        check("1.4", "Because of something or other, I think.", ticks)
        assert "1.4 right" in capsys.readouterr().out


def test_what_is_given_wrongly_is_named(doubled, capsys):
    word, text = judge(doubled, doubled.right, ("no model",))
    assert word == "can't be judged" and 'call check("99.1", your answer, model)' in text
    check("4.2", "Because of something or other, I think.", "a", "b")
    assert "tick by letters" in capsys.readouterr().out


def test_an_array_is_as_good_as_a_tensor(doubled):
    word, _ = judge(doubled, lambda m, ids: (2 * m(ids).logits[0, -1]).numpy(), (new_model(),))
    assert word == "right"


def test_what_mistakes_share_is_computed_once_a_check(doubled):
    calls = []

    @once
    def shared(model):
        return calls.append(model) or torch.zeros(3)

    for text in ("of it.", "of it as well."):
        doubled.mistake(text)(lambda model, ids: shared(model))
    model = new_model()
    for checks in (1, 2):
        judge(doubled, lambda model, ids: torch.ones(1), (model,))
        assert calls == checks * [model]


def test_a_letter_is_known_in_any_writing(capsys):
    assert same(" C", "c", 1e-3) and not same("c)", "c", 1e-3)
    check("4.2", "Because of something or other, I think.", "A, b,C")
    assert "tick by letters" not in capsys.readouterr().out


def test_a_value_is_looked_at_and_the_message_names_its_own_fault(doubled):
    doubled.run = None
    doubled.right = lambda model: 4
    doubled.mistakes[:] = [("{} is odd, {!r}.", lambda model: 3)]
    doubled.looked_at_by(lambda value, model: Fault("odd", (value, "so")) if value % 2 else None)
    model = new_model()
    assert judge(doubled, 7, (model,)) == ("not yet", "7 is odd, 'so'.")
    assert judge(doubled, 10, (model,)).word == "right"
    doubled.right = lambda model: 5  # its own texts may not suit a vocabulary
    assert judge(doubled, 9, (model,)).word == "not yet"
    assert judge(doubled, 8, (model,)).word == "right"
    assert filled("{} is no fault of this answer.", 7) == "{} is no fault of this answer."


@pytest.mark.parametrize(
    "field, value, named",
    [
        ("pairs", [("I AM here", "I am there")] * 2, "'I AM here'"),
        ("pairs", [("One boat, two", "One cart, two")], "'boat' stands in the pairs, in 'One boat"),
        ("dev_prompts", ["Is it “Snow”?"], "'snow' stands in the dev prompt 'Is it “Snow”?'"),
        ("test_prompts", ["A SEA-green"], "'sea' stands in the test prompt"),
        ("test_prompts", ["the  children played near the. "], "'The children played near the'"),
        ("negative_words", ["sea dog", "stone", "rock"], "side only (not 'sea dog'). 3 are"),
        ("negative_words", [" boat", "stone", "rock"], "side only (not ' boat'). 3 are"),
    ],
)
def test_the_first_fault_of_a_concept_is_named(field, value, named):
    exercise, given = JUDGED["10.4"], given_for(("tokenizer",), "bundled")
    concept = exercise.right(*given)
    others = [] if field == "negative_words" else getattr(concept, field)
    word, text = judge(exercise, replace(concept, **{field: others + value}), given)
    assert word == "not yet" and named in text, text


def test_a_concept_of_the_series_is_known_by_its_pairs(tmp_path, monkeypatch):
    exercise, given = JUDGED["10.4"], given_for(("tokenizer",), "bundled")
    pairs = [
        [f"I see {n} here", f"I see {n} there"] for n in ("one", "two", "three", "four", "five")
    ]
    concept = replace(exercise.right(*given), pairs=pairs)
    lists = [f"{side}_words = [{side[:3]!r}]" for side in ("positive", "negative")]
    lists += [f"{half}_prompts = [{half!r}]" for half in ("dev", "test")]
    (tmp_path / "concepts").mkdir()
    path = tmp_path / "concepts" / "past_future.toml"
    path.write_text("\n".join([f"pairs = {json.dumps(pairs)}", *lists]), encoding="utf-8")
    assert judge(exercise, concept, given).word == "right"
    monkeypatch.chdir(tmp_path)
    for turn in (1, -1):
        same_pairs = [[side.upper() for side in pair[::turn]] for pair in pairs]
        word, text = judge(exercise, replace(concept, pairs=same_pairs), given)
        assert word == "not yet" and "'past_future', which came with the series" in text


@pytest.mark.parametrize("answer", [..., None, lambda: ..., lambda x: None])
def test_untouched(answer):
    assert untouched(answer)


def test_code_that_only_looks_like_the_stub_is_touched():
    def stub(x):
        """Said."""
        return x + 1

    def other(y):
        return y + 2

    def renamed(x):
        return x + 1

    assert untouched(renamed, stub) and not untouched(other, stub) and not untouched(lambda: 3)


def test_a_text_is_part_of_the_code_and_documentation_is_not():
    def stub(x):
        """Said."""
        return x.split(" ")

    def other(x):
        """Said."""
        return x.split(",")

    def without(x):
        return x.split(" ")

    def text():
        return "True"

    def two():
        return "one", "two"

    assert untouched(without, stub) and not untouched(other, stub)
    assert not untouched(text) and not untouched(two)


def module_stub(x):
    return torch.stack([x])


def test_a_stub_is_known_in_a_notebook_whatever_its_module_imports():
    defined = {"torch": torch}
    exec(inspect.getsource(module_stub), defined)
    assert untouched(defined["module_stub"], module_stub)
    exec(inspect.getsource(module_stub).replace("stack", "cat"), defined)
    assert not untouched(defined["module_stub"], module_stub)


def test_hooks_of_transformers_are_no_fault(doubled):
    """It hangs up its own at the first output_hidden_states, and trusts them from then on."""
    model = new_model("llama")

    def answer(model, ids):
        states = model(ids, output_hidden_states=True).hidden_states
        return 2 * model.lm_head(states[-1])[0, -1]

    for _ in range(2):
        assert judge(doubled, answer, (model,)).word == "right"


def test_right_is_kept(doubled, capsys):
    model = new_model()
    check("99.1", doubled.mistakes[0][1], model)
    assert record.read()["exercises"] == {"99.1": "not yet"}
    check("99.1", doubled.right, model)
    check("99.1", doubled.mistakes[0][1], model)
    assert record.read()["exercises"] == {"99.1": "right"}
    assert "✓ 99.1 right: well." in capsys.readouterr().out


def test_an_unknown_number_is_refused():
    for call in (check, hint, solution):
        with pytest.raises(SteeringError, match="No exercise has the number '7.99'. There are: "):
            call("7.99")
    assert find("4.1") is find(4.1)


# -- Predictions and the record


def test_the_first_guess_counts(capsys):
    predict("5.1", ...)
    compare("5.1", ...)
    compare("5.1", a=True, b=False)
    assert capsys.readouterr().out == "prediction 5.1: it is a, and you made no guess\n"
    predict(5.1, "B")
    predict("5.1", "a")
    assert capsys.readouterr().out == '5.1: your first guess, "b", counts.\n'
    compare("5.1", a=torch.tensor(True), b=False)
    assert capsys.readouterr().out == "prediction 5.1: it is a, you guessed b\n"
    predict("5.2", "c")
    compare("5.2", "C")
    score("5")
    assert "2 made, 1 came out as you guessed" in capsys.readouterr().out


@pytest.mark.parametrize("guess", ["", "ab", 3, "?", True])
def test_a_guess_is_a_letter(guess):
    with pytest.raises(SteeringError, match="A guess is a letter"):
        predict("5.1", guess)
    with pytest.raises(SteeringError, match="A guess is a letter"):
        compare("5.1", guess)


@pytest.mark.parametrize("answers", [{"a": True, "b": True}, {"a": False}])
def test_exactly_one_answer_comes_out(answers):
    with pytest.raises(SteeringError, match="came out"):
        compare("5.1", **answers)


def test_progress_over_all_notebooks(capsys):
    predict("4.1", "a")
    compare("4.1", a=True)
    record.keep_outcome("4.2", "right")
    main()
    shown = capsys.readouterr().out
    [row] = [line for line in shown.splitlines() if line.split()[:1] == ["4"]]
    assert f"1 of {sum(n.startswith('4.') for n in ALL)}" in row and "1 of 1" in row
    assert "4.1" in row and "4.2" not in row
    assert str(record.path()) in shown


def test_a_damaged_record_is_said_and_begun_anew():
    record.path().write_text("{half", encoding="utf-8")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert record.read() == {"exercises": {}, "predictions": {}}
    with pytest.warns(UserWarning, match="cannot be read"):
        predict("5.1", "a")
    assert record.read()["predictions"] == {"5.1": {"guess": "a"}}


def test_a_record_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEERING_PROGRESS", str(tmp_path / "file" / "progress.json"))
    with pytest.warns(UserWarning, match="cannot be kept"):
        predict("5.1", "a")
    assert not list(tmp_path.glob("*.tmp"))
