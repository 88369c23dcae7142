"""Start JupyterLab by a command; ask it for the notebook, its page and its kernel.

    python .ci/open_series.py "jupyter lab notebooks/01_contrastive_pairs.ipynb"

Run from the root of the repository. JupyterLab gets a configuration of its own, in a folder
that is gone afterwards, so that it opens no browser, asks for no password and takes a free port.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

SECONDS_TO_START = 90
SETTINGS = {
    "ServerApp": {"allow_root": True, "open_browser": False, "ip": "127.0.0.1", "port": 0},
    "IdentityProvider": {"token": ""},
}


def environment(scratch):
    """Where JupyterLab reads and writes everything of its own: below ``scratch``."""
    variables = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    folders = {variable: str(scratch / folder) for variable, folder in variables.items()}
    return {**os.environ, **folders}


def wait_for(server, runtime):
    """The facts that the server writes into a file when it listens, or None if it never does."""
    for _ in range(2 * SECONDS_TO_START):
        if found := list(runtime.glob("jpserver-*.json")):
            time.sleep(1)  # until the file is whole
            return json.loads(found[0].read_text())
        if server.poll() is not None:
            return None
        time.sleep(0.5)
    return None


def look_at(info, notebook):
    """Fail unless the server knows the notebook, has a page for it and a kernel to run it."""

    def get(path):
        with urllib.request.urlopen(info["url"] + path, timeout=10) as answer:
            return json.load(answer) if path.startswith("api/") else answer.read()

    print("JupyterLab", get("api/status")["started"], "serves", info["root_dir"])
    served = notebook.resolve().relative_to(Path(info["root_dir"]).resolve())
    quoted = urllib.parse.quote(served.as_posix())
    cells = get(f"api/contents/{quoted}")["content"]["cells"]
    assert b"jupyter-config-data" in get(f"lab/tree/{quoted}"), "no JupyterLab page"
    assert "python3" in get("api/kernelspecs")["kernelspecs"], "no Python kernel"
    print(f"{served}: {len(cells)} cells, page and kernel are there")


def main(command):
    notebook = next((Path(word) for word in command.split() if word.endswith(".ipynb")), None)
    if notebook is None:
        sys.exit(f"README.md: {command!r} should open a notebook")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "config").mkdir()
        (scratch / "config" / "jupyter_server_config.json").write_text(json.dumps(SETTINGS))
        log = scratch / "server.log"
        with log.open("w") as output:
            server = subprocess.Popen(
                "exec " + command,
                shell=True,
                env=environment(scratch),
                stdout=output,
                stderr=output,
            )
        try:
            info = wait_for(server, scratch / "runtime")
            if info is None:
                sys.exit(f"JupyterLab did not start:\n{log.read_text()[-4000:]}")
            look_at(info, notebook)
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


if __name__ == "__main__":
    main(sys.argv[1])
