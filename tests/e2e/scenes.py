"""Generated scenes: drawn faces and figures with exact boxes, in the layouts that the data sets come in.

    python3 -m tests.e2e.scenes FOLDER      # 24 scenes a split: FOLDER/mirror and FOLDER/wider

A figure is a person with a face on it; a portrait is a face alone; a tree is neither.
"""

from __future__ import annotations

import csv
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks.bench_evaluation import write_mat_files
from data.annotations import ImageAnnotation
from data.config import CLASS_LABELS
from data.download import BOXES, CLASS_DESCRIPTIONS, IMAGE_LABELS, MIAP, SPLITS
from data.open_images import LABEL_IDS
from utils.images import write_image

HEIGHT, WIDTH = 240, 320

#: Label ids of Open Images by display name; the tree must come into no list.
LABELS = {**LABEL_IDS["face"], **LABEL_IDS["person"], "Tree": "/m/07j7r"}
PERSONS = tuple(LABEL_IDS["person"])
NAMES = ("Human face", *PERSONS)
EVENTS = ("0--Parade", "12--Group")

_SLOTS = 3  # side by side, so that objects are whole and boxes do not overlap


@dataclass
class Scene:
    """An image and what is drawn on it.

    Attributes:
        image: uint8[HEIGHT, WIDTH, 3], BGR.
        objects: display name of Open Images and x, y, width, height in pixels.
    """

    image: np.ndarray
    objects: list[tuple[str, list[int]]]

    def annotation(self, path: str, names: tuple[str, ...] = NAMES) -> ImageAnnotation:
        """The faces and persons among ``names``."""
        chosen = [(name, box) for name, box in self.objects if name in names]
        labels = [CLASS_LABELS["face" if name == "Human face" else "person"] for name, _ in chosen]
        boxes = np.array([box for _, box in chosen], float).reshape(-1, 4)
        return ImageAnnotation(path, labels, boxes / [WIDTH, HEIGHT, WIDTH, HEIGHT])


