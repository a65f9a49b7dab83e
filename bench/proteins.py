"""Compares ESM-2 and the parts of ESMFold with Hugging Face's in PyTorch: `make bench`.

    python bench/proteins.py folding

- Inference, from token ids to the features of each residue: in process, as `embed` computes them,
  with and without XLA; and as an exported SavedModel, from strings, without XLA, through TensorFlow
  Serving's C++ loader.
- A training step of the masked language model: AdamW, clipped gradients, no dropout. Both compute
  logits of all residues.
- One block of ESMFold's trunk, and its structure module with 8 iterations, in the published sizes;
  the memory of folding long sequences; and the compilation of the whole network.

Weights are random. Each figure is measured in a separate process, after compilation and warm-up, as
the median of several calls; its memory is the peak of the process. An argument chooses sections:
inference, training, folding, memory, compilation; all take about 15 minutes. Results are in
bench/proteins.json. Writes bench/proteins.md.
"""

import json
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

PRESETS = ("esm2-t6-8m", "esm2-t12-35m")
SHAPES = [(1, 100), (8, 128)]  # sequences, tokens
LETTERS = "LAGVSERTIDPKQNFYMHWC"


def sequences(batch, length):
    """Random sequences whose tokens, with the first and the last one, are ``length``."""
    random = np.random.default_rng(0)
    return ["".join(random.choice(list(LETTERS), length - 2)) for _ in range(batch)]


def tokens(batch, length):
    from polyhead.data import Residues

    return Residues().encode(sequences(batch, length)).numpy().astype("int32")


def peer_model(preset):
    import torch
    from transformers import EsmConfig, EsmForMaskedLM

    from polyhead.zoo import ESM

    torch.manual_seed(0)
    c = ESM.PRESETS[preset]
    config = EsmConfig(
        vocab_size=c.vocab_size, hidden_size=c.dim, num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads, intermediate_size=c.intermediate_dim,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=c.epsilon,
        position_embedding_type="rotary", emb_layer_norm_before=False, token_dropout=True,
        mask_token_id=c.mask_id, pad_token_id=c.pad_id,
    )  # fmt: skip
    return EsmForMaskedLM(config)


def peer(preset, batch, length, compile=False):
    """Seconds per call of Hugging Face's model."""
    import torch

    model = peer_model(preset).esm.eval()
    ids = torch.tensor(tokens(batch, length)).long()
    mask = torch.ones_like(ids)

    def embed():
        return model(input_ids=ids, attention_mask=mask).last_hidden_state

    call = torch.compile(embed) if compile else embed
    with torch.inference_mode():
        return median_time(lambda: call().numpy())


def ours(preset, batch, length, xla=False):
    """Seconds per call of the function that `embed` compiles."""
    from polyhead.training import compiled
    from polyhead.zoo import ESM

    model, ids = ESM.preset(preset), tokens(batch, length)
    compute = compiled(model, model.residues, "embed", xla=xla)
    return median_time(lambda: np.asarray(compute(ids)))


def export(preset, base):
    from polyhead.zoo import ESM

    return str(ESM.preset(preset, head=None).export(base))


def exported(version, batch, length):
    """Seconds per call of the SavedModel through the C++ loader, from strings."""
    from polyhead.serving.loader import SavedModel

    model, texts = SavedModel(version), sequences(batch, length)
    return median_time(lambda: model({"sequence": texts}, "embed"))


def peer_step(preset, batch, length, compile=False):
    import torch

    model, ids = peer_model(preset).train(), torch.tensor(tokens(batch, length)).long()
    mask = torch.ones_like(ids)
    return torch_step(
        model, lambda: model(input_ids=ids, attention_mask=mask, labels=ids).loss, compile
    )


def our_step(preset, batch, length):
    from polyhead.training import SmoothedCrossEntropy
    from polyhead.zoo import ESM

    ids = tokens(batch, length)
    data = ids, ids, np.ones(ids.shape, "float32")
    return keras_step(ESM.preset(preset), SmoothedCrossEntropy(0.0), True, data)


def operations(preset, length):
    """Floating-point operations of the matrix products of a sequence's forward pass."""
    from polyhead.zoo import ESM

    c = ESM.PRESETS[preset]
    block = 4 * c.dim**2 + 2 * c.dim * c.intermediate_dim + 2 * length * c.dim
    return 2 * c.num_layers * length * block


def features(length):
    """Random features of residues and pairs in the published sizes, and a mask."""
    from polyhead.zoo import ESMFold

    c, random = ESMFold.PRESETS["esmfold-v1"], np.random.default_rng(0)
    s, z = ((1, length, c.dim), (1, length, length, c.pair_dim))
    return c, *(random.normal(size=x).astype("float32") for x in (s, z)), np.ones((1, length))


def peer_trunk():
    from transformers import EsmConfig

    sizes = dict(vocab_size=33, pad_token_id=1, mask_token_id=32, is_folding_model=True)
    return EsmConfig(**sizes, esmfold_config={}).esmfold_config.trunk


