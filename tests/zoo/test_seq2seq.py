"""The task methods that encoder-decoders share: summaries of long texts, lengths, errors."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.zoo import Search, Summary
from polyhead.zoo.decoding import is_possible
from polyhead.zoo.seq2seq import divide
from tests.conftest import TENSORFLOW
from tests.zoo.toy_summarizers import (
    array,
    many_sentences,
    perturb,
    random_tokens,
    small_bart,
    small_t5,
    write_roberta,
)

text = pytest.mark.skipif(not TENSORFLOW, reason="tokenizers are TensorFlow's")


def words(texts):
    return [len(text.split()) for text in texts]


def characters(texts):
    return [len(text) for text in texts]


def bare(text):
    return "".join(text.split())


def fewest(sizes, limit):
    """The smallest number of pieces of consecutive parts, by trying all first pieces."""
    best = [0]
    for end in range(1, len(sizes) + 1):
        starts = [i for i in range(end) if i == end - 1 or sum(sizes[i:end]) <= limit]
        best.append(1 + min(best[i] for i in starts))
    return best[-1]


def test_a_text_within_the_limit_is_one_piece():
    for text in ("One. Two.", "", " a\n", "One.  Two."):
        assert divide(text, 2, words) == [text]


def test_pieces_end_where_sentences_end():
    text = "One two. Three four! Five six? Seven\nEight nine ten."
    assert divide(text, 4, words) == ["One two. Three four!", "Five six? Seven", "Eight nine ten."]
    assert divide('She said "One." Then 2.', 3, words) == ['She said "One."', "Then 2."]
    assert divide("一二。三四。", 3, characters) == ["一二。", "三四。"]
    assert divide("It cost 3.50 euros. Then 4.", 4, words) == ["It cost 3.50 euros.", "Then 4."]
    assert divide("One two\r\nthree four\r\n\r\nfive", 2, words) == [
        "One two",
        "three four",
        "five",
    ]


def test_pieces_have_similar_lengths():
    text = " ".join(f"Word{i}." for i in range(20))
    for limit, expected in ((19, [10, 10]), (9, [7, 7, 6]), (7, [7, 7, 6]), (6, [5, 5, 5, 5])):
        assert words(divide(text, limit, words)) == expected, limit


def test_a_giant_sentence_is_divided_at_white_space():
    text = "Short. " + " ".join(["word"] * 10) + ". Last one."
    pieces = divide(text, 4, words)
    assert " ".join(pieces) == text and max(words(pieces)) <= 4
    assert len(pieces) == 4  # 13 words


def test_a_giant_word_is_a_piece_alone():
    text = "One two. " + "x" * 50 + " three. 日本語" + "字" * 30
    pieces = divide(text, 20, characters)
    assert pieces == ["One two.", "x" * 50, "three.", "日本語" + "字" * 30]


def test_odd_white_space_ends_words_and_sentences():
    text = "a.\u2003b.\u00a0c.\u2028d.\x85e.\tf.\x0bg."
    assert divide(text, 2, lambda texts: [len(bare(text)) for text in texts]) == [
        f"{letter}." for letter in "abcdefg"
    ]


pieces_of_text = st.lists(
    st.sampled_from(
        ["a", "bc", "dog", "word" * 9, "日本語", "👩\u200d👧", "é", ".", "!", "?", " ", "  ", "\n",
         "\r\n", "\u00a0", "\u2028", "\x85", ". ", ".\n", "e.g. ", "\x00"]
    ),
    max_size=60,
).map("".join)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(pieces_of_text, st.integers(1, 30))
def test_pieces_are_the_text_within_the_limit(text, limit):
    pieces = divide(text, limit, characters)
    assert bare("".join(pieces)) == bare(text) and pieces
    assert all(len(x) <= limit or len(x.split()) == 1 for x in pieces)
    assert all(pieces) or len(pieces) == 1


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(1, 30))
def test_there_are_as_few_pieces_as_possible(sizes, limit):
    text = " ".join("x" * (size - 1) + "." for size in sizes)
    pieces = divide(text, limit, lambda texts: [len(bare(text)) for text in texts])
    assert len(pieces) == fewest(sizes, limit)


def test_many_pieces_of_short_parts_are_as_few_as_possible():
    # Were each piece to end near its share of 9.4 tokens, there would be six.
    assert words(divide("a. " * 47, 10, words)) == [10, 10, 10, 10, 7]


@pytest.fixture(scope="module")
def t5(tokenizer):
    return perturb(small_t5(tokenizer, prefix="it is: ", max_length=24))


@pytest.fixture(scope="module")
def bart(sample, tmp_path_factory):
    from polyhead.data import BytePairs

    folder = tmp_path_factory.mktemp("pieces")
    write_roberta(folder, sample.sources, 400)
    return perturb(small_bart(BytePairs.load(folder), max_length=24))


def pieces_of(model, text):
    """The pieces of a text as `summarize` documents them."""
    prefix = getattr(model.config, "prefix", "")
    room = model.config.max_length - len(model.tokenizer.encode([prefix])[0])
    return divide(text, room, model.tokenizer.count)


@text
@pytest.mark.parametrize("kind", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_the_summary_of_a_long_text_consists_of_those_of_its_pieces(kind, request):
    model = request.getfixturevalue(kind)
    texts = [many_sentences(6), "Two men.", "", many_sentences(3, 6)]
    parts = [pieces_of(model, text) for text in texts]
    assert len(parts[0]) > len(parts[3]) > 1 == len(parts[1])
    run = dict(max_new_tokens=6, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.summarize(texts, **run)
        flat = iter(model.summarize(sum(parts, []), **run))
    for summary, several in zip(found, parts, strict=True):
        summaries = [next(flat) for _ in several]
        assert isinstance(summary, Summary) and summary == " ".join(summaries)
        assert summary.score == pytest.approx(sum(x.score for x in summaries), abs=1e-4)
    assert model.summarize(texts[0], **run) == found[0] and found[2] == ""
    assert model.summarize([], **run) == []


@text
def test_several_summaries_of_a_long_text_are_joined_by_rank(t5):
    text, run = many_sentences(4), dict(max_new_tokens=6, num_return_sequences=2)
    several, short = t5.summarize([text, "Two men."], **run)
    parts = t5.summarize(pieces_of(t5, text), **run)
    assert len(parts) > 1 and len(several) == len(short) == 2
    assert several == [" ".join(rank) for rank in zip(*parts, strict=True)]
    assert several[0].score >= several[1].score
    assert t5.summarize(text, **run) == several
    best = t5.summarize(text, max_new_tokens=6, num_beams=2)
    assert best == several[0]


@text
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_without_pieces_long_texts_are_truncated_with_a_warning(kind, request):
    model = request.getfixturevalue(kind)
    long, run = many_sentences(6), dict(max_new_tokens=6)
    with pytest.warns(UserWarning, match="1 of 2 sources have more than 24 tokens"):
        cut, short = model.summarize([long, "Two men."], pieces=False, **run)
    assert short == model.summarize("Two men.", **run)
    assert cut != model.summarize(long, **run)


@text
def test_a_giant_word_is_truncated_with_a_warning(t5):
    with pytest.warns(UserWarning, match="1 of 2 sources have more than 24 tokens"):
        found = t5.summarize("Two men. " + "dogs" * 60, max_new_tokens=6)
    assert found.startswith(t5.summarize("Two men.", max_new_tokens=6))


@text
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_white_space_has_an_empty_summary(kind, request):
    model = request.getfixturevalue(kind)
    found = model.summarize("\n \n" * 200, max_new_tokens=6)
    assert isinstance(found, Summary)
    if kind == "bart":  # whose tokens include white space
        assert found == "" and found.score == 0


@text
@settings(deadline=None, max_examples=30)
@given(pieces_of_text, st.integers(4, 12))
def test_pieces_have_at_most_the_models_tokens(bart, text, limit):
    count = bart.tokenizer.count
    for piece in divide(text, limit, count):
        assert count([piece])[0] <= limit or len(piece.split()) == 1


@text
def test_a_prefix_must_leave_room_for_a_text(tokenizer):
    model = small_t5(tokenizer, prefix="it is a very long prefix: ", max_length=8)
    with pytest.raises(ValueError, match="prefix must leave room for a text"):
        model.summarize("Two men.")


@text
def test_wrong_types_and_numbers_are_refused(t5):
    for texts in (None, 3, {"a": 1}, ["a", 3]):
        with pytest.raises(TypeError, match="summarize takes a string or a list of them"):
            t5.summarize(texts)
    with pytest.raises(TypeError, match="attention takes two strings: list, NoneType"):
        t5.attention(["a"])
    for options, message in (
        (dict(batch_size=0), "batch_size must be a positive integer: 0"),
        (dict(num_return_sequences=0), "num_return_sequences must be a positive integer: 0"),
        (dict(num_return_sequences=3, num_beams=2), "at most num_beams: 3, 2"),
        (dict(max_new_tokens=0), "max_new_tokens must be a positive integer: 0"),
        (dict(min_new_tokens=-1), "min_new_tokens must be a non-negative integer: -1"),
    ):
        with pytest.raises(ValueError, match=message):
            t5.summarize("a", **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'temperature'"):
        t5.summarize("a", temperature=1.0)
    for verb in ("summarize", "generate", "attention"):
        with pytest.raises(ValueError, match=f"{verb} needs a tokenizer"):
            getattr(small_t5(), verb)("a")


@pytest.mark.parametrize("small", [small_t5, small_bart])
@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_each_row_can_have_its_own_lengths(small, beams):
    model, source = perturb(small()), random_tokens(4, 6)
    end = model.config.end_id
    most, least = np.array([[2, 5, 9, 0], [0, 5, 3, 0]], "int32")
    search = Search(num_beams=beams, max_new_tokens=7, early_stopping=True)
    found = model.find(source, search, most=most, least=least)
    tokens, score = array(found.tokens), array(found.score)
    for row in range(4):
        limit = min(most[row], 7)
        for hypothesis, s in zip(tokens[row], score[row], strict=True):
            if not is_possible(s):
                continue
            used = hypothesis[: limit or 1]
            assert (hypothesis[limit:] == model.config.pad_id).all()
            assert (used[: max(least[row] - 1, 0)][: limit - 1] != end).all()
    assert (tokens[3] == model.config.pad_id).all() and score[3, 0] == 0
    # Each row is as in a search for it alone, with its lengths as settings.
    for row in range(3):
        alone = Search(
            num_beams=beams, max_new_tokens=int(min(most[row], 7)),
            min_new_tokens=int(least[row]), early_stopping=True,
        )  # fmt: skip
        expected = model.find(source[row : row + 1], alone, length=7)
        np.testing.assert_array_equal(array(expected.tokens)[0, :, :7], tokens[row][:, :7])
        np.testing.assert_allclose(array(expected.score)[0, 0], score[row, 0], atol=1e-3)
