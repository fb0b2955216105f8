"""Convolution as matrix products, against XLA's own."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
from jax import lax  # noqa: E402

from maskrcnn_edu.jax_cpu import convolve  # noqa: E402


@pytest.mark.parametrize("side, stride, padding", [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 0), (7, 2, 3), (1, 1, 1)])
@pytest.mark.parametrize("size", [(8, 11), (9, 7)])
def test_equals_the_plain_convolution_and_its_gradients(side, stride, padding, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(side, side, 3, 5)).astype(np.float32)

    def plain(x, kernel):
        strides, pads = (stride, stride), [(padding, padding)] * 2
        return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    expected, pull = jax.vjp(plain, x, kernel)
    found, pull_found = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, padding), x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    gradient = rng.normal(size=expected.shape).astype(np.float32)
    for mine, theirs in zip(pull_found(gradient), pull(gradient), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-4)
