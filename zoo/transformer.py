"""The Transformer of Vaswani et al. 2017, for translation."""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from ..layers import (
    Dropout,
    KeyValueCache,
    PositionalEmbedding,
    TokenEmbedding,
    TransformerBlock,
    padding_mask,
)
from ..layers.arguments import plain, plain_fields
from ..training import InverseSquareRoot, SmoothedCrossEntropy
from .alignment import Alignment
from .generation import (
    GREEDY,
    ScatterCache,
    Search,
    advance,
    begin,
    bucket,
    check_batch_size,
    check_texts,
    possible,
)
from .pretrained import MARIAN, SUBWORDS, Pretrained, block_shapes, check_sizes, norm_shapes


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of an encoder-decoder Transformer; the defaults are the paper's base model."""

    vocab_size: int = 37000
    source_vocab_size: int | None = None  # None: one vocabulary, and one matrix, for both sides
    num_layers: int = 6  # in the encoder
    decoder_layers: int | None = None  # None: as many
    dim: int = 512
    hidden_dim: int = 2048
    num_heads: int = 8
    dropout: float = 0.1
    norm: str = "post"
    activation: str = "relu"
    scale_embeddings: bool = True
    interleaved_positions: bool = True
    logits_bias: bool = False
    max_length: int = 256  # longest source, in pieces with the end token
    pad_id: int = 0
    start_id: int = 1
    end_id: int = 2
    search: Search = GREEDY  # of `translate` and `export`, unless they are told otherwise

    def __post_init__(self):
        plain_fields(self)
        if isinstance(self.search, dict):  # read from a file
            object.__setattr__(self, "search", Search(**self.search))
        if not isinstance(self.search, Search):
            raise ValueError(f"search must be a Search: {self.search!r}")
        for name in ("scale_embeddings", "interleaved_positions", "logits_bias"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False: {getattr(self, name)!r}")
        sizes = ("vocab_size", "num_layers", "dim", "hidden_dim", "num_heads", "max_length")
        optional = ("source_vocab_size", "decoder_layers")
        check_sizes(self, *sizes, optional=optional, tokens=("pad_id", "start_id", "end_id"))
        self.search.within(self.vocab_size, self.max_length)
        if self.dim % 2:
            raise ValueError(f"dim must be even, of sines and cosines: {self.dim}")
        if self.norm not in ("pre", "post"):
            raise ValueError(f"norm must be 'pre' or 'post': {self.norm!r}")


PRESETS = {
    # Vaswani et al. 2017, table 3.
    "base": TransformerConfig(),
    "big": TransformerConfig(dim=1024, hidden_dim=4096, num_heads=16, dropout=0.3),
    # Transformer-Tiny for Multi30k: Wu et al. 2021 (arXiv 2105.14462), section 3. Pre-norm is
    # ours: post-norm learns to attend too, after a warm-up of half an hour on 2 cores.
    "tiny": TransformerConfig(
        vocab_size=10000,
        num_layers=4,
        dim=128,
        hidden_dim=256,
        num_heads=4,
        dropout=0.3,
        norm="pre",
    ),
}


# Warm-up requests of an export, which it must answer before it counts as written.
EXAMPLES = [
    "A dog runs.",
    "Two men.",
    "An old woman in a red coat waits for the bus in front of a shop.",
    "",
    "Children play.",
    "The cat sleeps under the table because it is tired.",
    "A man on a bicycle rides past a large house.",
    "Three girls are looking at a picture.",
]


class Translation(NamedTuple):
    """What a source became; ``score`` is what `Search` calls its worth.

    By greedy search that is the log-probability of the whole translation.
    """

    text: str
    score: float


@keras.saving.register_keras_serializable("polyhead")
class Transformer(Pretrained):
    """Encoder-decoder Transformer (Vaswani et al. 2017, figure 1).

    Called on ``{"source": (B, S), "target": (B, T)}``, tokens, it gives the logits (B, T, V) of
    what follows each target token. One matrix embeds both languages and gives the logits
    (section 3.4), unless there is a vocabulary of the source's own. `translate` is for strings.

    Args:
        config: a `TransformerConfig`.
        tokenizer: `polyhead.data.Subwords` or `MarianPieces`; needed by `translate` and
            `export` only.

    Raises:
        ValueError: the tokenizer's vocabulary is not the configuration's.
    """

    Config = TransformerConfig
    PRESETS = PRESETS
    VOCABULARY = ("vocab_size", "source_vocab_size", "pad_id", "start_id", "end_id")
    FAMILIES = {"marian": ".marian"}

    def __init__(self, config, tokenizer=None, **kwargs):
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
        block = dict(
            num_heads=config.num_heads,
            hidden_dim=config.hidden_dim,
            norm=config.norm,
            activation=config.activation,
            dropout=config.dropout,
            dtype=dtype,
        )
        self.encoder = [
            TransformerBlock(name=f"encoder_{i}", **block) for i in range(config.num_layers)
        ]
        self.decoder = [
            TransformerBlock(name=f"decoder_{i}", causal=True, cross=True, **block)
            for i in range(config.decoder_layers or config.num_layers)
        ]
        width = (None, None, config.dim)
        self.tokens.build()
        if config.source_vocab_size is not None:
            self.source_tokens.build()
        self.positions.build(width)
        for layer in self.encoder + self.decoder:
            layer.build(width)
        if config.norm == "pre":
            norm = dict(epsilon=1e-5, dtype=dtype)
            self.encoder_norm = keras.layers.LayerNormalization(name="encoder_norm", **norm)
            self.decoder_norm = keras.layers.LayerNormalization(name="decoder_norm", **norm)
            self.encoder_norm.build(width)
            self.decoder_norm.build(width)
        self.built = True

    @classmethod
    def shapes(cls, config):
        c = config
        yield "tokens/embeddings", (c.vocab_size, c.dim)
        if c.logits_bias:
            yield "tokens/bias", (c.vocab_size,)
        if c.source_vocab_size is not None:
            yield "source_tokens/embeddings", (c.source_vocab_size, c.dim)
        decoders = c.decoder_layers or c.num_layers
        yield from block_shapes("encoder", c.num_layers, c, c.hidden_dim)
        yield from block_shapes("decoder", decoders, c, c.hidden_dim, cross=True)
        if c.norm == "pre":
            yield from norm_shapes("encoder_norm", c.dim).items()
            yield from norm_shapes("decoder_norm", c.dim).items()

    def call(self, inputs):
        mask = self.source_mask(inputs["source"])
        logits, _ = self.decode(inputs["target"], self.encode(inputs["source"], mask), mask)
        return logits

    def source_mask(self, source):
        return padding_mask(source, self.config.pad_id)

    def embed(self, embedding, tokens, start=0):
        return self.dropout(self.positions(embedding(tokens), start=start))

    def encode(self, source, mask):
        """``source`` (B, S) -> memory (B, S, D)."""
        x = self.embed(self.source_tokens, source)
        for block in self.encoder:
            x = block(x, mask=mask)
        return self.encoder_norm(x) if self.config.norm == "pre" else x

    def decode(self, target, memory, cross_mask, caches=None):
        """``target`` (B, T) -> logits (B, T, V), and the caches after it where there are any.

        ``memory`` is what `encode` gave, or what `project` made of that for every block.
        """
        blocks = len(self.decoder)
        memories = memory if isinstance(memory, list) else [memory] * blocks
        start = 0 if caches is None else caches[0].index
        x = self.embed(self.tokens, target, start)
        extended = []
        for i, block in enumerate(self.decoder):
            if caches is None:
                x = block(x, memory=memories[i], cross_mask=cross_mask)
            else:
                x, cache = block(x, memory=memories[i], cross_mask=cross_mask, cache=caches[i])
                extended.append(cache)
        if self.config.norm == "pre":
            x = self.decoder_norm(x)
        return self.tokens.logits(x), extended

    def project(self, memory):
        """The keys and values of every decoder block's cross-attention, computed once."""
        return [block.project(memory) for block in self.decoder]

    def find(self, source, search=GREEDY, length=None, cache=KeyValueCache):
        """What ``search`` finds for ``source`` (B, S): a `Found`.

        A translation gets at most ``search.max_tokens``, and where that or the ``length`` of the
        caches is not given, twice the tokens of its source and ten more; an empty source (its end
        token alone) gets none. ``cache`` is how keys and values are kept.
        """
        c = self.config
        mask = self.source_mask(source)
        count = ops.sum(ops.cast(source != c.pad_id, "int32"), axis=1)
        usual = room(count)
        limit = usual if search.max_tokens is None else search.max_tokens
        if length is None:
            length, limit = room(ops.shape(source)[1]), ops.minimum(limit, usual)
        limit = ops.where(count > 1, limit, 0)
        memories = self.project(self.encode(source, mask))
        if search.beams > 1:
            mask, *memories = keras.tree.map_structure(
                lambda x: ops.repeat(x, search.beams, axis=0), [mask, *memories]
            )
        rows = ops.shape(source)[0] * search.beams
        head_dim = c.dim // c.num_heads
        caches = [
            cache.empty(rows, length, c.num_heads, head_dim, self.compute_dtype)
            for _ in self.decoder
        ]
        start = ops.full((ops.shape(source)[0],), c.start_id, "int32")
        state = begin(start, caches, limit, length, c.pad_id, search.beams)
        return advance(
            lambda tokens, caches: self.decode(tokens, memories, mask, caches),
            state,
            limit,
            c.end_id,
            search,
        ).found

    def translate(self, texts, batch_size=32, scores=False, best=None, progress=iter, **search):
        """Translates a list of strings.

        Sources are sorted by length, batched and padded to a few lengths, for each of which the
        search is compiled once (for a batch size; one text alone has its own). Those with
        more than ``config.max_length`` pieces are truncated, with a warning. ``progress`` wraps
        the iteration over batches, as `rich.progress.track` does. ``search`` are settings of
        `Search` in the place of the model's own: ``beams=5, alpha=0.6``.

        Returns:
            a list of strings in the order of ``texts``; with ``scores`` of `Translation`. With a
            number ``best``, up to the number of beams, each of them is a list of so many, or of
            those that the search found, the best first.
        """
        tokenizer = self._need_tokenizer("translate")
        texts, batch_size = check_texts("translate", texts), check_batch_size(batch_size)
        best, own = plain(best), self.config.search
        if best is not None and type(best) is not int:
            raise ValueError(f"best must be an integer: {best!r}")
        search = dataclasses.replace(own, **{"beams": max(own.beams, best or 1), **search})
        search = search.within(self.config.vocab_size, room(self.config.max_length))
        if best is not None and not 1 <= best <= search.beams:
            raise ValueError(f"best must be from 1 to the number of beams: {best}, {search.beams}")
        batch_size = min(batch_size, bucket(len(texts), start=32))
        if not texts:
            return []
        source = self._sources(texts)
        lengths = np.count_nonzero(source != self.config.pad_id, axis=1)
        order = np.argsort(lengths, kind="stable")
        found = [[]] * len(texts)
        for start in progress(range(0, len(texts), batch_size)):
            rows = order[start : start + batch_size]
            length = min(bucket(lengths[rows].max()), self.config.max_length)
            # A short batch costs what a full one does, but needs no compilation of its own;
            # one text alone is common enough to have one.
            size = 1 if len(texts) == 1 else batch_size
            batch = np.full((size, length), self.config.pad_id, "int32")
            width = min(length, source.shape[1])
            batch[: len(rows), :width] = source[rows, :width]
            tokens, score = (x[: len(rows), : best or 1] for x in self._found(batch, search))
            decoded = np.asarray(tokenizer.decode(tokens.reshape(-1, tokens.shape[-1])))
            for row, made, worth in zip(rows, decoded.reshape(score.shape), score, strict=True):
                found[row] = [
                    Translation(text.decode(), float(s)) if scores else text.decode()
                    for k, (text, s) in enumerate(zip(made, worth, strict=True))
                    if k == 0 or possible(s)  # a search may find fewer
                ]
        return [translations if best else translations[0] for translations in found]

    def _found(self, batch, search):
        """Tokens (B, K, L) and scores (B, K) for ``batch`` (B, S), by a compiled search.

        Translations are seldom longer than twice their source, so that where more is allowed,
        room for it is made only once it is needed.
        """
        rows = len(batch)
        if rows * search.beams == 1:
            # XLA multiplies two rows by a matrix faster than one.
            batch = np.pad(batch, [(0, 1), (0, 0)], constant_values=self.config.pad_id)
        length = room(batch.shape[1])
        longest = length if search.max_tokens is None else search.max_tokens
        while True:
            length = min(length, longest)
            find = self._compiled(
                (search, length),
                lambda source, length=length: self.find(source, search, length),
                "translate",
            )
            found = find(batch)
            if length == longest or np.all(found.complete):
                return np.asarray(found.tokens)[:rows], np.asarray(found.score)[:rows]
            length *= 2

    def attention(self, source, target=None):
        """What a translation attends to, as an `Alignment`, which draws itself.

        Args:
            source: a string.
            target: its translation, as a string; the model's own if there is none.
        """
        tokenizer = self._need_tokenizer("attention")
        if not isinstance(source, str) or not isinstance(target, str | None):
            raise TypeError(
                f"attention takes two strings: {type(source).__name__}, {type(target).__name__}"
            )
        if target is None:
            [target] = self.translate([source])
        source_tokens = self._sources([source])
        labels = np.asarray(tokenizer.ragged([target], target=True).to_tensor())
        target_tokens = np.concatenate([[[self.config.start_id]], labels[:, :-1]], axis=1)
        mask = self.source_mask(source_tokens)
        memory = self.encode(source_tokens, mask)
        x, weights = self.embed(self.tokens, target_tokens), []
        for block in self.decoder:
            weights.append(block.cross_attention_weights(x, memory, cross_mask=mask))
            x = block(x, memory=memory, cross_mask=mask)
        return Alignment(
            tokenizer.pieces(source_tokens[0]),
            tokenizer.pieces(labels[0], target=True),
            np.concatenate([ops.convert_to_numpy(found) for found in weights]),
        )

    def export(self, filepath, format="tf_saved_model", **search):
        """Writes a SavedModel for TensorFlow Serving as the next version of ``filepath``.

        Its signature ``serving_default`` takes ``text`` (B,) and gives ``text`` and ``score``
        (B,), by greedy search. Its signature ``beam`` gives ``text`` and ``score`` (B, K), the
        best first, by the model's own search with the settings ``search``; where that is greedy
        and no number of ``beams`` is given, by 4 beams. Where there are fewer than K, as of an
        empty text, the others are empty and score -1e9. A translation has at most twice the
        tokens of its source and ten more. Returns the version's folder; see
        `polyhead.serving.export`.

        The ``format`` "onnx", "litert" or "openvino" writes a file of the network alone instead,
        ``source`` (B, S) and ``target`` (B, T) in, tokens, and logits (B, T, V) out: see
        `polyhead.serving.formats`.
        """
        from ..serving.export import export

        if format not in (None, "tf_saved_model"):
            tokens = {
                name: keras.layers.InputSpec(shape=(None, None), dtype="int32", name=name)
                for name in ("source", "target")
            }
            c = self.config
            limit = min(c.vocab_size, c.source_vocab_size or c.vocab_size)
            return self._export_network(filepath, format, tokens, limit, search)
        tokenizer = self._need_tokenizer("export")
        if (whole := self._whole()) is not self:
            return whole.export(filepath, **search)
        own = self.config.search
        if own.beams == 1:
            search.setdefault("beams", 4)
        beam = dataclasses.replace(own, **search)
        beam = beam.within(self.config.vocab_size, room(self.config.max_length))

        def translation(search):
            def translate(text):
                source = tokenizer.encode(text, self.config.max_length)
                found = self.find(source, search, cache=ScatterCache)
                shape = ops.shape(found.score)
                texts = tokenizer.decode(ops.reshape(found.tokens, (shape[0] * shape[1], -1)))
                return ops.reshape(texts, shape), found.score

            return translate

        def greedy(text):
            text, score = translation(dataclasses.replace(own, beams=1))(text)
            return {"text": text[:, 0], "score": score[:, 0]}

        def beams(text):
            text, score = translation(beam)(text)
            return {"text": text, "score": score}

        inputs = {"text": tokenizer.spec("text")}
        examples = {"text": EXAMPLES}
        return export(
            filepath,
            "translation",
            {"serving_default": (greedy, inputs, examples), "beam": (beams, inputs, examples)},
            variables=self.weights,
            tracked=[tokenizer],
        )

    def _sources(self, texts):
        """``texts`` as tokens (B, S), truncated with a warning to what the model can take."""
        source = np.array(self.tokenizer.encode(texts))
        limit = self.config.max_length
        if source.shape[1] > limit:
            long = source[:, limit] != self.config.pad_id
            warnings.warn(
                f"{long.sum()} of {len(texts)} sources have more than {limit} pieces and were "
                "truncated",
                stacklevel=3,
            )
            source = source[:, :limit]
            source[long, -1] = self.config.end_id
        return source

    def compile(self, optimizer=None, loss=None, **kwargs):
        """Keras's `compile`, with the optimizer and the loss of the paper's sections 5.3, 5.4."""
        if optimizer is None:
            rate = InverseSquareRoot.of_width(self.config.dim, warmup=4000)
            optimizer = keras.optimizers.Adam(rate, beta_1=0.9, beta_2=0.98, epsilon=1e-9)
        super().compile(optimizer, SmoothedCrossEntropy(0.1) if loss is None else loss, **kwargs)

    @classmethod
    def load_tokenizer(cls, folder, config):
        if (folder / SUBWORDS).is_file():
            from ..data import Subwords

            return Subwords.load(folder)
        if any((folder / name).is_file() for name in MARIAN):
            from ..data import MarianPieces

            return MarianPieces.load(folder)
        return None


def room(length):
    """The most tokens that a translation of ``length`` tokens gets, unless more is asked for."""
    return 2 * length + 10
