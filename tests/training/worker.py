"""One worker of training on several machines, started by `test_workers`: RUN EPOCHS [PAUSE]."""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import keras
import numpy as np
import tensorflow as tf

from polyhead.training import Checkpoints, SmoothedCrossEntropy, is_chief, strategy
from tests.conftest import small
from tests.training.test_replicas import BATCHES, dataset


def main(run, epochs, pause=0.0):
    devices = strategy(None)
    keras.utils.set_random_seed(5)
    with devices.scope():
        model = small(num_layers=1)
        model.compile(
            keras.optimizers.SGD(0.1, global_clipnorm=0.1),
            SmoothedCrossEntropy(0.1),
            metrics=["sparse_categorical_accuracy"],
        )
    checkpoints = Checkpoints(run, monitor="sparse_categorical_accuracy")
    done = checkpoints.resume(model)
    data = dataset(BATCHES[:4])
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = data.with_options(options)
    slowly = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: time.sleep(pause)
    )
    history = model.fit(
        data.repeat(),
        steps_per_epoch=4,
        initial_epoch=done,
        epochs=epochs,
        validation_data=data,
        callbacks=[checkpoints, slowly],
        shuffle=False,
        verbose=2,
    ).history
    if is_chief():
        np.savez(Path(run) / "weights.npz", *model.get_weights())
        print({name: values[-1] for name, values in history.items()}, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
