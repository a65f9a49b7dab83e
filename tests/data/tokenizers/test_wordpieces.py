"""Compares `WordPieces` with Hugging Face's `tokenizers`."""

import itertools
import json
import random
import unicodedata

import pytest
import tensorflow as tf

from polyhead.data import WordPieces
from polyhead.data.tokenizers import load, normalization
from polyhead.data.tokenizers.tokenizer import EAGER

tokenizers = pytest.importorskip("tokenizers")

POINTS = [point for point in range(1, 0x110000) if not 0xD800 <= point < 0xE000]
SOME = [*range(1, 0x700), *POINTS[0x700::61]]
# A mark that is not removed with accents. Among marks that are, and that Unicode's normalization
# puts in another order, Hugging Face counts its place by the new order.
KEPT = "\N{HANGUL SINGLE DOT TONE MARK}"
MARKS = ["\u0301", "\u0323", "\u0338", KEPT, "\u0f71", "\u0344", "\u1161", "\u11a8", "\u0897"]
PARTS = [
    *"  \n\t\rabcdefghijklmnopqrstuvwxyzABCDEFGHIŞİıßﬁŉ0123456789.,!?'\"-_()[]{}<|>$^~`@#",
    *("[MASK]", "[SEP]", "[PAD]", "[mask]", "[MA\u200bSK]", "[UNK]", "MASK", "##ing", "##"),
    *"éüñçÅÉàΣσςΟΔЖжйё中文字日本ひらがな각한कख़तिกำअآلعر\u00a0\u0085\u2028\u3000\u200b\u200d\ufeff\u00ad",
    *("\x00", "\ufffd", "\ue000", "😀", "👩\u200d👧", "…", "—", "“", "№", "²", "𝕏", "\U0001e900"),
    *(
        "the ",
        "a ",
        " in",
        " man",
        "woman ",
        "ing ",
        "two ",
        "walk",
        "e\u0301",
        "A\u030a",
        "\u212b",
    ),
]
CASES = [(True, None, True), (True, False, True), (False, None, True), (False, True, False)]


def random_texts(count, seed=0, parts=PARTS):
    choose = random.Random(seed)

    def part():
        if choose.random() < 0.05:
            return chr(choose.choice(POINTS))
        return choose.choice(MARKS if choose.random() < 0.05 else parts)

    strange = ["".join(part() for _ in range(choose.randint(0, 30))) for _ in range(count)]
    long = ["a" * 100, "a" * 101, "ж" * 100 + "!", "ж" * 101, "é" * 120, "x" * 5000]
    return [*strange, *long, "", " ", "\x00", "ΟΔΟΣ ΑΣ", "a[MASK]b [SEP]", "[MA\x00SK]"]


@pytest.fixture(scope="module")
def learned(sample):
    return WordPieces.train([*sample.sources, *sample.targets, "两只狗 ёж άλφα", "[(-.,!?)]"], 700)


def changed(tokenizer, lowercase, strip_accents=None, split_chinese=True, **options):
    return WordPieces(
        tokenizer.vocabulary,
        lowercase,
        strip_accents=strip_accents,
        split_chinese=split_chinese,
        **options,
    )


def peer_of(tokenizer, folder):
    tokenizer.save(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def differences(ours, theirs, texts):
    ids, starts, ends = (rows.to_list() for rows in ours.offsets(texts))
    assert ours.encode(texts, add_special_tokens=False).to_list() == ids
    places = [list(zip(*rows, strict=True)) for rows in zip(starts, ends, strict=True)]
    found = theirs.encode_batch(texts, add_special_tokens=False)
    return [
        (text, encoding.tokens, encoding.offsets, row, place)
        for text, encoding, row, place in zip(texts, found, ids, places, strict=True)
        if encoding.ids != row or (encoding.offsets != place and KEPT not in text)
    ]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [500, pytest.param(30000, marks=pytest.mark.slow)])
def test_tokens_and_offsets_equal_hugging_face(learned, tmp_path, count, case):
    ours = changed(learned, *case)
    different = differences(ours, peer_of(ours, tmp_path), random_texts(count))
    assert not different, (len(different), different[:2])


LONG = [pytest.mark.slow, pytest.mark.long]
SWEEPS = [
    *((case, SOME) for case in CASES),
    pytest.param(CASES[0], POINTS, marks=pytest.mark.slow),
    *(pytest.param(case, POINTS, marks=LONG) for case in CASES[1:]),
]


