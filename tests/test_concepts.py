import json
import warnings
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from helpers.concepts import BUNDLED, SENTIMENT, Concept, load_concept
from helpers.directions import find_vectors
from helpers.evaluation import balanced_prompts, judge, log_odds, word_ids
from helpers.folklore import trial
from helpers.generation import generate
from helpers.models import SteeringError
from helpers.pairs import check_pairs
from helpers.sweeps import sweep, sweep_damage
from tiny_models import tiny_model, tokenizer

FIELDS = [field.name for field in fields(Concept)]
NEEDED = ["pairs", "positive_words", "negative_words", "dev_prompts", "test_prompts"]
OPTIONAL = [name for name in FIELDS if name not in NEEDED]
# What each of the others is if nobody gives it; name and sides are never empty.
EMPTY = {name: [] for name in OPTIONAL} | {"follow_up": "", "judge": None}
del EMPTY["name"], EMPTY["sides"]
BUNDLED_TEXTS = json.loads(BUNDLED.read_text(encoding="utf-8"))


def words_of(text):
    return text.lower().replace(".", "").replace(",", "").split()


def contrast_words(pairs):
    """The words that stand on one side of a pair only."""
    contrast = set()
    for positive, negative in pairs:
        contrast |= set(words_of(positive)) ^ set(words_of(negative))
    return contrast


def write(folder, leave_out=(), **changes):
    """A concept file: the bundled one with some fields changed or left out."""
    path = folder / "own.json"
    texts = {name: x for name, x in {**BUNDLED_TEXTS, **changes}.items() if name not in leave_out}
    path.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    return path


# -- The bundled concept


def test_nothing_measured_was_used_to_find_the_direction():
    contrast = contrast_words(SENTIMENT.pairs)
    assert len(contrast) == 16
    prompts = SENTIMENT.dev_prompts + SENTIMENT.test_prompts
    for text in [*prompts, *SENTIMENT.sentences, *sum(SENTIMENT.words, [])]:
        assert not contrast & set(words_of(text)), text
    beginnings = []
    for positive, negative in SENTIMENT.pairs:
        both = list(zip(words_of(positive), words_of(negative), strict=True))
        beginnings.append([a for a, b in both[: [a == b for a, b in both].index(False)]])
    for prompt in prompts:
        for beginning in beginnings:
            assert words_of(prompt)[: len(beginning)] != beginning, prompt


def test_mistake_16_choosing_and_reporting_prompts_are_disjoint():
    assert not set(SENTIMENT.dev_prompts) & set(SENTIMENT.test_prompts)
    for prompts in (SENTIMENT.dev_prompts, SENTIMENT.test_prompts):
        assert len(set(prompts)) == len(prompts)
    assert len(SENTIMENT.test_prompts) >= 40


@pytest.mark.parametrize("field", ["dev_prompts", "test_prompts"])
def test_mistake_16_a_concept_that_reports_what_it_chose_on_is_refused(field):
    prompts = [*getattr(SENTIMENT, field), "The soup was"]
    assert replace(SENTIMENT, **{field: prompts}).name == "sentiment"
    borrowed = {"dev_prompts": SENTIMENT.test_prompts, "test_prompts": SENTIMENT.dev_prompts}
    with pytest.raises(SteeringError, match="both to choose and to report") as error:
        replace(SENTIMENT, **{field: [*prompts, borrowed[field][3]]})
    assert repr([borrowed[field][3]]) in str(error.value)
    assert "Take them out of dev_prompts or test_prompts" in str(error.value)


@pytest.mark.parametrize("field", ["dev_questions", "test_questions"])
def test_mistake_16_questions_choose_or_report(field):
    borrowed = {
        "dev_questions": SENTIMENT.test_questions,
        "test_questions": SENTIMENT.dev_questions,
    }
    with pytest.raises(SteeringError, match="questions that would serve both .*dev_questions or"):
        replace(SENTIMENT, **{field: [*getattr(SENTIMENT, field), borrowed[field][3]]})


def test_questions_and_instructions_give_nothing_away():
    measured = {*contrast_words(SENTIMENT.pairs), *sum(SENTIMENT.words, [])}
    for text in [*SENTIMENT.dev_questions, *SENTIMENT.test_questions]:
        assert not measured & set(words_of(text)), text
    for text in [*SENTIMENT.positive_instructions, *SENTIMENT.negative_instructions]:
        assert not measured & set(words_of(text)), text
    assert len(SENTIMENT.dev_questions) == len(SENTIMENT.test_questions) == 12
    assert len(SENTIMENT.positive_instructions) == len(SENTIMENT.negative_instructions) == 5


