import itertools

import numpy as np
import pytest

from polyhead.data import (
    BytePairs,
    Characters,
    LabelledTexts,
    Question,
    TaggedWords,
    TextPairs,
    WordPieces,
    classification_batches,
    encoder_batches,
    masked_batches,
    pair_batches,
    question_batches,
    tagging_batches,
)
from polyhead.data.masking import document_tokens
from polyhead.data.spans import begins_word, code_points

TEXTS = [
    f"{a} {b} sleeps in {c}" for a in ("Ada", "Boris") for b in "xyz" for c in ("Oslo", "Rome")
]
PASSAGE = "Yesterday it rained. Ada Lovelace was born in London, and Boris in Oslo. " * 3


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieces.train([*TEXTS, PASSAGE, "Who was born where?"], vocab_size=90)


@pytest.fixture(scope="module")
def kinds(tokenizer):
    """A function of ``start`` and ``shuffle`` for each kind of batches."""
    texts = LabelledTexts(TEXTS, [str(i % 3) for i in range(12)], TEXTS[::-1])
    words = [text.split() for text in TEXTS]
    tags = [["B-name", "I-name", "O", "O", "B-city"] for _ in words]
    questions = [Question(str(i), "Who?", PASSAGE, (("Ada", 21),)) for i in range(9)]
    pairs = TextPairs(TEXTS, TEXTS[::-1])

    def batches(function, *arguments, **fixed):
        return lambda **options: function(*arguments, **fixed, **options)

    small = dict(batch_size=4, buckets=2)
    tagged = TaggedWords(words, tags)
    return {
        "classes": batches(classification_batches, texts, tokenizer, texts.classes, **small),
        "tags": batches(tagging_batches, tagged, tokenizer, tagged.classes, **small),
        "questions": batches(
            question_batches, questions, tokenizer, max_length=40, overlap=8, **small
        ),
        "pairs": batches(pair_batches, pairs, tokenizer, **small),
        "masked": batches(masked_batches, TEXTS * 4, tokenizer, length=12, batch_size=4),
    }


def arrays(batch):
    inputs, *others = batch
    named = inputs if isinstance(inputs, dict) else {"tokens": inputs}
    return {**named, "labels": others[0], "weight": others[1]}


def content(batches):
    return [b"".join(x.numpy().tobytes() for x in arrays(batch).values()) for batch in batches]


@pytest.mark.parametrize(
    "kind",
    [
        "questions",
        "masked",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("classes", "tags", "pairs")),
    ],
)
def test_batches_resume_exactly_and_differ_between_epochs(kinds, kind):
    make = kinds[kind]
    epoch = len(make())
    whole = content(itertools.islice(make(start=0, seed=3), 2 * epoch + 2))
    assert len(set(whole)) > epoch
    for start in (1, epoch + 1):
        rest = content(itertools.islice(make(start=start, seed=3), len(whole) - start))
        assert rest == whole[start:]
    assert content(itertools.islice(make(start=0, seed=4), epoch)) != whole[:epoch]
    still = make(shuffle=False)
    assert content(still) == content(still) and len(content(still)) == epoch


def test_texts_have_their_classes_and_pairs_their_types(tokenizer):
    texts = LabelledTexts(TEXTS, [text.split()[0] for text in TEXTS])
    seen = []
    options = dict(batch_size=8, buckets=2)
    for tokens, labels, weight in classification_batches(
        texts, tokenizer, texts.classes, **options
    ):
        for row, label, filled in zip(tokens, labels.numpy(), weight.numpy(), strict=True):
            text = tokenizer.decode([row])[0].numpy().decode()
            assert (text != "") == filled
            if filled:
                seen.append(text)
                assert texts.classes[label].lower() == text.split()[0]
    assert sorted(seen) == sorted(text.lower() for text in TEXTS)
    pairs = LabelledTexts(["Ada"], ["yes"], ["Boris sleeps"])
    [(inputs, _, _)] = classification_batches(pairs, tokenizer, ("yes",), batch_size=1)
    ids, types = tokenizer.encode_pairs(["Ada"], ["Boris sleeps"])
    size = ids.row_lengths().numpy()[0]
    np.testing.assert_array_equal(inputs["tokens"][0, :size], ids[0])
    np.testing.assert_array_equal(inputs["types"][0, :size], types[0])
    with pytest.raises(ValueError, match="'no' is not one of the 1 classes: yes"):
        classification_batches(LabelledTexts(["a"], ["no"]), tokenizer, ("yes",))


