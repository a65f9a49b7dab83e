import io

import keras
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf

from polyhead.data import Subwords

TEXTS = [
    "The dog sees a cat.",
    "",
    "Ein Bär 🐻 läuft",
    "日本語 кот",
    "tabs\tand\nnewlines",
    "a  b",
    "x" * 50,
]


def test_the_graph_gives_the_pieces_of_python(tokenizer):
    python = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    rows = tokenizer.ragged(TEXTS).to_list()
    assert rows == [[*python.encode(text), tokenizer.end_id] for text in TEXTS]


def test_text_of_known_characters_comes_back(tokenizer, sample):
    texts = sample.sources[:20] + sample.targets[:20]
    decoded = [t.decode() for t in tokenizer.decode(tokenizer.encode(texts)).numpy()]
    assert decoded == texts


def test_padding_start_and_end_are_left_out_wherever_they_stand(tokenizer):
    row = tokenizer.encode(["The dog"]).numpy()[0]
    noisy = [[1, *row, 0, 2, 0]]
    assert tokenizer.decode(noisy).numpy().tolist() == [b"The dog"]


def test_a_long_text_keeps_its_first_pieces_and_the_end(tokenizer):
    text = "The dog sees a cat and a bird."
    whole = tokenizer.encode([text]).numpy()[0]
    cut = tokenizer.encode([text], max_length=4).numpy()[0]
    assert cut.tolist() == [*whole[:3], tokenizer.end_id]


def test_an_empty_batch_is_a_batch(tokenizer):
    assert tokenizer.encode(tf.zeros([0], tf.string)).shape[0] == 0


def test_it_runs_in_the_graph(tokenizer):
    round_trip = tf.function(
        lambda texts: tokenizer.decode(tokenizer.encode(texts)),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    assert round_trip(tf.constant(["The dog", ""])).numpy().tolist() == [b"The dog", b""]


def test_a_new_seed_does_not_lose_the_vocabulary(tokenizer):
    before = tokenizer.encode(TEXTS).numpy()
    keras.utils.set_random_seed(1)  # drops TensorFlow's kernels
    np.testing.assert_array_equal(tokenizer.encode(TEXTS).numpy(), before)


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Subwords.load(tmp_path)
    assert (again.vocab_size, again.pad_id, again.start_id, again.end_id) == (300, 0, 1, 2)
    np.testing.assert_array_equal(again.encode(TEXTS).numpy(), tokenizer.encode(TEXTS).numpy())


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ValueError, match="learned from text, and there is none"):
        Subwords.train(["", "  "])
    with pytest.raises(ValueError, match="2 texts give no vocabulary of 5000 pieces"):
        Subwords.train(["a dog", "a cat"], 5000)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="tokenizer.model: not a SentencePiece model"):
        Subwords.load(tmp_path)


def test_too_little_text_gives_a_smaller_vocabulary_if_the_size_is_not_exact():
    texts = ["a dog", "a cat"]
    tokenizer = Subwords.train(texts, 5000, exact=False)
    assert 10 < tokenizer.vocab_size < 40
    decoded = tokenizer.decode(tokenizer.encode(texts)).numpy()
    assert [text.decode() for text in decoded] == texts
    assert Subwords.train(texts, 16, exact=False).vocab_size == 16


def test_only_bpe_has_merges_to_leave_out(sample, tokenizer):
    rows = tokenizer.sampled(sample.sources, 0.3, seed=1)
    assert rows == tokenizer.sampled(sample.sources, 0.3, seed=1)
    assert rows != tokenizer.sampled(sample.sources, 0.3, seed=2)
    usual = tokenizer.ragged(sample.sources).to_list()
    assert tokenizer.sampled(sample.sources, 0.0, seed=1) == usual
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample.sources), model_writer=model, vocab_size=100,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="needs a BPE vocabulary"):
        Subwords(model.getvalue()).sampled(["a dog"], 0.1, seed=1)
