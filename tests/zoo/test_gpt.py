import dataclasses
import importlib.util
import json
import zipfile

import keras
import numpy as np
import pytest
from keras import ops

from polyhead.training import CheckpointError
from polyhead.zoo import GPT, GPTConfig
from tests.conftest import TENSORFLOW, peers

SIZES = dict(vocab_size=300, max_length=64, num_layers=1, dim=32, num_heads=4, end_id=0)
text = pytest.mark.skipif(not TENSORFLOW, reason="tokenizers are TensorFlow's")


def array(x):
    return ops.convert_to_numpy(x)


def randomize(model, seed=0):
    """Gives ``model`` weights with which the next token depends on all previous ones."""
    random = np.random.default_rng(seed)
    for v in model.weights:
        if v.name in ("kernel", "gamma", "embeddings"):
            v.assign(v + random.normal(size=v.shape) * 0.3)
    return model


@pytest.fixture(scope="module")
def tokenizer(sample):
    from polyhead.data import BytePairs

    return BytePairs.train(sample.sources, 300)


@pytest.fixture(scope="module")
def gpt(tokenizer):
    keras.utils.set_random_seed(1)
    return randomize(GPT(GPTConfig(**SIZES), tokenizer))


PROMPTS = ["The dog", "", "A man on a bicycle rides past a large house", " a"]


def test_presets_have_the_published_numbers_of_parameters():
    counts = {name: GPT.count_parameters(config) for name, config in GPT.PRESETS.items()}
    assert counts == {
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
        "char": 10_771_200,
        "char-small": 809_984,
    }
    for overrides in (dict(), dict(intermediate_dim=48), dict(num_layers=3, dim=24)):
        model = GPT(GPTConfig(**{**SIZES, **overrides}))
        assert model.count_params() == model.count_parameters(model.config)
    assert GPT.preset("char-small").count_params() == counts["char-small"]


def test_weights_are_initialized_like_gpt2s():
    model = GPT(GPTConfig(**{**SIZES, "dim": 128, "num_layers": 2}))
    deviations = {v.path: array(v).std() for v in model.weights}
    assert deviations["tokens/embeddings"] == pytest.approx(0.02, rel=0.05)
    assert deviations["block_1/attention/query/kernel"] == pytest.approx(0.02, rel=0.05)
    assert deviations["block_1/feed_forward/contract/kernel"] == pytest.approx(0.01, rel=0.05)


def test_future_tokens_cannot_change_the_past():
    model = randomize(GPT(GPTConfig(**SIZES)))
    tokens = np.random.default_rng(0).integers(0, 300, (2, 12))
    changed = tokens.copy()
    changed[:, 8:] = 7
    before, after = array(model(tokens)), array(model(changed))
    np.testing.assert_allclose(before[:, :8], after[:, :8], atol=1e-5)
    assert np.abs(before[:, 8:] - after[:, 8:]).max() > 0.1


def test_it_overfits_one_batch():
    model = GPT(GPTConfig(**SIZES, dropout=0.0, attention_dropout=0.0))
    model.compile(keras.optimizers.Adam(3e-3))
    tokens = np.random.default_rng(0).integers(0, 300, (4, 17))
    history = model.fit(tokens[:, :-1], tokens[:, 1:], epochs=120, batch_size=4, verbose=0)
    assert history.history["loss"][-1] < 0.1


@text
@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0),
        pytest.param(dict(temperature=1.0), marks=pytest.mark.slow),
        pytest.param(dict(top_k=20, top_p=0.9, min_p=0.01), marks=pytest.mark.slow),
    ],
)
def test_batches_and_streams_equal_single_generations(gpt, settings):
    seeds = [11, 12, 13, 14]
    together = gpt.generate(PROMPTS, max_new_tokens=16, seed=seeds, **settings)
    for prompt, seed, result in zip(PROMPTS, seeds, together, strict=True):
        options = dict(max_new_tokens=16, seed=seed, **settings)
        assert gpt.generate(prompt, **{**options, "seed": [seed]}) == result
        assert "".join(gpt.stream(prompt, **options)) == result
    assert gpt.generate(PROMPTS, max_new_tokens=16, seed=11, **settings) == together


