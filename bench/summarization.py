"""Compares T5 and BART with Hugging Face's in PyTorch and with CTranslate2: `make bench`.

    python bench/summarization.py t5-small beams 16
    python bench/summarization.py training

All have the same random weights, in the sizes of t5-small and bart-base; sources of 512 tokens and
summaries of exactly 64. "In process" is the search that `summarize` compiles with XLA, from token
ids to token ids, as in the other libraries. "Exported" is the SavedModel, without XLA, through
TensorFlow Serving's C++ loader, from strings to strings. A training step has 8 pairs, AdamW,
clipped gradients and dropout 0.1.

Arguments choose rows: those whose name has all of the words. Each row's figures are measured one
after the other, each in a separate process, after compilation and warm-up, as the median of several
calls; its memory is the peak of the process. All ten rows take about an hour on 2 cores. Results
are in bench/summarization.json, where a row that is measured again is replaced. Writes
bench/summarization.md.
"""

import itertools
import json
import os
import random
import string
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import (
    format_answer,
    keras_step,
    machine,
    measure_limits,
    median_time,
    ratio,
    run,
    run_isolated,
    store,
    torch_step,
    write,
)

SOURCE, TARGET, BEAMS, TRAIN_BATCH = 512, 64, 4, 8
SIZES = {"t5-small": "T5", "bart-base": "BART"}  # presets and their classes
SEARCHES = [(1, 1), (1, 16), (BEAMS, 1), (BEAMS, 16)]  # beams, batch
PIECES = 32000  # of T5's tokenizer, without sentinels
TEXT_TOKENS = range(10, PIECES)  # no special tokens


def preset(name):
    from polyhead import zoo

    return getattr(zoo, SIZES[name]).PRESETS[name]


def tokens(batch, length=SOURCE):
    shape = batch, length
    return np.random.default_rng(0).integers(TEXT_TOKENS[0], PIECES, shape).astype("int32")


def make(folder, name):
    """Saves Hugging Face's model and a tokenizer; returns a text of as many tokens as a source."""
    import torch
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        T5Config,
        T5ForConditionalGeneration,
    )

    import polyhead

    torch.manual_seed(0)
    c, folder = preset(name), Path(folder)
    if name.startswith("t5"):
        sizes = T5Config(
            vocab_size=c.vocab_size, d_model=c.dim, d_kv=c.head_dim, d_ff=c.intermediate_dim,
            num_layers=c.num_layers, num_heads=c.num_heads, decoder_start_token_id=c.start_id,
        )  # fmt: skip
        model, special = T5ForConditionalGeneration(sizes), 1
        save_sentences(folder)
    else:
        sizes = BartConfig(
            vocab_size=c.vocab_size, d_model=c.dim, encoder_layers=c.num_layers,
            decoder_layers=c.num_layers, encoder_attention_heads=c.num_heads,
            decoder_attention_heads=c.num_heads, encoder_ffn_dim=c.intermediate_dim,
            decoder_ffn_dim=c.intermediate_dim, max_position_embeddings=c.max_length,
            forced_eos_token_id=None, normalize_before=False,
        )  # fmt: skip
        model, special = BartForConditionalGeneration(sizes), 2
        save_byte_pairs(folder, c.vocab_size)
    with torch.no_grad():  # never generated: the padding, and what T5's tokenizer does not have
        model.get_input_embeddings().weight[c.pad_id] = 0
        model.get_input_embeddings().weight[PIECES + 100 if special == 1 else c.vocab_size :] = 0
    model.generation_config.update(min_new_tokens=TARGET, max_new_tokens=TARGET)
    model.save_pretrained(folder)
    letters = random.Random(0).choices(string.ascii_lowercase, k=SOURCE - special)
    text = " ".join(letters)
    [length] = polyhead.load(str(folder)).tokenizer.encode([text]).row_lengths().numpy()
    assert length == SOURCE, length
    return text


def save_sentences(folder):
    """Saves a SentencePiece model in T5's layout; each letter after a space is a piece."""
    from sentencepiece import sentencepiece_model_pb2 as protos

    model, kinds = protos.ModelProto(), protos.ModelProto.SentencePiece
    special = {"<pad>": kinds.CONTROL, "</s>": kinds.CONTROL, "<unk>": kinds.UNKNOWN}
    for piece, kind in special.items():
        model.pieces.add(piece=piece, type=kind)
    pieces = ["▁", *string.ascii_lowercase, *(f"▁{letter}" for letter in string.ascii_lowercase)]
    pieces += [f"▁piece{i}" for i in range(PIECES - len(pieces) - len(special))]
    for place, piece in enumerate(pieces):
        model.pieces.add(piece=piece, score=-10 - place / PIECES)
    trainer = model.trainer_spec
    trainer.model_type, trainer.vocab_size = protos.TrainerSpec.UNIGRAM, PIECES
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
    trainer.pad_piece, trainer.eos_piece = "<pad>", "</s>"
    (folder / "spiece.model").write_bytes(model.SerializeToString())


