"""Checks the headers of a data set's image files, without decoding them."""

from __future__ import annotations

import math
import time
import warnings

import numpy as np
from PIL import ExifTags, Image

from inception_jax.data import image_headers, storage
from inception_jax.data.datasets import Dataset
from inception_jax.data.names import printable
from inception_jax.data.records import ConcatenatedRecords, FileRecords, RecordRange
from inception_jax.diagnostics.findings import Finding, fail, ok, warn
from inception_jax.errors import counted
from inception_jax.training.setup import Setup

_SECONDS = 10.0
_MOST_NAMES = 50
_HEADER = 1 << 16  # bytes; a file whose header is longer is read to its end
_UPRIGHT = 1  # the EXIF orientation of an image that is stored as it is to be seen


Range = tuple[FileRecords, int, int]
"""Files `start … stop - 1` of a source."""


def find_files(dataset: Dataset) -> list[Range]:
    """The image files on this machine that a split consists of: those of class folders and lists."""
    source = dataset.source
    parts = source.parts if isinstance(source, ConcatenatedRecords) else [RecordRange(source, 0, len(source))]
    return [
        (part.source, part.start, part.stop)
        for part in parts
        if isinstance(part.source, FileRecords) and not storage.is_remote(part.source.folder) and part.stop > part.start
    ]


def check_headers(training: list[Range], evaluation: list[Range], setup: Setup) -> Finding:
    """Looks for empty files, truncated headers and unknown formats, and names all that are broken; counts rotated ones.

    Args:
      training: the files of the training split; of both splits together there is at least one.
      evaluation: those of the evaluation split.
      setup: of the run.

    Returns:
      The finding. Where all headers would take more than ten seconds, it is about a random sample, and says so.
    """
    ranges = [*training, *evaluation]
    stops = np.cumsum([stop - start for _, start, stop in ranges])
    total, of_training = int(stops[-1]), sum(stop - start for _, start, stop in training)
    ends, read = time.monotonic() + _SECONDS, 0
    broken: dict[str, str] = {}
    draws = rotated = 0
    for number in np.random.default_rng(0).permutation(total).tolist():
        if read and time.monotonic() > ends:
            break
        place = int(np.searchsorted(stops, number, side="right"))
        source, _, stop = ranges[place]
        path = source.path(stop - (int(stops[place]) - number))
        read += 1
        if problem := find_problem(path):
            broken[printable(path)] = problem
            draws += number < of_training
        else:
            rotated += find_orientation(path) != _UPRIGHT
    of = f"the headers of {read:,} of {counted(total, 'image file')}" + ", a random sample" * (read < total)
    turned = f"; {rotated:,} with an EXIF orientation (rotated or mirrored), which is not applied"
    if rotated and not broken:
        remedy = "where objects are upright elsewhere, rotate the files: jhead -autorot, or mogrify -auto-orient"
        return warn("files", f"{of}: none is broken{turned}", remedy)
    if not broken:
        return ok("files", f"{of}: none is broken")
    draws = math.ceil(draws * total / read * math.ceil(setup.length.epoch(setup.length.total)))
    names = [f"{path} ({problem})" for path, problem in sorted(broken.items())]
    more = f", and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    text = f"{of}: {len(names):,} broken: {', '.join(names[:_MOST_NAMES])}{more}{turned if rotated else ''}"
    enough = max(draws, len(names))
    about = "about " * (read < total)
    remedy = f"replace or remove them; or leave them out: config.faults.max_corrupt = {about}{enough}, for all epochs"
    return (warn if setup.faults.max_corrupt >= enough else fail)("files", text, remedy)


def find_problem(path: str) -> str | None:
    """What is wrong with the header of an image file; None: nothing.

    Args:
      path: of the file.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER)
            if not head:
                return "0 bytes"
            if len(head) == _HEADER and not image_headers.read_size(head):
                head += file.read()
            if problem := image_headers.find_other_range(head):
                return problem
            # The pixels of a JPEG follow the marker "start of scan"; a longer file has more than its header.
            ends = len(head) < _HEADER and head.startswith(b"\xff\xd8") and b"\xff\xda" not in head
            if image_headers.read_size(head) and not ends:
                return None
    except OSError as error:
        return error.strerror or str(error)
    return "a truncated header, or an unknown format"


def find_orientation(path: str) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1 where it has none, or Pillow does not know the format."""
    try:
        # Pillow warns of damaged EXIF data, and of images half as large as those that are refused.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            found = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    except Exception:  # whatever its plugins raise of a damaged file
        return _UPRIGHT
    return found if found in range(1, 9) else _UPRIGHT
