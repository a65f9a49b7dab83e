"""Other tests run without XLA, users' models with it: both must give the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from polyhead.data import WordPieces
from polyhead.training import replicas
from polyhead.zoo import BERT, GPT, ViT
from tests.conftest import small
from tests.zoo.toy_summarizers import small_t5

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), "uint8")


def generator(tokenizer):
    return GPT.preset("char-small", tokenizer, num_layers=2, dim=32, num_heads=4)


def classifier(tokenizer):
    model = ViT.preset("nano-4", num_layers=1)
    model.head.kernel.assign(keras.random.normal(model.head.kernel.shape))
    return model


CASES = {
    "greedy": (generator, lambda m: m.generate(["the", "a dog and"], temperature=0.0)),
    "sampling": (generator, lambda m: m.generate(["the", "a dog and"], temperature=1.0, seed=5)),
    "beams": (generator, lambda m: m.generate("the", num_beams=3, max_new_tokens=12)),
    "limits": (
        generator,
        lambda m: m.generate(
            ["the", "a"],
            temperature=0.0,
            no_repeat_ngram_size=2,
            min_new_tokens=4,
            max_new_tokens=12,
        ),
    ),
    "stream": (generator, lambda m: "".join(m.stream("the", temperature=0.0))),
    "score": (generator, lambda m: m.score(["the dog", "a"])),
    "translate": (small, lambda m: m.translate(["A dog.", "Two dogs run."], num_beams=4)),
    "summarize": (
        lambda tokenizer: small_t5(tokenizer, prefix="say: "),
        lambda m: m.summarize(["A dog.", "Two dogs run."], num_beams=3, max_new_tokens=8),
    ),
    "classify": (classifier, lambda m: m.classify(list(IMAGES), top=3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_xla_gives_what_tensorflow_gives(case, tokenizer, monkeypatch):
    make, ask = CASES[case]
    answers = []
    for xla in (True, False):
        monkeypatch.setattr(replicas, "XLA", xla)
        keras.utils.set_random_seed(11)
        answers.append(ask(make(tokenizer)))
    one, other = answers
    if case == "classify":
        assert [[label for label, _ in row] for row in one] == [
            [label for label, _ in row] for row in other
        ]
        one, other = ([[p for _, p in row] for row in rows] for rows in answers)
    if case in ("classify", "score"):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    else:
        assert one == other


QUESTIONS = [f"{'the dog ' * n}?" for n in (1, 2, 3, 4, 2)]
ENCODERS = {
    None: lambda m: m.embed(QUESTIONS, batch_size=2),
    "classes": lambda m: [c.probability for c in m.classify(QUESTIONS)],
    "tags": lambda m: [span.score for row in m.tag(QUESTIONS) for span in row],
    "score": lambda m: [match.score for match in m.rerank("a dog", QUESTIONS)],
    "tokens": lambda m: [
        token.probability for row in m.fill_mask(["a [MASK]", "[MASK] the dog"]) for token in row
    ],
    "spans": lambda m: [
        answer.score for row in m.answer(QUESTIONS, "the dog ran", top=2) for answer in row
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("head", ENCODERS)
def test_text_encoders_use_xla_on_request(head, monkeypatch):
    monkeypatch.setattr(replicas, "XLA", True)
    pieces, ask = WordPieces.train(["the dog ran home. a dog?"] * 3, vocab_size=60), ENCODERS[head]
    keras.utils.set_random_seed(11)
    sizes = dict(num_layers=1, dim=16, num_heads=2, intermediate_dim=24)
    sizes |= dict(num_classes=3) if head in ("classes", "tags") else {}
    model = BERT.preset("bert-tiny", pieces, head=head, **sizes)
    before, model.xla, shapes = ask(model), True, []
    network = type(model).features

    def features(self, tokens, types=None):  # runs when a function is traced: once per shape
        shapes.append(tuple(tokens.shape))
        return network(self, tokens, types)

    monkeypatch.setattr(type(model), "features", features)
    np.testing.assert_allclose(ask(model), before, rtol=1e-4, atol=1e-6)
    assert shapes and all(None not in shape and shape[1] % 8 == 0 for shape in shapes)
    traced = len(shapes)
    ask(model)
    assert len(shapes) == traced


def language_model(tokenizer):
    tokens = np.random.default_rng(1).integers(3, 250, (4, 17), "int32")
    return generator(tokenizer), tokens[:, :-1], tokens[:, 1:]


def image_classifier(tokenizer):
    model = ViT.preset("nano-4", num_layers=1, dropout=0.0, stochastic_depth=0.0)
    return model, IMAGES, np.eye(10, dtype="float32")[:3]


def text_classifier(tokenizer):
    sizes = dict(num_layers=1, dim=32, num_heads=2, intermediate_dim=48, vocab_size=50)
    model = BERT.preset("bert-tiny", head="classes", num_classes=3, dropout=0.0, **sizes)
    return model, np.random.default_rng(1).integers(3, 50, (3, 9), "int32"), np.arange(3)


def summarizer(tokenizer):
    tokens = np.random.default_rng(1).integers(3, 40, (4, 9), "int32")
    return small_t5(), {"source": tokens, "target": tokens}, tokens


@pytest.mark.slow
@pytest.mark.parametrize("make", [language_model, image_classifier, text_classifier, summarizer])
def test_xla_trains_like_tensorflow(make, tokenizer, monkeypatch):
    losses = []
    for xla in (True, False):
        monkeypatch.setattr(replicas, "XLA", xla)
        keras.utils.set_random_seed(11)
        model, inputs, labels = make(tokenizer)
        data = tf.data.Dataset.from_tensors((inputs, labels)).repeat(5)
        losses.append(model.fit(data, epochs=2, steps_per_epoch=5, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)
