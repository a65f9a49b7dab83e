import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file

import polyhead
from polyhead.data import masked_batches
from polyhead.data.residues import LETTERS
from polyhead.training import CheckpointError
from polyhead.zoo import ESM, ESMConfig
from tests.conftest import peers

SIZES = dict(num_layers=3, dim=32, intermediate_dim=48, num_heads=4, max_length=40)
SEQUENCES = ["MKTAYIAKQRQISFVK", "MK<mask>AV", "GG"]


def small(head="tokens", seed=0, **overrides):
    """A small model with large random weights."""
    if head in ("classes", "tags"):
        overrides = {"class_names": ("E", "H", "O"), "num_classes": 3, **overrides}
    model = ESM.preset("esm2-t6-8m", head=head, **{**SIZES, **overrides})
    random = np.random.default_rng(seed)
    for v in model.weights:
        v.assign(random.normal(0, 0.3, v.shape))
    return model


def tagger(model):
    return model.adapt("tags", class_names=["H", "E"])


def array(x):
    return ops.convert_to_numpy(x)


def ids(model, sequences=SEQUENCES):
    return model.tokenizer.encode(sequences).to_tensor(1).numpy()


@pytest.mark.parametrize(
    "name, count",
    [
        ("esm2-t6-8m", 7_512_474),
        ("esm2-t12-35m", 33_501_394),
        ("esm2-t30-150m", 148_140_154),
        ("esm2-t33-650m", 651_043_254),
        ("esm2-t36-3b", 2_839_005_634),
        ("esm2-t48-15b", 15_129_100_194),
    ],
)
def test_presets_have_the_published_parameter_counts(name, count):
    assert ESM.count_parameters(ESM.PRESETS[name]) == count
    assert len(ESM.PRESETS) == 6


@pytest.mark.parametrize("head", [None, "classes", "tags", "tokens"])
def test_each_head_has_its_shape_and_weights(head):
    model = small(head)
    shape = {None: (3, 32), "classes": (3, 3), "tags": (3, 18, 3), "tokens": (3, 18, 33)}[head]
    assert array(model(ids(model))).shape == shape
    assert {v.path: tuple(v.shape) for v in model.weights} == dict(model.shapes(model.config))


def test_a_batch_and_padding_change_nothing():
    model = small()
    together = model.embed(SEQUENCES), model.contacts(SEQUENCES)
    for i, (sequence, length) in enumerate(zip(SEQUENCES, (16, 5, 2), strict=True)):
        alone = model.embed(sequence), model.contacts(sequence)
        assert alone[0].shape == (length, 32) and alone[1].shape == (length, length)
        np.testing.assert_allclose(together[0][i, :length], alone[0], atol=1e-5)
        np.testing.assert_allclose(together[1][i, :length, :length], alone[1], atol=1e-5)
        assert not together[0][i, length:].any() and not together[1][i, length:].any()
    pooled = model.embed(SEQUENCES, pooled=True)
    np.testing.assert_allclose(pooled[1], together[0][1, :5].mean(0), atol=1e-5)
    expected = unit(pooled[0]) @ unit(pooled[2])
    np.testing.assert_allclose(model.similarity(*SEQUENCES[::2]), expected, atol=1e-6)


def unit(x):
    return x / np.linalg.norm(x)


def test_contacts_are_symmetric_probabilities():
    found = small().contacts(SEQUENCES)
    np.testing.assert_allclose(found, np.swapaxes(found, 1, 2), atol=1e-6)
    assert 0 <= found.min() and found.max() <= 1 and found.std() > 0


def test_contacts_are_computed_in_any_precision():
    model = small()
    expected = model.contacts(SEQUENCES)
    double = [("float64", 1e-5)] * (keras.config.backend() == "tensorflow")  # JAX has none
    for precision, atol in (*double, ("mixed_bfloat16", 0.1)):
        keras.config.set_dtype_policy(precision)
        try:
            other = small()
        finally:
            keras.config.set_dtype_policy("float32")
        for v, w in zip(other.weights, model.weights, strict=True):
            v.assign(array(w))
        np.testing.assert_allclose(other.contacts(SEQUENCES), expected, atol=atol)


def test_contacts_need_a_regression(tmp_path):
    model = ESM.preset("esm2-t6-8m", **SIZES)  # training does not change its zeros
    with pytest.raises(ValueError, match="contacts needs a regression .* this model's is zero"):
        model.contacts("MKT")
    signatures = model._signatures(model.tokenizer, 5, None, None)
    assert "embed" in signatures and "contacts" not in signatures


