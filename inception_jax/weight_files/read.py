"""Reads a weight file of any supported format: `read_weights`."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from inception_jax.errors import UserError, shorten
from inception_jax.weight_files import (
    caffe_files,
    keras_files,
    npz_files,
    onnx_files,
    safetensors_files,
    tensorflow_checkpoints,
    tensorflow_graph,
    torch_files,
)
from inception_jax.weight_files.archives import Archive, TarArchive, ZipArchive
from inception_jax.weight_files.detect import READABLE_FORMATS, archive_type, detect_format
from inception_jax.weight_files.types import DEFAULT_LIMIT, InputFile, ParsedFile, ReadBudget, ReadError, Weights

_READERS: dict[str, Callable[[InputFile, ReadBudget], ParsedFile]] = {
    "torch_legacy": torch_files.read_legacy,
    "safetensors": safetensors_files.read,
    "keras_h5": keras_files.read_h5,
    "tensorflow_v1": tensorflow_checkpoints.read_v1,
    "tensorflow_graph": tensorflow_graph.read,
    "caffe": caffe_files.read,
    "onnx": onnx_files.read,
}
# Suffixes of weight files in publishers' archives. A frozen graph counts only where there is nothing else: facenet's
# archives hold one beside the checkpoint from which it was made.
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".h5", ".keras", ".ckpt", ".index", ".caffemodel", ".onnx", ".npz")
_GRAPH = ".pb"
_MAX_MESSAGE = 1000  # characters
_SHARD = re.compile(r"\.data-\d{5}-of-\d{5}$")


def read_weights(path: str | os.PathLike[str], *, limit: int = DEFAULT_LIMIT) -> Weights:
    """Reads a publisher's weight file of any format, and executes nothing that is in it.

    The content decides the format. Nothing is written, and no other file is opened, except the data files of a
    TensorFlow checkpoint and the external data of an ONNX model in the model's own folder. The publishers' frameworks
    are not needed; Keras files need h5py (the extra `convert`).

    Args:
      path: the file; for a TensorFlow V2 checkpoint also its prefix, or the folder with its `checkpoint` file.
      limit: the most bytes that the files may have, and the arrays together.

    Returns:
      The arrays under the publisher's own names, and the file's metadata. A Caffe file or a frozen graph that was
      truncated exactly between two layers has fewer arrays: nothing in these formats shows that.

    Raises:
      UserError: the file does not exist, is not a weight file, is damaged, needs something that is never done (such
        as running a program), or is above the limit.
    """
    path = Path(path)
    try:
        prefix = _checkpoint_prefix(path)
        if prefix is not None:
            return _read_checkpoint(prefix, limit)
        data = _read_file(path, limit)
        kind, content = _read_input(
            InputFile(path.name, data, path.parent), ReadBudget(limit, len(data)), limit, nested=False
        )
    except ReadError as error:
        raise UserError(f"{path}: {_single_line(str(error))}") from None
    except MemoryError:
        raise UserError(f"{path}: this process has not enough memory to read it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return Weights(content.arrays, kind, hashlib.sha256(data).hexdigest(), content.metadata)


def _single_line(text: str) -> str:
    """Makes a message one printable line: text quoted from the file may hold line ends, escape codes or megabytes."""
    text = shorten(text, _MAX_MESSAGE)
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _read_file(path: Path, limit: int) -> memoryview:
    """Reads a file at once, so that the bytes that are hashed are those that are parsed."""
    if path.is_dir():
        raise ReadError(f"this is a folder; give the weight file in it ({READABLE_FORMATS})")
    if not path.exists():
        raise ReadError("there is no such file")
    if not path.is_file():
        raise ReadError("this is a device or a pipe, not a file")
    size = path.stat().st_size
    if size > limit:
        raise ReadError(f"the file has {size:,} bytes, above the limit of {limit:,}")
    with path.open("rb") as file:
        return memoryview(file.read(size))


def _read_input(source: InputFile, budget: ReadBudget, limit: int, nested: bool) -> tuple[str, ParsedFile]:
    """Returns (format, content) of one file, or of the one weight file in an archive."""
    kind = archive_type(source.data)
    if kind is None:
        kind = detect_format(source.name, source.data, budget)
        return kind, _READERS[kind](source, budget)
    # Archive members have a budget of their own, because the arrays made of their bytes are charged again.
    inflation = ReadBudget(limit, len(source.data))
    members: Archive = (ZipArchive if kind == "zip" else TarArchive)(source.data, inflation)
    names = members.names()
    if isinstance(members, ZipArchive):
        if _is_torch(names):
            return "torch", torch_files.read_zip(members, budget)
        if "config.json" in members and "model.weights.h5" in members:
            return "keras", keras_files.read_archive(members, budget)
        if names and all(name.endswith(".npy") for name in names):
            return "npz", npz_files.read(members, budget)
    elif {"storages", "tensors", "pickle"} <= {PurePosixPath(name).name for name in names}:
        raise ReadError("a file of PyTorch before 0.1.10, a tar archive, is not read: save it again with a newer torch")
    if nested:
        raise ReadError("an archive in an archive: unpack the outer one")
    return _read_member(source, members, budget, limit)


def _is_torch(names: list[str]) -> bool:
    """Returns whether torch.save wrote a zip with these members; ReadError for PyTorch's other zip files."""
    last = [name.rpartition("/")[2] for name in names]
    if "constants.pkl" in last or any("/code/" in f"/{name}" for name in names):
        raise ReadError(
            "a TorchScript archive, which holds a program beside its weights and is not read: "
            "save `torch.jit.load(file).state_dict()` with torch.save instead"
        )
    if last.count("data.pkl") > 1:
        raise ReadError("an archive with several data.pkl, which torch.save does not make")
    return "data.pkl" in last


