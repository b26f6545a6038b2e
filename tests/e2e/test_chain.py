"""The whole chain on generated scenes: every stage a process of its own, on the CPU, fed by the one before.

A stage is a fixture that starts the commands; tests say what they must have written. A command that fails
fails its stage with what it said.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from convert_to_onnx import LIMITS
from data.anchors import ALL_SIZES, IOUS, prior_recall, read_shapes
from data.annotations import ImageAnnotation, image_folder, labelled_classes, read_annotations
from data.config import CLASS_LABELS, cfg_mnet
from data.predictions import BoxTable, read_predictions
from models.arguments import DEFAULT_WEIGHTS
from tests.conftest import REPOSITORY
from tests.e2e.scenes import HEIGHT, WIDTH, make_scenes, serve, write_open_images, write_wider

FACE, PERSON = CLASS_LABELS["face"], CLASS_LABELS["person"]
PREP = "prep_data.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
SPLITS = ("train", "validation")

#: The network that the chain starts with, so that a few steps end in one that finds something.
START = DEFAULT_WEIGHTS


def together(*commands: Iterable[object], folder: Path = REPOSITORY) -> list[str]:
    """Standard output of Python programs that run at the same time."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    lines = [[sys.executable, *map(str, command)] for command in commands]
    started = [
        subprocess.Popen(
            line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for line in lines
    ]
    said = [process.communicate() for process in started]
    for line, process, (out, err) in zip(lines, started, said, strict=True):
        if process.returncode:
            pytest.fail(f"{' '.join(line)}\nended with {process.returncode}\n{out}\n{err}", pytrace=False)
    return [out for out, _ in said]


class Sources:
    """The files of both data sets as they are published, and what is drawn on the images, by split."""

    def __init__(self, folder: Path) -> None:
        self.mirror, self.zips = folder / "mirror", folder / "zips"
        self.open_images = {
            split: write_open_images(self.mirror, split, make_scenes(count, seed))
            for seed, (split, count) in enumerate(zip(SPLITS, (20, 8), strict=True))
        }
        parts = write_wider(self.zips, make_scenes(10, 2), make_scenes(10, 3))
        self.wider = dict(zip(("train", "val"), parts, strict=True))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def downloads(sources, tmp_path_factory) -> Path:
    """Open Images from a local server, WIDER FACE from its archives."""
    folder = tmp_path_factory.mktemp("downloads")
    with serve(sources.mirror) as url:
        more = "--miap", "--image_labels", "--base_url", url, "--save_folder", folder / "oi"
        zips = sorted(sources.zips.glob("*.zip"))
        together(
            *((PREP, "download", "--split", split, *more) for split in SPLITS),
            (PREP, "unpack", *zips, "--save_folder", folder / "wider"),
        )
    return folder


@pytest.fixture(scope="module")
def lists(downloads, tmp_path_factory) -> Path:
    """Annotation lists: one folder a step."""
    folder = tmp_path_factory.mktemp("lists")
    oi, wider = downloads / "oi", downloads / "wider"
    train, validation = (folder / "open_images" / split / "list.txt" for split in SPLITS)
    miap = "--miap", oi / "validation" / "miap-boxes.csv"
    together(
        *(
            (PREP, "openimages", oi / split / "boxes.csv", "--images", oi / split / "images", *more)
            for split, more in zip(
                SPLITS, [("--output", train), (*miap, "--output", validation)], strict=True
            )
        ),
        *(
            (
                *(PREP, "widerface", wider / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt"),
                *("--images", wider / f"WIDER_{part}" / "images"),
                *("--output", folder / "wider" / part / "list.txt"),
            )
            for part in ("train", "val")
        ),
    )
    together((PREP, "link", wider / "WIDER_train" / "images", folder / "wider" / "train"))
    merged, cleaned = folder / "merged" / "list.txt", folder / "cleaned" / "list.txt"
    together((PREP, "merge", train, validation, "--output", merged))
    together(
        (PREP, "clean", merged, "--output", cleaned),
        (PREP, "anchors", merged, "--output", folder / "anchors.png"),
    )
    parts = folder / "parts"
    together((PREP, "split", cleaned, "--val_share", 0.4, "--save_folder", parts))
    together(*((PREP, "check", parts / part / f"wider_{part}_gt.txt") for part in ("train", "val")))
    return folder


@pytest.fixture(scope="module")
def runs(lists, tmp_path_factory) -> dict[int, Path]:
    """A short training in one process and in two, by their number."""
    folder = tmp_path_factory.mktemp("runs")
    val = lists / "parts" / "val" / "wider_val_gt.txt"
    arguments = [
        *("train_changeclass.py", "--cpu", "--weights", START, "--num_workers", 0),
        *("--training_dataset", lists / "parts" / "train" / "wider_train_gt.txt"),
        *(lists / "wider" / "train" / "list.txt", "--val_dataset", val),
        *("--image_size", 160, "--batch_size", 6, "--epochs", 2, "--freeze_bn", "--lr", 1e-4),
    ]
    found = {1: folder / "one", 2: folder / "two"}
    together((*arguments, "--save_folder", found[1]), (*TORCHRUN, *arguments, "--save_folder", found[2]))
    return found


def final(run: Path) -> Path:
    """The weights that a run ends with."""
    return run / "mobilenet0.25_2cls6anchors_Final.pth"


@pytest.fixture(scope="module")
def dumps(runs, downloads, lists, tmp_path_factory) -> Path:
    """Detections of both validation sets; the ONNX file, and what detect.py finds with it."""
    folder = tmp_path_factory.mktemp("dumps")
    wider = downloads / "wider" / "WIDER_val" / "images"
    open_images = [
        *("--dataset", "openimages"),
        *("--dataset_list", lists / "parts" / "val" / "wider_val_gt.txt"),
    ]
    dump = "test_widerface_personface.py", "--cpu", "-m"
    onnx = folder / "detector.onnx"
    together(
        (*dump, final(runs[1]), *open_images, "--save_folder", folder / "open_images"),
        (*dump, final(runs[1]), "--dataset_folder", wider, "--save_folder", folder / "wider"),
        (*TORCHRUN, *dump, final(runs[2]), *open_images, "--save_folder", folder / "open_images_two"),
        ("convert_to_onnx.py", "-m", final(runs[1]), "--image_size", HEIGHT, WIDTH, "--out", onnx),
    )
    found = "--save_folder", folder / "detect", "--save_json", folder / "detect.json"
    together(
        ("detect.py", wider, "-m", onnx, "--cpu", "--scales", 1, "--confidence_threshold", 0.02, *found),
        (*dump, onnx, "--dataset_folder", wider, "--save_folder", folder / "onnx"),
    )
    return folder


def rows(annotations: Iterable[ImageAnnotation]) -> dict[str, np.ndarray]:
    """float[N, 5], label x y w h sorted, of the images that have boxes."""
    return {
        Path(a.path).name: np.array(sorted(np.column_stack([a.labels, a.boxes_xywh_norm]).tolist()))
        for a in annotations
        if len(a)
    }


def assert_drawn(path: Path, drawn: list[ImageAnnotation]) -> None:
    """The list has the drawn boxes, all of them and no others, to its nine decimals."""
    found, expected = rows(read_annotations(path)), rows(drawn)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-9, err_msg=name)


def test_lists_hold_what_is_drawn(sources, lists):
    drawn = sources.open_images
    assert_drawn(lists / "open_images" / "train" / "list.txt", drawn["train"])
    # MIAP knows the images that have a person.
    with_persons = [a for a in drawn["validation"] if PERSON in a.labels]
    assert 0 < len(with_persons) < len(drawn["validation"])
    assert_drawn(lists / "open_images" / "validation" / "list.txt", with_persons)
    for part, faces in sources.wider.items():
        path = lists / "wider" / part / "list.txt"
        assert_drawn(path, faces)
        assert len(read_annotations(path)) == len(faces)  # those without a face too
        assert labelled_classes(path) == ("face",)
    for step in (lists / "merged", lists / "cleaned"):
        assert_drawn(step / "list.txt", [*drawn["train"], *with_persons])
        assert labelled_classes(step / "list.txt") == ("face", "person")


def test_cleaning_finds_the_portraits(lists):
    """A portrait is a face without a person; nothing else is wrong."""
    findings = (lists / "cleaned" / "list.findings.jsonl").read_text().splitlines()
    portraits = 0
    for annotation in read_annotations(lists / "merged" / "list.txt"):
        portraits += int((annotation.labels == FACE).sum() - (annotation.labels == PERSON).sum())
    assert {json.loads(line)["rule"] for line in findings} == {"face_outside"}
    assert len(findings) == portraits > 0
    assert (lists / "cleaned" / "list.findings.jpg").stat().st_size > 1000


def test_splitting_keeps_everything_once(lists):
    parts = [read_annotations(lists / "parts" / part / f"wider_{part}_gt.txt") for part in ("train", "val")]
    assert all(parts)
    assert_drawn(lists / "cleaned" / "list.txt", [*parts[0], *parts[1]])


def test_priors_cover_the_drawn_boxes(lists):
    assert (lists / "anchors.png").read_bytes().startswith(b"\x89PNG")
    folder = lists / "merged"
    recall = prior_recall(
        read_shapes(folder / "list.txt", 640, image_folder(folder / "list.txt"), None), cfg_mnet
    )
    of_all_sizes = [row for row in recall if row.bounds == ALL_SIZES]
    labels = np.concatenate([a.labels for a in read_annotations(lists / "cleaned" / "list.txt")])
    counts = {name: (labels == label).sum() for name, label in CLASS_LABELS.items()}
    assert {row.name: row.boxes for row in of_all_sizes} == counts
    assert all(row.shares[IOUS.index(0.45)] > 0.8 for row in of_all_sizes)


def epochs(run: Path) -> list[dict[str, float]]:
    """The rows of results.csv, but for the start, which has no losses."""
    with (run / "results.csv").open() as file:
        _, *rows = csv.DictReader(file)
    return [{name: float(value) for name, value in row.items()} for row in rows]


def test_training_learns(runs):
    first, *_, last = epochs(runs[1])
    assert last["loss"] < 0.9 * first["loss"]
    assert all(0.5 < last[name] <= 1 for name in ("ap_face", "ap_person"))


def read_dump(folder: Path) -> dict[str, BoxTable]:
    """Detections by image, of the text files below a folder."""
    keys = [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.txt"))]
    found = {}
    for key in keys:
        found[key], report = read_predictions(folder, [key])
        assert not report.miscounted and not report.classless
    return found


def scores(evaluator: str, predictions: Path, truth: Path) -> dict:
    """``--output`` of an evaluator that is started in its own folder."""
    numbers = predictions.with_suffix(".json")
    command = "evaluation.py", "-p", predictions, "-g", truth, "--json", numbers
    (printed,) = together(command, folder=REPOSITORY / evaluator)
    assert "Val AP: " in printed
    return json.loads(numbers.read_text())


def test_evaluators_read_the_dumps(sources, downloads, lists, dumps):
    truth = downloads / "wider" / "eval_tools" / "ground_truth"
    numbers = scores("widerface_evaluate", dumps / "wider", truth)
    heights = np.concatenate([a.boxes_xywh_norm[:, 3] for a in sources.wider["val"]]) * HEIGHT
    counts = [int((heights >= least).sum()) for least in (25, 15, 0)]
    assert [subset["faces"] for subset in numbers["subsets"].values()] == counts
    found = read_dump(dumps / "wider")
    assert numbers["images"] == len(found) == len(sources.wider["val"])
    assert numbers["detections"] == sum((image.labels == FACE).sum() for image in found.values())
    assert all(0.5 < subset["ap"] <= 1 for subset in numbers["subsets"].values())

    truth = lists / "parts" / "val" / "wider_val_gt.txt"
    numbers = scores("wider_openimagespersonface_evaluate", dumps / "open_images", truth)
    found = read_dump(dumps / "open_images")
    assert numbers["images"] == len(found) == len(read_annotations(truth))
    for name, label in CLASS_LABELS.items():
        one = numbers["classes"][name]
        assert one["boxes"] == sum(int((a.labels == label).sum()) for a in read_annotations(truth))
        assert one["detections"] == sum((image.labels == label).sum() for image in found.values())
        assert all(0.5 < one[key] <= 1 for key in ("ap", "ap_30", "coco_ap_50", "precision", "recall"))


def assert_agree(
    ones: Path, others: Path, to_pixels: object, pixels: float, score: float, share: float = 1.0
) -> None:
    """Detections above the threshold of 0.02 by some margin are in the other dump too, both ways: ``share``
    of them."""
    dumps = read_dump(ones), read_dump(others)
    assert dumps[0].keys() == dumps[1].keys()
    compared, lost = 0, []
    for key in dumps[0]:
        for one, other in ([dump[key] for dump in order] for order in (dumps, dumps[::-1])):
            for i in np.flatnonzero(one.scores > 0.1):
                near = (np.abs(other.boxes - one.boxes[i]) * to_pixels <= pixels).all(1)
                near &= (np.abs(other.scores - one.scores[i]) <= score) & (other.labels == one.labels[i])
                if not near.any():
                    lost.append((key, one.boxes[i] * to_pixels, one.scores[i], one.labels[i]))
                compared += 1
    assert compared > len(dumps[0])
    assert len(lost) <= (1 - share) * compared, lost


def test_onnx_file_finds_what_the_checkpoint_finds(dumps):
    assert_agree(dumps / "wider", dumps / "onnx", 1, *LIMITS["fp32"])
    content = json.loads((dumps / "detect.json").read_text())
    found = read_dump(dumps / "onnx")
    assert len(content["images"]) == len(found)
    assert len(content["annotations"]) == sum(map(len, found.values()))
    assert len(list((dumps / "detect").rglob("*.jpg"))) == len(found)


def test_two_processes_do_as_one(runs, dumps):
    """Sums are rounded in another order, no more. Hard negatives are picked by comparing scores, so weights
    drift apart slowly, by about 2e-5 of the loss in the second epoch; and of two boxes that score nearly the
    same NMS may then keep the other one, hence the share."""
    for one, two in zip(epochs(runs[1]), epochs(runs[2]), strict=True):
        for name in ("loss", "loc", "class"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name
    to_pixels = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    assert_agree(
        dumps / "open_images", dumps / "open_images_two", to_pixels, pixels=1.0, score=0.01, share=0.95
    )
