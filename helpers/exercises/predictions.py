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
    kept, own = record.read(), f"{notebook}."
    guesses = [x for number, x in kept["predictions"].items() if number.startswith(own)]
    hits = sum("found" in x and x["guess"] == x["found"] for x in guesses)
    numbers = of_notebook(notebook)
    solved = sum(kept["exercises"].get(number) == "right" for number in numbers)
    print(f"predictions: {len(guesses)} made, {hits} came out as you guessed")
    print(f"exercises:   {solved} of {len(numbers)} right")
