"""``preprocessor_config.json``: the image preprocessing of Hugging Face's vision models."""

import numpy as np

from .files import naming_errors

PIXELS = "preprocessor_config.json"
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
FIXED = {"do_rescale": True, "do_resize": True, "rescale_factor": 1 / 255}
IGNORED = (
    "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb",
    "data_format", "input_data_format", "return_tensors", "disable_grouping", "device",
    "do_pad", "pad_size", "image_seq_length",
)  # fmt: skip
PLAIN = {"mean": (0.0,), "std": (1.0,)}  # one for all channels


def read_pixels(s):
    """Reads the fields of a configuration for image preprocessing."""
    with naming_errors(s.file):
        return pixel_fields(s)


def pixel_fields(s):
    s.fixed(FIXED)
    found = {name: s.get(f"image_{name}", [0.5]) for name in PLAIN}
    found |= s.read([("resample", "interpolation", 2, RESAMPLING)])
    size, cropped = s.get("size", None), s.get("crop_size", None)
    square, cut = s.flag("default_to_square", True), s.flag("do_center_crop", False)
    shortest = "shortest_edge" in size if isinstance(size, dict) else not square
    height, width = read_sides("size", size, s) if cut or size is not None else (0, 0)
    if shortest and not cut:
        raise s.error("size", size, "a height and a width, if do_center_crop is False")
    crop = 1.0
    if cut:
        side, other = read_sides("crop_size", cropped, s)
        if side > height or other > width:
            raise s.error("size", size, f"at least crop_size, {cropped}")
        # The aspect ratios may differ by rounding.
        if abs(side / height - other / width) > 1 / min(height, width):
            raise s.error("crop_size", cropped, f"of the aspect ratio of {size}")
        crop = min(side, other) / min(height, width)
    found |= {} if s.flag("do_normalize", True) else PLAIN
    s.ignore(*IGNORED)
    s.all_read()
    return found | {"squash": not shortest, "crop": crop}


def read_sides(name, size, s):
    """Reads height and width of a size in the settings ``s`` of an image processor."""
    if not isinstance(size, dict):
        found = [size, size]
    elif set(size) == {"shortest_edge"}:
        found = 2 * [size["shortest_edge"]]
    else:
        found = [size.get(side) for side in ("height", "width")] if len(size) == 2 else []
    if not found or not all(type(side) is int and side > 0 for side in found):
        raise s.error(name, size, "a number, a height and a width, or a shortest_edge")
    return found


def write_pixels(config):
    """Returns the ``preprocessor_config.json`` of a configuration.

    Raises:
        ValueError: the format cannot express a setting.
    """
    if not config.squash and len(set(config.image_size)) > 1:
        raise ValueError(f"image_size must be square in this format: {config.image_size}")
    size = dict(zip(("height", "width"), config.image_size, strict=True))
    cut = not config.squash or config.crop < 1
    numbers = {name: number for number, name in RESAMPLING.items()}
    written = FIXED | {
        "image_processor_type": "DeiTImageProcessor" if cut else "ViTImageProcessor",
        "do_normalize": True,
        "image_mean": np.broadcast_to(config.mean, config.channels).tolist(),
        "image_std": np.broadcast_to(config.std, config.channels).tolist(),
        "resample": numbers[config.interpolation],
        "size": size,
    }
    if cut:
        written |= {"do_center_crop": True, "crop_size": size}
        written["size"] = {name: round(side / config.crop) for name, side in size.items()}
        if not config.squash:
            written["size"] = {"shortest_edge": written["size"]["height"]}
    return written
