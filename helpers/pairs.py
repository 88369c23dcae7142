"""Contrastive pairs: two prompts that differ in one thing (notebook 01)."""

from dataclasses import dataclass
from html import escape

from .chat import tokens_of
from .checks import SteeringError, checked
from .tables import Table

UNEQUAL = (
    "A pair of unequal lengths is usable at the last token and as a mean over its tokens; not "
    "position by position."
)


@checked
def tokens(tokenizer, text) -> list[str]:
    """The tokens of a text as readable strings, special ones included: ``["I", " think"]``.

    Of a dialogue those of its template.
    """
    return [tokenizer.decode([token]) for token in tokens_of(tokenizer, [text])[0]]


@dataclass(frozen=True)
class PairCheck:
    """How the two prompts of one pair tokenise."""

    positive: str
    negative: str
    positive_tokens: list[str]
    negative_tokens: list[str]

    @property
    def match(self) -> bool:
        """Whether both prompts have the same number of tokens."""
        return len(self.positive_tokens) == len(self.negative_tokens)

    @property
    def verdict(self) -> str:
        """Such as ``"True (6 vs 6)"``."""
        return f"{self.match} ({len(self.positive_tokens)} vs {len(self.negative_tokens)})"

    @property
    def differing(self) -> list[int]:
        """Positions at which the tokens differ, counted to the end of the longer prompt."""
        length = max(len(self.positive_tokens), len(self.negative_tokens))
        return [
            i
            for i in range(length)
            if self.positive_tokens[i : i + 1] != self.negative_tokens[i : i + 1]
        ]

    def explain(self) -> str:
        """Both token lists under each other, and where they part."""
        where = f"from position {self.differing[0]} on" if self.differing else "nowhere"
        return (
            f"{self.verdict}, different {where}\n"
            f"  + {' | '.join(token.strip() for token in self.positive_tokens)}\n"
            f"  - {' | '.join(token.strip() for token in self.negative_tokens)}"
        )


class PairReport(list):
    """The ``PairCheck`` of every pair; prints as a table and shows where lengths differ."""

    @property
    def valid(self) -> list[tuple[str, str]]:
        """The pairs whose two prompts have equally many tokens."""
        return [(check.positive, check.negative) for check in self if check.match]

    @property
    def _table(self):
        rows = [(check.positive, check.negative, check.verdict) for check in self]
        return Table(["Positive", "Negative", "Match?"], rows)

    @property
    def _notes(self):
        return [check.explain() for check in self if not check.match]

    def __repr__(self):
        notes = ["", *self._notes, UNEQUAL] if self._notes else []
        return "\n".join([repr(self._table), *notes])

    def _repr_html_(self):
        notes = [f"<pre>{escape(note)}</pre>" for note in self._notes]
        notes += [f"<p>{UNEQUAL}</p>"] if notes else []
        return "".join([self._table._repr_html_(), *notes])


@checked
def check_pairs(tokenizer, pairs, strict=False) -> PairReport:
    """Tokenise both prompts of every pair and compare their lengths.

    Parameters
    ----------
    pairs : list of (positive, negative)
    strict : bool
        Raise on the first pair whose lengths differ, with both token lists.

    Returns a ``PairReport``: prints as a table, ``.valid`` keeps the pairs of equal length.
    Raises SteeringError for an empty list, an empty prompt, a pair of two equal prompts, and, if
    ``strict``, for lengths that differ.
    """
    report = PairReport(
        PairCheck(positive, negative, tokens(tokenizer, positive), tokens(tokenizer, negative))
        for positive, negative in zip(*split(pairs), strict=True)
    )
    for check in report:
        if strict and not check.match:
            raise SteeringError(
                f"The prompts of a pair differ in length: {check.explain()}\n"
                "Reword one of them, or leave the pair out (check_pairs(...).valid does)."
            )
    return report


@checked
def split(pairs) -> tuple[list[str], list[str]]:
    """The positive and the negative prompts of a list of pairs, as two lists of equal length.

    Raises SteeringError for an empty list, something that is not a pair, an empty prompt, or
    prompts that are equal but for the space around them.
    """
    positive, negative = zip(*pairs, strict=True)
    return list(positive), list(negative)
