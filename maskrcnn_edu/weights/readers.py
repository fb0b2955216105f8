"""Published weight files read into NumPy arrays by name, without torch and without running what they hold.

Four formats, told apart by their first bytes: torch's zip archive, torch's older sequence of pickles, the pickled
arrays of Detectron2's model zoo, and Keras' HDF5. `pickles` says why reading a pickle here is safe.
"""

import io
import math
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.weights.pickles import AGAIN, ELSEWHERE, Array, Refused, Storage, Tensor, as_numbers, run

MAX_BYTES = 8 * 2**30  # of all tensors of a file; the largest published Mask R-CNN has under 1 GiB
MAX_RATIO = 100  # unpacked bytes for each byte of the file; torch and Keras store their files without compression
MAX_PROGRAM = 64 * 2**20  # bytes of data.pkl, which describes the tensors and holds none
MAX_WRAPPERS = 4  # mappings around the state_dict

# torch/serialization.py, `_legacy_save`.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001

_STATE_KEYS = ("model", "state_dict", "model_state_dict")
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every tensor of a published weight file, by name: `.pth` (zip or older), Detectron2's `.pkl`, Keras' `.h5`.

    The content tells the format; the suffix is not looked at. Names and shapes are the file's own (torch's kernels are
    out, in, height, width). The arrays are read-only, in native byte order, may share memory and have any strides;
    bfloat16 becomes float32, other dtypes stay. Of a checkpoint such as {"model": .., "optimizer": ..}, the mapping
    "model", "state_dict" or "model_state_dict" is returned, or else the only one that holds tensors; of an HDF5 file of
    a whole Keras model, the group "model_weights". Entries that hold no tensor are dropped.

    Raises InputError for a file that is missing, in another format, damaged, cut short, unpacks to an absurd size or
    asks for anything but tensors, arrays and containers: nothing that a file names is ever imported or called.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no weight file {path}: check the path, or download the file first.")
    try:
        with open(path, "rb") as file:
            if _size(file) > MAX_BYTES:
                raise Refused(f"is larger than {MAX_BYTES} bytes, as no Mask R-CNN is; give the file of the weights")
            arrays = _reader(file)(file)
    except Refused as error:
        raise InputError(f"{path} {_sentence(error)}.") from None
    except PermissionError:
        raise InputError(f"{path} cannot be opened: give yourself the permission to read it.") from None
    except Exception as error:  # what a damaged file makes pickletools, zipfile, NumPy and HDF5 raise has no end
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} cannot be read ({_sentence(reason)}): {AGAIN}.") from error
    if not arrays:
        raise InputError(f"{path} holds no tensor: check that it is the file of the weights.")
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _sentence(said):
    """One line; a long name of the file's loses its middle."""
    line = " ".join(str(said).split())
    return line if len(line) < 400 else f"{line[:200]} ... {line[-180:]}"


def _reader(file: BinaryIO) -> Callable[[BinaryIO], dict[str, np.ndarray]]:
    head = file.read(8)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip
    if head == _HDF5_MAGIC:
        return _read_hdf5
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:  # the instruction PROTO
        return _read_pickle
    raise Refused(f"begins with {head!r} and is neither a torch, Detectron2 nor HDF5 weight file; download it again")


# torch's zip archive: NAME/data.pkl describes the tensors, NAME/data/KEY holds a storage (torch/serialization.py,
# `_save`; caffe2/serialize/inline_container.h).


def _read_zip(file):
    with zipfile.ZipFile(file) as archive:
        members = _members(archive, _size(file))
        root = _torch_root(members)
        program = _member(archive, members, f"{root}data.pkl", MAX_PROGRAM)
        described = run(io.BytesIO(program), len(program))
        order = {b"little": "<", b"big": ">"}[_member(archive, members, f"{root}byteorder", 16, b"little")]

        def fetch(storage):
            raw = _member(archive, members, f"{root}data/{storage.key}", storage.nbytes)
            return as_numbers(_whole(raw, storage), storage.kind, order)

        return _arrays(described, fetch)


