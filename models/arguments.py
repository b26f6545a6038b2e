"""Arguments that the scripts share, and what is made of them."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from data.config import CLASS_NAMES, NETWORKS
from models.detector import PRECISIONS, Detector, InputSize, Thresholds
from models.onnx_network import is_onnx
from utils.cli import UsageError, number
from utils.cli import parser_of as parser_of

#: Loaded where ``--trained_model`` is not given.
DEFAULT_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "mobilenet0.25_2cls6anchors.pth"


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """``--trained_model``, ``--network`` and where and how to run it."""
    group = add_weights_arguments(parser, "checkpoint, or .onnx file to be run in onnxruntime on the CPU")
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes the fastest there is"
    )
    group.add_argument("--cpu", action="store_true", help="same as --device cpu")
    group.add_argument(
        "--precision", choices=list(PRECISIONS), default="fp32", help="arithmetic of the network"
    )
    group.add_argument(
        "--compile", action="store_true", help="torch.compile; pays off for many images of one size"
    )


def add_weights_arguments(parser: argparse.ArgumentParser, what: str) -> argparse._ArgumentGroup:
    """``--trained_model``, which is ``what``, and ``--network``."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "-m",
        "--trained_model",
        metavar="FILE",
        help=f"{what} (default: weights/{DEFAULT_WEIGHTS.name})",
    )
    group.add_argument(
        "--network",
        choices=list(NETWORKS),
        help="check that the file holds this network (default: take what it holds)",
    )
    return group


def add_detection_arguments(parser: argparse.ArgumentParser) -> None:
    """What becomes a detection; the defaults are those of `Thresholds`."""
    group, default = parser.add_argument_group("detection"), Thresholds()
    group.add_argument(
        "--confidence_threshold",
        type=number(float, 0, 1),
        default=default.score,
        metavar="S",
        help="keep scores above this",
    )
    group.add_argument(
        "--top_k",
        type=number(int, 1),
        default=default.top_k,
        metavar="N",
        help="candidates a class before NMS",
    )
    group.add_argument(
        "--nms_threshold",
        type=number(float, 0, 1),
        default=default.nms_iou,
        metavar="IOU",
        help="NMS drops overlaps above this",
    )
    group.add_argument(
        "--keep_top_k",
        type=number(int, 1),
        default=default.keep_top_k,
        metavar="N",
        help="detections a class after NMS",
    )
    group.add_argument(
        "--classes", nargs="+", choices=list(CLASS_NAMES.values()), help="look for these alone (default: all)"
    )


def pick_device(name: str, cpu: bool = False) -> torch.device:
    """The device of ``--device`` and ``--cpu``.

    Raises:
        UsageError: not a device, or one that this machine or this torch does not have.
    """
    available = ["cpu"]
    if torch.cuda.is_available():
        available += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        available.append("mps")
    if cpu:
        return torch.device("cpu")
    if name == "auto":
        return torch.device("cuda" if len(available) > 1 and "cuda:0" in available else available[-1])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not {name, f"{name}:0"} & set(available):
        raise UsageError(f"--device {name}: there is no such device here; there is: {', '.join(available)}")
    return device


def device_of(args: argparse.Namespace) -> torch.device:
    """`pick_device` of the shared arguments; ``auto`` is the CPU for an ONNX file."""
    on_cpu = args.device == "auto" and is_onnx(args.trained_model or "")
    return pick_device(args.device, args.cpu or on_cpu)


def weights_path(trained_model: str | None) -> Path:
    """The file of ``--trained_model``.

    Raises:
        UsageError: none is given and the default is not there.
    """
    if trained_model is None and not DEFAULT_WEIGHTS.exists():
        raise UsageError(
            f"weights/{DEFAULT_WEIGHTS.name} is not there; give --trained_model FILE. Published "
            f"weights: mobilenet0.25_2cls6anchors_130324_epoch_150.pth in the folder weights of "
            f"github.com/NN-RTK/Pytorch_Retinaface_2cls"
        )
    return Path(trained_model or DEFAULT_WEIGHTS)


def build_detector(args: argparse.Namespace, input_size: InputSize | None = None) -> Detector:
    """The detector that the shared arguments describe.

    Raises:
        UsageError: arguments out of range, no such device, no default weights.
        DataError: a checkpoint that cannot be used.
    """
    thresholds = Thresholds(args.confidence_threshold, args.top_k, args.nms_threshold, args.keep_top_k)
    path = weights_path(args.trained_model)
    return Detector.from_checkpoint(
        path,
        args.network,
        device=device_of(args),
        precision=args.precision,
        thresholds=thresholds,
        classes=args.classes,
        input_size=input_size,
        compile=args.compile,
    )
