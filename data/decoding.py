"""Decodes images, in Python and in exports, by the same TensorFlow operations."""

import functools

import numpy as np
import tensorflow as tf

FORMATS = "JPEG, PNG, GIF, BMP or WebP"
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
MAX_PIXELS = 60_000_000
MAX_SIDE = 65_535  # JPEG's limit; resizing a longer row or column would need much more memory
SCANS = 100  # of a progressive JPEG; files have about ten
MAX_STEPS = 1024  # maximum steps over the blocks of a file; limits the work for a malicious one
RUN = 1024  # maximum blocks of a GIF per step
EXIF = b"Exif\0\0"
ORIENTATION = 0x0112  # the Exif tag
# Whether to reverse rows and columns, by orientation; from 5 on the image is transposed first.
REVERSED = [(0, 0), (0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0)]


def decode(content, channels=3, max_pixels=MAX_PIXELS):
    """Decodes an image, a scalar of bytes, to pixels (Y, X, C) of uint8.

    The image is rotated by its Exif orientation (JPEG, PNG and WebP); an invalid Exif block is
    ignored. Only the first frame of an animated GIF is decoded. The size is checked before
    decoding.

    Args:
        content: the bytes of a JPEG, PNG, GIF, BMP or WebP file.
        channels: 1 (greyscale), 3 (RGB) or 4 (RGBA).
        max_pixels: an image with more pixels is refused.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are not such an image, or it is too large.
    """
    if channels not in (1, 3, 4):
        raise ValueError(f"encoded images are decoded to 1, 3 or 4 channels, not {channels!r}")
    with tf.init_scope():
        decoder = compile_decoder(int(channels))
    return decoder(tf.convert_to_tensor(content), tf.constant(int(max_pixels), tf.int64))


@functools.cache
def compile_decoder(channels):
    """The concrete function of `decode_any`; tracing takes a second."""
    function = tf.function(decode_any, autograph=False)
    content, max_pixels = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)
    return function.get_concrete_function(content, channels, max_pixels)


def decode_any(content, channels, max_pixels):
    head = tf.strings.join([tf.strings.substr(content, 0, 22), b"\0" * 22])

    def has(magic, at=0):
        return tf.strings.substr(head, at, len(magic)) == magic

    def decoder(function):
        @as_function
        def decoded(content):
            return tf.ensure_shape(function(content, channels, max_pixels), [None, None, channels])

        return lambda: decoded(content)

    def unknown(content, channels, max_pixels):
        with tf.control_dependencies([check(False, f"it is not {FORMATS}")]):
            return tf.zeros([0, 0, channels], tf.uint8)

    with tf.device("CPU"):
        return tf.cond(
            has(b"\xff\xd8\xff"),
            # Most JPEG files without Exif begin with a JFIF segment and a quantization table.
            lambda: decode_jpeg(
                content,
                channels,
                max_pixels,
                plain=has(b"\xff\xe0\0\x10", 2) & has(b"\xff\xdb", 20),
            ),
            lambda: tf.case(
                [
                    (has(b"\x89PNG\r\n\x1a\n"), decoder(decode_png)),
                    (has(b"GIF8"), decoder(decode_gif)),
                    (has(b"BM"), decoder(decode_bmp)),
                    (has(b"RIFF") & has(b"WEBP", 8), decoder(decode_webp)),
                ],
                default=decoder(unknown),
            ),
        )


def as_function(function):
    """Makes a function one node of the graph: each node of an unused branch costs time."""
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})


