"""Opens the storage of an Optuna study, a journal file or a database, and turns its errors into one line each."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from inception_jax.errors import UserError, write_error
from inception_jax.sweeps.lease import StudyLock
from inception_jax.sweeps.study_config import without_password

JOURNAL = "journal.log"


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
        raise UserError("a sweep needs Optuna, which is not installed: pip install '.[sweep]'") from None
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
        # A database may close a connection that nobody used for the hours of a trial.
        return storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    return storages.JournalStorage(storages.journal.JournalFileBackend(str(journal), lock_obj=lock))


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
        unreadable = isinstance(error, json.JSONDecodeError | UnicodeDecodeError) or "Invalid log format" in str(error)
        if journal and unreadable:
            raise UserError(f"{journal} is damaged ({error}); restore a copy, or begin another study") from None
        if type(error).__module__.partition(".")[0] in ("sqlalchemy", "optuna"):
            line = " ".join(str(error).split("\n")[0].split())
            raise UserError(f"the storage {journal or shown}: {line}") from error
        raise
