"""What the formats of text encoders share: heads, and the files of sentence-transformers."""

import warnings
from pathlib import Path

from ..heads import POOLINGS
from .files import Tensors, read_json
from .generation import NAMES as GENERATION_NAMES
from .settings import Settings, read_labels, write_labels

HEADS = {
    "Model": None, "ForMaskedLM": "tokens", "ForPreTraining": "tokens",
    "ForSequenceClassification": "classes", "ForTokenClassification": "tags",
    "ForQuestionAnswering": "spans",
}  # fmt: skip
SCORE = "ForSequenceClassification"  # with one label
MODULES, LENGTH, PROMPTS = (
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
)  # fmt: skip
POOLING, NORMALIZE = "1_Pooling", "2_Normalize"
MODES = dict(zip(POOLINGS, ("mean", "cls", "max", "mean_sqrt_len", "lasttoken"), strict=True))
SUFFIXES = {"mean": "_tokens", "max": "_tokens", "mean_sqrt_len": "_tokens", "cls": "_token"}
# Settings that change no logits.
UNUSED = (
    # How cross-encoders show scores.
    *("sentence_transformers", "sbert_ce_default_activation_function"),
    # BERT's and DistilBERT's first files have these, and deepset's the others.
    *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
    *("pooler_size_per_head", "pooler_type", "tie_weights_", "language", "name"),
    # Files that list all defaults have those of generation.
    *GENERATION_NAMES,
)
# What version 6 of sentence-transformers writes for modules that do nothing else.
TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {
        "text": {"method": "forward", "method_output_name": "last_hidden_state"},
    },
}
NORMALIZED = dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")
TOKENIZER = "tokenizer_config.json"
TYPES = "sentence_transformers.models."


def read_encoder(s, name, fields, length, classes=None):
    """Reads the fields of the head and of pooling, and ``max_length``.

    Args:
        s: the `Settings` of config.json.
        name: of the family's classes in Hugging Face's library, "Bert" for example.
        fields: those that the table gave.
        length: the number of positions; the tokenizer, and sentence-transformers, may have less.
        classes: ``{class: head}`` of other classes. Default: none.
    """
    known = {f"{name}{kind}": head for kind, head in HEADS.items()} | (classes or {})
    found = s.get("architectures", None)
    if found is None:  # as in google/bert_uncased_L-2_H-128_A-2
        found = [f"{name}Model" if lacks_head(s.file.parent) else f"{name}ForMaskedLM"]
    if not isinstance(found, list) or len(found) != 1 or found[0] not in list(known):
        raise s.error("architectures", found, f"one of {sorted(known)}")
    folder, head, labels = s.file.parent, known[found[0]], {}
    s.ignore(*UNUSED)
    if (file := folder / TOKENIZER).is_file():
        limit = read_json(file).get("model_max_length", length)
        length = min(length, limit) if type(limit) is int else length
    sentences = read_sentences(folder, fields) if (folder / MODULES).is_file() else {}
    if sentences and head == "tokens" and lacks_head(folder):
        head = None  # all-distilroberta-v1, for example
    if head in ("classes", "tags"):
        count, names = read_labels(s, 2)
        kind = s.get("problem_type", None)
        if kind == "multi_label_classification" or kind == "regression" and count != 1:
            raise s.error("problem_type", kind, "of one label per text")
        if names and all(name == f"LABEL_{i}" for i, name in enumerate(names)):
            names = None
        if head == "classes" and count == 1:
            head = "score"
        else:
            labels = {"num_classes": count, "class_names": names}
    return {"head": head, "max_length": length, **labels, **sentences}


def lacks_head(folder):
    """Whether a file has only the network's tensors, whatever its config.json says."""
    names = Tensors(folder).headers
    return not any(word in name for name in names for word in ("predictions", "lm_head", "vocab_"))


