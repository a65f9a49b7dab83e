"""Transformers for Keras 3 on TensorFlow: `polyhead.load`, `polyhead.GPT`, `polyhead.layers` ...

Public names and subpackages are imported on first use: ``import polyhead`` imports neither Keras
nor TensorFlow.
"""

import importlib
import os
import platform

from . import quiet  # noqa: F401  (before Keras and TensorFlow)

# TensorFlow uses oneDNN by itself only on x86 CPUs with AVX-512 VNNI or AMX. With AVX2 too it makes
# training steps and inference 8 to 25% faster.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"

SUBPACKAGES = ("data", "layers", "learn", "recipes", "serving", "training", "zoo")
# The modules of the public names. `__init__.pyi` declares the same for type checkers.
PUBLIC = {
    "zoo": (
        "Alignment", "AlphaFold", "AlphaFoldConfig", "Answer", "BART", "BARTConfig", "BERT",
        "BERTConfig", "CausalLM", "Classification", "ESM", "ESMConfig", "ESMFold", "ESMFoldConfig",
        "GPT", "GPTConfig", "Generation", "ImageClassifier", "Match", "ModernBERT",
        "ModernBERTConfig", "Sampling", "Score", "Search", "Seq2Seq", "Span", "Summary", "T5",
        "T5Config", "TextEncoder", "Transformer", "TransformerConfig", "Translation", "ViT",
        "ViTConfig", "load",
    ),
    "zoo.published.keras_hub": ("from_keras_hub", "to_keras_hub"),
    "training": ("CheckpointError", "FolderInUseError"),
    "serving.contract": ("ContractError",),
    "serving.formats": ("FormatError",),
}  # fmt: skip
__all__ = [*SUBPACKAGES, *(name for names in PUBLIC.values() for name in names)]


def __getattr__(name):
    if name in SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    for module, names in PUBLIC.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
