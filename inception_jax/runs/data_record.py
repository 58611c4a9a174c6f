"""Writes data.json, the identity of a run's data, and compares it with the data of a later start.

The identity: the class names in their order, and for the training and the evaluation split the number of examples and a
digest of the records' names, sizes and labels. The contents of images are not read: an image that was replaced by
another one of the same name and size is not noticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from inception_jax.data.datasets import Dataset
from inception_jax.data.records import label_counts
from inception_jax.errors import UserError
from inception_jax.runs import manifest

FILE = "data.json"
CLASSES = "classes.json"
_ROLES = {"train_split": "training", "eval_split": "evaluation"}
_MAX_NAMES = 6


def describe(train: Dataset, evaluation: Dataset) -> dict[str, Any]:
    """Describes the data of a run: the content of data.json.

    Args:
      train: the training split.
      evaluation: the evaluation split.

    Raises:
      UserError: a file of a prepared data set is missing.
    """
    return {
        "dataset": train.name,
        "classes": list(train.class_names),
        "train_split": describe_split(train),
        "eval_split": describe_split(evaluation),
    }


def describe_split(dataset: Dataset) -> dict[str, Any]:
    """Describes the examples of a split: number, number per class where that is known, and digest.

    Raises:
      UserError: as `describe`.
    """
    return {
        "split": dataset.split,
        "examples": dataset.num_examples,
        "class_counts": label_counts(dataset.source, dataset.num_classes),
        "digest": dataset.source.digest(),
    }


def write(workdir: Path, identity: Mapping[str, Any]) -> None:
    """Writes data.json and classes.json, each atomically.

    Raises:
      UserError: a file cannot be written.
    """
    manifest.replace_text(workdir / FILE, json.dumps(identity, indent=2) + "\n")
    classes = {"dataset": identity["dataset"], "names": identity["classes"]}
    manifest.replace_text(workdir / CLASSES, json.dumps(classes, indent=2) + "\n")


def refuse_changed(workdir: Path, identity: Mapping[str, Any]) -> list[str]:
    """Compares the data with that of the run in a workdir.

    Args:
      workdir: of the run; of an earlier version it has no data.json.
      identity: from `describe`.

    Returns:
      Lines for the log: where the data was not recorded yet.

    Raises:
      UserError: other classes or other examples.
    """
    classes = read_class_names(workdir)
    if classes is not None and (differing := class_difference(classes, identity["classes"])):
        raise UserError(
            f"data {identity['dataset']}: {differing}; put the data back as it was, or choose another workdir "
            f"than {workdir} (config.initialize.checkpoint={workdir} starts from its weights)"
        )
    remedy = "restore a copy, or remove it: the next start records the data"
    before = manifest.read_json_object(workdir / FILE, remedy)
    if before is None:
        if classes is None:
            return []
        counts = [f"{identity[role]['examples']:,} {name}" for role, name in _ROLES.items()]
        return [
            f"note: this run began with a version that did not record its data; recorded from now on in {FILE}: "
            f"{len(identity['classes']):,} classes, {' and '.join(counts)} examples"
        ]
    for role, name in _ROLES.items():
        if not _is_split(before.get(role)):
            reason = f"{role!r} = {str(before.get(role))[:40]!r} is not the number and the digest of its examples"
            raise manifest.damaged(workdir / FILE, reason, remedy)
        if differing := _split_difference(before[role], identity[role], identity["classes"]):
            raise UserError(
                f"data {identity['dataset']}, {name} split {identity[role]['split']!r}: {differing}; put the data back "
                f"as it was, or choose another workdir than {workdir} (if these are the same examples in the same "
                f"order, prepared or stored anew: remove {workdir / FILE}, and the next start records them)"
            )
    return []


def refuse_other_classes(workdir: Path, dataset: Dataset, remedy: str) -> None:
    """Compares the classes of a data set with those of a run that is to be used on it.

    Args:
      workdir: of the run.
      dataset: whose labels the network's classes are compared with.
      remedy: for the message.

    Raises:
      UserError: they differ.
    """
    classes = read_class_names(workdir)
    if classes is not None and (differing := class_difference(classes, dataset.class_names)):
        raise UserError(f"data {dataset.name}: {differing}{dataset.class_hint}; {remedy}")


def refuse_other_label_kind(workdir: Path, labels: str) -> None:
    """Refuses to evaluate a network for one label per image as one for several, or the other way.

    Args:
      workdir: of the run; of an earlier version its config has no `data.labels`: one label.
      labels: `config.data.labels` of the evaluation.

    Raises:
      UserError: the run has the other.
    """
    content = manifest.read_config(workdir) or {}
    section = content.get("config", content).get("data")  # a folder for a hub has the run's config in "config"
    trained = section.get("labels", "single") if isinstance(section, Mapping) else "single"
    if trained != labels:
        kinds = {"single": "one label per image (softmax)", "multi": "several labels per image (sigmoid)"}
        raise UserError(
            f"config.data.labels = {labels!r}: the run in {workdir} was trained with {trained!r}, "
            f"{kinds.get(trained, trained)}; evaluate it on data of that kind"
        )


def note_other_examples(workdir: Path, dataset: Dataset) -> list[str]:
    """Compares the examples of a split with those that a run had in it.

    Returns:
      A line for the log where the run trained or evaluated on this split and it has other examples now; [] otherwise.
    """
    before = manifest.read_json_object(workdir / FILE)
    if before is None or before.get("dataset") != dataset.name:
        return []
    for role, name in _ROLES.items():
        split = before.get(role)
        if _is_split(split) and split.get("split") == dataset.split:
            differing = _split_difference(split, describe_split(dataset), dataset.class_names)
            return [f"note: {name} split {dataset.split!r} of the run: {differing}"] if differing else []
    return []


def find_difference(before: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """How data differs from a record of it; "" where it does not.

    Args:
      before: the content of data.json.
      identity: from `describe`.
    """
    classes = before.get("classes")
    if isinstance(classes, list) and (differing := class_difference(classes, identity["classes"])):
        return differing
    for role, name in _ROLES.items():
        if _is_split(before.get(role)) and (
            differing := _split_difference(before[role], identity[role], identity["classes"])
        ):
            return f"{name} split {identity[role]['split']!r}: {differing}"
    return ""


def differences(workdirs: Mapping[str, Path]) -> Iterator[str]:
    """Yields, for splits of the same name in which runs had other examples, which run had which.

    Args:
      workdirs: by the name of the run; one of an earlier version, without a record, is left out.
    """
    for role, what in _ROLES.items():
        found: dict[str, dict[str, list[str]]] = {}  # {data set and split: {examples and digest: runs}}
        for name, workdir in workdirs.items():
            try:
                record = manifest.read_json_object(workdir / FILE) or {}
            except UserError:
                continue  # damaged
            split = record.get(role)
            if isinstance(split, Mapping) and split.get("digest"):
                examples = f"{split.get('examples')} of digest {str(split['digest'])[:8]}"
                found.setdefault(f"{record.get('dataset')}, {split.get('split')}", {}).setdefault(examples, []).append(
                    name
                )
        for where, by_examples in found.items():
            if len(by_examples) > 1:
                details = "; ".join(f"{examples}: {', '.join(names)}" for examples, names in by_examples.items())
                yield f"other {what} examples in a split of the same name ({where}: {details})"


def read_class_names(workdir: Path) -> list[str] | None:
    """Reads the class names of a run; None where it has none, or names them only by their numbers (`convert`)."""
    names = read_all_class_names(workdir)
    return None if names is None or names == [f"class {index}" for index in range(len(names))] else names


def read_all_class_names(workdir: Path) -> list[str] | None:
    """Reads the class names in classes.json; None where there is no such file.

    Raises:
      UserError: it is damaged.
    """
    record = manifest.read_json_object(workdir / CLASSES)
    if record is None:
        return None
    names = record.get("names")
    # A network without a classifier, as `convert` imports one, has no classes: [].
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        reason = f"'names' = {str(names)[:40]!r} is not a list of names"
        raise manifest.damaged(workdir / CLASSES, reason, "restore a copy")
    return names


def class_difference(before: Sequence[str], now: Sequence[str]) -> str:
    """Says how the classes of a run and of data differ: "the run was trained on 'cat', 'dog'; the data has 'ant'"."""
    if list(before) == list(now):
        return ""
    text = f"the run was trained on {_format_names(before)}; the data has {_format_names(now)}"
    old_names, new_names = set(before), set(now)
    gone, new = [name for name in before if name not in new_names], [name for name in now if name not in old_names]
    if not gone and not new:
        label = next(i for i, (old, name) in enumerate(zip(before, now, strict=True)) if old != name)
        return f"{text}: in another order (class {label} was {before[label]!r} and is {now[label]!r})"
    if max(len(before), len(now)) > _MAX_NAMES:
        changes = [f"without {_quote(gone)}"] * bool(gone) + [f"with {_quote(new)}"] * bool(new)
        text += f" ({', '.join(changes)})"
    return text


def _format_names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) if len(names) <= _MAX_NAMES else f"{len(names):,} classes"


def _quote(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


def _is_split(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Returns whether a value of a file is what `describe_split` gives."""
    return (
        isinstance(value, Mapping) and isinstance(value.get("digest"), str) and isinstance(value.get("examples"), int)
    )


def _split_difference(before: Mapping[str, Any], now: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Says how the examples of a split differ, or ""; `before` is from a file, and `_is_split`."""
    if before["digest"] == now["digest"]:
        return ""
    if before["examples"] == now["examples"] and before.get("class_counts") == now["class_counts"]:
        return f"{now['examples']:,} examples as before, but other names or sizes of their files"
    text = f"{now['examples']:,} examples, and {before['examples']:,} when the run began"
    old, new = before.get("class_counts"), now["class_counts"]
    if isinstance(old, list) and all(isinstance(count, int) for count in old) and new and len(old) == len(new):
        changed = [f"{name!r} {b:,}, was {a:,}" for name, a, b in zip(classes, old, new, strict=True) if a != b]
        text += f" ({'; '.join(changed[:3])}{'; …' if len(changed) > 3 else ''})"
    return text
