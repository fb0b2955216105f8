"""The book beside the library: its notebooks for `maskrcnn-edu book`, and the line that its check cells print."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from maskrcnn_edu.errors import InputError

_HERE = Path(__file__).resolve().parent


def check(name, mine, theirs):
    """Prints whether two arrays, yours and the library's, are exactly equal, close, or different, and by how much.

    Close is within float32's rounding: 1e-5 plus 1e-4 of the value. Arrays of any shape, tensors and lists are taken.
    """
    import numpy as np

    mine, theirs = np.asarray(mine), np.asarray(theirs)
    if mine.shape != theirs.shape:
        print(f"{name:<24} DIFFERENT  shapes {mine.shape} and {theirs.shape}")
        return
    mine, theirs = mine.astype("float64"), theirs.astype("float64")
    if np.array_equal(mine, theirs, equal_nan=True):
        verdict = "exact"
    else:
        verdict = "close" if np.allclose(mine, theirs, rtol=1e-4, atol=1e-5, equal_nan=True) else "DIFFERENT"
    print(f"{name:<24} {verdict:<10} largest difference {np.max(np.abs(mine - theirs), initial=0):.1g}")


def open_book(options):
    """The command: copies the notebooks to options.folder, says what it did, and opens them unless options.no_open.

    Raises InputError where JupyterLab is to open them and is not installed.
    """
    folder = Path(options.folder)
    copied, kept = copy_notebooks(folder)
    print(f"{folder}: {copied} notebooks copied, {len(kept)} were there already.")
    changed = [path.name for path in kept if path.read_bytes() != (_notebooks() / path.name).read_bytes()]
    if changed:
        print(f"Left as they are, since they differ from the book's: {', '.join(changed)}.")
    if options.no_open:
        return
    if importlib.util.find_spec("jupyterlab") is None:
        raise InputError("JupyterLab, which opens the notebooks, is not installed: pip install 'maskrcnn_edu[book]'.")
    subprocess.run([sys.executable, "-m", "jupyterlab", str(folder)], check=False)


def copy_notebooks(folder: Path):
    """Copies the notebooks that `folder` lacks; returns how many, and the paths of those that were there."""
    folder.mkdir(parents=True, exist_ok=True)
    copied, kept = 0, []
    for source in sorted(_notebooks().glob("*.ipynb")):
        target = folder / source.name
        if target.exists():
            kept.append(target)
            continue
        part = target.with_name(f".{source.name}.part")  # nothing half-written under the real name
        part.write_bytes(source.read_bytes())
        os.replace(part, target)
        copied += 1
    return copied, kept


def _notebooks():
    folder = _HERE / "notebooks"  # in a wheel
    return folder if folder.is_dir() else _HERE.parent / "book" / "notebooks"  # in a checkout
