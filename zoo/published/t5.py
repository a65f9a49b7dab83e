"""T5's checkpoints (Raffel et al. 2019), 1.0, 1.1 and Flan, in Hugging Face's format."""

from .format import Format
from .generation import GENERATION, read_generation, write_generation
from .settings import REQUIRED, read_ends, write_ends
from .table import QKV

SETTINGS = (
    ("vocab_size", "vocab_size", REQUIRED),
    ("d_model", "dim", REQUIRED),
    ("d_kv", "head_dim", REQUIRED),
    ("d_ff", "intermediate_dim", REQUIRED),
    ("num_layers", "num_layers", REQUIRED),
    ("num_heads", "num_heads", REQUIRED),
    ("n_positions", "max_length", 512),
    ("relative_attention_num_buckets", "num_buckets", 32),
    ("relative_attention_max_distance", "max_distance", 128),
    ("dropout_rate", "dropout", 0.1),
    ("layer_norm_epsilon", "epsilon", 1e-6),
    ("pad_token_id", "pad_id", 0),
    ("decoder_start_token_id", "start_id", 0),
)
# The activation by ``feed_forward_proj``; "gelu" within a gated network is the tanh approximation.
ACTIVATIONS = {
    "relu": ("relu", False), "gelu": ("gelu", False), "silu": ("silu", False),
    "gelu_new": ("gelu_tanh", False), "gated-gelu": ("gelu_tanh", True),
    "gated-gelu_new": ("gelu_tanh", True), "gated-silu": ("silu", True),
    "gated-relu": ("relu", True),
}  # fmt: skip
WORDS, HEAD = "shared.weight", "lm_head.weight"
MAPS = "DenseReluDense"
TASK = "task_specific_params"
SUMMARIES = "summarization"  # its parameters, of which we read the prefix


def layer(theirs, ours, number, kind, name):
    place = f"{theirs}layer.{number}."
    yield f"{place}layer_norm.weight", "d", f"{ours}{name}_norm/gamma", "d"
    if kind != MAPS:
        yield f"{place}{kind}.{{q|k|v}}.weight", "(h k) d", f"{ours}{name}/{QKV}/kernel", "d h k"
        yield f"{place}{kind}.o.weight", "d (h k)", f"{ours}{name}/output/kernel", "h k d"


def side(name, gated):
    theirs, ours = f"{name}.block.{{i}}.", f"{name}_{{i}}/"
    crossed = name == "decoder"
    yield from layer(theirs, ours, 0, "SelfAttention", "attention")
    if crossed:
        yield from layer(theirs, ours, 1, "EncDecAttention", "cross_attention")
    yield from layer(theirs, ours, 1 + crossed, MAPS, "feed_forward")
    maps, into = f"{theirs}layer.{1 + crossed}.{MAPS}.", f"{ours}feed_forward/"
    first = ("wi_{0|1}", "{gate|expand}") if gated else ("wi", "expand")
    yield f"{maps}{first[0]}.weight", "f d", f"{into}{first[1]}/kernel", "d f"
    yield f"{maps}wo.weight", "d f", f"{into}contract/kernel", "f d"
    bias = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield bias, "b h", f"{name}_bias/embeddings", "b h"
    yield f"{name}.final_layer_norm.weight", "d", f"{name}_norm/gamma", "d"


def rows(config, settings):
    return (
        (WORDS, "v d", "tokens/embeddings", "v d"), (HEAD, "v d", "head/embeddings", "v d"),
        *side("encoder", config.gated), *side("decoder", config.gated),
    )  # fmt: skip


def read(s, g, fields):
    kind = s.get("feed_forward_proj", "relu")
    if kind not in list(ACTIVATIONS):
        raise s.error("feed_forward_proj", kind, f"one of {sorted(ACTIVATIONS)}")
    activation, gated = ACTIVATIONS[kind]
    s.must("is_gated_act", gated)
    s.must("dense_act_fn", "gelu_new" if kind == "gated-gelu" else kind.split("-")[-1])
    # T5 1.1 says "not tied" where it means "not scaled"; what is tied, the tensors say.
    scaled = s.flag("scale_decoder_outputs", s.flag("tie_word_embeddings", True))
    layers, ends = s.get("num_decoder_layers", None), read_ends(s, [1])
    tasks = s.get(TASK, {})
    found = tasks.get(SUMMARIES, {}) if isinstance(tasks, dict) else None
    if not isinstance(found, dict):
        raise s.error(TASK, tasks, "settings by task")
    return {
        "activation": activation, "gated": gated, "scale_logits": scaled, "end_id": ends[0],
        "decoder_layers": None if layers == fields["num_layers"] else layers,
        "prefix": found.get("prefix", "summarize: "),
        "search": read_generation(s, g, ends, fields["start_id"])["search"],
    }  # fmt: skip


def write(config):
    kinds = {pair: name for name, pair in reversed(ACTIVATIONS.items())}
    if (kind := kinds.get((config.activation, config.gated))) is None:
        raise ValueError(f"activation cannot be {config.activation!r} in this format")
    return {
        "architectures": ["T5ForConditionalGeneration"], "feed_forward_proj": kind,
        "is_gated_act": config.gated, "eos_token_id": write_ends(config),
        "num_decoder_layers": config.decoder_layers or config.num_layers,
        # Version 4 of Hugging Face's library reads only the first, version 5 both.
        "tie_word_embeddings": config.scale_logits, "scale_decoder_outputs": config.scale_logits,
        TASK: {SUMMARIES: {"prefix": config.prefix}},
    }  # fmt: skip


FORMAT = Format(
    "huggingface", rows, SETTINGS, read=read, write=write, beside=GENERATION,
    fixed={"model_type": "t5", "is_encoder_decoder": True},
    older={"is_decoder": False},
    unused=("initializer_factor", "classifier_dropout", TASK),
    others=lambda config: {GENERATION: write_generation(config, config.start_id)},
    copies=lambda config: {f"{x}.embed_tokens.weight": WORDS for x in ("encoder", "decoder")},
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    head=(HEAD, WORDS),
)  # fmt: skip
