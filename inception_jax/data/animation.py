"""Tells whether an image file is an animation, without decoding it."""

from __future__ import annotations


def is_animated(encoded: bytes) -> bool:
    """Returns whether an image file holds several frames: GIF, WebP, PNG (APNG) or AVIF.

    Pages of a TIFF are no frames. Sources: GIF89a specification, section 20 to 24; WebP container specification, VP8X;
    PNG specification, third edition, acTL; AVIF specification, brand avis.

    Args:
      encoded: the bytes of the file.
    """
    if encoded[:3] == b"GIF":
        return _count_gif_frames(encoded) > 1
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        control = encoded.find(b"acTL", 0, max(0, encoded.find(b"IDAT")))
        return control > 0 and int.from_bytes(encoded[control + 4 : control + 8], "big") > 1
    if encoded[:4] == b"RIFF" and encoded[8:16] == b"WEBPVP8X" and len(encoded) > 20:
        return bool(encoded[20] & 2)
    return encoded[4:12] == b"ftypavis"


def _count_gif_frames(encoded: bytes) -> int:
    """The number of frames, at most 2."""

    def table(flags: int) -> int:  # bytes of a colour table
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    frames = 0
    try:
        place = 13 + table(encoded[10])
        while frames < 2 and encoded[place] in (0x21, 0x2C):
            if encoded[place] == 0x2C:  # an image: descriptor, colour table, code size, data
                frames += 1
                place += 11 + table(encoded[place + 9])
            else:
                place += 2  # an extension: its label, data
            while encoded[place]:
                place += 1 + encoded[place]
            place += 1
    except IndexError:  # truncated: the decoder says so
        pass
    return frames
