"""Texts as arguments of methods: checked, valid Unicode, in parts that are tokenized at once."""

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

CHUNK = 4096  # maximum number of texts that are tokenized at once
LARGEST = 1 << 22  # and of their characters, padding included
SURROGATES = re.compile("[\ud800-\udfff]")


def as_texts(
    verb: str, texts: Any, name: str = "text", pairs: bool = False, words: bool = False
) -> tuple[list, bool]:
    """Returns ``texts`` as a list of valid strings, and whether they are one text.

    Args:
        pairs: an item may be a pair, a tuple of two strings: then all must be.
        words: an item may be a list of words.

    Raises:
        TypeError: they are something else, or an item is; the message names the method, ``verb``.
    """
    single = isinstance(texts, str | bytes) or pairs and isinstance(texts, tuple)
    kinds = "a string or a list of them"
    kinds = kinds + " or of pairs, tuples of two strings" * pairs + " or of lists of words" * words
    # Of a set the results would have no order; of a dictionary, and of a table, which has columns,
    # the keys would be the texts.
    no_list = isinstance(texts, Mapping | Set) or hasattr(texts, "columns")
    if not isinstance(texts, Iterable) or no_list or getattr(texts, "ndim", 1) == 0:
        raise TypeError(f"{verb} takes {kinds}: {name}s is {texts!r:.100}")
    texts = [texts] if single else list(texts)
    result = []
    for i, text in enumerate(texts):
        several = pairs and isinstance(text, tuple) and len(text) == 2
        several = several or words and isinstance(text, list | tuple)
        parts = text if several else [text]
        if not all(isinstance(part, str | bytes) for part in parts):
            raise TypeError(f"{verb} takes {kinds}: {name} {i} is {text!r:.100}")
        parts = [clean(part) for part in parts]
        result.append((tuple(parts) if pairs else parts) if several else parts[0])
        if pairs and isinstance(result[i], tuple) is not isinstance(result[0], tuple):
            raise TypeError(f"{verb} takes strings or pairs, not both: {name} {i} is {text!r:.100}")
    return result, single


def clean(text):
    """A string without lone surrogates: each becomes U+FFFD, as invalid UTF-8 does."""
    if isinstance(text, bytes):
        return text.decode("utf-8", "replace")
    return SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def chunks(items, most=CHUNK) -> Iterator[list]:
    """Yields parts of ``items`` that are tokenized at once: limited in number and in length."""
    chunk, longest = [], 0
    for item in items:
        length = len(item) if isinstance(item, str) else sum(map(len, item))
        longer = max(longest, length)
        if chunk and (len(chunk) == most or longer * (len(chunk) + 1) > LARGEST):
            yield chunk
            chunk, longer = [], length
        chunk.append(item)
        longest = longer
    if chunk:
        yield chunk
