"""Recipes are tested with models that compile in seconds; `make demo` trains a real preset."""

import dataclasses
import functools
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def small_presets():
    """Presets with one or two narrow blocks."""
    from polyhead.zoo import BERT, GPT, Transformer, ViT

    with pytest.MonkeyPatch.context() as patch:
        for model, name, num_layers in (
            (Transformer, "tiny", 1),
            (GPT, "char-small", 2),
            (BERT, "bert-tiny", 1),
            (BERT, "bert-mini", 1),
            (ViT, "nano-4", 2),
            (ViT, "lite-4", 2),
        ):
            sizes = dict(num_layers=num_layers, dim=32, num_heads=2)
            patch.setitem(model.PRESETS, name, dataclasses.replace(model.PRESETS[name], **sizes))
        yield


@pytest.fixture(scope="module")
def shared_models():
    """Commands that load the same folder share a model and its compiled functions."""
    from polyhead.recipes import command, run

    load = functools.cache(run.load)
    with pytest.MonkeyPatch.context() as patch:
        for recipe in command.RECIPES.values():
            patch.setattr(recipe, "load", lambda folder: load(Path(folder).resolve()))
        yield
