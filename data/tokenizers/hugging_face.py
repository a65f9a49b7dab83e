"""The parts of Hugging Face's ``tokenizer.json`` that all tokenizers share."""

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


def read_around(content):
    """Reads the ids that the post-processor adds before and after a text.

    Raises:
        ValueError: a step is not supported; the message names it.
    """
    step = content.get("post_processor") or {"type": "ByteLevel"}
    kind = step.get("type")
    if kind == "Sequence":
        found = [read_around({"post_processor": inner}) for inner in step["processors"]]
        found = [pair for pair in found if pair != ((), ())]
        if len(found) > 1:
            raise ValueError("post_processor must add tokens in a single step")
        return found[0] if found else ((), ())
    if kind == "ByteLevel":
        return (), ()
    if kind in ("RobertaProcessing", "BertProcessing"):
        return (step["cls"][1],), (step["sep"][1],)
    if kind == "TemplateProcessing":
        around, side = ([], []), 0
        for piece in step["single"]:
            if "Sequence" in piece:
                side += 1
            else:
                name = piece["SpecialToken"]["id"]
                around[min(side, 1)].extend(step["special_tokens"][name]["ids"])
        if side != 1:
            raise ValueError("post_processor must use the text exactly once")
        return tuple(around[0]), tuple(around[1])
    raise ValueError(f"post_processor has an unknown type: {kind!r}")
