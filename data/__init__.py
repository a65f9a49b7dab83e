"""`tf.data` pipelines for text and images, and tokenizers that run in TensorFlow's graph.

A name is imported when it is first used, so images do not need the tokenizers' libraries.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .alignments import alignment_features as alignment_features
    from .alignments import read_a3m as read_a3m
    from .alignments import read_alignment as read_alignment
    from .batches import summary_batches as summary_batches
    from .batches import translation_batches as translation_batches
    from .denoising import span_batches as span_batches
    from .encoder_batches import classification_batches as classification_batches
    from .encoder_batches import pair_batches as pair_batches
    from .encoder_batches import question_batches as question_batches
    from .encoder_batches import tagging_batches as tagging_batches
    from .folding import read_structures as read_structures
    from .folding import structure_batches as structure_batches
    from .images import LabelledImages as LabelledImages
    from .images import image_batches as image_batches
    from .images import read_images as read_images
    from .labelled import LabelledTexts as LabelledTexts
    from .labelled import Question as Question
    from .labelled import ReferenceAnswer as ReferenceAnswer
    from .labelled import TaggedWords as TaggedWords
    from .labelled import TextPairs as TextPairs
    from .labelled import read_labelled_texts as read_labelled_texts
    from .labelled import read_questions as read_questions
    from .labelled import read_tagged_words as read_tagged_words
    from .labelled import read_text_pairs as read_text_pairs
    from .masking import masked_batches as masked_batches
    from .parallel import ParallelText as ParallelText
    from .parallel import read_parallel as read_parallel
    from .parallel import read_split as read_split
    from .parallel import read_tsv as read_tsv
    from .proteins import Protein as Protein
    from .proteins import read_proteins as read_proteins
    from .structure_files import read_structure as read_structure
    from .structures import Structure as Structure
    from .summaries import Summaries as Summaries
    from .summaries import read_summaries as read_summaries
    from .text import read_text as read_text
    from .text import text_batches as text_batches
    from .text import token_stream as token_stream
    from .tokenizers.byte_pairs import BytePairs as BytePairs
    from .tokenizers.characters import Characters as Characters
    from .tokenizers.marian import MarianPieces as MarianPieces
    from .tokenizers.residues import Residues as Residues
    from .tokenizers.subwords import Subwords as Subwords
    from .tokenizers.wordpieces import WordPieces as WordPieces

MODULES = {
    "alignments": ("alignment_features", "read_a3m", "read_alignment"),
    "batches": ("summary_batches", "translation_batches"),
    "denoising": ("span_batches",),
    "encoder_batches": (
        "classification_batches",
        "pair_batches",
        "question_batches",
        "tagging_batches",
    ),
    "folding": ("read_structures", "structure_batches"),
    "images": ("LabelledImages", "image_batches", "read_images"),
    "labelled": (
        "ReferenceAnswer",
        "LabelledTexts",
        "Question",
        "TaggedWords",
        "TextPairs",
        "read_labelled_texts",
        "read_questions",
        "read_tagged_words",
        "read_text_pairs",
    ),
    "masking": ("masked_batches",),
    "parallel": ("ParallelText", "read_parallel", "read_split", "read_tsv"),
    "proteins": ("Protein", "read_proteins"),
    "structure_files": ("read_structure",),
    "structures": ("Structure",),
    "summaries": ("Summaries", "read_summaries"),
    "text": ("read_text", "text_batches", "token_stream"),
    "tokenizers.byte_pairs": ("BytePairs",),
    "tokenizers.characters": ("Characters",),
    "tokenizers.marian": ("MarianPieces",),
    "tokenizers.residues": ("Residues",),
    "tokenizers.subwords": ("Subwords",),
    "tokenizers.wordpieces": ("WordPieces",),
}
PLACES = {name: module for module, names in MODULES.items() for name in names}
__all__ = list(PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name):
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PLACES[name]}"), name)


def __dir__():
    return [*globals(), *PLACES]
