"""Cleaning of annotation lists: boxes cut to the image, degenerate and repeated ones taken out.

Rules, in their order; ``clipped`` and ``face_outside`` boxes stay in the list:

- ``outside``: wholly outside of the image;
- ``clipped``: reached beyond the image and was cut;
- ``degenerate``: width or height at most ``--min_side`` of the image's;
- ``repeated``: overlaps an earlier box of the same class by more than ``--merge_iou``; the first stays;
- ``face_outside``: a face less than half of which lies in any person.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.annotations import (
    ImageAnnotation,
    images_of,
    iter_annotations,
    known_images,
    labelled_classes,
    list_arguments,
    write_list,
)
from data.config import CLASS_LABELS, label_name
from data.lists import write_sheet
from utils.box_utils import areas, intersections, ious, xywh_to_xyxy, xyxy_to_xywh
from utils.cli import OK, option, overlap, print_rows, share, warn
from utils.files import write_text

RULES = ("outside", "clipped", "degenerate", "repeated", "face_outside")

#: Rules whose boxes are not in the cleaned list.
REMOVING = frozenset({"outside", "degenerate", "repeated"})

#: Overlap above which two boxes of a class are one.
MERGE_IOU = 0.9

_ROUNDING = 1e-9  # a box that leaves the image by less is within that of the list's nine decimals
_INSIDE = 0.5  # share of a face that has to lie in a person
_PAIRS_AT_ONCE = 1 << 20  # pairs of boxes whose overlaps are in memory at once
_SHEET_TILES = 36


class Finding(NamedTuple):
    """A box that a rule applies to: image path, line of the image's header, class label, box as it was."""

    path: str
    line: int
    rule: str
    label: int
    box_xywh_norm: list[float]


def clean_arguments(parser: argparse.ArgumentParser) -> None:
    list_arguments(parser)
    output = "list to write; FILE.findings.jsonl and FILE.findings.jpg go beside it"
    group = parser.add_argument_group("boxes")
    option(group, "--min_side", "drop boxes with a side of at most this share of the image's", share, 0.0)
    option(group, "--merge_iou", "merge boxes of a class that overlap by more", overlap, MERGE_IOU)
    group = parser.add_argument_group("output")
    option(group, "--output --out", output, Path, required=True, metavar="FILE")


def clean(args: argparse.Namespace) -> int:
    """Cuts boxes to the image, drops those without area, merges repeated ones within a class and reports
    faces outside of every person. Images named again are joined.

    Example:
      python3 prep_data.py clean datasets/oi/val/wider_val_gt.txt \\
          --output datasets/oi_clean/val/wider_val_gt.txt
    """
    labelled, images_dir = labelled_classes(args.list), known_images(args.list, args.images)
    # Where persons are not labelled, every face would be outside of them.
    judge_faces = len(labelled) == len(CLASS_LABELS)
    counts: Counter[str] = Counter()
    findings: list[Finding] = []

    def cleaned() -> Iterator[ImageAnnotation]:
        for joined in iter_joined(args.list, counts):
            annotation, found = clean_image(joined, args.min_side, args.merge_iou, judge_faces)
            findings.extend(found)
            counts["boxes kept"] += len(annotation)
            yield annotation

    images = write_list(args.output, cleaned(), labelled, images_dir)
    lines = args.output.with_name(f"{args.output.stem}.findings.jsonl")
    write_text(lines, "".join(json.dumps(finding._asdict()) + "\n" for finding in findings))
    by_rule = Counter(finding.rule for finding in findings)
    rows = [("boxes read", counts["boxes kept"] + sum(by_rule[rule] for rule in REMOVING))]
    rows += [(f"  {rule}, {'dropped' if rule in REMOVING else 'kept'}", by_rule[rule]) for rule in RULES]
    rows += [("boxes kept", counts["boxes kept"]), ("images named again, joined", counts["images joined"])]
    print_rows(rows)
    print(f"{args.output}: {images} images; every finding is in {lines}")
    sheet = lines.with_suffix(".jpg")
    if findings and images_dir is None:
        warn(f"{sheet}: not drawn, as {images_of(args.list)} is no folder; give the images with --images")
    elif not findings:
        print("nothing was found, so there is no contact sheet")
    else:
        draw_findings(findings, args.list, images_dir, sheet)
        print(f"{sheet}: what was found, some of each rule")
    return OK


