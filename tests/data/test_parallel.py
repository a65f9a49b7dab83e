import gzip

import pytest

from polyhead.data import ParallelText, read_parallel, read_split, read_tsv


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def pair(tmp_path):
    return write(tmp_path / "train.en", "A dog.\nTwo men.\n"), write(
        tmp_path / "train.de", "Ein Hund.\nZwei Männer.\n"
    )


EXPECTED = ParallelText(["A dog.", "Two men."], ["Ein Hund.", "Zwei Männer."])


def test_two_files_plain_or_gzipped(pair, tmp_path):
    assert read_parallel(*pair) == EXPECTED
    zipped = write(tmp_path / "train.de.gz", gzip.compress(pair[1].read_bytes()))
    assert read_parallel(pair[0], zipped) == EXPECTED


def test_a_folder_in_the_layout_of_multi30k(pair, tmp_path):
    assert read_split(tmp_path, "train", "en", "de") == EXPECTED
    for path in pair:
        path.rename(tmp_path / path.name.replace("train", "test_2016_flickr.lc.norm.tok"))
    assert read_split(tmp_path, "test", "en", "de", "lc.norm.tok") == EXPECTED


def test_tsv(tmp_path):
    path = write(tmp_path / "val.tsv", "A dog.\tEin Hund.\nTwo men.\tZwei Männer.\tnote\n")
    assert read_tsv(path) == EXPECTED == read_split(tmp_path, "val", "en", "de")


def test_only_newlines_end_lines(tmp_path):
    path = write(tmp_path / "a.tsv", "\ufeffone\u2028two\teins\r\n")
    assert read_tsv(path) == ParallelText(["one\u2028two"], ["eins"])


def test_what_is_wrong_is_named(pair, tmp_path):
    english, german = pair
    with pytest.raises(ValueError, match=r"equally many lines: 2 in .*train.en, 1 in .*one.de"):
        read_parallel(english, write(tmp_path / "one.de", "Ein Hund.\n"))
    with pytest.raises(ValueError, match=r"bad.de, line 2: not UTF-8: invalid start byte"):
        read_parallel(english, write(tmp_path / "bad.de", b"gut\n\xff\n"))
    with pytest.raises(ValueError, match=r"empty.de is empty"):
        read_parallel(english, write(tmp_path / "empty.de", "\n"))
    with pytest.raises(ValueError, match=r"half.de.gz is no complete gzip file"):
        half = gzip.compress(german.read_bytes())[:-9]
        read_parallel(english, write(tmp_path / "half.de.gz", half))
    with pytest.raises(ValueError, match=r"fake.de.gz is no complete gzip file"):
        read_parallel(english, write(tmp_path / "fake.de.gz", "Ein Hund.\n"))
    with pytest.raises(ValueError, match=r"t.tsv, line 2: a line is source TAB target: 'b'"):
        read_tsv(write(tmp_path / "t.tsv", "a\tb\nb\n"))
    with pytest.raises(FileNotFoundError, match="has no split 'test': neither test.en and test.de"):
        read_split(tmp_path, "test", "en", "de")
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_split(tmp_path / "nowhere", "test", "en", "de")
    with pytest.raises(ValueError, match="as many: 1 and 2"):
        ParallelText(["a"], ["b", "c"])
