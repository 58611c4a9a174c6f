"""The guard against compiling while the steps run."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax

from inception_jax.errors import UserError

_COMPILATION = "/jax/core/compile/backend_compile_duration"  # jax/_src/dispatch.py: BACKEND_COMPILE_EVENT


class Recompiled(UserError):
    """Something was compiled while the steps ran, which would cost a run minutes each time; never the user's fault."""


@contextlib.contextmanager
def no_compilation() -> Iterator[None]:
    """Inside, nothing may be compiled by the thread that entered: put around every step after the first.

    A step that is compiled again is slow, not wrong, and so would go unseen. Programs that come out of the persistent
    cache count, too. Other threads (checkpoints, data) are left alone.

    Raises:
      Recompiled: at the end, if anything was compiled; names it and the line that called it.
    """
    thread, found = threading.get_ident(), []

    def note(event: str, seconds: float, **details: Any) -> None:
        if event == _COMPILATION and threading.get_ident() == thread:
            found.append(f"{details.get('fun_name', 'a function')} ({_caller()}, {seconds:.1f} s)")

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    if found:
        raise Recompiled(
            f"compiled while the steps ran: {', '.join(found)}; after the first step nothing may be. This "
            "is a fault of the program, not of the config"
        )


def _caller() -> str:
    """`file:line` of the innermost frame that is neither here nor in JAX or the standard library's decorators."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("jax", "contextlib", "functools"):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a run that is started again compiles in a second or two.

    `JAX_COMPILATION_CACHE_DIR` says where; without it, `inception_jax` under the user's cache directory. An empty value
    turns it off.
    """
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if directory is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        directory = os.path.join(cache, "inception_jax", "xla")
    if directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
        jax.config.update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")
