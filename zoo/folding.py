"""What models of structures share: recycling, the structure module and confidences."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from ..layers import StructureModule
from ..layers.frames import place_atoms, torsion_frames
from ..training import trace_once
from ..training.structure_losses import ERRORS, LDDT_BINS
from .model import Pretrained, check_count, norm_shapes

# 0 to 20 are the residues of `data.residues.LETTERS`; PAD fills a batch, MASK hides a residue.
PAD, MASK = 21, 22
ATOMS = 37
SCALE = 10.0  # angstroms per unit of the structure module


@dataclass(frozen=True)
class FoldingConfig:
    """The part of a configuration that `FoldingModel` reads; the defaults are AlphaFold 2's."""

    num_blocks: int = 48
    pair_dim: int = 128
    passes: int = 4  # through the network
    num_iterations: int = 8  # of the structure module
    structure_dim: int = 384
    structure_heads: int = 12
    structure_head_dim: int = 16
    query_points: int = 4
    value_points: int = 8
    torsion_dim: int = 128
    num_torsion_blocks: int = 2
    num_transitions: int = 1
    structure_dropout: float = 0.1
    lddt_dim: int = 128


class FoldingModel(Pretrained):
    """Base class of models with a trunk of blocks and a structure module."""

    VOCABULARY = ()

    def build_structure(self, pair_dim: int) -> StructureModule:
        """The structure module of the configuration, for pairs of width ``pair_dim``."""
        c = self.config
        module = StructureModule(
            c.num_iterations,
            c.structure_heads,
            c.structure_head_dim,
            c.query_points,
            c.value_points,
            c.torsion_dim,
            c.num_torsion_blocks,
            c.num_transitions,
            c.structure_dropout,
            dtype="float32",
            name="structure",
        )
        module.build((None, None, c.structure_dim), (None, None, None, pair_dim))
        return module

    @property
    def trunk(self) -> list:
        """The blocks of the trunk."""
        return self.blocks

    def place_atoms(self, found: dict, tables: Any) -> dict:
        """Adds ``groups``, frames of rigid groups, and ``positions`` of atoms, in angstroms.

        Args:
            found: the dictionary of the structure module.
            tables: the result of `atom_tables`.
        """
        groups, *atoms = tables
        rotation, translation = found["frames"][-1]
        groups = torsion_frames((rotation, SCALE * translation), found["torsions"][-1], groups)
        return {**found, "groups": groups, "positions": place_atoms(groups, *atoms)}

    def last_iteration(self, found: dict) -> dict:
        """The predictions of the structure module's last iteration, after `place_atoms`."""
        rotation, translation = found["frames"][-1]
        return {
            "positions": found["positions"],
            "frames": (rotation, SCALE * translation),
            "torsions": found["torsions"][-1],
            "states": found["states"][-1],
        }

    @contextlib.contextmanager
    def _chunks(self, rows):
        """Sets how many rows each block's attention computes at once, within a block."""
        before = [block.chunk for block in self.trunk]
        for block in self.trunk:
            block.chunk = rows
        try:
            yield
        finally:
            for block, chunk in zip(self.trunk, before, strict=True):
                block.chunk = chunk

    @property
    def most_heads(self) -> int:
        """The maximum number of heads of the attentions that compute in chunks."""
        raise NotImplementedError

    def _choose_chunk(self, chunk, length):
        """The number of rows computed at once for sequences of a ``length``, or None for all."""
        if chunk == "auto":
            return choose_chunk(self.most_heads, length)
        return None if chunk is None else check_count(chunk, "chunk")


def atom_tables(residues: Any) -> Any:
    """The frames of groups, and the group, position and mask of atoms, of each residue."""
    from ..data import residues as tables

    residues = ops.minimum(residues, PAD - 1)
    arrays = (
        tables.GROUP_ROTATION,
        tables.GROUP_TRANSLATION,
        tables.ATOM14_GROUP,
        tables.ATOM14_POSITION,
        tables.ATOM14_MASK,
    )
    rotation, translation, *others = (ops.take(x, residues, axis=0) for x in arrays)
    return (rotation, translation), *others


def recycle(step: Callable, state: tuple, count: int) -> tuple:
    """Applies ``step`` to a ``state`` of tensors ``count`` times, without gradients."""
    if count == 0:
        return state

    def body(i, *state):
        return i + 1, *step(*state)

    # A loop, so that a graph holds the trunk only twice.
    found = ops.while_loop(lambda i, *_: i < count, body, (0, *state))
    return tuple(map(ops.stop_gradient, found[1:]))


def apply_blocks(blocks: list, x: Any, z: Any, *masks: Any, training: bool | None = None) -> tuple:
    """Applies ``blocks`` in turn to x and z, the features of residues and of pairs.

    The blocks have the same operations. In inference the graph has them once, as a function that is
    called with the weights of each block. With 48 blocks, the first call takes less than half as
    long as with a copy of each.
    """
    first = blocks[0]

    def apply_block(values, *inputs):
        with keras.StatelessScope(zip(first.variables, values, strict=True)):
            return first(*inputs, training=False)

    def signature(block):  # blocks may have other adapters or other types than the first one
        layers = block._flatten_layers()
        kinds = [(x.dtype_policy.name, getattr(x, "alpha", None)) for x in layers]
        return block.chunk, kinds, [(v.shape, v.dtype) for v in block.variables]

    shared, kind = None if training else trace_once(apply_block), signature(first)
    for block in blocks:
        if shared and signature(block) == kind:
            x, z = shared([v.value for v in block.variables], x, z, *masks)
        else:
            x, z = block(x, z, *masks, training=training)
    return x, z


