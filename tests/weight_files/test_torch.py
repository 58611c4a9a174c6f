"""PyTorch's files: what a pickle may say, what it may not, and that nothing it says is ever done."""

import codecs
import copyreg
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.weight_files import read_weights

from .test_reading import same, written
from .writers import pickled, pickled_name, pickled_tensor, program, torch_legacy, torch_state, torch_zip, zipped

VALUES = np.arange(12, dtype=np.float32)
TENSOR = pickled_tensor("0", (3, 4), (4, 1), 12)


# Attacks. Each would create the sentinel if a pickle machine did what it says; the word is what the refusal must name.


class Reduced:
    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


class WithState:
    def __reduce__(self):
        return OrderedDict, (), {"__class__": Reduced(os.system, "touch SENTINEL")}


class ItemsOf:
    def __reduce__(self):
        return OrderedDict, (), None, None, iter([(Reduced(os.system, "touch SENTINEL"), 1)])


def raw(text: bytes) -> bytes:
    return b"\x80\x02" + text + b"."


COMMAND = b"X" + struct.pack("<I", 14) + b"touch SENTINEL"
SYSTEM = pickled_name("os", "system")
SHORT = lambda text: b"\x8c" + bytes([len(text)]) + text  # noqa: E731

ATTACKS = {
    "os.system": (pickle.dumps(Reduced(os.system, "touch SENTINEL"), 2), r"(posix|nt)\.system"),
    "os.system, protocol 4": (pickle.dumps(Reduced(os.system, "touch SENTINEL"), 4), r"(posix|nt)\.system"),
    "os.system, protocol 0": (pickle.dumps(Reduced(os.system, "touch SENTINEL"), 0), r"(posix|nt)\.system"),
    "eval": (pickle.dumps(Reduced(eval, "open('SENTINEL', 'w')"), 2), r"(__builtin__|builtins)\.eval"),
    "exec": (pickle.dumps(Reduced(exec, "open('SENTINEL', 'w')"), 5), r"builtins\.exec"),
    "open": (pickle.dumps(Reduced(open, "SENTINEL", "w"), 2), r"io\.open"),
    "getattr": (pickle.dumps(Reduced(getattr, 1, "real"), 2), r"(__builtin__|builtins)\.getattr"),
    "encode": (pickle.dumps(Reduced(codecs.encode, "a", "rot13"), 2), r"_codecs\.encode"),
    "inside of copyreg": (
        pickle.dumps(Reduced(copyreg.__newobj__, Reduced(eval, "open('SENTINEL', 'w')")), 0),
        "copyreg",
    ),
    "in a state": (pickle.dumps(WithState(), 2), r"(posix|nt)\.system"),
    "in a key": (pickle.dumps(ItemsOf(), 2), r"(posix|nt)\.system"),
    "in a state dict": (raw(pickled({"a": TENSOR, "b": SYSTEM + COMMAND + b"\x85R"})), r"os\.system"),
    "in a storage's place": (
        raw(pickled(("storage", SYSTEM + COMMAND + b"\x85R", "0", "cpu", 12)) + b"Q"),
        r"os\.system",
    ),
    "STACK_GLOBAL": (raw(SHORT(b"os") + SHORT(b"system") + b"\x93" + COMMAND + b"\x85R"), r"os\.system"),
    "STACK_GLOBAL through the memo": (
        raw(SHORT(b"system") + b"q\x01" + b"0" + SHORT(b"os") + b"h\x01\x93" + COMMAND + b"\x85R"),
        r"os\.system",
    ),
    "STACK_GLOBAL of no text": (raw(b"K\x01K\x02\x93"), "not a string"),
    "INST": (raw(b"(" + COMMAND + b"ios\nsystem\n"), r"os\.system"),
    "INST of a good name": (raw(b"(icollections\nOrderedDict\n"), r"instance of collections\.OrderedDict"),
    "OBJ": (raw(b"(" + SYSTEM + COMMAND + b"o"), r"os\.system"),
    "NEWOBJ": (raw(pickled_name("collections", "OrderedDict") + b")\x81"), "NEWOBJ"),
    "NEWOBJ_EX": (raw(pickled_name("collections", "OrderedDict") + b")}\x92"), "NEWOBJ_EX"),
    "EXT1": (raw(b"\x82\x01"), "EXT1"),
    "a dotted name": (raw(SHORT(b"collections") + SHORT(b"OrderedDict.__init__.__globals__") + b"\x93"), "__globals__"),
    "a dotted module": (raw(pickled_name("collections.abc", "sys")), r"collections\.abc\.sys"),
    "a name of torch": (raw(pickled_name("torch", "load") + COMMAND + b"\x85R"), r"torch\.load"),
    "a name of torch, not called": (
        raw(pickled({"a": TENSOR, "b": pickled_name("torch", "load")})),
        r"asks for torch\.load",
    ),
    "the command of torch.hub": (raw(pickled_name("torch.hub", "load") + b")R"), r"torch\.hub\.load"),
    "a type called": (raw(pickled_name("torch", "FloatStorage") + b"K\x05\x85R"), r"calls torch\.FloatStorage"),
    "a text called": (raw(COMMAND + b")R"), "calls a value of the type str"),
    "a call without a tuple": (
        raw(pickled_name("collections", "OrderedDict") + b"]R"),
        r"calls collections\.OrderedDict",
    ),
    "too many arguments": (raw(pickled_name("torch", "Size") + b"(NNNtR"), "gives Size 3 arguments"),
    "BUILD on a name": (
        raw(pickled_name("torch", "Size") + pickled({"__call__": 1}) + b"b"),
        "attributes of an object that is not an OrderedDict",
    ),
    "BUILD on a plain dictionary": (raw(b"}}b"), "attributes of an object that is not an OrderedDict"),
    "a persistent id of text": (raw(COMMAND + b"Q"), "not a storage"),
    "a persistent id of protocol 0": (raw(b"Pos.system\n"), "PERSID"),
    "a persistent id of a module": (raw(pickled(("module", "a", "b", "c")) + b"Q"), "not a storage"),
    "a huge integer": (raw(b"\x8b\xff\xff\xff\x7f" + bytes(100)), "integer of 2,147,483,647 bytes"),
    "a negative integer's size": (raw(b"\x8b\xff\xff\xff\xff"), "integer of -1 bytes"),
    "a huge text": (raw(b"X\xff\xff\xff\xff"), "cut off"),
    "a huge text of 64 bits": (raw(b"\x8d" + b"\xff" * 8), "cut off"),
    "an integer of text": (raw(b"I" + b"9" * 5000 + b"\n"), "instruction INT"),
    "a huge place in the memo": (raw(b"Nr\xff\xff\xff\x7f"), "holds a value of the type NoneType"),
    "an unknown place in the memo": (raw(b"h\x05"), "a memo entry that was never written"),
    "an empty stack": (raw(b"0"), "pops from an empty stack"),
    "no mark": (raw(b"t"), "mark that is not on the stack"),
    "an odd dictionary": (raw(b"}(Nu"), "key without a value"),
    "a list as a key": (raw(b"}]Ns"), "key of the type list"),
    "an append to nothing": (raw(b"NNa"), "appends to an object that is not a list"),
    "a dictionary in itself": (raw(b"}q\x00" + pickled("a") + b"h\x00s"), "no state dict.*'a'"),
    "tuples in tuples": (raw(b")" + b"\x85" * 100_000), "holds a value of the type tuple"),
    "lists in lists": (raw(b"]" * 100_000 + b"a" * 99_999), "holds a value of the type list"),
    "an exponential tuple": (raw(b"N" + b"q\x00h\x00\x86" * 80), "holds a value of the type tuple"),
    "an exponential call": (
        raw(pickled({"a": TENSOR, "b": b"N" + b"q\x00h\x00\x86" * 80 + b"K\x01R"})),
        "calls a value of the type tuple",
    ),
    "an unknown protocol": (b"\x80\x63N.", "protocol 99"),
    "an unknown instruction": (raw(b"\xff"), "0xff"),
    "no end": (b"\x80\x02N", "cut off"),
    "a name without an end": (raw(b"c" + b"a" * 2000), "does not end"),
    "a name that is no text": (raw(b"c\xff\xfe\nx\n"), "not text"),
}