def decode_jpeg(content, channels, max_pixels, plain):
    """Decodes a JPEG file; ``plain`` means that it has no Exif block."""
    shape = tf.io.extract_jpeg_shape(content)
    # Each scan decodes all pixels again. The bytes FF DA begin one; other data do not have them.
    content_bytes = tf.io.decode_raw(content, tf.uint8)
    begins = (content_bytes[:-1] == 0xFF) & (content_bytes[1:] == 0xDA)
    scans = tf.reduce_sum(tf.cast(begins, tf.int32))
    few = check(scans <= SCANS, f"it has more than {SCANS} scans")
    with tf.control_dependencies([check_size(shape[:2], max_pixels), few]):
        checked = tf.identity(content)
    if channels == 1:  # TensorFlow decodes CMYK to RGB only
        image = tf.cond(
            shape[2] < 4,
            lambda: tf.io.decode_jpeg(checked, 1),
            lambda: convert_channels(tf.io.decode_jpeg(checked, 3), 1),
        )
    else:
        image = convert_channels(tf.io.decode_jpeg(checked, 3), channels)

    @as_function
    def upright(content, image):
        # Exif is in one of the segments APP0 to APP15, which, with comments, precede all others.
        at, segment = seek(
            content,
            2,
            10,
            lambda s: (
                (s[0] == 0xFF) & (s[1] >= 0xE0) & ((s[1] < 0xF0) | (s[1] >= 0xFE)) & ~is_exif(s)
            ),
            lambda at, s: tf.where(s[1] == 0xFF, at + 1, at + 2 + number(s[2:4])),
        )
        size = tf.where(is_exif(segment), number(segment[2:4]) - 2, 0)
        return turn_upright(image, slice_bytes(content, at + 4, size))

    return tf.cond(plain, lambda: image, lambda: upright(content, image))


def is_exif(segment):
    return tf.reduce_all(segment[4:10] == list(EXIF)) & (segment[1] == 0xE1)


def decode_png(content, channels, max_pixels):
    header = read_bytes(content, 12, 12)
    checks = [  # libpng accepts other chunks before the header
        check(is_chunk(header[:4], b"IHDR"), "the PNG does not begin with its header"),
        check_size(sides(header[8:], header[4:8]), max_pixels),
    ]
    with tf.control_dependencies(checks):
        image = tf.io.decode_png(tf.identity(content), channels)
    at, chunk = seek(
        content,
        8,
        8,
        lambda c: (c[4] > 0) & ~is_chunk(c[4:], b"eXIf") & ~is_chunk(c[4:], b"IDAT"),
        lambda at, c: at + 12 + number(c[:4]),
    )
    size = tf.where(is_chunk(chunk[4:], b"eXIf"), number(chunk[:4]), 0)
    return turn_upright(image, slice_bytes(content, at + 8, size))


def is_chunk(kind, name):
    return tf.reduce_all(kind == list(name))


def decode_gif(content, channels, max_pixels):
    """Decodes the first frame of a GIF; TensorFlow's decoder would keep all frames in memory."""

    def table(flags):  # the size of a table of colours
        return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)

    screen = read_bytes(content, 0, 13)
    at, frame = seek(
        content,
        13 + table(screen[10]),
        10,
        lambda b: b[0] == 0x21,
        lambda at, b: skip_blocks(content, at + 2),
        most=16,  # each may have as many steps as a file; few have more than 3
    )
    largest = tf.maximum(
        sides(screen[8:10], screen[6:8], True), sides(frame[7:9], frame[5:7], True)
    )
    end = skip_blocks(content, at + 11 + table(frame[9]))
    length = tf.cast(tf.strings.length(content), tf.int64)
    whole = (end <= length) & (read_bytes(content, end - 1, 1)[0] == 0)
    checks = [
        check(frame[0] == 0x2C, "the GIF has no image, or too many blocks before it"),
        check(whole, "the GIF is truncated, or has too many small blocks"),
        check_size(largest, max_pixels),
    ]
    with tf.control_dependencies(checks):
        still = tf.strings.join([slice_bytes(content, 0, end), b";"])
    return convert_channels(tf.io.decode_image(still, 3, expand_animations=False), channels)


