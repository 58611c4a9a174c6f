"""Writes and reads config.json and manifest.json: a run's config, package versions, git revision and starts."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError, write_error

CONFIG = "config.json"
MANIFEST = "manifest.json"

PACKAGES = (
    "inception_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "grain",
    "ml_collections", "numpy", "opencv-python-headless", "pillow", "onednn-cpu-gomp", "jax-cuda12-plugin",
    "jax-cuda13-plugin", "libtpu",
)  # fmt: skip
"""Distributions whose versions are recorded: those that can change a number. One that is not installed is null."""

_REMEDY = "restore a copy, or remove it: the next start writes a new one, without the earlier starts"

ABSENT = "(not set)"
"""Stands in `config_differences` for a field that one of the two does not have."""


def write(
    workdir: str | os.PathLike,
    config_json: str,
    *,
    devices: Sequence[str] = (),
    command: Sequence[str] | None = None,
    run_id: str | None = None,
    environment: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
    of_start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes config.json, and adds this start to manifest.json. Each file is replaced atomically.

    The top level of the manifest describes the newest start; `starts` has an entry for each, with its changes to the
    config's fields, the versions, the revision and the devices, each as [before, now].

    Args:
      workdir: an existing directory.
      config_json: the config as JSON, from ConfigDict's `to_json_best_effort`.
      devices: one string per device or kind of device, written as given.
      command: the command line; default: this process's.
      run_id: of the run; None: that of the manifest.
      environment: from `environment.describe`, of this start.
      more: further entries: "metrics", {name: title, direction and unit} of those that a recipe registered, and
        "extensions", {file: SHA-256}.
      of_start: further fields of this start's entry in `starts`.

    Returns:
      The manifest.

    Raises:
      UserError: a file that cannot be written, or an old one that cannot be read.
    """
    workdir = Path(workdir)
    config = json.loads(config_json)
    before, now = read(workdir) or {}, _describe(devices, sys.orig_argv if command is None else command)
    if environment is not None:
        now["environment"] = dict(environment)
    starts = before.get("starts", [])
    if not (isinstance(starts, list) and all(isinstance(start, dict) for start in starts)):
        raise damaged(workdir / MANIFEST, f"'starts' = {str(starts)[:40]!r} is not a list of objects", _REMEDY)
    changes = []
    if before:
        changes = config_differences({"config": read_config(workdir) or {}}, {"config": config})
        # A start that is the first to record its environment has not changed it.
        compared = [name for name in now if name != "command" and (name != "environment" or name in before)]
        changes += config_differences(
            {name: before.get(name) for name in compared}, {name: now[name] for name in compared}
        )
    start = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "hostname": now["hostname"],
        "command": now["command"],
        "changes": {path: [old, new] for path, old, new in changes},
        **(of_start or {}),
    }
    now |= more or {}
    if run_id := run_id or before.get("run_id"):
        now["run_id"] = run_id
    manifest = {**now, "starts": [*starts, start]}
    # In this order: after a crash between the two, the next start finds the same differences and records them again.
    replace_text(workdir / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    replace_text(workdir / CONFIG, json.dumps(config, indent=2) + "\n")
    return manifest


def read(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """Reads the manifest of a workdir; None where there is none.

    Raises:
      UserError: the file is not a JSON object.
    """
    return read_json_object(Path(workdir) / MANIFEST, _REMEDY)


def read_run_id(workdir: str | os.PathLike | None) -> str | None:
    """Reads the run id of a workdir; None where it has none: an earlier version wrote it, or there is no run.

    Raises:
      UserError: manifest.json is damaged.
    """
    run_id = (read(workdir) or {}).get("run_id") if workdir is not None else None
    if run_id is not None and not isinstance(run_id, str):
        raise damaged(Path(str(workdir)) / MANIFEST, f"run_id = {str(run_id)[:40]!r} is not a string", _REMEDY)
    return run_id


def read_config(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """Reads the config of a workdir as plain dictionaries (tuples have become lists); None where there is none.

    Raises:
      UserError: the file is not a JSON object.
    """
    return read_json_object(Path(workdir) / CONFIG)


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns the fields in which two configs differ.

    Args:
      old: nested dictionaries, for example from `read_config`.
      new: the same. A tuple equals the list that JSON makes of it, and NaN equals NaN.

    Returns:
      (dotted path, old value, new value), sorted by path; `ABSENT` where one does not have the field.
    """
    before, after = dict(flatten(old)), dict(flatten(new))
    pairs = ((path, before.get(path, ABSENT), after.get(path, ABSENT)) for path in sorted({*before, *after}))
    return [(path, a, b) for path, a, b in pairs if not same_value(a, b)]


def replace_text(path: str | os.PathLike, text: str) -> None:
    """Replaces the content of a file atomically: a crash at any moment leaves the old content or the new.

    Raises:
      UserError: it cannot be written; the old content stays.
    """
    replace_bytes(path, text.encode())


def replace_bytes(path: str | os.PathLike, content: bytes, *, sync: bool = True) -> None:
    """Replaces the content of a file atomically: a crash at any moment leaves the old content or the new.

    Args:
      path: of the file.
      content: the new content.
      sync: whether to wait until the disk has it; otherwise a loss of power may undo it.

    Raises:
      UserError: it cannot be written; the old content stays.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(new, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(new, path)
        if sync:
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)  # or a loss of power may undo the rename
            finally:
                os.close(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise write_error(path, error) from None


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder, and those above it, where they are missing.

    Raises:
      UserError: it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from None


def read_json_object(path: str | os.PathLike, remedy: str = "restore a copy") -> dict[str, Any] | None:
    """Reads the JSON object in a file; None where there is no file.

    Args:
      path: of the file.
      remedy: what the error advises where the file is damaged.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error), remedy) from None
    if not isinstance(content, dict):
        raise damaged(path, "not a JSON object", remedy)
    return content


def damaged(path: str | os.PathLike, reason: str, remedy: str) -> UserError:
    """Makes the error for a file that has another content than this package writes."""
    return UserError(f"{path} is damaged: {reason}; {remedy}")


def _describe(devices: Sequence[str], command: Sequence[str]) -> dict[str, Any]:
    return {
        "versions": versions(),
        "git": git_revision(),
        "command": list(command),
        "hostname": socket.gethostname(),
        "platform": platform.platform(),
        "devices": list(devices),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Returns the versions of Python and of distributions; None: it is not installed."""
    return {"python": platform.python_version()} | {package: _version(package) for package in packages}


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision(source: str | os.PathLike = __file__) -> dict[str, Any] | None:
    """Returns the git commit of the checkout that a source file belongs to.

    Args:
      source: a file; it must be tracked. (An installed copy may lie inside the checkout of another project.)

    Returns:
      {"revision": 40 hex digits, "dirty": whether a tracked file differs from it}; None where there is no git or no
      checkout.
    """
    source = Path(source).resolve()

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(source.parent), "--no-optional-locks", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", source.name) is None:
        return None
    revision, changed = git("rev-parse", "--verify", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    if revision is None:
        return None
    return {"revision": revision, "dirty": changed != ""}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) of the leaves of nested dictionaries."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def same_value(a: Any, b: Any) -> bool:
    """Returns whether two config values are equal; a tuple equals the list that JSON makes of it, but 1 is not True."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return isinstance(a, bool) == isinstance(b, bool) and a == b
