"""Reads Keras files: `.h5` of weights and of models, `.weights.h5` and `.keras` of Keras 3. Names: `keras_names`."""

from __future__ import annotations

import importlib.util
from typing import Any

from inception_jax.weight_files import keras_process
from inception_jax.weight_files.archives import ZipArchive
from inception_jax.weight_files.types import InputFile, ParsedFile, ReadBudget, ReadError, decode_utf8, parse_json

MAGIC = b"\x89HDF\r\n\x1a\n"
# Where a superblock of each version stores the address of the file's end (HDF5 File Format Specification, II.A), with
# addresses of eight bytes, as all files have today.
_END = {0: 40, 1: 44, 2: 28, 3: 28}


def read_h5(source: InputFile, budget: ReadBudget) -> ParsedFile:
    """Reads the weights of an HDF5 file of Keras, in any of its layouts.

    Args:
      source: the file.
      budget: to which the arrays are charged.

    Returns:
      The arrays. Metadata: "layers", the names of the layers in the file's order (of `.weights.h5`, which stores no
      order, by class and number); "keras_version" and "backend" where the file has them; "left_out", paths of states
      that are not weights (those of optimizers and random generators).

    Raises:
      ReadError: h5py is not installed, or the file is damaged, refers to other files, or is not a Keras file.
    """
    return _read(source.data, budget, {})


def read_archive(members: ZipArchive, budget: ReadBudget) -> ParsedFile:
    """Reads the weights of a `.keras` file, in the order of its configuration.

    Args:
      members: the zip file.
      budget: to which the arrays are charged.

    Returns:
      The arrays. Metadata: as in `read_h5`.

    Raises:
      ReadError: as in `read_h5`.
    """
    config = _json(members, "config.json", budget)
    version = _json(members, "metadata.json", budget).get("keras_version", "") if "metadata.json" in members else ""
    content = _read(members.read("model.weights.h5"), budget, config.get("config", {}))
    return ParsedFile(content.arrays, {**content.metadata, "keras_version": version})


def _json(members: ZipArchive, name: str, budget: ReadBudget) -> dict[str, Any]:
    """Reads a JSON object from the archive."""
    table = parse_json(decode_utf8(members.read(name), name), name, budget)
    if not isinstance(table, dict):
        raise ReadError(f"{name} is not a JSON object")
    return table


def _read(data: memoryview, budget: ReadBudget, config: Any) -> ParsedFile:
    if importlib.util.find_spec("h5py") is None:
        raise ReadError("Keras files need h5py: pip install 'inception_jax[convert]'")
    place = _END.get(data[8], len(data)) if len(data) > 8 else len(data)
    if len(data) < 48 or int.from_bytes(data[place : place + 8], "little") > len(data):
        raise ReadError("an HDF5 file whose end is missing: it is truncated or damaged")
    return keras_process.read(data, budget, config)
