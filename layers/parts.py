"""Layers that are composed of layers given to their constructor."""

import inspect
from typing import Any

import keras


class Composed(keras.layers.Layer):
    """A layer some of whose arguments are layers: its parts.

    A part is a template: the layer makes its own copy by `_copy_part`, with its own name and dtype
    policy, so that one part can be given many times. ``PARTS`` maps the argument of each part to
    the attribute that holds the copy. Every other argument that the configuration keeps is an
    attribute of the same name.
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
        """A new layer like ``part``, named ``name``, with this layer's dtype policy; or None."""
        if part is None:
            return None
        # Serialized: Keras cannot read the arguments of a layer back that was given the object.
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        return type(part).from_config({**part.get_config(), "name": name, "dtype": dtype})
