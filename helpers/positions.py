"""Which tokens a push reaches, whether a text is read at once or grows in a cache (notebook 04)."""

import torch
from torch import Tensor

from .checks import SteeringError

POSITIONS = ("all", "prompt", "generated")


class Scope:
    """The tokens that one block of code pushes, in whichever forward pass runs.

    ``positions`` and ``prompt_lengths`` are as in ``steer``; ``push`` is what tells this push from
    others, None if it is none; ``n_rows`` how many rows are pushed differently. Raises
    SteeringError for positions that do not exist.
    """

    def __init__(self, positions, prompt_lengths, push, n_rows=1):
        if positions not in POSITIONS:
            raise SteeringError(f"Unknown positions {positions!r}: choose {', '.join(POSITIONS)}.")
        if positions != "all" and prompt_lengths is None:
            raise SteeringError(f"positions={positions!r} needs prompt_lengths: where prompts end.")
        self.positions = positions
        self.lengths = torch.tensor(1 if prompt_lengths is None else prompt_lengths).reshape(-1)
        self.push = None if push is None else hash((positions, tuple(self.lengths.tolist()), push))
        self.n_rows = max(n_rows, len(self.lengths))
        self.now, self.cache = None, None

    def begin(self, arguments, has_cache, pushes):
        """Take note of what a forward pass is called with, before its blocks lengthen the cache.

        ``pushes`` are all that are under way. Raises SteeringError for a cache with tokens that
        were read under others, and for a model without a KV cache unless all tokens are pushed.
        """
        self.cache = cache = arguments.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        mask, place = arguments.get("attention_mask"), arguments.get("position_ids")
        tokens = arguments.get("input_ids")
        n_new = (arguments["inputs_embeds"] if tokens is None else tokens).shape[1]
        if not has_cache:
            if self.positions != "all":
                raise SteeringError("In a model without a KV cache only positions='all' is known.")
            past = mask.shape[1] - n_new if isinstance(mask, Tensor) else 0
        real, place = token_positions(n_new, mask, past, place)
        place = None if place is None else place.clone()  # some models change it
        self.now = real, place
        read_by, n_read = getattr(cache, "read_by", (set(), 0))
        if past and (read_by != pushes or past > n_read) and self.push is not None:
            spared = self.positions == "generated" and place is not None
            if not spared or bool((place[:, :1].cpu() > self.lengths[:, None]).any()):
                raise SteeringError(
                    f"The cache holds {past} tokens that were read without this push, or with "
                    f"another, and positions={self.positions!r} pushes them too: fill the cache "
                    "inside the same blocks, or steer the tokens after the prompt with "
                    "positions='generated'."
                )

    def end(self, output, pushes):
        """Mark the cache that a forward pass leaves; a copy of it has the mark too."""
        self.now, cache = None, getattr(output, "past_key_values", None) or self.cache
        if cache is not None:
            cache.read_by = pushes, int(cache.get_seq_length())

    def tokens(self, n_rows) -> Tensor | None:
        """Which tokens of the pass are pushed, bool [row or 1, token], or None if all are."""
        if self.now is None:
            raise SteeringError("Blocks are steered while the whole model runs, not by themselves.")
        check_rows("prompt_lengths", len(self.lengths), n_rows)
        return _where(*self.now, self.positions, self.lengths)


def steered_tokens(
    n_new, attention_mask, past, positions, prompt_lengths=None, position_ids=None
) -> Tensor | None:
    """Which of the ``n_new`` tokens now passing through the blocks are to be steered.

    ``past`` tokens lie in the KV cache already; ``positions`` and ``prompt_lengths`` are as in
    ``steer``, the rest as in ``token_positions``. Returns bool [row or 1, n_new], or None if
    every token is steered.
    """
    real, place = token_positions(n_new, attention_mask, past, position_ids)
    lengths = torch.tensor(1) if prompt_lengths is None else torch.as_tensor(prompt_lengths)
    return _where(real, place, positions, lengths)


def _where(real, place, positions, lengths) -> Tensor | None:
    if positions != "all":
        if place is None or bool(((place.diff() < 0) & real[:, 1:] & real[:, :-1]).any()):
            raise SteeringError(
                f"positions={positions!r} needs to know where each token stands: pass one text a "
                "row and position_ids, or use a cache that grows, the default."
            )
        in_prompt = place.to(real.device) < lengths.to(real.device).reshape(-1, 1)
        real = real & (in_prompt if positions == "prompt" else ~in_prompt)
    return None if real.all() else real


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
    if ndim == 2 and attention_mask.shape[1] >= past + n_new:
        mask = attention_mask[:, : past + n_new]  # of a cache of a fixed size, the rest is to come
        # A token's position counts the real tokens before it, so padding shifts nothing.
        place = (mask.long().cumsum(1) - 1)[:, past:]
        whole = bool(mask.all()) and getattr(position_ids, "ndim", 0) == 2
        return mask.bool()[:, past:], position_ids if whole else place
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
