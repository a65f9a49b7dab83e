"""What follows the features of a text encoder: heads and pooling."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from ..layers import Dropout
from ..layers.arguments import Tensor
from ..layers.feed_forward import find_activation
from ..layers.parts import Composed
from .classes import check_class_names, count_classes
from .model import HUGE, check_config, check_real
from .published.format import NEVER

# The heads, and the methods that need them.
HEADS = {
    "classes": "classify",
    "score": "rerank",
    "tags": "tag",
    "spans": "answer",
    "tokens": "fill_mask",
}
CLASSIFIERS = ("classes", "tags")
SAME = "same"  # as the head to change to: the one that a model has; None is no head
POOLINGS = ("mean", "token", "max", "mean_sqrt", "last")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The settings of the head and of pooling, for the configurations of text encoders.

    It checks these fields, and those of the subclass by `check_config`.

    Raises:
        ValueError: a setting is invalid; the message names it.
    """

    head: str | None = None  # "classes", "score", "tags", "spans" or "tokens"
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    pooling: str = "mean"  # of `embed`
    normalize: bool = False
    no_answer: float = 0.0  # of `answer`: none if score(none) - score(best span) is larger

    def __post_init__(self):
        check_config(self)
        head = self.head
        if head not in [None, *HEADS]:  # a list: it may be unhashable
            raise ValueError(f"head must be one of {', '.join(HEADS)}, or None: {head!r}")
        if head in CLASSIFIERS:
            if self.num_classes < 1:
                raise ValueError(f"the head {head!r} needs num_classes: {self.num_classes}")
        elif self.num_classes or self.class_names is not None:
            raise ValueError(
                "num_classes and class_names belong to the heads 'classes' and 'tags', not "
                f"{head!r}"
            )
        check_class_names(self)
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}: {self.pooling!r}")
        check_real(self, "no_answer", lambda x: -HUGE <= x <= HUGE, "a finite number")


