"""When pytest compares notebooks: no progress bars, since they show on slow machines only."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")
