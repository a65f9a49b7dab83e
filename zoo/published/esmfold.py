"""ESMFold's checkpoints (Lin et al. 2022) in Hugging Face's format."""

import dataclasses

import numpy as np

from . import esm
from .format import Format
from .settings import nested, write_settings
from .table import QKV, dense, norm

T, M = "trunk.blocks.{i}.", "trunk.structure_module."
B, S = "block_{i}/", "structure/"


def mlp(theirs, before, ours):
    """The rows of a normalization and a feed-forward network."""
    return (
        *norm(f"{theirs}.0", before),
        *dense(f"{theirs}.1", "f d", f"{ours}/expand", "d f"),
        *dense(f"{theirs}.3", "d f", f"{ours}/contract", "f d"),
    )


def multiplication(theirs, ours):
    parts = dict(a_p="left", a_g="left_gate", b_p="right", b_g="right_gate", g="gate", z="output")
    yield from norm(f"{theirs}.layer_norm_in", f"{ours}/norm")
    yield from norm(f"{theirs}.layer_norm_out", f"{ours}/product_norm")
    for name, part in parts.items():
        yield from dense(f"{theirs}.linear_{name}", "e d", f"{ours}/{part}", "d e")


def attention(theirs, ours):
    yield from norm(f"{theirs}.layer_norm", f"{ours}/norm")
    yield f"{theirs}.linear.weight", "h c", f"{ours}/pair_bias/kernel", "c h"
    for name, part in dict(q="query", k="key", v="value", g="gate").items():
        yield from dense(f"{theirs}.mha.linear_{name}", "(h k) c", f"{ours}/{part}", "c h k")
    yield from dense(f"{theirs}.mha.linear_o", "c (h k)", f"{ours}/output", "h k c")


def points(theirs, axes, ours):
    yield f"{theirs}.weight", f"({axes}) d", f"{ours}/kernel", "d h p x"
    yield f"{theirs}.bias", f"({axes})", f"{ours}/bias", "h p x"


def linear(theirs, ours):
    return dense(theirs, "e d", ours, "d e")


ROWS = (
    *((theirs, axes, f"esm/{ours}", own) for theirs, axes, ours, own, *_ in esm.ROWS),
    ("esm_s_combine", "l", "mixture/scores", "l"),
    *norm("esm_s_mlp.0", "language_norm"),
    *linear("esm_s_mlp.1", "language_first"),
    *linear("esm_s_mlp.3", "language_second"),
    ("embedding.weight", "v d", "residues/embeddings", "v d"),
    ("trunk.pairwise_positional_embedding.embedding.weight", "v d", "positions/embeddings", "v d"),
    *norm(f"{T}layernorm_1", f"{B}attention_norm"),
    # Unlike in other models, the queries, keys and values of a head are next to each other.
    (f"{T}seq_attention.proj.weight", "(h n k) d", f"{B}attention/{QKV}/kernel", "d h k"),
    *dense(f"{T}seq_attention.g_proj", "(h k) d", f"{B}attention/gate", "d h k"),
    *dense(f"{T}seq_attention.o_proj", "d (h k)", f"{B}attention/output", "h k d"),
    *norm(f"{T}pair_to_sequence.layernorm", f"{B}bias_norm"),
    (f"{T}pair_to_sequence.linear.weight", "h c", f"{B}bias/kernel", "c h"),
    *norm(f"{T}sequence_to_pair.layernorm", f"{B}product_norm"),
    *linear(f"{T}sequence_to_pair.proj", f"{B}product"),
    *linear(f"{T}sequence_to_pair.o_proj", f"{B}product_output"),
    *mlp(f"{T}mlp_seq.mlp", f"{B}feed_forward_norm", f"{B}feed_forward"),
    *mlp(f"{T}mlp_pair.mlp", f"{B}pair_norm", f"{B}pair_feed_forward"),
    *multiplication(f"{T}tri_mul_out", f"{B}outgoing"),
    *multiplication(f"{T}tri_mul_in", f"{B}incoming"),
    *attention(f"{T}tri_att_start", f"{B}starting"),
    *attention(f"{T}tri_att_end", f"{B}ending"),
    *norm("trunk.recycle_s_norm", "recycled_norm"),
    *norm("trunk.recycle_z_norm", "recycled_pair_norm"),
    ("trunk.recycle_disto.weight", "v d", "recycled_distances/embeddings", "v d"),
    *linear("trunk.trunk2sm_s", "structure_input"),
    *linear("trunk.trunk2sm_z", "structure_pair_input"),
    *norm(f"{M}layer_norm_s", f"{S}norm"),
    *norm(f"{M}layer_norm_z", f"{S}pair_norm"),
    *linear(f"{M}linear_in", f"{S}input"),
    *dense(f"{M}ipa.linear_q", "(h k) d", f"{S}attention/query", "d h k"),
    *dense(f"{M}ipa.linear_kv", "(h n k) d", S + "attention/{key|value}", "d h k"),
    *points(f"{M}ipa.linear_q_points", "x h p", f"{S}attention/point_query"),
    *points(f"{M}ipa.linear_kv_points", "x h n p", S + "attention/{point_key|point_value}"),
    *dense(f"{M}ipa.linear_b", "h c", f"{S}attention/pair_bias", "c h"),
    (f"{M}ipa.head_weights", "h", f"{S}attention/point_weight", "h"),
    *linear(f"{M}ipa.linear_out", f"{S}attention/output"),
    *norm(f"{M}layer_norm_ipa", f"{S}attention_norm"),
    *norm(f"{M}transition.layer_norm", f"{S}transition_norm"),
    *linear(f"{M}bb_update.linear", f"{S}backbone"),
    *linear(f"{M}angle_resnet.linear_in", f"{S}torsion_input"),
    *linear(f"{M}angle_resnet.linear_initial", f"{S}torsion_skip"),
    *linear(f"{M}angle_resnet.linear_out", f"{S}torsion_output"),
    *linear("distogram_head", "distances"),
    *linear("ptm_head", "errors"),
    *linear("lm_head", "residue_head"),
    *norm("lddt_head.0", "lddt_norm"),
    *linear("lddt_head.1", "lddt_first"),
    *linear("lddt_head.2", "lddt_second"),
    *linear("lddt_head.3", "lddt_output"),
)  # fmt: skip
PLACES = ("first", "second", "third")
FOLD = (
    ("embed_aa", "embed_residues", True),
    ("lddt_head_hid_dim", "lddt_dim", 128),
)
TRUNK = (
    ("num_blocks", "num_blocks", 48),
    ("sequence_state_dim", "dim", 1024),
    ("pairwise_state_dim", "pair_dim", 128),
    ("sequence_head_width", "head_dim", 32),
    ("pairwise_head_width", "pair_head_dim", 32),
    ("position_bins", "position_bins", 32),
    ("dropout", "dropout", 0.0),
    ("max_recycles", "passes", 4),
)
STRUCTURE = (
    ("num_blocks", "num_iterations", 8),
    ("sequence_dim", "structure_dim", 384),
    ("pairwise_dim", "structure_pair_dim", 128),
    ("num_heads_ipa", "structure_heads", 12),
    ("ipa_dim", "structure_head_dim", 16),
    ("num_qk_points", "query_points", 4),
    ("num_v_points", "value_points", 8),
    ("resnet_dim", "torsion_dim", 128),
    ("num_resnet_blocks", "num_torsion_blocks", 2),
    ("num_transition_layers", "num_transitions", 1),
    ("dropout_rate", "structure_dropout", 0.1),
)
# What the network always is; and what does not change its predictions.
FOLD_FIXED = {
    "bypass_lm": False, "use_esm_attn_map": False, "esm_ablate_pairwise": False,
    "esm_ablate_sequence": False, "esm_input_dropout": 0.0,
}  # fmt: skip
STRUCTURE_FIXED = {"trans_scale_factor": 10, "num_angles": 7, "epsilon": 1e-8, "inf": 1e5}
FOLD_UNUSED = ("esm_type", "fp16_esm", "is_encoder_decoder", "model_type")
TRUNK_UNUSED = ("chunk_size", "cpu_grad_checkpoint", "is_encoder_decoder", "model_type")
STRUCTURE_UNUSED = ("is_encoder_decoder", "model_type")


