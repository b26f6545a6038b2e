"""The evaluators written plainly, one detection and one threshold at a time: tests and benchmarks compare.

    python3 tests/plain/evaluation.py widerface PREDICTIONS GROUND_TRUTH_FOLDER
    python3 tests/plain/evaluation.py openimages PREDICTIONS ANNOTATION_LIST

Run so, it prints what the original prints (the legacy protocol for Open Images) and does the same work: every
file is read for itself, every subset or class matches anew, and each image goes through 1,000 thresholds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.io import loadmat


def read_prediction(path: Path) -> np.ndarray:
    """float64[N, 6]: x y w h score class of a prediction file."""
    rows = []
    with path.open() as file:
        for number, line in enumerate(file):
            fields = line.split()
            if number >= 2 and fields:
                rows.append([float(field) for field in fields])
    return np.array(rows).reshape(-1, 6)


def overlap_table(boxes: np.ndarray, truths: np.ndarray, plus: float) -> np.ndarray:
    """IoU of x1 y1 x2 y2 boxes [n, 4] with [g, 4]; the one step without a loop, as in the original."""
    left_top = np.maximum(boxes[:, None, :2], truths[None, :, :2])
    right_bottom = np.minimum(boxes[:, None, 2:], truths[None, :, 2:])
    sides = np.maximum(right_bottom - left_top + plus, 0)
    shared = sides[..., 0] * sides[..., 1]
    areas = (boxes[:, 2] - boxes[:, 0] + plus) * (boxes[:, 3] - boxes[:, 1] + plus)
    truth_areas = (truths[:, 2] - truths[:, 0] + plus) * (truths[:, 3] - truths[:, 1] + plus)
    return shared / np.maximum(areas[:, None] + truth_areas - shared, 1e-300)


def to_corners(boxes_xywh: np.ndarray) -> np.ndarray:
    """x1 y1 x2 y2 of x y w h."""
    boxes = np.array(boxes_xywh, np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def match_image(boxes_xywh, truths_xywh, counted, iou_threshold):
    """WIDER FACE's rule: hits so far after each detection, and whether each is a proposal (1) or not (-1)."""
    table = overlap_table(to_corners(boxes_xywh), to_corners(truths_xywh), 1)
    state = np.zeros(len(truths_xywh))
    proposals = np.ones(len(boxes_xywh))
    hits = np.zeros(len(boxes_xywh))
    for row in range(len(boxes_xywh)):
        best = table[row].argmax()
        if table[row, best] >= iou_threshold:
            if not counted[best]:
                state[best] = -1
                proposals[row] = -1
            elif state[best] == 0:
                state[best] = 1
        hits[row] = (state == 1).sum()
    return hits, proposals


def image_curve(scores, proposals, hits):
    """Proposals and hits of an image at each of 1,000 thresholds."""
    curve = np.zeros((1000, 2))
    for t in range(1000):
        reached = np.where(scores >= 1 - (t + 1) / 1000)[0]
        if len(reached):
            last = reached[-1]
            curve[t] = (proposals[: last + 1] == 1).sum(), hits[last]
    return curve


def area_under(recall, precision):
    """All-point area under the monotone envelope."""
    recall = [0.0, *recall, 1.0]
    precision = [0.0, *precision, 0.0]
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    return sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in range(len(recall) - 1))


def curve_area(curve, count):
    """Area under summed `image_curve` counts with ``count`` boxes to be found."""
    recall = [hits / count for _, hits in curve]
    precision = [hits / proposals if proposals else 0.0 for proposals, hits in curve]
    return area_under(recall, precision)


