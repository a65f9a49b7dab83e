"""Checkpoints of every format, written by polyhead 0.1 and by the formats' own libraries.

The folders in `checkpoints/` were read by polyhead 0.1, and hold the logits that it gave. Their
names begin with what wrote them: polyhead 0.1 in its own format or in Hugging Face's, transformers
5.23; timm's is a renamed file of transformers'.
"""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file

from polyhead.training import CheckpointError
from polyhead.zoo import GPT, Sampling, Search, Transformer, ViT
from polyhead.zoo.published import OLDER_FIELDS, vit_timm

CHECKPOINTS = Path(__file__).parent / "checkpoints"
NAMES = sorted(path.name for path in CHECKPOINTS.iterdir())
PUBLISHED = [name for name in NAMES if not name.startswith("polyhead")]
TOKENS = np.array([[1, 5, 9, 0, 7]], "int32")
PAIR = {"source": np.array([[5, 6, 2]], "int32"), "target": np.array([[1, 7, 8, 3]], "int32")}


def class_of(name):
    return GPT if "gpt" in name else ViT if "vit" in name else Transformer


def logits(model):
    if isinstance(model, ViT):
        height, width = model.config.image_size
        x = np.arange(height * width * 3).reshape(1, height, width, 3) * 37 % 256
    else:
        x = TOKENS if isinstance(model, GPT) else PAIR
    return ops.convert_to_numpy(model(x))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(vit_timm.SIZES, "tiny", (8, 2, 2))


@pytest.mark.parametrize("name", NAMES)
def test_files_of_version_0_1_are_read(name):
    model = class_of(name).from_pretrained(CHECKPOINTS / name)
    expected = load_file(CHECKPOINTS / name / "logits")["logits"]
    np.testing.assert_allclose(logits(model), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_saved_tensors_equal_the_loaded_ones_bit_for_bit(name, tmp_path):
    model = class_of(name).from_pretrained(CHECKPOINTS / name)
    format = "timm" if "timm" in name else "huggingface"
    model.save_pretrained(tmp_path / "one", format=format)
    model.save_pretrained(tmp_path / "one", format=format)  # replaces itself
    again = type(model).from_pretrained(tmp_path / "one")
    assert again.config == model.config
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
    again.save_pretrained(tmp_path / "two", format=format)
    for path in (tmp_path / "one").iterdir():
        other = tmp_path / "two" / path.name
        if path.suffix == ".json":
            assert path.read_text() == other.read_text()
            continue
        written, read = load_file(other), load_file(path)
        assert written.keys() == read.keys()
        for tensor, array in read.items():
            np.testing.assert_array_equal(written[tensor], array)
        original = load_file(CHECKPOINTS / name / path.name)
        assert original.keys() == written.keys()
        for tensor, array in original.items():
            # transformers' GPT-2 scales the scores; ours are saved with scaled queries.
            if name != "transformers-gpt2" or ".c_attn." not in tensor:
                np.testing.assert_array_equal(written[tensor], array)


def copy_folder(name, tmp_path, file="config.json", **changes):
    folder = shutil.copytree(CHECKPOINTS / name, tmp_path / name, dirs_exist_ok=True)
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))
    return folder


BOOKKEEPING = dict(
    _attn_implementation_autoset=True, torchscript=False, pruned_heads={}, use_bfloat16=False,
    problem_type="multi_label_classification", output_attentions=True, chunk_size_feed_forward=0,
    tie_encoder_decoder=False, tf_legacy_loss=False, finetuning_task="x", is_decoder=False,
    sep_token_id=3, prefix="", architectures=["Custom"], use_return_dict=True,
)  # fmt: skip
GENERATION = dict(
    max_length=9, do_sample=False, num_beams=2, temperature=1.0, top_k=50, top_p=1.0, min_length=0,
    repetition_penalty=1.0, length_penalty=0.5, no_repeat_ngram_size=0, num_return_sequences=1,
)  # fmt: skip


