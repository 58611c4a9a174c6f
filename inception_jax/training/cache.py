"""Where compiled programs are kept from one start to the next."""

from __future__ import annotations

import os

import jax


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
