"""Splits text into words exactly as byte-level tokenizers do, by RE2 in TensorFlow's graph."""

import re

import tensorflow as tf

# Unicode's white space; RE2's \s is only ASCII's.
SPACE = (
    r"\x{09}-\x{0d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}"
    r"\x{3000}"
)
# A surrogate, which valid text does not contain. It marks white space that a word follows.
MARK, MARK_PATTERN = b"\xed\xa0\x80", r"\x{d800}"

# The patterns of published tokenizers, as in their files.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
LEAD = r"[^\r\n\p{L}\p{N}]?"
CASED = rf"{LEAD}[{UPPER}]*[{LOWER}]+%s|{LEAD}[{UPPER}]+[{LOWER}]*%s"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": rf"{CONTRACTIONS}|{LEAD}\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BLANKS}",
    "Qwen 2": rf"{CONTRACTIONS}|{LEAD}\p{{L}}+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BLANKS}",
    "cl100k": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "o200k": CASED % (f"{CONTRACTIONS}?", f"{CONTRACTIONS}?")
    + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}",
    "Tekken": CASED % ("", "") + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}",
}
GPT2 = PATTERNS["GPT-2"]

# Code points that the `tokenizers` library has and RE2's older Unicode tables lack.
NEWER = {
    "Lu": "1c89 a7cb-a7cc a7da a7dc 10d50-10d65",
    "Ll": "1c8a a7cd a7db 10d70-10d85",
    "Lt": "",
    "Lm": "10d4e 10d6f 16d40-16d42 16d6b-16d6c",
    "Lo": "105c0-105f3 10d4a-10d4d 10d4f 10ec2-10ec4 11380-11389 1138b 1138e 11390-113b5 113b7"
    " 113d1 113d3 11bc0-11be0 13460-143fa 16100-1611d 16d43-16d6a 18cff 1e5d0-1e5ed 1e5f0"
    " 2ebf0-2ee5d",
    "M": "897 10d69-10d6d 10efc 113b8-113c0 113c2 113c5 113c7-113ca 113cc-113d0 113d2"
    " 113e1-113e2 11f5a 1611e-1612f 1e5ee-1e5ef",
    "N": "10d40-10d49 116d0-116e3 11bf0-11bf9 16130-16139 16d70-16d79 1ccf0-1ccf9 1e5f1-1e5fa",
}
NEWER["L"] = " ".join(NEWER[kind] for kind in ("Lu", "Ll", "Lm", "Lo"))
# Numbers that only the step `Digits` of the library has, not its patterns.
NEWER["digits"] = NEWER["N"] + " 11de0-11de9 16ff4-16ff6"


def unicode_class(kind):
    """The content of an RE2 class for a Unicode category, with its newer code points."""
    return (r"\p{N}" if kind == "digits" else rf"\p{{{kind}}}") + code_points(NEWER[kind])


def code_points(ranges):
    """The content of an RE2 class for hexadecimal ranges such as "9-d 20"."""
    return "".join(rf"\x{{{point}}}" for point in ranges.split()).replace("-", r"}-\x{")


def to_re2(pattern, digits=False):
    """Converts a pattern to RE2; returns the patterns of words and of marks for `split_words`.

    RE2 has neither lookahead nor possessive quantifiers. So `MARK` is inserted before each white
    space character that is followed by another character: the one that ``\\s+(?!\\S)`` leaves to
    the next word.

    Args:
        digits: whether each digit is a separate word (the step `Digits`); for GPT-2's pattern.
    """
    if digits:
        pattern = pattern.replace(r" ?\p{N}+", r"\p{N}")
    for published, ours in (
        ("?+", "?"),
        ("++", "+"),
        (r"\s+(?!\S)|\s+", rf"[\s]+|{MARK_PATTERN}[\s]"),
        (r"\s*[\r\n]", rf"[\s{MARK_PATTERN}]*[\r\n]"),
        (r"[^\r\n\p{L}\p{N}]?", rf"(?:{MARK_PATTERN}?[^\r\n\p{{L}}\p{{N}}{MARK_PATTERN}])?"),
        (" ?", f"(?:{MARK_PATTERN}? )?"),
        (r"[^\s\p{L}\p{N}]", rf"[^\s{MARK_PATTERN}\p{{L}}\p{{N}}]"),
        (r"[\r\n]*", rf"(?:{MARK_PATTERN}?[\r\n])*"),
        (r"[\r\n/]*", rf"(?:{MARK_PATTERN}?[\r\n]|/)*"),
    ):
        pattern = pattern.replace(published, ours)
    number = "digits" if digits else "N"
    pattern = re.sub(r"(\[[^]]*\])|(\\p\{\w+\})", lambda m: m[1] or f"[{m[2]}]", pattern)
    pattern = re.sub(
        r"\\p\{(\w+)\}", lambda m: unicode_class(number if m[1] == "N" else m[1]), pattern
    )
    # White space before a separate digit stays together.
    other = unicode_class(number) if digits else ""
    return pattern.replace(r"\s", SPACE), f"([{SPACE}])([^{SPACE}{other}])"


def split_words(texts, pattern, marks):
    """Splits ``texts`` (N,) into ragged words (N, None), with marks (see `to_re2`)."""
    return split(tf.strings.regex_replace(texts, marks, MARK + rb"\1\2"), pattern)


def remove_marks(words):
    return tf.strings.regex_replace(words, MARK_PATTERN, "")


def split(texts, pattern):
    """Splits ``texts`` (N,) into ragged (N, None) matches of ``pattern`` and the text between."""
    return split_with_starts(texts, pattern, pattern)[0]


def split_with_starts(texts, pattern, kept):
    """Splits ``texts`` (N,) at matches of ``pattern``; the matches of ``kept`` stay.

    `tensorflow_text.regex_split_with_offsets` without its checks of what its kernel returns, which
    are half of the operations of a tokenizer and of the time to trace one.

    Returns:
        the parts, and the first byte of each, both ragged (N, None).
    """
    text_operations()
    from tensorflow_text.python.ops.regex_split_ops import gen_regex_split_ops as kernels

    parts, starts, _, row_splits = kernels.regex_split_with_offsets(
        texts, f"({pattern})", f"({kept})"
    )
    parts = tf.RaggedTensor.from_row_splits(parts, row_splits, validate=False)
    return parts, parts.with_values(starts)


def text_operations():
    """Imports TensorFlow Text, whose operations split text in the graph.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import tensorflow_text
    except ModuleNotFoundError as error:
        if error.name != "tensorflow_text":
            raise
        raise ImportError(
            "text needs tensorflow-text, which has no wheel for Windows: use Linux, macOS or WSL"
        ) from None
    return tensorflow_text
