import dataclasses
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from helpers.activations import residual_stream
from helpers.concepts import SENTIMENT
from helpers.directions import METHODS, SteeringVector, cosines, find_vectors, pca
from helpers.evaluation import log_odds
from helpers.generation import generate
from helpers.models import SteeringError, fingerprint
from helpers.pairs import split
from helpers.statistics import controls
from helpers.steering import ablate, steer
from helpers.sweeps import sweep
from tiny_models import (
    DEPTH,
    WIDTH,
    make_vector,
    new_model,
    no_hook_left,
    tiny_model,
    tokenizer,
)

PAIRS = SENTIMENT.pairs


def same(v, w):
    """All fields equal, the numbers within rounding."""
    torch.testing.assert_close(v.direction, w.direction)
    assert v.raw_norm == pytest.approx(w.raw_norm)
    text = ("layer", "method", "model_name", "n_pairs", "fingerprint")
    return all(getattr(v, field) == getattr(w, field) for field in text)


# -- The vector object


def test_direction_is_a_float32_unit_vector_and_raw_norm_its_length():
    raw = torch.tensor([3.0, 0.0, 4.0], dtype=torch.bfloat16)
    v = SteeringVector.from_raw(raw, layer=1, method="probe", model_name="m", n_pairs=2)
    assert v.direction.dtype == torch.float32 and v.raw_norm == 5
    assert v.direction.tolist() == pytest.approx([0.6, 0, 0.8])
    assert v.raw.tolist() == pytest.approx([3, 0, 4])
    assert "layer 1 of m" in repr(v)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(SteeringVector)])
def test_fields_are_frozen(field):
    v = make_vector()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(v, field, getattr(v, field))


@pytest.mark.parametrize(
    "operation",
    [
        lambda v, w: (-v, -v.raw),
        lambda v, w: (v + w, v.raw + w.raw),
        lambda v, w: (v - w, v.raw - w.raw),
        lambda v, w: (2.5 * v, 2.5 * v.raw),
        lambda v, w: (v * -3, -3 * v.raw),
        lambda v, w: (torch.tensor(2.0) * v, 2 * v.raw),
        lambda v, w: (np.float64(2) * v, 2 * v.raw),
    ],
    ids=["-v", "v+w", "v-w", "a*v", "v*a", "tensor*v", "numpy*v"],
)
def test_operations_are_those_of_vectors_and_return_new_objects(operation):
    v, w = make_vector(seed=1, fingerprint="f"), make_vector(seed=2, fingerprint="f")
    originals = dataclasses.replace(v), dataclasses.replace(w)
    result, raw = operation(v, w)
    torch.testing.assert_close(result.raw, raw)
    assert result.direction.norm().item() == pytest.approx(1, abs=1e-6)
    assert result.raw_norm == pytest.approx(raw.norm().item())
    assert result is not v and same(v, originals[0]) and same(w, originals[1])
    assert (result.layer, result.model_name, result.fingerprint) == (1, "tiny-gpt2", "f")


def test_a_sum_says_where_it_comes_from():
    v, w = make_vector(method="pca", n_pairs=3), make_vector(seed=2, method="probe", n_pairs=4)
    assert ((v + w).method, (v + w).n_pairs) == ("pca + probe", 7)
    assert (v + 2 * v).method == "pca"


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"layer": 2}, "layer 1 of 'tiny-gpt2' against layer 2 of 'tiny-gpt2'"),
        ({}, {"model_name": "x"}, "layer 1 of 'tiny-gpt2' against layer 1 of 'x'"),
        ({"fingerprint": "f"}, {"model_name": "x"}, "against layer 1 of 'x'"),
        ({"fingerprint": "f"}, {"fingerprint": "g"}, "Only vectors of one layer of one model"),
        ({"fingerprint": "f"}, {"fingerprint": "f", "layer": 0}, "against layer 0"),
    ],
)
def test_only_vectors_of_one_layer_of_one_model_are_added(one, other, message):
    v, w = make_vector(**one), make_vector(seed=2, **other)
    for combine in (lambda: v + w, lambda: w - v):
        with pytest.raises(SteeringError, match="Only vectors of one layer of one model"):
            combine()
    with pytest.raises(SteeringError, match=message):
        v + w


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"fingerprint": "f"}, {"fingerprint": "f", "model_name": "x"}),  # the weights decide
        ({"fingerprint": "f"}, {}),  # where one does not know them, the names
    ],
)
def test_vectors_of_the_same_weights_are_added_whatever_their_name(one, other):
    v, w = make_vector(**one), make_vector(seed=2, **other)
    torch.testing.assert_close((v + w).raw, v.raw + w.raw)