def read_sentences(folder, fields):
    """Reads the fields ``pooling``, ``normalize`` and ``max_length`` of sentence-transformers."""
    found, kinds = {"normalize": False}, []
    for i, values in enumerate(read_json(folder / MODULES, list)):
        module = Settings(f"{folder / MODULES}, {i}", values)
        kind, path = str(module.get("type")).split(".")[-1], module.get("path", "")
        module.ignore("idx", "name", "kwargs")
        module.all_read()
        kinds.append(kind)
        if not isinstance(path, str) or Path(path).name != path or path == "..":
            raise module.error("path", path, "a folder within this one")
        if kind == "Transformer":
            module.must("path", "")
        elif kind == "Pooling":
            file = folder / path / "config.json"
            found["pooling"] = read_pooling(Settings(file, read_json(file)), fields)
        elif kind == "Normalize":
            found["normalize"] = True
            if (file := folder / path / "config.json").is_file():
                normalize = Settings(file, read_json(file))
                normalize.fixed(NORMALIZED)
                normalize.all_read()
        else:
            raise module.error("type", kind, "Transformer, Pooling or Normalize")
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise Settings(folder / MODULES, {}).error(
            "types", kinds, "Transformer, Pooling[, Normalize]"
        )
    # Older folders name it by their model.
    if file := next(iter(sorted(folder.glob("sentence_*_config.json"))), None):
        s = Settings(file, read_json(file))
        if s.flag("do_lower_case", False) and not lowers_case(folder):
            raise s.error("do_lower_case", True, "False, as the tokenizer keeps capital letters")
        s.fixed(TRANSFORMER)
        if (limit := s.get("max_seq_length", None)) is not None:
            found["max_length"] = limit
        s.all_read()
    if (file := folder / PROMPTS).is_file():
        prompts = Settings(file, read_json(file))
        prompts.must("default_prompt_name", None)  # it would be put before each text
        prompts.ignore("__version__", "model_type")
        given = prompts.get("prompts", {})
        if isinstance(given, dict) and any(given.values()):
            warnings.warn(f"{file}: the prompts are not added to texts: {given}", stacklevel=6)
        if (kind := prompts.get("similarity_fn_name", None)) not in (None, "cosine"):
            if kind != "dot" or not found["normalize"]:
                raise prompts.error("similarity_fn_name", kind, "'cosine'")
        prompts.all_read()
    return found


def lowers_case(folder):
    """Whether the tokenizer lowers letters, by its files."""
    if (file := folder / "tokenizer.json").is_file():
        normalizer = read_json(file).get("normalizer")
        return isinstance(normalizer, dict) and normalizer.get("lowercase") is True
    settings = read_json(file) if (file := folder / TOKENIZER).is_file() else {}
    return (folder / "vocab.txt").is_file() and settings.get("do_lower_case") is not False


def read_pooling(s, fields):
    s.must("word_embedding_dimension", fields["dim"])
    s.must("embedding_dimension", fields["dim"])
    s.flag("include_prompt", True)  # prompts are not added
    names = {theirs: ours for ours, theirs in MODES.items()}
    chosen = s.get("pooling_mode", [])
    chosen = list(chosen) if isinstance(chosen, list) else [chosen]
    for name in [name for name in s.values if name.startswith("pooling_mode_")]:
        if s.flag(name, False):
            chosen.append(name.removeprefix("pooling_mode_").removesuffix("_tokens"))
    chosen = [str(name).removesuffix("_tokens").removesuffix("_token") for name in chosen]
    s.all_read()
    if len(chosen) != 1 or chosen[0] not in names:
        raise s.error("pooling_mode", chosen, f"one of {sorted(names)}")
    return names[chosen[0]]


def write_encoder(config, name):
    """The settings of a head in config.json."""
    c, heads = config, {head: kind for kind, head in HEADS.items() if kind != "ForPreTraining"}
    found = {"architectures": [f"{name}{heads.get(c.head, SCORE)}"]}
    if c.head == "spans" and c.no_answer:
        warnings.warn(
            f"this format has no place for the threshold no_answer, {c.no_answer:.4g}: pass "
            "no_answer=... to `answer` after loading",
            stacklevel=5,
        )
    if c.head == "score":
        found |= write_labels(None, 1)
    return found | (write_labels(c.class_names, c.num_classes) if c.num_classes else {})


def write_sentences(config, limit):
    """The tokenizer's length, and files of sentence-transformers: ``{file: JSON}``.

    The latter are written for models without a head, and where pooling is not the default.

    Args:
        limit: the length of the network's positions, which is ``max_length`` without these files.
    """
    c = config
    tokenizer = {TOKENIZER: {"model_max_length": c.max_length}}
    if c.head is not None and (c.pooling, c.normalize, c.max_length) == ("mean", False, limit):
        return tokenizer
    modules = [("", "Transformer"), (POOLING, "Pooling"), (NORMALIZE, "Normalize")]
    mode = MODES[c.pooling]
    return tokenizer | {
        MODULES: [
            {"idx": i, "name": str(i), "path": path, "type": TYPES + kind}
            for i, (path, kind) in enumerate(modules[: 2 + c.normalize])
        ],
        f"{POOLING}/config.json": {
            "word_embedding_dimension": c.dim,
            **{f"pooling_mode_{n}{SUFFIXES.get(n, '')}": n == mode for n in MODES.values()},
        },
        LENGTH: {"max_seq_length": c.max_length, "do_lower_case": False},
    }