def test_contacts_of_a_quantized_model_are_close():
    model = small()
    expected = model.contacts(SEQUENCES)
    model.quantize("int8")
    np.testing.assert_allclose(model.contacts(SEQUENCES), expected, atol=0.05)


def test_scores_are_masked_marginals():
    model, sequence = small(), "MKTAYIAKQR"
    tokens = ids(model, [sequence])
    letters = model.tokenizer.pieces(range(33))

    def marginal(changes):
        masked = tokens.copy()
        masked[0, [at for at, _ in changes]] = 32
        found = array(ops.log_softmax(model(masked)))[0]
        return sum(
            found[at, letters.index(new)] - found[at, letters.index(sequence[at - 1])]
            for at, new in changes
        )

    found = model.score(sequence, ["K2R", "Y5F:T3P", "K2W", "M1M"])
    expected = [marginal(c) for c in ([(2, "R")], [(3, "P"), (5, "F")], [(2, "W")], [(1, "M")])]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[3] == 0 and model.score(sequence, "K2R") == pytest.approx(found[0], abs=1e-5)
    for verb in (model.score_all, model.perplexity):
        with pytest.raises(ValueError, match="there must be no <mask> in 'MK<mask>'"):
            verb("MK<mask>")
    every = model.score_all(sequence)
    assert every.shape == (10, 20) and model.score_all("").shape == (0, 20)
    columns = [LETTERS.index(new) for new in "RWM"]
    np.testing.assert_allclose(every[[1, 1, 0], columns], found[[0, 2, 3]], atol=1e-5)
    for verb, given in (("score", ("K2R",)), ("score_all", ())):
        with pytest.raises(TypeError, match=f"{verb} takes one sequence, a string, not a list"):
            getattr(model, verb)([sequence] * 2, *given)


def test_perplexity_masks_each_residue():
    model, sequence = small(), "MKTAY"
    losses = []
    for at, token in enumerate(ids(model, [sequence])[0][1:-1], 1):
        masked = ids(model, [sequence])
        masked[0, at] = 32
        losses.append(-array(ops.log_softmax(model(masked)))[0, at, token])
    found = model.perplexity([sequence, ""])
    np.testing.assert_allclose(found, [np.exp(np.mean(losses)), np.nan], rtol=1e-5)


def test_masked_residues_are_zeros_and_others_are_scaled():
    model = small()
    whole, masked = (array(model._embeddings(ids(model, [x]))[0])[0] for x in ("MK", "M<mask>"))
    np.testing.assert_allclose(masked[1], whole[1] * 4 / 3, rtol=1e-5)  # 1 of 4 tokens
    np.testing.assert_allclose(whole[1], 0.88 * array(model.tokens.embeddings)[20], rtol=1e-5)
    assert not masked[2].any()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.score("MK", "K2"), "must have the form A23V or A23V:G30D: 'K2'"),
        (lambda m: m.score("MK", "K3R"), "K3R: the sequence has 2 residues"),
        (lambda m: m.score("MK", "A2R"), "A2R: residue 2 of the sequence is K"),
        (lambda m: m.score("MK", "K2J"), "K2J: J is not a residue"),
        (lambda m: m.score("MK", "K2R:K2A"), "changes a residue twice"),
        (lambda m: m.score("MK", ""), "must have the form"),
        (lambda m: m.embed("MK7"), "'7' at position 3 of 'MK7'"),
        (lambda m: m.embed(["M", "A" * 39]), "at most 38 residues, and sequence 1 has 39"),
        (lambda m: m.fill_mask(["M<mask>", "M1<mask>"]), "fill_mask: sequence 1: .* '1' at"),
        (lambda m: m.fill_mask("MK"), "has no mask token '<mask>'"),
        (lambda m: m.tag("MK"), "needs a model with the head 'tags'"),
        (lambda m: m.adapt(None).score("MK", "K2R"), "score needs a model with the head 'tokens'"),
        (lambda m: m.adapt("spans"), "head must be"),
        (lambda m: m.perplexity(["M", "M1"]), "perplexity: sequence 1: .* '1' at position 2"),
        (lambda m: tagger(m).tag(["M", "MK1"]), "tag: sequence 1: .* '1' at position 3"),
        (lambda m: tagger(m).tag("MK<mask>"), "there must be no <mask>"),
        (
            lambda m: m.adapt("classes", class_names=["a", "b"]).classify(("M", "K")),
            "classify needs pairs of texts",
        ),
    ],
)
def test_errors_name_the_rule_and_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call(small())


