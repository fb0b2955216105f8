"""The few operations that Keras does not spell, on both backends: batched gather, keyed random numbers, compilation."""

import contextlib
import functools

import keras
from keras import layers, ops

from maskrcnn_edu import distribution


def as_float(x):
    """`x` (NumPy or backend tensor) as a float32 tensor: geometry is never computed in half precision."""
    return ops.cast(ops.convert_to_tensor(x), "float32")


def gather(x, indices):
    """Rows of each batch entry: x (B, N, ...), indices (B, K) -> (B, K, ...)."""
    shape = ops.shape(x)
    batch, n = shape[0], shape[1]
    flat = ops.reshape(x, (-1, *shape[2:]))  # one gather along one axis is the form that every backend has fast
    offset = ops.expand_dims(ops.arange(batch, dtype="int32") * n, -1)
    return take_rows(flat, ops.cast(indices, "int32") + offset)


def take_rows(flat, indices):
    """Rows of flat (B * N, C), batch entries one after another: indices (B, ...), entry b's in its own N rows."""
    if keras.backend.backend() != "jax" or distribution.replicas() == 1:
        return ops.take(flat, indices, axis=0)
    # XLA cannot see that a device's indices stay in its own part of the batch, and would do all of it on all devices.
    batch = indices.shape[0]
    rows = flat.shape[0] // batch
    start = ops.reshape(ops.arange(batch, dtype="int32") * rows, (-1,) + (1,) * (len(indices.shape) - 1))
    own = (ops.reshape(flat, (batch, rows, *flat.shape[1:])), indices - start)
    return ops.vectorized_map(lambda entry: ops.take(entry[0], entry[1], axis=0), own)


def random_keys(seed, n: int, stream: int):
    """Uniform numbers in (0, 1) that depend on (seed, stream, position) alone: (B,) int -> (B, n) float32.

    A counter-based generator (Salmon et al., 2011) with the finaliser of MurmurHash3 as its mixing. Sampling keyed this
    way is the same on every backend and device, whatever the batch's other images, and restarts without saved state.
    """
    counter = ops.cast(ops.arange(n, dtype="int32"), "uint32")[None, :]
    key = ops.cast(seed, "uint32")[:, None]
    return (
        ops.cast(ops.right_shift(_mixed(_mixed(key + _uint32(stream * 0x9E3779B9)) + counter), _uint32(8)), "float32")
        * 2.0**-24
        + 2.0**-25
    )


def _mixed(x):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ops.bitwise_xor(x, ops.right_shift(x, _uint32(shift))) * _uint32(factor)
    return ops.bitwise_xor(x, ops.right_shift(x, _uint32(16)))


def _uint32(value):
    return ops.convert_to_tensor(value & 0xFFFFFFFF, dtype="uint32")


@keras.saving.register_keras_serializable("maskrcnn_edu")
class Conv2D(layers.Conv2D):
    """Keras' Conv2D with a square kernel, fast also with JAX on a CPU (see jax_cpu.py).

    It has Keras' name, because a .keras file finds a layer's weights by the name of its class.
    """

    def convolution_op(self, inputs, kernel):
        if not _jax_on_cpu():
            return super().convolution_op(inputs, kernel)
        from maskrcnn_edu.jax_cpu import convolve

        padding = self.kernel_size[0] // 2 if self.padding == "same" else 0
        return convolve(ops.convert_to_tensor(inputs), ops.convert_to_tensor(kernel), self.strides[0], padding)


@functools.cache
def _jax_on_cpu():
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu"


def is_traced(x) -> bool:
    """Whether `x` stands for a value in a computation that is being compiled, and holds none itself."""
    if keras.backend.backend() == "jax":
        import jax

        return isinstance(x, jax.core.Tracer)
    return _inside_graph()


@contextlib.contextmanager
def layers_compute_in(precision):
    """Layers made inside compute in `precision` (float32, bfloat16, float16) and keep their weights in float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy(precision))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def policy(precision) -> str:
    """Keras' name for computing in `precision` with weights in float32 (Micikevicius et al., 2018)."""
    return precision if precision == "float32" else f"mixed_{precision}"


_islands = True  # see `without_islands`


def island(function, *fixed):
    """`function(*tensors, *fixed)` as one XLA computation within TensorFlow's graph; `fixed` must be hashable.

    TensorFlow runs a graph operation by operation: good for convolutions, which are one call to a library, and five to
    ten times slower than XLA for chains of small operations like RoIAlign or NMS (README, "Measured"). The answers are
    the same up to rounding. Only for what needs no gradient: XLA's gradients are slow on a CPU. Elsewhere (JAX, which
    compiles everything with XLA; eager calls; a GPU) this is `function` as it is.
    """

    def call(*tensors):
        if _islands and keras.backend.backend() == "tensorflow" and _inside_graph() and _has_xla():
            return _compiled(function, fixed)(*tensors)
        return function(*tensors, *fixed)

    return call


@contextlib.contextmanager
def without_islands():
    """What is traced inside is one plain graph, which can be exported."""
    global _islands
    before, _islands = _islands, False
    try:
        yield
    finally:
        _islands = before


@functools.cache
def _compiled(function, fixed):
    """One TensorFlow function for all graphs that use it: equal shapes are compiled once."""
    import tensorflow as tf

    return tf.function(lambda *tensors: function(*tensors, *fixed), jit_compile=True)


def _inside_graph():
    import tensorflow as tf

    return tf.inside_function()


@functools.cache
def _has_xla():
    """Whether XLA compiles for this processor; TensorFlow is built without it for some."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return False
    try:
        with tf.init_scope():
            return bool(tf.function(lambda x: x == x, jit_compile=True)(tf.constant(0)))
    except tf.errors.OpError:
        return False


def compiled(function, model):
    """`function(*tensors)`, which calls layers of `model`, compiled once for each shape of its arguments.

    Keras' own predict function generalises a second shape to unknown dimensions on TensorFlow; the model needs its
    height and width while tracing.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        traced = tf.function(lambda *tensors: function(*tensors), reduce_retracing=False)

        @functools.wraps(traced)
        def of_tensors(*tensors):
            # Called directly, TensorFlow would warn that new sizes mean new traces; they do, and are few.
            return traced.get_concrete_function(*tensors)(*tensors)

        return of_tensors
    import jax

    @jax.jit
    def of_values(values, *tensors):
        with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
            return function(*tensors)

    # The weights are arguments: as constants they would be compiled into the function and stay as they are now.
    return lambda *tensors: of_values([variable.value for variable in model.variables], *tensors)
