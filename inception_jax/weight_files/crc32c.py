"""CRC-32C (Castagnoli), the check sum of TensorFlow's checkpoints, quick enough in NumPy for files of 200 MB.

The polynomial is RFC 3720's (appendix B.4); the masking is LevelDB's (util/crc32c.h). A CRC is linear over GF(2), so
that the bytes can be cut into rows of equal length, all rows be advanced at once, and the rows' sums be joined by
shifting each past the bytes that follow it.
"""

from __future__ import annotations

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41, bits reversed
_MASK_DELTA = 0xA282EAD8
_FEW = 4096  # bytes below which one byte after the other is quicker


def _byte_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _byte_table()


def _plain(data: bytes | memoryview | np.ndarray, state: int) -> int:
    for byte in bytes(data):
        state = _TABLE[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state


def _tables_of(columns: list[int]) -> np.ndarray:
    """A linear map of 32 bits, given by what it makes of each bit, as four tables of 256: uint32 [4, 256]."""
    tables = np.zeros((4, 256), np.uint32)
    values = np.arange(256)
    for bit, column in enumerate(columns):
        tables[bit // 8] ^= np.where(values >> bit % 8 & 1, np.uint32(column), np.uint32(0))
    return tables


def _apply(tables: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The linear map of `tables` on each of uint32 [n]."""
    out = tables[0][states & 0xFF]
    for place in (1, 2, 3):
        out ^= tables[place][states >> (8 * place) & 0xFF]
    return out


@functools.lru_cache(maxsize=64)
def _past_bytes(power: int) -> np.ndarray:
    """The map that takes a sum past 2**power zero bytes."""
    if power == 0:
        return _tables_of([_plain(b"\0", 1 << bit) for bit in range(32)])
    half = _past_bytes(power - 1)
    columns = np.array([1 << bit for bit in range(32)], np.uint32)
    return _tables_of([int(value) for value in _apply(half, _apply(half, columns))])


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C of the bytes, an unsigned 32-bit number."""
    state = 0xFFFFFFFF
    if len(data) >= _FEW:
        # Rows of 2**power bytes, about as many rows as bytes in a row; what is left over goes the plain way.
        power = max(2, (len(data).bit_length() - 1) // 2)
        width = 1 << power
        count = 1 << (len(data) // width).bit_length() - 1
        words = np.frombuffer(data, "<u4", count * width // 4).reshape(count, width // 4)
        states = np.zeros(count, np.uint32)
        states[0] = state
        past_word = _past_bytes(2)
        for column in range(width // 4):
            states = _apply(past_word, states ^ words[:, column])
        while len(states) > 1:
            states = _apply(_past_bytes(power), states[0::2]) ^ states[1::2]
            power += 1
        state = int(states[0])
        data = memoryview(data)[count * width :]
        if len(data) >= _FEW:
            return _continue(data, state) ^ 0xFFFFFFFF
    return _plain(data, state) ^ 0xFFFFFFFF


def _continue(data: memoryview, state: int) -> int:
    """The sum of further bytes after `state`, both without the final inversion."""
    # crc(A B) = past_B(crc(A)) ^ crc_0(B), where the sum of B alone starts from zero instead of ones.
    fresh = crc32c(data) ^ 0xFFFFFFFF
    moved = np.array([state ^ 0xFFFFFFFF], np.uint32)
    for power in range(len(data).bit_length()):
        if len(data) >> power & 1:
            moved = _apply(_past_bytes(power), moved)
    return int(moved[0]) ^ fresh


def unmask(masked: int) -> int:
    """The sum that LevelDB and TensorFlow store rotated and shifted by a constant."""
    rotated = (masked - _MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
