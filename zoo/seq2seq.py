"""The task methods of encoder-decoders: translate, summarize, generate, attention and export."""

import dataclasses
import re
import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from ..layers import KeyValueCache, decoder_mask, padding_mask
from ..training import SmoothedCrossEntropy
from .alignment import Alignment
from .decoding import (
    GREEDY,
    Found,
    ScatterCache,
    Search,
    State,
    advance,
    begin,
    is_possible,
    lengthen,
)
from .model import (
    Generation,
    Pretrained,
    ScoredText,
    bucket,
    check_count,
    empty_caches,
    in_batches,
    pad_rows,
    stack,
)
from .texts import as_texts, clean

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


class Summary(ScoredText):
    """A summary: a string with a ``score``.

    The score is its log-probability; with beam search, the length-normalized one (see `Search`). Of
    a text that was summarized in pieces, it is the sum over the pieces.

    >>> text = polyhead.Summary("A dog runs.", -0.5)
    >>> text.split(), text.score
    (['A', 'dog', 'runs.'], -0.5)
    """


class Seq2Seq(Pretrained):
    """Base class of encoder-decoders: `translate`, `summarize`, `generate`, `attention`, `export`.

    A subclass is a network. Its configuration has ``vocab_size``, ``max_length`` (of a source),
    ``pad_id``, ``start_id``, ``end_id`` and ``search``; ``source_vocab_size``, if the source has
    another vocabulary; and ``prefix``, if texts get one. The network has a list ``decoder`` of
    `TransformerBlock`s with cross-attention and these methods:

    - ``encode(source, mask)``: (B, S) -> memory (B, S, D);
    - ``embed_target(tokens, start=0)``: (B, T) -> (B, T, D), the input of the first decoder block;
    - ``logits(x)``: (B, T, D), the output of the last decoder block -> (B, T, V), in float32;
    - optionally ``decoder_inputs``, see below.

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
    TASKS: ClassVar[tuple] = ("translation",)  # the first names its exports

    def call(self, inputs: dict) -> Any:
        mask = self.source_mask(inputs["source"])
        memories = [self.encode(inputs["source"], mask)] * len(self.decoder)
        logits, _ = self.decode(inputs["target"], memories, mask)
        return logits

    def source_mask(self, source: Any) -> Any:
        return padding_mask(source, self.config.pad_id)

    def decode(
        self, target: Any, memories: list, mask: Any, caches: list | None = None
    ) -> tuple[Any, list | None]:
        """Target tokens (B, T) -> logits (B, T, V) of the next tokens, and the extended caches.

        Args:
            memories: for each block, the memory (B, S, D) or ``block.project(memory)``.
            mask: `source_mask`.
            caches: a `KeyValueCache` for each block, with the tokens before ``target``.
        """
        x = self.embed_target(target, 0 if caches is None else caches[0].index)
        inputs = self.decoder_inputs(x, mask, caches and caches[0])
        x, caches = stack(self.decoder, x, caches, memories, **inputs)
        return self.logits(x), caches

    def decoder_inputs(self, x: Any, mask: Any, cache: KeyValueCache | None = None) -> dict:
        """The arguments that all decoder blocks share: the masks, for ``x`` (B, T, D)."""
        return {"mask": decoder_mask(x, cache=cache), "cross_mask": mask}

    def project(self, memory: Any) -> list:
        """Computes the keys and values of each decoder block's cross-attention once."""
        return [block.project(memory) for block in self.decoder]

    def room(self, length: Any) -> Any:
        """The default maximum number of tokens of a target, for ``length`` source tokens."""
        return 2 * length + 10

    def find(
        self,
        source: Any,
        search: Search = GREEDY,
        length: Any = None,
        cache: type[KeyValueCache] = KeyValueCache,
        most: Any = None,
        least: Any = None,
    ) -> Found:
        """Runs ``search`` on ``source`` (B, S) and returns what it finds, a `Found`.

        A target has at most ``search.max_new_tokens`` tokens; without that, at most twice the
        tokens of its source plus ten. An empty source (only special tokens) gets an empty target.

        Args:
            length: size of the caches, in tokens, and of the result, which may be incomplete.
                Default: what a target can have; those of an export grow when one needs them.
            cache: class of the key-value caches.
            most, least: (B,) the maximum and the minimum number of tokens of each row; the maximum
                is at most that of ``search``.
        """
        c = self.config
        mask = self.source_mask(source)
        count = ops.sum(ops.cast(source != c.pad_id, "int32"), axis=1)
        usual = self.room(count)
        limit = usual if search.max_new_tokens is None else search.max_new_tokens
        longest = length
        if length is None:
            length = longest = self.room(ops.shape(source)[1])
            if search.max_new_tokens is not None:
                longest = search.max_new_tokens
                # Targets are rarely longer than twice their source.
                length = ops.minimum(length, longest) if cache is ScatterCache else longest
        if most is not None:
            limit = ops.minimum(limit, ops.cast(most, "int32"))
        limit = ops.where(count > self._num_special(), limit, 0)
        memories = self.project(self.encode(source, mask))
        # XLA multiplies two rows by a matrix faster than one: the second row has limit 0.
        alone = source.shape[0] == 1 and search.num_beams == 1
        if alone:
            limit = ops.concatenate([limit, ops.zeros_like(limit)], axis=0)
        rows = ops.shape(source)[0] * (2 if alone else search.num_beams)
        caches = empty_caches(self.decoder, rows, length, cache)
        start = ops.full(ops.shape(limit), c.start_id, "int32")
        state = begin(start, caches, limit, length, c.pad_id, search.num_beams)

        def step(tokens, caches):
            logits, caches = self.decode(tokens, memories, mask, caches)
            return self.drop_padding(logits), caches

        prompt = start[:, None]  # the start token is a part of n-grams that must not occur again
        least = least if least is None else ops.cast(least, "int32")

        def continued(*state):
            return advance(step, State(*state), limit, c.end_id, search, prompt=prompt, least=least)

        def lengthened(*state):
            state = continued(*state)
            size = ops.shape(state.tokens)[2]
            more = ops.where(ops.all(state.done), 0, ops.minimum(size, longest - size))
            return tuple(lengthen(state, more, c.pad_id))

        if longest is length:
            found = continued(*state).found
        else:
            state = ops.while_loop(
                lambda *state: ops.logical_not(ops.all(State(*state).done)), lengthened, state
            )
            found = State(*state).found
        return Found(*(x[:1] for x in found)) if alone else found

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
        run = dict(batch_size=batch_size, progress=progress)
        return self._generate("translate", Translation, texts, num_return_sequences, run, search)

    def generate(
        self,
        texts: str | Sequence[str],
        prefix: str = "",
        num_return_sequences: int | None = None,
        batch_size: int = 32,
        progress: bool | Callable = False,
        **search: Any,
    ) -> Generation | list:
        """Generates a target for a string, or for each of a list of strings, whatever the task.

        Args:
            prefix: added to each text that is not empty: T5's names a task.
            num_return_sequences, batch_size, progress, search: see `translate`.

        Returns:
            a `Generation`, or a list of them, as `translate`.

        >>> t5.generate("A dog.", prefix="translate English to German: ")  # doctest: +SKIP
        'Ein Hund.'
        """
        run = dict(batch_size=batch_size, progress=progress)
        return self._generate(
            "generate", Generation, texts, num_return_sequences, run, search, prefix
        )

    def summarize(
        self,
        texts: str | Sequence[str],
        num_return_sequences: int | None = None,
        batch_size: int = 8,
        progress: bool | Callable = False,
        pieces: bool = True,
        **search: Any,
    ) -> Summary | list:
        """Summarizes a string, or each of a list of strings.

        A text of more than ``config.max_length`` tokens is divided into as few pieces as possible,
        of similar length, each of which is summarized. A piece ends where a sentence ends (at
        ``.``, ``!`` or ``?`` before white space, at ``。``, or at the end of a line) or, if a
        sentence alone is too long, at white space. The summary consists of those of the pieces,
        joined by spaces.

        Args:
            num_return_sequences, batch_size, progress: see `translate`.
            pieces: False truncates long texts instead, with a warning.
            search: settings of `Search` instead of the model's own, for each piece:
                ``num_beams=4, length_penalty=2.0, min_new_tokens=56, no_repeat_ngram_size=3``.

        Returns:
            a `Summary`, or a list of them, as `translate`.

        >>> model = polyhead.load("facebook/bart-large-cnn")  # doctest: +SKIP
        >>> model.summarize(article, max_new_tokens=60)  # doctest: +SKIP
        """
        tokenizer = self._need_tokenizer("summarize")
        texts, single = as_texts("summarize", texts)
        prefix = getattr(self.config, "prefix", "")
        if pieces and texts:
            used = int(tokenizer.encode([prefix]).row_lengths()[0])
            if (limit := self.config.max_length - used) < 1:
                raise ValueError(
                    "prefix must leave room for a text: it has "
                    f"{used} of {self.config.max_length} tokens: {prefix!r:.100}"
                )
            divided = [
                [text] if size <= limit else divide(text, limit, tokenizer.count)
                for text, size in zip(texts, tokenizer.count(texts), strict=True)
            ]
        else:
            divided = [[text] for text in texts]
        run = dict(batch_size=batch_size, progress=progress)
        flat = [piece for parts in divided for piece in parts]
        count = check_count(num_return_sequences)
        found = iter(self._generate("summarize", Summary, flat, count, run, search, prefix))
        summaries = [
            [
                Summary(" ".join(x), sum(part.score for part in x)) if len(x) > 1 else x[0]
                for x in zip(*(next(found) for _ in parts), strict=False)
            ]
            for parts in divided
        ]
        if num_return_sequences is None:
            summaries = [several[0] for several in summaries]
        return summaries[0] if single else summaries

    def _generate(self, verb, kind, texts, num_return_sequences, run, search, prefix=""):
        """The targets of ``texts``, of the class ``kind``; see `translate`.

        Args:
            run: the arguments ``batch_size`` and ``progress``.
        """
        tokenizer = self._need_tokenizer(verb)
        texts, single = as_texts(verb, texts)
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a string: {prefix!r:.100}")
        prefix = clean(prefix)
        own, batch_size = self.config.search, check_count(run["batch_size"], "batch_size")
        count = check_count(num_return_sequences)
        search = dataclasses.replace(own, **{"num_beams": max(own.num_beams, count), **search})
        search = search.within(self.config.vocab_size, self.room(self.config.max_length))
        if count > search.num_beams:
            raise ValueError(
                f"num_return_sequences must be at most num_beams: {count}, {search.num_beams}"
            )
        batch_size = min(batch_size, bucket(len(texts), start=32))
        # A short batch is padded: it costs as much as a full one, but compiles nothing new.
        # A single text is common enough to get its own compiled search.
        size = 1 if len(texts) == 1 else batch_size

        def find(rows):
            width = min(bucket(max(map(len, rows))), self.config.max_length)
            batch = pad_rows(rows, (size, width), self.config.pad_id)
            tokens, score = (x[: len(rows), :count] for x in self._run_search(batch, search))
            decoded = np.asarray(tokenizer.decode(tokens.reshape(-1, tokens.shape[-1])))
            for row, row_scores in zip(decoded.reshape(score.shape), score.tolist(), strict=True):
                found = [
                    kind(text.decode(), s)
                    for k, (text, s) in enumerate(zip(row, row_scores, strict=True))
                    if k == 0 or is_possible(s)  # a search may find fewer
                ]
                yield found if num_return_sequences is not None else found[0]

        rows = self._sources([prefix + text if text else text for text in texts]) if texts else []
        found = in_batches(rows, batch_size, find, progress=run["progress"])
        return found[0] if single else found

    def _run_search(self, batch, search):
        """Runs the compiled search on ``batch`` (B, S): tokens (B, K, L) and scores (B, K).

        Targets are rarely longer than twice their source: if more is allowed, the caches grow only
        when a longer one is found.
        """
        length = self.room(batch.shape[1])
        longest = length if search.max_new_tokens is None else search.max_new_tokens
        while True:
            length = min(length, longest)
            find = self._compiled(
                (search, length),
                lambda source, length=length: self.find(source, search, length),
                self.TASKS[0],
            )
            found = find(batch)
            if length == longest or np.all(found.complete):
                return np.asarray(found.tokens), np.asarray(found.score)
            length *= 2

    def attention(self, source: str, target: str | None = None, prefix: str = "") -> Alignment:
        """Returns the cross-attention weights of a target given its source, as an `Alignment`.

        Args:
            source: a string.
            target: its translation, for example. Default: what the model generates.
            prefix: added to the source, as by `generate`.

        >>> model.attention("A dog runs.").draw("attention.png")  # doctest: +SKIP
        """
        tokenizer = self._need_tokenizer("attention")
        if not isinstance(source, str) or not isinstance(target, str | None):
            raise TypeError(
                f"attention takes two strings: {type(source).__name__}, {type(target).__name__}"
            )
        source, prefix = clean(source), clean(prefix)
        if target is None:
            [target] = self.generate([source], prefix)
        source_tokens = np.array(self._sources([prefix + source], stacklevel=3))
        labels = np.asarray(tokenizer.encode([clean(target)], target=True).to_tensor())
        target_tokens = np.concatenate([[[self.config.start_id]], labels[:, :-1]], axis=1)
        mask = self.source_mask(source_tokens)
        memory = self.encode(source_tokens, mask)
        x, weights = self.embed_target(target_tokens), []
        inputs = self.decoder_inputs(x, mask)
        for block in self.decoder:
            weights.append(block.cross_attention_weights(x, memory, **inputs))
            x = block(x, memory=memory, **inputs)
        return Alignment(
            tokenizer.pieces(source_tokens[0]),
            tokenizer.pieces(labels[0], target=True),
            np.concatenate([ops.convert_to_numpy(found) for found in weights]),
        )

    def export(
        self,
        filepath: str | PathLike[str],
        format: str | None = "tf_saved_model",
        prefix: str | None = None,
        **search: Any,
    ) -> Path:
        """Writes a SavedModel for TensorFlow Serving as the next version of ``filepath``.

        All signatures take ``text`` (B,). A target has at most as many tokens as ``max_new_tokens``
        of the search or, without it, twice the tokens of its source plus ten; sources of more than
        ``config.max_length`` tokens are truncated.

        - ``serving_default`` returns ``text`` and ``score`` (B,), by greedy search;
        - ``beam`` returns ``text`` and ``score`` (B, K), the best first, by beam search. If it
          finds fewer than K, the rest are empty strings with score -1e9;
        - ``generate``, of T5 and BART, also takes ``max_new_tokens`` (at most that of the search)
          and ``min_new_tokens`` (B,), so that the server can batch requests with different lengths.
          It returns ``text`` and ``score`` (B,), the best of the beam search.

        Args:
            format: "onnx", "litert" or "openvino" writes a file of the network alone instead:
                ``source`` (B, S) and ``target`` (B, T), tokens, in, logits (B, T, V) out; see
                `polyhead.serving.formats`.
            prefix: added to each text that is not empty. Default: T5's own, "" for other models.
            search: settings of `Search` for ``beam`` and ``generate``, instead of the model's own.
                Default beam width: the model's own; 4 if that is greedy.

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
            limit = min(c.vocab_size, getattr(c, "source_vocab_size", None) or c.vocab_size)
            settings = search if prefix is None else {**search, "prefix": prefix}
            return self._export_network(filepath, format, tokens, limit, settings)
        tokenizer = self._need_tokenizer("export")
        if (whole := self._without_lora()) is not self:
            return whole.export(filepath, prefix=prefix, **search)
        prefix = getattr(self.config, "prefix", "") if prefix is None else prefix
        own = self.config.search
        if own.num_beams == 1:
            search.setdefault("num_beams", 4)

        def limited(search):
            return search.within(self.config.vocab_size, self.room(self.config.max_length))

        plain = limited(dataclasses.replace(own, num_beams=1))
        beam = limited(dataclasses.replace(own, **search))

        def find(text, search, most=None, least=None):
            source = tokenizer.encode(tokenizer.prefixed(prefix, text), self.config.max_length)
            source = source.to_tensor(self.config.pad_id)
            found = self.find(source, search, cache=ScatterCache, most=most, least=least)
            shape = ops.shape(found.score)
            texts = tokenizer.decode(ops.reshape(found.tokens, (shape[0] * shape[1], -1)))
            return {"text": ops.reshape(texts, shape), "score": found.score}

        def best(found):
            return {name: x[:, 0] for name, x in found.items()}

        def greedy(text):
            return best(find(text, plain))

        def generate(text, max_new_tokens, min_new_tokens):
            return best(find(text, beam, max_new_tokens, min_new_tokens))

        inputs, texts = {"text": tokenizer.spec("text")}, {"text": EXAMPLES}
        signatures = {
            "serving_default": (greedy, inputs, texts),
            "beam": (lambda text: find(text, beam), inputs, texts),
        }
        if "summarization" in self.TASKS:
            lengths = {
                "max_new_tokens": [8, 100, 1, 0, 5, 9, 100, 20],
                "min_new_tokens": [0, 3, 0, 2, 5, 0, 9, 0],
            }
            inputs = inputs | {name: tokenizer.spec(name, "int32") for name in lengths}
            signatures["generate"] = generate, inputs, texts | lengths
        return export(filepath, self.TASKS[0], signatures, self.weights, tracked=[tokenizer])

    def compile(self, optimizer: Any = None, loss: Any = None, **kwargs: Any) -> None:
        """Keras's `compile`. Default: AdamW at 1e-4, and cross-entropy smoothed by 0.1."""
        if optimizer is None:
            optimizer = keras.optimizers.AdamW(1e-4, weight_decay=0.01, global_clipnorm=1.0)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        super().compile(optimizer, SmoothedCrossEntropy(0.1) if loss is None else loss, **kwargs)

    def _num_special(self):
        """The number of special tokens of a source without text."""
        tokenizer = self.tokenizer
        return 1 if tokenizer is None else max(1, len(tokenizer.prefix) + len(tokenizer.suffix))

    def _sources(self, texts, stacklevel=4):
        """Tokenizes ``texts`` to lists, truncated to ``max_length`` with a warning."""
        rows, limit = self.tokenizer.encode(texts).to_list(), self.config.max_length
        if long := sum(len(row) > limit for row in rows):
            warnings.warn(
                f"{long} of {len(texts)} sources have more than {limit} tokens and were truncated",
                stacklevel=stacklevel,
            )
        end = [self.config.end_id]
        return [row if len(row) <= limit else row[: limit - 1] + end for row in rows]


