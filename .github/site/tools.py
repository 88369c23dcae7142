"""Print the packages that build the site, without those that helpers needs."""

from pathlib import Path

import tomllib

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
print(*extras["site"])
