import re
import warnings
import weakref

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from helpers import batches
from helpers.activations import residual_stream
from helpers.batches import Batches, passing_bars, progress
from helpers.evaluation import log_odds, perplexity
from helpers.models import SteeringError
from helpers.sweeps import sweep, sweep_damage, sweep_texts
from tiny_models import PROMPTS, make_vector, new_model, tokenizer

LENGTHS = [7, 2, 30, 4, 4, 9, 2, 15, 4]
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."


@pytest.fixture
def cleared(monkeypatch):
    """Counts the times that memory was asked back, which would take long in this process."""
    calls = []
    monkeypatch.setattr(batches, "clear_device_cache", lambda **kwargs: calls.append(kwargs))
    return calls


def batches_of(tokens, lengths=LENGTHS, most=float("inf")):
    """The batches that were worked on, where more than so many padded tokens do not fit."""
    done, tried = [], []

    def work(rows):
        tried.append(list(rows))
        if cost(rows, lengths) > most:
            raise RuntimeError(NO_MEMORY)
        done.append(list(rows))

    Batches(tokens).run(work, lengths)
    return done, tried


def cost(rows, lengths=LENGTHS):
    """Tokens of a batch, padding included."""
    return len(rows) * max(lengths[row] for row in rows)


# -- Which rows share a batch


@pytest.mark.parametrize("tokens", [1, 8, 12, 30, 31, 64, 10_000])
def test_every_row_has_its_turn_once_in_batches_that_fit(tokens):
    done, _ = batches_of(tokens)
    assert sorted(sum(done, [])) == list(range(len(LENGTHS)))
    for rows in done:
        assert cost(rows) <= tokens or len(rows) == 1


def test_rows_of_similar_length_share_a_batch_as_many_as_fit():
    done, _ = batches_of(16)
    assert [[LENGTHS[row] for row in rows] for rows in done] == [
        [2, 2, 4, 4], [4, 7], [9], [15], [30],
    ]  # fmt: skip
    for rows, following in zip(done, done[1:], strict=False):
        assert cost([*rows, following[0]]) > 16
    assert batches_of(10_000)[0] == [[1, 6, 3, 4, 8, 0, 5, 7, 2]]


def test_no_rows_are_no_work():
    assert batches_of(16, []) == ([], [])


@pytest.mark.parametrize("tokens", [0, -1, 2048.0, True, None, "2048"])
def test_a_size_that_is_no_number_of_tokens(tokens):
    message = rf"batch_tokens must be a whole number above 0, got {tokens!r}"
    with pytest.raises(SteeringError, match=message):
        Batches(tokens)


# -- Too little memory


@pytest.mark.parametrize("most", [30, 45, 100])
def test_batches_too_large_for_the_memory_are_halved_for_good(most, cleared):
    with pytest.warns(UserWarning) as caught:
        done, tried = batches_of(1_000, most=most)
    assert sorted(sum(done, [])) == list(range(len(LENGTHS)))
    assert max(map(cost, done)) <= most
    message = r"Out of memory: going on with (\d+) tokens at a time\."
    sizes = [int(re.fullmatch(message, str(x.message))[1]) for x in caught]
    # Half of what was tried, which may be far less than what was asked for.
    failed = [rows for rows in tried if cost(rows) > most]
    assert sizes == [cost(rows) // 2 for rows in failed] and cost(failed[0]) == 270
    assert len(cleared) == len(failed) == len(tried) - len(done)


def test_what_is_learnt_holds_for_the_next_run(cleared):
    at_once, tried = Batches(64), []

    def work(rows):
        tried.append(len(rows))
        if len(rows) > 4:
            raise RuntimeError(NO_MEMORY)

    with pytest.warns(UserWarning) as caught:
        at_once.run(work, [2] * 10)
    assert "going on with 5 tokens" in str(caught[-1].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at_once.run(work, [2] * 10)
    assert tried == [10, 5, *[2] * 5, *[2] * 5] and len(cleared) == 2


def test_a_single_row_that_does_not_fit_fails(cleared):
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="can't allocate"):
        batches_of(1_000, most=20)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), KeyboardInterrupt()])
def test_another_error_is_no_reason_to_try_again(error, cleared):
    tried = []

    def work(rows):
        tried.append(rows)
        raise error

    with warnings.catch_warnings(), pytest.raises(type(error)):
        warnings.simplefilter("error")
        Batches(64).run(work, LENGTHS)
    assert len(tried) == 1 and not cleared


def test_what_a_failed_batch_held_is_free_before_the_next(monkeypatch):
    held, alive = [], []
    monkeypatch.setattr(
        batches, "clear_device_cache", lambda **kwargs: alive.append(held[-1]() is not None)
    )

    def work(rows):
        activations = torch.zeros(len(rows))
        held.append(weakref.ref(activations))
        if len(rows) > 1:
            raise RuntimeError(NO_MEMORY)

    with pytest.warns(UserWarning):
        Batches(64).run(work, [2] * 4)
    assert alive == [False, False]


# -- Whoever takes batch_tokens keeps to it

VECTORS = [make_vector(0), make_vector(1, seed=1)]
READERS = {
    "residual_stream": lambda *m, **o: residual_stream(*m, PROMPTS, **o),
    "log_odds": lambda *m, **o: log_odds(*m, PROMPTS, VECTORS[0], 2.0, **o),
    "perplexity": lambda *m, **o: perplexity(*m, PROMPTS, [" good", " too cold", " it"], **o),
    "sweep": lambda *m, **o: sweep(*m, PROMPTS, VECTORS, [-1.0, 1.0], **o).effect,
    "sweep_damage": lambda *m, **o: sweep_damage(*m, PROMPTS, VECTORS, [-1.0, 1.0], **o),
}


