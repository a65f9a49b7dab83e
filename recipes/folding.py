"""Structures of proteins with ESMFold: train, evaluate, fold and export.

One protein of 45 residues (PDB entry 2q2k), to see that the network can learn it, on 2 cores of an
Intel Xeon with AVX-512 (2026-11-27): after 400 updates, about a minute, the RMSD of CA is 0.06
angstroms (the median of three seeds: 0.05, 0.06, 0.06). See docs/experiments/proteins.md.

    polyhead train folding --data 2q2k.cif --steps 400 --epochs 1000 --interval 100 \\
        --patience 100 --out RUN
    polyhead evaluate RUN
    polyhead fold RUN "MKTAYIAKQR" --out protein.pdb
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from typer import Option

from .options import Data, ExportFolder, ModelFolder, Split, Texts
from .run import (
    Run,
    averaging,
    class_of_preset,
    draw_curve,
    load,
    lock_folder,
    read_lines,
    show_progress,
)
from .settings import Optimizer, RunSettings, Schedule, option, read_settings

Metric = Literal["lddt", "tm", "gdt"]
LEAST = 50  # batches between checkpoints
PEAKS = {"muon": 5e-3, "adam": 2e-3}  # learning rates from scratch
Passes = Annotated[
    int | None,
    Option(
        help="Number of passes; each gets the prediction of the last. Default: the model's own."
    ),
]


@dataclass(frozen=True)
class Settings(RunSettings):
    """The settings of a training run of ESMFold, named like the command's options."""

    task: ClassVar[str] = "folding"
    longest_warmup: ClassVar[int] = 1000

    data: str = option(
        "",
        "A folder of structures, *.pdb or *.cif, plain or .gz: in the folders train, val and test, "
        "or in one, where every tenth is for validation; or a file, which is for both.",
        metavar="DIR|FILE",
    )
    preset: str = option("fold-tiny", "Size of a model that is trained from scratch: fold-tiny ...")
    crop: int = option(256, "Maximum number of residues; of longer chains a random part.")
    batch_size: int = option(1, "Chains per batch.")
    buckets: int = option(4, "Number of lengths that batches are padded to; each is compiled once.")
    mask_rate: float = option(
        0.0, "Fraction of the residues whose type is hidden in training, against overfitting."
    )
    peak: float | None = option(
        None, "Peak learning rate. Default: 5e-3 (muon) or 2e-3 (adam); 1e-4 for --pretrained."
    )
    schedule: Schedule = "cosine"
    optimizer: Optimizer = "muon"
    weight_decay: float = option(0.0, "Weight decay of matrices.")
    metric: Metric = option("lddt", "Score that selects the best checkpoint.")
    interval: int | None = option(
        None,
        "Checkpoint interval in batches. Default: one epoch, but at least 50 batches.",
        adapts=True,
    )


@lock_folder
def train(settings, out, restart=False, say=print):
    """Train an ESMFold on structures of proteins, or fine-tune a published one.

    Stop it with Ctrl-C at any time; the same command resumes from the last checkpoint.
    The best model by validation, which folds each sequence, is RUN/best; curves are in
    RUN/curve.png, RUN/history.csv and, for TensorBoard, RUN/logs.

    Example: polyhead train folding --data structures --out RUN
    """
    import dataclasses

    from ..data import structure_batches
    from ..training import StructureLoss, ValidationScores
    from ..zoo import ESMFold

    if not settings.data:
        raise ValueError("folding needs --data: a folder of structures, or a file")
    run = Run(settings, out, restart, say)
    settings = run.settings
    structures, val = (read(settings.data, split) for split in ("train", "val"))
    say(f"{len(structures):,} structures, {len(val):,} for validation")
    truths = read_truths(val, say)
    overrides = {} if settings.dropout is None else {"dropout": settings.dropout}
    with run.devices.scope():
        if settings.pretrained is not None:
            model = ESMFold.from_pretrained(settings.pretrained, **overrides)
        else:
            class_of_preset(settings.preset, (ESMFold,), "folding has")
            model = ESMFold.preset(settings.preset, **overrides)

    check_lengths(truths, model)

    def batches(**options):
        return structure_batches(
            structures,
            settings.batch_size,
            settings.crop,
            settings.buckets,
            seed=settings.seed,
            mask_rate=settings.mask_rate,
            **options,
        )

    per_epoch = len(batches())
    if settings.interval is None and per_epoch < LEAST:
        epochs = -(-LEAST // per_epoch)
        run.settings = settings = dataclasses.replace(settings, interval=epochs * per_epoch)
    # Another optimizer has no peak here: `compile` refuses it.
    peak = PEAKS.get(settings.optimizer) if settings.pretrained is None else 1e-4
    run.compile(model, StructureLoss(), per_epoch, peak)

    def score(model):
        return mean(compare(model, truths))

    monitor = f"val_{settings.metric}"
    return run.fit(
        model,
        lambda update: batches(start=update),
        None,
        per_epoch,
        monitor,
        [ValidationScores(score)],
        draw=lambda history, path: draw_curve(
            history, path, monitor, f"{settings.metric} on validation"
        ),
        unit="chains",
    )


def read(data, split=None):
    from ..data import read_structures

    return read_structures(data, split)


class Truth(NamedTuple):
    """A chain of N residues that predictions are compared with.

    Attributes:
        name: of its file, and of the chain if there are several.
        sequence: its letters.
        places: those of its residues in the chain (N,).
        alpha: the positions of CA (N, 3) in angstroms.
        mask: which are known, of residues that a prediction has (N,).
    """

    name: str
    sequence: str
    places: Any
    alpha: Any
    mask: Any


def read_truths(structures, say):
    """The chains of ``structures``, a dictionary; those without an lDDT are left out.

    Raises:
        ValueError: none is left.
    """
    from ..data.folding import chains
    from ..training import lddt

    found = []
    for file, structure in structures.items():
        letters, sequences = structure.chain_names, structure.chain_sequences()
        for letter, sequence, chain in zip(letters, sequences, chains(structure), strict=True):
            name = file if len(letters) == 1 else f"{file}, {letter}"
            alpha, mask = chain.atoms[:, 1], chain.atom_mask[:, 1]
            if mask.any() and math.isfinite(lddt(alpha, alpha, mask)):
                found.append(Truth(name, sequence, chain.positions, alpha, mask))
            else:
                say(f"{name} is left out: no two known residues are within 15 angstroms")
    if not found:
        raise ValueError("no chain has two known residues within 15 angstroms, to be compared")
    return found


def check_lengths(truths, model):
    """Checks that ``model`` can fold the chains; otherwise raises a ValueError that names one."""
    most = model.config.max_length
    for truth in truths:
        if len(truth.sequence) > most:
            raise ValueError(
                f"{truth.name} has {len(truth.sequence)} residues, and the model takes {most}: "
                "leave the chain out, or raise max_length"
            )


def compare(model, truths, progress=False, passes=None):
    """The scores of the predicted structure of each of the ``truths``, a list of dictionaries."""
    from ..data.residues import ATOM37
    from ..training import gdt_ts, lddt, rmsd, tm_score

    slot, rows = ATOM37.index("CA"), []
    found = model.fold(
        [truth.sequence for truth in truths],
        passes=passes,
        progress=progress,
        places=[truth.places for truth in truths],
    )
    for truth, predicted in zip(truths, found, strict=True):
        pair = predicted.positions[:, slot], truth.alpha, truth.mask
        rows.append(
            {
                "name": truth.name,
                "lddt": float(lddt(*pair)),
                "rmsd": float(rmsd(*pair)),
                "tm": float(tm_score(*pair)),
                "gdt": float(gdt_ts(*pair)),
                "plddt": float(predicted.plddt.mean()),
            }
        )
    return rows


def mean(rows):
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name != "name"}


def evaluate(
    run: ModelFolder,
    data: Data = None,
    split: Split = None,
    passes: Passes = None,
    say=print,
):
    """Evaluates a run's best model on a split of its data, "val" by default.

    Returns:
        a dict: the means of ``lddt``, ``tm``, ``gdt`` and ``rmsd`` of CA atoms and of ``plddt``,
        and the scores of each chain, ``chains``.
    """
    file = data is not None and Path(data).is_file()
    split = split or ("train" if file else "val")
    truths = read_truths(read(data or read_settings(run).data, split), say)
    model = load(run)
    check_lengths(truths, model)
    rows = compare(model, truths, show_progress("folding"), passes)
    for row in rows:
        say(describe(row["name"], row))
    means = mean(rows)
    say(describe(f"mean of {len(rows)} of {split}", means))
    return means | {"chains": rows}


def describe(name, row):
    return (
        f"{name}: lDDT-CA {row['lddt']:.1f}, RMSD {row['rmsd']:.2f} angstroms, TM {row['tm']:.3f}, "
        f"GDT {row['gdt']:.1f}, pLDDT {row['plddt']:.1f}"
    )


average = averaging(evaluate)


def export(run: ModelFolder, folder: ExportFolder, passes: Passes = None):
    """Exports a run's best model for TensorFlow Serving: sequences in, PDB texts out."""
    print(load(run).export(folder, passes=passes))


def fold(
    run: ModelFolder,
    inputs: Texts = None,
    out: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Write *.pdb or *.cif, of several sequences FILE-1, FILE-2 ..., each when it is "
            "folded.",
        ),
    ] = None,
    passes: Passes = None,
):
    """Predict the structures of protein sequences: prints PDB, or writes files with --out.

    "SEQ1:SEQ2" are the chains of a complex.
    """
    from ..data.structures import check_path

    if out is not None:
        check_path(out)  # before the model is loaded
    sequences = list(read_lines(inputs))

    def path(i):
        ends = "".join(out.suffixes[-2:] if out.suffix.lower() == ".gz" else out.suffixes[-1:])
        name = out.name if len(sequences) == 1 else f"{out.name.removesuffix(ends)}-{i + 1}{ends}"
        return out.with_name(name)

    found = load(run).fold(
        sequences,
        passes=passes,
        progress=show_progress("folding"),
        each=out and (lambda i, structure: structure.save(path(i))),
    )
    for i, structure in enumerate(found):
        if out is None:
            print(structure.pdb(), end="")
        else:
            print(f"{path(i)}: pLDDT {structure.plddt.mean():.1f}, pTM {structure.ptm:.2f}")
