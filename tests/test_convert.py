"""Sets of other tools to lists and back: exports of Roboflow, YOLO, COCO, Pascal VOC; names of classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import train_changeclass
from data.annotations import ImageAnnotation, image_folder, labelled_classes, read_annotations, write_list
from data.foreign import Part, match_classes
from tests.conftest import prep, same
from utils.cli import DataError, UsageError
from utils.images import write_image


def picture(path: Path, height: int = 20, width: int = 10) -> None:
    write_image(path, np.full((height, width, 3), sum(path.name.encode()) % 256, np.uint8))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def boxes_of(path: Path) -> dict[str, list]:
    """``[label, x, y, w, h]`` of each box by image."""
    return {
        a.path: [
            [label, *box]
            for label, box in zip(a.labels.tolist(), a.boxes_xywh_norm.round(6).tolist(), strict=True)
        ]
        for a in read_annotations(path)
    }


ROBOFLOW_YAML = """train: ../train/images
val: ../valid/images
test: ../test/images

nc: {count}
names: {names}

roboflow:
  workspace: somebody
  project: people-1
  version: 3
"""


@pytest.fixture
def export(tmp_path) -> Path:
    """An export of Roboflow as YOLOv8, one class: person; an image of the test part has no box."""
    folder = tmp_path / "people.v3i.yolov8"
    write(folder / "data.yaml", ROBOFLOW_YAML.format(count=1, names="['person']"))
    for part, count in (("train", 3), ("valid", 2), ("test", 1)):
        for i in range(count):
            picture(folder / part / "images" / f"{part}{i}.jpg")
            text = "0 0.5 0.5 0.2 0.4\n" if part != "test" else ""
            write(folder / part / "labels" / f"{part}{i}.txt", text)
    return folder


# Roboflow's YOLO


@pytest.mark.parametrize("given_", ["", "data.yaml"])
def test_an_export_of_persons_stays_persons_in_all_parts(tmp_path, export, capsys, given_):
    output = tmp_path / "out"
    assert prep("import", export / given_, "--output", output) == 0
    for part, images, folder in (("train", 3, "train"), ("val", 2, "valid"), ("test", 1, "test")):
        path = output / part / f"wider_{part}_gt.txt"
        assert labelled_classes(path) == ("person",)
        assert image_folder(path) == export / folder / "images"
        assert len(read_annotations(path)) == images
    assert boxes_of(output / "val" / "wider_val_gt.txt")["valid1.jpg"] == [[2, 0.4, 0.3, 0.2, 0.4]]
    printed = capsys.readouterr().out
    assert "part images empty face person train 3 0 0 3 val 2 0 0 2 test 1 1 0 0" in " ".join(printed.split())
    assert "taken:" not in printed  # as they are named
    assert f"look: python3 prep_data.py draw {output}/train/wider_train_gt.txt" in printed
    assert prep("check", output / "train" / "wider_train_gt.txt") == 0


def test_the_commands_that_follow_an_import_work(export, tmp_path, monkeypatch, capsys):
    """Without a validation part: import, split, train; each prints the next."""
    for path in (export / "valid").rglob("*.*"):
        path.unlink()
    for folder in ("valid/images", "valid/labels", "valid"):
        (export / folder).rmdir()
    monkeypatch.chdir(tmp_path)
    assert prep("import", export, "--output", "datasets/set") == 0
    look, split = (line.split()[2:] for line in capsys.readouterr().out.splitlines()[-2:])
    assert split[:3] == ["prep_data.py", "split", "datasets/set/train/wider_train_gt.txt"]
    assert prep(*look[1:]) == 0 and Path(look[-1]).is_file()
    assert prep(*split[1:]) == 0
    training = capsys.readouterr().out.splitlines()[-1].split()[2:]
    assert training[0] == "train_changeclass.py" and training[-1] == "runs/set_split"
    short = ["--epochs", "1", "--image_size", "64", "--batch_size", "2", "--num_workers", "0", "--cpu"]
    assert train_changeclass.main([*training[1:], *short]) == 0
    assert Path("runs/set_split/best.pth").is_file()


def test_by_default_the_lists_go_to_a_folder_of_their_own(export, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prep("import", export.name) == 0
    assert (tmp_path / "datasets" / export.name / "val" / "wider_val_gt.txt").is_file()
    assert capsys.readouterr().err == ""


def test_a_part_that_is_not_there_is_named(export, tmp_path, capsys):
    (export / "test" / "images" / "test0.jpg").unlink()
    (export / "test" / "images").rmdir()
    (export / "train" / "labels" / "other.txt").touch()
    assert prep("import", export, "--output", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "data.yaml: test: '../test/images': not there, left out" in said
    assert "1 label files have no image" in said and "other.txt" in said
    assert not (tmp_path / "out" / "test").exists()


def test_one_list_cannot_hold_parts(export, tmp_path):
    with pytest.raises(UsageError, match="expected a folder, for train and val and test"):
        prep("import", export, "--output", tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("[face, head]", [], r"neither: head \(3 boxes\)\? Say so, e\.g\. --category head=face \(or =none"),
        ("['car', 'tall person']", [], r'--category "tall person=person"'),
        ("[car, dog]", [], r"none of its categories is face or person by name: car \(0 boxes\), dog"),
        ("[car, dog]", ["dog=hat"], "expected NAME=CLASS with one of face, person, .*none"),
        ("[car, dog]", ["cat=face"], "has no such class; it has car, dog"),
        ("[person]", [], r"train0\.txt:1: found class 1; expected 0 to 0"),
        ("{1: face, 2: person}", [], "by number from 0 on"),
        ("[[face], person]", [], "names: expected texts"),
        ("'unclosed", [], "not YAML"),
    ],
)
def test_names_that_do_not_say_it_are_asked_for(export, tmp_path, names, options, message):
    write(export / "data.yaml", ROBOFLOW_YAML.format(count=2, names=names))
    for i in range(3):
        write(export / "train" / "labels" / f"train{i}.txt", "1 0.5 0.5 0.2 0.4\n")
    for i in range(2):
        write(export / "valid" / "labels" / f"valid{i}.txt", "")
    arguments = ["import", str(export), "--output", str(tmp_path / "out"), "--category", *options]
    with pytest.raises((DataError, UsageError), match=message):
        prep(*arguments[: None if options else -1])
    assert not (tmp_path / "out").exists()


def test_what_is_asked_for_can_be_given(export, tmp_path, capsys):
    write(export / "data.yaml", ROBOFLOW_YAML.format(count=3, names="[Head, pedestrian, helmet]"))
    write(export / "train" / "labels" / "train0.txt", "0 0.5 0.5 0.2 0.4\n1 0.5 0.5 1 1\n2 0.5 0.5 1 1\n")
    train = tmp_path / "out" / "train" / "wider_train_gt.txt"
    for i in range(2):
        write(export / "valid" / "labels" / f"valid{i}.txt", "")
    arguments = ["import", str(export), "--output", str(tmp_path / "out"), "--category"]
    assert prep(*arguments, "Head=face") == 0
    assert [box[0] for box in boxes_of(train)["train0.jpg"]] == [1, 2]
    printed = capsys.readouterr().out
    assert "taken: Head as face, pedestrian as person\n" in printed and "left out: 1 of helmet" in printed
    assert prep(*arguments, "Head=none") == 0
    assert labelled_classes(train) == ("person",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [(n, "person") for n in ("person", "People", "pedestrian", "Human", "man", "WOMAN", "Girl")]
    + [(n, "face") for n in ("face", "Human face", "human_face", "Faces")]
    + [(n, "none") for n in ("surface", "car", "headphones", "0")],
)
def test_what_names_say(name, expected):
    part = Part("", None, [name, "person", "face"], [])
    assert match_classes(Path("x"), [part], {})[name] == expected


def test_parts_of_labels_with_the_images_elsewhere(export, tmp_path):
    for part in ("train", "valid"):
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "images").mkdir(exist_ok=True)
        for kind in ("images", "labels"):
            (export / part / kind).rename(tmp_path / kind / part)
    arguments = ["import", str(tmp_path / "labels"), "--images", str(tmp_path / "images"), "--format", "yolo"]
    assert prep(*arguments, "--category", "0=person", "--output", tmp_path / "out") == 0
    assert len(boxes_of(tmp_path / "out" / "val" / "wider_val_gt.txt")) == 2


# YOLO of other layouts


@pytest.fixture
def labels(tmp_path) -> Path:
    """``labels/`` and ``images/``, one image, nothing that names the classes."""
    picture(tmp_path / "set" / "images" / "a.jpg")
    write(tmp_path / "set" / "labels" / "a.txt", "0 0.5 0.5 0.2 0.4\n")
    return tmp_path / "set"


def test_numbers_are_never_guessed(labels, tmp_path):
    output = tmp_path / "list.txt"
    with pytest.raises(
        DataError, match=r"have no names: 0 \(1 boxes\); say which is, e\.g\. --category 0=person"
    ):
        prep("import", labels, "--output", output)
    assert prep("import", labels, "--output", output, "--category", "0=person") == 0
    assert (labelled_classes(output), boxes_of(output)) == (("person",), {"a.jpg": [[2, 0.4, 0.3, 0.2, 0.4]]})
    write(labels / "labels" / "classes.txt", "face\n")
    assert prep("import", labels / "labels", "--images", labels / "images", "--output", output) == 0
    assert boxes_of(output)["a.jpg"][0][0] == 1


def test_label_files_alone_need_their_images(labels):
    with pytest.raises(UsageError, match="give the images with --images"):
        prep("import", labels / "labels")
    with pytest.raises(UsageError, match="give the images with --images"):
        prep("import", labels / "labels", "--format", "yolo")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 0.1 0.2 0.5 0.2 0.3 0.8", [0.1, 0.2, 0.4, 0.6]),  # a triangle
        ("0 0.1 0.2 0.5 0.2 0.5 0.8 0.1 0.8", [0.1, 0.2, 0.4, 0.6]),  # a turned box
        ("0 0.5 0.5 0.2", None),
        ("0 0.5 0.5 0.2 0.4 0.9", None),  # a score
        ("0 0.5 0.5 0.2 -0.4", None),
        ("0 32 40 12 20", None),  # pixels
        ("0 0.5 nan 0.2 0.4", None),
        ("-1 0.5 0.5 0.2 0.4", None),
        ("person 0.5 0.5 0.2 0.4", None),
    ],
)
def test_lines_of_yolo(labels, tmp_path, line, expected):
    write(labels / "labels" / "a.txt", f"\n{line}\n")
    arguments = ["import", str(labels), "--output", str(tmp_path / "list.txt"), "--category", "0=person"]
    if expected is None:
        with pytest.raises(DataError, match=r"a\.txt:2: found .*expected 'class cx cy w h'"):
            prep(*arguments)
    else:
        assert prep(*arguments) == 0
        assert boxes_of(tmp_path / "list.txt")["a.jpg"] == [[2, *expected]]


def test_points_of_a_pose_are_not_a_polygon(labels, tmp_path):
    write(labels / "data.yaml", "train: images\nkpt_shape: [3, 2]\nnames: {0: person}\n")
    write(labels / "labels" / "a.txt", "0 0.5 0.5 0.2 0.4 0 0 1 1 0.3 0.3\n")
    assert prep("import", labels, "--output", tmp_path / "out") == 0
    expected = {"a.jpg": [[2, 0.4, 0.3, 0.2, 0.4]]}
    assert boxes_of(tmp_path / "out" / "train" / "wider_train_gt.txt") == expected


def test_images_of_which_none_has_labels(labels, tmp_path):
    (labels / "labels" / "a.txt").rename(labels / "labels" / "b.txt")
    with pytest.raises(DataError, match=r"1 images and no label file; expected .*labels/a\.txt"):
        prep("import", labels, "--output", tmp_path / "out", "--category", "0=person")


def test_a_yaml_with_a_list_of_images(labels, tmp_path):
    write(labels / "data.yaml", "path: ../nowhere\ntrain: train.txt\nnames: [face]\n")
    write(labels / "train.txt", "./images/a.jpg\n")
    assert prep("import", labels, "--output", tmp_path / "out") == 0
    train = tmp_path / "out" / "train" / "wider_train_gt.txt"
    assert boxes_of(train) == {"images/a.jpg": [[1, 0.4, 0.3, 0.2, 0.4]]}
    assert (image_folder(train) / "images" / "a.jpg").is_file()
    for bad in ("../images/a.jpg", "/etc/a.jpg", "C:\\a.jpg"):
        write(labels / "train.txt", f"./images/a.jpg\n{bad}\n")
        with pytest.raises(DataError, match=r"train\.txt:2: the image .* leads out of its folder"):
            prep("import", labels, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "no such file or folder; expected data.yaml"),
        (lambda f: f.mkdir(), "no export of a kind that is known"),
        (lambda f: write(f, "x"), "not an export"),
        (lambda f: write(f / "train" / "wider_train_gt.txt", "# a.jpg"), "an annotation list already"),
        (lambda f: write(f / "data.yaml", "- 1"), "found no table"),
        (lambda f: write(f / "data.yaml", "train: images\nnames: [face]"), "none of its train, val and test"),
        (
            lambda f: [write(f / n, "{}") for n in ("a.json", "b.json")],
            "found a.json, b.json; give one of them",
        ),
        (lambda f: [write(f / n, "{}") for n in ("a.json", "b.xml")], "found coco and voc; .* --format coco"),
        (lambda f: [write(f / n, "names: [face]") for n in ("a.yaml", "b.yml")], "give the right one itself"),
    ],
)
def test_what_is_no_export_is_told(tmp_path, make, message):
    make(tmp_path / "thing")
    with pytest.raises((DataError, UsageError), match=message):
        prep("import", tmp_path / "thing", "--output", tmp_path / "out")


# COCO


def coco(**changes: object) -> dict:
    """A file as Roboflow writes it: a category that is the project's name comes first."""
    content = {
        "categories": [
            {"id": 0, "name": "face-project", "supercategory": "none"},
            {"id": 1, "name": "person", "supercategory": "face-project"},
            {"id": 3, "name": "car", "supercategory": "face-project"},
        ],
        "images": [{"id": 7, "file_name": "a.jpg", "width": 10, "height": 20}],
        "annotations": [{"id": c, "image_id": 7, "category_id": c, "bbox": [1, 2, 3, 4]} for c in (1, 3)],
    }
    return content | changes


