"""Execute notebooks in place and store their outputs, as the tests expect them.

    python tests/execute_notebooks.py                    every notebook
    python tests/execute_notebooks.py notebooks/03_*     some of them

Each runs in a fresh kernel, on the bundled model and the CPU. Exercise stubs (cells tagged
nbval-skip) are left out. What would differ between two machines or two runs is removed, so
that a change in the file is a change in the notebook. A notebook whose cell fails is not
written.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import conftest  # noqa: F401  sets the environment of a test run

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
STUB = "nbval-skip"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# Only the front end of the run that made it can show it, and its id is random.
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def execute(path):
    """Run one notebook, write it back, and return (seconds, peak memory in GB or None)."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,
    )
    start = time.perf_counter()
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            if STUB in cell.metadata.get("tags", []):
                cell.outputs, cell.execution_count = [], None
            else:
                client.execute_cell(cell, index)
        seconds = time.perf_counter() - start
        memory = peak_memory(client.km.provisioner.pid)
    normalise(notebook)
    nbformat.write(notebook, path)
    return seconds, memory


def normalise(notebook):
    """Remove from a notebook, in place, what depends on the machine or the run."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    for cell in notebook.cells:
        for timing in ("execution", "ExecuteTime"):
            cell.metadata.pop(timing, None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)


def peak_memory(process_id):
    """Most memory in GB that the process held at any time, where /proc tells it."""
    status = Path(f"/proc/{process_id}/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1e6


def main(arguments):
    failed = False
    for path in map(Path, arguments) if arguments else sorted(NOTEBOOKS.glob("*.ipynb")):
        try:
            seconds, memory = execute(path.resolve())
        except CellExecutionError as error:
            failed = True
            print(f"{path.name}: a cell failed, nothing was written\n{error}", file=sys.stderr)
            continue
        peak = "" if memory is None else f", at most {memory:.2f} GB"
        print(f"{path.name}: {seconds:.0f} s{peak}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
