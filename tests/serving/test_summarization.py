"""Tests of exported T5 and BART models, queried through the C++ loader."""

import base64
import random

import numpy as np
import pytest
import tensorflow as tf

from polyhead.data import BytePairs
from tests.serving.test_text_encoder import any_bytes, ask
from tests.zoo.toy_summarizers import many_sentences, perturb, small_bart, small_t5, write_roberta

TEXTS = [
    "The old dog sees a cat.",
    "",
    "🐻 läuft – 日本語, кот! e\u0301\u2028\x85 👩\u200d💻",
    many_sentences(12),
    "tab\there\nnew line",
    "Two men.",
]
MOST = 50  # more than twice the tokens of short texts plus ten
BEAM = dict(num_beams=3, max_new_tokens=MOST)
LENGTHS = dict(max_new_tokens=[5, 4, MOST, 99, 1, 45], min_new_tokens=[5, 0, 2, 9, 0, 40])


@pytest.fixture(scope="module")
def t5(tokenizer):
    return perturb(small_t5(tokenizer, prefix="it is: ", max_length=32, num_layers=1))


@pytest.fixture(scope="module")
def bart(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    write_roberta(folder, sample.sources, 300)
    settings = dict(no_repeat_ngram_size=3, forced_begin=0, length_penalty=2.0)
    model = small_bart(BytePairs.load(folder), max_length=32, num_layers=1, search=settings)
    return perturb(model)


@pytest.fixture(scope="module")
def export(request, tmp_path_factory):
    """A function that exports a model by name, once; returns the model and the version's folder."""
    exported = {}

    def run(kind):
        if kind not in exported:
            model = request.getfixturevalue(kind)
            folder = tmp_path_factory.mktemp("exports") / kind
            exported[kind] = model, model.export(folder, **BEAM)
        return exported[kind]

    return run


both = pytest.mark.parametrize(
    "kind", ["t5", pytest.param("bart", marks=[pytest.mark.slow, pytest.mark.long])]
)


@both
@pytest.mark.filterwarnings("ignore:. of . sources")
def test_exported_summaries_are_those_of_python(export, kind):
    model, version = export(kind)
    prefix = {"t5": "it is: ", "bart": ""}[kind]
    invalid = [b"\xff\xfe cat \xf0\x9f sat", b"a\0b"]
    encoded = [{"b64": base64.b64encode(text).decode()} for text in invalid]
    greedy, beam, chosen, none, single, replaced = ask(
        version,
        ("serving_default", {"text": TEXTS}),
        ("beam", {"text": TEXTS}),
        ("generate", {"text": TEXTS, **LENGTHS}),
        ("generate", {"text": [], "max_new_tokens": [], "min_new_tokens": []}),
        ("serving_default", {"text": TEXTS[:1]}),
        ("serving_default", {"text": encoded}),
    )
    expected = model.generate(TEXTS, prefix=prefix, num_beams=1)
    assert greedy["text"] == expected and single["text"] == expected[:1]
    np.testing.assert_allclose(greedy["score"], [x.score for x in expected], atol=1e-3)
    several = model.generate(TEXTS, prefix=prefix, num_return_sequences=3, **BEAM)
    for i, found in enumerate(several):
        count = len(found)
        assert beam["text"][i] == found + [""] * (3 - count)
        np.testing.assert_allclose(beam["score"][i][:count], [x.score for x in found], atol=1e-3)
        assert all(score == pytest.approx(-1e9) for score in beam["score"][i][count:])
    assert beam["text"][1] == [""] * 3 and beam["score"][1][0] == 0
    for i, text in enumerate(TEXTS):
        most, least = (LENGTHS[name][i] for name in LENGTHS)
        settings = dict(num_beams=3, max_new_tokens=min(most, MOST), min_new_tokens=least)
        if not most or not text:
            assert chosen["text"][i] == "" and chosen["score"][i] == 0
            continue
        wanted = model.generate(text, prefix=prefix, **settings)
        assert chosen["text"][i] == wanted
        assert chosen["score"][i] == pytest.approx(wanted.score, abs=1e-3)
    assert none == {"text": [], "score": []} and len(replaced["text"]) == 2


@both
def test_signatures_have_documented_names_and_shapes(export, kind):
    _, version = export(kind)
    loaded = tf.saved_model.load(str(version)).signatures
    assert set(loaded) == {"serving_default", "beam", "generate"}
    lengths = {"max_new_tokens": tf.int32, "min_new_tokens": tf.int32}
    for name, signature in loaded.items():
        inputs = signature.structured_input_signature[1]
        wanted = {"text": tf.string} | (lengths if name == "generate" else {})
        assert {key: spec.dtype for key, spec in inputs.items()} == wanted
        assert all(spec.shape.as_list() == [None] for spec in inputs.values())
        outputs = signature.structured_outputs
        assert {key: spec.dtype for key, spec in outputs.items()} == {
            "text": tf.string,
            "score": tf.float32,
        }
        for spec in outputs.values():
            assert spec.shape.rank == (2 if name == "beam" else 1)
    assert version.parent.name == kind
    assert 'name: "summarization"' in (version.parent / "models.config").read_text()


def test_settings_of_an_export_are_checked(t5, tmp_path):
    for options, message in (
        (dict(num_beams=0), "num_beams must be a positive integer: 0"),
        (dict(max_new_tokens=0), "max_new_tokens must be a positive integer: 0"),
    ):
        with pytest.raises(ValueError, match=message):
            t5.export(tmp_path, **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'temperature'"):
        t5.export(tmp_path, temperature=1)
    with pytest.raises(ValueError, match="export needs a tokenizer"):
        small_t5().export(tmp_path)
    with pytest.raises(TypeError, match="'prefix'"):
        t5.export(tmp_path, "onnx", prefix="a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_lora_adapters_are_merged_and_the_prefix_is_chosen(t5, tmp_path):
    model = type(t5)(t5.config, t5.tokenizer)
    model.set_weights(t5.get_weights())
    model.enable_lora(2)
    for v in model.trainable_variables:
        v.assign(np.random.default_rng(1).normal(size=v.shape))
    version = model.export(tmp_path, prefix="", num_beams=2)
    [answer] = ask(version, ("serving_default", {"text": TEXTS[:3]}))
    assert answer["text"] == model.generate(TEXTS[:3])
    assert answer["text"] != t5.generate(TEXTS[:3])


@pytest.mark.slow
def test_any_bytes_are_answered(export):
    choose = random.Random(0)
    for kind in ("t5", "bart"):
        _, version = export(kind)
        requests = [[any_bytes(choose) for _ in range(choose.choice((1, 2, 7)))] for _ in range(60)]
        answers = ask(
            version,
            *(
                ("serving_default", {"text": [{"b64": base64.b64encode(x).decode()} for x in row]})
                for row in requests
            ),
        )
        for row, answer in zip(requests, answers, strict=True):
            assert "error" not in answer, (row, answer)
            assert len(answer["text"]) == len(row) and np.isfinite(answer["score"]).all()
