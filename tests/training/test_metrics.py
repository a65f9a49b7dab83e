import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from polyhead.training import (
    answer_scores,
    classification_scores,
    correlations,
    entities,
    entity_scores,
    lead,
    no_answer_threshold,
    rouge,
    typical_sentences,
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
    metrics = pytest.importorskip("sklearn.metrics", reason="no scikit-learn: EXTRAS=parity")
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
    assert scores == {"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5, "accuracy": 2 / 3}
    assert entity_scores([["O"]], [["O"]])["f1"] == 0
    with pytest.raises(ValueError, match="1 tags of 2 words of sentence 0"):
        entity_scores([["O", "O"]], [["O"]])
    # Names alone: neighbours with the same name are one entity.
    scores = entity_scores([["H", "H", "C"]], [["H", "C", "C"]])
    assert scores["f1"] == 0 and scores["accuracy"] == 2 / 3
    assert entity_scores([["H", "H", "C"]], [["H", "H", "C"]])["f1"] == 1


def test_scores_of_entities_are_those_of_seqeval():
    # Not among the extras: it does not build with current versions of setuptools.
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
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
    for equal in ([1, 1, 1], [0.1, 0.1, 0.1]):  # the mean of the latter is not 0.1
        assert np.isnan(correlations(equal, [1, 2, 4])["pearson"])
        assert np.isnan(correlations([1, 2, 4], equal)["spearman"])
    stats = pytest.importorskip("scipy.stats")
    x, y = np.random.default_rng(0).integers(0, 9, (2, 40))
    scores = correlations(x, y)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(x, y)[0])
    assert scores["spearman"] == pytest.approx(stats.spearmanr(x, y)[0])


WORDS = "the The dog dogs ran running, cat's 3.5 it. It! é? 日本 don't \n rains;".split(" ")
NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def random_texts(count, seed):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, 25))) for _ in range(count)]


def their_rouge(summary, reference, stemmer):
    """The F1 scores of the library, for texts whose sentences are lines already."""
    from rouge_score.rouge_scorer import RougeScorer

    found = RougeScorer(NAMES, use_stemmer=stemmer).score(reference, summary)
    return [100 * found[name].fmeasure for name in NAMES]


@pytest.mark.parametrize("stemmer", [True, False])
def test_rouge_is_the_mean_of_the_librarys_scores(stemmer):
    ends = str.maketrans({".": "", "!": "", "?": ""})
    first, second = ([text.translate(ends) for text in random_texts(500, seed)] for seed in (1, 2))
    expected = [their_rouge(*pair, stemmer) for pair in zip(first, second, strict=True)]
    found = rouge(first, [[text] for text in second], stemmer=stemmer)
    np.testing.assert_allclose(found[:4], np.mean(expected, axis=0), rtol=1e-9)
    assert 0 < found.rouge2 < found.rougeL < found.rougeLsum < found.rouge1 < 100
    for summary, reference, scores in zip(first[:20], second[:20], expected, strict=False):
        assert list(rouge([summary], [[reference]], stemmer)[:4]) == pytest.approx(scores)


def test_sentences_of_rouge_end_at_marks_and_lines():
    summary, reference = "It rains. Ada ran! So?\nYes", "Yes So It rains Ada ran"
    lines = "It rains.\nAda ran!\nSo?\nYes"
    found = rouge([summary], [[reference]])
    assert list(found[:4]) == pytest.approx(their_rouge(lines, reference, True))
    assert found.rougeLsum > found.rougeL
    assert rouge(["It cost 3.5 euros."], [["3.5 It cost euros."]]).rougeLsum < 100


def test_of_several_references_the_best_or_the_mean_counts():
    summaries = random_texts(40, 3)
    references = [random_texts(1 + i % 3, 10 + i) for i in range(40)]
    each = [
        [rouge([summary], [[reference]])[:4] for reference in several]
        for summary, several in zip(summaries, references, strict=True)
    ]
    best = np.mean([max(scores[0] for scores in several) for several in each])
    assert rouge(summaries, references).rouge1 == pytest.approx(best)
    means = [np.mean(scores, axis=0) for scores in each]
    found = rouge(summaries, references, combine="mean")
    np.testing.assert_allclose(found[:4], np.mean(means, axis=0))
    # The other reference has a lower ROUGE-1, but a higher ROUGE-2.
    assert rouge(["a b c d"], [["d c b a", "a b x y"]])[:3] == (100.0, 0.0, 25.0)
    one = rouge(["a dog"], [["a dog", "it rains"]])
    assert one[:4] == (100.0,) * 4
    assert rouge(["a dog"], [["a dog", "it rains"]], combine="mean")[:4] == (50.0,) * 4


def test_rouge_has_a_signature():
    from importlib.metadata import version

    assert rouge(["a"], [["a"]], stemmer=False, combine="mean").signature == (
        f"refs:mean|stemmer:no|sum:sentences|rouge_score:{version('rouge_score')}"
    )
    assert rouge(["a"], [["a"]]).signature.startswith("refs:best|stemmer:yes|")


def test_an_empty_summary_scores_0():
    for summary, reference in (("", "a dog"), ("a dog", ""), ("", ""), (" \n ", "a"), ("日", "日")):
        assert rouge([summary], [[reference]])[:4] == (0.0,) * 4
    assert rouge(["", "a dog"], [["a dog"], ["a dog"]]).rouge1 == 50


def test_rouge_needs_a_reference_for_each_summary():
    for arguments, message in (
        ((["a"], []), "one prediction for each example: 0 and 1"),
        (([], []), "one prediction for each example: 0 and 0"),
        ((["a"], [["b"], ["c"]]), "one prediction for each example: 2 and 1"),
        ((["a", "b"], [["a"], []]), "each summary must have at least one reference"),
    ):
        with pytest.raises(ValueError, match=message):
            rouge(*arguments)
    with pytest.raises(ValueError, match="combine must be 'best' or 'mean': 'max'"):
        rouge(["a"], [["a"]], combine="max")


def test_the_lead_of_a_text_is_its_first_sentences():
    text = "  It cost 3.5 euros. Ada ran!\nIt rained\n\nSo what? Yes "
    sentences = ["It cost 3.5 euros.", "Ada ran!", "It rained", "So what?", "Yes"]
    for count in range(1, 7):
        assert lead([text, "One"], count) == [" ".join(sentences[:count]), "One"]
    assert lead(["", " "], 3) == ["", ""] and lead([], 3) == []


def test_typical_sentences_are_most_like_the_others():
    text = "A dog ran to a lake. The sun rose.\nDogs run to lakes when a sun rose? Nobody knew why."
    # ROUGE-1 F1 of stems: twice the words in common with the others, of 20: 12, 8, 4 and 0.
    [[first, second, *rest]] = typical_sentences([text], 9)
    assert (first, second) == ("Dogs run to lakes when a sun rose?", "A dog ran to a lake.")
    assert rest == ["The sun rose.", "Nobody knew why."]
    assert typical_sentences(["One. Two.", text], 1) == [[], [first]]
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    others = " ".join([second, *rest])
    assert scorer.score(others, first)["rouge1"].fmeasure == pytest.approx(12 / 20)
