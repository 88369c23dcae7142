import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from helpers.activations import residual_stream
from helpers.concepts import SENTIMENT
from helpers.directions import cosines, find_vectors, mean_difference
from helpers.models import SteeringError, fingerprint
from helpers.pairs import split
from helpers.statistics import Estimate, auc_with_interval, controls, mean_with_interval
from tiny_models import make_vector, tiny_model, tokenizer

# -- Intervals


def test_interval_holds_the_mean_and_repeats_itself():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)) + 1
    first, again, other = (mean_with_interval(values, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.mean == pytest.approx(values.mean().item())
    assert first.low < first.mean < first.high
    # Close to the textbook interval of a mean.
    half = 1.96 * values.std().item() / math.sqrt(len(values))
    assert (first.high - first.low) / 2 == pytest.approx(half, rel=0.1)
    wider = mean_with_interval(values, confidence=0.99)
    assert wider.low < first.low and first.high < wider.high
    assert str(Estimate(1.234, -0.5, 3)) == "+1.23 [-0.50, +3.00]"
    assert str(Estimate(-0.004, -1.0, -0.0)) == "+0.00 [-1.00, +0.00]"


def test_interval_of_equal_values_is_a_point():
    assert mean_with_interval([2.0, 2.0, 2.0]) == (2, 2, 2)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_no_interval_over_fewer_than_two_prompts(values):
    with pytest.raises(SteeringError, match=rf"interval over {len(values)} prompt\(s\) does not"):
        mean_with_interval(values)


# -- Area under the ROC curve


def scores_of(n, shift, seed, ties=False):
    scores = torch.randn(n, generator=torch.Generator().manual_seed(seed)) + shift
    return scores.round() if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "m", "shift"), [(20, 20, 0.8), (7, 31, 0.0), (15, 6, -0.5)])
def test_auc_equals_that_of_scikit_learn(n, m, shift, ties):
    positive, negative = scores_of(n, shift, 0, ties), scores_of(m, 0, 1, ties)
    found = auc_with_interval(positive, negative)
    expected = roc_auc_score([1] * n + [0] * m, torch.cat([positive, negative]))
    assert found.mean == pytest.approx(expected)
    assert 0 <= found.low < found.mean < found.high <= 1
    turned = auc_with_interval(-positive, -negative)
    assert turned == pytest.approx((1 - found.mean, 1 - found.high, 1 - found.low))
    wider = auc_with_interval(positive, negative, confidence=0.99)
    assert wider.low <= found.low and found.high <= wider.high and wider != found


