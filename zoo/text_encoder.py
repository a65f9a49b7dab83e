"""The task methods of text encoders: classify, tag, answer, fill_mask, embed, rerank, export."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import keras
from keras import ops

from ..training.states import by_path
from .heads import HEADS, Head, change_head, head_size, pool
from .model import Pretrained


class TextEncoder(Pretrained):
    """Base class of text encoders; a subclass is a network and calls `build_head`.

    The configuration has ``vocab_size``, ``max_length``, ``dim``, ``dropout``, ``pad_id`` and the
    head as data: ``head``, ``num_classes``, ``class_names``, ``pooling``, ``normalize`` and
    ``no_answer``; `check_head` checks these. The network has an embedding ``tokens``
    (a `TokenEmbedding`) and the method

    - ``features(tokens, types=None)``: tokens and types (B, T) -> (B, T, D). Padding is where
      tokens equal ``config.pad_id``.

    Call with tokens (B, T), or a dictionary of ``tokens`` and ``types`` (B, T). The result depends
    on the head, in float32: "classes" (B, C); "score" (B,); "tags" (B, T, C); "spans" (B, T, 2),
    logits of the first and the last token of an answer; "tokens" (B, T, V); None: embeddings
    (B, D). With the head "tokens", ``positions`` (B, M) in the dictionary give logits (B, M, V) of
    these positions only.
    """

    VOCABULARY = ("vocab_size", "pad_id")
    HEAD = ("head", "num_classes", "class_names")

    @classmethod
    def change_head(cls, config: Any, **changes: Any) -> tuple[Any, str]:
        return change_head(config, **changes)

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
            c.dropout,
            use_bias,
            c.vocab_size if c.head == "tokens" else 0,
            dtype=self.dtype_policy,
            name="head",
        )

    def call(self, inputs: Any) -> Any:
        given = inputs if isinstance(inputs, dict) else {"tokens": inputs}
        tokens, head = given["tokens"], self.config.head
        x = self.features(tokens, given.get("types"))
        if head is None:
            return self.pooled(x, tokens)
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

    def pooled(self, x: Any, tokens: Any) -> Any:
        """Features ``x`` (B, T, D) -> embeddings (B, D), of norm 1 if ``config.normalize``."""
        x = pool(x, self.is_text(tokens), self.config.pooling)
        if self.config.normalize:
            x = x / ops.maximum(ops.norm(x, axis=-1, keepdims=True), 1e-12)
        return x

    def adapt(
        self,
        head: str | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        **overrides: Any,
    ) -> Self:
        """Returns a model with these weights and another head, or other classes, for fine-tuning.

        The weights that the new head shares with the old one are kept: for other classes, those
        before the last map (BERT's pooler).

        Args:
            head: "classes", "score", "tags", "spans" or "tokens". Default: the model's own.
            num_classes: another number, or other ``class_names``, gives a new last map.
            overrides: changes to the configuration: ``dropout=0.2``. ``head=None`` cannot be told
                from the default: `embed` works with every head.

        Raises:
            ValueError: the model is quantized.
        """
        if self._quantization():
            raise ValueError("a quantized model cannot be adapted: quantize the adapted model")
        config, renewed = change_head(self.config, head, num_classes, class_names)
        config = dataclasses.replace(config, **overrides)
        model = type(self)(config, self.tokenizer, initialize=False, dtype=self.dtype_policy)
        weights = by_path(self._without_lora().weights)
        for path, v in by_path(model.weights).items():
            if not re.match(renewed, path):
                v.assign(weights[path])
        return model

    def _need_head(self, head):
        """Raises an error if the model has another head."""
        if self.config.head != head:
            raise ValueError(
                f"{HEADS[head]} needs a model with the head {head!r}, and this one has "
                f"{self.config.head!r}: model.adapt({head!r}) returns one to be fine-tuned"
            )
