"""test_widerface_personface.py at the command line: what it writes, skips, refuses and shares out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import test_widerface_personface as script
from data.annotations import ImageAnnotation, write_annotations
from data.predictions import BoxTable, read_predictions
from models.arguments import build_detector
from tests.conftest import table_of
from utils.cli import DataError, UsageError
from utils.files import locked
from utils.images import read_image, write_image
from wider_openimagespersonface_evaluate import evaluation as openimages
from widerface_evaluate import evaluation as widerface


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of five small images of two sizes, in two event folders."""
    random = np.random.default_rng(5)
    for i, name in enumerate(["0--A/a.v2.jpg", "0--A/b.png", "1--B/c d.jpg", "1--B/e.jpg", "1--B/f.jpg"]):
        size = (48, 80, 3) if i % 2 else (64, 40, 3)
        write_image(tmp_path / "images" / name, random.integers(0, 256, size, np.uint8))
    return tmp_path / "images"


def run(*arguments: object, weights: str) -> int:
    return script.main([*map(str, arguments), "-m", weights, "--cpu"])


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.txt"))}


def test_writes_what_the_detector_finds(photos, tmp_path, weights, capsys):
    assert run("--dataset_folder", photos, "--save_folder", tmp_path / "out", weights=weights) == 0
    shown = capsys.readouterr().out
    assert "5 images in" in shown and "coordinates as widerface" in shown
    assert list(texts(tmp_path / "out")) == [
        *("0--A/a.v2.txt", "0--A/b.txt", "1--B/c d.txt", "1--B/e.txt", "1--B/f.txt")
    ]
    assert not (tmp_path / "out_images").exists()
    image = read_image(photos / "1--B" / "c d.jpg")
    found = build_detector(script.parse_args(["-m", weights, "--cpu"]))(image)
    path = tmp_path / "out" / "1--B" / "c d.txt"
    written, report = read_predictions(path.parent, ["c d"])
    assert path.read_text().splitlines()[:2] == ["c d", str(len(found))] and not report.miscounted
    assert set(written.labels) == {1, 2} and written.scores.min() < 0.5
    np.testing.assert_array_equal(written.labels, found.labels)
    np.testing.assert_array_equal(written.scores.astype(np.float32), found.scores)
    assert written.boxes == pytest.approx(found.boxes, abs=1e-4)
    # Normalised: x and width by the width, y and height by the height.
    save = tmp_path / "normalised"
    assert (
        run("--dataset_folder", photos, "--dataset", "openimages", "--save_folder", save, weights=weights)
        == 0
    )
    normalised, _ = read_predictions(save, ["1--B/c d"])
    height, width = image.shape[:2]
    assert normalised.boxes * [width, height, width, height] == pytest.approx(found.boxes, abs=1e-4)


