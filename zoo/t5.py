"""T5 (Raffel et al. 2019): every task is a text in and a text out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from ..layers import (
    Dropout,
    FeedForward,
    GatedFeedForward,
    KeyValueCache,
    MultiHeadAttention,
    RelativeBias,
    RMSNorm,
    TokenEmbedding,
    TransformerBlock,
)
from .decoding import GREEDY, Search
from .model import check_config, stack
from .seq2seq import Seq2Seq


@dataclass(frozen=True)
class T5Config:
    """Configuration of a `T5`; the defaults are those of t5-small.

    >>> polyhead.T5.count_parameters(polyhead.T5Config())
    60506624
    """

    vocab_size: int = 32128
    num_layers: int = 6  # of the encoder
    decoder_layers: int | None = None  # None: num_layers
    dim: int = 512
    intermediate_dim: int = 2048
    num_heads: int = 8
    head_dim: int = 64
    num_buckets: int = 32  # of relative positions
    max_distance: int = 128
    dropout: float = 0.1
    activation: str = "relu"
    gated: bool = False  # T5 1.1: gated feed-forward networks
    epsilon: float = 1e-6
    tied: bool = True  # False, T5 1.1: logits have a matrix of their own
    scale_logits: bool = True  # multiplies the input of the logits by dim ** -0.5; T5 1.1: False
    max_length: int = 512  # of a source, in tokens including the end token
    pad_id: int = 0
    start_id: int = 0
    end_id: int = 1
    prefix: str = "summarize: "  # added to texts by `summarize` and `export`
    search: Search = GREEDY  # defaults of `generate`, `summarize` and `export`

    def __post_init__(self):
        check_config(self)
        self.search.within(self.vocab_size, self.max_length)
        if not isinstance(self.prefix, str):
            raise ValueError(f"prefix must be a string: {self.prefix!r}")
        if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                "num_buckets must be a multiple of 4, and max_distance larger than half of it: "
                f"{self.num_buckets}, {self.max_distance}"
            )


def preset(num_layers, dim, intermediate_dim, num_heads, **others):
    return T5Config(
        num_layers=num_layers,
        dim=dim,
        intermediate_dim=intermediate_dim,
        num_heads=num_heads,
        **others,
    )


NEWER = dict(activation="gelu_tanh", gated=True, tied=False, scale_logits=False)
PRESETS = {
    # Raffel et al. 2019 (arXiv 1910.10683), section 3.7.
    "t5-small": preset(6, 512, 2048, 8),
    "t5-base": preset(12, 768, 3072, 12),
    "t5-large": preset(24, 1024, 4096, 16),
    "t5-3b": preset(24, 1024, 16384, 32, head_dim=128),
    "t5-11b": preset(24, 1024, 65536, 128, head_dim=128),
    # T5 1.1 and Flan-T5: Chung et al. 2022 (arXiv 2210.11416), section 2.
    "t5-v1.1-small": preset(8, 512, 1024, 6, **NEWER),
    "t5-v1.1-base": preset(12, 768, 2048, 12, **NEWER),
    "t5-v1.1-large": preset(24, 1024, 2816, 16, **NEWER),
    "t5-v1.1-xl": preset(24, 2048, 5120, 32, **NEWER),
    "t5-v1.1-xxl": preset(24, 4096, 10240, 64, **NEWER),
    # Ours, for small data.
    "t5-tiny": preset(2, 128, 256, 4, head_dim=32, vocab_size=8000, **NEWER),
}


@keras.saving.register_keras_serializable("polyhead")
class T5(Seq2Seq):
    """Encoder-decoder with pre-norm and relative positions (Raffel et al. 2019, section 2.1).

    Tokens ``{"source": (B, S), "target": (B, T)}`` -> logits (B, T, V) of the next token at each
    target position. Attention scores are not scaled; each stack has one `RelativeBias`, which all
    of its blocks share. Norms are `RMSNorm`, and no map has a bias.

    Args:
        config: a `T5Config`.
        tokenizer: `polyhead.data.Subwords`; only needed for strings.
        initialize: False skips the initialization, when weights are about to be loaded.

    Raises:
        ValueError: tokenizer and configuration differ in vocabulary; the dtype policy computes in
            float16, in which T5 overflows.

    >>> config = polyhead.T5Config(vocab_size=20, num_layers=1, dim=16, num_heads=2, head_dim=8)
    >>> model = polyhead.T5(config)
    >>> source, target = np.ones([2, 7], "int32"), np.ones([2, 5], "int32")
    >>> model({"source": source, "target": target}).shape.as_list()
    [2, 5, 20]
    >>> model = polyhead.load("google/flan-t5-small")  # doctest: +SKIP
    >>> model.generate("A dog runs.", prefix="translate English to German: ")  # doctest: +SKIP
    'Ein Hund läuft.'
    """

    Config = T5Config
    PRESETS = PRESETS
    FAMILIES = {"t5": ".published.t5"}
    VOCABULARY = ("vocab_size", "pad_id", "start_id", "end_id")
    TASKS = ("summarization", "denoising")

    def __init__(
        self, config: T5Config, tokenizer: Any = None, initialize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(config, tokenizer, **kwargs)
        c, dtype = config, self.dtype_policy
        if dtype.compute_dtype == "float16":
            raise ValueError(f"T5 overflows in float16: use mixed_bfloat16 instead of {dtype.name}")
        plain = dict(vocab_size=c.vocab_size, dim=c.dim, scale=False, dtype=dtype)
        self.tokens = TokenEmbedding(**plain, name="tokens")
        self.head = self.tokens if c.tied else TokenEmbedding(**plain, name="head")
        self.dropout = Dropout(c.dropout, dtype=dtype, name="dropout")
        attention = MultiHeadAttention(
            c.num_heads, head_dim=c.head_dim, use_bias=False, scale=1.0, dropout=c.dropout
        )
        kind = GatedFeedForward if c.gated else FeedForward
        parts = dict(
            attention=attention,
            feed_forward=kind(c.intermediate_dim, c.activation, use_bias=False, dropout=c.dropout),
            norm=RMSNorm(c.epsilon),
            dropout=c.dropout,
            dtype=dtype,
        )
        self.encoder = [TransformerBlock(**parts, name=f"encoder_{i}") for i in range(c.num_layers)]
        self.decoder = [
            TransformerBlock(**parts, cross_attention=attention, name=f"decoder_{i}")
            for i in range(c.decoder_layers or c.num_layers)
        ]
        self.encoder_bias, self.decoder_bias = (
            RelativeBias(
                c.num_heads, c.num_buckets, c.max_distance, both, dtype=dtype, name=f"{side}_bias"
            )
            for side, both in (("encoder", True), ("decoder", False))
        )
        self.encoder_norm, self.decoder_norm = (
            RMSNorm(c.epsilon, dtype=dtype, name=f"{side}_norm") for side in ("encoder", "decoder")
        )
        self.build_layers()
        if initialize:
            self.initialize()

    @classmethod
    def shapes(cls, config: T5Config) -> Iterator[tuple[str, tuple[int, ...]]]:
        c, split = config, (config.num_heads, config.head_dim)
        yield "tokens/embeddings", (c.vocab_size, c.dim)
        if not c.tied:
            yield "head/embeddings", (c.vocab_size, c.dim)
        maps = ("gate", "expand") if c.gated else ("expand",)
        shapes = {f"feed_forward/{name}/kernel": (c.dim, c.intermediate_dim) for name in maps}
        shapes["feed_forward/contract/kernel"] = (c.intermediate_dim, c.dim)
        shapes["feed_forward_norm/gamma"] = (c.dim,)
        attentions, counts = ("attention", "cross_attention"), (c.num_layers, c.decoder_layers)
        for k, side in enumerate(("encoder", "decoder")):
            for name in attentions[: k + 1]:
                for part in ("query", "key", "value"):
                    shapes[f"{name}/{part}/kernel"] = (c.dim, *split)
                shapes[f"{name}/output/kernel"] = (*split, c.dim)
                shapes[f"{name}_norm/gamma"] = (c.dim,)
            for i in reversed(range(counts[k] or c.num_layers)):
                for name, shape in shapes.items():
                    yield f"{side}_{i}/{name}", shape
            yield f"{side}_bias/embeddings", (c.num_buckets, c.num_heads)
            yield f"{side}_norm/gamma", (c.dim,)

    def initialize(self) -> None:
        """Samples matrices from normal distributions, as in T5's code.

        The standard deviation of a map is the inverse square root of its input's width; that of
        queries also has the factor that scores lack.
        """
        c = self.config
        width, inner = c.dim**-0.5, (c.num_heads * c.head_dim) ** -0.5
        scales = {
            "tokens": 1.0 if c.tied and c.scale_logits else width, "head": width,
            "query": width * c.head_dim**-0.5, "output": inner,
            "contract": c.intermediate_dim**-0.5,
        }  # fmt: skip
        for v in self.trainable_variables:
            if v.name in ("kernel", "embeddings"):
                scale = scales.get(v.path.split("/")[-2], width)
                v.assign(keras.initializers.RandomNormal(stddev=scale)(v.shape, v.dtype))

    def encode(self, source: Any, mask: Any) -> Any:
        positions = ops.arange(ops.shape(source)[1])
        bias = self.encoder_bias(positions, positions)
        x, _ = stack(self.encoder, self.dropout(self.tokens(source)), mask=mask, bias=bias)
        return self.dropout(self.encoder_norm(x))

    def embed_target(self, tokens: Any, start: Any = 0) -> Any:
        return self.dropout(self.tokens(tokens))

    def decoder_inputs(self, x: Any, mask: Any, cache: KeyValueCache | None = None) -> dict:
        queries = keys = ops.arange(ops.shape(x)[1])
        if cache is not None:
            queries, keys = queries + cache.index, ops.arange(ops.shape(cache.key)[1])
        bias = self.decoder_bias(queries, keys)
        return {**super().decoder_inputs(x, mask, cache), "bias": bias}

    def logits(self, x: Any) -> Any:
        x = self.dropout(self.decoder_norm(x))
        if self.config.scale_logits:
            x = x * self.config.dim**-0.5
        return self.head.logits(x)
