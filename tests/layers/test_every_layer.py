"""Tests of every public layer: configuration, precision, and Keras's files."""

import inspect
import json

import keras
import numpy as np
import pytest
from keras import ops

from polyhead import layers
from polyhead.layers import (
    ClassToken,
    Dropout,
    EvoformerBlock,
    FeedForward,
    FoldingBlock,
    GatedFeedForward,
    GridPositions,
    InvariantPointAttention,
    MSAColumnAttention,
    MSAGlobalColumnAttention,
    MSARowAttention,
    MultiHeadAttention,
    OuterProductMean,
    PatchEmbedding,
    PositionalEmbedding,
    RelativeBias,
    RMSNorm,
    Rotary,
    StructureModule,
    TokenEmbedding,
    TransformerBlock,
    TriangleAttention,
    TriangleMultiplication,
)

X = np.random.default_rng(0).normal(size=(2, 4, 8)).astype("float32")
MEMORY = np.random.default_rng(1).normal(size=(2, 3, 8)).astype("float32")
TOKENS = np.array([[1, 2, 3, 0], [4, 4, 0, 0]], "int32")
BIAS = np.random.default_rng(2).normal(size=(1, 4, 4, 4)).astype("float32")
PAIRS = np.random.default_rng(4).normal(size=(2, 4, 4, 8)).astype("float32")
ROWS = np.random.default_rng(5).normal(size=(2, 3, 4, 8)).astype("float32")
FRAMES = np.tile(np.eye(3, dtype="float32"), (2, 4, 1, 1)), X[..., :3]
TABLES = np.random.default_rng(3).normal(size=(2, 4, 1, 2)).astype("float32")
DECODER = dict(
    num_kv_heads=2, head_dim=4, causal=True, window=3, use_bias=False, output_bias=True,
    gated=True, scale=0.5, softcap=5.0,
)  # fmt: skip


# The inputs of each layer, with a function that creates it from keyword arguments.
CASES = {
    "ClassToken": (X, ClassToken, {}),
    "Dropout": (X, Dropout, dict(rate=0.1)),
    "EvoformerBlock": (
        dict(m=ROWS, z=PAIRS, m_mask=np.ones((2, 3, 4), "bool"), mask=TOKENS > 0),
        EvoformerBlock,
        dict(num_heads=4, num_pair_heads=2, outer_dim=3, dropout=0.1, pair_dropout=0.2),
    ),
    "FeedForward": (X, FeedForward, dict(intermediate_dim=6, activation="gelu_tanh")),
    "FoldingBlock": (
        dict(s=X, z=PAIRS, mask=TOKENS > 0),
        FoldingBlock,
        dict(num_heads=4, num_pair_heads=2, dropout=0.1, chunk=3),
    ),
    "GatedFeedForward": (X, GatedFeedForward, dict(intermediate_dim=6, activation="silu")),
    "GridPositions": (X, GridPositions, dict(grid=(2, 2))),
    "InvariantPointAttention": (
        dict(s=X, z=PAIRS, frames=FRAMES),
        InvariantPointAttention,
        dict(num_heads=2, head_dim=4, query_points=2, value_points=3),
    ),
    "MSAColumnAttention": (ROWS, MSAColumnAttention, dict(num_heads=2, chunk=3)),
    "MSAGlobalColumnAttention": (ROWS, MSAGlobalColumnAttention, dict(num_heads=2)),
    "MSARowAttention": (dict(m=ROWS, z=PAIRS), MSARowAttention, dict(num_heads=2, chunk=2)),
    "MultiHeadAttention": (dict(x=X, memory=MEMORY), MultiHeadAttention, dict(num_heads=4)),
    "MultiHeadAttention, decoder": (
        dict(x=X, bias=BIAS, rotary=(TABLES, TABLES)),
        MultiHeadAttention,
        dict(num_heads=4, qk_norm=RMSNorm(1e-5, offset=1.0), **DECODER),
    ),
    "OuterProductMean": (ROWS, OuterProductMean, dict(pair_dim=6, intermediate_dim=3, chunk=3)),
    "PatchEmbedding": (
        np.linspace(-1, 1, 2 * 8 * 8 * 3, dtype="float32").reshape(2, 8, 8, 3),
        PatchEmbedding,
        dict(patch_size=4, dim=8),
    ),
    "PositionalEmbedding": (X, PositionalEmbedding, dict(kind="learned", max_length=4)),
    "PositionalEmbedding, sinusoidal": (X, PositionalEmbedding, {}),
    "RMSNorm": (X, RMSNorm, dict(epsilon=1e-5)),
    "RelativeBias": (
        dict(queries=np.arange(4, dtype="int32"), keys=np.arange(5, dtype="int32")),
        RelativeBias,
        dict(num_heads=4),
    ),
    "Rotary": (
        np.arange(8, dtype="int32").reshape(2, 4),
        Rotary,
        dict(head_dim=4, kind="longrope", factor=2.0, original_length=4, short_factors=(1.0, 2.0),
             long_factors=(3.0, 4.0)),
    ),
    "StructureModule": (
        dict(s=X, z=PAIRS, mask=TOKENS > 0),
        StructureModule,
        dict(num_iterations=2, num_heads=2, head_dim=4, query_points=2, value_points=3),
    ),
    "TokenEmbedding": (TOKENS, TokenEmbedding, dict(vocab_size=5, dim=8)),
    "TransformerBlock": (X, TransformerBlock, dict(num_heads=4, intermediate_dim=6)),
    "TransformerBlock, decoder": (
        dict(x=X, memory=MEMORY, bias=BIAS, rotary=(TABLES, TABLES)),
        TransformerBlock,
        dict(
            attention=MultiHeadAttention(num_heads=4, **DECODER),
            cross_attention=MultiHeadAttention(num_heads=2),
            feed_forward=GatedFeedForward(6, "gelu_tanh"),
            norm=RMSNorm(),
            order="both",
        ),
    ),
    "TriangleAttention": (PAIRS, TriangleAttention, dict(num_heads=2, starting=False, chunk=3)),
    "TriangleMultiplication": (PAIRS, TriangleMultiplication, dict(outgoing=False)),
}  # fmt: skip
every_layer = pytest.mark.parametrize("case", CASES)


