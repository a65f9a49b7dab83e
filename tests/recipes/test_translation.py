from polyhead.data import ParallelText
from polyhead.recipes.translation import Settings, read


def test_a_single_file_of_pairs_is_data_for_training_and_validation(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("en\tde\n" + "".join(f"s{i}\tt{i}\n" for i in range(10)))
    settings = Settings(data=str(path))
    assert len(read(settings, "train")) == 9
    assert read(settings, "val") == ParallelText(["s9"], ["t9"])
