"""Which source pieces a translation attends to, as a picture."""

import io
from typing import Any, NamedTuple

from ..training import write_file


class Alignment(NamedTuple):
    """What `Transformer.attention` finds: S ``source`` and T ``target`` pieces, end included.

    ``weights`` (layers, H, T, S): how much of each source piece every head of every decoder block
    takes in when the target piece is predicted; over the source they sum to 1.
    """

    source: list[str]
    target: list[str]
    weights: Any

    def picture(self, layer=None):
        """A PNG's bytes: (T, S), the mean over the heads of one ``layer``.

        That is the last but one where none is given, whose mean is nearest to how people align
        words (Garg et al. 2019, arXiv 1909.02074, section 4.1).
        """
        from matplotlib.figure import Figure

        layers = len(self.weights)
        layer = max(layers - 2, 0) if layer is None else layer
        if not -layers <= layer < layers:
            raise ValueError(f"there are decoder layers 0 to {layers - 1}: {layer}")
        size = (2 + 0.35 * len(self.source), 1.5 + 0.3 * len(self.target))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.imshow(self.weights[layer].mean(0), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(self.source)), labels(self.source), rotation=90)
        axes.set_yticks(range(len(self.target)), labels(self.target))
        axes.xaxis.tick_top()
        axes.set_xlabel(f"source, as decoder layer {layer % layers} attends to it (mean of heads)")
        axes.set_ylabel("translation")
        content = io.BytesIO()
        figure.savefig(content, dpi=min(120, 10_000 / max(size)))  # at most 10,000 pixels
        return content.getvalue()

    def draw(self, path, layer=None):
        """Writes the `picture` to a file, complete or not at all."""
        write_file(path, self.picture(layer))


def labels(pieces):
    return [piece.replace("$", r"\$") for piece in pieces]  # no formulas
