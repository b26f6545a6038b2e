"""The Open Images evaluator: reference numbers, plain loops, COCO's evaluator, hand-made cases, bad input."""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widerface_evaluate.matching
from benchmarks.bench_evaluation import make_set
from data.annotations import ImageAnnotation, write_annotations
from data.predictions import BoxTable, prediction_path, write_prediction
from tests.conftest import json_of, table_of
from tests.plain.evaluation import class_average_precision, openimages
from utils.box_utils import xyxy_to_xywh
from utils.cli import DataError, UsageError
from wider_openimagespersonface_evaluate import matching
from wider_openimagespersonface_evaluate.evaluation import evaluate, main, read_csv, read_ground_truth, score

compiled = pytest.mark.skipif(matching.kernel is None, reason="kernels are not built (make build)")


@pytest.fixture
def made(tmp_path) -> tuple[Path, Path]:
    """A folder of 40 made prediction files and their annotation list."""
    annotations = make_set(tmp_path / "both", 40, 30, pixels=False)
    write_annotations(tmp_path / "list.txt", annotations)
    return tmp_path / "both", tmp_path / "list.txt"


scores_of = partial(json_of, main)


def aps(numbers: dict) -> list[float]:
    return [one["ap"] for one in numbers["classes"].values()]


def dump(folder: Path, name: str, boxes: list, scores: list, labels: list) -> None:
    boxes = np.array(boxes, float).reshape(-1, 4)
    write_prediction(
        prediction_path(folder, name), Path(name).name, boxes, np.array(scores, float), np.array(labels, int)
    )


def test_reference_numbers(reference, tmp_path):
    with zipfile.ZipFile(reference / "fixtures" / "openimages_600_synthetic_predictions.zip") as file:
        file.extractall(tmp_path)
    arguments = "-p", tmp_path / "predictions", "-g", tmp_path / "wider_val_gt.txt"
    expected = [0.6213054071003925, 0.654374825835573]
    assert aps(scores_of(*arguments, "--protocol", "legacy")) == pytest.approx(expected, rel=0, abs=1e-12)
    # Correct overlaps are smaller, and false positives count in images without the class.
    assert all(np.array(aps(scores_of(*arguments))) < np.array(expected) - 0.1)


# Few different corners, so that boxes coincide, scores are equal and overlaps lie on the threshold.
side = st.one_of(st.integers(0, 4).map(lambda value: value / 4), st.floats(0, 1))
box = st.tuples(side, side, side, side)
detection = st.tuples(box, st.one_of(st.sampled_from([0.25, 0.5]), st.floats(0, 1)))
truth = st.tuples(side, side, side, side, st.booleans())
images_of_boxes = st.lists(
    st.tuples(st.lists(detection, max_size=8), st.lists(truth, max_size=5)), min_size=1, max_size=4
)


def ragged(images) -> tuple[BoxTable, BoxTable]:
    """One class: detections and truths of hypothesis' images, the last column of a truth being group-of."""
    parts = [
        (np.array([d[0] for d in rows], float), [d[1] for d in rows], [1] * len(rows)) for rows, _ in images
    ]
    truths = BoxTable.from_annotations(
        [ImageAnnotation(f"{i}.jpg", [1] * len(t), [row[:4] for row in t]) for i, (_, t) in enumerate(images)]
    )
    truths.group_of = np.array([row[4] for _, t in images for row in t], bool)
    return table_of(parts), truths


@given(images_of_boxes, st.sampled_from([0.3, 0.5]))
def test_all_point_ap_is_that_of_the_plain_loops(images, iou):
    found, truths = ragged(images)
    ap = score(found, truths, iou)["face"].numbers()["ap"]
    if not len(truths.labels):
        assert math.isnan(ap)
        return
    plain = [
        (
            xyxy_to_xywh(found.boxes[slice(*found.offsets[i : i + 2])]),
            found.scores[slice(*found.offsets[i : i + 2])],
            xyxy_to_xywh(truths.boxes[slice(*truths.offsets[i : i + 2])]),
            truths.group_of[slice(*truths.offsets[i : i + 2])],
        )
        for i in range(len(images))
    ]
    assert ap == pytest.approx(class_average_precision(plain, iou), rel=0, abs=1e-12)


