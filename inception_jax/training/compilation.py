"""Guards against recompilation during training, and sets up the persistent compilation cache."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
from jax._src.lib import utils  # jax_logging_level sets that of Python, too

from inception_jax.errors import UserError
from inception_jax.user_cache import cache_folder

_FATAL = 3  # absl::LogSeverity
_LOWERED = (("jax._src.interpreters.pxla", "_cached_lowering_to_hlo"), ("jax._src.pjit", "_pjit_lower"))
_COMPILATION = "/jax/core/compile/backend_compile_duration"  # jax/_src/dispatch.py: BACKEND_COMPILE_EVENT


class Programs:
    """Compiled programs by their keys: each is compiled once, whichever threads ask for it."""

    def __init__(self) -> None:
        """Begins without a program."""
        self._made: dict[Hashable, Any] = {}
        self._compiling = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy begins without a program."""
        return Programs, ()

    def get(self, key: Hashable, compile_program: Callable[[], Any]) -> Any:
        """Returns the program of a key; the first caller compiles it, and others who need it wait.

        Args:
          key: of the program.
          compile_program: compiles it.

        Raises:
          UserError: as `refuse_disabled_jit`.
        """
        refuse_disabled_jit()
        if key not in self._made:
            with self._compiling:
                if key not in self._made:
                    self._made[key] = compile_program()
        return self._made[key]


def refuse_disabled_jit() -> None:
    """Raises where JAX compiles nothing: neither compiles our programs nor calls those that are compiled.

    Raises:
      UserError: `jax_disable_jit` is on.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]  # jax declares no types for it
        raise UserError(
            "jax_disable_jit is on, and steps are compiled; leave jax.disable_jit(), or unset JAX_DISABLE_JIT"
        )


class Recompiled(UserError):
    """A program was compiled after the first step, which costs minutes each time; always a fault of this package."""


@contextlib.contextmanager
def no_compilation() -> Iterator[None]:
    """Raises if the calling thread compiles anything inside the `with` block: around every step after the first.

    A recompiled step is slow, not wrong, and so would stay unnoticed. Programs from the persistent cache count as
    compiled. Other threads (checkpoints, data) are not watched.

    Raises:
      Recompiled: at the end of the block; names the compiled function and the line that called it.
    """
    thread, found = threading.get_ident(), []

    def note(event: str, duration_secs: float, **details: str | int) -> None:
        if event == _COMPILATION and threading.get_ident() == thread:
            found.append(f"{details.get('fun_name', 'a function')} ({_caller()}, {duration_secs:.1f} s)")

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    if found:
        raise Recompiled(
            f"compiled after the first step: {', '.join(found)}; every program must be compiled before. This "
            "is a fault of inception_jax, not of the config"
        )


def _caller() -> str:
    """`file:line` of the innermost frame that is outside this module, JAX and the standard library's decorators."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("jax", "contextlib", "functools"):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


@contextlib.contextmanager
def quiet_compiler(quiet: bool) -> Iterator[None]:
    """Silences XLA's log while it compiles, where a progress bar is drawn on the same terminal.

    After two minutes XLA writes a banner of four lines to the terminal ("Very slow compile?", slow_operation_alarm.cc)
    and offers no switch for it. Its severity is that of an error: so only fatal messages are shown. An error that ends
    the compilation is raised as an exception as well.

    Args:
      quiet: whether to do so; not done either where JAX's log level was chosen (JAX_LOGGING_LEVEL).
    """
    chosen = jax.config.jax_logging_level  # type: ignore[attr-defined]  # jax declares no types for it
    if not quiet or chosen not in (None, "NOTSET"):
        yield
        return
    utils.absl_set_min_log_level(_FATAL)
    try:
        yield
    finally:
        usual = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1")  # jax sets it to 1 where it is not set
        utils.absl_set_min_log_level(int(usual) if usual.isdigit() else 1)


def enable_compilation_cache() -> None:
    """Enables the persistent compilation cache: a run that is started again compiles in a second or two.

    Its directory is `JAX_COMPILATION_CACHE_DIR`, or else `inception_jax/xla` in the user's cache directory; an empty
    value disables it. Small programs are kept, too: a start of `train` has a dozen, each of which compiles in 0.05 s.
    JAX removes nothing from it; the folder may be deleted at any time. Where it cannot be written, a line on standard
    error says so; what is there already is read.
    """
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if directory is None:
        directory = str(cache_folder("xla"))
    if directory and (problem := _find_cache_problem(directory)):
        print(
            f"note: compiled programs are not kept: {problem}; JAX_COMPILATION_CACHE_DIR names another folder",
            file=sys.stderr,
        )
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
        if not os.path.isdir(directory):
            jax.config.update("jax_compilation_cache_dir", None)
            return
    if directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")


def _find_cache_problem(directory: str) -> str:
    """Why the compilation cache cannot be written; "": it can."""
    if "://" in directory:
        return ""
    place = os.path.abspath(directory)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        return f"{place} is not a folder"
    return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written"


def return_freed_memory() -> None:
    """Returns the memory that the compiler has freed to the system; another C library than glibc is left alone.

    glibc keeps freed memory for the process. After the compilation of GoogLeNet's training step (batch norm, 224
    pixels, batch 8) on a CPU that was 1.7 of 2.6 GB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def forget_lowered_programs() -> None:
    """Makes JAX forget the programs that it has lowered so far: for after the initialization of a network.

    JAX keeps the text of every program beside its executable: 1.2 MB for each of the 75 small ones that initialize
    GoogLeNet. A function that was called before is compiled once more (or read from the compilation cache) if it is
    called with another kind of array (NumPy's for JAX's) or calls back to Python; else its executable is still there.
    """
    for module, name in _LOWERED:
        cache = getattr(sys.modules.get(module), name, None)  # private: another version of JAX may not have it
        clear = getattr(cache, "cache_clear", None)
        if clear is not None:
            clear()
