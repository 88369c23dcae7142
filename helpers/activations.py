"""Read and cache the residual stream of every layer (notebook 02).

Layer L means the output of block L (resid_post), here and everywhere in this package.
"""

from contextlib import contextmanager

import torch
from torch import Tensor

from .batches import READING, Batches
from .chat import answer_starts
from .checks import SteeringError, checked, finite
from .concepts import SENTIMENT
from .hooks import hooked, refuse_inside_steer
from .models import (
    blocks,
    d_model,
    decoder,
    encode,
    last_token,
    resolve_layer,
    rows_of,
)


@checked
@contextmanager
def capture(model, layers=None, keep=torch.clone):
    """Record the residual stream behind blocks (default: all) while the model runs.

    Yields a dict, layer to what the latest forward pass left there: ``keep`` of the hidden
    state [batch, token, d_model], which must return a new tensor. Our hooks, and only ours, are
    gone when the block of code ends.
    """
    layers = range(len(blocks(model))) if layers is None else layers
    store = {}

    def recorder(layer):
        def record(hidden):
            store[layer] = keep(hidden.detach())

        return record

    recorders = {at: recorder(at) for at in (resolve_layer(model, layer) for layer in layers)}
    with hooked(model, "capture", recorders):
        yield store


@checked
@torch.no_grad()
def residual_stream(model, tokenizer, prompts, position=-1, batch_tokens=READING) -> Tensor:
    """Cache one vector per layer and prompt.

    Parameters
    ----------
    prompts : list of str or of dialogues
    position : int, "mean" or "answer"
        Which token of each prompt: -1 is the last real one, 0 the first. ``"mean"`` averages
        all of them but the first, which in GPT-2 carries a massive activation
        (Sun et al. 2024, arXiv 2402.17762). ``"answer"`` averages those of the answer with which
        each dialogue ends.
    batch_tokens : int
        Tokens in one forward pass; the result does not depend on it.

    Returns float32 [layer, prompt, d_model] on the CPU.
    Raises SteeringError for prompts that cannot be used, or that have no token at this position,
    as a text has no answer.
    """
    refuse_inside_steer(model, only_rows=True)
    everything = encode(model, tokenizer, prompts)
    starts = answer_starts(tokenizer, prompts) if position == "answer" else [1]
    weights = _token_weights(everything["attention_mask"], position, starts)
    lengths = everything["attention_mask"].sum(1).tolist()
    cache = torch.empty(len(blocks(model)), len(lengths), d_model(model))

    def read(rows):
        batch = rows_of(everything, rows)
        wanted = weights[rows, : batch["input_ids"].shape[1]]
        with capture(model, keep=lambda hidden: _pick(hidden, wanted)) as captured:
            decoder(model)(**batch, use_cache=False)
        for layer, picked in captured.items():
            cache[layer, rows] = picked

    Batches(batch_tokens).run(read, lengths, "caching")
    return finite(cache, "the residual stream", model)


def _pick(hidden, weights) -> Tensor:
    """Weighted sum over the tokens: [batch, token, d_model] to [batch, d_model]."""
    return torch.einsum("btd,bt->bd", hidden.float(), weights.to(hidden.device)).cpu()


def _token_weights(attention_mask, position, starts) -> Tensor:
    """[batch, token]: 1 at the wanted token of each right-padded row, or a mean's weights.

    ``starts`` [row or 1] is where a mean begins.
    """
    columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = last_token(attention_mask)[:, None]
    if position in ("mean", "answer"):
        chosen = (columns >= torch.tensor(starts)[:, None].to(last)) & (columns <= last)
    else:
        wanted = position if position >= 0 else last + 1 + position
        chosen = (columns == wanted) & (columns <= last)
    if not chosen.any(1).all():
        raise SteeringError(
            f"Position {position!r} does not exist in every prompt: the shortest has "
            f"{int(last.min()) + 1} token(s)."
        )
    return chosen / chosen.sum(1, keepdim=True)


@checked
@torch.no_grad()
def typical_norm(model, tokenizer, concept=SENTIMENT, prompts=None) -> Tensor:
    """The length that the residual stream usually has: the scale of a force.

    Median over all real tokens of the prompts, the first of each left out (its massive
    activation would swamp the rest).

    Prompts default to those of the concept's pairs. Returns float32 [layer] on the CPU.
    Raises SteeringError for prompts that cannot be used, or if none has a second token.
    """
    batch = encode(model, tokenizer, concept.pair_prompts if prompts is None else prompts)
    real = batch["attention_mask"].bool()
    real[:, 0] = False
    if not real.any():
        raise SteeringError("No prompt has a second token: typical_norm leaves the first out.")
    keep = lambda h: h[real.to(h.device)].float().norm(dim=-1).median().cpu()  # noqa: E731
    with capture(model, keep=keep) as captured:
        decoder(model)(**batch, use_cache=False)
    norms = torch.stack([captured[layer] for layer in sorted(captured)])
    return finite(norms, "the norm of the residual stream", model)