def test_a_concept_may_go_without_questions():
    fields = ("dev_questions", "test_questions", "positive_instructions", "negative_instructions")
    for nothing in ([], (), None):
        bare = replace(SENTIMENT, **dict.fromkeys(fields, nothing))
        assert [getattr(bare, field) for field in fields] == [[]] * 4
    with pytest.raises(SteeringError, match="dev_questions of 'sentiment'.*one string"):
        replace(SENTIMENT, dev_questions="What was it like?")


def test_what_nothing_needs_may_be_empty():
    bare = Concept("bare", **{name: getattr(SENTIMENT, name) for name in NEEDED})
    assert bare.sides == ["positive", "negative"]
    assert {name: getattr(bare, name) for name in EMPTY} == EMPTY
    for name, empty in EMPTY.items():
        for nothing in (None, (), [], ""):
            assert getattr(replace(SENTIMENT, **{name: nothing}), name) == empty
    for name in ("name", *NEEDED):
        given = {field: getattr(SENTIMENT, field) for field in FIELDS if field != name}
        with pytest.raises(TypeError, match=name):
            Concept(**given)


def test_word_lists_are_distinct_single_tokens_of_the_bundled_model():
    positive, negative = SENTIMENT.words
    assert len(positive) == len(negative)
    ids = word_ids(tokenizer(), positive + negative)
    assert len(set(ids)) == len(ids)
    assert [tokenizer().decode([i]) for i in ids] == [f" {word}" for word in positive + negative]


def test_sentences_are_distinct_and_balanced():
    assert len(SENTIMENT.positive_sentences) == len(SENTIMENT.negative_sentences)
    assert SENTIMENT.sentences == SENTIMENT.positive_sentences + SENTIMENT.negative_sentences
    assert len(set(SENTIMENT.sentences)) == len(SENTIMENT.sentences)


def test_more_pairs_are_usable_and_measured_by_none_of_their_words():
    pairs = SENTIMENT.pairs + SENTIMENT.more_pairs
    assert len(pairs) == 32  # enough to compare sixteen with sixteen others
    assert check_pairs(tokenizer(), pairs).valid == pairs
    assert len(SENTIMENT.varied_pairs) == len(SENTIMENT.pairs)
    texts = [text for pair in pairs + SENTIMENT.varied_pairs for text in pair]
    assert len(set(texts)) == len(texts)
    for pair in SENTIMENT.more_pairs + SENTIMENT.varied_pairs:
        assert not contrast_words([pair]) & set(sum(SENTIMENT.words, [])), pair
    measured = set(SENTIMENT.dev_prompts + SENTIMENT.test_prompts)
    assert not set(texts) & (measured | set(SENTIMENT.unrelated_prompts))
    assert not measured & set(SENTIMENT.unrelated_prompts)


def test_pair_prompts_are_those_of_one_side_and_then_of_the_other():
    positive, negative = zip(*SENTIMENT.pairs, strict=True)
    assert SENTIMENT.pair_prompts == [*positive, *negative]


@pytest.mark.parametrize("field", FIELDS)
def test_fields_are_frozen(field):
    with pytest.raises(FrozenInstanceError):
        setattr(SENTIMENT, field, getattr(SENTIMENT, field))


# -- A concept of one's own


def test_a_changed_concept_leaves_the_first_as_it_was():
    own = replace(SENTIMENT, name="size", positive_words=["big", "large"])
    assert own.words == (["big", "large"], SENTIMENT.negative_words)
    assert own.pairs == SENTIMENT.pairs and own.dev_prompts == SENTIMENT.dev_prompts
    assert (SENTIMENT.name, SENTIMENT.positive_words) == ("sentiment", load_concept().words[0])


