"""The folder of a run."""

import os

import pytest

from polyhead.recipes.run import load, read_settings


def test_a_pipe_instead_of_a_file_is_refused_and_named(tmp_path):
    for file, read in (("settings.json", read_settings), ("config.json", load)):
        os.mkfifo(tmp_path / file)
        with pytest.raises(ValueError, match=f"{tmp_path / file} is not a regular file"):
            read(tmp_path)


def test_an_unknown_model_class_is_refused_and_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model": ["GPT"]}')
    with pytest.raises(ValueError, match=rf"{tmp_path} holds a \['GPT'\], not one of GPT, "):
        load(tmp_path)
