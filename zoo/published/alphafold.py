"""AlphaFold 2's parameters (Jumper et al. 2021): files ``params_model_*.npz`` of DeepMind.

A file has no settings; the shapes of its arrays decide the configuration. Arrays are named
``scope//name``, and those of a stack of blocks have the block as their first axis.
"""

from .format import Format

A = "alphafold/alphafold_iteration/"
E, S, F = f"{A}evoformer/", f"{A}structure_module/", f"{A}structure_module/fold_iteration/"
MAIN, EXTRA = f"{E}evoformer_iteration/", f"{E}extra_msa_stack/"


def norm(theirs, ours):
    return (f"{theirs}//scale", "d", f"{ours}/gamma", "d"), (
        f"{theirs}//offset", "d", f"{ours}/beta", "d"
    )  # fmt: skip


def linear(theirs, ours, axes="d e", own="d e", bias="e", own_bias="e"):
    return (f"{theirs}//weights", axes, f"{ours}/kernel", own), (
        f"{theirs}//bias", bias, f"{ours}/bias", own_bias
    )  # fmt: skip


def attention(theirs, ours, shared=False):
    """The rows of gated attention; with ``shared`` keys and values, all heads have the same."""
    one = "d k" if shared else "d h k"
    yield from norm(f"{theirs}/query_norm", f"{ours}/norm")
    for name, axes in (("query", "d h k"), ("key", one), ("value", one)):
        yield f"{theirs}/attention//{name}_w", axes, f"{ours}/{name}/kernel", axes
    yield f"{theirs}/attention//gating_w", "d h k", f"{ours}/gate/kernel", "d h k"
    yield f"{theirs}/attention//gating_b", "h k", f"{ours}/gate/bias", "h k"
    yield f"{theirs}/attention//output_w", "h k d", f"{ours}/output/kernel", "h k d"
    yield f"{theirs}/attention//output_b", "d", f"{ours}/output/bias", "d"


def multiplication(theirs, ours, left="left", right="right"):
    yield from norm(f"{theirs}/layer_norm_input", f"{ours}/norm")
    yield from norm(f"{theirs}/center_layer_norm", f"{ours}/product_norm")
    for name, part in (("left", left), ("right", right)):
        yield from linear(f"{theirs}/{name}_projection", f"{ours}/{part}")
        yield from linear(f"{theirs}/{name}_gate", f"{ours}/{part}_gate")
    yield from linear(f"{theirs}/gating_linear", f"{ours}/gate")
    yield from linear(f"{theirs}/output_projection", f"{ours}/output")


def transition(theirs, before, ours):
    yield from norm(f"{theirs}/input_layer_norm", before)
    yield from linear(f"{theirs}/transition1", f"{ours}/expand")
    yield from linear(f"{theirs}/transition2", f"{ours}/contract")


def block(extra=False):
    """The rows of a block, without those of the stack."""
    row, columns = "msa_row_attention_with_pair_bias", "msa_column_attention"
    yield from attention(row, "row_attention")
    yield from norm(f"{row}/feat_2d_norm", "row_attention/bias_norm")
    yield f"{row}//feat_2d_weights", "c h", "row_attention/pair_bias/kernel", "c h"
    if extra:
        yield from attention("msa_column_global_attention", "column_attention", shared=True)
    else:
        yield from attention(columns, "column_attention")
    yield from transition("msa_transition", "feed_forward_norm", "feed_forward")
    outer = "outer_product_mean"
    yield from norm(f"{outer}/layer_norm_input", "outer_product/norm")
    yield from linear(f"{outer}/left_projection", "outer_product/left")
    yield from linear(f"{outer}/right_projection", "outer_product/right")
    yield f"{outer}//output_w", "c e z", "outer_product/output/kernel", "c e z"
    yield f"{outer}//output_b", "z", "outer_product/output/bias", "z"
    yield from multiplication("triangle_multiplication_outgoing", "outgoing")
    # Of incoming edges, theirs is the sum of left_kj right_ki, and ours of left_ki right_kj.
    yield from multiplication("triangle_multiplication_incoming", "incoming", "right", "left")
    for name in ("starting", "ending"):
        theirs = f"triangle_attention_{name}_node"
        yield from attention(theirs, name)
        yield f"{theirs}//feat_2d_weights", "c h", f"{name}/pair_bias/kernel", "c h"
    yield from transition("pair_transition", "pair_norm", "pair_feed_forward")


def stack(scope, rows, kind, count):
    """The rows of a stack of blocks, whose arrays are joined along a first axis."""
    paths = "|".join(f"{kind}_{i}" for i in range(count))
    for theirs, axes, ours, own in rows:
        if count == 1:
            yield f"{scope}{theirs}", f"1 {axes}", f"{paths}/{ours}", own
        else:
            yield f"{scope}{theirs}", f"n {axes}", f"{{{paths}}}/{ours}", own


def split(theirs, ours, axes, own, own_bias):
    """The rows of a kernel whose output has several axes of ours."""
    bias = axes.split(" ", 1)[1]
    return linear(theirs, ours, axes, own, bias, own_bias)


