import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from polyhead.serving.contract import ContractError, check_operations
from polyhead.serving.export import export
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


def ask(version, requests, signature="serving_default"):
    """Through the C++ loader, in a process without Python's tensorflow."""
    lines = "".join(json.dumps({"inputs": {"text": texts}}) + "\n" for texts in requests)
    done = subprocess.run(
        [sys.executable, "-m", "polyhead.serving.loader", "--signature", signature, str(version)],
        input=lines,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.filterwarnings("ignore:1 of 5 sources")
def test_the_server_translates_as_the_model_does(exported, model):
    requests = [TEXTS[:1], TEXTS[:3], TEXTS, TEXTS[1:2]]
    answers = ask(exported, requests)
    expected = model.translate(TEXTS, scores=True)
    for texts, answer in zip(requests, answers, strict=True):
        for text, translated, score in zip(texts, answer["text"], answer["score"], strict=True):
            wanted = expected[TEXTS.index(text)]
            assert translated == wanted.text
            assert score == pytest.approx(wanted.score, abs=1e-3)


@pytest.mark.filterwarnings("ignore:1 of 5 sources")
def test_the_server_searches_as_the_model_does(exported, model):
    [answer] = ask(exported, [TEXTS], "beam")
    expected = model.translate(TEXTS, beams=4, best=4, scores=True)
    assert answer["text"][1] == [""] * 4 and answer["score"][1][0] == 0
    for i in (0, 2, 3, 4):
        assert answer["text"][i] == [translation.text for translation in expected[i]]
        wanted = [translation.score for translation in expected[i]]
        assert answer["score"][i] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.slow
def test_a_quantized_model_translates_as_before_and_so_does_its_export(tokenizer, sample, tmp_path):
    texts, translations = sample.sources[:48], sample.targets[:48]
    model = small(tokenizer, dim=64, num_layers=1)
    labels = np.array(tokenizer.ragged(translations, target=True).to_tensor())
    target = np.concatenate([np.full((48, 1), model.config.start_id), labels[:, :-1]], axis=1)
    inputs = {"source": np.array(tokenizer.encode(texts)), "target": target}
    model.compile(keras.optimizers.Adam(3e-3))
    model.fit(inputs, labels, 48, 150, verbose=0, sample_weight=np.float32(labels != 0))
    expected = model.translate(texts, batch_size=48)
    assert sum(a == b for a, b in zip(expected, translations, strict=True)) > 40  # it has learned
    model.quantize("int8")
    assert model.translate(texts, batch_size=48) == expected
    model.save_pretrained(tmp_path / "saved")
    version = Transformer.from_pretrained(tmp_path / "saved").export(tmp_path / "export")
    [answer] = ask(version, [texts])
    assert answer["text"] == expected
    weights = sum(path.stat().st_size for path in (version / "variables").iterdir())
    assert weights < 0.5 * 4 * model.count_params()


def test_python_loads_it_as_well(exported, model):
    served = tf.saved_model.load(str(exported)).signatures["serving_default"]
    answer = served(text=tf.constant(TEXTS[:1]))
    assert [t.decode() for t in answer["text"].numpy()] == model.translate(TEXTS[:1])


def test_the_folder_is_what_the_server_wants(exported):
    base = exported.parent
    assert exported.name == "1" and (exported / "saved_model.pb").is_file()
    assert (exported / "variables" / "variables.index").is_file()
    records = exported / "assets.extra" / "tf_serving_warmup_requests"
    requests = [
        prediction_log_pb2.PredictionLog.FromString(r.numpy()).predict_log.request
        for r in tf.data.TFRecordDataset(str(records))
    ]
    asked = [r.model_spec.signature_name for r in requests]
    assert asked == ["serving_default"] * 3 + ["beam"] * 3
    shapes = [tf.make_ndarray(r.inputs["text"]).shape for r in requests]
    assert shapes == [(1,), (4,), (8,)] * 2
    assert 'base_path: "/models/translation"' in (base / "models.config").read_text()
    assert "max_batch_size { value: 32 }" in (base / "batching.config").read_text()
    assert "docker run" in (base / "README.md").read_text()


def test_the_configuration_is_in_the_servers_format(exported):
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    text = (exported.parent / "models.config").read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    assert config.model_config_list.config[0].name == "translation"


def test_the_loader_says_what_is_wrong(exported, tmp_path):
    for arguments, message in (
        ([tmp_path, "A dog."], "TensorFlow refuses with code 5"),
        ([], "usage:"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "polyhead.serving.loader", *arguments],
            capture_output=True,
            text=True,
        )
        assert done.returncode and message in done.stderr


class Doubler:
    """The least that can be exported: text twice."""

    def __call__(self, text):
        return {"text": tf.strings.join([text, text])}

    signatures = property(
        lambda self: {
            "serving_default": (self, {"text": tf.TensorSpec([None], tf.string)}, [{"text": ["a"]}])
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


def test_an_export_that_fails_leaves_nothing(tmp_path):
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


def test_the_operation_of_slice_update_is_refused_by_name(tmp_path):
    import keras

    module = tf.Module()
    start = [tf.TensorSpec([], tf.int32)]
    module.f = tf.function(
        lambda i: keras.ops.slice_update(tf.zeros([4]), (i,), tf.ones([1])), input_signature=start
    )
    tf.saved_model.save(module, str(tmp_path))
    with pytest.raises(ContractError, match="no operation XlaDynamicUpdateSlice"):
        check_operations(tmp_path)


def test_a_model_that_answers_otherwise_is_refused(tmp_path):
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
def test_the_model_server_serves_it(exported, model, tmp_path):
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
