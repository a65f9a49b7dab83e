"""ViT (Dosovitskiy et al. 2020): a Transformer that classifies images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import LayerNormalization

from ..layers import (
    ClassToken,
    Dropout,
    FeedForward,
    GridPositions,
    MultiHeadAttention,
    PatchEmbedding,
    TransformerBlock,
)
from .image_classifier import ImageClassifier, check_image_config
from .model import block_shapes, check_config, norm_shapes, stack


@dataclass(frozen=True)
class ViTConfig:
    """Configuration of a `ViT` and its image preprocessing; the defaults are those of B/16.

    >>> config = polyhead.ViTConfig(class_names=("cat", "dog"), num_classes=2)
    >>> config.grid, polyhead.ViT.count_parameters(config)
    ((14, 14), 85800194)
    """

    image_size: int | tuple[int, int] = 224  # pixels: one side, or height and width
    patch_size: int = 16
    channels: int = 3
    num_classes: int = 1000  # 0: no head, features instead of logits
    num_layers: int = 12
    dim: int = 768
    intermediate_dim: int = 3072
    num_heads: int = 12
    pooling: str = "token"  # or "mean": over the patches, without a class token
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0  # rate of the last block; it grows linearly from 0
    activation: str = "gelu"
    epsilon: float = 1e-6
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] = (0.5,)  # of pixels in [0, 1]: for all channels, or for each
    std: tuple[float, ...] = (0.5,)
    interpolation: str = "bilinear"  # for resizing
    squash: bool = True  # resize to another aspect ratio; False: keep the ratio and crop the rest
    crop: float = 1.0  # fraction of each side that is kept (center crop)

    def __post_init__(self):
        check_config(self)
        check_image_config(self)

    @property
    def grid(self) -> tuple[int, ...]:
        """The numbers of rows and columns of patches."""
        return tuple(side // self.patch_size for side in self.image_size)


SIZES = "patch_size", "dim", "intermediate_dim", "num_layers", "num_heads"


def preset(*sizes, **others):
    return ViTConfig(**dict(zip(SIZES, sizes, strict=True)), **others)


SMALL = dict(image_size=32, num_classes=10)
PRESETS = {
    # B, L and H: Dosovitskiy et al. 2020, table 1; Ti: Touvron et al. 2020 (DeiT), table 1; S:
    # Steiner et al. 2021, table 2. The number is the patch size.
    "ti-16": preset(16, 192, 768, 12, 3),
    "s-16": preset(16, 384, 1536, 12, 6),
    "s-32": preset(32, 384, 1536, 12, 6),
    "b-16": preset(16, 768, 3072, 12, 12),
    "b-32": preset(32, 768, 3072, 12, 12),
    "l-16": preset(16, 1024, 4096, 24, 16),
    "h-14": preset(14, 1280, 5120, 32, 16),
    # ViT-Lite-7/4 for images of 32 pixels: Hassani et al. 2021 (arXiv 2104.05704), table 1.
    "lite-4": preset(4, 256, 512, 7, 4, **SMALL),
    # Ours, for half an hour of training on 2 cores.
    "nano-4": preset(4, 128, 256, 6, 4, pooling="mean", **SMALL),
}


@keras.saving.register_keras_serializable("polyhead")
class ViT(ImageClassifier):
    """Vision Transformer (Dosovitskiy et al. 2020, section 3.1, equations 1 to 4).

    ``images`` (B, Y, X, C), pixels from 0 to 255 -> logits (B, classes). For images of another
    size than the configuration's, positions are interpolated (section 3.2). `classify` takes
    files, bytes and arrays of any size.

    Args:
        config: a `ViTConfig`.
        tokenizer: unused; all models of the zoo have the same arguments.
        initialize: False skips the initialization, when weights are about to be loaded.

    >>> model = polyhead.ViT(polyhead.ViTConfig(image_size=32, num_classes=5, num_layers=1, dim=24))
    >>> model(np.zeros([2, 32, 32, 3], "float32")).shape.as_list()
    [2, 5]
    >>> model = polyhead.ViT.from_pretrained("google/vit-base-patch16-224")  # doctest: +SKIP
    >>> model.classify("cat.jpg")  # doctest: +SKIP
    """

    Config = ViTConfig
    PRESETS = PRESETS
    FAMILIES = {"vit": ".published.vit_huggingface", "timm": ".published.vit_timm"}

    def __init__(
        self, config: ViTConfig, tokenizer: Any = None, initialize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(config, None, **kwargs)
        dtype = self.dtype_policy
        token = config.pooling == "token"
        self.patches = PatchEmbedding(config.patch_size, config.dim, dtype=dtype, name="patches")
        self.token = ClassToken(dtype=dtype, name="token") if token else None
        self.positions = GridPositions(config.grid, extra=token, dtype=dtype, name="positions")
        self.dropout = Dropout(config.dropout, dtype=dtype, name="dropout")
        last = max(config.num_layers - 1, 1)
        parts = dict(
            attention=MultiHeadAttention(config.num_heads, dropout=config.attention_dropout),
            feed_forward=FeedForward(config.intermediate_dim, config.activation),
            norm=LayerNormalization(epsilon=config.epsilon),
            dropout=config.dropout,
        )
        self.blocks = [
            TransformerBlock(
                **parts,
                stochastic_depth=config.stochastic_depth * i / last,
                dtype=dtype,
                name=f"block_{i}",
            )
            for i in range(config.num_layers)
        ]
        self.norm = LayerNormalization(epsilon=config.epsilon, dtype=dtype, name="norm")
        # Zeros, as in the paper's code: initial predictions are uniform.
        self.head = config.num_classes and keras.layers.Dense(
            config.num_classes, kernel_initializer="zeros", dtype=dtype, name="head"
        )
        self.patches.build((None, *config.image_size, config.channels))
        self.build_layers()
        for attention in self._attentions() if initialize else ():
            attention.initialize_mimetic()

    @classmethod
    def shapes(cls, config: ViTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
        c, token = config, config.pooling == "token"
        yield "patches/projection/kernel", (c.patch_size**2 * c.channels, c.dim)
        yield "patches/projection/bias", (c.dim,)
        if token:
            yield "token/embeddings", (1, c.dim)
        yield "positions/embeddings", (token + int(np.prod(c.grid)), c.dim)
        yield from block_shapes("block", c.num_layers, c, c.intermediate_dim)
        yield from norm_shapes("norm", c.dim).items()
        if c.num_classes:
            yield "head/kernel", (c.dim, c.num_classes)
            yield "head/bias", (c.num_classes,)

    def call(self, images: Any) -> Any:
        x = self.features(images)
        return ops.cast(self.head(x), "float32") if self.head else x

    def features(self, images: Any) -> Any:
        """``images`` (B, Y, X, C) -> (B, D): the class token, or the mean of the patches."""
        x, _ = stack(self.blocks, self.embed(images))
        return self.norm(x)[:, 0] if self.token else self.norm(ops.mean(x, axis=1))

    def embed(self, images: Any) -> Any:
        """``images`` (B, Y, X, C) -> (B, N, D): the class token and the patches, with positions."""
        c = self.config
        pixels = (ops.cast(images, "float32") / 255 - np.float32(c.mean)) / np.float32(c.std)
        grid = tuple(side // c.patch_size for side in images.shape[1:3])
        x = self.patches(ops.cast(pixels, self.compute_dtype))
        x = self.token(x) if self.token else x
        return self.dropout(self.positions(x, grid=grid))
