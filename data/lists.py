"""What is done with whole annotation lists: link, split, merge, check, count, draw."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data.annotations import (
    ImageAnnotation,
    image_folder,
    images_of,
    iter_annotations,
    known_images,
    labelled_classes,
    list_arguments,
    read_annotations,
    write_labelled_classes,
    write_list,
)
from data.config import CLASS_COLOURS, CLASS_NAMES
from data.foreign import tell_next
from data.predictions import BoxTable
from utils.box_utils import xywh_to_xyxy
from utils.cli import BAD_DATA, OK, DataError, UsageError, count, natural, option, print_rows, share, warn
from utils.draw import contact_sheet, tile
from utils.files import file_digest
from utils.images import read_image, read_sizes, write_image
from utils.threads import map_ahead

_RED, _GREY = (60, 60, 255), (150, 150, 150)
_PROBLEMS_SHOWN = 20


def iter_sizes(path: Path, images_dir: Path) -> Iterator[tuple[ImageAnnotation, tuple[int, int]]]:
    """Images of a list with their (height, width) in pixels, read ahead by several threads.

    Raises:
        DataError: an image that cannot be read, with file and line; see also `iter_annotations`.
    """
    annotations = read_annotations(path)
    sizes = read_sizes(images_dir, (annotation.path for annotation in annotations))
    for annotation, size in zip(annotations, sizes, strict=True):
        if isinstance(size, DataError):
            raise DataError(f"{path}:{annotation.line}: {size}")
        yield annotation, size


def link_arguments(parser: argparse.ArgumentParser) -> None:
    option(parser, "source", "folder of the images", Path)
    option(parser, "folder", "folder of the list, where the link is made", Path)


def link(args: argparse.Namespace) -> int:
    """Makes a symbolic link named images beside a list, to the folder of its images.

    Example:
      python3 prep_data.py link WIDER_train/images datasets/widerface/train
    """
    source, made, beside = args.source.resolve(), args.folder / "images", args.folder / "list.txt"
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; expected the folder of the images")
    is_link = made.is_symlink()
    if (is_link and made.resolve() != source) or (not is_link and made.exists()):
        kind = f"a link to {made.readlink()}" if is_link else "there already"
        raise DataError(f"{made}: {kind}; remove it first")
    if not is_link:
        args.folder.mkdir(parents=True, exist_ok=True)
        made.symlink_to(source, target_is_directory=True)
    if os.path.realpath(images_of(beside)) != os.path.realpath(made):
        write_labelled_classes(beside, labelled_classes(beside), made)  # what dataset.json says counts more
    print(f"{made} -> {made.readlink()}")
    return OK


def split_arguments(parser: argparse.ArgumentParser) -> None:
    list_arguments(parser)
    group = parser.add_argument_group("parts")
    option(group, "--val_share", "share of the images for validation", share, 0.1)
    option(group, "--seed", "another seed gives another split", natural, 0)
    group = parser.add_argument_group("output")
    output = "folder for the lists train/wider_train_gt.txt and val/wider_val_gt.txt"
    option(group, "--save_folder --name", output, Path, required=True, metavar="FOLDER")


def split(args: argparse.Namespace) -> int:
    """Splits a list into training and validation by image. An image's part depends on the seed and its
    content alone, so equal images stay together, and an image stays in its part when others are added; but
    where that leaves a part of a small list empty, the image nearest to it goes there.

    Example:
      python3 prep_data.py split datasets/all/wider_gt.txt --save_folder datasets/parts --val_share 0.1
    """
    if not 0 < args.val_share < 1:
        raise UsageError(f"expected --val_share between 0 and 1, got {args.val_share}")
    images_dir, annotations = image_folder(args.list, args.images), read_annotations(args.list)
    files = (images_dir / annotation.path for annotation in annotations)
    digests = map_ahead(file_digest, files, workers=4, ahead=32)
    seeded = (hashlib.sha256(f"{args.seed}:{digest}".encode()).digest() for digest in digests)
    draws = [int.from_bytes(digest[:8]) / 2**64 for digest in seeded]
    if len(set(draws)) < 2:
        raise DataError(f"{args.list}: no image for val; expected two different images or more")
    cut = min(max(args.val_share, math.nextafter(min(draws), 1)), max(draws))
    targets = {name: args.save_folder / name / f"wider_{name}_gt.txt" for name in ("train", "val")}
    for name, path in targets.items():
        part = [a for a, draw in zip(annotations, draws, strict=True) if (draw < cut) == (name == "val")]
        write_list(path, part, labelled_classes(args.list), images_dir)
        print(f"{path}: {len(part)} images, {sum(map(len, part))} boxes")
    tell_next(targets)
    return OK


def merge_arguments(parser: argparse.ArgumentParser) -> None:
    option(parser, "lists", "annotation lists", Path, nargs="+")
    group = parser.add_argument_group("images")
    repeats = "an image in two lists: stop, or keep the first"
    option(group, "--on_repeat", repeats, default="error", choices=["error", "first"])
    group = parser.add_argument_group("output")
    output = "list to write; dataset.json goes beside it"
    option(group, "--output --out", output, Path, required=True, metavar="FILE")


def merge(args: argparse.Namespace) -> int:
    """Merges lists that are labelled for the same classes. Where their images are in several folders, paths
    start in the folder above them all.

    Example:
      python3 prep_data.py merge a/train/gt.txt b/train/gt.txt --output ab/train/gt.txt
    """
    root, prefixes = None, [""] * len(args.lists)  # where the images of a list are not known
    folders = [known_images(path) for path in args.lists]
    if None not in folders:
        folders = [folder.resolve() for folder in folders]
        root = Path(os.path.commonpath(folders))
        prefixes = ["" if folder == root else folder.relative_to(root).as_posix() for folder in folders]
    labelled = labelled_classes(args.lists[0])
    for path in args.lists:
        if (names := labelled_classes(path)) != labelled:
            first = f"{args.lists[0]} for {' and '.join(labelled)}"
            advice = "add what is missing with pseudo_label first, or train on both lists"
            raise DataError(f"{path} is labelled for {' and '.join(names)}, {first}: {advice}")

    def merged() -> Iterator[ImageAnnotation]:
        seen: dict[str, int] = {}
        for index, (path, prefix) in enumerate(zip(args.lists, prefixes, strict=True)):
            for annotation in iter_annotations(path):
                if prefix:
                    annotation.path = f"{prefix}/{annotation.path}"
                earlier = seen.setdefault(annotation.path, index)
                if earlier == index:
                    yield annotation
                elif args.on_repeat == "error":
                    other = f"{annotation.path} is in {args.lists[earlier]} too"
                    raise DataError(f"{path}:{annotation.line}: {other}; give --on_repeat first to keep that")

    images = write_list(args.output, merged(), labelled, root)
    print(f"{args.output}: {images} images of {len(args.lists)} lists")
    return OK


def check_arguments(parser: argparse.ArgumentParser) -> None:
    list_arguments(parser)


def check(args: argparse.Namespace) -> int:
    """Decodes every image of a list and looks at every box: images that cannot be decoded or are named
    again, boxes beyond the image or without area. The exit code is 1 if anything is wrong.

    Example:
      python3 prep_data.py check datasets/oi/val/wider_val_gt.txt
    """
    images_dir = image_folder(args.list, args.images)

    def decode(annotation: ImageAnnotation) -> tuple[ImageAnnotation, list[str]]:
        try:
            read_image(images_dir / annotation.path)
        except DataError as error:
            return annotation, [str(error)]
        return annotation, []

    lines: dict[str, int] = {}
    images = problems = 0
    for annotation, found in map_ahead(decode, iter_annotations(args.list), os.cpu_count() or 2, ahead=16):
        faults = box_faults(xywh_to_xyxy(annotation.boxes_xywh_norm))
        for name, mask in zip(("beyond the image", "without area"), faults, strict=True):
            if mask.any():
                first = annotation.boxes_xywh_norm[mask][0].round(6).tolist()
                found.append(f"{mask.sum()} boxes {name}, the first {first}; clean takes care of them")
        if (line := lines.setdefault(annotation.path, annotation.line)) != annotation.line:
            found.append(f"{annotation.path} is named in line {line} already; clean joins them")
        for problem in found[: max(0, _PROBLEMS_SHOWN - problems)]:
            print(f"{args.list}:{annotation.line}: {problem}")
        images, problems = images + 1, problems + len(found)
    if problems > _PROBLEMS_SHOWN:
        print(f"... and {problems - _PROBLEMS_SHOWN} more")
    print_rows([("images decoded", images), ("problems", problems)])
    return BAD_DATA if problems else OK


def box_faults(boxes_norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool[N] and bool[N]: boxes xyxy that reach beyond the image, boxes without area."""
    beyond = ((boxes_norm < -1e-8) | (boxes_norm > 1 + 1e-8)).any(1)
    return beyond, (boxes_norm[:, 2:] <= boxes_norm[:, :2]).any(1)


