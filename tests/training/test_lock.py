import errno
import subprocess
import sys
from contextlib import contextmanager

import pytest

from polyhead.training import Checkpoints, FolderInUseError, lock, locked

HOLD = """
import runpy, sys
runpy.run_path(sys.argv[1])["acquire"](*sys.argv[2:])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process_holds(folder, name=""):
    """A context in which another process holds the lock; the process is killed at the end."""
    command = [sys.executable, "-c", HOLD, lock.__file__, str(folder), name]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_folder_is_refused_while_another_process_holds_it(tmp_path):
    with another_process_holds(tmp_path) as process:
        with pytest.raises(FolderInUseError, match=f"is in use by process {process.pid} on"):
            lock.acquire(tmp_path)
        with locked(tmp_path, "average"):  # another part of the folder
            pass
    assert (tmp_path / ".lock").exists()  # left by the killed process, and no longer locked
    with locked(tmp_path), another_process_holds(tmp_path, "average"):
        with locked(tmp_path):  # a process can lock twice; the outer lock releases
            assert not lock.acquire(tmp_path)
        assert (tmp_path / ".lock").exists()
        with pytest.raises(FolderInUseError):
            lock.acquire(tmp_path, "average")
    assert [path.name for path in tmp_path.iterdir()] == [".average.lock"]


def test_a_folder_created_for_the_lock_is_removed_if_empty(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "new" / "run"):
        raise KeyError
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "new" / "run"):
        (tmp_path / "new" / "file").write_text("")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    with pytest.raises(NotADirectoryError, match="is a file"), locked(tmp_path / "new" / "file"):
        pass


def test_checkpoints_lock_their_folder_before_they_remove_temporary_files(tmp_path):
    temporary = tmp_path / ".checkpoint-00000001.safetensors.7"
    temporary.write_text("of a running process")
    checkpoints = Checkpoints(tmp_path)
    with another_process_holds(tmp_path), pytest.raises(FolderInUseError):
        checkpoints.resume(model=None)
    assert temporary.exists()
    checkpoints.on_train_begin()
    assert (tmp_path / ".lock").exists()
    checkpoints.on_train_end()
    assert not (tmp_path / ".lock").exists()


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch):
    def lockf(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", lockf)
    with pytest.warns(UserWarning, match=r"cannot be locked \(.*No locks available\)"):
        with locked(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
