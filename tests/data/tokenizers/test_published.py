"""Compares published tokenizer files with the `tokenizers` library."""

import io
import json
import random
from types import SimpleNamespace

import pytest
import sentencepiece
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2 as protos
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre

from polyhead.data import BytePairs, Characters, MarianPieces, Subwords, WordPieces
from polyhead.data.tokenizers import load
from polyhead.data.tokenizers.byte_pairs import END
from polyhead.data.tokenizers.splits import PATTERNS
from polyhead.zoo import CausalLM
from tests.data.tokenizers.test_splits import POINTS

PARTS = [
    *"  \n\n\r\tabcdefghiABCDE0123.,!?'\"-()éüñ中文字ا\x00\U0010ffff\u00a0\u0085\u2028",
    *("the ", "ing ", " of", "  ", "   ", "\n\n", "😀", "\u200b", "▁", "e\u0301", "'s", "12", "Å"),
]
ADDED = ["<s>", "</s>", "<mask>", "<tag>", END]


def random_texts(count, parts=PARTS, seed=0):
    choose = random.Random(seed)
    return ["".join(choose.choices(parts, k=choose.randint(0, 30))) for _ in range(count)]


def check(folder, peer, texts, **options):
    """Checks that ``peer``'s file, loaded, saved and loaded again, gives equal ids."""
    peer.save(str(folder / "tokenizer.json"))
    ours = load(folder, **options)
    (folder / "again").mkdir(exist_ok=True)
    ours.save(folder / "again")
    again = load(folder / "again", **options)
    rows = ours.encode(texts).to_list()
    expected = [encoding.ids for encoding in peer.encode_batch(texts)]
    different = [(t, a, b) for t, a, b in zip(texts, rows, expected, strict=True) if a != b]
    assert not different, (len(different), different[:3])
    assert again.encode(texts[:100]).to_list() == rows[:100]
    assert (again.prefix, again.suffix) == (ours.prefix, ours.suffix)
    plain = [encoding.ids for encoding in peer.encode_batch(texts, add_special_tokens=False)]
    assert ours.encode(texts, add_special_tokens=False).to_list() == plain
    decoded = [t.decode() for t in ours.decode(tf.ragged.constant(rows, tf.int32)).numpy()]
    assert decoded == peer.decode_batch(rows, skip_special_tokens=True)
    return ours


@pytest.fixture(scope="module")
def learned(sample):
    """Vocabulary and merges of a byte-level tokenizer."""
    pairs = BytePairs.train([*sample.sources, *sample.targets], 500)
    # Words that merges do not produce: only `ignore_merges` finds them.
    return {END: 0, **pairs.vocabulary, "Ġxyz": 500, "abcABC": 501}, pairs.merges


def byte_level(learned, split=None, before=(), **options):
    peer = Tokenizer(models.BPE(*learned, **options))
    steps = [*before, pre.Split(Regex(split), "isolated")] if split else [*before]
    peer.pre_tokenizer = pre.Sequence([*steps, pre.ByteLevel(False, use_regex=not split)])
    peer.decoder = decoders.ByteLevel()
    return peer


def test_llama_3_is_read(learned, tmp_path):
    peer = byte_level(learned, PATTERNS["Llama 3"], ignore_merges=True)
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    peer.add_special_tokens([begin, end])
    ids = [(begin, peer.token_to_id(begin))]
    template = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=ids)
    peer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    texts = [*random_texts(500, [*PARTS, begin, end, " xyz"]), "a xyz", "abcABC"]
    ours = check(tmp_path, peer, texts, end=peer.token_to_id(end))
    assert ours.prefix == (ids[0][1],) and ours.suffix == ()
    assert 500 in ours.encode(["a xyz"]).to_list()[0]

    # A prompt starts with the begin token exactly once, also if truncated or empty.
    ids, count = ours.prompts([f"{begin}ab", "ab", "", "c" * 50], 5)
    rows = [row[5 - n :] for row, n in zip(ids.numpy().tolist(), count.numpy(), strict=True)]
    assert rows[0] == rows[1] == ours.encode(["ab"]).to_list()[0]
    assert rows[2] == [*ours.prefix]
    assert rows[3] == [*ours.prefix, *ours.encode(["c" * 50]).to_list()[0][-4:]]
    model = SimpleNamespace(tokenizer=ours, config=SimpleNamespace(max_length=6))
    with pytest.warns(UserWarning, match="1 of 4 prompts were truncated to their last 5 tokens"):
        texts = [f"{begin}ab", "ab", "", "c" * 50]
        assert CausalLM._prompts(model, texts, 1, truncate=True) == rows


