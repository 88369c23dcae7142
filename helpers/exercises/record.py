"""The one file in which a reader's answers and guesses are kept.

Plain JSON in the reader's own folder for data, or where STEERING_PROGRESS says. To delete it is
to begin anew.
"""

import json
import os
import warnings
from pathlib import Path
from tempfile import NamedTemporaryFile

from platformdirs import user_data_path


def path() -> Path:
    """Where the file is, or will be."""
    own = os.environ.get("STEERING_PROGRESS")
    return Path(own) if own else user_data_path("steering-vectors", False) / "progress.json"


def read() -> dict:
    """{"exercises": {number: word}, "predictions": {number: {"guess": …, "found": …}}}"""
    empty = {"exercises": {}, "predictions": {}}
    try:
        found = json.loads(path().read_text(encoding="utf-8"))
        return {name: dict(found.get(name, {})) for name in empty}
    except (FileNotFoundError, NotADirectoryError):
        return empty
    except (OSError, ValueError, AttributeError, TypeError) as error:
        warnings.warn(f"{path()} cannot be read ({error}): going on without it.", stacklevel=2)
        return empty


def keep_outcome(number, word) -> None:
    """Note how an exercise was answered; once right stays right."""
    found = read()
    if found["exercises"].get(number) != "right":
        found["exercises"][number] = word
        _write(found)


def keep_prediction(number, **entries) -> dict:
    """Note a guess, or what came out; returns all that is known of this prediction."""
    found = read()
    known = found["predictions"].setdefault(number, {})
    if any(known.get(name) != value for name, value in entries.items()):
        known.update(entries)
        _write(found)
    return known


def _write(found):
    """At once, or not at all: a reader may have two notebooks open."""
    text = json.dumps(found, indent=1, sort_keys=True)
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(
            "w", dir=path().parent, encoding="utf-8", suffix=".tmp", delete=False
        ) as file:
            file.write(text)
        os.replace(file.name, path())
    except OSError as error:
        warnings.warn(f"Your progress cannot be kept in {path()}: {error}.", stacklevel=2)