P = f"{F}invariant_point_attention"
ROWS = (
    *linear(f"{E}preprocess_1d", "target"),
    *linear(f"{E}preprocess_msa", "msa"),
    *linear(f"{E}left_single", "left"),
    *linear(f"{E}right_single", "right"),
    *linear(f"{E}prev_pos_linear", "recycled_distances"),
    *norm(f"{E}prev_msa_first_row_norm", "recycled_norm"),
    *norm(f"{E}prev_pair_norm", "recycled_pair_norm"),
    *linear(f"{E}pair_activiations", "positions"),
    *linear(f"{E}extra_msa_activations", "extra_msa"),
    *linear(f"{E}single_activations", "structure_input"),
    *norm(f"{S}single_layer_norm", "structure/norm"),
    *norm(f"{S}pair_layer_norm", "structure/pair_norm"),
    *linear(f"{S}initial_projection", "structure/input"),
    *split(f"{P}/q_scalar", "structure/attention/query", "d (h k)", "d h k", "h k"),
    *split(f"{P}/kv_scalar", "structure/attention/{key|value}", "d (h n k)", "d h k", "h k"),
    *split(
        f"{P}/q_point_local", "structure/attention/point_query", "d (x h p)", "d h p x", "h p x"
    ),
    *split(
        f"{P}/kv_point_local",
        "structure/attention/{point_key|point_value}",
        "d (x h n p)",
        "d h p x",
        "h p x",
    ),
    *linear(f"{P}/attention_2d", "structure/attention/pair_bias"),
    (f"{P}//trainable_point_weights", "h", "structure/attention/point_weight", "h"),
    *linear(f"{P}/output_projection", "structure/attention/output"),
    *norm(f"{F}attention_layer_norm", "structure/attention_norm"),
    *linear(f"{F}transition", "structure/transition_0_first"),
    *linear(f"{F}transition_1", "structure/transition_0_second"),
    *linear(f"{F}transition_2", "structure/transition_0_third"),
    *norm(f"{F}transition_layer_norm", "structure/transition_norm"),
    *linear(f"{F}affine_update", "structure/backbone"),
    *linear(f"{F}rigid_sidechain/input_projection", "structure/torsion_input"),
    *linear(f"{F}rigid_sidechain/input_projection_1", "structure/torsion_skip"),
    *linear(f"{F}rigid_sidechain/resblock1", "structure/torsion_0_first"),
    *linear(f"{F}rigid_sidechain/resblock2", "structure/torsion_0_second"),
    *linear(f"{F}rigid_sidechain/resblock1_1", "structure/torsion_1_first"),
    *linear(f"{F}rigid_sidechain/resblock2_1", "structure/torsion_1_second"),
    *linear(f"{F}rigid_sidechain/unnormalized_angles", "structure/torsion_output"),
    *linear(f"{A}distogram_head/half_logits", "distances"),
    *linear(f"{A}masked_msa_head/logits", "residue_head"),
    *linear(f"{A}experimentally_resolved_head/logits", "resolved"),
    *linear(f"{A}predicted_aligned_error_head/logits", "errors"),
    *norm(f"{A}predicted_lddt_head/input_layer_norm", "lddt_norm"),
    *linear(f"{A}predicted_lddt_head/act_0", "lddt_first"),
    *linear(f"{A}predicted_lddt_head/act_1", "lddt_second"),
    *linear(f"{A}predicted_lddt_head/logits", "lddt_output"),
)


def rows(config, _):
    yield from ROWS
    yield from stack(MAIN, block(), "block", config.num_blocks)
    yield from stack(EXTRA, block(extra=True), "extra_block", config.num_extra_blocks)


# Fields of our configuration, an array, and the axis of it that has their size.
SIZES = (
    ("dim", f"{E}preprocess_msa//weights", 1),
    ("extra_dim", f"{E}extra_msa_activations//weights", 1),
    ("pair_dim", f"{E}left_single//weights", 1),
    ("structure_dim", f"{E}single_activations//weights", 1),
    ("num_blocks", f"{MAIN}msa_row_attention_with_pair_bias/attention//query_w", 0),
    ("num_extra_blocks", f"{EXTRA}msa_row_attention_with_pair_bias/attention//query_w", 0),
    ("num_heads", f"{MAIN}msa_row_attention_with_pair_bias/attention//query_w", 2),
    ("num_pair_heads", f"{MAIN}triangle_attention_starting_node/attention//query_w", 2),
    ("outer_dim", f"{MAIN}outer_product_mean//output_w", 1),
    ("structure_heads", f"{P}//trainable_point_weights", 0),
    ("torsion_dim", f"{F}rigid_sidechain/input_projection//weights", 1),
    ("lddt_dim", f"{A}predicted_lddt_head/act_0//weights", 1),
)


def infer(shape):
    """The fields that arrays decide; ``shape`` is a function of a name, None if there is none."""
    found = {}
    for field, name, axis in SIZES:
        if (sizes := shape(name)) is not None and len(sizes) > axis:
            found[field] = sizes[axis]
    found["aligned_errors"] = shape(f"{A}predicted_aligned_error_head/logits//weights") is not None
    return found


FORMAT = Format(
    None, rows, infer=infer,
    refused=(
        (f"{E}template", "of templates"),
        (f"{E}~_|{E}preprocess_msa_multimer", "of a multimer"),
    ),
)  # fmt: skip
