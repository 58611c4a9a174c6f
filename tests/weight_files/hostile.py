"""Small files that ask for much: memory, objects or time. Each maker takes a random generator, for what may vary.

`read_limited.py` reads them in a process whose memory the system limits.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from . import writers

Maker = Callable[[np.random.Generator], bytes]


def hdf5_strings_on_one_heap_object(random: np.random.Generator) -> bytes:
    """`layer_names` of 2,000 strings that are all the same megabytes of the file."""
    import h5py

    stream, size = io.BytesIO(), 1_500_000 + int(random.integers(1000))
    with h5py.File(stream, "w") as file:
        names = np.array([b"a" * size] + [b"b"] * 1999, dtype=object)
        file.attrs.create("layer_names", names, dtype=h5py.string_dtype("ascii"))
    data = bytearray(stream.getvalue())
    first = data.index(struct.pack("<I", size))  # its length, the address of its heap, its number there: 16 bytes
    while data[first + 16 : first + 20] != struct.pack("<I", 1):
        first = data.index(struct.pack("<I", size), first + 1)
    data[first : first + 16 * 2000] = data[first : first + 16] * 2000
    return bytes(data)


def hdf5_many_groups(random: np.random.Generator) -> bytes:
    """A group of very many links to one group."""
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w", libver="latest") as file:
        layers = file.create_group("layers")
        one = layers.create_group("one")
        for number in range(100_000 + int(random.integers(100))):
            layers[f"{number}"] = one
    return stream.getvalue()


def torch_big_endian_storage(random: np.random.Generator) -> bytes:
    """300 tensors of one number each on one storage of 15 MB, in big-endian order."""
    count = 3_750_000
    tensors = {f"t{n}": writers.pickled_tensor("0", (1,), (1,), count, offset=n) for n in range(300)}
    members = {
        "archive/data.pkl": b"\x80\x02" + writers.pickled(tensors) + b".",
        "archive/byteorder": b"big",
        "archive/data/0": random.bytes(64) + bytes(4 * count - 64),
    }
    return writers.zipped(members, zipfile.ZIP_DEFLATED)


def torch_colliding_keys(random: np.random.Generator) -> bytes:
    """A dictionary whose 100,000 keys have the same hash: each insertion would look at all before it."""
    start = int(random.integers(1, 1000))
    keys = (start + number * (2**61 - 1) for number in range(1, 100_000))
    items = b"".join(b"\x8a\x10" + key.to_bytes(16, "little", signed=True) + b"N" for key in keys)
    return writers.torch_zip(b"}(" + items + b"u", {})


def safetensors_header_of_numbers(random: np.random.Generator) -> bytes:
    """A header of 40 MB that is a list of 20 million numbers."""
    header = b'{"' + bytes(random.integers(97, 123, 8, dtype=np.uint8)) + b'":[' + b"0," * 20_000_000 + b"0]}"
    return struct.pack("<Q", len(header)) + header


def safetensors_header_of_tensors(random: np.random.Generator) -> bytes:
    """A header of 400,000 empty tensors, 26 MB."""
    salt = int(random.integers(1000))
    entry = '":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"'
    header = ('{"' + entry.join(f"{salt}.{number}" for number in range(400_000)) + entry[:-2] + "}").encode()
    return struct.pack("<Q", len(header)) + header


def onnx_empty_nodes(random: np.random.Generator) -> bytes:
    """A graph of some 999,000 empty nodes, 2 MB."""
    graph = b"\x0a\x00" * (999_000 - int(random.integers(1000)))
    return writers.field(1, 3) + writers.field(7, graph) + writers.field(8, writers.field(2, 13))


def graph_empty_nodes(random: np.random.Generator) -> bytes:
    """A frozen graph of one constant and some 990,000 empty nodes."""
    many = b"\x0a\x00" * (990_000 - int(random.integers(1000)))
    return writers.graph_constant("a", np.ones(2, np.float32)) + many


def caffe_empty_layers(random: np.random.Generator) -> bytes:
    """A network of some 900,000 empty layers."""
    return writers.field(1, "net") + writers.field(100, b"") * (900_000 - int(random.integers(1000)))


def protobuf_alternating_numbers(random: np.random.Generator) -> bytes:
    """Numbers of a fixed size under alternating tags: none of them follows its like."""
    pair = b"\x25" + random.bytes(4) + b"\x2d" + random.bytes(4)
    return writers.caffe_layer("a", "Convolution", pair * 250_000)


def table_many_entries(random: np.random.Generator) -> bytes:
    """A table of 400,000 variables without a value."""
    entries = [(b"%d" % (10**7 + number), b"") for number in range(400_000 + int(random.integers(10)))]
    return writers.table([(b"", b""), *entries], per_block=len(entries) + 1)


def tar_chained_headers(random: np.random.Generator) -> bytes:
    """3,000 headers that each say that the name of the next member follows."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    one = info.tobuf(tarfile.GNU_FORMAT) + bytes(random.integers(97, 123, 1, dtype=np.uint8)) + bytes(511)
    return one * 3000


def tar_many_members(random: np.random.Generator) -> bytes:
    """400,000 empty members of the same name, zipped."""
    one = tarfile.TarInfo(f"a{int(random.integers(1000))}").tobuf(tarfile.USTAR_FORMAT)
    return gzip.compress(one * 100_000, 6)


def zip_many_members(random: np.random.Generator) -> bytes:
    """A directory of 300,000 entries."""
    salt = int(random.integers(100))
    entries = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
        + b"%08d" % (number * 100 + salt)
        for number in range(300_000)
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(entries), 4, 0)
    return b"PK\x03\x04" + entries + end


def npz_of_zeros(random: np.random.Generator) -> bytes:
    """85 MB of zeros in 85 kB."""
    zeros = np.zeros((3250 + int(random.integers(10)), 3250))
    return writers.npz({"mu": zeros[0], "sigma": zeros}, np.savez_compressed)


# What the message says, by the maker.
FILES: dict[Maker, str] = {
    hdf5_strings_on_one_heap_object: r"damaged|memory",
    hdf5_many_groups: "too many objects",
    torch_big_endian_storage: "",  # is read: 300 numbers
    torch_colliding_keys: "the key",
    safetensors_header_of_numbers: "too many objects",
    safetensors_header_of_tensors: "too many objects",
    onnx_empty_nodes: "too many objects",
    graph_empty_nodes: "too many objects",
    caffe_empty_layers: "too many objects",
    protobuf_alternating_numbers: "too many objects",
    table_many_entries: "too many objects",
    tar_chained_headers: "tar archive that cannot be read",
    tar_many_members: "too many objects|two members",
    zip_many_members: "too many objects",
    npz_of_zeros: "100 times",
}


def png_of_zeros(side: int) -> bytes:
    """A black-and-white PNG of side² pixels, of which the compressed size is a thousandth."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (side + 7) // 8) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
