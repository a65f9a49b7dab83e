import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request

import keras
import numpy as np
import pooch
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from polyhead.serving.contract import ContractError, check_operations, served_operations
from polyhead.serving.export import BATCH_SIZES, export, warmup_requests
from polyhead.serving.folder import temporary_folder
from polyhead.serving.loader import columns
from polyhead.zoo import Transformer
from tests.conftest import small

TEXTS = [
    "The old dog sees a cat.",
    "",
    "🐻 läuft – 日本語, кот!",
    "The dog sees the cat. " * 40,
    "tab\there\nnew line",
]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "translation"
    return model.export(folder)


def ask(version, requests, signature="serving_default", **environment):
    """Queries the C++ loader, in a process without Python's tensorflow."""
    return send(version, [{"inputs": {"text": t}} for t in requests], signature, **environment)


def send(version, requests, signature="serving_default", **environment):
    done = subprocess.run(
        [sys.executable, "-m", "polyhead.serving.loader", "--signature", signature, str(version)],
        input="".join(json.dumps(request) + "\n" for request in requests),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.filterwarnings("ignore:1 of 5 sources")
def test_the_server_translates_like_the_model(exported, model):
    requests = [TEXTS[:1], TEXTS[:3], TEXTS, TEXTS[1:2]]
    answers = ask(exported, requests)
    expected = model.translate(TEXTS)
    for texts, answer in zip(requests, answers, strict=True):
        for text, translated, score in zip(texts, answer["text"], answer["score"], strict=True):
            wanted = expected[TEXTS.index(text)]
            assert translated == wanted
            assert score == pytest.approx(wanted.score, abs=1e-3)


@pytest.mark.filterwarnings("ignore:1 of 5 sources")
def test_the_server_searches_like_the_model(exported, model):
    [answer] = ask(exported, [TEXTS], "beam")
    expected = model.translate(TEXTS, num_beams=4, num_return_sequences=4)
    assert answer["text"][1] == [""] * 4 and answer["score"][1][0] == 0
    for i in (0, 2, 3, 4):
        assert answer["text"][i] == expected[i]
        wanted = [translation.score for translation in expected[i]]
        assert answer["score"][i] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.slow
def test_quantized_models_and_their_exports_translate_like_the_original(
    tokenizer, sample, tmp_path
):
    texts, translations = sample.sources[:48], sample.targets[:48]
    model = small(tokenizer, dim=64, num_layers=1)
    labels = np.array(tokenizer.encode(translations, target=True).to_tensor())
    target = np.concatenate([np.full((48, 1), model.config.start_id), labels[:, :-1]], axis=1)
    inputs = {"source": np.array(tokenizer.encode(texts).to_tensor()), "target": target}
    model.compile(keras.optimizers.Adam(3e-3))
    model.fit(inputs, labels, 48, 150, verbose=0, sample_weight=np.float32(labels != 0))
    expected = model.translate(texts, batch_size=48)
    assert (
        sum(a == b for a, b in zip(expected, translations, strict=True)) > 40
    )  # the model is trained
    model.quantize("int8")
    assert model.translate(texts, batch_size=48) == expected
    model.save_pretrained(tmp_path / "saved")
    version = Transformer.from_pretrained(tmp_path / "saved").export(tmp_path / "export")
    [answer] = ask(version, [texts])
    assert answer["text"] == expected
    weights = sum(path.stat().st_size for path in (version / "variables").iterdir())
    assert weights < 0.5 * 4 * model.count_params()


def test_python_can_load_an_export(exported, model):
    served = tf.saved_model.load(str(exported)).signatures["serving_default"]
    answer = served(text=tf.constant(TEXTS[:1]))
    assert [t.decode() for t in answer["text"].numpy()] == model.translate(TEXTS[:1])


def test_the_folder_has_the_files_of_the_server(exported):
    base = exported.parent
    assert exported.name == "1" and (exported / "saved_model.pb").is_file()
    assert (exported / "variables" / "variables.index").is_file()
    records = exported / "assets.extra" / "tf_serving_warmup_requests"
    requests = [
        prediction_log_pb2.PredictionLog.FromString(r.numpy()).predict_log.request
        for r in tf.data.TFRecordDataset(str(records))
    ]
    asked = [r.model_spec.signature_name for r in requests]
    assert asked == ["serving_default"] * 5 + ["beam"] * 5
    shapes = [tf.make_ndarray(r.inputs["text"]).shape for r in requests]
    assert shapes == [(1,), (4,), (8,), (16,), (32,)] * 2
    assert 'base_path: "/models/translation"' in (base / "models.config").read_text()
    batching = (base / "batching.config").read_text()
    assert "max_batch_size { value: 32 }" in batching
    allowed = tuple(map(int, re.findall(r"^allowed_batch_sizes: (\d+)$", batching, re.M)))
    assert allowed == BATCH_SIZES == (1, 4, 8, 16, 32)
    assert (
        (base / "monitoring.config")
        .read_text()
        .startswith(
            'prometheus_config {\n  enable: true\n  path: "/monitoring/prometheus/metrics"\n}\n# W'
        )
    )
    text = (base / "README.md").read_text()
    for part in (
        "docker run",
        " tensorflow/serving:2.20.0 ",
        " --monitoring_config_file=/models/translation/monitoring.config ",
        "http://localhost:8501/v1/models/translation>",
        "import tensorflow_text ",
    ):
        assert part in text
    assert "--allow_version_labels_for_unavailable_models" in (base / "models.config").read_text()


def test_answers_have_the_format_of_the_rest_api(exported):
    [body] = re.findall(r"curl -d '(.*)'", (exported.parent / "README.md").read_text())
    request = json.loads(body)
    assert request == {"instances": [{"text": "A dog runs."}]}
    rows, plain, columns, column = send(
        exported,
        [
            request,
            {"instances": ["A dog runs.", {"b64": "QSBkb2cgcnVucy4="}]},
            {"inputs": {"text": ["A dog runs."]}},
            {"inputs": ["A dog runs."]},
        ],
    )
    [row] = rows["predictions"]
    assert sorted(row) == ["score", "text"]
    assert columns == column == {name: [value] for name, value in row.items()}
    assert [one["text"] for one in plain["predictions"]] == [row["text"]] * 2


@pytest.mark.parametrize(
    "instances, message",
    [
        ([], "must be a non-empty list, not \\[\\]"),
        ("A dog.", "must be a non-empty list, not 'A dog.'"),
        ([{"text": "a", "seed": 1}, "b"], "instance 1 must be an object with .*, not 'b'"),
        ([{"text": "a"}], "instance 0 must be an object with \\['seed', 'text'\\], not {'text'"),
        ([{"b64": "YQ=="}], "instance 0 must be an object"),
    ],
)
def test_invalid_instances_are_refused_by_index(instances, message):
    with pytest.raises(RuntimeError, match=message):
        columns(instances, ["seed", "text"])


def test_the_loader_does_not_affect_other_libraries_or_xla(tmp_path):
    def twice(jit_compile):
        function = tf.function(lambda x: x * 2, jit_compile=jit_compile)
        spec = tf.TensorSpec([None], tf.float32)
        return tf.function(lambda x: {"y": function(x)}).get_concrete_function(x=spec)

    signatures = {"plain": twice(False), "compiled": twice(True)}
    tf.saved_model.save(tf.Module(), str(tmp_path), signatures=signatures)
    code = f"""
from polyhead.serving.loader import SavedModel
model = SavedModel({str(tmp_path)!r})
def check():
    assert model({{"x": [2.0]}}, "plain") == {{"y": [4.0]}}
    try:
        model({{"x": [2.0]}}, "compiled")
    except RuntimeError as error:
        assert "code 13" in str(error)
    else:
        raise AssertionError("the loader ran XLA, which the server does not")
check()
import hashlib, ssl, numpy.random
assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442")
ssl.create_default_context()
numpy.random.default_rng(0).random()
import tensorflow as tf
check()
assert float(tf.function(lambda x: x * 2, jit_compile=True)(tf.constant(1.0))) == 2
try:
    SavedModel({str(tmp_path)!r})
except RuntimeError as error:
    assert "tensorflow is already imported" in str(error)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr[-2000:]


@pytest.fixture(scope="session")
def previous_tensorflow():
    """A folder with the previous TensorFlow, the version of the newest server image."""
    name = "tensorflow-2.20.0-{}{}".format(*sys.version_info[:2])
    folder = pooch.os_cache("polyhead-tests") / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent, name) as beside:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--retries=1", "--no-deps"]
            packages = ["tensorflow==2.20.0", "tensorflow-text==2.20.1"]
            command = [*pip, "--target", str(beside / "packages"), *packages]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"pip cannot install {packages}: {done.stderr.strip()[-200:]}")
            os.rename(beside / "packages", folder)
    return folder


@pytest.mark.slow
def test_an_export_runs_under_the_previous_tensorflow(exported, model, previous_tensorflow):
    for signature in ("serving_default", "beam"):
        [now] = ask(exported, [TEXTS[:3]], signature)
        [then] = ask(exported, [TEXTS[:3]], signature, PYTHONPATH=str(previous_tensorflow))
        assert then["text"] == now["text"]
        np.testing.assert_allclose(then["score"], now["score"], atol=1e-3)


def test_warmup_repeats_the_first_example_up_to_a_size_in_bytes(monkeypatch):
    inputs = {"x": tf.TensorSpec([None, 2], tf.float32)}
    examples = {"x": [[i, i] for i in range(4)]}
    requests = [request["x"].numpy() for request in warmup_requests(inputs, examples)]
    assert [len(x) for x in requests] == [1, 4, 8, 16, 32]
    assert requests[1].tolist() == examples["x"] and requests[2].tolist() == [[0, 0]] * 8
    monkeypatch.setattr("polyhead.serving.export.LARGEST", 8 * 8)
    assert [len(request["x"]) for request in warmup_requests(inputs, examples)] == [1, 4, 8]


def test_the_configuration_is_in_the_servers_format(exported):
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    text = (exported.parent / "models.config").read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    assert config.model_config_list.config[0].name == "translation"


def test_errors_of_the_loader_name_the_problem(exported, tmp_path):
    for arguments, message in (
        ([tmp_path, "A dog."], "TensorFlow failed with code 5"),
        ([], "usage:"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "polyhead.serving.loader", *arguments],
            capture_output=True,
            text=True,
        )
        assert done.returncode and message in done.stderr


class Doubler:
    """A minimal exported function that doubles a text."""

    def __call__(self, text):
        return {"text": tf.strings.join([text, text])}

    signatures = property(
        lambda self: {
            "serving_default": (self, {"text": tf.TensorSpec([None], tf.string)}, {"text": ["a"]})
        }
    )

    def export(self, folder):
        return export(folder, "doubler", self.signatures, [])


def test_versions_follow_each_other(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "notes").mkdir()
    assert Doubler().export(tmp_path).name == "8"
    assert Doubler().export(tmp_path).name == "9"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(NotADirectoryError, match="is a file"):
        Doubler().export(tmp_path / "README.md")


def test_files_that_were_edited_are_kept(tmp_path):
    Doubler().export(tmp_path)
    readme = tmp_path / "README.md"
    first = readme.read_text()
    Doubler().export(tmp_path)
    assert "polyhead.serving.loader 1" in first and "loader 2" in readme.read_text()
    readme.write_text(mine := f"{readme.read_text()}A note.\n")
    (tmp_path / "models.config").write_text("# mine")
    (tmp_path / "batching.config").unlink()
    with pytest.warns(UserWarning, match="was not replaced") as found:
        export(tmp_path, "other", Doubler().signatures, [])
    assert len([w for w in found if "was not replaced" in str(w.message)]) == 2
    assert (tmp_path / "models.config").read_text() == "# mine" and readme.read_text() == mine
    assert "max_batch_size" in (tmp_path / "batching.config").read_text()
    readme.write_text(first)
    (tmp_path / "models.config").unlink()
    export(tmp_path, "other", Doubler().signatures, [])
    assert readme.read_text().startswith("# other")


def test_a_failed_export_leaves_no_files(tmp_path):
    class Compiled(Doubler):
        def __call__(self, text):
            x = tf.function(lambda n: n * 2, jit_compile=True)(tf.strings.length(text))
            return {"text": tf.strings.as_string(x)}

    with pytest.raises(ContractError, match="TensorFlow Serving runs without XLA"):
        Compiled().export(tmp_path)

    class Python(Doubler):
        def __call__(self, text):
            return {"text": tf.py_function(lambda t: t, [text], tf.string)}

    with pytest.raises(ContractError, match="TensorFlow Serving has no operation EagerPyFunc"):
        Python().export(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_xla_operation_of_slice_update_is_refused_by_name(tmp_path):
    import keras

    module = tf.Module()
    start = [tf.TensorSpec([], tf.int32)]
    module.f = tf.function(
        lambda i: keras.ops.slice_update(tf.zeros([4]), (i,), tf.ones([1])), input_signature=start
    )
    tf.saved_model.save(module, str(tmp_path))
    with pytest.raises(ContractError, match="no operation XlaDynamicUpdateSlice"):
        check_operations(tmp_path)


def test_a_model_with_different_answers_is_refused(tmp_path):
    class Clock(Doubler):
        def __call__(self, text):
            now = tf.strings.as_string(tf.timestamp())
            return {"text": tf.fill(tf.shape(text), now)}

    with pytest.raises(ContractError, match="text of the saved model's serving_default is"):
        Clock().export(tmp_path)


@pytest.mark.skipif(
    shutil.which("tensorflow_model_server") is None,
    reason="tensorflow_model_server is not on the path",
)
def test_the_model_server_serves_an_export(exported, model, tmp_path):
    config = tmp_path / "models.config"
    text = (exported.parent / "models.config").read_text()
    config.write_text(text.replace("/models/translation", str(exported.parent)))
    server = subprocess.Popen(
        [
            "tensorflow_model_server",
            "--port=18500",
            "--rest_api_port=18501",
            f"--model_config_file={config}",
            "--enable_batching",
            f"--batching_parameters_file={exported.parent / 'batching.config'}",
        ]
    )
    try:
        address = "http://127.0.0.1:18501/v1/models/translation"
        for _ in range(60):
            try:
                urllib.request.urlopen(address)
                break
            except OSError:
                time.sleep(1)
        answers = {}

        def post(text):
            body = json.dumps({"instances": [{"text": text}]}).encode()
            with urllib.request.urlopen(f"{address}:predict", body) as reply:
                answers[text] = json.load(reply)["predictions"][0]["text"]

        threads = [threading.Thread(target=post, args=(t,)) for t in TEXTS[:3]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answers[t] for t in TEXTS[:3]] == model.translate(TEXTS[:3])
    finally:
        server.terminate()
        server.wait()


def test_models_without_text_are_exported_without_tensorflow_text_and_loader(tmp_path, monkeypatch):
    """Simulates Windows."""
    monkeypatch.setattr("polyhead.serving.contract.text_libraries", lambda: [])
    monkeypatch.setattr("polyhead.serving.export.tensorflow_library", lambda: tmp_path / "none")
    served_operations.cache_clear()
    scale = keras.Variable(2.0)
    signature = (lambda x: {"y": scale * x}, {"x": tf.TensorSpec([None], tf.float32)}, {"x": [1.0]})
    with pytest.warns(UserWarning, match="the export has not been run: TensorFlow has no C.. load"):
        version = export(tmp_path / "e", "e", {"serving_default": signature}, [scale])
    assert (version / "saved_model.pb").exists()
    served_operations.cache_clear()
