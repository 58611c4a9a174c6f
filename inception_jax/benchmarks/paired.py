"""Times the same step on several sides in interleaved blocks, A B C B C A …, and computes the ratios of their times.

A machine's speed drifts over minutes, by more than the differences to be measured. So every side works on the same
bytes in a process of its own, started once; the sides take blocks of steps in turn, in an order that rotates; and times
are compared within a round only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from inception_jax.benchmarks.steps import quarter_means
from inception_jax.benchmarks.timing import BlockTiming, CpuLoadMonitor
from inception_jax.benchmarks.worker import SideError, Worker
from inception_jax.errors import UserError

# Threads of PyTorch's OpenMP spin for about 10 ms after the end of a block, waiting for more work (measured on two
# x86-64 cores, PyTorch 2.14: 8 to 11 ms of processor time, all within the first 20 ms). Ten times that is short beside
# a block.
SETTLE_SECONDS = 0.1
_OUT_OF_MEMORY_HINT = "; all sides hold their memory at the same time: use a smaller batch"


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
      name: its name.
      command: the command of its worker.
      environment: variables added to the worker's environment.
      kinds: the kinds of steps that it can take.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kinds: tuple[str, ...] = ("train", "inference")


def compare(
    workload: dict[str, Any],
    sides: Sequence[Side],
    *,
    rounds: int,
    steps: int,
    warmup: int = 2,
    settle_seconds: float = SETTLE_SECONDS,
    timeout: float = 1800.0,
    time_limit: float = math.inf,
    log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Runs the comparison: all sides take blocks of steps in turn.

    A side that fails, other than the first, is excluded from then on, and the result gives the reason.

    Args:
      workload: from `versus.make_workload`.
      sides: the first is the baseline of the ratios.
      rounds: number of rounds; in each, every side takes one block of every kind.
      steps: steps per block.
      warmup: steps of every kind before the first round, beside those of `prepare`.
      settle_seconds: pause before every block, until the threads of the previous side sleep.
      timeout: seconds that a side may take to prepare, or for a block.
      time_limit: seconds, preparation included, after which no further round begins; there is always one round.
      log: called with a line on progress.

    Returns:
      JSON values: "task", "baseline", "rounds" that were made, "steps", "warmup", "settle_seconds", "order" (names of
      every round), "cores" that this process may use, "cores_of_others" (how many of them other processes kept busy
      meanwhile, or None), and "sides", by name: see `_summary`; for an excluded side {"error": a line, "kind": see
      `SideError`}.

    Raises:
      UserError: the first side failed, or all others did; or `rounds` or `steps` is below 1.
    """
    for name, value in (("rounds", rounds), ("steps", steps)):
        if value < 1:
            raise UserError(f"--{name}={value}: must be 1 or more")
    run = _PairedRun(workload, sides, settle_seconds, log or (lambda line: None))
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        run.start(stack, timeout)
        for kind in workload["kinds"] if warmup else ():
            run.run_blocks(run.names(), kind, warmup, keep=False)
        order = []
        for number in range(rounds):
            if number and time.monotonic() - began > time_limit:
                run.log(f"time limit of {time_limit:g} s reached: {number} of {rounds} rounds are made")
                break
            names = run.names()
            order.append(names[number % len(names) :] + names[: number % len(names)])
            for kind in workload["kinds"]:
                run.run_blocks(order[-1], kind, steps)
            run.log(f"round {number + 1} of {rounds}: {run.format_last_round()}")
        for name in run.names():
            run.note_memory(name, "steps")
    baseline = run.baseline
    return {
        "task": workload,
        "baseline": baseline,
        "rounds": len(order),
        "steps": steps,
        "warmup": warmup,
        "settle_seconds": settle_seconds,
        "order": order,
        "cores": run.cpu_load.cores,
        "cores_of_others": run.cpu_load.cores_of_others(),
        "sides": {
            side.name: run.errors.get(side.name) or _summary(run.results[side.name], run.results[baseline], workload)
            for side in sides
        },
    }


@dataclasses.dataclass
class _SideResults:
    """Answers of one side: to `prepare`, and by kind seconds per step and least steps of a block; losses, memory."""

    prepared: dict[str, Any]
    losses: list[float]
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    steps: dict[str, int] = dataclasses.field(default_factory=dict)
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    finite: bool = True

    def add(self, kind: str, steps: int, answer: dict[str, Any], keep: bool) -> None:
        """Adds the answer to one block; its times only with `keep`."""
        losses = answer.get("losses", [])
        self.losses += losses
        self.finite &= answer.get("finite", True) and all(map(math.isfinite, losses))
        steps = answer.get("steps", steps)
        if keep:
            self.steps[kind] = min(steps, self.steps.get(kind, steps))
        for name, lists in (("seconds", self.seconds), ("cpu_seconds", self.cpu_seconds)):
            if keep and name in answer:
                lists.setdefault(kind, []).append(answer[name] / steps)


