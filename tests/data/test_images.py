import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from polyhead.data import LabelledImages, image_batches, read_images
from polyhead.data.decoding import decode
from polyhead.data.images import Pixels, fitted
from polyhead.data.shapes import SHAPES, shapes

RANDOM = np.random.default_rng(0)
SQUARES = RANDOM.integers(0, 256, (10, 16, 16, 3)).astype("uint8")
CLASSES = ("cat", "dog")
ARRAYS = LabelledImages(SQUARES, np.arange(10) % 2, CLASSES)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(image).numpy())


@pytest.fixture
def folder(tmp_path):
    """A folder with twenty images for each of two classes."""
    for label, name in enumerate(CLASSES):
        for i in range(20):
            image = np.full((20 + i, 24, 3), 100 * label + i + 1, "uint8")
            write(tmp_path / "images" / name / f"{i:02}.png", image)
    return tmp_path / "images"


def test_a_folder_is_read_by_class(folder):
    train, val = read_images(folder), read_images(folder, "val")
    assert train.classes == val.classes == CLASSES
    assert (len(train), len(val)) == (36, 4)
    assert not set(train.images) & set(val.images)
    assert val.labels.tolist() == [0, 0, 1, 1]
    assert all(
        f"/{CLASSES[label]}/" in name for name, label in zip(val.images, val.labels, strict=True)
    )
    with pytest.raises(FileNotFoundError, match="no images of a split test"):
        read_images(folder, "test")
    for split in ("train", "val", "test"):
        write(folder / split / "cat" / "a.png", SQUARES[0])
    assert [len(read_images(folder, split)) for split in ("train", "val", "test")] == [1, 1, 1]


def test_skipped_files_are_named(folder):
    kept = read_images(folder).images
    for name in ("cat/._x.JPG", "cat/.ipynb_checkpoints/a.png", "cat/__MACOSX/b.png"):
        write(folder / name, SQUARES[0])
    for name in (".git/a.png", "__MACOSX/a.png", ".DS_Store"):
        write(folder / name, SQUARES[0])
    assert read_images(folder).images == kept and read_images(folder).classes == CLASSES
    for name in ("dog/a.tif", "dog/b.HEIC", "cat/deep/c.txt", "dog/d"):
        write(folder / name, SQUARES[0])
    with pytest.warns(
        UserWarning, match="4 files are not JPEG, .*WebP and are left out: cat/deep/"
    ):
        assert read_images(folder).images == kept
    for name in ("dog/a.tif", "dog/b.HEIC", "cat/deep/c.txt", "dog/d"):
        (folder / name).unlink()
    write(folder / "lost.png", SQUARES[0])
    with pytest.warns(UserWarning, match="1 files are in no class folder and are left out: lost"):
        assert read_images(folder).images == kept


def test_uppercase_names_webp_and_links_are_read(tmp_path):
    images = tmp_path / "images"
    for name in ("cat/A.JPG", "cat/b.WebP", "dog/folder.png/c.PNG"):
        write(images / name, SQUARES[0])
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "d.png", SQUARES[1])
    (images / "dog" / "link").symlink_to(tmp_path / "elsewhere")
    (images / "dog" / "circle").symlink_to(images)
    (images / "dog" / "nowhere.png").symlink_to(tmp_path / "nothing")
    for i in range(20):  # enough for a split
        write(images / "dog" / f"{i:02}.png", SQUARES[0])
    found = read_images(images)
    assert found.classes == CLASSES
    names = {name.removeprefix(f"{images}/") for name in found.images}
    expected = {"cat/A.JPG", "cat/b.WebP", "dog/folder.png/c.PNG", "dog/link/d.png"}
    assert expected <= names and len(found) + len(read_images(images, "val")) == 25
    with pytest.raises(ValueError, match="nowhere.png cannot be read: .*No such file"):
        found.pixels((8, 8))


def test_links_between_class_folders_are_not_followed(folder):
    expected = read_images(folder).images
    for name, other in (("cat", "dog"), ("dog", "cat")):
        for i in range(2):
            (folder / name / f"link{i}").symlink_to(folder / other)
    assert read_images(folder).images == expected


