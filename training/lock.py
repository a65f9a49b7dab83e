"""Locks that let one process at a time write to a folder."""

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HELD = {}  # lock file -> its open file object, of the locks that this process holds


class FolderInUseError(RuntimeError):
    """Another process uses the folder; the message names both."""


def acquire(folder: str | PathLike[str], name: str = "") -> bool:
    """Locks a folder for this process, until `release` or until the process ends.

    The lock is the operating system's (``lockf``) on the file ``.lock`` in the folder, so a killed
    process leaves no lock behind. It holds across machines that share the folder if the file system
    supports locks. Readers are not affected. On Windows and on some network file systems there are
    no locks, and a warning is issued.

    Args:
        folder: an existing folder.
        name: locks one part of the folder, with the file ``.<name>.lock``.

    Returns:
        whether this call locked it; False if this process held the lock already.

    Raises:
        FolderInUseError: another process holds the lock.
    """
    path = Path(folder).resolve() / (f".{name}.lock" if name else ".lock")
    if path in HELD:
        return False
    while path not in HELD:
        file = open(path, "a+b", buffering=0)
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "this system does not have fcntl")
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read().decode().strip() or "another process"
                file.close()
                raise FolderInUseError(f"{folder} is in use by {holder}: wait or stop it") from None
            warnings.warn(
                f"{folder} cannot be locked ({error}): let no other process write to it",
                stacklevel=2,
            )
        if is_same(path, file):
            HELD[path] = file
            with contextlib.suppress(OSError):  # on a full disk the lock names no holder
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        else:  # its holder removed it after it was opened here
            file.close()
    return True


def release(folder: str | PathLike[str], name: str = "") -> None:
    """Releases the lock of a folder, if this process holds it."""
    path = Path(folder).resolve() / (f".{name}.lock" if name else ".lock")
    if file := HELD.pop(path, None):
        path.unlink(missing_ok=True)
        file.close()


@contextlib.contextmanager
def locked(folder: str | PathLike[str], name: str = "") -> Iterator[None]:
    """A context in which no other process can `acquire` the folder.

    Creates the folder if necessary, and removes it if it is empty at the end.

    >>> with polyhead.training.locked("run"):
    ...     polyhead.training.write_file("run/notes.txt", b"Only we write here.")

    Raises:
        FolderInUseError: another process holds the lock.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, not a folder")
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    taken = False
    try:
        taken = acquire(folder, name)
        yield
    finally:
        if taken:
            release(folder, name)
        with contextlib.suppress(OSError):  # not empty
            for path in new:
                path.rmdir()


def is_same(path, file):
    """Whether ``path`` is still the open ``file``."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
