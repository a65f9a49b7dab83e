"""Compares text encoders of random weights with those that Hugging Face's library saves."""

import dataclasses
import json

import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file

import polyhead
from polyhead.training import CheckpointError
from polyhead.zoo import BERT, ModernBERT
from polyhead.zoo.published.encoders import lowers_case

torch = pytest.importorskip("torch", reason="torch is not installed: EXTRAS=parity")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    vocab_size=60, max_position_embeddings=24, classifier_dropout=0.1,
)  # fmt: skip
FAMILIES = {
    "Bert": SIZES,
    "DistilBert": dict(
        dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=60, max_position_embeddings=24
    ),
    "Roberta": SIZES | dict(type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1),
    "ModernBert": SIZES | dict(
        num_hidden_layers=5, local_attention=8, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        cls_token_id=2, sep_token_id=3, classifier_dropout=0.0,
    ),
}  # fmt: skip
HEADS = {
    None: "Model",
    "classes": "ForSequenceClassification",
    "score": "ForSequenceClassification",
    "tags": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
    "tokens": "ForMaskedLM",
}
LENGTHS = np.array([[18], [5], [11]])
BODY = np.random.default_rng(0).integers(4, 60, (3, 18)).astype("int32")


def tokens_for(name):
    return np.where(np.arange(18) < LENGTHS, BODY, 1 if name == "Roberta" else 0).astype("int32")


def class_of(name):
    return ModernBERT if name == "ModernBert" else BERT


def make(name, head, seed=0, **settings):
    torch.manual_seed(seed)
    labels = {"classes": 3, "tags": 3, "score": 1}
    config = getattr(transformers, f"{name}Config")(
        **{**FAMILIES[name], "num_labels": labels.get(head, 2), **settings}
    )
    model = getattr(transformers, f"{name}{HEADS[head]}")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2)
    return model


def expected(model, head, tokens, pad, types=None):
    given = {"input_ids": torch.tensor(tokens).long()}
    given["attention_mask"] = torch.tensor(tokens != pad).long()
    if types is not None:
        given["token_type_ids"] = torch.tensor(types).long()
    with torch.no_grad():
        found = model(**given)
    if head == "spans":
        return np.stack([found.start_logits.numpy(), found.end_logits.numpy()], axis=-1)
    if head is None:
        return found.last_hidden_state.numpy()
    return found.logits.numpy()[..., 0] if head == "score" else found.logits.numpy()


def assert_equal(ours, theirs, head, tokens, types=None, atol=1e-5):
    inputs = tokens if types is None else {"tokens": tokens, "types": types}
    found = ours.features(tokens, types) if head is None else ours(inputs)
    found, pad = ops.convert_to_numpy(found), ours.config.pad_id
    wanted = expected(theirs, head, tokens, pad, types)
    if head not in ("classes", "score"):  # features of padding are not used
        found, wanted = found[tokens != pad], wanted[tokens != pad]
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=atol, rtol=1e-5)