@pytest.mark.parametrize(
    "name", ["transformers-gpt2", "transformers-marian-shared", "huggingface-vit"]
)
def test_settings_that_change_no_logits_are_ignored(name, tmp_path):
    vit = dict(architectures=None, problem_type=None)
    bookkeeping = BOOKKEEPING if "vit" not in name else {**BOOKKEEPING, **vit}
    folder = copy_folder(name, tmp_path, **bookkeeping)
    for setting, value in (("pruned_heads", {"0": [1]}), ("quantization_config", {"bits": 4})):
        with pytest.raises(CheckpointError, match=setting):
            class_of(name).from_pretrained(copy_folder(name, tmp_path, **{setting: value}))
        folder = copy_folder(name, tmp_path, **bookkeeping)
    class_of(name).from_pretrained(folder)


def test_generation_settings_in_an_old_config_are_read(tmp_path):
    folder = copy_folder("transformers-gpt2", tmp_path, n_ctx=3, **GENERATION)
    (folder / "generation_config.json").unlink()
    search = GPT.from_pretrained(folder).config.search
    assert (search.num_beams, search.length_penalty, search.max_new_tokens) == (2, 0.5, 9)
    (folder / "generation_config.json").write_text('{"num_beams": 3}')  # config.json is ignored now
    search = GPT.from_pretrained(folder).config.search
    assert (search.num_beams, search.length_penalty, search.max_new_tokens) == (3, 1.0, 100)
    ViT.from_pretrained(copy_folder("huggingface-vit", tmp_path, **GENERATION))


@pytest.mark.parametrize(
    "name, setting",
    [
        ("transformers-gpt2", "embd_pdrop"),
        ("transformers-marian-shared", "attention_dropout"),
        ("transformers-marian-shared", "encoder_layerdrop"),
    ],
)
def test_dropout_rates_that_differ_are_a_warning(name, setting, tmp_path):
    folder = copy_folder(name, tmp_path, **{setting: 0.7})
    with pytest.warns(UserWarning, match=f"config.json: training uses {setting} 0.*, not 0.7"):
        model = class_of(name).from_pretrained(folder)
    expected = load_file(folder / "logits")["logits"]
    np.testing.assert_allclose(logits(model), expected, atol=1e-5, rtol=1e-5)


