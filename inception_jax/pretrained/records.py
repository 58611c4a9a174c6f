"""One record per published file of weights: where it is, what it is worth, and what its pictures must look like."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from inception_jax.errors import UserError, nearest
from inception_jax.pretrained.preprocessing import Preprocessing

NOT_KNOWN = "not known"


@dataclasses.dataclass(frozen=True)
class Digest:
    """What is known of a file's hash.

    Attributes:
      algorithm: "sha256", "sha1" or "md5".
      hex: its digits, in lower case; fewer than the algorithm has where only the first are published.
      of: the file that it is of.
    """

    algorithm: str
    hex: str
    of: str

    def fits(self, algorithm: str, digest: str) -> bool:
        """Whether a whole digest in hex is this one, as far as that is known."""
        return algorithm == self.algorithm and digest.lower().startswith(self.hex)

    def __str__(self) -> str:
        whole = {"sha256": 64, "sha1": 40, "md5": 32}[self.algorithm]
        return f"{self.algorithm} {self.hex}" + ("…" if len(self.hex) < whole else "")


@dataclasses.dataclass(frozen=True)
class Record:
    """One published file of weights.

    Attributes:
      name: "<source>/<the publisher's name>".
      model: a name of `model_names()`.
      source: whose form it has, a name of `sources.source_names()`; its switches apply.
      file: the file's name as published; None: not known.
      preprocessing: the publisher's evaluation.
      url: where the publisher has it; None: not known.
      digest: None: not known.
      top1, top5: accuracy on ImageNet's validation set in percent that `claimed_by` gives; None: not known.
      claimed_by: who measured it.
      classes: outputs of the classifier in the file; 0: it has none; None: not known.
      background: whether class 0 is "background", before ImageNet's 1000.
      aux_heads: whether the file has auxiliary heads.
      licence: as the publisher says; None: not known.
      licence_checked: whether it was read at the publisher's.
      notes: what one should know before one trusts it.
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
        """All of it as JSON holds it."""
        return dataclasses.asdict(self) | {"notes": list(self.notes)}

    def accuracy(self) -> str:
        """`77.294 / 93.45`, with "not known" in the place of what is not."""
        return " / ".join(NOT_KNOWN if value is None else str(value) for value in (self.top1, self.top5))

    def words(self) -> list[tuple[str, str]]:
        """(field, value) lines for a person, in the order in which they are asked for."""
        licence = self.licence or NOT_KNOWN
        if self.licence and not self.licence_checked:
            licence += " (not checked)"
        claimed = f" ({self.claimed_by})" if self.claimed_by else ""
        classes = NOT_KNOWN if self.classes is None else str(self.classes or "none")
        classes += ", class 0 is the background" if self.background else ""
        lines = [
            ("model", f"{self.model}, as {self.source} has it"),
            ("file", self.file or NOT_KNOWN),
            ("found at", self.url or NOT_KNOWN),
            ("hash", f"{self.digest} of {self.digest.of}" if self.digest else NOT_KNOWN),
            ("top-1 / top-5", f"{self.accuracy()}{claimed}"),
            ("classes", classes + (", with auxiliary heads" if self.aux_heads else "")),
            ("pictures", self.preprocessing.words()),
            ("as in", self.preprocessing.source),
            ("licence", licence),
            *(("note", note) for note in self.notes),
        ]
        return [*lines, ("not usable", self.unusable)] if self.unusable else lines


def all_records() -> tuple[Record, ...]:
    """Every record, publisher by publisher."""
    from inception_jax.pretrained.published import PUBLISHED

    return PUBLISHED


def get_record(name: str) -> Record:
    """The record of a name.

    Raises:
      UserError: there is none; the message has the nearest.
    """
    found = {record.name: record for record in all_records()}
    if name not in found:
        raise UserError(f"unknown record {name!r}{nearest(name, found)}; `convert --list` shows all {len(found)}")
    return found[name]


def select(model: str | None = None, source: str | None = None) -> list[Record]:
    """The records of a model, of a publisher (whose form, or who published), or of both; None for any."""
    return [
        record
        for record in all_records()
        if model in (None, record.model) and source in (None, record.source, record.name.partition("/")[0])
    ]


def find_file(name: str, sha256: str, model: str, source: str) -> tuple[Record | None, str]:
    """The record of a file that somebody has, and how that was found out.

    The hash decides where it is published, otherwise the name of the file.

    Args:
      name: the file's name.
      sha256: its hex digest.
      model: a name of `model_names()`.
      source: the publisher whose form fits.

    Returns:
      (the record, "by its hash" or "by its name"); (None, why) where it cannot be told.
    """
    usable = [record for record in select(model, source) if not record.unusable]
    hashed = [record for record in usable if record.digest and record.digest.fits("sha256", sha256)]
    if len(hashed) == 1:
        return hashed[0], "by its hash"
    named = [record for record in usable if record.file and _stem(record.file) == _stem(name)]
    if len(named) == 1:
        (record,) = named
        if record.digest and record.digest.algorithm == "sha256" and record.digest.of == record.file:
            return None, f"it is named like {record.name}, whose hash is another"
        return record, "by its name"
    return None, f"neither hash nor name is that of a record; of {source}'s {model} there are: " + (
        ", ".join(record.name for record in usable) or "none"
    )


def common_preprocessing(model: str, source: str) -> Preprocessing:
    """What all of a publisher's files of a network have in common.

    Raises:
      UserError: they differ, or there are none.
    """
    usable = [record for record in select(model, source) if not record.unusable]
    rules = {record.preprocessing for record in usable}
    if len(rules) != 1:
        names = ", ".join(record.name for record in usable)
        raise UserError(
            f"how {source}'s {model} sees pictures depends on the file: --record={{{names}}}"
            if usable
            else f"no record says how {source}'s {model} sees pictures: give --record=NAME"
        )
    return rules.pop()


def _stem(name: str) -> str:
    return re.sub(r"(\.tar\.gz|\.zip|\.ckpt|\.pth|\.pt|\.index|\.data-\d+-of-\d+)+$", "", name)
