"""The options of the `polyhead` command. Each is declared once, beside the code that reads it.

Options of `train` are fields of the recipe's ``Settings``. Options of another verb are arguments of
the recipe's function, annotated with `typer.Option`; those that several verbs pass to a model are
fields of a TypedDict, the type of their ``**options``.
"""

import contextlib
import copy
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from typer import Argument, Context, Exit, Option

# Arguments of several recipes.
RunFolder = Annotated[Path, Argument(metavar="RUN", help="Folder of a run.")]
ModelFolder = Annotated[Path, Argument(metavar="RUN", help="Folder of a run or of a saved model.")]
ExportFolder = Annotated[
    Path,
    Argument(
        metavar="EXPORT", help="Base folder of the model's versions; or a file, see --format."
    ),
]
Texts = Annotated[
    list[str] | None,
    Argument(metavar="TEXT ...", help="Texts. Default: the lines of standard input."),
]
Data = Annotated[
    str | None,
    Option(
        metavar="DIR|FILE",
        help="Folder, or file, which is read as a whole. Default: the run's.",
    ),
]
Split = Annotated[
    str | None,
    Option(help="train, val or test. Default: test for folders of parallel text, else val."),
]
Last = Annotated[
    int | None,
    Option(help="Number of checkpoints to average. Default: all that train's --keep left."),
]
Format = Annotated[
    Literal["tf_saved_model", "onnx", "litert", "openvino"],
    Option(help="A SavedModel, or a file with only the network: tokens or pixels in, logits out."),
]
MaxPixels = Annotated[
    int | None,
    Option(help="Refuse encoded images with more pixels. Default: 60 million."),
]
MaxNewTokens = Annotated[
    int,
    Option(
        help="Maximum number of new tokens. Default: the model's own; in the export of a GPT, at "
        "most half of the context."
    ),
]


class Search(TypedDict, total=False):
    """Settings of beam search. The keys are the model's arguments."""

    num_beams: Annotated[
        int,
        Option(
            help="Beam width; 1 is greedy. Default: the model's own; in an export that translates "
            "or summarizes, 4 if that is 1."
        ),
    ]
    length_penalty: Annotated[
        float, Option(help="Length penalty a of beam search: score / tokens^a.")
    ]


class Lengths(Search, total=False):
    """Settings of beam search, and limits of what it finds."""

    max_new_tokens: MaxNewTokens
    min_new_tokens: Annotated[
        int, Option(help="Minimum number of new tokens. Default: the model's own.")
    ]
    no_repeat_ngram_size: Annotated[
        int, Option(help="No n-gram of this size occurs twice; 0: no rule. Default: the model's.")
    ]


def arguments(function):
    """Yields the arguments of a function that are annotated for the command, ``**`` included."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints.get(name)
        if typing.get_origin(kind) is typing.Unpack:
            [options] = typing.get_args(kind)
            for key, kind in typing.get_type_hints(options, include_extras=True).items():
                yield argument(key, kind, None)
        elif typing.get_origin(kind) is Annotated:
            yield argument(name, kind, parameter.default)


def argument(name, kind, default=inspect.Parameter.empty):
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)


def merge(found):
    """Merges the options of several kinds of data, ``{kind: [parameter, ...]}``, to one list.

    Options of one kind are listed under its name; see `join` for the others.
    """
    kinds = {}
    for kind, parameters in found.items():
        for parameter in parameters:
            kinds.setdefault(parameter.name, {})[kind] = parameter
    for options in kinds.values():
        option = join(options)
        if len(options) < len(found):
            option = move_to_panel(option, " and ".join(options).capitalize())
        yield option


def describe(parameter):
    return parameter.annotation.__metadata__[0].help, parameter.default


def join(options):
    """One option for several kinds of data or tasks, ``{kind: parameter}``.

    Where their help or defaults differ, the help has them all; if the defaults do, the option has
    none.
    """
    first, groups = next(iter(options.values())), {}
    for kind, parameter in options.items():
        groups.setdefault(describe(parameter), []).append(kind)
    if len(groups) == 1:
        return first
    same, texts = len({default for _, default in groups}) == 1, []
    metavars = [option.annotation.__metadata__[0].metavar for option in options.values()]
    for (help, default), kinds in groups.items():
        shown = "" if same or default is None or default is False else f" (default {default})"
        texts.append((help, f"{join_words(kinds)}{shown}"))
    if len({help for help, _ in texts}) == 1:
        help = f"{texts[0][0]} For {'; '.join(kind for _, kind in texts)}."
    else:
        help = " ".join(f"For {kind}: {help}" for help, kind in texts)
    info = copy.copy(first.annotation.__metadata__[0])
    info.help = help
    if None not in metavars:
        info.metavar = "|".join(dict.fromkeys("|".join(metavars).split("|")))
    kind = first.annotation.__origin__
    if same:
        return first.replace(annotation=Annotated[kind, info])
    return first.replace(annotation=Annotated[kind | None, info], default=None)


def title(task):
    """A task's name in messages."""
    return task.replace("_", " ")


