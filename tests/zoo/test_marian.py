"""Compares with Hugging Face's Marian in PyTorch, on random weights that it saves."""

import json
import re
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import ops

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")
pytest.importorskip("tensorflow")

from safetensors.numpy import load_file, save_file  # noqa: E402

from polyhead.data import MarianPieces, Subwords  # noqa: E402
from polyhead.training import CheckpointError  # noqa: E402
from polyhead.zoo import Transformer  # noqa: E402
from tests.conftest import TENSORFLOW, small  # noqa: E402

TEXTS = [
    "The old dog sees a cat.",
    ">>de<< The dog",
    "",
    "🐻 läuft – 日本語, кот! ﬁ½",
    "tab\there  two\nlines",
    "< >>x ▁ ##",
]


@pytest.fixture(scope="module")
def vocabulary(sample, tmp_path_factory):
    """The files of a tokenizer trained on the sample, also with separate vocabularies."""
    folder = tmp_path_factory.mktemp("vocabulary")
    pieces = []
    for name, texts in (("source.spm", sample.sources), ("target.spm", sample.targets)):
        model = Subwords.train(texts, 200)
        (folder / name).write_bytes(model.model)
        pieces.append([model._pieces.id_to_piece(i) for i in range(4, 200)])
    first = ["</s>", "<unk>", ">>de<<"]
    union = list(dict.fromkeys(pieces[0] + pieces[1]))

    def write(name, listed):
        (folder / name).write_text(json.dumps({piece: i for i, piece in enumerate(listed)}))

    write("vocab.json", [*first, *union, "<pad>"])
    return folder, len(first) + len(union) + 1


@pytest.fixture(scope="module")
def separate(vocabulary, tmp_path_factory):
    """The same files, with a separate target vocabulary."""
    folder = tmp_path_factory.mktemp("separate")
    shutil.copytree(vocabulary[0], folder, dirs_exist_ok=True)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "target.spm"))
    targets = [model.id_to_piece(i) for i in range(4, 200)]
    listed = ["</s>", "<unk>", *targets]
    listed += [f"unused{i}" for i in range(vocabulary[1] - 1 - len(listed))] + ["<pad>"]
    table = {piece: i for i, piece in enumerate(listed)}
    (folder / "target_vocab.json").write_text(json.dumps(table))
    config = {"separate_vocabs": True, "target_vocab_file": str(folder / "target_vocab.json")}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder, vocabulary[1]


def save_published(folder, vocabulary, generation=(), tokenizer=True, ends=7.0, **overrides):
    """A Marian with random weights, saved by Hugging Face's library to ``folder``.

    ``ends`` is added to the logit of the end token, so that sentences end, but not at once.
    """
    source, size = vocabulary
    torch.manual_seed(0)
    settings = dict(
        vocab_size=size, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4,
        max_position_embeddings=64, pad_token_id=size - 1, decoder_start_token_id=size - 1,
        init_std=0.5,
    )  # fmt: skip
    config = transformers.MarianConfig(**{**settings, **overrides})
    theirs = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        theirs.final_logits_bias.normal_()[:, 0] = ends
        for module in theirs.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.normal_()
    theirs.generation_config.update(
        bad_words_ids=[[size - 1]], max_length=24, num_beams=4, renormalize_logits=True
    )
    theirs.generation_config.update(**dict(generation))
    theirs.save_pretrained(folder)
    if tokenizer:
        for path in source.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    return theirs


