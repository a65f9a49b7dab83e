"""ONNX, LiteRT and OpenVINO files of networks, converted by Keras and checked by their runtimes."""

import functools
import importlib.util
import os
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .folder import temporary_folder

# File name suffix, converter and runtime; all belong to the extra `formats`.
FORMATS = {
    "onnx": ("", "tf2onnx", "onnxruntime"),
    "litert": (".tflite", "tensorflow", "ai_edge_litert"),
    "openvino": (".xml", "openvino", "openvino"),
}


class FormatError(ValueError):
    """A network cannot be converted, or the outputs of its file differ from the network's."""


def export_network(
    model: keras.Model,
    filepath: str | PathLike[str],
    format: str,
    signature: Any,
    limit: int | dict[str, int],
    tolerance: float = 1e-3,
    **settings: Any,
) -> Path:
    """Writes the network of a model, from tokens or pixels to logits, to ``filepath``.

    The file is written, or replaced, only after its runtime has given the same outputs as the
    model. (OpenVINO has two files; the weights are replaced first.)

    >>> from polyhead.serving.formats import export_network
    >>> model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    >>> x = keras.InputSpec(shape=[None, 2], dtype="float32")
    >>> export_network(model, "model.onnx", "onnx", x, limit=1)  # doctest: +SKIP

    Args:
        model: a Keras model without other parts: a tokenizer would be converted too.
        format: "onnx", "litert" or "openvino".
        signature: `keras.InputSpec` of the model's input, or a structure of them.
        limit: example inputs for the comparison are from 0 to this, exclusive; a number, or one
            for each input by its name.
        tolerance: the largest allowed difference from the model's outputs, absolute and relative; a
            lossy conversion (``optimizations`` of LiteRT) needs a larger one.
        settings: for `keras.Model.export`: ``input_signature``, ``opset_version``, ``verbose``.

    Raises:
        FormatError: the conversion fails, or the file's outputs differ from the model's.
        ImportError: the format's converter is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {['tf_saved_model', *FORMATS]}: {format!r}")
    known = {"input_signature", "verbose", "opset_version"}  # Keras uses others only for LiteRT
    if format != "litert" and (unknown := sorted(settings.keys() - known)):
        raise TypeError(f"not settings of the format {format!r}: {unknown}")
    end, converter, runtime = FORMATS[format]
    if importlib.util.find_spec(converter) is None:
        raise ImportError(f'{format} needs {converter}: pip install "polyhead[formats]"')
    path = Path(filepath)
    if path.is_dir() or not path.name.endswith(end):
        raise ValueError(f"format {format!r} is written to a file {f'*{end}'}: {path}")
    signature = settings.pop("input_signature", None) or [signature]
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent, path.name) as folder:
        written = str(folder / path.name)
        try:
            if format == "onnx":
                add_erfc()
            settings = {"verbose": False, **settings, "input_signature": signature}
            keras.Model.export(model, written, format=format, **settings)
        except Exception as error:
            raise FormatError(f"{format} cannot be written: {first_line(error)}") from error
        if importlib.util.find_spec(runtime) is None:
            warnings.warn(f"{path} is not checked: {runtime} is not installed", stacklevel=3)
        else:
            for size in (1, 3):
                check_outputs(model, written, format, signature, size, limit, tolerance)
        for file in sorted(folder.iterdir()):
            os.replace(file, path.with_name(file.name))
    return path


def check_outputs(model, file, format, signature, size, limit, tolerance):
    """Compares a file's outputs with the model's on random inputs, larger for a larger ``size``."""
    random = np.random.default_rng(size)

    def example(spec):
        shape = [size + 2 * axis if n is None else n for axis, n in enumerate(spec.shape)]
        dtype = keras.backend.standardize_dtype(spec.dtype)
        sample = random.integers if "int" in dtype else random.uniform
        return sample(0, limit[spec.name] if isinstance(limit, dict) else limit, shape).astype(
            dtype
        )

    inputs = keras.tree.map_structure(example, signature)
    expected = [np.asarray(x) for x in keras.tree.flatten(model(*inputs))]
    try:
        outputs = RUN[format](file, keras.tree.flatten(inputs))
    except Exception as error:
        raise FormatError(f"the {format} file does not run: {first_line(error)}") from error
    # OpenVINO appends intermediate sizes to the outputs.
    for ours, theirs in zip(expected, outputs, strict=format != "openvino"):
        if not np.allclose(ours, theirs, rtol=tolerance, atol=tolerance):
            difference = np.abs(ours - theirs).max()
            raise FormatError(f"outputs of the {format} file differ from the model's: {difference}")


def first_line(error):
    return (str(error).strip() or repr(error)).splitlines()[0]


def run_onnx(file, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def run_litert(file, inputs):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(file).get_signature_runner()
    return list(runner(**dict(zip(runner.get_input_details(), inputs, strict=True))).values())


def run_openvino(file, inputs):
    import openvino

    # By default it computes in bfloat16 on processors that support it.
    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = model(inputs)
    return [outputs[port] for port in model.outputs]


RUN = {"onnx": run_onnx, "litert": run_litert, "openvino": run_openvino}


@functools.cache
def add_erfc():
    """Adds Erfc to tf2onnx, 1 - erf(x): the operation of TensorFlow's exact GELU."""
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_9(cls, ctx, node, **kwargs):
            [x], [y] = node.input, node.output
            kind = dict(shapes=[ctx.get_shape(y)], dtypes=[ctx.get_dtype(y)])
            one = ctx.make_const(f"{node.name}_one", np.ones([], "float32"))
            ctx.remove_node(node.name)
            erf = ctx.make_node("Erf", [x], **kind)
            ctx.make_node("Sub", [one.output[0], erf.output[0]], outputs=[y], **kind)
