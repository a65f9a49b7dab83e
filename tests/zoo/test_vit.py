import dataclasses
import json
import os

import keras
import numpy as np
import pytest
from keras import ops

from polyhead.training import CheckpointError, Muon
from polyhead.zoo import ViT, ViTConfig

SIZES = dict(
    image_size=32,
    patch_size=8,
    num_layers=2,
    dim=32,
    intermediate_dim=48,
    num_heads=4,
    num_classes=5,
)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype("float32")


def small(**overrides):
    return ViT(ViTConfig(**{**SIZES, **overrides}))


@pytest.mark.parametrize(
    "name, count",
    [
        # The published checkpoints of DeiT, timm and the paper, with 1,000 classes.
        ("ti-16", 5_717_416),
        ("s-16", 22_050_664),
        ("s-32", 22_878_952),
        ("b-16", 86_567_656),
        ("b-32", 88_224_232),
        ("l-16", 304_326_632),
        ("h-14", 632_045_800),
        # Hassani et al. 2021 count 3.717M: they have no biases of queries, keys and values.
        ("lite-4", 3_716_874 + 7 * 3 * 256),
        ("nano-4", 810_890),
    ],
)
def test_presets_have_the_published_parameter_counts(name, count):
    config = ViT.PRESETS[name]
    assert ViT.count_parameters(config) == count
    if count < 30e6:
        assert ViT(config, initialize=False).count_params() == count


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_the_formula_counts_the_built_parameters(pooling):
    model = small(pooling=pooling, image_size=(32, 48))
    assert model.count_params() == model.count_parameters(model.config)


def test_patches_are_squares_in_row_major_order():
    model = small(image_size=(16, 24))
    images = np.random.default_rng(1).normal(size=(1, 16, 24, 3)).astype("float32")
    kernel = ops.convert_to_numpy(model.patches.projection.kernel)
    square = images[0, 8:16, 16:24].reshape(-1)  # the last patch of 2 rows of 3
    found = ops.convert_to_numpy(model.patches(images))
    assert found.shape == (1, 6, 32)
    np.testing.assert_allclose(found[0, 5], square @ kernel, atol=1e-4)
    with pytest.raises(ValueError, match="multiples of 8: 16 x 20"):
        model.patches(images[:, :, :20])


def test_stochastic_depth_skips_whole_sublayers_per_example():
    from polyhead.layers import TransformerBlock

    block = TransformerBlock(2, 16, order="pre", stochastic_depth=0.5)
    x = np.random.default_rng(0).normal(size=(64, 3, 8)).astype("float32")
    block.build(x.shape)
    kept = ops.convert_to_numpy(block(x, training=True)) - x
    skipped = np.abs(kept).reshape(64, -1).max(1) < 1e-6
    assert 6 <= skipped.sum() <= 28  # a quarter of the examples skips both of 2
    same = ops.convert_to_numpy(block(x))
    assert np.abs(same - x).reshape(64, -1).max(1).min() > 1e-3


@pytest.mark.parametrize(
    "setting, message",
    [
        (dict(image_size=30), "patch_size must divide image_size"),
        (dict(image_size=(32,)), "a height and a width"),
        (dict(pooling="max"), "pooling must be"),
        (dict(std=(0, 1, 1)), "std must be positive"),
        (dict(std=(float("nan"), 1, 1)), "std must be positive and finite"),
        (dict(std=(1, 1)), "std must have 3 values"),
        (dict(std=0.5), "std must have 3 values"),
        (dict(mean=(float("inf"), 0, 0)), "mean must be finite and not negative"),
        (dict(mean=(-0.1, 0, 0)), "mean must be finite and not negative"),
        (dict(mean=("0.5", 0, 0)), "mean must be finite and not negative"),
        (dict(class_names=(0, 1, 2, 3, 4)), "class_names must be strings"),
        (dict(class_names=("a", "b", "c", "d", None)), "class_names must be strings"),
        (dict(class_names="abcde"), "class_names must be strings: 'abcde'"),
        (dict(class_names=("a", "b")), "a name for each class: 2, 5"),
        (dict(crop=1.5), "crop must be in"),
        (dict(crop=None), "crop must be in"),
        (dict(squash=0.5), "squash must be"),
        (dict(num_heads=5), "num_heads must divide dim"),
        (dict(stochastic_depth=1.0), "stochastic_depth must be in"),
    ],
)
def test_invalid_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**{**SIZES, **setting})


