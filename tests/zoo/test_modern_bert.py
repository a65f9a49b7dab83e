import numpy as np
import pytest
from keras import ops

from polyhead.zoo import ModernBERT, ModernBERTConfig

SIZES = dict(
    vocab_size=40, num_layers=5, dim=16, intermediate_dim=24, num_heads=2, max_length=64, pad_id=1,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(2, 40, (2, 12)).astype("int32")
HEADS = {
    None: (2, 16),
    "classes": (2, 3),
    "score": (2,),
    "tags": (2, 12, 3),
    "spans": (2, 12, 2),
    "tokens": (2, 12, 40),
}


def small(head=None, **overrides):
    count = 3 if head in ("classes", "tags") else 0
    settings = {**SIZES, "head": head, "num_classes": count, **overrides}
    return ModernBERT(ModernBERTConfig(**settings))


def array(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("name, count", [("base", 149_014_272), ("large", 394_781_696)])
def test_presets_have_the_published_parameter_counts(name, count):
    assert ModernBERT.count_parameters(ModernBERT.PRESETS[name]) == count
    assert len(ModernBERT.PRESETS) == 2


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("bias", [False, True])
def test_each_head_has_its_shape_and_weights(head, bias):
    model = small(head, head_bias=bias)
    assert array(model(TOKENS)).shape == HEADS[head]
    assert {v.path: tuple(v.shape) for v in model.weights} == dict(model.shapes(model.config))


def test_the_first_block_does_not_normalize_the_input_of_attention():
    paths = {v.path for v in small().weights}
    assert "block_1/attention_norm/gamma" in paths and "block_0/attention_norm/gamma" not in paths
    assert not [path for path in paths if path.endswith(("bias", "beta"))]


@pytest.mark.parametrize("window, reach", [(8, 4), (9, 4), (2, 1)])
def test_local_blocks_see_half_of_the_window_on_either_side(window, reach):
    model = small(window=window, num_layers=2)
    seen = {}

    def record(x, mask, rotary, training):
        seen["mask"] = array(mask)
        return x

    model.blocks[1].call = record
    model.features(TOKENS[:1])
    mask = np.broadcast_to(seen["mask"], (1, 1, 12, 12))[0, 0]
    distance = np.abs(np.arange(12)[:, None] - np.arange(12))
    np.testing.assert_array_equal(mask, distance <= reach)


def test_tokens_beyond_the_windows_matter_only_through_global_blocks():
    far = TOKENS.copy()
    far[:, -1] = (far[:, -1] + 1) % 38 + 2
    model = small("tags", window=4)
    assert np.abs(array(model(far)) - array(model(TOKENS)))[:, 0].max() > 1e-5


def test_padding_changes_nothing():
    for head in ("tags", "classes", "score", None):
        for pooling in ("token", "mean"):
            model = small(head, window=4, head_pooling=pooling)
            padded = np.pad(TOKENS, [(0, 0), (0, 9)], constant_values=1)
            found, expected = array(model(padded)), array(model(TOKENS))
            found = found[:, :12] if head == "tags" else found
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(head_pooling="max"), "head_pooling must be 'token' or 'mean': 'max'"),
        (dict(theta=0.5), "theta must be above 1"),
        (dict(num_heads=16), "rotary positions need heads of an even size: 16 / 16"),
        (dict(global_every=0), "global_every must be a positive integer"),
        (dict(head_bias=1), "head_bias must be True or False"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModernBERTConfig(**{**SIZES, **settings})


def test_saved_models_are_equal(tmp_path):
    import keras

    model = small("tags", window=4)
    model.save_pretrained(tmp_path / "saved")
    again = ModernBERT.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(array(again(TOKENS)), array(model(TOKENS)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(loaded(TOKENS)), array(model(TOKENS)))


def test_half_precision_is_close_to_float32():
    model = small("tokens")
    half = ModernBERT(model.config, dtype="mixed_bfloat16")
    half.set_weights(model.get_weights())
    np.testing.assert_allclose(array(half(TOKENS)), array(model(TOKENS)), atol=0.05)
