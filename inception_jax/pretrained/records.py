"""Records of published weights: address, hash, claimed accuracy, classes, licence, preprocessing; and their listing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from inception_jax.pretrained.preprocessing import Preprocessing
from inception_jax.runs.tables import format_table

NOT_KNOWN = "not known"


@dataclasses.dataclass(frozen=True)
class Digest:
    """The published hash of a file, or its first digits.

    Attributes:
      algorithm: "sha256", "sha1" or "md5".
      hex: its digits, in lower case; fewer than the algorithm has where only the first are published.
      of: the name of the file that was hashed (for an archive it may be the file inside).
    """

    algorithm: str
    hex: str
    of: str

    def matches(self, algorithm: str, digest: str) -> bool:
        """Returns whether a whole hex digest equals this one, in the digits that are published."""
        return algorithm == self.algorithm and digest.lower().startswith(self.hex)

    def __str__(self) -> str:
        """Formats the digest, such as `sha256 1378be20…`; the dots stand for digits that are not published."""
        digits = {"sha256": 64, "sha1": 40, "md5": 32}[self.algorithm]
        return f"{self.algorithm} {self.hex}" + ("…" if len(self.hex) < digits else "")


@dataclasses.dataclass(frozen=True)
class WeightRecord:
    """One published file of weights.

    Attributes:
      name: "<source>/<the publisher's name>".
      model: a name of `model_names()`.
      source: the publisher whose variant of the network it is, a name of `registry.source_names()`.
      file: the file's name as published; None: not known.
      preprocessing: of the publisher's own evaluation.
      url: where the publisher has it; None: not known.
      digest: hash of the file; None: not known.
      top1, top5: accuracy on ImageNet's validation set in percent that `claimed_by` gives; None: not known.
      claimed_by: who published these numbers.
      classes: outputs of the classifier in the file; 0: it has none; None: not known.
      background: whether class 0 is "background", before ImageNet's 1000.
      aux_heads: whether the file has auxiliary heads.
      licence: as the publisher says; None: not known.
      licence_checked: whether the licence was read at the publisher's own page.
      notes: what a user should know before relying on the file.
      unusable: why it cannot be imported; None: it can be.
    """

    name: str
    model: str
    source: str
    file: str | None
    preprocessing: Preprocessing
    url: str | None = None
    digest: Digest | None = None
    top1: float | None = None
    top5: float | None = None
    claimed_by: str | None = None
    classes: int | None = 1000
    background: bool = False
    aux_heads: bool = False
    licence: str | None = None
    licence_checked: bool = False
    notes: tuple[str, ...] = ()
    unusable: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns all fields as JSON values."""
        return dataclasses.asdict(self) | {"notes": list(self.notes)}

    def accuracy(self) -> str:
        """Top-1 and top-5 such as `77.294 / 93.45`, with "not known" for a missing number."""
        return " / ".join(NOT_KNOWN if value is None else str(value) for value in (self.top1, self.top5))

    def details(self) -> list[tuple[str, str]]:
        """Returns (field, value) pairs for `convert --list`."""
        licence = self.licence or NOT_KNOWN
        if self.licence and not self.licence_checked:
            licence += " (not checked)"
        claimed = f" ({self.claimed_by})" if self.claimed_by else ""
        classes = NOT_KNOWN if self.classes is None else str(self.classes or "none")
        classes += ", class 0 is the background" if self.background else ""
        lines = [
            ("model", f"{self.model}, {self.source}'s variant"),
            ("file", self.file or NOT_KNOWN),
            ("address", self.url or NOT_KNOWN),
            ("hash", f"{self.digest} of {self.digest.of}" if self.digest else NOT_KNOWN),
            ("top-1 / top-5", f"{self.accuracy()}{claimed}"),
            ("classes", classes + (", with auxiliary heads" if self.aux_heads else "")),
            ("images", self.preprocessing.summary()),
            ("according to", self.preprocessing.source),
            ("licence", licence),
            *(("note", note) for note in self.notes),
        ]
        return [*lines, ("not usable", self.unusable)] if self.unusable else lines


def format_records(records: Sequence[WeightRecord]) -> str:
    """Formats a table of records, and all that is known of each if there are at most eight.

    Args:
      records: in the order of the table.
    """
    if not records:
        return "no published file is known"
    rows = [["record", "model", "source", "top-1 / top-5", "classes", "pixels", "licence"]]
    rows += [_row(record) for record in records]
    parts = [format_table(rows, "lllrrrl")]
    parts += [
        f"{record.name}\n{format_table([[f'  {field}', value] for field, value in record.details()])}"
        for record in records
        if len(records) <= _MAX_DETAILED
    ]
    if len(records) > _MAX_DETAILED:
        parts.append(
            "--model and --source select fewer and show hashes, addresses, crops and notes; --json has everything"
        )
    return "\n\n".join(parts)


_MAX_DETAILED = 8


def _row(record: WeightRecord) -> list[str]:
    classes = "?" if record.classes is None else str(record.classes)
    licence = (record.licence or "?") + ("" if record.licence_checked or not record.licence else " (not checked)")
    state = "; not usable" if record.unusable else ""
    return [
        record.name,
        record.model,
        record.source,
        record.accuracy(),
        classes,
        str(record.preprocessing.image_size),
        licence + state,
    ]