def test_pairs_and_texts_of_any_kind_become_lists():
    pairs = [["We love it", "We hate it"], ("So warm", "So cold")]
    own = replace(SENTIMENT, pairs=iter(pairs), positive_words=("big", "large"), more_pairs=None)
    assert own.pairs == [tuple(pair) for pair in pairs]
    assert own.pair_prompts == ["We love it", "So warm", "We hate it", "So cold"]
    assert own.positive_words == ["big", "large"] and own.more_pairs == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive_words": "good"}, r"positive_words of 'sentiment': .*got one string"),
        ({"negative_words": []}, "negative_words of 'sentiment': .*is empty"),
        ({"negative_words": None}, "negative_words of 'sentiment'"),
        ({"positive_words": [1, 2]}, "positive_words of 'sentiment': Word 1 of 2 is no text"),
        ({"dev_prompts": ["The soup was", " "]}, "dev_prompts of 'sentiment': Prompt 2 of 2"),
        ({"test_prompts": "The soup was"}, "test_prompts of 'sentiment': .*one string"),
        ({"unrelated_prompts": [""]}, "unrelated_prompts of 'sentiment': .*is empty"),
        ({"negative_sentences": [""]}, "negative_sentences of 'sentiment': The sentence is empty"),
        ({"positive_requests": [None]}, "positive_requests of 'sentiment'"),
        ({"pairs": SENTIMENT.pairs[:1]}, "pairs of 'sentiment': give at least two"),
        ({"pairs": []}, "pairs of 'sentiment': give at least two"),
        ({"pairs": ["We love it", "We hate it"]}, "pairs of 'sentiment': Expected a pair"),
        ({"pairs": [("a", "b", "c")] * 2}, "pairs of 'sentiment': Expected a pair"),
        ({"pairs": [1, 2]}, "pairs of 'sentiment'"),
        ({"more_pairs": [("a", "a")]}, "more_pairs of 'sentiment': .*no contrast"),
        ({"varied_pairs": [("a", "")]}, "varied_pairs of 'sentiment': The prompt is empty"),
        ({"sides": ["positive"]}, "sides of 'sentiment': give two names"),
        ({"sides": ["up", "down", "left"]}, "sides of 'sentiment': give two names"),
    ],
)
def test_texts_that_cannot_be_used_are_refused_by_the_name_of_their_field(change, message):
    with pytest.raises(SteeringError, match=message):
        replace(SENTIMENT, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"sides": "ab"},
        {"sides": None},
        {"sides": ["", ""]},
        {"name": ""},
        {"name": None},
        {"follow_up": " "},
        {"judge": " "},
    ],
    ids=str,
)
def test_a_single_text_that_is_missing_is_refused(change):
    with pytest.raises(SteeringError):
        replace(SENTIMENT, **change)


# -- Concept files


def test_sentiment_is_the_default_and_what_the_bundled_file_says(monkeypatch):
    monkeypatch.delenv("STEERING_CONCEPT", raising=False)
    for source in (None, "", "sentiment", BUNDLED, str(BUNDLED)):
        concept = load_concept(source)
        assert {name: getattr(concept, name) for name in FIELDS} == {
            name: [tuple(pair) for pair in value] if name.endswith("pairs") else value
            for name, value in BUNDLED_TEXTS.items()
        }


@pytest.mark.parametrize("as_text", [True, False])
def test_a_file_of_one_s_own_is_read(tmp_path, as_text):
    path = write(tmp_path, leave_out=OPTIONAL, positive_words=["groß"])
    own = load_concept(str(path) if as_text else path)
    assert (own.name, own.positive_words) == ("own", ["groß"])
    assert own.sides == ["positive", "negative"]
    assert {name: getattr(own, name) for name in EMPTY} == EMPTY
    assert own.dev_prompts == SENTIMENT.dev_prompts
    assert load_concept(write(tmp_path, name="größe", sides=["groß", "klein"])).name == "größe"


def test_environment_names_the_concept_and_an_argument_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CONCEPT", str(write(tmp_path, name="own")))
    assert load_concept().name == load_concept(None).name == "own"
    assert load_concept("sentiment").name == "sentiment"


@pytest.mark.parametrize("field", NEEDED)
def test_a_missing_field_is_named(field, tmp_path):
    with pytest.raises(SteeringError, match=rf"own.json: missing fields \['{field}'\]") as error:
        load_concept(write(tmp_path, leave_out=[field]))
    assert "sentiment.json in the folder of helpers shows all of them" in str(error.value)


def test_an_unknown_field_is_named(tmp_path):
    with pytest.raises(SteeringError, match=r"missing fields \[\], unknown fields \['judges'\]"):
        load_concept(write(tmp_path, judges="vader"))


