"""Runs a SavedModel like TensorFlow Serving, through its C++ loader.

    python -m polyhead.serving.loader EXPORT/1 "A dog runs."
    python -m polyhead.serving.loader --signature beam EXPORT/1 "A dog runs."
    python -m polyhead.serving.loader EXPORT/1 photo.jpg
    echo '{"instances": [{"text": "A dog runs."}]}' | python -m polyhead.serving.loader EXPORT/1

TensorFlow Serving uses the same loader and sessions, without XLA, and only has the operations of
core TensorFlow and TensorFlow Text. This module does the same through the C API, in a process that
has not imported tensorflow: a model that works here does not depend on Python.
"""

import argparse
import base64
import binascii
import contextlib
import ctypes
import importlib.util
import json
import math
import os
import re
import sys
from os import PathLike
from pathlib import Path
from typing import Any

from ..quiet import LOCK, filtered_stderr

FLOAT, INT32, STRING = 1, 3, 7  # tensorflow/core/framework/types.proto
NUMBERS = {FLOAT: (ctypes.c_float, (int, float)), INT32: (ctypes.c_int32, (int,))}
POINTER = ctypes.c_void_p
# Line breaks within a text that JSON does not escape; many readers of lines end a line there.
BREAKS = re.compile("[\x85\u2028\u2029]")


class Endpoint(ctypes.Structure):
    """TF_Output: the ``index``-th output of an operation."""

    _fields_ = [("operation", POINTER), ("index", ctypes.c_int)]


