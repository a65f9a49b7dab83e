"""ESMFold (Lin et al. 2022), which predicts the structure of a protein from its sequence."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
import psutil
from keras import ops
from keras.layers import Dense
from numpy.typing import ArrayLike

from ..layers import FoldingBlock, TokenEmbedding
from ..layers.axial import norm_layer
from ..layers.frames import virtual_beta
from ..layers.parts import built
from ..training import (
    StructureLoss,
    aligned_error_loss,
    aligned_error_targets,
    beta_positions,
    distogram_loss,
    fape,
    lddt_loss,
    lddt_targets,
    rename_ambiguous,
    rename_frames,
    torsion_loss,
    trace_once,
)
from ..training.structure_losses import DISTANCES, ERRORS, LDDT_BINS, distance_bins
from .esm import ESM, ESMConfig
from .folding import (
    ATOMS,
    MASK,
    PAD,
    SCALE,
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
from .model import (
    check_config,
    check_count,
    check_real,
    in_batches,
    norm_shapes,
    pad_rows,
)
from .texts import as_texts

RECYCLED = 3.375, 21.375, 15  # bins of CB distances in recycling, in angstroms
# How many arrays of pairs and of attention scores exist at a time, as bench/proteins.py measures.
COPIES_OF_PAIRS, COPIES_OF_SCORES = 11, 2
LINKER, GAP = "G" * 25, 512  # between chains: residues, and a jump of their numbers
EXAMPLES = ["MKTAYIAKQR", "", "G", "GSHMASMTGGQQMX"]
NOTES = """\
## Memory

