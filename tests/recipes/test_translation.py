import json

import pytest

from polyhead.data import ParallelText
from polyhead.recipes import translation
from polyhead.recipes.translation import Settings, evaluate, read


def test_a_single_file_of_pairs_is_data_for_training_and_validation(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("en\tde\n" + "".join(f"s{i}\tt{i}\n" for i in range(10)))
    settings = Settings(data=str(path))
    assert len(read(settings, "train")) == 9
    assert read(settings, "val") == ParallelText(["s9"], ["t9"])


def test_a_file_is_evaluated_whole_and_the_runs_data_on_validation(tmp_path, monkeypatch):
    class Model:
        def translate(self, sources, **options):
            return [source.replace("s", "t") for source in sources]

    monkeypatch.setattr(translation, "load", lambda run: Model())
    (path := tmp_path / "pairs.tsv").write_text("".join(f"s{i}\tt{i}\n" for i in range(10)))
    (other := tmp_path / "other.tsv").write_text("s1 s2\tt1 t2\ns3\tt3\n")
    settings = {"task": "translation", "data": str(path)}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (model := tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="model is not a run, .* pass --source and --target"):
        evaluate(model, str(other), source="en")
    (path := tmp_path / "named.tsv").write_text("de\ten\nt1\ts1\n")
    assert evaluate(model, str(path), source="en", target="de")[2].sources == ["s1"]
    for data, split, count in ((None, "val", 1), (other, "other.tsv", 2)):
        _, named, pairs, translations = evaluate(tmp_path, data)
        assert (named, len(pairs), translations) == (split, count, pairs.targets)
