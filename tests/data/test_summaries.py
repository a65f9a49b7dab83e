import gzip
import itertools
import json

import numpy as np
import pytest

from polyhead.data import Summaries, read_summaries, summary_batches
from polyhead.recipes.settings import sample_folder


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def lines(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


@pytest.mark.parametrize("text", ["text", "source", "document", "article", "dialogue"])
@pytest.mark.parametrize("summary", ["summary", "target", "summaries", "highlights", "abstract"])
def test_texts_and_summaries_have_any_of_the_fields(tmp_path, text, summary):
    entry = {"id": 3, text: "Ada ran.\nIt rained.", summary: "Ada ran."}
    found = read_summaries(write(tmp_path / "a.jsonl", lines(entry)), None)
    assert found == Summaries(["Ada ran.\nIt rained."], [["Ada ran."]])
    table = f"id\t{text}\t{summary}\n1\tAda ran. It rained.\tAda ran.\n"
    found = read_summaries(write(tmp_path / "a.tsv", table), None)
    assert found == Summaries(["Ada ran. It rained."], [["Ada ran."]])


def test_lists_are_sentences_of_a_text_and_several_summaries(tmp_path):
    entry = {"source": ["Ada ran. ", "", "It rained."], "target": ["Rain.", " Ada ran. ", " "]}
    found = read_summaries(write(tmp_path / "a.jsonl", lines(entry)), None)
    assert found == Summaries(["Ada ran. It rained."], [["Rain.", "Ada ran."]])
    assert list(found) == [("Ada ran. It rained.", ["Rain.", "Ada ran."])] and len(found) == 1


def test_the_first_field_counts(tmp_path):
    entry = {"document": "other", "text": "this", "target": "other", "summary": "this"}
    assert next(iter(read_summaries(write(tmp_path / "a.jsonl", lines(entry)), None))) == (
        "this",
        ["this"],
    )


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", '{"text": "Oh, \\"é\\"!", "summary": "oh"}\n\n{"text": "b", "summary": "c"}'),
        ("a.jsonl", '\ufeff{"text": "Oh, \\u0022é\\"!", "summary": "oh"}\r\n'
         '{"text": "b", "summary": "c"}\r\n'),
        ("a.jsonl.gz", '{"text": "Oh, \\"é\\"!", "summary": "oh"}\n{"text": "b", "summary": "c"}'),
        ("a.tsv", 'Oh, "é"!\toh\nb\tc\n'),
        ("a.tsv", 'text\tsummary\nOh, "é"!\toh\nb\tc\n'),
        ("a.tsv.gz", 'summary\ttext\noh\tOh, "é"!\nc\tb\n'),
        ("a.csv", '"Oh, ""é""!",oh\nb,c\n'),
        ("a.csv", 'article;highlights\n"Oh, ""é""!";oh\nb;c\n'),
    ],
)  # fmt: skip
def test_texts_and_summaries_are_read_from_files(tmp_path, name, content):
    found = read_summaries(write(tmp_path / name, content), None)
    assert found == Summaries(['Oh, "é"!', "b"], [["oh"], ["c"]])


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "is not JSON: Expecting property name"),
        ("[" * 100_000, "is not JSON: "),
        ('["a", "b"]', "must be an object: "),
        ("3", "must be an object: '3'"),
        ('{"summary": "b"}', r"must have a text \(text, source, document, article, dialogue\)"),
        ('{"text": "b"}', r"must have a summary \(summary, target, summaries, highlights, abst"),
        ('{"text": 3, "summary": "b"}', "text must be a string or a list of strings"),
        ('{"text": "a", "summary": {"b": "c"}}', "summary must be a string or a list of strings"),
        ('{"text": "a", "target": ["b", null]}', "target must be a string or a list of strings"),
        ('{"text": " ", "summary": "b"}', "text is empty"),
        (r'{"text": "a \ud83d", "summary": "b"}', "text has half a character"),
        ('{"text": "a", "summary": []}', "summary is empty"),
        ('{"text": "a", "summary": ["", " "]}', "summary is empty"),
        (b'{"text": "\xff", "summary": "b"}', "not UTF-8"),
    ],
)
def test_errors_in_json_name_the_file_and_the_line(tmp_path, line, message):
    line = line.encode() if isinstance(line, str) else line
    file = write(tmp_path / "a.jsonl", lines(dict(text="a", summary="b")).encode() + line + b"\n")
    with pytest.raises(ValueError, match=message) as error:
        read_summaries(file, None)
    assert str(error.value).startswith(f"{file}, line 2")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "content, message",
    [
        ("text,label\na,b\n", r"line 1 names columns, but no summary \(summary, target"),
        ("text,summary\na,b\nc,\n", "line 3: the summary is empty"),
        ("text,summary\n,b\n", "line 2: the text is empty"),
        ("a,b\nc,d,e\n", "line 2 must have 2 columns"),
        ("a,b,c\n", "line 1 must have the columns text, summary"),
        ("one\n", "line 1 must have at least two columns"),
        ('a,b\n"c,d\n', "line 2: unexpected end of data"),
    ],
)
def test_errors_in_tables_name_the_file_and_the_line(tmp_path, content, message):
    file = write(tmp_path / "a.csv", content)
    with pytest.raises(ValueError, match=message) as error:
        read_summaries(file, None)
    assert str(file) in str(error.value)


