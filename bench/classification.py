"""Compares ViT with Hugging Face's in PyTorch and with KerasHub's: `make bench`.

- Inference: B/16 with random weights, images of 224 pixels; in process (`ViT.classify` of arrays),
  and as an exported SavedModel, from JPEG bytes to labels, without XLA, through TensorFlow
  Serving's C++ loader.
- Training steps: AdamW, clipped gradients, no dropout; S/16 at 224 pixels and lite-4 at 32.
- The input pipeline alone.

Each figure is measured in a separate process, after compilation and warm-up, as the median of
several calls; its memory is the peak of the process. Writes bench/classification.md.
"""

import tempfile
from pathlib import Path

import numpy as np
from measure import (
    best,
    format_answer,
    keras_step,
    machine,
    measure_limits,
    median_time,
    ratio,
    run,
    run_isolated,
    torch_step,
    write,
)

SIDE = 224
BATCHES = (1, 16)
STEPS = [("s-16", SIDE, 16), ("lite-4", 32, 128)]  # preset, pixels, images of a batch


def images(batch, side):
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3)).astype("uint8")


def labels(batch, classes):
    return np.eye(classes, dtype="float32")[np.arange(batch) % classes]


def peer_model(preset):
    """Hugging Face's ViT with the sizes of a preset."""
    from transformers import ViTConfig, ViTForImageClassification

    from polyhead.zoo import ViT

    c = ViT.PRESETS[preset]
    sizes = ViTConfig(
        image_size=c.image_size[0], patch_size=c.patch_size, hidden_size=c.dim,
        num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads,
        intermediate_size=c.intermediate_dim, num_labels=c.num_classes, layer_norm_eps=c.epsilon,
    )  # fmt: skip
    return ViTForImageClassification(sizes)


def hub_model(preset):
    import keras_hub

    from polyhead.zoo import ViT

    c = ViT.PRESETS[preset]
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(*c.image_size, 3), patch_size=c.patch_size, num_layers=c.num_layers,
        num_heads=c.num_heads, hidden_dim=c.dim, mlp_dim=c.intermediate_dim, dropout_rate=0.0,
        attention_dropout=0.0, layer_norm_epsilon=c.epsilon,
    )  # fmt: skip
    return keras_hub.models.ViTImageClassifier(backbone, c.num_classes, preprocessor=None)


def torch_pixels(batch, side):
    import torch

    return torch.tensor(images(batch, side) / 127.5 - 1).float().permute(0, 3, 1, 2)


def peer(batch):
    import torch

    model, pixels = peer_model("b-16").eval(), torch_pixels(batch, SIDE)

    def call():
        with torch.no_grad():
            return model(pixels).logits.softmax(-1).argmax(-1)

    return median_time(call)


def hub(batch, jit):
    model, pixels = hub_model("b-16"), images(batch, SIDE).astype("float32")
    model.compile(jit_compile=jit)
    return median_time(lambda: model.predict_on_batch(pixels))


def ours(batch):
    from polyhead.zoo import ViT

    model, arrays = ViT.preset("b-16"), list(images(batch, SIDE))
    return median_time(lambda: model.classify(arrays, batch_size=batch))


def export(base, policy):
    import keras

    from polyhead.zoo import ViT

    keras.config.set_dtype_policy(policy)
    return str(ViT.preset("b-16").export(base))


def encode(folder):
    """Writes 1,000 JPEG files of 256 pixels, of one class."""
    import tensorflow as tf

    place = Path(folder) / "train" / "noise"
    place.mkdir(parents=True)
    for i in range(1000):
        smooth = tf.image.resize(np.random.default_rng(i).integers(0, 256, (16, 16, 3)), (256, 256))
        content = tf.io.encode_jpeg(tf.cast(smooth, tf.uint8), quality=90)
        (place / f"{i}.jpg").write_bytes(content.numpy())


def exported(version, folder, batch):
    """Seconds per call of the SavedModel through the C++ loader, from JPEG bytes to labels."""
    from polyhead.serving.loader import SavedModel

    files = [path.read_bytes() for path in sorted(Path(folder).rglob("*.jpg"))[:batch]]
    model = SavedModel(version)
    return median_time(lambda: model({"image_bytes": files}))


def peer_step(preset, side, batch, compile=False):
    import torch

    model = peer_model(preset).train()
    pixels = torch_pixels(batch, side)
    target = torch.tensor(labels(batch, model.config.num_labels))

    def loss():
        return torch.nn.functional.cross_entropy(model(pixels).logits, target)

    return torch_step(model, loss, compile)


def batch_of(side, batch, classes):
    return images(batch, side).astype("float32"), labels(batch, classes)


def hub_step(preset, side, batch, jit):
    import keras

    model, loss = hub_model(preset), keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(metrics=[])  # otherwise its default metrics stay, for integer labels
    return keras_step(model, loss, jit, batch_of(side, batch, model.output_shape[-1]))


def our_step(preset, side, batch, policy="float32", jit=True):
    import keras

    from polyhead.zoo import ViT

    keras.config.set_dtype_policy(policy)
    model, loss = ViT.preset(preset), keras.losses.CategoricalCrossentropy(from_logits=True)
    weights = np.ones(batch, "float32")
    pixels_and_labels = batch_of(side, batch, model.config.num_classes)
    return keras_step(model, loss, jit, (*pixels_and_labels, weights))


