"""The recipe of span corruption, and fine-tuning from its runs."""

import csv
import dataclasses
import shutil

import numpy as np
import pytest

from polyhead.data import Subwords
from polyhead.recipes import denoising, summarization
from polyhead.recipes.run import load
from polyhead.training import read_tensors
from polyhead.zoo import BART, T5
from tests.conftest import without_xla
from tests.recipes.test_command import polyhead

SMALL = dict(vocab_size=500, length=48, batch_size=16, peak=5e-3, schedule="sqrt")


@pytest.fixture(scope="module", autouse=True)
def small_models():
    """Presets with one narrow block."""
    sizes = dict(num_layers=1, dim=32, intermediate_dim=48, num_heads=2)
    with pytest.MonkeyPatch.context() as patch:
        for model, name, more in ((T5, "t5-tiny", dict(head_dim=16)), (BART, "bart-tiny", {})):
            small = dataclasses.replace(model.PRESETS[name], **sizes, **more)
            patch.setitem(model.PRESETS, name, small)
        yield


def train(out, recipe=denoising, **settings):
    settings = {**(SMALL if recipe is denoising else {}), **settings}
    with without_xla():
        return recipe.train(recipe.Settings(**settings), out, say=lambda line: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run; tests may not change it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(out, updates=16, interval=8)
    return out


def test_training_lowers_the_loss_and_evaluation_gives_that_of_the_best_checkpoint(run):
    rows = list(csv.DictReader((run / "history.csv").open()))
    losses = [float(row["val_loss"]) for row in rows]
    assert len(losses) == 2 and losses[1] < losses[0] < np.log(500)
    lines = []
    found = denoising.evaluate(run, say=lines.append)
    assert found["loss"] == pytest.approx(min(losses), abs=2e-4)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert 0 < found["accuracy"] < 1 and found["tokens"] > 500
    assert lines == [
        f"loss {found['loss']:.4f}, perplexity {found['perplexity']:.2f}, accuracy "
        f"{found['accuracy']:.2%}; {found['tokens']:,} target tokens of val"
    ]
    model = load(run)
    assert len(model.tokenizer.sentinel_ids) == 100 and model.config.vocab_size == 500
    assert model.config.prefix == "" and (run / "curve.png").exists()


@pytest.mark.slow
def test_an_interrupted_run_gives_the_same_weights(run, tmp_path):
    again = shutil.copytree(run, tmp_path / "run")
    for path in again.glob("checkpoint-*16.safetensors"):
        path.unlink()
    train(again, updates=16, interval=8)
    name = "checkpoint-00000016.safetensors"
    for key, value in read_tensors(run / name)[0].items():
        np.testing.assert_array_equal(value, read_tensors(again / name)[0][key], key)


def test_verbs_print_lines(run, monkeypatch, capfd):
    texts = ("A dog <extra_id_0> in the", "<extra_id_0> man")
    found = []
    for verb in ("generate", "predict"):
        ask = (verb, run, *texts, "--max-new-tokens", 6, "--num-beams", 2)
        status, out, err = polyhead(monkeypatch, capfd, *ask)
        assert status == 0 and len(out.splitlines()) == 2, err
        found.append(out)
    assert found[0] == found[1] and "extra_id" not in found[0]
    for option in (("--temperature", 0.5), ("--seed", 1), ("--stop", "a")):
        status, _, err = polyhead(monkeypatch, capfd, "generate", run, "a", *option)
        assert (status, err) == (1, f"error: {option[0]}: for generation only\n")
    status, _, err = polyhead(monkeypatch, capfd, "summarize", run, "a")
    assert status == 1 and "is for denoising, not for summarization" in err


def test_checkpoints_are_averaged(run, monkeypatch, capfd, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    status, out, err = polyhead(monkeypatch, capfd, "average", copy)
    assert status == 0 and "the mean of updates 8 to 16: loss " in out, err


def test_other_text_is_evaluated(run, monkeypatch, capfd, tmp_path):
    (tmp_path / "book.txt").write_text("The dog sleeps under the table. " * 40, "utf-8")
    ask = ("evaluate", run, "--data", tmp_path / "book.txt", "--split", "train")
    status, out, err = polyhead(monkeypatch, capfd, *ask)
    assert status == 0 and out.endswith(" target tokens of train\n"), err
    status, out, err = polyhead(monkeypatch, capfd, *ask[:-2])
    assert status == 0 and out.endswith(" target tokens of book.txt\n"), err


def test_bad_settings_are_one_line(run, monkeypatch, capfd, tmp_path):
    model = T5.preset("t5-tiny", Subwords.train(["a dog sleeps"], 20, exact=False))
    model.save_pretrained(tmp_path / "bare")
    begin = ("train", "denoising", "--out", tmp_path / "new")
    for arguments, message in (
        (("--preset", "gpt2"), "denoising has presets t5-small, "),
        (("--length", 9999), "length must be at most the model's: 9999 > 512"),
        (("--rate", 1), "rate must be in (0, 1): 1.0"),
        (("--pretrained", tmp_path / "bare"), "Subwords has no sentinels: train a vocabulary by"),
        (("--vocab-size", 100), "texts give no vocabulary of 100 pieces"),
    ):
        status, _, err = polyhead(monkeypatch, capfd, *begin, *arguments)
        assert status == 1 and message in err and len(err.splitlines()[-1:]) == 1, err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_pretraining_continues_with_the_vocabulary_of_the_model(run, tmp_path):
    train(tmp_path / "more", pretrained=str(run), updates=1, interval=1, peak=1e-9)
    old, new = load(run), load(tmp_path / "more")
    assert new.tokenizer.model == old.tokenizer.model
    for before, after in zip(old.weights, new.weights, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["t5-tiny", pytest.param("bart-tiny", marks=pytest.mark.long)])
def test_a_summarizer_starts_from_a_run(run, tmp_path, preset):
    if preset != "t5-tiny":
        train(run := tmp_path / "run", preset=preset, updates=16, interval=8)
    settings = dict(pretrained=str(run), tokens=2048, buckets=1, max_target_length=16)
    history = train(tmp_path / "tuned", summarization, updates=12, interval=6, **settings)
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    old, new = load(run), load(tmp_path / "tuned")
    assert type(old) is type(new) and old.tokenizer.model == new.tokenizer.model
    settings.pop("pretrained")
    train(tmp_path / "still", summarization, pretrained=str(run), updates=1, peak=1e-9, **settings)
    for before, after in zip(old.weights, load(tmp_path / "still").weights, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-6)


@pytest.mark.slow
def test_exports_are_written(run, monkeypatch, capfd, tmp_path):
    status, out, err = polyhead(monkeypatch, capfd, "export", run, tmp_path / "e")
    assert status == 0 and out == f"{tmp_path / 'e' / '1'}\n", err
