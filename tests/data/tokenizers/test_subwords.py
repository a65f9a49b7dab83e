import io
import json
import subprocess
import sys

import keras
import pytest
import sentencepiece
import tensorflow as tf

from polyhead.data import Subwords
from polyhead.data.tokenizers import merges

TEXTS = [
    "The dog sees a cat.",
    "",
    "Ein Bär 🐻 läuft",
    "日本語 кот",
    "tabs\tand\nnewlines",
    "a  b",
    "x" * 50,
]


def test_tokens_are_equal_in_the_graph_and_in_python(tokenizer):
    python = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    rows = tokenizer.encode(TEXTS).to_list()
    assert rows == [[*python.encode(text), tokenizer.end_id] for text in TEXTS]


def test_decoding_restores_text_of_known_characters(tokenizer, sample):
    texts = sample.sources[:20] + sample.targets[:20]
    decoded = [t.decode() for t in tokenizer.decode(tokenizer.encode(texts)).numpy()]
    assert decoded == texts


def test_decoding_removes_padding_start_and_end_anywhere(tokenizer):
    row = tokenizer.encode(["The dog"]).numpy()[0]
    noisy = [[1, *row, 0, 2, 0]]
    assert tokenizer.decode(noisy).numpy().tolist() == [b"The dog"]


def test_a_truncated_text_keeps_its_first_tokens_and_the_end(tokenizer):
    text = "The dog sees a cat and a bird."
    whole = tokenizer.encode([text]).numpy()[0]
    cut = tokenizer.encode([text], max_length=4).numpy()[0]
    assert cut.tolist() == [*whole[:3], tokenizer.end_id]


def test_an_empty_batch_is_encoded(tokenizer):
    assert tokenizer.encode(tf.zeros([0], tf.string)).shape[0] == 0


def test_it_runs_in_the_graph(tokenizer):
    round_trip = tf.function(
        lambda texts: tokenizer.decode(tokenizer.encode(texts)),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    assert round_trip(tf.constant(["The dog", ""])).numpy().tolist() == [b"The dog", b""]


def test_setting_a_seed_keeps_the_vocabulary(tokenizer):
    before = tokenizer.encode(TEXTS).to_list()
    keras.utils.set_random_seed(1)  # drops TensorFlow's kernels
    assert tokenizer.encode(TEXTS).to_list() == before


def test_saving_and_loading_restores_the_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Subwords.load(tmp_path)
    assert (again.vocab_size, again.pad_id, again.start_id, again.end_id) == (300, 0, 1, 2)
    assert again.encode(TEXTS).to_list() == tokenizer.encode(TEXTS).to_list()


def test_errors_name_the_problem(tmp_path):
    with pytest.raises(ValueError, match="cannot be learned without text"):
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


def trained(texts, **options):
    """A SentencePiece model, trained with other options than `Subwords.train`."""
    model = io.BytesIO()
    ids = dict(pad_id=0, bos_id=1, eos_id=2, unk_id=3)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, minloglevel=2, **ids, **options
    )
    return model.getvalue()


def test_bpe_dropout_needs_a_bpe_vocabulary(sample):
    with pytest.raises(ValueError, match="needs a BPE vocabulary"):
        Subwords(trained(sample.sources, vocab_size=100)).sampled(["a dog"], 0.1, seed=1)


def test_bpe_dropout_is_reproducible(sample, tokenizer):
    rows = tokenizer.sampled(sample.sources, 0.3, seed=1)
    assert rows == tokenizer.sampled(sample.sources, 0.3, seed=1)
    assert rows != tokenizer.sampled(sample.sources, 0.3, seed=2)
    decoded = tokenizer.decode(tf.ragged.constant(rows)).numpy()
    assert [text.decode() for text in decoded] == sample.sources


PROCESS = """
import importlib.util, json, sys
import sentencepiece
spec = importlib.util.spec_from_file_location("merges", sys.argv[1])
merges = importlib.util.module_from_spec(spec)
spec.loader.exec_module(merges)
model = sentencepiece.SentencePieceProcessor(model_file=sys.argv[2])
print(merges.Merges(model).sample(json.load(sys.stdin), 0.3, 5))
"""


def test_bpe_dropout_is_reproducible_in_another_process(sample, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    other = subprocess.run(  # without TensorFlow, whose import is slow
        [sys.executable, "-c", PROCESS, merges.__file__, str(tmp_path / "tokenizer.model")],
        input=json.dumps(sample.sources),
        capture_output=True,
        text=True,
        check=True,
    )
    here = [row[:-1] for row in tokenizer.sampled(sample.sources, 0.3, seed=5)]
    assert json.loads(other.stdout) == here


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(byte_fallback=True, vocab_size=600),
        dict(user_defined_symbols=["<tag>", "[SEP]", "dog", "\u2581the"]),
        dict(remove_extra_whitespaces=False, allow_whitespace_only_pieces=True),
        dict(split_by_whitespace=False),
        dict(treat_whitespace_as_suffix=True),
        dict(add_dummy_prefix=False, normalization_rule_name="identity"),
    ],
)
def test_merges_without_dropout_equal_sentencepiece(sample, options):
    texts = sample.sources + sample.targets
    model = trained(texts, **{**dict(model_type="bpe", vocab_size=300), **options})
    python = sentencepiece.SentencePieceProcessor(model_proto=model)
    strange = ["<tag>dog<tag>", "the[SEP]dog [SEP] x", "a\u2581b \u2581 ", "  a  b ", "ﬁ ① 中中 中"]
    ours = merges.Merges(python)
    for some in (texts, TEXTS, strange):
        assert ours.sample(some, 0.0, seed=1) == python.encode(some)


def test_long_words_are_merged_in_one_pass_like_short_ones(sample, tokenizer, monkeypatch):
    texts = ["".join(sample.sources[:20]).replace(" ", ""), *sample.sources[:50]]
    python = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    rows = []
    for short in (0, 16, 10_000):
        monkeypatch.setattr(merges, "SHORT", short)
        rows.append([merges.Merges(python).sample(texts, rate, seed=4) for rate in (0.0, 0.2)])
    assert rows[0] == rows[1] == rows[2] and rows[0][0] == python.encode(texts)


def test_bpe_dropout_gives_as_many_tokens_as_sentencepiece(sample, tokenizer):
    python = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    texts = (sample.sources + sample.targets) * 5
    usual = sum(map(len, python.encode(texts)))
    for rate, least in ((0.1, 1.25), (0.5, 2)):
        sampling = dict(enable_sampling=True, nbest_size=-1, alpha=rate)
        theirs = sum(map(len, python.encode(texts, **sampling)))
        ours = sum(map(len, merges.Merges(python).sample(texts, rate, seed=1)))
        assert ours == pytest.approx(theirs, rel=0.02) and ours > least * usual


def test_characters_of_long_lines_are_learned():
    long = [
        "word " * 2000 + "é",
        "ü" + "n" * 10_000,
        "a null \0 ö",
        "a block \u2585 ß",
        "word " * 9,
    ]
    tokenizer = Subwords.train(long, 20)
    known = {piece for i in range(20) for piece in tokenizer.pieces([i])}
    assert set("wordéünöß") <= known
