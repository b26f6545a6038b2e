"""Draws two figures of the README: what a cut at score 0.5 costs, and one pixel added to normalised boxes.

Example:
  python3 docs/figures.py PREDICTIONS GROUND_TRUTH     # writes docs/cut.png and docs/pixel.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from utils.box_utils import ious
from utils.cli import run
from utils.files import atomic_path
from widerface_evaluate.command import load_predictions
from widerface_evaluate.evaluation import faces_of, read_ground_truth, score

HERE = Path(__file__).resolve().parent
CUT = 0.5
COLOURS = dict(zip(("easy", "medium", "hard"), ("#0072b2", "#009e73", "#d55e00"), strict=True))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", type=Path, help="of WIDER FACE val: folder of text files")
    parser.add_argument("ground_truth", type=Path, help="folder of the four .mat files")
    parser.add_argument(
        "--out", type=Path, default=HERE, metavar="DIR", help="where to draw (default: docs/)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    save(draw_cut(args.predictions, args.ground_truth), args.out / "cut.png")
    save(draw_pixel(), args.out / "pixel.png")
    return 0


def draw_cut(predictions: Path, ground_truth: Path) -> plt.Figure:
    """Precision over recall of all detections, and where the curve ends if scores below `CUT` are dropped."""
    truths = read_ground_truth(ground_truth)
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    kept, cut = (
        score(faces_of(load_predictions(predictions, truths.images, least, False)[0]), truths)
        for least in (None, CUT)
    )
    for name, colour in COLOURS.items():
        whole, part = kept[name].curve, cut[name].curve
        label = f"{name}: AP {part.area:.3f} of {whole.area:.3f}"
        axes.plot(whole.recall, whole.envelope, color=colour, lw=1, ls=":")
        axes.plot(part.recall, part.envelope, color=colour, lw=2, label=label)
        axes.plot(part.recall[-1:], part.envelope[-1:], "o", color=colour)
        axes.fill_between(
            whole.recall, whole.envelope, where=whole.recall >= part.recall[-1], alpha=0.12, color=colour
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(f"the same detections, with a score of {CUT} or more (line) and all (dotted)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def draw_pixel() -> plt.Figure:
    """Two equal boxes that move apart: their IoU, and what it becomes with 1 added to widths and heights."""
    side = 0.1
    box = np.float64([[0.1, 0.4, 0.1 + side, 0.4 + side]])
    distances = np.linspace(0, 0.5, 201)
    others = box + distances[:, None] * [1, 0, 1, 0]
    overlaps = {plus: ious(box, others, plus)[0] for plus in (0, 1)}

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    apart = int(np.argmin(abs(distances - 0.25)))
    for corner, colour in ((box[0], "#0072b2"), (others[apart], "#d55e00")):
        left.add_patch(Rectangle(corner[:2], side, side, fill=False, lw=2, color=colour))
    left.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", title="boxes of an image, sides divided to 0..1")
    left.text(
        0.5,
        0.75,
        f"IoU {overlaps[0][apart]:.2f}\nwith +1: {overlaps[1][apart]:.2f}, a hit",
        ha="center",
    )
    right.plot(distances, overlaps[0], color="black", label="IoU")
    right.plot(distances, overlaps[1], color="#cc79a7", lw=2, label="the same with +1")
    right.axhline(0.5, color="grey", lw=1, ls="--")
    right.plot(distances[apart], overlaps[1][apart], "o", color="#cc79a7")
    right.set(
        xlim=(0, 0.5), ylim=(0, 1.02), xlabel=f"distance of two boxes of {side} x {side}", ylabel="overlap"
    )
    right.grid(alpha=0.3)
    right.legend(loc="upper right")
    for axes in (left, right):
        axes.title.set_fontsize(10)
    return figure


def save(figure: plt.Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    run(main)
