"""Data diversification (Nguyen et al. 2020): augment parallel text with translations.

Train a model for each direction, add their translations of the training data, and train on both:

    polyhead train translation --source en --target de --data DIR --out EN-DE
    polyhead train translation --source de --target en --data DIR --out DE-EN
    polyhead diversify EN-DE DE-EN --num-beams 5 --out MORE
    polyhead train translation --source en --target de --data MORE --out BETTER
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Unpack

from typer import Argument, Option

from .options import Search
from .run import load, model_folder, show_progress
from .settings import read_settings
from .translation import Settings, read

MADE = "made"  # subfolder of the translations
CHUNK = 4096  # sentences per saved file of translations


def diversify(
    runs: Annotated[
        list[Path], Argument(metavar="RUN ...", help="Translation runs, in either direction.")
    ],
    out: Annotated[Path, Option(help="Folder for the new data; an interrupted call is resumed.")],
    data: Annotated[
        str | None, Option(metavar="DIR", help="Data to augment. Default: the first run's.")
    ] = None,
    batch_size: Annotated[int, Option(help="Sentences per batch.")] = 64,
    say=print,
    **search: Unpack[Search],
):
    """Augment training data with translations by trained models (Nguyen et al. 2020).

    A forward run adds each source with its translation, a reverse run adds each target with its
    back-translation. The direction of the first run is forward. Then train on the new data with
    the first run's options. Validation and test data stay the same.

    Example: polyhead diversify RUN REVERSE --num-beams 5 --out MORE

    Args:
        runs: folders of translation runs with the same variant of files (arXiv 1911.01986,
            section 3). Duplicates and pairs with an empty side are left out.
        out: every few thousand translations are saved there: an interrupted call resumes, and a
            call with further runs translates with those only.
        search: settings of `Search`, e.g. ``num_beams=5``.

    Returns:
        the training pairs, a `ParallelText`.

    Raises:
        FileExistsError, NotADirectoryError: ``out`` holds something else.
        FileNotFoundError: a run or the data do not exist.
        FolderInUseError: another process writes to ``out``.
        ValueError: a run has other languages or another variant than the first; ``out`` is the
            data's folder.
    """
    from ..training import locked

    out, runs = Path(out), [Path(run).resolve() for run in runs]
    settings = [read_run(run) for run in runs]
    first = settings[0]
    for run, own in zip(runs, settings, strict=True):
        for name, theirs, ours in (
            ("languages", {own.source, own.target}, {first.source, first.target}),
            ("variant", own.variant, first.variant),
        ):
            if theirs != ours:
                raise ValueError(f"{name} of {run} must be those of {runs[0]}: {theirs}, {ours}")
    splits = {"train": read(first, "train", data), "val": read(first, "val", data)}
    with contextlib.suppress(FileNotFoundError):
        splits["test"] = read(first, "test", data)
    if out.resolve() == Path(data or first.data).resolve():
        raise ValueError(f"out must be another folder than the data's: {out}")
    with locked(out):
        pairs = extend(splits, runs, settings, out, batch_size, say, search)
    say(f"{len(pairs):,} pairs of sentences in {out}")
    return pairs


def extend(splits, runs, settings, out, batch_size, say, search):
    """Writes the ``splits`` to ``out``, with new pairs for training; returns the training pairs."""
    from ..data import ParallelText
    from ..training import bleu

    if {path.name for path in out.iterdir()} - {".lock"} and not (out / MADE).is_dir():
        raise FileExistsError(f"{out} holds something other than this data: choose another folder")
    (out / MADE).mkdir(exist_ok=True)

    first = settings[0]
    sources, targets = splits["train"].sources, splits["train"].targets
    pairs = [*zip(sources, targets, strict=True)]
    known = set(pairs)
    for run, own in zip(runs, settings, strict=True):
        forward = own.source == first.source
        texts, references = (sources, targets) if forward else (targets, sources)
        results = translate(run, texts, out / MADE, own.target, batch_size, search)
        score = bleu(results, references, own.bleu).score
        new = dict.fromkeys(zip(*((texts, results) if forward else (results, texts)), strict=True))
        new = [pair for pair in new if pair not in known and all(map(str.strip, pair))]
        known.update(new)
        pairs += new
        say(f"{run}: BLEU {score:.2f} on the training data, {len(new):,} new pairs")
    splits["train"] = ParallelText(*map(list, zip(*pairs, strict=True)))
    for split, texts in splits.items():
        stem = f"{split}.{first.variant}" if first.variant else split
        write_lines(out / f"{stem}.{first.source}", texts.sources)
        write_lines(out / f"{stem}.{first.target}", texts.targets)
    return splits["train"]


def read_run(run):
    """Reads the settings of a translation run that has a model."""
    settings = read_settings(run)
    if not isinstance(settings, Settings):
        raise ValueError(f"{run} is a run of {settings.task}, not of {Settings.task}")
    model_folder(run)  # raises an error without one
    return settings


def translate(run, texts, folder, language, batch_size, search):
    """Translates ``texts`` with a run's model; existing translations are read from ``folder``.

    A file's name is a hash of the model, the settings and the texts.
    """
    model = None
    files = [model_folder(run) / name for name in ("config.json", "model.safetensors")]
    weights = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    results = []
    for start in show_progress(f"translating into {language}")(range(0, len(texts), CHUNK)):
        chunk = texts[start : start + CHUNK]
        key = json.dumps([weights, search, chunk], sort_keys=True)
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.{language}"
        if not path.is_file():
            model = model or load(run)
            translated = model.translate(chunk, batch_size=batch_size, **search)
            write_lines(path, [" ".join(text.split("\n")) for text in translated])
        results += path.read_bytes().decode().split("\n")[:-1]
    return results


def write_lines(path, lines):
    from ..training import write_file

    write_file(path, "".join(f"{line}\n" for line in lines).encode())
