"""Activation steering, one small module a subject, in the order of the notebooks.

``checks``, ``chat``, ``batches``, ``gguf_files``, ``models``, ``hooks``, ``tables``, ``plots``,
``pair_files`` and ``concepts`` serve them all. Imports run one way, ``pairs → activations →
directions → positions → steering → generation → evaluation → sweeps → calibration → choice →
statistics → folklore → protocol → views → explorer``, and a reader who finished notebook NN can
read its modules. ``exercises`` and ``training`` are imported by none of them; ``python -m helpers``
(``preflight``) checks the set-up.
"""

import os
import sys

# Torch's threads wait for each other by spinning unless told otherwise, and beside any other busy
# process that makes them three to fifty times slower. The setting is read once, when torch loads.
TORCH_CAME_FIRST = "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
