"""Pickles in weight files: what they may not ask for, and that nothing of it runs."""

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_files import (
    VALUES,
    Call,
    Global,
    Raw,
    Stored,
    as_old,
    as_pickle,
    as_zip,
    pickled,
    same,
    tensor,
)

from maskrcnn_edu.weights import pickles, readers

FORMATS = {"zip": as_zip, "old": as_old, "pickle": as_pickle}

NAMES = [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("numpy", "load")]
NAMES += [
    ("__builtin__", "eval"),
    ("torch", "load"),
    ("torch.nn", "Linear"),
    ("codecs", "encode"),
    ("__main__", "Mine"),
]
NAMES += [("collections", "OrderedDict.fromkeys"), ("numpy", "ndarray.tofile"), ("torch._utils", "os.system")]
NAMES += [("functools", "partial"), ("numpy._core.multiarray", "_reconstruct.__class__")]


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("named", NAMES, ids=".".join)
def test_other_names_are_refused_and_nothing_runs(refuses, tmp_path, write, protocol, named):
    canary = tmp_path / "canary"
    run = Call(Global(*named), f"touch {canary}")
    for part in (
        {"w": run},
        {"w": Call(Global("collections", "OrderedDict"), state={"_metadata": run})},
        Global(*named),
    ):
        refuses(write(part, protocol), f"asks for '{'.'.join(named)}'.*nothing was run")
    assert not canary.exists()


def mark(*parts):
    """The value of instructions and of parts between them, as one part of a pickle."""
    return Raw(b"".join(part if isinstance(part, bytes) else pickled(part)[0][2:-1] for part in parts))


ORDERED, F4 = Global("collections", "OrderedDict"), Call(Global("numpy", "dtype"), "f4", False, True)
OBJECTS = Call(Global("numpy", "dtype"), "O8", False, True)
RECORDS = Call(Global("numpy", "dtype"), "V8", False, True)
FIELDS = Call(Global("numpy", "dtype"), "f4", False, True, state=(3, "<", None, ("a",), {"a": (F4, 0)}, 4, 4, 0))
NDARRAY, BLANK = Global("numpy", "ndarray"), Global("numpy.core.multiarray", "_reconstruct")


def array(dtype=F4, shape=(1,), raw=b"\0\0\0\0", subtype=NDARRAY):
    return Call(BLANK, subtype, (0,), "b", state=(1, shape, dtype, False, raw))


def deep(levels=50_000):
    """A tuple within a tuple within ...: to hash or print it would overflow the stack of C."""
    return b")" + b"\x85" * levels


def laughs(levels=100):
    """A tuple of twice the same tuple of twice ...: to hash or print it would take forever."""
    return b")r\0\0\0\1" + b"j\0\0\0\1\x86r\0\0\0\1" * levels


