"""detect.py at the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

import detect
from data.config import CLASS_COLOURS
from data.outputs import Results, Selection
from data.predictions import Detections
from models.arguments import DEFAULT_WEIGHTS
from models.detector import Detector
from utils.cli import UsageError, exit_code
from utils.draw import distinct_colour, hide_boxes
from utils.image_names import Source, sample_photos
from utils.images import read_image, write_image
from utils.threads import Stopwatch


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "in" / "photo.png"
    write_image(path, np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    return path


def run(*arguments: object, weights: str) -> int:
    return detect.main([*map(str, arguments), "-m", weights, "--device", "cpu"])


def test_sample_photos_through_the_published_network(reference, tmp_path, capsys):
    weights = reference / "weights" / "mobilenet0.25_2cls6anchors_130324_epoch_150.pth"
    options = "--save_json", "sure.json", "--scales", 1
    assert run("--save_folder", tmp_path, *options, weights=str(weights)) == 0
    summary = capsys.readouterr().out
    sure = json.loads((tmp_path / "sure.json").read_text())
    photos = len(sure["images"])
    assert f"{photos} face" in summary
    assert f"{photos} person" in summary
    options = "--save_json", "found.json", "--confidence_threshold", 0.02, "--no-save_image", "--scales", 1
    assert run("--save_folder", tmp_path, *options, weights=str(weights)) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [a["score"] for a in sure["annotations"]] == [
        a["score"] for a in found["annotations"] if a["score"] > 0.5
    ]
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


@pytest.mark.parametrize("save_json, kept", [(None, 0), (Path("found.json"), 3)])
def test_frames_of_a_camera_are_kept_for_a_json_file_alone(tmp_path, save_json, kept):
    """One may run for days."""
    results = Results(tmp_path, 0.5, Stopwatch(), save_json=save_json)
    camera, frame = Source("camera", "0", Path("camera0.mp4")), np.zeros((9, 9, 3), np.uint8)
    found = Selection(0.5)(Detections(np.float32([[1, 1, 5, 5]]), np.float32([0.9]), np.array([1])))
    for number in range(3):
        results.add(camera, frame, found, number)
    assert len(results.images) == len(results.annotations) == kept
    assert results.summary(1.5, ("face",)).startswith("3 frames: 3 faces above score 0.5; 2.0 frames/s")


#: Options for the network of random weights, whose scores are low.
LOW = "--confidence_threshold", 0.02


def test_every_kind_of_output_of_a_image(photo, tmp_path, weights, capsys):
    out = tmp_path / "out"
    options = ["--save_txt", "--save_conf", "--save_crops", "--save_json", "a.json", "--vis_thres", 0.3]
    assert run(photo, "--save_folder", out, *LOW, *options, weights=weights) == 0
    found = json.loads((out / "a.json").read_text())["annotations"]
    assert len(found) > 5
    faces = sum(a["category_id"] == 1 for a in found)
    summary = f"{faces} faces, {len(found) - faces} persons above score 0.02"
    assert summary in capsys.readouterr().out
    corners = np.clip([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in found)], 0, [90, 60] * 2)
    sides = corners[:, 2:] - corners[:, :2]
    lines = np.loadtxt(out / "labels" / "photo.txt", ndmin=2)
    there = (sides > 0).all(1)
    assert np.allclose(lines[:, 3:5], sides[there] / [90, 60], atol=1e-4)
    assert np.allclose(lines[:, 1:3], (corners[:, :2] + sides / 2)[there] / [90, 60], atol=1e-4)
    assert np.allclose(lines[:, 5], np.array([a["score"] for a in found])[there], atol=1e-5)
    assert lines[:, 0].tolist() == [a["category_id"] - 1 for a in found if there[found.index(a)]]
    assert 0 < len(list((out / "crops").rglob("*.jpg"))) <= len(found)
    assert (out / "photo.png").exists()
    assert run(photo, "--save_folder", out, *LOW, "--save_txt", "--no-save_image", weights=weights) == 0
    assert np.array_equal(np.loadtxt(out / "labels" / "photo.txt", ndmin=2), lines[:, :5])


def test_one_threshold_for_all_that_is_told(photo, tmp_path, weights, capsys):
    told = {}
    for threshold, folder in ((0.02, tmp_path / "a"), (0.25, tmp_path / "b")):
        options = "--confidence_threshold", threshold, "--save_txt", "--save_conf", "--save_json", "a.json"
        assert run(photo, "--save_folder", folder, *options, weights=weights) == 0
        told[threshold] = json.loads((folder / "a.json").read_text())["annotations"]
        assert f"above score {threshold}" in capsys.readouterr().out
    strong = [a["score"] for a in told[0.02] if a["score"] > 0.25]
    assert 0 < len(strong) < len(told[0.02])
    assert [a["score"] for a in told[0.25]] == strong
    assert np.loadtxt(tmp_path / "b" / "labels" / "photo.txt", ndmin=2)[:, 5].min() > 0.25
    drawn = [read_image(tmp_path / folder / "photo.png") for folder in "ab"]
    assert run(photo, "--save_folder", tmp_path / "a", *LOW, "--vis_thres", 0.25, weights=weights) == 0
    assert not np.array_equal(*drawn)
    assert np.array_equal(read_image(tmp_path / "a" / "photo.png"), drawn[1])


def test_small_boxes_are_left_out(photo, tmp_path, weights):
    sides = []
    for size in (1, 14):
        options = "--save_folder", tmp_path, "--save_json", "a.json", "--min_size", size, *LOW
        assert run(photo, *options, weights=weights) == 0
        found = json.loads((tmp_path / "a.json").read_text())["annotations"]
        sides.append([min(a["bbox"][2:]) for a in found])
    assert sides[1] == [side for side in sides[0] if side >= 14]
    assert 0 < len(sides[1]) < len(sides[0])


def test_a_bare_name_of_a_file_lies_in_the_folder(tmp_path):
    for name, expected in (("a.json", tmp_path / "out" / "a.json"), ("./a.json", Path("a.json"))):
        arguments = ["photo.jpg", "--save_folder", str(tmp_path / "out"), "--save_json", name]
        assert detect.parse_args(arguments).save_json == expected


def test_a_line_for_each_image_and_frame(photo, tmp_path, weights, capsys):
    make_video(tmp_path / "clip.mp4", 2)
    options = "--verbose", "--confidence_threshold", 1, "--save_folder", tmp_path / "out"
    assert run(photo, tmp_path / "clip.mp4", *options, weights=weights) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{photo}: 0 faces, 0 persons"
    assert lines[1:3] == [f"{tmp_path / 'clip.mp4'}, frame {i}: 0 faces, 0 persons" for i in range(2)]
    assert lines[3].startswith("1 image and 2 frames: 0 faces")
    assert len(lines) == 4


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
        options = ["--batch_size", size, "--save_json", files[-1], "--no-save_image", *LOW]
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
    assert line.startswith("3 frames: ") and " frames/s, ms a frame: read" in line
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
    for wrong, message in (
        (["--pairs", "--classes", "face"], "--pairs: needs the class person"),
        (["--blur", "face", "--classes", "person"], "--blur face: needs the class face"),
        (["--blur", "person", "--classes", "person"], "--blur person: needs the class face"),
        (["--track"], "none is named"),
    ):
        with pytest.raises(UsageError, match=message):
            run(photo, *wrong, weights=weights)
    for wrong in (
        ["--save_conf"],
        ["--blur", "dog"],
        ["--min_size", 0],
        ["--max_gap", -1],
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


@pytest.fixture
def crowd(reference) -> Path:
    return reference / "fixtures" / "images" / "curve_test.jpg"


def detections_of(image: np.ndarray) -> Detections:
    return Detector.from_checkpoint(DEFAULT_WEIGHTS)(image)


def test_pairs_share_a_number_and_a_colour(tmp_path):
    assert detect.main(["--cpu", "--save_folder", str(tmp_path), "--save_json", "a.json", "--pairs"]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    for image in found["images"]:
        own = [a for a in found["annotations"] if a["image_id"] == image["id"]]
        face, person, *flag = sorted(own, key=lambda a: (a["category_id"], -a["score"]))
        assert face["pair_id"] == person["pair_id"] == 1
        assert all(one["pair_id"] is None for one in flag)
        drawn = read_image(tmp_path / Path(image["file_name"]).name).astype(int)
        assert np.abs(drawn - distinct_colour(0)).max(2).min() < 20  # its own
        assert np.abs(drawn - CLASS_COLOURS[1]).max(2).min() > 20  # not that of the class


@pytest.mark.reference
def test_no_face_is_found_in_a_blurred_crowd(crowd, tmp_path):
    options = "--blur", "face", "--save_crops", "--save_json", "a.json"
    assert detect.main([str(crowd), "--cpu", "--save_folder", str(tmp_path), *options]) == 0
    original, blurred = detections_of(read_image(crowd)), detections_of(read_image(tmp_path / crowd.name))
    assert (original.scores[original.labels == 1] > 0.3).sum() > 10
    assert not (blurred.scores[blurred.labels == 1] > 0.3).any()
    # What is not told of, as it scores too little, is hidden all the same; crops are of the hidden.
    told = json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert min(a["score"] for a in told) > 0.5
    for crop in (tmp_path / "crops" / "face").iterdir():
        assert read_image(crop).std((0, 1)).max() < 30


@pytest.mark.parametrize("blur", ["face", "person"])
def test_blurring_changes_the_boxes_alone(tmp_path, blur):
    assert detect.main(["--cpu", "--save_folder", str(tmp_path), "--blur", blur]) == 0
    for path in map(Path, sample_photos()):
        original = read_image(path)
        found = detections_of(original)
        found = found[found.scores >= 0.1]
        hidden = found if blur == "person" else found[found.labels == 1]
        expected = hide_boxes(original, hidden.boxes)
        written = read_image(tmp_path / path.name).astype(int)
        assert np.abs(written - expected).mean() < 3  # of JPEG, or of what a second look hides
        assert np.abs(written - original).mean() > 3


def pan(path: Path, image: np.ndarray, frames: int, striped: Sequence[int]) -> None:
    """A video that moves over an image; some frames show nothing but stripes."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (320, 320))
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::16] = stripes[:, 1::16] = stripes[:, 2::16] = 255
    for number in range(frames):
        part = np.ascontiguousarray(image[:320, 60 + 4 * number : 380 + 4 * number])
        writer.write(stripes if number in striped else part)
    writer.release()


