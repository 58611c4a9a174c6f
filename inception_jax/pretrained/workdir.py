"""Writes imported weights as a workdir that every command accepts: like that of a run at step 0.

`config.json` is a config with the variant's options and the publisher's evaluation, `classes.json` holds the class
names, one checkpoint of step 0 the weights, and `pretrained.json` their origin.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from inception_jax import config as configs
from inception_jax.checkpoints.identity import RunIdentity, new_run_id
from inception_jax.checkpoints.reading import load_variables
from inception_jax.checkpoints.saving import SUBDIRECTORY, Checkpoints
from inception_jax.config import Config
from inception_jax.errors import UserError, text_failure, write_error
from inception_jax.evaluation import trained_network
from inception_jax.evaluation.trained_network import TrainedNetwork
from inception_jax.pretrained.loading import LoadedWeights
from inception_jax.runs import manifest, run_state
from inception_jax.runs.data_record import CLASSES
from inception_jax.training.preprocess import NORMALIZATIONS, PER_CHANNEL

FILE = run_state.IMPORTED
IMAGENET = "imagenet2012"
BACKGROUND = "background"
IMAGENET_CLASSES = (1000, 1001)
"""The numbers of classes of weights whose classes are ImageNet's, the second with the background."""

# Options of `create_model` that are fields of their own in the schema.
_OWN_FIELDS = ("num_classes", "in_channels", "width_multiplier", "aux_heads", "dropout_rate", "aux_dropout_rate")


def config_of(loaded: LoadedWeights, *, image_size: int | None = None, data: str | None = None) -> ConfigDict:
    """Makes the config of a run that would have these weights.

    Args:
      loaded: the weights.
      image_size: height and width in pixels, in place of the publisher's; the side before the crop changes in
        proportion.
      data: name of a data set with the weights' classes; None: `imagenet2012` for ImageNet's 1000.

    Raises:
      UserError: an option that is not a field of the config, or an image size below the network's minimum.
    """
    imported = loaded.imported
    config = configs.default()
    fields = {"model.name": imported.variant.model, **loaded.preprocessing.config_fields()}
    for name, value in imported.options.items():
        fields[f"model.{name}" if name in _OWN_FIELDS else f"model.options.{name}"] = value
    fields |= _channel_fields(fields["data.normalization"], imported.options.get("in_channels", 3))
    if image_size is not None:
        if "evaluation.resize" in fields:
            resize = fields["evaluation.resize"] * image_size / fields["data.image_size"]
            fields["evaluation.resize"] = max(image_size, round(resize))
        fields["data.image_size"] = image_size
    if data or imported.num_classes == 1000:
        fields["data.name"] = data or IMAGENET
    if fields.get("data.name") == IMAGENET:
        fields["data.eval_split"] = "validation"
    for path, value in fields.items():
        section, _, name = path.rpartition(".")
        place = config
        for part in section.split("."):
            place = place[part]
        if name not in place:
            raise UserError(f"{path} = {value!r}: the config has no such field")
        place[name] = value
    Config(config)
    return config


def _channel_fields(name: str, channels: int) -> dict[str, Any]:
    """The fields of a normalization that differs by colour, for another number of channels: its means.

    An approximation: the publisher's network sees each colour normalized in its own way.

    Raises:
      UserError: the publisher's channels are reversed, and there are several others.
    """
    found = NORMALIZATIONS[name]
    if channels == len(found.mean) or found.is_uniform:
        return {}
    if found.channel_order != "RGB" and channels != 1:
        raise UserError(
            f"in_channels = {channels}: the publisher's network reads blue, green, red ({name}); it can be imported "
            "for 1 or 3 channels"
        )
    mean = sum(found.mean) / len(found.mean) / 255
    std = sum(1 / scale for scale in found.scale) / len(found.scale) / 255
    return {
        "data.normalization": PER_CHANNEL,
        "data.mean": (round(mean, 6),) * channels,
        "data.std": (round(std, 6),) * channels,
    }


def class_names_of(loaded: LoadedWeights) -> list[str]:
    """Returns the class names in the order of the classifier: ImageNet's synsets, or "class 0" and so on.

    Every publisher of 1000 or 1001 classes has ImageNet's, sorted by the names of their synsets.
    """
    count = loaded.imported.num_classes
    if count not in IMAGENET_CLASSES:
        return [f"class {index}" for index in range(count)]
    from inception_jax.data.imagenet2012 import synsets

    return [BACKGROUND, *synsets()] if count == 1001 else synsets()


