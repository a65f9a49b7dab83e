import keras
import numpy as np
import pytest

from polyhead.layers import TransformerBlock
from polyhead.training import Muon
from polyhead.training.muon import matrix
from polyhead.zoo import ViT, ViTConfig
from tests.training.test_replicas import agree, translator


def block():
    keras.utils.set_random_seed(0)
    layer = TransformerBlock(4, 24, order="pre", name="block")
    layer.build((None, None, 16))
    return layer


def changes(layer, optimizer):
    """Returns each weight after one step with random gradients, and the gradients."""
    random = np.random.default_rng(0)
    before = {v.path: np.array(v) for v in layer.trainable_weights}
    gradients = [random.normal(size=v.shape).astype("float32") for v in layer.trainable_weights]
    optimizer.apply(gradients, layer.trainable_weights)
    after = {v.path: np.array(v) - before[v.path] for v in layer.trainable_weights}
    return after, dict(zip(after, gradients, strict=True))


def muon(**options):
    return Muon(0.01, weight_decay=0.0, **options)


def test_attention_kernels_are_matrices():
    assert matrix((16, 4, 4)) == (16, 16) and matrix((4, 4, 16)) == (16, 16)
    assert matrix((16, 24)) == (16, 24) and matrix((8, 2, 4, 32)) == (64, 32)


def test_the_update_of_a_matrix_is_orthogonal_with_adams_size():
    made, _ = changes(block(), muon())
    kernels = [path for path in made if path.endswith("kernel")]
    assert len(kernels) == 6
    for path in kernels:
        change = made[path].reshape(matrix(made[path].shape))
        values = np.linalg.svd(change, compute_uv=False) / (0.01 * 0.2 * max(change.shape) ** 0.5)
        # Five iterations leave singular values between 0.7 and 1.2 (Jordan et al. 2024), except for
        # singular values near 0.
        assert 0.6 < np.quantile(values, 0.1) and values.max() < 1.3, path
        assert 0.1 < np.sqrt((change**2).mean()) / 0.01 < 0.3, path


def test_the_update_of_a_plain_matrix_equals_keras():
    made, gradients = changes(block(), muon())
    path = "block/feed_forward/expand/kernel"
    v = keras.Variable(np.zeros((16, 24), "float32"), name="kernel")
    keras.optimizers.Muon(0.01, weight_decay=None).apply([gradients[path]], [v])
    np.testing.assert_allclose(made[path], v, atol=1e-6)


def test_other_updates_equal_adam():
    options = dict(weight_decay=0.0, beta_2=0.999)
    ours, _ = changes(block(), muon(exclude_layers=["expand"]))
    adams, _ = changes(block(), keras.optimizers.AdamW(0.01, **options))
    others = [path for path in ours if "kernel" not in path or "expand" in path]
    assert len(others) == 11
    for path in others:
        np.testing.assert_allclose(ours[path], adams[path], atol=1e-6, err_msg=path)


def test_adam_updates_embeddings_heads_patches_and_lora_adapters():
    def adams(model):
        return {v.path for v in model.weights if len(v.shape) > 1 and muon()._should_use_adamw(v)}

    vit = ViT(
        ViTConfig(32, 8, num_classes=3, num_layers=1, dim=16, intermediate_dim=16, num_heads=2)
    )
    heads = {f"block_0/attention/{name}/bias" for name in ("query", "key", "value")}
    assert adams(vit) == heads | {
        "token/embeddings", "positions/embeddings", "patches/projection/kernel", "head/kernel",
    }  # fmt: skip
    model = translator()
    model.enable_lora(2)
    kernels = {v.path for v in model.weights if "kernel" in v.path}
    assert not adams(model) & kernels
    assert {v.path for v in model.weights if "_lora/" in v.path} <= adams(model)
    with pytest.raises(TypeError, match="exclude_layers must be a list of expressions: 'head'"):
        Muon(exclude_layers="head")


def test_settings_are_restored_from_the_configuration():
    optimizer = Muon(0.02, weight_decay=0.1, exclude_layers=["x"], momentum=0.9, use_ema=True)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, Muon) and again.get_config() == optimizer.get_config()
    assert again.adam_weight_decay == 0.1


@pytest.mark.slow
def test_replicas_train_like_one_device():
    def optimizer():
        made = Muon(1e-3, weight_decay=0.1, epsilon=1e-5, global_clipnorm=0.1)
        made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        return made

    agree(translator, optimizer, 1e-4, replicas=(1, 2))
