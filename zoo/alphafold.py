"""AlphaFold 2 (Jumper et al. 2021), which predicts the structure of a protein from an alignment."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Dense

from ..layers import EvoformerBlock
from ..layers.axial import norm_layer
from ..layers.parts import built
from ..training import beta_positions
from ..training.structure_losses import DISTANCES, ERRORS, LDDT_BINS, distance_bins
from .folding import (
    ATOMS,
    PAD,
    FoldingConfig,
    FoldingModel,
    aligned_errors,
    apply_blocks,
    atom_tables,
    dense_shapes,
    expected_lddt,
    pair_block_shapes,
    recycle,
    structure_shapes,
)
from .model import check_config, check_count, check_real, norm_shapes
from .texts import as_texts

TARGET, MSA, EXTRA = 22, 49, 25  # features, see `data.alignments`
CLASSES = 23  # of residues: 20 amino acids, X, a gap, a mask
POSITIONS = 32  # differences of positions are clipped to this
# Bins of CB distances in recycling, in angstroms; the first, of contacts, has no weights.
RECYCLED = 3.25, 20.75, 16


@dataclass(frozen=True)
class AlphaFoldConfig(FoldingConfig):
    """Configuration of an `AlphaFold`; the defaults are those of model_3 and model_4.

    >>> polyhead.AlphaFold.count_parameters(polyhead.AlphaFoldConfig())
    92899674
    """

    max_msa: int = 512  # rows of the alignment, clusters
    max_extra: int = 5120  # other rows
    num_extra_blocks: int = 4
    dim: int = 256  # of a residue in the alignment
    extra_dim: int = 64  # of a residue in the extra alignment
    num_heads: int = 8
    num_pair_heads: int = 4
    outer_dim: int = 32
    dropout: float = 0.15
    pair_dropout: float = 0.25
    aligned_errors: bool = False  # whether there is a head for them, as in the models "_ptm"

    def __post_init__(self):
        check_config(self)
        for width, heads in (("extra_dim", "num_heads"), ("pair_dim", "num_pair_heads")):
            size, count = getattr(self, width), getattr(self, heads)
            if size % count:
                raise ValueError(f"{heads} must divide {width}: {size} / {count}")
        for name in ("pair_dropout", "structure_dropout"):
            check_real(self, name, lambda x: 0 <= x < 1, "in [0, 1)")


PRESETS = {
    # For tests and examples.
    "alphafold-tiny": AlphaFoldConfig(
        max_msa=8,
        max_extra=16,
        num_blocks=1,
        num_extra_blocks=1,
        dim=32,
        extra_dim=16,
        pair_dim=32,
        num_heads=2,
        num_pair_heads=2,
        outer_dim=8,
        passes=1,
        num_iterations=2,
        structure_dim=32,
        structure_heads=2,
        torsion_dim=32,
        lddt_dim=32,
    ),
    # Jumper et al. 2021, supplement, table 5: the models without templates.
    "model-3": AlphaFoldConfig(),
    "model-4": AlphaFoldConfig(),
    "model-5": AlphaFoldConfig(max_extra=1024),
    "model-3-ptm": AlphaFoldConfig(aligned_errors=True),
    "model-4-ptm": AlphaFoldConfig(aligned_errors=True),
    "model-5-ptm": AlphaFoldConfig(aligned_errors=True, max_extra=1024),
}


@keras.saving.register_keras_serializable("polyhead")
class AlphaFold(FoldingModel):
    """AlphaFold 2 for one chain, without templates (Jumper et al. 2021, supplement, algorithm 2).

    An alignment of N residues is read by a stack of `EvoformerBlock`s, and its pairs of residues
    and first row by a structure module. The search for alignments in databases is not part of it.

    A dictionary of ``residues`` (B, N), ``msa`` (B, S, N, 49) and ``extra`` (B, E, N, 25), see
    `polyhead.data.alignment_features` -> a dictionary of predictions. The residue 21 fills a batch.
    Optional are ``msa_mask`` (B, S) and ``extra_mask`` (B, E), whether a row exists, and
    ``positions`` (B, N) of the residues in the chain, by default 0, 1, ... The predictions are

    - ``positions`` (B, N, 14, 3) of the atoms, in angstroms;
    - ``lddt`` (B, N, 50), logits of the confidence of each residue;
    - ``errors`` (B, N, N, 64), logits of the error of residue j in the frame of residue i, if the
      configuration has ``aligned_errors``;
    - ``distances`` (B, N, N, 64), logits of the distance of two CB atoms;
    - ``msa`` (B, S, N, 23), logits of the residues of the alignment, of a gap and of a mask;
    - ``resolved`` (B, N, 37), logits of whether experiments resolve an atom;
    - ``frames``, ``torsions``, ``states``: those of the structure module's last iteration.

    The network is applied ``config.passes`` times to its own output (recycling). Only the last pass
    has gradients. There is no training recipe.

    Args:
        config: an `AlphaFoldConfig`.
        tokenizer: None; alignments need none.
        initialize: has no effect.

    >>> model = polyhead.AlphaFold.preset("alphafold-tiny")
    >>> model.fold(["MKTAY", "MRT-Y", "-KSgAY"])
    Structure('MKTAY', pLDDT ...)
    >>> model = polyhead.load("params_model_3.npz")  # doctest: +SKIP
    """

    Config = AlphaFoldConfig
    PRESETS = PRESETS
    FAMILIES = {".npz": ".published.alphafold"}
    TASKS = ()  # the command has none

    def __init__(
        self, config: AlphaFoldConfig, tokenizer: Any = None, initialize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(config, tokenizer, **kwargs)
        c, dtype = config, self.dtype_policy

        def norm(name, width):
            return norm_layer(name, width, dtype)

        def dense(name, width, x_width, activation=None, **options):
            layer = Dense(width, activation, dtype=dtype, name=name, **options)
            return built(layer, (None, x_width))

        def blocks(kind, count, width, **options):
            shapes = (None, None, None, width), (None, None, None, c.pair_dim)
            heads, rates = (c.num_heads, c.num_pair_heads), (c.dropout, c.pair_dropout)
            return [
                built(
                    EvoformerBlock(
                        *heads,
                        c.outer_dim,
                        dropout=rates[0],
                        pair_dropout=rates[1],
                        dtype=dtype,
                        name=f"{kind}_{i}",
                        **options,
                    ),
                    *shapes,
                )
                for i in range(count)
            ]

        self.target, self.msa = dense("target", c.dim, TARGET), dense("msa", c.dim, MSA)
        self.left, self.right = (dense(name, c.pair_dim, TARGET) for name in ("left", "right"))
        self.relative = dense("positions", c.pair_dim, 2 * POSITIONS + 1)
        self.extra_msa = dense("extra_msa", c.extra_dim, EXTRA)
        self.recycled_norm = norm("recycled_norm", c.dim)
        self.recycled_pair_norm = norm("recycled_pair_norm", c.pair_dim)
        self.recycled_distances = dense("recycled_distances", c.pair_dim, RECYCLED[2] - 1)
        self.extra_blocks = blocks("extra_block", c.num_extra_blocks, c.extra_dim, extra=True)
        self.blocks = blocks("block", c.num_blocks, c.dim)
        self.structure_input = dense("structure_input", c.structure_dim, c.dim)
        self.structure = self.build_structure(c.pair_dim)
        zero = dict(kernel_initializer="zeros")
        self.distances = dense("distances", DISTANCES[2], c.pair_dim, **zero)
        self.residue_head = dense("residue_head", CLASSES, c.dim, **zero)
        self.resolved = dense("resolved", ATOMS, c.structure_dim, **zero)
        self.errors = None
        if c.aligned_errors:
            self.errors = dense("errors", ERRORS[1], c.pair_dim, **zero)
        self.lddt_norm = norm("lddt_norm", c.structure_dim)
        self.lddt_first = dense("lddt_first", c.lddt_dim, c.structure_dim, "relu")
        self.lddt_second = dense("lddt_second", c.lddt_dim, c.lddt_dim, "relu")
        self.lddt_output = dense("lddt_output", LDDT_BINS, c.lddt_dim, **zero)
        self.built = True

    @property
    def trunk(self) -> list:
        return self.extra_blocks + self.blocks

    @property
    def most_heads(self) -> int:
        return max(self.config.num_heads, self.config.num_pair_heads)

    @classmethod
    def shapes(cls, config: AlphaFoldConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
        c = config
        yield from dense_shapes("target", TARGET, c.dim)
        yield from dense_shapes("msa", MSA, c.dim)
        for name in ("left", "right"):
            yield from dense_shapes(name, TARGET, c.pair_dim)
        yield from dense_shapes("positions", 2 * POSITIONS + 1, c.pair_dim)
        yield from dense_shapes("extra_msa", EXTRA, c.extra_dim)
        yield from norm_shapes("recycled_norm", c.dim).items()
        yield from norm_shapes("recycled_pair_norm", c.pair_dim).items()
        yield from dense_shapes("recycled_distances", RECYCLED[2] - 1, c.pair_dim)
        for kind, count, width in (
            ("extra_block", c.num_extra_blocks, c.extra_dim),
            ("block", c.num_blocks, c.dim),
        ):
            block = dict(evoformer_block_shapes(c, width, extra=kind == "extra_block"))
            for i in reversed(range(count)):
                for path, shape in block.items():
                    yield f"{kind}_{i}/{path}", shape
        yield from dense_shapes("structure_input", c.dim, c.structure_dim)
        for path, shape in structure_shapes(c, c.pair_dim):
            yield f"structure/{path}", shape
        yield from dense_shapes("distances", c.pair_dim, DISTANCES[2])
        yield from dense_shapes("residue_head", c.dim, CLASSES)
        yield from dense_shapes("resolved", c.structure_dim, ATOMS)
        if c.aligned_errors:
            yield from dense_shapes("errors", c.pair_dim, ERRORS[1])
        yield from norm_shapes("lddt_norm", c.structure_dim).items()
        yield from dense_shapes("lddt_first", c.structure_dim, c.lddt_dim)
        yield from dense_shapes("lddt_second", c.lddt_dim, c.lddt_dim)
        yield from dense_shapes("lddt_output", c.lddt_dim, LDDT_BINS)

    def call(self, inputs: Any, passes: int | None = None, training: bool | None = None) -> Any:
        start = self._start(inputs)
        passes = self.config.passes if passes is None else check_count(passes, "passes")
        state = self._recycle(start, passes, training)
        m, s, z, found = self._pass(start, *state, training)
        return self._heads(m, s, z, found) | self.last_iteration(found)

    def _start(self, given) -> dict[str, Any]:
        """What all passes share: alignments, pairs, their masks, and tables of atoms."""
        residues = ops.convert_to_tensor(given["residues"], "int32")
        mask = residues < PAD
        # The first of the features would be a break of the chain; padding has no feature.
        target = ops.one_hot(residues + 1, TARGET, dtype=self.compute_dtype)
        m = self.target(target)[:, None] + self.msa(given["msa"])
        z = self.left(target)[:, :, None] + self.right(target)[:, None]
        z = z + self._relative_positions(residues, given.get("positions"))
        extra = self.extra_msa(given["extra"])
        masks = {}
        for name, x in (("msa_mask", m), ("extra_mask", extra)):
            rows = mask[:, None]
            if name in given:
                exists = ops.cast(given[name], "bool")
                rows = ops.logical_and(rows, exists[..., None])
            masks[name] = ops.broadcast_to(rows, ops.shape(x)[:3])
        tables = atom_tables(residues)
        return dict(m=m, z=z, extra=extra, mask=mask, residues=residues, tables=tables, **masks)

    def _relative_positions(self, residues, positions):
        """Embeddings (B, N, N, C) of the clipped differences of positions."""
        if positions is None:
            positions = ops.arange(ops.shape(residues)[1], dtype="int32")[None]
        positions = ops.cast(positions, "int32")
        apart = positions[:, :, None] - positions[:, None]
        index = ops.clip(apart, -POSITIONS, POSITIONS) + POSITIONS
        return self.relative(ops.one_hot(index, 2 * POSITIONS + 1, dtype=self.compute_dtype))

    def _recycle(self, start, passes, training):
        """The input of the last of ``passes``: a row, pairs and bins of distances."""
        from ..data.residues import LETTERS

        m, z = start["m"], start["z"]
        row, z = ops.zeros_like(m[:, 0]), ops.zeros_like(z)
        state = row, z, ops.zeros(ops.shape(z)[:3], "int32")
        glycine, known = ops.equal(start["residues"], LETTERS.index("G")), start["tables"][-1]

        def step(row, z, bins):
            m, _, z, found = self._pass(start, row, z, bins, training)
            beta, _ = beta_positions(found["positions"], known, glycine)
            return m[:, 0], z, distance_bins(beta, *RECYCLED)

        return recycle(step, state, passes - 1)

    def _pass(self, start, row, z, bins, training=None):
        """One pass: the alignment, features of residues and pairs, and placed atoms."""
        m, extra, mask = (start[name] for name in ("m", "extra", "mask"))
        first = m[:, :1] + self.recycled_norm(row)[:, None]
        m = ops.concatenate([first, m[:, 1:]], axis=1)
        near = ops.one_hot(bins - 1, RECYCLED[2] - 1, dtype=self.compute_dtype)
        z = start["z"] + self.recycled_distances(near) + self.recycled_pair_norm(z)
        _, z = apply_blocks(
            self.extra_blocks, extra, z, start["extra_mask"], mask, training=training
        )
        m, z = apply_blocks(self.blocks, m, z, start["msa_mask"], mask, training=training)
        s = self.structure_input(m[:, 0])
        found = self.structure(s, z, mask, training=training)
        return m, s, z, self.place_atoms(found, start["tables"])

    def _heads(self, m, s, z, found):
        """The logits of all heads."""
        x = self.lddt_first(self.lddt_norm(found["states"][-1]))
        distances = self.distances(z)
        predictions = {
            "lddt": self.lddt_output(self.lddt_second(x)),
            "distances": distances + ops.swapaxes(distances, 1, 2),
            "msa": self.residue_head(m),
            "resolved": self.resolved(s),
        }
        if self.errors is not None:
            predictions["errors"] = self.errors(z)
        return {name: ops.cast(x, "float32") for name, x in predictions.items()}

    def predict_structure(self, inputs: Any, passes: int | None = None) -> dict[str, Any]:
        """The dictionary of `call` -> ``positions`` (B, N, 14, 3), and confidences.

        ``plddt`` (B, N) of residues, from 0 to 100; with the head of aligned errors also ``pae``
        (B, N, N), in angstroms, and ``ptm`` (B,), the predicted TM-score of each sequence.
        """
        found = self(inputs, passes=passes)
        result = {"positions": found["positions"], "plddt": expected_lddt(found["lddt"])}
        if self.errors is not None:
            mask = ops.cast(ops.convert_to_tensor(inputs["residues"]) < PAD, "float32")
            result["pae"], result["ptm"] = aligned_errors(found["errors"], mask)
        return result

    def fold(
        self,
        alignment: str | Sequence[str],
        passes: int | None = None,
        chunk: int | str | None = "auto",
    ) -> Any:
        """Predicts the structure of the first sequence of an alignment.

        The first ``config.max_msa`` rows are the centers of clusters, and the next
        ``config.max_extra`` rows the extra alignment; the order matters. Nothing is random, unlike
        in AlphaFold, which draws the centers and masks some residues.

        Args:
            alignment: its rows as in A3M files, see `polyhead.data.read_alignment`; or one
                sequence, for which AlphaFold is not accurate. White space is left out.
            passes: through the network. Default: the configuration's.
            chunk: the maximum number of rows that attention and outer products compute at once,
                which limits memory; None: all; "auto": as many as 128 MB allow.

        Returns:
            a `polyhead.data.Structure`. All atoms of a residue have its pLDDT; without the head of
            aligned errors, ``pae`` and ``ptm`` are None.

        Raises:
            ValueError: the alignment is invalid; the message names the row.

        >>> structure = model.fold(polyhead.data.read_a3m("query.a3m"))  # doctest: +SKIP
        """
        from ..data.alignments import alignment_features
        from ..data.structures import Structure

        passes = None if passes is None else check_count(passes, "passes")
        rows, single = as_texts("fold", alignment, "row")
        rows = ["".join(row.split()) for row in rows]
        if single:  # of ASCII only: "ß".upper() has two letters
            rows = ["".join(x.upper() if x.isascii() else x for x in rows[0])]
        features = alignment_features(rows, self.config.max_msa, self.config.max_extra)
        inputs = {name: x[None] for name, x in features.items()}
        if not inputs["extra"].shape[1]:  # a row that does not exist
            inputs["extra"] = np.zeros((1, 1, *inputs["extra"].shape[2:]), "float32")
            inputs["extra_mask"] = np.zeros((1, 1), "bool")
        limit = self._choose_chunk(chunk, max(inputs["msa"].shape[1:3]))
        compute = self._compiled(
            ("fold", passes, limit),
            lambda inputs: self.predict_structure(inputs, passes),
            "fold",
            xla=False,
        )
        with self._chunks(limit):
            found = {name: np.asarray(x)[0] for name, x in compute(inputs).items()}
        residues = features["residues"]
        return Structure.of_prediction(
            residues,
            np.zeros_like(residues),
            found["positions"],
            np.repeat(found["plddt"][:, None], ATOMS, axis=1),
            found.get("pae"),
            found.get("ptm"),
        )


def evoformer_block_shapes(c, width, extra):
    """The paths and shapes of the weights of an `EvoformerBlock` of a ``width``."""
    split, z = (c.num_heads, width // c.num_heads), c.pair_dim
    for name in ("row_attention", "column_attention"):
        shared = extra and name == "column_attention"
        yield from norm_shapes(f"{name}/norm", width).items()
        for part in ("query", "key", "value", "gate"):
            one = shared and part in ("key", "value")
            yield f"{name}/{part}/kernel", (width, *split[one:])
        yield f"{name}/gate/bias", split
        yield f"{name}/output/kernel", (*split, width)
        yield f"{name}/output/bias", (width,)
    yield from norm_shapes("row_attention/bias_norm", z).items()
    yield "row_attention/pair_bias/kernel", (z, c.num_heads)
    yield from norm_shapes("feed_forward_norm", width).items()
    yield from dense_shapes("feed_forward/expand", width, 4 * width)
    yield from dense_shapes("feed_forward/contract", 4 * width, width)
    yield from norm_shapes("outer_product/norm", width).items()
    for part in ("left", "right"):
        yield from dense_shapes(f"outer_product/{part}", width, c.outer_dim)
    yield "outer_product/output/kernel", (c.outer_dim, c.outer_dim, z)
    yield "outer_product/output/bias", (z,)
    yield from pair_block_shapes(z, (c.num_pair_heads, z // c.num_pair_heads))