def test_another_vector_like_this_has_its_place_and_its_own_provenance():
    v, raw = make_vector(layer=2, fingerprint="f", method="pca"), 3 * make_vector(seed=5).raw
    made = v.like(raw, "by hand", n_pairs=4)
    torch.testing.assert_close(made.raw, raw)
    assert made.raw_norm == pytest.approx(raw.norm().item())
    assert (made.layer, made.model_name, made.fingerprint) == (2, "tiny-gpt2", "f")
    assert (made.method, made.n_pairs) == ("by hand", 4)
    assert (v.like(raw, "drawn").method, v.like(raw, "drawn").n_pairs) == ("drawn", 0)
    with pytest.raises(SteeringError, match="has no direction"):
        v.like(torch.zeros(32), "nothing")


@pytest.mark.parametrize("make", [lambda v: v - v, lambda v: 0 * v, lambda v: float("nan") * v])
def test_a_vector_without_direction_is_refused(make):
    with pytest.raises(SteeringError, match="has no direction"):
        make(make_vector())


def test_vectors_are_divided_and_summed_like_numbers():
    v, w = make_vector(), make_vector(seed=2)
    torch.testing.assert_close((v / 2).raw, v.raw / 2)
    torch.testing.assert_close((v / torch.tensor(-4.0)).raw, v.raw / -4)
    torch.testing.assert_close(sum([v, w, v]).raw, 2 * v.raw + w.raw)
    assert sum([v]) is v


@pytest.mark.parametrize("odd", ["a", None, True, float("nan"), float("inf"), [1, 2], 1j, 0])
def test_what_no_vector_can_be_multiplied_with_is_named(odd):
    v = make_vector()
    for make in (lambda: v * odd, lambda: odd * v, lambda: v / odd):
        with pytest.raises(SteeringError, match="factor must be a number but 0 .*, got"):
            make()


@pytest.mark.parametrize("odd", ["a", None, 1, 0, [1.0], torch.ones(32)])
def test_only_vectors_are_added_to_vectors(odd):
    v = make_vector()
    for make in (lambda: v + odd, lambda: v - odd):
        with pytest.raises(SteeringError, match="other must be a SteeringVector .*, got"):
            make()


@pytest.mark.parametrize("kind", [np.array, list, tuple, torch.tensor])
def test_a_vector_is_made_from_numbers_of_any_kind(kind):
    v = SteeringVector.from_raw(kind([3, 4]), layer=1, method="m", model_name="n", n_pairs=0)
    torch.testing.assert_close(v.direction, torch.tensor([0.6, 0.8]))
    assert v.raw_norm == pytest.approx(5) and v.direction.dtype == torch.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f8"])
def test_a_direction_may_be_an_array_of_floats(dtype):
    v = dataclasses.replace(make_vector(), direction=np.array([0.6, 0.8, 0.0], dtype)[::-1])
    torch.testing.assert_close(v.direction, torch.tensor([0.0, 0.8, 0.6]), atol=1e-3, rtol=0)
    assert v.direction.dtype == torch.float32


@pytest.mark.parametrize(
    "direction", [torch.ones(4), torch.zeros(4), torch.full([4], torch.nan), torch.eye(2)]
)
def test_a_direction_must_be_one_unit_vector(direction):
    with pytest.raises(SteeringError, match="one vector of unit norm"):
        dataclasses.replace(make_vector(), direction=direction)


def test_random_control_has_the_same_length_and_its_own_direction():
    v = make_vector(fingerprint="f")
    one, again, other = v.random_like(1), v.random_like(1), v.random_like(2)
    assert one.direction.equal(again.direction) and not one.direction.equal(other.direction)
    assert one.direction.norm().item() == pytest.approx(1, abs=1e-6)
    assert one.raw_norm == pytest.approx(v.raw_norm)
    assert (one.layer, one.model_name, one.fingerprint) == (v.layer, v.model_name, "f")
    assert one.method == "random, seed 1" and one.n_pairs == 0
    before = torch.get_rng_state()
    v.random_like(1)
    assert torch.get_rng_state().equal(before)


# -- Files


