"""The training step on TensorFlow: equal results on one device or many, compiled by XLA."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras.src.models.functional import Functional
from tensorflow.python.distribute import distribute_lib
from tensorflow.python.distribute.values import DistributedVariable

from .averages import averages, counting_updates, inner
from .callbacks import Progress
from .class_weights import apply_class_weights
from .compiling import Notice
from .devices import sum_over_replicas
from .global_loss import GlobalLoss, rows, share
from .normalization import synchronized_layers, synchronizing, unsynchronized_layers
from .states import random_states, some

DEFAULT = tf.distribute.get_strategy()  # outside any strategy's scope
SUPPORTED = (
    type(DEFAULT),
    tf.distribute.OneDeviceStrategy,
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
)
MEASURED = "polyhead/"  # prefix of the logs that a step moves to `Model.measured`
SHAPE = "polyhead/shape"  # log with the shape of a step's input; XLA compiles once per shape
STREAM = 0x9E3779B1  # 2**32 / the golden ratio: far from its small multiples


# Whether XLA compiles searches, and training steps with jit_compile="auto". Tests turn it off.
XLA = True


def jit(model, function, xla=True):
    """Compiles ``function``, which takes tensors and calls ``model``.

    With ``xla`` XLA compiles it once per shape, else TensorFlow once for all shapes.
    """
    if xla and not XLA:
        return tf.function(function, autograph=False, reduce_retracing=True)
    traced = tf.function(function, autograph=False, jit_compile=xla or None)

    def call(*args):
        args = keras.tree.map_structure(lambda x: x if x is None else tf.convert_to_tensor(x), args)
        specs = keras.tree.map_structure(
            lambda x: (
                x
                if x is None
                else tf.TensorSpec(x.shape if xla else [None] * x.shape.rank, x.dtype)
            ),
            args,
        )
        # Not `traced(*args)`, which warns of many shapes.
        return traced.get_concrete_function(*specs)(*args)

    return call


def trace_once(function: Callable[..., Any], inline: bool = False) -> Callable[..., Any]:
    """Wraps ``function`` so that a graph contains it once per shape, however often it is called.

    Outside a graph, calls run ``function`` as it is.

    Args:
        inline: whether TensorFlow may replace the calls by copies before it runs the graph: it can
            then leave out what is not used, but has to optimize each copy.

    >>> double = polyhead.training.trace_once(lambda x: 2 * x)
    >>> int(polyhead.training.compiled(None, lambda x: double(double(x)), "it")(np.int32(3)))
    12
    """
    attributes = {} if inline else {"_noinline": True}
    traced = tf.function(function, autograph=False, experimental_attributes=attributes)

    def read(x):  # of these variables a trace would keep those of its first call
        return tf.convert_to_tensor(x) if isinstance(x, DistributedVariable) else x

    def call(*args):
        if not tf.inside_function():
            return function(*args)
        return traced(*keras.tree.map_structure(read, args))

    return call


class Model(keras.Model):
    """A `keras.Model` whose `fit` gives the same result on one device and on several.

    Subclass it, or call it as ``Model(inputs, outputs)``. Under a `tf.distribute` strategy:

    - Each Keras loss is the weighted mean over the global batch, not over a replica's part.
    - Gradients are summed over the replicas first, so clipping, loss scaling, weight decay and EMA
      weights (``use_ema``) use the gradients of the global batch.
    - Gradient accumulation over ``gradient_accumulation_steps`` batches equals one large batch: a
      batch counts by its weight (that of the first loss, if there are several).
    - Each replica samples different random numbers, reproducible from the seed.
    - Metrics are exact over all replicas at every step.

    The step is compiled by XLA (``jit_compile``, on by default). On one device it is one function.
    Under a strategy it is two per replica: the forward and backward pass, and the optimizer, which
    updates the replica's copies of the variables. After a step, ``measured`` holds its
    ``gradient_norm`` before clipping and its ``weight``, the number of tokens or examples in the
    global batch.

    A custom `compute_loss` that does not call the losses of `compile` is a mean over the replica's
    examples; so is `add_loss`. A custom `train_step` runs as in `keras.Model`: Keras's optimizer
    sums the gradients over the replicas, ``measured`` stays empty, and XLA is used on one device
    only. If it calls ``super().train_step``, all of the above holds.

    >>> inputs = keras.Input([2])
    >>> model = polyhead.training.Model(inputs, keras.layers.Dense(1)(inputs))
    >>> model.compile("sgd", "mse")
    >>> history = model.fit(np.ones([4, 2]), np.ones([4, 1]), verbose=0)
    >>> sorted(model.measured)
    ['gradient_norm', 'weight']
    """

    def __new__(cls, *args, **kwargs):
        if cls is Model and is_functional(args, kwargs):
            cls = FunctionalModel
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if is_functional(args, kwargs):
            # Keras would make this class itself functional, and with it all models.
            make_functional(type(self))
            Functional.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)

    def compile(self, *args, jit_compile="auto", **kwargs):
        here = self.distribute_strategy
        if not isinstance(here, SUPPORTED):
            raise NotImplementedError(
                f"{type(here).__name__} is not supported: use MirroredStrategy or "
                "MultiWorkerMirroredStrategy, or Keras's JAX backend on TPUs"
            )
        if jit_compile == "auto" and not XLA:
            jit_compile = False
        own = type(self).train_step is not Model.train_step
        super().compile(*args, jit_compile=own and here is DEFAULT and jit_compile, **kwargs)
        parts = forward_backward, update_copies, whole_step
        if jit_compile and not self.run_eagerly:
            parts = (
                tf.function(part, jit_compile=True, autograph=False, reduce_retracing=True)
                for part in parts
            )
        self._forward_backward, self._update_copies, self._whole_step = parts
        if self._compile_loss is not None:
            self._compile_loss = GlobalLoss(
                self._compile_loss._user_loss,
                self._compile_loss._user_loss_weights,
                output_names=self._compile_loss.output_names,
            )
        self.measured = {}
        self._notice = Notice()
        optimizer = inner(self.optimizer)
        if optimizer is not None:
            if optimizer._distribution_strategy is not here:
                raise ValueError(
                    f"the model belongs to {type(here).__name__}, the optimizer to "
                    f"{type(optimizer._distribution_strategy).__name__}: create both, and call "
                    "compile, within strategy.scope()"
                )
            if isinstance(optimizer, keras.optimizers.MultiOptimizer) and here is not DEFAULT:
                raise NotImplementedError("MultiOptimizer is not supported under a strategy")
            self._accumulate = optimizer.gradient_accumulation_steps
            self._overwrite = optimizer.ema_overwrite_frequency

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        *args,
        class_weight=None,
        sample_weight=None,
        **kwargs,
    ):
        """Trains like `keras.Model.fit`; ``class_weight`` multiplies the sample weights.

        Labels are class indices or class probabilities; with probabilities, an example's weight is
        the mean of the class weights. With ``validation_split``, a generator or a `PyDataset`,
        Keras applies ``class_weight`` itself, to the most likely class.

        Raises:
            ConnectionError: another worker has stopped.
        """
        self._assert_compile_called("fit")
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # else Keras warns that it does not shuffle
        if class_weight and isinstance(x, tf.data.Dataset):
            x = x.map(lambda *batch: apply_class_weights(class_weight, *batch))
            class_weight = None
        elif class_weight and y is not None and not kwargs.get("validation_split"):
            _, _, sample_weight = apply_class_weights(class_weight, None, y, sample_weight)
            sample_weight, class_weight = sample_weight.numpy(), None
        given = keras.tree.flatten(getattr(callbacks, "callbacks", callbacks))
        self._notice.silent = verbose == 0 and not any(isinstance(c, Progress) for c in given)
        kwargs |= dict(class_weight=class_weight, sample_weight=sample_weight)
        try:
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)
        except tf.errors.OpError as error:
            if not self._on_several_machines or "Collective" not in str(error):
                raise
            raise ConnectionError(
                "another worker has stopped, and training cannot continue without it: restart the "
                "job on all machines; it resumes from its last checkpoint "
                f"({type(error).__name__})"
            ) from error
        finally:
            self._notice.silent = True

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, **kwargs):
        if class_weight:
            _, _, sample_weight = apply_class_weights(class_weight, None, y, sample_weight)
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    @property
    def _on_several_machines(self):
        return isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if tf.distribute.has_strategy():
            context = tf.distribute.get_replica_context()
            totals = sum_over_replicas(self._count(x, y, sample_weight))
            # Read here: the compiled function would keep its first value.
            scale = self.optimizer.scale_loss(tf.ones(()))
            replica = tf.convert_to_tensor(context.replica_id_in_sync_group)
            # Replicas cannot exchange moments inside a function that XLA compiles.
            part = forward_backward if synchronized_layers(self) else self._forward_backward
            loss, counts, gradients, y_pred = part(
                self, x, y, sample_weight, totals, scale, replica
            )
            norm = self._update_copies(
                self, sum_over_replicas(gradients), scale, first_loss(totals)
            )
        else:
            loss, counts, norm, y_pred = self._whole_step(self, x, y, sample_weight)
            totals = counts
        weight = first_loss(totals)
        self._track(loss, first_loss(counts), weight)
        return {
            **self._results(self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)),
            f"{MEASURED}gradient_norm": norm,
            f"{MEASURED}weight": weight,
        }

    def make_train_function(self, force=False):
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        step, layers = self.train_function, self._layers_to_synchronize()

        def function(iterator):
            with self._notice, synchronizing(layers):
                logs = step(iterator)
                self._notice.ran(logs.pop(SHAPE, self._notice.shape))
            measured = [name for name in logs if name.startswith(MEASURED)]
            self.measured = {name.removeprefix(MEASURED): logs.pop(name) for name in measured}
            return logs

        self.train_function = function

    def _make_function(self, step_function):
        def step(data):
            logs = step_function(data)
            if not self._on_several_machines:
                return logs
            # Keras cannot reduce scalars over several machines.
            return keras.tree.map_structure(lambda value: tf.reshape(value, [-1]), logs)

        def announced(data):  # Python runs this only while tracing
            tensors = [x for x in keras.tree.flatten(data) if isinstance(x, tf.Tensor)]
            shape = tensors[0].shape if tensors else tf.TensorShape(None)
            self._notice.begin("training", shape if shape.is_fully_defined() else None)
            logs = step(data)
            whole = self._whole_step is not whole_step and self.distribute_strategy is DEFAULT
            if whole and tensors and not shape.is_fully_defined():
                logs = {**logs, SHAPE: tf.shape(tensors[0])}
            return logs

        train = step_function == self.train_step and not self.run_eagerly
        return super()._make_function(announced if train else step)

    def _layers_to_synchronize(self):
        """Returns the layers that synchronize moments; warns about others and if XLA is off."""
        if self.distribute_strategy is DEFAULT:
            return []
        names = [layer.path for layer in unsynchronized_layers(self)]
        if names and self.distribute_strategy.num_replicas_in_sync > 1:
            warnings.warn(
                f"each replica normalizes its own part of a batch in {some(names)}, so training on "
                "several replicas differs from one: use BatchNormalization(synchronized=True)",
                stacklevel=2,
            )
        if (layers := synchronized_layers(self)) and self._forward_backward is not forward_backward:
            self._notice.say(
                "XLA is off for the forward and backward pass: replicas exchange moments in "
                f"{some([layer.path for layer in layers])}"
            )
        return layers

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=False)
        totals = None
        if tf.distribute.get_replica_context().num_replicas_in_sync > 1:
            totals = sum_over_replicas(self._count(x, y, sample_weight, y_pred))
        loss, counts = self._share_of_loss(x, y, y_pred, sample_weight, False, totals)
        self._track(loss, first_loss(counts), first_loss(counts if totals is None else totals))
        return self._results(self.compute_metrics(x, y, y_pred, sample_weight=sample_weight))

    def _share_of_loss(self, x, y, y_pred, sample_weight, training, totals=None):
        """Computes this replica's part of the global loss, and its counts.

        ``totals`` are the counts of all replicas; None for a single replica.
        """
        examples = rows((y, x))
        losses = GlobalLoss(None) if self._compile_loss is None else self._compile_loss
        with losses.over(examples, totals) as counts:
            loss = self._compute_loss(x, y, y_pred, sample_weight, training)
        if len(counts) == 1 and type(self).compute_loss is not keras.Model.compute_loss:
            loss = loss / tf.distribute.get_strategy().num_replicas_in_sync
        total = examples if totals is None else totals[0]
        loss = tf.where(examples > 0, loss, 0)  # the mean over no examples is NaN
        return loss * share(examples, total), tf.stack(counts)

    def _count(self, x, y, sample_weight, y_pred=None):
        """Computes this replica's counts before its loss.

        Layers create masks while the model runs. In training there are no outputs yet, so the
        model is called here too; the graph runs only what the counts depend on. A stateless scope
        prevents assignments.
        """
        # Regularizers read their weights from that scope.
        weights = [(v, v.value) for v in self.trainable_variables if v.regularizer is not None]
        with keras.StatelessScope(state_mapping=weights):
            if training := y_pred is None:
                y_pred = self(x, training=True)
            return self._share_of_loss(x, y, y_pred, sample_weight, training)[1]

    def _track(self, loss, weight, total):
        """Adds this replica's part of a global batch's loss to the mean loss, by its weight."""
        self._loss_tracker.total.assign_add(loss * total)
        self._loss_tracker.count.assign_add(weight)

    def _results(self, results):
        """Computes metrics over all replicas; their variables are sums."""
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            variables = [v for v in self.metrics_variables if v.aggregation == "sum"]
            sums = sum_over_replicas([v.value for v in variables])
            with keras.StatelessScope(state_mapping=list(zip(variables, sums, strict=True))):
                results = {**results, **self.get_metrics_result()}
        return results

    def _apply(self, gradients, weight):
        """Applies ``gradients``, or accumulates them until there are enough batches."""
        if not self._accumulate:
            self._step(gradients)
            return
        sums, total, batches = self._accumulators()
        for v, gradient in zip(sums, gradients, strict=True):
            v.assign_add(gradient * tf.cast(weight, v.dtype))
        total.assign_add(weight)
        batches.assign_add(1)

        def step_of_sums():
            self._step([tf.math.divide_no_nan(v.value, tf.cast(total, v.dtype)) for v in sums])
            for v in [*sums, total, batches]:
                v.assign(tf.zeros_like(v.value))
            return tf.no_op()

        tf.cond(tf.equal(batches, self._accumulate), step_of_sums, tf.no_op)

    def _step(self, gradients):
        optimizer = inner(self.optimizer)

        def overwrite():
            for v, average in averages(optimizer):
                v.assign(average.value)
            return tf.no_op()

        with counting_updates(optimizer):
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            if self._overwrite:
                made = tf.convert_to_tensor(optimizer.iterations)
                due = tf.logical_and(made > 0, made % self._overwrite == 0)
                tf.cond(due, overwrite, tf.no_op)

    def _accumulators(self):
        """Returns the optimizer's sums of gradients and of weights, and its number of batches."""
        optimizer = inner(self.optimizer)
        if not hasattr(optimizer, "_sums"):
            # Keras's name, so that its optimizer can use them too.
            if not hasattr(optimizer, "_accumulated_gradients"):
                optimizer._accumulated_gradients = [
                    optimizer.add_variable_from_reference(v, name="gradient_sum")
                    for v in self.trainable_weights
                ]
            optimizer._sums = (
                optimizer._accumulated_gradients,
                optimizer.add_variable((), name="weight_sum"),
                optimizer.add_variable((), dtype="int32", name="batches"),
            )
        return optimizer._sums

    def build_optimizer(self) -> None:
        """Builds the optimizer; variables cannot be created while a step is traced."""
        if self.optimizer is None:
            return
        with self.distribute_strategy.scope():
            if not self.optimizer.built:  # building Keras's loss scaling twice would reset it
                with counting_updates(inner(self.optimizer)):
                    self.optimizer.build(self.trainable_variables)
                for v, average in averages(self.optimizer):  # otherwise zero until the first update
                    average.assign(v.numpy())
            if self._accumulate:
                self._accumulators()

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Under a strategy Keras builds a model from the mean of the replicas' batches. Their shapes
        # may differ, and on several machines they cannot be read. Shapes are enough.
        if iterator is not None:
            data_batch = iterator.data_adapter.get_tf_dataset().element_spec
        _, y, _ = keras.utils.unpack_x_y_sample_weight(data_batch)
        made = self.built and self._compile_metrics is None and not keras.tree.is_nested(y)
        if self._distribute_strategy is not None and not made:
            with self.distribute_strategy.scope():
                self._symbolic_build(data_batch=data_batch)
        if self.built:
            self.build_optimizer()


