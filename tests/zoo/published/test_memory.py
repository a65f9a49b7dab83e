"""The memory that loading takes, in a separate process."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.conftest import TENSORFLOW

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.skipif(not TENSORFLOW, reason="variables are counted as TensorFlow's")
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")
@pytest.mark.parametrize("name", ["gpt2-medium", "esmfold", "esmfold.bin"])
def test_weights_are_read_one_tensor_at_a_time(name):
    if name.endswith(".bin"):
        pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("loading", ROOT / "bench" / "loading.py")
    loading = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loading)
    peak, allowed, variables = loading.measure(name, shard=5e8)
    assert variables < peak < allowed
