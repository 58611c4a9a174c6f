"""Runs one side of a comparison in a process of its own: requests and answers are JSON lines over pipes.

A worker is asked to prepare a workload and then, in turn with the other sides' workers, for blocks of steps. It answers
over a pipe of its own: what libraries print on standard output goes with its standard error into a log file, whose last
lines are quoted when the worker dies. On Linux a worker cannot outlive its parent. Only the standard library is used
here, because the interpreter of a side may have no JAX.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from inception_jax.errors import UserError

ERROR_KINDS = ("out_of_memory", "unavailable", "failed")
_ANSWERS = "INCEPTION_JAX_ANSWERS"  # environment variable: "descriptor of the pipe:pid of the parent"
_PR_SET_PDEATHSIG = 1  # sys/prctl.h
_CLOSE_SECONDS = 10.0
_QUOTED_LINES = 3
# The words of allocators that found no room: XLA's status, PyTorch's on a GPU and on a CPU.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory", "not enough memory")


class Unavailable(Exception):
    """A side cannot work here at all: a package or a device is missing. The message says what to do."""


class SideError(UserError):
    """A side did not do what it was asked for.

    Attributes:
      side: its name.
      kind: "out_of_memory", "unavailable", or "failed" (also for a worker that died or hung).
    """

    def __init__(self, side: str, message: str, kind: str = "failed"):
        super().__init__(f"{side}: {message}")
        self.side, self.kind = side, kind


class SideProtocol(Protocol):
    """What a worker serves."""

    def prepare(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Builds and compiles what the workload needs; once. Returns what is worth knowing of the side."""

    def block(self, kind: str, steps: int) -> dict[str, Any]:
        """Takes `steps` steps of "train" or "inference"; "seconds" of the answer are those of the whole block."""


def serve(side: SideProtocol) -> None:
    """A worker's life: answers requests until standard input ends, or the parent dies.

    Args:
      side: an error in it is answered as {"error": one line, "kind": one of `ERROR_KINDS`}, and its traceback printed.

    Raises:
      SystemExit: the process was not started by a `Worker`.
    """
    requests, answers = _take_pipes()
    with requests, answers:
        for line in requests:
            request = json.loads(line)
            try:
                answer = json.dumps(getattr(side, request["ask"])(**request["arguments"]))
            except Exception as error:
                traceback.print_exc()
                answer = json.dumps({"error": _one_line(error), "kind": _error_kind(error)})
            sys.stdout.flush()  # into the log, before the parent could want to quote it
            answers.write(answer + "\n")
            answers.flush()


def _take_pipes() -> tuple[Any, Any]:
    """(requests, answers) as files that nothing else in this process, and no child of it, has a hand on."""
    if _ANSWERS not in os.environ:
        sys.exit("this module is a worker of a comparison: `python -m inception_jax.benchmark --vs=torch` starts it")
    descriptor, parent = map(int, os.environ.pop(_ANSWERS).split(":"))
    _die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes its workers itself
    os.set_inheritable(descriptor, False)
    requests = os.dup(0)  # not inheritable
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    return os.fdopen(requests), os.fdopen(descriptor, "w")


def _die_with_parent(parent: int) -> None:
    """Has the kernel kill this process with its parent, even in the middle of a block; elsewhere stdin's end does."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that
        os._exit(1)


def _one_line(error: BaseException) -> str:
    """The error's first line that says something; a UserError's or Unavailable's message needs no name before it."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, UserError | Unavailable):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _error_kind(error: BaseException) -> str:
    if isinstance(error, Unavailable):
        return "unavailable"
    if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
        return "out_of_memory"
    return "failed"


class Worker:
    """The parent's handle on one side's process. Also a context manager, which closes it.

    The thread that makes a Worker must live as long as it: Linux counts the thread's end as the parent's death.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float = 600.0
    ):
        """Starts the process.

        Args:
          name: of the side, in messages.
          command: the process's arguments; it calls `serve`.
          environment: variables added to this process's own.
          timeout: seconds after which a worker that does not answer counts as hung.

        Raises:
          SideError: there is no such program.
        """
        self.name, self._timeout, self._unread = name, timeout, b""
        self._log = tempfile.TemporaryFile()
        self._answers, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(write_end,),
                env={**os.environ, **(environment or {}), _ANSWERS: f"{write_end}:{os.getpid()}"},
            )
        except OSError as error:
            os.close(self._answers)
            self._log.close()
            raise SideError(name, f"cannot start {command[0]}: {error.strerror}", "unavailable") from None
        finally:
            os.close(write_end)  # the worker's is then the only one, and its end ours to see

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            self._process.kill()  # it may be in the middle of a long block that nobody waits for any more
        self.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def prepare(self, workload: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Has the side build what the workload needs.

        Args:
          workload: JSON values.
          timeout: seconds; None for the worker's own.

        Raises:
          SideError: the side answered with an error, died, or hung; it is then closed.
        """
        return self._ask(timeout, ask="prepare", arguments={"workload": workload})

    def block(self, kind: str, steps: int, timeout: float | None = None) -> dict[str, Any]:
        """Has the side take steps; arguments and errors as for `prepare` and `SideProtocol.block`."""
        return self._ask(timeout, ask="block", arguments={"kind": kind, "steps": steps})

    def close(self) -> None:
        """Ends the process: politely, then by force. Calling it again does nothing."""
        if self._log.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)
        self._log.close()

    def _ask(self, timeout: float | None, **request: Any) -> dict[str, Any]:
        if self._log.closed:
            raise SideError(self.name, "its worker was closed")
        with contextlib.suppress(BrokenPipeError):  # its pipe of answers has ended as well, and tells
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        answer = json.loads(self._line(self._timeout if timeout is None else timeout, request["ask"]))
        if "error" in answer:
            error = SideError(self.name, answer["error"], answer["kind"])
            self.close()
            raise error
        return answer

    def _line(self, timeout: float, asked: str) -> bytes:
        """The next line of the pipe of answers."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self._process.kill()
                raise self._dead_worker_error(f"gave no answer to {asked!r} within {timeout:g} s")
            piece = os.read(self._answers, 1 << 16)
            if not piece:
                raise self._dead_worker_error(f"its worker died {_format_exit(self._wait())} in {asked!r}")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _wait(self) -> int:
        """The exit code of a process that has closed its answers: it has ended, or is made to."""
        try:
            return self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _dead_worker_error(self, what: str) -> SideError:
        """The error of a worker that is no more, with the last lines of its log."""
        self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        self.close()
        last = " | ".join(lines[-_QUOTED_LINES:])
        return SideError(self.name, f"{what}; its last words: {last}" if last else f"{what}, without a word")


def _format_exit(code: int) -> str:
    if code != -signal.SIGKILL:
        return f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return "by SIGKILL (is the machine out of memory? then try a smaller batch)"
