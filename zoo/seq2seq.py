"""Sequence-to-sequence models: what users do with an encoder-decoder."""

import dataclasses
import warnings

import keras
import numpy as np
from keras import ops

from ..layers import KeyValueCache, decoder_mask, padding_mask
from .alignment import Alignment
from .decoding import GREEDY, ScatterCache, advance, begin, is_possible
from .model import (
    Pretrained,
    ScoredText,
    as_list,
    bucket,
    check_count,
    empty_caches,
    in_batches,
)

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


class Translation(ScoredText):
    """What a source became; ``score`` is what `Search` calls its worth.

    By greedy search that is the log-probability of the whole translation.
    """


class Seq2Seq(Pretrained):
    """The base of encoder-decoders: `translate`, `attention`, `export`.

    A subclass is a network. Its configuration has ``vocab_size``, ``source_vocab_size``,
    ``max_length`` (of a source), ``pad_id``, ``start_id``, ``end_id`` and ``search``. It has a list
    ``decoder`` of `TransformerBlock`s with cross-attention and these methods:

    - ``encode(source, mask)``: (B, S) -> memory (B, S, D);
    - ``embed_target(tokens, start=0)``: (B, T) -> (B, T, D), what the first decoder block gets;
    - ``decode(target, memories, mask, caches=None)``: (B, T) -> logits (B, T, V), and the extended
      caches; ``memories`` are a memory for each block, or what the block's `project` made of it.
    """

    VOCABULARY = ("vocab_size", "source_vocab_size", "pad_id", "start_id", "end_id")

    def call(self, inputs):
        mask = self.source_mask(inputs["source"])
        memories = [self.encode(inputs["source"], mask)] * len(self.decoder)
        logits, _ = self.decode(inputs["target"], memories, mask)
        return logits

    def source_mask(self, source):
        return padding_mask(source, self.config.pad_id)

    def project(self, memory):
        """The keys and values of every decoder block's cross-attention, computed once."""
        return [block.project(memory) for block in self.decoder]

    def find(self, source, search=GREEDY, length=None, cache=KeyValueCache):
        """What ``search`` finds for ``source`` (B, S): a `Found`.

        A translation gets at most ``search.max_new_tokens``. Where that or the ``length`` of the
        caches is not given, it gets twice the tokens of its source and ten more; an empty source
        (its end token alone) gets none. ``cache`` is how keys and values are kept.
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

    def translate(self, texts, num_return_sequences=None, batch_size=32, progress=False, **search):
        """Translates a string, or a list of strings.

        Sources are sorted by length, batched and padded to a few lengths, for each of which the
        search is compiled once (for a batch size; one text alone has its own).

        Args:
            num_return_sequences: the number of translations of each text, the best first; at most
                the number of beams.
            progress: True shows a progress bar; or a function that wraps the batches.
            search: settings of `Search` instead of the model's own:
                ``num_beams=5, length_penalty=0.6``.

        Returns:
            a `Translation`, a string with a ``score``, or a list of them in the order of ``texts``.
            With ``num_return_sequences``, lists of them: fewer where the search finds fewer.

        Warns:
            UserWarning: sources with more than ``config.max_length`` tokens are truncated.
        """
        tokenizer = self._need_tokenizer("translate")
        texts, single = as_list("translate", texts)
        own, batch_size = self.config.search, check_count(batch_size, "batch_size")
        count = check_count(num_return_sequences)
        search = dataclasses.replace(own, **{"num_beams": max(own.num_beams, count), **search})
        search = search.within(self.config.vocab_size, room(self.config.max_length))
        if count > search.num_beams:
            raise ValueError(
                f"num_return_sequences must be at most num_beams: {count}, {search.num_beams}"
            )
        batch_size = min(batch_size, bucket(len(texts), start=32))
        # A short batch costs what a full one does, but needs no compilation of its own;
        # one text alone is common enough to have one.
        size = 1 if len(texts) == 1 else batch_size

        def run(rows):
            width = min(bucket(max(map(len, rows))), self.config.max_length)
            batch = np.full((size, width), self.config.pad_id, "int32")
            for i, row in enumerate(rows):
                batch[i, : len(row)] = row
            tokens, score = (x[: len(rows), :count] for x in self._run_search(batch, search))
            decoded = np.asarray(tokenizer.decode(tokens.reshape(-1, tokens.shape[-1])))
            for made, worth in zip(decoded.reshape(score.shape), score.tolist(), strict=True):
                found = [
                    Translation(text.decode(), s)
                    for k, (text, s) in enumerate(zip(made, worth, strict=True))
                    if k == 0 or is_possible(s)  # a search may find fewer
                ]
                yield found if num_return_sequences is not None else found[0]

        rows = self._sources(texts) if texts else []
        found = in_batches(rows, batch_size, run, progress=progress)
        return found[0] if single else found

    def _run_search(self, batch, search):
        """Tokens (B, K, L) and scores (B, K) for ``batch`` (B, S), by a compiled search.

        Translations are seldom longer than twice their source, so that where more is allowed,
        room for it is made only once it is needed.
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

    def export(self, filepath, format="tf_saved_model", **search):
        """Writes a SavedModel for TensorFlow Serving as the next version of ``filepath``.

        Its signature ``serving_default`` takes ``text`` (B,) and gives ``text`` and ``score``
        (B,), by greedy search. Its signature ``beam`` gives ``text`` and ``score`` (B, K), the
        best first, by the model's own search with the settings ``search``; where that is greedy
        and no ``num_beams`` is given, by 4 beams. Where there are fewer than K, as of an
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
        if (whole := self._without_lora()) is not self:
            return whole.export(filepath, **search)
        own = self.config.search
        if own.num_beams == 1:
            search.setdefault("num_beams", 4)
        beam = dataclasses.replace(own, **search)
        beam = beam.within(self.config.vocab_size, room(self.config.max_length))

        def translation(search):
            def translate(text):
                source = tokenizer.encode(text, self.config.max_length)
                source = source.to_tensor(self.config.pad_id)
                found = self.find(source, search, cache=ScatterCache)
                shape = ops.shape(found.score)
                texts = tokenizer.decode(ops.reshape(found.tokens, (shape[0] * shape[1], -1)))
                return ops.reshape(texts, shape), found.score

            return translate

        def greedy(text):
            text, score = translation(dataclasses.replace(own, num_beams=1))(text)
            return {"text": text[:, 0], "score": score[:, 0]}

        def beam_search(text):
            text, score = translation(beam)(text)
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
        """The tokens of ``texts``, lists, truncated with a warning to what the model can take."""
        rows, limit = self.tokenizer.encode(texts).to_list(), self.config.max_length
        if long := sum(len(row) > limit for row in rows):
            warnings.warn(
                f"{long} of {len(texts)} sources have more than {limit} tokens and were truncated",
                stacklevel=3,
            )
        end = [self.config.end_id]
        return [row if len(row) <= limit else row[: limit - 1] + end for row in rows]


def room(length):
    """The most tokens that a translation of ``length`` tokens gets, unless more is asked for."""
    return 2 * length + 10
