"""The settings of a training run, their command-line options, and their file."""

import dataclasses
import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from typer import Option

from .options import add_command, argument, format_flag, merge, resumable, title

SAMPLE = "sample"
SAMPLE_TEXT = "sample-text"  # of classification, whose sample are images
# The tasks, and the method of a model for each.
VERBS = {
    "translation": "translate",
    "generation": "generate",
    "classification": "classify",
    "text_classification": "classify",
    "tagging": "tag",
    "answering": "answer",
    "embedding": "embed",
    "masked": "fill_mask",
    "summarization": "summarize",
    "denoising": "generate",
    "folding": "fold",
}

Schedule = Literal["sqrt", "cosine", "linear"]
Optimizer = Literal["adam", "muon"]


def sample_folder(name: str) -> Any:
    """A folder of the sample data in polyhead."""
    return importlib.resources.files("polyhead.data") / "samples" / name


def choose_split(
    split: str | None, data: Any = None, default: str = "val"
) -> tuple[str | None, str]:
    """The split to read, None for all of a file, and its name.

    If ``split`` is None: all of ``data``, if this is a file other than the run's; else ``default``.
    """
    if split is None and data not in (None, SAMPLE, SAMPLE_TEXT) and Path(data).is_file():
        return None, Path(data).name
    return split or default, split or default


def option(default, help, *flags, limit=False, adapts=False, **cli) -> Any:
    """Declares a field of a run's settings that is also an option of the command.

    Args:
        help: may refer to class variables of the settings: ``{settings.task}``.
        flags: the option's name, if it differs from the field's.
        limit: the setting may change when a run is resumed.
        adapts: None is replaced by a value that depends on the data; a resumed run keeps it.
        cli: arguments of `typer.Option`.
    """
    metadata = {"help": help, "flags": flags, "limit": limit, "adapts": adapts, "cli": cli}
    return dataclasses.field(default=default, metadata=metadata)


def plain_text(others: str = "") -> Any:
    """Declares the option ``data`` of a recipe that reads plain text; ``others`` it reads too."""
    return option(
        SAMPLE,
        "A text file (its last tenth is for validation); a folder with train.txt and val.txt, or "
        f"with documents *.txt; {others}or 'sample', text included in polyhead.",
        metavar="FILE|DIR|sample",
    )


@dataclass(frozen=True)
class RunSettings:
    """The settings of every training run, named like the command's options.

    A recipe's settings extend them; it may give a field a new default without repeating the option.
    """

    task: ClassVar[str]
    longest_warmup: ClassVar[int]

    data: str = option(SAMPLE, "Training data.")
    pretrained: str | None = option(
        None,
        "Fine-tune this model or run, with its tokenizer, instead of training a preset.",
        metavar="DIR|NAME",
    )
    dropout: float | None = option(None, "Dropout rate. Default: the preset's.")
    peak: float | None = option(None, "Peak learning rate.")
    warmup: int | None = option(
        None,
        "Warm-up updates of the learning rate. Default: a tenth of all updates, at most "
        "{settings.longest_warmup}.",
        adapts=True,
    )
    schedule: Schedule = option(
        "sqrt",
        "Decay of the learning rate: 1 / sqrt(update), or a cosine or a line that ends after "
        "--epochs or --steps (a stop by --minutes or --patience cuts it short).",
    )
    clip: float = option(1.0, "Maximum global norm of the gradient.")
    accumulate: int = option(1, "Gradient accumulation: number of batches per update.")
    ema: float | None = option(
        None, "Momentum of EMA weights, e.g. 0.999; EMA weights are evaluated and saved as best."
    )
    optimizer: Optimizer = option(
        "adam",
        "muon: orthogonalizes the updates of matrices; often needs fewer steps from scratch, but "
        "each takes slightly longer.",
    )
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = option(
        "float32", "Keras's dtype policy."
    )
    seed: int = option(0, "Random seed (weights, dropout, data order).")
    epochs: int = option(100, "Stop after this many passes over the data.", limit=True)
    updates: int | None = option(None, "Stop after this many batches.", "--steps", limit=True)
    minutes: float | None = option(None, "Stop after this many minutes of training.", limit=True)
    patience: int | None = option(
        10, "Stop after this many checkpoints without improvement.", limit=True
    )
    interval: int | None = option(None, "Checkpoint interval in batches. Default: one epoch.")
    keep: int = option(2, "Number of latest checkpoints to keep.", limit=True)
    devices: int | None = option(
        None,
        "Number of GPUs or, without GPUs, of logical CPU devices. Default: all GPUs.",
        limit=True,
    )
    remat: bool = option(
        False,
        "Recompute activations in the backward pass: less memory, more time.",
        limit=True,
    )

    def __init_subclass__(cls):
        for inherited in dataclasses.fields(cls):  # those of its base
            new = vars(cls).get(inherited.name, inherited)
            if not isinstance(new, dataclasses.Field):  # a new default of the same option
                new = dataclasses.field(default=new, metadata=inherited.metadata)
                setattr(cls, inherited.name, new)


