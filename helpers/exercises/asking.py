"""``check``, ``hint`` and ``solution``: what a reader calls (see ``helpers.exercises``)."""

import inspect
import textwrap
from importlib import import_module
from pkgutil import iter_modules

from ..checks import SteeringError
from . import record
from .exercise import EXERCISES, Explanation
from .judging import CANNOT_BE_JUDGED, NOT_ATTEMPTED, NOT_YET, RIGHT, Outcome, judge

SIGNS = {RIGHT: "✓", NOT_YET: "✗", NOT_ATTEMPTED: "·", CANNOT_BE_JUDGED: "?"}
_hints_given = {}


def check(number, answer=..., *given) -> None:
    """Print how an answer does: right, not yet and why, not attempted, or can't be judged.

    ``given`` is what the exercise's cell hands over after the answer. The answer is tried on the
    model that is given, which stays as it was. Raises SteeringError for a number that no exercise
    has.
    """
    exercise = find(number)
    number = exercise.number
    if isinstance(exercise, Explanation):
        outcome = _compared(exercise, answer, given)
    else:
        outcome = judge(exercise, answer, given)
    if outcome.word in (RIGHT, NOT_YET):
        record.keep_outcome(number, outcome.word)
    _say(f"{SIGNS[outcome.word]} {number} {outcome.word}: {outcome.text}")


def hint(number) -> None:
    """Print a hint; the next call prints the next one, and says when it was the last."""
    exercise = find(number)
    number, hints = exercise.number, exercise.hints
    which = min(_hints_given.get(number, 0), len(hints) - 1)
    _hints_given[number] = which + 1
    rest = "" if which + 1 < len(hints) else f' (The last one; then there is solution("{number}").)'
    _say(f"{number} hint {which + 1} of {len(hints)}: {hints[which]}{rest}")


def solution(number) -> None:
    """Print one way to do it."""
    exercise = find(number)
    if isinstance(exercise, Explanation):
        return _say(exercise.answer)
    lines = textwrap.dedent(inspect.getsource(exercise.right)).splitlines()
    print("\n".join(line for line in lines if not line.startswith("@")))


def find(number):
    """The exercise of that number; SteeringError if there is none."""
    number = str(number)  # 4.1 is as good as "4.1"
    if number not in of_notebook(number.partition(".")[0]):
        known = ", ".join(load_all())
        raise SteeringError(f"No exercise has the number {number!r}. There are: {known}.")
    return EXERCISES[number]


def of_notebook(notebook) -> list[str]:
    """The numbers of one notebook's exercises; only its module is imported."""
    name = f"notebook_{notebook:0>2}"
    if name in _modules():
        import_module(f"{__package__}.{name}")
    return [number for number in EXERCISES if number.partition(".")[0] == str(notebook)]


def load_all() -> dict:
    """All exercises by number, in the order of the notebooks."""
    for name in _modules():
        import_module(f"{__package__}.{name}")
    return dict(sorted(EXERCISES.items(), key=lambda entry: list(map(int, entry[0].split(".")))))


def _modules():
    found = iter_modules(import_module(__package__).__path__)
    return sorted(module.name for module in found if module.name.startswith("notebook_"))


def _compared(exercise, answer, given):
    """The outcome of an explanation, by the points that the reader ticks."""
    number, letters = exercise.number, "".join(exercise.points)
    if not isinstance(answer, str) or len(answer.split()) < 5:
        return Outcome(NOT_ATTEMPTED, "write a sentence or two.")
    if not given:
        _say(f"A model answer: {exercise.answer}")
        print("Its points:")
        for letter, text in exercise.points.items():
            _say(f"{letter}) {text}")
        return Outcome(
            CANNOT_BE_JUDGED,
            "which points does yours make? Tick them: add their letters to your call, such as "
            f'check("{number}", my_words, "{letters[:2]}").',
        )
    ticks, *more = given
    if isinstance(ticks, str):
        ticks = set(ticks.lower()) - set(" ,")  # "a, C" is as good as "ac"
    if more or not isinstance(ticks, set) or ticks - set(letters):
        return Outcome(CANNOT_BE_JUDGED, f"tick by letters, some of {letters!r}.")
    missing = [text for letter, text in exercise.points.items() if letter not in ticks]
    if missing:
        return Outcome(NOT_YET, f"what yours does not say: {missing[0]}")
    return Outcome(RIGHT, exercise.why)


def _say(text):
    print(textwrap.fill(text, 88, subsequent_indent="  ", break_on_hyphens=False))
