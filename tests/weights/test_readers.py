"""Weight files: genuine, seldom seen, damaged and oversized ones; test_pickles has those that ask for other things."""

import io
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_files import VALUES, Call, Global, Raw, Stored, as_old, as_pickle, as_zip, same, tensor

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.weights import readers
from maskrcnn_edu.weights.readers import read

GENUINE = Path(__file__).parents[1] / "fixtures" / "weights"


# Genuine files.


def genuine():
    """What fixtures/weights/make_torch.py stores."""
    shapes = {"0.weight": (3, 2, 2, 2), "0.bias": (3,), "1.weight": (3,), "1.bias": (3,)}
    shapes |= {"1.running_mean": (3,), "1.running_var": (3,), "1.num_batches_tracked": ()}
    values = {
        name: (np.arange(np.prod(shape)).reshape(shape) + 100 * number).astype("f4" if shape else "i8")
        for number, (name, shape) in enumerate(shapes.items())
    }
    rows = np.arange(24, dtype="f4").reshape(4, 6)
    values |= {"parameter": np.arange(4, dtype="f4"), "rows": rows, "columns": rows.T, "inner": rows[1:3, ::2]}
    values |= {"scalar": np.array(7), "empty": np.empty((0, 3), "f4")}
    for dtype in ("float64", "float16", "bfloat16", "int8", "int16", "int32", "uint8", "bool"):
        values[dtype] = np.array([0, 1, 2, 100]).astype("float32" if dtype == "bfloat16" else dtype)
    return values


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_what_torch_wrote(name):
    found = read(GENUINE / name)
    same(found, genuine())
    assert not any(value.flags.writeable for value in found.values())
    assert np.shares_memory(found["rows"], found["columns"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_what_numpy_pickles(reads, protocol, core):
    rows = np.arange(6.0).reshape(2, 3)
    state = {"c": rows, "fortran": np.asfortranarray(rows), "big": rows.astype(">f4"), "one": np.float32(3)}
    state |= {"none": np.empty((0, 4), "i8"), "flags": np.array([True, False]), "half": rows.astype("f2")}
    state |= {"again": state["c"], "u4": np.array([2**32 - 1], "u4")}
    written = pickle.dumps({"model": state, "__author__": "somebody", "matching_heuristics": True}, protocol)
    for module in (b".multiarray", b".numeric"):
        name, wanted = (b"numpy._core" + module, core + module)
        written = written.replace(b"c" + name + b"\n", b"c" + wanted + b"\n")  # GLOBAL of protocols 2 and 3
        written = written.replace(b"\x8c" + bytes([len(name)]) + name, b"\x8c" + bytes([len(wanted)]) + wanted)
        assert core == b"numpy._core" or name not in written
    # A frame's length is for reading ahead only, so that a shorter name within does no harm.
    same(reads(written), {**state, "big": state["big"].astype("f4")})


def test_arrays_that_python_2_pickled(reads):
    def text(raw):
        return Raw(b"U" + bytes([len(raw)]) + raw)  # SHORT_BINSTRING: bytes there, latin-1 text here

    dtype = Call(Global("numpy", "dtype"), text(b"f4"), 0, 1, state=(3, text(b"<"), None, None, None, -1, -1, 0))
    blank = (Global("numpy", "ndarray"), (0,), text(b"b"))
    state = (1, (6,), dtype, False, text(VALUES.tobytes()))
    array = Call(Global("numpy.core.multiarray", "_reconstruct"), *blank, state=state)
    pairs = Call(Global("collections", "OrderedDict"), [[text(b"w"), array]])
    same(reads(as_pickle({text(b"blobs"): pairs})), {"w": VALUES})


def test_keras_hdf5(tmp_path):
    with h5py.File(tmp_path / "w.bin", "w") as file:
        file.attrs["layer_names"] = [b"conv1", b"empty"]
        file["conv1/conv1/kernel:0"] = VALUES.reshape(2, 3)
        file["conv1/conv1/bias:0"] = VALUES.astype(">f8")
        file.create_dataset("bn/gamma:0", data=np.zeros((4, 4), "f2"), chunks=(2, 2))
        file["step"], file["flag"] = np.int64(3), np.array([True])
        file.create_group("empty")
    expected = {"bn/gamma:0": np.zeros((4, 4), "f2"), "conv1/conv1/bias:0": VALUES.astype("f8")}
    expected |= {"conv1/conv1/kernel:0": VALUES.reshape(2, 3), "flag": np.array([True]), "step": np.array(3)}
    same(read(tmp_path / "w.bin"), expected)
    with h5py.File(tmp_path / "model.bin", "w") as file:
        file["model_weights/a/kernel:0"] = VALUES
        file["optimizer_weights/a/kernel:0"] = VALUES
    same(read(tmp_path / "model.bin"), {"a/kernel:0": VALUES})


# Files written here: what torch writes seldom.


@pytest.mark.parametrize("write", [as_zip, as_old])
@pytest.mark.parametrize("protocol", [2, 4])
def test_windows_on_storages(reads, write, protocol):
    whole = Stored("7")
    state = OrderedDict(a=tensor(whole), b=tensor(whole, (2,), (2,), 1), c=tensor(whole, (), (), 5))
    state |= dict(d=tensor(whole, (3, 2), (1, 3)), e=tensor(whole, (1, 2), (10**15, 3)), f=tensor(whole, (0,), (1,), 6))
    expected = dict(a=VALUES.reshape(2, 3), b=VALUES[1:5:2], c=VALUES[5], d=VALUES.reshape(2, 3).T)
    same(reads(write(state, protocol)), expected | dict(e=VALUES[None, ::3], f=VALUES[:0]))


def test_big_endian_archive_and_one_without_the_record(reads):
    bits = (VALUES.view("u4") >> 16).astype("u2")
    state = {"f4": tensor(), "bf16": tensor(Stored("1", bits, "BFloat16Storage"))}
    for content in (as_zip(state), as_zip(state, order="big"), as_zip(state, byteorder=None)):
        same(reads(content), {"f4": VALUES.reshape(2, 3), "bf16": VALUES.reshape(2, 3)})
    deflated = as_zip(state, compression=zipfile.ZIP_DEFLATED)
    same(reads(deflated), {"f4": VALUES.reshape(2, 3), "bf16": VALUES.reshape(2, 3)})


def test_every_kind_of_storage(reads):
    kinds = {"Double": "f8", "Float": "f4", "Half": "f2", "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1"}
    kinds |= {"Byte": "u1", "Bool": "?"}
    state = {name: tensor(Stored(name, VALUES.astype(kind), f"{name}Storage")) for name, kind in kinds.items()}
    same(reads(as_zip(state)), {name: VALUES.astype(kind).reshape(2, 3) for name, kind in kinds.items()})


def test_a_bool_byte_is_normalised(reads):
    raw = np.array([0, 1, 2, 255, 0, 9], np.uint8)
    found = reads(as_zip({"w": tensor(Stored("0", raw, "BoolStorage"))}))["w"]
    assert found.view(np.uint8).max() == 1 and found.ravel().tolist() == [False, True, True, True, False, True]


def test_wrappers_and_metadata(reads):
    state = Call(Global("collections", "OrderedDict"), state={"_metadata": OrderedDict(version=2)})
    other = {"step": 3, "note": "x", "rate": 0.1, "done": True, "none": None, "tags": {"a"}, "more": [1, {"b": b"x"}]}
    size = Call(Global("torch", "Size"), (1, 2))
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), tensor(), True, OrderedDict())
    weights = {"w": parameter, **other, "size": size, "void": b"", "state": state}
    for nested in (weights, {"model": weights, "optimizer": {0: tensor()}}, {"state_dict": weights}, {"x": weights}):
        same(reads(as_zip({**nested, **other})), {"w": VALUES.reshape(2, 3)})
    same(reads(as_zip({"a": {"model": weights}})), {"w": VALUES.reshape(2, 3)})


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"model": {"w": tensor()}, "state_dict": {"w": tensor()}}, "'model', 'state_dict'"),
        ({"a": {"w": tensor()}, "b": {"w": tensor()}}, "'a', 'b'.* save the wanted one by itself"),
        ({"w": tensor(), "extra": [tensor()]}, "inside 'extra'"),
        ({"w": tensor(), "extra": Stored("1")}, "inside 'extra'"),
        ({0: tensor()}, "under numbers"),
        ([tensor()], "holds a list"),
        (tensor(), "holds a Tensor"),
        ({"step": 1}, "no tensor"),
        ({"a": {"b": {"c": {"d": {"w": tensor()}}}}}, "more than 4 mappings"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unclear_contents_are_named(refuses, part, said):
    refuses(as_zip(part), said)


# Zip archives.


def archive_of(*members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def test_other_archives_are_named(refuses):
    refuses(archive_of(("config.json", "{}"), ("model.weights.h5", b"")), r"open it with keras\.saving\.load_model")
    refuses(archive_of(("a.npy", b"")), "without a torch state_dict")
    refuses(archive_of(("a/data.pkl", b""), ("b/data.pkl", b"")), "without a torch state_dict")
    refuses(as_zip({"w": tensor()}, **{"constants.pkl": b""}), "TorchScript")
    refuses(as_zip({"w": tensor()}, byteorder=b"medium"), "download it again")
    with pytest.warns(UserWarning, match="Duplicate name"):
        refuses(archive_of(("a/data.pkl", b""), ("a/data.pkl", b"")), "holds a name twice")


def test_archives_that_unpack_to_too_much_are_refused(refuses, monkeypatch):
    bomb = Stored("0", np.zeros(10**6, np.float32))
    refuses(as_zip({"w": tensor(bomb)}, compression=zipfile.ZIP_DEFLATED), "would unpack to 40.* without compression")
    content = as_zip({"w": tensor()})
    # The central directory says where a member is, and may say it of several: many times the same bytes.
    monkeypatch.setattr(readers, "MAX_RATIO", 10**9)
    huge = bytearray(content)
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"weights/data/0"))
    huge[at + 20 : at + 28] = struct.pack("<II", 10**6, 10**6)
    refuses(bytes(huge), "overlap")
    monkeypatch.setattr(readers, "MAX_BYTES", 400)
    refuses(content, "larger than 400 bytes")
    refuses(as_zip({"w": tensor(bomb)}, compression=zipfile.ZIP_DEFLATED), "larger than 400 bytes")


