"""Scores of predictions, computed as the field reports them."""

import collections
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Bleu(NamedTuple):
    """A corpus BLEU score in percent, and sacrebleu's signature of how it was computed."""

    score: float
    signature: str


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> Bleu:
    """Computes corpus BLEU (Papineni et al. 2002) by sacrebleu (Post 2018), one reference each.

    ``tokenize`` is "13a", sacrebleu's default for raw text, or "none" for tokenized text.

    >>> round(polyhead.training.bleu(["A dog runs."], ["A dog runs."]).score, 1)
    100.0
    """
    from sacrebleu.metrics.bleu import BLEU

    if len(hypotheses) != len(references):
        raise ValueError(
            f"there must be one reference for each hypothesis: {len(references)} for "
            f"{len(hypotheses)}"
        )
    # force: no warning that text for "none" looks tokenized
    metric = BLEU(tokenize=tokenize, force=True)
    score = metric.corpus_score(hypotheses, [references]).score
    return Bleu(score, str(metric.get_signature()))


class Rouge(NamedTuple):
    """ROUGE scores in percent, and a signature of how they were computed.

    >>> polyhead.training.rouge(["A dog."], [["A dog."]]).rougeL
    100.0
    """

    rouge1: float
    rouge2: float
    rougeL: float
    rougeLsum: float
    signature: str


SENTENCE = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


def rouge(
    summaries: Sequence[str],
    references: Sequence[Sequence[str]],
    stemmer: bool = True,
    combine: str = "best",
) -> Rouge:
    """The means over all texts of ROUGE F1 (Lin 2004, W04-1013), by the library rouge_score.

    ``rougeL`` compares whole summaries, ``rougeLsum`` their sentences, which end at ``.``, ``!`` or
    ``?`` before white space, or at the end of a line.

    >>> scores = polyhead.training.rouge(["a dog runs"], [["a dog ran", "it rains"]])
    >>> round(scores.rouge1, 1), scores.signature
    (66.7, 'refs:best|stemmer:yes|sum:sentences|rouge_score:0.1.2')

    Args:
        summaries: the summaries to score.
        references: one or several references for each.
        stemmer: compare the stems of words, by Porter's stemmer.
        combine: "best" takes the scores of the reference with the highest ROUGE-1 (Cachola et al.
            2020, arXiv 2004.15011, section 4.2); "mean" those of all references.

    Raises:
        ValueError: there are not as many references, or there is none for a summary.
    """
    from importlib.metadata import version

    from rouge_score.rouge_scorer import RougeScorer

    check_same_size(references, summaries)
    if combine not in ("best", "mean"):
        raise ValueError(f"combine must be 'best' or 'mean': {combine!r}")
    if not all(references) or not len(summaries):
        raise ValueError("each summary must have at least one reference")
    names = Rouge._fields[:-1]
    scorer = RougeScorer(list(names), use_stemmer=stemmer)

    def score(summary, reference):
        summary, reference = (
            "\n".join(SENTENCE.split(text.strip())) for text in (summary, reference)
        )
        found = scorer.score(reference, summary)
        return [found[name].fmeasure for name in names]

    rows = []
    for summary, several in zip(summaries, references, strict=True):
        found = [score(summary, reference) for reference in several]
        best = max(found, key=lambda scores: scores[0])
        rows.append(best if combine == "best" else np.mean(found, axis=0))
    stems = "yes" if stemmer else "no"
    signature = f"refs:{combine}|stemmer:{stems}|sum:sentences|rouge_score:{version('rouge_score')}"
    return Rouge(*(100 * np.mean(rows, axis=0)).tolist(), signature)


def lead(texts: Sequence[str], sentences: int) -> list[str]:
    """The first ``sentences`` of each text: a summary that is hard to beat for news.

    >>> polyhead.training.lead(["Ada ran home. It rained. So what?"], 2)
    ['Ada ran home. It rained.']
    """
    return [" ".join(SENTENCE.split(text.strip())[:sentences]) for text in texts]


