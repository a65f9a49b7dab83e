import itertools

import keras
import numpy as np
import pytest

from polyhead.zoo.decoding import Search
from polyhead.zoo.decoding.search import advance, begin
from tests.conftest import small

END = 2


def array(x):
    return keras.ops.convert_to_numpy(x)


def random_tokens(batch, length, vocab=40, seed=0):
    return np.random.default_rng(seed).integers(3, vocab, (batch, length)).astype("int32")


def confident(**overrides):
    """A model whose next token depends on all previous ones, with medium entropy."""
    model, random = small(**overrides), np.random.default_rng(0)
    for v in model.weights:  # gammas of both signs: else the last token would be repeated
        if v.name in ("kernel", "gamma"):
            v.assign(v + random.normal(size=v.shape) * (1.0 if v.name == "gamma" else 0.3))
    return model


def log_probabilities(model, source, target):
    """The log-probabilities (n, V) of the next token after ``target`` (n, T)."""
    length = target.shape[1]
    target = np.pad(target, [[0, 0], [0, 12 - length]])  # on JAX each shape takes seconds
    inputs = {"source": np.repeat(source, len(target), 0), "target": target}
    return array(keras.ops.log_softmax(model(inputs)[:, length - 1]))


def every_sequence(model, source, limit):
    """All sequences that end or have ``limit`` tokens: ``(tokens, log-probability)``."""
    going, ended = [((), 0.0)], []
    for n in range(1, limit + 1):
        target = np.array([[1, *tokens] for tokens, _ in going], "int32")
        gains = log_probabilities(model, source, target)
        longer = [
            ((*tokens, v), score + float(gain))
            for (tokens, score), row in zip(going, gains, strict=True)
            for v, gain in enumerate(row)
        ]
        ended += [pair for pair in longer if pair[0][-1] == END or n == limit]
        going = [pair for pair in longer if pair[0][-1] != END]
    return ended


def run_search(model, source, max_new_tokens=10, **search):
    search["max_new_tokens"] = max_new_tokens
    tokens, score, complete = (array(x) for x in model.find(source, Search(**search)))
    assert complete.all()
    return tokens, score


def pad(tokens, length):
    return [*tokens, *[0] * (length - len(tokens))]


@pytest.mark.parametrize("stop", [False, "never"])
@pytest.mark.parametrize(
    "penalty, alpha",
    [("power", 0.0), ("power", 1.0), ("power", 2.0), ("gnmt", 0.6)],
)
def test_an_exhaustive_beam_finds_the_best_sequences(penalty, alpha, stop):
    model, limit = confident(vocab_size=5), 3
    source = np.array([[3, 4, 3, 2]], "int32")
    search = dict(penalty=penalty, length_penalty=alpha, early_stopping=stop, max_new_tokens=limit)
    tokens, score = run_search(model, source, num_beams=100, **search)

    def worth(pair):
        n = len(pair[0])
        return pair[1] / (n if penalty == "power" else (5 + n) / 6) ** alpha

    best = sorted(every_sequence(model, source, limit), key=worth, reverse=True)
    for i in range(20):
        assert list(tokens[0, i]) == pad(best[i][0], tokens.shape[2])
        assert score[0, i] == pytest.approx(worth(best[i]), abs=1e-4)


def test_a_beam_continues_although_many_ends_are_likelier():
    logits = keras.ops.convert_to_tensor([-9.0, -9.0, 2.5, 4.0, 5.0, 3.0, 2.0])

    def step(tokens, caches):
        return keras.ops.broadcast_to(logits, (2, 1, 7)), caches

    settings = dict(num_beams=2, length_penalty=2.0, early_stopping="never")
    limit = keras.ops.convert_to_tensor([3])
    state = begin(np.array([1]), [], limit, 3, 0, beams=2)
    # The four most likely tokens end a sequence, and the fifth, 6, does not.
    search = Search(stop_tokens=(3, 4, 5), **settings)
    tokens, score, _ = advance(step, state, limit, END, search).found
    assert array(tokens).tolist() == [[[4, 0, 0], [6, 6, 4]]]
    gains = array(keras.ops.log_softmax(logits))
    expected = [gains[4], (2 * gains[6] + gains[4]) / 9]
    np.testing.assert_allclose(array(score)[0], expected, rtol=1e-5)


