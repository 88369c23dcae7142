"""Pairs from a CSV file, as a spreadsheet saves it."""

import codecs
import csv
import io
import warnings
from pathlib import Path

from .checks import SteeringError, checked, shown

MOST_LINES = 50  # of one row: a quote that is open for longer was never closed
MOST_NAMED = 10  # rows in one warning


def read_text(path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte-order mark.

    Raises SteeringError for any other encoding, and OSError where the file cannot be opened.
    """
    raw = Path(path).read_bytes()
    utf_16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if utf_16 else "utf-8-sig")
    except ValueError as error:
        raise SteeringError(f"{path} is not in UTF-8 ({error}): save it as UTF-8.") from error
    if "\0" in text:  # every second character of UTF-16 without its mark
        raise SteeringError(f"{path} is not in UTF-8 (it holds the character 0): save it as UTF-8.")
    return text


@checked
def read_pairs(path, sides=("positive", "negative")) -> list[tuple[str, str]]:
    """The pairs in a CSV file: one in each row, under a row with the names of the columns.

    Rows that cannot be used are left out, and one warning names them.

    Parameters
    ----------
    path : str or Path
        A file in UTF-8 (or UTF-16 with a byte-order mark), separated by comma, semicolon or tab.
    sides : (str, str)
        Names of the two columns, in capitals or not. ``positive`` and ``negative`` are found as
        well; other columns are ignored, and so is space around a text.

    Raises SteeringError if the file cannot be read or is in another encoding, if a column is
    missing, or if no row can be used.
    """
    if len(sides) != 2:
        raise SteeringError(f"sides: give the names of two columns, got {shown(sides)}.")
    try:
        lines = list(io.StringIO(read_text(path), newline=""))
    except (OSError, TypeError, ValueError) as error:
        raise SteeringError(f"No pairs could be read from {shown(path)}: {error}") from error
    separator, width, columns = _layout(lines, sides, path)
    kept, unfit = {}, []  # the line of each pair, and what is wrong with the other rows
    rows = _rows(lines, separator)
    next(rows)  # the names
    for line, cells in rows:
        pair = tuple(cells[i] for i in columns) if len(cells) == width else ()
        if not cells:
            problem = "a quote is not closed"
        elif not pair:
            problem = f"{len(cells)} cells instead of {width}"
        elif not all(pair):
            problem = "an empty cell"
        elif pair[0] == pair[1]:
            problem = "both sides are equal"
        elif pair in kept:
            problem = f"the same pair as in line {kept[pair]}"
        else:
            kept[pair] = line
            continue
        unfit.append(f"line {line}: {problem}")
    named, more = "; ".join(unfit[:MOST_NAMED]), len(unfit) - MOST_NAMED
    named += f"; and {more} more" * (more > 0)
    found = f"{path}: {len(kept)} of {len(kept) + len(unfit)} rows can be used."
    if not kept:
        raise SteeringError(f"{found} Give at least one pair below the names. {named}".strip())
    if unfit:
        warnings.warn(f"{found} Left out: {named}.", stacklevel=3)
    return list(kept)


def _layout(lines, sides, path):
    """The separator, the number of columns, and where the two sides stand among them."""
    usual, most = ["positive", "negative"], []
    wanted = [usual] if list(sides) == usual else [list(sides), usual]
    for separator in ",;\t":
        _, header = next(_rows(lines, separator), (0, []))
        names = [name.casefold() for name in header]
        for both in wanted:
            both = [side.strip().casefold() for side in both]
            if all(names.count(side) == 1 for side in both):
                return separator, len(names), [names.index(side) for side in both]
        most = max(most, header, key=len)
    raise SteeringError(
        f"{path} needs one column for each side: {' or '.join(map(str, wanted))}. Its columns, by "
        f"the first line, are [{', '.join(map(shown, most))}]."
    )


def _rows(lines, separator):
    """The number of the first line and the cells of each row; no cells where quotes are wrong."""
    at = 0
    while at < len(lines):
        some = lines[at : at + MOST_LINES]
        reader = csv.reader(some, delimiter=separator, skipinitialspace=True, strict=True)
        try:
            cells = [cell.strip() for cell in next(reader)]
        except csv.Error:  # the rows behind it are not lost
            yield at + 1, []
            at += 1
        else:
            if cells:
                yield at + 1, cells
            at += reader.line_num