@text
def test_greedy_continuations_take_the_most_likely_tokens(gpt, tokenizer):
    [result] = gpt.generate(PROMPTS[:1], max_new_tokens=12, temperature=0)
    tokens, total = tokenizer.encode(PROMPTS[:1]).to_list()[0], 0.0
    start = len(tokens)
    while len(tokens) < start + 12 and (len(tokens) == start or tokens[-1] != 0):
        gains = array(ops.log_softmax(gpt(np.array([tokens]))[0, -1]))
        tokens.append(int(gains.argmax()))
        total += float(gains.max())
    assert result == tokenizer.text(tokens[start:]).decode("utf-8", "replace")
    assert result.score == pytest.approx(total, abs=1e-3)


@text
def test_samples_differ_and_a_seed_reproduces_them(gpt):
    first = gpt.generate(PROMPTS[:2], max_new_tokens=8, num_return_sequences=3, seed=5)
    assert [len(several) for several in first] == [3, 3] and len(set(first[0])) == 3
    assert gpt.generate(PROMPTS[:2], max_new_tokens=8, num_return_sequences=3, seed=5) == first
    assert gpt.generate(PROMPTS[:2], max_new_tokens=8, num_return_sequences=3, seed=99) != first
    assert gpt.generate(PROMPTS[:1], max_new_tokens=8) != gpt.generate(
        PROMPTS[:1], max_new_tokens=8
    )


@text
def test_beam_search_finds_more_likely_texts(gpt):
    greedy = gpt.generate(PROMPTS, max_new_tokens=8, temperature=0)
    wide = gpt.generate(
        PROMPTS, max_new_tokens=8, num_beams=4, length_penalty=0.0, num_return_sequences=3
    )
    for one, several in zip(greedy, wide, strict=True):
        assert several[0].score >= one.score - 1e-3
        assert sorted(several, key=lambda result: -result.score) == several
    alone = gpt.generate(PROMPTS[2:3], max_new_tokens=8, num_beams=4, length_penalty=0.0)
    assert alone == [wide[2][0]]


@text
def test_a_stop_string_ends_the_text(gpt, monkeypatch, tmp_path):
    [whole] = gpt.generate(PROMPTS[:1], max_new_tokens=24, temperature=0)
    stop = whole[5:7]
    at = whole.find(stop)
    for strings in (stop, [stop, "never there"]):
        assert gpt.generate(PROMPTS[:1], max_new_tokens=24, temperature=0, stop=strings) == [
            whole[:at]
        ]
        pieces = list(gpt.stream(PROMPTS[0], max_new_tokens=24, temperature=0, stop=strings))
        assert "".join(pieces) == whole[:at]
    monkeypatch.setattr(gpt, "config", dataclasses.replace(gpt.config, stop_strings=[stop]))
    settings = dict(max_new_tokens=24, temperature=0)
    assert gpt.generate(PROMPTS[:1], **settings) == [whole[:at]]
    assert "".join(gpt.stream(PROMPTS[0], **settings)) == whole[:at]
    assert gpt.generate(PROMPTS[:1], stop=(), **settings) == [whole]
    with pytest.warns(UserWarning, match="an export does not end texts at stop strings"):
        with pytest.raises(ValueError, match="max_new_tokens must leave room"):
            gpt.export(tmp_path, max_new_tokens=10**6)


@text
def test_stop_tokens_end_a_sequence(gpt, tokenizer):
    rows = tokenizer.encode(PROMPTS[:1]).to_list()

    def search_tokens(**settings):
        search, _ = gpt._settings(12, settings)
        return array(gpt._run_search(gpt._batch(rows, search, 1), search, None).ended)[
            0, 0
        ].tolist()

    free = search_tokens()
    stop = free[4]
    at = free.index(stop)
    assert search_tokens(stop_tokens=(299, stop)) == [*free[: at + 1], *[0] * (len(free) - at - 1)]


