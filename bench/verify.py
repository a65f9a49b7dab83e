"""Checks that need GPUs, Docker or a network: `make verify`.

- devices: five training steps on all GPUs give the weights of one device.
- docker: TensorFlow Serving's container answers requests to exports, over REST and gRPC, by version
  label and in batches, as the models do.
- hub: the smallest published checkpoint of each family has the logits of Hugging Face's library.

Each line begins with "pass", "fail" or "skipped". Please send us the whole output, even if
everything passes: we cannot run these checks ourselves. To select checks or options:

    make verify VERIFY=docker
    make verify VERIFY="--devices 2"
"""

import argparse
import concurrent.futures
import contextlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from pathlib import Path

from measure import processor, run, run_isolated

import polyhead

STEPS, ROWS, LENGTH = 5, 24, 32  # of the compared training run
# float32 sums in another order differ by less; a wrong mean differs by hundreds of times more.
TOLERANCE = 1e-4
# The smallest checkpoint of each family, the class of transformers that reads it, and the packages
# that the class needs.
PUBLISHED = {
    "distilbert/distilgpt2": ("AutoModelForCausalLM", ()),
    "Helsinki-NLP/opus-mt-en-de": ("AutoModelForSeq2SeqLM", ()),
    "google-t5/t5-small": ("AutoModelForSeq2SeqLM", ()),
    "google/flan-t5-small": ("AutoModelForSeq2SeqLM", ()),
    "facebook/bart-base": ("AutoModelForSeq2SeqLM", ()),
    "WinKawaks/vit-tiny-patch16-224": ("AutoModelForImageClassification", ()),
    "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k": (
        "AutoModelForImageClassification",
        ("timm",),
    ),
    "google-bert/bert-base-uncased": ("AutoModelForMaskedLM", ()),
    "distilbert/distilbert-base-uncased": ("AutoModelForMaskedLM", ()),
    "distilbert/distilroberta-base": ("AutoModelForMaskedLM", ()),
    "answerdotai/ModernBERT-base": ("AutoModelForMaskedLM", ()),
    "facebook/esm2_t6_8M_UR50D": ("AutoModelForMaskedLM", ()),
}
failures = []
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without a proxy


class Skipped(Exception):
    """A check cannot run here; the message gives the reason."""


@contextlib.contextmanager
def case(name):
    """A context that prints the outcome of a check: its notes, or why it failed or was skipped."""
    notes = []
    try:
        yield notes.append
        outcome = "pass"
    except Skipped as reason:
        outcome, notes = "skipped", [str(reason)]
    except (Exception, SystemExit) as error:  # a child's error is a SystemExit
        if isinstance(error, SystemExit):
            print(error)
        else:
            traceback.print_exc(file=sys.stdout)
        outcome, notes = "fail", [" ".join(str(error).split())[-300:] or repr(error)]
        failures.append(name)
    print(f"{outcome:8}{name}: {'; '.join(notes)}", flush=True)


# Devices.


def check_devices(options):
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    devices = gpus or options.devices
    with case("devices") as note:
        if not devices and shutil.which("nvidia-smi"):
            raise Skipped("TensorFlow sees no GPU, though nvidia-smi is here: EXTRAS=gpu")
        if not devices:
            raise Skipped("there is no GPU (--devices 2 rehearses it on the CPU)")
        note(f"{devices} {'GPUs' if gpus else 'logical CPU devices'}")
    if not devices:
        return
    counts = sorted({1, devices})
    compared = [("GPU", count) for count in counts] if gpus else [("CPU", devices)]
    with tempfile.TemporaryDirectory() as folder, case("devices, weights") as note:
        file = Path(folder) / "weights.npz"
        reference, moved = weights_after(file, "CPU", 1)
        note(f"{STEPS} steps move weights by up to {moved:.2g}")
        if moved < 100 * TOLERANCE:
            raise AssertionError(f"the weights moved too little to compare them: {moved:.2g}")
        for kind, count in compared:
            found, _ = weights_after(file, kind, count)
            most = max(abs(a - b).max() for a, b in zip(found, reference, strict=True))
            note(f"{count} {kind} - 1 CPU: {most:.2g}")
            if not most < TOLERANCE:
                raise AssertionError(f"weights of {count} {kind} differ by {most} from one CPU's")
    with case("devices, throughput") as note:
        for count in counts:
            speed, _ = run_isolated(tokens_per_second, count, bool(gpus), needed=True)
            note(f"{count} replica{'s' if count > 1 else ''}: {speed:,.0f} tokens/s")


