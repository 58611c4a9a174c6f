"""A run that begins with the weights of another: what is taken, what is new, and what is left.

Names decide: an array of the new network takes the values of the source's array of the same path. A classifier of
another number of classes begins at random by itself; everything else that does not fit is an error, unless the recipe
says that it shall be new. So a run never begins, unnoticed, with less of its source than its recipe says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from inception_jax import tree_paths
from inception_jax.checkpoints import reading
from inception_jax.config import Config
from inception_jax.errors import UserError
from inception_jax.runs import manifest
from inception_jax.training import paths

FILE = "initialization.json"
OTHER_CLASSES = "other number of classes"

_COLLECTIONS = ("params", "batch_stats")


@dataclasses.dataclass(frozen=True)
class RestoreReport:
    """What became of each array. Paths are without their collection: a parameter and a statistic never share one.

    Attributes:
      restored: paths whose values are the source's.
      new: {path: why it is not}.
      skipped: paths of the source that the new network has no place for.
      universe: all paths of the new network, in its order.
    """

    restored: tuple[str, ...]
    new: dict[str, str]
    skipped: tuple[str, ...]
    universe: tuple[str, ...]

    def summary(self) -> str:
        """One line: `taken: conv1 … inception_5b (114 arrays); new: classifier (other number of classes); left: …`."""
        parts = [f"taken: {paths.summarise(self.restored, self.universe) or 'nothing'} ({len(self.restored)} arrays)"]
        for why in dict.fromkeys(self.new.values()):
            names = [path for path, reason in self.new.items() if reason == why]
            parts.append(f"new: {paths.summarise(names, self.universe)} ({why})")
        if self.skipped:
            parts.append(f"left: {paths.summarise(self.skipped, self.skipped)}")
        return "; ".join(parts)


class WarmStart:
    """Where the weights of a new run come from; once it has begun, also what it took from there.

    Attributes:
      report: None until `restore_into`.
      workdir: of the run that left the checkpoint; None until `restore_into`, and where there is none.
    """

    def __init__(self, checkpoint: str, weights: str | None = None, step: str | None = None, new: Sequence[str] = ()):
        """Reads nothing yet: a run that is continued does not need its source, which may be gone.

        Args:
          checkpoint: a workdir, its directory of checkpoints, or one step's directory.
          weights: "raw" or "ema"; None: "ema" where the checkpoint has it.
          step: "newest", "best" or a number; None: "newest".
          new: patterns of the paths that begin at random all the same.

        Raises:
          UserError: a step that is none of these.
        """
        self._step: Any = int(step) if step is not None and step.isdecimal() else step
        if isinstance(self._step, str) and step not in ("newest", "best"):
            raise UserError(f"config.initialize.step = {step!r}; allowed: 'newest', 'best' or a step")
        self._step = None if self._step == "newest" else self._step
        self._checkpoint, self._weights, self._new = checkpoint, weights, tuple(new)
        self._record: dict[str, Any] = {}
        self.report: RestoreReport | None = None
        self.workdir: Path | None = None

    def restore_into(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The new run's variables, with what there is of them in the source.

        Args:
          variables: "params" and "batch_stats" as the network's initialisation gives them.

        Raises:
          UserError: there is no such checkpoint, or it does not fit.
          CheckpointError: it is damaged. An older one is never taken in its place: that would be another experiment.
        """
        record = reading.load_record(self._checkpoint, self._step)
        has_ema = any(name.startswith("ema/") for name in record["leaves"])
        weights = self._weights or ("ema" if has_ema else "raw")
        source = reading.load_variables(self._checkpoint, weights, record["step"])
        self.workdir = _workdir_of(Path(self._checkpoint))
        network = manifest.read_config(self.workdir).get("model", {}).get("name") if self.workdir else None
        self._record = {
            "checkpoint": str(Path(self._checkpoint).absolute()),
            "network": network,
            "step": record["step"],
            "weights": weights,
        }
        name = ", ".join(filter(None, (network, f"step {record['step']}", weights)))
        variables, self.report = restore_matching(variables, source, self._new, f"{self._checkpoint} ({name})")
        return variables

    def summary(self) -> str:
        """For the log: the source and what was taken; only after `restore_into`."""
        network = f", {self._record['network']}" if self._record["network"] else ""
        return (
            f"begins with {self._record['checkpoint']} (step {self._record['step']:,}, {self._record['weights']}"
            f"{network}); {self.report.summary()}"
        )

    def to_json(self) -> dict[str, Any]:
        """What `initialization.json` holds: the source and the whole lists; only after `restore_into`."""
        lists = {"taken": list(self.report.restored), "new": self.report.new, "left": list(self.report.skipped)}
        return {**self._record, **lists}


