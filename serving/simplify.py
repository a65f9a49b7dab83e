"""Removes repeated operations from a SavedModel, so that it starts faster."""

from os import PathLike
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel


def simplify(folder: str | PathLike[str]) -> None:
    """Merges equal operations of each function of a SavedModel, and removes unused ones.

    Layers of a network make the same constants, shapes and indices. TensorFlow merges them when it
    runs a function, but a loader first has to read them all. Only operations without a state or a
    resource are merged, and nothing that the functions return changes.

    >>> from polyhead.serving.simplify import simplify
    >>> keras.Sequential([keras.Input([2]), keras.layers.Dense(1)]).export("saved", verbose=False)
    >>> simplify("saved")
    """
    file = Path(folder) / "saved_model.pb"
    saved = SavedModel.FromString(file.read_bytes())
    for meta_graph in saved.meta_graphs:
        operations = meta_graph.meta_info_def.stripped_op_list.op
        pure = {operation.name for operation in operations if is_pure(operation)}
        for function in meta_graph.graph_def.library.function:
            merge(function, pure)
    file.write_bytes(saved.SerializeToString())
    # A hash of the file, which loaders only log.
    (Path(folder) / "fingerprint.pb").unlink(missing_ok=True)


def is_pure(operation):
    held = (tf.resource.as_datatype_enum, tf.variant.as_datatype_enum)
    return not operation.is_stateful and not any(a.type in held for a in operation.input_arg)


def merge(function, pure):
    """Merges the equal ``pure`` operations of a `FunctionDef`, and removes those without users."""
    places = {
        place.decode().removeprefix("loc:@")
        for node in function.node_def
        if "_class" in node.attr
        for place in node.attr["_class"].list.s
    }
    kept, equal = [*function.node_def], {}

    def renamed(name):
        """The name of a node's output, "node:output:0" or "^node", after merging."""
        control, (node, *output) = "^" * name.startswith("^"), name.lstrip("^").split(":")
        return control + ":".join([equal.get(node, node), *output])

    merged = None
    while merged != len(equal):  # merging two operations makes those that use them equal
        merged, first = len(equal), {}
        for node in kept:
            node.input[:] = [renamed(name) for name in node.input]
            if node.op in pure and node.name not in places:
                unnamed = type(node).FromString(node.SerializeToString())
                unnamed.ClearField("name")
                unnamed.ClearField("experimental_debug_info")
                same = first.setdefault(unnamed.SerializeToString(deterministic=True), node.name)
                if same != node.name:
                    equal[node.name] = same
        kept = [node for node in kept if node.name not in equal]
    for ends in (function.ret, function.control_ret):
        for key, name in [*ends.items()]:
            ends[key] = renamed(name)
    nodes = {node.name: node for node in kept}
    used, waiting = set(), [node.name for node in kept if node.op not in pure]
    waiting += [*function.ret.values(), *function.control_ret.values()]
    while waiting:
        name = waiting.pop().lstrip("^").split(":")[0]
        if name in nodes and name not in used:
            used.add(name)
            waiting += nodes[name].input
    kept = [type(node).FromString(node.SerializeToString()) for node in kept if node.name in used]
    del function.node_def[:]
    function.node_def.extend(kept)