def make_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes that differ in everything; the same ones for the same seed. Every sixth is empty."""
    return [_scene(np.random.default_rng([seed, i]), empty=i % 6 == 5) for i in range(count)]


def _scene(random: np.random.Generator, empty: bool) -> Scene:
    colours = random.integers(60, 200, (4, 5, 3), np.uint8)
    image = cv2.resize(colours, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    objects: list[tuple[str, list[int]]] = []
    slot = WIDTH // _SLOTS
    kinds = random.permutation(["figure", "portrait", "figure", "tree", "nothing"])[:_SLOTS]
    for i, kind in enumerate([] if empty else kinds):
        layer = np.zeros((HEIGHT, WIDTH, 4), np.uint8)  # the last channel says which pixels are drawn on
        middle = slot * i + slot // 2 + int(random.integers(-2, 3))
        if kind == "figure":
            height = int(random.integers(140, 190))
            top = int(random.integers(5, HEIGHT - 5 - height))
            face = _figure(layer, random, middle, top, height)
            objects += [(str(random.choice(PERSONS)), _extent(layer)), ("Human face", face)]
        elif kind == "portrait":
            half = int(random.integers(20, 55))
            centre = int(random.integers(half + 10, HEIGHT - half - 10))
            objects.append(("Human face", _face(layer, random, middle, centre, half)))
        elif kind == "tree":
            cv2.rectangle(layer, (middle - 5, 120), (middle + 5, 220), (30, 60, 90, 255), -1)
            cv2.circle(layer, (middle, 90), 40, (40, int(random.integers(90, 160)), 40, 255), -1)
            objects.append(("Tree", _extent(layer)))
        image = np.where(layer[..., 3:] > 0, layer[..., :3], image)
    noisy = cv2.GaussianBlur(image, (3, 3), 0) + random.normal(0, 4, image.shape)
    return Scene(noisy.clip(0, 255).astype(np.uint8), objects)


def _figure(layer: np.ndarray, random: np.random.Generator, x: int, top: int, height: int) -> list[int]:
    """Legs, torso, arms and a head; returns the box of the face."""
    head = height // 7
    shirt, trousers = ([*map(int, random.integers(20, 230, 3)), 255] for _ in range(2))
    neck, waist, feet = top + 2 * head, top + height // 2, top + height
    for side in (-1, 1):
        cv2.line(layer, (x + side * head // 2, waist), (x + side * head, feet), trousers, head // 2)
        hand = x + side * head * 7 // 4, waist + head
        cv2.line(layer, (x + side * head, neck + 4), hand, shirt, head // 3)
    cv2.rectangle(layer, (x - head, neck), (x + head, waist + head // 2), shirt, -1)
    return _face(layer, random, x, top + head, head)


def _face(layer: np.ndarray, random: np.random.Generator, x: int, y: int, half: int) -> list[int]:
    """Hair and an oval with eyes, brows, nose and mouth around (x, y); returns the box of the oval."""
    across, line = half * 3 // 4, max(1, half // 12)
    tone = float(random.uniform(0.6, 1.0))
    skin, shade = [150 * tone, 185 * tone, 235 * tone, 255], [90 * tone, 120 * tone, 170 * tone, 255]
    dark = [20, 20, 25, 255]
    cv2.ellipse(layer, (x, y), (across, half), 0, 0, 360, skin, -1)
    cv2.ellipse(layer, (x, y - half // 2), (across, half // 2), 0, 180, 360, [30, 40, 60, 255], -1)
    for side in (-1, 1):
        eye = x + side * across * 2 // 5, y - half // 8
        cv2.ellipse(layer, eye, (half // 6, half // 10), 0, 0, 360, [240, 240, 240, 255], -1)
        cv2.circle(layer, eye, max(1, half // 12), dark, -1)
        (left, right), brow = (eye[0] - half // 6, eye[0] + half // 6), eye[1] - half // 4
        cv2.line(layer, (left, brow), (right, brow), dark, line)
    cv2.line(layer, (x, y), (x + half // 10, y + half // 4), shade, line)
    cv2.line(layer, (x - half // 10, y + half // 4), (x + half // 10, y + half // 4), shade, line)
    cv2.ellipse(layer, (x, y + half // 2), (across // 3, half // 9), 0, 0, 360, [70, 60, 180, 255], -1)
    return [x - across, y - half, 2 * across + 1, 2 * half + 1]


def _extent(layer: np.ndarray) -> list[int]:
    return list(cv2.boundingRect(layer[..., 3]))


def write_open_images(mirror: Path, split: str, scenes: list[Scene]) -> list[ImageAnnotation]:
    """Adds a split to a folder with the layout of Open Images' servers: JPEGs, box CSV, MIAP's and
    verified image labels. Served by HTTP it is what ``prep_data.py download --base_url`` wants.

    Returns:
        The truth, for every scene, under the name that a downloaded image has.
    """
    ids = [f"{SPLITS.index(split)}{i:015x}" for i in range(len(scenes))]
    boxes, miap, verified = [], [], []
    for image_id, scene in zip(ids, scenes, strict=True):
        write_image(mirror / split / f"{image_id}.jpg", scene.image)
        for name, (x, y, w, h) in scene.objects:
            box = [x / WIDTH, (x + w) / WIDTH, y / HEIGHT, (y + h) / HEIGHT, 0, 0, 0, 0, 0]
            boxes.append([image_id, "xclick", LABELS[name], 1, *box])
            if name in PERSONS:
                miap.append([image_id, LABELS["Person"], 1, *box, "Unknown", "Unknown"])
        there = {"Person" if name in PERSONS else name for name, _ in scene.objects}
        for name in ("Human face", "Person"):
            verified.append([image_id, "verification", LABELS[name], int(name in there)])
    source = "ImageID,Source,LabelName,Confidence"
    columns = "XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
    extra = "IsDepictionOf,IsInsideOf,GenderPresentation,AgePresentation"
    miap_path = mirror / MIAP.format(split="val" if split == "validation" else split)
    _write_csv(mirror / BOXES[split], f"{source},{columns},IsDepiction,IsInside", boxes)
    _write_csv(miap_path, f"ImageID,LabelName,Confidence,{columns},{extra}", miap)
    _write_csv(mirror / CLASS_DESCRIPTIONS, "LabelName,DisplayName", [(v, k) for k, v in LABELS.items()])
    _write_csv(mirror / IMAGE_LABELS.format(split=split), source, verified)
    return [scene.annotation(f"{image_id}.jpg") for image_id, scene in zip(ids, scenes, strict=True)]


def _write_csv(path: Path, header: str, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header.split(","), *rows])


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """A server of the files below ``folder`` on this machine; yields its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def write_wider(folder: Path, train: list[Scene], val: list[Scene]) -> list[list[ImageAnnotation]]:
    """Writes the four zip files of WIDER FACE as its authors offer them: images by event, annotation text
    (faces alone), and the validation faces as .mat files (easy from 25 pixels, medium from 15, hard all).

    Returns:
        The truth of both parts, faces alone.
    """
    truths = []
    for part, scenes in (("train", train), ("val", val)):
        named, text = [], []
        for i, scene in enumerate(scenes):
            event = EVENTS[i % len(EVENTS)]
            name = f"{event}/{event.replace('--', '_')}_{i}.jpg"
            write_image(folder / f"WIDER_{part}" / "images" / name, scene.image)
            named.append(scene.annotation(name, ("Human face",)))
            faces = [box for kind, box in scene.objects if kind == "Human face"]
            rows = [" ".join(map(str, [*box, 0, 0, 0, 0, 0, 0])) for box in faces or [[0, 0, 0, 0]]]
            text += [name, str(len(faces)), *rows]
        path = folder / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
        truths.append(named)
    (folder / "eval_tools").mkdir()
    write_mat_files(folder / "eval_tools" / "ground_truth", truths[1], (HEIGHT, WIDTH))
    for name in ("WIDER_train", "WIDER_val", "wider_face_split", "eval_tools"):
        shutil.make_archive(str(folder / name), "zip", folder, name)
        shutil.rmtree(folder / name)
    return truths


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for number, split_name in enumerate(SPLITS):
        write_open_images(root / "mirror", split_name, make_scenes(24, number))
    write_wider(root / "wider", make_scenes(24, 10), make_scenes(24, 11))
