"""XLA's own log while it compiles: silent where it would break the progress bar, and only there; memory after it."""

import ctypes
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from inception_jax.training import compilation

# XLA's alarm for slow operations, which has no switch: constant folding sounds it after 1 s, compiling after 120 s.
SLOW = """
import sys
import jax, jax.numpy as jnp
from inception_jax.training.compilation import quiet_compiler
with quiet_compiler(sys.argv[1] == "quiet"):
    jax.jit(lambda: jax.lax.reduce_window(jnp.ones((1, 120, 120)), 0.0, jax.lax.add, (1, 9, 9), (1, 1, 1), "SAME"))()
"""


@pytest.mark.slow  # seconds, of a compiler's version
@pytest.mark.parametrize("mode", ["quiet", "loud"])
def test_the_alarm_of_xla_is_silent(mode):
    done = subprocess.run([sys.executable, "-c", SLOW, mode], capture_output=True, text=True, check=True)
    assert ("slow_operation_alarm" in done.stderr) == (mode == "loud"), done.stderr


def test_the_level_is_set_while_a_bar_is_drawn_and_reset_after(monkeypatch):
    levels = []
    monkeypatch.setattr(compilation.utils, "absl_set_min_log_level", levels.append)
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    with compilation.quiet_compiler(False):
        assert levels == []
    with pytest.raises(RuntimeError), compilation.quiet_compiler(True):
        assert levels == [3]
        raise RuntimeError
    assert levels == [3, 1]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's allocator")
def test_freed_memory_goes_back_to_the_system():
    """Of 100 MB in small pieces, below one that is still in use."""
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")  # noqa: E731
    pieces = [bytes(2_000) for _ in range(50_000)]
    kept = pieces.pop()
    pieces.clear()
    before = resident()
    compilation.return_freed_memory()
    assert before - resident() > 50e6 and len(kept) == 2_000


def test_lowered_programs_are_forgotten_and_executables_not():
    called = jax.jit(lambda x: x + 1)
    called(1.0)
    caches = [getattr(sys.modules[module], name) for module, name in compilation._LOWERED]
    assert len(caches) == 2 and all(cache.cache_info().currsize for cache in caches)
    compilation.forget_lowered_programs()
    assert not any(cache.cache_info().currsize for cache in caches)
    with compilation.no_compilation():
        assert float(called(2.0)) == 3.0


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_c_library_without_malloc_trim_is_left_alone(monkeypatch, platform):
    opened = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: opened.append(name) or object())
    compilation.return_freed_memory()
    assert opened == ([None] if platform == "linux" else [])


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    """Not JAX's own warnings for every program, which do not name the remedy; what is there already is still read."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path / "locked"))
    settings = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: settings.update({name: value}))
    for name, used, reason in (
        ("file/xla", False, "file is not a folder"),
        ("locked/xla", False, "locked cannot be written"),
        ("locked", True, "locked cannot be written"),
        ("new/xla", True, None),
    ):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / name))
        with warnings.catch_warnings():
            compilation.enable_compilation_cache()
            if reason:
                warnings.warn("Error writing persistent compilation cache entry for 'jit_step': …", stacklevel=1)
        assert settings["jax_compilation_cache_dir"] == (str(tmp_path / name) if used else None)
        remedy = "JAX_COMPILATION_CACHE_DIR names another folder"
        note = f"note: compiled programs are not kept: {tmp_path}/{reason}; {remedy}\n"
        assert capsys.readouterr().err == (note if reason else "")