def test_lists(photos, tmp_path, weights, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text("/1--B/e.jpg\n/6ff9.jpg.2888Ac4d\n/0--A/b.png\n/1--B/e.jpg\n")
    arguments = "--dataset_folder", photos, "--dataset_list", listed, "--save_folder", tmp_path / "out"
    assert run(*arguments, weights=weights) == 0
    assert list(texts(tmp_path / "out")) == ["0--A/b.txt", "1--B/e.txt"]
    shown = capsys.readouterr().err
    assert "6ff9.jpg.2888Ac4d" in shown and "named again" in shown
    listed.write_text("# 0--A/a.v2.jpg\n1 0 0 1 1\n")
    assert run(*arguments, weights=weights) == 0
    assert "0--A/a.v2.txt" in texts(tmp_path / "out")


def test_missing_and_corrupt_images_do_not_stop_the_rest(photos, tmp_path, weights, capsys):
    (photos / "0--A" / "b.png").write_bytes(b"nothing")
    listed = tmp_path / "list.txt"
    listed.write_text("0--A/b.png\n0--A/absent.jpg\n1--B/e.jpg\n1--B/f.jpg\n")
    arguments = "--dataset_folder", photos, "--dataset_list", listed, "--save_folder", tmp_path / "out"
    assert run(*arguments, "--batch_size", 3, weights=weights) == 1
    shown = capsys.readouterr()
    assert "b.png" in shown.err and "absent.jpg" in shown.err and "2 images failed" in shown.out
    assert list(texts(tmp_path / "out")) == ["1--B/e.txt", "1--B/f.txt"]


def test_resume(photos, tmp_path, weights, capsys):
    arguments = "--dataset_folder", photos, "--save_folder", tmp_path / "out"
    assert run(*arguments, weights=weights) == 0
    whole = texts(tmp_path / "out")
    path = tmp_path / "out" / "1--B" / "e.txt"
    path.write_text(path.read_text().rsplit("\n", 4)[0])
    (tmp_path / "out" / "0--A" / "b.txt").unlink()
    kept = (tmp_path / "out" / "1--B" / "f.txt").stat().st_mtime_ns
    assert run(*arguments, "--resume", weights=weights) == 0
    assert "2 images in" in (shown := capsys.readouterr().out) and "3 images were there already" in shown
    assert texts(tmp_path / "out") == whole
    assert (tmp_path / "out" / "1--B" / "f.txt").stat().st_mtime_ns == kept


def test_resume_takes_no_file_of_unknown_weights(photos, tmp_path, weights, capsys):
    """The settings of a dump whose first run was resumed, or stopped before it wrote them."""
    arguments = "--dataset_folder", photos, "--save_folder", tmp_path / "out", "--resume"
    assert run(*arguments, weights=weights) == 0
    assert (tmp_path / "out" / "settings.json").exists()
    with pytest.raises(UsageError, match=r"other settings: --nms_threshold 0.3 \(was 0.4\); give"):
        run(*arguments, "--nms_threshold", "0.3", weights=weights)
    (tmp_path / "out" / "settings.json").unlink()
    capsys.readouterr()
    assert run(*arguments, "--nms_threshold", "0.3", weights=weights) == 0
    assert "5 images in" in (shown := capsys.readouterr().out) and "0 images were there" in shown


@pytest.mark.parametrize("dataset", ["widerface", "openimages"])
def test_evaluate_prints_what_the_evaluator_does(photos, tmp_path, weights, capsys, dataset):
    out, truths, listed = tmp_path / "out", tmp_path / "truth.txt", tmp_path / "listed.txt"
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.*g"))]
    if dataset == "openimages":
        write_annotations(truths, [ImageAnnotation(name, [1, 2], [[0, 0, 0.3, 0.3]] * 2) for name in names])
    else:
        truths.write_text("".join(f"{name}\n1\n0 0 10 10 0 0 0 0 0 0\n" for name in names))
    arguments = "--dataset_folder", photos, "--dataset", dataset, "--save_folder", out, "--evaluate", truths
    evaluator = {"widerface": widerface, "openimages": openimages}[dataset]

    def said(*options: object) -> tuple[str, str]:
        """What the dump tells, and the evaluator's lines, which are those of its own command line."""
        assert run(*arguments, *options, weights=weights) == 0
        first, _, lines = capsys.readouterr().out.partition("\n")
        scored = ["-p", str(out), "-g", str(truths), *(["--image_list", str(listed)] if options[1:] else [])]
        assert evaluator.main(scored) == 0
        assert lines == capsys.readouterr().out and "Val AP" in lines
        return first, lines

    first, lines = said()
    assert "5 images in" in first
    again = said("--resume")
    assert "0 images in" in again[0] and "5 images were there already" in again[0] and again[1] == lines
    listed.write_text("\n".join(names[:2]))
    assert "2 images, IoU" in said("--resume", "--dataset_list", listed)[1]


def test_evaluate_does_not_score_half_a_dump(photos, tmp_path, weights, capsys):
    arguments = "--dataset_folder", photos, "--save_folder", tmp_path / "out", "--evaluate"
    with pytest.raises(DataError, match="no such ground truth; give what the evaluator takes as -g"):
        run(*arguments, tmp_path / "none", weights=weights)
    assert not (tmp_path / "out").exists()
    (photos / "0--A" / "b.png").write_bytes(b"broken")
    truths = tmp_path / "truth.txt"
    truths.write_text("0--A/a.v2.jpg\n1\n0 0 10 10 0 0 0 0 0 0\n")
    assert run(*arguments, truths, weights=weights) == 1
    assert "Val AP" not in capsys.readouterr().out


def test_two_runs_do_not_write_to_one_folder(photos, tmp_path, weights):
    out = tmp_path / "out"
    with locked(out), pytest.raises(DataError, match="another run is writing to this folder"):
        run("--dataset_folder", photos, "--save_folder", out, weights=weights)
    assert not list(out.iterdir())


def test_images(photos, tmp_path, weights):
    arguments = "--dataset_folder", photos, "--save_folder", tmp_path / "out"
    assert run(*arguments, "-s", "--vis_thres", "0.3", weights=weights) == 0
    pictures = sorted((tmp_path / "out_images").rglob("*.jpg"))
    assert len(pictures) == 5 and read_image(pictures[0]).shape == (64, 40, 3)
    shutil.rmtree(tmp_path / "out_images")
    whole = texts(tmp_path / "out")
    assert run(*arguments, "--vis_thres", "0.9", weights=weights) == 0
    assert texts(tmp_path / "out") == whole and not (tmp_path / "out_images").exists()


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ([], (48, 80)),
        (["--origin_size"], (48, 80)),
        (["--no-origin_size"], (1290, 2150)),
        (["--long_side", "40"], (24, 40)),
    ],
)
def test_input_sizes(flags, size):
    assert script.input_size(script.parse_args(flags))((48, 80)) == size


