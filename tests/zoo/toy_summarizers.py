"""Small T5 and BART models, for tests."""

import json

import numpy as np
from keras import ops

from polyhead.zoo import BART, T5, BARTConfig, T5Config

SIZES = dict(vocab_size=40, num_layers=2, dim=24, intermediate_dim=40, num_heads=3, dropout=0.0)
BUCKETS = dict(head_dim=8, num_buckets=8, max_distance=20)
NEWER = dict(activation="gelu_tanh", gated=True, tied=False, scale_logits=False)
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>")
WORDS = ("the dog sees a cat", "it rains", "one two three four", "an old man sleeps", "where is it")


def small_t5(tokenizer=None, **overrides):
    sizes = {**SIZES, **BUCKETS, **of_tokenizer(tokenizer), **overrides}
    return T5(T5Config(**sizes), tokenizer)


def small_bart(tokenizer=None, **overrides):
    sizes = {**SIZES, "max_length": 64, **of_tokenizer(tokenizer), **overrides}
    return BART(BARTConfig(**sizes), tokenizer)


def of_tokenizer(tokenizer):
    """The settings in which a model must agree with its tokenizer."""
    names = ("vocab_size", "pad_id", "start_id", "end_id") if tokenizer is not None else ()
    return {name: getattr(tokenizer, name) for name in names}


def perturb(model, scale=0.3, seed=0):
    """Adds noise to all weights, so that different texts have different outputs."""
    random = np.random.default_rng(seed)
    for v in model.weights:
        v.assign(v + random.normal(size=v.shape).astype("float32") * scale)
    return model


def array(x):
    return ops.convert_to_numpy(x)


def random_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(3, 40, shape).astype("int32")


def many_sentences(count, start=0):
    """A text of many short sentences."""
    words = [WORDS[i % len(WORDS)] for i in range(start, start + count)]
    return " ".join(f"{text.capitalize()} {i}." for i, text in enumerate(words))


def write_roberta(folder, texts, size=300):
    """Writes a tokenizer of ``size`` tokens, the mask last, in BART's files to ``folder``."""
    from polyhead.data import BytePairs

    learned = BytePairs.train(texts, size - 4)  # the end token is replaced by five others
    pieces = sorted(learned.vocabulary, key=learned.vocabulary.get)
    table = {piece: i for i, piece in enumerate([*ROBERTA, *pieces, "<mask>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(table), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in learned.merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
