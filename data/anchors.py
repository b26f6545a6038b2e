"""Box statistics of a list, k-means of box shapes, and how well priors cover the boxes.

Everything is measured as the network sees it in training: the image padded to a square and resized to the
side that it is trained at, so sizes are pixels at that scale.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path

import numpy as np

from data.annotations import ImageAnnotation, iter_annotations
from data.config import CLASS_NAMES, ModelConfig
from utils.cli import DataError
from utils.images import read_sizes, write_figure

#: IoU of the recall tables; training matches at 0.45.
IOUS = (0.35, 0.45, 0.5)

#: Bounds of the object sizes (square root of the area, in pixels) of the recall tables.
SIZE_BOUNDS = (0, 8, 16, 32, 64, 128, 256, float("inf"))

ALL_SIZES = (0.0, float("inf"))
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
FIT_BOXES = 20_000
_RATIO_GRID = (0.6, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5, 2.9, 3.33, 4.0)
_SMALLEST_GRID = (8.0, 11.0, 16.0, 23.0)
_LARGEST_GRID = (256.0, 362.0, 512.0)


@dataclass
class BoxShapes:
    """Boxes at training scale: float64[N, 4] cx cy w h in pixels, int64[N] labels, the square's side."""

    boxes_cxcywh: np.ndarray
    labels: np.ndarray
    side: int

    def __len__(self) -> int:
        return len(self.labels)

    def of_class(self, label: int) -> BoxShapes:
        mask = self.labels == label
        return BoxShapes(self.boxes_cxcywh[mask], self.labels[mask], self.side)

    def sample(self, count: int, seed: int = 0) -> BoxShapes:
        """At most ``count`` of the boxes, drawn by chance."""
        if len(self) <= count:
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False))
        return BoxShapes(self.boxes_cxcywh[chosen], self.labels[chosen], self.side)


def read_shapes(
    path: str | os.PathLike, side: int, images_dir: Path | None, image_size: tuple[int, int] | None
) -> BoxShapes:
    """Boxes of a list at training scale; those without area are left out.

    Args:
        path: annotation list.
        side: of the square training image, in pixels.
        images_dir: folder of the images, whose sizes are read.
        image_size: (height, width) taken for every image, where there are none.

    Raises:
        DataError: an image that cannot be read, no box at all; see also `iter_annotations`.
    """
    parts = [np.zeros((0, 5))]
    annotations = iter_annotations(path)
    while block := list(islice(annotations, 1024)):
        sizes: Iterable = (
            itertools.repeat(image_size, len(block))
            if images_dir is None
            else read_sizes(images_dir, (annotation.path for annotation in block))
        )
        for annotation, size in zip(block, sizes, strict=True):
            if isinstance(size, DataError):
                raise DataError(f"{path}:{annotation.line}: {size}")
            parts.append(_at_scale(annotation, size, side))
    table = np.concatenate(parts)
    table = table[(table[:, 3:] > 0).all(1)]
    if not len(table):
        raise DataError(f"{path}: no box with an area; nothing to measure")
    return BoxShapes(table[:, 1:], table[:, 0].astype(np.int64), side)


def _at_scale(annotation: ImageAnnotation, image_size: tuple[int, int], side: int) -> np.ndarray:
    height, width = image_size
    boxes = (
        annotation.boxes_xywh_norm * np.array([width, height, width, height]) * (side / max(height, width))
    )
    boxes[:, :2] += boxes[:, 2:] / 2
    return np.column_stack([annotation.labels, boxes])


def statistics(shapes: BoxShapes) -> dict[str, dict[str, list[float]]]:
    """Percentiles of width, height, size and height over width by class name; keys as in the tables."""
    found = {}
    for label, name in CLASS_NAMES.items():
        boxes = shapes.of_class(label).boxes_cxcywh
        if len(boxes):
            width, height = boxes[:, 2], boxes[:, 3]
            columns = {
                "width": width,
                "height": height,
                "size": np.sqrt(width * height),
                "height_over_width": height / width,
            }
            found[name] = {
                key: np.percentile(values, PERCENTILES).tolist() for key, values in columns.items()
            }
    return found