class FunctionalModel(Model, Functional):
    """The class of ``Model(inputs, outputs)``."""


def is_functional(args, kwargs):
    """Whether a model is created from ``(inputs, outputs)``, decided as in Keras."""
    return len(args) == 2 or "outputs" in kwargs and len(args) + ("inputs" in kwargs) == 1


def make_functional(cls):
    """Replaces `Model` by `FunctionalModel` among the bases of a class."""
    if issubclass(cls, Model) and not issubclass(cls, FunctionalModel):
        cls.__bases__ = tuple(
            FunctionalModel if base is Model else make_functional(base) for base in cls.__bases__
        )
    return cls


def whole_step(model, x, y, sample_weight):
    """Runs a step on one device; returns loss, counts, gradient norm and outputs."""
    scale = model.optimizer.scale_loss(tf.ones(()))
    loss, counts, gradients, y_pred = forward_backward(model, x, y, sample_weight, None, scale, 0)
    model._apply(gradients, first_loss(counts))
    return loss, counts, norm(gradients) / scale, y_pred


def forward_backward(model, x, y, sample_weight, totals, scale, replica):
    """Returns this replica's part of the loss, counts, gradients times ``scale``, and outputs.

    ``totals`` are the counts of all replicas; None for a single replica.
    """
    streams = random_states(model) if totals is not None else []
    stream = tf.stack([tf.cast(replica, "int64") * STREAM, 0])
    for state in streams:
        state.assign_add(tf.cast(stream, state.dtype))
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss, counts = model._share_of_loss(x, y, y_pred, sample_weight, True, totals)
        scaled = loss * tf.cast(scale, loss.dtype)
    for state in streams:
        state.assign_sub(tf.cast(stream, state.dtype))
    gradients = tape.gradient(
        scaled,
        [v.value for v in model.trainable_weights],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    # The outputs are large: return them only if a metric reads them.
    own = type(model).compute_metrics is not keras.Model.compute_metrics
    y_pred = y_pred if own or model._compile_metrics is not None else None
    gradients = [tf.convert_to_tensor(g) for g in gradients]
    return loss, counts, gradients if totals is None else pack(gradients), y_pred


def norm(gradients):
    """The global norm of all gradients, whose dtypes may differ."""
    return tf.linalg.global_norm([tf.cast(g, "float32") for g in gradients])


def pack(tensors):
    """Packs tensors into one vector per dtype: reducing one costs less than reducing many."""
    kinds = {tensor.dtype: [] for tensor in tensors}
    for tensor in tensors:
        kinds[tensor.dtype].append(tf.reshape(tensor, [-1]))
    return [tf.concat(flat, 0) for flat in kinds.values()]


def unpack(vectors, variables):
    """Reverses `pack` for tensors with the shapes and dtypes of ``variables``."""
    parts = {}
    for vector in vectors:
        sizes = [v.value.shape.num_elements() for v in variables if v.dtype == vector.dtype.name]
        parts[vector.dtype.name] = iter(tf.split(vector, sizes))
    return [tf.reshape(next(parts[v.dtype]), v.shape) for v in variables]


def update_copies(model, gradients, scale, weight):
    """Updates this replica's copies of all variables; returns the gradient norm.

    The packed gradients are summed over all replicas, so each replica makes the same update.
    """
    gradients = unpack(gradients, model.trainable_weights)
    with own_copies(model):
        model._apply(gradients, weight)
    return norm(gradients) / scale


@contextlib.contextmanager
def own_copies(model):
    """A context in which variables are the replica's copies and there is no strategy.

    Keras's optimizers and loss scaling synchronize the replicas for each variable, which a compiled
    function cannot do.
    """
    optimizer = inner(model.optimizer)
    strategy = optimizer._distribution_strategy
    variables = model.optimizer.variables + model.trainable_weights
    mirrored = [(v, v._value) for v in variables if isinstance(v._value, DistributedVariable)]
    copies = [values._get() for _, values in mirrored]
    for (v, _), copy in zip(mirrored, copies, strict=True):
        v._value = copy
    distribute_lib._push_per_thread_mode(distribute_lib._get_default_replica_mode())
    optimizer._distribution_strategy = DEFAULT
    try:
        yield
    finally:
        optimizer._distribution_strategy = strategy
        distribute_lib._pop_per_thread_mode()
        for v, values in mirrored:
            v._value = values


def first_loss(counts):
    """The weight of a batch: the count of its first loss, or of examples if there is no loss."""
    return counts[min(1, counts.shape[0] - 1)]