def test_save_and_load_keep_every_field(tmp_path):
    v = make_vector(method="pca + probe", fingerprint=fingerprint(tiny_model()))
    v.save(tmp_path / "vector.safetensors")
    loaded = SteeringVector.load(tmp_path / "vector.safetensors", tiny_model())
    assert same(loaded, v) and loaded.direction.equal(v.direction) and loaded.raw_norm == v.raw_norm


def test_a_vector_found_on_a_model_fits_the_same_weights_under_another_name(tmp_path):
    renamed = new_model()
    renamed.config._name_or_path = "elsewhere"
    v = find_vectors(tiny_model(), tokenizer(), PAIRS)[1]
    assert v.fingerprint == fingerprint(tiny_model())
    v.save(tmp_path / "v")
    assert same(SteeringVector.load(tmp_path / "v", renamed), v)


def test_a_vector_is_refused_on_other_weights_of_the_same_name_and_width(tmp_path):
    find_vectors(tiny_model(), tokenizer(), PAIRS)[1].save(tmp_path / "v")
    other = new_model(seed=1)
    assert other.config._name_or_path == "tiny-gpt2"
    with pytest.raises(SteeringError, match="weights are others: find the direction again"):
        SteeringVector.load(tmp_path / "v", other)


@pytest.mark.parametrize("kept", [True, False])
def test_a_file_without_a_fingerprint_is_compared_by_name(kept, tmp_path):
    fields = {"layer": "1", "raw_norm": "2.0", "method": "m", "n_pairs": "8"}
    fields |= {"model_name": "tiny-gpt2"} | ({"fingerprint": ""} if kept else {})
    save_file({"direction": make_vector().direction}, tmp_path / "v", fields)
    # Of other weights, but nothing in the file can tell.
    loaded = SteeringVector.load(tmp_path / "v", new_model(seed=1))
    assert (loaded.fingerprint, loaded.raw_norm) == ("", 2)
    renamed = new_model()
    renamed.config._name_or_path = "elsewhere"
    with pytest.raises(SteeringError, match=r"'tiny-gpt2' \(width 32\).*'elsewhere' \(width 32\)"):
        SteeringVector.load(tmp_path / "v", renamed)


def test_a_vector_of_another_model_is_refused_with_both_names(tmp_path):
    make_vector().save(tmp_path / "v")
    with pytest.raises(SteeringError, match=r"'tiny-gpt2' \(width 32\).*'tiny-llama' \(width 32\)"):
        SteeringVector.load(tmp_path / "v", tiny_model("llama"))
    make_vector(width=48).save(tmp_path / "wide")
    with pytest.raises(SteeringError, match=r"'tiny-gpt2' \(width 48\).*'tiny-gpt2' \(width 32\)"):
        SteeringVector.load(tmp_path / "wide", tiny_model())


def damaged_file(kind, folder):
    path, direction = folder / f"{kind}.safetensors", {"direction": make_vector().direction}
    fields = {"layer": "1", "raw_norm": "2.0", "method": "m", "model_name": "n", "n_pairs": "8"}
    match kind:
        case "garbage":
            path.write_bytes(b"not safetensors at all")
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.mkdir()
        case "no metadata":
            save_file(direction, path)
        case "a field missing":
            save_file(direction, path, {name: fields[name] for name in ("layer", "method")})
        case "no number":
            save_file(direction, path, {**fields, "layer": "first"})
        case "no direction":
            save_file({"other": torch.ones(2)}, path, fields)
        case "not unit":
            save_file({"direction": torch.ones(2)}, path, fields)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "garbage",
        "empty",
        "folder",
        "no metadata",
        "a field missing",
        "no number",
        "no direction",
        "not unit",
    ],
)
def test_unreadable_files(kind, tmp_path):
    path = damaged_file(kind, tmp_path)
    with pytest.raises(SteeringError, match=rf"{path.name} is not a readable steering vector"):
        SteeringVector.load(path, tiny_model())


# -- Methods


