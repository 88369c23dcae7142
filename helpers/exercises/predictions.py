"""``predict``, ``compare`` and ``score``: guesses that are kept and held against what came out."""

from ..checks import SteeringError
from . import record
from .asking import of_notebook


def predict(number, guess=...) -> None:
    """Keep your guess, a letter. The first one counts: whoever saw the result knows better.

    ``...`` is no guess. Raises SteeringError for anything but a letter.
    """
    if guess is ...:
        return
    number, guess = str(number), _letter(guess)
    known = record.read()["predictions"].get(number, {})
    if "guess" not in known:
        record.keep_prediction(number, guess=guess)
    elif known["guess"] != guess:
        print(f'{number}: your first guess, "{known["guess"]}", counts.')


def _letter(guess):
    letter = guess.strip().lower() if isinstance(guess, str) else ""
    if len(letter) != 1 or not letter.isalpha():
        raise SteeringError(f'A guess is a letter such as "b", got {guess!r}.')
    return letter


def compare(number, found=..., **answers) -> None:
    """Say which answer came out, and whether it was your guess.

    ``answers`` are conditions by letter; or ``found`` is the letter that you saw, where only an
    eye can tell, and ``...`` until you looked. Raises SteeringError unless exactly one answer is
    met.
    """
    number = str(number)
    met = [letter for letter, holds in answers.items() if holds]
    if found is ... and not answers:
        return
    if found is not ...:
        met = [_letter(found)]
    if len(met) != 1:
        raise SteeringError(f"Prediction {number}: of its answers {met or 'none'} came out.")
    guess = record.read()["predictions"].get(number, {}).get("guess")
    if guess is None:
        print(f"prediction {number}: it is {met[0]}, and you made no guess")
        return
    record.keep_prediction(number, found=met[0])
    verdict = "as you guessed" if guess == met[0] else f"you guessed {guess}"
    print(f"prediction {number}: it is {met[0]}, {verdict}")


def score(notebook) -> None:
    """Print how the predictions and exercises of one notebook, such as "4", went."""
    made, hits, numbers, unsolved = tally(notebook)
    print(f"predictions: {made} made, {hits} came out as you guessed")
    print(f"exercises:   {len(numbers) - len(unsolved)} of {len(numbers)} right")


def tally(notebook) -> tuple[int, int, list[str], list[str]]:
    """Guesses made, guesses that came out, the exercises' numbers, and those not right yet."""
    kept, numbers = record.read(), of_notebook(notebook)
    guesses = [x for n, x in kept["predictions"].items() if n.startswith(f"{notebook}.")]
    hits = sum("found" in x and x["guess"] == x["found"] for x in guesses)
    unsolved = [n for n in numbers if kept["exercises"].get(n) != "right"]
    return len(guesses), hits, numbers, unsolved
