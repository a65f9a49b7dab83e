"""The public names of `polyhead`."""

import importlib
import json
import os
import platform
import subprocess
import sys

import pytest

import polyhead
from polyhead import zoo
from tests.conftest import small


def test_importing_polyhead_imports_neither_keras_nor_tensorflow():
    code = (
        "import sys, polyhead\n"
        "assert polyhead.__version__ and 'GPT' in dir(polyhead)\n"
        "loaded = {'keras', 'tensorflow', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_are_those_of_their_modules():
    for name in polyhead.SUBPACKAGES:
        assert getattr(polyhead, name) is importlib.import_module(f"polyhead.{name}")
    for module, names in polyhead.PUBLIC.items():
        for name in names:
            found = getattr(importlib.import_module(f"polyhead.{module}"), name)
            assert getattr(polyhead, name) is found
    assert list(polyhead.PUBLIC["zoo"]) == sorted(zoo.__all__)
    with pytest.raises(AttributeError, match="module 'polyhead' has no attribute 'XLNet'"):
        _ = polyhead.XLNet


def test_the_stub_file_declares_the_same_names():
    from tests.test_package import ROOT

    stub = (ROOT / "package" / "__init__.pyi").read_text()
    names = {n for module, names in polyhead.PUBLIC.items() if module != "zoo" for n in names}
    for name in {*names, *polyhead.SUBPACKAGES}:
        assert f" import {name} as {name}\n" in stub
    assert "from .zoo import *" in stub


def test_load_finds_the_class_of_our_own_folders(tmp_path):
    models = (
        small(),
        zoo.GPT.preset("char-small", num_layers=1, vocab_size=20),
        zoo.ViT.preset("nano-4", num_layers=1, num_classes=3),
    )
    for model in models:
        model.save_pretrained(tmp_path / "model")
        found = polyhead.load(tmp_path / "model")
        assert type(found) is type(model) and found.config == model.config
        model.save_pretrained(tmp_path / "run" / "best")
        assert type(polyhead.load(str(tmp_path / "run"))) is type(model)
        for folder in (tmp_path / "model", tmp_path / "run" / "best"):
            for path in folder.iterdir():
                path.unlink()


def test_load_applies_overrides(tmp_path):
    zoo.GPT.preset("char-small", num_layers=1, vocab_size=20).save_pretrained(tmp_path / "model")
    assert polyhead.load(tmp_path / "model", dropout=0.3).config.dropout == 0.3


@pytest.mark.parametrize(
    "config, model",
    [
        ({"model_type": "gpt2"}, "GPT"),
        ({"model_type": "marian"}, "Transformer"),
        ({"model_type": "vit"}, "ViT"),
        ({"model_type": "bert"}, "BERT"),
        ({"model_type": "distilbert"}, "BERT"),
        ({"model_type": "roberta"}, "BERT"),
        ({"model_type": "modernbert"}, "ModernBERT"),
        ({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}, "ViT"),
    ],
)
def test_load_finds_the_class_of_published_folders(config, model, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(
        getattr(zoo, model), "from_pretrained", lambda folder, **overrides: (model, folder)
    )
    assert polyhead.load(tmp_path) == (model, tmp_path)


def test_load_names_models_that_it_cannot_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no model: there is no config.json in it"):
        polyhead.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    with pytest.raises(polyhead.CheckpointError, match="holds a 'bloom', not one of GPT, gpt2"):
        polyhead.load(tmp_path)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN is for x86")
def test_tensorflow_uses_onednn_unless_the_user_says_no():
    code = "import os, polyhead; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    for own, expected in (({}, "1"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0")):
        given = {k: v for k, v in os.environ.items() if k != "TF_ENABLE_ONEDNN_OPTS"} | own
        done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True)
        assert done.stdout.decode().strip() == expected
