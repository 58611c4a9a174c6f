"""The training process of a trial: a driver starts and signals it and reads its exit code; `main` runs inside it.

    python -m inception_jax.sweeps.trial_process --parent=PID [--cores=0,1] -- arguments of train

When the driver dies from any cause, the kernel sends SIGTERM to this process: it saves a checkpoint and exits. The
process never imports Optuna.
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
    """The command of a training process: `inception_jax.train` inside this module's `main`.

    Args:
      arguments: of train.
      cores: the CPU cores that it may run on; None: all.

    Returns:
      The command, with the calling process as the parent.
    """
    command = [sys.executable, "-m", "inception_jax.sweeps.trial_process", f"--parent={os.getpid()}"]
    return [*command, *([f"--cores={','.join(map(str, cores))}"] if cores else []), "--", *arguments]


class TrainingProcess:
    """A training process, running or ended."""

    def __init__(self, command: Sequence[str], workdir: Path, environment: Mapping[str, str]):
        """Starts the process.

        It runs in a session of its own, so that Ctrl-C in the terminal reaches the driver alone. Call this in the main
        thread: the kernel signals the process when the thread that started it ends.

        Args:
          command: as `train_command` gives it.
          workdir: of the trial; stdout and stderr of the process are appended to `output.log` there.
          environment: variables to set, in addition to this process's.

        Raises:
          UserError: the file cannot be written.
        """
        try:
            with open(workdir / trials.OUTPUT, "ab") as output:
                self._process = subprocess.Popen(
                    list(command),
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
        """The exit code, or minus the number of the signal that ended the process; None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Asks the process to save a checkpoint and exit (SIGTERM)."""
        self._process.terminate()

    def kill(self) -> None:
        """Kills the process and its children at once (SIGKILL to its process group)."""
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def classify_exit(code: int) -> str:
    """Classifies the exit of a training process that was not asked to stop.

    Args:
      code: its exit code, or minus the signal's number.

    Returns:
      "finished", "failed", "diverged", "locked" (another process holds the workdir), "disk full", or "died": it is to
      be started again. The table in `errors.py` has the meaning of each code.
    """
    classes: dict[int, str] = {
        ExitCode.DONE: "finished",
        ExitCode.USER_ERROR: "failed",
        ExitCode.NON_FINITE: "diverged",
        ExitCode.LOCKED: "locked",
        ExitCode.NO_CHECKPOINT: "failed",
        ExitCode.DISK_FULL: "disk full",
    }
    return classes.get(code, "died")


def signal_of(code: int) -> str | None:
    """The name of the signal that ended a process, or that it exited for with 128 + its number; None: there is none."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-code if code < 0 else code - 128).name
    return None


def format_exit_code(code: int) -> str:
    """Formats an exit code for messages: `signal SIGKILL`, `exit code 7`."""
    name = signal_of(code)
    return f"signal {name}" if name else f"exit code {code}"


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
MODULE = "inception_jax.train"


def main(argv: list[str]) -> None:
    """Ties the life of this process to the driver's, then runs `python -m inception_jax.train` in it.

    Args:
      argv: `--parent=PID`, optionally `--cores=…`, then `--` and the arguments of train.
    """
    split = argv.index("--")
    own = dict(argument.removeprefix("--").split("=", 1) for argument in argv[:split])
    _terminate_with_parent(int(own["parent"]))
    if "cores" in own:
        os.sched_setaffinity(0, {int(core) for core in own["cores"].split(",")})
    # The command that a user would type: manifest and report show it, and it continues this run without the sweep.
    sys.orig_argv = [sys.executable, "-m", MODULE, *argv[split + 1 :]]
    sys.argv = [MODULE, *argv[split + 1 :]]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


def _terminate_with_parent(parent: int) -> None:
    """Asks the kernel for SIGTERM at the parent's death; exits at once where the parent is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
