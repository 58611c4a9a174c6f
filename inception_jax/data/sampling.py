"""Global shuffle and per-example random numbers, computed from the seed and the position: no state to save.

A *position* counts training examples from the first one of the run: position `p` is in epoch `p // n` of a data set of
`n` examples. Order and random numbers depend on the seed and the position alone. So resuming costs nothing, and the
number of workers, processes or devices does not change what is drawn.

Only raw Philox bits are used, never `numpy.random.Generator`: NumPy promises that the bits of a bit generator stay as
they are, and reserves the right to change the numbers that its distributions make of them (NEP 19).
"""

from __future__ import annotations

import threading

import numpy as np

from inception_jax.errors import UserError

# Uniform random numbers per position. 64 are 16 Philox counters of four words; 62 serve 15 attempts at a crop.
UNIFORMS_PER_EXAMPLE = 64
_COUNTERS_PER_EXAMPLE = UNIFORMS_PER_EXAMPLE // 4
# Apart from the shuffle: a spawn key never equals the plain entropy `[seed, epoch]`, whatever the epoch.
_EXAMPLE_STREAM = (1,)
POLICY_STREAM = (3,)
"""`uniforms` of the operations of `policies`: apart from those of crops, which have nearly all of their 64 numbers."""
# The orders of balanced sampling, likewise: (2, 0) of the classes in a block, (2, 1 + class) of a class's examples.
_BALANCED_STREAM = 2
# Below this many examples an epoch is sorted in a few milliseconds, and a thread would cost more than it saves.
_SORT_AHEAD_FROM = 1 << 16


def check_seed(seed: int) -> int:
    """Returns the seed as an int.

    A larger one than 2**32 - 1 would take two words of `SeedSequence`, and `[seed, epoch]` would no longer be unique.

    Raises:
      UserError: it is not a whole number from 0 to 2**32 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise UserError(f"seed: {seed!r}; a whole number from 0 to {2**32 - 1} is needed")
    return int(seed)


def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of one epoch: the argsort of `num_examples` raw Philox words keyed by `SeedSequence([seed, epoch])`.

    Args:
      seed: of the run, 0 <= seed < 2**32.
      epoch: counted from 0, < 2**32.
      num_examples: of the split.

    Returns:
      int64 [num_examples], a permutation of `range(num_examples)`.
    """
    return _permutation(np.random.SeedSequence([check_seed(seed), int(epoch)]), num_examples)


def _permutation(seed: np.random.SeedSequence, count: int) -> np.ndarray:
    words = np.random.Philox(seed).random_raw(count)
    return np.argsort(words, kind="stable")  # stable: equal words, however rare, have one order on every machine


def uniforms(seed: int, start: int, count: int, stream: tuple[int, ...] = _EXAMPLE_STREAM) -> np.ndarray:
    """The random numbers of the positions `start … start + count - 1`.

    Position `p` has the Philox counters from `16 p` on, under a key drawn from the seed. So one call for a block of
    positions gives the same numbers as a call for each.

    Args:
      seed: of the run, 0 <= seed < 2**32.
      start: the first position.
      count: number of positions.
      stream: which random numbers; the default is those of crop and flip.

    Returns:
      float64 [count, 64] in [0, 1): the upper 53 bits of each word.
    """
    key = np.random.SeedSequence(check_seed(seed), spawn_key=stream).generate_state(2, np.uint64)
    words = np.random.Philox(key=key, counter=int(start) * _COUNTERS_PER_EXAMPLE).random_raw(
        count * UNIFORMS_PER_EXAMPLE
    )
    return ((words >> np.uint64(11)) * 2.0**-53).reshape(count, UNIFORMS_PER_EXAMPLE)


