import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf

from polyhead.data.decoding import decode
from polyhead.data.images import Pixels, explain

Image = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib")
RANDOM = np.random.default_rng(0)
NOISE = Image.fromarray(RANDOM.integers(0, 256, (5, 7, 3)).astype("uint8"))
PHOTO = NOISE.resize((45, 33), Image.Resampling.BICUBIC)
GREY = {1: "L", 3: "RGB"}


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif(orientation, endian="<"):
    block = Image.Exif()
    block.endian = endian
    block[0x010F] = "a maker of cameras"
    block[0x0112] = orientation
    return block


def upright(file):
    """Decodes an image with Pillow, rotated by Exif."""
    from PIL import ImageOps

    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB"), int)


def refused(content, channels=3, **options):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        decode(content, channels, **options)
    return explain(error.value)


def png(width, height, data=b""):
    """A black PNG file: a header and rows of zeros."""

    def chunk(kind, body):
        sum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", sum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_images_are_rotated_by_exif_as_in_pillow(format):
    for orientation in range(1, 9):
        for endian in "<>":
            file = encode(PHOTO, format, exif=exif(orientation, endian))
            expected, found = upright(file), decode(file).numpy()
            assert found.shape == expected.shape == ((33, 45, 3), (45, 33, 3))[orientation > 4]
            # JPEG decoders differ by rounding; a wrong rotation differs by more than 50.
            assert np.abs(found - expected).max() <= (5 if format == "JPEG" else 0)


def test_exif_is_found_after_other_segments():
    file = encode(PHOTO, "JPEG", exif=exif(6), icc_profile=bytes(70_000), comment=b"a comment")
    assert decode(file).shape == (45, 33, 3)
    file = encode(PHOTO, "JPEG", exif=exif(6))
    app0 = 4 + struct.unpack(">H", file[4:6])[0] - 2
    assert file[app0 + 2 : app0 + 4] == b"\xff\xe1" or file[2:4] == b"\xff\xe1"
    filled = file[:2] + b"\xff\xff" + file[2:]  # fill bytes before a marker
    assert decode(filled).shape == (45, 33, 3)


def test_an_invalid_exif_block_is_ignored():
    file = encode(PHOTO, "JPEG", exif=exif(6))
    start = file.index(b"Exif\0\0") + 6
    length = struct.unpack(">H", file[start - 8 : start - 6])[0] - 8
    block = file[start : start + length]
    plain = decode(encode(PHOTO, "JPEG")).numpy()
    entry = block.index(struct.pack("<H", 0x0112))
    broken = [
        b"XX" + block[2:],
        block[:4] + struct.pack("<I", 2**32 - 1) + block[8:],  # the table is outside the file
        block[:8] + b"\0\0" + block[10:],  # without entries
        block[:8],
        block[:entry] + bytes(length - entry),
        block[: entry + 8] + struct.pack("<H", 9) + block[entry + 10 :],
        block[: entry + 8] + struct.pack("<H", 0) + block[entry + 10 :],
        block[: entry + 2] + struct.pack("<H", 2) + block[entry + 4 :],  # a string
        b"",
    ]
    broken += [RANDOM.bytes(length) for _ in range(20)]
    for other in broken:
        for size in (len(other) + 8, 0xFFFF):  # correct, or beyond the end of the file
            changed = file[: start - 8] + struct.pack(">H", size) + file[start - 6 : start] + other
            if size == len(other) + 8:
                found = decode(changed + file[start + length :]).numpy()
                np.testing.assert_array_equal(found, plain)
            else:
                refused(changed)


@pytest.mark.parametrize(
    "mode, format, options",
    [
        ("RGB", "JPEG", {}), ("L", "JPEG", {}), ("CMYK", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}), ("RGB", "PNG", {}), ("L", "PNG", {}),
        ("P", "PNG", {}), ("RGBA", "PNG", {}), ("LA", "PNG", {}), ("1", "PNG", {}),
        ("RGB", "GIF", {}), ("L", "GIF", {}), ("RGB", "BMP", {}), ("RGBA", "BMP", {}),
        ("L", "BMP", {}), ("P", "BMP", {}), ("RGB", "WEBP", {}), ("RGBA", "WEBP", {}),
    ],
)  # fmt: skip
def test_all_formats_are_decoded_to_rgb_and_greyscale(mode, format, options):
    file = encode(PHOTO.convert(mode), format, **options)
    for channels, name in GREY.items():
        expected = np.asarray(Image.open(io.BytesIO(file)).convert(name), int)
        found = decode(file, channels).numpy()
        assert found.shape == (33, 45, channels)
        most = 5 if format == "JPEG" else channels == 1
        assert np.abs(found - expected.reshape(found.shape)).max() <= most


def test_16_bit_images_are_decoded_to_8_bits():
    deep = Image.fromarray(RANDOM.integers(0, 2**16, (9, 8)).astype("uint16"))
    found = decode(encode(deep, "PNG"), 1).numpy()[:, :, 0]
    np.testing.assert_array_equal(found, np.asarray(deep) >> 8)