def typical_sentences(texts: Sequence[str], count: int) -> list[list[str]]:
    """The ``count`` sentences of each text with the highest ROUGE-1 F1 to its other sentences.

    The best one comes first; a text of one or two sentences has none. They are targets of a stage
    before the summaries, as in PEGASUS, which also removes them from the text (Zhang et al. 2020,
    arXiv 1912.08777, section 3.1, "Ind-Orig").

    >>> texts = ["A dog runs. A cat sleeps. A dog and a cat are here."]
    >>> polyhead.training.typical_sentences(texts, 1)
    [['A dog and a cat are here.']]

    Raises:
        ValueError: ``count`` is less than 1.
    """
    if count < 1:
        raise ValueError(f"the number of sentences must be positive: {count}")
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer=True)

    def typical(text):
        sentences = SENTENCE.split(text.strip())
        if len(sentences) < 3:
            return []
        words = [collections.Counter(tokenizer.tokenize(sentence)) for sentence in sentences]
        every = sum(words, collections.Counter())
        # F1 is twice the words in common, divided by the words of the text, the same for all.
        shared = [(count & (every - count)).total() for count in words]
        best = sorted(range(len(sentences)), key=lambda i: shared[i], reverse=True)
        return [sentences[i] for i in best[:count]]

    return [typical(text) for text in texts]


