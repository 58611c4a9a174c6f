"""`SplitPredictions`: the probabilities of all classes for every example of a split; saved, averaged and relabelled."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inception_jax.data.datasets import Dataset
from inception_jax.data.records import file_name
from inception_jax.errors import UserError
from inception_jax.metrics import Accumulator, MultiLabelAccumulator
from inception_jax.multihost import processes
from inception_jax.runs import data_record
from inception_jax.weight_files.atomic_write import atomic_write

FORMAT = "inception_jax predictions 1"
_SAME = ("dataset", "split", "digest")
_ROWS_AT_A_TIME = 4096
_TINY = np.finfo(np.float64).tiny


@dataclasses.dataclass(frozen=True)
class SplitPredictions:
    """The predictions of a network, or of several, for the examples of a split.

    Attributes:
      about: "dataset", "split" and "digest" of the data, and "members": a list with, for each network, "model",
        "weights", "step", "protocol" and "image_size".
      class_names: one per class.
      names: of the records, [n] strings.
      index: int64 [n], positions in the split, ascending.
      labels: int32 [n]; of several labels per example uint8 [n, num_classes] of 0 and 1.
      log_probabilities: float [n, num_classes]; of several labels those of each class by itself (sigmoid).
    """

    about: Mapping[str, Any]
    class_names: list[str]
    names: np.ndarray
    index: np.ndarray
    labels: np.ndarray
    log_probabilities: np.ndarray

    @property
    def label_kind(self) -> str:
        """ "single" or "multi", as `config.data.labels`."""
        return "multi" if self.labels.ndim == 2 else "single"

    def save(self, path: str | os.PathLike) -> None:
        """Writes an .npz file, complete or not at all.

        Raises:
          UserError: it cannot be written.
        """
        head = {"format": FORMAT, "about": self.about, "class_names": self.class_names}
        arrays = {name: getattr(self, name) for name in ("names", "index", "labels", "log_probabilities")}
        with atomic_write(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, head=np.array(json.dumps(head)), **arrays)

    def select(self, keep: np.ndarray) -> SplitPredictions:
        """Keeps the examples where `keep`, bool [n], is True."""
        fields = ("names", "index", "labels", "log_probabilities")
        return dataclasses.replace(self, **{name: getattr(self, name)[keep] for name in fields})

    def accumulate(self) -> Accumulator:
        """Sums the metrics; of two equally probable classes the first is taken."""
        if self.label_kind == "multi":
            return self._accumulate_multi()
        results = Accumulator(len(self.class_names))
        for start in range(0, len(self.index), _ROWS_AT_A_TIME):
            rows = slice(start, start + _ROWS_AT_A_TIME)
            logs, labels = self.log_probabilities[rows], self.labels[rows]
            classes = np.argsort(-logs, axis=1, kind="stable")[:, :5].astype(np.int32)
            found = np.take_along_axis(logs, classes, 1)
            right = classes == labels[:, None]
            own = np.take_along_axis(logs, labels[:, None].astype(np.int64), 1).astype(np.float64)
            sums = {"loss": -own.sum(), "top1": right[:, 0].sum(), "top5": right.sum(), "count": len(labels)}
            probabilities = np.exp(found)
            results.add(sums, classes=classes, probabilities=probabilities, labels=labels, index=self.index[rows])
        return results

    def _accumulate_multi(self) -> Accumulator:
        results = MultiLabelAccumulator(len(self.class_names))
        for start in range(0, len(self.index), _ROWS_AT_A_TIME):
            rows = slice(start, start + _ROWS_AT_A_TIME)
            logs, labels = self.log_probabilities[rows], self.labels[rows]
            present = np.minimum(logs.astype(np.float64), 0.0)
            # Of 1 - p, exact also where p is near 0 or 1. Above a logit of 87 the log of p is 0 in float32, and 1 - p
            # at most the smallest number: the loss is that of 87.
            tiny = _TINY if logs.dtype == np.float64 else np.finfo(np.float32).tiny
            absent = np.log(np.maximum(-np.expm1(present), tiny))
            own = np.where(labels > 0, present, absent)
            sums = {"loss": -own.mean(axis=1).sum(), "count": len(labels)}
            results.add(sums, log_probabilities=logs, labels=labels, index=self.index[rows])
        return results


def collect(parts: Sequence[Mapping[str, np.ndarray]], data: Dataset, **member: Any) -> SplitPredictions:
    """Puts together what `eval_loop.evaluate` gave on all processes.

    Args:
      parts: of this process.
      data: the split.
      **member: the network, as in `SplitPredictions.about`.

    Returns:
      The predictions of every example, on every process.
    """
    packed = io.BytesIO()
    own = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.savez(packed, **own)  # type: ignore[arg-type]  # no array is called `allow_pickle`
    contents = processes.gather_bytes(packed.getvalue())
    gathered = [np.load(io.BytesIO(content), allow_pickle=False) for content in contents]
    whole = {name: np.concatenate([part[name] for part in gathered]) for name in own}
    order = np.argsort(whole["index"], kind="stable")
    index = whole["index"][order].astype(np.int64)
    names = np.array([file_name(data.source, int(i)) for i in index])
    record = data_record.describe_split(data)
    about = {"dataset": data.name, "split": data.split, "digest": record["digest"], "members": [member]}
    labels, logs = whole["labels"][order], whole["log_probabilities"][order]
    if labels.ndim == 1:
        labels = labels.astype(np.int32)
    return SplitPredictions(about, list(data.class_names), names, index, labels, logs)


def load(path: str | os.PathLike) -> SplitPredictions:
    """Reads a file that `save` wrote.

    Raises:
      UserError: there is no such file, or it is another one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            names, index, labels, logs = (file[name] for name in ("names", "index", "labels", "log_probabilities"))
        if head["format"] != FORMAT:
            raise ValueError(f"its format is {head['format']!r}")
        found = SplitPredictions(head["about"], head["class_names"], names, index, labels, logs)
        shape = len(index), len(found.class_names)
        if not (logs.shape == shape and labels.shape in (shape, shape[:1]) and names.shape == index.shape == shape[:1]):
            raise ValueError(f"its arrays have {names.shape}, {index.shape}, {labels.shape} and {logs.shape} elements")
        if not {*_SAME, "members"} <= set(found.about):
            raise ValueError("it does not say of which data it is")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not predictions of evaluate --save_predictions ({error}); write the file anew"
        ) from None
    return found