def test_numpy_scalars_are_accepted_as_settings():
    config = ViTConfig(
        **{name: np.int64(value) for name, value in SIZES.items()},
        mean=np.float32([0.5, 0.25, 0.5]), std=np.ones(3), crop=np.float64(0.5),
        squash=np.bool_(False), class_names=np.array(list("abcde")), dropout=np.float32(0.5),
    )  # fmt: skip
    expected = ViTConfig(
        **SIZES, mean=(0.5, 0.25, 0.5), std=(1, 1, 1), crop=0.5, squash=False,
        class_names=list("abcde"), dropout=0.5,
    )  # fmt: skip
    assert config == expected and json.loads(json.dumps(dataclasses.asdict(config)))


def test_unreadable_images_are_named(tmp_path):
    model = small()
    classes = model.classify([PIXELS[0]] * 3, top=np.int64(2), batch_size=np.int64(2))
    assert [len(found) for found in classes] == [2, 2, 2]
    (tmp_path / "photo.tif").write_bytes(b"II*\0")
    os.mkfifo(tmp_path / "pipe.png")
    for images, message in (
        ([PIXELS[0], None], "image 1 cannot be read: it is None"),
        ([PIXELS[0], PIXELS[0, 0]], "image 1 cannot be read: an array must be"),
        ([b""], "image 0 cannot be read: it is not JPEG, PNG, GIF, BMP or WebP"),
        ([tmp_path / "photo.tif"], "photo.tif cannot be read: it is not JPEG"),
    ):
        with pytest.raises(ValueError, match=message):
            model.classify(images)
    for path in (tmp_path, tmp_path / "pipe.png"):
        with pytest.raises(OSError, match=f"{path} is not a file"):
            model.classify([path])
    with pytest.raises(FileNotFoundError, match="none.png"):
        model.classify([tmp_path / "none.png"])
    tf = pytest.importorskip("tensorflow")
    png = tf.io.encode_png(PIXELS[0].astype("uint8")).numpy()
    with pytest.raises(ValueError, match="image 0 cannot be read: it has 32 x 32 pixels"):
        model.classify([png], max_pixels=1000)
    for options in (dict(top=True), dict(top=0), dict(batch_size=0), dict(max_pixels=0)):
        with pytest.raises(ValueError, match=next(iter(options))):
            model.classify([png], **options)
    with pytest.raises(ValueError, match="class_names must be strings: 'abc'"):
        model.adapt(class_names="abc")
    with pytest.raises(ValueError, match="class_names need an order"):
        model.adapt(class_names={"a", "b", "c", "d", "e"})


def randomize(model, seed=0):
    random = np.random.default_rng(seed)
    for v in model.weights:
        if v.name != "gamma":
            v.assign(random.normal(size=v.shape) * 0.1)
    return model


def test_positions_are_initialized_with_2d_sinusoids():
    model = small(dim=30, num_heads=5, image_size=(32, 48), pooling="mean")
    table = np.array(model.positions.embeddings).reshape(4, 6, 30)
    rows, columns = table[..., :16], table[..., 16:]
    np.testing.assert_allclose(rows, np.broadcast_to(rows[:, :1], rows.shape), atol=1e-6)
    np.testing.assert_allclose(columns, np.broadcast_to(columns[:1], columns.shape), atol=1e-6)
    waves = np.arange(4)[:, None] / 10000 ** (np.arange(8) / 8)
    np.testing.assert_allclose(rows[:, 0], np.hstack([np.sin(waves), np.cos(waves)]), atol=1e-5)
    token = np.array(small().positions.embeddings)[0]
    assert 0.01 < token.std() < 0.03


def test_save_and_load_round_trip(tmp_path):
    model = randomize(small(class_names=("a", "b", "c", "d", "e"), mean=(0.1, 0.2, 0.3), crop=0.8))
    model.save_pretrained(tmp_path / "saved")
    again = ViT.from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    np.testing.assert_array_equal(model(PIXELS), again(PIXELS))


def test_the_rollout_is_a_distribution_over_patches():
    for pooling in ("token", "mean"):
        shares = ops.convert_to_numpy(randomize(small(pooling=pooling)).rollout(PIXELS))
        assert shares.shape == (3, 4, 4) and shares.min() >= 0
        np.testing.assert_allclose(shares.sum((1, 2)), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, Muon])
def test_it_overfits_one_batch(optimizer):
    keras.utils.set_random_seed(0)
    model = small()
    model.compile(optimizer(3e-3), metrics=["accuracy"])
    labels = np.eye(5, dtype="float32")[[0, 3, 4]]
    model.fit(PIXELS, labels, epochs=60, batch_size=3, verbose=0)
    assert (ops.convert_to_numpy(model(PIXELS)).argmax(1) == [0, 3, 4]).all()


