"""Every example in --help, README, docs and recipes is read from there and parsed; most are run."""

import csv
import re
import shlex
import shutil
import string
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import typer

from polyhead.data import Subwords, WordPieces
from polyhead.recipes import command
from polyhead.recipes.run import load
from polyhead.zoo import BERT, ESM, T5, AlphaFold, ESMConfig, ESMFold, ViT
from tests.conftest import without_xla
from tests.data.test_folding import structure
from tests.recipes.test_command import copy_reversed, polyhead
from tests.test_package import ROOT

README = (ROOT / "README.md").read_text("utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")
EXPERIMENTS = [path.read_text("utf-8") for path in (ROOT / "docs" / "experiments").glob("*.md")]
SAMPLES = ROOT / "data" / "samples"
RECIPES = [ROOT / "recipes" / f"{name}.py" for name in ("translation", "generation", "diversify")]
RECIPES += [ROOT / "recipes" / "classification.py", ROOT / "recipes" / "demo.sh"]


def leaves(group):
    """Yields the commands of a group and its subgroups."""
    for child in group.commands.values():
        yield from leaves(child) if hasattr(child, "commands") else [child]


def commands(text):
    """The ``polyhead`` commands in a text as lists of arguments, shell variables replaced.

    Options in brackets, which a reader may add, are a list of their own beside the command's.
    """
    text = text.replace("\\\\\n", "\\\n").replace("\\\n", " ")
    text = text.replace('"$polyhead"', "    polyhead").replace('"${sentences[@]}"', "A B")
    variables = {}
    for line in re.findall(r'(?m)^ {4,}((?:polyhead |\w="--).*)', text):
        line = re.sub(r" #.*", "", line)
        optional = shlex.split(" ".join(re.findall(r"\[(--.*?)\]", line)))
        line = string.Template(re.sub(r"\[--.*?\]", "", line)).safe_substitute(variables)
        if line.startswith("polyhead "):
            yield shlex.split(line.rstrip(" )"))[1:], optional
        else:
            name, value = line.split("=", 1)
            variables[name] = value.strip('"')


def helps():
    """The examples of --help."""
    texts = (leaf.help or "" for leaf in leaves(typer.main.get_command(command.app)))
    for text in texts:
        for example in re.findall(r"Example: (polyhead .*?)(?=Example:|$)", text, re.DOTALL):
            yield from commands("    " + " ".join(example.split()))


def test_every_example_is_a_command_with_options_that_exist():
    app = typer.main.get_command(command.app)
    for leaf in leaves(app):
        leaf.callback = lambda **options: None
    texts = [README, GUIDE, *EXPERIMENTS, *(path.read_text("utf-8") for path in RECIPES)]
    found = [*helps(), *(example for text in texts for example in commands(text))]
    assert len(found) > 50 and any(optional for _, optional in found)
    for arguments, optional in found:
        app.main([*arguments, *optional], standalone_mode=False)


@pytest.fixture(scope="session")
def models(sample, tmp_path_factory):
    """A folder with small versions of the published models that the examples load."""
    folder = tmp_path_factory.mktemp("models")
    words = WordPieces.train(sample.sources, 300)
    BERT.preset("bert-tiny", words, max_length=64).save_pretrained(folder / "MINILM")
    pieces = Subwords.train(sample.sources, 300, exact=False, sentinels=True)
    T5.preset("t5-tiny", pieces, max_length=64).save_pretrained(folder / "FLAN")
    esm = ESM.preset("esm2-t6-8m", num_layers=1)
    esm.contact_map.kernel.assign(np.ones(esm.contact_map.kernel.shape))
    esm.save_pretrained(folder / "ESM")
    sizes = dict(num_layers=1, dim=32, intermediate_dim=48, num_heads=2, head=None)
    sizes = dict(esm=ESMConfig(**sizes), num_blocks=1, dim=32, pair_dim=32)
    ESMFold.preset("esmfold-v1", **sizes).save_pretrained(folder / "FOLD")
    AlphaFold.preset("alphafold-tiny").save_pretrained(folder / "ALPHAFOLD")
    return folder


