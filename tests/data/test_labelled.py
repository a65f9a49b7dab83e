import gzip
import json

import pytest

from polyhead.data import (
    Question,
    TaggedWords,
    TextPairs,
    read_labelled_texts,
    read_questions,
    read_tagged_words,
    read_text_pairs,
)
from polyhead.data.labelled import LabelledTexts, has_tables


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", 'text,category\n"Oh, ""good""!",yes\nBad.,no\n'),
        ("a.csv", '\ufefftext,label\r\n"Oh, ""good""!",yes\r\nBad.,no\r\n'),
        ("a.csv", '"Oh, ""good""!",yes\n\nBad.,no'),
        ("a.csv", 'label,id,text\nyes,1,"Oh, ""good""!"\nno,2,Bad.'),
        ("a.csv", '"Oh, ""good""!";yes\nBad.;no'),
        ("a.tsv", 'sentence\tlabel\nOh, "good"!\tyes\nBad.\tno'),
        ("a.tsv", '"Oh, ""good""!"\tyes\nBad.\t no '),
    ],
)
def test_texts_and_classes_are_read_from_tables(tmp_path, name, content):
    texts = read_labelled_texts(write(tmp_path / name, content), None)
    assert texts == LabelledTexts(['Oh, "good"!', "Bad."], ["yes", "no"])
    assert texts.classes == ("no", "yes")


def test_a_quoted_field_may_have_several_lines(tmp_path):
    file = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",x\n,y\n')
    with pytest.raises(ValueError, match=r"a.csv, line 4: the text is empty"):
        read_labelled_texts(file, None)
    file = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",x\n')
    assert read_labelled_texts(file, None).texts == ["one\ntwo"]


def test_pairs_have_a_second_text(tmp_path):
    file = write(tmp_path / "a.csv", "It rains.,It is wet.,yes\nIt rains.,It is dry.,no\n")
    texts = read_labelled_texts(file, None)
    assert texts.seconds == ["It is wet.", "It is dry."] and texts.labels == ["yes", "no"]
    file = write(tmp_path / "b.csv", "It rains.,It is wet.,4.5\nIt rains.,It is dry.,1\n")
    assert read_text_pairs(file, None).scores == [4.5, 1.0]
    file = write(tmp_path / "c.tsv", "sentence1\tsentence2\nIt rains.\tIt is wet.\n")
    assert read_text_pairs(file, None) == TextPairs(["It rains."], ["It is wet."])


