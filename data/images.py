"""Image classification data: read by class, decoded, resized, augmented and batched."""

import operator
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .batches import check_sizes, epochs
from .decoding import FORMATS, MAX_PIXELS, SUFFIXES, convert_channels, decode
from .labelled import SURROGATE
from .parallel import read_lines

SHARE = 0.9  # fraction of images for training, if there is no validation split
BROKEN = ("refuse", "skip")


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes.

    >>> pixels = np.zeros([2, 8, 8, 3], "uint8")
    >>> images = polyhead.data.LabelledImages(pixels, labels=[0, 1], classes=("cat", "dog"))
    >>> len(images), images.name(1)
    (2, 'image 1')

    Args:
        images: paths, encoded bytes (JPEG, PNG, GIF, BMP or WebP), or an array of uint8:
            (N, Y, X, 3), or (N, Y, X, 1) for greyscale images.
        labels: (N,) the class index of each image.
        classes: the class names.
        names: the names of images in error messages. Default: their path or index.

    Raises:
        ValueError: the numbers of labels and images differ, a label is out of range, or the array
            has the wrong shape or type.
    """

    images: Sequence[str | bytes | Path] | np.ndarray
    labels: Sequence[int] | np.ndarray
    classes: Sequence[str]
    names: list[str] | None = None

    def __post_init__(self):
        labels = np.asarray(self.labels, "int32")
        object.__setattr__(self, "labels", labels)
        if labels.shape != (len(self.images),):
            raise ValueError(
                f"there must be one label per image: {len(self.images)} images, labels of shape "
                f"{labels.shape}"
            )
        if hasattr(array := self.images, "shape"):
            if array.dtype != "uint8" or array.ndim != 4 or array.shape[-1] not in (1, 3):
                raise ValueError(
                    "an array of images must be (N, Y, X, 3) or (N, Y, X, 1) of uint8: "
                    f"{array.shape} of {array.dtype}"
                )
        if not len(labels):
            raise ValueError("there are no images")
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise ValueError(
                f"labels must be from 0 to {len(self.classes) - 1}: "
                f"{labels.min()} to {labels.max()}"
            )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, chosen):
        """Selects images by an array of indices."""
        images = self.images
        images = images[chosen] if hasattr(images, "shape") else [images[i] for i in chosen]
        names = None if self.names is None else [self.names[i] for i in chosen]
        return replace(self, images=images, labels=self.labels[chosen], names=names)

    def name(self, i: int) -> str:
        """The name of an image in error messages."""
        if self.names is not None:
            return self.names[i]
        return str(image) if isinstance(image := self.images[i], str | Path) else f"image {i}"

    def read(
        self, i: int, decoder: Callable[[Any], Any], broken: str = "refuse"
    ) -> np.ndarray | None:
        """Calls ``decoder`` on an image, bytes or an array; returns None for a skipped image."""
        image = self.images[i]
        try:
            return np.asarray(decoder(image if hasattr(image, "shape") else content(image)))
        except (tf.errors.InvalidArgumentError, OSError) as error:
            if broken == "refuse":
                raise ValueError(f"{self.name(i)} cannot be read: {explain(error)}") from None
            warnings.warn(f"{self.name(i)} is left out: {explain(error)}", stacklevel=2)

    def pixels(
        self,
        size: tuple[int, int],
        broken: str = "refuse",
        progress: Callable[[Iterable[int]], Iterable[int]] = iter,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
        **fit: Any,
    ) -> "LabelledImages":
        """Decodes the images to an array (N, Y, X, C), for data sets that fit in memory.

        An array of this size stays as it is, unless ``crop`` is below 1.

        Args:
            size: height and width.
            broken: "refuse" an image that cannot be decoded, or "skip" it with a warning.
            progress: wraps the iterable of indices, for example in a progress bar.
            channels: 3 for RGB, 1 for greyscale.
            max_pixels: an image with more pixels is refused.
            fit: how images are resized: ``interpolation``, ``squash`` and ``crop``, see `fitted`.

        Raises:
            ValueError: an image cannot be decoded; the message names it.
        """
        if broken not in BROKEN:
            raise ValueError(f"broken must be one of {BROKEN}: {broken!r}")
        whole = fit.get("crop", 1) == 1
        if whole and getattr(self.images, "shape", ())[1:] == (*size, channels):
            return self
        array, kept = np.zeros((len(self), *size, channels), "uint8"), []
        kind = tf.TensorSpec([], tf.string)
        if hasattr(self.images, "shape"):
            kind = tf.TensorSpec(self.images.shape[1:], tf.uint8)

        @tf.function(input_signature=[kind], autograph=False)
        def decoder(image):
            return round_pixels(fitted(to_pixels(image, channels, max_pixels), size, **fit))

        for i in progress(range(len(self))):
            if (image := self.read(i, decoder, broken)) is not None:
                array[i] = image
                kept.append(i)
        return replace(self[np.array(kept, int)], images=array[kept])


def to_pixels(image, channels, max_pixels):
    """Converts encoded bytes, or an array of uint8, to pixels (Y, X, C)."""
    if getattr(image, "dtype", tf.string) == tf.uint8:
        return convert_channels(image, channels)
    return decode(image, channels, max_pixels)


def explain(error):
    """TensorFlow's error message without its source location."""
    message = re.split(r"\s*\[\[\{\{|\s*\[Op:", str(error))[0].strip().splitlines()[-1]
    return re.sub(r"\{\{.*?\}\} ?|^assertion failed: \[|\]$", "", message)


