"""Hides TensorFlow's log lines, unless the user sets TF_CPP_MIN_LOG_LEVEL.

Importing this module is enough. TensorFlow honours the variable, except for the lines that its
libraries write while they are loaded. Those are filtered here, wherever ``import tensorflow``
stands. ``import polyhead`` imports this module first, and so does every import of a module in it;
it imports neither Keras nor TensorFlow itself.

Where the process dies while it imports TensorFlow, nothing is shown: set TF_CPP_MIN_LOG_LEVEL=0 to
see why.
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
LOCK = threading.RLock()  # standard error is the process's


@contextlib.contextmanager
def filtered_stderr() -> Iterator[None]:
    """Within it the process's standard error loses the log lines that the variable excludes.

    What libraries write reaches the screen at the end of the block, lines of other kinds included.
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
            with contextlib.suppress(OSError):  # nobody reads standard error
                for line in held:
                    found = LINE.match(line)
                    if not (line.startswith(HEADER) or found and found[1] in excluded):
                        os.write(2, line)


class QuietTensorFlow(importlib.abc.MetaPathFinder):
    """Finds tensorflow as the other finders do, and filters what its import writes."""

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        if (spec := next(filter(None, found), None)) and spec.loader:
            execute = spec.loader.exec_module

            def quietly(module):
                with filtered_stderr():
                    execute(module)

            spec.loader.exec_module = quietly
        return spec


os.environ.setdefault(VARIABLE, "3")
sys.meta_path.insert(0, QuietTensorFlow())
