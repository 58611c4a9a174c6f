"""Reads NumPy's `.npz` files, which are zip files of `.npy` files.

Source: numpy/lib/_format_impl.py (the format's description). The headers are read before the data, and arrays of
Python objects, which NumPy would unpickle, are refused.
"""

from __future__ import annotations

import io
import math
import tokenize
import warnings

import numpy as np

from inception_jax.weight_files.archives import ZipArchive
from inception_jax.weight_files.types import ParsedFile, ReadBudget, ReadError, add_array

_KINDS = "biufc"
# Exceptions of NumPy for a damaged header, which is a Python literal that Python's own parser reads.
_HEADER_ERRORS = (
    ValueError,
    SyntaxError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


def read(members: ZipArchive, budget: ReadBudget) -> ParsedFile:
    """Reads the arrays under the names that np.savez was given.

    Args:
      members: the zip file.
      budget: to which the arrays are charged.

    Returns:
      The arrays. There is no metadata.

    Raises:
      ReadError: a member is not a `.npy` file, is damaged, or holds anything but numbers.
    """
    arrays: dict[str, np.ndarray] = {}
    for name in members.names():
        if not name.endswith(".npy"):
            raise ReadError(f"the archive holds {name!r} among NumPy arrays")
        add_array(arrays, name.removesuffix(".npy"), read_array(members.read(name), name, budget))
    return ParsedFile(arrays, {})


def read_array(data: memoryview, name: str, budget: ReadBudget) -> np.ndarray:
    """Reads one `.npy` file: its header first, then the numbers.

    Args:
      data: the file.
      name: of the file, for messages.
      budget: to which the array is charged.

    Raises:
      ReadError: the file is damaged, or holds anything but numbers.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ReadError(f"array {name!r} has the .npy version {version}; weights have (1, 0) or (2, 0)")
        with warnings.catch_warnings(action="ignore"):  # a file of Python 2 is only slower to parse
            read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, fortran, dtype = read_header(stream)
    except _HEADER_ERRORS as error:
        raise ReadError(f"array {name!r} has no valid NumPy header ({error!s:.100}): it is damaged") from None
    if dtype.kind not in _KINDS or dtype.names:
        raise ReadError(f"array {name!r} holds {dtype}, not numbers: it is not read")
    shape = budget.charge_array(shape, dtype, f"array {name!r}")
    body = data[stream.tell() :]
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise ReadError(f"array {name!r}: {len(body):,} bytes for {dtype} of shape {list(shape)}")
    array = np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)