def _members(archive, size):
    """The archive's members by name, once their sizes are known to be sane."""
    members = {info.filename: info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise Refused(f"is a zip archive that holds a name twice; {AGAIN}")
    packed = sum(info.compress_size for info in members.values())
    _check_unpacked(sum(info.file_size for info in members.values()), size)
    if packed > size:
        raise Refused(f"is a zip archive whose members overlap, as no weights do; {ELSEWHERE}")
    return members


def _check_unpacked(unpacked, size):
    if unpacked > min(MAX_BYTES, MAX_RATIO * size):
        raise Refused(
            f"would unpack to {unpacked} bytes from {size}: weights are stored without compression; {ELSEWHERE}"
        )


def _torch_root(members):
    """The folder of torch's archive, with its slash; says what other zip archives are."""
    if "model.weights.h5" in members and "config.json" in members:
        raise Refused("is a whole Keras model, not a weight file; open it with keras.saving.load_model")
    found = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(found) != 1:
        raise Refused("is a zip archive without a torch state_dict; give the .pth, .pkl or .h5 file of the weights")
    root = found[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise Refused("is a TorchScript program; save its state_dict() with torch.save and read that")
    return root


def _member(archive, members, name, limit, default=None):
    """A member's bytes, checked against its CRC-32 by `zipfile`."""
    if name not in members and default is not None:
        return default
    if name not in members or members[name].file_size > limit:
        raise Refused(f"has no {name} of at most {limit} bytes; {AGAIN}")
    return archive.read(members[name])


# The older format: pickles of a magic number, a version, facts about the machine, the object and the storages' keys;
# then each storage as its count (int64) and its elements, little-endian (torch/serialization.py, `_legacy_load`).
# Detectron2's files are one pickle of NumPy arrays (detectron2/checkpoint/detection_checkpoint.py).


def _read_pickle(file):
    size = _size(file)
    described = run(file, size)
    starts, storages = {}, {}
    if type(described) is int and described == _TORCH_MAGIC:
        if run(file, size) != _TORCH_PROTOCOL:
            raise Refused(f"has an unknown version of torch's older format; {AGAIN}")
        run(file, size)
        described = run(file, size, storages)
        starts = _starts(file, size, run(file, size), storages)

    def fetch(storage):
        if storage.key not in starts:
            raise Refused(f"lacks the tensor storage {storage.key!r}; {AGAIN}")
        file.seek(starts[storage.key])
        return as_numbers(_whole(file.read(storage.nbytes), storage), storage.kind)

    return _arrays(described, fetch)


def _starts(file, size, keys, storages):
    """Where in the file each storage's elements begin, by key."""
    starts = {}
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in starts:
            raise Refused(f"holds a storage that no tensor uses; {AGAIN}")
        count = int.from_bytes(file.read(8), "little")
        starts[key] = file.tell()
        if count != storages[key].count or starts[key] + storages[key].nbytes > size:
            raise Refused(f"does not hold the {storages[key].count} elements of the storage {key!r}; {AGAIN}")
        file.seek(storages[key].nbytes, os.SEEK_CUR)
    return starts


def _size(file):
    return os.fstat(file.fileno()).st_size


def _whole(raw, storage):
    if len(raw) != storage.nbytes:
        raise Refused(f"holds {len(raw)} of the {storage.nbytes} bytes of the storage {storage.key!r}; {AGAIN}")
    return raw


# From what a pickle describes to arrays by name.


def _arrays(described, fetch: Callable[[Storage], np.ndarray]):
    """The arrays of the state_dict in `described`; `fetch` gives a storage's elements and is asked once for each."""
    values, arrays = {}, {}
    for name, part in _state_dict(described).items():
        if isinstance(part, Tensor):
            key = part.storage.key
            if key not in values:
                values[key] = fetch(part.storage)
            arrays[name] = _window(name, part, values[key])
        elif isinstance(part, Array):
            arrays[name] = _filled(name, part)
        elif _holds_tensors(part):
            raise Refused(f"holds tensors inside {name!r}, beside others; save one mapping from name to tensor")
    return arrays


def _state_dict(described):
    """The mapping from name to tensor in a checkpoint's nested mappings."""
    for _ in range(MAX_WRAPPERS):
        if not isinstance(described, dict):
            raise Refused(f"holds a {type(described).__name__}, not a mapping from name to tensor; save a state_dict")
        named = [name for name, part in described.items() if isinstance(part, Tensor | Array)]
        if named:
            if all(isinstance(name, str) for name in named):
                return described
            raise Refused("holds tensors under numbers instead of names; save a state_dict")
        inner = {name: part for name, part in described.items() if isinstance(part, dict) and _holds_tensors(part)}
        chosen = [name for name in inner if name in _STATE_KEYS] or list(inner)
        if not chosen:
            return {}
        if len(chosen) > 1:
            raise Refused(f"holds several sets of tensors ({str(chosen)[1:-1][:200]}); save the wanted one by itself")
        described = inner[chosen[0]]
    raise Refused(f"holds its tensors inside more than {MAX_WRAPPERS} mappings; save a state_dict")


def _parts(described: Any):
    """Everything inside nested containers, each object once."""
    seen, waiting = set(), [described]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict | list | tuple):
            if id(part) not in seen:
                seen.add(id(part))
                waiting.extend(part.values() if isinstance(part, dict) else part)
        else:
            yield part


def _holds_tensors(described):
    return any(isinstance(part, Tensor | Array | Storage) for part in _parts(described))


def _window(name, tensor, values):
    """The tensor's view of its storage's elements (N,), refused where it would reach outside."""
    shape, strides = tensor.shape, tensor.strides
    count = math.prod(shape)
    last = tensor.offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if count > len(values) or (count and last >= len(values)):
        raise Refused(f"claims more elements for {name!r} {shape} than its storage holds ({len(values)}); {AGAIN}")
    if not count:
        return np.empty(shape, values.dtype)
    steps = [step * values.itemsize if side > 1 else 0 for side, step in zip(shape, strides, strict=True)]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], shape, steps, writeable=False)


