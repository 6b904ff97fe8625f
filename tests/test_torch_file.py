"""PyTorch's files without torch: well-formed, damaged, and hostile."""

import argparse
import collections
import functools
import io
import os
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import at_most
from torch_files import mapping, name, plain, storage, tensor, write_older, write_zip

from hyperface_jax.data.safe_pickle import UnsafePickleError
from hyperface_jax.interop import torch_file
from hyperface_jax.interop.torch_objects import STORAGES, Opaque

VALUES = np.arange(12, dtype="<f4")
STORED = storage("0", "FloatStorage", 12)


def refused(path, match, kind=ValueError):
    with pytest.raises(kind, match=match) as caught:
        torch_file.read(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


# --- our own writer -------------------------------------------------------------------


def some_arrays(rng):
    dtypes = ("float32", "float64", "float16", "int64", "int32", "int16", "int8")
    arrays = {name: rng.standard_normal((2, 3)).astype(name) for name in dtypes}
    return arrays | {
        "uint8": np.arange(5, dtype=np.uint8),
        "bool": np.array([True, False]),
        "counter": np.array(3),
        "empty": np.zeros((0, 3), np.float32),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "big": np.arange(3, dtype=">f4"),
    }


def test_what_is_written_is_read_back(tmp_path, rng):
    tree = {"backbone": some_arrays(rng), "step": 7, "lr": 0.1, "name": "é", "none": {}}
    torch_file.write(tmp_path / "a.pt", tree)
    found = torch_file.read(tmp_path / "a.pt")
    assert list(found) == list(tree)
    assert (found["step"], found["lr"], found["name"]) == (7, 0.1, "é")
    assert found["none"] == {}
    for key, expected in tree["backbone"].items():
        np.testing.assert_array_equal(found["backbone"][key], expected, strict=False)
        assert found["backbone"][key].dtype == expected.dtype.newbyteorder("=")
        assert found["backbone"][key].shape == expected.shape
        assert not found["backbone"][key].flags.writeable or not expected.size


def test_writing_is_deterministic_and_refuses_other_things(tmp_path, rng):
    arrays = some_arrays(rng)
    for file in ("a.pt", "b.pt"):
        torch_file.write(tmp_path / file, arrays)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    for value in (np.zeros(2, complex), np.array(["a"]), None):
        with pytest.raises(ValueError, match="array cannot be written"):
            torch_file.write(tmp_path / "c.pt", {"a": value})
    with pytest.raises(ValueError, match=r"c\.pt: cannot be written"):
        torch_file.write(tmp_path / "nowhere" / "c.pt", arrays)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "b.pt"]


# --- what torch writes ----------------------------------------------------------------

VIEWS = {
    "plain": (0, (3, 4), (4, 1), VALUES.reshape(3, 4)),
    "transposed": (0, (4, 3), (1, 4), VALUES.reshape(3, 4).T),
    "columns": (1, (3, 2), (4, 2), VALUES.reshape(3, 4)[:, 1::2]),
    "offset": (5, (7,), (1,), VALUES[5:]),
    "scalar": (11, (), (), VALUES[11]),
    "repeated": (2, (2, 3), (0, 1), np.stack([VALUES[2:5]] * 2)),
    "one": (2, (1, 1), (99, 1), VALUES[2:3, None]),
    "empty": (12, (0, 5), (5, 1), np.zeros((0, 5), np.float32)),
}


@pytest.mark.parametrize("older", [False, True])
def test_views_of_one_storage(tmp_path, older):
    tree = mapping({key: tensor(STORED, *view[:3]) for key, view in VIEWS.items()})
    if older:
        path = write_older(tmp_path / "a.pth", tree, {"0": VALUES})
    else:
        path = write_zip(tmp_path / "a.pth", tree, {"0": VALUES.tobytes()})
    found = torch_file.read(path)
    assert list(found) == list(VIEWS)
    for key, (*_, expected) in VIEWS.items():
        np.testing.assert_array_equal(found[key], expected)
        assert found[key].shape == expected.shape
        assert found[key].dtype == np.float32
    assert np.shares_memory(found["plain"], found["columns"])


