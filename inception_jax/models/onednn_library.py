"""Builds the library of oneDNN's calls (`onednn.cc`) with the machine's C++ compiler, once per user and version."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shlex
import stat
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

from inception_jax.models.checks import ModelError

REMEDY = "or begin a run with model.convolution=fast"
"""The end of an error: what needs no library."""

_SOURCE = Path(__file__).with_name("onednn.cc")
_HEADERS = tuple(
    _SOURCE.with_name(name)
    for name in (
        "lanes.h",
        "winograd.h",
        "max_pool.h",
        "batch_norm.h",
        "threads.h",
        "primitives.h",
        "convolutions.h",
    )
)
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-Wno-psabi")


def build() -> Path:
    """Builds the library of calls in the user's cache, unless it is there; returns its path.

    Raises:
      ModelError: oneDNN, or a C++ compiler where one is needed, is missing; names the remedy.
    """
    library, headers, version = _find_onednn()
    try:
        compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    except ValueError as error:
        raise ModelError(f"convolutions by oneDNN: CXX = {os.environ['CXX']!r}: {error}") from None
    command = [*compiler, *_FLAGS]
    command += [
        f"-I{headers}",
        f"-I{jax.ffi.include_dir()}",
        str(_SOURCE),
        str(library),
        f"-Wl,-rpath,{library.parent}",
    ]
    parts = [*(file.read_text() for file in (_SOURCE, *_HEADERS)), *command, version, jaxlib.__version__]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(cache, "inception_jax", "onednn")
    built = folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.so"
    if not _is_trusted(built):
        _compile(command, built)
    return built


def is_installed() -> bool:
    """Returns whether the extra "onednn" is installed; a C++ compiler is not looked for."""
    try:
        _find_onednn()
    except ModelError:
        return False
    return True


def _find_onednn() -> tuple[Path, Path, str]:
    """The library, the folder of its headers, and its version."""
    found = []
    for distribution, name in (("onednn-cpu-gomp", "libdnnl.so.3"), ("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.h")):
        try:
            files = importlib.metadata.files(distribution) or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        found += [Path(str(file.locate())).resolve() for file in files if file.as_posix().endswith(name)][:1]
    if len(found) != 2:
        raise ModelError(
            "convolutions by oneDNN: oneDNN is not installed: pip install 'inception_jax[onednn]' (Linux on x86-64), "
            + REMEDY
        )
    return found[0], found[1].parents[2], importlib.metadata.version("onednn-cpu-gomp")


def _is_trusted(built: Path) -> bool:
    """Whether it is there, and nobody but this user can have written it."""
    try:
        return _is_private(os.stat(built.parent)) and _is_private(os.lstat(built))
    except OSError:
        return False


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compile(command: list[str], built: Path) -> None:
    """Compiles beside the place of the library, and moves it there when it is complete."""
    try:
        built.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = _is_private(os.stat(built.parent))
        if private:
            with tempfile.TemporaryDirectory(dir=built.parent, prefix=".new") as folder:
                new = Path(folder, built.name)
                _run([*command, "-o", str(new)])
                new.chmod(0o700)  # whatever the umask
                os.replace(new, built)
    except OSError as error:
        raise ModelError(f"convolutions by oneDNN: {built.parent}: {error.strerror}; {REMEDY}") from None
    if not private:
        raise ModelError(
            f"convolutions by oneDNN: {built.parent} is another user's, or others can write it: chmod go-w it, or set "
            f"XDG_CACHE_HOME to a folder of your own, {REMEDY}"
        )


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env={**os.environ, "LC_ALL": "C"}
        )
    except OSError as error:
        raise ModelError(
            f"convolutions by oneDNN: the C++ compiler {command[0]!r} does not start ({error.strerror}): install one, "
            f"such as g++, or name it in CXX, {REMEDY}"
        ) from None
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        reasons = [line for line in lines if any(word in line for word in ("error", "cannot find", "undefined"))]
        raise ModelError(
            f"convolutions by oneDNN: {command[0]} cannot compile {_SOURCE}: {(reasons or lines)[0]}; take a compiler "
            f"of C++17 (CXX), {REMEDY}"
        )
