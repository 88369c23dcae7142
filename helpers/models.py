"""Load a causal language model and find its parts, whatever its architecture.

The only module that knows how Hugging Face models are built. The others ask it for the
blocks, for what a block returned, and for padded batches of tokens.
"""

import hashlib
import os
import re
import textwrap
import threading
import warnings
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from . import TORCH_CAME_FIRST
from .batches import passing_bars
from .chat import tokens_of
from .checks import SteeringError, checked
from .gguf_files import converted, smollm2

POCKET = Path(__file__).parent / "pocket"
_DTYPES = ("float32", "float64", "float16", "bfloat16", "auto")
# Older files hold these; nothing was learned in them.
_CONSTANT = re.compile(r"\b(attn|attention)\.(masked_)?bias$|inv_freq$")


def load_model(name=None, device=None, dtype=None, device_map=None) -> tuple:
    """Load a causal language model and its tokenizer, ready for reading and steering.

    Parameters
    ----------
    name : str or Path, optional
        ``"pocket"`` (the bundled model: no network), ``"smollm2"`` (a real language model, from
        a package: no network once it is installed), a Hugging Face name such as ``"gpt2"``, a
        local folder, or a local ``.gguf`` file, which is converted to float32 (the first time in
        half a minute; see ``helpers.gguf_files``). Default: environment variable
        ``STEERING_MODEL``, else ``"pocket"``.
    device : str, optional
        Default: environment variable ``STEERING_DEVICE``, else ``"cuda"``, ``"mps"`` or
        ``"cpu"``, the first that this machine has.
    dtype : torch.dtype or str, optional
        Default: float32 on CPU and MPS, where half precision is slow or not reproducible;
        ``"auto"``, the checkpoint's own, on CUDA.
    device_map : str or dict, optional
        Passed to Accelerate, for a model that needs several GPUs; replaces ``device``.

    Returns the model in evaluation mode with gradients off, and the tokenizer with a padding
    token. Raises SteeringError, with the cause, unless all weights are found and fit and the
    model passes ``check_causal``. Warns if torch was imported before ``helpers``, which is then
    slow beside a busy process.
    """
    if TORCH_CAME_FIRST:
        warnings.warn(
            "torch was imported before helpers: beside a busy process it will be slow. Import "
            "helpers first, or set OMP_WAIT_POLICY=PASSIVE before Python starts.",
            stacklevel=2,
        )
    if name is None:
        name = os.environ.get("STEERING_MODEL") or "pocket"
    if not isinstance(name, (str, Path)) or not str(name).strip():
        raise SteeringError(f"{name!r} names no model: try 'pocket', which needs no network.")
    device = find_device(device) if device_map is None else None
    if dtype is None:
        on_gpu = device is None or device.startswith("cuda")
        dtype = "auto" if on_gpu and str(name) != "pocket" else torch.float32
    kind = str(dtype).removeprefix("torch.")
    if kind not in _DTYPES:
        raise SteeringError(f"dtype {dtype!r} cannot be used: give one of {', '.join(_DTYPES)}.")
    with passing_bars():
        return _load(str(name), device, kind, device_map)


def find_device(device=None) -> str:
    """The device asked for, else ``STEERING_DEVICE``, else the best that this machine has.

    Raises SteeringError if it cannot be used.
    """
    if device is None:
        gpus = [gpu for gpu in ("cuda", "mps") if getattr(torch, gpu).is_available()]
        device = os.environ.get("STEERING_DEVICE") or [*gpus, "cpu"][0]
    try:
        torch.zeros(1, device=str(device)).item()  # there and back, as tensors will go
    except Exception as error:
        raise SteeringError(f"Device {device!r} cannot be used, 'cpu' can: {error}") from error
    return str(device)


