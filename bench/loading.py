"""Measures the memory for loading a sharded checkpoint: `python bench/loading.py gpt2-xl`.

Writes random weights of a GPT-2 in shards, loads them in a separate process, and compares its peak
memory above the import with the limit: the model's variables, twice the largest tensor, and 200 MB.
gpt2-xl takes 6.2 GB of disk and, on 2 cores, two minutes. Its variables are 6.23 GB; the peak was
6.83 GB, with a limit of 7.07 GB.
"""

import json
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
from polyhead.zoo import GPT
GPT.preset("char-small")  # what the first model of a process loads

def memory(name):
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(name))
    return 1024 * int(line.split()[1])

gc.collect()
before = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins here
model = GPT.from_pretrained(sys.argv[1])
print(memory("VmHWM") - before, sum(v.value.dtype.size * v.value.shape.num_elements()
                                    for v in model.variables))
"""


def write_shards(folder, preset, shard=SHARD):
    """Writes a GPT-2 of random float32 weights; returns the bytes of its largest tensor."""
    from polyhead.zoo import GPT
    from polyhead.zoo.published import gpt2, table
    from polyhead.zoo.published.settings import write_settings

    config, random = GPT.PRESETS[preset], np.random.default_rng(0)
    settings = gpt2.FORMAT.fixed | write_settings(gpt2.SETTINGS, config)
    (folder / "config.json").write_text(json.dumps(settings))
    entries, _ = table.match(gpt2.rows(config, None), GPT.shapes(config), {})
    places, held, largest = {}, {}, 0
    for i, entry in enumerate(entries, start=1):
        array = random.standard_normal(table.shape_of(entry), "float32")
        held[entry.name] = array
        largest = max(largest, array.nbytes)
        if sum(array.nbytes for array in held.values()) > shard or i == len(entries):
            file = f"model-{i:05d}.safetensors"
            save_file(held, folder / file)
            places |= dict.fromkeys(held, file)
            held = {}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return largest


def measure(preset, shard=SHARD):
    """Returns the bytes of the peak memory above the import, of its limit, and of the variables."""
    with tempfile.TemporaryDirectory() as folder:
        largest = write_shards(Path(folder), preset, shard)
        child = [sys.executable, "-c", CHILD, folder]
        done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
    peak, variables = map(int, done.stdout.split()[-2:])
    return peak, variables + 2 * largest + SLACK, variables


if __name__ == "__main__":
    peak, allowed, variables = measure(sys.argv[1] if len(sys.argv) > 1 else "gpt2-xl")
    print(f"variables {variables / 1e9:.2f} GB, peak above the import {peak / 1e9:.2f} GB, "
          f"allowed {allowed / 1e9:.2f} GB")  # fmt: skip
    sys.exit(peak > allowed)