def restore_matching(
    variables: Mapping[str, Any],
    source_variables: Mapping[str, Any],
    new_patterns: Sequence[str] = (),
    source: str = "the checkpoint",
) -> tuple[dict[str, Any], RestoreReport]:
    """Variables whose arrays are the source's wherever they are to be.

    Args:
      variables: {"params": …, "batch_stats": …} of the new network; the second may be absent.
      source_variables: the same of the source. Values are cast to the new network's dtypes.
      new_patterns: regular expressions; an array in whose path one is found keeps its value in `variables`.
      source: what the messages call the source.

    Returns:
      (the variables, what became of each array).

    Raises:
      UserError: an array that the source lacks or has in another shape, and that no pattern makes new (a classifier's
        number of classes aside); a pattern that is found nowhere; nothing that fits; values that are not finite.
    """
    wanted, offered = _by_path(variables), _by_path(source_variables)
    forced = paths.find("initialize.new", new_patterns, wanted)
    if not any(path in offered for path in wanted if not _is_of_classifier(path)):
        raise UserError(
            f"config.initialize.checkpoint: {source} is another network: none of its {len(offered)} arrays (such as "
            f"{next(iter(offered), None)!r}) has the name of one of this network's (such as {next(iter(wanted))!r})"
        )
    taken, new, result = [], {}, {}
    for path, (collection, leaf) in wanted.items():
        why = f"pattern {forced[path]!r}" if path in forced else _why_new(path, wanted, offered, source)
        if why:
            new[path] = why
        else:
            taken.append(path)
            leaf = _cast(offered[path][1], leaf.dtype, path, source)
        result[f"{collection}/{path}"] = leaf
    if not taken:
        raise UserError(
            f"config.initialize.new = {tuple(new_patterns)!r}: nothing of {source} would be taken; leave "
            "config.initialize.checkpoint unset to begin at random"
        )
    left = tuple(path for path in offered if path not in wanted)
    begun = {collection: {} for collection in variables} | tree_paths.nest(result)
    return begun, RestoreReport(tuple(taken), new, left, tuple(wanted))


def _why_new(path: str, wanted: Mapping[str, Any], offered: Mapping[str, Any], source: str) -> str | None:
    """Why an array that no pattern makes new is new all the same; None where it is to be taken.

    Raises:
      UserError: it should be taken and cannot be.
    """
    shape = tuple(wanted[path][1].shape)
    if path not in offered:
        names = path.split("/")
        prefixes = ("/".join(names[:depth]) + "/" for depth in range(1, len(names)))
        module = next((prefix for prefix in prefixes if not any(other.startswith(prefix) for other in offered)), path)
        allow = f'config.initialize.new = ("^{module}",) begins it at random'
        raise UserError(f"config.initialize.checkpoint: {source} has no {path} (here {list(shape)}); {allow}")
    found = tuple(offered[path][1].shape)
    if found == shape:
        return None
    if _is_of_classifier(path) and found[:-1] == shape[:-1]:
        return OTHER_CLASSES
    allow = f'config.initialize.new = ("^{path.rpartition("/")[0]}/",) begins it at random'
    raise UserError(f"config.initialize.checkpoint: {source} has {path} as {list(found)} (here {list(shape)}); {allow}")


def _cast(values: Any, dtype: Any, path: str, source: str) -> Any:
    values = np.asarray(values)
    if not np.isfinite(values.astype(np.float32)).all():
        raise UserError(f"config.initialize.checkpoint: {path} of {source} has values that are not finite")
    return jnp.asarray(values.astype(dtype))


def _by_path(variables: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """{path without the collection: (collection, leaf)}."""
    return {
        path: (collection, leaf)
        for collection in _COLLECTIONS
        for path, leaf in tree_paths.flatten(variables.get(collection, {})).items()
    }


def _is_of_classifier(path: str) -> bool:
    return paths.HEAD in path.split("/")


def _workdir_of(path: Path) -> Path | None:
    """The workdir that a checkpoint, a directory of checkpoints or a workdir belongs to: the one with a config."""
    candidates = (path, *path.absolute().parents[:2])
    return next((directory for directory in candidates if (directory / manifest.CONFIG).is_file()), None)


def read_warm_start(config: Config) -> WarmStart | None:
    """Where the weights of a new run come from; None: random ones.

    Raises:
      UserError: a step that is no step.
    """
    fields = config.initialize
    if fields.checkpoint is None:
        return None  # whatever else the section says is then never read, and refused
    return WarmStart(**fields.read("checkpoint", "weights", "step", "new"))
