"""Layers composed of other layers, which are passed to their constructor."""

import inspect
from typing import Any

import keras


def built(layer: keras.layers.Layer, *shapes: Any) -> Any:
    """Builds a layer for inputs of ``shapes``, and returns it."""
    layer.build(*shapes)
    return layer


class Composed(keras.layers.Layer):
    """Base class of layers that take other layers, their parts, as arguments.

    A part is only a template: `_copy_part` copies it, with a new name and this layer's dtype
    policy, so one part can be passed to many layers. ``PARTS`` maps the argument of each part to
    the attribute that holds the copy. All other arguments in the configuration are attributes of
    the same name.
    """

    PARTS = {}

    def get_config(self):
        config = super().get_config()
        for name in inspect.signature(type(self).__init__).parameters:
            if name in self.PARTS:
                part = keras.saving.serialize_keras_object(getattr(self, self.PARTS[name]))
                if part is not None:
                    part.pop("build_config", None)  # a template needs no weights
                config[name] = part
            elif name != "self" and hasattr(self, name):
                config[name] = getattr(self, name)
        return config

    @classmethod
    def from_config(cls, config):
        parts = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in cls.PARTS.keys() & config.keys()
        }
        return cls(**{**config, **parts})

    def _copy_part(self, part, name) -> Any:
        """Copies ``part`` with the name ``name`` and this layer's dtype policy; None stays None."""
        if part is None:
            return None
        # Serialized, because Keras cannot restore a layer whose dtype argument is an object.
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        return type(part).from_config({**part.get_config(), "name": name, "dtype": dtype})