def random_tokens(batch, length, vocab, pad, seed=0):
    tokens = np.random.default_rng(seed).integers(3, vocab - 1, (batch, length)).astype("int32")
    tokens[:, -1] = 0
    tokens[-1, length // 2 - 1] = 0
    tokens[-1, length // 2 :] = pad
    return tokens


CONFIGURATIONS = {
    "opus": dict(activation_function="swish", scale_embedding=True),
    "plain": dict(activation_function="relu", scale_embedding=False, decoder_layers=1, ends=9.0),
    "separate": dict(
        activation_function="gelu", share_encoder_decoder_embeddings=False,
        decoder_vocab_size=90, pad_token_id=89, decoder_start_token_id=89,
        tokenizer=False, ends=5.0,
        generation=dict(bad_words_ids=[[89], [5, 7]]),
    ),
}  # fmt: skip


@pytest.fixture(
    scope="module", params=["opus", pytest.param("plain", marks=pytest.mark.slow), "separate"]
)
def pair(request, vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    theirs = save_published(folder, vocabulary, **CONFIGURATIONS[request.param])
    return theirs, Transformer.from_pretrained(folder), folder


def test_logits_match_the_reference(pair):
    theirs, ours, _ = pair
    pad, vocab = ours.config.pad_id, ours.config.vocab_size
    source, target = (
        random_tokens(3, 8, vocab, pad),
        random_tokens(3, 6, vocab, pad, seed=1)[:, :-1],
    )
    logits = ops.convert_to_numpy(ours({"source": source, "target": target}))
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(source).long(),
            attention_mask=torch.tensor(source != pad),
            decoder_input_ids=torch.tensor(target).long(),
        ).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


KINDS = ["opus", *(pytest.param(k, marks=pytest.mark.slow) for k in ("plain", "separate"))]


@pytest.mark.parametrize("pair", KINDS, indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(dict(num_beams=1), marks=pytest.mark.slow),
        pytest.param(dict(num_beams=4), marks=pytest.mark.slow),
        dict(num_beams=3, early_stopping=True, length_penalty=0.5),
        pytest.param(
            dict(num_beams=3, early_stopping="never", length_penalty=2.0), marks=pytest.mark.slow
        ),
        dict(num_beams=2, length_penalty=-1.0, forced_eos_token_id=None),
        pytest.param(
            dict(num_beams=1, max_length=5, forced_eos_token_id=None), marks=pytest.mark.slow
        ),
        dict(num_beams=1, max_length=5, bad_words_ids=[[0]]),
        dict(
            num_beams=3,
            early_stopping="never",
            min_length=8,
            no_repeat_ngram_size=2,
            forced_bos_token_id=7,
        ),
    ],
    ids=str,
)
def test_translations_match_the_reference(pair, options, tmp_path):
    theirs, _, folder = pair
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    generation = json.loads((folder / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({**generation, **options}))
    ours = Transformer.from_pretrained(tmp_path)
    pad, vocab = ours.config.pad_id, ours.config.vocab_size
    source = random_tokens(24, 8, vocab, pad, seed=2)
    found = ours.find(source, ours.config.search, length=23)
    best = options["num_beams"]
    theirs.generation_config = transformers.GenerationConfig(
        **{**generation, **options},
        num_return_sequences=best,
        output_scores=True,
        return_dict_in_generate=True,
    )
    expected = theirs.generate(
        input_ids=torch.tensor(source).long(), attention_mask=torch.tensor(source != pad)
    )
    sequences = expected.sequences.numpy()[:, 1:].reshape(24, best, -1)
    longest = {**generation, **options}["max_length"] - 1
    assert sequences.shape[-1] <= longest
    tokens = ops.convert_to_numpy(found.tokens)
    np.testing.assert_array_equal(tokens[..., : sequences.shape[-1]], sequences)
    assert (tokens[..., sequences.shape[-1] :] == pad).all()
    if options.get("early_stopping") != "never" and longest > 5:  # these favor one length
        assert len(set((tokens[:, 0] != pad).sum(1))) > 1
    if best > 1:
        scores = expected.sequences_scores.numpy().reshape(24, best)
        np.testing.assert_allclose(ops.convert_to_numpy(found.score), scores, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_tokenization_matches_the_reference(vocabulary, sample):
    folder, _ = vocabulary
    ours = MarianPieces.load(folder)
    theirs = transformers.MarianTokenizer.from_pretrained(folder)
    random = np.random.default_rng(0)
    letters = list("ab <>-ßé日🐻▁\u200d\t.") + ["the ", "dog"]
    random_texts = ["".join(random.choice(letters, 12)) for _ in range(100)]
    texts = TEXTS + random_texts + sample.sources[:50]
    rows = ours.encode(texts).to_list()
    assert rows == [theirs(text)["input_ids"] for text in texts]
    targets = ours.encode(sample.targets[:50], target=True)
    assert targets.to_list() == [theirs(text_target=t)["input_ids"] for t in sample.targets[:50]]
    tokens = np.random.default_rng(1).integers(0, ours.vocab_size, (200, 9)).astype("int32")
    decoded = [text.decode() for text in ours.decode(tokens).numpy()]
    assert decoded == theirs.batch_decode(tokens, skip_special_tokens=True)


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_source_and_target_may_have_separate_vocabularies(separate, sample, tmp_path):
    save_published(
        tmp_path, separate, share_encoder_decoder_embeddings=False, decoder_vocab_size=separate[1]
    )
    ours = Transformer.from_pretrained(tmp_path)
    theirs = transformers.MarianTokenizer.from_pretrained(separate[0])
    sources, targets = sample.sources[:20], sample.targets[:20]
    tokens = ours.tokenizer.encode(targets, target=True)
    assert tokens.to_list() == [theirs(text_target=t)["input_ids"] for t in targets]
    assert ours.tokenizer.encode(sources).to_list() == [theirs(t)["input_ids"] for t in sources]
    decoded = [text.decode() for text in ours.tokenizer.decode(tokens.to_tensor()).numpy()]
    assert decoded == theirs.batch_decode(tokens.to_list(), skip_special_tokens=True)
    ours.save_pretrained(tmp_path / "ours")
    again = Transformer.from_pretrained(tmp_path / "ours")
    assert again.translate(sources[:2]) == ours.translate(sources[:2])
    fresh = Transformer.preset("tiny", ours.tokenizer, num_layers=1)
    assert fresh.config.source_vocab_size == separate[1]


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_translated_strings_match_the_reference(vocabulary, sample, tmp_path):
    theirs = save_published(tmp_path, vocabulary, **CONFIGURATIONS["opus"])
    ours = Transformer.from_pretrained(tmp_path)
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path)
    texts = sample.sources[:12]
    expected = theirs.generate(**tokenizer(texts, return_tensors="pt", padding=True))
    assert ours.translate(texts) == tokenizer.batch_decode(expected, skip_special_tokens=True)


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("shared", [True, False])
def test_the_reference_translates_with_saved_checkpoints(
    shared, vocabulary, separate, sample, tmp_path
):
    options = {} if shared else dict(decoder_vocab_size=separate[1])
    options |= dict(share_encoder_decoder_embeddings=shared, activation_function="swish")
    save_published(tmp_path / "theirs", vocabulary if shared else separate, **options)
    ours = Transformer.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", format="huggingface")
    theirs, info = transformers.MarianMTModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path / "ours")
    texts = sample.sources[:6]
    expected = theirs.eval().generate(**tokenizer(texts, return_tensors="pt", padding=True))
    assert ours.translate(texts) == tokenizer.batch_decode(expected, skip_special_tokens=True)
    again = Transformer.from_pretrained(tmp_path / "ours")
    assert again.config == ours.config
    with pytest.raises(ValueError, match="norm must be 'post' in the format 'huggingface': 'pre'"):
        small(norm="pre").save_pretrained(tmp_path / "pre", format="huggingface")


@pytest.mark.skipif(not TENSORFLOW, reason="exports are TensorFlow's")
@pytest.mark.slow
def test_it_is_saved_exported_and_trained_like_other_models(vocabulary, sample, tmp_path):
    import subprocess
    import sys

    from polyhead.data import ParallelText, translation_batches

    save_published(tmp_path / "theirs", vocabulary, **CONFIGURATIONS["opus"])
    model = Transformer.from_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    again = Transformer.from_pretrained(tmp_path / "ours")
    assert again.config == model.config
    texts = sample.sources[:3]
    assert again.translate(texts) == model.translate(texts)
    version = model.export(tmp_path / "export")
    answer = subprocess.run(
        [sys.executable, "-m", "polyhead.serving.loader", "--signature", "beam", version, *texts],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    served = [translations[0] for translations in json.loads(answer.stdout)["text"]]
    assert served == model.translate(texts)
    pairs = ParallelText(sample.sources[:64], sample.targets[:64])
    model.compile(keras.optimizers.Adam(3e-3), jit_compile=False)
    losses = model.fit(translation_batches(pairs, model.tokenizer, 512), epochs=4, verbose=0)
    assert losses.history["loss"][-1] < 0.9 * losses.history["loss"][0]


def test_attention_matches_the_reference(vocabulary, sample, tmp_path):
    save_published(tmp_path, vocabulary, **CONFIGURATIONS["opus"])
    theirs = transformers.MarianMTModel.from_pretrained(tmp_path, attn_implementation="eager")
    ours = Transformer.from_pretrained(tmp_path)
    source, target = sample.sources[0], sample.targets[0]
    alignment = ours.attention(source, target)
    rows = ours.tokenizer.encode([source])[0].numpy()
    labels = ours.tokenizer.encode([target], target=True)[0].numpy()
    shifted = np.concatenate([[ours.config.pad_id], labels[:-1]])
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(rows[None]).long(),
            decoder_input_ids=torch.tensor(shifted[None]).long(),
            output_attentions=True,
        ).cross_attentions
    np.testing.assert_allclose(alignment.weights, np.concatenate(expected), atol=1e-4)
    assert alignment.target[-1] == "</s>" and len(alignment.source) == len(rows)


def change_settings(path, **settings):
    content = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps(content))


