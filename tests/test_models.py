import copy
import os
import re
import shutil
import socket
import subprocess
import sys

import huggingface_hub.constants
import pytest
import torch
from torch import nn

from helpers import models
from helpers.evaluation import log_odds, perplexity
from helpers.generation import generate
from helpers.models import SteeringError, fingerprint, load_model
from tiny_models import (
    DEPTH,
    FAMILIES,
    PROMPTS,
    WIDTH,
    make_vector,
    new_model,
    tiny_model,
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


def test_damaged_weights_give_the_same_error(llama_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(SteeringError, match="could be loaded as.*'pocket'"):
        load_model(str(tmp_path))


def test_a_folder_without_a_model_gives_the_same_error(tmp_path):
    with pytest.raises(SteeringError, match="could be loaded as.*'pocket'"):
        load_model(str(tmp_path))


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


def saved(model, folder):
    """A model as a user would save it, with the bundled tokenizer beside it."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


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
