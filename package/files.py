"""Reads and writes small files, with errors that name them. For all packages; imports neither Keras
nor TensorFlow."""

import gzip
import json
import os
import zlib
from os import PathLike
from pathlib import Path

# Errors of reading content with other types or names than expected.
FAULTS = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
GZIP = b"\x1f\x8b"  # the first bytes of every gzip file


def write_file(path: str | PathLike[str], content: bytes) -> None:
    """Writes bytes atomically. An `OSError`, for example for a full disk, names the file.

    >>> polyhead.training.write_file("notes.txt", b"All of it, or nothing.")
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def ends_with(name, suffixes):
    """Whether a file's name ends with one of ``suffixes``, or with one and .gz; in any case."""
    return name.lower().removesuffix(".gz").endswith(suffixes)


def read(path):
    """Reads the bytes of a file.

    Raises:
        ValueError: the path is not a regular file; a pipe or a device might block forever.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    return path.read_bytes()


def read_data(path):
    """Reads the bytes of a file of data, decompressed if it is a gzip file.

    Raises:
        ValueError: the path is not a regular file, or not a complete gzip file.
    """
    content = read(path)
    if path.suffix.lower() != ".gz" and content[:2] != GZIP:
        return content
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}") from None


def explain(error):
    """What is wrong with the content of a file, for errors of which some have only a name."""
    return f"it lacks {error}" if isinstance(error, KeyError) else error


def read_json(path, reader=read):
    """Reads the object in a JSON file, whose bytes are read by ``reader``.

    Raises:
        ValueError: the file is not JSON, not an object, or nested too deeply; the message names it.
    """
    content = reader(path)
    try:
        content = json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{path} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content
