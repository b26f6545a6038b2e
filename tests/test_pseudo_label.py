"""Boxes from another model: which are added, what the side file says, every source."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models import WeightsEnum, get_model, list_models

from data.annotations import ImageAnnotation, labelled_classes, read_annotations, write_list
from data.config import cfg_mnet, one_class
from data.predictions import Detections
from models.checkpoint import save_checkpoint
from models.pseudo_label import LabelRule, boxes_to_add
from models.retinaface import RetinaFace
from models.teachers import TorchvisionPersons
from prep_data import main
from utils.cli import DataError, UsageError
from utils.images import read_image, write_image

SIZE = (100, 200)
TRUTH = ImageAnnotation("a.jpg", [1, 2], [[0.1, 0.1, 0.1, 0.2], [0.5, 0, 0.5, 1]])


def found(*rows: tuple[float, ...]) -> Detections:
    """Rows of x1 y1 x2 y2 score label."""
    table = np.reshape(np.array(rows, np.float64), (-1, 6))
    return Detections(
        table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int64)
    )


def added(*rows: tuple[float, ...], **rule: float) -> list[tuple]:
    boxes = boxes_to_add(TRUTH, found(*rows), SIZE, LabelRule(**rule), "model")
    return [(box.label, *np.round(box.box_xywh_norm, 6), box.score) for box in boxes]


def test_nothing_found_nothing_added():
    assert added() == []
    empty = ImageAnnotation("a.jpg")
    (box,) = boxes_to_add(empty, found((0, 0, 50, 50, 0.9, 1)), SIZE, LabelRule(), "model")
    assert (box.image, box.source, box.box_xywh_norm) == ("a.jpg", "model", (0, 0, 0.25, 0.5))


def test_which_boxes_are_added():
    free = (100, 50, 140, 90, 0.9, 1)
    assert added(free) == [(1, 0.5, 0.5, 0.2, 0.4, 0.9)]
    assert added((*free[:4], 0.69, 1)) == []
    assert added((*free[:4], 0.69, 1), score=0.6) == [(1, 0.5, 0.5, 0.2, 0.4, 0.69)]
    assert added((100, 50, 107, 90, 0.9, 1)) == []
    assert added((100, 50, 107, 90, 0.9, 1), min_size=7) != []
    # On the truth of its class, and on that of the other class.
    assert added((20, 10, 40, 30, 0.9, 1)) == []
    assert added((20, 10, 40, 30, 0.9, 2)) == [(2, 0.1, 0.1, 0.1, 0.2, 0.9)]
    # Two that overlap: the better one.
    assert added((100, 50, 140, 88, 0.8, 1), free) == [(1, 0.5, 0.5, 0.2, 0.4, 0.9)]
    # Cut to the image; outside of it nothing is left.
    assert added((-20, -20, 20, 20, 0.8, 1)) == [(1, 0, 0, 0.1, 0.2, 0.8)]
    assert added((-50, 0, -10, 40, 0.8, 1)) == []


def test_unsure_boxes_become_ignore_regions():
    sure, unsure = (100, 50, 140, 90, 0.7, 1), (150, 50, 190, 90, 0.3, 1)
    assert added(sure, unsure, ignore_from=0.3) == [
        (1, 0.5, 0.5, 0.2, 0.4, 0.7),
        (-1, 0.75, 0.5, 0.2, 0.4, 0.3),
    ]
    assert added((*unsure[:4], 0.29, 1), ignore_from=0.3) == []
    # The unsure one is the same face as the sure one, or as the truth.
    assert added(sure, (*sure[:4], 0.4, 1), (20, 10, 40, 30, 0.4, 1), ignore_from=0.3) == added(sure)


def read_side_file(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def listed(tmp_path) -> Path:
    """Images 1.png to 3.png of 200x100, a person in each, labelled for persons."""
    path = tmp_path / "persons" / "list.txt"
    for i in (1, 2, 3):
        noise = np.random.default_rng(i).integers(0, 255, (100, 200, 3), np.uint8)
        write_image(path.parent / "images" / f"{i:03d}.png", noise)
    write_list(
        path, [ImageAnnotation(f"{i:03d}.png", [2], [[0.5, 0, 0.5, 1]]) for i in (1, 2, 3)], ["person"]
    )
    return path


def coco(path: Path, *rows: tuple[object, int, list[float], float]) -> Path:
    keys = ("image_id", "category_id", "bbox", "score")
    path.write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
    return path


def test_coco_detections_are_added_once(tmp_path, listed, capsys):
    faces = [
        ("001.png", 5, [10, 10, 20, 20], 0.95),
        ("002", 5, [10, 10, 20, 30], 0.8),
        (3, 5, [10, 10, 20, 40], 0.9),
        (3, 6, [10, 10, 20, 40], 0.9),
        ("elsewhere", 5, [10, 10, 20, 40], 0.9),
    ]
    detections = coco(tmp_path / "found.json", *faces)
    output = tmp_path / "both" / "list.txt"
    arguments = [
        "pseudo_label",
        str(listed),
        "--output",
        str(output),
        "--images",
        str(listed.parent / "images"),
    ]
    from_coco = [*arguments, "--detections", str(detections), "--category", "5=face"]
    assert main(from_coco) == 0
    assert "1 of its images are not in the list, e.g. elsewhere" in capsys.readouterr().err
    boxes = [a.boxes_xywh_norm.tolist()[1:] for a in read_annotations(output)]
    np.testing.assert_allclose(boxes, [[[0.05, 0.1, 0.1, h]] for h in (0.2, 0.3, 0.4)], atol=1e-9)
    assert labelled_classes(output) == ("face", "person")
    assert labelled_classes(listed) == ("person",)
    side = read_side_file(output.with_name("list.pseudo.jsonl"))
    assert [(b["image"], b["score"], b["source"]) for b in side] == [
        ("001.png", 0.95, "found.json"),
        ("002.png", 0.8, "found.json"),
        ("003.png", 0.9, "found.json"),
    ]
    # A COCO file that holds images and scores; what is unsure is ignored, once.
    ids = {1: "001.png", 2: "002.png"}
    annotations = [
        {"image_id": 1, "category_id": 5, "bbox": [10, 10, 20, 20], "score": 0.95},
        {"image_id": 2, "category_id": 5, "bbox": [10, 10, 20, 30], "score": 0.3},
    ]
    images = [{"id": key, "file_name": name} for key, name in ids.items()]
    detections.write_text(json.dumps({"images": images, "annotations": annotations}))
    for _ in range(2):
        assert main([*from_coco, "--ignore_from", "0.2"]) == 0
        assert [a.labels.tolist() for a in read_annotations(output)] == [[2, 1], [2, -1], [2]]
    assert "ignore regions of face added" in capsys.readouterr().out
    detections = coco(tmp_path / "found.json", *faces)
    assert main(from_coco) == 0
    # Again on its own output: all there already.
    again = tmp_path / "again" / "list.txt"
    images = ["--images", str(listed.parent / "images")]
    assert main(["pseudo_label", str(output), "--output", str(again), *images, *from_coco[6:]]) == 0
    assert again.read_bytes() == output.read_bytes()
    assert read_side_file(again.with_name("list.pseudo.jsonl")) == []
    for box, annotation in zip(side, read_annotations(output), strict=True):
        np.testing.assert_allclose(box["box_xywh_norm"], annotation.boxes_xywh_norm[1], atol=1e-9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("{}", "expected a list of detections, found a dict"),
        ("[1]", "detection 0: found 1"),
        ('[{"image_id": 1, "category_id": 5, "bbox": [1, 2, 3], "score": 1}]', "detection 0: found"),
        ('[{"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 2}]', "score from 0 to 1"),
        ('[{"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, -4], "score": 1}]', "detection 0: found"),
    ],
)
def test_broken_detections(tmp_path, listed, content, message):
    file = tmp_path / "found.json"
    file.write_text(content)
    arguments = [
        "pseudo_label",
        str(listed),
        "--output",
        str(tmp_path / "o" / "list.txt"),
        "--category",
        "5=face",
    ]
    with pytest.raises(DataError, match=message):
        main([*arguments, "--detections", str(file)])
    assert not (tmp_path / "o").exists()


def test_usage(tmp_path, listed):
    arguments = ["pseudo_label", str(listed), "--output", str(tmp_path / "o" / "list.txt")]
    with pytest.raises(UsageError, match="one of --trained_model and --detections"):
        main(arguments)
    with pytest.raises(UsageError, match="category ids"):
        main([*arguments, "--detections", str(coco(tmp_path / "f.json"))])
    with pytest.raises(UsageError, match="5=cat: expected NAME=CLASS with one of face"):
        main([*arguments, "--detections", str(coco(tmp_path / "f.json")), "--category", "5=cat"])
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--detections", str(coco(tmp_path / "f.json")), "--confidence_threshold", "70"])
    detections = ["--detections", str(coco(tmp_path / "f.json")), "--category", "5=face"]
    with pytest.raises(UsageError, match="ignore_from 0.7: expected less than --confidence_threshold"):
        main([*arguments, *detections, "--ignore_from", "0.7"])
    same_folder = [*arguments[:3], str(listed.with_name("other.txt"))]
    with pytest.raises(DataError, match="write it to another folder"):
        main([*same_folder, "--detections", str(coco(tmp_path / "f.json")), "--category", "5=face"])


def test_checkpoint_alone_and_shared_out_add_the_same(tmp_path, listed, two_processes):
    """A one-class network with weights by chance fires somewhere; two processes find what one does."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "faces.pth", RetinaFace(one_class(cfg_mnet)))
    (listed.parent / "images" / "002.png").write_bytes(b"broken")
    options = [
        "--images",
        str(listed.parent / "images"),
        "--device",
        "cpu",
        "--conf",
        "0.3",
        "--min_size",
        "20",
        "--long_side",
        "200",
    ]
    options += ["--trained_model", str(tmp_path / "faces.pth")]
    command = ["pseudo_label", str(listed), *options, "--output"]
    assert main([*command, str(tmp_path / "one" / "list.txt")]) == 0
    found_ = read_annotations(tmp_path / "one" / "list.txt")
    assert len(found_[0]) > 1
    assert len(found_[1]) == 1
    assert {b["source"] for b in read_side_file(tmp_path / "one" / "list.pseudo.jsonl")} == {"faces.pth"}
    both = two_processes("prep_data", *command, tmp_path / "two" / "list.txt")
    assert [one.code for one in both] == [0, 0], both
    for name in ("list.txt", "list.pseudo.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_published_one_class_network_finds_the_face_of_a_photo(reference, tmp_path):
    """The parent's checkpoint on the astronaut photo: one face, none where there is one already."""
    folder = tmp_path / "photos"
    image = next((reference / "fixtures" / "images").glob("astronaut.*"))
    (folder / "images").mkdir(parents=True)
    (folder / "images" / image.name).write_bytes(image.read_bytes())
    write_list(folder / "list.txt", [ImageAnnotation(image.name)], ["person"])
    weights = str(reference / "weights" / "mobilenet0.25_Final.pth")
    options = ["--trained_model", weights, "--device", "cpu", "--images", str(folder / "images"), "--output"]
    first, second = tmp_path / "a" / "list.txt", tmp_path / "b" / "list.txt"
    assert main(["pseudo_label", str(folder / "list.txt"), *options, str(first)]) == 0
    (annotation,) = read_annotations(first)
    assert annotation.labels.tolist() == [1]
    x, y, w, h = annotation.boxes_xywh_norm[0]
    assert 0.3 < x + w / 2 < 0.55
    assert y + h / 2 < 0.4
    assert main(["pseudo_label", str(first), *options, str(second)]) == 0
    assert second.read_bytes() == first.read_bytes()


# Detectors of torchvision


class StandIn(torch.nn.Module):
    """Finds a cup and two persons in every image, of which it notes shape and first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        self.seen += [(tuple(image.shape), image[:, 0, 0].tolist()) for image in images]
        boxes = torch.tensor([[0.0, 0, 30, 30], [10, 20, 50, 80], [100, 0, 200, 100]])
        found = {"boxes": boxes, "scores": torch.tensor([0.95, 0.9, 0.8]), "labels": torch.tensor([47, 1, 1])}
        return [found for _ in images]


@pytest.fixture
def stand_in(monkeypatch) -> StandIn:
    """In place of any of torchvision's detectors, with no weights to fetch."""
    network = StandIn()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **_: {})
    monkeypatch.setattr("models.teachers.get_model", lambda name, weights, weights_backbone: network)
    return network


