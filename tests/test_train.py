"""Training a pocket model: the data, the optimiser, and a whole run on a small folder."""

import copy
import gzip
import json
import lzma
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from helpers.activations import typical_norm
from helpers.concepts import SENTIMENT
from helpers.directions import find_vectors
from helpers.models import POCKET, SteeringError, encode, load_model
from helpers.pairs import check_pairs
from helpers.sweeps import sweep_texts
from helpers.training import corpus, measure
from helpers.training import train as training
from helpers.training.optimiser import MasterCopy, Muon, orthogonalise

ROOT = Path(__file__).parent.parent
# Seconds by default, so that the tests stay quick; .ci/run asks for two minutes.
MINUTES = float(os.environ.get("STEERING_TRAIN_MINUTES", 0.1))
SMALL = (
    "--vocab 600 --width 32 --heads 2 --layers 2 --context 32 --batch 8 --device cpu "
    "--dtype float32 --checkpoint-minutes 0.01"
).split()


def make_texts(n, seed):
    choose = random.Random(seed).choice
    words = corpus.promised_words()
    return [
        " ".join(
            f"The {choose(['bed', 'soup', 'film', 'view'])} was {choose(words)}, number {i}."
            for _ in range(choose(range(1, 6)))
        )
        for i in range(n)
    ]


