"""Writes the detections of a validation set as text files, for the evaluators.

Examples:
  python3 test_widerface_personface.py --dataset_folder datasets/widerface/val/images
  python3 test_widerface_personface.py --dataset openimages --dataset_folder val/images \\
      --dataset_list val/wider_val_gt.txt --save_folder runs/mine -s
  python3 test_widerface_personface.py --resume --evaluate wider_face_val_bbx_gt.txt   # and the scores
  python3 test_widerface_personface.py --dataset_folder images --no-origin_size   # 1600/2150, "same as MXNet"
  torchrun --nproc_per_node 4 test_widerface_personface.py --resume               # the images shared out

One file an image, at its path below --save_folder: name, number of detections, then x y w h score class.
Everything above --confidence_threshold is written; a high threshold there destroys the average precision.
--evaluate scores the folder with widerface_evaluate/evaluation.py or, for openimages,
wider_openimagespersonface_evaluate/evaluation.py; these have further options.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from tqdm import tqdm

from data.annotations import known_images
from data.predictions import Detections, is_whole, prediction_path, write_prediction
from models.arguments import (
    add_detection_arguments,
    add_network_arguments,
    add_scales_argument,
    build_detector,
    check_settings,
    device_of,
    weights_path,
)
from models.detector import InputSize, detect_images
from utils.cli import (
    BAD_DATA,
    OK,
    DataError,
    Number,
    count,
    option,
    parser_of,
    pixels,
    report,
    run,
    score,
)
from utils.files import file_digest, locked, read_json, write_text
from utils.image_names import image_key, images_below, read_image_list
from utils.images import read_image, write_image
from utils.processes import keep_freed_memory, processes, rank, sum_over_processes, wait_for_all, world_size
from utils.threads import background_thread
from wider_openimagespersonface_evaluate import evaluation as openimages
from widerface_evaluate import evaluation as widerface

WIDERFACE, OPENIMAGES = "widerface", "openimages"

ROOT = Path(__file__).resolve().parent

#: The evaluator of a data set, and where its images are.
DATASETS: dict[str, tuple[ModuleType, Path]] = {
    WIDERFACE: (widerface, ROOT / "datasets/widerface/val/images"),
    OPENIMAGES: (openimages, ROOT / "datasets/wider_OIpersonface1103/val/images"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    add_network_arguments(parser)
    add_detection_arguments(parser)
    group = parser.add_argument_group("data set")
    help = """coordinates: widerface in pixels, openimages divided by the image's width and height (default:
        widerface if images lie in event folders such as 0--Parade, else openimages)"""
    option(group, "--dataset", help, choices=list(DATASETS))
    help = """the images (default: those of --dataset_list where it knows them, else
        datasets/wider_OIpersonface1103/val/images, with --dataset widerface datasets/widerface/val/images)"""
    option(group, "--dataset_folder --images", help, Path, metavar="FOLDER")
    help = "images to take, one a line, or an annotation list (default: all below the folder)"
    option(group, "--dataset_list", help, Path, metavar="FILE")
    group = parser.add_argument_group("input")
    help = """take images at their own size; else make the shorter side 1600 pixels, but the longer at most
        2150 (default: yes)"""
    group.add_argument("--origin_size", action=argparse.BooleanOptionalAction, default=True, help=help)
    option(group, "--long_side --imgsz", "resize to this longer side instead", pixels)
    add_scales_argument(group, "1")
    option(group, "--batch_size --batch", "images that go through the network together", count, 1)
    option(group, "--num_workers --workers", "threads that read images ahead", Number(int, 1, 256), 2)
    group = parser.add_argument_group("output")
    help = "where the text files go (default: where the data set's evaluator looks for them)"
    option(group, "--save_folder --name", help, Path, metavar="FOLDER")
    option(group, "--resume", "skip images whose text file of this dump is whole")
    help = """score the files against this ground truth with the evaluator of --dataset, on the images of
        --dataset_list if given; with --resume those that are there are not detected again"""
    option(group, "--evaluate", help, Path, metavar="GROUND_TRUTH")
    option(group, "--save_image -s", "annotated images too, in <save_folder>_images")
    option(group, "--vis_thres", "draw only what scores at least this", score, 0.5)
    args = parser.parse_args(argv)
    if args.long_side and not args.origin_size:
        parser.error("--long_side and --no-origin_size: expected one of them")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.evaluate and not args.evaluate.exists():
        raise DataError(f"{args.evaluate}: no such ground truth; give what the evaluator takes as -g")
    listed = known_images(args.dataset_list) if args.dataset_list else None
    folder = args.dataset_folder or listed or DATASETS[args.dataset or OPENIMAGES][1]
    images = find_images(folder, args.dataset_list)
    dataset = args.dataset or guess_dataset(images)
    evaluator, _ = DATASETS[dataset]
    dump = Dump(args.save_folder or evaluator.PREDICTIONS, dataset, args.save_image, args.vis_thres)
    start = time.perf_counter()
    keep_freed_memory()
    with processes(device_of(args)) as device, locked(dump.folder) if rank() == 0 else nullcontext():
        args.device = str(device)
        detector = build_detector(args, input_size(args))
        dump.begin(settings_of(args, dataset), args.resume)
        # Whole batches are shared out: an image has the same neighbours whatever the number of processes.
        own = [name for i, name in enumerate(images) if i // args.batch_size % world_size() == rank()]
        todo = [name for name in own if not (args.resume and dump.is_done(name))]
        reading = args.batch_size, dump.fault, args.num_workers
        found = detect_images(detector, todo, lambda name: read_image(folder / name), *reading)
        with background_thread() as submit:
            for result in tqdm(found, total=len(todo), unit="image", disable=None, leave=False):
                submit(dump.write, *result)
        # All processes end together: torchrun stops the others when one of them has failed.
        counts = [dump.written, dump.detections, dump.faults, len(own) - len(todo)]
        written, detections, faults, there = sum_over_processes(torch.tensor(counts, device=device)).tolist()
        if rank() == 0:
            seconds = time.perf_counter() - start
            print(
                f"{written} images in {seconds:.1f} s, {detections} detections, coordinates as {dataset}: "
                f"{dump.folder}"
                + (f"; {there} images were there already" if args.resume else "")
                + (f"; {faults} images failed (named above)" if faults else "")
            )
        if args.evaluate and rank() == 0 and not faults:
            arguments = ["-p", str(dump.folder), "-g", str(args.evaluate)]
            arguments += ["--image_list", str(args.dataset_list)] if args.dataset_list else []
            return evaluator.main(arguments)
    return BAD_DATA if faults else OK


def input_size(args: argparse.Namespace) -> InputSize:
    """How images are resized for the network."""
    if args.origin_size:
        return InputSize(args.long_side)
    return InputSize(target_size=1600, max_size=2150)


def settings_of(args: argparse.Namespace, dataset: str) -> dict:
    """What decides about the text files, to be compared by --resume."""
    names = ["confidence_threshold", "top_k", "nms_threshold", "keep_top_k", "classes", "precision", "scales"]
    names += ["origin_size", "long_side"]
    weights = {"trained_model": file_digest(weights_path(args.trained_model))}
    return weights | {"dataset": dataset} | {name: getattr(args, name) for name in names}


class Dump:
    """Text files of a ``dataset``, ``widerface`` or ``openimages``, in a folder.

    With ``draw`` images too in a folder beside it, with what scores at least ``least_visible``.
    """

    def __init__(self, folder: Path, dataset: str, draw: bool, least_visible: float) -> None:
        self.folder, self.dataset, self.least_visible = folder, dataset, least_visible
        self.drawn_folder = folder.with_name(f"{folder.name}_images") if draw else None
        self.settings_path = folder / "settings.json"
        self.written = self.detections = self.faults = 0

    def begin(self, settings: dict, resume: bool) -> None:
        """Notes the settings beside the text files, or compares them with those of the dump to resume.

        Text files that were there before the settings are of another dump, or of none that is known.

        Raises:
            UsageError: it was begun with others.
        """
        begun = resume and self.settings_path.exists()
        if begun:
            before = read_json(self.settings_path, "the settings of a dump")
            check_settings(settings, before if isinstance(before, dict) else {}, self.settings_path)
        wait_for_all()  # every process has looked before one writes
        if rank() == 0 and not begun:
            write_text(self.settings_path, json.dumps(settings, indent=1) + "\n")
        wait_for_all()

    def is_done(self, name: str) -> bool:
        """Whether the text file of an image is there, whole and of this dump."""
        path = prediction_path(self.folder, image_key(name))
        return is_whole(path) and path.stat().st_mtime_ns >= self.settings_path.stat().st_mtime_ns

    def fault(self, message: object) -> None:
        """Reports an image that gave nothing; the others go on."""
        self.faults += 1
        report(message)

    def write(self, name: str, image: np.ndarray, found: Detections) -> None:
        """Writes the detections of one image, uint8[height, width, 3]."""
        if self.drawn_folder:
            drawn = found.above(self.least_visible).draw(image)
            write_image(self.drawn_folder / f"{image_key(name)}.jpg", drawn)
        height, width = image.shape[:2]
        scale = np.array([width, height, width, height]) if self.dataset == OPENIMAGES else 1
        path = prediction_path(self.folder, image_key(name))
        write_prediction(path, path.stem, found.boxes_xywh / scale, found.scores, found.labels)
        self.written += 1
        self.detections += len(found)


def find_images(folder: Path, listed: Path | None) -> list[str]:
    """Paths of the images below ``folder``: those of a list, or all; no two may share a text file.

    Raises:
        DataError: no folder, no list, no image, one whose text file would lie elsewhere, or two images that
            differ in their suffix alone.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images; give --dataset_folder DIR")
    images = read_image_list(listed) if listed else images_below(folder)
    if not images:
        raise DataError(f"{listed or folder}: no image {'named ' if listed else ''}there")
    owners: dict[str, str] = {}
    for image in images:
        key = image_key(image)
        if ".." in key.split("/"):
            raise DataError(f"{listed}: {image!r} leads out of {folder}; name images below it alone")
        owner = owners.setdefault(key, image)
        if owner != image:
            raise DataError(f"{folder}: {owner} and {image} would share one text file; rename one of them")
    return images


def guess_dataset(images: list[str]) -> str:
    """WIDER FACE where the first image lies in an event folder such as ``0--Parade``."""
    return WIDERFACE if re.search(r"(^|/)\d+--[^/]+/", images[0]) else OPENIMAGES


if __name__ == "__main__":
    run(main)
