import os
import subprocess
import sys

import pytest

from polyhead.serving.quiet import filtered_stderr

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


def test_importing_polyhead_prints_nothing():
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    code = "import polyhead.zoo, tensorflow; tensorflow.constant(1)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
