"""Compares training on Shakespeare's text, by characters, with Hugging Face's GPT-2.

    python bench/shakespeare.py tinyshakespeare/input.txt

Both train nanoGPT's configuration for a CPU in float32: 4 blocks of 4 heads, width 128, context 64,
2,000 updates of 12 rows, no dropout, AdamW with betas 0.9 and 0.99, weight decay 0.1, clipping at
1, 100 updates of warm-up, cosine decay to a tenth. Hugging Face's model runs in eager PyTorch, in a
plain loop; ours as in `polyhead train generation`. Learning rates are nanoGPT's and the one that
our validation selected. The validation loss is over the whole last tenth of the text. Times are
wall time, with compilation and validation. Each training run is a separate process, one after the
other. Writes bench/shakespeare.md and .png.
"""

import math
import sys
import tempfile
import time
from pathlib import Path

from measure import machine, run, run_isolated, write

UPDATES, INTERVAL, ROWS, CONTEXT, WARMUP = 2000, 250, 12, 64, 100
PEAKS = (1e-3, 4e-3)


def theirs(file, peak):
    """Trains Hugging Face's model; returns [seconds, validation loss] after every interval."""
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    text = Path(file).read_text("utf-8")
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(c) for c in text])
    train, held = tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]
    torch.manual_seed(0)
    sizes = GPT2Config(
        vocab_size=len(characters), n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(sizes).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99))

    def loss(rows):
        logits = model(rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def validation():
        whole = (len(held) - 1) // CONTEXT
        rows = held[: whole * CONTEXT].view(whole, CONTEXT)
        ends = held[CONTEXT : whole * CONTEXT + 1 : CONTEXT][:, None]
        with torch.no_grad():
            parts = torch.cat([rows, ends], dim=1).split(256)
            return sum(loss(part).item() * len(part) for part in parts) / whole

    random, found, began = np.random.default_rng(0), [], time.perf_counter()
    for update in range(1, UPDATES + 1):
        share = max(update - WARMUP, 0) / (UPDATES - WARMUP)
        rate = min(update / WARMUP, 0.1 + 0.45 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = peak * rate
        starts = random.integers(0, len(train) - CONTEXT, ROWS)
        rows = torch.stack([train[s : s + CONTEXT + 1] for s in starts])
        optimizer.zero_grad()
        loss(rows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if update % INTERVAL == 0:
            found.append([time.perf_counter() - began, validation()])
    return found


def ours(file, peak):
    from polyhead.recipes.generation import Settings, train

    settings = Settings(
        data=file, preset="char-small", updates=UPDATES, interval=INTERVAL, peak=peak,
        warmup=WARMUP, batch_size=ROWS,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        history = train(settings, Path(folder) / "run", say=lambda line: None)
    return [[epoch["seconds"], epoch["val_loss"]] for epoch in history]


def draw_curves(curves, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, peak), curve in curves.items():
        style = dict(color="tab:blue" if name == "polyhead" else "tab:orange", marker=".")
        style["ls"] = "-" if peak == PEAKS[-1] else "--"
        axes.plot(*zip(*curve, strict=True), label=f"{name}, {peak:g}", **style)
    axes.set_xlabel("seconds")
    axes.set_ylabel("validation loss, nats per character")
    axes.legend(title="peak learning rate")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main():
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit(__doc__)
    file, curves = Path(sys.argv[1]).resolve(), {}
    lines = [
        "# Shakespeare by characters, against Hugging Face's GPT-2",
        "",
        f"`python bench/shakespeare.py tinyshakespeare/input.txt`; {machine()}, float32. nanoGPT's "
        f"configuration for a CPU, {UPDATES:,} updates of {ROWS} x {CONTEXT}; nanoGPT reports a "
        "validation loss of 1.88. Wall time with compilation and validation.",
        "",
        "| peak learning rate | Hugging Face, eager | polyhead | time, ours / theirs |",
        "| --- | --- | --- | --- |",
    ]
    for peak in PEAKS:
        pair = []
        for name, train in (("Hugging Face", theirs), ("polyhead", ours)):
            curve, _ = run_isolated(train, file, peak, needed=True)
            curves[name, peak] = curve
            pair.append(curve[-1])
            print(name, peak, curve[-1], flush=True)
        cells = [f"{loss:.3f} in {seconds:.0f} s" for seconds, loss in pair]
        lines.append(f"| {peak:g} | {' | '.join(cells)} | **{pair[1][0] / pair[0][0]:.2f}** |")
    draw_curves(curves, Path(__file__).with_suffix(".png"))
    write(__file__, lines)


if __name__ == "__main__":
    run(main)
