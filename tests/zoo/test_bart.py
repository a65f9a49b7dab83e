import dataclasses

import keras
import numpy as np
import pytest

import polyhead
from polyhead.layers import KeyValueCache
from polyhead.training import CheckpointError, SmoothedCrossEntropy
from polyhead.zoo import BART, BARTConfig, Search
from polyhead.zoo.decoding import ScatterCache
from tests.conftest import TENSORFLOW
from tests.zoo.toy_summarizers import (
    array,
    many_sentences,
    perturb,
    random_tokens,
    small_bart,
    write_roberta,
)

text = pytest.mark.skipif(not TENSORFLOW, reason="tokenizers are TensorFlow's")

# Of the published checkpoints, without the copies of tied embeddings.
COUNTS = {"bart-base": 139_420_416, "bart-large": 406_291_456, "bart-tiny": 1_818_624}
KINDS = {
    "base": {},
    "cnn": dict(logits_bias=True, search=dict(num_beams=2, forced_begin=0, min_new_tokens=3)),
    "shallow": dict(decoder_layers=1, scale_embeddings=True, activation="relu"),
}


def pair(batch=2, length=6, target=5):
    """Tokens of a source and a target; the second source is padded."""
    source, labels = random_tokens(batch, length), random_tokens(batch, target, seed=1)
    source[-1, length - 2 :] = 1
    return {"source": source, "target": labels}


def count(c):
    """Counts parameters by formula."""
    attention = 4 * (c.dim**2 + c.dim)
    feed_forward = 2 * c.dim * c.intermediate_dim + c.intermediate_dim + c.dim
    encoder = attention + feed_forward + 2 * 2 * c.dim
    decoder = 2 * attention + feed_forward + 3 * 2 * c.dim
    sides = 2 * ((c.max_length + 2) * c.dim + 2 * c.dim)  # positions and their norms
    return c.vocab_size * c.dim + sides + c.num_layers * (encoder + decoder)


@pytest.mark.parametrize("name", COUNTS)
def test_presets_have_the_published_parameter_counts(name):
    assert set(COUNTS) == set(BART.PRESETS)
    assert BART.count_parameters(BART.PRESETS[name]) == count(BART.PRESETS[name]) == COUNTS[name]


def test_a_built_preset_has_the_same_count():
    assert BART.preset("bart-tiny").count_params() == COUNTS["bart-tiny"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_shapes_are_those_of_the_built_weights(kind):
    model = small_bart(**KINDS[kind])
    assert {v.path: tuple(v.shape) for v in model.weights} == dict(BART.shapes(model.config))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", [KeyValueCache, ScatterCache])
def test_cached_decoding_equals_the_full_forward(kind, cache):
    model, inputs = perturb(small_bart(**KINDS[kind])), pair(target=9)
    full = array(model(inputs))
    mask = model.source_mask(inputs["source"])
    memories = model.project(model.encode(inputs["source"], mask))
    for sizes in ([1] * 9, [4, 1, 3, 1]):  # several tokens per step too
        caches = [cache.empty(2, 11, 3, 8, "float32") for _ in model.decoder]
        start = 0
        for size in sizes:
            tokens = inputs["target"][:, start : start + size]
            logits, caches = model.decode(tokens, memories, mask, caches)
            np.testing.assert_allclose(array(logits), full[:, start : start + size], atol=1e-4)
            start += size


def test_padding_of_the_source_changes_nothing():
    model, inputs = perturb(small_bart()), pair()
    padded = {**inputs, "source": np.pad(inputs["source"], [(0, 0), (0, 3)], constant_values=1)}
    np.testing.assert_allclose(array(model(padded)), array(model(inputs)), atol=1e-4)


def test_future_tokens_cannot_change_the_past():
    model, inputs = perturb(small_bart()), pair()
    changed = inputs["target"].copy()
    changed[:, 3:] = 7
    before, after = (array(model({**inputs, "target": t})) for t in (inputs["target"], changed))
    np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-5)
    assert np.abs(before[:, 3:] - after[:, 3:]).max() > 1e-2


