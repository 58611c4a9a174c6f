"""The sink of Weights & Biases (W&B): `config.logging.sinks = ("wandb",)`.

W&B's own environment variables hold: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, … A run that
continues is W&B's run of the same id. Rows carry their step as a metric of its own, because W&B drops what comes
behind the step that it counts itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.runs.sinks import FINISH_SECONDS, Sink, SinkRun

_NO_NETWORK = ("offline", "dryrun", "disabled")


def find_problem() -> str | None:
    """Says what keeps W&B from being used; None: nothing. Asks neither the network nor a person."""
    import wandb

    if wandb.setup().settings.mode in _NO_NETWORK or wandb.login(prompt=False, verify=False):
        return None
    return "there is no API key; log in (`wandb login`), or set WANDB_MODE=offline"


class WandbSink(Sink):
    """A run of W&B."""

    def __init__(self, run: SinkRun):
        """Begins the run, or continues that of `run.run_id`; its files are in the folder `wandb` of the workdir."""
        import wandb

        self._wandb = wandb
        is_new = run.run_id is None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "inception_jax",
            name=os.environ.get("WANDB_NAME") or run.name,
            id=run.run_id,
            resume=None if is_new else "allow",
            config=dict(run.config) if is_new else None,
            dir=str(run.workdir),
            settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH_SECONDS),
        )
        self._run.define_metric("*", step_metric="step")
        self.run_id = self._run.id
        self.address = f"offline, in {self._run.dir}" if self._run.offline else self._run.url or ""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers of a row."""
        self._run.log({**values, "step": step})

    def write_images(self, step: int, images: Mapping[str, Path]) -> None:
        """Logs the plots."""
        shown = {f"pictures/{name}": self._wandb.Image(str(path)) for name, path in images.items()}
        self._run.log({**shown, "step": step})

    def finish(self, result: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Adds the result to the summary, uploads the report, and ends W&B's run with its status."""
        self._run.summary.update({"result": dict(result)})
        for path in files:
            shutil.copy(path, self._run.dir)  # W&B uploads what is there at the end
        if result.get("status") == "interrupted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if result.get("status") == "finished" else 1)


open_sink = WandbSink
"""Begins a run of W&B, or continues one."""
