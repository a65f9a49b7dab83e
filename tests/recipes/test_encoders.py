"""The recipes of text encoders: classes, tags, answers, embeddings and masked tokens."""

import csv
import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import tensorflow as tf

from polyhead.data import read_labelled_texts
from polyhead.recipes import answering, embedding, masked, tagging, text_classification
from polyhead.recipes.encoding import check_sequences, open_run
from polyhead.recipes.run import escape, load, task_of
from polyhead.recipes.settings import sample_folder
from polyhead.training import read_tensors
from polyhead.training.states import by_path
from polyhead.zoo import BERT, ESM
from tests.conftest import without_xla
from tests.recipes.test_command import polyhead

RECIPES = {
    "text_classification": text_classification,
    "tagging": tagging,
    "answering": answering,
    "embedding": embedding,
    "masked": masked,
}
SMALL = dict(vocab_size=400, buckets=1, peak=3e-3, schedule="sqrt")


def quiet(line):
    pass


def train(recipe, out, **settings):
    settings = {**SMALL, **settings}
    with without_xla():
        return recipe.train(recipe.Settings(**settings), out, say=quiet)


@pytest.fixture(scope="module")
def trained(shared_models, tmp_path_factory):
    """A function that returns a run of a task; tests may not change it."""
    runs = {}

    def run(task):
        if task not in runs:
            out = tmp_path_factory.mktemp("runs") / task
            train(RECIPES[task], out, updates=8, interval=4)
            runs[task] = out
        return runs[task]

    return run


SCORES = {
    "text_classification": ("accuracy", "macro_f1", "matthews", "loss"),
    "tagging": ("f1", "precision", "recall", "loss"),
    "answering": ("f1", "exact", "answer_f1", "no_answer"),
    "embedding": ("spearman", "pearson"),
    "masked": ("loss",),
}


@pytest.mark.parametrize("task", RECIPES)
def test_evaluation_gives_the_scores_of_the_best_checkpoint(trained, task):
    run, recipe = trained(task), RECIPES[task]
    rows = list(csv.DictReader((run / "history.csv").open()))
    assert len(rows) == 2 and float(rows[1]["loss"]) < float(rows[0]["loss"])
    monitor, sign = f"val_{SCORES[task][0]}", 1 - 2 * (task == "masked")
    best = max(rows, key=lambda row: sign * float(row[monitor]))
    found = recipe.evaluate(run, say=quiet)
    for name in SCORES[task]:
        assert found[name] == pytest.approx(float(best[f"val_{name}"]), abs=2e-4), name
    assert (run / "curve.png").exists() and (run / "tokenizer.json").exists()


@pytest.mark.parametrize("task", ["tagging", pytest.param("masked", marks=pytest.mark.slow)])
def test_all_kept_checkpoints_are_averaged_by_default(trained, monkeypatch, capfd, tmp_path, task):
    run = shutil.copytree(trained(task), tmp_path / "run")
    status, out, err = polyhead(monkeypatch, capfd, "average", run)
    assert status == 0 and "the mean of updates 4 to 8: " in out, err


def test_answers_have_the_threshold_of_validation(trained):
    run = trained("answering")
    rows = list(csv.DictReader((run / "history.csv").open()))
    best = max(rows, key=lambda row: float(row["val_f1"]))
    config = json.loads((run / "best" / "config.json").read_text())
    assert config["no_answer"] == pytest.approx(float(best["val_threshold"]), rel=1e-5)


@pytest.mark.slow
def test_an_average_of_answers_has_its_own_threshold(trained, tmp_path):
    run = shutil.copytree(trained("answering"), tmp_path / "run")
    config = json.loads((run / "best" / "config.json").read_text())
    (run / "best" / "config.json").write_text(json.dumps(config | {"no_answer": 1e9}))
    answering.average(run, say=quiet)
    model = load(run / "average")
    expected = answering.score(model, answering.read("sample", "val")[0], answering.Settings())
    assert model.config.no_answer == pytest.approx(expected["threshold"])


