"""Contact sheets: what a list holds, and what a step found or changed."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data.annotations import ImageAnnotation, iter_annotations
from data.clean import Finding
from data.config import CLASS_COLOURS, CLASS_NAMES
from utils.cli import DataError, warn
from utils.draw import draw_boxes
from utils.images import read_image, write_image

_GREY = 40
_RED = (60, 60, 255)
_TILES = 36


def list_sheet(
    list_path: str | os.PathLike, images_dir: Path, output: str | os.PathLike, number: int, seed: int
) -> int:
    """Writes a contact sheet of images drawn by chance from a list; returns how many it shows.

    Raises:
        DataError: the list is empty, or none of the drawn images can be read.
    """
    draw = random.Random(seed)
    chosen: list[ImageAnnotation] = []
    for count, annotation in enumerate(iter_annotations(list_path), 1):
        if len(chosen) < number:
            chosen.append(annotation)
        elif (place := draw.randrange(count)) < number:
            chosen[place] = annotation
    if not chosen:
        raise DataError(f"{list_path}: names no image")
    tiles = []
    for annotation in chosen:
        if (image := _read(images_dir / annotation.path)) is not None:
            boxes, colours = _boxes_of(annotation, image.shape[:2])
            tiles.append(tile(image, boxes, [""] * len(boxes), colours))
    _write(output, tiles, images_dir)
    return len(tiles)


def findings_sheet(
    findings: Sequence[Finding], list_path: str | os.PathLike, images_dir: Path, output: str | os.PathLike
) -> None:
    """Writes a contact sheet of some findings of each rule: the box in red, the others in their colours.

    Raises:
        DataError: none of the images can be read.
    """
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    draw = random.Random(0)
    share = _TILES // len(by_rule)
    chosen = [f for of_rule in by_rule.values() for f in draw.sample(of_rule, min(share, len(of_rule)))]
    wanted = {finding.path for finding in chosen}
    annotations = {a.path: a for a in iter_annotations(list_path) if a.path in wanted}
    tiles = []
    for finding in chosen:
        if (image := _read(images_dir / finding.path)) is not None:
            boxes, colours = _boxes_of(annotations[finding.path], image.shape[:2])
            box = _pixels(np.array([finding.box_xywh_norm]), image.shape[:2])
            caption = f"{finding.rule} {CLASS_NAMES[finding.label]}"
            texts = [""] * len(boxes) + [caption]
            tiles.append(tile(image, np.concatenate([boxes, box]), texts, [*colours, _RED], focus=box[0]))
    _write(output, tiles, images_dir)


def _read(path: Path) -> np.ndarray | None:
    try:
        return read_image(path)
    except DataError as error:
        warn(error)
        return None


def _pixels(boxes_xywh_norm: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    height, width = image_size
    corners = np.concatenate([boxes_xywh_norm[:, :2], boxes_xywh_norm[:, :2] + boxes_xywh_norm[:, 2:]], 1)
    return corners * [width, height, width, height]


def _boxes_of(
    annotation: ImageAnnotation, image_size: tuple[int, int]
) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Boxes xyxy in pixels and their colours, persons first, so that faces lie on top."""
    order = np.argsort(-annotation.labels, kind="stable")
    boxes = _pixels(annotation.boxes_xywh_norm[order], image_size)
    return boxes, [CLASS_COLOURS[label] for label in annotation.labels[order].tolist()]


def _write(output: str | os.PathLike, tiles: Sequence[np.ndarray], images_dir: Path) -> None:
    if not tiles:
        raise DataError(f"{images_dir}: none of the images to show can be read")
    write_image(output, contact_sheet(tiles))


def tile(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    focus: np.ndarray | None = None,
    side: int = 240,
) -> np.ndarray:
    """A square image with boxes, for a contact sheet: uint8[side, side, 3], BGR.

    Args:
        image: uint8[height, width, 3], BGR.
        boxes: [N, 4], xyxy in pixels of ``image``.
        texts, colours: caption ("" for none) and BGR colour of each box.
        focus: box in pixels around which to cut, with as much again on each side; None: the whole image.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = 0, 0, width, height
    if focus is not None:
        x1, y1, x2, y2 = focus
        reach = max(x2 - x1, y2 - y1, 32)
        left, top = max(0, int(x1 - reach)), max(0, int(y1 - reach))
        right, bottom = min(width, int(x2 + reach)), min(height, int(y2 + reach))
        if right <= left or bottom <= top:  # a box wholly outside
            left, top, right, bottom = 0, 0, width, height
    cut = image[top:bottom, left:right]
    scale = side / max(cut.shape[:2])
    size = [max(1, round(length * scale)) for length in cut.shape[1::-1]]
    cut = cv2.resize(cut, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    moved = (np.asarray(boxes, np.float64).reshape(-1, 4) - [left, top, left, top]) * scale
    framed = np.full((side, side, 3), _GREY, np.uint8)
    framed[: size[1], : size[0]] = draw_boxes(cut, moved, list(texts), list(colours))
    return framed


def contact_sheet(tiles: Sequence[np.ndarray], columns: int = 6) -> np.ndarray:
    """Tiles of one size in rows, two pixels apart: uint8[height, width, 3]."""
    side, gap = tiles[0].shape[0], 2
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * (side + gap) - gap, columns * (side + gap) - gap, 3), np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (side + gap) * (i // columns), (side + gap) * (i % columns)
        sheet[y : y + side, x : x + side] = tile
    return sheet
