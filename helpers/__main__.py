"""Check the set-up: ``python -m helpers``."""

import sys

from .preflight import main

if __name__ == "__main__":
    sys.exit(main())
