"""Tests of an exported ViT, queried through the C++ loader."""

import base64
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from polyhead.zoo import ViT, ViTConfig

SIZES = dict(
    image_size=(24, 32), patch_size=8, num_layers=2, dim=32, intermediate_dim=48, num_heads=4,
    num_classes=3, class_names=("a", "b", "ç"), squash=False, crop=0.9,
)  # fmt: skip


PHOTO = np.random.default_rng(5).integers(0, 256, (20, 30, 3)).astype("uint8")


@pytest.fixture(scope="module")
def vit():
    model, random = ViT(ViTConfig(**SIZES)), np.random.default_rng(0)
    for v in model.weights:
        if v.name != "gamma":
            v.assign(random.normal(size=v.shape) * 0.2)
    return model


@pytest.fixture(scope="module")
def exported(vit, tmp_path_factory):
    return vit.export(tmp_path_factory.mktemp("exports") / "classification", top=2)


def test_lora_adapters_are_merged_in_an_export(vit, tmp_path):
    model = vit.adapt()
    model.enable_lora(2)
    for v in model.trainable_variables:
        v.assign(np.random.default_rng(2).normal(size=v.shape) * 0.2)
    version = model.export(tmp_path)
    loaded = tf.saved_model.load(str(version))
    saved = tf.train.list_variables(str(version / "variables" / "variables"))
    shapes = sorted(tuple(shape) for name, shape in saved if not name.startswith("_CHECKPOINTABLE"))
    assert shapes == sorted(tuple(v.shape) for v in vit.weights)
    images = tf.constant(np.random.default_rng(3).uniform(0, 255, (2, 24, 32, 3)), tf.float32)
    found = loaded.signatures["pixels"](images=images)["probabilities"].numpy()
    expected = np.sort(tf.nn.softmax(model(images)).numpy(), axis=1)[:, ::-1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def encoded():
    random, files = np.random.default_rng(1), []
    for i, encode in enumerate((tf.io.encode_jpeg, tf.io.encode_png) * 3):
        image = random.integers(0, 256, (20 + 9 * i, 50 - 5 * i, 3)).astype("uint8")
        files.append(encode(image).numpy())
    files.append(tf.io.encode_png(np.zeros((9, 9, 4), "uint8")).numpy())
    return files + [turned(orientation) for orientation in range(1, 9)]


def turned(orientation, format="JPEG", mode="RGB"):
    """A file of `PHOTO` with an Exif orientation."""
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib")
    block, file = image.Exif(), io.BytesIO()
    block[0x0112] = orientation
    options = {} if format in ("GIF", "BMP") else {"exif": block}
    image.fromarray(PHOTO).convert(mode).save(file, format, **options)
    return file.getvalue()


def as_json(files):
    return [{"b64": base64.b64encode(file).decode()} for file in files]


def ask(version, *requests, arguments=()):
    lines = "".join(json.dumps({"signature_name": n, "inputs": x}) + "\n" for n, x in requests)
    command = [sys.executable, "-m", "polyhead.serving.loader", str(version), *map(str, arguments)]
    return subprocess.run(command, input=lines, capture_output=True, text=True)


def test_the_server_and_python_give_equal_answers(vit, exported, tmp_path):
    files = encoded()
    pixels = [vit.pixels(file) for file in files]
    done = ask(
        exported,
        ("serving_default", {"image_bytes": as_json(files)}),
        ("serving_default", {"image_bytes": []}),
        ("pixels", {"images": [image.tolist() for image in pixels]}),
    )
    assert done.returncode == 0, done.stderr
    answer, none, same = map(json.loads, done.stdout.splitlines())
    expected = vit.classify(files, top=2)
    assert answer["labels"] == [[label for label, _ in classes] for classes in expected]
    probabilities = [[probability for _, probability in classes] for classes in expected]
    np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-3)
    np.testing.assert_allclose(same["probabilities"], probabilities, atol=1e-3)
    assert none == {"labels": [], "probabilities": []}
    (tmp_path / "photo.jpg").write_bytes(files[0])
    done = ask(exported, arguments=[tmp_path / "photo.jpg"])
    assert json.loads(done.stdout)["labels"] == answer["labels"][:1]


@pytest.mark.slow
def test_greyscale_models_read_all_formats(tmp_path):
    sizes = {**SIZES, "channels": 1, "mean": (0.5,), "std": (0.5,)}
    model, random = ViT(ViTConfig(**sizes)), np.random.default_rng(0)
    for v in model.weights:
        if v.name != "gamma":
            v.assign(random.normal(size=v.shape) * 0.2)
    kinds = [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P")]
    kinds += [("GIF", "P"), ("GIF", "L"), ("BMP", "RGB"), ("BMP", "L"), ("BMP", "P")]
    files = [turned(6, *kind) for kind in [*kinds, ("WEBP", "RGB")]]
    expected = model.classify(files, top=3)
    version = model.export(tmp_path / "grey", max_pixels=600)
    large = tf.io.encode_png(np.zeros((20, 31, 1), "uint8")).numpy()
    with pytest.raises(ValueError, match="image 0 cannot be read: it has 20 x 31 pixels"):
        model.classify([large], max_pixels=600)
    done = ask(
        version,
        ("serving_default", {"image_bytes": as_json(files)}),
        ("serving_default", {"image_bytes": as_json([large])}),
    )
    assert done.returncode == 1 and "it has 20 x 31 pixels, more than max_pix" in done.stderr
    answer = json.loads(done.stdout.splitlines()[0])
    assert answer["labels"] == [[label for label, _ in classes] for classes in expected]
    probabilities = [[probability for _, probability in classes] for classes in expected]
    np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-3)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"b64": base64.b64encode(b"no image").decode()}, "failed with code 3"),
        ({"b64": ""}, "it is not JPEG, PNG, GIF, BMP or WebP"),
        ({"b64": base64.b64encode(encoded()[0][:200]).decode()}, "failed with code 3"),
        ({"b64": "?"}, "not base64"),
        ({"b65": "aa"}, "bytes are"),
    ],
)
def test_invalid_image_bytes_are_an_error(exported, content, message):
    done = ask(exported, ("serving_default", {"image_bytes": [*as_json(encoded()[:1]), content]}))
    assert done.returncode == 1 and message in done.stderr


def test_pixels_of_the_wrong_shape_are_refused(exported):
    for images, message in (
        ([[[[1.0, 2.0, 3.0]]]], "failed with code 3"),
        ([[1.0], [1.0, 2.0]], "the same length"),
        ([["a"]], "are numbers"),
    ):
        done = ask(exported, ("pixels", {"images": images}))
        assert done.returncode == 1 and message in done.stderr
