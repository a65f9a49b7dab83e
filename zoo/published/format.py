"""What a file of this package says about a checkpoint format."""

from collections.abc import Callable
from dataclasses import dataclass, field


def nothing(*args):
    return {}


@dataclass(frozen=True)
class Format:
    """A checkpoint format of one family, read and written.

    Args:
        name: what `save_pretrained` calls it.
        rows: function of a configuration, and of the file's `Settings` when a checkpoint is read
            (None when one is written): the table of tensors (`table.Row`).
        settings: the table of config.json (`Settings.read`).
        fixed: published settings that have one value here.
        older: the same of settings that are not written any more.
        unused: names of settings that change no logits, beside `settings.BOOKKEEPING`.
        ours: fields of our configuration that have one value in this format.
        read: function of the `Settings` of config.json and of ``beside``, and of the fields that
            the table gave: further fields. It reads what no table says.
        write: function of a configuration: further settings of config.json.
        beside: the file whose settings are read with config.json.
        others: function of a configuration: ``{file: JSON}`` that are written with config.json.
        renamed: other names of the same tensors: pairs of a pattern and its replacement by the
            table's name.
        ignored: a pattern of names of tensors that are not read.
        refused: pairs of a pattern of names of tensors, and what they are, in plain words: what a
            model of this family has no place for.
        copies: function of a configuration: ``{name: expected}`` of tensors that some files hold
            although they say nothing new. ``expected`` is the name of the tensor that they equal,
            or a function of their shape that gives their values (None: they are unknown tensors).
        sizes: function of a configuration: the sizes of axes that no shape of a variable tells.
        head: the names of the tensor that gives the logits and of the embedding that gives them
            where there is no other: unless they are equal, the configuration's ``tied`` is False.
    """

    name: str
    rows: Callable
    settings: tuple = ()
    fixed: dict = field(default_factory=dict)
    older: dict = field(default_factory=dict)
    unused: tuple = ()
    ours: dict = field(default_factory=dict)
    read: Callable = nothing
    write: Callable = nothing
    beside: str | None = None
    others: Callable = nothing
    renamed: tuple = ()
    ignored: str = "(?!)"  # nothing
    refused: tuple = ()
    copies: Callable = nothing
    sizes: Callable = nothing
    head: tuple | None = None