def content(image):
    """The bytes of an encoded image, or of the file at a path."""
    if isinstance(image, bytes):
        return image
    if (path := Path(image)).exists() and not path.is_file():  # a pipe would be read forever
        raise OSError(f"{path} is not a file")
    return path.read_bytes()


def fitted(image, size, interpolation="bilinear", squash=True, crop=1.0):
    """Resizes pixels (Y, X, C) to (height, width, C) of float32, from 0 to 255.

    An image of another aspect ratio is squashed or, with ``squash=False``, cropped to the largest
    central part with the right aspect ratio. Then a central crop keeps the fraction ``crop`` of
    each side. Resizing is antialiased, as in Pillow.
    """
    image = tf.convert_to_tensor(image)
    if image.dtype != tf.uint8:  # uint8 is resized directly, in a quarter of the memory
        image = tf.cast(image, tf.float32)
    if not squash or crop < 1:
        # In integers, because graphs multiply floats in another order, which changes rounding.
        shape, share = (
            tf.cast(tf.shape(image)[:2], tf.int64),
            Fraction(float(crop)).limit_denominator(10**6),
        )
        above, below = shape * share.numerator, share.denominator
        if not squash:
            i = tf.cast(shape[0] * size[1] > shape[1] * size[0], tf.int32)  # the side to keep whole
            above = shape[i] * np.array(size) * share.numerator
            below = tf.constant(size, tf.int64)[i] * share.denominator
        part = tf.maximum((2 * above + below) // (2 * below), 1)
        start = (shape - part) // 2
        image = tf.slice(image, [start[0], start[1], 0], [part[0], part[1], -1])
    image = tf.image.resize(image, size, method=interpolation, antialias=True)
    return tf.clip_by_value(tf.cast(image, tf.float32), 0.0, 255.0)


def round_pixels(image):
    return tf.cast(tf.round(image), tf.uint8)


@dataclass(frozen=True)
class Pixels:
    """The image preprocessing of a model, decoding and resizing, in Python and in exports.

    It is created from the model's configuration (`from_config`), so it has no file. Pixels are from
    0 to 255; the network normalizes them by ``mean`` and ``std``.

    Args:
        size: height and width.
        channels: 3 for RGB, 1 for greyscale.
        max_pixels: an image with more pixels is refused before it is decoded.
        interpolation, squash, crop: see `fitted`.
    """

    size: tuple[int, int]
    channels: int = 3
    max_pixels: int = MAX_PIXELS
    interpolation: str = "bilinear"
    squash: bool = True
    crop: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "size", tuple(self.size))
        if type(self.max_pixels) is not int or self.max_pixels < 1:
            raise ValueError(f"max_pixels must be a positive integer: {self.max_pixels!r}")

    @classmethod
    def from_config(cls, config, **changes):
        """Creates the preprocessing from a model's configuration.

        Args:
            config: has ``image_size``, ``channels``, ``interpolation``, ``squash`` and ``crop``.
            changes: other arguments, for example ``max_pixels``.
        """
        names = ("channels", "interpolation", "squash", "crop")
        fields = {name: getattr(config, name) for name in names}
        return cls(config.image_size, **{**fields, **changes})

    @property
    def fit(self):
        """The arguments of `fitted`, for `image_batches`."""
        return {"interpolation": self.interpolation, "squash": self.squash, "crop": self.crop}

    def read(self, image):
        """Reads a path, encoded bytes or an array (Y, X, C) as an array of the size, 0 to 255.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it is not an image, or cannot be decoded.
        """
        try:
            if isinstance(image, str | bytes | Path):
                image = decode(content(image), self.channels, self.max_pixels)
            elif image is None:
                raise ValueError("it is None, not a path, encoded bytes or an array")
            else:
                image = np.asarray(image)
                if image.ndim != 3 or image.shape[-1] != self.channels or 0 in image.shape:
                    raise ValueError(f"an array must be (Y, X, {self.channels}), not {image.shape}")
                if image.dtype.kind not in "uif":
                    raise ValueError(f"an array must hold numbers, not {image.dtype}")
            return np.asarray(fitted(image, self.size, **self.fit))
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(explain(error)) from None

    def batch(self, contents):
        """Decodes bytes (B,) to pixels (B, Y, X, C), in the graph."""
        return tf.map_fn(
            lambda content: fitted(
                decode(content, self.channels, self.max_pixels), self.size, **self.fit
            ),
            contents,
            fn_output_signature=tf.TensorSpec([*self.size, self.channels], tf.float32),
        )

    def specs(self):
        """The inputs of an export: encoded bytes, or pixels."""
        encoded = {"image_bytes": tf.TensorSpec([None], tf.string)}
        return encoded, {"images": tf.TensorSpec([None, *self.size, self.channels], tf.float32)}

    def examples(self):
        """Example values of `specs`, for the warm-up requests of an export."""
        random = np.random.default_rng(0)
        squares = random.integers(0, 256, (4, 8, 12, self.channels)).astype("uint8")
        files = [tf.io.encode_png(square).numpy() for square in squares]
        pixels = random.integers(0, 256, (1, *self.size, self.channels)).astype("float32")
        return {"image_bytes": files}, {"images": pixels.tolist()}