def test_the_first_rows_of_the_positions_are_not_used():
    model, inputs = small_bart(), pair()
    expected = array(model(inputs))
    for table in (model.source_positions.embeddings, model.positions.embeddings):
        values = np.array(array(table))
        values[:2] = 9
        table.assign(values)
    np.testing.assert_array_equal(array(model(inputs)), expected)


def test_too_many_tokens_are_refused():
    model = small_bart(max_length=8)
    model(pair(length=8, target=8))
    for sizes in (dict(length=9), dict(target=9)):
        with pytest.raises(ValueError, match="at most 10 positions: 11"):
            model(pair(**sizes))


@text
def test_targets_have_no_more_tokens_than_positions():
    model = small_bart(max_length=16)
    assert [model.room(length) for length in (1, 3, 4, 16)] == [12, 16, 16, 16]
    assert array(model.room(np.array([1, 3, 16]))).tolist() == [12, 16, 16]
    source = random_tokens(2, 16)
    for options in ({}, dict(length=16)):
        assert array(model.find(source, **options).tokens).shape == (2, 1, 16)


@pytest.fixture(scope="module")
def pieces(sample, tmp_path_factory):
    """A folder with a tokenizer of 300 tokens in BART's files; the mask is the last."""
    folder = tmp_path_factory.mktemp("pieces")
    write_roberta(folder, sample.sources, 300)
    return folder


@pytest.fixture(scope="module")
def tokenizer(pieces):
    from polyhead.data import BytePairs

    return BytePairs.load(pieces)


@text
def test_limits_of_lengths_hold_for_texts(tokenizer):
    model = perturb(small_bart(tokenizer, max_length=16))
    with pytest.warns(UserWarning, match="1 of 1 sources have more than 16 tokens and were trunc"):
        model.generate([many_sentences(5)], max_new_tokens=10**6)
    assert [length for _, length in model._searches] == [16]
    assert model.generate([""]) == [""]


@text
@pytest.mark.parametrize(
    "written", [pytest.param("polyhead", marks=pytest.mark.slow), "huggingface"]
)
def test_a_mask_without_an_embedding_is_left_out(pieces, tokenizer, written, tmp_path):
    """As of bart-large-cnn, whose tokenizer has one token more than the model."""
    smaller = small_bart(tokenizer.without_mask(), vocab_size=299)
    smaller.save_pretrained(tmp_path, format=written)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    for file in pieces.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = polyhead.load(tmp_path)
    assert tokenizer.mask_id == 299 == model.config.vocab_size == model.tokenizer.vocab_size
    assert model.tokenizer.mask_id is None and model.tokenizer.pad_id == 1
    texts = ["A dog <mask> runs.", "Two men."]
    rows = model.tokenizer.encode(texts).to_list()
    assert max(map(max, rows)) < 299 and rows[1] == tokenizer.encode(texts).to_list()[1]
    assert rows[1][0] == 0 and rows[1][-1] == 2
    assert model.summarize(texts, max_new_tokens=4) == smaller.summarize(texts, max_new_tokens=4)
    model.save_pretrained(tmp_path / "again")
    again = polyhead.load(tmp_path / "again")
    assert again.tokenizer.encode(texts).to_list() == rows


@text
def test_a_mask_with_an_embedding_is_kept(pieces, tokenizer, tmp_path):
    small_bart(tokenizer).save_pretrained(tmp_path)
    model = polyhead.load(tmp_path)
    assert model.tokenizer.mask_id == 299 and model.config.vocab_size == 300
    small_bart(tokenizer, vocab_size=304).save_pretrained(tmp_path)  # padded embeddings
    assert polyhead.load(tmp_path).tokenizer.mask_id == 299


@text
def test_a_tokenizer_larger_by_more_than_the_mask_is_refused(pieces, tmp_path):
    small_bart(vocab_size=298).save_pretrained(tmp_path)
    for file in pieces.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises((ValueError, CheckpointError), match="vocab_size 300 and 298"):
        polyhead.load(tmp_path)