def test_qwen_2_is_read(learned, tmp_path):
    peer = byte_level(learned, PATTERNS["Qwen 2"])
    peer.normalizer = normalizers.NFC()
    peer.add_special_tokens([END, "<|im_start|>"])
    peer.add_tokens([AddedToken("<tag>", normalized=False), AddedToken("  ", normalized=True)])
    check(tmp_path, peer, random_texts(500, [*PARTS, END, "<tag>", "A\u030a"]))


def test_smollm_2_splits_digits(learned, tmp_path):
    peer = byte_level(learned, before=[pre.Digits(individual_digits=True)])
    peer.add_special_tokens([END])
    check(tmp_path, peer, random_texts(500, [*PARTS, "1", "२", " 3", "Ⅷ"]))


def test_roberta_adds_tokens_and_its_mask_includes_white_space(learned, tmp_path):
    peer = byte_level(learned)
    peer.add_special_tokens(["<s>", "</s>", AddedToken("<mask>", lstrip=True, normalized=False)])
    peer.add_special_tokens([AddedToken("<x>", lstrip=True, rstrip=True, normalized=False)])
    around = [(name, peer.token_to_id(name)) for name in ("</s>", "<s>")]
    peer.post_processor = processors.RobertaProcessing(*around, add_prefix_space=False)
    texts = random_texts(500, [*PARTS, "<mask>", " <mask>", "\n<mask>", "</s>", " <x> ", "<x>"])
    ours = check(tmp_path, peer, texts, end=around[0][1])
    assert (ours.prefix, ours.suffix) == ((around[1][1],), (around[0][1],))
    assert ours.tokens("a") == ["<s>", "a", "</s>"]
    assert ours.encode(["a b c d e"], max_length=4).row_lengths().numpy() == [4]


def test_unknown_patterns_and_steps_are_refused_by_name(learned, tmp_path):
    def refused(message, peer):
        peer.add_special_tokens([END])
        peer.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ValueError, match=f"tokenizer.json: .*{message}"):
            load(tmp_path)

    refused(r"unknown pattern: .*\\\\p\{L\}\+\|\.", byte_level(learned, r"\p{L}+|."))
    digits = pre.Digits(individual_digits=False)
    refused("a step that is not supported: .*Digits", byte_level(learned, before=[digits]))
    peer = byte_level(learned)
    peer.normalizer = normalizers.Lowercase()
    refused("only supported normalizer is NFC: .*Lowercase", peer)
    peer = byte_level(learned)
    peer.add_tokens([AddedToken("word", single_word=True)])
    refused("single_word of an added token is not supported: 'word'", peer)


def trained(texts, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, minloglevel=2, **options
    )
    return model.getvalue()


def bpe_of(model):
    """Converts a SentencePiece model to BPE as Hugging Face's converter does."""
    proto = protos.ModelProto.FromString(model)
    scores = {p.piece: p.score for p in proto.pieces}
    vocabulary = {p.piece: i for i, p in enumerate(proto.pieces)}
    merges = [
        (-scores[piece], i, vocabulary[piece[:j]], (piece[:j], piece[j:]))
        for piece, i in vocabulary.items()
        for j in range(1, len(piece))
        if proto.pieces[i].type == 1 and {piece[:j], piece[j:]} <= vocabulary.keys()
    ]
    merges = [pair for *_, pair in sorted(merges)]
    return models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


@pytest.fixture(scope="module")
def with_bytes(sample):
    return trained(
        sample.sources + sample.targets,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
    )


def llama(model, **space):
    peer = Tokenizer(bpe_of(model))
    if space:
        peer.pre_tokenizer = pre.Metaspace(split=False, **space)
    else:
        replace = normalizers.Replace(" ", "▁")
        peer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    peer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    peer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    ids = [("<s>", peer.token_to_id("<s>"))]
    peer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=ids)
    return peer


TEXTS = random_texts(700, [*(p for p in PARTS if p != "\x00"), "<s>", "</s>"], seed=1)


@pytest.mark.parametrize(
    "space", [{}, {"prepend_scheme": "always"}, {"prepend_scheme": "first"}], ids=str
)
def test_llama_2_is_rebuilt_from_json(with_bytes, tmp_path, space):
    ours = check(tmp_path, llama(with_bytes, **space), TEXTS)
    assert isinstance(ours, Subwords) and ours.prefix == (ours.start_id,) == (1,)
    assert ours.end_id == ours.pad_id == 2