def test_the_first_token_of_each_word_has_its_label(tokenizer):
    words = ["Ada", "Lovelace", "sleeps", "in", "Oslo-Rome"]
    sentence = TaggedWords([words], [["B-name", "I-name", "O", "O", "B-city"]])
    [(tokens, labels, weight)] = tagging_batches(
        sentence, tokenizer, sentence.classes, batch_size=1
    )
    pieces = [tokenizer.encode([word], add_special_tokens=False)[0].numpy() for word in words]
    firsts = np.cumsum([1, *map(len, pieces)])[:-1]
    np.testing.assert_array_equal(np.flatnonzero(weight[0]), firsts)
    found = [sentence.classes[i] for i in labels.numpy()[0, firsts]]
    assert found == sentence.tags[0]
    flat = np.concatenate(pieces)
    np.testing.assert_array_equal(tokens[0, 1 : len(flat) + 1], flat)
    with pytest.warns(UserWarning, match="2 of 5 words are beyond"):
        size = firsts[3] + 1
        [(tokens, _, weight)] = tagging_batches(
            sentence, tokenizer, sentence.classes, max_length=int(size), batch_size=1
        )
    assert weight.numpy().sum() == 3


@pytest.mark.parametrize("trim", [False, True])
def test_a_space_that_is_a_token_belongs_to_the_word_after_it(trim):
    tokenizer = BytePairs.train(["ab ab ab"], 260)
    tokenizer._trim = (trim, False)
    ids, words = encoder_batches.encode_words([["ab", "가", "ab"]], tokenizer, 20)
    pieces = tokenizer.pieces(ids[0].numpy())
    assert pieces[:2] == [" ab", " "] and len(pieces) == 6
    np.testing.assert_array_equal(words[0], [0, 1, -1, -1, -1, 2])
    for text, count in (("ab 가나 ab", 3), ("ab 가 (가", 4), ("ab  가", 3), ("ab\n가", 3)):
        ids, starts, ends = tokenizer.offsets([text])
        row, places = ids.value_rowids(), (starts.flat_values, ends.flat_values)
        places = [np.asarray(x, "int32") for x in places]
        begins = begins_word(tokenizer, code_points([text]), np.asarray(row, "int32"), *places)
        assert np.sum(begins) == count, text


def test_batches_of_long_and_of_short_sentences_have_as_many_words(tokenizer):
    words = [["Ada"] * n for n in [6] * 128 + [30] * 64]
    sentences = TaggedWords(words, [["O"] * len(row) for row in words])
    batches = tagging_batches(sentences, tokenizer, ("O",), batch_size=32, buckets=2)
    found = {(x.shape[0], int(weight.numpy().sum())) for x, _, weight in batches}
    # Of 8 and 32 tokens, on average 16: 512 in 32 rows.
    assert found == {(64, 384), (16, 480)} and len(batches) == 2 + 4


def test_labels_of_questions_are_the_tokens_of_the_answer(tokenizer):
    place = PASSAGE.index("London")
    questions = [
        Question("0", "Where was Ada born?", PASSAGE, (("London", place), ("Oslo", 0))),
        Question("1", "Who was born?", PASSAGE, (("Ada Lovelace", PASSAGE.index("Ada")),)),
        Question("2", "Who was born?", PASSAGE),
    ]
    found = []
    for inputs, labels, weight in question_batches(
        questions, tokenizer, 4, max_length=48, overlap=10
    ):
        for tokens, (first, last), filled in zip(
            inputs["tokens"].numpy(), labels.numpy(), weight.numpy(), strict=True
        ):
            assert (first == 0) == (last == 0)
            if filled and first:
                found.append(tokenizer.decode([tokens[first : last + 1]])[0].numpy().decode())
            elif not filled:
                assert not tokens.any()
    assert sorted(set(found)) == ["ada lovelace", "london"]
    assert 2 <= len(found) <= 4  # windows overlap


def test_questions_are_tokenized_in_parts(kinds, monkeypatch):
    whole = content(kinds["questions"](shuffle=False))
    monkeypatch.setattr(encoder_batches, "PART", 1)
    texts = ["Ada sleeps.", "Boris", "Ada sleeps."]
    tokenizer = WordPieces.train(texts, 60)
    for found, expected in zip(
        encoder_batches.locate(tokenizer, texts), tokenizer.offsets(texts), strict=True
    ):
        assert found.to_list() == expected.to_list()
    assert content(kinds["questions"](shuffle=False)) == whole


