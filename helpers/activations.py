"""Read and cache the residual stream of every layer (notebook 02).

Layer L means the output of block L (resid_post), here and everywhere in this package.
"""

from contextlib import ExitStack, contextmanager
from numbers import Integral

import torch
from torch import Tensor

from .models import (
    SteeringError,
    blocks,
    check_prompts,
    d_model,
    decoder,
    encode,
    hidden_state,
    last_token,
    progress,
    resolve_layer,
)
from .pairs import SENTIMENT_PAIRS


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
        def hook(module, args, output):
            store[layer] = keep(hidden_state(output).detach())

        return hook

    with ExitStack() as stack:  # removes what was registered, even if registering fails midway
        for layer in layers:
            layer = resolve_layer(model, layer)
            stack.callback(blocks(model)[layer].register_forward_hook(recorder(layer)).remove)
        yield store


@torch.no_grad()
def residual_stream(model, tokenizer, prompts, position=-1, batch_size=32):
    """Cache one vector per layer and prompt.

    Parameters
    ----------
    prompts : list of str
    position : int or "mean"
        Which token of each prompt: -1 is the last real one, 0 the first. ``"mean"`` averages
        all of them but the first, which in GPT-2 carries a massive activation
        (Sun et al. 2024, arXiv 2402.17762).
    batch_size : int
        Prompts per forward pass. Prompts of similar length share one; the result does not
        depend on it.

    Returns float32 [layer, prompt, d_model] on the CPU.
    Raises SteeringError for prompts that cannot be used, or that have no token at this position.
    """
    prompts = check_prompts(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    cache = torch.empty(len(blocks(model)), len(prompts), d_model(model))
    starts = range(0, len(order), batch_size)
    for start in progress(starts, desc="caching"):
        rows = order[start : start + batch_size]
        batch = encode(model, tokenizer, [prompts[i] for i in rows])
        weights = _token_weights(batch["attention_mask"], position)
        with capture(model, keep=lambda h, w=weights: _pick(h, w)) as captured:
            decoder(model)(**batch, use_cache=False)
        for layer, picked in captured.items():
            cache[layer, rows] = picked
    return cache


def _pick(hidden, weights):
    """Weighted sum over the tokens: [batch, token, d_model] to [batch, d_model]."""
    return torch.einsum("btd,bt->bd", hidden.float(), weights.to(hidden.device)).cpu()


def _token_weights(attention_mask, position):
    """[batch, token]: 1 at the wanted token of each right-padded row, or a mean's weights."""
    columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = last_token(attention_mask)[:, None]
    if position == "mean":
        chosen = (columns >= 1) & (columns <= last)
    elif isinstance(position, Integral):
        wanted = position if position >= 0 else last + 1 + position
        chosen = (columns == wanted) & (columns <= last)
    else:
        raise SteeringError(f"Unknown position {position!r}: give an integer or 'mean'.")
    if not chosen.any(1).all():
        raise SteeringError(
            f"Position {position!r} does not exist in every prompt: the shortest has "
            f"{int(last.min()) + 1} token(s)."
        )
    return chosen / chosen.sum(1, keepdim=True)


@torch.no_grad()
def typical_norm(model, tokenizer, prompts=None) -> Tensor:
    """The length that the residual stream usually has: the scale of a force.

    Median over all real tokens of the prompts, the first of each left out (its massive
    activation would swamp the rest).

    Prompts default to the sentences of ``SENTIMENT_PAIRS``. Returns float32 [layer] on the CPU.
    Raises SteeringError for prompts that cannot be used, or if none has a second token.
    """
    if prompts is None:
        prompts = [prompt for pair in SENTIMENT_PAIRS for prompt in pair]
    batch = encode(model, tokenizer, prompts)
    real = batch["attention_mask"].bool()
    real[:, 0] = False
    if not real.any():
        raise SteeringError("No prompt has a second token: typical_norm leaves the first out.")
    keep = lambda h: h[real.to(h.device)].float().norm(dim=-1).median().cpu()  # noqa: E731
    with capture(model, keep=keep) as captured:
        decoder(model)(**batch, use_cache=False)
    return torch.stack([captured[layer] for layer in sorted(captured)])