def test_invalid_checkpoints_are_refused_and_named(vocabulary, tmp_path):
    folder = tmp_path / "marian"

    def check_refused(message, error=CheckpointError):
        with pytest.raises(error, match=message):
            Transformer.from_pretrained(folder)
        save_published(folder, vocabulary)

    save_published(folder, vocabulary)
    config, weights = folder / "config.json", folder / "model.safetensors"
    for settings, message in (
        (dict(colour="red"), r"config.json has unknown settings \['colour'\]"),
        (dict(activation_function="gelu_new"), "activation_function must be one of .*: 'gelu_new'"),
        (dict(normalize_before=True), "normalize_before must be False: True"),
        (dict(decoder_ffn_dim=64), "decoder_ffn_dim must be 48: 64"),
        (dict(d_model=10**9), r"shared.weight has shape \(348, 32\), expected \(348, 10+\)"),
        (dict(d_model=10**12), r"config.json: dim must be less than 2\^31: 10+$"),
        (dict(d_model="32"), "dim must be a positive integer: '32'"),
        (
            dict(encoder_layers=10**9, num_hidden_layers=10**9),
            r"lacks \['model.encoder.layers.9999",
        ),
        (dict(decoder_layers=1), r"has no \['model.decoder.layers.1"),
        (dict(pad_token_id=10**6), "pad_token_id must be 1000000: 347"),
        (dict(share_encoder_decoder_embeddings="no"), "must be True or False: 'no'"),
        (dict(model_type=["marian"]), r"holds a \['marian'\], not a Transformer"),
        (dict(vocab_size=None), "config.json has no setting vocab_size"),
    ):
        change_settings(config, **settings)
        check_refused(message)
    for settings, message in (
        (dict(do_sample=True), "generation_config.json: do_sample must be False: True"),
        (
            dict(no_repeat_ngram_size=-3),
            "no_repeat_ngram_size must be an integer from 0 to 100: -3",
        ),
        (dict(eos_token_id=[5]), r"generation_config.json: eos_token_id must be 0, or a list with"),
        (dict(mood="good"), r"generation_config.json has unknown settings \['mood'\]"),
        (dict(num_beams=-1), "num_beams must be a positive integer: -1"),
        (dict(forced_eos_token_id=7), "forced_eos_token_id must be eos_token_id"),
        (dict(num_beams=0), "num_beams must be a positive integer: 0"),
        (
            dict(max_length=1),
            "generation_config.json: max_new_tokens must be a positive integer: 0",
        ),
        (dict(length_penalty="1"), "length_penalty must be a number: '1'"),
        (dict(bad_words_ids="all"), "banned must be sequences of tokens"),
    ):
        change_settings(folder / "generation_config.json", **settings)
        check_refused(message)
    config.write_text("{")
    check_refused("config.json is not valid JSON")
    config.write_text("[1]")
    check_refused("config.json is not a configuration: it holds a list")
    weights.write_bytes(weights.read_bytes()[:-100])
    check_refused("model.safetensors is not a complete safetensors file")
    weights.rename(folder / "pytorch_model.bin")
    check_refused("pytorch_model.bin is not a file of tensors")

    def with_tensors(change):
        tensors = load_file(weights)
        change(tensors)
        save_file(tensors, weights)

    with_tensors(lambda t: t.update(surplus=np.zeros(3, "float32")))
    check_refused(r"the model has no \['surplus'\]")
    with_tensors(lambda t: t.pop("model.decoder.layers.1.fc2.bias"))
    check_refused(r"it lacks \['model.decoder.layers.1.fc2.bias'\]")
    with_tensors(lambda t: t.update({"model.encoder.layers.0.fc2.weight": np.zeros((48, 32), "f")}))
    check_refused(re.escape("fc2.weight has shape (48, 32), expected (32, 48)"))
    with_tensors(lambda t: t.update({"lm_head.weight": 2 * t["model.shared.weight"]}))
    check_refused("lm_head.weight differs from model.shared.weight")
    positions = "model.encoder.embed_positions.weight"  # its table would not fit in memory
    with_tensors(lambda t: t.update({positions: np.zeros((64, 1), "f")}))
    check_refused(rf"the model has no \['{positions}'\]")
    for name, content, message in (
        ("source.spm", b"x", "source.spm is not a SentencePiece model"),
        ("vocab.json", b"{", "vocab.json is not valid JSON"),
        ("vocab.json", b'{"a": 0}', r"vocab.json lacks \['<unk>', '</s>', '<pad>'\]"),
        ("vocab.json", b"5", "vocab.json must hold a JSON object, not a int"),
        ("vocab.json", b"[" * 100_000, "vocab.json is not valid JSON: it is nested too deeply"),
        ("target.spm", b"", "target.spm is not a SentencePiece model: it is empty"),
        ("vocab.json", b'{"a": 1, "b": 1}', "vocab.json must number its pieces"),
    ):
        (folder / name).write_bytes(content)
        check_refused(message, ValueError)
    (folder / "target.spm").unlink()
    check_refused("target.spm", FileNotFoundError)


