"""The few operations that Keras does not spell, on both backends: batched gather, keyed random numbers, compilation."""

import keras
from keras import ops


def as_float(x):
    """`x` (NumPy or backend tensor) as a float32 tensor: geometry is never computed in half precision."""
    return ops.cast(ops.convert_to_tensor(x), "float32")


def gather(x, indices):
    """Rows of each batch entry: x (B, N, ...), indices (B, K) -> (B, K, ...)."""
    shape = ops.shape(x)
    batch, n = shape[0], shape[1]
    flat = ops.reshape(x, (-1, *shape[2:]))  # one gather along one axis is the form that every backend has fast
    offset = ops.expand_dims(ops.arange(batch, dtype="int32") * n, -1)
    return ops.take(flat, ops.cast(indices, "int32") + offset, axis=0)


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


def compiled_call(model):
    """`model(batch)` compiled once for each shape of the batch, as a function from a dict to a dict of tensors.

    Keras' own predict function generalises a second shape to unknown dimensions on TensorFlow; the model needs its
    height and width while tracing.
    """
    if keras.backend.backend() != "tensorflow":
        return model.predict_on_batch
    import tensorflow as tf

    return tf.function(lambda batch: model(batch, training=False), reduce_retracing=False)
