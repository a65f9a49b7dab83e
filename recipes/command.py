"""The `polyhead` command, built from the recipes. Heavy imports are deferred for a fast --help."""

import contextlib
import dataclasses
import importlib
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import classification, generation, translation
from .diversify import diversify
from .options import add_command, add_verb, argument, arguments
from .run import task_of
from .settings import VERBS, load_settings, options, read_settings

RECIPES = {recipe.Settings.task: recipe for recipe in (translation, generation, classification)}

app = typer.Typer(
    help="Train, evaluate, use and export transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(
    help="Train a model in a run folder; the same command resumes it.", no_args_is_help=True
)
app.add_typer(train_app, name="train")


def print_version(wanted: bool):
    if wanted:
        from importlib.metadata import version

        print(version("polyhead"))
        raise typer.Exit


@app.callback()
def everywhere(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=print_version, is_eager=True),
    ] = False,
):
    pass  # `main` accepts --debug in any position


@contextlib.contextmanager
def resumable(start):
    """Makes Ctrl-C within a block print how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; run the same command to resume from {start}", file=sys.stderr)
        raise typer.Exit(130) from None


def add_train(task, recipe):
    """Adds `polyhead train TASK`: a run's options are the fields of the recipe's settings."""
    config = typer.Option(metavar="FILE", help="A run's settings.json; options override it.")
    restart = typer.Option("--restart", help="Delete the existing run and start over.")
    out = typer.Option(help="Run folder; an existing run is resumed.")

    def run(given):
        out, restart = given.pop("out"), given.pop("restart", False)
        settings = recipe.Settings()
        if file := given.pop("config", None):
            settings = load_settings(file)
            if settings.task != task:
                raise ValueError(f"{file} has settings of {settings.task}, not of {task}")
        with resumable("the last checkpoint"):
            recipe.train(dataclasses.replace(settings, **given), out, restart)

    parameters = [
        argument("out", Annotated[Path, out]),
        *options(recipe.Settings),
        argument("config", Annotated[Path | None, config], None),
        argument("restart", Annotated[bool, restart], False),
    ]
    add_command(train_app, task, parameters, run, recipe.train.__doc__)


def run_diversify(given):
    with resumable("the last translations"):
        diversify(**given)


def task_of_run(run):
    return read_settings(run).task


for task, recipe in RECIPES.items():
    add_train(task, recipe)
add_verb(
    app,
    "evaluate",
    {task: recipe.evaluate for task, recipe in RECIPES.items()},
    task_of_run,
    """Score a run's best model on a split of its data.

    Translations by sacrebleu's BLEU; text by cross-entropy per token, perplexity and bits per byte;
    images by top-1 and top-5 accuracy.
    """,
)
add_verb(
    app,
    "average",
    {task: recipe.average for task, recipe in RECIPES.items()},
    task_of_run,
    """Average a run's last checkpoints into the model RUN/average, and score it on validation.

    It averages the weights themselves, not the EMA weights of --ema, which are in RUN/best.
    evaluate, predict and export accept RUN/average like RUN.
    """,
)
add_verb(
    app,
    "export",
    {task: recipe.export for task, recipe in RECIPES.items()},
    task_of,
    """Write a SavedModel for TensorFlow Serving: text or images in, text or labels out.

    It is EXPORT/1, or the next free number; the server's configuration is in EXPORT. With another
    --format, EXPORT is a file: model.onnx, model.tflite (LiteRT) or model.xml (OpenVINO).
    """,
)
verbs = {task: getattr(RECIPES[task], verb) for task, verb in VERBS.items()}
add_verb(
    app,
    "predict",
    verbs,
    task_of,
    "Translate sentences, continue text or classify images, according to the run's task.",
    inputs=Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT|IMAGE ...", help="Sentences, prompts or image files."),
    ],
)
for task, verb in verbs.items():
    add_verb(app, VERBS[task], {task: verb}, task_of, verb.__doc__)
add_command(app, "diversify", arguments(diversify), run_diversify, diversify.__doc__)


@app.command()
def models():
    """List the models, the formats that they load, and the presets with their parameter counts."""
    zoo = importlib.import_module("..zoo", __package__)
    for model in (getattr(zoo, name) for name in zoo.__all__):
        if not hasattr(model, "PRESETS"):
            continue
        tasks = " and ".join(task for task, verb in VERBS.items() if hasattr(model, verb))
        print(f"{model.__name__} for {tasks}; loads {', '.join(('polyhead', *model.FAMILIES))}")
        for name, config in model.PRESETS.items():
            count = model.count_parameters(config)
            print(f"    {name:<12} {count:>13,} parameters")


@app.command()
def download(
    name: Annotated[Literal["multi30k"], typer.Argument(help="English-German image captions.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files.")],
):
    """Download a data set for `train --data DIR` and verify its checksums."""
    from ..data.download import download_multi30k

    download_multi30k(folder)


def main():
    """Runs the command. An error is one line on standard error, and exit status 1."""
    if debug := "--debug" in sys.argv:
        sys.argv.remove("--debug")
    try:
        try:
            app(prog_name="polyhead")
        finally:
            flush()
    except Exception as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(1)


def flush():
    """Flushes standard output. A pipe that its reader (such as head) has closed is not an error."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # Python flushes again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "standard output") from None
