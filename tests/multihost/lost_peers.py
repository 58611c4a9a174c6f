"""Attacks a run of several processes: one of them is killed, or stopped and continued, at a random moment, many times.

What must hold after each attack: every other process ends with 8 (or 134 where process 0 has gone: JAX's client aborts
then), with one line and no traceback; process 0, where it lives, leaves a result.json; and the run, started again and
again, ends with the bits of one that nobody attacked.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

AIMS = {"start": 3, "steps": 5, "save": 6, "evaluation": 3, "end": 2}
ACTIONS = {"kill": 7, "pause": 2, "stop": 2}  # stopped for less or for more than the timeout of the heartbeats
TIMEOUT = 10  # seconds of the heartbeats, the least that the flag takes
LOST, ABORTED = 8, (-signal.SIGABRT, 134)
FIELDS = {
    "batch_size": 12, "num_steps": 60, "logging.every_steps": 1, "checkpoint.every_epochs": 0.6,
    "evaluation.every_epochs": 0.9, "logging.pictures": False,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Round:
    """One start of the run: what was done to which process when, and how all of them ended."""

    aim: str
    action: str
    victim: int
    codes: tuple[int, ...]
    step: int
    seconds: float
    fault: str = ""


class AttackedRun:
    """A run of several processes, attacked and started again."""

    def __init__(self, start: Callable[..., Any], recipe: Path, directory: Path, count: int, seed: int):
        """Starts nothing yet.

        Args:
          start: the fixture `start_command`.
          recipe: of a network that compiles in a fraction of a second.
          directory: for the workdirs.
          count: number of processes.
          seed: of the random choices.
        """
        self._start_command, self._count = start, count
        self._arguments = [f"--config={recipe}", *(f"--config.{name}={value}" for name, value in FIELDS.items())]
        self._random = random.Random(f"{seed} {count}")
        self.workdir, self._directory = directory / f"attacked{count}", directory
        self.rounds: list[Round] = []
        self.finished = 0

    @functools.cached_property
    def reference(self) -> Path:
        """The workdir of the run that nobody attacked, which it runs first."""
        workdir = self._directory / f"reference{self._count}"
        commands = self._start(workdir)
        assert [command.wait(timeout=240) for command in commands] == [0] * self._count, commands[0].written()[1]
        return workdir

    @functools.cached_property
    def _evaluated(self) -> set[int]:
        rows = map(json.loads, (self.reference / "metrics.jsonl").read_text().splitlines())
        return {row["step"] for row in rows if row["kind"] == "evaluation"}

    def attack(self, aim: str | None = None, action: str | None = None, victim: int | None = None) -> Round:
        """Starts the run, attacks one process, and checks how the others end. None: chosen at random."""
        aim = aim or self._choose(AIMS)
        action = action or self._choose(ACTIONS)
        victim = self._random.randrange(self._count) if victim is None else victim
        delay = self._random.uniform(0, 6) if aim == "start" else self._random.uniform(0, 0.05)
        rows = self._random.randint(1, 12)
        if aim == "evaluation":
            assert self._evaluated  # the reference runs before the processes of the attack
        began, clock = time.time(), time.monotonic()
        commands = self._start(self.workdir)
        while all(command.poll() is None for command in commands):
            if self._reached(aim, rows, began, commands) or (aim == "start" and time.monotonic() > clock + delay):
                break
            time.sleep(0.003)
        if aim != "start":
            time.sleep(delay)
        self._hit(commands, victim, action)
        codes = tuple(command.wait(timeout=400) for command in commands)
        step = self._last_row().get("step", 0)
        fault = self._find_fault(aim, action, victim, codes, [command.written()[1] for command in commands], began)
        self.rounds.append(Round(aim, action, victim, codes, step, round(time.monotonic() - clock, 1), fault))
        print(self.rounds[-1], flush=True)
        if fault and self.workdir.exists():
            kept = self.workdir.with_name(f"fault{len(self.rounds)}_of_{self._count}")
            shutil.copytree(self.workdir, kept)
            for index, command in enumerate(commands):
                (kept / f"{index}.stderr").write_text(command.written()[1])
        if self._result(self.workdir).get("status") == "finished":
            self.compare()
        return self.rounds[-1]

    def finish(self) -> None:
        """Lets the run finish, and compares it with one that nobody attacked."""
        for command in (commands := self._start(self.workdir)):
            code = command.wait(timeout=240)
            assert code == 0, [command.written()[1][-2000:] for command in commands]
        self.compare()

    def compare(self) -> None:
        """Compares the finished run with the reference, and removes it."""
        mine, theirs = self._result(self.workdir), self._result(self.reference)
        for name in ("status", "steps", "fingerprint", "metrics"):
            assert mine[name] == theirs[name], name
        logs = [(workdir / "metrics.jsonl").read_bytes() for workdir in (self.workdir, self.reference)]
        assert logs[0] == logs[1]
        shutil.rmtree(self.workdir)
        self.finished += 1

    def summary(self) -> dict[str, Any]:
        """Counts of the rounds: exit codes of the survivors, faults, runs that finished with the right bits."""
        codes = collections.Counter(
            str(code)
            for one in self.rounds
            for index, code in enumerate(one.codes)
            if index != one.victim or one.action != "kill"
        )
        faults = [one for one in self.rounds if one.fault]
        return {"rounds": len(self.rounds), "codes": dict(codes), "faults": faults, "finished": self.finished}

    def _choose(self, weights: dict[str, int]) -> str:
        return self._random.choices([*weights], [*weights.values()])[0]

    def _start(self, workdir: Path) -> list[Any]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        shared = [
            f"--workdir={workdir}",
            f"--coordinator_address={address}",
            f"--num_processes={self._count}",
            f"--heartbeat_timeout_seconds={TIMEOUT}",
        ]
        return [
            self._start_command("train", *self._arguments, *shared, f"--process_id={index}")
            for index in range(self._count)
        ]

    def _hit(self, commands: Sequence[Any], victim: int, action: str) -> None:
        if action == "kill":
            commands[victim].kill()
            return
        commands[victim].send_signal(signal.SIGSTOP)
        seconds = self._random.uniform(0.5, 3) if action == "pause" else 3.5 * TIMEOUT
        deadline = time.monotonic() + seconds
        others = [command for index, command in enumerate(commands) if index != victim]
        while time.monotonic() < deadline and any(command.poll() is None for command in others):
            time.sleep(0.05)
        commands[victim].send_signal(signal.SIGCONT)

    def _reached(self, aim: str, rows: int, began: float, commands: Sequence[Any]) -> bool:
        if aim == "start":
            return False
        stderr = commands[0].written()[1]
        done = stderr.count("\nstep ")
        if aim == "steps":
            return done >= rows
        if aim == "save":
            saving = (self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
            return done >= rows and any(_changed(path) >= began for path in saving)
        if aim == "evaluation":
            return done >= rows and self._last_row().get("step") in self._evaluated
        return done > 0 and self._last_row().get("step") == FIELDS["num_steps"]

    def _find_fault(
        self, aim: str, action: str, victim: int, codes: Sequence[int], stderrs: Sequence[str], began: float
    ) -> str:
        """Describes what is wrong with the end of a round; "" where nothing is."""
        result = self._result(self.workdir)
        # The work of a process may be done when another is lost.
        allowed: set[int] = {LOST, 0} if result.get("status") == "finished" or action == "pause" else {LOST}
        for index, (code, stderr) in enumerate(zip(codes, stderrs, strict=True)):
            if index == victim and action == "kill":
                continue
            if "Traceback" in stderr:
                return f"process {index}: a traceback: {stderr[-1500:]}"
            if code == 2 and "did not connect" in stderr and aim == "start":
                continue  # the others were hit before they had joined; JAX waits 300 s for them
            # Process 0 was hit, or it ended, rightly, while this one was stopped.
            coordinator_gone = victim == 0 or (index == victim and action == "stop")
            if code not in allowed and not (coordinator_gone and index != 0 and code in ABORTED):
                return f"process {index} ended with {code}: {stderr[-1500:]}"
            if code == LOST and not stderr.rstrip().rsplit("\n", 1)[-1].startswith("error: "):
                return f"process {index}: its last line is not the error: {stderr[-1500:]}"
        manifest = self.workdir / "manifest.json"
        begun = manifest.exists() and _changed(manifest) >= began
        if codes[0] == LOST and begun and result.get("exit_code") != LOST:
            return f"process 0 ended with 8, and result.json has {result.get('status')}"
        return ""

    def _result(self, workdir: Path) -> dict[str, Any]:
        path = workdir / "result.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def _last_row(self) -> dict[str, Any]:
        path = self.workdir / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return json.loads(lines[-1]) if lines else {}


def _changed(path: Path) -> float:
    try:
        return path.stat().st_ctime
    except OSError:  # it has been renamed or deleted meanwhile
        return 0.0
