"""Compares pairs and offsets of byte pairs with Hugging Face's `tokenizers`."""

import json
import resource

import pytest

from polyhead.data import BytePairs, Characters, Subwords
from polyhead.data.tokenizers import load
from tests.data.tokenizers.test_published import PARTS, random_texts
from tests.data.tokenizers.test_wordpieces import changed, learned, peer_of  # noqa: F401

tokenizers = pytest.importorskip("tokenizers")
pre, processors = tokenizers.pre_tokenizers, tokenizers.processors
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>"]
LENGTHS = (None, 21, 20, 9, 4, 3)


def check_pairs(ours, theirs, texts):
    half = len(texts) // 2
    firsts, seconds = texts[:half], texts[half : 2 * half]
    for longest in LENGTHS:
        if longest and longest >= theirs.num_special_tokens_to_add(True):
            theirs.enable_truncation(longest)
        elif longest:
            continue
        expected = theirs.encode_batch(list(zip(firsts, seconds, strict=True)))
        ids, types = ours.encode_pairs(firsts, seconds, longest)
        assert ids.dtype == types.dtype == "int32"
        assert ids.to_list() == [encoding.ids for encoding in expected]
        assert types.to_list() == [encoding.type_ids for encoding in expected]
    theirs.no_truncation()


def check_offsets(ours, theirs, texts):
    ids, starts, ends = (rows.to_list() for rows in ours.offsets(texts))
    places = [list(zip(*rows, strict=True)) for rows in zip(starts, ends, strict=True)]
    expected = theirs.encode_batch(texts, add_special_tokens=False)
    assert ids == [encoding.ids for encoding in expected]
    different = [
        (text, encoding.tokens, encoding.offsets, place)
        for text, encoding, place in zip(texts, expected, places, strict=True)
        if encoding.offsets != place
    ]
    assert not different, (len(different), different[:2])


def read(peer, folder, **options):
    peer.save(str(folder / "tokenizer.json"))
    return load(folder, **options)


@pytest.fixture(scope="module")
def merged(sample):
    """Vocabulary and merges of RoBERTa's form."""
    pairs = BytePairs.train([*sample.sources, *sample.targets], 500)
    pieces = [*ROBERTA, *pairs.vocabulary, "<mask>"]
    return {piece: i for i, piece in enumerate(pieces)}, pairs.merges


def roberta(merged, space=False, trim=True):
    peer = tokenizers.Tokenizer(tokenizers.models.BPE(*merged))
    peer.pre_tokenizer, peer.decoder = pre.ByteLevel(space), tokenizers.decoders.ByteLevel()
    mask = tokenizers.AddedToken("<mask>", lstrip=True, normalized=False)
    peer.add_special_tokens([*ROBERTA, mask])
    peer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim, add_prefix_space=space
    )
    return peer


MASKS = [*PARTS, " <mask>", "<mask>", "</s>", "\n <mask>"]


def test_pairs_of_word_pieces_are_cut_as_in_hugging_face(learned, tmp_path):  # noqa: F811
    check_pairs(learned, peer_of(learned, tmp_path), random_texts(600))


DIFFERENT = [(False, True), (True, False)]
EQUAL = [pytest.param(*both, marks=pytest.mark.slow) for both in ((False, False), (True, True))]


@pytest.mark.parametrize("space, trim", [*DIFFERENT, *EQUAL])
def test_roberta_has_pairs_and_offsets(merged, tmp_path, space, trim):
    peer = roberta(merged, space, trim)
    ours = read(peer, tmp_path)
    assert (ours.pad_id, ours.mask_id, ours.mask_token) == (1, merged[0]["<mask>"], "<mask>")
    assert (ours.cls_id, ours.sep_id, ours.separator, ours.pair_type) == (0, 2, (2, 2), 0)
    assert ours.end_id == 2
    texts = [*random_texts(200, MASKS), "", " ", "  a", "<mask>a<mask>", " <mask> b"]
    check_offsets(ours, peer, texts)
    check_pairs(ours, peer, texts)
    rows = ours.encode(texts).to_list()
    assert rows == [encoding.ids for encoding in peer.encode_batch(texts)]
    ours.save(tmp_path)
    assert load(tmp_path).encode(texts).to_list() == rows


