"""Unbuffered append-only files, and TensorBoard's event files.

An event file is a sequence of TFRecords (length, checksum, `Event` message, checksum; the format is specified in
TensorFlow's `core/lib/io/record_writer.h`). tensorboardX provides the messages and the checksum. Its
`SummaryWriter` is not used: it has a thread and a multiprocessing queue per file, which a fork would copy and a kill
would empty, and it calls fsync at each flush.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB = 3  # Summary.Image.colorspace, tensorboard/compat/proto/summary.proto


class AppendedFile:
    """A file that is only appended to; the operating system has the bytes before `append` returns."""

    def __init__(self, path: str | os.PathLike):
        """Opens the file, or makes it. Raises OSError where that fails."""
        self.name = str(path)
        self._file = open(path, "ab", buffering=0)

    def append(self, content: bytes) -> None:
        """Writes all of `content` (one system call where the disk has room). Raises OSError where that fails."""
        while content:
            content = content[self._file.write(content) :]

    def close(self) -> None:
        """Writes the file to disk (fsync) and closes it."""
        with self._file:
            os.fsync(self._file.fileno())


class EventFile:
    """A TensorBoard event file: scalars and images by step."""

    def __init__(self, directory: str | os.PathLike, purge_step: int | None = None):
        """Starts a new event file in a directory, which is made where it is missing.

        Args:
          directory: TensorBoard's logdir, or a folder in it.
          purge_step: TensorBoard hides the events of earlier files of this directory from this step on.

        Raises:
          OSError: the file cannot be made.
        """
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import masked_crc32c

        self._event, self._summary, self._checksum = event_pb2.Event, summary_pb2.Summary, masked_crc32c
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a directory in the order of their names, which begin with whole seconds: the
        # count keeps two starts within one second apart, and in order; so does the maximum where a clock was set back.
        before = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*")]
        count = len(before)
        seconds = max([int(time.time()), *(int(text) for text in before if text.isdecimal())])
        self._file = AppendedFile(directory / f"events.out.tfevents.{seconds}.{count:04d}.{socket.gethostname()}")
        self.name = self._file.name
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(self._event(wall_time=time.time(), step=purge_step, session_log=start))

    def add(
        self, step: int, scalars: Mapping[str, float] | None = None, images: Mapping[str, bytes] | None = None
    ) -> None:
        """Writes the scalars and images of one step.

        Args:
          step: the step.
          scalars: {tag: value}; NaN and infinities are allowed.
          images: {tag: content of a PNG file}.

        Raises:
          ValueError: an image is not a PNG.
          OSError: the file cannot be written.
        """
        values = [self._summary.Value(tag=tag, simple_value=number) for tag, number in (scalars or {}).items()]
        for tag, content in (images or {}).items():
            if not content.startswith(_PNG_SIGNATURE):
                raise ValueError(f"image {tag!r} is not a PNG file")
            width, height = struct.unpack(">II", content[16:24])  # IHDR comes first: PNG specification, 5.6 and 11.2.2
            image = self._summary.Image(height=height, width=width, colorspace=_RGB, encoded_image_string=content)
            values.append(self._summary.Value(tag=tag, image=image))
        if values:
            self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        """Writes the file to disk (fsync) and closes it."""
        self._file.close()

    def _write(self, event: Any) -> None:
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", self._checksum(part)) for part in (length, content)]
        self._file.append(length + checksums[0] + content + checksums[1])
