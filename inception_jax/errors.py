"""Errors that a command prints as one line, the exit codes of the commands, and their argument parser.

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
| 134 | process 0 has gone, and JAX's client in this one aborted (`heartbeat`) | yes, all processes: they resume |
| 128 + n | stopped by signal n (129 SIGHUP, 130 SIGINT, 143 SIGTERM); the first saves a checkpoint | yes: it resumes |
"""

from __future__ import annotations

import argparse
import difflib
import enum
import errno
import os
import re
import signal
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable
from typing import Any, NoReturn


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


_MAX_WORD = 255  # letters: the longest name of a file
_MAX_MESSAGE = 2000


def shorten(text: str, most: int = 200) -> str:
    """Cuts a value that an error quotes: its beginning, "…" and its end.

    Args:
      text: the value, or its `repr`.
      most: the largest length that is not cut.
    """
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[-(most // 4) :]} ({len(text):,} characters)"


def shorten_message(text: str) -> str:
    """Cuts what a message quotes: words without a slash of more than 255 letters, and the message itself."""
    text = text if len(text) <= 10 * _MAX_MESSAGE else shorten(text, _MAX_MESSAGE)
    text = re.sub(rf"[^\s/]{{{_MAX_WORD + 1},}}", lambda word: shorten(word[0]), text)
    return shorten(text, _MAX_MESSAGE)


class UserError(Exception):
    """A mistake of the caller, or a fault of their machine, described in one line.

    Commands print the message and exit with `exit_code`; from Python it is an ordinary exception. Every message passes
    `shorten_message`: an error that quotes a value of any length stays a line that can be read.

    Attributes:
      exit_code: of the command.
      on_all_processes: whether every process of the run raises an error at this place, so that all may go on together.
    """

    exit_code = 2
    on_all_processes = False

    def __init__(self, message: object = ""):
        """Makes an error.

        Args:
          message: what is wrong, what is allowed, and the remedy.
        """
        super().__init__(shorten_message(str(message)))

    def naming_flags(self, *fields: str) -> str:
        """The message with flags of these names instead of the fields of `config.data`."""
        return re.sub(rf"(--config\.|config\.|)data\.({'|'.join(fields)})\b", r"--\2", str(self))


class NonFiniteLoss(UserError):
    """The loss or a gradient became NaN or infinite, or the loss exceeded its limit; further steps would be wasted."""

    exit_code = ExitCode.NON_FINITE


class DiskFull(UserError):
    """No space (or quota) is left on the file system that the run writes to."""

    exit_code = ExitCode.DISK_FULL


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_SPACE_MESSAGES = tuple(os.strerror(number) for number in _NO_SPACE)


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error or its causes mean a full disk or quota; TensorStore and XLA have it in the text alone.

    XLA's text begins with RESOURCE_EXHAUSTED, like that of an error for too little memory.
    """
    while error is not None:
        if any(message in str(error) for message in _NO_SPACE_MESSAGES):
            return True
        error = error.__cause__ or error.__context__
    return False


def compiler_disk_full(error: BaseException) -> DiskFull:
    """Makes the error for a compiler that cannot write its temporary files."""
    reason = str(error).strip().partition("\n")[0]
    return DiskFull(
        f"a disk is full: {reason}; free some space, or name another folder for temporary files with TMPDIR"
    )


def write_error(path: object, error: OSError) -> UserError:
    """Makes the error for a file or directory that cannot be written: `DiskFull` where no space is left."""
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return DiskFull(f"cannot write {path}: {reason}; free some space and run the same command again")
    return UserError(f"cannot write {path}: {reason}")


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 image", "2,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def look_alike(name: str) -> str:
    """The form that names share which look the same: é is one character or two (NFC), spaces around do not show.

    Args:
      name: of a class, a file or a field.
    """
    return " ".join(unicodedata.normalize("NFC", name).split())


def nearest(name: str, names: Iterable[str], cutoff: float = 0.5, most: int = 1) -> str:
    """A `; did you mean '…'?` clause for an unknown name, or `""` where nothing is near.

    Args:
      name: the unknown name.
      names: the known ones.
      cutoff: the least similarity, a ratio of `difflib`: 1 where the names are the same.
      most: names in the clause.
    """
    if len(str(name)) > _MAX_WORD:  # comparing takes time that grows with the length
        return ""
    names = list(names)
    shown = look_alike(str(name))
    if same := next((other for other in names if other != name and look_alike(other) == shown), None):
        return f"; did you mean {same!a}? It looks the same as {name!a} (spaces, Unicode)"
    matches = difflib.get_close_matches(str(name), names, n=most, cutoff=cutoff)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def must_be_one_of(value: Any, names: Iterable[Any]) -> str:
    """Returns what a message says of a value that is none of the allowed ones, in the same words for all.

    Args:
      value: the wrong one.
      names: the allowed values.
    """
    names = [*names]
    return f"it must be one of {', '.join(map(repr, names))}{nearest(value, map(str, names))}"


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, without abbreviations and without empty values; its errors are `UserError`s of one line.

    Attributes:
      given: the names (`dest`) of the arguments that the last command line held, also those with their default value.
      suggest: takes the name of an unknown flag, without dashes, and returns a hint ("" for none), which comes before
        the nearest flag.
    """

    def __init__(self, *arguments: Any, **options: Any):
        """Makes a parser; takes what argparse's takes."""
        super().__init__(*arguments, **{**options, "allow_abbrev": False})
        self.given: set[str] = set()
        self._intermixing = False
        self.suggest: Callable[[str], str] = lambda name: ""

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parses as argparse does, also flags among a list of files; refuses empty values: shell variables not set."""
        words = sys.argv[1:] if args is None else list(args)
        if self._intermixing:  # argparse parses the flags first, then the files, each by this method
            return super().parse_known_args(words, namespace)
        if any(action.nargs == "*" and not action.option_strings for action in self._actions):
            self._intermixing = True
            try:
                namespace, rest = super().parse_known_intermixed_args(words, namespace)
            finally:
                self._intermixing = False
        else:
            namespace, rest = super().parse_known_args(words, namespace)
        flags = {word.partition("=")[0] for word in words}
        self.given = set()
        for action in self._actions:
            value = getattr(namespace, action.dest, None)
            named = flags.intersection(action.option_strings)
            if named or (not action.option_strings and value):
                self.given.add(action.dest)
            for word in value if isinstance(value, list) else [value]:
                if action.dest in self.given and isinstance(word, str) and not word.strip():
                    refuse_empty(action.option_strings[-1] if named else action.metavar or action.dest, action.required)
        return namespace, rest

    def refuse_unread(self, read: Collection[str], reason: str) -> None:
        """Refuses the flags of the last command line that the chosen action does not read.

        Args:
          read: the names (`dest`) of those that it reads.
          reason: follows the flag's name: "--seed: has no effect with --report; leave it out". Of several flags "has"
            at its beginning becomes "have", and "it" at its end "them".

        Raises:
          UserError: there is one; names all of them.
        """
        self.refuse(self.given.difference(read), reason)

    def refuse(self, names: Collection[str], reason: str) -> None:
        """As `refuse_unread`, with the names of the flags that must not be there."""
        unread, them = sorted(self.given.intersection(names)), "it"
        if len(unread) > 1:
            reason, them = re.sub(r"^has\b", "have", re.sub(r"\bit$", "them", reason)), "them"
        if unread:
            raise UserError(f"{', '.join(f'--{name}' for name in unread)}: {reason}; leave {them} out")

    def error(self, message: str) -> NoReturn:
        """Raises UserError; argparse would print the usage and exit."""
        # argparse writes "argument --seed: " before what the type of a flag says, which is "=-1: it must be …" here.
        message = re.sub(r"^argument (--\w+)(?:/--\w+)*: =", r"\1=", message)
        message = re.sub(
            r"^argument (--\w+)(?:/--\w+)*: invalid choice: (.*) \(choose from (.*)\)$",
            lambda found: f"{found[1]}={found[2]}: it must be one of {found[3]}",
            message,
        )
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flag = unknown[1].partition("=")[0]
            flags = [name.lstrip("-") for action in self._actions for name in action.option_strings]
            near = self.suggest(flag.lstrip("-")) if flag.startswith("-") else ""
            if not near and (found := nearest(flag.lstrip("-"), flags)):
                near = found.replace("'", "'--", 1)
            message = f"unknown argument {flag!r}{near}; --help lists them"
        raise UserError(message)


def refuse_empty(flag: Any, required: bool = False) -> NoReturn:
    """Raises the error for a flag with an empty value."""
    remedy = "give a value" if required else "give a value, or leave it out"
    raise UserError(f"{flag}: its value is empty (a shell variable that is not set?); {remedy}")


def text_failure(error: OSError | UnicodeDecodeError) -> str:
    """Why a text file cannot be read: the system's reason, or that it is not UTF-8, with the remedy."""
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        encoding = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
        return (
            f"not UTF-8 (byte {byte:#04x}); save it as UTF-8 (in a spreadsheet 'CSV UTF-8'; iconv -f {encoding} "
            "-t UTF-8)"
        )
    return error.strerror or str(error)
