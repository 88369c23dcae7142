"""Load a causal language model and find its parts, whatever its architecture.

The only module that knows how Hugging Face models are built. The others ask it for the
blocks, for what a block returned, and for padded batches of tokens.
"""

import hashlib
import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from . import TORCH_CAME_FIRST
from .checks import SteeringError, checked

POCKET = Path(__file__).parent / "pocket"


def load_model(name=None, device=None, dtype=None, device_map=None) -> tuple:
    """Load a causal language model and its tokenizer, ready for reading and steering.

    Parameters
    ----------
    name : str or Path, optional
        ``"pocket"`` (the bundled model: no network), a Hugging Face name such as ``"gpt2"``,
        or a local folder. Default: environment variable ``STEERING_MODEL``, else ``"pocket"``.
    device : str, optional
        Default: environment variable ``STEERING_DEVICE``, else ``"cuda"``, ``"mps"`` or
        ``"cpu"``, the first that this machine has.
    dtype : torch.dtype, optional
        Default: float32 on CPU and MPS, where half precision is slow or not reproducible;
        the checkpoint's own on CUDA.
    device_map : str or dict, optional
        Passed to Accelerate, for a model that needs several GPUs; replaces ``device``.

    Returns the model in evaluation mode with gradients off, and the tokenizer with a padding
    token. Raises SteeringError if nothing can be loaded under this name. Warns if torch was
    imported before ``helpers``, which is then slow beside a busy process.
    """
    if TORCH_CAME_FIRST:
        warnings.warn(
            "torch was imported before helpers: beside a busy process it will be slow. Import "
            "helpers first, or set OMP_WAIT_POLICY=PASSIVE before Python starts.",
            stacklevel=2,
        )
    name = str(name or os.environ.get("STEERING_MODEL") or "pocket")
    bundled = name == "pocket"
    source = POCKET if bundled else name
    device = device or os.environ.get("STEERING_DEVICE") or _best_device()
    if dtype is None:
        on_gpu = device_map is not None or str(device).startswith("cuda")
        dtype = "auto" if on_gpu and not bundled else torch.float32
    bars_were_on = transformers_logging.is_progress_bar_enabled()
    if bundled:  # it loads in a second; a bar would only be noise
        transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, device_map=device_map, use_safetensors=True
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        cause = str(error).strip().split("\n")[0]
        raise SteeringError(
            f"No causal language model could be loaded as {name!r}: looked for a local folder of "
            f"that name and on the Hugging Face hub. Check the spelling and the network, or use "
            f"'pocket', which is bundled and needs no network. (Cause: {cause})"
        ) from error
    finally:
        if bars_were_on:
            transformers_logging.enable_progress_bar()
    if device_map is None:
        model.to(device)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config._name_or_path = name
    return model.eval().requires_grad_(False), tokenizer


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def model_name(model) -> str:
    """The name under which the model was loaded."""
    return model.config._name_or_path or type(model).__name__