def test_one_beam_takes_the_most_likely_token_at_each_step():
    model, source = confident(), random_tokens(3, 6)
    search = dict(num_beams=1, length_penalty=2.0, early_stopping="never", max_new_tokens=9)
    tokens, score = run_search(model, source, **search)
    best = tokens[:, 0]
    target = np.pad(best[:, :-1], [[0, 0], [1, 0]], constant_values=1)
    gains = array(keras.ops.log_softmax(model({"source": source, "target": target})))
    for row in range(3):
        ended = np.flatnonzero(best[row] == END)
        length = ended[0] + 1 if len(ended) else 9
        assert list(gains[row, :length].argmax(-1)) == list(best[row, :length])
        assert not best[row, length:].any()
        assert score[row, 0] == pytest.approx(gains[row, :length].max(-1).sum(), abs=1e-3)


@pytest.mark.parametrize(
    "stop",
    [
        False,
        pytest.param(True, marks=pytest.mark.slow),
        pytest.param("never", marks=pytest.mark.slow),
    ],
)
def test_batched_search_equals_single_searches(stop):
    model, search = confident(), dict(num_beams=3, early_stopping=stop)
    sources = [random_tokens(1, n, seed=n) for n in (3, 5, 8)]
    batch = np.zeros((3, 8), "int32")
    for row, source in enumerate(sources):
        batch[row, : source.shape[1]] = source
    tokens, score = run_search(model, batch, **search)
    for row, source in enumerate(sources):
        alone, alone_score = run_search(model, source, **search)
        np.testing.assert_array_equal(tokens[row, :, : alone.shape[2]], alone[0])
        np.testing.assert_allclose(score[row], alone_score[0], atol=1e-3)


def test_more_beams_find_more_likely_sequences():
    model, source = confident(), random_tokens(64, 6)
    greedy, wide = (
        run_search(model, source, num_beams=n, length_penalty=0.0, early_stopping="never")[1]
        for n in (1, 5)
    )
    assert (np.diff(wide, axis=1) <= 0).all()  # the best first
    assert wide[:, 0].mean() > greedy[:, 0].mean()
    assert (wide[:, 0] > greedy[:, 0] - 1e-3).mean() > 0.9


def test_scores_equal_the_models_log_probabilities():
    model, source = confident(), random_tokens(3, 5)
    tokens, score = run_search(model, source, None, num_beams=4, length_penalty=0.7)
    target = np.pad(tokens[:, :, :-1], [[0, 0], [0, 0], [1, 0]], constant_values=1)
    inputs = {"source": np.repeat(source, 4, 0), "target": target.reshape(12, -1)}
    every = array(keras.ops.log_softmax(model(inputs)))
    for row, beam in itertools.product(range(3), range(4)):
        kept, gains = tokens[row, beam], every[4 * row + beam]
        n = list(kept).index(END) + 1 if END in kept else len(kept)
        total = sum(gains[t, kept[t]] for t in range(n))
        assert score[row, beam] == pytest.approx(total / n**0.7, abs=1e-3)


def test_impossible_hypotheses_are_never_returned():
    model, source = confident(vocab_size=5), np.array([[3, 4, 3, 2]], "int32")
    banned = [[0], [1], [3]]  # only the end token and one more are left
    tokens, score = run_search(model, source, num_beams=8, max_new_tokens=2, banned=banned)
    listed = [list(hypothesis[:2]) for hypothesis in tokens[0]]
    assert sorted(listed[:3]) == [[2, 0], [4, 2], [4, 4]] and not np.any(listed[3:])
    assert (score[0, :3] > -100).all() and (score[0, 3:] == -1e9).all()


def test_the_default_length_limit_is_that_of_the_source():
    model, source = confident(), random_tokens(4, 6)
    usual, longer = (run_search(model, source, most) for most in (None, 60))
    assert usual[0].shape[-1] == 2 * 6 + 10 and longer[0].shape[-1] == 60
    ended = (usual[0] == END).any(-1)
    assert ended.any()
    for a, b in zip(usual[0][ended], longer[0][ended], strict=True):
        np.testing.assert_array_equal(a, b[: len(a)])


def test_banned_tokens_are_never_generated():
    model, source = confident(), random_tokens(8, 6)
    for beams in (1, 3):
        free, _ = run_search(model, source, num_beams=beams)
        first = int(free[0, 0, 0])
        pair = tuple(int(token) for token in free[1, 0, :2])
        tokens, _ = run_search(model, source, num_beams=beams, banned=[[first], pair])
        assert first in free and first not in tokens
        follow = (tokens[..., :-1] == pair[0]) & (tokens[..., 1:] == pair[1])
        assert not follow.any()


def test_no_repeat_ngram_size_and_min_new_tokens_hold():
    model = confident()
    settings = dict(no_repeat_ngram_size=2, min_new_tokens=12, forced_begin=7, max_new_tokens=20)
    for beams in (1, 3):
        found = model.find(random_tokens(4, 6), Search(num_beams=beams, **settings), length=20)
        for row in array(found.tokens).reshape(-1, 20).tolist():
            row = row[: row.index(2) + 1] if 2 in row else row
            assert row[0] == 7 and len(row) > 12
            pairs = list(zip(row, row[1:], strict=False))
            assert len(set(pairs)) == len(pairs)


