import copy
import json
import pickle
import shutil

import keras
import numpy as np
import pytest
from keras import ops

from polyhead.training import CheckpointError, read_tensors, write_tensors
from polyhead.zoo import GPT, GPTConfig, Transformer, ViT, ViTConfig
from tests.conftest import TENSORFLOW, small

INPUTS = {"source": np.array([[5, 6, 2]]), "target": np.array([[1, 7, 8, 9]])}


@pytest.fixture
def saved(tmp_path):
    small().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_model_is_the_same_again(tmp_path):
    model = small(norm="pre")
    model.save_pretrained(tmp_path / "new" / "saved")
    again = Transformer.from_pretrained(tmp_path / "new" / "saved")
    assert again.config == model.config
    before, after = (ops.convert_to_numpy(m(INPUTS)) for m in (model, again))
    np.testing.assert_array_equal(before, after)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["saved"]


def test_names_of_tensors_read_as_english(saved):
    tensors, _ = read_tensors(saved / "model.safetensors")
    assert {"tokens/embeddings", "decoder_1/cross_attention/query/kernel"} <= set(tensors)
    assert len(tensors) == len(small().weights)


@pytest.mark.skipif(not TENSORFLOW, reason="tokenizers are TensorFlow's")
def test_the_tokenizer_goes_with_the_model(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = Transformer.from_pretrained(tmp_path / "saved")
    assert again.translate(["The dog."]) == model.translate(["The dog."])


def test_an_older_model_is_replaced_and_other_files_are_not(saved, tmp_path):
    model = small(num_layers=1)
    model.save_pretrained(saved)
    assert Transformer.from_pretrained(saved).config.num_layers == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else than a Transformer"):
        model.save_pretrained(tmp_path / "mine")
    (saved / "thesis.txt").write_text("beside the model")
    with pytest.raises(FileExistsError, match="holds something else than a Transformer"):
        model.save_pretrained(saved)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        model.save_pretrained(tmp_path / "file")


def test_a_failed_save_leaves_the_model_before_it(saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        small(num_layers=1).save_pretrained(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


def change_config(saved, **changes):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **changes}))


def change_tensors(saved, change):
    tensors, _ = read_tensors(saved / "model.safetensors")
    change(tensors)
    write_tensors(saved / "model.safetensors", tensors)


def test_what_does_not_fit_is_named(saved, tmp_path):
    def refused(message):
        return pytest.raises(CheckpointError, match=message)

    with pytest.raises(FileNotFoundError, match="there is no config.json in it"):
        Transformer.from_pretrained(tmp_path)
    change_tensors(saved, lambda t: t.update(stranger=np.zeros(2)))
    with refused(r"the model has no \['stranger'\]"):
        Transformer.from_pretrained(saved)
    change_tensors(saved, lambda t: (t.pop("stranger"), t.pop("encoder_0/attention/query/bias")))
    with refused(r"it lacks \['encoder_0/attention/query/bias'\]"):
        Transformer.from_pretrained(saved)
    small().save_pretrained(saved)
    change_config(saved, vocab_size=41)
    with refused(r"tokens/embeddings has shape \(40, 32\), the model's is \(41, 32\)"):
        Transformer.from_pretrained(saved)
    change_config(saved, vocab_size=40, rotary=True)
    with refused(r"unknown settings \['rotary'\]"):
        Transformer.from_pretrained(saved)
    change_config(saved, model="GPT")
    with refused("holds a GPT, not a Transformer"):
        Transformer.from_pretrained(saved)
    for content, message in (("{", "config.json is no JSON"), ("[]", "it holds a list")):
        (saved / "config.json").write_text(content)
        with refused(message):
            Transformer.from_pretrained(saved)
    shutil.rmtree(saved)
    small().save_pretrained(saved)
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with refused("model.safetensors is no complete safetensors file"):
        Transformer.from_pretrained(saved)


def gpt(**options):
    return GPT(GPTConfig(50, 16, num_layers=1, dim=32, num_heads=4, end_id=0), **options)


def transformer(**options):
    return small(norm="pre", num_layers=1, **options)


def vit(**options):
    sizes = dict(num_layers=1, dim=32, hidden_dim=48, num_heads=4, num_classes=2)
    return ViT(ViTConfig((16, 24), 8, labels=("cat", "dog"), **sizes), **options)


PIXELS = np.random.default_rng(0).uniform(0, 255, (2, 16, 24, 3)).astype("float32")
MODELS = [(gpt, np.arange(12)[None]), (transformer, INPUTS), (vit, PIXELS)]


