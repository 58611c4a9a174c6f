"""Writes a data set to ArrayRecord shard by shard; after an interruption anywhere, the same command continues.

Shards are written into `incomplete.VERSION` beside the final folder, each under a temporary name until it is complete,
and the folder is renamed last of all: no partial data set is ever visible. The file format, the names, the number of
shards and the order of the records are TFDS's.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core import example_serializer, naming, splits
from tensorflow_datasets.core.utils import shard_utils

from inception_jax import file_locks
from inception_jax.data import images
from inception_jax.data.builders import Examples, SourceBuilder
from inception_jax.data.folder_files import hash_order
from inception_jax.errors import UserError
from inception_jax.progress_line import ProgressLine

_RECORD_OVERHEAD = 100  # bytes of a record besides its image, about
# The time that ArrayRecord's reader takes per record grows with the records of the file: array_record 0.8.6 needs 20 us
# in a file of 2,000, 310 us in one of 60,000. TFDS's rule considers bytes alone and would put 60,000 small images into
# one file.
MAX_RECORDS_PER_SHARD = 2048


@dataclasses.dataclass(frozen=True)
class _SplitPlan:
    """The order and the shards of one split.

    Attributes:
      name: of the split.
      examples: its examples.
      order: example `order[i]` is the `i`-th record to be written.
      bounds: shard `s` has the records from `bounds[s]` up to `bounds[s + 1]`.
    """

    name: str
    examples: Examples
    order: list[int]
    bounds: list[int]


def write(
    builder: SourceBuilder,
    *,
    full_check: bool = True,
    max_pixels: int = images.MAX_PIXELS,
    num_shards: int | None = None,
    threads: int = 1,
    stream: Any = None,
) -> Path:
    """Prepares a data set, or continues an interrupted preparation.

    Args:
      builder: of the data set, with its `data_dir`.
      full_check: besides counting, compare the original files with the published checksums and decode every image.
      max_pixels: the largest image that is decoded, height times width; a larger one is an error.
      num_shards: files per split; None: TFDS's rule, but at most 2,048 records per file.
      threads: that read and decode.
      stream: for progress; None: standard error.

    Returns:
      The folder of the data set, `data_dir/name/version`.

    Raises:
      UserError: original files that are wrong, an unreadable image, no disk space, a folder that cannot be written, or
        another process that prepares the same data set. Shards that were written are kept for the next attempt.
    """
    folder, progress = Path(builder.data_dir), ProgressLine(stream)
    staging = folder.with_name(f"incomplete.{folder.name}")
    try:
        with progress, locked(folder):
            if folder.exists():
                (folder / "plan.json").unlink(
                    missing_ok=True
                )  # left by a process that was killed right after the last rename
                progress.log(f"{folder}: already prepared; remove this folder to prepare it again")
                return folder
            progress.log(f"{builder.name}: listing the original files")
            parts = [_plan_split(name, found, builder, num_shards) for name, found in builder.stored_examples().items()]
            _check_counts(builder, parts)
            state = _open_staging(staging, builder, parts, full_check, progress)
            if full_check and not state.get("verified"):
                builder.verify(lambda done, total: progress("checksums", done, total))
                write_json(staging / "plan.json", {**state, "verified": True})
            check_disk_space(
                staging, sum(sum(part.examples.sizes) + len(part.order) * _RECORD_OVERHEAD for part in parts)
            )
            limit = max_pixels if full_check else None
            lengths = [_write_split(builder, part, staging, limit, threads, progress) for part in parts]
            _write_info(builder, staging, lengths)
            rename_durably(staging, folder)
            (folder / "plan.json").unlink()
    except OSError as error:
        raise UserError(f"{error.filename or staging}: {error.strerror or error}") from None
    progress.log(f"{folder}: prepared, " + ", ".join(f"{p.name} {len(p.order):,}" for p in parts))
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the data set for this process; the lock ends with the process, however that ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"incomplete.{folder.name}.lock")
    with open(path, "a") as file:
        if not file_locks.try_lock(file):
            raise UserError(f"{folder}: another process is preparing this data set")
        yield
        path.unlink(missing_ok=True)


def _plan_split(name: str, examples: Examples, builder: SourceBuilder, num_shards: int | None) -> _SplitPlan:
    """Plans the order and the shards of a split, by TFDS's rules."""
    count = len(examples.keys)
    if not count:
        raise UserError(f"{builder.name}: the split {name!r} has no examples")
    if len(set(examples.keys)) != count:
        twice = collections.Counter(examples.keys).most_common(1)[0][0]
        raise UserError(f"{builder.name}: the split {name!r} has {twice!r} twice")
    order = list(range(count)) if builder.info.disable_shuffling else hash_order(list(examples.keys), name)
    size = sum(examples.sizes) + count * _RECORD_OVERHEAD
    tfds_rule = shard_utils.ShardConfig().get_number_shards(size, count)
    wanted = num_shards or max(tfds_rule, math.ceil(count / MAX_RECORDS_PER_SHARD))
    return _SplitPlan(name, examples, order, [0, *shard_utils.get_shard_boundaries(count, min(wanted, count))])


def _check_counts(builder: SourceBuilder, parts: list[_SplitPlan]) -> None:
    found = {part.name: len(part.order) for part in parts}
    if builder.EXPECTED is not None and found != builder.EXPECTED:
        raise UserError(f"{builder.source}: {found} examples; {builder.EXPECTED} are expected")


