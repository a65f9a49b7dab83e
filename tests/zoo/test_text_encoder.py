"""Tests of the task methods of text encoders, with a minimal network and tokenizer."""

import copy
import dataclasses
import math

import keras
import numpy as np
import pytest
from keras import ops

from polyhead.training import CosineRegression, InBatchNegatives, SpanCrossEntropy
from polyhead.zoo import BERT, BERTConfig, Classification, Match, TextEncoder, text_encoder
from polyhead.zoo.heads import HEADS, POOLINGS, pool
from tests.zoo.toy_encoder import Toy, ToyConfig, toy, toy_tokenizer

tensorflow = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="tokenizers are TensorFlow's"
)
NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXTS = [
    "the cat sat",
    "",
    "e\u0301te\u0301 \U0001f469\u200d\U0001f4bb 日本語 \u05e9\u05dc\u05d5\u05dd",
    "a\0b \ud800 x",
    "x " * 40,
    "it rains, and the dog runs home",
]


@pytest.fixture(autouse=True)
def one_length(monkeypatch, request):
    """Compiles for few shapes, which takes most of the time of these tests."""
    if "batch" not in request.node.name:
        monkeypatch.setattr(text_encoder, "round_length", lambda length: 40)


@pytest.fixture(scope="module")
def tokenizer():
    if keras.config.backend() != "tensorflow":
        pytest.skip("tokenizers are TensorFlow's")
    return toy_tokenizer()


def rows(tokenizer, texts, **kwargs):
    return tokenizer.encode([t.replace("\ud800", "\ufffd") for t in texts], **kwargs).to_list()


@pytest.mark.parametrize("head", [None, *HEADS])
def test_every_head_has_its_weights_and_outputs(head):
    model = toy(head, num_classes=3 * (head in ("classes", "tags")))
    assert {v.path: tuple(v.shape) for v in model.weights} == dict(Toy.shapes(model.config))
    tokens = np.array([[1, 5, 6, 2], [1, 7, 2, 0]])
    shapes = {None: (2, 16), "classes": (2, 3), "score": (2,), "tags": (2, 4, 3)}
    shapes |= {"spans": (2, 4, 2), "tokens": (2, 4, 300)}
    y = np.array(model(tokens))
    assert y.shape == shapes[head] and y.dtype == np.float32
    # Padding changes nothing.
    longer = np.array(model(np.pad(tokens, [(0, 0), (0, 3)])))
    if head in ("tags", "spans", "tokens"):
        longer = longer[:, :4]
    np.testing.assert_allclose(longer, y, atol=1e-5)
    # Types do, where they are not 0.
    types = np.array([[0, 0, 1, 1], [0, 0, 0, 0]])
    typed = np.array(model({"tokens": tokens, "types": types}))
    assert abs(typed[0] - y[0]).max() > 1e-3
    np.testing.assert_allclose(typed[1], y[1], atol=1e-5)


@pytest.mark.parametrize("head", ["classes", "score", "tags", "spans"])
def test_dropout_precedes_the_last_map_but_not_of_spans(head):
    model = toy(head, num_classes=3 * (head in ("classes", "tags")), dropout=0.5)
    x = np.ones((8, 16), "float32")
    same = np.allclose(model.head(x, training=True), model.head(x, training=False))
    assert same == (head == "spans")


def test_the_head_of_tokens_computes_chosen_positions():
    model, tokens = toy("tokens"), np.array([[1, 5, 6, 2], [1, 7, 2, 0]])
    chosen = np.array(model({"tokens": tokens, "positions": np.array([[2, 0], [1, 1]])}))
    whole = np.array(model(tokens))
    np.testing.assert_allclose(chosen[0], whole[0, [2, 0]], atol=1e-5)
    np.testing.assert_allclose(chosen[1], whole[1, [1, 1]], atol=1e-5)


def test_pooling_ignores_padding():
    random = np.random.default_rng(0)
    x, mask = random.normal(size=(2, 4, 3)).astype("float32"), np.arange(4) < [[4], [2]]
    expected = {
        "mean": [x[0].mean(0), x[1, :2].mean(0)],
        "token": [x[0, 0], x[1, 0]],
        "max": [x[0].max(0), x[1, :2].max(0)],
        "mean_sqrt": [x[0].sum(0) / 2, x[1, :2].sum(0) / math.sqrt(2)],
        "last": [x[0, 3], x[1, 1]],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(np.array(pool(x, mask, name)), value, atol=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(head=["tags"]), r"head must be one of .*, or None: \['tags'\]"),
        (dict(head="other"), "head must be one of classes, score, tags, spans, tokens, or None"),
        (dict(head="classes"), "the head 'classes' needs num_classes: 0"),
        (dict(num_classes=3), "belong to the heads 'classes' and 'tags', not None"),
        (dict(head="tags", num_classes=2, class_names=("O",)), "a name for each class: 1, 2"),
        (dict(head="tags", num_classes=1, class_names="O"), "class_names must be strings"),
        (dict(pooling="sum"), "pooling must be one of mean, token, max, mean_sqrt, last: 'sum'"),
        (dict(no_answer=math.nan), "no_answer must be a finite number"),
    ],
)
def test_invalid_settings_of_the_head_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ToyConfig(**settings)


