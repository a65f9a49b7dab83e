"""What the cells share: a protein built from torsions, and its picture."""

import numpy as np
from matplotlib.figure import Figure

from polyhead.data.structures import COLORS
from polyhead.learn.show import draw_chain, ideal_protein, plddt_colors


def test_a_protein_has_the_torsions_and_bonds_that_it_was_built_from():
    phi, psi = np.array([0, -60, -120, 55, -70]), np.array([-45, 130, 120, 45, 10])
    protein = ideal_protein("MAWGP", phi, psi)
    assert protein.sequence == "MAWGP" and protein.numbers.tolist() == [1, 2, 3, 4, 5]
    torsions = protein.torsions()
    found = np.degrees(np.arctan2(*np.moveaxis(torsions.values, -1, 0)))
    apart = (found[:, 1:3] - np.stack([phi, psi], -1) + 180) % 360 - 180
    # Angles of ideal residues differ by some degrees, and with them the placed oxygens.
    assert abs(apart[torsions.mask[:, 1:3]]).max() < 4
    assert abs(found[1:, 0]).min() > 176  # omega
    n, ca, c = np.moveaxis(protein.positions[:, :3], 1, 0)
    np.testing.assert_allclose(np.linalg.norm(c[:-1] - n[1:], axis=-1), 1.33, atol=0.05)
    np.testing.assert_allclose(np.linalg.norm(np.diff(ca, axis=0), axis=-1), 3.8, atol=0.05)
    # Residues but glycine are left-handed.
    beta = protein.positions[:, 3]
    volume = np.einsum("ij,ij->i", np.cross(n - ca, c - ca), beta - ca)
    assert (volume[protein.mask[:, 3]] > 0).all() and not protein.mask[3, 3]


def test_a_chain_is_drawn_in_the_colors_of_its_residues():
    assert plddt_colors([0, 49.9, 50, 70, 89.9, 90, 100]) == [
        COLORS[low] for low in (0, 0, 50, 70, 70, 90, 90)
    ]
    axes = Figure().subplots()
    points = np.cumsum(np.random.default_rng(0).normal(size=(5, 3)), axis=0)
    draw_chain(axes, points, plddt_colors([10, 60, 80, 95, 95]), "a chain")
    assert len(axes.lines) == 10 and axes.get_title() == "a chain"
