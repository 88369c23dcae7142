"""Exercises of notebook 10, your own concept."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from ..checks import SteeringError
from ..concepts import SENTIMENT, Concept, load_concept
from ..directions import SteeringVector
from ..evaluation import word_ids
from ..pairs import tokens
from .exercise import Exercise, Fault

# -- 10.1 · Counted words in the pairs

leaking = Exercise(
    "10.1",
    "write",
    minutes=6,
    difficulty=2,
    why="a vector that carries a counted word pulls on it whether it knows the concept or not.",
    hints=(
        "Make one set of all words that stand in the pairs, in small letters and without what "
        "sticks to them. Then go through the counted words.",
        '`word.strip(".,").lower()` for each word of `prompt.split()`, for each prompt of '
        "`concept.pair_prompts`.",
    ),
)

_BLANK = Concept(
    "a little concept",
    pairs=[("We ate", "We eat"), ("They slept", "They sleep")],
    positive_words=["was", "had"],
    negative_words=["will", "may"],
    dev_prompts=["The cat"],
    test_prompts=["The dog"],
)


def _little(*pair, **changes):
    """A concept with one more pair, and other changes."""
    return replace(_BLANK, pairs=[*_BLANK.pairs, pair], **changes)


_LITTLE = {
    "pairs without a counted word": _BLANK,
    '"had" and "will" within a sentence': _little("So he had one", "So he will get one"),
    '"will" in both prompts of a pair': _little("He will cook", "He will eat"),
    '"may" in the first prompt and "had" in the second': _little("They may sing", "They had sung"),
    '"willow" and "hadn\'t"': _little("The willow grew", "We hadn't a wasp"),
    '"Will" at the beginning': _little("We said no", "Will we say yes"),
    '"had" before a comma': _little("What he had, he ate", "What he has, he eats"),
    '"may" before a full stop': _little("I thought I might.", "I think I may."),
    'the counted word "May", and "may" in a pair': _little(
        "We left in the spring", "We may leave", negative_words=["May"]
    ),
    '"had" and "may" in the prompts alone': replace(
        _BLANK, dev_prompts=["The cat had"], test_prompts=["The dog may"]
    ),
}


@leaking.tried_by
def _in_little_concepts(leaking_words):
    """The answer for concepts that tell the mistakes apart."""
    found = {case: leaking_words(concept) for case, concept in _LITTLE.items()}
    return {case: sorted(x) if isinstance(x, list | tuple) else x for case, x in found.items()}


@leaking.solution
def leaking_words(concept):
    in_pairs = {w.strip(".,").lower() for p in concept.pair_prompts for w in p.split()}
    counted = concept.positive_words + concept.negative_words
    return {word for word in counted if word.lower() in in_pairs}


def _leaking(concept, prompts=None, counted=None):
    """What the solution finds in other prompts, or of other words."""
    prompts = concept.pair_prompts if prompts is None else prompts
    counted = sum(concept.words, []) if counted is None else counted
    other = {"pair_prompts": prompts, "positive_words": list(counted), "negative_words": []}
    return leaking_words(SimpleNamespace(**other))


@leaking.mistake(
    'it finds "will" in "willow": `in` asks of two texts whether the one is a part of the other. '
    "Cut the prompts into words first."
)
def _within_words(concept):
    text = " ".join(concept.pair_prompts).lower()
    return {word for word in sum(concept.words, []) if word.lower() in text}


@leaking.mistake(
    "it finds nothing at all: a pair is a tuple of two prompts, and each prompt is a text. Go "
    "through the words of each prompt."
)
def _nothing_found(concept):
    return set()


@leaking.mistake("only the first prompt of each pair is searched: the second one leaks as well.")
def _first_side(concept):
    return _leaking(concept, prompts=[first for first, _ in concept.pairs])


@leaking.mistake("only the positive words are looked for: the negative ones are counted, too.")
def _positive_words(concept):
    return _leaking(concept, counted=concept.positive_words)


@leaking.mistake(
    "each list is looked for in its own side of the pairs: a word in the other side is in the "
    "vector as well, with the other sign."
)
def _own_side(concept):
    sides = zip(*concept.pairs, strict=True)
    both = zip(sides, concept.words, strict=True)
    return set().union(*(_leaking(concept, side, words) for side, words in both))


@leaking.mistake(
    'a word with a capital is missed, such as "Will" at the beginning of a prompt: compare both '
    "in small letters."
)
def _with_capitals(concept):
    in_pairs = {word.strip(".,") for prompt in concept.pair_prompts for word in prompt.split()}
    return {word for word in sum(concept.words, []) if word in in_pairs}


@leaking.mistake(
    'the prompts are in small letters, the counted words are not: "May" on a list is never found.'
)
def _prompts_lowered(concept):
    return {word for word in leaking_words(concept) if word == word.lower()}


@leaking.mistake(
    'between spaces stands "had," with its comma, and that is not the word "had": take full stop '
    "and comma off."
)
def _with_punctuation(concept):
    in_pairs = " ".join(concept.pair_prompts).lower().split()
    return {word for word in sum(concept.words, []) if word.lower() in in_pairs}


@leaking.mistake(
    "those are the right words, as a list: return a set, where each stands once and the order does "
    "not matter."
)
def _a_list(concept):
    return sorted(leaking_words(concept))


@leaking.mistake(
    "it searches the prompts that measure: the vector is made from the pairs, so search them."
)
def _in_the_prompts(concept):
    return _leaking(concept, prompts=concept.dev_prompts + concept.test_prompts)


@leaking.mistake("the right words, but return each as its list spells it, capitals included.")
def _in_small_letters(concept):
    return {word.lower() for word in leaking_words(concept)}


# -- 10.2 · Little words in longer ones

miscounted = Exercise(
    "10.2",
    "find the bug",
    minutes=4,
    difficulty=2,
    given=("FRENCH",),
    why="a judge is a piece of code like any other: try it on texts whose verdict you know.",
    hints=(
        'What is `"the place".count("la")`?',
        "First cut the text into words: `re.findall` in `languages` does. Then count those that "
        "are in `FRENCH`.",
    ),
)

FRENCH = set()  # the notebook's own, at each check: the code below knows it by this name

_REVIEWS = (
    "The people at this place were pleasant, unlike the last one.",
    "le vin est bon dans ce bar",
    "Il pleut sur la ville.",
    "Prends la, pas ici: elle dort, et moi non plus, du tout, et",
    "la salle, la carte, la cave: la maison",
    "Ce fut un triste film, un vrai roman; voici la fin du livre",
    "Un nouveau modèle",
    "Nothing",
)


@miscounted.tried_by
def _of_reviews(french_words, french):
    """The count of each review."""
    FRENCH.clear()
    FRENCH.update(french)
    counts = french_words(list(_REVIEWS))
    counts = counts.tolist() if hasattr(counts, "tolist") else counts
    if not isinstance(counts, list | tuple) or len(counts) != len(_REVIEWS):
        got = f"{len(counts)} entries" if isinstance(counts, list | tuple) else "no list"
        raise TypeError(
            f"for {len(_REVIEWS)} texts it gives {got}: give a list, one number for each"
        )
    return {repr(text): count for text, count in zip(_REVIEWS, counts, strict=True)}


@miscounted.begins_with
def french_words(texts):
    return [sum(text.lower().count(word) for word in FRENCH) for text in texts]


@miscounted.solution
def whole_french_words(texts):
    found = [re.findall(r"[^\W\d_]+", text.lower()) for text in texts]
    return [sum(word in FRENCH for word in words) for words in found]


@miscounted.mistake(
    'a word before a comma or a full stop is missed: between spaces stands "la,", and that is not '
    "in FRENCH. Take the letters alone."
)
def _at_spaces(texts):
    return [sum(word in FRENCH for word in text.lower().split()) for text in texts]


@miscounted.mistake(
    "each word of FRENCH is counted once, however often it stands in a text: every one counts."
)
def _each_once(texts):
    found = [re.findall(r"[^\W\d_]+", text.lower()) for text in texts]
    return [len(FRENCH.intersection(words)) for words in found]


@miscounted.mistake(
    "with a space on both sides, a word at the beginning or the end of a text is missed, and one "
    "before a comma."
)
def _between_spaces(texts):
    return [sum(text.lower().count(f" {word} ") for word in FRENCH) for text in texts]


@miscounted.mistake('a space in front only: "le" is still found at the beginning of "left".')
def _space_before(texts):
    return [sum(f" {text.lower()}".count(f" {word}") for word in FRENCH) for text in texts]


@miscounted.mistake('a space behind only: "la" is still found at the end of "villa".')
def _space_behind(texts):
    return [sum(f"{text.lower()} ".count(f"{word} ") for word in FRENCH) for text in texts]


@miscounted.mistake('a word with a capital is missed: "Il" at the beginning of a text is "il".')
def _capitals_matter(texts):
    found = [re.findall(r"[^\W\d_]+", text) for text in texts]
    return [sum(word in FRENCH for word in words) for words in found]


@miscounted.mistake(
    'letters with an accent are taken for the end of a word: "modèle" becomes "mod" and "le".'
)
def _plain_letters(texts):
    found = [re.findall(r"[a-z]+", text.lower()) for text in texts]
    return [sum(word in FRENCH for word in words) for words in found]


@miscounted.mistake("that is a share of all words: how many are in FRENCH is asked for.")
def _a_share(texts):
    found = [re.findall(r"[^\W\d_]+", text.lower()) for text in texts]
    return [sum(word in FRENCH for word in words) / max(len(words), 1) for words in found]


# -- 10.3 · What two vectors have in common

out = Exercise(
    "10.3",
    "write",
    minutes=5,
    difficulty=2,
    given=("positive", "past"),
    why="what is left has a dot product of 0 with the direction, and nothing else is lost.",
    hints=(
        "How long is the part of `vector.raw` that points along `other`? One number: a dot "
        "product with a vector of length 1.",
        "That number times `other.direction` is the part; `vector.raw` less the part is the rest.",
    ),
)


@out.tried_by
def _of_several(projected_out, vector, other):
    """The answer for what is given, and for two vectors of other lengths that share a part."""
    one, two = torch.randn(2, len(vector.direction), generator=torch.Generator().manual_seed(0))
    long = vector.like(3 * one / one.norm(), "made up")
    short = vector.like(0.4 * (two / two.norm() - one / one.norm()), "made up")
    cases = {
        "the two that you gave": (vector, other),
        "a long vector and a short one": (long, short),
        "a short vector and a long one": (short, long),
    }
    return {case: _raw(projected_out(*both)) for case, both in cases.items()}


def _raw(answer):
    if isinstance(answer, SteeringVector):
        raise TypeError(
            "it gives a SteeringVector, and its raw vector is wanted: a tensor [d_model]"
        )
    return answer


@out.solution
def projected_out(vector, other):
    along = vector.raw @ other.direction
    return vector.raw - along * other.direction


@out.mistake(
    "the length of `other` enters twice: once in the dot product and once in what is subtracted. "
    "Its direction, of length 1, is meant in both."
)
def _raw_twice(vector, other):
    return vector.raw - (vector.raw @ other.raw) * other.raw


@out.mistake(
    "`other.raw` and `other.direction` are used once each: the part comes out too long or too "
    "short by the length of `other`. Take the direction, of length 1, both times."
)
def _raw_subtracted(vector, other):
    return vector.raw - (vector.raw @ other.direction) * other.raw


@out.mistake(
    "all of `other` is subtracted, however much or little the two have in common: first measure "
    "the part."
)
def _whole(vector, other):
    return vector.raw - other.raw


@out.mistake(
    "one whole length of `other`'s direction is subtracted: how much of it is in `vector`?"
)
def _whole_direction(vector, other):
    return vector.raw - other.direction


@out.mistake("that is the part along `other`: the rest was asked for.")
def _the_part(vector, other):
    return vector.raw - projected_out(vector, other)


@out.mistake(
    "the length is lost: it starts from `vector.direction`, and the rest of `vector.raw` is wanted."
)
def _of_the_direction(vector, other):
    return projected_out(vector, other) / vector.raw_norm


@out.mistake(
    "`vector.raw` is used once and `vector.direction` once: both times the raw vector is meant."
)
def _cosine(vector, other):
    return vector.raw - (vector.direction @ other.direction) * other.direction


@out.mistake("the rest is right but for its length, which was made 1: leave it as it comes out.")
def _of_length_1(vector, other):
    rest = projected_out(vector, other)
    return rest / rest.norm()


@out.mistake(
    "the rest is right but for its length: what was taken out is gone, so it is shorter than "
    "before. Leave it so."
)
def _of_the_old_length(vector, other):
    return vector.raw_norm * _of_length_1(vector, other)


@out.mistake("the part is added, so that the two have twice as much in common: subtract it.")
def _added(vector, other):
    return 2 * vector.raw - projected_out(vector, other)


@out.mistake(
    "a number is subtracted from every entry: the part is a vector, that number times the "
    "direction of `other`."
)
def _number_subtracted(vector, other):
    return vector.raw - vector.raw @ other.direction


@out.mistake("the two are swapped: that is `other` without its part along `vector`.")
def _swapped(vector, other):
    return projected_out(other, vector)


@out.mistake(
    "`*` multiplies entry by entry, and leaves a vector: a dot product is one number, by `@`."
)
def _entry_by_entry(vector, other):
    return vector.raw - vector.raw * other.direction * other.direction


# -- 10.4 · An honest concept

own = Exercise(
    "10.4",
    "write",
    minutes=20,
    difficulty=3,
    given=("tokenizer",),
    why="whatever you measure with it now, no word or prompt that its texts share has made it.",
    hints=(
        "Copy past_future.toml and past_future.csv, and change what is in them. Begin with the "
        "words: common ones, some for each side, that could come next after the same prompt.",
        "Then the pairs, without those words, and prompts that lean to neither side. "
        "`usable_words(tokenizer, my_concept)` says which words cannot be counted.",
    ),
)

LEAST, LEAST_WORDS = 5, 3  # texts of each kind, countable words of each side


@own.looked_at_by
def _first_fault(concept, tokenizer):
    """What is wrong first with a concept as an instrument, or None."""
    if not isinstance(concept, Concept):
        kind = type(concept).__name__
        raise TypeError(
            f"a Concept is wanted, which load_concept(...) makes of a file; this is a {kind}"
        )
    tokens(tokenizer, "a")  # says so if that is no tokenizer
    looks = (_of_the_series, _too_few, _pair_again, _leak, _in_a_prompt, _prompt_again)
    faults = (look(concept) for look in looks)
    return next(filter(None, faults), None) or _too_few_words(concept, tokenizer)


def _simple(text):
    """A text in small letters, with single spaces, and without a full stop at its end."""
    return " ".join(text.casefold().split()).rstrip(". ")


def _of_the_series(concept):
    files = [Path("concepts", f"{name}.toml") for name in ("past_future", "french_english")]
    pairs = [{*map(_simple, pair)} for pair in concept.pairs]
    for known in [SENTIMENT, *(load_concept(file) for file in files if file.exists())]:
        theirs = [{*map(_simple, pair)} for pair in known.pairs + known.more_pairs]
        if 2 * sum(pair in theirs for pair in pairs) > len(pairs):
            return Fault("of the series", (known.name,))


def _too_few(concept):
    for name in ("pairs", "dev_prompts", "test_prompts"):
        if (n := len(getattr(concept, name))) < LEAST:
            return Fault("too few", (name.replace("_", " "), n, LEAST))


def _pair_again(concept):
    seen = set()
    for pair in concept.pairs:
        plus, minus = map(_simple, pair)
        if (minus, plus) in seen:
            return Fault("swapped", (pair,))
        if (plus, minus) in seen:
            return Fault("pair twice", (pair,))
        seen.add((plus, minus))


def _standing(words, prompts):
    """The first of some words that stands in one of the prompts, and that prompt; or None."""
    for prompt in prompts:
        for word in words:
            if (parts := _parts(word)) and parts <= _parts(prompt):
                return word, prompt


def _parts(text):
    """The words of a text in small letters, also those joined by hyphens or apostrophes."""
    return set(re.findall(r"\w+", text.casefold()))


def _leak(concept):
    found = _standing(sum(concept.words, []), concept.pair_prompts)
    return found and Fault("in a pair", found)


def _in_a_prompt(concept):
    for what, words in (
        ("counted word", sum(concept.words, [])),
        ("name of a side", concept.sides),
    ):
        for half in ("dev", "test"):
            if found := _standing(words, getattr(concept, f"{half}_prompts")):
                word, prompt = found
                return Fault("in a prompt", (what, word, half, prompt))


def _prompt_again(concept):
    seen = {}
    for half in ("dev", "test"):
        for prompt in getattr(concept, f"{half}_prompts"):
            if (simple := _simple(prompt)) not in seen:
                seen[simple] = half, prompt
            elif seen[simple][0] == half:
                return Fault("prompt twice", (half, prompt, seen[simple][1]))
            else:
                return Fault("in both halves", (prompt, seen[simple][1]))


def _too_few_words(concept, tokenizer):
    first, second = ({_token(tokenizer, w): w for w in words} for words in concept.words)
    for side, words, others in ((0, first, second), (1, second, first)):
        kept = [word for token, word in words.items() if token is not None and token not in others]
        if len(kept) < LEAST_WORDS:
            rest = [word for word in concept.words[side] if word not in kept]
            unfit = f" (not {', '.join(map(repr, rest))})" if rest else ""
            return Fault("too few words", (concept.sides[side], len(kept), unfit, LEAST_WORDS))


def _token(tokenizer, word):
    """The one token of a word inside a sentence, or None."""
    try:
        return word_ids(tokenizer, [word])[0]
    except SteeringError:
        return None


@own.solution
def my_concept(tokenizer):
    return Concept(
        name="sea_mountains",
        sides=("sea", "mountains"),
        pairs=[
            ("We sailed along the coast", "We climbed to the summit"),
            ("He grew up in a harbour town", "He grew up in an alpine village"),
            ("The captain watched the tide", "The guide watched the glacier"),
            ("She loves to swim and dive", "She loves to hike and climb"),
            ("The wind came from the ocean", "The wind came from the peaks"),
        ],
        positive_words=["sea", "ship", "boat", "beach", "sand"],
        negative_words=["mountain", "snow", "rock", "forest", "valley"],
        dev_prompts=[
            "From the window you can see the",
            "They walked slowly towards the",
            "The children played near the",
            "Behind the last house there is a",
            "In the morning we left for the",
        ],
        test_prompts=[
            "The old man painted the",
            "The road ends at the",
            "My uncle told us about the",
            "On the first day we saw the",
            "The photograph shows a",
        ],
    )


def _with(tokenizer, **changes):
    """The solution's concept with other texts."""
    return replace(my_concept(tokenizer), **changes)