@pytest.mark.slow
def test_a_run_with_adapters_is_averaged(trained, tmp_path):
    run = tmp_path / "run"
    given = dict(pretrained=str(trained("text_classification")), lora=2)
    train(text_classification, run, updates=8, interval=4, **given)
    lines = []
    text_classification.average(run, say=lines.append)
    assert not any("lora" in path for path in read_tensors(run / "average/model.safetensors")[0])
    kernels = [by_path(load(folder).weights) for folder in (run, run / "average")]
    changed = [path for path, v in kernels[0].items() if np.any(v != kernels[1][path])]
    assert any("query/kernel" in path for path in changed)
    assert any("head/" in path for path in changed) and len(lines) == 3
    model = load(run)
    model.enable_lora(2)
    merged = [
        model._merge_lora({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
        for tensors, _ in map(read_tensors, sorted(run.glob("checkpoint-*.safetensors")))
    ]
    for path, v in kernels[1].items():
        mean = np.mean([weights[path] for weights in merged], axis=0)
        np.testing.assert_allclose(v, mean, atol=1e-6)


def test_bad_letters_are_found_before_training():
    texts = {"train": ["MKV", "m k <mask> v"], "val": ["MK V*A"]}
    with pytest.raises(ValueError, match=r"p.csv, val: .*'\*' at position 4 of 'MKV\*A'"):
        check_sequences("p.csv", texts)
    check_sequences("p.csv", {"train": texts["train"]})


@pytest.mark.slow
def test_answers_and_exports_read_contexts_as_the_run_did(trained, monkeypatch, capfd, tmp_path):
    run = shutil.copytree(trained("answering"), tmp_path / "run")
    context = "Ada sleeps in Oslo. " * 9
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(settings | {"longest": 1, "max_length": 20}))
    config = json.loads((run / "best" / "config.json").read_text())
    (run / "best" / "config.json").write_text(json.dumps(config | {"no_answer": 1e9}))
    arguments = "answer", run, "Who?", "--context", context, "--top", 20
    status, out, err = polyhead(monkeypatch, capfd, *arguments)
    assert status == 0, err
    model = load(run)
    given = dict(top=20, window_length=20, max_answer_tokens=1)
    [expected, others] = (model.answer("Who?", context, **x) for x in (given, {"top": 20}))
    assert [line.split("\t")[0] for line in out.splitlines()] == [x.text for x in expected]
    assert expected != others
    answering.export(run, tmp_path / "export")
    served = tf.saved_model.load(str(tmp_path / "export" / "1")).signatures["answer"]
    found = served(question=tf.constant(["Who?"]), context=tf.constant([context]))
    assert found["text"].numpy()[0].decode() == expected[0].text
    assert found["score"].numpy()[0] == pytest.approx(expected[0].score, rel=1e-4)


@pytest.mark.parametrize(
    "task, arguments, lines",
    [
        ("text_classification", ("classify", "one", "two", "--top", 2), 4),
        ("tagging", ("tag", "Ada Hill works in Oslo."), None),
        ("answering", ("answer", "Who sleeps?", "Who?", "--context", "Ada sleeps."), 2),
        ("embedding", ("embed", "a text", "another"), 2),
        ("masked", ("fill-mask", "the [MASK] sleeps", "a [MASK] and a [MASK]", "--top", 3), 9),
    ],
)
def test_verbs_print_lines(trained, monkeypatch, capfd, task, arguments, lines):
    verb, *others = arguments
    for name in (verb, "predict"):
        status, out, err = polyhead(monkeypatch, capfd, name, trained(task), *others)
        assert status == 0, err
        assert lines is None or len(out.splitlines()) == lines
    other = "embed" if task != "embedding" else "tag"
    status, _, err = polyhead(monkeypatch, capfd, other, trained(task), "a")
    assert status == 1 and f"is for {task.replace('_', ' ')}, not for" in err


def test_embeddings_of_proteins_are_a_line_each(monkeypatch, capfd, tmp_path):
    model = ESM.preset("esm2-t6-8m", num_layers=1, head=None)
    model.save_pretrained(tmp_path / "model")
    status, out, _ = polyhead(monkeypatch, capfd, "embed", tmp_path / "model", "MKV", "MK")
    found = [[float(number) for number in line.split()] for line in out.splitlines()]
    assert status == 0
    np.testing.assert_allclose(found, model.embed(["MKV", "MK"], pooled=True), atol=1e-5)


def test_embeddings_are_saved_as_an_array(trained, monkeypatch, capfd, tmp_path):
    file = tmp_path / "vectors"
    ask = ("embed", trained("embedding"), "a text", "another", "--save")
    assert polyhead(monkeypatch, capfd, *ask, file)[0] == 0
    assert np.load(file).shape == (2, 32)
    status, _, err = polyhead(monkeypatch, capfd, *ask, tmp_path / "none" / "a.npy")
    assert status == 1 and err == f"error: there is no folder {tmp_path / 'none'}\n"


def test_a_context_is_a_text_or_a_file(tmp_path):
    file = tmp_path / "context.txt"
    file.write_bytes("\ufeffAda\r\nsleeps.".encode())
    assert answering.read_context(str(file)) == "Ada\nsleeps."
    for text in ("Ada sleeps.", "日本" * 200, "a\0b", "x" * 5000, "www.example.org", "日本.txt"):
        assert answering.read_context(text) == text
    with pytest.raises(FileNotFoundError, match="there is no file contxt.TXT"):
        answering.read_context("contxt.TXT")
    with pytest.raises(FileNotFoundError, match="there is no file my article.txt"):
        answering.read_context("my article.txt")
    with pytest.raises(IsADirectoryError, match="--context is a folder"):
        answering.read_context(str(tmp_path))
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="context.txt is not valid UTF-8"):
        answering.read_context(str(file))