def array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def drawn(model, names=("kernel", "embeddings", "bias")):
    """``model`` with other weights than those that it begins with."""
    random = np.random.default_rng(1)
    for v in model.weights:
        if v.name in names:
            v.assign(random.normal(size=v.shape) * 0.2)
    return model


def near(found, expected):
    return np.abs(found - expected).mean() < 0.05 * expected.std()


@pytest.mark.parametrize("make, inputs", MODELS)
def test_copies_of_a_model_are_equal_and_share_nothing(make, inputs, tmp_path):
    model = drawn(make())
    model.freeze("query")
    model._compiled("a compiled function", lambda x: model(x))
    expected = array(model(inputs))
    model.save(tmp_path / "model.keras")
    for again in (
        keras.saving.load_model(tmp_path / "model.keras"),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ):
        assert type(again) is type(model) and again.config == model.config
        assert [v.trainable for v in again.weights] == [v.trainable for v in model.weights]
        np.testing.assert_array_equal(array(again(inputs)), expected)
        for v in again.weights:
            v.assign(ops.zeros_like(v))
    np.testing.assert_array_equal(array(model(inputs)), expected)


def test_a_copy_keeps_the_dtype_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = drawn(transformer(logits_bias=True))
    keras.config.set_dtype_policy("float32")
    again = copy.deepcopy(model)
    assert again.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(array(again(INPUTS)), array(model(INPUTS)))


@pytest.mark.skipif(not TENSORFLOW, reason="tokenizers are TensorFlow's")
def test_a_keras_file_gives_the_tokenizer_back(tokenizer, tmp_path):
    transformer(tokenizer=tokenizer).save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.tokenizer is not tokenizer
    assert again.tokenizer.model == tokenizer.model
    with pytest.raises(ValueError, match="this model has none: set model.tokenizer"):
        copy.deepcopy(transformer()).translate(["The dog."])
    with pytest.raises(ValueError, match="one vocabulary: vocab_size 300 and 40"):
        transformer().tokenizer = tokenizer


@pytest.mark.parametrize("make, inputs", MODELS)
def test_a_quantized_model_is_nearly_the_same_in_every_file(make, inputs, tmp_path):
    model = drawn(make())
    before = array(model(inputs))
    model.quantize("int8")
    quantized = {v.path for v in model.weights if v.dtype == "int8"}
    names = ("kernel", "tokens/embeddings")
    assert quantized == {v.path for v in model.weights if v.path.endswith(names)}
    expected = array(model(inputs))
    assert near(expected, before) and np.any(expected != before)
    model.save_pretrained(tmp_path / "saved")
    for again in (copy.deepcopy(model), type(model).from_pretrained(tmp_path / "saved")):
        np.testing.assert_array_equal(array(again(inputs)), expected)
        assert [v.dtype for v in again.weights] == [v.dtype for v in model.weights]


def test_layers_can_be_left_out_of_quantization(tmp_path):
    model = drawn(gpt())
    model.quantize("int8", filters=["query", "expand"])
    assert model._quantization() == {
        "block_0/attention/query": "int8",
        "block_0/feed_forward/expand": "int8",
    }
    model.save_pretrained(tmp_path / "saved")
    again = GPT.from_pretrained(tmp_path / "saved")
    tokens = np.arange(4)[None]
    np.testing.assert_array_equal(array(again(tokens)), array(model(tokens)))
    for quantization, message in (
        ({"block_9": "int8"}, r"quantization names layers that the model has not: \['block_9'\]"),
        ({"tokens": "int1"}, "quantization must be of layers by 'int8'"),
        ("int8", "quantization must be of layers by 'int8'"),
    ):
        change_config(tmp_path / "saved", quantization=quantization)
        with pytest.raises(CheckpointError, match=f"config.json: {message}"):
            GPT.from_pretrained(tmp_path / "saved")


def test_what_cannot_be_quantized_is_refused(tmp_path):
    model = vit()
    for mode in ("int4", "float8", "gptq", "awq", None):
        with pytest.raises(ValueError, match=f"ViT supports the quantization 'int8': {mode!r}"):
            model.quantize(mode)
    weights_only = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
    with pytest.raises(ValueError, match="default quantizers only"):
        model.quantize(config=weights_only)
    model.quantize(config=keras.quantizers.Int8QuantizationConfig())
    with pytest.raises(ValueError, match="a quantized model is saved as 'polyhead' only"):
        model.save_pretrained(tmp_path, format="huggingface")
    with pytest.raises(ValueError, match="a quantized model cannot be adapted"):
        model.adapted(num_classes=3)
    model.compile(run_eagerly=True)
    with pytest.raises(ValueError, match="a quantized model cannot be trained"):
        model.fit(PIXELS, np.eye(2), verbose=0)