def fingerprint(model) -> str:
    """Which weights these are, whatever the name or folder they were loaded from.

    A hash of every parameter's name and shape and of a sample of its entries in bfloat16, so that
    a model loaded in bfloat16 has that of float32. (In float16 it differs: rounded twice, some
    entries come out otherwise.)
    """
    known, samples = [], []
    for name, weight in model.named_parameters():
        known.append(f"{name}{tuple(weight.shape)}")
        if not weight.is_meta:
            flat = weight.detach().flatten()
            samples.append(flat[:: max(1, len(flat) // 8)][:8].to("cpu", torch.bfloat16))
    numbers = torch.cat(samples).view(torch.int16).numpy().tobytes() if samples else b""
    return hashlib.sha256("".join(known).encode() + numbers).hexdigest()[:16]


def d_model(model) -> int:
    """Width of the residual stream."""
    return model.config.get_text_config().hidden_size


def blocks(model) -> nn.ModuleList:
    """The transformer blocks, in order, of any decoder.

    They are the outermost ``nn.ModuleList`` with as many entries as the configuration has
    layers: no list of known architectures. Raises SteeringError if there is none.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in decoder(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise SteeringError(
        f"No list of {depth} blocks was found in {type(model).__name__}: "
        "steering needs a decoder-only transformer."
    )


def decoder(model) -> nn.Module:
    """The module that runs embeddings, blocks and final norm, without the language-model head."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else None
    return model.base_model if found is None else found


def resolve_layer(model, layer) -> int:
    """Turn a layer index, perhaps negative, into 0 ≤ layer < n_layer, or raise SteeringError."""
    n_layer = len(blocks(model))
    try:
        return range(n_layer)[layer]
    except (IndexError, TypeError):
        raise SteeringError(
            f"Layer {layer!r} does not exist: {model_name(model)} has {n_layer} layers, "
            f"numbered 0 to {n_layer - 1} (or -{n_layer} to -1 from the end)."
        ) from None


def hidden_state(output) -> Tensor:
    """The hidden state [batch, token, d_model] in what a block returned.

    Some architectures, and most before transformers 5.3, return a tuple that begins with it;
    the others return it bare, where ``output[0]`` would silently be the batch's first prompt.
    """
    return output[0] if isinstance(output, tuple) else output


def with_hidden_state(output, hidden) -> Tensor | tuple:
    """The block's output with its hidden state replaced, in the form in which it came."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@checked
def encode(model, tokenizer, prompts, padding_side="right", new_tokens=0) -> dict[str, Tensor]:
    """Tokenise prompts into one padded batch on the model's device.

    Pad on the right for reading (every real token keeps its position), on the left for
    generating ``new_tokens`` more, which must fit the context too.
    Returns ``{"input_ids", "attention_mask"}``, each [prompt, token]. Raises SteeringError for
    a bare string, an empty list, an empty prompt, one longer than the context, or a tokenizer of
    another vocabulary.
    """
    ids, context = token_ids(model, tokenizer, prompts), context_length(model)
    for prompt, own in zip(prompts, ids, strict=True):
        if context and len(own) + new_tokens > context:
            more = f" plus {new_tokens} new ones" if new_tokens else ""
            raise SteeringError(
                f"The prompt {prompt[:40]!r}… has {len(own)} tokens{more}, but "
                f"{model_name(model)} reads at most {context}. Shorten it."
            )
    return padded(model, tokenizer, ids, padding_side)


def token_ids(model, tokenizer, texts, **options) -> list[list[int]]:
    """The tokens of each text; ``options`` are the tokenizer's.

    Raises SteeringError for a text that is far too long, one without a token, and tokens that the
    model does not have.
    """
    longest, context = max(texts, key=len), context_length(model)
    # To tokenise megabytes only to refuse them takes long. 128 characters make a very long token.
    if context and len(longest) > 128 * context:
        raise SteeringError(
            f"The text {longest[:40]!r}… has {len(longest)} characters, but {model_name(model)} "
            f"reads at most {context} tokens. Shorten it."
        )
    ids = tokenizer(texts, **options)["input_ids"]
    if max(map(max, filter(None, ids)), default=0) >= len(model.get_input_embeddings().weight):
        raise SteeringError(
            f"The tokenizer has tokens that {model_name(model)} does not have: it belongs to "
            "another model. load_model(name) gives both."
        )
    for text, own in zip(texts, ids, strict=True):
        if text.strip() and not own:
            raise SteeringError(f"The text {text!r} has no token in this vocabulary: reword it.")
    return ids


def padded(model, tokenizer, ids, side="right") -> dict[str, Tensor]:
    """A batch as of ``encode`` from the tokens of each text."""
    embedding, pad = model.get_input_embeddings().weight, tokenizer.pad_token_id or 0
    lengths = torch.tensor([len(own) for own in ids])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    real = real.flip(1) if side == "left" else real
    # The mask hides what pads; a token that the model does not have would still stop it.
    tokens = torch.full(real.shape, pad if pad < len(embedding) else 0)
    tokens[real] = torch.tensor([token for own in ids for token in own])
    batch = {"input_ids": tokens, "attention_mask": real.long()}
    return {name: tensor.to(embedding.device) for name, tensor in batch.items()}


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
