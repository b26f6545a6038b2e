"""``dataset.json``: which classes a list is labelled for."""

from __future__ import annotations

import pytest

from data.annotations import labelled_classes, write_labelled_classes
from utils.cli import DataError


def test_both_classes_without_a_file(tmp_path):
    assert labelled_classes(tmp_path / "train" / "list.txt") == ("face", "person")


def test_beside_the_list_wins_over_the_folder_above(tmp_path):
    listed = tmp_path / "train" / "list.txt"
    write_labelled_classes(tmp_path / "any.txt", ["person"])
    assert labelled_classes(listed) == ("person",)
    write_labelled_classes(listed, {"face", "person"})
    assert labelled_classes(listed) == ("face", "person")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"labelled_classes": []}',
        '{"labelled_classes": "face"}',
        '{"labelled_classes": ["Face", 1]}',
    ],
)
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json: (expected|not JSON)"):
        labelled_classes(tmp_path / "list.txt")


def test_another_list_in_the_folder_keeps_its_labels(tmp_path):
    write_labelled_classes(tmp_path / "a.txt", ["face"])
    (tmp_path / "a.txt").write_text("# a.jpg\n")
    write_labelled_classes(tmp_path / "b.txt", ["face"])
    with pytest.raises(DataError, match=r"about a\.txt"):
        write_labelled_classes(tmp_path / "b.txt", ["face", "person"])
    write_labelled_classes(tmp_path / "a.txt", ["face", "person"])
    assert labelled_classes(tmp_path / "a.txt") == ("face", "person")
