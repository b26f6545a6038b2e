"""Writes the detections of a validation set as text files, for the evaluators.

Examples:
  python3 test_widerface_personface.py --dataset_folder data/widerface/val/images
  python3 test_widerface_personface.py --dataset openimages --dataset_folder val/images \\
      --dataset_list val/wider_val_gt.txt --save_folder results -s
  python3 test_widerface_personface.py --dataset_folder images --no-origin_size   # 1600/2150, "same as MXNet"
  torchrun --nproc_per_node 4 test_widerface_personface.py --resume               # the images shared out

One file an image, at its path below --save_folder: name, number of detections, then x y w h score class.
Everything above --confidence_threshold is written; a high threshold there destroys the average precision.
Score the folder with widerface_evaluate/evaluation.py or wider_openimagespersonface_evaluate/evaluation.py.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.predictions import Detections, draw_detections, is_whole, prediction_path, write_prediction
from models.arguments import (
    add_detection_arguments,
    add_network_arguments,
    build_detector,
    device_of,
    parser_of,
    weights_path,
)
from models.detector import Detector, InputSize, batches, detect_batch, try_to_read
from utils.cli import BAD_DATA, OK, DataError, UsageError, number, report, run, warn
from utils.files import file_digest, read_json, write_text
from utils.image_names import image_key, images_below, read_image_list
from utils.images import write_image
from utils.processes import processes, rank, sum_over_processes, wait_for_all, world_size
from utils.threads import Behind, map_ahead

WIDERFACE, OPENIMAGES = "widerface", "openimages"

ROOT = Path(__file__).resolve().parent

#: Where the images of a data set are, and where its evaluator looks for predictions.
FOLDERS: dict[str, tuple[Path, Path]] = {
    WIDERFACE: (
        ROOT / "data/widerface/val/images",
        ROOT / "widerface_evaluate/results_widerface_150_1803txt",
    ),
    OPENIMAGES: (
        ROOT / "data/wider_OIpersonface1103/val/images",
        ROOT / "wider_openimagespersonface_evaluate/results_wider_OIpersonface_150_1803txt",
    ),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    add_network_arguments(parser)
    add_detection_arguments(parser)
    group = parser.add_argument_group("data set")
    group.add_argument(
        "--dataset",
        choices=list(FOLDERS),
        help="coordinates: widerface in pixels, openimages divided by the image's width and height (default: "
        "widerface if images lie in event folders such as 0--Parade, else openimages)",
    )
    group.add_argument(
        "--dataset_folder",
        type=Path,
        metavar="DIR",
        help="the images (default: data/wider_OIpersonface1103/val/images; with --dataset widerface "
        "data/widerface/val/images)",
    )
    group.add_argument(
        "--dataset_list",
        type=Path,
        metavar="FILE",
        help="images to take, one a line, or an annotation list (default: all below the folder)",
    )
    group, side = parser.add_argument_group("input"), number(int, 1, 2**16)
    group.add_argument(
        "--origin_size",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take images at their own size; else resize by --target_size and --max_size (default: yes)",
    )
    group.add_argument("--target_size", type=side, default=1600, metavar="PIXELS", help="shorter side")
    group.add_argument(
        "--max_size", type=side, default=2150, metavar="PIXELS", help="limit of the longer side"
    )
    group.add_argument("--long_side", type=side, metavar="PIXELS", help="resize to this longer side instead")
    group.add_argument(
        "--batch_size", type=number(int, 1), default=1, metavar="N", help="images read together"
    )
    group.add_argument(
        "--num_workers",
        type=number(int, 1, 256),
        default=2,
        metavar="N",
        help="threads that read images ahead",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--save_folder",
        type=Path,
        metavar="DIR",
        help="where the text files go (default: where the data set's evaluator looks for them)",
    )
    group.add_argument(
        "--resume", action="store_true", help="skip images whose text file of this dump is whole"
    )
    group.add_argument(
        "-s", "--save_image", action="store_true", help="annotated images too, in <save_folder>_images"
    )
    group.add_argument(
        "--vis_thres", type=number(float, 0, 1), default=0.5, metavar="S", help="least score in an image"
    )
    args = parser.parse_args(argv)
    if args.long_side and not args.origin_size:
        parser.error("--long_side and --no-origin_size: expected one of them")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    folder = args.dataset_folder or FOLDERS[args.dataset or OPENIMAGES][0]
    images = find_images(folder, args.dataset_list)
    dataset = args.dataset or guess_dataset(images)
    dump = Dump(folder, args.save_folder or FOLDERS[dataset][1], dataset, args.save_image, args.vis_thres)
    start = time.perf_counter()
    with processes(device_of(args)) as device:
        args.device = str(device)
        detector = build_detector(args, input_size(args))
        # Whole batches are shared out: an image has the same neighbours whatever the number of processes.
        share = list(batches(images, args.batch_size))[rank() :: world_size()]
        begin(dump, settings_of(args, dataset), args.resume)
        done = {name for batch in share for name in batch if args.resume and dump.is_done(name)}
        todo = [batch for batch in ([name for name in batch if name not in done] for batch in share) if batch]
        detect_all(detector, todo, dump, args)
        # All processes end together: torchrun stops the others when one of them has failed.
        counts = torch.tensor([dump.written, dump.detections, dump.faults, len(done)], device=device)
        written, detections, faults, there = sum_over_processes(counts).tolist()
        if rank() == 0:
            seconds = time.perf_counter() - start
            print(
                f"{written} images in {seconds:.1f} s, {detections} detections, coordinates as {dataset}: "
                f"{dump.save_folder}"
                + (f"; {there} images were there already" if args.resume else "")
                + (f"; {faults} images failed (named above)" if faults else "")
            )
    return BAD_DATA if faults else OK


def settings_of(args: argparse.Namespace, dataset: str) -> dict:
    """What decides about the text files, to be compared by --resume."""
    names = ["confidence_threshold", "top_k", "nms_threshold", "keep_top_k", "classes", "precision"]
    names += ["origin_size", "long_side"] if args.origin_size else ["origin_size", "target_size", "max_size"]
    weights = {"trained_model": file_digest(weights_path(args.trained_model))}
    return weights | {"dataset": dataset} | {name: getattr(args, name) for name in names}


def begin(dump: Dump, settings: dict, resume: bool) -> None:
    """Notes the settings of a dump beside its text files, or compares them with those of the one to resume.

    Raises:
        UsageError: it was begun with others.
    """
    if resume and dump.settings_path.exists():
        before = read_json(dump.settings_path, "the settings of a dump")
        before = before if isinstance(before, dict) else {}
        changed = [name for name in settings if settings[name] != before.get(name)]
        if changed:
            raise UsageError(
                f"{dump.settings_path}: begun with another --{', --'.join(changed)}; give what is there, or "
                f"start anew without --resume"
            )
    elif not resume and rank() == 0:
        write_text(dump.settings_path, json.dumps(settings, indent=1) + "\n")
    wait_for_all()


def detect_all(detector: Detector, todo: list[list[str]], dump: Dump, args: argparse.Namespace) -> None:
    """Images in their batches: read ahead by threads, written behind by another."""
    names = [name for batch in todo for name in batch]
    reader = map_ahead(
        lambda name: try_to_read(dump.folder / name), names, args.num_workers, 2 * args.batch_size + 2
    )
    with tqdm(total=len(names), unit="image", disable=None, leave=False) as progress, Behind() as behind:
        for batch in todo:
            images = list(zip(batch, islice(reader, len(batch)), strict=True))
            progress.update(len(batch))
            for _, image in images:
                if isinstance(image, DataError):
                    dump.fault(image)
            readable = [(name, image) for name, image in images if not isinstance(image, DataError)]
            for name, image, found in detect_batch(detector, readable, dump.fault):
                behind.submit(dump.write, name, image, found)


class Dump:
    """The files that are written.

    Args:
        folder: of the images.
        save_folder: of the text files.
        dataset: ``widerface`` or ``openimages``.
        draw: whether to draw the detections as well.
        visible: least score that is drawn.
    """

    def __init__(self, folder: Path, save_folder: Path, dataset: str, draw: bool, visible: float) -> None:
        self.folder, self.save_folder, self.dataset = folder, save_folder, dataset
        self.drawn_folder = save_folder.with_name(f"{save_folder.name}_images") if draw else None
        self.visible = visible
        self.settings_path = save_folder / "settings.json"
        self.written = self.detections = self.faults = 0

    def text_path(self, name: str) -> Path:
        """The text file of an image."""
        return prediction_path(self.save_folder, image_key(name))

    def is_done(self, name: str) -> bool:
        """Whether the text file of an image is there, whole and of this dump."""
        path = self.text_path(name)
        if not is_whole(path):
            return False
        begun = self.settings_path.stat().st_mtime_ns if self.settings_path.exists() else 0
        return path.stat().st_mtime_ns >= begun

    def fault(self, message: object) -> None:
        """Reports an image that gave nothing; the others go on."""
        self.faults += 1
        report(message)

    def write(self, name: str, image: np.ndarray, found: Detections) -> None:
        """Writes the detections of one image, uint8[height, width, 3]."""
        height, width = image.shape[:2]
        scale = np.array([width, height, width, height]) if self.dataset == OPENIMAGES else 1
        path = self.text_path(name)
        if self.drawn_folder:
            seen = found.above(self.visible)
            drawn = draw_detections(image, seen.boxes, seen.scores, seen.labels)
            write_image(self.drawn_folder / f"{image_key(name)}.jpg", drawn)
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
    if listed is None:
        images = images_below(folder)
    else:
        images, odd = read_image_list(listed)
        images = [image.lstrip("/") for image in images]
        if odd:
            warn(f"{listed}: {len(odd)} lines do not name an image and are skipped: {', '.join(odd)}")
        if len(set(images)) < len(images):
            warn(f"{listed}: {len(images) - len(set(images))} images are named again and taken once")
            images = list(dict.fromkeys(images))
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


def input_size(args: argparse.Namespace) -> InputSize:
    """How images are resized for the network."""
    if args.origin_size:
        return InputSize(args.long_side)
    return InputSize(target_size=args.target_size, max_size=args.max_size)


if __name__ == "__main__":
    run(main)
