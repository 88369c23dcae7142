"""Compare the ways to push of notebook 08 on two models and write the table of its ninth claim.

    python images/make_ways.py            from the root of the repository; minutes on a CPU

The ways and their calibration are the notebook's own cells, run here at two budgets. The real
model must be installed (README, "Use a real model").
"""

import helpers  # noqa: F401  # isort: skip  # first: it sets how torch's threads wait

import os
from pathlib import Path

import nbformat
import numpy as np
import torch

from helpers.activations import capture
from helpers.calibration import ORDINARY, strength_at
from helpers.models import encode
from helpers.sweeps import sweep_damage
from helpers.tables import Table

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "08_testing_the_folklore.ipynb"
TABLE_CELL = "ways-table"
BUDGETS = (0.25, 1.0)  # bits per token


def compare_ways(cells, name):
    """For each budget and layer: pulls, differences from adding, and lengths moved, as texts."""
    os.environ |= {"STEERING_MODEL": name, "STEERING_DEVICE": "cpu"}
    here = {"ORDINARY": ORDINARY, "np": np}
    for cell in ("load-model", "ways"):
        exec(cells[cell], here)
    for budget in BUDGETS:
        run = here | {"allowed": budget}
        exec(cells["ways-run"], run)
        for i, vector in enumerate(run["places"]):
            pull = np.array([drawn[:, i] for _, drawn in run["runs"].values()])
            forces = {way: equal.forces[i] for way, (equal, _) in run["runs"].items()}
            apart = [with_interval(x) for x in pull[1:] - pull[0]]
            moved, bits = displaced(here, vector, forces, run["middle"][i])
            yield [f"{budget:g}", vector.layer, with_interval(pull[0]), *apart, moved, bits]


def with_interval(draws):
    """The first of some draws, which is the sample's own, and the middle 95 % of all."""
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(draws[0], *np.percentile(draws, [2.5, 97.5]))


def displaced(here, vector, forces, middle):
    """Norms by which each way moves the tokens but the first, and what turning as far costs."""
    model, tokenizer, layer = here["model"], here["tokenizer"], vector.layer
    batch = encode(model, tokenizer, ORDINARY)
    with capture(model, [layer]) as stream:
        model(**batch)
    mask = batch["attention_mask"].bool()
    mask[:, 0] = False
    h, norm, v = stream[layer][mask], here["scale"][layer], vector.direction

    def length(way, force):
        return (here["ways"][way](h, v, force) - h).norm(dim=-1).mean() / norm

    moved = {way: [length(way, force) for force in both] for way, both in forces.items()}

    def turn(rows, angles):  # a row a sign
        signs = torch.tensor([1.0, -1.0])[rows]
        return torch.stack([length("rotate", x) for x in signs * angles])[:, None]

    bits = []
    for row, (far, sign) in enumerate(zip(moved["add"], (1, -1), strict=True)):
        found = strength_at(lambda _, x, row=row: turn([row], x), [0.2], [3.0], far)
        angle = sign * found.strengths * far / found.damage[:, 0]  # nearly in proportion
        how = {"way": here["ways"]["rotate"]}
        bits.append(sweep_damage(model, tokenizer, ORDINARY, vector, angle, **how).mean())
    return ", ".join(f"{np.mean(x):.2f}" for x in moved.values()), f"{np.mean(bits):.2f}"


def write(rows):
    """Put the table into the notebook."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [cell] = [cell for cell in notebook.cells if cell.id == TABLE_CELL]
    apart = [f"{way} − add" for way in ("keep", "rotate", "clamp")]
    ends = ["norms moved: add, keep, rotate, clamp", "bits of a turn as far as add"]
    cell.source = Table(["model", "bits", "layer", "add", *apart, *ends], rows).markdown()
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    cells = {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
    models = {"bundled": "pocket", "SmolLM2": "smollm2"}
    write([[label, *row] for label, name in models.items() for row in compare_ways(cells, name)])
