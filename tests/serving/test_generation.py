"""Tests of an exported GPT, queried through the C++ loader."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from polyhead.data import BytePairs
from polyhead.zoo import GPT, GPTConfig

LENGTH, PENALTY = 16, 1.5


pytestmark = pytest.mark.slow  # `tests/serving/test_export.py` has fast tests of exports


@pytest.fixture(scope="module")
def gpt(sample):
    tokenizer = BytePairs.train(sample.sources, 300)
    keras.utils.set_random_seed(1)
    sizes = dict(vocab_size=300, max_length=64, num_layers=2, dim=32, num_heads=4, end_id=0)
    model, random = GPT(GPTConfig(**sizes), tokenizer), np.random.default_rng(0)
    for v in model.weights:
        if v.name in ("kernel", "gamma", "embeddings"):
            v.assign(v + random.normal(size=v.shape) * 0.3)
    return model


@pytest.fixture(scope="module")
def exported(gpt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "generation"
    return gpt.export(folder, max_new_tokens=LENGTH, temperature=0, repetition_penalty=PENALTY)


def ask(version, *requests):
    lines = "".join(json.dumps({"signature_name": n, "inputs": x}) + "\n" for n, x in requests)
    command = [sys.executable, "-m", "polyhead.serving.loader", str(version)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_server_and_python_give_equal_answers(gpt, exported):
    texts = [
        "The old man",
        "",
        "A cat and a dog",
        "It",
        "é😀<|endoftext|>",
        "a dog and a cat " * 40,
    ]
    settings = dict(
        max_new_tokens=[8, 16, 3, 0, 16, 500],
        temperature=[0.0, 1.0, 0.7, 1.0, 1.3, 0.8],
        top_k=[0, 10, 0, 1, 0, 50],
        top_p=[1.0, 1.0, 0.8, 1.0, 0.9, 1.0],
        min_p=[0.0, 0.0, 0.05, 0.0, 0.0, 0.1],
        seed=[0, 5, 6, 7, 8, 9],
    )
    plain, sampled, scores, none = ask(
        exported,
        ("serving_default", {"text": texts}),
        ("generate", {"text": texts, **settings}),
        ("score", {"text": texts}),
        ("serving_default", {"text": []}),
    )
    with pytest.warns(UserWarning, match="truncated to their last 48 tokens"):
        plain_settings = dict(max_new_tokens=LENGTH, temperature=0, repetition_penalty=PENALTY)
        expected = gpt.generate(texts, truncate=True, **plain_settings)
        assert expected != gpt.generate(texts, LENGTH, temperature=0, truncate=True)
    assert plain["text"] == expected and none["text"] == []
    for i, text in enumerate(texts[:-1]):
        row = {name: values[i] for name, values in settings.items()}
        row["top_k"], row["repetition_penalty"] = row["top_k"] or None, PENALTY
        count, seed = row.pop("max_new_tokens"), row.pop("seed")
        made = gpt.generate([text], max_new_tokens=count, seed=[seed], **row)[0] if count else ""
        assert sampled["text"][i] == made
    with pytest.warns(UserWarning, match="truncated to their first 64 tokens"):
        known = gpt.score(texts, truncate=True)
    np.testing.assert_allclose(
        scores["log_likelihood"], [s.log_likelihood for s in known], atol=1e-2
    )
    assert scores["tokens"] == [s.tokens for s in known]


def test_settings_that_python_refuses_are_replaced(gpt, exported):
    # Another user's request may be in the same batch.
    given = dict(temperature=[1.0] * 4, top_k=[0] * 4, seed=[1, 1, -1, 2**31 - 1])
    given |= dict(text=["A cat"] * 4, max_new_tokens=[8] * 4)
    given |= dict(top_p=[0.0, 1.0, 1.0, 1.0], min_p=[0.0, 9.5, 0.0, 0.0])
    [found] = ask(exported, ("generate", given))
    settings = dict(max_new_tokens=8, repetition_penalty=PENALTY)
    greedy = gpt.generate("A cat", temperature=1.0, top_k=1, **settings)
    sampled = gpt.generate("A cat", temperature=1.0, seed=-1, **settings)
    assert found["text"] == [greedy, greedy, sampled, sampled]


def test_requests_with_wrong_types_are_refused(exported):
    command = [sys.executable, "-m", "polyhead.serving.loader", str(exported)]
    row = dict(text=["a"], max_new_tokens=[1.5], temperature=[1], top_k=[0])
    row |= dict(top_p=[1.0], min_p=[0.0], seed=[1])
    request = json.dumps({"signature_name": "generate", "inputs": row})
    done = subprocess.run(command, input=request, capture_output=True, text=True)
    assert done.returncode == 1 and "values of max_new_tokens are integers" in done.stderr


def test_lora_adapters_are_merged_in_an_export(gpt, tmp_path):
    model = GPT(gpt.config, gpt.tokenizer)
    model.set_weights(gpt.get_weights())
    model.enable_lora(2)
    for v in model.trainable_variables:
        v.assign(np.random.default_rng(1).normal(size=v.shape) * 0.3)
    assert {v.path.split("/")[2] for v in model.trainable_variables} == {"query_lora", "value_lora"}
    whole = model._without_lora()
    tokens = np.arange(12)[None]
    np.testing.assert_allclose(model(tokens), whole(tokens), atol=1e-4)
    assert np.abs(np.asarray(model(tokens)) - np.asarray(gpt(tokens))).max() > 0.1
    assert len(whole.weights) == len(gpt.weights)
    with pytest.raises(ValueError, match="enabled already"):
        model.enable_lora(2)
    with pytest.raises(ValueError, match="must leave room for a text in the context: 64, 64"):
        model.export(tmp_path, max_new_tokens=64)
    assert list(tmp_path.iterdir()) == []
    version = model.export(tmp_path, temperature=0)  # by default half of the context
    [answer] = ask(version, ("serving_default", {"text": ["a dog"]}))
    expected, plain = (m.generate(["a dog"], 32, temperature=0) for m in (model, gpt))
    assert answer["text"] == expected != plain
