"""Compares training steps on 1, 2 and 4 replicas with plain Keras: `make bench-devices`.

Each row is measured in a separate process: a GPT of four blocks (T 64, 65 tokens), trained by `fit`
with Adam and clipping, on logical CPU devices. They share the cores, so this shows overhead, not
scaling. "Plain Keras" is a `keras.Model` of the same layers with the defaults of `compile`: XLA on
one device, no XLA under a strategy. It has TensorFlow's default number of threads and, in
parentheses, that of `polyhead.training.strategy`. Writes bench/devices.md.
"""

import os
import statistics
import time
from pathlib import Path

from measure import machine, run, run_isolated, write

T, V = 64, 65
PEERS = ("polyhead", "keras", "keras, our threads")
ROWS = [
    # peer, width, replicas, examples in the global batch
    *[(peer, 128, n, 12) for n in (1, 2, 4) for peer in PEERS],
    *[("polyhead", 128, n, 12 * n) for n in (2, 4)],
    *[(peer, 512, n, 32) for n in (1, 2) for peer in PEERS],
]


def step(peer, dim, replicas, batch, steps=None, blocks=4, remat=False):
    """The median time of a step in ms, without compilation."""
    import keras
    import tensorflow as tf

    from polyhead.layers import FeedForward, MultiHeadAttention, TransformerBlock
    from polyhead.training import Model, strategy

    steps = steps or (60 if dim == 128 else 10)
    if peer == "keras":  # `strategy` would change the number of threads
        tf.config.threading.set_intra_op_parallelism_threads(os.cpu_count())
    with strategy(replicas, say=lambda line: None).scope():
        keras.utils.set_random_seed(0)
        tokens = keras.Input([T], dtype="int32")
        x = keras.layers.Embedding(V, dim)(tokens)
        for i in range(blocks):
            x = TransformerBlock(
                attention=MultiHeadAttention(4 if dim == 128 else 8, causal=True),
                feed_forward=FeedForward(4 * dim, "gelu"),
                remat=remat,
                name=f"block_{i}",
            )(x)
        x = keras.layers.LayerNormalization()(x)
        made = Model if peer == "polyhead" else keras.Model
        model = made(tokens, keras.layers.Dense(V)(x))
        model.compile(
            keras.optimizers.Adam(1e-3, global_clipnorm=1.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    random = tf.random.stateless_uniform([batch, T + 1], [0, 1], 0, V, tf.int32)
    data = tf.data.Dataset.from_tensors((random[:, :-1], random[:, 1:])).repeat()
    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            self.began = time.perf_counter()

        def on_train_batch_end(self, step, logs=None):
            float(logs["loss"])
            times.append(time.perf_counter() - self.began)

    model.fit(data, steps_per_epoch=steps, callbacks=[Clock()], verbose=0, shuffle=False)
    return 1000 * statistics.median(times[3:])


def measure_waiting():
    """The percentage of time that training waits for data: translation on the sample corpus."""
    from polyhead.data import Subwords, translation_batches
    from polyhead.data.parallel import read_split
    from polyhead.recipes.translation import SAMPLE, find_data
    from polyhead.zoo import Transformer

    pairs = read_split(find_data(SAMPLE), "train", "en", "de")
    tokenizer = Subwords.train(pairs.sources + pairs.targets, 1000)
    model = Transformer.preset("tiny", tokenizer)
    model.compile()
    model.build_optimizer()
    model.make_train_function()
    stream = iter(translation_batches(pairs, tokenizer, tokens=2048, start=0))
    waited = trained = 0.0
    for step in range(120):
        began = time.perf_counter()
        batch = next(stream)
        ready = time.perf_counter()
        float(model.train_function(iter([batch]))["loss"])
        if step >= 40:  # all lengths are compiled
            waited += ready - began
            trained += time.perf_counter() - ready
    return 100 * waited / (waited + trained)


def measure_saving():
    """The percentage of time that training waits for checkpoints: translation on the sample."""
    import tempfile

    from polyhead.recipes.translation import Settings, train
    from polyhead.training import Checkpoints

    stood, end = [], Checkpoints.on_train_end

    def noted(checkpoints, logs=None):
        stood.append(checkpoints.waited)
        end(checkpoints, logs)

    Checkpoints.on_train_end = noted
    settings = Settings(vocab_size=1000, tokens=2048, epochs=3)
    with tempfile.TemporaryDirectory() as folder:
        history = train(settings, Path(folder) / "run", say=lambda line: None)
    return 100 * stood[0] / history[-1]["seconds"]


def main():
    found = {}
    for row in ROWS:
        found[row], _ = run_isolated(step, *row)
        print(*row, f"{found[row]:.1f} ms" if found[row] else "", flush=True)
    lines = [
        "# Training on several replicas",
        "",
        f"`make bench-devices`; {machine()}, float32, logical CPU devices (which share the "
        "cores), each row in a separate process.",
        "",
        "| width | replicas | global batch | polyhead, ms per step | relative to 1 replica | "
        "plain Keras, ms (with polyhead's number of threads) | polyhead / Keras |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for peer, dim, replicas, batch in ROWS:
        if peer != "polyhead":
            continue
        ours = found[peer, dim, replicas, batch]
        one = found[peer, dim, 1, 12 if dim == 128 else 32]
        theirs, same = (found.get((peer, dim, replicas, batch)) for peer in PEERS[1:])
        lines.append(
            f"| {dim} | {replicas} | {batch} | {ours:.1f} | {ours / one:.2f} | "
            + (
                f"{theirs:.1f} ({same:.1f}) | {ours / theirs:.2f} ({ours / same:.2f}) |"
                if theirs and same
                else "- | - |"
            )
        )
    share, _ = run_isolated(measure_waiting)
    (kept, memory_kept), (again, memory_again) = (
        run_isolated(step, "polyhead", 256, 1, 64, 6, 16, remat) for remat in (False, True)
    )
    still, _ = run_isolated(measure_saving)
    lines += [
        "",
        f"Translation on the sample corpus (tiny, 2,048 tokens per batch): {share:.2f}% of the "
        f"time is spent waiting for data, and {still:.2f}% waiting for checkpoints (an interval of "
        "one epoch).",
        "",
        f"`remat`, 16 blocks of width 256, batch 64: {memory_again / memory_kept:.2f} times the "
        f"memory of the process ({memory_again:,.0f} instead of {memory_kept:,.0f} MB), "
        f"{again / kept:.2f} times the time of a step.",
    ]
    write(__file__, lines)


if __name__ == "__main__":
    run(main)
