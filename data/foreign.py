"""Annotated sets of other tools in memory, and what their classes are called here."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.annotations import ImageAnnotation
from data.config import CLASS_LABELS, label_name
from utils.cli import DataError, UsageError, warn

#: Names of the parts of a set, and what other tools call them.
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test", "testing": "test"}

#: Their order; "" is a set without parts.
PARTS = ["train", "val", "test", ""]

#: The class of boxes that are left out.
NONE = "none"

_FACES = "face", "faces", "human face", "human faces"
_PERSONS = (
    *("person", "persons", "people", "pedestrian", "pedestrians", "human", "humans"),
    *("man", "men", "woman", "women", "boy", "boys", "girl", "girls", "child", "children"),
)
#: Labels by name of the classes and of their ignore regions.
LABELS = CLASS_LABELS | {label_name(-label): -label for label in CLASS_LABELS.values()}

_KNOWN = dict.fromkeys(_FACES, "face") | dict.fromkeys(_PERSONS, "person") | {name: name for name in LABELS}

#: Words of names that may mean a face or a person, or a part of one: somebody has to say.
_FACE_WORDS = {"face", "faces", "head", "heads", "facial", "mask"}
_PERSON_WORDS = {*_PERSONS, "body", "bodies", "rider", "cyclist", "player", "worker", "crowd"}


class ForeignImage(NamedTuple):
    """An image's path, what the set calls each of its N boxes, and the boxes, float64[N, 4], normalised."""

    path: str
    names: list[str]
    boxes_xywh_norm: np.ndarray


@dataclass
class Part:
    """One part of a foreign set, e.g. what it trains on.

    Attributes:
        name: train, val, test, or "" where the set has no parts.
        images_dir: folder of the images; None: not found.
        names: of all its classes; numbers as text where nothing names them.
    """

    name: str
    images_dir: Path | None
    names: list[str]
    images: list[ForeignImage]

    def counts(self) -> Counter[str]:
        """Boxes by name."""
        return Counter(name for image in self.images for name in image.names)

    def annotations(self, classes: dict[str, str]) -> Iterator[ImageAnnotation]:
        """The images with the boxes and regions that ``classes`` (by name: one of `LABELS`, or none) gives a
        label."""
        for path, names, boxes in self.images:
            labels = np.array([LABELS.get(classes[name], 0) for name in names], np.int64)
            yield ImageAnnotation(path, labels[labels != 0], boxes[labels != 0])


def split_folders(folder: Path) -> list[tuple[str, Path]]:
    """Part and folder of ``train``, ``valid``, ``test`` and their like in a folder, if it is one."""
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [(SPLITS[p.name.lower()], p) for p in places if p.name.lower() in SPLITS and p.is_dir()]
    return sorted(found, key=lambda one: PARTS.index(one[0]))


def bounds(points: np.ndarray) -> list[float]:
    """Bounding box x y w h of corners float[N, 2]."""
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def warn_of_missing(part: Part, source: Path) -> None:
    """Says which images of a part have no file."""
    names = [image.path for image in part.images]
    if part.images_dir is None:
        warn(f"{source}: its images are not there, e.g. {names[0]}; give their folder with --images")
        return
    missing = [name for name in names if not (part.images_dir / name).is_file()]
    if missing:
        count = f"{len(missing)} of {len(names)} images"
        warn(f"{source}: {count} are not in {part.images_dir}, e.g. {missing[0]}")


def tell_next(lists: dict[str, Path]) -> None:
    """Prints what to do with new lists, given by part: look at one, and train, or first split it."""
    first = lists.get("train") or next(iter(lists.values()))
    root = first.parent if "" in lists else first.parent.parent
    look = ["prep_data.py", "draw", first, "--output", first.with_suffix(".jpg")]
    if "train" in lists and "val" in lists:
        then = ["train_changeclass.py", "--preset", "finetune", "--training_dataset", first]
        run = Path("runs", root.absolute().name)
        then += ["--val_dataset", lists["val"], "--save_folder", run]
    else:
        then = ["prep_data.py", "split", first, "--save_folder", root if "" in lists else f"{root}_split"]
    for title, words in (("look", look), ("next", then)):
        print(f"{title}: {shlex.join(['python3', *map(str, words)])}")


def parse_categories(texts: Iterable[str], classes: Iterable[str]) -> dict[str, str]:
    """Class name by category, of texts ``NAME=CLASS``.

    Raises:
        UsageError: a text of another form, or with a class that is none of ``classes``.
    """
    found = {}
    for text in texts:
        name, _, class_name = text.rpartition("=")
        if not name or class_name not in classes:
            raise UsageError(f"--category {text}: expected NAME=CLASS with one of {', '.join(classes)}")
        found[name] = class_name
    return found


def match_classes(source: Path, parts: list[Part], given: dict[str, str]) -> dict[str, str]:
    """One of `LABELS` or none by name of the parts, by what a name says; numbers are never guessed.

    Args:
        source: of the parts, for errors.
        parts: of one set.
        given: classes by name that somebody has decided, see `parse_categories`.

    Raises:
        DataError: a name with boxes that is unclear, or no name that is a face or a person; with the option
            to give.
        UsageError: ``given`` has a name that the set has not.
    """
    counts = sum((part.counts() for part in parts), Counter())
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    numbered = all(name.isdecimal() for name in names)
    if unknown := [name for name in given if name not in names and not (numbered and name.isdecimal())]:
        raise UsageError(f"--category {unknown[0]}: {source} has no such class; it has {', '.join(names)}")
    found, unclear = {}, []
    for name in names:
        words = re.findall(r"[^\W_]+", name.lower())
        found[name] = given.get(name) or _KNOWN.get(" ".join(words), NONE)
        hints = {*words} & {*_FACE_WORDS, *_PERSON_WORDS}
        if name not in given and found[name] == NONE and hints and counts[name]:
            unclear.append((name, "face" if hints & _FACE_WORDS else "person"))
    if unclear:
        listed = ", ".join(f"{name} ({counts[name]} boxes)" for name, _ in unclear)
        options = " ".join(f'"{n}={own}"' if " " in n else f"{n}={own}" for n, own in unclear)
        raise DataError(
            f"{source}: is it a face, a person, or neither: {listed}? Say so, e.g. --category {options} "
            f"(or =none to leave out)"
        )
    if not set(found.values()) & set(CLASS_LABELS) and not set(given.values()) & set(CLASS_LABELS):
        listed = ", ".join(f"{name} ({counts[name]} boxes)" for name in names) or "no class at all"
        example = next(iter(names), "0")
        kind = "its classes have no names" if numbered else "none of its categories is face or person by name"
        raise DataError(f"{source}: {kind}: {listed}; say which is, e.g. --category {example}=person")
    return found
