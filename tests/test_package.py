"""What ships: files found by name; a wheel that works alone in an empty environment."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {".png", ".jpg", ".jpeg"}


def run(*command, cwd):
    """Run a command away from this checkout's settings; its standard output, or a failure that shows all it said."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_files_finds_what_ships():
    import maskrcnn_edu as mr

    path = Path(mr.files("shapes.keras"))
    assert path.is_file()
    assert path.stat().st_size <= 10 * 2**20


def test_files_names_what_ships_when_the_name_is_unknown():
    import maskrcnn_edu as mr
    from maskrcnn_edu.errors import InputError

    with pytest.raises(InputError, match=r"no_such_file\.keras.*shapes\.keras"):
        mr.files("no_such_file.keras")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source distribution, as a release is."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=out)
    assert len(list(out.glob("*.tar.gz"))) == 1
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_data_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"maskrcnn_edu", f"maskrcnn_edu-{wheel.name.split('-')[1]}.dist-info"}
    assert "maskrcnn_edu/data/shapes.keras" in names
    assert "maskrcnn_edu/datasets/__init__.py" in names
    shipped = {p.relative_to(ROOT).as_posix() for p in (ROOT / "data").rglob("*") if p.is_file()}
    assert {f"maskrcnn_edu/{name}" for name in shipped} <= set(names)
    notebooks = {f"maskrcnn_edu/notebooks/{p.name}" for p in (ROOT / "book" / "notebooks").glob("*.ipynb")}
    assert notebooks and notebooks == {name for name in names if "notebook" in name}
    assert not [name for name in names if "test" in name.lower() or name.endswith(".pyc")]


@pytest.mark.slow
def test_wheel_runs_the_demo_in_an_empty_environment(wheel, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    said = run(scripts / "maskrcnn-edu", "demo", cwd=empty)
    pictures = [p for p in empty.rglob("*") if p.suffix.lower() in PICTURES]
    assert pictures and all(p.stat().st_size > 0 for p in pictures)
    assert any(name in said for name in ("circle", "square", "triangle")), said
    run(scripts / "maskrcnn-edu", "book", "--no-open", cwd=empty)
    copied = {p.name for p in (empty / "maskrcnn_book").iterdir()}
    assert copied == {p.name for p in (ROOT / "book" / "notebooks").glob("*.ipynb")}
