"""The base of every model, and how a function of it is compiled: chosen once per backend.

On TensorFlow a model trains by `replicas`; elsewhere it is a `keras.Model`, plainly.
"""

import keras

if keras.config.backend() == "tensorflow":
    from .replicas import Model, compiled
else:
    from keras import Model

    def compiled(model, function):
        """``function`` of arrays, which calls ``model``, compiled by JAX."""
        import jax

        @jax.jit
        def stateless(values, *args):
            with keras.StatelessScope(zip(model.variables, values, strict=True)):
                return function(*args)

        return lambda *args: stateless([v.value for v in model.variables], *args)


__all__ = ["Model", "compiled"]