def join_words(words, last="and"):
    """Joins ``["a", "b", "c"]`` to "a, b and c"."""
    *first, word = words
    return f"{', '.join(first)} {last} {word}" if first else word


def add_command(app, name, parameters, run, doc):
    """Adds a command to a Typer application.

    Args:
        parameters: arguments, annotated for Typer.
        run: a function of the dictionary of options that the user gave.
        doc: a docstring; its sections for Python are left out.
    """

    def command(cli, **values):
        source = cli.get_parameter_source
        run({name: x for name, x in values.items() if source(name).name == "COMMANDLINE"})

    parameters = [argument("cli", Context), *parameters]
    command.__signature__ = inspect.Signature(parameters)
    doc = re.split(r"\n\n(?:Args|Returns|Raises):", inspect.cleandoc(doc))[0]
    command.__doc__ = re.sub(r"(?<!\n)\n(?!\n)", " ", doc)  # a paragraph is one line
    app.command(name)(command)


@contextlib.contextmanager
def resumable(start, command="the same command"):
    """Makes Ctrl-C within a block print how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; run {command} to resume from {start}", file=sys.stderr)
        raise Exit(130) from None


def add_verb(app, name, functions, task_of, doc, **override):
    """Adds a command whose argument is a run, for several tasks.

    It has the options of all functions, and calls the function of the run's task. Options of only
    some tasks are listed under a heading that names these, and are an error for other runs.

    Args:
        functions: ``{task: function}``; each takes ``run``.
        task_of: a function of a run and the tasks of ``functions`` that returns the run's task.
        override: types of arguments that the tasks describe differently.
    """
    tasks = {}
    for task, function in functions.items():
        for parameter in arguments(function):
            tasks.setdefault(parameter.name, {})[task] = parameter
    found = {
        name: join({title(task): parameter for task, parameter in options.items()})
        for name, options in tasks.items()
    }
    for option, kind in override.items():
        found[option] = found[option].replace(annotation=kind)
    common = [p for p in found.values() if len(tasks[p.name]) == len(functions)]
    others = [p for p in found.values() if len(tasks[p.name]) < len(functions)]
    others = [move_to_panel(p, join_words(map(title, tasks[p.name])).capitalize()) for p in others]

    def run(given):
        task = task_of(given["run"], functions)
        if task not in functions:
            wanted = join_words(map(title, functions), "or")
            raise ValueError(f"{given['run']} is for {title(task)}, not for {wanted}")
        for option in given:
            if task not in tasks[option]:
                wanted = join_words(map(title, tasks[option]))
                raise ValueError(f"{format_flag(found[option])}: for {wanted} only")
        functions[task](**given)

    add_command(app, name, common + others, run, doc)


def move_to_panel(parameter, title):
    """Lists the argument under a separate heading in --help."""
    kind = parameter.annotation
    info = copy.copy(kind.__metadata__[0])
    info.rich_help_panel = title
    return parameter.replace(annotation=Annotated[kind.__origin__, info])


def format_flag(parameter):
    """The name of an option on the command line."""
    name = parameter.annotation.__metadata__[0].default
    return name if isinstance(name, str) else f"--{parameter.name.replace('_', '-')}"
