import pytest

from helpers.evaluation import (
    DEV_PROMPTS,
    NEGATIVE_WORDS,
    POSITIVE_WORDS,
    TEST_PROMPTS,
    UNRELATED_PROMPTS,
)
from helpers.models import SteeringError
from helpers.pairs import (
    MORE_PAIRS,
    SENTIMENT_PAIRS,
    VARIED_PAIRS,
    check_pairs,
    split,
    tokens,
)
from tiny_models import tokenizer

UNEQUAL = ("The food is delicious", "The food is not good at all")


def test_tokens_join_to_the_text():
    text = "The weather is beautiful"
    assert "".join(tokens(tokenizer(), text)) == text


def test_the_sentiment_pairs_all_match_on_the_bundled_tokenizer():
    report = check_pairs(tokenizer(), SENTIMENT_PAIRS, strict=True)
    assert len(report) == 8 and report.valid == SENTIMENT_PAIRS
    assert all(len(check.differing) == 1 for check in report)


def test_report_shows_a_table_and_where_lengths_part():
    report = check_pairs(tokenizer(), [SENTIMENT_PAIRS[0], UNEQUAL])
    head, rule, first, second, blank, *note = str(report).splitlines()
    assert head.split() == ["Positive", "Negative", "Match?"]
    assert set(rule) == {"-"} and not blank
    assert first.startswith(SENTIMENT_PAIRS[0][0]) and first.endswith("True (6 vs 6)")
    assert second.startswith(UNEQUAL[0]) and second.endswith(report[1].verdict)
    assert note[0] == f"{report[1].verdict}, different from position 3 on"
    assert report.valid == SENTIMENT_PAIRS[:1]
    assert report[0].match and not report[1].match
    assert report[1].positive_tokens == tokens(tokenizer(), UNEQUAL[0])
    assert report[1].differing == list(range(3, len(report[1].negative_tokens)))


def test_lengths_that_differ_are_refused_if_strict_with_both_token_lists():
    with pytest.raises(SteeringError) as error:
        check_pairs(tokenizer(), [SENTIMENT_PAIRS[0], UNEQUAL], strict=True)
    for text in UNEQUAL:
        pieces = " | ".join(token.strip() for token in tokens(tokenizer(), text))
        assert pieces in str(error.value)
    assert "Reword one of them" in str(error.value)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "list of pairs is empty"),
        ([("same", "same")], "Both prompts of a pair are 'same': there is no contrast"),
        ([("good", "")], r"Prompt 0 is empty \(''\)"),
        ([("a", "b"), (" ", "c")], "Prompt 1 is empty"),
        (["ab"], r"Expected a pair \(positive, negative\), got 'ab'"),
        ([("a", "b", "c")], "Expected a pair"),
        ("ab", "Expected a pair"),
    ],
)
def test_unusable_pairs(pairs, message):
    for use in (split, lambda pairs: check_pairs(tokenizer(), pairs)):
        with pytest.raises(SteeringError, match=message):
            use(pairs)


def test_split_keeps_the_order():
    positive, negative = split(iter(SENTIMENT_PAIRS))
    assert list(zip(positive, negative, strict=True)) == SENTIMENT_PAIRS


def test_more_pairs_are_usable_and_measured_by_none_of_their_words():
    pairs = SENTIMENT_PAIRS + MORE_PAIRS
    assert len(pairs) == 32  # notebook 07 compares sixteen with sixteen others
    assert check_pairs(tokenizer(), pairs).valid == pairs
    assert len(VARIED_PAIRS) == len(SENTIMENT_PAIRS)
    texts = [text for pair in pairs + VARIED_PAIRS for text in pair]
    assert len(set(texts)) == len(texts)
    for pair in MORE_PAIRS + VARIED_PAIRS:
        first, second = (set(text.lower().replace(",", "").split()) for text in pair)
        assert not (first ^ second) & set(POSITIVE_WORDS + NEGATIVE_WORDS), pair
    assert not set(texts) & set(DEV_PROMPTS + TEST_PROMPTS + UNRELATED_PROMPTS)
    assert not set(UNRELATED_PROMPTS) & set(DEV_PROMPTS + TEST_PROMPTS)
