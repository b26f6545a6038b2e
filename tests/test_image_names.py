"""Names of images, folders and lists of them."""

from __future__ import annotations

import os

import pytest

from utils.cli import DataError
from utils.image_names import image_key, images_below, is_odd, read_image_list


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


def test_read_image_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("")
    assert read_image_list(path) == ([], [])
    path.write_text("/a.jpg\n\n b c.d.jpg \n/6ff9.jpg.2888Ac4d\n")
    assert read_image_list(path) == (["/a.jpg", "b c.d.jpg"], ["/6ff9.jpg.2888Ac4d"])
    path.write_text("# e/a.jpg\n1 0 0 1 1\n# b.jpg.part\n")
    assert read_image_list(path) == (["e/a.jpg"], ["b.jpg.part"])
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
