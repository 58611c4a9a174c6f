"""Checks of a workdir: lock, file system, the run that is there, and space for checkpoints. Nothing is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from inception_jax import file_locks, tree_paths
from inception_jax.benchmarks.memory import format_bytes
from inception_jax.checkpoints import layout, reading
from inception_jax.diagnostics import memory_estimate
from inception_jax.diagnostics.findings import Finding, fail, ok, warn
from inception_jax.runs import lock, run_state
from inception_jax.runs.run_state import RunStatus
from inception_jax.training import preflight, restore
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState

_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "beegfs", "gpfs", "ceph", "glusterfs", "9p")
_IN_MEMORY = ("tmpfs", "ramfs")
_FEW_INODES = 1_000
_REST = 64 << 20  # bytes for logs, events, plots and the report


def check_workdir(workdir: Path) -> Finding:
    """Looks whether the workdir can be made, written and locked, and on what file system it is.

    Raises:
      UserError: as `lock.lock_workdir`.
    """
    lock.refuse_unusable(workdir)
    existing = existing_folder(workdir)
    kind = file_system(existing)
    what = "can be written" if workdir.exists() else "can be made"
    text = f"{workdir}: {what}, on {kind or 'an unknown file system'}"
    if locks_missing(existing):
        return warn("workdir", f"{text}, which has no locks", "nothing keeps a second run out: start one at a time")
    if kind == "overlay":
        return warn("workdir", f"{text}: a container's own layer, which ends with it", "choose a folder of a volume")
    if kind in _IN_MEMORY:
        return warn("workdir", f"{text}: it is in memory, and gone after a restart", "choose a folder on a disk")
    if kind in _NETWORK or kind.startswith("fuse"):
        text += " (a network file system: locks hold where its server has them)"
    return ok("workdir", text)


def check_run(workdir: Path, setup: Setup, state: TrainState) -> Finding:
    """Compares the run in the workdir with the recipe, as `train` does before it continues it.

    Raises:
      UserError: it is another run, has taken more steps, or its checkpoints do not fit.
    """
    if not run_state.is_run(workdir):
        others = sorted(path.name for path in workdir.iterdir()) if workdir.is_dir() else []
        if others:
            names = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            text = f"a new run; the workdir has {len(others):,} other files: {names}"
            return warn("run", text, "choose an empty folder, or leave them there")
        return ok("run", "a new run")
    notes = preflight.refuse_other_run(workdir, setup)
    found = run_state.read(workdir, all_rows=False)
    step = check_checkpoints(workdir, setup, state)
    restore.refuse_fewer_steps(workdir, setup.config, setup.length, step or 0)
    text = f"{found.status}" + (f" ({found.why})" if found.why else "")
    text += f", newest checkpoint of step {step:,} of {setup.length.total:,}" if step is not None else ", no checkpoint"
    if found.status == RunStatus.FINISHED and step == setup.length.total:
        return ok("run", f"{text}: `train` shows its result and trains nothing")
    if notes:
        return warn("run", f"{text}; {notes[0]}", "nothing, if the data is what the run began with")
    if found.notes:
        return warn("run", f"{text}; {found.notes[0]}", "look at the file before you continue the run")
    next_start = "continues it" if step is not None else "begins it again"
    return ok("run", f"{text}; config and data agree: `train` {next_start}")


def check_checkpoints(workdir: Path, setup: Setup, state: TrainState) -> int | None:
    """Returns the step of the newest checkpoint whose record is whole, of this run, and of the recipe's state.

    Returns:
      None where there is no checkpoint.

    Raises:
      UserError: none fits; the arrays are not read.
    """
    folder = workdir / layout.SUBDIRECTORY
    steps = reading.list_steps(folder)[::-1]
    if not steps:
        return None
    wanted, run = tree_paths.named_leaves(state), restore.identify_run(workdir, setup.config)
    record, _ = reading.first_usable(steps, lambda step: reading.read_matching_record(folder / str(step), wanted, run))
    return record["step"]


def check_disk(workdir: Path, setup: Setup, state: TrainState) -> Finding:
    """Compares the free space with the size of the checkpoints that the run keeps."""
    existing = existing_folder(workdir)
    each = memory_estimate.count_bytes(state)
    kept = setup.checkpoints.keep + 2  # the best one, and the one that is being written
    there = sum(path.stat().st_size for path in (workdir / layout.SUBDIRECTORY).rglob("*") if path.is_file())
    needed = max(0, kept * each + _REST - there)
    free = shutil.disk_usage(existing).free
    text = (
        f"{format_bytes(free)} free; {kept} checkpoints of {format_bytes(each)} (config.checkpoint.keep = "
        f"{setup.checkpoints.keep}, the best, one being written) need {format_bytes(needed)}"
    )
    if there:
        text += " more"
    stat = os.statvfs(existing)
    if needed > free:
        return fail("disk", text, "free some space, or choose a workdir on another disk")
    if stat.f_files and stat.f_favail < _FEW_INODES:
        return fail("disk", f"{text}, but {stat.f_favail:,} inodes", "remove some files, or choose another disk")
    if 2 * needed > free:
        return warn("disk", text, "free some space: another program may fill the rest")
    return ok("disk", text)


def existing_folder(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def file_system(path: Path) -> str:
    """The type of the file system that holds a path, such as "ext4"; "" where that is not known."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    place = path.resolve()
    best, kind = -1, ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        mount = Path(fields.split()[4].encode().decode("unicode_escape"))
        if len(mount.parts) >= best and place.is_relative_to(mount):
            best, kind = len(mount.parts), rest.split()[0]
    return kind


def locks_missing(folder: Path) -> bool:
    """Returns whether the file system of a folder has no locks; takes a shared one of the folder for an instant."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        file_locks.try_lock(descriptor, shared=True)
    except file_locks.LocksUnsupported:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
