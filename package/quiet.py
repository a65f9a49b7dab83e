"""Hides TensorFlow's log lines, unless the user sets TF_CPP_MIN_LOG_LEVEL.

Importing this module is enough; ``import polyhead`` does it first. TensorFlow respects the
variable, except for the lines that its libraries write while they are loaded. This module filters
those lines from the first ``import tensorflow``. It imports neither Keras nor TensorFlow itself.

If the process dies while it imports TensorFlow, no line is shown: set TF_CPP_MIN_LOG_LEVEL=0 to
see the reason.
"""

import contextlib
import importlib.abc
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

VARIABLE = "TF_CPP_MIN_LOG_LEVEL"  # 0: everything, 1: no INFO, 2: no WARNING, 3: no ERROR
LINE = re.compile(rb"(?:[\d-]+ [\d:.]+: )?([IWEF])(?:\d{4} [\d:.]+ +\d+ \S+\]| \S+\])")
HEADER = b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR"
LOCK = threading.RLock()  # all threads share standard error


@contextlib.contextmanager
def filtered_stderr() -> Iterator[None]:
    """Removes the log lines that the variable excludes from standard error, within a block.

    All other lines reach the screen at the end of the block.
    """
    level = os.environ.get(VARIABLE, "")
    excluded = b"IWE"[: int(level)] if level.isdecimal() else b""
    if not excluded:
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(LOCK)
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            screen = os.dup(2)
        except OSError:  # no room for a file, or standard error is closed
            yield
            return
        stack.callback(os.close, screen)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # None, closed, or an object without flush
                sys.stderr.flush()
            os.dup2(screen, 2)
            held.seek(0)
            with contextlib.suppress(OSError):  # standard error is closed
                for line in held:
                    match = LINE.match(line)
                    if not (line.startswith(HEADER) or match and match[1] in excluded):
                        os.write(2, line)


class QuietTensorFlow(importlib.abc.MetaPathFinder):
    """Finds tensorflow with the other finders, and filters the output of its import."""

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        if (spec := next(filter(None, specs), None)) and spec.loader:
            execute = spec.loader.exec_module

            def execute_quietly(module):
                with filtered_stderr():
                    execute(module)

            spec.loader.exec_module = execute_quietly
        return spec


os.environ.setdefault(VARIABLE, "3")
sys.meta_path.insert(0, QuietTensorFlow())
