"""A minimal text encoder, for tests of `TextEncoder`."""

from dataclasses import dataclass

import keras
from keras import ops

from polyhead.layers import (
    FeedForward,
    MultiHeadAttention,
    PositionalEmbedding,
    TokenEmbedding,
    TransformerBlock,
    padding_mask,
)
from polyhead.zoo import TextEncoder
from polyhead.zoo.heads import HeadConfig, head_shapes
from polyhead.zoo.model import block_shapes, norm_shapes


@dataclass(frozen=True)
class ToyConfig(HeadConfig):
    vocab_size: int = 300
    max_length: int = 32
    num_layers: int = 1
    dim: int = 16
    intermediate_dim: int = 24
    num_heads: int = 2
    activation: str = "relu"
    dropout: float = 0.0
    pad_id: int = 0


@keras.saving.register_keras_serializable("tests")
class Toy(TextEncoder):
    """An encoder with a table of types."""

    Config = ToyConfig
    PRESETS = {"toy": ToyConfig()}

    def __init__(self, config, tokenizer=None, initialize=True, **kwargs):
        super().__init__(config, tokenizer, **kwargs)
        c, dtype = config, self.dtype_policy
        self.tokens = TokenEmbedding(c.vocab_size, c.dim, dtype=dtype, name="tokens")
        self.types = TokenEmbedding(2, c.dim, dtype=dtype, name="types")
        self.positions = PositionalEmbedding("learned", c.max_length, dtype=dtype, name="positions")
        parts = dict(
            attention=MultiHeadAttention(c.num_heads),
            feed_forward=FeedForward(c.intermediate_dim),
        )
        self.blocks = [
            TransformerBlock(**parts, dtype=dtype, name=f"block_{i}") for i in range(c.num_layers)
        ]
        self.norm = keras.layers.LayerNormalization(dtype=dtype, name="norm")
        activation = {"classes": "tanh", "score": "tanh", "tokens": "gelu"}.get(c.head)
        norm = keras.layers.LayerNormalization() if c.head == "tokens" else None
        self.build_head(activation, norm)
        self.build_layers()

    @classmethod
    def shapes(cls, config):
        c = config
        yield "tokens/embeddings", (c.vocab_size, c.dim)
        yield "types/embeddings", (2, c.dim)
        yield "positions/embeddings", (c.max_length, c.dim)
        yield from block_shapes("block", c.num_layers, c, c.intermediate_dim)
        yield from norm_shapes("norm", c.dim).items()
        dense = ("kernel", "bias") if c.head in ("classes", "score", "tokens") else ()
        norm = ("gamma", "beta") if c.head == "tokens" else ()
        yield from head_shapes(c, dense, norm).items()

    def features(self, tokens, types=None):
        types = ops.zeros_like(tokens) if types is None else types
        x = self.positions(self.tokens(tokens)) + self.types(types)
        mask = padding_mask(tokens, self.config.pad_id)
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x)


def toy_tokenizer():
    """A tokenizer whose tokens are all characters but white space."""
    import tensorflow as tf

    from polyhead.data.tokenizers.tokenizer import Tokenizer

    class ToyTokenizer(Tokenizer):
        vocab_size, pad_id, mask_id, mask_token = 300, 0, 3, "[MASK]"
        prefix, suffix, separator, pair_type = (1,), (2,), (2,), 1

        def _offsets(self, texts):
            points = tf.strings.unicode_decode(texts, "UTF-8")
            kept = points > 32
            starts = tf.cast(tf.ragged.range(points.row_lengths()), tf.int32)
            points, starts = (tf.ragged.boolean_mask(x, kept) for x in (points, starts))
            ids = points.with_values(
                tf.where(points.flat_values == 0xE000, 3, 4 + points.flat_values % 296)
            )
            return ids, starts, starts + 1

        def _encode(self, texts, target=False):
            return self._offsets(tf.strings.regex_replace(texts, r"\[MASK\]", "\ue000"))[0]

        def pieces(self, tokens, target=False):
            return [f"<{token}>" for token in tokens]

    return ToyTokenizer()


def toy(head=None, tokenizer=None, scale=0.5, seed=0, **settings):
    """A `Toy` with large random weights, whose outputs differ between tokens."""
    keras.utils.set_random_seed(seed)
    model = Toy(ToyConfig(head=head, **settings), tokenizer)
    for i, v in enumerate(model.weights):
        v.assign(v + scale * keras.random.normal(v.shape, seed=seed + i))
    return model
