"""What a prior learns: the truth that it matches, the background, what a teacher says, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.config import ModelConfig
from layers.functions.prior_box import feature_sizes, prior_boxes, priors_per_cell

#: Least overlap of a truth with its best prior.
BEST_PRIOR_IOU = 0.2

#: Pairs of truth and prior that `match` works on at once; each takes about 200 bytes.
MAX_PAIRS = 2**20


@dataclass(frozen=True)
class PriorGrids:
    """Priors of one image size, seen as one grid of centres for each level and shape.

    Attributes:
        priors, corners: Tensor[P, 4], see `prior_boxes`, and the same as x1 y1 x2 y2.
        sizes: Tensor[G, 2], w h of each grid's priors.
        centres: pair of Tensor[G, C], ascending x of the columns and y of the rows, padded with infinity.
        first, columns: int64 Tensor[G], index of the prior in the top left cell, and cells of a row.
        step: priors of a cell, the distance of neighbours in a row.
    """

    priors: Tensor
    corners: Tensor
    sizes: Tensor
    centres: tuple[Tensor, Tensor]
    first: Tensor
    columns: Tensor
    step: int


@lru_cache(maxsize=1)
def prior_grids(cfg: ModelConfig, image_size: tuple[int, int], device: torch.device) -> PriorGrids:
    """`prior_boxes` of an image size, taken apart."""
    priors, step = prior_boxes(cfg, image_size, device), priors_per_cell(cfg)
    sizes, xs, ys, first, columns, start = [], [], [], [], [], 0
    for rows, cols in feature_sizes(cfg, image_size):
        cells = priors[start : start + rows * cols * step].view(rows, cols, step, 4)
        sizes.append(cells[0, 0, :, 2:])
        xs += [cells[0, :, 0, 0]] * step
        ys += [cells[:, 0, 0, 1]] * step
        first.append(torch.arange(start, start + step))
        columns += [cols] * step
        start += rows * cols * step
    half = priors[:, 2:] / 2
    return PriorGrids(
        priors=priors,
        corners=torch.cat([priors[:, :2] - half, priors[:, :2] + half], 1),
        sizes=torch.cat(sizes),
        centres=tuple(pad_sequence(c, batch_first=True, padding_value=torch.inf) for c in (xs, ys)),
        first=torch.cat(first).to(device),
        columns=torch.tensor(columns, device=device),
        step=step,
    )


@dataclass(frozen=True)
class Matches:
    """Priors of a batch that have a truth; the rest is background.

    Attributes:
        image, prior: int64 Tensor[K], which prior of which image, ascending.
        labels, boxes_norm: int64 Tensor[K] and Tensor[K, 4], x1 y1 x2 y2, of the truths.
        truth: int64 Tensor[K], the number of the truth within the batch.
        batch_size, truths: how many images and truths the batch has.
    """

    batch_size: int
    image: Tensor
    prior: Tensor
    labels: Tensor
    boxes_norm: Tensor
    truth: Tensor
    truths: int


def match(
    boxes_norm: Tensor,
    labels: Tensor,
    counts: Tensor,
    grids: PriorGrids,
    match_iou: float = 0.45,
) -> Matches:
    """Gives priors to the truths of a batch.

    A prior takes the truth that it overlaps most, from ``match_iou`` on (the first of equal ones). Besides,
    every truth gets the prior that overlaps it most, the last truth where several want the same; a truth
    for which this is below `BEST_PRIOR_IOU` is dropped. As in the published code, a dropped truth still
    takes the place of another in its best prior if that is matched.

    Only pairs that can reach the IoU in question are looked at: for a truth and a grid these lie in a window
    around the truth's centre. Memory: about 50 bytes a prior of the batch, and `MAX_PAIRS` pairs.

    Args:
        boxes_norm, labels: Tensor[M, 4], x1 y1 x2 y2, normalised, with positive width and height, and int64
            Tensor[M], of all images one after another.
        counts: int64 Tensor[N], boxes of each image.
        grids: the priors, on the device of boxes and labels.
    """
    device, count = grids.priors.device, len(grids.priors)
    image = torch.repeat_interleave(counts.to(device), output_size=len(boxes_norm))
    everyone = torch.arange(len(boxes_norm), device=device)

    floor = _best_iou(boxes_norm, grids).clamp(max=match_iou) * (1 - 1e-3)  # a margin for rounding
    truth, prior, iou = _pairs_from(boxes_norm, floor, grids)
    key = image[truth] * count + prior

    # The best prior of every truth, the first of equal ones; `nowhere` if it overlaps none.
    nowhere = len(counts) * count
    best_iou = iou.new_zeros(len(boxes_norm)).scatter_reduce_(0, truth, iou, "amax")
    best = iou == best_iou[truth]
    best_key = torch.full_like(image, nowhere)
    best_key.scatter_reduce_(0, truth, key.where(best, nowhere), "amin")

    # The best truth of every prior, the first of equal ones, unless the prior is the best of a truth.
    near = iou >= match_iou
    key_iou = iou.new_zeros(nowhere).scatter_reduce_(0, key, iou * near, "amax")
    best = near & (iou == key_iou[key])
    owner = image.new_full((nowhere + 1,), len(boxes_norm))
    owner.scatter_reduce_(0, key, truth.where(best, len(boxes_norm)), "amin")
    matched = owner < len(boxes_norm)
    matched.index_fill_(0, best_key.where(best_iou >= BEST_PRIOR_IOU, nowhere), True)
    owner.scatter_reduce_(0, best_key, everyone, "amax", include_self=False)

    key = matched[:nowhere].nonzero()[:, 0]
    owner = owner[key]
    return Matches(
        len(counts), key // count, key % count, labels[owner], boxes_norm[owner], owner, len(labels)
    )


def much_covered(boxes: Tensor, regions: Tensor, share: float = 0.5, iou: float = 0.3) -> Tensor:
    """bool Tensor[R, P]: boxes x1 y1 x2 y2 with ``share`` of their area in a region, or ``iou`` with it."""
    areas, region_areas = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, regions))
    sides = torch.minimum(boxes[:, 2:], regions[:, None, 2:]) - torch.maximum(
        boxes[:, :2], regions[:, None, :2]
    )
    shared = sides.clamp(min=0).prod(2)
    return (shared >= share * areas) | (shared >= iou * (areas + region_areas[:, None] - shared))


def choose_targets(
    labelled: Tensor, matches: Matches, teacher_knows: Tensor | None, teacher_first: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Decides for every prior and class who sets the target; the losses follow the two masks.

    ====================================================  =============================  =======  ====
    prior, and what is known of the class there           target                         unknown  soft
    ====================================================  =============================  =======  ====
    matched to a box                                      its label                      either   no
    not matched; labelled                                 background, hard negatives     no       no
    the same, class in ``teacher_first``, a teacher       the teacher's score and box    yes      yes
    knows it
    not matched; not labelled or ignored, a teacher       the teacher's score and box    yes      yes
    knows it
    the same, no teacher knows it                         nothing: background and class  yes      no
                                                          merge
    ====================================================  =============================  =======  ====

    Args:
        labelled: bool Tensor[N, 1 or P, classes], see `MultiBoxLoss.labelled`.
        matches: see `match`.
        teacher_knows: bool Tensor[P, classes], see `SoftTargets`; None without teachers.
        teacher_first: bool Tensor[classes], classes for which teachers go before labels.

    Returns:
        ``unknown`` for `MultiBoxLoss`, bool Tensor[N, 1 or P, classes], and ``soft`` for `DistillationLoss`,
        bool Tensor[N, P, classes], None without teachers.
    """
    unknown = ~labelled
    if teacher_knows is None:
        return unknown, None
    unknown = unknown | (teacher_knows & teacher_first)
    soft = unknown & teacher_knows
    soft.index_put_((matches.image, matches.prior), soft.new_zeros(()))
    return unknown, soft


