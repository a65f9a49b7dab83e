import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead.data import structure_batches
from polyhead.training import (
    CosineRegression,
    Model,
    SmoothedCrossEntropy,
    StructureLoss,
    replicas,
    strategy,
)
from polyhead.zoo import BERT, BERTConfig
from tests.conftest import small
from tests.data.test_folding import structure
from tests.zoo.test_esmfold import small as small_folding
from tests.zoo.toy_summarizers import small_bart, small_t5

T, V = 6, 40
FOUR = pytest.param(4, marks=pytest.mark.slow)
# How many replicas are compared with one device.
SEVERAL = pytest.mark.parametrize("replicas", [2, FOUR])
SMOOTHED = SmoothedCrossEntropy(0.1)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def batch(seed=0, lengths=(2, 1, 2, 1, 6, 5, 6, 6)):
    """A translation batch with uneven padding: its first half has far fewer tokens."""
    random = np.random.default_rng(seed)
    lengths = np.array(lengths)
    labels = random.integers(3, V, (len(lengths), T)).astype("int32")
    weight = (np.arange(T) < lengths[:, None]).astype("float32")
    labels = (labels * weight).astype("int32")
    target = np.concatenate([np.ones((len(lengths), 1), "int32"), labels[:, :-1]], 1)
    return {"source": labels[:, ::-1].copy(), "target": target}, labels, weight


# Five global batches: in the second the first replicas have no token, the last ones do not divide.
BATCHES = [
    batch(0),
    batch(1, [0, 0, 0, 0, 5, 3, 6, 1]),
    batch(2),
    batch(3, [6, 2, 1, 5, 3, 2]),
    batch(4, [3]),
]


def dataset(batches):
    def spec(*arrays):
        return tf.TensorSpec([None, *arrays[0].shape[1:]], arrays[0].dtype)

    signature = tf.nest.map_structure(spec, *batches)

    def copies():  # TensorFlow takes arrays as they are, and its kernels write into them
        return (tf.nest.map_structure(np.copy, batch) for batch in batches)

    data = tf.data.Dataset.from_generator(copies, output_signature=signature)
    return data.apply(tf.data.experimental.assert_cardinality(len(batches)))


def translator(**overrides):
    return small(**{"num_layers": 1, **overrides})


def trained(devices, make, optimizer, batches=BATCHES, loss=SMOOTHED, validated=False, **options):
    """Trains a model for one step per batch; returns it and the history of `fit`."""
    keras.utils.set_random_seed(5)
    with strategy(devices).scope():
        model = make()
        options.setdefault("jit_compile", False)
        model.compile(optimizer(), loss, **options)
    validation = dataset(batches) if validated else None
    history = model.fit(
        dataset(batches), validation_data=validation, shuffle=False, verbose=0
    ).history
    return model, {name: values[0] for name, values in history.items()}


def sgd(**options):
    return lambda: keras.optimizers.SGD(0.1, **{"global_clipnorm": 0.1, **options})


def largest_difference(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs)


def agree(make, optimizer, tolerance=1e-5, replicas=(2,), **options):
    one, logs = trained(1, make, optimizer, **options)
    for devices in replicas:
        other, other_logs = trained(devices, make, optimizer, **options)
        assert largest_difference(one, other) < tolerance, devices
        assert other_logs == pytest.approx(logs, rel=1e-4), devices
    return one


def test_the_step_equals_plain_keras_on_one_device():
    ours, _ = trained(1, translator, sgd(), BATCHES[:3])
    keras.utils.set_random_seed(5)
    network = translator()
    for x, y, w in BATCHES[:3]:
        with tf.GradientTape() as tape:
            value = SmoothedCrossEntropy(0.1)(y, network(x), w)
        gradients = tape.gradient(value, network.trainable_weights)
        norm = tf.linalg.global_norm(gradients)
        for v, g in zip(network.trainable_weights, gradients, strict=True):
            v.assign_sub(0.1 * tf.convert_to_tensor(g) * tf.minimum(1.0, 0.1 / norm))
    assert largest_difference(ours, network) < 1e-5


def adam(**options):
    return lambda: keras.optimizers.Adam(1e-3, **{"epsilon": 1e-7, **options})


