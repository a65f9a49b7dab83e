"""The cross-attention map of a target and its source."""

import io
from os import PathLike
from typing import Any, NamedTuple

from ..training import write_file


class Alignment(NamedTuple):
    """The result of `Seq2Seq.attention`: cross-attention weights and their tokens.

    ``source`` (S) and ``target`` (T) are the tokens, including the end token. ``weights``
    (layers, H, T, S) are the weights of the source tokens in each head of each decoder block when
    a target token is predicted; they sum to 1 over the source.

    >>> weights = np.full([4, 2, 2, 3], 1 / 3)  # 4 layers of 2 heads
    >>> alignment = polyhead.Alignment(["A", "dog", "</s>"], ["Hund", "</s>"], weights)
    >>> alignment.draw("attention.png")
    """

    source: list[str]
    target: list[str]
    weights: Any

    def picture(self, layer: int | None = None) -> bytes:
        """The bytes of a PNG that shows (T, S), the mean over the heads of one ``layer``.

        Default: the penultimate layer, whose mean is closest to human word alignments
        (Garg et al. 2019, arXiv 1909.02074, section 4.1).
        """
        from matplotlib.figure import Figure

        layers = len(self.weights)
        layer = max(layers - 2, 0) if layer is None else layer
        if not -layers <= layer < layers:
            raise ValueError(f"layer must be from {-layers} to {layers - 1}: {layer}")
        size = (2 + 0.35 * len(self.source), 1.5 + 0.3 * len(self.target))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.imshow(self.weights[layer].mean(0), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(self.source)), labels(self.source), rotation=90)
        axes.set_yticks(range(len(self.target)), labels(self.target))
        axes.xaxis.tick_top()
        axes.set_xlabel(f"source, as decoder layer {layer % layers} attends to it (mean of heads)")
        axes.set_ylabel("target")
        content = io.BytesIO()
        figure.savefig(content, dpi=min(120, 10_000 / max(size)))  # at most 10,000 pixels
        return content.getvalue()

    def draw(self, path: str | PathLike[str], layer: int | None = None) -> None:
        """Writes the `picture` to a file atomically."""
        write_file(path, self.picture(layer))


def labels(pieces):
    return [piece.replace("$", r"\$") for piece in pieces]  # no formulas