def decode_bmp(content, channels, max_pixels):
    """Decodes a BMP of 8 bits per pixel with a palette, of 24, or of 32 without its alpha."""
    header = read_bytes(content, 0, 54)
    offset, size, bits, compression = (
        number(header[i:j], True) for i, j in ((10, 14), (14, 18), (28, 30), (30, 34))
    )
    kinds = ((bits == 8) & (compression == 0)) | (
        ((bits == 24) | (bits == 32)) & ((compression == 0) | (compression == 3))
    )
    shape = sides(header[22:26], header[18:22], True)
    shape = tf.minimum(shape, 2**32 - shape)  # a negative height: the first row is the top one
    checks = [
        check((size >= 40) & kinds, "a BMP must be uncompressed, of 8, 24 or 32 bits per pixel"),
        check_size(shape, max_pixels),
    ]
    with tf.control_dependencies(checks):
        image = tf.io.decode_bmp(tf.identity(content))
    palette = tf.reshape(read_bytes(content, 14 + size, 1024), [256, 4])[:, 2::-1]
    greys = tf.repeat(tf.range(256, dtype=tf.int64)[:, None], 3, axis=1)
    palette = tf.cast(tf.where(offset >= 18 + size, palette, greys), tf.uint8)
    image = tf.cond(
        bits == 8,
        lambda: tf.gather(palette, tf.cast(image[:, :, 0], tf.int32)),
        lambda: image[:, :, :3],
    )
    return convert_channels(tf.ensure_shape(image, [None, None, 3]), channels)


