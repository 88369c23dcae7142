import copy
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaConfig,
)
from transformers.utils import logging as transformers_logging

from helpers import batches, models
from helpers.evaluation import log_odds, perplexity
from helpers.generation import generate
from helpers.models import SteeringError, fingerprint, load_model
from tiny_models import (
    DEPTH,
    FAMILIES,
    PROMPTS,
    WIDTH,
    hooks,
    logits_of,
    make_vector,
    new_model,
    tiny_model,
    token_ids,
    tokenizer,
)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """A model of another family, saved as a user would, whose tokenizer has no padding token."""
    folder = tmp_path_factory.mktemp("llama")
    new_model("llama").save_pretrained(folder)
    for file in models.POCKET.glob("token*"):
        shutil.copy(file, folder)
    config = folder / "tokenizer_config.json"
    config.write_text(re.sub(r'"pad_token".*\n', "", config.read_text(encoding="utf-8")))
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("The network was used.")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("environment", [None, "", "pocket"])
def test_pocket_is_the_default_and_needs_no_network(environment, monkeypatch, no_network):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    if environment is None:
        monkeypatch.delenv("STEERING_MODEL", raising=False)
    else:
        monkeypatch.setenv("STEERING_MODEL", environment)
    model, tok = load_model(device="cpu")
    assert models.model_name(model) == "pocket"
    assert model.config.model_type == "gpt2" and len(models.blocks(model)) == 12
    assert not model.training and model.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tok.pad_token_id is not None


def test_environment_names_a_local_folder(llama_folder, monkeypatch, no_network):
    monkeypatch.setenv("STEERING_MODEL", str(llama_folder))
    model, tok = load_model()
    assert model.config.model_type == "llama"
    assert models.model_name(model) == str(llama_folder)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert tok.pad_token == tok.eos_token  # it had none


def test_argument_wins_over_environment(llama_folder, monkeypatch):
    monkeypatch.setenv("STEERING_MODEL", "pocket")
    assert load_model(str(llama_folder))[0].config.model_type == "llama"


def test_a_path_is_a_name_too(llama_folder):
    assert models.model_name(load_model(llama_folder)[0]) == str(llama_folder)