A sequence of {length:,} residues, the longest that the export takes, needs about {size:,.1f} GB
beside the weights. In a batch, sequences are padded to the longest one, and each needs as much. The
need grows with the square of the length. To limit it, load the model with a smaller `max_length`:
its export truncates longer sequences. A smaller `chunk` helps too, and smaller batches in
`batching.config`.
"""


@dataclass(frozen=True)
class ESMFoldConfig(FoldingConfig):
    """Configuration of an `ESMFold`; the defaults are those of esmfold_v1 (3.5 billion parameters).

    >>> polyhead.ESMFold.count_parameters(polyhead.ESMFoldConfig())
    3525038915
    """

    esm: ESMConfig = field(
        default_factory=lambda: ESMConfig(
            num_layers=36, dim=2560, intermediate_dim=10240, num_heads=40, head=None
        )
    )
    max_length: int = 4000  # residues, with those between chains
    dim: int = 1024  # of a residue
    head_dim: int = 32
    pair_head_dim: int = 32
    position_bins: int = 32  # differences of positions are clipped to this
    dropout: float = 0.0
    embed_residues: bool = True  # adds an embedding of residues to the language model's features
    structure_pair_dim: int = 128

    def __post_init__(self):
        check_config(self)
        for width, head in (("dim", "head_dim"), ("pair_dim", "pair_head_dim")):
            size, part = getattr(self, width), getattr(self, head)
            if size % part:
                raise ValueError(f"{head} must divide {width}: {size} / {part}")
        # The attention of pairs drops rows and columns at twice the rate.
        for name, most in (("dropout", 0.5), ("structure_dropout", 1.0)):
            check_real(self, name, lambda x, most=most: 0 <= x < most, f"in [0, {most})")
        if self.esm.head is not None:
            raise ValueError(f"esm.head must be None: {self.esm.head!r}")
        if self.pair_dim % 2:
            raise ValueError(f"pair_dim must be even: {self.pair_dim}")


LANGUAGE = ESMConfig(num_layers=1, dim=16, intermediate_dim=16, num_heads=2, head=None)
PRESETS = {
    # To be trained on a CPU from scratch: the language model is random, and only a formality.
    "fold-tiny": ESMFoldConfig(
        esm=LANGUAGE,
        num_blocks=2,
        dim=64,
        pair_dim=32,
        head_dim=16,
        pair_head_dim=16,
        passes=1,
        num_iterations=4,
        structure_dim=64,
        structure_pair_dim=32,
        structure_heads=4,
        torsion_dim=64,
        structure_dropout=0.0,
        lddt_dim=16,
    ),
    # Lin et al. 2022 (bioRxiv 2022.07.20.500902), section A.3.
    "esmfold-v1": ESMFoldConfig(),
}


@keras.saving.register_keras_serializable("polyhead")
class Mixture(keras.layers.Layer):
    """The mean of several tensors of one shape, weighted by the softmax of learned scores.

    Args:
        count: the number of tensors.

    >>> from polyhead.zoo.esmfold import Mixture
    >>> np.array(Mixture(2)([np.float32([1, 2]), np.float32([3, 4])]))
    array([2., 3.], dtype=float32)
    """

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = count
        self.autocast = False

    def build(self, shapes=None):
        self.scores = self.add_weight(
            name="scores", shape=(self.count,), initializer="zeros", autocast=False
        )

    def call(self, tensors):
        shares = ops.softmax(ops.cast(self.scores, "float32"))
        return sum(ops.cast(x, "float32") * shares[i] for i, x in enumerate(tensors))


@keras.saving.register_keras_serializable("polyhead")
class ESMFold(FoldingModel):
    """A language model, a trunk of `FoldingBlock`s and a structure module (Lin et al. 2022, A.3).

    Residues (B, N), or a dictionary of ``residues`` and ``positions`` (B, N) -> a dictionary of
    predictions. Residues are numbered as `polyhead.data.residues.LETTERS`, and 21 fills a batch;
    positions, by default 0, 1, ..., are their places in the chain. The network does not see the
    types of residues that are ``masked`` (B, N). The predictions are

    - ``positions`` (B, N, 14, 3) of the atoms, in angstroms;
    - ``lddt`` (B, N, 37, 50), logits of the confidence of each atom;
    - ``errors`` (B, N, N, 64), logits of the error of residue j in the frame of residue i;
    - ``distances`` (B, N, N, 64), logits of the distance of two CB atoms;
    - ``residues`` (B, N, 23), logits of the residue, of padding (21) and of a mask (22);
    - ``frames``, ``torsions``, ``states``: those of the structure module's last iteration.

    The network is applied ``config.passes`` times to its own output (recycling). Only the last pass
    has gradients, and the language model has none.

    If the dictionary also has a true structure, as that of `polyhead.data.structure_batches` has,
    the result is the six losses (B, 6) of `polyhead.training.StructureLoss`.

    Args:
        config: an `ESMFoldConfig`.
        tokenizer: `polyhead.data.Residues`; only needed for strings.
        initialize: False skips the initialization, when weights are about to be loaded.

    >>> config = polyhead.ESMFoldConfig(
    ...     esm=polyhead.ESMConfig(num_layers=1, dim=16, num_heads=2, head=None),
    ...     num_blocks=1, dim=32, pair_dim=32, structure_dim=16, structure_pair_dim=16,
    ... )
    >>> found = polyhead.ESMFold(config)(np.array([[0, 5, 12]]))
    >>> tuple(found["positions"].shape)
    (1, 3, 14, 3)
    >>> model = polyhead.load("facebook/esmfold_v1")  # doctest: +SKIP
    >>> model.fold("MKTAYIAKQR").save("protein.pdb")  # doctest: +SKIP
    """

    Config = ESMFoldConfig
    PRESETS = PRESETS
    FAMILIES = {"esmfold": ".published.esmfold"}

    def __init__(
        self, config: ESMFoldConfig, tokenizer: Any = None, initialize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(config, tokenizer, **kwargs)
        c, dtype = config, self.dtype_policy
        with keras.name_scope("esm"):
            self.esm = ESM(c.esm, initialize=initialize, dtype=dtype, name="esm")
        self.esm.trainable = False

        def norm(name, width):
            return norm_layer(name, width, dtype)

        def dense(name, width, x_width, activation=None):
            return built(Dense(width, activation, dtype=dtype, name=name), (None, x_width))

        def table(name, rows, width):
            return built(TokenEmbedding(rows, width, scale=False, dtype=dtype, name=name))

        self.mixture = built(Mixture(c.esm.num_layers + 1, dtype=dtype, name="mixture"))
        self.language_norm = norm("language_norm", c.esm.dim)
        self.language_first = dense("language_first", c.dim, c.esm.dim, "relu")
        self.language_second = dense("language_second", c.dim, c.dim)
        self.residue_embedding = table("residues", PAD + 2, c.dim) if c.embed_residues else None
        self.position_embedding = table("positions", 2 * c.position_bins + 2, c.pair_dim)
        heads = c.dim // c.head_dim, c.pair_dim // c.pair_head_dim
        s, z = (None, None, c.dim), (None, None, None, c.pair_dim)
        self.blocks = [
            built(FoldingBlock(*heads, c.dropout, dtype=dtype, name=f"block_{i}"), s, z)
            for i in range(c.num_blocks)
        ]
        self.recycled_norm = norm("recycled_norm", c.dim)
        self.recycled_pair_norm = norm("recycled_pair_norm", c.pair_dim)
        self.recycled_distances = table("recycled_distances", RECYCLED[2], c.pair_dim)
        self.structure_input = dense("structure_input", c.structure_dim, c.dim)
        self.structure_pair_input = dense("structure_pair_input", c.structure_pair_dim, c.pair_dim)
        self.structure = self.build_structure(c.structure_pair_dim)
        self.distances = dense("distances", DISTANCES[2], c.pair_dim)
        self.errors = dense("errors", ERRORS[1], c.pair_dim)
        self.residue_head = dense("residue_head", PAD + 2, c.dim)
        self.lddt_norm = norm("lddt_norm", c.structure_dim)
        self.lddt_first = dense("lddt_first", c.lddt_dim, c.structure_dim)
        self.lddt_second = dense("lddt_second", c.lddt_dim, c.lddt_dim)
        self.lddt_output = dense("lddt_output", ATOMS * LDDT_BINS, c.lddt_dim)
        self.built = True

    @property
    def most_heads(self) -> int:
        return self.config.pair_dim // self.config.pair_head_dim

    @classmethod
    def load_tokenizer(cls, folder: Path, config: Any) -> Any:
        from ..data import Residues

        return Residues.load(folder)

    @classmethod
    def preset(cls, name: str, tokenizer: Any = None, **overrides: Any) -> Self:
        """Builds a model of a published size with new weights, see `Pretrained.preset`."""
        from ..data import Residues

        return super().preset(name, Residues() if tokenizer is None else tokenizer, **overrides)

    @classmethod
    def shapes(cls, config: ESMFoldConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
        c = config
        for path, shape in ESM.shapes(c.esm):
            yield f"esm/{path}", shape
        yield "mixture/scores", (c.esm.num_layers + 1,)
        yield from norm_shapes("language_norm", c.esm.dim).items()
        yield from dense_shapes("language_first", c.esm.dim, c.dim)
        yield from dense_shapes("language_second", c.dim, c.dim)
        if c.embed_residues:
            yield "residues/embeddings", (PAD + 2, c.dim)
        yield "positions/embeddings", (2 * c.position_bins + 2, c.pair_dim)
        block = dict(folding_block_shapes(c))
        for i in reversed(range(c.num_blocks)):
            for path, shape in block.items():
                yield f"block_{i}/{path}", shape
        yield from norm_shapes("recycled_norm", c.dim).items()
        yield from norm_shapes("recycled_pair_norm", c.pair_dim).items()
        yield "recycled_distances/embeddings", (RECYCLED[2], c.pair_dim)
        yield from dense_shapes("structure_input", c.dim, c.structure_dim)
        yield from dense_shapes("structure_pair_input", c.pair_dim, c.structure_pair_dim)
        for path, shape in structure_shapes(c, c.structure_pair_dim):
            yield f"structure/{path}", shape
        yield from dense_shapes("distances", c.pair_dim, DISTANCES[2])
        yield from dense_shapes("errors", c.pair_dim, ERRORS[1])
        yield from dense_shapes("residue_head", c.dim, PAD + 2)
        yield from norm_shapes("lddt_norm", c.structure_dim).items()
        yield from dense_shapes("lddt_first", c.structure_dim, c.lddt_dim)
        yield from dense_shapes("lddt_second", c.lddt_dim, c.lddt_dim)
        yield from dense_shapes("lddt_output", c.lddt_dim, ATOMS * LDDT_BINS)

    def call(self, inputs: Any, passes: int | None = None, training: bool | None = None) -> Any:
        given = inputs if isinstance(inputs, dict) else {"residues": inputs}
        start = self._start(given)
        passes = self.config.passes if passes is None else check_count(passes, "passes")
        s, z, bins = self._recycle(start, passes, training)
        s, z, found = self._pass(start, s, z, bins, training)
        if "atoms" in given:
            return self._compare(given, found, self._heads(s, z, found))
        return self._heads(s, z, found) | self.last_iteration(found)

    def _start(self, given):
        """What all passes share: features of residues and pairs, the mask, and tables of atoms."""
        residues = ops.convert_to_tensor(given["residues"], "int32")
        mask = residues < PAD
        relative = self._relative_positions(residues, given.get("positions"), mask)
        seen = residues
        if "masked" in given:
            seen = ops.where(given["masked"], ops.where(mask, MASK, PAD), residues)
        return self.language(seen, mask), relative, mask, atom_tables(residues)

    def _recycle(self, start, passes, training):
        """The input of the last of ``passes``: s, z and bins of distances; no gradients."""
        first, relative, *_ = start
        batch, length, _ = ops.shape(first)
        state = ops.zeros_like(first), ops.zeros_like(relative)
        state = *state, ops.zeros((batch, length, length), "int32")

        def step(s, z, bins):
            s, z, found = self._pass(start, s, z, bins, training)
            n, ca, c = (found["positions"][:, :, k] for k in range(3))
            return s, z, distance_bins(virtual_beta(n, ca, c), *RECYCLED)

        return recycle(step, state, passes - 1)

    def _pass(self, start, s, z, bins, training=None):
        """One pass: the new s and z, and the structure module's dictionary, where ``groups`` are
        the frames of rigid groups, and ``positions`` those of atoms, in angstroms."""
        first, relative, mask, tables = start
        s = first + self.recycled_norm(s)
        z = self.recycled_pair_norm(z) + self.recycled_distances(bins) + relative
        s, z = apply_blocks(self.blocks, s, z, mask, training=training)
        inputs = self.structure_input(s), self.structure_pair_input(z)
        found = self.structure(*inputs, mask, training=training)
        return s, z, self.place_atoms(found, tables)

    def _heads(self, s, z, found):
        """The predictions ``lddt``, ``errors``, ``distances`` and ``residues``."""
        x = self.lddt_output(self.lddt_second(self.lddt_first(self.lddt_norm(found["states"][-1]))))
        distances = self.distances(z)
        predictions = {
            "lddt": ops.reshape(x, (*ops.shape(x)[:2], ATOMS, LDDT_BINS)),
            "errors": self.errors(z),
            "distances": (distances + ops.swapaxes(distances, 1, 2)) / 2,
            "residues": self.residue_head(s),
        }
        return {name: ops.cast(x, "float32") for name, x in predictions.items()}

    def _compare(self, given, found, predicted):
        """The losses (B, 6) of a prediction, in the order of `StructureLoss`."""
        from ..data.residues import ATOM14_SWAP, ATOM37_MASK, CHI_SYMMETRIC, LETTERS

        residues = ops.minimum(ops.cast(given["residues"], "int32"), PAD - 1)
        mask = given["residues"] < PAD
        atoms, known, frames_known = (given[x] for x in ("atoms", "atom_mask", "frame_mask"))
        true = given["rotations"], given["origins"]
        alpha, has_alpha = atoms[:, :, 1], known[:, :, 1]
        has_frame = frames_known[:, :, 0]
        backbone = true[0][:, :, 0], true[1][:, :, 0]
        rotation, translation = (ops.stack(x) for x in zip(*found["frames"], strict=True))
        moved = rotation, SCALE * translation  # of all iterations
        clamped = given["clamped"]
        main = fape(moved, moved[1], backbone, alpha, has_frame, has_alpha, clamped)
        periodic = np.pad(CHI_SYMMETRIC, [(0, 0), (3, 0)])
        periodic = ops.take(periodic, residues, axis=0)
        renamed, renamed_known, swapped = rename_ambiguous(
            found["positions"], atoms, known, residues, ATOM14_SWAP
        )
        turned = rename_frames(true, swapped, periodic)
        every = fape(
            *(join_residues(x) for x in (found["groups"], found["positions"], turned, renamed)),
            *(join_residues(x) for x in (frames_known, renamed_known)),
        )
        angles = torsion_loss(
            ops.stack(found["unnormalized"]),
            given["torsions"],
            given["torsion_mask"],
            periodic,
            mask,
        )
        beta = beta_positions(atoms, known, ops.equal(residues, LETTERS.index("G")))
        place = found["positions"][:, :, 1]
        fractions, defined = lddt_targets(place, alpha, has_alpha)
        exist = ops.logical_and(ops.take(ATOM37_MASK, residues, axis=0), defined[..., None])
        last = moved[0][-1], moved[1][-1]
        errors = aligned_error_targets(last, place, backbone, alpha)
        parts = [
            ops.mean(main, axis=0),
            every,
            ops.mean(angles, axis=0),
            distogram_loss(predicted["distances"], *beta),
            # All atoms of a residue have the confidence of its CA.
            lddt_loss(
                predicted["lddt"], ops.broadcast_to(fractions[..., None], ops.shape(exist)), exist
            ),
            aligned_error_loss(predicted["errors"], errors, has_frame, has_alpha),
        ]
        return ops.stack(parts, axis=-1)

    def compile(self, optimizer: Any = None, loss: Any = None, **kwargs: Any) -> None:
        """Keras's `compile`. Default: Adam at 1e-3, clipped at 1, and `StructureLoss`."""
        if optimizer is None:
            optimizer = keras.optimizers.Adam(1e-3, global_clipnorm=1.0)
        super().compile(optimizer, StructureLoss() if loss is None else loss, **kwargs)

    def language(self, residues: Any, mask: Any) -> Any:
        """Residues (B, N) -> features of ESM-2 (B, N, D); they pass no gradient to it."""
        c = self.config
        tokens = ops.take(ops.convert_to_tensor(esm_tokens(c.esm), "int32"), residues, axis=0)
        column = ops.zeros_like(tokens[:, :1])
        tokens = ops.concatenate([column, tokens, column + c.esm.pad_id], axis=1)
        end = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True) + 1
        place = ops.arange(ops.shape(tokens)[1], dtype="int32")
        tokens = ops.where(place == end, c.esm.end_id, tokens)
        states = [ops.stop_gradient(x)[:, 1:-1] for x in self.esm.hidden_states(tokens)]
        x = self.mixture(states)
        x = self.language_second(self.language_first(self.language_norm(x)))
        return x if self.residue_embedding is None else x + self.residue_embedding(residues)

    def _relative_positions(self, residues, positions, mask):
        """Embeddings (B, N, N, C) of the clipped differences of positions."""
        if positions is None:
            positions = ops.arange(ops.shape(residues)[1], dtype="int32")[None]
        most = self.config.position_bins
        apart = positions[:, None, :] - positions[:, :, None]
        index = ops.clip(apart, -most, most) + most + 1
        pairs = ops.logical_and(mask[:, None, :], mask[:, :, None])
        return self.position_embedding(ops.where(pairs, index, 0))

    def fold(
        self,
        sequences: str | Sequence[str],
        passes: int | None = None,
        chunk: int | str | None = "auto",
        batch_size: int = 1,
        progress: bool | Callable = False,
        places: Sequence[ArrayLike] | None = None,
        each: Callable[[int, Any], None] | None = None,
    ) -> Any:
        """Predicts the structure of a protein, or of each of a list.

        Args:
            sequences: of letters, see `polyhead.data.Residues`; residues that are none of the 20
                amino acids are X, without atoms. "SEQ1:SEQ2" are the chains of a complex. The
                network sees one chain, whose parts are joined by 25 glycines and whose positions
                jump; it was trained on single chains.
            passes: through the trunk. Default: the configuration's.
            chunk: the maximum number of rows of pairs in `TriangleAttention`, which limits memory;
                None: all; "auto": as many as 128 MB allow.
            batch_size: number of proteins per call of the network.
            progress: True shows a progress bar; or a function that wraps the batches.
            places: for each sequence, the places (N,) of its N residues in the chain, rising
                integers: they jump where residues are known to be missing. Default: 0, 1, ...
            each: a function that is called with the index and the structure of each protein when it
                is folded, the shortest first: to save it, for example.

        Returns:
            a `polyhead.data.Structure`, or a list of them.

        Raises:
            ValueError: a letter is not a residue, or a sequence is empty or too long, or its places
                do not fit; the message names it.
            MemoryError: on a CPU, the longest sequences need more than is available, see
                `memory`; no protein is folded then.

        >>> structure = model.fold("MKTAYIAKQR")  # doctest: +SKIP
        >>> structure.plddt.mean(), structure.ptm  # doctest: +SKIP
        >>> structure.save("protein.pdb")  # doctest: +SKIP
        """
        passes = None if passes is None else check_count(passes, "passes")
        sequences, single = as_texts("fold", sequences, "sequence")
        tokenizer = self._need_tokenizer("fold")
        from ..data.structures import Structure

        rows = [self._read_chains(tokenizer, i, text) for i, text in enumerate(sequences)]
        each = each or (lambda index, structure: None)
        if places is not None:
            set_places(rows, [places] if single else places)
        size = check_count(batch_size, "batch_size")
        if rows:
            longest = max(len(row["residues"]) for row in rows)
            self._check_memory(longest, min(size, len(rows)), chunk)

        def run(chosen):
            longest = max(len(row["residues"]) for row in chosen)
            rows = self._choose_chunk(chunk, longest * len(chosen) ** 0.5)
            shape = len(chosen), longest
            inputs = {
                name: pad_rows([row[name] for row in chosen], shape, value)
                for name, value in (("residues", PAD), ("positions", 0), ("kept", 0))
            }
            compute = self._compiled(
                ("fold", passes, rows),
                lambda inputs: self.predict_structure(inputs, passes),
                "fold",
                xla=False,
            )
            with self._chunks(rows):
                found = {name: np.asarray(x) for name, x in compute(inputs).items()}
            for i, row in enumerate(chosen):
                kept = np.flatnonzero(row["kept"])  # the rest of the batch is padding
                structure = Structure.of_prediction(
                    row["residues"][kept],
                    row["chain"][kept],
                    found["positions"][i][kept],
                    found["plddt"][i][kept],
                    found["pae"][i][np.ix_(kept, kept)],
                    float(found["ptm"][i]),
                )
                each(row["index"], structure)
                yield structure

        results = in_batches(rows, size, run, lambda row: len(row["residues"]), progress)
        return results[0] if single else results

    def memory(self, length: int, batch_size: int = 1, chunk: int | str | None = "auto") -> int:
        """An estimate of the memory in bytes that `fold` needs, beside that of the weights.

        It grows with the square of the length. Measured needs are 17 to 34% smaller, see
        `bench/proteins.md`. An export has the chunk with which it was written, 64 by default:
        ``memory(length, chunk=64)`` estimates its need.

        Args:
            length: residues of the longest sequence, with the 25 between two chains.
            batch_size: number of proteins per call of the network.
            chunk: see `fold`.

        >>> polyhead.ESMFold.preset("fold-tiny").memory(300) / 1e9
        0.4032
        """
        check_count(length, "length")
        check_count(batch_size, "batch_size")
        c, rows = self.config, self._choose_chunk(chunk, length * batch_size**0.5)
        rows = length if rows is None else min(rows, length)
        scores = COPIES_OF_SCORES * rows * (c.pair_dim // c.pair_head_dim)
        pairs = COPIES_OF_PAIRS * c.pair_dim + 4 * ERRORS[1]
        return 4 * batch_size * length**2 * (scores + pairs)

    def _check_memory(self, length, batch_size, chunk):
        """Raises a MemoryError if `memory` exceeds what the machine has; GPUs report it in time."""
        if not keras.distribution.list_devices()[0].lower().startswith("cpu"):
            return
        needed = self.memory(length, batch_size, chunk)
        available = psutil.virtual_memory().available
        if needed > available:
            remedy, least = "fold shorter sequences", self.memory(length, chunk=1)
            if least <= available:
                remedy += f", or use chunk=1 and batch_size=1: about {least / 1e9:,.0f} GB"
            raise MemoryError(
                f"{batch_size} x {length:,} residues need about {needed / 1e9:,.0f} GB of memory, "
                f"and {available / 1e9:,.0f} GB are available: {remedy}"
            )

    def predict_structure(self, inputs: Any, passes: int | None = None) -> dict[str, Any]:
        """The dictionary of `call` -> ``positions`` (B, N, 14, 3), and confidences.

        ``plddt`` (B, N, 37) of atoms, from 0 to 100; ``pae`` (B, N, N), the predicted aligned
        error in angstroms; ``ptm`` (B,), the predicted TM-score of each sequence, of the residues
        that are ``kept`` (B, N), if the dictionary has them.
        """
        found = self(inputs, passes=passes)
        mask = ops.cast(inputs.get("kept", inputs["residues"] < PAD), "float32")
        pae, ptm = aligned_errors(found["errors"], mask)
        return {
            "positions": found["positions"],
            "plddt": expected_lddt(found["lddt"]),
            "pae": pae,
            "ptm": ptm,
        }

    def export(
        self,
        filepath: str | PathLike[str],
        passes: int | None = None,
        chunk: int | None = 64,
    ) -> Path:
        """Writes a SavedModel for TensorFlow Serving as the next version of ``filepath``.

        Signatures take ``sequence`` (B,), strings of one chain each. White space is left out.
        All but the 20 amino acids, also "-", ".", ":" and ``<mask>``, is X, without atoms.
        Sequences are truncated to ``config.max_length`` residues. L is the longest one.

        - ``serving_default``, ``fold``: ``pdb`` (B,), texts of PDB files, "" if the format has no
          room for the protein or a value is not finite; ``plddt`` (B, L) of residues, from 0 to
          100, and ``mean_plddt``; ``ptm`` and ``length`` (B,);
        - ``arrays``: ``positions`` (B, L, 14, 3) in angstroms, ``mask`` (B, L, 14), 1 where
          an atom exists, ``plddt`` (B, L, 37), ``pae`` (B, L, L), ``ptm`` and ``length`` (B,).

        The server does not estimate its memory: the README in ``filepath`` says what the longest
        sequence needs, see `memory`. To limit it, load the model with a smaller ``max_length``.

        Args:
            passes: see `fold`.
            chunk: a number, or None; see `fold`.

        Returns:
            the version's folder; see `polyhead.serving.export`.

        >>> model = polyhead.load("facebook/esmfold_v1", max_length=1000)  # doctest: +SKIP
        >>> model.export("exported")  # doctest: +SKIP
        PosixPath('exported/1')
        """
        from ..data import residues as tables
        from ..data import spans
        from ..data.pdb import pdb_text
        from ..serving.export import export

        passes = None if passes is None else check_count(passes, "passes")
        rows = None if chunk is None else check_count(chunk, "chunk")
        if (whole := self._without_lora()) is not self:
            return whole.export(filepath, passes, chunk)
        tokenizer, longest = self._need_tokenizer("export"), self.config.max_length
        inputs, examples = {"sequence": tokenizer.spec("sequence")}, {"sequence": EXAMPLES}

        def predict(sequence):
            tokens = tokenizer.encode(sequence, longest, add_special_tokens=False)
            rows = tokens.with_values(ops.take(tables.TOKEN_RESIDUE, tokens.flat_values, axis=0))
            residues = spans.dense(rows, PAD)
            found = self.predict_structure({"residues": residues}, passes)
            return residues, residues < PAD, found

        predict = trace_once(predict, inline=True)  # both signatures share a trace

        def fold(sequence):
            residues, kept, found = predict(sequence)
            length, inside = ops.sum(ops.cast(kept, "int32"), axis=1), ops.cast(kept, "float32")
            plddt = found["plddt"][:, :, tables.ATOM37.index("CA")] * inside
            count = ops.maximum(ops.cast(length, "float32"), 1)
            return {
                "pdb": pdb_text(residues, kept, found["positions"], found["plddt"]),
                "plddt": plddt,
                "mean_plddt": ops.sum(plddt, axis=1) / count,
                "ptm": found["ptm"],
                "length": length,
            }

        def arrays(sequence):
            residues, kept, found = predict(sequence)
            exist = ops.take(tables.ATOM14_MASK, ops.minimum(residues, PAD - 1), axis=0)
            inside = ops.cast(kept, "float32")
            return {
                **found,
                "plddt": found["plddt"] * inside[..., None],
                "pae": found["pae"] * inside[:, :, None] * inside[:, None],
                "mask": ops.cast(ops.logical_and(exist, kept[..., None]), "int32"),
                "length": ops.sum(ops.cast(kept, "int32"), axis=1),
            }

        main = fold, inputs, examples
        signatures = {"serving_default": main, "fold": main, "arrays": (arrays, inputs, examples)}
        notes = NOTES.format(length=longest, size=self.memory(longest, chunk=rows) / 1e9)
        with self._chunks(rows):
            return export(filepath, "fold", signatures, self.weights, [tokenizer], notes)

    def _attentions(self):
        """The attentions of residues in the trunk; the language model is not trained."""
        frozen = {id(x) for x in self.esm._flatten_layers()}
        return [x for x in super()._attentions() if id(x) not in frozen]

    def _read_chains(self, tokenizer, i, text):
        """The arrays of protein ``i``: ``residues``, ``positions``, ``chain``, ``kept`` (N,)."""
        from ..data.residues import TOKEN_RESIDUE
        from ..data.tokenizers.residues import check_letters

        parts = text.split(":")
        for k, part in enumerate(parts):
            try:
                check_letters(part, mask=False)
            except ValueError as error:
                raise ValueError(f"sequence {i}, chain {k}: {error}") from None
        if gaps := [x for x in ".-" if x in text]:
            raise ValueError(f"sequence {i} has {gaps[0]!r}, which is not a residue: {text!r:.80}")
        rows = tokenizer.encode([*parts, LINKER], add_special_tokens=False)
        *chains, linker = (TOKEN_RESIDUE[row.numpy()] for row in rows)
        if min(map(len, chains)) == 0:
            raise ValueError(f"sequence {i} must have residues in each chain: {text!r:.80}")
        pieces = [x for chain in chains for x in (linker, chain)][1:]  # a linker before all but one
        chain = np.repeat(
            [-1 if k % 2 else k // 2 for k in range(len(pieces))], [len(x) for x in pieces]
        )
        if len(chain) > self.config.max_length:
            raise ValueError(
                f"fold takes at most {self.config.max_length} residues, and sequence {i} has "
                f"{len(chain)}: load the model with max_length={len(chain)}"
            )
        return {
            "index": i,
            "residues": np.concatenate(pieces),
            "positions": np.arange(len(chain)) + GAP * np.maximum.accumulate(chain),
            "chain": chain,
            "kept": chain >= 0,
        }


def set_places(rows, places):
    """Replaces the ``positions`` of the residues in ``rows`` by given ones."""
    if len(places) != len(rows):
        raise ValueError(f"there must be places for each sequence: {len(places)} / {len(rows)}")
    for i, (row, given) in enumerate(zip(rows, places, strict=True)):
        count = len(row["residues"])
        given = np.asarray(given)
        if not row["kept"].all():
            raise ValueError(f"places are for single chains, and sequence {i} has several")
        sound = given.shape == (count,) and given.dtype.kind in "iu"
        limited = sound and (given >= -(2**30)).all() and (given <= 2**30).all()
        if not limited or (given[1:] <= given[:-1]).any():
            raise ValueError(f"the places of sequence {i} must be {count} rising integers")
        row["positions"] = given


def join_residues(x):
    """Frames or tensors (B, N, K, ...) as (B, N K, ...)."""
    if isinstance(x, tuple):
        return tuple(map(join_residues, x))
    return ops.reshape(x, (ops.shape(x)[0], -1, *x.shape[3:]))


def esm_tokens(config):
    """The tokens of ESM-2 for the residues 0 to 22."""
    from ..data.residues import TOKEN

    return np.append(TOKEN, np.int32([config.pad_id, config.mask_id]))


def folding_block_shapes(c):
    """The paths and shapes of the weights of a `FoldingBlock`."""
    s, z, heads, pair_heads = c.dim, c.pair_dim, c.dim // c.head_dim, c.pair_dim // c.pair_head_dim
    split, pair_split = (heads, c.head_dim), (pair_heads, c.pair_head_dim)
    for name in ("attention_norm", "feed_forward_norm", "product_norm"):
        yield from norm_shapes(name, s).items()
    yield from norm_shapes("bias_norm", z).items()
    yield from dense_shapes("bias", z, heads, bias=False)
    for part in ("query", "key", "value", "gate"):
        yield f"attention/{part}/kernel", (s, *split)
    yield "attention/gate/bias", split
    yield "attention/output/kernel", (*split, s)
    yield "attention/output/bias", (s,)
    yield from dense_shapes("feed_forward/expand", s, 4 * s)
    yield from dense_shapes("feed_forward/contract", 4 * s, s)
    yield from dense_shapes("product", s, z)
    yield from dense_shapes("product_output", z, z)
    yield from pair_block_shapes(z, pair_split)
