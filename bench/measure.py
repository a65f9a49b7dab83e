"""Runs each measurement of a benchmark in a separate process.

So measurements do not share memory, threads or a backend, and each has its own peak memory. A
benchmark script calls `run_isolated` for each figure, and ends with ``run(main)``.
"""

import collections
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# XLA's names of operations, to separate them from the names of the runtime.
OPERATION = re.compile(r"(MatMul|dot|custom-call|copy|transpose|wrapped_|[\w.-]*fusion)[\w.-]*$")


def median_time(call, least=5, seconds=8.0):
    """The median time of ``call`` in seconds, after compilation and warm-up.

    It calls for at least ``seconds`` and ``least`` times, but ends after five times ``seconds``.
    """
    call()
    call()
    times = []
    while (
        sum(times) < seconds and len(times) < 100 or len(times) < least and sum(times) < 5 * seconds
    ):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def torch_step(model, loss, compile=False):
    """Seconds per step of PyTorch's AdamW with clipped gradients, eager or compiled."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    forward = torch.compile(loss) if compile else loss

    def call():
        optimizer.zero_grad()
        forward().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return median_time(call)


def keras_step(model, loss, jit, batch, profile=False):
    """Seconds per step of a Keras model with the same optimizer, as in `fit`; or its profile."""
    import keras
    import numpy as np
    import tensorflow as tf

    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1, global_clipnorm=1.0)
    model.compile(optimizer, loss, metrics=None, jit_compile=jit)
    if hasattr(model, "build_optimizer"):  # the first step of our `fit`
        model.build_optimizer()
    model.make_train_function()
    stream = iter(tf.data.Dataset.from_tensors(batch).repeat())

    def call():
        return [np.asarray(log) for log in model.train_function(stream).values()]

    return profile_operations(call, 10) if profile else median_time(call)


class Stopwatch:
    """Measures wall time in ``seconds``, without the time for which the process was stopped.

    A benchmark of hours can be stopped (Ctrl-Z, or SIGSTOP) while the machine has other work.
    """

    TICK = 0.1  # seconds between looks at the clock

    def __init__(self):
        self._began, self._lost = time.perf_counter(), 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        wall, work = time.perf_counter(), time.process_time()
        while True:
            time.sleep(self.TICK)
            passed, worked = time.perf_counter() - wall, time.process_time() - work
            if passed > 10 * self.TICK and worked < passed / 2:  # not just a busy interpreter
                self._lost += passed
            wall, work = wall + passed, work + worked

    @property
    def seconds(self):
        return time.perf_counter() - self._began - self._lost


def run_isolated(function, *arguments, needed=False):
    """Runs a function of the script in a separate process; returns (result, peak memory in MB).

    If it fails, the last line of the error is printed and the result is (None, None); but if the
    result is ``needed``, the script ends.
    """
    plain = [str(a) if isinstance(a, Path) else a for a in arguments]
    command = [sys.executable, sys.argv[0], "measure", json.dumps([function.__name__, *plain])]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode and needed:
        sys.exit(process.stderr)
    if process.returncode:
        print(function.__name__, *arguments, *process.stderr.strip().splitlines()[-1:], flush=True)
        return None, None
    return json.loads(process.stdout.strip().splitlines()[-1])


def run(main):
    """Runs ``main`` or, in a process of `run_isolated`, the requested function."""
    if sys.argv[1:2] != ["measure"]:
        return main()
    name, *arguments = json.loads(sys.argv[2])
    result = getattr(sys.modules["__main__"], name)(*arguments)
    print(json.dumps([result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def measure_limits():
    """Measures the machine: GFLOP/s in float32 and bfloat16, and memory bandwidth in GB/s.

    Matrix products are by PyTorch or TensorFlow, whichever is faster.
    """
    import tensorflow as tf
    import torch

    rates = []
    for theirs, ours in ((torch.float32, tf.float32), (torch.bfloat16, tf.bfloat16)):
        size = 2048 if theirs is torch.float32 else 1024  # slow where the processor has no bfloat16
        a = torch.randn(size, size).to(theirs)
        b = tf.cast(tf.random.normal((size, size)), ours)
        times = [median_time(lambda a=a: a @ a, seconds=2.0)]
        times.append(median_time(lambda b=b: (b @ b)[0, 0].numpy(), seconds=2.0))
        rates.append(2 * size**3 / min(times) / 1e9)
    long = torch.randn(2**28)
    return *rates, long.numel() * 4 / median_time(lambda: long.sum(), seconds=2.0) / 1e9


def profile_operations(call, calls=1):
    """Milliseconds per call by kind of XLA operation, over ``calls`` calls, the longest first."""
    import glob
    import tempfile

    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

    call()
    call()
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(calls):
            call()
        tf.profiler.experimental.stop()
        [file] = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        space = XSpace.FromString(Path(file).read_bytes())
    spent = collections.Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            name = plane.event_metadata[event.metadata_id].name
            if OPERATION.match(name):
                kind = re.sub(r"[._0-9]*$", "", name)
                spent[kind] += event.duration_ps / 1e9 / calls
    return spent.most_common(6)


def machine():
    """The date and the processor, for the heading of a table."""
    return f"{date.today()}, {os.cpu_count()} cores of {processor()}"


def processor():
    about = Path("/proc/cpuinfo")  # on Linux
    for line in about.read_text().splitlines() if about.exists() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def ratio(theirs, ours):
    """The quotient of two times in seconds, theirs / ours, in bold; "-" if one was not measured."""
    return "-" if theirs is None or ours is None else f"**{theirs / ours:.2f}**"


def format_answer(answer, unit):
    """Formats an answer of `run_isolated`: its seconds by the function ``unit``, and its memory."""
    seconds, memory = answer
    return "-" if seconds is None else f"{unit(seconds)} ({memory:,.0f} MB)"


def best(answers):
    """(seconds, memory) of the fastest of several answers that did not fail."""
    return min((a for a in answers if a[0] is not None), default=(None, None))


def store(file, results):
    """Writes results to a JSON file, all or none."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1))
    os.replace(new, file)


def write(script, lines):
    """Writes lines to a Markdown file beside ``script``, and prints them."""
    print("\n".join(lines))
    Path(script).with_suffix(".md").write_text("\n".join(lines) + "\n")
