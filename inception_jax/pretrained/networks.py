"""Loads published weights as a network that is ready to use; a published file is kept in a cache folder."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from inception_jax import user_cache
from inception_jax.errors import UserError, nearest, write_error
from inception_jax.evaluation import trained_network
from inception_jax.evaluation.split_evaluation import NamedWeights
from inception_jax.evaluation.trained_network import TrainedNetwork
from inception_jax.models.initialization import init_variables
from inception_jax.models.registry import model_names
from inception_jax.pretrained import catalog, downloading, hub, loading, workdir
from inception_jax.pretrained.loading import LoadedWeights
from inception_jax.pretrained.records import WeightRecord
from inception_jax.pretrained.variants import is_classifier_leaf
from inception_jax.runs import listing

CACHE_VARIABLE = "INCEPTION_JAX_CACHE"


def load_pretrained(
    weights: str | os.PathLike,
    *,
    model: str | None = None,
    source: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    cache: str | os.PathLike | None = None,
    seed: int = 0,
    **options: Any,
) -> TrainedNetwork:
    """Loads published weights as a network, with the publisher's preprocessing and class names.

    Args:
      weights: the name of a published file (`python -m inception_jax.convert --list`), such as
        "timm/inception_v4.tf_in1k"; or the path of a file in any of the publishers' formats; or a folder that
        `python -m inception_jax.export --to=hub` has written. A published file is downloaded once, into `cache`.
      model: of a file: the network; None: detected from the names and shapes of its arrays.
      source: of a file: the publisher; None: detected.
      num_classes: outputs of a new classifier, initialized at random, in place of the published one; 0: none, so that
        `logits` are the features; None: the published one.
      image_size: height and width in pixels, in place of the publisher's.
      cache: the folder; None: $INCEPTION_JAX_CACHE, or inception_jax/weights in $XDG_CACHE_HOME or ~/.cache.
      seed: of the new classifier.
      **options: of `create_model`, for a file that differs from the published variant, such as width_multiplier.

    Returns:
      The network. `model` is the Flax Linen module that `create_model` makes, and `variables` are its variables, for a
      training loop of your own; `predict` and `features` take images.

    Raises:
      UserError: there is no such file and no such name; no network, where the file is not in the cache (the message
        names the address, and where to put the file); or weights that do not fit.

    Example:
      Here the file comes from a network of this package, narrow, under Caffe's names.

      >>> import jax
      >>> import numpy as np
      >>> from inception_jax import create_model, init_variables, load_pretrained
      >>> from inception_jax.pretrained.exporting import export_weights
      >>> narrow = {"width_multiplier": 0.1}
      >>> model = create_model("inception_v1", num_classes=10, aux_heads=False, **narrow)
      >>> variables = init_variables(model, jax.random.key(0), image_size=32)
      >>> np.savez("caffe.npz", **export_weights("inception_v1", variables, source="caffe", num_classes=10, **narrow))
      >>> network = load_pretrained(
      ...     "caffe.npz", model="inception_v1", source="caffe", num_classes=3, image_size=32, **narrow
      ... )
      >>> network.model.num_classes, network.variables["params"]["classifier"]["bias"].shape
      (3, (3,))
    """
    if hub.is_hub_folder(weights):
        given = {"model": model, "source": source, "num_classes": num_classes, "image_size": image_size, **options}
        if unread := [name for name, value in given.items() if value is not None]:
            raise UserError(f"{unread[0]}: not read for a folder of an export; its config.json says it")
        return hub.load(weights)
    record = None
    if Path(weights).exists():
        path = Path(weights)
    else:
        record = find_record(os.fspath(weights))
        path = cached_file(record, cache)
    published = num_classes in (None, 0)
    loaded = loading.load_weights(
        path,
        model=model,
        source=source,
        record=record.name if record else None,
        options={**options, **({} if num_classes is None else {"num_classes": 0})},
    )
    if not published:
        loaded = _with_classifier(loaded, num_classes or 0, image_size, seed)
    config = workdir.config_of(loaded, image_size=image_size)
    names = workdir.class_names_of(loaded)
    return trained_network.build(config, loaded.imported.variables, names, weights="raw", step=0, where=path)


def open_weights(entry: str, data: str | None = None) -> NamedWeights:
    """Opens weights by a name as tables of results have them, for `evaluate --all`; writes no workdir.

    Args:
      entry: `MODEL=FILE`, a file of weights of a network; `RECORD=FILE`, of a published file; `FILE` alone, whose
        network is detected; or `RECORD` alone, such as "timm/inception_v4.tf_in1k": the file in the cache, which is
        downloaded where it is not there.
      data: name of the data set to evaluate on; None: ImageNet.

    Raises:
      UserError: the entry names nothing that is known, or as `load_weights`.
    """
    name, _, file = entry.partition("=")
    model = record = None
    if Path(entry).exists() or Path(f"{entry}.index").exists():  # TensorFlow's checkpoints are named without a suffix
        path = Path(entry)
    elif not file:
        no_run = f"neither a run ({listing.explain_no_run(Path(entry))})"
        record = find_record(entry, f"{entry}: {no_run}, nor a file of weights,").name
        path = cached_file(catalog.get_record(record))
    else:
        path, names = Path(file), [record.name for record in catalog.all_records()]
        if name not in (*names, *model_names()):
            raise UserError(
                f"{entry}: {name!r} is neither a network nor the name of a published file"
                f"{nearest(name, (*names, *model_names()))}; python -m inception_jax.convert --list shows these"
            )
        model, record = (None, name) if name in names else (name, None)
    loaded = loading.load_weights(path, model=model, record=record)
    config = workdir.config_of(loaded, data=data)
    if not loaded.imported.num_classes:
        raise UserError(f"{entry}: these weights have no classifier, so there is nothing to evaluate")
    if data is None and config.data.name != workdir.IMAGENET:
        raise UserError(
            f"{entry}: weights of {loaded.imported.num_classes:,} classes, which are not ImageNet's; name the data "
            "set: --data=NAME"
        )
    found = loaded.record.name if loaded.record else ""
    names = workdir.class_names_of(loaded)
    unknown = loaded.imported.num_classes not in workdir.IMAGENET_CLASSES
    return NamedWeights(str(path), found, config, loaded.imported.variables, names, unknown)


def cache_folder() -> Path:
    """Returns the folder that published files are kept in: of INCEPTION_JAX_CACHE, or in the user's cache."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    return user_cache.cache_folder("weights")


