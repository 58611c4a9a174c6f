"""Predicts the classes of images, one after another: threads decode ahead, the network takes batches of one size.

That size is what is asked for, or, of fewer inputs, the next power of two: so few programs serve all numbers of them.
Another size can change the last bits.

Memory holds two batches of crops and, per thread, one decoded image, however many images there are.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from inception_jax.data import channels as image_channels
from inception_jax.data import image_files, images, records
from inception_jax.data.datasets import Dataset
from inception_jax.data.image_files import Unreadable
from inception_jax.data.loader import DataLoader, ThreadProducer
from inception_jax.data.pipeline_base import default_threads
from inception_jax.errors import UserError
from inception_jax.evaluation import image_inputs
from inception_jax.evaluation.image_inputs import Images
from inception_jax.training.network_setup import NetworkInput
from inception_jax.training.parallel import Compiled, Devices

Files = str | os.PathLike | Iterable[str | os.PathLike | Unreadable]

_GROUP = 8  # batches: so many files that cannot be read are held back, at most, until a batch of images is full

_TOP_K = 5  # one program gives so many classes, and serves requests for fewer

_T = TypeVar("_T")


class Classifier(Protocol):
    """The members of `trained_network.TrainedNetwork` that are read here; its methods call this module."""

    @property
    def variables(self) -> Any:
        """Its weights."""

    @property
    def devices(self) -> Devices:
        """That have its weights."""

    @property
    def class_names(self) -> list[str]:
        """One per class."""

    @property
    def input(self) -> NetworkInput:
        """How images become its input."""

    @property
    def label_columns(self) -> int | None:
        """Columns of a batch's labels; None: one class number each."""

    def compile(self, batch_size: int, top_k: int = 5) -> Compiled:
        """Compiles the evaluation step."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The most probable classes of an image, or why it has none.

    Attributes:
      path: of the file; of an image of a data set the name of its original file, or else that of the record.
      names: of the k most probable classes, the most probable first; empty where the image cannot be read.
      classes: int32 [k], their numbers.
      probabilities: float [k].
      error: why the image cannot be read; "" where it can.
      image: uint8 [image_size, image_size, in_channels], the crop that the network sees, where it is asked for; else
        None.
      saliency: float [image_size, image_size] from 0 to 1, of the most probable class, where it is asked for
        (`features.explanation.explain`); else None.
    """

    path: str
    names: tuple[str, ...]
    classes: np.ndarray
    probabilities: np.ndarray
    error: str = ""
    image: np.ndarray | None = None
    saliency: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Crop(Generic[_T]):
    """An input, and its crop uint8 [image_size, image_size, C], or the reason why there is none."""

    given: _T
    image: np.ndarray | None
    reason: str = ""


def predict(
    network: Classifier, inputs: Images, top_k: int, batch_size: int, max_pixels: int = images.MAX_PIXELS
) -> dict[str, np.ndarray]:
    """Predicts the classes of images; see `TrainedNetwork.predict`.

    Raises:
      UserError: the network has no classifier, a file cannot be decoded, or an image is none.
    """
    listed = image_inputs.as_list(inputs)
    frame, channels = (network.input.eval_image_size, network.input.eval_crop), network.input.channels

    def load(numbered: tuple[int, Any]) -> _Crop[tuple[int, Any]]:
        return _Crop(numbered, images.center_crop(image_inputs.decode_one(*numbered, max_pixels, channels), *frame))

    batch_size = network.devices.choose_rows(len(listed), batch_size)
    found = [rows for _, rows in _predict(network, iter(enumerate(listed)), load, top_k, batch_size)]
    return {name: np.stack([rows[name] for rows in found]) for name in found[0]}


def predict_files(
    network: Classifier,
    files: Files,
    top_k: int,
    batch_size: int,
    keep_images: bool,
    max_pixels: int = images.MAX_PIXELS,
) -> Iterator[Prediction]:
    """Predicts the classes of image files, one by one; see `TrainedNetwork.predict_files`.

    Raises:
      UserError: a file that is not there, a folder or a pattern without an image; at the first file: the network has
        no classifier.
    """
    if isinstance(files, str | os.PathLike | Sequence):
        files = image_files.find([files] if isinstance(files, str | os.PathLike) else files)
    frame, channels = (network.input.eval_image_size, network.input.eval_crop), network.input.channels

    def load(file: str | os.PathLike | Unreadable) -> _Crop[str]:
        if isinstance(file, Unreadable):
            return _Crop(file.path, None, file.reason)
        path = os.fsdecode(file)
        try:
            return _Crop(path, images.center_crop(image_files.read_image(path, max_pixels, channels), *frame))
        except UserError as error:
            return _Crop(path, None, str(error))

    return _predict_named(network, iter(files), load, top_k, batch_size, keep_images)