def test_spans_of_a_tagger_count_residues():
    model = small("tags")
    spans, none = model.tag(["mkta yiakqr", ""])
    assert none == []
    for span in spans:
        assert span.text == "MKTAYIAKQR".lower()[span.start : span.end] and span.label in "EH"
    logits = array(model(ids(model, ["MKTAYIAKQR"])))[0, 1:-1]
    labels = [model.label(i) for i in logits.argmax(-1)]
    found = ["O"] * 10
    for span in spans:
        found[span.start : span.end] = [span.label] * (span.end - span.start)
    assert found == labels
    assert model.tag([list("MKTA")]) == model.tag(["MKTA"])


def test_mixed_precision_is_finite():
    for policy in ("mixed_bfloat16", "mixed_float16"):
        model = ESM(ESMConfig(**SIZES), dtype=policy)
        assert np.isfinite(array(model.residues(np.array([[0, 5, 6, 2]])))).all()


@pytest.mark.slow
def test_it_learns_to_fill_masks():
    keras.utils.set_random_seed(0)
    model = ESM.preset("esm2-t6-8m", num_layers=1, dim=32, num_heads=2, intermediate_dim=64)
    inputs, labels, weight = next(
        iter(masked_batches(["MKTAYIAKQR"] * 64, model.tokenizer, 12, 64, pack=False))
    )
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    before = model.perplexity("MKTAYIAKQR")
    model.fit(inputs, labels, 64, epochs=150, verbose=0, sample_weight=weight)
    assert model.perplexity("MKTAYIAKQR") < 2 < 5 < before


HUGGING_FACE = dict(
    vocab_size=33, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=48, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    position_embedding_type="rotary", token_dropout=True, mask_token_id=32, pad_token_id=1,
    layer_norm_eps=1e-5, emb_layer_norm_before=False, max_position_embeddings=40,
)  # fmt: skip
HEADS = {None: "Model", "classes": "ForSequenceClassification", "tags": "ForTokenClassification"}
HEADS["tokens"] = "ForMaskedLM"


def make(folder, head="tokens", **settings):
    """Saves a model of Hugging Face with random weights."""
    torch, transformers = peers()
    torch.manual_seed(0)
    config = transformers.EsmConfig(**{**HUGGING_FACE, "num_labels": 3, **settings})
    config._attn_implementation = "eager"
    theirs = getattr(transformers, f"Esm{HEADS[head]}")(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, 0.3)
    theirs.save_pretrained(folder)
    return theirs


def run(theirs, tokens, **options):
    torch, _ = peers()
    given = torch.tensor(tokens).long()
    with torch.no_grad():
        return theirs(given, attention_mask=(given != 1).long(), **options)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dropout", [True, False])
