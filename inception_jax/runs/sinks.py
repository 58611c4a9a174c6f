"""Sinks: services such as W&B and MLflow, to which the rows of a run are copied while it trains.

A sink follows metrics.jsonl and timing.jsonl in a thread of its own, from the first row that it has not got: so a slow
sink keeps no rows in memory and holds up no step, and one that was away for a while, or is new to the run, gets what
it missed. The files stay the record of the run. What a sink raises ends that sink, not the run.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax import extensions
from inception_jax.errors import UserError
from inception_jax.runs import manifest, metric_files
from inception_jax.runs.manifest import replace_bytes

FILE = "sinks.json"
"""The runs of the sinks, by which a later start continues them: {sink: {"run_id", "steps": {group: step}}}."""

FINISH_SECONDS = 30.0
"""Seconds that the end of a run waits for all its sinks together."""

_INTERRUPTED_SECONDS = 10.0  # the same, after a signal: the machine may be about to go
_STOP_SECONDS = 5.0  # the same, after an error that is not the user's


class Sink:
    """Base class of sinks: a service that shows runs. All its methods are called in one thread."""

    run_id: str | None = None
    """Identifies the run in the service; a later start of the run gets it back. None: it has none."""
    address: str = ""
    """Where a person sees the run, for the log."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of a row.

        Args:
          step: of the row. The steps of one group of names ascend.
          values: {"train/loss": 0.25, "test_ema/top1": 0.75, "timing/images_per_second": 900.0, …}; also NaN and
            infinities.
        """
        raise NotImplementedError

    def write_images(self, step: int, images: Mapping[str, Path]) -> None:
        """Takes the plots of a finished run: {name: path of a PNG file}. By default they are not used."""

    def finish(self, result: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Ends this start of the run; all rows have been written. By default nothing is done.

        Args:
          result: the content of result.json; its "status" is "finished", "interrupted" (the same command continues the
            run), "diverged" or "failed".
          files: report.md and result.json, where they could be written.
        """


@dataclasses.dataclass(frozen=True)
class SinkRun:
    """The run that a sink is opened for.

    Attributes:
      workdir: of the run.
      config: content of config.json.
      run_id: of the sink at an earlier start, which is to be continued; None: the run is new to it.
    """

    workdir: Path
    config: Mapping[str, Any]
    run_id: str | None

    @property
    def name(self) -> str:
        """The name of the run: that of its workdir."""
        return self.workdir.resolve().name


def check(names: Sequence[str]) -> None:
    """Checks that sinks can be opened: their package is installed and its settings are usable. Opens none.

    Args:
      names: `config.logging.sinks`.

    Raises:
      UserError: one cannot; says what to do.
    """
    for name in names:
        if name in extensions.SINKS or name == extensions.TENSORBOARD:
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise UserError(f"config.logging.sinks: {name} cannot be imported: {error}") from None
            raise UserError(
                f"config.logging.sinks: {name} is not installed: pip install 'inception_jax[{name}]'"
            ) from None
        except Exception as error:
            raise UserError(f"config.logging.sinks: {name} cannot be imported: {_describe(error)}") from None
        if problem := _module(name).find_problem():
            raise UserError(f"config.logging.sinks: {name}: {problem}")


def _module(name: str) -> Any:
    """The module of a built-in sink: `find_problem`, and `open` as of `register_sink`."""
    return importlib.import_module(f"inception_jax.runs.{name}_sink")


class Sinks:
    """The sinks of one start of a run. No method raises for a fault of a sink."""

    def __init__(self, names: Sequence[str], workdir: Path, config: Mapping[str, Any]):
        """Prepares sinks; `start` opens them.

        Args:
          names: `config.logging.sinks`; () on every process but process 0. TensorBoard is not followed here: its
            files are written with the rows.
          workdir: of the run.
          config: content of config.json.
        """
        self._names = [name for name in dict.fromkeys(names) if name != extensions.TENSORBOARD]
        self._workdir, self._config = workdir, config
        self._followers: list[_Follower] = []
        self._statuses = {extensions.TENSORBOARD: "complete"} if extensions.TENSORBOARD in names else {}
        self._news: list[str] = []

    def start(self) -> None:
        """Starts the threads; metrics.jsonl must have been truncated to the restored step."""
        if not self._names:
            return
        try:
            states = _States(self._workdir / FILE)
        except UserError as error:
            self._news.append(f"warning: {error}; the sinks {', '.join(self._names)} are left out")
            self._statuses |= dict.fromkeys(self._names, f"failed when it was opened: {error}")
            return
        for name in self._names:
            run = SinkRun(self._workdir, self._config, states.run_id(name))
            self._followers.append(_Follower(name, run, states, self._news.append))

    def notify(self) -> None:
        """Says that the metric files have new rows."""
        for follower in self._followers:
            follower.notify()

    def pop_news(self) -> list[str]:
        """Lines for the log: where a sink shows the run, and which sink has failed; each once."""
        news = self._news[:]
        del self._news[: len(news)]
        return news

    def finish(
        self, step: int, result: Mapping[str, Any], files: Sequence[Path], images: Mapping[str, Path] | None = None
    ) -> dict[str, str]:
        """Passes the end of the run on, and waits for the sinks, for a limited time.

        Args:
          step: the last one.
          result: as of `Sink.finish`.
          files: likewise.
          images: as of `Sink.write_images`.

        Returns:
          {sink: "complete", or why it has not got everything}.
        """
        seconds = _INTERRUPTED_SECONDS if result.get("status") == "interrupted" else FINISH_SECONDS
        return self._end(_End(step, dict(result), list(files), dict(images or {})), seconds)

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end(_End(0, {"status": "failed"}, [], {}), _STOP_SECONDS)

    def _end(self, end: _End, seconds: float) -> dict[str, str]:
        followers, self._followers = self._followers, []
        for follower in followers:
            follower.end(end)
        deadline = time.monotonic() + seconds
        return self._statuses | {follower.name: follower.join(deadline, seconds) for follower in followers}


