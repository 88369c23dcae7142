"""Find the direction of a concept in the residual stream (notebook 03)."""

import hashlib
import warnings
from dataclasses import dataclass, fields, replace

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from .activations import residual_stream
from .checks import RULES, SteeringError, checked, fitted, from_0, rows
from .hooks import refuse_inside_steer
from .models import check_causal, d_model, fingerprint, model_name, resolve_layer
from .pairs import split


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction in the residual stream of one layer, and where it comes from.

    As a vector it is ``raw_norm * direction``: that is what ``v + w`` adds and ``a * v``
    scales. A force multiplies the unit ``direction`` alone.

    Raises SteeringError if the direction is not one finite vector of unit norm, or another field
    is not of its kind.
    """

    direction: Tensor  # [d_model], float32, on the CPU, unit norm; made from an array, too
    layer: int  # the block at whose output it was read
    raw_norm: float  # its length before normalising
    method: str
    model_name: str  # for messages
    n_pairs: int
    fingerprint: str = ""  # of the weights of the model it belongs to; "" if unknown

    def __post_init__(self):
        for field in fields(self):
            value = fitted(getattr(self, field.name), field.name, RULES[field.name])
            object.__setattr__(self, field.name, value)
        unit = self.direction.float()
        if unit.ndim != 1 or not abs(unit.norm().item() - 1) < 1e-3:  # NaN fails this too
            raise SteeringError(
                f"A direction must be one vector of unit norm, got shape {list(unit.shape)} and "
                f"norm {unit.norm():.3g}: use SteeringVector.from_raw."
            )
        object.__setattr__(self, "direction", unit)

    @classmethod
    @checked
    def from_raw(cls, raw, **fields) -> "SteeringVector":
        """Make one from a vector of any length, which becomes ``raw_norm``.

        ``raw`` [d_model] is a tensor, an array or a list of finite numbers.
        """
        norm = raw.norm().item()
        if not norm:
            raise SteeringError("A vector of norm 0 has no direction.")
        return cls(direction=raw / norm, raw_norm=norm, **fields)

    @checked
    def like(self, raw, method, n_pairs=0) -> "SteeringVector":
        """Another vector for the same layer of the same model, with its own provenance.

        ``raw`` [d_model] has any length but 0; ``method`` says in a word how it was made, and
        ``n_pairs`` from how many pairs.
        """
        source = {"layer": self.layer, "model_name": self.model_name}
        source |= {"fingerprint": self.fingerprint, "method": method, "n_pairs": n_pairs}
        return SteeringVector.from_raw(raw, **source)

    @property
    def raw(self) -> Tensor:
        """``raw_norm * direction``, [d_model]."""
        return self.raw_norm * self.direction

    def __neg__(self):
        return replace(self, direction=-self.direction)

    @checked
    def __mul__(self, factor):
        return self.like(factor * self.raw, self.method, self.n_pairs)

    __rmul__ = __mul__

    @checked
    def __truediv__(self, factor):
        return self.like(self.raw / factor, self.method, self.n_pairs)

    def __radd__(self, start):
        return self if type(start) is int and start == 0 else self + start  # sum begins with 0

    @checked
    def __add__(self, other):
        what = "fingerprint" if self.fingerprint and other.fingerprint else "model_name"
        one, two = ((getattr(v, what), v.layer, len(v.direction)) for v in (self, other))
        if one != two:
            raise SteeringError(
                f"Only vectors of one layer of one model can be added: layer {self.layer} of "
                f"{self.model_name!r} against layer {other.layer} of {other.model_name!r}."
            )
        methods = dict.fromkeys([self.method, other.method])  # each once, in order
        return self.like(self.raw + other.raw, " + ".join(methods), self.n_pairs + other.n_pairs)

    @checked
    def __sub__(self, other):
        return self + -other

    @checked(seed=from_0)
    def random_like(self, seed) -> "SteeringVector":
        """A random direction for the same layer, with the same ``raw_norm``: the control."""
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(self.direction.shape, generator=generator)
        return self.like(self.raw_norm * direction / direction.norm(), f"random, seed {seed}")

    @checked
    def on(self, model, other_weights=False) -> "SteeringVector":
        """The vector for use on a model: itself, if it was made on these weights.

        Raises SteeringError if it was not, or has another width; ``other_weights=True`` allows
        other weights, such as a fine-tuned copy's, and gives the vector their identity.
        """
        here = {"fingerprint": fingerprint(model), "model_name": model_name(model)}
        vector = replace(self, **here) if other_weights else self
        check_fit(model, [vector])
        resolve_layer(model, vector.layer)
        return vector

    def save(self, path) -> None:
        """Write a safetensors file with the fields and a checksum as metadata."""
        fields = {
            "layer": str(self.layer),
            "raw_norm": repr(self.raw_norm),
            "method": self.method,
            "model_name": self.model_name,
            "n_pairs": str(self.n_pairs),
            "fingerprint": self.fingerprint,
        }
        fields["checksum"] = _checksum(self.direction, fields)
        try:
            save_file({"direction": self.direction.contiguous()}, path, metadata=fields)
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            raise SteeringError(f"The vector could not be saved as {path}: {error}.") from error

    @classmethod
    @checked
    def load(cls, path, model, other_weights=False) -> "SteeringVector":
        """Read a file written by ``save`` for use on this model, as ``on`` allows it.

        Raises SteeringError if it is unreadable or was changed, or does not fit the model. A file
        that is older than fingerprints and checksums is compared by the name of its model, with
        a warning.
        """
        try:
            with safe_open(path, framework="pt") as file:
                fields, direction = file.metadata(), file.get_tensor("direction")
            checksum = fields.pop("checksum", None)
            if checksum not in (None, _checksum(direction, fields)) or int(fields["layer"]) < 0:
                raise ValueError("its contents were changed after it was saved")
            vector = cls(
                direction=direction,
                layer=int(fields["layer"]),
                raw_norm=float(fields["raw_norm"]),
                method=fields["method"],
                model_name=fields["model_name"],
                n_pairs=int(fields["n_pairs"]),
                fingerprint=fields.get("fingerprint", "") if checksum else "",
            )
        except (OSError, SafetensorError, KeyError, AttributeError, TypeError, ValueError) as error:
            raise SteeringError(
                f"{path} is not a readable steering vector ({error}). "
                "Make a new one with SteeringVector.save."
            ) from error
        if checksum is None:
            warnings.warn(
                f"{path} is older than checksums: nothing tells whether it is intact or which "
                "weights it belongs to, only the name of their model. Save it anew.",
                stacklevel=3,
            )
        if not vector.fingerprint and vector.model_name != model_name(model):
            vector = replace(vector, fingerprint="another")
        return vector.on(model, other_weights)

    def __repr__(self):
        return (
            f"SteeringVector({self.method}, layer {self.layer} of {self.model_name}, "
            f"{self.n_pairs} pairs, d_model {len(self.direction)}, raw_norm {self.raw_norm:.1f})"
        )


def check_fit(model, vectors):
    """Raise SteeringError unless the vectors were made on the weights of the model.

    Of one that does not know its weights only the width can be told.
    """
    width, weights = d_model(model), fingerprint(model)
    for vector in vectors:
        wide = len(vector.direction)
        if wide != width or vector.fingerprint not in ("", weights):
            raise SteeringError(
                f"The vector was made on {vector.model_name!r} (width {wide}) and cannot steer "
                f"{model_name(model)!r} (width {width}), whose weights are others: find the "
                "direction again on this model"
                f"{', or say vector.on(model, other_weights=True)' if wide == width else ''}."
            )


def _checksum(direction, fields) -> str:
    contents = repr((direction.dtype, sorted(fields.items()))).encode()
    return hashlib.sha256(contents + direction.numpy().tobytes()).hexdigest()


@checked
def mean_difference(positive, negative) -> Tensor:
    """Mean of the positive minus mean of the negative activations.

    The method of Contrastive Activation Addition (Panickssery et al. 2023, arXiv 2312.06681).
    Inputs [..., prompt, d_model], result [..., d_model].
    """
    means = positive.mean(-2), negative.mean(-2)
    _must_fit(*means)
    return means[0] - means[1]


@checked(positive=rows, negative=rows)
def pca(positive, negative) -> Tensor:
    """First principal component of the ± pair differences, [d_model].

    As in Representation Engineering (Zou et al. 2023, arXiv 2310.01405). Every difference is
    taken with both signs: centring the bare differences would subtract their mean, which is
    the direction that is wanted. Oriented and scaled as the mean difference is along it.
    Inputs [prompt, d_model], one row a pair.
    """
    _must_fit(positive, negative)
    differences = positive - negative
    both_signs = torch.cat([differences, -differences])
    component = torch.from_numpy(PCA(1, random_state=0).fit(both_signs.numpy()).components_[0])
    return component * (component @ mean_difference(positive, negative))


@checked(positive=rows, negative=rows)
def probe(positive, negative) -> Tensor:
    """Weights of a logistic regression that tells the classes apart, [d_model].

    Scaled as the mean difference is along it. Inputs [prompt, d_model].
    """
    mean = mean_difference(positive, negative)
    both = torch.cat([positive, negative])
    centred = both - both.mean(0)
    labels = [1] * len(positive) + [0] * len(negative)
    # One common scale, so that the penalty weighs the same at every layer of every model.
    scaled = centred / centred.std().clip(1e-30)
    classifier = LogisticRegression(max_iter=1000).fit(scaled.numpy(), labels)
    weights = torch.from_numpy(classifier.coef_[0]).float()
    unit = torch.nn.functional.normalize(weights, dim=0)
    return unit * (unit @ mean)


def _must_fit(positive, negative):
    if positive.shape != negative.shape:
        shapes = f"{list(positive.shape)} against {list(negative.shape)}"
        raise SteeringError(f"The activations of the two sides do not fit: {shapes}.")


METHODS = {"mean_difference": mean_difference, "pca": pca, "probe": probe}


@checked
def find_vectors(
    model, tokenizer, pairs, method="mean_difference", position=-1
) -> list[SteeringVector]:
    """The steering vector of a concept, one for each layer.

    Parameters
    ----------
    pairs : list of (positive, negative)
        Two texts or dialogues each.
    method : {"mean_difference", "pca", "probe"}
    position : int, "mean" or "answer"
        Where to read each prompt, as in ``residual_stream``.

    Returns a list: ``vectors[layer]``. Raises SteeringError for pairs that cannot be used, or
    an unknown method.
    """
    if method not in METHODS:
        raise SteeringError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")
    refuse_inside_steer(model)
    positive, negative = split(pairs)
    cache = residual_stream(model, tokenizer, positive + negative, position)
    check_causal(model)
    weights = fingerprint(model)
    return [
        SteeringVector.from_raw(
            METHODS[method](layer_cache[: len(positive)], layer_cache[len(positive) :]),
            layer=layer,
            method=method,
            model_name=model_name(model),
            n_pairs=len(positive),
            fingerprint=weights,
        )
        for layer, layer_cache in enumerate(cache)
    ]


def _unit_rows(value, name) -> Tensor:
    """A rule: vectors as [vector, d_model], each of length 1."""
    if not isinstance(value, Tensor):
        value = RULES["vectors"]([value] if isinstance(value, SteeringVector) else value, name)
        widths = {len(vector.direction) for vector in value}
        if len(widths) != 1:
            raise SteeringError(f"{name} must be vectors of one width, got {sorted(widths)}.")
        value = torch.stack([vector.direction for vector in value])
    found = rows(value, name).double()  # the square of a small float32 would be 0
    if not found.any(-1).all():
        raise SteeringError(f"One of the {name} is 0 and has no direction.")
    return (found / found.norm(dim=-1, keepdim=True)).float()


@checked(vectors=_unit_rows, others=_unit_rows)
def cosines(vectors, others=None) -> Tensor:
    """Cosine of every vector with every other: [len(vectors), len(others)].

    Each argument is a list of ``SteeringVector`` or a tensor [vector, d_model]. Raises
    SteeringError for an empty list and for vectors of different widths.
    """
    others = vectors if others is None else others
    _must_fit(vectors[0], others[0])
    return vectors @ others.T
