"""Box statistics of a list, k-means of box shapes, and how well priors cover the boxes.

Everything is measured as the network sees it in training: the image padded to a square and resized to the
side that it is trained at, so sizes are pixels at that scale.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.annotations import image_folder, iter_annotations, list_arguments
from data.config import CLASS_COLOURS, CLASS_NAMES, NETWORKS, ModelConfig
from data.lists import iter_sizes
from utils.box_utils import xywh_to_cxcywh
from utils.cli import OK, DataError, option, pixels, print_rows
from utils.draw import hex_colour
from utils.images import write_figure

#: IoU of the recall tables; training matches at 0.45.
IOUS = (0.35, 0.45, 0.5)

#: Bounds of the object sizes (square root of the area, in pixels) of the recall tables.
SIZE_BOUNDS = (0, 8, 16, 32, 64, 128, 256, float("inf"))

ALL_SIZES = (0.0, float("inf"))
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
MOST_CLUSTERS = 12

#: Boxes, drawn by chance, that k-means and the proposal look at.
FIT_BOXES = 20_000
_RATIO_GRID = (0.6, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5, 2.9, 3.33, 4.0)
_SMALLEST_GRID = (8.0, 11.0, 16.0, 23.0)
_LARGEST_GRID = (256.0, 362.0, 512.0)


def anchors_arguments(parser: argparse.ArgumentParser) -> None:
    group = list_arguments(parser)
    assumed = "take this size in pixels for every image, where the images are not at hand"
    option(group, "--assume_size", assumed, pixels, nargs=2, metavar=("HEIGHT", "WIDTH"))
    group = parser.add_argument_group("network")
    option(group, "--network", "whose priors to judge", default="mobile0.25", choices=list(NETWORKS))
    option(group, "--image_size --imgsz", "side of training images (default: the network's)", pixels)
    group = parser.add_argument_group("output")
    option(group, "--output --out", "plot to write", Path, required=True, metavar="FILE")


def anchors(args: argparse.Namespace) -> int:
    """Shows box statistics, k-means of box shapes, and how well the priors cover the boxes. Sizes are in
    pixels of the square training image. A configuration that covers more is proposed, if there is one.

    Example:
      python3 prep_data.py anchors datasets/oi/val/wider_val_gt.txt --output anchors.png
    """
    cfg = NETWORKS[args.network]
    side = args.image_size or cfg.image_size
    images_dir = None if args.assume_size else image_folder(args.list, args.images)
    shapes = read_shapes(args.list, side, images_dir, args.assume_size)
    print(f"{len(shapes)} boxes in a square of {side} px; percentiles {', '.join(map(str, PERCENTILES))}")
    print_statistics(shapes)

    sizes = shapes.sample(FIT_BOXES).boxes_cxcywh[:, 2:]
    print("\nk-means of the shapes: clusters, mean IoU, width x height")
    for k in range(1, MOST_CLUSTERS + 1):
        centres, mean_iou = k_means(sizes, k)
        print(f"{k:3d}  {mean_iou:.3f}  {' '.join(f'{w:.0f}x{h:.0f}' for w, h in centres)}")

    recall = prior_recall(shapes, cfg)
    print(f"\nboxes with a prior of {cfg.name} at IoU {', '.join(map(str, IOUS))} or more")
    for row in recall:
        size = "all sizes" if row.bounds == ALL_SIZES else "{:g} to {:g} px".format(*row.bounds)
        print(f"{row.name:7} {size:14} {row.boxes:8d}" + "".join(f"{share:8.1%}" for share in row.shares))
    print("\nheight / width of the priors, and the mean of the classes' recalls at IoU 0.45")
    steps = ratio_steps(shapes, cfg)
    print_rows((", ".join(map(str, ratios)), f"{share:.1%}") for ratios, share in steps)

    proposal, before, after = propose(shapes, cfg)
    better = f"proposal, {before:.1%} to {after:.1%}: min_sizes {proposal.min_sizes}, "
    better += f"heights_over_widths {proposal.heights_over_widths}"
    print(f"\n{better if after > before else 'no proposal'}")
    plot(shapes, cfg, centres, recall, args.output)
    print(f"{args.output}: written")
    return OK


@dataclass
class BoxShapes:
    """Boxes at training scale: float64[N, 4] cx cy w h in pixels, int64[N] labels, the square's side."""

    boxes_cxcywh: np.ndarray
    labels: np.ndarray
    side: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: np.ndarray) -> BoxShapes:
        return BoxShapes(self.boxes_cxcywh[index], self.labels[index], self.side)

    def sample(self, most: int) -> BoxShapes:
        """At most ``most`` of the boxes, drawn by chance."""
        if len(self) <= most:
            return self
        return self[np.sort(np.random.default_rng(0).choice(len(self), most, replace=False))]


