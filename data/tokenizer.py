"""What the tokenizers have in common: SentencePiece models in TensorFlow's graph, and files."""

import json

import sentencepiece
import tensorflow as tf


class Tokenizer(tf.Module):
    """SentencePiece models in the graph; a subclass says what their pieces are numbered.

    It has ``pad_id`` and `ragged`. An object that is exported must be tracked by what exports
    it: it is a `tf.Module` for that.

    Args:
        models: the bytes of SentencePiece models.
        out_type: what they give, tf.int32 or tf.string.
    """

    def __init__(self, models, out_type):
        super().__init__()
        self._models = list(models)
        self._out_type = out_type
        self._in_graph = self._load()

    def encode(self, texts, max_length=None):
        """Source ``texts`` (B,) -> tokens (B, S): the pieces, the end piece, and then padding.

        Of what is longer than ``max_length``, the first ``max_length - 1`` pieces are kept.
        """
        return self.ragged(texts, max_length).to_tensor(self.pad_id)

    def ended(self, rows, max_length):
        """Ragged ``rows`` of pieces, cut to ``max_length`` with the end piece that each gets."""
        if max_length is not None:
            rows = rows[:, : max_length - 1]
        return tf.concat([rows, tf.fill([rows.nrows(), 1], self.end_id)], axis=1)

    def kept(self, tokens, *special):
        """``tokens`` (B, T) -> ragged, without the ``special`` ones."""
        tokens = tf.cast(tokens, tf.int32)
        return tf.ragged.boolean_mask(
            tokens, tf.reduce_all(tokens[..., None] != tf.constant(special), axis=-1)
        )

    @staticmethod
    def spec(name):
        """What `encode` takes, as the input ``name`` of an exported function."""
        return tf.TensorSpec([None], tf.string, name=name)

    def _load(self):
        import tensorflow_text

        return [
            tensorflow_text.SentencepieceTokenizer(model=model, out_type=self._out_type)
            for model in self._models
        ]

    def _operations(self):
        with tf.init_scope():
            try:
                self._in_graph[0].tokenize("")
            except tf.errors.NotFoundError:
                # `tf.random.set_seed` drops all kernels, and with its own the loaded models.
                self._in_graph = self._load()
        return self._in_graph


def write(path, content):
    """Writes bytes. An `OSError`, as of a full disk, names the file, and leaves no part of it."""
    try:
        path.write_bytes(content)
    except OSError as error:
        if error.filename is None:  # it was opened
            error.filename = str(path)
            path.unlink()
        raise


def read(path):
    """The bytes of a file.

    Raises:
        ValueError: it is a pipe, a folder or a device, which might block for ever.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    return path.read_bytes()


def read_pieces(model):
    """The `SentencePieceProcessor` of a model's bytes.

    Raises:
        ValueError: they are not a SentencePiece model.
    """
    if not model:  # which SentencePiece takes for a model to be loaded later
        raise ValueError("not a SentencePiece model: it is empty")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ValueError(f"not a SentencePiece model: {error}") from None


def read_json(path):
    """The object in a JSON file.

    Raises:
        ValueError: naming the file: it is not JSON, not an object, or nested too deeply to read.
    """
    content = read(path)
    try:
        content = json.loads(content.decode())
    except RecursionError:
        raise ValueError(f"{path} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def untracked(module, **attributes):
    """Sets attributes of a `tf.Module` that are not part of an export.

    TensorFlow wraps every list and dictionary that it tracks, item by item, which takes minutes
    for a large vocabulary.
    """
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