def test_the_first_token_can_be_forced():
    model, source = perturb(small_bart()), random_tokens(3, 6)
    for beams in (1, 3):
        search = Search(num_beams=beams, forced_begin=0, min_new_tokens=4, max_new_tokens=8)
        tokens = array(model.find(source, search).tokens)
        assert (tokens[..., 0] == 0).all() and (tokens[..., 1:4] != 2).all()
    free = dataclasses.replace(search, forced_begin=None)
    assert (array(model.find(source, free).tokens)[..., 0] != 0).any()


@text
def test_the_forced_token_is_no_part_of_a_summary(tokenizer):
    search = dict(forced_begin=0, max_new_tokens=6, min_new_tokens=3)
    model = perturb(small_bart(tokenizer, search=search))
    found = model.summarize(["A dog runs.", "Two men."])
    assert all(isinstance(x, polyhead.Summary) and "<s>" not in x for x in found)
    assert found == model.generate(["A dog runs.", "Two men."])


@text
def test_saved_models_are_equal(tokenizer, tmp_path):
    model, inputs = perturb(small_bart(tokenizer, **KINDS["cnn"])), pair()
    model.save_pretrained(tmp_path / "saved")
    again = polyhead.load(tmp_path / "saved")
    assert isinstance(again, BART) and again.config == model.config
    np.testing.assert_array_equal(array(again(inputs)), array(model(inputs)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(loaded(inputs)), array(model(inputs)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_close_to_float32(policy):
    full, inputs = small_bart(), pair()
    half = BART(full.config, dtype=policy)
    half.set_weights(full.get_weights())
    logits = half(inputs)
    assert "float32" in str(logits.dtype)
    np.testing.assert_allclose(array(logits), array(full(inputs)), atol=0.1)


def test_dropout_is_active_in_training_only():
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        model, inputs = perturb(small_bart(**{name: 0.5})), pair()
        plain, again, trained = (
            array(model(inputs, training=training)) for training in (False, False, True)
        )
        np.testing.assert_array_equal(plain, again)
        assert np.abs(trained - plain).max() > 0.05, name


def test_a_new_model_predicts_all_tokens_with_similar_probability():
    model = small_bart(vocab_size=2000, dim=128, intermediate_dim=256, num_heads=4)
    random = np.random.default_rng(0)
    tokens, labels = random.integers(3, 2000, (2, 4, 20)).astype("int32")
    logits = model({"source": tokens, "target": tokens})
    loss = float(SmoothedCrossEntropy(0.0)(labels, logits))
    assert loss == pytest.approx(np.log(2000), abs=0.5)
    for v in model.weights:
        if v.name in ("kernel", "embeddings"):
            assert array(v).std() == pytest.approx(0.02, rel=0.1), v.path


@pytest.mark.slow
def test_it_learns_to_copy():
    model = small_bart(vocab_size=12, num_layers=1)
    source = np.random.default_rng(0).integers(3, 12, (16, 5)).astype("int32")
    source[:, -1] = 2
    target = np.pad(source[:, :-1], [(0, 0), (1, 0)], constant_values=2)
    model.compile(keras.optimizers.Adam(0.02))
    history = model.fit(
        {"source": source, "target": target}, source, batch_size=16, epochs=50, verbose=0
    )
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    tokens = array(model.find(source).tokens)[:, 0, :5]
    assert (tokens == source).all(1).mean() > 0.9


@text
def test_attention_has_weights_for_each_token(tokenizer):
    model = perturb(small_bart(tokenizer))
    alignment = model.attention("The dog sees", "a cat runs")
    assert alignment.source[0] == "<s>" and alignment.target[-1] == "</s>"
    assert alignment.weights.shape == (2, 3, len(alignment.target), len(alignment.source))
    np.testing.assert_allclose(alignment.weights.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_heads=5), "num_heads must divide dim: 24 / 5"),
        (dict(start_id=40), "start_id must be a token, from 0 to 39"),
        (dict(attention_dropout=1.0), "attention_dropout must be in"),
        (dict(search=dict(num_beams=50)), "num_beams must be at most the vocabulary's size, 40"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small_bart(**settings)


def test_the_configuration_survives_keras():
    model = small_bart(**KINDS["cnn"])
    again = BART.from_config(model.get_config())
    assert again.config == model.config and isinstance(again.config, BARTConfig)
