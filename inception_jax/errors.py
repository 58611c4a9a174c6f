"""Errors that a command prints as one line, and the exit codes of the commands.

The codes, for a shell, a sweep or a job scheduler:

| code | meaning | run the same command again? |
|---|---|---|
| 0 | done | not needed |
| 2 | an error of the user, one line on stderr | after correcting it |
| 3 | the loss became NaN or infinite | after changing the recipe |
| 4 | another process holds the lock of the workdir | when that has ended |
| 5 | checkpoints exist, none is usable | after looking at them |
| 6 | the disk is full | after freeing space |
| 7 | no batch came for too long | when the storage answers again |
| 8 | another process of the run has ended | yes, all processes: they resume |
| 134 | process 0 was killed, and JAX's client in this one aborted (`heartbeat`) | yes, all processes: they resume |
| 128 + n | stopped by signal n (130 SIGINT, 143 SIGTERM); the first one saves a checkpoint | yes: it resumes |
"""

from __future__ import annotations

import difflib
import enum
import errno
import os
import signal
from collections.abc import Iterable


class ExitCode(enum.IntEnum):
    """Exit codes of the commands; that of a run stopped by a signal is `signal_exit_code`."""

    DONE = 0
    USER_ERROR = 2
    NON_FINITE = 3
    LOCKED = 4
    NO_CHECKPOINT = 5
    DISK_FULL = 6
    STALLED = 7
    PEER_LOST = 8


def signal_exit_code(name: str) -> int:
    """The exit code of a run that a signal stopped: 128 + its number, as shells report it.

    Args:
      name: "SIGTERM" or any other name that `signal.Signals` knows.
    """
    return 128 + signal.Signals[name].value


class UserError(Exception):
    """A mistake of the caller, or a fault of their machine, described in one line.

    Commands print the message and exit with `exit_code`; from Python it is an ordinary exception.
    """

    exit_code = 2


class NonFiniteLoss(UserError):
    """The loss or a gradient became NaN or infinite, or the loss exceeded its limit; further steps would be wasted."""

    exit_code = ExitCode.NON_FINITE


class DiskFull(UserError):
    """No space (or quota) is left on the file system that the run writes to."""

    exit_code = ExitCode.DISK_FULL


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_SPACE_MESSAGES = tuple(os.strerror(number) for number in _NO_SPACE)


def write_error(path: object, error: OSError) -> UserError:
    """Makes the error for a file or directory that cannot be written: `DiskFull` where no space is left."""
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return DiskFull(f"cannot write {path}: {reason}; free some space and run the same command again")
    return UserError(f"cannot write {path}: {reason}")


def nearest(name: str, names: Iterable[str]) -> str:
    """A ` did you mean '…'?` clause for an unknown name, or `""` where nothing is near."""
    matches = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