def _best_iou(truths: Tensor, grids: PriorGrids) -> Tensor:
    """Tensor[M]: the highest IoU of every truth, up to rounding. In a grid the nearest centre has it."""
    centre, size = (truths[:, :2] + truths[:, 2:]) / 2, truths[:, 2:] - truths[:, :2]
    overlap = []
    for axis, centres in enumerate(grids.centres):
        wanted = centre[:, axis].expand(len(centres), -1).contiguous()
        after = torch.searchsorted(centres, wanted).clamp(max=centres.shape[1] - 1)
        near = torch.stack([centres.gather(1, after), centres.gather(1, (after - 1).clamp(min=0))])
        distance = (near - wanted).abs().amin(0)
        own, other = size[:, axis], grids.sizes[:, axis, None]
        overlap.append(torch.minimum(torch.minimum(own, other), (own + other) / 2 - distance).clamp(min=0))
    intersection = overlap[0] * overlap[1]
    return (intersection / (size.prod(1) + grids.sizes.prod(1)[:, None] - intersection)).amax(0)


def _pairs_from(truths: Tensor, floor: Tensor, grids: PriorGrids) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of a truth and a prior whose IoU is above 0 and at least the truth's ``floor``.

    IoU >= f means: intersection >= f / (1 + f) * (sum of both areas). With the shorter of both heights as the
    most that can overlap vertically, this bounds the distance of the centres horizontally, and vice versa.
    Returned are int64[K] truths, int64[K] priors and the IoUs.
    """
    centre, size = (truths[:, :2] + truths[:, 2:]) / 2, truths[:, 2:] - truths[:, :2]
    needed = floor / (1 + floor) * (size.prod(1) + grids.sizes.prod(1)[:, None])
    most = torch.minimum(size, grids.sizes[:, None])
    start, length = [], []
    for axis, centres in enumerate(grids.centres):
        reach = (size[:, axis] + grids.sizes[:, axis, None]) / 2 - needed / most[..., 1 - axis]
        low = torch.searchsorted(centres, (centre[:, axis] - reach).contiguous())
        high = torch.searchsorted(centres, (centre[:, axis] + reach).contiguous(), right=True)
        start.append(low)
        length.append((high - low).clamp(min=0))
    pairs = (length[0] * length[1] * (needed <= most.prod(-1))).flatten()
    before = pairs.cumsum(0) - pairs
    columns, first_column, first_row = length[0].flatten(), start[0].flatten(), start[1].flatten()
    found = [(columns[:0], columns[:0], floor[:0])]
    for windows, first, last in _bundles(pairs.cpu()):
        window = torch.arange(windows.start, windows.stop, device=truths.device)
        window = window.repeat_interleave(pairs[windows], output_size=last - first)
        grid, truth = window // len(truths), window % len(truths)
        offset = torch.arange(first, last, device=truths.device) - before[window]
        row = offset // columns[window]
        column = first_column[window] + offset - row * columns[window]
        row += first_row[window]
        prior = grids.first[grid] + (row * grids.columns[grid] + column) * grids.step
        iou = _iou(truths[truth], grids.corners[prior])
        kept = ((iou >= floor[truth]) & (iou > 0)).nonzero()[:, 0]
        found.append((truth[kept], prior[kept], iou[kept]))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def _bundles(pairs: Tensor) -> Iterator[tuple[slice, int, int]]:
    """Windows that have about `MAX_PAIRS` of ``pairs`` together, with their first pair and the next one's."""
    after = pairs.cumsum(0)
    bundle = (after - pairs) // MAX_PAIRS
    start, first = 0, 0
    for windows in bundle.unique_consecutive(return_counts=True)[1].tolist():
        last = int(after[start + windows - 1])
        yield slice(start, start + windows), first, last
        start, first = start + windows, last


def _iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Tensor[K]: IoU of each box with the other of its row; both Tensor[K, 4], x1 y1 x2 y2."""
    sides = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])
    intersection = sides.clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1)
    return intersection / (areas - intersection)