def test_models_are_saved_with_their_head(tmp_path):
    model = toy("tags", num_classes=5, class_names=NAMES)
    model.save_pretrained(tmp_path / "model")
    again = Toy.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    np.testing.assert_array_equal(again(np.ones([1, 3], "int32")), model(np.ones([1, 3], "int32")))


def test_adapt_keeps_the_network_and_what_the_heads_share(tokenizer):
    model, tokens = toy("classes", tokenizer, num_classes=3), np.array([[1, 5, 6, 2]])
    other = model.adapt(class_names=["a", "b"], dropout=0.1)
    assert other.config.class_names == ("a", "b") and other.config.dropout == 0.1
    assert other.tokenizer is tokenizer and other(tokens).shape == (1, 2)
    paths = {v.path: v for v in model.weights}
    for v in other.weights:
        same = v.shape == paths[v.path].shape and bool((v == paths[v.path]).numpy().all())
        assert same is not v.path.startswith("head/output/")
    score = model.adapt("score")
    np.testing.assert_array_equal(score.head.dense.kernel, model.head.dense.kernel)
    tags = model.adapt("tags", class_names=NAMES)
    assert tags(tokens).shape == (1, 4, 5) and not tags.head.norm and tags.head.dense is None
    np.testing.assert_allclose(
        tags.embed("ab"), model.embed("ab"), atol=1e-6
    )  # embeddings do not depend on the head
    same = model.adapt(dropout=0.2)
    np.testing.assert_array_equal(same(tokens), model(tokens))
    bare = tags.adapt(head=None)
    assert bare.config.head is None and bare.config.class_names is None
    np.testing.assert_array_equal(bare(tokens), model.adapt(None)(tokens))
    with pytest.raises(ValueError, match="the head 'tags' needs num_classes or class_names"):
        model.adapt("tags")
    with pytest.raises(ValueError, match="class_names need an order"):
        model.adapt("tags", class_names=set(NAMES))
    with pytest.raises(ValueError, match="class_names must be strings: 'cat'"):
        model.adapt(class_names="cat")
    for overrides in (dict(dim=32), dict(num_layers=2)):
        with pytest.raises(ValueError, match="no other weights than the head's can change: "):
            model.adapt(**overrides)
    deep = toy("classes", tokenizer, num_classes=3, num_layers=2)
    with pytest.raises(ValueError, match="no other weights than the head's can change: block_1"):
        deep.adapt(num_layers=1)


def test_another_configuration_is_compiled_again(tokenizer):
    model = toy(None, tokenizer)
    before = model.embed("a dog")
    model.config = dataclasses.replace(model.config, normalize=True)
    np.testing.assert_allclose(model.embed("a dog"), before / np.linalg.norm(before), atol=1e-5)


def test_a_method_without_its_head_says_what_it_needs(tokenizer):
    model = toy(None, tokenizer)
    for head, verb in HEADS.items():
        arguments = ["a", "b"] if verb in ("answer", "rerank") else ["a"]
        message = rf"{verb} needs a model with the head '{head}', and this one has None: .*adapt"
        with pytest.raises(ValueError, match=message):
            getattr(model, verb)(*arguments)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        toy().embed("a")


def test_classify_returns_classes_in_the_order_of_texts(tokenizer):
    model = toy("classes", tokenizer, num_classes=3, class_names=("a", "b", "c"))
    with pytest.warns(UserWarning, match="1 of 6 texts were truncated to 32 tokens"):
        found = model.classify(TEXTS, top=3, batch_size=2)
    for text, classes in zip(TEXTS, found, strict=True):
        [row] = rows(tokenizer, [text], max_length=32)
        logits = np.array(model(np.array([row])))[0]
        expected = np.exp(logits) / np.exp(logits).sum()
        assert [c.label for c in classes] == ["abc"[i] for i in np.argsort(-expected)]
        np.testing.assert_allclose([p for _, p in classes], -np.sort(-expected), atol=1e-5)
    one = model.classify(TEXTS[0])
    assert isinstance(one, Classification) and one.label == found[0][0].label
    assert model.classify([]) == [] and len(model.classify([TEXTS[0]])) == 1


