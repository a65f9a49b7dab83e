"""BART (Lewis et al. 2019): an encoder-decoder with learned positions, for summarization."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from keras import ops
from keras.layers import LayerNormalization

from ..layers import (
    Dropout,
    FeedForward,
    MultiHeadAttention,
    PositionalEmbedding,
    TokenEmbedding,
    TransformerBlock,
)
from .decoding import GREEDY, Search
from .model import block_shapes, check_config, norm_shapes, stack
from .seq2seq import Seq2Seq

OFFSET = 2  # rows of the tables of positions that precede the first position


@dataclass(frozen=True)
class BARTConfig:
    """Configuration of a `BART`; the defaults are those of bart-base.

    >>> polyhead.BART.count_parameters(polyhead.BARTConfig())
    139420416
    """

    vocab_size: int = 50265
    num_layers: int = 6  # of the encoder
    decoder_layers: int | None = None  # None: num_layers
    dim: int = 768
    intermediate_dim: int = 3072
    num_heads: int = 12
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0  # within the feed-forward networks
    activation: str = "gelu"
    scale_embeddings: bool = False
    logits_bias: bool = False
    max_length: int = 1024  # of a source and of a target, in tokens
    pad_id: int = 1
    start_id: int = 2
    end_id: int = 2
    search: Search = GREEDY  # defaults of `summarize` and `export`

    def __post_init__(self):
        check_config(self)
        self.search.within(self.vocab_size, self.max_length)


LARGE = dict(num_layers=12, dim=1024, intermediate_dim=4096, num_heads=16)
PRESETS = {
    # Lewis et al. 2019 (arXiv 1910.13461), section 2.1.
    "bart-base": BARTConfig(),
    "bart-large": BARTConfig(**LARGE),
    # Ours, for small data.
    "bart-tiny": BARTConfig(
        vocab_size=8000, num_layers=2, dim=128, intermediate_dim=256, num_heads=4, max_length=512
    ),
}


@keras.saving.register_keras_serializable("polyhead")
class BART(Seq2Seq):
    """Encoder-decoder with post-norm and learned positions (Lewis et al. 2019, section 2.1).

    Tokens ``{"source": (B, S), "target": (B, T)}`` -> logits (B, T, V) of the next token at each
    target position. One matrix embeds both sides and computes the logits; each side normalizes the
    sum of its embeddings and positions. The first two rows of the positions are not used.

    Args:
        config: a `BARTConfig`.
        tokenizer: `polyhead.data.BytePairs` or `Subwords`; only needed for strings.
        initialize: False skips the initialization, when weights are about to be loaded.

    Raises:
        ValueError: tokenizer and configuration have different vocabularies; there are too many
            tokens.

    >>> config = polyhead.BARTConfig(vocab_size=20, num_layers=1, dim=16, num_heads=2)
    >>> model = polyhead.BART(config)
    >>> source, target = np.ones([2, 7], "int32"), np.ones([2, 5], "int32")
    >>> model({"source": source, "target": target}).shape.as_list()
    [2, 5, 20]
    >>> model = polyhead.load("facebook/bart-large-cnn")  # doctest: +SKIP
    >>> model.summarize(article)  # doctest: +SKIP
    """

    Config = BARTConfig
    PRESETS = PRESETS
    FAMILIES = {"bart": ".published.bart"}
    VOCABULARY = ("vocab_size", "pad_id", "start_id", "end_id")
    TASKS = ("summarization", "denoising")

    def __init__(
        self, config: BARTConfig, tokenizer: Any = None, initialize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(config, tokenizer, **kwargs)
        c, dtype = config, self.dtype_policy
        self.tokens = TokenEmbedding(
            c.vocab_size, c.dim, c.scale_embeddings, c.logits_bias, dtype=dtype, name="tokens"
        )
        self.source_positions, self.positions = (
            PositionalEmbedding(
                "learned", max_length=c.max_length + OFFSET, dtype=dtype, name=f"{side}_positions"
            )
            for side in ("encoder", "decoder")
        )
        self.source_norm, self.norm = (
            LayerNormalization(epsilon=1e-5, dtype=dtype, name=f"{side}_embedding_norm")
            for side in ("encoder", "decoder")
        )
        self.dropout = Dropout(c.dropout, dtype=dtype, name="dropout")
        attention = MultiHeadAttention(c.num_heads, dropout=c.attention_dropout)
        parts = dict(
            attention=attention,
            feed_forward=FeedForward(
                c.intermediate_dim, c.activation, dropout=c.activation_dropout
            ),
            order="post",
            dropout=c.dropout,
            dtype=dtype,
        )
        self.encoder = [TransformerBlock(**parts, name=f"encoder_{i}") for i in range(c.num_layers)]
        self.decoder = [
            TransformerBlock(**parts, cross_attention=attention, name=f"decoder_{i}")
            for i in range(c.decoder_layers or c.num_layers)
        ]
        self.build_layers()
        if initialize:
            self.initialize()

    @classmethod
    def shapes(cls, config: BARTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
        c = config
        yield "tokens/embeddings", (c.vocab_size, c.dim)
        if c.logits_bias:
            yield "tokens/bias", (c.vocab_size,)
        for side, count in (("encoder", c.num_layers), ("decoder", c.decoder_layers)):
            yield f"{side}_positions/embeddings", (c.max_length + OFFSET, c.dim)
            yield from norm_shapes(f"{side}_embedding_norm", c.dim).items()
            cross = side == "decoder"
            yield from block_shapes(side, count or c.num_layers, c, c.intermediate_dim, cross)

    @classmethod
    def load_tokenizer(cls, folder: Path, config: BARTConfig) -> Any:
        """Loads the tokenizer, without the mask where the model has no embedding for it.

        That of bart-large-cnn, for example, is larger than the model by that token.
        """
        tokenizer = super().load_tokenizer(folder, config)
        if tokenizer is not None and tokenizer.mask_id == config.vocab_size:
            return tokenizer.without_mask()
        return tokenizer

    def initialize(self) -> None:
        """Samples matrices from N(0, 0.02), as in BART's code."""
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        for v in self.trainable_variables:
            if v.name in ("kernel", "embeddings"):
                v.assign(initializer(v.shape, v.dtype))

    def room(self, length: Any) -> Any:
        room, most = super().room(length), self.config.max_length
        return min(room, most) if isinstance(room, int) else ops.minimum(room, most)

    def encode(self, source: Any, mask: Any) -> Any:
        x = self.source_positions(self.tokens(source), start=OFFSET)
        return stack(self.encoder, self.dropout(self.source_norm(x)), mask=mask)[0]

    def embed_target(self, tokens: Any, start: Any = 0) -> Any:
        x = self.positions(self.tokens(tokens), start=start + OFFSET)
        return self.dropout(self.norm(x))

    def logits(self, x: Any) -> Any:
        return self.tokens.logits(x)