@pytest.mark.parametrize("case, points", SWEEPS)
def test_every_code_point_is_normalized_and_split_as_in_hugging_face(case, points):
    lowercase, strip, chinese = case
    reference = tokenizers.normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip, handle_chinese_chars=chinese
    )
    steps = normalization.list_steps(lowercase, lowercase if strip is None else strip, chinese)
    split = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    for form in ("Ab{}Cd x", "{}", "e\u0301{}\u0323", "I {}S"):
        texts = [form.format(chr(point)) for point in points]
        normal = tf.constant(texts)
        for step in steps:
            normal = step(normal)
        expected = [reference.normalize_str(text) for text in texts]
        found = [text.decode() for text in normal.numpy()]
        assert found == expected
        words = normalization.text_operations().regex_split(normal, *normalization.WORDS)
        words = [[word.decode() for word in row] for row in words.to_list()]
        assert words == [[word for word, _ in split(text)] for text in expected]


def expand(ranges):
    for part in ranges.split():
        first, last = (int(point, 16) for point in (part.split("-") * 2)[:2])
        yield from range(first, last + 1)


@pytest.mark.parametrize("points", [SOME, pytest.param(POINTS, marks=pytest.mark.slow)])
def test_classes_of_characters_are_those_of_the_library(points):
    def normalizer(**options):
        names = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
        return tokenizers.normalizers.BertNormalizer(**{**dict.fromkeys(names, False), **options})

    clean, chinese = normalizer(clean_text=True), normalizer(handle_chinese_chars=True)
    accents = normalizer(strip_accents=True)
    split = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    found = {name: set() for name in ("CONTROL", "BLANK", "IDEOGRAPH", "MARK", "PUNCTUATION")}
    for point in points:
        c = chr(point)
        text = f"a{c}b"
        cleaned = clean.normalize_str(text)
        for name, is_one in (
            ("CONTROL", cleaned == "ab"),
            ("BLANK", cleaned == "a b" and c != " "),
            ("IDEOGRAPH", chinese.normalize_str(c) == f" {c} "),
            ("MARK", accents.normalize_str(text) == "ab"),
            ("PUNCTUATION", [word for word, _ in split(text)] == ["a", c, "b"]),
        ):
            if is_one:
                found[name].add(point)
    for name, expected in found.items():
        assert {*expand(getattr(normalization, name))} & {*points} == expected, name


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("points", [SOME, pytest.param(POINTS, marks=pytest.mark.slow)])
def test_unicode_is_normalized_as_in_the_library(points, form):
    nfc = normalization.text_operations().normalize_utf8
    reference = getattr(tokenizers.normalizers, form)().normalize_str
    choose = random.Random(0)
    newer = [chr(point) for point in expand(normalization.NEWER)]
    marks = [*newer, *map(chr, range(0x300, 0x370)), *"aoueAÅéᄀ가", "\u1161", "\u11a8", *MARKS]
    texts = [f"a\u0301{chr(point)}\u0334" for point in points]
    texts += ["".join(choose.choices(marks, k=choose.randint(1, 8))) for _ in range(5000)]
    found = normalization.normalize(tf.constant(texts), lambda texts: nfc(texts, form)).numpy()
    assert [text.decode() for text in found] == [reference(text) for text in texts]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_marks_are_ordered_in_a_time_that_grows_with_their_number(form):
    operation = normalization.text_operations().normalize_utf8

    def normalize(text):
        return normalization.normalize(tf.constant([text]), lambda x: operation(x, form)).numpy()[0]

    def reference(text):
        return unicodedata.normalize(form, text)

    marks = "\u0301\u0323\u05b4"
    assert normalize("e" + 10 * marks).decode() == reference("e" + 10 * marks)
    text = "e" + 22 * marks + "é"
    cut = reference(text[:31]) + reference(text[31:62]) + reference(text[62:])
    assert normalize(text).decode() == cut
    assert len(normalize("e" + 200_000 * marks)) == 1_200_001  # takes an hour if all are ordered


