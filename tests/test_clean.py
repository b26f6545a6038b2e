"""Cleaning: each rule by hand, and against a slow plain version."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import clean as clean_module
from data.annotations import ImageAnnotation, read_annotations, write_annotations, write_labelled_classes
from data.clean import clean_image, iter_joined
from tests.conftest import prep
from utils.images import read_image, write_image


def cleaned(labels, boxes, **limits):
    annotation, findings = clean_image(ImageAnnotation("a.jpg", labels, boxes, 7), **limits)
    return annotation, [f.rule for f in findings]


def test_nothing_to_clean():
    annotation, rules = cleaned([], [])
    assert len(annotation) == 0
    assert rules == []


@pytest.mark.parametrize(
    ("box", "expected", "rule"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4], None),
        ([-0.1, 0.2, 0.3, 0.4], [0, 0.2, 0.2, 0.4], "clipped"),
        ([0.9, 0.8, 0.3, 0.4], [0.9, 0.8, 0.1, 0.2], "clipped"),
        ([0, 0, 1 + 1e-12, 1], [0, 0, 1 + 1e-12, 1], None),
        ([1.1, 0.2, 0.3, 0.4], None, "outside"),
        ([-0.5, 0.2, 0.3, 0.4], None, "outside"),
        ([0.1, 0.2, 0, 0.4], None, "degenerate"),
        ([0.1, 0.2, 0.3, -0.1], None, "degenerate"),
    ],
)
def test_one_box(box, expected, rule):
    annotation, rules = cleaned([2], [box])
    assert rules == ([rule] if rule else [])
    wanted = np.reshape([] if expected is None else expected, (-1, 4))
    np.testing.assert_allclose(annotation.boxes_xywh_norm, wanted, atol=1e-12)


def test_repeats_merge_within_a_class_and_the_first_stays():
    first, near, far = [0.1, 0.1, 0.4, 0.4], [0.1, 0.1, 0.4, 0.42], [0.3, 0.1, 0.4, 0.4]
    annotation, rules = cleaned([2, 1, 2, 2], [first, first, near, far])
    assert rules == ["repeated"]
    np.testing.assert_array_equal(annotation.boxes_xywh_norm, [first, first, far])
    np.testing.assert_array_equal(annotation.labels, [2, 1, 2])
    assert cleaned([2, 2], [first, near], merge_iou=0.96)[1] == []


def test_ignore_regions_are_classes_of_their_own():
    whole, face = [0.1, 0.1, 0.8, 0.8], [0.2, 0.2, 0.1, 0.1]
    annotation, rules = cleaned([-2, 2, -1, -2, 1], [whole, whole, whole, whole, face])
    assert annotation.labels.tolist() == [-2, 2, -1, 1] and rules == ["repeated"]
    # A face within a region is not within a person.
    assert cleaned([-2, 1], [whole, face])[1] == ["face_outside"]


def test_small_boxes_and_faces_outside_of_persons():
    assert cleaned([2], [[0, 0, 0.01, 0.5]], min_side=0.01)[1] == ["degenerate"]
    person, inside, half, outside = (
        [0, 0, 0.5, 1],
        [0.1, 0, 0.1, 0.1],
        [0.46, 0, 0.1, 0.1],
        [0.7, 0, 0.1, 0.1],
    )
    annotation, rules = cleaned([2, 1, 1, 1], [person, inside, half, outside])
    assert rules == ["face_outside", "face_outside"]
    assert len(annotation) == 4
    assert cleaned([1], [inside])[1] == ["face_outside"]
    assert cleaned([1], [inside], judge_faces=False)[1] == []


def test_many_boxes_in_one_image_take_little_memory():
    """All pairs at once would be 600 MB."""
    chance = np.random.default_rng(0)
    boxes = np.column_stack([chance.random((5000, 2)) * 0.9, np.full((5000, 2), 0.001)])
    image = ImageAnnotation("a.jpg", [1, 2] * 2500, boxes)
    tracemalloc.start()
    try:
        _, findings = clean_image(image)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert sum(finding.rule == "face_outside" for finding in findings) > 2400


def plain(image: ImageAnnotation, min_side: float, merge_iou: float) -> list[tuple[int, tuple]]:
    """The slow plain version: box by box."""

    def iou(a, b):
        w = min(a[2], b[2]) - max(a[0], b[0])
        h = min(a[3], b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    kept = []
    for label, (x, y, w, h) in zip(image.labels.tolist(), image.boxes_xywh_norm.tolist(), strict=True):
        box = tuple(min(max(v, 0), 1) for v in (x, y, x + w, y + h))
        if box[2] - box[0] <= min_side or box[3] - box[1] <= min_side:
            continue
        if all(other != label or iou(box, b) <= merge_iou for other, b in kept):
            kept.append((label, box))
    return kept


numbers = st.integers(-3, 13).map(lambda i: i / 10)
rows_of_list = st.lists(st.tuples(st.sampled_from([1, 2]), *[numbers] * 4), max_size=9)


@settings(max_examples=300, deadline=None)
@given(rows=rows_of_list, iou=st.sampled_from([0.35, 0.52, 0.9]))
def test_same_as_the_plain_version(rows, iou):
    image = ImageAnnotation("a.jpg", [row[0] for row in rows], [row[1:] for row in rows])
    result, findings = clean_image(image, 0.05, iou)
    expected = plain(image, 0.05, iou)
    assert result.labels.tolist() == [label for label, _ in expected]
    corners = result.boxes_xywh_norm.copy()
    corners[:, 2:] += corners[:, :2]
    np.testing.assert_allclose(corners, np.reshape([b for _, b in expected], (-1, 4)), atol=1e-9)
    assert len(image) - len(result) == sum(f.rule in clean_module.REMOVING for f in findings)
    again, findings = clean_image(result, 0.05, iou)
    assert len(again) == len(result)
    assert {f.rule for f in findings} <= {"face_outside"}


def test_images_named_again_are_joined(tmp_path):
    path = tmp_path / "list.txt"
    box = [[0, 0, 0.5, 0.5]]
    given_ = [("a", [1]), ("b", [2]), ("a", [2]), ("c", []), ("a", [1])]
    write_annotations(path, [ImageAnnotation(n, labels, box * len(labels)) for n, labels in given_])
    counts = clean_module.Counter()
    joined = list(iter_joined(path, counts))
    assert [(a.path, a.labels.tolist()) for a in joined] == [("a", [1, 2, 1]), ("b", [2]), ("c", [])]
    assert counts["images joined"] == 2


def test_command_reports_counts_findings_and_a_sheet(tmp_path, capsys):
    path = tmp_path / "list.txt"
    write_image(tmp_path / "images" / "a.png", np.full((60, 90, 3), 200, np.uint8))
    boxes = [[0.1, 0.1, 0.4, 0.4], [0.1, 0.1, 0.4, 0.4], [-0.1, 0, 0.3, 0.3], [2, 2, 1, 1]]
    write_annotations(path, [ImageAnnotation("a.png", [2, 2, 1, 1], boxes), ImageAnnotation("gone.png")])
    output = tmp_path / "out" / "list.txt"
    assert prep("clean", path, "--output", output) == 0
    printed = capsys.readouterr().out
    assert "repeated, dropped         1" in printed
    findings = [
        json.loads(line) for line in (tmp_path / "out" / "list.findings.jsonl").read_text().splitlines()
    ]
    assert [f["rule"] for f in findings] == ["repeated", "clipped", "face_outside", "outside"]
    assert findings[0] == {
        "path": "a.png",
        "line": 1,
        "rule": "repeated",
        "label": 2,
        "box_xywh_norm": boxes[1],
    }
    assert read_image(tmp_path / "out" / "list.findings.jpg").shape == (256, 4 * 242 - 2, 3)
    assert prep("clean", output, "--output", output) == 0
    assert [len(a) for a in read_annotations(output)] == [2, 0]
    write_labelled_classes(path, ["face"])
    assert prep("clean", path, "--output", tmp_path / "faces" / "list.txt") == 0
    assert (
        "face_outside, kept        0" in capsys.readouterr().out.split("faces/")[0].rsplit("boxes read", 1)[1]
    )
    with pytest.raises(SystemExit, match="2"):
        prep("clean", path, "--output", output, "--merge_iou", "90")


def test_published_list(reference, tmp_path):
    """openimages, then clean: the published list but for its repeats.

    71 of its 30,055 boxes repeat another one of their class with an IoU above 0.9: 15 in the five images
    that it has twice, 56 others. All that is dropped is one of those; no other value changes.
    """
    (source,) = (reference / "openimages_val").glob("*.csv.gz")
    first, second = tmp_path / "a" / "list.txt", tmp_path / "b" / "list.txt"
    assert prep("openimages", source, "--output", first) == 0
    assert prep("clean", first, "--output", second) == 0
    findings = [
        json.loads(line) for line in (tmp_path / "b" / "list.findings.jsonl").read_text().splitlines()
    ]
    dropped = [f for f in findings if f["rule"] != "face_outside"]
    assert {f["rule"] for f in dropped} == {"repeated"}
    assert len(dropped) == 71
    result = {a.path: a for a in read_annotations(second)}
    before = {a.path: a for a in read_annotations(first)}
    assert list(result) == list(before)
    assert sum(map(len, result.values())) == 30055 - 71
    for path, annotation in result.items():
        out = [f["box_xywh_norm"] for f in dropped if f["path"] == path]
        if not out:
            np.testing.assert_array_equal(annotation.boxes_xywh_norm, before[path].boxes_xywh_norm)
        else:
            assert len(annotation) == len(before[path]) - len(out)
