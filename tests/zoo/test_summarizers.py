"""Compares T5 and BART with Hugging Face's in PyTorch, on random weights that it saves."""

import dataclasses
import json

import numpy as np
import pytest
from keras import ops

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tensorflow")

from safetensors.numpy import load_file, save_file  # noqa: E402

import polyhead  # noqa: E402
from tests.conftest import TENSORFLOW  # noqa: E402

V = 60
T5 = dict(
    vocab_size=V, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3,
    relative_attention_num_buckets=8, relative_attention_max_distance=20, decoder_start_token_id=0,
)  # fmt: skip
BART = dict(
    vocab_size=V, d_model=24, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=40,
    decoder_ffn_dim=40, encoder_attention_heads=3, decoder_attention_heads=3,
    max_position_embeddings=40, init_std=0.4,
)  # fmt: skip
CNN = dict(
    forced_bos_token_id=0, num_beams=4, length_penalty=2.0, min_length=6, max_length=20,
    no_repeat_ngram_size=3, early_stopping=True,
)  # fmt: skip
KINDS = {
    "t5": T5,
    "t5-1.1": dict(T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False, untied=True),
    "flan": dict(
        T5, feed_forward_proj="gated-silu", num_heads=2, num_decoder_layers=1, untied=True,
        tie_word_embeddings=False,
    ),
    "t5-scaled": dict(T5, feed_forward_proj="gelu", untied=True),
    "bart": BART,
    "bart-cnn": dict(BART, generation=CNN, bias=True),
    "bart-scaled": dict(
        BART, scale_embedding=True, activation_function="relu", encoder_layers=1,
        encoder_ffn_dim=40, generation=dict(num_beams=3, no_repeat_ngram_size=2, max_length=16),
    ),
}  # fmt: skip


def save_published(folder, kind):
    """A model with random weights, saved by Hugging Face's library to ``folder``, and loaded."""
    settings = dict(KINDS[kind])
    untied, bias, generation = (
        settings.pop(name, None) for name in ("untied", "bias", "generation")
    )
    torch.manual_seed(1)
    name = "T5" if "d_kv" in settings else "Bart"
    config = getattr(transformers, f"{name}Config")(**settings)
    cls = getattr(transformers, f"{name}ForConditionalGeneration")
    model = cls(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "norm" in key:
                value.normal_()
            elif "relative" in key:
                value.normal_()
            elif "encoder_attn" in key:  # so that different sources have different targets
                value.mul_(4)
        if bias:
            model.final_logits_bias.normal_()
    model.generation_config.update(**(generation or dict(max_length=20)))
    model.save_pretrained(folder)
    if untied:
        file, config = folder / "model.safetensors", folder / "config.json"
        tensors = load_file(file)
        head = np.random.default_rng(0).normal(size=(V, settings["d_model"]), scale=0.3)
        save_file({**tensors, "lm_head.weight": head.astype("float32")}, file, {"format": "pt"})
    return cls.from_pretrained(folder).eval()


FAST = ("t5", "flan", "bart-cnn")


@pytest.fixture(
    scope="module",
    params=[pytest.param(k, marks=() if k in FAST else pytest.mark.slow) for k in KINDS],
)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    theirs = save_published(folder, request.param)
    return theirs, polyhead.load(folder), folder


def random_tokens(model, batch, length, seed=0):
    c = model.config
    tokens = np.random.default_rng(seed).integers(4, V, (batch, length)).astype("int32")
    tokens[:, -1] = c.end_id
    tokens[-1, length // 2 - 1] = c.end_id
    tokens[-1, length // 2 :] = c.pad_id
    return tokens


def logits_of(theirs, source, target, pad):
    with torch.no_grad():
        return theirs(
            input_ids=torch.tensor(source).long(),
            attention_mask=torch.tensor(source != pad),
            decoder_input_ids=torch.tensor(target).long(),
        ).logits.numpy()


def test_logits_equal_the_reference(pair):
    theirs, ours, _ = pair
    # Longer than the largest distance of T5's buckets.
    source, target = random_tokens(ours, 3, 30), random_tokens(ours, 3, 26, seed=1)[:, :-1]
    found = ops.convert_to_numpy(ours({"source": source, "target": target}))
    expected = logits_of(theirs, source, target, ours.config.pad_id)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.skipif(not TENSORFLOW, reason="slow: JAX compiles each search")
@pytest.mark.parametrize("beams", [1, 4])
def test_beams_equal_the_reference(pair, beams):
    theirs, ours, _ = pair
    source = random_tokens(ours, 4, 9)
    search = dict(num_beams=beams) if beams != theirs.generation_config.num_beams else {}
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(source).long(),
            attention_mask=torch.tensor(source != ours.config.pad_id),
            num_return_sequences=beams,
            output_scores=True,
            return_dict_in_generate=True,
            **search,
        )
    search = dataclasses.replace(ours.config.search, **search)
    tokens, score = ours._run_search(source, search)
    end = ours.config.end_id
    rows = [cut(row, end) for row in expected.sequences.numpy()[:, 1:]]
    found = [cut(row, end) for row in tokens.reshape(4 * beams, -1)]
    for i in range(0, len(rows), beams):  # equal scores may be in another order
        assert sorted(found[i : i + beams]) == sorted(rows[i : i + beams])
    assert len({tuple(row) for row in rows}) > beams
    if beams > 1:
        np.testing.assert_allclose(
            score.reshape(-1), expected.sequences_scores.numpy(), atol=1e-3, rtol=1e-3
        )


def cut(row, end):
    """The tokens up to the end token."""
    row = row.tolist()
    return row[: row.index(end) + 1] if end in row else row


def test_a_bart_of_older_versions_is_read(tmp_path):
    """As facebook/bart-base and sshleifer/distilbart-cnn-12-6: names, and settings of training."""
    theirs = save_published(tmp_path, "bart-cnn")
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors = {name.removeprefix("model."): x for name, x in load_file(file).items()}
    version = np.float32([3])
    save_file(tensors | {"encoder.version": version, "decoder.version": version}, file)
    more = dict(save_step=58, extra_pos_embeddings=2, static_position_embeddings=False)
    config.write_text(json.dumps(json.loads(config.read_text()) | more))
    ours = polyhead.load(tmp_path)
    source, target = random_tokens(ours, 2, 8), random_tokens(ours, 2, 6, seed=1)[:, :-1]
    found = ops.convert_to_numpy(ours({"source": source, "target": target}))
    wanted = logits_of(theirs, source, target, ours.config.pad_id)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_files_come_back_unchanged_and_the_reference_reads_ours(pair, tmp_path):
    theirs, ours, folder = pair
    ours.save_pretrained(tmp_path / "theirs", format="huggingface")
    first, again = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "theirs"))
    first = {k: x for k, x in first.items() if k in again}
    assert first.keys() == again.keys()
    for name in again:
        np.testing.assert_array_equal(first[name], again[name], err_msg=name)
    reread = type(theirs).from_pretrained(tmp_path / "theirs").eval()
    source, target = random_tokens(ours, 2, 8), random_tokens(ours, 2, 6, seed=1)[:, :-1]
    np.testing.assert_allclose(
        logits_of(reread, source, target, ours.config.pad_id),
        logits_of(theirs, source, target, ours.config.pad_id),
        atol=1e-6,
    )
    ours.save_pretrained(tmp_path / "own")
    for place in ("theirs", "own"):
        assert polyhead.load(tmp_path / place).config == ours.config
