"""The weights in weights/: what they find in the two public-domain photos, and the run that made them."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import numpy as np
import pytest

from models.arguments import DEFAULT_WEIGHTS
from models.detector import Detector
from results.runs import read_runs
from tests.training_data import make_list, one_thread  # noqa: F401
from train_changeclass import main as train
from utils.image_names import sample_photos
from utils.images import read_image

#: The first of the runs that made them.
RUN = "run4"

#: Label and xyxy in pixels of what scores above 0.5 in one look, checked by eye in the annotated images: a
#: face and its person, two boxes of a flag that is taken for persons, and a part of the person.
EXPECTED = {
    "grace_hopper.jpg": [
        (1, [177, 100, 352, 335]),
        (2, [60, 50, 594, 572]),
        (2, [-3, 4, 124, 437]),
        (2, [-38, -16, 363, 500]),
        (2, [41, -1, 141, 242]),
    ],
    "astronaut.png": [(1, [178, 58, 273, 179]), (2, [34, -10, 369, 491])],
}


@pytest.mark.parametrize("photo", sample_photos(), ids=lambda path: Path(path).name)
def test_what_they_find_in_the_sample_photos(photo):
    found = Detector.from_checkpoint(DEFAULT_WEIGHTS, "mobile0.25", scales=1)(read_image(photo)).above(0.5)
    labels, boxes = zip(*EXPECTED[Path(photo).name], strict=True)
    assert found.labels.tolist() == list(labels)
    assert np.abs(found.boxes - boxes).max() < 2


def test_they_are_small():
    assert DEFAULT_WEIGHTS.stat().st_size < 2_000_000


def test_the_stored_arguments_train(reference, tmp_path, monkeypatch):
    """The run of the weights' card, on small generated images and for a few steps, lowers the loss."""
    argv = read_runs()[RUN]["argv"]
    seeds = {}
    for i, word in enumerate(argv):
        if word.endswith(".txt"):
            label = "person" if word.startswith("person") else "face"
            seed = seeds.setdefault(word, len(seeds))
            argv[i] = str(make_list(tmp_path / str(seed), 8, [label], seed=seed))
    argv += shlex.split("--image_size 64 --batch_size 4 --epochs 4 --warmup 1 --num_workers 0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(reference / "weights")
    assert train(argv) == 0
    with (tmp_path / "runs" / RUN / "results.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]  # the start has none
    assert losses[-1] < 0.9 * losses[0]