def test_all_parts_of_a_coco_export(tmp_path, capsys):
    folder = tmp_path / "export"
    for part in ("train", "valid"):
        picture(folder / part / "a.jpg")
        write(folder / part / "_annotations.coco.json", json.dumps(coco()))
    assert prep("import", folder, "--output", tmp_path / "out") == 0
    for part, name in (("train", "train"), ("val", "valid")):
        path = tmp_path / "out" / part / f"wider_{part}_gt.txt"
        assert boxes_of(path) == {"a.jpg": [[2, 0.1, 0.1, 0.3, 0.2]]}
        assert labelled_classes(path) == ("person",)
        assert image_folder(path) == folder / name
    assert "left out: 2 of car (taken with e.g. --category car=person)" in capsys.readouterr().out


def test_coco_there_and_back(tmp_path, listed):
    file, output = tmp_path / "coco.json", tmp_path / "back" / "list.txt"
    assert prep("export", listed, "--format", "coco", "--output", file) == 0
    content = json.loads(file.read_text())
    assert content["categories"] == [{"id": 1, "name": "face"}, {"id": 2, "name": "person"}]
    assert content["images"][0] == {"id": 1, "file_name": "0/0.png", "width": 80, "height": 60}
    assert len(content["annotations"]) == 18
    assert prep("import", file, "--format", "coco", "--output", output) == 0
    same(output, listed, atol=2e-8)
    assert [a.path for a in read_annotations(output)] == [a.path for a in read_annotations(listed)]


