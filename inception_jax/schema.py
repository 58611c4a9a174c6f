"""The fields of a config: defaults, meanings with units, and what each may hold."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Field:
    """One leaf of the schema.

    Attributes:
      default: the value of a recipe that says nothing; a type instead of a value means "unset, and of that type".
      doc: what the field means, with its unit.
      allowed: what a value must satisfy, and the same in words; None where the type is all.
    """

    default: Any
    doc: str
    allowed: tuple[Callable[[Any], bool], str] | None = None


def _one_of(*names: str):
    return (lambda value: value in names), "one of " + ", ".join(repr(name) for name in names)


def parse_batch_norm(value: str) -> tuple[str, int | None]:
    """Parses a value of `parallel.batch_norm`.

    Returns:
      ("local", None), ("global", None), ("groups", N) or ("examples", N).

    Raises:
      ValueError: the value is none of "local", "global", "groups:N" and "examples:N", N > 0.
    """
    kind, colon, size = value.partition(":")
    if kind in ("local", "global") and not colon:
        return kind, None
    if kind in ("groups", "examples") and size.isdigit() and int(size) > 0:
        return kind, int(size)
    raise ValueError(f"{value!r} is not 'local', 'global', 'groups:N' or 'examples:N'")


def _is_batch_norm(value: str) -> bool:
    try:
        parse_batch_norm(value)
    except ValueError:
        return False
    return True


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return True


def _are_multipliers(value: tuple) -> bool:
    return all(
        isinstance(pair, tuple | list)
        and len(pair) == 2
        and _is_pattern(pair[0])
        and isinstance(pair[1], int | float)
        and 0 <= pair[1] < math.inf
        for pair in value
    )


_POSITIVE = (lambda value: value > 0), "greater than 0"
_NOT_NEGATIVE = (lambda value: value >= 0), "0 or greater"
_FRACTION = (lambda value: 0 <= value < 1), "at least 0 and less than 1"
_INTERVAL = (lambda value: len(value) == 2 and 0 < value[0] <= value[1]), "two numbers, 0 < low <= high"
_AREA = (lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= 1), "two numbers, 0 < low <= high <= 1"
_WEIGHTS = (lambda value: all(weight >= 0 for weight in value)), "numbers of 0 or greater"
_PATTERNS = (lambda value: all(map(_is_pattern, value))), "regular expressions"
_DTYPE = _one_of("float32", "bfloat16", "float64")

SCHEMA: dict[str, Any] = {
    "seed": Field(
        0,
        "seeds the initial parameters, the order of the data, every augmentation and every dropout mask",
        _NOT_NEGATIVE,
    ),
    "batch_size": Field(64, "examples per step, over all devices and processes", _POSITIVE),
    "num_epochs": Field(float, "length of the run, in passes over the training split", _POSITIVE),
    "num_steps": Field(int, "length of the run, in steps; where set, it wins over num_epochs", _POSITIVE),
    "model": {
        "name": Field("inception_v1", "a name of inception_jax.model_names()"),
        "num_classes": Field(
            int,
            "classes of the classifier; unset: as many as the data set has; 0: no classifier, in "
            "what convert makes of weights without one",
            _NOT_NEGATIVE,
        ),
        "dtype": Field("float32", "what the network computes in", _DTYPE),
        "param_dtype": Field("float32", "what the parameters are kept in", _DTYPE),
        "width_multiplier": Field(1.0, "scales the number of filters of every layer", _POSITIVE),
        "aux_heads": Field(True, "whether the auxiliary heads are built and trained"),
        "dropout_rate": Field(float, "before the classifier; unset: the paper's", _FRACTION),
        "aux_dropout_rate": Field(float, "inside the auxiliary heads; unset: the paper's", _FRACTION),
        "options": {},  # filled from the models' own switches by `default()`
    },
    "data": {
        "name": Field("digits", "digits, fashion_mnist, imagenet2012, folder:PATH, synthetic, or a prepared TFDS name"),
        "data_dir": Field(str, "where prepared data sets lie; unset: TFDS_DATA_DIR, then ~/tensorflow_datasets"),
        "train_split": Field("train", "the split that is trained on"),
        "eval_split": Field("test", "the split that is evaluated on"),
        "image_size": Field(int, "height and width in pixels; unset: the model's own", _POSITIVE),
        "normalization": Field("inception", "how uint8 pixels become the network's input, on the device"),
        "threads": Field(int, "decoding threads per worker; unset: at most 8, as many as there are cores", _POSITIVE),
        "workers": Field(int, "decoding processes; 0: none; unset: 0 up to 8 cores, then one per 4", _NOT_NEGATIVE),
        "prefetch": Field(2, "batches that wait on the device, ahead of the step", _POSITIVE),
    },
    "augmentation": {
        "rule": Field(
            "area_aspect",
            "area_aspect: a crop of random area and aspect; random_crop: a square at a random "
            "place of the picture whose shorter side was resized; none: the evaluation crop",
            _one_of("area_aspect", "random_crop", "none"),
        ),
        "area": Field((0.08, 1.0), "area_aspect: smallest and largest part of the picture's area", _AREA),
        "aspect": Field((3 / 4, 4 / 3), "area_aspect: smallest and largest width / height", _INTERVAL),
        "resize": Field(256, "random_crop: the shorter side before the crop, in pixels", _POSITIVE),
        "flip": Field(True, "mirror every second picture, left to right"),
        "interpolation": Field("bilinear", "of the resize", _one_of("bilinear", "area", "nearest", "cubic", "random")),
    },
    "optimizer": {
        "name": Field("sgd", "sgd with momentum, rmsprop (TensorFlow's) or adamw", _one_of("sgd", "rmsprop", "adamw")),
        "learning_rate": Field(0.01, "the schedule's base rate", _NOT_NEGATIVE),
        "momentum": Field(0.9, "sgd, rmsprop: decay of the velocity", _FRACTION),
        "nesterov": Field(False, "sgd: Nesterov's form of momentum"),
        "decay": Field(0.9, "rmsprop: decay of the mean square", _FRACTION),
        "epsilon": Field(float, "rmsprop: inside the root, unset: 1.0; adamw: beside it, unset: 1e-8", _POSITIVE),
        "b1": Field(0.9, "adamw: decay of the first moment", _FRACTION),
        "b2": Field(0.999, "adamw: decay of the second moment", _FRACTION),
        "weight_decay": Field(
            0.0, "w in ½·w·‖kernel‖² (sgd, rmsprop) or decoupled (adamw); kernels only", _NOT_NEGATIVE
        ),
        "clip_norm": Field(
            float, "largest global norm of the gradient, weight decay included; unset: no clipping", _POSITIVE
        ),
        "bias_learning_rate": Field(1.0, "factor on the learning rate of biases (Caffe's GoogLeNet: 2)", _NOT_NEGATIVE),
        "freeze": Field(
            (), "patterns of parameter paths that stay as they are, such as ('^conv1/', '^inception_3')", _PATTERNS
        ),
        "frozen_batch_norm": Field(
            "running",
            "what a batch norm whose parameters are all frozen normalises by: "
            "running (its running statistics, which stay) or batch (as in training)",
            _one_of("running", "batch"),
        ),
        "learning_rate_multipliers": Field(
            (),
            "(pattern, factor) pairs on the learning rate of the parameters whose "
            "path the pattern is found in; the first that matches counts, "
            "and bias_learning_rate only where none does",
            (_are_multipliers, "pairs of a regular expression and a number from 0 on"),
        ),
        "accumulation": Field(1, "parts that a device's share of the batch is taken in, one after another", _POSITIVE),
    },
    "schedule": {
        "name": Field(
            "constant",
            "shape of the learning rate over the run",
            _one_of("constant", "exponential", "polynomial", "cosine"),
        ),
        "decay_rate": Field(0.94, "exponential: factor per decay_epochs", (lambda v: 0 < v <= 1, "in (0, 1]")),
        "decay_epochs": Field(2.0, "exponential: epochs per factor", _POSITIVE),
        "staircase": Field(True, "exponential: in steps, or continuously"),
        "power": Field(0.5, "polynomial: (1 - step / steps) ** power", _POSITIVE),
        "end_learning_rate": Field(0.0, "exponential: the floor; polynomial, cosine: the last rate", _NOT_NEGATIVE),
        "warmup_epochs": Field(0.0, "epochs in which a factor on the schedule grows, linearly, to 1", _NOT_NEGATIVE),
        "warmup_start": Field(0.1, "the factor at which the warm-up begins", _FRACTION),
    },
    "loss": {
        "label_smoothing": Field(0.0, "probability spread evenly over all classes", _FRACTION),
        "aux_weights": Field(tuple, "weight of each auxiliary head's loss; unset: the paper's", _WEIGHTS),
    },
    "ema": {
        "decay": Field(0.0, "of the running average of parameters and batch statistics; 0: none is kept", _FRACTION),
        "num_updates": Field(True, "TensorFlow's rule: decay_t = min(decay, (1 + t) / (10 + t))"),
    },
    "initialize": {
        "checkpoint": Field(str, "workdir or checkpoint whose weights a new run begins with; unset: random ones"),
        "weights": Field(str, "raw or ema; unset: ema where the checkpoint has it", _one_of("raw", "ema")),
        "step": Field(str, "newest, best or a step; unset: newest"),
        "new": Field(
            (),
            "patterns of parameter paths that begin at random all the same; a classifier of another "
            "number of classes always does",
            _PATTERNS,
        ),
    },
    "faults": {
        "max_skipped_steps": Field(
            0,
            "steps in a row that may be skipped, without an update, because their loss or "
            "gradient is not finite or the loss above loss_limit; one more ends the run",
            _NOT_NEGATIVE,
        ),
        "loss_limit": Field(
            float, "a step whose mean loss is above it has diverged; unset: any finite loss is good", _POSITIVE
        ),
        "max_corrupt": Field(
            0,
            "pictures that cannot be decoded and are left out of loss, gradient and accuracy, "
            "counted each time they are drawn; one more ends the run",
            _NOT_NEGATIVE,
        ),
        "stall_warning_seconds": Field(
            60.0, "without a batch, until the log says what the input is waiting for", _POSITIVE
        ),
        "stall_limit_seconds": Field(
            1800.0, "without a batch, until the run saves and ends with exit code 7", _POSITIVE
        ),
    },
    "parallel": {
        "mode": Field("jit", "jit (of shard_map) or pmap: the same numbers", _one_of("jit", "pmap")),
        "devices": Field(int, "how many of the devices to use; unset: all", _POSITIVE),
        "batch_norm": Field(
            "local",
            "whose statistics an example is normalised with: local (its device's, as in the "
            "papers), global, groups:N (of N neighbouring devices) or examples:N (of N neighbouring "
            "examples, the same on any number of devices; under accumulation of one part of a share)",
            (_is_batch_norm, "'local', 'global', 'groups:N' or 'examples:N'"),
        ),
    },
    "evaluation": {
        "every_epochs": Field(1.0, "epochs between evaluations; there is always one at the end", _POSITIVE),
        "batch_size": Field(int, "examples per evaluation step; unset: batch_size", _POSITIVE),
        "protocol": Field("single", "how a picture is cropped and its predictions averaged"),
        "crop": Field(
            "center",
            "center: the shorter side resized, then the middle; torchvision: the same, with the "
            "offsets of torchvision and timm; squash: both sides resized, ratio not kept, then the middle "
            "(Caffe, pytorch-fid); central_fraction: TensorFlow's, the middle crop_fraction of each side, "
            "then resized",
            _one_of("center", "torchvision", "squash", "central_fraction"),
        ),
        "crop_fraction": Field(
            0.875,
            "how much of the picture the evaluation crop keeps; sides are resized to "
            "image_size / crop_fraction, unless resize is set",
            (lambda value: 0 < value <= 1, "in (0, 1]"),
        ),
        "resize": Field(
            int,
            "center, torchvision, squash: the side before the crop, in pixels, in place of "
            "crop_fraction; unset: image_size / crop_fraction",
            _POSITIVE,
        ),
        "interpolation": Field(
            "bilinear",
            "of the evaluation's resize: OpenCV's bilinear, area, nearest or cubic; "
            "pil_bilinear, pil_bicubic: Pillow's, which smooths (torchvision, timm); tf_bilinear: "
            "TensorFlow 1's",
            _one_of("bilinear", "area", "nearest", "cubic", "pil_bilinear", "pil_bicubic", "tf_bilinear"),
        ),
    },
    "checkpoint": {
        "every_epochs": Field(1.0, "epochs between checkpoints; there is always one at the end", _POSITIVE),
        "keep": Field(2, "latest checkpoints that are kept, beside the best", (lambda value: value >= 2, "2 or more")),
        "best_metric": Field("top1", "of the evaluation, by which the best is kept", _one_of("top1", "top5", "loss")),
    },
    "logging": {
        "every_steps": Field(10, "steps between rows of metrics.jsonl", _POSITIVE),
        "tensorboard": Field(True, "also write TensorBoard events"),
        "pictures": Field(True, "draw learning curves, confusion matrix, predictions and filters"),
    },
}


def fields(schema: Mapping[str, Any] = SCHEMA, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """(dotted path, field) of every leaf of the schema; the models' own switches are not among them."""
    for name, entry in schema.items():
        if isinstance(entry, Field):
            yield f"{prefix}{name}", entry
        else:
            yield from fields(entry, f"{prefix}{name}.")