@pytest.fixture
def folder(sample, models, tmp_path, monkeypatch):
    """A working directory with small versions of the data that the examples name."""
    (tmp_path / "multi30k").mkdir()
    for split, rows in (
        ("train", slice(0, 24)),
        ("val", slice(24, 26)),
        ("test_2016_flickr", slice(26, 28)),
    ):
        for language, texts in (("en", sample.sources), ("de", sample.targets)):
            path = tmp_path / "multi30k" / f"{split}.{language}"
            path.write_text("\n".join(texts[rows]) + "\n", "utf-8")
    text = "ROMEO: Once upon a time\nThe end\n" + "\n".join(sample.sources)
    (tmp_path / "book.txt").write_text(text, "utf-8")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        for name in ("cat", "dog", "bird", "fish", "frog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                image = tf.io.encode_jpeg(random.integers(0, 256, (40, 36, 3)).astype("uint8"))
                (tmp_path / "photos" / split / name / f"{i}.jpg").write_bytes(image.numpy())
    shutil.copy(tmp_path / "photos" / "val" / "cat" / "0.jpg", tmp_path / "cat.jpg")
    for sample_name, name in (("messages", "reviews.csv"), ("pairs", "similar.csv")):
        lines = (SAMPLES / sample_name / "val.tsv").read_text("utf-8").splitlines()[:30]
        with open(tmp_path / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(line.split("\t") for line in lines)
    shutil.copy(SAMPLES / "names" / "val.conll", tmp_path / "names.conll")
    shutil.copy(SAMPLES / "questions" / "val.json", tmp_path / "questions.json")
    lines = (SAMPLES / "reports" / "val.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "reports.jsonl").write_text("".join(lines[:20]), "utf-8")
    (tmp_path / "article.txt").write_text("Ada was born in London.", "utf-8")
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "query.a3m").write_text(">query\nMKTAY\n>other\nMR-gAY\n")
    sequences = ["MKTAYIAKQR" + "GAVL"[: i % 4] for i in range(20)]
    records = [f">{i}\n{sequence}\n" for i, sequence in enumerate(sequences)]
    (tmp_path / "proteins.fasta").write_text("".join(records))
    residues = ["".join(f"{x}\t{'EH'[x < 'L']}\n" for x in sequence) for sequence in sequences]
    (tmp_path / "structure.conll").write_text("\n".join(residues))
    (tmp_path / "structures").mkdir()
    for i in range(10):
        structure("MKTAY").save(tmp_path / "structures" / f"{i}.pdb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polyhead.data.download.download_multi30k", lambda folder: None)
    from_pretrained = ViT.from_pretrained.__func__

    def without_network(cls, name, **options):
        if name != "google/vit-base-patch16-224":
            return from_pretrained(cls, name, **options)
        labels = options.pop("class_names")
        return cls.preset("nano-4", num_classes=len(labels), class_names=labels, **options)

    monkeypatch.setattr(ViT, "from_pretrained", classmethod(without_network))
    return tmp_path


def run(monkeypatch, capfd, arguments):
    """Runs an example; training is short."""
    if arguments[0] == "train":
        small = {"translation": ["--buckets", 1, "--max-length", 32]}
        small["summarization"] = ["--buckets", 1, "--tokens", 512]
        small = small.get(arguments[1], ["--batch-size", 4])
        if "--keep" in arguments:  # `average` needs this many checkpoints
            small += ["--interval", 1, "--steps", 10]
        arguments = [*arguments, "--steps", 2, *small]
    with without_xla():
        status, out, err = polyhead(monkeypatch, capfd, *arguments)
    assert status == 0, (arguments, out, err)


BLOCKS = [b for b in re.split(r"\n\n", GUIDE) if "polyhead train" in b and "polyhead export" in b]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: re.search(r"--data (\S+)", b)[1])
def test_the_commands_of_the_guide_run(block, folder, monkeypatch, capfd):
    task = re.search("polyhead train ([a-z]+)", block)[1]
    for arguments, _ in commands(block):
        if arguments[0] == "diversify":
            copy_reversed(folder / "RUN", folder / "REVERSE")
        run(monkeypatch, capfd, arguments)
    if task == "translation":
        served = re.search(r"`python (-m polyhead\.serving\.loader .*?)`", README)[1]
        command = [sys.executable, *shlex.split(served)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert '"text"' in done.stdout and done.stderr == ""


@pytest.mark.slow
def test_the_commands_of_help_run(folder, monkeypatch, capfd):
    others = [arguments for arguments, _ in commands(GUIDE)]  # run above
    examples = [arguments for arguments, _ in helps() if arguments not in others]
    tasks = ["classification", "classification", "denoising", "embedding"]
    tasks += ["summarization", "tagging", "translation"]
    assert sorted(arguments[1] for arguments in examples) == tasks
    for arguments in examples:
        shutil.rmtree("RUN", ignore_errors=True)
        run(monkeypatch, capfd, arguments)
    assert load("runs/photos").config.class_names == ("bird", "cat", "dog", "fish", "frog")


PAGES = README + GUIDE + (ROOT / "docs" / "serving.md").read_text("utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL)
SHORTER = {
    "google/flan-t5-small": "FLAN",
    "facebook/esm2_t6_8M_UR50D": "ESM",
    "facebook/esmfold_v1": "FOLD",
    "params_model_3_ptm.npz": "ALPHAFOLD",
    "vocab_size=8000": "vocab_size=200",
    "tokens=4096": "tokens=4096, buckets=1",
    "epochs=20": "epochs=1",
    "epochs=5": "epochs=1",
    "epochs=3": "epochs=1",
}


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split()[3])
def test_the_python_of_readme_and_docs_runs(code, folder, model):
    image = (folder / "cat.jpg").read_bytes()
    for usual, short in SHORTER.items():
        code = code.replace(usual, short)
    names = {"jpeg_bytes": image, "array": tf.io.decode_jpeg(image).numpy()}
    if "read_images" in code:  # the guide's folder has no splits
        shutil.move("photos/train", "train")
        shutil.rmtree("photos")
        shutil.move("train", "photos")
    if "EXPORT" in code:
        model.export("EXPORT")
    with without_xla():
        exec(code, names)
    if "EXPORT" in code:
        assert len(names["translate"](tf.constant(["A dog."]))["text"]) == 1
    for written in re.findall(r'(?:export|save)\("(export|protein.pdb)"\)', code):
        path = folder / written
        assert (path / "1" / "saved_model.pb" if written == "export" else path).exists()
    keras.backend.clear_session()
