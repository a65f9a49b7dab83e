"""Files of protein structures, by gemmi: mmCIF from a `Structure`, and PDB and mmCIF to one."""

import importlib.util
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_data
from .residues import ATOM37, ATOM37_MASK, LETTERS, NAMES
from .structures import Structure, chain_name

FAR = 1e5  # angstroms; float32 is exact to 0.01 there
BACKBONE = slice(0, 5)  # of `ATOM37`: N, CA, C, CB, O
METRIC = ("id", "name", "type", "mode")
LOCAL_METRIC = (
    "label_asym_id",
    "label_comp_id",
    "label_seq_id",
    "metric_id",
    "metric_value",
    "model_id",
    "ordinal_id",
)
GLOBAL_METRIC = ("model_id", "metric_id", "metric_value", "ordinal_id")


def import_gemmi() -> Any:
    if importlib.util.find_spec("gemmi") is None:
        raise ImportError('files of structures need gemmi: pip install "polyhead[proteins]"')
    import gemmi

    return gemmi


def read_structure(path: str | PathLike[str], chain: str | None = None) -> Structure:
    """Reads the proteins of a PDB or mmCIF file, plain or .gz.

    It reads the first model, and of alternative conformations the first one. A residue needs the
    atoms N, CA and C; others, and what is not a protein, are left out. Selenomethionine is read as
    methionine. All other modified residues become X, with the atoms N, CA, C, O and CB.

    Args:
        chain: the name of a chain, in mmCIF that of the authors (auth_asym_id). Default: all.

    >>> structure = polyhead.data.read_structure("1abc.cif.gz", chain="A")  # doctest: +SKIP
    >>> structure.sequence, structure.positions.shape  # doctest: +SKIP

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a valid PDB or mmCIF file, has no such chain or no protein, or a
            position is not finite; the message names it.
        ImportError: gemmi is not installed.
    """
    gemmi = import_gemmi()
    path = Path(path)
    content = read_data(path)
    try:
        chains = read_chains(gemmi, content)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a valid PDB or mmCIF file: {error}") from None
    if not chains:
        raise ValueError(f"{path} has no protein: no residue has the atoms N, CA and C")
    if chain is not None and chain not in chains:
        names = ", ".join(chains)
        raise ValueError(f"{path} has no protein chain {chain!r:.80}; its chains are {names:.200}")
    if far := next((c for c, rows in chains.items() for x in rows if is_far(x[3])), None):
        raise ValueError(f"{path}: coordinates of chain {far!r:.80} are not below {FAR:,.0f}")
    chosen = chains if chain is None else {chain: chains[chain]}
    rows = [row for residues in chosen.values() for row in residues]
    residues, numbers, insertions, positions, mask, factors = zip(*rows, strict=True)
    try:
        return Structure(
            np.array(residues),
            np.repeat(np.arange(len(chosen)), [len(x) for x in chosen.values()]),
            np.array(numbers),
            np.stack(positions),
            np.stack(mask),
            b_factors=np.stack(factors),
            chain_names=tuple(name_blanks(list(chosen))),
            insertions=np.array(insertions),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def is_far(positions):
    return np.isfinite(positions).all() and np.abs(positions).max() >= FAR


def read_chains(gemmi, content):
    """The residues of each chain with any, by its name, see `read_residue`."""
    found = gemmi.read_structure_string(content, format=gemmi.CoorFormat.Detect)
    if not len(found) or not len(found[0]):
        raise ValueError("it has no atoms")
    found.setup_entities()
    found.remove_alternative_conformations()
    chains = {}
    for part in found[0]:
        # Not `get_polymer`, which ends where the authors' chain has a second polymer.
        polymer = (x for x in part if x.entity_type == gemmi.EntityType.Polymer)
        if residues := [x for x in map(read_residue, polymer) if x is not None]:
            chains[part.name] = residues
    return chains


def read_residue(residue):
    """What a `Structure` holds of one residue of gemmi's; None without N, CA and C."""
    name = "MET" if residue.name == "MSE" else residue.name
    index = NAMES.index(name) if name in NAMES else LETTERS.index("X")
    known = ATOM37_MASK[index].copy()
    known[ATOM37.index("OXT")] = True
    if index == LETTERS.index("X"):
        known[BACKBONE] = True
    positions, factors = np.zeros((37, 3), "float32"), np.zeros(37, "float32")
    mask = np.zeros(37, bool)
    for atom in residue:
        atom_name = "SD" if residue.name == "MSE" and atom.name == "SE" else atom.name
        slot = ATOM37.index(atom_name) if atom_name in ATOM37 else None
        if slot is not None and known[slot] and not mask[slot]:
            positions[slot], factors[slot], mask[slot] = atom.pos.tolist(), atom.b_iso, True
    if not mask[:3].all():
        return None
    number, insertion = residue.seqid.num, residue.seqid.icode.strip()
    return index, number, insertion, positions, mask, factors


def name_blanks(names):
    """Names a chain without a name, as old files have it, by the first free letter."""
    free = next(x for x in map(chain_name, range(len(names) + 1)) if x not in names)
    return [name.strip() or free for name in names]


def cif_file(structure: Structure) -> str:
    """The text of `Structure.cif`.

    >>> from polyhead.data.structure_files import cif_file
    >>> cif_file(polyhead.data.read_structure("1abc.pdb"))  # doctest: +SKIP
    """
    gemmi = import_gemmi()
    file, model = gemmi.Structure(), gemmi.Model(1)
    file.name = "structure"
    sequences = structure.chain_sequences()
    different = list(dict.fromkeys(sequences))
    for number, sequence in enumerate(different, 1):
        entity = gemmi.Entity(str(number))
        entity.entity_type = gemmi.EntityType.Polymer
        entity.polymer_type = gemmi.PolymerType.PeptideL
        entity.full_sequence = [NAMES[LETTERS.index(x)] for x in sequence]
        pairs = zip(structure.chain_names, sequences, strict=True)
        entity.subchains = [name for name, other in pairs if other == sequence]
        file.entities.append(entity)
    positions = structure.positions.astype("float64").round(3) + 0.0  # not -0.0
    factors = structure.displayed.astype("float64").round(2) + 0.0
    local, serial = [], 0
    for k, name in enumerate(structure.chain_names):
        chain = gemmi.Chain(name)
        for place, i in enumerate(np.flatnonzero(structure.chain == k), 1):
            residue = gemmi.Residue()
            residue.name = NAMES[structure.residues[i]]
            residue.seqid = gemmi.SeqId(int(structure.numbers[i]), structure.insertions[i] or " ")
            residue.subchain, residue.label_seq = name, place
            residue.entity_type, residue.het_flag = gemmi.EntityType.Polymer, "A"
            residue.entity_id = str(1 + different.index(sequences[k]))
            for slot in np.flatnonzero(structure.mask[i]):
                serial, atom = serial + 1, gemmi.Atom()
                atom.name, atom.element = ATOM37[slot], gemmi.Element(ATOM37[slot][0])
                atom.pos = gemmi.Position(*positions[i, slot])
                atom.b_iso, atom.serial = factors[i, slot], serial
                residue.add_atom(atom)
            chain.add_residue(residue)
            if structure.plddt is not None and structure.mask[i].any():
                value = f"{structure.plddt[i]:.2f}"
                number = str(len(local) + 1)
                local.append((name, residue.name, str(place), "1", value, "1", number))
        model.add_chain(chain)
    file.add_model(model)
    groups = gemmi.MmcifOutputGroups(True)
    groups.cell = groups.symmetry = groups.origx = groups.scale = False  # those of crystals
    document = file.make_mmcif_document(groups)
    block = document.sole_block()
    for row in block.find("_chem_comp.", ["id", "type"]):
        row[1] = "'peptide linking'" if row[0] in ("GLY", "UNK") else "'L-peptide linking'"
    if local:
        add_metrics(block, local, structure.ptm)
    return document.as_string()


def add_metrics(block, local, ptm):
    """Adds pLDDT and pTM as metrics of ModelCIF (mmcif_ma.dic)."""
    metrics = [("1", "pLDDT", "pLDDT", "local")]
    if ptm is not None:
        metrics.append(("2", "pTM", "pTM", "global"))
        loop = block.init_loop("_ma_qa_metric_global.", GLOBAL_METRIC)
        loop.add_row(["1", "2", f"{ptm:.4f}", "1"])
    for category, names, rows in (
        ("_ma_qa_metric.", METRIC, metrics),
        ("_ma_qa_metric_local.", LOCAL_METRIC, local),
    ):
        loop = block.init_loop(category, names)
        for row in rows:
            loop.add_row(row)
