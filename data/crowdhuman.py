"""CrowdHuman's annotations: a file ``.odgt``, one JSON object a line and image.

    {"ID": "273271,1a0d6000b9e1f5b7", "gtboxes": [
        {"tag": "person", "fbox": [x, y, w, h], "vbox": [...], "hbox": [...], "extra": {...}},
        {"tag": "mask", "fbox": [x, y, w, h], "extra": {"ignore": 1}}]}

Boxes are in pixels: ``fbox`` of the whole person, also where it is hidden or out of the image, ``vbox`` of
what shows of it. ``mask`` is a crowd, a reflection or something like a person. Heads are not faces, and are
left out.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from data.config import CLASS_LABELS, label_name
from data.foreign import ForeignImage, Part, check_image_name
from utils.box_utils import xywh_to_xyxy, xyxy_to_xywh
from utils.cli import DataError
from utils.files import read_text
from utils.image_names import image_of
from utils.images import read_size
from utils.threads import map_ahead

#: The box of a person by the option's value.
BOXES = {"full": "fbox", "visible": "vbox"}

_NAMES = ["person", label_name(-CLASS_LABELS["person"])]


def read_crowdhuman(path: Path, images_dir: Path | None, boxes: str = "full") -> Part:
    """Persons, and as ignore regions what is no person by its tag or to be ignored by its ``extra``.

    Boxes are cut to the image, as the benchmark's own evaluation does.

    Args:
        path: the ``.odgt`` file.
        images_dir: folder of the images, whose sizes the file does not have.
        boxes: one of `BOXES`; a region that has no visible box keeps its full one.

    Raises:
        DataError: no folder, an image that is not in it, or a line of another form; with file and line.
    """
    if images_dir is None:
        raise DataError(f"{path}: it has no sizes of its images; give their folder with --images")
    lines = read_text(path, "annotations of CrowdHuman, one JSON object a line").split("\n")

    def read(numbered: tuple[int, str]) -> ForeignImage:
        number, line = numbered
        return _read_image(f"{path}:{number}", line, images_dir, BOXES[boxes])

    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    images = list(map_ahead(read, filled, workers=4, ahead=64))
    earlier: dict[str, int] = {}
    for (number, _), image in zip(filled, images, strict=True):
        if (first := earlier.setdefault(image.path, number)) != number:
            raise DataError(f"{path}:{number}: {image.path} again, as in line {first}; keep one of them")
    return Part("", images_dir, _NAMES, images)


def _read_image(place: str, line: str, images_dir: Path, key: str) -> ForeignImage:
    """The image of a line; errors begin with ``place``."""
    try:
        content = json.loads(line)
        name, entries = content["ID"], content["gtboxes"]
        if not isinstance(name, str) or not isinstance(entries, list):
            raise TypeError
    except (ValueError, RecursionError, KeyError, TypeError):
        raise DataError(f"{place}: found {line!r:.80}; expected a JSON object with ID and gtboxes") from None
    image = image_of(images_dir, check_image_name(name, place))
    try:
        height, width = read_size(image)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    classes, boxes = [], []
    for index, entry in enumerate(entries):
        try:
            is_region = entry["tag"] != "person" or entry.get("extra", {}).get("ignore", 0) != 0
            chosen = key if key in entry or not is_region else "fbox"
            box = np.asarray(entry[chosen], np.float64)
            if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] < 0).any():
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise DataError(
                f"{place}: box {index}: found {json.dumps(entry):.120}; expected a tag and {key} x y w h, "
                f"four finite numbers, none a negative size"
            ) from None
        classes.append(int(is_region))
        boxes.append(box)
    sides = [width, height, width, height]
    corners = xywh_to_xyxy(np.reshape(boxes, (-1, 4))).clip(0, sides)
    return ForeignImage(image.relative_to(images_dir).as_posix(), classes, xyxy_to_xywh(corners) / sides)
