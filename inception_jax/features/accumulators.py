"""Features of a training loop on the devices: their mean and covariance, or the features themselves.

Each device keeps its own, so that a step needs no communication; they meet on the host. Sums are pairs of float32,
which carry the error of each addition, so that 50,000 images lose no more than 50 do.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.errors import UserError
from inception_jax.features.statistics import Moments
from inception_jax.models.explicit_axes import sharded_like


@flax.struct.dataclass
class DeviceMoments:
    """Sums over the features of images, a pytree: carry it through steps under `jit`, `shard_map`, `pmap` or `scan`.

    The first axis of every leaf is that of the devices. A function sees one device's part of it: [1, …] under `jit` on
    one device, under `shard_map` with the spec `PartitionSpec(axis)`, and under `pmap` of `zeros(C, devices)` with
    leaves reshaped to [D, 1, …] (`for_pmap`).

    Attributes:
      count: int32 [D], images added.
      shift: float32 [D, C], subtracted from the features before they are summed: the mean of the first batch.
      sums: two float32 [D, C]: the sum of shifted features, and its rounding error.
      products: two float32 [D, C, C]: the sum of their outer products, and its rounding error.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from inception_jax.features import DeviceMoments
      >>> add = jax.jit(DeviceMoments.add)
      >>> state = DeviceMoments.zeros(3)
      >>> for k in range(5):
      ...     state = add(state, jax.random.normal(jax.random.key(k), (8, 3)))
      >>> state.finish().covariance().shape
      (3, 3)
    """

    count: jax.Array
    shift: jax.Array
    sums: tuple[jax.Array, jax.Array]
    products: tuple[jax.Array, jax.Array]

    @classmethod
    def zeros(cls, features: int, devices: int = 1) -> DeviceMoments:
        """Starts with no images.

        Args:
          features: C.
          devices: D, those that add to it.
        """
        dtype = jnp.zeros(()).dtype  # float32, and float64 under x64
        # Each leaf has a buffer of its own, so that a step may donate them.
        shift, high, low = (jnp.zeros((devices, features), dtype) for _ in range(3))
        square_high, square_low = (jnp.zeros((devices, features, features), dtype) for _ in range(2))
        return cls(jnp.zeros(devices, jnp.int32), shift, (high, low), (square_high, square_low))

    def for_pmap(self) -> DeviceMoments:
        """Adds an axis after the first, so that `pmap`, which removes the first, leaves [1, …]."""
        return jax.tree.map(lambda leaf: leaf[:, None], self)

    def add(self, rows: jax.Array, mask: jax.Array | None = None) -> DeviceMoments:
        """Adds the features of a batch, inside or outside of a compiled function.

        Args:
          rows: [b, C], this device's part of the batch.
          mask: bool [b], False for padding; None: no padding.

        Returns:
          The sums with the batch.

        Raises:
          ValueError: the shapes do not fit, or more than one device's sums are given.
        """
        keep = _check_batch(self.count, self.shift.shape[-1], rows, mask)
        return sharded_like(self, DeviceMoments._add, self, rows, keep)

    def _add(self, rows: jax.Array, keep: jax.Array) -> DeviceMoments:
        dtype = self.shift.dtype
        rows = jnp.where(keep[:, None], rows.astype(dtype), 0)
        count = keep.sum(dtype=jnp.int32)
        mean = rows.sum(0, keepdims=True) / jnp.maximum(count, 1).astype(dtype)
        shift = jnp.where((self.count == 0)[:, None], mean, self.shift)
        centered = jnp.where(keep[:, None], rows - shift, 0)
        # A product that is fused with the addition would be rounded in another way than its error.
        product = jax.lax.optimization_barrier(jnp.matmul(centered.T, centered, precision="highest"))
        return DeviceMoments(
            self.count + count,
            shift,
            _add_exactly(self.sums, centered.sum(0)[None]),
            _add_exactly(self.products, product[None]),
        )

    def finish(self) -> Moments:
        """Adds the sums of all devices and of all processes, in float64 on the host.

        Every process must call it, with its own sums (of `jit` on its devices) or with those over all processes (of
        `shard_map`, or of `pmap`); each gets the same moments. The devices are merged in order, so the result has the
        bits that one process with all of the devices gets.

        Returns:
          Count, mean and covariance; NaN where a feature was.
        """
        leaves = [self.count, self.shift, *self.sums, *self.products]
        parts = _all_devices(leaves, (0, 1, 1, 1, 2, 2))
        total = Moments(parts[1].shape[-1])
        for count, shift, sum_high, sum_low, product_high, product_low in zip(*parts, strict=True):
            if not count:
                continue
            sums = sum_high.astype(np.float64) + sum_low
            products = product_high.astype(np.float64) + product_low
            total.merge(int(count), shift + sums / count, products - np.outer(sums, sums) / count)
        return total


@flax.struct.dataclass
class DeviceRows:
    """Features or logits of images, a pytree for a training loop as `DeviceMoments`, for metrics that need every image.

    Those are KID, the Inception Score, precision and recall, density and coverage. A step that does not donate it
    copies it: `jax.jit(step, donate_argnums=…)`.

    Attributes:
      count: int32 [D], images added, those for which there was no room as well.
      rows: float32 [D, capacity, C]; float64 under x64.

    Example:
      >>> import jax
      >>> from inception_jax.features import DeviceRows, kernel_distance
      >>> add = jax.jit(DeviceRows.add, donate_argnums=0)
      >>> state = DeviceRows.zeros(3, capacity=40)
      >>> for k in range(5):
      ...     state = add(state, jax.random.normal(jax.random.key(k), (8, 3)))
      >>> kernel_distance(state.finish(), state.finish(), subset_size=40).values.shape
      (1,)
    """

    count: jax.Array
    rows: jax.Array

    @classmethod
    def zeros(cls, features: int, capacity: int, devices: int = 1) -> DeviceRows:
        """Starts with no images.

        Args:
          features: C.
          capacity: images that one device has room for, of C * 4 bytes each (8 under x64).
          devices: D, those that add to it.
        """
        return cls(jnp.zeros(devices, jnp.int32), jnp.zeros((devices, capacity, features)))

    def for_pmap(self) -> DeviceRows:
        """Adds an axis after the first, so that `pmap`, which removes the first, leaves [1, …]."""
        return jax.tree.map(lambda leaf: leaf[:, None], self)

    def add(self, rows: jax.Array, mask: jax.Array | None = None) -> DeviceRows:
        """Adds the features of a batch, inside or outside of a compiled function.

        Args:
          rows: [b, C], this device's part of the batch.
          mask: bool [b], False for padding; None: no padding.

        Raises:
          ValueError: as `DeviceMoments.add`.
        """
        keep = _check_batch(self.count, self.rows.shape[-1], rows, mask)
        return sharded_like(self, DeviceRows._add, self, rows, keep)

    def _add(self, rows: jax.Array, keep: jax.Array) -> DeviceRows:
        capacity = self.rows.shape[1]
        places = jnp.where(keep, self.count + jnp.cumsum(keep, dtype=jnp.int32) - 1, capacity)
        added = self.rows.at[0, places].set(rows.astype(self.rows.dtype), mode="drop")
        return DeviceRows(self.count + keep.sum(dtype=jnp.int32), added)

    def finish(self) -> np.ndarray:
        """Collects the rows of all devices and of all processes, on the host; every process must call it.

        Returns:
          [n, C] in the order of the devices, and on each in the order in which they were added.

        Raises:
          UserError: more images were added on a device than it has room for.
        """
        counts, rows = _all_devices([self.count, self.rows], (0, 2))
        if (most := counts.max()) > rows.shape[1]:
            raise UserError(
                f"{most:,} images were added on a device that has room for {rows.shape[1]:,}: "
                f"DeviceRows.zeros(…, capacity={most})"
            )
        return np.concatenate([kept[:count] for kept, count in zip(rows, counts, strict=True)])


def _add_exactly(pair: tuple[jax.Array, jax.Array], value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Adds a value to a sum with its error (D. Knuth, The Art of Computer Programming 2, 4.2.2, theorem B)."""
    high, low = pair
    total = high + value
    part = total - high
    return total, low + ((high - (total - part)) + (value - part))


