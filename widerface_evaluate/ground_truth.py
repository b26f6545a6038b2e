"""Ground truth of WIDER FACE: the benchmark's .mat files, or the text annotation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.config import CLASS_LABELS
from data.predictions import BoxTable
from utils.box_utils import xywh_to_xyxy
from utils.cli import DataError, warn
from utils.image_names import image_key

if TYPE_CHECKING:
    from data.formats import WiderImage

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
    from data.formats import read_wider_text

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
