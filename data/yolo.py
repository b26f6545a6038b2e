"""YOLO folders, as ultralytics and Roboflow lay them out: reading any of them, writing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np

from data.annotations import ImageAnnotation, iter_annotations, labelled_classes
from data.config import CLASS_LABELS
from data.foreign import SPLITS, ForeignImage, Part, bounds, split_folders
from utils.box_utils import cxcywh_to_xywh, xywh_to_cxcywh
from utils.cli import DataError, UsageError, warn
from utils.files import read_text, write_text
from utils.image_names import check_image_name, images_below

YAML_SUFFIXES = (".yaml", ".yml")

#: First line of a data.yaml that `write_yolo` wrote; what is beside it may be replaced.
_WRITTEN = "# written by prep_data.py export; the folder is replaced when it is written again\n"

#: Files that name the classes, in order, one a line.
_NAME_FILES = ("classes.txt", "obj.names")


def read_yolo(source: Path, images_dir: Path | None = None) -> list[Part]:
    """The parts of a YOLO set; an image without a label file has no boxes.

    Args:
        source: ``data.yaml``; a folder with it, with ``images`` and ``labels``, or with those in ``train``,
            ``valid``, ``test``; a folder of label files.
        images_dir: where the source does not show it.

    Raises:
        DataError: no images, none with a label, or a line of another form, with file and line.
        UsageError: label files alone, and no ``images_dir``.
    """
    if not source.is_dir():
        return _read_by_yaml(source)
    files = [path for path in sorted(source.iterdir()) if path.suffix.lower() in YAML_SUFFIXES]
    if len(files) > 1:
        raise DataError(f"{source}: found {', '.join(f.name for f in files)}; give the right one itself")
    if files and images_dir is None:
        return _read_by_yaml(files[0])
    yaml = files[0] if files else source.parent / "data.yaml"
    names = _names(_read_yaml(yaml), yaml) if yaml.is_file() else None
    parts = []
    for name, images, labels in _layout(source, images_dir):
        pairs = [(path, labels / PurePosixPath(path).with_suffix(".txt")) for path in images_below(images)]
        own = names or _listed_names(labels, labels.parent, source)
        parts.append(_read_part(name, images, pairs, own))
        _warn_of_strays(labels, images, pairs)
    return parts


def _layout(source: Path, images_dir: Path | None) -> list[tuple[str, Path, Path]]:
    """Name, folder of the images and folder of the labels of each part."""
    labels = source / "labels" if (source / "labels").is_dir() else source
    images = images_dir or source / "images"
    places = [(part, place, labels / place.name) for part, place in split_folders(images)]
    if images_dir is None:
        places += [(part, place / "images", place / "labels") for part, place in split_folders(source)]
    found = [place for place in places if place[1].is_dir() and place[2].is_dir()]
    if not found and not images.is_dir():
        what = "a YOLO label file does not name its image: give the images with --images"
        raise UsageError(f"{source}: {what}")
    return found or [("", images, labels)]


def _read_by_yaml(path: Path) -> list[Part]:
    content = _read_yaml(path)
    names, parts = _names(content, path), []
    boxes_first = "kpt_shape" in content  # then points follow a box, where they would else be a polygon
    for key in content:
        if key not in SPLITS or content[key] is None:
            continue
        values = content[key] if isinstance(content[key], list) else [content[key]]
        places = [_place(path, content.get("path"), value) for value in values]
        if None in places:
            warn(f"{path}: {key}: {values[places.index(None)]!r:.80}: not there, left out")
            continue
        root, pairs = _images_at(places)
        parts.append(_read_part(SPLITS[key], root, pairs, names, boxes_first))
        for place in places:
            if place.is_dir():
                _warn_of_strays(_label_place(place), place, pairs)
    if not parts:
        raise DataError(f"{path}: none of its train, val and test is there; expected folders of images")
    return parts


def _read_yaml(path: Path) -> dict:
    import yaml  # the only step that needs it

    text = read_text(path, "the data.yaml of a YOLO set")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise DataError(f"{path}: not YAML ({what:.200}); expected the data.yaml of a YOLO set") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected the keys names and train of a YOLO set, found no table")
    return content


def _names(content: dict, path: Path) -> list[str] | None:
    """Names of the classes by number; None where the file has none."""
    names = content.get("names")
    if names is None:
        return None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or sorted(map(repr, names)) != sorted(map(repr, range(len(names)))):
        raise DataError(f"{path}: expected names as a list, or as a table by number from 0 on")
    if not all(isinstance(name, str | int | float) for name in names.values()):
        raise DataError(f"{path}: names: expected texts")
    return [str(names[number]) for number in range(len(names))]


def _listed_names(*folders: Path) -> list[str] | None:
    """Names of the classes by a file beside the labels; None where there is none."""
    for path in (folder / name for folder in folders for name in _NAME_FILES):
        if path.is_file():
            return [line.strip() for line in read_text(path, "names of classes").strip().split("\n")]
    return None


def _place(yaml: Path, root: object, value: object) -> Path | None:
    """The folder or list of images that ``data.yaml`` means, None where it is not there.

    Roboflow writes ``../train/images`` for what is in ``train/images`` beside the file.
    """
    if not isinstance(value, str) or "\0" in f"{value}{root}":
        return None
    folder = yaml.parent
    places = [folder / value.removeprefix("../"), folder / value]
    if isinstance(root, str):
        places[1:1] = [Path(root, value), folder / root / value]
    there = (place for place in places if place.exists())
    return next((Path(os.path.normpath(place)) for place in there), None)


def _images_at(places: list[Path]) -> tuple[Path, list[tuple[str, Path]]]:
    """A folder, and the images of folders and lists as paths below it, each with its label file."""
    folders = [place.absolute() if place.is_dir() else place.absolute().parent for place in places]
    root = Path(os.path.commonpath(folders))
    pairs = []
    for place, folder in zip(places, folders, strict=True):
        for name in images_below(place) if place.is_dir() else _listed_images(place):
            path = folder / name
            pairs.append((path.relative_to(root).as_posix(), _label_place(path).with_suffix(".txt")))
    return root, pairs


def _listed_images(path: Path) -> list[str]:
    lines = enumerate(read_text(path, "a list of images").split("\n"), 1)
    return [check_image_name(line.strip(), f"{path}:{number}") for number, line in lines if line.strip()]


def _label_place(path: Path) -> Path:
    """Where the labels of an image or a folder are: below ``labels`` for the last ``images`` of its path."""
    before, images, after = f"{path.absolute().as_posix()}/".rpartition("/images/")
    return Path(f"{before}/labels/{after}") if images else path


def _warn_of_strays(labels: Path, images: Path, pairs: list[tuple[str, Path]]) -> None:
    """Says which label files are of no image."""
    used = {path.absolute() for _, path in pairs} | {labels.absolute() / name for name in _NAME_FILES}
    strays = [path for path in sorted(labels.absolute().rglob("*.txt")) if path not in used]
    if strays and labels != images:
        warn(f"{labels}: {len(strays)} label files have no image in {images}, e.g. {strays[0].name}")


def _read_part(
    name: str, root: Path, pairs: list[tuple[str, Path]], names: list[str] | None, boxes_first: bool = False
) -> Part:
    """Images and their label files; the numbers that are found are the names where there are none."""
    if not pairs:
        raise DataError(f"{root}: no images for {name or 'these labels'}")
    rows = {path: list(_read_labels(file, names, boxes_first)) for path, file in pairs if file.is_file()}
    if not rows:
        raise DataError(f"{root}: {len(pairs)} images and no label file; expected {pairs[0][1]} and its like")
    numbers = sorted({number for of_image in rows.values() for number, *_ in of_image})
    called = dict(enumerate(names)) if names else {number: str(number) for number in numbers}
    images = []
    for path, _ in pairs:
        of_image = rows.get(path, [])
        boxes = np.reshape([box for _, *box in of_image], (-1, 4))
        images.append(ForeignImage(path, [called[number] for number, *_ in of_image], boxes))
    return Part(name, root, list(called.values()), images)


def _read_labels(file: Path, names: list[str] | None, boxes_first: bool) -> Iterator[list[float]]:
    """Class number and x y w h, normalised, of each line; polygons become the box around them."""
    for number, line in enumerate(read_text(file, "labels").split("\n"), 1):
        if not line.strip():
            continue
        try:
            yolo_class, *values = map(float, line.split())
            if len(values) == 4 or (boxes_first and len(values) > 4):
                box = cxcywh_to_xywh(np.array([values[:4]]))[0].tolist()
            else:
                box = bounds(np.reshape(values, (-1, 2))) if len(values) > 5 else []
            is_class = yolo_class % 1 == 0 and 0 <= yolo_class < 2**31
            # Far outside are pixels; what is not finite would hide in the bounds of a polygon.
            is_box = np.isfinite(values).all() and min(box) >= -1 and max(box) <= 2 and min(box[2:]) >= 0
            if not (is_class and is_box):
                raise ValueError
        except ValueError:
            raise DataError(
                f"{file}:{number}: found {line[:80]!r}; expected 'class cx cy w h' or 'class x1 y1 x2 y2 "
                f"x3 y3 ...', coordinates divided by the image's width and height"
            ) from None
        if names is not None and yolo_class >= len(names):
            raise DataError(f"{file}:{number}: found class {yolo_class:g}; expected 0 to {len(names) - 1}")
        yield [int(yolo_class), *box]


def write_yolo(folder: Path, lists: dict[str, Path], images_dirs: dict[str, Path]) -> tuple[int, int]:
    """Writes a YOLO folder: ``images/<part>`` with links, ``labels/<part>`` and ``data.yaml``.

    A line is ``class cx cy w h``, normalised, classes counted from 0 among those that the lists are labelled
    for. What an earlier export wrote is replaced when all of it is written. Lists and folders of their images
    are given by part (train, val, test); returns the numbers of images and boxes.

    Raises:
        DataError: the folder holds something else, lists are labelled for different classes, an image is not
            there, or two would share a label file.
    """
    labelled = {part: labelled_classes(path) for part, path in lists.items()}
    if len(set(labelled.values())) > 1:
        told = ", ".join(f"{lists[part]} for {' and '.join(names)}" for part, names in labelled.items())
        raise DataError(f"{told}: labelled for different classes; export them apart")
    (names,) = set(labelled.values())
    yaml = folder / "data.yaml"
    ours = yaml.is_file() and read_text(yaml, "data.yaml").startswith(_WRITTEN)
    for place in (folder / "images", folder / "labels", yaml):
        if not ours and (place.exists() or place.is_symlink()):
            raise DataError(f"{place}: there already, not from an export; take another folder")
    folder.mkdir(parents=True, exist_ok=True)
    counts = np.zeros(3, int)
    with TemporaryDirectory(prefix=".tmp-", dir=folder) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        old.mkdir()
        for part, path in lists.items():
            counts += _write_part(new, part, path, images_dirs[part], names)
        parts = "".join(f"{part}: images/{part}\n" for part in lists)
        listed = "".join(f"  {number}: {name}\n" for number, name in enumerate(names))
        write_text(yaml, f"{_WRITTEN}{parts}names:\n{listed}")
        for name in ("images", "labels"):
            if (folder / name).exists():
                (folder / name).replace(old / name)
            (new / name).replace(folder / name)
    if counts[2]:
        warn(f"{counts[2]} boxes of classes that the lists are not labelled for are left out")
    return int(counts[0]), int(counts[1])


def _write_part(folder: Path, part: str, path: Path, images_dir: Path, names: tuple[str, ...]) -> np.ndarray:
    """Writes labels and links of one list; returns the numbers of images, boxes and boxes left out."""
    numbers = {CLASS_LABELS[name]: number for number, name in enumerate(names)}
    counts = np.zeros(3, int)
    for kind in ("images", "labels"):
        (folder / kind / part).mkdir(parents=True)
    for annotation in map(ImageAnnotation.without_regions, iter_annotations(path)):
        place = f"{path}:{annotation.line}"
        name = PurePosixPath(annotation.path)
        if "images" in name.parts[:-1]:
            what = "YOLO would look for its labels beside a folder images; rename it"
            raise DataError(f"{place}: {name}: {what}")
        image, label = folder / "images" / part / name, folder / "labels" / part / name.with_suffix(".txt")
        source = images_dir / name
        if not source.is_file():
            raise DataError(f"{place}: {source}: no such image; give the folder of the images with --images")
        if label.exists():
            raise DataError(f"{place}: {name}: another image has the label file {label.name} already")
        for target in (image, label):
            target.parent.mkdir(parents=True, exist_ok=True)
        image.symlink_to(source.resolve())
        centred = xywh_to_cxcywh(annotation.boxes_xywh_norm).tolist()
        rows = [row for row in zip(annotation.labels.tolist(), centred, strict=True) if row[0] in numbers]
        lines = [f"{numbers[label]} {x:.9f} {y:.9f} {w:.9f} {h:.9f}\n" for label, (x, y, w, h) in rows]
        label.write_text("".join(lines), encoding="utf-8")
        counts += [1, len(lines), len(annotation) - len(lines)]
    return counts