BOX = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}
IMAGE = {"id": 7, "file_name": "a.jpg", "width": 10, "height": 20}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ([], "not a COCO annotation file"),
        (
            coco(categories=[{"id": 1, "name": "car"}], annotations=[]),
            "none of its categories is face or person",
        ),
        (coco(annotations=[BOX | {"image_id": 8}]), "annotation 0: found"),
        (coco(annotations=[BOX | {"category_id": 8}]), "annotation 0: found"),
        (coco(annotations=[BOX | {"bbox": [1, 2, 3]}]), "annotation 0: found"),
        (coco(annotations=[BOX | {"bbox": [1, 2, 3, float("nan")]}]), "four finite numbers"),
        (coco(annotations=[BOX, BOX | {"bbox": [1, 2, "3", 4]}]), "annotation 1: found"),
        (coco(annotations=[BOX | {"bbox": [1, 2, -3, 4]}]), "none a negative size"),
        (coco(annotations=[BOX | {"bbox": [1, 2, 1e308, 4]}]), "annotation 0: found"),
        (coco(annotations=[BOX | {"bbox": [True, 2, 3, 4]}]), "annotation 0: found"),
        (coco(images=[IMAGE | {"width": 0}]), "without name, width"),
        (coco(images=[IMAGE | {"width": "10"}]), "not a COCO annotation file"),
        (coco(images=[IMAGE, IMAGE | {"file_name": "b.jpg"}]), "several images have the id 7"),
        (coco(annotations=[BOX | {"id": 5}, BOX | {"id": 5}]), "several annotations have the id 5"),
        (
            coco(categories=[{"id": 1, "name": n} for n in ("face", "person")]),
            "several categories have the id 1",
        ),
        (coco(images=[IMAGE | {"file_name": "../a.jpg"}]), "image 0: the image '../a.jpg' leads out"),
        (coco(images=[IMAGE | {"file_name": " a.jpg"}]), "image 0: the image ' a.jpg' leads out"),
        (coco(images=[IMAGE | {"file_name": "/a.jpg"}]), "image 0: the image '/a.jpg' leads out"),
    ],
)
def test_coco_that_is_broken(tmp_path, content, message):
    file = write(tmp_path / "coco.json", content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        prep("import", file, "--output", tmp_path / "out" / "list.txt")
    assert not (tmp_path / "out").exists()


def test_coco_without_images_is_warned_of_and_polygons_become_boxes(tmp_path, capsys):
    polygon = {"image_id": 7, "category_id": 1, "segmentation": [[1, 2, 4, 2, 4, 6], [2, 2, 3, 3]]}
    file, output = (
        write(tmp_path / "c.json", json.dumps(coco(annotations=[polygon]))),
        tmp_path / "out" / "l.txt",
    )
    assert prep("import", file, "--output", output) == 0
    assert boxes_of(output) == {"a.jpg": [[2, 0.1, 0.1, 0.3, 0.2]]}
    assert "its images are not there, e.g. a.jpg; give their folder with --images" in capsys.readouterr().err
    picture(tmp_path / "pictures" / "a.jpg")
    assert prep("import", file, "--output", output, "--images", tmp_path / "pictures") == 0
    assert image_folder(output) == tmp_path / "pictures"


# Pascal VOC

VOC = """<annotation>
  <folder>x</folder>
  <filename>{name}</filename>
  <size><width>10</width><height>20</height><depth>3</depth></size>
  <object><name>person</name>
    <bndbox><xmin>2</xmin><xmax>5</xmax><ymin>3</ymin><ymax>7</ymax></bndbox></object>
  <object><name>face</name>
    <bndbox><xmin>0</xmin><ymin>1</ymin><xmax>6</xmax><ymax>11</ymax></bndbox></object>
</annotation>
"""


def test_all_parts_of_a_voc_export(tmp_path):
    folder = tmp_path / "export"
    for part in ("train", "valid"):
        picture(folder / part / "a.jpg")
        write(folder / part / "a.xml", VOC.format(name="a.jpg"))
    picture(folder / "train" / "b.jpg")
    write(
        folder / "train" / "b.xml", VOC.format(name="called otherwise.jpg").replace("<width>10</width>", "")
    )
    assert prep("import", folder, "--output", tmp_path / "out") == 0
    boxes = [[2, 0.1, 0.1, 0.3, 0.2], [1, 0, 0, 0.5, 0.5]]
    path = tmp_path / "out" / "train" / "wider_train_gt.txt"
    assert boxes_of(path) == {"a.jpg": boxes, "b.jpg": boxes}
    assert image_folder(path) == folder / "train"
    assert labelled_classes(path) == ("face", "person")
    assert (tmp_path / "out" / "val" / "wider_val_gt.txt").is_file()


def test_the_layout_of_voc_itself(tmp_path):
    picture(tmp_path / "VOC" / "JPEGImages" / "a.jpg")
    write(tmp_path / "VOC" / "Annotations" / "a.xml", VOC.format(name="a.jpg"))
    assert prep("import", tmp_path / "VOC", "--output", tmp_path / "out") == 0
    assert image_folder(tmp_path / "out" / "wider_gt.txt") == tmp_path / "VOC" / "JPEGImages"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<a", "not XML"),
        ("<svg/>", "found <svg>; expected a Pascal VOC <annotation>"),
        (VOC.format(name="../../a.jpg"), r"a\.xml:3: the image '\.\./\.\./a\.jpg' leads out"),
        (VOC.format(name="/a.jpg"), r"a\.xml:3: the image '/a\.jpg' leads out"),
        (VOC.format(name="a.jpg").replace("<xmin>2", "<xmin>six"), "object 0: found {'xmin': 'six'"),
        (VOC.format(name="a.jpg").replace("<xmin>2", "<xmin>6"), "object 0: found"),
        (VOC.format(name="a.jpg").replace("<xmax>6</xmax>", ""), "object 1: found .*'xmax': None"),
    ],
)
def test_voc_that_is_broken(tmp_path, text, message):
    write(tmp_path / "voc" / "a.xml", text)
    with pytest.raises(DataError, match=message):
        prep("import", tmp_path / "voc", "--output", tmp_path / "out")


