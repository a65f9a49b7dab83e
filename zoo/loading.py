"""`load`, which finds the class of a saved model."""

from os import PathLike
from pathlib import Path
from typing import Any

from ..training import CheckpointError
from .alphafold import AlphaFold
from .bart import BART
from .bert import BERT
from .esm import ESM
from .esmfold import ESMFold
from .gpt import GPT
from .model import Pretrained
from .modern_bert import ModernBERT
from .published import identify
from .published.files import find_folder
from .t5 import T5
from .transformer import Transformer
from .vit import ViT

MODELS = (GPT, Transformer, T5, BART, ViT, BERT, ModernBERT, ESM, ESMFold, AlphaFold)


def load(name: str | PathLike[str], **overrides: Any) -> Pretrained:
    """Loads a model that polyhead saved, or one that another library published.

    The ``config.json`` decides the class, whose `from_pretrained` then loads the model. A file
    ``*.npz`` holds AlphaFold's parameters.

    >>> polyhead.GPT.preset("char-small", vocab_size=10).save_pretrained("saved")
    >>> polyhead.load("saved", dropout=0.1).config.vocab_size
    10

    Args:
        name: a folder that `save_pretrained` or Hugging Face's library wrote, a training run (its
            best model is loaded), AlphaFold's parameters (``params_model_3.npz``), or the name of a
            model on the Hugging Face hub.
        overrides: changes to the configuration.

    Raises:
        FileNotFoundError: there is no model.
        CheckpointError: the model is of an unknown class, or invalid; the message names the file.
        TypeError: the configuration has no such setting.
        ValueError: a change to a setting is invalid.
    """
    folder = find_folder(name)
    if not (folder / "config.json").exists() and (folder / "best").is_dir():
        folder = folder / "best"
    return model_class(folder).from_pretrained(folder, **overrides)


def model_class(folder: Path) -> type[Pretrained]:
    """The class of the model in ``folder``.

    Raises:
        FileNotFoundError: there is no model.
        CheckpointError: the model is of an unknown class, or its config.json is invalid.
    """
    _, kind = identify(folder)
    families = {model: (model.__name__, *model.FAMILIES) for model in MODELS}
    for model, names in families.items():
        if kind in names:
            return model
    known = ", ".join(name for names in families.values() for name in names)
    raise CheckpointError(f"{folder} holds a {kind!r:.100}, not one of {known}")