LONG = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize(
    "optimizer, tolerance, jit_compile, replicas",
    [
        pytest.param(sgd(), 1e-5, False, (2,), id="sgd-2"),
        pytest.param(sgd(), 1e-5, False, (4,), id="sgd-4", marks=pytest.mark.slow),
        pytest.param(adam(), 1e-5, False, (2, 4), id="adam", marks=LONG),
        # With the paper's Adam only the losses agree: gradients that should be zero become steps.
        pytest.param(adam(epsilon=1e-9), np.inf, False, (2, 4), id="paper", marks=LONG),
        pytest.param(sgd(), 1e-5, True, (2,), id="sgd-xla", marks=pytest.mark.slow),
        pytest.param(adam(), 1e-5, True, (2, 4), id="adam-xla", marks=LONG),
        pytest.param(adam(epsilon=1e-9), np.inf, True, (2, 4), id="paper-xla", marks=LONG),
    ],
)
def test_replicas_train_like_one_device(optimizer, tolerance, jit_compile, replicas):
    agree(translator, optimizer, tolerance, replicas=replicas, jit_compile=jit_compile)


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_t5, pytest.param(small_bart, marks=LONG)])
def test_replicas_train_summarizers_like_one_device(make):
    special = dict(pad_id=0, start_id=1, end_id=2)
    agree(lambda: make(num_layers=1, **special), sgd(), 1e-5, replicas=(2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("head, loss", [("tags", CROSS_ENTROPY), (None, CosineRegression())])
def test_replicas_train_encoders_like_one_device(head, loss):
    sizes = dict(num_layers=1, dim=16, intermediate_dim=24, num_heads=2, max_length=T)
    sizes |= dict(num_positions=T, vocab_size=40, num_classes=3 * (head == "tags"))
    sizes |= dict(dropout=0.0, attention_dropout=0.0)
    random, batches = np.random.default_rng(0), []
    for rows in (8, 8):  # of pairs, both are on one replica
        lengths = random.integers(1, T, (rows, 1))
        tokens = random.integers(1, 40, (rows, T)) * (np.arange(T) < lengths)
        y, w = random.integers(0, 3, (rows, T)), (tokens > 0).astype("float32")
        y, w = (y, w) if head else (np.repeat(y[::2, 0] / 2, 2), np.repeat(w[::2, 2], 2))
        batches.append((tokens.astype("int32"), y.astype("float32"), w))
    agree(lambda: BERT(BERTConfig(head=head, **sizes)), sgd(), batches=batches, loss=loss)


@pytest.mark.slow
def test_replicas_train_folding_like_one_device():
    pytest.importorskip("gemmi", reason="gemmi is not installed: EXTRAS=proteins")
    chains = [structure("MKTAYIAKQR"[:n], n) for n in (10, 4, 7, 9, 6)]
    data = structure_batches(chains, batch_size=4, start=0).take(3)  # two batches have empty rows
    batches = [tf.nest.map_structure(lambda x: x.numpy(), batch) for batch in data]

    def make():
        return small_folding(structure_dropout=0.0, num_blocks=1, num_iterations=1)

    agree(make, sgd(), batches=batches, loss=StructureLoss())


def masked():
    """A model with Keras's mask, from the embedding to the loss."""
    tokens = keras.Input([None], dtype="int32")
    x = keras.layers.Embedding(V, 8, mask_zero=True)(tokens)
    return Model(tokens, keras.layers.Dense(V)(x))


def regularized():
    tokens = keras.Input([None], dtype="int32")
    x = keras.layers.Embedding(V, 8, embeddings_regularizer="l2")(tokens)
    return Model(tokens, keras.layers.Dense(V)(x))


def two_outputs():
    tokens = keras.Input([T], dtype="int32")
    x = keras.layers.Embedding(V, 8, mask_zero=True)(tokens)
    each = keras.layers.Dense(V, name="each")(x)
    first = keras.layers.Dense(1, name="first")(x[:, 0])
    return Model(tokens, {"each": each, "first": first})


class OwnLoss(Model):
    """A model with a custom loss, a mean over the replica's examples."""

    def __init__(self):
        super().__init__()
        self.tokens = keras.layers.Embedding(V, 8)
        self.logits = keras.layers.Dense(V)
        self.build([None, T])

    def build(self, shape):
        self.tokens.build(shape)
        self.logits.build((*shape, 8))

    def call(self, tokens):
        return self.logits(self.tokens(tokens))

    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        loss = keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)
        return keras.ops.mean(loss)


def tagging(weighted=True, ignored=False):
    """Batches with one input and one label per token."""
    for x, y, w in BATCHES:
        if ignored:
            y = np.where(w > 0, y, -1)
        yield (x["source"], y, w) if weighted else (x["source"], y)


TAGS = list(tagging())


def cross_entropy(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


@pytest.mark.parametrize(
    "make, loss, weighted, ignored",
    [
        pytest.param(masked, cross_entropy(), False, False, marks=pytest.mark.slow),
        (masked, cross_entropy(), True, False),
        (masked, cross_entropy(reduction="mean_with_sample_weight"), True, False),
        pytest.param(masked, cross_entropy(reduction="sum"), True, False, marks=pytest.mark.slow),
        pytest.param(masked, cross_entropy(ignore_class=-1), False, True, marks=pytest.mark.slow),
        pytest.param(regularized, cross_entropy(), False, False, marks=pytest.mark.slow),
        (regularized, cross_entropy(ignore_class=-1), False, True),
        pytest.param(
            regularized, "sparse_categorical_crossentropy", True, False, marks=pytest.mark.slow
        ),
        (
            regularized,
            lambda y, p: keras.ops.mean(keras.ops.square(p), -1) + keras.ops.cast(y, "float32"),
            True,
            False,
        ),
        (OwnLoss, None, False, False),
    ],
)
@SEVERAL
def test_any_loss_is_the_mean_over_the_global_batch(make, loss, weighted, ignored, replicas):
    batches = list(tagging(weighted, ignored))
    options = dict(metrics=["sparse_categorical_accuracy"]) if make is masked else {}
    # Keras clips an embedding's gradient by rows, before the rows of the same token are summed.
    optimizer = sgd(global_clipnorm=None)
    one = agree(make, optimizer, batches=batches, loss=loss, replicas=[replicas], **options)
    if make is not OwnLoss:  # on one device it equals Keras
        keras.utils.set_random_seed(5)
        plain = make()
        plain = keras.Model(plain.inputs, plain.outputs)
        plain.compile(optimizer(), loss, jit_compile=False)
        plain.fit(dataset(batches), shuffle=False, verbose=0)
        assert largest_difference(one, plain) < 1e-6


def test_a_loss_of_only_the_inputs_does_not_need_labels():
    class Rebuild(OwnLoss):
        def compute_loss(self, x, y, y_pred, sample_weight, training=True):
            return super().compute_loss(x, x, y_pred, sample_weight)

    agree(Rebuild, sgd(), batches=[(x,) for x, _, _ in TAGS], loss=None)


def test_evaluation_uses_the_weights_of_evaluation():
    class UnweightedInTraining(OwnLoss):
        def __init__(self):
            super().__init__()
            self.tokens.embeddings.regularizer = keras.regularizers.L2(0.1)

        def compute_loss(self, x, y, y_pred, sample_weight, training=True):
            weight = None if training else sample_weight
            return keras.Model.compute_loss(self, x, y, y_pred, weight, training=training)

    def evaluated(devices):
        model, _ = trained(devices, UnweightedInTraining, sgd(), batches=TAGS[:1])
        return model.evaluate(dataset(TAGS[:2]), verbose=0)

    assert evaluated(2) == pytest.approx(evaluated(1), rel=1e-4)


@pytest.mark.slow
def test_a_strategy_of_one_replica_trains_like_no_strategy():
    alone, _ = trained(1, translator, sgd(), BATCHES[:2])
    for one in (
        tf.distribute.OneDeviceStrategy("CPU:0"),
        tf.distribute.MirroredStrategy(["CPU:0"]),
    ):
        with one.scope():
            keras.utils.set_random_seed(5)
            model = translator()
            model.compile(sgd()(), SMOOTHED, jit_compile=False)
        model.fit(dataset(BATCHES[:2]), shuffle=False, verbose=0)
        assert largest_difference(alone, model) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy, devices",
    [
        ("float32", 1),
        ("mixed_float16", 2),
        pytest.param("float32", 2, marks=pytest.mark.long),
        pytest.param("mixed_float16", 1, marks=pytest.mark.long),
    ],
)
def test_the_compiled_step_equals_the_eager_one(policy, devices):
    keras.config.set_dtype_policy(policy)
    settings = dict(gradient_accumulation_steps=2, use_ema=True, ema_overwrite_frequency=2)
    plain, logs = trained(1, translator, sgd(**settings), BATCHES[:1] * 4, jit_compile=False)
    compiled, compiled_logs = trained(
        devices, translator, sgd(**settings), BATCHES[:1] * 4, jit_compile=True
    )
    tolerance = 1e-6 if policy == "float32" else 1e-4
    assert largest_difference(plain, compiled) < tolerance
    assert compiled_logs == pytest.approx(logs, rel=1e-5 if policy == "float32" else 1e-2)
    assert compiled.measured.keys() == {"gradient_norm", "weight"}


def test_steps_per_execution_does_not_change_training():
    agree(masked, sgd(), batches=TAGS[:4], steps_per_execution=2)


@SEVERAL
def test_losses_of_several_outputs_have_separate_weights(replicas):
    def batches():
        for x, y, w in BATCHES:
            labels = {"each": y, "first": y[:, :1].astype("float32")}
            yield x["source"], labels, {"each": w, "first": (y[:, 1] > 20).astype("float32")}

    agree(
        two_outputs,
        sgd(),
        batches=list(batches()),
        loss={
            "each": cross_entropy(reduction="mean_with_sample_weight"),
            "first": keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
        },
        loss_weights={"each": 1.0, "first": 0.01},
        validated=True,
        replicas=[replicas],
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(lambda: decayed(), id="weight decay with exclusions"),
        pytest.param(adam(), id="adam"),
        pytest.param(sgd(use_ema=True, ema_momentum=0.5), id="average", marks=pytest.mark.slow),
        pytest.param(
            sgd(use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2), id="overwritten"
        ),
        pytest.param(sgd(gradient_accumulation_steps=2), id="accumulated"),
    ],
)
@SEVERAL
def test_optimizer_features_are_equal_on_replicas(optimizer, replicas):
    agree(masked, optimizer, batches=TAGS, replicas=[replicas])