class _PairedRun:
    """The workers of all sides and their results so far."""

    def __init__(self, workload: dict[str, Any], sides: Sequence[Side], settle: float, log: Callable[[str], None]):
        self._workload, self._sides, self._settle, self.log = workload, sides, settle, log
        self._workers: dict[str, Worker] = {}
        self.results: dict[str, _SideResults] = {}
        self.errors: dict[str, dict[str, str]] = {}
        self.baseline = sides[0].name
        self.cpu_load = CpuLoadMonitor()

    def names(self) -> list[str]:
        """The sides that have not been excluded, in the caller's order."""
        return [side.name for side in self._sides if side.name not in self.errors]

    def start(self, stack: contextlib.ExitStack, timeout: float) -> None:
        """Starts and prepares the workers, one after the other; `stack` closes them.

        The first side comes last: a missing PyTorch is reported before our step is compiled.
        """
        for side in reversed(self._sides):
            with self._excluding_on_error(side.name):
                worker = stack.enter_context(Worker(side.name, side.command, side.environment, timeout))
                kinds = [kind for kind in self._workload["kinds"] if kind in side.kinds]
                prepared = worker.prepare(self._workload | {"kinds": kinds})
                self._workers[side.name] = worker
                self.results[side.name] = _SideResults(prepared, list(prepared.get("losses", [])))
                self.note_memory(side.name, "prepare")
                self.log(f"{side.name}: ready after {prepared['prepare_seconds']:.1f} s")

    def run_blocks(self, names: Sequence[str], kind: str, steps: int, keep: bool = True) -> None:
        """Runs one block on each side, in the order of `names`; times are kept only with `keep`."""
        takers = [side.name for side in self._sides if kind in side.kinds]
        for name in names:
            if name in takers and name not in self.errors:
                time.sleep(self._settle)
                with self._excluding_on_error(name):
                    self.cpu_load.start(self._workers[name].pid)
                    answer = self._workers[name].block(kind, steps)
                    self.cpu_load.stop()
                    self.results[name].add(kind, steps, answer, keep)

    def note_memory(self, name: str, phase: str) -> None:
        """Adds the peak of the side's memory since the phase before, where it is known."""
        peak = self._workers[name].pop_peak_memory()
        if peak is not None:
            self.results[name].memory[phase] = peak

    def format_last_round(self) -> str:
        """Milliseconds per step of the latest blocks, as text."""

        def latest(seconds: dict[str, list[float]]) -> str:
            return ", ".join(f"{kind} {1e3 * took[-1]:.4g} ms" for kind, took in seconds.items())

        return "; ".join(f"{name} {latest(self.results[name].seconds)}" for name in self.names())

    @contextlib.contextmanager
    def _excluding_on_error(self, name: str) -> Iterator[None]:
        """Within the context, a SideError excludes the side; it ends the comparison if no comparison is left."""
        try:
            yield
        except SideError as error:
            hint = _OUT_OF_MEMORY_HINT if error.kind == "out_of_memory" else ""
            self.errors[name] = {"error": f"{error}{hint}", "kind": error.kind}
            self.log(f"excluded: {error}{hint}")
            if name == self.baseline or len(self.errors) == len(self._sides) - 1 > 0:
                raise UserError(f"{error}{hint}") from error


def _summary(results: _SideResults, baseline: _SideResults, workload: dict[str, Any]) -> dict[str, Any]:
    """Summarizes the results of a side as JSON values.

    Returns:
      "prepared", its answer; per kind of step {"step_seconds": median, p10 and p90 over the blocks,
      "images_per_second", "steps_per_block" (at least), "blocks": seconds per step, "ratio": median, p10, p90 and
      "rounds" of its time relative to the first side's in the same round; where the side reports processor seconds,
      "cpu_seconds": their median per step, "cpu_blocks" and "cpu_ratio"}; "host_memory": bytes of its process at the
      most, until it was ready ("prepare") and from then on ("steps"), where known; "losses": their number and the means
      of the first and the last quarter, of all training steps from the very first; "finite", of losses and logits;
      "falling": whether the last quarter's mean is below the first's, None without training steps.
    """
    summary: dict[str, Any] = {"prepared": {k: v for k, v in results.prepared.items() if k != "losses"}}
    for kind, seconds in results.seconds.items():
        summary[kind] = BlockTiming(tuple(seconds), results.steps[kind]).to_json(workload["batch_size"])
        summary[kind]["ratio"] = _ratio(seconds, baseline.seconds[kind])
        if cpu := results.cpu_seconds.get(kind):
            summary[kind] |= {"cpu_seconds": statistics.median(cpu), "cpu_blocks": cpu}
            if kind in baseline.cpu_seconds:
                summary[kind]["cpu_ratio"] = _ratio(cpu, baseline.cpu_seconds[kind])
    summary |= {"host_memory": results.memory, "finite": results.finite, "falling": None, "losses": None}
    if results.losses:
        first, last = quarter_means(results.losses)
        summary["falling"] = all(map(math.isfinite, results.losses)) and last < first
        # JSON has no NaN.
        means = [value if math.isfinite(value) else None for value in (first, last)]
        summary["losses"] = {"steps": len(results.losses), "first_quarter": means[0], "last_quarter": means[1]}
    return summary


def _ratio(seconds: list[float], baseline: list[float]) -> dict[str, Any]:
    """The ratios of times within their rounds, with their median, 10th and 90th percentile."""
    ratios = [own / other for own, other in zip(seconds, baseline, strict=True)]
    p10, p90 = np.percentile(ratios, (10, 90)).tolist()
    return {"median": statistics.median(ratios), "p10": p10, "p90": p90, "rounds": ratios}
