import importlib.resources

from polyhead.data import (
    read_labelled_texts,
    read_questions,
    read_summaries,
    read_tagged_words,
    read_text_pairs,
)
from polyhead.data.facts import SIZES, World, files, main
from polyhead.data.grammar import distinct

SAMPLES = importlib.resources.files("polyhead.data") / "samples"


def test_the_grammar_generates_the_samples(tmp_path):
    main(tmp_path)
    for path in tmp_path.rglob("*.*"):
        shipped = SAMPLES / path.parent.name / path.name
        assert shipped.read_text("utf-8") == path.read_text("utf-8"), "make sample"


def test_the_samples_are_read():
    for split, size in (("train", 400), ("val", 40), ("test", 40)):
        texts = read_labelled_texts(SAMPLES / "messages", split)
        assert len(texts) == size and texts.classes == ("delivery", "fault", "return", "thanks")
        sentences = read_tagged_words(SAMPLES / "names", split)
        assert len(sentences) == size and len(sentences.classes) == 7
        questions = read_questions(SAMPLES / "questions", split)
        assert len(questions) == size // 4 * 3
        assert 0.2 < sum(not q.answers for q in questions) / len(questions) < 0.5
        assert {*read_text_pairs(SAMPLES / "pairs", split).scores} == {0, 1, 2, 3, 4, 5}
        reports = read_summaries(SAMPLES / "reports", split)
        assert len(reports) == 4 * size
        assert all(len(x) < len(text) / 2 for text, [x] in reports)


def test_no_text_is_in_two_splits():
    splits = [
        {line for line in files(train=200, val=40)[f"messages/{split}.tsv"].splitlines()[1:]}
        for split in ("train", "val")
    ]
    assert not splits[0] & splits[1] and len(splits[0] | splits[1]) == 240


def test_reports_tell_what_their_summary_says():
    for text, [summary] in read_summaries(SAMPLES / "reports", "val"):
        place, takings = text.split(",")[0].removeprefix("Report from "), summary.split()[-1]
        assert summary.startswith(f"In {place}, ") and f"took {takings[:-1]} euros" in text
        assert ("rose" in summary) == ("more than the day before" in text)


def test_no_matter_of_a_person_and_a_thing_is_in_two_splits():
    rows = distinct(World(3).report, SIZES)
    matters = [matter for several in rows.values() for matter, *_ in several]
    assert len(set(matters)) == len(matters) == sum(SIZES.values())
