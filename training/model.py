"""The base class of all models, and compiled functions of a model, for Keras's backend.

On TensorFlow the base class is `replicas.Model`; on other backends it is `keras.Model`.
"""

from collections.abc import Callable
from typing import Any

import keras

from .compiling import with_notice

JAX = keras.config.backend() != "tensorflow"

if not JAX:
    from .replicas import Model, jit, trace_once

    def build_optimizer(model: keras.Model) -> None:
        """Builds the model's optimizer, unless it is built already.

        >>> model = polyhead.GPT.preset("char-small", num_layers=1)
        >>> model.compile("adam")
        >>> polyhead.training.build_optimizer(model)
        >>> model.optimizer.built
        True
        """
        model.build_optimizer()
else:
    from keras import Model

    def jit(model, function, xla=True):
        """Compiles ``function``, which takes arrays and calls ``model``, with JAX and XLA."""
        import jax

        @jax.jit
        def stateless(values, *args):
            with keras.StatelessScope(zip(model.variables, values, strict=True)):
                return function(*args)

        return lambda *args: stateless([v.value for v in model.variables], *args)

    def trace_once(function: Callable[..., Any], inline: bool = False) -> Callable[..., Any]:
        """Wraps ``function`` so that JAX traces it once per shape, however often it is called.

        Outside a compiled function, calls run ``function`` as it is.
        """
        import jax

        traced = jax.jit(function)

        def call(*args):
            inside = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
            return (traced if inside else function)(*args)

        return call

    def build_optimizer(model: keras.Model) -> None:
        """Builds the model's optimizer, unless it is built already."""
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)


def compiled(
    model: keras.Model, function: Callable[..., Any], name: str, xla: bool = True
) -> Callable[..., Any]:
    """Compiles ``function``, which takes arrays and calls ``model``, with XLA once per shape.

    Without ``xla`` TensorFlow compiles it once for all shapes; JAX always uses XLA.

    If compiling takes long, a line on stderr reports that ``name`` is being compiled, and a second
    line how long it took.

    >>> model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    >>> predict = polyhead.training.compiled(model, lambda x: model(x), "prediction")
    >>> tuple(predict(np.ones([3, 2], "float32")).shape)
    (3, 1)
    """
    return with_notice(jit(model, function, xla), name, by_shape=xla or JAX)


__all__ = ["Model", "build_optimizer", "compiled", "trace_once"]
