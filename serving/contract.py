"""What TensorFlow's model server can load and run, checked before it has to."""

import functools
from os import PathLike
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from .loader import text_libraries

# Core TensorFlow names these too, but the stock server has neither Python nor XLA in it.
UNSERVED = ("PyFunc", "EagerPyFunc", "Xla")


class ContractError(ValueError):
    """A model that TensorFlow Serving would refuse; the message names the operation."""


@functools.cache
def served_operations() -> frozenset[str]:
    """The operations that the stock server links: core TensorFlow's and TensorFlow Text's.

    ``model_servers/BUILD`` of tensorflow/serving is the source. Where TensorFlow Text is not
    installed, on Windows, only the first count.
    """
    operations = set(dir(tf.raw_ops))
    for library in text_libraries():
        operations.update(dir(tf.load_op_library(str(library))))
    return frozenset(name for name in operations if not name.startswith(UNSERVED))


def check_operations(folder: str | PathLike[str]) -> None:
    """Refuses a SavedModel with an operation that the stock server lacks, or compiled by XLA.

    >>> from polyhead.serving.contract import check_operations
    >>> keras.Sequential([keras.Input([2]), keras.layers.Dense(1)]).export("saved", verbose=False)
    >>> check_operations("saved")

    Raises:
        ContractError: naming the operation and the function it stands in.
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
