"""Push the residual stream along a direction while the model runs (notebook 04).

h' = h + α·v at the output of a block (Activation Addition, Turner et al. 2023,
arXiv 2308.10248). No weight changes, and nothing is left behind.
"""

import inspect
from contextlib import ExitStack, contextmanager

import torch

from .directions import SteeringVector
from .models import (
    SteeringError,
    blocks,
    d_model,
    decoder,
    hidden_state,
    resolve_layer,
    with_hidden_state,
)

POSITIONS = ("all", "prompt", "generated")


@contextmanager
def steer(model, vector, force, layer=None, positions="all", prompt_lengths=None):
    """Add ``force * vector.direction`` to the output of a block, inside a ``with`` block.

    Parameters
    ----------
    vector : SteeringVector or list of SteeringVector
        Several are added together, each at its own layer.
    force : float or Tensor
        α, a length in the residual stream; a negative one subtracts. One number for all; or
        one for each vector [vector]; or, if there is one vector, for each row of the batch
        [row]; or both [vector, row]: with zeros in it, each row has a layer of its own.
    layer : int, optional
        Where to add, instead of at each vector's own layer.
    positions : {"all", "prompt", "generated"}
        Which tokens to steer. Counted from the start of each text, so the result is the same
        with and without the KV cache. Padding is never steered.
    prompt_lengths : int or Tensor [row], optional
        Real tokens in each prompt; needed unless ``positions="all"``.

    Raises SteeringError, before the model is touched, for a force that is not finite or of the
    wrong shape, a layer out of range, a vector of the wrong width, an unknown word for
    positions; and in a forward pass whose batch has another size than the forces.
    """
    deltas = _delta_by_layer(model, vector, force, layer)
    if positions not in POSITIONS:
        raise SteeringError(f"Unknown positions {positions!r}: choose {', '.join(POSITIONS)}.")
    if positions != "all" and prompt_lengths is None:
        raise SteeringError(f"positions={positions!r} needs prompt_lengths: where prompts end.")
    signature = inspect.signature(decoder(model).forward)
    now = {}  # what the current forward pass was called with

    def remember(module, args, kwargs):
        given = signature.bind_partial(*args, **kwargs).arguments
        now["mask"] = given.get("attention_mask")
        cache = given.get("past_key_values")
        # Read before the blocks run: the first of them makes the cache longer.
        now["past"] = 0 if cache is None else cache.get_seq_length()

    def adder(delta):
        def hook(module, args, output):
            hidden = hidden_state(output)
            if len(delta) not in (1, len(hidden)):
                raise SteeringError(
                    f"There are forces for {len(delta)} rows, but the batch has {len(hidden)}."
                )
            push = delta.to(hidden)[:, None, :]  # the block's own device and dtype
            where = steered_tokens(
                hidden.shape[1], now["mask"], now["past"], positions, prompt_lengths
            )
            if where is not None:
                push = push * where.to(hidden.device)[..., None]
            # Out of place: others may hold the same tensor.
            return with_hidden_state(output, hidden + push)

        return hook

    with ExitStack() as stack:  # takes our hooks away, whatever ends the block of code
        before = decoder(model).register_forward_pre_hook(remember, with_kwargs=True)
        stack.callback(before.remove)
        for at, delta in deltas.items():
            # First in line: whoever else listens to this block hears the steered stream.
            hook = blocks(model)[at].register_forward_hook(adder(delta), prepend=True)
            stack.callback(hook.remove)
        yield


@contextmanager
def ablate(model, vector, layers=None):
    """Take a direction out of the stream behind blocks: h' = h − (h·v)v, inside a ``with`` block.

    Behind every block, or those in ``layers``; on every token. If a behaviour stays, the model
    did not need this direction for it (directional ablation, Arditi et al. 2024, arXiv
    2406.11717). What ``steer`` adds along it inside this block is taken out too.

    Raises SteeringError for a layer out of range or a vector of the wrong width.
    """
    layers = range(len(blocks(model))) if layers is None else layers

    def hook(module, args, output):
        hidden = hidden_state(output)
        v = vector.direction.to(hidden)
        return with_hidden_state(output, hidden - (hidden @ v)[..., None] * v)

    with ExitStack() as stack:
        for at in {layer_of(model, vector, layer) for layer in layers}:
            handle = blocks(model)[at].register_forward_hook(hook, prepend=True)
            stack.callback(handle.remove)
        yield


