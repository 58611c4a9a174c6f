"""The published files of weights: all records, the one of a name, and the one that a file belongs to."""

from __future__ import annotations

import re

from inception_jax.errors import UserError, nearest
from inception_jax.pretrained.preprocessing import Preprocessing
from inception_jax.pretrained.published_files import PUBLISHED
from inception_jax.pretrained.records import WeightRecord


def all_records() -> tuple[WeightRecord, ...]:
    """Every record, publisher by publisher."""
    return PUBLISHED


def get_record(name: str) -> WeightRecord:
    """The record of a name.

    Raises:
      UserError: there is none; the message has the nearest.
    """
    found = {record.name: record for record in all_records()}
    if name not in found:
        raise UserError(f"unknown record {name!r}{nearest(name, found)}; `convert --list` shows all {len(found)}")
    return found[name]


def select_records(model: str | None = None, source: str | None = None) -> list[WeightRecord]:
    """The records of a model, of a publisher (whose variant, or who published), or of both; None for any."""
    return [
        record
        for record in all_records()
        if model in (None, record.model) and source in (None, record.source, record.name.partition("/")[0])
    ]


def find_record(name: str, sha256: str, model: str, source: str) -> tuple[WeightRecord | None, str]:
    """The record of a file that somebody has, and how that was found out.

    The hash decides where it is published, otherwise the name of the file.

    Args:
      name: the file's name.
      sha256: its hex digest.
      model: a name of `model_names()`.
      source: the publisher whose variant fits.

    Returns:
      (the record, "by its hash" or "by its name"); (None, why) where it cannot be told.
    """
    usable = [record for record in select_records(model, source) if not record.unusable]
    hashed = [record for record in usable if record.digest and record.digest.matches("sha256", sha256)]
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
    usable = [record for record in select_records(model, source) if not record.unusable]
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
