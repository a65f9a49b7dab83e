"""Measures the memory for loading a checkpoint: `python bench/loading.py gpt2-xl`.

Writes random weights in shards, loads them in a separate process, and compares its peak memory
above the imports with the limit: the model's variables, twice the largest tensor, and 200 MB.
gpt2-xl takes 6.2 GB of disk and, on 2 cores, two minutes. Its variables are 6.23 GB; the peak was
6.83 GB, with a limit of 7.07 GB. esmfold is the published ESMFold with fewer layers, its language
model in float16 as in the published file; esmfold.bin is the same in one file of PyTorch, as
published.
"""

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SHARD = 1e9  # bytes
SLACK = 200e6
CHILD = """
import gc, sys
import polyhead
if sys.argv[2] == ".bin":
    import torch
polyhead.GPT.preset("char-small")  # what the first model of a process loads

def memory(name):
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(name))
    return 1024 * int(line.split()[1])

gc.collect()
before = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins here
model = polyhead.load(sys.argv[1])
print(memory("VmHWM") - before, sum(v.value.dtype.size * v.value.shape.num_elements()
                                    for v in model.variables))
"""


def model_of(name):
    """The class, configuration and file format of a model, and the tensors that are float16."""
    from polyhead.zoo import GPT, ESMConfig, ESMFold
    from polyhead.zoo.published import esmfold, gpt2

    if name != "esmfold":
        return GPT, GPT.PRESETS[name], gpt2.FORMAT, ()
    language = ESMConfig(num_layers=4, dim=2560, intermediate_dim=10240, num_heads=40, head=None)
    config = dataclasses.replace(ESMFold.PRESETS["esmfold-v1"], esm=language, num_blocks=4)
    return ESMFold, config, esmfold.FORMAT, ("esm.",)


def write_weights(folder, name, shard=SHARD):
    """Writes a model of random weights; returns the bytes of its largest tensor as loaded.

    They are in files of ``shard`` bytes, or in one file of PyTorch for the name of a model that
    ends with ".bin".
    """
    from polyhead.zoo.published import table
    from polyhead.zoo.published.settings import write_settings

    pickled = name.endswith(".bin")
    shard = math.inf if pickled else shard
    cls, config, format, half = model_of(name.removesuffix(".bin"))
    random = np.random.default_rng(0)
    settings = format.fixed | write_settings(format.settings, config) | format.write(config)
    (folder / "config.json").write_text(json.dumps(settings))
    entries, _ = table.match(format.rows(config, None), cls.shapes(config), {})
    places, held, largest = {}, {}, 0
    for i, entry in enumerate(entries, start=1):
        array = random.standard_normal(table.shape_of(entry), "float32")
        largest = max(largest, array.nbytes)
        held[entry.name] = array.astype("float16") if entry.name.startswith(half) else array
        if sum(array.nbytes for array in held.values()) > shard or i == len(entries):
            file = "pytorch_model.bin" if pickled else f"model-{i:05d}.safetensors"
            (save_pickled if pickled else save_file)(held, folder / file)
            places |= dict.fromkeys(held, file)
            held = {}
    if not pickled:
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": places}))
    return largest


def save_pickled(arrays, file):
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, file)


def measure(preset, shard=SHARD):
    """Returns the bytes of the peak memory above the import, of its limit, and of the variables."""
    with tempfile.TemporaryDirectory() as folder:
        largest = write_weights(Path(folder), preset, shard)
        child = [sys.executable, "-c", CHILD, folder, Path(preset).suffix]
        done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
    peak, variables = map(int, done.stdout.split()[-2:])
    return peak, variables + 2 * largest + SLACK, variables


if __name__ == "__main__":
    peak, allowed, variables = measure(sys.argv[1] if len(sys.argv) > 1 else "gpt2-xl")
    print(f"variables {variables / 1e9:.2f} GB, peak above the import {peak / 1e9:.2f} GB, "
          f"allowed {allowed / 1e9:.2f} GB")  # fmt: skip
    sys.exit(peak > allowed)