def test_files_that_older_versions_wrote_are_read(vocabulary, tmp_path):
    theirs = save_published(tmp_path, vocabulary)
    ours = Transformer.from_pretrained(tmp_path)
    change_settings(
        tmp_path / "config.json", bad_words_ids=[[5]], num_beams=6, max_length=12,
        static_position_embeddings=True, normalize_before=False, num_hidden_layers=2,
        extra_pos_embeddings=theirs.config.pad_token_id + 1, add_final_layer_norm=False,
        eos_token_id=[0, 7],
    )  # fmt: skip
    (tmp_path / "generation_config.json").unlink()
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    shared = tensors["model.shared.weight"]
    positions = theirs.model.encoder.embed_positions.weight.detach().numpy()
    tensors |= {"lm_head.weight": shared, "model.encoder.embed_tokens.weight": shared}
    tensors |= {"model.decoder.embed_positions.weight": positions}
    save_file({name: tensor.astype("float16") for name, tensor in tensors.items()}, weights)
    older = Transformer.from_pretrained(tmp_path)
    search = older.config.search
    assert (search.num_beams, search.max_new_tokens, search.banned) == (6, 11, ((5,),))
    assert older.config.end_id == 0 and search.stop_tokens == (7,)
    for a, b in zip(ours.get_weights(), older.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not TENSORFLOW, reason="the recipe is TensorFlow's")
