"""Writes a network as an ONNX file, and checks that onnxruntime gives what torch gives.

Examples:
  python3 convert_to_onnx.py --image_size 320 576              # for a camera of 576x320
  python3 convert_to_onnx.py --dynamic --batch dynamic --out detector.onnx
  python3 convert_to_onnx.py --image_size 320 576 --nms        # boxes, scores and labels come out
  python3 convert_to_onnx.py --dynamic --precision int8 --calibrate data/wider_OIpersonface1103/train/images

The input is float32 [N, 3, height, width]: BGR, 0 to 255, less the pixel mean of the metadata. By default
loc and logits come out, which detect.py and the other scripts take as --trained_model; files of --decode
and --nms are for programs without this project (docs/edge.md).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.predictions import Detections
from models.arguments import add_weights_arguments, weights_path
from models.checkpoint import load_network
from models.detector import Detector, InputSize, Thresholds
from models.onnx_export import INPUT, Suppression, export
from models.onnx_network import is_onnx, open_session
from models.retinaface import RetinaFace
from utils.box_utils import decode
from utils.cli import OK, DataError, UsageError, number, parser_of, run
from utils.files import atomic_path
from utils.image_names import images_below
from utils.images import read_image
from utils.inputs import sample_photos

#: Longer side of calibration images where the size of the input is free.
CALIBRATION_SIDE = 640

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
    size.add_argument(
        "--image_size",
        nargs=2,
        type=number(int, 1, 2**14),
        metavar=("H", "W"),
        help="fixed height and width in pixels",
    )
    size.add_argument("--dynamic", action="store_true", help="any height and width")
    group.add_argument("--batch", choices=("1", "dynamic"), default="1", help="images at once")
    group = parser.add_argument_group("output of the file")
    group.add_argument("--softmax", action="store_true", help="scores from 0 to 1 instead of logits")
    group.add_argument(
        "--decode", action="store_true", help="boxes in pixels of the input instead of loc, and scores"
    )
    group.add_argument("--nms", action="store_true", help="detections alone; implies --decode")
    default = Thresholds()
    group.add_argument(
        "--confidence_threshold",
        type=number(float, 0, 1),
        default=default.score,
        metavar="S",
        help="--nms keeps scores above this",
    )
    group.add_argument(
        "--nms_threshold",
        type=number(float, 0, 1),
        default=default.nms_iou,
        metavar="IOU",
        help="--nms drops overlaps above this",
    )
    group.add_argument(
        "--keep_top_k",
        type=number(int, 1),
        default=default.keep_top_k,
        metavar="N",
        help="--nms keeps as many a class",
    )
    group = parser.add_argument_group("arithmetic")
    group.add_argument("--precision", choices=list(LIMITS), default="fp32", help="of the network in the file")
    group.add_argument("--calibrate", metavar="DIR", help="images that int8 takes its ranges from")
    group.add_argument(
        "--calibration_images",
        type=number(int, 1),
        default=96,
        metavar="N",
        help="as many of them, evenly spaced",
    )
    group = parser.add_argument_group("file")
    group.add_argument("--out", metavar="F", help="file (default: the checkpoint's name, size and kind)")
    group.add_argument("--image", metavar="FILE", help="image for the check (default: a sample photo)")
    args = parser.parse_args(argv)
    if (args.precision == "int8") != bool(args.calibrate):
        parser.error("--precision int8 and --calibrate DIR: expected both or neither")
    if args.out and not is_onnx(args.out):
        parser.error(f"--out: expected a name that ends with .onnx, got {args.out}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    thresholds = Thresholds(args.confidence_threshold, 10**9, args.nms_threshold, args.keep_top_k)
    photo = read_image(args.image or sample_photos()[0])
    weights = weights_path(args.trained_model)
    if is_onnx(weights):
        raise UsageError(f"{weights}: an ONNX file already; expected a checkpoint")
    network = load_network(weights, args.network)
    size = InputSize(fixed=tuple(args.image_size) if args.image_size else None)
    outputs = "detections" if args.nms else "boxes" if args.decode else "scores" if args.softmax else "logits"
    model = export(
        network,
        outputs,
        image_size=size.fixed,
        batch_size=None if args.batch == "dynamic" else 1,
        precision=args.precision,
        suppression=Suppression(thresholds.score, thresholds.nms_iou, thresholds.keep_top_k)
        if args.nms
        else None,
        calibration=calibration_inputs(args, network) if args.calibrate else (),
    )
    out = Path(args.out or default_name(args, weights))
    with atomic_path(out) as temporary:
        temporary.write_bytes(model.SerializeToString())
        detector = Detector(network, thresholds=thresholds, input_size=size)
        box_limit, score_limit = LIMITS[args.precision]
        failed = False
        for name, box, score in check(temporary, args, outputs, detector, photo):
            failed |= not (box <= box_limit and score <= score_limit)
            print(f"{name}: onnxruntime and torch differ by at most {box:.2g} px and {score:.2g} in score")
        if failed:
            raise DataError(
                f"{out}: not written, onnxruntime gives something else than torch; expected at most "
                f"{box_limit:g} px and {score_limit:g} in score (another version of onnxruntime may do)"
            )
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {args.precision}, gives {outputs}")
    return OK


def default_name(args: argparse.Namespace, weights: Path) -> str:
    """E.g. ``mobilenet0.25_576x320_int8_nms.onnx``."""
    parts = [weights.stem]
    parts.append("dynamic" if args.dynamic else "{1}x{0}".format(*args.image_size))
    parts += [args.precision] if args.precision != "fp32" else []
    parts += ["nms"] if args.nms else ["decoded"] if args.decode else ["softmax"] if args.softmax else []
    return f"{'_'.join(parts)}.onnx"


def calibration_inputs(args: argparse.Namespace, network: RetinaFace) -> Iterator[np.ndarray]:
    """Network inputs of images below ``--calibrate``.

    Raises:
        DataError: no such folder, no image in it, or one that cannot be read.
    """
    folder = Path(args.calibrate)
    paths = images_below(folder) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder}: no images there; expected a folder of images like those to come")
    size = (
        InputSize(fixed=tuple(args.image_size)) if args.image_size else InputSize(long_side=CALIBRATION_SIDE)
    )
    detector = Detector(network, input_size=size)
    picked = np.linspace(0, len(paths) - 1, min(args.calibration_images, len(paths))).round().astype(int)
    return (detector.preprocess([read_image(folder / paths[i])]).contiguous().numpy() for i in picked)


def check(
    file: Path, args: argparse.Namespace, outputs: str, detector: Detector, photo: np.ndarray
) -> list[tuple[str, float, float]]:
    """Runs the file and torch on noise and on a photo.

    Returns:
        What was run, the largest difference of boxes in pixels, and of scores; infinite if detections lack.
    """
    session = open_session(file, args.out or "the file")
    noise = np.random.default_rng(0).integers(0, 256, (250, 333, 3), np.uint8)
    rows = []
    for name, image in (("noise", noise), ("photo", photo)):
        batch = detector.preprocess([image] * (2 if args.batch == "dynamic" else 1))
        height, width = size = tuple(batch.shape[2:])
        found = [torch.from_numpy(array) for array in session.run(None, {INPUT: batch.contiguous().numpy()})]
        raw = detector.forward(batch)
        if outputs == "detections":
            expected = detector.postprocess(*raw, size, [size] * len(batch))
            differences = compare_detections(found, expected, exact=args.precision == "fp32")
        else:
            pixels = torch.tensor([width, height, width, height])
            priors = detector.priors(size) * pixels

            def boxes_of(loc: Tensor, priors: Tensor = priors) -> Tensor:
                return decode(loc, priors, detector.cfg.variances)

            boxes, scores = boxes_of(raw[0]), raw[1].softmax(-1)
            found_boxes = found[0] if outputs == "boxes" else boxes_of(found[0])
            found_scores = found[1].softmax(-1) if outputs == "logits" else found[1]
            best = scores[..., 1:].amax(-1).flatten().topk(COMPARED).indices
            apart = (
                (found_boxes - boxes).abs().flatten(0, 1)[best],
                (found_scores - scores).abs().flatten(0, 1)[best],
            )
            differences = tuple(values.max().item() for values in apart)
        rows.append((f"{name} {width}x{height}", *differences))
    return rows


def compare_detections(found: list[Tensor], expected: list[Detections], exact: bool) -> tuple[float, float]:
    """Largest differences, of boxes and of scores, between detections and the nearest ones of their class.

    Args:
        found: outputs of a file with NMS.
        expected: detections of torch, an image each.
        exact: whether all shall be found and no other; else those that score `CERTAIN` or above.
    """
    boxes, scores, labels, images = found
    apart = [(0.0, 0.0)]
    for index, wanted in enumerate(expected):
        mine = images == index
        if exact and labels[mine].tolist() != wanted.labels.tolist():
            return math.inf, math.inf
        for box, score, label in zip(wanted.boxes, wanted.scores, wanted.labels.tolist(), strict=True):
            if not exact and score < CERTAIN:
                continue
            near = mine & (labels == label)
            if not near.any():
                return math.inf, math.inf
            distances = (boxes[near] - torch.from_numpy(box)).abs().amax(1)
            nearest = distances.argmin()
            apart.append((distances[nearest].item(), abs(scores[near][nearest].item() - float(score))))
    return tuple(max(column) for column in zip(*apart, strict=True))


if __name__ == "__main__":
    run(main)
