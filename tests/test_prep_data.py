"""Steps of prep_data.py on small real files: WIDER FACE text, links, splits, merges, checks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.annotations import (
    ImageAnnotation,
    image_folder,
    labelled_classes,
    read_annotations,
    write_annotations,
    write_list,
)
from data.predictions import BoxTable
from tests.conftest import prep, same
from utils.cli import DataError, UsageError
from utils.images import write_image

# WIDER FACE text


def wider(folder: Path, text: str, *options: str) -> dict[str, list[list[float]]]:
    source, output = folder / "bbx_gt.txt", folder / "out" / "list.txt"
    source.write_text(text)
    write_image(folder / "images" / "0--A" / "a.jpg", np.zeros((50, 100, 3), np.uint8))
    write_image(folder / "images" / "0--A" / "b.jpg", np.zeros((50, 100, 3), np.uint8))
    arguments = ["widerface", str(source), "--images", str(folder / "images"), "--output", str(output)]
    assert prep(*arguments, *options) == 0
    assert labelled_classes(output) == ("face",)
    return {a.path: a.boxes_xywh_norm.round(6).tolist() for a in read_annotations(output)}


A_FACES = (
    "0--A/a.jpg\n4\n10 5 20 10 0 0 0 0 0 0 \n10 5 0 10 0 0 0 0 0 0\n"
    "1 1 2 2 0 0 0 1 0 0\n50 25 50 25 2 1 1 0 2 1\n"
)


def test_wider_empty_text(tmp_path):
    assert wider(tmp_path, "") == {}


def test_wider_dummy_row_invalid_and_flat_boxes(tmp_path, capsys):
    text = "0--A/b.jpg\n0\n0 0 0 0 0 0 0 0 0 0 \n" + A_FACES
    good = [[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.5, 0.5]]
    assert wider(tmp_path, text) == {"0--A/b.jpg": [], "0--A/a.jpg": good}
    printed = capsys.readouterr().out
    assert "faces marked invalid, left out  1" in printed
    assert "faces without area, left out    1" in printed
    without_dummy = "0--A/b.jpg\n0\n" + A_FACES
    assert wider(tmp_path, without_dummy) == {"0--A/b.jpg": [], "0--A/a.jpg": good}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10 5 20 10 0 0 0 0 0 0\n", r":1: found '10 5 20 10 0 0 0 0 0 0'; expected the path of an image"),
        ("../a.jpg\n0\n", r":1: the image '\.\./a\.jpg' leads out of its folder"),
        ("0--A/a.jpg\n", r":2: found 'the end of the file'; expected the number of faces"),
        ("0--A/a.jpg\nmany\n", r":2: found 'many'"),
        ("0--A/a.jpg\n2\n1 1 2 2 0 0 0 0 0 0\n", r":3: cut off in the faces"),
        ("0--A/a.jpg\n1\n1 1 2 2 0 0 0\n", r":3: found '1 1 2 2 0 0 0'; expected 10 numbers"),
        ("0--A/a.jpg\n1\n1 1 2 nan 0 0 0 0 0 0\n", r":3: found"),
        (
            "\n0--A/none.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n",
            r":2: .*none\.jpg: no such file; expected an image; leave such images out",
        ),
    ],
)
def test_wider_broken_text_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"bbx_gt\.txt{message}"):
        wider(tmp_path, text)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_wider_missing_images_can_be_left_out(tmp_path):
    text = "0--A/none.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n" + A_FACES
    assert list(wider(tmp_path, text, "--skip_missing")) == ["0--A/a.jpg"]


# link, split, merge, stats, draw


def test_link_is_made_once_and_never_over_something_else(tmp_path, listed):
    pictures = str(listed.parent / "images")
    assert prep("link", pictures, tmp_path / "train") == 0
    assert prep("link", pictures, tmp_path / "train") == 0
    assert (tmp_path / "train" / "images" / "0" / "0.png").is_file()
    with pytest.raises(DataError, match="no such folder"):
        prep("link", tmp_path / "none", tmp_path / "train")
    with pytest.raises(DataError, match="a link to"):
        prep("link", tmp_path, tmp_path / "train")
    with pytest.raises(DataError, match="there already"):
        prep("link", tmp_path, listed.parent)


def test_split_keeps_equal_images_together_and_is_stable(tmp_path, listed):
    for seed in range(6):
        output = tmp_path / f"split{seed}"
        arguments = "split", listed, "--save_folder", output, "--val_share", 0.4, "--seed", seed
        assert prep(*arguments) == 0
        train, val = (read_annotations(output / part / f"wider_{part}_gt.txt") for part in ("train", "val"))
        names = [{a.path for a in part} for part in (train, val)]
        assert len(names[0]) + len(names[1]) == 12
        assert not names[0] & names[1]
        assert ("1/10.png" in names[0]) == ("2/11.png" in names[0])
        assert image_folder(output / "val" / "wider_val_gt.txt") == listed.parent / "images"
        assert prep(*arguments) == 0
        again = read_annotations(output / "val" / "wider_val_gt.txt")
        assert [a.path for a in again] == [a.path for a in val]
    with pytest.raises(UsageError, match="between 0 and 1"):
        prep("split", listed, "--save_folder", tmp_path / "x", "--val_share", "1")


def test_split_of_a_small_list_leaves_no_part_empty(tmp_path, listed):
    output = tmp_path / "parts"
    for share, sizes in (("1e-9", [11, 1]), ("0.999999999", [1, 11])):
        assert prep("split", listed, "--save_folder", output, "--val_share", share) == 0
        parts = [read_annotations(output / part / f"wider_{part}_gt.txt") for part in ("train", "val")]
        assert list(map(len, parts)) == sizes
    listed.write_text("# 0/0.png\n")
    with pytest.raises(DataError, match="no image for val; expected two different images"):
        prep("split", listed, "--save_folder", output)


def test_merge(tmp_path, listed, capsys):
    output = tmp_path / "merged" / "list.txt"
    with pytest.raises(DataError, match=r"list\.txt:1: 0/0\.png is in .*too"):
        prep("merge", listed, listed, "--output", output)
    assert not output.exists()
    assert prep("merge", listed, listed, "--output", output, "--on_repeat", "first") == 0
    same(output, listed)
    faces = tmp_path / "faces" / "list.txt"
    write_list(faces, [ImageAnnotation("f.png")], ["face"])
    with pytest.raises(DataError, match="labelled for face, .* for face and person: add what is missing"):
        prep("merge", listed, faces, "--output", output)


def test_stats_and_draw(tmp_path, listed, capsys):
    assert prep("stats", listed) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "images 12 with both 6 (50.0%) with face 3 (25.0%) with person 0 with none 3 (25.0%)" in printed
    assert "boxes 18 face 12 person 6" in printed
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert prep("stats", empty) == 0
    assert prep("draw", listed, "--output", tmp_path / "sheet.png", "--number", "5") == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    with pytest.raises(DataError, match="names no image"):
        prep("draw", empty, "--output", tmp_path / "x.png", "--images", listed.parent / "images")


def test_ignore_regions_are_no_boxes(tmp_path, listed, capsys):
    annotations = read_annotations(listed)
    for annotation in annotations:
        annotation.labels = -annotation.labels
    regions = listed.parent / "regions.txt"
    write_annotations(regions, annotations)
    assert prep("stats", regions) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "with none 12 (100.0%)" in printed and "boxes 0 face 0 person 0 ignore regions 18" in printed
    assert prep("draw", regions, "--output", tmp_path / "sheet.png") == 0
    assert prep("check", regions) == 0
    assert prep("export", regions, "--format", "coco", "--output", tmp_path / "coco.json") == 0
    assert json.loads((tmp_path / "coco.json").read_text())["annotations"] == []
    assert prep("export", regions, "--format", "yolo", "--output", tmp_path / "yolo") == 0
    assert not any(f.read_text() for f in (tmp_path / "yolo" / "labels").rglob("*.txt"))
    with pytest.raises(DataError, match="no box with an area"):
        prep("anchors", regions, "--output", tmp_path / "anchors")
    assert not len(BoxTable.from_annotations(annotations))


# check


def test_check_finds_everything(listed, capsys):
    def check() -> tuple[int, str]:
        code = prep("check", listed)
        return code, capsys.readouterr().out

    code, printed = check()
    assert code == 0
    assert "images decoded  12" in printed
    images = listed.parent / "images"
    (images / "0" / "0.png").unlink()
    (images / "1" / "1.png").write_bytes((images / "1" / "1.png").read_bytes()[:40])
    with listed.open("a") as file:
        file.write("1 0.9 0.9 0.2 0.1\n2 0 0 0 1\n# 2/2.png\n")
    code, printed = check()
    assert code == 1
    lines = printed.splitlines()
    assert "list.txt:1: " in lines[0]
    assert "0.png: no such file; expected an image" in lines[0]
    assert "1.png" in lines[1]
    assert "1 boxes beyond the image" in printed
    assert "1 boxes without area" in printed
    assert "2/2.png is named in line" in printed


# the command line


def test_every_step_has_help_and_errors_are_one_line(repository, capsys):
    with pytest.raises(SystemExit):
        prep("-h")
    printed = capsys.readouterr().out
    first = "download unpack openimages widerface pseudo_label clean anchors"
    for step in f"{first} link split merge check stats draw export import".split():
        assert f"\n    {step}" in printed
        with pytest.raises(SystemExit):
            prep(step, "-h")
        assert f"Example:\n  python3 prep_data.py {step} " in capsys.readouterr().out
    for arguments, code in ((["stats", "none.txt"], 1), (["split", "none.txt"], 2), ([], 2)):
        done = subprocess.run(
            [sys.executable, "prep_data.py", *arguments], cwd=repository, capture_output=True, text=True
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr
    assert len(done.stdout) == 0


def test_an_option_that_a_step_does_not_know_is_answered_with_its_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        prep("download", "--limmit", 3)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--limmit 3: not known; did you mean --limit?" in error and "download -h explains" in error
