"""Span corruption, and the sentinels of a vocabulary."""

import itertools
from collections import Counter

import numpy as np
import pytest
import sentencepiece

from polyhead.data import Characters, Subwords, masked_batches, span_batches, token_stream
from polyhead.data.denoising import count_noise

TEXTS = [
    f"{a} {b} sleeps in {c} while it rains"
    for a in ("Ada", "Boris")
    for b in "xyz"
    for c in ("Oslo", "Rome")
]


@pytest.fixture(scope="module")
def tokenizer():
    return Subwords.train(TEXTS, vocab_size=160, exact=False, sentinels=True)


def text_ids(texts, tokenizer):
    return [i for i in token_stream(texts, tokenizer) if i not in tokenizer.special_ids]


def rows(batches, tokenizer):
    """The source and the labels of each row that is not padding, without padding."""
    for inputs, labels, weight in batches:
        source, target, labels = inputs["source"].numpy(), inputs["target"].numpy(), labels.numpy()
        np.testing.assert_array_equal(weight, labels != tokenizer.pad_id)
        np.testing.assert_array_equal(target[:, 0], tokenizer.start_id)
        later = np.where(labels[:, 1:] != tokenizer.pad_id, labels[:, :-1], tokenizer.pad_id)
        np.testing.assert_array_equal(target[:, 1:], later)
        for row in zip(source, labels, strict=True):
            row = [x[: np.count_nonzero(x != tokenizer.pad_id)].tolist() for x in row]
            assert all(not x or tokenizer.end_id == x[-1] for x in row)
            assert bool(row[0]) == bool(row[1])
            if row[0]:
                yield row[0][:-1], row[1][:-1]


def parts(tokens, sentinels):
    """The tokens before the first sentinel, after the first, the second ..."""
    found = [[]]
    for token in tokens:
        if token in sentinels:
            assert token == sentinels[len(found) - 1]  # in order, each once
            found.append([])
        else:
            found[-1].append(token)
    return found


def gaps_and_spans(source, labels, tokenizer):
    """The tokens of the gaps and of the spans of a row."""
    gaps, (none, *spans) = (parts(x, tokenizer.sentinel_ids) for x in (source, labels))
    assert none == [] and len(gaps) == len(spans) + 1
    return gaps, spans


@pytest.mark.parametrize(
    "length, rate, mean_span", [(24, 0.15, 3.0), (17, 0.5, 2.0), (24, 0.4, 1.0), (30, 0.6, 2.0)]
)
def test_source_and_target_restore_every_row(tokenizer, length, rate, mean_span):
    expected = text_ids(TEXTS, tokenizer)
    batches = span_batches(TEXTS, tokenizer, length, 5, rate, mean_span, shuffle=False)
    assert batches.element_spec[0]["source"].shape == (5, length)
    restored, sizes, widths = [], [], []
    for source, labels in rows(batches, tokenizer):
        gaps, spans = gaps_and_spans(source, labels, tokenizer)
        # No spans are adjacent, and text begins with what is shown, as in T5's code.
        assert all(spans) and all(gaps[:-1]) and gaps[-1] == []
        row = [token for pair in zip(gaps, [*spans, []], strict=True) for x in pair for token in x]
        noise, count = count_noise(len(row), rate, mean_span)
        assert (sum(map(len, spans)), len(spans)) == (noise, count)
        restored += row
        sizes.append(len(row))
        widths.append((len(source) + 1, len(labels) + 1))
    assert restored == expected
    assert {*sizes[:-1]} == {sizes[0]} and sizes[-1] <= sizes[0]
    assert {*widths[:-1]} == {(length, batches.element_spec[1].shape[1])}


def test_numbers_are_those_of_t5(tokenizer):
    # Its pretraining: 568 tokens of text make 512 of the source and 114 of the target.
    batches = span_batches(TEXTS * 20, tokenizer, length=512, batch_size=1)
    assert batches.element_spec[1].shape == (1, 114)
    [size, *_] = [sum(map(len, row)) for row in rows(batches, tokenizer)]
    assert size == 511 + 113 and np.all(count_noise(568, 0.15, 3.0) == np.array([85, 28]))


def test_all_divisions_into_spans_are_equally_likely(tokenizer):
    found = Counter()
    # 8 tokens with 4 hidden in 2 spans, 3 ways, and 4 shown in 2 gaps, 3 ways.
    batches = span_batches(TEXTS * 10, tokenizer, 7, 64, rate=0.5, mean_span=2.0, start=0)
    for row in itertools.islice(rows(batches, tokenizer), 4000):
        if len(row[0]) == 6:
            found[
                tuple(len(x) for x in itertools.chain(*gaps_and_spans(*row, tokenizer)) if x)
            ] += 1
    assert len(found) == 9
    np.testing.assert_allclose([x / found.total() for x in found.values()], 1 / 9, atol=0.02)


def test_places_are_hidden_equally_often(tokenizer):
    hidden = np.zeros(34)
    for source, labels in itertools.islice(
        rows(span_batches(TEXTS * 10, tokenizer, 32, start=0), tokenizer), 3000
    ):
        gaps, spans = gaps_and_spans(source, labels, tokenizer)
        flags = [
            x for g, s in zip(gaps, [*spans, []], strict=True) for x in [0] * len(g) + [1] * len(s)
        ]
        if len(flags) == len(hidden):
            hidden += flags
    share = hidden / hidden[-1]  # as in T5's code, the last token is always hidden
    assert share[0] == 0 and share.sum() == pytest.approx(5) and share[8:24].std() < 0.03


