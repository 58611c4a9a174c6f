"""The identity of a checkpoint: its step, its run, and the config of that run.

Checksums find a checkpoint whose bytes have changed, but not a whole one in the wrong place: step directories that were
swapped, renamed or copied, also from another run. So the record of each checkpoint, which has a checksum of its own,
says what it is of.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from inception_jax.checkpoints import checksums


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """The run that checkpoints belong to.

    Attributes:
      id: random, from the first start of the run; copies of a workdir share it.
      config: {dotted path: JSON value} of the fields on which the numbers depend, those with their default left out: a
        later version of this package may have more fields. None: they are neither recorded nor compared.
    """

    id: str
    config: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The entry "run" of the record of a checkpoint."""
        return {"id": self.id} | ({} if self.config is None else {"config": json.loads(json.dumps(self.config))})


def new_run_id() -> str:
    """Returns a random run id, 16 hex digits. It does not use, or change, the seed of any number of the run."""
    return secrets.token_hex(8)


def recorded_run_id(record: Mapping[str, Any]) -> str | None:
    """Returns the run id in the record of a checkpoint; None in one of a version that did not record it."""
    return (record.get("run") or {}).get("id")


def find_mismatch(
    record: Mapping[str, Any], step: int, run_id: str | None = None, config: Mapping[str, Any] | None = None
) -> str | None:
    """Describes why a checkpoint is not the one that its place and its run ask for; None where it is.

    What the record does not have, because an earlier version wrote it, is not compared.

    Args:
      record: of the checkpoint, undamaged.
      step: that its directory is named after.
      run_id: of the run; None: any.
      config: as in `RunIdentity`; None: any.

    Returns:
      The end of a sentence that begins with the directory's path.
    """
    if record["step"] != step:
        return f"holds the checkpoint of step {record['step']}: it was renamed or copied"
    leaf = record["leaves"].get("step")
    # A scalar: its checksum tells its value.
    if leaf and leaf["shape"] == [] and leaf["crc32"] != checksums.checksum(np.asarray(step, leaf["dtype"])):
        return f"is recorded as step {step}, but holds the state of another step"
    recorded = record.get("run") or {}
    if run_id is not None and recorded.get("id", run_id) != run_id:
        return f"belongs to another run (run_id {recorded['id']}, here {run_id})"
    if config is not None and "config" in recorded:
        wanted = json.loads(json.dumps(config))
        for path in sorted({*recorded["config"], *wanted}):
            before, now = (fields.get(path, "the default") for fields in (recorded["config"], wanted))
            if before != now:
                return f"was trained with another config ({path} = {before!r}, here {now!r})"
    return None
