"""Ground truth of WIDER FACE: the benchmark's .mat files, or the text annotation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.predictions import corners, offsets_of
from utils.cli import DataError, warn
from utils.image_names import image_key

if TYPE_CHECKING:
    from data.wider_text import WiderImage

SUBSETS = ("easy", "medium", "hard")


@dataclass
class WiderTruths:
    """Faces of many images, those of image i in rows ``offsets[i]:offsets[i + 1]``.

    Attributes:
        images: ``event/name`` of each image.
        offsets: int64[I + 1], ascending from 0 to G.
        boxes_xywh: float64[G, 4], pixels.
        subsets: by name, uint8[G]: whether a face counts in the subset; else it is ignored there.
    """

    images: list[str]
    offsets: np.ndarray
    boxes_xywh: np.ndarray
    subsets: dict[str, np.ndarray]

    @property
    def boxes(self) -> np.ndarray:
        """float64[G, 4]: x1 y1 x2 y2."""
        return corners(self.boxes_xywh)

    def take(self, images: list[int]) -> WiderTruths:
        """The images at some indices, in that order."""
        rows = np.concatenate(
            [np.zeros(0, np.int64), *(np.arange(self.offsets[i], self.offsets[i + 1]) for i in images)]
        )
        return WiderTruths(
            [self.images[i] for i in images],
            offsets_of(np.diff(self.offsets)[images]),
            self.boxes_xywh[rows],
            {name: counted[rows] for name, counted in self.subsets.items()},
        )


def read_ground_truth(path: Path) -> WiderTruths:
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


def _read_mat_files(folder: Path) -> WiderTruths:
    images, boxes = _load(folder / "wider_face_val.mat", _images_and_boxes)
    offsets = offsets_of(map(len, boxes))
    subsets = {}
    for name in SUBSETS:
        path = folder / f"wider_{name}_val.mat"
        indices = _load(path, _indices)
        if len(indices) != len(boxes):
            raise DataError(
                f"{path}: found {len(indices)} images; expected {len(boxes)} as in wider_face_val.mat"
            )
        subsets[name] = np.zeros(offsets[-1], np.uint8)
        for image, start, index, box in zip(images, offsets[:-1], indices, boxes, strict=True):
            if ((index < 1) | (index > len(box))).any():
                raise DataError(f"{path}: found face {index.max()} of {image}, which has {len(box)}")
            subsets[name][start + index - 1] = 1
    return WiderTruths(images, offsets, np.concatenate(boxes), subsets)


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


def _read_text(path: Path) -> WiderTruths:
    """One subset, "all": every face but those marked invalid, which are ignored."""
    from data.wider_text import read_wider_text

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
    return WiderTruths(
        list(images),
        offsets_of(int(keep.sum()) for keep in kept),
        np.concatenate([image.boxes_xywh[keep] for image, keep in pairs]),
        {"all": np.concatenate([~image.invalid[keep] for image, keep in pairs]).astype(np.uint8)},
    )
