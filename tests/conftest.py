"""Fixtures that several tests share."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"


@pytest.fixture(scope="session")
def oracle():
    """torchvision's and Detectron2's operators on awkward inputs (fixtures/make_ops.py), in our conventions.

    Boxes become y1 x1 y2 x2, feature maps channels-last, box pairs of coder weights (dy, dx, dh, dw).
    """
    with np.load(FIXTURES / "ops.npz") as recorded:
        values = dict(recorded)
    for name, value in values.items():
        if value.ndim == 2 and value.shape[1] == 4:
            values[name] = value[:, [1, 0, 3, 2]]
        if value.ndim == 4 and name.startswith("roi"):
            values[name] = value.transpose(0, 2, 3, 1)
    return values


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The book's static site, built with warnings as errors: the folder of its pages."""
    pytest.importorskip("sphinx", reason="needs the extra `book`")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-d",
        out / "doctrees",
        ROOT / "book",
        out / "html",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return out / "html"


@pytest.fixture
def rng():
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)
