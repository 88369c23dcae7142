"""Whether this computer is set up for the series: ``python -m helpers``, in some seconds.

Each check is tried by itself, and imports what it needs only then: where a package is missing,
the others still tell what they find.
"""

import hashlib
import importlib
import json
import os
import pkgutil
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path

from . import TORCH_CAME_FIRST

LEAST_PYTHON = (3, 10)
HOME = Path(__file__).parent
# SHA-256 of the bundled weights: a wrong number among them is still a number.
WEIGHTS = "9554824883cbe566e01ad63dc66e063328b14df44ff2453db29c2922648979e1"
# The part of ipywidgets that runs in the browser.
LAB_PART = "@jupyter-widgets/jupyterlab-manager/package.json"


def main() -> int:
    """Print a line for each check; return 1 if one begins with MEND, else 0."""
    code = 0
    for check in CHECKS:
        word, text = tried(check)
        print(f"{word:4} {text}", flush=True)
        code |= word == "MEND"
    return code


def tried(check) -> tuple[str, str]:
    """The word (OK, MEND or note) and the text of a check; an error in it is to be mended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them has a line of its own
        try:
            word, text = check()
        except Exception as error:
            missing = isinstance(error, ImportError | metadata.PackageNotFoundError)
            subject, mend = check.__name__.replace("_", " "), f": {install()}" if missing else ""
            word, text = "MEND", f"{subject}: {error or type(error).__name__}{mend}"
    return word, " ".join(text.split())


def install() -> str:
    """How to install all that helpers needs."""
    if requirements().exists():
        return f"run {pip()} -r {_short(requirements())}"
    return "install the wheel of helpers again, with its dependencies"


def pip() -> str:
    """The command that installs for this very Python."""
    return f"{_short(sys.executable)} -m pip install"


def requirements() -> Path:
    """Where the pins stand, if this is a checkout and no wheel."""
    return HOME.parent / "requirements.txt"


def _short(path) -> str:
    """A path as one would type it in the current folder."""
    here = Path.cwd()
    text = str(Path(path).relative_to(here) if Path(path).is_relative_to(here) else path)
    return f'"{text}"' if " " in text else text


def python():
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return "MEND", f"Python {found} is too old: make the environment with {least} or newer"
    return "OK", f"Python {found}"


def versions():
    if not requirements().exists():
        return "note", "versions: no requirements.txt beside helpers, so they are not compared"
    from packaging.requirements import Requirement

    lines = requirements().read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line.split("#")[0]) for line in lines if line[:1].isalnum()]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    wrong = [found for pin in pins if (found := _unfit(pin))]
    if wrong:
        return "MEND", f"versions: {', '.join(wrong)}: {install()}"
    return "OK", f"versions: the {len(pins)} packages of requirements.txt, as pinned"


def _unfit(pin) -> str | None:
    """What is wrong with an installed package, by what a requirement asks for."""
    try:
        version = metadata.version(pin.name)
    except metadata.PackageNotFoundError:
        return f"{pin.name} is missing"
    fits = pin.specifier.contains(version, prereleases=True)
    wanted = str(pin.specifier).removeprefix("==")
    return None if fits else f"{pin.name} is {version}, not {wanted}"


def modules():
    names = [name for _, name, _ in pkgutil.iter_modules([str(HOME)])]
    names = [name for name in names if name not in ("__main__", "training")]
    causes = {}
    for name in names:
        try:
            importlib.import_module(f"helpers.{name}")
        except Exception as error:
            causes.setdefault(str(error), []).append(name)
    if causes:
        failed = "; ".join(f"{', '.join(names)} ({cause})" for cause, names in causes.items())
        return "MEND", f"modules of helpers that cannot be imported: {failed}: {install()}"
    return "OK", f"modules: all {len(names)} can be imported"


def device():
    from .models import find_device

    return "OK", f"device: {find_device()}"


def threads():
    import torch

    policy = os.environ["OMP_WAIT_POLICY"].upper()
    if TORCH_CAME_FIRST:
        return "MEND", (
            "threads: torch was imported before helpers, so its threads spin while they wait, "
            "which is slow beside a busy process: import helpers first, or set "
            "OMP_WAIT_POLICY=PASSIVE before Python starts"
        )
    text = f"threads: {torch.get_num_threads()}, OMP_WAIT_POLICY={policy}"
    if policy != "PASSIVE":
        return "note", f"{text}: slow beside a busy process, PASSIVE is not"
    return "OK", text


def bundled_model():
    import torch

    from .concepts import SENTIMENT
    from .directions import find_vectors
    from .evaluation import next_token_logits
    from .models import POCKET, encode, load_model
    from .steering import steer

    mend = f"put {_short(POCKET)} back as it was, with git restore or from a fresh copy"
    digest = hashlib.sha256((POCKET / "model.safetensors").read_bytes()).hexdigest()
    if digest != WEIGHTS:
        return "MEND", f"bundled model: its weights are damaged: {mend}"
    model, tokenizer = load_model("pocket")
    vectors = find_vectors(model, tokenizer, SENTIMENT.pairs)
    vector = vectors[2 * len(vectors) // 3]
    batch = encode(model, tokenizer, SENTIMENT.dev_prompts)
    before = next_token_logits(model, batch)
    with steer(model, vector, vector.raw_norm):
        pushed = next_token_logits(model, batch)
    after = next_token_logits(model, batch)
    if not (pushed - before).abs().amax(1).min() > 0.1:  # NaN is no change either
        return "MEND", f"bundled model: a push does not change what it says: {install()}"
    if not torch.equal(before, after):
        return "MEND", f"bundled model: a push leaves something behind: {install()}"
    return "OK", "bundled model: it loads, a push changes its logits, and nothing stays behind"


def real_model():
    from .checks import SteeringError
    from .gguf_files import gguf_package, smollm2

    try:
        smollm2()
        gguf_package()
    except SteeringError as error:
        return "note", f"real model (optional): {str(error).replace('pip install', pip())}"
    return "OK", "real model: smollm2 is installed"


def sliders():
    from jupyter_core.paths import jupyter_path
    from packaging.requirements import Requirement
    from packaging.version import Version

    importlib.import_module("ipywidgets")
    lab, widgets = metadata.version("jupyterlab"), metadata.version("ipywidgets")
    both = f"sliders: JupyterLab {lab} and ipywidgets {widgets}"
    needed = [Requirement(line) for line in metadata.requires("ipywidgets")]
    needed = [pin for pin in needed if "widgets" in pin.name]  # its parts for the browser
    if wrong := [found for pin in needed if (found := _unfit(pin))]:
        return "MEND", f"{both} do not match ({', '.join(wrong)}): {install()}"
    parts = [Path(folder, LAB_PART) for folder in jupyter_path("labextensions")]
    part = next((file for file in parts if file.exists()), None)
    if part is None:
        again = f"run {pip()} --force-reinstall {' '.join(pin.name for pin in needed)}"
        return "MEND", f"{both}, but JupyterLab has no part that shows sliders: {again}"
    made_for = json.loads(part.read_text(encoding="utf-8"))["dependencies"]
    made_for = made_for["@jupyterlab/application"].lstrip("^~")
    if Version(made_for).major != Version(lab).major:
        return "MEND", f"{both} do not match (made for JupyterLab {made_for}): {install()}"
    return "OK", f"{both} match"


def cache_folder():
    from .gguf_files import cache_folder

    folder = cache_folder()
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return "MEND", (
            f"cache folder: {folder} cannot be written ({error.strerror}): "
            "set STEERING_CACHE to a folder that can"
        )
    return "OK", f"cache folder: {folder} can be written"


CHECKS = [
    *(python, versions, modules, device, threads),
    *(bundled_model, real_model, sliders, cache_folder),
]
