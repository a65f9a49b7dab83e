"""Subword vocabularies (Sennrich et al. 2016), trained by SentencePiece, run in the graph."""

import io
import os
import threading
from pathlib import Path

import sentencepiece
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2

from .tokenizer import Tokenizer, read_pieces, write

FILE = "tokenizer.model"
SAMPLING = threading.Lock()


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

    @classmethod
    def train(cls, texts, vocab_size=10000, exact=True):
        """Learns a BPE vocabulary from strings: pad 0, start 1, end 2.

        Args:
            vocab_size: the number of tokens.
            exact: with False ``vocab_size`` is the most; less text gives a smaller vocabulary.

        Raises:
            ValueError: no text, or too little text for an ``exact`` vocabulary of this size.
        """
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise ValueError("a vocabulary is learned from text, and there is none")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
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
        """Lists of tokens as `ragged` gives them, but each merge is left out with a probability.

        BPE-dropout (Provilkov et al. 2020, arXiv 1910.13267): a text is cut into other pieces
        each time, the same for the same ``seed``. ``dropout`` of 0.1 makes a third more of them.

        Raises:
            ValueError: the vocabulary is not of BPE, for which the rate would mean another thing.
        """
        model = sentencepiece_model_pb2.ModelProto.FromString(self.model)
        if model.trainer_spec.model_type != sentencepiece_model_pb2.TrainerSpec.BPE:
            raise ValueError("BPE-dropout needs a BPE vocabulary")
        with SAMPLING:  # the seed is the process's
            sentencepiece.set_random_generator_seed(seed)
            # One thread: each has a generator of its own.
            return self._pieces.encode(
                texts,
                enable_sampling=True,
                nbest_size=-1,
                alpha=dropout,
                add_eos=True,
                num_threads=1,
            )

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
            return cls(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