HOSTILE = {
    "object array": (array(OBJECTS), "dtype 'O8'"),
    "record array": (array(RECORDS), "dtype 'V8'"),
    "array of fields": (array(FIELDS), "records or objects"),
    "array of another class": (array(subtype=ORDERED), "not numpy.ndarray"),
    "array of a list": (array(raw=[1]), "not plain numbers"),
    "array without dtype": (array(dtype="f4"), "not plain numbers"),
    "array larger than its bytes": (array(shape=(2,)), "shape .2,. with 4 bytes"),
    "array of negative side": (array(shape=(-1,)), "not plain numbers"),
    "array of impossible side": (array(shape=(2**63,)), "not plain numbers"),
    "array without numbers": (Call(BLANK, NDARRAY, (0,), "b"), "without its numbers"),
    "array with wrong arguments": (Call(BLANK), "TypeError"),
    "unknown order": (Call(Global("numpy.core.numeric", "_frombuffer"), b"", F4, (0,), "K"), "unknown order"),
    "dtype of a deep tuple": (Call(Global("numpy", "dtype"), mark(deep())), "tuple in place of a name"),
    "dtype of a wide tuple": (Call(Global("numpy", "dtype"), mark(laughs())), "tuple in place of a name"),
    "attributes of a name": (mark(ORDERED, {"__reduce__": 1}, b"b"), "sets the attributes of a _Name"),
    "attributes of a list": (mark(b"]}b"), "sets the attributes of a list"),
    "attributes of a tensor": (Call(Global("torch", "Size"), (1,), state={"a": 1}), "sets the attributes of a tuple"),
    "codec": (Call(Global("_codecs", "encode"), "x", "rot13"), "another purpose"),
    "bytes of a length": (Call(Global("builtins", "bytes"), 2**40), "another purpose"),
    "set of a number": (Call(Global("builtins", "set"), 5), "set of a int"),
    "call of a storage class": (Call(Global("torch", "FloatStorage"), 2**40), "'torch.?FloatStorage', which cannot"),
    "call of text": (mark(b"U\x01x)R"), "cannot be called"),
    "call with a list": (mark(ORDERED, b"]R"), "cannot be called"),
    "object of a class": (mark(ORDERED, b")\x81"), "instruction NEWOBJ"),
    "object of a class, keywords": (mark(ORDERED, b")}\x92"), "instruction NEWOBJ_EX"),
    "object, protocol 0": (mark(b"(ios\nsystem\n"), "instruction INST"),
    "object, protocol 1": (mark(b"(", ORDERED, b"o"), "instruction OBJ"),
    "extension code": (mark(b"\x82\x01"), "instruction EXT1"),
    "extension code, 2 bytes": (mark(b"\x83\x01\0"), "instruction EXT2"),
    "extension code, 4 bytes": (mark(b"\x84\x01\0\0\0"), "instruction EXT4"),
    "persistent id of protocol 0": (mark(b"Px\n"), "instruction PERSID"),
    "buffer outside": (mark(b"\x97"), "instruction NEXT_BUFFER"),
    "name that is no text": (mark(b"U\x02os", deep(), b"\x93"), "tuple in place of a name"),
    "name of a wide tuple": (mark(b"U\x02os", laughs(), b"\x93"), "tuple in place of a name"),
    "deep key": (mark(b"}", deep(), b"K\x01s"), "names are not text"),
    "wide key": (mark(b"}", laughs(), b"K\x01s"), "names are not text"),
    "wide set": (mark(b"\x8f(", laughs(), b"\x90", b"0"), "instruction POP"),
    "name twice": (mark(b"}K\x01K\x02sK\x01K\x02s"), "names 1 twice"),
    "items of a list": (mark(b"]K\x01K\x02s"), "names are not text"),
    "list of a mapping": (mark(b"}K\x01a"), "appends to what is no list"),
    "missing memo": (mark(b"h\x09"), "KeyError"),
    "empty stack": (mark(b"0" * 9), "instruction POP"),
    "tuple of nothing": (mark(b"\x87\x87"), "IndexError"),
    "unknown instruction": (mark(b"\xff"), "ValueError"),
    "length beyond the file": (mark(b"\x8e" + struct.pack("<Q", 2**62)), "download it again"),
    "negative length": (mark(b"\x8b" + struct.pack("<i", -5)), "download it again"),
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_refused(refuses, write, case):
    part, said = HOSTILE[case]
    refuses(write({"w": part}), said)


def test_containers_that_are_deep_wide_or_hold_themselves_do_no_harm(reads, refuses):
    for harmless in (mark(deep()), mark(laughs()), mark(b"}q\x01K\x01h\x01s"), mark(b"]q\x01h\x01a")):
        same(reads(as_zip({"harmless": harmless, "w": tensor()})), {"w": VALUES.reshape(2, 3)})
    refuses(as_zip(mark(b"}q\x01K\x01h\x01s")), "no tensor")
    refuses(as_zip({"a": mark(b"}q\x01K\x01h\x01s"), "model": mark(b"}" + b"K\x01}" * 9 + b"s" * 9)}), "no tensor")


def test_large_memo_numbers_take_no_memory(reads):
    """CPython's own unpickler allocates a table of twice the number."""
    part = mark(b"}r\xff\xff\xff\xff")
    same(reads(as_zip({"m": part, "w": tensor()})), {"w": VALUES.reshape(2, 3)})


def test_a_value_copied_again_and_again_is_refused(refuses):
    encode = pickled(Global("_codecs", "encode"))[0][2:-1]
    text = b"X" + struct.pack("<I", 10_000) + b"x" * 10_000 + b"q\x01"
    again = b"]" + text + b"a" + encode + b"q\x02" + b"a" + b"h\x02h\x01U\x06latin1\x86Ra" * 100
    refuses(as_zip({"w": Raw(again)}), "many times its size")


def test_programs_without_end_are_refused(refuses, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_STEPS", 1000)
    refuses(as_zip({"w": Raw(b"]" + b"K\x01a" * 500)}), "more than 1000 instructions")
    monkeypatch.setattr(readers, "MAX_PROGRAM", 1000)
    refuses(as_zip({"w": "x" * 2000}), "data.pkl of at most 1000 bytes")


PIDS = {
    "other word": ("module", Global("torch", "FloatStorage"), "0", "cpu", 6),
    "other class": ("storage", Global("torch", "Size"), "0", "cpu", 6),
    "no class": ("storage", "FloatStorage", "0", "cpu", 6),
    "key of a number": ("storage", Global("torch", "FloatStorage"), 0, "cpu", 6),
    "negative count": ("storage", Global("torch", "FloatStorage"), "0", "cpu", -6),
    "count of text": ("storage", Global("torch", "FloatStorage"), "0", "cpu", "6"),
    "count of truth": ("storage", Global("torch", "FloatStorage"), "0", "cpu", True),
    "too short": ("storage", Global("torch", "FloatStorage")),
    "a number": 5,
    "text": "storage",
    "a view": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, ("1", 0, 6)),
    "outside": ("storage", Global("torch", "FloatStorage"), "../../data.pkl", "cpu", 6),
    "more than there is": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 7),
    "less than there is": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 5),
    "far more": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 2**62),
    "other size": ("storage", Global("torch", "DoubleStorage"), "0", "cpu", 6),
    "complex": ("storage", Global("torch", "ComplexFloatStorage"), "0", "cpu", 6),
}


