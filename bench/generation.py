"""Compares GPT with Hugging Face's GPT-2 in PyTorch and with KerasHub's: `make bench`.

- A training step: AdamW, clipped gradients, no dropout; four blocks, 64 tokens, 65 characters.
- Greedy generation: GPT-2 small with random weights, 64 tokens after 32; in process, and as an
  exported SavedModel, from strings to strings, without XLA, through TensorFlow Serving's C++
  loader.

Each figure is measured in a separate process, after compilation and warm-up, as the median of
several calls; its memory is the peak of the process. Writes bench/generation.md.
"""

import string
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
    profile_operations,
    ratio,
    run,
    run_isolated,
    torch_step,
    write,
)

T, V, BLOCKS = 64, 65, 4
STEPS = [(128, 4, 12), (512, 8, 32)]  # width, heads, rows per batch
PROMPT, NEW = 32, 64
BATCHES = (1, 8)
LETTERS = (string.ascii_lowercase + string.digits)[:PROMPT]  # each a token
END = 50256
GPT2_PARAMETERS = 124_439_808


def rows(batch):
    return np.random.default_rng(0).integers(0, V, (batch, T + 1)).astype("int32")


def peer_step(dim, heads, batch, compile=False, autocast=False):
    """Seconds per step of Hugging Face's GPT-2."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = GPT2Config(
        vocab_size=V, n_positions=T, n_embd=dim, n_layer=BLOCKS, n_head=heads, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(sizes).train()
    tokens = torch.tensor(rows(batch)).long()

    def loss():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(tokens[:, :-1], use_cache=False).logits.float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return torch_step(model, loss, compile)


def hub_step(dim, heads, batch, jit):
    import keras
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        V, BLOCKS, heads, dim, 4 * dim, dropout=0.0, max_sequence_length=T
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    tokens = rows(batch)
    inputs = {"token_ids": tokens[:, :-1], "padding_mask": np.ones((batch, T), "int32")}
    return keras_step(model, loss, jit, (inputs, tokens[:, 1:]))


def our_step(dim, heads, batch, policy="float32", jit=True, profile=False):
    import keras

    from polyhead.training import SmoothedCrossEntropy
    from polyhead.zoo import GPT

    keras.config.set_dtype_policy(policy)
    model = GPT.preset("char-small", vocab_size=V, max_length=T, dim=dim, num_heads=heads)
    tokens = rows(batch)
    weights = np.ones((batch, T), "float32")
    batch = tokens[:, :-1], tokens[:, 1:], weights
    return keras_step(model, SmoothedCrossEntropy(0.0), jit, batch, profile)


def make(folder):
    """Saves GPT-2 small in Hugging Face's format, with a tokenizer of single letters."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from polyhead.data import BytePairs
    from polyhead.data.tokenizers.byte_pairs import ALPHABET

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    with torch.no_grad():
        model.transformer.wte.weight[END] = 0  # no text ends before the limit
    model.save_pretrained(folder)
    pieces = [*ALPHABET, *(f"piece{i}" for i in range(END - 256))]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    BytePairs(vocabulary, [], {"<|endoftext|>": END}).save(Path(folder))


def prompts(batch):
    return [LETTERS[i:] + LETTERS[:i] for i in range(batch)]


def peer_generation(folder, batch, dtype="float32"):
    """Seconds per call of Hugging Face's `generate`."""
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokens = torch.tensor(np.random.default_rng(0).integers(0, END, (batch, PROMPT)))
    mask = torch.ones_like(tokens)

    def call():
        made = model.generate(
            tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=END
        )
        assert made.shape[1] == PROMPT + NEW, made.shape

    return median_time(call)


def hub_generation(batch, jit):
    import keras_hub

    sizes = dict(num_layers=12, num_heads=12, hidden_dim=768, intermediate_dim=3072)
    backbone = keras_hub.models.GPT2Backbone(END + 1, **sizes, max_sequence_length=1024)
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    model.compile(sampler="greedy", jit_compile=jit)
    tokens = np.zeros((batch, PROMPT + NEW), "int32")
    tokens[:, :PROMPT] = np.random.default_rng(0).integers(0, END, (batch, PROMPT))
    inputs = {"token_ids": tokens, "padding_mask": np.int32(np.arange(PROMPT + NEW) < PROMPT)}
    inputs["padding_mask"] = np.broadcast_to(inputs["padding_mask"], tokens.shape)
    return median_time(lambda: model.generate(inputs, stop_token_ids=None))


def our_generation(folder, batch, profile=False):
    """Seconds per call of `GPT.generate`, from strings to strings, or a profile per token."""
    from polyhead.zoo import GPT

    model = GPT.from_pretrained(folder)
    texts = prompts(batch)

    def call():
        return model.generate(texts, max_new_tokens=NEW, temperature=0.0)

    if profile:
        return [(kind, spent / NEW) for kind, spent in profile_operations(call)]
    return median_time(call)


def export(folder, base):
    from polyhead.zoo import GPT

    model = GPT.from_pretrained(folder)
    return str(model.export(base, max_new_tokens=NEW, temperature=0.0))


def exported(version, batch):
    """Seconds per call of the SavedModel through the C++ loader."""
    from polyhead.serving.loader import SavedModel

    model, texts = SavedModel(version), prompts(batch)
    return median_time(lambda: model({"text": texts}, "serving_default"))


