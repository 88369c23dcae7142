"""Print the reader's progress over all notebooks: ``python -m helpers.exercises``."""

from ..tables import Table
from . import record
from .asking import load_all
from .predictions import tally


def main():
    rows = []
    for notebook in dict.fromkeys(number.split(".")[0] for number in load_all()):
        made, hits, numbers, unsolved = tally(notebook)
        right = f"{len(numbers) - len(unsolved)} of {len(numbers)}"
        rows.append((notebook, right, ", ".join(unsolved), f"{hits} of {made}"))
    print(Table(["notebook", "right", "still open", "guesses that came out"], rows))
    print(f"\nKept in {record.path()}: delete it to begin anew.")


if __name__ == "__main__":
    main()
