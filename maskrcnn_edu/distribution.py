"""Several devices: a batch is split into equal parts, and every device learns from its own with a copy of the model.

The update is by the mean of the parts' gradients, the reported losses are the means of the parts' losses (synchronous
data parallelism; Goyal et al., 2017). The work is the frameworks': `tf.distribute` and `keras.distribution`.
"""

import contextlib
import json
import os

import numpy as np

from maskrcnn_edu.errors import InputError, WorkerLost

_shard = (0, 1)  # this process's number, and how many there are


@contextlib.contextmanager
def devices(count=None):
    """Within `with mr.devices(4):`, models are made and trained on 4 GPUs of this machine.

    It comes before the first tensor of a program: TensorFlow and JAX settle their devices once. Without a GPU, `count`
    parts of the CPU stand in for them, to try things out. "all" is every GPU there is (without one, the CPU).

    Several machines run the same program, each with an environment that tells it about the others; `count` is then of
    each machine (by default all its GPUs), and `Config.batch_size` is split over all of them. TensorFlow reads
    TF_CONFIG; on JAX it is KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID (README).

    Raises InputError: more GPUs than there are, or devices that are settled already.
    """
    import keras

    global _shard
    if keras.backend.backend() == "jax":
        scope, shard = _jax_scope(count)
    else:
        scope, shard = _tensorflow_scope(count)
    before, _shard = _shard, shard
    try:
        with scope:
            yield
    finally:
        _shard = before


def shard():
    """(index, count): the part of every batch that this process reads, of how many; (0, 1) for the whole batch."""
    return _shard


def is_chief():
    """Whether this process writes the logs and checkpoints; the others keep quiet."""
    return _shard[0] == 0


def replicas():
    """How many devices share a batch, over all machines."""
    import keras

    if keras.backend.backend() == "jax":
        distribution = keras.distribution.distribution()
        return 1 if distribution is None else distribution.num_model_replicas
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def split(batches, model, endless=False):
    """`mr.loader`'s batches as the devices of `model` take them: each gets an equal part. Anything else stays as it is.

    Raises InputError, when it comes to it, on a batch that does not divide.
    """
    import keras

    count, machines = replicas(), _shard[1]
    if not hasattr(batches, "steps_per_epoch") or count == 1:
        return batches
    here = count // machines

    def check(batch):
        size = len(batch["image"])
        if size % here:
            batches.failures.append(InputError(
                f"A batch has {size * machines} images, which {count} devices cannot share equally; make "
                f"Config.batch_size, and the number of images to evaluate, a multiple of {count}."
            ))  # fmt: skip
            raise batches.failures[-1]
        return batch

    checked = batches.map(check)
    return checked if keras.backend.backend() == "jax" else _replicas_dataset(checked, here, model, endless)


@contextlib.contextmanager
def failures_of(*sources):
    """Raises what went wrong in a loader, or on another machine, instead of what the backend made of it."""
    try:
        yield
    except Exception as error:
        for source in sources:
            for failure in getattr(source, "failures", ()):
                raise failure from None
        if _shard[1] > 1 and _is_of_communication(error):
            raise WorkerLost(
                f"Process {_shard[0] + 1} of {_shard[1]} stops, because it lost another one; look there for the "
                "reason, then start all of them again with --model last."
            ) from error
        raise


def check_same(number, what):
    """Raises InputError unless `number` is the same in all processes."""
    if _shard[1] == 1:
        return
    import keras

    if keras.backend.backend() == "jax":
        from jax.experimental import multihost_utils

        numbers = multihost_utils.process_allgather(np.int32([number]))
    else:
        import tensorflow as tf

        def gather():
            return tf.distribute.get_replica_context().all_gather(tf.constant([number]), 0)

        strategy = tf.distribute.get_strategy()
        numbers = strategy.experimental_local_results(strategy.run(tf.function(gather)))[0]
    numbers = sorted(set(np.array(numbers).ravel().tolist()))
    if len(numbers) > 1:
        raise InputError(f"The machines do not agree on {what} ({numbers}); --logs must be on a disk that they share.")


def describe():
    """The devices in words."""
    import keras

    if keras.backend.backend() == "jax":
        names = [str(name) for name in keras.distribution.distribution().device_mesh.devices.flat]
    else:
        import tensorflow as tf

        names = tf.distribute.get_strategy().extended.worker_devices
    kind = "GPUs" if any("gpu" in name.lower() for name in names) else "parts of the CPU, for want of GPUs"
    machines = f", in {_shard[1]} processes of which this is number {_shard[0] + 1}" if _shard[1] > 1 else ""
    return f"{replicas()} {kind}{machines}"


def _count(count, gpus):
    """How many of the `gpus` GPUs of this machine to use. Where there is none, any count will do."""
    if count in ("all", None):
        return max(gpus, 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"devices is {count!r}; give a whole number from 1 on, or all.")
    if gpus and count > gpus:
        raise InputError(f"devices is {count}, but this machine has {gpus} GPUs; give at most {gpus}.")
    return count


