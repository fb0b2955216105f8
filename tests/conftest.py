"""Fixtures that several tests share."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest

FIXTURES = Path(__file__).parent / "fixtures"


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


@pytest.fixture
def rng():
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)