def test_classify_takes_pairs(tokenizer):
    model = toy("classes", tokenizer, num_classes=3)
    pair = ("a dog", "x" * 60)
    with pytest.warns(UserWarning, match="truncated"):
        label, probability = model.classify(pair)
    ids, types = (x.to_list() for x in tokenizer.encode_pairs(["a dog"], ["x" * 60], 32))
    assert len(ids[0]) == 32
    logits = np.array(model({"tokens": np.array(ids), "types": np.array(types)}))[0]
    assert label == str(logits.argmax())
    assert probability == pytest.approx(np.exp(logits).max() / np.exp(logits).sum(), abs=1e-5)
    [same] = model.classify([("a dog", "it runs")])
    assert same == model.classify(("a dog", "it runs")) != model.classify(("it runs", "a dog"))


@pytest.mark.parametrize(
    "texts, message",
    [
        (["a", None], r"classify takes .*: text 1 is None"),
        ([("a", "b"), ("a", 3)], r"text 1 is \('a', 3\)"),
        ([("a", "b"), "a"], "strings or pairs, not both: text 1 is 'a'"),
        ([("a", "b", "c")], "text 0 is"),
        (None, "texts is None"),
        ({"a": 1}, "texts is {'a': 1}"),
        ({"a"}, "texts is {'a'}"),
    ],
)
def test_items_that_are_not_texts_are_named(tokenizer, texts, message):
    with pytest.raises(TypeError, match=message):
        toy("classes", tokenizer, num_classes=3).classify(texts)


def test_top_must_be_a_number_of_classes(tokenizer):
    model = toy("classes", tokenizer, num_classes=3)
    for top in (0, 4, 1.5):
        with pytest.raises(ValueError, match="top must be from 1 to 3"):
            model.classify("a", top=top)


def test_embeddings_do_not_depend_on_the_batch(tokenizer):
    model = toy(None, tokenizer, normalize=True)
    texts = [t[:28] for t in TEXTS] * 2
    seen = []
    found = model.embed(texts, batch_size=4, progress=lambda batches: seen.extend(batches) or seen)
    assert found.shape == (12, 16) and found.dtype == np.float32 and len(seen) == 3
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found[:6], found[6:], atol=1e-5)
    for text, row in zip(texts[:3], found, strict=False):
        alone = model.embed(text)
        assert alone.shape == (16,)
        np.testing.assert_allclose(alone, row, atol=1e-5)
    assert model.embed([]).shape == (0, 16) and model.embed(["a"]).shape == (1, 16)


def test_similarity_and_search_are_those_of_cosines(tokenizer):
    model = toy(None, tokenizer)
    texts = ["a dog", "a cat", "", "it rains", "a dog"]
    x = model.embed(texts)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(model.similarity(texts, texts), unit @ unit.T, atol=1e-5)
    np.testing.assert_allclose(model.similarity(x * 3, x), unit @ unit.T, atol=1e-5)
    assert model.similarity("a dog", texts).shape == (5,)
    assert model.similarity("a dog", "a dog") == pytest.approx(1, abs=1e-5)
    small = model.search("a dog", (300 * unit).astype("float16"))
    assert [m.score for m in small] == pytest.approx(
        [m.score for m in model.search("a dog", x)], abs=1e-3
    )
    with pytest.raises(TypeError, match="embed takes a string or a list of them"):
        model.embed(np.array("a"))
    found = model.search("a dog", x, top=2)
    assert [m.index for m in found] == [0, 4] and isinstance(found[0], Match)
    assert found[0].score == pytest.approx(1, abs=1e-5)
    several = model.search(texts, x * 2, top=9)
    order = np.argsort(-(unit @ unit.T), axis=1, kind="stable")
    assert [[m.index for m in row][:1] for row in several][1] == [order[1][0]]
    assert all(len(row) == 5 for row in several)
    with pytest.raises(ValueError, match=r"embeddings must have the shape \(M, 16\): \(2, 3\)"):
        model.search("a", np.zeros([2, 3]))
    with pytest.raises(ValueError, match="embeddings must have the same size: 16, 3"):
        model.similarity("a", np.zeros([2, 3]))


def test_rerank_orders_texts_by_their_score(tokenizer):
    model = toy("score", tokenizer)
    texts = ["it rains", "", "a cat", "a dog runs"]
    found = model.rerank("weather", texts)
    ids, types = tokenizer.encode_pairs(["weather"] * 4, texts)
    inputs = {"tokens": ids.to_tensor(0), "types": types.to_tensor(0)}
    expected = np.array(model(inputs))
    assert [m.index for m in found] == np.argsort(-expected).tolist()
    np.testing.assert_allclose([m.score for m in found], -np.sort(-expected), atol=1e-5)
    assert model.rerank("weather", texts, top=2) == found[:2]
    with pytest.raises(TypeError, match="rerank takes a list of texts"):
        model.rerank("weather", "it rains")


