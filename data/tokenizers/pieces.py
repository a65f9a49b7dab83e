"""SentencePiece models in TensorFlow's graph, published or rebuilt from a ``tokenizer.json``."""

import base64
import math
from dataclasses import dataclass, field

import sentencepiece
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2 as protos

from .hugging_face import Template, list_steps, read_added, read_template
from .splits import text_operations
from .tokenizer import Tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark of the start of a word
KINDS = protos.ModelProto.SentencePiece
MOST = 2**19  # pieces; published vocabularies have up to 262,144
# They stand for spans of text. In published vocabularies of T5 they are the last, in reverse.
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(100))


@dataclass(frozen=True)
class Rules:
    """The processing of texts before a SentencePiece model, and its special pieces.

    Args:
        template: the special tokens around texts and pairs.
        added: ``{text: id}`` of added tokens, which are found before a text is segmented.
        strips: arguments of `AddedTokens`.
        space: where a space is added: "model", by the model itself; "prepend", before each part of
            a text; "always", before each part without one; "first", before a text without one; or
            "never".
        blanks: whether all white space becomes spaces.
        native: whether SentencePiece decodes, including unknown pieces; otherwise tokens are
            decoded as in Hugging Face.
    """

    pad_id: int
    start_id: int
    end_id: int
    template: Template
    added: dict = field(default_factory=dict)
    strips: dict = field(default_factory=dict)
    space: str = "model"
    blanks: bool = False
    native: bool = False


class PieceTokenizer(Tokenizer):
    """SentencePiece models in the graph.

    Args:
        models: the bytes of SentencePiece models.
        out_type: the type of their output, tf.int32 or tf.string.
    """

    # Never traced: few operations, and a graph would keep models that `_operations` replaces.
    eager_calls = math.inf

    def __init__(self, models, out_type):
        super().__init__()
        self._models = list(models)
        self._out_type = out_type
        self._in_graph = self._load()

    def remove_ids(self, tokens, *special):
        """Removes the ``special`` ids from ``tokens`` (B, T); returns a ragged tensor."""
        tokens = tf.cast(tokens, tf.int32)
        return tf.ragged.boolean_mask(
            tokens, tf.reduce_all(tokens[..., None] != tf.constant(special), axis=-1)
        )

    def _load(self):
        tokenizer = text_operations().SentencepieceTokenizer
        return [tokenizer(model=model, out_type=self._out_type) for model in self._models]

    def _operations(self):
        with tf.init_scope():
            try:
                self._in_graph[0].tokenize("")
            except tf.errors.NotFoundError:
                # `tf.random.set_seed` drops all kernels, and with them the loaded models.
                self._in_graph = self._load()
        return self._in_graph


def read_pieces(model):
    """Creates a `SentencePieceProcessor` from a model's bytes.

    Raises:
        ValueError: they are not a SentencePiece model.
    """
    if not model:  # SentencePiece would expect to load a model later
        raise ValueError("not a SentencePiece model: it is empty")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ValueError(f"not a SentencePiece model: {error}") from None


def read_rules(model):
    """Determines the `Rules` of a model, given as bytes, from its pieces; returns both.

    - Pad, start and end pieces, as from `Subwords.train`: texts end with the end token.
    - T5 (no byte pieces and no start piece): texts end with the end token; sentinels are added.
    - Llama and Gemma (byte pieces, and no pad piece or the end before the start): texts begin with
      the start token.

    Raises:
        ValueError: it is not a SentencePiece model, or of an unknown kind.
    """
    pieces = read_pieces(model)
    pad, start, end = pieces.pad_id(), pieces.bos_id(), pieces.eos_id()
    has_bytes = any(pieces.is_byte(i) for i in range(pieces.get_piece_size()))
    if has_bytes and min(start, end) >= 0 and (pad < 0 or end < start):
        return model, Rules(end if pad < 0 else pad, start, end, Template((start,), (), None, 0))
    if not has_bytes and (pad, start, end) == (0, -1, 1):
        model, sentinels = add_sentinels(model)
        template = Template((), (end,), (end,), 0)
        return model, Rules(pad, pad, end, template, added=sentinels, blanks=True)
    ids = {"pad": pad, "start": start, "end": end}
    if lacking := [name for name, i in ids.items() if i < 0]:
        raise ValueError(f"a vocabulary needs pieces for pad, start and end; it lacks {lacking}")
    return model, Rules(pad, start, end, Template((), (end,), None, 0), native=True)


def add_sentinels(model):
    """Adds sentinels that T5's model lacks as last pieces; returns it and their ``{text: id}``."""
    proto = protos.ModelProto.FromString(model)
    names = SENTINELS[::-1]
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    if names[0] not in ids:
        for name in names:
            ids[name] = len(proto.pieces)
            proto.pieces.add(piece=name, score=0.0, type=KINDS.CONTROL)
    return proto.SerializeToString(), {name: ids[name] for name in names}


