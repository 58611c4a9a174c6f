"""The config of a run: checked against its schema (`schema.py`), with a record of which fields were read.

A recipe, a file in `configs/`, starts from `default()` and sets fields. `Config(config)` checks the result and records
which fields are read: `refuse_unread()` turns a field that was set but never read into an error before the first step.
A field with its default may stay unread.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from inception_jax import extension_files, schema
from inception_jax import extensions as extension
from inception_jax.data import images
from inception_jax.errors import UserError, nearest, shorten
from inception_jax.metric_definitions import DEFAULT_METRIC, METRICS, names_of


class ConfigError(UserError):
    """A field of the config is unknown, out of range, or never read."""


def default(extensions: Sequence[str] = ()) -> ConfigDict:
    """The config with the default of every field, for a recipe to start from.

    Args:
      extensions: Python files or modules that register what the recipe names; `(__file__,)` where it does so itself.
        Their paths are made absolute, because other commands read them from config.json.

    Raises:
      UserError: one cannot be imported.
    """
    names = tuple(os.path.abspath(name) if name.endswith(".py") else name for name in extensions)
    extension_files.load(names)
    config = _fill(schema.SCHEMA)
    config.extensions = names
    config.model.options = ConfigDict(
        {name: config_dict.placeholder(kind) for name, kind in sorted(_model_options().items())}
    )
    return config.lock()


def data_name(images: str) -> str:
    """The `data.name` that the argument of a recipe for one's own images means.

    Args:
      images: a folder with a folder per class, a list (`.csv`, `.tsv`, `.parquet`), or KIND:NAME of any data set:
        folder:PATH, list:FILE, webdataset:PATTERN, huggingface:PATH, tfds:NAME of a prepared one.
    """
    kind, _, name = images.partition(":")
    if kind in ("folder", "list", "webdataset", "huggingface"):
        return images
    if kind == "tfds":
        return name
    return f"{'list' if images.lower().endswith(('.csv', '.tsv', '.parquet')) else 'folder'}:{images}"


def _fill(section: Mapping[str, Any]) -> ConfigDict:
    config = ConfigDict()
    for name, entry in section.items():
        if not isinstance(entry, schema.Field):
            config[name] = _fill(entry)
        elif isinstance(entry.default, type):
            config[name] = config_dict.placeholder(entry.default)
        else:
            config[name] = entry.default
    return config


def _model_options() -> dict[str, type]:
    """{name: type} of the options of all models that are not fields of the schema themselves."""
    from inception_jax.models import registry

    own = {*schema.SCHEMA["model"], "bn_axis_name", "bn_axis_index_groups"}
    return {
        name: type(value)
        for model in registry.model_names()
        for name, value in registry.model_options(model).items()
        if name not in own and isinstance(value, bool | int | float | str)
    }


def field_types() -> dict[str, type]:
    """Returns {dotted path: type} of every field, the options of the models included."""
    types = {path: field.kind for path, field in schema.fields()}
    return types | {f"model.options.{name}": kind for name, kind in sorted(_model_options().items())}


def optional_fields() -> set[str]:
    """Returns the dotted paths of the fields that may be unset, as None; the options of the models included."""
    return {path for path, value in leaves(default()) if value is None}


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) of every field; the value is None where the field is unset."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check(config: ConfigDict) -> None:
    """Checks a config against the schema.

    Raises:
      ConfigError: a field is unknown, missing, of another type, or out of its range.
    """
    _tuples_for_mappings(config)
    fields = dict(schema.fields())
    values = dict(leaves(config))
    options = {f"model.options.{name}" for name in _model_options()}
    for path in values:
        if path not in fields and path not in options:
            raise ConfigError(f"config.{path}: no such field{nearest(path, [*fields, *options])}")
    for path, field in fields.items():
        if path not in values:
            raise ConfigError(f"config.{path} is missing; a recipe starts from inception_jax.config.default()")
        _check_value(path, field, values[path])
    _check_registered(values)


def _tuples_for_mappings(config: ConfigDict) -> None:
    """Replaces a mapping that a recipe gave a field by pairs, so that config.json has one form of it."""
    for path, field in schema.fields():
        section, _, name = path.partition(".")
        if field.default is object and isinstance(config.get(section), ConfigDict):
            value = config[section].get(name)
            if isinstance(value, Mapping | ConfigDict):
                value = value.items()
            if isinstance(value, Iterable) and not isinstance(value, str):
                with config[section].ignore_type():  # a copy of the config has a ConfigDict for the mapping
                    config[section][name] = to_tuples(tuple(value))


def _check_registered(values: Mapping[str, Any]) -> None:
    """Checks the fields whose values are names that a recipe may register."""
    from inception_jax.models import registry

    try:
        registry.get_spec(values["model.name"])
    except registry.ModelError as error:
        raise ConfigError(f"config.model.name: {error}") from None
    for path, known in (
        ("checkpoint.best_metric", [*METRICS]),
        ("stop.target_metric", [*METRICS]),
        ("augmentation.rule", [*images.BUILT_IN, *images.CUSTOM]),
        ("optimizer.name", [*extension.BUILT_IN_OPTIMIZERS, *extension.OPTIMIZERS, "optax.NAME"]),
        ("logging.sinks", [*extension.BUILT_IN_SINKS, *extension.SINKS]),
    ):
        value = values[path]
        for name in (value,) if isinstance(value, str) else value or ():
            labels = values["data.labels"]
            if path.endswith("_metric") and name in known and not METRICS[name].is_of(labels):
                raise ConfigError(
                    f"config.{path} = {value!r}: with config.data.labels = {labels!r} the metrics are "
                    f"{', '.join(names_of(labels))}"
                )
            if name not in known and not (path == "optimizer.name" and name.startswith("optax.")):
                given = f"config.{path} = {shorten(repr(value))}"
                raise ConfigError(f"{given}: {extension.unknown(name, known)}")


def _check_value(path: str, field: schema.Field, value: Any) -> None:
    kind = field.kind
    if value is None:
        if isinstance(field.default, type):
            return
        raise ConfigError(f"config.{path} = None: it needs a value ({field.doc})")
    given = f"config.{path} = {shorten(repr(value))}"
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole if kind is int else isinstance(value, kind) or (whole and kind is float)):
        raise ConfigError(f"{given}: it takes a {kind.__name__} ({field.doc})")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{given}: it takes a finite number ({field.doc})")
    if (needed := field.refusal(value)) is not None:
        raise ConfigError(f"{given}: it must be {needed} ({field.doc})")


class Config:
    """A checked, read-only config that records which of its fields were read.

    Fields are attributes, as in a `ConfigDict` (`config.optimizer.momentum`); a field that is unset is None.
    """

    def __init__(self, config: ConfigDict):
        """Imports the config's extensions, and checks the config.

        Args:
          config: from a recipe.

        Raises:
          ConfigError: as `check`.
          UserError: an extension cannot be imported.
        """
        extension_files.load(_extension_names(config))
        check(config)
        reads: set[str] = set()
        if config.checkpoint.best_metric is None:  # config.json names it; the caller's config stays as it is
            config = config.copy_and_resolve_references()
            config.checkpoint.best_metric = DEFAULT_METRIC[config.data.labels]
            reads.add("checkpoint.best_metric")  # what is set here needs no reader
        self._enter(config, "", reads)

    def _enter(self, config: ConfigDict, prefix: str, reads: set[str]) -> Config:
        self._config, self._prefix, self._reads = config, prefix, reads
        return self

    def __getattr__(self, name: str) -> Any:
        """Reads a field, or returns a section."""
        if name.startswith("__"):
            raise AttributeError(name)
        path = self._prefix + name
        if name not in self._config:
            raise AttributeError(f"config.{path}: no such field{nearest(name, self._config)}")
        value = self._config[name]
        if isinstance(value, ConfigDict):
            return Config.__new__(Config)._enter(value, path + ".", self._reads)
        self._reads.add(path)
        return value

    def read(self, *names: str) -> dict[str, Any]:
        """Returns {name: value} of these fields, and marks them as read."""
        return {name: getattr(self, name) for name in names}

    def read_specified(self) -> dict[str, Any]:
        """Returns {name: value} of the fields of this section that are not None, and marks them as read."""
        return {name: getattr(self, name) for name in self._config if self._config[name] is not None}

    def refuse_unread(self) -> None:
        """Refuses fields without effect, after everything has been built from the config.

        Raises:
          ConfigError: fields differ from their default, but were not read.
        """
        defaults = dict(leaves(default()))
        values = {self._prefix + path: value for path, value in leaves(self._config)}
        unread = [path for path, value in values.items() if path not in self._reads and value != defaults[path]]
        if unread:
            named = ", ".join(f"config.{path} = {shorten(repr(values[path]))}" for path in unread)
            unset = ", ".join(f"config.{path} = {shorten(repr(defaults[path]))}" for path in unread)
            doc = dict(schema.fields()).get(unread[0], schema.Field(None, "an option of another model")).doc
            raise ConfigError(
                f"{named}: nothing reads {'it' if len(unread) == 1 else 'them'} with these settings; leave the "
                f"default, {unset}; meaning: {doc}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The whole config as plain JSON values, as in `config.json`."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """The whole config as JSON, sorted and indented."""
        return json.dumps(json.loads(self._config.to_json_best_effort()), indent=2, sort_keys=True) + "\n"


def from_dict(
    values: Mapping[str, Any], *, copies: Path | None = None, load: bool = True, as_earlier: bool = True
) -> ConfigDict:
    """Makes a config from the content of `config.json`: lists become the tuples of the schema.

    Args:
      values: the content.
      copies: the run's directory `extensions`, whose copies of the extensions are imported.
      load: whether the extensions are imported.
      as_earlier: whether a field that is missing, because an earlier version did not have it, gets the value that this
        version worked with (`Field.earlier`); otherwise it gets its default.

    Raises:
      ConfigError: a field is unknown in this version.
      UserError: an extension cannot be imported.
    """
    damaged = ": the config of the run is damaged; restore a copy of its config.json"
    names = values.get("extensions") or ()
    if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"config.extensions = {str(names)[:40]!r}: not a list of names{damaged}")
    if load:
        extension_files.load(names, copies)
    config = default()
    known = dict(leaves(config))
    fields = dict(schema.fields())
    try:
        given = list(leaves(ConfigDict(values)))
    except ValueError as error:  # a key with a dot
        raise ConfigError(f"{error}{damaged}") from None
    earlier = [(path, field.earlier) for path, field in fields.items() if as_earlier and field.earlier is not None]
    for path, value in [*earlier, *given]:
        if path not in known:
            raise ConfigError(f"config.{path}: no such field in this version{nearest(path, known)}")
        kind = fields[path].default if path in fields else None
        is_tuple = kind is tuple or isinstance(kind, tuple)
        parent, _, name = path.rpartition(".")
        section = config
        for part in filter(None, parent.split(".")):
            section = section[part]
        if kind is object:
            value = to_tuples(value)
        try:
            section[name] = tuple(value) if is_tuple and value is not None else value
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"config.{path} = {str(value)[:40]!r}: this field has another type{damaged}") from None
    return config


def _extension_names(config: ConfigDict) -> tuple[str, ...]:
    """The names in `config.extensions`; () where the field is missing or wrong, which `check` reports."""
    names = config.get("extensions")
    return tuple(names) if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names) else ()


def to_tuples(value: Any) -> Any:
    """The value with tuples in place of lists, at any depth."""
    return tuple(map(to_tuples, value)) if isinstance(value, list | tuple) else value