def test_gemma_is_rebuilt_from_json(with_bytes, tmp_path):
    peer = Tokenizer(bpe_of(with_bytes))
    peer.normalizer = normalizers.Replace(" ", "▁")
    peer.pre_tokenizer = pre.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    peer.decoder = decoders.Sequence(steps)
    peer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    peer.add_special_tokens([AddedToken("<start_of_turn>", normalized=False)])
    peer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<b>", normalized=False)])
    check(tmp_path, peer, [*TEXTS, "<start_of_turn>user\n\n<b>a</b>"])


@pytest.fixture(scope="module")
def t5(sample):
    return trained(
        sample.sources + sample.targets,
        model_type="unigram",
        vocab_size=300,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )


def t5_peer(model):
    proto = protos.ModelProto.FromString(model)
    peer = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], 2, False))
    peer.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    always = pre.Metaspace(prepend_scheme="always")
    peer.pre_tokenizer = pre.Sequence([pre.WhitespaceSplit(), always])
    peer.decoder = decoders.Metaspace(prepend_scheme="always")
    peer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    names = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in reversed(range(100)))]
    peer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return peer


# Hugging Face drops zero bytes, and a combining mark after some characters that its table maps.
T5_PARTS = [p for p in PARTS if "\u0301" not in p and p not in ("\x00", "▁")]
T5_TEXTS = random_texts(700, [*T5_PARTS, "<extra_id_0>", "<extra_id_42>", "ﬁ", "²", "…"], seed=2)


def test_t5_is_rebuilt_from_json(t5, tmp_path):
    ours = check(tmp_path, t5_peer(t5), T5_TEXTS)
    assert (ours.pad_id, ours.start_id, ours.end_id, ours.suffix) == (0, 0, 1, (1,))


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
def test_t5_is_read_from_its_model_with_sentinels(t5, tmp_path, name):
    (tmp_path / name).write_bytes(t5)
    ours, peer = load(tmp_path), t5_peer(t5)
    assert (ours.vocab_size, ours.pad_id, ours.start_id, ours.end_id) == (400, 0, 0, 1)
    rows = ours.encode(T5_TEXTS).to_list()
    assert rows == [encoding.ids for encoding in peer.encode_batch(T5_TEXTS)]
    assert ours.tokens("<extra_id_0>.")[0] == "<extra_id_0>" and rows[0][-1] == 1
    assert ours.encode(["<extra_id_0>"]).to_list() == [[399, 1]]
    ours.save(tmp_path)
    assert load(tmp_path).encode(T5_TEXTS[:50]).to_list() == rows[:50]


def test_llama_and_gemma_are_read_and_text_never_is_a_control_token(with_bytes, sample, tmp_path):
    processor = sentencepiece.SentencePieceProcessor(model_proto=with_bytes)
    (tmp_path / "tokenizer.model").write_bytes(with_bytes)
    ours = load(tmp_path)
    assert (ours.prefix, ours.suffix, ours.pad_id, ours.end_id) == ((1,), (), 2, 2)
    assert ours.encode(TEXTS).to_list() == [[1, *processor.encode(text)] for text in TEXTS]
    gemma = trained(
        sample.sources,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        add_dummy_prefix=False,
        **dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, bos_piece="<bos>", eos_piece="<eos>"),
    )
    (tmp_path / "tokenizer.model").write_bytes(gemma)
    ours = load(tmp_path)
    assert (ours.prefix, ours.suffix, ours.pad_id, ours.end_id) == ((2,), (), 0, 1)
    row = ours.encode(["<bos>é"], add_special_tokens=False).to_list()[0]
    assert not {0, 1, 2} & set(row)
    assert ours.text(row).decode() == ours.decode([row]).numpy()[0].decode() == "<bos>é"


