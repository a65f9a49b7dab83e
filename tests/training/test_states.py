import itertools
import os

import keras
import numpy as np
import pytest
from keras import ops

from polyhead.training import CheckpointError, read_tensors, write_tensors
from polyhead.training.states import assign, by_path, check_shapes

TENSORS = {"a/kernel": np.arange(6, dtype="float32").reshape(2, 3), "b": np.array(3)}


def test_tensors_are_read_as_written(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS, {"updates": 7})
    tensors, about = read_tensors(tmp_path / "x.safetensors")
    assert about == {"updates": 7} and set(tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], value)
        assert tensors[name].dtype == value.dtype and tensors[name].shape == value.shape
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_failed_write_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, 1)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left.*/x.safetensors'"):
        write_tensors(path, TENSORS, 2)
    assert read_tensors(path)[1] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\xff" * 100, "half"])
def test_a_corrupt_file_is_named(tmp_path, content):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-4] if content == "half" else content)
    with pytest.raises(CheckpointError, match="x.safetensors is not a complete safetensors file"):
        read_tensors(path)


def test_mismatches_are_named_and_nothing_is_assigned():
    a, b = keras.Variable(np.zeros((2, 3)), name="a"), keras.Variable(np.zeros(2), name="b")
    variables = {"a": a, "b": b}
    with pytest.raises(CheckpointError, match=r"file .*lacks \['b'\].*has no \['c'\]"):
        assign(variables, {"a": np.ones((2, 3)), "c": np.ones(1)}, "file")
    with pytest.raises(CheckpointError, match=r"file: b has shape \(3,\), the model's is \(2,\)"):
        assign(variables, {"a": np.ones((2, 3)), "b": np.ones(3)}, "file")
    assert a.numpy().max() == 0
    with pytest.raises(ValueError, match="two variables have the path a"):
        by_path([a, a])


def test_non_finite_weights_are_refused_by_name():
    for dtype, value in (
        ("float32", np.nan), ("float32", -np.inf), ("float64", 1e300), ("float16", np.inf)
    ):  # fmt: skip
        a, b = (keras.Variable(np.zeros((2, 3), "float32"), name=name) for name in "ab")
        tensors = {"a": np.ones((2, 3), dtype), "b": np.ones((2, 3), dtype)}
        tensors["b"][1, 2] = value
        with pytest.raises(CheckpointError, match="file: b has values .* not finite in float32"):
            assign({"a": a, "b": b}, dict(tensors), "file")
        assert a.numpy().max() == 0
    # The optimizer's moments may overflow while training continues.
    assign({"a": a, "optimizer/0": b}, {"a": tensors["a"], "optimizer/0": tensors["b"]}, "file",
           unchecked=("optimizer/",))  # fmt: skip
    assert a.numpy().min() == 1 and np.isinf(b.numpy()).any()


def test_a_tensor_with_another_kind_of_dtype_is_refused():
    v, count = keras.Variable(np.zeros(2, "float32")), keras.Variable(0, dtype="int64")
    with pytest.raises(CheckpointError, match="file: a has type int32, the model's is float32"):
        assign({"a": v}, {"a": np.ones(2, "int32")}, "file")
    with pytest.raises(CheckpointError, match="file: a has type float32, the model's is int64"):
        assign({"a": count}, {"a": np.float32(1)}, "file")
    assign({"a": count}, {"a": np.int32(3)}, "file")
    bfloat16 = ops.convert_to_numpy(ops.ones(2, "bfloat16"))
    assign({"a": v}, {"a": bfloat16}, "file")
    assert int(count) == 3 and v.numpy().tolist() == [1, 1]


def test_shapes_are_compared_up_to_the_sixth_missing_name():
    endless = ((f"block_{i}", (2,)) for i in itertools.count())
    message = r"file does not fit the model: it lacks \['block_1', .*'block_5'\] and more$"
    with pytest.raises(CheckpointError, match=message):
        check_shapes(endless, {"block_0": np.ones(2)}, "file")
    with pytest.raises(CheckpointError, match=r"block_0 has shape \(2,\), the model's is \(3,\)"):
        check_shapes([("block_0", (3,))], {"block_0": np.ones(2)}, "file")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop", "nothing"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    make = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
        "nothing": lambda: None,
    }
    make[kind]()
    missing = kind in ("loop", "nothing")
    with pytest.raises(FileNotFoundError if missing else CheckpointError, match="x.safetensors"):
        read_tensors(path)