@text
def test_streamed_strings_end_at_whole_characters(tokenizer):
    model = randomize(GPT(GPTConfig(**SIZES), tokenizer))
    tokens = tokenizer.encode(["dé😀f"]).to_list()[0]

    class Scripted(GPT):
        def _run_search(self, batch, search, sampler, state=None, until=None):
            from polyhead.zoo.decoding import State

            ended = np.array([[tokens]])
            done = np.array([until == len(tokens)])
            return State(until, None, ended, None, ended, None, done, None)

    model.__class__ = Scripted
    pieces = list(model.stream("x"))
    assert "".join(pieces) == "dé😀f" and "😀" in pieces and "é" in pieces


@text
def test_prompts_beyond_the_context_are_refused_or_truncated(gpt):
    long = "a dog and a cat " * 40
    with pytest.raises(ValueError, match="fewer tokens than the context, 64: prompt 1 has"):
        gpt.generate(["a", long], max_new_tokens=8)
    with pytest.warns(UserWarning, match="1 of 2 prompts were truncated to their last 56 tokens"):
        result = gpt.generate(["a", long], max_new_tokens=8, truncate=True, temperature=0)
    [short] = gpt.generate(["a"], max_new_tokens=8, temperature=0)
    assert result[0] == short and result[1]
    search, _ = gpt._settings(500, {})
    assert gpt._batch([[5] * 60, [5]], search, 2)[2].tolist() == [4, 63]  # ends with the context


@text
def test_new_tokens_are_limited_by_the_context(gpt):
    search, _ = gpt._settings(10**6, {})
    assert search.max_new_tokens == 63
    most, huge = (
        gpt.generate(["a"], max_new_tokens=n, temperature=0, batch_size=10**6, stop=None)
        for n in (63, 10**6)
    )
    assert most == huge
    [score] = gpt.score(["a"], batch_size=10**9)
    assert score.tokens == 1


@text
def test_numpy_scalars_are_accepted_as_settings(gpt, tmp_path):
    sizes = {name: np.int64(size) for name, size in SIZES.items()}
    config = GPTConfig(**sizes, dropout=np.float32(0.5))
    assert config == GPTConfig(**SIZES, dropout=0.5)
    assert all(type(value) is not np.int64 for value in vars(config).values())
    ask = dict(max_new_tokens=4, top_k=5)
    numpy = gpt.generate(["a"], num_return_sequences=np.int64(2), seed=np.uint32(3), **ask)
    assert numpy == gpt.generate(["a"], num_return_sequences=2, seed=3, **ask)
    assert numpy == [gpt.generate(["a", "a"], seed=np.array([3, 4]), **ask)]


@text
def test_the_score_of_a_text_is_the_sum_of_its_tokens(gpt, tokenizer):
    for one, score in zip(PROMPTS, gpt.score(PROMPTS), strict=True):
        tokens = tokenizer.encode([one]).to_list()[0]
        gains = array(ops.log_softmax(gpt(np.array([[0, *tokens]]))[0]))
        expected = sum(gains[t, token] for t, token in enumerate(tokens))
        assert score.tokens == len(tokens)
        assert score.log_likelihood == pytest.approx(expected, abs=1e-3)
    assert gpt.score("a\ud800b") == gpt.score("a\ufffdb")  # a lone surrogate is not Unicode
    one, other = ("".join(gpt.stream(x, 4, seed=1)) for x in ("a\ud800", "a\ufffd"))
    assert one == other
    with pytest.raises(ValueError, match="not have more tokens than the context, 64"):
        gpt.score("a dog " * 100)


