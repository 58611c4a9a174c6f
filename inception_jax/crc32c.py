"""CRC-32C (Castagnoli), the checksum of TensorFlow's files, and the masked form in which they and LevelDB store it.

Sources: RFC 3720, appendix B.4 (the polynomial); google/leveldb, util/crc32c.h (the mask).
"""

from __future__ import annotations

_MASK_DELTA = 0xA282EAD8
_CHUNK = 1 << 20  # bytes per call: google-crc32c takes `bytes` alone, and a chunk is all that is copied at a time


def crc32c(data: bytes | memoryview) -> int:
    """Computes the CRC-32C of some bytes with google-crc32c.

    Args:
      data: the bytes.

    Returns:
      The checksum, an unsigned 32-bit number.
    """
    import google_crc32c

    if isinstance(data, bytes):
        return google_crc32c.value(data)
    checksum = 0
    for start in range(0, len(data), _CHUNK):
        checksum = google_crc32c.extend(checksum, bytes(data[start : start + _CHUNK]))
    return checksum


def unmask(masked: int) -> int:
    """The checksum that LevelDB and TensorFlow store rotated and shifted by a constant."""
    rotated = (masked - _MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
