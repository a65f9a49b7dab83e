import numpy as np
import pytest

from polyhead.data import alignment_features, read_a3m, read_alignment
from polyhead.data.residues import LETTERS

ROWS = ["MKVA", "-KgaVA", "MRVaA", "MRV-", "AAAA"]


def test_a3m_files_are_read(tmp_path):
    path = tmp_path / "query.a3m"
    path.write_text("#5\t1\n>query\nMKT\nAY\n\n>other name\nMR-gAY\n")
    assert read_a3m(path) == ["MKTAY", "MR-gAY"]
    path.write_text("MKTAY\n")
    with pytest.raises(ValueError, match="query.a3m, line 1: a row must follow its name: 'MKTAY'"):
        read_a3m(path)


def test_lower_case_letters_are_deletions_before_the_next_residue():
    residues, deletions = read_alignment(["MKV", "gM-aaaVcc", "BJZ", "OUX"])
    letters = LETTERS + "-"
    assert ["".join(letters[i] for i in row) for row in residues] == ["MKV", "M-V", "DXE", "XCX"]
    assert deletions.tolist() == [[0, 0, 0], [1, 0, 3], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "must have a first row"),
        ([""], "must have a first row"),
        (["MKV", "MK"], "row 1 must have 3 residues and gaps, as the query: 2 in 'MK'"),
        (["MKV", "MKaVV"], "row 1 must have 3 residues and gaps, as the query: 4"),
        (["MK-"], "the query must have no gaps and no lower-case letters: 'MK-'"),
        (["MgKV"], "the query must have no gaps and no lower-case letters: 'MgKV'"),
        (["MKV", "MK.V"], "row 1 has '.', which is not a residue"),
        (["MKV", "MK "], "row 1 has ' ', which is not a residue"),
    ],
)
def test_other_alignments_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        read_alignment(rows)


def test_rows_are_clusters_and_the_others_their_profiles():
    found = alignment_features(ROWS, max_msa=2, max_extra=2)
    assert found["residues"].tolist() == [LETTERS.index(x) for x in "MKVA"]
    msa, extra = found["msa"], found["extra"]
    assert msa.shape == (2, 4, 49) and extra.shape == (2, 4, 25)
    np.testing.assert_array_equal(msa[1, :, :23].argmax(-1), [21, *found["residues"][1:]])
    np.testing.assert_array_equal(msa[1, :, 23], [0, 0, 1, 0])
    np.testing.assert_allclose(msa[1, 2, 24], np.arctan(2 / 3) * 2 / np.pi)
    # MRV-A has most in common with the query; AAAA as much with both: the first counts.
    profile = msa[0, :, 25:48]
    np.testing.assert_allclose(profile[0, LETTERS.index("M")], 3 / 4)
    np.testing.assert_allclose(profile[1, [LETTERS.index(x) for x in "KRA"]], [1 / 4, 1 / 2, 1 / 4])
    np.testing.assert_allclose(profile.sum(-1), 1)
    np.testing.assert_allclose(msa[0, 3, 48], np.arctan(1 / 4 / 3) * 2 / np.pi, rtol=1e-6)
    np.testing.assert_array_equal(msa[1, :, 25:48], msa[1, :, :23])
    np.testing.assert_array_equal(extra[1, :, :23].argmax(-1), [12, 1, 19, 21])


def test_a_query_alone_has_no_extra_rows_and_unknown_residues_are_x():
    found = alignment_features(["MBX"], max_msa=4, max_extra=4)
    assert found["extra"].shape == (0, 3, 25)
    assert [LETTERS[i] for i in found["residues"]] == ["M", "X", "X"]


def test_features_are_those_of_alphafold():
    pytest.importorskip("alphafold", reason="AlphaFold is not installed: EXTRAS=parity")
    from alphafold.model.tf import data_transforms

    random = np.random.default_rng(0)
    query = "".join(random.choice(list(LETTERS[:20]), 30))
    rows = [query]
    for _ in range(40):
        row = np.where(random.random(30) < 0.5, list(query), random.choice(list(LETTERS + "-"), 30))
        rows.append("".join("ga" * (random.random() < 0.1) + letter for letter in row))
    residues, deletions = read_alignment(rows)
    protein = {"aatype": residues[0], "between_segment_residues": np.zeros(30, "int32")}
    for start, part in (("", slice(0, 8)), ("extra_", slice(8, None))):
        count = len(residues[part])
        protein |= {
            f"{start}msa": residues[part],
            f"{start}deletion_matrix": deletions[part].astype("float32"),
            f"{start}msa_mask": np.ones((count, 30), "float32"),
        }
    for transform in (
        data_transforms.nearest_neighbor_clusters(),
        data_transforms.summarize_clusters(),
        data_transforms.make_msa_feat(),
    ):
        protein = transform(protein)
    found = alignment_features(rows, max_msa=8, max_extra=100)
    np.testing.assert_allclose(found["msa"], np.asarray(protein["msa_feat"]), atol=1e-5)
    kinds = np.eye(23)[np.asarray(protein["extra_msa"])]
    parts = [
        np.asarray(protein[f"extra_{x}"])[..., None] for x in ("has_deletion", "deletion_value")
    ]
    np.testing.assert_allclose(found["extra"], np.concatenate([kinds, *parts], -1), atol=1e-6)