def predict_dataset(
    network: Classifier,
    dataset: Dataset,
    top_k: int,
    batch_size: int,
    keep_images: bool,
    max_pixels: int = images.MAX_PIXELS,
) -> Iterator[Prediction]:
    """Predicts the classes of a data set's images, one by one; see `TrainedNetwork.predict_dataset`.

    Raises:
      UserError: at the first image: the network has no classifier.
    """
    frame, channels = (network.input.eval_image_size, network.input.eval_crop), network.input.channels

    def load(index: int) -> _Crop[str]:
        path = name = dataset.record_name(index)
        try:
            path = records.file_name(dataset.source, index)
            image, _ = dataset.record(index)
            if isinstance(image, bytes):
                decoded = images.decode(image, name, max_pixels, channels=channels)
            else:
                decoded = image_channels.fit(image, channels, name)
            return _Crop(path, images.center_crop(decoded, *frame))
        except UserError as error:
            return _Crop(path, None, str(error))

    return _predict_named(network, iter(range(dataset.num_examples)), load, top_k, batch_size, keep_images)


def _predict_named(
    network: Classifier,
    given: Iterator[Any],
    load: Callable[[Any], _Crop[str]],
    top_k: int,
    batch_size: int,
    keep_images: bool,
) -> Iterator[Prediction]:
    first = list(itertools.islice(given, batch_size))
    batch_size = network.devices.choose_rows(len(first), batch_size)
    for crop, rows in _predict(network, itertools.chain(first, given), load, top_k, batch_size):
        classes = rows["classes"]
        names = tuple(network.class_names[label] for label in classes)
        image = crop.image if keep_images else None
        yield Prediction(crop.given, names, classes, rows["probabilities"], crop.reason, image)


def _predict(
    network: Classifier, given: Iterator[Any], load: Callable[[Any], _Crop[_T]], top_k: int, batch_size: int
) -> Iterator[tuple[_Crop[_T], dict[str, np.ndarray]]]:
    """Predicts the classes of the crops that `load` makes, in the order of what is given.

    Yields:
      (crop, {"classes": [k], "probabilities": [k]}); k is 0 where there is no crop.
    """
    top_k, most = (min(k, max(1, len(network.class_names))) for k in (top_k, max(top_k, _TOP_K)))
    step = None if network.class_names else network.compile(batch_size, most)  # which raises
    size, columns = network.input.eval_image_size, network.label_columns
    with _load_ahead(given, load, 2 * batch_size) as loaded:
        for group in _groups(loaded, batch_size):
            pixels = [crop.image for crop in group if crop.image is not None]
            batch: dict[str, np.ndarray] = {
                "image": np.zeros((batch_size, size, size, network.input.channels), np.uint8),
                # For the loss, which is not read here.
                "label": np.zeros(batch_size, np.int32)
                if columns is None
                else np.zeros((batch_size, columns), np.uint8),
                "mask": np.arange(batch_size) < len(pixels),
            }
            if pixels:
                batch["image"][: len(pixels)] = pixels
                step = step or network.compile(batch_size, most)  # while the threads decode
                rows = step(network.variables, network.devices.put(batch))[1]
                outputs = {name: rows[name] for name in ("classes", "probabilities")}
            # Read at once, not one batch late: the threads decode meanwhile, and nobody waits for files after these.
            found = network.devices.get(outputs) if pixels else {}
            yield from _rows(group, {name: values[:, :top_k] for name, values in found.items()})


def _rows(group: list[_Crop[_T]], found: dict[str, np.ndarray]) -> Iterator[tuple[_Crop[_T], dict[str, np.ndarray]]]:
    nothing = {"classes": np.zeros(0, np.int32), "probabilities": np.zeros(0, np.float32)}
    row = 0
    for crop in group:
        if crop.image is None:
            yield crop, nothing
        else:
            yield crop, {name: values[row] for name, values in found.items()}
            row += 1


def _groups(loaded: Iterable[_Crop[_T] | None], batch_size: int) -> Iterator[list[_Crop[_T]]]:
    """Groups of as many crops as a batch has rows, with those between them that could not be made."""
    group: list[_Crop[_T]] = []
    filled = 0
    for crop in loaded:
        if crop is None:  # the end
            break
        group.append(crop)
        filled += crop.image is not None
        if filled == batch_size or len(group) == _GROUP * batch_size:
            yield group
            group, filled = [], 0
    if group:
        yield group


def _load_ahead(given: Iterator[Any], load: Callable[[Any], _Crop[_T]], ahead: int) -> DataLoader:
    """Calls `load` in threads, ahead of their reader, who gets the results in order and then None.

    Args:
      given: what `load` takes, one by one; however many there are, it is never read further ahead.
      load: an error that it raises is raised in the place of its result.
      ahead: results that are made or wait.
    """
    reading = threading.Lock()
    read: dict[int, Any] = {}  # what other threads have to load, by its number
    count = 0

    def make(number: int) -> _Crop[_T] | None:
        nonlocal count
        with reading:
            while count <= number:
                read[count] = next(given, None)
                count += 1
            one = read.pop(number)
        return None if one is None else load(one)

    threads = default_threads()
    producer = ThreadProducer(make, threads)
    return DataLoader(producer, 0, sys.maxsize, max(ahead, threads), lambda index: f"image {index}")