def test_outputs_match_the_reference_both_ways(head, dropout, tmp_path):
    theirs = make(tmp_path / "theirs", head, token_dropout=dropout)
    ours = polyhead.load(tmp_path / "theirs")
    assert type(ours) is ESM and ours.config.head == head
    tokens, expected = ids(ours), run(theirs, ids(ours), output_hidden_states=True)
    kept = tokens != 1
    for state, wanted in zip(ours.hidden_states(tokens), expected.hidden_states, strict=True):
        np.testing.assert_allclose(array(state)[kept], wanted.numpy()[kept], atol=1e-5)
    if head is not None:
        found, wanted = array(ours(tokens)), expected.logits.numpy()
        found, wanted = (x if head == "classes" else x[kept] for x in (found, wanted))
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)
    ours.save_pretrained(tmp_path / "ours", format="huggingface")
    extra = {"add_pooling_layer": False} if head is None else {}
    back, report = type(theirs).from_pretrained(
        tmp_path / "ours", output_loading_info=True, **extra
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    name = "last_hidden_state" if head is None else "logits"
    np.testing.assert_allclose(run(back.eval(), tokens)[name], expected[name], atol=1e-5)


def test_files_of_sentence_transformers_pool_more_tokens(tmp_path):
    make(tmp_path / "theirs", None)
    names = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"idx": i, "path": path, "type": kind} for i, (path, kind) in enumerate(names)]
    (tmp_path / "theirs" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "theirs" / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (tmp_path / "theirs" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.warns(UserWarning, match="which pools <cls> and <eos> too"):
        model = polyhead.load(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours", format="huggingface")
    assert not (tmp_path / "ours" / "modules.json").exists()
    with pytest.raises(ValueError, match=r"in this format: \('max', False\)"):
        model.adapt(pooling="max").save_pretrained(tmp_path / "ours", format="huggingface")


def test_contacts_match_the_reference(tmp_path):
    torch, _ = peers()
    theirs = make(tmp_path)
    ours = polyhead.load(tmp_path)
    tokens = torch.tensor(ids(ours)).long()
    with torch.no_grad():
        expected = theirs.predict_contacts(tokens, (tokens != 1).long()).numpy()
    for i, length in enumerate((16, 5, 2)):
        part = (i, slice(length), slice(length))
        np.testing.assert_allclose(ours.contacts(SEQUENCES)[part], expected[part], atol=1e-5)


def test_a_file_without_the_regression_of_contacts_is_read(tmp_path):
    theirs = make(tmp_path)
    state = {k: v for k, v in theirs.state_dict().items() if "contact_head" not in k}
    theirs.save_pretrained(tmp_path, state_dict=state)
    ours = polyhead.load(tmp_path)
    tokens = ids(ours)
    kept, wanted = tokens != 1, run(theirs, tokens)["logits"].numpy()
    np.testing.assert_allclose(array(ours(tokens))[kept], wanted[kept], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="contacts needs a regression"):
        ours.contacts("MKT")


def test_files_of_every_spelling_are_read(tmp_path):
    make(tmp_path)
    expected = polyhead.load(tmp_path).embed(SEQUENCES)
    written = load_file(tmp_path / "model.safetensors")
    [rates] = [name for name in written if name.endswith("inv_freq")]
    spellings = [
        f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq" for i in range(3)
    ]
    for names in ([], ["esm.rotary_embeddings.inv_freq"], spellings):
        tensors = {n: x for n, x in written.items() if n != rates}
        tensors |= {name: written[rates] for name in names}
        tensors["esm.embeddings.position_embeddings.weight"] = np.ones((40, 32), "float32")
        tensors["esm.embeddings.position_ids"] = np.arange(40)[None]
        tensors["lm_head.decoder.weight"] = written["esm.embeddings.word_embeddings.weight"]
        save_file(tensors, tmp_path / "model.safetensors")
        np.testing.assert_array_equal(polyhead.load(tmp_path).embed(SEQUENCES), expected)
    save_file(tensors | {spellings[0]: written[rates] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="inv_freq differs from its expected values"):
        polyhead.load(tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(position_embedding_type="absolute"), "position_embedding_type must be 'rotary'"),
        (dict(emb_layer_norm_before=True), "emb_layer_norm_before must be False"),
        (dict(is_folding_model=True), "does not fit the model"),
        (dict(add_cross_attention=True), "add_cross_attention must be False"),
        (dict(unheard_of=1), "unknown settings"),
        (dict(vocab_size=40), "has shape"),
    ],
)
def test_other_networks_are_refused(settings, message, tmp_path):
    make(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises((CheckpointError, ValueError), match=message):
        polyhead.load(tmp_path)


OTHER_HEADS = [pytest.param(head, marks=pytest.mark.long) for head in ("classes", None)]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["tokens", "tags", *OTHER_HEADS])
def test_an_export_answers_as_python_does(head, tmp_path):
    model = small(head)
    version = model.export(tmp_path)
    texts = ["mktayiakqr", "", "G G", "MKJ#日"]
    known = [*texts[:3], "MKXXX"]
    masked = head == "tokens"
    requests = [
        ("embed", {"sequence": texts}),
        ("contacts", {"sequence": texts}),
        ("serving_default", {"sequence": [f"{t}<mask>" for t in texts] if masked else texts}),
    ]
    if masked:
        pairs = {"sequence": ["MKTAY"] * 5, "mutation": ["K2R", "A2R", "K9R", "K2", "K2J"]}
        requests.append(("score", pairs))
    lines = "".join(json.dumps({"signature_name": n, "inputs": x}) + "\n" for n, x in requests)
    command = [sys.executable, "-m", "polyhead.serving.loader", str(version)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    embedded, contacts, own, *score = map(json.loads, done.stdout.splitlines())
    np.testing.assert_allclose(embedded["embedding"], model.embed(known), atol=1e-4)
    np.testing.assert_allclose(embedded["pooled"], model.embed(known, pooled=True), atol=1e-4)
    assert embedded["length"] == contacts["length"] == [10, 0, 2, 5]
    np.testing.assert_allclose(contacts["contacts"], model.contacts(known), atol=1e-4)
    if masked:
        expected = [c.label for c in model.fill_mask([f"{t}<mask>" for t in known])[0]]
        assert own["tokens"][0][0] == expected
        assert score[0]["score"][0] == pytest.approx(model.score("MKTAY", "K2R"), abs=1e-4)
        assert np.isnan(score[0]["score"][1:]).all()
    elif head == "classes":
        assert [row[0] for row in own["labels"]] == [c.label for c in model.classify(known)]
    elif head == "tags":
        spans = [(s.label, s.start, s.end) for s in model.tag("mktayiakqr")]
        found = list(zip(own["labels"][0], own["starts"][0], own["ends"][0], strict=True))
        assert spans and [span for span in found if span[0]] == spans
