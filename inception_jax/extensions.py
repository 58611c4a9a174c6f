"""Extension from a recipe: registers networks, data sets, optimizers, augmentations, metrics and sinks under a name.

A config names what is registered, and in `extensions` the Python files (or modules) that register it. Every command
imports those before it builds anything: `train` from the recipe, `evaluate`, `predict` and `extract` from config.json.
A run keeps a copy of each file in its workdir, and those commands use it: a run is evaluated by the code that trained
it.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from inception_jax import metric_definitions
from inception_jax.data import datasets, images
from inception_jax.errors import UserError, must_be_one_of
from inception_jax.extension_files import FILES, MODULE_PREFIX, ORIGINS, describe_error, pickle_by_value

OPTIMIZERS: dict[str, Callable[..., Any]] = {}
"""{name: factory} of the registered optimizers; `training.optimizers` calls them."""

SINKS: dict[str, Callable[..., Any]] = {}
"""{name: factory} of the registered sinks; `runs.sinks` calls them."""

TENSORBOARD = "tensorboard"
BUILT_IN_SINKS = (TENSORBOARD, "wandb", "mlflow")


def register_model(
    name: str,
    constructor: Callable[..., Any],
    *,
    image_size: int,
    min_image_size: int = 1,
    aux_weights: Sequence[float] = (),
    source: str = "registered by a recipe",
) -> None:
    """Registers a network: `config.model.name`, and `create_model(name)`.

    Args:
      name: letters, digits and underscores.
      constructor: a subclass of `inception_jax.models.base.BaseNetwork`, or a `functools.partial` of one. It is called
        without options to learn them, and they become fields of `config.model.options`. Its call takes (images
        [B, H, W, in_channels], train, example_keys) and returns an `InceptionOutput`.
      image_size: default height and width of its input, in pixels.
      min_image_size: the smallest that it accepts.
      aux_weights: loss weight of each auxiliary head, first head first.
      source: the paper or code that it is from, for the log.

    Raises:
      UserError: the name is taken, or the constructor makes no `BaseNetwork`.

    Example:
      >>> import functools
      >>> import inception_jax
      >>> from inception_jax.models.inception_v1 import InceptionV1
      >>> wide_stem = functools.partial(InceptionV1, conv2_reduce=False, aux_heads=False)
      >>> inception_jax.register_model("v1_wide_stem", wide_stem, image_size=224, min_image_size=32)
      >>> inception_jax.create_model("v1_wide_stem", num_classes=3).conv2_reduce
      False
    """
    from inception_jax.models import registry
    from inception_jax.models.base import BaseNetwork

    _claim("model", name, registry.BUILT_IN)
    try:
        model = constructor()
    except Exception as error:
        raise UserError(
            f"model {name!r}: its constructor needs no argument, but raises {describe_error(error)}"
        ) from error
    if not isinstance(model, BaseNetwork):
        raise UserError(
            f"model {name!r}: {type(model).__name__} is no subclass of inception_jax.models.base.BaseNetwork"
        )
    registry.add(registry.ModelSpec(name, constructor, image_size, min_image_size, tuple(aux_weights), source, 0, 0, 0))


def register_dataset(
    name: str,
    splits: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    *,
    class_names: Sequence[str],
) -> None:
    """Registers a data set: `config.data.name`. Slices and sums of its splits work as of any other: "train[:90%]".

    Args:
      name: letters, digits and underscores.
      splits: {split: data}, or a function without arguments that returns it, which is called when the data set is used
        first. Data is a pair of arrays, images uint8 [n, height, width, channels] (or [n, height, width], grey) and
        labels int [n]; or an object with a length whose item i is (image, label), or a dict of both under these names,
        as of torchvision and Hugging Face: the image as uint8 [height, width, channels] or [height, width], as an image
        of Pillow or as the bytes of an image file. With `config.data.labels=multi` labels are 0 and 1 [n, classes], and
        those of an item [classes]. The channels are those of `config.model.in_channels`, or one, grey.
        With worker processes the object is pickled, with its class.
      class_names: one per class, in the order of the labels.

    Raises:
      UserError: the name is taken, there are fewer than two classes, or names are repeated.

    Example:
      >>> import numpy as np
      >>> import inception_jax
      >>> images, labels = np.zeros((6, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1, 0, 1])
      >>> splits = {"train": (images[:4], labels[:4]), "test": (images[4:], labels[4:])}
      >>> inception_jax.register_dataset("two_shades", splits, class_names=["dark", "light"])
      >>> from inception_jax.data import datasets
      >>> datasets.load("two_shades", "train[:50%]").num_examples
      2
    """
    names = [str(one) for one in class_names]
    if len(names) < 2 or len({*names}) < len(names):
        raise UserError(f"data set {name!r}: class_names = {names}; two or more different names are needed")
    _claim("data set", name, datasets.BUILT_IN)
    datasets.add(name, splits if callable(splits) else lambda: splits, names)


def register_optimizer(name: str, factory: Callable[..., Any]) -> None:
    """Registers an optimizer: `config.optimizer.name`. Those of Optax need not be registered: "optax.lamb".

    Args:
      name: letters, digits and underscores.
      factory: takes `learning_rate`, a function of the step (int32 scalar), and its own options by keyword, which
        `config.optimizer.options` sets; returns an `optax.GradientTransformation`. Where it takes `weight_decay` and
        `mask`, it gets `config.optimizer.weight_decay` for the kernels; otherwise that is added to the gradient.

    Raises:
      UserError: the name is taken.

    Example:
      >>> import optax
      >>> import inception_jax
      >>> def signed(learning_rate, scale=1.0):
      ...     return optax.chain(optax.sign_sgd(learning_rate), optax.scale(scale))
      >>> inception_jax.register_optimizer("signed", signed)
    """
    _claim("optimizer", name, BUILT_IN_OPTIMIZERS)
    OPTIMIZERS[name] = factory


BUILT_IN_OPTIMIZERS = ("sgd", "rmsprop", "adamw")


def register_augmentation(name: str, function: Callable[[np.ndarray, int, np.ndarray], np.ndarray]) -> None:
    """Registers a training augmentation: `config.augmentation.rule`.

    Args:
      name: letters, digits and underscores.
      function: takes (image uint8 [height, width, C], of `config.model.in_channels` channels, 3: RGB; image_size;
        float64 [64], uniform in [0, 1)) and returns uint8 [image_size, image_size, C]. All its randomness is in the
        64 numbers, which belong to the example's position in the run: so a resumed run, and any number of workers and
        hosts, give the same images.
        `inception_jax.data.images.augment` is the package's own crop and flip, with the same numbers. With worker
        processes the function is pickled.

    Raises:
      UserError: the name is taken.

    Example:
      >>> import cv2
      >>> import inception_jax
      >>> def shrink_and_dim(image, image_size, uniforms):
      ...     small = cv2.resize(image, (image_size, image_size), interpolation=cv2.INTER_AREA)
      ...     return cv2.convertScaleAbs(small, alpha=0.5 + 0.5 * uniforms[0])
      >>> inception_jax.register_augmentation("shrink_and_dim", shrink_and_dim)
    """
    _claim("augmentation", name, images.BUILT_IN)
    images.CUSTOM[name] = images.CustomAugmentation(name, function)


def register_metric(
    name: str,
    compute: Callable[[metric_definitions.Predictions], float],
    *,
    better: Literal["higher", "lower"] = "higher",
    title: str | None = None,
    percent: bool = False,
) -> None:
    """Registers a metric of evaluations with one label per image, which `config.checkpoint.best_metric` may name.

    Args:
      name: letters, digits and underscores; its key in metrics.jsonl and result.json.
      compute: takes the `Predictions` of a whole split (labels [n]; the classes [n, k] and probabilities [n, k] of the
        k = min(5, classes) most probable ones) and returns a number; the same for the same predictions, or early
        stopping and the processes of a run could disagree.
      better: the direction in which a network improves.
      title: in texts and plots; default: the name.
      percent: whether it is a fraction that is shown in per cent.

    Raises:
      UserError: the name is taken, or `better` is neither "higher" nor "lower".

    Example:
      >>> import inception_jax
      >>> def doubtful(predictions):
      ...     return (predictions.probabilities[:, 0] < 0.5).mean()
      >>> inception_jax.register_metric("doubtful", doubtful, better="lower", percent=True)
    """
    if better not in ("higher", "lower"):
        raise UserError(f"metric {name!r}: better = {better!r}; 'higher' or 'lower' is allowed")
    _claim("metric", name, {*metric_definitions.BUILT_IN, *metric_definitions.TO_TARGET, *_ROW_KEYS})
    metric = metric_definitions.Metric(name, title or name, better, percent, compute=compute)
    metric_definitions.METRICS[name] = metric


def register_sink(name: str, factory: Callable[..., Any]) -> None:
    """Registers a sink, to which the rows of a run are copied while it trains: `config.logging.sinks`.

    Args:
      name: letters, digits and underscores.
      factory: takes an `inception_jax.runs.sinks.SinkRun` and returns an `inception_jax.runs.sinks.Sink`, on process 0
        of a run. It is called, and works, in a thread of its own: what it raises ends the sink, not the run.

    Raises:
      UserError: the name is taken.

    Example:
      >>> import inception_jax
      >>> from inception_jax.runs.sinks import Sink
      >>> class Printer(Sink):
      ...     def write(self, step, values):
      ...         print(step, values.get("train/loss"))
      >>> inception_jax.register_sink("printer", lambda run: Printer())
    """
    _claim("sink", name, BUILT_IN_SINKS)
    SINKS[name] = factory


# Other keys of an evaluation row.
_ROW_KEYS = ("kind", "step", "epoch", "split", "weights", "count")


def _claim(kind: str, name: str, taken: Iterable[str]) -> None:
    """Records where a name is registered; the same file may register it again, as a notebook does.

    Raises:
      UserError: it is no name, the package has it, or another file has registered it.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"{kind} {name!r}: a name of letters, digits and underscores is needed")
    if name in taken:
        raise UserError(f"{kind} {name!r}: the package has one of that name; choose another")
    module = _calling_module()
    file = module.get("__file__")
    origin = os.path.realpath(file) if file and os.path.isfile(file) else None
    earlier = ORIGINS.get((kind, name), origin)
    if earlier != origin:
        raise UserError(f"{kind} {name!r}: registered by {earlier or 'an interactive session'} already")
    if origin is not None and not str(module.get("__name__")).startswith(MODULE_PREFIX):
        FILES[origin] = hashlib.sha256(Path(origin).read_bytes()).hexdigest()
        if found := sys.modules.get(str(module.get("__name__"))):
            pickle_by_value(found)
    ORIGINS[kind, name] = origin


def _calling_module() -> dict[str, Any]:
    """The globals of the first caller outside this module."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals is globals():
        frame = frame.f_back
    return frame.f_globals if frame else {}


def unknown(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: all names, the nearest, and how a recipe's own becomes one."""
    return f"{must_be_one_of(name, known)}; one of your own needs its file in config.extensions"
