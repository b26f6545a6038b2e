"""Speed of detection against the plain version of its steps, in turns, each as its users run it.

The plain version has a process of its own: that of the scripts keeps freed memory, which would help it too.

Examples:
  python3 benchmarks/bench_detection.py                     # weights at random, the sample photo
  python3 benchmarks/bench_detection.py -m FILE --image crowd.jpg --repeats 30
  python3 benchmarks/bench_detection.py --device cuda --batch_size 32
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tables import machine, median_times, write_table
from data.config import cfg_mnet
from detect import DEFAULT_SCORE
from layers.functions.prior_box import prior_boxes
from models.arguments import DEFAULT_WEIGHTS
from models.checkpoint import load_network
from models.detector import Detector, Thresholds
from models.onnx_export import export
from models.onnx_network import OnnxNetwork
from models.retinaface import RetinaFace
from tests.plain.detector import plain_detect
from utils.cli import UsageError, parser_of, run
from utils.image_names import sample_photos
from utils.images import read_image
from utils.processes import keep_freed_memory

SIZES = [(576, 320), (640, 640), (1024, 768), (1920, 1080)]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument(
        "-m", "--trained_model", help="checkpoint (default: the shipped one, else random weights)"
    )
    parser.add_argument("--image", default=sample_photos()[0], help="image, stretched to every size")
    parser.add_argument(
        "--device", default="cpu", help="device of the fast version; the plain one is on the CPU"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds; medians are shown")
    parser.add_argument("--batch_size", type=int, default=8, help="images of the batched columns")
    parser.add_argument("--out", default="benchmarks/results/detection.md", help="table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    weights = args.trained_model or (DEFAULT_WEIGHTS if DEFAULT_WEIGHTS.exists() else None)
    network = load_network(weights) if weights else RetinaFace(cfg_mnet).eval()
    fast = Detector(network, device=args.device, scales=1)
    photo = read_image(args.image)
    rows, stages = [], []
    other_process = ProcessPoolExecutor(1, get_context("spawn"), start_plain, (network, args.threads))
    with tempfile.TemporaryDirectory() as folder, other_process:
        detectors = {"one look": fast, "auto above 0.02": Detector(network, device=args.device)}
        as_detect = {"device": args.device, "thresholds": Thresholds(score=DEFAULT_SCORE)}
        detectors["auto"] = Detector(network, **as_detect)
        detectors["auto bf16"] = Detector(network, precision="bf16", **as_detect)
        detectors |= openvino_detector(network, Path(folder, "dynamic.onnx")) if args.device == "cpu" else {}
        for width, height in SIZES:
            path = str(Path(folder, f"{width}x{height}.jpg"))
            cv2.imwrite(path, cv2.resize(photo, (width, height)))
            rows.append(end_to_end(args, other_process, detectors, path))
            stages.append(by_stage(args, fast, path))
    name = Path(weights).name if weights else "at random"
    title = f"{machine(args.threads)}, device {args.device}, weights {name}, image {Path(args.image).name}"
    write_table(
        args.out,
        f"Detection from file to boxes, milliseconds an image; {title}",
        [
            *("size", "plain", *detectors, f"batch of {args.batch_size}"),
            *(f"plain / {name}" for name in detectors),
        ],
        rows,
    )
    write_table(
        args.out,
        "Stages of one look, milliseconds; post: priors, softmax, decode and NMS",
        ["size", "imread", "read + preprocess", "/ imread", "network", "post", "post / network"],
        stages,
        append=True,
    )
    return 0


def openvino_detector(network: RetinaFace, file: Path) -> dict[str, Detector]:
    """The network in OpenVINO in bfloat16, by its name, if that is installed."""
    try:
        file.write_bytes(export(network).SerializeToString())
        openvino = OnnxNetwork(file, runtime="openvino", precision="bf16")
        return {"auto OpenVINO bf16": Detector(openvino, thresholds=Thresholds(score=DEFAULT_SCORE))}
    except UsageError as error:
        print(f"without OpenVINO: {error}")
        return {}


def start_plain(network: RetinaFace, threads: int) -> None:
    """Prepares the process of the plain version."""
    torch.set_num_threads(threads)
    plain.network = network


def plain(path: str) -> None:
    """The plain version, in the process that `start_plain` prepared."""
    plain_detect(plain.network, cv2.imread(path), Thresholds())


def end_to_end(
    args: argparse.Namespace, other_process: Executor, detectors: dict[str, Detector], path: str
) -> list:
    """One row: the plain version, ours at one look and as detect.py does, each from the file to the boxes."""
    count, one_look = args.batch_size, detectors["one look"]
    actions = {"plain": lambda: other_process.submit(plain, path).result()}
    actions |= {name: lambda d=detector: d(read_image(path)) for name, detector in detectors.items()}
    actions["batch"] = lambda: one_look([read_image(path) for _ in range(count)])
    times = median_times(actions, args.repeats)
    times["batch"] /= count
    return [
        Path(path).stem,
        *(f"{value:.1f}" for value in times.values()),
        *(f"{times['plain'] / times[name]:.2f}" for name in detectors),
    ]


def by_stage(args: argparse.Namespace, detector: Detector, path: str) -> list:
    """One row: where the time goes; the priors are made anew, as for images of ever new sizes."""
    image = read_image(path)
    inputs = detector.preprocess([image])
    outputs = detector.forward(inputs)

    def forward() -> None:
        detector.forward(inputs)
        if detector.device.type == "cuda":
            torch.cuda.synchronize()

    def post() -> None:
        prior_boxes.cache_clear()
        detector.postprocess(*outputs, inputs.shape[2:], [image.shape[:2]])

    times = median_times(
        {
            "imread": lambda: cv2.imread(path),
            "read": lambda: detector.preprocess([read_image(path)]),
            "network": forward,
            "post": post,
        },
        args.repeats,
    )
    return [
        Path(path).stem,
        f"{times['imread']:.1f}",
        f"{times['read']:.1f}",
        f"{times['read'] / times['imread']:.2f}",
        f"{times['network']:.1f}",
        f"{times['post']:.2f}",
        f"{times['post'] / times['network']:.1%}",
    ]


if __name__ == "__main__":
    run(main)
