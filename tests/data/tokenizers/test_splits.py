import random

import pytest
import tensorflow as tf
from tokenizers import Regex, pre_tokenizers

from polyhead.data.tokenizers.splits import (
    GPT2,
    NEWER,
    PATTERNS,
    SPACE,
    remove_marks,
    split_words,
    to_re2,
)

CASES = [(name, False) for name in PATTERNS] + [("GPT-2", True)]
PARTS = [
    *"  \t\n\n\r\r\n\u00a0\u3000\u0085\u2028abcDEF'sS'tLL012345é中.,!?/-_'\"\U0010ffff\ufdd0",
    *("'s", "'S", "'LL", "'Re", " '", " \n", "\n ", "  ", "éa", "中文", "123", "\u0308", "ا", "ǅ"),
    *("ª", "²", "Ⅷ", "😀", "\U0002ebf0", "\U00010d40", "\u1c89"),  # the last: newer than RE2
]
# All code points; in planes that are unassigned or private, every 64th.
POINTS = [
    chr(c)
    for c in range(1, 0x110000)
    if not 0xD800 <= c <= 0xDFFF and (c < 0x34000 or 0xE0000 <= c < 0xE1000 or c % 64 == 0)
]


def ours(name, digits, texts):
    words = split_words(tf.constant(texts), *to_re2(PATTERNS[name], digits))
    words = words.with_flat_values(remove_marks(words.flat_values)).to_list()
    return [[word.decode() for word in row] for row in words]


def theirs(name, digits, texts):
    step = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    if digits:
        step = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), step])
    return [[word for word, _ in step.pre_tokenize_str(text)] for text in texts]


@pytest.mark.parametrize("name, digits", CASES)
def test_words_of_random_strings_equal_the_library(name, digits):
    choose = random.Random(0)
    texts = ["".join(choose.choices(PARTS, k=choose.randint(0, 24))) for _ in range(2000)]
    assert ours(name, digits, texts) == theirs(name, digits, texts)


FEW = [("GPT-2", False), ("o200k", False)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, digits", [c if c in FEW else pytest.param(*c, marks=pytest.mark.long) for c in CASES]
)
def test_words_of_every_code_point_equal_the_library(name, digits):
    for i in range(0, len(POINTS), 100_000):
        texts = [f"a{c}b {c}1 {c}\n'{c} x" for c in POINTS[i : i + 100_000]]
        assert ours(name, digits, texts) == theirs(name, digits, texts)


@pytest.mark.slow
def test_newer_code_points_are_in_the_library_but_not_in_re2():
    def known(kind):
        step = pre_tokenizers.Split(Regex(rf"\p{{{kind}}}"), "removed")
        return [not step.pre_tokenize_str(c) for c in POINTS]

    for kind in ("Lu", "Ll", "Lt", "Lm", "Lo", "M", "N"):
        re2 = tf.strings.regex_full_match(POINTS, rf"\p{{{kind}}}").numpy()
        newer = {p for p, a, b in zip(POINTS, re2, known(kind), strict=True) if b and not a}
        listed = set()
        for span in NEWER[kind].split():
            first, *last = (int(point, 16) for point in span.split("-"))
            listed |= {chr(c) for c in range(first, (last or [first])[0] + 1)}
        assert newer == listed, kind
    space = pre_tokenizers.Split(Regex(r"\s"), "removed")
    listed = tf.strings.regex_full_match(POINTS, f"[{SPACE}]").numpy().tolist()
    assert listed == [not space.pre_tokenize_str(c) for c in POINTS]


def test_splitting_digits_keeps_white_space_together():
    assert ours("GPT-2", True, ["a  12 b"]) == [["a", "  ", "1", "2", " b"]]
    assert ours("GPT-2", False, ["a  12 b"]) == [["a", " ", " 12", " b"]]
    assert to_re2(GPT2) == to_re2(PATTERNS["GPT-2"], digits=False)