@pytest.mark.parametrize(
    "flags", [["--batch_size", "0"], ["--vis_thres", "2"], ["--long_side", "640", "--no-origin_size"]]
)
def test_usage(flags):
    with pytest.raises(SystemExit, match="2"):
        script.parse_args(flags)


def test_bad_input(photos, tmp_path, weights):
    def said(match: str, *arguments: object, error: type[Exception] = DataError) -> None:
        with pytest.raises(error, match=match):
            run(*arguments, "--save_folder", tmp_path / "out", weights=weights)

    said("no such folder of images", "--dataset_folder", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    said("no image there", "--dataset_folder", tmp_path / "empty")
    said("no such file; expected a list", "--dataset_folder", photos, "--dataset_list", tmp_path / "absent")
    said("2", "--dataset_folder", photos, "--confidence_threshold", "2", error=SystemExit)
    shutil.copy(photos / "0--A" / "b.png", photos / "0--A" / "b.jpg")
    said("would share one text file", "--dataset_folder", photos)
    assert not (tmp_path / "out").exists()


def test_processes_share_the_images_out(photos, tmp_path, weights, two_processes):
    assert run("--dataset_folder", photos, "--save_folder", tmp_path / "one", weights=weights) == 0
    (photos / "0--A" / "broken.jpg").write_bytes(b"nothing")
    arguments = ["--dataset_folder", photos, "--save_folder", tmp_path / "two", "-m", weights, "--cpu"]
    first, second = two_processes("test_widerface_personface", *arguments)
    assert first.code == second.code == 1 and "broken.jpg" in first.err + second.err
    assert "5 images in" in first.out and "1 images failed" in first.out and not second.out
    assert texts(tmp_path / "two") == texts(tmp_path / "one")


def test_files_score_as_the_detections_do(photos, tmp_path, weights):
    names = [path.relative_to(photos) for path in sorted(photos.rglob("*.*g"))]
    detector = build_detector(script.parse_args(["-m", weights, "--cpu"]))
    detected = [detector(read_image(photos / name)) for name in names]
    sizes = [read_image(photos / name).shape[1::-1] * 2 for name in names]
    parts = [(d.boxes_xywh / size, d.scores, d.labels) for d, size in zip(detected, sizes, strict=True)]
    truths = [
        ImageAnnotation(str(name), labels[:60:7], boxes[:60:7])
        for name, (boxes, _, labels) in zip(names, parts, strict=True)
    ]
    write_annotations(tmp_path / "truth.txt", truths)
    expected = openimages.evaluate(table_of(parts), BoxTable.from_annotations(truths))

    save = tmp_path / "out"
    run("--dataset_folder", photos, "--dataset", "openimages", "--save_folder", save, weights=weights)
    flags = ["-p", str(save), "-g", str(tmp_path / "truth.txt"), "--json", str(tmp_path / "numbers.json")]
    assert openimages.main(flags) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())["classes"]
    assert 0 < expected["face"]["ap"] < 1
    for key in ("ap", "ap_30", "coco_ap_50", "coco_ap", "precision"):
        assert numbers["face"][key] == pytest.approx(expected["face"][key], abs=1e-9)
