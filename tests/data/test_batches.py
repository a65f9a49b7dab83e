import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.data import ParallelText, translation_batches
from polyhead.data.batches import Buckets, bucket_lengths, plan


def arrays(batches):
    return [(x["source"].numpy(), x["target"].numpy(), y.numpy(), w.numpy()) for x, y, w in batches]


def test_a_batch_has_the_inputs_of_the_model(sample, tokenizer):
    for source, target, labels, weight in arrays(translation_batches(sample, tokenizer, 512)):
        assert source.shape == target.shape == labels.shape == weight.shape
        assert source.size <= 512 and len(source) % 8 == 0
        np.testing.assert_array_equal(weight, labels != 0)
        filled = weight.any(1)
        assert (target[filled, 0] == tokenizer.start_id).all()
        np.testing.assert_array_equal(target[:, 1:], labels[:, :-1] * (weight[:, 1:] > 0))
        assert (labels.max(1) > 2)[filled].all() and (source[~filled] == 0).all()


def test_every_pair_occurs_once_per_epoch(sample, tokenizer):
    seen = []
    for source, _, labels, weight in arrays(translation_batches(sample, tokenizer, 512)):
        for row in np.flatnonzero(weight.any(1)):
            texts = tokenizer.decode([source[row]]), tokenizer.decode([labels[row]])
            seen.append(tuple(t.numpy()[0].decode() for t in texts))
    assert sorted(seen) == sorted(zip(sample.sources, sample.targets, strict=True))


def test_there_are_no_more_shapes_than_buckets(sample, tokenizer):
    for buckets in (1, 3):
        batches = arrays(translation_batches(sample, tokenizer, 512, buckets=buckets))
        assert len({b[0].shape for b in batches}) <= buckets


def test_rows_can_be_repeated(sample, tokenizer):
    once = arrays(translation_batches(sample, tokenizer, 512, shuffle=False))
    twice = arrays(translation_batches(sample, tokenizer, 512, shuffle=False, twice=True))
    for batch, doubled in zip(once, twice, strict=True):
        for one, two in zip(batch, doubled, strict=True):
            np.testing.assert_array_equal(one.repeat(2, 0), two)


def test_the_order_changes_each_epoch_and_is_reproducible(sample, tokenizer):
    def epochs(seed):
        batches = translation_batches(sample, tokenizer, 512, seed=seed)
        return [[b[2].tobytes() for b in arrays(batches)] for _ in range(2)]

    first, second = epochs(1)
    assert first != second and len(first) == len(second)
    assert epochs(1) == [first, second]
    assert epochs(2)[0] != first


def test_an_endless_dataset_starts_at_a_given_update(sample, tokenizer):
    def stream(start, count):
        batches = translation_batches(sample, tokenizer, 512, start=start)
        return [b[2].tobytes() for b in arrays(itertools.islice(batches, count))]

    epoch = len(translation_batches(sample, tokenizer, 512))
    whole = stream(0, 2 * epoch + 5)
    assert len(set(whole)) > epoch  # the second epoch has other batches
    for start in (1, epoch, epoch + 3):
        assert stream(start, len(whole) - start) == whole[start:]


def test_bpe_dropout_segments_differently_each_epoch_and_resumes(sample, tokenizer):
    def stream(start, count):
        batches = translation_batches(sample, tokenizer, 512, start=start, bpe_dropout=0.2)
        return arrays(itertools.islice(batches, count))

    def texts(batches):
        return sorted(
            tokenizer.decode([row]).numpy()[0].decode() for b in batches for row in b[2] if row[0]
        )

    epoch = len(translation_batches(sample, tokenizer, 512, bpe_dropout=0.2))
    whole = stream(0, 2 * epoch)
    first, second = whole[:epoch], whole[epoch:]
    assert texts(first) == texts(second) == sorted(sample.targets)
    assert sum(b[3].sum() for b in first) != sum(b[3].sum() for b in second)  # other tokens
    usual = arrays(translation_batches(sample, tokenizer, 512))
    assert sum(b[3].sum() for b in first) > 1.1 * sum(b[3].sum() for b in usual)
    for start in (2, epoch + 1):
        for a, b in zip(stream(start, 2 * epoch - start), whole[start:], strict=True):
            np.testing.assert_array_equal(a[0], b[0])
            np.testing.assert_array_equal(a[2], b[2])