def steered_tokens(
    n_new, attention_mask, past, positions, prompt_lengths=None
) -> torch.Tensor | None:
    """Which of the ``n_new`` tokens now passing through the blocks are to be steered.

    ``past`` columns lie in the KV cache already; ``attention_mask`` [row, past + n_new] is 0 for
    padding on either side, or None if there is none; ``positions`` and ``prompt_lengths`` are as
    in ``steer``. Returns bool [row or 1, n_new], or None if every token is steered.
    """
    if attention_mask is None:
        attention_mask = torch.ones(1, past + n_new, dtype=torch.long)
    elif attention_mask.ndim != 2:
        raise SteeringError("Steering needs the attention mask as a tensor [row, token].")
    where = attention_mask.bool()
    if positions != "all":
        # A token's position counts the real tokens before it, so padding shifts nothing.
        position = attention_mask.long().cumsum(1) - 1
        lengths = torch.as_tensor(prompt_lengths, device=where.device).reshape(-1, 1)
        in_prompt = position < lengths
        where = where & (in_prompt if positions == "prompt" else ~in_prompt)
    where = where[:, -n_new:]
    return None if where.all() else where


def _delta_by_layer(model, vector, force, layer) -> dict[int, torch.Tensor]:
    """What to add at each layer: {layer: Tensor [row or 1, d_model]}."""
    vectors = as_list(vector)
    deltas = {}
    for v, row_forces in zip(vectors, force_matrix(force, len(vectors)), strict=True):
        at = layer_of(model, v, layer)
        deltas[at] = deltas.get(at, 0) + row_forces[:, None] * v.direction
    return deltas


def layer_of(model, vector, layer=None) -> int:
    """Where a vector is added: at its own layer, unless another is given.

    Raises SteeringError if the layer does not exist, or the vector has another width.
    """
    if len(vector.direction) != d_model(model):
        raise SteeringError(
            f"The vector has {len(vector.direction)} entries (made on {vector.model_name}), "
            f"the residual stream here {d_model(model)}."
        )
    return resolve_layer(model, vector.layer if layer is None else layer)


def as_list(vector) -> list[SteeringVector]:
    """One vector or several, as a list. Raises SteeringError if there is none."""
    vectors = [vector] if isinstance(vector, SteeringVector) else list(vector)
    if not vectors:
        raise SteeringError("No vector to steer with: give at least one.")
    return vectors


def force_matrix(force, n_vectors, n_rows=None) -> torch.Tensor:
    """Bring a force, in any form that ``steer`` takes, to the shape [vector, row].

    With ``n_rows`` it gets so many columns; without, a force common to all rows gets one.
    Raises SteeringError if a force is not finite or there are not as many as needed.
    """
    forces = torch.as_tensor(force, dtype=torch.float32, device="cpu")
    odd = forces[~forces.isfinite()]
    if len(odd):
        raise SteeringError(f"The force must be a finite number, got {odd[0]:g}.")
    shape = list(forces.shape)
    if forces.ndim == 1:  # for one vector they are the rows' forces, for several the vectors'
        forces = forces[None, :] if n_vectors == 1 else forces[:, None]
    try:
        forces = forces.expand(n_vectors, -1 if forces.ndim else 1)
        return forces if n_rows is None else forces.expand(-1, n_rows)
    except RuntimeError:
        rows = "" if n_rows is None else f" and {n_rows} prompts"
        raise SteeringError(
            f"Forces of shape {shape} do not fit {n_vectors} vector(s){rows}."
        ) from None
