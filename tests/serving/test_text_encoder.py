"""Tests of exported text encoders, queried through the C++ loader."""

import base64
import json
import subprocess
import sys

import numpy as np
import pytest

from polyhead.zoo import Answer, Span
from tests.zoo.toy_encoder import toy, toy_tokenizer

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXTS = [
    "the cat sat",
    "",
    "e\u0301te\u0301 \U0001f469\u200d\U0001f4bb 日本語 \u05e9\u05dc\u05d5\u05dd",
    "a\0b x",
    "it rains, and the dog runs home over the hills and far away",
    " \t ",
]
LONG = " ".join("abcdefghij"[i % 10] * (i % 7 + 1) for i in range(700))


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


def ask(version, *requests):
    lines = "".join(json.dumps({"signature_name": n, "inputs": x}) + "\n" for n, x in requests)
    command = [sys.executable, "-m", "polyhead.serving.loader", str(version)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.filterwarnings("ignore:. of . texts were truncated")
@pytest.mark.slow
def test_exported_classes_are_those_of_python(tokenizer, tmp_path):
    model = toy("classes", tokenizer, num_classes=3, class_names=("a", "b", "ç"))
    version = model.export(tmp_path, top=2)
    seconds = TEXTS[::-1]
    single, pairs, none = ask(
        version,
        ("serving_default", {"text": TEXTS}),
        ("classify_pairs", {"text": TEXTS, "text_pair": seconds}),
        ("classify", {"text": []}),
    )
    for answer, texts in ((single, TEXTS), (pairs, list(zip(TEXTS, seconds, strict=True)))):
        expected = model.classify(texts, top=2)
        assert answer["labels"] == [[c.label for c in row] for row in expected]
        probabilities = [[c.probability for c in row] for row in expected]
        np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-4)
    assert none == {"labels": [], "probabilities": []}


@pytest.mark.filterwarnings("ignore:. of . texts were truncated")
@pytest.mark.slow
def test_exported_embeddings_and_scores_are_those_of_python(tokenizer, tmp_path):
    model = toy(None, tokenizer, normalize=True)
    [answer] = ask(model.export(tmp_path / "embed"), ("embed", {"text": TEXTS}))
    np.testing.assert_allclose(answer["embedding"], model.embed(TEXTS), atol=1e-4)
    model = toy("score", tokenizer)
    version = model.export(tmp_path / "rerank")
    [answer] = ask(version, ("serving_default", {"text": ["it rains"] * 6, "text_pair": TEXTS}))
    for i, score in model.rerank("it rains", TEXTS):
        assert answer["score"][i] == pytest.approx(score, abs=1e-3)


@pytest.mark.slow
def test_exported_tags_are_those_of_python(tokenizer, tmp_path):
    model = toy("tags", tokenizer, num_classes=5, class_names=NAMES)
    version = model.export(tmp_path)
    texts = [*TEXTS, LONG]
    answer, none = ask(version, ("serving_default", {"text": texts}), ("tag", {"text": []}))
    assert all(value == [] for value in none.values())
    for i, (text, expected) in enumerate(zip(texts, model.tag(texts), strict=True)):
        columns = (answer[name][i] for name in ("labels", "texts", "starts", "ends", "scores"))
        rows = [Span(*row) for row in zip(*columns, strict=True)]
        found = [row for row in rows if row.label]
        assert [row[:4] for row in found] == [row[:4] for row in expected]
        scores = [row.score for row in expected]
        np.testing.assert_allclose([row.score for row in found], scores, atol=1e-4)
        assert all(text[row.start : row.end] == row.text for row in found)
        assert all(row == ("", "", 0, 0, 0) for row in rows[len(found) :])


@pytest.mark.filterwarnings("ignore:1 of 7 questions were truncated")
def test_exported_answers_are_those_of_python(tokenizer, tmp_path):
    model = toy("spans", tokenizer, scale=0.3, no_answer=1.0)
    settings = dict(window_length=20, overlap=6, max_answer_tokens=5)
    version = model.export(tmp_path, **settings)
    contexts = [*TEXTS, LONG]
    questions = ["who?", "where?", "", "a very long question, longer than a window", "b", "c", "d"]
    invalid = [b"\xff\xfe cat \xf0\x9f sat", b"\xed\xa0\x80 dog \xc3(", b"a\x80\x80\x80b"]
    encoded = [{"b64": base64.b64encode(context).decode()} for context in invalid]
    answer, none, replaced = ask(
        version,
        ("serving_default", {"question": questions, "context": contexts}),
        ("answer", {"question": [], "context": []}),
        ("answer", {"question": ["who?"] * 3, "context": encoded}),
    )
    assert all(value == [] for value in none.values())
    expected = model.answer(questions, contexts, **settings)
    columns = (answer[name] for name in ("text", "start", "end", "score", "no_answer"))
    found = [Answer(*row) for row in zip(*columns, strict=True)]
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    for a, b, context in zip(found, expected, contexts, strict=True):
        assert a.score == pytest.approx(b.score, rel=1e-2)
        assert a.no_answer == pytest.approx(b.no_answer, rel=1e-2)
        assert context[a.start : a.end] == a.text
    assert any(row.text for row in found)
    import tensorflow as tf

    places = zip(replaced["text"], replaced["start"], replaced["end"], invalid, strict=True)
    for text, start, end, context in places:
        whole = tf.strings.unicode_transcode(context, "UTF-8", "UTF-8").numpy().decode()
        assert text == whole[start:end]


@pytest.mark.slow
def test_exported_masks_are_those_of_python(tokenizer, tmp_path):
    model = toy("tokens", tokenizer)
    version = model.export(tmp_path, top=3)
    texts = ["a [MASK] b", "[MASK][MASK]", "[MASK]"]
    answer, none = ask(
        version, ("fill_mask", {"text": texts}), ("serving_default", {"text": ["none", ""]})
    )
    assert none == {"tokens": [[[""] * 3]] * 2, "probabilities": [[[0, 0, 0]]] * 2}
    first, second, third = model.fill_mask(texts, top=3)
    for i, masks in enumerate(([first], second, [third])):
        for row, probabilities, expected in zip(
            answer["tokens"][i], answer["probabilities"][i], masks, strict=False
        ):
            assert row == [c.label for c in expected]
            wanted = [c.probability for c in expected]
            np.testing.assert_allclose(probabilities, wanted, atol=1e-4)
    assert answer["tokens"][0][1] == ["", "", ""]


@pytest.mark.slow
def test_adapters_are_merged_in_an_export(tokenizer, tmp_path):
    model = toy("spans", tokenizer, scale=0.3)
    model.enable_lora(2)
    for v in model.trainable_variables:
        v.assign(v + 0.3)
    version = model.export(tmp_path, window_length=20, overlap=6, max_answer_tokens=5)
    [answer] = ask(version, ("answer", {"question": ["who?"], "context": [LONG]}))
    expected = model.answer("who?", LONG, window_length=20, overlap=6, max_answer_tokens=5)
    assert answer["text"] == [expected.text] and answer["start"] == [expected.start]


def test_settings_of_other_heads_are_refused(tokenizer, tmp_path):
    model = toy("spans", tokenizer)
    with pytest.raises(TypeError, match="not settings of an export for TensorFlow Serving"):
        model.export(tmp_path, temperature=1)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        toy("spans").export(tmp_path)
    with pytest.raises(ValueError, match="window_length must be from 1 to 32"):
        model.export(tmp_path, window_length=64)
    assert list(tmp_path.iterdir()) == []
