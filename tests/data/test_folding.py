import dataclasses
import gzip

import numpy as np
import pytest
import tensorflow as tf

from polyhead.data import Structure, read_structures, structure_batches
from polyhead.data.folding import PAD, chains
from polyhead.data.residues import ATOM14_MASK, ATOM14_POSITION, LETTERS


def structure(sequence, seed=0):
    """Residues of ideal backbones at random places, 100 angstroms from the origin."""
    parts = sequence.split(":")
    residues = np.array([LETTERS.index(x) for part in parts for x in part])
    places = 100 + np.random.default_rng(seed).normal(size=(len(residues), 1, 3)) * 10
    return Structure.of_prediction(
        residues,
        np.repeat(range(len(parts)), [len(part) for part in parts]),
        (ATOM14_POSITION[residues] + places).astype("float32"),
        np.full((len(residues), 37), 50.0),
        np.zeros((len(residues),) * 2),
        0.5,
    )


def test_chains_are_examples_with_their_targets():
    one, two = chains(structure("MKTAYWF:GGK"))
    assert one.residues.tolist() == [LETTERS.index(x) for x in "MKTAYWF"]
    assert two.positions.tolist() == [0, 1, 2]
    np.testing.assert_allclose(one.atoms[:, 1].mean(0), 0, atol=1e-4)  # centered
    assert (one.atom_mask == ATOM14_MASK[one.residues]).all()
    assert one.frame_mask[:, 0].all() and not two.frame_mask[:2, 4:].any()
    np.testing.assert_allclose(one.rotations[:, 0] @ np.swapaxes(one.rotations[:, 0], 1, 2),
                               np.tile(np.eye(3), (7, 1, 1)), atol=1e-5)  # fmt: skip


def test_batches_are_crops_that_are_reproducible():
    structures = [structure("MKTAYIAKQRQISF" * 2), structure("GGK", 1), structure("ACDEF", 2)]
    batches = structure_batches(structures, batch_size=2, crop=10)
    assert len(batches) == 2
    rows = [
        row
        for inputs, _, weight in batches
        for row, w in zip(inputs["residues"], weight, strict=True)
        if w
    ]
    assert sorted((np.array(row) < PAD).sum() for row in rows) == [3, 5, 10]
    widths = []
    for inputs, labels, weight in batches:
        assert labels.shape == weight.shape == (2,)
        widths.append(inputs["residues"].shape[1])
        for name, x in inputs.items():
            assert x.shape[0] == 2 and (name == "clamped" or x.shape[1] == widths[-1])
        assert not tf.reduce_any(inputs["atom_mask"][inputs["residues"] == PAD])
    assert sorted(widths) == [8, 10]  # of GGK and ACDEF; of the crop, and an empty row
    first = [
        x["positions"].numpy().tolist()
        for x, *_ in structure_batches(structures, 1, 10, 1, start=0).take(9)
    ]
    again = [
        x["positions"].numpy().tolist()
        for x, *_ in structure_batches(structures, 1, 10, 1, start=6).take(3)
    ]
    assert first[6:] == again
    assert len({str(x) for x in first}) > 3  # other parts in another epoch


def test_chains_of_similar_length_share_a_batch():
    lengths = np.random.default_rng(0).integers(3, 60, 40)
    structures = [structure("MKTAYIAKQR"[i % 10] * n, i) for i, n in enumerate(lengths)]
    known = {tuple(c.atoms[:, 1].ravel()): c for s in structures for c in chains(s)}
    padded = {}
    for buckets in (1, 4):
        found, widths = [], []
        for inputs, _, weight in structure_batches(structures, 4, buckets=buckets):
            widths.append(inputs["residues"].shape[1])
            exists = inputs["residues"].numpy() < PAD
            for i in np.flatnonzero(weight):
                chain = known[tuple(inputs["atoms"][i][exists[i]][:, 1].numpy().ravel())]
                found.append(len(chain.residues))
                for name in chain._fields:
                    np.testing.assert_array_equal(inputs[name][i][exists[i]], getattr(chain, name))
                    filler = PAD if name == "residues" else 0
                    assert (inputs[name][i].numpy()[~exists[i]] == filler).all()
        assert sorted(found) == sorted(lengths) and len(set(widths)) == buckets
        padded[buckets] = 4 * sum(widths)
    assert padded[4] < 0.8 * padded[1]
    # Each batch has other random numbers, and the same ones after a restart.
    whole = [
        (x["clamped"].numpy().tolist(), x["masked"].numpy().tolist())
        for x, *_ in structure_batches(structures, 4, start=0, mask_rate=0.5).take(20)
    ]
    parts = [
        (x["clamped"].numpy().tolist(), x["masked"].numpy().tolist())
        for x, *_ in structure_batches(structures, 4, start=13, mask_rate=0.5).take(7)
    ]
    assert whole[13:] == parts and len({str(masked) for _, masked in whole}) == 20


def test_residues_are_masked_at_a_rate():
    whole = structure("MKTAYIAKQR" * 4)
    assert "masked" not in next(iter(structure_batches([whole], crop=8)))[0]
    batches = structure_batches([whole], crop=40, mask_rate=0.3, start=0).take(50)
    masked = np.array([inputs["masked"] for inputs, *_ in batches])
    assert masked.mean() == pytest.approx(0.3, abs=0.03) and len(np.unique(masked, axis=0)) == 50