def test_a_new_model_has_the_positions_that_it_learns(trained):
    lengths = [load(trained(task)).config.max_length for task in ("tagging", "answering")]
    assert lengths == [128, 384]


def test_pairs_are_not_split_between_devices(tmp_path):
    with pytest.raises(
        ValueError, match="batch_size must be a multiple of the 2 devices, .*: 5; 6 is"
    ):
        train(embedding, tmp_path / "run", batch_size=5, devices=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text_classification", "masked"])
def test_an_interrupted_run_gives_the_same_weights(trained, tmp_path, task):
    """The first checkpoint's files, and the same command."""
    run = shutil.copytree(trained(task), tmp_path / "run")
    for path in run.glob("checkpoint-*8.safetensors"):
        path.unlink()
    train(RECIPES[task], run, updates=8, interval=4)
    name = "checkpoint-00000008.safetensors"
    for key, value in read_tensors(trained(task) / name)[0].items():
        np.testing.assert_array_equal(value, read_tensors(run / name)[0][key], key)


def test_a_run_keeps_its_classes(trained, tmp_path):
    run, sample = shutil.copytree(trained("text_classification"), tmp_path / "run"), "a.csv"
    names = load(run).config.class_names
    for labels in (names, [*names[:-1], "other"]):
        lines = [f"text {i},{labels[i % len(labels)]}\n" for i in range(10 * len(labels))]
        (tmp_path / sample).write_text("".join(lines))
        settings = json.loads((run / "settings.json").read_text())
        settings |= {"data": str(tmp_path / sample)}
        (run / "settings.json").write_text(json.dumps(settings))
        given = dict(data=str(tmp_path / sample), updates=10, interval=4)
        if labels is names:
            train(text_classification, run, **given)
            continue
        with pytest.raises(ValueError, match="the classes of the data have changed since .*other"):
            train(text_classification, run, **(given | {"updates": 12}))


@pytest.mark.parametrize(
    "task, settings, message",
    [
        ("answering", dict(overlap=-5), "overlap must be a non-negative integer: -5"),
        ("answering", dict(longest=0), "longest must be a positive integer: 0"),
        ("answering", dict(preset="roberta-base"), "training on pairs needs pairs of texts"),
        ("tagging", dict(freeze="."), "no weight is left to train"),
        ("tagging", dict(max_length=2), "more than the 2 special tokens of a text: 2"),
        ("tagging", dict(lora=0), "rank must be a positive integer: 0"),
        ("tagging", dict(accumulate=100), "accumulate must be at most the 8 batches .*: 100"),
        ("tagging", dict(clip=0.0), "clip must be positive: 0.0"),
        ("tagging", dict(peak=math.nan), "peak must be positive: nan"),
        ("tagging", dict(weight_decay=-1.0), "weight_decay must be at least 0: -1.0"),
        ("tagging", dict(warmup=-1), "warmup must be at least 0: -1"),
        ("tagging", dict(patience=-1), "patience must be at least 1: -1"),
        ("embedding", dict(max_score=0.0), "the largest score must be positive: 0.0"),
    ],
)
def test_wrong_settings_are_refused_before_a_run_is_deleted(
    trained, tmp_path, monkeypatch, task, settings, message
):
    run = shutil.copytree(trained(task), tmp_path / "run")
    sizes = dict(num_layers=1, dim=16, num_heads=2, intermediate_dim=16)
    small = dataclasses.replace(BERT.PRESETS["roberta-base"], **sizes)
    monkeypatch.setitem(BERT.PRESETS, "roberta-base", small)
    recipe = RECIPES[task]
    with pytest.raises(ValueError, match=message), without_xla():
        given = SMALL | dict(updates=8) | settings
        recipe.train(recipe.Settings(**given), run, restart=True, say=quiet)
    assert (run / "best").is_dir() and list(run.glob("checkpoint-*"))


@pytest.mark.slow
def test_a_pretrained_model_gets_another_head_and_adapters(trained, tmp_path):
    settings = dict(pretrained=str(trained("masked")), updates=2, interval=2)
    train(tagging, tmp_path / "tags", lora=2, layer_decay=0.5, **settings)
    before, after = (
        {v.path: v.numpy() for v in load(run).weights}
        for run in (trained("masked"), tmp_path / "tags")
    )
    for path, value in after.items():
        changed = not np.array_equal(before.get(path, 0), value)
        assert changed == bool("head/" in path or path.endswith(("query/kernel", "value/kernel")))
    train(embedding, tmp_path / "vectors", freeze="^block_0/", **settings)
    model = load(tmp_path / "vectors")
    assert model.config.head is None
    for v in model.weights:
        assert np.array_equal(before[v.path], v.numpy()) == v.path.startswith("block_0/"), v.path


def test_pairs_without_scores_are_ranked_in_the_batch(tmp_path):
    texts = read_labelled_texts(sample_folder("messages"), "train").texts[:60]
    (tmp_path / "pairs.tsv").write_text("".join(f"{t}\tOh, {t}\n" for t in texts), "utf-8")
    history = train(embedding, tmp_path / "run", data=str(tmp_path / "pairs.tsv"), updates=4)
    assert history[-1]["val_accuracy"] > 0.5
    found = embedding.evaluate(tmp_path / "run", say=quiet)
    assert found == {"accuracy": pytest.approx(history[-1]["val_accuracy"]), "pairs": 6}


def test_a_file_is_evaluated_as_a_whole(trained, tmp_path, monkeypatch, capfd):
    (tmp_path / "a.csv").write_text("text,label\nwhere is it?,delivery\nthanks!,thanks\n")
    ask = ("evaluate", trained("text_classification"), "--data", tmp_path / "a.csv")
    status, out, _ = polyhead(monkeypatch, capfd, *ask)
    assert status == 0 and out.endswith("2 texts of a.csv\n")
    model = shutil.copytree(trained("text_classification") / "best", tmp_path / "model")
    status, found, _ = polyhead(monkeypatch, capfd, "evaluate", model, *ask[2:])
    assert status == 0 and found == out
    status, _, err = polyhead(monkeypatch, capfd, "evaluate", model)
    assert status == 1 and "is not a run, which has data: pass --data" in err
    (tmp_path / "a.csv").write_text("text,label\nwhere is it?,praise\n")
    status, _, err = polyhead(monkeypatch, capfd, *ask)
    assert status == 1 and "the class 'praise' is not one of the model's" in err


def test_models_without_names_of_classes_are_evaluated_by_number(tmp_path, trained):
    def nameless(task, folder):
        model = load(trained(task))
        model.save_pretrained(folder)
        content = json.loads((folder / "config.json").read_text()) | {"class_names": None}
        (folder / "config.json").write_text(json.dumps(content))
        return model

    model = nameless("text_classification", tmp_path / "model")
    (tmp_path / "a.csv").write_text("text,label\nwhere is it?,0\nthanks!,1\n")
    data = str(tmp_path / "a.csv")
    found = text_classification.evaluate(tmp_path / "model", data, say=quiet)
    assert found["texts"] == 2 and found["loss"] > 0
    settings, _ = open_run(tmp_path / "model", text_classification.Settings, data)
    assert settings.max_length == model.config.max_length  # not the 128 of a run
    run = trained("text_classification")
    assert open_run(run, text_classification.Settings, data)[0].max_length is None
    nameless("tagging", tmp_path / "tags")
    (tmp_path / "a.conll").write_text("Ada\t0\nsleeps\t1\n")
    found = tagging.evaluate(tmp_path / "tags", str(tmp_path / "a.conll"), say=quiet)
    assert found["sentences"] == 1
    model.adapt("score").save_pretrained(tmp_path / "score")
    with pytest.raises(ValueError, match="a model with the head 'score' has no classes"):
        text_classification.evaluate(tmp_path / "score", data, say=quiet)


def test_the_task_of_a_published_model_is_that_of_its_weights(trained, tmp_path):
    model = load(trained("masked"))
    model.save_pretrained(tmp_path / "masked", format="huggingface")
    file = tmp_path / "masked" / "config.json"
    content = json.loads(file.read_text())
    del content["architectures"]
    file.write_text(json.dumps(content))
    assert task_of(tmp_path / "masked") == "masked"
    load(trained("embedding")).save_pretrained(tmp_path / "vectors", format="huggingface")
    file = tmp_path / "vectors" / "config.json"
    content = json.loads(file.read_text()) | {"architectures": ["BertForMaskedLM"]}
    file.write_text(json.dumps(content))
    assert task_of(tmp_path / "vectors") == "embedding"


def test_unprintable_characters_of_a_token_are_escaped():
    assert escape("a\n\t é日\x00\u200b\\n") == "a\\n\\t é日\\x00\\u200b\\\\n"


def test_the_data_decide_what_is_classified(trained, monkeypatch, capfd, tmp_path):
    (tmp_path / "a.csv").write_text("".join(f"text {i},{i % 2}\n" for i in range(20)))
    calls = []
    for kind, recipe in (("texts", text_classification), ("images", None)):
        from polyhead.recipes import classification

        name = kind
        monkeypatch.setattr(
            recipe or classification, "train", lambda s, *_, name=name: calls.append((name, s))
        )
    begin = ("train", "classification", "--out", tmp_path / "run")
    for data, kind in ((tmp_path / "a.csv", "texts"), ("sample-text", "texts"), (None, "images")):
        ask = (*begin, "--data", data) if data else begin
        assert polyhead(monkeypatch, capfd, *ask)[0] == 0
        assert calls.pop()[0] == kind
    for options, message in (
        (("--data", "sample-text", "--mix"), "--mix: for images only, not for texts"),
        (("--lora", 2), "--lora: for texts only, not for images"),
    ):
        status, _, err = polyhead(monkeypatch, capfd, *begin, *options)
        assert status == 1 and message in err and not calls
    config = tmp_path / "settings.json"
    settings = text_classification.Settings(epochs=3)
    config.write_text(json.dumps({"task": "text_classification", **dataclasses.asdict(settings)}))
    assert polyhead(monkeypatch, capfd, *begin, "--config", config, "--epochs", 4)[0] == 0
    assert calls.pop() == ("texts", dataclasses.replace(settings, epochs=4))


def test_bad_data_and_settings_are_one_line(trained, monkeypatch, capfd, tmp_path):
    one = tmp_path / "one.csv"
    one.write_text("".join(f"text {i},same\n" for i in range(20)))
    begin = ("train", "classification", "--out", tmp_path / "run", "--data")
    BERT(dataclasses.replace(BERT.PRESETS["bert-tiny"], vocab_size=9)).save_pretrained(
        tmp_path / "bare"
    )
    for arguments, message in (
        ((*begin, one), "texts must have at least 2 classes"),
        ((*begin, "sample-text", "--preset", "gpt2"), "text encoders have presets bert-base"),
        ((*begin, "sample-text", "--max-length", 9999), "max_length must be at most the model's"),
        ((*begin, "sample-text", "--pretrained", tmp_path / "bare"), "has no tokenizer"),
        (
            (*begin, "sample-text", "--layer-decay", 0.9, "--optimizer", "muon"),
            "layer_decay needs the optimizer adam",
        ),
        (("answer", trained("answering"), "Who?"), "pass --context"),
    ):
        status, _, err = polyhead(monkeypatch, capfd, *arguments)
        assert status == 1 and message in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", RECIPES)
def test_exports_are_written(trained, monkeypatch, capfd, tmp_path, task):
    status, out, err = polyhead(monkeypatch, capfd, "export", trained(task), tmp_path / "e")
    assert status == 0 and out == f"{tmp_path / 'e' / '1'}\n", err