def test_decoding_any_tokens_equals_hugging_face(learned, tmp_path):
    choose = random.Random(1)
    rows = [[choose.randrange(700) for _ in range(choose.randint(0, 12))] for _ in range(1000)]
    extra = learned.encode(["do not, don't. I'm we've (a) they 're ' x"]).to_list()
    rows += extra
    for cleanup in (True, False):
        ours = changed(learned, True, cleanup=cleanup)
        decoded = [t.decode() for t in ours.decode(tf.ragged.constant(rows, tf.int32)).numpy()]
        theirs = peer_of(ours, tmp_path)
        assert decoded == theirs.decode_batch(rows, skip_special_tokens=True)
    unknown = [[*extra[0], 5000, -1]]
    assert learned.decode(unknown).numpy() == learned.decode(extra).numpy()
    assert learned.decode(tf.zeros([2, 3], tf.int32)).numpy().tolist() == [b"", b""]


def test_invalid_utf8_is_replaced(learned):
    broken = b"a\xff\xe2\x82 dog\xf0\x9f\x98"
    [row] = learned.encode([broken]).to_list()
    assert row == learned.encode([broken.decode("utf-8", "replace")]).to_list()[0]
    assert row == learned.encode(["a dog"]).to_list()[0]


@pytest.mark.parametrize("lowercase", [True, False])
def test_added_tokens_are_found_as_in_hugging_face(learned, tmp_path, lowercase):
    texts = ["Straße", "New York", "[ENT]", "été", "[MASK]"]
    added = {text: 700 + i for i, text in enumerate(texts[:4])}
    special = {**learned.special, "[/ENT]": 704}
    ours = changed(
        learned,
        lowercase,
        special=special,
        added=added,
        flags={
            "normalized": ["Straße", "New York", "été"],
            "lstrip": ["[MASK]", "New York"],
            "rstrip": ["[/ENT]"],
        },
    )
    assert ours.vocab_size == 705
    parts = [*PARTS, *texts * 3, "[/ENT]", "new york", "NEW YORK", "ete", "straße", " [MASK] "]
    theirs = peer_of(ours, tmp_path)
    different = differences(ours, theirs, random_texts(1000, parts=parts))
    assert not different, (len(different), different[:2])
    again = load(tmp_path)
    assert (again.special, again.added) == (special, added)
    assert not differences(again, theirs, random_texts(100, seed=1, parts=parts))
    rows = ours.encode(["a New York [ENT] x [/ENT]"]).to_list()
    assert 704 in rows[0]
    expected = theirs.decode_batch(rows, skip_special_tokens=True)
    assert [text.decode() for text in ours.decode(rows).numpy()] == expected


def test_calls_from_python_are_traced_after_a_few(learned):
    tokenizer = changed(learned, True)
    texts = random_texts(5)

    def calls(texts):
        found = [
            tokenizer.encode(texts, 7),
            *tokenizer.encode_pairs(texts, texts[::-1], max_length=9),
        ]
        return [rows.to_list() for rows in found]

    expected = calls(texts)
    for _ in range(EAGER - 1):
        calls(texts[:1])
    assert {*vars(tokenizer)["_runs"].values()} == {EAGER}
    assert calls(texts) == expected
    assert not any(isinstance(run, int) for run in vars(tokenizer)["_runs"].values())
    assert calls(texts[:2]) == calls(texts[:2])
    children = tokenizer._trackable_children("savedmodel")  # what an export saves
    assert not any(
        isinstance(child, tf.types.experimental.PolymorphicFunction) for child in children
    )


def test_ids_of_special_tokens(learned):
    assert [learned.pad_id, learned.cls_id, learned.sep_id, learned.mask_id] == [0, 2, 3, 4]
    assert (learned.prefix, learned.suffix, learned.end_id) == ((2,), (3,), 3)
    assert (learned.separator, learned.pair_type, learned.mask_token) == ((3,), 1, "[MASK]")
    assert learned.tokens("a [MASK] zürich")[:3] == ["[CLS]", "a", "[MASK]"]
    assert changed(WordPieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]"]), True).mask_id is None


@pytest.mark.slow
def test_a_saved_model_tokenizes(learned, tmp_path):
    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def __call__(self, text):
            ids, starts, ends = learned.offsets(text)
            return [row.to_tensor() for row in (ids, starts, ends)] + [learned.decode(ids)]

    module = Module()
    module.tokenizer = learned
    texts = tf.constant([text for text in random_texts(50) if text] + [""])
    expected = module(texts)
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for found, tensor in zip(loaded(texts), expected, strict=True):
        assert found.numpy().tolist() == tensor.numpy().tolist()
    assert all(rows.shape[0] == 0 for rows in loaded(tf.constant([], tf.string)))