def test_lora_adapters_are_used_and_kept_by_adapt():
    model = randomize(small())
    before = model.classify(list(PIXELS))
    model.enable_lora(2)
    for v in model.trainable_variables:
        v.assign(np.random.default_rng(1).normal(size=v.shape))
    after = model.classify(list(PIXELS))
    assert all(
        abs(a.probability - b.probability) > 1e-4 for a, b in zip(before, after, strict=True)
    )
    adapted = model.adapt(class_names=("v", "w", "x", "y", "z"))
    np.testing.assert_allclose(adapted.features(PIXELS), model.features(PIXELS), atol=1e-4)


@pytest.mark.parametrize("overrides", [{"num_layers": 1}, {"num_layers": 3}, {"dim": 64}])
def test_only_the_head_and_positions_can_be_adapted(overrides):
    with pytest.raises(ValueError, match="no other weights than the head's can change: "):
        small().adapt(**overrides)


def test_the_loss_does_not_count_rows_that_fill_a_batch():
    model, labels = randomize(small()), np.eye(5, dtype="float32")[:3]
    model.compile()
    expected = model.evaluate(PIXELS, labels, verbose=0)
    filled = np.concatenate([PIXELS, PIXELS]), np.concatenate([labels, labels])
    weight = np.array([1, 1, 1, 0, 0, 0], "float32")
    found = model.evaluate(*filled, sample_weight=weight, verbose=0)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_compiled_model_round_trips_through_a_keras_file(tmp_path):
    model = randomize(small())
    model.compile(metrics=["accuracy"], weighted_metrics=[keras.metrics.CategoricalAccuracy()])
    model.fit(PIXELS, np.eye(5, dtype="float32")[[0, 3, 4]], verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"ViT": ViT})
    np.testing.assert_allclose(model(PIXELS), again(PIXELS), atol=1e-6)


