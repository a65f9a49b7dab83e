"""Data as `tf.data`, and tokenizers that run in the graph."""

from ..serving import quiet  # noqa: F401  (before Keras and TensorFlow)
from .batches import translation_batches
from .byte_pairs import BytePairs
from .characters import Characters
from .images import LabelledImages, image_batches, read_images
from .marian import MarianPieces
from .parallel import ParallelText, read_parallel, read_split, read_tsv
from .subwords import Subwords
from .text import read_text, text_batches, token_stream

__all__ = [
    "BytePairs",
    "Characters",
    "LabelledImages",
    "MarianPieces",
    "ParallelText",
    "Subwords",
    "image_batches",
    "read_images",
    "read_parallel",
    "read_split",
    "read_text",
    "read_tsv",
    "text_batches",
    "token_stream",
    "translation_batches",
]
