"""A finding: the answer of one check in a line, with what to do about it."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

from inception_jax.errors import ExitCode, UserError


class Status(enum.StrEnum):
    """The status of a finding."""

    OK = "ok"
    WARN = "warn"
    """The run starts, but not as one may think, or it may fail later."""
    FAIL = "fail"
    """The run would not start, or could not end."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The answer of a check.

    Attributes:
      check: its name, one word.
      status: whether something is wrong.
      text: what was found.
      remedy: what to do; "" only where nothing is wrong.
    """

    check: str
    status: Status
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.status != Status.OK and not self.remedy:
            raise ValueError(f"{self.check}: a finding that is not ok needs a remedy")


def ok(check: str, text: str) -> Finding:
    """A finding that nothing is wrong."""
    return Finding(check, Status.OK, text)


def warn(check: str, text: str, remedy: str) -> Finding:
    """A finding that something may be wrong."""
    return Finding(check, Status.WARN, text, remedy)


def fail(check: str, text: str, remedy: str) -> Finding:
    """A finding that a run would not start, or could not end."""
    return Finding(check, Status.FAIL, text, remedy)


def run_check(check: str, function: Callable[[], Finding], *, remedy: str) -> Finding:
    """Runs a check; an error that it raises is its finding.

    Args:
      check: its name.
      function: returns the finding, or raises `UserError` as `train` would.
      remedy: for a `UserError`.
    """
    try:
        return function()
    except UserError as error:
        return fail(check, str(error), remedy)
    except Exception as error:
        text = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        return fail(check, f"could not be checked: {reason}", "if `train` ends with the same error, report it")


def format_text(found: Sequence[Finding]) -> str:
    """Formats findings, a line each: status, check, what was found and what to do."""
    return "\n".join(
        f"{one.status:4}  {one.check:10}  {' '.join(one.text.split())}"
        + (f"{'' if one.text.endswith('?') else '.'} What to do: {' '.join(one.remedy.split())}" if one.remedy else "")
        for one in found
    )


def to_json(found: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON values, and the worst status of all."""
    return {"status": worst(found).value, "checks": [dataclasses.asdict(one) for one in found]}


def worst(found: Sequence[Finding]) -> Status:
    """The worst status of all findings."""
    return max((one.status for one in found), key=[*Status].index, default=Status.OK)


def exit_code(found: Sequence[Finding]) -> ExitCode:
    """0 without a failed check, otherwise 2."""
    return ExitCode.USER_ERROR if worst(found) == Status.FAIL else ExitCode.DONE