def named(labels):
    """Returns a function that maps class indices to their ``labels``, strings, in the graph."""
    table = tf.constant(labels)
    return lambda classes: tf.gather(table, classes)


def read_images(path: str | PathLike[str], split: str = "train") -> LabelledImages:
    """Reads a split of a folder as `LabelledImages`.

    The folder has one subfolder per split (train, val, test), or no splits. Images are files in one
    folder per class; or TFRecords whose names begin with the split (features ``image``, encoded,
    and ``label``, an integer), with the class names in ``labels.txt``. Image files are read when
    needed; records are kept in memory. Without a "val" split, every tenth training image of each
    class is used for it.

    Files are JPEG, PNG, GIF, BMP or WebP. Hidden files and folders and ``__MACOSX`` are ignored. A
    warning gives the number and the first names of other files.

    >>> images = polyhead.data.read_images("photos", "val")  # doctest: +SKIP
    >>> images.classes  # doctest: +SKIP
    ('cat', 'dog')

    Raises:
        FileNotFoundError: the folder does not exist, or has no images of the split.
        ValueError: the split is unknown, or records cannot be read.
    """
    path = Path(path)
    if split not in ("train", "val", "test"):
        raise ValueError(f"split must be train, val or test: {split!r}")
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    found = {s: find_records(path, s) for s in ("train", "val", "test")}
    reader, places = read_records, found
    if not any(found.values()):
        reader = read_folders
        places = {s: path / s if (path / s).is_dir() else None for s in found}
        if not any(places.values()):
            places["train"] = path
    if split == "test" or places["val"]:
        if not places[split]:
            raise FileNotFoundError(f"{path} has no images of a split {split}")
        return reader(path, places[split])
    if not places["train"]:
        raise FileNotFoundError(f"{path} has no images of a split train")
    images = reader(path, places["train"])
    # Every tenth image of each class.
    order = np.argsort(images.labels, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(images.labels))])
    place = np.empty(len(images), int)
    place[order] = np.arange(len(images)) - first[images.labels[order]]
    every = round(1 / (1 - SHARE))
    held = place % every == every - 1
    chosen = np.flatnonzero(held if split == "val" else ~held)
    if not len(chosen):
        raise FileNotFoundError(f"{path} has too few images for a split {split}")
    return images[chosen]


