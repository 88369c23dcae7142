"""Try the rules of thumb on two models and write the README's table of verdicts.

    python images/make_verdicts.py              the bundled model and SmolLM2
    python images/make_verdicts.py some-model   the bundled model and another one

From the repository's root; minutes on a CPU. Nothing is cached.
"""

import helpers  # noqa: F401  # isort: skip  # first: it sets how torch's threads wait

import re
import sys
from pathlib import Path

from helpers.folklore import summary, trial
from helpers.models import load_model

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(?<=<!-- verdicts -->\n).*?(?=<!-- /verdicts -->)", re.S)


def write(trials):
    """Replace what stands between the two comments of the README."""
    text, found = BLOCK.subn(
        lambda _: summary(trials).markdown() + "\n", README.read_text(encoding="utf-8")
    )
    if found != 1:
        raise SystemExit("README.md needs one <!-- verdicts --> … <!-- /verdicts -->.")
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    other = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
    names = {"bundled model": "pocket", "SmolLM2" if other == "smollm2" else other: other}
    write({label: trial(*load_model(name, device="cpu")) for label, name in names.items()})
