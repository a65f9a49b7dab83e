import gzip

import pytest
import tensorflow as tf

from polyhead.data import Residues, masked_batches, read_proteins
from polyhead.data.masking import document_tokens
from polyhead.data.proteins import has_proteins
from polyhead.data.tokenizers.residues import LETTERS, TOKENS

FASTA = b"""; a comment
>sp|P1|ONE first protein\r
mktay iakqr\r

QISF
>two
GGK
"""


def test_a_protein_has_its_header_and_all_its_lines(tmp_path):
    (tmp_path / "a.fa").write_bytes(FASTA)
    (tmp_path / "a.fasta.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + FASTA[12:]))
    for name in ("a.fa", "a.fasta.gz"):
        one, two = read_proteins(tmp_path / name, None)
        assert one == ("sp|P1|ONE", "first protein", "MKTAYIAKQRQISF")
        assert two.name == "two" and two.description == ""
        assert has_proteins(tmp_path / name)
    assert has_proteins(tmp_path) is False and has_proteins("a/P.FASTA.gz")
    (tmp_path / "val.faa").write_bytes(FASTA)
    assert has_proteins(tmp_path) and len(read_proteins(tmp_path, "val")) == 2


def test_every_tenth_protein_is_for_validation(tmp_path):
    text = "".join(f">p{i}\nM{'K' * i}\n" for i in range(20))
    (tmp_path / "p.fasta").write_text(text)
    train, val = (read_proteins(tmp_path / "p.fasta", split) for split in ("train", "val"))
    assert [p.name for p in val] == ["p9", "p19"] and len(train) == 18


@pytest.mark.parametrize(
    "content, message",
    [
        (b"MKV\n", "line 1: a sequence needs a header"),
        (b">a\n>b\nM\n", "line 1: 'a' has no sequence"),
        (b">a\nM\n>b\n", "line 3: 'b' has no sequence"),
        (b">a\nMK\nMJK\n", "line 3: .* 'J' at position 2"),
        (b">a\nMK*\n", r"line 2: .* '\*' at position 3"),
        (b">a\nMK<mask>\n", "line 2: there must be no <mask>"),
        (b">a\nM\xff\n", "line 2: not UTF-8"),
        ("\u03b1".join([">a\nM", "\n"]).encode(), "line 2: .* 'α' at position 2"),
        (b"", "is empty"),
    ],
)
def test_an_invalid_file_is_an_error_with_its_line(content, message, tmp_path):
    (tmp_path / "bad.fasta").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_proteins(tmp_path / "bad.fasta", None)


def test_tokens_are_those_of_esm2():
    tokenizer = Residues()
    assert len(TOKENS) == tokenizer.vocab_size == 33
    assert [TOKENS.index(x) for x in ("<cls>", "<pad>", "<eos>", "<unk>", "L", "<mask>")] == [
        0, 1, 2, 3, 4, 32,
    ]  # fmt: skip
    ids = tokenizer.encode(["", " mK\tv\u2003 ", "A<mask>.-"])
    assert ids.to_list() == [[0, 2], [0, 20, 15, 7, 2], [0, 5, 32, 29, 30, 2]]
    assert tokenizer.decode(ids).numpy().tolist() == [b"", b"MKV", b"A.-"]
    assert tokenizer.encode(["MKV"], max_length=4).to_list() == [[0, 20, 15, 2]]


def test_offsets_count_the_code_points_of_the_text_as_given():
    ids, starts, ends = Residues().offsets(["m k<mask>\u3000V"])
    assert ids.to_list() == [[20, 15, 32, 7]]
    assert starts.to_list() == [[0, 2, 3, 10]] and ends.to_list() == [[1, 3, 9, 11]]


def test_another_letter_is_an_error_in_python_and_x_in_a_graph():
    tokenizer = Residues()
    for _ in range(12):  # also once the operations are traced
        with pytest.raises(ValueError, match="'J' at position 3 of 'MKJ'"):
            tokenizer.encode(["M", "MKJ"])
    for text in ("#", "<cls>", "M1", "日本"):
        with pytest.raises(ValueError, match="position"):
            tokenizer.offsets([text])
    graph = tf.function(tokenizer.encode)
    assert graph(tf.constant(["MJ#", "日", b"\xff"])).to_list() == [
        [0, 20, 24, 24, 2], [0, 24, 2], [0, 24, 2],
    ]  # fmt: skip


def test_the_files_are_checked(tmp_path):
    Residues().save(tmp_path)
    assert (tmp_path / "vocab.txt").read_text().split("\n") == list(TOKENS)
    assert Residues.load(tmp_path).vocab_size == 33
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]")
    with pytest.raises(ValueError, match="does not have the 33 tokens of ESM-2"):
        Residues.load(tmp_path)


def test_a_row_has_tokens_of_one_protein_only():
    tokenizer, sequences = Residues(), ["A" * 3, "C" * 10, "D" * 7, "E" * 8]
    stream = document_tokens(sequences, tokenizer)
    assert stream.starts.tolist() == [0, 4, 15, 23]
    batches = masked_batches(
        stream, tokenizer, length=9, batch_size=8, rate=0.4, pack=False, shuffle=False
    )
    [(inputs, labels, weight)] = list(batches)
    chosen = weight > 0
    places = tf.stack([tf.where(chosen)[:, 0], tf.cast(inputs["positions"][chosen], "int64")], 1)
    rows = tf.tensor_scatter_nd_update(inputs["tokens"], places, labels[chosen])  # the original
    rows = [row[row != 1].tolist() for row in rows.numpy()]
    letters = {letter: TOKENS.index(letter) for letter in LETTERS}
    expected = [("A", 3), ("C", 7), ("C", 3), ("D", 7), ("E", 7), ("E", 1)]
    assert rows[:6] == [[0, *[letters[x]] * n, 2] for x, n in expected]
    assert rows[6:] == [[0, 2]] * 2  # fill the batch
    assert float(tf.reduce_sum(weight)) == sum(max(1, int(0.4 * n + 0.5)) for _, n in expected)
