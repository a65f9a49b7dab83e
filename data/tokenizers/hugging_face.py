"""The parts of Hugging Face's ``tokenizer.json`` that all tokenizers share."""

from dataclasses import dataclass

FLAGS = ("normalized", "lstrip", "rstrip")


def list_steps(content, name):
    """Lists the steps of a normalizer or pre-tokenizer, whether or not it is a Sequence."""
    step = content.get(name)
    if not step:
        return []
    if not isinstance(step, dict):
        raise ValueError(f"{name} must be an object: {step!r:.100}")
    if step.get("type") != "Sequence":
        return [step]
    steps = step.get("pretokenizers" if name == "pre_tokenizer" else "normalizers")
    if not isinstance(steps, list) or not all(isinstance(s, dict) for s in steps):
        raise ValueError(f"a Sequence in {name} must be a list of objects")
    return [inner for s in steps for inner in list_steps({name: s}, name)]


def read_added(content, end=None):
    """Reads ``{text: id}`` of special tokens and of other added tokens, and texts by `FLAGS`.

    Args:
        end: a function of (text, id) that is true for the end token, which is always special.
    """
    special, added, flags = {}, {}, {flag: [] for flag in FLAGS}
    for entry in content.get("added_tokens") or ():
        if not isinstance(entry, dict) or not {"content", "id"} <= entry.keys():
            raise ValueError(f"an added token must have an id and a content: {entry!r:.100}")
        text, token = entry["content"], entry["id"]
        if entry.get("single_word"):
            raise ValueError(f"single_word of an added token is not supported: {text!r}")
        is_special = entry.get("special", True) or (end is not None and end(text, token))
        (special if is_special else added)[text] = token
        for flag in FLAGS:
            if entry.get(flag):
                flags[flag].append(text)
    return special, added, flags


@dataclass(frozen=True)
class Template:
    """The ids that a post-processor adds to a text, or to a pair of texts.

    Args:
        prefix, suffix: ids before and after a text, and before and after a pair.
        separator: ids between the texts of a pair; None if pairs have another form.
        pair_type: the type of the second text and the suffix of a pair; all others have type 0.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    separator: tuple[int, ...] | None = ()
    pair_type: int = 1

    def check(self, vocab_size: int) -> None:
        """Raises a `ValueError` if an id is not a token, or the type is not an integer."""
        ids = (*self.prefix, *(self.separator or ()), *self.suffix)
        if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
            raise ValueError(f"tokens around a text must be from 0 to {vocab_size - 1}: {ids}")
        if type(self.pair_type) is not int or self.pair_type < 0:
            raise ValueError(f"a type must be a non-negative integer: {self.pair_type!r}")


def read_template(content):
    """Reads the `Template` of the post-processor.

    Raises:
        ValueError: a step is not supported; the message names it.
    """
    step = content.get("post_processor") or {"type": "ByteLevel"}
    kind = step.get("type")
    if kind == "Sequence":
        found = [read_template({"post_processor": inner}) for inner in step["processors"]]
        found = [template for template in found if template != Template()]
        if len(found) > 1:
            raise ValueError("post_processor must add tokens in a single step")
        return found[0] if found else Template()
    if kind == "ByteLevel":
        return Template()
    if kind in ("RobertaProcessing", "BertProcessing"):
        cls, sep = step["cls"][1], step["sep"][1]
        if kind == "BertProcessing":
            return Template((cls,), (sep,), (sep,), 1)
        return Template((cls,), (sep,), (sep, sep), 0)
    if kind == "TemplateProcessing":
        single = read_pieces(step, "single")
        if len(single) != 2:
            raise ValueError("post_processor must use the text exactly once")
        (before, _), (after, _) = single
        prefix, suffix = tuple(i for i, _ in before), tuple(i for i, _ in after)
        separator, pair_type = None, 0
        pair = read_pieces(step, "pair")
        if len(pair) == 3:
            (before, _), (between, first), (after, second) = pair
            types = [kind for _, kind in before + between] + [first]
            usual = not any(types) and all(kind == second for _, kind in after)
            if usual and tuple(i for i, _ in before) == prefix:
                if tuple(i for i, _ in after) == suffix:
                    separator, pair_type = tuple(i for i, _ in between), second
        return Template(prefix, suffix, separator, pair_type)
    raise ValueError(f"post_processor has an unknown type: {kind!r}")


def read_pieces(step, name):
    """Reads a part of a TemplateProcessing: before, between and after the texts, a list of
    (id, type), each with the type of the text before it."""
    groups = [([], 0)]
    for piece in step.get(name) or ():
        if "Sequence" in piece:
            groups.append(([], piece["Sequence"].get("type_id", 0)))
        else:
            token = piece["SpecialToken"]
            for i in step["special_tokens"][token["id"]]["ids"]:
                groups[-1][0].append((i, token.get("type_id", 0)))
    return groups


def read_trim(content):
    """Whether the post-processor excludes spaces from offsets, and whether it expects that a space
    was added before a text."""
    step = content.get("post_processor") or {}
    if step.get("type") == "Sequence":
        found = [read_trim({"post_processor": inner}) for inner in step["processors"]]
        return next((pair for pair in found if pair[0]), (False, False))
    trims = step.get("type") in ("ByteLevel", "RobertaProcessing")
    return trims and step.get("trim_offsets", True), step.get("add_prefix_space", True)