def options(settings):
    """Yields the options of a settings class as arguments of a command, those of its task first."""
    shared = {field.name for field in dataclasses.fields(RunSettings)} - {"data", "pretrained"}
    for field in sorted(dataclasses.fields(settings), key=lambda field: field.name in shared):
        about = field.metadata
        flags = about["flags"]
        if field.type is bool:  # it can only be switched on
            flags = (f"--{field.name.replace('_', '-')}",)
        info = Option(*flags, help=about["help"].format(settings=settings), **about["cli"])
        info.rich_help_panel = "Training" if field.name in shared else None
        yield argument(field.name, Annotated[field.type, info], field.default)


def add_train(app, name, recipes, doc):
    """Adds the command NAME to `polyhead train`; its options are the fields of the settings.

    Args:
        recipes: ``{kind of data: recipe}``; with several kinds, `choose` finds that of the data.
        doc: the command's docstring.
    """
    config = Option(metavar="FILE", help="A run's settings.json; options override it.")
    restart = Option("--restart", help="Delete the existing run and start over.")
    out = Option(help="Run folder; an existing run is resumed.")
    found = {kind: list(options(recipe.Settings)) for kind, recipe in recipes.items()}

    def run(given):
        out, restart = given.pop("out"), given.pop("restart", False)
        file = given.pop("config", None)
        settings = load_settings(file) if file else None
        data = given.get("data", settings.data if settings else "")
        kind = choose(recipes, data)
        if settings is None:
            settings = recipes[kind].Settings()
        elif settings.task != recipes[kind].Settings.task:
            task = recipes[kind].Settings.task
            raise ValueError(f"{file} has settings of {title(settings.task)}, not of {title(task)}")
        for kinds in found:
            for option in found[kinds]:
                if option.name in given and not hasattr(settings, option.name):
                    raise ValueError(f"{format_flag(option)}: for {kinds} only, not for {kind}")
        command = "the same command" + (" without --restart" if restart else "")
        with resumable("the last checkpoint", command):
            recipes[kind].train(dataclasses.replace(settings, **given), out, restart)

    parameters = [
        argument("out", Annotated[Path, out]),
        *merge(found),
        argument("config", Annotated[Path | None, config], None),
        argument("restart", Annotated[bool, restart], False),
    ]
    add_command(app, name, parameters, run, doc)


def choose(recipes, data):
    """The kind of data of the recipe that reads ``data``; the first kind if none does."""
    kinds = [kind for kind in recipes if getattr(recipes[kind], "reads", lambda _: False)(data)]
    return (kinds or list(recipes))[0]


def read_settings(run):
    """Reads the settings of a run, an instance of its task's class.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: its ``settings.json`` is invalid.
    """
    run = Path(run).resolve()
    if run.name in ("best", "average") and not (run / "settings.json").is_file():
        run = run.parent
    if not (run / "settings.json").exists():
        raise FileNotFoundError(f"{run} is not a run: it has no settings.json")
    return load_settings(run / "settings.json")


def settings_of(run, settings=None, data=""):
    """The settings of a run. Of a model that is not of a run, if it has ``data``, the defaults of
    the class ``settings``, or None.
    """
    try:
        return read_settings(run)
    except FileNotFoundError:
        if data is None:
            raise ValueError(f"{run} is not a run, which has data: pass --data") from None
        return settings and settings()


def load_settings(file):
    """Reads the settings in a run's ``settings.json``. Raises a ValueError if it is invalid."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is not a regular file")
    try:
        content = json.loads(file.read_text("utf-8-sig"))
        task = content.pop("task", "translation")
        if task not in VERBS:
            raise ValueError(f"unknown task {task!r}")
        settings = importlib.import_module(f".{task}", __package__).Settings(**content)
        for field in dataclasses.fields(settings):
            check_type(field.name, getattr(settings, field.name), field.type)
        return settings
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} does not hold the settings of a run: {error}") from None


def check_type(name, value, kind):
    """Checks a value from JSON against the type of its field."""
    kinds = get_args(kind) or (kind,)
    if get_origin(kind) is Literal:
        if value not in kinds:
            raise ValueError(f"{name} must be {' or '.join(map(str, kinds))}: {value!r}")
    elif type(value) not in (kinds + (int,) if float in kinds else kinds):
        raise ValueError(f"{name} must be {getattr(kind, '__name__', kind)}: {value!r}")
