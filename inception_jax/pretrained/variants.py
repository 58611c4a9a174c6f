"""Published variants of the networks: `create_model` options, and the publisher's name and layout of every array.

A `Variant` describes one publisher's version of one network. With its options our network computes the same function
as the publisher's; its name map gives for each leaf of our variables the publisher's array (`SourceArray`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from inception_jax.errors import UserError
from inception_jax.models.base import BaseNetwork
from inception_jax.models.initialization import trace_variables
from inception_jax.models.registry import create_model, get_spec

Shapes = dict[str, tuple[int, ...]]

STEM = ("conv2d_1a_3x3", "conv2d_2a_3x3", "conv2d_2b_3x3", "conv2d_3b_1x1", "conv2d_4a_3x3")
"""Our convolutions in the stem of Inception-v3; the first three are Inception-v4's."""
DOUBLE_3X3 = ("double_3x3_reduce", "double_3x3_1", "double_3x3_2")
"""Our convolutions in the branch of two 3x3, which most modules have."""


@dataclasses.dataclass(frozen=True)
class SourceArray:
    """The publisher's array that holds one leaf of our variables.

    Attributes:
      name: the publisher's name of the array.
      layout: the publisher's order of axes.
      optional: whether a file without the array is complete too.
      default: value of all elements of the leaf where an optional array is missing.
    """

    name: str
    layout: Layout
    optional: bool = False
    default: float = 0.0


class NameMap(Protocol):
    """A publisher's names of the arrays of one network."""

    @property
    def layers(self) -> Mapping[str, Any]:
        """{path of our layer: the publisher's name of it}."""

    def __call__(self, path: str, shape: tuple[int, ...]) -> SourceArray:
        """Returns the publisher's array for a leaf.

        Args:
          path: of the leaf, such as "params/mixed_5b/conv_1x1/bn/bias".
          shape: of the leaf.

        Raises:
          UserError: the publisher's network has no such array.
        """


