"""Mean, covariance and the Fréchet distance, against NumPy, SciPy and what is known in closed form."""

import tracemalloc

import numpy as np
import pytest
import scipy.linalg

from inception_jax.errors import UserError
from inception_jax.features.statistics import Moments, frechet_distance, read_statistics


def gaussian(seed, features, rows):
    """(mean, covariance) of a sample with correlated features."""
    random = np.random.RandomState(seed)
    sample = random.standard_normal((rows, features)) @ random.standard_normal((features, features)) + seed
    return sample.mean(0), np.cov(sample, rowvar=False)


def test_moments_are_those_of_all_rows_however_they_come():
    rows = np.random.RandomState(0).standard_normal((50, 6)) * [1, 2, 3, 4, 5, 6] + 1e6
    for cuts in ([], [1], [10, 10, 49], range(1, 50)):
        moments = Moments(6)
        for part in np.split(rows, cuts):
            moments.add(part)
        assert moments.count == 50
        np.testing.assert_allclose(moments.mean, rows.mean(0), 1e-14)
        # A sum of squares minus a square would have lost all digits: the mean is a million deviations away.
        np.testing.assert_allclose(moments.covariance(), np.cov(rows - 1e6, rowvar=False), 1e-8, 1e-8)


def test_moments_take_half_precision_without_its_rounding():
    rows = np.full((4096, 2), 0.1, np.float16)
    moments = Moments(2)
    moments.add(rows)
    np.testing.assert_allclose(moments.mean, float(rows[0, 0]), 1e-14)


def test_what_has_no_moments():
    moments = Moments(2)
    moments.add(np.ones((1, 2)))
    with pytest.raises(UserError, match=r"1 image: a covariance needs two"):
        moments.covariance()
    with pytest.raises(UserError, match="not finite"):
        moments.add(np.array([[np.inf, 1.0]]))
    with pytest.raises(ValueError, match=r"rows: shape \(3, 3\); \[n, 2\] is needed"):
        moments.add(np.ones((3, 3)))


def test_the_distance_in_closed_form():
    # Commuting covariances: |m1 - m2|² + the sum of (s1 - s2)², in any basis.
    basis = np.linalg.qr(np.random.RandomState(1).standard_normal((4, 4)))[0]
    # Rounding gives an eigenvalue of 0 some 1e-16, whose root, 1e-8, is what the distance is made of.
    for a, b, close in (([1.0, 2, 3, 5], [4.0, 1, 2, 5], 1e-13), ([1.0, 2, 3, 0], [4.0, 1, 0, 0], 1e-8)):
        sigmas = [basis * np.square(s) @ basis.T for s in (a, b)]
        distance = frechet_distance(np.zeros(4), sigmas[0], np.full(4, 2.0), sigmas[1])
        np.testing.assert_allclose(distance, 16 + np.subtract(a, b) @ np.subtract(a, b), close)
    assert frechet_distance([1.0], [[4.0]], [4.0], [[9.0]]) == pytest.approx(9 + 1, 1e-14)


def test_the_distance_by_the_matrix_root():
    (mu1, sigma1), (mu2, sigma2) = gaussian(1, 12, 60), gaussian(2, 12, 60)
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(sigma1 + sigma2 - 2 * root.real)
    np.testing.assert_allclose(frechet_distance(mu1, sigma1, mu2, sigma2), expected, 1e-10)
    np.testing.assert_allclose(frechet_distance(mu2, sigma2, mu1, sigma1), expected, 1e-10)
    assert frechet_distance(mu1, sigma1, mu1, sigma1) == 0


