import copy
import json
import os
import pickle
import resource
import shutil
import tracemalloc

import keras
import numpy as np
import pytest
from keras import ops

import polyhead
from polyhead.training import CheckpointError, read_tensors, write_tensors
from polyhead.zoo import GPT, GPTConfig, Transformer, ViT, ViTConfig
from polyhead.zoo.model import Pretrained, progress_bar
from tests.conftest import TENSORFLOW, small

INPUTS = {"source": np.array([[5, 6, 2]]), "target": np.array([[1, 7, 8, 9]])}


@pytest.fixture
def saved(tmp_path):
    small().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_save_and_load_round_trip(tmp_path):
    model = small(norm="pre")
    model.save_pretrained(tmp_path / "new" / "saved")
    again = Transformer.from_pretrained(tmp_path / "new" / "saved")
    assert again.config == model.config
    before, after = (ops.convert_to_numpy(m(INPUTS)) for m in (model, again))
    np.testing.assert_array_equal(before, after)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["saved"]


def test_names_of_tensors_read_as_english(saved):
    tensors, _ = read_tensors(saved / "model.safetensors")
    assert {"tokens/embeddings", "decoder_0/cross_attention/query/kernel"} <= set(tensors)
    assert len(tensors) == len(small().weights)


@pytest.mark.skipif(not TENSORFLOW, reason="tokenizers are TensorFlow's")
def test_the_tokenizer_is_saved_with_the_model(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = Transformer.from_pretrained(tmp_path / "saved")
    assert again.translate(["The dog."]) == model.translate(["The dog."])


def test_an_older_model_is_replaced_and_other_files_are_not(saved, tmp_path):
    model = small(num_layers=1)
    model.save_pretrained(saved)
    assert Transformer.from_pretrained(saved).config.num_layers == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something other than a Transformer"):
        model.save_pretrained(tmp_path / "mine")
    (saved / "thesis.txt").write_text("beside the model")
    with pytest.raises(FileExistsError, match="holds something other than a Transformer"):
        model.save_pretrained(saved)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        model.save_pretrained(tmp_path / "file")


def test_a_failed_save_keeps_the_previous_model(saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left.*/saved/config.json'"):
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


def test_mismatches_are_named(saved, tmp_path):
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
    for content, message in (("{", "config.json is not valid JSON"), ("[]", "it holds a list")):
        (saved / "config.json").write_text(content)
        with refused(message):
            Transformer.from_pretrained(saved)
    shutil.rmtree(saved)
    small().save_pretrained(saved)
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with refused("model.safetensors is not a complete safetensors file"):
        Transformer.from_pretrained(saved)


def gpt(**options):
    return GPT(GPTConfig(50, 16, num_layers=1, dim=32, num_heads=4, end_id=0), **options)


def transformer(**options):
    return small(norm="pre", num_layers=1, **options)


def vit(**options):
    sizes = dict(num_layers=1, dim=32, intermediate_dim=48, num_heads=4, num_classes=2)
    return ViT(ViTConfig((16, 24), 8, class_names=("cat", "dog"), **sizes), **options)


PIXELS = np.random.default_rng(0).uniform(0, 255, (2, 16, 24, 3)).astype("float32")
MODELS = [(gpt, np.arange(12)[None]), (transformer, INPUTS), (vit, PIXELS)]
ONE_FAST = [MODELS[0], *(pytest.param(*model, marks=pytest.mark.slow) for model in MODELS[1:])]


def array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def randomize(model, names=("kernel", "embeddings", "bias")):
    """Gives ``model`` random weights other than its initial ones."""
    random = np.random.default_rng(1)
    for v in model.weights:
        if v.name in names:
            v.assign(random.normal(size=v.shape) * 0.2)
    return model


def assert_close(found, expected):
    return np.abs(found - expected).mean() < 0.05 * expected.std()


@pytest.mark.parametrize("make, inputs", MODELS)
def test_copies_of_a_model_are_equal_and_share_nothing(make, inputs, tmp_path):
    model = randomize(make())
    model.freeze("query")
    model._compiled("a compiled function", lambda x: model(x), "copies")
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
            v.assign(ops.zeros(v.shape))
    np.testing.assert_array_equal(array(model(inputs)), expected)


def test_settings_that_do_not_exist_or_are_wrong_are_refused(tmp_path):
    vit().save_pretrained(tmp_path)
    for call in (
        lambda **changes: ViT.preset("nano-4", **changes),
        lambda **changes: polyhead.load(tmp_path, **changes),
        lambda **changes: vit().adapt(**changes),
    ):
        with pytest.raises(TypeError, match="ViT has no 'num_layer'; do you mean 'num_layers'?"):
            call(num_layer=1)
        with pytest.raises(TypeError, match="ViT has no 'precision', but image_size, "):
            call(precision="float16")
        with pytest.raises(ValueError, match="^dropout must be .* 'a lot'"):  # names no file
            call(dropout="a lot")


def test_a_copy_keeps_the_dtype_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = randomize(transformer(logits_bias=True))
    keras.config.set_dtype_policy("float32")
    again = copy.deepcopy(model)
    assert again.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(array(again(INPUTS)), array(model(INPUTS)))


@pytest.mark.skipif(not TENSORFLOW, reason="tokenizers are TensorFlow's")
def test_a_keras_file_keeps_the_tokenizer(tokenizer, tmp_path):
    transformer(tokenizer=tokenizer).save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.tokenizer is not tokenizer
    assert again.tokenizer.model == tokenizer.model
    with pytest.raises(ValueError, match="this model has none: set model.tokenizer"):
        copy.deepcopy(transformer()).translate(["The dog."])
    with pytest.raises(ValueError, match="the same vocabulary: vocab_size 300 and 40"):
        transformer().tokenizer = tokenizer


@pytest.mark.parametrize("make, inputs", ONE_FAST)
def test_a_quantized_model_round_trips_through_every_file(make, inputs, tmp_path):
    model = randomize(make())
    before = array(model(inputs))
    model.quantize("int8")
    quantized = {v.path for v in model.weights if v.dtype == "int8"}
    names = ("kernel", "tokens/embeddings")
    assert quantized == {v.path for v in model.weights if v.path.endswith(names)}
    expected = array(model(inputs))
    assert assert_close(expected, before) and np.any(expected != before)
    model.save_pretrained(tmp_path / "saved")
    for again in (copy.deepcopy(model), type(model).from_pretrained(tmp_path / "saved")):
        np.testing.assert_array_equal(array(again(inputs)), expected)
        assert [v.dtype for v in again.weights] == [v.dtype for v in model.weights]


def test_layers_can_be_left_out_of_quantization(tmp_path):
    model = randomize(gpt())
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
        (
            {"block_9": "int8"},
            r"quantization names layers that the model does not have: \['block_9'\]",
        ),
        ({"tokens": "int1"}, "quantization must map layers to 'int8'"),
        ("int8", "quantization must map layers to 'int8'"),
    ):
        change_config(tmp_path / "saved", quantization=quantization)
        with pytest.raises(CheckpointError, match=f"config.json: {message}"):
            GPT.from_pretrained(tmp_path / "saved")


def test_unsupported_quantization_is_refused(tmp_path):
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
        model.adapt(num_classes=3)
    model.compile(run_eagerly=True)
    with pytest.raises(ValueError, match="a quantized model cannot be trained"):
        model.fit(PIXELS, np.eye(2), verbose=0)


def test_functions_are_compiled_again_for_new_variables():
    model = randomize(vit())
    before, [probability] = array(model(PIXELS)), model.classify([PIXELS[0]])
    model.quantize("int8", filters="expand")
    model.blocks[0].attention.key.enable_lora(2)  # of a layer: the model does not know
    lora = model.blocks[0].attention.key.lora_kernel_b
    lora.assign(np.random.default_rng(2).normal(size=lora.shape))
    expected = array(ops.softmax(model(PIXELS[:1])))
    [after] = model.classify([PIXELS[0]])
    assert after.probability == pytest.approx(expected.max(), abs=1e-6)
    assert abs(after.probability - probability.probability) > 1e-4 and before.shape == (2, 2)


@pytest.mark.parametrize("make, inputs", ONE_FAST)
def test_lora_adapters_are_merged_in_every_file(make, inputs, tmp_path):
    model = randomize(make())
    plain = array(model(inputs))
    model.enable_lora(2)
    randomize(model, ("down", "up"))
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
    randomize(model, ("up",))
    expected = array(model(inputs))
    model.quantize("int8")
    assert len(model.weights) > len(saved.weights)
    assert not any("lora" in v.path for v in model.weights)
    assert assert_close(array(model(inputs)), expected)


def test_lora_of_keras_layers_is_merged_in_every_file(tmp_path):
    model = randomize(vit())
    for layer in (model.head, model.blocks[0].attention.query):
        layer.enable_lora(2)
    randomize(model, ("lora_kernel_b",))
    expected = array(model(PIXELS))
    model.save_pretrained(tmp_path / "saved")
    saved = ViT.from_pretrained(tmp_path / "saved")
    for again in (copy.deepcopy(model), saved, model.adapt(dropout=0.5)):
        np.testing.assert_allclose(array(again(PIXELS)), expected, atol=1e-5)


def test_saving_does_not_change_the_weights_that_are_passed(tmp_path):
    model = randomize(transformer())
    model.enable_lora(2)
    randomize(model, ("down", "up"))
    weights = {v.path: array(v) for v in model.weights}
    before = {path: value.copy() for path, value in weights.items()}
    model.save_pretrained(tmp_path / "saved", weights=weights)
    for path, value in weights.items():
        np.testing.assert_array_equal(value, before[path])


def test_adapters_survive_arguments_that_are_refused():
    model = randomize(vit())
    for alpha in (float("nan"), 0, "2", float("inf")):
        with pytest.raises(ValueError, match="alpha must be a positive number"):
            model.enable_lora(2, alpha)
    model.enable_lora(2)
    for given in (dict(typo=1), dict(filters=3)):
        with pytest.raises((TypeError, ValueError), match="arguments of quantize|filters must be"):
            model.quantize("int8", **given)
        assert model._has_lora()
    half = ViT.from_config({**model.get_config(), "dtype": "mixed_float16"})
    for adapted, filters, message in (
        (model, "(", r"not a regular expression: '\('"),
        (model, ["block", "("], r"not a regular expression: '\('"),
        (half, None, "quantize does not support the dtype policy mixed_float16"),
    ):
        if not adapted._has_lora():
            adapted.enable_lora(2)
        with pytest.raises(ValueError, match=message):
            adapted.quantize("int8", filters=filters)
        assert any("lora" in v.path for v in adapted.trainable_weights)


def test_training_is_refused_until_compile_sees_the_trainable_weights():
    model = randomize(vit())

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
    adapters = {f"block_0/attention/{name}_lora/up" for name in ("query", "value")}
    assert changed() == adapters | {"head/kernel", "head/bias"}


def test_a_frozen_model_keeps_its_optimizers_state_in_a_keras_file(tmp_path):
    model = randomize(vit())
    model.freeze("block_0")
    model.compile(run_eagerly=True)
    model.fit(PIXELS, np.eye(2), verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for a, b in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(array(a), array(b))
    model.freeze("norm")
    assert not copy.deepcopy(model).compiled  # the optimizer was built for other weights
    model.quantize("int8")
    assert not copy.deepcopy(model).compiled


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of small models in every format."""
    folder = tmp_path_factory.mktemp("folders")
    sizes = dict(num_layers=2, dim=8, num_heads=2, intermediate_dim=12)
    gpt = GPT(GPTConfig(vocab_size=20, max_length=16, end_id=0, **sizes))
    vit = ViT(ViTConfig(image_size=16, patch_size=8, num_classes=3, **sizes))
    models = {"gpt2": gpt, "vit": vit}
    for name, model in models.items():
        model.save_pretrained(folder / name, format="huggingface")
    models |= {"GPT": gpt, "ViT": vit, "Transformer": small(**sizes)}
    for name in ("GPT", "ViT", "Transformer"):
        models[name].save_pretrained(folder / name)
    marian = dict(
        model_type="marian", vocab_size=20, d_model=8, encoder_layers=2, decoder_layers=2,
        encoder_ffn_dim=12, decoder_ffn_dim=12, encoder_attention_heads=2,
        decoder_attention_heads=2, max_position_embeddings=16, pad_token_id=19, eos_token_id=0,
        decoder_start_token_id=19, activation_function="relu",
    )  # fmt: skip
    arguments = dict(img_size=[16, 16], in_chans=3, num_classes=3)
    timm = dict(architecture="vit_tiny_patch8_16", pretrained_cfg={}, model_args=arguments)
    for name, config in (("marian", marian), ("timm", timm)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        write_tensors(folder / name / "model.safetensors", {"first": np.ones(3, "float32")})
    return folder


CLASSES = {
    "GPT": GPT, "gpt2": GPT, "ViT": ViT, "vit": ViT, "timm": ViT, "Transformer": Transformer,
    "marian": Transformer,
}  # fmt: skip


@pytest.fixture
def refused(folders, tmp_path, monkeypatch):
    """Checks that a changed folder is refused with one line, before a model is built."""

    def build(*args, **kwargs):
        raise AssertionError("a model is built")

    monkeypatch.setattr(Pretrained, "__init__", build)

    def check(name, change, message, error=CheckpointError):
        folder = shutil.copytree(folders / name, tmp_path / name)
        change(folder)
        tracemalloc.start()
        with pytest.raises(error, match=message) as raised:
            CLASSES[name].from_pretrained(folder)
        assert tracemalloc.get_traced_memory()[1] < 10e6
        tracemalloc.stop()
        line = str(raised.value)
        shutil.rmtree(folder)
        assert str(folder) in line and "\n" not in line and "\0" not in line and len(line) < 900

    return check


@pytest.mark.parametrize(
    "model",
    [
        (GPT, GPTConfig(vocab_size=20, max_length=16, end_id=0, num_layers=3, dim=8, num_heads=2)),
        (ViT, dict(image_size=(16, 24), num_classes=3)),
        (ViT, dict(image_size=16, num_classes=0, pooling="mean", channels=1, mean=[0], std=[1])),
        (Transformer, dict(vocab_size=20, source_vocab_size=30, logits_bias=True)),
        (Transformer, dict(vocab_size=20, norm="pre", decoder_layers=1)),
    ],
)
def test_shapes_equal_those_of_the_built_model(model):
    cls, config = model
    if isinstance(config, dict):
        sizes = dict(num_layers=2, dim=8, num_heads=2, intermediate_dim=12)
        sizes |= {"patch_size": 8} if cls is ViT else {}
        config = cls.Config(**sizes, **config)
    built = {v.path: tuple(v.shape) for v in cls(config, initialize=False).weights}
    assert dict(cls.shapes(config)) == built
    first = next(path for path, _ in cls.shapes(config) if "_norm" in path)
    assert first.partition("/")[0].endswith(f"_{config.num_layers - 1}")  # last block first


SIZES = [
    ("GPT", dict(num_layers=10**9), r"lacks \['block_999999999/"),
    ("GPT", dict(dim=10**8, num_heads=1), "embeddings has shape"),
    ("GPT", dict(max_length=10**9), "positions/embeddings has shape"),
    ("GPT", dict(intermediate_dim=2**31), "intermediate_dim must be less than 2\\^31: 2147483648"),
    ("GPT", dict(intermediate_dim=10**9), "expand/kernel has shape"),
    ("gpt2", dict(n_layer=10**9), r"lacks \['transformer.h.999999999"),
    ("gpt2", dict(n_positions=10**9, n_ctx=10**9), "wpe.weight has shape"),
    ("gpt2", dict(n_inner=10**9), "c_fc.weight has shape"),
    ("ViT", dict(num_layers=10**9), r"lacks \['block_999999999/"),
    ("ViT", dict(image_size=40_000), "positions/embeddings has shape"),
    ("ViT", dict(channels=10**9, mean=[0, 0, 1]), "mean must have 1000000000 values"),
    ("ViT", dict(channels=10**9, mean=[0.5], std=[0.5]), "projection/kernel has shape"),
    ("ViT", dict(num_classes=10**9), "head/kernel has shape"),
    ("vit", dict(num_hidden_layers=10**9), r"lacks \['vit.encoder.layer.999999999"),
    ("vit", dict(image_size=40_000), "position_embeddings has shape"),
    ("vit", dict(num_labels=10**9), "id2label must be the names of 1000000000 classes"),
    ("vit", dict(num_labels=10**9, id2label=None), "classifier.weight has shape"),
    ("timm", dict(num_classes=10**9, model_args={"in_chans": 10**9}), r"lacks \['patch_embed"),
    ("marian", dict(encoder_layers=10**9), r"lacks \['model.shared.weight', .*layers.999999999"),
    ("marian", dict(d_model=10**30), "dim must be less than 2"),
    ("Transformer", dict(decoder_layers=10**9), r"lacks \['decoder_999999999/"),
    ("Transformer", dict(source_vocab_size=10**9), r"lacks \['source_tokens/embeddings"),
]


@pytest.mark.parametrize("name, settings, message", SIZES)
def test_sizes_that_do_not_fit_the_file_are_refused_before_building(
    name, settings, message, refused
):
    refused(name, lambda folder: change_config(folder, **settings), message)


def test_channels_of_a_published_vit_are_compared_without_a_mean_for_each(refused):
    def change(folder):
        change_config(folder, num_channels=10**9)
        (folder / "preprocessor_config.json").unlink()

    refused("vit", change, "projection.weight has shape")


NAN, INFINITE = float("nan"), float("inf")
SETTINGS = [
    ("GPT", dict(epsilon=NAN), r"epsilon must be in \(0, 1\): nan"),
    ("GPT", dict(epsilon=-1e-5), r"epsilon must be in \(0, 1\): -1e-05"),
    ("GPT", dict(epsilon="1e-5"), "epsilon must be in .*: '1e-5'"),
    ("GPT", dict(dropout=NAN), r"dropout must be in \[0, 1\): nan"),
    ("GPT", dict(dropout=False), r"dropout must be in \[0, 1\): False"),
    ("GPT", dict(num_layers=True), "num_layers must be a positive integer: True"),
    ("GPT", dict(num_layers=2.0), "num_layers must be a positive integer: 2.0"),
    ("GPT", dict(activation={"class_name": "Lambda"}), "activation must be a name"),
    ("GPT", dict(activation="a\0b\nc"), "activation must be a name"),
    ("GPT", dict(search=[1]), "search must be a Search"),
    ("GPT", dict(model=["x" * 5000]), "holds a .*, not a GPT"),
    ("gpt2", dict(layer_norm_epsilon=NAN), r"epsilon must be in \(0, 1\): nan"),
    ("gpt2", dict(resid_pdrop="9" * 3000), "dropout must be in .*: '9999"),
    ("gpt2", dict(eos_token_id=[]), "eos_token_id must be a token, or a list of tokens"),
    ("gpt2", dict(eos_token_id=[[0]]), "end_id must be a token"),
    ("ViT", dict(epsilon=INFINITE), r"epsilon must be in \(0, 1\): inf"),
    ("ViT", dict(stochastic_depth=NAN), "stochastic_depth must be in"),
    ("ViT", dict(mean=[0.5, NAN, 0.5]), "mean must be finite and not negative"),
    ("ViT", dict(mean=[0.5, "0", 0.5]), "mean must be finite and not negative"),
    ("ViT", dict(std=[INFINITE]), "std must be positive and finite"),
    ("ViT", dict(std=[1e-300]), "std must be positive and finite"),
    ("ViT", dict(crop=NAN), r"crop must be in \(0, 1\]: nan"),
    ("vit", dict(layer_norm_eps=-1), "epsilon must be in"),
    ("vit", dict(id2label=["a", "b", "c"]), "id2label must be the names of 3 classes"),
    ("vit", dict(architectures=5), "config.json: argument of type 'int'"),
    ("timm", dict(pretrained_cfg={"std": [0, 1, 1]}), "std must be positive and finite"),
    ("timm", dict(pretrained_cfg={"input_size": 5}), "config.json: 'int' object"),
    ("marian", dict(dropout=NAN), r"dropout must be in \[0, 1\): nan"),
    ("marian", dict(pad_token_id="19"), "config.json: can only concatenate str"),
    ("Transformer", dict(dropout=10**400), "config.json: dropout must be in"),
]


@pytest.mark.parametrize("name, settings, message", SETTINGS)
def test_a_bad_setting_is_refused_in_one_line(name, settings, message, refused):
    refused(name, lambda folder: change_config(folder, **settings), message)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("config.json", "", "config.json is not valid JSON"),
        ("config.json", '{"a": ' * 100_000, "config.json is not valid JSON"),
        ("config.json", '{"dim": 1, "dim": 1}', "not valid JSON: a name occurs twice"),
        ("config.json", f'{{"dim": {"9" * 5000}}}', "config.json is not valid JSON"),
        ("config.json", b"\xff", "config.json is not valid JSON"),
        ("generation_config.json", "[]", "generation_config.json is not a configuration"),
        ("generation_config.json", '{"do_sample": 1}', "do_sample must be True or False: 1"),
        ("generation_config.json", '{"num_beams": "4"}', "generation_config.json: num_beams must"),
        ("generation_config.json", '{"bad_words_ids": 5}', "generation_config.json: 'int' object"),
        (
            "generation_config.json",
            '{"do_sample": true, "top_p": NaN}',
            "generation_config.json: top_p must",
        ),
        ("model.safetensors", b"", "model.safetensors is not a complete safetensors file"),
        ("model.safetensors", b"\xff" * 9, "model.safetensors is not a complete safetensors file"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(file, content, message, refused):
    content = content if isinstance(content, bytes) else content.encode()
    refused("gpt2", lambda folder: (folder / file).write_bytes(content), message)


KINDS = {
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "broken link": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path),
}
FILES = ("config.json", "model.safetensors", "generation_config.json", "tokenizer.json")
FILES += ("vocab.json", "target.spm", "tokenizer.model", "characters.txt", "pytorch_model.bin")


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_not_regular_are_refused_and_named(kind, refused):
    for file in (*FILES, "model.safetensors.index.json", "preprocessor_config.json"):
        error = FileNotFoundError if kind in ("broken link", "loop") else CheckpointError

        def change(folder, file=file):
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "config.json").write_text("{}")
            (folder / file).unlink(missing_ok=True)
            KINDS[kind](folder / file)

        refused("gpt2", change, f"/{file}", error)


def test_an_empty_tensor_and_a_small_table_of_positions_are_refused(refused):
    def empty(folder):
        change_tensors(folder, lambda t: t.update({"transformer.h": np.ones((10**9, 0), "f")}))

    refused("gpt2", empty, "model.safetensors: 'transformer.h' is empty")


def test_non_finite_weights_are_refused_and_named(folders, tmp_path):
    for name, tensor in (("GPT", "block_1/feed_forward/expand/bias"),
                         ("gpt2", "transformer.h.1.mlp.c_fc.bias"),
                         ("vit", "vit.encoder.layer.1.intermediate.dense.bias")):  # fmt: skip
        folder = shutil.copytree(folders / name, tmp_path / name)
        change_tensors(folder, lambda t, tensor=tensor: t[tensor].__setitem__(3, np.nan))
        with pytest.raises(CheckpointError, match=f"safetensors: {tensor} has values .* finite"):
            CLASSES[name].from_pretrained(folder)


def test_numpy_scalars_become_python_numbers():
    config = GPTConfig(
        vocab_size=np.int64(20), dim=np.int32(8), num_layers=np.uint8(1), num_heads=2,
        end_id=np.int64(3), dropout=np.float32(0.5), epsilon=np.float64(1e-3),
    )  # fmt: skip
    assert {type(x) for x in (config.vocab_size, config.dim, config.end_id)} == {int}
    assert type(config.dropout) is type(config.epsilon) is float and config.dropout == 0.5
    assert json.dumps(config.num_layers) == "1"
    vit = ViTConfig(image_size=np.int64(224), mean=np.zeros(3, "float32"), crop=np.float32(0.5))
    assert vit.image_size == (224, 224) and json.dumps([vit.mean, vit.crop, vit.image_size])
    assert hash(vit) == hash(ViTConfig(mean=(0, 0, 0), crop=0.5))


def test_several_end_tokens_are_read(folders, tmp_path):
    for name, ends, stops in (("gpt2", [4, 5, 0], (5, 0)), ("gpt2", [4], ())):
        folder = shutil.copytree(folders / name, tmp_path / name, dirs_exist_ok=True)
        (folder / "generation_config.json").unlink()
        change_config(folder, eos_token_id=ends)
        config = GPT.from_pretrained(folder).config
        assert (config.end_id, config.search.stop_tokens) == (4, stops)
    (folder / "generation_config.json").write_text('{"eos_token_id": [6, 4]}')
    assert GPT.from_pretrained(folder).config.search.stop_tokens == (6,)


def test_a_full_disk_names_the_file_and_leaves_no_part_of_a_model(saved, monkeypatch):
    class Tokenizer:
        vocab_size, source_vocab_size, pad_id, start_id, end_id = 40, None, 0, 1, 2

        def save(self, folder):
            (folder / "tokenizer.model").write_bytes(b"half")
            raise OSError(28, "No space left on device", str(folder / "tokenizer.model"))

    model, before = small(Tokenizer()), sorted(saved.iterdir())
    with pytest.raises(OSError, match="No space left on device: '.*/saved/tokenizer.model'"):
        model.save_pretrained(saved)
    assert sorted(saved.iterdir()) == before
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


def test_lines_for_a_pipe_do_not_go_to_the_progress_bar(monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes standard error for a terminal
    for i in progress_bar("counting")(range(2)):
        print(f"{i}\tone", flush=True)
    out, err = capfd.readouterr()
    assert out == "0\tone\n1\tone\n" and "counting" in err


def test_a_folder_with_a_pipe_for_its_configuration_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(FileExistsError, match="holds something other"):
        small(num_layers=1).save_pretrained(tmp_path)


@pytest.mark.skipif(not TENSORFLOW, reason="tokenizers are TensorFlow's")
def test_a_full_disk_names_the_tokenizers_file(tokenizer, tmp_path):
    from polyhead.data import BytePairs, Characters

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    pairs = BytePairs.train(["a text"], 260)
    for one, file in ((tokenizer, "tokenizer.model"), (pairs, "tokenizer.json"),
                      (Characters("abcd"), "characters.txt")):  # fmt: skip
        resource.setrlimit(resource.RLIMIT_FSIZE, (2, limits[1]))  # bytes
        try:
            with pytest.raises(OSError, match=f"File too large: '{tmp_path / file}'"):
                one.save(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not TENSORFLOW, reason="tokenizers are TensorFlow's")
def test_an_empty_vocabulary_is_refused_and_named(tokenizer, tmp_path):
    from polyhead.data import MarianPieces, Subwords

    table = json.dumps({"<unk>": 0, "</s>": 1, "<pad>": 2})
    (tmp_path / "vocab.json").write_text(table)
    (tmp_path / "source.spm").write_bytes(tokenizer.model)
    for name, cls in (("target.spm", MarianPieces), ("tokenizer.model", Subwords)):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"{name}.* is empty"):
            cls.load(tmp_path)
