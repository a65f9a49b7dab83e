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


def test_plain_and_gzipped_files_are_read(pair, tmp_path):
    assert read_parallel(*pair) == EXPECTED
    zipped = write(tmp_path / "train.de.gz", gzip.compress(pair[1].read_bytes()))
    assert read_parallel(pair[0], zipped) == EXPECTED


def test_a_folder_in_multi30ks_layout_is_read(pair, tmp_path):
    assert read_split(tmp_path, "train", "en", "de") == EXPECTED
    for path in pair:
        path.rename(tmp_path / path.name.replace("train", "test_2016_flickr.lc.norm.tok"))
    assert read_split(tmp_path, "test", "en", "de", "lc.norm.tok") == EXPECTED


def test_tsv_files_are_read(tmp_path):
    path = write(tmp_path / "val.tsv", "A dog.\tEin Hund.\nTwo men.\tZwei Männer.\tnote\n")
    assert read_tsv(path) == EXPECTED == read_split(tmp_path, "val", "en", "de")


def test_only_newlines_end_lines(tmp_path):
    path = write(tmp_path / "a.tsv", "\ufeffone\u2028two\teins\r\n")
    assert read_tsv(path) == ParallelText(["one\u2028two"], ["eins"])


def test_errors_name_the_problem(pair, tmp_path):
    english, german = pair
    with pytest.raises(
        ValueError, match=r"the same number of lines: 2 in .*train.en, 1 in .*one.de"
    ):
        read_parallel(english, write(tmp_path / "one.de", "Ein Hund.\n"))
    with pytest.raises(ValueError, match=r"bad.de, line 2: not UTF-8: invalid start byte"):
        read_parallel(english, write(tmp_path / "bad.de", b"gut\n\xff\n"))
    with pytest.raises(ValueError, match=r"empty.de is empty"):
        read_parallel(english, write(tmp_path / "empty.de", "\n"))
    with pytest.raises(ValueError, match=r"half.de.gz is not a complete gzip file"):
        half = gzip.compress(german.read_bytes())[:-9]
        read_parallel(english, write(tmp_path / "half.de.gz", half))
    with pytest.raises(ValueError, match=r"fake.de.gz is not a complete gzip file"):
        read_parallel(english, write(tmp_path / "fake.de.gz", "Ein Hund.\n"))
    with pytest.raises(ValueError, match=r"t.tsv, line 2 must be source TAB target: 'b'"):
        read_tsv(write(tmp_path / "t.tsv", "a\tb\nb\n"))
    with pytest.raises(FileNotFoundError, match="has no split 'test': neither test.en and test.de"):
        read_split(tmp_path, "test", "en", "de")
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_split(tmp_path / "nowhere", "test", "en", "de")
    with pytest.raises(ValueError, match="must have the same length: 1 and 2"):
        ParallelText(["a"], ["b", "c"])


SPREADSHEET = ParallelText(['He said "no".', "One, two"], ["Er sagte \tnein.", 'Eins "zwei"'])


def test_quotes_of_spreadsheets_are_removed(tmp_path):
    def pairs(content):
        return read_tsv(write(tmp_path / "a.tsv", content))

    quoted = '"He said ""no""."\t"Er sagte \tnein."\r\n"One, two"\t"Eins ""zwei"""\r\n\r\n'
    assert pairs(quoted) == SPREADSHEET
    assert pairs('"A dog."\t"Ein Hund."\n"Two men."\t"Zwei Männer."\n') == EXPECTED  # all quoted
    assert pairs('"a\tb"\t"c"\n"d"\t"e"\n') == ParallelText(["a\tb", "d"], ["c", "e"])
    assert pairs('"A, b"\tc\nd\t"e, f"\n') == ParallelText(["A, b", "d"], ["c", "e, f"])


