"""Where Optuna keeps a study: a journal file, or a database. And what may be wrong with these, each in one line."""

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
    """Optuna, with its own log silenced.

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
    """Optuna's storage.

    Args:
      journal: path of the journal file.
      url: of a database, which then takes the journal's place.
      lock: the study's: the journal's own would keep others waiting for half a minute when its holder is killed.
    """
    storages = import_optuna().storages
    if url:
        # A database may close a connection that nobody used for the hours of a trial.
        return storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    return storages.JournalStorage(storages.journal.JournalFileBackend(str(journal), lock_obj=lock))


def repair_journal(journal: Path | None, log: Callable[[str], None]) -> None:
    """Cuts off a last line that a killed driver did not write to its end: the next would be written behind it.

    Args:
      journal: path of the file, whose study's lock is held; None: a database is in its place.
      log: gets a line where there was something to cut.

    Raises:
      OSError: it cannot be read or written.
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
    log(f"{journal}: its last line was torn ({size - whole} bytes), and is cut off")


@contextlib.contextmanager
def wrap_errors(journal: Path | None, url: str | None) -> Iterator[None]:
    """Turns what a storage raises into one line.

    Args:
      journal: path of the file; None: a database is in its place.
      url: of the database.

    Raises:
      UserError: instead of what the storage raised.
    """
    shown = without_password(url)
    try:
        yield
    except OSError as error:
        raise write_error(error.filename or journal or shown, error) from error
    except ImportError as error:
        raise UserError(f"--storage={shown}: what it needs is not installed ({error})") from None
    except UserError:
        raise
    except Exception as error:
        unreadable = isinstance(error, json.JSONDecodeError | UnicodeDecodeError) or "Invalid log format" in str(error)
        if journal and unreadable:
            raise UserError(f"{journal} is damaged ({error}); put a copy back, or begin another study") from None
        if type(error).__module__.partition(".")[0] in ("sqlalchemy", "optuna"):
            line = " ".join(str(error).split("\n")[0].split())
            raise UserError(f"the storage {journal or shown}: {line}") from error
        raise