@text
def test_bad_arguments_are_refused(gpt):
    generate = gpt.generate
    for error, message, call in (
        (
            TypeError,
            r"not a setting of Search or Sampling: \['heat'\]",
            lambda: generate([], heat=1),
        ),
        (ValueError, "top_k must be a non-negative integer", lambda: generate(["a"], top_k=-1)),
        (ValueError, "beam search does not sample", lambda: generate(["a"], num_beams=2, top_k=3)),
        (
            ValueError,
            "num_return_sequences must be a positive",
            lambda: generate(["a"], num_return_sequences=0),
        ),
        (
            ValueError,
            "at most num_beams: 5, 2",
            lambda: generate(["a"], num_return_sequences=5, num_beams=2),
        ),
        (
            ValueError,
            "a seed for each continuation: 3, 1",
            lambda: generate(["a"], seed=[1] * 3),
        ),
        (
            ValueError,
            "max_new_tokens must be a positive",
            lambda: generate(["a"], max_new_tokens=0),
        ),
        (
            TypeError,
            "generate takes a string or a list of them: prompt 1 is None",
            lambda: generate(["a", None]),
        ),
        (
            TypeError,
            "score takes a string or a list of them: text 1 is 5",
            lambda: gpt.score(["a", 5]),
        ),
        (
            ValueError,
            "stop string must have at least one character",
            lambda: generate(["a"], stop=""),
        ),
        (ValueError, "must have at least one character", lambda: generate(["a"], stop=["x", ""])),
        (ValueError, "stop string must have", lambda: gpt.stream("a", stop=[""])),
        (
            ValueError,
            "batch_size must be a positive integer: 0",
            lambda: generate(["a"], batch_size=0),
        ),
        (ValueError, "a seed must be an integer: 1.5", lambda: generate(["a"], seed=1.5)),
        (
            ValueError,
            "at most the vocabulary's size, 300: 400",
            lambda: generate(["a"], num_beams=400),
        ),
        (TypeError, "stream takes a string: list", lambda: list(gpt.stream(["a"]))),
        (ValueError, "generate needs a tokenizer", lambda: GPT(GPTConfig(**SIZES)).generate(["a"])),
    ):
        with pytest.raises(error, match=message):
            call()
    assert gpt.generate([]) == [] and gpt.score([]) == []


@text
def test_save_and_load_round_trip(gpt, tmp_path):
    gpt.save_pretrained(tmp_path / "saved")
    again = GPT.from_pretrained(tmp_path / "saved")
    assert again.config == gpt.config
    assert again.generate(PROMPTS, seed=1, max_new_tokens=8) == gpt.generate(
        PROMPTS, seed=1, max_new_tokens=8
    )
    gpt.save_pretrained(tmp_path / "saved")  # replaces itself


# Against Hugging Face's GPT-2.


def save_published(folder, seed=0, **settings):
    """Saves Hugging Face's model with random weights to ``folder``, and returns it."""
    torch, transformers = peers()
    torch.manual_seed(seed)
    config = dict(vocab_size=300, n_positions=256, n_embd=32, n_layer=2, n_head=4)
    config |= dict(bos_token_id=0, eos_token_id=0) | settings
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).eval()
    with torch.no_grad():
        for name, v in model.named_parameters():
            v.add_(torch.randn(v.shape) * (0.3 if v.ndim > 1 or "ln" in name else 0.1))
    model.save_pretrained(folder)
    return model


def assert_same_logits(theirs, ours, tolerance=1e-4):
    import torch

    tokens = np.random.default_rng(0).integers(0, 300, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(array(ours(tokens)), expected, atol=tolerance * max(scale / 10, 1))


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(n_inner=48, activation_function="relu"),
        dict(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
        dict(scale_attn_weights=False, activation_function="gelu", layer_norm_epsilon=1e-3),
        dict(activation_function="silu", attn_pdrop=0.0, resid_pdrop=0.2, embd_pdrop=0.2),
    ],
)
def test_logits_match_hugging_face_after_loading_and_saving(settings, tmp_path):
    theirs = save_published(tmp_path / "theirs", **settings)
    ours = GPT.from_pretrained(tmp_path / "theirs")
    assert_same_logits(theirs, ours)
    import transformers

    ours.save_pretrained(tmp_path / "ours", format="huggingface")
    again, report = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_same_logits(again.eval(), ours)
    assert again.config.resid_pdrop == theirs.config.resid_pdrop
    assert again.generation_config.max_new_tokens == 100 and not again.generation_config.do_sample


