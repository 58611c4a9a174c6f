"""TensorFlow's files without TensorFlow: tables, checksums, slices, tensors, graphs."""

import struct
import zipfile

import numpy as np
import pytest

from inception_jax import crc32c as crc32c_module
from inception_jax.crc32c import crc32c, unmask
from inception_jax.errors import UserError
from inception_jax.weight_files import protobuf_wire, read_weights, tensorflow_checkpoints
from inception_jax.weight_files.protobuf_wire import read_varint
from inception_jax.weight_files.types import ReadBudget, ReadError

from . import writers
from .make_files import GOLDENS, numbers
from .test_reading import ARRAYS, same, written
from .writers import field, graph_node, packed, table, tensor_shape, tensor_slice, varint, zipped


def parsed(data: memoryview, what: str) -> protobuf_wire.Message:
    return protobuf_wire.Message(data, what, ReadBudget(1 << 30, len(data)))


def refused(tmp_path, data: bytes, expected: str, name="a.ckpt") -> None:
    with pytest.raises(UserError, match=expected):
        read_weights(written(tmp_path / name, data))


# RFC 3720, appendix B.4; the last is the usual check of a CRC.
KNOWN_SUMS = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(reversed(range(32))), 0x113FDB5C),
    (b"123456789", 0xE3069283),
    (b"", 0),
]


@pytest.mark.parametrize("data,expected", KNOWN_SUMS)
def test_known_checksums(data, expected):
    assert crc32c(data) == expected


@pytest.mark.parametrize("size", [4095, 4096, 4097, 8192, 12345])
def test_checksums_chunk_by_chunk(monkeypatch, size):
    monkeypatch.setattr(crc32c_module, "_CHUNK", 4096)
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == crc32c(memoryview(data)) == writers.slow_crc32c(data)
    assert crc32c(memoryview(data)[1:]) == writers.slow_crc32c(data[1:])
    assert unmask(writers.masked_crc32c(data)) == crc32c(data)


def test_varints():
    for value in (0, 1, 127, 128, 300, 2**32, 2**63, 2**64 - 1):
        assert read_varint(memoryview(varint(value)), 0) == (value, len(varint(value)))
    for data in (b"", b"\x80", b"\xff" * 9, b"\xff" * 10 + b"\x01"):
        with pytest.raises(ReadError):
            read_varint(memoryview(data), 0)


def test_repeated_numbers_packed_alone_and_mixed():
    values = [0, 1, 127, 128, 2**31, 2**62, -1, -(2**63)]
    alone = b"".join(field(3, value) for value in values)
    for data in (packed(3, values), alone):
        assert parsed(memoryview(data), "test").integers(3).tolist() == values
    mixed = field(3, 5) + packed(3, values) + field(3, 6)
    assert parsed(memoryview(mixed), "test").integers(3).tolist() == [5, *values, 6]
    floats = [1.5, -2.0, 0.25] * 50
    lone = b"".join(field(20, value) for value in floats) + field(4, 7)
    for data in (field(20, np.array(floats, "<f4").tobytes()), lone):
        assert parsed(memoryview(data), "test").fixed(20, "<f4").tolist() == floats
    assert parsed(memoryview(lone), "test").integer(4) == 7
    parts = parsed(memoryview(field(2, 1.5) + field(3, 1) + field(2, 2.5) + field(2, struct.pack("<f", 3.5))), "test")
    assert parts.fixed(2, "<f4").tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    "data,expected",
    [
        (b"\x0a\x05abc", "declares 5 bytes where 3 are left"),
        (b"\x0d\x00", "cut off"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x01", "number 0"),
        (b"\x0a", "cut off"),
        (b"\x08", "cut off"),
    ],
)
def test_damaged_messages(data, expected):
    with pytest.raises(ReadError, match=expected):
        parsed(memoryview(data), "test")