def test_a_detector_of_torchvision_adds_persons(tmp_path, listed, stand_in, capsys):
    output = tmp_path / "both" / "list.txt"
    name = "torchvision:fasterrcnn_resnet50_fpn_v2"
    assert main(["pseudo_label", str(listed), "--trained_model", name, "--output", str(output)]) == 0
    # The second person lies on a truth; the cup is none.
    for annotation in read_annotations(output):
        assert annotation.labels.tolist() == [2, 2]
        np.testing.assert_allclose(annotation.boxes_xywh_norm[1], [0.05, 0.2, 0.2, 0.6], atol=1e-9)
    assert {b["source"] for b in read_side_file(output.with_name("list.pseudo.jsonl"))} == {name}
    (shape, pixel), *_ = stand_in.seen
    bgr = read_image(listed.parent / "images" / "001.png")[0, 0]
    assert shape == (3, 100, 200) and pixel == pytest.approx((bgr[::-1] / 255).tolist())
    assert "boxes of person added" in capsys.readouterr().out


@pytest.mark.parametrize("name", list_models(module=torchvision.models.detection))
def test_every_detector_of_torchvision_knows_persons(stand_in, name):
    (found,) = TorchvisionPersons(name)([np.zeros((100, 200, 3), np.uint8)])
    assert found.labels.tolist() == [2, 2] and found.image_size == (100, 200)


