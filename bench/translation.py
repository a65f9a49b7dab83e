"""Compares translation with Hugging Face's Marian in PyTorch: `make bench`.

Both have the same random weights (base: 6+6 layers, width 512, feed-forward 2,048, 58,101 tokens),
sources of 20 tokens and translations of exactly 20. "Exported" is the SavedModel, without XLA,
through TensorFlow Serving's C++ loader. Each figure is measured in a separate process, after
compilation and warm-up, as the median of several calls; its memory is the peak of the process.
Writes bench/translation.md.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import (
    format_answer,
    machine,
    measure_limits,
    median_time,
    ratio,
    run,
    run_isolated,
    write,
)

VOCAB, TOKENS, BEAMS = 58101, 20, 4
SEARCHES = [(beams, batch) for beams in (1, BEAMS) for batch in (1, 32)]
TRAIN_BATCH = 32


def sources(batch):
    import numpy as np

    return np.random.default_rng(0).integers(10, VOCAB - 10, (batch, TOKENS)).astype("int32")


def make(folder):
    """Saves the model in Hugging Face's format, with a tokenizer of single letters."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    from polyhead.data import Subwords

    folder = Path(folder)
    torch.manual_seed(0)
    pad = VOCAB - 1
    config = MarianConfig(
        vocab_size=VOCAB, d_model=512, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=2048,
        decoder_ffn_dim=2048, encoder_attention_heads=8, decoder_attention_heads=8,
        activation_function="swish", scale_embedding=True, max_position_embeddings=512,
        pad_token_id=pad, decoder_start_token_id=pad, forced_eos_token_id=None,
    )  # fmt: skip
    model = MarianMTModel(config)
    with torch.no_grad():
        model.final_logits_bias[:, 0] = -1e4  # no translation ends before the limit
    model.generation_config.update(bad_words_ids=[[pad]], max_length=TOKENS + 1)
    model.save_pretrained(folder)
    letters = "abcdefghijklmnopqrst"
    pieces = Subwords.train([letters, *letters, f"{letters} {letters}"] * 3, 45)
    listed = [pieces._pieces.id_to_piece(i) for i in range(4, pieces.vocab_size)]
    table = ["</s>", "<unk>", *listed]
    table += [f"piece{i}" for i in range(VOCAB - len(table) - 1)] + ["<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(table)}))
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(pieces.model)
    text = ""
    while (length := len(pieces.pieces(pieces.encode([text])[0]))) < TOKENS:
        text += letters[length]
    assert length == TOKENS, length
    return text


def peer(folder, beams, batch):
    """Seconds per call of Hugging Face's `generate`."""
    import torch
    from transformers import MarianMTModel

    model = MarianMTModel.from_pretrained(folder).eval()
    source = torch.tensor(sources(batch)).long()
    mask = torch.ones_like(source)

    def call():
        made = model.generate(input_ids=source, attention_mask=mask, num_beams=beams)
        assert made.shape[1] == TOKENS + 1, made.shape

    return median_time(call)


def ours(folder, beams, batch):
    """Seconds per call of `Transformer.find`, compiled as in `translate`."""
    import dataclasses

    import numpy as np

    from polyhead.zoo import Transformer

    model = Transformer.from_pretrained(folder)
    search, source = dataclasses.replace(model.config.search, num_beams=beams), sources(batch)

    def call():
        tokens, _ = model._run_search(source, search)
        assert np.all(tokens[:, 0, TOKENS - 1] != model.config.pad_id)

    return median_time(call)


def exported(folder, beams, batch, text):
    """Seconds per call of the SavedModel through the C++ loader, from strings to strings."""
    from polyhead.serving.loader import SavedModel

    model = SavedModel(folder)
    texts = [text] * batch
    signature = "serving_default" if beams == 1 else "beam"
    return median_time(lambda: model({"text": texts}, signature))


def peer_training(folder, compile):
    import torch
    from transformers import MarianMTModel

    model = MarianMTModel.from_pretrained(folder).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    source = torch.tensor(sources(TRAIN_BATCH)).long()
    mask = torch.ones_like(source)

    def loss():
        return model(input_ids=source, attention_mask=mask, labels=source).loss

    forward = torch.compile(loss) if compile else loss

    def call():
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return median_time(call)


def our_training(folder):
    import keras
    import numpy as np
    import tensorflow as tf

    from polyhead.training import SmoothedCrossEntropy
    from polyhead.zoo import Transformer

    model = Transformer.from_pretrained(folder)
    model.compile(keras.optimizers.Adam(1e-4), SmoothedCrossEntropy(0.0))
    model.build_optimizer()
    model.make_train_function()
    labels = sources(TRAIN_BATCH)
    inputs = {"source": labels, "target": np.roll(labels, 1, axis=1)}
    batch = (inputs, labels, np.ones(labels.shape, "float32"))
    stream = iter(tf.data.Dataset.from_tensors(batch).repeat())
    return median_time(lambda: float(model.train_function(stream)["loss"]))


def export(folder, base):
    from polyhead.zoo import Transformer

    return str(Transformer.from_pretrained(folder).export(base, num_beams=BEAMS))


def export_tiny(base):
    from polyhead.data import Subwords, read_split
    from polyhead.recipes.translation import SAMPLE, find_data
    from polyhead.zoo import Transformer

    pairs = read_split(find_data(SAMPLE), "val", "en", "de")
    tokenizer = Subwords.train(pairs.sources + pairs.targets, 500)
    return str(Transformer.preset("tiny", tokenizer).export(base))


def start_in_python(version):
    """Seconds beyond importing TensorFlow until an exported model answers in Python."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    began = time.perf_counter()
    model = tf.saved_model.load(version)
    model.signatures["serving_default"](text=tf.constant(["A dog runs."]))
    return time.perf_counter() - began


def main():
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "marian").mkdir()
        text, _ = run_isolated(make, folder / "marian", needed=True)
        version, _ = run_isolated(export, folder / "marian", folder / "export", needed=True)
        (product, _, memory_speed), _ = run_isolated(measure_limits, needed=True)
        lines += [
            "# Translation against Hugging Face's Marian",
            "",
            f"`make bench`; {machine()}, float32. Measured in the same run: a matrix product "
            f"{product:.0f} GFLOP/s, reading memory {memory_speed:.0f} GB/s. Ratios are of speed, "
            "ours to theirs; then sentences per second, and the peak memory of the process.",
            "",
            "| search | batch | in process (XLA) / HF | exported / HF | HF | ours | exported |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for beams, batch in SEARCHES:
            rows = [
                run_isolated(peer, folder / "marian", beams, batch),
                run_isolated(ours, folder / "marian", beams, batch),
                run_isolated(exported, version, beams, batch, text),
            ]
            (theirs, _), (xla, _), (served, _) = rows
            name = "greedy" if beams == 1 else f"{beams} beams"
            line = f"| {name} | {batch} | {ratio(theirs, xla)} | {ratio(theirs, served)} | "
            lines.append(
                line
                + " | ".join(format_answer(row, lambda s, b=batch: f"{b / s:.1f}") for row in rows)
                + " |"
            )
            print(lines[-1], flush=True)
        rows = [
            run_isolated(peer_training, folder / "marian", False),
            run_isolated(peer_training, folder / "marian", True),
            run_isolated(our_training, folder / "marian"),
        ]
        times = [format_answer(row, lambda s: f"{1000 * s:,.0f} ms") for row in rows]
        lines += [
            "",
            f"A training step, {TRAIN_BATCH} pairs of {TOKENS} + {TOKENS} tokens, Adam, dropout "
            f"0.1: ours {times[2]}; theirs {times[0]} eager, {times[1]} compiled. "
            f"Speed, ours to theirs: {ratio(rows[0][0], rows[2][0])} and "
            f"{ratio(rows[1][0], rows[2][0])}.",
        ]
        tiny, _ = run_isolated(export_tiny, folder / "tiny", needed=True)
        began = time.perf_counter()
        loader = [sys.executable, "-P", "-m", "polyhead.serving.loader", tiny, "A dog runs."]
        subprocess.run(loader, check=True, capture_output=True)
        native = time.perf_counter() - began
        python, _ = run_isolated(start_in_python, tiny, needed=True)
        lines += [
            "",
            f"An exported tiny model answers {native:.1f} s after the start of a process through "
            f"the C++ loader, and {python:.1f} s after importing TensorFlow in Python.",
        ]
    write(__file__, lines)


if __name__ == "__main__":
    run(main)