class ShuffledOrder:
    """Maps positions to indices of examples, epoch after epoch; thread-safe and picklable.

    The three latest epochs are cached, and for large data sets the next one is sorted in a thread while this one is
    read: 1.28 million examples take about 0.3 s.
    """

    def __init__(self, seed: int, num_examples: int):
        """Makes an order; nothing is sorted yet.

        Args:
          seed: of the run, 0 <= seed < 2**32.
          num_examples: of the split, at least 1.

        Raises:
          UserError: a value out of range.
        """
        if num_examples < 1:
            raise UserError(f"a data set of {num_examples} examples cannot be trained on")
        self.seed = check_seed(seed)
        self.num_examples = int(num_examples)
        self._start_empty()

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._epochs: dict[int, np.ndarray] = {}
        self._ahead: int | None = None

    def __getstate__(self) -> dict[str, int]:
        return {"seed": self.seed, "num_examples": self.num_examples}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    def epoch(self, epoch: int) -> np.ndarray:
        """The permutation of one epoch, int64 [num_examples]; do not write to it."""
        with self._lock:  # under the lock, or every thread of a pool would sort the same epoch at once
            order = self._epochs.get(epoch)
            if order is None:
                order = self._epochs[epoch] = permutation(self.seed, epoch, self.num_examples)
                for old in sorted(self._epochs)[:-3]:  # perhaps this one: batches may be requested in any order
                    del self._epochs[old]
            start_ahead = self.num_examples >= _SORT_AHEAD_FROM and self._ahead != epoch + 1
            start_ahead = start_ahead and epoch + 1 not in self._epochs
            if start_ahead:
                self._ahead = epoch + 1
        if start_ahead:
            threading.Thread(target=self._sort_ahead, args=(epoch + 1,), daemon=True).start()
        return order

    def _sort_ahead(self, epoch: int) -> None:
        order = permutation(self.seed, epoch, self.num_examples)
        with self._lock:
            self._epochs.setdefault(epoch, order)

    def indices(self, start: int, count: int) -> np.ndarray:
        """Indices of the examples at positions `start … start + count - 1`: int64 [count]; may cross epochs."""
        parts = []
        while count > 0:
            epoch, offset = divmod(int(start), self.num_examples)
            part = self.epoch(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)


class BalancedOrder:
    """Maps positions to indices of examples such that all classes are equally frequent; thread-safe and picklable.

    Positions are counted in blocks of as many as there are classes with examples. A block has one example of each, in
    an order of its own; block `b` has the `b`-th draw of every class, and the draws of a class go through all its
    examples in a new order each time, none twice before all were drawn once. So the index is a function of the seed and
    the position alone, as in `ShuffledOrder`. An epoch is still as many positions as the data set has examples.
    """

    def __init__(self, seed: int, labels: np.ndarray):
        """Makes an order.

        Args:
          seed: of the run, 0 <= seed < 2**32.
          labels: int [n], the class of each example; an example with -1 is never drawn.

        Raises:
          UserError: a value out of range, or no example has a label.
        """
        self.seed = check_seed(seed)
        by_class = np.argsort(labels, kind="stable")
        first = int(np.sum(labels < 0))
        if first == len(labels):
            raise UserError(f"a data set of {len(labels)} examples without labels cannot be sampled by class")
        classes, starts = np.unique(labels[by_class[first:]], return_index=True)
        self._classes = classes.astype(np.int64)
        self._examples = np.split(by_class[first:], starts[1:])
        self._start_empty()

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"seed": self.seed, "_classes": self._classes, "_examples": self._examples}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    def indices(self, start: int, count: int) -> np.ndarray:
        """Indices of the examples at positions `start … start + count - 1`: int64 [count]."""
        found = np.empty(count, np.int64)
        block, order = -1, np.empty(0, np.int64)
        for row in range(count):
            now, place = divmod(int(start) + row, len(self._classes))
            if now != block:
                block = now
                order = _permutation(self._stream(0, block), len(self._classes))
            found[row] = self._draw(int(order[place]), block)
        return found

    def _draw(self, which: int, draw: int) -> int:
        """The example of a draw of the class number `which`, counted among the classes that have examples."""
        examples = self._examples[which]
        turn, place = divmod(draw, len(examples))
        with self._lock:
            known = self._orders.get(which)
        if known is None or known[0] != turn:
            known = turn, _permutation(self._stream(1 + int(self._classes[which]), turn), len(examples))
            with self._lock:
                self._orders[which] = known
        return int(examples[known[1][place]])

    def _stream(self, stream: int, turn: int) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, turn], spawn_key=(_BALANCED_STREAM, stream))
