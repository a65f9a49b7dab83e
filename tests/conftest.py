"""One process, four logical CPU devices, seeded."""

import contextlib
import importlib.util

import polyhead  # noqa: F401  (before Keras: it sets TensorFlow's environment)

# isort: split
import keras
import pytest

TENSORFLOW = keras.config.backend() == "tensorflow"

if TENSORFLOW:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)


def pytest_addoption(parser):
    parser.addoption(
        "--no-xla",
        action="store_true",
        help="use XLA only where a test asks for it (as test_xla.py does): others compile faster",
    )


@contextlib.contextmanager
def without_xla():
    """Trains and searches without XLA, whose compilation takes longer than a small model's run."""
    from polyhead.training import replicas

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas, "XLA", False)
        yield


@pytest.fixture(autouse=True)
def xla_where_wanted(request):
    off = request.config.getoption("no_xla") and TENSORFLOW
    with without_xla() if off else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    from polyhead.training import compiling

    monkeypatch.setattr(compiling, "PATIENCE", 1e6)  # compilation times differ between machines
    with pytest.MonkeyPatch.context() as patch:
        if TENSORFLOW:  # a new seed would discard kernels of functions that later tests call again
            from tensorflow.python.eager import context

            patch.setattr(context.pywrap_tfe, "TFE_ContextClearCaches", lambda handle: None)
        keras.utils.set_random_seed(7)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module", autouse=True)
def compiled_functions():
    """Frees what JAX compiled in a module: 7 GB in all. `make test-jax` has it on disk too."""
    yield
    if keras.config.backend() == "jax":
        import jax

        jax.clear_caches()


@pytest.fixture(scope="session")
def sample():
    """The sample corpus's validation split: 200 pairs."""
    from polyhead.data import read_split
    from polyhead.recipes.translation import SAMPLE, find_data

    return read_split(find_data(SAMPLE), "val", "en", "de")


@pytest.fixture(scope="session")
def tokenizer(sample):
    from polyhead.data import Subwords

    return Subwords.train(sample.sources + sample.targets, 300)


def small(tokenizer=None, **overrides):
    """A Transformer small enough to compile in seconds."""
    from polyhead.zoo import Transformer

    sizes = dict(num_layers=1, dim=32, intermediate_dim=48, num_heads=4, dropout=0.0, max_length=64)
    if tokenizer is None:
        sizes["vocab_size"] = 40
    return Transformer.preset("tiny", tokenizer, **{**sizes, **overrides})


@pytest.fixture(scope="session")
def model(tokenizer):
    """An untrained small model with a tokenizer; tests do not change it."""
    keras.utils.set_random_seed(3)
    return small(tokenizer)


def peers():
    """PyTorch and transformers; without them the test that calls this is skipped."""
    return [
        pytest.importorskip(name, reason=f"{name} is not installed: EXTRAS=parity")
        for name in ("torch", "transformers")
    ]


def pytest_report_header(config):
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed: comparisons with PyTorch are skipped (EXTRAS=parity)"
    return "torch is installed: comparisons with PyTorch run"
