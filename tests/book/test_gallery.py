"""The gallery shows every plot and widget, each in a cell that draws it."""

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="needs the extra `book`")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book"))
import build  # noqa: E402

import maskrcnn_edu as mr  # noqa: E402

NUMBERS = {"COLOURS", "FILL", "colour", "measure_weights", "read_log", "view_of"}  # they draw nothing themselves


@pytest.fixture(scope="module")
def cells():
    """The code cells of the stored gallery."""
    stored = nbformat.read(build.NOTEBOOKS / "90_gallery.ipynb", as_version=4)
    return [cell for cell in stored.cells if cell.cell_type == "code"]


def kinds(cells, name):
    """What the outputs of the cells hold in which `name` stands, such as {"image/png"}."""
    used = [cell for cell in cells if re.search(rf"\bmr\.{re.escape(name)}\b", cell.source)]
    assert used, f"90_gallery.py does not show mr.{name}"
    return {kind for cell in used for output in cell.outputs for kind in output.get("data", {"text": ""})}


@pytest.mark.parametrize("name", mr.plots.__all__)
def test_90_shows_every_plot(cells, name):
    assert kinds(cells, f"plots.{name}") & ({"text", "image/png"} if name in NUMBERS else {"image/png"})


@pytest.mark.parametrize("name", mr.widgets.__all__)
def test_90_shows_every_widget(cells, name):
    found = kinds(cells, f"widgets.{name}")
    assert {"image/png", build.VIEW} <= found  # a picture for GitHub; alive on the site
