"""What a call may be given: one rule for each name that a parameter has in this package.

``@checked`` above a function sends its arguments through the rules of their names. A rule returns
the argument in the form that the function works with, or raises SteeringError.
"""

import reprlib
from collections.abc import Iterable, Mapping
from functools import partial, wraps
from inspect import signature
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

ROLES = ("system", "user", "assistant")
MOST_FORCE = torch.finfo(torch.float32).max ** 0.5  # layer norms square what is in the stream


class SteeringError(ValueError):
    """Every error of this package: what went wrong, and what to do about it."""


def checked(function=None, **own):
    """Decorate a function: its arguments go through the rules of their names.

    ``own`` are rules for names that mean something else in this function. A parameter's default
    passes as it is, None too.
    """
    if function is None:
        return partial(checked, **own)
    parameters = signature(function).parameters
    rules = {name: rule for name, rule in {**RULES, **own}.items() if name in parameters}

    def check(name, value):
        default = name not in rules or value is parameters[name].default
        return value if default else fitted(value, name, rules[name])

    @wraps(function)
    def call(*args, **kwargs):
        given = [check(name, value) for name, value in zip(parameters, args, strict=False)]
        kwargs = {name: check(name, value) for name, value in kwargs.items()}
        return function(*given, *args[len(given) :], **kwargs)  # too many: Python says so

    return call


def fitted(value, name, rule):
    """What a rule makes of a value; what it fails on is refused too."""
    try:
        return rule(value, name)
    except SteeringError:
        raise
    except Exception as error:  # a tensor on which an operation does not exist, say
        raise SteeringError(f"{name} cannot be read: {error}.") from error


def finite(result, what, model) -> Tensor:
    """The result of a model; SteeringError if it holds NaN or infinity."""
    if result.isfinite().all():
        return result
    message = f"The model gives NaN or infinity for {what}: its weights or the force are"
    raise SteeringError(f"{message} beyond what {model.dtype} can hold.")


def refuse(value, name, wanted):
    """Raise the SteeringError for a value that is not what is wanted."""
    raise SteeringError(f"{name} must be {wanted}, got {shown(value)}.")


def shown(value) -> str:
    """A value as short text on one line."""
    return reprlib.repr(value).replace("\n", " ")


def rule(wanted, fits):
    """A rule: what has the attribute ``fits``, or passes that function; stays as it is."""

    def check(value, name):
        fit = fits(value) if callable(fits) else hasattr(value, fits)
        return value if fit and not isinstance(value, type) else refuse(value, name, wanted)

    return check


def number(wanted, fits=lambda x: True, kind=Real):
    """A rule: one finite number, no bool, that ``fits``; becomes an int or a float."""

    def check(value, name):
        found = _plain(value)
        if isinstance(found, kind) and not isinstance(found, bool):
            if abs(found) < 2**63 and fits(float(found)):  # NaN is not
                return int(found) if kind is Integral else float(found)
        refuse(value, name, wanted)

    return check


def several(one, wanted, alone=False):
    """A rule: a list of what the rule ``one`` allows, or, if ``alone``, that by itself."""

    def check(value, name):
        if alone and not isinstance(_plain(value), Iterable):
            return one(value, name)
        return [one(entry, name) for entry in listed(value, name, wanted)]

    return check


def listed(value, name, wanted) -> list:
    """What has its entries in an order, as a list."""
    unfit = isinstance(value, str | bytes | Mapping | set | frozenset)
    unfit = unfit or not isinstance(_plain(value), Iterable)
    return refuse(value, name, wanted) if unfit else list(value)


