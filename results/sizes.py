"""Average precision over the size of photos, one look and ``auto``: the tables of "Photos of any size".

Photos are resized to every longer side, enlarged ones by cubic interpolation. Persons: AP of all points at
IoU 0.5 (precision at score 0.5); faces of WIDER FACE: easy / medium / hard.

Examples:
  python3 results/sizes.py --persons scenes/val/wider_val_gt.txt --every 3 -m FILE published.pth
  python3 results/sizes.py --faces faces/val/wider_val_gt.txt --gt eval_tools/ground_truth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import wider_openimagespersonface_evaluate.evaluation
import widerface_evaluate.evaluation
from data.annotations import ImageAnnotation, image_folder, read_annotations
from data.predictions import BoxTable
from models.arguments import DEFAULT_WEIGHTS
from models.detector import Detector
from utils.cli import Number, count, option, parser_of, run
from utils.image_names import image_key
from utils.images import read_image
from utils.processes import keep_freed_memory
from widerface_evaluate.evaluation import read_ground_truth


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    option(parser, "--trained_model -m", "networks", default=[DEFAULT_WEIGHTS], nargs="+", metavar="FILE")
    option(parser, "--persons", "annotation list with persons", Path, metavar="LIST")
    option(parser, "--faces", "annotation list of photos of WIDER FACE", Path, metavar="LIST")
    option(parser, "--gt", "ground truth of WIDER FACE, for --faces", Path, metavar="FOLDER")
    option(parser, "--every", "take every nth photo", count, 1)
    sides = "longer sides; 0: as it is"
    option(
        parser,
        "--long_side",
        sides,
        Number(int, 0, 16384),
        [320, 0, 1024, 1600, 2400],
        nargs="+",
        metavar="PIXELS",
    )
    args = parser.parse_args(argv)
    if (args.persons is None) == (args.faces is None) or (args.faces is None) != (args.gt is None):
        parser.error("expected --persons LIST, or --faces LIST and --gt FOLDER")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    path = args.persons or args.faces
    annotations, folder = read_annotations(path)[:: args.every], image_folder(path)
    for long_side in args.long_side:
        cells = []
        for model in args.trained_model:
            for scales in (1, "auto"):
                detector = Detector.from_checkpoint(model, scales=scales)
                found = detect(detector, annotations, folder, long_side, in_pixels=bool(args.faces))
                cells.append(of_faces(found, args.gt) if args.faces else of_persons(found, annotations))
        print(f"| {len(annotations)} | {long_side or 'native'} | {' | '.join(cells)} |", flush=True)
    return 0


def detect(
    detector: Detector,
    annotations: Sequence[ImageAnnotation],
    folder: Path,
    long_side: int,
    in_pixels: bool,
) -> BoxTable:
    """Detections in the resized photos, in pixels of the photos as they are or normalised."""
    boxes, scores, labels = [], [], []
    for annotation in annotations:
        photo = image = read_image(folder / annotation.path)
        scale = long_side / max(photo.shape[:2])
        if scale not in (0, 1):
            how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
            image = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=how)
        found = detector(image)
        unit = np.array(photo.shape[1::-1] if in_pixels else (1, 1))
        boxes.append(found.boxes / np.tile(image.shape[1::-1], 2) * np.tile(unit, 2))
        scores.append(found.scores.astype(np.float64))
        labels.append(found.labels)
    return BoxTable.from_images([image_key(a.path) for a in annotations], boxes, labels, scores)


def of_persons(found: BoxTable, annotations: Sequence[ImageAnnotation]) -> str:
    """A cell: AP of persons and precision at score 0.5."""
    truths = BoxTable.from_annotations(annotations)
    person = wider_openimagespersonface_evaluate.evaluation.evaluate(found, truths)["person"]
    return f"{person['ap']:.3f} ({person['precision_at_half']:.2f})"


def of_faces(found: BoxTable, ground_truth: Path) -> str:
    """A cell: AP of faces on easy, medium and hard."""
    truths = read_ground_truth(ground_truth)
    # Photos of a split have lost the folder of their event.
    index = {key.rsplit("/", 1)[-1]: i for i, key in enumerate(truths.images)}
    truths = truths.take([index[key.rsplit("/", 1)[-1]] for key in found.images])
    numbers = widerface_evaluate.evaluation.evaluate(found, truths)
    return " / ".join(f"{subset['ap']:.3f}" for subset in numbers.values())


if __name__ == "__main__":
    run(main)
