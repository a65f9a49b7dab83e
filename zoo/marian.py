"""Marian's translation models (Junczys-Dowmunt et al. 2018), as Hugging Face saves them."""

import numpy as np

from .decoding import Search
from .published import NEUTRAL, ends, named
from .transformer import TransformerConfig

# The name of a tensor, from the path of the variable that it belongs to.
RULES = (
    (r"^(encoder|decoder)_(\d+)/", r"model.\1.layers.\2."),
    (r"cross_attention_norm/", "encoder_attn_layer_norm."),
    (r"attention_norm/", "self_attn_layer_norm."),
    (r"feed_forward_norm/", "final_layer_norm."),
    (r"cross_attention/", "encoder_attn."),
    (r"attention/", "self_attn."),
    (r"(query|key|value)/", lambda match: f"{match[1][0]}_proj."),
    (r"output/", "out_proj."),
    (r"feed_forward/expand/", "fc1."),
    (r"feed_forward/contract/", "fc2."),
    (r"(kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
    (r"^tokens/bias$", "final_logits_bias"),
)
SHARED = ((r"^tokens/embeddings$", "model.shared.weight"),)
SEPARATE = (
    (r"^tokens/embeddings$", "model.decoder.embed_tokens.weight"),
    (r"^source_tokens/embeddings$", "model.encoder.embed_tokens.weight"),
)
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu", "tanh": "tanh"}


# Settings that have one value here; those of the last two lines older versions wrote.
FIXED = {
    "model_type": "marian", "is_encoder_decoder": True, "is_decoder": False,
    "tie_word_embeddings": True, "activation_dropout": 0, "attention_dropout": 0,
    "encoder_layerdrop": 0, "decoder_layerdrop": 0,
    "add_bias_logits": False, "add_final_layer_norm": False, "do_blenderbot_90_layernorm": False,
    "normalize_before": False, "normalize_embedding": False, "static_position_embeddings": True,
}  # fmt: skip


LINEAR = True  # weights are those of linear layers, (out, in)
BESIDE = "generation_config.json"  # is read with config.json


def unpacked(settings, config, tensors, source):
    return tensors


def rules(config):
    return RULES + (SHARED if config.source_vocab_size is None else SEPARATE)


def redundant(config, tensors):
    """Tensors that some files hold as well, and what they then must be: ``{name: array}``."""
    shared = config.source_vocab_size is None
    embeddings = tensors.get((SHARED if shared else SEPARATE)[0][1])
    names = ["lm_head.weight"]
    if shared:
        names += [f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    expected = dict.fromkeys(names, embeddings)
    for side in ("encoder", "decoder"):
        name = f"model.{side}.embed_positions.weight"
        if name in tensors and tensors[name].shape[1:] == (config.dim,):
            expected[name] = positions(len(tensors[name]), config.dim)
    return expected


def positions(length, dim):
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, dim, 2) / dim)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def read_config(s, g):
    """The `TransformerConfig` of the `Settings` of config.json and generation_config.json.

    Raises:
        CheckpointError: naming a setting that is missing, unknown, or not honoured.
        ValueError: a size that cannot be.
    """
    for name, value in FIXED.items():
        s.must(name, value)
    s.must("extra_pos_embeddings", s.get("pad_token_id") + 1)
    s.must("num_hidden_layers", s.get("encoder_layers"))
    s.must("decoder_attention_heads", s.get("encoder_attention_heads"))
    s.must("decoder_ffn_dim", s.get("encoder_ffn_dim"))
    shared = s.get("share_encoder_decoder_embeddings", True)
    if type(shared) is not bool:
        raise s.error("share_encoder_decoder_embeddings", shared, "true or false")
    vocab_size = s.get("vocab_size")
    decoder_vocab_size = s.get("decoder_vocab_size", None) or vocab_size
    if shared and decoder_vocab_size != vocab_size:
        rule = f"{vocab_size!r:.50}, which is shared"
        raise s.error("decoder_vocab_size", decoder_vocab_size, rule)
    activation = s.get("activation_function")
    if activation not in ACTIVATIONS:
        raise s.error("activation_function", activation, f"one of {sorted(ACTIVATIONS)}")
    encoder_layers, decoder_layers = s.get("encoder_layers"), s.get("decoder_layers")
    end, *stops = ends(s)
    config = dict(
        vocab_size=decoder_vocab_size,
        source_vocab_size=None if shared else vocab_size,
        num_layers=encoder_layers,
        decoder_layers=None if decoder_layers == encoder_layers else decoder_layers,
        dim=s.get("d_model"),
        hidden_dim=s.get("encoder_ffn_dim"),
        num_heads=s.get("encoder_attention_heads"),
        dropout=s.get("dropout", 0.1),
        norm="post",
        activation=ACTIVATIONS[activation],
        scale_embeddings=s.get("scale_embedding", False),
        interleaved_positions=False,
        logits_bias=True,
        max_length=s.get("max_position_embeddings"),
        pad_id=s.get("pad_token_id"),
        start_id=s.get("decoder_start_token_id"),
        end_id=end,
    )
    # Settings without influence on translations.
    s.ignore(
        "architectures", "bos_token_id", "classif_dropout", "classifier_dropout", "dtype",
        "gradient_checkpointing", "id2label", "init_std", "label2id", "torch_dtype",
        "transformers_version", "use_cache", "_name_or_path", "_num_labels",
        "output_past", "tokenizer_class",
    )  # fmt: skip
    # Older files keep the settings of the search here.
    for name in SEARCH if not g.values else ():
        if (value := s.get(name, None)) is not None:
            g.default(name, value)
    s.ignore(*SEARCH)
    s.all_read()
    return TransformerConfig(**config, search=read_search(g, config, stops))


