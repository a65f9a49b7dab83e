"""The base of every model, and how a function of it is compiled: chosen once per backend.

On TensorFlow a model trains by `replicas`; elsewhere it is a plain `keras.Model`.
"""

from collections.abc import Callable
from typing import Any

import keras

from .compiling import noticed

if keras.config.backend() == "tensorflow":
    from .replicas import Model, jitted

    def build_optimizer(model: keras.Model) -> None:
        """Creates the variables of the model's optimizer, if there are none yet.

        >>> model = polyhead.GPT.preset("char-small", num_layers=1)
        >>> model.compile("adam")
        >>> polyhead.training.build_optimizer(model)
        >>> model.optimizer.built
        True
        """
        model.build_optimizer()
else:
    from keras import Model

    def jitted(model, function):
        """``function`` of arrays, which calls ``model``, compiled by JAX."""
        import jax

        @jax.jit
        def stateless(values, *args):
            with keras.StatelessScope(zip(model.variables, values, strict=True)):
                return function(*args)

        return lambda *args: stateless([v.value for v in model.variables], *args)

    def build_optimizer(model: keras.Model) -> None:
        """Creates the variables of the model's optimizer, if there are none yet."""
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)


def compiled(model: keras.Model, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``function`` of arrays, which calls ``model``, compiled once per shape.

    Where that takes long, a line on stderr says that ``name`` is compiled, and another how long
    it took.

    >>> model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    >>> predict = polyhead.training.compiled(model, lambda x: model(x), "prediction")
    >>> tuple(predict(np.ones([3, 2], "float32")).shape)
    (3, 1)
    """
    return noticed(jitted(model, function), name)


__all__ = ["Model", "build_optimizer", "compiled"]
