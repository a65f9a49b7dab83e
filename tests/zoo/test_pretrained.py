import json
import shutil

import numpy as np
import pytest
from keras import ops

from polyhead.training import CheckpointError, read_tensors, write_tensors
from polyhead.zoo import Transformer
from tests.conftest import TENSORFLOW, small

INPUTS = {"source": np.array([[5, 6, 2]]), "target": np.array([[1, 7, 8, 9]])}


@pytest.fixture
def saved(tmp_path):
    small().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_model_is_the_same_again(tmp_path):
    model = small(norm="pre")
    model.save_pretrained(tmp_path / "new" / "saved")
    again = Transformer.from_pretrained(tmp_path / "new" / "saved")
    assert again.config == model.config
    before, after = (ops.convert_to_numpy(m(INPUTS)) for m in (model, again))
    np.testing.assert_array_equal(before, after)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["saved"]


def test_names_of_tensors_read_as_english(saved):
    tensors, _ = read_tensors(saved / "model.safetensors")
    assert {"tokens/embeddings", "decoder_1/cross_attention/query/kernel"} <= set(tensors)
    assert len(tensors) == len(small().weights)


@pytest.mark.skipif(not TENSORFLOW, reason="tokenizers are TensorFlow's")
def test_the_tokenizer_goes_with_the_model(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = Transformer.from_pretrained(tmp_path / "saved")
    assert again.translate(["The dog."]) == model.translate(["The dog."])


def test_an_older_model_is_replaced_and_other_files_are_not(saved, tmp_path):
    model = small(num_layers=1)
    model.save_pretrained(saved)
    assert Transformer.from_pretrained(saved).config.num_layers == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else than a Transformer"):
        model.save_pretrained(tmp_path / "mine")
    (saved / "thesis.txt").write_text("beside the model")
    with pytest.raises(FileExistsError, match="holds something else than a Transformer"):
        model.save_pretrained(saved)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        model.save_pretrained(tmp_path / "file")


def test_a_failed_save_leaves_the_model_before_it(saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        small(num_layers=1).save_pretrained(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


def change_config(saved, **changes):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **changes}))


def change_tensors(saved, change):
    tensors, _ = read_tensors(saved / "model.safetensors")
    change(tensors)
    write_tensors(saved / "model.safetensors", tensors)


def test_what_does_not_fit_is_named(saved, tmp_path):
    def refused(message):
        return pytest.raises(CheckpointError, match=message)

    with pytest.raises(FileNotFoundError, match="there is no config.json in it"):
        Transformer.from_pretrained(tmp_path)
    change_tensors(saved, lambda t: t.update(stranger=np.zeros(2)))
    with refused(r"the model has no \['stranger'\]"):
        Transformer.from_pretrained(saved)
    change_tensors(saved, lambda t: (t.pop("stranger"), t.pop("encoder_0/attention/query/bias")))
    with refused(r"it lacks \['encoder_0/attention/query/bias'\]"):
        Transformer.from_pretrained(saved)
    small().save_pretrained(saved)
    change_config(saved, vocab_size=41)
    with refused(r"tokens/embeddings has shape \(40, 32\), the model's is \(41, 32\)"):
        Transformer.from_pretrained(saved)
    change_config(saved, vocab_size=40, rotary=True)
    with refused(r"unknown settings \['rotary'\]"):
        Transformer.from_pretrained(saved)
    change_config(saved, model="GPT")
    with refused("holds a GPT, not a Transformer"):
        Transformer.from_pretrained(saved)
    for content, message in (("{", "config.json is no JSON"), ("[]", "it holds a list")):
        (saved / "config.json").write_text(content)
        with refused(message):
            Transformer.from_pretrained(saved)
    shutil.rmtree(saved)
    small().save_pretrained(saved)
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with refused("model.safetensors is no complete safetensors file"):
        Transformer.from_pretrained(saved)
