"""The functions that a chapter builds give what the library's functions of the same names give.

A chapter's function is held to the library's when one of the modules that the chapter's header names has a public
function or class of that name. CASES says how to call it; a new name without a case fails with its name.
"""

import ast
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from maskrcnn_edu import Config

BOOK = Path(__file__).resolve().parents[2] / "book"
SOURCES = sorted((BOOK / "src").glob("[0-9]*.py"))


def boxes(rng, *shape):
    """Boxes in an image of 100 pixels; every seventh is empty, as padding is."""
    corner = rng.uniform(0, 70, (*shape, 2))
    found = np.concatenate([corner, corner + rng.uniform(1, 40, (*shape, 2))], axis=-1)
    found.reshape(-1, 4)[::7] = 0
    return found.astype("float32")


def suppressed(class_nms, rng):
    scores = np.where(rng.uniform(size=(2, 90)) < 0.2, 0, rng.uniform(size=(2, 90))).astype("float32")
    index, found = class_nms(boxes(rng, 2, 90), scores, rng.integers(1, 4, (2, 90)), 0.4, 50)
    found = np.asarray(found)
    return np.where(found > 0, np.asarray(index), -1), found  # an unused slot may point anywhere


# By module and name: a function of (the chapter's or the library's function, random numbers), which calls it and
# returns what must agree. Random numbers are the same for both.
CASES = {
    "boxes.area": lambda area, rng: area(boxes(rng, 2, 30)),
    "boxes.intersection": lambda intersection, rng: intersection(boxes(rng, 2, 30), boxes(rng, 2, 20)),
    "boxes.iou": lambda iou, rng: iou(boxes(rng, 2, 30), boxes(rng, 2, 20)),
    "boxes.giou": lambda giou, rng: giou(boxes(rng, 2, 30), boxes(rng, 2, 20)),
    "boxes.encode": lambda encode, rng: encode(boxes(rng, 2, 30), boxes(rng, 2, 30), (10, 10, 5, 5)),
    "boxes.decode": lambda decode, rng: decode(rng.normal(0, 9, (40, 4)), boxes(rng, 40), (10, 10, 2, 2)),
    "boxes.MAX_LOG_SIZE": lambda value, rng: value,
    "boxes.nms": lambda nms, rng: [
        nms(boxes(rng, 3, 60), rng.uniform(size=(3, 60)), 0.5),
        nms(boxes(rng, 3, 60), rng.integers(0, 4, (3, 60)), 0.3, classes=rng.integers(0, 3, (3, 60))),
    ],
    "boxes.greedy_keep": lambda greedy_keep, rng: greedy_keep(rng.uniform(size=(3, 40, 40)) < 0.1),
    "boxes.class_nms": suppressed,
    # 04
    "anchors.cell_anchors": lambda cell_anchors, rng: cell_anchors(rng.uniform(8, 64), rng.uniform(0.3, 3, 5)),
    "anchors.level_anchors": lambda level_anchors, rng: level_anchors((5, 7), 8, 32, rng.uniform(0.3, 3, 3)),
    "anchors.anchors_by_level": lambda anchors_by_level, rng: [
        *anchors_by_level((96, 160), Config.tiny()),
        *anchors_by_level((224, 352), Config()),  # P6 does not divide these
    ],
    "anchors.pyramid_anchors": lambda pyramid_anchors, rng: pyramid_anchors((224, 352), Config()),
}


def definitions(source):
    """The code of a chapter without what it runs: imports, constants, functions and classes, as one module."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    kept = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom))]
    kept += [node for node in tree.body if isinstance(node, ast.Assign) and _name(node).isupper()]
    return ast.Module(sorted(kept, key=lambda node: node.lineno), [])


def _name(node):
    target = node.targets[0] if isinstance(node, ast.Assign) else node
    return getattr(target, "name", getattr(target, "id", ""))


def library_of(source):
    """The modules that the header of a chapter names."""
    header = re.search(r"^# {5}library: \[(.*)\]$", source.read_text(encoding="utf-8"), re.MULTILINE)
    return [name.strip() for name in header[1].split(",")] if header else []


def pairs():
    """(chapter, module.name) for each name that a chapter and one of its library modules both define."""
    for source in SOURCES:
        names = {_name(node) for node in definitions(source).body} - {""}
        for module in library_of(source):
            library = importlib.import_module(f"maskrcnn_edu.{module}")
            for name in sorted(names):
                mine = getattr(library, name, None)
                if mine is not None and getattr(mine, "__module__", library.__name__) == library.__name__:
                    yield source, f"{module}.{name}"


PAIRS = list(pairs())


@pytest.mark.parametrize(("source", "name"), PAIRS, ids=[f"{source.stem}-{name}" for source, name in PAIRS])
def test_chapter_and_library_agree(source, name):
    assert name in CASES, f"{source.name} builds {name}: add to CASES how to call it."
    chapter = {"__name__": source.stem}
    exec(compile(definitions(source), source.name, "exec"), chapter)
    module, attribute = name.rsplit(".", 1)
    theirs = getattr(importlib.import_module(f"maskrcnn_edu.{module}"), attribute)
    mine, theirs = (CASES[name](f, np.random.default_rng(1)) for f in (chapter[attribute], theirs))
    for one, other in zip(*(x if isinstance(x, (tuple, list)) else [x] for x in (mine, theirs)), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_chapter_builds_something_of_its_library(source):
    if source.stem[0] == "9" or source.stem.startswith("00"):
        pytest.skip("shows, and builds nothing")
    assert any(chapter == source for chapter, _ in PAIRS)
