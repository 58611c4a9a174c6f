"""Initializers, and `init_variables`: a network's variables without compiling the network.

`model.init` runs the whole forward pass to find the shapes: eagerly it compiles several hundred operations, and under
`jax.jit` one random generator per parameter. `init_variables` takes the shapes from `jax.eval_shape`, draws the bits of
every kernel in NumPy, and turns them into values by one small program of fixed size; the values are those of
`model.init`, bit for bit.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

import flax.core
import flax.linen as nn
import jax
import jax.extend.random as jex_random
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from inception_jax.models import parameters
from inception_jax.models.checks import ModelError
from inception_jax.models.platforms import traced_for_shapes

Traced = tuple[list[parameters.ArrayDeclaration], dict[str, Any]]
"""What `trace_variables` returns."""

_CHUNK = 1 << 16  # values per call of the compiled generator
_TRUNCATED_STDDEV = 0.87962566103423978  # of a standard normal distribution truncated at -2 and 2


@dataclasses.dataclass(frozen=True)
class VarianceScaling:
    """`jax.nn.initializers.variance_scaling` with the same values, fast when called with a concrete key.

    Attributes:
      scale: the variance is scale / fan.
      mode: "fan_in" (kernel height x width x input channels) or "fan_avg" (mean of fan in and fan out).
      distribution: "uniform", or "truncated_normal" (at two standard deviations of the normal before truncation).
    """

    scale: float
    mode: str
    distribution: str

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """Returns an array of `shape` and `dtype`; kernels are [..., in, out]."""
        return _scaled(key, self.distribution, shape, dtype, self._factor(shape))

    def _factor(self, shape: tuple[int, ...]) -> float:
        receptive = np.prod(shape[:-2])
        fan_in, fan_out = shape[-2] * receptive, shape[-1] * receptive
        variance = self.scale / {"fan_in": fan_in, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        if self.distribution == "uniform":
            return float(np.sqrt(3 * variance))
        return float(np.sqrt(variance) / _TRUNCATED_STDDEV)


@dataclasses.dataclass(frozen=True)
class TruncatedNormal:
    """`jax.nn.initializers.truncated_normal` with the same values, fast when called with a concrete key.

    Attributes:
      stddev: of the normal before it is truncated at two standard deviations, as in TensorFlow's
        `truncated_normal_initializer`; the standard deviation of the values is 0.88 times as large.
    """

    stddev: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """Returns an array of `shape` and `dtype`."""
        return _scaled(key, "truncated_normal", shape, dtype, self.stddev)


@dataclasses.dataclass(frozen=True)
class Normal:
    """`jax.nn.initializers.normal` with the same values, fast when called with a concrete key; Caffe's "gaussian"."""

    stddev: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """Returns an array of `shape` and `dtype`."""
        return _scaled(key, "normal", shape, dtype, self.stddev)


@dataclasses.dataclass(frozen=True)
class Constant:
    """`jax.nn.initializers.constant` without compiling an operation for each shape."""

    value: float

    def __call__(self, key: jax.Array | None, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """Returns an array of `shape` and `dtype`; the key is not used."""
        return jax.device_put(np.full(shape, self.value, jnp.dtype(dtype)))


# Caffe's "xavier" filler (include/caffe/filler.hpp, variance_norm FAN_IN): uniform in ±sqrt(3 / fan_in).
caffe_xavier = VarianceScaling(1.0, "fan_in", "uniform")
# slim's variance_scaling_initializer() (tf_slim/layers/initializers.py): a normal of variance 1.3·2/fan_in, truncated
# at two standard deviations. JAX's scale is that of the variance after truncation: 2.012, where He's is 2.
slim_variance_scaling = VarianceScaling(1.3 * 2.0 * _TRUNCATED_STDDEV**2, "fan_in", "truncated_normal")
# slim's xavier_initializer(), the default of its fully connected layers: uniform in ±sqrt(6 / (fan_in + fan_out)).
slim_xavier = VarianceScaling(1.0, "fan_avg", "uniform")


def _scaled(key: jax.Array, distribution: str, shape: tuple[int, ...], dtype: Any, factor: float) -> jax.Array:
    """Draws from the distribution, times `factor`; in chunks where the key is concrete and of threefry."""
    dtype = jnp.dtype(dtype)
    scale = np.asarray(factor, dtype)
    if isinstance(key, jax.core.Tracer) or not _can_chunk(key):
        return _draw(key, distribution, tuple(shape), dtype) * scale
    return jax.device_put(_draw_in_chunks(key, distribution, tuple(shape), dtype) * scale)


def _draw(key: jax.Array, distribution: str, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if distribution == "uniform":
        return jax.random.uniform(key, shape, dtype, -1.0)
    if distribution == "normal":
        return jax.random.normal(key, shape, dtype)
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)


def _can_chunk(key: jax.Array) -> bool:
    """Returns whether value i of a draw depends on (key, i) only, not on the shape: true of partitionable threefry."""
    return (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        and str(jax.random.key_impl(key)) == "threefry2x32"
        and jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]  # jax declares no types for it
    )


