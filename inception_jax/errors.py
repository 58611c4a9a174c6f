"""Errors that a command shows as one line, and the exit codes of the commands.

The codes, for whoever starts runs (a shell, a sweep, a scheduler):

| code | meaning | start the same command again? |
|---|---|---|
| 0 | done | nothing left to do |
| 2 | the user's error, one line on stderr | after mending it |
| 3 | the loss became NaN or infinite | after changing the recipe |
| 4 | another process holds the workdir | when that has ended |
| 5 | checkpoints exist, none is usable | after looking at them |
| 6 | the disk is full | after making room |
| 7 | no batch came for too long | when the storage answers again |
| 8 | another process of the run has ended | yes, all of them: it goes on |
| 134 | process 0 was killed, and JAX's client in this one aborted (`peers`) | yes, all of them: it goes on |
| 128 + n | stopped by signal n (130 SIGINT, 143 SIGTERM), after the first one with its state saved | yes: it goes on |
"""

from __future__ import annotations

import difflib
import enum
import errno
import os
import signal
from collections.abc import Iterable


class ExitCode(enum.IntEnum):
    """How a command ended; a run that a signal stopped ends with `signal_exit_code`."""

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
    """A mistake of the caller's, or a fault of their machine, said in one clear line.

    Commands print the message and exit with `exit_code`; from Python it is an ordinary exception.
    """

    exit_code = 2


class NonFiniteLoss(UserError):
    """The loss or a gradient became NaN or infinite: the steps after it would be wasted."""

    exit_code = ExitCode.NON_FINITE


class DiskFull(UserError):
    """There is no room (or no quota) left where the run writes."""

    exit_code = ExitCode.DISK_FULL


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_SPACE_MESSAGES = tuple(os.strerror(number) for number in _NO_SPACE)


def write_error(path: object, error: OSError) -> UserError:
    """The one line for a file or directory that cannot be written: `DiskFull` where there is no room."""
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return DiskFull(f"cannot write {path}: {reason}; make room and run the same command again")
    return UserError(f"cannot write {path}: {reason}")


def nearest(name: str, names: Iterable[str]) -> str:
    """A ` did you mean '…'?` clause for an unknown name, or `""` where nothing is near."""
    matches = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