class Bytes(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = [("data", POINTER), ("length", ctypes.c_size_t), ("free", POINTER)]


class SavedModel:
    """A SavedModel whose signatures take and return strings, float32 and int32.

    Inputs have shape (B,), or are nested lists of numbers. Bytes that are not valid UTF-8 are
    ``{"b64": "..."}``, as in the server's REST interface.

    TensorFlow's libraries are loaded without global symbols, so that modules with their own OpenSSL
    (hashlib, ssl), and tensorflow itself, can be imported afterwards.

    >>> from polyhead.serving.loader import SavedModel
    >>> model = SavedModel("EXPORT/1")  # doctest: +SKIP
    >>> model({"text": ["A dog runs."]})  # doctest: +SKIP

    Raises:
        RuntimeError: TensorFlow cannot load or run it; the message is TensorFlow's.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        if "tensorflow" in sys.modules:
            raise RuntimeError(
                "tensorflow is already imported: load the model in another process, without it"
            )
        if not tensorflow_library().exists():
            raise RuntimeError(f"TensorFlow has no C++ loader here: {tensorflow_library()}")
        with filtered_stderr():
            # Symbols are also looked up in this library's dependencies.
            self._library = ctypes.CDLL(str(tensorflow_library()))
        for library in text_libraries():
            self._checked("TF_LoadLibrary", POINTER, str(library).encode())
        self._graph = self._c("TF_NewGraph", POINTER)
        meta_graph = Bytes()
        tags = (ctypes.c_char_p * 1)(b"serve")
        with self._without_xla():
            self._session = self._checked(
                "TF_LoadSessionFromSavedModel",
                POINTER,
                POINTER(self._c("TF_NewSessionOptions", POINTER)),
                None,
                os.fsencode(folder),
                tags,
                1,
                POINTER(self._graph),
                ctypes.byref(meta_graph),
            )
        self.signatures = read_signatures(ctypes.string_at(meta_graph.data, meta_graph.length))

    def answer(
        self, request: dict[str, Any], signature: str = "serving_default"
    ) -> dict[str, list]:
        """Answers a request to the server's REST interface, decoded from JSON.

        ``{"instances": [...]}`` holds rows: values, or objects with a value for each input. The
        answer is ``{"predictions": [...]}``: values, or objects if there are several outputs.
        ``{"inputs": ...}`` holds columns: a list, or an object with a list for each input. The
        answer is ``{output: list}``, which the server puts under "outputs". ``"signature_name"``
        selects another signature.
        """
        if not isinstance(request, dict):
            raise RuntimeError(f"a request must be a JSON object, not {request!r:.100}")
        if ("instances" in request) == ("inputs" in request):
            raise RuntimeError(
                f"a request must have either 'instances' or 'inputs': {request!r:.100}"
            )
        signature = request.get("signature_name", signature)
        inputs = sorted(self._signature(signature)[0])
        if "instances" in request:
            outputs = self(columns(request["instances"], inputs), signature)
            if len(outputs) == 1:
                return {"predictions": next(iter(outputs.values()))}
            rows = zip(*outputs.values(), strict=True)
            return {"predictions": [dict(zip(outputs, row, strict=True)) for row in rows]}
        given = request["inputs"]
        if isinstance(given, list) and len(inputs) == 1:
            given = {inputs[0]: given}
        return self(given, signature)

    def __call__(
        self, feeds: dict[str, list], signature: str = "serving_default"
    ) -> dict[str, list]:
        """Runs a signature: ``{input: list of values}`` -> ``{output: nested list}``."""
        inputs, outputs = self._signature(signature)
        if not isinstance(feeds, dict) or not all(isinstance(v, list) for v in feeds.values()):
            raise RuntimeError(f"inputs must be lists of values by name, not {feeds!r:.100}")
        if set(feeds) != set(inputs):
            raise RuntimeError(f"{signature} takes {sorted(inputs)}, not {sorted(feeds)}")
        given = [self._tensor(name, feeds[name], kind) for name, (_, kind) in inputs.items()]
        answers = (POINTER * len(outputs))()
        with self._without_xla():
            self._checked(
                "TF_SessionRun",
                None,
                POINTER(self._session),
                None,
                (Endpoint * len(given))(*(self._endpoint(tensor) for tensor, _ in inputs.values())),
                (POINTER * len(given))(*given),
                len(given),
                (Endpoint * len(answers))(
                    *(self._endpoint(tensor) for tensor, _ in outputs.values())
                ),
                answers,
                len(answers),
                None,
                0,
                None,
            )
        listed = {n: self._list(POINTER(t)) for n, t in zip(outputs, answers, strict=True)}
        for tensor in [*given, *answers]:
            self._c("TF_DeleteTensor", None, POINTER(tensor))
        return listed

    def _signature(self, name):
        if not isinstance(name, str) or name not in self.signatures:
            raise RuntimeError(f"no signature {name!r}: choose from {sorted(self.signatures)}")
        return self.signatures[name]

    @contextlib.contextmanager
    def _without_xla(self):
        """A context without XLA, as in model_servers/main.cc; it is on again afterwards."""
        with LOCK:  # XLA is on or off for the whole process
            self._c("_ZN10tensorflow21DisableXlaCompilationEv", None)
            try:
                yield
            finally:
                self._c("_ZN10tensorflow20EnableXlaCompilationEv", None)

    def _c(self, name, result, *arguments):
        function = getattr(self._library, name)
        function.restype = result
        return function(*arguments)

    def _checked(self, name, result, *arguments):
        status = POINTER(self._c("TF_NewStatus", POINTER))
        try:
            value = self._c(name, result, *arguments, status)
            if code := self._c("TF_GetCode", ctypes.c_int, status):
                message = self._c("TF_Message", ctypes.c_char_p, status).decode()
                raise RuntimeError(f"TensorFlow failed with code {code}: {message[:2000]}")
            return value
        finally:
            self._c("TF_DeleteStatus", None, status)

    def _endpoint(self, tensor):
        name, index = tensor.split(":")
        operation = self._c("TF_GraphOperationByName", POINTER, POINTER(self._graph), name.encode())
        return Endpoint(operation, int(index))

    def _tensor(self, name, values, kind):
        if kind == STRING and all(isinstance(value, str | bytes | dict) for value in values):
            return self._strings([content(value) for value in values])
        shape, given = [len(values)], values
        while values and all(isinstance(value, list) for value in values):
            if len({len(value) for value in values}) > 1:
                raise RuntimeError(f"lists in {name} must have the same length: {given!r:.100}")
            shape.append(len(values[0]))
            values = [one for value in values for one in value]
        number, types = NUMBERS.get(kind, (None, ()))
        if number is None or not all(type(value) in types for value in values):
            rule = {STRING: "strings", FLOAT: "numbers", INT32: "integers"}.get(kind, "not known")
            raise RuntimeError(f"values of {name} are {rule}, not {given!r:.100}")
        if number is ctypes.c_int32 and not all(-(2**31) <= value < 2**31 for value in values):
            raise RuntimeError(f"values of {name} must fit in 32 bits: {values!r:.100}")
        axes = (ctypes.c_int64 * len(shape))(*shape)
        size = ctypes.c_size_t(4 * len(values))
        tensor = POINTER(self._c("TF_AllocateTensor", POINTER, kind, axes, len(shape), size))
        if values:
            start = self._c("TF_TensorData", POINTER, tensor)
            (number * len(values)).from_address(start)[:] = values
        return tensor.value

    def _strings(self, texts):
        shape = (ctypes.c_int64 * 1)(len(texts))
        tensor = POINTER(
            self._c(
                "TF_AllocateTensor", POINTER, STRING, shape, 1, ctypes.c_size_t(24 * len(texts))
            )
        )
        start = self._c("TF_TensorData", POINTER, tensor)
        for i, text in enumerate(texts):
            slot = POINTER((start or 0) + 24 * i)
            self._c("TF_StringInit", None, slot)
            self._c("TF_StringCopy", None, slot, text, ctypes.c_size_t(len(text)))
        return tensor.value

    def _list(self, tensor):
        axes = range(self._c("TF_NumDims", ctypes.c_int, tensor))
        shape = [self._c("TF_Dim", ctypes.c_int64, tensor, axis) for axis in axes]
        count = math.prod(shape)
        start = self._c("TF_TensorData", POINTER, tensor)
        kind = self._c("TF_TensorType", ctypes.c_int, tensor)
        if kind not in (*NUMBERS, STRING):
            raise RuntimeError(f"outputs must be string, float32 or int32, not type {kind}")
        if not count:
            values = []
        elif kind in NUMBERS:
            values = list((NUMBERS[kind][0] * count).from_address(start))
        else:
            values = [self._text(POINTER(start + 24 * i)) for i in range(count)]
        for size in reversed(shape[1:]):
            values = [values[i : i + size] for i in range(0, len(values), size)]
        return values

    def _text(self, slot):
        return ctypes.string_at(
            self._c("TF_StringGetDataPointer", POINTER, slot),
            self._c("TF_StringGetSize", ctypes.c_size_t, slot),
        ).decode("utf-8", "backslashreplace")


def columns(instances, inputs):
    """Converts the rows of a request, ``instances``, to ``{input: list}``."""
    if not isinstance(instances, list) or not instances:
        raise RuntimeError(f"instances must be a non-empty list, not {instances!r:.100}")
    named = [isinstance(row, dict) and set(row) != {"b64"} for row in instances]
    if len(inputs) == 1 and not any(named):
        return {inputs[0]: instances}
    for i, row in enumerate(instances):
        if not named[i] or sorted(row) != inputs:
            raise RuntimeError(f"instance {i} must be an object with {inputs}, not {row!r:.100}")
    return {name: [row[name] for row in instances] for name in inputs}


def content(value):
    """The bytes of a string or of base64 in JSON."""
    if isinstance(value, dict):
        if set(value) != {"b64"} or not isinstance(value["b64"], str):
            raise RuntimeError(f'bytes are {{"b64": "..."}}, not {value!r:.100}')
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise RuntimeError(f"not base64: {value['b64']!r:.100}: {error}") from None
    return value.encode() if isinstance(value, str) else value


def tensorflow_library():
    """The C++ library with the loader; TensorFlow's packages for Windows lack it."""
    return package("tensorflow") / "libtensorflow_cc.so.2"


def text_libraries():
    """The libraries of TensorFlow Text's operations; none if it is not installed."""
    if importlib.util.find_spec("tensorflow_text") is None:
        return []
    return sorted(package("tensorflow_text").glob("python/ops/_*.so"))


def package(name):
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{name} is not installed")
    return Path(spec.origin).parent


def read_signatures(meta_graph):
    """Reads ``{signature: ({input: (tensor, type)}, {output: ...})}`` from a MetaGraphDef's bytes.

    The field numbers are those of tensorflow/core/protobuf/meta_graph.proto; its Python module
    would import tensorflow.
    """

    def mapping(message, number):
        pairs = (dict(fields(value)) for key, value in fields(message) if key == number)
        return {pair[1].decode(): pair.get(2, b"") for pair in pairs}

    def tensors(signature, number):
        infos = {name: dict(fields(info)) for name, info in mapping(signature, number).items()}
        return {name: (info[1].decode(), info.get(2)) for name, info in infos.items() if 1 in info}

    return {
        name: (tensors(signature, 1), tensors(signature, 2))
        for name, signature in mapping(meta_graph, 5).items()
    }


def fields(message):
    """Yields (number, value) of each field of a serialized protocol buffer."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            yield number, message[at : at + size]
            at += size


def main():
    parser = argparse.ArgumentParser(
        prog="python -m polyhead.serving.loader",
        description="Queries a SavedModel through TensorFlow Serving's C++ loader. Without TEXT or "
        "IMAGE, reads requests from standard input, one per line, in the format of the server's "
        'REST API: {"signature_name": "beam", "instances": [{"text": "A dog runs."}]}, or '
        '{"inputs": {"text": ["A dog runs."]}}.',
    )
    parser.add_argument("version", metavar="EXPORT/1", help="folder of an exported version")
    parser.add_argument("texts", metavar="TEXT|IMAGE", nargs="*", help="texts, or image files")
    parser.add_argument("--signature", default="serving_default", help="default: serving_default")
    options = parser.parse_args()
    try:
        model = SavedModel(options.version)
        requests = map(json.loads, filter(str.strip, sys.stdin))
        if options.texts:
            inputs = model.signatures.get(options.signature, ({},))[0]
            given = {"text": options.texts}
            if set(inputs) == {"image_bytes"}:
                given = {"image_bytes": [Path(path).read_bytes() for path in options.texts]}
            requests = [{"inputs": given}]
        for request in requests:
            answer = model.answer(request, options.signature)
            line = json.dumps(answer, ensure_ascii=False)
            print(BREAKS.sub(lambda c: f"\\u{ord(c[0]):04x}", line), flush=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