def test_packed_numbers_are_taken_apart_piece_by_piece(monkeypatch):
    """Whatever number a piece ends within; what is wrong is wrong in every place."""
    values = [0, 1, 127, 128, -1, 300, 2**62, -(2**63), 2**63 - 1, 5] * 7
    for size in range(1, 40):
        monkeypatch.setattr(protobuf_wire, "_PIECE", size)
        assert parsed(memoryview(packed(1, values)), "test").integers(1).tolist() == values
        for tail, expected in (
            (b"\x80", "cut off"),
            (b"\x80" * 11 + b"\0", "64 bits"),
            (b"\xff" * 99 + b"\0", "64 bits"),
        ):
            with pytest.raises(ReadError, match=expected):
                parsed(memoryview(field(1, b"".join(map(varint, values)) + tail)), "test").integers(1)


def test_messages_of_too_many_fields(tmp_path):
    """Two bytes of a file would become a hundred; zipped, 30 kB would become 1 GB."""
    data = writers.onnx_model({"a": np.ones(2, np.float32)})
    many = zipped({"a.onnx": field(1, 8) * 1_000_001 + data}, zipfile.ZIP_DEFLATED)
    refused(tmp_path, many, "a message of many fields: too many objects", "a.zip")


def test_fields_of_another_type():
    message = parsed(memoryview(field(1, 5) + field(2, b"\xff\xfe") + field(3, b"abc")), "the test")
    for call, expected in (
        (lambda: message.text(1), "the test: field 1 has an unexpected wire type"),
        (lambda: message.text(2), "field 2 is not text"),
        (lambda: message.integer(2), "unexpected wire type"),
        (lambda: message.fixed(3, "<f4"), "whole numbers"),
        (lambda: message.fixed(1, "<f4"), "whole numbers"),
        (lambda: parsed(memoryview(b"\x0d1234"), "x").integers(1), "unexpected wire type"),
    ):
        with pytest.raises(ReadError, match=expected):
            call()


def test_tables_of_several_blocks(tmp_path):
    """Many names, so that there are several blocks, and names that share their beginnings."""
    arrays = {f"InceptionV3/Mixed_{n:02d}/weights": numbers(str(n), (n, 3)) for n in range(30)}
    same(read_weights(written(tmp_path / "a.ckpt", writers.checkpoint_v1(arrays))).arrays, arrays)
    index, shards = writers.checkpoint_v2(arrays, shards=3)
    written(tmp_path / "b.index", index)
    for number, data in enumerate(shards):
        written(tmp_path / f"b.data-0000{number}-of-00003", data)
    weights = read_weights(tmp_path / "b")
    same(weights.arrays, arrays)
    # Blocks that look alike are one and the same to a checksum, so each shard is proven to be read as itself.
    (tmp_path / "b.data-00001-of-00003").write_bytes(shards[2])
    with pytest.raises(UserError, match=r"checksum of variable .* is wrong|truncated"):
        read_weights(tmp_path / "b")
    (tmp_path / "b.data-00001-of-00003").unlink()
    with pytest.raises(UserError, match=r"b.data-00001-of-00003 is not beside b.index"):
        read_weights(tmp_path / "b")


def test_compressed_tables_are_refused(tmp_path):
    """No writer of TensorFlow's compresses them (tensor_bundle.cc and tensor_slice_writer.cc: kNoCompression)."""
    expected = r"the block at byte 0 is compressed with Snappy, .*: it is not read; restore .* and save it again"
    refused(tmp_path, writers.checkpoint_v1(ARRAYS, kind=1), expected)
    index, (data,) = writers.checkpoint_v2(ARRAYS, kind=1)
    written(tmp_path / "b.data-00000-of-00001", data)
    refused(tmp_path, index, expected, "b.index")


