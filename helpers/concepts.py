"""A concept: all the texts that one round of steering needs, in one object.

The one place to change pairs, words or prompts. ``SENTIMENT`` is read from ``sentiment.json``
beside this file; a file of the same form makes any other concept.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from .checks import RULES, SteeringError, fitted
from .pair_files import read_pairs, read_text
from .pairs import split

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUNDLED = Path(__file__).with_name("sentiment.json")


@dataclass(frozen=True, eq=False)
class Concept:
    """What makes a concept, and what measures it. The first side is the one that +v points to.

    What has a default may be left empty if nothing measures with it: ``need`` asks for it. For an
    honest measurement no text that measures shares a contrast word with the pairs, and no test
    prompt is a development prompt (that one is enforced).

    Raises SteeringError for a text that is empty or missing, fewer than two pairs, or a prompt
    that would serve both to choose and to report.
    """

    name: str
    pairs: list[tuple[str, str]]  # find the direction
    positive_words: list[str]  # next words of one token each: their balance is the log-odds
    negative_words: list[str]
    dev_prompts: list[str]  # choose layer and force on these …
    test_prompts: list[str]  # … and report on these, once
    sides: tuple[str, str] = ("positive", "negative")  # their names, such as ("warm", "cold")
    unrelated_prompts: list[str] = ()  # no matter of the concept: what steering should spare
    positive_sentences: list[str] = ()  # labelled sentences, to read the direction from
    negative_sentences: list[str] = ()
    follow_up: str = ""  # put after a sentence, it asks for a verdict on it
    positive_requests: list[str] = ()  # put before a prompt, they ask for the same as the push
    negative_requests: list[str] = ()
    judge: str | Callable | None = None  # of whole texts, as in ``evaluation.judge``
    more_pairs: list[tuple[str, str]] = ()  # further ones of the same make
    varied_pairs: list[tuple[str, str]] = ()  # long ones whose sides share nothing else
    dev_questions: list[str] = ()  # to a model that chats; they allow an answer of either side
    test_questions: list[str] = ()
    positive_instructions: list[str] = ()  # in its system prompt they ask for the same as the push
    negative_instructions: list[str] = ()

    def __post_init__(self):
        for field in fields(self):
            value, kind = getattr(self, field.name), field.name.split("_")[-1]
            try:
                empty = value is None or (isinstance(value, list | tuple | str) and not value)
                rule = RULES.get(field.name) or RULES[kind]
                # Pairs are counted below.
                if empty and (kind == "pairs" or not field.default):
                    value = {"follow_up": "", "judge": None}.get(field.name, [])
                else:
                    value = fitted(value, field.name, rule)
            except SteeringError as error:
                raise SteeringError(f"{field.name} of {self.name!r}: {error}") from None
            object.__setattr__(self, field.name, value)
        if len(self.sides) != 2:
            raise SteeringError(f"sides of {self.name!r}: give two names, got {self.sides}.")
        if len(self.pairs) < 2:
            raise SteeringError(f"pairs of {self.name!r}: give at least two.")
        if both := set(self.positive_words) & set(self.negative_words):
            raise SteeringError(f"{self.name!r} has words on both sides: {sorted(both)}.")
        for kind in ("prompts", "questions"):
            choosing, reporting = (getattr(self, f"{half}_{kind}") for half in ("dev", "test"))
            if shared := set(choosing) & set(reporting):
                raise SteeringError(
                    f"{self.name!r} has {kind} that would serve both to choose and to report: "
                    f"{sorted(shared)}. Take them out of dev_{kind} or test_{kind}."
                )

    def need(self, *names) -> None:
        """Raise SteeringError if one of these fields is empty: for what measures with them."""
        if lacking := [name for name in names if not getattr(self, name)]:
            raise SteeringError(
                f"The concept {self.name!r} has no {', '.join(lacking)}: add them to its file, or "
                f"give them to load_concept(..., {lacking[0]}=...)."
            )

    @property
    def words(self) -> tuple[list[str], list[str]]:
        """The positive and the negative words."""
        return self.positive_words, self.negative_words

    @property
    def sentences(self) -> list[str]:
        """The labelled sentences: the positive ones, then the negative ones; neither is empty."""
        self.need("positive_sentences", "negative_sentences")
        return self.positive_sentences + self.negative_sentences

    @property
    def pair_prompts(self) -> list[str]:
        """Every prompt of the pairs: the positive ones, then the negative ones."""
        positive, negative = split(self.pairs)
        return positive + negative


def load_concept(source=None, **changes) -> Concept:
    """The concept that the notebooks steer, from a file that is easy to edit.

    Parameters
    ----------
    source : str or Path
        ``"sentiment"`` (bundled), or a ``.json`` or ``.toml`` file with the fields of ``Concept``.
        Default: environment variable ``STEERING_CONCEPT``, else ``"sentiment"``.
    changes
        Fields that replace those of the file, such as a function as ``judge``.

    The file needs pairs, two lists of words and two of prompts; its own name is the ``name``
    unless it gives one. ``warmth.toml`` may be::

        sides = ["warm", "cold"]
        pairs = "pairs.csv"  # or [["The soup is hot", "The soup is cold"], ...]
        positive_words = ["bright", "dry"]
        negative_words = ["wet", "dark"]
        dev_prompts = ["The street was", "Her hands felt"]
        test_prompts = ["The beach was", "His coat is"]

    and ``pairs.csv`` beside it, as ``read_pairs`` reads it::

        warm,cold
        The soup is hot,The soup is cold
        I like the summer,I like the winter

    Raises SteeringError if a file cannot be read, or a field is missing, unknown or unusable.
    """
    try:
        source = str(source or os.environ.get("STEERING_CONCEPT") or "sentiment")
        path = BUNDLED if source == "sentiment" else Path(source)
        texts = (tomllib if path.suffix.lower() == ".toml" else json).loads(read_text(path))
    except (OSError, ValueError, RuntimeError) as error:
        raise SteeringError(
            f"No concept could be read from {source!r}: give 'sentiment', which is bundled, or a "
            f".json or .toml file with the fields of {BUNDLED.name} in the folder of helpers. "
            f"(Cause: {error})"
        ) from error
    if not isinstance(texts, dict):
        raise SteeringError(f"{source}: expected an object with named fields, as {BUNDLED.name}.")
    texts = {"name": path.stem, **texts, **changes}
    known = {field.name: field for field in fields(Concept)}
    needed = [name for name, field in known.items() if field.default is MISSING]
    missing, unknown = sorted(set(needed) - set(texts)), sorted(set(texts) - set(known))
    if missing or unknown:
        raise SteeringError(
            f"{source}: missing fields {missing}, unknown fields {unknown}. "
            f"{BUNDLED.name} in the folder of helpers shows all of them."
        )
    for name in ("pairs", "more_pairs", "varied_pairs"):
        if isinstance(texts.get(name), str | Path) and texts[name]:
            folder = Path() if name in changes else path.parent
            texts[name] = read_pairs(folder / texts[name], texts.get("sides", Concept.sides))
    return Concept(**texts)


SENTIMENT = load_concept("sentiment")