@dataclasses.dataclass(frozen=True)
class _End:
    step: int
    result: dict[str, Any]
    files: list[Path]
    images: dict[str, Path]


class _Follower:
    """One sink and its thread. The thread is a daemon: a sink that hangs does not keep the process alive."""

    def __init__(self, name: str, run: SinkRun, states: _States, tell: Callable[[str], None]):
        self.name, self._run, self._states, self._tell = name, run, states, tell
        self._files = {name: metric_files.FollowedFile(run.workdir / name) for name in metric_files.FILES}
        self._changed = threading.Event()
        self._ending: _End | None = None
        self._step: int | None = None  # of the row that is being written, or was last
        self._status: str | None = None  # None: the thread is at work
        self._thread = threading.Thread(target=self._follow, name=f"sink {name}", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        self._changed.set()

    def end(self, end: _End) -> None:
        self._ending = end
        self._changed.set()

    def join(self, deadline: float, seconds: float) -> str:
        """Waits for the thread until a time; returns the status for result.json."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if (status := self._status) is not None:
            return status
        since = "it was not opened" if self._step is None else f"rows after step {self._step:,} may be missing"
        status = f"not finished within {seconds:g} s: {since}"
        self._tell(f"warning: sink {self.name}: {status}")
        return status

    def _follow(self) -> None:
        try:
            factory = extensions.SINKS.get(self.name) or _module(self.name).open_sink
            sink: Sink = factory(self._run)
            self._states.set_run_id(self.name, sink.run_id)
            if sink.address:
                self._tell(f"{self.name}: {sink.address}")
            while True:
                ending = self._ending  # before the files: when the end has been announced, they are complete
                self._write_new_rows(sink)
                if ending:
                    break
                self._changed.wait()
                self._changed.clear()
            if ending.images:
                sink.write_images(ending.step, ending.images)
            sink.finish(ending.result, ending.files)
            self._status = "complete"
        except BaseException as error:  # whatever a foreign library raises, here it ends a thread
            when = "when it was opened" if self._step is None else f"at step {self._step:,}"
            self._status = f"failed {when}: {_describe(error)}"
            self._tell(f"warning: sink {self.name} {self._status}; the run continues without it")

    def _write_new_rows(self, sink: Sink) -> None:
        """Writes the rows that the sink has not got, those of both files in the order of their steps."""
        rows = [metric_files.to_scalars(name, row) for name, file in self._files.items() for row in file.new_rows()]
        for group, step, values in sorted(rows, key=lambda row: row[1]):
            if step > self._states.step(self.name, group):
                self._step = step
                sink.write(step, values)
                self._states.set_step(self.name, group, step)


class _States:
    """The content of sinks.json, shared by the threads."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        self._content: dict[str, Any] = manifest.read_json_object(path) or {}

    def run_id(self, sink: str) -> str | None:
        return self._of(sink)["run_id"]

    def step(self, sink: str, group: str) -> int:
        """The step of the newest row of a group that the sink has got; -1: none."""
        return self._of(sink)["steps"].get(group, -1)

    def set_run_id(self, sink: str, run_id: str | None) -> None:
        self._of(sink)["run_id"] = run_id
        self._write()

    def set_step(self, sink: str, group: str, step: int) -> None:
        self._of(sink)["steps"][group] = step
        self._write()

    def _of(self, sink: str) -> dict[str, Any]:
        with self._lock:
            return self._content.setdefault(sink, {"run_id": None, "steps": {}})

    def _write(self) -> None:
        # Without fsync: it is written once per row, and what a loss of power undoes is written again.
        with self._lock:
            content = json.dumps(self._content, indent=2) + "\n"
            replace_bytes(self._path, content.encode(), sync=False)


def _describe(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
