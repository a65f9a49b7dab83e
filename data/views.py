"""A view of a `Structure` that turns: a page of HTML that needs no other file and no network."""

import html
import json
import re
from os import PathLike
from pathlib import Path

import numpy as np

from ..files import write_file
from .residues import ATOM37, NAMES

# Of chains, in this order, then again; they differ for the colour-blind (Okabe & Ito 2008).
CHAIN_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999")
GAP = 5.0  # angstroms; CA atoms of neighbours are 3.8 apart, or 2.9


class View:
    """The CA atoms of a structure as a tube that turns; see `Structure.view`.

    A notebook shows it in a frame of its own. A browser opens the file that `save` writes.

    Attributes:
        page: the text of the HTML page.

    >>> view = structure.view()  # doctest: +SKIP
    >>> view.save("protein.html")  # doctest: +SKIP
    """

    def __init__(self, page: str, title: str) -> None:
        self.page = page
        self._title = title

    def __repr__(self):
        return f"View({self._title!r})"

    def _repr_html_(self):
        """The page in a frame, whose scripts and styles cannot reach the notebook's."""
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" title="{html.escape(self._title)}" '
            'sandbox="allow-scripts" style="width: 100%; max-width: 640px; height: 420px; '
            'border: 1px solid #ddd"></iframe>'
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the page to a file atomically, ``*.html``.

        Raises:
            ValueError: the name ends otherwise.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"a view is written to *.html: {path}")
        write_file(path, self.page.encode())


