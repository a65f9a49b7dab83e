"""Structures: predictions, files, and the text of PDB files in TensorFlow's graph."""

import dataclasses
import gzip
import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polyhead.data.residues import (
    ATOM14_MASK,
    ATOM14_POSITION,
    ATOM37,
    ATOM37_MASK,
    CHI_MASK,
    CHI_SYMMETRIC,
    LETTERS,
    NAMES,
)
from polyhead.data.structures import Structure, chain_name
from polyhead.data.torsions import atom14, group_frames, torsion_angles
from tests.conftest import TENSORFLOW

DATA = os.environ.get("POLYHEAD_DATA")
X = LETTERS.index("X")
LINE = (
    "ATOM      1  N   ALA A   1      11.104   6.134  -6.504  1.00  0.00           N\n"
    "ATOM      2  CA  ALA A   1      11.639   6.071  -5.147  1.00  0.00           C\n"
    "ATOM      3  C   ALA A   1      13.140   6.300  -5.170  1.00  0.00           C\n"
)
needs_data = pytest.mark.skipif(
    DATA is None, reason="POLYHEAD_DATA names no folder with proteins/ and globins/"
)
needs_gemmi = pytest.mark.skipif(
    importlib.util.find_spec("gemmi") is None, reason="gemmi is not installed: EXTRAS=proteins"
)
needs_tensorflow = pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow's graph")


def random_arrays(count, seed=0, scale=30.0):
    """Residues (N,), positions (N, 14, 3) and pLDDT (N, 37); all residues if N is at least 21."""
    rng = np.random.default_rng(seed)
    residues = np.concatenate([rng.permutation(21), rng.integers(0, 21, count)])[:count]
    positions = rng.normal(0, scale, (count, 14, 3)).astype("float32")
    return residues, positions, rng.uniform(0, 100, (count, 37)).astype("float32")


def predict(residues, positions, plddt, chain=None):
    count = len(residues)
    chain = np.zeros(count) if chain is None else chain
    pae = np.random.default_rng(9).uniform(0, 31, (count, count))
    return Structure.of_prediction(residues, chain, positions, plddt, pae, 0.75)


def random_complex():
    """Chains of 23, 1 and 9 residues."""
    arrays = random_arrays(33)
    arrays[0][23] = 3  # not X, which has no atoms
    return predict(*arrays, np.repeat([0, 1, 2], [23, 1, 9]))


def pdb_texts(rows, length=None):
    """The texts of proteins of different lengths in the graph, as one batch."""
    from polyhead.data.pdb import pdb_text

    length = length or max([len(row[0]) for row in rows])
    padded = [
        np.stack([np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in part])
        for part in zip(*rows, strict=True)
    ]
    mask = np.arange(length) < np.array([[len(row[0])] for row in rows])
    padded[0] = np.where(mask, padded[0], 21)
    return [x.decode() for x in pdb_text(padded[0], mask, *padded[1:]).numpy()]


def test_a_prediction_has_the_atoms_of_its_residues():
    residues, positions, plddt = random_arrays(30)
    structure = predict(residues, positions, plddt, np.repeat([0, 1], [20, 10]))
    assert structure.sequence == (
        "".join(LETTERS[i] for i in residues[:20])
        + ":"
        + "".join(LETTERS[i] for i in residues[20:])
    )
    np.testing.assert_array_equal(structure.numbers, [*range(1, 21), *range(1, 11)])
    np.testing.assert_array_equal(structure.mask, ATOM37_MASK[residues])
    assert structure.chain_names == ("A", "B") and not structure.positions[~structure.mask].any()
    np.testing.assert_array_equal(structure.plddt, plddt[:, 1])
    back, mask = atom14(structure.positions, structure.mask, residues)
    np.testing.assert_array_equal(mask, ATOM14_MASK[residues])
    np.testing.assert_array_equal(back, np.where(mask[..., None], positions, 0))
    assert "pLDDT" in repr(structure) and "pTM 0.75" in repr(structure)


def test_the_columns_of_a_pdb_file():
    residues = np.array([LETTERS.index(x) for x in "WXG"])
    positions = np.zeros((3, 14, 3), "float32")
    positions[0, 0], positions[0, 1] = (-999.999, 9999.999, -0.0004), (1.0005, -12.3456, 0)
    text = predict(residues, positions, np.full((3, 37), 100)).pdb()
    lines = text.splitlines()
    assert {len(line) for line in lines} == {80} and text.endswith("\n")
    assert lines[0] == (
        "ATOM      1  N   TRP A   1    -999.9999999.999   0.000  1.00100.00           N  "
    )
    assert lines[1].startswith("ATOM      2  CA  TRP A   1       1.000 -12.346   0.000  1.00100.00")
    assert lines[14].startswith("ATOM     15  N   GLY A   3 ")  # X is 2
    assert lines[-2].rstrip() == "TER      19      GLY A   3" and lines[-1].rstrip() == "END"