def _load(name, device, dtype, device_map) -> tuple:
    """The model and its tokenizer, whole, or one error that says which part failed and why."""
    source = str({"pocket": lambda: POCKET, "smollm2": smollm2}.get(name, lambda: name)())
    found, trouble, part, held = os.path.exists(source), None, "configuration", None
    verbosity = transformers_logging.get_verbosity()
    try:
        if os.path.isfile(source) and source.lower().endswith(".gguf"):
            part = "GGUF file"
            source, held = converted(source)
            part = "configuration"
        if found and held is None and not os.path.isfile(os.path.join(source, "config.json")):
            raise SteeringError("no config.json can be read there.")
        trouble = None if found else _ask_hub(name)
        options = {"trust_remote_code": False, "local_files_only": trouble is not None}
        config = held[0].config if held else AutoConfig.from_pretrained(source, **options)
        part, trouble = "architecture", None
        if config.is_encoder_decoder:
            raise SteeringError("it is an encoder-decoder, and steering needs a decoder.")
        part = "tokenizer"
        tokenizer = held[1] if held else AutoTokenizer.from_pretrained(source, **options)
        special = tokenizer.all_special_tokens
        if tokenizer.pad_token_id is None:  # masks hide it, so any special token will do
            tokenizer.pad_token = tokenizer.eos_token or next(iter(special), None)
        if len(tokenizer) <= len(special) or tokenizer.pad_token_id is None:
            raise SteeringError('it has no words (is tokenizer.json there?) or no "pad_token".')
        part = "weights (safetensors only)"
        transformers_logging.set_verbosity_error()  # or its table of keys comes before our error
        options |= {"dtype": dtype, "device_map": device_map, "use_safetensors": True}
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        if held and device_map is not None:
            raise SteeringError("device_map needs a copy: set STEERING_CACHE to a folder for it.")
        if held:
            model, keys = held[0] if dtype == "auto" else held[0].to(getattr(torch, dtype)), {}
        else:
            model, keys = AutoModelForCausalLM.from_pretrained(source, **options)
        for fault in ("missing", "mismatched", "unexpected"):
            wrong = sorted(map(str, keys.get(f"{fault}_keys", ())))
            if wrong := [key for key in wrong if not _CONSTANT.search(key)]:
                raise SteeringError(f"{len(wrong)} {fault}, such as {', '.join(wrong[:3])}.")
        part = "architecture"
        check_causal(model.to(device) if device_map is None else model)
    except Exception as error:
        cause = textwrap.shorten(str(trouble or error), 300, placeholder=" …").rstrip(".")
        where = "looked for a local folder of that name and on the Hugging Face hub (check the "
        where = "the path was found" if found else where + "spelling and the network)"
        raise SteeringError(
            f"No causal language model could be loaded as {name[:200]!r}: {where}, but its {part} "
            f"cannot be used: {cause}. The model 'pocket' is bundled and needs no network."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model.config._name_or_path = name
    return model.eval().requires_grad_(False), tokenizer


def _ask_hub(name, seconds=4) -> Exception | None:
    """What hinders reading this name from the hub; asked once, in a thread, as it may hang."""
    answer = [TimeoutError(f"the hub did not answer within {seconds} seconds")]

    def ask():
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json"))
            answer[0] = None
        except Exception as error:
            answer[0] = error

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0]


