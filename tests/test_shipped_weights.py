"""The weights in weights/: what they find in the two public-domain photos."""

from pathlib import Path

import numpy as np
import pytest

from utils.arguments import DEFAULT_WEIGHTS
from utils.detector import Detector
from utils.images import read_image
from utils.inputs import sample_photos

#: xyxy in pixels by label, checked by eye in the annotated pictures.
EXPECTED = {
    "grace_hopper.jpg": {1: [176, 112, 349, 329], 2: [32, 54, 510, 611]},
    "astronaut.png": {1: [181, 60, 270, 171], 2: [41, 69, 399, 530]},
}


@pytest.mark.parametrize("photo", sample_photos(), ids=lambda path: Path(path).name)
def test_one_face_and_one_person(photo):
    found = Detector.from_checkpoint(DEFAULT_WEIGHTS, "mobile0.25")(read_image(photo)).above(0.5)
    assert found.labels.tolist() == [1, 2]
    for label, box in zip(found.labels.tolist(), found.boxes, strict=True):
        assert np.abs(box - EXPECTED[Path(photo).name][label]).max() < 2


def test_they_are_small():
    assert DEFAULT_WEIGHTS.stat().st_size < 2_000_000