def save_byte_pairs(folder, size):
    """Saves a byte-pair vocabulary in BART's layout, with a merge for each letter after a space."""
    from polyhead.data.tokenizers.byte_pairs import ALPHABET

    merges = [("Ġ", letter) for letter in string.ascii_lowercase]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *ALPHABET, *map("".join, merges)]
    pieces += [f"Ġpiece{i}" for i in range(size - len(pieces) - 1)] + ["<mask>"]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def load_peer(folder):
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder)


def peer(folder, beams, batch):
    """Seconds per call of Hugging Face's `generate`."""
    import torch

    model, source = load_peer(folder).eval(), torch.tensor(tokens(batch)).long()
    mask = torch.ones_like(source)

    def call():
        made = model.generate(input_ids=source, attention_mask=mask, num_beams=beams)
        assert made.shape[1] == TARGET + 1, made.shape

    return median_time(call)


def convert(folder, output):
    """Converts the model to CTranslate2's format."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(folder).convert(output)


def other(folder, beams, batch):
    """Seconds per call of CTranslate2, in float32, from token strings to token strings."""
    import ctranslate2

    model = ctranslate2.Translator(
        folder, compute_type="float32", inter_threads=1, intra_threads=os.cpu_count()
    )
    pieces = json.loads((Path(folder) / "shared_vocabulary.json").read_text())
    source = [[pieces[token] for token in row] for row in tokens(batch)]

    def call():
        results = model.translate_batch(
            source, beam_size=beams, min_decoding_length=TARGET, max_decoding_length=TARGET
        )
        assert all(len(result.hypotheses[0]) == TARGET for result in results)

    return median_time(call)


def ours(folder, beams, batch):
    """Seconds per call of the search that `summarize` compiles."""
    import dataclasses

    import polyhead

    model, source = polyhead.load(folder), tokens(batch)
    search = dataclasses.replace(model.config.search, num_beams=beams)

    def call():
        found, _ = model._run_search(source, search)
        assert np.all(found[:, 0, TARGET - 1] != model.config.pad_id)

    return median_time(call)


def export(folder, base):
    import polyhead

    return str(polyhead.load(folder).export(base, prefix="", num_beams=BEAMS))


def exported(version, beams, batch, text):
    """Seconds per call of the SavedModel through the C++ loader."""
    from polyhead.serving.loader import SavedModel

    model, texts = SavedModel(version), [text] * batch
    signature = "serving_default" if beams == 1 else "beam"
    return median_time(lambda: model({"text": texts}, signature))


def peer_step(folder, compile):
    """Seconds per training step of Hugging Face's model."""
    import torch

    model = load_peer(folder).train()
    source, labels = (
        torch.tensor(tokens(TRAIN_BATCH, length)).long() for length in (SOURCE, TARGET)
    )
    mask = torch.ones_like(source)

    def loss():
        return model(input_ids=source, attention_mask=mask, labels=labels).loss

    return torch_step(model, loss, compile)


def our_step(folder):
    """Seconds per training step of ours, as in `fit`."""
    import polyhead
    from polyhead.training import SmoothedCrossEntropy

    model, labels = polyhead.load(folder), tokens(TRAIN_BATCH, TARGET)
    target = np.roll(labels, 1, axis=1)
    target[:, 0] = model.config.start_id
    inputs = {"source": tokens(TRAIN_BATCH), "target": target}
    data = inputs, labels, np.ones(labels.shape, "float32")
    return keras_step(model, SmoothedCrossEntropy(0.0), True, data)