def fields(config):
    return {n: v for n, v in dataclasses.asdict(config).items() if n != "max_length"}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_match_the_reference_both_ways(name, head, tmp_path):
    theirs, tokens = make(name, head), tokens_for(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = polyhead.load(tmp_path / "theirs")
    assert type(ours) is class_of(name) and ours.config.head == head
    types = np.where(np.arange(18) < 4, 0, 1) * np.ones((3, 1), "int32") if name == "Bert" else None
    assert_equal(ours, theirs, head, tokens, types)
    ours.save_pretrained(tmp_path / "ours", format="huggingface")
    ours.save_pretrained(tmp_path / "ours", format="huggingface")  # replaces itself
    again = type(ours).from_pretrained(tmp_path / "ours")
    assert again.config == ours.config
    for a, b in zip(ours.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
    original = load_file(tmp_path / "theirs" / "model.safetensors")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    for tensor, array in written.items():
        place = original if tensor in original else {tensor: original[tensor.split(".", 1)[1]]}
        np.testing.assert_array_equal(place[tensor], array)
    kind = getattr(transformers, f"{name}{HEADS[head]}")
    extra = {"add_pooling_layer": False} if head is None and name in ("Bert", "Roberta") else {}
    back, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True, **extra)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_equal(ours, back.eval(), head, tokens, types)


def test_a_threshold_of_no_answer_is_not_written(tmp_path):
    model = BERT.preset("bert-tiny", num_layers=1, dim=32, num_heads=2, head="spans", no_answer=1.5)
    with pytest.warns(UserWarning, match="no place for the threshold no_answer, 1.5: pass no_"):
        model.save_pretrained(tmp_path, format="huggingface")
    assert polyhead.load(tmp_path).config.no_answer == 0


def test_roberta_counts_positions_over_tokens_that_are_not_padding(tmp_path):
    theirs, tokens = make("Roberta", "tags"), tokens_for("Roberta")[:, ::-1].copy()
    theirs.save_pretrained(tmp_path)
    assert_equal(BERT.from_pretrained(tmp_path), theirs, "tags", tokens)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("Bert", dict(hidden_act="gelu_new", layer_norm_eps=1e-3)),
        ("Bert", dict(hidden_act="relu", type_vocab_size=4)),
        ("DistilBert", dict(activation="relu", sinusoidal_pos_embds=True)),
        ("Roberta", dict(pad_token_id=3)),
        ("ModernBert", dict(classifier_pooling="mean", classifier_bias=True)),
        ("ModernBert", dict(global_attn_every_n_layers=2, classifier_activation="relu")),
        ("ModernBert", dict(hidden_activation="silu", norm_eps=1e-3)),
    ],
)
def test_settings_are_honoured(name, settings, tmp_path):
    theirs, tokens = make(name, "classes", **settings), tokens_for(name)
    if name == "Roberta":
        tokens = np.where(tokens == 1, 3, tokens)
    theirs.save_pretrained(tmp_path)
    assert_equal(polyhead.load(tmp_path), theirs, "classes", tokens)


def test_a_decoder_without_bias_is_read(tmp_path):
    theirs, tokens = make("ModernBert", "tokens", decoder_bias=False), tokens_for("ModernBert")
    theirs.save_pretrained(tmp_path)
    assert_equal(polyhead.load(tmp_path), theirs, "tokens", tokens)


def edit(folder, file="config.json", **changes):
    path = folder / file
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: v for name, v in settings.items() if v is not ...}))


def edit_tensors(folder, function):
    path = folder / "model.safetensors"
    tensors = {}
    for name, array in load_file(path).items():
        if (found := function(name, array)) is not None:
            tensors[found[0]] = np.ascontiguousarray(found[1])
    save_file(tensors, path)


def test_files_of_older_versions_are_read(tmp_path):
    theirs, tokens = make("Bert", "tokens"), tokens_for("Bert")
    theirs.save_pretrained(tmp_path)
    edit(
        tmp_path, dtype=..., torch_dtype="float32", position_embedding_type="absolute",
        gradient_checkpointing=False, id2label=...,
    )  # fmt: skip
    tensors = load_file(tmp_path / "model.safetensors")
    words = "bert.embeddings.word_embeddings.weight"
    extra = {
        "bert.embeddings.position_ids": np.arange(24)[None],
        "cls.predictions.decoder.weight": tensors[words],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        "cls.seq_relationship.weight": np.zeros((2, 32), "float32"),
        "cls.seq_relationship.bias": np.zeros(2, "float32"),
        "bert.pooler.dense.weight": np.zeros((32, 32), "float32"),
        "bert.pooler.dense.bias": np.zeros(32, "float32"),
    }
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in tensors.items()
    }
    save_file(renamed | extra, tmp_path / "model.safetensors")
    assert_equal(BERT.from_pretrained(tmp_path), theirs, "tokens", tokens)
    changed = extra | {"cls.predictions.decoder.weight": tensors[words] + 1}
    save_file(renamed | changed, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="decoder.weight differs from"):
        BERT.from_pretrained(tmp_path)


POOLER = dict(fc_size=768, num_attention_heads=12, num_fc_layers=3, size_per_head=128)
LISTED = dict(
    is_decoder=False, add_cross_attention=False, is_encoder_decoder=False, pruned_heads={},
    max_length=20, num_beams=1, do_sample=False, temperature=1.0, top_k=50, xla_device=None,
)  # fmt: skip


