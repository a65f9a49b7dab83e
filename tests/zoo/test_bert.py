import numpy as np
import pytest
from keras import ops

from polyhead.zoo import BERT, BERTConfig, TextEncoder

SIZES = dict(
    vocab_size=40, num_layers=2, dim=16, intermediate_dim=24, num_heads=2, max_length=20,
    num_positions=24, pad_id=1, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
ROBERTA = dict(type_vocab_size=1, positions_from_pad=True)
TOKENS = np.array([[5, 6, 7, 8, 9], [4, 3, 2, 6, 5]], "int32")
HEADS = {
    None: (2, 16),
    "classes": (2, 3),
    "score": (2,),
    "tags": (2, 5, 3),
    "spans": (2, 5, 2),
    "tokens": (2, 5, 40),
}


def small(head=None, **overrides):
    count = 3 if head in ("classes", "tags") else 0
    return BERT(BERTConfig(**{**SIZES, "head": head, "num_classes": count, **overrides}))


def array(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize(
    "name, count",
    [
        # Of the published checkpoints, without poolers and heads.
        ("bert-base", 108_891_648),
        ("bert-large", 334_092_288),
        ("bert-tiny", 4_369_408),
        ("bert-mini", 11_104_768),
        ("bert-small", 28_500_992),
        ("bert-medium", 41_110_528),
        ("distilbert-base", 66_362_880),
        ("roberta-base", 124_055_040),
        ("roberta-large", 354_310_144),
        ("minilm-l6", 22_565_376),
    ],
)
def test_presets_have_the_published_parameter_counts(name, count):
    assert BERT.count_parameters(BERT.PRESETS[name]) == count
    if count < 5e6:
        assert BERT.preset(name).count_params() == count


def test_no_preset_is_uncounted():
    assert len(BERT.PRESETS) == 10


def test_a_classification_head_has_the_pooler():
    config = BERTConfig(head="score")
    assert BERT.count_parameters(config) == 109_482_240 + 768 + 1


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", [{}, ROBERTA, dict(type_vocab_size=0, head_activation="relu")])
def test_each_head_has_its_shape_and_weights(head, family):
    model = small(head, **family)
    assert isinstance(model, TextEncoder)
    assert array(model(TOKENS)).shape == HEADS[head]
    assert {v.path: tuple(v.shape) for v in model.weights} == dict(model.shapes(model.config))


@pytest.mark.parametrize("family", [{}, ROBERTA])
def test_padding_changes_nothing(family):
    model = small("tags", **family)
    padded = np.pad(TOKENS, [(0, 0), (0, 3)], constant_values=1)
    found = array(model({"tokens": padded, "types": padded * 0}))[:, :5]
    np.testing.assert_allclose(found, array(model(TOKENS)), atol=1e-6)
    model = small("classes", **family)
    np.testing.assert_allclose(array(model(padded)), array(model(TOKENS)), atol=1e-6)


def test_padding_before_the_text_changes_nothing_in_roberta():
    model = small("tags", **ROBERTA)
    padded = np.pad(TOKENS, [(0, 0), (3, 0)], constant_values=1)
    np.testing.assert_allclose(array(model(padded))[:, 3:], array(model(TOKENS)), atol=1e-6)


def test_types_and_positions_matter():
    model = small("tags")
    first = array(model({"tokens": TOKENS, "types": TOKENS * 0}))
    np.testing.assert_array_equal(first, array(model(TOKENS)))
    assert np.abs(first - array(model({"tokens": TOKENS, "types": TOKENS * 0 + 1}))).max() > 1e-4
    assert np.abs(first[:, ::-1] - array(model(TOKENS[:, ::-1]))).max() > 1e-4


def test_weights_are_initialized_as_in_the_paper():
    model = BERT(BERTConfig(vocab_size=1000, num_layers=1, dim=64, num_heads=2, head="score"))
    for v in model.weights:
        if v.name in ("kernel", "embeddings") and np.prod(v.shape) > 1000:
            assert 0.015 < array(v).std() < 0.02 and np.abs(array(v)).max() <= 0.0401, v.path


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(max_length=25), "max_length must be at most 24, the number of positions: 25"),
        (dict(max_length=23, **ROBERTA), "max_length must be at most 22"),
        (dict(type_vocab_size=-1), "type_vocab_size must be a non-negative integer"),
        (dict(pad_id=40), "pad_id must be a token"),
        (dict(head="other"), "head must be one of"),
        (dict(head_activation="other"), "activation must be a name in Keras"),
        (dict(num_heads=5), "num_heads must divide dim"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BERTConfig(**{**SIZES, **settings})


@pytest.mark.parametrize("family", [{}, ROBERTA])
def test_too_many_tokens_are_refused(family):
    with pytest.raises(ValueError, match="at most 2[42] (positions|tokens): 25"):
        small(**family)(np.full((1, 25), 5))


@pytest.mark.parametrize("head", ["classes", "tokens"])
def test_saved_models_are_equal(head, tmp_path):
    import keras

    model = small(head, **ROBERTA)
    model.save_pretrained(tmp_path / "saved")
    again = BERT.from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    np.testing.assert_array_equal(array(again(TOKENS)), array(model(TOKENS)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(loaded(TOKENS)), array(model(TOKENS)))


def test_quantization_and_lora():
    model = small("classes")
    expected = array(model(TOKENS))
    model.enable_lora(2)
    trained = {v.path for v in model.trainable_variables}
    assert sum(path.startswith("head/") for path in trained) == 4 and len(trained) == 8 + 4
    np.testing.assert_allclose(array(model(TOKENS)), expected, atol=1e-6)
    model = small("classes")
    expected = array(model(TOKENS))
    model.quantize("int8")
    np.testing.assert_allclose(array(model(TOKENS)), expected, atol=0.05)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_close_to_float32(policy):
    model = small("tokens")
    half = BERT(model.config, dtype=policy)
    half.set_weights(model.get_weights())
    found = array(half(TOKENS))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, array(model(TOKENS)), atol=0.05)
