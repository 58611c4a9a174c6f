"""The synthetic batches that all sides of a comparison use."""

import numpy as np

from inception_jax.benchmarks.synthetic_batches import fingerprint, make_batch


def test_a_batch_is_a_training_batch():
    batch = make_batch(0, 1, 6, 40, 10)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in batch.items()} == {
        "image": ((6, 40, 40, 3), np.uint8),
        "label": ((6,), np.int32),
        "mask": ((6,), np.bool_),
    }
    assert batch["mask"].all()
    labels = make_batch(0, 1, 500, 1, 10)["label"]
    assert set(labels) == set(range(10))


def test_a_batch_is_a_function_of_seed_and_number():
    prints = [fingerprint([make_batch(seed, number, 4, 32, 10)]) for seed in (0, 1) for number in (0, 1, 2)]
    assert len(set(prints)) == 6
    assert prints == [fingerprint([make_batch(seed, number, 4, 32, 10)]) for seed in (0, 1) for number in (0, 1, 2)]
    # The bytes of today: a NumPy or a machine that makes others would compare sides on different images.
    assert prints[0] == "188b91075caa48a6424bbc84a187e76d01c1e5a28d3140f836709ff2dd223ff5"


def test_a_fingerprint_sees_every_leaf():
    batch = make_batch(0, 0, 4, 32, 10)
    changes = {"image": batch["image"][::-1], "label": 9 - batch["label"], "mask": ~batch["mask"]}
    prints = {fingerprint([batch]), fingerprint([batch, batch])}
    prints |= {fingerprint([{**batch, name: leaf}]) for name, leaf in changes.items()}
    prints |= {fingerprint([{**batch, "label": batch["label"].view(np.uint32)}])}
    prints |= {fingerprint([{**batch, "mask": batch["mask"].reshape(2, 2)}])}
    assert len(prints) == 7


def test_images_carry_a_weak_pattern_of_their_class():
    batches = [make_batch(3, number, 64, 64, 10) for number in (0, 1)]
    images = np.concatenate([batch["image"] for batch in batches]).astype(np.float64)
    labels = np.concatenate([batch["label"] for batch in batches])
    patches = images.reshape(128, 4, 16, 4, 16, 3).mean((2, 4)).reshape(128, -1)
    alike = labels[:, None] == labels
    pixels = np.corrcoef(images.reshape(128, -1))
    # A network that averages finds the label with no error, across batches; a pixel tells almost nothing.
    closeness = np.corrcoef(patches)
    assert closeness[alike].min() > 0.9 > closeness[~alike].max()
    assert pixels[alike & ~np.eye(128, dtype=bool)].max() < 0.4
    assert images.min() >= 0 and images.max() <= 254  # the sum of noise and pattern has not wrapped around
    assert 20 < images.std() < 80
