"""The training process of a trial: the driver starts and signals it and reads its exit code; `main` runs inside it.

    python -m inception_jax.sweeps.trial_process --parent=PID [--cores=0,1] -- arguments of train

The kernel watches the driver: when it dies, of whatever cause, the process gets SIGTERM, saves and ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from inception_jax.errors import ExitCode, write_error
from inception_jax.sweeps import trials


def train_command(arguments: Sequence[str], cores: Sequence[int] | None) -> list[str]:
    """What a driver starts for a trial: `inception_jax.train` inside this file's `main`.

    Args:
      arguments: of train.
      cores: the only ones that it may run on; None: all.
    """
    words = [sys.executable, "-m", "inception_jax.sweeps.trial_process", f"--parent={os.getpid()}"]
    return [*words, *([f"--cores={','.join(map(str, cores))}"] if cores else []), "--", *arguments]


class TrainingProcess:
    """A training process that runs, or has ended."""

    def __init__(self, words: Sequence[str], workdir: Path, environment: Mapping[str, str]):
        """Starts it, in a session of its own: Ctrl-C in the terminal is for the driver. Call this in the main thread,
        with whose end the kernel would also end the process.

        Args:
          words: the command, as `train_command` makes it.
          workdir: of the trial; what the process writes to stdout and stderr is appended to `output.log` there.
          environment: variables that differ from this process's.

        Raises:
          UserError: the file cannot be written.
        """
        try:
            with open(workdir / trials.OUTPUT, "ab") as output:
                self._process = subprocess.Popen(
                    list(words),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                    start_new_session=True,
                )
        except OSError as error:
            raise write_error(workdir / trials.OUTPUT, error) from None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code (minus the number of the signal that ended it); None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Asks it to save and leave (SIGTERM)."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends it and what it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def classify_exit(code: int) -> str:
    """What the end of a training process means for its trial, where nobody had asked it to end.

    Args:
      code: its exit code, or minus the signal's number.

    Returns:
      "finished", "failed", "diverged", "locked" (another process is in the workdir), "disk full", or "died": to be
      started again, as `interrupts.py` says for each code.
    """
    meanings = {
        ExitCode.DONE: "finished",
        ExitCode.USER_ERROR: "failed",
        ExitCode.NON_FINITE: "diverged",
        ExitCode.LOCKED: "locked",
        ExitCode.NO_CHECKPOINT: "failed",
        ExitCode.DISK_FULL: "disk full",
    }
    return meanings.get(code, "died")


def format_exit_code(code: int) -> str:
    """An exit code in words: `signal SIGKILL`, `exit code 7`."""
    number = -code if code < 0 else code - 128
    if number > 0 and (code < 0 or code > 128):
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(number).name}"
    return f"exit code {code}"


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
MODULE = "inception_jax.train"


def main(words: list[str]) -> None:
    """Ties this process to the driver, and becomes `python -m inception_jax.train`.

    Args:
      words: `--parent=PID`, perhaps `--cores=…`, `--`, then the arguments of train.
    """
    split = words.index("--")
    own = dict(word.removeprefix("--").split("=", 1) for word in words[:split])
    _terminate_with_parent(int(own["parent"]))
    if "cores" in own:
        os.sched_setaffinity(0, {int(core) for core in own["cores"].split(",")})
    # What a person would type: the manifest and the report show it, and it continues this run without the sweep.
    sys.orig_argv = [sys.executable, "-m", MODULE, *words[split + 1 :]]
    sys.argv = [MODULE, *words[split + 1 :]]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


def _terminate_with_parent(parent: int) -> None:
    """Has the kernel send SIGTERM when the parent ends; leaves at once where that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