def test_the_attacks_would_work(tmp_path, monkeypatch):
    """The sentinel appears where Python's own machine runs the first of them: the test below tests something."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(ATTACKS["os.system"][0])
    assert (tmp_path / "SENTINEL").exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data, message = ATTACKS[name]
    with pytest.raises(UserError, match=message):
        read_weights(written(tmp_path / "a.pth", zipped({"a/data.pkl": data, "a/data/0": VALUES.tobytes()})))
    for place in range(5):
        # In a file of old PyTorch, as each of its five pickles.
        pieces = [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled({"little_endian": True}), pickled({}), b"]"]
        pieces = [data if number == place else program(piece) for number, piece in enumerate(pieces)]
        with pytest.raises(UserError):
            read_weights(written(tmp_path / "old.pth", b"".join(pieces)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "old.pth"]


def refused(tmp_path, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_weights(written(tmp_path / "a.pth", data))


def zip_of(tensor: bytes, storages=None, **more: bytes) -> bytes:
    return torch_zip(pickled({"a": tensor}), {"0": VALUES.tobytes()} if storages is None else storages, **more)


def test_strides_and_offsets(tmp_path):
    """Tensors that share a storage, seen from many sides: the arrays are what PyTorch would show."""
    views = {
        "plain": pickled_tensor("0", (3, 4), (4, 1), 12),
        "transposed": pickled_tensor("0", (4, 3), (1, 4), 12),
        "offset": pickled_tensor("0", (2, 2), (4, 1), 12, offset=5),
        "repeated": pickled_tensor("0", (2, 4), (0, 1), 12, offset=8),
        "last": pickled_tensor("0", (), (), 12, offset=11),
        "skipping": pickled_tensor("0", (3,), (5,), 12, offset=1),
        "on a GPU": pickled_tensor("0", (12,), (1,), 12, location="cuda:0"),
    }
    weights = read_weights(written(tmp_path / "a.pth", torch_zip(pickled(views), {"0": VALUES.tobytes()})))
    table = VALUES.reshape(3, 4)
    same(
        weights.arrays,
        {
            "plain": table,
            "transposed": table.T,
            "offset": table[1:, 1:3],
            "repeated": np.stack([table[2]] * 2),
            "last": np.float32(11)[()] + np.zeros((), np.float32),
            "skipping": VALUES[[1, 6, 11]],
            "on a GPU": VALUES,
        },
    )


@pytest.mark.parametrize("form", ["Tensor", "Size"])
def test_the_other_functions_that_rebuild(tmp_path, form):
    storage = pickled(("storage", pickled_name("torch", "FloatStorage"), "0", "cpu", 12)) + b"Q"
    if form == "Tensor":
        body = pickled_name("torch._utils", "_rebuild_tensor") + pickled((storage, 2, (3,), (1,))) + b"R"
    else:
        size = pickled_name("torch", "Size") + pickled(((3,),)) + b"R"
        body = pickled_name("torch._utils", "_rebuild_tensor_v2") + pickled((storage, 2, size, (1,), False, {})) + b"R"
    body = pickled_name("torch._utils", "_rebuild_parameter") + pickled((body, True, {})) + b"R"
    same(read_weights(written(tmp_path / "a.pth", zip_of(body))).arrays, {"a": VALUES[2:5]})


@pytest.mark.parametrize("version", [2, 3])
def test_bits_that_change_the_values_of_a_tensor(tmp_path, version):
    """What torch writes behind the other arguments for a view that is negated only when it is read."""
    storage = pickled(("storage", pickled_name("torch", "FloatStorage"), "0", "cpu", 12)) + b"Q"
    dtype = (pickled_name("torch", "float32"),) * (version == 3)

    def of(*metadata) -> bytes:
        arguments = (storage, 0, (12,), (1,), False, {}, *dtype, *metadata)
        return zip_of(pickled_name("torch._utils", f"_rebuild_tensor_v{version}") + pickled(arguments) + b"R")

    for metadata in ((), ({},), (None,)):
        same(read_weights(written(tmp_path / "a.pth", of(*metadata))).arrays, {"a": VALUES})
    refused(tmp_path, of({"neg": True}), "bits that change its values")


@pytest.mark.parametrize(
    "body",
    [
        b"}" * 3_100_000,  # dictionaries
        b"](" + b"N" * 100_000 + b"eq\0" + (pickled_name("torch", "Size") + b"h\0\x85R") * 100,  # copies of a long list
        b"](" + b"K\1K\2\x86" * 50_000 + b"eq\0" + (pickled_name("collections", "OrderedDict") + b"h\0\x85R") * 100,
    ],
)
def test_few_bytes_that_ask_for_many_objects(tmp_path, body):
    data = zipped({"a/data.pkl": program(body)}, zipfile.ZIP_DEFLATED)
    refused(tmp_path, data, "a pickle of many steps: too many objects")


@pytest.mark.parametrize("dtype", ["float32", "int64", "float16"])
def test_untyped_storages_and_other_byte_orders(tmp_path, dtype):
    values = np.arange(6).astype(dtype)
    storage = pickled(("storage", pickled_name("torch.storage", "UntypedStorage"), "0", "cpu", values.nbytes)) + b"Q"
    arguments = (storage, 1, (5,), (1,), False, {}, pickled_name("torch", dtype))
    tensor = pickled_name("torch._utils", "_rebuild_tensor_v3") + pickled(arguments) + b"R"
    for order, data in (("little", values), ("big", values.byteswap())):
        path = written(tmp_path / "a.pth", zip_of(tensor, {"0": data.tobytes()}, byteorder=order.encode()))
        weights = read_weights(path)
        same(weights.arrays, {"a": values[1:]})
        assert weights.metadata["byteorder"] == order
    swapped = zip_of(TENSOR, {"0": VALUES.byteswap().tobytes()}, byteorder=b"big")
    same(read_weights(written(tmp_path / "a.pth", swapped)).arrays, {"a": VALUES.reshape(3, 4)})
    refused(tmp_path, zip_of(TENSOR, byteorder=b"middle"), "middle")


IMPOSSIBLE = {
    "too far": (pickled_tensor("0", (3, 4), (5, 1), 12), "reaches to value 13 of a storage of 12"),
    "offset too far": (pickled_tensor("0", (3,), (1,), 12, offset=10), "reaches to value 12"),
    "a negative offset": (pickled_tensor("0", (3,), (1,), 12, offset=-1), "not sizes"),
    "a negative stride": (pickled_tensor("0", (3,), (-1,), 12, offset=5), "not sizes"),
    "a negative size": (pickled_tensor("0", (-3,), (1,), 12), "not sizes"),
    "True as a size": (pickled_tensor("0", (True,), (1,), 12), "not sizes"),
    "another rank": (pickled_tensor("0", (3, 4), (1,), 12), "2 sizes and 1 strides"),
    "enormous sizes": (pickled_tensor("0", (1 << 40, 1 << 40), (0, 0), 12), "impossible shape"),
    "many dimensions": (pickled_tensor("0", (1,) * 40, (1,) * 40, 12), "impossible shape"),
    "more than is there": (pickled_tensor("0", (3, 4), (4, 1), 13), "holds 48 bytes, not 13 of float32"),
    "less than is there": (pickled_tensor("0", (3, 4), (4, 1), 11), "holds 48 bytes, not 11 of float32"),
    "another type": (pickled_tensor("0", (3, 4), (4, 1), 12, storage="DoubleStorage"), "not 12 of float64"),
    "an unknown storage": (pickled_tensor("1", (3, 4), (4, 1), 12), "storage '1' is not in the archive"),
    "a path as a key": (pickled_tensor("../data.pkl", (3, 4), (4, 1), 12), "is not in the archive"),
    "a number as a key": (pickled_tensor(7, (3, 4), (4, 1), 12), "key or location is not a string"),
    "a type that is none": (pickled_tensor("0", (3,), (1,), 12, storage="Size"), "storage whose type is torch.Size"),
    "a negative count": (pickled_tensor("0", (3,), (1,), -1), "impossible number"),
    "not a storage": (
        pickled_name("torch._utils", "_rebuild_tensor") + pickled((None, 0, (), ())) + b"R",
        "has no storage",
    ),
    "a parameter of nothing": (
        pickled_name("torch._utils", "_rebuild_parameter") + b"(NNNtR",
        "does not hold a tensor",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_tensors(tmp_path, name):
    tensor, message = IMPOSSIBLE[name]
    refused(tmp_path, zip_of(tensor), message)


def test_one_storage_in_two_ways(tmp_path):
    state = {"a": TENSOR, "b": pickled_tensor("0", (2,), (1,), 12, storage="IntStorage")}
    refused(tmp_path, torch_zip(pickled(state), {"0": VALUES.tobytes()}), "described in two different ways")


def legacy_of(views, storages, **options) -> bytes:
    return torch_legacy(pickled(views), storages, **options)


def test_old_files_and_their_views_of_storages(tmp_path):
    """A view is a part of a storage under a name of its own: key, offset and size, in numbers of the storage's type."""
    views = {
        "whole": pickled_tensor("k", (12,), (1,), 12, tail=(None,)),
        "part": pickled_tensor("k", (2, 2), (2, 1), 12, offset=1, tail=(("v", 3, 5),)),
        "other": pickled_tensor("j", (2,), (1,), 2, storage="LongStorage", tail=(None,)),
    }
    storages = {"k": VALUES, "j": np.array([5, -6])}
    weights = read_weights(written(tmp_path / "a.pth", legacy_of(views, storages)))
    same(weights.arrays, {"whole": VALUES, "part": VALUES[4:8].reshape(2, 2), "other": np.array([5, -6])})
    out = pickled_tensor("k", (2, 2), (3, 1), 12, offset=1, tail=(("v", 3, 5),))
    refused(tmp_path, legacy_of({"a": out}, {"k": VALUES}), "reaches to value 5 of a storage of 5")
    for view in (("v", 8, 5), ("v", -1, 5), ("v", 3), (3, 3, 5), ("v", "3", 5)):
        part = pickled_tensor("k", (2,), (1,), 12, tail=(view,))
        refused(tmp_path, legacy_of({"a": part}, {"k": VALUES}), "view of the storage 'k'")


