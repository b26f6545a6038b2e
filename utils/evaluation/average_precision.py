"""Average precision from the outcomes of matching: all points, COCO's 101 points, WIDER FACE's 1,000 scores.

An outcome (int8) is 1 for a hit, 0 for a false positive, -1 for a detection that is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: Scores at which WIDER FACE looks at the curve, descending (evaluation protocol of the benchmark).
WIDER_SCORES = 1 - np.arange(1, 1001) / 1000

_COCO_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Curve:
    """Precision and recall down to each score.

    Attributes:
        scores: float64[K], descending; of equal scores only the last point is an operating point.
        recall, precision: float64[K].
        truths: number of boxes to be found.
        one_by_one: sum the area from the first step to the last, as WIDER FACE's own tool does: its last
            two digits differ from those of NumPy's sum, which are exact.
    """

    scores: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    truths: int
    one_by_one: bool = False

    @cached_property
    def envelope(self) -> np.ndarray:
        """float64[K]: best precision at this recall or a higher one."""
        return _envelope(self.precision)

    @property
    def area(self) -> float:
        """Area under the envelope, every point counted; NaN where there is nothing to find."""
        if not self.truths:
            return float("nan")
        steps = np.diff(self.recall, prepend=0) * self.envelope
        return float(np.cumsum(steps)[-1] if self.one_by_one and len(steps) else steps.sum())

    @property
    def coco(self) -> float:
        """Mean of the envelope at 101 recalls; NaN where there is nothing to find."""
        if not self.truths:
            return float("nan")
        at = np.searchsorted(self.recall, _COCO_RECALLS)
        return float(np.append(self.envelope, 0)[at].mean())

    def at(self, score: float) -> tuple[float, float]:
        """Precision and recall of what scores at least ``score``; NaN and 0 where nothing does."""
        last = np.searchsorted(-self.scores, -score, "right") - 1
        return (float(self.precision[last]), float(self.recall[last])) if last >= 0 else (float("nan"), 0.0)

    def best_f1(self) -> dict[str, float | None]:
        """The operating point of best F1: ``score`` to cut at, ``precision``, ``recall``, ``f1``."""
        is_last = np.append(self.scores[1:] != self.scores[:-1], True)[: len(self.scores)]
        f1 = np.where(is_last, f1_of(self.precision, self.recall), 0)
        if not self.truths or not f1.any():
            return {"score": None, "precision": 0.0, "recall": 0.0, "f1": 0.0}
        columns = {"score": self.scores, "precision": self.precision, "recall": self.recall, "f1": f1}
        return {name: float(column[f1.argmax()]) for name, column in columns.items()}


def f1_of(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """F1 of each precision and recall; 0 where both are."""
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)


def full_curve(
    scores: np.ndarray, outcome: np.ndarray, truths: int, order: np.ndarray | None = None
) -> Curve:
    """A point for every detection that is not left out, by descending score; equal scores in their order.

    ``scores`` float64[N], ``outcome`` int8[N], and ``order``, `score_order` of the scores if it is at hand.
    """
    order = score_order(scores) if order is None else order
    order = order[outcome[order] >= 0]
    hits = np.cumsum(outcome[order], dtype=np.int64)
    return Curve(scores[order], hits / max(truths, 1), hits / np.arange(1, len(hits) + 1), truths)


def score_order(scores: np.ndarray) -> np.ndarray:
    """int64[N]: detections by descending score, equal ones in their order."""
    return np.argsort(-scores, kind="stable")


def score_range(scores: np.ndarray) -> tuple[float, float]:
    """Least score, at most 1, and greatest, at least 0, of a set: what WIDER FACE stretches to 0..1."""
    return min(1.0, scores.min(initial=1)), max(0.0, scores.max(initial=0))


def normalised(scores: np.ndarray) -> np.ndarray:
    """Scores stretched to 0..1 over the whole set, as WIDER FACE wants them; all 1 if they are equal."""
    least, greatest = score_range(scores)
    return (scores - least) / (greatest - least) if greatest > least else np.ones_like(scores)


def wider_bins(scores: np.ndarray) -> np.ndarray:
    """int64[N]: index of the first of `WIDER_SCORES` that each score reaches, 1000 if it reaches none."""
    return len(WIDER_SCORES) - np.searchsorted(WIDER_SCORES[::-1], scores, "right")


def wider_curve(bins: np.ndarray, outcome: np.ndarray, truths: int) -> Curve:
    """The curve at WIDER FACE's 1,000 scores, of `wider_bins` and int8[N] outcomes."""
    counted, hits = _cumulated(bins, outcome)
    recall, precision = hits / max(truths, 1), hits / np.maximum(counted, 1)
    return Curve(WIDER_SCORES, recall, precision, truths)


def image_costs(
    bins: np.ndarray, outcome: np.ndarray, image_index: np.ndarray, truths: np.ndarray
) -> np.ndarray:
    """float64[I]: what the area under the 1,000-score curve would gain if an image were not in the set.

    ``image_index`` int64[N] is the image of each detection, ascending, ``truths`` int64[I] the boxes to be
    found in each.
    """
    counted, hits = _cumulated(bins, outcome)
    costs = np.zeros(len(truths))
    ends = np.searchsorted(image_index, np.arange(len(truths) + 1))
    for image, rows in enumerate(map(slice, ends[:-1], ends[1:])):
        own_counted, own_hits = _cumulated(bins[rows], outcome[rows])
        recall = (hits - own_hits) / max(truths.sum() - truths[image], 1)
        precision = (hits - own_hits) / np.maximum(counted - own_counted, 1)
        costs[image] = _area(recall, _envelope(precision))
    return costs - (wider_curve(bins, outcome, truths.sum()).area if truths.any() else 0.0)


def _cumulated(bins: np.ndarray, outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Detections that count, and hits, down to each of the 1,000 scores: int64[1000] each."""
    counts = (np.bincount(bins[outcome >= least], minlength=len(WIDER_SCORES) + 1) for least in (0, 1))
    counted, hits = (count[:-1].cumsum() for count in counts)
    return counted, hits


def _envelope(precision: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(precision[::-1])[::-1]


def _area(recall: np.ndarray, envelope: np.ndarray) -> float:
    return (np.diff(recall, prepend=0) * envelope).sum()