def test_a_view_in_the_persistent_id_of_older_files(tmp_path):
    part = storage("0", "FloatStorage", 12, view=[("0.1", 4, 6)])
    tree = mapping({"a": tensor(part, 1, (2,), (1,))})
    found = torch_file.read(write_older(tmp_path / "a.pth", tree, {"0": VALUES}))
    np.testing.assert_array_equal(found["a"], [5, 6])


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("kind", STORAGES)
def test_every_type_in_both_byte_orders(tmp_path, kind, order):
    dtype = STORAGES[kind]
    values = np.array([0, 1, 1, 0, 1]).astype(dtype)
    expected = values.astype(dtype.newbyteorder("="))
    if kind == "BFloat16Storage":
        expected = np.array([1.5, -2, 0, 3e38, 2**-130], np.float32)
        values = (expected.view(np.uint32) >> 16).astype("<u2")
        expected = (values.astype(np.uint32) << 16).view(np.float32)
    data = values.astype(values.dtype.newbyteorder(">" if order == "big" else "<"))
    tree = tensor(storage("k", kind, 5), 0, (5,), (1,))
    path = write_zip(tmp_path / "a.pt", tree, {"k": data.tobytes()}, order=order)
    np.testing.assert_array_equal(torch_file.read(path), expected, strict=True)


def test_compressed_entries_are_read(tmp_path):
    tree = tensor(STORED, 0, (12,), (1,))
    storages = {"0": VALUES.tobytes()}
    path = write_zip(tmp_path / "a.pt", tree, storages, pack=zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(torch_file.read(path), VALUES)


def test_parameters_sizes_devices_dtypes_and_sets(tmp_path):
    inner = tensor(STORED, 0, (12,), (1,))
    of_type = name("torch._utils", "_rebuild_tensor_v2") + name(
        "torch.nn.parameter", "Parameter"
    )
    arguments = b"(" + STORED + plain(0) + plain((12,)) + plain((1,)) + b"t"
    hooks = name("collections", "OrderedDict") + b")R"
    parameter = name("torch._utils", "_rebuild_parameter")
    tree = mapping(
        {
            "parameter": parameter + b"(" + inner + plain(True) + hooks + b"tR",
            "attributes": name("torch._tensor", "_rebuild_from_type_v2")
            + b"("
            + of_type
            + arguments
            + plain({})
            + b"tR",
            "size": name("torch", "Size") + plain(((2, 3),)) + b"R",
            "device": name("torch", "device") + plain(("cuda", 1)) + b"R",
            "dtype": name("torch", "float16"),
            "set": name("__builtin__", "set") + plain(([1, 2],)) + b"R",
            "pairs": name("collections", "OrderedDict") + plain(([["a", 1]],)) + b"R",
        }
    )
    found = torch_file.read(write_zip(tmp_path / "a.pt", tree, {"0": VALUES.tobytes()}))
    np.testing.assert_array_equal(found.pop("parameter"), VALUES)
    np.testing.assert_array_equal(found.pop("attributes"), VALUES)
    assert found == {
        "size": (2, 3),
        "device": "cuda:1",
        "dtype": "torch.float16",
        "set": {1, 2},
        "pairs": {"a": 1},
    }


@pytest.mark.parametrize("protocol", range(2, 6))  # torch's own is 2
def test_what_training_programs_leave_beside_the_weights(tmp_path, protocol):
    tree = {
        "epoch": 3,
        "betas": (0.9, [None, True, {1: 2.5}]),
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5),
        "history": collections.defaultdict(list, a=[1]),
        "recent": collections.deque([1, 2]),
        "path": Path("a"),
    }
    value = pickle.dumps(tree, protocol).removesuffix(b".")
    found = torch_file.read(write_zip(tmp_path / "a.pt", value))
    assert found["epoch"] == 3
    assert found["betas"] == tree["betas"]
    assert found["args"] == Opaque("argparse", "Namespace")
    assert str(found["history"]) == "collections.defaultdict"
    assert {type(found[key]) for key in ("best", "recent", "path")} == {Opaque}


# --- hostile --------------------------------------------------------------------------


