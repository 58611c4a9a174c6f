"""Finds the files of a Hugging Face data set that is on this machine, split by split.

A repository of the hub has Parquet files, whose splits are in its `README.md` or in their names; `save_to_disk` of the
package `datasets` writes Arrow files and the names of the splits beside them. Nothing is downloaded.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from inception_jax.data import file_patterns, split_names, storage
from inception_jax.data.names import nearest_entry, one_line, printable
from inception_jax.errors import UserError, nearest

KIND = "huggingface"
_SUFFIXES = (".parquet", ".arrow")
# train-00000-of-00002.parquet, name-train-00000-of-00002.arrow, with a hash or without.
_SHARD = re.compile(r"(?:.*-)?(?P<split>\w+(?:\.\w+)*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]{16})?")
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HEADER = re.compile(r"---\s*\n(.*?)\n---", re.DOTALL)  # of README.md, in YAML
_UNNAMED = ("", "data")  # folders that say nothing of a config


@dataclasses.dataclass(frozen=True)
class SplitTables:
    """The files of a split.

    Attributes:
      files: in the order of their rows.
      problem: why the split cannot be used, or "".
    """

    files: list[str]
    problem: str = ""


def find(name: str) -> dict[str, SplitTables]:
    """Finds the files of a data set.

    Args:
      name: the folder of a repository that was downloaded or cloned, or that `save_to_disk` has written; a repository,
        "ORGANIZATION/NAME", in the cache of the hub; a file; or a pattern of files with `*` and `{split}`, as of
        `file_patterns`. After a folder or a repository ":CONFIG" may follow, where it has several configs.

    Returns:
      {split: its files}, the training split first.

    Raises:
      UserError: there is no such folder, or no data in it; several configs, and none is named.
    """
    full = f"{KIND}:{printable(name)}"
    if storage.is_remote(name):
        raise UserError(f"{full}: files are read from a file system; mount the storage as one, or download the set")
    if not name.strip():
        raise UserError(f"{full}: {KIND}:PATH or {KIND}:ORGANIZATION/NAME is needed; is a variable of the shell unset?")
    path = os.path.expanduser(name)
    if not os.path.exists(path) and re.search(r"[*?{\[]", path):
        found = file_patterns.find(path, KIND, "file")
        return {split: SplitTables(_of_one_kind(full, part.files), part.problem) for split, part in found.items()}
    if os.path.isfile(path):
        return {"train": SplitTables(_of_one_kind(full, [path]))}
    folder, config = _find_folder(name)
    if (folder / "dataset_dict.json").is_file():
        _refuse_config(full, config)
        splits = _read_json(folder / "dataset_dict.json").get("splits", [])
        return {split: _saved(folder / split) for split in split_names.ordered(splits)}
    if (folder / "state.json").is_file():
        _refuse_config(full, config)
        return {str(_read_json(folder / "state.json").get("_split") or "train"): _saved(folder)}
    configs = _described(folder) or _named(folder)
    if not configs:
        raise UserError(
            f"{full}: no .parquet and no .arrow files in {folder}; download them, write them with to_parquet or "
            "save_to_disk of the package datasets, or read class folders with folder:PATH"
        )
    splits = configs[_choose(full, configs, config)]
    return {
        split: dataclasses.replace(splits[split], files=_of_one_kind(full, splits[split].files))
        for split in split_names.ordered(splits)
    }


def _choose(full: str, configs: Collection[str], config: str) -> str:
    """The config that is named, or else the only one, or "default"."""
    if config in configs and (config or len(configs) == 1):
        return config
    if not config and (len(configs) == 1 or "default" in configs):
        return "default" if "default" in configs else next(iter(configs))
    problem = f"no config {config!r}{nearest(config, configs)}" if config else "several configs"
    shown = ", ".join(one_line(one) or "(files beside the folders of configs)" for one in configs)
    raise UserError(f"{full}: {problem}; name one, {KIND}:PATH:CONFIG: {shown}")


def is_data_set(folder: Path) -> bool:
    """Whether a folder is taken for a Hugging Face data set, as far as can be said without a walk through it."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")) or _described(folder):
        return True
    return any(
        file.suffix in _SUFFIXES for part in (folder, folder / "data") if part.is_dir() for file in part.iterdir()
    )


def _find_folder(name: str) -> tuple[Path, str]:
    """The folder and the config of "PATH", "PATH:CONFIG", "ORGANIZATION/NAME" or "ORGANIZATION/NAME:CONFIG"."""
    before, _, after = name.rpartition(":")
    candidates = [(name, ""), (before, after)] if before and after else [(name, "")]
    for path, config in candidates:
        if os.path.isdir(os.path.expanduser(path)):
            return Path(os.path.expanduser(path)), config
    for repository, config in candidates:
        if _REPOSITORY.fullmatch(repository) and (folder := _cached(repository)) is not None:
            return folder, config
    full = f"{KIND}:{printable(name)}"
    repository = candidates[-1][0]
    if _REPOSITORY.fullmatch(repository) and not repository.startswith("."):
        raise UserError(
            f"{full}: no such folder{nearest_entry(repository)}, and no such repository in {_hub_cache()}; run: hf "
            f"download --repo-type dataset {repository}"
        )
    raise UserError(f"{full}: no such folder{nearest_entry(os.path.expanduser(repository))}")