# CrowdHuman

PERSON = {
    "tag": "person",
    "fbox": [-2, 4, 7, 20],
    "vbox": [0, 4, 5, 8],
    "hbox": [0, 4, 2, 2],
    "head_attr": {"ignore": 0, "occ": 1, "unsure": 0},
    "extra": {"box_id": 0, "occ": 1},
}
IGNORED = PERSON | {"fbox": [5, 0, 5, 10], "vbox": [5, 0, 5, 5], "extra": {"box_id": 1, "ignore": 1}}
MASK = {"tag": "mask", "fbox": [0, 0, 1, 2], "extra": {"box_id": 2, "ignore": 1}}


@pytest.fixture
def crowd(tmp_path) -> Path:
    """Two images of 10 x 20 pixels, one without a person, in CrowdHuman's form."""
    images = {"273271,1a0d": [PERSON, IGNORED, MASK], "284193,b5": []}
    for name in images:
        picture(tmp_path / "Images" / f"{name}.jpg")
    lines = [json.dumps({"ID": name, "gtboxes": boxes}) for name, boxes in images.items()]
    return write(tmp_path / "annotation_val.odgt", "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("options", "person", "ignored"),
    [
        # Cut to the image: 2 pixels on the left and 4 below are out of it.
        ([], [2, 0, 0.2, 0.5, 0.8], [-2, 0.5, 0, 0.5, 0.5]),
        (["--boxes", "full"], [2, 0, 0.2, 0.5, 0.8], [-2, 0.5, 0, 0.5, 0.5]),
        (["--boxes", "visible"], [2, 0, 0.2, 0.5, 0.4], [-2, 0.5, 0, 0.5, 0.25]),
    ],
)
def test_crowdhuman(tmp_path, crowd, options, person, ignored, capsys):
    output = tmp_path / "out" / "list.txt"
    images = ["--images", str(tmp_path / "Images")]
    assert prep("import", crowd, *images, "--output", output, *options) == 0
    assert boxes_of(output) == {
        "273271,1a0d.jpg": [person, ignored, [-2, 0, 0, 0.1, 0.1]],
        "284193,b5.jpg": [],
    }
    assert labelled_classes(output) == ("person",) and image_folder(output) == tmp_path / "Images"
    assert "taken:" not in capsys.readouterr().out