def _draw_in_chunks(key: jax.Array, distribution: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """`_draw` by one compiled function for all shapes, without compiling threefry (a CPU-second for each shape)."""
    size, words = int(np.prod(shape)), np.asarray(jax.random.key_data(key))
    values = np.empty(-(-size // _CHUNK) * _CHUNK, dtype)
    for start in range(0, size, _CHUNK):
        index = np.arange(start, min(size, start + _CHUNK), dtype=np.uint32)
        bits = np.zeros((2, _CHUNK), np.uint32)
        bits[:, : len(index)] = _threefry(words, np.zeros_like(index), index)
        values[start : start + _CHUNK] = _chunk(bits, distribution, dtype)
    return values[:size].reshape(shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _chunk(bits: jax.Array, distribution: str, dtype: Any) -> jax.Array:
    return _draw(jax.random.wrap_key_data(bits, impl=_drawn_bits()), distribution, (_CHUNK,), dtype)


def _threefry(key: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 with 20 rounds (J. Salmon et al., SC 2011), in NumPy.

    Args:
      key: uint32 [2].
      first: uint32 [n], the first word of each counter; overwritten.
      second: uint32 [n], the second word.

    Returns:
      The words of each result, uint32 [n].
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    a, b, high = first, second + schedule[1], np.empty_like(second)
    a += schedule[0]
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            a += b
            np.left_shift(b, np.uint32(rotation), out=high)
            b >>= np.uint32(32 - rotation)
            b |= high
            b ^= a
        a += schedule[(group + 1) % 3]
        b += schedule[(group + 2) % 3]
        b += np.uint32(group + 1)
    return a, b


@functools.cache
def _drawn_bits() -> Any:
    """A PRNG implementation whose key is the words that partitionable threefry has drawn for one chunk."""

    def random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
        high, low = key
        if bit_width == 64:
            return ((high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)).reshape(shape)
        bits = high ^ low
        return (bits if bit_width == 32 else bits.astype(f"uint{bit_width}")).reshape(shape)

    def unsupported(*_: Any) -> Any:
        raise NotImplementedError("this generator only draws bits: it has no seed, split or fold_in")

    return jex_random.define_prng_impl(
        key_shape=(2, _CHUNK),
        seed=unsupported,
        split=unsupported,
        random_bits=random_bits,
        fold_in=unsupported,
        name="inception_jax_drawn_bits",
        tag="ijb",
    )


ImageSize: TypeAlias = int | tuple[int, int]
"""Height and width in pixels: one number for both, or a pair."""


def _image_shape(model: nn.Module, image_size: ImageSize) -> tuple[int, int, int, int]:
    """The shape of one image; ModelError unless the size is one or two whole numbers."""
    pair = (image_size, image_size) if isinstance(image_size, numbers.Integral) else image_size
    if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(n, numbers.Integral) for n in pair)):
        raise ModelError(f"image_size: {image_size!r}; give pixels, 299, or (height, width)")
    return (1, int(pair[0]), int(pair[1]), getattr(model, "in_channels", 3))


def trace_variables(model: nn.Module, image_size: ImageSize) -> Traced:
    """Lists the variables of a network without their values; no random key is made and no initializer is traced.

    Args:
      model: a network.
      image_size: height and width in pixels, one number or a pair.

    Returns:
      (what the layers of this package declare, in the order of the layers; the shapes of all variables, as
      `jax.ShapeDtypeStruct` in the place of arrays).

    Raises:
      ModelError: the image is smaller than the network's minimum.
    """
    images = jax.ShapeDtypeStruct(_image_shape(model, image_size), jnp.float32)
    with parameters.record_declarations() as declarations, traced_for_shapes():
        # A new function each time: a cached trace would declare nothing. The key is constant: nothing is drawn.
        others = jax.eval_shape(lambda images: model.init(jax.random.key(0), images), images)
    shapes = flatten_dict(flax.core.unfreeze(others))
    for leaf in declarations:
        shapes[leaf.collection, *leaf.path, leaf.name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return declarations, unflatten_dict(shapes)


def variable_shapes(model: nn.Module, image_size: ImageSize) -> dict[str, Any]:
    """The shapes of `init_variables(model, key, image_size)`, as `jax.ShapeDtypeStruct`: see `trace_variables`."""
    return trace_variables(model, image_size)[1]


def init_variables(
    model: nn.Module, key: jax.Array, image_size: ImageSize, traced: Traced | None = None
) -> dict[str, Any]:
    """Initializes a network: the tree and values of `model.init(key, zeros)`, without compiling the forward pass.

    Args:
      model: a network of this package, or one with layers of its own, whose `init` is then compiled.
      key: a PRNG key.
      image_size: height and width in pixels, one number or a pair; every size that the network accepts gives
        the same variables.
      traced: `trace_variables` of both, where the caller has it; None: it is traced here.

    Returns:
      {"params": ..., "batch_stats": ...}, the second only where the network has batch norm; arrays on the default
      device.

    Raises:
      ModelError: the image is smaller than the network's minimum, or the key or the size is none.

    Example:
      >>> import jax
      >>> from inception_jax import create_model, init_variables
      >>> model = create_model("inception_v1_bn", num_classes=10, width_multiplier=0.1, aux_heads=False)
      >>> variables = init_variables(model, jax.random.key(0), image_size=32)
      >>> sorted(variables)
      ['batch_stats', 'params']
      >>> variables["params"]["conv1"]["kernel"].shape  # height, width, in, out
      (7, 7, 3, 16)
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if shape != () if typed else dtype != jnp.uint32 or len(shape or ()) != 1:
        raise ModelError(f"key: {type(key).__name__} of shape {shape} is no PRNG key; give jax.random.key(0)")
    declarations, shapes = traced or trace_variables(model, image_size)
    if len(jax.tree.leaves(shapes)) > len(declarations):  # some are declared by layers that are not this package's
        images = _image_shape(model, image_size)
        compiled = jax.jit(lambda key: model.init(key, jnp.zeros(images, jnp.float32)))
        return flax.core.unfreeze(compiled(key))

    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    variables = {}
    for leaf in declarations:
        own = None
        if leaf.collection == "params":
            counts[leaf.path] += 1
            own = _fold_in_position(key, leaf.path, counts[leaf.path])
        variables[leaf.collection, *leaf.path, leaf.name] = leaf.initializer(own, leaf.shape, leaf.dtype)
    return unflatten_dict(variables)


def _fold_in_position(key: jax.Array, path: tuple[str, ...], number: int) -> jax.Array:
    """Flax's key of a parameter: from the SHA-1 of its layer's path and its number in the layer, from 1 on."""
    digest = hashlib.sha1()
    for part in (*(name.encode() for name in path), number.to_bytes((number.bit_length() + 7) // 8, "big")):
        digest.update(b"\0" * flax.config.flax_fix_rng_separator + part)
    position = np.frombuffer(digest.digest()[:4], ">u4").astype(np.uint32)
    if isinstance(key, jax.core.Tracer) or not _can_chunk(key):
        return jax.random.fold_in(key, position[0])
    # The same in NumPy, without compiling it.
    words = _threefry(np.asarray(jax.random.key_data(key)), np.zeros(1, np.uint32), position)
    return jax.random.wrap_key_data(jnp.asarray(np.concatenate(words)), impl=jax.random.key_impl(key))
