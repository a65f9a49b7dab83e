"""GPT-2's checkpoints (Radford et al. 2019) in Hugging Face's format."""

from .format import Format
from .generation import GENERATION, read_generation, write_generation
from .settings import ACTIVATIONS, read_ends
from .table import QKV, dense, norm

H, B = "transformer.h.{i}.", "block_{i}/"
FUSED = (H + "attn.c_attn", "d (n h k)", f"{B}attention/{QKV}", "d h k")
TENSORS = (
    ("transformer.wte.weight", "v d", "tokens/embeddings", "v d"),
    ("transformer.wpe.weight", "t d", "positions/embeddings", "t d"),
    *norm(H + "ln_1", B + "attention_norm"),
    *dense(H + "attn.c_proj", "(h k) d", B + "attention/output", "h k d", out=1),
    *norm(H + "ln_2", B + "feed_forward_norm"),
    *dense(H + "mlp.c_fc", "d f", B + "feed_forward/expand", "d f", out=1),
    *dense(H + "mlp.c_proj", "f d", B + "feed_forward/contract", "f d", out=1),
    *norm("transformer.ln_f", "norm"),
    ("lm_head.weight", "v d", "head/kernel", "d v"),
)
SETTINGS = (
    ("vocab_size", "vocab_size", 50257),
    ("n_positions", "max_length", 1024),
    ("n_layer", "num_layers", 12),
    ("n_embd", "dim", 768),
    ("n_inner", "intermediate_dim", None),
    ("n_head", "num_heads", 12),
    ("resid_pdrop", "dropout", 0.1),
    ("attn_pdrop", "attention_dropout", 0.1),
    ("activation_function", "activation", "gelu_new", ACTIVATIONS),
    ("layer_norm_epsilon", "epsilon", 1e-5),
    ("tie_word_embeddings", "tied", True),
)
UNUSED = (  # reorder_and_upcast_attn has no effect in float32
    "is_decoder", "n_ctx", "reorder_and_upcast_attn", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
)  # fmt: skip
SCALES = (("scale_attn_by_inverse_layer_idx", False), ("scale_attn_weights", True))


def rows(config, settings):
    """The table; the query's weights are scaled if the attention scale is not 1 / sqrt(K)."""
    by_layer, by_width = (settings.get(*scale) if settings else scale[1] for scale in SCALES)

    def scaled(array, path):
        if "/query/" not in path:
            return array
        array = array / (int(path.split("/")[0].split("_")[1]) + 1) if by_layer else array
        return array if by_width else array * (config.dim // config.num_heads) ** 0.5

    return *TENSORS, *dense(*FUSED, scaled, out=1)


def read(s, g, fields):
    for name, default in SCALES:
        s.flag(name, default)
    s.rate("embd_pdrop", fields["dropout"])
    ends = read_ends(s, 50256)
    return {"end_id": ends[0], **read_generation(s, g, ends)}


def write(config):
    ends = {"bos_token_id": config.end_id, "eos_token_id": config.end_id}
    return ends | {"embd_pdrop": config.dropout, "architectures": ["GPT2LMHeadModel"]}


FORMAT = Format(
    "huggingface", rows, SETTINGS, read=read, write=write, unused=UNUSED, beside=GENERATION,
    fixed={"model_type": "gpt2", "add_cross_attention": False, "is_encoder_decoder": False},
    others=lambda config: {GENERATION: write_generation(config)},
    renamed=((r"^(?!transformer\.|lm_head\.)", "transformer."),),
    ignored=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)$",  # a causal mask, of older versions
    refused=((r"transformer\.(score|multiple_choice_head)\.", "a classification head"),),
    head=("lm_head.weight", "transformer.wte.weight"),
)  # fmt: skip
