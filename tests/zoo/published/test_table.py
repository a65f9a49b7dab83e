"""Tables of tensors, on small arrays."""

import numpy as np
import pytest

from polyhead.zoo.published import table

FUSED = (
    ("wte", "v d", "tokens/embeddings", "v d"),
    ("h.{i}.qkv.weight", "d (n h k)", "block_{i}/attention/{query|key|value}/kernel", "d h k"),
)
SHAPES = {"tokens/embeddings": (7, 6)} | {
    f"block_{i}/attention/{part}/kernel": (6, 2, 3)
    for i in (1, 0)
    for part in ("query", "key", "value")
}


def weights(shapes, seed=0):
    random = np.random.default_rng(seed)
    return {path: random.normal(size=shape) for path, shape in shapes.items()}


def check_both_ways(rows, shapes, sizes=()):
    """Writes random weights as published tensors, checks the round trip, returns the tensors."""
    ours = weights(shapes)
    entries, missing = table.match(rows, shapes.items(), dict(sizes))
    assert not missing
    theirs = {entry.name: table.write(entry, ours) for entry in entries}
    assert all(theirs[entry.name].shape == table.shape_of(entry) for entry in entries)
    read = {path: a for entry in entries for path, a in table.read(entry, theirs[entry.name])}
    assert read.keys() == ours.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(read[path], array)
    return ours, theirs


def test_a_fused_tensor_concatenates_its_parts():
    ours, theirs = check_both_ways(FUSED, SHAPES)
    assert theirs.keys() == {"wte", "h.0.qkv.weight", "h.1.qkv.weight"}
    _, key, _ = np.split(theirs["h.1.qkv.weight"], 3, axis=-1)
    np.testing.assert_array_equal(ours["block_1/attention/key/kernel"], key.reshape(6, 2, 3))


def test_parts_of_a_fused_tensor_may_differ_in_size():
    rows = [("qkv.weight", "(n h k) d", "attention/{query|key|value}/kernel", "d h k")]
    shapes = {f"attention/{part}/kernel": (6, heads, 3) for part, heads in
              (("query", 4), ("key", 2), ("value", 2))}  # fmt: skip
    ours, theirs = check_both_ways(rows, shapes)
    key = theirs["qkv.weight"][12:18]
    np.testing.assert_array_equal(ours["attention/key/kernel"], key.T.reshape(6, 2, 3))


def test_patches_of_a_convolution_are_rows_of_a_matrix():
    rows = [("proj", "d c y x", "kernel", "(y x c) d"), ("cls", "1 1 d", "token", "1 d")]
    ours, theirs = check_both_ways(rows, {"kernel": (48, 5), "token": (1, 5)}, {"y": 4, "x": 4})
    assert theirs["proj"].shape == (5, 3, 4, 4) and theirs["cls"].shape == (1, 1, 5)
    expected = theirs["proj"].transpose(0, 2, 3, 1).reshape(5, -1).T
    np.testing.assert_array_equal(ours["kernel"], expected)


def test_values_are_converted_in_both_directions():
    rows = [("norm", "d", "norm/gamma", "d", lambda w, _: w + 1, lambda w, _: w - 1)]
    entries, _ = table.match(rows, [("norm/gamma", (3,))], {})
    np.testing.assert_array_equal(table.write(entries[0], {"norm/gamma": np.ones(3)}), 0)
    [(path, array)] = table.read(entries[0], np.zeros(3))
    assert path == "norm/gamma" and (array == 1).all()


def test_matching_stops_at_the_sixth_missing_tensor():
    def shapes():
        i = 10**9
        while True:
            yield f"block_{i}/attention/query/kernel", (6, 2, 3)
            i -= 1

    _, missing = table.match(FUSED, shapes(), {}, names=())
    assert missing[0] == "h.1000000000.qkv.weight" and len(missing) == 6


def test_a_variable_without_a_row_is_named():
    with pytest.raises(ValueError, match="the format has no tensor for head/kernel"):
        table.match(FUSED, [("head/kernel", (2, 3))], {})