@needs_gemmi
@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
def test_gemmi_reads_what_is_written(tmp_path, suffix):
    import gemmi

    structure = random_complex()
    structure.save(tmp_path / f"x{suffix}")
    read = gemmi.read_structure(str(tmp_path / f"x{suffix}"))
    assert len(read) == 1 and [chain.name for chain in read[0]] == ["A", "B", "C"]
    found = [
        (chain.name, residue.seqid.num, residue.name, atom.name, atom.element.name)
        for chain in read[0]
        for residue in chain
        for atom in residue
    ]
    at = np.argwhere(structure.mask)
    assert found == [
        (
            structure.chain_names[structure.chain[i]],
            structure.numbers[i],
            NAMES[structure.residues[i]],
            ATOM37[slot],
            ATOM37[slot][0],
        )
        for i, slot in at
    ]
    atoms = [atom for chain in read[0] for residue in chain for atom in residue]
    positions = np.array([atom.pos.tolist() for atom in atoms])
    np.testing.assert_allclose(positions, structure.positions[structure.mask], atol=0.00051)
    factors = [atom.b_iso for atom in atoms]
    np.testing.assert_allclose(factors, structure.atom_plddt[structure.mask], atol=0.0051)


@needs_gemmi
@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".pdb.gz", ".cif.gz", ".PDB"])
def test_files_hold_the_structure(tmp_path, suffix):
    from polyhead.data import read_structure

    structure = random_complex()
    path = tmp_path / f"x{suffix}"
    structure.save(path)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == suffix.endswith(".gz")
    assert [x.name for x in tmp_path.iterdir()] == [path.name]
    kept = structure.mask.any(axis=1)  # X has no atoms
    found = read_structure(path)
    for name in ("residues", "chain", "numbers", "mask"):
        expected = getattr(structure, name)[kept]
        np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)
    assert abs(found.positions - structure.positions[kept]).max() < 0.00051
    mask = found.mask
    np.testing.assert_allclose(
        found.b_factors[mask], structure.atom_plddt[kept][mask], rtol=0, atol=0.0051
    )
    assert found.plddt is None and found.pae is None and found.ptm is None
    found.save(tmp_path / f"y{suffix}")
    again = read_structure(tmp_path / f"y{suffix}")
    np.testing.assert_array_equal(again.positions, found.positions)
    np.testing.assert_array_equal(again.b_factors, found.b_factors)
    only = read_structure(path, chain="B")
    assert only.sequence == "D" and only.chain_names == ("B",) and only.chain[0] == 0


@needs_gemmi
def test_mmcif_has_the_sequence_and_the_plddt_of_residues():
    import gemmi

    structure = random_complex()
    block = gemmi.cif.read_string(structure.cif()).sole_block()
    assert block.find("_ma_qa_metric.", ["id", "name", "mode"])[0].str(1) == "pLDDT"
    rows = block.find(
        "_ma_qa_metric_local.", ["label_asym_id", "label_comp_id", "label_seq_id", "metric_value"]
    )
    kept = np.flatnonzero(structure.mask.any(axis=1))
    assert [(row[0], row[1], int(row[2])) for row in rows] == [
        (
            structure.chain_names[structure.chain[i]],
            NAMES[structure.residues[i]],
            structure.numbers[i],
        )
        for i in kept
    ]
    values = [float(row[3]) for row in rows]
    np.testing.assert_allclose(values, structure.plddt[kept], atol=0.0051)
    assert block.find_value("_ma_qa_metric_global.metric_value") or "0.7500" in structure.cif()
    sequence = list(block.find_values("_entity_poly_seq.mon_id"))
    assert sequence == [NAMES[i] for i in structure.residues]  # with X
    assert not block.find_values("_cell.length_a")


@needs_gemmi
def test_equal_chains_are_one_entity_and_other_names_are_kept(tmp_path):
    from polyhead.data import read_structure

    residues, positions, plddt = random_arrays(8)
    residues = np.tile(np.arange(4), 2)
    first = predict(residues, positions, plddt, np.repeat([0, 1], 4))
    structure = Structure(
        first.residues,
        first.chain,
        np.array([-3, 52, 52, 20_000, -3, 52, 52, 20_000]),
        first.positions,
        first.mask,
        chain_names=("H", "L-2"),
        insertions=np.array(["", "", "A", ""] * 2),
    )
    structure.save(tmp_path / "x.cif")
    assert structure.cif().count("polypeptide(L)") == 1
    found = read_structure(tmp_path / "x.cif")
    assert found.chain_names == ("H", "L-2") and found.sequence == "ARND:ARND"
    np.testing.assert_array_equal(found.numbers, structure.numbers)
    assert found.insertions.tolist() == ["", "", "A", ""] * 2
    found = read_structure(tmp_path / "x.cif", chain="L-2")
    np.testing.assert_allclose(found.positions, first.positions[4:], atol=0.00051)