def operations(dim, batch):
    """Floating-point operations of a training step's matrix products (Kaplan et al. 2020, 2.1)."""
    per_token = BLOCKS * (12 * dim**2 + 2 * T * dim) + V * dim
    return 6 * per_token * T * batch


def training(products):
    lines = [
        "| width, batch, precision | ours / HF eager | / HF compiled | / KerasHub | of measured "
        "GFLOP/s | HF eager | HF compiled | KerasHub | ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dim, heads, batch in STEPS:
        for low in (False, True)[: 1 + (dim == 512)]:
            sizes, policy = (dim, heads, batch), ("mixed_bfloat16", False) if low else ()
            answers = [], [], [], []
            for _ in range(2):  # machines are noisy: the better of two rounds
                answers[0].append(run_isolated(peer_step, *sizes, False, low))
                answers[1].append(run_isolated(peer_step, *sizes, True, low))
                if not low:
                    answers[2].extend(run_isolated(hub_step, *sizes, jit) for jit in (True, False))
                answers[3].append(run_isolated(our_step, *sizes, *policy))
            eager, compiled, hub, ours = map(best, answers)
            share = operations(dim, batch) / ours[0] / products[low] / 1e9
            ratios = " | ".join(ratio(ours[0], peer[0]) for peer in (eager, compiled, hub))
            times = [
                format_answer(x, lambda s: f"{1000 * s:,.1f} ms")
                for x in (eager, compiled, hub, ours)
            ]
            precision = "bfloat16 (ours without XLA)" if low else "float32"
            lines.append(
                f"| {dim}, {batch}, {precision} | {ratios} | {share:.0%} | {' | '.join(times)} |"
            )
            print(lines[-1], flush=True)
    return lines


def generating(folder, bandwidth):
    lines = [
        "| batch | in process / HF | / KerasHub | exported / HF | in process, of the measured "
        "memory bandwidth | HF | HF, bfloat16 | KerasHub | in process (XLA) | exported |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    version, _ = run_isolated(export, folder / "gpt2", folder / "export", needed=True)
    for batch in BATCHES:
        theirs = run_isolated(peer_generation, folder / "gpt2", batch)
        low = run_isolated(peer_generation, folder / "gpt2", batch, "bfloat16")
        hub = best([run_isolated(hub_generation, batch, jit) for jit in (True, False)])
        ours = run_isolated(our_generation, folder / "gpt2", batch)
        served = run_isolated(exported, version, batch)
        share = 4 * GPT2_PARAMETERS * (NEW + 1) / ours[0] / bandwidth / 1e9
        ratios = [ratio(theirs[0], ours[0]), ratio(hub[0], ours[0]), ratio(theirs[0], served[0])]
        speeds = [
            format_answer(x, lambda s, batch=batch: f"{batch * NEW / s:.1f}")
            for x in (theirs, low, hub, ours, served)
        ]
        lines.append(f"| {batch} | {' | '.join(ratios)} | {share:.0%} | {' | '.join(speeds)} |")
        print(lines[-1], flush=True)
    return lines


def spent(profile):
    """Formats a profile."""
    return ", ".join(f"{kind} {milliseconds:.2f}" for kind, milliseconds in profile[0] or ())


def importing(name):
    import importlib

    importlib.import_module(name)


def main():
    (*products, bandwidth), _ = run_isolated(measure_limits, needed=True)
    idle = [
        run_isolated(importing, name)[1]
        for name in ("polyhead.zoo", "transformers.models.gpt2.modeling_gpt2")
    ]
    lines = [
        "# GPT against Hugging Face's GPT-2 and KerasHub's",
        "",
        f"`make bench`; {machine()}. Measured in the same run: a matrix product "
        f"{products[0]:.0f} GFLOP/s in float32, {products[1]:.0f} in bfloat16; reading memory "
        f"{bandwidth:.0f} GB/s. KerasHub with or without XLA, whichever is faster. Memory is the "
        f"peak of the process; importing Keras and TensorFlow takes {idle[0]:,.0f} MB, "
        f"transformers and PyTorch {idle[1]:,.0f}.",
        "",
        f"A training step, {BLOCKS} blocks, {T} tokens, AdamW. Ratios of time, ours to theirs:",
        "",
        *training(products),
        "",
        "Time of a step at width 512, float32, in milliseconds by kind of XLA operation "
        f"(reduce-window: sums, mainly of bias gradients): "
        f"{spent(run_isolated(our_step, *STEPS[1], 'float32', True, True))}.",
        "",
        f"Greedy generation, GPT-2 small, float32, {NEW} tokens after {PROMPT}. Ratios of speed, "
        "ours to theirs; then tokens per second. The fraction of the bandwidth counts only the "
        "weights, read once per token:",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "gpt2").mkdir()
        run_isolated(make, folder / "gpt2", needed=True)
        lines += generating(folder, bandwidth)
        profile = spent(run_isolated(our_generation, folder / "gpt2", 1, True))
        lines += ["", f"Time of a token at batch 1, in milliseconds: {profile}."]
    write(__file__, lines)


if __name__ == "__main__":
    run(main)
