"""Recognizes the errors that mean a lost process: another process of the run has ended.

JAX, Gloo, NCCL, the coordination service and Orbax's barriers raise different types, with the reason in their text.
This is the only place that knows them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import jax

from inception_jax.errors import ExitCode, UserError

ADVICE = "start all of them again; training continues from its newest checkpoint"

_SIGNS = re.compile(
    r"\b(gloo|nccl\w*|by peer|socket closed|barrier|coordination service|heartbeats?|another task|preempted)\b",
    re.IGNORECASE,
)
# Status codes of an error that JAX raises for a reason of this process; all others come from a lost process, too.
_OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "OUT_OF_RANGE")


class PeerLost(UserError):
    """Another process of the run has ended, and no step is possible without it."""

    exit_code = ExitCode.PEER_LOST


def as_peer_lost(error: BaseException) -> PeerLost | None:
    """Returns the error for a lost process where that is what an exception means; None: it means something else.

    A collective of the host or of a compiled step, a barrier, and the coordination service raise different types, with
    the reason in their text: `JaxRuntimeError`, `ValueError` (where an array is read that a collective did not make),
    `TimeoutError` (Orbax's barriers).
    """
    if isinstance(error, UserError):
        return error if isinstance(error, PeerLost) else None
    if jax.process_count() == 1:
        return None
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        named = _SIGNS.search(text) and isinstance(cause, RuntimeError | ValueError | TimeoutError)
        if named or (isinstance(cause, jax.errors.JaxRuntimeError) and not text.startswith(_OWN_FAULTS)):
            return PeerLost(f"a collective failed: another process of this run has ended ({one_line(cause)}); {ADVICE}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """Raises `PeerLost` where the block, which waits for the others, fails because one of them has ended."""
    try:
        yield
    except Exception as error:
        if (lost := as_peer_lost(error)) is None or lost is error:
            raise
        raise lost from error


def one_line(error: BaseException) -> str:
    """Formats an error as its first line, of at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