class TestHuggingFace:
    """Compares models of random weights that the reference library saves."""

    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")

    def saved(self, folder, head=True, **settings):
        import torch
        from transformers import ViTConfig as Config
        from transformers import ViTForImageClassification, ViTModel

        torch.manual_seed(0)
        sizes = dict(
            image_size=32, patch_size=8, num_hidden_layers=2, hidden_size=32,
            intermediate_size=48, num_attention_heads=4, num_labels=5,
        )  # fmt: skip
        kind = ViTForImageClassification if head else ViTModel
        model = kind(Config(**{**sizes, **settings})).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p) * 0.1)
        model.save_pretrained(folder)
        return model

    def logits(self, model, pixels, **options):
        import torch

        images = torch.tensor((pixels / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
        with torch.no_grad():
            return model(images, **options)

    @pytest.mark.parametrize(
        "settings",
        [
            dict(),
            dict(layer_norm_eps=1e-3, hidden_act="gelu_new"),
            dict(qkv_bias=False, hidden_act="relu", num_labels=2),
        ],
    )
    def test_logits_match_the_reference(self, settings, tmp_path):
        theirs = self.saved(tmp_path / "theirs", **settings)
        model = ViT.from_pretrained(tmp_path / "theirs")
        expected = self.logits(theirs, PIXELS).logits.numpy()
        np.testing.assert_allclose(model(PIXELS), expected, atol=1e-4)

    def test_features_without_a_head_match_the_reference(self, tmp_path):
        theirs = self.saved(tmp_path / "theirs", head=False)
        model = ViT.from_pretrained(tmp_path / "theirs")
        assert model.config.num_classes == 0
        expected = self.logits(theirs, PIXELS).last_hidden_state[:, 0].numpy()
        np.testing.assert_allclose(model(PIXELS), expected, atol=1e-4)
        with pytest.raises(ValueError, match="without a head"):
            model.classify([PIXELS[0]])

    def test_tensor_names_of_both_versions_are_read(self, tmp_path):
        from safetensors.numpy import load_file, save_file

        theirs = self.saved(tmp_path / "theirs")
        expected = self.logits(theirs, PIXELS).logits.numpy()
        file = tmp_path / "theirs" / "model.safetensors"
        newer = {name: p.detach().numpy() for name, p in theirs.state_dict().items()}
        older = {convert_name(name): array for name, array in newer.items()}
        assert older.keys() != newer.keys()
        assert load_file(file).keys() in (older.keys(), newer.keys())
        for tensors in (newer, older):
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, file)
            model = ViT.from_pretrained(tmp_path / "theirs")
            np.testing.assert_allclose(model(PIXELS), expected, atol=1e-4)

    @pytest.mark.parametrize("size", [(48, 48), (64, 32), (16, 24)])
    def test_interpolated_positions_match_the_reference(self, size, tmp_path):
        theirs = self.saved(tmp_path / "theirs")
        model = ViT.from_pretrained(tmp_path / "theirs")
        pixels = np.random.default_rng(2).integers(0, 256, (2, *size, 3)).astype("float32")
        expected = self.logits(theirs, pixels, interpolate_pos_encoding=True).logits.numpy()
        np.testing.assert_allclose(model(pixels), expected, atol=1e-4)
        adapted = ViT.from_pretrained(tmp_path / "theirs", image_size=size)
        assert adapted.config.image_size == size
        np.testing.assert_allclose(adapted(pixels), expected, atol=1e-4)

    def test_a_new_head_has_the_new_classes(self, tmp_path):
        self.saved(tmp_path / "theirs")
        old = ViT.from_pretrained(tmp_path / "theirs")
        model = ViT.from_pretrained(tmp_path / "theirs", class_names=["x", "y", "z"])
        assert model.config.num_classes == 3 and model(PIXELS).shape == (3, 3)
        np.testing.assert_array_equal(model.features(PIXELS), old.features(PIXELS))
        np.testing.assert_array_equal(model(PIXELS), 0)
        same = ViT.from_pretrained(tmp_path / "theirs", num_classes=5)
        np.testing.assert_array_equal(same(PIXELS), old(PIXELS))

    def test_saved_checkpoints_load_in_the_reference(self, tmp_path):
        from transformers import ViTForImageClassification

        model = randomize(small(class_names=("a", "b", "c", "d", "e"), activation="gelu_tanh"))
        model.save_pretrained(tmp_path / "ours", format="huggingface")
        theirs, info = ViTForImageClassification.from_pretrained(
            tmp_path / "ours", output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert theirs.config.id2label[4] == "e"
        expected = self.logits(theirs.eval(), PIXELS).logits.numpy()
        np.testing.assert_allclose(model(PIXELS), expected, atol=1e-4)
        model.save_pretrained(tmp_path / "ours", format="huggingface")  # replaces itself
        again = ViT.from_pretrained(tmp_path / "ours")
        assert again.config == model.config
        np.testing.assert_array_equal(model(PIXELS), again(PIXELS))
        for fit in (
            dict(crop=0.8), dict(squash=False, crop=0.8), dict(crop=0.9, image_size=(32, 48))
        ):  # fmt: skip
            model = small(**fit)
            model.save_pretrained(tmp_path / "fit", format="huggingface")
            config = ViT.from_pretrained(tmp_path / "fit").config
            assert config.squash == model.config.squash
            assert config.crop == pytest.approx(model.config.crop, abs=0.02)  # in whole pixels
        with pytest.raises(ValueError, match="pooling must be 'token' in the format .*: 'mean'"):
            small(pooling="mean").save_pretrained(tmp_path / "mean", format="huggingface")

    @pytest.mark.parametrize(
        "change, message",
        [
            (dict(hidden_act="selu"), "hidden_act must be one of"),
            (dict(new_setting=1), r"unknown settings \['new_setting'\]"),
            (dict(patch_size=[8, 16]), "patch_size must be a square"),
            (dict(hidden_size=36), "shape"),
        ],
    )
    def test_unsupported_settings_are_refused(self, change, message, tmp_path):
        self.saved(tmp_path / "theirs")
        file = tmp_path / "theirs" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        with pytest.raises(CheckpointError, match=message):
            ViT.from_pretrained(tmp_path / "theirs")

    def test_preprocessing_is_read(self, tmp_path):
        self.saved(tmp_path / "theirs")
        said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "resample": 3}
        said |= {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32}
        file = tmp_path / "theirs" / "preprocessor_config.json"
        file.write_text(json.dumps(said))
        config = ViT.from_pretrained(tmp_path / "theirs").config
        assert config.mean == (0.1, 0.2, 0.3) and config.interpolation == "bicubic"
        assert config.crop == 0.8 and not config.squash
        cut = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
        for size, squash in ((40, True), ({"height": 40, "width": 40}, True), (40, False)):
            # Like DeiT's checkpoints: resized to 40 x 40, then cropped.
            file.write_text(json.dumps({"size": size, "default_to_square": squash, **cut}))
            config = ViT.from_pretrained(tmp_path / "theirs").config
            assert (config.squash, config.crop) == (squash, 0.8)
        for said, message in (
            ({"do_rescale": False}, "do_rescale must be True: False"),
            ({"size": {"shortest_edge": 40}}, "size must be a height and a width"),
            ({"size": 20, **cut}, "size must be at least crop_size"),
            ({"size": {"height": 40, "width": 50}, **cut}, "crop_size must be of the aspect ratio"),
            ({"size": "large"}, "size must be a number, a height and a width"),
            ({"size": {"shortest_edge": 40, "longest_edge": 50}, **cut}, "size must be a number"),
            ({"size": 40, "do_center_crop": True}, "crop_size must be a number"),
            ({"resample": 9}, "resample must be one of"),
        ):
            file.write_text(json.dumps(said))
            with pytest.raises(CheckpointError, match=message):
                ViT.from_pretrained(tmp_path / "theirs")

    def test_timms_checkpoints_are_read(self, tmp_path, monkeypatch):
        """timm's file has queries, keys and values in one tensor; from the reference."""
        from safetensors.numpy import save_file

        from polyhead.zoo.published import vit_timm

        monkeypatch.setitem(vit_timm.SIZES, "tiny", (32, 2, 4))
        theirs = self.saved(tmp_path / "theirs", intermediate_size=128, layer_norm_eps=1e-6)
        tensors = {name: p.numpy() for name, p in theirs.state_dict().items()}
        model = ViT.from_pretrained(tmp_path / "theirs")
        timm = {}
        for name, array in convert_to_timm(model, tensors).items():
            timm[name] = np.ascontiguousarray(array)
        folder = tmp_path / "timm"
        folder.mkdir()
        save_file(timm, folder / "model.safetensors")
        cfg = dict(input_size=[3, 32, 32], crop_pct=1.0, interpolation="bicubic", num_classes=5)
        config = dict(architecture="vit_tiny_patch8_32", num_classes=5, pretrained_cfg=cfg)
        # As written by timm 1.0.31.
        config["model_args"] = dict(img_size=[32, 32], in_chans=3, global_pool="token")
        (folder / "config.json").write_text(json.dumps(config))
        read = ViT.from_pretrained(folder)
        np.testing.assert_allclose(read(PIXELS), self.logits(theirs, PIXELS).logits, atol=1e-4)
        assert read.config.crop == 1.0 and read.config.interpolation == "bicubic"
        assert not read.config.squash
        # Without biases of queries, keys and values.
        config["model_args"]["qkv_bias"] = False
        (folder / "config.json").write_text(json.dumps(config))
        plain = {n: a for n, a in timm.items() if not n.endswith("qkv.bias")}
        save_file(plain, folder / "model.safetensors")
        bare = ViT.from_pretrained(folder)
        np.testing.assert_array_equal(bare.blocks[0].attention.query.bias, 0)
        np.testing.assert_array_equal(bare.head.kernel, read.head.kernel)
        config["architecture"] = "vit_base_patch16_clip_224"
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="architecture must be like"):
            ViT.from_pretrained(folder)