def test_numbers_are_ordered_by_value():
    assert LabelledTexts(["a"] * 3, ["10", "9", "2"]).classes == ("2", "9", "10")


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "a.csv is empty"),
        ("one\ntwo\n", "line 1 must have at least two columns"),
        ("a,b,c,d\n", "line 1 must have the columns text, label or text, second, label"),
        ("a,b\nc,d,e\n", "line 2 must have 2 columns, as line 1 has: 3"),
        ('a,b\n"c,d\n', "line 2: unexpected end of data"),
        ("text,mood\na,b\n", r"line 1 names columns, but no label \(label, category"),
        ("context,hypothesis,gold\na,b,c\n", r"line 1 names columns, but no text \(text, sent"),
        ("a,b\nc, \n", "line 2: the label is empty"),
        ("text,text,label\na,b,c\n", "line 1 names two columns 'text'"),
        ("text,label\n", "has a header, but no line after it"),
        (",,\n,,\n", "a.csv has no text"),
        (b"\xef\xbb\xbf", "a.csv"),
        ("Hello, Bob;yes\nHi, Eve;no\n", "both commas and semicolons may separate its columns"),
        (b"a,b\n\xff,c\n", "line 2: not UTF-8"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_labelled_texts(write(tmp_path / "a.csv", content), None)
    assert "a.csv" in str(error.value)


def test_names_of_files_may_be_in_upper_case(tmp_path):
    file = tmp_path / "A.TSV.GZ"
    file.write_bytes(gzip.compress(b"Good, bad.\tmixed\n"))
    assert has_tables(file) and read_labelled_texts(file, None).texts == ["Good, bad."]


def test_columns_that_are_not_read_are_named(tmp_path):
    file = write(tmp_path / "a.csv", "question,sentence,label\nWho?,Ada.,1\n")
    with pytest.warns(UserWarning, match="the columns sentence, label are read; question are not"):
        assert read_labelled_texts(file, None).texts == ["Ada."]
    file = write(tmp_path / "a.csv", ",text,label\n0,Ada.,1\n")  # as pandas writes it
    assert read_labelled_texts(file, None).texts == ["Ada."]
    file = write(tmp_path / "a.csv", "comment,mood\nGood.,1\nBad.,0\nFine.,1\nAwful.,0\n")
    with pytest.warns(UserWarning, match="line 1: only this line has the label 'mood'"):
        read_labelled_texts(file, None)
    file = write(tmp_path / "a.csv", "review,sentiment\nGood.,pos\n" + f"{'x' * 200_000},neg\n")
    assert read_labelled_texts(file, None).labels == ["pos", "neg"]


def test_a_score_must_be_a_finite_number(tmp_path):
    for score in ("good", "nan", "inf"):
        file = write(tmp_path / "a.csv", f"a,b,1\nc,d,{score}\n")
        with pytest.raises(ValueError, match="a.csv, line 2: the score must be a number"):
            read_text_pairs(file, None)


def test_splits_are_files_or_every_tenth_line(tmp_path):
    lines = "".join(f"text {i},{i % 2}\n" for i in range(20))
    file = write(tmp_path / "a.csv", lines)
    train, val = (read_labelled_texts(file, split).texts for split in ("train", "val"))
    assert val == ["text 9", "text 19"] and len(train) == 18 and not {*train} & {*val}
    assert len(read_labelled_texts(file, None)) == 20
    write(tmp_path / "d" / "train.csv", lines)
    assert read_labelled_texts(tmp_path / "d", "val").texts == val
    assert len(read_labelled_texts(tmp_path / "d", "train")) == 18
    write(tmp_path / "d" / "dev.tsv", "one\t1\n")
    assert read_labelled_texts(tmp_path / "d", "val").texts == ["one"]
    assert len(read_labelled_texts(tmp_path / "d", "train")) == 20
    assert has_tables(file) and has_tables(tmp_path / "d") and not has_tables(tmp_path)
    for path, split, message in (
        (tmp_path / "d", "test", "has no split 'test': no file test.csv or test.tsv"),
        (file, "test", "has no split 'test', only train and val"),
        (tmp_path / "nowhere", "train", "no file or folder"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            read_labelled_texts(path, split)
    with pytest.raises(ValueError, match="must have at least 10 examples"):
        read_labelled_texts(write(tmp_path / "b.csv", "a,b\n"))
    with pytest.raises(ValueError, match="split must be train, val or test: 'dev'"):
        read_labelled_texts(file, "dev")


def test_words_and_tags_are_read_from_conll(tmp_path):
    expected = TaggedWords([["Ada", "sleeps"], ["Oslo"]], [["B-person", "O"], ["I-place"]])
    for content in (
        "Ada\tB-person\nsleeps\tO\n\nOslo\tI-place",
        "-DOCSTART- -X- O O\n\nAda NNP I-NP B-person\nsleeps VBZ I-VP O\n\n\nOslo NNP x I-place\n",
    ):
        assert read_tagged_words(write(tmp_path / "a.conll", content), None) == expected
    assert expected.classes == ("O", "B-person", "I-person", "B-place", "I-place")
    for line in ("Ada", "Ada\tE-person", "\tO", "Ada\tO "):
        file = write(tmp_path / "a.conll", f"sleeps\tO\n{line}\n")
        with pytest.raises(ValueError, match="a.conll, line 2 must be a word, a tab and a tag"):
            read_tagged_words(file, None)


def test_tags_may_be_names_alone(tmp_path):
    file = write(tmp_path / "a.conll", "M\tH\nK\tC\n\nV\tE\n")
    found = read_tagged_words(file, None)
    assert found == TaggedWords([["M", "K"], ["V"]], [["H", "C"], ["E"]])
    assert found.classes == ("C", "E", "H")
    write(tmp_path / "a.conll", "Ada\tB-person\nOslo\tplace\n")
    with pytest.raises(ValueError, match="line 2 must have a tag O, B-name or I-name: 'Oslo"):
        read_tagged_words(file, None)


def squad(**changes):
    entry = {"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 3}]}
    paragraphs = [{"context": "So Ada sleeps.", "qas": [{**entry, **changes}]}]
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})


def test_questions_are_read_from_squad(tmp_path):
    file = write(tmp_path / "a.json", squad())
    assert read_questions(file, None) == [Question("q1", "Who?", "So Ada sleeps.", (("Ada", 3),))]
    file = write(tmp_path / "a.json", "\ufeff" + squad(answers=[], is_impossible=True))
    assert read_questions(file, None)[0].answers == ()
    for content, message in (
        (squad(answers=[{"text": "Ada", "answer_start": 4}]), "question q1: the context must have"),
        (squad(answers=[{"text": "Ada", "answer_start": -11}]), "the context must have"),
        (squad(answers=[{"text": "So", "answer_start": -1}]), "'So' at character -1"),
        (squad(question=None), "question q1: the question must be text: None"),
        (squad(question=["a"]), r"question q1: the question must be text: \['a'\]"),
        (squad(question="\ud83d"), "question q1: the question must be text"),
        (squad(answers=[]), "question q1: no answer, and not is_impossible"),
        (squad(is_impossible=True), "question q1: is_impossible, but it has answers"),
        ('{"data": [{}]}', "not in the format of SQuAD: KeyError"),
        ("[]", "must hold a JSON object"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read_questions(write(tmp_path / "a.json", content), None)
        assert "a.json" in str(error.value)


def test_questions_may_be_compressed(tmp_path):
    file = tmp_path / "train.json.gz"
    file.write_bytes(gzip.compress(squad().encode()))
    assert read_questions(file, None)[0].id == "q1"
    (tmp_path / "val.json.gz").write_bytes(file.read_bytes())
    assert read_questions(tmp_path, "val")[0].id == "q1"
    file.write_bytes(gzip.compress(squad().encode())[:-9])
    with pytest.raises(ValueError, match="train.json.gz is not a complete gzip file"):
        read_questions(file, None)


def test_questions_on_one_context_are_in_one_split(tmp_path):
    paragraphs = [
        {
            "context": f"Ada {i}.",
            "qas": [
                {
                    "id": f"{i}{j}",
                    "question": "Who?",
                    "answers": [{"text": "Ada", "answer_start": 0}],
                }
                for j in range(2)
            ],
        }
        for i in range(10)
    ]
    file = write(tmp_path / "a.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))
    assert [q.context for q in read_questions(file, "val")] == ["Ada 9."] * 2
    assert len(read_questions(file, "train")) == 18


def test_a_no_break_space_belongs_to_a_word(tmp_path):
    file = write(tmp_path / "a.conll", "10\xa0000 B-NUM\n  x   y  O\n")
    assert read_tagged_words(file, None).words == [["10\xa0000", "x"]]


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one of each: 1 texts, 2 labels"):
        LabelledTexts(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="sentence 0 has 1 words, 2 tags"):
        TaggedWords([["a"]], [["O", "O"]])