def _open_staging(
    staging: Path, builder: SourceBuilder, parts: list[_SplitPlan], full_check: bool, progress: ProgressLine
) -> dict[str, Any]:
    """Opens the folder of this builder's files, keys and checks; returns its state."""
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in builder.source_files()]
    keys = [[part.name, part.bounds, [str(part.examples.keys[i]) for i in part.order]] for part in parts]
    return open_staging(staging, hashlib.sha256(json.dumps([files, keys]).encode()).hexdigest(), full_check, progress)


def open_staging(staging: Path, digest: str, full_check: bool, progress: ProgressLine) -> dict[str, Any]:
    """Opens the folder of an earlier attempt, or an empty one.

    Args:
      staging: the folder.
      digest: of what is to be written; an earlier attempt with another one is removed.
      full_check: whether an earlier attempt must have checked everything, too.
      progress: is told.

    Returns:
      The state of the attempt, as `plan.json` has it.
    """
    try:
        state = json.loads((staging / "plan.json").read_text())
    except (OSError, ValueError):
        state = None
    if isinstance(state, dict) and state.get("digest") == digest and state.get("full_check", False) >= full_check:
        progress.log(f"{staging}: continuing where an earlier run stopped")
        return state
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    state = {"digest": digest, "full_check": full_check}
    write_json(staging / "plan.json", state)
    return state


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content))
    rename_durably(temporary, path)


def check_disk_space(staging: Path, nbytes: int) -> None:
    """Raises `UserError` where a data set of so many bytes, about, does not fit beside what is written already."""
    needed = nbytes - sum(file.stat().st_size for file in staging.iterdir())
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise UserError(f"{staging}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def write_split(
    name: str,
    split: str,
    staging: Path,
    bounds: list[int],
    read: Callable[[int, int], Iterable[bytes]],
    progress: ProgressLine,
) -> splits.SplitInfo:
    """Writes the shards of a split that are missing.

    Args:
      name: of the data set.
      split: its name.
      staging: the folder.
      bounds: shard `s` has the records from `bounds[s]` up to `bounds[s + 1]`.
      read: returns the records from the first number up to the second.
      progress: is told.

    Returns:
      TFDS's description of the split.

    Raises:
      UserError: a shard is incomplete after writing it, or as `read`.
    """
    template = naming.ShardedFileTemplate(
        dataset_name=name, split=split, data_dir=staging, filetype_suffix="array_record"
    )
    counts = [stop - start for start, stop in itertools.pairwise(bounds)]
    nbytes = 0
    for shard, count in enumerate(counts):
        path = Path(template.sharded_filepath(shard_index=shard, num_shards=len(counts)))
        start, stop = bounds[shard], bounds[shard + 1]
        if not path.exists() or num_records(path) != count:
            _write_shard(path, read(start, stop), count)
        progress(f"{name}, {split}", stop, bounds[-1])
        nbytes += path.stat().st_size
    return splits.SplitInfo(name=split, shard_lengths=counts, num_bytes=nbytes, filename_template=template)


def _write_shard(path: Path, records: Iterable[bytes], count: int) -> None:
    """Writes one shard under a temporary name, checks that it is complete, and renames it."""
    temporary = path.with_name(f"{path.name}.part")
    writer = ArrayRecordWriter(os.fspath(temporary), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    if (found := num_records(temporary)) != count:
        raise UserError(f"{temporary}: {found} records after writing {count}; is the disk full?")
    rename_durably(temporary, path)


def _write_split(
    builder: SourceBuilder,
    part: _SplitPlan,
    staging: Path,
    max_pixels: int | None,
    threads: int,
    progress: ProgressLine,
) -> splits.SplitInfo:
    """Writes the shards of a split that are missing; `max_pixels`: None where no image is decoded."""
    serializer = example_serializer.ExampleSerializer(builder.info.features.get_serialized_info())

    def record(number: int) -> bytes:
        encoded = builder.info.features.encode_example(part.examples.read(number))
        if max_pixels is not None:
            images.decode(encoded["image"], f"{builder.name}, {part.name}, {part.examples.keys[number]}", max_pixels)
        return serializer.serialize_example(encoded)

    def read(start: int, stop: int) -> list[bytes]:
        numbers, offsets = part.order[start:stop], part.examples.offsets
        reading = numbers if offsets is None else sorted(numbers, key=offsets.__getitem__)  # sequential reads
        records = {}
        for number, content in zip(reading, pool.map(record, reading), strict=True):
            records[number] = content
            if len(records) < len(numbers):
                progress(f"{builder.name}, {part.name}", start + len(records), len(part.order))
        return [records[number] for number in numbers]

    with ThreadPoolExecutor(threads) as pool:
        return write_split(builder.name, part.name, staging, part.bounds, read, progress)


def num_records(path: Path) -> int:
    """The records of an ArrayRecord file; -1 where it is missing or incomplete."""
    try:
        reader = ArrayRecordReader(os.fspath(path))
        try:
            return reader.num_records()
        finally:
            reader.close()
    except (RuntimeError, ValueError):
        return -1


def _write_info(builder: SourceBuilder, staging: Path, lengths: list[splits.SplitInfo]) -> None:
    """Writes TFDS's description of the data set: features.json, the label names, dataset_info.json."""
    builder.info.set_file_format("array_record", override=True)
    builder.info.set_splits(splits.SplitDict(lengths))
    builder.info.write_to_directory(staging)


def rename_durably(temporary: Path, final: Path) -> None:
    """Renames a complete file or folder atomically; its content is on the disk (fsync) before its name is."""
    for path in [*temporary.iterdir(), temporary] if temporary.is_dir() else [temporary]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    os.rename(temporary, final)
