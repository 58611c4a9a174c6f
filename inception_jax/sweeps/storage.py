"""Opens the storage of an Optuna study, a journal file or a database, and turns its errors into one line each."""

from __future__ import annotations

import contextlib
import json
import os
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from inception_jax.errors import UserError, write_error
from inception_jax.sweeps.lease import StudyLock
from inception_jax.sweeps.study_config import without_password

JOURNAL = "journal.log"

PREVIOUS = "previous"
"""The key under which a line of the journal has the checksum of the line before it."""

_REMEDY = "restore a copy, or begin another study"


def import_optuna() -> ModuleType:
    """Imports Optuna and silences its log.

    Returns:
      The module `optuna`.

    Raises:
      UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("a sweep needs Optuna, which is not installed: pip install 'inception_jax[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_storage(journal: Path | None, url: str | None, lock: StudyLock) -> Any:
    """Opens Optuna's storage.

    Args:
      journal: path of the journal file.
      url: of a database, which is then used in place of the journal.
      lock: of the study. The journal's own lock would make others wait for half a minute when its holder is killed.

    Returns:
      An `optuna.storages.BaseStorage`.
    """
    storages = import_optuna().storages
    if url:
        from sqlalchemy.pool import NullPool

        # No connection stays open: a database may close one that nobody used for the hours of a trial.
        return storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    assert journal is not None  # one of the two
    backend = storages.journal.JournalFileBackend(str(journal), lock_obj=lock)
    return storages.JournalStorage(ChainedJournal(backend, journal, lock))


class ChainedJournal:
    """Optuna's journal file, with a checksum in each line by which the removal of another one is noticed.

    Optuna replays whatever lines there are: without one of them a trial would have other parameters, or another number,
    and nothing would say so. It ignores the additional key. Lines without the key are accepted, from an earlier version
    or from Optuna's dashboard; the next line with the key has the checksum of such a line, too. (Whole lines that are
    missing at the end are what a driver that was killed leaves.)
    """

    def __init__(self, backend: Any, path: Path, lock: StudyLock):
        """Stores the arguments; nothing is read.

        Args:
          backend: an `optuna.storages.journal.JournalFileBackend`.
          path: of its file.
          lock: of the study, which the backend uses, too.
        """
        from optuna.storages.journal._storage import JournalOperation

        self._backend, self._path, self._lock = backend, path, lock
        self._operations = {operation.value for operation in JournalOperation}
        self._checked, self._checksum = 0, 0  # number of lines that were checked; of the last of them

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yields the lines from one on (the signature is Optuna's).

        Raises:
          UserError: a line is none of Optuna's, or does not follow the one before it.
        """
        for number, log in enumerate(self._backend.read_logs(log_number_from), log_number_from):
            if number == self._checked:
                self._check(number, log)
            yield log

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Appends lines (the signature is Optuna's)."""
        with self._lock:
            for _ in self.read_logs(self._checked):  # other drivers may have appended lines
                pass
            checksum, chained = self._checksum, []
            for log in logs:
                chained.append(log | {PREVIOUS: checksum})
                checksum = _checksum(chained[-1])
            self._backend.append_logs(chained)

    def _check(self, number: int, log: Any) -> None:
        if not isinstance(log, dict) or log.get("op_code") not in self._operations:
            raise UserError(f"{self._path} is damaged: line {number + 1} is none that Optuna writes; {_REMEDY}")
        if log.get(PREVIOUS, self._checksum) != self._checksum:
            raise UserError(
                f"{self._path} is damaged: before line {number + 1}, a line was removed, added or changed; {_REMEDY}"
            )
        self._checked, self._checksum = number + 1, _checksum(log)


def _checksum(log: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(log).encode())


def repair_journal(journal: Path | None, log: Callable[[str], None]) -> None:
    """Truncates a torn last line, which a killed driver left: the next entry would be appended to it.

    Args:
      journal: path of the journal file, while the study's lock is held; None: the storage is a database.
      log: gets a line where something was cut off.

    Raises:
      OSError: the file cannot be read or written.
    """
    if journal is None or not journal.exists():
        return
    with open(journal, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
    log(f"{journal}: its last line was incomplete ({size - whole} bytes) and was cut off")


@contextlib.contextmanager
def wrap_errors(journal: Path | None, url: str | None) -> Iterator[None]:
    """Turns an error of the storage into a `UserError` of one line.

    Args:
      journal: path of the journal file; None: the storage is a database.
      url: of the database; its password is never shown.

    Raises:
      UserError: in place of the storage's error.
    """
    shown = without_password(url)
    try:
        yield
    except OSError as error:
        raise write_error(error.filename or journal or shown, error) from error
    except ImportError as error:
        raise UserError(f"--storage={shown}: its database driver is not installed ({error})") from None
    except UserError:
        raise
    except Exception as error:
        unreadable = isinstance(error, json.JSONDecodeError | UnicodeDecodeError) or _is_raised_by_journal(error)
        if journal and unreadable:
            raise UserError(f"{journal} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from None
        if type(error).__module__.partition(".")[0] in ("sqlalchemy", "optuna"):
            line = " ".join(str(error).split("\n")[0].split())
            raise UserError(f"the storage {journal or shown}: {line}") from error
        raise


def _is_raised_by_journal(error: Exception) -> bool:
    """Returns whether Optuna's replay of a journal raised the error: a line lacks a key, or names what is not there."""
    replayed = any(frame.name == "apply_logs" for frame in traceback.extract_tb(error.__traceback__))
    return replayed or "Invalid log format" in str(error)
