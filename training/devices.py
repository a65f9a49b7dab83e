"""The devices there are, as a distribution strategy."""


def strategy(devices=None):
    """A `tf.distribute` strategy over ``devices`` GPUs, or as many logical CPU devices.

    Without a number it takes all GPUs there are, or the one CPU. Build the model within
    ``strategy(...).scope()``. Logical CPU devices share the cores: they show that a program is
    right on several devices, and no gain in speed.

    Raises:
        ValueError: fewer than one device, or more than there are GPUs.
        RuntimeError: TensorFlow was used before, so that its CPU cannot be divided any more.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    devices = max(len(gpus), 1) if devices is None else devices
    if devices < 1 or (gpus and devices > len(gpus)):
        most = f"at most the {len(gpus)} GPUs" if gpus else "logical CPU devices"
        raise ValueError(f"devices must be 1 or more, {most}: {devices}")
    if devices == 1:
        return tf.distribute.OneDeviceStrategy("GPU:0") if gpus else tf.distribute.get_strategy()
    if not gpus:
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration() for _ in range(devices)]
        try:
            tf.config.set_logical_device_configuration(cpu, parts)
        except RuntimeError:
            there_are = len(tf.config.list_logical_devices("CPU"))
            if there_are < devices:
                raise RuntimeError(
                    f"{devices} logical CPU devices must be made before TensorFlow is used; "
                    f"there are {there_are}"
                ) from None
        # Collectives of CPU devices allow one size of group in a process.
        reduction = tf.distribute.ReductionToOneDevice()
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)], reduction)
    return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(devices)])