#: Sides of the square images that boxes are given to COCO's evaluator in.
PIXELS = 128


def coco_says(found: BoxTable, truths: BoxTable, area: str = "all") -> np.ndarray:
    """AP at 0.5, 0.55 .. 0.95 by faster-coco-eval, of an area (-1: no truth); groups are its crowds."""
    from faster_coco_eval import COCO, COCOeval_faster

    def rows(boxes, index, **more):
        boxes = xyxy_to_xywh(boxes) * PIXELS
        return [
            {"id": i + 1, "image_id": int(image) + 1, "category_id": 1, "bbox": row.tolist()}
            | {"area": row[2] * row[3], **{key: values[i].item() for key, values in more.items()}}
            for i, (row, image) in enumerate(zip(boxes, index, strict=True))
        ]

    images = [{"id": i + 1, "width": PIXELS, "height": PIXELS} for i in range(len(truths.images))]
    boxes = rows(truths.boxes, truths.image_index, iscrowd=truths.group_of.astype(int))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "face"}]})
        detected = truth.loadRes(rows(found.boxes, found.image_index, score=found.scores))
        run = COCOeval_faster(truth, detected, "bbox", print_function=lambda *_: None)
        run.evaluate()
        run.accumulate()
    which = run.params.areaRngLbl.index(area)
    return run.eval["precision"][:, :, 0, which, -1].mean(1)


@settings(max_examples=60)
@given(images_of_boxes)
def test_coco_columns_are_those_of_an_independent_evaluator(images):
    found, truths = ragged(images)
    numbers = score(found, truths)["face"].numbers()
    if not len(found) or truths.group_of.all():
        return
    expected = coco_says(found, truths)
    assert numbers["coco_ap_50"] == pytest.approx(expected[0], abs=1e-6)
    assert numbers["coco_ap"] == pytest.approx(expected.mean(), abs=1e-6)


def test_coco_looks_at_a_hundred_detections():
    rng = np.random.default_rng(3)
    images = []
    for _ in range(4):
        sides = rng.uniform(0.05, 0.3, (40, 2))
        boxes = np.concatenate([rng.uniform(0, 0.7, (40, 2)), sides], 1)
        near = boxes[rng.integers(0, 40, 150)] * rng.uniform(0.9, 1.1, (150, 4))
        images.append(
            ([*zip(near.tolist(), rng.random(150), strict=True)], [(*row, False) for row in boxes.tolist()])
        )
    found, truths = ragged(images)
    numbers, expected = score(found, truths)["face"].numbers(), coco_says(found, truths)
    assert 0.05 < expected.mean() < 0.95
    assert numbers["coco_ap_50"] == pytest.approx(expected[0], abs=1e-6)
    assert numbers["coco_ap"] == pytest.approx(expected.mean(), abs=1e-6)


@compiled
@given(images_of_boxes, st.integers(0, 2**20))
def test_numpy_and_the_kernel_give_the_same(images, seed):
    found, truths = ragged(images)
    found, thresholds = found.by_score(), np.array([0.3, 0.5, 0.75])
    ignored = np.random.default_rng(seed).random(len(truths)) < 0.3
    fast = matching.match_coco(found, truths, thresholds, 5, ignored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "kernel", None)
        np.testing.assert_array_equal(fast, matching.match_coco(found, truths, thresholds, 5, ignored))


@pytest.mark.parametrize(
    ("truths", "group_of", "boxes", "outcome"),
    [
        ([], [], [], []),
        ([], [], [[0, 0, 1, 1]], [0]),
        # The second on the same box is false; exactly half is not above one half.
        ([[0, 0, 4, 4]], [0], [[0, 0, 4, 3], [0, 0, 4, 4]], [1, 0]),
        ([[0, 0, 4, 4]], [0], [[0, 0, 4, 2]], [0]),
        # Inside a group: the first is the hit, others are ignored; outside by half: false.
        ([[0, 0, 8, 8]], [1], [[1, 1, 2, 2], [4, 4, 2, 2], [7, 0, 2, 2], [20, 0, 2, 2]], [1, -1, 0, 0]),
        # A box that a single truth takes does not use up its group; a second hit falls to the group.
        ([[0, 0, 8, 8], [1, 1, 2, 2]], [1, 0], [[1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 2, 2]], [1, 1, -1]),
    ],
)
@pytest.mark.parametrize("kernel", [widerface_evaluate.matching.kernel, None])
def test_rule_by_hand(truths, group_of, boxes, outcome, kernel, monkeypatch):
    monkeypatch.setattr(widerface_evaluate.matching, "kernel", kernel)
    scores = np.linspace(0.9, 0.5, len(boxes))
    found = table_of([(np.array(boxes, float), scores, [1] * len(boxes))])
    known = BoxTable.from_annotations([ImageAnnotation("a.jpg", [1] * len(truths), truths)])
    known.group_of = np.array(group_of, bool)
    assert score(found, known)["face"].outcome.tolist() == outcome


