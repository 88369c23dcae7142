"""Exercises of notebook 01, contrastive pairs."""

from itertools import zip_longest

from ..pairs import check_pairs
from .exercise import Exercise, Explanation

# -- 1.1 · Equally long?

equally_long = Exercise(
    "1.1",
    "write",
    minutes=4,
    difficulty=1,
    given=("tokenizer",),
    why="what the model gets are tokens, so only they can line up.",
    hints=(
        "What should be counted: characters, words or tokens?",
        '`tokenizer(prompt)["input_ids"]` is the list of a prompt\'s tokens; `==` compares two '
        "lengths and gives True or False.",
    ),
)


@equally_long.tried_by
def _of_some_pairs(same_length, tokenizer):
    """Pairs for which the words, the characters and the tokens say different things."""
    pairs = [
        ("I think it is good", "I think it is bad"),
        ("It was fun", "It was bad"),
        ("The food was good", "The food was good!"),
        ("It is a joy", "It is a joy for all of us"),
        ("We liked it", "We liked it"),
    ]
    return {str(pair): same_length(tokenizer, pair) for pair in pairs}


@equally_long.solution
def same_length(tokenizer, pair):
    plus, minus = pair
    return len(tokenizer(plus)["input_ids"]) == len(tokenizer(minus)["input_ids"])


@equally_long.mistake("words are counted: a word may be several tokens, and `!` is one of its own.")
def _words(tokenizer, pair):
    return len(pair[0].split()) == len(pair[1].split())


@equally_long.mistake("characters are counted: `good` is longer than `bad`, and both are a token.")
def _characters(tokenizer, pair):
    return len(pair[0]) == len(pair[1])


@equally_long.mistake(
    "it says True of every pair: `tokenizer(…)` is a dictionary with as many entries for any "
    'prompt, and each prompt has its own ["input_ids"], the list of its tokens.'
)
def _entries(tokenizer, pair):
    return len(tokenizer(pair[0])) == len(tokenizer(pair[1]))


@equally_long.mistake("the tokens themselves are compared: their number is asked for.")
def _tokens_themselves(tokenizer, pair):
    return tokenizer(pair[0])["input_ids"] == tokenizer(pair[1])["input_ids"]


@equally_long.mistake("it says True where the lengths differ: that is the wrong way round.")
def _turned(tokenizer, pair):
    return not same_length(tokenizer, pair)


@equally_long.mistake(
    "it gives a number: compare the two lengths, so that True or False comes out."
)
def _a_difference(tokenizer, pair):
    plus, minus = pair
    return len(tokenizer(plus)["input_ids"]) - len(tokenizer(minus)["input_ids"])


# -- 1.2 · Love and Hate

love_and_hate = Exercise(
    "1.2",
    "predict",
    minutes=2,
    difficulty=1,
    given=("tokenizer",),
    why="the same word is another token after a space, or none at all: look before you pair.",
    hints=(
        "Is a token for `Hate` without a space in front as useful as one for ` hate`?",
        'Print tokens_of("Love"), tokens_of("Hate") and tokens_of("We still hate").',
    ),
)


@love_and_hate.solution
def token_counts(tokenizer):
    whole = [
        len(tokenizer(text)["input_ids"]) for text in ("Love", "Hate", "We still hate", "We still")
    ]
    return whole[0], whole[1], whole[2] - whole[3]


@love_and_hate.mistake(
    "a word is not always a token: at least one of these is cut into pieces where a text begins."
)
def _a_word_a_token(tokenizer):
    return 1, 1, 1


@love_and_hate.mistake("the third is the number for the whole text: leave out the words before.")
def _the_whole_text(tokenizer):
    love, hate, _ = token_counts(tokenizer)
    return love, hate, len(tokenizer("We still hate")["input_ids"])


@love_and_hate.mistake(
    "the space belongs to the token that follows it: inside a text the word need not be cut as it "
    "is at the beginning."
)
def _as_at_the_start(tokenizer):
    love, hate, _ = token_counts(tokenizer)
    return love, hate, hate


# -- 1.3 · Where do they differ?

short_sighted = Exercise(
    "1.3",
    "find the bug",
    minutes=5,
    difficulty=2,
    why="a check that stops at the shorter prompt is blind to the very pairs it is made for.",
    hints=(
        'Try it with ["The", " food"] and ["The", " food", "!"]: what should come out?',
        "`zip` ends with the shorter list. Go through the positions of the longer one, and count "
        "a missing token as different.",
    ),
)


@short_sighted.tried_by
def _at_positions(differing, *given):
    """Of lists that are equally long, and of longer ones on either side."""
    start = ["The", " food", " was"]
    lists = [
        (start, ["The", " room", " was"]),
        ([*start, " good"], [*start, " bad"]),
        (start, [*start, " not", " good"]),
        ([*start, " good", "!"], ["The", " room", " was"]),
        (start, start),
    ]
    try:
        return {f"{a} and {b}": differing([*a], [*b]) for a, b in lists}
    except ValueError as error:
        if "zip()" in str(error):
            return "stops"
        raise


