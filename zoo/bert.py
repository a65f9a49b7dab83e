"""BERT (Devlin et al. 2018), with DistilBERT and RoBERTa: one network with options."""

from collections.abc import Iterator
from dataclasses import dataclass
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
    padding_mask,
)
from .heads import HeadConfig, head_shapes
from .model import block_shapes, check_activation, norm_shapes, stack
from .text_encoder import TextEncoder

POOLED = ("classes", "score")  # heads that read the first token


@dataclass(frozen=True)
class BERTConfig(HeadConfig):
    """Configuration of a `BERT`; the defaults are those of bert-base-uncased, without a head.

    The fields of the head are those of `HeadConfig`.

    >>> config = polyhead.BERTConfig(head="classes", class_names=("no", "yes"), num_classes=2)
    >>> polyhead.BERT.count_parameters(config)  # 109,482,240 without the last map
    109483778
    """

    vocab_size: int = 30522
    type_vocab_size: int = 2  # types of tokens, such as first and second text; 0: none (DistilBERT)
    max_length: int = 512  # of a text, in tokens including special ones
    num_positions: int = 512  # rows of the table of positions
    num_layers: int = 12
    dim: int = 768
    intermediate_dim: int = 3072
    num_heads: int = 12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu"
    epsilon: float = 1e-12
    pad_id: int = 0
    positions_from_pad: bool = False  # RoBERTa: padding has row pad_id, other tokens those after it
    head_activation: str = "tanh"  # of the heads "classes" and "score"; DistilBERT: "relu"

    def __post_init__(self):
        super().__post_init__()
        check_activation(self.head_activation)
        if self.max_length > (most := self.longest):
            raise ValueError(
                f"max_length must be at most {most}, the number of positions: {self.max_length}"
            )

    @property
    def longest(self) -> int:
        """The number of tokens that have positions."""
        return self.num_positions - (self.pad_id + 1 if self.positions_from_pad else 0)


def preset(num_layers, dim, num_heads=None, **others):
    heads = dim // 64 if num_heads is None else num_heads
    shape = dict(num_layers=num_layers, dim=dim, num_heads=heads, intermediate_dim=4 * dim)
    return BERTConfig(**shape, **others)


ROBERTA = dict(
    vocab_size=50265, type_vocab_size=1, num_positions=514, epsilon=1e-5, pad_id=1,
    positions_from_pad=True,
)  # fmt: skip
PRESETS = {
    # Devlin et al. 2018 (arXiv 1810.04805), section 3.
    "bert-base": preset(12, 768),
    "bert-large": preset(24, 1024),
    # Turc et al. 2019 (arXiv 1908.08962), table 1.
    "bert-tiny": preset(2, 128),
    "bert-mini": preset(4, 256),
    "bert-small": preset(4, 512),
    "bert-medium": preset(8, 512),
    # Sanh et al. 2019 (arXiv 1910.01108), section 3.
    "distilbert-base": preset(6, 768, type_vocab_size=0, head_activation="relu"),
    # Liu et al. 2019 (arXiv 1907.11692), table 9.
    "roberta-base": preset(12, 768, **ROBERTA),
    "roberta-large": preset(24, 1024, **ROBERTA),
    # Wang et al. 2020 (arXiv 2002.10957), section 4, with the settings of all-MiniLM-L6-v2.
    "minilm-l6": preset(6, 384, 12, max_length=256, normalize=True),
}


@keras.saving.register_keras_serializable("polyhead")
class BERT(TextEncoder):
    """Encoder with post-norm and learned positions (Devlin et al. 2018, section 3).

    Tokens (B, T), or a dictionary of ``tokens`` and ``types`` (B, T) -> what the head gives, in
    float32; see `TextEncoder`. DistilBERT has no types; in RoBERTa positions are counted from
    ``pad_id`` + 1, over tokens that are not padding.

    Args:
        config: a `BERTConfig`.
        tokenizer: `polyhead.data.WordPieces` or `BytePairs`; only needed for strings.
        initialize: False skips the paper's initialization, when weights are about to be loaded.

    Raises:
        ValueError: tokenizer and configuration differ in vocabulary; there are too many tokens.

    >>> config = polyhead.BERTConfig(num_layers=1, dim=24, num_heads=2, head="tags", num_classes=3)
    >>> polyhead.BERT(config)(np.ones([2, 5], "int32")).shape.as_list()
    [2, 5, 3]
    >>> model = polyhead.BERT.from_pretrained(
    ...     "google-bert/bert-base-uncased", head="classes", class_names=("no", "yes")
    ... )  # doctest: +SKIP
    """

    Config = BERTConfig
    PRESETS = PRESETS
    FAMILIES = {
        "bert": ".published.bert",
        "distilbert": ".published.distilbert",
        "roberta": ".published.roberta",
    }

    def __init__(
        self, config: BERTConfig, tokenizer: Any = None, initialize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(config, tokenizer, **kwargs)
        c, dtype = config, self.dtype_policy
        norm = LayerNormalization(epsilon=c.epsilon)

        plain = dict(dim=c.dim, scale=False, dtype=dtype)
        self.tokens = TokenEmbedding(c.vocab_size, name="tokens", **plain)
        self.types = c.type_vocab_size and TokenEmbedding(c.type_vocab_size, name="types", **plain)
        self.positions = PositionalEmbedding(
            "learned", max_length=c.num_positions, dtype=dtype, name="positions"
        )
        self.embeddings_norm = LayerNormalization(
            epsilon=c.epsilon, dtype=dtype, name="embeddings_norm"
        )
        self.dropout = Dropout(c.dropout, dtype=dtype, name="dropout")
        parts = dict(
            attention=MultiHeadAttention(c.num_heads, dropout=c.attention_dropout),
            feed_forward=FeedForward(c.intermediate_dim, c.activation),
            norm=norm,
            order="post",
            dropout=c.dropout,
        )
        self.blocks = [
            TransformerBlock(**parts, dtype=dtype, name=f"block_{i}") for i in range(c.num_layers)
        ]
        first = {"tokens": c.activation, **dict.fromkeys(POOLED, c.head_activation)}
        self.build_head(first.get(c.head), norm if c.head == "tokens" else None)
        self.build_layers()
        if initialize:
            self.initialize()

    @classmethod
    def shapes(cls, config: BERTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
        c = config
        yield "tokens/embeddings", (c.vocab_size, c.dim)
        if c.type_vocab_size:
            yield "types/embeddings", (c.type_vocab_size, c.dim)
        yield "positions/embeddings", (c.num_positions, c.dim)
        yield from norm_shapes("embeddings_norm", c.dim).items()
        yield from block_shapes("block", c.num_layers, c, c.intermediate_dim)
        dense = ("kernel", "bias") if c.head in (*POOLED, "tokens") else ()
        yield from head_shapes(c, dense, ("gamma", "beta") if c.head == "tokens" else ()).items()

    def features(self, tokens: Any, types: Any = None) -> Any:
        c = self.config
        x = self.tokens(tokens)
        if self.types:
            x = x + self.types(ops.zeros((1, 1), "int32") if types is None else types)
        positions = None
        if c.positions_from_pad:
            if (tokens.shape[1] or 0) > c.longest:
                raise ValueError(f"at most {c.longest} tokens: {tokens.shape[1]}")
            is_text = ops.cast(self.is_text(tokens), "int32")
            positions = ops.cumsum(is_text, axis=1) * is_text + c.pad_id
        x = self.positions(x, positions=positions)
        x = self.dropout(self.embeddings_norm(x))
        return stack(self.blocks, x, mask=padding_mask(tokens, c.pad_id))[0]