def line_of(*boxes: object, name: object = "284193,b5") -> str:
    return json.dumps({"ID": name, "gtboxes": list(boxes)})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"val\.odgt:4: found '{'; expected a JSON object with ID and gtboxes"),
        ("[1]", "expected a JSON object with ID"),
        ('{"ID": "284193,b5"}', "expected a JSON object with ID"),
        (line_of(name=7), "expected a JSON object with ID"),
        (line_of(name="../a"), r"odgt:4: the image '\.\./a' leads out"),
        (line_of(name="gone"), r"odgt:4: .*gone\.jpg: no such file; expected an image"),
        (line_of(), "odgt:4: 284193,b5.jpg again, as in line 2"),
        (line_of(MASK, {"fbox": [0, 0, 1, 1]}), "odgt:4: box 1: found .*expected a tag and fbox x y w h"),
        (line_of({"tag": "person", "vbox": [0, 0, 1, 1]}), "box 0: found"),
        (line_of(PERSON | {"fbox": [0, 0, 1]}), "box 0: found"),
        (line_of(PERSON | {"fbox": [0, 0, -1, 1]}), "box 0: found"),
        (line_of(PERSON | {"fbox": [0, 0, float("nan"), 1]}), "box 0: found"),
        (line_of(PERSON | {"fbox": "0011"}), "box 0: found"),
        (line_of(PERSON | {"fbox": None}), "box 0: found"),
        (line_of(PERSON | {"extra": 3}), "box 0: found"),
        (line_of("person"), "box 0: found"),
    ],
)
def test_crowdhuman_that_is_broken(tmp_path, crowd, line, message):
    crowd.write_text(crowd.read_text() + f"\n{line}\n")
    images = ["--images", str(tmp_path / "Images")]
    with pytest.raises(DataError, match=message):
        prep("import", crowd, *images, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_crowdhuman_needs_its_images_and_others_have_no_two_boxes(crowd, export):
    with pytest.raises(DataError, match="no sizes of its images; give their folder with --images"):
        prep("import", crowd)
    with pytest.raises(UsageError, match="--boxes full: goes with CrowdHuman's .odgt; .* is yolo"):
        prep("import", export, "--boxes", "full")


# export to YOLO


def test_export_to_yolo_twice_into_a_folder_by_two_dots(tmp_path, listed, monkeypatch):
    assert prep("split", listed, "--save_folder", tmp_path / "parts", "--val_share", "0.3") == 0
    lists = {part: tmp_path / "parts" / part / f"wider_{part}_gt.txt" for part in ("train", "val")}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    arguments = ["export", *map(str, lists.values()), "--format", "yolo", "--output", "../yolo"]
    assert prep(*arguments) == 0
    stale = tmp_path / "yolo" / "labels" / "train" / "stale.txt"
    stale.touch()
    assert prep(*arguments) == 0
    assert not stale.exists()
    assert sorted(path.name for path in (tmp_path / "yolo").iterdir()) == ["data.yaml", "images", "labels"]
    for part, path in lists.items():
        images = {a.path for a in read_annotations(path)}
        folder = tmp_path / "yolo" / "images" / part
        assert {
            p.relative_to(folder).as_posix() for p in folder.rglob("*.png")
        } == images  # of that part alone
    text = (tmp_path / "yolo" / "data.yaml").read_text()
    assert text.endswith("train: images/train\nval: images/val\nnames:\n  0: face\n  1: person\n")
    assert prep("import", "../yolo", "--output", "back") == 0
    for part, path in lists.items():
        same(Path("back", part, f"wider_{part}_gt.txt"), path, atol=3e-9)


def test_export_to_yolo_leaves_a_folder_of_others_alone(tmp_path, listed, export, capsys):
    arguments = ["export", str(listed), "--format", "yolo", "--output"]
    with pytest.raises(DataError, match="data.yaml: there already, not from an export; take another folder"):
        prep(*arguments, export)
    with pytest.raises(DataError, match="images: there already"):
        prep(*arguments, listed.parent)
    assert prep(*arguments, tmp_path / "yolo") == 0
    assert "no val" in capsys.readouterr().err
    with listed.open("a") as file:
        file.write("# gone.jpg\n")
    with pytest.raises(DataError, match=r"list\.txt:\d+: .*gone\.jpg: no such image"):
        prep(*arguments, tmp_path / "yolo")
    assert (tmp_path / "yolo" / "labels" / "train" / "0" / "0.txt").is_file()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt", "b.txt"], "a.txt: neither train, val nor test by its name"),
        (["train/a.txt", "train_b.txt"], "train_b.txt: another train than"),
    ],
)
def test_lists_that_do_not_say_their_part(tmp_path, names, message):
    lists = [str(write(tmp_path / name, "# a.jpg\n")) for name in names]
    with pytest.raises(UsageError, match=message):
        prep("export", *lists, "--format", "yolo", "--output", tmp_path / "yolo", "--images", tmp_path)


