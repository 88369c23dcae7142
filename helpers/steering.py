"""Push the residual stream along a direction while the model runs (notebook 04).

h' = h + α·v at the output of a block (Activation Addition, Turner et al. 2023,
arXiv 2308.10248). No weight changes, and nothing is left behind.
"""

from contextlib import contextmanager

import torch

from .checks import RULES, SteeringError, checked
from .directions import SteeringVector, check_fit
from .hooks import hooked
from .models import blocks, resolve_layer
from .positions import Scope, check_rows


@checked
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
        Real tokens in each prompt; needed unless ``positions="all"``. Those before an answer are
        told by ``chat.answer_starts``.

    Raises SteeringError, before the model is touched, for a force that is not finite or of the
    wrong shape, a layer out of range, a vector made on other weights, an unknown word for
    positions; in a forward pass that cannot be steered as asked; and at the end if there was none.
    Another thread needs the block in its own function; ``backward`` belongs inside the block.
    """
    vectors = as_list(vector)
    deltas = _delta_by_layer(model, vectors, force, layer)
    push = tuple((at, d.detach().numpy().tobytes()) for at, d in deltas.items() if d.any())
    scope = Scope(positions, prompt_lengths, push or None, max(map(len, deltas.values())))

    def adder(delta):
        def add(hidden):
            check_rows("forces", len(delta), len(hidden))
            refuse_ambiguous(force, len(vectors), len(hidden))
            where = scope.tokens(len(hidden))
            # Out of place: others may hold the same tensor. On the block's own device and dtype.
            pushed = hidden + delta.to(hidden)[:, None, :]
            if where is None:
                return pushed
            return torch.where(where.to(hidden.device)[..., None], pushed, hidden)

        return add

    pushes = {at: adder(delta) for at, delta in deltas.items()}
    with hooked(model, "steer", pushes, scope, prepend=True):
        yield


@checked(vector=RULES["other"])
@contextmanager
def ablate(model, vector, layers=None):
    """Take a direction out of the stream behind blocks: h' = h − (h·v)v, inside a ``with`` block.

    Behind every block, or those in ``layers``; on every token. If a behaviour stays, the model
    did not need this direction for it (directional ablation, Arditi et al. 2024, arXiv
    2406.11717). What ``steer`` adds along it inside this block is taken out too.

    Raises SteeringError for a layer out of range or a vector made on other weights.
    """
    check_fit(model, [vector])
    layers = range(len(blocks(model))) if layers is None else layers

    def remove(hidden):
        v = vector.direction.to(hidden)
        return hidden - (hidden @ v)[..., None] * v

    removals = {resolve_layer(model, layer): remove for layer in layers}
    ablation = tuple(sorted(removals)), vector.direction.numpy().tobytes()
    with hooked(model, "ablate", removals, Scope("all", None, ablation), prepend=True):
        yield


def _delta_by_layer(model, vectors, force, layer) -> dict[int, torch.Tensor]:
    """What to add at each layer: {layer: Tensor [row or 1, d_model]}."""
    forces, layers, deltas = force_matrix(force, len(vectors)), layers_of(model, vectors, layer), {}
    for v, row_forces, at in zip(vectors, forces, layers, strict=True):
        deltas[at] = deltas.get(at, 0) + row_forces[:, None] * v.direction
    return deltas


@checked
def layers_of(model, vectors, layer=None) -> list[int]:
    """Where each vector is added: at its own layer, unless another is given.

    Raises SteeringError if a layer does not exist, or a vector was made on another model.
    """
    check_fit(model, vectors)
    return [resolve_layer(model, v.layer if layer is None else layer) for v in vectors]


def as_list(vector) -> list[SteeringVector]:
    """One vector or several, as a list. Raises SteeringError if there is none."""
    vectors = RULES["vectors"](vector, "vector")
    if not vectors:
        raise SteeringError("No vector to steer with: give at least one.")
    return vectors if isinstance(vectors, list) else [vectors]


@checked
def force_matrix(force, n_vectors, n_rows=None) -> torch.Tensor:
    """Bring a force, in any form that ``steer`` takes, to the shape [vector, row].

    With ``n_rows`` it gets so many columns; without, a force common to all rows gets one.
    Raises SteeringError if a force is not finite or there are not as many as needed.
    """
    refuse_ambiguous(force, n_vectors, n_rows)
    shape = list(force.shape)
    if force.ndim == 1:  # for one vector they are the rows' forces, for several the vectors'
        force = force[None, :] if n_vectors == 1 else force[:, None]
    try:
        forces = force.expand(n_vectors, -1 if force.ndim else 1)
        return forces if n_rows is None else forces.expand(-1, n_rows)
    except RuntimeError:
        rows = "" if n_rows is None else f" and {n_rows} prompts"
        raise SteeringError(
            f"Forces of shape {shape} do not fit {n_vectors} vector(s){rows}."
        ) from None


def refuse_ambiguous(force, n_vectors, n_rows):
    """Raise SteeringError for a list that might hold the vectors' forces or the rows'."""
    if force.ndim == 1 and len(force) == n_vectors == n_rows != 1:
        raise SteeringError(
            f"{n_rows} forces for {n_rows} vectors and {n_rows} rows: give [[a], [b], …] if each "
            "is a vector's, or [vector, row]."
        )
