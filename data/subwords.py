"""Subword vocabularies (Sennrich et al. 2016), trained by SentencePiece, run in the graph."""

import io
import os
from pathlib import Path

import sentencepiece
import tensorflow as tf

FILE = "tokenizer.model"


class Subwords(tf.Module):
    """A SentencePiece model, whose text goes to tokens and back within TensorFlow's graph.

    Args:
        model: the bytes of a SentencePiece model with a pad, a start and an end piece.

    `encode` and `decode` take and give tensors, eagerly or inside a `tf.function`. An object
    that is exported must be tracked by what exports it: it is a `tf.Module` for that.

    Raises:
        ValueError: the bytes are no SentencePiece model, or it lacks one of those pieces.
    """

    source_vocab_size = None  # one vocabulary for both sides

    def __init__(self, model):
        super().__init__()
        try:
            pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model: {error}") from None
        ids = {"pad": pieces.pad_id(), "start": pieces.bos_id(), "end": pieces.eos_id()}
        if lacking := [name for name, i in ids.items() if i < 0]:
            raise ValueError(f"a vocabulary needs pieces for pad, start and end: no {lacking}")
        self.model = model
        self.vocab_size = pieces.get_piece_size()
        self.pad_id, self.start_id, self.end_id = ids.values()
        self._pieces = pieces
        self._in_graph = self._load()

    @classmethod
    def train(cls, texts, vocab_size=10000):
        """Learns a BPE vocabulary of ``vocab_size`` pieces from strings: pad 0, start 1, end 2.

        Raises:
            ValueError: no text, or too little for so many pieces.
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

    def encode(self, texts, max_length=None):
        """``texts`` (B,) -> tokens (B, S): the pieces, the end piece, and then padding.

        Of what is longer than ``max_length``, the first ``max_length - 1`` pieces are kept.
        """
        return self.ragged(texts, max_length).to_tensor(self.pad_id)

    def ragged(self, texts, max_length=None, target=False):
        """``texts`` (B,) -> ragged tokens (B, None), each row with its end piece.

        Sources and targets share the vocabulary: ``target`` makes no difference here.
        """
        rows = self._operations().tokenize(tf.convert_to_tensor(texts, tf.string))
        if max_length is not None:
            rows = rows[:, : max_length - 1]
        end = tf.fill([rows.nrows(), 1], self.end_id)
        return tf.concat([rows, end], axis=1)

    def decode(self, tokens):
        """``tokens`` (B, T) -> texts (B,), without pad, start and end pieces."""
        tokens = tf.cast(tokens, tf.int32)
        special = tf.constant([self.pad_id, self.start_id, self.end_id])
        kept = tf.reduce_all(tokens[..., None] != special, axis=-1)
        return self._operations().detokenize(tf.ragged.boolean_mask(tokens, kept))

    def _load(self):
        import tensorflow_text

        return tensorflow_text.SentencepieceTokenizer(model=self.model, out_type=tf.int32)

    def _operations(self):
        with tf.init_scope():
            try:
                self._in_graph.tokenize("")
            except tf.errors.NotFoundError:
                # `tf.random.set_seed` drops all kernels, and with its own the loaded model.
                self._in_graph = self._load()
        return self._in_graph

    @staticmethod
    def spec(name):
        """What `encode` takes, as the input ``name`` of an exported function."""
        return tf.TensorSpec([None], tf.string, name=name)

    def pieces(self, tokens, target=False):
        """The pieces of ``tokens`` (T,), for people to look at."""
        return [self._pieces.id_to_piece(int(token)) for token in tokens]

    def save(self, folder):
        (Path(folder) / FILE).write_bytes(self.model)

    @classmethod
    def load(cls, folder):
        path = Path(folder) / FILE
        try:
            return cls(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
