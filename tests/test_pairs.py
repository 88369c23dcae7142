import pytest

from helpers.concepts import SENTIMENT
from helpers.models import SteeringError
from helpers.pairs import check_pairs, split, tokens
from tiny_models import tokenizer

PAIRS = SENTIMENT.pairs
UNEQUAL = ("The food is delicious", "The food is not good at all")


def test_tokens_join_to_the_text():
    text = "The weather is beautiful"
    assert "".join(tokens(tokenizer(), text)) == text


def test_the_sentiment_pairs_all_match_on_the_bundled_tokenizer():
    report = check_pairs(tokenizer(), PAIRS, strict=True)
    assert len(report) == 8 and report.valid == PAIRS
    assert all(len(check.differing) == 1 for check in report)


def test_report_shows_a_table_and_where_lengths_part():
    report = check_pairs(tokenizer(), [PAIRS[0], UNEQUAL])
    head, rule, first, second, blank, *note, use = str(report).splitlines()
    assert head.split() == ["Positive", "Negative", "Match?"]
    assert set(rule) == {"-"} and not blank
    assert first.startswith(PAIRS[0][0]) and first.endswith("True (6 vs 6)")
    assert second.startswith(UNEQUAL[0]) and second.endswith(report[1].verdict)
    assert note[0] == f"{report[1].verdict}, different from position 3 on"
    assert "last token" in use and "mean" in use and "not position by position" in use
    assert report.valid == PAIRS[:1]
    assert report[0].match and not report[1].match
    assert report[1].positive_tokens == tokens(tokenizer(), UNEQUAL[0])
    assert report[1].differing == list(range(3, len(report[1].negative_tokens)))


def test_report_says_the_same_in_html_and_escapes_it():
    marked = ("The <b>food</b> is good", "The <b>food</b> is not good at all")
    html = check_pairs(tokenizer(), [PAIRS[0], marked])._repr_html_()
    assert html.count("<tr>") == 3 and html.count("<pre>") == 1
    assert "True (6 vs 6)" in html and PAIRS[0][0] in html
    assert "&lt;b&gt;food" in html and "<b>" not in html
    note, use = html.split("<pre>")[1].split("</pre>")
    assert use.startswith("<p>A pair of unequal lengths is usable at the last token")
    assert "different from position" in note and "&lt; | b | &gt;" in note
    equal = check_pairs(tokenizer(), PAIRS)
    assert equal._repr_html_() == equal._table._repr_html_() and repr(equal) == repr(equal._table)


def test_lengths_that_differ_are_refused_if_strict_with_both_token_lists():
    with pytest.raises(SteeringError) as error:
        check_pairs(tokenizer(), [PAIRS[0], UNEQUAL], strict=True)
    for text in UNEQUAL:
        pieces = " | ".join(token.strip() for token in tokens(tokenizer(), text))
        assert pieces in str(error.value)
    assert "Reword one of them" in str(error.value)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "list of pairs is empty"),
        ([("same", "same")], "Both prompts of a pair are 'same': there is no contrast"),
        ([("good", "")], r"The prompt is empty \(''\)"),
        ([("a", "b"), (" ", "c")], "Prompt 2 of 2 is empty"),
        (["ab"], r"Expected a pair \(positive, negative\), got 'ab'"),
        ([("a", "b", "c")], "Expected a pair"),
        ("ab", r"pairs must be a list of pairs \(positive, negative\), got 'ab'"),
    ],
)
def test_unusable_pairs(pairs, message):
    for use in (split, lambda pairs: check_pairs(tokenizer(), pairs)):
        with pytest.raises(SteeringError, match=message):
            use(pairs)


def test_split_keeps_the_order():
    positive, negative = split(iter(PAIRS))
    assert list(zip(positive, negative, strict=True)) == PAIRS
