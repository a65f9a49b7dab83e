"""SentencePiece vocabularies (Kudo & Richardson 2018), trained or published, run in the graph."""

import io
import json
import os
import re
from pathlib import Path

import sentencepiece
import tensorflow as tf

from ..files import read, read_json, write
from .hugging_face import read_added, read_around
from .merges import Merges
from .pieces import KINDS, SPACE, PieceTokenizer, protos, read_pieces, rebuild
from .tokenizer import AddedTokens, hide_zeros, show_zeros, untracked, valid

FILE, T5_FILE, JSON = "tokenizer.model", "spiece.model", "tokenizer.json"
LONGEST = 4192  # bytes of a text; SentencePiece drops longer ones
# At most a quarter as many characters, up to white space where there is any.
PART = re.compile(rf"(?s).{{1,{LONGEST // 4}}}(?=\s|\Z)|.{{1,{LONGEST // 4}}}")
IDS = ("pad", "start", "end")
SENTINELS = 100  # <extra_id_0>, <extra_id_1> ... of T5: the last pieces, in reverse


class Subwords(PieceTokenizer):
    """A SentencePiece model: text to tokens and back within TensorFlow's graph.

    Its pieces say whose it is. One with pad, start and end pieces, as `train` makes it, ends each
    text. T5's (Unigram, no start piece) too, and finds the sentinels ``<extra_id_0>`` ... in a
    text. Llama's and Gemma's (BPE that falls back to bytes) start each text. A ``tokenizer.json``
    says it itself.

    Args:
        model: the bytes of a SentencePiece model.

    Raises:
        ValueError: the bytes are not a SentencePiece model, or it is of another kind.
    """

    def __init__(self, model):
        pieces = read_pieces(model)
        pad, start, end = pieces.pad_id(), pieces.bos_id(), pieces.eos_id()
        size = pieces.get_piece_size()
        has_bytes = any(pieces.is_byte(i) for i in range(size))
        found = {}
        if has_bytes and end >= 0 and start >= 0 and (pad < 0 or start > end):  # Llama, Gemma
            around = (start,), ()
            pad = end if pad < 0 else pad
        elif not has_bytes and (pad, start, end) == (0, -1, 1):  # T5
            around, start = ((), (end,)), pad
            model, found = with_sentinels(model)
        elif lacking := [n for n, i in zip(IDS, (pad, start, end), strict=True) if i < 0]:
            raise ValueError(f"a vocabulary needs pieces for pad, start and end: no {lacking}")
        else:
            around = (), (end,)
        ids = dict(zip(IDS, (pad, start, end), strict=True))
        self._set(model, ids, around, found, "model", around == ((), (end,)) and not found)
        self._files = {FILE: model}

    def _set(self, model, ids, around, found, space, is_ours, flags=None):
        """Sets all attributes.

        Args:
            found: ``{text: id}`` of tokens that are found in a text before it is cut.
            space: where a space stands before a text, as `rebuild` has it.
            is_ours: unknown pieces are decoded, as those of `train`.
            flags: arguments of `AddedTokens`.
        """
        super().__init__([model], tf.int32)
        self.model = model
        pieces = read_pieces(model)
        self.vocab_size = pieces.get_piece_size()
        self.pad_id, self.start_id, self.end_id = (ids[name] for name in IDS)
        self.prefix, self.suffix = around
        self._pieces = pieces
        self._merges = None  # made when they are first needed
        self._space = space
        self._added = AddedTokens(found, **(flags or {})) if found else None
        hidden = {*ids.values(), *([] if is_ours else [pieces.unk_id()])}
        untracked(self, _hidden=sorted(hidden))

    @classmethod
    def train(cls, texts, vocab_size=10000, exact=True):
        """Learns a BPE vocabulary from strings: pad 0, start 1, end 2.

        Args:
            vocab_size: the number of tokens.
            exact: with False ``vocab_size`` is the most; less text gives a smaller vocabulary.

        A long text is cut into parts, at white space where possible.

        Raises:
            ValueError: no text, or too little text for an ``exact`` vocabulary of this size.
        """
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise ValueError("a vocabulary is learned from text, and there is none")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(part for text in texts for part in parts(text)),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                hard_vocab_limit=exact,
                character_coverage=1.0,
                pad_id=0,
                bos_id=1,
                eos_id=2,
                unk_id=3,
                num_threads=os.cpu_count(),
                minloglevel=2,
            )
        except RuntimeError as error:
            # SentencePiece names the limit at the end of its message.
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{len(texts)} texts give no vocabulary of {vocab_size} pieces: {reason}"
            ) from None
        return cls(model.getvalue())

    def _encode(self, texts, target=False):
        if self._added is None and self._space in ("model", "never"):
            return self._operations()[0].tokenize(texts)
        parts = tf.RaggedTensor.from_uniform_row_length(texts, 1)
        ids = tf.fill(tf.shape(texts), -1)
        if self._added is not None:
            parts, ids, _ = self._added.split(hide_zeros(valid(texts)))
            parts = parts.with_flat_values(show_zeros(parts.flat_values))
        flat = tf.where(ids >= 0, "", parts.flat_values)
        if self._space in ("always", "first"):
            spaced = tf.strings.regex_replace(flat, f"^([^ {SPACE}])", r" \1")
            if self._space == "first":
                starts = tf.range(tf.size(flat, tf.int64))
                starts = starts == tf.gather(parts.row_starts(), parts.value_rowids())
                spaced = tf.where(starts, spaced, flat)
            flat = spaced
        rows = self._operations()[0].tokenize(flat)
        added = tf.ragged.boolean_mask(ids[:, None], ids[:, None] >= 0)
        rows = tf.concat([added, rows], axis=1)
        return parts.with_flat_values(rows).merge_dims(1, 2)

    def sampled(self, texts, dropout, seed):
        """Lists of tokens like those of `ragged`, with each merge skipped at the rate ``dropout``.

        BPE-dropout (Provilkov et al. 2020, arXiv 1910.13267): every call segments a text
        differently, but equally for an equal ``seed``, in every process. A rate of 0.1 makes about
        a third more tokens.

        Raises:
            ValueError: the vocabulary is not a BPE vocabulary.
        """
        if self._merges is None:
            self._merges = Merges(self._pieces)
        return [[*row, self.end_id] for row in self._merges.sample(texts, dropout, seed)]

    def decode(self, tokens):
        """``tokens`` (B, T) -> texts (B,), without special tokens."""
        texts = self._operations()[0].detokenize(self.kept(tokens, *self._hidden))
        if self._space in ("always", "first"):
            texts = tf.strings.regex_replace(texts, "^ ", "", replace_global=False)
        return texts

    def text(self, tokens):
        """The bytes of ``tokens``, a list, which need not be whole characters."""
        return b"".join(self._bytes_of(t) for t in tokens if 0 <= t < self.vocab_size)

    def _bytes_of(self, token):
        piece = self._pieces.id_to_piece(token)
        if self._pieces.is_byte(token):
            return bytes([int(piece[1:-1], 16)])
        if token in self._hidden or self._pieces.is_control(token):
            return b""
        return piece.replace(SPACE, " ").encode()

    def pieces(self, tokens, target=False):
        """The pieces of ``tokens`` (T,), for people to look at."""
        return [self._pieces.id_to_piece(int(token)) for token in tokens]

    def save(self, folder):
        for name, content in self._files.items():
            write(Path(folder) / name, content)

    @classmethod
    def load(cls, folder, end=None):
        """Reads ``tokenizer.json`` or, where there is none, ``tokenizer.model``.

        Args:
            end: the id of the end token, for a ``tokenizer.json`` that ends no text itself.
        """
        names = [n for n in (JSON, FILE, T5_FILE) if (Path(folder) / n).is_file()]
        path = Path(folder) / (names[0] if names else FILE)
        try:
            if path.name == JSON:
                return cls.read(read_json(path), end)
            return cls(read(path))
        except ValueError as error:
            message = str(error)
            raise ValueError(message if str(path) in message else f"{path}: {error}") from None

    @classmethod
    def read(cls, content, end=None):
        """From the content of a ``tokenizer.json``; see `rebuild`."""
        model, space = rebuild(content)
        special, added, flags = read_added(content)
        around = read_around(content)
        names = {i: text for text, i in special.items()}
        if end is None:
            known = [special[text] for text in ("</s>", "<eos>") if text in special]
            end = next(iter([*around[1][-1:], *known]), None)
        if end not in names:
            raise ValueError(f"the end token {end} is not among the special ones {special!r:.400}")
        pad = special.get("<pad>", end)
        ids = dict(zip(IDS, (pad, around[0][0] if around[0] else pad, end), strict=True))
        # SentencePiece itself finds other added tokens, but puts no space after them.
        strips = {flag: flags[flag] for flag in ("lstrip", "rstrip")}
        alone = {t for texts in strips.values() for t in texts}
        found = special | {t: i for t, i in added.items() if space != "never" or t in alone}
        self = cls.__new__(cls)
        self._set(model, ids, around, found, space, False, strips)
        text = json.dumps(content, ensure_ascii=False) + "\n"
        self._files = {JSON: text.encode()}
        return self


def with_sentinels(model):
    """T5's model with its sentinels as last pieces, and their ``{text: id}``."""
    proto = protos.ModelProto.FromString(model)
    names = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    present = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    if names[0] not in present:
        for name in names:
            present[name] = len(proto.pieces)
            proto.pieces.add(piece=name, score=0.0, type=KINDS.CONTROL)
    return proto.SerializeToString(), {name: present[name] for name in names}


def parts(text):
    """``text``, or its parts where it is longer than SentencePiece takes."""
    # It drops whole texts with these characters, too.
    text = text.replace("\0", " ").replace("\N{LOWER FIVE EIGHTHS BLOCK}", " ")
    return [text] if len(text.encode()) <= LONGEST else PART.findall(text)