def rebuild(content, end=None):
    """Rebuilds a SentencePiece model from a ``tokenizer.json``; returns its bytes and its `Rules`.

    The score of a BPE piece is the rank of the first merge that makes it. Special tokens become
    control pieces, which SentencePiece does not find in a text; other added tokens become
    user-defined symbols.

    Args:
        content: the content of the file.
        end: the id of the end token, if the file does not give it.

    Raises:
        ValueError: SentencePiece does not support a setting; the message names it.
    """
    model, (special, added, flags) = content["model"], read_added(content)
    unigram = model.get("type") == "Unigram"
    if unigram:
        scored = [(piece, score) for piece, score in model["vocab"]]
        unknown = model.get("unk_id")
    else:
        ranks = {}
        for rank, pair in enumerate(model["merges"]):
            ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), -rank)
        ids = {**model["vocab"]}
        scored = [("", 0.0)] * (max(ids.values(), default=-1) + 1)
        for piece, i in ids.items():
            scored[i] = piece, ranks.get(piece, -1e9)
        unknown = ids.get(model.get("unk_token"))
    if unknown is None or not 0 <= unknown < len(scored):
        raise ValueError("a SentencePiece model needs an unknown token")
    whole = {**special, **added}
    size = max(len(scored), *(i + 1 for i in whole.values())) if whole else len(scored)
    if size > MOST:
        raise ValueError(f"a vocabulary must have at most {MOST} pieces: {size}")
    scored += [("", 0.0)] * (size - len(scored))
    texts = {i: text for text, i in whole.items()}
    proto = protos.ModelProto()
    for i, (piece, score) in enumerate(scored):
        piece, kind = texts.get(i, piece), KINDS.NORMAL
        if i == unknown:
            kind = KINDS.UNKNOWN
        elif piece in special:
            kind = KINDS.CONTROL
        elif piece in added:
            kind = KINDS.USER_DEFINED
        elif model.get("byte_fallback") and is_byte(piece):
            kind = KINDS.BYTE
        elif not piece:
            piece, kind = f"<empty {i}>", KINDS.UNUSED
        proto.pieces.add(piece=piece, score=score if kind == KINDS.NORMAL else 0.0, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = protos.TrainerSpec.UNIGRAM if unigram else protos.TrainerSpec.BPE
    trainer.byte_fallback = bool(model.get("byte_fallback"))
    trainer.vocab_size, trainer.unk_id = len(scored), unknown
    trainer.unk_piece = proto.pieces[unknown].piece
    trainer.bos_id = trainer.eos_id = trainer.pad_id = -1
    normalizer.name, normalizer.escape_whitespaces = "identity", True
    normalizer.remove_extra_whitespaces = normalizer.add_dummy_prefix = False
    space, blanks = "never", False
    for step in list_steps(content, "normalizer"):
        kind, how = step.get("type"), (step.get("pattern") or {}, step.get("content"))
        if kind == "Precompiled":
            normalizer.precompiled_charsmap = base64.b64decode(step["precompiled_charsmap"])
        elif kind == "Prepend" and step.get("prepend") == SPACE:
            space = "prepend"
        elif kind == "Replace" and how[0].get("Regex") == " {2,}":
            normalizer.remove_extra_whitespaces = True
        elif kind != "Replace" or how != ({"String": " "}, SPACE):
            raise ValueError(f"normalizer has a step that is not supported: {step!r:.200}")
    for step in list_steps(content, "pre_tokenizer"):
        kind = step.get("type")
        if kind == "WhitespaceSplit":
            normalizer.remove_extra_whitespaces = blanks = True
        elif kind == "Metaspace" and step.get("replacement") == SPACE:
            space = step.get("prepend_scheme") or (
                "always" if step.get("add_prefix_space", True) else "never"
            )
        elif kind != "Split" or (step.get("pattern"), step.get("behavior")) != (
            {"String": " "}, "MergedWithPrevious"
        ):  # fmt: skip
            raise ValueError(f"pre_tokenizer has a step that is not supported: {step!r:.200}")
    if normalizer.remove_extra_whitespaces and space == "always":
        normalizer.add_dummy_prefix, space = True, "model"
    template = read_template(content)
    ends = [
        *template.suffix[-1:],
        *(special[text] for text in ("</s>", "<eos>") if text in special),
    ]
    end = next(iter(ends), None) if end is None else end
    if end not in special.values():
        raise ValueError(f"the end token {end} is not a special token: {special!r:.400}")
    pad = special.get("<pad>", end)
    # SentencePiece finds other added tokens itself, but treats the text around them as one.
    strips = {flag: flags[flag] for flag in ("lstrip", "rstrip")}
    apart = {*strips["lstrip"], *strips["rstrip"]}
    found = special | {t: i for t, i in added.items() if space != "never" or t in apart}
    start = template.prefix[0] if template.prefix else pad
    rules = Rules(pad, start, end, template, found, strips, space, blanks)
    return proto.SerializeToString(), rules


def is_byte(piece):
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
