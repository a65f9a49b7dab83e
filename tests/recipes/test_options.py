"""Options are declared once, and each command has those of its task."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import typer

from polyhead.recipes import command, generation
from polyhead.recipes.settings import read_settings
from tests.recipes.test_command import polyhead

# Names that users have in scripts: they must not change.
TRAINING = (
    "out data preset pretrained dropout peak warmup schedule clip accumulate ema optimizer "
    "precision seed epochs steps minutes patience interval keep devices remat restart config "
)
SAMPLING = "max-new-tokens temperature top-k top-p min-p repetition-penalty "
LENGTHS = "num-beams length-penalty max-new-tokens min-new-tokens no-repeat-ngram-size "
ENCODER = "vocab-size max-length batch-size buckets weight-decay layer-decay lora freeze "
OPTIONS = {
    "train translation": TRAINING + "source target variant vocab-size norm max-length tokens "
    "buckets bpe-dropout label-smoothing consistency bleu",
    "train generation": TRAINING + "vocab-size length batch-size weight-decay lora freeze",
    "train classification": TRAINING
    + ENCODER
    + "image-size augment mix broken stochastic-depth label-smoothing metric",
    "train tagging": TRAINING + ENCODER + "metric",
    "train answering": TRAINING + ENCODER + "overlap longest",
    "train embedding": TRAINING + ENCODER + "max-score scale",
    "train masked": TRAINING + ENCODER + "rate whole-words",
    "train summarization": TRAINING + "vocab-size prefix max-length max-target-length tokens "
    "buckets weight-decay label-smoothing lora sentences metric",
    "train denoising": TRAINING + "vocab-size length batch-size rate mean-span weight-decay lora",
    "train folding": TRAINING + "crop batch-size buckets mask-rate weight-decay metric",
    "evaluate": LENGTHS
    + "data variant source target split show confusion broken references passes",
    "average": LENGTHS + "last",
    "diversify": "out data num-beams length-penalty batch-size",
    "predict": SAMPLING + LENGTHS + "num-return-sequences attention stop seed top explain "
    "max-pixels context save out passes",
    "translate": "num-beams length-penalty num-return-sequences attention",
    "generate": SAMPLING + LENGTHS + "num-return-sequences stop seed",
    "summarize": LENGTHS,
    "classify": "top explain max-pixels",
    "tag": "",
    "answer": "context top",
    "embed": "save",
    "fill-mask": "top",
    "fold": "out passes",
    "export": SAMPLING + LENGTHS + "top format max-pixels passes",
    "models": "",
    "download": "",
}


def commands(group, name=""):
    """The commands by name, including those of subgroups."""
    for child, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from commands(found, f"{name}{child} ")
        else:
            yield f"{name}{child}", found


COMMANDS = dict(commands(typer.main.get_command(command.app)))


def options(found):
    return {x.name: x for x in found.params if x.opts[0].startswith("--") and x.name != "help"}


def test_each_command_has_the_options_of_its_task_and_no_others():
    found = {
        name: {x.opts[0][2:] for x in options(found).values()} for name, found in COMMANDS.items()
    }
    assert found == {name: set(names.split()) for name, names in OPTIONS.items()}
    assert all(x.help for found in COMMANDS.values() for x in options(found).values())


@pytest.mark.parametrize("task", command.RECIPES)
def test_the_options_of_training_are_the_settings_of_the_recipe(task):
    settings = command.RECIPES[task].Settings
    name = "classification" if task == "text_classification" else task
    found, both = options(COMMANDS[f"train {name}"]), name == "classification"
    names = {*found} - {"out", "config", "restart"}
    assert names >= {*dataclasses.asdict(settings())} and (both or len(names) == len(found) - 3)
    for name, value in dataclasses.asdict(settings()).items():
        shown = f"(default {value})" in found[name].help
        assert found[name].default == value or value is False or both and shown, name
    assert f"at most {settings.longest_warmup}." in found["warmup"].help


def test_help_that_differs_between_tasks_is_that_of_all():
    help = {name: options(COMMANDS[name]) for name in ("predict", "classify", "evaluate")}
    assert help["predict"]["top"].default is None
    assert help["predict"]["top"].help == (
        "For classification and text classification (default 1): Number of classes per input. For "
        "answering (default 1): Number of answers per question. For masked (default 5): Number of "
        "tokens per mask."
    )
    assert help["classify"]["top"].default == 1
    assert "--max-target-length" in help["evaluate"]["max_new_tokens"].help
    [run] = [x for x in COMMANDS["evaluate"].params if x.name == "run"]
    assert run.required and run.help == "Folder of a run or of a saved model."


@pytest.fixture
def trained(monkeypatch):
    """Records what `polyhead train generation` would train."""
    calls = []
    monkeypatch.setattr(generation, "train", lambda *arguments: calls.append(arguments))
    return calls


def test_the_settings_of_a_run_are_a_config_that_options_override(
    trained, monkeypatch, capfd, tmp_path
):
    settings = generation.Settings(
        epochs=3, patience=None, peak=1, freeze="block_0", schedule="sqrt", remat=True
    )
    (file := tmp_path / "settings.json").write_text(
        json.dumps({"task": "generation", **dataclasses.asdict(settings)})
    )
    assert read_settings(tmp_path) == settings
    ask = ("train", "generation", "--out", tmp_path / "new", "--config", file)
    # An option with the default value overrides too.
    assert polyhead(monkeypatch, capfd, *ask, "--epochs", 10, "--steps", 5)[0] == 0
    assert polyhead(monkeypatch, capfd, *ask, "--restart")[0] == 0
    changed = dataclasses.replace(settings, epochs=10, updates=5)
    assert trained == [(changed, tmp_path / "new", False), (settings, tmp_path / "new", True)]
    for content, message in (
        ({"task": "translation"}, "has settings of translation, not of generation"),
        ({"task": "generation", "epoch": 3}, "unexpected keyword argument 'epoch'"),
        ({"task": "generation", "epochs": "3"}, "epochs must be int: '3'"),
        ({"task": "generation", "epochs": True}, "epochs must be int: True"),
        ({"task": "generation", "ema": "high"}, "ema must be float | None: 'high'"),
        (
            {"task": "generation", "schedule": "step"},
            "schedule must be sqrt or cosine or linear: 'step'",
        ),
        ([], "does not hold the settings of a run"),
    ):
        file.write_text(json.dumps(content))
        status, _, err = polyhead(monkeypatch, capfd, *ask)
        assert status == 1 and message in err and len(err.splitlines()) == 1, err
    file.unlink()
    status, _, err = polyhead(monkeypatch, capfd, *ask)
    assert status == 1 and "No such file" in err and len(trained) == 2


def test_an_option_or_a_verb_of_another_task_is_refused(monkeypatch, capfd, tmp_path):
    (tmp_path / "config.json").write_text('{"model": "GPT"}')
    either = "not for classification or text classification"
    for arguments, message in (
        (("predict", tmp_path, "a", "--attention", "a.png"), "--attention: for translation only"),
        (("predict", tmp_path, "a", "--context", "b"), "--context: for answering only"),
        (("export", tmp_path, "b", "--max-pixels", 9), "--max-pixels: for classification only"),
        (("translate", tmp_path, "a"), f"{tmp_path} is for generation, not for translation"),
        (("classify", tmp_path, "a"), f"{tmp_path} is for generation, {either}"),
    ):
        status, _, err = polyhead(monkeypatch, capfd, *arguments)
        assert (status, err) == (1, f"error: {message}\n")
    (tmp_path / "config.json").write_text('{"model": "T5"}')  # has two tasks
    for arguments in (("generate", tmp_path, "a"), ("summarize", tmp_path, "a")):
        status, _, err = polyhead(monkeypatch, capfd, *arguments)
        assert status == 1 and "is for" not in err
    (tmp_path / "config.json").write_text('{"model": "ViT"}')
    searching = "translation, generation, summarization and denoising"
    status, _, err = polyhead(monkeypatch, capfd, "predict", tmp_path, "a", "--num-beams", 2)
    assert (status, err) == (1, f"error: --num-beams: for {searching} only\n")


def test_export_passes_the_format_and_the_options_of_the_task(monkeypatch, capfd, tmp_path):
    class Model:
        def export(self, *arguments, **options):
            return arguments, options

    for name, recipe, given, options in (
        ("Transformer", "translation", ["--num-beams", 3], dict(num_beams=3)),
        (
            "GPT",
            "generation",
            ["--top-p", 0.5, "--length-penalty", 1],
            dict(length_penalty=1.0, top_p=0.5),
        ),
        ("ViT", "classification", ["--max-pixels", 9], dict(top=None, max_pixels=9)),
    ):
        monkeypatch.setattr(command.RECIPES[recipe], "load", lambda run: Model())
        (tmp_path / "config.json").write_text(json.dumps({"model": name}))
        for format in ("tf_saved_model", "onnx"):
            ask = ("export", tmp_path, "EXPORT", *given)
            ask += () if format == "tf_saved_model" else ("--format", format)
            _, out, err = polyhead(monkeypatch, capfd, *ask)
            assert out == f"{((Path('EXPORT'),), dict(format=format, **options))}\n", err


def test_options_of_some_tasks_are_listed_under_their_names(monkeypatch, capfd):
    _, out, _ = polyhead(monkeypatch, capfd, "predict", "--help")
    panels = re.findall(r"╭─ (.*?) ─+╮", out)
    assert panels[:5] == ["Arguments", "Options", "Translation and generation", *panels[3:5]]
    assert {"Translation", "Generation", "Classification", "Answering", "Embedding"} <= {*panels}


def test_models_are_listed_with_their_parameters(monkeypatch, capfd):
    status, out, _ = polyhead(monkeypatch, capfd, "models")
    assert "AlphaFold for Python only; loads polyhead, .npz" in out
    assert status == 0
    for line in (
        "Transformer for translation; loads polyhead, marian",
        "GPT for generation; loads polyhead, gpt2",
        "T5 for summarization and denoising; loads polyhead, t5",
        "ESM for masked, text classification and tagging; loads polyhead, esm",
        "ESMFold for folding; loads polyhead, esmfold",
        "ViT for classification; loads polyhead, vit, timm",
        "BERT for text classification, tagging, answering, embedding and masked; "
        "loads polyhead, bert, distilbert, roberta",
        "    base                63,082,496 parameters",
        "    gpt2               124,439,808 parameters",
        "    b-16                86,567,656 parameters",
    ):
        assert line in out.splitlines(), out
