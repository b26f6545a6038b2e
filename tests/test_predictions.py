"""Prediction files: reading, writing, and what is said about faulty ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.predictions import BoxTable, Detections, is_whole, parse, read_predictions, write_prediction
from tests.conftest import table_of
from utils.box_utils import xywh_to_xyxy
from utils.cli import DataError, UsageError


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / f"{name}.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_no_files():
    found, report = read_predictions(Path(), [])
    assert len(found) == 0 and found.offsets.tolist() == [0] and found.boxes.shape == (0, 4)
    assert not report.missing and not report.miscounted and not report.classless


@pytest.mark.parametrize(
    ("text", "whole"), [("", False), ("\n", False), ("a", False), ("a\n0\n", True), ("a\r\n0\r\n", True)]
)
def test_no_detections(tmp_path, text, whole):
    path = write(tmp_path, "a", text)
    found, report = read_predictions(tmp_path, ["a"])
    assert found.offsets.tolist() == [0, 0] and not report.missing
    assert report.miscounted == ([] if whole else ["a"])
    assert is_whole(path) is whole


def test_values(tmp_path):
    write(tmp_path, "a b.c", "a b.c\n2\n1.5 -2 3e1 .25 0.5 1\n 1 2\t3 4 0.25 2 \r\n\n")
    write(tmp_path, "five", "five\n7\n0 0 0 0 1")
    found, report = read_predictions(tmp_path, ["a b.c", "absent", "five"])
    assert found.offsets.tolist() == [0, 2, 2, 3]
    assert found.boxes.tolist() == [[1.5, -2, 31.5, -1.75], [1, 2, 4, 6], [0, 0, 0, 0]]
    assert found.scores.tolist() == [0.5, 0.25, 1] and found.labels.tolist() == [1, 2, 1]
    assert found.image_index.tolist() == [0, 0, 2]
    assert report.missing == ["absent"] and report.miscounted == report.classless == ["five"]


@pytest.mark.parametrize(
    ("lines", "line", "said"),
    [
        ("1\n1 2 3 4 nan 1", 3, "expected numbers"),
        ("1\n1 2 3 inf 0.5 1", 3, "expected numbers"),
        ("1\n1 2 3 1e999 0.5 1", 3, "expected numbers"),
        ("2\n1 2 3 4 0.5 1\n1 2 3 4", 4, "x y w h score"),
        ("1\n\n1 2 3 4 0.5 1 7", 4, "x y w h score"),
        ("1\n1,2,3,4,0.5", 3, "x y w h score"),
        ("1\n1 2 -3 4 0.5 1", 3, "negative"),
        ("1\n1 2 3 4 0.5 3", 3, "0.5 3'; .* class one of 1 face"),
        ("1\n1 2 3 4 0.5 0", 3, "0.5 0'; .* class one of 1 face"),
        ("1\n1 2 3 4 0.5 1.5", 3, "0.5 1.5'; .* class one of 1 face"),
        ("1\n" + "1 2 3 4 0.5 1\n" * 3000 + "1 2 3 4 0.5 x\n" + "1 2 3 4 0.5 1\n" * 999, 3003, "0.5 x"),
        ("1\n1 2 3 4 0.5 1\r2", 3, "expected numbers"),
        ("1 2 3 4 0.5 1", 2, "number of lines"),
        ("\n\n1.0", 4, "number of lines"),
        ("-1\n", 2, "number of lines"),
        ("1.5\n", 2, "number of lines"),
    ],
)
def test_faulty_line(tmp_path, lines, line, said):
    write(tmp_path, "good", "good\n1\n1 2 3 4 0.5 1\n")
    bad = write(tmp_path, "bad", f"bad\n{lines}\n")
    with pytest.raises(DataError, match=said) as caught:
        read_predictions(tmp_path, ["good", "bad"])
    assert f"{bad}:{line}:" in str(caught.value)
    assert not is_whole(bad)


def test_not_text(tmp_path):
    write(tmp_path, "a", b"\xff\xd8\n\0\0\xff\n\0")
    with pytest.raises(DataError, match=r"a\.txt:2"):
        read_predictions(tmp_path, ["a"])


numbers = st.one_of(
    st.floats(-1e30, 1e30),
    st.floats(0, 1, width=32),
    st.integers(-(10**25), 10**25),
    st.decimals(-1000, 1000, places=30),
    st.floats(0, 1e-300),
)


@given(
    rows=st.lists(st.tuples(numbers, numbers, numbers, numbers, numbers, st.sampled_from(["", "1", "2.0"]))),
    gap=st.sampled_from([" ", "\t", "  "]),
    end=st.sampled_from(["\n", "\r\n", " \n", " \r\n", "\n\n"]),
)
def test_numbers_are_those_that_python_reads(tmp_path_factory, rows, gap, end):
    lines = [
        gap.join([str(x), str(y), str(abs(w)), str(abs(h)), str(s), label]).rstrip()
        for x, y, w, h, s, label in rows
    ]
    text = end.join(["name", str(len(rows)), *lines]).encode()
    folder = tmp_path_factory.mktemp("read")
    for name in ("a", "c"):
        write(folder, name, text)
    write(folder, "b", b"")
    found, report = read_predictions(folder, ["a", "b", "c"])
    values = [[float(field) for field in line.split()] for line in lines]
    expected = np.array([row[:5] for row in values] * 2).reshape(-1, 5)
    np.testing.assert_array_equal(found.boxes, xywh_to_xyxy(expected[:, :4]))
    np.testing.assert_array_equal(found.scores, expected[:, 4])
    assert found.labels.tolist() == [1 if len(row) == 5 else row[5] for row in values] * 2
    assert found.offsets.tolist() == [0, len(rows), len(rows), 2 * len(rows)] and report.miscounted == ["b"]
    # Other blanks than one between two numbers are read in a second go.
    assert (parse([text]) is None) == (end == "\n\n" or (gap != " " and len(rows) > 0))


@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 2, *[st.floats(0, 1e6, width=32)] * 2)),
    st.sampled_from([1, 2]),
)
def test_written_float32_are_read_back(tmp_path_factory, boxes, label):
    path = tmp_path_factory.mktemp("written") / "event" / "a.b.txt"
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores, labels = np.linspace(0, 1, len(boxes), dtype=np.float32), np.full(len(boxes), label)
    write_prediction(path, "a.b", boxes, scores, labels)
    assert path.read_text().splitlines()[:2] == ["a.b", str(len(boxes))] and is_whole(path)
    rows, *_ = parse([path.read_bytes()])
    np.testing.assert_array_equal(rows[:, :4].astype(np.float32), boxes)
    np.testing.assert_array_equal(rows[:, 4].astype(np.float32), scores)
    assert (rows[:, 5] == label).all()
    if len(boxes):
        path.write_text(path.read_text().rsplit("\n", 2)[0])
        assert not is_whole(path)


def test_order_and_selection():
    found = table_of(
        [
            (np.zeros((0, 4)), [], []),
            (np.arange(16).reshape(4, 4), [0.5, 0.9, 0.5, 1.0], [1, 2, 1, 1]),
            (np.ones((1, 4)), [0.7], [2]),
        ]
    )
    ordered = found.by_score()
    assert ordered.scores.tolist() == [1.0, 0.9, 0.5, 0.5, 0.7]
    assert ordered.boxes[:, 0].tolist() == [12, 4, 0, 8, 1]  # equal scores keep their order
    assert ordered.by_score() is ordered
    persons = ordered.of_class(2)
    assert persons.offsets.tolist() == [0, 0, 1, 2] and persons.scores.tolist() == [0.9, 0.7]
    assert len(table_of([]).by_score()) == 0


def test_images_are_taken_with_all_their_columns():
    boxes = [np.zeros((0, 4)), np.arange(8).reshape(2, 4), np.full((1, 4), 9)]
    table = BoxTable.from_images(
        ["none", "two", "one"],
        boxes,
        [[], [1, 2], [1]],
        group_of=np.array([True, False, True]),
        counted={"hard": np.array([False, True, True])},
        verified={1: np.array([True, False, True])},
    )
    taken = table.take([2, 1, 2, 0])
    assert taken.images == ["one", "two", "one", "none"] and taken.offsets.tolist() == [0, 1, 3, 4, 4]
    assert taken.boxes[:, 0].tolist() == [9, 0, 4, 9] and taken.labels.tolist() == [1, 1, 2, 1]
    assert taken.group_of.tolist() == [True, True, False, True] and taken.scores is None
    assert taken.counted["hard"].tolist() == [True, False, True, True]
    assert taken.verified[1].tolist() == [True, False, True, True]
    persons = table.of_class(2)
    assert persons.offsets.tolist() == [0, 0, 1, 1] and persons.group_of.tolist() == [False]
    assert len(table.take([])) == 0


FOUND = Detections(
    np.array([[-5, 10, 20, 30], [70, 50, 130, 90], [-9, 0, -1, 5]], np.float32),
    np.array([0.75, 0.5, 0.25], np.float32),
    np.array([1, 2, 2]),
    (80, 100),
)


def test_detections_one_by_one():
    assert list(Detections.empty()) == [] and Detections.empty().class_names == []
    assert [score for _, score, _, _ in FOUND] == [0.75, 0.5, 0.25]
    assert [one.name for one in FOUND] == ["face", "person", "person"] == FOUND.class_names
    assert FOUND[-2].box.tolist() == [70, 50, 130, 90] and FOUND[np.int64(0)].name == "face"
    assert FOUND[1:].class_names == ["person", "person"] and FOUND[1:].image_size == (80, 100)
    with pytest.raises(IndexError):
        FOUND[3]


def test_detections_clipped_to_their_image():
    clipped = FOUND.clipped()
    assert clipped.boxes.tolist() == [[0, 10, 20, 30], [70, 50, 100, 80]]
    assert clipped.scores.tolist() == [0.75, 0.5] and FOUND.boxes[0, 0] == -5
    with pytest.raises(ValueError, match="size of their image"):
        Detections.empty().clipped()


def test_detections_as_plain_data_and_drawn():
    content = json.loads(json.dumps(FOUND[:1].to_dict()))
    assert content == {"boxes": [[-5, 10, 20, 30]], "scores": [0.75], "labels": [1], "class_names": ["face"]}
    image = np.zeros((80, 100, 3), np.uint8)
    assert FOUND.draw(image).any() and not image.any()


def test_detections_for_supervision(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UsageError, match="pip install supervision"):
        FOUND.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=dict))
    given = FOUND.to_supervision()
    assert given["xyxy"] is FOUND.boxes and given["confidence"] is FOUND.scores
    assert given["class_id"] is FOUND.labels
    assert given["data"]["class_name"].tolist() == ["face", "person", "person"]
