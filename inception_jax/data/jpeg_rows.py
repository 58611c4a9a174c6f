"""Decodes the upper rows of a JPEG, to the same pixels as all of it: the rows below a crop cost nothing.

OpenCV cannot decode a part of an image. But a sequential JPEG is stored row by row, and its decoder needs nothing of
what lies below a row but the next one. So a file whose header names fewer rows decodes to the upper part of the image.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np

from inception_jax.data import image_headers

_SEQUENTIAL = (0xC0, 0xC1)  # SOF0 and SOF1, baseline and extended Huffman: their rows are complete in file order
_SCAN = 0xDA  # SOS
_RESTARTS = 0xDD  # DRI; libjpeg would take the first restart marker below the rows for a damaged file, and say so
_SEGMENTS = image_headers.JPEG_FRAMES | {_RESTARTS, _SCAN}
_END = b"\xff\xd9"  # EOI; inside a scan, FF is followed by 0 or by a restart marker (ITU-T T.81, B.1.1.5)
_MULTI_PICTURE = b"MPF\0"  # of an APP2 segment: other images follow the first one (CIPA DC-007)
# The rows below the last one that is needed which its colour is interpolated from: one of each two rows has a colour.
_MARGIN = 2
# Fewer rows than this are not worth a copy of the file: a row of the largest blocks (16 pixels) is decoded as a whole.
_LEAST = 16


def decode(encoded: bytes, rows: int, flags: int, reduction: int = 1, grey: bool = False) -> np.ndarray | None:
    """Decodes the upper rows of a JPEG.

    Args:
      encoded: the file.
      rows: how many are needed.
      flags: of `cv2.imdecode`; a colour mode.
      reduction: by which the flags reduce height and width.
      grey: whether the flags ask for one channel, which only a grey file has.

    Returns:
      uint8 [at least `rows` / reduction, width / reduction, 3, or 1 of a grey one], whose first rows are those of the
      whole image. None where the whole image is to be decoded instead: it is no sequential JPEG of one scan without
      restart markers, it is truncated, or nearly all of its rows are needed.
    """
    try:
        frame, scan = _find_headers(encoded)
        height, width, components = struct.unpack_from(">HHB", encoded, frame + 3)
        scan_components = encoded[scan + 2]
    except (ValueError, IndexError, struct.error):  # damaged headers: decoding all of it says so
        return None
    if grey and components != 1:
        return None
    rows += _MARGIN * reduction
    # With fewer components there are other scans after this one.
    if rows + _LEAST > height or scan_components != components:
        return None
    end = _find_end(encoded, scan)
    if end is None:
        return None
    # Without its end, libjpeg takes what is left over for data that is still to come, and not for a damaged file.
    upper = np.frombuffer(encoded, np.uint8, end).copy()
    upper[frame + 3 : frame + 5] = divmod(rows, 256)
    try:
        image = cv2.imdecode(upper, flags)
    except cv2.error:
        return None
    shape = -(-rows // reduction), -(-width // reduction), *(() if grey else (3,))
    if image is None or image.shape != shape:
        return None
    return image[..., None] if grey else image


def _find_headers(encoded: bytes) -> tuple[int, int]:
    """The places of the frame header and of the first scan header.

    Raises:
      ValueError: no sequential JPEG, or one with restart markers.
      struct.error: the file ends inside its headers.
    """
    frame, position = None, image_headers.find_jpeg_segment(encoded, _SEGMENTS)
    while position is not None and (marker := encoded[position - 1]) != _SCAN:
        if marker not in _SEQUENTIAL:
            raise ValueError(marker)
        frame, position = position, image_headers.find_jpeg_segment(encoded, _SEGMENTS, position)
    if frame is None or position is None:
        raise ValueError("no scan of a frame")
    return frame, position


def _find_end(encoded: bytes, scan: int) -> int | None:
    """The place of the end marker of the image whose scan header is at `scan`."""
    if encoded.endswith(_END) and encoded.find(_MULTI_PICTURE, 0, scan) < 0:
        return len(encoded) - len(_END)
    place = encoded.find(_END, scan)  # slow, because many bytes are FF: a twentieth of the decoder's time
    return None if place < 0 else place
