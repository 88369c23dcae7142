"""Every notebook also runs on other models, and with another concept; outputs are not compared.

One other model has another architecture, depth and width, and random weights but for sixteen
sentences that it has learned by heart, so that a push can damage its reading; one is a real
language model, where its package is installed. The other concept has five pairs, other words,
prompts and sentences, and not as many of one label as of the other. nbval runs the cells because,
unlike other runners, it does not swallow an exception raised in a widget's callback.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from real_model import LACKING

ROOT = Path(__file__).resolve().parents[1]
POCKET = ROOT / "helpers" / "pocket"
OTHER_CONCEPT = Path(__file__).with_name("other_concept.json")
# Notebook 09 names its models itself, and asks for questions that the other concept lacks.
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0[1-8]_*.ipynb"))
SECONDS_PER_NOTEBOOK = 600
SECONDS_ON_THE_REAL_MODEL = 3600  # on one thread, beside other tests
LINES_SHOWN = 60


@pytest.fixture(scope="session")
def other_llama(tmp_path_factory):
    """Folder with a Llama that shares only the tokenizer with the bundled model."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from helpers.calibration import ORDINARY

    folder = tmp_path_factory.mktemp("other-llama")
    for file in POCKET.glob("token*"):
        shutil.copy(file, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=5,
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=96,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    batch = tokenizer(ORDINARY, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss < 1  # in nats; guessing is 9
    model.save_pretrained(folder)
    return folder


def run_with(notebook, seconds=SECONDS_PER_NOTEBOOK, **environment):
    """Run a notebook under some environment variables; fail with the end of what it said."""
    command = [sys.executable, "-m", "pytest", str(notebook), "--noconftest", "--rootdir", ROOT]
    command += ["-o", "addopts=", "-p", "no:xdist", "-p", "no:cacheprovider", "-q", "-x"]
    command += ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={seconds // 2}"]
    inherited = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=seconds,
    )
    tail = "\n".join(run.stdout.splitlines()[-LINES_SHOWN:])
    assert run.returncode == 0, f"{notebook.name} failed under {environment}:\n{tail}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_on_another_model(notebook, other_llama):
    run_with(notebook, STEERING_MODEL=str(other_llama))


@pytest.mark.skipif(bool(LACKING), reason=LACKING)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_on_a_real_model(notebook):
    """With the other concept: a quarter of the texts, and of the minutes."""
    concept = os.environ.get("STEERING_REAL_CONCEPT", str(OTHER_CONCEPT))
    environment = {"STEERING_MODEL": "smollm2", "STEERING_CONCEPT": concept}
    run_with(notebook, SECONDS_ON_THE_REAL_MODEL, **environment)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_with_another_concept(notebook):
    run_with(notebook, STEERING_CONCEPT=str(OTHER_CONCEPT))