def _filled(name, array):
    if array.value is None:
        raise Refused(f"describes the array {name!r} without its numbers; {AGAIN}")
    return array.value.view()


# Keras' HDF5: datasets in groups, named by their path.


def _read_hdf5(file):
    import h5py  # comes with Keras

    with h5py.File(file.name, "r") as root:
        _check_links(root)
        whole_model = isinstance(root.get("model_weights"), h5py.Group)
        datasets = _datasets(root["model_weights"] if whole_model else root, h5py, _size(file))
        _check_unpacked(sum(_unpacked(dataset) for dataset in datasets.values()), _size(file))
        return {name: _dataset(dataset) for name, dataset in datasets.items()}


def _datasets(top, h5py, size):
    """The datasets under a group by path; none is opened through a link that leaves its place."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Group):
            _check_links(item)
        elif isinstance(item, h5py.Dataset):
            _check_dataset(item, size)
            found[name] = item

    _check_links(top)
    top.visititems(visit)
    return found


def _check_links(group):
    """Refuse soft and external links: they name other places, in this file and in others."""
    for name in group:
        kind = type(group.get(name, getlink=True)).__name__
        if kind != "HardLink":
            raise Refused(f"holds a link to another place at {group.name}/{name}; {ELSEWHERE}")


def _check_dataset(dataset, size):
    """Refuse what would make HDF5 open other files, load filters, or allocate what a damaged number says."""
    if dataset.external or dataset.is_virtual:
        raise Refused(f"keeps {dataset.name} in another file; {ELSEWHERE}")
    if dataset.dtype.kind not in "fiub" or dataset.dtype.itemsize > 8 or dataset.shape is None:
        raise Refused(f"holds {dataset.name} of dtype {dataset.dtype}, not plain numbers; {ELSEWHERE}")
    if dataset.id.get_create_plist().get_nfilters():
        raise Refused(f"holds {dataset.name} compressed, as no published weights are; repack it with h5repack -f NONE")
    if dataset.id.get_storage_size() > size:
        raise Refused(f"claims more bytes for {dataset.name} than it has; {AGAIN}")


def _unpacked(dataset):
    """Bytes of memory to read a dataset: itself, or one chunk where that is larger."""
    return max(dataset.size, math.prod(dataset.chunks or (0,))) * dataset.dtype.itemsize


def _dataset(dataset):
    return np.asarray(dataset[()], dataset.dtype.newbyteorder("="))
