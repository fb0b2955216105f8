"""Convolution for JAX on a CPU: the same sums as matrix products, where XLA's own code is slow.

XLA has fast convolutions for GPUs. On a CPU it computes the gradient of a kernel three times slower than a matrix
product would, and 1x1 convolutions without recognising that they are one (README, "Measured"). `convolve` mends both;
its equality with `lax.conv_general_dilated` is tested (tests/test_jax_cpu.py).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x, kernel, stride, padding):
    """x (B, H, W, C), kernel (k, k, C, D), zeros around x on `padding` cells -> (B, H', W', D)."""
    if kernel.shape[0] == 1 and not padding:
        return jnp.matmul(x[:, ::stride, ::stride], kernel[0, 0])
    return _plain(x, kernel, stride, padding)


def _plain(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(x, kernel, stride, padding):
    return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, saved, gradient):
    """The gradients of x and of the kernel. Each of the kernel's k x k cells met its own cells of x: one product."""
    x, kernel = saved
    _, x_gradient = jax.vjp(lambda x: _plain(x, kernel, stride, padding), x)
    height, width, channels = gradient.shape[1:]
    x = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])

    def cell(i, j):
        met = x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        return met.reshape(-1, met.shape[3]).T @ gradient.reshape(-1, channels)

    side = range(kernel.shape[0])
    return *x_gradient(gradient), jnp.stack([jnp.stack([cell(i, j) for j in side]) for i in side])


convolve.defvjp(_forward, _backward)