def _plain(value):
    """The number in a tensor or array without axes; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def numbers(value, name, most=1e38, dtype=torch.float32, bools=False, nan=False) -> Tensor:
    """Finite numbers of any shape: one, nested lists, an array or a tensor; become a tensor."""
    if isinstance(value, Tensor) and value.is_floating_point() and (value.abs() <= most).all():
        return value.to("cpu", dtype)  # with its gradient
    table = np.asarray(value.tolist() if isinstance(value, Tensor) else value, dtype=object)
    entries = [_plain(entry) for entry in table.flat]
    for entry in entries:
        if not isinstance(entry, Real) or (isinstance(entry, bool) and not bools):
            refuse(value, name, "numbers: one, a list, an array or a tensor of them")
        if not abs(entry) <= most and not (nan and entry != entry):
            one = name.removesuffix("s")
            message = f"Every {one} must be a finite number, got {shown(entry)}"
            bound = f": beyond ±{most:.2g}" if abs(entry) < np.inf else ""
            raise SteeringError(f"{message}{bound}.")
    return torch.tensor([float(entry) for entry in entries], dtype=dtype).reshape(table.shape)


forces = partial(numbers, most=MOST_FORCE)


def scores(value, name) -> np.ndarray:
    """A list of finite numbers; becomes an array of float64."""
    found = numbers(value, name, dtype=torch.float64, bools=True)
    return found.detach().numpy() if found.ndim == 1 else refuse(value, name, "a list of numbers")


def strengths(value, name) -> Tensor:
    """A number above 0 for each row; becomes a tensor [row]."""
    found = numbers(value, name)
    fits = found.ndim == 1 and len(found) and (found > 0).all()
    return found if fits else refuse(value, name, "a list of numbers above 0, one for each row")


def up_and_down(value, name) -> Tensor:
    """Two numbers, one for either sign, or a table of them [layer, 2]."""
    found = numbers(value, name)
    fits = found.ndim in (1, 2) and found.shape[-1] == 2
    return found if fits else refuse(value, name, "a table [layer, 2] of shares, up and down")


def floats(value, name) -> Tensor:
    """A tensor or an array of floating-point numbers; becomes a tensor."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(value.astype(np.float64))
    if isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided:
        return value.detach().cpu()
    refuse(value, name, "a tensor or an array of floats (SteeringVector.from_raw takes others)")


def activations(value, name, axes=99) -> Tensor:
    """A tensor [..., prompt, d_model] of finite floats up to 1e15; becomes float32."""
    found = floats(value, name).float()
    if 1 < found.ndim <= axes and found.numel() and (found.abs() <= 1e15).all():
        return found
    refuse(value, name, f"a tensor [{'..., ' * (axes > 2)}prompt, d_model] of finite floats")


class Dialogue(str):
    """Messages of a chat, as one prompt: ``Dialogue([{"role": "user", "content": "Hello"}])``.

    As a text it is a form for people; ``helpers.chat`` writes what the model reads. ``messages``
    holds (role, content) of each. Equal to what has the same messages, and to no plain text.
    Raises SteeringError for messages that are not in order.
    """

    def __new__(cls, messages):
        messages = listed(messages, "messages", "a list of messages")
        if fault := cls.fault(messages):
            raise SteeringError(f"This is no dialogue ({shown(messages)}): {fault}.")
        pairs = tuple((message["role"], str(message["content"])) for message in messages)
        dialogue = super().__new__(cls, " / ".join(f"{role}: {text}" for role, text in pairs))
        dialogue.messages = pairs
        return dialogue

    @staticmethod
    def fault(messages) -> str | None:
        """What to mend in messages that make no dialogue."""
        for n, message in enumerate(messages, start=1):
            if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
                return f"message {n} must have a role, a content and nothing else"
            if not isinstance(message["role"], str) or message["role"] not in ROLES:
                return f"the role of message {n} must be one of {', '.join(ROLES)}"
            if not isinstance(message["content"], str):
                return f"the content of message {n} must be a text"
        if not any(message["role"] == "user" for message in messages):
            return "give a message of the user"
        return (
            None if messages[-1]["content"].strip() else "its last message is empty: leave it out"
        )

    @property
    def answer(self) -> str | None:
        """The last message if it is the assistant's: an answer that the model goes on with."""
        role, content = self.messages[-1]
        return content if role == "assistant" else None

    @property
    def dicts(self) -> list[dict[str, str]]:
        """The messages in the form in which they were given."""
        return [{"role": role, "content": content} for role, content in self.messages]

    def __repr__(self):
        return repr(self.dicts)

    def __eq__(self, other):
        return isinstance(other, Dialogue) and self.messages == other.messages

    def __ne__(self, other):  # that of str would compare the texts
        return not self == other

    def __hash__(self):
        return hash(self.messages)

    def __getnewargs__(self):  # for copies
        return (self.dicts,)

    def __add__(self, other):
        raise SteeringError("A dialogue cannot be joined to a text: change one of its messages.")

    __radd__ = __add__


