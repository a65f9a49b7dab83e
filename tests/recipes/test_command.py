import csv
import dataclasses
import functools
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import pytest
from typer import Exit

from polyhead.data import read_split
from polyhead.recipes.command import main
from polyhead.recipes.options import resumable
from polyhead.recipes.run import Run, check_run, learning_rate, load, read_lines, write_run
from polyhead.recipes.settings import read_settings
from polyhead.recipes.translation import Settings, train
from polyhead.training import InverseSquareRoot, locked, read_tensors
from polyhead.zoo import Transformer
from tests.conftest import without_xla
from tests.training.test_lock import another_process_holds

SMALL = (
    "--vocab-size 300 --tokens 1024 --buckets 1 --warmup 20 --max-length 64 --dropout 0.1 --seed 3 "
    "--bpe-dropout 0.1"
).split()


@pytest.fixture(scope="session")
def data(sample, tmp_path_factory):
    """A folder of data that trains in seconds."""
    folder = tmp_path_factory.mktemp("data")
    for split, rows in (
        ("train", slice(0, 120)),
        ("val", slice(120, 136)),
        ("test", slice(136, 152)),
    ):
        for language, texts in (("en", sample.sources), ("de", sample.targets)):
            (folder / f"{split}.{language}").write_text("\n".join(texts[rows]) + "\n", "utf-8")
    return folder


def polyhead(monkeypatch, capfd, *arguments, stdin=None):
    """Runs the command in this process; returns its exit status and output."""
    monkeypatch.setattr(sys, "argv", ["polyhead", *map(str, arguments)])
    if stdin is not None:
        path = Path(arguments[1]) / "stdin.txt"
        path.write_text(stdin, "utf-8")
        monkeypatch.setattr(sys, "stdin", path.open(encoding="utf-8"))
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfd.readouterr()
    return stop.value.code or 0, out, err