def test_auc_interval_repeats_itself_and_equals_resampling_by_hand():
    positive, negative = (scores_of(25, shift, seed).numpy() for shift, seed in ((1.0, 2), (0, 3)))
    first, again, other = (auc_with_interval(positive, negative, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    random = np.random.default_rng(5)
    above, below = (random.choice(side, (2000, 25)) for side in (positive, negative))
    resampled = (above[:, :, None] > below[:, None]).mean((1, 2))
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert (first.low, first.high) == pytest.approx((low, high), abs=0.02)


def test_auc_of_classes_that_do_not_overlap():
    assert auc_with_interval([2.0, 3.0, 4.0], [-1.0, 0.0, 1.0]) == (1, 1, 1)
    assert auc_with_interval([0.0, 1.0], [2.0, 3.0]) == (0, 0, 0)
    assert auc_with_interval([1.0, 1.0], [1.0, 1.0, 1.0]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("positive", "negative"), [([1.0], [0.0, 2.0]), ([1.0, 2.0], []), ([], [])]
)
def test_no_auc_interval_over_fewer_than_two_texts(positive, negative):
    with pytest.raises(SteeringError, match="two texts of each class"):
        auc_with_interval(positive, negative)


# -- What chance would have given


def vector_of(concept=SENTIMENT, layer=1):
    return find_vectors(tiny_model(), tokenizer(), concept.pairs)[layer]


def rivals(vector=None, concept=SENTIMENT, **options):
    vector = vector_of(concept) if vector is None else vector
    return controls(tiny_model(), tokenizer(), vector, concept, **options)


def of_pairs(n):
    """The concept with other and fewer pairs, or with more."""
    return replace(SENTIMENT, pairs=(SENTIMENT.more_pairs + SENTIMENT.pairs)[:n])


def turned_by_hand(concept, layer):
    """The mean difference after half of the pairs were turned round, in every way: {way: raw}."""
    sides = [
        residual_stream(tiny_model(), tokenizer(), side)[layer] for side in split(concept.pairs)
    ]
    differences = {}
    for way in map(list, combinations(range(len(concept.pairs)), len(concept.pairs) // 2)):
        first, second = sides[0].clone(), sides[1].clone()
        first[way], second[way] = sides[1][way], sides[0][way]
        differences[tuple(way)] = mean_difference(first, second)
    return differences


def test_every_rival_has_the_place_of_the_vector_and_says_what_it_is():
    v = vector_of()
    found = rivals(v)
    assert list(found) == ["random", "shuffled", "orthogonal"]
    assert [len(vectors) for vectors in found.values()] == [20, 70, 5]
    for vectors in found.values():
        for rival in vectors:
            assert rival.direction.norm().item() == pytest.approx(1, abs=1e-5)
            assert (rival.layer, rival.model_name) == (1, "tiny-gpt2")
            assert rival.fingerprint == fingerprint(tiny_model())
            assert rival + v  # they belong together
    assert {(x.method, x.n_pairs) for x in found["shuffled"]} == {("shuffled labels", 8)}
    assert {(x.method, x.n_pairs) for x in found["orthogonal"]} == {("orthogonal", 8)}
    for seed, rival in enumerate(found["random"]):
        assert rival.direction.equal(v.random_like(seed).direction)
        assert rival.method == f"random, seed {seed}"
    for rival in found["random"] + found["orthogonal"]:
        assert rival.raw_norm == pytest.approx(v.raw_norm)


@pytest.mark.parametrize("n_pairs", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("layer", [0, 2])
def test_shuffled_labels_are_every_way_to_turn_half_of_the_pairs_round(n_pairs, layer):
    concept = of_pairs(n_pairs)
    found = rivals(vector_of(concept, layer), concept)["shuffled"]
    expected = turned_by_hand(concept, layer)
    assert len(found) == len(expected) == math.comb(n_pairs, n_pairs // 2)
    raws = torch.stack([rival.raw for rival in found])
    torch.testing.assert_close(raws, torch.stack(list(expected.values())), atol=1e-4, rtol=0)
    if n_pairs % 2 == 0:  # then they favour neither side
        assert raws.sum(0).norm() < 1e-3 * raws.norm(dim=1).sum()


@pytest.mark.parametrize(("n_pairs", "most"), [(5, 4), (8, 69), (8, 3), (11, 70), (16, 70)])
def test_of_more_ways_some_are_drawn_each_once(n_pairs, most):
    concept = of_pairs(n_pairs)
    v = vector_of(concept)
    first, again, other = (
        rivals(v, concept, n_shuffled=most, seed=seed)["shuffled"] for seed in (0, 0, 1)
    )
    assert len(first) == most
    assert [x.raw.tolist() for x in first] == [x.raw.tolist() for x in again]
    if most < 69:  # of all but one, another seed may leave out the same
        assert [x.raw.tolist() for x in first] != [x.raw.tolist() for x in other]
    assert cosines(first).triu(1).max() < 0.9999  # none twice
    sides = [residual_stream(tiny_model(), tokenizer(), side)[1] for side in split(concept.pairs)]
    for rival in first:  # as many turned round as for every other
        signs = torch.linalg.lstsq((sides[0] - sides[1]).T, n_pairs * rival.raw).solution
        torch.testing.assert_close(signs, signs.sign(), atol=1e-2, rtol=0)
        assert (signs < 0).sum() == n_pairs // 2


@pytest.mark.parametrize("n_pairs", [2, 3, 8])
def test_orthogonal_directions_are_those_of_most_variance_beside_the_vector(n_pairs):
    concept = of_pairs(n_pairs)
    v = vector_of(concept)
    found = rivals(v, concept, n_orthogonal=4)["orthogonal"]
    stream = residual_stream(tiny_model(), tokenizer(), concept.pair_prompts)[1]
    # 2n prompts span 2n - 1 directions, one of which the vector takes.
    assert len(found) == min(4, 2 * n_pairs - 2)
    assert cosines(found, [v]).abs().max() < 1e-4
    torch.testing.assert_close(cosines(found), torch.eye(len(found)), atol=1e-4, rtol=0)
    across = stream - (stream @ v.direction)[:, None] * v.direction
    expected = torch.from_numpy(PCA(len(found)).fit(across.numpy()).components_)
    cosine = cosines(found, expected).diagonal().abs()
    torch.testing.assert_close(cosine, torch.ones(len(found)), atol=1e-3, rtol=0)
    spread = (stream @ torch.stack([rival.direction for rival in found]).T).std(0)
    assert spread.tolist() == sorted(spread.tolist(), reverse=True) and spread[-1] > 0.01


def test_rivals_are_those_of_the_concept_that_is_given():
    one, other = of_pairs(4), replace(SENTIMENT, pairs=SENTIMENT.varied_pairs[:4])
    v = vector_of(one)
    for kind in ("shuffled", "orthogonal"):
        first, second = (rivals(v, concept)[kind][0] for concept in (one, other))
        assert cosines([first], [second]).abs().item() < 0.99


def test_a_vector_that_counts_its_layer_from_the_end_has_the_same_rivals():
    v = vector_of(layer=2)
    from_the_end = replace(v, layer=-1)
    for kind, found in rivals(v).items():
        for one, other in zip(found, rivals(from_the_end)[kind], strict=True):
            torch.testing.assert_close(one.direction, other.direction)


def test_as_many_rivals_as_asked_for():
    some = rivals(n_random=2, n_shuffled=1, n_orthogonal=1)
    assert [len(vectors) for vectors in some.values()] == [2, 1, 1]
    none = rivals(n_random=0, n_shuffled=0, n_orthogonal=0)
    assert none == {"random": [], "shuffled": [], "orthogonal": []}


def test_rivals_repeat_themselves_and_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    first, again, other = (rivals(seed=seed)["random"] for seed in (5, 5, 9))
    assert torch.get_rng_state().equal(before)
    for one, two in zip(first, again, strict=True):
        assert one.direction.equal(two.direction)
    assert not first[0].direction.equal(other[0].direction)


@pytest.mark.parametrize(
    "vector", [make_vector(width=48), make_vector(layer=3)], ids=["width", "layer"]
)
def test_a_vector_that_cannot_belong_to_the_model_is_refused(vector):
    with pytest.raises(SteeringError):
        rivals(vector)