def find_records(path, split):
    return sorted(str(file) for file in path.glob(f"{split}*.tfrecord*"))


def read_records(path, files):
    if not (path / "labels.txt").is_file():
        raise ValueError(f"TFRecords need a file of class names: {path / 'labels.txt'}")
    names = read_lines(path / "labels.txt")
    classes = tuple(name.strip() for name in names if name.strip())
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    images, labels, names = [], [], []
    for file in files:
        before = len(names)
        try:
            for batch in tf.data.TFRecordDataset(file).batch(1000):
                parsed = tf.io.parse_example(batch, features)
                first = len(names) - before
                names += [f"{file}, record {i}" for i in range(first, first + len(batch))]
                images += parsed["image"].numpy().tolist()
                labels += parsed["label"].numpy().tolist()
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
            reason = explain(error)
            raise ValueError(f"{file} does not hold images with labels: {reason}") from None
    if not images:
        raise ValueError(f"there are no images in {', '.join(files)}")
    return LabelledImages(images, labels, classes, names)


def read_folders(path, folder):
    files, unplaced, others = {}, [], []
    for place in sorted(folder.iterdir()):
        if is_hidden(place.name):
            continue
        if place.is_dir():
            found = find_files(place, folder)
            files[place.name] = [str(f) for f in found if f.suffix.lower() in SUFFIXES]
            others += [f for f in found if f.suffix.lower() not in SUFFIXES]
        elif place.suffix.lower() in SUFFIXES:
            unplaced.append(place)
    for left, reason in ((unplaced, "in no class folder"), (others, f"not {FORMATS}")):
        if left:
            names = ", ".join(str(f.relative_to(folder)) for f in left[:3])
            warnings.warn(
                f"{folder}: {len(left)} files are {reason} and are left out: {names}"
                f"{', ...' if len(left) > 3 else ''}",
                stacklevel=3,
            )
    classes = tuple(name for name in files if files[name])
    if broken := next(filter(SURROGATE.search, classes), None):
        raise ValueError(f"{folder}: the name of the folder {broken!r} is not UTF-8")
    images = [file for name in classes for file in files[name]]
    labels = [label for label, name in enumerate(classes) for _ in files[name]]
    if not images:
        raise FileNotFoundError(f"{folder} has no images {', '.join(SUFFIXES)} in folders by class")
    return LabelledImages(images, labels, classes)


def find_files(folder, whole):
    """Lists the files below ``folder``, sorted; follows each link to a folder outside of ``whole``.

    A second link to the same folder is not followed.
    """
    roots, seen = {Path(folder).resolve(), Path(whole).resolve()}, set()

    def walked(place, name):
        if is_hidden(name):
            return False
        if not Path(place, name).is_symlink():
            return True
        target = Path(place, name).resolve()
        known = target in seen
        known = known or any(target.is_relative_to(x) or x.is_relative_to(target) for x in roots)
        seen.add(target)
        return not known

    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if walked(place, name)]
        found += [Path(place, name) for name in names if not is_hidden(name)]
    return sorted(found)


def is_hidden(name):
    return name.startswith(".") or name == "__MACOSX"