def test_fill_mask_returns_the_most_likely_tokens_of_each_mask(tokenizer):
    model = toy("tokens", tokenizer)
    one, two = model.fill_mask(["a [MASK] b", "[MASK] c [MASK]"], top=4)
    for text, found in (("a [MASK] b", [one]), ("[MASK] c [MASK]", two)):
        [row] = rows(tokenizer, [text])
        logits = np.array(model(np.array([row])))[0]
        for i, classes in zip(np.flatnonzero(np.array(row) == 3), found, strict=True):
            probabilities = np.exp(logits[i]) / np.exp(logits[i]).sum()
            best = np.argsort(-probabilities)[:4]
            assert [c.label for c in classes] == [f"<{t}>" for t in best]
            np.testing.assert_allclose([c.probability for c in classes], probabilities[best], 1e-4)
    assert model.fill_mask("a [MASK] b", top=4)[0].label == one[0].label
    with pytest.raises(ValueError, match=r"text 1 has no mask token '\[MASK\]': 'a'"):
        model.fill_mask(["[MASK]", "a"])
    with pytest.raises(ValueError, match="text 0 has 43 tokens, more than the context of 32"):
        model.fill_mask("[MASK]" + "x" * 40)


# Tags


def reference_spans(labels):
    """conlleval's spans (label, first, end) of the BIO tags of words."""
    spans, previous = [], "O"
    for i, label in enumerate(labels):
        if label != "O":
            kind = label[2:]
            if label[0] == "I" and previous != "O" and previous[2:] == kind:
                spans[-1] = (kind, spans[-1][1], i + 1)
            else:
                spans.append((kind, i, i + 1))
        previous = label
    return spans


def find(names, row=None):
    """The spans of tagged words, one token each."""
    from polyhead.data.spans import Tags, find_spans

    tags, n = Tags.read(sorted(set(names) | {"O"})), len(names)
    classes = np.array([sorted(set(names) | {"O"}).index(name) for name in names], "int32")
    places = np.arange(n, dtype="int32")
    row = np.zeros(n, "int32") if row is None else np.array(row, "int32")
    found = find_spans(
        tags, classes, np.linspace(0, 1, n, dtype="float32"), row, places, places, places + 1
    )
    rows = zip(*(np.array(x).tolist() for x in found), strict=True)
    return [
        (tags.labels[label], first, last + 1, score) for _, label, _, _, first, last, score in rows
    ]


@tensorflow
def test_spans_of_tags_are_those_of_conlleval():
    random = np.random.default_rng(0)
    for _ in range(30):
        names = [NAMES[i] for i in random.integers(0, 5, random.integers(1, 12))]
        found = find(names)
        assert [x[:3] for x in found] == reference_spans(names), names
        scores = np.linspace(0, 1, len(names))
        for _, first, end, score in found:
            assert score == pytest.approx(scores[first:end].mean(), abs=1e-6)


@tensorflow
def test_other_schemes_of_tags_and_the_ends_of_texts():
    assert [x[:3] for x in find(["B-X", "I-X", "E-X", "I-X", "S-X", "S-X", "O"])] == [
        ("X", 0, 3), ("X", 3, 4), ("X", 4, 5), ("X", 5, 6)
    ]  # fmt: skip
    assert [x[:3] for x in find(["X", "X", "O", "Y", "X"])] == [
        ("X", 0, 2), ("Y", 3, 4), ("X", 4, 5)
    ]  # fmt: skip
    assert [x[:3] for x in find(["I-X", "I-X", "I-X"], row=[0, 0, 1])] == [("X", 0, 2), ("X", 2, 3)]


def tagger(tokenizer):
    return toy("tags", tokenizer, num_classes=5, class_names=NAMES)


def classes_of(model, ids):
    logits = np.array(model(np.array([[1, *ids, 2]])))[0, 1:-1]
    return logits.argmax(-1), np.exp(logits).max(-1) / np.exp(logits).sum(-1)


def test_tag_gives_each_word_the_class_of_its_first_token(tokenizer):
    import re

    model = tagger(tokenizer)
    texts = [t for t in TEXTS if len(t) < 35]
    found = model.tag(texts, batch_size=2)
    assert any(found)
    for text, spans in zip(texts, found, strict=True):
        readable = text.replace("\ud800", "\ufffd")
        ids, starts, _ = (x.to_list()[0] for x in tokenizer.offsets([readable]))
        classes, _ = classes_of(model, ids)
        # Words: runs of letters, digits and marks; other characters, and Chinese ones, are words.
        pattern = r"[^\W_\u4e00-\u9fff]([^\W_\u4e00-\u9fff]|[\u0301\0])*|[^ ]"
        words = [m.span() for m in re.finditer(pattern, readable) if m.group() > " "]
        words = [w for w in words if w[0] in starts]
        names = [NAMES[classes[starts.index(a)]] for a, _ in words]
        expected = [(kind, words[a][0], words[b - 1][1]) for kind, a, b in reference_spans(names)]
        assert [(s.label, s.start, s.end) for s in spans] == expected, text
        assert all(s.text == readable[s.start : s.end] for s in spans)
    assert [s[:4] for s in model.tag(texts[0])] == [s[:4] for s in found[0]]
    assert model.tag([]) == [] and model.tag([""]) == [[]]