def test_an_untied_head_is_read_and_written(tmp_path):
    theirs = save_published(tmp_path / "theirs", tie_word_embeddings=False)
    ours = GPT.from_pretrained(tmp_path / "theirs")
    assert not ours.config.tied and ours.count_params() == ours.count_parameters(ours.config)
    assert_same_logits(theirs, ours)
    import transformers
    from safetensors.numpy import load_file, save_file

    ours.save_pretrained(tmp_path / "ours", format="huggingface")
    assert_same_logits(transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval(), ours)
    again = GPT.from_pretrained(tmp_path / "ours")
    assert again.config == ours.config
    again.quantize("int8")
    # The tensors decide: a file whose settings say tied, but which has two tensors.
    config = tmp_path / "ours" / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"n_ctx": 1'))
    assert_same_logits(theirs, GPT.from_pretrained(tmp_path / "ours"))
    weights = tmp_path / "ours" / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}, weights)
    assert GPT.from_pretrained(tmp_path / "ours").config.tied


@text
def test_greedy_text_matches_hugging_face_for_200_tokens(tokenizer, tmp_path):
    theirs = save_published(tmp_path, seed=3, n_positions=256)
    tokenizer.save(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    import torch

    prompts = ["The dog", "A man in a red coat"]
    result = ours.generate(prompts, max_new_tokens=200, temperature=0)
    for prompt, found in zip(prompts, result, strict=True):
        tokens = torch.tensor(tokenizer.encode([prompt]).to_list())
        options = dict(do_sample=False, max_new_tokens=200, pad_token_id=0)
        ids = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
        expected = tokenizer.text(ids[0, tokens.shape[1] :].tolist())
        assert found == expected.decode("utf-8", "replace") and len(expected) > 150


@text
@pytest.mark.parametrize("penalty", [1.2, 0.8])
def test_the_repetition_penalty_matches_hugging_face(penalty, tokenizer, tmp_path):
    theirs = save_published(tmp_path, seed=4)
    tokenizer.save(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    import torch

    [result] = ours.generate(
        ["A dog"], max_new_tokens=40, temperature=0, repetition_penalty=penalty
    )
    tokens = torch.tensor(tokenizer.encode(["A dog"]).to_list())
    ids = theirs.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=40,
        repetition_penalty=penalty,
        pad_token_id=0,
    )
    expected = tokenizer.text(ids[0, tokens.shape[1] :].tolist())
    assert result == expected.decode("utf-8", "replace")


@text
@pytest.mark.slow
def test_no_repeat_ngrams_and_min_new_tokens_match_hugging_face(tokenizer, tmp_path):
    theirs = save_published(tmp_path, seed=5)
    path = tmp_path / "generation_config.json"
    settings = dict(no_repeat_ngram_size=2, min_new_tokens=9, num_beams=2, eos_token_id=[0, 64, 68])
    path.write_text(json.dumps(settings))
    tokenizer.save(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    import torch

    prompt = "A dog and a dog and"  # its bigrams must not be repeated
    for beams in (1, 2):
        [result] = ours.generate([prompt], max_new_tokens=30, num_beams=beams)
        tokens = torch.tensor(tokenizer.encode([prompt]).to_list())
        options = {**settings, "num_beams": beams, "max_new_tokens": 30, "do_sample": False}
        mask = torch.ones_like(tokens)
        ids = theirs.generate(tokens, attention_mask=mask, pad_token_id=0, **options)
        expected = tokenizer.text(ids[0, tokens.shape[1] :].tolist())
        assert result == expected.decode("utf-8", "replace")


@text
def test_beam_search_matches_hugging_face(tokenizer, tmp_path):
    theirs = save_published(tmp_path, seed=5)
    tokenizer.save(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    import torch

    [result] = ours.generate(["A dog"], max_new_tokens=24, num_beams=4, length_penalty=1.0)
    tokens = torch.tensor(tokenizer.encode(["A dog"]).to_list())
    options = dict(num_beams=4, length_penalty=1.0, max_new_tokens=24, do_sample=False)
    ids = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), pad_token_id=0, **options)
    expected = tokenizer.text(ids[0, tokens.shape[1] :].tolist())
    assert result == expected.decode("utf-8", "replace")


def test_shards_and_pickled_tensors_are_read(tmp_path):
    theirs = save_published(tmp_path / "whole")
    import torch

    theirs.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert_same_logits(theirs, GPT.from_pretrained(tmp_path / "shards"))
    # As written by older versions: pickled, without the prefix, with masks and a tied head.
    (tmp_path / "whole" / "model.safetensors").unlink()
    old = {name.removeprefix("transformer."): v for name, v in theirs.state_dict().items()}
    old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 256, 256).tril() for i in range(3)}
    old |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    torch.save(old, tmp_path / "whole" / "pytorch_model.bin")
    assert_same_logits(theirs, GPT.from_pretrained(tmp_path / "whole"))


