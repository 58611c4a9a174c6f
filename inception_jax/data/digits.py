"""The embedded data set `digits`: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels. Nothing is downloaded.

Source: the test half of UCI's "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998), as
`sklearn.datasets.load_digits` returns it: grey values 0 to 16. `tests/data/make_digits.py` writes the file beside
this one.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("digits.npz")
CLASS_NAMES = [str(digit) for digit in range(10)]
NUM_EXAMPLES = {"train": 1437, "test": 360}


def split_indices(labels: np.ndarray, test_examples: int) -> dict[str, np.ndarray]:
    """The fixed stratified split into training and test examples.

    Class `c` with `n_c` of `n` examples has `t_c` in the test split: `test_examples * n_c / n`, rounded by the
    largest remainder (ties: the smaller class first). They are evenly spaced among the class's examples in the order
    of the file: those numbered `floor((j + 1/2) * n_c / t_c)`, `j = 0 … t_c - 1`. The file is ordered by writer, so
    every writer is in both splits. Both splits keep the order of the file.

    Args:
      labels: int [n].
      test_examples: size of the test split.

    Returns:
      {"train": int64 [n - test_examples], "test": int64 [test_examples]}, each ascending.
    """
    sizes = np.bincount(labels)
    whole, remainder = np.divmod(test_examples * sizes, len(labels))
    largest = np.argsort(-remainder, kind="stable")[: test_examples - whole.sum()]
    whole[largest] += 1
    is_test = np.zeros(len(labels), bool)
    for label, (size, count) in enumerate(zip(sizes, whole, strict=True)):
        members = np.flatnonzero(labels == label)
        is_test[members[(2 * np.arange(count) + 1) * size // (2 * count)]] = True
    return {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}


@functools.cache
def load(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads one split from the embedded file.

    Grey values are scaled to bytes as `floor((255 v + 8) / 16)`: 0 stays 0, 16 becomes 255, different values stay
    different.

    Args:
      split: "train" or "test".

    Returns:
      images uint8 [n, 8, 8] 0 … 255, labels int64 [n], and the examples' numbers in scikit-learn's order int64 [n].
    """
    with np.load(FILE, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    indices = split_indices(labels, NUM_EXAMPLES["test"])[split]
    grey = (images[indices].astype(np.uint16) * 255 + 8) // 16
    return grey.astype(np.uint8), labels[indices], indices