def test_tag_takes_lists_of_words(tokenizer):
    model = tagger(tokenizer)
    words = ["New", "York", "", "is", "a.b", " ", "big"]
    [spans] = model.tag([words])
    ids, starts, _ = (x.to_list()[0] for x in tokenizer.offsets(["".join(f" {w}" for w in words)]))
    classes, _ = classes_of(model, ids)
    first = np.cumsum([0, *(len(w) + 1 for w in words)])[:-1] + 1
    names = [
        NAMES[classes[starts.index(i)]] if w.strip() else "O"
        for i, w in zip(first, words, strict=True)
    ]
    assert [(s.label, s.start, s.end) for s in spans] == reference_spans(names)
    assert all(s.text == " ".join(words[s.start : s.end]) for s in spans)
    both = model.tag([words, "the cat"])
    expected = [spans, model.tag("the cat")]
    assert [[s[:4] for s in row] for row in both] == [[s[:4] for s in row] for row in expected]
    with pytest.raises(TypeError, match="text 1 is 3"):
        model.tag(["a", 3])


def test_long_texts_are_tagged_in_windows(tokenizer):
    model, random = tagger(tokenizer), np.random.default_rng(0)
    text = " ".join(chr(97 + i) for i in random.integers(0, 26, 100))
    ids = tokenizer.offsets([text])[0].to_list()[0]
    # Windows of 30 tokens that share 15; each token is tagged where more text is around it.
    best = {}
    for first in range(0, 100 - 15, 15):
        classes, _ = classes_of(model, ids[first : first + 30])
        for i, c in enumerate(classes):
            middle = min(i if first else 99, (len(classes) - 1 - i) if first + 30 < 100 else 99)
            at = first + i
            if at not in best or middle > best[at][0]:
                best[at] = (middle, NAMES[c])
    names = [best[i][1] for i in range(100)]
    spans = model.tag(text)
    assert [(s.label, s.start, s.end) for s in spans] == [
        (kind, 2 * a, 2 * b - 1) for kind, a, b in reference_spans(names)
    ]


# Answers