def test_singular_covariances():
    # Fewer images than features: of rank 4 in 12 dimensions.
    (mu1, sigma1), (mu2, sigma2) = gaussian(3, 12, 5), gaussian(4, 12, 5)
    distance = frechet_distance(mu1, sigma1, mu2, sigma2)
    offset = 1e-7 * np.eye(12)
    np.testing.assert_allclose(distance, frechet_distance(mu1, sigma1 + offset, mu2, sigma2 + offset), 1e-3)
    assert frechet_distance(mu1, sigma1, mu1, sigma1) == 0
    # Rounding may not bring it below 0.
    nearly = [frechet_distance(mu1, sigma1, mu1, sigma1 * (1 + k * 1e-15)) for k in range(1, 9)]
    assert 0 == min(nearly) <= max(nearly) < 1e-6 * np.trace(sigma1)
    assert frechet_distance(mu1, np.zeros((12, 12)), mu1, sigma1) == pytest.approx(np.trace(sigma1), 1e-12)


def test_what_is_no_pair_of_gaussians():
    eye = np.eye(2)
    with pytest.raises(UserError, match=r"mu2: shape \(3,\), \(2,\) is needed"):
        frechet_distance(np.zeros(2), eye, np.zeros(3), np.eye(3))
    with pytest.raises(UserError, match="sigma2: 1 values are not finite"):
        frechet_distance(np.zeros(2), eye, np.zeros(2), np.array([[1, 0], [0, np.nan]]))
    with pytest.raises(UserError, match="sigma1: not symmetric"):
        frechet_distance(np.zeros(2), np.array([[1, 0.5], [0, 1]]), np.zeros(2), eye)
    with pytest.raises(UserError, match="sigma2: eigenvalues from -1 to 1"):
        frechet_distance(np.zeros(2), eye, np.zeros(2), np.diag([1.0, -1]))
    flat = np.diag([1.0] * 20 + [-0.002])  # twice what rounding is, whatever the other eigenvalues are
    with pytest.raises(UserError, match=r"sigma1: eigenvalues from -0\.002 to 1"):
        frechet_distance(np.zeros(21), flat, np.zeros(21), np.eye(21))


def test_files_of_statistics(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(2), sigma=np.eye(2))
    mu, sigma = read_statistics(tmp_path / "a.npz")
    assert (mu.shape, sigma.shape) == ((2,), (2, 2))
    with pytest.raises(UserError, match="there is no such file"):
        read_statistics(tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", features=np.zeros(2))
    with pytest.raises(UserError, match="not a file of statistics"):
        read_statistics(tmp_path / "b.npz")
    for content in (b"hello", b"PK\x03\x04", b""):
        (tmp_path / "c.npz").write_bytes(content)
        with pytest.raises(UserError, match="not a NumPy archive"):
            read_statistics(tmp_path / "c.npz")
    for mu in (np.array(["a"]), np.array([1j])):
        np.savez(tmp_path / "d.npz", mu=mu, sigma=np.eye(1))
        with pytest.raises(UserError, match=r"not numbers: it is not read|must both be arrays of real numbers"):
            read_statistics(tmp_path / "d.npz")


def test_a_small_file_of_much_is_refused_before_it_is_decompressed(tmp_path):
    """150 MB of zeros in 150 kB; and statistics whose eigenvalues would take an hour."""
    np.savez_compressed(tmp_path / "a.npz", mu=np.zeros(4300), sigma=np.zeros((4300, 4300)))
    tracemalloc.start()
    with pytest.raises(UserError, match="more than 100 times as much is not read"):
        read_statistics(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
    np.savez(tmp_path / "b.npz", mu=np.zeros(8193), sigma=np.zeros((2, 2)))
    with pytest.raises(UserError, match="statistics of 8,193 features; at most 8,192"):
        read_statistics(tmp_path / "b.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])  # pytorch-fid's are compressed
def test_a_damaged_file_is_said_to_be_one(save, tmp_path):
    save(tmp_path / "a.npz", mu=np.arange(4.0), sigma=np.eye(4))
    whole = (tmp_path / "a.npz").read_bytes()
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        (tmp_path / "b.npz").write_bytes(damaged)
        try:
            mu, sigma = read_statistics(tmp_path / "b.npz")
        except UserError:
            refused += 1
        else:  # a date, or the like
            assert (mu.tolist(), sigma.tolist()) == ([0, 1, 2, 3], np.eye(4).tolist())
    assert refused > len(whole) / 2