@contextlib.contextmanager
def _settled_once():
    """The frameworks refuse to change their devices once they have used them."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            f"The devices are in use already ({error}); enter `with mr.devices(...)` before any model or tensor."
        ) from error


# TensorFlow


def _tensorflow_scope(count):
    import tensorflow as tf

    processes, own = _tensorflow_cluster()
    gpus = tf.config.list_physical_devices("GPU")
    if len(processes) > 1:
        count = _count(count, len(gpus))
        if not gpus and count > 1:
            raise InputError(
                f"devices is {count}, but TF_CONFIG makes a machine without GPUs one device; leave it out."
            )
        with _settled_once():
            tf.config.set_visible_devices(gpus[:count], "GPU")
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        return strategy.scope(), (processes.index(own), len(processes))
    if count is None or _count(count, len(gpus)) == 1:
        return contextlib.nullcontext(), (0, 1)
    count = _count(count, len(gpus))
    if not gpus:
        with _settled_once():
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    kind = "GPU" if gpus else "CPU"
    return tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(count)]).scope(), (0, 1)


def _tensorflow_cluster():
    """The processes of TF_CONFIG as (type, index), in the order in which TensorFlow numbers them, and this one."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return [], None
    try:
        described = json.loads(text)
        cluster, task = described["cluster"], described["task"]
        processes = [(kind, i) for kind in ("chief", "worker") for i in range(len(cluster.get(kind, ())))]
        processes.index(own := (task["type"], int(task["index"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            'TF_CONFIG does not read like {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", '
            f'"index": 0}}}}: {error}.'
        ) from error
    return processes, own


def _replicas_dataset(batches, here, model, endless):
    """Batches cut into a part for each of this machine's `here` replicas, in order.

    Keras would leave that to `experimental_distribute_dataset`; with several machines, each would then read everything
    and keep its share.
    """
    import tensorflow as tf

    first = next(iter(batches))
    part = len(first["image"]) // here
    signature = {name: tf.TensorSpec((None, *array.shape[1:]), array.dtype) for name, array in first.items()}

    def parts(context):
        data = tf.data.Dataset.from_generator(lambda: batches, output_signature=signature)
        data = data.rebatch(part, drop_remainder=endless).prefetch(here)
        # Told so, TensorFlow does not ask all machines before every step whether any has run out.
        return data.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)) if endless else data

    return model.distribute_strategy.distribute_datasets_from_function(parts)


def reduce_before_apply(optimizer):
    """Makes a Keras optimizer see the sum of all replicas' gradients, not one replica's (TensorFlow).

    Keras clips, accumulates and looks for overflow first and sums last, so that with gradient_clip the update of
    several devices would not be that of one.
    """
    import tensorflow as tf

    if "apply" in vars(optimizer):
        return  # compiled before
    apply = optimizer.apply

    def apply_sum(gradients, variables):
        kept = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        gradients, variables = zip(*kept, strict=True)
        return apply(tf.distribute.get_replica_context().all_reduce("SUM", list(gradients)), list(variables))

    optimizer.apply = apply_sum
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # of one that scales the loss
    assert hasattr(inner, "_all_reduce_sum_gradients")  # Keras' own sum, done already
    inner._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables


def _is_of_communication(error):
    """Whether a backend's error is how another machine's end looks from here."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):  # a ValueError, between CPUs
            return True
        return error.__context__ is not None and _is_of_communication(error.__context__)  # what Keras stumbled over
    import tensorflow as tf

    return isinstance(error, (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError))


# JAX


def _jax_scope(count):
    import jax
    import keras

    several = "KERAS_DISTRIBUTION_JOB_ADDRESSES" in os.environ
    if count is None and not several:
        return contextlib.nullcontext(), (0, 1)
    with _settled_once():
        if isinstance(count, int) and count > 0:
            jax.config.update("jax_num_cpu_devices", count)
        if several:
            keras.distribution.initialize()
    gpus = sum(device.platform != "cpu" for device in jax.local_devices())
    count = _count(count, gpus)
    if count == 1 and not several:
        return contextlib.nullcontext(), (0, 1)
    chosen = [
        f"{device.platform}:{device.id}" for p in range(jax.process_count()) for device in jax.local_devices(p)[:count]
    ]
    # The loader shards by process; Keras could only shard a tf.data.Dataset.
    scope = keras.distribution.DataParallel(devices=chosen, auto_shard_dataset=False).scope()
    return scope, (jax.process_index(), jax.process_count())


def mean_of_parts(losses, outputs):
    """`losses(part)` (dict of scalars) of each device's part of `outputs` (tree of (B, ...)), averaged.

    On TensorFlow a replica sees only its part. JAX computes as if on one device, and a mean over the positives of the
    whole batch is not the mean of the parts' means.
    """
    import keras
    from keras import ops

    count = replicas()
    if keras.backend.backend() != "jax" or count == 1:
        return losses(outputs)
    parts = keras.tree.map_structure(lambda x: ops.reshape(x, (count, -1, *x.shape[1:])), outputs)
    return {name: ops.mean(values) for name, values in ops.vectorized_map(losses, parts).items()}