def texts(value, name, empty=False, once=False, chat=False) -> list[str]:
    """Texts that a tokenizer can read; ``empty`` ones and none only if so, each ``once`` if so.

    Where they may be a ``chat``, a list of messages becomes a ``Dialogue``.
    """
    kind = name.split("_")[-1] if name.endswith("s") else name  # positive_words are words
    if isinstance(value, str):
        raise SteeringError(f"Expected a list of {kind}, got one string: use [{shown(value)}].")
    found, one = listed(value, name, f"a list of {kind}"), kind.removesuffix("s")
    if not found and not empty:
        raise SteeringError(f"The list of {kind} is empty: give at least one.")
    for place, text in enumerate(found, start=1):
        fault = Dialogue.fault(text) if chat and isinstance(text, list | tuple) else None
        if chat and isinstance(text, list | tuple) and not fault:
            text = found[place - 1] = Dialogue(text)
        if fault:
            problem, mend = "is no dialogue", fault
        elif isinstance(text, Mapping) and "role" in text and chat:
            problem, mend = "is a chat message", "prompts are a list of dialogues, [[...], ...]"
        elif isinstance(text, Dialogue) and not chat:
            problem, mend = "is a dialogue", "give a str"
        elif not isinstance(text, str):
            problem, mend = "is no text", "give a str"
        elif not empty and not text.strip():
            problem, mend = "is empty", "write some text"
        elif text.encode(errors="replace").decode() != str(text):
            problem, mend = "holds half a character", "take the lone surrogate out"
        else:
            continue
        which = f"The {one}" if len(found) == 1 else f"{one.title()} {place} of {len(found)}"
        raise SteeringError(f"{which} {problem} ({shown(text)}): {mend}.")
    if once and len(set(found)) < len(found):
        raise SteeringError(f"{name} must be different, got {shown(sorted(found))}.")
    # NumPy's texts are of another class.
    return [entry if isinstance(entry, Dialogue) else str(entry) for entry in found]


def text(value, name, empty=False, chat=False) -> str:
    """A single text."""
    return texts([value], name, empty, chat=chat)[0]


def pairs(value, name) -> list[tuple[str, str]]:
    """Pairs (positive, negative) of texts that differ in more than the space around them."""
    found = listed(value, name, "a list of pairs (positive, negative)")
    if not found:
        raise SteeringError("The list of pairs is empty: give at least one (positive, negative).")
    for pair in found:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise SteeringError(f"Expected a pair (positive, negative), got {shown(pair)}.")
    sides = (texts(side, "prompts", chat=True) for side in zip(*found, strict=True))
    found = list(zip(*sides, strict=True))
    for one, other in found:
        if one.strip() == other.strip():
            raise SteeringError(f"Both prompts of a pair are {one!r}: there is no contrast.")
    return found


def steered_text(value, name):
    """A ``SteeredText``; its prompt may be a list of messages."""
    if not hasattr(value, "steered") or isinstance(value, type):
        refuse(value, name, WRITTEN)
    prompt, *written = value
    prompt = text(prompt, "prompt", empty=True, chat=True)
    return type(value)(prompt, *texts(written, "texts", empty=True))


def by_name(value, name) -> dict:
    """Vectors by name: for each one, or a list by layer."""
    if not isinstance(value, Mapping) or not value:
        refuse(value, name, "a dict such as {'sentiment': find_vectors(...)}")
    return {key: RULES[name](entry, f"{name}[{key!r}]") for key, entry in value.items()}


def some_judge(value, name):
    """The name of a judge, or a function that is one."""
    if value is None:
        mend = "give 'vader', a classifier's name or a function, to a concept as its judge=..."
        raise SteeringError(f"There is no judge: {mend}")
    return value if callable(value) else text(value, name)