def shape_iou(sizes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """float64[N, K]: IoU of [N, 2] and [K, 2] widths and heights laid over each other by their centres."""
    shared = np.minimum(sizes[:, None], centres[None]).prod(-1)
    return shared / (sizes.prod(1)[:, None] + centres.prod(1)[None] - shared)


def k_means(sizes: np.ndarray, k: int, seed: int = 0, starts: int = 3) -> tuple[np.ndarray, float]:
    """Clusters of box shapes under the distance 1 - IoU (Redmon and Farhadi 2017, section 2).

    Args:
        sizes: float64[N, 2], widths and heights.
        k: number of clusters; fewer come back where there are fewer different boxes.
        seed: of the starts.
        starts: runs, of which the best is taken.

    Returns:
        float64[k, 2] widths and heights by ascending area, and the boxes' mean IoU with their nearest.
    """
    generator = np.random.default_rng(seed)
    distinct = np.unique(sizes, axis=0)
    k = min(k, len(distinct))
    best, best_iou = distinct[:k], -1.0
    for _ in range(starts):
        centres = sizes[generator.integers(len(sizes))][None]
        while len(centres) < k:  # k-means++: far boxes are likelier to become centres
            distance = np.square(1 - shape_iou(sizes, centres).max(1)).clip(1e-12)
            centres = np.concatenate(
                [centres, sizes[[generator.choice(len(sizes), p=distance / distance.sum())]]]
            )
        nearest = None
        for _ in range(100):
            assigned = shape_iou(sizes, centres).argmax(1)
            if nearest is not None and (assigned == nearest).all():
                break
            nearest = assigned
            centres = np.array(
                [np.median(sizes[nearest == i], 0) if (nearest == i).any() else centres[i] for i in range(k)]
            )
        mean_iou = float(shape_iou(sizes, centres).max(1).mean())
        if mean_iou > best_iou:
            best, best_iou = centres, mean_iou
    return best[best.prod(1).argsort(kind="stable")], best_iou


def prior_shapes(cfg: ModelConfig) -> np.ndarray:
    """float64[K, 3]: width, height and stride in pixels of each prior of a cell of each level."""
    return np.array(
        [
            (size / ratio**0.5, size * ratio**0.5, stride)
            for stride, sizes in zip(cfg.strides, cfg.min_sizes, strict=True)
            for size in sizes
            for ratio in cfg.heights_over_widths
        ]
    )


def best_prior_iou(shapes: BoxShapes, cfg: ModelConfig) -> np.ndarray:
    """float64[N, K]: IoU of each box with the nearest prior of each shape, on the grid of a square input.

    The overlap shrinks with the distance along either axis, so the prior nearest to the box's centre is the
    best of its shape. Exact for the network's own priors, clipping included.
    """
    centre, size = shapes.boxes_cxcywh[:, :2], shapes.boxes_cxcywh[:, 2:]
    found = np.empty((len(shapes), len(prior_shapes(cfg))))
    for column, (width, height, stride) in enumerate(prior_shapes(cfg)):
        prior = np.array([width, height])
        cells = ceil(shapes.side / stride)
        nearest = (np.floor(centre / stride).clip(0, cells - 1) + 0.5) * stride
        if cfg.clip_priors:  # centre and size, each to the image's side
            prior, nearest = prior.clip(max=shapes.side), nearest.clip(max=shapes.side)
        low = np.maximum(centre - size / 2, nearest - prior / 2)
        high = np.minimum(centre + size / 2, nearest + prior / 2)
        shared = (high - low).clip(0).prod(1)
        found[:, column] = shared / (size.prod(1) + prior.prod() - shared)
    return found


@dataclass
class Recall:
    """Share of the boxes of a class whose best prior reaches an IoU.

    Attributes:
        name: of the class.
        bounds: object size from and below, in pixels.
        boxes: how many.
        shares: one for each of `IOUS`.
    """

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


def mean_recall(shapes: BoxShapes, cfg: ModelConfig, iou: float = 0.45) -> float:
    """Share of the boxes whose best prior reaches ``iou``, each class counting the same."""
    best = best_prior_iou(shapes, cfg).max(1)
    return float(
        np.mean([(best[shapes.labels == label] >= iou).mean() for label in np.unique(shapes.labels)])
    )


def ratio_steps(shapes: BoxShapes, cfg: ModelConfig) -> list[tuple[tuple[float, ...], float]]:
    """Mean recall at 0.45 with the first ratio of ``cfg`` alone, with the first two, and so on."""
    steps = []
    for count in range(1, len(cfg.heights_over_widths) + 1):
        ratios = cfg.heights_over_widths[:count]
        steps.append((ratios, mean_recall(shapes, replace(cfg, heights_over_widths=ratios))))
    return steps


def propose(shapes: BoxShapes, cfg: ModelConfig) -> tuple[ModelConfig, float, float]:
    """A configuration with as many sizes and ratios as ``cfg`` whose priors cover the boxes better.

    Sizes are even steps from a smallest to a largest, ratios come from a grid: all combinations of up to
    20,000 boxes are compared by the recall at 0.45, each class counting the same. ``cfg`` comes back where
    none is better.

    Returns:
        The configuration, and on the same boxes the recall with ``cfg`` and with it.
    """
    shapes = shapes.sample(FIT_BOXES)
    before = best_recall = mean_recall(shapes, cfg)
    best = cfg
    levels, each, ratios = len(cfg.strides), len(cfg.min_sizes[0]), len(cfg.heights_over_widths)
    classes = [shapes.labels == label for label in np.unique(shapes.labels)]
    for smallest, largest in itertools.product(_SMALLEST_GRID, _LARGEST_GRID):
        sizes = np.geomspace(smallest, largest, levels * each).round().astype(int).reshape(levels, each)
        candidate = replace(cfg, min_sizes=tuple(map(tuple, sizes.tolist())), heights_over_widths=_RATIO_GRID)
        reached = best_prior_iou(shapes, candidate).reshape(len(shapes), -1, len(_RATIO_GRID)).max(1) >= 0.45
        for chosen in itertools.combinations(range(len(_RATIO_GRID)), ratios):
            covered = reached[:, chosen].any(1)
            recall = float(np.mean([covered[mask].mean() for mask in classes]))
            if recall > best_recall:
                heights = tuple(_RATIO_GRID[i] for i in chosen)
                best, best_recall = replace(candidate, heights_over_widths=heights), recall
    return best, before, best_recall


def plot(
    shapes: BoxShapes,
    cfg: ModelConfig,
    clusters: Sequence[tuple[np.ndarray, float]],
    output: str | os.PathLike,
) -> None:
    """Draws shapes with the priors over them, ratios, the k-means curve and the recall by object size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    colours = {"face": "#e69f00", "person": "#0072b2"}
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    scatter, ratio, curve, recall = axes.ravel()
    shown = shapes.sample(6000)
    priors = prior_shapes(cfg)
    for label, name in CLASS_NAMES.items():
        boxes = shown.of_class(label).boxes_cxcywh
        if len(boxes):
            scatter.loglog(boxes[:, 2], boxes[:, 3], ".", ms=2, alpha=0.35, color=colours[name], label=name)
            every = shapes.of_class(label).boxes_cxcywh
            logs = np.log2(every[:, 3] / every[:, 2]).clip(-2.99, 2.99)
            ratio.hist(
                logs, np.linspace(-3, 3, 61), density=True, color=colours[name], alpha=0.55, label=name
            )
    scatter.loglog(priors[:, 0], priors[:, 1], "k+", ms=9, mew=1.5, label="priors")
    centres, _ = clusters[-1]
    scatter.loglog(
        centres[:, 0], centres[:, 1], "o", ms=6, mfc="none", mec="#cc3311", label=f"{len(centres)} clusters"
    )
    scatter.set(xlabel="width, px", ylabel="height, px", title=f"box shapes in a {shapes.side} px square")
    for value in cfg.heights_over_widths:
        ratio.axvline(np.log2(value), color="k", lw=1, ls="--")
    ticks = [-3, -2, -1, 0, 1, 2, 3]
    ratio.set_xticks(ticks, [f"{2.0**tick:g}" for tick in ticks])
    ratio.set(xlabel="height / width", ylabel="density", title="ratios; dashed: those of the priors")
    curve.plot(range(1, len(clusters) + 1), [mean for _, mean in clusters], "o-", color="#444444")
    curve.set(xlabel="clusters", ylabel="mean IoU with the nearest", title="k-means of the shapes, 1 - IoU")
    curve.set_ylim(0, 1)
    for name in colours:
        rows = [r for r in prior_recall(shapes, cfg) if r.name == name and r.bounds != ALL_SIZES]
        if rows:
            places = [SIZE_BOUNDS.index(row.bounds[0]) for row in rows]
            recall.plot(places, [row.shares[1] for row in rows], "o-", color=colours[name], label=name)
    recall.set_xticks(
        range(len(SIZE_BOUNDS) - 1), [f"{low:g}-{high:g}" for low, high in itertools.pairwise(SIZE_BOUNDS)]
    )
    recall.set(xlabel="object size, px", ylabel="share", title="boxes with a prior at IoU 0.45 or more")
    recall.set_ylim(0, 1.02)
    for axis in (scatter, ratio, recall):
        axis.legend()
    for axis in (scatter.xaxis, scatter.yaxis):
        axis.set_major_formatter(ScalarFormatter())
    write_figure(output, figure, 110)
