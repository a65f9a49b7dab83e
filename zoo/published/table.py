"""Tables of tensors, whose rows map published tensors to our variables.

A row is read in both directions:

    "h.{i}.c_attn.weight", "d (n h k)", "block_{i}/attention/{query|key|value}/kernel", "d h k"

It has a published name, its axes, our variable's path and its axes. Axes are written as for
`einops.rearrange`: ``(h k)`` is one axis of size H K, ``1`` is an axis of size 1. ``{i}`` is the
index of a block. ``{query|key|value}`` are variables that share a published tensor, concatenated
along the axis ``n``; they may differ in size. In ``(h n k)`` they are concatenated for each h. If
the published name has alternatives too, such as ``{q|k|v}_proj``, the row stands for several rows.
All sizes come from the shapes of our variables, so that a file's header can be checked before the
model is built.
"""

import math
import re
from typing import Any, NamedTuple

import numpy as np

QKV = "{query|key|value}"


def same(array, path):
    return array


class Row(NamedTuple):
    """A row of a table. With ``theirs`` None the variables have no published tensor and are zero.

    ``read`` and ``write`` convert values: functions of an array in our layout and its variable's
    path.
    """

    theirs: str | None
    axes: str
    ours: str
    own: str
    read: Any = same
    write: Any = same


def norm(theirs, ours):
    """The rows of a layer normalization."""
    return (f"{theirs}.weight", "d", f"{ours}/gamma", "d"), (
        f"{theirs}.bias", "d", f"{ours}/beta", "d"
    )  # fmt: skip


def dense(theirs, axes, ours, own, *values, out=0):
    """The rows of a kernel and its bias; ``out`` is the index of the kernel's output axis."""
    bias = re.findall(r"\([^)]*\)|\S+", axes)[out]
    plain = " ".join(axis for axis in parse_axes(bias)[0] if axis != "n")
    return (f"{theirs}.weight", axes, f"{ours}/kernel", own, *values), (
        f"{theirs}.bias", bias, f"{ours}/bias", plain, *values
    )  # fmt: skip


class Part(NamedTuple):
    """A variable that is all or part of a published tensor, and the sizes of its axes by name."""

    path: str
    sizes: dict


class Entry(NamedTuple):
    """A published tensor and its parts."""

    name: str | None
    row: Row
    parts: list


def parse_axes(axes):
    """``"d (h k) 1"`` -> ``[["d"], ["h", "k"], []]``."""
    found = re.findall(r"\(([^)]*)\)|(\S+)", axes)
    return [joined.split() if joined else [single] * (single != "1") for joined, single in found]


def rearrange(array, source, target, sizes):
    """Rearranges ``array`` from the axes ``source`` to the axes ``target``."""
    flat, joined = sum(parse_axes(source), []), parse_axes(target)
    array = array.reshape([sizes[axis] for axis in flat])
    array = array.transpose([flat.index(axis) for group in joined for axis in group])
    return array.reshape(axis_lengths(joined, sizes))


def axis_lengths(axes, sizes):
    return [math.prod(sizes[axis] for axis in group) for group in axes]


def axis_sizes(axes, shape, sizes):
    """``{axis: size}`` for a variable's shape; ``sizes`` has those that the shape does not give."""
    sizes = dict(sizes)
    for group, length in zip(parse_axes(axes), shape, strict=True):
        for axis in [axis for axis in group if axis not in sizes]:
            sizes[axis] = length // math.prod(sizes.get(a, 1) for a in group)
    return sizes


def expand_parts(ours):
    """``"{query|key}/kernel"`` -> ``["query/kernel", "key/kernel"]``."""
    found = re.search(r"\{([^}]*\|[^}]*)\}", ours)
    return [ours.replace(found[0], part) for part in found[1].split("|")] if found else [ours]


