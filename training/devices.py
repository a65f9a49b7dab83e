"""The available devices, on one machine or several, as a distribution strategy."""

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import tensorflow as tf


def strategy(
    devices: int | None = None, say: Callable[[str], object] = print
) -> "tf.distribute.Strategy":
    """Creates a `tf.distribute` strategy for the available devices; ``say`` reports them.

    - If the environment variable ``TF_CONFIG`` names several workers:
      `MultiWorkerMirroredStrategy` over all of them, each with its GPUs, or its CPU.
    - With GPUs: `MirroredStrategy` over ``devices`` GPUs, all by default.
    - Without GPUs: the CPU, or ``devices`` logical CPU devices. These share the cores, so they test
      a program on several devices but are not faster. If there are at most as many cores as
      devices, each operation uses one thread.

    Build the model within ``strategy(...).scope()``:

    >>> with polyhead.training.strategy(1, say=lambda line: None).scope():
    ...     model = polyhead.GPT.preset("char-small", num_layers=1)

    Raises:
        ValueError: ``devices`` is less than 1, more than the GPUs, or given although ``TF_CONFIG``
            names several workers; or ``TF_CONFIG`` is invalid.
        RuntimeError: TensorFlow has been used already, so its CPU can no longer be divided.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    here = place()
    if here.machines > 1:
        if devices is not None:
            raise ValueError(f"TF_CONFIG selects the devices: do not pass their number, {devices}")
        several = tf.distribute.MultiWorkerMirroredStrategy()
        say(
            f"{here.kind} {here.index} of {here.machines} machines, "
            f"{several.num_replicas_in_sync} replicas, {len(gpus)} GPUs here"
        )
        return several
    devices = max(len(gpus), 1) if devices is None else devices
    if devices < 1 or (gpus and devices > len(gpus)):
        most = f"at most the {len(gpus)} GPUs" if gpus else "logical CPU devices"
        raise ValueError(f"devices must be 1 or more, {most}: {devices}")
    if devices == 1:
        say("1 GPU" if gpus else "no GPU: using the CPU")
        return tf.distribute.get_strategy()  # TensorFlow's default is GPU:0, if there is one
    if gpus:
        say(f"{devices} of {len(gpus)} GPUs")
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(devices)])
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration() for _ in range(devices)]
    try:
        tf.config.set_logical_device_configuration(cpu, parts)
        threads = tf.config.threading
        if not threads.get_intra_op_parallelism_threads() and (os.cpu_count() or 1) <= devices:
            # Otherwise replicas compete for cores: a step of `make bench-devices` takes 595 ms
            # instead of 518.
            threads.set_intra_op_parallelism_threads(1)
    except RuntimeError:
        there_are = len(tf.config.list_logical_devices("CPU"))
        if there_are < devices:
            raise RuntimeError(
                f"{devices} logical CPU devices must be created before TensorFlow is used; "
                f"there are {there_are}"
            ) from None
    say(f"no GPU: using {devices} logical CPU devices, which share the cores")
    # Collectives of CPU devices allow one group size per process.
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)], reduction)


class Place(NamedTuple):
    """The number of machines, and which of them this is; a single machine is the one worker."""

    machines: int = 1
    kind: str = "worker"
    index: int = 0
    chief: bool = True


def place():
    """Reads ``TF_CONFIG``, if it names several machines."""
    try:
        config = json.loads(os.environ.get("TF_CONFIG") or "{}")
        cluster = config.get("cluster", {})
        machines = len(cluster.get("worker", [])) + len(cluster.get("chief", []))
        if machines < 2:
            return Place()
        kind, index = config["task"]["type"], int(config["task"]["index"])
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"TF_CONFIG must be JSON with a cluster and a task: {error!r}") from None
    first = "chief" if "chief" in cluster else "worker"
    return Place(machines, kind, index, (kind, index) == (first, 0))


def is_chief() -> bool:
    """Whether this process writes files: the chief, or the first of several workers.

    >>> polyhead.training.is_chief()
    True
    """
    return place().chief


def sum_over_replicas(tensors):
    """Sums a structure of tensors over all replicas; their gradients are summed too."""
    import tensorflow as tf

    # Reduction runs on the device of its values, which not all of them state.
    tensors = tf.nest.map_structure(tf.identity, tensors)
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def from_chief(strategy: "tf.distribute.Strategy", number: float) -> float:
    """Returns the chief's ``number`` on every worker; all workers must call it.

    On a single machine it returns ``number``.

    >>> polyhead.training.from_chief(tf.distribute.get_strategy(), 3)
    3
    """
    if place().machines == 1:
        return number
    import tensorflow as tf

    def shared(number):
        context = tf.distribute.get_replica_context()
        first = tf.cast(tf.equal(context.replica_id_in_sync_group, 0), "float64")
        return context.all_reduce(tf.distribute.ReduceOp.SUM, number * first)

    shares = tf.function(lambda number: strategy.run(shared, (number,)), autograph=False)
    return float(strategy.experimental_local_results(shares(tf.constant(number, "float64")))[0])
