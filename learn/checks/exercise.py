"""What all checks share: how a function is called, how its result is compared."""

import collections
import functools

import numpy as np

RIGHT, NOT_DONE = "right", "not done yet"


class Hint(Exception):
    """Says what is wrong with an answer."""


def exercise(compare_answer):
    """Turns a function that raises hints into a check, which returns a message."""

    @functools.wraps(compare_answer)
    def check(function):
        try:
            compare_answer(functools.partial(call, function))
        except Hint as hint:
            return str(hint)
        return RIGHT

    return check


def call(function, *inputs):
    """The function's result as a NumPy array."""
    inputs = [x.copy() if isinstance(x, np.ndarray) else x for x in inputs]
    try:
        result = function(*inputs)
        if result is None or result is Ellipsis:
            raise Hint(NOT_DONE)
        result = np.asarray(result)
    except Hint:
        raise
    except Exception as error:
        raise Hint(f"it raises {type(error).__name__}: {error}") from error
    if result.dtype == object:
        raise Hint("the result should be an array or a number")
    return result


def compare(got, want, mistakes, otherwise):
    """Raises the hint of the first of the ``mistakes`` (hint -> wrong result) that ``got`` is."""
    want = np.asarray(want)
    if want.dtype == bool and got.dtype != bool and got.shape == want.shape:
        raise Hint(f"a mask is boolean, True = may attend; this one is {got.dtype}")
    if is_close(got, want):
        return
    for hint, wrong in mistakes.items():
        if is_close(got, np.asarray(wrong)):
            raise Hint(hint)
    if got.shape != want.shape:
        raise Hint(f"the shape should be {want.shape}, not {got.shape}")
    if not np.isfinite(got.astype("float64")).all():
        raise Hint("the result has NaN or infinite values")
    raise Hint(otherwise)


def is_close(a, b):
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-5)


def compare_cases(answer, cases, want, mistakes, otherwise):
    """Like `compare`, for a function of numbers, which is called with each of the ``cases``."""
    got = [answer(*case) for case in cases]
    if any(number.shape != () for number in got):
        raise Hint(f"the result should be one number, not an array of shape {got[0].shape}")
    wrong = {hint: [mistake(*case) for case in cases] for hint, mistake in mistakes.items()}
    compare(np.array(got), [want(*case) for case in cases], wrong, otherwise)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def ngrams(words, n):
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