def test_class_folders_must_be_utf_8(folder):
    write(folder / "\udcc4pfel" / "a.png", SQUARES[0])
    with pytest.raises(ValueError, match=r"the name of the folder '\\udcc4pfel' is not UTF-8"):
        read_images(folder)


def test_greyscale_batches_fit_greyscale_models(folder):
    images = read_images(folder)
    grey = images.pixels((16, 16), channels=1)
    assert grey.images.shape == (36, 16, 16, 1)
    for source, augment in ((images, None), (images.pixels((16, 16)), "strong")):
        [(pixels, _, _)] = image_batches(
            source, (16, 16), 36, augment=augment, shuffle=False, channels=1
        )
        assert pixels.shape == (36, 16, 16, 1) and np.isfinite(pixels).all()
        if augment is None:
            np.testing.assert_allclose(pixels, grey.images, atol=1)
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        image_batches(images, (16, 16), channels=2)


def test_training_applies_exif_and_refuses_too_many_pixels(tmp_path):
    image = pytest.importorskip("PIL.Image")
    block = image.Exif()
    block[0x0112] = 6
    half = np.zeros((16, 16, 3), "uint8")
    half[:8] = 255  # the top half; upright it is the right half
    image.fromarray(half).save(tmp_path / "a.jpg", exif=block)
    images = LabelledImages([str(tmp_path / "a.jpg")], [0], ("cat",))
    [(pixels, _, _)] = image_batches(images, (16, 16), 1)
    for found in (pixels[0], images.pixels((16, 16)).images[0]):
        assert np.mean(found[:, 8:]) > 250 and np.mean(found[:, :8]) < 5
    with pytest.raises(ValueError, match="a.jpg cannot be read: it has 16 x 16 pixels"):
        images.pixels((16, 16), max_pixels=255)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a.jpg cannot be read: it has 16 x"):
        list(image_batches(images, (16, 16), 1, max_pixels=255))
    with pytest.warns(UserWarning, match="a.jpg is left out: it has 16 x 16 pixels"):
        with pytest.raises(ValueError, match="there are no images"):
            images.pixels((16, 16), "skip", max_pixels=255)