def test_device_and_dtype_are_taken(llama_folder):
    model, _ = load_model(str(llama_folder), device="cpu", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.device.type == "cpu"


def test_device_map_replaces_device(llama_folder):
    model, _ = load_model(str(llama_folder), device="meta", device_map={"": "cpu"})
    assert model.device.type == "cpu"


@pytest.mark.parametrize("name", ["no-such-model", "no-such-owner/no-such-model", "wrong//name"])
def test_unknown_model_names_the_way_out(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SteeringError, match=f"'{name}'.*local folder.*hub.*'pocket'.*no network"):
        load_model(name)


def test_no_bar_is_left_by_loading(llama_folder, monkeypatch):
    made, make = [], batches._MAKE_BAR

    def keep(bar, *args, **labels):
        made.append(labels)
        make(bar, *args, **labels)

    monkeypatch.setattr(batches.tqdm, "__init__", make)  # is put back in the end
    monkeypatch.setattr(batches, "_MAKE_BAR", keep)
    load_model(llama_folder)
    assert made  # transformers' "Loading weights"
    assert all(not labels["leave"] and labels["delay"] == 2 for labels in made)


def test_damaged_weights_give_the_same_error(llama_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(SteeringError, match="could be loaded as.*'pocket'"):
        load_model(str(tmp_path))


def test_a_folder_without_a_model_gives_the_same_error(tmp_path):
    with pytest.raises(SteeringError, match="could be loaded as.*'pocket'"):
        load_model(str(tmp_path))


# -- Right or refused: weights


def saved(model, folder):
    """A model as a user would save it, with the bundled tokenizer beside it."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def edit(folder, file="config.json", **changes):
    """Change entries of a JSON file; None takes an entry away."""
    path = Path(folder, file)
    entries = json.loads(path.read_text(encoding="utf-8")) | changes
    entries = {name: value for name, value in entries.items() if value is not None}
    path.write_text(json.dumps(entries), encoding="utf-8")


def refusal(name, **kwargs):
    """The message with which load_model refuses; of a folder it never doubts the spelling."""
    with pytest.raises(SteeringError) as caught:
        load_model(name, **kwargs)
    message = str(caught.value)
    assert "'pocket'" in message and "needs no network" in message and "\n" not in message
    if os.path.exists(str(name)):
        assert "the path was found, but" in message
        assert "spelling" not in message and "Hugging Face hub" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 14}, "weights.*24 missing, such as transformer.h.12.attn.c_attn.bias, "),
        ({"n_layer": 8}, r"weights.*\d\d unexpected, such as transformer.h.10.attn.c_"),
        ({"n_layer": 6}, r"weights.*\d\d unexpected, such as transformer.h.10.attn.c_"),
        ({"n_embd": 96}, r"weights.*\d{3} mismatched, such as .*\[192\].*\[96\]"),
        ({"vocab_size": 100}, r"weights.*1 mismatched, such as .*wte.weight.*\[8192, 192\]"),
    ],
)
def test_weights_that_do_not_fit_the_configuration(changes, message, tmp_path, capfd):
    shutil.copytree(models.POCKET, tmp_path, dirs_exist_ok=True)
    edit(tmp_path, **changes)
    capfd.readouterr()
    assert re.search(message, refusal(tmp_path))
    assert "MISSING" not in capfd.readouterr().err  # transformers' table of keys


def test_a_model_saved_without_its_head_is_refused(tmp_path):
    folder = saved(new_model("llama").model, tmp_path)
    assert re.search("weights.*1 missing, such as lm_head.weight", refusal(folder))


def as_on_the_hub(folder, rename=str, **constants):
    """Rewrite a file of weights as older releases wrote it, with constants in every block."""
    path = Path(folder, "model.safetensors")
    weights = {rename(name): tensor for name, tensor in load_file(path).items()}
    for name, tensor in constants.items():
        weights |= {name.format(layer): tensor.clone() for layer in range(3)}
    save_file(weights, path, {"format": "pt"})


MASK, NUMBER = torch.ones(1, 1, 64, 64).tril(), torch.tensor(-1e4)
OLD_FILES = {
    "gpt2": {"h.{}.attn.bias": MASK, "h.{}.attn.masked_bias": NUMBER},
    "gptj": {"transformer.h.{}.attn.bias": MASK, "transformer.h.{}.attn.masked_bias": NUMBER},
    "gpt_neox": {
        "gpt_neox.layers.{}.attention.bias": MASK,
        "gpt_neox.layers.{}.attention.masked_bias": NUMBER,
        "gpt_neox.layers.{}.attention.rotary_emb.inv_freq": torch.ones(4),
    },
    "llama": {"model.layers.{}.self_attn.rotary_emb.inv_freq": torch.ones(8)},
    "falcon": {"transformer.h.{}.self_attention.rotary.inv_freq": torch.ones(8)},
    "gpt_neo": {
        "transformer.h.{}.attn.attention.bias": MASK,
        "transformer.h.{}.attn.attention.masked_bias": NUMBER,
    },
}


@pytest.mark.parametrize("family", OLD_FILES)
def test_files_as_they_lie_on_the_hub_are_whole(family, tmp_path):
    folder = saved(new_model(family), tmp_path)
    assert family != "gpt2" or not any(
        "lm_head" in key for key in load_file(f"{folder}/model.safetensors")
    )
    prefix = "transformer." if family == "gpt2" else ""  # the file of GPT-2 has none
    as_on_the_hub(folder, lambda key: key.removeprefix(prefix), **OLD_FILES[family])
    model, _ = load_model(folder)
    assert fingerprint(model) == fingerprint(new_model(family))
    ids = token_ids("The soup was")
    assert logits_of(model, ids).equal(logits_of(new_model(family), ids))


def test_weights_in_several_files_are_whole_or_refused(tmp_path):
    new_model().save_pretrained(tmp_path, max_shard_size="50KB")
    tokenizer().save_pretrained(tmp_path)
    assert fingerprint(load_model(tmp_path)[0]) == fingerprint(new_model())
    next(tmp_path.glob("model-00002-*")).unlink()
    assert re.search("weights.*model-00002", refusal(tmp_path))


# -- Right or refused: what reads from left to right


def tiny_encoder(family, **options):
    """A random model of another kind, as small as the shared ones, without special setting."""
    sizes = {
        "vocab_size": len(tokenizer()),
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(family, **(sizes | options))
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "rembert"])
def test_an_encoder_is_refused_and_its_decoder_is_not(family, tmp_path):
    encoder = tiny_encoder(family)
    folder = saved(encoder, tmp_path)
    message = refusal(folder)
    name = type(encoder).__name__
    assert re.search(f"architecture.*{name}.*depends on the tokens after it.*encoder", message)
    edit(folder, is_decoder=True)
    models.check_causal(load_model(folder)[0])


def test_other_models_that_read_both_ways_are_refused():
    config = AutoConfig.for_model(
        "xlnet", vocab_size=99, d_model=32, n_layer=2, n_head=2, d_inner=64
    )
    with pytest.raises(SteeringError, match="XLNetLMHeadModel.*after it"):
        models.check_causal(AutoModelForCausalLM.from_config(config))
    for family in ("bert", "roberta"):  # without the head, too
        with pytest.raises(SteeringError, match="after it"):
            models.check_causal(tiny_encoder(family).base_model)


SMALL = {"vocab_size": 8192, "d_model": 32, "num_layers": 1, "d_kv": 16, "d_ff": 64, "num_heads": 2}
SMALL |= {f"{part}_layers": 1 for part in ("encoder", "decoder")}


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_is_refused(family, tmp_path):
    config = AutoConfig.for_model(family, **SMALL)
    folder = saved(AutoModelForSeq2SeqLM.from_config(config), tmp_path)
    assert "its architecture cannot be used: it is an encoder-decoder" in refusal(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoders_of_every_family_are_causal(family, dtype):
    models.check_causal(new_model(family).to(dtype))


def test_state_spaces_and_experts_are_causal():
    mamba = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    experts = FAMILIES["llama"] | {"vocab_size": 99, "num_local_experts": 4}
    for family, sizes in {"mamba": mamba, "mixtral": experts}.items():
        config = AutoConfig.for_model(family, **sizes)
        models.check_causal(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("make", [new_model, partial(tiny_encoder, "bert")])
def test_the_check_leaves_no_trace(make):
    model = make().train().requires_grad_(True)  # dropout on: two passes would differ
    model.get_input_embeddings().eval()
    modes = [module.training for module in model.modules()]
    before, weights = hooks(model), fingerprint(model)
    if make is new_model:
        models.check_causal(model)
    else:
        with pytest.raises(SteeringError):
            models.check_causal(model)
    assert modes == [module.training for module in model.modules()] and not all(modes)
    assert hooks(model) == before and fingerprint(model) == weights
    assert torch.is_grad_enabled()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = new_model()
    model.transformer.h[1].ln_1.weight.fill_(torch.nan)
    assert "is no number" in refusal(saved(model, tmp_path))


@pytest.mark.parametrize("where", ["meta", {"": "meta"}])
def test_a_model_without_its_weights_is_refused(where, llama_folder):
    assert "meta" in refusal(llama_folder, device_map=where)
    with pytest.raises(SteeringError, match="GPT2LMHeadModel cannot read a text.*meta"):
        models.check_causal(new_model().to("meta"))


@pytest.mark.parametrize("where", ["nowhere", 5, {"": "gpu"}, []])
def test_a_device_map_that_is_none_is_refused(where, llama_folder):
    assert "its weights (safetensors only) cannot be used: " in refusal(
        llama_folder, device_map=where
    )


def test_weights_that_accelerate_keeps_on_the_disk_are_fine(llama_folder):
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {name: "cpu" for name in ("model.layers.2", "model.norm", "lm_head")}
    model, _ = load_model(llama_folder, device_map=places | {"model.rotary_emb": "cpu"})
    assert next(model.model.layers[1].parameters()).is_meta
    ids = token_ids("The soup was")
    assert logits_of(model, ids).equal(logits_of(new_model("llama"), ids))


# -- Right or refused: arguments


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("Something was loaded.")

    for kind in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        monkeypatch.setattr(kind, "from_pretrained", refuse)


NO_DTYPES = ["float99", "int32", torch.int32, torch.int8, torch.bool, bool, 5, "", "Linear"]


@pytest.mark.parametrize("dtype", [*NO_DTYPES, torch.complex64, torch.float8_e4m3fn, [], False])
def test_a_dtype_that_is_none_is_refused(dtype, nothing_is_loaded):
    message = (
        f"dtype {re.escape(repr(dtype))} cannot be used: give one of .*float32.*bfloat16.*auto"
    )
    with pytest.raises(SteeringError, match=message):
        load_model(dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "loaded"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float64, torch.float64),
        ("auto", torch.float16),  # as it is stored
        (torch.float16, torch.float16),
        (None, torch.float32),
    ],
)
def test_a_dtype_may_be_a_name(dtype, loaded):
    assert load_model("pocket", device="cpu", dtype=dtype)[0].dtype == loaded


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", 5, 0, True, "", "cpu:x", [], 1.5])
def test_an_unusable_device_is_refused(device, nothing_is_loaded, monkeypatch):
    message = f"Device {re.escape(repr(device))} cannot be used, 'cpu' can: .*[a-z]{{3}}"
    with pytest.raises(SteeringError, match=message):
        load_model(device=device)
    if isinstance(device, str) and device:
        monkeypatch.setenv("STEERING_DEVICE", device)
        with pytest.raises(SteeringError, match=message):
            load_model()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_a_device_that_this_machine_lacks_is_refused(device, nothing_is_loaded):
    with pytest.raises(SteeringError, match="'cpu' can: .*(CUDA|NVIDIA)"):
        load_model(device=device)


def test_a_device_may_be_a_torch_device():
    assert load_model(device=torch.device("cpu"))[0].device.type == "cpu"


@pytest.mark.parametrize("name", [5, 0, "", "  ", "\n", b"pocket", ["pocket"], {}, True, object])
def test_what_is_no_name_is_refused(name, nothing_is_loaded):
    with pytest.raises(SteeringError, match=f"{re.escape(repr(name))} names no model.*'pocket'"):
        load_model(name)


NO_NAMES = ["/no/such/folder", "./here", "a\0b", "x" * 10**6, "https://host/name", "\ud800", "ü"]


@pytest.mark.parametrize(
    "name", [*NO_NAMES, "..\\model", "a/b/c", "~", "-", "a b", Path("no/such")]
)
def test_odd_names_give_the_same_error(name):
    assert len(refusal(name)) < 1500
    assert "local folder of that name and on the Hugging Face hub (check the" in refusal(name)


# -- Right or refused: files


def cut(file, share=0.5):
    return lambda folder: (folder / file).write_bytes(
        (whole := (folder / file).read_bytes())[: int(share * len(whole))]
    )


def write(file, text):
    return lambda folder: (folder / file).write_text(text)


def drop(*files):
    return lambda folder: [path.unlink() for file in files for path in folder.glob(file)]


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def quantised(method):
    return partial(edit, quantization_config={"quant_method": method, "load_in_4bit": True})


CODE = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
DAMAGES = {
    "half of the weights": (cut("model.safetensors"), "weights.*(?i:safetensor|deserial)"),
    "weights cut in the header": (cut("model.safetensors", 0.001), "weights.*(?i:header|deserial)"),
    "no weights": (drop("model.safetensors"), "weights.*no file named model.safetensors"),
    "only pickled weights": (pickled, r"weights \(safetensors only\).*no file named model.saf"),
    "half of the tokenizer": (cut("tokenizer.json"), "its tokenizer cannot be used: ."),
    "an empty tokenizer": (write("tokenizer.json", "{}"), "its tokenizer cannot be used: ."),
    "no tokenizer": (drop("token*"), r"its tokenizer.*no words \(is tokenizer.json there"),
    "no tokenizer.json": (drop("tokenizer.json"), "its tokenizer cannot be used: ."),
    "no tokenizer settings": (write("tokenizer_config.json", "{"), "its tokenizer .*: ."),
    "no JSON": (write("config.json", "{no"), "its configuration.*not a valid JSON file"),
    "a list": (write("config.json", "[]"), "its configuration cannot be used: ."),
    "no configuration": (drop("config.json"), "its configuration.*no config.json"),
    "nothing": (drop("*"), "its configuration.*no config.json can be read"),
    "no kind": (partial(edit, model_type=None), "its configuration.*model_type"),
    "an unknown kind": (partial(edit, model_type="fancy"), "its configuration.*`fancy`"),
    "another kind": (partial(edit, model_type="vit"), "its weights.*ViTConfig"),
    "its own code": (
        partial(edit, model_type="fancy", auto_map=CODE),
        "its configuration.*(custom code|fancy)",
    ),
    "a size that cannot be": (partial(edit, n_head=5), "its weights.*divisible by"),
    "a package that is missing": (quantised("bitsandbytes"), "its weights.*bitsandbytes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_its_cause(damage, tmp_path, monkeypatch, no_network):
    monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("A question was asked."))
    saved(new_model(), tmp_path)
    act, message = DAMAGES[damage]
    act(tmp_path)
    assert re.search(message, refusal(tmp_path))


def test_a_file_is_no_folder(llama_folder):
    for file in ("config.json", "model.safetensors"):
        assert "no config.json can be read" in refusal(llama_folder / file)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_folder_that_may_not_be_read_is_refused(llama_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path / "closed")
    (tmp_path / "closed").chmod(0)
    assert "no config.json can be read" in refusal(tmp_path / "closed")
    (tmp_path / "closed").chmod(0o700)


# -- Padding


TOKEN = re.compile('"(bos|eos|pad|unk)_token": ')


def with_tokens(folder, *kept):
    """The bundled tokenizer with only some of its special tokens, beside a tiny model."""
    saved(new_model(), folder)
    for file in models.POCKET.glob("token*"):
        shutil.copy(file, folder)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    edit(folder, "tokenizer_config.json", **{name: None for name in names if name not in kept})


@pytest.mark.parametrize("kept", ["eos_token", "bos_token", "unk_token", "pad_token"])
def test_any_special_token_serves_for_padding(kept, tmp_path):
    with_tokens(tmp_path, kept)
    model, tok = load_model(tmp_path)
    assert tok.pad_token == "<|endoftext|>" and tok.pad_token_id == 0
    assert set(tok.all_special_tokens) == {"<|endoftext|>"}  # no word became one
    batch = models.encode(model, tok, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        ids = batch["input_ids"][row, batch["attention_mask"][row].bool()]
        assert ids.tolist() == tokenizer()(prompt)["input_ids"]


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tmp_path):
    with_tokens(tmp_path)
    edit(tmp_path, "tokenizer.json", added_tokens=[])
    assert 'no "pad_token"' in refusal(tmp_path)


def test_the_bundled_tokenizer_gives_ids_and_mask_only():
    """Of token_type_ids GPT-2 would add an embedding to every token."""
    settings = json.loads((models.POCKET / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    tok = load_model("pocket", device="cpu")[1]
    assert (
        list(tok("The soup was"))
        == list(tok(PROMPTS, padding=True))
        == [
            "input_ids",
            "attention_mask",
        ]
    )


# -- The hub, without a network


@pytest.fixture
def hub(monkeypatch):
    """Point every request to this address, as if it were the hub, until the test is over."""

    def point(address):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        host = huggingface_hub.constants.ENDPOINT
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            value = getattr(huggingface_hub.constants, name)
            monkeypatch.setattr(huggingface_hub.constants, name, value.replace(host, address))

    for proxy in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(proxy, raising=False)
    return point


def seconds_to_refuse(name, message):
    start = time.monotonic()
    assert re.search(message, refusal(name))
    return time.monotonic() - start


def test_a_name_that_resolves_to_nothing_is_refused_at_once(hub, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    hub("http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    message = "'no-such-model'.*hub.*network.*configuration.*Name or service not known"
    assert seconds_to_refuse("no-such-model", message) < 3


def test_a_hub_that_refuses_connections_is_given_up_at_once(hub):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # but it does not listen
        hub(f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert seconds_to_refuse("owner/model", "configuration.*[Rr]efused") < 3


def test_a_hub_that_never_answers_is_given_up_soon(hub, monkeypatch):
    monkeypatch.setattr(models, "_ask_hub", partial(models._ask_hub, seconds=1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert seconds_to_refuse("owner/model", "did not answer within 1 seconds") < 4


def test_looking_up_the_hub_may_hang_too(hub, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(models, "_ask_hub", partial(models._ask_hub, seconds=1))
    hub("http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(30))
    assert seconds_to_refuse("owner/model", "did not answer within 1 seconds") < 4
    over.set()


def test_the_hub_is_waited_for_less_than_ten_seconds():
    assert models._ask_hub.__defaults__[0] <= 5


class _NoSuchModel(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def test_a_name_that_the_hub_does_not_know_is_said_to_be_unknown(hub):
    with HTTPServer(("127.0.0.1", 0), _NoSuchModel) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(f"http://127.0.0.1:{server.server_port}")
        message = "spelling.*404.*Repository Not Found"
        assert seconds_to_refuse("owner/misspelt", message) < 3
        server.shutdown()


def test_a_model_in_the_cache_loads_while_the_hub_is_silent(hub, tmp_path, monkeypatch):
    folder = tmp_path / "models--owner--model"
    saved(new_model(), folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        hub(f"http://127.0.0.1:{closed.getsockname()[1]}")
        start = time.monotonic()
        model, _ = load_model("owner/model")
    assert time.monotonic() - start < 5
    assert models.model_name(model) == "owner/model"
    assert fingerprint(model) == fingerprint(new_model())


# -- What load_model leaves as it was


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("kind", [AutoConfig, AutoTokenizer, AutoModelForCausalLM])
def test_transformers_settings_are_restored(kind, error, bars, monkeypatch):
    before = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()

    def fail(*args, **kwargs):
        raise error("stop")

    def settings(bars, verbosity):
        change = "enable" if bars else "disable"
        getattr(transformers_logging, f"{change}_progress_bar")()
        transformers_logging.set_verbosity(verbosity)

    if error is not None:
        monkeypatch.setattr(kind, "from_pretrained", fail)
    try:
        settings(bars, 20)
        try:
            load_model("pocket", device="cpu")
        except (KeyboardInterrupt, SteeringError) as raised:
            assert error and isinstance(raised, (SteeringError, error))
        assert transformers_logging.is_progress_bar_enabled() == bars
        assert transformers_logging.get_verbosity() == 20
    finally:
        settings(*before)


# -- The parts of a model


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_found_in_every_family(family):
    model = tiny_model(family)
    found = models.blocks(model)
    assert len(found) == DEPTH[family]
    assert len({type(block) for block in found}) == 1
    assert models.d_model(model) == WIDTH


def test_a_model_without_blocks_is_refused(monkeypatch):
    model = new_model()
    model.transformer.h = nn.ModuleList(model.transformer.h[:2])
    with pytest.raises(SteeringError, match="No list of 3 blocks.*GPT2LMHeadModel"):
        models.blocks(model)


def test_some_layers_are_spread_evenly_over_a_deep_model():
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=30,
        num_attention_heads=1,
    )
    deep = AutoModelForCausalLM.from_config(config)
    assert models.some_layers(deep) == [0, 3, 5, 8, 11, 13, 16, 18, 21, 24, 26, 29]
    assert models.some_layers(deep, 2) == [0, 29] and models.some_layers(deep, 1) == [0]
    assert models.some_layers(deep, 10**9) == list(range(30))


@pytest.mark.parametrize(("layer", "resolved"), [(0, 0), (2, 2), (-1, 2), (-3, 0)])
def test_layers_count_from_either_end(layer, resolved):
    assert models.resolve_layer(tiny_model(), layer) == resolved


@pytest.mark.parametrize("layer", [3, -4, 1.5, "1"])
def test_layer_out_of_range_says_how_many_there_are(layer):
    message = rf"Layer {layer!r} does not exist: tiny-gpt2 has 3 layers, numbered 0 to 2"
    with pytest.raises(SteeringError, match=message):
        models.resolve_layer(tiny_model(), layer)


def test_mistake_05_a_bare_tensor_keeps_its_batch_axis():
    hidden, rest = torch.randn(2, 3, 4), object()
    assert models.hidden_state(hidden) is hidden
    assert models.hidden_state((hidden, rest)) is hidden
    assert models.with_hidden_state(hidden, -hidden).equal(-hidden)
    changed = models.with_hidden_state((hidden, rest), -hidden)
    assert isinstance(changed, tuple) and changed[0].equal(-hidden) and changed[1] is rest


@pytest.mark.parametrize("side", ["left", "right"])
def test_encode_pads_on_the_side_that_is_asked_for(side):
    batch = models.encode(tiny_model(), tokenizer(), PROMPTS, padding_side=side)
    width = batch["input_ids"].shape[1]
    for row, prompt in enumerate(PROMPTS):
        ids = tokenizer()(prompt)["input_ids"]
        here = slice(0, len(ids)) if side == "right" else slice(width - len(ids), None)
        assert batch["input_ids"][row, here].tolist() == ids
        assert batch["attention_mask"][row, here].all()
        assert batch["attention_mask"][row].sum() == len(ids)


def test_mistake_08_last_token_of_a_right_padded_row_is_no_pad():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert models.last_token(mask).tolist() == [1, 3, 0]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("The soup was", r"got one string: use \['The soup was'\]"),
        ([], "list of prompts is empty"),
        (["The soup was", ""], r"Prompt 2 of 2 is empty \(''\): write some text"),
        (["", "We", "liked"], r"Prompt 1 of 3 is empty"),
        (["  \n"], r"The prompt is empty \('  \\n'\)"),
        ([None], r"The prompt is no text \(None\): give a str"),
        (["word " * 65], r"'word word.* has 6\d tokens, but tiny-gpt2 reads at most 64"),
    ],
)
def test_unusable_prompts(prompts, message):
    with pytest.raises(SteeringError, match=message):
        models.encode(tiny_model(), tokenizer(), prompts)


def test_new_tokens_must_fit_the_context_too():
    model, ids = tiny_model(), tokenizer()("word " * 50)["input_ids"]
    models.encode(model, tokenizer(), ["word " * 50], new_tokens=64 - len(ids))
    with pytest.raises(SteeringError, match=f"{len(ids)} tokens plus {65 - len(ids)} new ones"):
        models.encode(model, tokenizer(), ["word " * 50], new_tokens=65 - len(ids))


def test_a_text_far_beyond_the_context_is_refused_before_it_is_tokenised(monkeypatch):
    monkeypatch.setattr(type(tokenizer()), "__call__", None)
    message = r"'word word.* has 2000000 characters, but tiny-gpt2 reads at most 64 tokens. Shorten"
    with pytest.raises(SteeringError, match=message):
        models.encode(tiny_model(), tokenizer(), ["We", "word " * 400_000])


def test_a_tokenizer_of_another_vocabulary_is_refused():
    model = new_model()
    model.resize_token_embeddings(300)
    assert tokenizer()(PROMPTS[0])["input_ids"][-1] >= 300
    for use in (models.encode, log_odds, lambda *given: perplexity(*given, PROMPTS)):
        with pytest.raises(SteeringError, match="tiny-gpt2 does not have: it belongs to another"):
            use(model, tokenizer(), PROMPTS)


@pytest.fixture
def without_padding():
    """The tokenizer as if it had no padding token."""
    bare = copy.deepcopy(tokenizer())
    bare.pad_token = None
    assert bare.pad_token_id is None
    return bare


def test_a_tokenizer_without_a_padding_token_serves_too(without_padding):
    model, v = tiny_model(), make_vector()
    for side in ("left", "right"):
        mine, plain = (
            models.encode(model, some, PROMPTS, side) for some in (without_padding, tokenizer())
        )
        assert mine["attention_mask"].equal(plain["attention_mask"])
        real = plain["attention_mask"].bool()
        assert mine["input_ids"][real].equal(plain["input_ids"][real])
    for some in (without_padding, tokenizer()):
        texts = generate(model, some, PROMPTS, v, 3.0, max_new_tokens=3)
        assert perplexity(model, some, PROMPTS, PROMPTS).equal(
            perplexity(model, tokenizer(), PROMPTS, PROMPTS)
        )
        assert texts == generate(model, tokenizer(), PROMPTS, v, 3.0, max_new_tokens=3)


def test_a_padding_token_that_the_model_does_not_have_is_not_read():
    added = copy.deepcopy(tokenizer())
    added.add_special_tokens({"pad_token": "[NONE]"})
    assert added.pad_token_id == len(tiny_model().get_input_embeddings().weight)
    batch = models.encode(tiny_model(), added, PROMPTS)
    assert log_odds(tiny_model(), added, PROMPTS).equal(
        log_odds(tiny_model(), tokenizer(), PROMPTS)
    )
    assert batch["input_ids"].max() < added.pad_token_id


def test_a_text_without_a_token_is_refused(monkeypatch):
    monkeypatch.setattr(
        type(tokenizer()), "__call__", lambda self, texts, **options: {"input_ids": [[5], []]}
    )
    with pytest.raises(SteeringError, match="The text 'of' has no token in this vocabulary"):
        models.encode(tiny_model(), tokenizer(), ["Words", "of"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"padding_side": "lft"}, "padding_side must be 'left' or 'right', got 'lft'"),
        ({"new_tokens": -1}, "new_tokens must be a whole number, 0 or above, got -1"),
    ],
)
def test_unusable_options_of_encode(change, message):
    with pytest.raises(SteeringError, match=message):
        models.encode(tiny_model(), tokenizer(), PROMPTS, **change)


def test_a_model_without_a_limit_reads_any_length():
    assert models.context_length(tiny_model("bloom")) is None
    models.encode(tiny_model("bloom"), tokenizer(), ["word " * 500])


def test_rows_of_a_batch_are_no_wider_than_the_longest_of_them():
    model, batch = tiny_model(), models.encode(tiny_model(), tokenizer(), PROMPTS)
    for rows in ([0], [2, 0], [1, 2], [0, 1, 2]):
        part = models.rows_of(batch, rows)
        alone = models.encode(model, tokenizer(), [PROMPTS[row] for row in rows])
        assert part.keys() == alone.keys() == batch.keys()
        assert all(part[name].equal(alone[name]) for name in alone)


# -- Which weights these are


def test_a_fingerprint_is_that_of_the_weights_not_of_the_name(tmp_path):
    here, there = saved(new_model(), tmp_path / "here"), saved(new_model(), tmp_path / "there")
    first, second = (load_model(name)[0] for name in (here, there))
    assert models.model_name(first) != models.model_name(second)
    assert fingerprint(first) == fingerprint(second) == fingerprint(new_model())
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(first))


def test_fingerprints_of_other_weights_differ():
    families = set(FAMILIES) - {"mistral"}  # as small as here it is a llama, weight by weight
    others = [tiny_model(family) for family in families] + [new_model(seed=1)]
    assert len({fingerprint(model) for model in others}) == len(others) == len(FAMILIES)


def test_a_fingerprint_sees_every_parameter():
    model = new_model()
    seen = {fingerprint(model)}
    for parameter in model.parameters():
        parameter.add_(0.01)
        seen.add(fingerprint(model))
    assert len(seen) == 1 + len(list(model.parameters()))


def test_a_fingerprint_tells_shapes_apart_whose_entries_are_the_same():
    one, two = (nn.ParameterDict({"w": torch.zeros(shape)}) for shape in ((2, 8), (4, 4)))
    assert fingerprint(one) != fingerprint(two)
    renamed = nn.ParameterDict({"v": torch.zeros(2, 8)})
    assert fingerprint(one) != fingerprint(renamed)


def test_a_fingerprint_survives_loading_in_bfloat16(tmp_path):
    folder = saved(new_model(), tmp_path)
    model, _ = load_model(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert fingerprint(model) == fingerprint(load_model(folder)[0])


def test_a_fingerprint_leaves_the_model_alone_and_needs_no_data():
    model = new_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fingerprint(model)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    fingerprint(new_model().to("meta"))  # as where Accelerate keeps weights on the disk


# -- Torch's threads beside a busy process


@pytest.mark.parametrize(
    ("first", "policy", "warned", "left"),
    [
        ("helpers", None, False, "PASSIVE"),
        ("torch", None, True, "PASSIVE"),
        ("torch", "ACTIVE", False, "ACTIVE"),
    ],
)
def test_torch_comes_after_helpers_unless_the_reader_said_how_its_threads_wait(
    first, policy, warned, left
):
    code = (
        f"import {first}, torch, os; from helpers.models import load_model; "
        "load_model(device='cpu'); print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {} if policy is None else {"OMP_WAIT_POLICY": policy}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [left]
    for words in ("torch was imported before helpers", "Import helpers first", "<string>:1"):
        assert (words in done.stderr) == warned  # at the line of the reader that loads


# -- A model that is not ready to be read


def test_a_model_in_training_mode_is_set_to_evaluation_and_says_so():
    model = new_model()
    expected = log_odds(model, tokenizer(), PROMPTS)
    for part in (model, model.transformer.h[1]):
        part.train()
        with pytest.warns(UserWarning, match="training mode: now it is in model.eval"):
            assert log_odds(model, tokenizer(), PROMPTS).equal(expected)
        assert not any(module.training for module in model.modules())
    model.train()
    with pytest.warns(UserWarning, match="training mode"):
        perplexity(model, tokenizer(), PROMPTS, [" a"] * 3)


def test_a_model_without_weights_is_refused():
    with pytest.raises(SteeringError, match="has no weights in memory"):
        log_odds(new_model().to("meta"), tokenizer(), PROMPTS)


@pytest.mark.parametrize("layer", [True, False])
def test_a_truth_value_is_no_layer(layer):
    with pytest.raises(SteeringError, match=f"Layer {layer} does not exist"):
        models.resolve_layer(tiny_model(), layer)


def test_a_fingerprint_sees_changes_that_leave_most_of_the_weights():
    model, seen = new_model(), set()
    for change in range(4):
        seen.add(fingerprint(model))
        weight = (
            model.transformer.wte.weight if change % 2 else model.transformer.h[1].mlp.c_fc.weight
        )
        weight[:, 1:].normal_(std=0.2)  # the first column stays
    assert len(seen) == 4


def test_a_fingerprint_does_not_depend_on_how_the_weights_lie_in_memory():
    model = new_model()
    before = fingerprint(model)
    weight = model.transformer.wte.weight
    weight.data = weight.data.T.contiguous().T
    assert not weight.is_contiguous() and fingerprint(model) == before
