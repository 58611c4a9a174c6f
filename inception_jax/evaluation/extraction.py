"""Extracts the features of a network's endpoints, example by example; only the endpoints named are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import jax
import numpy as np

from inception_jax.data import images
from inception_jax.errors import UserError, nearest
from inception_jax.models import packed_kernels
from inception_jax.models.base import BaseNetwork
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.platforms import traced_for_shapes
from inception_jax.training import preprocess
from inception_jax.training.network_setup import NetworkInput
from inception_jax.training.parallel import Compiled, Devices

DTYPES = ("float32", "float16")
LOGITS = "logits"


class FeatureExtractor(Protocol):
    """The members of `trained_network.TrainedNetwork` that are read here; its method `features` calls this module."""

    @property
    def model(self) -> BaseNetwork:
        """Its definition."""

    @property
    def variables(self) -> Any:
        """Its weights."""

    @property
    def devices(self) -> Devices:
        """That have its weights."""

    @property
    def input(self) -> NetworkInput:
        """How images become its input."""


@dataclasses.dataclass(frozen=True)
class FeatureShape:
    """Shape and dtype of the features of one example at one endpoint.

    Attributes:
      shape: without the batch axis.
      dtype: "float32" or "float16".
    """

    shape: tuple[int, ...]
    dtype: str


def last_endpoint(network: FeatureExtractor) -> str:
    """The name of the last endpoint before the classifier; for most networks the global average pool, [features].

    Raises:
      UserError: the network, one of a user's own, names no endpoint.
    """
    names: list[str] = []

    def run(variables: Any, images: jax.Array) -> jax.Array:
        output = cast(InceptionOutput, network.model.apply(variables, images, train=False))
        names.extend(output.endpoints)  # here, where they are in order: jax sorts the keys of what is returned
        return output.logits

    _eval_shape(run, network)
    if not names:
        raise UserError("the network names no endpoint; --endpoints=logits is what it has")
    return names[-1]


def _eval_shape(function: Callable[[Any, jax.Array], Any], network: FeatureExtractor) -> Any:
    """`jax.eval_shape` of a function of weights and images, also in a trace, and outside of a mesh that is set."""
    size = network.input.eval_image_size
    images = jax.ShapeDtypeStruct((1, size, size, network.input.channels), np.dtype(network.model.dtype))
    with traced_for_shapes(), jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return jax.eval_shape(function, network.variables, images)


def _output_shapes(network: FeatureExtractor) -> InceptionOutput:
    """The network's output without its numbers."""
    found = _eval_shape(lambda variables, images: network.model.apply(variables, images, train=False), network)
    return cast(InceptionOutput, found)


def own_name(network: FeatureExtractor, endpoint: str) -> str:
    """The network's own name of an endpoint, which may be named as in TF-slim."""
    return _output_shapes(network).aliases.get(endpoint, endpoint)