def test_pickled_tensors_larger_than_their_file_are_refused(tmp_path):
    save_published(tmp_path)
    import torch

    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    for tensors, message in (
        ({"wte.weight": torch.zeros(1).expand(10**9, 32)}, "its tensors are larger than the file"),
        ({1: torch.zeros(1)}, "its tensors have no names"),
        ([torch.zeros(1)], "its tensors have no names"),
    ):
        torch.save(tensors, file)
        with pytest.raises(CheckpointError, match=f"{file} is not a file of tensors: {message}"):
            GPT.from_pretrained(tmp_path)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**6))
    with pytest.raises(CheckpointError, match="it is compressed, which PyTorch's files are not"):
        GPT.from_pretrained(tmp_path)


def test_generation_config_is_applied(tmp_path):
    save_published(tmp_path)
    path = tmp_path / "generation_config.json"
    content = json.loads(path.read_text())
    config = GPT.from_pretrained(tmp_path).config
    assert config.sampling.temperature == 0 and config.search.max_new_tokens == 100
    content |= dict(do_sample=True, top_p=0.9, temperature=0.7, max_new_tokens=30)
    path.write_text(json.dumps({**content, "eos_token_id": [0, 5]}))
    config = GPT.from_pretrained(tmp_path).config
    assert (config.sampling.top_k, config.sampling.top_p) == (50, 0.9)
    assert (config.search.max_new_tokens, config.search.stop_tokens) == (30, (5,))
    path.write_text(json.dumps({**content, "eos_token_id": [0, 5], "forced_bos_token_id": 7}))
    with pytest.warns(UserWarning, match="forced_bos_token_id, 7, is ignored: .* of one token"):
        assert GPT.from_pretrained(tmp_path).config == config


class Harm:
    def __reduce__(self):
        return (print, ("code was run",))