@own.mistake(
    "most of its pairs are those of {!r}, which came with the series and was tried before you met "
    "it. Give yours pairs, and a file, of its own."
)
def _sentiment(tokenizer):
    return SENTIMENT


@own.mistake(
    "too few {}: {}, and {} are the least: among so few, one odd text decides what comes out."
)
def _four_prompts(tokenizer):
    return _with(tokenizer, test_prompts=my_concept(tokenizer).test_prompts[:4])


@own.mistake(
    "the pair {} is there the other way round, too: their differences cancel, and which side the "
    "vector points to is left open."
)
def _turned_pair(tokenizer):
    pairs = my_concept(tokenizer).pairs
    return _with(tokenizer, pairs=[*pairs, pairs[0][::-1]])


@own.mistake(
    "the pair {} is there twice, but for capitals, spaces or a full stop: it weighs double in the "
    "vector, and you have a pair less than you count."
)
def _pair_in_capitals(tokenizer):
    pairs = my_concept(tokenizer).pairs
    return _with(tokenizer, pairs=[*pairs, tuple(side.upper() for side in pairs[0])])


@own.mistake(
    "the counted word {!r} stands in the pairs, in {!r}: the vector may carry that word instead of "
    "the concept, and the log-odds count it."
)
def _word_in_a_pair(tokenizer):
    pairs = [("They live by the sea.", "They live in the hills.")]
    return _with(tokenizer, pairs=my_concept(tokenizer).pairs + pairs)