def test_tracks_keep_their_number_and_gaps_are_hidden(tmp_path):
    pytest.importorskip("trackers", reason="the package trackers is not installed")
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose photo is shown, is not installed")
    pan(tmp_path / "clip.mp4", data.astronaut()[..., ::-1], 12, striped=(5, 6))
    for gap, folder in ((2, tmp_path / "a"), (1, tmp_path / "b")):
        options = "--track", "--blur", "face", "--save_json", "a.json", "--max_gap", str(gap)
        assert detect.main([str(tmp_path / "clip.mp4"), "--cpu", "--save_folder", str(folder), *options]) == 0
        found = json.loads((folder / "a.json").read_text())
        faces = [a for a in found["annotations"] if a["category_id"] == 1]
        numbers = {a["image_id"] - 1: a["track_id"] for a in faces}
        assert sorted(numbers) == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11] and len(faces) == 10
        assert numbers.pop(0) is None and len(set(numbers.values())) == 1
        video = cv2.VideoCapture(str(folder / "clip.mp4"))
        shown = [video.read()[1] for _ in range(12)]
        assert not video.read()[0]
        x, y, w, h = faces[4]["bbox"]
        for number in range(4, 8):
            inside = shown[number][round(y + h / 4) : round(y + h / 2), round(x + w / 4) : round(x + w / 2)]
            assert (inside.std((0, 1)).max() < 15) == (gap == 2 or number in (4, 7))
