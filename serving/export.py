"""Exports functions atomically to a folder that TensorFlow Serving loads."""

import base64
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from .contract import ContractError, check_operations
from .folder import temporary_folder
from .loader import tensorflow_library
from .simplify import simplify

SERVED = (tf.string, tf.float32, tf.int32)

BATCH_SIZES = (1, 4, 8, 16, 32)  # sizes to which the server pads; each has a warm-up request
COMPARED = 8  # maximum rows of a warm-up request whose answer is compared
LARGEST = 32 * 2**20  # maximum bytes of a warm-up request
SERVER = "tensorflow/serving:2.20.0"  # the newest image; it runs graphs of TensorFlow 2.21

README = """\
# {name}, for TensorFlow Serving

Signatures:

{signatures}

{notes}## Start the server

In this folder:

    docker run --rm -p 8500:8500 -p 8501:8501 \\
        --mount type=bind,source="$PWD",target=/models/{name},readonly \\
        {server} \\
        --model_config_file=/models/{name}/models.config \\
        --monitoring_config_file=/models/{name}/monitoring.config \\
        --enable_batching --batching_parameters_file=/models/{name}/batching.config

A `tensorflow_model_server` on the path works too. Change `base_path` in `models.config` to this
folder first:

    tensorflow_model_server --port=8500 --rest_api_port=8501 \\
        --model_config_file=models.config --monitoring_config_file=monitoring.config \\
        --enable_batching --batching_parameters_file=batching.config

The server is ready when <http://localhost:8501/v1/models/{name}> answers with status 200 and the
state "AVAILABLE". Prometheus reads <http://localhost:8501/monitoring/prometheus/metrics>.

## Query it

A request has at most {largest} rows: `max_batch_size` in `batching.config`.

    curl -d {request} \\
        http://localhost:8501/v1/models/{name}:predict

To query another signature, put `"signature_name": "..."` before `"instances"`.

Without a server, through the same C++ loader:

{arguments}    echo {request} | python -m polyhead.serving.loader {version}

In Python, with tensorflow-text installed:

    import tensorflow as tf
    import tensorflow_text  # registers the tokenizer's operations; not needed for images
    model = tf.saved_model.load("{version}").signatures["serving_default"]
"""

MODELS = """\
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    # The server serves the newest version. To serve two, a canary and a stable one, uncomment these
    # lines and start the server with --allow_version_labels_for_unavailable_models: it assigns
    # labels before it has loaded the versions.
    # model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    # version_labels {{ key: "stable" value: 1 }}
    # version_labels {{ key: "canary" value: 2 }}
  }}
}}
"""

BATCHING = """\
# Requests that arrive together run as one batch, padded to the next of the allowed sizes. The
# server refuses a request with more rows than max_batch_size.
max_batch_size {{ value: {largest} }}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 100 }}
num_batch_threads {{ value: 2 }}
{allowed}
"""

MARK = "Written by polyhead ({}). The next export replaces this file unless you change it."

MONITORING = """\
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""


def export(
    folder: str | PathLike[str],
    name: str,
    signatures: Mapping[str, tuple[Callable[..., dict], dict[str, Any], dict[str, Any]]],
    variables: Iterable[Any],
    tracked: Iterable[tf.Module] = (),
    notes: str = "",
) -> Path:
    """Writes a SavedModel as the next version of ``folder``, with the server's configuration.

    The version appears atomically, after the server's C++ loader has answered all warm-up requests.
    The answers to requests of up to `COMPARED` rows must equal those of the functions. On Windows
    there is no such loader, and a warning reports that the check was skipped.

    >>> from polyhead.serving.export import export
    >>> scale = keras.Variable(2.0)
    >>> inputs = {"x": tf.TensorSpec([None], tf.float32)}
    >>> signature = (lambda x: {"y": scale * x}, inputs, {"x": [1.0, 3.0]})
    >>> str(export("double", "double", {"serving_default": signature}, [scale]))
    'double/1'

    Args:
        folder: the model's base folder: versions are the folders 1, 2, ... in it.
        name: the model's name in the server's configuration and addresses.
        signatures: ``{name: (function, {input: tf.TensorSpec}, {input: list of values})}``; a
            function takes those inputs by keyword and returns a dict of tensors, all with the batch
            as first axis. The values are example rows for the warm-up requests, one for each of
            `BATCH_SIZES`; the first row should be cheap to compute. Two names may have the same
            tuple.
        variables: the Keras variables that the functions read.
        tracked: `tf.Module`s that the functions use, for example tokenizers.
        notes: a section of the README for the model's users, for example on its memory.

    Returns:
        the version's folder.

    Raises:
        ContractError: TensorFlow Serving would refuse the model, or its answers differ from those
            of the functions.
        NotADirectoryError: ``folder`` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; an export needs a folder")
    folder.mkdir(parents=True, exist_ok=True)
    module = tf.Module()
    for variable in variables:  # in a list, loading each would take longer the longer the list is
        module._track_trackable(variable.value, variable.path)
    module.tracked = list(tracked)
    # A signature with two names is traced, checked and warmed up once.
    functions, first = {}, {}
    for key, signature in signatures.items():
        if (known := first.setdefault(id(signature), key)) is not key:
            functions[key] = functions[known]
            continue
        function, inputs, _ = signature
        functions[key] = tf.function(function, autograph=False).get_concrete_function(**inputs)
    with temporary_folder(folder, "export") as beside:
        saved = beside / "saved"
        tf.saved_model.save(module, str(saved), signatures=functions)
        simplify(saved)
        check_operations(saved)
        requests = [
            (key, request)
            for key in first.values()
            for request in warmup_requests(*signatures[key][1:])
        ]
        check_answers(saved, functions, requests)
        write_warmup(saved, name, requests)
        version = rename_to_next_version(saved, folder)
        write_server_files(beside, folder, name, version, signatures, notes)
    return version