def test_a_real_detector_of_torchvision_with_weights_by_chance(monkeypatch):
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **_: {})
    name = "ssdlite320_mobilenet_v3_large"
    network = get_model(name, weights=None, weights_backbone=None)
    monkeypatch.setattr("models.teachers.get_model", lambda *_, **__: network)
    found = TorchvisionPersons(name)([np.full((60, 90, 3), 99, np.uint8), np.zeros((40, 40, 3), np.uint8)])
    assert [one.image_size for one in found] == [(60, 90), (40, 40)]
    assert all((np.diff(one.scores) <= 0).all() and (one.labels == 2).all() for one in found)


def test_torchvision_that_cannot_be_used(tmp_path, listed, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    arguments = ["pseudo_label", str(listed), "--output", str(tmp_path / "o" / "list.txt"), "-m"]
    near = r"resnet50_fpm: no such detector; did you mean torchvision:retinanet_resnet50_fpn\? There are fas"
    with pytest.raises(UsageError, match=near):
        main([*arguments, "torchvision:retinanet_resnet50_fpm"])
    with pytest.raises(DataError, match=r"no network.*put https://.*\.pth into .*cache/hub/checkpoints"):
        main([*arguments, "torchvision:ssd300_vgg16"])
    with pytest.raises(UsageError, match="finds persons"):
        main([*arguments, "torchvision:ssd300_vgg16", "--classes", "face"])
    assert not (tmp_path / "o").exists()