def test_fields_that_are_missing_or_unknown_are_all_named(tmp_path):
    path = write(tmp_path, leave_out=["pairs", "dev_prompts"], pair=[], possitive_words=["a"])
    expected = (
        r"missing fields \['dev_prompts', 'pairs'\], unknown fields \['pair', 'possitive_words'\]"
    )
    with pytest.raises(SteeringError, match=expected):
        load_concept(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negative_words": "bad"}, "negative_words of 'own': .*one string"),
        ({"test_prompts": None}, "test_prompts of 'own'"),
        ({"pairs": {"We love it": "We hate it"}}, "pairs of 'own'"),
        ({"dev_prompts": SENTIMENT.test_prompts}, "'own' has prompts .*to choose and to report"),
    ],
)
def test_a_file_with_texts_that_cannot_be_used_is_refused_by_field(change, message, tmp_path):
    with pytest.raises(SteeringError, match=message):
        load_concept(write(tmp_path, name="own", **change))


@pytest.mark.parametrize(
    "content", [None, b"", b"{'name': 'no JSON'}", b'{"name": "gr\xf6\xdfe"}', b'{"name": ']
)
def test_a_file_that_cannot_be_read_names_the_way_out(content, tmp_path):
    path = tmp_path / "own.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SteeringError, match="No concept could be read from .*own.json") as error:
        load_concept(path)
    assert "'sentiment', which is bundled" in str(error.value) and "(Cause: " in str(error.value)


def test_a_folder_is_no_concept(tmp_path):
    with pytest.raises(SteeringError, match="No concept could be read from"):
        load_concept(tmp_path)


@pytest.mark.parametrize("content", [[], ["pairs"], "sentiment", 3, None])
def test_a_file_of_another_form_is_refused(content, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SteeringError, match="own.json: expected an object with named fields"):
        load_concept(path)


# -- TOML, pairs from a CSV file, and changes

TOML = """
sides = ["warm", "cold"]
pairs = [["The soup is hot", "The soup is cold"], ["I like the summer", "I like the winter"]]
positive_words = ["bright", "größer"]
negative_words = ["wet"]  # a comment
dev_prompts = ["The street was"]
test_prompts = ["The beach was"]
"""


def write_toml(folder, text=TOML, encoding="utf-8"):
    path = folder / "warmth.toml"
    path.write_bytes(text.encode(encoding))
    return path


