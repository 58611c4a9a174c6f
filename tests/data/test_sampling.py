"""The order of the examples and their random numbers: frozen, uniform, and independent of who asks."""

import hashlib
import pickle
import threading
import time

import numpy as np
import pytest

from inception_jax.data import sampling
from inception_jax.errors import UserError


def test_permutation_is_frozen():
    """Golden values: a run that was saved must go on with the same examples after any upgrade."""
    assert sampling.permutation(0, 0, 12).tolist() == [0, 8, 9, 3, 7, 5, 1, 11, 2, 10, 6, 4]
    assert sampling.permutation(7, 1, 12).tolist() == [7, 9, 10, 11, 6, 1, 4, 8, 3, 2, 5, 0]
    digest = hashlib.sha256(sampling.permutation(3, 5, 100_000).astype("<i8").tobytes()).hexdigest()
    assert digest == "bbac63bc3ac23c178b148f24922578f8306acb97040e565e3edfa5e9451719d8"


def test_uniforms_are_frozen():
    numbers = sampling.uniforms(0, 0, 2)
    assert [x.hex() for x in numbers[0, :3]] == ["0x1.594ff5834dd2ep-1", "0x1.ea63eebff89d6p-2", "0x1.3d6d652e502f0p-2"]
    assert [x.hex() for x in numbers[1, :2]] == ["0x1.97bbde1055acep-2", "0x1.0ea26227e4788p-1"]
    assert sampling.uniforms(7, 2**40, 1)[0, 63].hex() == "0x1.783f5db21fd23p-1"


def test_every_epoch_is_a_permutation_of_its_own():
    seen = set()
    for seed in (0, 1, 7, 8, 2**32 - 1):
        for epoch in range(4):
            drawn = sampling.permutation(seed, epoch, 100)
            assert sorted(drawn.tolist()) == list(range(100))
            seen.add(tuple(drawn.tolist()))
    assert len(seen) == 20  # in particular (seed 7, epoch 1) is not (seed 8, epoch 0)


def test_places_are_uniform():
    """Every example lands in every place equally often: a chi-squared of 81 degrees of freedom."""
    counts = np.zeros((10, 10))
    for epoch in range(2000):
        counts[sampling.permutation(5, epoch, 10), np.arange(10)] += 1
    assert 40 < ((counts - 200) ** 2 / 200).sum() < 130


def test_numbers_are_those_of_the_position():
    block = sampling.uniforms(3, 1000, 50)
    assert block.shape == (50, sampling.UNIFORMS_PER_EXAMPLE)
    for offset in (0, 1, 49):
        assert np.array_equal(sampling.uniforms(3, 1000 + offset, 1)[0], block[offset])
    assert 0 <= block.min() and block.max() < 1
    assert len(np.unique(block)) == block.size
    assert not np.array_equal(sampling.uniforms(4, 1000, 50), block)
    assert sampling.uniforms(3, 2**60, 1).shape == (1, 64)  # positions beyond one word of the counter


def test_numbers_are_uniform_and_not_those_of_the_shuffle():
    numbers = sampling.uniforms(0, 0, 5000)
    assert abs(numbers.mean() - 0.5) < 0.003 and abs(numbers.var() - 1 / 12) < 0.001
    across = np.corrcoef(numbers[:, :8].T)
    assert np.abs(across - np.eye(8)).max() < 0.06
    for epoch in range(3):
        words = np.random.Philox(np.random.SeedSequence([0, epoch])).random_raw(5000)
        assert not np.isin((words >> np.uint64(11)) * 2.0**-53, numbers).any()


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "a", True, None])
def test_refuses_a_seed_that_names_no_stream(seed):
    with pytest.raises(UserError, match="seed"):
        sampling.permutation(seed, 0, 10)


def test_indices_run_on_from_epoch_to_epoch():
    drawn = sampling.ShuffledOrder(9, 7).indices(0, 35)
    expected = np.concatenate([sampling.permutation(9, epoch, 7) for epoch in range(5)])
    assert np.array_equal(drawn, expected)
    for start, count in ((0, 3), (5, 4), (6, 20), (13, 1)):
        assert np.array_equal(sampling.ShuffledOrder(9, 7).indices(start, count), expected[start : start + count])


