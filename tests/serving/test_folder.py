import os
import subprocess
import sys
import time

import pytest

from polyhead.serving.folder import DAY, temporary_folder


@pytest.fixture
def left(tmp_path):
    """Creates a leftover folder of a process."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    def make(name, pid=gone.pid, age=2 * DAY):
        folder = tmp_path / f".{name}.{pid}.ab_cde12"
        folder.mkdir()
        (folder / "file").touch()
        os.utime(folder, (time.time() - age,) * 2)
        return folder

    return make


def test_leftovers_of_killed_processes_are_deleted(tmp_path, left):
    old = left("export")
    kept = [left("export", os.getppid()), left("export", age=DAY / 2, pid=2**22 + 1), left("model")]
    other = tmp_path / ".export.notes"
    other.mkdir()
    with temporary_folder(tmp_path, "export") as folder:
        assert folder.name.startswith(f".export.{os.getpid()}.") and not old.exists()
        (folder / "file").touch()
    assert sorted(tmp_path.iterdir()) == sorted([*kept, other])


def test_saving_deletes_leftovers_of_a_killed_save(tmp_path, left, model):
    old = left("model")
    model.save_pretrained(tmp_path / "model")
    assert not old.exists() and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_temporary_folder_is_deleted_after_an_error(tmp_path):
    with pytest.raises(KeyError), temporary_folder(tmp_path, "export"):
        raise KeyError
    assert not list(tmp_path.iterdir())