@pytest.mark.parametrize(
    "name, head, settings",
    [
        # distilbert-base-uncased-finetuned-sst-2-english
        ("DistilBert", "classes", dict(tie_weights_=True, output_past=True, **LISTED)),
        # bert-base-chinese
        (
            "Bert",
            "tokens",
            {f"pooler_{name}": value for name, value in POOLER.items()}
            | dict(directionality="bidi", pooler_type="first_token_transform", **LISTED),
        ),
        ("Bert", "tokens", dict(architectures=...)),  # google/bert_uncased_L-2_H-128_A-2
        ("Roberta", "spans", dict(language="english", name="Roberta", **LISTED)),  # deepset's
        ("ModernBert", "tokens", dict(position_embedding_type="sans_pos", **LISTED)),  # mmBERT-base
    ],
)
def test_settings_of_published_files_are_read(name, head, settings, tmp_path):
    theirs = make(name, head)
    theirs.save_pretrained(tmp_path)
    edit(tmp_path, **settings)
    assert_equal(polyhead.load(tmp_path), theirs, head, tokens_for(name))


def test_modern_bert_of_version_4_is_read(tmp_path):
    thetas = {
        kind: {"rope_type": "default", "rope_theta": theta}
        for kind, theta in (("full_attention", 5000.0), ("sliding_attention", 300.0))
    }
    theirs = make("ModernBert", "tags", rope_parameters=thetas)
    theirs.save_pretrained(tmp_path)
    edit(
        tmp_path, rope_parameters=..., layer_types=..., global_attn_every_n_layers=3,
        global_rope_theta=5000.0, local_rope_theta=300.0, reference_compile=True,
        position_embedding_type="absolute", repad_logits_with_grad=False, layer_norm_eps=1e-5,
        deterministic_flash_attn=False,
    )  # fmt: skip
    assert_equal(ModernBERT.from_pretrained(tmp_path), theirs, "tags", tokens_for("ModernBert"))


def test_a_new_head_has_new_weights_and_keeps_those_it_shares(tmp_path):
    theirs, tokens = make("Bert", None), tokens_for("Bert")
    theirs.save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="new weights, .*: head/output/kernel, head/output/bias$"):
        model = polyhead.load(tmp_path / "base", head="classes", class_names=["a", "b", "c"])
    assert model.config.class_names == ("a", "b", "c") and model.config.num_classes == 3
    pooler = theirs.pooler.dense
    np.testing.assert_array_equal(model.head.dense.kernel, pooler.weight.detach().numpy().T)
    np.testing.assert_allclose(
        model.features(tokens)[tokens != 0], expected(theirs, None, tokens, 0)[tokens != 0],
        atol=1e-5,
    )  # fmt: skip
    for format in ("polyhead", "huggingface"):
        folder = tmp_path / format
        model.save_pretrained(folder, format=format)
        with pytest.warns(UserWarning, match="new weights, .*: head/output/kernel, head/output/b"):
            other = BERT.from_pretrained(folder, num_classes=5, dropout=0.3)
        assert other(tokens).shape == (3, 5) and other.config.dropout == 0.3
        np.testing.assert_array_equal(other.head.dense.kernel, model.head.dense.kernel)
        with pytest.warns(UserWarning, match="new weights, .*head/dense/kernel, "):
            masked = BERT.from_pretrained(folder, head="tokens")
        assert masked(tokens).shape == (3, 18, 60)
        same = BERT.from_pretrained(folder, head="classes", class_names=("a", "b", "c"))
        np.testing.assert_array_equal(same(tokens), model(tokens))
        with pytest.raises(ValueError, match="the head 'tags' needs num_classes or class_names"):
            BERT.from_pretrained(folder, head="tags")
    adapted = model.adapt(head="tags", num_classes=2)
    assert adapted(tokens).shape == (3, 18, 2)