def note_passes(model):
    """Rows and width of every forward pass, from now on."""
    passes = []

    def note(module, args, kwargs):
        passes.append(tuple((args[0] if args else kwargs["input_ids"]).shape))

    model.transformer.register_forward_pre_hook(note, with_kwargs=True)
    return passes


@pytest.mark.parametrize("reader", READERS)
def test_no_forward_pass_reads_more_tokens_than_that(reader):
    model = new_model()
    passes = note_passes(model)
    whole = READERS[reader](model, tokenizer())
    at_once = len(passes)
    passes.clear()
    in_parts = READERS[reader](model, tokenizer(), batch_tokens=24)
    torch.testing.assert_close(in_parts, whole, atol=1e-4, rtol=1e-4)
    assert len(passes) > at_once
    assert all(rows * width <= 24 for rows, width in passes)
    assert max(rows for rows, _ in passes) > 1
    with pytest.raises(SteeringError, match="batch_tokens must be a whole number above 0, got 0"):
        READERS[reader](model, tokenizer(), batch_tokens=0)


def test_texts_are_written_in_parts_of_that_size():
    model = new_model()
    passes = note_passes(model)
    options = {"max_new_tokens": 3, "priced": False}
    whole = sweep_texts(model, tokenizer(), PROMPTS, VECTORS, [-1.0, 1.0], **options)
    assert (
        max(rows for rows, _ in passes) == 12 + 3
    )  # every text, and the unsteered one of each prompt
    passes.clear()
    options["batch_tokens"] = 28  # four texts of the shorter prompts, with their new tokens
    in_parts = sweep_texts(model, tokenizer(), PROMPTS, VECTORS, [-1.0, 1.0], **options)
    assert in_parts.texts == whole.texts
    assert max(rows for rows, _ in passes) == 4 + 1
    with pytest.raises(SteeringError, match="batch_tokens must be a whole number above 0, got -1"):
        sweep_texts(model, tokenizer(), PROMPTS, VECTORS, [1.0], batch_tokens=-1)


# -- Progress


@pytest.fixture
def bars(monkeypatch):
    """Every bar that is made, with the bars allowed."""
    made = []

    def keep(*args, **labels):
        made.append(progress(*args, **labels))
        return made[-1]

    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(batches, "progress", keep)
    return made


def test_progress_shows_long_work_and_can_be_hidden(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    bar = progress(range(3), desc="counting")
    assert (bar.disable, bar.delay, bar.leave) == (False, 2, False)
    assert list(bar) == [0, 1, 2]
    assert not progress(total=3).disable
    monkeypatch.setenv("TQDM_DISABLE", "1")
    hidden = progress(total=3)
    assert hidden.disable
    hidden.update(3)


@pytest.mark.parametrize("steps", [0, 1])
def test_of_a_single_step_there_is_no_bar(steps, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert progress(total=steps).disable
    assert list(progress(range(steps))) == list(range(steps))


def test_a_bar_counts_rows_and_is_closed_at_the_end(bars, cleared):
    def work(rows):
        if len(rows) > 4:
            raise RuntimeError(NO_MEMORY)

    with pytest.warns(UserWarning):
        Batches(64).run(work, [2] * 10, "writing")
    (bar,) = bars
    assert (bar.desc.rstrip(": "), bar.total, bar.n) == ("writing", 10, 10)
    with pytest.raises(ZeroDivisionError):
        Batches(64).run(lambda rows: 1 / 0, [2] * 10, "failing")
    assert bars[1].n == 0
    assert not [bar for bar in type(bar)._instances if bar in bars]  # closed, whatever ended it


def test_several_runs_share_the_bar_that_they_are_given(bars):
    with progress(total=20) as mine:
        for _ in range(2):
            Batches(8).run(lambda rows: None, [2] * 10, bar=mine)
        assert mine.n == 20
    Batches(8).run(lambda rows: None, [2] * 10)  # or go without
    assert not bars


class OthersBar(batches.tqdm):
    """As huggingface_hub makes its own."""


@pytest.mark.parametrize("kind", [batches.tqdm, OthersBar])
def test_the_bars_of_other_packages_pass_for_a_while(kind, monkeypatch, capfd):
    def shown(**labels):
        with kind(total=3, desc="loading", disable=False, **labels) as bar:
            bar.update(3)
            return bar.leave, bar.delay, bar.disable, "loading" in capfd.readouterr().err

    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with passing_bars():
        assert shown() == shown(leave=True) == (False, 2, False, False)
        assert kind(total=3, disable=True).disable
        monkeypatch.setenv("TQDM_DISABLE", "1")
        assert kind(total=3, disable=False).disable
    monkeypatch.delenv("TQDM_DISABLE")
    with pytest.raises(KeyboardInterrupt), passing_bars():
        raise KeyboardInterrupt
    assert shown() == (True, 0, False, True)


def test_no_line_of_a_bar_stays_in_a_notebook():
    code = """
import os, time
os.environ.pop("TQDM_DISABLE", None)
from helpers.batches import passing_bars, progress
for _ in progress(range(5), desc="ours"):
    time.sleep(0.5)
with passing_bars():
    from tqdm.auto import tqdm
    for _ in tqdm(range(5), desc="theirs"):
        time.sleep(0.5)
print("done")
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    said = []
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.on_cell_executed = lambda cell, cell_index, execute_reply: said.append(cell.outputs)
    client.execute()
    *bars, done = said[0]
    assert done.text == "done\n"
    assert len(bars) == 2  # both were long enough to show
    assert all(bar.data == {"text/plain": ""} for bar in bars)
