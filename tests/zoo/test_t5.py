import keras
import numpy as np
import pytest
from keras import ops

import polyhead
from polyhead.layers import KeyValueCache
from polyhead.training import SmoothedCrossEntropy
from polyhead.zoo import T5, T5Config
from polyhead.zoo.decoding import ScatterCache
from tests.conftest import TENSORFLOW, peers
from tests.zoo.toy_summarizers import NEWER, array, perturb, random_tokens, small_t5

text = pytest.mark.skipif(not TENSORFLOW, reason="tokenizers are TensorFlow's")

# Of the published checkpoints, without the copies of tied embeddings.
COUNTS = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
    "t5-tiny": 2_836_224,
}
KINDS = {"t5": {}, "t5-1.1": NEWER, "shallow": dict(decoder_layers=1, scale_logits=False)}


def pair(batch=2, length=6, target=5):
    """Tokens of a source and a target; the second source is padded."""
    source, labels = random_tokens(batch, length), random_tokens(batch, target, seed=1)
    source[-1, length - 2 :] = 0
    return {"source": source, "target": labels}


def count(c):
    """Counts parameters by formula."""
    attention = 4 * c.dim * c.num_heads * c.head_dim
    feed_forward = (3 if c.gated else 2) * c.dim * c.intermediate_dim
    encoder = attention + feed_forward + 2 * c.dim
    decoder = 2 * attention + feed_forward + 3 * c.dim
    words = (1 if c.tied else 2) * c.vocab_size * c.dim
    return words + c.num_layers * (encoder + decoder) + 2 * c.num_buckets * c.num_heads + 2 * c.dim


@pytest.mark.parametrize("name", COUNTS)
def test_presets_have_the_published_parameter_counts(name):
    assert set(COUNTS) == set(T5.PRESETS)
    config = T5.PRESETS[name]
    assert T5.count_parameters(config) == count(config) == COUNTS[name]


def test_a_built_preset_has_the_same_count():
    assert T5.preset("t5-tiny").count_params() == COUNTS["t5-tiny"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_shapes_are_those_of_the_built_weights(kind):
    model = small_t5(**KINDS[kind])
    assert {v.path: tuple(v.shape) for v in model.weights} == dict(T5.shapes(model.config))
    assert not any(v.name == "bias" for v in model.weights)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", [KeyValueCache, ScatterCache])
def test_cached_decoding_equals_the_full_forward(kind, cache):
    model, inputs = perturb(small_t5(**KINDS[kind])), pair(target=9)
    full = array(model(inputs))
    mask = model.source_mask(inputs["source"])
    memories = model.project(model.encode(inputs["source"], mask))
    for sizes in ([1] * 9, [4, 1, 3, 1]):  # several tokens per step too
        caches = [cache.empty(2, 11, 3, 8, "float32") for _ in model.decoder]
        start = 0
        for size in sizes:
            tokens = inputs["target"][:, start : start + size]
            logits, caches = model.decode(tokens, memories, mask, caches)
            expected = full[:, start : start + size]
            np.testing.assert_allclose(array(logits), expected, atol=1e-4)
            start += size


def test_padding_of_the_source_changes_nothing():
    model, inputs = perturb(small_t5()), pair()
    padded = {**inputs, "source": np.pad(inputs["source"], [(0, 0), (0, 3)])}
    np.testing.assert_allclose(array(model(padded)), array(model(inputs)), atol=1e-4)


def test_future_tokens_cannot_change_the_past():
    model, inputs = perturb(small_t5()), pair()
    changed = inputs["target"].copy()
    changed[:, 3:] = 7
    before, after = (array(model({**inputs, "target": t})) for t in (inputs["target"], changed))
    np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-5)
    assert np.abs(before[:, 3:] - after[:, 3:]).max() > 1e-2


def test_the_order_of_tokens_matters_only_by_the_biases():
    model, inputs = perturb(small_t5()), pair(batch=1, length=4)
    inputs["source"] = np.array([[5, 6, 7, 8]], "int32")
    turned = {**inputs, "source": inputs["source"][:, ::-1]}
    assert np.abs(array(model(turned)) - array(model(inputs))).max() > 1e-2
    model.encoder_bias.embeddings.assign(model.encoder_bias.embeddings * 0)
    np.testing.assert_allclose(array(model(turned)), array(model(inputs)), atol=1e-4)