def test_starting_far_in_costs_nothing():
    late = sampling.ShuffledOrder(1, 1000)
    assert len(late.indices(10**12, 5)) == 5
    assert len(late._epochs) == 1


def test_one_sort_per_epoch_whatever_the_threads(monkeypatch):
    sorts = []
    real = sampling.permutation

    def slow(*arguments):
        sorts.append(arguments)
        time.sleep(0.05)
        return real(*arguments)

    monkeypatch.setattr(sampling, "permutation", slow)
    shared = sampling.ShuffledOrder(2, 1000)
    threads = [threading.Thread(target=shared.indices, args=(start, 100)) for start in range(0, 2000, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sorts) == [(2, 0, 1000), (2, 1, 1000)]


def test_the_next_epoch_is_sorted_ahead(monkeypatch):
    sorts = []
    real = sampling.permutation
    monkeypatch.setattr(sampling, "permutation", lambda *arguments: sorts.append(arguments[1]) or real(*arguments))
    monkeypatch.setattr(sampling, "_SORT_AHEAD_FROM", 10)
    shared = sampling.ShuffledOrder(2, 100)
    for start, epochs in ((0, [0, 1]), (99, [0, 1]), (100, [0, 1, 2])):
        shared.indices(start, 1)
        for thread in threading.enumerate():
            if "_sort_ahead" in thread.name:  # Python names a thread after its function
                thread.join(5)
        assert sorted(shared._epochs) == sorts == epochs


def test_pickles_without_its_cache():
    first = sampling.ShuffledOrder(2, 50)
    first.indices(0, 10)
    again = pickle.loads(pickle.dumps(first))
    assert again._epochs == {}
    assert np.array_equal(again.indices(45, 20), first.indices(45, 20))


def balanced_labels():
    """50 examples: 40 of class 0, 7 of class 2, 2 of class 3; class 1 has none, and one example has no label."""
    labels = np.array([0] * 40 + [2] * 7 + [3] * 2 + [-1])
    return labels[np.random.default_rng(0).permutation(len(labels))]


def test_balanced_order_is_frozen():
    """Golden values, as of the permutation."""
    order = sampling.BalancedOrder(7, np.array([0, 0, 0, 1, 1, 2]))
    assert order.indices(0, 12).tolist() == [5, 2, 3, 1, 4, 5, 4, 0, 5, 1, 3, 5]


def test_every_class_is_equally_frequent_and_every_example_has_its_turn():
    labels = balanced_labels()
    drawn = sampling.BalancedOrder(3, labels).indices(0, 3 * 280)
    for block in labels[drawn].reshape(-1, 3):
        assert sorted(block) == [0, 2, 3]
    assert len({tuple(block) for block in labels[drawn].reshape(-1, 3)}) == 6  # in every order
    for label, size in ((0, 40), (2, 7), (3, 2)):
        turns = drawn[labels[drawn] == label].reshape(-1, size)
        assert all(sorted(turn) == np.flatnonzero(labels == label).tolist() for turn in turns)
        assert len({tuple(turn) for turn in turns}) > 1  # in a new order each time
    assert not np.array_equal(drawn, sampling.BalancedOrder(4, labels).indices(0, 3 * 280))


def test_a_balanced_index_is_a_function_of_seed_and_position():
    """Whatever was asked before: from the middle, by another host, after pickling, from many threads at once."""
    labels = balanced_labels()
    expected = sampling.BalancedOrder(3, labels).indices(0, 200)
    shared = pickle.loads(pickle.dumps(sampling.BalancedOrder(3, labels)))
    starts = [(start, 8) for start in range(0, 192, 8)][::-1]
    found = {}

    def take(start, count):
        found[start] = shared.indices(start, count)

    threads = [threading.Thread(target=take, args=arguments) for arguments in starts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for start, count in starts:
        assert np.array_equal(found[start], expected[start : start + count])
    assert len(sampling.BalancedOrder(3, labels).indices(10**12, 5)) == 5
    with pytest.raises(UserError, match="without labels"):
        sampling.BalancedOrder(0, np.array([-1, -1]))