@pytest.mark.parametrize("pid", PIDS.values(), ids=PIDS)
def test_impossible_storages_are_refused(refuses, pid):
    refuses(as_zip({"w": tensor(Stored("0", pid=pid))}), "download it again|no weights need|before torch 0.4")
    if isinstance(pid, tuple):
        refuses(as_old({"w": tensor(Stored("0", pid=pid))}), "download it again|no weights need|before torch 0.4")


def test_the_older_formats_counts_agree_with_the_description(refuses):
    fewer, beyond = (tensor(Stored("0", count=count), (5,), (1,)) for count in (5, 2**40))
    refuses(as_old({"w": fewer}), "does not hold the 5 elements of the storage '0'")
    stated = as_old({"w": beyond}).replace(struct.pack("<q", 6), struct.pack("<q", 2**40))
    refuses(stated, f"does not hold the {2**40} elements of the storage '0'")


def test_one_storage_in_two_ways_is_refused(refuses):
    twice = {"a": tensor(), "b": tensor(Stored("0", kind="IntStorage"))}
    refuses(as_zip(twice), "two ways")
    refuses(as_old(twice), "two ways")
    refuses(as_pickle({"a": tensor()}), "lacks the tensor storage '0'")


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((7,), (1,), 0), ((6,), (1,), 1), ((2,), (6,), 0), ((7,), (0,), 0), ((2**40, 2**40), (0, 0), 0), ((), (), 6)]
    + [((-1,), (1,), 0), ((2,), (-1,), 1), ((2,), (1,), -1), ((2,), (1, 1), 0), ((True,), (1,), 0), ((2.0,), (1,), 0)]
    + [((1,) * 65, (1,) * 65, 0), ((2**63,), (1,), 0), (5, 1, 0), ((0, 2**62, 2**62), (1, 1, 1), 0), ("ab", "cd", 0)],
    ids=str,
)
def test_windows_outside_their_storage_are_refused(refuses, shape, strides, offset):
    part = {"w": tensor(None, shape, strides, offset)}
    refuses(as_zip(part), "download it again")
    refuses(as_old(part), "download it again")


def test_negated_tensors_and_tensors_of_nothing_are_refused(refuses):
    refuses(as_zip({"w": tensor(rest=(False, None, {"neg": True}))}), "negative bit")
    refuses(as_zip({"w": tensor("no storage")}), "impossible tensor")
    refuses(as_zip({"w": Call(Global("torch._utils", "_rebuild_parameter"), 1, True, None)}), "no tensor")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_program_gives_inert_values_or_an_exception(program):
    try:
        pickles.run(io.BytesIO(b"\x80\x02" + program + b"."), len(program))
    except Exception as error:
        assert not isinstance(error, RecursionError)
