"""Reads HDF5 files in a process of its own: a damaged file can crash the library, and a malicious one might do worse.

A flipped byte in an attribute is enough for a crash. The answer comes back as JSON and NumPy arrays, which the reader
of `.npz` checks as strictly as any file.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np

from inception_jax.weight_files import npz_files
from inception_jax.weight_files.archives import ZipArchive
from inception_jax.weight_files.types import ParsedFile, ReadBudget, ReadError, add_array

_SECONDS = 60  # and one more for every 10 MB: a damaged file may also make the library loop


def read(data: memoryview, budget: ReadBudget, config: Any) -> ParsedFile:
    """Reads the weights of an HDF5 file of Keras in a process of its own.

    Args:
      data: the whole file.
      budget: to which the arrays are charged.
      config: the model's configuration from a `.keras` file, or an empty one.

    Returns:
      As `keras_files.read_h5`.

    Raises:
      ReadError: as in `keras_files.read_h5`, or the process crashes or does not end.
    """
    try:
        question = json.dumps({"limit": budget.limit, "file_size": budget.file_size, "config": config}).encode()
    except RecursionError:  # json writes a few levels fewer than it reads
        raise ReadError("the configuration is too deep: the file is damaged") from None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    seconds = _SECONDS + len(data) / 10e6
    try:
        done = subprocess.run(
            [sys.executable, "-m", "inception_jax.weight_files.keras_process"],
            input=question + b"\n" + data,
            capture_output=True,
            env=environment,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise ReadError(f"HDF5 did not end within {seconds:.0f} s: the file is damaged") from None
    if done.returncode < 0:
        raise ReadError(f"HDF5 crashed on it (signal {-done.returncode}): the file is damaged")
    if done.returncode > 0:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise ReadError(f"the process that reads HDF5 files failed: {last[:200]}")
    end = done.stdout.find(b"\n") + 1
    first, archive = done.stdout[:end], memoryview(done.stdout)[end:]
    try:
        answer = json.loads(first)
        error, names, metadata = answer.get("error"), answer.get("names"), answer.get("metadata")
    except (ValueError, AttributeError):
        raise ReadError("the process that reads HDF5 files gave no valid answer: the file is damaged") from None
    if error is not None:
        raise ReadError(str(error))
    members = ZipArchive(archive, ReadBudget(2 * budget.limit, len(archive)))
    found = npz_files.read(members, budget).arrays.values()
    if not isinstance(names, list) or len(names) != len(found) or not isinstance(metadata, dict):
        raise ReadError("the process that reads HDF5 files gave an incomplete answer: the file is damaged")
    arrays: dict[str, np.ndarray] = {}
    for name, array in zip(names, found, strict=True):
        add_array(arrays, str(name), array)
    return ParsedFile(arrays, metadata)


def main() -> None:
    """Runs the process: reads the question (one line of JSON) and the file from stdin, writes the answer to stdout."""
    from inception_jax.weight_files import keras_hdf5

    first, data = sys.stdin.buffer.readline(), sys.stdin.buffer.read()
    question = json.loads(first)
    stream = io.BytesIO()
    try:
        budget = ReadBudget(question["limit"], question["file_size"])
        content = keras_hdf5.read(memoryview(data), budget, question["config"])
        numbered: dict[str, Any] = {str(place): array for place, array in enumerate(content.arrays.values())}
        np.savez(stream, **numbered)
        answer = {"names": list(content.arrays), "metadata": content.metadata}
    except ReadError as error:
        answer = {"error": str(error)}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.write(stream.getbuffer())


if __name__ == "__main__":
    main()
