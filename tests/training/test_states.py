import keras
import numpy as np
import pytest

from polyhead.training import CheckpointError, read_tensors, write_tensors
from polyhead.training.states import assign, by_path

TENSORS = {"a/kernel": np.arange(6, dtype="float32").reshape(2, 3), "b": np.array(3)}


def test_tensors_come_back(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS, {"updates": 7})
    tensors, about = read_tensors(tmp_path / "x.safetensors")
    assert about == {"updates": 7} and set(tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], value)
        assert tensors[name].dtype == value.dtype and tensors[name].shape == value.shape
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_failed_write_leaves_the_file_before_it(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, 1)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, TENSORS, 2)
    assert read_tensors(path)[1] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\xff" * 100, "half"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-4] if content == "half" else content)
    with pytest.raises(CheckpointError, match="x.safetensors is no complete safetensors file"):
        read_tensors(path)


def test_what_does_not_fit_is_named_and_nothing_assigned():
    a, b = keras.Variable(np.zeros((2, 3)), name="a"), keras.Variable(np.zeros(2), name="b")
    variables = {"a": a, "b": b}
    with pytest.raises(CheckpointError, match=r"file .*lacks \['b'\].*has no \['c'\]"):
        assign(variables, {"a": np.ones((2, 3)), "c": np.ones(1)}, "file")
    with pytest.raises(CheckpointError, match=r"file: b has shape \(3,\), the model's is \(2,\)"):
        assign(variables, {"a": np.ones((2, 3)), "b": np.ones(3)}, "file")
    assert a.numpy().max() == 0
    with pytest.raises(ValueError, match="two variables have the path a"):
        by_path([a, a])
