import numpy as np
import pytest
from keras import ops

from polyhead.zoo.decoding.sampling import Sampler, Sampling, filter_logits, gumbel_noise

V = 12


def array(x):
    return ops.convert_to_numpy(x)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def kept(logits, **settings):
    """The tokens that the filters keep, as a mask."""
    rows = {
        name: np.full(len(logits), value, "int32" if name == "top_k" else "float32")
        for name, value in settings.items()
    }
    return array(filter_logits(ops.convert_to_tensor(logits), **rows)) > -1e8


def test_filters_keep_the_documented_tokens():
    logits = np.random.default_rng(0).normal(size=(50, V)).astype("float32") * 3
    probability = softmax(logits)
    order = np.argsort(-logits, axis=1)
    ranks = np.argsort(order, axis=1)
    for k in (1, 3, V, 100):
        np.testing.assert_array_equal(kept(logits, top_k=k), ranks < k)
    assert kept(logits, top_k=0).all()
    for p in (0.01, 0.3, 0.9, 1.0):
        ahead = np.cumsum(np.take_along_axis(probability, order, 1), 1)
        # The probability of all tokens that are more likely.
        ahead = np.take_along_axis(ahead, ranks, 1) - probability
        clear = np.abs(ahead - p) > 1e-5
        np.testing.assert_array_equal(kept(logits, top_p=p)[clear], (ahead < p)[clear])
    for p in (0.0, 0.1, 1.0):
        np.testing.assert_array_equal(
            kept(logits, min_p=p), probability >= p * probability.max(1, keepdims=True) * (1 - 1e-6)
        )


def test_the_filters_match_hugging_face():
    torch = pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")
    process = pytest.importorskip("transformers").generation.logits_process
    logits = np.random.default_rng(1).normal(size=(40, 300)).astype("float32") * 2
    warped = torch.tensor(logits)
    for warper in (
        process.TopKLogitsWarper(40),
        process.TopPLogitsWarper(0.8),
        process.MinPLogitsWarper(0.05),
    ):
        warped = warper(None, warped)
    np.testing.assert_array_equal(
        kept(logits, top_k=40, top_p=0.8, min_p=0.05), np.isfinite(warped.numpy())
    )


def frequencies(logits, count, **settings):
    """The sample frequency of each token over ``count`` seeds."""
    sampling = Sampling(**settings)
    sampler = sampling.sampler(range(count))
    sampler = sampler._replace(seen=np.zeros((count, 1), "int32"))
    rows = np.repeat(logits[None], count, 0)
    tokens = array(sampler(ops.convert_to_tensor(rows), ops.zeros((count, 4), "int32"), 3))
    return np.bincount(tokens, minlength=len(logits)) / count


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(temperature=0.7),
        dict(temperature=2.0, top_k=4),
        dict(top_p=0.8),
        dict(min_p=0.2),
        dict(temperature=1.3, top_k=6, top_p=0.9, min_p=0.05),
    ],
)
def test_sample_frequencies_match_the_filtered_softmax(settings):
    logits, count = np.random.default_rng(2).normal(size=V).astype("float32") * 1.5, 40_000
    scaled = logits / settings.get("temperature", 1.0)
    filters = {k: v for k, v in settings.items() if k != "temperature"}
    expected = softmax(np.where(kept(scaled[None], **filters)[0], scaled, -1e9))
    sampled = frequencies(logits, count, **settings)
    assert not sampled[expected == 0].any()
    # chi-squared: below its 99.99th percentile for this many degrees of freedom
    likely = expected > 0
    distance = (count * (sampled - expected)[likely] ** 2 / expected[likely]).sum()
    degrees = likely.sum() - 1
    assert distance < degrees + 4 * np.sqrt(2 * degrees) + 10


def test_noise_does_not_depend_on_neighbours_and_differs_between_steps():
    seeds = np.array([3, 4, 3], "int32")
    first, second = (array(gumbel_noise(seeds, step, 5000)) for step in (0, 1))
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(first[1], array(gumbel_noise(np.array([4], "int32"), 0, 5000))[0])
    for a, b in ((first[0], first[1]), (first[0], second[0]), (first[0, 1:], first[1, :-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.06
    assert first.mean() == pytest.approx(0.5772, abs=0.05)  # Euler's constant
    assert first.var() == pytest.approx(np.pi**2 / 6, rel=0.1)


def test_previous_tokens_are_penalized():
    logits = ops.convert_to_tensor(np.array([[2.0, -1.0, 1.5, 0.0]], "float32"))
    seen, tokens = np.array([[0, 0]], "int32"), np.array([[1, 2, 2]], "int32")
    sampler = Sampling(temperature=0, repetition_penalty=2.0).sampler([0])._replace(seen=seen)
    # 0 occurs in the prompt: 2 / 2; 2 is beyond the decoded tokens and does not count
    assert array(sampler(logits, tokens, 1)).tolist() == [2]
    assert array(sampler(logits, tokens, 3)).tolist() == [0]  # 2 has occurred: 1.5 / 2


def test_each_row_has_its_own_settings():
    logits = np.random.default_rng(0).normal(size=(1, V)).astype("float32").repeat(3, 0)
    sampler = Sampler(
        seed=np.array([1, 1, 2], "int32"),
        temperature=np.array([0.0, 5.0, 5.0], "float32"),
        top_k=np.array([0, 1, 0], "int32"),
        top_p=np.ones(3, "float32"),
        min_p=np.zeros(3, "float32"),
    )
    most_likely = logits[0].argmax()
    tokens = [array(sampler(logits, np.zeros((3, 1), "int32"), step)) for step in range(40)]
    assert all(row[0] == row[1] == most_likely for row in tokens)
    assert len({int(row[2]) for row in tokens}) > 5


def test_invalid_settings_are_refused():
    for options, message in (
        (dict(temperature=-1), "temperature must not be negative: -1"),
        (dict(temperature=float("nan")), "temperature must be a number: nan"),
        (dict(top_k=-1), "top_k must be a non-negative integer, or None: -1"),
        (dict(top_k=True), "top_k must be a non-negative integer, or None: True"),
        (dict(top_k=2**40), "top_k must be a non-negative integer, or None: 1099511627776"),
        (dict(temperature=10**400), "temperature must be a number: 1000"),
        (dict(temperature=np.float32("inf")), "temperature must be a number: inf"),
        (dict(top_k=2.5), "top_k must be a non-negative integer, or None: 2.5"),
        (dict(top_p=0), r"top_p must be in \(0, 1\]: 0"),
        (dict(min_p=1.5), r"min_p must be in \[0, 1\]: 1.5"),
        (dict(top_p="0.5"), "top_p must be a number: '0.5'"),
        (dict(repetition_penalty=0), "repetition_penalty must be positive: 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Sampling(**options)


def test_numpy_scalars_are_accepted_as_settings():
    ours = Sampling(temperature=np.float64(0.5), top_k=np.int32(3), top_p=np.float32(0.5))
    assert ours == Sampling(0.5, 3, 0.5)
    assert [type(value) for value in (ours.temperature, ours.top_k, ours.top_p)] == [
        float,
        int,
        float,
    ]


def test_a_top_k_of_0_keeps_all_tokens():
    assert Sampling(top_k=0) == Sampling(top_k=None)