SEARCH = (
    "bad_words_ids", "early_stopping", "forced_eos_token_id", "length_penalty", "max_length",
    "max_new_tokens", "num_beams", "renormalize_logits",
)  # fmt: skip
# Settings of drawing, which a translation is not looked for by.
UNDRAWN = {
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0,
}  # fmt: skip


def read_search(g, config, stops):
    """The `Search` of a ``generation_config.json``.

    Beside the end token, the tokens ``stops`` of config.json, or those given there, end a
    translation.
    """
    for name, value in {**NEUTRAL, **UNDRAWN}.items():
        g.must(name, value)
    end = config["end_id"]
    g.must("pad_token_id", config["pad_id"])
    g.must("decoder_start_token_id", config["start_id"])
    g.ignore(
        "_from_model_config", "bos_token_id", "output_attentions", "output_hidden_states",
        "output_scores", "return_dict_in_generate", "transformers_version", "use_cache",
    )  # fmt: skip
    ending = ends(g, [end, *stops])
    if end not in ending:
        raise g.error("eos_token_id", ending, f"{end!r:.50}, or a list with it")
    forced = g.get("forced_eos_token_id", None)
    if forced not in (None, end, [end]):
        raise g.error("forced_eos_token_id", forced, f"eos_token_id, {end!r:.50}, or none")
    with named(g.file):
        longest = g.get("max_length", None)  # counts the start token
        max_tokens = g.get("max_new_tokens", None if longest is None else longest - 1)
        search = dict(
            beams=g.get("num_beams", 1),
            alpha=g.get("length_penalty", 1.0),
            early_stopping=g.get("early_stopping", False),
            max_tokens=max_tokens,
            forced_end=forced is not None,
            # The end may be banned there, and comes nevertheless.
            banned=[tokens for tokens in g.get("bad_words_ids", []) if tokens != [end]],
            renormalized=g.get("renormalize_logits", False),
            stop_tokens=[token for token in ending if token != end],
        )
        g.all_read()
        return Search(**search)