def build_network(
    loaded: LoadedWeights, set_fields: Callable[[ConfigDict], None] = lambda config: None
) -> TrainedNetwork:
    """Puts the weights on the devices, ready for prediction; writes no file.

    Args:
      loaded: the weights.
      set_fields: sets fields of their config, such as the devices.

    Raises:
      UserError: as `config_of`.
    """
    config = config_of(loaded)
    set_fields(config)
    return trained_network.build(
        config, loaded.imported.variables, class_names_of(loaded), weights="raw", step=0, where=loaded.path
    )


def read_class_names(path: str | os.PathLike, count: int) -> list[str]:
    """Reads class names from a text file, one a line, in the order of the classifier.

    Args:
      path: of the file, in UTF-8; empty lines are skipped.
      count: the number of classes of the weights.

    Raises:
      UserError: the file cannot be read, or has another number of names.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {text_failure(error)}") from None
    if len(names) != count:
        raise UserError(f"{path}: {len(names)} names; the weights have {count} classes")
    return names


def provenance(loaded: LoadedWeights) -> dict[str, Any]:
    """Returns the content of `pretrained.json`: record, publisher, file and its hash, options, versions."""
    imported = loaded.imported
    return {
        "record": loaded.record.name if loaded.record else None,
        "model": imported.variant.model,
        "source": imported.variant.source,
        "file": loaded.path.name,
        "format": loaded.weights.format,
        "sha256": loaded.weights.sha256,
        "options": imported.options,
        "num_classes": imported.num_classes,
        "background": "drop" if imported.background_dropped else "keep",
        "defaulted": list(imported.defaulted),
        **({"ignored": list(loaded.ignored)} if loaded.ignored else {}),
        "versions": manifest.versions(),
    }


def write(directory: str | os.PathLike, loaded: LoadedWeights, config: ConfigDict, class_names: Sequence[str]) -> bool:
    """Writes the workdir, complete or not at all.

    Args:
      directory: new, empty, or a workdir of the same weights and settings.
      loaded: the weights.
      config: from `config_of`.
      class_names: one per class.

    Returns:
      False if it was there already.

    Raises:
      UserError: the directory holds something else, or cannot be written.
    """
    directory = Path(directory)
    files = {
        CLASSES: {"dataset": config.data.name, "names": list(class_names)},
        FILE: provenance(loaded),
    }
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        _check_same(directory, files, config)
        return False
    new = directory.absolute().with_name(f".{directory.absolute().name}.{os.getpid()}.new")
    try:
        new.mkdir(parents=True)
        state = {"step": np.zeros((), np.int32), **loaded.imported.variables}
        run_id = new_run_id()
        with Checkpoints(new / SUBDIRECTORY, run=RunIdentity(run_id)) as checkpoints:
            checkpoints.save(0, state, host={})
        manifest.write(new, Config(config).to_json(), run_id=run_id)
        for name, content in files.items():
            manifest.replace_text(new / name, json.dumps(content, indent=2) + "\n")
        if directory.is_dir():
            directory.rmdir()
        new.rename(directory)
    except OSError as error:
        raise write_error(directory, error) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return True


def _check_same(directory: Path, files: dict[str, Any], config: ConfigDict) -> None:
    """Raises UserError unless the directory already holds what would be written into it."""
    if not directory.is_dir() or not (directory / FILE).is_file():
        raise UserError(f"--output={directory}: exists and is not a workdir of imported weights; name a new directory")
    wanted = json.loads(json.dumps({**files, manifest.CONFIG: Config(config).to_dict()}))
    wanted[FILE].pop("versions")
    for name, content in wanted.items():
        found = manifest.read_json_object(directory / name) or {}
        found.pop("versions", None)
        if name == manifest.CONFIG:  # an earlier version may not have had all fields
            found = json.loads(configs.from_dict(found, load=False, as_earlier=False).to_json_best_effort())
        differences = manifest.config_differences(found, content)
        if differences:
            field, old, new = differences[0]
            raise UserError(
                f"--output={directory}: holds weights imported with {field} = {old!r} ({name}), now it is {new!r}; "
                "name a new directory"
            )
    load_variables(directory, step=0)  # damaged: an error of its own
