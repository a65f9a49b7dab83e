"""Metrics of text, by the library that the field quotes."""

from typing import NamedTuple


class Bleu(NamedTuple):
    """A corpus BLEU in percent, and the signature that tells how it was computed."""

    score: float
    signature: str


def bleu(hypotheses, references, tokenize="13a"):
    """Corpus BLEU (Papineni et al. 2002) of sacrebleu (Post 2018), one reference each.

    ``tokenize`` is "13a", sacrebleu's default for raw text, or "none" for text that is
    tokenized already.
    """
    from sacrebleu.metrics.bleu import BLEU

    if len(hypotheses) != len(references):
        raise ValueError(
            f"one reference for each hypothesis: {len(references)} for {len(hypotheses)}"
        )
    # force: sacrebleu need not warn that text for "none" looks tokenized
    metric = BLEU(tokenize=tokenize, force=True)
    score = metric.corpus_score(hypotheses, [references]).score
    return Bleu(score, str(metric.get_signature()))
