"""Checks that TensorFlow's model server can load and run a SavedModel."""

import functools
from os import PathLike
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from .loader import text_libraries

# Operations of core TensorFlow that the stock server lacks: it has neither Python nor XLA.
UNSERVED = ("PyFunc", "EagerPyFunc", "Xla")


class ContractError(ValueError):
    """TensorFlow Serving would refuse the model; the message names the operation."""


@functools.cache
def served_operations() -> frozenset[str]:
    """The operations of the stock server: core TensorFlow's and TensorFlow Text's.

    The source is ``model_servers/BUILD`` of tensorflow/serving. Without TensorFlow Text, as on
    Windows, only core TensorFlow's.
    """
    operations = set(dir(tf.raw_ops))
    for library in text_libraries():
        operations.update(dir(tf.load_op_library(str(library))))
    return frozenset(name for name in operations if not name.startswith(UNSERVED))


def check_operations(folder: str | PathLike[str]) -> None:
    """Checks that a SavedModel has only operations of the stock server, and does not need XLA.

    >>> from polyhead.serving.contract import check_operations
    >>> keras.Sequential([keras.Input([2]), keras.layers.Dense(1)]).export("saved", verbose=False)
    >>> check_operations("saved")

    Raises:
        ContractError: the message names the operation and its function.
    """
    saved = SavedModel.FromString((Path(folder) / "saved_model.pb").read_bytes())
    served = served_operations()
    for meta_graph in saved.meta_graphs:
        graph = meta_graph.graph_def
        functions = {f.signature.name: f for f in graph.library.function}
        nodes = [("the graph", graph.node)] + [(n, f.node_def) for n, f in functions.items()]
        for place, listed in nodes:
            for node in listed:
                if node.op not in served and node.op not in functions:
                    raise ContractError(
                        f"TensorFlow Serving has no operation {node.op}: "
                        f"node {node.name} of {place}"
                    )
        for name, function in functions.items():
            if function.attr["_XlaMustCompile"].b:
                raise ContractError(
                    f"TensorFlow Serving runs without XLA, but {name} must be compiled by it"
                )