def average(parts: Sequence[SplitPredictions], names: Sequence[str]) -> SplitPredictions:
    """Averages the probabilities of several networks on the same examples, each network with the same weight.

    Args:
      parts: of each network or file.
      names: of the files or workdirs, for messages.

    Raises:
      UserError: they are of other data, other classes, or other examples.
    """
    first = parts[0]
    total, rest = np.zeros((2, *first.log_probabilities.shape))
    for part, name in zip(parts, names, strict=True):
        for field in _SAME:
            if part.about[field] != first.about[field]:
                raise UserError(
                    f"{name}: its {field} is {part.about[field]!r}, that of {names[0]} {first.about[field]!r}; "
                    "an ensemble is of predictions for the same data"
                )
        if part.label_kind != first.label_kind:
            raise UserError(
                f"{name}: config.data.labels = {part.label_kind!r}, that of {names[0]} is {first.label_kind!r}: "
                "probabilities of sigmoid and of softmax are not averaged"
            )
        if differing := data_record.class_difference(first.class_names, part.class_names):
            raise UserError(f"{name}: other classes than {names[0]}: {differing}")
        if not np.array_equal(part.index, first.index) or not np.array_equal(part.labels, first.labels):
            raise UserError(
                f"{name}: {len(part.index):,} examples that are not the {len(first.index):,} of {names[0]}, or other "
                "labels; an ensemble is of predictions for the same examples"
            )
        logs = part.log_probabilities.astype(np.float64)
        total += np.exp(logs)
        if first.label_kind == "multi":
            rest = rest - np.expm1(logs)
    members = [member for part in parts for member in part.about["members"]]
    mean = np.log(np.maximum(total / len(parts), _TINY))
    if first.label_kind == "multi":  # p itself is 1.0 where 1 - p is small, and its logarithm would be 0
        mean = np.where(total > 0.5 * len(parts), np.log1p(-rest / len(parts)), mean)
    return dataclasses.replace(first, about={**first.about, "members": members}, log_probabilities=mean)
