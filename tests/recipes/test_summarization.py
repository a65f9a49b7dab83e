import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

from polyhead.data import Summaries, read_summaries
from polyhead.recipes import summarization
from polyhead.recipes.run import load
from polyhead.recipes.settings import sample_folder
from polyhead.recipes.summarization import Settings, evaluate
from polyhead.training import lead, read_tensors, rouge, typical_sentences
from polyhead.zoo import BART, GPT, T5, GPTConfig
from tests.conftest import without_xla
from tests.recipes.test_command import polyhead

SMALL = dict(
    preset="t5-tiny", vocab_size=400, buckets=1, tokens=2048, max_target_length=16,
    peak=1e-2, schedule="sqrt", updates=8, interval=4, dropout=0.0,
)  # fmt: skip
NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def quiet(line):
    pass


def train(out, **settings):
    with without_xla():
        return summarization.train(Settings(**{**SMALL, **settings}), out, say=quiet)


@pytest.fixture(scope="module", autouse=True)
def small_summarizers():
    with pytest.MonkeyPatch.context() as patch:
        for model, name in ((T5, "t5-tiny"), (BART, "bart-tiny")):
            sizes = dict(num_layers=1, dim=32, intermediate_dim=48, num_heads=2)
            patch.setitem(model.PRESETS, name, dataclasses.replace(model.PRESETS[name], **sizes))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A part of the sample; the first text has two summaries."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 64), ("val", 8), ("test", 6)):
        lines = []
        for text, summaries in list(read_summaries(sample_folder("reports"), split))[:count]:
            summaries = summaries if lines else [*summaries, "It rained."]
            lines.append(json.dumps({"text": text, "summary": summaries}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), "utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(data, shared_models, tmp_path_factory):
    """A run of 8 updates; tests may not change it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(run, data=str(data))
    return run


def test_evaluation_gives_the_scores_of_the_best_checkpoint(trained, data):
    rows = list(csv.DictReader((trained / "history.csv").open()))
    assert [row["updates"] for row in rows] == ["4", "8"]
    assert float(rows[1]["val_loss"]) < float(rows[0]["val_loss"])
    best, lines = max(rows, key=lambda row: float(row["val_rougeL"])), []
    found = evaluate(trained, say=lines.append, show=2)
    for name in NAMES:
        logged = float(best[f"val_{name}"])
        assert getattr(found["model"], name) == pytest.approx(logged, abs=6e-3)
    texts = read_summaries(data, "val")
    for n in (1, 3):
        assert found[f"lead-{n}"] == rouge(lead(texts.texts, n), texts.summaries)
    assert len(found["summaries"]) == 8 and lines[0] == f"text       {texts.texts[0]}"
    assert sum(line.startswith("reference") for line in lines) == 2
    assert lines[-3].startswith("model   ROUGE-1 ") and "8 texts of val" in lines[-3]
    assert lines[-1].startswith("lead-3  ROUGE-1 ")
    mean = evaluate(trained, say=quiet, references="mean")
    assert mean["lead-1"] == rouge(lead(texts.texts, 1), texts.summaries, combine="mean")
    assert load(trained).config.prefix == "" and (trained / "curve.png").exists()


def test_summaries_longer_than_the_positions_of_bart_are_refused(data, tmp_path):
    message = "max_target_length must be at most BART's max_length: 49 > 48"
    lengths = dict(max_length=48, max_target_length=49)
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", data=str(data), preset="bart-tiny", **lengths)
    assert not (tmp_path / "run").exists()


def test_the_sample_is_read():
    for split, size in (("train", 1600), ("val", 160), ("test", 160)):
        texts, named = summarization.read("sample", split)
        assert len(texts) == size and named == split and isinstance(texts, Summaries)


def test_verbs_print_a_line_per_text(trained, monkeypatch, capfd, data):
    texts = read_summaries(data, "val").texts[:2]
    for verb in ("summarize", "predict"):
        ask = (verb, trained, *texts, "--max-new-tokens", 6, "--num-beams", 2)
        status, out, err = polyhead(monkeypatch, capfd, *ask)
        assert status == 0, err
        assert len(out.splitlines()) == 2
    expected = load(trained).summarize(texts, max_new_tokens=6, num_beams=2)
    assert out.splitlines() == [" ".join(text.split()) for text in expected]
    status, out, err = polyhead(monkeypatch, capfd, "evaluate", trained, "--split", "test")
    assert status == 0 and "6 texts of test" in out and "lead-1" in out, err
    for arguments, message in (
        (("translate", trained, "a"), "is for summarization, not for translation"),
        (("predict", trained, "a", "--top-p", 0.5), "--top-p: for generation only"),
        (("summarize", trained, "a", "--max-new-tokens", 0), "max_new_tokens must be a positive"),
    ):
        status, _, err = polyhead(monkeypatch, capfd, *arguments)
        assert status == 1 and message in err and len(err.splitlines()) == 1, err


def test_a_file_is_evaluated_as_a_whole(trained, monkeypatch, capfd, tmp_path):
    (tmp_path / "a.tsv").write_text("text\tsummary\nIt rained. So what?\tIt rained.\n")
    ask = ("evaluate", trained, "--data", tmp_path / "a.tsv", "--max-new-tokens", 4)
    status, out, err = polyhead(monkeypatch, capfd, *ask)
    assert status == 0 and "1 texts of a.tsv" in out and "lead-1  ROUGE-1 100.00" in out, err


def test_checkpoints_are_averaged(trained, monkeypatch, capfd, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    status, out, err = polyhead(monkeypatch, capfd, "average", run, "--max-new-tokens", 6)
    assert status == 0 and "the mean of updates 4 to 8: " in out, err
    assert isinstance(load(run / "average"), T5)


@pytest.mark.slow
def test_an_export_is_written(trained, monkeypatch, capfd, tmp_path):
    status, out, err = polyhead(monkeypatch, capfd, "export", trained, tmp_path / "e")
    assert status == 0 and out == f"{tmp_path / 'e' / '1'}\n", err


@pytest.mark.slow
def test_an_interrupted_run_gives_the_same_weights(trained, data, tmp_path):
    """The first checkpoint's files, and the same command."""
    run = shutil.copytree(trained, tmp_path / "run")
    for path in run.glob("checkpoint-*8.safetensors"):
        path.unlink()
    train(run, data=str(data))
    name = "checkpoint-00000008.safetensors"
    for key, value in read_tensors(trained / name)[0].items():
        np.testing.assert_array_equal(value, read_tensors(run / name)[0][key], key)


@pytest.mark.slow
def test_a_pretrained_model_gets_adapters_and_a_prefix(trained, data, tmp_path):
    options = dict(data=str(data), updates=2, interval=2, max_target_length=4)
    train(tmp_path / "run", pretrained=str(trained), lora=2, prefix="Report: ", **options)
    before, after = load(trained), load(tmp_path / "run")
    assert after.config.prefix == "Report: " and after.config.dropout == 0
    for v, w in zip(before.weights, after.weights, strict=True):
        changed = not np.array_equal(v.numpy(), w.numpy())
        assert changed == v.path.endswith(("query/kernel", "value/kernel")), v.path


@pytest.mark.slow
def test_a_first_stage_writes_typical_sentences(data, tmp_path):
    texts, lines, given = read_summaries(data, "train"), [], data
    data = shutil.copytree(given, tmp_path / "data")
    with (data / "train.jsonl").open("a") as file:  # too short, and left out
        file.write('{"text": "It rained. It poured.", "summary": "Rain."}\n')
    settings = Settings(**{**SMALL, "data": str(data), "sentences": 2, "updates": 2})
    with without_xla():
        summarization.train(settings, tmp_path / "run", say=lines.append)
    assert f"{len(texts)} texts with {2 * len(texts)} sentences to write" in lines
    val, model = read_summaries(data, "val"), load(tmp_path / "run")
    found = model.summarize(val.texts, num_beams=1, max_new_tokens=16, pieces=False)
    expected = rouge(found, typical_sentences(val.texts, 2)).rougeL
    history = list(csv.DictReader((tmp_path / "run/history.csv").open()))
    assert expected == pytest.approx(max(float(x["val_rougeL"]) for x in history), abs=6e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:. of . sources have more than 64 tokens")
def test_bart_is_trained(data, tmp_path):
    history = train(tmp_path / "run", data=str(data), preset="bart-tiny", max_length=64)
    model = load(tmp_path / "run")
    assert isinstance(model, BART) and model.config.max_length == 64
    assert history[1]["val_loss"] < history[0]["val_loss"]
    found = evaluate(tmp_path / "run", say=quiet)["model"]
    assert found.rougeL == pytest.approx(max(row["val_rougeL"] for row in history), abs=6e-3)


@pytest.mark.slow
def test_a_model_of_the_sample_is_better_than_its_first_sentences(tmp_path):
    options = dict(vocab_size=1000, updates=300, interval=150, tokens=4096, max_target_length=64)
    train(tmp_path / "run", **options)
    found = evaluate(tmp_path / "run", say=quiet, num_beams=2)
    assert found["model"].rougeL > found["lead-1"].rougeL


def test_bad_settings_are_one_line(trained, data, monkeypatch, capfd, tmp_path):
    begin = ("train", "summarization", "--out", tmp_path / "run", "--data", data)
    GPT(GPTConfig(vocab_size=9, num_layers=1, dim=16, num_heads=2, end_id=0)).save_pretrained(
        tmp_path / "g"
    )
    T5(T5.Config(vocab_size=9, num_layers=1, dim=16)).save_pretrained(tmp_path / "bare")
    (tmp_path / "bad.jsonl").write_text("{}\n" * 10)
    (tmp_path / "short.jsonl").write_text('{"text": "It rained.", "summary": "Rain."}\n' * 20)
    (tmp_path / "few").mkdir()
    shutil.copy(data / "train.jsonl", tmp_path / "few")
    shutil.copy(tmp_path / "short.jsonl", tmp_path / "few/val.jsonl")
    for options, message in (
        (("--preset", "bart-tiny", "--prefix", "a: "), "prefix is for T5: 'a: '"),
        (("--preset", "gpt2"), "summarization has presets t5-small, t5-base"),
        (("--pretrained", tmp_path / "g"), "is a GPT, neither T5 nor BART"),
        (("--pretrained", tmp_path / "bare"), "has no tokenizer"),
        (("--pretrained", tmp_path / "nowhere"), "nowhere"),
        (("--data", tmp_path / "bad.jsonl"), "bad.jsonl, line 1 must have a text"),
        (("--data", tmp_path / "no.jsonl"), "no file or folder"),
        (("--tokens", 0), "tokens must be positive: 0"),
        (("--sentences", 0), "the number of sentences must be positive: 0"),
        (("--data", tmp_path / "short.jsonl", "--sentences", 1), "three sentences; train of"),
        (("--data", tmp_path / "few", "--sentences", 1), "three sentences; val of"),
        (("--max-target-length", 1), "max_length and max_target_length must be at least 2"),
    ):
        status, _, err = polyhead(monkeypatch, capfd, *begin, *options)
        assert status == 1 and message in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "run").exists()
    status, _, err = polyhead(monkeypatch, capfd, "train", "translation", "--out", trained)
    assert status == 1 and "is a run of summarization" in err
