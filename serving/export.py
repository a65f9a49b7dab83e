"""From functions to a folder that TensorFlow Serving loads: complete or not at all."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from .contract import ContractError, check_operations

SERVED = (tf.string, tf.float32, tf.int32, tf.int64, tf.bool)

README = """\
# {name}, for TensorFlow Serving

Signatures:

{signatures}

## Start the server

In this folder:

    docker run --rm -p 8500:8500 -p 8501:8501 \\
        --mount type=bind,source="$PWD",target=/models/{name},readonly \\
        tensorflow/serving \\
        --model_config_file=/models/{name}/models.config \\
        --enable_batching --batching_parameters_file=/models/{name}/batching.config

A binary on the path does as well, with `base_path` in `models.config` changed to this folder:

    tensorflow_model_server --port=8500 --rest_api_port=8501 \\
        --model_config_file=models.config \\
        --enable_batching --batching_parameters_file=batching.config

## Ask it

    curl -d '{request}' \\
        http://localhost:8501/v1/models/{name}:predict

With `"signature_name": "..."` before `"instances"` another signature answers.

Without a server, through the same C++ loader (`--help` tells more):

    python -m polyhead.serving.loader {version} '{texts}'
"""

MODELS = """\
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    # The newest version is served. To serve two, as a canary and a stable one:
    # model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    # version_labels {{ key: "stable" value: 1 }}
  }}
}}
"""

BATCHING = """\
# Requests that arrive together are run as one batch; sizes are padded up to one of these.
max_batch_size { value: 32 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 2 }
allowed_batch_sizes: 1
allowed_batch_sizes: 4
allowed_batch_sizes: 8
allowed_batch_sizes: 16
allowed_batch_sizes: 32
"""


def export(folder, name, signatures, variables, tracked=()):
    """Writes a SavedModel as the next version of ``folder``, with what the server needs.

    Args:
        folder: the model's base folder: versions are the folders 1, 2, ... in it.
        name: of the model, in the server's configuration and addresses.
        signatures: ``{name: (function, {input: tf.TensorSpec}, examples)}``; a function takes
            those inputs by keyword and gives a dict of tensors, all with the batch as first axis.
            Examples are lists of values for the inputs, a dict each: the saved model is asked
            them before it counts as written, and they are its warm-up requests.
        variables: the Keras variables that the functions read.
        tracked: `tf.Module`s that the functions use: tokenizers, for instance.

    Returns:
        the version's folder.

    Raises:
        ContractError: TensorFlow Serving would refuse it, or it answers otherwise than before.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; an export needs a folder")
    folder.mkdir(parents=True, exist_ok=True)
    module = tf.Module()
    module.variables_ = [v.value for v in variables]
    module.tracked = list(tracked)
    functions = {
        key: tf.function(function, autograph=False).get_concrete_function(**inputs)
        for key, (function, inputs, _) in signatures.items()
    }
    beside = Path(tempfile.mkdtemp(prefix=".export.", dir=folder))
    try:
        tf.saved_model.save(module, str(beside), signatures=functions)
        check_operations(beside)
        requests = [
            (key, {k: tf.constant(v, inputs[k].dtype) for k, v in example.items()})
            for key, (_, inputs, examples) in signatures.items()
            for example in examples
        ]
        check_answers(beside, functions, requests)
        write_warmup(beside, name, requests)
        beside.chmod(0o755)  # mkdtemp's folders are their owner's alone: the server is another user
        version = rename_to_next_version(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    write_server_files(folder, name, version, signatures)
    return version


def check_answers(saved, functions, requests):
    """Asks the saved model through the C++ loader, as the server would, and compares."""
    lines = "".join(
        json.dumps({"signature_name": key, "inputs": {k: as_json(v) for k, v in example.items()}})
        + "\n"
        for key, example in requests
    )
    loader = [sys.executable, "-m", "polyhead.serving.loader", str(saved)]
    # On the CPU: this process may hold all of a GPU's memory.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    asked = subprocess.run(loader, input=lines, env=environment, capture_output=True, text=True)
    if asked.returncode:
        raise ContractError(f"the saved model does not answer: {asked.stderr.strip()[-2000:]}")
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    for (signature, example), answer in zip(requests, answers, strict=True):
        expected = functions[signature](**example)
        batch = len(next(iter(example.values())))
        for key, value in expected.items():
            if value.shape.rank == 0 or value.shape[0] != batch or value.dtype not in SERVED:
                raise ContractError(
                    f"an output must be of {batch} rows for as many inputs, and of a type that "
                    f"REST can tell: {key} of {signature} is {value.dtype.name} {value.shape}"
                )
            if value.dtype == tf.string:
                flat = tf.reshape(value, [-1]).numpy()
                texts = [text.decode("utf-8", "backslashreplace") for text in flat]
                same = texts == np.ravel(answer[key]).tolist()
            else:
                same = np.allclose(value, answer[key], rtol=1e-3, atol=1e-3)
            if not same:
                raise ContractError(
                    f"{key} of the saved model's {signature} is {answer[key]}, not {value}"
                )


def as_json(value):
    """A tensor or a list as JSON; bytes that are no text as the server's REST has them."""
    if isinstance(value, tf.Tensor):
        value = value.numpy().tolist()
    if isinstance(value, list):
        return [as_json(one) for one in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def write_warmup(saved, name, requests):
    """Requests that the server runs when it loads the model: the first user need not wait."""
    extra = saved / "assets.extra"
    extra.mkdir()
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for signature, example in requests:
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=name, signature_name=signature),
                inputs={k: tf.make_tensor_proto(v) for k, v in example.items()},
            )
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())


def rename_to_next_version(beside, folder):
    """Gives ``beside`` the next free number; another export may take one at the same time."""
    while True:
        taken = [int(p.name) for p in folder.iterdir() if re.fullmatch(r"[0-9]+", p.name)]
        version = folder / str(max(taken, default=0) + 1)
        try:
            os.rename(beside, version)
            return version
        except OSError:
            if not version.exists():
                raise


def write_server_files(folder, name, version, signatures):
    """``models.config``, ``batching.config`` and a README with the container's commands."""
    example = signatures["serving_default"][2][-1]
    instances = [
        dict(zip(example, map(as_json, row), strict=True))
        for row in zip(*example.values(), strict=True)
    ]
    first = next(iter(example.values()))[0]
    listed = "\n".join(
        f"- `{key}`: " + ", ".join(f"`{k}` {spec.dtype.name} (batch)" for k, spec in inputs.items())
        for key, (_, inputs, _) in signatures.items()
    )
    texts = {
        "models.config": MODELS.format(name=name),
        "batching.config": BATCHING,
        "README.md": README.format(
            name=name,
            version=version.name,
            signatures=listed,
            request=json.dumps({"instances": instances[:1]}),
            texts="photo.jpg" if isinstance(first, bytes) else first,
        ),
    }
    for file, text in texts.items():
        beside = folder / f".{file}.{os.getpid()}"
        beside.write_text(text)
        os.replace(beside, folder / file)