def content(batches):
    return [
        b"".join(x.numpy().tobytes() for x in (*inputs.values(), *others))
        for inputs, *others in batches
    ]


def test_batches_resume_exactly_and_differ_between_epochs(tokenizer):
    def make(**options):
        return span_batches(TEXTS * 4, tokenizer, length=40, batch_size=4, **options)

    epoch = len(make())
    whole = content(itertools.islice(make(start=0, seed=3), 2 * epoch + 2))
    assert len(set(whole)) == len(whole)
    for start in (1, epoch + 1):
        rest = content(itertools.islice(make(start=start, seed=3), len(whole) - start))
        assert rest == whole[start:]
    assert content(itertools.islice(make(start=0, seed=4), epoch)) != whole[:epoch]
    still = make(shuffle=False)
    assert content(still) == content(still) and len(content(still)) == epoch
    assert content(make(shuffle=False, seed=1)) != content(still)


def test_short_texts_make_one_padded_row(tokenizer):
    first = text_ids(["Ada Ada Ada"], tokenizer)
    for number in (1, 2, 3, len(first)):
        stream = np.array(first[:number], "int32")
        batches = span_batches(stream, tokenizer, length=64, batch_size=3)
        assert batches.element_spec[0]["source"].shape == (3, 64) and len(batches) == 1
        [(source, labels)] = rows(batches, tokenizer)
        gaps, spans = gaps_and_spans(source, labels, tokenizer)
        assert len(spans) == (number > 1)  # one token alone is not hidden
        assert sum([*gaps[:1], *spans, *gaps[1:]], []) == first[:number]


def test_special_tokens_in_texts_are_left_out(tokenizer):
    texts = ["Ada <extra_id_3> sleeps", "in Oslo"]
    [(source, labels)] = rows(span_batches(texts, tokenizer), tokenizer)
    gaps, spans = gaps_and_spans(source, labels, tokenizer)
    parts = [text_ids([x], tokenizer) for x in ("Ada", "sleeps", "in Oslo")]
    assert sum([*gaps[:1], *spans, *gaps[1:]], []) == sum(parts, [])
    stream = token_stream(texts, tokenizer)
    [again] = rows(span_batches(stream, tokenizer), tokenizer)
    assert sum(map(len, again)) == len(source) + len(labels)


def test_a_learned_vocabulary_has_sentinels(tokenizer, tmp_path):
    names = [f"<extra_id_{i}>" for i in range(100)]
    assert tokenizer.pieces(tokenizer.sentinel_ids) == names
    assert (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == (0, 0, 1)
    exact = Subwords.train(TEXTS, vocab_size=130, sentinels=True)
    assert exact.vocab_size == 130 and len(exact.sentinel_ids) == 100
    tokenizer.save(tmp_path)
    again = Subwords.load(tmp_path)
    assert (again.vocab_size, again.sentinel_ids) == (tokenizer.vocab_size, tokenizer.sentinel_ids)
    text = "Ada<extra_id_0> sleeps <extra_id_99> in Rome"
    [row] = tokenizer.encode([text]).to_list()
    assert again.encode([text]).to_list() == [row]
    assert [i for i in row if i in tokenizer.sentinel_ids] == [
        tokenizer.sentinel_ids[i] for i in (0, 99)
    ]
    assert tokenizer.decode([row]).numpy() == [b"Ada sleeps in Rome"]
    assert [t.decode() for t in again.decode(again.encode(TEXTS)).numpy()] == TEXTS
    assert tokenizer.decode([tokenizer.sentinel_ids]).numpy() == [b""]
    with pytest.raises(ValueError, match="no vocabulary of 103 pieces"):
        Subwords.train(TEXTS, vocab_size=103, sentinels=True)


def test_a_published_t5_has_sentinels_and_other_vocabularies_have_none(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=30,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    t5 = Subwords.load(tmp_path)
    assert t5.sentinel_ids == tuple(range(129, 29, -1))
    [*_] = rows(span_batches(TEXTS, t5, 24), t5)
    usual = Subwords.train(TEXTS, vocab_size=40, exact=False)
    assert (usual.sentinel_ids, usual.vocab_size) == ((), 40)
    for other in (usual, Characters("Ada")):
        with pytest.raises(ValueError, match="has no sentinels: train a vocabulary by Subwords"):
            span_batches(TEXTS, other)


def test_bad_arguments_are_refused(tokenizer):
    for options, message in (
        (dict(texts=[]), "there is no text"),
        (dict(texts=["", " "]), "there is no text"),
        (dict(length=0), "length must be positive: 0"),
        (dict(batch_size=0), "batch_size must be positive: 0"),
        (dict(length=2), "length has no room for text: 2"),
        (dict(rate=0.0), r"rate must be in \(0, 1\): 0.0"),
        (dict(rate=1.0), r"rate must be in \(0, 1\): 1.0"),
        (dict(mean_span=0.5), "mean_span must be at least 1: 0.5"),
        (dict(mean_span=float("nan")), "mean_span must be at least 1: nan"),
        (dict(length=2048), r"a row of length 2048 has 114 spans, but Subwords has only 100 sent"),
    ):
        with pytest.raises(ValueError, match=message):
            span_batches(**{"texts": TEXTS, "tokenizer": tokenizer, **options})
    with pytest.raises(ValueError, match="Subwords has no mask token"):
        masked_batches(TEXTS, tokenizer)
