"""Writes a network as an ONNX file, and checks that onnxruntime gives what torch gives.

Examples:
  python3 convert_to_onnx.py --image_size 320 576              # for a camera of 576x320
  python3 convert_to_onnx.py --dynamic --batch_size dynamic --output detector.onnx
  python3 convert_to_onnx.py --image_size 320 576 --outputs detections
  python3 convert_to_onnx.py --dynamic --precision int8 --calibrate datasets/mine/train/images

The input is float32 [N, 3, height, width]: BGR, 0 to 255, less the pixel mean of the metadata. Files of
logits (loc and logits) and scores (loc and scores) are for detect.py and the other scripts; those of boxes
(boxes in pixels of the input, and scores) and detections are for programs without this project
(docs/edge.md).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from data.predictions import Detections
from layers.functions.prior_box import prior_boxes
from models.arguments import add_weights_arguments, weights_path
from models.checkpoint import load_network
from models.detector import Detector, InputSize, Thresholds
from models.onnx_export import INPUT, export
from models.onnx_network import OUTPUTS, is_onnx, open_session
from models.retinaface import RetinaFace
from utils.box_utils import decode
from utils.cli import OK, DataError, Number, UsageError, count, option, overlap, parser_of, run, score
from utils.files import atomic_path
from utils.image_names import images_below, sample_photos
from utils.images import read_image

#: Longer side of calibration images where the size of the input is free.
CALIBRATION_SIDE = 640

#: Most images that int8 takes its ranges from.
CALIBRATION_IMAGES = 96

#: Priors that the check compares, those that score highest.
COMPARED = 100

#: Detections that a file of lower precision must find with NMS, by score.
CERTAIN = 0.5

#: Largest differences that pass, boxes in pixels and scores. Those of fp16 and int8 tell a broken file from a
#: rounded one; what rounding costs in AP is in benchmarks/results/onnx.md.
LIMITS: dict[str, tuple[float, float]] = {"fp32": (1e-2, 1e-4), "fp16": (2.0, 0.02), "int8": (100.0, 0.4)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    add_weights_arguments(parser, "checkpoint")
    group = parser.add_argument_group("input of the file")
    size = group.add_mutually_exclusive_group(required=True)
    sides = {"nargs": 2, "metavar": ("H", "W")}
    option(size, "--image_size --imgsz", "fixed height and width in pixels", Number(int, 1, 2**14), **sides)
    option(size, "--dynamic", "any height and width")
    batch_sizes = {"choices": ("1", "dynamic")}
    option(group, "--batch_size --batch", "images that go in together", default="1", **batch_sizes)
    group = parser.add_argument_group("output of the file")
    option(group, "--outputs", "what comes out, see above", default="logits", choices=list(OUTPUTS))
    default = Thresholds()
    option(group, "--confidence_threshold --conf", "detections: keep scores above this", score, default.score)
    nms = "detections: NMS drops overlaps above this"
    option(group, "--nms_threshold --iou", nms, overlap, default.nms_iou)
    option(group, "--keep_top_k", "detections: most of a class after NMS", count, default.keep_top_k)
    group = parser.add_argument_group("arithmetic")
    option(group, "--precision", "precision of the network in the file", default="fp32", choices=list(LIMITS))
    option(group, "--calibrate", "folder of images that int8 takes its ranges from", Path, metavar="FOLDER")
    group = parser.add_argument_group("file")
    output = "file to write (default: the checkpoint's name, size and kind)"
    option(group, "--output --out", output, Path, metavar="FILE")
    args = parser.parse_args(argv)
    if (args.precision == "int8") != bool(args.calibrate):
        parser.error("--precision int8 and --calibrate FOLDER: expected both or neither")
    if args.output and not is_onnx(args.output):
        parser.error(f"--output: expected a name that ends with .onnx, got {args.output}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    thresholds = Thresholds(args.confidence_threshold, 10**9, args.nms_threshold, args.keep_top_k)
    weights = weights_path(args.trained_model)
    if is_onnx(weights):
        raise UsageError(f"{weights}: an ONNX file already; expected a checkpoint")
    network = load_network(weights, args.network)
    size = InputSize(fixed=tuple(args.image_size) if args.image_size else None)
    one_image = args.batch_size == "1"
    model = export(
        network,
        args.outputs,
        image_size=size.fixed,
        batch_size=1 if one_image else None,
        precision=args.precision,
        thresholds=thresholds,
        calibration=calibration_inputs(network, args.calibrate, size.fixed) if args.calibrate else (),
    ).SerializeToString()
    output = args.output or Path(default_name(weights.stem, args))
    box_limit, score_limit = LIMITS[args.precision]
    detector = Detector(network, thresholds=thresholds, input_size=size, scales=1)
    noise = np.random.default_rng(0).integers(0, 256, (250, 333, 3), np.uint8)
    failed = False
    for name, image in (("noise", noise), ("photo", read_image(sample_photos()[0]))):
        images = [image] if one_image else [image] * 2
        apart = compare(model, args.outputs, detector, images, exact=args.precision == "fp32")
        print(f"{name}: onnxruntime and torch differ by at most {apart[0]:.2g} px, {apart[1]:.2g} in score")
        failed |= not (apart[0] <= box_limit and apart[1] <= score_limit)
    if failed:
        raise DataError(
            f"{output}: not written, onnxruntime gives something else than torch; expected at most "
            f"{box_limit:g} px and {score_limit:g} in score (another version of onnxruntime may do)"
        )
    with atomic_path(output) as temporary:
        temporary.write_bytes(model)
    print(f"{output}: {len(model) / 1e6:.2f} MB, {args.precision}, gives {args.outputs}")
    return OK


def default_name(stem: str, args: argparse.Namespace) -> str:
    """E.g. ``mobilenet0.25_576x320_int8_detections.onnx``."""
    size = "{1}x{0}".format(*args.image_size) if args.image_size else "dynamic"
    chosen = [value for value in (args.precision, args.outputs) if value not in ("fp32", "logits")]
    return f"{'_'.join([stem, size, *chosen])}.onnx"


def calibration_inputs(
    network: RetinaFace, folder: Path, image_size: tuple[int, int] | None
) -> Iterator[np.ndarray]:
    """Inputs of the network from up to `CALIBRATION_IMAGES` images below ``folder``, evenly spaced.

    Raises:
        DataError: no such folder, no image in it, or one that cannot be read.
    """
    paths = images_below(folder) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder}: no images there; expected a folder of images like those to come")
    size = InputSize(fixed=image_size) if image_size else InputSize(long_side=CALIBRATION_SIDE)
    detector = Detector(network, input_size=size, scales=1)
    picked = np.linspace(0, len(paths) - 1, min(CALIBRATION_IMAGES, len(paths))).round().astype(int)
    return (detector.preprocess([read_image(folder / paths[i])]).contiguous().numpy() for i in picked)


def compare(
    model: bytes, outputs: str, detector: Detector, images: list[np.ndarray], exact: bool
) -> tuple[float, float]:
    """Largest differences between an ONNX file and torch: of boxes in pixels, and of scores.

    The images go through both at once, ``outputs`` is what the file gives, a key of `OUTPUTS`.
    """
    batch = detector.preprocess(images)
    height, width = size = tuple(batch.shape[2:])
    found = open_session(model).run(None, {INPUT: batch.contiguous().numpy()})
    found = [torch.from_numpy(array) for array in found]
    loc, logits = detector.forward(batch)
    if outputs == "detections":
        expected = detector.postprocess(loc, logits, size, [size] * len(batch))
        return compare_detections(found, expected, exact)
    priors = prior_boxes(detector.cfg, size) * torch.tensor([width, height, width, height])
    boxes, scores = decode(loc, priors, detector.cfg.variances), logits.softmax(-1)
    if outputs != "boxes":
        found[0] = decode(found[0], priors, detector.cfg.variances)
    if outputs == "logits":
        found[1] = found[1].softmax(-1)
    best = scores[..., 1:].amax(-1).flatten().topk(COMPARED).indices
    pairs = zip(found, (boxes, scores), strict=True)
    return tuple((one - other).abs().flatten(0, 1)[best].max().item() for one, other in pairs)


def compare_detections(
    found: list[torch.Tensor], expected: list[Detections], exact: bool
) -> tuple[float, float]:
    """Largest differences, of boxes and of scores, between detections of each image and the nearest ones of
    their class in the outputs of a file with NMS.

    If ``exact`` all shall be found and no other; else those that score `CERTAIN` or above.
    """
    boxes, scores, labels, images = found
    apart = [(0.0, 0.0)]
    for index, wanted in enumerate(expected):
        mine = images == index
        if exact and labels[mine].tolist() != wanted.labels.tolist():
            return math.inf, math.inf
        for box, likely, label in zip(wanted.boxes, wanted.scores, wanted.labels.tolist(), strict=True):
            if not exact and likely < CERTAIN:
                continue
            near = mine & (labels == label)
            if not near.any():
                return math.inf, math.inf
            distances = (boxes[near] - torch.from_numpy(box)).abs().amax(1)
            nearest = distances.argmin()
            apart.append((distances[nearest].item(), abs(scores[near][nearest].item() - float(likely))))
    return tuple(max(column) for column in zip(*apart, strict=True))


if __name__ == "__main__":
    run(main)
