"""Downloads that can be gone on with, and archives that are unpacked whole or not at all."""

import os
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from maskrcnn_edu.errors import InputError

PATIENCE = 30  # seconds that a server may stay silent
BLOCK = 2**20  # bytes


def download(url, path, flaw=lambda path: None, progress=None):
    """Fetches a file; it gets its name once it is whole.

    What arrives lies beside it under a name of its own, and a download that broke off goes on from there.

    Args:
        flaw: a function of a path that says what is wrong with the file, or None; a file with a flaw is removed.
        progress: called with the bytes that are there and the bytes in all (None if the server does not say).

    Raises OSError or ValueError, with what went wrong.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    there = part.stat().st_size if part.exists() else 0
    try:
        _receive(url, part, there, progress)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # "range not satisfiable": what is there is the whole file, or none of it
            raise
        if error.headers.get("Content-Range") != f"bytes */{there}":
            _receive(url, part, 0, progress)
    wrong = flaw(part)
    if wrong is not None:
        part.unlink()
        raise ValueError(f"what arrived is not the published file: {wrong}")
    os.replace(part, path)


def _receive(url, part, there, progress):
    """Fetches what follows the first `there` bytes, or everything where the server does not do parts."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        goes_on = getattr(response, "status", None) == 206
        there = there if goes_on else 0
        length = response.headers.get("Content-Length")
        total = there + int(length) if length else None
        if total:
            _check_space(part.parent, total - there)
        with open(part, "ab" if goes_on else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                there += len(block)
                if progress:
                    progress(there, total)
    if total not in (None, there):
        raise ValueError(f"only {there} of {total} bytes arrived; try again to go on from there")


def _check_space(folder, needed):
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{folder} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed")


def unpack(archive, directory):
    """Unpacks a zip file aside, checksums and all, and then moves what is not there yet into `directory`.

    Raises InputError: no zip file, a damaged one, too little space; a member that is a link or lies outside.
    """
    directory = Path(directory)
    try:
        with (
            zipfile.ZipFile(archive) as opened,
            tempfile.TemporaryDirectory(prefix=".unpacking-", dir=directory) as aside,
        ):
            members = opened.infolist()
            for member in members:
                _check_member(archive, member)
            _check_space(directory, sum(member.file_size for member in members))
            opened.extractall(aside)
            _move(Path(aside), directory)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{archive}: the archive cannot be unpacked ({error}); remove it and try again.") from error


def _check_member(archive, member):
    """Archives may hold names that lead elsewhere, and links."""
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
        raise InputError(f"{archive}: the archive's member {member.filename!r} leaves its directory; do not trust it.")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{archive}: the archive's member {member.filename!r} is a link or device; do not trust it.")


def _move(source, target):
    """Moves the entries of a folder; what is there already stays, folders are merged."""
    for entry in sorted(source.iterdir()):
        there = target / entry.name
        if entry.is_dir() and there.is_dir():
            _move(entry, there)
        elif not there.exists():
            os.replace(entry, there)
