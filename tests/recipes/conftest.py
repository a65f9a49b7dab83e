"""Recipes are tested with presets that compile in seconds; `make demo` trains a real one."""

import dataclasses

import pytest


@pytest.fixture(scope="module", autouse=True)
def small_presets():
    from polyhead.zoo import GPT, Transformer, ViT

    with pytest.MonkeyPatch.context() as patch:
        for model, name, dim in (
            (Transformer, "tiny", 64),
            (GPT, "char-small", 64),
            (ViT, "nano-4", 32),
            (ViT, "lite-4", 32),
        ):
            config = model.PRESETS[name]
            small = dataclasses.replace(config, num_layers=2, dim=dim, num_heads=2)
            patch.setitem(model.PRESETS, name, small)
        yield