def test_a_forced_end_ends_at_the_limit():
    model, source = small(), random_tokens(4, 6)
    for beams in (1, 3):
        tokens, _ = run_search(model, source, num_beams=beams, max_new_tokens=5, forced_end=True)
        for hypothesis in tokens.reshape(-1, tokens.shape[-1]):
            assert END in hypothesis[:5] and not hypothesis[5:].any()


def test_incomplete_search_is_reported():
    model, source = small(), random_tokens(2, 4)
    search = Search(max_new_tokens=30)
    short = model.find(source, search, length=10)
    whole = model.find(source, search, length=30)
    assert not array(short.complete).all() and array(whole.complete).all()


def test_invalid_settings_are_refused():
    for options, message in (
        (dict(num_beams=0), "num_beams must be a positive integer: 0"),
        (dict(num_beams=10**9), "num_beams must be at most 1024: 1000000000"),
        (dict(length_penalty=10**400), "length_penalty must be a number: 1000"),
        (dict(stop_tokens=5), "stop_tokens must be tokens: 5"),
        (dict(penalty="wu"), "penalty must be 'power' or 'gnmt': 'wu'"),
        (dict(early_stopping="always"), "early_stopping must be False, True or 'never': 'always'"),
        (dict(num_beams=True), "num_beams must be a positive integer: True"),
        (dict(max_new_tokens=0), "max_new_tokens must be a positive integer: 0"),
        (dict(max_new_tokens="5"), "max_new_tokens must be a positive integer: '5'"),
        (dict(length_penalty="1"), "length_penalty must be a number: '1'"),
        (dict(length_penalty=float("nan")), "length_penalty must be a number: nan"),
        (dict(early_stopping=1), "early_stopping must be False, True or 'never': 1"),
        (dict(min_new_tokens=-1), "min_new_tokens must be a non-negative integer: -1"),
        (
            dict(no_repeat_ngram_size="3"),
            "no_repeat_ngram_size must be an integer from 0 to 100: '3'",
        ),
        (dict(no_repeat_ngram_size=101), "no_repeat_ngram_size must be an integer from 0 to 100"),
        (dict(forced_begin=-1), "forced_begin must be a token, or None: -1"),
        (dict(forced_end="no"), "forced_end must be True or False: 'no'"),
        (dict(banned=[5]), "banned must be sequences of tokens"),
        (dict(banned=[[2**40]]), "banned must be sequences of tokens"),
        (dict(banned=[[]]), "banned must be sequences of tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            Search(**options)


def test_a_search_is_limited_by_the_model():
    assert Search(max_new_tokens=10**9).within(40, 16) == Search(max_new_tokens=16)
    assert Search(max_new_tokens=5).within(40, 16) == Search(max_new_tokens=5)
    with pytest.raises(ValueError, match="at most the vocabulary's size, 40: 41"):
        Search(num_beams=41).within(40, 16)
    for options in (
        dict(forced_begin=40),
        dict(stop_tokens=[3, 40]),
        dict(banned=[[3], [2, 40]]),
    ):
        with pytest.raises(ValueError, match="must have tokens below the vocabulary's size, 40"):
            Search(**options).within(40, 16)
        assert Search(**options).within(41, 16) == Search(**options)
    with pytest.raises(ValueError, match="at most the vocabulary's size, 40: 41"):
        small(search=Search(num_beams=41))


def test_a_banned_sequence_may_begin_in_the_prompt():
    model, source = small(), random_tokens(2, 5)
    for beams in (1, 3):
        settings = dict(num_beams=beams, max_new_tokens=6)
        first = int(array(model.find(source, Search(**settings)).tokens)[0, 0, 0])
        banned = [[model.config.start_id, first]]  # the prompt is the start token
        tokens = array(model.find(source, Search(**settings, banned=banned)).tokens)
        assert (tokens[:, :, 0] != first).all()
        other = [[(model.config.start_id + 1) % 40, first]]
        tokens = array(model.find(source, Search(**settings, banned=other)).tokens)
        assert tokens[0, 0, 0] == first


def test_numpy_scalars_are_accepted_as_settings():
    tokens = np.array([[3, 4]])
    ours = Search(np.int64(2), length_penalty=np.float32(0.5), banned=tokens, forced_end=np.True_)
    assert ours == Search(2, length_penalty=0.5, banned=((3, 4),), forced_end=True)
    assert hash(ours) and type(ours.num_beams) is int and ours.forced_end is True
