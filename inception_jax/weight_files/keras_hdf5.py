"""Reads the weights in an HDF5 file of Keras with h5py. Only `keras_process` runs this: damaged files can crash HDF5.

HDF5 files may refer to other files, and may name filters that HDF5 would load as plug-ins: both are refused before
anything is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from inception_jax.weight_files import keras_names
from inception_jax.weight_files.types import Cost, ParsedFile, ReadBudget, ReadError, add_array, decode_utf8

_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}  # those that are part of HDF5 and that Keras may use
_KINDS = "biuf"
_NOT_WEIGHTS = ("optimizer", "seed_generator", "_layer_checkpoint_dependencies")
# Exceptions of h5py and HDF5 for a damaged file.
_HDF5_ERRORS = (
    OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError, MemoryError, SystemError,
)  # fmt: skip


def read(data: memoryview, budget: ReadBudget, config: Any) -> ParsedFile:
    """Reads the weights and metadata of a file, as `keras_files.read_h5` describes them.

    Args:
      data: the whole file.
      budget: to which the arrays are charged.
      config: a model's configuration, or an empty one.

    Raises:
      ReadError: the file is damaged, refers to other files, or is not a Keras file.
    """
    try:
        with h5py.File(_opened(data)) as file:
            return _File(file, budget).content(config)
    except _HDF5_ERRORS as error:
        raise ReadError(f"an HDF5 file that cannot be read ({error!s:.120}): it is truncated or damaged") from None


def _opened(data: memoryview) -> Any:
    """Opens a file from memory, so that the library has no file to write to, whatever the file says."""
    access = h5py.h5p.create(
        h5py.h5p.FILE_ACCESS
    )  # holds a copy, and the open file another: this one is freed on return
    access.set_fapl_core(backing_store=False)
    access.set_file_image(data)
    return h5py.h5f.open(b"weights.h5", h5py.h5f.ACC_RDONLY, fapl=access)


class _File:
    """An open HDF5 file of Keras.

    Attributes:
      file: the file.
      budget: to which groups, names and arrays are charged.
    """

    def __init__(self, file: h5py.File, budget: ReadBudget) -> None:
        """Starts at the top of the file; arguments as the attributes."""
        self.file, self.budget = file, budget

    def content(self, config: Any) -> ParsedFile:
        """Reads the weights, by the layout of the file."""
        root = self.file
        if "model_weights" in root:
            root = self.child(root, "model_weights")
        layers = self.strings(root, "layer_names")
        if layers is not None:
            return self.old_layout(root, layers)
        if "layers" in root:
            return self.new_layout(config)
        top = ", ".join(map(repr, list(root)[:6])) or "nothing"
        raise ReadError(f"an HDF5 file, but not of Keras: its top level holds {top}")

    def child(self, group: Any, name: str) -> Any:
        """Returns a member of a group; ReadError where it is a link."""
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ReadError(
                f"{name!r} is a link ({type(link).__name__}), not an object in the file: it is not followed"
            )
        self.budget.charge_objects(Cost.GROUP, "a file of many groups")
        return group[name]

    def strings(self, group: Any, name: str) -> list[str] | None:
        """Returns an attribute that is a list of strings, or None. Keras splits a long one into name0, name1 …"""
        names = [name] if name in group.attrs else []
        while not names[:1] == [name] and f"{name}{len(names)}" in group.attrs:
            names.append(f"{name}{len(names)}")
        found = []
        for piece in names:
            about = group.attrs.get_id(piece)
            # Strings of variable length say only how many they are: `keras_process` limits the memory that they take.
            self.budget.charge_objects(1 + Cost.ENTRY * math.prod(about.shape or ()), f"the attribute {name!r}")
            self.budget.charge_array(about.shape or (), about.dtype, f"the attribute {name!r}")
            for value in np.atleast_1d(group.attrs[piece]):
                if not isinstance(value, bytes | str):
                    raise ReadError(f"the attribute {name!r} of {group.name!r} does not hold strings")
                self.budget.charge(len(value), f"the attribute {name!r}")
                found.append(decode_utf8(value, name) if isinstance(value, bytes) else str(value))
        return found if names else None

    def array(self, dataset: Any, what: str) -> np.ndarray:
        """Reads the numbers of a dataset, which must lie in this file as a whole."""
        if not isinstance(dataset, h5py.Dataset):
            raise ReadError(f"{what} is not a dataset")
        plan = dataset.id.get_create_plist()
        if dataset.is_virtual or plan.get_external_count():
            raise ReadError(f"{what} lies in other files: it is not read")
        for place in range(plan.get_nfilters()):
            if (number := plan.get_filter(place)[0]) not in _FILTERS:
                known = ", ".join(_FILTERS.values())
                raise ReadError(f"{what} is stored through the HDF5 filter {number}, not {known}")
        if dataset.dtype.kind not in _KINDS or dataset.shape is None:
            raise ReadError(f"{what} holds {dataset.dtype}, not numbers")
        self.budget.charge_array(dataset.shape, dataset.dtype, what)
        # HDF5 decompresses a whole chunk, however little of it the dataset uses.
        if dataset.chunks:
            self.budget.charge_array(dataset.chunks, dataset.dtype, f"a chunk of {what}")
        array = dataset[()]
        return np.asarray(array, array.dtype.newbyteorder("="))

    def old_layout(self, root: Any, layers: list[str]) -> ParsedFile:
        """Reads files of Keras 1 and 2, and Keras 3's `model.save("….h5")`: `layers` and other names are attributes."""
        arrays: dict[str, np.ndarray] = {}
        for layer in layers:
            group = self.child(root, layer)
            weights = self.strings(group, "weight_names") or []
            for name, weight in zip(keras_names.from_weight_names(layer, weights), weights, strict=True):
                node = group
                for part in weight.split("/"):
                    node = self.child(node, part)
                add_array(arrays, name, self.array(node, f"weight {weight!r}"))
        about = {key: _text(root.attrs[key]) for key in ("keras_version", "backend") if key in root.attrs}
        return ParsedFile(arrays, {"layers": layers, "left_out": [], **about})

    def new_layout(self, config: Any) -> ParsedFile:
        """Reads Keras 3's own layout: groups by class and number, variables by number; newer files have layer names."""
        found = {path: group for path, group in self.groups(self.file, "", 0)}
        configured = {path: (name, about) for path, name, about in keras_names.configured_layers(config)}
        used = [path for path in found if not any(part in _NOT_WEIGHTS for part in path.split("/"))]
        if configured:
            place = {path: number for number, path in enumerate(configured)}
            used.sort(key=lambda path: place.get(path, len(place)))
            named = {path: name for path, (name, _) in configured.items()}
        else:
            used.sort(key=_natural)
            named = self.stored_names(used, found)
        arrays: dict[str, np.ndarray] = {}
        layers = []
        for path in used:
            self.budget.charge_objects(Cost.ENTRY * len(found[path]), "a file of many variables")
            numbers = sorted(found[path], key=_natural)
            if numbers != [str(number) for number in range(len(numbers))]:
                raise ReadError(f"the variables of {path!r} are {', '.join(map(repr, numbers[:6]))}, not 0, 1, ...")
            layer = named.get(path) or _plain(path)
            about = configured.get(path, ("", {}))[1]
            if numbers:
                layers.append(layer)
            variables = keras_names.variable_names(path.rpartition("/")[2], len(numbers), about)
            for number, variable in zip(numbers, variables, strict=True):
                what = f"variable {number} of {path!r}"
                add_array(arrays, f"{layer}/{variable}", self.array(self.child(found[path], number), what))
        left_out = [path for path in found if path not in used and len(found[path])]
        return ParsedFile(arrays, {"layers": layers, "left_out": left_out})

    def groups(self, group: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
        """Yields the groups of variables, each with the path of its layer."""
        if depth > 20:
            raise ReadError(f"the groups at {path!r} lie more than 20 deep: not a weight file")
        self.budget.charge_objects(len(group), "a file of many groups")
        for name in group:
            child = self.child(group, name)
            if not isinstance(child, h5py.Group):
                continue
            if name == "vars":
                yield path, child
            else:
                yield from self.groups(child, f"{path}/{name}" if path else name, depth + 1)

    def stored_names(self, paths: list[str], found: dict[str, Any]) -> dict[str, str]:
        """Returns the layers' names by path, with the names of nested models in front; {} where the file lacks one."""
        own = {path: _text(found[path].attrs["name"]) for path in paths if "name" in found[path].attrs}
        if len(own) < len(paths):
            return {}
        named = {}
        for path in paths:
            outer = [own[above] for above in _above(path) if above in own]
            named[path] = "/".join([*outer, own[path]])
        return named if len(set(named.values())) == len(named) else {}


def _above(path: str) -> Iterator[str]:
    """Yields the paths of the nested models around a layer, outermost first, without the file's own model."""
    parts = path.split("/")
    for length in range(2, len(parts) - 1):
        yield "/".join(parts[:length])


def _plain(path: str) -> str:
    """Returns a name for a layer of which only the path is known."""
    return "/".join(part for part in path.split("/") if part != "layers") or "model"


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Returns a sort key by which conv2d comes before conv2d_2, and conv2d_2 before conv2d_10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]


def _text(value: Any) -> str:
    """Returns an attribute as a string."""
    return bytes(value).decode("utf-8", "replace") if isinstance(value, bytes | np.bytes_) else str(value)