def test_tfrecords_are_read(tmp_path):
    def example(image, label):
        features = {
            "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        }
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    files = [tf.io.encode_png(square).numpy() for square in SQUARES]
    for split, chosen in (("train", range(8)), ("test", range(8, 10))):
        with tf.io.TFRecordWriter(str(tmp_path / f"{split}-0.tfrecord")) as writer:
            for i in chosen:
                writer.write(example(files[i], i % 2))
    with pytest.raises(ValueError, match="labels.txt"):
        read_images(tmp_path)
    (tmp_path / "labels.txt").write_text("\ufeffcat\r\ndog\n", "utf-8")
    test = read_images(tmp_path, "test")
    assert test.classes == CLASSES and test.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(test.pixels((16, 16)).images, SQUARES[8:])
    (tmp_path / "test-0.tfrecord").write_bytes(b"broken" * 9)
    with pytest.raises(ValueError, match="test-0.tfrecord does not hold images"):
        read_images(tmp_path, "test")


@pytest.mark.parametrize("broken", ["refuse", "skip"])
def test_a_corrupt_image_is_refused_or_skipped_by_name(folder, broken):
    (folder / "cat" / "03.png").write_bytes(b"no image")
    (folder / "dog" / "04.png").write_bytes((folder / "dog" / "05.png").read_bytes()[:60])
    images = read_images(folder)
    batches = image_batches(images, (8, 8), 6, shuffle=False, broken=broken)
    if broken == "refuse":
        with pytest.raises(ValueError, match="cat/03.png cannot be read"):
            images.pixels((8, 8), broken)
        with pytest.raises(tf.errors.InvalidArgumentError, match="cat/03.png cannot be read"):
            list(batches)
        return
    with pytest.warns(UserWarning, match="0[34].png is left out: "):
        assert len(images.pixels((8, 8), broken)) == 34
    with pytest.warns(UserWarning, match="0[34].png is left out: "):
        weights = np.concatenate([weight for _, _, weight in batches])
    assert weights.sum() == 34 and weights[3] == 0
    (folder / "cat" / ".hidden").mkdir()
    (folder / ".hidden").mkdir()
    assert read_images(folder).classes == CLASSES
    with pytest.warns(UserWarning, match="0[34].png is left out: "):
        for pixels, _, _ in image_batches(images, (8, 8), 6, broken=broken, mix=True):
            assert pixels.numpy().max((1, 2, 3)).min() > 0  # no black image is mixed in


def test_every_image_occurs_once_per_epoch_and_training_resumes():
    def epoch(**options):
        return [tuple(x.numpy() for x in b) for b in image_batches(ARRAYS, (16, 16), 4, **options)]

    batches = epoch(seed=1)
    assert [pixels.shape for pixels, _, _ in batches] == [(4, 16, 16, 3)] * 3
    pixels, labels, weight = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert weight.tolist() == [1] * 10 + [0] * 2
    seen = [np.abs(SQUARES - image).sum((1, 2, 3)).argmin() for image in pixels[:10]]
    assert sorted(seen) == list(range(10)) and seen != list(range(10))
    np.testing.assert_array_equal(labels[:10], np.eye(2)[np.array(seen) % 2])
    for options in (dict(), dict(augment="strong", mix=True)):
        whole = image_batches(ARRAYS, (16, 16), 4, start=0, seed=3, **options).take(7)
        late = image_batches(ARRAYS, (16, 16), 4, start=5, seed=3, **options).take(2)
        for a, b in zip(list(whole)[5:], late, strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)


def test_augmented_images_have_valid_pixels_and_labels():
    whole = LabelledImages(np.full((4, 16, 16, 3), 200, "uint8"), [0] * 4, CLASSES)
    [(pixels, labels, _)] = image_batches(whole, (16, 16), 4, augment="light")
    assert set(np.unique(pixels)) <= {0, 200} and (pixels.numpy() == 200).mean() > 0.7
    larger = LabelledImages(np.full((4, 40, 30, 3), 200, "uint8"), [0] * 4, CLASSES)
    [(pixels, _, _)] = image_batches(larger, (16, 16), 4, augment="light")
    np.testing.assert_allclose(pixels, 200, atol=1e-3)
    batches = list(image_batches(ARRAYS, (16, 16), 10, augment="strong", mix=True, start=0).take(4))
    for pixels, labels, _ in batches:
        assert np.isfinite(pixels).all()
        np.testing.assert_allclose(np.sum(labels, 1), 1, atol=1e-5)
    # Of black and white images, the share of white is the label: by MixUp and by CutMix.
    images = np.zeros((10, 64, 64, 3), "uint8")  # boxes are rounded to pixels
    images[1::2] = 255
    black_and_white = LabelledImages(images, [0, 1] * 5, CLASSES)
    for count in (10, 5):
        batches = image_batches(black_and_white, (64, 64), count, mix=True, start=0)
        kinds = []
        for pixels, labels, _ in batches.take(4):
            white = np.mean(pixels, (1, 2, 3)) / 255
            np.testing.assert_allclose(white, labels[:, 1], atol=0.07)
            kinds.append(bool(np.isin(pixels, [0, 255]).all()))
        assert kinds == [False, True, False, True]


def test_resizing_equals_pillow():
    image = pytest.importorskip("PIL.Image")
    photo = RANDOM.integers(0, 256, (50, 70, 3)).astype("uint8")
    for size in ((20, 24), (80, 90)):
        for name, method in (("bilinear", 2), ("bicubic", 3)):
            theirs = np.asarray(image.fromarray(photo).resize(size[::-1], method), "float32")
            ours = fitted(photo, size, name).numpy()
            assert np.abs(ours - theirs).mean() < 1.0, (size, name)
    middle = fitted(photo, (10, 10), squash=False, crop=0.2).numpy()
    np.testing.assert_array_equal(middle, photo[20:30, 30:40])
    middle = fitted(photo, (10, 14), crop=0.2).numpy()  # the central part of each side
    np.testing.assert_array_equal(middle, photo[20:30, 28:42])


@pytest.mark.parametrize("crop", [0.9, 0.875])
def test_crops_are_equal_in_the_graph(crop):
    fit = dict(size=(24, 32), squash=False, crop=crop)
    sizes = [tf.TensorSpec([None, None, 3], tf.uint8)]
    graph = tf.function(lambda image: fitted(image, **fit), sizes, autograph=False)
    for shape in ((30, 20, 3), (20, 30, 3), (33, 47, 3)):
        photo = RANDOM.integers(0, 256, shape).astype("uint8")
        np.testing.assert_allclose(fitted(photo, **fit), graph(photo), atol=1e-3)


def test_preprocessing_is_equal_in_the_graph_and_in_python():
    reader = Pixels((12, 10), squash=False, crop=0.8)
    files = [tf.io.encode_jpeg(square, quality=95).numpy() for square in SQUARES]
    batch = tf.function(reader.batch)(tf.constant(files))
    for file, pixels in zip(files, batch, strict=True):
        np.testing.assert_allclose(reader.read(file), pixels, atol=1e-3)
        np.testing.assert_allclose(reader.read(decode(file).numpy()), pixels, atol=1e-3)
    for bad in (b"", b"\xff\xd8\xff\xe0 no jpeg", files[0][:100], np.zeros((3, 3))):
        with pytest.raises(ValueError):
            reader.read(bad)
    for bad, message in (
        (None, "it is None"),
        (np.zeros((2, 2, 3), bool), "must hold numbers, not bool"),
        (np.full((2, 2, 3), "a"), "must hold numbers"),
        (np.zeros((0, 2, 3)), r"must be \(Y, X, 3\), not \(0, 2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            reader.read(bad)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there must be one label per image"):
        LabelledImages(SQUARES, [0], CLASSES)
    with pytest.raises(ValueError, match="of uint8"):
        LabelledImages(SQUARES.astype("float32"), [0] * 10, CLASSES)
    with pytest.raises(ValueError, match="labels must be from 0 to 1"):
        LabelledImages(SQUARES, [2] * 10, CLASSES)
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_images(tmp_path / "no")
    with pytest.raises(FileNotFoundError, match="in folders by class"):
        read_images(tmp_path)
    for options, message in (
        (dict(batch_size=0), "batch_size must be positive"),
        (dict(augment="much"), "augment must be"),
        (dict(broken="ignore"), "broken must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            image_batches(ARRAYS, (16, 16), **options)


def test_generated_shapes_are_reproducible():
    train, val = shapes("train"), shapes("val")
    assert train.classes == SHAPES and train.images.shape == (4000, 32, 32, 3)
    assert np.bincount(val.labels).tolist() == [50] * 8
    np.testing.assert_array_equal(val.images, shapes("val").images)
    assert not any((train.images == image).all((1, 2, 3)).any() for image in val.images[:5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert val.images.std(axis=(1, 2, 3)).min() > 10


def test_preprocessing_is_created_from_a_configuration():
    config = SimpleNamespace(
        image_size=[4, 6], channels=1, interpolation="bicubic", squash=False, crop=0.9, dim=8
    )
    pixels = Pixels.from_config(config, max_pixels=100)
    assert pixels == Pixels((4, 6), 1, 100, "bicubic", False, 0.9)
    assert pixels.fit == {"interpolation": "bicubic", "squash": False, "crop": 0.9}
    assert pixels.read(np.zeros((8, 8, 1), "uint8")).shape == (4, 6, 1)
    with pytest.raises(ValueError, match="max_pixels must be a positive integer: 0"):
        Pixels.from_config(config, max_pixels=0)


def test_arrays_of_the_models_size_are_cropped_too():
    array = np.zeros((1, 20, 20, 3), "uint8")
    array[:, 5:15, 5:15] = 200
    images = LabelledImages(array, [0], ("a",))
    assert images.pixels((20, 20)) is images
    assert (images.pixels((20, 20), crop=0.5).images == 200).all()