def stats_arguments(parser: argparse.ArgumentParser) -> None:
    option(parser, "list", "annotation list", Path)


def stats(args: argparse.Namespace) -> int:
    """Counts images and boxes of a list.

    Example:
      python3 prep_data.py stats datasets/oi/val/wider_val_gt.txt
    """
    annotations = read_annotations(args.list)
    table = BoxTable.from_annotations(annotations)
    numbers = range(len(annotations))
    face, person = (np.isin(numbers, table.of_class(label).image_index) for label in CLASS_NAMES)
    kinds = {
        "both": face & person,
        "face": face & ~person,
        "person": person & ~face,
        "none": ~(face | person),
    }
    shares = {name: f"{mask.sum()} ({mask.mean():.1%})" if mask.any() else 0 for name, mask in kinds.items()}
    rows = [("images", len(annotations)), *((f"  with {name}", text) for name, text in shares.items())]
    rows.append(("boxes", len(table)))
    rows += [(f"  {name}", (table.labels == label).sum()) for label, name in CLASS_NAMES.items()]
    if table.regions:
        rows.append(("ignore regions", len(table.regions)))
    if annotations:
        quantiles = np.quantile(np.diff(table.offsets), [0.5, 0.9, 0.99, 1])
        rows.append(("boxes an image, median / 90 % / 99 % / most", " / ".join(f"{q:g}" for q in quantiles)))
    beyond, flat = box_faults(table.boxes)
    rows += [("boxes beyond the image", beyond.sum()), ("boxes without area", flat.sum())]
    rows.append(("images named again", len(annotations) - len({a.path for a in annotations})))
    print_rows([*rows, ("labelled for", " and ".join(labelled_classes(args.list)))])
    return OK