def test_missing_and_damaged_members_are_refused(refuses):
    content = as_zip({"w": tensor()})
    refuses(as_zip({"w": tensor()}, **{"data/0": None}), "has no weights/data/0")
    refuses(content.replace(VALUES.tobytes(), VALUES[::-1].tobytes()), "CRC-32.*download it again")
    flagged = bytearray(content)
    flagged[content.index(b"PK\x01\x02") + 8] |= 1
    refuses(bytes(flagged), "encrypted")
    method = bytearray(content)
    method[content.index(b"PK\x01\x02") + 10] = 99
    refuses(bytes(method), "cannot be read")


# HDF5.


def test_hdf5_that_leads_elsewhere_is_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = VALUES
    layout = h5py.VirtualLayout((6,), "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "secret", (6,))
    (tmp_path / "raw").write_bytes(VALUES.tobytes())
    ways = {
        "external": lambda group: group.__setitem__("x", h5py.ExternalLink("other.h5", "/secret")),
        "soft": lambda group: group.__setitem__("x", h5py.SoftLink("/w")),
        "virtual": lambda group: group.create_virtual_dataset("x", layout),
        "raw": lambda group: group.create_dataset("x", (6,), "f4", external=[(tmp_path / "raw", 0, 24)]),
        "weights": lambda group: group.file.__setitem__("model_weights", h5py.ExternalLink("other.h5", "/")),
    }
    for name, make in ways.items():
        path = tmp_path / f"{name}.bin"
        with h5py.File(path, "w") as file:
            file["w"] = VALUES
            make(file.create_group("group"))
        with pytest.raises(InputError, match=rf"{name}\.bin .*(/x|/model_weights)"):
            read(path)


@pytest.mark.parametrize(
    ("said", "make"),
    [
        ("object", lambda file: file.create_dataset("x", data="text")),
        ("object", lambda file: file.create_dataset("x", (2,), h5py.vlen_dtype("f4"))),
        ("S3", lambda file: file.create_dataset("x", data=np.array([b"abc"]))),
        ("complex", lambda file: file.create_dataset("x", data=np.ones(2, "c8"))),
        (r"\[", lambda file: file.create_dataset("x", data=np.zeros(2, [("a", "f4")]))),
        ("plain numbers", lambda file: file.create_dataset("x", data=h5py.Empty("f4"))),
        ("h5repack -f NONE", lambda file: file.create_dataset("x", data=np.zeros(10**6), compression="gzip")),
        ("h5repack -f NONE", lambda file: file.create_dataset("x", data=np.zeros(10), fletcher32=True)),
        ("unpack", lambda file: file.create_dataset("x", (10**7,), "f4")),
        ("unpack", lambda file: file.create_dataset("x", (10**9, 10**9), "f4", chunks=(10, 10))),
        ("unpack", lambda file: file.create_dataset("x", (5,), "f4", chunks=(10**8,), maxshape=(None,))),
    ],
)
def test_hdf5_of_other_things_is_refused(tmp_path, said, make):
    with h5py.File(tmp_path / "w.bin", "w") as file:
        make(file)
    with pytest.raises(InputError, match=said):
        read(tmp_path / "w.bin")


def test_a_damaged_chunk_size_allocates_nothing(refuses, tmp_path):
    """HDF5 allocates as many bytes as a chunk's entry states: up to 4 GiB, and more to unpack it."""
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("x", data=VALUES, chunks=(6,))
    content = (tmp_path / "w.h5").read_bytes()
    entry = content.index(b"\x18\0\0\0\0\0\0\0", content.index(b"TREE\x01"))  # 24 bytes, no filter left out
    refuses(content[:entry] + b"\x18\0\0\x7f" + content[entry + 4 :], "claims more bytes for /x")


def test_an_hdf5_group_inside_itself_ends(tmp_path):
    with h5py.File(tmp_path / "w.bin", "w") as file:
        file["group/w"] = VALUES
        file["group/group"] = file["group"]
    same(read(tmp_path / "w.bin"), {"group/w": VALUES})


# Damage.


def test_missing_empty_and_other_files(refuses, tmp_path):
    with pytest.raises(InputError, match="There is no weight file .*nowhere"):
        read(tmp_path / "nowhere.pth")
    with pytest.raises(InputError, match="There is no weight file"):
        read(tmp_path)
    for content in (
        b"",
        b"\x80",
        b"<!doctype html>",
        b"version https://git-lfs",
        b"PK\x05\x06" + bytes(18),
        b"\x80\x09x",
    ):
        refuses(content, "neither a torch, Detectron2 nor HDF5")


def small():
    with h5py.File(file := io.BytesIO(), "w") as made:
        made["a/kernel:0"] = VALUES
    return {
        "zip": as_zip({"w": tensor(), "b": tensor(Stored("1"), (2,), (2,))}),
        "old": as_old({"w": tensor(), "b": tensor(Stored("1"), (2,), (2,))}),
        "pickle": pickle.dumps({"model": {"w": VALUES.reshape(2, 3), "b": VALUES[:4:2]}}, 2),
        "hdf5": file.getvalue(),
    }


SMALL = small()


@pytest.mark.parametrize("kind", SMALL)
def test_truncated_files_are_refused(tmp_path, kind):
    content = SMALL[kind]
    path = tmp_path / "weights.bin"
    for length in {*range(0, len(content), max(1, len(content) // 200)), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="weights.bin"):
            read(path)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_flipped_bits_give_the_arrays_or_an_input_error(tmp_path_factory, kind):
    """Only the zip archive has checksums: elsewhere a flip among the numbers is one among the numbers read."""
    path = tmp_path_factory.mktemp("flipped") / "weights.bin"
    content = SMALL[kind]
    path.write_bytes(content)
    expected = read(path)

    @settings(max_examples=250, deadline=None)
    @given(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=3, unique=True))
    def flip(bits):
        damaged = bytearray(content)
        for bit in bits:
            damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = read(path)
        except InputError as error:
            assert str(path) in str(error)
            return
        if kind == "zip":
            same(found, expected)
        assert found and all(isinstance(value, np.ndarray) for value in found.values())

    flip()


def test_reading_needs_no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert len(read(GENUINE / "torch_zip.pth")) == 21