def with_pairs_from(file):
    """The TOML file with its pairs in another one."""
    return "\n".join(
        f'pairs = "{file}"' if line.startswith("pairs") else line for line in TOML.splitlines()
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_toml_file_is_read(tmp_path, encoding):
    own = load_concept(write_toml(tmp_path, TOML.replace("\n", "\r\n"), encoding))
    assert (own.name, own.sides) == ("warmth", ["warm", "cold"])
    assert own.pairs[1] == ("I like the summer", "I like the winter")
    assert own.words == (["bright", "größer"], ["wet"])


def test_toml_and_json_of_the_same_texts_are_the_same_concept(tmp_path):
    as_toml = "\n".join(f"{name} = {json.dumps(x)}" for name, x in BUNDLED_TEXTS.items())
    own = load_concept(write_toml(tmp_path, as_toml))
    assert all(getattr(own, name) == getattr(SENTIMENT, name) for name in FIELDS)


def test_a_mistake_in_toml_is_named_with_its_line(tmp_path):
    broken = TOML.replace('"wet"', '"wet')  # the first line of the file is empty
    with pytest.raises(SteeringError, match=r"No concept .*warmth\.toml.*\(Cause: .*at line 5"):
        load_concept(write_toml(tmp_path, broken))
    with pytest.raises(SteeringError, match=r"unknown fields \['positive_word'\]"):
        load_concept(write_toml(tmp_path, TOML + 'positive_word = "good"\n'))


def test_a_concept_in_another_encoding_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(SteeringError, match=r"warmth\.toml is not in UTF-8 .*save it as UTF-8"):
        load_concept(write_toml(tmp_path, encoding="latin-1"))


def test_changes_replace_fields_of_the_file(tmp_path):
    def length(texts):
        return [len(text) for text in texts]

    path = write_toml(tmp_path)
    own = load_concept(path, judge=length, sides=["hot", "icy"], name="heat", more_pairs=None)
    assert (own.judge, own.sides, own.name) == (length, ["hot", "icy"], "heat")
    assert judge(["ab", "c"], own.judge).tolist() == [2, 1]
    lacking = TOML.replace("dev_prompts", "#")
    assert load_concept(write_toml(tmp_path, lacking), dev_prompts=["We"]).dev_prompts == ["We"]
    assert load_concept(name="own", judge=None).pairs == SENTIMENT.pairs
    with pytest.raises(SteeringError, match=r"unknown fields \['judges'\]"):
        load_concept(path, judges="vader")
    with pytest.raises(SteeringError, match="positive_words of 'warmth': .*one string"):
        load_concept(write_toml(tmp_path), positive_words="good")


def test_pairs_of_all_kinds_may_be_in_csv_files_beside_the_concept(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.csv").write_text("warm,cold\nhot,icy\nfire,ice\n")
    (folder / "b.csv").write_text("negative;positive\nwinter;summer\n")
    more = 'more_pairs = "b.csv"\nvaried_pairs = "a.csv"\n'
    path = write_toml(folder, with_pairs_from("a.csv") + "\n" + more)
    monkeypatch.chdir(tmp_path)  # not where the file is
    own = load_concept(Path("mine/warmth.toml"))
    assert own.pairs == own.varied_pairs == [("hot", "icy"), ("fire", "ice")]
    assert own.more_pairs == [("summer", "winter")]
    changed = load_concept(path, more_pairs=Path("mine/a.csv"), varied_pairs="")
    assert (changed.more_pairs, changed.varied_pairs) == (own.pairs, [])
    (folder / "a.csv").unlink()  # no longer needed
    assert load_concept(path, pairs=own.pairs, varied_pairs=None).pairs == own.pairs


def test_a_csv_file_that_does_not_fit_the_concept_is_refused(tmp_path):
    path = write_toml(tmp_path, with_pairs_from("a.csv"))
    with pytest.raises(SteeringError, match=r"No pairs could be read from .*a\.csv"):
        load_concept(path)
    (tmp_path / "a.csv").write_text("hot,icy\na,b\n")
    with pytest.raises(SteeringError, match=r"a\.csv needs one column .*\['warm', 'cold'\] or"):
        load_concept(path)
    (tmp_path / "a.csv").write_text("warm,cold\na,b\n")
    with pytest.raises(SteeringError, match="pairs of 'warmth': give at least two"):
        load_concept(path)
    with pytest.raises(SteeringError, match="list of sides, got one string"):
        load_concept(path, sides="warm")


def test_rows_that_a_concept_leaves_out_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("warm,cold\na,b\nc,d\nc,\n")
    with pytest.warns(UserWarning, match=r"a\.csv: 2 of 3 rows .*line 4: an empty cell"):
        assert load_concept(write_toml(tmp_path, with_pairs_from("a.csv"))).pairs[1] == ("c", "d")


# -- A concept with what it needs and nothing else


def test_a_concept_of_the_needed_fields_alone_is_steered_and_measured(tmp_path):
    where = tiny_model(), tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = load_concept(write(tmp_path, leave_out=OPTIONAL))
        vectors = find_vectors(*where, own.pairs)
        expected = log_odds(*where, own.test_prompts)
        assert log_odds(*where, own.test_prompts, concept=own).equal(expected)
        swept = sweep(*where, own.test_prompts[:2], vectors, [-1.0, 1.0], own)
        assert swept.effect.shape == (len(vectors), 2, 2) and swept.effect.abs().min() > 0
        assert sweep_damage(*where, own.test_prompts[:2], vectors, [1.0]).shape[2] == 2
        assert len(balanced_prompts(*where, own, n=2)) == 2
        [text] = generate(*where, own.dev_prompts[:1], vectors[1], 2.0, max_new_tokens=3)
        assert text.base != text.steered
    with pytest.raises(SteeringError, match="no judge: give 'vader', a .*name or a function, to a"):
        judge([text.steered], own.judge)


def test_what_measures_with_an_empty_field_names_it_and_the_way_out(tmp_path):
    own = load_concept(write(tmp_path, leave_out=OPTIONAL))
    sentences = "'own' has no positive_sentences, negative_sentences: add them to its file"
    with pytest.raises(SteeringError, match=sentences):
        own.sentences  # noqa: B018
    with pytest.raises(SteeringError, match="has no negative_sentences: .*negative_sentences="):
        replace(SENTIMENT, negative_sentences=[]).sentences  # noqa: B018
    used = ("positive_sentences", "unrelated_prompts", "negative_requests", "judge")
    for name in used:
        with pytest.raises(SteeringError, match=f"'sentiment' has no {name}: add"):
            trial(tiny_model(), tokenizer(), replace(SENTIMENT, **{name: None}))
    assert SENTIMENT.need(*EMPTY) is None
