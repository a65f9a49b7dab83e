"""The task methods of causal language models: generate, stream, score and export."""

import codecs
import dataclasses
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from keras import ops

from ..layers import KeyValueCache
from ..layers.arguments import plain
from ..training import SmoothedCrossEntropy
from .decoding import Sampler, Sampling, ScatterCache, Search, State, advance, begin, is_possible
from .model import (
    Generation,
    Pretrained,
    bucket,
    check_count,
    empty_caches,
    in_batches,
    pad_rows,
)
from .texts import as_texts, clean

# Warm-up requests: an export must answer them before it is renamed into place.
EXAMPLES = [
    "The old lighthouse keeper",
    "",
    "Once upon a time there was a small boat that wanted to see the other side of the sea, and so",
    "It rains.",
]


class Score(NamedTuple):
    """The log-likelihood of a text, in nats, and its number of tokens.

    >>> score = polyhead.Score(log_likelihood=-12.0, tokens=4)
    >>> round(float(np.exp(-score.log_likelihood / score.tokens)), 2)  # perplexity
    20.09
    """

    log_likelihood: float
    tokens: int


class CausalLM(Pretrained):
    """Base class of decoders that generate text: `generate`, `stream`, `score`, `export`.

    A subclass is a network. Its configuration has ``vocab_size``, ``max_length`` (the context),
    ``end_id`` (the token that ends a document and precedes the first token), ``search`` and
    ``sampling``. The network has a list ``blocks`` of `TransformerBlock`s and two methods:

    - ``features(tokens, start=0, mask=None, caches=None)``: ``tokens`` (B, T), the first at
      position ``start``, a number or (B, 1) -> (B, T, D), and the extended caches;
    - ``logits(x)``: (B, T, D) -> float32 logits (B, T, V).

    >>> tokenizer = polyhead.data.Characters.train(["a dog runs. "], 20)
    >>> model = polyhead.GPT.preset("char-small", tokenizer, num_layers=1)
    >>> isinstance(model, polyhead.CausalLM)
    True
    >>> model.generate("a dog", max_new_tokens=20, seed=1)  # doctest: +SKIP
    ' runs. a dog runs. a'
    >>> for text in model.stream("a dog", max_new_tokens=20):  # doctest: +SKIP
    ...     print(text, end="")
    >>> model.score("a dog runs.")  # doctest: +SKIP
    Score(log_likelihood=-25.8, tokens=11)
    >>> model.export("exported")  # doctest: +SKIP
    PosixPath('exported/1')
    """

    TASKS: ClassVar[tuple] = ("generation",)

    def call(self, tokens: Any) -> Any:
        x, _ = self.features(tokens)
        return self.logits(x)

    def find(
        self,
        prompt: Any,
        count: Any,
        limit: Any,
        length: int,
        search: Search,
        sampler: Sampler | None = None,
        cache: type[KeyValueCache] = KeyValueCache,
        state: State | None = None,
        until: Any = None,
    ) -> State:
        """Continues ``prompt`` (B, P) and returns the `State` of the search.

        Prompts are padded on the left, so that all rows generate at the same index; positions are
        counted from the first token of each prompt.

        Args:
            prompt: tokens (B, P), padded on the left.
            count: (B,) the number of tokens of each prompt, without padding.
            limit: (B,) the maximum number of new tokens of each row.
            length: the maximum of ``limit``, or more.
            search: the settings of the search.
            sampler: chooses the tokens. Default: the most likely ones.
            cache: the class of the key-value caches.
            state: resumes from this state of the same prompts.
            until: the number of new tokens to stop at.
        """
        c, beams = self.config, search.num_beams
        batch, width = ops.shape(prompt)
        padding = ops.repeat(width - count, beams, axis=0)[:, None]
        room = width - 1 + length
        mask = (ops.arange(room) >= padding)[:, None, None, :]
        if state is None:
            caches = empty_caches(self.blocks, batch, room, cache)
            # The first step computes the prompt's last token.
            first = mask[::beams]
            _, caches = self.features(prompt[:, :-1], count[:, None] - width, first, caches)
            if beams > 1:
                rows = ops.repeat(ops.arange(batch), beams)
                caches = [cache.take(rows) for cache in caches]
            state = begin(prompt[:, -1], caches, limit, length, c.end_id, beams)

        def step(tokens, caches):
            x, caches = self.features(tokens, caches[0].index - padding, mask, caches)
            return self.drop_padding(self.logits(x)), caches

        known = ops.where(ops.arange(width) >= (width - count)[:, None], prompt, -1)
        return advance(step, state, limit, c.end_id, search, sampler, until, known)

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int | None = None,
        num_return_sequences: int | None = None,
        seed: int | Iterable[int] | None = None,
        stop: str | Sequence[str] | None = None,
        truncate: bool = False,
        batch_size: int = 8,
        progress: bool | Callable = False,
        **settings: Any,
    ) -> Generation | list:
        """Continues a string, or each of a list of strings.

        Prompts are sorted by length, batched and padded to a few lengths; the search is compiled
        once per length. The tokens of a row do not depend on the other rows. An empty prompt starts
        a new document.

        Args:
            max_new_tokens: maximum number of new tokens. Default: the model's own setting. It is
                limited by the context.
            num_return_sequences: number of continuations per prompt; with beam search, the best
                ones.
            seed: the random seed, for reproducible samples: an integer (continuation i uses
                ``seed + i``), or one integer per continuation.
            stop: a string or several; the text ends before the first match. The score, which also
                ranks beams, is that of all generated tokens.
                Default: the configuration's ``stop_strings``; () for none.
            truncate: keep only the end of a prompt that does not fit in the context
                together with ``max_new_tokens``. Otherwise a prompt as long as the context is an
                error.
            progress: True shows a progress bar; or a function that wraps the batches.
            settings: of `Sampling` and `Search`, instead of the model's own:
                ``temperature=0.8, top_p=0.95``, or ``num_beams=4, length_penalty=1.0``.

        Returns:
            a `Generation`, or a list of them in the order of ``prompts``; with
            ``num_return_sequences``, a list for each prompt.

        Raises:
            ValueError: a prompt is too long, or a setting is out of range.

        >>> model = polyhead.load("gpt2")  # doctest: +SKIP
        >>> model.generate("Once upon a time", temperature=0.8, seed=1)  # doctest: +SKIP
        """
        tokenizer = self._need_tokenizer("generate")
        prompts, single = as_texts("generate", prompts, "prompt")
        stop, batch_size = self._stop(stop), check_count(batch_size, "batch_size")
        search, sampling = self._settings(max_new_tokens, settings)
        count = check_count(num_return_sequences)
        # Each sample is a row of its own; a beam search returns several sequences for one row.
        kept, samples = (1, count) if search.num_beams == 1 else (count, 1)
        if kept > search.num_beams:
            raise ValueError(
                f"num_return_sequences must be at most num_beams: {kept}, {search.num_beams}"
            )
        seeds = self._seeds(seed, len(prompts) * samples)
        rows = self._prompts(prompts, search.max_new_tokens, truncate)
        rows = [row for row in rows for _ in range(samples)]
        size = min(batch_size, len(rows))

        def run(rows):
            tokens, seeds = zip(*rows, strict=True)
            batch = self._batch(tokens, search, size)
            sampler = sampling.sampler([*seeds, *[0] * (len(batch[0]) - len(rows))])
            tokens, scores, _ = self._run_search(batch, search, sampler).found
            tokens, scores = (np.asarray(x)[: len(rows), :kept] for x in (tokens, scores))
            for hypotheses, row_scores in zip(tokens.tolist(), scores.tolist(), strict=True):
                yield [
                    Generation(cut(tokenizer.text(ids).decode("utf-8", "replace"), stop), s)
                    for k, (ids, s) in enumerate(zip(hypotheses, row_scores, strict=True))
                    if k == 0 or is_possible(s)  # a search may find fewer
                ]

        rows = list(zip(rows, seeds, strict=True))
        results = in_batches(rows, batch_size, run, lambda row: len(row[0]), progress)
        if search.num_beams == 1:
            starts = range(0, len(results), samples)
            results = [sum(results[i : i + samples], []) for i in starts]
        if num_return_sequences is None:
            results = [several[0] for several in results]
        return results[0] if single else results

    def stream(
        self,
        prompt: str,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        truncate: bool = False,
        **settings: Any,
    ) -> Iterator[str]:
        """Continues a string and yields the text while it is generated.

        The arguments are those of `generate`; the joined strings equal its result. A string ends
        at a whole character.

        >>> for text in model.stream("Once upon a time"):  # doctest: +SKIP
        ...     print(text, end="", flush=True)
        """
        tokenizer = self._need_tokenizer("stream")
        if not isinstance(prompt, str):
            raise TypeError(f"stream takes a string: {type(prompt).__name__}")
        stop = self._stop(stop)
        search, sampling = self._settings(max_new_tokens, settings)
        if search.num_beams > 1:
            raise ValueError(f"stream does not support beam search: num_beams {search.num_beams}")
        [seed] = self._seeds(seed, 1)
        prompts = self._prompts([clean(prompt)], search.max_new_tokens, truncate)
        batch = self._batch(prompts, search, 1)
        sampler = sampling.sampler([seed] * len(batch[0]))
        return self._stream_text(tokenizer, batch, search, sampler, stop)

    def _stream_text(self, tokenizer, batch, search, sampler, stop):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        state, read, text, given = None, 0, "", 0
        while state is None or not np.all(state.done):
            state = self._run_search(batch, search, sampler, state, read + 1)
            read += 1
            done = bool(np.all(state.done))
            row = np.asarray(state.ended if done else state.tokens)[0, 0, read - 1 : read]
            text += decoder.decode(tokenizer.text(row.tolist()), final=done)
            whole = cut(text, stop)
            # Hold back text that may be the beginning of a stop string.
            held = 0 if done else max((count_overlap(whole, s) for s in stop), default=0)
            if len(whole) - held > given:
                yield whole[given : len(whole) - held]
                given = len(whole) - held
            if len(whole) < len(text):
                return

    def _settings(self, max_new_tokens, settings):
        """The `Search` and `Sampling` that ``settings`` give; a prompt has at least one token."""
        parts = []
        for own in (self.config.search, self.config.sampling):
            names = [field.name for field in dataclasses.fields(own)]
            parts.append({name: settings.pop(name) for name in names if name in settings})
        if settings:
            raise TypeError(f"not a setting of Search or Sampling: {sorted(settings)}")
        search = dataclasses.replace(self.config.search, **parts[0])
        if max_new_tokens is not None:
            search = dataclasses.replace(search, max_new_tokens=max_new_tokens)
        if search.max_new_tokens is None:
            search = dataclasses.replace(search, max_new_tokens=100)
        search = search.within(self.config.vocab_size, max(self.config.max_length - 1, 1))
        sampling = dataclasses.replace(self.config.sampling, **parts[1])
        if search.num_beams > 1:
            if parts[1]:
                raise ValueError(
                    f"beam search does not sample: num_beams {search.num_beams}, {parts[1]}"
                )
            sampling = Sampling(temperature=0)
        return search, sampling

    def _stop(self, stop):
        return check_stop(self.config.stop_strings if stop is None else stop)

    def _seeds(self, seed, count):
        seed = plain(secrets.randbelow(2**31) if seed is None else seed)
        if type(seed) is int:
            return range(seed, seed + count)
        seeds = plain(list(seed)) if isinstance(seed, Iterable) else [seed]
        if not all(type(s) is int for s in seeds):
            raise ValueError(f"a seed must be an integer: {seed!r:.100}")
        if len(seeds) != count:
            raise ValueError(f"there must be a seed for each continuation: {len(seeds)}, {count}")
        return seeds

    def _prompts(self, prompts, max_new_tokens, truncate):
        """Tokenizes ``prompts`` to lists that leave room for new tokens."""
        context = self.config.max_length
        tokenize = self.tokenizer.prompt_rows
        rows = tokenize(prompts, 2**31 - 1).to_list() if prompts else []
        longest = max(context - max_new_tokens, 1) if truncate else context - 1
        long = [i for i, row in enumerate(rows) if len(row) > longest]
        if long and not truncate:
            raise ValueError(
                f"a prompt must have fewer tokens than the context, {context}: prompt {long[0]} "
                f"has {len(rows[long[0]])}; shorten it, or pass truncate=True"
            )
        if long:
            warnings.warn(
                f"{len(long)} of {len(rows)} prompts were truncated to their last {longest} tokens",
                stacklevel=3,
            )
            rows = tokenize(prompts, longest).to_list()
        return rows

    def _batch(self, rows, search, size):
        """The arguments prompt, count and limit of `find`, padded to one of a few shapes."""
        # XLA multiplies two rows by a matrix faster than one.
        size = max(bucket(max(size, len(rows)), start=1), 2 if search.num_beams == 1 else 1)
        width = bucket(max(map(len, rows)))
        prompt = np.full((size, width), self.config.end_id, "int32")
        count, limit = np.ones(size, "int32"), np.zeros(size, "int32")
        for i, row in enumerate(rows):
            prompt[i, width - len(row) :] = row
            count[i] = len(row)
            limit[i] = min(search.max_new_tokens, self.config.max_length - len(row))
        return prompt, count, limit

    def _run_search(self, batch, search, sampler, state=None, until=None):
        """Runs `find`, compiled once per shape and per settings that all rows share."""
        length = bucket(search.max_new_tokens)
        search = dataclasses.replace(search, max_new_tokens=None)
        key = (search, length, state is None, until is None)
        # `_compiled` compares the weights: once per stream, not once per token.
        found = self._searches.get(key) if state is not None else None
        found = found or self._compiled(
            key,
            lambda prompt, count, limit, sampler, state, until: self.find(
                prompt, count, limit, length, search, sampler, state=state, until=until
            ),
            "generate",
        )
        if sampler is not None and sampler.repetition_penalty is not None:
            sampler = sampler._replace(seen=fill_padding(*batch[:2]))
        until = None if until is None else np.int32(until)
        return found(*batch, sampler, state, until)

    def score(
        self,
        texts: str | Sequence[str],
        truncate: bool = False,
        batch_size: int = 8,
        progress: bool | Callable = False,
    ) -> Score | list[Score]:
        """Returns the log-likelihood of a string, or of each of a list of strings, as a `Score`.

        All tokens count; the first one is predicted from the end token.

        Args:
            truncate: score only the first tokens of a text that is longer than the context, with a
                warning.

        Raises:
            ValueError: a text has more tokens than the context, without ``truncate``.

        >>> score = model.score("It rains.")  # doctest: +SKIP
        >>> score.log_likelihood / score.tokens  # doctest: +SKIP
        """
        self._need_tokenizer("score")
        (texts, single), context = as_texts("score", texts), self.config.max_length
        rows = self.tokenizer.encode(texts).to_list()
        batch_size = min(check_count(batch_size, "batch_size"), bucket(len(rows)))
        long = [i for i, row in enumerate(rows) if len(row) > context]
        if long and not truncate:
            raise ValueError(
                f"a text must not have more tokens than the context, {context}: text {long[0]} has "
                f"{len(rows[long[0]])}; shorten it, or pass truncate=True"
            )
        if long:
            warnings.warn(
                f"{len(long)} of {len(rows)} texts were truncated to their first {context} tokens",
                stacklevel=2,
            )
        log_likelihood = self._compiled("score", self.log_likelihood, "score")

        def run(rows):
            width = min(bucket(max(map(len, rows))), context)
            labels = pad_rows(rows, (batch_size, width), self.config.end_id)
            count = np.zeros(batch_size, "int32")
            count[: len(rows)] = [len(row) for row in rows]
            total = np.asarray(log_likelihood(labels, count))
            return [Score(float(total[i]), len(row)) for i, row in enumerate(rows)]

        rows = [row[:context] for row in rows]
        scores = in_batches(rows, batch_size, run, progress=progress)
        return scores[0] if single else scores

    def log_likelihood(self, labels: Any, count: Any) -> Any:
        """The log-probability (B,) of the first ``count`` (B,) tokens of ``labels`` (B, T)."""
        start = ops.full_like(labels[:, :1], self.config.end_id)
        x, _ = self.features(ops.concatenate([start, labels[:, :-1]], axis=1))

        def score_row(row):  # one text at a time: the logits of a batch may take gigabytes
            x, labels, count = row
            logits = self.drop_padding(self.logits(x[None]))[0]
            chosen = ops.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
            gain = chosen - ops.logsumexp(logits, axis=-1)
            return ops.sum(ops.where(ops.arange(ops.shape(labels)[0]) < count, gain, 0.0))

        return ops.map(score_row, (x, labels, count))

    def export(
        self,
        filepath: str | PathLike[str],
        format: str | None = "tf_saved_model",
        max_new_tokens: int | None = None,
        **settings: Any,
    ) -> Path:
        """Writes a SavedModel for TensorFlow Serving as the next version of ``filepath``.

        All signatures take ``text`` (B,):

        - ``serving_default`` returns the continuations, ``text`` (B,), with the model's own
          settings or ``settings``. Sampling is deterministic: equal texts get equal continuations;
        - ``generate`` also takes a tensor (B,) for each setting, so that the server can batch
          requests with different ones: ``max_new_tokens`` (at most the export's), ``temperature``,
          ``top_k`` (0: all), ``top_p``, ``min_p`` and ``seed``. It returns ``text``. A
          ``repetition_penalty`` is the export's;
        - ``score`` returns ``log_likelihood`` and ``tokens`` (B,). Texts longer than the context
          are truncated to their first tokens.

        The first two truncate texts to the last tokens that leave room for ``max_new_tokens`` in
        the context. In the graph, only tokens end a text (the end token and ``stop_tokens``); stop
        strings work in Python only, and an export of a model that has any warns.

        Args:
            format: "onnx", "litert" or "openvino" writes a file of the network alone instead:
                ``tokens`` (B, T) in, logits (B, T, V) out; see `polyhead.serving.formats`.
            max_new_tokens: maximum number of new tokens. Default: the model's own setting, at most
                half of the context.
            settings: of `Search` and `Sampling`.

        Returns:
            the version's folder; see `polyhead.serving.export`.

        >>> model.export("exported", max_new_tokens=50)  # doctest: +SKIP
        PosixPath('exported/1')
        """
        from ..serving.export import export

        if format not in (None, "tf_saved_model"):
            tokens = keras.layers.InputSpec(shape=(None, None), dtype="int32", name="tokens")
            settings |= {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
            return self._export_network(filepath, format, tokens, self.config.vocab_size, settings)
        tokenizer = self._need_tokenizer("export")
        search, sampling = self._settings(max_new_tokens, dict(settings))
        if (whole := self._without_lora()) is not self:
            return whole.export(filepath, max_new_tokens=max_new_tokens, **settings)
        if stop := list(self.config.stop_strings):
            warnings.warn(f"an export does not end texts at stop strings: {stop}", stacklevel=2)
        length, context = search.max_new_tokens, self.config.max_length
        if max_new_tokens is None:
            length = min(length, max(context // 2, 1))
        elif max_new_tokens >= context:
            raise ValueError(
                "max_new_tokens must leave room for a text in the context: "
                f"{max_new_tokens}, {context}"
            )

        def follow(text, search, sampler, limit=None):
            prompt, count = tokenizer.prompts(text, context - length)
            most = ops.full_like(count, length)
            limit = most if limit is None else ops.clip(limit, 0, length)
            if sampler is not None and sampler.repetition_penalty is not None:
                sampler = sampler._replace(seen=fill_padding(prompt, count))
            state = self.find(prompt, count, limit, length, search, sampler, cache=ScatterCache)
            return {"text": tokenizer.decode(state.ended[:, 0])}

        def default(text):
            one = sampling.sampler([0])
            if one is None:
                return follow(text, search, None)
            batch = ops.shape(text)[:1]
            rows = [None if x is None else ops.broadcast_to(x, batch) for x in one]
            return follow(text, search, Sampler(*rows))

        def generate(text, max_new_tokens, temperature, top_k, top_p, min_p, seed):
            # Python refuses other values; here a request must not fail the others of its batch.
            top_p, min_p = ops.maximum(top_p, 1e-6), ops.minimum(min_p, 1.0)
            penalty = sampling.repetition_penalty
            penalty = None if penalty == 1 else ops.full_like(temperature, penalty)
            seed = ops.bitwise_and(seed, np.int32(2**31 - 1))  # modulo 2^31, as in Python
            sampler = Sampler(seed, temperature, top_k, top_p, min_p, penalty)
            plain = dataclasses.replace(search, num_beams=1)
            return follow(text, plain, sampler, max_new_tokens)

        def score(text):
            labels = tokenizer.encode(text)[:, :context]
            count = ops.cast(labels.row_lengths(), "int32")
            # Pad to at least one token, so that the shapes are not empty.
            labels = ops.pad(labels.to_tensor(self.config.end_id), [(0, 0), (0, 1)])[:, :context]
            return {"log_likelihood": self.log_likelihood(labels, count), "tokens": count}

        spec = tokenizer.spec
        numbers = {"max_new_tokens": "int32", "temperature": "float32", "top_k": "int32"}
        numbers |= {"top_p": "float32", "min_p": "float32", "seed": "int32"}
        inputs = {"text": spec("text")}
        inputs |= {name: spec(name, dtype) for name, dtype in numbers.items()}
        texts = {"text": examples(tokenizer)}
        chosen = {
            "max_new_tokens": [8, length, 1, 0],
            "temperature": [0.0, 0.7, 1.0, 1.0],
            "top_k": [0, 40, 0, 1],
            "top_p": [1.0, 0.9, 0.5, 1.0],
            "min_p": [0.0, 0.05, 0.0, 0.0],
            "seed": [0, 1, 2, 3],
        }
        signatures = {
            "serving_default": (default, {"text": spec("text")}, texts),
            "generate": (generate, inputs, {**texts, **chosen}),
            "score": (score, {"text": spec("text")}, texts),
        }
        return export(filepath, "generation", signatures, self.weights, tracked=[tokenizer])

    def compile(self, optimizer: Any = None, loss: Any = None, **kwargs: Any) -> None:
        """Keras's `compile`. Default: AdamW at 3e-4 with betas 0.9, 0.95 (GPT-3, appendix B)."""
        if optimizer is None:
            optimizer = keras.optimizers.AdamW(
                3e-4, weight_decay=0.1, beta_1=0.9, beta_2=0.95, epsilon=1e-8, global_clipnorm=1.0
            )
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        super().compile(optimizer, SmoothedCrossEntropy(0.0) if loss is None else loss, **kwargs)


def examples(tokenizer):
    """`EXAMPLES`, or parts of the vocabulary if it lacks their characters."""
    try:
        tokenizer.encode(EXAMPLES)
        return EXAMPLES
    except ValueError:
        known = tokenizer.text(range(tokenizer.vocab_size)).decode("utf-8", "ignore")
        return [known[:4], "", known[:9], known[-3:]]


def fill_padding(prompt, count):
    """Replaces the padding of ``prompt`` (B, P) by the prompt's last token."""
    width = ops.shape(prompt)[1]
    padding = ops.arange(width) < (width - ops.convert_to_tensor(count))[:, None]
    return ops.where(padding, prompt[:, -1:], prompt)


def check_stop(stop):
    """Returns the stop strings, one or several, as a list.

    Raises:
        ValueError: a stop string is empty, or not a string.
    """
    stop = [stop] if isinstance(stop, str) else list(stop)
    if bad := [s for s in stop if not isinstance(s, str) or not s]:
        raise ValueError(f"a stop string must have at least one character: {bad[0]!r}")
    return stop


def cut(text, stop):
    """Cuts ``text`` at the first of the strings ``stop``."""
    found = [text.find(s) for s in stop if s in text]
    return text[: min(found)] if found else text


def count_overlap(text, stop):
    """The length of the longest end of ``text`` that is a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
