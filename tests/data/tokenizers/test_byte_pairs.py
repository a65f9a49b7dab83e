import json
import random

import numpy as np
import pytest
import tensorflow as tf

from polyhead.data import BytePairs, Characters
from polyhead.data.tokenizers.byte_pairs import ALPHABET, END

POOLS = (
    "abc  \n\t'sdlltmrevé1٣²½",
    " \u00a0\u2003\u3000\x0b\x85\u200b\ufeff",
    "日本語漢字ひらがな",
    "😀👩\u200d👧🇩🇪",
    "\x00\x01\x1f\x7f\U0010ffff\U0010fffe\U0010fffd",
    "العربيةहिन्दीไทย",
    "!?.,;:()[]{}<|>_-^~`\"'",
)


def strange_texts(count):
    """Strings with characters for which tokenizers differ."""
    choose = random.Random(0)

    def piece():
        kind = choose.random()
        if kind < 0.08:
            return END
        if kind < 0.12:
            return chr(choose.choice([choose.randint(1, 0xD7FF), choose.randint(0xE000, 0x10FFFF)]))
        return choose.choice(choose.choice(POOLS))

    strange = ["".join(piece() for _ in range(choose.randint(0, 30))) for _ in range(count)]
    return [*strange, "", " ", "  a", "a  ", "a" * 500, "don't we'll  'll", "\n\n  x\n\n"]


@pytest.fixture(scope="module")
def pairs(sample):
    return BytePairs.train([*sample.sources, *sample.targets, "the  the\n\n 'll été"], 400)