def test_files_are_read_back_by_us_and_by_hugging_face(learned, tmp_path):
    transformers = pytest.importorskip("transformers")
    texts = [text for text in random_texts(200) if "[" not in text]
    for lowercase, strip, chinese in CASES:
        ours = changed(learned, lowercase, strip, chinese)
        ours.save(tmp_path)
        rows = ours.encode(texts).to_list()
        theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
        assert theirs(texts)["input_ids"] == rows
        assert theirs.mask_token_id == ours.mask_id
        assert load(tmp_path).encode(texts).to_list() == rows
        (tmp_path / "tokenizer.json").unlink()  # vocab.txt and tokenizer_config.json remain
        older = load(tmp_path)
        assert (older.vocabulary, older.lowercase) == (ours.vocabulary, lowercase)
        assert older.encode(texts).to_list() == rows


def test_truncation_and_padding_of_a_file_are_ignored(learned, tmp_path):
    theirs = peer_of(learned, tmp_path)
    texts = ["a dog runs in the park " * 3, "a"]
    expected = [encoding.ids for encoding in theirs.encode_batch(texts)]
    theirs.enable_truncation(5)
    theirs.enable_padding(length=128)
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert load(tmp_path).encode(texts).to_list() == expected


def test_training_is_reproducible_and_equals_no_other_case(sample):
    texts = sample.sources
    first = WordPieces.train(texts, 300)
    assert first.vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(first.vocabulary) == first.vocab_size == 300
    assert WordPieces.train(iter(texts), 300).vocabulary == first.vocabulary
    assert not any(piece != piece.lower() for piece in first.vocabulary[5:])
    rows = first.encode(texts, add_special_tokens=False)
    assert not tf.reduce_any(rows.flat_values == 1)
    cased = WordPieces.train(texts, 300, lowercase=False)
    assert any(piece != piece.lower() for piece in cased.vocabulary[5:]) and not cased.lowercase
    with pytest.raises(ValueError, match="cannot be learned without text"):
        WordPieces.train(["", "\n"])
    with pytest.raises(ValueError, match="3 characters need vocab_size >= 11: 10"):
        WordPieces.train(["ab c"], 10)
    assert WordPieces.train(["ab c"], 11).vocab_size == 11


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize(
    "lines, message",
    [
        ([], "line 1 is empty"),
        (["[PAD]", "a"], r"lacks the special tokens \['\[UNK\]', '\[CLS\]', '\[SEP\]'\]"),
        ([*SPECIAL, "a", "b", "a"], "a piece is in the vocabulary twice: 'a'"),
        ([*SPECIAL, "a", "", "b"], "line 7 is empty"),
        ([*SPECIAL, "a\0b"], "without zero characters"),
        ([*SPECIAL, "a" * 300], "a piece is not supported: .*256"),
    ],
)
def test_an_invalid_vocabulary_is_refused_by_name(tmp_path, lines, message):
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"vocab.txt: .*{message}") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_vocab_txt_is_read_with_its_settings(tmp_path):
    (tmp_path / "vocab.txt").write_text("\r\n".join([*SPECIAL, "A", "a", "##b", "[X]"]) + "\r\n")
    assert load(tmp_path).encode(["Ab"]).to_list() == [[2, 6, 7, 3]]
    config = {"do_lower_case": False, "mask_token": {"content": "[MASK]"}}
    config["added_tokens_decoder"] = {"8": {"content": "[X]", "special": True}}

    def write(**more):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **more}))

    write()
    tokenizer = load(tmp_path)
    assert tokenizer.encode(["Ab[X]"]).to_list() == [[2, 5, 7, 8, 3]]
    for message, more in (
        ("do_lower_case must be true, false or null: 'no'", {"do_lower_case": "no"}),
        ("do_basic_tokenize must be true", {"do_basic_tokenize": False}),
        (r"cls_token must be '\[CLS\]': '<s>'", {"cls_token": "<s>"}),
        ("an added token must have", {"added_tokens_decoder": {"8": {}}}),
        ("", {"added_tokens_decoder": {"x": {}}}),
        ("", {"added_tokens_decoder": [1]}),
    ):
        write(**more)
        with pytest.raises(ValueError, match=f"tokenizer_config.json: .*{message}"):
            load(tmp_path)
    write()
    (tmp_path / "added_tokens.json").write_text("{}")
    assert load(tmp_path).vocabulary == tokenizer.vocabulary
    (tmp_path / "added_tokens.json").write_text('{"[X]": 8}')
    with pytest.raises(ValueError, match="added_tokens.json is not supported without"):
        load(tmp_path)