def test_errors_of_the_backbone_are_clamped_in_nine_of_ten_rows():
    inputs, *_ = next(iter(structure_batches([structure("GGK")], batch_size=1000, seed=0)))
    assert np.mean(inputs["clamped"]) == pytest.approx(0.9, abs=0.02)


def test_a_crop_has_the_targets_of_its_residues():
    whole = structure("MKTAYIAKQRQISFVKSHFSRQ")
    [chain] = chains(whole)
    inputs, *_ = next(iter(structure_batches([whole], crop=8)))
    begin = int(inputs["positions"][0, 0])
    part = slice(begin, begin + 8)
    for name in ("residues", "atoms", "rotations", "origins", "torsions", "frame_mask"):
        np.testing.assert_array_equal(inputs[name][0], getattr(chain, name)[part])


def test_folders_have_splits(tmp_path):
    pytest.importorskip("gemmi")
    for i in range(20):
        structure("MKTAY").save(tmp_path / f"p{i:02}.{'pdb' if i % 2 else 'cif.gz'}")
    (tmp_path / "notes.txt").write_text("not a structure")
    assert sorted(read_structures(tmp_path, "val")) == ["p09.pdb", "p19.pdb"]
    assert len(read_structures(tmp_path)) == 18 and len(read_structures(tmp_path, None)) == 20
    one = tmp_path / "p01.pdb"
    assert (
        read_structures(one)["p01.pdb"].sequence == read_structures(one, "val")["p01.pdb"].sequence
    )
    for split in ("train", "dev", "test"):
        (tmp_path / "split" / split).mkdir(parents=True)
        structure("GGK").save(tmp_path / "split" / split / "a.pdb")
    for split in ("train", "val", "test"):
        assert list(read_structures(tmp_path / "split", split)) == ["a.pdb"]


def test_places_rise_in_a_chain():
    """Of a chain with insertions 3A and 3B and a loop that is missing, from its file."""
    numbers, codes = [2, 3, 3, 3, 4, 9, 10], ["", "", "A", "B", "", "", ""]
    whole = dataclasses.replace(structure("MKTAYIA"), numbers=numbers, insertions=codes)
    inputs, *_ = next(iter(structure_batches([whole])))
    assert inputs["positions"][0, :7].numpy().tolist() == [0, 1, 2, 3, 4, 9, 10]


def test_a_chain_without_alpha_carbons_has_no_targets_that_are_not_finite():
    whole = structure("MKTAY")
    mask = whole.mask.copy()
    mask[:, 1] = False
    inputs, *_ = next(iter(structure_batches([dataclasses.replace(whole, mask=mask)])))
    assert all(np.isfinite(x).all() for x in inputs.values())


def test_a_dictionary_is_a_set_of_structures_and_a_crop_may_be_huge():
    given = {"a": structure("MKT"), "b": structure("GG")}
    found = list(structure_batches(given, crop=2**40, shuffle=False))
    assert [inputs["residues"].shape[1] for inputs, *_ in found] == [8, 8]
    assert len(structure_batches(given["a"])) == 1


@pytest.mark.parametrize(
    "name, split, error, message",
    [
        ("none", "train", FileNotFoundError, "no folder of structures"),
        ("few", "train", ValueError, "at least 10 structures, for a validation split"),
        ("few", "test", FileNotFoundError, "no folder test"),
        ("few/a.pdb", "test", FileNotFoundError, "a.pdb is one file, without a test split"),
        ("parts", None, ValueError, "parts has splits: pass split, one of train, val, test"),
        ("few", "other", ValueError, "split must be train, val or test: 'other'"),
        ("bad", None, ValueError, "b.pdb"),
    ],
)
def test_wrong_folders_are_refused(name, split, error, message, tmp_path):
    pytest.importorskip("gemmi")
    for folder in ("few", "bad"):
        (tmp_path / folder).mkdir()
        structure("GGK").save(tmp_path / folder / "a.pdb")
    (tmp_path / "parts" / "train").mkdir(parents=True)
    (tmp_path / "bad" / "b.pdb").write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(error, match=message):
        read_structures(tmp_path / name, split)


def test_structures_are_needed():
    with pytest.raises(ValueError, match="there are no structures"):
        structure_batches([])
    with pytest.raises(ValueError, match="crop must be positive: 0"):
        structure_batches([structure("GG")], crop=0)
    with pytest.raises(TypeError, match="structures must be Structures, not str"):
        structure_batches(["a.pdb"])
    with pytest.raises(TypeError, match="seed must be an integer: None"):
        structure_batches([structure("GG")], seed=None)
    with pytest.raises(ValueError, match="seed must be a 64-bit integer"):
        structure_batches([structure("GG")], seed=2**64)
    with pytest.raises(TypeError, match="batch_size must be an integer: 2.0"):
        structure_batches([structure("GG")], batch_size=2.0)
    with pytest.raises(ValueError, match="buckets must be positive: 0"):
        structure_batches([structure("GG")], buckets=0)
    with pytest.raises(ValueError, match=r"mask_rate must be in \[0, 1\): 1"):
        structure_batches([structure("GG")], mask_rate=1)
