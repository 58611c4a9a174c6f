"""The records of published files, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence

from inception_jax.pretrained.records import Record
from inception_jax.runs.tables import aligned


def words(records: Sequence[Record]) -> str:
    """A line per record; of a single publisher's few, all that is known of each.

    Args:
      records: in the order in which they shall stand.
    """
    if not records:
        return "no published file is known"
    rows = [["record", "model", "form", "top-1 / top-5", "classes", "pixels", "licence"]]
    rows += [_row(record) for record in records]
    parts = [aligned(rows, "lllrrrl")]
    parts += [
        f"{record.name}\n{aligned([[f'  {field}', value] for field, value in record.words()])}"
        for record in records
        if len(records) <= _FEW
    ]
    if len(records) > _FEW:
        parts.append("--model and --source show fewer, with hashes, addresses, crops and notes; --json has everything")
    return "\n\n".join(parts)


_FEW = 8


def _row(record: Record) -> list[str]:
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
