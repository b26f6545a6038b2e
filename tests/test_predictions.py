"""Prediction files: reading, writing, and what is said about faulty ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import predictions as module
from data.predictions import (
    Predictions,
    is_whole,
    parse_text,
    read_predictions,
    write_prediction,
)
from utils.cli import DataError

compiled = pytest.mark.skipif(module.parse_texts is None, reason="kernels are not built (make build)")


@pytest.fixture(params=["compiled", "plain"])
def parser(request, monkeypatch):
    """Every test that uses it runs with the compiled parser and without."""
    if request.param == "plain":
        monkeypatch.setattr(module, "parse_texts", None)
    elif module.parse_texts is None:
        pytest.skip("kernels are not built (make build)")


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / f"{name}.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_no_files(parser):
    found, report = read_predictions([])
    assert len(found) == 0 and found.offsets.tolist() == [0] and found.boxes.shape == (0, 4)
    assert not report.missing and not report.miscounted and report.classless == 0


@pytest.mark.parametrize(
    ("text", "whole"), [("", False), ("\n", False), ("a", False), ("a\n0\n", True), ("a\r\n0\r\n", True)]
)
def test_no_detections(parser, tmp_path, text, whole):
    path = write(tmp_path, "a", text)
    found, report = read_predictions([path])
    assert found.offsets.tolist() == [0, 0] and not report.missing
    assert report.miscounted == ([] if whole else [path])
    assert is_whole(path) is whole


def test_values(parser, tmp_path):
    paths = [
        write(tmp_path, "a b.c", "a b.c\n2\n1.5 -2 3e1 .25 0.5 1\n 1 2\t3 4 0.25 2 \r\n\n"),
        tmp_path / "absent.txt",
        write(tmp_path, "five", "five\n7\n0 0 0 0 1"),
    ]
    found, report = read_predictions(paths)
    assert found.offsets.tolist() == [0, 2, 2, 3]
    assert found.boxes_xywh.tolist() == [[1.5, -2, 30, 0.25], [1, 2, 3, 4], [0, 0, 0, 0]]
    assert found.boxes.tolist() == [[1.5, -2, 31.5, -1.75], [1, 2, 4, 6], [0, 0, 0, 0]]
    assert found.scores.tolist() == [0.5, 0.25, 1] and found.labels.tolist() == [1, 2, 1]
    assert found.image_index.tolist() == [0, 0, 2]
    assert report.missing == [paths[1]] and report.miscounted == [paths[2]] and report.classless == 1


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
        ("1\n1 2 3 4 0.5 3", 3, "class 3"),
        ("1\n1 2 3 4 0.5 0", 3, "class 0"),
        ("1\n1 2 3 4 0.5 1.5", 3, "class 1.5"),
        ("1 2 3 4 0.5 1", 2, "number of lines"),
        ("-1\n", 2, "number of lines"),
        ("1.5\n", 2, "number of lines"),
    ],
)
def test_faulty_line(parser, tmp_path, lines, line, said):
    good = write(tmp_path, "good", "good\n1\n1 2 3 4 0.5 1\n")
    bad = write(tmp_path, "bad", f"bad\n{lines}\n")
    with pytest.raises(DataError, match=said) as caught:
        read_predictions([good, bad])
    assert f"{bad}:{line}:" in str(caught.value)
    assert not is_whole(bad)


def test_not_text(parser, tmp_path):
    path = write(tmp_path, "a", b"\xff\xd8\n\0\0\xff\n\0")
    with pytest.raises(DataError, match=r"a\.txt:2"):
        read_predictions([path])


numbers = st.one_of(
    st.floats(-1e30, 1e30),
    st.floats(0, 1, width=32),
    st.integers(-(10**25), 10**25),
    st.decimals(-1000, 1000, places=30),
    st.floats(0, 1e-300),
)


@compiled
@given(
    rows=st.lists(st.tuples(numbers, numbers, numbers, numbers, numbers, st.sampled_from(["", "1", "2.0"]))),
    gap=st.sampled_from([" ", "\t", "  "]),
    end=st.sampled_from(["\n", "\r\n", " \n", "\n\n"]),
)
def test_compiled_parser_reads_what_python_reads(rows, gap, end):
    lines = [
        gap.join([str(x), str(y), str(abs(w)), str(abs(h)), str(s), label]) for x, y, w, h, s, label in rows
    ]
    text = end.join(["name", str(len(rows)), *lines]).encode()
    expected, declared = parse_text(Path("a"), text)
    boxes, scores, labels, counts, found_declared = module.parse_texts([text, b"", text])
    assert counts.tolist() == [len(rows), 0, len(rows)] and found_declared.tolist() == [
        declared,
        -1,
        declared,
    ]
    found = np.concatenate([boxes, scores[:, None], labels[:, None]], 1)
    np.testing.assert_array_equal(found, np.concatenate([expected, expected]))


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
    found, _ = read_predictions([path])
    np.testing.assert_array_equal(found.boxes_xywh.astype(np.float32), boxes)
    np.testing.assert_array_equal(found.scores.astype(np.float32), scores)
    assert (found.labels == label).all()
    if len(boxes):
        path.write_text(path.read_text().rsplit("\n", 2)[0])
        assert not is_whole(path)


def test_order_and_selection():
    found = Predictions.from_images(
        [
            (np.zeros((0, 4)), [], []),
            (np.arange(16).reshape(4, 4), [0.5, 0.9, 0.5, 1.0], [1, 2, 1, 1]),
            (np.ones((1, 4)), [0.7], [2]),
        ]
    )
    ordered = found.by_score()
    assert ordered.scores.tolist() == [1.0, 0.9, 0.5, 0.5, 0.7]
    assert ordered.boxes_xywh[:, 0].tolist() == [12, 4, 0, 8, 1]  # equal scores keep their order
    assert ordered.by_score() is ordered
    persons = ordered.select(ordered.labels == 2)
    assert persons.offsets.tolist() == [0, 0, 1, 2] and persons.scores.tolist() == [0.9, 0.7]
    assert len(Predictions.from_images([]).by_score()) == 0