def read_shapes(
    path: Path, side: int, images_dir: Path | None, image_size: tuple[int, int] | None
) -> BoxShapes:
    """Boxes of a list at training scale; those without area and ignore regions are left out.

    The sizes of the images are read in ``images_dir``, or ``image_size`` (height, width) is taken for all.

    Raises:
        DataError: an image that cannot be read, no box at all; see also `iter_annotations`.
    """
    sized: Iterable = ((annotation, image_size) for annotation in iter_annotations(path))
    labels, boxes = [np.zeros(0, np.int64)], [np.zeros((0, 4))]
    for annotation, (height, width) in iter_sizes(path, images_dir) if images_dir else sized:
        scale = np.array([width, height, width, height]) * (side / max(height, width))
        labels.append(annotation.labels)
        boxes.append(xywh_to_cxcywh(annotation.boxes_xywh_norm * scale))
    shapes = BoxShapes(np.concatenate(boxes), np.concatenate(labels), side)
    shapes = shapes[(shapes.boxes_cxcywh[:, 2:] > 0).all(1) & (shapes.labels > 0)]
    if not len(shapes):
        raise DataError(f"{path}: no box with an area; nothing to measure")
    return shapes


def print_statistics(shapes: BoxShapes) -> None:
    """Prints `PERCENTILES` of width, height, size and height over width of each class."""
    for label in np.unique(shapes.labels).tolist():
        width, height = shapes[shapes.labels == label].boxes_cxcywh[:, 2:].T
        size, ratio = np.sqrt(width * height), height / width
        columns = {"width": width, "height": height, "size": size, "height_over_width": ratio}
        shares = {key: np.percentile(column, PERCENTILES) for key, column in columns.items()}
        print_rows((f"{CLASS_NAMES[label]} {k}", "".join(f"{v:8.2f}" for v in s)) for k, s in shares.items())


def shape_iou(sizes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """float64[N, K]: IoU of [N, 2] and [K, 2] widths and heights laid over each other by their centres."""
    shared = np.minimum(sizes[:, None], centres[None]).prod(-1)
    return shared / (sizes.prod(1)[:, None] + centres.prod(1)[None] - shared)


def k_means(sizes: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """Clusters of float64[N, 2] widths and heights under the distance 1 - IoU; the best of three runs
    (Redmon and Farhadi 2017, section 2).

    Returns:
        float64[k, 2] by ascending area, fewer where there are fewer different boxes, and the boxes' mean IoU
        with their nearest.
    """
    generator = np.random.default_rng(0)
    distinct = np.unique(sizes, axis=0)
    k = min(k, len(distinct))
    best, best_iou = distinct[:k], -1.0
    for _ in range(3):
        centres = sizes[generator.integers(len(sizes))][None]
        while len(centres) < k:  # k-means++: far boxes are likelier to become centres
            distance = np.square(1 - shape_iou(sizes, centres).max(1)).clip(1e-12)
            next_one = generator.choice(len(sizes), p=distance / distance.sum())
            centres = np.vstack([centres, sizes[next_one]])
        nearest = np.full(len(sizes), -1)
        for _ in range(100):
            assigned = shape_iou(sizes, centres).argmax(1)
            if (assigned == nearest).all():
                break
            nearest = assigned
            centres = np.array(
                [np.median(sizes[nearest == i], 0) if (nearest == i).any() else centres[i] for i in range(k)]
            )
        mean_iou = float(shape_iou(sizes, centres).max(1).mean())
        if mean_iou > best_iou:
            best, best_iou = centres, mean_iou
    return best[best.prod(1).argsort(kind="stable")], best_iou


def best_prior_iou(shapes: BoxShapes, cfg: ModelConfig) -> np.ndarray:
    """float64[N, K]: IoU of each box with the nearest prior of each shape, on the grid of a square input.

    The overlap shrinks with the distance along either axis, so the prior nearest to the box's centre is the
    best of its shape. Exact for the network's own priors, clipping included.
    """
    centre, size = shapes.boxes_cxcywh[:, :2], shapes.boxes_cxcywh[:, 2:]
    levels = zip(cfg.prior_shapes(), cfg.strides, strict=True)
    priors = [(np.array(prior), stride) for level, stride in levels for prior in level]
    found = np.empty((len(shapes), len(priors)))
    for column, (prior, stride) in enumerate(priors):
        centres = (np.arange(ceil(shapes.side / stride)) + 0.5) * stride
        if cfg.clip_priors:  # centre and size, each to the image's side
            prior, centres = prior.clip(max=shapes.side), centres.clip(max=shapes.side)
        nearest = centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, centre)]
        low = np.maximum(centre - size / 2, nearest - prior / 2)
        high = np.minimum(centre + size / 2, nearest + prior / 2)
        shared = (high - low).clip(0).prod(1)
        found[:, column] = shared / (size.prod(1) + prior.prod() - shared)
    return found


class Recall(NamedTuple):
    """Share of the boxes of a class and a range of sizes (pixels) whose best prior reaches each of `IOUS`."""

    name: str
    bounds: tuple[float, float]
    boxes: int
    shares: tuple[float, ...]