def test_roberta_is_read_from_vocabulary_and_merges(merged, tmp_path):
    vocabulary, merges = merged
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (tmp_path / "merges.txt").write_text("\n".join(lines), "utf-8")
    ours, peer = load(tmp_path), roberta(merged)
    texts = random_texts(100, MASKS)
    check_offsets(ours, peer, texts)
    check_pairs(ours, peer, texts)


def modern_bert(merged):
    pieces = [piece for piece in merged[0] if piece not in (*ROBERTA, "<mask>")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    peer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merged[1]))
    peer.normalizer = tokenizers.normalizers.NFC()
    peer.pre_tokenizer, peer.decoder = pre.ByteLevel(False), tokenizers.decoders.ByteLevel()
    mask = tokenizers.AddedToken("[MASK]", lstrip=True, normalized=False)
    peer.add_special_tokens(["<|endoftext|>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", mask])
    spaces = [tokenizers.AddedToken(" " * count, normalized=True) for count in range(2, 25)]
    peer.add_tokens(spaces)
    ids = [(name, peer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    peer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return peer


def test_modern_bert_has_pairs_and_offsets(merged, tmp_path):
    peer = modern_bert(merged)
    ours = read(peer, tmp_path)
    assert ours.mask_token == "[MASK]" and ours.pad_id == peer.token_to_id("[PAD]")
    assert ours.cls_id == peer.token_to_id("[CLS]") and ours.pair_type == 1
    composed = ["e\u0301", "A\u030a", "\u212b", "a\u0323\u0301", "q\u0323\u0307", "\u0958\u093e"]
    composed += ["\u1100\u1161\u11a8", "각", "ক\u09c7\u09be", "\u0fac"]
    parts = [*PARTS, " [MASK]", "[MASK]", "[SEP]", "   ", *composed]
    texts = random_texts(300, parts)
    check_offsets(ours, peer, texts)
    check_pairs(ours, peer, texts)


def test_pairs_without_special_tokens_are_joined(merged, tmp_path):
    peer = tokenizers.Tokenizer(tokenizers.models.BPE(*merged))
    peer.pre_tokenizer, peer.decoder = pre.ByteLevel(False), tokenizers.decoders.ByteLevel()
    peer.add_special_tokens(["<|endoftext|>"])
    texts = random_texts(100)
    ours = read(peer, tmp_path)
    check_pairs(ours, peer, texts)
    assert (ours.mask_id, ours.cls_id, ours.sep_id) == (None, None, None)


def test_pairs_of_another_form_are_refused(merged, tmp_path, sample):
    peer = roberta(merged)
    peer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 0)]
    )
    ours = read(peer, tmp_path, end=2)
    for tokenizer in (ours, Characters("ab"), Subwords.train(sample.sources, 200)):
        with pytest.raises(ValueError, match="this tokenizer has no form for pairs of texts"):
            tokenizer.encode_pairs(["a"], ["b"])
    with pytest.raises(ValueError, match="Characters has no offsets of tokens"):
        Characters("ab").offsets(["a"])
    with pytest.raises(ValueError, match="as many first as second texts: 2 and 1"):
        read(roberta(merged), tmp_path).encode_pairs(["a", "b"], ["b"])


def test_long_texts_are_not_copied_for_each_character(learned, merged, tmp_path):  # noqa: F811
    text = "a " * 19_999 + "a"
    for tokenizer in (learned, read(roberta(merged), tmp_path)):
        tokenizer.offsets(["a a"])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _, starts, ends = tokenizer.offsets([text])
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert after - before < 400_000  # kB; a copy for each word takes 800 MB
        assert (ends - starts).flat_values.numpy().tolist() == [1] * 20_000