def _hub_cache() -> Path:
    """Where Hugging Face's tools keep what they download."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")))


def _cached(repository: str) -> Path | None:
    """The revision `main` of a repository in the cache of the hub, or the only one; None: it is not there."""
    folder = _hub_cache() / f"datasets--{repository.replace('/', '--')}"
    try:
        return folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except OSError:
        found = [*folder.glob("snapshots/*")]
        return found[0] if len(found) == 1 else None


def _refuse_config(full: str, config: str) -> None:
    if config:
        raise UserError(f"{full}: what save_to_disk has written has no configs; leave out {':' + config!r}")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found
    except (OSError, ValueError) as error:
        raise UserError(f"{printable(str(path))}: cannot be read: {error}; copy the data set again") from None


def _saved(folder: Path) -> SplitTables:
    """The files that `save_to_disk` has written of a split, in the order that it has noted."""
    if not folder.is_dir():
        return SplitTables([], f"{printable(str(folder))}: no such folder; dataset_dict.json names it: copy it again")
    found = _read_json(folder / "state.json").get("_data_files", [])
    return SplitTables([str(folder / part["filename"]) for part in found])


def _described(folder: Path) -> dict[str, dict[str, SplitTables]]:
    """{config: its splits} of the header of `README.md`; empty where it names none that has files here."""
    try:
        header = _HEADER.match((folder / "README.md").read_text(encoding="utf-8"))
        configs = yaml.safe_load(header[1]).get("configs") if header else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        return {}
    found: dict[str, dict[str, SplitTables]] = {}
    for one in configs if isinstance(configs, list) else []:
        if not isinstance(one, dict):
            continue
        files, base = one.get("data_files"), folder / str(one.get("data_dir") or "")
        parts = [part for part in files if isinstance(part, dict)] if isinstance(files, list) else []
        if parts and all({"split", "path"} <= part.keys() for part in parts):
            splits = {str(part["split"]): _matched(base, part["path"]) for part in parts}
        elif files is None:
            splits = next(iter(_named(base).values()), {})
        else:
            splits = {"train": _matched(base, files)}
        if any(part.files for part in splits.values()):
            found[str(one.get("config_name", "default"))] = splits
    return found


def _matched(base: Path, patterns: str | Sequence[str]) -> SplitTables:
    """The Parquet files that patterns of `README.md` name, each pattern's in the order of their names."""
    texts = [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]
    files: list[str] = []
    for text in texts:
        matched = sorted(glob.glob(os.path.join(glob.escape(str(base)), text), recursive=True))
        files += [file for file in matched if file.endswith(_SUFFIXES) and file not in files]
    if not files:
        return SplitTables([], f"no file {', '.join(texts)} in {printable(str(base))}; download the data set again")
    return SplitTables(files, _missing_shards(files))


def _named(folder: Path) -> dict[str, dict[str, SplitTables]]:
    """{config: its splits} by the names of files and folders."""
    found: dict[str, dict[str, list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for file in sorted(_walk(folder)):
        stem, *parents = Path(file).stem, *Path(file).relative_to(folder).parts[:-1]
        if match := _SHARD.fullmatch(stem):
            split = match["split"]
        elif parents and parents[-1].lower() in split_names.KIND:
            split = parents.pop()
        else:
            split = split_names.kind_of(stem) or "train"
        found["/".join(part for part in parents if part not in _UNNAMED)][split].append(file)
    return {
        config: {split: SplitTables(files, _missing_shards(files)) for split, files in splits.items()}
        for config, splits in found.items()
    }


def _walk(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, file) for file in files if file.endswith(_SUFFIXES) and file[0] != ".")


def _missing_shards(files: Sequence[str]) -> str:
    """What is missing of files that say how many they are, or ""."""
    shards = [match for file in files if (match := _SHARD.fullmatch(Path(file).stem))]
    counts = {int(match["count"]) for match in shards}
    if len(counts) > 1:
        return (
            f"{printable(files[0])}: files of {' and of '.join(map(str, sorted(counts)))} shards beside one another; "
            "remove those of the older revision"
        )
    there = {int(match["number"]) for match in shards}
    missing = [number for count in counts for number in range(count) if number not in there]
    if not missing:
        return ""
    count = counts.pop()
    return (
        f"{printable(os.path.dirname(files[0]))}: {len(missing)} of {count} shards of {shards[0]['split']} are "
        f"missing, the first is {missing[0]:05d}-of-{count:05d}; download the data set again"
    )


def _of_one_kind(full: str, files: list[str]) -> list[str]:
    """The files; raises a UserError where they are not all Parquet, or all Arrow."""
    kinds = {os.path.splitext(file)[1].lower() for file in files}
    if kinds - {*_SUFFIXES} or len(kinds) > 1:
        raise UserError(f"{full}: files {', '.join(sorted(kinds))}; all .parquet or all .arrow are needed")
    return files