class Runs:
    """A pickle of it runs a command when read by the pickle module."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def payloads(marker):
    command = f"touch {marker}"
    return {
        "posix.system": Runs(os.system, command),
        "builtins.eval": Runs(eval, f"open({str(marker)!r}, 'w')"),
        "builtins.exec": Runs(exec, f"open({str(marker)!r}, 'w')"),
        "builtins.getattr": Runs(getattr, os, "system"),
        "io.open": Runs(io.open, str(marker), "w"),
        "builtins.open": Runs(io.open, str(marker), "w"),
        "os.mkdir": Runs(os.mkdir, str(marker)),
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["zip", "older", "pickle"])
@pytest.mark.parametrize("names", ["posix.system", "builtins.eval", "io.open"])
def test_code_in_a_file_does_not_run(tmp_path, names, place, protocol):
    marker = tmp_path / "marker"
    value = {"state_dict": {}, "args": payloads(marker)[names]}
    data = pickle.dumps(value, protocol)
    path = tmp_path / "a.pt"
    if place == "zip":
        write_zip(path, data.removesuffix(b"."))
    elif place == "older":
        write_older(path, data.removesuffix(b"."))
    else:
        path.write_bytes(data)
    shown = names if names != "io.open" else r"_?io\.open"
    refused(path, rf"it names {shown}, which is not allowed", UnsafePickleError)
    assert not marker.exists()
    pickle.loads(data)  # the payload is live
    assert marker.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"iposix\nsystem\n", r"it names posix\.system"),
        (b"(S'ls'\niposix\nsystem\n", r"it names posix\.system"),
        (b"(" + name("subprocess", "Popen") + plain("ls") + b"o", r"subprocess\.Popen"),
        (name("models.iresnet", "IResNet") + b")\x81", r"models\.iresnet\.IResNet"),
        (name("torch.nn.modules.conv", "Conv2d"), r"torch\.nn\.modules\.conv\.Conv2d"),
        (name("torch", "load") + plain(("a",)) + b"R", r"it names torch\.load"),
        (name("torch", "FloatStorage") + b")R", r"it calls torch\.FloatStorage"),
        (name("torch._utils", "_rebuild_qtensor"), "_rebuild_qtensor"),
        (plain("posix\nx") + plain("system") + b"\x93", r"names 'posix\\nx\.system'"),
        (plain("x" * 999) + plain("y") + b"\x93", "it names x{200}, which"),
    ],
)
def test_other_names_are_refused(tmp_path, value, message):
    refused(write_zip(tmp_path / "a.pt", value), message, UnsafePickleError)


@pytest.mark.parametrize(
    "value",
    [
        plain("f") + b")R",  # calls text
        name("torch._utils", "_rebuild_parameter") + b"}R",
        name("argparse", "Namespace") + b")" + plain({"a": 1}) + b"\x92",
        b"\x82\x01",  # the interpreter's registry
        b"\x96" + (1 << 40).to_bytes(8, "little"),  # a bytearray of 1 TB
        b"\x8e" + (1 << 40).to_bytes(8, "little"),
        b"]" + plain({"append": 1}) + b"b",  # attributes of a list
        b"]" + plain("a") + plain("b") + b"s",
        b"}" + plain("a") + b"a",
        b"(" + plain("a") + b"d",
        b")" + b"\x85" * 10**6 + b"}\x86}\x8c\x01a\x86" + b"s",
        b"}" + b")" + b"\x85" * 10**6 + b"Ns",  # a key a million deep
        b"}" + b"]Ns",
        plain("x") + b"Q",
        b"(" + plain("storage") + plain("x") * 4 + b"tQ",
        b"(" + plain("storage") + name("argparse", "A") + plain("x") * 3 + b"tQ",
        storage("0", "FloatStorage", -1),
        storage("0", "FloatStorage", 1 << 60),
        storage("0", "FloatStorage", True),
        tensor(plain([]), 0, (1,), (1,)),
        tensor(STORED, -1, (1,), (1,)),
        tensor(STORED, 0, (1,), (-1,)),
        tensor(STORED, 0, (1, 1), (1,)),
        tensor(STORED, 0, (1,) * 33, (1,) * 33),
        tensor(STORED, 0, (0.5,), (1,)),
        tensor(STORED, 0, 3, (1,)),
        b"",
        b"(",
    ],
)
def test_impossible_programs_are_refused(tmp_path, value):
    path = write_zip(tmp_path / "a.pt", value, {"0": VALUES.tobytes()})
    with at_most(200):
        refused(path, "damaged pickle")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ((0, (13,), (1,)), r"\[13\] with strides \[1\] at 0 .* of 12 values"),
        ((1, (12,), (1,)), "does not fit"),
        ((0, (3, 4), (5, 1)), "does not fit"),
        ((0, (1 << 40,), (0,)), "does not fit"),
        ((12, (), ()), "does not fit"),
    ],
)
@pytest.mark.parametrize("older", [False, True])
def test_tensors_beyond_their_storage_are_refused(tmp_path, view, message, older):
    tree = tensor(STORED, *view)
    if older:
        refused(write_older(tmp_path / "a.pth", tree, {"0": VALUES}), message)
    else:
        storages = {"0": VALUES.tobytes()}
        refused(write_zip(tmp_path / "a.pt", tree, storages), message)


def test_storages_that_lie_are_refused(tmp_path):
    path, data = tmp_path / "a.pt", VALUES.tobytes()
    one = tensor(STORED, 0, (1,), (1,))
    refused(write_zip(path, one), "no entry 'data/0'")
    refused(write_zip(path, one, {"0": data[:-4]}), "has 44 bytes, expected 48")
    refused(write_zip(path, one, {"0": data * 2}), "has 96 bytes, expected 48")
    both = mapping(
        {
            "a": one,
            "b": tensor(storage("0", "HalfStorage", 12), 0, (1,), (1,)),
        }
    )
    refused(write_zip(path, both, {"0": data}), "12 values of HalfStorage and also 12")
    refused(write_older(path, both, {"0": VALUES}), "of HalfStorage and also")
    counts = {"0": 1 << 60}
    refused(write_older(path, one, {"0": VALUES}, counts), "expected 12")
    refused(write_older(path, one, {"1": VALUES}), "other storages in the list")
    refused(write_older(path, one), "other storages in the list")
    vast = tensor(storage("0", "FloatStorage", 1 << 40), 0, (1,), (1,))
    refused(write_zip(path, vast, {"0": data}), "has 48 bytes")
    refused(write_older(path, vast, {"0": VALUES}), "cut off: storage '0' ends at byte")


def test_zips_that_lie_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    count = 1 << 22
    vast = tensor(storage("0", "FloatStorage", count), 0, (1,), (1,))
    data = {"0": bytes(4 * count)}
    write_zip(path, vast, data, pack=zipfile.ZIP_DEFLATED)
    refused(path, r"entries of \d+ bytes in a file of")
    write_zip(path, plain(1), {"0": b"a"}, pack=zipfile.ZIP_BZIP2)
    refused(path, "neither stored nor deflated")
    refused(write_zip(path, plain(1), order="middle"), "byteorder is b'middle'")
    refused(write_zip(path, plain(1), more=[("any/data.pkl", "")]), "not one of torch")
    refused(write_zip(path, plain(1), more=[("b/data.pkl", "")]), "not one of torch")
    refused(write_zip(path, plain("x" * (1 << 24))), "expected 16777216")
    write_zip(path, plain(1))
    damaged = path.read_bytes().replace(plain(1) + b".", plain(2) + b".")
    path.write_bytes(damaged)
    refused(path, "'data.pkl' is damaged .*CRC")


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    refused(path, "No such file")
    refused(tmp_path, "Is a directory")
    for data in (b"", b"PK", b"torch", b"\x80\x02K\x01.", b"\x93NUMPY", bytes(100)):
        path.write_bytes(data)
        refused(path, "not a file of torch.save|cut off or damaged zip")
    with path.open("wb") as file:
        np.savez(file, a=VALUES)
    refused(path, "a zip, but not one of torch.save")


# --- random ---------------------------------------------------------------------------


@functools.cache
def sound():
    """One small file of each format, to be mutated."""
    tree = mapping(
        {key: tensor(STORED, *view[:3]) for key, view in VIEWS.items()}
        | {"args": name("argparse", "Namespace") + b")R" + plain({"a": 1}) + b"b"}
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a"
        return {
            "zip": write_zip(file, tree, {"0": VALUES.tobytes()}).read_bytes(),
            "older": write_older(file, tree, {"0": VALUES}).read_bytes(),
        }


MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["flip", "cut", "insert", "end"]),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def mutate(data, mutations):
    out = bytearray(data)
    for place, kind, value in mutations:
        at = int(place * len(out))
        if kind == "flip" and at < len(out):
            out[at] ^= value
        elif kind == "cut":
            del out[at : at + value]
        elif kind == "insert":
            out[at:at] = bytes([value])
        elif kind == "end":
            del out[at:]
    return bytes(out)


def read_or_refuse(data):
    """What is in it; None if it is refused as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        path.write_bytes(data)
        found, message = None, f"{path}: "
        with at_most(32):
            try:
                found = torch_file.read(path)
            except ValueError as error:
                message = str(error)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return found