def image_batches(
    images: LabelledImages,
    size: tuple[int, int],
    batch_size: int = 128,
    augment: str | None = None,
    mix: bool = False,
    shuffle: bool = True,
    seed: int = 0,
    start: int | None = None,
    broken: str = "refuse",
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    **fit: Any,
) -> tf.data.Dataset:
    """Batches of ``(pixels (B, Y, X, C), labels (B, N), sample_weight (B,))`` for `ViT.fit`.

    Pixels are floats from 0 to 255. Labels are probabilities of the N classes, one-hot unless
    images are mixed. The last batch is padded with images of weight 0.

    >>> pixels = np.zeros([2, 8, 8, 3], "uint8")
    >>> images = polyhead.data.LabelledImages(pixels, labels=[0, 1], classes=("cat", "dog"))
    >>> batches = polyhead.data.image_batches(images, (8, 8), batch_size=2, shuffle=False)
    >>> pixels, labels, weight = next(iter(batches))
    >>> labels.numpy()
    array([[1., 0.],
           [0., 1.]], dtype=float32)

    Args:
        images: the images and their classes.
        size: Y and X.
        batch_size: B.
        augment: None; "light", a random crop and flip; or "strong", which adds two operations of
            RandAugment (Cubuk et al. 2020), the same for the whole batch. Arrays of this size are
            shifted by up to an eighth; other images are cropped and resized.
        mix: mixes each batch with itself, alternately by MixUp (Zhang et al. 2018) and CutMix (Yun
            et al. 2019).
        shuffle: a new order each epoch. All random numbers are reproducible from ``seed``.
        start: a number of updates: the dataset is endless and begins there, to resume an
            interrupted run. Default: one epoch, of known length.
        broken: "refuse" an image that cannot be decoded, or "skip" it with a warning, with weight
            0.
        channels: C, 3 for RGB or 1 for greyscale; images are converted.
        max_pixels: an image with more pixels is refused.
        fit: how images that are not augmented are resized: ``interpolation``, ``squash`` and
            ``crop``; pass ``**model.preprocessor.fit`` for the model's own. An array of this size
            is taken as resized and cropped.

    Raises:
        ValueError: an argument is out of range.
        tf.errors.InvalidArgumentError: while iterating: an image cannot be decoded; the message
            names it.
    """
    batch_size, seed = operator.index(batch_size), operator.index(seed)  # also NumPy's integers
    check_sizes(batch_size=batch_size)
    if augment not in (None, "light", "strong"):
        raise ValueError(f"augment must be None, 'light' or 'strong': {augment!r}")
    if broken not in BROKEN:
        raise ValueError(f"broken must be one of {BROKEN}: {broken!r}")
    if channels not in (1, 3):
        raise ValueError(f"images are read with 1 or 3 channels, not {channels!r}")
    count, classes = -(-len(images) // batch_size), len(images.classes)
    labels = tf.constant(images.labels)
    pixels = None
    if hasattr(images.images, "shape") and images.images.shape[1:3] == tuple(size):
        pixels = convert_channels(tf.constant(images.images), channels)
    distort = tf.random.experimental.stateless_fold_in

    def read(i):
        image = images.read(i, lambda image: to_pixels(image, channels, max_pixels), broken)
        if image is None:
            return np.zeros((1, 1, channels), "uint8"), np.float32(0)
        return image, np.float32(1)

    def one(i, key):
        """Reads an image of this size, and its weight."""
        image, weight = tf.numpy_function(read, [i], [tf.uint8, tf.float32])
        image.set_shape([None, None, channels])
        image = fitted(image, size, **fit) if augment is None else random_crop(image, size, key)
        return tf.ensure_shape(image, [*size, channels]), tf.ensure_shape(weight, [])

    def batch(order, number, i):
        # The last batch is filled with earlier images.
        at = tf.range(i * batch_size, (i + 1) * batch_size)
        chosen = tf.gather(order, at % len(images))
        weight = tf.cast(at < len(images), tf.float32)
        key = distort(tf.stack([tf.cast(seed, tf.int64), number]), i)
        if pixels is None:
            made, whole = tf.map_fn(
                lambda row: one(row[0], distort(key, row[1])),
                (chosen, at),
                fn_output_signature=(tf.float32, tf.float32),
            )
            weight = weight * whole
            # A broken image is replaced by a valid one, so that MixUp does not spread it.
            instead = tf.where(
                whole > 0, tf.range(batch_size), tf.argmax(whole, output_type=tf.int32)
            )
            made, chosen = tf.gather(made, instead), tf.gather(chosen, instead)
        else:
            made = tf.gather(pixels, chosen)
            made = tf.cast(made if augment is None else shift_images(made, key), tf.float32)
        if augment is not None:
            flips = tf.random.stateless_uniform([batch_size, 1, 1, 1], distort(key, -1)) < 0.5
            made = tf.where(flips, made[:, :, ::-1], made)
        if augment == "strong":
            made = apply_randaugment(strong, tf.repeat(made, 3 // channels, -1), key)
            made = made if channels == 3 else tf.image.rgb_to_grayscale(made)
        target = tf.one_hot(tf.gather(labels, chosen), classes)
        if mix:
            made, target = tf.cond(
                (number * count + tf.cast(i, tf.int64)) % 2 == 0,
                lambda: mix_images(mixes[0], made, target, key),
                lambda: mix_images(mixes[1], made, target, key),
            )
        return made, target, weight

    strong = keras.layers.RandAugment(dtype="float32")
    mixes = keras.layers.MixUp(dtype="float32"), keras.layers.CutMix(dtype="float32")

    def epoch(number):
        order = tf.range(len(images))
        if shuffle:
            key = tf.stack([tf.cast(seed, tf.int64), tf.cast(number, tf.int64)])
            order = tf.random.experimental.stateless_shuffle(order, key)
        return tf.data.Dataset.range(count, output_type=tf.int32).map(
            lambda i: batch(order, tf.cast(number, tf.int64), i), num_parallel_calls=2
        )

    return epochs(lambda numbers: numbers.flat_map(epoch), count, seed, start)


def random_crop(image, size, key):
    """Crops 8 to 100% of the area of an image (Y, X, C), and resizes (Szegedy et al. 2015)."""
    start, part, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        key,
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        min_object_covered=0.0,
        use_image_if_no_bounding_boxes=True,
    )
    return fitted(tf.slice(image, start, part), size)


def shift_images(images, key):
    """Shifts ``images`` (B, Y, X, C) by up to an eighth in any direction, filled with black.

    This is a random crop of the padded image (He et al. 2015, section 4.2).
    """
    batch, size = tf.shape(images)[0], images.shape[1:3]
    frame = [side // 8 for side in size]
    images = tf.pad(images, [[0, 0], *([side, side] for side in frame), [0, 0]])
    for axis, (side, most) in enumerate(zip(size, frame, strict=True), start=1):
        first = tf.random.stateless_uniform([batch, 1], key + axis, 0, 2 * most + 1, tf.int32)
        images = tf.gather(images, first + tf.range(side), axis=axis, batch_dims=1)
    return images


class Keyed(keras.random.SeedGenerator):
    """A generator of seeds that depend only on ``key``, for reproducible Keras layers."""

    def __init__(self, key):
        self.key, self.count = key, 0

    def next(self, ordered=True):
        self.count += 1
        return tf.random.experimental.stateless_fold_in(self.key, self.count)


def transformation(layer, images, key):
    generator = Keyed(key)
    layer._get_seed_generator = lambda backend=None: generator
    return layer.get_random_transformation(images, training=True, seed=generator)


def apply_randaugment(layer, images, key):
    """Applies two operations of a `RandAugment`; the layer itself computes all and selects two."""

    def by(operation, key):
        how = transformation(operation, images, key)
        return tf.ensure_shape(operation.transform_images(images, how), images.shape)

    operations = [getattr(layer, name) for name in layer._AUGMENT_LAYERS]
    for i in range(layer.num_ops):
        key = tf.random.experimental.stateless_fold_in(key, i)
        chosen = tf.random.stateless_uniform([], key, 0, len(operations), tf.int32)
        images = tf.switch_case(
            chosen, [lambda operation=o, key=key: by(operation, key) for o in operations]
        )
    return images


def mix_images(layer, images, labels, key):
    how = transformation(layer, images, key)
    return layer.transform_images(images, how), layer.transform_labels(labels, how)
