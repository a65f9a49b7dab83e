import numpy as np
import pytest
import tensorflow as tf

from polyhead.recipes import command
from polyhead.recipes.classification import Settings, draw_rollout, evaluate, train
from polyhead.zoo import ViT, ViTConfig
from tests.conftest import without_xla

SMALL = dict(batch_size=16, peak=3e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two colors, one per class."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label, name in enumerate(("blue", "red")):
        (folder / name).mkdir()
        for i in range(40):
            image = random.integers(0, 60, (40, 36, 3)).astype("uint8")
            image[:, :, 2 * (1 - label)] += 150
            (folder / name / f"{i}.jpg").write_bytes(tf.io.encode_jpeg(image).numpy())
    return folder


@pytest.fixture(scope="module")
def trained(folder, shared_models, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    with without_xla():
        history = train(Settings(data=str(folder), epochs=3, **SMALL), out, say=lambda line: None)
    assert history[-1]["val_accuracy"] == 1.0
    return out


def polyhead(monkeypatch, capfd, *arguments):
    monkeypatch.setattr("sys.argv", ["polyhead", *map(str, arguments)])
    try:
        command.main()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    return status, *capfd.readouterr()


def test_a_run_is_evaluated_and_classifies(trained, folder, tmp_path, monkeypatch, capfd):
    picture = tmp_path / "confusion.png"
    status, out, _ = polyhead(monkeypatch, capfd, "evaluate", trained, "--confusion", picture)
    assert status == 0 and "accuracy 100.00%" in out and "8 images of val" in out
    assert picture.read_bytes()[1:4] == b"PNG"
    assert evaluate(trained, split="train")["confusion"].sum() == 72
    other = tmp_path / "other"
    for name, content in (("blue", b"broken"), ("red", (folder / "red" / "3.jpg").read_bytes())):
        (other / "test" / name).mkdir(parents=True)
        (other / "test" / name / "1.jpg").write_bytes(content)
    ask = ("evaluate", trained, "--data", other, "--split", "test")
    status, _, err = polyhead(monkeypatch, capfd, *ask)
    assert status == 1 and "blue/1.jpg cannot be read" in err and len(err.splitlines()) == 1
    with pytest.warns(UserWarning, match="blue/1.jpg is left out"):
        status, out, _ = polyhead(monkeypatch, capfd, *ask, "--broken", "skip")
    assert status == 0 and "1 images of test" in out
    red, picture = folder / "red" / "3.jpg", tmp_path / "where.png"
    ask = ("predict", trained, red, "--top", 2, "--explain", picture)
    status, out, _ = polyhead(monkeypatch, capfd, *ask)
    first, second = (line.split("\t") for line in out.splitlines())
    assert status == 0 and first[:2] == [str(red), "red"] and second[1] == "blue"
    assert float(first[2]) + float(second[2]) == pytest.approx(1, abs=1e-3)
    assert picture.read_bytes()[1:4] == b"PNG"
    (tmp_path / "no.jpg").write_bytes(b"no image")
    for arguments, message in (
        (("predict", trained), "pass at least one image file"),
        (("predict", trained, tmp_path / "none.jpg"), "none.jpg"),
        (("predict", trained, tmp_path / "no.jpg"), "no.jpg cannot be read"),
        (
            ("predict", trained, red, "--num-beams", 2),
            "--num-beams: for translation, generation, summarization and denoising only",
        ),
        (("predict", trained, red, "--top", 3), "top must be from 1 to 2: 3"),
        (("evaluate", trained, "--split", "test"), "no images of a split test"),
        (("evaluate", trained, "--confusion", tmp_path / "a" / "b.png"), "no folder"),
        (
            ("train", "classification", "--out", tmp_path / "r", "--data", tmp_path / "no"),
            "no fold",
        ),
        (("train", "classification", "--out", tmp_path / "r", "--preset", "xl"), "ViT has presets"),
    ):
        status, _, err = polyhead(monkeypatch, capfd, *arguments)
        assert status == 1 and message in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_grayscale_model_is_trained_and_evaluated(folder, tmp_path):
    sizes = dict(
        image_size=16, patch_size=8, num_layers=1, dim=16, intermediate_dim=16, num_heads=2
    )
    config = ViTConfig(**sizes, channels=1, mean=(0.5,), std=(0.5,), num_classes=2)
    ViT(config).save_pretrained(tmp_path / "grey")
    settings = Settings(
        data=str(folder), pretrained=str(tmp_path / "grey"), updates=3, augment="strong", **SMALL
    )
    train(settings, tmp_path / "run", say=lambda line: None)
    assert evaluate(tmp_path / "run")["images"] == 8
    model = ViT.from_pretrained(tmp_path / "run" / "best")
    assert model.config.channels == 1
    draw_rollout(model, str(folder / "red" / "3.jpg"), tmp_path / "where.png")
    assert (tmp_path / "where.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_a_published_model_gets_a_new_head(trained, folder, tmp_path):
    options = dict(augment="strong", mix=True, freeze="block_0", updates=4)
    options = {**SMALL, **options}
    settings = Settings(data=str(folder), pretrained=str(trained / "best"), **options)
    train(settings, tmp_path / "tuned", say=lambda line: None)
    before = ViT.from_pretrained(trained / "best")
    after = ViT.from_pretrained(tmp_path / "tuned" / "best")
    for v, w in zip(before.weights, after.weights, strict=True):
        same = np.array_equal(v.numpy(), w.numpy())
        frozen = v.path.startswith("block_0")
        assert same == frozen, v.path
