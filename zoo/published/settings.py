"""Reads and writes the settings of published JSON files, by tables."""

import reprlib

from ...training import CheckpointError
from ...training.states import some

REQUIRED = object()  # instead of a default: the setting must exist
AGAIN = object()  # instead of a default: if it exists, it must equal the field's earlier setting

# Settings that any configuration of Hugging Face's library may have, and that change no logits.
BOOKKEEPING = (
    "architectures", "dtype", "torch_dtype", "transformers_version", "tokenizer_class", "prefix",
    "model_name", "auto_map", "id2label", "label2id", "num_labels", "problem_type",
    "finetuning_task", "task_specific_params", "initializer_range", "bos_token_id", "pad_token_id",
    "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id", "decoder_start_token_id",
    "cross_attention_hidden_size", "gradient_checkpointing", "use_cache", "output_attentions",
    "output_hidden_states", "output_past", "return_dict", "use_return_dict", "torchscript",
    "output_scores", "return_dict_in_generate", "xla_device", "use_bfloat16", "tf_legacy_loss",
    "chunk_size_feed_forward", "attn_implementation", "_attn_implementation",
    "_attn_implementation_autoset", "_attn_implementation_internal", "_experts_implementation",
    "_output_attentions", "_name_or_path", "_num_labels", "_commit_hash", "_from_auto",
)  # fmt: skip
# Settings that change the logits: they must have these values.
UNCHANGED = {"pruned_heads": {}, "tie_encoder_decoder": False}

ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh",
}  # fmt: skip


class Settings:
    """The settings of a JSON file; settings that are not read are an error.

    A table's row has the published name, ours, the default (or `REQUIRED`, or `AGAIN`), and
    optionally ``{published value: ours}``. ``warnings`` are shown once the settings are read.
    """

    def __init__(self, file, values):
        self.file = file
        self.values = {name: value for name, value in values.items() if value is not None}
        self.unread = set(self.values)
        self.warnings = []

    def get(self, name, default=REQUIRED):
        self.unread.discard(name)
        if name not in self.values and default is REQUIRED:
            raise CheckpointError(f"{self.file} has no setting {name}")
        return self.values.get(name, default)

    def read(self, table):
        """Reads the rows of a table: ``{our name: value}``."""
        found = {}
        for theirs, ours, default, *names in table:
            if default is AGAIN:
                self.must(theirs, found[ours])
                continue
            value = self.get(theirs, default)
            if names and value not in list(names[0]):  # it may be unhashable
                raise self.error(theirs, value, f"one of {sorted(names[0])}")
            found[ours] = names[0][value] if names else value
        return found

    def must(self, name, value):
        """Checks that a setting is ``value``, if it is given."""
        if (given := self.get(name, value)) != value:
            raise self.error(name, given, reprlib.repr(value))

    def fixed(self, values):
        for name, value in values.items():
            self.must(name, value)

    def flag(self, name, default):
        """Reads a setting that must be True or False."""
        if type(given := self.get(name, default)) is not bool:
            raise self.error(name, given, "True or False")
        return given

    def rate(self, name, ours):
        """Adds a warning if a dropout rate, which affects only training, is not ``ours``."""
        given = self.get(name, ours)
        if type(given) not in (int, float) or not 0 <= given <= 1:
            raise self.error(name, given, "in [0, 1]")
        if given != ours:
            self.warnings.append(
                f"{self.file}: training uses {name} {ours}, not {given}; predictions are the same"
            )

    def error(self, name, given, rule):
        return CheckpointError(f"{self.file}: {name} must be {rule}: {reprlib.repr(given)}")

    def ignore(self, *names):
        self.unread.difference_update(names)

    def finish(self, *ignored):
        """Checks that all settings were read, except `BOOKKEEPING` and ``ignored`` ones."""
        self.fixed(UNCHANGED)
        self.ignore(*BOOKKEEPING, *ignored)
        self.all_read()

    def all_read(self):
        if self.unread:
            raise CheckpointError(f"{self.file} has unknown settings {some(sorted(self.unread))}")


def write_settings(table, config):
    """Writes a configuration by a table: ``{published name: value}``.

    Raises:
        ValueError: the format cannot express a setting.
    """
    written = {}
    for theirs, ours, _, *names in table:
        value = getattr(config, ours)
        if names:
            published = {ours: theirs for theirs, ours in reversed(names[0].items())}
            if value not in published:
                raise ValueError(
                    f"{ours} must be one of {sorted(published)} in this format: {value!r}"
                )
            value = published[value]
        written[theirs] = value
    return written


def read_ends(settings, default=REQUIRED):
    """Reads the end tokens, ``eos_token_id``, one or a list; the first is the model's.

    Raises:
        CheckpointError: the list is empty.
    """
    found = settings.get("eos_token_id", default)
    if found == []:
        raise settings.error("eos_token_id", found, "a token, or a list of tokens")
    return found if isinstance(found, list) else [found]


def write_ends(config):
    stops = config.search.stop_tokens
    return [config.end_id, *stops] if stops else config.end_id


def nested(settings, name):
    """The `Settings` of an object within ``settings``."""
    if not isinstance(values := settings.get(name, {}), dict):
        raise settings.error(name, values, "settings")
    return Settings(f"{settings.file}, {name}", values)


def read_labels(settings, count):
    """Reads the number of classes (default: ``count``) and their names, or None."""
    labels = settings.get("id2label", None)
    count = settings.get("num_labels", count if labels is None else len(labels))
    if labels is None:
        return count, None
    if not isinstance(labels, dict) or count != len(labels):
        raise settings.error("id2label", labels, f"the names of {count!r} classes")
    if sorted(labels) != sorted(str(i) for i in range(count)):
        raise settings.error("id2label", sorted(labels), f"of the classes 0 to {count - 1}")
    return count, tuple(labels[str(i)] for i in range(count))


def write_labels(labels, count):
    labels = labels or [f"LABEL_{i}" for i in range(count)]
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