def make(case, seed=0, **options):
    """Creates the layer of a case with random weights; returns it and its inputs."""
    inputs, kind, arguments = CASES[case]
    layer = kind(**arguments, **options)
    inputs = inputs if isinstance(inputs, dict) else {argument(kind): inputs}
    layer(**inputs)
    random = np.random.default_rng(seed)
    for v in layer.trainable_variables:
        v.assign(random.normal(size=v.shape) / 2)
    return layer, inputs


def argument(kind):
    """The name of the first argument of a layer's call."""
    return list(inspect.signature(kind.call).parameters)[1]


def arrays(tensors):
    return [ops.convert_to_numpy(ops.cast(x, "float32")) for x in keras.tree.flatten(tensors)]


def agree(a, b, **tolerance):
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_every_public_layer_has_a_case():
    public = [getattr(layers, name) for name in layers.__all__]
    public = {x for x in public if isinstance(x, type) and issubclass(x, keras.layers.Layer)}
    assert {kind for _, kind, _ in CASES.values()} == public
    assert all(">>>" in getattr(layers, name).__doc__ for name in layers.__all__)


@every_layer
def test_configuration_and_weights_restore_a_layer(case):
    layer, inputs = make(case)
    written = json.dumps(keras.saving.serialize_keras_object(layer))
    again = keras.saving.deserialize_keras_object(json.loads(written))
    assert type(again) is type(layer)
    assert json.dumps(again.get_config()) == json.dumps(layer.get_config())
    again(**inputs)
    assert [v.path for v in again.weights] == [v.path for v in layer.weights]
    again.set_weights(layer.get_weights())
    agree(again(**inputs), layer(**inputs), rtol=1e-6, atol=1e-6)


@every_layer
@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_half_precision_follows_the_policy_and_is_close_to_float32(case, policy):
    full, inputs = make(case)
    half, _ = make(case, dtype=policy)
    expected, found = full(**inputs), half(**inputs)
    if case not in ("RelativeBias", "StructureModule"):  # float32
        for x in keras.tree.flatten(found):
            assert keras.backend.standardize_dtype(x.dtype) == policy.removeprefix("mixed_")
    assert {keras.backend.standardize_dtype(v.dtype) for v in half.weights} <= {"float32"}
    agree(found, expected, rtol=0.05, atol=0.02 if policy == "mixed_float16" else 0.15)


@every_layer
def test_keras_files_restore_a_layer(case, tmp_path):
    layer, inputs = make(case)
    inner = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=str(x.dtype)), inputs
    )
    model = keras.Model(keras.tree.flatten(inner), layer(**inner))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    agree(again(keras.tree.flatten(inputs)), layer(**inputs), rtol=1e-6, atol=1e-6)