@text
def test_attention_weights_use_the_bias(tokenizer):
    model = perturb(small_t5(tokenizer))
    source, target = "The dog sees", "a cat runs"
    alignment = model.attention(source, target)
    sizes = (2, 3, len(alignment.target), len(alignment.source))
    assert alignment.weights.shape == sizes and alignment.source[-1] == "</s>"
    np.testing.assert_allclose(alignment.weights.sum(-1), 1, atol=1e-5)
    longer = model.attention(source, target + " home")  # later tokens change nothing
    np.testing.assert_allclose(longer.weights[:, :, :3], alignment.weights[:, :, :3], atol=1e-5)
    assert model.attention(source, target, prefix="x ").source != alignment.source
    # The first target token attends to itself alone, whatever the bias.
    bias = model.decoder_bias.embeddings
    bias.assign(bias + np.random.default_rng(0).normal(size=bias.shape))
    change = np.abs(model.attention(source, target).weights - alignment.weights).max((0, 1, 3))
    assert change[0] < 1e-5 and change[1:].min() > 1e-4


def test_attention_weights_are_those_of_hugging_face(tmp_path, monkeypatch):
    torch, transformers = peers()
    model, inputs = perturb(small_t5()), pair(batch=1)
    inputs["source"] = inputs["source"][:, :4]
    model.save_pretrained(tmp_path, format="huggingface")
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = theirs.eval()(
            input_ids=torch.tensor(inputs["source"]).long(),
            decoder_input_ids=torch.tensor(inputs["target"]).long(),
            output_attentions=True,
        ).cross_attentions
    mask = model.source_mask(inputs["source"])
    memory, x = model.encode(inputs["source"], mask), model.embed_target(inputs["target"])
    shared = model.decoder_inputs(x, mask)
    for block, weights in zip(model.decoder, expected, strict=True):
        found = array(block.cross_attention_weights(x, memory, **shared))
        np.testing.assert_allclose(found, weights.numpy(), atol=1e-5)
        x = block(x, memory=memory, **shared)


def test_float16_is_refused():
    for policy in ("mixed_float16", "float16"):
        with pytest.raises(ValueError, match=f"use mixed_bfloat16 instead of {policy}"):
            T5(small_t5().config, dtype=policy)


def test_bfloat16_is_close_to_float32():
    full, inputs = small_t5(), pair()
    half = T5(full.config, dtype="mixed_bfloat16")
    half.set_weights(full.get_weights())
    logits = half(inputs)
    assert "float32" in str(logits.dtype)
    np.testing.assert_allclose(array(logits), array(full(inputs)), atol=0.15)
    assert np.isfinite(array(half.find(inputs["source"]).score)).all()


@text
def test_a_prefix_is_added_to_texts_that_are_not_empty(tokenizer):
    model = perturb(small_t5(tokenizer, prefix="it is "))
    texts = ["The dog sees a cat.", "", "Two men."]
    prefixed = ["it is " + text if text else "" for text in texts]
    settings = dict(max_new_tokens=8)
    expected = model.generate(prefixed, **settings)
    assert expected[1] == "" and expected[1].score == 0 and expected[0]
    summaries = model.summarize(texts, **settings)
    for found in (summaries, model.generate(texts, prefix="it is ", **settings)):
        assert found == expected
        assert [x.score for x in found] == [x.score for x in expected]
    assert model.generate(texts, **settings) != expected
    assert model.translate(texts, **settings) == model.generate(texts, **settings)
    assert isinstance(summaries[0], polyhead.Summary) and isinstance(
        expected[0], polyhead.Generation
    )
    with pytest.raises(TypeError, match="prefix must be a string: None"):
        model.generate(texts, prefix=None)


@text
@pytest.mark.parametrize("kind", ["t5", pytest.param("t5-1.1", marks=pytest.mark.slow)])
def test_saved_models_are_equal(tokenizer, kind, tmp_path):
    prefix = "say: "
    model, inputs = perturb(small_t5(tokenizer, prefix=prefix, **KINDS[kind])), pair()
    model.save_pretrained(tmp_path / "saved")
    again = polyhead.load(tmp_path / "saved")
    assert isinstance(again, T5) and again.config == model.config
    np.testing.assert_array_equal(array(again(inputs)), array(model(inputs)))
    assert again.generate("A dog.", max_new_tokens=5) == model.generate("A dog.", max_new_tokens=5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(loaded(inputs)), array(model(inputs)))


