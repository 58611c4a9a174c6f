"""Tiny writers of the publishers' formats, from NumPy alone: what the readers must read, written another way round."""

import io
import json
import struct
import tarfile
import zipfile

import numpy as np

CRC_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = (_byte >> 1) ^ (0x82F63B78 if _byte & 1 else 0)
    CRC_TABLE.append(_byte)


def slow_crc32c(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state = CRC_TABLE[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    crc = slow_crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# Protocol buffers.


def varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One field: a varint for an int, a float for a float, otherwise the bytes of text, numbers or a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def packed(number: int, values) -> bytes:
    return field(number, b"".join(map(varint, values)))


# Caffe.


def caffe_blob(array: np.ndarray, legacy=False, is_packed=True) -> bytes:
    if legacy:
        shape = b"".join(field(i + 1, n) for i, n in enumerate((1,) * (4 - array.ndim) + array.shape))
    else:
        shape = field(7, packed(1, array.shape))
    if array.dtype == np.float64:
        return shape + field(8, array.tobytes())
    if is_packed:
        return shape + field(5, array.tobytes())
    return shape + b"".join(field(5, float(value)) for value in array.flat)


def caffe_layer(name: str, kind: str, *blobs: bytes, bottom="data", top="out") -> bytes:
    layer = field(1, name) + field(2, kind) + field(3, bottom) + field(4, top)
    return field(100, layer + b"".join(field(7, blob) for blob in blobs))


def caffe_layer_v1(name: str, kind: int, *blobs: bytes) -> bytes:
    layer = field(2, "data") + field(3, "out") + field(4, name) + field(5, kind)
    return field(2, layer + b"".join(field(6, blob) for blob in blobs))


# TensorFlow.


def tensor_shape(shape) -> bytes:
    return b"".join(field(2, field(1, size)) for size in shape)


def tensor_slice(extents) -> bytes:
    return b"".join(
        field(1, b"" if length < 0 else (field(1, start) if start else b"") + field(2, length))
        for start, length in extents
    )


def block(entries: list[tuple[bytes, bytes]], kind=0) -> bytes:
    """A block of a sorted table with its trailer; keys share what they have in common, every third one is complete."""
    body, restarts, previous = bytearray(), [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % 3 == 0:
            restarts.append(len(body))
        else:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    data = bytes(body) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
    data += bytes([kind])
    return data + struct.pack("<I", masked_crc32c(data))


def table(entries: list[tuple[bytes, bytes]], per_block=4, kind=0) -> bytes:
    """A sorted table of several blocks."""
    entries = sorted(entries)
    data, index = bytearray(), []
    for start in range(0, len(entries), per_block):
        piece = block(entries[start : start + per_block], kind)
        index.append((entries[min(start + per_block, len(entries)) - 1][0], varint(len(data)) + varint(len(piece) - 5)))
        data += piece
    meta = varint(len(data))
    piece = block([])
    data += piece
    meta += varint(len(piece) - 5)
    piece = block(index)
    handles = meta + varint(len(data)) + varint(len(piece) - 5)
    return bytes(data) + piece + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def checkpoint_v2(arrays: dict[str, np.ndarray], shards=1, kind=0) -> tuple[bytes, list[bytes]]:
    """The index and the data files of a V2 checkpoint of float32 arrays."""
    data = [bytearray() for _ in range(shards)]
    entries = [(b"", field(1, shards))]
    for number, (name, array) in enumerate(arrays.items()):
        shard = number % shards
        place, raw = len(data[shard]), array.tobytes()
        entry = field(1, 1) + field(2, tensor_shape(array.shape)) + field(3, shard) + field(4, place)
        entry += field(5, len(raw)) + varint(6 << 3 | 5) + struct.pack("<I", masked_crc32c(raw))
        entries.append((name.encode(), entry))
        data[shard] += raw
    return table(entries, kind=kind), [bytes(shard) for shard in data]


def checkpoint_v1(arrays: dict[str, np.ndarray], kind=0) -> bytes:
    """A V1 checkpoint of float32 arrays, each in one slice."""
    listed, entries = b"", []
    for name, array in arrays.items():
        extents = tensor_slice([(0, -1)] * array.ndim)
        shape = field(2, tensor_shape(array.shape))
        listed += field(1, field(1, name) + shape + field(3, 1) + field(4, extents))
        tensor = field(1, 1) + shape + field(5, array.tobytes())
        value = field(2, field(1, name) + field(2, extents) + field(3, tensor))
        entries.append((b"\0" + name.encode() + b"\0\1", value))
    return table([(b"", field(1, listed)), *entries], kind=kind)


def graph_node(name: str, op: str, inputs=(), **attributes: bytes) -> bytes:
    node = field(1, name) + field(2, op) + b"".join(field(3, name) for name in inputs)
    return field(1, node + b"".join(field(5, field(1, key) + field(2, value)) for key, value in attributes.items()))


def graph_constant(name: str, array: np.ndarray) -> bytes:
    tensor = field(1, 1) + field(2, tensor_shape(array.shape)) + field(4, array.tobytes())
    return graph_node(name, "Const", value=field(8, tensor))


# ONNX.


def onnx_model(arrays: dict[str, np.ndarray], external: dict[str, dict[str, str]] | None = None) -> bytes:
    graph = field(1, field(1, "x") + field(2, "y") + field(3, "relu") + field(4, "Relu")) + field(2, "graph")
    for name, array in arrays.items():
        tensor = packed(1, array.shape) + field(2, 1) + field(8, name)
        if external and name in external:
            about = (field(13, field(1, key) + field(2, value)) for key, value in external[name].items())
            tensor += b"".join(about) + field(14, 1)
        else:
            tensor += field(9, array.tobytes())
        graph += field(5, tensor)
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))


# safetensors, archives, PyTorch.

NAMES = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}


