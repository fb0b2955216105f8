"""The files that ship with the library: small trained weights and what belongs to them."""

from pathlib import Path

from maskrcnn_edu.errors import InputError

_HERE = Path(__file__).resolve().parent


def files(name: str) -> Path:
    """Path of a shipped file, in a checkout, an editable install and an installed wheel alike.

    Raises InputError with what there is if `name` is not among it.
    """
    folder = _HERE / "data"  # in a wheel
    if not folder.is_dir():
        folder = _HERE.parent / "data"  # in a checkout
    shipped = sorted(path.name for path in folder.glob("*") if path.is_file())
    if name not in shipped:
        raise InputError(f"No file {name!r} ships with maskrcnn_edu; there is {', '.join(shipped) or 'none'}.")
    return folder / name