def test_empty_files_are_refused_by_name(tmp_path):
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        for content in ("", "\n\n"):
            with pytest.raises(ValueError, match=f"{name} is empty"):
                read_summaries(write(tmp_path / name, content), None)


def test_splits_are_files_or_every_tenth_line(tmp_path):
    entries = [dict(text=f"text {i}", summary=f"{i}") for i in range(20)]
    file = write(tmp_path / "a.jsonl", lines(*entries))
    train, val = (read_summaries(file, split) for split in ("train", "val"))
    assert val == Summaries(["text 9", "text 19"], [["9"], ["19"]]) and len(train) == 18
    assert len(read_summaries(file, None)) == 20
    write(tmp_path / "d" / "train.jsonl", lines(*entries))
    assert read_summaries(tmp_path / "d", "val") == val
    write(tmp_path / "d" / "dev.tsv", "one\t1\n")
    assert read_summaries(tmp_path / "d", "val") == Summaries(["one"], [["1"]])
    assert len(read_summaries(tmp_path / "d", "train")) == 20
    with pytest.raises(FileNotFoundError, match="'test': no file test.jsonl or test.tsv or test.c"):
        read_summaries(tmp_path / "d", "test")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_summaries(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="one of each: 1 texts, 2 summaries"):
        Summaries(["a"], [["b"], ["c"]])


@pytest.fixture(scope="module")
def reports():
    return read_summaries(sample_folder("reports"), "val")


@pytest.fixture(scope="module")
def learned(reports):
    from polyhead.data import Subwords

    return Subwords.train(reports.texts, 300)


def arrays(batches):
    return [
        (x["source"].numpy(), x["target"].numpy(), labels.numpy(), weight.numpy())
        for x, labels, weight in batches
    ]


def decode(tokenizer, rows):
    return [text.decode() for text in tokenizer.decode(rows).numpy()]


def test_a_batch_has_the_inputs_of_the_model(reports, learned):
    batches = summary_batches(reports, learned, 4096)
    for source, target, labels, weight in arrays(batches):
        assert len(source) == len(target) and len(source) % 8 == 0 and source.size <= 4096
        assert target.shape == labels.shape == weight.shape and target.shape[1] < source.shape[1]
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, labels != 0)
        filled = weight.any(1)
        assert (target[filled, 0] == learned.start_id).all() and (source[~filled] == 0).all()
        np.testing.assert_array_equal(target[:, 1:], labels[:, :-1] * (weight[:, 1:] > 0))
        last = labels[filled][np.arange(filled.sum()), weight[filled].sum(1).astype(int) - 1]
        assert (last == learned.end_id).all()


