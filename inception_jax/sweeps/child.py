"""What runs inside a trial's process: `inception_jax.train`, that ends with the driver that started it.

    python -m inception_jax.sweeps.child --parent=PID [--cores=0,1] -- arguments of train

The driver is watched by the kernel: when it dies, of whatever, this process gets SIGTERM, and so saves and leaves.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
MODULE = "inception_jax.train"


def main(words: list[str]) -> None:
    """Ties this process to the driver, and becomes `python -m inception_jax.train`.

    Args:
      words: `--parent=PID`, perhaps `--cores=…`, `--`, then the arguments of train.
    """
    split = words.index("--")
    own = dict(word.removeprefix("--").split("=", 1) for word in words[:split])
    _end_with(int(own["parent"]))
    if "cores" in own:
        os.sched_setaffinity(0, {int(core) for core in own["cores"].split(",")})
    # What a person would type: the manifest and the report show it, and it continues this run without the sweep.
    sys.orig_argv = [sys.executable, "-m", MODULE, *words[split + 1 :]]
    sys.argv = [MODULE, *words[split + 1 :]]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


def _end_with(parent: int) -> None:
    """Has the kernel send SIGTERM when the parent ends; leaves at once where that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
