"""Finds the files of a Hugging Face data set that is on this machine, split by split.

A repository of the hub has Parquet files, whose splits the header of its `README.md` names, or else their own names, by
the rules of the package `datasets` (its `data_files.py`); `save_to_disk` writes Arrow files and the names of the splits
beside them. Nothing is downloaded.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import glob
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from inception_jax.data import file_patterns, huggingface_features, split_names, storage
from inception_jax.data.names import nearest_entry, one_line, printable
from inception_jax.errors import UserError, counted, nearest

KIND = "huggingface"
_SUFFIXES = (".parquet", ".arrow")
_OF_A_CACHE = "cache-*.arrow"  # results of `map` and `filter`, which `datasets` keeps beside its own files
_SHARDED = re.compile(r"data/(?P<split>\w+(?:\.\w+)*)-\d{5,}-of-\d{5,}[^/]*")
_SHARD = re.compile(r"(?P<before>.*?)(?P<number>\d{5,})-of-(?P<count>\d{5,})(?P<after>.*)")
_WORD = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(split_names.KIND)})(?=[-._ 0-9]|$)", re.IGNORECASE)
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LOOKED_AT = 1000  # folders, for whether there are such files
_HEADER = re.compile(r"\ufeff?---\s*\n(.*?)\n---", re.DOTALL)  # of README.md, in YAML


@dataclasses.dataclass(frozen=True)
class SplitTables:
    """The files of a split.

    Attributes:
      files: in the order of their rows.
      problem: why the split cannot be used, or "".
    """

    files: list[str]
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class FoundTables:
    """The files of a data set.

    Attributes:
      splits: by name, the training split first.
      class_names: {column: its classes}, where they are named beside the files.
      notes: on files that are of no split.
    """

    splits: dict[str, SplitTables]
    class_names: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()


def find(name: str) -> FoundTables:
    """Finds the files of a data set.

    Args:
      name: the folder of a repository that was downloaded or cloned, or that `save_to_disk` has written; a repository,
        "ORGANIZATION/NAME", in the cache of the hub; a file; or a pattern of files with `*` and `{split}`, as of
        `file_patterns`. After a folder or a repository ":CONFIG" may follow, where it has several configs.

    Raises:
      UserError: there is no such folder, or no data in it; several configs, and none is named; a description that
        cannot be read.
    """
    full = f"{KIND}:{printable(name)}"
    if storage.is_remote(name):
        raise UserError(f"{full}: files are read from a file system; mount the storage as one, or download the set")
    if not name.strip() or "\0" in name:
        raise UserError(f"{full}: {KIND}:PATH or {KIND}:ORGANIZATION/NAME is needed; is a variable of the shell unset?")
    path = os.path.expanduser(name)
    try:
        if not os.path.exists(path) and re.search(r"[*?{\[]", path):
            parts = file_patterns.find(path, KIND, "file")
            found = FoundTables({split: SplitTables(part.files, part.problem) for split, part in parts.items()})
        elif os.path.isfile(path):
            found = FoundTables({"train": SplitTables([path])})
        else:
            found = _find_in_folder(full, *_find_folder(name))
    except OSError as error:
        raise UserError(f"{printable(str(error.filename or name))}: {error.strerror or error}") from None
    for part in found.splits.values():
        kinds = {os.path.splitext(file)[1].lower() for file in part.files}
        if kinds - {*_SUFFIXES} or len(kinds) > 1:
            raise UserError(f"{full}: files {', '.join(sorted(kinds))}; all .parquet or all .arrow are needed")
    return dataclasses.replace(found, splits=_ordered(full, found.splits))


def _ordered(full: str, splits: Mapping[str, SplitTables]) -> dict[str, SplitTables]:
    """Splits by names that a config can name: train.full becomes train_full."""
    names = {re.sub(r"\W", "_", split): split for split in splits}
    if len(names) < len(splits) or not all(names):
        raise UserError(f"{full}: splits {', '.join(map(one_line, splits))}; letters, digits and _ tell them apart")
    return {name: splits[names[name]] for name in split_names.ordered(names)}


def is_data_set(folder: Path) -> bool:
    """Whether a folder that cannot be read as another kind is a Hugging Face data set, as far as its top tells."""
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return True
        tops = (folder, folder / "data")
        if any(file.endswith(_SUFFIXES) for top in tops if top.is_dir() for file in os.listdir(top)):
            return True
        below = (file for _, _, files in itertools.islice(os.walk(folder), _LOOKED_AT) for file in files)
        return bool(_read_header(folder).get("configs")) and any(file.endswith(_SUFFIXES) for file in below)
    except (OSError, UserError):
        return False


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
    except (OSError, ValueError):
        found = [*folder.glob("snapshots/*")]
        return found[0] if len(found) == 1 else None


def _find_in_folder(full: str, folder: Path, config: str) -> FoundTables:
    if (folder / "dataset_dict.json").is_file():
        _refuse_config(full, config)
        splits = _read_json(folder / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
            raise UserError(f"{printable(str(folder))}/dataset_dict.json: no splits; copy the data set again")
        found = {split: _saved(folder / split) for split in splits}
        return FoundTables(found, _saved_classes(folder / splits[0]))
    if (folder / "state.json").is_file():
        _refuse_config(full, config)
        split = str(_read_json(folder / "state.json").get("_split") or "train")
        return FoundTables({split: _saved(folder)}, _saved_classes(folder))
    header = _read_header(folder)
    described = _described(folder, header)
    if described:
        chosen = _choose(full, described, config, [one for one, entry in described.items() if entry.get("default")])
        notes: list[str] = []
        splits = _described_splits(folder, described[chosen])
    else:
        configs, notes = _by_names(folder)
        if not configs:
            raise UserError(
                f"{full}: no .parquet and no .arrow files in {printable(str(folder))}; download them, write them with "
                "to_parquet or save_to_disk of the package datasets, or read class folders with folder:PATH"
            )
        chosen = _choose(full, configs, config)
        splits = {split: SplitTables(files, _check_shards(files)) for split, files in configs[chosen].items()}
    return FoundTables(splits, huggingface_features.readme_class_names(header.get("dataset_info"), chosen), notes)


def _choose(full: str, configs: Collection[str], config: str, defaults: Sequence[str] = ()) -> str:
    """The config that is named, or else the only one, that which says so, or "default"."""
    if config in configs and (config or len(configs) == 1):
        return config
    if not config:
        for candidates in (defaults, [one for one in configs if one == "default"], configs):
            if len(candidates) == 1:
                return next(iter(candidates))
    problem = f"no config {config!r}{nearest(config, configs)}" if config else "several configs"
    shown = ", ".join(one_line(one) or "(files beside the folders of configs)" for one in configs)
    raise UserError(
        f"{full}: {problem}; name one, {KIND}:PATH:CONFIG: {shown}; or name files, such as {KIND}:PATH/{{split}}/*/*"
    )


def _refuse_config(full: str, config: str) -> None:
    if config:
        raise UserError(f"{full}: what save_to_disk has written has no configs; leave out {':' + config!r}")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{printable(str(path))}: cannot be read: {error}; copy the data set again") from None


def _saved(folder: Path) -> SplitTables:
    """The files that `save_to_disk` has written of a split, in the order that it has noted."""
    shown = printable(str(folder))
    if not folder.is_dir():
        return SplitTables([], f"{shown}: no such folder; dataset_dict.json names it: copy it again")
    try:
        state = _read_json(folder / "state.json")
    except UserError as error:
        return SplitTables([], str(error))
    if state.get("_indices_data_files"):
        return SplitTables([], f"{shown}: written by an old version, with an order of its rows; write it anew")
    parts = state.get("_data_files")
    names = [part.get("filename") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    if not isinstance(parts, list) or len(names) < len(parts) or not all(isinstance(name, str) for name in names):
        return SplitTables([], f"{shown}/state.json: no names of files; copy the data set again")
    return SplitTables([str(folder / str(name)) for name in names])


def _saved_classes(folder: Path) -> dict[str, list[str]]:
    try:
        return huggingface_features.class_names(_read_json(folder / "dataset_info.json").get("features"))
    except UserError:
        return {}


def _read_header(folder: Path) -> Mapping[str, Any]:
    """The header of `README.md`; empty where there is none."""
    path = folder / "README.md"
    try:
        match = _HEADER.match(path.read_text(encoding="utf-8"))
        header = yaml.safe_load(match[1]) if match else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{printable(str(path))}: its header cannot be read: {reason}; correct it, or remove it"
        ) from None
    return header if isinstance(header, dict) else {}


def _described(folder: Path, header: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{config: its entry} of the header of `README.md`."""
    entries = header.get("configs") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{printable(str(folder))}/README.md: configs is no list of entries; correct it, or remove it")
    return {str(entry.get("config_name", "default")): entry for entry in entries}


