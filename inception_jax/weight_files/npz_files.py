"""NumPy's `.npz`: a zip of `.npy` files.

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
# What NumPy raises for a damaged header: it is a Python literal, taken apart by Python's own parser.
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
    """The arrays under the names that np.savez was given. No metadata.

    Raises:
      ReadError: a member is no `.npy`, is damaged, or holds something else than numbers.
    """
    arrays: dict[str, np.ndarray] = {}
    for name in members.names():
        if not name.endswith(".npy"):
            raise ReadError(f"the archive holds {name!r} among NumPy arrays")
        add_array(arrays, name.removesuffix(".npy"), _array(members.read(name), name, budget))
    return ParsedFile(arrays, {})


def _array(data: memoryview, name: str, budget: ReadBudget) -> np.ndarray:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ReadError(f"array {name!r} has the format {version}, which is for records, not for weights")
        with warnings.catch_warnings(action="ignore"):  # that Python 2 wrote it takes NumPy longer, which is no harm
            read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, fortran, dtype = read_header(stream)
    except _HEADER_ERRORS as error:
        raise ReadError(f"array {name!r} has no header of NumPy's ({error!s:.100}): it is damaged") from None
    if dtype.kind not in _KINDS or dtype.names:
        raise ReadError(f"array {name!r} holds {dtype}, not numbers: it is not read")
    shape = budget.charge_array(shape, dtype, f"array {name!r}")
    body = data[stream.tell() :]
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise ReadError(f"array {name!r}: {len(body):,} bytes for {dtype} of shape {list(shape)}")
    array = np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)