def draw_arguments(parser: argparse.ArgumentParser) -> None:
    list_arguments(parser)
    group = parser.add_argument_group("output")
    option(group, "--output --out", "image to write", Path, required=True, metavar="FILE")
    option(group, "--number", "images to show", count, 24)
    option(group, "--seed", "another seed gives other images", natural, 0)


def draw(args: argparse.Namespace) -> int:
    """Makes a contact sheet of images picked at random from a list, with their boxes.

    Example:
      python3 prep_data.py draw datasets/oi/val/wider_val_gt.txt --output val.jpg --number 24
    """
    images_dir, annotations = image_folder(args.list, args.images), read_annotations(args.list)
    if not annotations:
        raise DataError(f"{args.list}: names no image")
    chosen = random.Random(args.seed).sample(annotations, min(args.number, len(annotations)))
    shown = write_sheet(args.output, images_dir, [(annotation, None) for annotation in chosen])
    colours = f"{CLASS_NAMES[1]} orange, {CLASS_NAMES[2]} blue, what is ignored grey"
    print(f"{args.output}: {shown} images; {colours}")
    return OK


def write_sheet(
    output: Path, images_dir: Path, entries: Iterable[tuple[ImageAnnotation, tuple[str, list[float]] | None]]
) -> int:
    """Writes a contact sheet of annotated images; those that cannot be read are left out with a warning.

    ``entries`` are images and, where one of their boxes is to be shown from near and in red, its caption and
    x y w h, normalised. Returns the number of images shown.

    Raises:
        DataError: none of the images can be read.
    """
    tiles = []
    for annotation, marked in entries:
        try:
            image = read_image(images_dir / annotation.path)
        except DataError as error:
            warn(error)
            continue
        order = np.argsort(-annotation.labels, kind="stable")  # persons first, so that faces lie on top
        boxes = annotation.boxes(image.shape[:2])[order]
        colours = [CLASS_COLOURS.get(label, _GREY) for label in annotation.labels[order].tolist()]
        texts, focus = [""] * len(boxes), None
        if marked:
            focus = ImageAnnotation("", [0], [marked[1]]).boxes(image.shape[:2])[0]
            boxes, texts, colours = np.vstack([boxes, focus]), [*texts, marked[0]], [*colours, _RED]
        tiles.append(tile(image, boxes, texts, colours, annotation.path, focus))
    if not tiles:
        raise DataError(f"{images_dir}: none of the images to show can be read")
    write_image(output, contact_sheet(tiles))
    return len(tiles)