def test_pairs_alternate_and_equal_texts_have_one_number(tokenizer):
    pairs = TextPairs(["Ada", "Boris", "Ada"], ["Oslo", "Oslo", "Rome"])
    [(tokens, labels, weight)] = pair_batches(
        pairs, tokenizer, batch_size=4, buckets=1, shuffle=False
    )
    texts = [t.decode() for t in tokenizer.decode(tokens).numpy()]
    assert texts == ["ada", "oslo", "boris", "oslo", "ada", "rome", "", ""]
    np.testing.assert_array_equal(weight, [1] * 6 + [0] * 2)
    labels = labels.numpy()
    assert labels[1] == labels[3] != labels[5] and labels[0] == labels[4]
    np.testing.assert_array_equal(labels[6:], -1)
    scored = TextPairs(["Ada"], ["Oslo"], [2.5])
    [(_, labels, _)] = pair_batches(scored, tokenizer, batch_size=2, scale=5.0)
    np.testing.assert_array_equal(labels, [0.5, 0.5, -1, -1])
    with pytest.raises(ValueError, match="finite numbers: that of pair 0 is nan"):
        TextPairs(["Ada"], ["Oslo"], [float("nan")])
    small = TextPairs(["Ada"], ["Oslo"], [1e-9])
    [(_, labels, _)] = pair_batches(small, tokenizer, batch_size=1)
    np.testing.assert_array_equal(labels, np.float32([1e-9, 1e-9]))


@pytest.mark.parametrize("whole_words", [False, True])
def test_masked_tokens_are_chosen_and_replaced_as_in_bert(tokenizer, whole_words):
    texts = [f"{text} Adasleepsin" for text in TEXTS] * 60
    options = dict(length=66, batch_size=8, whole_words=whole_words, shuffle=False)
    stream = document_tokens(texts, tokenizer, whole_words)
    masked = random = same = total = 0
    rebuilt, special = [], {*tokenizer.prefix, *tokenizer.suffix, tokenizer.pad_id}
    words = []
    for inputs, labels, weight in masked_batches(stream, tokenizer, **options):
        tokens, positions = inputs["tokens"].numpy(), inputs["positions"].numpy()
        labels, chosen = labels.numpy(), weight.numpy() > 0
        rows = np.nonzero(chosen)[0]
        shown, original = tokens[rows, positions[chosen]], labels[chosen]
        assert not np.isin(original, list(special)).any()
        assert len(set(zip(rows, positions[chosen], strict=True))) == len(rows)
        masked += (shown == tokenizer.mask_id).sum()
        same += (shown == original).sum()
        random += ((shown != original) & (shown != tokenizer.mask_id)).sum()
        total += len(original)
        whole = tokens.copy()
        whole[rows, positions[chosen]] = original
        first = np.full_like(whole, -1)
        first[rows, positions[chosen]] = 1
        for row, hidden in zip(whole, first, strict=True):
            end = np.flatnonzero(row)[-1] if row.any() else 0
            assert row[0] == tokenizer.prefix[0] and row[end] == tokenizer.suffix[0]
            rebuilt += list(row[1:end])
            words += list(hidden[1:end] > 0)
    np.testing.assert_array_equal(rebuilt, stream.ids)  # nothing is lost
    ordinary = ~np.isin(stream.ids, list(special))
    assert total / ordinary.sum() == pytest.approx(0.15, abs=0.025)
    assert masked / total == pytest.approx(0.8, abs=0.04)
    assert random / total == pytest.approx(0.1, abs=0.03)
    assert same / total == pytest.approx(0.1, abs=0.03)
    if whole_words:
        # In one row, a word is hidden or not.
        words = np.array(words)
        row = np.arange(len(words)) // 64
        key = stream.words.astype("int64") * len(words) + row
        for hidden in (np.unique(key[words]),):
            assert not np.isin(key[~words & ordinary], hidden).any()
        assert len(np.unique(stream.words)) < len(stream.words)


def test_bad_arguments_are_refused(tokenizer):
    texts = LabelledTexts(["a"], ["b"])
    for options, message in (
        (dict(batch_size=0), "batch_size must be positive: 0"),
        (dict(max_length=0), "max_length must be positive: 0"),
        (dict(buckets=0), "buckets must be positive: 0"),
    ):
        with pytest.raises(ValueError, match=message):
            classification_batches(texts, tokenizer, "b", **options)
    for arguments, message in (
        (dict(texts=[""], length=8), "no text"),
        (dict(texts=["a"], length=3), "no room for text: 3"),
        (dict(texts=["a"], rate=1.0), "rate must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            masked_batches(tokenizer=tokenizer, **arguments)
    with pytest.raises(ValueError, match="scale must be positive"):
        pair_batches(TextPairs(["a"], ["b"]), tokenizer, scale=0.0)
    with pytest.raises(ValueError, match="this tokenizer has no form for pairs of texts"):
        question_batches([Question("0", "a", "b")], Characters("ab"))
