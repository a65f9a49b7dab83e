"""BLEU, computed by sacrebleu."""

from collections.abc import Sequence
from typing import NamedTuple


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