@pytest.mark.parametrize(
    "lines",
    [
        ['"Stop!"\t"Halt!"', "Go.\tGeh."],
        ['"No," he said.\t"Nein", sagte er.', "Go.\tGeh."],
        ['"Open\tOffen', "b\tc", 'closed"\tzu'],
        ['5" screen\t5"-Bildschirm', "b\tc"],
        ['"\t"', "b\tc"],
        ['"Hello, you\tHallo, du"', "b\tc"],
        ['say "a"\tsag "a"', '"a, b"\t"c, d"'],
    ],
)
def test_quotes_within_text_are_kept(lines, tmp_path):
    path = write(tmp_path / "a.tsv", "\n".join(lines))
    pairs = read_tsv(path)
    assert [f"{s}\t{t}" for s, t in zip(pairs.sources, pairs.targets, strict=True)] == lines


def test_inconsistent_quotes_are_kept_with_a_warning(tmp_path):
    for other in ('5" screen\tc', '"open\tc', 'd\te"'):
        path = write(tmp_path / "a.tsv", f'a\tb\n"a ""b"""\tc\n\n{other}\n')
        with pytest.warns(UserWarning, match="a.tsv are read as text: line 2 .* but line 4 is not"):
            pairs = read_tsv(path)
        assert pairs.sources == ["a", '"a ""b"""', other.split("\t")[0]]


def test_line_endings_of_old_macs_are_read(tmp_path):
    assert read_tsv(write(tmp_path / "a.tsv", "a\tb\rc\td\r")).sources == ["a", "c"]


def test_a_header_selects_the_columns(tmp_path):
    words = "source\ttarget", "Source \tTarget", "src\ttgt", "English\tGerman"
    for names in (*words, "en\tde", "en-US\tde-DE"):
        path = write(
            tmp_path / "train.tsv", f"\n{names}\nA dog.\tEin Hund.\n\nTwo men.\tZwei Männer."
        )
        assert read_split(tmp_path, "train", "en", "de") == EXPECTED
    path = write(
        tmp_path / "train.tsv", "id\tde\ten\n1\tEin Hund.\tA dog.\n2\tZwei Männer.\tTwo men."
    )
    assert read_split(tmp_path, "train", "en", "de") == EXPECTED
    write(path, "source\ttarget\n1\n")
    with pytest.raises(ValueError, match="train.tsv, line 2 must be source TAB target: '1'"):
        read_split(tmp_path, "train", "en", "de")
    with pytest.raises(ValueError, match="train.tsv is empty"):
        read_tsv(write(path, "source\ttarget\n"))


def test_a_line_that_may_be_a_header_is_reported(tmp_path):
    for names in ("en\tde", "Klingon\tEnglish", "id\ten\tde", "text\tTarget"):
        path = write(tmp_path / "pairs.tsv", f"{names}\nA dog.\tUn chien.\tc\n")
        with pytest.warns(UserWarning, match="line 1 is read as a pair .*its columns en and fr"):
            assert len(read_tsv(path, "en", "fr")) == 2
    long = "x" * 200_000
    path = write(tmp_path / "pairs.tsv", f'"{long}"\t"b"\n"a, ""b"""\t"c"\n')
    assert read_tsv(path).sources == [long, 'a, "b"']


def test_every_tenth_pair_of_a_single_file_is_for_validation(tmp_path):
    path = write(tmp_path / "pairs.tsv", "".join(f"s{i}\tt{i}\n" for i in range(25)))
    train, val = (read_split(path, split, "en", "de") for split in ("train", "val"))
    assert val == ParallelText(["s9", "s19"], ["t9", "t19"])
    assert len(train) == 23 and set(train.sources).isdisjoint(val.sources)
    with pytest.raises(FileNotFoundError, match="pairs.tsv has no split 'test'"):
        read_split(path, "test", "en", "de")
    with pytest.raises(ValueError, match="must have at least 10 pairs"):
        read_split(write(path, "a\tb\n"), "train", "en", "de")