@torch.no_grad()
def check_causal(model) -> None:
    """Raise SteeringError unless the model reads from left to right, as encoders do not.

    What it says at the first of eight tokens must not change with the other seven. One forward
    pass on two such rows; leaves the model as it was.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        weight = model.get_input_embeddings().weight
        rows = torch.tensor([[1] * 8, [1] + [len(weight) // 2] * 7])
        rows = rows.to("cpu" if weight.is_meta else weight.device)
        output = model.eval()(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False)
        first, second = output[0][:, 0].float().cpu()
    except Exception as error:
        raise SteeringError(f"{type(model).__name__} cannot read a text: {error}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not (first - second).abs().max() <= 1e-3 * first.abs().max():  # NaN passes no test
        raise SteeringError(
            f"What {type(model).__name__} says at a token depends on the tokens after it, as in an "
            "encoder such as BERT, or is no number: steering needs a decoder."
        )


def model_name(model) -> str:
    """The name under which the model was loaded."""
    return model.config._name_or_path or type(model).__name__


@torch.no_grad()
def fingerprint(model) -> str:
    """Which weights these are, whatever the name or folder they were loaded from.

    A hash of every parameter's name and shape and of a sample of its entries in bfloat16, so that
    a model loaded in bfloat16 has that of float32. (In float16 it differs: rounded twice, some
    entries come out otherwise.)
    """
    known, samples = [], []
    for name, weight in model.named_parameters():
        known.append(f"{name.replace('_orig_mod.', '')}{tuple(weight.shape)}")
        if not weight.is_meta:
            places = _places(weight.numel())
            if not weight.is_contiguous():
                places = torch.unravel_index(places, weight.shape)
            samples.append((weight.flatten() if weight.is_contiguous() else weight)[places].cpu())
    samples = torch.cat(samples).bfloat16() if samples else torch.empty(0)
    numbers = samples.view(torch.int16).numpy().tobytes()
    return hashlib.sha256("".join(known).encode() + numbers).hexdigest()[:16]


@lru_cache(maxsize=1000)
def _places(n) -> Tensor:
    """Which of n entries stand for all: always the same, anywhere among them."""
    return torch.randint(n, (32,), generator=torch.Generator().manual_seed(n))


def d_model(model) -> int:
    """Width of the residual stream."""
    return model.config.get_text_config().hidden_size


def blocks(model) -> nn.ModuleList:
    """The transformer blocks, in order, of any decoder.

    They are the outermost ``nn.ModuleList`` with as many entries as the configuration has
    layers: no list of known architectures. Raises SteeringError if there is none.
    """
    depth = model.config.get_text_config().num_hidden_layers
    lists = []
    for part in decoder(model).modules():
        if isinstance(part, nn.ModuleList):
            if len(part) == depth:
                return part
            lists.append(part)
    # An assisted generation that failed leaves too small a number in the configuration.
    if lists and len(lists[0]) > depth:
        return lists[0]
    raise SteeringError(
        f"No list of {depth} blocks was found in {type(model).__name__}: "
        "steering needs a decoder-only transformer."
    )


@checked
def some_layers(model, most=12) -> list[int]:
    """At most so many layers, evenly spread, the first and the last among them.

    Neighbours in a deep model tell nearly the same story, and each layer costs as much as any.
    """
    n_layer = len(blocks(model))
    return sorted(
        {round(place) for place in torch.linspace(0, n_layer - 1, min(most, n_layer)).tolist()}
    )


def check_depth(model):
    """Raise SteeringError if the configuration has another number of layers than the model."""
    said, found = model.config.get_text_config().num_hidden_layers, len(blocks(model))
    if said != found:
        raise SteeringError(
            f"{model_name(model)} has {found} layers, but {said} by its configuration, as after "
            f"an assisted generation that failed: set model.config.num_hidden_layers = {found}."
        )


def check_ready(model):
    """Put the model into evaluation mode, with a warning, or raise SteeringError if it is empty."""
    check_depth(model)
    embeddings = model.get_input_embeddings()
    if embeddings.weight.is_meta and not hasattr(embeddings, "_hf_hook"):  # Accelerate's, on disk
        raise SteeringError("The model has no weights in memory: load_model(name) brings them.")
    if any(part.training for part in model.modules()):
        warnings.warn("The model was in training mode: now it is in model.eval().", stacklevel=2)
        model.eval()


def decoder(model) -> nn.Module:
    """The module that runs embeddings, blocks and final norm, without the language-model head."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else None
    lists = () if found is None else map(type, found.modules())
    found = found if nn.ModuleList in lists else model.base_model
    return getattr(found, "_orig_mod", found)  # what torch.compile wraps


def resolve_layer(model, layer) -> int:
    """Turn a layer index, perhaps negative, into 0 ≤ layer < n_layer, or raise SteeringError."""
    n_layer = len(blocks(model))
    try:
        return range(n_layer)[None if isinstance(layer, bool) else layer]
    except (IndexError, TypeError):
        raise SteeringError(
            f"Layer {layer!r} does not exist: {model_name(model)} has {n_layer} layers, "
            f"numbered 0 to {n_layer - 1} (or -{n_layer} to -1 from the end)."
        ) from None


