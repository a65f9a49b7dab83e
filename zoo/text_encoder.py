"""The task methods of text encoders: classify, tag, answer, fill_mask, embed, rerank, export."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import keras
import numpy as np
from keras import ops

from ..layers.arguments import plain
from ..training import BinaryCrossEntropy, SmoothedCrossEntropy, SpanCrossEntropy
from ..training.losses import unit
from .classes import Classification, Classifier
from .heads import HEADS, SAME, Head, change_head, head_size, pool
from .model import bucket, check_count, check_fields, in_batches, pad_rows
from .texts import as_texts, chunks, clean

# Devlin et al. 2019, appendix A.5, and their code for SQuAD.
WINDOW, OVERLAP, LONGEST = 384, 128, 30
# Warm-up requests: an export must answer them before it is renamed into place.
EXAMPLES = [
    "Ada Lovelace was born in London.",
    "",
    "The film was long, but nobody in the cinema wanted it to end. " * 12,
    "It rains.",
]
QUESTIONS = ["Where was Ada born?", "Why?", "Who wanted the film to end?", "When does it rain?"]


class Span(NamedTuple):
    """A labelled part of a text: ``text == whole[start:end]``, and its probability.

    Of a list of words, ``start`` and ``end`` count words, and ``text`` is
    ``" ".join(words[start:end])``.

    >>> span = polyhead.Span("PER", "Ada Lovelace", start=0, end=12, score=0.99)
    >>> "Ada Lovelace was born in London."[span.start : span.end]
    'Ada Lovelace'
    """

    label: str
    text: str
    start: int
    end: int
    score: float


class Answer(NamedTuple):
    """An answer from a context: ``text == context[start:end]``, and its probability.

    ``text`` is "" if the context does not answer the question. ``no_answer`` is the probability of
    that, so log(no_answer / score) is what the model's threshold is compared with.

    >>> answer = polyhead.Answer("in London", start=22, end=31, score=0.7, no_answer=0.1)
    >>> answer.text or "no answer"
    'in London'
    """

    text: str
    start: int
    end: int
    score: float
    no_answer: float = 0.0


class Match(NamedTuple):
    """The index of a text that matches a query, and its score.

    >>> index, score = polyhead.Match(index=3, score=0.81)
    >>> index
    3
    """

    index: int
    score: float


class TextEncoder(Classifier):
    """Base class of text encoders; a subclass is a network and calls `build_head`.

    The configuration is a subclass of `HeadConfig`, which has the head as data, and has
    ``vocab_size``, ``max_length``, ``dim``, ``dropout`` and ``pad_id``. The network has an
    embedding ``tokens`` (a `TokenEmbedding`) and the method

    - ``features(tokens, types=None)``: tokens and types (B, T) -> (B, T, D). Padding is where
      tokens equal ``config.pad_id``.

    Call with tokens (B, T), or a dictionary of ``tokens`` and ``types`` (B, T). The result depends
    on the head, in float32: "classes" (B, C); "score" (B,); "tags" (B, T, C); "spans" (B, T, 2),
    logits of the first and the last token of an answer; "tokens" (B, T, V); None: embeddings
    (B, D). With the head "tokens", ``positions`` (B, M) in the dictionary give logits (B, M, V) of
    these positions only.

    >>> model = polyhead.BERT.preset("bert-tiny", vocab_size=100, num_layers=1)
    >>> isinstance(model, polyhead.TextEncoder)
    True
    >>> model.adapt("classes", class_names=["negative", "positive"]).config.num_classes
    2
    >>> model = polyhead.load("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> model.embed(["A man is eating food."]).shape  # doctest: +SKIP
    (1, 384)
    >>> model.export("exported")  # doctest: +SKIP
    PosixPath('exported/1')

    Attributes:
        xla: whether XLA compiles the methods, once for each number and length of texts in a batch:
            short texts are then processed faster. It is not saved. JAX always uses XLA, exports
            never do.
    """

    xla: bool = False
    SERVED: ClassVar[str] = "text"  # the name of an export in the server
    VOCABULARY = ("vocab_size", "pad_id")
    HEAD = ("head", "num_classes", "class_names")
    UNCOMPILED = ("no_answer",)

    @classmethod
    def change_head(cls, config: Any, **changes: Any) -> tuple[Any, str]:
        return change_head(config, **changes)

    @classmethod
    def learn_tokenizer(cls, texts: Any, vocab_size: int = 8000) -> Any:
        """Learns a tokenizer from strings, for a model that is trained from scratch.

        >>> texts = ["A dog on a log.", "A log."]
        >>> polyhead.BERT.learn_tokenizer(texts, vocab_size=40).tokens("a log")
        ['[CLS]', 'a', 'log', '[SEP]']
        """
        from ..data import WordPieces

        return WordPieces.train(texts, vocab_size)

    @classmethod
    def load_tokenizer(cls, folder: Path, config: Any) -> Any:
        from ..data.tokenizers import load

        return load(folder)

    def initialize(self) -> None:
        """Samples matrices from N(0, 0.02), cut at two standard deviations (BERT's code)."""
        initializer = keras.initializers.TruncatedNormal(stddev=0.02)
        for v in self.trainable_variables:
            if v.name in ("kernel", "embeddings"):
                v.assign(initializer(v.shape, v.dtype))

    def build_head(
        self,
        activation: str | None = None,
        norm: keras.layers.Layer | None = None,
        use_bias: bool = True,
        pooling: str = "token",
    ) -> None:
        """Makes the head that the configuration names; call it in a network's ``__init__``.

        Args:
            activation: of the first map, "head/dense"; None: the head has none.
            norm: the normalization after it, a template; None: the head has none.
            use_bias: whether the first map has a bias.
            pooling: of the heads "classes" and "score".
        """
        c = self.config
        self.head_pooling = pooling
        self.head = c.head and Head(
            head_size(c),
            activation,
            norm,
            0.0 if c.head == "spans" else c.dropout,  # as in Devlin et al.'s code
            use_bias,
            vocab_size=c.vocab_size if c.head == "tokens" else 0,
            dtype=self.dtype_policy,
            name="head",
        )

    def call(self, inputs: Any) -> Any:
        if (head := self.config.head) is None:
            return self.embeddings(inputs)
        given = inputs if isinstance(inputs, dict) else {"tokens": inputs}
        tokens = given["tokens"]
        x = self.features(tokens, given.get("types"))
        if head in ("classes", "score"):
            x = pool(x, self.is_text(tokens), self.head_pooling)
            logits = ops.cast(self.head(ops.cast(x, self.compute_dtype)), "float32")
            return logits if head == "classes" else logits[:, 0]
        if head == "tokens":
            if (positions := given.get("positions")) is not None:
                x = ops.take_along_axis(x, positions[..., None], axis=1)
            return self.tokens.logits(self.head(x)) + self.head.bias
        return ops.cast(self.head(x), "float32")

    def is_text(self, tokens: Any) -> Any:
        """``tokens`` (B, T) -> boolean (B, T): not padding."""
        return ops.not_equal(tokens, self.config.pad_id)

    def is_pooled(self, tokens: Any) -> Any:
        """``tokens`` (B, T) -> boolean (B, T): those over which `pooled` takes the mean."""
        return self.is_text(tokens)

    def pooled(self, x: Any, tokens: Any) -> Any:
        """Features ``x`` (B, T, D) -> embeddings (B, D), of norm 1 if ``config.normalize``."""
        x = pool(x, self.is_pooled(tokens), self.config.pooling)
        if self.config.normalize:
            x = unit(x)
        return x

    def adapt(
        self,
        head: str | None = SAME,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        **overrides: Any,
    ) -> Self:
        """Returns a model with these weights and another head, or other classes, for fine-tuning.

        The weights that the new head shares with the old one are kept: for other classes, those
        before the last map (BERT's pooler).

        Args:
            head: "classes", "score", "tags", "spans" or "tokens"; None: no head. Default: the
                model's own.
            num_classes: another number, or other ``class_names``, gives a new last map.
            overrides: changes to the configuration: ``dropout=0.2``.

        Raises:
            ValueError: the model is quantized, or ``overrides`` change the shapes of its weights.
            TypeError: the configuration has no such setting.
        """
        if self._quantization():
            raise ValueError("a quantized model cannot be adapted: quantize the adapted model")
        config, renewed = change_head(self.config, head, num_classes, class_names)
        check_fields(type(self), overrides)
        config = dataclasses.replace(config, **overrides)
        model = type(self)(config, self.tokenizer, initialize=False, dtype=self.dtype_policy)
        self._without_lora()._copy_weights(model, renewed)
        return model

    @property
    def context(self) -> int:
        """The maximum number of tokens of an input, special tokens included."""
        return self.config.max_length

    def classify(
        self,
        texts: Any,
        top: int | None = None,
        batch_size: int = 32,
        progress: bool | Callable = False,
    ) -> Classification | list:
        """Classifies a text, a pair of texts, or each of a list of them.

        Texts are sorted by length, batched and padded to a few lengths; the network is compiled
        once per length. Texts longer than the model's context are truncated, with a warning; of a
        pair, the longer text.

        Args:
            texts: a string; a tuple of two strings, a pair; or a list of strings or of pairs.
            top: number of most likely classes to return per text.
            batch_size: number of texts per call of the network.
            progress: True shows a progress bar; or a function that wraps the batches.

        Returns:
            a `Classification`, or a list of them in the order of ``texts``; with ``top``, a list
            for each text.

        Raises:
            TypeError: an item is not a string, or a pair of strings; the message has its index.
            ValueError: the model has another head.

        >>> model.classify("A wonderful film.")  # doctest: +SKIP
        Classification(label='positive', probability=0.99)
        >>> model.classify(("It rains.", "It is wet."), top=3)  # doctest: +SKIP
        """
        self._need_head("classes")
        self._check_top(top)
        texts, single = as_texts("classify", texts, pairs=True)
        rows = self._rows("classify", texts)
        found = self._run("classify", self.class_probabilities, rows, batch_size, progress)
        results = [self._most_likely(probabilities, top) for probabilities in found]
        return results[0] if single else results

    def class_probabilities(self, inputs: Any) -> Any:
        """Tokens (B, T), or the dictionary of `call` -> probabilities (B, C)."""
        return ops.softmax(self(inputs))

    def tag(
        self,
        texts: Any,
        batch_size: int = 32,
        progress: bool | Callable = False,
    ) -> list:
        """Finds labelled spans, such as the names of persons, in a text or in each of a list.

        Each word has the class of its first token. Words join to spans by the scheme of
        ``class_names``: BIO ("O", "B-PER", "I-PER"), where I- without B- before it begins a span;
        also BIOES, BILOU, and labels without prefixes. In a string, a word ends at white space and
        punctuation. Long texts are cut into windows that overlap, and each token is tagged in the
        window that has more text around it: nothing is truncated.

        Args:
            texts: a string, or a list whose items are strings or lists of words.
            batch_size: number of windows per call of the network.
            progress: True shows a progress bar; or a function that wraps the batches.

        Returns:
            a list of `Span`s, or such a list for each of ``texts``. For a list of words, ``start``
            and ``end`` of a span count words.

        Raises:
            TypeError: an item is not a string, or a list of strings; the message has its index.
            ValueError: the model has another head.

        >>> model.tag("Ada Lovelace was born in London.")  # doctest: +SKIP
        [Span(label='PER', text='Ada Lovelace', start=0, end=12, score=0.99), ...]
        >>> model.tag([["Ada", "Lovelace", "was"]])  # doctest: +SKIP
        [[Span(label='PER', text='Ada Lovelace', start=0, end=2, score=0.99)]]
        """
        self._need_head("tags")
        tokenizer = self._need_tokenizer("tag")
        texts, single = as_texts("tag", texts, words=True)
        from ..data import spans
        from ..data.tokenizers.ragged import unpack

        plans, rows = [], []
        for chosen in chunks(texts):
            strings = [t if isinstance(t, str) else spans.join_words(t) for t in chosen]
            ids, starts, ends = tokenizer.offsets(strings)
            windows, tokens = spans.text_windows(tokenizer, ids, self.context, OVERLAP)
            plans.append((chosen, strings, starts, ends, windows.kept()))
            rows += [{"tokens": row} for row in unpack(tokens)]
        found = iter(self._run("tag", self.tag_tokens, rows, batch_size, progress))
        before, results = len(tokenizer.prefix), []
        for *plan, kept in plans:
            tagged = [next(found)[before + at] for at in unpack(kept)]
            results += self._join_tags(*plan, np.concatenate(tagged))
        return results[0] if single else results

    def _join_tags(self, texts, strings, starts, ends, tagged):
        """The `Span`s of each of ``texts``; ``tagged`` (N, 2) is that of all tokens."""
        from ..data import spans

        row = np.asarray(starts.value_rowids(), "int32")
        starts, ends = (np.asarray(x.flat_values, "int32") for x in (starts, ends))
        begins = spans.begins_word(self.tokenizer, spans.code_points(strings), row, starts, ends)
        word = np.cumsum(begins, dtype="int32")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                own = slice(*np.searchsorted(row, [i, i + 1]))
                word[own] = spans.word_of(text, starts[own])
        tags = self._tags()
        found = spans.find_spans(
            tags, tagged[:, 0].astype("int32"), tagged[:, 1], row, word, starts, ends
        )
        results = [[] for _ in texts]
        for i, label, start, end, first, last, score in zip(
            *(np.asarray(x).tolist() for x in found), strict=True
        ):
            if isinstance(text := texts[i], str):
                part, start = after_spaces(text, start, end)
            else:
                start, end = first, last + 1
                part = " ".join(text[start:end])
            results[i].append(Span(tags.labels[label], part, start, end, score))
        return results

    def _tags(self):
        from ..data.spans import Tags

        return Tags.read([self.label(i) for i in range(self.config.num_classes)])

    def tag_tokens(self, inputs: Any) -> Any:
        """Tokens (B, T) -> (B, T, 2): the most likely class, as float32, and its probability."""
        probabilities = ops.softmax(self(inputs))
        best = ops.cast(ops.argmax(probabilities, axis=-1), "float32")
        return ops.stack([best, ops.max(probabilities, axis=-1)], axis=-1)

    def answer(
        self,
        questions: str | Sequence[str],
        contexts: str | Sequence[str],
        top: int | None = None,
        no_answer: float | None = None,
        window_length: int | None = None,
        overlap: int = OVERLAP,
        max_answer_tokens: int = LONGEST,
        batch_size: int = 32,
        progress: bool | Callable = False,
    ) -> Answer | list:
        """Answers a question, or each of a list, by a part of its context.

        Long contexts are cut into windows that overlap; an answer lies within a window, and the
        best one over all windows is returned. The score of a span is the sum of the logits of its
        first and last token; that of no answer is the sum of those of the first token, [CLS], the
        smallest over all windows. The answer is "" if score(no answer) - score(best span) is above
        ``no_answer``. Probabilities are the softmax over all spans and no answer.

        Args:
            questions: a string or a list. A question is truncated to half of a window, with a
                warning.
            contexts: a string or a list. One string is the context, or the question, of all.
            top: number of best answers to return per question.
            no_answer: a threshold instead of the model's own; math.inf: always answer.
            window_length: tokens per window, the question included. Default: 384, at most the
                model's context.
            overlap: number of tokens that consecutive windows share, at most half of a window.
            max_answer_tokens: maximum number of tokens of an answer.
            batch_size: number of windows per call of the network.
            progress: True shows a progress bar; or a function that wraps the batches.

        Returns:
            an `Answer`, or a list of them; with ``top``, a list for each question, best first.

        Raises:
            TypeError: a question or context is not a string; the message has its index.
            ValueError: the model has another head, or the lists have different lengths.

        >>> model.answer("Where was Ada born?", "Ada was born in London.")  # doctest: +SKIP
        Answer(text='London', start=16, end=22, score=0.97, no_answer=0.01)
        """
        self._need_head("spans")
        tokenizer = self.need_pairs("answer")
        search, window = self._reading(no_answer, window_length, overlap, max_answer_tokens)
        count = check_count(top, "top")
        questions, one = as_texts("answer", questions, name="question")
        contexts, other = as_texts("answer", contexts, name="context")
        questions = questions * len(contexts) if one and not other else questions
        contexts = contexts * len(questions) if other and not one else contexts
        if len(questions) != len(contexts):
            raise ValueError(
                f"there must be a context for each question: {len(contexts)}, {len(questions)}"
            )
        from ..data import spans
        from ..data.tokenizers.ragged import unpack

        plans, rows = [], []
        for chosen in chunks(list(zip(questions, contexts, strict=True)), 64):
            reading = spans.read_contexts(tokenizer, *map(list, zip(*chosen, strict=True)), *window)
            plans.append((chosen, reading))
            pairs = zip(unpack(reading.tokens), unpack(reading.types), strict=True)
            rows += [{"tokens": tokens, "types": types} for tokens, types in pairs]
        if long := sum(int(np.sum(reading.truncated)) for _, reading in plans):
            warnings.warn(
                f"{long} of {len(questions)} questions were truncated to half of a window of "
                f"{window[0]} tokens",
                stacklevel=2,
            )
        found, results = iter(self._run("answer", self, rows, batch_size, progress)), []
        for chosen, reading in plans:
            counts, before = (np.asarray(x) for x in (reading.windows.count, reading.before))
            logits = np.zeros([len(counts), max(counts), 2], "float32")
            none = np.zeros(len(counts), "float32")
            for i, (n, start) in enumerate(zip(counts, before, strict=True)):
                window_logits = next(found)
                logits[i, :n], none[i] = window_logits[start : start + n], window_logits[0].sum()
            places = reading.places(logits, none, *search, count)
            for (_, context), *row in zip(chosen, *(np.asarray(x) for x in places), strict=True):
                results.append(answers(context, *row))
        if top is None:
            results = [best[0] for best in results]
        return results[0] if one and other else results

    def _reading(self, no_answer, window_length, overlap, max_answer_tokens):
        """Checks the settings of `answer`; returns arguments of `best_spans`, `read_contexts`."""
        no_answer = self.config.no_answer if no_answer is None else plain(no_answer)
        if type(no_answer) not in (int, float) or no_answer != no_answer:
            raise ValueError(f"no_answer must be a number: {no_answer!r}")
        length = min(WINDOW, self.context) if window_length is None else plain(window_length)
        if type(length) is not int or not 0 < length <= self.context:
            raise ValueError(f"window_length must be from 1 to {self.context}: {window_length!r}")
        overlap = plain(overlap)
        if type(overlap) is not int or overlap < 0:
            raise ValueError(f"overlap must be a non-negative integer: {overlap!r}")
        longest = check_count(max_answer_tokens, "max_answer_tokens")
        return (longest, float(no_answer)), (length, min(overlap, length))

    def fill_mask(
        self,
        texts: str | Sequence[str],
        top: int = 5,
        batch_size: int = 32,
        progress: bool | Callable = False,
    ) -> list:
        """Predicts the masked tokens of a text, or of each of a list.

        Args:
            texts: with the tokenizer's mask token, "[MASK]" or "<mask>", at least once in each.
            top: number of most likely tokens to return per mask.
            batch_size: number of texts per call of the network.
            progress: True shows a progress bar; or a function that wraps the batches.

        Returns:
            for a text with one mask, a list of ``top`` `Classification`s, whose labels are tokens;
            for a text with several, such a list for each. For a list of texts, a list of these.

        Raises:
            ValueError: the model has another head; a text has no mask, or is longer than the
                context. The message has its index.

        >>> model.fill_mask("I am [MASK] hungry.", top=2)  # doctest: +SKIP
        [Classification(label='so', probability=0.3), ...]
        """
        self._need_head("tokens")
        tokenizer = self._need_tokenizer("fill_mask")
        top = min(check_count(top, "top"), tokenizer.vocab_size)
        texts, single = as_texts("fill_mask", texts)
        self._check("fill_mask", texts)
        from ..data.tokenizers.ragged import unpack

        mask, rows = self._mask(), []
        for chosen in chunks(texts):
            for ids in unpack(tokenizer.encode(chosen)):
                i, positions = len(rows), np.flatnonzero(ids == mask)
                if not len(positions):
                    raise ValueError(
                        f"text {i} has no mask token {tokenizer.mask_token!r}: {texts[i]!r:.100}"
                    )
                if len(ids) > self.context:
                    raise ValueError(
                        f"text {i} has {len(ids)} tokens, more than the context of {self.context}"
                    )
                rows.append({"tokens": ids, "positions": positions})
        fill, results = lambda inputs: self.fill_masks(inputs, top), []
        filled_rows = self._run("fill_mask", fill, rows, batch_size, progress, top)
        for row, filled in zip(rows, filled_rows, strict=True):
            found = []
            for ids, probabilities in filled[: len(row["positions"])]:
                labels = tokenizer.pieces(ids.astype("int32"))
                pairs = zip(labels, probabilities.tolist(), strict=True)
                found.append([Classification(*pair) for pair in pairs])
            results.append(found[0] if len(found) == 1 else found)
        return results[0] if single else results

    def _check(self, verb, texts):
        """Raises an error if a text cannot be read; of a protein, all letters must be residues."""

    def _mask(self):
        mask = getattr(self.tokenizer, "mask_id", None)
        if mask is None:
            raise ValueError("fill_mask needs a tokenizer with a mask token")
        return mask

    def fill_masks(self, inputs: dict[str, Any], top: int) -> Any:
        """``tokens`` (B, T) and ``positions`` (B, M) -> (B, M, 2, top): tokens, probabilities."""
        probabilities = ops.softmax(self.drop_padding(self(inputs)))
        values, tokens = ops.top_k(probabilities, top)
        return ops.stack([ops.cast(tokens, "float32"), values], axis=-2)

    def embed(
        self,
        texts: Any,
        batch_size: int = 32,
        progress: bool | Callable = False,
    ) -> np.ndarray:
        """Embeds a text, or each of a list, as vectors: pooled features; every head can.

        Texts longer than the model's context are truncated, with a warning.

        Returns:
            float32 (N, D), a row for each text; (D,) for a string. With ``config.normalize`` the
            norm of each is 1.

        >>> model.embed(["A man is eating food."]).shape  # doctest: +SKIP
        (1, 384)
        """
        return self._vectors("embed", texts, batch_size, progress)

    def _vectors(self, verb, texts, batch_size=32, progress=False):
        """The pooled embeddings of texts, see `embed`."""
        texts, single = as_texts(verb, texts)
        rows = self._rows(verb, texts)
        found = self._run("embed", self.embeddings, rows, batch_size, progress)
        result = np.stack(found) if found else np.zeros([0, self.config.dim], "float32")
        return result[0] if single else result

    def embeddings(self, inputs: Any) -> Any:
        """Tokens (B, T), or the dictionary of `call` -> embeddings (B, D)."""
        given = inputs if isinstance(inputs, dict) else {"tokens": inputs}
        x = self.features(given["tokens"], given.get("types"))
        return self.pooled(x, given["tokens"])

    def similarity(self, a: Any, b: Any) -> np.ndarray:
        """The cosine similarity of texts or embeddings: float32 (N, M).

        Args:
            a, b: a string or an embedding (D,), whose axis the result does not have; a list of
                strings or an array of embeddings (N, D).

        >>> model.similarity("A dog.", ["A cat.", "It rains."])  # doctest: +SKIP
        array([0.6, 0.1], dtype=float32)
        """
        a, b = (self._unit("similarity", x) for x in (a, b))
        if a.shape[-1] != b.shape[-1]:
            raise ValueError(f"embeddings must have the same size: {a.shape[-1]}, {b.shape[-1]}")
        return np.asarray(a @ b.T if b.ndim == 2 else a @ b, "float32")

    def _unit(self, verb, texts):
        """Texts or embeddings as embeddings of norm 1."""
        x = texts
        if not (isinstance(x, np.ndarray) and x.dtype.kind in "fiu"):
            x = self._vectors(verb, texts)
        if x.ndim not in (1, 2):
            raise ValueError(f"embeddings must have the shape (N, D) or (D,): {x.shape}")
        x = np.asarray(x, "float32")
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    def search(self, queries: Any, embeddings: np.ndarray, top: int = 10) -> list:
        """Finds the embeddings that are most similar to a query, or to each of a list.

        Args:
            queries: a string, a list of strings, or embeddings (D,) or (N, D).
            embeddings: (M, D), such as `embed` returns; their norms do not matter.
            top: number of results.

        Returns:
            a list of `Match`es (index, score), best first, or such a list for each query. The
            score is the cosine similarity.

        >>> embeddings = model.embed(["A cat.", "It rains."])  # doctest: +SKIP
        >>> model.search("the weather", embeddings, top=1)  # doctest: +SKIP
        [Match(index=1, score=0.5)]
        """
        top = check_count(top, "top")
        embeddings, x = np.asarray(embeddings), self._unit("search", queries)
        if embeddings.dtype != "float64":  # norms of float16 overflow
            embeddings = embeddings.astype("float32", copy=False)
        if embeddings.ndim != 2 or embeddings.shape[1] != x.shape[-1]:
            raise ValueError(
                f"embeddings must have the shape (M, {x.shape[-1]}): {embeddings.shape}"
            )
        norms = np.maximum(np.linalg.norm(embeddings, axis=1), 1e-12)
        results = []
        for query in np.atleast_2d(x):
            results.append(matches(embeddings @ query / norms, top))
        return results[0] if x.ndim == 1 else results

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        top: int | None = None,
        batch_size: int = 32,
        progress: bool | Callable = False,
    ) -> list[Match]:
        """Orders ``texts`` by how well they match ``query``, with the head "score".

        The network reads query and text together, as a pair (Nogueira & Cho 2019, arXiv
        1901.04085).

        Args:
            query: a string.
            texts: a list of strings.
            top: number of best texts to return. Default: all.
            batch_size: number of pairs per call of the network.
            progress: True shows a progress bar; or a function that wraps the batches.

        Returns:
            `Match`es (index in ``texts``, score), best first; scores are the network's outputs.

        >>> model.rerank("the weather", ["A cat.", "It rains."])  # doctest: +SKIP
        [Match(index=1, score=4.2), Match(index=0, score=-7.1)]
        """
        self._need_head("score")
        if not isinstance(query, str):
            raise TypeError(f"rerank takes a string as query: {query!r:.100}")
        texts, single = as_texts("rerank", texts)
        if single:
            raise TypeError(f"rerank takes a list of texts: {texts[0]!r:.100}")
        rows = self._rows("rerank", [(clean(query), text) for text in texts])
        scores = np.array(self._run("rerank", self, rows, batch_size, progress), "float32")
        return matches(scores, len(texts) if top is None else check_count(top, "top"))

    def _need_head(self, head, verb=None):
        """Raises an error if the model has another head."""
        if self.config.head != head:
            raise ValueError(
                f"{verb or HEADS[head]} needs a model with the head {head!r}, and this one has "
                f"{self.config.head!r}: model.adapt({head!r}) returns one to be fine-tuned"
            )

    def need_pairs(self, verb: str) -> Any:
        """Returns the tokenizer, if model and tokenizer can read pairs of texts.

        Raises:
            ValueError: they cannot, or there is no tokenizer; the message begins with ``verb``.

        >>> tokenizer = model.need_pairs("rerank")  # doctest: +SKIP
        """
        tokenizer = self._need_tokenizer(verb)
        if not self._reads_pairs(tokenizer):
            raise ValueError(
                f"{verb} needs pairs of texts: the tokenizer separates them by "
                f"{tokenizer.separator}, with type {tokenizer.pair_type} for second texts, and the "
                f"model has {self._types()} types"
            )
        return tokenizer

    def _reads_pairs(self, tokenizer):
        types = self._types()  # without types, those of the tokenizer are ignored
        return tokenizer.separator is not None and (not types or tokenizer.pair_type < types)

    def _types(self):
        """The number of types of tokens."""
        return getattr(self.config, "type_vocab_size", 0)

    def _rows(self, verb, texts):
        """Tokenizes texts or pairs to rows for `_run`; truncates them to the context."""
        from ..data.tokenizers.ragged import unpack

        tokenizer, rows, long = self._need_tokenizer(verb), [], 0
        if texts and isinstance(texts[0], tuple):
            self.need_pairs(verb)

        def encode(texts, *limit):
            if isinstance(texts[0], tuple):
                ids, types = tokenizer.encode_pairs(*map(list, zip(*texts, strict=True)), *limit)
                pairs = zip(unpack(ids), unpack(types), strict=True)
                return [{"tokens": row, "types": kinds} for row, kinds in pairs]
            return [{"tokens": row} for row in unpack(tokenizer.encode(texts, *limit))]

        for chosen in chunks(texts):
            found = encode(chosen)
            cut = [i for i, row in enumerate(found) if len(row["tokens"]) > self.context]
            if cut:
                shorter = encode([chosen[i] for i in cut], self.context)
                for i, row in zip(cut, shorter, strict=True):
                    found[i] = row
            rows, long = rows + found, long + len(cut)
        if long:
            warnings.warn(
                f"{long} of {len(texts)} texts were truncated to {self.context} tokens",
                stacklevel=3,
            )
        return rows

    def _run(self, verb, function, rows, batch_size, progress, *key):
        """Applies ``function`` to ``rows`` in batches; compiles it once per ``verb`` and ``key``.

        A row has arrays by name, as `call` takes them. Returns a list of arrays, one per row, which
        may be longer than the row.
        """
        function = self._compiled((verb, self.xla, *key), function, verb, self.xla)
        size = min(check_count(batch_size, "batch_size"), bucket(len(rows), start=1))
        any_shape = keras.config.backend() == "tensorflow" and not self.xla

        def run(chosen):
            inputs = {}
            for name in chosen[0]:
                values = [row[name] for row in chosen]
                shape = len(chosen), (longest := max(map(len, values)))
                if not any_shape and name == "positions":
                    shape = size, bucket(longest, start=1)
                elif not any_shape:
                    shape = size, min(round_length(longest), max(self.context, longest))
                value = self.config.pad_id if name == "tokens" else 0
                inputs[name] = pad_rows(values, shape, value)
            return np.asarray(function(inputs))[: len(chosen)]

        return in_batches(rows, size, run, lambda row: len(row["tokens"]), progress)

    def compile(self, optimizer: Any = None, loss: Any = None, **kwargs: Any) -> None:
        """Keras's `compile`. Default: AdamW at 2e-5 (Devlin et al. 2019, appendix A.3).

        The default loss is cross-entropy of integer labels: (B,) of the head "classes"; (B, T) of
        "tags" and "tokens"; (B, 2), first and last token, of "spans". For "score" it is binary
        cross-entropy. Embeddings have no default loss.

        Raises:
            ValueError: the model has no head, and there is no ``loss``.
        """
        head = self.config.head
        if loss is None and head is None:
            raise ValueError("a model without a head has no default loss: pass one, or adapt it")
        if loss is None and head == "score":
            loss = BinaryCrossEntropy()
        if loss is None:
            loss = SpanCrossEntropy() if head == "spans" else SmoothedCrossEntropy(0.0)
        if optimizer is None:
            optimizer = keras.optimizers.AdamW(2e-5, weight_decay=0.01, global_clipnorm=1.0)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        super().compile(optimizer, loss, **kwargs)

    def export(
        self,
        filepath: str | PathLike[str],
        format: str | None = "tf_saved_model",
        top: int | None = None,
        no_answer: float | None = None,
        window_length: int | None = None,
        overlap: int = OVERLAP,
        max_answer_tokens: int = LONGEST,
        **settings: Any,
    ) -> Path:
        """Writes a SavedModel for TensorFlow Serving as the next version of ``filepath``.

        Signatures take strings (B,). ``serving_default`` is that of the model's head, which also
        has the name of the method:

        - "classes": ``classify`` takes ``text`` and returns the most likely ``labels`` (B, top)
          and their ``probabilities``; ``classify_pairs`` takes ``text`` and ``text_pair``, if the
          tokenizer has pairs;
        - "score": ``rerank`` takes ``text`` (the query) and ``text_pair`` and returns ``score``
          (B,);
        - "tags": ``tag`` takes ``text`` and returns ``labels``, ``texts``, ``starts``, ``ends``
          and ``scores`` (B, S); rows with fewer spans are padded, with the label "";
        - "spans": ``answer`` takes ``question`` and ``context`` and returns ``text``, ``start``,
          ``end``, ``score`` and ``no_answer`` (B,), as `Answer` has them;
        - "tokens": ``fill_mask`` takes ``text`` and returns ``tokens`` and ``probabilities``
          (B, M, top) of its masks, padded with "";
        - None: ``embed`` takes ``text`` and returns ``embedding`` (B, D).

        Places are code points. Long texts are cut into windows, or truncated, as in Python;
        `fill_mask`, which refuses them in Python, truncates them too.
        Invalid UTF-8 is read with U+FFFD in its place.

        Args:
            format: "onnx", "litert" or "openvino" writes a file of the network alone instead:
                ``tokens`` and, if the model has them, ``types`` (B, T) in, the result of `call`
                out; see `polyhead.serving.formats`.
            top: number of classes, or of tokens of a mask. Default: 5.
            no_answer, window_length, overlap, max_answer_tokens: as for `answer`.

        Returns:
            the version's folder; see `polyhead.serving.export`.

        >>> model.export("exported")  # doctest: +SKIP
        PosixPath('exported/1')
        """
        from ..serving.export import export

        c = self.config
        if format not in (None, "tf_saved_model"):
            limits = {"tokens": c.vocab_size, "types": self._types()}
            inputs = {
                name: keras.layers.InputSpec(shape=(None, None), dtype="int32", name=name)
                for name, limit in limits.items()
                if limit > 1
            }
            settings |= {} if top is None else {"top": top}
            return self._export_network(filepath, format, inputs, limits, settings)
        if settings:
            raise TypeError(f"not settings of an export for TensorFlow Serving: {sorted(settings)}")
        top = check_count(5 if top is None else top, "top")
        search, window = self._reading(no_answer, window_length, overlap, max_answer_tokens)
        need = self.need_pairs if c.head in ("score", "spans") else self._need_tokenizer
        tokenizer = need("export")
        if (whole := self._without_lora()) is not self:
            return whole.export(
                filepath, None, top, no_answer, window_length, overlap, max_answer_tokens
            )
        signatures = self._signatures(tokenizer, top, search, window)
        signatures = {"serving_default": next(iter(signatures.values())), **signatures}
        return export(filepath, self.SERVED, signatures, self.weights, tracked=[tokenizer])

    def _signatures(self, tokenizer, top, search, window):
        """The signatures of an export for TensorFlow Serving; see `serving.export.export`."""
        from ..data import spans

        c = self.config

        def encode(text):
            ids = tokenizer.encode(text, self.context)
            return {"tokens": spans.dense(ids, c.pad_id)}

        def encode_pairs(text, text_pair):
            ids, types = tokenizer.encode_pairs(text, text_pair, self.context)
            return {"tokens": spans.dense(ids, c.pad_id), "types": spans.dense(types, 0)}

        def most_likely(inputs):
            values, classes = ops.top_k(self.class_probabilities(inputs), min(top, c.num_classes))
            return {"labels": spans.lookup(labels, classes), "probabilities": values}

        def tag(text):
            return spans.tag_texts(
                tokenizer, text, self._tags(), self.tag_tokens, self.context, OVERLAP, c.pad_id
            )

        def answer(question, context):
            reading = spans.read_contexts(tokenizer, question, context, *window)
            logits, none = reading.logits(self, c.pad_id)
            places = reading.places(logits, none, *search, 1)
            start, end, score = (x[:, 0] for x in places[:3])
            texts, start = spans.answer_texts(context, start, end)
            return {
                "text": texts,
                "start": start,
                "end": end,
                "score": score,
                "no_answer": places[3],
            }

        def fill_mask(text):
            ids = tokenizer.encode(text, self.context)
            positions, tokens = spans.find(ids, self._mask()), spans.dense(ids, c.pad_id)
            filled = self.fill_masks(
                {"tokens": tokens, "positions": spans.dense(positions, 0)},
                min(top, tokenizer.vocab_size),
            )
            return spans.padded_masks(positions, filled, pieces)

        spec = tokenizer.spec
        one, texts = {"text": spec("text")}, {"text": EXAMPLES}
        two = {"text": spec("text"), "text_pair": spec("text_pair")}
        pairs = {"text": QUESTIONS, "text_pair": EXAMPLES}
        if c.head == "classes":
            labels = [self.label(i) for i in range(c.num_classes)]
            signatures = {"classify": (lambda text: most_likely(encode(text)), one, texts)}
            if self._reads_pairs(tokenizer):
                classify = lambda **given: most_likely(encode_pairs(**given))  # noqa: E731
                signatures["classify_pairs"] = classify, two, pairs
        elif c.head == "score":
            score = lambda **given: {"score": self(encode_pairs(**given))}  # noqa: E731
            signatures = {"rerank": (score, two, pairs)}
        elif c.head == "tags":
            signatures = {"tag": (tag, one, texts)}
        elif c.head == "spans":
            inputs = {"question": spec("question"), "context": spec("context")}
            signatures = {"answer": (answer, inputs, {"question": QUESTIONS, "context": EXAMPLES})}
        elif c.head == "tokens":
            self._mask()
            pieces = [tokenizer.pieces([i])[0] for i in range(tokenizer.vocab_size)]
            masked = [f"{text} {tokenizer.mask_token}" for text in EXAMPLES]
            signatures = {"fill_mask": (fill_mask, one, {"text": masked})}
        else:
            embed = lambda text: {"embedding": self.embeddings(encode(text))}  # noqa: E731
            signatures = {"embed": (embed, one, texts)}
        return signatures


def answers(context, start, end, score, none):
    """The `Answer`s of one question; ``score`` (K,) is negative where there are fewer than K."""
    results = []
    for first, last, value in zip(start.tolist(), end.tolist(), score.tolist(), strict=True):
        if value >= 0:
            text, first = after_spaces(context, first, last)
            results.append(Answer(text, first, last, value, float(none)))
    return results


def after_spaces(text, start, end):
    """``text[start:end]`` without spaces at its beginning, unless it has only spaces; its start.

    Tokens of ModernBERT begin with the space before a word.
    """
    part = text[start:end]
    part = part.lstrip(" ") or part
    return part, end - len(part)


def matches(scores, top):
    """The ``top`` largest of ``scores`` (N,), as `Match`es, best first."""
    top = min(top, len(scores))
    best = np.argpartition(-scores, top - 1)[:top] if top < len(scores) else np.arange(top)
    best = best[np.lexsort((best, -scores[best]))]
    return [Match(int(i), float(scores[i])) for i in best]


def round_length(length):
    """Rounds up to 8, 16, 24, 32, 48, 64, 96, ...: less padding than powers of two alone."""
    size = bucket(length)
    return size * 3 // 4 if 24 <= size * 3 // 4 >= length else size