@pytest.mark.parametrize("kernel", [widerface_evaluate.matching.kernel, None])
def test_ignore_regions_by_hand(kernel, monkeypatch):
    monkeypatch.setattr(widerface_evaluate.matching, "kernel", kernel)
    image = ImageAnnotation("a.jpg", [1, -1, -2], [[0, 0, 4, 4], [0, 0, 10, 10], [20, 0, 10, 10]])
    known = BoxTable.from_annotations([ImageAnnotation("0.jpg"), image])
    # A hit in a region, a second one there, one mostly in it, one in it by half, and one in that of persons.
    boxes = [[0, 0, 4, 4], [0, 0, 4, 4], [7, 0, 5, 5], [8, 0, 4, 4], [22, 0, 4, 4]]
    rows = [(boxes, np.linspace(0.9, 0.5, 5), [1] * 5)]
    found = table_of([([[0, 0, 4, 4]], [0.4], [1]), *rows])
    expected = [0, 1, -1, -1, 0, 0]
    one = score(found, known)["face"]
    assert one.outcome.tolist() == expected and one.columns["boxes"] == 1
    assert matching.match_coco(one.detections, one.truths)[0].tolist() == expected
    # The regions stay with their image: the first image has none.
    alone = score(table_of(rows), known.take([1]))["face"]
    assert alone.outcome.tolist() == expected[1:]
    assert score(found.take([1, 0]), known.take([1, 0]))["face"].outcome.tolist() == [*expected[1:], 0]


def test_a_missed_group_is_one_miss():
    known = BoxTable.from_annotations([ImageAnnotation("a.jpg", [1, 1], [[0, 0, 1, 1], [5, 5, 1, 1]])])
    known.group_of = np.array([False, True])
    found = table_of([([[0, 0, 1, 1]], [0.9], [1])])
    assert score(found, known)["face"].numbers()["ap"] == 0.5


def test_perfect_detections():
    annotations = [
        ImageAnnotation("a.jpg", [1, 2], [[0, 0, 0.5, 0.5], [0, 0, 1, 1]]),
        ImageAnnotation("b.jpg"),
    ]
    truths = BoxTable.from_annotations(annotations)
    found = table_of([(a.boxes_xywh_norm, np.ones(len(a)), a.labels) for a in annotations])
    for numbers in evaluate(found, truths).values():
        assert [numbers[key] for key in ("ap", "ap_30", "coco_ap_50", "f1")] == pytest.approx([1.0] * 4)
        assert numbers["coco_ap"] == pytest.approx(1.0) and numbers["score"] == 1.0
    empty = evaluate(table_of([]), BoxTable.from_annotations([]))
    assert all(math.isnan(numbers["ap"]) for numbers in empty.values())


def test_images_without_the_class_count_their_false_positives():
    truths = BoxTable.from_annotations(
        [ImageAnnotation("a.jpg", [1], [[0, 0, 1, 1]]), ImageAnnotation("b.jpg")]
    )
    found = table_of([([[0, 0, 1, 1]], [0.5], [1]), ([[0, 0, 1, 1]], [0.9], [1])])
    assert evaluate(found, truths)["face"]["ap"] == 0.5
    truths.verified = {1: np.array([True, False])}  # nobody looked for faces in b
    assert evaluate(found, truths)["face"]["ap"] == 1.0
    assert evaluate(found, truths, protocol="legacy")["face"]["ap"] == 1.0