def safetensors(arrays: dict[str, np.ndarray], **changes) -> bytes:
    header, start = {}, 0
    for name, array in arrays.items():
        end = start + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
        header[name] |= changes.get(name, {})
        start = end
    text = json.dumps(header).encode()
    return b"".join([struct.pack("<Q", len(text)), text, *(array.tobytes() for array in arrays.values())])


def zipped(members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return stream.getvalue()


def npz(arrays: dict[str, np.ndarray], save=np.savez) -> bytes:
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def tarred(members: dict[str, bytes | tarfile.TarInfo], mode="w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def pickled_name(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def pickled(value) -> bytes:
    """The instructions for numbers, text, tuples, dictionaries and `bytes` of ready instructions."""
    if isinstance(value, bytes):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"\x8a" + bytes([size := value.bit_length() // 8 + 1]) + value.to_bytes(size, "little", signed=True)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(pickled, value)) + b"t"
    return b"}(" + b"".join(pickled(key) + pickled(item) for key, item in value.items()) + b"u"


def pickled_tensor(key, shape, strides, count, offset=0, storage="FloatStorage", location="cpu", tail=()) -> bytes:
    """The instructions for a tensor over a storage of `count` numbers; `tail` is what old files have behind."""
    identity = pickled(("storage", pickled_name("torch", storage), key, location, count, *tail)) + b"Q"
    arguments = (identity, offset, shape, strides, False, pickled_name("collections", "OrderedDict") + b")R")
    return pickled_name("torch._utils", "_rebuild_tensor_v2") + pickled(arguments) + b"R"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def torch_zip(state: bytes, storages: dict[str, bytes], **more: bytes) -> bytes:
    """A zip of torch.save's, from the instructions for its object and the bytes of its storages."""
    members = {"archive/data.pkl": program(state), "archive/version": b"3\n"}
    members |= {f"archive/{name}": data for name, data in more.items()}
    return zipped(members | {f"archive/data/{key}": data for key, data in storages.items()})


def torch_state(arrays: dict[str, np.ndarray]) -> bytes:
    """A zip of a state dict of float32 arrays."""
    state = {}
    for number, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // 4 for stride in array.strides)
        state[name] = pickled_tensor(str(number), array.shape, strides, array.size)
    return torch_zip(pickled(state), {str(number): array.tobytes() for number, array in enumerate(arrays.values())})


def torch_legacy(state: bytes, storages: dict[str, np.ndarray], little_endian=True) -> bytes:
    """A file of torch before 1.6, from the instructions for its object and its storages."""
    system = {"protocol_version": 1001, "little_endian": little_endian}
    keys = b"](" + b"".join(map(pickled, storages)) + b"e"
    head = [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled(system), state, keys]
    data = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())
    return b"".join(map(program, head)) + data
