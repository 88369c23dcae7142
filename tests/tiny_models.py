"""Tiny random models of every family that the tests share, and reference computations.

The references are written in the plainest way: one prompt at a time, no padding, no cache, and
a hook of their own that knows nothing of ``helpers``.
"""

from collections import Counter
from contextlib import contextmanager
from functools import lru_cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from helpers.concepts import SENTIMENT
from helpers.directions import SteeringVector
from helpers.models import POCKET

WIDTH = 32
_LLAMA_LIKE = {
    "num_hidden_layers": 3,
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
_GPT2_LIKE = {"n_layer": 3, "n_embd": WIDTH, "n_head": 2, "n_positions": 64}
_BLOOM_LIKE = {"num_hidden_layers": 3, "hidden_size": WIDTH, "num_attention_heads": 2}
FAMILIES = {
    "gpt2": _GPT2_LIKE,
    "gpt_neo": {
        "num_layers": 4,
        "hidden_size": WIDTH,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 2]],
        "max_position_embeddings": 64,
    },
    "gptj": {**_GPT2_LIKE, "rotary_dim": 8},
    "gpt_neox": {**_BLOOM_LIKE, "intermediate_size": 64},
    "opt": {
        **_BLOOM_LIKE,
        "ffn_dim": 64,
        "word_embed_proj_dim": WIDTH,
        "max_position_embeddings": 64,
    },
    "bloom": {"n_layer": 3, "hidden_size": WIDTH, "n_head": 2},
    "falcon": _BLOOM_LIKE,
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "phi": _LLAMA_LIKE,
    "gemma2": {**_LLAMA_LIKE, "head_dim": 16},
}
DEPTH = {family: 4 if family == "gpt_neo" else 3 for family in FAMILIES}

# Of different lengths, and not in the order of their lengths.
PROMPTS = ["The soup was", "I would say that the plot of this long film is", "We liked"]


@lru_cache
def tokenizer():
    return AutoTokenizer.from_pretrained(POCKET)


def new_model(family="gpt2", seed=0):
    """A fresh model, for a test that changes it."""
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer()),
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **FAMILIES[family],
    )
    model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # larger than usual, so that no effect hides below a tolerance
            torch.nn.init.normal_(parameter, std=0.2)
    model.config._name_or_path = f"tiny-{family}"
    return model.eval().requires_grad_(False)


@lru_cache
def tiny_model(family="gpt2"):
    """A shared model, for tests that leave it as it was."""
    return new_model(family)


def make_vector(layer=1, seed=0, model_name="tiny-gpt2", **fields):
    """A steering vector that points anywhere."""
    raw = torch.randn(fields.pop("width", WIDTH), generator=torch.Generator().manual_seed(seed))
    fields = {"method": "mean_difference", "n_pairs": 8, **fields}
    return SteeringVector.from_raw(raw, layer=layer, model_name=model_name, **fields)


def block_list(model):
    """The blocks, found by size among all modules."""
    depth = DEPTH[model.config.model_type]
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]
    assert len(lists) == 1
    return lists[0]


def hooks(model):
    """How many hooks of each kind hang on each module, and which functions they call."""
    return Counter(
        (name, kind, hook)
        for name, module in model.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks")
        for hook in getattr(module, kind).values()
    )


@contextmanager
def no_hook_left(model):
    """Fail unless the same hooks hang on the model before and after."""
    before = hooks(model)
    yield
    assert hooks(model) == before


def fail_at_second_hook(monkeypatch):
    """Let the second hook that is registered on any module fail; returns the list of tries."""
    tries, register = [], torch.nn.Module.register_forward_hook

    def fail(self, *args, **kwargs):
        tries.append(self)
        if len(tries) == 2:
            raise RuntimeError("no more hooks")
        return register(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", fail)
    return tries


def bare(output):
    """The hidden state in what a block returned."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def plain_push(model, layer, delta, columns=slice(None)):
    """Add ``delta`` [d_model] to some columns of a block's output: what steering should do."""

    def hook(module, args, output):
        hidden = bare(output).clone()
        hidden[:, columns] += delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = block_list(model)[layer].register_forward_hook(hook)
    yield
    handle.remove()


def token_ids(prompt):
    """[1, token]"""
    return tokenizer()(prompt, return_tensors="pt")["input_ids"]


@torch.no_grad()
def logits_of(model, ids, **kwargs):
    """[row, token, vocabulary], in one forward pass without a cache."""
    return model(input_ids=ids, use_cache=False, **kwargs).logits


def plain_log_odds(model, prompt, pushes=()):
    """``log_odds`` of one prompt from its full logits; ``pushes`` are (layer, delta)."""
    if pushes:
        with plain_push(model, *pushes[0]):
            return plain_log_odds(model, prompt, pushes[1:])
    log_probabilities = logits_of(model, token_ids(prompt))[0, -1].log_softmax(0)
    sides = []
    for words in (SENTIMENT.positive_words, SENTIMENT.negative_words):
        ids = [token_ids(" " + word).item() for word in words]
        sides.append(sum(log_probabilities[i].exp() for i in ids).log())
    return (sides[0] - sides[1]).item()
