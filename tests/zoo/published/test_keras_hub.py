import json

import keras
import numpy as np
import pytest

from polyhead.training import CheckpointError
from polyhead.zoo import GPT, ViT, ViTConfig
from polyhead.zoo.published.keras_hub import from_keras_hub, to_keras_hub

keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed: [keras-nlp]")
if keras.config.backend() != "tensorflow":
    pytest.skip("KerasHub's tokenizers run in TensorFlow's graph", allow_module_level=True)

TEXTS = ["The dog sees the cat.", "Two men, and it's 12 o'clock?", "  naïve café\n"]
PIXELS = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")


@pytest.fixture(scope="module")
def gpt(sample):
    from polyhead.data import BytePairs

    keras.utils.set_random_seed(2)
    pairs = BytePairs.train(sample.sources, 300)
    backbone = keras_hub.models.GPT2Backbone(300, 2, 2, 16, 24, max_sequence_length=24)
    for v in backbone.weights:  # biases too
        v.assign(keras.random.normal(v.shape, stddev=0.3))
    tokenizer = keras_hub.models.GPT2Tokenizer(
        {**pairs.vocabulary, **pairs.special}, [" ".join(pair) for pair in pairs.merges]
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
        tokenizer, sequence_length=24, add_start_token=False
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor)
    model.compile(sampler="greedy")
    return model


def logits(model, tokens):
    return np.array(model({"token_ids": tokens, "padding_mask": np.ones_like(tokens)}))


def test_gpt2_gives_the_same_logits_and_text(gpt):
    ours = from_keras_hub(gpt)
    assert type(ours) is GPT and ours.count_params() == gpt.count_params()
    tokens = np.random.default_rng(1).integers(0, 300, (2, 9))
    np.testing.assert_allclose(ours(tokens), logits(gpt, tokens), atol=1e-5)
    tokenizer = gpt.preprocessor.tokenizer
    assert ours.tokenizer.encode(TEXTS).to_list() == [list(map(int, t)) for t in tokenizer(TEXTS)]
    start = len(tokenizer(TEXTS[0]))
    tokens = np.zeros((1, 24), "int32")
    tokens[0, :start] = tokenizer(TEXTS[0])
    inputs = {"token_ids": tokens, "padding_mask": np.arange(24)[None] < start}
    bare = keras_hub.models.GPT2CausalLM(gpt.backbone)
    bare.compile(sampler="greedy")
    [ids] = np.array(bare.generate(inputs, stop_token_ids=None)["token_ids"])
    expected = ours.tokenizer.text(ids[start:].tolist()).decode("utf-8", "replace")
    assert ours.generate(TEXTS[0], 24 - start, temperature=0) == expected


def test_gpt2_round_trips(gpt):
    back = to_keras_hub(from_keras_hub(gpt))
    for old, new in zip(gpt.weights, back.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert back.preprocessor.tokenizer(TEXTS[0]).tolist() == (
        gpt.preprocessor.tokenizer(TEXTS[0]).tolist()
    )


def test_a_preset_is_read_from_its_folder(gpt, tmp_path):
    gpt.save_to_preset(str(tmp_path / "gpt2"))
    ours = GPT.from_pretrained(tmp_path / "gpt2", dropout=0.0)
    assert ours.config.dropout == 0 and ours.generate(TEXTS[:1], 3) is not None
    tokens = np.array([[5, 6, 7]])
    np.testing.assert_allclose(ours(tokens), logits(gpt, tokens), atol=1e-5)
    with pytest.raises(CheckpointError, match="holds a GPT, not a ViT"):
        ViT.from_pretrained(tmp_path / "gpt2")
    file = tmp_path / "gpt2" / "task.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "module": "os"}))
    with pytest.raises(CheckpointError, match="task.json names code outside of Keras: 'os'"):
        GPT.from_pretrained(tmp_path / "gpt2")


def test_vit_round_trips(tmp_path):
    config = ViTConfig(
        image_size=32, patch_size=8, num_layers=2, dim=16, intermediate_dim=24, num_heads=2,
        num_classes=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4),
    )  # fmt: skip
    model = ViT(config)
    for v in model.weights:
        v.assign(keras.random.normal(v.shape, stddev=0.3))
    theirs = to_keras_hub(model)
    pixels = theirs.preprocessor.image_converter(PIXELS)
    np.testing.assert_allclose(theirs(pixels), model(PIXELS), atol=1e-5)
    theirs.save_to_preset(str(tmp_path / "vit"))
    for again in (from_keras_hub(theirs), ViT.from_pretrained(tmp_path / "vit")):
        np.testing.assert_allclose(again(PIXELS), model(PIXELS), atol=1e-5)
    backbone = to_keras_hub(ViT(ViTConfig(**{**vars(config), "num_classes": 0})))
    assert type(backbone).__name__ == "ViTBackbone"


def test_settings_that_keras_hub_lacks_are_refused(gpt):
    with pytest.raises(ValueError, match="needs pooling 'token': 'mean'"):
        to_keras_hub(ViT.preset("nano-4"))
    with pytest.raises(
        TypeError, match="from_keras_hub supports KerasHub's GPT-2 and ViT, not Dense"
    ):
        from_keras_hub(keras.layers.Dense(1))