def test_what_was_compiled_before_is_compiled_again_for_other_weights():
    model = drawn(vit())
    before, [probability] = array(model(PIXELS)), model.classify([PIXELS[0]])
    model.quantize("int8", filters="expand")
    model.blocks[0].attention.key.enable_lora(2)  # of a layer: the model is not told
    lora = model.blocks[0].attention.key.lora_kernel_b
    lora.assign(np.random.default_rng(2).normal(size=lora.shape))
    expected = array(ops.softmax(model(PIXELS[:1])))
    [after] = model.classify([PIXELS[0]])
    assert after.probability == pytest.approx(expected.max(), abs=1e-6)
    assert abs(after.probability - probability.probability) > 1e-4 and before.shape == (2, 2)


@pytest.mark.parametrize("make, inputs", MODELS)
def test_lora_adapters_are_merged_in_every_file(make, inputs, tmp_path):
    model = drawn(make())
    plain = array(model(inputs))
    model.enable_lora(2)
    drawn(model, ("down", "up"))
    expected = array(model(inputs))
    assert np.abs(expected - plain).max() > 0.01
    model.save_pretrained(tmp_path / "saved")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = make()
    loaded.load_weights(tmp_path / "model.weights.h5")
    model.load_weights(tmp_path / "model.weights.h5")  # the adapters are zero now
    saved = type(model).from_pretrained(tmp_path / "saved")
    for again in (copy.deepcopy(model), loaded, saved, model):
        np.testing.assert_allclose(array(again(inputs)), expected, atol=1e-5)
    drawn(model, ("up",))
    expected = array(model(inputs))
    model.quantize("int8")
    assert len(model.weights) > len(saved.weights)
    assert not any("lora" in v.path for v in model.weights)
    assert near(array(model(inputs)), expected)


def test_kerass_lora_on_layers_is_merged_in_every_file(tmp_path):
    model = drawn(vit())
    for layer in (model.head, model.blocks[0].attention.query):
        layer.enable_lora(2)
    drawn(model, ("lora_kernel_b",))
    expected = array(model(PIXELS))
    model.save_pretrained(tmp_path / "saved")
    saved = ViT.from_pretrained(tmp_path / "saved")
    for again in (copy.deepcopy(model), saved, model.adapted(dropout=0.5)):
        np.testing.assert_allclose(array(again(PIXELS)), expected, atol=1e-5)


def test_saving_does_not_change_the_weights_that_are_passed(tmp_path):
    model = drawn(transformer())
    model.enable_lora(2)
    drawn(model, ("down", "up"))
    weights = {v.path: array(v) for v in model.weights}
    before = {path: value.copy() for path, value in weights.items()}
    model.save_pretrained(tmp_path / "saved", weights=weights)
    for path, value in weights.items():
        np.testing.assert_array_equal(value, before[path])


def test_training_is_refused_until_compile_sees_the_trainable_weights():
    model = drawn(vit())

    def fit():
        model.fit(PIXELS, np.eye(2), verbose=0)

    def changed():
        before = {v.path: array(v) for v in model.weights}
        fit()
        return {v.path for v in model.weights if np.any(array(v) != before[v.path])}

    model.compile("sgd", run_eagerly=True)
    model.freeze("query/")  # before the first fit
    assert not any("query/" in path for path in changed())
    model.freeze("block_0|patches|positions")
    with pytest.raises(ValueError, match="have changed .* call compile again"):
        fit()
    model.compile("sgd", run_eagerly=True)
    assert changed() <= {"token/embeddings", "norm/gamma", "norm/beta", "head/kernel", "head/bias"}
    model.enable_lora(2)
    with pytest.raises(ValueError, match="have changed .* call compile again"):
        fit()
    model.compile("sgd", run_eagerly=True)
    assert changed() == {f"block_0/attention/{name}_lora/up" for name in ("query", "value")}


def test_a_frozen_model_keeps_its_optimizers_state_in_a_keras_file(tmp_path):
    model = drawn(vit())
    model.freeze("block_0")
    model.compile(run_eagerly=True)
    model.fit(PIXELS, np.eye(2), verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for a, b in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(array(a), array(b))
    model.freeze("norm")
    assert not copy.deepcopy(model).compiled  # the optimizer is of other weights
    model.quantize("int8")
    assert not copy.deepcopy(model).compiled
