"""Subword vocabularies (Sennrich et al. 2016), trained by SentencePiece, run in the graph."""

import io
import os
import re
from pathlib import Path

import sentencepiece
import tensorflow as tf

from .merges import Merges
from .tokenizer import Tokenizer, read, read_pieces, write

FILE = "tokenizer.model"
LONGEST = 4192  # bytes of a text; SentencePiece drops longer ones
# At most a quarter as many characters, up to white space where there is any.
PART = re.compile(rf"(?s).{{1,{LONGEST // 4}}}(?=\s|\Z)|.{{1,{LONGEST // 4}}}")


class Subwords(Tokenizer):
    """A SentencePiece model, whose text goes to tokens and back within TensorFlow's graph.

    Args:
        model: the bytes of a SentencePiece model with a pad, a start and an end piece.

    `encode` and `decode` take and give tensors, eagerly or inside a `tf.function`.

    Raises:
        ValueError: the bytes are no SentencePiece model, or it lacks one of those pieces.
    """

    source_vocab_size = None  # one vocabulary for both sides

    def __init__(self, model):
        pieces = read_pieces(model)
        ids = {"pad": pieces.pad_id(), "start": pieces.bos_id(), "end": pieces.eos_id()}
        if lacking := [name for name, i in ids.items() if i < 0]:
            raise ValueError(f"a vocabulary needs pieces for pad, start and end: no {lacking}")
        super().__init__([model], tf.int32)
        self.model = model
        self.vocab_size = pieces.get_piece_size()
        self.pad_id, self.start_id, self.end_id = ids.values()
        self._pieces = pieces
        self._merges = None  # made when they are first needed

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

    def ragged(self, texts, max_length=None, target=False):
        """``texts`` (B,) -> ragged tokens (B, None), each row with its end piece.

        Sources and targets share the vocabulary: ``target`` makes no difference here.
        """
        rows = self._operations()[0].tokenize(tf.convert_to_tensor(texts, tf.string))
        return self.ended(rows, max_length)

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
        """``tokens`` (B, T) -> texts (B,), without pad, start and end pieces."""
        rows = self.kept(tokens, self.pad_id, self.start_id, self.end_id)
        return self._operations()[0].detokenize(rows)

    def pieces(self, tokens, target=False):
        """The pieces of ``tokens`` (T,), for people to look at."""
        return [self._pieces.id_to_piece(int(token)) for token in tokens]

    def save(self, folder):
        write(Path(folder) / FILE, self.model)

    @classmethod
    def load(cls, folder):
        path = Path(folder) / FILE
        try:
            return cls(read(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def parts(text):
    """``text``, or its parts where it is longer than SentencePiece takes."""
    # It drops whole texts with these characters, too.
    text = text.replace("\0", " ").replace("\N{LOWER FIVE EIGHTHS BLOCK}", " ")
    return [text] if len(text.encode()) <= LONGEST else PART.findall(text)