def test_modern_bert_keeps_the_first_map_of_the_head_of_pretraining(tmp_path):
    theirs = make("ModernBert", "tokens")
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="new weights, to be trained: head/output/kernel, head/o"):
        model = polyhead.load(tmp_path, head="classes", num_classes=2)
    dense = theirs.head.dense.weight.detach().numpy()
    np.testing.assert_array_equal(model.head.dense.kernel, dense.T)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("Bert", dict(new_setting=1), r"unknown settings \['new_setting'\]"),
        ("Bert", dict(hidden_act="selu"), "hidden_act must be one of"),
        ("Bert", dict(position_embedding_type="relative_key"), "position_embedding_type must be"),
        ("Bert", dict(is_decoder=True), "is_decoder must be False"),
        ("Bert", dict(architectures=["BertForMultipleChoice"]), "architectures must be one of"),
        ("Bert", dict(problem_type="multi_label_classification"), "problem_type must be"),
        ("Bert", dict(problem_type="regression"), "problem_type must be"),
        ("Bert", dict(architectures=[["BertModel"]]), "architectures must be one of"),
        ("Bert", dict(hidden_act=["gelu"]), "hidden_act must be one of"),
        ("Bert", dict(hidden_size=36), "shape"),
        ("Bert", dict(num_hidden_layers=3), "lacks"),
        ("Bert", dict(num_hidden_layers=1), "has no"),
        ("Bert", dict(id2label={"0": "a"}), "lacks|shape"),
        ("DistilBert", dict(new_setting=1), "unknown settings"),
        ("Roberta", dict(new_setting=1), "unknown settings"),
        ("ModernBert", dict(new_setting=1), "unknown settings"),
        ("ModernBert", dict(norm_bias=True), "norm_bias must be False"),
        ("ModernBert", dict(layer_types=["sliding_attention"] * 5), "layer_types must be"),
        (
            "ModernBert",
            dict(rope_parameters={"full_attention": {"rope_type": "yarn", "factor": 2.0}}),
            "rope_type must be 'default'",
        ),
        ("Roberta", dict(architectures=["RobertaForCausalLM"]), "architectures must be one of"),
    ],
)
def test_unsupported_settings_are_refused(name, change, message, tmp_path):
    make(name, "classes").save_pretrained(tmp_path)
    edit(tmp_path, **change)
    with pytest.raises(CheckpointError, match=message):
        polyhead.load(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_and_unknown_tensors_are_refused(name, tmp_path):
    make(name, "classes").save_pretrained(tmp_path)
    first = "classifier.out_proj.weight" if name == "Roberta" else "classifier.weight"
    edit_tensors(tmp_path, lambda n, a: None if n == first else (n, a))
    with pytest.raises(CheckpointError, match=f"lacks .*{first}"):
        polyhead.load(tmp_path)
    make(name, None).save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda n, a: (n, a) if "orm" not in n else (f"{n}.other", a))
    with pytest.raises(CheckpointError, match="lacks"):
        polyhead.load(tmp_path)


def write_sentences(folder, pooling, *more, **length):
    kinds = ("Transformer", "Pooling", *more)
    paths = ("", "1_Pooling", "2_Normalize", "3_Dense")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=False))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, **pooling})
    )
    if length:
        (folder / "sentence_bert_config.json").write_text(json.dumps(length))


POOLINGS = {
    "token": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt": "pooling_mode_mean_sqrt_len_tokens",
    "last": "pooling_mode_lasttoken",
}


@pytest.mark.parametrize(
    "name, pooling",
    [
        *((name, pooling) for name in ("Bert", "Roberta") for pooling in POOLINGS),
        ("DistilBert", "mean"),
        ("ModernBert", "mean"),
    ],
)
def test_sentence_transformers_pool_as_their_files_say(name, pooling, tmp_path):
    theirs, tokens = make(name, None), tokens_for(name)
    theirs.save_pretrained(tmp_path)
    modes = {mode: ours == pooling for ours, mode in POOLINGS.items()}
    write_sentences(tmp_path, modes, "Normalize", max_seq_length=12, do_lower_case=False)
    model = polyhead.load(tmp_path)
    c = model.config
    assert (c.pooling, c.normalize, c.max_length) == (pooling, True, 12)
    x, mask = expected(theirs, None, tokens, c.pad_id), (tokens != c.pad_id)[..., None]
    count, last = mask.sum(1), mask[..., 0].sum(1) - 1
    wanted = {
        "token": x[:, 0],
        "mean": (x * mask).sum(1) / count,
        "max": np.where(mask, x, -np.inf).max(1),
        "mean_sqrt": (x * mask).sum(1) / np.sqrt(count),
        "last": x[np.arange(3), last],
    }[pooling]
    wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
    np.testing.assert_allclose(model(tokens), wanted, atol=1e-5)
    model.save_pretrained(tmp_path / "ours", format="huggingface")
    assert class_of(name).from_pretrained(tmp_path / "ours").config == c
    written = json.loads((tmp_path / "ours" / "1_Pooling" / "config.json").read_text())
    assert {n: v for n, v in written.items() if v is True} == {POOLINGS[pooling]: True}


