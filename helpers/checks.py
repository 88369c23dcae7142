"""What a call may be given: one rule for each name that a parameter has in this package.

``@checked`` above a function sends its arguments through the rules of their names. A rule returns
the argument in the form that the function works with, or raises SteeringError.
"""

import reprlib
from collections.abc import Iterable, Mapping, Set
from functools import partial, wraps
from inspect import signature
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

MOST = torch.finfo(torch.float32).max ** 0.5  # layer norms square what is in the stream


class SteeringError(ValueError):
    """Every error of this package: what went wrong, and what to do about it."""


def checked(function=None, **own):
    """Decorate a function: its arguments go through the rules of their names.

    ``own`` are rules for names that mean something else in this function. A default passes as it
    is, None too.
    """
    if function is None:
        return partial(checked, **own)
    rules, parameters = {**RULES, **own}, signature(function).parameters

    def check(name, value):
        if name not in rules or name not in parameters or value is parameters[name].default:
            return value
        return rules[name](value, name)

    @wraps(function)
    def call(*args, **kwargs):
        given = [check(name, value) for name, value in zip(parameters, args, strict=False)]
        kwargs = {name: check(name, value) for name, value in kwargs.items()}
        return function(*given, *args[len(given) :], **kwargs)

    return call


def finite(result, what, model) -> Tensor:
    """The result of a model; SteeringError if it holds NaN or infinity."""
    if result.isfinite().all():
        return result
    raise SteeringError(
        f"The model gives NaN or infinity for {what}: its weights or the force are beyond what "
        f"{model.dtype} can hold."
    )


def refuse(value, name, wanted):
    """Raise the SteeringError for a value that is not what it must be."""
    raise SteeringError(f"{name} must be {wanted}, got {shown(value)}.")


def shown(value) -> str:
    """A value as short text on one line."""
    return " ".join(reprlib.repr(value).split())


# -- Numbers


def number(wanted, fits=lambda x: True, kind=Real):
    """A rule: one finite number, no bool, that ``fits``; becomes an int or a float."""

    def rule(value, name):
        found = _plain(value)
        if isinstance(found, kind) and not isinstance(found, bool):
            if abs(found) < 2**63 and fits(found):  # NaN is not
                return int(found) if kind is Integral else float(found)
        refuse(value, name, wanted)

    return rule


def numbers(value, name, bools=False, most=float(2**1023)) -> Tensor:
    """Finite numbers of any shape: one, nested lists, an array or a tensor; becomes float64."""
    table = np.asarray(value.tolist() if isinstance(value, Tensor) else value, dtype=object)
    found = [_plain(entry) for entry in table.flat]
    for entry in found:
        if not isinstance(entry, Real) or isinstance(entry, bool) > bools:
            refuse(value, name, "numbers: one, a list, an array or a tensor of them")
        if not abs(entry) <= most:
            one, bound = name.removesuffix("s"), f" of at most {most:.2g}" if most == MOST else ""
            raise SteeringError(f"Every {one} must be a finite number{bound}, got {shown(entry)}.")
    return torch.tensor(list(map(float, found)), dtype=torch.float64).reshape(table.shape)


def forces(value, name) -> Tensor:
    """Forces of any shape; become float32."""
    return numbers(value, name, most=MOST).float()


def row(value, name, bools=False) -> np.ndarray:
    """A list of finite numbers; becomes an array of float64."""
    found = numbers(value, name, bools)
    return found.numpy() if found.ndim == 1 else refuse(value, name, "a list of numbers")


