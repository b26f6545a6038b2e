"""Arguments that the scripts share, and the `Detector` that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from data.config import CLASS_NAMES, GREATEST_SCALE, NETWORKS
from models.checkpoint import DEFAULT_WEIGHTS, weights_path
from models.detector import PRECISIONS, Detector, InputSize, Thresholds
from models.onnx_network import RUNTIMES, is_onnx
from utils.cli import Number, UsageError, count, option, overlap, score


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """``--trained_model``, ``--network`` and where and how to run it."""
    group = add_weights_arguments(parser, "checkpoint, or .onnx file to be run on the CPU")
    option(group, "--runtime", "what runs a .onnx file", default=RUNTIMES[0], choices=RUNTIMES)
    option(group, "--device", "cpu, cuda, cuda:1, mps; auto takes the fastest there is", str, "auto")
    option(group, "--cpu", "same as --device cpu")
    option(group, "--precision", "arithmetic of the network", default="fp32", choices=list(PRECISIONS))


def add_weights_arguments(parser: argparse.ArgumentParser, what: str) -> argparse._ArgumentGroup:
    """``--trained_model``, which is ``what``, and ``--network``."""
    group = parser.add_argument_group("network")
    help = f"{what} (default: weights/{DEFAULT_WEIGHTS.name})"
    option(group, "--trained_model -m --weights", help, str, metavar="FILE")
    help = "check that the file holds this network (default: take what it holds)"
    option(group, "--network", help, choices=list(NETWORKS))
    return group


def add_detection_arguments(parser: argparse.ArgumentParser) -> None:
    """What becomes a detection; the defaults are those of `Thresholds`."""
    group, default = parser.add_argument_group("detection"), Thresholds()
    option(group, "--confidence_threshold --conf", "keep scores above this", score, default.score)
    option(group, "--top_k", "most candidates of a class before NMS", count, default.top_k)
    option(group, "--nms_threshold --iou", "NMS drops overlaps above this", overlap, default.nms_iou)
    option(group, "--keep_top_k", "most detections of a class after NMS", count, default.keep_top_k)
    classes = list(CLASS_NAMES.values())
    option(group, "--classes", "classes to look for (default: all)", nargs="+", choices=classes)


def scale(text: str) -> str | float:
    """The type of a value of ``--scales``."""
    return text if text == "auto" else Number(float, 0, GREATEST_SCALE, above=True)(text)


def add_scales_argument(group: argparse._ActionsContainer, default: str) -> None:
    """``--scales``, by default ``auto`` or ``1``."""
    help = """sizes at which an image is looked at, as factors of its own, e.g. 2 1 0.5; auto enlarges small
        images and shrinks large ones; 1 looks once, which is faster and the published protocol"""
    help += f" (default: {default})"
    option(group, "--scales", help, scale, [scale(default)], nargs="+", metavar="SCALE")


def pick_device(name: str, cpu: bool = False) -> torch.device:
    """The device of ``--device`` and ``--cpu``.

    Raises:
        UsageError: not a device, or one that this machine or this torch does not have.
    """
    available = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    available += ["mps"] if torch.backends.mps.is_available() else []
    available += ["cpu"]
    if cpu:
        return torch.device("cpu")
    if name == "auto":
        return torch.device(available[0].removesuffix(":0"))
    if not {name, f"{name}:0"} & set(available):
        raise UsageError(f"--device {name}: there is no such device here; there is: {', '.join(available)}")
    return torch.device(name)


def device_of(args: argparse.Namespace) -> torch.device:
    """`pick_device` of the shared arguments; ``auto`` is the CPU for an ONNX file."""
    on_cpu = args.device == "auto" and is_onnx(args.trained_model or "")
    return pick_device(args.device, args.cpu or on_cpu)


def build_detector(args: argparse.Namespace, input_size: InputSize | None = None) -> Detector:
    """The detector that the shared arguments describe.

    Raises:
        UsageError: arguments out of range, no such device, no default weights.
        DataError: a checkpoint that cannot be used.
    """
    return Detector.from_checkpoint(
        weights_path(args.trained_model),
        args.network,
        args.runtime,
        precision=args.precision,
        device=device_of(args),
        thresholds=Thresholds(args.confidence_threshold, args.top_k, args.nms_threshold, args.keep_top_k),
        classes=args.classes,
        input_size=input_size,
        scales="auto" if args.scales == ["auto"] else args.scales,
    )


def check_settings(now: dict, before: dict, path: Path) -> None:
    """Raises UsageError with every difference between settings and those of the run that ``path`` holds."""
    changed = [
        f"--{key} {now.get(key)} (was {before.get(key)})"
        for key in sorted(now.keys() | before.keys())
        if now.get(key) != before.get(key)
    ]
    if changed:
        raise UsageError(
            f"{path}: a run of other settings: {', '.join(changed)}; give the same or start anew"
        )