def classification_scores(labels: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """The ``accuracy``, ``macro_f1`` and ``matthews`` correlation of predicted classes.

    ``macro_f1`` is the mean over the classes that occur in either of the harmonic mean of precision
    and recall (0 without a correct prediction), as in scikit-learn's ``f1_score``. ``matthews`` is
    the multi-class coefficient (Gorodkin 2004, equation 8), 0 if it is undefined.

    >>> scores = polyhead.training.classification_scores([0, 0, 1, 1], [0, 1, 1, 1])
    >>> {name: round(score, 4) for name, score in scores.items()}
    {'accuracy': 0.75, 'macro_f1': 0.7333, 'matthews': 0.5774}
    """
    check_same_size(labels, predictions)
    both = np.stack([np.asarray(labels, int), np.asarray(predictions, int)])
    classes, index = np.unique(both, return_inverse=True)
    true, predicted = index.reshape(2, -1)
    counts = np.zeros((len(classes),) * 2)
    np.add.at(counts, (true, predicted), 1)
    hits, of_true, of_predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    total, correct = counts.sum(), hits.sum()
    spread = (total**2 - of_true @ of_true) * (total**2 - of_predicted @ of_predicted)
    covariance = correct * total - of_true @ of_predicted
    return {
        "accuracy": float(correct / total),
        "macro_f1": float((2 * hits / (of_true + of_predicted)).mean()),
        "matthews": float(covariance / np.sqrt(spread)) if spread else 0.0,
    }


class Entity(NamedTuple):
    """An entity in a sentence: words ``start`` to ``end`` (exclusive) have this ``type``.

    >>> polyhead.training.Entity("person", 0, 2).end
    2
    """

    type: str
    start: int
    end: int


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence, as CoNLL's evaluation finds them (conlleval).

    An entity begins with "B-type", or with "I-type" or "type" unless the word before is of the same
    type.

    >>> polyhead.training.entities(["B-person", "I-person", "O", "I-place"])
    [Entity(type='person', start=0, end=2), Entity(type='place', start=3, end=4)]
    """
    found = []
    for i, tag in enumerate(tags):
        if tag == "O":
            continue
        kind = tag[2:] if tag[:2] in ("B-", "I-") else tag
        inside = (
            not tag.startswith("B-") and found and found[-1] == Entity(kind, found[-1].start, i)
        )
        if inside:
            found[-1] = found[-1]._replace(end=i + 1)
        else:
            found.append(Entity(kind, i, i + 1))
    return found


def entity_scores(
    tags: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The ``precision``, ``recall`` and ``f1`` of entities, as conlleval counts them.

    (Tjong Kim Sang & De Meulder 2003, section 2.4.) A predicted entity is correct if type, start
    and end are. Each score is 0 if its denominator is.

    >>> polyhead.training.entity_scores([["B-a", "O", "B-b"]], [["B-a", "I-a", "B-b"]])["f1"]
    0.5

    Args:
        tags, predictions: "O", "B-type", "I-type" or "type" of each word of each sentence.

    Returns:
        also ``accuracy``, the fraction of words whose tag is right.
    """
    check_same_size(tags, predictions)
    correct = true = predicted = right = words = 0
    for i, (expected, given) in enumerate(zip(tags, predictions, strict=True)):
        if len(expected) != len(given):
            raise ValueError(
                f"each word must have a tag: {len(given)} tags of {len(expected)} words of "
                f"sentence {i}"
            )
        right += sum(a == b for a, b in zip(expected, given, strict=True))
        words += len(expected)
        expected, given = set(entities(expected)), set(entities(given))
        correct += len(expected & given)
        true += len(expected)
        predicted += len(given)
    return {
        "precision": correct / max(predicted, 1),
        "recall": correct / max(true, 1),
        "f1": 2 * correct / max(true + predicted, 1),
        "accuracy": right / max(words, 1),
    }


def answer_scores(
    predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, float | None]:
    """SQuAD's exact match and F1 of predicted answers, as fractions.

    As in the official evaluation of version 2.0 (Rajpurkar et al. 2018, arXiv 1806.03822), texts
    are compared in lower case without punctuation and articles; F1 is that of their words; of
    several answers the best counts; and without an answer the empty prediction is right.

    >>> scores = polyhead.training.answer_scores(["the red fox", "Rome"], [["A fox"], []])
    >>> scores["exact"], round(scores["f1"], 4), scores["no_answer"]
    (0.0, 0.3333, 0.0)

    Args:
        predictions: texts; "" if no answer is predicted.
        answers: the right texts of each question; none if it has no answer.

    Returns:
        ``exact`` and ``f1`` over all questions, ``answer_exact`` and ``answer_f1`` over those that
        have an answer, and ``no_answer``, the accuracy on the others; None without such questions.
    """
    check_same_size(predictions, answers)
    exact, f1 = np.array([score_answer(*pair) for pair in zip(predictions, answers, strict=True)]).T
    has = np.array([bool(right_answers(texts)) for texts in answers])
    return {
        "exact": float(exact.mean()),
        "f1": float(f1.mean()),
        "answer_exact": float(exact[has].mean()) if has.any() else None,
        "answer_f1": float(f1[has].mean()) if has.any() else None,
        "no_answer": float(exact[~has].mean()) if not has.all() else None,
    }


def no_answer_threshold(
    predictions: Sequence[str], differences: Sequence[float], answers: Sequence[Sequence[str]]
) -> float:
    """The threshold of "no answer" with the best F1, as the official evaluation chooses it.

    >>> polyhead.training.no_answer_threshold(["fox", "Rome"], [-1.0, 3.0], [["fox"], []])
    1.0

    Args:
        predictions: the best span of each question, whether it has an answer or not.
        differences: (N,) the score of "no answer" minus that of the span. Where it is above the
            threshold, no answer is predicted.
        answers: the right texts of each question; none if it has no answer.

    Returns:
        a number between two differences; beyond the outermost ones it is 1 away.
    """
    check_same_size(predictions, answers)
    values = np.asarray(differences, float)
    check_same_size(predictions, values)
    gains = [
        score_answer(text, right)[1] - (not right_answers(right))
        for text, right in zip(predictions, answers, strict=True)
    ]
    order = np.argsort(values, kind="stable")
    ordered = np.concatenate([[-np.inf], values[order], [np.inf]])
    # total[i]: the gain over predicting no answer if the first i spans are predicted.
    total = np.concatenate([[0.0], np.cumsum(np.asarray(gains)[order])])
    total[ordered[1:] == ordered[:-1]] = -np.inf  # equal differences are not separable
    best = int(np.argmax(total))
    low, high = ordered[best], ordered[best + 1]
    if np.isinf(low):
        return float(high - 1)
    return float(low + 1) if np.isinf(high) else float((low + high) / 2)


def score_answer(prediction, answers):
    """The exact match and F1 of one prediction, the best over ``answers``."""
    right, given = right_answers(answers) or [""], normalize_answer(prediction)
    f1 = max(word_f1(given.split(), text.split()) for text in right)
    return float(given in right), f1


def right_answers(answers):
    """The normalized answers that are not empty."""
    return list(filter(None, map(normalize_answer, answers)))


def normalize_answer(text):
    """Lower case, without punctuation (of ASCII), articles and repeated white space."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def word_f1(given, right):
    if not given or not right:
        return float(given == right)
    common = sum((collections.Counter(given) & collections.Counter(right)).values())
    return 2 * common / (len(given) + len(right))


def correlations(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The ``pearson`` correlation of numbers, and ``spearman``, that of their ranks.

    Equal numbers have the mean of their ranks. A correlation with a constant is NaN.

    >>> scores = polyhead.training.correlations([1, 2, 3, 4], [1, 8, 27, 64])
    >>> round(scores["pearson"], 4), round(scores["spearman"], 4)
    (0.9514, 1.0)
    """
    check_same_size(x, y)

    def pearson(x, y):
        x, y = (np.asarray(values, float) for values in (x, y))
        if not np.ptp(x) or not np.ptp(y):
            return float("nan")
        x, y = x - x.mean(), y - y.mean()
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    def ranks(values):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[place]

    return {"pearson": pearson(x, y), "spearman": pearson(ranks(x), ranks(y))}


def check_same_size(expected, given):
    if len(expected) != len(given) or not len(expected):
        raise ValueError(
            f"there must be one prediction for each example: {len(expected)} and {len(given)}"
        )