@pytest.fixture(scope="module")
def trained(data, shared_models, tmp_path_factory):
    """A run of three epochs; tests may not change it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    options = dict(vocab_size=300, tokens=1024, buckets=1, warmup=20, max_length=64)
    options |= dict(dropout=0.1, bpe_dropout=0.1, seed=3)
    with without_xla():
        train(Settings(data=str(data), epochs=3, **options), run)
    return run


def test_a_run_has_the_documented_files(trained):
    names = {p.name for p in trained.iterdir()}
    assert {"settings.json", "tokenizer.model", "best", "history.csv", "curve.png", "logs"} <= names
    rows = list(csv.DictReader((trained / "history.csv").open()))
    assert [r["epoch"] for r in rows] == ["1", "2", "3"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert all(0 <= float(r["val_bleu"]) <= 100 for r in rows)
    assert len([n for n in names if n.startswith("checkpoint-")]) == 2
    assert list((trained / "logs").rglob("events.*"))
    assert not [n for n in names if n.startswith(".")]


def test_evaluate_prints_bleu_and_signature(trained, monkeypatch, capfd):
    code, out, _ = polyhead(monkeypatch, capfd, "evaluate", trained, "--show", 1)
    assert code == 0
    assert "on 16 sentences of test" in out and "tok:13a" in out
    assert out.count("translation ") == 1


def test_predict_reads_arguments_or_lines(trained, monkeypatch, capfd):
    code, out, _ = polyhead(monkeypatch, capfd, "predict", trained, "The dog.", "", "A cat.")
    assert code == 0 and len(out.splitlines()) == 3
    assert out.splitlines()[1] == ""
    piped = polyhead(monkeypatch, capfd, "predict", trained, stdin="The dog.\n\nA cat.\n")
    assert piped[1] == out


def test_beam_search_and_attention_are_options(trained, monkeypatch, capfd, tmp_path):
    picture = tmp_path / "attention.png"
    ask = (
        "predict",
        trained,
        "The dog.",
        "--num-return-sequences",
        2,
        "--length-penalty",
        0.6,
        "--attention",
        picture,
    )
    status, out, _ = polyhead(monkeypatch, capfd, *ask)
    (first, _), (second, _) = (line.split("\t", 1) for line in out.splitlines())
    assert status == 0 and float(first) >= float(second)
    assert picture.read_bytes().startswith(b"\x89PNG")
    for arguments, message in (
        (("The dog.", "A cat.", "--attention", picture), "--attention takes one text: 2 given"),
        (("The dog.", "--attention", tmp_path / "no" / "a.png"), "no folder"),
        (("The dog.", "--num-beams", 0), "beams must be a positive integer: 0"),
    ):
        status, _, err = polyhead(monkeypatch, capfd, "predict", trained, *arguments)
        assert status == 1 and message in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_checkpoints_are_averaged(trained, monkeypatch, capfd, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / ".average.killed").mkdir()
    status, out, _ = polyhead(monkeypatch, capfd, "average", run, "--num-beams", 2)
    assert not list(run.glob(".average*"))
    assert status == 0 and "the mean of updates" in out and out.endswith(f"{run / 'average'}\n")
    mean, _ = read_tensors(run / "average" / "model.safetensors")
    saved = [read_tensors(path)[0] for path in run.glob("checkpoint-*.safetensors")]
    for name, value in mean.items():
        expected = np.mean([tensors[f"model/{name}"] for tensors in saved], axis=0)
        np.testing.assert_allclose(value, expected, atol=1e-6)
    status, out, _ = polyhead(monkeypatch, capfd, "evaluate", run / "average", "--show", 0)
    assert status == 0 and "BLEU" in out
    status, _, err = polyhead(monkeypatch, capfd, "average", run, "--last", 10)
    assert status == 1 and "cannot average the last 10 checkpoints" in err and "it has 2" in err


def copy_reversed(run, copy):
    """Copies a translation run, with the languages swapped."""
    shutil.copytree(run, copy)
    settings = json.loads((copy / "settings.json").read_text())
    turned = {**settings, "source": "de", "target": "en"}
    (copy / "settings.json").write_text(json.dumps(turned))
    return copy


@pytest.mark.slow
def test_diversify_adds_translations_of_both_directions(
    trained, data, monkeypatch, capfd, tmp_path
):
    back, more = copy_reversed(trained, tmp_path / "back"), tmp_path / "more"
    turned = json.loads((back / "settings.json").read_text())
    pairs = read_split(data, "train", "en", "de")
    translate, calls = Transformer.translate, []

    def counted(model, texts, *arguments, **options):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return translate(model, texts, *arguments, **options)

    # An interrupted call keeps its translations; a further run is translated alone.
    monkeypatch.setattr("polyhead.recipes.diversify.CHUNK", 80)
    monkeypatch.setattr(Transformer, "translate", counted)
    ask = ("diversify", trained, "--num-beams", 2, "--out", more)
    assert polyhead(monkeypatch, capfd, *ask)[0] == 0
    status, _, err = polyhead(monkeypatch, capfd, *ask, back)
    assert status == 130 and "resume from the last translations" in err
    status, out, _ = polyhead(monkeypatch, capfd, *ask, back)
    assert status == 0 and f"pairs of sentences in {more}" in out
    assert calls == [80, 40, 80, 80, 40]

    found = read_split(more, "train", "en", "de")
    model = Transformer.from_pretrained(trained / "best")
    german, english = (
        translate(model, side, batch_size=64, num_beams=2)
        for side in (pairs.sources, pairs.targets)
    )
    made = {*zip(pairs.sources, german, strict=True), *zip(english, pairs.targets, strict=True)}
    made = {pair for pair in made if all(map(str.strip, pair))}
    before = [*zip(pairs.sources, pairs.targets, strict=True)]
    after = [*zip(found.sources, found.targets, strict=True)]
    assert after[:120] == before
    assert sorted(after[120:]) == sorted(made - {*before})
    for split in ("val", "test"):
        assert read_split(more, split, "en", "de") == read_split(data, split, "en", "de")

    (back / "settings.json").write_text(json.dumps({**turned, "variant": "lc"}))
    for arguments, message in (
        ((*ask, back), "variant of"),
        (("diversify", trained, "--out", trained), "holds something other than this data"),
        (("diversify", trained, "--out", data), "another folder than the data's"),
        (("diversify", trained, "--data", more, "--out", more), "another folder than the data's"),
        (("diversify", tmp_path, "--out", tmp_path / "new"), "no settings.json"),
    ):
        status, _, err = polyhead(monkeypatch, capfd, *arguments)
        assert status == 1 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_training_starts_from_a_pretrained_model(trained, data, tmp_path):
    options = dict(pretrained=str(trained), tokens=1024, buckets=1, max_length=64)
    settings = Settings(data=str(data), epochs=1, peak=1e-9, **options)
    train(settings, tmp_path / "tuned", say=lambda line: None)
    before, after = (
        read_tensors(run / "best" / "model.safetensors")[0] for run in (trained, tmp_path / "tuned")
    )
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-6)
    vocabulary = "tokenizer.model"
    assert (tmp_path / "tuned" / vocabulary).read_bytes() == (trained / vocabulary).read_bytes()
    with pytest.raises(ValueError, match="norm cannot be chosen"):
        train(dataclasses.replace(settings, norm="post"), tmp_path / "other")
    with pytest.raises(ValueError, match="at most the pretrained model's: 65 > 64"):
        train(dataclasses.replace(settings, max_length=65), tmp_path / "other")
    with pytest.raises(ValueError, match="would delete the pretrained model"):
        train(settings, trained, restart=True)
    assert (trained / "best").exists()


@pytest.mark.slow
def test_export_writes_and_prints_a_version(trained, monkeypatch, capfd, tmp_path):
    code, out, _ = polyhead(monkeypatch, capfd, "export", trained, tmp_path / "export")
    assert code == 0 and out.strip() == str(tmp_path / "export" / "1")
    assert (tmp_path / "export" / "1" / "saved_model.pb").is_file()


def test_errors_are_one_line(trained, data, monkeypatch, capfd, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "editor").mkdir()
    (tmp_path / "editor" / "settings.json").write_text('{"theme": "dark"}')
    (tmp_path / "file").write_text("")
    begin = ["train", "translation", "--data"]
    for arguments, message in (
        (["predict", tmp_path / "nowhere", "A dog."], "no folder"),
        (["predict", tmp_path, "A dog."], "neither a model nor a run"),
        (["evaluate", tmp_path], "no settings.json"),
        (["evaluate", trained, "--split", "dev"], "has no split 'dev'"),
        (["export", trained, tmp_path / "file"], "is a file"),
        ([*begin, tmp_path / "nowhere", "--out", tmp_path / "run"], "no folder"),
        ([*begin, data, "--out", tmp_path / "mine"], "holds something other than a run"),
        ([*begin, data, "--out", tmp_path / "mine", "--restart"], "something other than a run"),
        (
            [*begin, data, "--out", tmp_path / "editor", "--restart"],
            "does not hold the settings of a run",
        ),
        ([*begin, data, "--out", trained, "--preset", "huge", *SMALL, "--restart"], "has presets"),
        ([*begin, data, "--out", trained, "--seed", "4"], "started with other settings"),
        ([*begin, data, "--out", tmp_path / "a", "--preset", "huge", *SMALL], "has presets"),
        ([*begin, data, "--out", tmp_path / "b", "--vocab-size", "99999"], "no vocabulary of"),
        ([*begin, data, "--out", tmp_path / "c", "--devices", "0", *SMALL], "devices must be"),
    ):
        code, out, err = polyhead(monkeypatch, capfd, *arguments)
        lines = err.splitlines()
        assert code == 1, (arguments, out, err)
        assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert (tmp_path / "editor" / "settings.json").exists() and (trained / "best").exists()
    assert not [name for name in ("run", "a", "b", "c") if (tmp_path / name).exists()]


def test_the_learning_rate_is_the_papers_or_a_cosine_to_zero():
    rate = InverseSquareRoot.of_width(64, 10)
    paper = learning_rate(Settings(), rate, 100)
    assert float(paper(9)) == pytest.approx(64**-0.5 * 10**-0.5)
    cosine = learning_rate(Settings(schedule="cosine", peak=0.3, warmup=10), rate, 110)
    found = [float(cosine(update)) for update in (0, 5, 10, 60, 110)]
    assert found == pytest.approx([0, 0.15, 0.3, 0.15, 0], abs=1e-7)
    cosine = learning_rate(Settings(schedule="cosine", peak=0.3, warmup=10), rate, 110, floor=0.1)
    assert float(cosine(110)) == pytest.approx(0.03)
    with pytest.raises(ValueError, match="warmup must be shorter"):
        learning_rate(Settings(schedule="cosine", warmup=10), rate, 10)
    line = learning_rate(Settings(schedule="linear", peak=0.3, warmup=10), rate, 110)
    assert [float(line(update)) for update in (9, 60, 110)] == pytest.approx([0.3, 0.15, 0])
    with pytest.raises(ValueError, match="sqrt or cosine or linear"):
        learning_rate(Settings(schedule="step"), rate, 10)


def test_a_cosine_keeps_its_end(tmp_path):
    settings = Settings(schedule="cosine", epochs=3)
    write_run(settings, tmp_path, None, False)
    assert check_run(settings, tmp_path, False)
    with pytest.raises(ValueError, match="epochs 3 -> 4"):
        check_run(dataclasses.replace(settings, epochs=4), tmp_path, False)


def test_the_warmup_adapts_to_the_updates_and_is_kept_by_a_resumed_run(tmp_path):
    def begin(**options):
        run = Run(Settings(**options), tmp_path / "run", say=lambda line: None)
        optimizer = run.optimizer(
            keras.optimizers.Adam, functools.partial(InverseSquareRoot, 0.5), per_epoch=1000
        )
        return run, optimizer.get_config()["learning_rate"]["config"]

    for options, expected in (
        (dict(updates=20), 2),
        (dict(updates=20, accumulate=4), 1),
        (dict(updates=1), 1),
        (dict(updates=20, warmup=7), 7),
        (dict(updates=20, warmup=0), 1),
        (dict(), 1000),
    ):
        assert begin(**options)[1] == {"peak": 0.5, "warmup": expected}
    assert begin(updates=1, schedule="cosine")[1]["warmup_steps"] == 1
    run, _ = begin(updates=20)
    write_run(run.settings, run.out, None, False)
    assert begin(updates=2000)[1]["warmup"] == 2
    with pytest.raises(ValueError, match="warmup 2 -> 3"):
        begin(updates=20, warmup=3)


def test_a_restart_keeps_the_lock_and_what_it_reads(trained, data, tmp_path, capfd):
    run = shutil.copytree(trained, tmp_path / "run")
    with locked(run):
        write_run(read_settings(run), run, None, True)
        assert sorted(path.name for path in run.iterdir()) == [".lock", "settings.json"]
    (tmp_path / "disk").mkdir()
    (run / "logs").symlink_to(tmp_path / "disk")
    write_run(read_settings(run), run, None, True)
    assert not (run / "logs").exists() and (tmp_path / "disk").is_dir()
    inside = shutil.copytree(data, run / "data")
    with pytest.raises(ValueError, match="--restart would delete the data"):
        Run(Settings(data=str(inside)), run, restart=True)
    for command in ("the same command", "the same command without --restart"):
        with pytest.raises(Exit), resumable("the last checkpoint", command):
            raise KeyboardInterrupt
        assert f"run {command} to resume from the last checkpoint" in capfd.readouterr().err


def test_standard_input_may_begin_with_a_byte_order_mark(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffA dog.\n\nTwo.\n"))
    assert read_lines(None) == ["A dog.", "", "Two."]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert read_lines(None) == []
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed"):
        read_lines(None)


def test_a_run_killed_while_its_tokenizer_was_written_begins_again(tmp_path):
    (tmp_path / ".tokenizer.json.123").write_text("{")
    assert not check_run(Settings(), tmp_path, False)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something other than a run"):
        check_run(Settings(), tmp_path, False)


def test_a_second_process_in_one_folder_is_refused(trained, data, monkeypatch, capfd, tmp_path):
    run, more = shutil.copytree(trained, tmp_path / "run"), tmp_path / "more"
    (run / ".checkpoint-00000099.safetensors.1").write_text("of a live process")
    train = ["train", "translation", "--data", data, "--out", run, *SMALL]
    more.mkdir()
    for folder, name, arguments in (
        (run, "", train),
        (run, "", [*train, "--restart"]),
        (run, "average", ["average", run, "--last", 2]),
        (more, "", ["diversify", run, "--out", more]),
    ):
        with another_process_holds(folder, name) as process:
            code, _, err = polyhead(monkeypatch, capfd, *arguments)
            assert code == 1 and err.startswith(f"error: {folder} is in use by process")
            assert str(process.pid) in err and len(err.splitlines()) == 1
            if "--restart" in arguments:
                assert isinstance(load(run), Transformer)  # readers are not affected
        (folder / (f".{name}.lock" if name else ".lock")).unlink()
    assert {p.name for p in run.iterdir()} == {
        *(p.name for p in trained.iterdir()),
        ".checkpoint-00000099.safetensors.1",
    }


def test_a_finished_run_reports_that_nothing_is_left(trained, data, monkeypatch, capfd):
    options = ["--data", data, "--out", trained, *SMALL, "--epochs", 3]
    code, out, err = polyhead(monkeypatch, capfd, "train", "translation", *options)
    assert code == 0, err
    assert "nothing to do: 3 epochs done" in out


def test_the_command_shows_its_version_and_help(monkeypatch, capfd):
    code, out, _ = polyhead(monkeypatch, capfd, "--version")
    assert code == 0 and out == f"{version('polyhead')}\n"
    _, out, err = polyhead(monkeypatch, capfd)
    assert "Usage: polyhead" in out + err and "evaluate" in out + err


def test_unwritable_output_prints_no_traceback(monkeypatch, capfd):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = polyhead(monkeypatch, capfd, "--version")
    assert (code, err) == (1, "error: [Errno 28] No space left on device: 'standard output'\n")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        code, _, err = polyhead(monkeypatch, capfd, "--version")
    assert (code, err) == (0, "")


WITHOUT_XLA = """
from polyhead.training import replicas
replicas.XLA = False
from polyhead.recipes.command import main
main()
"""


def start(data, run, *options, xla=False):
    program = ["-m", "polyhead.recipes"] if xla else ["-c", WITHOUT_XLA]
    train = ["train", "translation", "--data", data, "--out", run, *SMALL]
    return subprocess.Popen(
        [sys.executable, *program, *map(str, (*train, *options))],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Background jobs of a shell ignore Ctrl-C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.stdout.read()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills, xla",
    [
        (["while a checkpoint is written", "Ctrl-C"], False),
        pytest.param(["a few steps on", "at random", "Ctrl-C"], True, marks=pytest.mark.long),
    ],
)
def test_killed_and_resumed_runs_equal_the_uninterrupted_run(data, tmp_path, kills, xla):
    options = "--epochs 6 --interval 1 --ema 0.9 --accumulate 2".split()
    whole = start(data, tmp_path / "whole", *options, xla=xla)
    assert whole.wait() == 0, whole.stdout.read()
    parts = tmp_path / "parts"
    seed = time.time_ns() % 1000
    print("seed of the moments:", seed)
    moments = random.Random(seed)

    def updates():
        return max((int(p.stem[11:]) for p in parts.glob("checkpoint-*")), default=0)

    for kill in kills:
        before = updates()
        process = start(data, parts, *options, xla=xla)
        wait_for(lambda before=before: updates() > before, process)
        if kill == "while a checkpoint is written":
            wait_for(lambda: list(parts.glob(".checkpoint-*")), process)
        else:
            time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGINT if kill == "Ctrl-C" else signal.SIGKILL)
        output = process.communicate()[0]
        assert process.returncode == (130 if kill == "Ctrl-C" else -9), output
    assert "resuming after update" in output and "run the same command to resume" in output
    last = start(data, parts, *options, xla=xla)
    assert last.wait() == 0, last.stdout.read()
    ends = [max((tmp_path / r).glob("checkpoint-*")) for r in ("whole", "parts")]
    assert ends[0].name == ends[1].name
    (a, one), (b, other) = map(read_tensors, ends)
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in about["history"]]
        for about in (one, other)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.slow
def test_two_devices_train_too(data, tmp_path):
    process = start(data, tmp_path / "run", "--devices", 2, "--steps", 2)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "2 logical CPU devices" in output
