"""Detects the format of a weight file by its content; the file's name is only used in error messages."""

from __future__ import annotations

from pathlib import PurePath

from inception_jax.weight_files import caffe_files, leveldb_table, tensorflow_graph
from inception_jax.weight_files.keras_files import MAGIC as HDF5_MAGIC
from inception_jax.weight_files.protobuf_wire import LENGTH, VARINT, Message, fields
from inception_jax.weight_files.safetensors_files import is_safetensors
from inception_jax.weight_files.torch_files import LEGACY_START
from inception_jax.weight_files.types import BudgetError, ReadBudget, ReadError

FORMATS = (
    "torch", "torch_legacy", "safetensors", "keras_h5", "keras", "tensorflow_v1", "tensorflow_v2", "tensorflow_graph",
    "caffe", "onnx", "npz",
)  # fmt: skip
READABLE_FORMATS = (
    "PyTorch (.pth, .pt, .bin), safetensors, Keras (.h5, .weights.h5, .keras), TensorFlow checkpoints and frozen "
    "graphs (.ckpt, .index, .pb), Caffe (.caffemodel), ONNX and NumPy (.npz), also in a .zip or .tar.gz"
)
_PROTOBUF_NAMES = {".onnx": "an ONNX model", ".pb": "a TensorFlow graph", ".caffemodel": "a Caffe network"}

# Other files that users pass by mistake: their first bytes, and what they are.
_OTHER_FORMATS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: `git lfs pull` brings that"),
    (b"\x89PNG", "a PNG image"), (b"\xff\xd8\xff", "a JPEG image"), (b"GIF8", "a GIF image"),
    (b"RIFF", "a WebP image or a sound file"), (b"%PDF", "a PDF document"), (b"\x7fELF", "a program"),
    (b"\x93NUMPY", "a single NumPy array without a name: save it with np.savez"), (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"), (b"7z\xbc\xaf", "a 7-Zip archive"), (b"Rar!", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
)  # fmt: skip
_MARKUP = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body", b"<!--", b"<error")


def archive_type(data: memoryview) -> str | None:
    """Returns "zip" or "tar" for an archive (a gzip file counts as tar), None for anything else."""
    head = bytes(data[:4])
    if head in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"):
        return "zip"
    if head[:2] == b"\x1f\x8b" or bytes(data[257:262]) == b"ustar":
        return "tar"
    return None


def detect_format(name: str, data: memoryview, budget: ReadBudget) -> str:
    """Detects the format of a file that is not an archive.

    Args:
      name: the file's name, used only in error messages.
      data: the whole file.
      budget: to which the fields of a protobuf message are charged.

    Returns:
      One of `FORMATS`.

    Raises:
      ReadError: the format is not supported; the message says what the file looks like.
    """
    if name.lower().endswith(".msgpack"):
        raise ReadError("this is a file of Flax; read it with flax.serialization.msgpack_restore(path.read_bytes())")
    head = bytes(data[:64])
    if head.startswith(HDF5_MAGIC):
        return "keras_h5"
    if leveldb_table.is_table(data):
        return "tensorflow_v1"
    if is_safetensors(data):
        return "safetensors"
    if LEGACY_START in head[:32]:
        return "torch_legacy"
    other = _other_format(data)
    if other is not None:
        raise ReadError(f"this is {other}; readable formats: {READABLE_FORMATS}")
    return _protobuf(name, data, budget)


def _other_format(data: memoryview) -> str | None:
    """Describes a file of another known kind; None for an unknown one."""
    head = bytes(data[:512])
    if not head.strip(b"\0"):
        return "a file of zeros" if head else "an empty file"
    for start, what in _OTHER_FORMATS:
        if head.startswith(start):
            return what
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_MARKUP):
        return "a web page, perhaps the error message of a download"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if head[:1] == b"\x80" and head[1:2] in b"\x00\x01\x02\x03\x04\x05":
        return "a plain pickle, not a file of torch.save"
    if all(byte in b"\t\n\r" or 0x20 <= byte < 0x7F for byte in head):
        return f"text that begins {head[:40].decode('ascii')!r}"
    return None


def _protobuf(name: str, data: memoryview, budget: ReadBudget) -> str:
    """Detects which protobuf message the bytes are by their fields: protobuf has no magic number."""
    seen: dict[tuple[int, int], int | memoryview] = {}
    damage: ReadError | None = None
    try:
        for number, wire, value in fields(data, budget):
            seen.setdefault((number, wire), value)
    except BudgetError:
        raise
    except ReadError as error:
        damage = error
    if damage is None and (1, VARINT) in seen and (7, LENGTH) in seen:
        return "onnx"
    node = seen.get((1, LENGTH))
    if isinstance(node, memoryview) and tensorflow_graph.is_node(node, budget):
        return "tensorflow_graph"
    if (caffe_files.LAYER, LENGTH) in seen or _is_caffe_v1(seen.get((caffe_files.LAYERS_V1, LENGTH)), budget):
        return "caffe"
    suffix = PurePath(name).suffix.lower()
    if suffix in _PROTOBUF_NAMES:
        raise ReadError(f"named like {_PROTOBUF_NAMES[suffix]}, but {damage or 'it holds something else'}")
    if ".ckpt" in name or suffix == ".index":
        raise ReadError("named like a TensorFlow checkpoint, but its end is missing: the file is truncated")
    start = bytes(data[:8]).hex(" ")
    raise ReadError(f"unknown format, with the first bytes {start}; readable formats: {READABLE_FORMATS}")


def _is_caffe_v1(value: int | memoryview | None, budget: ReadBudget) -> bool:
    """Returns whether bytes look like a layer of Caffe 2014 (field 4, a name) or 2013 (field 1, the layer inside)."""
    try:
        return isinstance(value, memoryview) and any(number in Message(value, "a layer", budget) for number in (4, 1))
    except BudgetError:
        raise
    except ReadError:
        return False