def decayed():
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1, epsilon=1e-5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def test_excluded_weights_do_not_decay():
    def step(decay):
        def make():
            optimizer = decayed()
            optimizer.weight_decay = decay
            return optimizer

        return trained(2, masked, make, TAGS[:1])[0]

    for with_decay, without in zip(step(0.5).weights, step(0.0).weights, strict=True):
        excluded = with_decay.path.split("/")[-1] in ("bias", "gamma", "beta")
        assert np.array_equal(with_decay.numpy(), without.numpy()) == excluded, with_decay.path


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_weight_without_gradient_does_not_change(devices):
    def make():
        model = translator()
        model.unused = keras.layers.Dense(3)
        model.unused.build((None, 2))
        return model

    model, _ = trained(devices, make, sgd(), BATCHES[:2])
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(model.unused.kernel, make().unused.kernel)


@pytest.mark.slow
def test_partly_trainable_models_train_equally_on_replicas():
    def adapted():
        model = translator()
        model.enable_lora(2)
        return model

    def partly():
        model = translator()
        model.freeze("encoder|tokens")
        return model

    for make in (adapted, partly):
        keras.utils.set_random_seed(5)
        before = make()
        after = agree(make, sgd())
        for a, b in zip(before.weights, after.weights, strict=True):
            kept = np.array_equal(a.numpy(), b.numpy())
            assert kept or b.trainable, b.path
        assert largest_difference(before, after) > 1e-3


