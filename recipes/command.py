"""The `polyhead` command, built from the recipes. Heavy imports are deferred for a fast --help."""

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from .diversify import diversify
from .options import add_command, add_verb, arguments, join_words, resumable, title
from .run import task_of, task_of_run
from .settings import VERBS, add_train

RECIPES = {task: importlib.import_module(f".{task}", __package__) for task in VERBS}

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


TRAIN_CLASSIFICATION = """Train a model to classify images or texts, or fine-tune a published one.

A folder of images or TFRecords trains a ViT, a CSV or TSV file or a folder of such files a text
encoder. Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
The best model by validation is RUN/best; curves are in RUN/curve.png, RUN/history.csv and, for
TensorBoard, RUN/logs.

Example: polyhead train classification --data photos --pretrained google/vit-base-patch16-224
--out runs/photos

Example: polyhead train classification --data reviews.csv --pretrained MINILM --out runs/reviews
"""


def run_diversify(given):
    with resumable("the last translations"):
        diversify(**given)


trained = {task: {"data": recipe} for task, recipe in RECIPES.items()}
texts = trained.pop("text_classification")["data"]
trained["classification"] = {"images": RECIPES["classification"], "texts": texts}
for name, recipes in trained.items():
    doc = TRAIN_CLASSIFICATION if len(recipes) > 1 else recipes["data"].train.__doc__
    add_train(train_app, name, recipes, doc)
add_verb(
    app,
    "evaluate",
    {task: recipe.evaluate for task, recipe in RECIPES.items()},
    task_of_run,
    """Score a run's best model on a split of its data.

    Translations by sacrebleu's BLEU; text by cross-entropy per token, perplexity and bits per byte;
    images by top-1 and top-5 accuracy; classes of texts by accuracy, macro F1 and Matthews
    correlation; tags by F1 of entities; answers by SQuAD's exact match and F1; embeddings by
    Spearman and Pearson correlation; masked tokens and hidden spans by loss and accuracy;
    summaries by ROUGE; structures by lDDT, RMSD, TM-score and GDT.
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
    """Write a SavedModel for TensorFlow Serving: text or images in; text, labels, vectors out.

    It is EXPORT/1, or the next free number; the server's configuration is in EXPORT. With another
    --format, EXPORT is a file: model.onnx, model.tflite (LiteRT) or model.xml (OpenVINO).
    """,
)


def list_inputs(metavar, help):
    return Annotated[list[str] | None, typer.Argument(metavar=metavar, help=help)]


CLASSIFY = """Classify images or texts: prints a line per class, with the input and the probability.

The two texts of a pair are separated by a tab. Texts may be the lines of standard input.
"""
GENERATE = """Continue text with a GPT; or predict the hidden spans of texts with a T5 or a BART.

A GPT continues each prompt, or standard input; the text is printed as it is generated. In texts for
a T5 or a BART, <extra_id_0>, <extra_id_1> and so on stand for hidden spans. These are printed, in a
line per text; texts may be the lines of standard input.
Default of the settings of search and sampling: the model's own.
"""
# Verbs of several tasks that differ: the docstring, and the inputs.
SHARED = {
    "classify": (CLASSIFY, list_inputs("IMAGE|TEXT ...", "Image files or texts.")),
    "generate": (GENERATE, list_inputs("TEXT ...", "Prompts or texts. Default: standard input.")),
}
verbs = {task: getattr(recipe, VERBS[task]) for task, recipe in RECIPES.items()}
add_verb(
    app,
    "predict",
    verbs,
    task_of,
    "Apply the verb of the run's task: translate, generate, classify ...",
    inputs=list_inputs("TEXT|IMAGE ...", "Sentences, prompts or image files."),
)
for name in dict.fromkeys(VERBS[task] for task in RECIPES):
    same = {task: verb for task, verb in verbs.items() if VERBS[task] == name}
    if name in SHARED:
        doc, inputs = SHARED[name]
        add_verb(app, name, same, task_of, doc, inputs=inputs)
    else:
        [verb] = same.values()
        add_verb(app, name.replace("_", "-"), same, task_of, verb.__doc__)
add_command(app, "diversify", arguments(diversify), run_diversify, diversify.__doc__)


def model_tasks(model):
    """The tasks of a class of models. (`classify` and `embed` are methods of other classes too.)"""
    if hasattr(model, "TASKS"):
        return model.TASKS
    text = hasattr(model, "fill_mask")
    recipes = {task: hasattr(recipe.Settings, "layer_decay") for task, recipe in RECIPES.items()}
    return [task for task in RECIPES if recipes[task] == text and hasattr(model, VERBS[task])]


@app.command()
def models():
    """List the models, the formats that they load, and the presets with their parameter counts."""
    zoo = importlib.import_module("..zoo", __package__)
    found = [getattr(zoo, name) for name in zoo.__all__]
    found = [model for model in found if hasattr(model, "PRESETS")]
    width = max(len(name) for model in found for name in model.PRESETS)
    for model in found:
        tasks = join_words([title(task) for task in model_tasks(model)] or ["Python only"])
        print(f"{model.__name__} for {tasks}; loads {', '.join(('polyhead', *model.FAMILIES))}")
        for name, config in model.PRESETS.items():
            count = model.count_parameters(config)
            print(f"    {name:<{width}} {count:>14,} parameters")


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
