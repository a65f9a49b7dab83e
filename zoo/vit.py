"""ViT (Dosovitskiy et al. 2020): a Transformer that classifies images."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from ..layers import ClassToken, Dropout, GridPositions, PatchEmbedding, TransformerBlock
from ..layers.arguments import plain, plain_fields
from .generation import bucket, check_batch_size
from .pretrained import (
    HUGE,
    TINY,
    Pretrained,
    block_shapes,
    check_integer,
    check_real,
    check_sizes,
    norm_shapes,
)


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT, and how images become its pixels; the defaults are B/16's."""

    image_size: int | tuple[int, int] = 224  # pixels; height and width, where they differ
    patch_size: int = 16
    channels: int = 3
    num_classes: int = 1000  # 0: no head, features instead of logits
    num_layers: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    num_heads: int = 12
    pooling: str = "token"  # or "mean", of the patches, without a class token
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0  # the rate of the last block; it grows linearly
    activation: str = "gelu"
    epsilon: float = 1e-6
    labels: tuple[str, ...] | None = None  # names of the classes
    mean: tuple[float, ...] = (0.5,)  # of pixels from 0 to 1: of all channels, or by channel
    std: tuple[float, ...] = (0.5,)
    interpolation: str = "bilinear"  # of resizing
    squash: bool = True  # images of another shape; else what goes beyond the shape is cut off
    crop: float = 1.0  # the share of each side that is seen, in the middle

    def __post_init__(self):
        plain_fields(self)
        for name in ("image_size", "mean", "std", "labels"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        size = self.image_size
        if type(size) is int:
            size = (size, size)
            object.__setattr__(self, "image_size", size)
        sizes = ("patch_size", "channels", "num_layers", "dim", "hidden_dim", "num_heads")
        check_sizes(self, *sizes)
        check_integer(self, "num_classes", 0, "a non-negative integer")
        square = type(size) is tuple and len(size) == 2
        if not square or not all(type(s) is int and 0 < s < 2**31 for s in size):
            raise ValueError(f"image_size must be a height and a width: {size!r}")
        if any(s % self.patch_size for s in size):
            raise ValueError(f"image_size must be multiples of {self.patch_size}: {size}")
        if self.pooling not in ("token", "mean"):
            raise ValueError(f"pooling must be 'token' or 'mean': {self.pooling!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if type(values) is not tuple or len(values) not in (1, self.channels):
                raise ValueError(
                    f"{name} must be of {self.channels} channels, or one for all: {values}"
                )
        check_real(
            self, "mean", lambda mean: 0 <= mean <= HUGE, "finite and not negative", several=True
        )
        check_real(
            self, "std", lambda std: TINY <= std <= HUGE, "positive and finite", several=True
        )
        for name in ("mean", "std"):
            if len(set(values := getattr(self, name))) == 1:
                object.__setattr__(self, name, values[:1])
        if self.interpolation not in ("bilinear", "bicubic", "nearest"):
            raise ValueError(f"no interpolation: {self.interpolation!r}")
        check_real(self, "crop", lambda crop: TINY <= crop <= 1, "in (0, 1]")
        if type(self.squash) is not bool:
            raise ValueError(f"squash must be True or False: {self.squash!r}")
        if self.labels is not None:
            if type(self.labels) is not tuple or not all(type(n) is str for n in self.labels):
                raise ValueError(f"labels must be strings: {self.labels!r:.100}")
            if len(self.labels) != self.num_classes:
                raise ValueError(
                    f"there must be a label for each class: {len(self.labels)}, {self.num_classes}"
                )

    @property
    def fit(self):
        """How an image is fitted to the size, as `polyhead.data.image_batches` takes it."""
        return {"interpolation": self.interpolation, "squash": self.squash, "crop": self.crop}

    @property
    def grid(self):
        """Rows and columns of patches."""
        return tuple(side // self.patch_size for side in self.image_size)

    @property
    def parameters(self):
        """The number of parameters, counted by formula."""
        d, inner, rows, columns = self.dim, self.hidden_dim, *self.grid
        token = self.pooling == "token"
        patch = self.patch_size**2 * self.channels * d + d
        positions = (rows * columns + token) * d + token * d
        block = 4 * (d * d + d) + d * inner + inner + inner * d + d + 4 * d
        return patch + positions + self.num_layers * block + 2 * d + (d + 1) * self.num_classes


def preset(dim, num_layers, num_heads, patch_size, **others):
    return ViTConfig(
        dim=dim, num_layers=num_layers, num_heads=num_heads, hidden_dim=4 * dim,
        patch_size=patch_size, **others,
    )  # fmt: skip


PRESETS = {
    # B, L and H: Dosovitskiy et al. 2020, table 1; Ti: Touvron et al. 2020 (DeiT), table 1; S:
    # Steiner et al. 2021, table 2. The number is the side of a patch.
    "ti-16": preset(192, 12, 3, 16),
    "s-16": preset(384, 12, 6, 16),
    "s-32": preset(384, 12, 6, 32),
    "b-16": preset(768, 12, 12, 16),
    "b-32": preset(768, 12, 12, 32),
    "l-16": preset(1024, 24, 16, 16),
    "h-14": preset(1280, 32, 16, 14),
    # ViT-Lite-7/4 for images of 32 pixels: Hassani et al. 2021 (arXiv 2104.05704), table 1.
    "lite-4": ViTConfig(
        image_size=32, patch_size=4, num_classes=10, num_layers=7, dim=256, hidden_dim=512,
        num_heads=4,
    ),
    # Ours, for what 2 cores can do in half an hour.
    "nano-4": ViTConfig(
        image_size=32,
        patch_size=4,
        num_classes=10,
        num_layers=6,
        dim=128,
        hidden_dim=256,
        num_heads=4,
        pooling="mean",
    ),
}  # fmt: skip


class Classification(NamedTuple):
    """What an image shows; a class without a name is its number."""

    label: str
    probability: float


@keras.saving.register_keras_serializable("polyhead")
class ViT(Pretrained):
    """Vision Transformer (Dosovitskiy et al. 2020, section 3.1, equations 1 to 4).

    Called on ``images`` (B, Y, X, C), pixels from 0 to 255, it gives logits (B, classes). Images
    of another size than the configuration's have interpolated positions (section 3.2).
    `classify` is for files, bytes and arrays of any size.

    Args:
        config: a `ViTConfig`.
    """

    Config = ViTConfig
    PRESETS = PRESETS
    FAMILIES = {"vit": ".vit_huggingface", "timm": ".vit_timm"}

    def __init__(self, config, tokenizer=None, initialize=True, **kwargs):
        super().__init__(config, None, **kwargs)
        dtype = self.dtype_policy
        token = config.pooling == "token"
        self.patches = PatchEmbedding(config.patch_size, config.dim, dtype=dtype, name="patches")
        self.token = ClassToken(dtype=dtype, name="token") if token else None
        self.positions = GridPositions(config.grid, extra=token, dtype=dtype, name="positions")
        self.dropout = Dropout(config.dropout, dtype=dtype, name="dropout")
        last = max(config.num_layers - 1, 1)
        self.blocks = [
            TransformerBlock(
                config.num_heads,
                config.hidden_dim,
                norm="pre",
                activation=config.activation,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                stochastic_depth=config.stochastic_depth * i / last,
                epsilon=config.epsilon,
                dtype=dtype,
                name=f"block_{i}",
            )
            for i in range(config.num_layers)
        ]
        self.norm = keras.layers.LayerNormalization(
            epsilon=config.epsilon, dtype=dtype, name="norm"
        )
        # Zeros, as in the paper's code: initial predictions are uniform.
        self.head = config.num_classes and keras.layers.Dense(
            config.num_classes, kernel_initializer="zeros", dtype=dtype, name="head"
        )
        self.patches.build((None, *config.image_size, config.channels))
        layers = [self.token, self.positions, *self.blocks, self.norm, self.head]
        for layer in filter(None, layers):
            layer.build((None, None, config.dim))
        self.built = True
        for attention in self._attentions() if initialize else ():
            attention.initialize_mimetic()

    @classmethod
    def shapes(cls, config):
        c, token = config, config.pooling == "token"
        rows, columns = c.grid
        yield "patches/projection/kernel", (c.patch_size**2 * c.channels, c.dim)
        yield "patches/projection/bias", (c.dim,)
        if token:
            yield "token/embeddings", (1, c.dim)
        yield "positions/embeddings", (token + rows * columns, c.dim)
        yield from block_shapes("block", c.num_layers, c, c.hidden_dim)
        yield from norm_shapes("norm", c.dim).items()
        if c.num_classes:
            yield "head/kernel", (c.dim, c.num_classes)
            yield "head/bias", (c.num_classes,)

    def call(self, images):
        x = self.features(images)
        return ops.cast(self.head(x), "float32") if self.head else x

    def features(self, images):
        """``images`` (B, Y, X, C) -> (B, D): the class token, or the mean of the patches."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0] if self.token else self.norm(ops.mean(x, axis=1))

    def embed(self, images):
        """``images`` (B, Y, X, C) -> patches with their positions (B, N, D), after the token."""
        c = self.config
        pixels = ops.cast(images, "float32") / 255
        pixels = (pixels - np.float32(c.mean)) / np.float32(c.std)
        grid = tuple(side // c.patch_size for side in images.shape[1:3])
        x = self.patches(ops.cast(pixels, self.compute_dtype))
        x = self.token(x) if self.token else x
        return self.dropout(self.positions(x, grid=grid))

    def rollout(self, images):
        """How much of the class token comes from each patch (B, Y / P, X / P), of sum 1.

        Attention rollout (Abnar & Zuidema 2020, equation 1): of each block the mean of its heads'
        weights and of the residual, multiplied through all blocks. Without a class token it is
        the mean over the patches.
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

    def classify(self, images, top=None, batch_size=16, progress=iter, max_pixels=None):
        """Classifies a list of images.

        Args:
            images: paths, encoded bytes (JPEG, PNG, GIF, BMP or WebP), or arrays (Y, X, C) of
                pixels from 0 to 255, of any size.
            top: the number of most likely classes to return for each image.
            batch_size: the number of images per call of the network.
            progress: wraps the iteration over batches, as `rich.progress.track` does.
            max_pixels: an encoded image with more pixels is refused; 60 million by default.

        Returns:
            a list of `Classification` in the order of ``images``; with ``top``, of lists of it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: naming the image that cannot be read, by its path or its index; or the
                model has no head.
        """
        if isinstance(images, str | bytes | Path):
            raise TypeError("classify takes a list of images: [image], not image")
        c, count = self.config, 1 if top is None else plain(top)
        if not self.head:
            raise ValueError("a model without a head cannot classify: num_classes is 0")
        if type(count) is not int or not 0 < count <= c.num_classes:
            raise ValueError(f"top must be from 1 to {c.num_classes}: {top!r}")
        compute = self._compiled("classify", lambda images: ops.softmax(self(images)), "classify")
        reader, images, found = self._reader(max_pixels), list(images), []
        batch_size = min(check_batch_size(batch_size), bucket(len(images), start=16))

        def read(i):
            try:
                return reader.read(images[i])
            except ValueError as error:
                name = images[i] if isinstance(images[i], str | Path) else f"image {i}"
                raise ValueError(f"{name} cannot be read: {error}") from None

        for start in progress(range(0, len(images), batch_size)):
            pixels = [read(i) for i in range(start, min(start + batch_size, len(images)))]
            batch = np.zeros((batch_size if len(images) > 1 else 1, *pixels[0].shape), "float32")
            batch[: len(pixels)] = pixels
            for probabilities in np.asarray(compute(batch))[: len(pixels)]:
                best = np.argsort(-probabilities, kind="stable")[:count]
                classes = [Classification(self.label(i), float(probabilities[i])) for i in best]
                found.append(classes[0] if top is None else classes)
        return found

    def label(self, i):
        return str(i) if self.config.labels is None else self.config.labels[i]

    def pixels(self, image, max_pixels=None):
        """Reads a path, encoded bytes or an array as pixels (Y, X, C) of the model's size.

        Raises:
            ValueError: it cannot be decoded, or has more than ``max_pixels`` (60 million).
        """
        return self._reader(max_pixels).read(image)

    def attention(self, image):
        """Where the model looks in an image: shares (Y / P, X / P), of sum 1; see `rollout`."""
        [shares] = ops.convert_to_numpy(self.rollout(self.pixels(image)[None]))
        return shares

    def _reader(self, max_pixels=None):
        from ..data.images import MAX_PIXELS, Pixels

        c = self.config
        limit = MAX_PIXELS if max_pixels is None else plain(max_pixels)
        if type(limit) is not int or limit < 1:
            raise ValueError(f"max_pixels must be a positive integer: {limit!r}")
        return Pixels(c.image_size, c.channels, limit, **c.fit)

    def adapted(self, num_classes=None, labels=None, **overrides):
        """A new model with these weights for other classes, or images of another size.

        Args:
            num_classes: with another number, or other ``labels``, the head is new.
            overrides: of the configuration; with another ``image_size``, positions are
                interpolated (section 3.2).

        Raises:
            ValueError: the model is quantized.
        """
        if self._quantization():
            raise ValueError("a quantized model cannot be adapted: quantize the adapted model")
        old, whole = self.config, self._whole()
        if labels is not None:
            labels = labels if isinstance(labels, str) else plain(tuple(labels))
            num_classes = len(labels) if num_classes is None else num_classes
        renewed = num_classes not in (None, old.num_classes) or labels not in (None, old.labels)
        if renewed:
            overrides |= {"num_classes": num_classes, "labels": labels}
        config = dataclasses.replace(old, **overrides)
        model = type(self)(config, initialize=False, dtype=self.dtype_policy)
        weights = {v.path: v for v in whole.weights}
        for v in model.weights:
            if v.path == "positions/embeddings":
                v.assign(self.positions.table(model.positions.grid))
            elif not (renewed and v.path.startswith("head/")):
                v.assign(weights[v.path])
        return model

    @classmethod
    def from_pretrained(cls, folder, num_classes=None, labels=None, image_size=None, **overrides):
        """The model that `save_pretrained` wrote to ``folder``, or a published one.

        As for all models of the zoo (`Pretrained.from_pretrained`); of Hugging Face's ViT, or of
        timm's. With ``num_classes`` or ``labels`` it gets a new head, with another ``image_size``
        interpolated positions: see `adapted`.
        """
        model = super().from_pretrained(folder, **overrides)
        sized = {} if image_size is None else {"image_size": image_size}
        if num_classes is None and labels is None and not sized:
            return model
        return model.adapted(num_classes, labels, **sized)

    def compile(self, optimizer=None, loss=None, metrics=None, weighted_metrics=None, **kwargs):
        """Keras's `compile`; by default AdamW and label smoothing of 0.1.

        As Steiner et al. 2021 (section 3.3) train from scratch: a learning rate of 1e-3, weight
        decay of matrices, gradients clipped at 1. Labels are class probabilities (B, N), as
        `polyhead.data.image_batches` gives them, and all metrics weight images by sample weight.
        """
        if optimizer is None:
            optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1, global_clipnorm=1.0)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "embeddings"])
        if loss is None:
            loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
        metrics = [*(metrics or ()), *(weighted_metrics or ())] or None
        super().compile(optimizer, loss, weighted_metrics=metrics, **kwargs)

    def export(self, filepath, format="tf_saved_model", top=None, max_pixels=None, **settings):
        """Writes a SavedModel for TensorFlow Serving as the next version of ``filepath``.

        - ``serving_default`` takes ``image_bytes`` (B,), JPEG, PNG, GIF, BMP or WebP, and gives the
          ``top`` most likely ``labels`` (B, top), strings, and their ``probabilities``;
        - ``pixels`` takes ``images`` (B, Y, X, C), floats from 0 to 255, of the model's size.

        ``top`` is 5 by default. Bytes that cannot be decoded, or an image with more than
        ``max_pixels`` (60 million by default), are an error for the whole batch. Returns the
        version's folder; see `polyhead.serving.export`.

        The ``format`` "onnx", "litert" or "openvino" writes a file of the network alone instead,
        ``images`` (B, Y, X, C) in and logits (B, N) out, N the number of classes: see
        `polyhead.serving.formats`.
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
        top = 5 if top is None else plain(top)
        if type(top) is not int or top < 1:
            raise ValueError(f"top must be a positive integer: {top!r}")
        top, pixels = min(top, c.num_classes), self._reader(max_pixels)
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
        return export(filepath, "classification", signatures, self.variables)
