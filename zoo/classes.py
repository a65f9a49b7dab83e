"""Classes of images and texts: their names, and the most likely ones."""

import re
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from ..layers.arguments import plain
from ..training.states import by_path
from .model import Pretrained


class Classification(NamedTuple):
    """A class and its probability; the label of a class without a name is its number.

    >>> label, probability = polyhead.Classification("cat", 0.9)
    >>> label
    'cat'
    """

    label: str
    probability: float


class Classifier(Pretrained):
    """Base class of models whose configuration has ``num_classes`` and ``class_names``."""

    def label(self, i: int) -> str:
        """The name of class ``i``, or its number."""
        return str(i) if self.config.class_names is None else self.config.class_names[i]

    def enable_lora(self, rank: int, alpha: float | None = None) -> None:
        """Adds LoRA adapters as `Pretrained.enable_lora` does, and trains the head as well.

        After `adapt`, the head is new. Weights of the head that were frozen before stay frozen.

        >>> model = polyhead.ViT.preset("nano-4", num_layers=1)
        >>> model.enable_lora(rank=4)
        >>> [v.path for v in model.trainable_weights if "lora" not in v.path]
        ['head/kernel', 'head/bias']
        """
        head = [v for v in self.trainable_variables if v.path.startswith("head/")]
        super().enable_lora(rank, alpha)
        for v in head:
            v.trainable = True

    def _copy_weights(self, model, renewed):
        """Copies the weights to ``model``, but for the paths that match the pattern ``renewed``.

        Raises:
            ValueError: other weights, beside the head's, differ.
        """
        old, new = by_path(self.weights), by_path(model.weights)
        kept = {path: v for path, v in new.items() if not re.match(renewed, path)}
        gone = [path for path in old if path not in new and not re.match("head/|positions/", path)]
        for path in [*kept, *gone]:
            if path not in old or path not in new or old[path].shape != new[path].shape:
                raise ValueError(f"no other weights than the head's can change: {path}")
        for path, v in kept.items():
            v.assign(old[path])

    def _check_top(self, top):
        """Checks the argument ``top`` of `classify`: a number of classes, or None."""
        count = 1 if top is None else plain(top)
        if type(count) is not int or not 0 < count <= self.config.num_classes:
            raise ValueError(f"top must be from 1 to {self.config.num_classes}: {top!r}")

    def _most_likely(self, probabilities, top):
        """The `Classification` of ``probabilities`` (C,); with ``top``, a list of the best."""
        best = np.argsort(-probabilities, kind="stable")[: 1 if top is None else top]
        classes = [Classification(self.label(i), float(probabilities[i])) for i in best]
        return classes[0] if top is None else classes


def count_classes(
    num_classes: int | None, class_names: Sequence[str] | None
) -> tuple[int | None, Any]:
    """Returns the number of classes, which follows from their names, and the names as a tuple.

    A string stays one, for `check_class_names` to refuse.
    """
    if isinstance(class_names, Set):
        raise ValueError(f"class_names need an order, which a set does not have: {class_names!r}")
    if class_names is None:
        return num_classes, None
    names = class_names if isinstance(class_names, str) else plain(tuple(class_names))
    return len(names) if num_classes is None else num_classes, names


def check_class_names(config: Any) -> None:
    """Checks that there is a name for each class, or none, and makes a list a tuple.

    Raises:
        ValueError: they are not strings, or there is another number of them.
    """
    if isinstance(config.class_names, list):
        object.__setattr__(config, "class_names", tuple(config.class_names))
    if (names := config.class_names) is None:
        return
    if type(names) is not tuple or not all(type(name) is str for name in names):
        raise ValueError(f"class_names must be strings: {names!r:.100}")
    if len(names) != config.num_classes:
        raise ValueError(f"there must be a name for each class: {len(names)}, {config.num_classes}")
