"""Score face detections on WIDER FACE: average precision of the easy, medium and hard subset.

    python3 evaluation.py
    python3 evaluation.py -p ../runs/mine --plot curves.png --worst 20 --images ../WIDER_val/images
    python3 evaluation.py -g wider_face_val_bbx_gt.txt --image_list held_out.txt --output numbers.json

Predictions are the text files of test_widerface_personface.py --dataset widerface; persons in them are left
out. The ground truth is the folder of the benchmark's .mat files, or its text annotation, which has one
subset, "all". The rule is the benchmark's: scores stretched to 0..1 over the set, the pixel convention in
overlaps, faces outside of the subset ignored, 1,000 scores. --protocol matlab gives the numbers of the
benchmark's own tool, which rounds in whole numbers where its Python ports do not. --protocol legacy takes
detections in the order of the file, as the original did; standard sorts them. On sorted files both give the
same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from data.config import CLASS_LABELS
from data.formats import WiderImage, read_wider_text
from data.predictions import BoxTable
from utils.box_utils import xywh_to_xyxy
from utils.cli import DataError, parser_of, run, warn
from utils.evaluation.average_precision import normalised, score_range, wider_bins, wider_curve
from utils.image_names import image_key
from widerface_evaluate import command, matching
from widerface_evaluate.command import Score

HERE = Path(__file__).resolve().parent

#: Where predictions are unless somebody says so.
PREDICTIONS = HERE.parent / "runs/detections/widerface"

PROTOCOLS = command.STANDARD, command.MATLAB, command.LEGACY


def faces_of(predictions: BoxTable, protocol: str = command.STANDARD) -> BoxTable:
    """The faces, in the order in which they are matched."""
    return command.in_order(predictions.of_class(CLASS_LABELS["face"]), protocol)


def score(
    faces: BoxTable, truths: BoxTable, iou: float = 0.5, protocol: str = command.STANDARD
) -> dict[str, Score]:
    """Scores what `faces_of` gives in every subset of ``truths``: the same images, boxes in pixels.

    Curves are at the benchmark's 1,000 scores, on the scale of the detections.
    """
    matlab = protocol == command.MATLAB
    kind = matching.WHOLE if matlab else matching.IOU
    outcomes = matching.match(faces, truths, np.stack(list(truths.counted.values())), iou, kind)
    bins = wider_bins(normalised(faces.scores))
    least, greatest = score_range(faces.scores)
    result = {}
    for (name, counted), outcome in zip(truths.counted.items(), outcomes, strict=True):
        to_find = truths.select(counted)
        curve = wider_curve(bins, outcome, len(to_find))
        curve = replace(curve, scores=least + curve.scores * (greatest - least), one_by_one=matlab)
        result[name] = Score(faces, outcome, to_find, curve, {"faces": len(to_find)})
    return result


def evaluate(
    predictions: BoxTable, truths: BoxTable, iou: float = 0.5, protocol: str = command.STANDARD
) -> dict[str, dict]:
    """Numbers by subset (see `command.Score.numbers`) of detections in memory."""
    found = score(faces_of(predictions, protocol), truths, iou, protocol)
    return {name: subset.numbers() for name, subset in found.items()}


SUBSETS = ("easy", "medium", "hard")


def read_ground_truth(path: Path) -> BoxTable:
    """Reads a folder with the four .mat files, or a ``wider_face_*_bbx_gt.txt``.

    Raises:
        DataError: files are missing or are something else.
    """
    if path.is_dir():
        return _read_mat_files(path)
    if path.is_file():
        return _read_text(path)
    raise DataError(
        f"{path}: no such ground truth; give as -g a folder with wider_face_val.mat and those of easy, "
        f"medium and hard (ground_truth/ of the benchmark's eval_tools.zip), or wider_face_val_bbx_gt.txt"
    )


def _read_mat_files(folder: Path) -> BoxTable:
    images, boxes = _load(folder / "wider_face_val.mat", _images_and_boxes)
    truths = _faces(images, boxes)
    for name in SUBSETS:
        path = folder / f"wider_{name}_val.mat"
        indices = _load(path, _indices)
        if len(indices) != len(boxes):
            raise DataError(
                f"{path}: found {len(indices)} images; expected {len(boxes)} as in wider_face_val.mat"
            )
        truths.counted[name] = np.zeros(len(truths), bool)
        for image, start, index, box in zip(images, truths.offsets[:-1], indices, boxes, strict=True):
            if ((index < 1) | (index > len(box))).any():
                raise DataError(f"{path}: found face {index.max()} of {image}, which has {len(box)}")
            truths.counted[name][start + index - 1] = True
    return truths


def _faces(images: list[str], boxes_xywh: list[np.ndarray]) -> BoxTable:
    labels = [np.full(len(box), CLASS_LABELS["face"]) for box in boxes_xywh]
    return BoxTable.from_images(images, map(xywh_to_xyxy, boxes_xywh), labels)


def _images_and_boxes(content: dict[str, np.ndarray]) -> tuple[list[str], list[np.ndarray]]:
    """``event/name`` and float64[N, 4], x y w h in pixels, of every image."""
    events = [str(event[0][0]) for event in content["event_list"]]
    files = [[str(name[0][0]) for name in names[0]] for names in content["file_list"]]
    images = [f"{event}/{name}" for event, names in zip(events, files, strict=True) for name in names]
    boxes = [box.astype(np.float64) for event in content["face_bbx_list"] for (box,) in event[0]]
    if not images or len(images) != len(boxes):
        raise ValueError(f"{len(images)} names and boxes of {len(boxes)} images")
    for image, box in zip(images, boxes, strict=True):
        if box.shape != (len(box), 4) or not np.isfinite(box).all():
            raise ValueError(f"boxes of {image}")
    return images, boxes


def _indices(content: dict[str, np.ndarray]) -> list[np.ndarray]:
    """int64[N] of every image: its faces that count, from 1."""
    return [index.ravel().astype(np.int64) for event in content["gt_list"] for (index,) in event[0]]


def _load(path: Path, read: Callable[[dict[str, np.ndarray]], Any]) -> Any:
    """What ``read`` makes of a .mat file."""
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(
            f"{path}: no such file; it comes with the benchmark's eval_tools.zip, folder ground_truth"
        )
    try:
        return read(loadmat(path))
    except Exception as error:  # scipy's reader raises whatever it stumbles on
        raise DataError(
            f"{path}: not a WIDER FACE ground truth, or damaged ({' '.join(str(error).split())[:120]}); take "
            f"it from the benchmark's eval_tools.zip"
        ) from None


def _read_text(path: Path) -> BoxTable:
    """One subset, "all": every face but those marked invalid, which are ignored."""
    with path.open("rb") as file:
        if file.read(1) == b"#":
            raise DataError(
                f"{path}: an annotation list, whose boxes are normalised; score it with "
                f"wider_openimagespersonface_evaluate/evaluation.py"
            )
    images: dict[str, WiderImage] = {}
    twice = []
    for image in read_wider_text(path):
        if images.setdefault(image_key(image.path), image) is not image:
            twice.append(image.path)
    if not images:
        raise DataError(
            f"{path}: no image in it; expected lines 'event/name.jpg', a count and one line a face"
        )
    if twice:
        warn(f"{path}: {len(twice)} images come again; the first entry counts: {', '.join(twice)}")
    kept = [(image.boxes_xywh[:, 2:] > 0).all(1) for image in images.values()]
    flat = sum(int((~keep).sum()) for keep in kept)
    if flat:
        warn(f"{path}: {flat} faces without width or height are left out")
    pairs = list(zip(images.values(), kept, strict=True))
    truths = _faces(list(images), [image.boxes_xywh[keep] for image, keep in pairs])
    truths.counted["all"] = np.concatenate([~image.invalid[keep] for image, keep in pairs])
    return truths


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    command.add_arguments(parser, PREDICTIONS, HERE / "ground_truth", PROTOCOLS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    command.check_arguments(args, matching.kernel)
    truths, predictions, missing = command.load(args, read_ground_truth(args.gt), "pixels")
    faces = faces_of(predictions, args.protocol)
    if len(predictions) and not len(faces):
        raise DataError(
            f"{args.pred}: not one face in {len(predictions)} detections (class 1); are these persons only?"
        )
    found = score(faces, truths, args.iou, args.protocol)
    command.report(
        args,
        found,
        {"images": len(truths.images), "detections": len(faces)},
        {"subsets": {name: one.numbers() for name, one in found.items()}, "missing": missing},
        "pixels",
    )
    return 0


if __name__ == "__main__":
    run(main)
