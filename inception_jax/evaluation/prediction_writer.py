"""Writes predictions as they come: text, JSON lines, CSV, saliency maps as PNG files; a contact sheet at the end."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from inception_jax.data.channels import to_rgb
from inception_jax.data.folder_files import SUFFIXES
from inception_jax.data.names import one_line, printable
from inception_jax.errors import UserError, counted, write_error
from inception_jax.evaluation.prediction import Prediction
from inception_jax.runs import contact_sheet
from inception_jax.runs.contact_sheet import MAX_IMAGES, Thumbnail
from inception_jax.standard_streams import stdout_failure

STDOUT = "-"
_NAMED = 3  # skipped files that the last line names
_SIDE = 224  # pixels: smaller images are enlarged in the files of explanations
_PNG_OF_OURS = b"Matplotlib version"  # in the first bytes of every sheet


class PredictionWriter:
    """Writes predictions to the places that are given; a context manager, which closes its files.

    What is written nowhere else is printed as text. A file that cannot be read is reported on standard error, has an
    `error` in JSON and CSV, and is counted.

    Attributes:
      total: predictions that were added.
      skipped: of these, those of files that cannot be read.
    """

    def __init__(
        self,
        top_k: int,
        *,
        json_file: str | os.PathLike | None = None,
        csv_file: str | os.PathLike | None = None,
        sheet: str | os.PathLike | None = None,
        explanations: str | os.PathLike | None = None,
        threshold: float | None = None,
        csv_classes: Sequence[str] | None = None,
    ):
        """Opens the files, and makes folders that are missing.

        Args:
          top_k: classes per prediction: pairs of columns of the CSV file.
          json_file: a file of one JSON object per line; "-" is standard output.
          csv_file: a file of one row per image; "-" is standard output.
          sheet: a PNG file, of the first `MAX_IMAGES` images; `finish` draws it.
          explanations: a folder, new or empty, of a PNG file for each image: the image, and its saliency map.
          threshold: only classes of at least this probability are written, maybe none (the sheet and the saliency maps
            are of the most probable one nevertheless); None: all of a prediction.
          csv_classes: names of all classes of a network for several labels per image: instead of `top_k` pairs, the CSV
            file has their names from the threshold on in one column, and then the probability of each class.

        Raises:
          UserError: one cannot be written, or would replace an image.
        """
        self.total = self.skipped = 0
        self._threshold = threshold
        self._first_skipped: list[str] = []
        self._thumbnails: list[Thumbnail] = []
        self._sheet, self._explanations = sheet and Path(sheet), explanations and Path(explanations)
        if STDOUT == json_file == csv_file:
            raise UserError("--json and --csv=-: only one of them can go to standard output; name a file for the other")
        self._prints_text = STDOUT not in (json_file, csv_file)
        self._writes_files = any(one not in (None, "", STDOUT) for one in (json_file, csv_file, sheet, explanations))
        with contextlib.ExitStack() as stack:
            self._json = self._open(stack, "--json", json_file)
            self._csv = self._open(stack, "--csv", csv_file)
            if self._sheet:
                _check_sheet(self._sheet)
            if self._explanations:
                _make_empty(self._explanations)
            if self._csv:
                self._top_k, self._csv_classes = top_k, csv_classes
                if csv_classes is None:
                    columns = [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("class", "probability")]
                else:
                    columns = ["labels", *(f"probability_{name}" for name in csv_classes)]
                self._write_row(["file", *columns, "error"])
            self._files = stack.pop_all()  # what was opened stays open

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    @staticmethod
    def _open(stack: contextlib.ExitStack, flag: str, path: str | os.PathLike | None) -> IO[str] | None:
        if path is None:
            return None
        if path == STDOUT:
            return sys.stdout
        if os.fspath(path).lower().endswith(SUFFIXES):
            raise UserError(f"{flag}={path}: is the name of an image; name the file to write, {flag}=FILE")
        with _translated(path):
            _make_parent(Path(path))
            return stack.enter_context(open(path, "w", encoding="utf-8", newline=""))

    def add(self, prediction: Prediction) -> None:
        """Writes a prediction.

        Raises:
          UserError: a file cannot be written (`DiskFull` where no space is left).
        """
        given, prediction = prediction, self._above_threshold(prediction)
        self.total += 1
        self.skipped += bool(prediction.error)
        path = one_line(prediction.path)
        if prediction.error:
            self._first_skipped = [*self._first_skipped, path][:_NAMED]
            print(f"warning: skipped {path}: {prediction.error}", file=sys.stderr, flush=True)
        elif self._prints_text:
            lines = [
                f"  {100 * probability:6.2f} %  {one_line(name)}"
                for name, probability in zip(prediction.names, prediction.probabilities, strict=True)
            ]
            none = [] if lines else [f"  no class of at least {100 * (self._threshold or 0):g} %"]
            print("\n".join([path, *lines, *none]), flush=True)
        explanation = self._write_explanation(prediction)
        if self._json:
            with self._writing(self._json):
                self._json.write(json.dumps(as_json(prediction, explanation)) + "\n")
        if self._csv:
            self._write_row([printable(prediction.path), *self._csv_cells(prediction, given), prediction.error])
        if self._sheet and prediction.image is not None and len(self._thumbnails) < MAX_IMAGES:
            saliency = None if prediction.saliency is None else contact_sheet.shrink(prediction.saliency)
            image = contact_sheet.shrink(prediction.image)
            probability = float(given.probabilities[0])
            self._thumbnails.append(Thumbnail(image, path, given.names[0], probability, saliency))

    def _csv_cells(self, prediction: Prediction, given: Prediction) -> list[str]:
        """The cells of a row between the file and the error; `given`: with the classes below the threshold, too."""
        if self._csv_classes is None:
            shown = zip(prediction.names, (f"{value:.6g}" for value in prediction.probabilities), strict=True)
            cells = [cell for pair in shown for cell in pair]
            return cells + [""] * (2 * self._top_k - len(cells))
        of_class = dict(zip(given.classes.tolist(), given.probabilities, strict=True))
        cells = [f"{of_class[label]:.6g}" if label in of_class else "" for label in range(len(self._csv_classes))]
        return ["|".join(prediction.names), *cells]

    def _above_threshold(self, prediction: Prediction) -> Prediction:
        if self._threshold is None:
            return prediction
        count = int((prediction.probabilities >= self._threshold).sum())  # the most probable are first
        classes, probabilities = prediction.classes[:count], prediction.probabilities[:count]
        return dataclasses.replace(
            prediction, names=prediction.names[:count], classes=classes, probabilities=probabilities
        )

    @property
    def is_unread(self) -> bool:
        """Whether all goes to standard output alone, and that can no longer be written."""
        return not self._writes_files and stdout_failure() is not None

    def describe_skipped(self) -> str:
        """How many files were skipped, of how many, and the names of the first ones."""
        more = self.skipped - len(self._first_skipped)
        names = ", ".join(self._first_skipped) + (f" and {more:,} more" if more else "")
        were = "was" if self.skipped == 1 else "were"
        return f"{self.skipped:,} of {counted(self.total, 'image')} {were} skipped: {names}"

    def finish(self, title: str) -> list[str]:
        """Draws the sheet.

        Args:
          title: above the images.

        Returns:
          Lines that say what was written.

        Raises:
          UserError: it cannot be written.
        """
        lines = []
        if self._sheet and self._thumbnails:
            drawn, readable = len(self._thumbnails), self.total - self.skipped
            count = f"the first {drawn:,} of {readable:,} images" if drawn < readable else counted(drawn, "image")
            contact_sheet.contact_sheet(self._thumbnails, self._sheet, title=f"{title}: {count}")
            lines.append(f"{self._sheet}: {count}")
        if self._explanations:
            lines.append(f"{self._explanations}: {counted(self.total - self.skipped, 'saliency map')}")
        return lines

    def _write_row(self, cells: list[str]) -> None:
        assert self._csv is not None
        with self._writing(self._csv):
            csv.writer(self._csv, lineterminator="\n").writerow(cells)

    @contextlib.contextmanager
    def _writing(self, file: IO[str]) -> Iterator[None]:
        """Flushes what the block has written: a reader sees every image at once."""
        try:
            yield
            file.flush()
        except OSError as error:
            if file is sys.stdout:
                raise
            with contextlib.suppress(OSError):
                file.close()  # writes what is left, which fails again
            raise write_error(file.name, error) from None

    def _write_explanation(self, prediction: Prediction) -> str | None:
        """Writes image and saliency map beside each other; returns the file's path."""
        if not self._explanations or prediction.image is None or prediction.saliency is None:
            return None
        grey = (255 * prediction.saliency).round().astype(np.uint8)
        zoom = max(1, _SIDE // len(grey))
        sides = [
            side.repeat(zoom, 0).repeat(zoom, 1) for side in (to_rgb(prediction.image)[..., ::-1], _grey_to_bgr(grey))
        ]
        border = np.full((len(sides[0]), 4, 3), 255, np.uint8)
        stem = re.sub(r"[^\w.-]+", "_", os.path.splitext(os.path.basename(printable(prediction.path)))[0])[:80]
        path = self._explanations / f"{self.total:06d}_{stem}.png"
        with _translated(path):
            path.write_bytes(cv2.imencode(".png", np.concatenate([sides[0], border, sides[1]], axis=1))[1].tobytes())
        return str(path)


def as_json(prediction: Prediction, explanation: str | None = None) -> dict[str, Any]:
    """Converts a prediction to a JSON object: "picture" is its path, as the operating system has it.

    Args:
      prediction: of an image file.
      explanation: the path of its saliency map.
    """
    rows = zip(prediction.names, prediction.probabilities, prediction.classes, strict=True)
    return {
        "picture": prediction.path,
        "classes": [{"name": name, "probability": float(p), "index": int(label)} for name, p, label in rows],
        **({"error": prediction.error} if prediction.error else {}),
        **({"explanation": explanation} if explanation else {}),
    }


def _grey_to_bgr(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


@contextlib.contextmanager
def _translated(path: Any) -> Iterator[None]:
    """Within the context, an OSError becomes the error for a path that cannot be written."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from None


def _check_sheet(path: Path) -> None:
    """Raises UserError where a sheet cannot be written, or would replace a PNG file that is none of ours."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--sheet={path}: name a PNG file, --sheet=FILE.png")
    with _translated(path):
        _make_parent(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists():
            with open(path, "rb") as file:
                if _PNG_OF_OURS not in file.read(1000):
                    raise UserError(f"--sheet={path}: exists and is no contact sheet; name another file")
        trial = path.with_name(f".{path.name}.new")
        trial.write_bytes(b"")
        trial.unlink()


def _make_parent(path: Path) -> None:
    with contextlib.suppress(FileExistsError):  # a file in the way: opening the path says so
        path.parent.mkdir(parents=True, exist_ok=True)


def _make_empty(folder: Path) -> None:
    """Makes a folder; raises UserError unless it is new or empty, and can be written."""
    with _translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"--explain={folder}: exists and is not empty; name a new folder")
        trial = folder / ".new"
        trial.write_bytes(b"")
        trial.unlink()