def _described_splits(folder: Path, entry: Mapping[str, Any]) -> dict[str, SplitTables]:
    """The splits of an entry of `README.md`."""
    data_dir, files = entry.get("data_dir") or "", entry.get("data_files")
    where = f"{printable(str(folder))}/README.md, config {entry.get('config_name', 'default')}"
    base = folder / str(data_dir)
    if files is None:
        found: dict[str, list[str]] = collections.defaultdict(list)
        for splits in (_by_names(base)[0] if base.is_dir() else {}).values():
            for split, names in splits.items():
                found[split] += names
        if not found:
            raise UserError(f"{where}: no .parquet files in {printable(str(base))}; download the data set again")
        return {split: SplitTables(sorted(names), _check_shards(names)) for split, names in found.items()}
    if isinstance(files, list) and files and all(isinstance(part, dict) for part in files):
        if not all({"split", "path"} <= part.keys() for part in files):
            raise UserError(f"{where}: each of data_files needs split and path; correct it")
        if len({str(part["split"]) for part in files}) < len(files):
            raise UserError(f"{where}: data_files names a split twice; correct it")
        return {str(part["split"]): _matched(where, base, part["path"]) for part in files}
    return {"train": _matched(where, base, files)}


def _matched(where: str, base: Path, patterns: Any) -> SplitTables:
    """The Parquet files that patterns of `README.md` name, each pattern's in the order of their names."""
    texts = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise UserError(f"{where}: {patterns!r} names no files; a pattern, or a list of them, is needed")
    files: list[str] = []
    for text in texts:
        pattern = os.path.join(glob.escape(str(base)), text)
        for file in sorted(glob.glob(pattern, recursive=True)):
            inside = Path(os.path.relpath(file, base)).parts
            is_hidden = any(part.startswith((".", "__")) for part in inside if part != "..")
            if file.endswith(_SUFFIXES) and not is_hidden and file not in files:
                files.append(file)
    if not files:
        return SplitTables([], f"{where}: no .parquet file {', '.join(texts)}; download the data set again")
    wanted = [os.path.normpath(os.path.join(base, text)) for text in texts]
    return SplitTables(files, _check_shards(files, lambda file: any(fnmatch.fnmatch(file, one) for one in wanted)))