def convert_name(name):
    """Converts the name of a tensor to the one before version 5 of transformers."""
    for newer, older in {
        "vit.layers.": "vit.encoder.layer.", "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key", "attention.v_proj":
        "attention.attention.value", "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }.items():  # fmt: skip
        name = name.replace(newer, older)
    return name


def convert_to_timm(model, tensors):
    """Converts Hugging Face's tensors, of either version, to timm's."""
    named = {convert_name(name): array for name, array in tensors.items()}
    embeddings = "vit.embeddings."
    timm = {
        "cls_token": named[f"{embeddings}cls_token"],
        "pos_embed": named[f"{embeddings}position_embeddings"],
    }
    for kind in ("weight", "bias"):
        timm[f"patch_embed.proj.{kind}"] = named[f"{embeddings}patch_embeddings.projection.{kind}"]
        timm[f"norm.{kind}"] = named[f"vit.layernorm.{kind}"]
        timm[f"head.{kind}"] = named[f"classifier.{kind}"]
        for i in range(model.config.num_layers):
            theirs, ours = f"vit.encoder.layer.{i}.", f"blocks.{i}."
            parts = [
                named[f"{theirs}attention.attention.{part}.{kind}"]
                for part in ("query", "key", "value")
            ]
            timm[f"{ours}attn.qkv.{kind}"] = np.concatenate(parts)
            timm[f"{ours}attn.proj.{kind}"] = named[f"{theirs}attention.output.dense.{kind}"]
            timm[f"{ours}norm1.{kind}"] = named[f"{theirs}layernorm_before.{kind}"]
            timm[f"{ours}norm2.{kind}"] = named[f"{theirs}layernorm_after.{kind}"]
            timm[f"{ours}mlp.fc1.{kind}"] = named[f"{theirs}intermediate.dense.{kind}"]
            timm[f"{ours}mlp.fc2.{kind}"] = named[f"{theirs}output.dense.{kind}"]
    return timm