coordinate = st.floats(0, 1).map(lambda v: round(v, 6))
labels_ = st.sampled_from([1, 2])
rows = st.lists(st.tuples(labels_, coordinate, coordinate, coordinate, coordinate), max_size=4)
parts = st.dictionaries(
    st.sampled_from(["train", "val", "test"]), st.lists(rows, min_size=1, max_size=3), min_size=1
)
classes = st.sampled_from([["face"], ["person"], ["face", "person"]])


@settings(max_examples=40, deadline=None)
@given(parts=parts, labelled=classes)
def test_import_of_an_export_is_the_list(tmp_path_factory, parts, labelled):
    folder = tmp_path_factory.mktemp("formats")
    picture(folder / "images" / "in" / "a.png", 7, 13)
    for i in range(3):
        (folder / "images" / "in" / f"{i}.png").symlink_to("a.png")
    numbers = {"face": 1, "person": 2}
    lists = {}
    for part, images in parts.items():
        lists[part] = folder / part / "list.txt"
        kept = [[row for row in of_image if row[0] in [numbers[n] for n in labelled]] for of_image in images]
        found = [
            ImageAnnotation(f"in/{i}.png", [row[0] for row in one], [row[1:] for row in one])
            for i, one in enumerate(kept)
        ]
        write_list(lists[part], found, labelled, folder / "images")
    output = folder / "yolo"
    assert prep("export", *lists.values(), "--format", "yolo", "--output", output) == 0
    assert prep("import", output, "--output", folder / "back") == 0
    for part, path in lists.items():
        back = folder / "back" / part / f"wider_{part}_gt.txt"
        same(back, path, atol=3e-9)
        assert labelled_classes(back) == tuple(labelled)
        file, back = folder / f"{part}.json", folder / "coco" / part / "list.txt"
        assert prep("export", path, "--format", "coco", "--output", file) == 0
        assert prep("import", file, "--images", folder / "images", "--output", back) == 0
        same(back, path, atol=2e-7)
        assert labelled_classes(back) == tuple(labelled)
