"""Small data sets, and what else the tests of training share."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.annotations import ImageAnnotation, write_annotations, write_labelled_classes


def make_list(
    folder: Path, images: int, labelled: tuple[str, ...] | None = None, size: int = 80, seed: int = 0
) -> Path:
    """A list of images with a bright square (a face) and a dark upright box (a person) in most of them."""
    rng = np.random.default_rng(seed)
    annotations = []
    for i in range(images):
        image = rng.integers(90, 160, (size, size, 3), np.uint8)
        boxes, labels = [], []
        if i % 4 != 3:
            for label, (width, height), colour in ((1, (20, 20), 250), (2, (20, 50), 10)):
                x, y = rng.integers(0, size - width), rng.integers(0, size - height)
                image[y : y + height, x : x + width] = colour
                if labelled is None or {1: "face", 2: "person"}[label] in labelled:
                    labels.append(label)
                    boxes.append([x / size, y / size, width / size, height / size])
        path = folder / "images" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
        annotations.append(ImageAnnotation(f"{i}.png", labels, boxes))
    write_annotations(folder / "list.txt", annotations)
    if labelled is not None:
        write_labelled_classes(folder / "list.txt", labelled)
    return folder / "list.txt"


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny images gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