def test_damaged_tables(tmp_path):
    good = [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    refused(tmp_path, table(good), "lists the variables")
    flipped = bytearray(table(good))
    flipped[3] ^= 1
    refused(tmp_path, bytes(flipped), "checksum of the block at byte 0 is wrong")
    twice = writers.block([(b"a", b"1"), (b"a", b"1")])
    for piece, expected in (
        (twice, "do not ascend"),
        (writers.block([(b"b", b"1"), (b"a", b"1")]), "do not ascend"),
        (_with_sum(b"\0\0\0\0\xff\xff\0\0" + b"\0"), "more restart points than bytes"),
        (_with_sum(b"\0\0\0"), "too short"),
        (_with_sum(b"\x05\x01\x01ab" + b"\0" * 4 + b"\1\0\0\0" + b"\0"), "reaches out of its block"),
        (_with_sum(b"\x00\x01\x09ab" + b"\0" * 4 + b"\1\0\0\0" + b"\0"), "reaches out of its block"),
        (_with_sum(b"\0\0\0\0\0\0\0\0" + b"\7"), "unknown compression type 7"),
    ):
        index = writers.block([(b"x", varint(0) + varint(len(piece) - 5))])
        handles = varint(0) + varint(0) + varint(len(piece)) + varint(len(index) - 5)
        footer = handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
        refused(tmp_path, piece + index + footer, expected)
    handles = varint(0) + varint(0) + varint(1 << 40) + varint(5)
    refused(tmp_path, handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57), "outside of the table")


def _with_sum(data: bytes) -> bytes:
    return data + struct.pack("<I", writers.masked_crc32c(data))


# What TensorFlow 2.21 itself wrote as keys of slices, for numbers of one to four bytes and a whole dimension.
SLICE_KEYS = {
    ("b/c", ((133334, 133333),)): b"\x00b/c\x00\x01\x01\x01\xe2\x08\xd6\xe2\x08\xd5",
    ("n", ((0, -1), (5, 60))): b"\x00n\x00\x01\x01\x02\x80\x7f\x85\xbc",
}


@pytest.mark.parametrize("name,extents", SLICE_KEYS)
def test_keys_of_slices(name, extents):
    assert tensorflow_checkpoints.slice_key(name, extents) == SLICE_KEYS[name, extents]


def partitioned(extents, slices=None) -> bytes:
    """A V1 checkpoint of one variable [4, 3] in slices."""
    whole = numbers("w", (4, 3))
    listed = field(1, "w") + field(2, tensor_shape((4, 3))) + field(3, 1)
    listed += b"".join(field(4, tensor_slice(extent)) for extent in slices or extents)
    entries = [(b"", field(1, field(1, listed)))]
    for number, extent in enumerate(extents):
        part = whole[tuple(slice(start, None if length < 0 else start + length) for start, length in extent)]
        tensor = field(1, 1) + field(2, tensor_shape(part.shape)) + field(5, part.tobytes())
        value = field(2, field(1, "w") + field(2, tensor_slice(extent)) + field(3, tensor))
        entries.append((b"\0w" + bytes([number]), value))
    return table(entries)


def test_slices(tmp_path):
    rows = [((0, 1), (0, -1)), ((1, 3), (0, -1))]
    quarters = [((0, 2), (0, 2)), ((0, 2), (2, 1)), ((2, 2), (2, 1)), ((2, 2), (0, 2))]
    for extents in (rows, rows[::-1], quarters):
        same(read_weights(written(tmp_path / "a.ckpt", partitioned(extents))).arrays, {"w": numbers("w", (4, 3))})
    refused(tmp_path, partitioned(rows[:1]), "9 of 12 values are missing from its slices")
    refused(tmp_path, partitioned([*rows, ((0, 2), (0, 1))]), "slices overlap")
    refused(tmp_path, partitioned(rows[:1], slices=rows), "some of its values are missing")
    outside = [((0, 1), (0, -1)), ((1, 9), (0, -1))]
    refused(tmp_path, partitioned(rows, slices=outside), r"reaches out of the shape \[4, 3\]")
    refused(tmp_path, partitioned(rows, slices=[((0, 1),)]), "a slice of 1 dimensions of an array of 2")
    # One slice of a variable that would take 32 GB.
    listed = field(1, "w") + field(2, tensor_shape((1 << 33,))) + field(3, 1) + field(4, tensor_slice([(0, 1)]))
    stored = field(1, "w") + field(2, tensor_slice([(0, 1)])) + field(3, field(5, bytes(4)))
    data = table([(b"", field(1, field(1, listed))), (b"\0w", field(2, stored))])
    refused(tmp_path, data, "variable 'w' brings the arrays to .* above the limit")


