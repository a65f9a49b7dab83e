"""Structures of proteins: predictions, and those of PDB and mmCIF files."""

import gzip
import io
import math
import os
import re
import string
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..files import write_file
from .residues import ATOM37, ATOM37_MASK, ATOM37_TO_ATOM14, LETTERS
from .torsions import Torsions, torsion_angles

if TYPE_CHECKING:
    from .views import View

CHAINS = string.ascii_uppercase + string.ascii_lowercase + string.digits
# The colors of AlphaFold's database, from a pLDDT.
COLORS = {0: "#ff7d45", 50: "#ffdb13", 70: "#65cbf3", 90: "#0053d6"}


@dataclass(frozen=True, eq=False, repr=False)
class Structure:
    """The structure of a protein with N residues, or of a complex of several.

    Attributes:
        residues: (N,), numbered as `polyhead.data.residues.LETTERS`.
        chain: (N,) the chain of each residue: 0, ..., 0, 1, ...
        numbers: (N,) the numbers of the residues in their chain; from 1 in a prediction.
        positions: (N, 37, 3) of the atoms `polyhead.data.residues.ATOM37`, in angstroms; 0 where
            an atom is missing.
        mask: (N, 37) which atoms exist.
        atom_plddt: (N, 37) the confidence of each atom, from 0 to 100.
        pae: (N, N) the predicted error, in angstroms, of residue j in the frame of residue i.
        ptm: the predicted TM-score.
        b_factors: (N, 37) those of the file.
        chain_names: of each chain. Default: A to Z, a to z, 0 to 9, AA, AB, ...
        insertions: (N,) the insertion codes that distinguish equal numbers. Default: none.

    Only predictions have ``atom_plddt``, ``pae`` and ``ptm``, and only files have ``b_factors``;
    otherwise, they are None. In a prediction, X (any other residue) has no atoms; in a file, it may
    have N, CA, C, O and CB.

    >>> from polyhead.data.residues import ATOM14_POSITION
    >>> residues = np.array([12, 8, 19])
    >>> structure = polyhead.data.Structure.of_prediction(
    ...     residues, chain=np.zeros(3), positions=ATOM14_POSITION[residues],
    ...     plddt=np.full((3, 37), 87.5), pae=np.ones((3, 3)), ptm=0.8,
    ... )
    >>> structure
    Structure('MHV', pLDDT 87.5, pTM 0.80)
    >>> structure.save("protein.pdb")
    >>> structure.plot("confidence.png")
    <Figure size ...>
    >>> structure.view("protein.html")
    View('MHV')

    Raises:
        ValueError: shapes or chains are wrong, or numbers are not finite.
    """

    residues: np.ndarray
    chain: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    atom_plddt: np.ndarray | None = None
    pae: np.ndarray | None = None
    ptm: float | None = None
    b_factors: np.ndarray | None = None
    chain_names: tuple[str, ...] = ()
    insertions: np.ndarray | None = None

    def __post_init__(self):
        n = len(self.residues)
        for name, shape, dtype in (
            ("residues", (n,), "int32"),
            ("chain", (n,), "int32"),
            ("numbers", (n,), "int32"),
            ("mask", (n, 37), "bool"),
            ("positions", (n, 37, 3), "float32"),
            ("atom_plddt", (n, 37), "float32"),
            ("pae", (n, n), "float32"),
            ("b_factors", (n, 37), "float32"),
            ("insertions", (n,), "str"),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            value = np.asarray(value, dtype)
            if value.shape != shape:
                raise ValueError(f"{name} must have shape {shape}: {value.shape}")
            if name == "positions":
                value = np.where(np.asarray(self.mask, bool)[..., None], value, 0)
            if dtype == "float32" and not np.isfinite(value).all():
                index = np.argwhere(~np.isfinite(value))[0][0]
                raise ValueError(f"{name} must be finite: those of residue {index} are not")
            self._set(name, value)
        check_residues(self.residues)
        if n and (self.chain[0] != 0 or not np.isin(np.diff(self.chain), [0, 1]).all()):
            raise ValueError(
                "chain must begin with 0 and rise by 1 from one chain to the next: "
                f"{list(dict.fromkeys(self.chain.tolist()))[:10]}"
            )
        if self.atom_plddt is not None and ((self.atom_plddt < 0) | (self.atom_plddt > 100)).any():
            worst = self.atom_plddt.flat[np.abs(self.atom_plddt - 50).argmax()]
            raise ValueError(f"atom_plddt must be from 0 to 100: {worst}")
        count = self.chain[-1] + 1 if n else 0
        names = tuple(self.chain_names) or tuple(map(chain_name, range(count)))
        if len(names) != count or len(set(names)) != count or "" in names:
            raise ValueError(f"chain_names must be {count} different names: {names}")
        self._set("chain_names", names)
        if wrong := [x for x in names if not re.fullmatch("[!-~]+", x) or {*"'\""} <= {*x}]:
            raise ValueError(f"a chain's name must be ASCII without spaces: {wrong[0]!r:.80}")
        if self.ptm is not None:
            self._set("ptm", float(self.ptm))
            if not math.isfinite(self.ptm):
                raise ValueError(f"ptm must be finite: {self.ptm}")
        if self.insertions is None:
            self._set("insertions", np.full(n, ""))
        if wrong := [x for x in self.insertions.tolist() if not re.fullmatch("[!-~]?", x)]:
            raise ValueError(f"an insertion code must be one ASCII character or '': {wrong[0]!r}")

    def _set(self, name, value):
        object.__setattr__(self, name, value)

    def __repr__(self):
        letters = self.sequence if len(self.sequence) < 30 else f"{self.sequence[:26]}..."
        about = [repr(letters)]
        if self.plddt is not None and len(self):
            about.append(f"pLDDT {self.plddt.mean():.1f}")
        if self.ptm is not None:
            about.append(f"pTM {self.ptm:.2f}")
        return f"Structure({', '.join(about)})"

    def __len__(self):
        return len(self.residues)

    @classmethod
    def of_prediction(
        cls, residues: Any, chain: Any, positions: Any, plddt: Any, pae: Any, ptm: float
    ) -> Self:
        """Builds a structure from the predictions of `ESMFold`.

        Args:
            residues, chain: (N,), see `Structure`.
            positions: (N, 14, 3) of the atoms `polyhead.data.residues.ATOM14`, in angstroms.
            plddt: (N, 37), from 0 to 100.
            pae: (N, N), in angstroms.
            ptm: the predicted TM-score.
        """
        residues, chain = np.asarray(residues, "int32"), np.asarray(chain, "int32")
        positions = np.asarray(positions, "float32")
        if positions.shape != (len(residues), 14, 3) or chain.shape != residues.shape:
            raise ValueError(
                "residues, chain and positions must have shapes (N,), (N,) and (N, 14, 3): "
                f"{residues.shape}, {chain.shape}, {positions.shape}"
            )
        check_residues(residues)
        _, first, index = np.unique(chain, return_index=True, return_inverse=True)
        slots = ATOM37_TO_ATOM14[residues]
        return cls(
            residues,
            chain,
            np.arange(len(residues)) - first[index] + 1,
            np.take_along_axis(positions, slots[..., None], axis=1),
            ATOM37_MASK[residues],
            plddt,
            pae,
            ptm,
        )

    @property
    def sequence(self) -> str:
        """The letters of the residues, with ":" between chains."""
        return ":".join(self.chain_sequences())

    def chain_sequences(self) -> list[str]:
        """The letters of each chain."""
        count = len(self.chain_names)
        return ["".join(LETTERS[i] for i in self.residues[self.chain == k]) for k in range(count)]

    @property
    def plddt(self) -> np.ndarray | None:
        """The pLDDT of each residue (N,), which is that of CA; None without predictions."""
        return None if self.atom_plddt is None else self.atom_plddt[:, ATOM37.index("CA")]

    def torsions(self) -> Torsions:
        """The `Torsions` of the residues."""
        return torsion_angles(self.positions, self.mask, self.residues)

    def pdb(self) -> str:
        """Writes a file in the PDB format 3.3, with pLDDT or the file's B-factors as B-factors.

        Residues without atoms have no line, but their numbers are not used for others.

        Raises:
            ValueError: the format has no room for the structure.
        """
        from .pdb import pdb_file

        return pdb_file(self)

    def cif(self) -> str:
        """Writes an mmCIF file, with the pLDDT of residues as viewers such as Mol* expect it.

        Raises:
            ImportError: gemmi is not installed.
        """
        from .structure_files import cif_file

        return cif_file(self)

    @property
    def displayed(self) -> np.ndarray:
        """What files have as B-factors (N, 37): pLDDT, or B-factors, or 0."""
        for values in (self.atom_plddt, self.b_factors):
            if values is not None:
                return values
        return np.zeros(self.mask.shape, "float32")

    def save(self, path: str | PathLike[str]) -> None:
        """Writes `pdb` or `cif` to a file atomically: ``*.pdb``, ``*.cif``, or with .gz after it.

        Raises:
            ValueError: the PDB format has no room for the structure.
            ValueError, FileNotFoundError, ImportError: see `check_path`.
        """
        path = Path(path)
        suffix = check_path(path)
        try:
            content = (self.pdb() if suffix == ".pdb" else self.cif()).encode()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if path.suffix.lower() == ".gz":
            content = gzip.compress(content, mtime=0)
        write_file(path, content)

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Draws pLDDT along the chains, in the colors of AlphaFold's database, and the PAE.

        Args:
            path: writes the figure to a file, such as ``*.png`` or ``*.svg``, atomically.

        Returns:
            the matplotlib figure.

        Raises:
            ValueError: the structure is not a prediction.
        """
        from matplotlib.figure import Figure

        n = len(self)
        if self.plddt is None or not n:
            raise ValueError("a structure without pLDDT has no confidence to plot")
        figure = Figure(figsize=(10, 4), layout="constrained")
        panels = figure.subplots(1, 1 if self.pae is None else 2, squeeze=False)[0]
        panels[0].plot(np.arange(1, n + 1), self.plddt, color="black", linewidth=1)
        for low, high in zip(COLORS, [*list(COLORS)[1:], 100], strict=True):
            panels[0].axhspan(low, high, color=COLORS[low], alpha=0.4, linewidth=0)
        panels[0].set(xlim=(0.5, n + 0.5), ylim=(0, 100), xlabel="residue", ylabel="pLDDT")
        panels[0].set_title(f"mean {self.plddt.mean():.1f}", fontsize=10)
        if self.pae is not None:
            place = (0.5, n + 0.5, n + 0.5, 0.5)
            image = panels[1].imshow(self.pae, cmap="Greens_r", vmin=0, vmax=31, extent=place)
            figure.colorbar(image, label="predicted aligned error (Å)")
            panels[1].set(xlabel="residue", ylabel="aligned residue")
            panels[1].set_title("" if self.ptm is None else f"pTM {self.ptm:.2f}", fontsize=10)
        for start in np.flatnonzero(np.diff(self.chain)) + 1.5:
            panels[0].axvline(start, color="black", linewidth=0.5)
            for draw in (panels[1].axvline, panels[1].axhline) if len(panels) > 1 else ():
                draw(start, color="black", linewidth=0.5)
        if path is not None:
            content = io.BytesIO()
            figure.savefig(content, format=Path(path).suffix[1:] or "png", dpi=120)
            write_file(Path(path), content.getvalue())
        return figure

    def view(self, path: str | PathLike[str] | None = None, color: str | None = None) -> "View":
        """Shows the chains of CA atoms in a notebook or a browser: a tube that turns.

        Drag to turn it, scroll to zoom, click to stop it; under the pointer, residues have names.
        It is a page of HTML with its own script, and it needs no network.

        Args:
            path: writes the page to a file, ``*.html``, atomically.
            color: "plddt", in the colors of AlphaFold's database, or "chain". Default: pLDDT of a
                prediction, otherwise chains.

        Returns:
            a view, which a notebook shows if it is the last value of a cell.

        Raises:
            ValueError: the structure has no CA atoms, or no pLDDT to color; or the name of the file
                ends otherwise.

        >>> structure = model.fold("MKTAYIAKQR")  # doctest: +SKIP
        >>> structure.view("protein.html")  # doctest: +SKIP
        View('MKTAYIAKQR')
        """
        from .views import view_of

        view = view_of(self, color)
        if path is not None:
            view.save(path)
        return view


def check_path(path: Path) -> str:
    """Checks that `Structure.save` can write to a file; returns its suffix, .pdb or .cif.

    Raises:
        ValueError: the name ends otherwise, also before .gz.
        FileNotFoundError: the folder does not exist.
        PermissionError: it is not writable.
        ImportError: the file is mmCIF, and gemmi is not installed.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in (".pdb", ".cif"):
        raise ValueError(f"a structure is written to *.pdb, *.cif, or these with .gz: {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for {path.name}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} of {path.name} is not writable")
    if suffix == ".cif":
        from .structure_files import import_gemmi

        import_gemmi()
    return suffix


def check_residues(residues):
    if ((residues < 0) | (residues >= len(LETTERS))).any():
        worst = residues[(residues < 0) | (residues >= len(LETTERS))][0]
        raise ValueError(f"residues must be from 0 to {len(LETTERS) - 1}: {worst}")


def chain_name(index):
    """The name of a chain: A to Z, a to z, 0 to 9, then AA, AB, ..."""
    if index < len(CHAINS):
        return CHAINS[index]
    return chain_name(index // len(CHAINS) - 1) + CHAINS[index % len(CHAINS)]
