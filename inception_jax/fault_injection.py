"""Fault injection: interrupts a training run at chosen moments, restarts it, and checks that it resumes exactly.

A run is started, gets SIGKILL or SIGTERM at a chosen moment (while it starts, steps, saves a checkpoint, deletes one or
evaluates), and is started again, many times. After each interruption its metrics.jsonl must be a prefix of the
uninterrupted run's; at the end log, result and fingerprint of the state must be the same. `experiments/soak` and
`tests/resume` use it. Standard library only.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

CHECKPOINTS = "checkpoints"
AIMS = {"start": 4, "steps": 5, "save": 7, "deletion": 2, "evaluation": 2}
POLL_SECONDS = 0.002
_TAIL_BYTES = 8192
# A short run with a save, a deletion or an evaluation every few steps, as fields of configs/digits.py: GoogLeNet with
# both heads, LRN, dropout, random crops and EMA; narrow, on small images.
SHORT_DIGITS_RUN = {
    "batch_size": 16, "num_steps": 150, "data.image_size": 32, "model.width_multiplier": 0.25, "data.threads": 2,
    "data.train_split": "train[:100]", "data.eval_split": "test[:40]", "logging.every_steps": 1,
    "evaluation.every_epochs": 0.64, "checkpoint.every_epochs": 0.48, "logging.pictures": False,
}  # fmt: skip
LIMIT_SECONDS = 900.0
"""A start that has not reached the moment of its signal after this time counts as hung."""


class ResumeFailure(AssertionError):
    """The run failed to resume, or its log or result differs from the uninterrupted run's."""


@dataclasses.dataclass(frozen=True)
class RunStart:
    """One start of the run, from its beginning to its end.

    Attributes:
      aim: the moment at which the signal was intended, of `AIMS`, "end" or "nothing".
      hit: the moment at which it came, judged by the files; None: the run ended by itself before.
      step: last step in metrics.jsonl at the end; 0 if there is none.
      seconds: duration.
      exit_code: as `Popen.returncode`: minus the signal's number if the signal ended the process.
    """

    aim: str
    hit: str | None
    step: int
    seconds: float
    exit_code: int


class ReferenceRun:
    """The log and the result of the uninterrupted run.

    Attributes:
      log: the bytes of metrics.jsonl.
      last: the last step.
      evaluations: {step: number of its evaluation rows}.
      outcome: "status", "steps", "fingerprint" of the whole state and "metrics" of result.json.
    """

    def __init__(self, workdir: Path):
        """Reads the workdir of a finished run.

        Raises:
          ResumeFailure: metrics.jsonl has a row twice.
        """
        self.log = (workdir / "metrics.jsonl").read_bytes()
        rows = [json.loads(line) for line in self.log.splitlines()]
        if len({(row["kind"], row["step"], row.get("weights")) for row in rows}) < len(rows):
            raise ResumeFailure(f"{workdir}: metrics.jsonl has a row twice")
        self.last = rows[-1]["step"]
        self.evaluations = collections.Counter(row["step"] for row in rows if row["kind"] == "evaluation")
        result = json.loads((workdir / "result.json").read_text())
        self.outcome = {name: result[name] for name in ("status", "steps", "fingerprint", "metrics")}


