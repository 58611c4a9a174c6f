"""Warm start: a new run starts from the weights of a checkpoint (fine-tuning, transfer learning).

Arrays are matched by their paths. A classifier of another number of classes is initialized at random, and the kernel
that reads the image is summed or repeated for another number of channels; everything else that does not fit is an
error, unless `config.initialize.new` names it. So a run never starts without notice with
fewer weights of its source than its config says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from inception_jax import tree_paths
from inception_jax.checkpoints import reading
from inception_jax.config import Config
from inception_jax.errors import UserError
from inception_jax.models import input_channels
from inception_jax.runs import manifest, remote_workdir
from inception_jax.training import paths, preprocess

FILE = "initialization.json"
OTHER_CLASSES = "other number of classes"

SAME_NORMALIZATION = "take the same, or for other channels per_channel with data.mean and data.std near to it"

_COLLECTIONS = ("params", "batch_stats")


@dataclasses.dataclass(frozen=True)
class RestoreReport:
    """The arrays that a warm start restored, initialized and skipped, by path.

    Paths are without their collection: a parameter and a statistic never have the same path.

    Attributes:
      restored: paths whose values are those of the checkpoint.
      new: {path that was initialized at random: reason}.
      skipped: paths of the checkpoint that the new network does not have.
      all_paths: of the new network, in its order.
      adapted: {path that was restored for another number of input channels: how}.
    """

    restored: tuple[str, ...]
    new: dict[str, str]
    skipped: tuple[str, ...]
    all_paths: tuple[str, ...]
    adapted: dict[str, str] = dataclasses.field(default_factory=dict)

    def summary(self) -> str:
        """Formats one line: `restored: conv1 … inception_5b (114 arrays); new: classifier (other number of …)`."""
        texts = [
            f"restored: {paths.summarize(self.restored, self.all_paths) or 'nothing'} ({len(self.restored)} arrays)"
        ]
        for why in dict.fromkeys(self.new.values()):
            names = [path for path, reason in self.new.items() if reason == why]
            texts.append(f"new: {paths.summarize(names, self.all_paths)} ({why})")
        texts += [f"adapted: {path} ({how})" for path, how in self.adapted.items()]
        if self.skipped:
            texts.append(f"skipped: {paths.summarize(self.skipped, self.skipped)}")
        return "; ".join(texts)


class WarmStart:
    """The checkpoint whose weights a new run starts from, and, after `restore_into`, what was restored.

    Attributes:
      report: None until `restore_into`.
      workdir: of the run that the checkpoint is from; None until `restore_into`, or if it is in no workdir.
      warning: on weights that were trained on pixels of another normalization; None until `restore_into`, or if they
        were not.
    """

    def __init__(
        self,
        checkpoint: str,
        weights: Literal["raw", "ema"] | None = None,
        step: str | None = None,
        new: Sequence[str] = (),
        normalization: Mapping[str, Any] | None = None,
    ):
        """Stores the options; reads no file: a resumed run does not need its source, which may have been deleted.

        Args:
          checkpoint: a workdir, its directory of checkpoints, or the directory of one step.
          weights: "raw" or "ema"; None: "ema" if the checkpoint has it.
          step: "newest", "best" or a number; None: "newest".
          new: regular expressions for paths that are initialized at random nevertheless.
          normalization: of the new run, {field of `config.data`: value}, with those of "per_channel"; None: unknown.

        Raises:
          UserError: `step` is none of these.
        """
        self._step: Any = int(step) if step is not None and step.isdecimal() else step
        if isinstance(self._step, str) and step not in ("newest", "best"):
            raise UserError(f"config.initialize.step = {step!r}; allowed: 'newest', 'best' or a step")
        self._step = None if self._step == "newest" else self._step
        self._checkpoint, self._weights, self._new = checkpoint, weights, tuple(new)
        self._normalization = normalization
        self._record: dict[str, Any] = {}
        self.report: RestoreReport | None = None
        self.workdir: Path | None = None
        self.warning: str | None = None

    def restore_into(
        self, variables: Mapping[str, Any], input_kernel: Callable[[], str | None] = lambda: None
    ) -> dict[str, Any]:
        """Replaces the variables of a new run by those of the checkpoint.

        Args:
          variables: "params" and "batch_stats", from the initialization of the network.
          input_kernel: returns the path of the kernel that reads the image (`input_channels.find_input_kernel`); called
            where a kernel's input channels differ. None: it cannot be adapted.

        Raises:
          UserError: there is no such checkpoint, or it does not fit.
          CheckpointError: it is damaged. An older one is never used instead: that would be another experiment.
        """
        checkpoint = remote_workdir.local_copy(self._checkpoint)
        if not checkpoint.exists():
            raise UserError(
                f"no checkpoints in {self._checkpoint}: there is no such directory; name a run "
                "(--config.initialize.checkpoint=RUN), or make one of a publisher's weights: python -m "
                f"inception_jax.convert --weights=FILE --output={self._checkpoint}"
            )
        self.workdir = find_workdir(checkpoint)
        run_id = manifest.read_run_id(self.workdir)
        record = reading.load_record(checkpoint, self._step, run_id=run_id)
        has_ema = any(name.startswith("ema/") for name in record["leaves"])
        weights: Literal["raw", "ema"] = self._weights or ("ema" if has_ema else "raw")
        source = reading.load_variables(checkpoint, weights, record["step"], run_id=run_id)
        config = manifest.read_config(self.workdir) if self.workdir else None
        network = config["model"].get("name") if config and isinstance(config.get("model"), Mapping) else None
        self._record = {
            "checkpoint": remote_workdir.display_name(str(checkpoint.absolute())),
            "network": network,
            "step": record["step"],
            "weights": weights,
        }
        name = ", ".join(filter(None, (network, f"step {record['step']}", weights)))
        data = _data_section(config)
        known = preprocess.NORMALIZATIONS.get(data.get("normalization", ""))
        order = known.channel_order if known else "RGB"
        variables, self.report = restore_matching(
            variables, source, self._new, f"{self._checkpoint} ({name})", input_kernel, order
        )
        if data and not (known and known.is_uniform) and self.report.adapted:
            doubt = f"; approximate, because its normalization, {data['normalization']}, differs by colour"
            adapted = {path: how + doubt for path, how in self.report.adapted.items()}
            self.report = dataclasses.replace(self.report, adapted=adapted)
        self.warning = _compare_normalizations(data, self._normalization)
        return variables

    def summary(self) -> str:
        """Formats the source and what was restored, for the log; only after `restore_into`."""
        report = self._finished_report()
        network = f", {self._record['network']}" if self._record["network"] else ""
        return (
            f"starts from {self._record['checkpoint']} (step {self._record['step']:,}, {self._record['weights']}"
            f"{network}); {report.summary()}"
        )

    def to_json(self) -> dict[str, Any]:
        """The content of `initialization.json`: the source and the complete lists; only after `restore_into`."""
        report = self._finished_report()
        # The names in the file are those of earlier versions.
        lists = {"taken": list(report.restored), "new": report.new, "left": list(report.skipped)}
        return {**self._record, **lists, **({"adapted": report.adapted} if report.adapted else {})}

    def _finished_report(self) -> RestoreReport:
        if self.report is None:
            raise ValueError("nothing has been restored yet: call restore_into first")
        return self.report


def restore_matching(
    variables: Mapping[str, Any],
    source_variables: Mapping[str, Any],
    new_patterns: Sequence[str] = (),
    source: str = "the checkpoint",
    input_kernel: Callable[[], str | None] = lambda: None,
    channel_order: str = "RGB",
) -> tuple[dict[str, Any], RestoreReport]:
    """Replaces arrays by those of the same path in the source.

    Args:
      variables: {"params": …, "batch_stats": …} of the new network; "batch_stats" may be absent.
      source_variables: those of the source. Values are cast to the new network's dtypes.
      new_patterns: regular expressions; an array in whose path one is found keeps its value in `variables`.
      source: its name in messages.
      input_kernel: as for `WarmStart.restore_into`; that kernel is adapted to another number of input channels.
      channel_order: of the channels that the source's kernel reads, "RGB" or "BGR"; that of several other channels
        begins with red.

    Returns:
      (the variables, the report of what was restored).

    Raises:
      UserError: the source lacks an array or has it in another shape (a classifier's number of classes excepted), and
        no pattern names it; a pattern matches no path; nothing fits; values are not finite.
    """
    wanted, offered = _by_path(variables), _by_path(source_variables)
    forced = paths.find("initialize.new", new_patterns, wanted)
    if not any(path in offered for path in wanted if not _is_of_classifier(path)):
        raise UserError(
            f"config.initialize.checkpoint: {source} is another network: none of its {len(offered)} arrays (such as "
            f"{next(iter(offered), None)!r}) has the name of one of this network's (such as {next(iter(wanted))!r})"
        )
    restored: list[str] = []
    new: dict[str, str] = {}
    result: dict[str, Any] = {}
    adapted = _adapt_input(wanted, offered, input_kernel, channel_order)
    for path, (collection, leaf) in wanted.items():
        why = f"pattern {forced[path]!r}" if path in forced else _why_new(path, wanted, offered, source)
        if why:
            new[path] = why
        else:
            restored.append(path)
            leaf = _cast(offered[path][1], leaf.dtype, path, source)
        result[f"{collection}/{path}"] = leaf
    if not restored:
        raise UserError(
            f"config.initialize.new = {tuple(new_patterns)!r}: nothing of {source} would be restored; leave "
            "config.initialize.checkpoint unset to initialize at random"
        )
    skipped = tuple(path for path in offered if path not in wanted)
    merged: dict[str, Any] = {collection: {} for collection in variables} | tree_paths.nest(result)
    adapted = {path: how for path, how in adapted.items() if path not in new}
    return merged, RestoreReport(tuple(restored), new, skipped, tuple(wanted), adapted)


def _data_section(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The section "data" of a run's config.json; {} where its normalization is none of this package's."""
    data = config.get("data") if config else None
    name = data.get("normalization") if isinstance(data, Mapping) else None
    return data if data and (name == preprocess.PER_CHANNEL or name in preprocess.NORMALIZATIONS) else {}


def _compare_normalizations(before: Mapping[str, Any], now: Mapping[str, Any] | None) -> str | None:
    """Returns a warning where a run's section "data" has another normalization than now."""
    if not before or not now or all(_as_list(before.get(name)) == _as_list(now.get(name)) for name in now):
        return None
    then, given = ({name: part.get(name) for name in now if part.get(name)} for part in (before, now))
    texts = [" ".join(f"{name}={value}" for name, value in fields.items()) for fields in (then, given)]
    return (
        f"warning: these weights were trained with data.{texts[0]}, and this run has data.{texts[1]}: the first layer "
        f"reads numbers of another scale; {SAME_NORMALIZATION}"
    )


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _adapt_input(
    wanted: Mapping[str, Any],
    offered: dict[str, Any],
    input_kernel: Callable[[], str | None],
    channel_order: str,
) -> dict[str, str]:
    """Adapts the kernel in `offered` that reads the image, where it reads another number of channels.

    One that reads blue, green, red is reversed first: a normalization of several other channels begins with red.

    Returns:
      {its path: how}; {}: no kernel differs so.
    """
    paths_of_others = [
        path
        for path, (_, leaf) in wanted.items()
        if path in offered and input_channels.fits_but_for_channels(offered[path][1].shape, leaf.shape)
    ]
    if not paths_of_others or (path := input_kernel()) not in paths_of_others:
        return {}
    assert path is not None
    (collection, kernel), channels = offered[path], wanted[path][1].shape[2]
    if not input_channels.has_rule(kernel.shape[2], channels):
        return {}
    how = input_channels.describe_adaptation(kernel.shape[2], channels)
    if channel_order == "BGR" and channels > 1:
        kernel, how = np.asarray(kernel)[:, :, ::-1], f"blue, green, red reversed; {how}"
    offered[path] = collection, input_channels.adapt_input_kernel(np.asarray(kernel), channels)
    return {path: how}


def _why_new(path: str, wanted: Mapping[str, Any], offered: Mapping[str, Any], source: str) -> str | None:
    """Returns the reason why an array that no pattern names is initialized at random; None: it is restored.

    Raises:
      UserError: it should be restored, but cannot be.
    """
    shape = tuple(wanted[path][1].shape)
    if path not in offered:
        names = path.split("/")
        prefixes = ("/".join(names[:depth]) + "/" for depth in range(1, len(names)))
        module = next((prefix for prefix in prefixes if not any(other.startswith(prefix) for other in offered)), path)
        allow = f'config.initialize.new = ("^{module}",) initializes it at random'
        raise UserError(f"config.initialize.checkpoint: {source} has no {path} (here {list(shape)}); {allow}")
    found = tuple(offered[path][1].shape)
    if found == shape:
        return None
    if _is_of_classifier(path) and found[:-1] == shape[:-1]:
        return OTHER_CLASSES
    where = f"config.initialize.checkpoint: {source} has {path} as {list(found)} (here {list(shape)})"
    same = [one for one in wanted if one in offered and not _is_of_classifier(one)]
    others = sum(tuple(offered[one][1].shape) != tuple(wanted[one][1].shape) for one in same)
    if len(same) >= 10 and 2 * others > len(same):
        raise UserError(
            f"{where}, and {others:,} of {len(same):,} arrays in another shape: a network of other options; give it "
            "those of the source's config.json, such as config.model.width_multiplier"
        )
    allow = f'config.initialize.new = ("^{path.rpartition("/")[0]}/",) initializes it at random'
    raise UserError(f"{where}; {allow}")


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


def find_workdir(path: Path) -> Path | None:
    """The workdir of a checkpoint, of a directory of checkpoints, or the path itself: the one that has a config."""
    candidates = (path, *path.absolute().parents[:2])
    return next((directory for directory in candidates if (directory / manifest.CONFIG).is_file()), None)


def read_warm_start(config: Config) -> WarmStart | None:
    """Reads the config's section `initialize`; None: random initialization.

    Raises:
      UserError: `initialize.step` is not a step.
    """
    fields = config.initialize
    if fields.checkpoint is None:
        return None  # the other fields of the section stay unread, so that `Config.refuse_unread` reports them
    normalization = config.data.read("normalization")
    if normalization["normalization"] == preprocess.PER_CHANNEL:  # without it nothing may read the numbers
        normalization |= config.data.read("mean", "std")
    return WarmStart(**fields.read("checkpoint", "weights", "step", "new"), normalization=normalization)
