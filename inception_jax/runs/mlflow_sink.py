"""The sink of MLflow: `config.logging.sinks = ("mlflow",)`.

MLflow's own environment variables hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID, … The
client is used, not MLflow's global run: a program may have one of its own.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.runs.manifest import flatten
from inception_jax.runs.sinks import Sink, SinkRun

_STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}  # FAILED: any other
_MAX_PARAMS = 100  # of one request: mlflow.utils.validation
_MAX_VALUE = 6000  # characters of a parameter


def find_problem() -> str | None:
    """Says what keeps MLflow from being used; None: nothing. A server is not asked."""
    from mlflow import MlflowClient

    try:
        MlflowClient()
    except Exception as error:  # of any of its stores: a database, a folder
        return " ".join(str(error).split())
    return None


class MlflowSink(Sink):
    """A run of MLflow."""

    def __init__(self, run: SinkRun):
        """Begins the run, with the config as its parameters, or continues that of `run.run_id`."""
        import mlflow
        from mlflow import MlflowClient, entities

        self._client, self._entities = MlflowClient(), entities
        if run.run_id is None:
            self.run_id = self._client.create_run(self._experiment(), run_name=run.name).info.run_id
            params = [
                entities.Param(_allowed(path), str(value)[:_MAX_VALUE])
                for path, value in flatten(run.config)
                if value is not None
            ]
            for first in range(0, len(params), _MAX_PARAMS):
                self._client.log_batch(self.run_id, params=params[first : first + _MAX_PARAMS])
        else:
            self.run_id = run.run_id
            self._client.update_run(self.run_id, status="RUNNING")
        self.address = f"run {self.run_id} of {mlflow.get_tracking_uri()}"

    def _experiment(self) -> str:
        if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return number
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "inception_jax"
        known = self._client.get_experiment_by_name(name)
        return known.experiment_id if known else self._client.create_experiment(name)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers of a row, in one request."""
        now = round(1000 * time.time())
        metrics = [self._entities.Metric(_allowed(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def write_images(self, step: int, images: Mapping[str, Path]) -> None:
        """Stores the plots as artifacts."""
        for path in images.values():
            self._client.log_artifact(self.run_id, str(path), "pictures")

    def finish(self, result: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Stores report and result as artifacts, and ends MLflow's run with its status."""
        for path in files:
            self._client.log_artifact(self.run_id, str(path))
        self._client.set_terminated(self.run_id, _STATUS.get(str(result.get("status")), "FAILED"))


open_sink = MlflowSink
"""Begins a run of MLflow, or continues one."""


def _allowed(name: str) -> str:
    """A name with the characters that MLflow allows: "test[:40]_raw/top1" becomes "test_:40__raw/top1"."""
    return re.sub(r"[^\w./: -]", "_", name)