def test_the_tokenizer_is_selected_by_file_content(sample, tokenizer, learned, tmp_path):
    assert load(tmp_path) is None
    tokenizer.save(tmp_path)
    ours = load(tmp_path)
    assert isinstance(ours, Subwords) and (ours.prefix, ours.suffix) == ((), (2,))
    pairs = BytePairs.train(sample.sources, 300)
    pairs.save(tmp_path)  # tokenizer.json has priority
    assert isinstance(load(tmp_path), BytePairs)
    Characters("ab").save(tmp_path)
    assert isinstance(load(tmp_path), Characters)
    marian = tmp_path / "marian"
    marian.mkdir()
    table = {"<unk>": 0, "</s>": 1, "<pad>": 2}
    MarianPieces(tokenizer.model, tokenizer.model, table).save(marian)
    assert isinstance(load(marian), MarianPieces)
    (marian / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece"}}))
    (marian / "source.spm").unlink()
    (marian / "target.spm").unlink()
    with pytest.raises(ValueError, match="tokenizer.json: model must have a vocab of pieces"):
        load(marian)
    (marian / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel"}}))
    with pytest.raises(ValueError, match="tokenizer.json: model must be of type BPE"):
        load(marian)
    WordPieces.train(sample.sources, 200).save(tmp_path / "marian")
    assert isinstance(load(marian), WordPieces)
    (marian / "tokenizer.json").unlink()
    assert isinstance(load(marian), WordPieces)


def test_added_tokens_beside_files_without_tokenizer_json_are_refused(sample, tmp_path):
    pairs = BytePairs.train(sample.sources, 300)
    vocabulary = {**pairs.vocabulary, **pairs.special}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, pairs.merges)))
    config = {"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|endoftext|>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load(tmp_path).encode(["A dog."]).to_list() == pairs.encode(["A dog."]).to_list()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    assert load(tmp_path).encode(["A dog."]).to_list() == pairs.encode([" A dog."]).to_list()
    for file, content in (
        ("added_tokens.json", {"<|user|>": 300}),
        ("special_tokens_map.json", {"additional_special_tokens": [{"content": "<|user|>"}]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"300": {"content": "<|user|>"}}}),
    ):
        (tmp_path / file).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"adds the tokens <\|user\|>, which are read from"):
            load(tmp_path)
        (tmp_path / file).unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    with pytest.raises(ValueError, match="add_bos_token is supported as a post_processor"):
        load(tmp_path)
    pairs.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    with pytest.raises(ValueError, match="add_prefix_space is True, but False in tokenizer.json"):
        load(tmp_path)


def test_saved_byte_pairs_are_read_by_the_library(sample, learned, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    text = "A dog 12345 isn't   here é😀"
    spaced = BytePairs.train(sample.sources, 300)
    spaced = BytePairs(spaced.vocabulary, spaced.merges, spaced.special, prefix_space=True)
    for name, ours in (("plain", BytePairs.train(sample.sources, 300)), ("spaced", spaced)):
        (tmp_path / name).mkdir()
        ours.save(tmp_path / name)
        assert load(tmp_path / name).encode([text]).to_list() == ours.encode([text]).to_list()
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        assert theirs(text)["input_ids"] == ours.encode([text]).to_list()[0]
        assert theirs.eos_token_id == ours.end_id and len(theirs) == ours.vocab_size


def test_a_model_of_another_kind_is_refused_by_name(sample, tmp_path):
    albert = trained(sample.sources, model_type="unigram", vocab_size=150, pad_id=-1)
    (tmp_path / "tokenizer.model").write_bytes(albert)
    with pytest.raises(ValueError, match=r"tokenizer.model: .* lacks \['pad'\]"):
        load(tmp_path)
    content = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0]], "unk_id": 0}}
    content["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="normalizer .* not supported: .*Lowercase"):
        load(tmp_path)
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the end token None is not a special token"):
        load(tmp_path)


OTHERS = [pytest.param(kind, marks=pytest.mark.long) for kind in ("Qwen 2", "SmolLM 2", "Llama 2")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Llama 3", "T5", *OTHERS])
def test_tokens_of_every_code_point_equal_the_library(kind, learned, with_bytes, t5, tmp_path):
    if kind == "SmolLM 2":
        peer = byte_level(learned, before=[pre.Digits(individual_digits=True)])
    elif kind in PATTERNS:
        peer = byte_level(learned, PATTERNS[kind], ignore_merges=kind == "Llama 3")
        peer.normalizer = normalizers.NFC() if kind == "Qwen 2" else None
    else:
        peer = llama(with_bytes) if kind == "Llama 2" else t5_peer(t5)
    if kind in (*PATTERNS, "SmolLM 2"):
        peer.add_special_tokens([END])
    peer.save(str(tmp_path / "tokenizer.json"))
    ours = load(tmp_path)
    different = []
    for i in range(0, len(POINTS), 100_000):
        texts = [f"a{c}b {c}1 {c}" for c in POINTS[i : i + 100_000]]
        rows, expected = ours.encode(texts).to_list(), peer.encode_batch(texts)
        pairs = zip(texts, rows, expected, strict=True)
        different += [text for text, row, other in pairs if row != other.ids]
    assert not different, (len(different), different[:20])