@short_sighted.begins_with
def differing(plus, minus):
    """The positions at which two lists of tokens differ."""
    positions = []
    for i, (a, b) in enumerate(zip(plus, minus, strict=False)):
        if a != b:
            positions.append(i)
    return positions


@short_sighted.solution
def differing_to_the_end(plus, minus):
    shorter, longer = sorted([len(plus), len(minus)])
    return [i for i in range(longer) if i >= shorter or plus[i] != minus[i]]


@short_sighted.mistake(
    "strict=True stops at lists of different lengths: no longer wrong, but the positions in such "
    "a pair are what is asked for."
)
def _stops(plus, minus):
    return [i for i, (a, b) in enumerate(zip(plus, minus, strict=True)) if a != b]


@short_sighted.mistake("of the tokens that one list lacks, only the first is counted.")
def _first_missing(plus, minus):
    found = differing(plus, minus)
    shorter = min(len(plus), len(minus))
    return found + [shorter] * (len(plus) != len(minus))


@short_sighted.mistake("only where the second list is the longer one: the first may be, too.")
def _one_side(plus, minus):
    return differing(plus, minus) + list(range(len(plus), len(minus)))


@short_sighted.mistake("positions are counted from 0, as in all of Python.")
def _from_one(plus, minus):
    return [i + 1 for i in differing_to_the_end(plus, minus)]


@short_sighted.mistake("those are the tokens that differ: their positions are asked for.")
def _the_tokens(plus, minus):
    return [(plus[i : i + 1] or minus[i : i + 1])[0] for i in differing_to_the_end(plus, minus)]


# -- 1.4 · The bad one

bad_pair = Explanation(
    "1.4",
    minutes=4,
    difficulty=2,
    why="a count compares lengths; what stands at the last position has to be read.",
    hints=(
        "Write the last words of each pair side by side. Which two do different work?",
        "How many words are exchanged in each pair, and is mood all that they change?",
    ),
    answer="The second pair. It passes, since both prompts have equally many tokens, but its last "
    "words are a pronoun (it) and an adjective (bad): their difference mixes the mood with the "
    "kind of word. Besides, all its words are exchanged, so nothing cancels. In the first and the "
    "third pair one word is exchanged for its opposite, and both do the same work in the "
    "sentence. The fourth does not pass: calamity is cut into pieces.",
    points={
        "a": "it is the second pair, I liked it / It was bad",
        "b": "its last words do different work: a thing against a judgement",
        "c": "more than one word differs, so other things than the mood enter the difference",
    },
)


# -- 1.5 · Two pairs of your own

own_pairs = Exercise(
    "1.5",
    "write",
    minutes=6,
    difficulty=2,
    given=("tokenizer",),
    why="both kinds teach something: one what a word brings, the other what is carried along.",
    hints=(
        "Begin with a sentence of a few plain words, and change a single one of them.",
        'print(check_pairs(tokenizer, my_pairs())) shows what is too long. In "It is a … song" '
        "the word that you change is not the last.",
    ),
)


@own_pairs.tried_by
def _fault(my_pairs, tokenizer):
    """What is wrong first, in a word."""
    pairs = my_pairs()
    if not isinstance(pairs, list | tuple) or len(pairs) != 2:
        return "not two"
    for which, pair in enumerate(check_pairs(tokenizer, pairs)):
        plus, minus = pair.positive.split(), pair.negative.split()
        changed = [i for i, (a, b) in enumerate(zip_longest(plus, minus)) if a != b]
        if not pair.match:
            return "lengths"
        if len(changed) != 1:
            return "several words"
        at_the_end = pair.positive_tokens[-1] != pair.negative_tokens[-1]
        if at_the_end != (which == 0):
            return ("first", "second")[which]
    return "nothing"


@own_pairs.solution
def my_pairs():
    return [
        ("The music is good", "The music is bad"),
        ("It is a good song", "It is a bad song"),
    ]


@own_pairs.mistake("a list of two pairs is wanted: [(positive, negative), (positive, negative)].")
def _one_pair():
    return [("The music is good", "The music is bad")]


@own_pairs.mistake(
    "the two prompts of a pair have different numbers of tokens: check_pairs shows where, a word "
    "cut into pieces or one word more."
)
def _different_lengths():
    return [("The music is good", "The music is not so good"), my_pairs()[1]]


@own_pairs.mistake(
    "the lengths agree, but more than one word is exchanged: whatever differs then need not come "
    "from the mood."
)
def _more_words():
    return [("The music is good", "A song was bad"), my_pairs()[1]]


@own_pairs.mistake(
    "the first pair does not end in the exchanged word: at its last token, which may be a full "
    "stop, both sides are alike."
)
def _first_shared():
    return [my_pairs()[1], my_pairs()[1]]


@own_pairs.mistake(
    "the second pair ends in the exchanged word: let a word follow that both sides share."
)
def _second_exchanged():
    return [my_pairs()[0], my_pairs()[0]]
