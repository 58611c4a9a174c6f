"""Rewrites a data set that TFDS prepared as TFRecord or Parquet to ArrayRecord: the same messages in the same order.

TFDS's own `convert_format` reads TFRecord through TensorFlow; this needs none, and continues after an interruption.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tensorflow_datasets.core import splits
from tensorflow_datasets.core.utils import shard_utils

from inception_jax.data import prepared_sets, shards
from inception_jax.data.example_records import FORMATS, ExampleRecords, FileInstruction
from inception_jax.errors import UserError
from inception_jax.progress_line import ProgressLine

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def convert(name: str, data_dir: Path, output: Path, *, num_shards: int | None = None) -> Path:
    """Writes a prepared data set as ArrayRecord into another folder, or continues an interrupted conversion.

    Args:
      name: of the data set, also NAME/CONFIG:VERSION.
      data_dir: folder of prepared data sets that it is in.
      output: folder of prepared data sets to write to.
      num_shards: files per split; None: as many as there are, and at most 2,048 records per file.

    Returns:
      The folder of the new data set: `output/NAME/VERSION` or `output/NAME/CONFIG/VERSION`.

    Raises:
      UserError: the set is not there, damaged, or ArrayRecord already; no disk space; a folder that cannot be written;
        or another process that converts it.
    """
    builder = prepared_sets.find_prepared(name, data_dir)
    file_format = prepared_sets.choose_format(builder, list(FORMATS))
    origin, progress = Path(builder.data_dir), ProgressLine()
    folder = Path(output, origin.relative_to(data_dir) if origin.is_relative_to(data_dir) else builder.info.full_name)
    if file_format == "array_record":
        raise UserError(f"{origin}: its files are ArrayRecord already; nothing to convert")
    if folder.resolve() == origin.resolve():
        raise UserError(f"--output={output}: the folder that holds {name}; another folder is needed")
    sources = {split: _source(builder, file_format, split) for split in builder.info.splits}
    staging = folder.with_name(f"incomplete.{folder.name}")
    try:
        with progress, shards.locked(folder):
            if folder.exists():
                (folder / "plan.json").unlink(missing_ok=True)  # left by a process that was killed after the rename
                progress.log(f"{folder}: already there; remove this folder to convert again")
                return folder
            digest = json.dumps([num_shards, {split: source.digest() for split, source in sources.items()}])
            shards.open_staging(staging, hashlib.sha256(digest.encode()).hexdigest(), False, progress)
            shards.check_disk_space(
                staging, sum(os.path.getsize(file) for source in sources.values() for file in source.files)
            )
            lengths = [
                _convert_split(builder, split, source, staging, num_shards, progress)
                for split, source in sources.items()
            ]
            _write_info(builder, staging, lengths)
            _copy_default_config(origin, folder)
            shards.rename_durably(staging, folder)
            (folder / "plan.json").unlink()
    except OSError as error:
        raise UserError(f"{error.filename or staging}: {error.strerror or error}") from None
    found = ", ".join(f"{split} {len(source):,}" for split, source in sources.items())
    progress.log(f"{folder}: {found} records, from {file_format}")
    return folder


def _source(builder: tfds.core.DatasetBuilder, file_format: str, split: str) -> ExampleRecords:
    parts = [
        FileInstruction(os.fspath(part.filename), part.skip, part.take, part.examples_in_shard)
        for part in builder.info.splits[split].file_instructions
    ]
    return FORMATS[file_format](parts, "", "")


def _convert_split(
    builder: tfds.core.DatasetBuilder,
    split: str,
    source: ExampleRecords,
    staging: Path,
    num_shards: int | None,
    progress: ProgressLine,
) -> splits.SplitInfo:
    """Writes the shards of a split that are missing."""
    count = len(source)
    wanted = num_shards or max(len(source.parts), math.ceil(count / shards.MAX_RECORDS_PER_SHARD))
    bounds = [0, *shard_utils.get_shard_boundaries(count, min(wanted, count))] if count else [0]
    return shards.write_split(
        builder.info.name,
        split,
        staging,
        bounds,
        lambda start, stop: map(source.read_message, range(start, stop)),
        progress,
    )


def _write_info(builder: tfds.core.DatasetBuilder, staging: Path, lengths: list[splits.SplitInfo]) -> None:
    """Writes TFDS's description of the data set: that of the original, with the new format and files."""
    info = builder.info
    info.set_file_format("array_record", override=True, override_if_initialized=True)
    info.alternative_file_formats.clear()
    del info.as_proto.alternative_file_formats[:]
    info.set_splits(splits.SplitDict(lengths))
    info.write_to_directory(staging)


def _copy_default_config(origin: Path, folder: Path) -> None:
    """Copies TFDS's note of the set's default config, by which NAME without a config is found."""
    note = Path(".config", "metadata.json")
    for parent, target in ((origin.parent, folder.parent), (origin.parent.parent, folder.parent.parent)):
        if (parent / note).is_file() and not (target / note).exists():
            (target / note).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(parent / note, target / note)