def test_unsupported_settings_are_refused_by_name(learned, tmp_path):
    learned.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    sound = json.loads(path.read_text("utf-8"))
    vocab = sound["model"]["vocab"]

    def refused(message, **changes):
        content = json.loads(json.dumps(sound))
        for key, value in changes.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) else value
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"tokenizer.json: .*{message}") as error:
            load(tmp_path)
        assert "\n" not in str(error.value)

    without = {piece: i for piece, i in vocab.items() if piece != "[UNK]"}
    refused(r"lacks the unknown token '\[UNK\]'", model={"vocab": without})
    refused("model must have a vocab of pieces and ids", model={"vocab": [*vocab]})
    refused("ids must be integers from 0", model={"vocab": {**vocab, "a": -1}})
    refused("ids must be integers from 0", model={"vocab": {**vocab, "a": 2**40}})
    refused("two pieces of the vocabulary have the same id", model={"vocab": {**vocab, "zz": 1}})
    refused("the prefix of pieces must be '##'", model={"continuing_subword_prefix": "@@"})
    for longest in (0, 10**12):
        refused("max_input_chars_per_word must be", model={"max_input_chars_per_word": longest})
    refused("unk_token must be a string", model={"unk_token": None})
    refused("only supported normalizer is BertNormalizer: .*NFKC", normalizer={"type": "NFKC"})
    refused("only supported normalizer is BertNormalizer", normalizer=None)
    refused("clean_text must be true", normalizer={"clean_text": False})
    refused("strip_accents must be true, false or null", normalizer={"strip_accents": "x"})
    refused("only supported pre_tokenizer is Bert", pre_tokenizer={"type": "Whitespace"})
    refused("only supported decoder is WordPiece: .*BPE", decoder={"type": "BPEDecoder"})
    refused("post_processor has an unknown type: 'X'", post_processor={"type": "X"})
    refused(
        "single_word of an added token", added_tokens=[{"id": 9, "content": "x", "single_word": 1}]
    )
    refused("ids must be integers from 0", added_tokens=[{"id": "9", "content": "x"}])
    refused("added token must be a string, not ''", added_tokens=[{"id": 9, "content": ""}])
    for token in ("3", 10**9, -1):
        ends = {"type": "BertProcessing", "sep": ["[SEP]", token], "cls": ["[CLS]", 2]}
        refused("tokens around a text must be from 0 to", post_processor=ends)
    refused(
        r"lacks the special tokens \['\[PAD\]'\]", model={"vocab": {"[UNK]": 0}}, added_tokens=[]
    )
    path.write_text(
        json.dumps({**sound, "normalizer": {**sound["normalizer"], "lowercase": False}})
    )
    with pytest.raises(ValueError, match="tokenizer_config.json: do_lower_case is True, but False"):
        load(tmp_path)


def test_gaps_in_a_vocabulary_have_no_piece(tmp_path):
    pieces = ["[PAD]", "", "[UNK]", "[CLS]", "[SEP]", "", "a", "##b"]
    gaps = WordPieces(pieces)
    assert gaps.encode(["ab a c"]).to_list() == [[3, 6, 7, 6, 2, 4]]
    assert gaps.decode([[1, 6, 5, 7]]).numpy() == [b"ab"]
    assert not differences(gaps, peer_of(gaps, tmp_path), ["ab", "1 is unused", "[unused 1]", "b"])
    assert load(tmp_path).vocabulary == pieces


def test_offsets_are_places_in_the_text(learned):
    for text in ("Zwei Hunde laufen über die Straße.", "e\u0301t\u00e9 \U0001f600 dog", "两只狗"):
        _, starts, ends = (rows.to_list()[0] for rows in learned.offsets([text]))
        assert starts == sorted(starts) and ends == sorted(ends)
        shown = "".join(text[a:b] for a, b in itertools.pairwise([*starts, len(text)]))
        assert shown.strip() == text