def test_files_and_plain_loops(made, capsys):
    folder, listed = made
    text = listed.read_text()
    expected = openimages(folder, listed)
    assert aps(scores_of("-p", folder, "-g", listed, "--protocol", "legacy")) == pytest.approx(
        list(expected.values()), rel=0, abs=1e-12
    )
    # An image listed twice: the original counts it twice, with the boxes that come last.
    listed.write_text(f"{text}# 00003.jpg\n1 0.1 0.1 0.2 0.2\n2 0.5 0.5 0.2 0.2\n# 00004.jpg\n")
    expected = openimages(folder, listed)
    assert aps(scores_of("-p", folder, "-g", listed, "--protocol", "legacy")) == pytest.approx(
        list(expected.values()), rel=0, abs=1e-12
    )
    twice = scores_of("-p", folder, "-g", listed)
    assert "listed more than once: 00003, 00004" in capsys.readouterr().err
    listed.write_text(text)
    assert scores_of("-p", folder, "-g", listed) == twice


def test_legacy_keeps_the_order_of_lines(made):
    folder, listed = made
    for path in folder.glob("*.txt"):
        head, count, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, count, *rows[10:], *rows[:10]]))
    numbers = scores_of("-p", folder, "-g", listed, "--protocol", "legacy")
    assert aps(numbers) == pytest.approx(list(openimages(folder, listed).values()), rel=0, abs=1e-12)


BOXES = """ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf,IsInside
a,xclick,/m/0dzct,1,0.1,0.3,0.2,0.6,0,0,0
b,xclick,/m/04yx4,1,0,1,0,0.5,-1,1,0
a,xclick,/m/01g317,1,0.1,0.5,0.2,1,0,-1,0
c,xclick,/m/0cmf2,1,0.1,0.5,0.2,1,0,0,0
"""
LABELS = """ImageID,Source,LabelName,Confidence
a,verification,/m/01g317,1
b,verification,/m/0dzct,0
c,verification,/m/05r655,0
d,verification,/m/01g317,0
"""


def test_csv(tmp_path):
    (tmp_path / "boxes.csv").write_text(BOXES)
    (tmp_path / "labels.csv").write_text(LABELS)
    truths = read_ground_truth(tmp_path / "boxes.csv")
    assert truths.images == ["a", "b", "c"] and truths.offsets.tolist() == [0, 2, 3, 3]
    assert truths.labels.tolist() == [1, 2, 2] and truths.group_of.tolist() == [False, False, True]
    assert truths.boxes == pytest.approx(np.array([[0.1, 0.2, 0.3, 0.6], [0.1, 0.2, 0.5, 1], [0, 0, 1, 0.5]]))
    assert not truths.verified
    truths = read_ground_truth(tmp_path / "boxes.csv", tmp_path / "labels.csv")
    assert truths.images == ["a", "b", "c", "d"] and truths.offsets.tolist() == [0, 2, 3, 3, 3]
    assert truths.verified[1].tolist() == [True, True, False, False]  # boxed, absent, unknown, unknown
    assert truths.verified[2].tolist() == [True, True, False, True]  # no Girl in c: there may be a Boy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"boxes\.csv:1: empty; expected a header line"),
        ("ImageID,LabelName,XMin,XMax,YMin,YMax\n", r"boxes\.csv:1: no column IsGroupOf"),
        (BOXES.replace("0.6", "much"), r"boxes\.csv:\d: found \w+ 'much'; expected a number"),
        (BOXES.replace("0.1,0.3", "0.3,0.1"), r"boxes\.csv:2: found XMin 0\.3 above XMax 0\.1"),
        (
            BOXES.replace("0.1,0.3", "100,300"),
            r"boxes\.csv:2: found XMin '100'; expected a number",
        ),
    ],
)
def test_faulty_csv(tmp_path, text, said):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_csv(path)