def widerface(predictions: Path, truths: Path, iou_threshold: float = 0.5) -> dict[str, float]:
    """Average precision of faces in the three subsets."""
    found = {}
    for event in sorted(predictions.iterdir()):
        found[event.name] = {path.stem: read_prediction(path) for path in sorted(event.iterdir())}
        found[event.name] = {name: rows[rows[:, 5] == 1] for name, rows in found[event.name].items()}
    least, greatest = 1.0, 0.0
    for images in found.values():
        for rows in images.values():
            if len(rows):
                least, greatest = min(least, rows[:, 4].min()), max(greatest, rows[:, 4].max())
    for images in found.values():
        for rows in images.values():
            rows[:, 4] = (rows[:, 4] - least) / (greatest - least)
    faces = loadmat(truths / "wider_face_val.mat")
    result = {}
    for subset in ("easy", "medium", "hard"):
        counts = loadmat(truths / f"wider_{subset}_val.mat")["gt_list"]
        curve, total = np.zeros((1000, 2)), 0
        for e, (event,) in enumerate(faces["event_list"]):
            for i, (name,) in enumerate(faces["file_list"][e][0]):
                rows = found[str(event[0])][str(name[0])]
                boxes = faces["face_bbx_list"][e][0][i][0].astype(float)
                keep = counts[e][0][i][0]
                total += len(keep)
                if not len(rows) or not len(boxes):
                    continue
                counted = np.zeros(len(boxes))
                if len(keep):
                    counted[keep - 1] = 1
                hits, proposals = match_image(rows[:, :4], boxes, counted, iou_threshold)
                curve += image_curve(rows[:, 4], proposals, hits)
        result[subset] = curve_area(curve, total)
    return result


def openimages(predictions: Path, truths: Path, iou_threshold: float = 0.5) -> dict[str, float]:
    """Average precision of faces and persons with the faults of the original."""
    images, boxes = [], {}
    with truths.open() as file:
        for line in file:
            if line.startswith("#"):
                images.append(line[2:].strip().rsplit(".", 1)[0])
                rows = []
            else:
                rows.append([float(field) for field in line.split()])
                boxes[images[-1]] = rows
    found = {path.stem: read_prediction(path) for path in sorted(predictions.iterdir())}
    result = {}
    for label, name in ((1, "face"), (2, "person")):
        curve, total = np.zeros((1000, 2)), 0
        for image in images:
            rows = found[image][found[image][:, 5] == label]
            own = np.array(boxes.get(image, [])).reshape(-1, 5)
            total += (own[:, 0] == label).sum()
            if len(rows) and len(own):
                hits, proposals = match_image(rows[:, :4], own[:, 1:], own[:, 0] == label, iou_threshold)
                curve += image_curve(rows[:, 4], proposals, hits)
        result[name] = curve_area(curve, total)
    return result


def class_average_precision(images, iou_threshold: float = 0.5) -> float:
    """Standard protocol, one class.

    Args:
        images: (boxes_xywh, scores, truths_xywh, group_of) of each image.
    """
    results, total = [], 0
    for boxes, scores, truths, group_of in images:
        total += len(truths)
        single, group = to_corners(truths[~group_of]), to_corners(truths[group_of])
        boxes = to_corners(boxes)
        taken, taken_groups = set(), set()
        for row in sorted(range(len(boxes)), key=lambda row: -scores[row]):
            overlaps = overlap_table(boxes[row : row + 1], single, 0)[0]
            best = overlaps.argmax() if len(single) else -1
            if len(single) and overlaps[best] > iou_threshold and best not in taken:
                taken.add(best)
                results.append((scores[row], 1))
                continue
            x1, y1, x2, y2 = boxes[row]
            area = (x2 - x1) * (y2 - y1)
            inside = [
                max(min(x2, g[2]) - max(x1, g[0]), 0) * max(min(y2, g[3]) - max(y1, g[1]), 0) / area
                if area
                else 0
                for g in group
            ]
            best = int(np.argmax(inside)) if inside else -1
            if inside and inside[best] > iou_threshold:
                if best not in taken_groups:
                    results.append((scores[row], 1))
                taken_groups.add(best)
            else:
                results.append((scores[row], 0))
    results.sort(key=lambda result: -result[0])
    recall, precision, hits = [], [], 0
    for rank, (_, hit) in enumerate(results, 1):
        hits += hit
        recall.append(hits / total)
        precision.append(hits / rank)
    return area_under(recall, precision)


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    for key, value in {"widerface": widerface, "openimages": openimages}[kind](*map(Path, paths)).items():
        print(key, float(value))
