import subprocess
import sys

import numpy as np
import pytest

from polyhead.data import residues
from polyhead.data.residues import ATOM14, ATOM37, CHI_ATOMS, CHI_MASK, LETTERS, NAMES, ROWS


def test_importing_the_tables_imports_neither_keras_nor_tensorflow():
    code = (
        "import sys, polyhead.data.residues\n"
        "loaded = {'keras', 'tensorflow'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_each_atom_has_one_slot_in_each_layout():
    assert LETTERS == "ARNDCQEGHILKMFPSTWYVX" and len(NAMES) == 21 and len(set(ATOM37)) == 37
    assert len(ROWS) == 167 == residues.ATOM14_MASK.sum() == residues.ATOM37_MASK.sum()
    for i, names in enumerate(ATOM14):
        assert residues.ATOM14_MASK[i].sum() == len(names)
        assert [ATOM37[slot] for slot in residues.ATOM14_TO_ATOM37[i, : len(names)]] == list(names)
        present = np.flatnonzero(residues.ATOM37_MASK[i])
        back = residues.ATOM14_TO_ATOM37[i, residues.ATOM37_TO_ATOM14[i, present]]
        np.testing.assert_array_equal(back, present)


def test_residues_are_l_amino_acids():
    for i, name in enumerate(NAMES):
        if name not in ("GLY", "UNK"):
            n, ca, c, beta = residues.ATOM14_POSITION[i, [0, 1, 2, 4]]
            assert np.cross(n - ca, c - ca) @ (beta - ca) > 2


def test_frames_of_groups_are_rotations():
    rotation = residues.GROUP_ROTATION
    np.testing.assert_allclose(
        rotation @ rotation.swapaxes(-1, -2), np.eye(3) + 0 * rotation, atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-6)
    absent = ~residues.GROUP_MASK & (np.arange(8) != 2)
    assert (rotation[absent] == np.eye(3)).all() and not residues.GROUP_TRANSLATION[absent].any()
    assert residues.GROUP_MASK[np.arange(21)[:, None], residues.ATOM14_GROUP][
        residues.ATOM14_MASK
    ].all()


def test_chis_are_chains_of_atoms():
    assert CHI_MASK.sum() == 39 and not CHI_MASK[[LETTERS.index(a) for a in "AGX"]].any()
    lysine = LETTERS.index("K")
    names = [[ATOM14[lysine][slot] for slot in chi] for chi in CHI_ATOMS[lysine]]
    assert names[0] == ["N", "CA", "CB", "CG"] and names[3] == ["CG", "CD", "CE", "NZ"]


def test_symmetric_side_chains_exchange_their_atoms():
    swap = residues.ATOM14_SWAP
    np.testing.assert_array_equal(np.take_along_axis(swap, swap, axis=1), np.arange(14) + 0 * swap)
    moved = {
        f"{NAMES[i]} {ATOM14[i][slot]} {ATOM14[i][swap[i, slot]]}"
        for i, slot in np.argwhere(swap > np.arange(14))
    }
    assert moved == {
        "ASP OD1 OD2", "GLU OE1 OE2", "PHE CD1 CD2", "PHE CE1 CE2", "TYR CD1 CD2", "TYR CE1 CE2",
    }  # fmt: skip
    symmetric = {f"{NAMES[i]} {k + 1}" for i, k in np.argwhere(residues.CHI_SYMMETRIC)}
    assert symmetric == {"ASP 2", "GLU 3", "PHE 2", "TYR 2"}


@pytest.mark.slow
def test_tables_equal_those_of_transformers():
    torch = pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")
    pytest.importorskip("transformers", reason="transformers is not installed: EXTRAS=parity")
    from transformers.models.esm.openfold_utils import make_atom14_masks
    from transformers.models.esm.openfold_utils import residue_constants as theirs

    assert list(LETTERS) == theirs.restypes_with_x and list(NAMES) == theirs.resnames
    assert list(ATOM37) == theirs.atom_types
    for name, atoms in zip(NAMES, ATOM14, strict=True):
        assert list(atoms) == [a for a in theirs.restype_name_to_atom14_names[name] if a]
        if name != "UNK":
            assert set(atoms) == set(theirs.residue_atoms[name])

    masks = make_atom14_masks({"aatype": torch.arange(21)})
    swap = theirs.restype_atom14_ambiguous_atoms_swap_idx
    for ours, expected in (
        (residues.ATOM14_MASK, theirs.restype_atom14_mask),
        (residues.ATOM37_MASK, theirs.restype_atom37_mask),
        (residues.ATOM37_MASK, theirs.STANDARD_ATOM_MASK),
        (residues.ATOM14_GROUP, theirs.restype_atom14_to_rigid_group),
        (residues.ATOM14_POSITION, theirs.restype_atom14_rigid_group_positions),
        (residues.ATOM14_TO_ATOM37, masks["residx_atom14_to_atom37"]),
        (residues.ATOM37_TO_ATOM14, masks["residx_atom37_to_atom14"]),
        (residues.ATOM14_SWAP, swap),
        (swap != np.arange(14), theirs.restype_atom14_ambiguous_atoms),
        (CHI_MASK[:20], theirs.chi_angles_mask),
        (residues.CHI_SYMMETRIC, theirs.chi_pi_periodic),
    ):
        np.testing.assert_array_equal(ours, np.array(expected))
    for i, name in enumerate(NAMES[:-1]):
        atoms = [[ATOM14[i][slot] for slot in chi] for chi in CHI_ATOMS[i, CHI_MASK[i]]]
        assert atoms == theirs.chi_angles_atoms[name]
    # Groups that a residue lacks are zero there.
    expected = theirs.restype_rigid_group_default_frame
    present = expected[..., 3, 3] == 1
    assert not residues.GROUP_MASK[~present].any()
    for ours, part in (
        (residues.GROUP_ROTATION, expected[..., :3, :3]),
        (residues.GROUP_TRANSLATION, expected[..., :3, 3]),
    ):
        np.testing.assert_allclose(ours[present], part[present], atol=1e-7)
