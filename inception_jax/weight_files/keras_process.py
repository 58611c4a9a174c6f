"""Reads HDF5 files in a process of its own: a damaged file can crash the library, and a malicious one might do worse.

A flipped byte in an attribute is enough for a crash. The answer comes back as JSON and NumPy arrays, which the reader
of `.npz` checks as strictly as any file.

The system limits the process: its processor time, and its address space, to what it has when the modules are there,
256 MiB, four times the file (its bytes, and HDF5's two copies), and three times what the budget has been charged (an
array, and the archive that carries it back). So what the library allocates by itself, without a charge, ends as an
error: 2,000 strings that are all the same megabyte of the file, for instance.
"""

from __future__ import annotations

import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.weight_files import npz_files
from inception_jax.weight_files.archives import ZipArchive
from inception_jax.weight_files.types import ParsedFile, ReadBudget, ReadError, add_array

_SECONDS = 60  # and one more for every 10 MB: a damaged file may also make the library loop
_SPARE = 256 << 20  # bytes of address space beside what grows with the file and its arrays
# Each thread of a linear-algebra library reserves tens of megabytes; nothing is multiplied here.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


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
    seconds = _SECONDS + len(data) / 10e6
    try:
        question = json.dumps(
            {"limit": budget.limit, "file_size": budget.file_size, "seconds": seconds, "config": config}
        ).encode()
    except RecursionError:  # json writes a few levels fewer than it reads
        raise ReadError("the configuration is too deep: the file is damaged") from None
    environment = {**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
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
    if done.returncode == -signal.SIGXCPU:
        raise ReadError(f"HDF5 took more than {seconds:.0f} s of processor time: the file is damaged")
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


class _LimitedBudget(ReadBudget):
    """A budget that lets the address space of the process grow by what is charged."""

    _base: int | None = None

    def limit_process(self, seconds: float) -> None:
        """Begins to limit the process, where the system can.

        Args:
          seconds: of processor time.
        """
        try:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            self._base = pages * resource.getpagesize() + _SPARE + 4 * self.file_size
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 1))
        except (OSError, ValueError):  # not Linux, or a limit that is lower already
            self._base = None
        self._limit_memory()

    def charge(self, size: int, what: str) -> None:
        super().charge(size, what)
        self._limit_memory()

    def _limit_memory(self) -> None:
        if self._base is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            most = self._base + 3 * self._spent
            resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    """Runs the process: reads the question (one line of JSON) and the file from stdin, writes the answer to stdout."""
    from inception_jax.weight_files import keras_hdf5

    first, data = sys.stdin.buffer.readline(), sys.stdin.buffer.read()
    question = json.loads(first)
    stream = io.BytesIO()
    try:
        budget = _LimitedBudget(question["limit"], question["file_size"])
        budget.limit_process(question["seconds"])
        content = keras_hdf5.read(memoryview(data), budget, question["config"])
        numbered: dict[str, Any] = {str(place): array for place, array in enumerate(content.arrays.values())}
        np.savez(stream, **numbered)
        answer = {"names": list(content.arrays), "metadata": content.metadata}
    except ReadError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "HDF5 needs more memory than a file of its size may take: the file is damaged"}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.write(stream.getbuffer())


if __name__ == "__main__":
    main()