@pytest.mark.slow
def test_the_recipe_fine_tunes_it_and_resumes(vocabulary, sample, tmp_path):
    from polyhead.recipes.translation import Settings, evaluate, train

    save_published(tmp_path / "theirs", vocabulary, **CONFIGURATIONS["opus"])
    for split, rows in (("train", slice(64)), ("val", slice(64, 72)), ("test", slice(72, 80))):
        lines = zip(sample.sources[rows], sample.targets[rows], strict=True)
        text = "".join(f"{source}\t{target}\n" for source, target in lines)
        (tmp_path / f"{split}.tsv").write_text(text, "utf-8")
    settings = Settings(
        data=str(tmp_path), pretrained=str(tmp_path / "theirs"), peak=1e-2, warmup=2, tokens=512,
        max_length=64, buckets=1, epochs=1,
    )  # fmt: skip
    train(settings, tmp_path / "run", say=lambda line: None)
    said = []
    history = train(replace(settings, epochs=3), tmp_path / "run", say=said.append)
    assert any(line.startswith("resuming after update") for line in said)
    assert history[-1]["loss"] < history[0]["loss"]
    assert isinstance(
        Transformer.from_pretrained(tmp_path / "run" / "best").tokenizer, MarianPieces
    )
    assert len(evaluate(tmp_path / "run")[2]) == 8
