"""Long work in batches that fit the memory, with a progress bar."""

import os
import warnings
from contextlib import contextmanager, nullcontext

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from IPython.display import display
from tqdm.auto import tqdm

from .checks import above_0

# Tokens in one forward pass, padding included. On a CPU larger batches gain nothing more; a
# single new token for each of many texts is so little work that more of those share a batch.
READING, WRITING = 2048, 4096
_MAKE_BAR = tqdm.__init__


class Batches:
    """Runs work on rows in batches of at most ``tokens`` tokens, rows of similar length together.

    When memory runs out, batches are half as large from then on, with a warning.

    Raises SteeringError unless ``tokens`` is a whole number above 0.
    """

    def __init__(self, tokens):
        self.tokens = above_0(tokens, "batch_tokens")

    def run(self, work, lengths, desc=None, bar=None) -> None:
        """Call ``work(rows)``, a list of row numbers, until each row has had its turn.

        ``lengths`` [row] are in tokens. Progress shows in ``bar``, or in one of its own that is
        labelled ``desc``.
        """
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        own = bar is None and desc is not None
        with progress(total=len(order), desc=desc) if own else nullcontext(bar) as bar:
            while order:
                rows = self._first(order, lengths)
                try:
                    work(rows)
                    if bar is not None:
                        bar.update(len(rows))
                    order = order[len(rows) :]
                    continue
                except RuntimeError as error:
                    if len(rows) == 1 or not should_reduce_batch_size(error):
                        raise
                # Only here is the error gone, and with it what the failed pass kept in memory.
                self.tokens = max(1, len(rows) * lengths[rows[-1]] // 2)
                message = f"Out of memory: going on with {self.tokens} tokens at a time."
                warnings.warn(message, stacklevel=2)
                clear_device_cache(garbage_collection=True)

    def _first(self, order, lengths):
        """As many of the first rows as fit, at least one; the last of them is the longest."""
        n = 1
        while n < len(order) and (n + 1) * lengths[order[n]] <= self.tokens:
            n += 1
        return order[:n]


def progress(work=None, **labels) -> tqdm:
    """A progress bar that shows when work takes more than two seconds, and goes when it is done.

    Arguments as those of ``tqdm``, whose variable TQDM_DISABLE=1 here hides it in notebooks too.
    """
    steps = labels["total"] if work is None else len(work)
    # Of a single step a bar tells nothing, and in a notebook making one takes a widget.
    with passing_bars():
        return tqdm(work, disable=steps < 2, **labels)


@contextmanager
def passing_bars():
    """Bars made meanwhile, those of other packages too, show after two seconds and go when done."""

    def make(bar, *args, **labels):
        hidden = bool(os.environ.get("TQDM_DISABLE")) or labels.get("disable")
        _MAKE_BAR(bar, *args, **labels | {"leave": False, "delay": 2, "disable": hidden})
        if hasattr(bar, "container"):
            _empty_when_closed(bar)

    tqdm.__init__ = make
    try:
        yield
    finally:
        tqdm.__init__ = _MAKE_BAR


def _empty_when_closed(bar):
    """Of a closed bar tqdm leaves a line of text in a notebook's output: here it leaves none."""
    shown, draw = [], bar.display

    def show(*args, check_delay=True, close=False, **labels):
        if check_delay and not shown:
            shown.append(display(bar.container, display_id=True))
        draw(*args, check_delay=False, close=close, **labels)
        if close and shown:
            shown[0].update({"text/plain": ""}, raw=True)

    bar.display = bar.disp = show