def _plain(value):
    """The number in a tensor or array without axes; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


# -- Texts


def texts(value, name, empty=False) -> list[str]:
    """Texts that a tokenizer can read; with ``empty`` there may be none, or nothing in them."""
    kind = name.split("_")[-1]
    if isinstance(value, str):
        raise SteeringError(f"Expected a list of {kind}, got one string: use [{shown(value)}].")
    found, one = listed(value, name, f"a list of {kind}"), kind.removesuffix("s")
    if not found and not empty:
        raise SteeringError(f"The list of {kind} is empty: give at least one.")
    for place, text in enumerate(found, start=1):
        if isinstance(text, Mapping) and "role" in text:
            problem, mend = "is a chat message", "use tokenizer.apply_chat_template"
        elif not isinstance(text, str):
            problem, mend = "is no text", "give a str"
        elif not empty and not text.strip():
            problem, mend = "is empty", "write some text"
        elif text.encode(errors="replace").decode() != text:
            problem, mend = "holds half a character", "take the lone surrogate out"
        else:
            continue
        which = f"The {one}" if len(found) == 1 else f"{one.title()} {place} of {len(found)}"
        raise SteeringError(f"{which} {problem} ({shown(text)}): {mend}.")
    return found


def words(value, name) -> list[str]:
    """Texts that are all different."""
    found = texts(value, name)
    if repeated := {word for word in found if found.count(word) > 1}:
        raise SteeringError(f"{name} has {sorted(repeated)} more than once: give each word once.")
    return found


def pairs(value, name) -> list[tuple[str, str]]:
    """At least one pair (positive, negative) of texts that differ in more than outer space."""
    found = listed(value, name, "a list of pairs (positive, negative)")
    if not found:
        raise SteeringError("The list of pairs is empty: give at least one (positive, negative).")
    for pair in found:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise SteeringError(f"Expected a pair (positive, negative), got {shown(pair)}.")
    sides = [texts(side, "prompts") for side in zip(*found, strict=True)]
    for one, other in zip(*sides, strict=True):
        if one.strip() == other.strip():
            raise SteeringError(f"Both prompts of a pair are {one!r}: there is no contrast.")
    return list(zip(*sides, strict=True))


# -- Lists and objects


def listed(value, name, wanted) -> list:
    """What has its entries in an order, as a list."""
    unordered = isinstance(value, str | bytes | Mapping | Set)
    unordered = unordered or not isinstance(_plain(value), Iterable)
    return refuse(value, name, wanted) if unordered else list(value)


def several(one, wanted, alone=False):
    """A rule: a list of what the rule ``one`` allows, or, if ``alone``, that by itself."""

    def rule(value, name):
        if alone and not isinstance(_plain(value), Iterable):
            return one(value, name)
        return [one(entry, name) for entry in listed(value, name, wanted)]

    return rule


def having(attribute, wanted):
    """A rule: an object that has this attribute."""
    return lambda value, name: value if hasattr(value, attribute) else refuse(value, name, wanted)


VECTORS = (
    "a SteeringVector or a list of them (SteeringVector.from_raw makes one from numbers; of a "
    "dict give its values)"
)
LOADED = "model, tokenizer = load_model(name) gives both"
whole = number("a whole number", kind=Integral)
place = number("an integer or 'mean'", kind=Integral)
above_0 = number("a whole number above 0", lambda n: n > 0, Integral)
from_0 = number("a whole number, 0 or above", lambda n: n >= 0, Integral)

RULES = {
    "model": having("get_input_embeddings", f"a language model ({LOADED})"),
    "tokenizer": having("convert_ids_to_tokens", f"a tokenizer ({LOADED})"),
    "concept": having("dev_prompts", "a Concept (load_concept() gives one)"),
    "vector": several(having("raw_norm", VECTORS), VECTORS, alone=True),
    "vectors": several(having("raw_norm", VECTORS), VECTORS, alone=True),
    "force": forces,
    "forces": forces,
    "layer": whole,
    "layers": several(whole, "a list of layers"),
    "position": lambda value, name: value if str(value) == "mean" else place(value, name),
    "prompts": texts,
    "prompt": lambda value, name: texts([value], name)[0],
    "texts": partial(texts, empty=True),
    "text": lambda value, name: texts([value], name, empty=True)[0],
    "continuations": partial(texts, empty=True),
    "words": words,
    "pairs": pairs,
    "seed": several(from_0, "a whole number or a list of them", alone=True),
    "temperature": number("a number, 0 or above", lambda x: x >= 0),
    "confidence": number("a number between 0 and 1, such as 0.95", lambda x: 0 < x < 1),
    **dict.fromkeys(["limit", "line"], number("a finite number")),
    **dict.fromkeys(["batch_tokens", "max_new_tokens", "top_k", "n", "n_layer"], above_0),
    **dict.fromkeys(["n_random", "n_shuffled", "n_orthogonal", "n_pairs"], from_0),
}
