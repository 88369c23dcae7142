"""Settings that a test run makes before torch is imported and before any kernel starts.

pytest loads this file first when it runs the whole project, and the notebooks' kernels
inherit the environment set here. `pytest notebooks/01_contrastive_pairs.ipynb` alone does
not read it: then the notebook runs in your own environment, on your own STEERING_MODEL and
STEERING_CONCEPT, and only notebooks/conftest.py is read.
"""

import atexit
import os
import shutil
import tempfile

import pytest
from xdist.scheduler import LoadFileScheduling

from real_model import LACKING

# An outer setting wins, so that the suite can be tried with other numbers of threads. One is
# the default because two processes that each spin on two threads take up to ten times longer.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As helpers does; here before any test file imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# As in notebooks/conftest.py, for the kernels that are started from here.
os.environ.setdefault("TQDM_DISABLE", "1")
# Nothing in the suite needs the network, so a hidden download should fail.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Stored outputs are those of the bundled model on the CPU.
os.environ.pop("STEERING_MODEL", None)
os.environ.pop("STEERING_CONCEPT", None)
os.environ["STEERING_DEVICE"] = "cpu"
# The stored outputs are those of a reader who has answered nothing yet.
os.environ["STEERING_PROGRESS"] = os.path.join(tempfile.mkdtemp(prefix="steering-"), "none.json")
atexit.register(shutil.rmtree, os.path.dirname(os.environ["STEERING_PROGRESS"]), ignore_errors=True)
# Converted models of a run go when it ends, unless an outer setting keeps them for the next one.
if "STEERING_CACHE" not in os.environ:
    os.environ["STEERING_CACHE"] = tempfile.mkdtemp(prefix="steering-cache-")
    atexit.register(shutil.rmtree, os.environ["STEERING_CACHE"], ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    """A skipped real model, or web site, is said aloud."""
    if LACKING:
        terminalreporter.write_line(f"The tests on the real model were skipped: {LACKING}")
    reasons = {report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])}
    for reason in reasons:
        if "Sphinx" in reason:
            terminalreporter.write_line(f"The web site was not built: {reason}")


class NotebookScheduling(LoadFileScheduling):
    """Whole files to one process, but each notebook's other runs for themselves.

    Otherwise all of those, the slowest tests, would queue behind each other in one process.
    """

    def _split_scope(self, nodeid):
        return nodeid if "test_other_runs.py::" in nodeid else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)  # so that `-p no:xdist` works too
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") == "loadfile":
        return NotebookScheduling(config, log)