def rows(config, settings):
    c = config
    yield from ROWS
    for i in range(c.num_transitions):
        for j, place in enumerate(PLACES, 1):
            yield from linear(f"{M}transition.layers.{i}.linear_{j}", f"{S}transition_{i}_{place}")
    for i in range(c.num_torsion_blocks):
        for j, place in enumerate(PLACES[:2], 1):
            yield from linear(f"{M}angle_resnet.layers.{i}.linear_{j}", f"{S}torsion_{i}_{place}")


def order():
    """The tokens of padding and of each residue."""
    from ...data.residues import ESM_TOKENS, TOKEN

    return np.array([ESM_TOKENS.index("<pad>"), *TOKEN])


def copies(config):
    expected = {"af2_to_esm": lambda shape: order() if shape == (22,) else None}
    return esm.copies(config.esm) | expected


def vocabulary():
    from ...data.residues import ESM_TOKENS

    return list(ESM_TOKENS)


def read(s, _, fields):
    inner = s.read(esm.SETTINGS)
    esm.check_positions(s)
    s.must("vocab_list", vocabulary())
    fold = nested(s, "esmfold_config")
    trunk = nested(fold, "trunk")
    structure = nested(trunk, "structure_module")
    found = fold.read(FOLD) | trunk.read(TRUNK) | structure.read(STRUCTURE)
    fold.fixed(FOLD_FIXED)
    trunk.must("layer_drop", 0.0)
    structure.fixed(STRUCTURE_FIXED)
    structure.finish(*STRUCTURE_UNUSED)
    trunk.finish(*TRUNK_UNUSED)
    fold.finish(*FOLD_UNUSED)
    return {"esm": {**inner, "head": None}, **found}


def write(config):
    c = config
    if c.esm.activation != "gelu":
        raise ValueError(f"activation must be 'gelu' in this format: {c.esm.activation!r}")
    structure = write_settings(STRUCTURE, c) | STRUCTURE_FIXED
    trunk = write_settings(TRUNK, c) | {"chunk_size": None, "structure_module": structure}
    fold = write_settings(FOLD, c) | FOLD_FIXED | {"fp16_esm": False, "trunk": trunk}
    return (
        write_settings(esm.SETTINGS, c.esm)
        | esm.POSITIONS
        | {
            "architectures": ["EsmForProteinFolding"],
            "vocab_list": vocabulary(),
            "esmfold_config": fold,
        }
    )


FORMAT = Format(
    "huggingface", rows, read=read, write=write, copies=copies,
    fixed={**esm.FIXED, "is_folding_model": True},
    older={"hidden_act": "gelu"},
    constants=lambda c: {**esm.constants(c.esm), "af2_to_esm": order()},
    adjust=lambda c, stored: dataclasses.replace(c, esm=esm.adjust(c.esm, stored)),
    renamed=esm.FORMAT.renamed[1:],
    ignored=esm.IGNORED,
    optional=esm.OPTIONAL,
)  # fmt: skip
