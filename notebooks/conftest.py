"""When pytest compares notebooks: no progress bars; only slow machines show them."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")
