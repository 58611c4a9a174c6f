"""Metrics of two sets of features, each beside a direct form of its definition."""

import itertools
import math

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.features import frechet_estimates, generative_metrics, manifolds
from inception_jax.features.generative_metrics import MeasuredSet
from inception_jax.features.maximum_mean_discrepancy import kernel_distance, squared_mmd
from inception_jax.features.prediction_divergence import inception_score
from inception_jax.features.statistics import frechet_distance


def two_sets(n=60, m=45, features=6, seed=0):
    random = np.random.RandomState(seed)
    mix = random.standard_normal((features, features))
    return random.standard_normal((n, features)) @ mix, random.standard_normal((m, features)) @ mix * 1.3 + 0.4


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks smaller than the sets, so that there are several."""
    monkeypatch.setattr("inception_jax.features.feature_rows.BLOCK", 7)
    monkeypatch.setattr(manifolds, "_COLUMNS", 11)


@pytest.mark.parametrize("images", [2, 5, 12])
def test_few_images_beside_statistics(images, monkeypatch):
    """The distance of few images is that of their covariance, without its eigenvalues."""
    real, fake = two_sets(200, images, features=12)
    moments = [frechet_estimates.moments_of(rows) for rows in (real, fake)]
    (mean, sigma), (mu, cov) = ((one.mean, one.covariance()) for one in moments)
    # The roots of the eigenvalues of the product: those of rounding are 1e-8, so the direct form is not more exact.
    expected = frechet_distance(mean, sigma, mu, cov)
    sets = [MeasuredSet("real", 200, {}, {"pool": (mean, sigma)}), MeasuredSet("fake", images, {"pool": fake}, {})]
    monkeypatch.setattr(generative_metrics, "frechet_distance", lambda *statistics: 1 / 0)
    for pair in (sets, sets[::-1]):
        assert generative_metrics._frechet(*pair, "pool", "fid") == pytest.approx(expected, rel=1e-7)
    singular = np.linalg.svd(
        (fake - mu) / np.sqrt(images - 1) @ np.linalg.cholesky(sigma), compute_uv=False
    )  # no root of a rounded eigenvalue
    exact = (mean - mu) @ (mean - mu) + np.trace(sigma + cov) - 2 * singular.sum()
    assert generative_metrics._frechet(*sets, "pool", "fid") == pytest.approx(exact, rel=1e-12)
    with pytest.raises(UserError, match="12 features of the real images and 11 of the fake ones"):
        generative_metrics._frechet(sets[0], MeasuredSet("fake", images, {"pool": fake[:, 1:]}, {}), "pool", "fid")


def test_unbiased_mmd_is_the_sum_over_pairs(small_blocks):
    x, y = two_sets(13, 9)

    def kernel(a, b):
        return (float(a @ b) / 6 + 1) ** 3

    within = [np.mean([kernel(a, b) for a, b in itertools.permutations(rows, 2)]) for rows in (x, y)]
    direct = sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert squared_mmd(x, y) == pytest.approx(direct, rel=1e-12)


def test_kid_is_zero_in_expectation_for_one_distribution_and_its_subsets_follow_the_seed():
    random = np.random.RandomState(1)
    real, fake = random.standard_normal((2, 200, 4))
    found = kernel_distance(real, fake, subsets=50, subset_size=40)
    assert found.values.min() < 0 < found.values.max() and abs(found.mean) < 0.05
    again = kernel_distance(real.astype(np.float32), fake, subsets=50, subset_size=40)
    assert again.mean == pytest.approx(found.mean, rel=1e-4)
    assert kernel_distance(real, fake, subsets=50, subset_size=40, seed=1).mean != found.mean
    # A subset would be the whole of both sets: all images once, and no deviation. Nor has one subset any.
    whole = kernel_distance(real, fake, subsets=2, subset_size=200)
    assert whole.values == [whole.mean] == [squared_mmd(real, fake)] and whole.std is None
    assert kernel_distance(real, fake, subsets=1, subset_size=40).std is None and found.std > 0


@pytest.mark.parametrize("small", [0, 1])
def test_kid_of_a_small_set_takes_as_many_images_of_a_large_one(small):
    """As clean-fid: subsets of the size of the smaller set, whose images are in each; in whatever order."""
    large, few = np.random.RandomState(1).standard_normal((400, 4)), np.random.RandomState(2).standard_normal((30, 4))
    sets = [large, large]
    sets[small] = few
    found = kernel_distance(*sets, subsets=20, subset_size=30)
    random, values = np.random.RandomState(2020), []
    for _ in range(20):
        fake, real = (rows[random.choice(len(rows), 30, replace=False)] for rows in (sets[1], sets[0]))
        values.append(squared_mmd(real, fake))
    assert found.values == pytest.approx(values, rel=1e-9) and found.std == pytest.approx(np.std(values))
    assert found.subset_size == 30 and len({*found.values}) == 20


def test_inception_score_by_its_definition(monkeypatch):
    monkeypatch.setattr("inception_jax.features.feature_rows.BLOCK", 7)
    logits = np.random.RandomState(0).standard_normal((50, 5)) * 3
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for splits, seed in ((1, None), (4, None), (3, 2020)):
        order = np.arange(50) if seed is None else np.random.RandomState(seed).permutation(50)
        direct = []
        for k in range(splits):
            part = p[order[k * 50 // splits : (k + 1) * 50 // splits]]
            direct.append(np.exp(np.mean([(row * np.log(row / part.mean(0))).sum() for row in part])))
        found = inception_score(logits, splits=splits, seed=seed)
        assert (found.mean, found.std) == pytest.approx((np.mean(direct), np.std(direct)), rel=1e-12)
    assert inception_score(np.eye(5) * 1e4, splits=1).mean == pytest.approx(5)
    assert inception_score(np.ones((8, 5)), splits=2).mean == pytest.approx(1)


def test_neighbor_metrics_by_their_definitions(small_blocks):
    real, fake = two_sets()

    def distances(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1)

    for k in (1, 3, 5):
        radii = [np.sort(distances(rows, rows), axis=1)[:, k] for rows in (real, fake)]
        np.testing.assert_allclose(manifolds.squared_radii(real, k), radii[0] ** 2, rtol=1e-10)
        between = distances(real, fake)
        precision = np.mean([any(between[:, j] <= radii[0]) for j in range(len(fake))])
        recall = np.mean([any(between[i] <= radii[1]) for i in range(len(real))])
        found = manifolds.precision_recall(real, fake, neighbors=k)
        assert (found.precision, found.recall) == (precision, recall)
        density = np.mean([np.sum(between[:, j] < radii[0]) / k for j in range(len(fake))])
        coverage = np.mean([between[i].min() < radii[0][i] for i in range(len(real))])
        other = manifolds.density_coverage(real, fake, neighbors=k)
        assert (other.density, other.coverage) == pytest.approx((density, coverage), rel=1e-12)
        assert 0 < precision < 1 and 0 < recall and 0 < coverage < 1


def test_neighbors_do_not_depend_on_the_offset_of_the_features(small_blocks):
    """Squared norms of 1e15, squared distances of 1: their products alone would hold three digits of these."""
    sets = two_sets()
    near, far = (
        [(manifolds.precision_recall(*pair, neighbors=2), manifolds.density_coverage(*pair, neighbors=2))]
        for pair in (sets, [rows + 2.0**24 for rows in sets])
    )
    assert near == far and 0 < near[0][0].precision < 1


def test_equal_sets_far_from_zero_are_within_each_other():
    """Squared distances are differences of numbers of 1e8 here; copies have radius 0."""
    rows = np.repeat(two_sets()[0] + 1e4, 5, axis=0)
    found = manifolds.precision_recall(rows, rows, neighbors=3)
    assert (found.precision, found.recall) == (1, 1)
    assert manifolds.squared_radii(rows, 4).max() == 0 < manifolds.squared_radii(rows, 5).min()


@pytest.mark.parametrize(("n", "m"), [(60, 45), (4, 45), (4, 5), (60, 3)])
def test_frechet_distance_of_rows_is_that_of_their_moments(n, m):
    real, fake = two_sets(n, m)
    direct = frechet_distance(real.mean(0), np.cov(real.T), fake.mean(0), np.cov(fake.T))
    assert frechet_estimates.distance_of_rows(real, fake) == pytest.approx(direct, rel=1e-7)
    moments = map(frechet_estimates.moments_of, (real, fake))
    assert frechet_estimates.distance(*moments) == pytest.approx(direct, rel=1e-7)
    assert frechet_estimates.distance_of_rows(real, real) == 0
    assert 0 <= frechet_estimates.distance_of_rows(real, real[::-1]) < 1e-10


def test_fid_infinity_removes_the_bias_of_few_images():
    random = np.random.RandomState(0)
    real, fake = random.standard_normal((20000, 8)), random.standard_normal((1000, 8))
    moments = frechet_estimates.moments_of(real)
    found = frechet_estimates.fid_infinity(moments, fake, points=12, smallest=50)
    biased = frechet_estimates.distance_of_rows(real, fake)
    assert found.distances[-1] == pytest.approx(biased, rel=1e-9) and found.counts[[0, -1]].tolist() == [50, 1000]
    assert abs(found.value) < biased / 2 and found.slope > 0
    line = np.linalg.lstsq(np.stack([np.ones(12), 1 / found.counts], 1), found.distances, rcond=None)[0]
    assert (found.value, found.slope) == pytest.approx(tuple(line), rel=1e-6)


def test_bootstrap_error_is_that_of_many_draws():
    random = np.random.RandomState(0)

    def draw():
        return random.standard_normal((100, 3)), random.standard_normal((80, 3)) + 1

    metric = frechet_estimates.distance_of_rows
    true_error = np.std([metric(*draw()) for _ in range(200)])
    real, fake = draw()
    value = metric(real, fake)
    found = frechet_estimates.bootstrap(metric, real, fake, value, resamples=100)
    assert 0.6 < found.error / true_error < 1.7
    assert (found.low + found.high) / 2 == pytest.approx(value) and found.high - found.low == pytest.approx(
        2 * 1.96 * found.error, rel=1e-4
    )


def test_wrong_features_are_said():
    real, fake = two_sets()
    sets = [MeasuredSet(name, len(rows), {"pool": rows * 1e60}, {}) for name, rows in (("real", real), ("fake", fake))]
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(UserError, match="kid: nan: the features are too"):
        generative_metrics.compute(*sets, ["kid"])
    broken = fake.copy()
    broken[7, 2] = math.nan
    to_statistics = frechet_estimates.distance_to_statistics
    for call, message in (
        (lambda: kernel_distance(real, fake), "subsets of 1,000 images, but there are 60 real and 45 "),
        (lambda: kernel_distance(real, fake, subset_size=1), "at least 1 subset of 2 images"),
        (lambda: kernel_distance(real, fake[:, :5], subset_size=9), "6 features of the real images"),
        (lambda: manifolds.precision_recall(real[:3], fake), "3 real images; at least 4 are needed"),
        (lambda: manifolds.density_coverage(real, fake, neighbors=0), "0 neighbors; at least 1"),
        (lambda: manifolds.precision_recall(real, broken), "features of image 7 are not finite"),
        (lambda: inception_score(fake, splits=0), "0 splits"),
        (lambda: inception_score(fake[:3]), "3 fake images; at least 10 are needed"),
        (lambda: inception_score(fake.astype(int)), "floating .n, C. is needed"),
        (lambda: frechet_estimates.distance_of_rows(real, broken), "not finite"),
        (lambda: to_statistics(fake, np.full(6, math.inf), np.eye(6)), "mu: 6 values are not finite"),
        (lambda: to_statistics(fake, np.zeros(6), np.full((6, 6), math.nan)), "sigma: 36 values are not finite"),
        (lambda: to_statistics(fake, np.zeros(6), np.eye(5)), r"sigma: shape \(5, 5\), \(6, 6\) is needed"),
        (lambda: frechet_estimates.fid_infinity(frechet_estimates.moments_of(real), fake, points=1), "1 subsets of 22"),
        (lambda: frechet_estimates.bootstrap(max, real, fake, 0, resamples=1), "1 resamples"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            call()
