"""Prepares a data set by a TFDS builder of the user's own, without TensorFlow: OpenCV encodes arrays as PNG."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from inception_jax.errors import UserError, nearest


def prepare(name: str, module: str, data_dir: Path) -> tuple[Path, bool]:
    """Imports a module, and has the builder in it prepare its data set as ArrayRecord.

    Args:
      name: of the data set, or NAME/CONFIG; that of the builder's class in snake_case.
      module: a Python file, or the dotted name of a module, that defines the `tfds.core.GeneratorBasedBuilder`.
      data_dir: folder of prepared data sets.

    Returns:
      The folder of the data set, and whether it was there before: then TFDS leaves it as it is.

    Raises:
      UserError: the module or the builder fails, or there is no such builder in it.
    """
    before = set(tfds.core.registered.list_imported_builders())
    _import(module)
    own = sorted(set(tfds.core.registered.list_imported_builders()) - before)
    base, _, config = name.partition("/")
    if base not in own:
        defined = ", ".join(own) or "no builder"
        raise UserError(f"--import={module}: defines {defined}, not {base!r}{nearest(base, own)}")
    refused: list[str] = []  # TFDS repeats an exception below many lines that quote the example
    try:
        builder = tfds.core.registered.imported_builder_cls(base)(
            data_dir=os.fspath(data_dir), file_format="array_record", **({"config": config} if config else {})
        )
        for feature in _images(builder.info.features):
            feature.encode_example = functools.partial(_encode, feature, feature.encode_example, refused)
        was_there = Path(builder.data_dir).exists()
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # whatever a user's builder raises
        if refused:
            raise UserError(f"--import={module}: {name}: {refused[-1]}") from error
        reason = " ".join(str(error).split())
        hint = ""
        if "tensorflow" in reason.lower() and isinstance(error, (ImportError, AttributeError)):
            hint = "; it needs TensorFlow: pip install 'inception_jax[tf]'"
        raise UserError(f"--import={module}: {name}: {type(error).__name__}: {reason}{hint}") from error
    return Path(builder.data_dir), was_there


def _import(module: str) -> None:
    """Imports a file or a module by its dotted name."""
    try:
        if not module.endswith(".py"):
            if os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
            importlib.import_module(module)
            return
        path = os.path.realpath(module)
        name = f"inception_jax_builder_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    except Exception as error:  # whatever a user's module raises
        raise UserError(f"--import={module}: {type(error).__name__}: {error}") from error


def _images(features: Any) -> list[Any]:
    """The image features, at any depth of dictionaries and sequences."""
    if isinstance(features, tfds.features.Image):
        return [features]
    if isinstance(features, tfds.features.FeaturesDict):
        return [image for feature in features.values() for image in _images(feature)]
    if isinstance(features, tfds.features.Sequence):
        return _images(features.feature)
    return []


def _encode(feature: Any, encode_example: Callable[[Any], Any], refused: list[str], image: Any) -> Any:
    """Encodes an image as TFDS does; an array as PNG, for which TFDS would import TensorFlow."""
    if not isinstance(image, np.ndarray):
        return encode_example(image)
    try:
        return encode_example(_encode_png(image, feature))
    except UserError as error:
        refused.append(str(error))
        raise


def _encode_png(image: np.ndarray, feature: Any) -> bytes:
    if feature.encoding_format == "jpeg":
        raise UserError(
            "an array of a feature with encoding_format='jpeg': only PNG is written; give the bytes of a JPEG"
        )
    found = f"an image {image.dtype}{list(image.shape)}"
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise UserError(f"{found}; uint8 [height, width, 1, 3 or 4] is needed")
    fits = len(feature.shape) == 3 and all(
        size in (None, own) for size, own in zip(feature.shape, image.shape, strict=True)
    )
    if not fits or feature.np_dtype != image.dtype:
        raise UserError(f"{found}; the feature is {np.dtype(feature.np_dtype)}{list(feature.shape)}")
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(image.shape[2])
    done, encoded = cv2.imencode(".png", image if order is None else cv2.cvtColor(image, order))
    if not done:
        raise UserError(f"an image {list(image.shape)} cannot be encoded as PNG")
    return encoded.tobytes()