def test_dropout_is_active_in_training_only():
    model, inputs = small_t5(dropout=0.5), pair()
    plain, again, first, second = (
        array(model(inputs, training=training)) for training in (False, False, True, True)
    )
    np.testing.assert_array_equal(plain, again)
    assert np.abs(first - plain).max() > 0.1 and np.abs(first - second).max() > 0.1
    model = small_t5()
    plain, trained = (array(model(inputs, training=training)) for training in (False, True))
    np.testing.assert_allclose(trained, plain, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_model_predicts_all_tokens_with_similar_probability(kind):
    sizes = dict(vocab_size=2000, dim=128, intermediate_dim=256, num_heads=4, head_dim=32)
    model = small_t5(**{**sizes, **KINDS[kind]})
    random = np.random.default_rng(0)
    tokens = random.integers(3, 2000, (4, 20)).astype("int32")
    labels = random.integers(3, 2000, (4, 20))
    logits = model({"source": tokens, "target": tokens})
    assert 0.3 < array(logits).std() < 3
    loss = float(SmoothedCrossEntropy(0.0)(labels, logits))
    assert loss == pytest.approx(np.log(2000), abs=1)


def test_weights_are_initialized_as_in_the_papers_code():
    sizes = dict(vocab_size=1000, dim=64, intermediate_dim=256, num_heads=4, head_dim=32)
    for kind, tokens in (("t5", 1), ("t5-1.1", 64**-0.5)):
        model = small_t5(**sizes, **KINDS[kind])
        expected = dict(
            query=(64 * 32) ** -0.5, key=64**-0.5, value=64**-0.5, output=(4 * 32) ** -0.5,
            expand=64**-0.5, gate=64**-0.5, contract=256**-0.5, tokens=tokens, head=64**-0.5,
        )  # fmt: skip
        for v in model.weights:
            layer = v.path.split("/")[-2]
            if v.name == "gamma":
                np.testing.assert_array_equal(array(v), 1)
            elif not layer.endswith("bias"):
                assert array(v).std() == pytest.approx(expected[layer], rel=0.1), v.path


def test_it_learns_to_copy():
    model = small_t5(vocab_size=12, num_layers=1, **NEWER)
    source = np.random.default_rng(0).integers(3, 12, (16, 5)).astype("int32")
    source[:, -1] = 1
    target = np.pad(source[:, :-1], [(0, 0), (1, 0)])
    model.compile(keras.optimizers.Adam(0.01))
    history = model.fit(
        {"source": source, "target": target}, source, batch_size=16, epochs=80, verbose=0
    )
    assert history.history["loss"][-1] < 0.3 * history.history["loss"][0]
    tokens = array(model.find(source).tokens)[:, 0, :5]
    assert (tokens == source).all(1).mean() > 0.9


def test_lora_and_quantization():
    model, inputs = small_t5(**NEWER), pair()
    expected = array(model(inputs))
    model.enable_lora(2)
    assert sum(v.trainable for v in model.weights) == 4 * (2 + 2 * 2)
    np.testing.assert_allclose(array(model(inputs)), expected, atol=1e-5)
    model = small_t5(**NEWER)
    expected = array(model(inputs))
    model.quantize("int8")
    np.testing.assert_allclose(array(model(inputs)), expected, atol=0.15)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_buckets=6), "num_buckets must be a multiple of 4, .*: 6, 20"),
        (dict(max_distance=4), "max_distance larger than half of it: 8, 4"),
        (dict(prefix=None), "prefix must be a string: None"),
        (dict(pad_id=40), "pad_id must be a token, from 0 to 39"),
        (dict(gated=1), "gated must be True or False"),
        (dict(activation="other"), "activation must be a name in Keras"),
        (dict(decoder_layers=0), "decoder_layers must be a positive integer, or None"),
        (dict(search=dict(num_beams=50)), "num_beams must be at most the vocabulary's size, 40"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small_t5(**settings)


def test_the_configuration_survives_keras():
    model = small_t5(decoder_layers=1, search=dict(num_beams=2), **NEWER)
    again = T5.from_config(model.get_config())
    assert again.config == model.config and isinstance(again.config, T5Config)
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(array(again(pair())), array(model(pair())))
    assert ops.shape(again(pair())) == (2, 5, 40)
