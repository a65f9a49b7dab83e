"""GPT-2's checkpoints (Radford et al. 2019), as Hugging Face reads and writes them."""

import re

import numpy as np

from ..training import CheckpointError
from .decoding import Sampling, Search
from .gpt import GPTConfig
from .published import NEUTRAL, ends, named, published_name

# The name of a tensor, from the path of the variable that it belongs to.
RULES = (
    (r"^block_(\d+)/", r"transformer.h.\1."),
    (r"attention_norm/", "ln_1."),
    (r"feed_forward_norm/", "ln_2."),
    (r"attention/output/", "attn.c_proj."),
    (r"attention/(query|key|value)/", r"attn.c_attn.\1."),
    (r"feed_forward/expand/", "mlp.c_fc."),
    (r"feed_forward/contract/", "mlp.c_proj."),
    (r"^norm/", "transformer.ln_f."),
    (r"^tokens/embeddings$", "transformer.wte.weight"),
    (r"^positions/embeddings$", "transformer.wpe.weight"),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
)
LINEAR = False  # weights are those of convolutions of width 1, (in, out)
BESIDE = "generation_config.json"  # is read with config.json
PARTS = ("query", "key", "value")  # thirds of c_attn

ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh",
}  # fmt: skip
# Settings that have one value here.
FIXED = {"model_type": "gpt2", "add_cross_attention": False, "tie_word_embeddings": True}


def rules(config):
    return RULES


def redundant(config, tensors):
    return {"lm_head.weight": tensors["transformer.wte.weight"]}


def unpacked(settings, config, tensors, source):
    """``tensors`` with the thirds of each c_attn apart, and names that begin with transformer.

    Where scores are scaled otherwise than by 1 / sqrt(K), as `settings` say, queries are.
    """
    arrays = {}
    for name, array in tensors.items():
        if not name.startswith(("transformer.", "lm_head.")):
            name = f"transformer.{name}"
        if re.fullmatch(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", name):
            continue  # the causal mask, which older versions saved
        attention = re.fullmatch(r"(transformer\.h\.(\d+)\.attn\.c_attn)\.(weight|bias)", name)
        if attention is None:
            arrays[name] = array
            continue
        if array.ndim == 0 or array.shape[-1] % 3:
            raise CheckpointError(f"{source}: {name} has shape {array.shape}, not three thirds")
        prefix, layer, kind = attention.groups()
        query, key, value = np.split(array, 3, axis=-1)
        if settings.values.get("scale_attn_by_inverse_layer_idx"):
            query = query / (int(layer) + 1)
        if not settings.values.get("scale_attn_weights", True):
            query = query * (config.dim // config.num_heads) ** 0.5
        for part, third in zip(PARTS, (query, key, value), strict=True):
            arrays[f"{prefix}.{part}.{kind}"] = third
    return arrays


def read_config(s, g):
    """The `GPTConfig` of the `Settings` of config.json and generation_config.json.

    Raises:
        CheckpointError: naming a setting that is missing, unknown, or not honoured.
    """
    for name, value in FIXED.items():
        s.must(name, value)
    for name in ("scale_attn_by_inverse_layer_idx", "scale_attn_weights"):
        s.flag(name, False)
    activation = s.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise s.error("activation_function", activation, f"one of {sorted(ACTIVATIONS)}")
    context = s.get("n_positions", 1024)
    s.must("n_ctx", context)
    dropout = s.get("resid_pdrop", 0.1)
    s.must("embd_pdrop", dropout)
    end, *stops = ends(s, 50256)
    config = GPTConfig(
        vocab_size=s.get("vocab_size", 50257),
        max_length=context,
        num_layers=s.get("n_layer", 12),
        dim=s.get("n_embd", 768),
        hidden_dim=s.get("n_inner", None),
        num_heads=s.get("n_head", 12),
        dropout=dropout,
        attention_dropout=s.get("attn_pdrop", 0.1),
        activation=ACTIVATIONS[activation],
        epsilon=s.get("layer_norm_epsilon", 1e-5),
        end_id=end,
        **read_generation(g, end, stops),
    )
    # What says nothing of the logits; in float32 upcasting changes nothing.
    s.ignore(
        "architectures", "bos_token_id", "dtype", "gradient_checkpointing", "id2label",
        "initializer_range", "label2id", "pad_token_id", "reorder_and_upcast_attn",
        "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
        "summary_use_proj", "task_specific_params", "tokenizer_class", "torch_dtype",
        "transformers_version", "use_cache", "_name_or_path", "_num_labels", "output_past",
    )  # fmt: skip
    s.all_read()
    return config


def read_generation(g, end, stops):
    """The `Search` and the `Sampling` of a ``generation_config.json``.

    Beside ``end``, the tokens ``stops`` of config.json, or those given there, end a sequence.
    """
    for name, value in NEUTRAL.items():
        g.must(name, value)
    g.ignore(
        "_from_model_config", "bos_token_id", "output_attentions", "output_hidden_states",
        "output_scores", "pad_token_id", "return_dict_in_generate", "transformers_version",
        "use_cache",
    )  # fmt: skip
    drawn = g.flag("do_sample", False)
    filters = {
        "temperature": g.get("temperature", 1.0),
        "top_k": g.get("top_k", 50),
        "top_p": g.get("top_p", None),
        "min_p": g.get("min_p", None),
    }
    longest = g.get("max_length", 100)  # with the prompt, there
    with named(g.file):
        search = dict(
            beams=g.get("num_beams", 1),
            alpha=g.get("length_penalty", 1.0),
            early_stopping=g.get("early_stopping", False),
            max_tokens=g.get("max_new_tokens", longest),
            banned=[tokens for tokens in g.get("bad_words_ids", []) if tokens != [end]],
            renormalized=g.get("renormalize_logits", False),
            stop_tokens=[token for token in ends(g, [end, *stops]) if token != end],
        )
        penalty = g.get("repetition_penalty", 1.0)
        g.all_read()
        sampling = filters if drawn else {"temperature": 0}
        sampling = Sampling(**sampling, repetition_penalty=penalty)
        return {"search": Search(**search), "sampling": sampling}


def written(config, weights):
    """A checkpoint for Hugging Face: files of JSON and of tensors, by name.

    ``weights`` are arrays by path. What generation needs, `generate` there must be told.

    Raises:
        ValueError: naming a setting that GPT-2 has no word for.
    """
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if config.activation not in activations:
        raise ValueError(f"GPT-2 has activations {sorted(activations)}: {config.activation!r}")
    tensors, thirds = {}, {}
    for path, array in weights.items():
        name = published_name(path, RULES)
        if path.endswith("output/kernel"):
            array = array.reshape(-1, array.shape[-1])
        elif path.endswith("kernel"):
            array = array.reshape(len(array), -1)
        else:
            array = array.reshape(-1) if path.endswith("bias") else array
        part = re.fullmatch(r"(.*c_attn)\.(query|key|value)\.(weight|bias)", name)
        if part is None:
            tensors[name] = array
        else:
            thirds.setdefault(f"{part[1]}.{part[3]}", {})[part[2]] = array
    for name, parts in thirds.items():
        tensors[name] = np.concatenate([parts[part] for part in PARTS], axis=-1)
    settings = {
        **FIXED,
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.max_length,
        "n_layer": config.num_layers,
        "n_embd": config.dim,
        "n_inner": config.hidden_dim,
        "n_head": config.num_heads,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "activation_function": activations[config.activation],
        "layer_norm_epsilon": config.epsilon,
        "bos_token_id": config.end_id,
        "eos_token_id": config.end_id,
    }
    return {"config.json": settings, "model.safetensors": tensors}