@pytest.mark.parametrize("devices", [1, 2, FOUR])
def test_accumulated_batches_equal_one_large_batch(devices):
    batches = TAGS[:3]
    big = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches)
    parts, _ = trained(devices, masked, sgd(gradient_accumulation_steps=3), batches)
    whole, _ = trained(1, masked, sgd(), [big])
    assert largest_difference(parts, whole) < 1e-6
    assert int(parts.optimizer.iterations.numpy()) == 1


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ema_weights_are_kept(devices):
    batches = TAGS[:3]
    model, _ = trained(devices, masked, sgd(use_ema=True, ema_momentum=0.5), batches)
    expected = None
    for count in range(1, 4):
        now = trained(devices, masked, sgd(), batches[:count])[0].get_weights()
        pairs = zip(expected or now, now, strict=True)
        expected = [(a + b) / 2 for a, b in pairs]
    for a, b in zip(model.get_weights(), expected, strict=True):  # `fit` ends with the EMA weights
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2, FOUR])
def test_metrics_are_exact_over_replicas_at_every_step(devices):
    seen = []

    class Logs(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs):
            seen.append({name: float(value) for name, value in logs.items()})

    batches = list(tagging())
    keras.utils.set_random_seed(5)
    with strategy(devices).scope():
        model = masked()
        model.compile(
            keras.optimizers.SGD(0.0),
            cross_entropy(reduction="mean_with_sample_weight"),
            metrics=["sparse_categorical_accuracy"],
            weighted_metrics=["sparse_categorical_crossentropy"],
            jit_compile=False,
        )
    model.fit(dataset(batches), shuffle=False, verbose=0, callbacks=[Logs()])
    x, y, w = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    logits = model(x).numpy()
    for step, logs in enumerate(seen):
        rows = sum(len(b[0]) for b in batches[: step + 1])
        loss = -tf.nn.log_softmax(logits[:rows]).numpy()
        loss = np.take_along_axis(loss, y[:rows, :, None], 2)[..., 0]
        weight = w[:rows] * (x[:rows] > 0)
        assert logs["loss"] == pytest.approx((loss * weight).sum() / weight.sum(), rel=1e-5)
        mask = x[:rows] > 0
        hits = (logits[:rows].argmax(-1) == y[:rows]) & mask
        assert logs["sparse_categorical_accuracy"] == pytest.approx(
            hits.sum() / mask.sum(), abs=1e-6
        )
    whole = model.evaluate(dataset(batches), verbose=0, return_dict=True)
    assert whole == pytest.approx(seen[-1], rel=1e-5)


