"""The network of generative metrics: images in, pool features, spatial features and logits out."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.data import images
from inception_jax.errors import UserError, must_be_one_of
from inception_jax.evaluation import extraction
from inception_jax.features import image_sets, network_digest, resizing, statistics
from inception_jax.models import packed_kernels
from inception_jax.models.checks import ModelError
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.platforms import traced_for_shapes
from inception_jax.training import preprocess
from inception_jax.training.compilation import Programs

SPATIAL = "mixed_6d"
"""The endpoint of sFID (mixed_6/conv of the graph of 2015: the first branch of that module)."""
SPATIAL_CHANNELS = 7
"""Channels of it that sFID reads: 17 x 17 x 7 = 2023 features (ADM's evaluator, arXiv:2103.03841)."""

_THREADS = 4


@dataclasses.dataclass(frozen=True)
class InputRule:
    """How a tool makes the network's input of an image: (resize(image) - mean) / scale, in floating point.

    Attributes:
      name: of the tool.
      resize: one of `resizing.RESIZES`.
      mean: subtracted from pixels in 0 … 255.
      scale: the divisor.
      source: the tool's code.
    """

    name: str
    resize: str
    mean: float
    scale: float
    source: str


INPUT_RULES = {
    rule.name: rule
    for rule in (
        InputRule("pytorch-fid", "torch_bilinear", 127.5, 127.5, "pytorch_fid/inception.py: InceptionV3.forward"),
        InputRule(
            "torch-fidelity",
            "tf1_bilinear",
            128,
            128,
            "torch_fidelity/feature_extractor_inceptionv3.py: forward; the graph of 2015, which TTUR and ADM run",
        ),
        InputRule(
            "clean-fid", "pillow_bicubic", 128, 128, "cleanfid/resize.py: make_resizer, and inception_torchscript.py"
        ),
        InputRule(
            "torchmetrics",
            "torch_bilinear_antialias",
            128,
            128,
            "torchmetrics/image/fid.py: NoTrainInceptionV3, antialias=True",
        ),
    )
}
"""{name of a tool: its rule}. "own" is the evaluation crop of the network's run, of bytes, for other networks."""

OWN = "own"

OUTPUTS = ("pool", "spatial", "logits")
"""What `FeatureNetwork.apply` computes."""


def _pixels_in_range(pixels: jax.Array) -> jax.Array:
    """Floating-point pixels, NaN where they are fractions that are at most 1; see `FeatureNetwork.apply`."""
    is_wrong = (pixels.max() <= 1) & (pixels != jnp.round(pixels)).any()
    if isinstance(is_wrong, jax.core.Tracer):
        return jnp.where(is_wrong, jnp.asarray(jnp.nan, pixels.dtype), pixels)
    if is_wrong:
        raise UserError(
            f"pixels: from {float(pixels.min()):.4g} to {float(pixels.max()):.4g}; 0 … 255 is needed: "
            "features.quantize_on_device(images, (-1, 1), 'down') makes them of images in -1 … 1"
        )
    return pixels


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network as generative metrics use it.

    Attributes:
      network: with its weights, such as `load_pretrained("pytorch-fid/inception-2015-12-05")` or `load_run(workdir)`.
      rule: how images become its input; None: the evaluation crop of its run.
      endpoint: whose features are compared; maps are averaged over height and width.
    """

    network: extraction.FeatureExtractor
    rule: InputRule | None
    endpoint: str
    _programs: Programs = dataclasses.field(default_factory=Programs, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (channels := getattr(self.network.input, "channels", 3)) != 3:
            raise UserError(
                f"the network reads images of {channels} channels; generative metrics compare colour images"
            )

    @property
    def rule_name(self) -> str:
        """The name of the input rule, as `--input` takes it."""
        return self.rule.name if self.rule else OWN

    @property
    def image_size(self) -> int:
        """Height and width of the input, in pixels."""
        return self.network.input.eval_image_size

    def apply(self, variables: Any, pixels: jax.Array, outputs: Sequence[str] = ("pool",)) -> dict[str, jax.Array]:
        """Computes features inside a compiled function, of images of any size that it was compiled for.

        Args:
          variables: `network.variables`.
          pixels: [B, height, width, 3], RGB, uint8 or floating point in 0 … 255, as `resizing.quantize_on_device` makes
            them; resized here by the rule. Without a rule ("own"): uint8 of the network's image size.
          outputs: of "pool" (the endpoint, [B, C]), "spatial" ([B, 17 * 17 * 7]) and "logits" (without the
            classifier's bias, [B, classes]).

        Returns:
          {output: at least float32}. Inside a compiled function, where the numbers are not known, all are NaN of
          fractions that are at most 1: those are images in 0 … 1 or -1 … 1.

        Raises:
          UserError: an unknown output, pixels of another shape or dtype, or, outside of a compiled function, fractions.
        """
        if isinstance(outputs, str) or not {*outputs} <= {*OUTPUTS}:
            raise UserError(f"outputs: {outputs!r}; a sequence is needed, of {', '.join(OUTPUTS)}")
        if pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise UserError(f"pixels: shape {pixels.shape}; [batch, height, width, 3] is needed")
        if self.rule is None and (pixels.dtype, *pixels.shape[1:3]) != (np.uint8, self.image_size, self.image_size):
            raise UserError(
                f"pixels: {pixels.dtype}{list(pixels.shape)}; with --input=own uint8 of {self.image_size} x "
                f"{self.image_size} pixels are needed; feature_network(network, 'pytorch-fid') takes others"
            )
        if jnp.issubdtype(pixels.dtype, jnp.floating):
            pixels = _pixels_in_range(pixels)
        elif pixels.dtype != np.uint8:
            raise UserError(f"pixels: {pixels.dtype}; uint8 is needed, or floating point in 0 … 255")
        return self._features(variables, pixels, outputs)

    def _features(self, variables: Any, pixels: jax.Array, outputs: Sequence[str]) -> dict[str, jax.Array]:
        if self.rule is None:
            inputs = preprocess.preprocess(
                pixels, normalization=self.network.input.normalization, dtype=self.network.input.dtype
            )
        else:
            resized = resizing.resize_on_device(pixels, self.image_size, self.rule.resize)
            dtype = self.network.input.dtype
            wide = resized.astype(np.promote_types(resized.dtype, dtype))  # a network in float64 sees no other rounding
            inputs = ((wide - self.rule.mean) / self.rule.scale).astype(dtype)
        output = extraction.apply(self.network, variables, inputs)
        return {name: self._output(name, output, variables) for name in outputs}

    def _output(self, name: str, output: InceptionOutput, variables: Any) -> jax.Array:
        if name == "pool":
            value = output.logits if self.endpoint == extraction.LOGITS else output.endpoint(self.endpoint)
            wide = value.astype(np.promote_types(value.dtype, np.float32))
            return wide.mean((1, 2)) if wide.ndim == 4 else wide
        if name == "spatial":
            value = output.endpoint(SPATIAL)[..., :SPATIAL_CHANNELS]
            return value.reshape(len(value), -1).astype(np.promote_types(value.dtype, np.float32))
        bias = variables["params"].get("classifier", {}).get("bias")
        return output.logits if bias is None else output.logits - jnp.asarray(bias, output.logits.dtype)

    def widths(self, outputs: Sequence[str]) -> dict[str, int]:
        """Returns {output: its number of features}; nothing is computed.

        Raises:
          UserError: the network has no features for sFID, or no classifier for the Inception Score.
        """

        def trace() -> dict[str, int]:
            if "logits" in outputs and not getattr(self.network.model, "num_classes", 1):
                raise UserError("is: the network has no classifier")
            image = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), np.uint8)
            try:
                with traced_for_shapes():
                    shapes = jax.eval_shape(lambda v, x: self.apply(v, x, outputs), self.network.variables, image)
            except ModelError:
                raise UserError(
                    f"sfid: its features are those of Inception-v3's {SPATIAL}, which is not here"
                ) from None
            return {name: shapes[name].shape[1] for name in outputs}

        return self._programs.get(("widths", *outputs), trace)

    def rows(
        self, read: Callable[[int], np.ndarray], start: int, stop: int, outputs: Sequence[str], batch_size: int = 32
    ) -> Iterator[dict[str, np.ndarray]]:
        """Computes features of many images, batch by batch; images are read and resized by threads meanwhile.

        Args:
          read: of a position, returns the image, uint8 [height, width, 3]; called from several threads.
          start: the first position.
          stop: the position after the last one.
          outputs: as in `apply`.
          batch_size: images per step, rounded up to a multiple of the devices.

        Yields:
          {output: [b, …]}, in order.

        Raises:
          UserError: an image cannot be read.
        """
        batch_size = self.network.devices.choose_rows(stop - start, batch_size)
        step = self._compile(batch_size, tuple(outputs))
        waiting = None
        for count, batch in self._batches(read, start, stop, batch_size):
            placed = step(self.network.variables, self.network.devices.put(batch))
            if waiting is not None:
                yield self._fetch(*waiting)
            waiting = count, placed  # read one batch late, so that the devices are busy meanwhile
        if waiting is not None:
            yield self._fetch(*waiting)

    def _fetch(self, count: int, placed: Any) -> dict[str, np.ndarray]:
        return {name: rows[:count] for name, rows in self.network.devices.get(placed[1]).items()}

    def _batches(
        self, read: Callable[[int], np.ndarray], start: int, stop: int, batch_size: int
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        def load(position: int) -> np.ndarray:
            image = read(position)
            if self.rule is None:
                return images.center_crop(image, self.image_size, self.network.input.eval_crop)
            return resizing.resize(image, self.image_size, self.rule.resize)

        dtype = np.uint8 if self.rule is None else np.float32
        side = self.image_size
        with concurrent.futures.ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            ahead = pool.map(load, range(start, min(start + batch_size, stop)))
            for first in range(start, stop, batch_size):
                loaded = list(ahead)
                ahead = pool.map(load, range(first + batch_size, min(first + 2 * batch_size, stop)))
                batch = np.zeros((batch_size, side, side, 3), dtype)
                batch[: len(loaded)] = loaded
                yield len(loaded), {"image": batch}

    def _compile(self, batch_size: int, outputs: tuple[str, ...]) -> Any:
        devices = self.network.devices

        def step(variables: Any, batch: dict[str, jax.Array]) -> tuple[dict, dict[str, jax.Array]]:
            return {}, self._features(variables, batch["image"], outputs)

        def compile_program() -> Any:
            shape = devices.abstract_batch(batch_size, self.image_size)["image"]
            shape = jax.ShapeDtypeStruct(
                shape.shape, np.uint8 if self.rule is None else np.float32, sharding=shape.sharding
            )
            prepares = packed_kernels.gains(self.network.model.convolution)
            return devices.compile_eval(step, self.network.variables, {"image": shape}, prepares=prepares)

        return self._programs.get((batch_size, outputs), compile_program)

    def read_statistics(self, path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
        """Reads a file of statistics, which are compared with features of this network.

        Args:
          path: the .npz file, of `score --statistics`, or of a tool that names no network.

        Returns:
          (mu, sigma), of as many features as the endpoint has.

        Raises:
          UserError: as `statistics.read_statistics`; or the statistics are of another input rule, network or endpoint.
        """
        mu, sigma = statistics.read_statistics(path)
        rule, network = image_sets.read_origin(os.fspath(path))
        width = self.widths(["pool"])["pool"]
        if rule not in (None, self.rule_name):
            raise UserError(f"{path}: its statistics are of --input={rule}, and this network is of {self.rule_name}")
        if network not in (None, self.digest()) or len(mu) != width:
            raise UserError(
                f"{path}: its statistics are of another network (weights, endpoint, dtype and image size: {network}, "
                f"{len(mu):,} features) than this one ({self.digest()}, {width:,})"
            )
        return mu, sigma

    def digest(self) -> str:
        """`network_digest.digest`: features with the same digest can be compared."""
        return network_digest.digest(self.network, self.rule, self.endpoint)


def feature_network(
    network: extraction.FeatureExtractor, rule: str | None = None, endpoint: str | None = None
) -> FeatureNetwork:
    """Prepares a network for generative metrics.

    Args:
      network: from `load_pretrained` or `load_run`.
      rule: a name of `INPUT_RULES`, or "own"; None: "pytorch-fid" for the network of the FID (Inception-v3 with 1008
        classes and a max pool at its end), "own" for any other.
      endpoint: of the network, or "logits"; None: the last one before the classifier.

    Raises:
      UserError: an unknown rule or endpoint.
    """
    model = network.model
    is_fid = getattr(model, "last_pool", None) == "max" and getattr(model, "num_classes", None) == 1008
    rule = rule or ("pytorch-fid" if is_fid else OWN)
    if rule not in (*INPUT_RULES, OWN):
        raise UserError(f"--input={rule}: {must_be_one_of(rule, [*INPUT_RULES, OWN])}")
    if endpoint is not None:
        extraction.feature_shapes(network, [endpoint])  # an error has the nearest name
        endpoint = extraction.own_name(network, endpoint)
    return FeatureNetwork(network, INPUT_RULES.get(rule), endpoint or extraction.last_endpoint(network))
