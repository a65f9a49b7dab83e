"""Checks of the exercises: one function per exercise.

    print(checks.attention(my_attention))

A check calls your function with small inputs and compares its results with NumPy's. It returns
"right", "not done yet" (the function returned None), or a hint that says what is wrong. Your
function gets NumPy arrays; it may return NumPy arrays, tensors, numbers or lists. Many hints are
for mistakes that were made in public code; `tests/learn/test_checks.py` has them.

B batch, T and S lengths, D width, H heads, K head size, V vocabulary, as in the library.
"""

from .exercise import NOT_DONE, RIGHT
from .part_1 import (
    attention,
    block_flops,
    cross_attention,
    dot_variance,
    lookup,
    multi_head,
    packed_mask,
    sliding_window,
    softmax_jacobian,
    weights_bytes,
)
from .part_2 import (
    alibi,
    halves_order,
    layer_norm,
    layer_norm_gradient,
    pre_norm_block,
    rotary,
    shift_matrix,
    sinusoids,
)
from .part_3 import (
    beam_step,
    block_parameters,
    brevity_penalty,
    clipped_precision,
    smoothed_loss,
    warmup_rate,
)
from .part_4 import (
    best_span,
    bits_per_byte,
    cache_bytes,
    contact_scores,
    fape,
    patches,
    rollout,
    rouge_1,
    top_p,
    triangle_product,
)
from .part_5 import global_mean, lora, lora_parameters

__all__ = [
    "NOT_DONE",
    "RIGHT",
    "alibi",
    "attention",
    "beam_step",
    "best_span",
    "bits_per_byte",
    "block_flops",
    "block_parameters",
    "brevity_penalty",
    "cache_bytes",
    "clipped_precision",
    "contact_scores",
    "cross_attention",
    "dot_variance",
    "fape",
    "global_mean",
    "halves_order",
    "layer_norm",
    "layer_norm_gradient",
    "lookup",
    "lora",
    "lora_parameters",
    "multi_head",
    "packed_mask",
    "patches",
    "pre_norm_block",
    "rollout",
    "rotary",
    "rouge_1",
    "shift_matrix",
    "sinusoids",
    "sliding_window",
    "smoothed_loss",
    "softmax_jacobian",
    "top_p",
    "triangle_product",
    "warmup_rate",
    "weights_bytes",
]