@needs_gemmi
def test_two_polymers_of_one_chain_of_the_authors_are_read(tmp_path):
    import gemmi

    from polyhead.data import read_structure

    structure = random_complex()
    block = gemmi.cif.read_string(structure.cif()).sole_block()
    for row in block.find("_atom_site.", ["auth_asym_id", "auth_seq_id"]):
        if row[0] == "B":
            row[0], row[1] = "A", str(100 + int(row[1]))
    (tmp_path / "x.cif").write_text(block.as_string())
    found = read_structure(tmp_path / "x.cif")
    exists = structure.mask.any(axis=1)  # not X
    assert found.chain_names == ("A", "C") and len(found) == exists.sum() == 32
    np.testing.assert_allclose(found.positions, structure.positions[exists], atol=0.00051)


@needs_gemmi
def test_insertion_codes_are_kept_in_pdb_files(tmp_path):
    from polyhead.data import read_structure

    first = predict(*random_arrays(3))
    residues = np.array([0, 0, 0])
    structure = Structure(
        residues,
        first.chain,
        np.array([-3, 52, 52]),
        first.positions,
        ATOM37_MASK[residues],
        insertions=np.array(["", "", "A"]),
    )
    structure.save(tmp_path / "x.pdb")
    found = read_structure(tmp_path / "x.pdb")
    assert found.numbers.tolist() == [-3, 52, 52] and found.insertions.tolist() == ["", "", "A"]
    assert found.b_factors.max() == 0


def test_what_the_pdb_format_has_no_room_for(tmp_path):
    def small(count=1, chain=None, **changes):
        residues = np.zeros(count, int)
        mask = np.zeros((count, 37), bool)
        mask[:, 1] = True
        given = dict(positions=np.ones((count, 37, 3)), mask=mask) | changes
        chain = np.zeros(count, int) if chain is None else chain
        return Structure(residues, chain, given.pop("numbers", np.ones(count)), **given)

    assert small(62, np.arange(62)).pdb().count("TER") == 62
    for structure, problem in (
        (small(63, np.arange(63)), "63 chains"),
        (small(99_999), "99999 atoms"),
        (small(numbers=[10_000]), "the residue number 10000"),
        (small(numbers=[-1_000]), "the residue number -1000"),
        (small(positions=np.full((1, 37, 3), 10_000)), "positions outside"),
        (small(positions=np.full((1, 37, 3), -999.9996)), "positions outside"),
        (small(chain_names=("AA",)), "the chain name 'AA'"),
        (small(b_factors=np.full((1, 37), 1e3)), "B-factors"),
    ):
        with pytest.raises(ValueError, match=f"no room for {problem}.*save it as .cif"):
            structure.pdb()
        with pytest.raises(ValueError, match=f"x.pdb: the PDB format has no room for {problem}"):
            structure.save(tmp_path / "x.pdb")
    assert small(99_998).pdb().count("TER   99999 ") == 1 and not list(tmp_path.iterdir())
    assert [chain_name(i) for i in (0, 61, 62, 63, 62 + 62**2)] == ["A", "9", "AA", "AB", "AAA"]


def test_wrong_arrays_are_refused():
    residues, positions, plddt = random_arrays(5)
    for changes, problem in (
        (dict(positions=positions * np.nan), "positions must be finite"),
        (dict(positions=positions[:, :5]), r"\(N, 14, 3\)"),
        (dict(plddt=plddt * np.inf), "atom_plddt must be finite"),
        (dict(plddt=plddt + 100), "atom_plddt must be from 0 to 100"),
        (dict(plddt=plddt[:4]), r"atom_plddt must have shape \(5, 37\)"),
        (dict(residues=residues + 21), "residues must be from 0 to 20"),
        (dict(residues=residues - 30), "residues must be from 0 to 20"),
        (dict(chain=np.ones(5)), "chain must begin with 0"),
        (dict(chain=[0, 1, 0, 1, 1]), "chain must begin with 0"),
        (dict(chain=[0, 2, 2, 2, 2]), "chain must begin with 0"),
        (dict(pae=np.zeros((4, 4))), r"pae must have shape \(5, 5\)"),
    ):
        given = dict(
            residues=residues, chain=np.zeros(5), positions=positions, plddt=plddt,
            pae=np.zeros((5, 5)), ptm=0.5,
        )  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            Structure.of_prediction(**(given | changes))
    good = Structure.of_prediction(residues, np.zeros(5), positions, plddt, np.zeros((5, 5)), 0.5)
    for changes, problem in (
        (dict(ptm=np.nan), "ptm must be finite: nan"),
        (dict(chain_names=("a b",)), "name must be ASCII without spaces: 'a b'"),
        (dict(chain_names=("é",)), "name must be ASCII without spaces: 'é'"),
        (dict(chain_names=("'\"",)), "name must be ASCII without spaces"),
        (dict(insertions=["", "", "AB", "", ""]), "an insertion code must be one .*: 'AB'"),
    ):
        with pytest.raises(ValueError, match=problem):
            dataclasses.replace(good, **changes)
    hidden = positions.copy()
    hidden[residues == X] = np.nan  # no atoms
    hidden[:, 13][residues != LETTERS.index("W")] = np.nan
    assert len(predict(residues, hidden, plddt)) == 5