def peer_block(length):
    """Seconds per call of a block of Hugging Face's trunk."""
    import torch
    from transformers.models.esm.modeling_esmfold import EsmFoldTriangularSelfAttentionBlock

    block = EsmFoldTriangularSelfAttentionBlock(peer_trunk()).eval()
    _, *arrays = features(length)
    s, z, mask = map(torch.tensor, arrays)
    with torch.inference_mode():
        return median_time(lambda: block(s, z, mask=mask.float())[1].numpy())


def our_block(length, xla):
    """Seconds per call of ours, as `fold` compiles it, or with XLA."""
    import tensorflow as tf

    from polyhead.layers import FoldingBlock

    c, s, z, mask = features(length)
    heads = c.dim // c.head_dim, c.pair_dim // c.pair_head_dim
    block = FoldingBlock(*heads)
    block.build(s.shape, z.shape)
    call = tf.function(block, jit_compile=xla)
    s, z, mask = (tf.constant(x) for x in (s, z, mask > 0))
    return median_time(lambda: call(s, z, mask)[1].numpy())


def peer_structure(length):
    import torch
    from transformers.models.esm.modeling_esmfold import EsmFoldStructureModule

    c, s, z, mask = features(length)
    module = EsmFoldStructureModule(peer_trunk().structure_module).eval()
    s, z = torch.tensor(s[..., : c.structure_dim]), torch.tensor(z)
    kinds, mask = torch.zeros(1, length).long(), torch.tensor(mask).float()
    with torch.inference_mode():
        return median_time(
            lambda: module({"single": s, "pair": z}, kinds, mask)["positions"].numpy()
        )


def our_structure(length, xla):
    import tensorflow as tf

    from polyhead.layers.frames import place_atoms, torsion_frames
    from polyhead.zoo import ESMFold
    from polyhead.zoo.esmfold import LANGUAGE
    from polyhead.zoo.folding import atom_tables

    model = ESMFold.preset("esmfold-v1", esm=LANGUAGE, num_blocks=1)
    c, s, z, mask = features(length)
    s, z, mask = (tf.constant(x) for x in (s[..., : c.structure_dim], z, mask > 0))
    residues = tf.zeros((1, length), tf.int32)

    @tf.function(jit_compile=xla)
    def call():
        found = model.structure(s, z, mask)
        groups, *atoms = atom_tables(residues)
        frames = torsion_frames(found["frames"][-1], found["torsions"][-1], groups)
        return place_atoms(frames, *atoms)

    return median_time(lambda: call().numpy())