def warmup_requests(inputs, examples):
    """Yields a request, a dict of tensors, for each batch size.

    It holds the first examples or, if there are too few, copies of the first one: repeating long
    texts would slow down the export and each start of the server.
    """
    examples = {k: tf.constant(v, inputs[k].dtype) for k, v in examples.items()}
    [count] = {len(values) for values in examples.values()}
    row = sum(v.dtype.size * v[0].shape.num_elements() for v in examples.values())
    for size in BATCH_SIZES:
        if size == 1 or size * row <= LARGEST:
            rows = np.arange(size) if size <= count else np.zeros(size, int)
            yield {k: tf.gather(v, rows) for k, v in examples.items()}


def check_answers(saved, functions, requests):
    """Queries the saved model through the C++ loader, and compares it with the functions."""
    if not tensorflow_library().exists():
        warnings.warn(
            f"the export has not been run: TensorFlow has no C++ loader here ({sys.platform})",
            stacklevel=4,
        )
        return
    lines = "".join(
        json.dumps({"signature_name": key, "inputs": {k: as_json(v) for k, v in example.items()}})
        + "\n"
        for key, example in requests
    )
    loader = [sys.executable, "-P", "-m", "polyhead.serving.loader", str(saved)]
    # On the CPU: this process may hold all of a GPU's memory.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(loader, input=lines, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ContractError(f"the saved model does not answer: {done.stderr.strip()[-2000:]}")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (signature, example), answer in zip(requests, answers, strict=True):
        batch = len(next(iter(example.values())))
        if batch > COMPARED:
            continue
        expected = functions[signature](**example)
        for key, value in expected.items():
            if value.shape.rank == 0 or value.shape[0] != batch or value.dtype not in SERVED:
                raise ContractError(
                    f"an output must have as many rows as the inputs, {batch}, and be strings, "
                    f"float32 or int32: {key} of {signature} is {value.dtype.name} {value.shape}"
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
    """Converts a tensor or a list to JSON; bytes that are not UTF-8 to base64, as in REST."""
    if isinstance(value, tf.Tensor):
        if value.dtype != tf.string:
            return value.numpy().tolist()
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
    """Writes the requests that the server runs when it loads the model."""
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


def rename_to_next_version(saved, folder):
    """Renames ``saved`` to the next free number, even if other exports run at the same time."""
    while True:
        taken = [int(p.name) for p in folder.iterdir() if re.fullmatch(r"[0-9]+", p.name)]
        version = folder / str(max(taken, default=0) + 1)
        try:
            os.rename(saved, version)
            return version
        except OSError:
            if not version.exists():
                raise


def write_server_files(beside, folder, name, version, signatures, notes):
    """Writes the server's configuration and a README with its commands to ``folder``."""
    first = {k: as_json(values[0]) for k, values in signatures["serving_default"][2].items()}
    arguments = ""
    if set(first) in ({"text"}, {"image_bytes"}):  # what the loader's command takes
        value = first.get("text", "photo.jpg")
        arguments = f"    python -m polyhead.serving.loader {version.name} {shlex.quote(value)}\n"
    listed = "\n".join(
        f"- `{key}`: " + ", ".join(f"`{k}` {spec.dtype.name} (batch)" for k, spec in inputs.items())
        for key, (_, inputs, _) in signatures.items()
    )
    texts = {
        "models.config": MODELS.format(name=name),
        "monitoring.config": MONITORING,
        "batching.config": BATCHING.format(
            largest=BATCH_SIZES[-1],
            allowed="\n".join(f"allowed_batch_sizes: {size}" for size in BATCH_SIZES),
        ),
        "README.md": README.format(
            name=name,
            server=SERVER,
            largest=BATCH_SIZES[-1],
            version=version.name,
            signatures=listed,
            notes=f"{notes}\n" if notes else "",
            request=shlex.quote(json.dumps({"instances": [first]}, ensure_ascii=False)),
            arguments=arguments,
        ),
    }
    for file, text in texts.items():
        if (kept := folder / file).is_file() and is_edited(kept.read_bytes()):
            warnings.warn(
                f"{kept} was not replaced: it was edited, or is of an older version", stacklevel=4
            )
            continue
        (beside / file).write_bytes(sign(text.encode(), file.endswith(".md")))
        os.replace(beside / file, kept)


def sign(content, markdown):
    """Adds a last line, a comment, by which `is_edited` knows the file."""
    mark = MARK.format(hashlib.sha256(content).hexdigest()[:16])
    return content + (f"\n<!-- {mark} -->\n" if markdown else f"# {mark}\n").encode()


def is_edited(content):
    """Whether a file is not as `sign` made it."""
    signed = [sign(content[: -len(sign(b"", kind))], kind) for kind in (True, False)]
    return content not in signed