def test_numpy_integers_are_accepted_as_sizes_and_seeds(sample, tokenizer):
    sizes = dict(tokens=512, max_length=64, buckets=2, seed=3, start=1)
    numpy = {name: np.int64(size) for name, size in sizes.items()}
    first, other = (
        next(iter(translation_batches(sample, tokenizer, bpe_dropout=rate, **options)))
        for rate, options in ((0.1, sizes), (np.float64(0.1), numpy))
    )
    np.testing.assert_array_equal(first[1], other[1])


def test_bpe_dropout_respects_the_maximum_length(sample, tokenizer):
    with pytest.warns(UserWarning, match="longer than 21 tokens"):
        batches = translation_batches(sample, tokenizer, 512, 21, seed=-1, bpe_dropout=0.5)
    assert max(b[3].sum(1).max() for b in arrays(batches)) <= 21


def test_batches_without_shuffling_are_reproducible(sample, tokenizer):
    batches = translation_batches(sample, tokenizer, 512, shuffle=False)
    assert [b[2].tobytes() for b in arrays(batches)] == [b[2].tobytes() for b in arrays(batches)]


def test_pairs_that_are_empty_or_too_long_are_left_out_with_a_warning(tokenizer):
    pairs = ParallelText(["The dog", "", "The cat"], ["Der Hund", "Die Katze", "Katze " * 99])
    with pytest.warns(UserWarning, match="2 of 3 pairs are empty or longer than 64 tokens"):
        [(_, _, _, weight)] = arrays(translation_batches(pairs, tokenizer, max_length=64))
    assert weight.any(1).sum() == 1


def test_bad_arguments_are_refused(tokenizer, sample):
    with pytest.raises(ValueError, match="no pair has between 1 and 127 tokens"):
        translation_batches(ParallelText([""], [""]), tokenizer)
    with pytest.raises(ValueError, match="must be positive"):
        translation_batches(sample, tokenizer, tokens=0)
    with pytest.raises(ValueError, match="bpe_dropout must be in"):
        translation_batches(sample, tokenizer, bpe_dropout=1.0)
    with pytest.raises(ValueError, match="object does not support BPE-dropout"):
        translation_batches(sample, object(), bpe_dropout=0.1)


lengths = st.lists(st.integers(2, 90), min_size=1, max_size=80).map(np.array)


@settings(deadline=None)
@given(lengths, st.integers(1, 6), st.integers(1, 4000))
def test_a_plan_covers_all_rows_once_within_the_budget(lengths, buckets, tokens):
    ends = bucket_lengths(lengths, buckets)
    assert len(ends) <= buckets and lengths.max() <= ends[-1] and (ends % 4 == 0).all()
    ordered = np.sort(ends[np.searchsorted(ends, lengths)])
    at = 0
    for first, size, length in plan(lengths, ends, tokens).T:
        assert first == at and size % 8 == 0 and (size * length <= tokens or size == 8)
        assert (ordered[first : first + size] <= length).all()
        at += size
    assert at >= len(lengths) > at - size


@settings(deadline=None)
@given(lengths)
def test_bucket_lengths_minimize_padding(lengths):
    def padded(ends):
        return sum(min(e for e in ends if e >= length) for length in lengths)

    rounded = sorted({-(-int(n) // 4) * 4 for n in lengths})
    best = min(padded([*other, rounded[-1]]) for other in itertools.combinations(rounded, 1))
    assert padded(bucket_lengths(lengths, 2)) == best


def test_single_sequences_share_the_plan_of_pairs():
    lengths = np.random.default_rng(0).integers(2, 40, 100)
    rows = tf.ragged.range(lengths)

    def batch(chosen, size, length):
        return chosen, tf.gather(rows, chosen).to_tensor(-1, shape=[size, length])

    plan = Buckets(lengths, 400, buckets=3)
    made = [(c.numpy(), x.numpy()) for c, x in plan.batches(batch)]
    assert len(made) == len(plan) and len({x.shape for _, x in made}) <= 3
    assert sorted(i for chosen, _ in made for i in chosen) == list(range(100))
    for chosen, x in made:
        assert x.size <= 400 and len(x) % 8 == 0
        np.testing.assert_array_equal((x >= 0).sum(1)[: len(chosen)], lengths[chosen])
    assert (plan.room >= lengths).all()
