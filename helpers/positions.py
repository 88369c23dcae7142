"""Which tokens a push reaches, whether a text is read at once or grows in a cache (notebook 04)."""

import torch
from torch import Tensor

from .checks import SteeringError

POSITIONS = ("all", "prompt", "generated")


class Scope:
    """The tokens that one ``steer`` block pushes, in whichever forward pass runs.

    ``positions`` and ``prompt_lengths`` are as in ``steer``; ``push`` is what tells this push
    from others. Raises SteeringError for positions that do not exist.
    """

    def __init__(self, positions, prompt_lengths, push):
        if positions not in POSITIONS:
            raise SteeringError(f"Unknown positions {positions!r}: choose {', '.join(POSITIONS)}.")
        if positions != "all" and prompt_lengths is None:
            raise SteeringError(f"positions={positions!r} needs prompt_lengths: where prompts end.")
        self.positions = positions
        self.lengths = torch.tensor(1 if prompt_lengths is None else prompt_lengths).reshape(-1)
        self.push = hash((positions, tuple(self.lengths.tolist()), push))
        self.now = {"attention_mask": None, "past": 0, "position_ids": None}

    def begin(self, arguments):
        """Take note of what a forward pass is called with, before its blocks lengthen the cache.

        Raises SteeringError for a cache that holds tokens which should have been pushed.
        """
        cache = arguments.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        self.now = {name: arguments.get(name) for name in ("attention_mask", "position_ids")}
        self.now["past"] = past
        if past and self.push not in getattr(cache, "pushed_by", ()):
            _, position = token_positions(1, **self.now)
            spared = self.positions == "generated" and position is not None
            if not spared or bool((position.cpu() > self.lengths[:, None]).any()):
                raise SteeringError(
                    f"The cache holds {past} tokens that were read without this push, and "
                    f"positions={self.positions!r} pushes them too: fill the cache inside this "
                    "`steer` block, or steer the tokens after the prompt with "
                    "positions='generated'."
                )

    def end(self, output):
        """Mark the cache that a forward pass leaves; a copy of it has the mark too."""
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            cache.pushed_by = {*getattr(cache, "pushed_by", ()), self.push}

    def tokens(self, n_rows, n_new) -> Tensor | None:
        """Those of the n_new tokens that are pushed, as ``steered_tokens`` gives them."""
        check_rows("prompt_lengths", len(self.lengths), n_rows)
        return steered_tokens(
            n_new, positions=self.positions, prompt_lengths=self.lengths, **self.now
        )


def steered_tokens(
    n_new, attention_mask, past, positions, prompt_lengths=None, position_ids=None
) -> Tensor | None:
    """Which of the ``n_new`` tokens now passing through the blocks are to be steered.

    ``past`` tokens lie in the KV cache already; ``positions`` and ``prompt_lengths`` are as in
    ``steer``, the rest as in ``token_positions``. Returns bool [row or 1, n_new], or None if
    every token is steered.
    """
    where, position = token_positions(n_new, attention_mask, past, position_ids)
    if positions != "all" and position is None:
        raise SteeringError(
            f"positions={positions!r} needs to know where each token stands: pass position_ids, or "
            "use a cache that grows, the default."
        )
    if positions != "all":
        lengths = torch.as_tensor(prompt_lengths, device=where.device).reshape(-1, 1)
        in_prompt = position.to(where.device) < lengths
        where = where & (in_prompt if positions == "prompt" else ~in_prompt)
    return None if where.all() else where


def token_positions(n_new, attention_mask, past, position_ids=None) -> tuple[Tensor, Tensor | None]:
    """Which of the new tokens are real, and how many real tokens stand before each.

    ``attention_mask`` is None; or [row, past + n_new], 0 for padding on either side; or, as
    caches of a fixed size have it, [row, 1, n_new, cached], by kind of attention if they differ.
    That one does not tell positions: those are ``position_ids`` [row, n_new], if given.

    Returns bool and int [row or 1, n_new], the latter perhaps None. Raises SteeringError for a mask
    of another form.
    """
    if isinstance(attention_mask, dict):
        attention_mask = next(iter(attention_mask.values()))
    if attention_mask is None:
        attention_mask = torch.ones(1, past + n_new, dtype=torch.long)
    ndim = attention_mask.ndim if isinstance(attention_mask, Tensor) else None
    if ndim == 2 and not (past and attention_mask.shape[1] != past + n_new):
        # A token's position counts the real tokens before it, so padding shifts nothing.
        position = attention_mask.long().cumsum(1) - 1
        return attention_mask.bool()[:, -n_new:], position[:, -n_new:]
    if ndim == 4:
        allowed = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
        # A real token may look at itself. A window that slides keeps the latest columns.
        first = min(past, allowed.shape[3] - n_new)
        return allowed[:, 0, :, first:].diagonal(dim1=1, dim2=2), position_ids
    raise SteeringError(
        "Steering needs the attention mask as a tensor [row, token], as long as the tokens in the "
        "cache and the new ones together, or [row, 1, new token, cached token]. The default cache, "
        "which grows, has it so."
    )


def check_rows(what, n, n_rows):
    """Raise SteeringError unless there is one value for all rows of a batch, or one for each."""
    if n not in (1, n_rows):
        raise SteeringError(
            f"There are {what} for {n} rows, but the batch has {n_rows}. Beam search and "
            f"num_return_sequences repeat every prompt: repeat the {what} likewise, with "
            "repeat_interleave."
        )