def _check_batch(count: jax.Array, features: int, rows: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns the mask, [b], or raises a ValueError where the shapes of a batch do not fit."""
    if count.shape != (1,) or rows.ndim != 2 or rows.shape[1] != features:
        raise ValueError(
            f"rows {rows.shape} for {count.shape} devices and {features} features: what one device keeps, [1, …], and "
            f"rows [b, {features}] are needed"
        )
    keep = jnp.ones(len(rows), bool) if mask is None else jnp.asarray(mask)
    if keep.shape != rows.shape[:1]:
        raise ValueError(f"mask {keep.shape} for rows {rows.shape}: one value per row is needed, [{len(rows)}]")
    return keep


def _all_devices(leaves: list[jax.Array], axes: tuple[int, ...]) -> list[np.ndarray]:
    """The leaves of all processes on the host, [devices, …], each with so many axes after the first."""
    shapes = [leaf.shape[leaf.ndim - kept :] for leaf, kept in zip(leaves, axes, strict=True)]
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        # Of an array over all processes its whole, in which copies count once; of a process's own ones, all in order.
        leaves = multihost_utils.process_allgather(leaves, tiled=True)
    return [np.asarray(leaf).reshape(-1, *shape) for leaf, shape in zip(leaves, shapes, strict=True)]
