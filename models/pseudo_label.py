"""Boxes of a class from another model, added where the list has none; a side file tells them apart.

Every added box has a line in ``<list>.pseudo.jsonl``, with its source and score.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou, nms
from tqdm import tqdm

from data.annotations import (
    ImageAnnotation,
    check_labelled_classes,
    image_folder,
    iter_annotations,
    labelled_classes,
    list_arguments,
    write_list,
)
from data.config import CLASS_LABELS
from data.foreign import parse_categories
from data.predictions import Detections
from models.arguments import pick_device
from models.detector import Detector, InputSize, Thresholds, detect_images
from models.onnx_network import is_onnx
from models.teachers import TORCHVISION, TorchvisionPersons
from utils.box_utils import xywh_to_xyxy, xyxy_to_xywh
from utils.cli import (
    OK,
    DataError,
    UsageError,
    at_least_zero,
    count,
    option,
    pixels,
    print_rows,
    report,
    score,
    warn,
)
from utils.files import read_json, write_text
from utils.images import read_image, read_size
from utils.processes import gather_from_processes, keep_freed_memory, processes, rank, world_size

#: A box is added that overlaps a truth, or a better box, of its class by at most this.
MOST_IOU = 0.3


def pseudo_label_arguments(parser: argparse.ArgumentParser) -> None:
    list_arguments(parser)
    group = parser.add_argument_group("where the boxes come from")
    weights = "checkpoint of one or two classes, ONNX file, or torchvision:NAME, a detector trained on COCO"
    option(group, "--trained_model -m --weights", weights, Path, metavar="FILE")
    detections = "detections in COCO's result format, or a COCO file with scores"
    option(group, "--detections", detections, Path, metavar="JSON")
    categories = "COCO category ids, e.g. 0=person"
    option(group, "--category", categories, default=[], nargs="+", metavar="ID=CLASS")
    group, default = parser.add_argument_group("which are added"), LabelRule()
    classes = {"nargs": "+", "choices": list(CLASS_LABELS)}
    option(group, "--classes", "classes to add (default: face; of torchvision: person)", **classes)
    option(group, "--confidence_threshold --conf", "least score of a box", score, default.score)
    unsure = "add what scores less than that, but at least this, as ignore regions (default: leave it out)"
    option(group, "--ignore_from", unsure, score)
    option(group, "--min_size", "least width and height in pixels", at_least_zero, default.min_size)
    group = parser.add_argument_group("how")
    option(group, "--device", "cpu, cuda, cuda:1, mps; auto takes the fastest there is", str, "auto")
    option(group, "--long_side --imgsz", "resize to this longer side (default: keep)", pixels)
    option(group, "--batch_size --batch", "images that go through the network together", count, 1)
    group = parser.add_argument_group("output")
    output = "list to write; FILE.pseudo.jsonl beside it says where each added box comes from"
    option(group, "--output --out", output, Path, required=True, metavar="FILE")


def pseudo_label(args: argparse.Namespace) -> int:
    """Adds boxes of a class from another model where the list has none. The model is a checkpoint of this
    project, a one-class RetinaFace, an ONNX file, a detector of torchvision, whose weights torchvision
    fetches, or any other by its detections as COCO JSON.

    Example:
      python3 prep_data.py pseudo_label oi/val/gt.txt --classes face \\
          --trained_model mobilenet0.25_Final.pth --output oi_faces/val/gt.txt
      python3 prep_data.py pseudo_label wf/val/gt.txt --output wf_persons/val/gt.txt \\
          --trained_model torchvision:fasterrcnn_resnet50_fpn_v2
      python3 prep_data.py pseudo_label wf/val/gt.txt --classes person --detections yolo.json \\
          --category 0=person --output wf_persons/val/gt.txt
      torchrun --nproc_per_node 4 prep_data.py pseudo_label ...    # the images shared out
    """
    check_options(args)
    model = str(args.trained_model or "")
    torchvision = model.removeprefix(TORCHVISION) if model.startswith(TORCHVISION) else None
    args.classes = args.classes or ["person" if torchvision else "face"]
    if torchvision and (args.classes != ["person"] or args.long_side):
        raise UsageError(f"{model}: finds persons, at its own size; leave out --classes and --long_side")
    rule = LabelRule(args.confidence_threshold, args.min_size, args.ignore_from)
    images_dir = image_folder(args.list, args.images)
    labelled = {*labelled_classes(args.list), *args.classes}
    check_labelled_classes(args.output, labelled, images_dir)
    source = (args.detections or args.trained_model).name
    on_cpu = args.device == "auto" and is_onnx(model)
    with processes(pick_device(args.device, on_cpu)) as device:
        first = rank() == 0
        own = islice(iter_annotations(args.list), rank(), None, world_size())
        if args.detections:
            categories = parse_categories(args.category, args.classes)
            coco = read_coco_detections(args.detections, categories)
            found = detections_of(coco, own, images_dir)
        else:
            keep_freed_memory()
            if torchvision:
                detector = TorchvisionPersons(torchvision, device)
            else:
                thresholds, size = Thresholds(max(0.0, rule.least - 1e-6)), InputSize(args.long_side)
                options = {"thresholds": thresholds, "classes": args.classes, "input_size": size}
                detector = Detector.from_checkpoint(model, device=device, **options)
            looked = detect_images(
                detector, own, lambda one: read_image(images_dir / one.path), args.batch_size, report
            )
            found = ((annotation, image.shape[:2], boxes) for annotation, image, boxes in looked)
        total = sum(1 for _ in iter_annotations(args.list)) if first else None
        added: dict[str, list[AddedBox]] = {}
        for annotation, size, detections in tqdm(found, "images", total, disable=not first or None):
            if boxes := boxes_to_add(annotation, detections, size, rule, source):
                added[annotation.path] = boxes
        added = gather_from_processes(added)
    if not first:
        return OK
    images = write_with_boxes(args.list, args.output, added, labelled, images_dir)
    labels = Counter(box.label for boxes in added.values() for box in boxes)
    rows = [(f"boxes of {name} added", labels[CLASS_LABELS[name]]) for name in args.classes]
    if args.ignore_from is not None:
        rows += [(f"ignore regions of {name} added", labels[-CLASS_LABELS[name]]) for name in args.classes]
    print_rows([*rows, ("in images", len(added))])
    if args.detections:
        listed = {key for annotation in iter_annotations(args.list) for key in _keys(annotation)}
        if unused := [key for key in coco if key not in listed]:
            warn(f"{args.detections}: {len(unused)} of its images are not in the list, e.g. {unused[0]}")
    print(f"{args.output}: {images} images, labelled for {' and '.join(labelled_classes(args.output))}")
    return OK


def check_options(args: argparse.Namespace) -> None:
    """Raises UsageError for options that do not go together."""
    if (args.trained_model is None) == (args.detections is None):
        raise UsageError("expected one of --trained_model and --detections")
    if args.detections and not args.category:
        raise UsageError("give the detections' category ids, e.g. --category 0=person")
    if args.ignore_from is not None and args.ignore_from >= args.confidence_threshold:
        raise UsageError(
            f"--ignore_from {args.ignore_from}: expected less than --confidence_threshold, "
            f"which is {args.confidence_threshold}"
        )


@dataclass(frozen=True)
class LabelRule:
    """Which detections are added.

    Attributes:
        score: least score.
        min_size: least width and height in pixels of the image.
        ignore_from: least score of what becomes an ignore region, being below ``score``; None: nothing does.
    """

    score: float = 0.7
    min_size: float = 8.0
    ignore_from: float | None = None

    @property
    def least(self) -> float:
        """Least score of a detection that matters."""
        return self.score if self.ignore_from is None else self.ignore_from


@dataclass(frozen=True)
class AddedBox:
    """A line of the side file: image path, label (negative: ignored), box as in the list, score, model."""

    image: str
    label: int
    box_xywh_norm: tuple[float, float, float, float]
    score: float
    source: str


def boxes_to_add(
    annotation: ImageAnnotation,
    found: Detections,
    image_size: tuple[int, int],
    rule: LabelRule,
    source: str,
) -> list[AddedBox]:
    """The detections that pass ``rule``, cut to the image, best first within a class.

    Those of ``found`` are in pixels of the image, whose size is (height, width); ``source`` names the model.
    """
    height, width = image_size
    scale = np.array([width, height, width, height], np.float64)
    boxes = found.boxes.astype(np.float64).clip(0, scale)
    fits = ((boxes[:, 2:] - boxes[:, :2]) >= max(rule.min_size, 1e-3)).all(1)
    fits &= found.scores >= rule.least
    boxes, scores, labels = boxes[fits], found.scores[fits], found.labels[fits]
    truths = annotation.boxes(image_size)
    added = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        own = torch.from_numpy(boxes[of_class])
        others = torch.from_numpy(truths[np.abs(annotation.labels) == label])
        free = (box_iou(own, others) <= MOST_IOU).all(1)
        own, of_class = own[free], of_class[free.numpy()]
        best_first = nms(own, torch.from_numpy(scores[of_class]).double(), MOST_IOU).numpy()
        for i in of_class[best_first]:
            box = tuple(xyxy_to_xywh((boxes[i] / scale).round(9)).round(9).tolist())
            given = int(label) if scores[i] >= rule.score else -int(label)
            added.append(AddedBox(annotation.path, given, box, round(float(scores[i]), 6), source))
    return added


def read_coco_detections(path: Path, categories: dict[str, str]) -> dict[str, Detections]:
    """Detections of a COCO result file, by image key (see `_key`), each image's by descending score.

    It is a list of ``{"image_id", "category_id", "bbox", "score"}``, bbox x y w h in pixels, an image id the
    image's path in the list, or that without folders and ending; or a COCO file with such annotations, whose
    own ``images`` name the files. ``categories`` are class names by category id; others are passed over.

    Raises:
        DataError: not such a file; with the entry.
    """
    rows: dict[str, list[list[float]]] = {}
    entries, names = read_json(path, "detections in COCO's result format"), None
    if isinstance(entries, dict) and "annotations" in entries:
        try:
            names = {image["id"]: image["file_name"] for image in entries["images"]}
        except (KeyError, TypeError):
            raise DataError(f"{path}: expected a COCO file with images, each with id and file_name") from None
        entries = entries["annotations"]
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of detections, found a {type(entries).__name__}")
    for index, entry in enumerate(entries):
        try:
            label = CLASS_LABELS.get(categories.get(str(entry["category_id"])), 0)
            image = entry["image_id"] if names is None else names[entry["image_id"]]
            width, height = entry["bbox"][2:]
            row = [*map(float, entry["bbox"]), float(entry["score"]), label]
            if not np.isfinite(row).all() or min(width, height) < 0 or not 0 <= row[4] <= 1:
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError(
                f"{path}: detection {index}: found {entry!r:.120}; expected image_id"
                f"{' of its images' if names else ''}, category_id, bbox x y w h, score from 0 to 1"
            ) from None
        if label:
            rows.setdefault(_key(image), []).append(row)
    found = {}
    for key, of_image in rows.items():
        table = np.array(of_image)
        table = table[table[:, 4].argsort(kind="stable")[::-1]]
        boxes, scores = xywh_to_xyxy(table[:, :4]).astype(np.float32), table[:, 4].astype(np.float32)
        found[key] = Detections(boxes, scores, table[:, 5].astype(np.int64))
    return found


def _key(image: object) -> str:
    """An image id or name as text; a number without the zeros in front."""
    text = str(image)
    return text.lstrip("0") if text.isdecimal() else text


def _keys(annotation: ImageAnnotation) -> tuple[str, str]:
    """What may stand for an image of the list."""
    return _key(annotation.path), _key(Path(annotation.path).stem)


def detections_of(
    coco: dict[str, Detections], annotations: Iterable[ImageAnnotation], images_dir: Path
) -> Iterator[tuple[ImageAnnotation, tuple[int, int], Detections]]:
    """The images that have detections, with their (height, width); unreadable ones are reported."""
    for annotation in annotations:
        if key := next((key for key in _keys(annotation) if key in coco), None):
            try:
                yield annotation, read_size(images_dir / annotation.path), coco[key]
            except DataError as error:
                report(error)


def write_with_boxes(
    source: Path, output: Path, added: dict[str, list[AddedBox]], labelled: Iterable[str], images_dir: Path
) -> int:
    """Writes the list ``source`` with the boxes added, by image, and the side file; returns the image count.

    What an earlier run added to ``source`` is in the side file of ``source`` alone.
    """
    noted: list[AddedBox] = []

    def annotations() -> Iterator[ImageAnnotation]:
        for annotation in iter_annotations(source):
            boxes = added.get(annotation.path, [])
            noted.extend(boxes)
            labels = np.concatenate([annotation.labels, [box.label for box in boxes]])
            more = np.reshape([box.box_xywh_norm for box in boxes], (-1, 4))
            yield ImageAnnotation(annotation.path, labels, np.vstack([annotation.boxes_xywh_norm, more]))

    images = write_list(output, annotations(), labelled, images_dir)
    side_file = output.with_name(f"{output.stem}.pseudo.jsonl")
    write_text(side_file, "".join(json.dumps(asdict(box)) + "\n" for box in noted))
    return images