def test_slices_of_version_2_have_the_type_of_the_whole(tmp_path):
    values = np.ones(2, "<f4").tobytes()

    def of(kind: int):
        extents = ((0, 2),)
        rest = field(2, tensor_shape((2,))) + field(5, 8)
        part = field(1, kind) + rest + varint(6 << 3 | 5) + struct.pack("<I", writers.masked_crc32c(values))
        whole = field(1, 1) + rest + field(7, tensor_slice(extents))
        entries = [(b"", field(1, 1)), (b"w", whole), (tensorflow_checkpoints.slice_key("w", extents), part)]
        written(tmp_path / "b.index", table(entries))
        written(tmp_path / "b.data-00000-of-00001", values)
        return read_weights(tmp_path / "b")

    same(of(1).arrays, {"w": np.ones(2, np.float32)})
    with pytest.raises(UserError, match="variable 'w': one of its slices is int32, not float32"):
        of(3)


def test_what_version_1_may_not_say(tmp_path):
    listed = field(1, "w") + field(2, tensor_shape((2,))) + field(3, 1) + field(4, tensor_slice([(0, -1)]))
    contents = (b"", field(1, field(1, listed)))

    def stored(name, tensor):
        return b"\0w", field(2, field(1, name) + field(2, tensor_slice([(0, -1)])) + field(3, tensor))

    floats = np.ones(2, "<f4").tobytes()
    refused(
        tmp_path, table([contents, stored("v", field(5, floats))]), "'v', which the list of variables does not name"
    )
    refused(tmp_path, table([contents, stored("w", field(5, floats + floats))]), r"4 values for the shape \[2\]")
    refused(tmp_path, table([contents, stored("w", field(4, floats + b"x"))]), r"9 bytes for float32 of shape \[2\]")
    refused(tmp_path, table([(b"", field(1, field(1, listed) * 2))]), "'w' is listed twice")
    text = field(1, "t") + field(2, tensor_shape((1,))) + field(3, 7)
    data = table([(b"", field(1, field(1, listed) + field(1, text))), stored("w", field(5, floats))])
    weights = read_weights(written(tmp_path / "a.ckpt", data))
    assert (list(weights.arrays), weights.metadata["left_out"]) == (["w"], {"t": "TensorFlow's type 7"})


def test_what_version_2_may_not_say(tmp_path):
    values = np.ones(2, "<f4").tobytes()

    def of(*pieces: bytes, header=b"\x08\x01", total=None):
        total = total or struct.pack("<I", writers.masked_crc32c(values))
        entry = b"".join(pieces) + varint(6 << 3 | 5) + total
        written(tmp_path / "b.index", table([(b"", header), (b"w", entry)]))
        written(tmp_path / "b.data-00000-of-00001", values)
        return read_weights(tmp_path / "b")

    kind, shape, size = field(1, 1), field(2, tensor_shape((2,))), field(5, 8)
    assert list(of(kind, shape, size).arrays) == ["w"]
    for pieces, options, expected in (
        ((kind, shape, size), {"header": field(1, 1) + field(2, 1)}, "big-endian"),
        ((kind, shape, size), {"total": b"1234"}, "checksum of variable 'w' is wrong"),
        ((kind, shape, size, field(3, 1)), {}, "lies in data file 1 of 1"),
        ((kind, shape, field(5, 4)), {}, r"4 bytes for float32 of shape \[2\]"),
        ((kind, shape, size, field(4, 1)), {}, "ends at byte 9 of a data file of 8"),
        ((kind, field(2, field(3, 1)), size), {}, "unknown rank"),
        ((kind, shape, size, field(7, tensor_slice([(0, 1)]))), {}, "one of its slices is missing"),
        ((kind, field(2, tensor_shape((-2,))), size), {}, "impossible shape"),
    ):
        with pytest.raises(UserError, match=expected):
            of(*pieces, **options)