def write_corpus(folder, n=500):
    """Two sources, one of them packed; returns the folder."""
    folder.mkdir()
    for name, opener, seed in (("rooms.jsonl", open, 1), ("soups.jsonl.xz", lzma.open, 2)):
        with opener(folder / name, "wt", encoding="utf-8") as file:
            for text in make_texts(n, seed):
                file.write(json.dumps({"text": text, "label": "pos"}) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts")


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    corpus.prepare(folder, out, 600, 32, exponent=0.6, factors={})
    return out


def command(folder, out, minutes):
    arguments = ["--corpus", str(folder), "--out", str(out), "--minutes", str(minutes), *SMALL]
    return [sys.executable, "-m", "helpers.training.train", *arguments]


def test_killed_run_goes_on_and_finishes(folder, tmp_path):
    out, checkpoint = tmp_path / "model", tmp_path / "model" / "work" / "checkpoint.pt"
    first = subprocess.Popen(command(folder, out, 60), cwd=ROOT, text=True, stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < deadline:
            assert first.poll() is None, first.stdout.read()
            time.sleep(0.05)
    finally:
        first.kill()  # SIGKILL: no chance to tidy up
        first.communicate()
    left = torch.load(checkpoint, weights_only=True)["record"]
    assert left["step"] > 0 and not (out / "config.json").exists()

    minutes = left["seconds"] / 60 + MINUTES
    done = subprocess.run(command(folder, out, minutes), cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert f"going on from step {left['step']}," in done.stdout
    report = json.loads((out / "training.json").read_text())
    assert report["step"] > left["step"] and report["seconds"] >= 60 * minutes
    curve = report["held_out_curve"]
    before = len(left["held_out_curve"])
    assert curve[:before] == left["held_out_curve"]  # one history, not a second one from zero
    assert all(a[0] < b[0] for a, b in zip(curve, curve[1:], strict=False))
    at_first = np.log(600)  # nats of a model that knows nothing
    assert curve[before][1] < curve[0][1] + 0.1 < at_first
    assert report["loss"] < curve[0][1] and set(report["bits_per_character"]) == {"rooms", "soups"}
    assert report["tokens_seen"] == report["step"] * 8 * 32

    model, tokenizer = load_model(out)
    assert type(model) is GPT2LMHeadModel and model.config.n_layer == 2
    assert model.config.tie_word_embeddings and model.config.resid_pdrop == 0
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"
    batch = encode(model, tokenizer, ["The soup was"])
    text = tokenizer.decode(model.generate(**batch, max_new_tokens=8, do_sample=False)[0])
    assert text.startswith("The soup was") and "number" in text


def test_a_sitting_ends_early_and_another_shape_is_refused(prepared, capsys):
    options = ["--out", str(prepared), "--minutes", "10", *SMALL]
    training.main([*options, "--sitting", "0.02"])
    assert "checkpoint saved" in capsys.readouterr().out
    assert not (prepared / "config.json").exists()
    with pytest.raises(SteeringError, match="belongs to another model"):
        training.main([*options, "--width", "64", "--sitting", "0.02"])
    (prepared / "work" / "checkpoint.pt").unlink()


def test_split_into_files_that_stay_small(prepared, tmp_path, monkeypatch):
    for path in ("tokenizer.json", "tokenizer_config.json", "work/tokens.npy.xz"):
        (tmp_path / "work").mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((prepared / path).read_bytes())
    sources = (prepared / "work" / "sources.json").read_text()
    (tmp_path / "work" / "sources.json").write_text(sources)
    monkeypatch.setattr(training, "LARGEST_FILE", "60KB")
    training.main(["--out", str(tmp_path), "--minutes", "0.01", *SMALL, "--width", "64"])
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1 and (tmp_path / "model.safetensors.index.json").exists()
    assert load_model(tmp_path)[0].config.n_embd == 64


def test_no_corpus_is_one_clear_error(tmp_path):
    with pytest.raises(SteeringError, match="give --corpus"):
        training.main(["--out", str(tmp_path)])
    with pytest.raises(SteeringError, match="holds no .jsonl file"):
        list(corpus.read_corpus(tmp_path))
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"words": 3}\n')
    with pytest.raises(SteeringError, match=r"bad.jsonl, line 2 is not"):
        list(corpus.read_corpus(tmp_path))


def test_every_packing_gives_the_same_texts(tmp_path):
    lines = '{"text": "Tea<|endoftext|>pot"}\n{"text": " "}\n{"text": "Käse", "label": "pos"}\n'
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    with lzma.open(tmp_path / "c.jsonl.xz", "wt", encoding="utf-8") as file:
        file.write(lines)
    (tmp_path / "notes.md").write_text("not a part of the corpus")
    got = list(corpus.read_corpus(tmp_path))
    assert [source for source, _ in got] == ["a", "a", "b", "b", "c", "c"]
    assert [record["text"] for _, record in got] == ["Tea pot", "Käse"] * 3  # blank left out
    assert got[1][1]["label"] == "pos"


def test_zstd_is_read_where_the_package_is_there_and_named_where_not(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(SteeringError, match="pip install zstandard"):
        list(corpus.read_corpus(tmp_path))
    monkeypatch.undo()
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(b'{"text": "Tea"}\n')
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    assert list(corpus.read_corpus(tmp_path)) == [("a", {"text": "Tea"})]


def test_held_out_texts_are_apart_and_two_per_cent(prepared, folder):
    tokens, facts = corpus.load_prepared(prepared)
    tokenizer = load_tokenizer(prepared)
    parts = {"train": set(), "held_out": set()}
    for source in facts.values():
        for part, texts in parts.items():
            begin, end = source[part]
            texts |= set(tokenizer.decode(tokens[begin:end].tolist()).split(corpus.END)) - {""}
    everything = {record["text"] for _, record in corpus.read_corpus(folder)}
    assert parts["train"] | parts["held_out"] == everything  # the split loses nothing
    assert parts["held_out"] and not parts["train"] & parts["held_out"]
    assert all(map(corpus.is_held_out, parts["held_out"]))
    assert not any(map(corpus.is_held_out, parts["train"]))
    share = np.mean([corpus.is_held_out(f"text {i}") for i in range(20_000)])
    assert share == pytest.approx(0.02, abs=0.004)


def load_tokenizer(out):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize("place", ["new", "bundled"])
def test_tokenizer_keeps_its_promises(place, prepared):
    tokenizer = load_tokenizer(prepared if place == "new" else POCKET)
    for word in corpus.promised_words():
        assert len(tokenizer(" " + word)["input_ids"]) == 1, word
    assert all(check.match for check in check_pairs(tokenizer, SENTIMENT.pairs))
    assert tokenizer.all_special_tokens == [corpus.END]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    text = " Käse,  naïve\n\tend 123 ☕"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    if place == "new":
        assert len(tokenizer) == 600


def test_words_that_do_not_fit_the_vocabulary_are_named():
    with pytest.raises(SteeringError, match="Not one token: .*wonderful"):
        corpus.train_tokenizer(["Some text that is short."], 270)


def test_filter_drops_what_a_classroom_should_not_meet(tmp_path, monkeypatch):
    assert not corpus.is_suitable("A story of suicide.")
    assert not corpus.is_suitable("He felt SUICIDAL.")  # a stem, in any case
    assert not corpus.is_suitable("Too much nudity for us")
    # Only whole words and beginnings of words count: not the inside of "snaked" or "Essex".
    for text in ("The river snaked on.", "We met in Essex.", "A classic cocktail, analysed."):
        assert corpus.is_suitable(text), text
    write_corpus(tmp_path / "texts", n=150)
    with open(tmp_path / "texts" / "rooms.jsonl", "a", encoding="utf-8") as file:
        file.write('{"text": "A quiet zebra and a suicide."}\n')
    corpus.prepare(tmp_path / "texts", tmp_path / "out", 600, 32, 0.6, {})
    tokens, facts = corpus.load_prepared(tmp_path / "out")
    assert facts["rooms"]["left_out"] == 1 and facts["soups"]["left_out"] == 0
    assert "zebra" not in load_tokenizer(tmp_path / "out").decode(tokens.tolist())


def test_filtered_words_are_hashes_only():
    path = Path(corpus.__file__).with_name("filtered_words.txt")
    for line in path.read_text(encoding="utf-8").splitlines():
        assert not line or line.startswith("#") or (len(line) == 16 and int(line, 16))


def test_shares_lift_small_sources():
    sizes = {"films": 10_000, "hotels": 100}
    got = corpus.shares(sizes, 0.5, {})
    assert got == pytest.approx({"films": 100 / 110, "hotels": 10 / 110})
    assert corpus.shares(sizes, 1, {"films": 0.01})["films"] == pytest.approx(0.5)
    with pytest.raises(SteeringError, match="No source trains"):
        corpus.shares(sizes, 1, {"trains": 2})


def test_source_of_weight_zero_stays_out(folder, tmp_path):
    corpus.prepare(folder, tmp_path, 600, 32, 0.6, {"soups": 0.0})
    assert set(corpus.load_prepared(tmp_path)[1]) == {"rooms"}


def test_windows_start_at_texts_half_of_the_time():
    texts = [[10 * i + 1, 10 * i + 2, 10 * i + 3, 0] for i in range(1, 21)]
    tokens = np.array(sum(texts, []), np.uint16)
    facts = {"a": {"train": [0, 40]}, "b": {"train": [40, 80]}}
    windows = corpus.Windows(tokens, facts, {"a": 0.9, "b": 0.1}, "train", context=5)
    batch = windows.draw(4000, [0, 7])
    assert batch.shape == (4000, 6) and batch.dtype == np.int64
    at_start = batch[1::2]
    assert (at_start[:, 0] % 10 == 1).all() and (at_start[:, 3] == 0).all()
    assert set(at_start[:, 0]) == {text[0] for text in texts}  # the first and the last one too
    assert 0.15 < (batch[::2, 0] == 0).mean() < 0.35  # anywhere: one in four is the END token
    assert (batch[:, 0] > 110).mean() == pytest.approx(0.1, abs=0.03)
    assert (windows.draw(4000, [0, 7]) == batch).all()
    assert (windows.draw(4000, [0, 8]) != batch).any()


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 64), (2, 64, 16)])
def test_orthogonalise_keeps_shapes_and_evens_singular_values(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.max() < 1.3 and (values > 0.6).float().mean() > 0.9  # the tiniest need longer
    # The nearest orthogonal matrix is u @ vh; all of it but the lengths is kept.
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    nearest = u @ vh
    cosine = (result * nearest).sum((1, 2)) / result.norm(dim=(1, 2)) / nearest.norm(dim=(1, 2))
    assert (cosine > 0.95).all()


def test_muon_takes_query_key_and_value_apart():
    torch.manual_seed(0)
    joined, single = torch.randn(16, 48), torch.randn(16, 48)
    groups = [{"params": [joined], "parts": 3}, {"params": [single], "parts": 1}]
    muon = Muon(groups, lr=0.1, weight_decay=0.5, dtype=torch.float32)
    before = {joined: joined.clone(), single: single.clone()}
    for weight in before:
        weight.grad = torch.randn(16, 48)
    joined.grad[:, :16] *= 100  # a part with large gradients does not outweigh the others
    muon.step()
    change = {w: (w - 0.95 * old) / -0.1 for w, old in before.items()}  # decay: 0.1 × 0.5
    for part in change[joined].chunk(3, 1):
        values = torch.linalg.svdvals(part)
        assert values.min() > 0.2 and values.max() < 1.3
    values = torch.linalg.svdvals(change[single]) / 3**0.5  # wide: sqrt(out / in) times as large
    assert values.min() > 0.3 and values.max() < 1.3


def tiny_model(seed=0):
    torch.manual_seed(seed)
    args = training.parse(["--out", "unused", *SMALL])
    return GPT2LMHeadModel._from_config(
        training.new_config(args, 300), attn_implementation="causal"
    )


def test_master_copy_learns_in_float32_and_is_restored():
    ids = torch.arange(33)[None]

    def steps(model, master, n):
        for _ in range(n):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[0].float(), ids[0, 1:])
            loss.backward()
            master.step(1.0)
        return loss.item()

    model = tiny_model().bfloat16()
    master = MasterCopy(model, 0.02, 0.003, 0.0)
    matrices = sum(len(group["params"]) for group in master.optimisers[0].param_groups)
    assert matrices == 2 * 4  # in each block: attention in and out, MLP in and out
    first = steps(model, master, 1)
    later = steps(model, master, 20)
    assert later < first - 0.5
    assert all(m.dtype == torch.float32 for m in master.masters)
    for weight, exact in zip(model.parameters(), master.masters, strict=True):
        assert torch.equal(weight, exact.bfloat16())
    other = tiny_model(seed=1).bfloat16()
    restored = MasterCopy(other, 0.02, 0.003, 0.0)
    restored.load(copy.deepcopy(master.state()))
    assert steps(other, restored, 3) == steps(model, master, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_the_training_is_that_of_the_model(dtype):
    model = tiny_model().to(dtype).eval()
    plain = GPT2LMHeadModel._from_config(model.config, attn_implementation="eager").to(dtype)
    plain.load_state_dict(model.state_dict())
    ids = torch.arange(60).view(2, 30)
    ours, theirs = (m.eval()(input_ids=ids, use_cache=False).logits for m in (model, plain))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_learning_rate_falls_over_the_second_half():
    assert training.learning_rate(0.0, 0) == pytest.approx(0.05)
    assert training.learning_rate(0.3, 1000) == training.learning_rate(0.5, 1000) == 1
    assert training.learning_rate(0.75, 1000) == pytest.approx(0.5)
    assert training.learning_rate(1.01, 1000) == 0


def test_bits_per_character_count_every_token_once():
    model, tokenizer = load_model("pocket")
    text = " ".join(make_texts(60, 3))
    ids = tokenizer(text, verbose=False)["input_ids"]
    short = tokenizer.decode(ids[: model.config.n_positions])
    log_p = model(**encode(model, tokenizer, [short])).logits[0, :-1].log_softmax(-1)
    nats = -log_p.gather(1, torch.tensor(ids[1 : model.config.n_positions])[:, None]).sum()
    n = len(short) - len(tokenizer.decode(ids[:1]))
    expected = nats.item() / np.log(2) / n
    got = training.bits_per_character(model, tokenizer, [short, short], batch_size=1)
    assert got == pytest.approx(expected, rel=1e-4)
    # A text over many windows costs about as much for each character, in one batch or many.
    long = training.bits_per_character(model, tokenizer, [text, short])
    assert long == pytest.approx(
        training.bits_per_character(model, tokenizer, [short, text], batch_size=2), rel=1e-4
    )
    assert long == pytest.approx(expected, rel=0.3)
    with pytest.raises(SteeringError, match="no text of two tokens"):
        training.bits_per_character(model, tokenizer, ["", "a"])


def test_measure_prints_every_table(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "GRID", [0.1, 0.3, 1.0])
    monkeypatch.setattr(measure, "CURVE", [0.2])
    few = {"dev_prompts": SENTIMENT.dev_prompts[:2], "test_prompts": SENTIMENT.test_prompts[:4]}
    monkeypatch.setattr(measure, "SENTIMENT", replace(SENTIMENT, **few))
    picture = tmp_path / "curve.png"
    measure.main(["--corpus", str(folder), "--picture", str(picture)])
    assert picture.stat().st_size > 10_000
    out = capsys.readouterr().out
    for word in ("Speed", "Bits per character", "Reading", "Choice", "Steering", "Samples"):
        assert f"### {word}" in out
    assert "### Training" in out
    assert out.count("**The hotel room was**") == 3
    assert "| imdb |" in out  # from the notes of the bundled model's own training
    assert "| rooms |" in out and "nan" not in out


def test_price_is_the_mean_over_seeds():
    model, tokenizer = load_model("pocket")
    vector = find_vectors(model, tokenizer, SENTIMENT.pairs)[3]
    prompts, forces = SENTIMENT.dev_prompts[:2], measure.both_signs([300.0])
    got = measure.prices(model, tokenizer, prompts, vector, forces, n_seeds=2)
    each = [sweep_texts(model, tokenizer, prompts, vector, forces, seed=seed) for seed in (0, 1)]
    assert got.shape == (1, 2, 2)
    torch.testing.assert_close(got, (each[0].price + each[1].price) / 2)


def test_no_layer_reaches_the_target(monkeypatch, capsys):
    model, tokenizer = load_model("pocket")
    monkeypatch.setattr(measure, "GRID", [0.01, 0.02])
    vectors = find_vectors(model, tokenizer, SENTIMENT.pairs)
    assert measure.choose(model, tokenizer, vectors, typical_norm(model, tokenizer)) is None
    assert capsys.readouterr().out.count("never reached") == len(vectors)


def test_share_for_target_interpolates(monkeypatch):
    monkeypatch.setattr(measure, "GRID", [0.1, 0.2, 0.4])
    assert measure.share_for_target([0.5, 1.5, 2.5]) == pytest.approx(0.3)
    assert measure.share_for_target([4.0, 5.0, 6.0]) == pytest.approx(0.05)
    assert measure.share_for_target([0.5, 1.0, 1.5]) is None


def test_labelled_sentences_are_balanced():
    good = [{"text": f"A very good day, number {i}.", "label": "pos"} for i in range(30)]
    bad = [{"text": f"Dull. What a bad day it was, {i}.", "label": "neg"} for i in range(30)]
    mixed = [{"text": r["text"], "label": "neg" if i % 2 else "pos"} for i, r in enumerate(bad)]
    assert measure.labelled_sentences({"a": good + bad}) == {}
    got = measure.labelled_sentences({"a": good, "b": mixed * 2})
    (name, by_label), *rest = got.items()
    assert not rest and name.startswith("last sentences")
    assert len(by_label["pos"]) == len(by_label["neg"]) == 30
    assert all(sentence.startswith("What a bad day") for sentence in by_label["neg"])