def draw_findings(findings: list[Finding], list_path: Path, images_dir: Path, output: Path) -> None:
    """Writes a contact sheet of some findings of each rule, drawn by chance; errors as `write_sheet`."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    chance, most = random.Random(0), _SHEET_TILES // len(by_rule)
    chosen = [f for of_rule in by_rule.values() for f in chance.sample(of_rule, min(most, len(of_rule)))]
    wanted = {finding.path for finding in chosen}
    annotations = {a.path: a for a in iter_annotations(list_path) if a.path in wanted}
    marked = [(f.path, (f"{f.rule} {label_name(f.label)}", f.box_xywh_norm)) for f in chosen]
    write_sheet(output, images_dir, [(annotations[path], mark) for path, mark in marked])


def clean_image(
    annotation: ImageAnnotation, min_side: float = 0.0, merge_iou: float = MERGE_IOU, judge_faces: bool = True
) -> tuple[ImageAnnotation, list[Finding]]:
    """An image cleaned, and what was found in it; boxes within the image keep their exact values."""
    given, labels = annotation.boxes_xywh_norm, annotation.labels
    corners = xywh_to_xyxy(given)
    cut = corners.clip(0, 1)
    beyond = (np.abs(cut - corners) > _ROUNDING).any(1)
    boxes = np.where(beyond[:, None], xyxy_to_xywh(cut), given)
    outside = beyond & ((corners[:, :2] >= 1) | (corners[:, 2:] <= 0)).any(1)
    degenerate = ~outside & (boxes[:, 2:] <= min_side).any(1)
    whole = ~outside & ~degenerate
    kept = np.flatnonzero(whole)
    kept = kept[_firsts(cut[kept], labels[kept], merge_iou)]
    repeated, face_outside = whole.copy(), np.zeros_like(whole)
    repeated[kept] = False
    if judge_faces:
        face_outside[kept] = _faces_outside(cut[kept], labels[kept])
    clipped = beyond & whole & ~repeated
    findings = [
        Finding(annotation.path, annotation.line, RULES[rule], int(labels[i]), given[i].tolist())
        for i, rule in np.argwhere(np.stack([outside, clipped, degenerate, repeated, face_outside], 1))
    ]
    return ImageAnnotation(annotation.path, labels[kept], boxes[kept], annotation.line), findings


def _firsts(boxes: np.ndarray, labels: np.ndarray, iou: float) -> np.ndarray:
    """bool[N]: boxes that no earlier kept one of their label overlaps by more than ``iou``."""
    kept = np.ones(len(boxes), bool)
    for rows in _blocks(len(boxes), len(boxes)):
        start = rows.start
        alike = ious(boxes[rows], boxes[start:]) > iou
        alike = np.triu(alike & (labels[rows, None] == labels[start:]), 1)
        for row in np.flatnonzero(alike.any(1)):
            if kept[start + row]:
                kept[start:][alike[row]] = False
    return kept


def _faces_outside(boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool[N]: faces that have less than `_INSIDE` of their area in every person."""
    outside = labels == CLASS_LABELS["face"]
    faces, persons = boxes[outside], boxes[labels == CLASS_LABELS["person"]]
    shared = np.zeros(len(faces))
    for rows in _blocks(len(faces), len(persons)):
        shared[rows] = intersections(faces[rows], persons).max(1, initial=0)
    outside[outside] = shared / areas(faces) < _INSIDE
    return outside


def _blocks(count: int, others: int) -> Iterator[slice]:
    """Slices of ``count`` boxes that make few enough pairs with the others to be in memory at once."""
    step = max(1, _PAIRS_AT_ONCE // max(1, others))
    return (slice(start, start + step) for start in range(0, count, step))


def iter_joined(path: str | os.PathLike, counts: Counter[str]) -> Iterator[ImageAnnotation]:
    """Images of a list, each once, at its first place, with the boxes of all its places."""
    parts: dict[str, list[ImageAnnotation]] = {}
    for annotation in iter_annotations(path):
        parts.setdefault(annotation.path, []).append(annotation)
    for name, same in parts.items():
        counts["images joined"] += len(same) - 1
        labels = np.concatenate([part.labels for part in same])
        boxes = np.concatenate([part.boxes_xywh_norm for part in same])
        yield ImageAnnotation(name, labels, boxes, same[0].line)