def test_invalid_checkpoints_are_refused_and_named(tmp_path):
    folder = tmp_path / "gpt2"

    def check_refused(message, error=CheckpointError):
        with pytest.raises(error, match=message):
            GPT.from_pretrained(folder)
        for path in folder.iterdir():
            path.unlink()
        save_published(folder)

    save_published(folder)
    import torch
    from safetensors.numpy import load_file, save_file

    config, weights = folder / "config.json", folder / "model.safetensors"
    for settings, message in (
        (dict(colour="red"), r"config.json has unknown settings \['colour'\]"),
        (dict(activation_function="sine"), "activation_function must be one of .*: 'sine'"),
        (dict(tie_word_embeddings=False), r"it lacks \['lm_head.weight'\]"),
        (dict(add_cross_attention=True), "add_cross_attention must be False: True"),
        (dict(n_embd=10**9), r"wte.weight has shape \(300, 32\), expected \(300, 10+\)"),
        (dict(n_embd=10**12), r"config.json: dim must be less than 2\^31: 10+$"),
        (
            dict(n_layer=10**9),
            r"lacks \['transformer.h.999999999.attn.c_attn.weight', .* more",
        ),
        (dict(n_layer=1), r"has no \['transformer.h.1"),
        (dict(n_head=5), "num_heads must divide dim: 32 / 5"),
        (dict(eos_token_id=10**6), "end_id must be a token, from 0 to 299"),
        (dict(model_type="gptj"), "holds a gptj, not a GPT"),
        (dict(scale_attn_weights="no"), "scale_attn_weights must be True or False: 'no'"),
    ):
        config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
        check_refused(message)

    def with_tensors(change):
        tensors = load_file(weights)
        change(tensors)
        save_file(tensors, weights)

    with_tensors(lambda t: t.update(surplus=np.zeros(3, "f")))
    check_refused(r"the model has no \['surplus'\]")
    with_tensors(lambda t: t.pop("transformer.h.1.attn.c_attn.bias"))
    check_refused(r"it lacks \['transformer.h.1.attn.c_attn.bias'\]")
    with_tensors(lambda t: t.update({"transformer.h.1.attn.c_attn.bias": np.zeros(95, "f")}))
    check_refused(r"c_attn.bias has shape \(95,\), expected \(96,\)")
    with_tensors(lambda t: t.update({"lm_head.weight": np.zeros((299, 32), "f")}))
    check_refused(r"lm_head.weight has shape \(299, 32\), expected \(300, 32\)")
    weights.write_bytes(weights.read_bytes()[:-10])
    check_refused("not a complete safetensors file")
    weights.unlink()
    check_refused("has no model.safetensors", FileNotFoundError)
    weights.unlink()
    torch.save({"wte.weight": Harm()}, folder / "pytorch_model.bin")
    check_refused("pytorch_model.bin is not a file of tensors")
    weights.rename(folder / "pytorch_model.bin")
    find = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda n: None if n == "torch" else find(n))
        check_refused("is read by torch, which is not installed", FileNotFoundError)
    index = folder / "model.safetensors.index.json"
    for file, message in (
        ("../gpt2/model.safetensors", "names a file outside of its folder"),
        ("gone.safetensors", "names 'gone.safetensors', which is not there"),
    ):
        weights.unlink()
        index.write_text(json.dumps({"weight_map": {"wte.weight": file}}))
        check_refused(message)
    weights.rename(folder / "part.safetensors")
    index.write_text(json.dumps({"weight_map": {"wte.weight": "part.safetensors"}}))
    check_refused("part.safetensors is not what the index says")


def test_a_name_that_is_not_a_folder_is_loaded_from_the_hub(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="EXTRAS=hub")
    theirs = save_published(tmp_path / "fetched")
    requested = []

    def snapshot_download(name, allow_patterns):
        requested.append(name)
        if name == "no/such":
            raise OSError("no network")
        return str(tmp_path / "fetched")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert_same_logits(theirs, GPT.from_pretrained("somebody/gpt2"))
    with pytest.raises(FileNotFoundError, match="no folder no/such, .* the hub failed: no net"):
        GPT.from_pretrained("no/such")
    with pytest.raises(FileNotFoundError, match="holds no model"):
        GPT.from_pretrained("../no such folder")
    assert requested == ["somebody/gpt2", "no/such"]


@text
@pytest.mark.slow
def test_padding_rows_of_the_embedding_are_never_generated(gpt, tokenizer):
    padded = GPT(dataclasses.replace(gpt.config, vocab_size=310), tokenizer)
    embeddings = array(gpt.tokens.embeddings)
    rows = np.concatenate([embeddings, 9 * embeddings[:10]])  # more likely than all others
    for v, w in zip(padded.weights, gpt.weights, strict=True):
        v.assign(rows if v.shape[0] == 310 else w)
    for settings in (dict(temperature=0), dict(seed=3), dict(num_beams=3)):
        settings |= {"max_new_tokens": 8}
        result, expected = (m.generate(["The dog", "A"], **settings) for m in (padded, gpt))
        assert result == expected
        assert [one.score for one in result] == pytest.approx([one.score for one in expected], 1e-4)
    smaller = dataclasses.replace(gpt.config, vocab_size=299)
    with pytest.raises(ValueError, match="the same vocabulary: vocab_size 300 and 299"):
        GPT(smaller, tokenizer)