@needs_gemmi
def test_bad_files_are_refused_by_name(tmp_path):
    from polyhead.data import read_structure

    good = LINE.encode()
    for name, content, problem in (
        ("empty.pdb", b"", "empty.pdb is not a valid PDB or mmCIF file"),
        ("text.pdb", b"Dear reader,\n", "text.pdb is not a valid PDB or mmCIF file"),
        ("bytes.cif", bytes(range(256)) * 9, "bytes.cif is not a valid PDB or mmCIF file"),
        ("empty.cif", b"data_x\n", "empty.cif is not a valid PDB or mmCIF file"),
        ("cut.cif", b"data_x\nloop_\n_atom_site.id\n_atom_site.type_symbol\n1\n", "cut.cif is not"),
        ("cut.pdb.gz", gzip.compress(good * 50)[:60], "cut.pdb.gz is not a complete gzip file"),
        ("water.pdb", good.replace(b"ALA", b"HOH"), "water.pdb has no protein"),
        ("alpha.pdb", good.split(b"\n")[1] + b"\n", "alpha.pdb has no protein"),
        ("end.pdb", b"END\n", "end.pdb is not a valid PDB or mmCIF file"),
        ("far.pdb", good.replace(b"  11.104", b" 200000."), "chain 'A' are not below 100,000"),
        ("nan.pdb", good.replace(b"11.104", b"   nan"), "nan.pdb: positions must be finite"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=problem):
            read_structure(tmp_path / name)
    header = "AUTHOR    M.MÜLLER\n".encode("latin-1")
    (tmp_path / "good.txt").write_bytes(header + good)  # the content counts, not the name
    assert read_structure(str(tmp_path / "good.txt")).sequence == "A"
    with pytest.raises(ValueError, match="good.txt has no protein chain 'B'; its chains are A"):
        read_structure(tmp_path / "good.txt", chain="B")
    with pytest.raises(FileNotFoundError, match="nothing.pdb"):
        read_structure(tmp_path / "nothing.pdb")
    with pytest.raises(ValueError, match="is not a regular file"):
        read_structure(tmp_path)


@needs_gemmi
def test_names_of_old_files_and_modified_residues(tmp_path):
    from polyhead.data import read_structure

    atoms = LINE + (
        "HETATM    4  CB  XYZ A   2      14.140   6.300  -5.170  1.00  0.00           C\n"
        "HETATM    5  N   XYZ A   2      14.140   7.300  -5.170  1.00  0.00           N\n"
        "HETATM    6  CA  XYZ A   2      14.140   7.300  -6.170  1.00  0.00           C\n"
        "HETATM    7  C   XYZ A   2      14.140   7.300  -7.170  1.00  0.00           C\n"
        "HETATM    8  P   XYZ A   2      14.140   7.300  -8.170  1.00  0.00           P\n"
        "HETATM    9  N   MSE A   3      15.140   7.300  -5.170  1.00  0.00           N\n"
        "HETATM   10  CA AMSE A   3      15.140   7.300  -6.170  0.50  0.00           C\n"
        "HETATM   11  CA BMSE A   3      99.140   7.300  -6.170  0.50  0.00           C\n"
        "HETATM   12  C   MSE A   3      15.140   7.300  -7.170  1.00  0.00           C\n"
        "HETATM   13 SE   MSE A   3      15.140   7.300  -8.170  1.00  0.00          SE\n"
        "ATOM     14  N   GLY A   4      15.140   7.300  -8.170  1.00  0.00           N\n"
        "ATOM     15  N   GLY A   5      16.140   7.300  -5.170  1.00  0.00           N\n"
        "ATOM     16  CA  GLY A   5      16.140   7.300  -6.170  1.00  0.00           C\n"
        "ATOM     17  C   GLY A   5      16.140   7.300  -7.170  1.00  0.00           C\n"
        "ATOM     18  OXT GLY A   5      16.140   7.300  -8.170  1.00  0.00           O\n"
    )
    text = atoms + "TER\n" + atoms.replace(" A ", " B ")
    (tmp_path / "x.pdb").write_text(
        "MODEL        1\n" + text + "ENDMDL\nMODEL        2\n" + text + "ENDMDL\n"
    )
    structure = read_structure(tmp_path / "x.pdb")
    assert structure.sequence == "AXMG:AXMG" and structure.numbers[:4].tolist() == [1, 2, 3, 5]
    names = [[ATOM37[slot] for slot in np.flatnonzero(x)] for x in structure.mask[:4]]
    backbone = ["N", "CA", "C"]
    assert names == [backbone, [*backbone, "CB"], [*backbone, "SD"], [*backbone, "OXT"]]
    assert structure.positions[2, 1, 0] == pytest.approx(15.14)
    for suffix in (".pdb", ".cif"):
        structure.save(tmp_path / f"y{suffix}")
        found = read_structure(tmp_path / f"y{suffix}")
        np.testing.assert_array_equal(found.mask, structure.mask)
        np.testing.assert_array_equal(found.positions, structure.positions)
    (tmp_path / "blank.pdb").write_text(LINE.replace(" A ", "   ") + "TER\n" + LINE)
    assert read_structure(tmp_path / "blank.pdb").chain_names == ("B", "A")


def test_names_of_files_and_missing_folders(tmp_path):
    structure = predict(*random_arrays(3))
    for name in ("x", "x.txt", "x.gz", "x.pdbx"):
        with pytest.raises(ValueError, match=rf"\*.pdb, \*.cif, .*{name}$"):
            structure.save(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        structure.save(tmp_path / "nowhere" / "x.pdb")
    (tmp_path / "folder.pdb").mkdir()
    with pytest.raises(OSError, match="folder.pdb"):
        structure.save(tmp_path / "folder.pdb")
    assert [x.name for x in tmp_path.iterdir()] == ["folder.pdb"]


def test_gemmi_is_named_where_it_is_missing(tmp_path, monkeypatch):
    from polyhead.data import read_structure

    monkeypatch.setitem(sys.modules, "gemmi", None)
    structure = predict(*random_arrays(3))
    structure.save(tmp_path / "x.pdb")  # needs no library
    for call in (structure.cif, lambda: read_structure(tmp_path / "x.pdb")):
        with pytest.raises(ImportError, match=r'pip install "polyhead\[proteins\]"'):
            call()


def test_importing_structures_imports_neither_keras_nor_gemmi():
    code = (
        "import sys, polyhead.data.structure_files\n"
        "loaded = {'keras', 'tensorflow', 'gemmi', 'matplotlib'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pictures_of_confidence(tmp_path):
    structure = random_complex()
    figure = structure.plot()
    lines = figure.axes[0].get_lines()
    np.testing.assert_array_equal(lines[0].get_ydata(), structure.plddt)
    assert [line.get_xdata()[0] for line in lines[1:]] == [23.5, 24.5]  # between chains
    np.testing.assert_array_equal(figure.axes[1].get_images()[0].get_array(), structure.pae)
    structure.plot(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    structure.plot(tmp_path / "x.svg")
    assert b"<svg" in (tmp_path / "x.svg").read_bytes()
    experiment = Structure(
        structure.residues,
        structure.chain,
        structure.numbers,
        structure.positions,
        structure.mask,
    )
    with pytest.raises(ValueError, match="without pLDDT"):
        experiment.plot()
    assert experiment.plddt is None and "pLDDT" not in repr(experiment)


@needs_tensorflow
@pytest.mark.parametrize("seed, scale", [(0, 5.0), (1, 60.0), (2, 250.0), (3, 1e-3)])
def test_the_text_in_the_graph_equals_that_of_python(seed, scale):
    rows = [random_arrays(count, seed + count, scale) for count in (40, 1, 21, 7)]
    for _, positions, plddt in rows:
        flat = positions.reshape(-1)
        flat[:4] = -0.0004, 0.0625, -0.0005, 0.00049999997  # ties, and zeros without a sign
        flat[20:22] = -999.9994, 9999.999
        np.clip(flat, -999.999, None, out=flat)
        plddt[0, :4] = 0, 100, 0.125, 99.995
    for length in (40, 50):
        assert pdb_texts(rows, length) == [predict(*row).pdb() for row in rows]
    assert "-0.000" not in "".join(pdb_texts(rows))


@needs_tensorflow
def test_rows_without_atoms_in_the_graph():
    end = f"{'END':<80}\n"
    nothing = [x[:0] for x in random_arrays(1)]
    unknown = random_arrays(3)
    unknown[0][:] = X
    some = random_arrays(5)
    some[0][:] = X, 2, X, 3, X
    rows = [nothing, unknown, some]
    texts = pdb_texts(rows)
    assert texts == [end, end, predict(*some).pdb()] and "TER      17      ASP A   4" in texts[2]
    assert predict(*nothing).pdb() == end == predict(*unknown).pdb()
    assert pdb_texts([unknown, nothing], 6) == [end, end]
    from polyhead.data.pdb import pdb_text

    shapes = (0, 4), (0, 4), (0, 4, 14, 3), (0, 4, 37)
    dtypes = "int32", "bool", "float32", "float32"
    empty = [np.zeros(*x) for x in zip(shapes, dtypes, strict=True)]
    assert pdb_text(*empty).shape == (0,)


@needs_tensorflow
def test_proteins_without_room_have_an_empty_text_and_others_are_unchanged():
    rows = [list(random_arrays(9, seed)) for seed in range(6)]
    for row in rows:
        row[0][8] = 0
    for row, value in zip(rows[1:5], (np.nan, np.inf, 10_000, -1_000), strict=True):
        row[1][8, 1, 2] = value
        with pytest.raises(ValueError):
            predict(*row).pdb()
    rows[5][2][8, 1] = np.nan
    assert pdb_texts(rows) == [predict(*rows[0]).pdb(), *[""] * 5]
    residues = np.full(10_000, LETTERS.index("G"))
    long = residues, np.ones((10_000, 14, 3), "float32"), np.ones((10_000, 37), "float32")
    short = [x[:9_999] for x in long]
    text, none = pdb_texts([short, long])
    assert none == "" and text.splitlines()[-2].rstrip() == "TER   39997      GLY A9999"
    tall = [x[:7_143] for x in long]  # 100,002 atoms
    tall[0] = np.full(7_143, LETTERS.index("W"))
    assert pdb_texts([tall]) == [""]


@needs_tensorflow
def test_the_server_writes_the_same_text(tmp_path):
    """In an export, through TensorFlow's C++ loader: only core operations, without Python."""
    import tensorflow as tf

    from polyhead.data.pdb import pdb_text

    class Writer(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec((None, None), "int32", name="residues"),
                tf.TensorSpec((None, None, 14, 3), "float32", name="positions"),
                tf.TensorSpec((None, None, 37), "float32", name="plddt"),
            ]
        )
        def write(self, residues, positions, plddt):
            return {"pdb": pdb_text(residues, residues < 21, positions, plddt)}

    writer = Writer()
    tf.saved_model.save(writer, str(tmp_path / "1"), signatures=writer.write)
    graph = writer.write.get_concrete_function().graph
    assert not [op.type for op in graph.get_operations() if "PyFunc" in op.type]
    rows = [random_arrays(25), random_arrays(25, seed=1)]
    rows[1][0][20:] = 21  # padding
    inputs = {
        name: np.stack(x).tolist()
        for name, x in zip(("residues", "positions", "plddt"), zip(*rows, strict=True), strict=True)
    }
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    code = f"""
import json
from polyhead.serving.loader import SavedModel
inputs = json.load(open({str(tmp_path / "inputs.json")!r}))
print(json.dumps(SavedModel({str(tmp_path / "1")!r})(inputs)["pdb"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [predict(*rows[0]).pdb(), predict(*[x[:20] for x in rows[1]]).pdb()]
    assert json.loads(done.stdout) == expected


def test_torsions_need_their_atoms_and_a_bound_residue_before():
    residues = np.array([LETTERS.index(x) for x in "GKAXS"])
    positions, mask = ATOM14_POSITION[residues].copy(), ATOM14_MASK[residues].copy()
    positions[1] += positions[0, 2] + np.float32([0, 0, 1.3]) - positions[1, 0]  # a bond
    positions[2:] += np.arange(50, 350, 100, "float32")[:, None, None]
    mask[1, ATOM14_MASK[residues[1]].sum() - 1] = False  # NZ
    torsions = torsion_angles(positions, mask, residues)
    assert torsions.mask.astype(int).tolist() == [
        [0, 0, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
    ]
    lengths = np.linalg.norm(torsions.values, axis=-1)
    np.testing.assert_allclose(lengths, torsions.mask, atol=1e-6)
    mask[:, 3] = False
    assert not torsion_angles(positions, mask, residues).mask[:, 2].any()
    positions[:] = 1  # all atoms in one place
    assert not torsion_angles(positions, mask, residues).mask.any()
    assert torsion_angles(positions[:0], mask[:0], residues[:0]).values.shape == (0, 7, 2)


def test_alternatives_differ_in_symmetric_chis():
    residues, positions, _ = random_arrays(60)
    mask = ATOM14_MASK[residues]
    torsions = torsion_angles(positions, mask, residues)
    changed = (torsions.alternatives != torsions.values).any(axis=-1)
    np.testing.assert_array_equal(changed[:, 3:], CHI_SYMMETRIC[residues])
    assert changed.any() and not changed[:, :3].any()
    np.testing.assert_array_equal(torsions.mask[:, 3:], CHI_MASK[residues])


def test_torsions_of_both_layouts_are_equal():
    residues, positions, plddt = random_arrays(40)
    structure = predict(residues, positions, plddt)
    for found, expected in zip(
        structure.torsions(),
        torsion_angles(positions, ATOM14_MASK[residues], residues),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_frames_of_groups_are_those_of_the_tables():
    from polyhead.data.residues import GROUP_MASK, GROUP_ROTATION, GROUP_TRANSLATION

    residues = np.arange(21)
    rotation, origin, known = group_frames(ATOM14_POSITION, ATOM14_MASK, residues)
    expected = GROUP_MASK.copy()
    expected[:, 4:] &= False  # their positions are in frames of their own
    np.testing.assert_array_equal(known[:, :4], GROUP_MASK[:, :4])
    np.testing.assert_array_equal(known[:, 4:], CHI_MASK)
    np.testing.assert_allclose(rotation[known[:, 0], 0], [np.eye(3)] * 20, atol=1e-6)
    i, group = np.nonzero(expected)
    chosen = group == 3
    np.testing.assert_allclose(origin[i, group][chosen], GROUP_TRANSLATION[i, 3][chosen], atol=1e-6)
    axis = rotation[i, group][chosen][:, :, 0]
    np.testing.assert_allclose(axis, GROUP_ROTATION[i, 3][chosen][:, :, 0], atol=1e-6)
    np.testing.assert_allclose(
        np.swapaxes(rotation, -1, -2) @ rotation, np.eye(3) + 0 * rotation, atol=1e-6
    )


def real_files():
    names = ("proteins/*", "globins/*.pdb")
    return sorted(path for name in names for path in Path(DATA).glob(name)) if DATA else []


@needs_data
@needs_gemmi
def test_files_of_the_protein_data_bank(tmp_path):
    from polyhead.data import read_structure

    files = real_files()
    assert len(files) >= 7
    for path in files:
        structure = read_structure(path)
        assert len(structure) > 25 and structure.mask[:, :3].all(), path
        ca = structure.positions[:, 1]
        near = (np.diff(structure.numbers) == 1) & (np.diff(structure.chain) == 0)
        steps = np.linalg.norm(np.diff(ca, axis=0), axis=-1)[near]
        assert abs(np.median(steps) - 3.80) < 0.04, path
        torsions = structure.torsions()
        trans = torsions.values[torsions.mask[:, 0], 0, 1] < 0  # omega near pi
        assert trans.mean() > 0.9, path
        for suffix in (".pdb", ".cif.gz"):
            structure.save(tmp_path / f"x{suffix}")
            found = read_structure(tmp_path / f"x{suffix}")
            assert found.sequence == structure.sequence, path
            for name in ("numbers", "mask", "chain", "insertions"):
                expected = getattr(structure, name)
                np.testing.assert_array_equal(getattr(found, name), expected, err_msg=str(path))
            assert abs(found.positions - structure.positions).max() < 0.001, path
            assert abs(found.b_factors - structure.b_factors).max() < 0.01, path


@needs_data
@needs_gemmi
def test_selenomethionine_and_chains_of_real_files():
    from polyhead.data import read_structure

    structure = read_structure(Path(DATA) / "proteins" / "4zey.cif")
    methionine = structure.mask[structure.residues == LETTERS.index("M")]
    assert methionine[:, ATOM37.index("SD")].any() and "X" not in structure.sequence
    both = read_structure(Path(DATA) / "proteins" / "2rbg.pdb")
    second = read_structure(Path(DATA) / "proteins" / "2rbg.pdb", chain="B")
    assert both.chain_names == ("A", "B") and both.sequence.endswith(":" + second.sequence)
    with pytest.raises(ValueError, match="2q2k.cif has no protein chain 'F'; its chains are A, B"):
        read_structure(Path(DATA) / "proteins" / "2q2k.cif", chain="F")  # DNA


# Views: pages of HTML


def data_of(view):
    """What the script of the page draws."""
    return json.loads(re.search(r"^const data = (.*);$", view.page, re.MULTILINE)[1])


def test_a_view_has_the_coordinates_of_the_chains_in_the_colors_of_the_confidence(tmp_path):
    structure = random_complex()
    alpha, data = structure.positions[:, 1], data_of(structure.view(tmp_path / "x.html"))
    points = [point for run in data["runs"] for point in run]
    kept = np.flatnonzero(structure.mask[:, 1])  # X has no atoms
    np.testing.assert_allclose([point[:3] for point in points], alpha[kept], atol=0.006)
    for point, i in zip(points, kept, strict=True):
        low = {"#ff7d45": 0, "#ffdb13": 50, "#65cbf3": 70, "#0053d6": 90}
        assert low[data["colors"][point[3]]] == max(
            x for x in low.values() if x <= structure.plddt[i]
        )
        name, chain = NAMES[structure.residues[i]], "ABC"[structure.chain[i]]
        assert point[4].startswith(f"{name} {structure.numbers[i]}, chain {chain}, pLDDT ")
    assert [letter for *_, letter in data["ends"]] == ["N", "C"] * 3
    assert (tmp_path / "x.html").read_text("utf-8") == structure.view().page


def test_a_view_by_chain_and_without_confidence():
    structure = random_complex()
    data = data_of(structure.view(color="chain"))
    assert {p[3] for run in data["runs"] for p in run} == {0, 1, 2} and len(data["colors"]) == 3
    truth = dataclasses.replace(structure, atom_plddt=None, pae=None, ptm=None)
    assert data_of(truth.view())["colors"] == data["colors"]
    assert "pLDDT" not in truth.view().page
    with pytest.raises(ValueError, match="without pLDDT"):
        truth.view(color="plddt")
    with pytest.raises(ValueError, match="'plddt' or 'chain': 'rainbow'"):
        truth.view(color="rainbow")
    with pytest.raises(ValueError, match="without CA atoms"):
        dataclasses.replace(truth, mask=np.zeros_like(truth.mask)).view()
    with pytest.raises(ValueError, match=r"\*\.html: x\.png"):
        truth.view("x.png")


def test_the_tube_is_broken_where_residues_are_missing():
    positions = np.zeros((6, 37, 3), "float32")
    positions[:, 1, 0] = 3.8 * np.arange(6)
    positions[4:, 1, 0] += 9
    mask = np.zeros((6, 37), bool)
    mask[:, 1] = True
    mask[1, 1] = False
    numbers = np.array([1, 2, 3, 7, 9, 10])  # 3 and 7 are neighbours by another numbering
    data = data_of(Structure(np.zeros(6), np.zeros(6), numbers, positions, mask).view())
    assert [len(run) for run in data["runs"]] == [1, 2, 2]
    assert data["ends"] == [[0, 0, "N"], [2, 1, "C"]]


def test_a_page_needs_nothing_else_and_escapes_names():
    structure = random_complex()
    names = ("</script><script>alert(1)", '"&<b>', "@DATA@")
    view = dataclasses.replace(structure, chain_names=names, atom_plddt=None).view()
    assert not re.search(r"https?:|//[a-z]|src=|href=|@import|url\(", view.page)
    assert view.page.count("<script>") == view.page.count("</script>") == 1
    assert "<b>" not in view.page and "&lt;b&gt;" in view.page and "@DATA@" in view.page
    assert data_of(view)["runs"][-1][0][4].endswith("chain @DATA@")
    frame = view._repr_html_()
    assert frame.count("<") == 2 and html.unescape(frame).count(view.page) == 1
    # Letters of residues may be the name of a part of the page.
    letters = [LETTERS.index(x) for x in "DATALEGENDTITLE"]
    arrays = [x[:15] for x in random_arrays(15)]
    view = predict(np.array(letters), *arrays[1:]).view()
    assert repr(view) == "View('DATALEGENDTITLE')" and "<title>DATALEGENDTITLE<" in view.page


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def drawn(frame):
    """The number of pixels of the canvas that are drawn, and their sum."""
    return frame.evaluate(
        """() => {
          const canvas = document.querySelector("canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0, sum = 0;
          data.forEach((v, i) => { count += i % 4 == 3 && v > 0; sum += v * (i % 9973); });
          return [count, sum];
        }"""
    )


@pytest.mark.parametrize("where", ["file", "notebook"])
def test_a_browser_draws_the_view_and_turns_it(tmp_path, browser, where):
    view = random_complex().view(tmp_path / "x.html")
    if where == "notebook":
        (tmp_path / "x.html").write_text(f"<p>a cell</p>{view._repr_html_() * 2}")
    page, problems, requests = browser.new_page(), [], []
    page.on("console", lambda x: problems.append(x.text) if x.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "x.html").as_uri())
    page.wait_for_timeout(500)
    assert len(page.frames) == (1 if where == "file" else 3)
    for frame in page.frames[1:] or page.frames:
        count, before = drawn(frame)
        assert count > 3000
        page.wait_for_timeout(300)
        turned = drawn(frame)
        assert turned[0] > 3000 and turned[1] != before
        canvas = frame.locator("canvas")
        canvas.click()  # stops it
        page.wait_for_timeout(200)
        still = drawn(frame)
        page.wait_for_timeout(200)
        assert drawn(frame) == still
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 100, box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + 160, box["y"] + 130)
        page.mouse.up()
        page.wait_for_timeout(200)
        assert drawn(frame) != still
    assert not problems and all(x.startswith(("file:", "about:")) for x in requests)
    page.close()
