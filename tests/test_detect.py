"""detect.py at the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import detect
from data.predictions import read_predictions
from utils.box_utils import xyxy_to_xywh
from utils.cli import UsageError, exit_code
from utils.images import read_image, write_image


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "in" / "photo.png"
    write_image(path, np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    return path


def run(*arguments: object, weights: str) -> int:
    return detect.main([*map(str, arguments), "-m", weights, "--device", "cpu"])


def test_sample_photos_through_the_published_network(reference, tmp_path, capsys):
    weights = reference / "weights" / "mobilenet0.25_2cls6anchors_130324_epoch_150.pth"
    assert run("--save_folder", tmp_path, "--save_json", tmp_path / "found.json", weights=str(weights)) == 0
    summary = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    photos = len(found["images"])
    assert f"{photos} face" in summary
    assert f"{photos} person" in summary
    for image in found["images"]:
        name = Path(image["file_name"]).name
        annotated, original = read_image(tmp_path / name), read_image(image["file_name"])
        assert annotated.shape == original.shape == (image["height"], image["width"], 3)
        assert not np.array_equal(annotated, original)
        expected = np.load(reference / "fixtures" / f"{Path(name).stem}_epoch150.npz")["dets"]
        own = [a for a in found["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in own])
        boxes[:, 2:] += boxes[:, :2]
        inside = expected[:, :4].clip(0, [image["width"], image["height"]] * 2)
        assert np.abs(boxes - inside).max() < 1e-3
        assert np.abs(np.array([a["score"] for a in own]) - expected[:, 4]).max() < 1e-5
        assert [a["category_id"] for a in own] == expected[:, 5].tolist()


def test_every_kind_of_output_of_a_image(photo, tmp_path, weights):
    out = tmp_path / "out"
    options = ["--save_txt", "--save_crops", "--save_json", out / "a.json", "--vis_thres", 0.3]
    assert run(photo, "--save_folder", out, *options, weights=weights) == 0
    found = json.loads((out / "a.json").read_text())
    predictions, report = read_predictions(out / "labels", ["photo"])
    assert not report.missing
    assert len(predictions) == len(found["annotations"]) > 5
    assert np.allclose(xyxy_to_xywh(predictions.boxes), [a["bbox"] for a in found["annotations"]], atol=1e-3)
    assert predictions.labels.tolist() == [a["category_id"] for a in found["annotations"]]
    visible = [a for a in found["annotations"] if a["score"] >= 0.3]
    assert 0 < len(list((out / "crops").rglob("*.jpg"))) <= len(visible)
    assert (out / "photo.png").exists()


def test_no_detection(photo, tmp_path, weights, capsys):
    assert (
        run(
            photo,
            "--confidence_threshold",
            1,
            "--save_json",
            tmp_path / "a.json",
            "--no-save_image",
            weights=weights,
        )
        == 0
    )
    assert "1 image: 0 faces, 0 persons" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["annotations"] == []


def test_faults_are_named_and_the_rest_is_done(photo, tmp_path, weights, capsys):
    (photo.parent / "text.jpg").write_text("hello")
    (photo.parent / "clip.mp4").write_text("hello")
    out = tmp_path / "out"
    assert run(photo.parent, tmp_path / "none.jpg", "--save_folder", out, weights=weights) == 1
    output = capsys.readouterr()
    for name, message in [
        ("none.jpg", "no such file"),
        ("text.jpg", "not an image"),
        ("clip.mp4", "cannot be opened"),
    ]:
        assert any(name in line and message in line for line in output.err.splitlines())
    assert "1 image" in output.out
    assert "3 failed" in output.out
    assert [path.name for path in out.iterdir()] == ["photo.png"]


def test_a_folder_that_holds_nothing(tmp_path, weights, capsys):
    assert run(tmp_path, weights=weights) == 1
    assert "no image or video in this folder" in capsys.readouterr().err


def test_batches_find_what_single_images_find(photo, tmp_path, weights):
    for number in range(4):
        write_image(
            photo.parent / f"{number}.png", np.roll(read_image(photo), 7 * number, 1)[: 60 - number % 2]
        )
    files = []
    for size in (1, 3):
        files.append(tmp_path / f"{size}.json")
        options = ["--batch_size", size, "--save_json", files[-1], "--no-save_image"]
        assert run(photo.parent, *options, weights=weights) == 0
    single, batched = (json.loads(file.read_text()) for file in files)
    assert single["images"] == batched["images"]
    columns = [
        sorted([a["image_id"], a["category_id"], *np.round(a["bbox"], 2)] for a in found["annotations"])
        for found in (single, batched)
    ]
    assert len(columns[0]) > 20
    assert np.allclose(*columns, atol=0.02)


def make_video(path: Path, frames: int, rate: float = 12.5) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (96, 64))
    for number in range(frames):
        writer.write(np.roll(picture, number, 1))
    writer.release()


def test_a_video_in_real_time_keeps_its_length(tmp_path, weights, capsys):
    make_video(tmp_path / "clip.mp4", 25, rate=100)  # faster than the network
    out = tmp_path / "out"
    options = ["--save_json", tmp_path / "found.json", "--realtime"]
    assert run(tmp_path / "clip.mp4", "--save_folder", out, *options, weights=weights) == 0
    taken = [image["frame"] for image in json.loads((tmp_path / "found.json").read_text())["images"]]
    assert taken == sorted(set(taken))
    assert taken[-1] == 24
    assert f"{25 - len(taken)} frame" in capsys.readouterr().out
    assert cv2.VideoCapture(str(out / "clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 25


def test_the_last_line_tells_the_stages(tmp_path, weights, capsys):
    make_video(tmp_path / "clip.mp4", 3)
    assert run(tmp_path / "clip.mp4", "--save_folder", tmp_path / "out", weights=weights) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    for stage in ("read", "preprocess", "network", "postprocess", "draw", "write"):
        assert f"{stage} " in line
    with pytest.raises(SystemExit):
        run("clip.mp4", "--realtime", "--batch_size", 2, weights=weights)


def test_a_video_keeps_its_frames_and_rate(tmp_path, weights):
    make_video(tmp_path / "clip.mp4", 7)
    out = tmp_path / "out"
    options = ["--batch_size", 3, "--save_json", out / "a.json", "--save_txt"]
    assert run(tmp_path / "clip.mp4", "--save_folder", out, *options, weights=weights) == 0
    video = cv2.VideoCapture(str(out / "clip.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == 12.5
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 7
    assert [image["frame"] for image in json.loads((out / "a.json").read_text())["images"]] == list(range(7))
    assert len(list((out / "labels" / "clip").iterdir())) == 7


def test_usage_errors(photo, tmp_path, weights):
    with pytest.raises(UsageError, match="no such device"):
        detect.main([str(photo), "-m", weights, "--device", "cuda:99"])
    with pytest.raises(UsageError, match="written over"):
        run(photo, "--save_folder", photo.parent, weights=weights)
    for wrong in (
        ["--long_side", -1],
        ["--batch_size", 0],
        ["--vis_thres", 2],
        ["--classes", "cat"],
        ["--unknown"],
    ):
        with pytest.raises(SystemExit) as stop:
            run(photo, *wrong, weights=weights)
        assert stop.value.code == 2


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, Path(detect.__file__), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_exit_codes_and_no_traceback(photo, weights, capsys):
    for arguments, code in (
        (["-m", weights, "--device", "nonsense"], 2),
        (["-m", photo], 1),
        (["-m", weights, "--save_folder", "/dev/null/x"], 1),
    ):
        assert exit_code(detect.main, [str(argument) for argument in (photo, *arguments)]) == code
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and not shown.out


def test_interrupted_work_is_kept(photo, tmp_path, weights):
    for number in range(300):
        shutil.copy(photo, photo.parent / f"{number}.png")
    out = tmp_path / "out"
    process = start(photo.parent, "-m", weights, "--save_folder", out, "--save_json", out / "a.json")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not out.exists() or len(list(out.glob("*.png"))) < 2):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out_text, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in out_text
    assert "Traceback" not in err
    done = json.loads((out / "a.json").read_text())["images"]
    assert 0 < len(done) < 301
    assert not list(out.glob(".tmp*"))
