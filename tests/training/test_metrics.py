import numpy as np
import pytest

from polyhead.training import (
    answer_scores,
    classification_scores,
    correlations,
    entities,
    entity_scores,
    no_answer_threshold,
)


def test_scores_of_classes_are_those_of_hand():
    scores = classification_scores([0, 0, 1, 1, 2], [0, 1, 1, 1, 3])
    assert scores["accuracy"] == 0.6
    # F1 of class 0 is 2/3, of class 1 4/5, of classes 2 and 3 0.
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 4)
    # 3 correct of 5; true 2, 2, 1, 0; predicted 1, 3, 0, 1.
    assert scores["matthews"] == pytest.approx((15 - 8) / np.sqrt((25 - 9) * (25 - 11)))
    assert classification_scores([1, 1], [1, 1]) == dict(accuracy=1, macro_f1=1, matthews=0)
    with pytest.raises(ValueError, match="one prediction for each example: 2 and 1"):
        classification_scores([0, 1], [0])


def test_scores_of_classes_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for _ in range(20):
        true, predicted = random.integers(0, 5, (2, 30))
        ours = classification_scores(true, predicted)
        assert ours["macro_f1"] == pytest.approx(metrics.f1_score(true, predicted, average="macro"))
        assert ours["matthews"] == pytest.approx(metrics.matthews_corrcoef(true, predicted))


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("O O", []),
        ("B-a I-a I-a", [("a", 0, 3)]),
        ("B-a B-a", [("a", 0, 1), ("a", 1, 2)]),
        ("I-a I-a", [("a", 0, 2)]),
        ("B-a I-b", [("a", 0, 1), ("b", 1, 2)]),
        ("B-a O I-a", [("a", 0, 1), ("a", 2, 3)]),
        ("B-a-b I-a-b", [("a-b", 0, 2)]),
    ],
)
def test_entities_are_those_of_conlleval(tags, expected):
    assert entities(tags.split()) == expected


def test_scores_of_entities_are_those_of_hand():
    scores = entity_scores(
        [["B-a", "I-a", "O"], ["B-b", "O", "B-a"]], [["B-a", "I-a", "I-a"], ["B-b", "O", "O"]]
    )
    assert scores == {"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5}
    assert entity_scores([["O"]], [["O"]])["f1"] == 0
    with pytest.raises(ValueError, match="1 tags of 2 words of sentence 0"):
        entity_scores([["O", "O"]], [["O"]])


def test_scores_of_entities_are_those_of_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics")
    random = np.random.default_rng(0)
    tags = np.array(["O", "B-a", "I-a", "B-b", "I-b"])
    for _ in range(50):
        lengths = random.integers(1, 12, 20)
        true, predicted = ([list(tags[random.integers(0, 5, n)]) for n in lengths] for _ in "ab")
        ours = entity_scores(true, predicted)
        for name in ("precision", "recall", "f1"):
            theirs = getattr(seqeval, f"{name}_score")(true, predicted)
            assert ours[name] == pytest.approx(theirs)


def test_scores_of_answers_are_those_of_hand():
    scores = answer_scores(
        ["The Red Fox!", "red fox and dog", "", "Rome", ""],
        [["red fox"], ["a dog", "red cat"], [], [], ["Oslo", "the city"]],
    )
    # F1: 1; "dog" of 4 words: 2/5, "red" 1 of 4 and 1 of 2: 1/3, best 2/5; 1; 0; 0
    assert scores["exact"] == pytest.approx(2 / 5) and scores["f1"] == pytest.approx(2.4 / 5)
    assert scores["answer_exact"] == pytest.approx(1 / 3)
    assert scores["answer_f1"] == pytest.approx(1.4 / 3)
    assert scores["no_answer"] == 0.5
    assert answer_scores(["a"], [["b"]])["no_answer"] is None
    assert answer_scores(["a"], [[]])["answer_f1"] is None


def test_the_threshold_of_no_answer_has_the_best_f1():
    random = np.random.default_rng(0)
    for _ in range(30):
        answers = [["x y"] if random.random() < 0.5 else [] for _ in range(12)]
        texts = [str(random.choice(["x y", "x", "z"])) for _ in answers]
        differences = random.integers(-4, 5, 12).astype(float)  # some are equal

        def f1(threshold, texts=texts, differences=differences, answers=answers):
            shown = ["" if d > threshold else t for t, d in zip(texts, differences, strict=True)]
            return answer_scores(shown, answers)["f1"]

        found = no_answer_threshold(texts, differences, answers)
        assert f1(found) == pytest.approx(max(f1(t) for t in np.arange(-5.5, 6)))
    assert no_answer_threshold(["a", "b"], [1.0, 2.0], [[], []]) == 0.0
    assert no_answer_threshold(["a", "b"], [1.0, 2.0], [["a"], ["b"]]) == 3.0


def test_correlations_are_those_of_hand_and_of_scipy():
    assert correlations([1, 2, 3], [3, 2, 1]) == dict(pearson=-1, spearman=-1)
    scores = correlations([1, 2, 2, 4], [1, 3, 2, 4])  # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert scores["spearman"] == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(correlations([1, 1], [1, 2])["pearson"])
    stats = pytest.importorskip("scipy.stats")
    x, y = np.random.default_rng(0).integers(0, 9, (2, 40))
    scores = correlations(x, y)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(x, y)[0])
    assert scores["spearman"] == pytest.approx(stats.spearmanr(x, y)[0])
