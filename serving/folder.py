"""Temporary folders, created beside their final place."""

import contextlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import psutil

DAY = 24 * 60 * 60  # seconds


@contextlib.contextmanager
def temporary_folder(parent, name):
    """A context with a new folder ``.NAME.PID.*`` in ``parent``, deleted at the end.

    It also deletes folders of killed processes, if they are a day old and their PID is free. (The
    age protects the folders of other machines that share ``parent``.)
    """
    parent = Path(parent)
    for path in parent.iterdir():
        found = re.fullmatch(rf"\.{re.escape(name)}\.([0-9]+)\.[a-z0-9_]{{8}}", path.name)
        if found and not is_running(int(found[1])) and is_old(path):
            if (path / "old").exists() and not (parent / name).exists():  # killed between renames
                os.rename(path / "old", parent / name)
            shutil.rmtree(path, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{name}.{os.getpid()}.", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_running(pid):
    try:
        return psutil.pid_exists(pid)
    except OverflowError:
        return False


def is_old(path):
    try:
        return time.time() - path.lstat().st_mtime > DAY
    except FileNotFoundError:  # another process has just deleted it
        return False
