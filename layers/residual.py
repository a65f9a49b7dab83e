"""The residual connection around a sublayer."""

from collections.abc import Sequence

import keras

from .arguments import Tensor

ORDERS = ("pre", "post", "both")


class Residual:
    """x + f(x) with a normalization, as one step before and one after the sublayer f.

    Call ``y = f(residual.before(x))``, then ``x = residual.after(x, y)``. In two steps, because f
    may return more than a tensor, as attention does with a cache. This is not a layer: the norms
    belong to the block that creates it, and their variables' paths do not contain it.

    Args:
        norm: a normalization layer.
        output_norm: a second normalization layer, for the order "both".
        order: where the normalization is:

            - "pre": x + f(norm(x)), as in GPT-2 (Radford et al. 2019, section 2.3);
            - "post": norm(x + f(x)), as in Vaswani et al. 2017, section 5.4;
            - "both": x + output_norm(f(norm(x))), as in Gemma 2 (arXiv 2408.00118, section 2).
        dropout: layers applied to the sublayer's output, one after the other.
        x_shape: the shape that the norms are built for.

    >>> residual = Residual(keras.layers.LayerNormalization(), order="pre", x_shape=(None, 8))
    >>> x, dense = np.ones((2, 8)), keras.layers.Dense(8)
    >>> tuple(residual.after(x, dense(residual.before(x))).shape)
    (2, 8)
    """

    def __init__(
        self,
        norm: keras.layers.Layer,
        output_norm: keras.layers.Layer | None = None,
        *,
        order: str,
        dropout: Sequence[keras.layers.Layer] = (),
        x_shape: tuple[int | None, ...],
    ) -> None:
        self.norm = norm
        self.output_norm = output_norm
        self.order = order
        self.dropout = dropout
        norm.build(x_shape)
        if output_norm is not None:
            output_norm.build(x_shape)

    def before(self, x: Tensor) -> Tensor:
        """The sublayer's input, for ``x`` (B, T, D)."""
        return x if self.order == "post" else self.norm(x)

    def after(self, x: Tensor, y: Tensor, training: bool = False) -> Tensor:
        """Adds the sublayer's output ``y`` to ``x``, both (B, T, D)."""
        if self.output_norm is not None:
            y = self.output_norm(y)
        for dropout in self.dropout:
            y = dropout(y, training=training)
        return self.norm(x + y) if self.order == "post" else x + y