def test_a_classification_head_on_gpt2_is_refused(tmp_path):
    folder = copy_folder("transformers-gpt2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"score.weight": np.ones((2, 8), "f")}, folder / "model.safetensors")
    message = "score.weight is a classification head, which GPT does not have"
    with pytest.raises(CheckpointError, match=f"model.safetensors: {message}"):
        GPT.from_pretrained(folder)


def test_two_names_of_one_tensor_are_refused(tmp_path):
    folder = copy_folder("transformers-gpt2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["wpe.weight"] = tensors["transformer.wpe.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="wpe.weight and .*wpe.weight are the same tensor"):
        GPT.from_pretrained(folder)


def test_bfloat16_is_read(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    folder = copy_folder("transformers-gpt2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    expected = load_file(folder / "logits")["logits"]
    np.testing.assert_allclose(logits(GPT.from_pretrained(folder)), expected, atol=0.2)


def test_timms_format_is_limited_to_its_sizes_and_pooling(tmp_path):
    sizes = dict(image_size=16, patch_size=8, num_classes=3, num_layers=2, dim=8, num_heads=2)
    config = ViT.Config(**sizes, intermediate_dim=32, pooling="mean", class_names=("a", "b", "c"))
    model = ViT(config)
    model.save_pretrained(tmp_path / "mean", format="timm")
    names = load_file(tmp_path / "mean" / "model.safetensors").keys()
    assert "fc_norm.weight" in names and "cls_token" not in names
    again = ViT.from_pretrained(tmp_path / "mean")
    assert again.config == config
    np.testing.assert_array_equal(logits(again), logits(model))
    for changes, message in (
        (dict(intermediate_dim=12), "intermediate_dim 4 \\* dim"),
        (dict(epsilon=1e-5), "epsilon must be 1e-06 in the format 'timm'"),
    ):
        with pytest.raises(ValueError, match=message):
            other = ViT(dataclasses.replace(config, **changes))
            other.save_pretrained(tmp_path / "other", format="timm")


def test_generation_settings_are_written_and_read(tmp_path):
    model = GPT.from_pretrained(CHECKPOINTS / "polyhead-gpt")
    search = Search(length_penalty=0.5, early_stopping="never", max_new_tokens=8, min_new_tokens=2,
                    forced_end=True, no_repeat_ngram_size=3, banned=((3, 4),),
                    renormalized=True, stop_tokens=(5, 6))  # fmt: skip
    sampling = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.2)
    model.config = dataclasses.replace(model.config, search=search, sampling=sampling,
                                       stop_strings=("\n",))  # fmt: skip
    model.save_pretrained(tmp_path / "one", format="huggingface")
    assert GPT.from_pretrained(tmp_path / "one").config == model.config
    for changes, message in (
        (dict(penalty="gnmt", num_beams=3), "penalty must be 'power' in this format: 'gnmt'"),
        (dict(forced_begin=5), "forced_begin must be None in this format: 5"),
    ):
        other = dataclasses.replace(search, **changes)
        model.config = dataclasses.replace(model.config, search=other)
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path / "two", format="huggingface")
    beams = dataclasses.replace(search, num_beams=3)  # which do not sample
    model.config = dataclasses.replace(model.config, search=beams)
    model.save_pretrained(tmp_path / "two", format="huggingface")
    config = GPT.from_pretrained(tmp_path / "two").config
    assert (config.search, config.sampling) == (beams, Sampling(temperature=0))


def test_settings_that_change_the_text_are_refused_or_a_warning(tmp_path):
    name, file = "transformers-gpt2", "generation_config.json"
    for change in (dict(do_sample=True), dict(repetition_penalty=2.0)):
        folder = copy_folder(name, tmp_path, file, num_beams=3, **change)
        with pytest.raises(CheckpointError, match="num_beams must be 1 with sampling"):
            GPT.from_pretrained(folder)
        (folder / file).unlink()
    folder = copy_folder(name, tmp_path, file, min_length=6)
    with pytest.warns(UserWarning, match="min_length, 6, is ignored: it includes the prompt"):
        assert GPT.from_pretrained(folder).config.search.min_new_tokens == 0


@pytest.mark.parametrize("change", [{"problem_type": "multi_label_classification"}])
def test_several_labels_per_image_are_refused(change, tmp_path):
    with pytest.raises(CheckpointError, match="problem_type must be of one of several classes"):
        ViT.from_pretrained(copy_folder("huggingface-vit", tmp_path, **change))


def test_older_names_of_our_own_fields_are_read():
    """The folders of polyhead 0.1 are in `CHECKPOINTS`."""
    content = (CHECKPOINTS / "polyhead-gpt" / "config.json").read_text()
    assert '"hidden_dim": 12' in content and '"beams": 2' in content
    config = GPT.from_pretrained(CHECKPOINTS / "polyhead-gpt").config
    assert config.intermediate_dim == 12 and config.search.num_beams == 2


def test_a_keras_file_of_polyhead_0_1_is_read(tmp_path):
    """Their configuration has the older names too; their weights have the same places."""
    model = GPT.from_pretrained(CHECKPOINTS / "polyhead-gpt")
    model.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as new:
        with zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
            for name in new.namelist():
                content = new.read(name)
                for before, after in OLDER_FIELDS.items():
                    content = content.replace(f'"{after}":'.encode(), f'"{before}":'.encode())
                old.writestr(name, content)
        assert b'"hidden_dim": 12' in zipfile.ZipFile(tmp_path / "old.keras").read("config.json")
    again = keras.models.load_model(tmp_path / "old.keras")
    assert again.config == model.config
    for ours, theirs in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