def reference_answers(model, tokenizer, question, context, length, overlap, longest, threshold):
    """All spans of a context by brute force, best first: (score, probability, start, end)."""
    (q,) = tokenizer.encode([question], add_special_tokens=False).to_list()
    ids, starts, ends = (x.to_list()[0] for x in tokenizer.offsets([context]))
    q = q[: (length - 3) // 2]
    room = length - 3 - len(q)
    step = room - min(overlap, room // 2)
    best, none, first = {}, math.inf, 0
    while True:
        part = ids[first : first + room]
        tokens = [*tokenizer.prefix, *q, *tokenizer.separator, *part, *tokenizer.suffix]
        types = [0] * (len(q) + 2) + [1] * (len(part) + 1)
        logits = np.array(model({"tokens": np.array([tokens]), "types": np.array([types])}))[0]
        none = min(none, logits[0].sum())
        for a in range(len(part)):
            for b in range(a, min(a + longest, len(part))):
                score = logits[len(q) + 2 + a, 0] + logits[len(q) + 2 + b, 1]
                key = (first + a, first + b)
                best[key] = max(best.get(key, -math.inf), score)
        if first + room >= len(ids):
            break
        first += step
    total = sum(math.exp(s) for s in best.values()) + math.exp(none)
    found = [(s, math.exp(s) / total, starts[a], ends[b]) for (a, b), s in best.items()]
    found.append((none - threshold, math.exp(none) / total, 0, 0))
    return sorted(found, key=lambda x: -x[0]), math.exp(none) / total


CONTEXTS = [
    "The cat sat on the mat.",
    "",
    " \t ",
    "e\u0301te\u0301 \U0001f469\u200d\U0001f4bb a\0b 日本語 \u05e9\u05dc\u05d5\u05dd \u202eabc",
    "one two three four five six seven eight nine ten eleven twelve " * 3,
]
READINGS = [
    dict(window_length=14, overlap=4),
    pytest.param({}, marks=pytest.mark.slow),
    pytest.param(dict(window_length=14, overlap=100), marks=pytest.mark.slow),
]


@pytest.mark.filterwarnings("ignore:. of 5 questions were truncated")
@pytest.mark.parametrize("settings", READINGS)
def test_answers_are_the_best_spans_over_all_windows(tokenizer, settings):
    model = toy("spans", tokenizer, scale=0.3)
    questions = ["who?", "", "where did it go?", "a very long question about nothing at all", "b"]
    found = model.answer(questions, CONTEXTS, top=5, max_answer_tokens=6, batch_size=3, **settings)
    length, overlap = settings.get("window_length", 32), settings.get("overlap", 128)
    for question, context, row in zip(questions, CONTEXTS, found, strict=True):
        expected, none = reference_answers(
            model, tokenizer, question, context, length, overlap, 6, 0.0
        )
        assert len(row) == min(5, len(expected))
        for answer, (_, probability, start, end) in zip(row, expected, strict=False):
            assert (answer.start, answer.end) == (start, end)
            assert answer.score == pytest.approx(probability, rel=1e-3)
            assert answer.text == context[answer.start : answer.end]
            assert answer.no_answer == pytest.approx(none, rel=1e-3)
    best = model.answer(questions, CONTEXTS, max_answer_tokens=6, batch_size=2, **settings)
    assert [answer[:3] for answer in best] == [row[0][:3] for row in found]


def test_the_threshold_decides_between_an_answer_and_none(tokenizer):
    model = toy("spans", tokenizer, scale=0.3)
    question, context = "who?", CONTEXTS[0]
    always, never = (model.answer(question, context, no_answer=x) for x in (math.inf, -math.inf))
    assert always.text and never == ("", 0, 0, never.no_answer, never.no_answer)
    margin = math.log(always.no_answer / always.score)
    assert model.answer(question, context, no_answer=margin + 1e-3).text == always.text
    assert model.answer(question, context, no_answer=margin - 1e-3).text == ""
    changed = model.adapt(no_answer=margin - 1e-3)
    assert changed.answer(question, context).text == ""
    # A context without tokens has no answer, whatever the threshold.
    assert model.answer(question, " ", no_answer=math.inf) == ("", 0, 0, 1, 1)


def test_there_are_no_more_answers_than_spans(tokenizer):
    model = toy("spans", tokenizer)
    few, none = model.answer("why", ["ab", ""], top=10**9)
    assert len(few) == 4 and len({answer[1:3] for answer in few}) == 4  # a, b, ab and none
    [answer] = none
    assert answer.text == "" and answer.score == answer.no_answer == 1
    assert len(model.answer("why", "ab", max_answer_tokens=2**31 - 1, overlap=10**20, top=9)) == 4


def test_one_context_for_several_questions(tokenizer):
    model = toy("spans", tokenizer)
    context = CONTEXTS[0]
    assert model.answer(["a?", "b?"], context) == model.answer(["a?", "b?"], [context] * 2)
    assert len(model.answer("a?", [context] * 3)) == 3 and model.answer([], []) == []
    with pytest.warns(UserWarning, match="1 of 2 questions were truncated to half of a window of"):
        model.answer(["a?", "a" * 20], context)
    with pytest.raises(ValueError, match="a context for each question: 1, 2"):
        model.answer(["a?", "b?"], [context])
    with pytest.raises(TypeError, match="question 1 is None"):
        model.answer(["a?", None], context)
    for settings, message in (
        (dict(window_length=33), "window_length must be from 1 to 32"),
        (dict(window_length=4), "room for a question and a context: 4 tokens"),
        (dict(overlap=-1), "overlap must be a non-negative integer"),
        (dict(no_answer=math.nan), "no_answer must be a number"),
        (dict(max_answer_tokens=0), "max_answer_tokens must be a positive integer"),
        (dict(top=2**31), "top must be less than 2"),
    ):
        with pytest.raises(ValueError, match=message):
            model.answer("a?", context, **settings)


@tensorflow
def test_windows_cover_all_tokens_and_keep_each_once():
    from polyhead.data.spans import Windows

    random = np.random.default_rng(0)
    for _ in range(20):
        lengths = random.integers(0, 40, 5).astype("int32")
        room, overlap = int(random.integers(1, 12)), int(random.integers(0, 14))
        windows = Windows.cut(lengths, room, overlap)
        row, first, count = (np.array(x) for x in windows)
        assert (count <= room).all() and ((count > 0) | (lengths[row] == 0)).all()
        kept = [
            (r, f + i)
            for r, f, chosen in zip(row, first, windows.kept().to_list(), strict=True)
            for i in chosen
        ]
        assert kept == [(r, i) for r, n in enumerate(lengths) for i in range(n)]


@tensorflow
def test_substrings_are_exact_for_all_code_points():
    from polyhead.data.spans import code_points, substrings

    text = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    points = code_points([text])
    assert points.row_lengths()[0] == len(text)
    starts = np.arange(0, len(text) - 100, 97, dtype="int32")
    row = np.zeros(len(starts), "int32")
    found = substrings(points, row, starts, starts + 97).numpy()
    assert b"".join(found) == text[: starts[-1] + 97].encode()


# With BERT and its tokenizer


@pytest.fixture(scope="module")
def pieces(tokenizer):
    from polyhead.data import WordPieces

    words = "the cat sat on mat and dog ran home unaffected ete 日 本 un ##aff ##ected ##ly ##mat"
    letters = "abcdefghijklmnopqrstuvwxyzשלום!?.,:"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return WordPieces([*special, *words.split(), *letters, *(f"##{x}" for x in letters)])


def bert(tokenizer, head=None, **settings):
    sizes = dict(num_layers=1, dim=16, intermediate_dim=24, num_heads=2, dropout=0.0)
    config = BERTConfig(
        vocab_size=tokenizer.vocab_size, max_length=40, num_positions=40, head=head,
        pad_id=tokenizer.pad_id, **sizes, **settings,
    )  # fmt: skip
    model = BERT(config, tokenizer)
    for i, v in enumerate(model.weights):
        v.assign(v + 0.3 * keras.random.normal(v.shape, seed=i))
    return model


ODD = [
    "The CAT sat,\u00a0unaffected\u200d: e\u0301TE\u0301!",
    "\U0001f469\u200d\U0001f4bb日本 \u05e9\u05c1\u05dc\u05d5\u05dd a\0b\ufffd\ue000 \u202edog\tran",
    "",
    "[SEP] the dog [MASK] home " * 8,
    "ﬁ İstanbul ǅ ß \u0344 " + "mat" * 50,
]


def test_answers_of_bert_are_exact_for_any_unicode(pieces):
    model = bert(pieces, "spans")
    settings = dict(window_length=24, overlap=6)
    found = model.answer("the cat?", ODD, top=8, max_answer_tokens=4, **settings)
    for context, row in zip(ODD, found, strict=True):
        expected, none = reference_answers(model, pieces, "the cat?", context, 24, 6, 4, 0.0)
        assert len(row) == min(8, len(expected))
        for answer, (_, probability, start, end) in zip(row, expected, strict=False):
            assert answer.text == context[answer.start : answer.end]
            assert answer.score == pytest.approx(probability, rel=1e-3)
            if answer.start != start:  # equal scores
                continue
            assert answer.end == end
        assert row[0].no_answer == pytest.approx(none, rel=1e-3)


def test_tags_of_bert_are_exact_for_any_unicode(pieces):
    model = bert(pieces, "tags", num_classes=3, class_names=("O", "B-X", "I-X"))
    found = model.tag(ODD)
    assert sum(map(len, found)) > 5
    for text, spans in zip(ODD, found, strict=True):
        assert all(s.text == text[s.start : s.end] and s.text for s in spans)
        assert all(a.end <= b.start for a, b in zip(spans[:-1], spans[1:], strict=True))
    # The pieces of a word have one tag, also around characters that the tokenizer removes.
    assert pieces.tokens("unaffectedly")[1:-1] == ["unaffected", "##ly"]
    for text in ("unaffected\u200dly", "un\u00adaffected", "unaffectedly"):
        [words] = model.tag([[text]])
        spans = model.tag(text)
        assert [(s.start, s.end) for s in spans] == [(0, len(text))] * len(words)


def test_masks_and_pairs_of_bert(pieces):
    model = bert(pieces, "tokens")
    [first, second] = model.fill_mask("The [MASK] sat [MASK].", top=3)
    assert len(first) == len(second) == 3 and first[0].label in pieces.vocabulary
    model = bert(pieces, "classes", num_classes=2)
    pair = model.classify(("the cat", "the dog"), top=2)
    ids, types = (x.to_tensor() for x in pieces.encode_pairs(["the cat"], ["the dog"]))
    logits = np.array(model({"tokens": ids, "types": types}))[0]
    assert {c.label: c.probability for c in pair} == pytest.approx(
        {str(i): p for i, p in enumerate(np.exp(logits) / np.exp(logits).sum())}, rel=1e-4
    )


def test_pairs_need_a_form_and_a_type(pieces):
    alone = copy.copy(pieces)
    alone.separator = None
    for tokenizer, settings in ((pieces, dict(type_vocab_size=1)), (alone, {})):
        classes = bert(tokenizer, "classes", num_classes=2, **settings)
        spans = bert(tokenizer, "spans", **settings)
        for call in (lambda m=classes: m.classify(("a", "b")), lambda m=spans: m.answer("a", "b")):
            with pytest.raises(ValueError, match="needs pairs of texts"):
                call()
        assert classes.classify("a").label in "01"


def test_a_context_must_have_room_for_a_text(pieces):
    with pytest.raises(ValueError, match="a window must have room for a text: 2 tokens"):
        bert(pieces, "tags", num_classes=2).adapt(max_length=2).tag("the cat")


@pytest.mark.slow
def test_quantized_models_have_all_methods(tokenizer, tmp_path):
    model = toy("classes", tokenizer, num_classes=3, scale=0.2)
    before = model.classify("a dog", top=3)
    model.quantize("int8")
    after = model.classify("a dog", top=3)
    assert [c.label for c in after] == [c.label for c in before] and after != before
    with pytest.raises(ValueError, match="a quantized model cannot be adapted"):
        model.adapt("score")
    model.tokenizer = None
    model.save_pretrained(tmp_path / "model")
    again = Toy.from_pretrained(tmp_path / "model")
    again.tokenizer = tokenizer
    assert again.classify("a dog", top=3) == after


# Training


TOKENS = np.array([[1, 5, 6, 2], [1, 7, 2, 0]])
LABELS = {
    "classes": np.array([0, 2]),
    "score": np.array([0.0, 1.0]),
    "tags": np.array([[0, 1, 2, 0], [0, 1, 0, 0]]),
    "spans": np.array([[1, 2], [0, 0]]),
    "tokens": TOKENS,
}


@pytest.mark.parametrize(
    "head, loss, settings",
    [
        ("spans", None, {}),
        ("tags", None, dict(num_classes=3)),
        (None, InBatchNegatives(), {}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("classes", None, dict(num_classes=3)),
                ("score", None, {}),
                ("tokens", None, {}),
                *(
                    (None, CosineRegression(), dict(pooling=pooling, normalize=True))
                    for pooling in POOLINGS
                ),
            )
        ),
    ],
)
@tensorflow
def test_rows_that_fill_a_batch_change_nothing(head, loss, settings):
    tokens, labels = TOKENS, LABELS.get(head)
    if head is None:
        tokens, labels = np.concatenate([tokens, tokens[:, ::-1]]), np.arange(4) / 10
    weight = np.ones(labels.shape if head in ("tags", "tokens") else len(labels), "float32")
    results = []
    for extra in (0, 2):
        model = toy(head, **settings)
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
        inputs, targets, weights = (
            np.pad(x, [[0, extra], *[[0, 0]] * (x.ndim - 1)]) for x in (tokens, labels, weight)
        )
        if head is None:
            targets[4:] = -1.0
        model.fit(inputs, targets, sample_weight=weights, verbose=0, shuffle=False)
        results.append([ops.convert_to_numpy(v).copy() for v in model.weights])
    before = [ops.convert_to_numpy(v).copy() for v in toy(head, **settings).weights]
    assert max(np.abs(a - b).max() for a, b in zip(before, results[0], strict=True)) > 1e-3
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        head if head in ("score", "spans") else pytest.param(head, marks=pytest.mark.slow)
        for head in LABELS
    ],
)
def test_every_head_learns_by_default(head):
    model = toy(head, scale=0.1, num_classes=3 * (head in ("classes", "tags")))
    tokens, labels = TOKENS, LABELS[head]
    model.compile(run_eagerly=True)
    model.optimizer.learning_rate = 0.02
    losses = model.fit(tokens, labels, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2
    assert isinstance(model, TextEncoder)


@pytest.mark.slow
def test_a_reranker_learns_from_pairs(pieces):
    from polyhead.data import LabelledTexts, classification_batches

    words = ["cat", "dog", "rain", "tree"]
    pairs = [(a, b) for a in words for b in words]
    labels = [str(int(b in ("rain", "tree"))) for _, b in pairs]
    texts = LabelledTexts([a for a, _ in pairs], labels, [b for _, b in pairs])
    keras.utils.set_random_seed(0)
    model = BERT.preset("bert-tiny", pieces, head="score", dropout=0.0, attention_dropout=0.0)
    model.compile(keras.optimizers.Adam(3e-3))
    batches = classification_batches(texts, pieces, ("0", "1"), batch_size=6, buckets=1, seed=0)
    losses = model.fit(batches, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.2
    assert {match.index for match in model.rerank("cat", words, top=2)} == {2, 3}


def test_the_default_loss_of_spans_is_that_of_training():
    model = toy("spans")
    model.compile()
    assert type(model.loss) is SpanCrossEntropy
    assert keras.saving.get_registered_object("polyhead>SpanCrossEntropy") is SpanCrossEntropy


def test_embeddings_have_no_default_loss():
    with pytest.raises(ValueError, match="has no default loss"):
        toy().compile()