def choose_chunk(heads: int, length: float) -> int | None:
    """The rows whose float32 scores take 128 MB, a power of 2, or None for all."""
    most = int(2**25 // (heads * length**2))
    return None if most >= length else 2 ** max(0, most.bit_length() - 1)


def expected_lddt(logits: Any) -> Any:
    """The pLDDT (...), from 0 to 100, of ``logits`` (..., 50)."""
    middles = (np.arange(LDDT_BINS, dtype="float32") + 0.5) / LDDT_BINS
    return 100 * ops.sum(ops.softmax(logits) * middles, axis=-1)


def aligned_errors(logits: Any, mask: Any) -> tuple[Any, Any]:
    """The predicted aligned errors (B, N, N), and the predicted TM-scores (B,).

    (Jumper et al. 2021, supplement, section 1.9.7.) The scores depend on the residues of the
    sequence only, where ``mask`` (B, N) is 1.
    """
    width, bins = ERRORS
    middles = width * (np.arange(bins, dtype="float32") + 0.5)
    shares = ops.softmax(logits)
    count = ops.sum(mask, axis=1)
    size = 1.24 * (ops.maximum(count, 19) - 15) ** (1 / 3) - 1.8
    close = 1 / (1 + (middles / size[:, None]) ** 2)  # (B, bins)
    terms = ops.sum(shares * close[:, None, None], axis=-1)
    means = ops.sum(terms * mask[:, None], axis=-1) / ops.maximum(count, 1)[:, None]
    return ops.sum(shares * middles, axis=-1), ops.max(means * mask, axis=1)


Shapes = Iterator[tuple[str, tuple[int, ...]]]


def dense_shapes(name: str, x_width: int, width: int, bias: bool = True) -> Shapes:
    yield f"{name}/kernel", (x_width, width)
    if bias:
        yield f"{name}/bias", (width,)


def pair_block_shapes(z: int, split: tuple[int, int]) -> Shapes:
    """The paths and shapes of a `PairBlock` of width ``z``; ``split`` are heads and their size."""
    yield from norm_shapes("pair_norm", z).items()
    yield from dense_shapes("pair_feed_forward/expand", z, 4 * z)
    yield from dense_shapes("pair_feed_forward/contract", 4 * z, z)
    for name in ("outgoing", "incoming"):
        for norm in ("norm", "product_norm"):
            yield from norm_shapes(f"{name}/{norm}", z).items()
        for part in ("left", "left_gate", "right", "right_gate", "gate", "output"):
            yield from dense_shapes(f"{name}/{part}", z, z)
    for name in ("starting", "ending"):
        yield from norm_shapes(f"{name}/norm", z).items()
        for part in ("query", "key", "value", "gate"):
            yield f"{name}/{part}/kernel", (z, *split)
        yield f"{name}/gate/bias", split
        yield f"{name}/pair_bias/kernel", (z, split[0])
        yield f"{name}/output/kernel", (*split, z)
        yield f"{name}/output/bias", (z,)


def structure_shapes(c: Any, pair_dim: int) -> Shapes:
    """The paths and shapes of the weights of a `StructureModule`."""
    d, z, heads, t = c.structure_dim, pair_dim, c.structure_heads, c.torsion_dim
    for name in ("norm", "attention_norm", "transition_norm"):
        yield from norm_shapes(name, d).items()
    yield from norm_shapes("pair_norm", z).items()
    yield from dense_shapes("input", d, d)
    for part in ("query", "key", "value"):
        yield f"attention/{part}/kernel", (d, heads, c.structure_head_dim)
        yield f"attention/{part}/bias", (heads, c.structure_head_dim)
    for part, count in (
        ("point_query", c.query_points),
        ("point_key", c.query_points),
        ("point_value", c.value_points),
    ):
        yield f"attention/{part}/kernel", (d, heads, count, 3)
        yield f"attention/{part}/bias", (heads, count, 3)
    yield from dense_shapes("attention/pair_bias", z, heads)
    yield "attention/point_weight", (heads,)
    inner = heads * (c.structure_head_dim + 4 * c.value_points + z)
    yield from dense_shapes("attention/output", inner, d)
    for i in range(c.num_transitions):
        for place in ("first", "second", "third"):
            yield from dense_shapes(f"transition_{i}_{place}", d, d)
    yield from dense_shapes("backbone", d, 6)
    yield from dense_shapes("torsion_input", d, t)
    yield from dense_shapes("torsion_skip", d, t)
    for i in range(c.num_torsion_blocks):
        for place in ("first", "second"):
            yield from dense_shapes(f"torsion_{i}_{place}", t, t)
    yield from dense_shapes("torsion_output", t, 14)