@pytest.mark.slow
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    lengths=st.lists(st.lists(st.integers(0, T), min_size=1, max_size=9), min_size=1, max_size=3),
    steps=st.sampled_from([None, 2]),
    clip=st.sampled_from([None, 0.05]),
)
def test_any_batches_train_equally_on_replicas(lengths, steps, clip):
    optimizer = sgd(global_clipnorm=clip, gradient_accumulation_steps=steps)
    batches = [batch(i, rows) for i, rows in enumerate(lengths)]
    batches = [(x["source"], y, w) for x, y, w in batches]
    agree(masked, optimizer, batches=batches, replicas=(2, 4))


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_each_replica_has_a_different_dropout_mask_determined_by_the_seed(jit_compile):
    class Kept(keras.layers.Layer):
        """Returns the units that dropout kept as an additional output."""

        def __init__(self):
            super().__init__()
            self.dropout = keras.layers.Dropout(0.5)
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, x, training=False):
            return self.dropout(self.scale * keras.ops.ones_like(x), training=training)

    class Sum(keras.metrics.Metric):
        """Counts how often each unit was kept, by row."""

        def __init__(self, name="kept"):
            super().__init__(name=name)
            self.total = self.add_variable((2, 64), "zeros", name="total")

        def update_state(self, y, y_pred, sample_weight=None):
            row = keras.ops.one_hot(y, 2)
            self.total.assign_add(keras.ops.einsum("br,bt->rt", row, y_pred / 2))

        def result(self):
            return keras.ops.sum(self.total)

    def kept(seed, steps=3):
        keras.utils.set_random_seed(seed)
        with strategy(2).scope():
            x = keras.Input([64])
            model = Model(x, Kept()(x))
            counts = Sum()
            model.compile(
                keras.optimizers.SGD(0.0),
                lambda y, p: keras.ops.mean(p, -1),
                metrics=[counts],
                jit_compile=jit_compile,
            )
        rows = np.zeros((2, 64), "float32"), np.array([0, 1])  # one row for each replica
        model.fit(tf.data.Dataset.from_tensors(rows).repeat(steps), shuffle=False, verbose=0)
        return counts.total.numpy(), [v.numpy() for v in model.variables if "seed" in v.path]

    first, state = kept(1)
    assert 0.3 < first.mean() / 3 < 0.7
    assert (first[0] != first[1]).mean() > 0.3  # equal masks would give equal counts
    again, same_state = kept(1)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(state, same_state)
    other, _ = kept(2)
    assert (first != other).any()


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_mixed_precision_trains_like_float32(devices, policy):
    expected, _ = trained(1, translator, sgd(global_clipnorm=None), BATCHES[:3])
    keras.config.set_dtype_policy(policy)
    mixed, _ = trained(devices, translator, sgd(global_clipnorm=None), BATCHES[:3])
    assert largest_difference(expected, mixed) < 2e-3  # weights move by up to 0.05