def test_there_are_no_more_shapes_than_buckets(reports, learned):
    for buckets in (1, 3):
        batches = summary_batches(reports, learned, 4096, buckets=buckets)
        made = arrays(batches)
        assert len(made) == len(batches)
        shapes = {(source.shape, target.shape) for source, target, *_ in made}
        assert len(shapes) == len({source for source, _ in shapes}) <= buckets
        assert all(size % 4 == 0 for pair in shapes for _, size in pair)


def test_each_summary_of_a_text_is_an_example(reports, learned):
    texts = [text.replace(",", "") for text in reports.texts[:10]]
    several = Summaries(texts, [[f"It rained {i}." for i in range(n % 3 + 1)] for n in range(10)])
    seen = []
    for source, _, labels, weight in arrays(summary_batches(several, learned, 512, prefix="A ")):
        rows = weight.any(1)
        seen += zip(decode(learned, source[rows]), decode(learned, labels[rows]), strict=True)
    assert sorted(seen) == sorted((f"A {text}", x) for text, listed in several for x in listed)


def test_long_texts_and_summaries_are_truncated(reports, learned):
    batches = summary_batches(reports, learned, 2048, max_length=20, max_target_length=9)
    full = learned.encode(reports.texts).to_list()
    starts = {tuple(row[:19]) for row in full}
    for source, _, labels, weight in arrays(batches):
        assert source.shape[1] == 20 and labels.shape[1] == 12
        for row, summary in zip(source[weight.any(1)], labels[weight.any(1)], strict=True):
            assert row[-1] == learned.end_id == summary[summary > 0][-1]
            assert tuple(row[:-1]) in starts and (summary > 0).sum() <= 9


def test_an_endless_dataset_starts_at_a_given_update(reports, learned):
    def stream(start, count):
        batches = summary_batches(reports, learned, 2048, seed=3, start=start)
        return [[x.tobytes() for x in b] for b in arrays(itertools.islice(batches, count))]

    epoch = len(summary_batches(reports, learned, 2048))
    whole = stream(0, 2 * epoch + 2)
    assert epoch > 3 and whole[:epoch] != whole[epoch : 2 * epoch]
    for start in (1, epoch + 2):
        assert stream(start, len(whole) - start) == whole[start:]


def test_batches_without_shuffling_are_reproducible(reports, learned):
    batches = summary_batches(reports, learned, 2048, shuffle=False)
    first, second = ([b[2].tobytes() for b in arrays(batches)] for _ in "ab")
    assert first == second


def test_byte_pairs_have_special_tokens_on_both_sides(reports, tmp_path):
    from polyhead.data import BytePairs
    from tests.zoo.toy_summarizers import write_roberta

    write_roberta(tmp_path, reports.texts, 300)
    tokenizer = BytePairs.load(tmp_path)
    for source, target, labels, weight in arrays(summary_batches(reports, tokenizer, 4096)):
        filled = weight.any(1)
        assert (source[filled, 0] == 0).all() and (labels[filled, 0] == 0).all()
        assert (target[filled, 0] == 2).all() and (source[~filled] == 1).all()
        np.testing.assert_array_equal(weight, labels != 1)


def test_bad_arguments_are_refused(reports, learned):
    for options, message in (
        (dict(tokens=0), "tokens must be positive: 0"),
        (dict(buckets=0), "buckets must be positive: 0"),
        (dict(max_length=1), "at least 2: 1, 128"),
        (dict(max_target_length=1), "at least 2: 512, 1"),
    ):
        with pytest.raises(ValueError, match=message):
            summary_batches(reports, learned, **options)
    for nothing in (Summaries([], []), Summaries(["a"], [[]])):
        with pytest.raises(ValueError, match="there is no text with a summary"):
            summary_batches(nothing, learned)