def match(rows, shapes, sizes, names=None):
    """Returns the `Entry` of each tensor, and the names of missing ones (at most six).

    Args:
        shapes: pairs of a variable's path and its shape. The iterator may be endless: matching
            stops at the sixth missing tensor.
        sizes: the sizes of axes that no shape gives.
        names: names of the existing tensors. Default: all.
    """
    places = {}
    for row in (Row(*row) for row in rows):
        paths, names_of = expand_parts(row.ours), expand_parts(row.theirs or "")
        if len(names_of) == 1:
            places |= {path: (row, k, len(paths)) for k, path in enumerate(paths)}
        else:
            for name, path in zip(names_of, paths, strict=True):
                places[path] = row._replace(theirs=name, ours=path), 0, 1
    entries, missing = {}, []
    for path, shape in shapes:
        block = re.search(r"_(\d+)/", path)
        # A row may name a block itself, if the blocks share a tensor.
        general = path if path in places or not block else path.replace(block[0], "_{i}/", 1)
        if general not in places:
            raise ValueError(f"the format has no tensor for {path}")
        row, k, count = places[general]
        sizes_here = axis_sizes(row.own, shape, sizes)
        if row.theirs is None:
            entries[path] = Entry(None, row, [Part(path, sizes_here)])
            continue
        name = row.theirs.replace("{i}", block[1]) if block else row.theirs
        if names is None or name in names:
            entry = entries.setdefault(name, Entry(name, row, [None] * count))
            entry.parts[k] = Part(path, sizes_here)
        elif name not in missing:
            missing.append(name)
            if len(missing) > 5:
                break
    return list(entries.values()), missing


def split_axes(axes):
    """The axes of one part; the same, where those before "n" are axes of their own; and the index
    of the axis along which parts are concatenated."""
    groups, outer, along = parse_axes(axes), [], 0
    for i, group in enumerate(groups):
        if "n" in group:
            along, place = i, group.index("n")
            outer, groups[i] = group[:place], group[place + 1 :]
    apart = [*groups[:along], *([axis] for axis in outer), *groups[along:]]
    groups[along] = outer + groups[along]
    return (*map(write_axes, (groups, apart)), along + len(outer))


def write_axes(groups):
    return " ".join(f"({' '.join(group)})" if group else "1" for group in groups)


def shape_of(entry):
    """The shape of an entry's published tensor."""
    if len(entry.parts) == 1:
        return tuple(axis_lengths(parse_axes(entry.row.axes), entry.parts[0].sizes))
    axes, _, _ = split_axes(entry.row.axes)
    shapes = np.array([axis_lengths(parse_axes(axes), part.sizes) for part in entry.parts])
    joined = ["n" in group for group in parse_axes(entry.row.axes)]
    return tuple(np.where(joined, shapes.sum(0), shapes[0]).tolist())


def read(entry, array):
    """Yields the path and the array of each variable that a published tensor holds."""
    axes, arrays = entry.row.axes, [array]
    if len(entry.parts) > 1:
        _, axes, along = split_axes(axes)
        shapes = np.array([axis_lengths(parse_axes(axes), part.sizes) for part in entry.parts])
        ends = np.cumsum(shapes[:, along])
        whole = [*shapes[0, :along], ends[-1], *shapes[0, along + 1 :]]
        arrays = np.split(array.reshape(whole), ends[:-1], axis=along)
    for part, piece in zip(entry.parts, arrays, strict=True):
        piece = rearrange(piece, axes, entry.row.own, part.sizes)
        yield part.path, entry.row.read(piece, part.path)


def write(entry, weights):
    """Returns the published tensor of an entry, from ``weights``, ``{path: array}``."""
    axes, along = entry.row.axes, None
    if len(entry.parts) > 1:
        _, axes, along = split_axes(axes)
    arrays = [
        rearrange(entry.row.write(weights[p.path], p.path), entry.row.own, axes, p.sizes)
        for p in entry.parts
    ]
    if along is None:
        return arrays[0]
    return np.concatenate(arrays, axis=along).reshape(shape_of(entry))


def rename(name, rules):
    """Applies all ``rules``, pairs of a pattern and its replacement, to a name."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def sinusoids(dim):
    """A function of a shape (T, ``dim``) that returns sinusoidal positions: sines, then cosines.

    It returns None for other shapes.
    """

    def table(shape):
        if shape[1:] != (dim,):
            return None
        angles = np.arange(shape[0])[:, None] / 10000 ** (np.arange(0, dim, 2) / dim)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return table