@pytest.mark.parametrize("devices", [1, 2, FOUR])
def test_an_overflow_on_one_device_skips_the_step_on_all(devices):
    keras.config.set_dtype_policy("mixed_float16")
    network, _ = trained(devices, masked, adam(), TAGS[:1])
    before, scale = network.get_weights(), network.optimizer.dynamic_scale.numpy()
    x, y, w = (array.copy() for array in TAGS[0])
    x[-1], w[-1] = 1, np.inf  # the last row is the last device's
    network.fit(tf.data.Dataset.from_tensors((x, y, w)), shuffle=False, verbose=0)
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert network.optimizer.dynamic_scale.numpy() == scale / 2


@pytest.mark.slow
def test_the_step_does_not_depend_on_the_loss_scale():
    def step(scale):
        network, _ = trained(1, translator, lambda: keras.optimizers.SGD(0.1), BATCHES[:1])
        network.optimizer.dynamic_scale.assign(scale)
        network.train_on_batch(*batch(1))
        return network

    keras.config.set_dtype_policy("mixed_float16")
    assert largest_difference(step(2.0**15), step(2.0**10)) < 1e-3


@pytest.mark.parametrize(
    "policy",
    [
        "float32",
        pytest.param("mixed_float16", marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_training_overfits_one_batch(policy):
    keras.config.set_dtype_policy(policy)
    network, _ = trained(
        1, small, lambda: keras.optimizers.Adam(3e-3), [batch()] * 2, jit_compile="auto"
    )
    data = tf.data.Dataset.from_tensors(batch()).repeat(60)
    history = network.fit(data, shuffle=False, verbose=0, epochs=2)
    logits = keras.ops.convert_to_numpy(network(batch()[0]))
    _, labels, weight = batch()
    assert ((logits.argmax(-1) == labels) | (weight == 0)).all(), history.history


@pytest.mark.slow
def test_nothing_is_traced_after_the_first_epoch():
    keras.utils.set_random_seed(5)
    with strategy(2).scope():
        model = masked()
        model.compile(sgd()(), SMOOTHED, weighted_metrics=["accuracy"], jit_compile=True)
    data = dataset([TAGS[0], TAGS[1], TAGS[3]])
    model.fit(data, shuffle=False, verbose=0, validation_data=data)
    parts = model._forward_backward, model._update_copies
    traces = [part.experimental_get_tracing_count() for part in parts]
    assert min(traces) > 0
    model.fit(data, shuffle=False, verbose=0, epochs=3, validation_data=data)
    assert [part.experimental_get_tracing_count() for part in parts] == traces


def test_a_step_measures_gradient_norm_and_weight():
    model, _ = trained(2, regularized, sgd(), TAGS[:1])
    x, y, w = TAGS[0]
    assert float(model.measured["weight"]) == w.sum()
    keras.utils.set_random_seed(5)
    network = regularized()
    with tf.GradientTape() as tape:
        loss = SMOOTHED(y, network(x), w) + sum(network.losses)
    gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, network.trainable_weights)]
    expected = float(tf.linalg.global_norm(gradients))
    assert float(model.measured["gradient_norm"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_recomputation_trains_equally_on_replicas():
    kept, _ = trained(1, translator, sgd(), BATCHES[:2])
    again, _ = trained(2, translator, sgd(), BATCHES[:2], remat=True)
    assert largest_difference(kept, again) < 1e-5


def test_evaluation_weights_tokens_not_batches():
    network = small()
    network.compile(jit_compile=False)
    x, y, w = batch()
    data = tf.data.Dataset.from_tensor_slices((x, y, w))
    whole, parts = (network.evaluate(data.batch(n), verbose=0) for n in (8, 3))
    assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_a_custom_subclass_can_be_functional():
    class Own(Model):
        def __init__(self, units):
            x = keras.Input([3])
            super().__init__(x, keras.layers.Dense(units)(x))

    own = Own(2)
    own.compile("sgd", "mse", jit_compile=False)
    own.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    assert isinstance(own, Model) and own.output_shape == (None, 2)
    network = small()  # a model of the zoo does not change
    network.compile(jit_compile=False)
    network.fit(dataset(BATCHES[:1]), shuffle=False, verbose=0)


def settings_of(optimizer):
    names = "gradient_accumulation_steps", "ema_overwrite_frequency", "_all_reduce_sum_gradients"
    return [getattr(optimizer, name) for name in names], optimizer.get_config()


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_optimizer_is_unchanged_after_compile_and_fit(jit_compile):
    with strategy(2).scope():
        model = regularized()
        optimizer = sgd(
            gradient_accumulation_steps=2, use_ema=True, ema_overwrite_frequency=2, momentum=0.5
        )()
        before, names = settings_of(optimizer), set(vars(optimizer))
        model.compile(optimizer, cross_entropy(), jit_compile=jit_compile)
    assert settings_of(optimizer) == before and set(vars(optimizer)) == names
    model.fit(dataset(list(tagging(weighted=False))[:2]), verbose=0)
    assert settings_of(optimizer) == before
    assert optimizer.iterations.numpy() == 1 and optimizer._iterations.numpy() == 2


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_the_optimizer_is_unchanged_after_a_failed_step(run_eagerly):
    class Failing(keras.optimizers.SGD):
        def update_step(self, *args):
            raise ArithmeticError("as the user's update may")

    model = regularized()
    optimizer = Failing(0.1, gradient_accumulation_steps=2)
    before = settings_of(optimizer)
    model.compile(optimizer, cross_entropy(), run_eagerly=run_eagerly)
    with pytest.raises(ArithmeticError):
        model.fit(dataset(list(tagging(weighted=False))[:2]), verbose=0)
    assert settings_of(optimizer) == before and optimizer._iterations.numpy() == 0


@pytest.mark.parametrize(
    "devices, options", [(2, {}), (1, {"gradient_accumulation_steps": 2, "clipnorm": None})]
)
def test_the_optimizer_in_a_custom_loop_equals_plain_keras(devices, options):
    def looped(made, fitted):
        keras.utils.set_random_seed(5)
        here = strategy(devices)
        with here.scope():
            model = regularized()
            model = made(model.inputs, model.outputs)
            optimizer = keras.optimizers.SGD(0.5, **options)
            model.compile(optimizer, cross_entropy(), jit_compile=False)
        if fitted:  # without changing the weights
            optimizer.learning_rate = 0.0
            model.fit(dataset(list(tagging(weighted=False))[:2]), verbose=0)
            optimizer.learning_rate = 0.5

        def step(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(
                    keras.losses.sparse_categorical_crossentropy(y, model(x), from_logits=True)
                )
            gradients = tape.gradient(loss, [v.value for v in model.trainable_weights])
            optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))

        data = here.experimental_distribute_dataset(dataset(list(tagging(weighted=False))[:4]))
        run = tf.function(lambda x, y: here.run(step, (x, y)))
        for batch in data:
            run(*batch)
        for v in model.trainable_weights:
            copies = here.experimental_local_results(v.value)
            assert all(np.array_equal(copies[0], copy) for copy in copies)
        return model

    assert largest_difference(looped(Model, True), looped(keras.Model, False)) < 1e-6


class OwnStep(OwnLoss):
    """A model with the custom step of Keras's guide."""

    def train_step(self, data):
        x, y, w = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = keras.Model.compute_loss(self, x, y, self(x, training=True), w)
        gradients = tape.gradient(loss, [v.value for v in self.trainable_weights])
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return {"own": loss, "weight": tf.constant(3.0)}

    def compute_loss(self, *args, **kwargs):
        return keras.Model.compute_loss(self, *args, **kwargs)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_custom_train_step_trains_like_plain_keras(devices):
    batches = [(x, y) for x, y, _ in TAGS[:2]]  # of equal size and weight on all replicas
    optimizer = sgd(global_clipnorm=None)  # Keras clips each replica's gradients
    model, logs = trained(devices, OwnStep, optimizer, batches, cross_entropy(), jit_compile="auto")
    alone, _ = trained(1, OwnLoss, optimizer, batches, loss=None)
    assert largest_difference(model, alone) < 1e-6
    assert logs.keys() == {"own", "weight"} and logs["weight"] == 3 and not model.measured


def test_a_custom_train_step_can_extend_ours():
    class Added(OwnLoss):
        def train_step(self, data):
            return {**super().train_step(data), "added": tf.constant(1.0)}

    model, logs = trained(2, Added, sgd(), [(x, y) for x, y, _ in TAGS[:2]], loss=None)
    assert logs.keys() == {"added", "loss"} and logs["added"] == 1
    assert model.measured.keys() == {"gradient_norm", "weight"}


def test_a_keras_file_restores_accumulated_gradients(tmp_path):
    model = translator()
    model.compile(sgd(gradient_accumulation_steps=2, momentum=0.5)(), jit_compile=False)
    model.build_optimizer()
    for i, v in enumerate(model.optimizer.variables):
        v.assign(np.full(v.shape, i))
    model.save(tmp_path / "model.keras")
    classes = {"Transformer": type(model)}
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=classes)
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert loaded.optimizer.gradient_accumulation_steps == 2


def test_a_model_of_the_zoo_can_have_a_custom_train_step():
    from polyhead.zoo import GPT

    class Own(GPT):
        def train_step(self, data):
            x, y, w = keras.utils.unpack_x_y_sample_weight(data)
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True), w)
            gradients = tape.gradient(loss, [v.value for v in self.trainable_weights])
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            return {"own": loss}

    model = Own.preset("char", vocab_size=V, num_layers=1, dim=16, num_heads=2, end_id=0)
    model.compile(sgd()())
    x, y, w = TAGS[0]
    first, last = model.fit(dataset([(x, y, w)] * 2), epochs=2, verbose=0).history["own"]
    assert last < first