class InterruptedRun:
    """One run that is interrupted and started again until it finishes."""

    def __init__(
        self,
        start: Callable[[], Any],
        read_stderr: Callable[[Any], str],
        workdir: Path,
        reference: ReferenceRun,
        generator: random.Random,
        *,
        exact: bool = True,
        log_start: Callable[[RunStart], None] = lambda start: None,
    ):
        """Starts nothing.

        Args:
          start: starts the training command on `workdir`; returns an object like `subprocess.Popen`.
          read_stderr: returns what such a process has written to stderr so far.
          workdir: workdir of the run.
          reference: the uninterrupted run.
          generator: makes every random choice.
          exact: whether metrics.jsonl must always be a prefix of the uninterrupted run's, byte for byte.
          log_start: called after each start.
        """
        self._start_process, self._read_stderr, self.workdir, self.reference = start, read_stderr, workdir, reference
        self._random, self._exact, self._log_start = generator, exact, log_start
        self.starts: list[RunStart] = []
        self._first_rows: list[float] = []  # seconds from a start to its first row

    def kill(self, count: int, aims: Mapping[str, int] = AIMS) -> None:
        """Sends SIGKILL `count` times, then once between the last step and the result.

        Args:
          count: number of SIGKILLs.
          aims: weight of each moment; "evaluation" needs a run that logs every step. Near its last step a run is only
            killed while it starts, so that it does not finish before.

        Raises:
          ResumeFailure: a start failed, or the log is not a prefix of the uninterrupted run's.
        """
        self._start_and_signal("steps", signal.SIGKILL)  # also measures the duration of a start
        margin = min(8, self.reference.last // 3)
        while self.hits() < count:
            near = self.reference.last - self._last_step() <= margin
            aim = "start" if near else self._random.choices([*aims], [*aims.values()])[0]
            if self._start_and_signal(aim, signal.SIGKILL).hit is None:
                raise ResumeFailure(f"the run finished after {self.hits()} of {count} kills: give it more steps")
        self._start_and_signal("end", signal.SIGKILL)

    def terminate(self, count: int) -> None:
        """Sends SIGTERM `count` times: mostly while the run steps, sometimes while it starts; raises as `kill`."""
        for number in range(count):
            self._start_and_signal("start" if number % 4 == 3 else "steps", signal.SIGTERM)

    def finish(self) -> RunStart:
        """Lets the run finish, and compares log and result with the uninterrupted run's.

        Returns:
          The last start.

        Raises:
          ResumeFailure: the run failed, or log or result differ.
        """
        start = self._start_and_signal("nothing", None)
        mine = ReferenceRun(self.workdir)
        if self._exact and (mine.log, mine.outcome) != (self.reference.log, self.reference.outcome):
            raise ResumeFailure(
                f"log or result differ from the uninterrupted run's: {mine.outcome}, expected {self.reference.outcome}"
            )
        return start

    def hits(self) -> int:
        """The number of signals that came before the run had ended."""
        return sum(start.hit is not None for start in self.starts)

    def _start_and_signal(self, aim: str, number: signal.Signals | None) -> RunStart:
        """Starts the run, sends a signal at the intended moment, waits for the end and checks the log."""
        began, clock = time.time(), time.monotonic()
        process = self._start_process()
        try:
            for _ in self._wait_for(aim, process, began, clock):
                time.sleep(POLL_SECONDS)
            if number is not None:
                process.send_signal(number)  # does nothing if it has ended
            code = process.wait(timeout=LIMIT_SECONDS)
        finally:
            process.kill()
        stderr = self._read_stderr(process)
        # A SIGTERM before the run has its handler ends the process; after that, the run saves and exits with 128 + 15.
        stopped = {signal.SIGKILL: (-9,), signal.SIGTERM: (-15, 143), None: ()}[number]
        hit = self._classify(stderr, began) if code in stopped else None
        start = RunStart(aim, hit, self._last_step(), round(time.monotonic() - clock, 3), code)
        self.starts.append(start)
        self._log_start(start)
        if code and not hit:
            raise ResumeFailure(f"start {len(self.starts)} ({start}) ended with exit code {code}: {stderr[-2000:]}")
        log = self._read_log()
        if self._exact and not self.reference.log.startswith(log):
            raise ResumeFailure(
                f"after start {len(self.starts)} ({start}) metrics.jsonl is not a prefix of the "
                f"uninterrupted run's; it ends with {log[-500:]!r}"
            )
        return start

    def _wait_for(self, aim: str, process: Any, began: float, clock: float) -> Iterator[None]:
        """Yields until the intended moment, or the end of the process."""
        reached, delay = self._condition(aim, began)
        first_row, deadline = None, None
        while process.poll() is None:
            now = time.monotonic()
            if now - clock > LIMIT_SECONDS:
                raise ResumeFailure(
                    f"start {len(self.starts) + 1} has not reached {aim!r} in {LIMIT_SECONDS:.0f} s: "
                    f"{self._read_stderr(process)[-2000:]}"
                )
            stderr = self._read_stderr(process)
            if first_row is None and _count_rows(stderr):
                first_row = now - clock
                self._first_rows.append(first_row)
            if deadline is None and reached(stderr):
                deadline = now + delay
            if (deadline is not None and now >= deadline) or (aim == "start" and first_row is not None):
                return
            yield

    def _condition(self, aim: str, began: float) -> tuple[Callable[[str], bool], float]:
        """(whether the moment is near, given the process's stderr; seconds to wait after that)."""
        directory, rows = self.workdir / CHECKPOINTS, self._random.randint(1, 2)
        wait = self._random.uniform(0, 0.15)
        match aim:
            case "start":  # imports, restoring, compiling: any moment of these
                return (lambda stderr: True), self._random.uniform(0, statistics.median(self._first_rows or [10.0]))
            case "steps":
                return (lambda stderr: _count_rows(stderr) >= rows), wait
            case "save":
                return (lambda stderr: _any_since(directory, "*.orbax-checkpoint-tmp*", began)), wait
            case "deletion":  # a few milliseconds of work
                return (lambda stderr: _any_since(directory, "deleted/*", began)), wait / 30
            case "evaluation":
                return (lambda stderr: _count_rows(stderr) > 0 and self._evaluates()), wait
            case "end":
                return (lambda stderr: _count_rows(stderr) > 0 and self._last_step() == self.reference.last), wait
            case _:
                return (lambda stderr: False), 0.0

    def _classify(self, stderr: str, began: float) -> str:
        """The moment at which the signal came, judged by stderr and files."""
        directory = self.workdir / CHECKPOINTS
        if _any_since(directory, "*.orbax-checkpoint-tmp*", began):
            return "save"
        if _any_since(directory, "deleted/*", began):
            return "deletion"
        if stderr.count("compiling") < 2:  # logged once before and once after compilation
            return "compile" if "compiling" in stderr else "start"
        if _count_rows(stderr) and self._evaluates():
            return "evaluation"
        return "end" if self._last_step() == self.reference.last else "steps"

    def _evaluates(self) -> bool:
        """Returns whether the last step is one that is evaluated, and not all of its evaluations are written."""
        rows = self._last_rows()
        step = rows[-1]["step"] if rows else 0
        written = sum(row["step"] == step and row["kind"] == "evaluation" for row in rows)
        return written < self.reference.evaluations.get(step, 0)

    def _last_step(self) -> int:
        """The last step in metrics.jsonl; 0 if there is none."""
        rows = self._last_rows()
        return rows[-1]["step"] if rows else 0

    def _last_rows(self) -> list[dict[str, Any]]:
        """The last rows of metrics.jsonl, up to four; it is read hundreds of times a second, so only its end is."""
        path = self.workdir / "metrics.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            cut = file.seek(0, os.SEEK_END) > _TAIL_BYTES
            file.seek(-_TAIL_BYTES if cut else 0, os.SEEK_END if cut else os.SEEK_SET)
            lines = file.read().split(b"\n")[:-1]
        return [json.loads(line) for line in lines[cut:][-4:]]

    def _read_log(self) -> bytes:
        """The bytes of metrics.jsonl; b"" if there is none."""
        path = self.workdir / "metrics.jsonl"
        return path.read_bytes() if path.exists() else b""


def _count_rows(stderr: str) -> int:
    """The number of training rows that a process has logged."""
    return stderr.count("\nstep ")


def _any_since(directory: Path, pattern: str, began: float) -> bool:
    """Returns whether a path that matches the pattern was created, or renamed to match, after a time."""
    with contextlib.suppress(OSError):  # it has been deleted meanwhile
        return any(path.stat().st_ctime >= began for path in directory.glob(pattern))
    return False