def view_of(structure, color=None):
    """The `View` of a structure, see `Structure.view`."""
    by_confidence = color == "plddt" or color is None and structure.plddt is not None
    if color not in (None, "plddt", "chain"):
        raise ValueError(f"color must be 'plddt' or 'chain': {color!r}")
    if by_confidence and structure.plddt is None:
        raise ValueError("a structure without pLDDT has no confidence to color")
    runs = connected(structure)
    if not runs:
        raise ValueError("a structure without CA atoms has nothing to view")
    if by_confidence:
        colors, index, legend = confidence_colors(structure.plddt)
    else:
        index = structure.chain % len(CHAIN_COLORS)
        colors = CHAIN_COLORS[: index.max() + 1]
        legend = list(zip(CHAIN_COLORS, structure.chain_names, strict=False))
    points = [
        [[*row(structure, i), int(index[i]), residue_label(structure, i)] for i in run]
        for run in runs
    ]
    data = {"runs": points, "colors": list(colors), "ends": ends(runs, structure.chain)}
    # A script ends at "</" wherever it stands, also in a string.
    script = json.dumps(data, separators=(",", ":")).translate(
        {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&"}
    )
    title = structure.sequence if len(structure.sequence) < 30 else f"{structure.sequence[:26]}..."
    shown = "".join(
        f'<span><i style="background: {color}"></i>{html.escape(name)}</span>'
        for color, name in legend
    )
    parts = {"@TITLE@": html.escape(title), "@LEGEND@": shown, "@DATA@": script}
    # In one pass, because a part may contain the name of another.
    return View(re.sub("|".join(parts), lambda match: parts[match[0]], PAGE), title)


def connected(structure):
    """The indices of the residues with CA, as lists of connected ones."""
    mask, place = structure.mask[:, 1], structure.positions[:, 1]
    runs = []
    for i in np.flatnonzero(mask):
        joined = i > 0 and mask[i - 1] and structure.chain[i - 1] == structure.chain[i]
        if joined and structure.numbers[i] - structure.numbers[i - 1] > 1:
            joined = np.linalg.norm(place[i] - place[i - 1]) < GAP
        if joined:
            runs[-1].append(int(i))
        else:
            runs.append([int(i)])
    return runs


def ends(runs, chain):
    """Which residues begin and end a chain: [run, place in the run, letter]."""
    found = []
    for k, run in enumerate(runs):
        if k == 0 or chain[runs[k - 1][0]] != chain[run[0]]:
            found.append([k, 0, "N"])
        if k == len(runs) - 1 or chain[runs[k + 1][0]] != chain[run[0]]:
            found.append([k, len(run) - 1, "C"])
    return found


def confidence_colors(plddt):
    """The colors of AlphaFold's database, that of each residue, and the legend."""
    from .structures import COLORS

    bounds = list(COLORS)
    index = np.searchsorted(bounds, plddt, side="right") - 1
    names = [f"pLDDT {low} to {high}" for low, high in zip(bounds, [*bounds[1:], 100], strict=True)]
    return tuple(COLORS.values()), index, list(zip(COLORS.values(), names, strict=True))[::-1]


def row(structure, i):
    return [round(float(x), 2) for x in structure.positions[i, ATOM37.index("CA")]]


def residue_label(structure, i):
    place = f"{structure.numbers[i]}{structure.insertions[i]}"
    label = f"{NAMES[structure.residues[i]]} {place}"
    if len(structure.chain_names) > 1:
        label += f", chain {structure.chain_names[structure.chain[i]]}"
    return label if structure.plddt is None else f"{label}, pLDDT {structure.plddt[i]:.1f}"


# The policy forbids the page to fetch anything. One step of the tube is a dark line, a colored one
# over it, and a thin light one; the steps are drawn from the farthest to the nearest.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>@TITLE@</title>
<style>
html, body { margin: 0; height: 100%; overflow: hidden; background: #fff; color: #333;
  font: 12px sans-serif }
canvas { position: absolute; width: 100%; height: 100%; cursor: grab; touch-action: none }
p { position: absolute; margin: 8px; pointer-events: none }
#legend { bottom: 0 } #legend span { margin-right: 12px; white-space: nowrap }
i { display: inline-block; width: 10px; height: 10px; margin-right: 4px }
</style>
</head>
<body>
<canvas role="img" aria-label="The chain of @TITLE@"></canvas>
<p id="label">drag: turn; wheel: zoom; click: stop and go</p>
<p id="legend">@LEGEND@</p>
<script>
const data = @DATA@;
const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d");
const label = document.getElementById("label"), residues = data.runs.flat();
const middle = [0, 1, 2].map(k => residues.reduce((sum, r) => sum + r[k], 0) / residues.length);
const local = data.runs.map(run => run.map(r => middle.map((m, k) => r[k] - m)));
const radius = 2 + local.flat().reduce((most, p) => Math.max(most, Math.hypot(...p)), 1);
const colors = data.colors.map(c => [1, 3, 5].map(k => parseInt(c.slice(k, k + 2), 16)));
const steps = Math.max(1, Math.min(8, Math.floor(8000 / residues.length)));  // of one residue

// Points of a smooth curve through the residues of each run (Catmull & Rom 1974).
const curves = local.map(run => {
  const at = i => run[Math.max(0, Math.min(run.length - 1, i))], curve = [];
  run.slice(1).forEach((end, i) => {
    for (let s = 0; s < steps; s++) {
      const t = s / steps, [a, b, c, d] = [i - 1, i, i + 1, i + 2].map(at);
      curve.push(b.map((x, k) => x + t * (c[k] - a[k] + t * (2 * a[k] - 5 * x + 4 * c[k] - d[k]
        + t * (3 * (x - c[k]) + d[k] - a[k]))) / 2));
    }
  });
  return [...curve, at(run.length)];
});

let rotation = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], zoom = 1, held = null, last = 0, changed = true;
let turning = !matchMedia("(prefers-reduced-motion: reduce)").matches;
function turn(x, y) {  // about the axes of the screen, in radians
  const [c, s, d, e] = [Math.cos(y), Math.sin(y), Math.cos(x), Math.sin(x)];
  rotation = [[c, 0, s], [e * s, d, -e * c], [-d * s, e, d * c]].map(
    row => [0, 1, 2].map(k => row.reduce((sum, v, m) => sum + v * rotation[m][k], 0)));
  changed = true;
}
function project(p) {  // to pixels, the depth from 0 to 1, and the pixels of an angstrom
  const [x, y, z] = rotation.map(row => row[0] * p[0] + row[1] * p[1] + row[2] * p[2]);
  const width = canvas.clientWidth, height = canvas.clientHeight;
  const scale = zoom * Math.min(width, height) / 2.3 / radius * 4 / (4 - z / radius);
  return [width / 2 + scale * x, height / 2 - scale * y, (1 + z / radius) / 2, scale];
}
function draw() {
  const ratio = devicePixelRatio || 1, parts = [];
  canvas.width = canvas.clientWidth * ratio; canvas.height = canvas.clientHeight * ratio;
  pen.scale(ratio, ratio); pen.lineJoin = "round";
  curves.forEach((curve, j) => {
    const points = curve.map(project), run = data.runs[j];
    run.forEach((r, i) => {  // the part of each residue, one step longer on either side
      const [x, y, depth, scale] = points[i * steps], rest = [scale, colors[r[3]]];
      const path = points.slice(Math.max(0, (i - 0.5) * steps - 1), (i + 0.5) * steps + 2);
      parts.push([depth, "butt", path, ...rest]);
      if (i % (run.length - 1 || 1)) return;
      parts.push([depth - 1e-6, "round", [[x, y], [x + 0.01, y]], ...rest]);  // an end
    });
  });
  for (const [depth, cap, path, scale, color] of parts.sort((p, q) => p[0] - q[0])) {
    const width = Math.max(2, 1.7 * scale), near = 0.3 + 0.7 * Math.max(0, Math.min(1, depth));
    const stroke = (size, path, color, light) => {
      pen.lineWidth = size; pen.lineCap = cap; pen.beginPath();
      pen.strokeStyle = `rgb(${color.map(v => Math.round(255 + near * (v * light - 255)))})`;
      for (const [x, y] of path) pen.lineTo(x, y);
      pen.stroke();
    };
    stroke(width + 2, cap === "butt" ? path.slice(1, -1) : path, color, 0.45);
    stroke(width, path, color, 0.9);
    stroke(width / 2, path, color.map(v => v * 0.8 + 51), 1);
    stroke(width / 5, path, color.map(v => v / 2 + 127), 1);
  }
  pen.font = "bold 13px sans-serif"; pen.textAlign = "center"; pen.fillStyle = "#333";
  pen.lineWidth = 3; pen.strokeStyle = "#fff";
  for (const [run, i, letter] of data.ends) {
    const [x, y, , scale] = project(local[run][i]);
    pen.strokeText(letter, x, y - scale - 3); pen.fillText(letter, x, y - scale - 3);
  }
}
requestAnimationFrame(function frame(now) {
  if (turning && !held) turn(0, Math.min(now - last, 50) * 4e-4);
  last = now;
  if (changed) { changed = false; draw(); }
  requestAnimationFrame(frame);
});
canvas.onpointerdown = e => {
  held = [e.offsetX, e.offsetY, 0]; canvas.setPointerCapture(e.pointerId);
};
canvas.onpointermove = e => {
  const [x, y] = [e.offsetX, e.offsetY];
  if (held) {
    turn((y - held[1]) / 100, (x - held[0]) / 100);
    held = [x, y, held[2] + Math.hypot(x - held[0], y - held[1])];
    return;
  }
  const near = data.runs.flatMap((run, j) => run.map((r, i) => [project(local[j][i]), r[4]]));
  const found = near.filter(([p]) => Math.hypot(p[0] - x, p[1] - y) < 12);
  if (found.length) label.textContent = found.sort(([p], [q]) => q[2] - p[2])[0][1];
};
canvas.onpointerup = () => { if (held && held[2] < 3) turning = !turning; held = null; };
canvas.onpointercancel = () => { held = null; };
canvas.onwheel = e => {
  e.preventDefault(); changed = true;
  zoom = Math.max(0.5, Math.min(8, zoom * Math.exp(-e.deltaY / 500)));
};
onresize = () => { changed = true; };
</script>
</body>
</html>
"""
