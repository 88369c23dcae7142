"""Print the reader's progress over all notebooks: ``python -m helpers.exercises``."""

from ..tables import Table
from . import record
from .asking import load_all


def main():
    kept, exercises = record.read(), load_all()
    rows = []
    for notebook in dict.fromkeys(number.split(".")[0] for number in exercises):
        own = f"{notebook}."
        numbers = [number for number in exercises if number.startswith(own)]
        unsolved = [n for n in numbers if kept["exercises"].get(n) != "right"]
        guesses = [x for n, x in kept["predictions"].items() if n.startswith(own)]
        hits = sum("found" in x and x["guess"] == x["found"] for x in guesses)
        right = f"{len(numbers) - len(unsolved)} of {len(numbers)}"
        rows.append((notebook, right, ", ".join(unsolved), f"{hits} of {len(guesses)}"))
    print(Table(["notebook", "right", "still open", "guesses that came out"], rows))
    print(f"\nKept in {record.path()}: delete it to begin anew.")


if __name__ == "__main__":
    main()