def _by_names(folder: Path) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """{config: {split: its files}} by the names of files and folders, and a note on those that are of no split.

    The rules are tried in turn, and the first that finds a split decides: `data/SPLIT-00000-of-00001.parquet`; folders
    with the word for a split in their names; files with one. Else all is train. Other folders tell configs apart.
    """
    files = {Path(file).relative_to(folder).as_posix(): file for file in sorted(_walk(folder))}
    rules: tuple[Callable[[str], tuple[str, str]], ...] = (_by_shard, _by_folder, _by_file)
    for rule in rules:
        named = {name: rule(name) for name in files}
        if any(split for _, split in named.values()):
            break
    else:
        named = {name: (_config(name.split("/")[:-1]), "train") for name in files}
    found: dict[str, dict[str, list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for name, (config, split) in named.items():
        if split:
            found[config][split].append(files[name])
    left = [name for name, (_, split) in named.items() if not split]
    more = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
    return found, [f"left out: {printable(left[0])}{more}: beside files that name their splits"] if left else []


def _by_shard(name: str) -> tuple[str, str]:
    match = _SHARDED.fullmatch(name)
    return "", match["split"] if match else ""


def _by_folder(name: str) -> tuple[str, str]:
    """The split of the innermost folder whose name has a word for one."""
    parents = name.split("/")[:-1]
    for place in reversed(range(len(parents))):
        if split := _split_of(parents[place], name):
            return _config(parents[:place] + parents[place + 1 :]), split
    return "", ""


def _by_file(name: str) -> tuple[str, str]:
    *parents, file = name.split("/")
    return _config(parents), _split_of(os.path.splitext(file)[0], name)


def _config(parents: Sequence[str]) -> str:
    return "/".join(part for part in parents if part != "data")


def _split_of(text: str, name: str) -> str:
    """The split whose word, such as "train" or "val", is in a name; "" for none."""
    kinds = {split_names.KIND[word.lower()] for word in _WORD.findall(text)}
    if len(kinds) > 1:
        raise UserError(f"{printable(name)}: of {' or '.join(sorted(kinds))}? Rename it, or name files with {{split}}")
    return kinds.pop() if kinds else ""


def _walk(folder: Path) -> Iterator[str]:
    """The Parquet and Arrow files of a folder; each real folder once, and no hidden ones."""

    def refuse(error: OSError) -> None:
        raise error

    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for file in files:
            if file.endswith(_SUFFIXES) and file[0] != "." and not fnmatch.fnmatchcase(file, _OF_A_CACHE):
                yield os.path.join(parent, file)


def _check_shards(files: Sequence[str], is_wanted: Callable[[str], bool] = lambda file: True) -> str:
    """What is wrong with files that say how many they are, or "".

    Args:
      files: of a split.
      is_wanted: whether a path that is not there is meant to be.
    """
    groups: dict[tuple[str, str], list[re.Match[str]]] = collections.defaultdict(list)
    for file in files:
        folder, base = os.path.split(file)
        if match := _SHARD.fullmatch(base):
            groups[folder, match["before"]].append(match)
    for (folder, before), shards in groups.items():
        where = f"{printable(folder)}: {one_line(before)}"
        counts = sorted({int(shard["count"]) for shard in shards})
        numbers = [int(shard["number"]) for shard in shards]
        if len(counts) > 1 or len({*numbers}) < len(numbers) or max(numbers) >= counts[0]:
            shown = ", ".join(one_line(shard[0]) for shard in shards[:2])
            return f"{where}: shards of several revisions beside one another, such as {shown}; remove the older ones"
        names = {number: f"{before}{number:05d}-of-{shards[0]['count']}" for number in {*range(counts[0])} - {*numbers}}
        after = shards[0]["after"]
        missing = [name for name in names.values() if is_wanted(os.path.join(folder, name + after))]
        if missing:
            shown = f"{counted(len(missing), 'shard')} of {counts[0]:,} missing, the first is {one_line(min(missing))}"
            return f"{where}: {shown}; download the data set again"
    return ""
