"""Weight files written by hand, without torch: what the tests beside this file read.

The layouts are those of torch/serialization.py; `pickletools` documents the instructions.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np

VALUES = np.arange(6, dtype=np.float32)


class Global:
    """A class or function that a pickle names."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError("only its name is written")


class Call:
    """What a pickle writes as function(*args), with state for BUILD where given."""

    def __init__(self, function, *args, state=None):
        self.made = (function, args) if state is None else (function, args, state)

    def __reduce_ex__(self, protocol):
        return self.made


class Raw:
    """Instructions written as they are; they leave one value on the stack."""

    def __init__(self, program):
        self.program = program


class Stored:
    """A storage outside the pickle; `pid` replaces its persistent id."""

    def __init__(self, key, values=VALUES, kind="FloatStorage", pid=None, count=None):
        self.key, self.values = key, values
        count = values.size if count is None else count
        self.pid = pid or ("storage", Global("torch", kind), key, "cpu", count)


class Writer(pickle._Pickler):
    """Pickles the classes above; `old` adds the view of torch's older format to storages."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file, protocol=2, old=False):
        super().__init__(file, protocol)
        self.old, self.storages = old, {}

    def persistent_id(self, part):
        if not isinstance(part, Stored):
            return None
        self.storages[part.key] = part.values
        return part.pid + (None,) if self.old else part.pid

    def save_name(self, part):
        if self.proto < 4:
            self.write(f"c{part.module}\n{part.name}\n".encode())
        else:
            self.save(part.module)
            self.save(part.name)
            self.write(pickle.STACK_GLOBAL)

    def save_raw(self, part):
        self.write(part.program)

    dispatch[Global] = save_name
    dispatch[Raw] = save_raw


def pickled(part, protocol=2, old=False):
    """The pickle and the storages that it refers to."""
    file = io.BytesIO()
    writer = Writer(file, protocol, old)
    writer.dump(part)
    return file.getvalue(), writer.storages


def tensor(storage=None, shape=(2, 3), strides=(3, 1), offset=0, rest=(False, OrderedDict())):
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, Stored("0") if storage is None else storage, offset, shape, strides, *rest)


def as_zip(part, protocol=2, order="little", compression=zipfile.ZIP_STORED, **extra):
    """torch's zip archive; `extra` adds or replaces members (None leaves one out)."""
    program, storages = pickled(part, protocol)
    members = {"data.pkl": program, "byteorder": order.encode(), "version": b"3\n"}
    for key, values in storages.items():
        members[f"data/{key}"] = values.astype(values.dtype.newbyteorder(order)).tobytes()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in {**members, **extra}.items():
            if content is not None:
                archive.writestr(f"weights/{name}", content)
    return file.getvalue()


def as_old(part, protocol=2):
    """torch's older format."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    program, storages = pickled(part, protocol, old=True)
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, facts))
    tail = b"".join(struct.pack("<q", values.size) + values.tobytes() for values in storages.values())
    return head + program + pickle.dumps(list(storages), 2) + tail


def as_pickle(part, protocol=2):
    return pickled(part, protocol)[0]


def same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.asarray(value).dtype and found[name].dtype.isnative, name
        np.testing.assert_array_equal(found[name], value, strict=True)
