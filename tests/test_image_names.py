"""Names of images, folders and lists of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from utils.cli import DataError
from utils.image_names import expand_inputs, image_key, images_below, is_odd, read_image_list
from utils.images import write_image


@pytest.mark.parametrize(
    ("image", "key"),
    [
        ("0--Parade/a.jpg", "0--Parade/a"),
        ("/jpg.jpg", "jpg"),
        ("./a b.v2.JPEG", "a b.v2"),
        ("a.jpg.png", "a.jpg"),
        ("a.b", "a.b"),
        ("e\\a.png", "e/a"),
        (".jpg", ".jpg"),
    ],
)
def test_image_key(image, key):
    assert image_key(image) == key


@pytest.mark.parametrize(
    ("path", "odd"),
    [
        ("a.jpg", False),
        ("a", False),
        ("a.v2", False),
        ("jpg.v2", False),
        ("a.jpg.png", False),
        ("x.jpg/a", False),
        ("/6ff9809f93ee9ae9.jpg.2888Ac4d", True),
        ("e/a.JPG.part", True),
    ],
)
def test_is_odd(path, odd):
    assert is_odd(path) is odd


def test_read_image_list(tmp_path, capsys):
    path = tmp_path / "list.txt"
    path.write_text("")
    assert read_image_list(path) == []
    path.write_text("/a.jpg\n\n b c.d.jpg \n/6ff9.jpg.2888Ac4d\na.jpg\n")
    assert read_image_list(path) == ["a.jpg", "b c.d.jpg"]
    told = capsys.readouterr().err
    assert "1 lines name no image and are skipped: /6ff9.jpg.2888Ac4d\n" in told
    assert "1 images are named again" in told
    path.write_text("# e/a.jpg\n1 0 0 1 1\n# b.jpg.part\n")
    assert read_image_list(path) == ["e/a.jpg"]
    path.write_bytes(b"\xff\xd8")
    for bad in (path, tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="list"):
            read_image_list(bad)


def test_images_below(tmp_path):
    assert images_below(tmp_path) == []
    (tmp_path / "real" / "e").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "e/c d.v2.jpeg", "notes.txt", ".hidden.jpg"):
        (tmp_path / "real" / name).touch()
    (tmp_path / "images").symlink_to(tmp_path / "real")
    assert images_below(tmp_path / "images") == ["a.png", "b.JPG", "e/c d.v2.jpeg"]


def test_links_in_a_circle_pipes_and_devices(tmp_path):
    """Each folder once, in its own place; regular files alone."""
    (tmp_path / "z" / "inner").mkdir(parents=True)
    (tmp_path / "z" / "inner" / "c.jpg").touch()
    for place in (tmp_path, tmp_path / "z"):
        (place / "all").symlink_to(tmp_path)
        (place / "again").symlink_to(tmp_path / "z")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "nothing.jpg").symlink_to("missing.jpg")
    assert images_below(tmp_path) == ["z/inner/c.jpg"]


# What a command line names


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A tree of empty files; reading them is somebody else's job."""
    for name in [
        "b.jpg",
        "a.PNG",
        "notes.md",
        "sub/a.png",
        "sub/deep/c c.gif",
        "sub/clip.MOV",
        ".hidden.jpg",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(*inputs: str) -> list[str]:
    sources, faults = expand_inputs(inputs)
    assert not faults
    return [source.path for source in sources]


def test_nothing_named():
    assert expand_inputs([]) == ([], [])


def test_a_folder_is_searched_to_the_bottom_and_its_layout_kept(folder):
    sources, faults = expand_inputs(["."])
    assert not faults
    assert [(s.kind, s.path, str(s.output)) for s in sources] == [
        ("image", "a.PNG", "a.PNG"),
        ("image", "b.jpg", "b.jpg"),
        ("image", "sub/a.png", "sub/a.png"),
        ("video", "sub/clip.MOV", "sub/clip.mp4"),
        ("image", "sub/deep/c c.gif", "sub/deep/c c.jpg"),
    ]


def test_globs_lists_and_repeats(folder):
    (folder / "list.txt").write_text("b.jpg\n\nsub/a.png\nmissing.jpg\n")
    assert paths("*.jpg", "b.jpg", str(folder / "b.jpg")) == ["b.jpg"]
    assert paths("**/*.png") == ["sub/a.png"]
    assert [Path(path).name for path in paths(str(folder / "list.txt"))] == ["b.jpg", "a.png", "missing.jpg"]


def test_links_in_a_circle_end_and_pipes_are_left_out(folder):
    (folder / "sub" / "all").symlink_to(folder)
    (folder / "sub" / "same").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    assert len(paths(".")) == 5
    assert paths("**/*.jpg") == ["b.jpg"] and paths("*.jpg") == ["b.jpg"]
    assert paths("sub/**") == ["sub/a.png", "sub/clip.MOV", "sub/deep/c c.gif"]
    assert paths(f"{folder}/**/*.png") == [f"{folder}/sub/a.png"]


def test_images_of_one_name_do_not_overwrite_each_other(folder):
    (folder / "a.png").touch()
    sources, _ = expand_inputs(["a.png", "sub/a.png"])
    assert [str(source.output) for source in sources] == ["a.png", "a-2.png"]


def test_a_file_is_a_image_whatever_its_name(folder):
    assert [s.kind for s in expand_inputs(["notes.md"])[0]] == ["image"]


def test_cameras_and_streams(folder):
    sources, _ = expand_inputs(["0", "rtsp://host/live"])
    assert [(s.kind, s.path, str(s.output)) for s in sources] == [
        ("camera", "0", "camera0.mp4"),
        ("camera", "rtsp://host/live", "stream.mp4"),
    ]
    (folder / "0").touch()
    assert expand_inputs(["0"])[0][0].kind == "image"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none.jpg", "no such file"),
        ("empty", "no image or video"),
        ("*.tiff", "no file fits"),
        ("l.txt", "empty list"),
        ("prose.txt", "not a list of images; its first line, 'All photos', names none"),
        ("labels.txt", "not a list of images"),
    ],
)
def test_what_gives_nothing_is_said_and_the_rest_goes_on(folder, text, message, capsys):
    (folder / "l.txt").touch()
    (folder / "prose.txt").write_text("All photos\nb.jpg\n")
    (folder / "labels.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    sources, faults = expand_inputs([text])
    assert not sources
    assert len(faults) == 1
    assert message in faults[0]
    assert faults[0].startswith(text)
    sources, faults = expand_inputs([text, "b.jpg"])
    assert [source.path for source in sources] == ["b.jpg"]
    assert len(faults) + capsys.readouterr().err.count(f"no image or video in 1 of the inputs ({text})") == 1


def test_what_a_shell_makes_of_a_star_is_like_the_folder(folder, capsys):
    (folder / "l.txt").write_text("prose")
    write_image(folder / "odd.png", np.zeros((4, 4, 3), np.uint8))
    (folder / "odd.png").rename(folder / "odd")
    assert paths(*sorted(path.name for path in folder.iterdir() if path.name != ".hidden.jpg")) == [
        "a.PNG",
        "b.jpg",
        "odd",
        "sub/a.png",
        "sub/clip.MOV",
        "sub/deep/c c.gif",
    ]
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "no image or video in 3 of the inputs (empty, l.txt, notes.md)" in warning
    assert paths("*") == ["a.PNG", "b.jpg", "odd"]
    sources, faults = expand_inputs(["notes.md", "l.txt"])
    assert not sources and len(faults) == 1 and "in 2 of the inputs" in faults[0]


def test_texts_of_images_that_differ_in_their_ending_do_not_overwrite_each_other(folder):
    (folder / "b.png").touch()
    sources, _ = expand_inputs(["b.jpg", "b.png"])
    assert [str(source.output) for source in sources] == ["b.jpg", "b-2.png"]
