"""``dataset.json``: which classes a list is labelled for, and where its images are."""

from __future__ import annotations

import pytest

from data.annotations import (
    ImageAnnotation,
    check_labelled_classes,
    image_folder,
    labelled_classes,
    read_annotations,
    write_labelled_classes,
    write_list,
)
from data.wider_face import WiderFaceDetection
from tests.conftest import prep
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
        '{"labelled_classes": ["face"], "images": 1}',
        '{"labelled_classes": ["face"], "images": ""}',
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
        check_labelled_classes(tmp_path / "b.txt", ["face", "person"])
    write_labelled_classes(tmp_path / "a.txt", ["face", "person"])
    assert labelled_classes(tmp_path / "a.txt") == ("face", "person")


def test_images_given_go_before_those_said_and_those_beside(tmp_path):
    listed = tmp_path / "set" / "list.txt"
    for name in ("given", "said", "set/images"):
        (tmp_path / name).mkdir(parents=True)
    assert image_folder(listed) == tmp_path / "set" / "images"
    write_labelled_classes(listed, ["face"], tmp_path / "said")
    assert (tmp_path / "set" / "dataset.json").read_text().count('"../said"') == 1
    assert image_folder(listed).samefile(tmp_path / "said")
    assert image_folder(listed, tmp_path / "given") == tmp_path / "given"
    write_labelled_classes(listed, ["face", "person"])
    assert image_folder(listed).samefile(tmp_path / "said")  # as it was said before
    (tmp_path / "said").rmdir()
    with pytest.raises(DataError, match=r"list.txt: no such file; expected an annotation list"):
        image_folder(listed)
    listed.touch()
    with pytest.raises(DataError, match="said: no such folder; expected the images of .*link FOLDER"):
        image_folder(listed)


def test_images_said_one_folder_above_are_seen_from_there(tmp_path):
    (tmp_path / "set" / "photos").mkdir(parents=True)
    (tmp_path / "set" / "dataset.json").write_text('{"labelled_classes": ["face"], "images": "photos"}')
    assert image_folder(tmp_path / "set" / "train" / "list.txt") == tmp_path / "set" / "photos"


def test_images_of_another_list_in_the_folder_are_not_moved(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write_list(tmp_path / "set" / "a.txt", [ImageAnnotation("a.jpg")], ["face"], tmp_path / "a")
    with pytest.raises(DataError, match=r"about a\.txt, with its images in .*write it to another folder"):
        write_list(tmp_path / "set" / "b.txt", [ImageAnnotation("b.jpg")], ["face"], tmp_path / "b")
    write_list(tmp_path / "set" / "a.txt", [ImageAnnotation("b.jpg")], ["face"], tmp_path / "b")


def test_steps_hand_the_images_on(tmp_path, listed, capsys):
    photos = (listed.parent / "images").rename(tmp_path / "photos")
    write_labelled_classes(listed, ["face", "person"], photos)
    out = tmp_path / "out"
    with listed.open("a") as file:
        file.write("1 0.9 0.9 0.3 0.3\n")  # beyond the image, so that there is a finding
    clean = ["clean", str(listed), "--output", str(out / "clean" / "list.txt")]
    assert prep(*clean) == 0
    assert (out / "clean" / "list.findings.jpg").is_file()
    assert prep("split", out / "clean" / "list.txt", "--save_folder", out, "--val_share", "0.4") == 0
    parts = [out / part / f"wider_{part}_gt.txt" for part in ("train", "val")]
    assert prep("merge", *parts, "--output", out / "merged" / "list.txt") == 0
    lists = [out / "clean" / "list.txt", *parts, out / "merged" / "list.txt"]
    for path in lists:
        assert image_folder(path).samefile(photos)
        assert prep("check", path) == 0
    assert WiderFaceDetection(lists).read(0).shape == (60, 80, 3)
    photos.rename(tmp_path / "moved")
    capsys.readouterr()
    assert prep(*clean) == 0
    assert "list.findings.jpg: not drawn, as" in capsys.readouterr().err
    assert prep("link", tmp_path / "moved", out / "clean") == 0
    assert image_folder(out / "clean" / "list.txt").samefile(tmp_path / "moved")


def test_merged_lists_reach_images_in_several_folders(tmp_path, listed):
    other = tmp_path / "other" / "list.txt"
    (tmp_path / "elsewhere").mkdir()
    (listed.parent / "images" / "0" / "0.png").rename(tmp_path / "elsewhere" / "x.png")
    write_list(other, [ImageAnnotation("x.png")], ["face", "person"], tmp_path / "elsewhere")
    listed.write_text("# 1/1.png\n")
    assert prep("merge", listed, other, "--output", tmp_path / "merged" / "list.txt") == 0
    merged = tmp_path / "merged" / "list.txt"
    assert [a.path for a in read_annotations(merged)] == ["all/images/1/1.png", "elsewhere/x.png"]
    assert prep("check", merged) == 0