def cached_file(record: WeightRecord, cache: str | os.PathLike | None = None) -> Path:
    """Returns the path of a record's file in the cache; downloads it where it is not there.

    Args:
      record: of the published file.
      cache: the folder; None: `cache_folder()`.

    Raises:
      UserError: the file cannot be downloaded; the message names its address, and where to put it.
    """
    if record.unusable:
        raise UserError(f"{record.name} cannot be used: {record.unusable}")
    path = Path(cache or cache_folder()) / record.name / (record.file or "")
    if record.file and path.is_file():
        return path
    if not (record.file and record.url):
        raise UserError(f"{record.name}: the address of this file is not known; give the path of your copy")
    print(f"{record.name}: downloading {record.url} to {path}", file=sys.stderr, flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from None
    try:
        checked = downloading.download(record, path, remedy=f"put it at {path}")
    except UserError:
        if not path.is_file():
            raise
        return path  # another process has downloaded it meanwhile
    print(f"{record.name}: {checked}", file=sys.stderr, flush=True)
    return path


def find_record(name: str, neither: str | None = None) -> WeightRecord:
    """Returns the record of a published file.

    Args:
      name: of the file.
      neither: how the error begins, where a command takes other things too; None: "NAME: neither a file".

    Raises:
      UserError: there is no such name.
    """
    names = [record.name for record in catalog.all_records()]
    if name in names:
        return catalog.get_record(name)
    raise UserError(
        f"{neither or f'{name}: neither a file'} nor the name of a published one{nearest(name, names)}; python -m "
        f"inception_jax.convert --list shows all {len(names)}"
    )


def _with_classifier(loaded: LoadedWeights, num_classes: int, image_size: int | None, seed: int) -> LoadedWeights:
    """Adds a new classifier to weights without one."""
    imported = loaded.imported
    options = {**imported.options, "num_classes": num_classes}
    model = imported.variant.create(**options)
    size = image_size or loaded.preprocessing.image_size
    fresh: Mapping[str, Any] = flatten_dict(init_variables(model, jax.random.key(seed), size), sep="/")
    leaves = flatten_dict(imported.variables, sep="/")
    new = {path: np.asarray(leaf) for path, leaf in fresh.items() if is_classifier_leaf(path)}
    imported = dataclasses.replace(
        imported, options=options, num_classes=num_classes, variables=unflatten_dict({**leaves, **new}, sep="/")
    )
    return dataclasses.replace(loaded, imported=imported)
