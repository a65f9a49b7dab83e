"""Compares BERT with Hugging Face's in PyTorch and with KerasHub's: `make bench`.

- Inference, from token ids to pooled embeddings: the sizes of MiniLM-L6 and BERT-base; in process,
  as `embed` computes them, and as an exported SavedModel, from strings, through TensorFlow
  Serving's C++ loader, which has no XLA.
- A training step of a classifier: AdamW, clipped gradients, no dropout.
- Embedding sentences of different lengths, from strings to vectors. The peer sorts them by length
  and pads each batch to its longest, as sentence-transformers does.

Weights are random. Each figure is measured in a separate process, after compilation and warm-up, as
the median of several calls; its memory is the peak of the process. Writes bench/encoding.md.
"""

import tempfile
from pathlib import Path

import numpy as np
from measure import (
    best,
    format_answer,
    keras_step,
    machine,
    measure_limits,
    median_time,
    ratio,
    run,
    run_isolated,
    torch_step,
    write,
)

VOCAB, CLASSES = 30522, 77
PRESETS = ("minilm-l6", "bert-base")
SHAPES = [(1, 16), (1, 128), (32, 16), (32, 128)]  # texts, tokens
STEPS = [("minilm-l6", 32, 32), ("bert-base", 8, 128)]
SENTENCES = 5000


def tokens(batch, length):
    return np.random.default_rng(0).integers(1000, VOCAB, (batch, length)).astype("int32")


def sentences(count=SENTENCES):
    """Sentences of 3 to 60 words; most are short."""
    random = np.random.default_rng(1)
    words = [f"word{i}" for i in range(2000)]
    lengths = np.clip(random.lognormal(2.5, 0.6, count), 3, 60).astype(int)
    return [" ".join(words[i] for i in random.integers(0, 2000, n)) for n in lengths]


def peer_config(preset):
    from transformers import BertConfig

    from polyhead.zoo import BERT

    c = BERT.PRESETS[preset]
    return BertConfig(
        vocab_size=VOCAB, hidden_size=c.dim, num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads, intermediate_size=c.intermediate_dim,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=CLASSES,
    )  # fmt: skip


def save_peer(folder, preset):
    """Saves Hugging Face's model, and a vocabulary of the sentences' words and their pieces."""
    import torch
    from transformers import BertModel

    from polyhead.data import WordPieces

    torch.manual_seed(0)
    BertModel(peer_config(preset)).save_pretrained(folder)
    pieces = WordPieces.train(sentences(500), vocab_size=400)
    unused = [f"[unused{i}]" for i in range(VOCAB - pieces.vocab_size)]
    WordPieces([*pieces.vocabulary, *unused]).save(Path(folder))


def pool(hidden, mask):
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)


