"""What a publisher's network is, in our terms: the switches that make it exact, and where each array has its like."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.errors import UserError
from inception_jax.models import parameters
from inception_jax.models.registry import create_model, get_spec

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class SourceArray:
    """The publisher's array of one of our leaves.

    Attributes:
      name: the publisher's.
      layout: how the publisher lays it out.
      optional: whether files without it are whole, too; then the leaf takes `default`, a constant.
    """

    name: str
    layout: Layout
    optional: bool = False
    default: float = 0.0


@dataclasses.dataclass(frozen=True)
class Variant:
    """One publisher's variant of one network.

    Attributes:
      source: the publisher, a name of `registry.source_names()`.
      model: a name of `model_names()`.
      options: of `create_model`: the switches with which our network computes what the publisher's does.
      source_array: takes a leaf's path ("params/mixed_5b/conv_1x1/bn/bias") and shape, gives the publisher's array.
      implementation: the publisher's code that it was read from and is verified against.
      image_size: height and width in pixels of the publisher's own evaluation.
      other_size: a second size for the verification where the publisher's code does not take any; 0: it does.
      num_classes: of the published weights.
      background: whether their class 0 is "background", before ImageNet's 1000.
      aux_heads: whether the publisher's network has auxiliary heads (a file may still come without).
      ignored: patterns of array names that are no weights (counters of batches, of steps, optimizer slots).
      aliases: where some of the publisher's files have an array under another name: {that name: the source_array's}.
      prepare: where names are not the same in every file: gives a file's arrays their names that `source_array` gives.
    """

    source: str
    model: str
    options: Mapping[str, Any]
    source_array: Callable[[str, tuple[int, ...]], SourceArray]
    implementation: str
    image_size: int
    other_size: int = 0
    num_classes: int = 1000
    background: bool = False
    aux_heads: bool = False
    ignored: tuple[str, ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    def is_ignored(self, name: str) -> bool:
        """Whether an array of that name is no weight."""
        return any(re.search(pattern, name) for pattern in self.ignored)

    def weights(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Those arrays of a file that are weights, under the names that `source_array` gives."""
        arrays = self.prepare(arrays) if self.prepare else arrays
        found = {}
        for name, array in arrays.items():
            own = self.aliases.get(name, name)
            if not self.is_ignored(name):
                # A file with both names has one array too many, and the import will say so.
                found[name if own in arrays else own] = array
        return found

    def create(self, *, aux_heads: bool, **options: Any) -> Any:
        """Our network in this variant.

        Args:
          aux_heads: whether with its auxiliary heads, where it has any.
          **options: further options of `create_model`, such as num_classes, dtype, width_multiplier.
        """
        return create_model(self.model, **{**self.options, "aux_heads": aux_heads and self.aux_heads, **options})

    def leaves(self, *, aux_heads: bool, **options: Any) -> Shapes:
        """{path: shape} of our tree in this variant, in the order of declaration; no array is made."""
        return _leaves(self, aux_heads, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=256)
def _leaves_of(model: str, options: tuple[tuple[str, Any], ...]) -> Shapes:
    network = create_model(model, **dict(options))
    size = get_spec(model).min_image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with parameters.record_declarations() as declarations:
        # A fresh function each time: a trace that JAX had kept would declare nothing.
        jax.eval_shape(lambda images: network.init(jax.random.key(0), images), images)
    return {"/".join([leaf.collection, *leaf.path, leaf.name]): leaf.shape for leaf in declarations}


def _leaves(variant: Variant, aux_heads: bool, options: tuple[tuple[str, Any], ...]) -> Shapes:
    every = {**variant.options, "aux_heads": aux_heads and variant.aux_heads, **dict(options)}
    shapes = {name: value for name, value in every.items() if name not in ("dtype", "param_dtype")}
    return dict(_leaves_of(variant.model, tuple(sorted(shapes.items()))))


def split_leaf(path: str) -> tuple[str, tuple[str, ...], str]:
    """("params" or "batch_stats", the units' names, the leaf's name) of a path: the parts of "params/conv1/bn/bias"."""
    collection, *units, leaf = path.split("/")
    return collection, tuple(units), leaf


def unknown_leaf_error(path: str, source: str, model: str) -> UserError:
    """The error of a name map that meets a leaf it has no word for: a network that the publisher never had."""
    return UserError(f"{source}'s {model} has no array for {path}: with these options it is another network")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A rearrangement of an array's values; no arithmetic, so that there and back gives the same bits.

    Attributes:
      name: what to call it in a message.
      axes: `theirs.transpose(axes)` is ours.
      flattened: where theirs is a fully connected layer behind a flattened map in the order channels, rows, columns:
        that map's (channels, height, width). Ours is flattened rows, columns, channels.
      window: where theirs is a convolution over a whole map and ours a fully connected layer: (1, 1) for the 1x1
        convolutions that are slim's classifiers.
    """

    name: str
    axes: tuple[int, ...]
    flattened: tuple[int, int, int] | None = None
    window: tuple[int, int] | None = None

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """The array as our tree has it."""
        if self.flattened is not None:  # [out, C*H*W] -> [H*W*C, out]
            return theirs.reshape(-1, *self.flattened).transpose(2, 3, 1, 0).reshape(theirs.shape[1], -1)
        ours = theirs.transpose(self.axes)
        return ours.reshape(-1, ours.shape[-1]) if self.window is not None else ours

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """The array as the publisher has it."""
        if self.flattened is not None:
            channels, height, width = self.flattened
            return ours.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(ours.shape[1], -1)
        if self.window is not None:
            ours = ours.reshape(*self.window, -1, ours.shape[-1])
        return ours.transpose(np.argsort(self.axes))

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The publisher's shape of an array whose shape here is `ours`."""
        if self.flattened is not None:
            return (ours[1], ours[0])
        if self.window is not None:
            ours = (*self.window, ours[0] // math.prod(self.window), ours[1])
        return tuple(ours[axis] for axis in np.argsort(self.axes))


VECTOR = Layout("vector", (0,))
CONV_HWIO = Layout("convolution [height, width, in, out]", (0, 1, 2, 3))
CONV_OIHW = Layout("convolution [out, in, height, width]", (2, 3, 1, 0))
DEPTHWISE_HWIM = Layout("depthwise convolution [height, width, in, multiplier]", (0, 1, 2, 3))
DEPTHWISE_O1HW = Layout("depthwise convolution [in, 1, height, width]", (2, 3, 0, 1))  # multiplier 1
LINEAR_IO = Layout("fully connected [in, out]", (0, 1))
LINEAR_OI = Layout("fully connected [out, in]", (1, 0))
LINEAR_HWIO = Layout("fully connected as a convolution [1, 1, in, out]", (0, 1, 2, 3), window=(1, 1))


def linear_chw(channels: int, height: int, width: int) -> Layout:
    """[out, C*H*W], behind a map flattened channels first."""
    return Layout("fully connected [out, C*H*W]", (1, 0), flattened=(channels, height, width))