def test_only_the_first_frame_of_an_animation_is_decoded():
    frames = [PHOTO.rotate(90 * i).quantize(64) for i in range(5)]
    still = encode(frames[0], "GIF")
    file = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40, loop=0)
    np.testing.assert_array_equal(decode(file), decode(still))
    # A second frame of 65,535 x 65,535 pixels, which would take 4 GB.
    large = b"\x2c\0\0\0\0\xff\xff\xff\xff\0\x08\x02\x4c\x01\0"
    np.testing.assert_array_equal(decode(still[:-1] + large + b";"), decode(still))
    assert "truncated" in refused(still[:-40])
    assert "no image" in refused(still[:13] + b";")
    colours = 13 + 3 * 2 ** (still[10] % 8 + 1)
    assert "65535 x 65535 pixels" in refused(still[:colours] + large + b";")
    # In blocks of every size.
    start = still.index(b"\x2c", colours) + 10
    data, at = b"", start + 1
    while still[at]:
        data += still[at + 1 : at + 1 + still[at]]
        at += 1 + still[at]
    blocks, size = b"", 1
    while data:
        blocks += bytes([len(data[:size])]) + data[:size]
        data, size = data[size:], size % 255 + 1
    np.testing.assert_array_equal(decode(still[: start + 1] + blocks + b"\0;"), decode(still))


def test_bytes_that_cannot_be_decoded_are_refused():
    """TensorFlow's decoder crashes the process for an animated WebP."""
    again = [PHOTO.rotate(90)] * 3
    animated = encode(PHOTO, "WEBP", save_all=True, append_images=again)
    assert refused(animated) == "an animated WebP is not supported"
    for file in (b"", b"no image", encode(PHOTO, "TIFF"), animated[:20].lower()):
        assert refused(file) == "it is not JPEG, PNG, GIF, BMP or WebP"
    assert "8, 24 or 32 bits" in refused(encode(PHOTO.convert("1"), "BMP"))
    for format in ("JPEG", "PNG", "GIF", "BMP", "WEBP"):
        file = encode(PHOTO, format)
        for length in (9, 20, 40, len(file) // 2, len(file) - 20):
            assert refused(file[:length])
    with pytest.raises(ValueError, match="1, 3 or 4 channels, not 2"):
        decode(file, 2)


def test_the_size_is_checked_before_decoding():
    for format in ("JPEG", "PNG", "GIF", "BMP", "WEBP"):
        for options in ({}, {"lossless": True}, {"exif": exif(1)}) if format == "WEBP" else ({},):
            file = encode(PHOTO, format, **options)
            message = refused(file, max_pixels=33 * 45 - 1)
            assert message.startswith("it has 33 x 45 pixels, more than max_pixels=1484")
    bomb = png(8000, 8000)
    assert len(bomb) < 100_000
    assert "8000 x 8000 pixels" in refused(bomb)
    assert "a side is longer than 65535" in refused(png(70_000, 2))
    hidden = png(100, 100)  # libpng skips unknown chunks
    body = b"prVt" + struct.pack(">II", 1, 1)
    first = struct.pack(">I", 8) + body + struct.pack(">I", zlib.crc32(body))
    assert "does not begin with its header" in refused(hidden[:8] + first + hidden[8:])
    graph = tf.function(Pixels((8, 8)).batch)
    with pytest.raises(tf.errors.InvalidArgumentError, match="8000 x 8000 pixels"):
        graph(tf.constant([bomb]))


def test_the_number_of_scans_of_a_jpeg_is_limited():
    file = encode(PHOTO, "JPEG", progressive=True)
    last, end = file.rindex(b"\xff\xda"), file.rindex(b"\xff\xd9")
    assert 1 < file.count(b"\xff\xda") < 20
    decode(file[:end] + 50 * file[last:end] + file[end:], 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="it has more than 100 scans"):
        decode(file[:end] + 150 * file[last:end] + file[end:], 3)


PEAK = """
import resource, sys
import tensorflow as tf
from polyhead.data.images import Pixels
if sys.argv[2] == "graph":
    read = tf.function(Pixels((224, 224)).batch)
    call = lambda file: read(tf.constant([open(file, "rb").read()]))
else:
    call = Pixels((224, 224), squash=False, crop=0.9).read
call(sys.argv[1] + ".small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
call(sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["python", "graph"])
def test_decoding_50_megapixels_takes_at_most_4_bytes_per_channel(tmp_path, place):
    width, height = 8660, 5774
    row = RANDOM.integers(0, 256, (1, 300, 3)).astype("uint8")
    large = Image.fromarray(row).resize((width, height))
    (tmp_path / "photo.jpg").write_bytes(encode(large, "JPEG", exif=exif(6)))
    (tmp_path / "photo.jpg.small").write_bytes(encode(PHOTO, "JPEG", exif=exif(6)))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "photo.jpg"), place]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 4 * 3 * width * height
