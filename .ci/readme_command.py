"""Print the command that the README gives under a heading: the first bash block, on one line.

    python .ci/readme_command.py "Run the tests"

The command must read ``set-up && last step``.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def main(words):
    sections = re.split(r"^(?=#+ )", README.read_text(encoding="utf-8"), flags=re.M)
    section = next((text for text in sections if words in text.split("\n", 1)[0]), "")
    block = re.search(r"^```bash\n(.*?)\n```$", section, re.M | re.S)
    if not block:
        sys.exit(f"README.md: no bash block under a heading with the words {words!r}")
    command = " ".join(block[1].replace("\\\n", " ").split())
    if "&&" not in command:
        sys.exit(f"README.md: {command!r} should be 'set-up && last step'")
    print(command)


if __name__ == "__main__":
    main(sys.argv[1])
