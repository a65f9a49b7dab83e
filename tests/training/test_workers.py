import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("worker.py")


def start(run, epochs, pause=0.0, workers=2):
    """Starts workers with TF_CONFIG, or one process without it."""
    sockets = [socket.socket() for _ in range(workers)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    processes = []
    for index in range(workers):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), str(run), str(epochs), str(pause)],
                env={**os.environ, "TF_CONFIG": json.dumps(config) if workers > 1 else ""},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def ended(processes, timeout=240):
    outputs = [p.communicate(timeout=timeout)[0] for p in processes]
    for p, output in zip(processes, outputs, strict=True):
        assert p.returncode == 0, output[-3000:]
    return outputs


def difference(one, other):
    one, other = (np.load(run / "weights.npz") for run in (one, other))
    return max(np.abs(one[name] - other[name]).max() for name in one)


def test_two_workers_train_like_one_process(tmp_path):
    ended(start(tmp_path / "two", 3))
    ended(start(tmp_path / "one", 3, workers=1))
    assert difference(tmp_path / "two", tmp_path / "one") < 1e-6


@pytest.mark.parametrize(
    "lost",
    [pytest.param(0, id="the chief"), pytest.param(1, id="another", marks=pytest.mark.long)],
)
def test_a_lost_worker_stops_the_others_and_the_job_resumes(tmp_path, lost):
    processes = start(tmp_path / "run", 6, pause=0.3)
    while not list((tmp_path / "run").glob("checkpoint-*")):
        assert all(p.poll() is None for p in processes)
        time.sleep(0.5)
    processes[lost].send_signal(signal.SIGKILL)
    output = processes[1 - lost].communicate(timeout=240)[0]  # it stops by itself
    assert processes[1 - lost].returncode != 0
    assert "another worker has stopped" in output.splitlines()[-1], output[-3000:]
    ended(start(tmp_path / "run", 6))
    ended(start(tmp_path / "whole", 6, workers=1))
    assert difference(tmp_path / "run", tmp_path / "whole") < 1e-6
