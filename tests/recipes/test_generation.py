import csv
import json
import shutil

import numpy as np
import pytest

from polyhead.data import text_batches
from polyhead.recipes.generation import Settings, evaluate, train
from polyhead.training import read_tensors
from polyhead.zoo import GPT
from tests.conftest import without_xla
from tests.recipes.test_command import polyhead


@pytest.fixture(scope="module")
def text(sample, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(sample.sources), "utf-8")
    return path


SMALL = dict(length=32, batch_size=8, interval=20, warmup=5, updates=60, keep=2)


@pytest.fixture(scope="module")
def trained(text, shared_models, tmp_path_factory):
    """A run of 60 updates; tests may not change it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    with without_xla():
        train(Settings(data=str(text), **SMALL), run, say=lambda line: None)
    return run


def test_training_lowers_the_loss_and_keeps_the_best_model(trained):
    rows = list(csv.DictReader((trained / "history.csv").open()))
    losses = [float(row["val_loss"]) for row in rows]
    assert [row["updates"] for row in rows] == ["20", "40", "60"]
    assert losses[-1] < losses[0] < 4 and min(losses) == losses[-1]
    found = evaluate(trained)
    assert found["loss"] == pytest.approx(losses[-1], rel=1e-4)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    bits = found["loss"] * found["tokens"] / np.log(2) / found["bytes"]
    assert found["bits_per_byte"] == pytest.approx(bits)


def test_all_of_another_file_is_evaluated(trained, tmp_path):
    (tmp_path / "other.txt").write_text("The dog sleeps.\n" * 8, "utf-8")
    lines = []
    assert evaluate(trained, tmp_path / "other.txt", say=lines.append)["bytes"] == 128
    assert lines[0].endswith("128 bytes of other.txt")
    assert evaluate(trained, tmp_path / "other.txt", "val", say=lines.append)["bytes"] == 13


def test_a_vocabulary_has_the_characters_of_validation(text, tmp_path, monkeypatch):
    file = tmp_path / "book.txt"
    file.write_text(text.read_text("utf-8") + "Prices: $5 (100%), me@x.org", "utf-8")

    class Built(Exception):
        pass

    def stop(stream, tokenizer, *rest, **options):
        raise Built(tokenizer)

    monkeypatch.setattr("polyhead.data.text_batches", stop)
    with pytest.raises(Built) as error:
        train(Settings(data=str(file), **SMALL), tmp_path / "run", say=lambda line: None)
    assert {*"$5%@"} <= {*error.value.args[0].characters}


def test_evaluation_has_the_length_of_the_run(trained, text, tmp_path, monkeypatch):
    run, lengths = shutil.copytree(trained, tmp_path / "run"), []
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(settings | {"length": 4}))

    def record(stream, tokenizer, length, *rest, **options):
        lengths.append(length)
        return text_batches(stream, tokenizer, length, *rest, **options)

    monkeypatch.setattr("polyhead.data.text_batches", record)
    evaluate(run, split="val")
    evaluate(run / "best", text, "val")
    shutil.copytree(run / "best", tmp_path / "model")
    evaluate(tmp_path / "model", text, "val")
    assert lengths == [4, 4, 32]
    with pytest.raises(ValueError, match="model is not a run, which has data: pass --data"):
        evaluate(tmp_path / "model")


def test_a_length_beyond_the_context_is_refused_before_a_run_is_deleted(trained, text, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    given = Settings(data=str(text), pretrained=str(trained), **{**SMALL, "length": 64})
    with pytest.raises(ValueError, match="length must be at most the model's: 64 > 32"):
        train(given, run, restart=True, say=lambda line: None)
    assert list(run.glob("checkpoint-*"))


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(trained, text, tmp_path):
    settings = Settings(data=str(text), **{**SMALL, "schedule": "sqrt"})
    train(settings, tmp_path / "whole", say=lambda line: None)
    stopped = Settings(data=str(text), **{**SMALL, "schedule": "sqrt", "updates": 40})
    train(stopped, tmp_path / "parts", say=lambda line: None)
    train(settings, tmp_path / "parts", say=lambda line: None)
    one, other = (
        read_tensors(tmp_path / run / "checkpoint-00000060.safetensors")[0]
        for run in ("whole", "parts")
    )
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


def test_the_command_continues_text(trained, monkeypatch, capfd, tmp_path):
    ask = ("predict", trained, "The dog", "--max-new-tokens", 20, "--seed", 3)
    status, out, err = polyhead(monkeypatch, capfd, *ask)
    assert status == 0 and out.startswith("The dog") and len(out) > 10, err
    assert polyhead(monkeypatch, capfd, "generate", *ask[1:])[1] == out
    status, several, _ = polyhead(monkeypatch, capfd, *ask, "--num-return-sequences", 2)
    assert status == 0 and several.count("The dog") >= 2
    status, out, _ = polyhead(monkeypatch, capfd, "evaluate", trained)
    assert status == 0 and "perplexity" in out and "bits per byte" in out
    beams = shutil.copytree(trained, tmp_path / "beams")  # a model whose own search has beams
    config = json.loads((beams / "best" / "config.json").read_text())
    config["search"] |= {"num_beams": 2}
    (beams / "best" / "config.json").write_text(json.dumps(config))
    status, out, err = polyhead(monkeypatch, capfd, "generate", beams, "The dog")
    assert status == 0 and out.startswith("The dog"), err
    new = ("train", "generation", "--out", tmp_path / "r")
    for arguments, message in (
        (("predict", trained, "a", "--attention", "x.png"), "--attention: for translation only"),
        (("predict", trained, "a", "--top-p", 2), "top_p must be in (0, 1]: 2"),
        (("predict", trained, "§"), "the vocabulary has no characters '§'"),
        (
            ("evaluate", trained, "--num-beams", 2),
            "--num-beams: for translation and summarization only",
        ),
        ((*new, "--data", tmp_path / "no.txt"), "No such"),
        ((*new, "--preset", "gpt9"), "GPT has presets"),
        (("train", "translation", "--out", trained), "is a run of generation"),
    ):
        status, _, err = polyhead(monkeypatch, capfd, *arguments)
        assert status == 1 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_published_weights_are_fine_tuned_with_lora(trained, text, tmp_path):
    options = {**SMALL, "updates": 20, "peak": 1e-2}
    settings = Settings(data=str(text), pretrained=str(trained / "best"), lora=2, **options)
    train(settings, tmp_path / "tuned", say=lambda line: None)
    before, after = (
        GPT.from_pretrained(trained / "best"),
        GPT.from_pretrained(tmp_path / "tuned" / "best"),
    )
    changed = {
        v.path
        for v, w in zip(before.weights, after.weights, strict=True)
        if not np.array_equal(v.numpy(), w.numpy())
    }
    assert changed == {
        f"block_{i}/attention/{name}/kernel" for i in range(2) for name in ("query", "value")
    }
    assert evaluate(tmp_path / "tuned")["loss"] < evaluate(trained)["loss"]
    frozen = Settings(data=str(text), pretrained=str(trained / "best"), freeze="block_0", **options)
    train(frozen, tmp_path / "frozen", say=lambda line: None)
    after = GPT.from_pretrained(tmp_path / "frozen" / "best")
    for v, w in zip(before.weights, after.weights, strict=True):
        same = np.array_equal(v.numpy(), w.numpy())
        assert same == v.path.startswith("block_0"), v.path