def prior_recall(shapes: BoxShapes, cfg: ModelConfig) -> list[Recall]:
    """Recall by class and object size; the row with the bounds 0 and infinity is of all sizes."""
    best = best_prior_iou(shapes, cfg).max(1)
    size = np.sqrt(shapes.boxes_cxcywh[:, 2:].prod(1))
    table = []
    for label, name in CLASS_NAMES.items():
        for bounds in [*itertools.pairwise(SIZE_BOUNDS), ALL_SIZES]:
            mask = (shapes.labels == label) & (size >= bounds[0]) & (size < bounds[1])
            if mask.any():
                shares = tuple(float((best[mask] >= iou).mean()) for iou in IOUS)
                table.append(Recall(name, bounds, int(mask.sum()), shares))
    return table


def mean_recall(shapes: BoxShapes, cfg: ModelConfig) -> float:
    """Share of the boxes whose best prior reaches an IoU of 0.45, each class counting the same."""
    return _mean_of_classes(shapes, best_prior_iou(shapes, cfg).max(1) >= 0.45)


def _mean_of_classes(shapes: BoxShapes, covered: np.ndarray) -> float:
    return float(np.mean([covered[shapes.labels == label].mean() for label in np.unique(shapes.labels)]))


def ratio_steps(shapes: BoxShapes, cfg: ModelConfig) -> list[tuple[tuple[float, ...], float]]:
    """Mean recall at 0.45 with the first ratio of ``cfg`` alone, with the first two, and so on."""
    firsts = (cfg.heights_over_widths[: i + 1] for i in range(len(cfg.heights_over_widths)))
    return [(ratios, mean_recall(shapes, replace(cfg, heights_over_widths=ratios))) for ratios in firsts]


def propose(shapes: BoxShapes, cfg: ModelConfig) -> tuple[ModelConfig, float, float]:
    """A configuration with as many sizes and ratios as ``cfg`` whose priors cover the boxes better.

    Sizes are even steps from a smallest to a largest, ratios come from a grid: all combinations are compared
    by `mean_recall` on up to `FIT_BOXES`. Returns the best, which may be ``cfg``, and the recall with ``cfg``
    and with it.
    """
    shapes = shapes.sample(FIT_BOXES)
    before = best_recall = mean_recall(shapes, cfg)
    best = cfg
    levels, each, ratios = len(cfg.strides), len(cfg.min_sizes[0]), len(cfg.heights_over_widths)
    for smallest, largest in itertools.product(_SMALLEST_GRID, _LARGEST_GRID):
        sizes = np.geomspace(smallest, largest, levels * each).round().astype(int).reshape(levels, each)
        candidate = replace(cfg, min_sizes=tuple(map(tuple, sizes.tolist())), heights_over_widths=_RATIO_GRID)
        reached = best_prior_iou(shapes, candidate).reshape(len(shapes), -1, len(_RATIO_GRID)).max(1) >= 0.45
        for chosen in itertools.combinations(range(len(_RATIO_GRID)), ratios):
            recall = _mean_of_classes(shapes, reached[:, chosen].any(1))
            if recall > best_recall:
                heights = tuple(_RATIO_GRID[i] for i in chosen)
                best, best_recall = replace(candidate, heights_over_widths=heights), recall
    return best, before, best_recall


def plot(shapes: BoxShapes, cfg: ModelConfig, centres: np.ndarray, rows: list[Recall], output: Path) -> None:
    """Draws shapes, with priors and k-means clusters over them, and the recall by object size."""
    from matplotlib.figure import Figure  # takes a while to import

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    scatter, recall = figure.subplots(1, 2)
    shown = shapes.sample(6000)
    for label, name in CLASS_NAMES.items():
        if not (shapes.labels == label).any():
            continue
        colour = hex_colour(CLASS_COLOURS[label])
        width, height = shown[shown.labels == label].boxes_cxcywh[:, 2:].T
        scatter.plot(width, height, ".", ms=2, alpha=0.35, color=colour, label=name)
        sized = [row for row in rows if row.name == name and row.bounds != ALL_SIZES]
        places = [SIZE_BOUNDS.index(row.bounds[0]) for row in sized]
        recall.plot(places, [row.shares[1] for row in sized], "o-", color=colour, label=name)
    priors = np.array([prior for level in cfg.prior_shapes() for prior in level])
    scatter.plot(*priors.T, "k+", ms=9, mew=1.5, label="priors")
    scatter.plot(*centres.T, "o", ms=6, mfc="none", mec="#cc3311", label=f"{len(centres)} clusters")
    scatter.set(xlabel="width, px", ylabel="height, px", title=f"box shapes in a {shapes.side} px square")
    scatter.set(xscale="log", yscale="log")
    for axis in (scatter.xaxis, scatter.yaxis):
        axis.set_major_formatter("{x:g}")
    sizes = [f"{low:g}-{high:g}" for low, high in itertools.pairwise(SIZE_BOUNDS)]
    recall.set_xticks(range(len(sizes)), sizes)
    recall.set(xlabel="object size, px", ylabel="share", title="boxes with a prior at IoU 0.45 or more")
    recall.set_ylim(0, 1.02)
    for axis in (scatter, recall):
        axis.legend()
    write_figure(output, figure, 110)
