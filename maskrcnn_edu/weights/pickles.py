"""Pickles read without running them: tensors, arrays and containers, and nothing else.

A pickle is a program for a small stack machine; the comments of Python's `pickletools` document its instructions.
GLOBAL fetches any function by name and REDUCE calls it, so an ordinary unpickler runs whatever a file asks for. The
machine here has no functions to fetch: a name stays text, "calling" one of the few in `_CALLS` builds the inert
description of a tensor or an array, and every other name is refused. Nothing of the file is imported, called, hashed
(except text and integers as keys) or given attributes.
"""

import math
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

MAX_STEPS = 1_000_000  # instructions in one pickle; a tensor takes about 30, the largest model zoo files 30 000
MAX_COPIES = 4  # bytes and items that a pickle may have copied, in multiples of its own length

AGAIN = "the file is damaged or cut short; download it again"
ELSEWHERE = "nothing was run; take weights from their publisher's own address"

# The storage classes of torch by the dtype of their elements (torch/storage.py, `_dtype_to_storage_type_map`).
_STORAGES = {
    f"{module} {name}Storage": kind
    for module in ("torch", "torch.cuda")
    for name, kind in {
        "Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": "bf16", "Long": "i8", "Int": "i4", "Short": "i2",
        "Char": "i1", "Byte": "u1", "Bool": "b1",
    }.items()
}  # fmt: skip
_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}

