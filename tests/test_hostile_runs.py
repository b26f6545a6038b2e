"""Odd names through every stage, runs that are stopped, and dumps that are gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hostile import run

import detect
import prep_data
import test_widerface_personface as dump
import wider_openimagespersonface_evaluate.evaluation as openimages
from data.annotations import ImageAnnotation, read_annotations, write_annotations
from utils.cli import BAD_DATA, BAD_USAGE, OK, TERMINATED, DataError

#: Names that an image may have, below a folder that may be called so too.
NAMES = (
    *("a b.png", "'quoted' \"twice\".png", "-v.png", "#1.png", "ñandú.png", "人.png", "🙂.png", "%03d.png"),
    *("a.tar.png", "[x]*?.png", "a\tb.png", "back\\slash.png", "$HOME.png", "n" * 251 + ".png"),
)

#: Names that a list cannot hold.
UNLISTED = ("line\nbreak.png", " first.png", "carriage\rreturn.png", os.fsdecode(b"latin-\xe9.png"))


def make_pictures(folder: Path, names: tuple[str, ...]) -> Path:
    for grey, name in enumerate(names, 100):
        path = folder / "odd #'1' ü" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", np.full((32, 48, 3), grey, np.uint8))[1])
    return folder


def test_names_through_the_list_tools_the_dump_and_the_evaluator(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = make_pictures(tmp_path / "images", NAMES)
    names = [f"odd #'1' ü/{name}" for name in NAMES]
    box = [[0.1, 0.1, 0.5, 0.5]]
    write_annotations("list.txt", [ImageAnnotation(name, [1], box) for name in names])
    for command in (
        "clean list.txt --output a/list.txt",
        "check list.txt",
        "merge a/list.txt --output b/list.txt",
        "split list.txt --save_folder parts --val_share 0.4",
        "export list.txt --format coco --output c.json",
        "import c.json --images images --output d/list.txt",
        "export list.txt --format yolo --output yolo",
        "import yolo --output e",
        "draw list.txt --output sheet.jpg",
    ):
        assert run(prep_data.main, command.split()) == (OK, []), command
    for file in ("a/list.txt", "d/list.txt", "e/train/wider_train_gt.txt"):
        assert sorted(a.path for a in read_annotations(file)) == sorted(names), file
    arguments = ["--cpu", "-m", weights, "--dataset_folder", str(pictures), "--dataset_list", "list.txt"]
    assert run(dump.main, [*arguments, "--save_folder", "found"]) == (OK, [])
    assert run(openimages.main, ["-p", "found", "-g", "list.txt"]) == (OK, [])


def test_any_name_on_the_disk_gives_a_text_file_that_reads_back(tmp_path, weights):
    pictures = make_pictures(tmp_path / "images", NAMES + UNLISTED)
    count = len(NAMES + UNLISTED)
    arguments = ["--cpu", "-m", weights, "--dataset_folder", str(pictures)]
    assert run(dump.main, [*arguments, "--save_folder", str(tmp_path / "found")]) == (OK, [])
    files = list((tmp_path / "found").rglob("*.txt"))
    assert len(files) == count and all(map(dump.is_whole, files))
    out = ["--save_folder", str(tmp_path / "out"), "--save_txt", "--save_json", str(tmp_path / "a.json")]
    assert run(detect.main, [str(pictures), "--cpu", "-m", weights, *out]) == (OK, [])
    assert len(json.loads((tmp_path / "a.json").read_text())["images"]) == count
    assert len(list((tmp_path / "out" / "labels").rglob("*.txt"))) == count


@pytest.mark.parametrize("name", [*UNLISTED, "", "a\0b.png"])
def test_names_that_a_list_cannot_hold_are_refused(name, tmp_path):
    with pytest.raises(DataError, match="rename the file"):
        write_annotations(tmp_path / "list.txt", [ImageAnnotation(name)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../out.png", "/../out.png", "a/../../out.png", "..\\out.png"])
def test_a_list_cannot_make_the_dump_write_elsewhere(name, tmp_path, weights):
    make_pictures(tmp_path / "images", ("a.png",))
    (tmp_path / "list.txt").write_text(name)
    arguments = ["--dataset_folder", str(tmp_path / "images"), "--dataset_list", str(tmp_path / "list.txt")]
    code, lines = run(
        dump.main, [*arguments, "--cpu", "-m", weights, "--save_folder", str(tmp_path / "deep" / "found")]
    )
    assert code == BAD_DATA and len(lines) == 1 and "leads out of" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "list.txt"]


def test_a_list_for_detect_may_say_anything(tmp_path, weights):
    folder = make_pictures(tmp_path / "images", ("a.png",)) / "odd #'1' ü"
    lines = [
        str(folder / "a.png"),
        "x" * 5000,
        "99999999999999999999",
        "..",
        "[",
        "~",
        "nan",
        "http:",
        "\u2028",
    ]
    listed = tmp_path / "lists" / "list.txt"  # its ".." is this test's folder, not that of all tests
    listed.parent.mkdir()
    listed.write_text("\n".join(lines))
    code, said = run(
        detect.main, [str(listed), "--save_folder", str(tmp_path / "out"), "--cpu", "-m", weights]
    )
    assert code == BAD_DATA and len(said) >= 4 and all(line.startswith("error: ") for line in said)
    assert (tmp_path / "out" / "a.png").exists()


def test_a_dump_is_gone_on_with_by_its_own_settings_alone(tmp_path, weights):
    pictures = make_pictures(tmp_path / "images", ("a.png", "b.png"))
    found = tmp_path / "found"
    arguments = ["--cpu", "-m", weights, "--dataset_folder", str(pictures), "--save_folder", str(found)]
    assert run(dump.main, arguments) == (OK, [])
    assert run(dump.main, [*arguments, "--resume"]) == (OK, [])
    code, lines = run(dump.main, [*arguments, "--resume", "--nms_threshold", "0.3", "--long_side", "64"])
    assert code == BAD_USAGE and all(f"--{name} " in lines[0] for name in ("nms_threshold", "long_side"))
    # Begun anew: what an earlier dump left there is not taken for this one's.
    (text, other) = sorted(found.rglob("*.txt"))
    for path in (text, other):
        os.utime(path, ns=(0, 0))
    settings = json.loads((found / "settings.json").read_text())
    (found / "settings.json").write_text(json.dumps(settings))
    other.write_text(other.read_text())
    before = other.stat().st_mtime_ns
    assert run(dump.main, [*arguments, "--resume"]) == (OK, [])
    assert text.stat().st_mtime_ns > 0 and other.stat().st_mtime_ns == before


def test_sigterm_removes_temporary_files(repository, tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"# {i}.jpg\n" for i in range(100_000)))
    command = [sys.executable, repository / "prep_data.py", "merge", "list.txt", "--output", "out/list.txt"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not list(tmp_path.glob("out/.tmp*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (TERMINATED, "error: terminated; finished files are kept\n")
    assert not list((tmp_path / "out").iterdir())


def test_a_video_that_is_not_whole_is_no_result(tmp_path, weights, monkeypatch):
    """As on a full disk, of which OpenCV says nothing."""
    video = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    for shade in range(5):
        video.write(np.full((48, 64, 3), shade * 40, np.uint8))
    video.release()
    whole = cv2.VideoWriter

    class Lossy:
        """Takes every second frame."""

        def __init__(self, *arguments: object) -> None:
            self.video, self.frames = whole(*arguments), 0
            self.isOpened, self.release = self.video.isOpened, self.video.release

        def write(self, frame: np.ndarray) -> None:
            self.frames += 1
            if self.frames % 2:
                self.video.write(frame)

        fourcc = whole.fourcc

    monkeypatch.setattr(cv2, "VideoWriter", Lossy)
    json_file = tmp_path / "a.json"
    arguments = [str(tmp_path / "clip.mp4"), "--cpu", "-m", weights, "--save_json", str(json_file)]
    code, lines = run(detect.main, [*arguments, "--save_folder", str(tmp_path / "out")])
    assert code == BAD_DATA and "3 of 5 frames could be written" in lines[0]
    assert not list((tmp_path / "out").iterdir())
    assert len(json.loads(json_file.read_text())["images"]) == 5