def inference(folder, rate):
    yield (
        "| model, sequences, tokens | ours / HF eager | / HF compiled | ours with XLA / HF eager | "
        "exported, from strings / HF eager | of measured GFLOP/s | HF eager | HF compiled | ours | "
        "with XLA | exported |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for preset in PRESETS:
        version, _ = run_isolated(export, preset, folder / preset, needed=True)
        for batch, length in SHAPES:
            rows = [
                run_isolated(peer, preset, batch, length),
                run_isolated(peer, preset, batch, length, True),
                run_isolated(ours, preset, batch, length),
                run_isolated(ours, preset, batch, length, True),
                run_isolated(exported, version, batch, length),
            ]
            eager, compiled, own, xla, served = (seconds for seconds, _ in rows)
            share = operations(preset, length) * batch / min(own, xla) / rate / 1e9
            pairs = [(own, eager), (own, compiled), (xla, eager), (served, eager)]
            ratios = " | ".join(ratio(*pair) for pair in pairs)
            times = " | ".join(format_answer(row, milliseconds) for row in rows)
            yield f"| {preset}, {batch}, {length} | {ratios} | {share:.0%} | {times} |"


def training(folder, rate):
    yield (
        "| model, sequences, tokens | ours / HF eager | / HF compiled | of measured GFLOP/s | "
        "HF eager | HF compiled | ours |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for preset in PRESETS:
        sizes = preset, *SHAPES[-1]
        rows = [
            run_isolated(peer_step, *sizes),
            run_isolated(peer_step, *sizes, True),
            run_isolated(our_step, *sizes),
        ]
        eager, compiled, own = (seconds for seconds, _ in rows)
        share = 3 * operations(preset, sizes[2]) * sizes[1] / own / rate / 1e9
        ratios = " | ".join(ratio(own, theirs) for theirs in (eager, compiled))
        times = " | ".join(format_answer(row, milliseconds) for row in rows)
        yield f"| {', '.join(map(str, sizes))} | {ratios} | {share:.0%} | {times} |"


def folding(folder, rate):
    yield ("| part, residues | ours / HF | with XLA / HF | HF | ours | with XLA |")
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, theirs, ours in (
        ("trunk block", peer_block, our_block),
        ("structure module", peer_structure, our_structure),
    ):
        for length in (100, 200):
            rows = [
                run_isolated(theirs, length),
                run_isolated(ours, length, False),
                run_isolated(ours, length, True),
            ]
            peer, own, xla = (seconds for seconds, _ in rows)
            times = " | ".join(format_answer(row, milliseconds) for row in rows)
            yield f"| {name}, {length} | {ratio(own, peer)} | {ratio(xla, peer)} | {times} |"


def memory(folder, rate):
    """Long sequences: `fold` with chunks as it chooses them."""
    yield "| residues | passes | rows per chunk | above the weights | estimate of `memory` |"
    yield "| --- | --- | --- | --- | --- |"
    for length, passes, chunk in (
        (400, 2, "auto"), (400, 2, None), (700, 2, "auto"), (1000, 1, "auto")
    ):  # fmt: skip
        (peak, estimate, rows), _ = run_isolated(our_fold, length, passes, chunk, needed=True)
        numbers = f"{peak / 1e9:.2f} GB | {estimate / 1e9:.2f} GB"
        yield f"| {length:,} | {passes} | {rows or 'all'} | {numbers} |"


def our_fold(length, passes, chunk):
    """Peak and estimate of the bytes above the weights, and rows per chunk.

    The trunk has two blocks of the published size, and the language model two layers: others run
    after them, in the same memory.
    """
    import threading
    import time

    import psutil

    from polyhead.zoo import ESMConfig, ESMFold

    language = ESMConfig(num_layers=2, dim=2560, num_heads=40, intermediate_dim=10240, head=None)
    model = ESMFold.preset("esmfold-v1", esm=language, num_blocks=2)
    [protein] = sequences(1, length + 2)
    model.fold(protein[:20], passes=1)
    process, seen = psutil.Process(), []
    before = process.memory_info().rss

    def watch():
        while True:
            seen.append(process.memory_info().rss - before)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    model.fold(protein, passes=passes, chunk=chunk)
    return max(seen), model.memory(length, chunk=chunk), model._choose_chunk(chunk, length)


def compilation(folder, rate):
    """The first call of the whole network, with recycling, beside the second one."""
    yield "| compiled by | first call | second call | difference |"
    yield "| --- | --- | --- | --- |"
    for title, by in (
        ("TensorFlow, as `fold`", "tensorflow"),
        ("XLA, one block, called 48 times", "block"),
        ("XLA, the whole network", "network"),
    ):
        (first, second), _ = run_isolated(first_calls, 100, by, needed=True)
        times = f"{first:.1f} s | {second:.1f} s | **{first - second:.1f} s**"
        yield f"| {title} | {times} |"


def first_calls(length, by):
    """Seconds of the first and the second call of two passes through 48 blocks.

    The language model is small: its layers are not among those that recycling repeats. ``by`` is
    "tensorflow"; "block" (XLA compiles the function of a block, TensorFlow the rest); or "network".
    """
    import time

    import tensorflow as tf

    from polyhead.data.residues import LETTERS
    from polyhead.training import compiled
    from polyhead.zoo import ESMFold, folding
    from polyhead.zoo.esmfold import LANGUAGE

    if by == "block":
        folding.trace_once = lambda block: tf.function(block, autograph=False, jit_compile=True)
    model = ESMFold.preset("esmfold-v1", esm=LANGUAGE)
    [protein] = sequences(1, length + 2)
    inputs = {"residues": np.int32([[LETTERS.index(x) for x in protein]])}

    def predict(inputs):
        return model.predict_structure(inputs, passes=2)

    compute = compiled(model, predict, "fold", xla=by == "network")
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        np.asarray(compute(inputs)["positions"])
        seconds.append(time.perf_counter() - began)
    return seconds


def milliseconds(seconds):
    return f"{1000 * seconds:,.1f} ms"


SECTIONS = {
    inference: "Inference: features of each residue. Ratios of time, ours to theirs; then times:",
    training: "A training step of the masked language model, AdamW. Ratios of time:",
    folding: "ESMFold in the published sizes, one sequence. Ratios of time:",
    memory: "Folding long sequences, by two blocks of the published size: peak memory:",
    compilation: "Two passes through 48 blocks of the published size, 100 residues:",
}


def main():
    file = Path(__file__).with_suffix(".json")
    known = json.loads(file.read_text()) if file.exists() else {}
    for section in SECTIONS:
        if len(sys.argv) > 1 and section.__name__ not in sys.argv[1:]:
            continue
        (rate, *_), _ = run_isolated(measure_limits, needed=True)
        lines = []
        with tempfile.TemporaryDirectory() as folder:
            for line in section(Path(folder), rate):
                print(line, flush=True)
                lines.append(line)
        about = f"{machine()}, float32; a matrix product reaches {rate:.0f} GFLOP/s"
        known[section.__name__] = {"machine": about, "lines": lines}
        store(file, known)
    text = [
        "# ESM-2 and ESMFold against Hugging Face's",
        "",
        "`make bench`. Memory is the peak of the process.",
    ]
    for section, title in SECTIONS.items():
        if found := known.get(section.__name__):
            text += ["", title, "", f"{found['machine']}.", "", *found["lines"]]
    write(__file__, text)


if __name__ == "__main__":
    run(main)
