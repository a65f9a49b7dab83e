"""Tests of networks as ONNX, LiteRT and OpenVINO files."""

import importlib.util

import keras
import numpy as np
import pytest

from polyhead.data import BytePairs
from polyhead.serving import formats
from polyhead.zoo import BERT, GPT, ViT
from tests.conftest import small


def randomized(model):
    random = np.random.default_rng(0)
    for v in model.weights:
        if v.name != "gamma":
            v.assign(v + random.normal(size=v.shape) * 0.1)
    return model


def gpt(sample):
    tokenizer = BytePairs.train(sample.sources, 300)
    sizes = dict(max_length=16, num_layers=1, dim=16, num_heads=2)
    return randomized(GPT.preset("gpt2", tokenizer, **sizes))


def vit(sample):
    sizes = dict(
        image_size=16, patch_size=8, num_layers=1, dim=16, intermediate_dim=32, num_heads=2
    )
    return randomized(ViT.preset("ti-16", num_classes=3, **sizes))


def transformer(sample):
    return randomized(small(num_layers=1, dim=16, num_heads=2))


def bert(sample):
    sizes = dict(vocab_size=300, num_layers=1, dim=16, num_heads=2, intermediate_dim=32)
    return randomized(BERT.preset("bert-tiny", head="spans", **sizes))


@pytest.mark.slow
@pytest.mark.parametrize("make", [gpt, vit, transformer, bert])
@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_network_has_equal_outputs_in_another_runtime(format, make, sample, tmp_path):
    end, *needed = formats.FORMATS[format]
    for package in needed:
        pytest.importorskip(package, reason=f"{package} is not installed: extra formats")
    path = tmp_path / f"model{end or '.onnx'}"
    path.write_text("an older file")
    model = make(sample)
    assert model.export(path, format=format) == path  # compared with the model's own outputs
    written = [path] if format != "openvino" else [path.with_suffix(".bin"), path]
    assert sorted(tmp_path.iterdir()) == written
    for size in (2, 6):
        signature = {
            GPT: keras.layers.InputSpec(shape=(None, size), dtype="int32"),
            ViT: keras.layers.InputSpec(shape=(None, 16, 16, 3), dtype="float32"),
        }.get(type(model))
        if signature is not None:
            formats.check_outputs(model, str(path), format, [signature], size, 40, 1e-4)


def test_a_file_with_different_outputs_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_text("an older file")
    model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(2)])
    spec = keras.layers.InputSpec(shape=(None, 2), dtype="float32", name="x")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: real("keras"))

    def save(model, file, **settings):
        open(file, "w").close()

    monkeypatch.setattr(keras.Model, "export", save)
    monkeypatch.setitem(formats.RUN, "litert", lambda file, inputs: [inputs[0] * 0 + 9])
    with pytest.raises(formats.FormatError, match="outputs of the litert file differ .*: [0-9.]+"):
        formats.export_network(model, path, "litert", spec, 1)
    monkeypatch.setitem(formats.RUN, "litert", lambda file, inputs: 1 / 0)
    with pytest.raises(formats.FormatError, match="the litert file does not run: division by zero"):
        formats.export_network(model, path, "litert", spec, 1)
    assert path.read_text() == "an older file" and list(tmp_path.iterdir()) == [path]
    monkeypatch.setitem(formats.RUN, "litert", lambda file, inputs: [model(inputs[0])])
    formats.export_network(model, path, "litert", spec, 1)
    assert path.read_text() == ""


def test_unsupported_formats_are_refused(monkeypatch, model, tmp_path):
    with pytest.raises(ValueError, match="format must be one of .*'onnx', .*: 'gguf'"):
        model.export(tmp_path / "model", format="gguf")
    with pytest.raises(ValueError, match=r"'litert' is written to a file \*.tflite: .*model"):
        model.export(tmp_path / "model", format="litert")
    with pytest.raises(TypeError, match=r"not settings of the format 'onnx': \['num_beams'\]"):
        model.export(tmp_path / "model.onnx", format="onnx", num_beams=4)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'onnx needs tf2onnx: pip install "polyhead\[formats\]"'):
        model.export(tmp_path / "model.onnx", format="onnx")
    assert not list(tmp_path.iterdir())
