import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from polyhead.quiet import filtered_stderr

LINES = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795636722.757055    7760 cudart_stub.cc:31] Could not find cuda drivers
2026-11-25 19:58:00.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.
W0000 00:00:1795636722.757055    7760 cuda.cc:31] a warning
E0000 00:00:1795636722.757055    7760 cuda.cc:31] an error
F0000 00:00:1795636722.757055    7760 cpu_feature_guard.cc:31] fatal
Illegal instruction
"""


@pytest.mark.parametrize("level, kept", [("3", 5), ("2", 4), ("1", 3), ("0", 0), ("", 0)])
def test_log_lines_below_the_users_level_are_filtered(level, kept, monkeypatch, capfd):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    with filtered_stderr():
        os.write(2, LINES.encode())
    assert capfd.readouterr().err == "".join(LINES.splitlines(True)[kept:])


def test_a_closed_standard_error_is_not_an_error(monkeypatch, capfd):
    class Closed:
        def flush(self):
            raise ValueError("I/O operation on closed file")

    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    for stream in (None, object(), Closed()):
        monkeypatch.setattr(sys, "stderr", stream)
        with filtered_stderr():
            os.write(2, b"kept\n")
        assert capfd.readouterr().err == "kept\n"


def test_threads_filter_one_at_a_time(monkeypatch, capfd):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")

    def write(i):
        with filtered_stderr():
            os.write(2, LINES.encode())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(20)))
    os.write(2, b"end\n")
    assert capfd.readouterr().err == "".join(LINES.splitlines(True)[5:]) * 20 + "end\n"


def test_importing_polyhead_prints_nothing():
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    code = "import polyhead.zoo, tensorflow; tensorflow.constant(1)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
