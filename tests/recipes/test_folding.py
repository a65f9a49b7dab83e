import csv
import sys

import numpy as np
import pytest

from polyhead.data import Structure
from polyhead.recipes import folding
from polyhead.recipes.run import load
from polyhead.training import lddt
from polyhead.zoo import ESMFold
from tests.conftest import without_xla
from tests.data.test_folding import structure
from tests.recipes.test_command import polyhead

pytest.importorskip("gemmi")


def test_data_are_needed(tmp_path, monkeypatch, capfd):
    status, _, err = polyhead(monkeypatch, capfd, "train", "folding", "--out", tmp_path / "RUN")
    assert status == 1 and err == "error: folding needs --data: a folder of structures, or a file\n"
    assert not (tmp_path / "RUN").exists()


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("x.xyz", ValueError, r"a structure is written to \*.pdb, \*.cif"),
        ("nowhere/x.pdb", FileNotFoundError, "no folder .*nowhere for x.pdb"),
        ("x.cif.gz", ImportError, r'pip install "polyhead\[proteins\]"'),
    ],
)
def test_the_output_is_checked_before_the_model_is_loaded(
    name, error, message, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "gemmi", None)
    with pytest.raises(error, match=message):
        folding.fold(tmp_path / "no run", ["MKTAY"], tmp_path / name)


@pytest.mark.slow
def test_a_run_resumes_and_folds(tmp_path, monkeypatch, capfd):
    (tmp_path / "data").mkdir()
    for i in range(10):
        structure("MKTAYIAKQR" + "GA"[: i % 3], i).save(tmp_path / "data" / f"{i}.pdb")
    sizes = dict(num_blocks=1, num_iterations=1, passes=1)
    ESMFold.preset("fold-tiny", **sizes).save_pretrained(tmp_path / "SMALL")
    common = dict(
        data=str(tmp_path / "data"),
        pretrained=str(tmp_path / "SMALL"),
        interval=2,
        crop=8,
        schedule="sqrt",
        mask_rate=0.2,
    )
    settings = folding.Settings(updates=4, **common)
    with without_xla():
        whole = folding.train(settings, tmp_path / "whole", say=lambda line: None)
        folding.train(
            folding.Settings(updates=2, **common), tmp_path / "parts", say=lambda line: None
        )
        parts = folding.train(settings, tmp_path / "parts", say=lambda line: None)
        assert parts[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-5)
        for a, b in zip(
            load(tmp_path / "whole").weights, load(tmp_path / "parts").weights, strict=True
        ):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)
        found = folding.evaluate(tmp_path / "whole", say=lambda line: None)
        assert {"lddt", "tm", "gdt", "rmsd", "plddt"} < set(found) and len(found["chains"]) == 1
        rows = list(csv.DictReader(open(tmp_path / "whole" / "history.csv")))
        assert [*rows[0]][0] == "epoch" and "val_lddt" in rows[0]
        out = tmp_path / "a.pdb"
        status, text, err = polyhead(
            monkeypatch, capfd, "fold", tmp_path / "whole", "MKTAY", "GG", "--out", out
        )
    assert status == 0, err
    assert [x.name for x in sorted(tmp_path.glob("a-*.pdb"))] == ["a-1.pdb", "a-2.pdb"]
    assert text.count("pLDDT") == 2
    folding.fold(tmp_path / "whole", ["MKTAY", "GG"], tmp_path / "b.pdb.GZ")
    assert [x.name for x in sorted(tmp_path.glob("b*"))] == ["b-1.pdb.GZ", "b-2.pdb.GZ"]


def test_a_file_is_written_when_its_protein_is_folded(tmp_path, monkeypatch):
    sizes = dict(num_blocks=1, num_iterations=1, passes=1)
    ESMFold.preset("fold-tiny", **sizes).save_pretrained(tmp_path / "SMALL")
    save, saved = Structure.save, []

    def stop_at_second(self, path):
        if saved:
            raise KeyboardInterrupt
        saved.append(save(self, path))

    monkeypatch.setattr(Structure, "save", stop_at_second)
    with pytest.raises(KeyboardInterrupt), without_xla():
        folding.fold(tmp_path / "SMALL", ["MKTAY", "GG", "MKT"], tmp_path / "a.pdb")
    assert [x.name for x in tmp_path.glob("*.pdb")] == ["a-2.pdb"]  # the shortest first
    assert (tmp_path / "a-2.pdb").read_text().count(" CA ") == 2