def test_old_files_that_do_not_agree_with_themselves(tmp_path):
    views = {"whole": pickled_tensor("k", (12,), (1,), 12, tail=(None,))}
    refused(tmp_path, legacy_of(views, {"j": VALUES}), "not the ones that the tensors use")
    refused(tmp_path, legacy_of(views, {"k": VALUES[:-1]}), "has 11 values, not 12")
    refused(tmp_path, legacy_of(views, {"k": VALUES}) + b"more", "4 bytes follow the last storage")
    refused(tmp_path, legacy_of(views, {"k": VALUES})[:-3], "cut off")
    refused(tmp_path, legacy_of(views, {"k": VALUES}, little_endian=False), "big-endian")
    slashed = {"whole": pickled_tensor("k/v", (12,), (1,), 12, tail=(None,))}
    refused(tmp_path, legacy_of(slashed, {"k/v": VALUES}), "storage with the key 'k/v'")


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_nested_state_dicts(tmp_path, key):
    state = {"optimizer": {"lr": 1}, key: {"module.a": TENSOR, "module.b": 3}, "epoch": 7}
    weights = read_weights(written(tmp_path / "a.pth", torch_zip(pickled(state), {"0": VALUES.tobytes()})))
    same(weights.arrays, {"a": VALUES.reshape(3, 4)})
    about = weights.metadata
    assert (about["nested_under"], about["stripped_prefix"]) == (key, "module.")
    assert about["left_out"] == {"optimizer": "dict", "epoch": "int", "module.b": "int"}


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefix_of_a_compiled_network(tmp_path, prefix):
    state = {f"{prefix}a": TENSOR, f"{prefix}module.b": TENSOR}
    weights = read_weights(written(tmp_path / "a.pth", torch_zip(pickled(state), {"0": VALUES.tobytes()})))
    assert (list(weights.arrays), weights.metadata["stripped_prefix"]) == (["a", "module.b"], prefix)