def weights_after(file, kind, count):
    """Trains in a separate process; returns the weights and the largest change of a weight."""
    import numpy as np

    run_isolated(train_steps, kind, count, file, needed=True)
    with np.load(file) as arrays:
        before, after = ([arrays[f"{name}{i}"] for i in range(len(arrays) // 2)] for name in "ba")
    return after, max(abs(a - b).max() for a, b in zip(after, before, strict=True))


def train_steps(kind, count, file):
    """Trains a small GPT on padded batches, with SGD and clipping; saves its weights."""
    import keras
    import numpy as np
    import tensorflow as tf

    from polyhead.training import strategy

    if kind == "CPU":
        tf.config.set_visible_devices([], "GPU")
    tf.config.experimental.enable_tensor_float_32_execution(False)
    with strategy(count, say=lambda line: None).scope():
        keras.utils.set_random_seed(0)
        model = polyhead.GPT.preset("char-small", num_layers=2, dropout=0.0)
        model.compile(keras.optimizers.SGD(0.5, momentum=0.9, global_clipnorm=0.5))
    random = np.random.default_rng(0)
    tokens = random.integers(0, model.config.vocab_size, (STEPS * ROWS, LENGTH + 1))
    lengths = random.integers(1, LENGTH + 1, (STEPS * ROWS, 1))
    counted = (np.arange(LENGTH) < lengths).astype("float32")  # weights differ between replicas
    data = tf.data.Dataset.from_tensor_slices((tokens[:, :-1], tokens[:, 1:], counted))
    before = model.get_weights()
    model.fit(data.batch(ROWS, drop_remainder=True), shuffle=False, verbose=0)
    arrays = {f"b{i}": array for i, array in enumerate(before)}
    np.savez(file, **arrays, **{f"a{i}": array for i, array in enumerate(model.get_weights())})


def tokens_per_second(count, on_gpus):
    """Tokens per second of training a GPT: on GPUs, 10.8M parameters in mixed bfloat16."""
    import keras
    import numpy as np
    import tensorflow as tf

    from polyhead.training import strategy

    preset, rows, steps = ("char", 64, 50) if on_gpus else ("char-small", 4, 6)
    keras.config.set_dtype_policy("mixed_bfloat16" if on_gpus else "float32")
    with strategy(count, say=lambda line: None).scope():
        model = polyhead.GPT.preset(preset, **({} if on_gpus else {"num_layers": 1}))
        model.compile()
    shape = (rows * count, model.config.max_length + 1)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, shape)
    data = tf.data.Dataset.from_tensors((tokens[:, :-1], tokens[:, 1:])).repeat()
    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            float(logs["loss"])  # waits for the device
            times.append(time.perf_counter())

    model.fit(data, steps_per_epoch=steps, callbacks=[Clock()], shuffle=False, verbose=0)
    seconds = [end - begin for begin, end in zip(times, times[1:], strict=False)]
    return rows * count * model.config.max_length / statistics.median(seconds[2:])


# Docker.


def check_docker(options):
    ready = False
    with case("docker") as note:
        if shutil.which("docker") is None:
            raise Skipped("docker is not on the path")
        found = docker("info", "--format", "{{.ServerVersion}}", error=Skipped)
        note(f"Docker {found}")
        from polyhead.serving.export import SERVER

        docker("pull", "--quiet", SERVER, error=Skipped)
        note(SERVER)
        ready = True
    runs = Path("runs")  # Docker from snap, and on some virtual machines, cannot read /tmp
    runs.mkdir(exist_ok=True)
    for model in small_models() if ready else ():
        name = type(model).__name__
        with tempfile.TemporaryDirectory(dir=runs, prefix="verify-") as folder:
            with case(f"docker, {name}") as note:
                note(check_served(Path(folder).resolve() / "export", model))


def docker(*arguments, error=RuntimeError):
    """Runs a docker command and returns its output; raises ``error`` if it fails."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        raise error(f"docker {arguments[0]}: {reason}")
    return done.stdout.strip()


def small_models():
    """Creates an untrained model of each kind that can be exported."""
    from polyhead.data import Characters, Subwords, WordPieces, read_split
    from polyhead.recipes.translation import SAMPLE, find_data

    pairs = read_split(find_data(SAMPLE), "val", "en", "de")
    subwords = Subwords.train(pairs.sources + pairs.targets, 300)
    yield polyhead.Transformer.preset("tiny", subwords, num_layers=1, max_length=64)
    yield polyhead.T5.preset("t5-tiny", subwords, num_layers=1)
    yield polyhead.BART.preset("bart-tiny", subwords, num_layers=1)
    yield polyhead.GPT.preset("char-small", Characters.train(pairs.sources), num_layers=1)
    yield polyhead.ViT.preset("nano-4", num_layers=1)
    words = WordPieces.train(pairs.sources, 300)
    yield polyhead.BERT.preset("bert-tiny", words, num_layers=1, max_length=128)


def check_served(folder, model):
    """Exports a model, serves two versions of it, and compares answers with the C++ loader's."""
    model.export(folder)
    shutil.copytree(folder / "1", folder / "2")
    config = folder / "models.config"
    config.write_text(re.sub(r"# (version_labels|model_version_policy)", r"\1", config.read_text()))
    [name] = re.findall(r'name: "(.*)"', config.read_text())
    requests = warmup_requests(folder / "1")
    expected = loader_answers(folder / "1", requests)
    with serving(folder, name) as (rest, grpc):
        for request, answer in zip(requests, expected, strict=True):
            what = f"{request.model_spec.signature_name}, {rows(request)} rows"
            same(answer, rest_answer(rest, name, request), f"REST, {what}")
            same(answer, grpc_answer(grpc, name, request), f"gRPC, {what}")
        [single, *_] = [i for i, r in enumerate(requests) if rows(r) == 1]
        before = session_runs(rest)
        with concurrent.futures.ThreadPoolExecutor(32) as threads:
            for answer in threads.map(
                lambda _: grpc_answer(grpc, name, requests[single]), range(64)
            ):
                same(expected[single], answer, "requests at the same time")
        ran = session_runs(rest) - before
    batches = f"64 requests at the same time in {ran} batches" if ran else "batches not counted"
    return f"{len(requests)} requests over REST (stable) and gRPC (canary); {batches}"


@contextlib.contextmanager
def serving(folder, name):
    """A context in which the container serves an export; yields the addresses of REST and gRPC."""
    from polyhead.serving.export import SERVER

    container = docker(
        *("run", "--detach", "--publish=127.0.0.1::8500", "--publish=127.0.0.1::8501"),
        f"--mount=type=bind,source={folder},target=/models/{name},readonly",
        SERVER,
        f"--model_config_file=/models/{name}/models.config",
        f"--monitoring_config_file=/models/{name}/monitoring.config",
        f"--batching_parameters_file=/models/{name}/batching.config",
        *("--enable_batching", "--allow_version_labels_for_unavailable_models"),
    )
    try:
        grpc, rest = (docker("port", container, p).splitlines()[0] for p in ("8500", "8501"))
        wait_until_available(f"http://{rest}/v1/models/{name}", versions=2)
        yield f"http://{rest}", grpc
    except Exception:
        print(docker("logs", "--tail=30", container))
        raise
    finally:
        docker("rm", "--force", container)


def wait_until_available(address, versions, seconds=300):
    end = time.monotonic() + seconds
    states = []
    while time.monotonic() < end:
        with contextlib.suppress(OSError):  # it does not listen yet
            with LOCAL.open(address, timeout=10) as reply:
                states = [v["state"] for v in json.load(reply)["model_version_status"]]
            if states.count("AVAILABLE") == versions:
                return
        time.sleep(0.5)
    raise TimeoutError(f"{address} is not ready after {seconds} s: {states}")


def warmup_requests(version):
    """Reads the warm-up PredictRequests of an export: each signature in several batch sizes."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    file = version / "assets.extra" / "tf_serving_warmup_requests"
    records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    logs = map(prediction_log_pb2.PredictionLog.FromString, records)
    return [log.predict_log.request for log in logs]


def rows(request):
    return min(tensor.tensor_shape.dim[0].size for tensor in request.inputs.values())


def as_rest(request):
    """Converts a PredictRequest to the JSON of the REST API."""
    import tensorflow as tf

    from polyhead.serving.export import as_json

    inputs = {
        k: as_json(tf.constant(tf.make_ndarray(tensor))) for k, tensor in request.inputs.items()
    }
    return json.dumps({"signature_name": request.model_spec.signature_name, "inputs": inputs})


def loader_answers(version, requests):
    loader = [sys.executable, "-P", "-m", "polyhead.serving.loader", str(version)]
    lines = "\n".join(map(as_rest, requests))
    done = subprocess.run(loader, input=lines, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def rest_answer(address, name, request):
    url = f"{address}/v1/models/{name}/labels/stable:predict"
    try:
        with LOCAL.open(url, as_rest(request).encode(), timeout=120) as reply:
            return json.load(reply)["outputs"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.code}, {error.read().decode()}") from None


def grpc_answer(address, name, request):
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    labelled = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    labelled.model_spec.name, labelled.model_spec.version_label = name, "canary"
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        reply = stub.Predict(labelled, timeout=120)
    if (version := reply.model_spec.version.value) != 2:
        raise AssertionError(f"the label canary is of version 2, not {version}")
    return {k: tf.make_ndarray(tensor).tolist() for k, tensor in reply.outputs.items()}


def session_runs(address):
    """The number of batches that the server has run, by its Prometheus metrics; 0 if unknown."""
    with LOCAL.open(f"{address}/monitoring/prometheus/metrics", timeout=60) as reply:
        text = reply.read().decode()
    name = ":tensorflow:serving:batching_session:wrapped_run_count"
    return sum(map(int, re.findall(rf"(?m)^{name}\S* (\d+)$", text)))


def same(expected, answer, what):
    """Checks that two answers are equal: texts exactly, numbers within 0.001."""
    import numpy as np

    if not isinstance(answer, dict):  # REST returns a single output without its name
        answer = dict.fromkeys(expected, answer)
    for name, values in expected.items():
        theirs, ours = np.ravel(answer[name]), np.ravel(values)
        if ours.dtype.kind == "U":
            theirs = [x.decode() if isinstance(x, bytes) else x for x in theirs]
            equal = list(theirs) == ours.tolist()
        else:
            equal = np.allclose(theirs, ours, rtol=1e-3, atol=1e-3)
        if not equal:
            raise AssertionError(f"{what}: {name} is {answer[name]!r:.300}, not {values!r:.300}")


# The hub.


def check_hub(options):
    for name, (reader, packages) in PUBLISHED.items():
        with case(f"hub, {name}") as note:
            for package in ("torch", "transformers", *packages):
                if importlib.util.find_spec(package) is None:
                    raise Skipped(f"{package} is not installed")
            note(compare_logits(folder_of_checkpoint(name, options.hub), reader))


def folder_of_checkpoint(name, hub):
    """Returns the folder of a checkpoint: in the folder ``hub``, or downloaded."""
    if hub is not None:
        if not (Path(hub) / name).is_dir():
            raise Skipped(f"{Path(hub) / name} is not there")
        return Path(hub) / name
    if importlib.util.find_spec("huggingface_hub") is None:
        raise Skipped("huggingface_hub is not installed")
    import huggingface_hub

    from polyhead.zoo.published.files import find_folder

    try:
        huggingface_hub.HfApi().model_info(name, timeout=20)
    except Exception as error:
        raise Skipped(f"the hub does not answer: {type(error).__name__}") from None
    return find_folder(name)


def compare_logits(folder, reader):
    """Compares logits of random inputs with Hugging Face's library, both in float32."""
    import numpy as np
    import torch
    import transformers

    ours = polyhead.load(folder)
    theirs = getattr(transformers, reader).from_pretrained(folder, dtype=torch.float32).eval()
    random, config = np.random.default_rng(0), ours.config
    if reader == "AutoModelForImageClassification":
        x = random.integers(0, 256, (2, *config.image_size, config.channels)).astype("float32")
        pixels = ((x / 255 - config.mean) / config.std).astype("float32")
        inputs = {"pixel_values": torch.tensor(pixels).permute(0, 3, 1, 2)}
    elif reader == "AutoModelForSeq2SeqLM":
        source, target = random.integers(2, config.vocab_size - 1, (2, 2, 16))  # no padding
        x = {"source": source, "target": target}
        inputs = {"input_ids": torch.tensor(source), "decoder_input_ids": torch.tensor(target)}
    else:
        x = random.integers(0, config.vocab_size, (2, 16))
        if reader == "AutoModelForMaskedLM":  # padding would need its mask
            x[x == config.pad_id] = config.pad_id + 1
        inputs = {"input_ids": torch.tensor(x)}
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    difference = np.abs(np.asarray(ours(x)) - expected).max()
    most = np.abs(expected).max()
    if not difference <= 1e-4 * max(most, 1):
        raise AssertionError(f"logits of up to {most:.4g} differ by up to {difference:.2g}")
    return f"{ours.count_params():,} parameters; logits differ by up to {difference:.2g}"


def describe_machine():
    import tensorflow as tf

    names = ("polyhead", "tensorflow", "keras", "transformers", "torch")
    versions = []
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    print(f"{platform.platform()}, Python {platform.python_version()}, {', '.join(versions)}")
    gpus = tf.config.list_physical_devices("GPU")
    tf.config.set_visible_devices([], "GPU")  # for this process; those of check_devices see them
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    kinds = [found.get("device_name", "unknown") for found in details]
    print(f"{processor()}; GPUs: {', '.join(kinds) or 'none'}", flush=True)


CHECKS = {"devices": check_devices, "docker": check_docker, "hub": check_hub}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", nargs="*", help=f"some of {', '.join(CHECKS)}; default: all")
    parser.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="without a GPU, rehearse on N logical CPU devices",
    )
    parser.add_argument(
        "--hub",
        metavar="FOLDER",
        help="a folder with the checkpoints, FOLDER/owner/name, instead of the Hugging Face hub",
    )
    options = parser.parse_args()
    if unknown := set(options.checks) - set(CHECKS):
        parser.error(f"unknown checks: {', '.join(sorted(unknown))}")
    describe_machine()
    for name in options.checks or CHECKS:
        CHECKS[name](options)
    print("please send us this whole output, in an issue: we cannot run these checks ourselves")
    return f"failed: {', '.join(failures)}" if failures else 0


if __name__ == "__main__":
    sys.exit(run(main))