# Instructions that push their argument, and those that push a constant.
_LITERALS = set(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Refused(ValueError):
    """What is wrong with a weight file: the rest of a sentence that begins with the file's path."""


@dataclass(frozen=True, eq=False)
class Storage:
    """`count` elements of one `kind` (a NumPy code or bf16) that the file keeps outside the pickle under `key`."""

    key: str
    kind: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * item_size(self.kind)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A window on a storage; `offset` and `strides` count elements. Its numbers are not checked against the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(eq=False)
class Array:
    """A NumPy array of the file; `value` is None until the pickle has filled it."""

    value: np.ndarray | None = None


@dataclass(frozen=True)
class _Name:
    """A class or function that the file names, as "module name"."""

    text: str


@dataclass(eq=False)
class _Dtype:
    code: str
    order: str = "<"


def item_size(kind: str) -> int:
    """Bytes of one element of a storage of this kind."""
    return int(kind.lstrip("bfiu")) if kind != "bf16" else 2


def run(program: BinaryIO, size: int, storages: dict[str, Storage] | None = None) -> Any:
    """The object that the pickle at the position of `program` describes; reads up to its end and no further.

    `size` (bytes) bounds what the pickle may have copied; `storages` is filled with those it refers to. The object is
    made of dict, list, tuple, numbers, text, bytes, `Tensor` and `Array`; sets are lists, the attributes of an
    OrderedDict are dropped. Raises Refused for names and instructions that weights do not need; what is damaged may
    raise any other Exception.
    """
    machine = _Machine(MAX_COPIES * size, {} if storages is None else storages)
    for count, (instruction, arg, _) in enumerate(pickletools.genops(program)):
        if count == MAX_STEPS:
            raise Refused(f"holds a pickle of more than {MAX_STEPS} instructions, far from any weights; {ELSEWHERE}")
        machine.step(instruction.name, arg)
    return machine.pop()


def _counts(values: Any) -> bool:
    """Whether these are sizes: at most 32 integers from 0 that fit in 63 bits."""
    short = isinstance(values, tuple | list) and len(values) <= 32
    return short and all(type(value) is int and 0 <= value < 2**63 for value in values)


class _Machine:
    """The stack machine of `pickle` without its functions. A MARK sets the stack aside and begins a new one."""

    def __init__(self, budget, storages):
        self.stack, self.marks, self.memo = [], [], {}
        self.budget, self.storages = budget, storages

    def step(self, name, arg):
        if name in _LITERALS:
            self.push(arg)
        elif name in _CONSTANTS:
            self.push(_CONSTANTS[name])
        else:
            self.work(name, arg)

    def work(self, name, arg):
        """The instructions that do more than push, but text ones, extension codes, and making objects of classes."""
        match name:
            case "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.push(self.memo[arg])
            case "MARK":
                self.marks.append(self.stack)
                self.stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.push(tuple(reversed([self.pop() for _ in range(int(name[-1]))])))
            case "TUPLE":
                self.push(tuple(self.since_mark()))
            case "EMPTY_DICT":
                self.push({})
            case "EMPTY_LIST" | "EMPTY_SET":
                self.push([])
            case "FROZENSET":
                self.push(self.since_mark())
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.set_items([(key, value)])
            case "SETITEMS":
                items = self.since_mark()
                self.set_items(zip(items[::2], items[1::2], strict=True))
            case "APPEND":
                self.extend([self.pop()])
            case "APPENDS" | "ADDITEMS":
                self.extend(self.since_mark())
            case "GLOBAL":
                self.push(_admitted(arg))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                self.push(_admitted(f"{_text(module)} {_text(name)}"))
            case "REDUCE":
                args, function = self.pop(), self.pop()
                self.push(self.call(function, args))
            case "BUILD":
                self.build(self.pop(), self.stack[-1])
            case "BINPERSID":
                self.push(self.storage(self.pop()))
            case "PROTO" | "FRAME" | "STOP":
                pass  # a pickle's version, a hint for buffering, its end
            case _:
                raise Refused(f"holds the pickle instruction {name}, which no weights need; {ELSEWHERE}")

    def push(self, value):
        self.stack.append(value)

    def pop(self):
        return self.stack.pop()

    def since_mark(self):
        items, self.stack = self.stack, self.marks.pop()
        return items

    def extend(self, items):
        target = self.stack[-1]
        if not isinstance(target, list):
            raise Refused(f"appends to what is no list; {AGAIN}")
        target.extend(items)

    def set_items(self, items: Iterable):
        target = self.stack[-1]
        for key, value in items:
            if not isinstance(target, dict) or type(key) not in (str, int):
                raise Refused(f"holds a mapping whose names are not text; {AGAIN}")
            if key in target:
                raise Refused(f"names {key!r} twice; {AGAIN}")
            target[key] = value

    def call(self, function, args):
        call = _CALLS.get(function.text) if isinstance(function, _Name) else None
        if call is None or not isinstance(args, tuple):
            raise Refused(f"calls {getattr(function, 'text', 'a value')!r}, which cannot be called; {ELSEWHERE}")
        return call(self, *args)

    def build(self, state, target):
        """Give `target` its state; an OrderedDict's attributes (`_metadata` of a state_dict) are dropped."""
        if isinstance(target, Array) and target.value is None:
            version, shape, dtype, fortran, raw = state  # numpy, ndarray.__setstate__
            target.value = self.array(raw, dtype, shape, "F" if fortran else "C")
        elif isinstance(target, _Dtype):
            if state[1] not in ("<", ">", "|") or any(part is not None for part in state[2:5]):
                raise Refused(f"holds arrays of records or objects, which no weights need; {ELSEWHERE}")
            target.order = state[1]
        elif not isinstance(target, dict):
            raise Refused(f"sets the attributes of a {type(target).__name__}, which no weights need; {ELSEWHERE}")

    def storage(self, persistent_id):
        """torch's storages outside the pickle: ("storage", class, key, location, count), older files with a view."""
        word, kind, key, location, count, *view = persistent_id
        if word != "storage" or not isinstance(kind, _Name) or kind.text not in _STORAGES:
            raise Refused(f"refers to an object other than a tensor storage, which no weights need; {ELSEWHERE}")
        if not isinstance(key, str) or not _counts([count]):
            raise Refused(f"describes an impossible storage; {AGAIN}")
        if view not in ([], [None]):
            raise Refused("was saved before torch 0.4 with views of storages; load it with torch and save it again")
        storage = self.storages.setdefault(key, Storage(key, _STORAGES[kind.text], count))
        if (storage.kind, storage.count) != (_STORAGES[kind.text], count):
            raise Refused(f"describes the storage {key!r} in two ways; {AGAIN}")
        return storage

    def spend(self, amount):
        """Refuse a pickle that has the same large value copied again and again."""
        self.budget -= amount
        if self.budget < 0:
            raise Refused(f"unpacks to many times its size, as no weights do; {ELSEWHERE}")

    def array(self, raw, dtype, shape, order):
        if isinstance(raw, str):
            raw = self.encode(raw, "latin1")  # Python 2's bytes
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray) or not _counts(shape):
            raise Refused(f"holds an array that is not plain numbers, which no weights need; {ELSEWHERE}")
        kind = np.dtype(dtype.order.replace("|", "<") + dtype.code)
        if math.prod(shape) * kind.itemsize != len(raw):
            raise Refused(f"holds an array of shape {tuple(shape)} with {len(raw)} bytes; {AGAIN}")
        self.spend(len(raw))
        return as_numbers(raw, kind).reshape(shape, order=order)

    def encode(self, text, encoding="utf-8"):
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "iso-8859-1"):
            raise Refused(f"calls _codecs.encode for another purpose than bytes; {ELSEWHERE}")
        self.spend(len(text))
        return text.encode("latin1")

    def empty_bytes(self, *args):
        if args:
            raise Refused(f"calls bytes for another purpose than an empty value; {ELSEWHERE}")
        return b""

    def items(self, values):
        if not isinstance(values, list | tuple):
            raise Refused(f"makes a set of a {type(values).__name__}; {AGAIN}")
        self.spend(len(values))
        return list(values)

    def ordered(self, items=()):
        """OrderedDict(), which SETITEMS fills; Python 2 gives the items as pairs."""
        self.spend(len(items))
        self.push({})
        self.set_items(items)
        return self.pop()

    def tensor(self, storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
        """torch._utils._rebuild_tensor and _rebuild_tensor_v2; metadata holds the conjugate and negative bits."""
        if not isinstance(storage, Storage) or not (_counts([offset]) and _counts(shape) and _counts(strides)):
            raise Refused(f"describes an impossible tensor; {AGAIN}")
        if metadata:
            raise Refused("holds a tensor with conjugate or negative bit; load it with torch and save its values")
        return Tensor(storage, offset, tuple(shape), tuple(strides))

    def parameter(self, data, requires_grad=True, hooks=None):
        if not isinstance(data, Tensor):
            raise Refused(f"describes a parameter that is no tensor; {AGAIN}")
        return data

    def size(self, shape):
        return shape

    def blank(self, subtype, shape, code):
        if subtype != _Name("numpy ndarray"):
            raise Refused(f"makes an array of a class that is not numpy.ndarray; {ELSEWHERE}")
        return Array()

    def scalar(self, dtype, raw):
        return Array(self.array(raw, dtype, (), "C"))

    def from_buffer(self, raw, dtype, shape, order):
        if order not in ("C", "F"):
            raise Refused(f"holds an array of unknown order; {AGAIN}")
        return Array(self.array(raw, dtype, shape, order))

    def dtype(self, code, align=False, copy=True):
        if _text(code) not in _DTYPES:
            raise Refused(f"holds an array of dtype {code[:20]!r}, which no weights need; {ELSEWHERE}")
        return _Dtype(code)


_CALLS = {
    "collections OrderedDict": _Machine.ordered,
    "torch Size": _Machine.size,
    "torch._utils _rebuild_tensor": _Machine.tensor,
    "torch._utils _rebuild_tensor_v2": _Machine.tensor,
    "torch._utils _rebuild_parameter": _Machine.parameter,
    "numpy dtype": _Machine.dtype,
    "_codecs encode": _Machine.encode,
    **{f"{module} bytes": _Machine.empty_bytes for module in ("__builtin__", "builtins")},
    **{f"{module} {kind}": _Machine.items for module in ("__builtin__", "builtins") for kind in ("set", "frozenset")},
}
for _core in ("numpy.core", "numpy._core"):  # before and from NumPy 2
    _CALLS[f"{_core}.multiarray _reconstruct"] = _Machine.blank
    _CALLS[f"{_core}.multiarray scalar"] = _Machine.scalar
    _CALLS[f"{_core}.numeric _frombuffer"] = _Machine.from_buffer
_ADMITTED = {*_CALLS, *_STORAGES, "numpy ndarray"}


def _text(value):
    """A value of the file that goes into a sentence: others could be too deep or too large to print or to hash."""
    if not isinstance(value, str):
        raise Refused(f"has a {type(value).__name__} in place of a name; {AGAIN}")
    return value


def _admitted(text):
    if text not in _ADMITTED:
        named = ".".join(text.split(" ", 1))[:100]
        raise Refused(f"asks for {named!r}, which no weights need; {ELSEWHERE}")
    return _Name(text)


def as_numbers(raw: bytes, kind: np.dtype | str, order: str = "<") -> np.ndarray:
    """The numbers in `raw` (a whole number of elements): (N,), in native byte order; bf16 becomes float32."""
    if isinstance(kind, np.dtype):
        dtype = kind
    else:
        dtype = np.dtype(order + ("u2" if kind == "bf16" else kind))
    if dtype.kind == "b":
        return np.frombuffer(raw, np.uint8) != 0  # a byte other than 0 and 1 would be no valid bool
    numbers = np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="), copy=False)
    if kind == "bf16":
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers
