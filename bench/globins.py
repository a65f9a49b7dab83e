"""Trains ESMFold on globins, and predicts the structures of three others from their sequences.

    python bench/globins.py DATA --out RUNS

DATA is a folder with the 23 SCOPe domains of foldseek's example, *.pdb. Three of them are the test
set, and are read once, at the end. Of the other twenty, those three with the least identity to any
other choose among the settings below, after training on seventeen. The chosen settings then train
on all twenty. Of each run the checkpoint with the best lDDT on these three is used, also of the
last one, which has trained on them.

Beside it are two predictions without a network, for which sequences are aligned with BLOSUM62:

- copy: the structure of the training sequence with the greatest identity;
- mean: the mean of the training structures, superposed on the one that is nearest to all others.

Residues without a partner are placed on a line between their neighbors.

The same command resumes a stopped run. All took about four hours, most of them beside other work.
Results are in bench/globins.json, and what is there is not repeated: the scores of settings that
were the best before others were added stay in the table, so that it tells how often the test set
was read. Writes bench/globins.md.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from measure import machine, run, run_isolated, store, write

TEST = "d1asha_", "d3g46a_", "d1tu9a_"
# Chosen by validation: the optimizer, how much of a chain is seen, and how many of its residues'
# types are hidden.
COMMON = dict(schedule="cosine", updates=2000, epochs=10_000, patience=None, interval=100)
ADAM, MUON = dict(optimizer="adam", peak=2e-3), dict(optimizer="muon", peak=5e-3)
VARIANTS = {
    "Adam, crops of 96": ADAM | dict(crop=96),
    "Adam, crops of 96, 30% masked": ADAM | dict(crop=96, mask_rate=0.3),
    "Adam, whole chains, 30% masked": ADAM | dict(crop=256, mask_rate=0.3),
    "Muon, whole chains, 30% masked": MUON | dict(crop=256, mask_rate=0.3),
    "Muon, whole chains, 50% masked, dropout 0.1": MUON
    | dict(crop=256, mask_rate=0.5, dropout=0.1),
}


def read(data):
    from polyhead.data import read_structures

    found = read_structures(data, None)
    return {Path(name).stem: structure for name, structure in found.items()}


def align(sequence, other):
    """The pairs of residues (P, 2) of two sequences, and the fraction of the first that agrees."""
    import gemmi

    names = [gemmi.expand_one_letter_sequence(x, gemmi.ResidueKind.AA) for x in (sequence, other)]
    found = gemmi.align_string_sequences(*names, [], gemmi.AlignmentScoring("b"))
    rows = found.add_gaps(sequence, 1), found.add_gaps(other, 2)
    places = [np.cumsum([letter != "-" for letter in row]) - 1 for row in rows]
    both = [a != "-" and b != "-" for a, b in zip(*rows, strict=True)]
    pairs = np.stack(places, axis=1)[both]
    same = sum(sequence[i] == other[j] for i, j in pairs)
    return pairs, same / len(sequence)


def least_similar(structures, count):
    """The names of the structures with the least identity to any other."""
    nearest = {
        name: max(align(s.sequence, o.sequence)[1] for k, o in structures.items() if k != name)
        for name, s in structures.items()
    }
    return sorted(nearest, key=nearest.get)[:count]


def alpha(structure):
    from polyhead.data.residues import ATOM37

    return structure.positions[:, ATOM37.index("CA")], structure.mask[:, ATOM37.index("CA")]


def fill(places, points, length):
    """Points (L, 3) on lines between those that are known at ``places``."""
    rows = np.arange(length)
    return np.stack([np.interp(rows, places, points[:, k]) for k in range(3)], axis=1)


def copy(sequence, structures):
    """CA positions (L, 3) of the training structure with the greatest identity."""
    found = [(align(sequence, s.sequence), s) for s in structures.values()]
    (pairs, _), nearest = max(found, key=lambda x: x[0][1])
    points, known = alpha(nearest)
    pairs = pairs[known[pairs[:, 1]]]
    return fill(pairs[:, 0], points[pairs[:, 1]], len(sequence))


def average(sequence, structures):
    """CA positions (L, 3): the mean of all training structures, each aligned with the sequence."""
    from polyhead.training import superpose

    length, rows, masks = len(sequence), [], []
    for s in structures.values():
        pairs, _ = align(sequence, s.sequence)
        points, known = alpha(s)
        pairs = pairs[known[pairs[:, 1]]]
        row, mask = np.zeros((length, 3)), np.zeros(length, "bool")
        row[pairs[:, 0]], mask[pairs[:, 0]] = points[pairs[:, 1]], True
        rows.append(row)
        masks.append(mask)

    def apart(i, j):
        both = masks[i] & masks[j]
        moved = superpose(rows[j], rows[i], both)
        return np.sqrt(np.square(moved - rows[i])[both].sum(-1).mean())

    number = range(len(rows))
    center = min(number, key=lambda i: sum(apart(i, j) for j in number))
    moved = [
        superpose(row, rows[center], mask & masks[center])
        for row, mask in zip(rows, masks, strict=True)
    ]
    weight = np.array(masks, "float64")[..., None]
    some = weight.sum(0)[:, 0] > 0
    mean = (weight * moved).sum(0)[some] / weight.sum(0)[some]
    return fill(np.flatnonzero(some), mean, length)


def scores(points, truth, exists=True):
    from polyhead.training import lddt, rmsd, tm_score

    true, mask = alpha(truth)
    mask = mask & exists
    return {f.__name__: float(f(points, true, mask)) for f in (lddt, rmsd, tm_score)}


def train(data, names, val, settings, out):
    """Trains in the folder ``out``; returns the seconds, and the best update and its lDDT."""
    import csv

    from polyhead.recipes import folding

    for split, chosen in (("train", names), ("val", val)):
        (folder := Path(out) / "data" / split).mkdir(parents=True, exist_ok=True)
        for name in chosen:
            shutil.copy(Path(data) / f"{name}.pdb", folder)
    settings = folding.Settings(data=str(Path(out) / "data"), **COMMON, **settings)
    folding.train(settings, Path(out) / "run")
    with open(Path(out) / "run" / "history.csv") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["val_lddt"]))
    return float(rows[-1]["seconds"]), int(best["updates"]), float(best["val_lddt"])


def predict(data, names, out):
    """The network's scores, and the rank correlation of pLDDT and lDDT over all residues."""
    from polyhead.recipes.run import load
    from polyhead.training import correlations, lddt_per_residue

    model, structures = load(Path(out) / "run"), read(data)
    rows, confidence, true_scores = {}, [], []
    for name in names:
        found = model.fold(structures[name].sequence)
        points, exists = alpha(found)
        rows[name] = scores(points, structures[name], exists)
        true, mask = alpha(structures[name])
        mask = mask & exists
        confidence += found.plddt[mask].tolist()
        true_scores += lddt_per_residue(points, true, mask)[mask].tolist()
    return rows, correlations(confidence, true_scores)["spearman"]


def main(
    data: Annotated[Path, typer.Argument(metavar="DATA", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder of the training runs.")],
):
    """Train on globins, and predict three others."""
    file = Path(__file__).with_suffix(".json")
    results = json.loads(file.read_text()) if file.exists() else {"machine": machine()}
    structures = read(data)
    known = {name: s for name, s in structures.items() if name not in TEST}
    val = least_similar(known, 3)
    seventeen = {name: s for name, s in known.items() if name not in val}

    def baselines(names, training):
        return {
            title: {k: scores(f(structures[k].sequence, training), structures[k]) for k in names}
            for title, f in (("copy", copy), ("mean", average))
        }

    def run_once(key, *arguments):
        if key not in results:
            results[key] = run_isolated(*arguments, needed=True)[0]
            store(file, results)
            print(key, results[key], flush=True)
        return results[key]

    for title, settings in VARIANTS.items():
        run_once(title, train, data, list(seventeen), val, settings, place(out, title))
    best = max(VARIANTS, key=lambda title: results[title][2])
    whole = f"all, {best}"
    run_once(f"validation, {best}", predict, data, val, place(out, best))
    run_once(whole, train, data, list(known), val, VARIANTS[best], place(out, whole))
    run_once(f"test, {best}", predict, data, TEST, place(out, whole))
    tables = {"validation": baselines(val, seventeen), "test": baselines(TEST, known)}
    correlations = {}
    for title in VARIANTS:
        for split, table in tables.items():
            if found := results.get(f"{split}, {title}"):
                table[f"ESMFold: {title}"], correlations[title, split] = found
    rows = [(split, *row) for split, table in tables.items() for row in table.items()]
    write(
        __file__,
        [
            "# Globins from their sequences, by an ESMFold from scratch",
            "",
            f"`python bench/globins.py DATA --out RUNS`; {results['machine']}, float32. All "
            "proteins have one fold: this is not a test of folding. Trained on twenty domains of "
            f"131 to 169 residues in {results[whole][0] / 60:.0f} min; {', '.join(val)} chose the "
            "settings.",
            "",
            "Validation, after training on the other seventeen:",
            "",
            "| settings | lDDT-CA | best update | minutes |",
            "| --- | --- | --- | --- |",
            *(
                f"| {title} | {lddt:.1f} | {update} | {seconds / 60:.0f} |"
                for title in VARIANTS
                for seconds, update, lddt in [results[title]]
            ),
            "",
            "| set | prediction | lDDT-CA | RMSD of CA (angstroms) | TM-score | lDDT-CA of each |",
            "| --- | --- | --- | --- | --- | --- |",
            *(f"| {' | '.join((split, title, *cells(found)))} |" for split, title, found in rows),
            "",
            "Rank correlation of pLDDT and lDDT over the residues of the test set: "
            f"{correlations[best, 'test']:.2f}.",
        ],
    )


def place(out, title):
    """The folder of a run."""
    return out / title.replace(",", "").replace("%", "").replace(" ", "-")


def cells(found):
    """The mean scores of several proteins, and the lDDT of each."""
    for name, form in (("lddt", "{:.1f}"), ("rmsd", "{:.2f}"), ("tm_score", "{:.3f}")):
        yield form.format(np.mean([row[name] for row in found.values()]))
    yield ", ".join(f"{name} {row['lddt']:.1f}" for name, row in found.items())


if __name__ == "__main__":
    run(lambda: typer.run(main))