@own.mistake(
    "the {} {!r} stands in the {} prompt {!r}: a model goes on with what it has read, so the "
    "prompt brings the matter up before any push does."
)
def _word_in_a_prompt(tokenizer):
    prompts = my_concept(tokenizer).dev_prompts
    return _with(tokenizer, dev_prompts=[*prompts, "Of all mountains I like the"])


@own.mistake(
    "the test prompt {!r} is the dev prompt {!r}, but for capitals, spaces or a full stop: what is "
    "chosen by a prompt cannot be reported on it."
)
def _prompt_in_both(tokenizer):
    concept = my_concept(tokenizer)
    prompts = [*concept.test_prompts, concept.dev_prompts[0].lower()]
    return _with(tokenizer, test_prompts=prompts)


@own.mistake(
    "the {} prompts {!r} and {!r} are one, but for capitals, spaces or a full stop: it weighs "
    "double, and the interval comes out narrower than it is."
)
def _prompt_twice(tokenizer):
    prompts = my_concept(tokenizer).test_prompts
    return _with(tokenizer, test_prompts=[*prompts, f"{prompts[0]}."])


@own.mistake(
    "for {!r} only {} of the words can be counted here, as one token that is on this side only{}. "
    "{} are the least: else the log-odds hang on a single word."
)
def _long_words(tokenizer):
    words = ["sea", "ship", "lighthouse keepers", "beachcombers"]
    return _with(tokenizer, positive_words=words)