@pytest.mark.parametrize(
    "number,dtype,content",
    [
        (1, "f4", field(5, np.array([1.5, -2, 3], "<f4").tobytes())),
        (2, "f8", field(6, np.array([1.5, -2, 3]).tobytes())),
        (3, "i4", packed(7, [1, -2, 3])),
        (9, "i8", packed(10, [1, -(2**40), 3])),
        (10, "?", packed(11, [1, 0, 1])),
        (19, "f2", packed(13, np.array([1.5, -2, 3], "<f2").view("<u2").tolist())),
        (4, "u1", packed(7, [1, 255, 3])),
        (6, "i1", packed(7, [1, -2, 3])),
        (22, "u4", packed(16, [1, 2**32 - 1])),
        (23, "u8", packed(17, [2**64 - 1])),
        (1, "f4", b""),
        (1, "f4", field(4, np.array([1.5, -2, 3], "<f4").tobytes())),
    ],
)
def test_tensors_of_every_type(tmp_path, number, dtype, content):
    """Fewer values than the shape has mean that the last one is repeated; none mean zeros."""
    tensor = field(1, number) + field(2, tensor_shape((3,))) + content
    path = written(tmp_path / "a.pb", graph_node("w", "Const", value=field(8, tensor)))
    expected = {
        "f4": [1.5, -2, 3] if content else [0, 0, 0],
        "f8": [1.5, -2, 3],
        "f2": [1.5, -2, 3],
        "i4": [1, -2, 3],
        "i8": [1, -(2**40), 3],
        "?": [1, 0, 1],
        "u1": [1, 255, 3],
        "i1": [1, -2, 3],
        "u4": [1] + [2**32 - 1] * 2,
        "u8": [2**64 - 1] * 3,
    }[dtype]
    same(read_weights(path).arrays, {"w": np.array(expected, dtype)})


def test_graphs(tmp_path):
    text = graph_node("names", "Const", value=field(8, field(1, 7) + field(2, tensor_shape((1,))) + field(8, "cat")))
    data = writers.graph_constant("w", numbers("w", (2, 2))) + text
    weights = read_weights(written(tmp_path / "a.pb", data))
    assert (list(weights.arrays), weights.metadata["left_out"]) == (["w"], ["names"])
    constant = writers.graph_constant("w", np.ones(2, np.float32))
    refused(tmp_path, constant * 2, "'w' occurs twice", "a.pb")
    refused(tmp_path, constant + graph_node("v", "Const"), "Const without a value", "a.pb")
    strange = graph_node("v", "Const", value=field(8, field(1, 20) + field(2, b"")))
    refused(tmp_path, constant + strange, "node 'v' has TensorFlow's type 20", "a.pb")


def test_the_folder_of_a_checkpoint(tmp_path):
    """The path in `checkpoint` may be another machine's, and leads nowhere but beside it."""
    index, (data,) = writers.checkpoint_v2(ARRAYS)
    folder = tmp_path / "a[b]*"
    folder.mkdir()
    written(folder / "m[1].ckpt-5.index", index)
    written(folder / "m[1].ckpt-5.data-00000-of-00001", data)
    for path in ("m[1].ckpt-5", "/home/other/m[1].ckpt-5", "../elsewhere/m[1].ckpt-5"):
        (folder / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\nall_model_checkpoint_paths: "x"\n')
        same(read_weights(folder).arrays, ARRAYS)
    (folder / "m[1].ckpt-5.index").write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        read_weights(folder)
    assert (GOLDENS / "tensorflow_v2" / "checkpoint").read_text().startswith('model_checkpoint_path: "model.ckpt-7"')


def test_tables_whose_keys_cost_far_more_than_their_bytes(tmp_path):
    """Keys stored as their last bytes, of which each may stand for a long one."""
    long = b"k" * 100_000
    body = b"\0\0\0" + varint(0) + varint(len(long)) + b"\0" + long
    body += b"".join(varint(len(long)) + b"\3\0" + struct.pack(">I", number)[1:] for number in range(10_000))
    piece = bytes(body) + struct.pack("<2I", 0, 1) + b"\0"
    piece += struct.pack("<I", (lambda crc: ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)(crc32c(piece)))
    index = writers.block([(b"z", varint(0) + varint(len(piece) - 5))])
    handles = varint(0) + varint(0) + varint(len(piece)) + varint(len(index) - 5)
    footer = handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    refused(tmp_path, piece + index + footer, "a key of the table brings the arrays to .* more than 100 times as much")
