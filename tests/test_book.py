"""`check`, and the command that hands a reader the notebooks without ever touching a reader's own."""

import subprocess
import sys

import numpy as np
import pytest

from maskrcnn_edu import book, cli


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        ([1.0, 2.0], [1.0, 2.0], "exact      largest difference 0"),
        (np.ones(3), np.ones(3) + 2e-6, "close      largest difference 2e-06"),
        ([True, False], [True, True], "DIFFERENT  largest difference 1"),
        ([1.0, np.nan], [1.0, np.nan], "exact"),
        ([1.0, np.nan], [1.0, 2.0], "DIFFERENT"),
        ([[1.0]], [1.0], "DIFFERENT  shapes (1, 1) and (1,)"),
        (np.zeros((0, 4)), np.zeros((0, 4)), "exact      largest difference 0"),
    ],
)
def test_check_prints_how_far_apart(mine, theirs, said, capsys):
    book.check("name", mine, theirs)
    assert said in capsys.readouterr().out


def test_copies_every_notebook(tmp_path, capsys):
    assert cli.main(["book", str(tmp_path / "a" / "b"), "--no-open"]) == 0
    here = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert here == {path.name for path in book._notebooks().glob("*.ipynb")} and here
    assert f"{len(here)} notebooks copied, 0 were there already" in capsys.readouterr().out


def test_never_overwrites_a_readers_work(tmp_path, capsys):
    cli.main(["book", str(tmp_path), "--no-open"])
    first = min(tmp_path.iterdir())
    first.write_text("mine")
    capsys.readouterr()
    assert cli.main(["book", str(tmp_path), "--no-open"]) == 0
    assert first.read_text() == "mine"
    said = capsys.readouterr().out
    assert "0 notebooks copied" in said and f"differ from the book's: {first.name}." in said


def test_says_what_is_missing_where_jupyterlab_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(book.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["book", str(tmp_path)]) == 2
    assert "pip install 'maskrcnn_edu[book]'" in capsys.readouterr().err
    assert list(tmp_path.glob("*.ipynb"))


def test_opens_jupyterlab_in_the_folder(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(book.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(subprocess, "run", lambda command, check: called.append(command))
    assert cli.main(["book", str(tmp_path)]) == 0
    assert called == [[sys.executable, "-m", "jupyterlab", str(tmp_path)]]


def test_a_file_in_the_way_is_a_sentence(tmp_path, capsys):
    path = tmp_path / "taken"
    path.write_text("")
    assert cli.main(["book", str(path), "--no-open"]) == 2
    assert "taken" in capsys.readouterr().err and path.read_text() == ""
