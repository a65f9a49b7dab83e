"""The task methods of encoder-decoders: translate, attention and export."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from ..layers import KeyValueCache, decoder_mask, padding_mask
from .alignment import Alignment
from .decoding import GREEDY, Found, ScatterCache, Search, advance, begin, is_possible
from .model import (
    Pretrained,
    ScoredText,
    bucket,
    check_count,
    empty_caches,
    in_batches,
    pad_rows,
)
from .texts import as_texts

# Warm-up requests: an export must answer them before it is renamed into place.
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


class Translation(ScoredText):
    """A translation: a string with a ``score``.

    The score is its log-probability; with beam search, the length-normalized one (see `Search`).

    >>> text = polyhead.Translation("Ein Hund.", -0.5)
    >>> text.lower(), text.score
    ('ein hund.', -0.5)
    """


class Seq2Seq(Pretrained):
    """Base class of encoder-decoders: `translate`, `attention`, `export`.

    A subclass is a network. Its configuration has ``vocab_size``, ``source_vocab_size``,
    ``max_length`` (of a source), ``pad_id``, ``start_id``, ``end_id`` and ``search``. The network
    has a list ``decoder`` of `TransformerBlock`s with cross-attention and these methods:

    - ``encode(source, mask)``: (B, S) -> memory (B, S, D);
    - ``embed_target(tokens, start=0)``: (B, T) -> (B, T, D), the input of the first decoder block;
    - ``decode(target, memories, mask, caches=None)``: (B, T) -> logits (B, T, V), and the extended
      caches; ``memories`` has, for each block, the memory or ``block.project(memory)``.

    >>> issubclass(polyhead.Transformer, polyhead.Seq2Seq)
    True
    >>> model = polyhead.load("Helsinki-NLP/opus-mt-en-de")  # doctest: +SKIP
    >>> model.translate("A dog runs.")  # doctest: +SKIP
    'Ein Hund rennt.'
    >>> model.translate(["A dog runs.", "Two men."], num_beams=5)  # doctest: +SKIP
    ['Ein Hund rennt.', 'Zwei Männer.']
    >>> model.attention("A dog runs.").draw("attention.png")  # doctest: +SKIP
    >>> model.export("exported")  # doctest: +SKIP
    PosixPath('exported/1')
    """

    VOCABULARY = ("vocab_size", "source_vocab_size", "pad_id", "start_id", "end_id")

    def call(self, inputs: dict) -> Any:
        mask = self.source_mask(inputs["source"])
        memories = [self.encode(inputs["source"], mask)] * len(self.decoder)
        logits, _ = self.decode(inputs["target"], memories, mask)
        return logits

    def source_mask(self, source: Any) -> Any:
        return padding_mask(source, self.config.pad_id)

    def project(self, memory: Any) -> list:
        """Computes the keys and values of each decoder block's cross-attention once."""
        return [block.project(memory) for block in self.decoder]

    def find(
        self,
        source: Any,
        search: Search = GREEDY,
        length: int | None = None,
        cache: type[KeyValueCache] = KeyValueCache,
    ) -> Found:
        """Runs ``search`` on ``source`` (B, S) and returns what it finds, a `Found`.

        A translation has at most ``search.max_new_tokens`` tokens. Without that, or without
        ``length``, it has at most twice the tokens of its source plus ten. An empty source (only
        the end token) gets an empty translation.

        Args:
            length: size of the caches, in tokens.
            cache: class of the key-value caches.
        """
        c = self.config
        mask = self.source_mask(source)
        count = ops.sum(ops.cast(source != c.pad_id, "int32"), axis=1)
        usual = room(count)
        limit = usual if search.max_new_tokens is None else search.max_new_tokens
        if length is None:
            length, limit = room(ops.shape(source)[1]), ops.minimum(limit, usual)
        limit = ops.where(count > 1, limit, 0)
        memories = self.project(self.encode(source, mask))
        if search.num_beams > 1:
            mask, *memories = keras.tree.map_structure(
                lambda x: ops.repeat(x, search.num_beams, axis=0), [mask, *memories]
            )
        rows = ops.shape(source)[0] * search.num_beams
        caches = empty_caches(self.decoder, rows, length, cache)
        start = ops.full((ops.shape(source)[0],), c.start_id, "int32")
        state = begin(start, caches, limit, length, c.pad_id, search.num_beams)

        def step(tokens, caches):
            logits, caches = self.decode(tokens, memories, mask, caches)
            return self.drop_padding(logits), caches

        return advance(step, state, limit, c.end_id, search).found

    def translate(
        self,
        texts: str | Sequence[str],
        num_return_sequences: int | None = None,
        batch_size: int = 32,
        progress: bool | Callable = False,
        **search: Any,
    ) -> Translation | list:
        """Translates a string, or each of a list of strings.

        Sources are sorted by length, batched and padded to a few lengths; the search is compiled
        once per length and batch size (a single text has batch size 1).

        Args:
            num_return_sequences: number of translations per text, the best first; at most
                ``num_beams``, which by default is at least this number.
            progress: True shows a progress bar; or a function that wraps the batches.
            search: settings of `Search` instead of the model's own:
                ``num_beams=5, length_penalty=0.6``.

        Returns:
            a `Translation`, or a list of them in the order of ``texts``. With
            ``num_return_sequences``, a list for each text; it is shorter if the search finds fewer.

        Warns:
            UserWarning: sources with more than ``config.max_length`` tokens are truncated.

        >>> model.translate("A dog runs.", num_beams=5)  # doctest: +SKIP
        'Ein Hund rennt.'
        """
        tokenizer = self._need_tokenizer("translate")
        texts, single = as_texts("translate", texts)
        own, batch_size = self.config.search, check_count(batch_size, "batch_size")
        count = check_count(num_return_sequences)
        search = dataclasses.replace(own, **{"num_beams": max(own.num_beams, count), **search})
        search = search.within(self.config.vocab_size, room(self.config.max_length))
        if count > search.num_beams:
            raise ValueError(
                f"num_return_sequences must be at most num_beams: {count}, {search.num_beams}"
            )
        batch_size = min(batch_size, bucket(len(texts), start=32))
        # A short batch is padded: it costs as much as a full one, but compiles nothing new.
        # A single text is common enough to get its own compiled search.
        size = 1 if len(texts) == 1 else batch_size

        def run(rows):
            width = min(bucket(max(map(len, rows))), self.config.max_length)
            batch = pad_rows(rows, (size, width), self.config.pad_id)
            tokens, score = (x[: len(rows), :count] for x in self._run_search(batch, search))
            decoded = np.asarray(tokenizer.decode(tokens.reshape(-1, tokens.shape[-1])))
            for row, row_scores in zip(decoded.reshape(score.shape), score.tolist(), strict=True):
                found = [
                    Translation(text.decode(), s)
                    for k, (text, s) in enumerate(zip(row, row_scores, strict=True))
                    if k == 0 or is_possible(s)  # a search may find fewer
                ]
                yield found if num_return_sequences is not None else found[0]

        rows = self._sources(texts) if texts else []
        found = in_batches(rows, batch_size, run, progress=progress)
        return found[0] if single else found

    def _run_search(self, batch, search):
        """Runs the compiled search on ``batch`` (B, S): tokens (B, K, L) and scores (B, K).

        Translations are rarely longer than twice their source: if more is allowed, the caches grow
        only when a longer translation is found.
        """
        rows = len(batch)
        if rows * search.num_beams == 1:
            # XLA multiplies two rows by a matrix faster than one.
            batch = np.pad(batch, [(0, 1), (0, 0)], constant_values=self.config.pad_id)
        length = room(batch.shape[1])
        longest = length if search.max_new_tokens is None else search.max_new_tokens
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

    def attention(self, source: str, target: str | None = None) -> Alignment:
        """Returns the cross-attention weights of a translation, as an `Alignment`.

        Args:
            source: a string.
            target: its translation. Default: the model's own.

        >>> model.attention("A dog runs.").draw("attention.png")  # doctest: +SKIP
        """
        tokenizer = self._need_tokenizer("attention")
        if not isinstance(source, str) or not isinstance(target, str | None):
            raise TypeError(
                f"attention takes two strings: {type(source).__name__}, {type(target).__name__}"
            )
        if target is None:
            [target] = self.translate([source])
        source_tokens = np.array(self._sources([source]))
        labels = np.asarray(tokenizer.encode([target], target=True).to_tensor())
        target_tokens = np.concatenate([[[self.config.start_id]], labels[:, :-1]], axis=1)
        mask = self.source_mask(source_tokens)
        memory = self.encode(source_tokens, mask)
        x, weights = self.embed_target(target_tokens), []
        masks = dict(mask=decoder_mask(x), cross_mask=mask)
        for block in self.decoder:
            weights.append(block.cross_attention_weights(x, memory, **masks))
            x = block(x, memory=memory, **masks)
        return Alignment(
            tokenizer.pieces(source_tokens[0]),
            tokenizer.pieces(labels[0], target=True),
            np.concatenate([ops.convert_to_numpy(found) for found in weights]),
        )

    def export(
        self,
        filepath: str | PathLike[str],
        format: str | None = "tf_saved_model",
        **search: Any,
    ) -> Path:
        """Writes a SavedModel for TensorFlow Serving as the next version of ``filepath``.

        Both signatures take ``text`` (B,). A translation has at most twice the tokens of its source
        plus ten.

        - ``serving_default`` returns ``text`` and ``score`` (B,), by greedy search;
        - ``beam`` returns ``text`` and ``score`` (B, K), the best first, by beam search. If it
          finds fewer than K, the rest are empty strings with score -1e9.

        Args:
            format: "onnx", "litert" or "openvino" writes a file of the network alone instead:
                ``source`` (B, S) and ``target`` (B, T), tokens, in, logits (B, T, V) out; see
                `polyhead.serving.formats`.
            search: settings of `Search` for ``beam``, instead of the model's own. Default beam
                width: the model's own; 4 if that is greedy.

        Returns:
            the version's folder; see `polyhead.serving.export`.

        >>> model.export("exported", num_beams=5)  # doctest: +SKIP
        PosixPath('exported/1')
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
        if (whole := self._without_lora()) is not self:
            return whole.export(filepath, **search)
        own = self.config.search
        if own.num_beams == 1:
            search.setdefault("num_beams", 4)
        beam = dataclasses.replace(own, **search)
        beam = beam.within(self.config.vocab_size, room(self.config.max_length))

        def make_translate(search):
            def translate(text):
                source = tokenizer.encode(text, self.config.max_length)
                source = source.to_tensor(self.config.pad_id)
                found = self.find(source, search, cache=ScatterCache)
                shape = ops.shape(found.score)
                texts = tokenizer.decode(ops.reshape(found.tokens, (shape[0] * shape[1], -1)))
                return ops.reshape(texts, shape), found.score

            return translate

        def greedy(text):
            text, score = make_translate(dataclasses.replace(own, num_beams=1))(text)
            return {"text": text[:, 0], "score": score[:, 0]}

        def beam_search(text):
            text, score = make_translate(beam)(text)
            return {"text": text, "score": score}

        inputs = {"text": tokenizer.spec("text")}
        examples = {"text": EXAMPLES}
        return export(
            filepath,
            "translation",
            {
                "serving_default": (greedy, inputs, examples),
                "beam": (beam_search, inputs, examples),
            },
            variables=self.weights,
            tracked=[tokenizer],
        )

    def _sources(self, texts):
        """Tokenizes ``texts`` to lists, truncated to ``max_length`` with a warning."""
        rows, limit = self.tokenizer.encode(texts).to_list(), self.config.max_length
        if long := sum(len(row) > limit for row in rows):
            warnings.warn(
                f"{long} of {len(texts)} sources have more than {limit} tokens and were truncated",
                stacklevel=3,
            )
        end = [self.config.end_id]
        return [row if len(row) <= limit else row[: limit - 1] + end for row in rows]


def room(length):
    """The default maximum number of tokens of a translation of ``length`` source tokens."""
    return 2 * length + 10
