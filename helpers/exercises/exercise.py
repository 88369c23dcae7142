"""What an exercise is made of: one solution, the mistakes that people make, and their messages."""

from dataclasses import dataclass, field
from functools import wraps
from numbers import Number

KINDS = ("write", "predict", "find the bug", "explain")
EXERCISES = {}  # by number, in the order of the notebooks
_results = {}  # of functions that are computed once a check


def once(function):
    """Decorate what the mistakes of an exercise share: it is computed once a check.

    Numbers and texts are compared by value, all other arguments by identity.
    """

    @wraps(function)
    def kept(*args):
        key = function, *(x if isinstance(x, Number | str) else id(x) for x in args)
        if key not in _results:
            _results[key] = args, function(*args)  # arguments stay alive, so no id is used twice
        return _results[key][1]

    return kept


def forget():
    """Drop what ``once`` keeps: the next check may bring the same model with other weights."""
    _results.clear()


@dataclass(frozen=True)
class Fault:
    """What is wrong with a value, in a word, and what fills the {} of that mistake's message."""

    kind: str
    named: tuple = field(default=(), compare=False)


@dataclass(eq=False)
class Exercise:
    """A question whose answer is judged by what it does, not by how it is written.

    The answer is a function, if ``run`` says how to try it, or else a value, in which ``look``
    may find a fault. Solution and mistakes are functions like the reader's, or functions of what
    ``check`` is given after the answer that return a value. An answer that behaves as a mistake
    does gets its message. So nothing is judged by a stored number, and any model will do.
    """

    number: str
    kind: str
    minutes: int
    difficulty: int  # 1 to 3
    why: str  # one line for whoever got it right
    hints: tuple[str, ...]
    given: tuple[str, ...] = ()  # what check gets after the answer, by name
    within: float = 1e-3  # numbers may differ by this share of the largest
    mistakes: list = field(default_factory=list)  # (message, function)
    right = None  # the solution
    run = None  # run(answer, *given): what a function gives, to be compared
    look = None  # look(answer, *given): the first Fault of a value, None if it has none
    stub = None  # the code that a find-the-bug exercise starts from

    def __post_init__(self):
        EXERCISES[self.number] = self

    def solution(self, function):
        """Decorate the one right answer."""
        self.right = function
        return function

    def tried_by(self, function):
        """Decorate the function of (answer, *given) that tries an answer which is a function."""
        self.run = function
        return function

    def looked_at_by(self, function):
        """Decorate the function of (answer, *given) that finds the first Fault of a value."""
        self.look = function
        return function

    def begins_with(self, function):
        """Decorate the code with the bug, as it stands in the notebook."""
        self.stub = function
        return function

    def mistake(self, message):
        """Decorate a wrong answer that people give; its message names the mistake."""

        def keep(function):
            self.mistakes.append((message, function))
            return function

        return keep

    def outcome(self, answer, given):
        """What an answer gives: what its function does, or the value, or its fault."""
        see = self.run or self.look
        return answer if see is None else see(answer, *given)

    def reference(self, function, given):
        """What the solution, or a mistake, gives."""
        return self.outcome(function if self.run else function(*given), given)


@dataclass(eq=False)
class Explanation:
    """A question in words: the reader compares with a model answer, and ticks its points."""

    number: str
    minutes: int
    difficulty: int
    why: str
    hints: tuple[str, ...]
    answer: str
    points: dict[str, str]  # by letter: what a good answer says
    kind = "explain"

    def __post_init__(self):
        EXERCISES[self.number] = self