def test_scores_a_csv(tmp_path, capsys):
    (tmp_path / "gt").mkdir()
    (tmp_path / "gt" / "boxes.csv").write_text(BOXES)
    (tmp_path / "labels.csv").write_text(LABELS)
    dump(tmp_path / "p", "a", [[0.1, 0.2, 0.2, 0.4], [0.1, 0.2, 0.4, 0.8]], [0.9, 0.8], [1, 2])
    dump(tmp_path / "p", "b", [[0, 0, 0.2, 0.2], [0.3, 0, 0.2, 0.2]], [0.9, 0.8], [2, 2])
    dump(tmp_path / "p", "c", [[0, 0, 0.2, 0.2]], [1.0], [1])
    assert aps(scores_of("-p", tmp_path / "p", "-g", tmp_path / "gt")) == [0.5, 1.0]
    dump(tmp_path / "p", "d", [], [], [])
    flags = "--image_labels", tmp_path / "labels.csv"
    assert aps(scores_of("-p", tmp_path / "p", "-g", tmp_path / "gt", *flags)) == [1.0, 1.0]
    with pytest.raises(UsageError, match="goes with a box CSV"):
        (tmp_path / "list.txt").write_text("# a.jpg\n")
        main(["-p", str(tmp_path / "p"), "-g", str(tmp_path / "list.txt"), *map(str, flags)])
    (tmp_path / "gt" / "other.csv").write_text(BOXES)
    with pytest.raises(DataError, match="found 2 lists and CSVs"):
        main(["-p", str(tmp_path / "p"), "-g", str(tmp_path / "gt")])


def test_odd_names(tmp_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text("# a.v2 b.jpg\n1 0 0 1 1\n# 6ff9.jpg.2888Ac4d\n1 0 0 1 1\n# e/jpg.png.jpg\n2 0 0 1 1\n")
    dump(tmp_path / "p", "a.v2 b", [[0, 0, 1, 1]], [0.9], [1])
    dump(tmp_path / "p", "e/jpg.png", [[0, 0, 1, 1]], [0.9], [2])
    assert aps(scores_of("-p", tmp_path / "p", "-g", listed)) == [1.0, 1.0]
    assert "6ff9.jpg.2888Ac4d" in capsys.readouterr().err


def test_classes_that_nobody_labelled_are_not_scored(made, capsys):
    folder, listed = made
    (listed.parent / "dataset.json").write_text('{"labelled_classes": ["person"]}')
    assert list(scores_of("-p", folder, "-g", listed)["classes"]) == ["person"]
    assert "face is not labelled" in capsys.readouterr().err


def test_wrong_boxes_and_missing_files(made, capsys):
    folder, listed = made
    (folder / "00007.txt").unlink()
    with pytest.raises(DataError, match="1 of 40 files are missing"):
        main(["-p", str(folder), "-g", str(listed)])
    assert "missing: 00007.txt" in capsys.readouterr().err
    assert scores_of("-p", folder, "-g", listed, "--allow_missing")["missing"] == ["00007.txt"]
    for path in folder.glob("*.txt"):
        head, count, *rows = path.read_text().splitlines()
        rows = [" ".join([*(str(float(v) * 640) for v in row.split()[:4]), *row.split()[4:]]) for row in rows]
        path.write_text("\n".join([head, count, *rows]))
    with pytest.raises(DataError, match="in pixels"):
        main(["-p", str(folder), "-g", str(listed), "--allow_missing"])


def test_table_and_images(tmp_path, capsys):
    (tmp_path / "list.txt").write_text(
        "# a.jpg\n1 0.1 0.1 0.2 0.2\n2 0.5 0.5 0.4 0.4\n# b.jpg\n1 0.1 0.1 0.5 0.5\n"
    )
    dump(tmp_path / "p", "a", [[0.1, 0.1, 0.2, 0.2], [0, 0.6, 0.2, 0.2]], [0.9, 0.95], [1, 1])
    dump(tmp_path / "p", "b", [[0.1, 0.1, 0.5, 0.5]], [0.8], [1])
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.full((400, 800, 3), 60, np.uint8))
    flags = ["--plot", tmp_path / "curves.svg", "--worst", "5", "--images", tmp_path / "images"]
    scores_of("-p", tmp_path / "p", "-g", tmp_path / "list.txt", *flags)
    shown = capsys.readouterr().out
    assert "AP@0.5  AP@0.3  COCO AP50    AP75  AP50:95" in shown and "1 images in" in shown
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    picture = cv2.imread(str(tmp_path / "p_worst" / "001_a.jpg")).astype(int)
    hit, false, missed = picture[80, 80], picture[280, 160], picture[200, 560]
    assert hit[1] > 130 and hit[2] < 60 and missed[2] > 150 and missed[0] < 60
    assert false[1] > 150 and false[2] > 150