def feature_shapes(
    network: FeatureExtractor, endpoints: Sequence[str], *, pool: bool = False, dtype: str = "float32"
) -> dict[str, FeatureShape]:
    """Shapes and dtypes of what `features` yields, by endpoint; nothing is computed.

    Args:
      network: from `trained_network.load`.
      endpoints: as in `features`.
      pool: as in `features`.
      dtype: as in `features`.

    Raises:
      UserError: an unknown dtype, or an endpoint that the network does not have (the message has the nearest name), or
        the same endpoint twice.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    if not endpoints:
        raise UserError("endpoints: at least one name is needed")
    output = _output_shapes(network)
    own: dict[str, str] = {}
    for name in endpoints:
        meant = output.aliases.get(name, name)
        if meant != LOGITS and meant not in output.endpoints:
            known = [LOGITS, *output.endpoints, *(alias for alias in output.aliases)]
            raise UserError(
                f"endpoint {name!r} is unknown{nearest(name, known)}; endpoints: "
                f"{', '.join([*output.endpoints, LOGITS])}"
            )
        if meant in own:
            raise UserError(f"endpoint {name!r} is another name of {own[meant]!r}: name it once")
        own[meant] = name
    found = {name: output.logits if meant == LOGITS else output.endpoints[meant] for meant, name in own.items()}
    return {name: FeatureShape(leaf.shape[-1:] if pool else leaf.shape[1:], dtype) for name, leaf in found.items()}


def apply(network: FeatureExtractor, variables: Any, inputs: jax.Array) -> InceptionOutput:
    """The forward pass of features, which are compared with those of other devices: in full float32 on every one.

    JAX's default is TF32 on a GPU, and one pass of bfloat16 on a TPU.

    Args:
      network: from `trained_network.load`.
      variables: its weights.
      inputs: normalized, [B, H, W, C].
    """
    with jax.default_matmul_precision("highest"):
        return cast(InceptionOutput, network.model.apply(variables, inputs, train=False))


def compile_step(
    network: FeatureExtractor, endpoints: Sequence[str], *, batch_size: int, pool: bool = False, dtype: str = "float32"
) -> Compiled:
    """Compiles the step that computes the endpoints of a batch.

    Args:
      network: from `trained_network.load`.
      endpoints: as in `features`.
      batch_size: as in `features`.
      pool: as in `features`.
      dtype: as in `features`.

    Raises:
      UserError: as `features`.
    """
    feature_shapes(network, endpoints, pool=pool, dtype=dtype)
    network.devices.check_batch("evaluation.batch_size", batch_size)

    def step(variables: Any, batch: dict[str, jax.Array]) -> tuple[dict, dict[str, jax.Array]]:
        inputs = preprocess.preprocess(
            batch["image"], normalization=network.input.normalization, dtype=network.input.dtype
        )
        output = apply(network, variables, inputs)
        rows = {name: output.logits if name == LOGITS else output.endpoint(name) for name in endpoints}
        return {}, {name: _shaped(value, pool).astype(dtype) for name, value in rows.items()}

    shape = network.devices.abstract_batch(batch_size, network.input.eval_image_size, channels=network.input.channels)
    prepares = packed_kernels.gains(network.model.convolution)
    return network.devices.compile_eval(step, network.variables, {"image": shape["image"]}, prepares=prepares)


def features(
    network: FeatureExtractor,
    batches: Iterable[dict[str, np.ndarray]],
    endpoints: Sequence[str],
    *,
    batch_size: int,
    pool: bool = False,
    dtype: str = "float32",
    step: Compiled | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Features of every example, batch by batch, in the order of the batches.

    Args:
      network: from `trained_network.load`.
      batches: as from `data.pipeline.EvalPipeline`: "image" uint8 [B, H, W, C] of the network's size, "label"
        [B] (or [B, classes] of several labels), "mask" [B].
      endpoints: names, the network's own or TF-slim's, and "logits".
      batch_size: B, a multiple of the devices.
      pool: whether to average maps [H, W, C] over H and W, to [C].
      dtype: "float32" or "float16", of the result; float16 gives infinity above 65,504.
      step: from `compile_step` with the same arguments; None: it is compiled here.

    Yields:
      For each batch with an example in it: {"index": int64 [b], the example's position; "label": int32 [b];
      endpoint: [b, ...]} of the examples whose mask is True.

    Raises:
      UserError: as `feature_shapes`, or a batch size that does not divide over the devices.
    """
    step = step or compile_step(network, endpoints, batch_size=batch_size, pool=pool, dtype=dtype)
    waiting = None
    for k, batch in enumerate(batches):
        placed = step(network.variables, network.devices.put({"image": batch["image"]}))
        if waiting is not None:
            yield from _rows(network, endpoints, *waiting)
        waiting = k * batch_size, batch, placed  # read one batch late, so that the devices are busy meanwhile
    if waiting is not None:
        yield from _rows(network, endpoints, *waiting)


def image_batches(
    inputs: Iterable[np.ndarray], batch_size: int, image_size: int, crop: images.EvalCrop, channels: int = 3
) -> Iterator[dict[str, np.ndarray]]:
    """Makes batches for `features` from images of any size; labels are -1.

    Args:
      inputs: uint8 [height, width, channels] each; read one by one.
      batch_size: rows of each batch; the last one is padded with black images, whose mask is False.
      image_size: height and width of the result, in pixels.
      crop: the evaluation crop.
      channels: of each image.
    """
    batch, filled = _empty(batch_size, image_size, channels), 0
    for image in inputs:
        images.center_crop(image, image_size, crop, out=batch["image"][filled])
        batch["mask"][filled] = True
        filled += 1
        if filled == batch_size:
            yield batch
            batch, filled = _empty(batch_size, image_size, channels), 0
    if filled:
        yield batch


def _empty(batch_size: int, image_size: int, channels: int) -> dict[str, np.ndarray]:
    return {
        "image": np.zeros((batch_size, image_size, image_size, channels), np.uint8),
        "label": np.full(batch_size, -1, np.int32),
        "mask": np.zeros(batch_size, bool),
    }


def _shaped(x: jax.Array, pool: bool) -> jax.Array:
    """Converts to at least float32, and averages maps over height and width if `pool`."""
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    return wide.mean((1, 2)) if pool and x.ndim == 4 else wide


def _rows(
    network: FeatureExtractor, endpoints: Sequence[str], first: int, batch: dict, outputs: Any
) -> Iterator[dict[str, np.ndarray]]:
    mask = batch["mask"]
    if mask.any():
        rows = network.devices.get(outputs[1])
        yield {
            "index": first + np.flatnonzero(mask).astype(np.int64),
            "label": batch["label"][mask],
            **{name: rows[name][mask] for name in endpoints},  # compiled functions sort the keys of what they return
        }
