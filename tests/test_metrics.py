"""Further numbers of the Open Images evaluator: by size, over the score, misses, what is taken for what."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings

from data.annotations import ImageAnnotation
from data.predictions import BoxTable
from tests.conftest import table_of
from tests.test_openimages_evaluation import PIXELS, coco_says, dump, images_of_boxes, ragged
from wider_openimagespersonface_evaluate.evaluation import main, score
from wider_openimagespersonface_evaluate.metrics import by_size, confusion, miss_rates


@settings(max_examples=60)
@given(images_of_boxes)
def test_small_medium_and_large_are_those_of_an_independent_evaluator(images):
    found, truths = ragged(images)
    if not len(found) or truths.group_of.all():
        return
    numbers = by_size(score(found, truths)["face"], np.full((len(images), 2), PIXELS))
    for area in ("small", "medium", "large"):
        expected = coco_says(found, truths, area).mean()
        if expected == -1:  # none has this size
            assert math.isnan(numbers[f"coco_ap_{area}"])
        else:
            assert numbers[f"coco_ap_{area}"] == pytest.approx(expected, abs=1e-6)


def test_objects_by_the_side_of_a_square_of_their_area():
    # In an image of 100 x 200: 10 x 10 and 20 x 30 pixels. The first is found, beside one false box of its
    # size; the second is not.
    truths = BoxTable.from_annotations(
        [ImageAnnotation("a.jpg", [1, 1], [[0, 0, 0.05, 0.1], [0.5, 0.5, 0.1, 0.3]])]
    )
    found = table_of([([[0.2, 0.2, 0.05, 0.1], [0, 0, 0.05, 0.1]], [0.9, 0.8], [1, 1])])
    numbers = by_size(score(found, truths)["face"], np.array([[100, 200]]))
    sizes = numbers["ap_by_size"]
    assert list(sizes) == ["0-8", "8-16", "16-32", "32-64", "64-128", "128-256", "256-512", "512-"]
    assert sizes["8-16"] == pytest.approx(0.5) and sizes["16-32"] == 0 and math.isnan(sizes["0-8"])
    assert numbers["coco_ap_small"] == pytest.approx(0.5 * 51 / 101) and math.isnan(numbers["coco_ap_large"])


def test_miss_rate():
    """One false positive in eight images: the first five of the nine rates lie below it."""
    boxes = [[0, 0, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1], [0.2, 0, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]]
    truths = BoxTable.from_annotations(
        [ImageAnnotation("a.jpg", [2] * 5, [*boxes, [0, 0.5, 0.2, 0.2]]), *map(ImageAnnotation, "bcdefgh")]
    )
    truths.group_of = np.array([False] * 4 + [True])
    rows = [(boxes[0], 0.9), ([0, 0.5, 0.1, 0.1], 0.85), ([0.4, 0.2, 0.1, 0.1], 0.8), (boxes[1], 0.7)]
    found = table_of([(*zip(*rows, strict=True), [2] * 4), *[(np.zeros((0, 4)), [], [])] * 7])
    false, missed, average = miss_rates(score(found, truths)["person"])
    assert false.tolist() == [0, 0.125, 0.125] and missed.tolist() == [0.75, 0.75, 0.5]  # the group: ignored
    assert average == pytest.approx(math.exp((5 * math.log(0.75) + 4 * math.log(0.5)) / 9))
    nothing = score(table_of([([], [], [])] * 8), truths)["person"]
    assert miss_rates(nothing)[2] == 1.0


def test_ignore_regions_are_neither_misses_nor_background():
    body, region = [0, 0, 0.1, 0.1], [0.5, 0.5, 0.4, 0.4]
    truths = BoxTable.from_annotations([ImageAnnotation("a.jpg", [2, -2], [body, region])])
    found = table_of([([region, [0.6, 0.6, 0.1, 0.1], body], [0.9, 0.8, 0.7], [2, 2, 2])])
    scores = score(found, truths)
    false, missed, _ = miss_rates(scores["person"])
    assert false.tolist() == [0] and missed.tolist() == [0]
    assert confusion(found, truths, scores, 0.5)["background"]["person"] == 0
    assert scores["person"].numbers()["coco_ap"] == 1


def test_what_is_taken_for_what():
    face, body, crowd = [0, 0, 0.1, 0.1], [0.3, 0.3, 0.2, 0.4], [0.6, 0, 0.3, 0.3]
    truths = BoxTable.from_annotations(
        [
            ImageAnnotation("a.jpg", [1, 2, 2], [face, body, crowd]),
            ImageAnnotation("b.jpg", [1, 2], [face, body]),
        ]
    )
    truths.group_of = np.array([False, False, True, False, False])
    found = table_of(
        [
            # Both right; a person in the group is ignored, a face there is not.
            ([face, body, [0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]], [0.9] * 4, [1, 2, 2, 1]),
            # A person on the face, which is lower than the right one; the person is missed.
            ([face, face], [0.95, 0.9], [2, 1]),
        ]
    )
    matrix = confusion(found, truths, score(found, truths), 0.5)
    assert matrix == {
        "face": {"face": 1, "person": 1, "background": 0},
        "person": {"face": 0, "person": 1, "background": 1},
        "background": {"face": 2, "person": 0, "background": 0},
    }
    truths.verified = {1: np.zeros(2, bool)}
    matrix = confusion(found, truths, score(found, truths), 0.5)
    assert matrix["person"] == {"person": 1, "background": 1} and matrix["background"]["person"] == 1


def test_page_and_json(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("# a.jpg\n1 0.1 0.1 0.2 0.2\n2 0.5 0.5 0.4 0.4\n# b.jpg\n")
    dump(tmp_path / "p", "a", [[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.4, 0.31]], [0.9, 0.8], [1, 2])
    dump(tmp_path / "p", "b", [], [], [])
    arguments = ["-p", str(tmp_path / "p"), "-g", str(tmp_path / "list.txt")]
    output = ["--output", str(tmp_path / "n.json"), "--plot", str(tmp_path / "page.png")]
    (tmp_path / "images").mkdir()
    for name in "ab":
        cv2.imwrite(str(tmp_path / "images" / f"{name}.jpg"), np.zeros((400, 800, 3), np.uint8))
    assert main([*arguments, *output, "--images", str(tmp_path / "images")]) == 0
    shown = capsys.readouterr().out
    assert "AP by size in pixels" in shown and "found at best F1 as" in shown and "miss rate" in shown
    numbers = json.loads((tmp_path / "n.json").read_text())
    person = numbers["classes"]["person"]
    assert person["coco_ap_75"] == 1 and person["coco_ap_large"] == person["coco_ap"] == pytest.approx(0.6)
    assert person["ap_by_size"] == dict.fromkeys(person["ap_by_size"]) | {"128-256": 1}
    assert person["log_average_miss_rate"] == pytest.approx(1e-10)
    assert numbers["confusion"]["person"] == {"face": 0, "person": 1, "background": 0}
    assert cv2.imread(str(tmp_path / "page.png")).shape[1] > 1500
    (tmp_path / "images" / "b.jpg").unlink()
    assert main([*arguments, *output, "--images", str(tmp_path / "images")]) == 0
    assert "nothing is scored by size" in capsys.readouterr().err
    assert "ap_by_size" not in json.loads((tmp_path / "n.json").read_text())["classes"]["face"]
    assert main([*arguments, *output, "--protocol", "legacy"]) == 0
    assert "confusion" not in json.loads((tmp_path / "n.json").read_text())
