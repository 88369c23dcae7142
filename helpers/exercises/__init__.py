"""Exercises that check themselves, and predictions that are kept.

    check("4.1", my_answer)     right, or not yet and why
    hint("4.1")                 a push in the right direction, the next one on the next call
    solution("4.1")             one way to do it
    predict("4.1", "b")         your guess, before you run the cell
    compare("4.1", a=..., b=...)  what came out, beside your guess
    score("4")                  how you did in notebook 4

One module a notebook holds its exercises; ``python -m helpers.exercises`` prints your progress.
"""

from .asking import check, hint, solution
from .predictions import compare, predict, score

__all__ = ["check", "compare", "hint", "predict", "score", "solution"]
