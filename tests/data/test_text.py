import gzip
import itertools

import numpy as np
import pytest
import tensorflow as tf

from polyhead.data import BytePairs, Characters, read_text, text_batches, token_stream
from polyhead.data import text as module

TEXTS = ["To be, or not to be", "that is", "the question: whether it is nobler"]


@pytest.fixture(scope="module")
def characters():
    return Characters.train(TEXTS)


def arrays(batches):
    return [tuple(x.numpy() for x in batch) for batch in batches]


def test_every_token_is_a_label_once_after_its_predecessors(characters):
    stream = token_stream(TEXTS, characters)
    assert (stream == 0).sum() == len(TEXTS) and stream[-1] == 0
    for shuffle in (False, True):
        seen = []
        for tokens, labels, weight in arrays(
            text_batches(TEXTS, characters, 7, batch_size=4, shuffle=shuffle)
        ):
            assert tokens.shape == labels.shape == weight.shape == (4, 7)
            np.testing.assert_array_equal(tokens[:, 1:], labels[:, :-1])
            seen += labels[weight > 0].tolist()
        assert sorted(seen) == sorted(stream.tolist())
    batches = arrays(text_batches(TEXTS, characters, 7, batch_size=4, shuffle=False))
    assert batches[0][0][0, 0] == characters.end_id
    np.testing.assert_array_equal(np.concatenate([b[1] for b in batches]).ravel()[:20], stream[:20])


def test_row_boundaries_change_each_epoch_and_training_resumes(characters):
    def stream(start, count, seed=3):
        batches = text_batches(TEXTS, characters, 7, 2, seed=seed, start=start)
        return [b[1].tobytes() for b in arrays(itertools.islice(batches, count))]

    per_epoch = len(text_batches(TEXTS, characters, 7, 2))
    whole = stream(0, 3 * per_epoch)
    assert len(set(whole)) > 2 * per_epoch
    for start in (1, per_epoch, per_epoch + 2):
        assert stream(start, len(whole) - start) == whole[start:]
    assert stream(0, 3, seed=4) != whole[:3]


def test_datasets_and_long_texts_give_equal_tokens(characters, monkeypatch):
    expected = token_stream(TEXTS, characters)
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS)
    np.testing.assert_array_equal(token_stream(dataset, characters), expected)
    long = "".join(f"  word{i}\n\n\n it's\t {i} " for i in range(50))
    pairs = BytePairs.train([long], 270)
    expected = token_stream([long], pairs)
    monkeypatch.setattr(module, "PIECE", 40)
    assert len(list(module.split_text(long))) > 5
    np.testing.assert_array_equal(token_stream([long], pairs), expected)


def test_files_and_folders_are_read(tmp_path):
    (tmp_path / "one.txt").write_text("0123456789" * 2)
    assert read_text(tmp_path / "one.txt") == ["012345678901234567"]
    assert read_text(tmp_path / "one.txt", "val") == ["89"]
    (tmp_path / "two.txt").write_text("abcdefghij" * 2)
    assert read_text(tmp_path) == ["0123456789" * 2, "abcdefghijabcdef"]
    assert read_text(tmp_path, "val") == ["ghij"]
    (tmp_path / "test.txt").write_text("last")  # not a part of the other splits
    assert read_text(tmp_path, "val") == ["ghij"]
    (tmp_path / "train.txt").write_text("x" * 10)
    assert read_text(tmp_path, "val") == ["x"]
    (tmp_path / "val.txt").write_text("mine")
    assert read_text(tmp_path, "val") == ["mine"] and read_text(tmp_path) == ["x" * 10]
    assert read_text(tmp_path, "test") == ["last"]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "test.txt").write_text("alone")
    assert read_text(tmp_path / "only", "test") == ["alone"]
    (tmp_path / "only" / "train.txt.gz").write_bytes(gzip.compress(b"0123456789"))
    assert read_text(tmp_path / "only") == ["012345678"]
    assert read_text(tmp_path / "only", "val") == ["9"]
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(b"one\r\ntwo"))
    assert read_text(tmp_path / "book.txt.gz", None) == ["one\ntwo"]


def test_byte_order_marks_and_carriage_returns_are_removed(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    (tmp_path / "val.txt").write_bytes(b"\xef\xbb\xbfone\r\n")
    assert read_text(tmp_path) == ["one\ntwo\nthree\n"]
    assert read_text(tmp_path, "val") == ["one\n"]


def test_numpy_integers_are_accepted_as_sizes_and_seeds(characters):
    sizes = dict(length=7, batch_size=2, seed=3, start=1)
    numpy = {name: np.uint32(size) for name, size in sizes.items()}
    first, other = (
        next(iter(text_batches(TEXTS, characters, **options))) for options in (sizes, numpy)
    )
    np.testing.assert_array_equal(first[1], other[1])


def test_invalid_text_is_refused(tmp_path, characters):
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for error, message, path, split in (
        (FileNotFoundError, "no such", tmp_path / "gone.txt", "train"),
        (FileNotFoundError, r"no files \*.txt in", tmp_path / "empty", "train"),
        (FileNotFoundError, "has no split test", tmp_path / "latin.txt", "test"),
        (ValueError, "none.txt is empty", tmp_path / "none.txt", "train"),
        (ValueError, "latin.txt is not valid UTF-8", tmp_path / "latin.txt", "train"),
        (ValueError, "split must be train, val or test: 'dev'", tmp_path, "dev"),
    ):
        with pytest.raises(error, match=f"(?i){message}"):
            read_text(path, split)
    with pytest.raises(ValueError, match="there is no text"):
        text_batches([], characters, 8)
    with pytest.raises(ValueError, match="batch_size must be positive: 0"):
        text_batches(TEXTS, characters, 8, 0)