def _read_member(source: InputFile, members: Archive, budget: ReadBudget, limit: int) -> tuple[str, ParsedFile]:
    """Returns (format, content) of the one weight file in an archive."""
    names = [
        name
        for name in members.names()
        if not any(part.startswith((".", "__MACOSX", "test_data_set")) for part in name.split("/"))
    ]
    found = [name for name in names if PurePosixPath(name).suffix.lower() in _SUFFIXES or _is_v1_name(name)]
    found = found or [name for name in names if PurePosixPath(name).suffix.lower() == _GRAPH]
    if len(found) != 1:
        what = f"{len(found)} weight files ({', '.join(found[:5])})" if found else "no weight file"
        raise ReadError(f"an archive that holds {what}, not one; it holds {', '.join(names[:8]) or 'nothing'}")
    (name,) = found
    if name.endswith(".index"):
        prefix = name.removesuffix(".index")
        index = InputFile(name, members.read(name))

        def shard(number: int, count: int) -> memoryview:
            data_name = _shard_name(prefix, number, count)
            if data_name not in members:
                raise ReadError(f"the archive has no {data_name!r}, which its index {name!r} needs")
            return members.read(data_name)

        kind, content = "tensorflow_v2", tensorflow_checkpoints.read_v2(index, shard, budget)
    else:
        kind, content = _read_input(InputFile(name, members.read(name)), budget, limit, nested=True)
    return kind, ParsedFile(content.arrays, {**content.metadata, "member": name})


def _is_v1_name(name: str) -> bool:
    """Returns whether a name is that of a V1 checkpoint with a step, such as model.ckpt-157585."""
    return re.search(r"\.ckpt-\d+$", name) is not None


def _shard_name(prefix: str, number: int, count: int) -> str:
    return f"{prefix}.data-{number:05d}-of-{count:05d}"


def _checkpoint_prefix(path: Path) -> Path | None:
    """Returns the prefix of the V2 checkpoint at a path (the prefix, one of its files, or the folder), or None."""
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        raise ReadError("this is the workdir of a run; load it with inception_jax.load_run(path)")
    if path.is_dir():
        state = path / "checkpoint"
        if not state.is_file():
            return None
        text = _read_file(state, 1 << 20).tobytes().decode("utf-8", "replace")
        match = re.search(r'^model_checkpoint_path:\s*"([^"\n]+)"', text, re.MULTILINE)
        if match is None:
            raise ReadError("the folder's file `checkpoint` names no checkpoint")
        # TensorFlow may have written the path of another machine; the files lie beside this one.
        path = path / PurePosixPath(match[1]).name
    name = _SHARD.sub("", path.name)
    for suffix in (".index", ".meta"):
        name = name.removesuffix(suffix)
    prefix = path.with_name(name) if name else path
    return prefix if prefix.with_name(f"{prefix.name}.index").is_file() else None


def _read_checkpoint(prefix: Path, limit: int) -> Weights:
    """Reads a V2 checkpoint from disk."""
    index_path = prefix.with_name(f"{prefix.name}.index")
    index = _read_file(index_path, limit)
    if not index:
        raise ReadError(f"{index_path.name} is empty")
    shards: dict[str, memoryview] = {}

    def shard(number: int, count: int) -> memoryview:
        name = _shard_name(prefix.name, number, count)
        path = prefix.with_name(name)
        if not path.is_file():
            raise ReadError(f"{name} is not beside {index_path.name}, which needs it")
        shards[name] = _read_file(path, limit)
        return shards[name]

    # The index is small: the budget is measured by its data files, too.
    beside = sum(entry.stat().st_size for entry in prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*"))
    content = tensorflow_checkpoints.read_v2(
        InputFile(index_path.name, index), shard, ReadBudget(limit, len(index) + beside)
    )
    digest = hashlib.sha256(index)
    for name in sorted(shards):
        digest.update(shards[name])
    return Weights(content.arrays, "tensorflow_v2", digest.hexdigest(), content.metadata)
