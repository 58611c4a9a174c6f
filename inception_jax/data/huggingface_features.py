"""The classes that a Hugging Face data set names: in the files' own schema, in `dataset_info.json`, in `README.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LISTS = ("Sequence", "List", "LargeList")


def type_of(feature: Any) -> Any:
    """What a feature in JSON is, such as "Image"; None: it is not known."""
    return feature.get("_type") if isinstance(feature, dict) else None


def class_names(features: Any) -> dict[str, list[str]]:
    """{column: its classes} of features in JSON; also of columns that have lists of them."""
    found = {name: _names_of(feature) for name, feature in features.items()} if isinstance(features, dict) else {}
    return {name: names for name, names in found.items() if names is not None}


def _names_of(feature: Any) -> list[str] | None:
    if isinstance(feature, list) and len(feature) == 1:  # a list, as older versions write it
        return _names_of(feature[0])
    if type_of(feature) in _LISTS:
        return _names_of(feature.get("feature"))
    return _listed(feature.get("names")) if type_of(feature) == "ClassLabel" else None


def readme_class_names(info: Any, config: str) -> dict[str, list[str]]:
    """{column: its classes} of `dataset_info` in the header of a `README.md`.

    Args:
      info: a dict, or a list of one for each config.
      config: that is read.
    """
    infos = [one for one in (info if isinstance(info, list) else [info]) if isinstance(one, dict)]
    if len(infos) > 1 or any("config_name" in one for one in infos):
        infos = [one for one in infos if one.get("config_name", "default") == (config or "default")]
    found = {}
    features = infos[0].get("features") if infos else None
    for feature in features if isinstance(features, list) else []:
        if not isinstance(feature, dict):
            continue
        for key in ("dtype", "sequence", "list", "large_list"):
            described = feature.get(key)
            label = described.get("class_label") if isinstance(described, dict) else None
            names = _listed(label.get("names")) if isinstance(label, dict) else None
            if names is not None:
                found[str(feature.get("name"))] = names
    return found


def _listed(names: Any) -> list[str] | None:
    """Names in the order of their numbers, which are their keys in YAML: {"0": "cat", "1": "dog"}."""
    if isinstance(names, Mapping):
        keys = [str(key) for key in names]
        if sorted(keys, key=lambda key: (len(key), key)) != [str(number) for number in range(len(keys))]:
            return None
        by_key = {str(key): str(value) for key, value in names.items()}
        return [by_key[str(number)] for number in range(len(keys))]
    return [str(name) for name in names] if isinstance(names, list) else None
