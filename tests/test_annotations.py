"""Annotation lists: what is written reads back, any block size, every kind of broken line."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import annotations
from data.annotations import (
    ImageAnnotation,
    check_labelled_classes,
    format_table,
    read_annotations,
    write_annotations,
    write_list,
)
from utils.cli import DataError
from utils.image_names import leads_out


def assert_same(found: list[ImageAnnotation], expected: list[ImageAnnotation]) -> None:
    assert [a.path for a in found] == [a.path for a in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_allclose(a.boxes_xywh_norm, b.boxes_xywh_norm, rtol=0, atol=6e-10)


@pytest.mark.parametrize("text", ["", "\n", "\n\n"])
def test_an_empty_list(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    assert read_annotations(tmp_path / "list.txt") == []


numbers = st.floats(-0.5, 1.5)
names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12).filter(
    lambda name: not leads_out(name)
)
boxes = st.lists(st.tuples(st.sampled_from([1, 2]), numbers, numbers, numbers, numbers), max_size=4)
images = st.lists(st.tuples(names, boxes), max_size=6)


@settings(max_examples=80, deadline=None)
@given(images=images, block=st.sampled_from([1, 30, 1 << 20]))
def test_what_is_written_reads_back(tmp_path_factory, images, block):
    path = tmp_path_factory.mktemp("list") / "list.txt"
    given_ = [ImageAnnotation(name, [b[0] for b in rows], [b[1:] for b in rows]) for name, rows in images]
    assert write_annotations(path, given_) == len(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotations, "_BLOCK_BYTES", block)
        found = read_annotations(path)
    assert_same(found, given_)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [lines[a.line - 1] for a in found] == [f"# {a.path}" for a in found]


def test_table_reads_back_as_written_image_by_image(tmp_path):
    expected = [
        ImageAnnotation("a b.jpg", [1, 2], [[0.1, 1 / 3, 1e-7, 0.25], [0, 0, 1, 1]]),
        ImageAnnotation("ü.jpg", [2], [[-0.5, 0.2, 1.25, 1e-9]]),
    ]
    rows = [
        (label, *box)
        for a in expected
        for label, box in zip(a.labels, a.boxes_xywh_norm.tolist(), strict=True)
    ]
    table = pl.DataFrame(rows, ["label", "x", "y", "w", "h"], orient="row")
    text = format_table(table, np.array([0, 2]), pl.Series([a.path for a in expected]))
    (tmp_path / "list.txt").write_bytes(text)
    assert_same(read_annotations(tmp_path / "list.txt"), expected)


def test_boxes_in_pixels():
    assert ImageAnnotation("a.jpg").boxes((100, 200)).shape == (0, 4)
    boxes = ImageAnnotation("a.jpg", [1], [[0.25, 0.5, 0.5, 0.25]]).boxes((100, 200))
    assert boxes.tolist() == [[50, 50, 150, 75]]


def test_blank_lines_tabs_and_windows_line_ends(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\r\n# a.jpg\r\n1\t0 0  0.5 0.5 \r\n\r\n# b.jpg\r\n2 0 0 1 1")
    found = read_annotations(path)
    assert_same(
        found,
        [ImageAnnotation("a.jpg", [1], [[0, 0, 0.5, 0.5]]), ImageAnnotation("b.jpg", [2], [[0, 0, 1, 1]])],
    )
    assert [a.line for a in found] == [2, 5]


def test_ignore_regions_read_back(tmp_path):
    annotation = ImageAnnotation("a.jpg", [-2, 1, -1], [[0, 0, 1, 1], [0, 0.5, 0.5, 0.5], [0.5, 0, 0.5, 1]])
    write_annotations(tmp_path / "list.txt", [annotation])
    (found,) = read_annotations(tmp_path / "list.txt")
    assert_same([found], [annotation])
    assert_same([found.without_regions()], [ImageAnnotation("a.jpg", [1], [[0, 0.5, 0.5, 0.5]])])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1 0 0 1 1\n# a.jpg\n", ":1: a box before the first image"),
        (b"# a.jpg\n1 0 0 1 1\n#\n", ":3: the image '' has no name"),
        (b"# a.jpg\n1 0 0 1\n", ":2: found '1 0 0 1'; expected five numbers"),
        (b"# a.jpg\n1 0 0 1 1 1\n", ":2: found '1 0 0 1 1 1'"),
        (b"# a.jpg\n1 0 0 1 1\n# b.jpg\n1 0 0\n2 0 0 1 1 1 0\n", ":4: found '1 0 0'"),
        (b"# a.jpg\n1 0 0 nan 1\n", ":2: found '1 0 0 nan 1'"),
        (b"# a.jpg\n1 0 0 inf 1\n", ":2: found"),
        (b"# a.jpg\n1 0 0 1e308 1\n", ":2: found '1 0 0 1e308 1'; expected .* divided by the image's width"),
        (b"# a.jpg\n1 0 -1e7 1 1\n1 0 0\t1 1\n", ":2: found"),
        (b"# a.jpg\n1 a b c d\n", ":2: found '1 a b c d'"),
        (b"# a.jpg\n# b.jpg\n3 0 0 1 1\n", ":3: found label 3; expected one of: 1 face, 2 person"),
        (
            b"# a.jpg\n-3 0 0 1 1\n",
            ":2: found label -3; expected one of: 1 face, 2 person, or negative to ignore a region",
        ),
        (b"# a.jpg\n0 0 0 1 1\n", ":2: found label 0"),
        (b"# a.jpg\n1.5 0 0 1 1\n", ":2: found label 1.5"),
        (b"# a.jpg\n# ../b.jpg\n", r":2: the image '../b\.jpg' leads out of its folder"),
        (b"# /etc/a.jpg\n", ":1: the image '/etc/a.jpg' leads out"),
        (b"# a/..\\b.jpg\n", ":1: .* leads out"),
        (b"# \xff.jpg\n", ":1: the image .* has no name of one line of UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", ":1: a box before the first image"),
    ],
)
def test_a_broken_line_is_named(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=rf"list\.txt{message}"):
        read_annotations(path)


def test_a_box_that_would_not_read_back_is_not_written(tmp_path):
    for box in ([0, 0, 1e308, 1], [0, float("nan"), 1, 1]):
        with pytest.raises(DataError, match=r"a\.jpg: a box beyond 1e\+06 times the image's size"):
            write_annotations(tmp_path / "list.txt", [ImageAnnotation("a.jpg", [1], [box])])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "a/../b.jpg", "C:\\a.jpg"])
def test_names_that_lead_out_of_the_images_are_not_written(tmp_path, name):
    with pytest.raises(DataError, match="leads out of its folder"):
        write_annotations(tmp_path / "list.txt", [ImageAnnotation(name)])
    assert not list(tmp_path.iterdir())


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="no such file; expected an annotation list"):
        read_annotations(tmp_path / "list.txt")
    with pytest.raises(DataError, match="a folder"):
        read_annotations(tmp_path)


def test_a_failed_write_leaves_the_old_list(tmp_path):
    path = tmp_path / "list.txt"
    write_list(path, [ImageAnnotation("a.jpg")], ["face"])

    def broken():
        yield ImageAnnotation("b.jpg")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_annotations(path, broken())
    with pytest.raises(DataError, match="no name of one line"):
        write_annotations(path, [ImageAnnotation("a\nb.jpg")])
    assert [a.path for a in read_annotations(path)] == ["a.jpg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dataset.json", "list.txt"]
    with pytest.raises(DataError, match=r"about list\.txt"):
        check_labelled_classes(tmp_path / "other.txt", ["person"])