@settings(max_examples=500, deadline=None)
@given(mutations=MUTATIONS)
def test_a_mutated_zip_is_read_rightly_or_refused(mutations):
    found = read_or_refuse(mutate(sound()["zip"], mutations))
    if found is not None:
        assert [*found] == [*VIEWS, "args"]
        for key, (*_, expected) in VIEWS.items():
            np.testing.assert_array_equal(found[key], expected)


@settings(max_examples=500, deadline=None)
@given(mutations=MUTATIONS)
def test_a_mutated_older_file_is_read_or_refused(mutations):
    read_or_refuse(mutate(sound()["older"], mutations))  # it has no checksums


PIECES = [
    *(bytes([code]) for code in b")]}(NuReatdbsol0210\x81\x92\x85\x86\x94\x93Q"),
    *map(plain, (0, 1, 7, "a", (), (1,), ([],), {"a": 1}, 1.5)),
    name("torch._utils", "_rebuild_tensor_v2"),
    name("collections", "OrderedDict"),
    name("argparse", "Namespace"),
    name("torch", "FloatStorage"),
    STORED,
    *(b"q" + bytes([k]) for k in range(3)),
    *(b"h" + bytes([k]) for k in range(3)),
]


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
def test_random_programs_leave_no_trace(pieces):
    """Nothing that a program does reaches the objects of the next."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        write_zip(path, b"".join(pieces), {"0": VALUES.tobytes()})
        read_or_refuse(path.read_bytes())
        write_zip(path, tensor(STORED, 0, (12,), (1,)), {"0": VALUES.tobytes()})
        np.testing.assert_array_equal(torch_file.read(path), VALUES)


# --- torch itself, where it is installed ----------------------------------------------


def same(found, expected):
    torch = pytest.importorskip("torch")
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    else:
        value = expected.detach()
        value = value.float() if value.dtype == torch.bfloat16 else value
        np.testing.assert_array_equal(found, value.numpy(), strict=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}],
)
def test_files_of_torch_are_read(tmp_path, options):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    base = torch.arange(24.0)
    tree = {
        "net": net.state_dict(),
        "parameter": torch.nn.Parameter(torch.randn(3, 4)),
        "transposed": torch.randn(4, 5).t(),
        "part": base[3:9],
        "columns": base.view(4, 6)[:, 1::2],
        "bfloat16": torch.randn(5).bfloat16(),
        "half": torch.randn(3).half(),
        "counter": torch.tensor(3),
        "bool": torch.tensor([True, False]),
        "uint8": torch.tensor([1, 255], dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
    }
    torch.save(tree, tmp_path / "a.pt", **options)
    same(torch_file.read(tmp_path / "a.pt"), tree)


def test_torch_reads_what_we_write(tmp_path, rng):
    torch = pytest.importorskip("torch")
    arrays = some_arrays(rng)
    torch_file.write(tmp_path / "a.pt", {"state_dict": arrays, "step": 3})
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert found["step"] == 3
    assert list(found["state_dict"]) == list(arrays)
    for key, expected in arrays.items():
        np.testing.assert_array_equal(found["state_dict"][key].numpy(), expected)