# The ends of sentences, also before a closing quote or bracket, and of lines.
SENTENCE = re.compile(r"""(?<=[.!?])(?=\s)|(?<=[.!?]["'”’)\]])(?=\s)|(?<=[。！？])|(?<=\n)""")
WORD = re.compile(r"(?<=\S)(?=\s)")


def divide(text, limit, count):
    """Divides a text into the fewest pieces of at most ``limit`` tokens; see `summarize`.

    A word of more tokens is a piece alone.

    Args:
        count: a function of texts that returns their numbers of tokens.
    """
    if count([text])[0] <= limit:
        return [text]
    parts = []
    for sentence in counted(SENTENCE.split(text), count):
        parts += (
            [sentence] if max(sentence[1:]) <= limit else counted(WORD.split(sentence[0]), count)
        )
    fewest = len(pack(parts, limit))
    # The lowest limit with as few pieces makes their lengths similar.
    lowest = bisect_left(range(limit), True, key=lambda size: len(pack(parts, size)) <= fewest)
    return pack(parts, lowest) or [""]


def counted(parts, count):
    """The parts that are not empty, each with its numbers of tokens within and at the start of a
    piece, where the white space before it is removed."""
    parts = [part for part in parts if part]
    return list(zip(parts, count(parts), count([x.lstrip() for x in parts]), strict=True))


def pack(parts, limit):
    """Joins the ``parts`` of `counted` to pieces of at most ``limit`` tokens, from the left."""
    pieces, size = [""], 0
    for part, within, first in parts:
        if pieces[-1] and size + within > limit:
            pieces.append("")
        if pieces[-1]:
            pieces[-1] += part
            size += within
        else:
            pieces[-1], size = part.lstrip(), first
    return [piece.rstrip() for piece in pieces if piece]
