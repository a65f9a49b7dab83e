"""The description of a checkpoint format."""

from collections.abc import Callable
from dataclasses import dataclass, field

NEVER = "(?!)"  # a pattern that matches no name


def nothing(*args):
    return {}


def unchanged(config, stored):
    return config


@dataclass(frozen=True)
class Format:
    """A checkpoint format of one family, for reading and writing.

    Args:
        name: its name in `save_pretrained`; None: it is only read.
        rows: function of a configuration and of the file's `Settings` (None when writing) that
            returns the table of tensors (`table.Row`).
        settings: the table of config.json (see `Settings.read`).
        fixed: ``{published setting: the only supported value}``.
        older: like ``fixed``, for settings that are read, but not written.
        unused: names of settings that do not change the logits, beside `settings.BOOKKEEPING`.
        ours: ``{our field: its only value in this format}``. A model of a class with several
            families is written in the first one that it fits.
        read: function of the `Settings` of config.json, those of ``beside`` and the fields that the
            table gave; returns further fields.
        infer: function of a function of a tensor's name that returns its shape, or None; returns
            the fields that shapes decide, for files without settings.
        write: function of a configuration that returns further settings of config.json.
        beside: name of a file whose settings are read with config.json.
        others: function of a configuration that returns ``{file: JSON}`` to write with config.json.
        renamed: pairs of a pattern and its replacement, which turn other names into the table's.
        ignored: pattern of the names of tensors that need not be read: they are if the table has
            them, as BERT's pooler is for some heads.
        optional: pattern of names in the table, without blocks and alternatives, of tensors that a
            file may lack: their variables are zero.
        refused: pairs of a pattern of tensor names and a description of these tensors, which the
            model does not support.
        copies: function of a configuration that returns ``{name: expected}`` for redundant tensors
            of some files. ``expected`` is the name of the tensor that it equals, or a function of
            its shape that returns its values (None: an unknown tensor).
        constants: function of a configuration that returns ``{name: array}`` of tensors to write
            that no variable holds.
        adjust: function of a configuration, and of a function of a name that returns a tensor or
            None; returns the configuration that the file's tensors decide.
        sizes: function of a configuration that returns the sizes of axes that no variable's shape
            gives.
        head: the names of the tensor that computes the logits and of the embedding. If both exist
            and differ, the configuration's ``tied`` is False.
    """

    name: str | None
    rows: Callable
    settings: tuple = ()
    fixed: dict = field(default_factory=dict)
    older: dict = field(default_factory=dict)
    unused: tuple = ()
    ours: dict = field(default_factory=dict)
    read: Callable = nothing
    infer: Callable = nothing
    write: Callable = nothing
    beside: str | None = None
    others: Callable = nothing
    renamed: tuple = ()
    ignored: str = NEVER
    optional: str = NEVER
    refused: tuple = ()
    copies: Callable = nothing
    constants: Callable = nothing
    adjust: Callable = unchanged
    sizes: Callable = nothing
    head: tuple | None = None