def test_a_nested_state_dict_beside_a_tensor(tmp_path):
    """As pytorch/examples' imagenet/main.py saves it, whose best accuracy is a tensor."""
    accuracy = pickled_tensor("0", (1,), (1,), 12)
    state = {"epoch": 3, "state_dict": {"module.a": TENSOR}, "best_acc1": accuracy}
    weights = read_weights(written(tmp_path / "a.pth", torch_zip(pickled(state), {"0": VALUES.tobytes()})))
    same(weights.arrays, {"a": VALUES.reshape(3, 4)})
    assert weights.metadata["left_out"] == {"epoch": "int", "best_acc1": "tensor"}


def test_what_is_no_state_dict(tmp_path):
    def of(body: bytes) -> bytes:
        return torch_zip(body, {"0": VALUES.tobytes()})

    refused(tmp_path, of(TENSOR), "holds a tensor, not a state dict")
    refused(
        tmp_path, of(pickled({"weights": {"a": TENSOR}})), "no state dict at the top or under.*the keys are 'weights'"
    )
    refused(tmp_path, of(pickled({3: TENSOR})), "key 3, which is not a string")
    state = {"module.a": TENSOR, "a": TENSOR}
    weights = read_weights(written(tmp_path / "a.pth", of(pickled(state))))
    assert (list(weights.arrays), weights.metadata["stripped_prefix"]) == (["module.a", "a"], None)


def test_archives_that_are_not_of_torch_save(tmp_path):
    one = {"a/data.pkl": program(b"N"), "b/data.pkl": program(b"N")}
    refused(tmp_path, zipped(one), "several data.pkl")
    refused(tmp_path, zipped({"a/data.pkl": program(b"N"), "a/code/x.py": b""}), "TorchScript")
    refused(
        tmp_path,
        zipped({"a/data.pkl": program(b"N") + bytes(33 << 20)}),
        "above the limit of 33,554,432; a state dict has",
    )


def test_names_of_any_alphabet_and_the_order_of_the_file(tmp_path):
    arrays = {name: VALUES[:3] + number for number, name in enumerate(("z", "a", "Größe", "权重"))}
    same(read_weights(written(tmp_path / "a.pth", torch_state(arrays))).arrays, arrays)
