"""The Transformer of Vaswani et al. 2017, for translation."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from ..layers import (
    Dropout,
    FeedForward,
    MultiHeadAttention,
    PositionalEmbedding,
    TokenEmbedding,
    TransformerBlock,
)
from ..training import InverseSquareRoot, SmoothedCrossEntropy
from .decoding import GREEDY, Search
from .model import block_shapes, check_config, norm_shapes, stack
from .seq2seq import Seq2Seq


@dataclass(frozen=True)
class TransformerConfig:
    """Configuration of a `Transformer`; the defaults are those of the paper's base model.

    >>> config = polyhead.TransformerConfig(vocab_size=8000, dim=256, num_layers=3)
    >>> config.num_heads
    8
    """

    vocab_size: int = 37000
    source_vocab_size: int | None = None  # None: source and target share vocabulary and embedding
    num_layers: int = 6  # of the encoder
    decoder_layers: int | None = None  # None: num_layers
    dim: int = 512
    intermediate_dim: int = 2048
    num_heads: int = 8
    dropout: float = 0.1
    norm: str = "post"
    activation: str = "relu"
    scale_embeddings: bool = True
    interleaved_positions: bool = True
    logits_bias: bool = False
    max_length: int = 256  # of a source, in tokens including the end token
    pad_id: int = 0
    start_id: int = 1
    end_id: int = 2
    search: Search = GREEDY  # defaults of `translate` and `export`

    def __post_init__(self):
        check_config(self)
        self.search.within(self.vocab_size, self.max_length)
        if self.dim % 2:
            raise ValueError(f"dim must be even for sinusoidal positions: {self.dim}")
        if self.norm not in ("pre", "post"):
            raise ValueError(f"norm must be 'pre' or 'post': {self.norm!r}")


PRESETS = {
    # Vaswani et al. 2017, table 3.
    "base": TransformerConfig(),
    "big": TransformerConfig(dim=1024, intermediate_dim=4096, num_heads=16, dropout=0.3),
    # Transformer-Tiny for Multi30k: Wu et al. 2021 (arXiv 2105.14462), section 3. Pre-norm is our
    # choice: post-norm also trains, but needs a warm-up of half an hour on 2 cores.
    "tiny": TransformerConfig(
        vocab_size=10000, num_layers=4, dim=128, intermediate_dim=256, num_heads=4, dropout=0.3,
        norm="pre",
    ),
}  # fmt: skip


@keras.saving.register_keras_serializable("polyhead")
class Transformer(Seq2Seq):
    """Encoder-decoder Transformer (Vaswani et al. 2017, figure 1).

    Tokens ``{"source": (B, S), "target": (B, T)}`` -> logits (B, T, V) of the next token at each
    target position. One matrix embeds both languages and computes the logits (section 3.4), unless
    ``source_vocab_size`` is set: then the source has its own embedding. `translate` takes strings.

    Args:
        config: a `TransformerConfig`.
        tokenizer: `polyhead.data.Subwords` or `MarianPieces`; only needed for strings.

    Raises:
        ValueError: tokenizer and configuration have different vocabularies.

    >>> config = polyhead.TransformerConfig(vocab_size=20, num_layers=1, dim=16, num_heads=2)
    >>> model = polyhead.Transformer(config)
    >>> source, target = np.ones([2, 7], "int32"), np.ones([2, 5], "int32")
    >>> model({"source": source, "target": target}).shape.as_list()
    [2, 5, 20]
    >>> model = polyhead.Transformer.from_pretrained("Helsinki-NLP/opus-mt-en-de")  # doctest: +SKIP
    >>> model.translate("A dog runs.")  # doctest: +SKIP
    'Ein Hund rennt.'
    """

    Config = TransformerConfig
    PRESETS = PRESETS
    FAMILIES = {"marian": ".published.marian"}

    def __init__(self, config: TransformerConfig, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(config, tokenizer, **kwargs)
        dtype = self.dtype_policy
        embed = dict(dim=config.dim, scale=config.scale_embeddings, dtype=dtype)
        self.tokens = TokenEmbedding(
            config.vocab_size, logits_bias=config.logits_bias, name="tokens", **embed
        )
        self.source_tokens = self.tokens
        if config.source_vocab_size is not None:
            self.source_tokens = TokenEmbedding(
                config.source_vocab_size, name="source_tokens", **embed
            )
        self.positions = PositionalEmbedding(
            "sinusoidal", interleaved=config.interleaved_positions, dtype=dtype, name="positions"
        )
        self.dropout = Dropout(config.dropout, dtype=dtype, name="dropout")
        attention = MultiHeadAttention(config.num_heads)
        block = dict(
            attention=attention,
            feed_forward=FeedForward(config.intermediate_dim, config.activation),
            order=config.norm,
            dropout=config.dropout,
            dtype=dtype,
        )
        self.encoder = [
            TransformerBlock(**block, name=f"encoder_{i}") for i in range(config.num_layers)
        ]
        self.decoder = [
            TransformerBlock(**block, cross_attention=attention, name=f"decoder_{i}")
            for i in range(config.decoder_layers or config.num_layers)
        ]
        if config.norm == "pre":
            norm = dict(epsilon=1e-5, dtype=dtype)
            self.encoder_norm = keras.layers.LayerNormalization(name="encoder_norm", **norm)
            self.decoder_norm = keras.layers.LayerNormalization(name="decoder_norm", **norm)
        self.build_layers()

    @classmethod
    def shapes(cls, config: TransformerConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
        c = config
        yield "tokens/embeddings", (c.vocab_size, c.dim)
        if c.logits_bias:
            yield "tokens/bias", (c.vocab_size,)
        if c.source_vocab_size is not None:
            yield "source_tokens/embeddings", (c.source_vocab_size, c.dim)
        decoders = c.decoder_layers or c.num_layers
        yield from block_shapes("encoder", c.num_layers, c, c.intermediate_dim)
        yield from block_shapes("decoder", decoders, c, c.intermediate_dim, cross=True)
        if c.norm == "pre":
            yield from norm_shapes("encoder_norm", c.dim).items()
            yield from norm_shapes("decoder_norm", c.dim).items()

    def embed(self, embedding: TokenEmbedding, tokens: Any, start: Any = 0) -> Any:
        return self.dropout(self.positions(embedding(tokens), start=start))

    def embed_target(self, tokens: Any, start: Any = 0) -> Any:
        return self.embed(self.tokens, tokens, start)

    def encode(self, source: Any, mask: Any) -> Any:
        x, _ = stack(self.encoder, self.embed(self.source_tokens, source), mask=mask)
        return self.encoder_norm(x) if self.config.norm == "pre" else x

    def logits(self, x: Any) -> Any:
        return self.tokens.logits(self.decoder_norm(x) if self.config.norm == "pre" else x)

    def compile(self, optimizer: Any = None, loss: Any = None, **kwargs: Any) -> None:
        """Keras's `compile`. Default: the paper's optimizer and loss (sections 5.3 and 5.4)."""
        if optimizer is None:
            rate = InverseSquareRoot.of_width(self.config.dim, warmup=4000)
            optimizer = keras.optimizers.Adam(rate, beta_1=0.9, beta_2=0.98, epsilon=1e-9)
        super().compile(optimizer, SmoothedCrossEntropy(0.1) if loss is None else loss, **kwargs)