def pipeline(folder, augment):
    """Seconds for 4 batches of 64 from JPEG files of 256 pixels."""
    from polyhead.data import image_batches, read_images

    files = read_images(folder)
    stream = iter(image_batches(files, (SIDE, SIDE), 64, augment=augment, start=0))
    return median_time(lambda: [next(stream) for _ in range(4)])


def small_pipeline(augment, mix):
    """Seconds for 16 batches of 128 from an array of 32 pixels."""
    from polyhead.data import image_batches
    from polyhead.data.shapes import shapes

    stream = iter(image_batches(shapes(), (32, 32), 128, augment=augment, mix=mix, start=0))
    return median_time(lambda: [next(stream) for _ in range(16)])


def operations(preset, side):
    """Floating-point operations of the matrix products of an image's forward pass."""
    from polyhead.zoo import ViT

    c = ViT.PRESETS[preset]
    tokens = (side // c.patch_size) ** 2 + 1
    block = 4 * c.dim**2 + 2 * c.dim * c.intermediate_dim + 2 * tokens * c.dim
    return 2 * (c.num_layers * tokens * block + tokens * c.patch_size**2 * 3 * c.dim)


def inference(folder, rate):
    version, low = (
        run_isolated(export, folder / policy, policy, needed=True)[0]
        for policy in ("float32", "bfloat16")
    )
    run_isolated(encode, folder / "images", needed=True)
    lines = [
        "| batch | in process / HF | / KerasHub | exported, from JPEG / in process | in bfloat16 / "
        "in process | of measured GFLOP/s | HF | KerasHub | in process (XLA) | exported | "
        "in bfloat16 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for batch in BATCHES:
        rows = [
            run_isolated(peer, batch),
            best([run_isolated(hub, batch, jit) for jit in (True, False)]),
            run_isolated(ours, batch),
            run_isolated(exported, version, folder / "images", batch),
            run_isolated(exported, low, folder / "images", batch),
        ]
        theirs, other, own, served, half = (seconds for seconds, _ in rows)
        share = operations("b-16", SIDE) * batch / own / rate / 1e9
        pairs = (theirs, own), (other, own), (own, served), (own, half)
        ratios = " | ".join(ratio(*pair) for pair in pairs)
        speeds = " | ".join(format_answer(row, lambda s, b=batch: f"{b / s:.1f}") for row in rows)
        lines.append(f"| {batch} | {ratios} | {share:.0%} | {speeds} |")
        print(lines[-1], flush=True)
    return lines


def training(rate):
    lines = [
        "| model, batch | ours / HF eager | / HF compiled | / KerasHub | bfloat16 without XLA / "
        "ours | of measured GFLOP/s | HF eager | HF compiled | KerasHub | ours | "
        "bfloat16 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for sizes in STEPS:
        rows = [
            run_isolated(peer_step, *sizes),
            run_isolated(peer_step, *sizes, True),
            best([run_isolated(hub_step, *sizes, jit) for jit in (True, False)]),
            run_isolated(our_step, *sizes),
            run_isolated(our_step, *sizes, "mixed_bfloat16", False),
        ]
        eager, compiled, other, own, low = (seconds for seconds, _ in rows)
        share = 3 * operations(*sizes[:2]) * sizes[2] / own / rate / 1e9
        ratios = " | ".join(ratio(own, theirs) for theirs in (eager, compiled, other))
        times = " | ".join(format_answer(row, lambda s: f"{1000 * s:,.0f} ms") for row in rows)
        lines.append(
            f"| {sizes[0]} at {sizes[1]}, {sizes[2]} | {ratios} | {ratio(low, own)} | "
            f"{share:.0%} | {times} |"
        )
        print(lines[-1], flush=True)
    return lines


def main():
    (rate, *_), _ = run_isolated(measure_limits, needed=True)
    lines = [
        "# ViT against Hugging Face's and KerasHub's",
        "",
        f"`make bench`; {machine()}, float32 unless stated otherwise. A matrix product, "
        f"measured in the same run: {rate:.0f} GFLOP/s. KerasHub with or without XLA, whichever is "
        "faster. Memory is the peak of the process.",
        "",
        "Inference, B/16 at 224 pixels. Ratios of speed, ours to theirs; then images per second:",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        lines += inference(folder, rate)
        lines += [
            "",
            "A training step, AdamW. Ratios of time, ours to theirs:",
            "",
            *training(rate),
        ]
        speeds = [
            f"{name} {count / run_isolated(*call)[0]:,.0f}"
            for name, count, call in (
                (
                    "JPEG files of 256 pixels to 224, resized",
                    4 * 64,
                    (pipeline, folder / "images", None),
                ),
                ("cropped and flipped", 4 * 64, (pipeline, folder / "images", "light")),
                ("and RandAugment", 4 * 64, (pipeline, folder / "images", "strong")),
                (
                    "arrays of 32 pixels, shifted and flipped",
                    16 * 128,
                    (small_pipeline, "light", False),
                ),
                ("with RandAugment, MixUp and CutMix", 16 * 128, (small_pipeline, "strong", True)),
            )
        ]
    lines += ["", f"The input pipeline alone, images per second: {'; '.join(speeds)}."]
    write(__file__, lines)


if __name__ == "__main__":
    run(main)
