"""ONNX files against the network in torch: size, speed by runtime, average precision, int8 by part.

Examples:
  python3 benchmarks/bench_onnx.py                                # size and speed
  python3 benchmarks/bench_onnx.py -m FILE --calibrate train/images \\
      --val faces/val/wider_val_gt.txt persons/val/wider_val_gt.txt   # and average precision
  python3 benchmarks/bench_onnx.py -m FILE --calibrate train/images --val ... --parts   # and int8 by part

Torch is the folded network, channels last. All take turns in one run.
Average precision is that of 576x320 files, images letterboxed, at IoU 0.5, on the lists of --val.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tables import machine, median_times, write_table
from convert_to_onnx import calibration_inputs
from data.config import cfg_mnet
from data.wider_face import WiderFaceDetection
from models import onnx_export
from models.arguments import DEFAULT_WEIGHTS
from models.checkpoint import load_network
from models.detector import Detector, InputSize
from models.engine import validate
from models.onnx_export import export
from models.onnx_network import OnnxNetwork
from models.retinaface import RetinaFace
from utils.cli import parser_of, run
from utils.image_names import sample_photos
from utils.images import read_image
from utils.processes import keep_freed_memory
from wider_openimagespersonface_evaluate.evaluation import evaluate

SIZES = [(576, 320), (640, 640), (1024, 768), (1920, 1080)]
PRECISIONS = ("fp32", "fp16", "int8")

#: Columns of the table of speed: runtime and precision of what it computes, by name.
RUNS = {
    "onnxruntime fp32": ("onnxruntime", "fp32", "fp32"),
    "onnxruntime int8": ("onnxruntime", "int8", "fp32"),
    "OpenVINO fp32": ("openvino", "fp32", "fp32"),
    "OpenVINO bf16": ("openvino", "fp32", "bf16"),
    "OpenVINO int8": ("openvino", "int8", "fp32"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument(
        "-m", "--trained_model", help="checkpoint (default: the shipped one, else random weights)"
    )
    parser.add_argument("--image", default=sample_photos()[0], help="image, fitted into every size")
    parser.add_argument(
        "--calibrate", metavar="DIR", help="images for int8 (default: the one image, for speed alone)"
    )
    parser.add_argument("--val", nargs="+", default=[], metavar="LIST", help="annotation lists to score on")
    parser.add_argument("--parts", action="store_true", help="also score int8 with other parts in float")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=60, help="timed rounds; medians are shown")
    parser.add_argument("--out", default="benchmarks/results/onnx.md", help="tables")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    weights = args.trained_model or (DEFAULT_WEIGHTS if DEFAULT_WEIGHTS.exists() else None)
    network = load_network(weights) if weights else RetinaFace(cfg_mnet).eval()
    photo = read_image(args.image)
    name = Path(weights).name if weights else "at random"
    calibrated = args.calibrate or "the image alone"
    rows, scored = [], []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            files = write_files(args, network, (height, width), Path(folder), photo)
            rows.append(speed(args, network, files, (height, width), photo))
            if not scored:
                scored = [[p, f"{f.stat().st_size / 1e6:.3f}", *precision(args, f)] for p, f in files.items()]
        write_table(
            args.out,
            f"Network alone, milliseconds an image (medians of {args.repeats}); {machine(args.threads)}, "
            f"processor with {', '.join(processor_features())}; "
            f"weights {name}, int8 calibrated on {Path(calibrated).name}",
            ["size", "torch fp32", "torch bf16", *RUNS],
            rows,
        )
        lists = ", ".join("/".join(Path(path).parts[-3:]) for path in args.val)
        head = ["576x320", "MB", *(Path(path).parts[-3] for path in args.val)]
        write_table(
            args.out, f"Size and AP in percent at IoU 0.5; {lists or 'not scored'}", head, scored, append=True
        )
        if args.parts and args.calibrate:
            by_part = int8_by_part(args, network, Path(folder), photo)
            write_table(args.out, "int8 with parts in float", ["float", *head[1:]], by_part, append=True)
    return 0


def write_files(
    args: argparse.Namespace, network: RetinaFace, size: tuple[int, int], folder: Path, photo: np.ndarray
) -> dict[str, Path]:
    """A file of every precision for images of ``size``."""
    files = {}
    for kind in PRECISIONS:
        files[kind] = folder / f"{size[1]}x{size[0]}_{kind}.onnx"
        inputs = calibration(args, network, size, photo) if kind == "int8" else ()
        model = export(network, image_size=size, precision=kind, calibration=inputs)
        files[kind].write_bytes(model.SerializeToString())
    return files


def calibration(
    args: argparse.Namespace, network: RetinaFace, size: tuple[int, int], photo: np.ndarray
) -> Iterable[np.ndarray]:
    """Inputs for int8, as convert_to_onnx.py takes them."""
    if not args.calibrate:
        detector = Detector(network, input_size=InputSize(fixed=size))
        return [detector.preprocess([photo]).contiguous().numpy()]
    return calibration_inputs(network, Path(args.calibrate), size)


def speed(
    args: argparse.Namespace,
    network: RetinaFace,
    files: dict[str, Path],
    size: tuple[int, int],
    photo: np.ndarray,
) -> list:
    """One row: the forward pass of torch and of every file."""
    fixed = InputSize(fixed=size)
    detectors = {kind: Detector(network, input_size=fixed, precision=kind) for kind in ("fp32", "bf16")}
    for name, (runtime, file, computed_in) in RUNS.items():
        detectors[name] = Detector(OnnxNetwork(files[file], runtime=runtime, precision=computed_in))
    batches = {name: detector.preprocess([photo]) for name, detector in detectors.items()}
    actions = {name: lambda n=name: detectors[n].forward(batches[n]) for name in detectors}
    times = median_times(actions, args.repeats, in_a_row=4)
    return [f"{size[1]}x{size[0]}", *(f"{value:.1f}" for value in times.values())]


def processor_features() -> list[str]:
    """Which of the instructions that decide about bfloat16 and int8 this processor has."""
    path = Path("/proc/cpuinfo")
    flags = set(path.read_text().split()) if path.exists() else set()
    names = [
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "amx_bf16",
        "amx_int8",
        "asimd",
        "bf16",
    ]
    return [name for name in names if name in flags] or ["unknown features"]


def precision(args: argparse.Namespace, file: Path) -> list[str]:
    """AP of every list of ``--val``, each scored on the classes it is labelled for."""
    found = []
    for path in args.val:
        scores = validate(OnnxNetwork(file), WiderFaceDetection([path]), torch.device("cpu"), evaluate)
        found.append(", ".join(f"{k[3:]} {v:.2%}" for k, v in scores.items() if k.startswith("ap_")))
    return found


def int8_by_part(
    args: argparse.Namespace, network: RetinaFace, folder: Path, photo: np.ndarray
) -> list[list]:
    """Rows: what stays in float, size and AP, from nothing to the whole backbone."""
    shipped = onnx_export.FLOAT_PARTS[:4]
    choices = {"nothing": ()}
    choices |= {f"first {count} blocks": shipped[:count] for count in range(1, len(shipped) + 1)}
    choices |= {
        "heads": ("network.ClassHead.", "network.BboxHead."),
        "fpn and ssh": ("network.fpn.", "network.ssh"),
        "backbone": ("network.body.",),
    }
    rows = []
    for name, parts in choices.items():
        inputs = calibration(args, network, (320, 576), photo)
        onnx_export.FLOAT_PARTS = parts
        model = export(network, image_size=(320, 576), precision="int8", calibration=inputs)
        path = folder / "part.onnx"
        path.write_bytes(model.SerializeToString())
        rows.append([name, f"{path.stat().st_size / 1e6:.3f}", *precision(args, path)])
    return rows


if __name__ == "__main__":
    run(main)