def test_a_built_model_is_not_built_from_data():
    # Keras's `_maybe_symbolic_build` is overridden: it must exist.
    assert hasattr(keras.Model, "_maybe_symbolic_build")
    network = small()
    network.compile()
    network._maybe_symbolic_build(iterator=None)


def test_unsupported_training_is_refused(monkeypatch):
    with strategy(2).scope():
        inside = translator()
        inside.compile(sgd()())
        with pytest.raises(NotImplementedError, match="MultiOptimizer is not supported under"):
            several = keras.optimizers.OptimizerMap(sgd()())
            inside.compile(keras.optimizers.MultiOptimizer(several))
    with pytest.raises(ValueError, match="model belongs to MirroredStrategy, the optimizer to"):
        inside.compile(sgd()())
    monkeypatch.setattr(replicas, "SUPPORTED", (tf.distribute.OneDeviceStrategy,))
    with pytest.raises(NotImplementedError, match="DefaultDistributionStrategy is not supported"):
        translator().compile(sgd()())


@pytest.mark.parametrize("devices", [1, 2])
def test_weights_can_have_several_dtypes(devices):
    def mixed():
        x = keras.Input([4])
        y = keras.layers.Dense(8, dtype="float16")(x)
        return Model(x, keras.layers.Dense(1)(y))

    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    batches = [(x, x[:, :1])] * 2

    def plain():  # Keras clips weights of one dtype only
        return keras.optimizers.SGD(0.1)

    model, _ = trained(devices, mixed, plain, batches, "mse", jit_compile=True)
    alone, _ = trained(1, mixed, plain, batches, "mse")
    assert {v.dtype for v in model.trainable_weights} == {"float16", "float32"}
    assert largest_difference(alone, model) < 1e-2


def test_an_invalid_number_of_devices_is_refused():
    with pytest.raises(ValueError, match="devices must be 1 or more"):
        strategy(0)
    with pytest.raises(RuntimeError, match="before TensorFlow is used; there are 4"):
        strategy(5)