def planted(n_pairs=40, width=64, seed=0):
    """Activations [pair, width] of two classes that differ along a known unit direction."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(width, generator=rng), dim=0)
    subjects = torch.randn(n_pairs, width, generator=rng)  # what the two prompts of a pair share
    noise = 0.3 * torch.randn(2, n_pairs, width, generator=rng)
    return subjects + 2 * truth + noise[0], subjects - 2 * truth + noise[1], truth


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", [1, -1])
def test_mistake_03_every_method_finds_the_planted_direction(method, sign):
    positive, negative, truth = planted()
    if sign < 0:
        positive, negative = negative, positive
    found = METHODS[method](positive, negative)
    cosine = torch.cosine_similarity(found, sign * truth, dim=0)
    assert cosine > (0.7 if method == "probe" else 0.98)
    # All have the length of the mean difference along them, so that they can be compared.
    assert found.norm() == pytest.approx(4 * cosine.item(), rel=0.15)


def test_mistake_03_centred_pca_of_differences_would_lose_it():
    positive, negative, truth = planted()
    differences = positive - negative
    centred = torch.from_numpy(PCA(1).fit(differences.numpy()).components_[0])
    assert abs(centred @ truth) < 0.3
    assert torch.cosine_similarity(pca(positive, negative), truth, dim=0) > 0.98


def test_pca_is_the_first_uncentred_component_and_repeats_itself():
    rng = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 16, 768, generator=rng)
    exact = torch.linalg.svd(positive - negative).Vh[0]
    first, second = (pca(positive, negative) for _ in range(2))
    assert first.equal(second)
    assert abs(torch.cosine_similarity(first, exact, dim=0)) > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_methods_work_on_a_single_pair(method):
    v = find_vectors(tiny_model(), tokenizer(), [("Love", "Hate")], method)[1]
    assert v.n_pairs == 1 and v.direction.isfinite().all()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama"])
@pytest.mark.parametrize("position", [-1, "mean"])
def test_find_vectors_gives_one_for_each_layer(family, position):
    model = tiny_model(family)
    vectors = find_vectors(model, tokenizer(), PAIRS, position=position)
    assert [v.layer for v in vectors] == list(range(DEPTH[family]))
    positive, negative = split(PAIRS)
    streams = [residual_stream(model, tokenizer(), side, position) for side in (positive, negative)]
    assert {v.fingerprint for v in vectors} == {fingerprint(model)}
    for v in vectors:
        torch.testing.assert_close(v.raw, (streams[0] - streams[1])[v.layer].mean(0))
        assert (v.model_name, v.n_pairs) == (f"tiny-{family}", 8)
        assert v.direction.shape == (WIDTH,)


def test_swapped_pairs_give_the_opposite_direction():
    swapped = [(negative, positive) for positive, negative in PAIRS]
    for method in METHODS:
        v = find_vectors(tiny_model(), tokenizer(), PAIRS, method)[1]
        w = find_vectors(tiny_model(), tokenizer(), swapped, method)[1]
        torch.testing.assert_close(v.raw, -w.raw, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("pairs", "method", "message"),
    [
        ([], "pca", "list of pairs is empty"),
        ([("a", "a")], "pca", "no contrast"),
        (PAIRS, "svm", "Unknown method 'svm': choose one of mean_difference, pca, probe"),
    ],
)
def test_unusable_pairs_and_methods(pairs, method, message):
    with pytest.raises(SteeringError, match=message):
        find_vectors(tiny_model(), tokenizer(), pairs, method)


def test_cosines_of_vectors_and_of_rows():
    v, w = make_vector(seed=1), make_vector(seed=2)
    expected = (v.direction @ w.direction).item()
    table = cosines([v, w, -v])
    assert table.shape == (3, 3)
    assert table[0].tolist() == pytest.approx([1, expected, -1], abs=1e-6)
    rows = torch.stack([5 * v.raw, w.raw])
    assert cosines(rows, [w]).flatten().tolist() == pytest.approx([expected, 1], abs=1e-6)


# -- Which weights a vector belongs to


def uses(model, vector):
    """Every public way to push with a vector."""
    texts = ["The soup was", "We liked"]
    return {
        "steer": lambda: steer(model, vector, 1.0).__enter__(),
        "ablate": lambda: ablate(model, vector).__enter__(),
        "generate": lambda: generate(model, tokenizer(), texts, vector, 1.0, max_new_tokens=2),
        "log_odds": lambda: log_odds(model, tokenizer(), texts, vector, 1.0),
        "sweep": lambda: sweep(model, tokenizer(), texts, [vector], [1.0]),
        "controls": lambda: controls(model, tokenizer(), vector),
        "on": lambda: vector.on(model),
    }


def nameless(seed=0):
    model = new_model(seed=seed)
    model.config._name_or_path = ""
    return model


@pytest.mark.parametrize("make", [new_model, nameless])
@pytest.mark.parametrize("use", uses(None, None))
def test_a_vector_of_other_weights_of_the_same_width_is_refused(make, use):
    vector, same_again, other = find_vectors(make(), tokenizer(), PAIRS)[1], make(), make(seed=1)
    uses(same_again, vector)[use]()
    with (
        no_hook_left(other),
        pytest.raises(SteeringError, match="are others.*other_weights"),
    ):
        uses(other, vector)[use]()
    uses(other, vector.on(other, other_weights=True))[use]()


def test_vectors_of_two_nameless_models_are_not_added():
    v, w = (find_vectors(nameless(seed), tokenizer(), PAIRS)[1] for seed in (0, 1))
    with pytest.raises(SteeringError, match="Only vectors of one layer of one model"):
        v + w
    moved = w.on(nameless(), other_weights=True)
    torch.testing.assert_close((v + moved).raw, v.raw + w.raw)


def test_a_file_for_other_weights_loads_only_if_that_is_meant(tmp_path):
    vector, other = find_vectors(new_model(), tokenizer(), PAIRS)[1], new_model(seed=1)
    vector.save(tmp_path / "v")
    with pytest.raises(SteeringError, match="weights are others"):
        SteeringVector.load(tmp_path / "v", other)
    moved = SteeringVector.load(tmp_path / "v", other, other_weights=True)
    assert moved.fingerprint == fingerprint(other) and moved.direction.equal(vector.direction)
    with pytest.raises(SteeringError, match="width 48"):
        replace(vector, direction=make_vector(width=48).direction).on(other, other_weights=True)
    with pytest.raises(SteeringError, match="Layer 9 does not exist"):
        replace(vector, layer=9).on(other, other_weights=True)


def test_a_compiled_model_has_the_fingerprint_of_the_model():
    model = new_model()
    assert fingerprint(torch.compile(model, backend="eager")) == fingerprint(model)


@pytest.mark.parametrize("place", ["direction", "layer", "raw_norm", "fingerprint", "method"])
def test_a_file_that_was_changed_is_refused(place, tmp_path):
    vector = find_vectors(tiny_model(), tokenizer(), PAIRS)[1]
    vector.save(tmp_path / "v")
    with safe_open(tmp_path / "v", "pt") as file:
        fields, direction = file.metadata(), file.get_tensor("direction")
    if place == "direction":
        direction.view(torch.int32)[3] ^= 1  # one bit, the least of them
    else:
        fields[place] = {"layer": "2", "raw_norm": "3.0"}.get(place, fields[place] + "x")
    save_file({"direction": direction}, tmp_path / "v", fields)
    with pytest.raises(SteeringError, match="changed after it was saved"):
        SteeringVector.load(tmp_path / "v", tiny_model())


@pytest.mark.parametrize(
    ("field", "odd"),
    [("layer", "99"), ("layer", "-1"), ("raw_norm", "nan"), ("raw_norm", "-5"), ("n_pairs", "-5")],
)
def test_an_old_file_loads_with_a_warning_unless_its_fields_cannot_be(field, odd, tmp_path):
    fields = {"layer": "1", "raw_norm": "2.0", "method": "m", "n_pairs": "8"}
    fields |= {"model_name": "tiny-gpt2"}
    save_file({"direction": make_vector().direction}, tmp_path / "v", fields)
    with pytest.warns(UserWarning, match="older than checksums.*Save it anew") as warned:
        SteeringVector.load(tmp_path / "v", tiny_model())
    assert len(warned) == 1
    save_file({"direction": make_vector().direction}, tmp_path / "v", fields | {field: odd})
    with warnings.catch_warnings(), pytest.raises(SteeringError):
        warnings.simplefilter("ignore")
        SteeringVector.load(tmp_path / "v", tiny_model())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_a_file_with_numbers_of_another_kind_is_refused(dtype, tmp_path):
    fields = {"layer": "1", "raw_norm": "2.0", "method": "m", "n_pairs": "8"}
    one = torch.zeros(32, dtype=dtype)
    one[0] = 1
    save_file({"direction": one}, tmp_path / "v", fields | {"model_name": "tiny-gpt2"})
    with pytest.raises(SteeringError, match="not a readable steering vector"):
        SteeringVector.load(tmp_path / "v", tiny_model())


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(SteeringError, match="could not be saved as .*nowhere"):
        make_vector().save(tmp_path / "nowhere" / "v")