def peer(folder, batch, length, compile=False):
    """Seconds per call of Hugging Face's model, with mean pooling."""
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = torch.tensor(tokens(batch, length)).long()
    mask = torch.ones_like(ids)

    def embed():
        return pool(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    call = torch.compile(embed) if compile else embed
    with torch.inference_mode():
        return median_time(lambda: call().numpy())


def hub(preset, batch, length, jit):
    """Seconds per call of KerasHub's backbone."""
    import keras
    import keras_hub
    from keras import ops

    from polyhead.zoo import BERT

    c = BERT.PRESETS[preset]
    backbone = keras_hub.models.BertBackbone(
        VOCAB, c.num_layers, c.num_heads, c.dim, c.intermediate_dim, dropout=0.0
    )
    hidden = backbone.output["sequence_output"]
    model = keras.Model(backbone.input, ops.mean(hidden, axis=1))
    model.compile(jit_compile=jit)
    ids = tokens(batch, length)
    zeros = np.zeros_like(ids)
    inputs = {"token_ids": ids, "segment_ids": zeros, "padding_mask": zeros + 1}
    return median_time(lambda: model.predict_on_batch(inputs))


def ours(folder, batch, length, xla):
    """Seconds per call of the function that `embed` compiles; ``xla`` as `TextEncoder.xla`."""
    from polyhead.training import compiled
    from polyhead.zoo import BERT

    model, ids = BERT.from_pretrained(folder), tokens(batch, length)
    compute = compiled(model, model.embeddings, "embed", xla)
    return median_time(lambda: np.asarray(compute(ids)))


def export(folder, base):
    from polyhead.zoo import BERT

    return str(BERT.from_pretrained(folder).export(base))


def exported(version, batch, length):
    """Seconds per call of the SavedModel through the C++ loader, from strings of known words."""
    from polyhead.serving.loader import SavedModel

    model = SavedModel(version)
    texts = [" ".join("." for _ in range(length - 2))] * batch  # a token each
    return median_time(lambda: model({"text": texts}, "embed"))


def peer_step(preset, batch, length, compile=False):
    import torch
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(peer_config(preset)).train()
    ids, labels = torch.tensor(tokens(batch, length)).long(), torch.arange(batch) % CLASSES
    mask = torch.ones_like(ids)

    def loss():
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    return torch_step(model, loss, compile)


def hub_step(preset, batch, length, jit):
    import keras
    import keras_hub

    from polyhead.zoo import BERT

    c = BERT.PRESETS[preset]
    backbone = keras_hub.models.BertBackbone(
        VOCAB, c.num_layers, c.num_heads, c.dim, c.intermediate_dim, dropout=0.0
    )
    model = keras_hub.models.BertTextClassifier(backbone, CLASSES, dropout=0.0)
    model.compile(metrics=[])  # otherwise its default metrics stay
    ids = tokens(batch, length)
    inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": 0 * ids + 1}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return keras_step(model, loss, jit, (inputs, np.arange(batch) % CLASSES))


def our_step(preset, batch, length):
    import dataclasses

    from polyhead.training import SmoothedCrossEntropy
    from polyhead.zoo import BERT

    changes = dict(head="classes", num_classes=CLASSES, dropout=0.0, attention_dropout=0.0)
    model = BERT(dataclasses.replace(BERT.PRESETS[preset], **changes))
    weights = np.ones(batch, "float32")
    data = tokens(batch, length), np.arange(batch) % CLASSES, weights
    return keras_step(model, SmoothedCrossEntropy(0.0), True, data)


def peer_sentences(folder, batch=32):
    """Seconds to embed the sentences, sorted by length."""
    import torch
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    texts = sorted(sentences(), key=len, reverse=True)

    def call():
        found = []
        for i in range(0, len(texts), batch):
            inputs = tokenizer(
                texts[i : i + batch], padding=True, truncation=True, max_length=256,
                return_tensors="pt",
            )  # fmt: skip
            mask = inputs["attention_mask"]
            x = pool(model(**inputs).last_hidden_state, mask)
            found.append(torch.nn.functional.normalize(x).numpy())
        return np.concatenate(found)

    with torch.inference_mode():
        return median_time(call, least=2)


def our_sentences(folder, batch=32):
    from polyhead.zoo import BERT

    model, texts = BERT.from_pretrained(folder), sentences()
    return median_time(lambda: model.embed(texts, batch_size=batch), least=2)


def operations(preset, length):
    """Floating-point operations of the matrix products of a text's forward pass."""
    from polyhead.zoo import BERT

    c = BERT.PRESETS[preset]
    block = 4 * c.dim**2 + 2 * c.dim * c.intermediate_dim + 2 * length * c.dim
    return 2 * c.num_layers * length * block


def inference(folder, rate):
    lines = [
        "| model, texts, tokens | in process / HF eager | / HF compiled | / KerasHub | exported, "
        "from strings / HF eager | of measured GFLOP/s | HF eager | HF compiled | KerasHub | "
        "in process | exported |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for preset in PRESETS:
        place = folder / preset
        version, _ = run_isolated(export, place, folder / f"{preset}-export", needed=True)
        for batch, length in SHAPES:
            rows = [
                run_isolated(peer, place, batch, length),
                run_isolated(peer, place, batch, length, True),
                best([run_isolated(hub, preset, batch, length, jit) for jit in (True, False)]),
                best([run_isolated(ours, place, batch, length, xla) for xla in (True, False)]),
                run_isolated(exported, version, batch, length),
            ]
            eager, compiled, other, own, served = (seconds for seconds, _ in rows)
            share = operations(preset, length) * batch / own / rate / 1e9
            ratios = [ratio(theirs, own) for theirs in (eager, compiled, other)]
            ratios.append(ratio(eager, served))
            speeds = [format_answer(row, lambda s, b=batch: f"{b / s:,.1f}") for row in rows]
            lines.append(
                f"| {preset}, {batch}, {length} | {' | '.join(ratios)} | {share:.0%} | "
                f"{' | '.join(speeds)} |"
            )
            print(lines[-1], flush=True)
    return lines


def training(rate):
    lines = [
        "| model, texts, tokens | ours / HF eager | / HF compiled | / KerasHub | of measured "
        "GFLOP/s | HF eager | HF compiled | KerasHub | ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for sizes in STEPS:
        rows = [
            run_isolated(peer_step, *sizes),
            run_isolated(peer_step, *sizes, True),
            best([run_isolated(hub_step, *sizes, jit) for jit in (True, False)]),
            run_isolated(our_step, *sizes),
        ]
        eager, compiled, other, own = (seconds for seconds, _ in rows)
        share = 3 * operations(sizes[0], sizes[2]) * sizes[1] / own / rate / 1e9
        ratios = " | ".join(ratio(own, theirs) for theirs in (eager, compiled, other))
        times = " | ".join(format_answer(row, lambda s: f"{1000 * s:,.0f} ms") for row in rows)
        name = ", ".join(map(str, sizes))
        lines.append(f"| {name} | {ratios} | {share:.0%} | {times} |")
        print(lines[-1], flush=True)
    return lines


def main():
    (rate, *_), _ = run_isolated(measure_limits, needed=True)
    lines = [
        "# BERT against Hugging Face's and KerasHub's",
        "",
        f"`make bench`; {machine()}, float32. A matrix product, measured in the same run: "
        f"{rate:.0f} GFLOP/s. KerasHub and ours in process with or without XLA, whichever is "
        "faster. Memory is the peak of the process.",
        "",
        "Inference: mean-pooled embeddings. Ratios of speed, ours to theirs; then texts per "
        "second:",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for preset in PRESETS:
            (folder / preset).mkdir()
            run_isolated(save_peer, folder / preset, preset, needed=True)
        lines += inference(folder, rate)
        lines += [
            "",
            f"A training step of a classifier of {CLASSES} classes, AdamW. Ratios of time, ours to "
            "theirs:",
            "",
            *training(rate),
        ]
        theirs = run_isolated(peer_sentences, folder / PRESETS[0])
        own = run_isolated(our_sentences, folder / PRESETS[0])
        speeds = [format_answer(row, lambda s: f"{SENTENCES / s:,.0f}") for row in (theirs, own)]
        lines += [
            "",
            f"Embedding {SENTENCES:,} sentences of 3 to 60 words, MiniLM-L6, from strings, "
            f"in batches of 32, per second: HF {speeds[0]}, ours {speeds[1]}; ours to theirs "
            f"{ratio(theirs[0], own[0])}.",
        ]
        print(lines[-1], flush=True)
    write(__file__, lines)


if __name__ == "__main__":
    run(main)