@dataclasses.dataclass(frozen=True)
class NamingRules:
    """Rules that select the weights among the arrays of a publisher's files, and make their names uniform.

    Attributes:
      ignored: regular expressions; a match is not a weight (counters of batches or steps, optimizer slots).
      aliases: {name in some of the files: name that `Variant.source_array` gives}.
      prepare: renames or reshapes the arrays of a file whose names or shapes depend on when it was written.
    """

    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    def apply(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Returns {uniform name: array} of those arrays that are weights."""
        arrays = self.prepare(arrays) if self.prepare else arrays
        aliases = dict(self.aliases)
        weights = {}
        for name, array in arrays.items():
            uniform = aliases.get(name, name)
            if not any(re.search(pattern, name) for pattern in self.ignored):
                # A file with both names has one array too many; the import reports it.
                weights[name if uniform in arrays else uniform] = array
        return weights


_LEAVES_OF_A_LAYER = (
    *(("params", leaf) for leaf in ("kernel", "depthwise_kernel", "pointwise_kernel", "bias", "bn/scale", "bn/bias")),
    ("batch_stats", "bn/mean"),
    ("batch_stats", "bn/var"),
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One publisher's variant of one network.

    Attributes:
      source: the publisher, a name of `registry.source_names()`.
      model: a name of `model_names()`.
      options: options of `create_model` with which our network computes the same function as the publisher's.
      source_array: the name map.
      implementation: the publisher's code that the variant was read from and is verified against.
      image_size: height and width in pixels of the publisher's own evaluation.
      other_size: a second size for the verification where the publisher's code does not accept any; 0: it does.
      num_classes: of the published weights.
      background: whether class 0 of the published weights is "background", before ImageNet's 1000.
      aux_heads: whether the publisher's network has auxiliary heads (a file may still come without).
      naming: which arrays of the publisher's files are weights, and under which uniform names.
    """

    source: str
    model: str
    options: Mapping[str, Any]
    source_array: NameMap
    implementation: str
    image_size: int
    other_size: int = 0
    num_classes: int = 1000
    background: bool = False
    aux_heads: bool = False
    naming: NamingRules = NamingRules()

    @functools.cached_property
    def possible_names(self) -> dict[str, frozenset[str]]:
        """{path of a layer: every name that its arrays may have in the publisher's files}.

        Which of these arrays the network has, and their shapes, only `leaves` knows, which traces the network.
        """
        names: dict[str, frozenset[str]] = {}
        for layer in self.source_array.layers:
            found = set()
            for collection, leaf in _LEAVES_OF_A_LAYER:
                with contextlib.suppress(UserError):  # the publisher's layer has no such array
                    found.add(self.source_array(f"{collection}/{layer}/{leaf}", (1,)).name)
            names[layer] = frozenset(found)
        return names

    def create(self, *, aux_heads: bool, **options: Any) -> BaseNetwork:
        """Creates our network with this variant's options.

        Args:
          aux_heads: whether with its auxiliary heads, where the variant has any.
          **options: further options of `create_model`, such as num_classes, dtype, width_multiplier.

        Returns:
          The Flax module.
        """
        return create_model(self.model, **{**self.options, "aux_heads": aux_heads and self.aux_heads, **options})

    def leaves(self, *, aux_heads: bool, **options: Any) -> Shapes:
        """Returns {path: shape} of our variables for this variant, in the order of declaration; makes no array.

        Args:
          aux_heads: as for `create`.
          **options: as for `create`.
        """
        options = {name: value for name, value in options.items() if name not in ("dtype", "param_dtype")}
        network = self.create(aux_heads=aux_heads, **options)  # an unknown option or value is an error here
        heads = network.aux_heads and network.num_classes > 0
        every = {**self.options, **options}
        traced = {name: value for name, value in every.items() if name not in _SAME_SHAPES}
        return {
            path: (*shape[:-1], network.num_classes) if is_classifier_leaf(path) else shape
            for path, shape in _trace_leaves(self.model, tuple(sorted(traced.items()))).items()
            if (heads or not is_aux_leaf(path))
            and (network.num_classes or not is_classifier_leaf(path))
            and (network.bn_scale or not path.endswith("/bn/scale"))
        }


def is_classifier_leaf(path: str) -> bool:
    """Returns whether a leaf belongs to a classifier, also an auxiliary head's: its last axis is the classes."""
    return path.split("/")[-2] == "classifier"


def is_aux_leaf(path: str) -> bool:
    """Returns whether a leaf belongs to an auxiliary head."""
    return path.split("/")[1].startswith("aux")


class FileArrays(Mapping[str, Any]):
    """The arrays of one file by the publisher's names, with the weights under each variant's uniform names.

    `weights` applies regular expressions to every name; it does so once per `NamingRules`, not once per variant and
    call. The mapping must not change while this object is in use.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        """Wraps the arrays.

        Args:
          arrays: {publisher's name: array}, as in the file.
        """
        self._arrays = arrays
        self._weights: dict[NamingRules, dict[str, Any]] = {}

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> FileArrays:
        """Wraps the arrays, unless they are wrapped already."""
        return arrays if isinstance(arrays, cls) else cls(arrays)

    def __getitem__(self, name: str) -> Any:
        """The array of a name in the file."""
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the file."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """The number of arrays in the file, weights or not."""
        return len(self._arrays)

    def weights(self, variant: Variant) -> Mapping[str, Any]:
        """{name that `variant.source_array` gives: array} of the file's weights."""
        rules = variant.naming
        if rules not in self._weights:
            self._weights[rules] = rules.apply(self._arrays)
        return self._weights[rules]


# Options that change no shape, or only which leaves there are (aux_heads, bn_scale) or how many classes they have:
# the publishers' variants differ in little else, so that most of them share one trace.
_SAME_SHAPES = frozenset(
    {
        "num_classes", "aux_heads", "dropout_rate", "aux_dropout_rate", "dtype", "param_dtype", "remat", "bn_scale",
        "bn_epsilon", "bn_momentum", "bn_unbiased_variance", "count_include_pad", "conv1_padding", "reduction_padding",
        "pool_rounding", "pool_padding", "pool4_window", "last_pool", "aux_pool", "lrn_size", "lrn_alpha", "lrn_beta",
        "lrn_k", "fuse_siblings", "convolution",
    }
)  # fmt: skip


@functools.lru_cache(maxsize=256)
def _trace_leaves(model: str, options: tuple[tuple[str, Any], ...]) -> Shapes:
    """Returns {path: shape} of a network with 1000 classes, and with everything that `_SAME_SHAPES` can leave out."""
    network = create_model(model, **dict(options))
    declarations, _ = trace_variables(network, get_spec(model).min_image_size)
    return {"/".join([leaf.collection, *leaf.path, leaf.name]): leaf.shape for leaf in declarations}


def by_model(*variants: Variant) -> dict[str, Variant]:
    """Returns {model: variant}."""
    return {variant.model: variant for variant in variants}


def split_leaf(path: str) -> tuple[str, str, str]:
    """Splits a leaf's path: "params/aux/conv1/bn/bias" is ("params", "aux/conv1", "bn/bias")."""
    collection, *units, leaf = path.split("/")
    if units[-1] == "bn":
        leaf = f"{units.pop()}/{leaf}"
    return collection, "/".join(units), leaf


def unknown_leaf_error(path: str, source: str, model: str) -> UserError:
    """Makes the error of a name map for a leaf that it does not know: the publisher never had such a network."""
    return UserError(f"{source}'s {model} has no array for {path}: with these options it is another network")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A rearrangement of an array's values without arithmetic, so that conversion and back gives the same bits.

    Attributes:
      name: for messages.
      axes: `theirs.transpose(axes)` is ours.
      flattened: where theirs is a fully connected layer behind a feature map flattened in the order channels, rows,
        columns: that map's (channels, height, width). Ours is flattened rows, columns, channels.
      window: where theirs is a convolution over a whole feature map and ours a fully connected layer: (1, 1) for the
        1x1 convolutions that are slim's classifiers.
    """

    name: str
    axes: tuple[int, ...]
    flattened: tuple[int, int, int] | None = None
    window: tuple[int, int] | None = None

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """Converts the publisher's array to our layout."""
        if self.flattened is not None:  # [out, C*H*W] -> [H*W*C, out]
            return theirs.reshape(-1, *self.flattened).transpose(2, 3, 1, 0).reshape(theirs.shape[1], -1)
        ours = theirs.transpose(self.axes)
        return ours.reshape(-1, ours.shape[-1]) if self.window is not None else ours

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Converts our array to the publisher's layout."""
        if self.flattened is not None:
            channels, height, width = self.flattened
            return ours.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(ours.shape[1], -1)
        if self.window is not None:
            ours = ours.reshape(*self.window, -1, ours.shape[-1])
        return ours.transpose(np.argsort(self.axes))

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the publisher's shape of an array whose shape here is `ours`."""
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
    """Makes the layout [out, C*H*W] of a layer behind a (channels, height, width) map flattened channels first."""
    return Layout("fully connected [out, C*H*W]", (1, 0), flattened=(channels, height, width))