def operations(name, beams=1):
    """Floating-point operations of the matrix products of a source and its summary.

    The encoder, and the keys and values of cross-attention, are computed once for all beams. A
    target token attends to half of the summary on average.
    """
    c = preset(name)
    inner = c.num_heads * getattr(c, "head_dim", c.dim // c.num_heads)
    maps, attended = 4 * c.dim * inner, 2 * inner  # per token; per pair of tokens
    network = 2 * c.dim * c.intermediate_dim
    encoder = SOURCE * (maps + network + attended * SOURCE + maps // 2)
    decoder = TARGET * (maps + maps // 2 + network + attended * (SOURCE + TARGET // 2))
    words = TARGET * c.vocab_size * c.dim
    return 2 * (c.num_layers * (encoder + beams * decoder) + beams * words)


ROWS = {
    f"{name}, {'greedy' if beams == 1 else f'{beams} beams'}, {batch}": (name, beams, batch)
    for name in SIZES
    for beams, batch in SEARCHES
} | {f"{name}, training": (name,) for name in SIZES}


def search_rows(folder, rows):
    """Measures rows of one model; yields each with its answers of `run_isolated`."""
    name = ROWS[rows[0]][0]
    converted = folder / f"{name}-converted"
    text, _ = run_isolated(make, folder / name, name, needed=True)
    version, _ = run_isolated(export, folder / name, folder / f"{name}-export", needed=True)
    run_isolated(convert, folder / name, converted)
    for row in rows:
        search = ROWS[row][1:]
        yield (
            row,
            [
                run_isolated(peer, folder / name, *search),
                run_isolated(other, converted, *search),
                run_isolated(ours, folder / name, *search),
                run_isolated(exported, version, *search, text),
            ],
        )


def step_rows(folder, rows):
    [row] = rows
    [name] = ROWS[row]
    run_isolated(make, folder / name, name, needed=True)
    yield (
        row,
        [
            run_isolated(peer_step, folder / name, False),
            run_isolated(peer_step, folder / name, True),
            run_isolated(our_step, folder / name),
        ],
    )


def share(done, seconds, rate):
    """``done`` operations in ``seconds`` as a share of ``rate`` GFLOP/s; "-" if not measured."""
    return "-" if seconds is None else f"{done / seconds / rate / 1e9:.0%}"


def page(results):
    """The lines of bench/summarization.md."""
    searches, steps = [], []
    rates = [result["rate"] for result in results.values()]
    machines = "; ".join(sorted({result["machine"] for result in results.values()}))
    for row, (name, *search) in ROWS.items():
        if row not in results:
            continue
        rate, answers = results[row]["rate"], results[row]["answers"]
        times = [seconds for seconds, _ in answers]
        if search:
            beams, batch = search
            done = share(operations(name, beams) * batch, times[2], rate)
            ratios = ratio(times[0], times[2]), ratio(times[0], times[3]), ratio(times[1], times[2])
            cells = [format_answer(x, lambda s, b=batch: f"{b / s:.2f}") for x in answers]
        else:
            done = share(3 * operations(name) * TRAIN_BATCH, times[2], rate)
            ratios = ratio(times[2], times[0]), ratio(times[2], times[1])
            cells = [format_answer(x, lambda s: f"{s:.2f} s") for x in answers]
        line = f"| {row} | {' | '.join([*ratios, done, *cells])} |"
        (searches if search else steps).append(line)
    return [
        "# T5 and BART against Hugging Face's and CTranslate2",
        "",
        f"`make bench`; {machines}, float32. A matrix product, measured in the same run: "
        f"{min(rates):.0f} to {max(rates):.0f} GFLOP/s. Memory is the peak of the process.",
        "",
        f"Summaries of {TARGET} tokens of sources of {SOURCE}. Ratios of speed, ours to theirs; "
        "then summaries per second. The goals are 1.5 in process and 1.2 exported, or 75% of the "
        "measured arithmetic:",
        "",
        "| model, search, batch | in process (XLA) / HF | exported, from strings / HF | in process "
        "/ CTranslate2 | of measured GFLOP/s | HF | CTranslate2 | in process | exported |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *searches,
        "",
        f"A training step, {TRAIN_BATCH} pairs of {SOURCE} + {TARGET} tokens, AdamW, dropout 0.1. "
        "Ratios of time, ours to theirs; the goal is 0.6 of eager, or 75%:",
        "",
        "| model | ours / HF eager | / HF compiled | of measured GFLOP/s | HF eager | HF compiled "
        "| ours |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *steps,
    ]


def main():
    words = sys.argv[1:]
    chosen = [row for row in ROWS if {*words} <= {*row.replace(",", "").split()}]
    if not chosen:
        sys.exit(f"no row has all of the words {words}; the rows are: {'; '.join(ROWS)}")
    file = Path(__file__).with_suffix(".json")
    results = json.loads(file.read_text()) if file.exists() else {}
    (rate, *_), _ = run_isolated(measure_limits, needed=True)
    for measure, name in itertools.product((search_rows, step_rows), SIZES):
        is_search = measure is search_rows
        rows = [r for r in chosen if ROWS[r][0] == name and (len(ROWS[r]) > 1) == is_search]
        if not rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).mkdir()
            for row, answers in measure(Path(folder), rows):
                results[row] = {"rate": rate, "answers": answers, "machine": machine()}
                store(file, results)
                print(row, results[row], flush=True)
    write(__file__, page(results))


if __name__ == "__main__":
    run(main)