@pytest.fixture
def made(tmp_path):
    """Folders of structures, and a small model."""
    for i in range(10):
        (tmp_path / "data" / ("val" if i == 9 else "train")).mkdir(parents=True, exist_ok=True)
        folder = tmp_path / "data" / ("val" if i == 9 else "train")
        structure("MKTAYIAKQR" + "GA"[: i % 3], i).save(folder / f"{i}.pdb")
    sizes = dict(num_blocks=1, num_iterations=1, passes=1, max_length=20)
    ESMFold.preset("fold-tiny", **sizes).save_pretrained(tmp_path / "SMALL")
    return tmp_path


@pytest.mark.slow
def test_the_same_command_resumes_with_the_default_interval(made, monkeypatch, capfd):
    run = "train", "folding", "--data", made / "data", "--pretrained", made / "SMALL"
    run = *run, "--batch-size", 9, "--out", made / "RUN", "--steps"
    with without_xla():
        for steps, message in ((1, "1 updates done"), (2, "resuming after update 1")):
            monkeypatch.setattr(folding, "LEAST", 1)
            status, out, err = polyhead(monkeypatch, capfd, *run, steps, "--schedule", "sqrt")
            assert status == 0 and message in out, err


@pytest.mark.slow
def test_chains_that_cannot_be_compared_are_left_out(made):
    val = made / "data" / "val"
    structure("A", 1).save(val / "one.pdb")
    text = structure("GGGG:MKTAY", 2).pdb().replace("GLY A", "UNK A")
    (val / "unknown.pdb").write_text(text)
    settings = folding.Settings(
        data=str(made / "data"), pretrained=str(made / "SMALL"), updates=2, interval=2
    )
    lines = []
    with without_xla():
        [row] = folding.train(settings, made / "run", say=lines.append)
    assert np.isfinite(row["val_lddt"])
    reason = "is left out: no two known residues are within 15 angstroms"
    assert f"one.pdb {reason}" in lines and f"unknown.pdb, A {reason}" in lines
    found = folding.evaluate(made / "run", say=lambda line: None)
    assert [x["name"] for x in found["chains"]] == ["9.pdb", "unknown.pdb, B"]
    assert found["lddt"] == pytest.approx(row["val_lddt"], abs=1e-3)


@pytest.mark.parametrize(
    "sequence, message",
    [
        ("A", "no chain has two known residues within 15 angstroms"),
        ("MKTAYIAKQR" * 3, "a.pdb has 30 residues, and the model takes 20"),
    ],
)
def test_validation_is_checked_before_training(sequence, message, made):
    for path in (made / "data" / "val").iterdir():
        path.unlink()
    structure(sequence, 1).save(made / "data" / "val" / "a.pdb")
    settings = folding.Settings(data=str(made / "data"), pretrained=str(made / "SMALL"))
    with pytest.raises(ValueError, match=message):
        folding.train(settings, made / "run", say=lambda line: None)
    assert not (made / "run" / "settings.json").exists()


@pytest.mark.slow
def test_the_network_learns_a_protein():
    """A chain of ideal geometry from its sequence: close after 125 updates."""
    import keras

    from polyhead.data import structure_batches
    from polyhead.training import Muon

    keras.utils.set_random_seed(0)
    teacher = ESMFold.preset("fold-tiny")
    for v in teacher.weights:
        v.assign(v + keras.random.normal(v.shape, 0, 0.05))
    truth = teacher.fold("MKTAYIAKQRQISFVKSHFSRQLEERL")
    model = ESMFold.preset("fold-tiny")
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, 110, 0.05, warmup_target=5e-3, warmup_steps=15
    )
    model.compile(Muon(rate, weight_decay=None, global_clipnorm=1.0))
    with without_xla():
        model.fit(structure_batches([truth], start=0), steps_per_epoch=125, epochs=1, verbose=0)
    found = model.fold(truth.sequence)
    assert lddt(found.positions[:, 1], truth.positions[:, 1]) > 80
    assert found.plddt.mean() > 60
