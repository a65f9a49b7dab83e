"""ESM-2 (Lin et al. 2022), a language model of proteins: embed, score, contacts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from ..layers import (
    FeedForward,
    MultiHeadAttention,
    Rotary,
    TokenEmbedding,
    TransformerBlock,
    padding_mask,
)
from .heads import HeadConfig, head_shapes
from .model import TINY, block_shapes, check_real, norm_shapes
from .text_encoder import TextEncoder
from .texts import as_texts, chunks

HIDDEN = 0.15 * 0.8  # the fraction of residues that the mask replaced in pretraining
EXAMPLES = ["MKTAYIAKQR", "MK", "GSHMASMTGGQQMGRGSEF" * 6, "ACDEFGHIKLMNPQRSTVWY"]


@dataclass(frozen=True)
class ESMConfig(HeadConfig):
    """Configuration of an `ESM`; the defaults are those of ESM-2 with 650M parameters.

    The fields of the head are those of `HeadConfig`.

    >>> polyhead.ESM.count_parameters(polyhead.ESMConfig())
    651043254
    """

    vocab_size: int = 33
    max_length: int = 1026  # of a sequence, with the tokens before and after it
    num_layers: int = 33
    dim: int = 1280
    intermediate_dim: int = 5120
    num_heads: int = 20
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation: str = "gelu"
    epsilon: float = 1e-5
    pad_id: int = 1
    end_id: int = 2
    mask_id: int = 32
    theta: float = 10_000.0  # of rotary positions
    half_rates: bool = False  # their rates are rounded to float16, as in the published ESMFold
    token_dropout: bool = True  # masked residues are zeros, and all others scaled to make up for it
    head: str | None = "tokens"

    def __post_init__(self):
        super().__post_init__()
        check_real(self, "theta", lambda theta: 1 < theta < 1e12, "above 1 and below 1e12")
        if self.head in ("spans", "score"):
            raise ValueError(f"head must be 'classes', 'tags', 'tokens' or None: {self.head!r}")
        if self.dim // self.num_heads % 2:
            raise ValueError(
                f"rotary positions need heads of an even size: {self.dim} / {self.num_heads}"
            )


def preset(num_layers, dim, num_heads=20):
    shape = dict(num_layers=num_layers, dim=dim, num_heads=num_heads, intermediate_dim=4 * dim)
    return ESMConfig(**shape)


PRESETS = {
    # Lin et al. 2022 (bioRxiv 2022.07.20.500902), table S1.
    "esm2-t6-8m": preset(6, 320),
    "esm2-t12-35m": preset(12, 480),
    "esm2-t30-150m": preset(30, 640),
    "esm2-t33-650m": preset(33, 1280),
    "esm2-t36-3b": preset(36, 2560, 40),
    "esm2-t48-15b": preset(48, 5120, 40),
}


@keras.saving.register_keras_serializable("polyhead")
class ContactRegression(keras.layers.Layer):
    """A logistic regression of attention weights; it is neither trained nor quantized.

    Its weights are zero until published ones are loaded, or others assigned.

    Args:
        num_features: the number of heads of all blocks.

    >>> from polyhead.zoo.esm import ContactRegression
    >>> layer = ContactRegression(40)
    >>> layer.build()
    >>> layer.count_params()
    41
    """

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self.num_features = num_features

    def build(self, shape=None):
        kernel, options = (self.num_features, 1), dict(initializer="zeros", autocast=False)
        self.kernel = self.add_weight(name="kernel", shape=kernel, **options)
        self.bias = self.add_weight(name="bias", shape=(1,), **options)


@keras.saving.register_keras_serializable("polyhead")
class ESM(TextEncoder):
    """Encoder of protein sequences with pre-norm and rotary positions (Lin et al. 2022, A.2.4).

    Tokens (B, T) -> what the head gives, in float32; see `TextEncoder`. Each residue is a token,
    between ``<cls>`` and ``<eos>``. The tokenizer is the same for all: `polyhead.data.Residues`.

    With the head "tokens", the model predicts masked residues: `score`, `perplexity` and
    `fill_mask` need it. With "tags", `tag` predicts a label of each residue, such as its secondary
    structure; with "classes", `classify` predicts one of the sequence. Each can `embed` and, with
    published weights, predict `contacts`.

    An export has the signatures of the head (see `TextEncoder.export`), with ``sequence`` as input,
    and these, where L is the longest sequence:

    - ``embed``: ``sequence`` -> ``embedding`` (B, L, D), ``pooled`` (B, D) and ``length`` (B,);
    - ``contacts``, if the model has their regression: ``sequence`` -> ``contacts`` (B, L, L) and
      ``length`` (B,);
    - ``score``, with the head "tokens": ``sequence`` and ``mutation``, one such as "A23V" ->
      ``score`` (B,), NaN if it has another form or the sequence another residue there.

    Args:
        config: an `ESMConfig`.
        tokenizer: `polyhead.data.Residues`; only needed for strings.
        initialize: False skips the initialization, when weights are about to be loaded.

    >>> config = polyhead.ESMConfig(num_layers=2, dim=16, intermediate_dim=24, num_heads=2)
    >>> polyhead.ESM(config)(np.ones([2, 5], "int32")).shape.as_list()
    [2, 5, 33]
    >>> model = polyhead.ESM.from_pretrained("facebook/esm2_t6_8M_UR50D")  # doctest: +SKIP
    >>> model.score("MKTAYIAKQR", ["K2R", "T3P:Y5F"])  # doctest: +SKIP
    array([-1.2, -7.3], dtype=float32)
    """

    Config = ESMConfig
    SERVED = "protein"
    TASKS = ("masked", "text_classification", "tagging")
    PRESETS = PRESETS
    VOCABULARY = ("vocab_size", "pad_id", "end_id", "mask_id")
    FAMILIES = {"esm": ".published.esm"}

    def __init__(
        self, config: ESMConfig, tokenizer: Any = None, initialize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(config, tokenizer, **kwargs)
        c, dtype = config, self.dtype_policy
        norm = keras.layers.LayerNormalization(epsilon=c.epsilon)
        self.tokens = TokenEmbedding(c.vocab_size, c.dim, scale=False, dtype=dtype, name="tokens")
        self.rotary = make_rotary(c, dtype=dtype, name="rotary")
        parts = dict(
            attention=MultiHeadAttention(c.num_heads, dropout=c.attention_dropout),
            feed_forward=FeedForward(c.intermediate_dim, c.activation),
            norm=norm,
            dropout=c.dropout,
        )
        self.blocks = [
            TransformerBlock(**parts, dtype=dtype, name=f"block_{i}") for i in range(c.num_layers)
        ]
        self.norm = keras.layers.LayerNormalization(epsilon=c.epsilon, dtype=dtype, name="norm")
        self.contact_map = ContactRegression(
            c.num_layers * c.num_heads, dtype="float32", name="contacts"
        )
        self.contact_map.build()
        first = {"tokens": c.activation, "classes": "tanh"}
        self.build_head(first.get(c.head), norm if c.head == "tokens" else None)
        self.build_layers()
        if initialize:
            self.initialize()

    @classmethod
    def preset(cls, name: str, tokenizer: Any = None, **overrides: Any) -> Self:
        """Builds a model of a published size with new weights, see `Pretrained.preset`.

        >>> polyhead.ESM.preset("esm2-t6-8m", num_layers=1).tokenizer.vocab_size
        33
        """
        tokenizer = cls.learn_tokenizer() if tokenizer is None else tokenizer
        return super().preset(name, tokenizer, **overrides)

    @classmethod
    def learn_tokenizer(cls, texts: Any = (), vocab_size: int = 33) -> Any:
        from ..data import Residues

        return Residues()

    @classmethod
    def load_tokenizer(cls, folder: Path, config: Any) -> Any:
        from ..data import Residues

        return Residues.load(folder)

    @classmethod
    def shapes(cls, config: ESMConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
        c = config
        yield "tokens/embeddings", (c.vocab_size, c.dim)
        yield from block_shapes("block", c.num_layers, c, c.intermediate_dim)
        yield from norm_shapes("norm", c.dim).items()
        yield "contacts/kernel", (c.num_layers * c.num_heads, 1)
        yield "contacts/bias", (1,)
        dense = ("kernel", "bias") if c.head in ("tokens", "classes") else ()
        yield from head_shapes(c, dense, ("gamma", "beta") if c.head == "tokens" else ()).items()

    def features(self, tokens: Any, types: Any = None) -> Any:
        return self.hidden_states(tokens)[-1]

    def hidden_states(self, tokens: Any) -> list:
        """Tokens (B, T) -> the embeddings and the output of each block, each (B, T, D).

        The last is normalized. ESMFold combines all of them.
        """
        x, masks = self._embeddings(tokens)
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1], **masks))
        return [*states[:-1], self.norm(states[-1])]

    def _embeddings(self, tokens):
        """Tokens (B, T) -> embeddings (B, T, D), and the mask and rotations of all blocks."""
        c, is_text = self.config, self.is_text(tokens)
        x = self.tokens(tokens)
        if c.token_dropout:
            hidden = ops.equal(tokens, c.mask_id)
            count, length = (ops.sum(ops.cast(m, "float32"), 1) for m in (hidden, is_text))
            scale = (1 - HIDDEN) / (1 - count / ops.maximum(length, 1))
            is_text = ops.logical_and(is_text, ops.logical_not(hidden))
            x = x * ops.cast(scale, x.dtype)[:, None, None]
        x = x * ops.cast(is_text, x.dtype)[..., None]
        rotary = self.rotary(ops.arange(ops.shape(tokens)[1]))
        return x, dict(mask=padding_mask(tokens, c.pad_id), rotary=rotary)

    def is_pooled(self, tokens: Any) -> Any:
        """``tokens`` (B, T) -> boolean (B, T): the residues, without ``<cls>`` and ``<eos>``."""
        first = ops.arange(ops.shape(tokens)[1]) == 0
        outside = ops.logical_or(first, ops.equal(tokens, self.config.end_id))
        return ops.logical_and(self.is_text(tokens), ops.logical_not(outside))

    def embed(
        self,
        texts: Any,
        pooled: bool = False,
        batch_size: int = 32,
        progress: bool | Callable = False,
    ) -> np.ndarray:
        """Embeds a protein sequence, or each of a list: a vector for each residue.

        Args:
            texts: sequences of letters; see `polyhead.data.Residues`.
            pooled: whether to return one vector per sequence, the mean over its residues.

        Returns:
            float32 (N, L, D) without the special tokens, where L is the longest sequence; zero
            after the end of shorter ones. With ``pooled``, (N, D). For a string, (L, D) or (D,).

        Raises:
            ValueError: a letter is not a residue, or a sequence is longer than the context.

        >>> model = polyhead.ESM.preset("esm2-t6-8m", num_layers=1)
        >>> model.embed(["MKV", "M"]).shape, model.embed("MKV", pooled=True).shape
        ((2, 3, 320), (320,))
        """
        if pooled:
            return self._vectors("embed", texts, batch_size, progress)
        texts, single = as_texts("embed", texts, "sequence")
        rows = self._rows("embed", texts)
        lengths = [len(row["tokens"]) - 2 for row in rows]
        found = self._run("embed", self.residues, rows, batch_size, progress, "residues")
        result = np.zeros([len(rows), max(lengths, default=0), self.config.dim], "float32")
        for i, (length, x) in enumerate(zip(lengths, found, strict=True)):
            result[i, :length] = x[1 : 1 + length]
        return result[0] if single else result

    def residues(self, inputs: Any) -> Any:
        """Tokens (B, T), or the dictionary of `call` -> features (B, T, D), in float32."""
        tokens = inputs["tokens"] if isinstance(inputs, dict) else inputs
        return ops.cast(self.features(tokens), "float32")

    def score(
        self,
        sequence: str,
        mutations: str | Sequence[str],
        batch_size: int = 8,
        progress: bool | Callable = False,
    ) -> Any:
        """Scores mutations of a protein by masked marginals (Meier et al. 2021, equation 1).

        The score is log p(new residue) - log p(old residue), where the model does not see the
        residues that change: below 0, the new residue is less likely than the old one.

        Args:
            sequence: the protein.
            mutations: "A23V" is A at residue 23, counted from 1, to V; "A23V:G30D" are several,
                whose scores are added; or a list of such strings.
            batch_size: number of masked sequences per call of the network.
            progress: True shows a progress bar; or a function that wraps the batches.

        Returns:
            float32 (N,); a number for a string.

        Raises:
            ValueError: a mutation has another form, or the sequence another residue there.

        >>> model = polyhead.ESM.preset("esm2-t6-8m", num_layers=1)
        >>> model.score("MKTAYIAKQR", ["K2R", "T3P:Y5F", "A4A"]).shape
        (3,)
        """
        from ..data.proteins import read_changes

        tokens = self._one_sequence("score", sequence)
        pieces = self.tokenizer.pieces(tokens)
        mutations, one = as_texts("score", mutations, "mutation")
        changes = [read_changes(mutation, pieces) for mutation in mutations]
        # Mutations of the same residues need one call.
        places = sorted({tuple(at for _, at, _ in change) for change in changes})
        rows = [mask_row(tokens, at, self.config.mask_id) for at in places]
        found = dict(zip(places, self._log_probabilities(rows, batch_size, progress), strict=True))
        letters = self.tokenizer.pieces(range(self.tokenizer.vocab_size))
        scores = []
        for change in changes:
            score, row = 0.0, found[tuple(at for _, at, _ in change)]
            for of, (old, _, new) in zip(row, change, strict=False):  # rows are padded
                score += of[letters.index(new)] - of[letters.index(old)]
            scores.append(score)
        return float(scores[0]) if one else np.array(scores, "float32")

    def score_all(
        self, sequence: str, batch_size: int = 8, progress: bool | Callable = False
    ) -> np.ndarray:
        """Scores all single mutations of a protein, as `score` does one: a mutational scan.

        A sequence of L residues needs L rows in the network.

        Args:
            sequence, batch_size, progress: see `score`.

        Returns:
            float32 (L, 20): at (i, j) the score of amino acid ``polyhead.data.residues.LETTERS[j]``
            in place of residue i, counted from 0; 0 for the residue itself, if it is one of the 20.

        Raises:
            ValueError: a letter is not a residue, or the sequence is longer than the context.

        >>> model = polyhead.ESM.preset("esm2-t6-8m", num_layers=1)
        >>> scores = model.score_all("MKTAYIAKQR")
        >>> scores.shape
        (10, 20)
        >>> j = polyhead.data.residues.LETTERS.index("R")
        >>> bool(abs(scores[1, j] - model.score("MKTAYIAKQR", "K2R")) < 1e-4)
        True
        """
        from ..data.residues import TOKEN

        tokens = self._one_sequence("score_all", sequence, mask=False)
        found = self._masked_in_turn(tokens, batch_size, progress)
        scores = [x[TOKEN[:20]] - x[old] for x, old in zip(found, tokens[1:-1], strict=True)]
        return np.array(scores, "float32").reshape(-1, 20)

    def perplexity(
        self,
        sequences: str | Sequence[str],
        batch_size: int = 32,
        progress: bool | Callable = False,
    ) -> Any:
        """The pseudo-perplexity of sequences: exp of the mean of -log p(residue), each masked.

        (Salazar et al. 2020, arXiv 1910.14659, section 2.) From 1, where the model is sure of each
        residue, to about 20. A sequence of L residues needs L rows in the network.

        Returns:
            float32 (N,); a number for a string. NaN for an empty sequence.

        >>> model = polyhead.ESM.preset("esm2-t6-8m", num_layers=1)
        >>> bool(model.perplexity("MKTAYIAKQR") > 1)
        True
        """
        self._need_head("tokens", "perplexity")
        sequences, single = as_texts("perplexity", sequences, "sequence")
        results = []
        for row in self._rows("perplexity", sequences, mask=False):
            found = self._masked_in_turn(row["tokens"], batch_size, progress)
            own = [x[token] for x, token in zip(found, row["tokens"][1:-1], strict=True)]
            results.append(np.exp(-np.mean(own)) if own else np.nan)
        return float(results[0]) if single else np.array(results, "float32")

    def _one_sequence(self, verb, sequence, mask=True):
        """The tokens of a sequence, for a method that takes one."""
        self._need_head("tokens", verb)
        texts, single = as_texts(verb, sequence, "sequence")
        if not single:
            raise TypeError(f"{verb} takes one sequence, a string, not a list of {len(texts)}")
        return self._rows(verb, texts, mask)[0]["tokens"]

    def _masked_in_turn(self, tokens, batch_size, progress):
        """Log-probabilities (V,) of each residue of a row of tokens, where it alone is masked."""
        places = range(1, len(tokens) - 1)
        rows = [mask_row(tokens, (at,), self.config.mask_id) for at in places]
        return [x[0] for x in self._log_probabilities(rows, batch_size, progress)]

    def _log_probabilities(self, rows, batch_size, progress):
        """Log-probabilities (M, V) of the M positions of each row."""
        return self._run("score", self.log_probabilities, rows, batch_size, progress)

    def log_probabilities(self, inputs: Any) -> Any:
        """The dictionary of `call` -> log-probabilities (B, M, V) of its ``positions`` (B, M)."""
        return ops.log_softmax(self(inputs))

    def contacts(
        self,
        sequences: str | Sequence[str],
        batch_size: int = 8,
        progress: bool | Callable = False,
    ) -> np.ndarray:
        """Predicts which residues are in contact: their CB atoms are within 8 angstrom.

        A logistic regression of the attention weights of all heads, made symmetric and corrected
        for the mean of rows and columns (Rao et al. 2020, bioRxiv 2020.12.15.422761, section 3.2).
        The regression, ``contact_map``, is that of published weights: training does not change it.

        Returns:
            probabilities, float32 (N, L, L), where L is the longest sequence; zero after the end of
            shorter ones. For a string, (L, L).

        Raises:
            ValueError: the weights of the regression are zero, as in a model trained from scratch.

        >>> model = polyhead.ESM.preset("esm2-t6-8m", num_layers=1)
        >>> _ = model.contact_map.kernel.assign(np.ones([20, 1]))  # or published weights
        >>> model.contacts("MKTAYIAKQR").shape
        (10, 10)
        """
        if not self._has_contacts():
            raise ValueError(
                "contacts needs a regression of attention weights, and this model's is zero: load "
                "published weights that have one (esm.contact_head.regression), or assign your own "
                "to contact_map.kernel and contact_map.bias"
            )
        sequences, single = as_texts("contacts", sequences, "sequence")
        rows = self._rows("contacts", sequences)
        lengths = [len(row["tokens"]) - 2 for row in rows]
        found = self._run("contacts", self.contact_probabilities, rows, batch_size, progress)
        longest = max(lengths, default=0)
        result = np.zeros([len(rows), longest, longest], "float32")
        for i, (length, x) in enumerate(zip(lengths, found, strict=True)):
            result[i, :length, :length] = x[:length, :length]
        return result[0] if single else result

    def _has_contacts(self):
        return bool(np.any(ops.convert_to_numpy(self.contact_map.kernel)))

    def contact_probabilities(self, inputs: Any) -> Any:
        """Tokens (B, T), or the dictionary of `call` -> probabilities (B, T - 2, T - 2)."""
        tokens = inputs["tokens"] if isinstance(inputs, dict) else inputs
        x, masks = self._embeddings(tokens)
        inside = ops.cast(self.is_pooled(tokens)[:, 1:-1], "float32")
        pairs = inside[:, :, None] * inside[:, None, :]
        logits = self.contact_map.bias
        kernels = ops.split(self.contact_map.kernel[:, 0], self.config.num_layers)
        for block, kernel in zip(self.blocks, kernels, strict=True):
            inner = block.attention_residual.before(x)
            weights = block.attention.attention_weights(inner, **masks)[:, :, 1:-1, 1:-1]
            weights = weights * pairs[:, None]
            weights = weights + ops.swapaxes(weights, 2, 3)
            rows = ops.sum(weights, axis=3)
            whole = ops.maximum(ops.sum(rows, axis=2), TINY)[..., None, None]
            weights = weights - rows[..., :, None] * rows[..., None, :] / whole
            logits = logits + ops.einsum("bhij,h->bij", weights, kernel)
            x = block(x, **masks)
        return ops.sigmoid(logits) * pairs

    def tag(self, texts: Any, batch_size: int = 32, progress: bool | Callable = False) -> list:
        """Labels the residues of a sequence, or of each of a list; see `TextEncoder.tag`.

        Neighbours with the same label are one `Span`: of a helix, for example. Its ``start`` and
        ``end`` count residues from 0.

        >>> model = polyhead.ESM.preset("esm2-t6-8m", num_layers=1)
        >>> model = model.adapt("tags", class_names=["H", "E", "O"])
        >>> spans = model.tag("MKTAYIAKQR")
        """
        self._need_head("tags")
        texts, single = as_texts("tag", texts, "sequence", words=True)
        self._check("tag", map("".join, texts), mask=False)
        residues = [list("".join("".join(text).split())) for text in texts]
        found = super().tag(residues, batch_size, progress)
        found = [[s._replace(text=s.text.replace(" ", "")) for s in spans] for spans in found]
        return found[0] if single else found

    def _rows(self, verb, texts, mask=True):
        """The tokens of sequences, as rows for `_run`; they are not truncated.

        Args:
            mask: whether ``<mask>`` may stand for a residue.
        """
        from ..data.tokenizers.ragged import unpack

        if texts and isinstance(texts[0], tuple):
            self.need_pairs(verb)  # there are none
        tokenizer = self._need_tokenizer(verb)
        self._check(verb, texts, mask)
        rows = [row for part in chunks(texts) for row in unpack(tokenizer.encode(part))]
        for i, row in enumerate(rows):
            if len(row) > self.context:
                raise ValueError(
                    f"{verb} takes sequences of at most {self.context - 2} residues, and sequence "
                    f"{i} has {len(row) - 2}: load the model with max_length={len(row)}, which "
                    "rotary positions allow"
                )
        return [{"tokens": row} for row in rows]

    def _check(self, verb, sequences, mask=True):
        """Checks the letters of sequences; the error has the index of the sequence."""
        from ..data.tokenizers.residues import check_letters

        for i, sequence in enumerate(sequences):
            try:
                check_letters(sequence, mask)
            except ValueError as error:
                raise ValueError(f"{verb}: sequence {i}: {error}") from None

    def _signatures(self, tokenizer, top, search, window):
        from ..data import spans
        from ..data.proteins import read_mutations

        def encode(sequence):
            ids = tokenizer.encode(sequence, self.context)
            return spans.dense(ids, self.config.pad_id)

        def inside(tokens):
            """1 for each of L places that is within its sequence, (B, L); and the lengths (B,)."""
            kept = ops.cast(self.is_pooled(tokens)[:, 1:-1], "float32")
            return kept, ops.cast(ops.sum(kept, axis=1), "int32")

        def embed(sequence):
            tokens = encode(sequence)
            x, (kept, length) = self.residues(tokens), inside(tokens)
            pooled = self.pooled(x, tokens)
            return {"embedding": x[:, 1:-1] * kept[..., None], "pooled": pooled, "length": length}

        def contacts(sequence):
            tokens = encode(sequence)
            return {"contacts": self.contact_probabilities(tokens), "length": inside(tokens)[1]}

        def score(sequence, mutation):
            tokens = encode(sequence)
            at, old, new, known = read_mutations(tokenizer, tokens, mutation)
            hidden = ops.arange(ops.shape(tokens)[1], dtype="int32") == at[:, None]
            masked = ops.where(hidden, self.config.mask_id, tokens)
            found = self.log_probabilities({"tokens": masked, "positions": at[:, None]})[:, 0]
            old, new = (ops.take_along_axis(found, x[:, None], axis=1)[:, 0] for x in (old, new))
            return {"score": ops.where(known, new - old, np.nan)}

        spec, masked = tokenizer.spec, self.config.head == "tokens"
        inputs, examples = {"sequence": spec("sequence")}, {"sequence": EXAMPLES}
        signatures = {}
        for name, (function, *_) in super()._signatures(tokenizer, top, search, window).items():
            given = [f"{x}<mask>" for x in EXAMPLES] if masked else EXAMPLES
            read = lambda sequence, function=function: function(sequence)  # noqa: E731
            signatures[name] = read, inputs, {"sequence": given}
        signatures["embed"] = embed, inputs, examples
        if self._has_contacts():
            signatures["contacts"] = contacts, inputs, examples
        if masked:
            two = {**inputs, "mutation": spec("mutation")}
            pairs = {**examples, "mutation": ["M1A", "K2R", "G1A", "D3N"]}
            signatures["score"] = score, two, pairs
        return signatures


def make_rotary(config, **kwargs):
    """The rotations of an `ESMConfig`."""
    rotary = Rotary(config.dim // config.num_heads, config.theta, **kwargs)
    if config.half_rates:
        rotary.rates = rotary.rates.astype("float16")
    return rotary


def mask_row(tokens, places, mask_id):
    """A row for `_run`: ``tokens`` (T,) with the mask at ``places``, which are its positions."""
    places = np.array(places, "int32")
    tokens = np.array(tokens)
    tokens[places] = mask_id
    return {"tokens": tokens, "positions": places}
