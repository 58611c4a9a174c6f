"""The files of `config.extensions`: imported once per process, compared between processes, copied to the workdir.

`extensions.py` has what such a file calls.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from inception_jax import metric_definitions
from inception_jax.errors import UserError, write_error

DIRECTORY = "extensions"
"""Directory of the copies in a workdir."""

MODULE_PREFIX = "inception_jax_extension_"
"""Begins the names of the modules that are imported from files."""

ORIGINS: dict[tuple[str, str], str | None] = {}
"""{(kind, name): where it was registered}: the real path of a file, or None (a notebook, an interactive session)."""

FILES: dict[str, str] = {}
"""{real path: SHA-256} of the files that were imported here, also as a recipe, and {path as given} of their copies."""


def load(names: Iterable[str], copies: Path | None = None) -> None:
    """Imports the extensions of a config, each once.

    Args:
      names: `config.extensions`: paths of Python files, or names of modules.
      copies: the directory of a run's copies, of which the file of that name is imported instead.

    Raises:
      UserError: one does not exist, or raises; or a copy differs from the file that was imported here already.
    """
    for name in names:
        if not name.endswith(".py"):
            try:
                importlib.import_module(name)
            except Exception as error:
                raise UserError(f"config.extensions: module {name!r}: {describe_error(error)}") from error
            continue
        path = Path(name).expanduser()
        copy = copies / path.name if copies else None
        is_copied = copy is not None and copy.is_file()
        _load_file(os.path.realpath(path), copy if copy and is_copied else path, is_copied)


def _load_file(key: str, path: Path, is_copy: bool) -> None:
    if key in FILES and not is_copy:
        return  # as of any module: an edit counts in the next process
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"config.extensions: cannot read {path}: {error.strerror or error}; it registers what the config names"
        ) from None
    if key in FILES:
        if FILES[key] != digest:
            raise UserError(
                f"config.extensions: {path} is not the {Path(key).name} that this process has imported; load the run "
                "in another process"
            )
        return
    name = f"{MODULE_PREFIX}{path.stem}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # of a file that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    FILES[key] = digest
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name], FILES[key]
        raise UserError(f"config.extensions: {path}: {describe_error(error, path)}") from error
    for where in [where for where, origin in ORIGINS.items() if origin == os.path.realpath(path)]:
        ORIGINS[where] = key  # of a copy: as if the file itself had registered it
    pickle_by_value(module)


def check_named(names: Iterable[str], used: Iterable[tuple[str, str]]) -> str | None:
    """Checks that a config names the files of all that it uses, without which no other command could load the run.

    Args:
      names: `config.extensions`.
      used: (kind, name) of what the config uses: "model", "data set", "optimizer", "augmentation", "sink"; all metrics
        are.

    Returns:
      A warning where something was registered in no file (a notebook); None where there is nothing to say.

    Raises:
      UserError: a file is missing in `names`; the message has the remedy.
    """
    named = {os.path.realpath(Path(name).expanduser()) for name in names if name.endswith(".py")}
    files = [getattr(sys.modules.get(name), "__file__", None) for name in names]
    modules = {os.path.realpath(file) for file in files if file is not None}
    metrics = [where for where in ORIGINS if where[0] == "metric"]
    warning = None
    for kind, name in [*(where for where in used if where in ORIGINS), *metrics]:
        origin = ORIGINS[kind, name]
        if origin is None:
            warning = f"{kind} {name!r} is registered in no file: no other command or process can load this run"
        elif origin not in named and not any(origin.startswith(_package_root(module)) for module in modules):
            raise UserError(
                f"{kind} {name!r} is registered in {origin}, which config.extensions does not name; in that file: "
                "config = inception_jax.config.default(extensions=(__file__,))"
            )
    return warning


def copy_files(names: Iterable[str], workdir: Path) -> list[str]:
    """Copies the files of `config.extensions` to a workdir, as they were imported; a copy that was imported stays.

    Returns:
      The names of the copies that replaced another content: the run began with other code.

    Raises:
      UserError: two files have one name, or a copy cannot be written.
    """
    files = [Path(name).expanduser() for name in names if name.endswith(".py")]
    changed = []
    for path in files:
        if [other.name for other in files].count(path.name) > 1:
            raise UserError(f"config.extensions: two files are named {path.name}; a workdir keeps one of a name")
        copy = workdir / DIRECTORY / path.name
        try:
            if copy.exists() and hashlib.sha256(copy.read_bytes()).hexdigest() == FILES.get(os.path.realpath(path)):
                continue
            content = path.read_bytes()
            if copy.exists() and copy.read_bytes() == content:
                continue
            if copy.exists():
                changed.append(path.name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            new = copy.with_name(f".{copy.name}.new")
            new.write_bytes(content)
            os.replace(new, copy)
        except OSError as error:
            raise write_error(copy, error) from None
    return changed


def digests(names: Iterable[str]) -> list[str]:
    """SHA-256 of the files of `config.extensions` as they were imported, by which processes compare them."""
    files = [os.path.realpath(Path(name).expanduser()) for name in names if name.endswith(".py")]
    return [FILES.get(file, "") for file in files]


def describe(names: Sequence[str]) -> dict[str, Any]:
    """What manifest.json says: the registered metrics, which a report then need not import, and the files' SHA-256."""
    metrics = {
        name: metric.to_json()
        for name, metric in metric_definitions.METRICS.items()
        if name not in metric_definitions.BUILT_IN
    }
    files = [Path(name).name for name in names if name.endswith(".py")]
    digested = dict(zip(files, digests(names), strict=True))
    return {name: value for name, value in (("metrics", metrics), ("extensions", digested)) if value}


def pickle_by_value(module: ModuleType) -> None:
    """Lets worker processes get the module's classes and functions, where they could not import it by its name."""
    top = module.__name__.partition(".")[0]
    if top != "__main__" and importlib.machinery.PathFinder.find_spec(top) is None:
        import cloudpickle

        cloudpickle.register_pickle_by_value(module)


def _package_root(file: str) -> str:
    """The directory of a package's `__init__.py`, whose modules count as named with it; of a module, its own file."""
    return os.path.dirname(file) + os.sep if os.path.basename(file) == "__init__.py" else file


def describe_error(error: Exception, path: Path | None = None) -> str:
    """The type and message of an error, in one line, with the last line of the file that it passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if path and frame.filename == str(path)]
    where = f" (line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