def trials_by_label(value) -> bool:
    """Whether this is a dict of trials, perhaps an empty one."""
    return isinstance(value, Mapping) and all(hasattr(x, "verdicts") for x in value.values())


def _position(value, name) -> int | str:
    """A number, or a word for several tokens."""
    return str(value) if str(value) in ("mean", "answer") else place(value, name)


rows = partial(activations, axes=2)
above_0 = number("a whole number above 0", lambda n: n > 0, Integral)
from_0 = number("a whole number, 0 or above", lambda n: n >= 0, Integral)
whole = number("a whole number", kind=Integral)
place = number("an integer, 'mean' or 'answer'", kind=Integral)
real = number("a finite number")
not_negative = number("a number, 0 or above", lambda x: x >= 0)
vector = rule("a SteeringVector (SteeringVector.from_raw makes one from numbers)", "raw_norm")
by_layer = several(vector, "a SteeringVector or a list of them (of a dict its values)")
vectors = several(vector, "a SteeringVector or a list of them (of a dict its values)", alone=True)
WRITTEN = "what generate(...) returns (what sweep_texts(...) returns has its .price already)"
two_lists = rule("two lists of tokens, as word_sides(...) gives", lambda x: len(x) == 2)
steered_texts = several(steered_text, WRITTEN)
TABLE = [
    ("model", rule("the first of model, tokenizer = load_model(...)", "generate")),
    ("tokenizer", rule("the second of model, tokenizer = load_model(...)", "batch_decode")),
    ("concept", rule("a Concept, as load_concept(...) gives", "dev_prompts")),
    ("setting", rule("a Setting", "vector_name")),
    ("result", rule("a Result, as compute(...) gives", "log_odds")),
    ("found", rule("an Estimate, as mean_with_interval(...) gives", "low")),
    ("trials", rule("a dict such as {'pocket': trial(...)}", trials_by_label)),
    ("batch", rule("a batch, as encode(...) gives", lambda batch: isinstance(batch, Mapping))),
    ("logits", rule("a tensor of logits", lambda logits: getattr(logits, "ndim", 0) > 1)),
    ("ids", rule("a tensor of tokens [row, token]", lambda ids: getattr(ids, "ndim", 0) == 2)),
    ("strict priced other_weights", rule("True or False", lambda value: isinstance(value, bool))),
    ("xlabels ylabels", partial(listed, wanted="a list of labels")),
    ("keep draw watch cost way", rule("a function", callable)),
    ("by judge", some_judge),
    ("other", vector),
    ("vector vectors", vectors),
    ("direction", floats),
    ("raw", numbers),
    ("raw_norm budget", number("a number above 0", lambda x: x > 0)),
    ("factor", number("a number but 0 (it has no direction)", lambda x: x != 0)),
    ("positive negative", activations),
    ("values scale shares", scores),
    ("start end", strengths),
    ("middle", numbers),
    ("limits", up_and_down),
    ("force forces", forces),
    ("layer", whole),
    ("layers", several(whole, "a list of layers")),
    ("prompt_lengths", several(above_0, "a whole number above 0 or a list of them", alone=True)),
    ("position", _position),
    ("positions", text),
    ("padding_side", rule("'left' or 'right'", lambda side: side in ("left", "right"))),
    ("prompts", partial(texts, chat=True)),
    ("sentences requests questions instructions", texts),
    ("words sides", partial(texts, once=True)),
    ("texts continuations", partial(texts, empty=True)),
    ("prompt", partial(text, chat=True)),
    ("text", partial(text, empty=True, chat=True)),
    ("name follow_up", text),
    ("method model_name fingerprint", partial(text, empty=True)),
    ("pairs", pairs),
    ("seed", several(from_0, "a whole number or a list of them", alone=True)),
    ("temperature", not_negative),
    ("confidence", number("a number between 0 and 1, such as 0.95", lambda x: 0 < x < 1)),
    ("limit", real),
    ("batch_tokens max_new_tokens top_k n n_layer most", above_0),
    ("n_random n_shuffled n_orthogonal n_pairs new_tokens", from_0),
]
RULES = {name: one for names, one in TABLE for name in names.split()}