@pytest.fixture(scope="module")
def peer(pairs, tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizer")
    pairs.save(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_tokens_equal_hugging_face(pairs, peer):
    texts = strange_texts(2000)
    expected = [encoding.ids for encoding in peer.encode_batch(texts)]
    assert pairs.encode(texts).to_list() == expected


def test_decoding_any_tokens_equals_python_and_hugging_face(pairs, peer):
    choose = random.Random(1)
    rows = [[choose.randrange(400) for _ in range(choose.randint(0, 12))] for _ in range(2000)]
    decoded = [text.decode() for text in pairs.decode(tf.ragged.constant(rows, tf.int32)).numpy()]
    assert decoded == [pairs.text(row).decode("utf-8", "replace") for row in rows]
    assert decoded == peer.decode_batch(rows, skip_special_tokens=True)


def test_decoding_restores_the_text(pairs):
    texts = [text.replace(END, "") for text in strange_texts(300)]
    assert [t.decode() for t in pairs.decode(pairs.encode(texts)).numpy()] == texts


def test_invalid_utf8_is_replaced(pairs):
    broken = b"a\xff\xe2\x82b\xf0\x9f\x98"
    [text] = pairs.decode(pairs.encode([broken])).numpy()
    assert text.decode() == broken.decode("utf-8", "replace")


def test_special_tokens_are_one_token_and_are_not_decoded(pairs):
    [row] = pairs.encode([f"a{END}b"]).to_list()
    assert row[1] == pairs.end_id == 0 and len(row) == 3
    assert pairs.decode([row]).numpy() == [b"ab"]
    assert pairs.decode([[*row, 399, 5000, -1]]).numpy()[0].startswith(b"ab")


def test_it_runs_in_a_graph_with_unknown_shapes(pairs):
    graph = tf.function(lambda texts: pairs.encode(texts).to_tensor(), [pairs.spec("text")])
    for texts in (["the dog", "  a"], [""], []):
        expected = pairs.encode(texts).to_tensor() if texts else np.zeros((0, 0))
        np.testing.assert_array_equal(graph(tf.constant(texts, tf.string)), expected)


def test_both_file_formats_are_read(pairs, tmp_path):
    pairs.save(tmp_path)
    again = BytePairs.load(tmp_path)
    assert (again.vocabulary, again.merges, again.special) == (
        pairs.vocabulary,
        pairs.merges,
        pairs.special,
    )
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps({**pairs.vocabulary, **pairs.special}))
    merges = "\n".join(" ".join(pair) for pair in pairs.merges)
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
    older = BytePairs.load(tmp_path, end=0)
    assert (older.vocabulary, older.merges, older.special) == (
        again.vocabulary,
        again.merges,
        again.special,
    )


def with_added(pairs, folder, **tokens):
    """Saves ``pairs`` with added tokens that are text to ``folder``; returns the file's path."""
    pairs.save(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for text, token in tokens.items():
        entry = {"id": token, "content": text, **flags, "special": False}
        content["added_tokens"].append(entry)
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_decoding_keeps_added_tokens_that_are_not_special(pairs, tmp_path):
    tokens = {"<tag>": 400, "two words": 401, "日本": 402, "été": 403}
    path = with_added(pairs, tmp_path, **tokens)
    added = BytePairs.load(tmp_path)
    texts = [f"a <tag>b{END} two words", "日本 in été", "<tag><tag>"]
    rows = added.encode(texts).to_list()
    assert [token for row in rows for token in row if token >= 400] == [
        400,
        401,
        402,
        403,
        400,
        400,
    ]
    decoded = [text.decode() for text in added.decode(tf.ragged.constant(rows)).numpy()]
    assert decoded == [text.replace(END, "") for text in texts]
    assert added.text(rows[2]) == b"<tag><tag>"

    before = json.loads(path.read_text("utf-8"))["added_tokens"]
    added.save(tmp_path)
    assert json.loads(path.read_text("utf-8"))["added_tokens"] == before
    again = BytePairs.load(tmp_path)
    assert (again.added, again.special) == (tokens, pairs.special)
    assert again.encode(texts).to_list() == rows


def test_decoding_added_tokens_equals_hugging_face(pairs, tmp_path):
    transformers = pytest.importorskip("transformers")
    path = with_added(pairs, tmp_path, **{"<tag>": 400, "two words": 401, "日本": 402})
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=END)
    ours = BytePairs.load(tmp_path)
    texts = [f"a <tag>b{END} two words", "日本 in", "<tag><tag>"]
    rows = ours.encode(texts).to_list()
    assert rows == theirs(texts)["input_ids"]
    expected = theirs.batch_decode(rows, skip_special_tokens=True)
    assert [text.decode() for text in ours.decode(tf.ragged.constant(rows)).numpy()] == expected


def test_merging_long_words_in_windows_equals_hugging_face(tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    choose = random.Random(0)

    def letters(count, of="abcdefghij"):
        return "".join(choose.choice(of) for _ in range(count))

    long = BytePairs.train([letters(9) for _ in range(5000)], 1000)
    long.save(tmp_path)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [letters(length) for length in (127, 128, 129, 191, 193, 3000)]
    texts += ["ab" * 700 + "c", "abc" * 700, "a" * 1001 + letters(999), letters(2000, "ab")]
    texts += ["the dog", "", letters(1000, "日本é"), f"{letters(300)}{END}{letters(300)}"]
    expected = [encoding.ids for encoding in peer.encode_batch(texts)]
    assert long.encode(texts).to_list() == expected

    sizes, merge = [], long._merge

    def counted(tokens, at, word):
        sizes.append(np.bincount(word.numpy()).max())
        return merge(tokens, at, word)

    monkeypatch.setattr(long, "_merge", counted)
    word = letters(20_000)
    assert long.encode([word]).to_list() == [peer.encode(word).ids]
    assert max(sizes) <= 2 * 128 and len(sizes) <= 3  # for words of any length

    # Windows that never agree with the first: the rounds grow with the logarithm of the word.
    dashes = BytePairs.train(["-" * 64] * 3, 270)
    dashes.save(tmp_path)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rounds, merge = [], dashes._merge
    monkeypatch.setattr(dashes, "_merge", lambda *x: rounds.append(1) or merge(*x))
    texts = [")" + "-" * 20_000, f"a{')' + '-' * 3000} {'-' * 900})", ")" + "-" * 129]
    assert dashes.encode(texts).to_list() == [peer.encode(text).ids for text in texts]
    assert len(rounds) <= 12


def test_unsupported_settings_are_refused(pairs, tmp_path, monkeypatch):
    pairs.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    sound = json.loads(path.read_text())

    def refused(message, **changes):
        content = json.loads(json.dumps(sound))
        for key, value in changes.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) else value
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"tokenizer.json: .*{message}"):
            BytePairs.load(tmp_path)

    refused("model must be of type BPE", model={"type": "WordPiece"})
    refused("the only supported normalizer is NFC", normalizer=[{"type": "NFC"}])
    steps = [{"type": "Digits"}, {"type": "ByteLevel", "add_prefix_space": True}]
    steps = {"type": "Sequence", "pretokenizers": steps}
    refused("must not add a prefix space after another step", pre_tokenizer=steps)
    refused("a merge is not of pieces", model={"merges": [["a", "zz"]]})
    refused("no token for the bytes", model={"vocab": {"a": 1}})
    refused("needs the special token", added_tokens=[])
    refused("tokens must be integers from 0", model={"vocab": {**sound["model"]["vocab"], "a": -1}})
    same = {**sound["model"]["vocab"], ALPHABET[0]: 5, ALPHABET[1]: 5}
    refused("have the same token", model={"vocab": same})
    refused("model must have a vocab", model={"vocab": None})
    refused("model must have a list of merges", model={"merges": {}})
    refused("a merge is not of pieces", model={"merges": [5]})
    refused("a merge is not of pieces", model={"merges": [[["a"], "b"]]})
    refused("an added token must have an id and a content", added_tokens=["a"])
    monkeypatch.setattr("polyhead.data.tokenizers.byte_pairs.MOST", 300)
    refused("a vocabulary must have at most 300 pieces: 400")
    monkeypatch.undo()
    for content, message in (
        ("{", "is not valid JSON: "),
        ("{}", "model must be of type BPE"),
        ("[]", "must hold a JSON object, not a list"),
        ("[" * 100_000, "is not valid JSON: it is nested too deeply"),
        ('{"model": [1]}', "model and pre_tokenizer must be objects"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"tokenizer.json:? {message}"):
            BytePairs.load(tmp_path)
    path.rename(tmp_path / "vocab.json")
    (tmp_path / "vocab.json").write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match="vocab.json is not valid JSON: it is nested too deeply"):
        BytePairs.load(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(sound["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(ValueError, match="merges.txt: a merge is not of pieces"):
        BytePairs.load(tmp_path)


def test_training_a_vocabulary_needs_text_and_enough_tokens():
    with pytest.raises(ValueError, match="cannot be learned without text"):
        BytePairs.train(["", ""])
    with pytest.raises(ValueError, match="need vocab_size >= 257: 256"):
        BytePairs.train(["abc"], 256)


def test_a_vocabulary_can_have_only_bytes():
    bytes_alone = BytePairs.train(["ab"], 257)
    assert bytes_alone.merges == []
    rows = bytes_alone.encode(["abé", ""]).to_list()
    assert [len(row) for row in rows] == [4, 0]
    assert bytes_alone.decode(rows[:1]).numpy()[0].decode() == "abé"


def test_characters_are_tokens(tmp_path):
    characters = Characters.train(["To be, or not\nto be: é😀"])
    texts = ["be not\n", "", "é😀"]
    rows = characters.encode(texts)
    assert rows.row_lengths().numpy().tolist() == [7, 0, 2]
    assert [t.decode() for t in characters.decode(rows).numpy()] == texts
    characters.save(tmp_path)
    assert Characters.load(tmp_path).characters == characters.characters
    for _ in range(12):  # also after the calls after which other tokenizers are traced
        with pytest.raises(ValueError, match="the vocabulary has no characters 'xz'"):
            characters.encode(["xbez"])
    graph = tf.function(lambda texts: characters.encode(texts).to_tensor())
    assert graph(tf.constant(["xb"])).numpy()[0, 0] == 0
    with pytest.raises(ValueError, match="each character once: 'aa'"):
        Characters("aa")