def test_files_of_version_6_of_sentence_transformers_are_read(tmp_path):
    make("Bert", None).save_pretrained(tmp_path)
    write_sentences(
        tmp_path, {"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True},
        "Normalize", transformer_task="feature-extraction", module_output_name="token_embeddings",
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    )  # fmt: skip
    edit_modules = (tmp_path / "modules.json").read_text()
    (tmp_path / "modules.json").write_text(
        edit_modules.replace("models.Pooling", "sentence_transformer.modules.pooling.Pooling")
    )
    (tmp_path / "2_Normalize").mkdir()
    names = {f"module_{side}_name": "sentence_embedding" for side in ("input", "output")}
    (tmp_path / "2_Normalize" / "config.json").write_text(json.dumps(names))
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 16}')
    config = polyhead.load(tmp_path).config
    assert (config.pooling, config.normalize, config.max_length) == ("token", True, 16)
    edit(tmp_path, "2_Normalize/config.json", module_input_name="token_embeddings")
    with pytest.raises(CheckpointError, match="module_input_name must be 'sentence_embedding'"):
        polyhead.load(tmp_path)


def test_sentence_transformers_whose_settings_name_another_head_are_read(tmp_path):
    make("Roberta", None).save_pretrained(tmp_path)
    edit(tmp_path, architectures=["RobertaForMaskedLM"])  # as in all-distilroberta-v1
    write_sentences(tmp_path, {"pooling_mode_mean_tokens": True})
    assert polyhead.load(tmp_path).config.head is None
    make("Roberta", "tokens").save_pretrained(tmp_path)
    assert polyhead.load(tmp_path).config.head == "tokens"


def test_unsupported_parts_of_sentence_transformers_are_refused(tmp_path):
    make("Bert", None).save_pretrained(tmp_path)
    mean = {"pooling_mode_mean_tokens": True}
    for files, message in (
        ((mean, "Normalize", "Dense"), "type must be Transformer, Pooling or Normalize: 'Dense'"),
        ((mean | {"pooling_mode_max_tokens": True},), "pooling_mode must be one of"),
        ((mean | {"pooling_mode_weightedmean_tokens": True},), "pooling_mode must be one of"),
        ((mean | {"word_embedding_dimension": 31},), "word_embedding_dimension must be 32"),
        ((mean | {"new": 1},), "unknown settings"),
        ((mean, "Other"), "type must be Transformer, Pooling or Normalize: 'Other'"),
    ):
        write_sentences(tmp_path, *files)
        with pytest.raises(CheckpointError, match=message):
            polyhead.load(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())[:2]
    for path in ("../x", ".."):
        changed = [modules[0], modules[1] | {"path": path}]
        (tmp_path / "modules.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=f"path must be a folder within .*: '{path}'"):
            polyhead.load(tmp_path)
    write_sentences(tmp_path, mean, max_seq_length=99)
    with pytest.raises(CheckpointError, match="max_length must be at most 24"):
        polyhead.load(tmp_path)
    assert polyhead.load(tmp_path, max_length=20).config.max_length == 20
    write_sentences(tmp_path, mean, max_seq_length=9, do_lower_case=True)
    with pytest.raises(CheckpointError, match="do_lower_case must be False, as the tokenizer"):
        polyhead.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"normalizer": {"lowercase": true}}')  # as in BGE
    assert lowers_case(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    assert polyhead.load(tmp_path).config.max_length == 9
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(CheckpointError, match="do_lower_case must be False, as the tokenizer"):
        polyhead.load(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    write_sentences(tmp_path, mean, max_seq_length=9)
    with pytest.raises(ValueError, match="^max_length must be a positive integer: 0"):
        polyhead.load(tmp_path, max_length=0)  # the file is not at fault
    (tmp_path / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')
    with pytest.raises(CheckpointError, match="default_prompt_name must be None"):
        polyhead.load(tmp_path)
