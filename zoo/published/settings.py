"""Settings of published JSON files: tables that are read and written."""

import reprlib

from ...training import CheckpointError
from ...training.states import some

REQUIRED = object()  # in the place of a default: the setting must be there
AGAIN = object()  # the same: if it is there, it must equal the setting before of the same field

# What each configuration of Hugging Face's library may hold and what changes no logits.
BOOKKEEPING = (
    "architectures", "dtype", "torch_dtype", "transformers_version", "tokenizer_class", "prefix",
    "model_name", "auto_map", "id2label", "label2id", "num_labels", "problem_type",
    "finetuning_task", "task_specific_params", "initializer_range", "bos_token_id", "pad_token_id",
    "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id", "decoder_start_token_id",
    "cross_attention_hidden_size", "gradient_checkpointing", "use_cache", "output_attentions",
    "output_hidden_states", "output_past", "return_dict", "use_return_dict", "torchscript",
    "use_bfloat16", "tf_legacy_loss", "chunk_size_feed_forward", "attn_implementation",
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
    "_experts_implementation", "_output_attentions", "_name_or_path", "_num_labels",
    "_commit_hash", "_from_auto",
)  # fmt: skip
# What would change them.
UNCHANGED = {"pruned_heads": {}, "tie_encoder_decoder": False}

ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh",
}  # fmt: skip


class Settings:
    """The settings of a JSON file, each of which must be read: an unknown setting is an error.

    A table's row is the published name, ours, the default (or `REQUIRED`, or `AGAIN`), and maybe
    ``{published value: ours}``. ``warnings`` are for the user, once the model is loaded.
    """

    def __init__(self, file, values):
        self.file = file
        self.values = {name: value for name, value in values.items() if value is not None}
        self.unread = set(self.values)
        self.warnings = []

    def get(self, name, default=REQUIRED):
        self.unread.discard(name)
        if name not in self.values and default is REQUIRED:
            raise CheckpointError(f"{self.file} does not say {name}")
        return self.values.get(name, default)

    def read(self, table):
        """``{our name: value}`` of a table's rows."""
        found = {}
        for theirs, ours, default, *names in table:
            if default is AGAIN:
                self.must(theirs, found[ours])
                continue
            value = self.get(theirs, default)
            if names and value not in names[0]:
                raise self.error(theirs, value, f"one of {sorted(names[0])}")
            found[ours] = names[0][value] if names else value
        return found

    def must(self, name, value):
        """If the setting is given, it must be ``value``."""
        if (given := self.get(name, value)) != value:
            raise self.error(name, given, reprlib.repr(value))

    def fixed(self, values):
        for name, value in values.items():
            self.must(name, value)

    def flag(self, name, default):
        """A setting that must be True or False."""
        if type(given := self.get(name, default)) is not bool:
            raise self.error(name, given, "True or False")
        return given

    def rate(self, name, ours):
        """Notes a warning if a rate of dropout, which changes training only, is not ``ours``."""
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
        """Checks that all settings were read, except of `BOOKKEEPING` and ``ignored`` ones."""
        self.fixed(UNCHANGED)
        self.ignore(*BOOKKEEPING, *ignored)
        self.all_read()

    def all_read(self):
        if self.unread:
            raise CheckpointError(f"{self.file} has unknown settings {some(sorted(self.unread))}")


def write_settings(table, config):
    """``{published name: value}`` of a configuration.

    Raises:
        ValueError: naming a setting that has no published value.
    """
    written = {}
    for theirs, ours, _, *names in table:
        value = getattr(config, ours)
        if names:
            published = {ours: theirs for theirs, ours in reversed(names[0].items())}
            if value not in published:
                raise ValueError(f"{ours} must be one of {sorted(published)} there: {value!r}")
            value = published[value]
        written[theirs] = value
    return written


def read_ends(settings, default=REQUIRED):
    """The end tokens of ``eos_token_id``, which may be one or a list; the first is the model's.

    Raises:
        CheckpointError: it is an empty list.
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
    """The number of classes and their names, or None; ``count`` where the file has neither."""
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