def hidden_state(output) -> Tensor:
    """The hidden state [batch, token, d_model] in what a block returned.

    Some architectures, and most before transformers 5.3, return a tuple that begins with it;
    the others return it bare, where ``output[0]`` would silently be the batch's first prompt.
    Raises SteeringError for a block that returns something else.
    """
    hidden = output[0] if isinstance(output, tuple | list) else output
    if getattr(hidden, "ndim", 0) != 3:
        raise SteeringError("A block must return its hidden state as [batch, token, d_model].")
    return hidden


def with_hidden_state(output, hidden) -> Tensor | tuple:
    """The block's output with its hidden state replaced, in the form in which it came."""
    return type(output)([hidden, *output[1:]]) if isinstance(output, tuple | list) else hidden


@checked
def encode(model, tokenizer, prompts, padding_side="right", new_tokens=0) -> dict[str, Tensor]:
    """Tokenise prompts, texts or dialogues, into one padded batch on the model's device.

    Pad on the right for reading (every real token keeps its position), on the left for
    generating ``new_tokens`` more, which must fit the context too.
    Returns ``{"input_ids", "attention_mask"}``, each [prompt, token]. Raises SteeringError for
    a bare string, an empty list, an empty prompt, one longer than the context, a dialogue without
    a chat template for it, or a tokenizer of another vocabulary.
    """
    ids, context = token_ids(model, tokenizer, prompts), context_length(model)
    for prompt, own in zip(prompts, ids, strict=True):
        if context and len(own) + new_tokens > context:
            more = f" plus {new_tokens} new ones" if new_tokens else ""
            raise SteeringError(
                f"The prompt {prompt[:40]!r}… has {len(own)} tokens{more}, but "
                f"{model_name(model)} reads at most {context}. Shorten it."
            )
    return padded(model, ids, padding_side)


def token_ids(model, tokenizer, texts, **options) -> list[list[int]]:
    """The tokens of each text or dialogue, as by ``chat.tokens_of``.

    Raises SteeringError for a text that is far too long, one without a token, and tokens that the
    model does not have.
    """
    check_ready(model)
    longest, context = max(texts, key=len), context_length(model)
    # To tokenise megabytes only to refuse them takes long. 128 characters make a very long token.
    if context and len(longest) > 128 * context:
        raise SteeringError(
            f"The text {longest[:40]!r}… has {len(longest)} characters, but {model_name(model)} "
            f"reads at most {context} tokens. Shorten it."
        )
    ids = tokens_of(tokenizer, texts, **options)
    if max(map(max, filter(None, ids)), default=0) >= len(model.get_input_embeddings().weight):
        raise SteeringError(
            f"The tokenizer has tokens that {model_name(model)} does not have: it belongs to "
            "another model. load_model(name) gives both."
        )
    for text, own in zip(texts, ids, strict=True):
        if text.strip() and not own:
            raise SteeringError(f"The text {text!r} has no token in this vocabulary: reword it.")
    return ids


def padded(model, ids, side="right") -> dict[str, Tensor]:
    """A batch as of ``encode`` from the tokens of each text; what pads is hidden by the mask."""
    embeddings = model.get_input_embeddings().weight
    device = "cpu" if embeddings.is_meta else embeddings.device  # Accelerate moves it on
    gaps = [[0] * (max(map(len, ids)) - len(own)) for own in ids]
    masks = [[1] * len(own) for own in ids]
    batch = {"input_ids": ids, "attention_mask": masks}
    for name, rows in batch.items():
        pairs = zip(gaps, rows, strict=True) if side == "left" else zip(rows, gaps, strict=True)
        batch[name] = torch.tensor([one + other for one, other in pairs])
    return {name: tensor.to(device) for name, tensor in batch.items()}


def rows_of(batch, rows) -> dict[str, Tensor]:
    """Some rows of a right-padded batch, no wider than the longest of them."""
    width = int(batch["attention_mask"][rows].sum(1).max())
    return {name: tensor[rows, :width] for name, tensor in batch.items()}


def context_length(model) -> int | None:
    """The most tokens the model can read at once, or None if it sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def last_token(attention_mask: Tensor) -> Tensor:
    """Index [prompt] of the last real token of each right-padded row."""
    return attention_mask.sum(1) - 1
