"""The notebooks: generated from their sources, up to date, clean to look at, and running from a clean kernel."""

import base64
import io
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

jupytext = pytest.importorskip("jupytext", reason="needs the extra `book`")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))
import build  # noqa: E402

SOURCES = build.chapters()
CHAPTERS = [source for source in SOURCES if not source.stem.startswith("9")]  # 90 and on are galleries
SECONDS, BYTES = 90, 3 * 2**30
PARTS = (
    "After this chapter you can", "colab.research.google.com", "mybinder.org", "check(", "mr.widgets.", "Break it",
    "**How the others do it**", "# Exercises", "# Summary", "**Read now:**", "# Further reading",
)  # fmt: skip
RUN_AGAIN = "run `python book/build.py --stale` and commit the notebook"

each_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
each_chapter = pytest.mark.parametrize("source", CHAPTERS, ids=lambda source: source.stem)


@pytest.fixture
def stored(source):
    return nbformat.read(build.notebook_of(source), as_version=4)


def test_every_notebook_has_a_source():
    assert {path.stem for path in build.NOTEBOOKS.glob("*.ipynb")} == {source.stem for source in SOURCES}


@each_notebook
def test_cells_are_those_of_the_source(source, stored):
    def cells(notebook):
        return [(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells]

    assert cells(stored) == cells(build.read(source)), RUN_AGAIN
    nbformat.validate(stored)
    assert stored.metadata.kernelspec == build.KERNEL


@each_notebook
def test_outputs_are_not_older_than_what_they_show(source):
    assert not build.outdated(source), RUN_AGAIN


@each_notebook
def test_outputs_are_fit_to_be_read(source, stored):
    assert not build.complaints(stored, build.notebook_of(source).stat().st_size)
    assert all(cell.execution_count for cell in stored.cells if cell.cell_type == "code")


@each_chapter
def test_check_cells_agree(stored):
    said = "\n".join(o.get("text", "") for cell in stored.cells for o in cell.get("outputs", []))
    verdicts = re.findall(r"^.{24,} (exact|close|DIFFERENT) +(?:largest|shapes)", said, re.MULTILINE)
    assert verdicts and "DIFFERENT" not in verdicts


@each_chapter
def test_figures_are_captioned_and_referred_to(source, stored):
    """A still picture is followed by a caption "**Figure 5.1.** ..."; the figure is named elsewhere, too."""
    text = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "markdown")
    captions = re.findall(r"^\*\*Figure (\d+\.\d+)\.\*\*", text, re.MULTILINE)
    assert captions == [f"{int(source.stem[:2])}.{n}" for n in range(1, len(captions) + 1)]
    for number in captions:
        assert len(re.findall(rf"\bFigure {re.escape(number)}\b(?!\d)", text)) > 1, f"nothing refers to Figure {number}"
    for cell, following in zip(stored.cells, stored.cells[1:], strict=False):
        kinds = [kind for output in cell.get("outputs", []) for kind in output.get("data", {})]
        if "image/png" in kinds and not re.search(r"^mr\.widgets\.", cell.source, re.MULTILINE):
            assert following.source.startswith("**Figure "), cell.source


@each_chapter
def test_has_the_parts_of_a_chapter(source, stored):
    text = "\n".join(cell.source for cell in stored.cells)
    library = [file for name in stored.metadata["book"]["library"] for file in build.module_files(name)]
    for part in PARTS:
        assert part in text, f"{source.name} lacks {part!r}"
    links = [f"/blob/main/{file.relative_to(ROOT).as_posix()})" for file in library]
    assert any(link in text for link in links), f"{source.name} links to none of {links}"
    exercises, solutions = (
        len(re.findall(r"^\*\*\d+ \(", text, re.MULTILINE)),
        text.count("<summary>Solution</summary>"),
    )
    assert 3 <= exercises == solutions == text.count("<summary>Hint</summary>") <= 6
    assert text.count("<details>") == text.count("</details>")


def with_solutions(notebook):
    """The notebook with the code of its folded solutions as cells, each right after the text that holds it."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        folded = re.findall(r"<summary>Solution</summary>(.*?)</details>", cell.source, re.DOTALL)
        for code in re.findall(r"^```python\n(.*?)^```", "\n".join(folded), re.DOTALL | re.MULTILINE):
            cells.append(nbformat.v4.new_code_cell(code))
    notebook.cells = cells
    return notebook


@pytest.mark.book
@each_notebook
def test_runs(source, stored, tmp_path):
    """Every cell and every folded solution, from a clean kernel in another folder, in bounded time and memory.

    nbval compares what cells tagged nbval-check-output print with what is stored.
    """
    copy = tmp_path / f"{source.stem}.ipynb"
    nbformat.write(with_solutions(stored), copy)
    environment = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "PYTEST_ADDOPTS")}
    environment |= {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", tmp_path, "-p", "no:cacheprovider",
         "--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={build.CELL_TIMEOUT}", copy],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert time.monotonic() - begin <= SECONDS
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 <= BYTES  # the largest so far


def test_stored_pictures_keep_their_colours():
    """Colours of surfaces are stored exactly, however near to each other; of a photograph's each is near its own."""
    greys = np.repeat(np.arange(240, 255, dtype=np.uint8).reshape(3, 5), 40, 0).repeat(40, 1)
    chart = np.stack([greys] * 3, axis=2)
    chart[20] = np.linspace(0, 255, 600, dtype=np.uint8).reshape(200, 3)  # a line that shades off
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    for picture, most in ((chart, 0), (noise, 80)):
        Image.fromarray(picture).save(written := io.BytesIO(), "png")
        stored = build._with_palette(base64.b64encode(written.getvalue()))
        stored = Image.open(io.BytesIO(base64.b64decode(stored)))
        difference = np.abs(np.asarray(stored.convert("RGB")).astype(int) - picture)
        assert stored.mode == "P" and np.delete(difference, 20, axis=0).max() <= most