def decode_webp(content, channels, max_pixels):
    """Decodes a WebP; refuses animations, which overflow a buffer of TensorFlow 2.20 and 2.21."""
    header = read_bytes(content, 12, 18)
    kind, flags = header[:4], header[8]
    extended, lossless = is_chunk(kind, b"VP8X"), is_chunk(kind, b"VP8L")
    packed = number(header[9:13], True)
    shape = tf.where(
        extended,
        1 + sides(header[15:18], header[12:15], True),
        tf.where(
            lossless,
            1 + tf.stack([packed // 2**14, packed]) % 2**14,
            sides(header[16:18], header[14:16], True) % 2**14,
        ),
    )
    checks = [
        check(~(extended & (flags // 2 % 2 == 1)), "an animated WebP is not supported"),
        check_size(shape, max_pixels),
    ]
    with tf.control_dependencies(checks):
        image = tf.io.decode_image(tf.identity(content), 3, expand_animations=False)
    at, chunk = seek(
        content,
        12,
        8,
        lambda c: extended & (flags // 8 % 2 == 1) & (c[0] > 0) & ~is_chunk(c[:4], b"EXIF"),
        lambda at, c: at + 8 + (number(c[4:], True) + 1) // 2 * 2,
    )
    size = tf.where(is_chunk(chunk[:4], b"EXIF"), number(chunk[4:], True), 0)
    return turn_upright(convert_channels(image, channels), slice_bytes(content, at + 8, size))


def read_orientation(exif):
    """Reads the orientation (1 to 8) in an Exif block, a scalar of bytes; 1 if there is none."""
    start = tf.where(tf.strings.substr(exif, 0, len(EXIF)) == EXIF, len(EXIF), 0)
    start = tf.cast(start, tf.int64)
    order = read_bytes(exif, start, 4)
    little, big = (tf.reduce_all(order == list(magic)) for magic in (b"II*\0", b"MM\0*"))
    table = start + number(read_bytes(exif, start + 4, 4), little)
    count = number(read_bytes(exif, table, 2), little)
    entries = tf.reshape(read_bytes(exif, table + 2, 12 * tf.maximum(count, 1)), [-1, 12])
    tag, kind, value = (number(entries[:, i : i + 2], little) for i in (0, 2, 8))
    values = number(entries[:, 4:8], little)
    found = (tag == ORIENTATION) & (kind == 3) & (values == 1) & (value <= 8)  # 3: of 16 bits
    return tf.where(little | big, tf.maximum(tf.reduce_max(tf.where(found, value, 1)), 1), 1)


def turn_upright(image, exif):
    """Rotates ``image`` (Y, X, C) by its Exif block, like Pillow's `ImageOps.exif_transpose`."""

    def turn():
        order = tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2])
        axes = tf.boolean_mask([0, 1], tf.gather(np.array(REVERSED, bool), orientation))
        return tf.reverse(tf.transpose(image, order), axes)

    orientation = tf.cond(
        tf.strings.length(exif) > 0,
        lambda: read_orientation(exif),
        lambda: tf.constant(1, tf.int64),
    )
    return tf.cond(orientation > 1, turn, lambda: image)


def convert_channels(image, channels):
    """Converts ``image`` (..., 1 or 3) of uint8 to 1 (greyscale), 3 or 4 channels, opaque.

    Greyscale is the luma of ITU-R 601, as in JPEG.
    """
    if image.shape[-1] == 1 and channels > 1:
        image = tf.repeat(image, 3, axis=-1)
    if image.shape[-1] == 3 and channels == 1:  # in 16 bits, to save memory
        parts = tf.cast(image, tf.uint16) * tf.constant([77, 150, 29], tf.uint16)
        grey = tf.reduce_sum(parts, axis=-1, keepdims=True) + tf.constant(128, tf.uint16)
        return tf.cast(tf.bitwise.right_shift(grey, tf.constant(8, tf.uint16)), tf.uint8)
    if channels == 4:
        opaque = tf.fill(tf.concat([tf.shape(image)[:-1], [1]], 0), tf.constant(255, tf.uint8))
        return tf.concat([image[..., :3], opaque], -1)
    return image


def check(condition, message):
    """An operation that fails with ``message`` unless ``condition`` holds."""
    return tf.raw_ops.Assert(condition=condition, data=[message], summarize=1)


def check_size(shape, max_pixels):
    """An operation that fails if an image of ``shape``, height and width, is too large."""
    shape = tf.cast(shape, tf.int64)
    fits = (tf.reduce_prod(shape) <= max_pixels) & (tf.reduce_max(shape) <= MAX_SIDE)
    limits = f"more than max_pixels={{}}, or a side is longer than {MAX_SIDE}"
    values = [*tf.unstack(shape), max_pixels]
    return check(fits, tf.strings.format("it has {} x {} pixels, " + limits, values))


def slice_bytes(content, at, size):
    """At most ``size`` bytes of a string from ``at`` on."""
    at, size = (tf.cast(value, tf.int64) for value in (at, size))
    length = tf.cast(tf.strings.length(content), tf.int64)
    return tf.strings.substr(content, tf.clip_by_value(at, 0, length), tf.maximum(size, 0))


def read_bytes(content, at, size):
    """``size`` bytes of a string from ``at`` on, as int64; zeros beyond its end."""
    part = slice_bytes(content, at, size)
    values = tf.io.decode_raw(part, tf.uint8, fixed_length=tf.cast(size, tf.int32))
    return tf.cast(tf.ensure_shape(values, [size if isinstance(size, int) else None]), tf.int64)


def number(values, little=False):
    """The unsigned integer of bytes (..., N), the most significant first unless ``little``."""
    powers = 256 ** np.arange(values.shape[-1], dtype="int64")
    return tf.reduce_sum(values * tf.where(little, powers, powers[::-1]), axis=-1)


def sides(height, width, little=False):
    return tf.stack([number(height, little), number(width, little)])


def seek(content, start, size, more, step, most=MAX_STEPS):
    """Steps over blocks from ``start``; returns the place and ``size`` bytes of the last one.

    ``more(block)`` is whether to continue, ``step(at, block)`` the place of the next block.
    """

    def block(at):
        return at, read_bytes(content, at, size)

    return tf.while_loop(
        lambda at, found: more(found),
        lambda at, found: block(step(at, found)),
        block(tf.cast(start, tf.int64)),
        maximum_iterations=most,
    )


def skip_blocks(content, at):
    """Returns the end of a GIF's chain of sub-blocks, each after a byte with its size, or 0.

    Most blocks have the same size: a step skips up to ``RUN`` such blocks.
    """

    def step(at, block):
        size = block[0]
        part = slice_bytes(content, at, RUN * (size + 1))
        length = tf.cast(RUN * (size + 1), tf.int32)
        part = tf.io.decode_raw(part, tf.uint8, fixed_length=length)
        found = tf.cast(tf.reshape(part, [RUN, -1])[:, 0], tf.int64)
        places = tf.range(RUN, dtype=tf.int64)
        count = tf.reduce_min(tf.where(found == size, tf.constant(RUN, tf.int64), places))
        return at + count * (size + 1)

    return seek(content, at, 1, lambda block: block[0] > 0, step)[0] + 1
