"""Looks up records of published weights: by name, by model and publisher, or for a file that the user has."""

from __future__ import annotations

import os
import re

from inception_jax.errors import UserError, nearest
from inception_jax.pretrained.preprocessing import Preprocessing
from inception_jax.pretrained.published_files import PUBLISHED
from inception_jax.pretrained.records import WeightRecord


def all_records() -> tuple[WeightRecord, ...]:
    """Returns every record, grouped by publisher."""
    return PUBLISHED


def get_record(name: str) -> WeightRecord:
    """Looks up a record by its name.

    Args:
      name: such as "timm/inception_v4.tf_in1k".

    Raises:
      UserError: there is none; the message has the nearest name.
    """
    found = {record.name: record for record in all_records()}
    if name not in found:
        raise UserError(f"unknown record {name!r}{nearest(name, found)}; `convert --list` shows all {len(found)}")
    return found[name]


def select_records(model: str | None = None, source: str | None = None) -> list[WeightRecord]:
    """Returns the records of a model, of a publisher, or of both.

    Args:
      model: a name of `model_names()`; None: any.
      source: the publisher of the file or of the variant that the file has; None: any.
    """
    return [
        record
        for record in all_records()
        if model in (None, record.model) and source in (None, record.source, record.name.partition("/")[0])
    ]


def find_record(name: str, sha256: str, model: str, source: str) -> tuple[WeightRecord | None, str]:
    """Finds the record of a file that the user has.

    The hash decides where the publisher gives one, otherwise the name of the file.

    Args:
      name: the file's name.
      sha256: the file's hex digest.
      model: a name of `model_names()`.
      source: the publisher whose variant the arrays fit.

    Returns:
      (the record, "by its hash" or "by its name"), or (None, why no record was found).
    """
    usable = [record for record in select_records(model, source) if not record.unusable]
    hashed = [record for record in usable if record.digest and record.digest.matches("sha256", sha256)]
    if len(hashed) == 1:
        return hashed[0], "by its hash"
    named = [record for record in usable if record.file and _stem(record.file) == _stem(name)]
    if len(named) == 1:
        (record,) = named
        if record.digest and record.digest.algorithm == "sha256" and record.digest.of == record.file:
            return None, f"the file is named like {record.name}, but has another hash"
        return record, "by its name"
    return None, f"neither hash nor file name matches one; records of {source}'s {model}: " + (
        ", ".join(record.name for record in usable) or "none"
    )


def refuse_unusable(path: str | os.PathLike, sha256: str) -> None:
    """Refuses a published file that cannot be imported, with the reason of its record.

    Args:
      path: of the file, for the message.
      sha256: the file's hex digest.

    Raises:
      UserError: the hash is that of such a file.
    """
    for record in all_records():
        if record.unusable and record.digest and record.digest.matches("sha256", sha256):
            raise UserError(f"{path} is {record.name}, which cannot be used: {record.unusable}")


def common_preprocessing(model: str, source: str) -> Preprocessing:
    """Returns the preprocessing that all of a publisher's files of a network share.

    Files that another publisher wrote under this one's names do not count: a file of unknown origin that has the names
    of pytorch-fid gets pytorch-fid's preprocessing, not torch-fidelity's.

    Args:
      model: a name of `model_names()`.
      source: a name of `registry.source_names()`.

    Raises:
      UserError: the files differ in it, or there are none.
    """
    usable = [record for record in select_records(model, source) if not record.unusable]
    own = [record for record in usable if record.name.startswith(f"{source}/")]
    rules = {record.preprocessing for record in own or usable}
    if len(rules) != 1:
        names = ", ".join(record.name for record in usable)
        raise UserError(
            f"the preprocessing of {source}'s {model} depends on the file; name it: --record={{{names}}}"
            if usable
            else f"no record has the preprocessing of {source}'s {model}; name one with --record (convert --list)"
        )
    return rules.pop()


def _stem(name: str) -> str:
    return re.sub(r"(\.tar\.gz|\.zip|\.ckpt|\.pth|\.pt|\.index|\.data-\d+-of-\d+)+$", "", name)