@keras.saving.register_keras_serializable("polyhead")
class Head(Composed):
    """A head: (..., D) -> (..., size), the outputs of a task for each vector.

    y = norm(activation(x W + b)), if there is an ``activation``, then dropout and a linear map,
    "output". The head "tokens" has no map of its own: ``size`` is 0, and `TokenEmbedding.logits`
    maps y to the vocabulary's logits, to which `bias` (V,) is added.

    Args:
        size: number of outputs; 0 for none.
        activation: a name in Keras, or "gelu_tanh"; None for no first map.
        norm: the normalization after the activation, or None.
        dropout: rate, in training, before the last map.
        use_bias: whether the first map has a bias.
        vocab_size: V, for the head "tokens"; else 0.

    Call with ``x`` (..., D).

    >>> head = Head(3, activation="tanh")
    >>> tuple(head(np.ones((2, 8), "float32")).shape)
    (2, 3)
    """

    PARTS = {"norm": "norm"}

    def __init__(
        self,
        size: int,
        activation: str | None = None,
        norm: keras.layers.Layer | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        vocab_size: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.activation = activation
        self.dropout = dropout
        self.use_bias = use_bias
        self.vocab_size = vocab_size
        self.norm = self._copy_part(norm, "norm")

    def build(self, x_shape):
        width = x_shape[-1]
        self.dense = self.output_map = None
        if self.activation is not None:
            function = find_activation(self.activation)
            self.dense = self._linear("dense", width, width, function, self.use_bias)
        if self.norm is not None:
            self.norm.build((None, width))
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy, name="dropout")
        if self.size:
            self.output_map = self._linear("output", self.size, width)
        if self.vocab_size:
            self.bias = self.add_weight(
                name="bias", shape=(self.vocab_size,), initializer="zeros", autocast=False
            )

    def _linear(self, name, width, x_width, activation=None, use_bias=True):
        layer = keras.layers.Dense(
            width,
            activation=activation,
            use_bias=use_bias,
            # The standard deviation of Devlin et al.'s code, `initializer_range`.
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build((None, x_width))
        return layer

    def call(self, x, training=False):
        shape = ops.shape(x)[:-1]
        x = ops.reshape(x, (-1, x.shape[-1]))  # of rank 2 `Dense` is one product
        if self.dense is not None:
            x = self.dense(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.output_map is not None:
            x = self.output_map(self.drop(x, training=training))
        return ops.reshape(x, (*shape, x.shape[-1]))


def head_shapes(
    config: Any, dense: tuple[str, ...] = (), norm: tuple[str, ...] = ()
) -> dict[str, tuple[int, ...]]:
    """The paths and shapes of a head's weights.

    Args:
        config: the configuration of a `TextEncoder`.
        dense: the weights of the first map: ("kernel", "bias"), ("kernel",), or () for none.
        norm: those of its normalization: ("gamma", "beta"), ("gamma",) or ().
    """
    d, shapes = config.dim, {}
    shapes |= {f"head/dense/{name}": (d, d) if name == "kernel" else (d,) for name in dense}
    shapes |= {f"head/norm/{name}": (d,) for name in norm}
    if size := head_size(config):
        shapes |= {"head/output/kernel": (d, size), "head/output/bias": (size,)}
    if config.head == "tokens":
        shapes["head/bias"] = (config.vocab_size,)
    return shapes


def change_head(
    config: Any,
    head: str | None = SAME,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[Any, str]:
    """Returns a configuration with another head or other classes, and a pattern of new weights.

    The pattern matches the paths of the weights that the two heads do not share. For other
    classes that is the last map: those before it, such as BERT's pooler, stay.

    Args:
        head: None: no head. Default: the configuration's own.
        num_classes, class_names: of the new head; the number follows from the names.
    """
    head = config.head if head == SAME else head
    num_classes, class_names = count_classes(num_classes, class_names)
    if num_classes is None:
        num_classes, same = 0, head == config.head
        if head in CLASSIFIERS:
            if not same:
                raise ValueError(f"the head {head!r} needs num_classes or class_names")
            num_classes, class_names = config.num_classes, config.class_names
    settings = dict(head=head, num_classes=num_classes, class_names=class_names)
    changed = dataclasses.replace(config, **settings)
    if all(getattr(config, name) == value for name, value in settings.items()):
        return changed, NEVER
    shared = head == config.head or {head, config.head} <= {"classes", "score"}
    return changed, "head/output/" if shared else "head/"


def head_size(config):
    """The number of outputs of the head's last map; 0 if it has none."""
    sizes = {"classes": config.num_classes, "tags": config.num_classes, "score": 1, "spans": 2}
    return sizes.get(config.head, 0)


def pool(x: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Reduces ``x`` (B, T, D) to (B, D), over the tokens where ``mask`` (B, T) is True.

    "mean"; "token": the first token; "last": the last one; "max"; "mean_sqrt": the sum divided by
    the square root of the number of tokens. These are the poolings of sentence-transformers
    (Reimers & Gurevych 2019, section 3). Computed in float32.

    >>> x = np.array([[[1.0, 4.0], [3.0, 2.0], [9.0, 9.0]]])
    >>> np.array(pool(x, np.array([[True, True, False]]), "mean"))
    array([[2., 3.]], dtype=float32)
    """
    x = ops.cast(x, "float32")
    if pooling == "token":
        return x[:, 0]
    weights = ops.cast(mask, "float32")
    count = ops.sum(weights, axis=1)
    if pooling == "max":
        largest = ops.max(ops.where(mask[..., None], x, -HUGE), axis=1)
        return ops.where(count[:, None] > 0, largest, 0.0)
    if pooling == "last":
        # The last True, also where padding precedes the tokens.
        index = ops.arange(ops.shape(x)[1], dtype="int32")
        last = ops.max(ops.where(mask, index, 0), axis=1)
        return ops.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    total = ops.sum(x * weights[..., None], axis=1)
    count = ops.maximum(count, 1e-9)[:, None]
    return total / (ops.sqrt(count) if pooling == "mean_sqrt" else count)
