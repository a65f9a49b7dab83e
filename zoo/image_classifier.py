"""The task methods of image classifiers: classify, attention, adapt and export."""

import dataclasses
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from ..layers.arguments import plain
from .classes import Classification, Classifier, check_class_names, count_classes
from .model import HUGE, TINY, bucket, check_count, check_fields, check_real, in_batches


class ImageClassifier(Classifier):
    """Base class of image classifiers: `classify`, `attention`, `export`.

    A subclass is a network: images (B, Y, X, C), pixels from 0 to 255 -> logits (B, classes). Its
    configuration has ``image_size``, ``patch_size``, ``channels``, ``num_classes``,
    ``class_names``, and what `Pixels.from_config` reads. The network has ``blocks``, a ``head`` or
    None, a class ``token`` or None, and the methods ``features(images)`` and ``embed(images)``, the
    input of the first block.

    >>> model = polyhead.ViT.preset("nano-4", num_layers=1)
    >>> isinstance(model, polyhead.ImageClassifier)
    True
    >>> image = np.zeros([40, 30, 3], "uint8")  # or a path, or the bytes of a file
    >>> model.classify(image)  # doctest: +SKIP
    Classification(label='0', probability=0.1)
    >>> model.classify([image, image], top=5)  # doctest: +SKIP
    >>> model.attention(image).shape  # doctest: +SKIP
    (8, 8)
    >>> model.export("exported", top=3)  # doctest: +SKIP
    PosixPath('exported/1')
    """

    def rollout(self, images: Any) -> Any:
        """The share of each patch in the class token (B, Y / P, X / P); shares sum to 1.

        Attention rollout (Abnar & Zuidema 2020, equation 1): the product over all blocks of
        (W + I) / 2, W the attention weights averaged over heads. Without a class token it is the
        mean over the patches.
        """
        grid = tuple(side // self.config.patch_size for side in images.shape[1:3])
        x, rolled = self.embed(images), None
        for block in self.blocks:
            weights = block.attention.attention_weights(block.attention_norm(x))
            weights = (ops.mean(weights, axis=1) + ops.eye(x.shape[1])) / 2
            rolled = weights if rolled is None else ops.matmul(weights, rolled)
            x = block(x)
        shares = rolled[:, 0, 1:] if self.token else ops.mean(rolled, axis=1)
        shares = shares / ops.sum(shares, axis=1, keepdims=True)
        return ops.reshape(shares, (-1, *grid))

    def classify(
        self,
        images: Any,
        top: int | None = None,
        batch_size: int = 16,
        progress: bool | Callable = False,
        max_pixels: int | None = None,
    ) -> Classification | list:
        """Classifies an image, or each of a list of images.

        Args:
            images: paths, encoded bytes (JPEG, PNG, GIF, BMP or WebP), or arrays (Y, X, C) of
                pixels from 0 to 255, of any size.
            top: number of most likely classes to return per image.
            batch_size: number of images per call of the network.
            progress: True shows a progress bar; or a function that wraps the batches.
            max_pixels: refuse encoded images with more pixels. Default: 60 million.

        Returns:
            a `Classification`, or a list of them in the order of ``images``; with ``top``, a list
            for each image.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: an image cannot be read (named by its path or its index), or the model has
                no head.

        >>> model.classify(["cat.jpg", "dog.png"])  # doctest: +SKIP
        [Classification(label='cat', probability=0.92), ...]
        """
        single = isinstance(images, str | bytes | Path) or getattr(images, "ndim", 4) == 3
        images = [images] if single else list(images)
        if not self.head:
            raise ValueError("a model without a head cannot classify: num_classes is 0")
        self._check_top(top)
        compute = self._compiled("classify", lambda images: ops.softmax(self(images)), "classify")
        reader = self._reader(max_pixels)
        batch_size = min(check_count(batch_size, "batch_size"), bucket(len(images), start=16))

        def read(i):
            try:
                return reader.read(images[i])
            except ValueError as error:
                name = images[i] if isinstance(images[i], str | Path) else f"image {i}"
                raise ValueError(f"{name} cannot be read: {error}") from None

        def run(rows):
            pixels = [read(i) for i in rows]
            batch = np.zeros((batch_size if len(images) > 1 else 1, *pixels[0].shape), "float32")
            batch[: len(pixels)] = pixels
            for probabilities in np.asarray(compute(batch))[: len(pixels)]:
                yield self._most_likely(probabilities, top)

        found = in_batches(range(len(images)), batch_size, run, lambda i: 0, progress)
        return found[0] if single else found

    def pixels(self, image: Any, max_pixels: int | None = None) -> np.ndarray:
        """Reads a path, encoded bytes or an array as pixels (Y, X, C) of the model's size.

        Raises:
            ValueError: the image cannot be decoded, or has more than ``max_pixels`` (60 million).
        """
        return self._reader(max_pixels).read(image)

    def attention(self, image: Any, max_pixels: int | None = None) -> np.ndarray:
        """The attention map of an image: shares (Y / P, X / P) that sum to 1; see `rollout`.

        The arguments are those of `pixels`.

        >>> model.attention("cat.jpg").shape  # doctest: +SKIP
        (14, 14)
        """
        shares = self.rollout(self.pixels(image, max_pixels)[None])
        return np.asarray(ops.convert_to_numpy(shares))[0]

    @property
    def preprocessor(self) -> Any:
        """Decodes images and fits them to the model's size: a `polyhead.data.images.Pixels`."""
        from ..data.images import Pixels

        return Pixels.from_config(self.config)

    def _reader(self, max_pixels=None):
        if max_pixels is None:
            return self.preprocessor
        return dataclasses.replace(self.preprocessor, max_pixels=plain(max_pixels))

    def adapt(
        self,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        **overrides: Any,
    ) -> Self:
        """Returns a model with these weights for other classes, or for images of another size.

        Args:
            num_classes: another number, or other ``class_names``, gives the model a new head.
            overrides: changes to the configuration. For another ``image_size``, positions are
                interpolated (Dosovitskiy et al. 2020, section 3.2).

        Raises:
            ValueError: the model is quantized, or ``overrides`` change other weights.
            TypeError: the configuration has no such setting.

        >>> model = polyhead.load("google/vit-base-patch16-224")  # doctest: +SKIP
        >>> model = model.adapt(class_names=["cat", "dog"], image_size=384)  # doctest: +SKIP
        """
        if self._quantization():
            raise ValueError("a quantized model cannot be adapted: quantize the adapted model")
        old, whole = self.config, self._without_lora()
        num_classes, names = count_classes(num_classes, class_names)
        renewed = num_classes not in (None, old.num_classes)
        renewed = renewed or names not in (None, old.class_names)
        if renewed:
            overrides |= {"num_classes": num_classes, "class_names": names}
        check_fields(type(self), overrides)
        config = dataclasses.replace(old, **overrides)
        model = type(self)(config, initialize=False, dtype=self.dtype_policy)
        whole._copy_weights(model, "positions/|head/" if renewed else "positions/")
        model.positions.embeddings.assign(self.positions.table(model.positions.grid))
        return model

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        image_size: int | tuple[int, int] | None = None,
        **overrides: Any,
    ) -> Self:
        """Loads the model that `save_pretrained` wrote to ``folder``, or a published one.

        See `Pretrained.from_pretrained`. With ``num_classes`` or ``class_names`` the model gets a
        new head, with another ``image_size`` interpolated positions: see `adapt`.

        >>> model = polyhead.ViT.from_pretrained(
        ...     "google/vit-base-patch16-224", class_names=["cat", "dog"]
        ... )  # doctest: +SKIP
        """
        model = super().from_pretrained(folder, **overrides)
        sized = {} if image_size is None else {"image_size": image_size}
        if num_classes is None and class_names is None and not sized:
            return model
        return model.adapt(num_classes, class_names, **sized)

    def compile(
        self,
        optimizer: Any = None,
        loss: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Keras's `compile`. Default: AdamW, and cross-entropy with label smoothing of 0.1.

        The optimizer is that of Steiner et al. 2021 (section 3.3) for training from scratch: a
        learning rate of 1e-3, weight decay of matrices, gradients clipped at norm 1. Labels are
        class probabilities (B, N), as `polyhead.data.image_batches` returns them. All metrics use
        the sample weights.
        """
        if optimizer is None:
            optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1, global_clipnorm=1.0)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "embeddings"])
        if loss is None:
            loss = keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=0.1, reduction="mean_with_sample_weight"
            )
        metrics = [*(metrics or ()), *(weighted_metrics or ())] or None
        super().compile(optimizer, loss, weighted_metrics=metrics, **kwargs)

    def export(
        self,
        filepath: str | PathLike[str],
        format: str | None = "tf_saved_model",
        top: int | None = None,
        max_pixels: int | None = None,
        **settings: Any,
    ) -> Path:
        """Writes a SavedModel for TensorFlow Serving as the next version of ``filepath``.

        Both signatures return the most likely ``labels`` (B, top), strings, and their
        ``probabilities``:

        - ``serving_default`` takes ``image_bytes`` (B,): JPEG, PNG, GIF, BMP or WebP. One invalid
          image is an error for the whole batch;
        - ``pixels`` takes ``images`` (B, Y, X, C), floats from 0 to 255, of the model's size.

        Args:
            format: "onnx", "litert" or "openvino" writes a file of the network alone instead:
                ``images`` (B, Y, X, C) in, logits (B, classes) out; see `polyhead.serving.formats`.
            top: number of classes. Default: 5.
            max_pixels: refuse images with more pixels. Default: 60 million.

        Returns:
            the version's folder; see `polyhead.serving.export`.

        >>> model.export("exported", top=3)  # doctest: +SKIP
        PosixPath('exported/1')
        """
        from ..data.images import named
        from ..serving.export import export

        c = self.config
        if not self.head:
            raise ValueError("a model without a head cannot classify: num_classes is 0")
        if format not in (None, "tf_saved_model"):
            shape = (None, *c.image_size, c.channels)
            images = keras.layers.InputSpec(shape=shape, dtype="float32", name="images")
            given = {"top": top, "max_pixels": max_pixels}
            settings |= {name: value for name, value in given.items() if value is not None}
            return self._export_network(filepath, format, images, 256, settings)
        if settings:
            raise TypeError(f"not settings of an export for TensorFlow Serving: {sorted(settings)}")
        if (whole := self._without_lora()) is not self:
            return whole.export(filepath, top=top, max_pixels=max_pixels)
        top = min(check_count(5 if top is None else top, "top"), c.num_classes)
        pixels = self._reader(max_pixels)
        names = named([self.label(i) for i in range(c.num_classes)])

        def answer(images):
            probabilities, classes = ops.top_k(ops.softmax(self(images)), top)
            return {"labels": names(classes), "probabilities": probabilities}

        def from_bytes(image_bytes):
            return answer(pixels.batch(image_bytes))

        (encoded, sized), (files, arrays) = pixels.specs(), pixels.examples()
        signatures = {
            "serving_default": (from_bytes, encoded, files),
            "pixels": (answer, sized, arrays),
        }
        return export(filepath, "classification", signatures, self.weights)


def check_image_config(config: Any) -> None:
    """Checks the settings of images and classes after `check_config`, and makes lists tuples.

    They are ``image_size`` (an integer becomes a height and a width), ``pooling``,
    ``class_names``, ``mean``, ``std``, ``interpolation`` and ``crop``.

    Raises:
        ValueError: naming the setting.
    """
    for name in ("image_size", "mean", "std"):
        if isinstance(value := getattr(config, name), list):
            object.__setattr__(config, name, tuple(value))
    size = config.image_size
    if type(size) is int:
        size = (size, size)
        object.__setattr__(config, "image_size", size)
    pair = type(size) is tuple and len(size) == 2
    if not pair or not all(type(s) is int and 0 < s < 2**31 for s in size):
        raise ValueError(f"image_size must be a height and a width: {size!r}")
    if any(side % config.patch_size for side in size):
        raise ValueError(f"patch_size must divide image_size: {size} / {config.patch_size}")
    for name in ("mean", "std"):
        values = getattr(config, name)
        if type(values) is not tuple or len(values) not in (1, config.channels):
            raise ValueError(
                f"{name} must have {config.channels} values (channels), or one: {values}"
            )
    check_real(config, "mean", lambda m: 0 <= m <= HUGE, "finite and not negative", several=True)
    check_real(config, "std", lambda s: TINY <= s <= HUGE, "positive and finite", several=True)
    for name in ("mean", "std"):
        if len(set(values := getattr(config, name))) == 1:
            object.__setattr__(config, name, values[:1])
    if config.pooling not in ("token", "mean"):
        raise ValueError(f"pooling must be 'token' or 'mean': {config.pooling!r}")
    if config.interpolation not in ("bilinear", "bicubic", "nearest"):
        raise ValueError(
            f"interpolation must be 'bilinear', 'bicubic' or 'nearest': {config.interpolation!r}"
        )
    check_real(config, "crop", lambda crop: TINY <= crop <= 1, "in (0, 1]")
    check_class_names(config)
