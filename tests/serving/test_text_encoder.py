"""Tests of exported text encoders, queried through the C++ loader."""

import base64
import json
import random
import subprocess
import sys

import numpy as np
import pytest

from polyhead.data import WordPieces
from polyhead.zoo import BERT, Answer, Span
from tests.data.tokenizers.test_pairs import (
    merged,  # noqa: F401
    modern_bert,
    read,
    roberta,
)
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
    model = toy("classes", tokenizer, num_classes=3, class_names=("a", "b\u2028", "ç"))
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


SENTENCES = ["Ada was born in  London.", "a\u0301 dog\tran", "", " two men sit", "日本 \U0001f469"]


@pytest.fixture(params=[roberta, modern_bert], ids=["RoBERTa", "ModernBERT"])
def byte_pairs(request, merged, tmp_path):  # noqa: F811
    tokenizer = read(request.param(merged), tmp_path)
    names = ("vocab_size", "pad_id")
    return tokenizer, {name: getattr(tokenizer, name) for name in names}


def test_spans_of_byte_pairs_are_exact(byte_pairs):
    """ModernBERT's tokens begin with the space before a word; spans do not."""
    tokenizer, settings = byte_pairs
    model = toy("tags", tokenizer, num_classes=5, class_names=NAMES, **settings)
    found = model.tag(SENTENCES)
    assert sum(map(len, found)) > 3
    for text, spans in zip(SENTENCES, found, strict=True):
        assert all(text[s.start : s.end] == s.text == s.text.lstrip(" ") for s in spans)
    [spans] = model.tag([["Ada", "was", "born"]])
    assert all(s.text == " ".join(["Ada", "was", "born"][s.start : s.end]) for s in spans)
    model = toy("spans", tokenizer, scale=0.3, **settings)
    found = model.answer("who?", SENTENCES, top=9, no_answer=np.inf)
    assert len(found[0]) == 9
    for text, answers in zip(SENTENCES, found, strict=True):
        assert all(text[a.start : a.end] == a.text for a in answers)
        assert not any(a.text.startswith(" ") and a.text.strip() for a in answers)
        assert all(a.text for a in answers) or not text


@pytest.mark.slow
def test_exports_with_byte_pairs_answer_as_python_does(byte_pairs, tmp_path):
    tokenizer, settings = byte_pairs
    model = toy("tags", tokenizer, num_classes=5, class_names=NAMES, **settings)
    [answer] = ask(model.export(tmp_path / "tag"), ("tag", {"text": SENTENCES}))
    for i, spans in enumerate(model.tag(SENTENCES)):
        columns = (answer[name][i] for name in ("labels", "texts", "starts", "ends"))
        found = [row for row in zip(*columns, strict=True) if row[0]]
        assert found == [tuple(s[:4]) for s in spans]
    model = toy("spans", tokenizer, scale=0.3, **settings)
    [answer] = ask(
        model.export(tmp_path / "answer", no_answer=1e9),
        ("answer", {"question": ["who?"] * 5, "context": SENTENCES}),
    )
    expected = model.answer("who?", SENTENCES, no_answer=np.inf)
    assert answer["text"] == [a.text for a in expected] and any(answer["text"])
    assert answer["start"] == [a.start for a in expected]
    masked = [f"{text}{tokenizer.mask_token}" for text in SENTENCES]
    model = toy("tokens", tokenizer, **settings)
    [answer] = ask(model.export(tmp_path / "fill_mask"), ("fill_mask", {"text": masked}))
    for row, choices in zip(answer["tokens"], model.fill_mask(masked), strict=True):
        assert row[0] == [c.label for c in choices]


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


def any_bytes(choose):
    """Texts that users send by mistake or in bad faith: strings of UTF-8, and broken ones."""
    kind = choose.random()
    if kind < 0.1:
        return bytes(choose.randrange(256) for _ in range(choose.randrange(40)))
    if kind < 0.2:
        parts = ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", "##a", "a", " ", "\n")
        return "".join(choose.choice(parts) for _ in range(choose.randrange(20))).encode()
    if kind < 0.3:
        return ("x" * choose.randrange(1000) + " " * choose.randrange(100)).encode()
    points = (choose.randrange(choose.choice((0x80, 0x800, 0xD800, 0x110000))) for _ in range(30))
    text = "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
    return text[: choose.randrange(31)].encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    "head, names",
    [
        ("spans", ["question", "context"]),
        pytest.param("tags", ["text"], marks=pytest.mark.long),
        pytest.param("classes", ["text", "text_pair"], marks=pytest.mark.long),
        pytest.param("tokens", ["text"], marks=pytest.mark.long),
        pytest.param(None, ["text"], marks=pytest.mark.long),
        pytest.param("score", ["text", "text_pair"], marks=pytest.mark.long),
    ],
)
def test_any_texts_are_answered(head, names, tmp_path, sample):
    pieces = WordPieces.train(sample.sources, 300)
    sizes = dict(num_layers=1, dim=16, num_heads=2, intermediate_dim=24, max_length=48)
    classes = {"tags": NAMES, "classes": ("a", "b")}.get(head)
    count = 0 if classes is None else len(classes)
    model = BERT.preset(
        "bert-tiny", pieces, head=head, num_classes=count, class_names=classes, **sizes
    )
    version, choose = model.export(tmp_path), random.Random(0)
    signature = "classify_pairs" if head == "classes" else "serving_default"
    sent = [
        [[any_bytes(choose) for _ in names] for _ in range(choose.choice((1, 2, 7)))]
        for _ in range(300)
    ]
    answers = ask(
        version,
        *(
            (
                signature,
                {
                    name: [{"b64": base64.b64encode(text).decode()} for text in texts]
                    for name, texts in zip(names, zip(*rows, strict=True), strict=True)
                },
            )
            for rows in sent
        ),
    )
    for rows, answer in zip(sent, answers, strict=True):
        assert "error" not in answer, (rows, answer)
        for name, values in answer.items():
            assert len(values) == len(rows), (name, rows)
            if np.array(values[0]).dtype.kind == "f":
                assert np.isfinite(np.concatenate([np.ravel(x) for x in values])).all(), rows
        if head == "spans":
            for (_, context), text, start, end in zip(
                rows, *(answer[name] for name in ("text", "start", "end")), strict=True
            ):
                assert context.decode("utf-8", "replace")[start:end] == text
        if head == "tags":
            for [whole], *columns in zip(
                rows, *(answer[name] for name in ("texts", "starts", "ends")), strict=True
            ):
                whole = whole.decode("utf-8", "replace")
                assert all(whole[a:b] == text for text, a, b in zip(*columns, strict=True))


def test_settings_of_other_heads_are_refused(tokenizer, tmp_path):
    model = toy("spans", tokenizer)
    with pytest.raises(TypeError, match="not settings of an export for TensorFlow Serving"):
        model.export(tmp_path, temperature=1)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        toy("spans").export(tmp_path)
    with pytest.raises(ValueError, match="window_length must be from 1 to 32"):
        model.export(tmp_path, window_length=64)
    assert list(tmp_path.iterdir()) == []
