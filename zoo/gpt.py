"""GPT-2 (Radford et al. 2019): a decoder that generates text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from ..layers import (
    Dropout,
    FeedForward,
    MultiHeadAttention,
    PositionalEmbedding,
    TokenEmbedding,
    TransformerBlock,
    decoder_mask,
)
from .causal_lm import CausalLM, check_stop
from .decoding import Sampling, Search
from .model import block_shapes, check_config, norm_shapes, stack


@dataclass(frozen=True)
class GPTConfig:
    """Configuration of a `GPT`; the defaults are those of the smallest GPT-2.

    >>> polyhead.GPT.count_parameters(polyhead.GPTConfig())
    124439808
    """

    vocab_size: int = 50257
    max_length: int = 1024  # of prompt and continuation, in tokens: the context
    num_layers: int = 12
    dim: int = 768
    intermediate_dim: int | None = None  # None: four times dim
    num_heads: int = 12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu_tanh"
    epsilon: float = 1e-5
    tied: bool = True  # the token embedding also computes the logits
    end_id: int = 50256  # ends a document and precedes the first token
    search: Search = Search(max_new_tokens=100)  # defaults of `generate` and `export`
    sampling: Sampling = Sampling()
    stop_strings: tuple[str, ...] = ()  # `generate` and `stream` stop at these

    def __post_init__(self):
        check_config(self)
        object.__setattr__(self, "stop_strings", tuple(check_stop(self.stop_strings)))
        self.search.within(self.vocab_size, self.max_length)


PRESETS = {
    # Radford et al. 2019, table 2, with the sizes of the published weights.
    "gpt2": GPTConfig(),
    "gpt2-medium": GPTConfig(num_layers=24, dim=1024, num_heads=16),
    "gpt2-large": GPTConfig(num_layers=36, dim=1280, num_heads=20),
    "gpt2-xl": GPTConfig(num_layers=48, dim=1600, num_heads=25),
    # nanoGPT's sizes for character-level Shakespeare (A. Karpathy, github.com/karpathy/nanoGPT),
    # for a GPU and for a CPU.
    "char": GPTConfig(
        vocab_size=66, max_length=256, num_layers=6, dim=384, num_heads=6, dropout=0.2,
        attention_dropout=0.2, end_id=0,
    ),
    "char-small": GPTConfig(
        vocab_size=66, max_length=64, num_layers=4, dim=128, num_heads=4, dropout=0.0,
        attention_dropout=0.0, end_id=0,
    ),
}  # fmt: skip


@keras.saving.register_keras_serializable("polyhead")
class GPT(CausalLM):
    """Decoder-only Transformer with pre-norm and learned positions (Radford et al. 2019, 2.3).

    ``tokens`` (B, T) -> logits (B, T, V) of the next token at each position. One matrix embeds the
    tokens and computes the logits, unless ``tied`` is False. `generate`, `stream` and `score` take
    strings.

    Args:
        config: a `GPTConfig`.
        tokenizer: `polyhead.data.BytePairs` or `Characters`; only needed for strings.
        initialize: False skips the paper's initialization, when weights are about to be loaded.

    Raises:
        ValueError: tokenizer and configuration have different vocabularies.

    >>> model = polyhead.GPT(polyhead.GPTConfig(vocab_size=20, end_id=0, num_layers=1, dim=24))
    >>> model(np.zeros([2, 5], "int32")).shape.as_list()
    [2, 5, 20]
    >>> model = polyhead.GPT.from_pretrained("gpt2")  # doctest: +SKIP
    >>> model.generate("Once upon a time")  # doctest: +SKIP
    """

    Config = GPTConfig
    PRESETS = PRESETS
    FAMILIES = {"gpt2": ".published.gpt2"}

    def __init__(
        self, config: GPTConfig, tokenizer: Any = None, initialize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(config, tokenizer, **kwargs)
        dtype = self.dtype_policy
        self.tokens = TokenEmbedding(
            config.vocab_size, config.dim, scale=False, dtype=dtype, name="tokens"
        )
        self.positions = PositionalEmbedding(
            "learned", max_length=config.max_length, dtype=dtype, name="positions"
        )
        self.dropout = Dropout(config.dropout, dtype=dtype, name="dropout")
        parts = dict(
            attention=MultiHeadAttention(config.num_heads, dropout=config.attention_dropout),
            feed_forward=FeedForward(config.intermediate_dim or 4 * config.dim, config.activation),
            norm=keras.layers.LayerNormalization(epsilon=config.epsilon),
        )
        self.blocks = [
            TransformerBlock(**parts, dropout=config.dropout, dtype=dtype, name=f"block_{i}")
            for i in range(config.num_layers)
        ]
        self.norm = keras.layers.LayerNormalization(
            epsilon=config.epsilon, dtype=dtype, name="norm"
        )
        self.head = None if config.tied else keras.layers.Dense(
            config.vocab_size, use_bias=False, dtype=dtype, name="head"
        )  # fmt: skip
        self.build_layers()
        if initialize:
            self.initialize()

    def initialize(self) -> None:
        """Initializes the weights as GPT-2 does (section 2.3, and its code).

        Matrices are sampled from N(0, 0.02), those at the end of a residual branch from
        N(0, 0.02 / sqrt(2 L)), L the number of layers.
        """
        for v in self.trainable_variables:
            if v.name in ("kernel", "embeddings"):
                ends = v.path.endswith(("output/kernel", "contract/kernel"))
                scale = 0.02 / (2 * self.config.num_layers) ** 0.5 if ends else 0.02
                v.assign(keras.random.normal(v.shape, stddev=scale, dtype=v.dtype))

    @classmethod
    def shapes(cls, config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
        c = config
        yield "tokens/embeddings", (c.vocab_size, c.dim)
        yield "positions/embeddings", (c.max_length, c.dim)
        yield from block_shapes("block", c.num_layers, c, c.intermediate_dim or 4 * c.dim)
        yield from norm_shapes("norm", c.dim).items()
        if not c.tied:
            yield "head/kernel", (c.dim, c.vocab_size)

    def features(
        self, tokens: Any, start: Any = 0, mask: Any = None, caches: list | None = None
    ) -> tuple[Any, list | None]:
        x = self.dropout(self.positions(self.tokens(tokens), start=start))
        mask = decoder_mask(x, mask, caches and caches[0])
        x, caches = stack(self.blocks, x, caches, mask=mask)
        return self.norm(x), caches

    def logits(self, x: Any) -> Any:
        return self.tokens.logits(x) if self.head is None else ops.cast(self.head(x), "float32")
