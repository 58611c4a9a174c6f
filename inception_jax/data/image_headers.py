"""Reads the size of an image from its header, before anything is decoded: a few bytes can declare any size.

Only the formats that OpenCV decodes are known. Sources: the PNG, GIF89a, BMP, TIFF 6.0, WebP and Netpbm
specifications, ITU-T T.81 (JPEG) and T.800 (JPEG 2000, SIZ), ISO/IEC 23008-12 (AVIF, ispe).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Container

_STANDALONE = (0x01, *range(0xD0, 0xD9))  # JPEG's markers without a length: TEM, RST0 to RST7, SOI
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF; the others are tables, and reserved
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_NUMBER = rb"(?:\s|#[^\n]*\n)+(\d{1,12})"
_NETPBM = re.compile(rb"P[1-6Ff]" + _NUMBER + _NUMBER)
_LARGEST = re.compile(rb"P[2356]" + 3 * _NUMBER + rb"|P7\s[\s\S]{0,4096}?MAXVAL\s+(\d{1,12})")
_PAM = re.compile(rb"P7\s[\s\S]{0,4096}?ENDHDR")
_RADIANCE = re.compile(rb"[-+]Y (\d{1,12}) [-+]X (\d{1,12})\n")
_AVIF = re.compile(rb"ispe\0\0\0\0([\s\S]{8})")


def read_size(encoded: bytes) -> tuple[int, int] | None:
    """Reads the width and height that a file declares.

    Args:
      encoded: the file.

    Returns:
      (width, height) in pixels; of a file with several images, those of the largest. None: an unknown format, or a
      damaged header, which OpenCV refuses to decode.
    """
    try:
        return _read(encoded)
    except (struct.error, IndexError, ValueError):
        return None


def find_other_range(encoded: bytes) -> str | None:
    """Finds that the values of a Netpbm file are not of 8 or 16 bits: OpenCV takes them as they are, mostly dark.

    In the formats of text, P2 and P3, it scales those of less than 8 bits to 0 to 255.

    Args:
      encoded: the file, or its beginning.

    Returns:
      What is wrong, and the remedy; None: nothing, or another format.
    """
    if encoded[:2] in (b"PF", b"Pf"):
        return "pixels of float32; save it with 8 or 16 bits"
    found = _LARGEST.match(encoded)
    largest = int(found[found.lastindex]) if found and found.lastindex else 255
    if largest in (255, 65535) or (largest < 255 and encoded[:2] in (b"P2", b"P3")):
        return None
    return f"white is {largest} (Netpbm's maxval), not 255 or 65535; save it with 8 or 16 bits"


def _read(data: bytes) -> tuple[int, int] | None:
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG"):
        return struct.unpack_from(">II", data, 16)
    if data.startswith(b"GIF8"):
        return struct.unpack_from("<HH", data, 6)
    if data.startswith(b"BM"):
        old = struct.unpack_from("<I", data, 14)[0] == 12
        width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
        return abs(width), abs(height)
    if data.startswith(b"RIFF"):
        return _webp(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(data)
    if data[4:8] == b"ftyp":
        sizes = [struct.unpack(">II", found[1]) for found in _AVIF.finditer(data)]
        return max(sizes, key=lambda size: size[0] * size[1], default=None)
    if data[:4] == b"\xff\x4f\xff\x51" or data[4:8] == b"jP  ":
        return _jpeg2000(data)
    if data.startswith(b"\x59\xa6\x6a\x95"):  # Sun raster
        return struct.unpack_from(">II", data, 4)
    if data.startswith(b"P7"):
        return _pam(data)
    if found := _NETPBM.match(data) if data.startswith(b"P") else _RADIANCE.search(data, 0, 1 << 16):
        first, second = int(found[1]), int(found[2])
        return (first, second) if data.startswith(b"P") else (second, first)
    return None


def find_jpeg_segment(data: bytes, markers: Container[int], position: int | None = None) -> int | None:
    """Finds a segment in the headers of a JPEG.

    Args:
      data: the file, which begins with `FF D8`.
      markers: the second bytes of the markers of which the first one is looked for.
      position: of a segment that was found before; the search begins behind it. None: at the beginning.

    Returns:
      Where the segment's length stands, behind its marker; None: there is none.

    Raises:
      struct.error: the file ends inside a segment.
    """
    position = 2 if position is None else position + struct.unpack_from(">H", data, position)[0]
    while found := _MARKER.search(data, position):  # libjpeg skips what lies between two markers, too
        marker, position = found[1][0], found.end()
        if marker in markers:
            return position
        if marker not in _STANDALONE:
            position += struct.unpack_from(">H", data, position)[0]
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    position = find_jpeg_segment(data, JPEG_FRAMES)
    if position is None:
        return None
    height, width = struct.unpack_from(">HH", data, position + 3)
    return width, height


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff(data: bytes) -> tuple[int, int] | None:
    """The first page: fields 256 and 257 (width and height)."""
    order = "<" if data[:1] == b"I" else ">"
    big = b"+" in data[:4]
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, start)
    start, size = start + (8 if big else 2), 20 if big else 12
    found = {}
    for place in range(start, min(start + min(count, 1 << 16) * size, len(data)), size):
        tag, kind = struct.unpack_from(f"{order}HH", data, place)
        if tag in (256, 257):
            letter = {1: "B", 3: "H", 4: "I", 16: "Q"}[kind] if kind in (1, 3, 4, 16) else "I"
            (found[tag],) = struct.unpack_from(order + letter, data, place + (12 if big else 8))
    return (found[256], found[257]) if len(found) == 2 else None


def _jpeg2000(data: bytes) -> tuple[int, int] | None:
    """The codestream's SIZ segment: the size of the reference grid, without its offset."""
    place = data.index(b"\xff\x4f\xff\x51") + 8
    width, height, left, top = struct.unpack_from(">IIII", data, place)
    return max(0, width - left), max(0, height - top)


def _pam(data: bytes) -> tuple[int, int] | None:
    header = _PAM.match(data)
    if header is None:
        return None
    fields = dict(re.findall(rb"(WIDTH|HEIGHT)\s+(\d{1,12})", header[0]))
    return (int(fields[b"WIDTH"]), int(fields[b"HEIGHT"])) if len(fields) == 2 else None
