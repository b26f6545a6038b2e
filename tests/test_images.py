"""Reading, writing and drawing of images."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.config import CLASS_COLOURS
from data.predictions import Detections
from utils.cli import DataError
from utils.draw import contact_sheet, distinct_colour, draw_boxes, hex_colour, hide_boxes, tile
from utils.images import read_image, read_size, shrink, write_image

# Four coloured quarters, so that a turned or mirrored image is noticed.
PICTURE = np.zeros((40, 60, 3), np.uint8)
PICTURE[:20, :30], PICTURE[:20, 30:], PICTURE[20:, :30] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def pillow() -> Image.Image:
    return Image.fromarray(PICTURE[..., ::-1].copy())


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".jpg"])
def test_written_and_read_again(tmp_path, suffix):
    path = tmp_path / "sub" / f"näme with space 圖{suffix}"
    write_image(path, PICTURE)
    assert np.abs(read_image(path).astype(int) - PICTURE).mean() < (
        5 if suffix in (".webp", ".jpg") else 1e-9
    )


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16", "F"])
def test_any_mode_becomes_three_channels(tmp_path, mode):
    picture = pillow()
    if mode == "I;16":
        picture = Image.fromarray(cv2.cvtColor(PICTURE, cv2.COLOR_BGR2GRAY).astype(np.uint16) * 257)
    elif mode == "F":
        picture = Image.fromarray(cv2.cvtColor(PICTURE, cv2.COLOR_BGR2GRAY).astype(np.float32))
    else:
        picture = picture.convert(mode)
    path = tmp_path / f"a.{'tif' if mode in ('CMYK', 'F', 'I;16') else 'png'}"
    picture.save(path)
    image = read_image(path)
    assert image.shape == PICTURE.shape
    assert image.dtype == np.uint8
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(int)
    assert grey[10, 45] > grey[10, 15] + 50


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_the_first_frame_of_an_animation(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    pillow().save(path, save_all=True, append_images=[pillow().rotate(180)] * 2)
    assert np.abs(read_image(path).astype(int) - PICTURE).mean() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    """An image turned as the tag says, saved with the tag, comes back upright."""
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    undo |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = pillow().transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else pillow()
    turned.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == PICTURE.shape
    assert np.abs(image.astype(int) - PICTURE).mean() < 12


def test_bytes_behind_a_jpeg_do_no_harm(tmp_path):
    write_image(tmp_path / "a.jpg", PICTURE)
    whole = read_image(tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"appended" * 10)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), whole)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".tif"])
def test_a_cut_off_image_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="a damaged image|not an image"):
        read_image(path)


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    for name, message in [
        ("text.jpg", "not an image"),
        ("empty.jpg", "an empty file"),
        ("none.jpg", "no such file; expected an image"),
        ("", "a folder"),
    ]:
        with pytest.raises(DataError, match=message):
            read_image(tmp_path / name)


def claiming(path: Path, width: int, height: int) -> Path:
    """A small JPEG whose header claims another size."""
    write_image(path, PICTURE)
    content = path.read_bytes()
    place = content.index(b"\xff\xc0") + 5  # of height and width in the frame header
    path.write_bytes(content[:place] + struct.pack(">HH", height, width) + content[place + 4 :])
    return path


@pytest.mark.parametrize("read", [read_image, read_size])
def test_more_pixels_than_the_limit_are_refused_by_the_header(tmp_path, read, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"a\.jpg: Image size \(400000000 pixels\) exceeds limit .*; make it"):
        read(claiming(tmp_path / "a.jpg", 20000, 20000))


def test_large_images_below_the_limit_are_read_without_a_warning(tmp_path):
    path = claiming(tmp_path / "a.jpg", 12000, 12000)
    command = f"from utils.images import read_size; print(read_size({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(12000, 12000)\n", "")


@pytest.mark.parametrize("read", [read_image, read_size])
def test_pipes_and_devices_are_no_images(tmp_path, read):
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("/dev/zero")
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(DataError, match=rf"{name}: no regular file; expected an image"):
            read(tmp_path / name)


@pytest.mark.parametrize("size", [(1, 1), (20, 31), (40, 62), (41, 63), (79, 30), (80, 125), (33, 125)])
def test_a_shrunk_image_is_near_to_the_mean_of_what_each_pixel_takes(size):
    rows, columns = np.mgrid[:80, :125]
    wave = 128 + 50 * np.sin(rows / 8) + 50 * np.sin(columns / 5)
    image = np.repeat(wave.round().astype(np.uint8)[..., None], 3, 2)
    small = shrink(image, size)
    assert small.shape == (*size, 3) and small.dtype == np.uint8
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("size", [(40, 62), (39, 61), (20, 31), (10, 9)])
def test_what_is_finer_than_a_pixel_of_the_smaller_image_becomes_grey(size):
    board = np.indices((80, 124)).sum(0) % 2 * 255
    small = shrink(np.repeat(board.astype(np.uint8)[..., None], 3, 2), size)
    assert np.abs(small.astype(int) - 127).max() <= 1


def test_unwritable_formats_and_sizes(tmp_path):
    with pytest.raises(DataError, match=r"60x40 pixels cannot be written as \.xyz"):
        write_image(tmp_path / "a.xyz", PICTURE)
    with pytest.raises(DataError, match=r"70000x1 pixels cannot be written as \.jpg"):
        write_image(tmp_path / "a.jpg", np.zeros((1, 70000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_nothing_to_draw():
    drawn = Detections.empty().draw(PICTURE)
    assert np.array_equal(drawn, PICTURE)
    assert drawn is not PICTURE


@pytest.mark.parametrize("size", [(1, 1), (4, 700), (700, 4), (200, 300)])
def test_boxes_beyond_the_image_can_be_drawn(size):
    image = np.zeros((*size, 3), np.uint8)
    boxes = [[-1e9, -5, 1e9, 20], [0, 0, 0, 0], [np.nan, 1, 2, np.inf], [150, 100, 140, 90]]
    assert draw_boxes(image, np.array(boxes), ["a"] * 4, [(255, 0, 0)] * 4).shape == image.shape


def test_a_box_has_the_colour_of_its_class():
    image = np.zeros((300, 300, 3), np.uint8)
    drawn = Detections(np.array([[50.0, 60, 200, 250]]), np.array([0.9]), np.array([2])).draw(image)
    assert tuple(drawn[150, 50]) == CLASS_COLOURS[2]
    assert not drawn[150, 120].any()


GROUND = (9, 200, 9)  # of a caption


def captions_of(boxes: list, texts: list[str], clear: list[bool], size=(200, 300)) -> np.ndarray:
    """bool[height, width]: where captions stand, told from frames of another colour by what text adds."""
    image = np.full((*size, 3), 120, np.uint8)
    arguments = np.array(boxes, float).reshape(-1, 4), [GROUND] * len(boxes), np.array(clear, bool)
    bare, full = (
        draw_boxes(image, arguments[0], words, *arguments[1:]) for words in ([""] * len(texts), texts)
    )
    return (bare != full).any(2)


def test_captions_stand_above_inside_below_or_beside_their_box():
    assert not captions_of([], [], []).any()
    for box, where in (
        ([100, 100, 160, 160], np.s_[80:100, 100:160]),
        ([100, 2, 160, 60], np.s_[2:22, 100:160]),  # no room above: inside
    ):
        found = captions_of([box], ["face"], [False])
        inside = found[where].copy()
        found[where] = False
        assert inside.any() and not found.any()
    below = captions_of([[100, 2, 160, 60]], ["face"], [True])
    assert below[60:80].any() and not below[:60].any()
    beside = captions_of([[100, 0, 160, 30]], ["face"], [True], size=(30, 300))
    assert beside[:, 160:].any() and not beside[:, :160].any()


def test_captions_cover_no_face_and_no_other_caption():
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, [260, 160], (40, 2))
    boxes = np.hstack([corners, corners + rng.uniform(15, 50, (40, 2))])
    clear = np.arange(40) % 2 == 0
    found = captions_of(boxes, ["a 0.9"] * 40, clear)
    assert found.any()
    for x1, y1, x2, y2 in boxes[clear].round().astype(int).clip(0).tolist():
        assert not found[y1:y2, x1:x2].any()
    alone = [captions_of([box], ["a 0.9"], [False]).sum() for box in boxes]
    assert found.sum() < sum(alone)  # where there is no room they are left out


def test_captions_of_two_boxes_at_one_place_lie_apart():
    box = [100, 100, 160, 160]
    one, two = captions_of([box], ["person"], [False]), captions_of([box, box], ["person"] * 2, [False] * 2)
    assert two.sum() > 1.8 * one.sum()  # the second covers a part of the frame, of the same colour


def test_a_large_face_that_fills_the_image_has_its_caption_inside():
    assert captions_of([[0, 0, 300, 200]], ["face"], [True]).any()
    assert not captions_of([[0, 0, 300, 40]], ["face"], [True], size=(40, 300)).any()


def test_tiles_carry_the_end_of_their_name():
    arguments = PICTURE, np.zeros((0, 4)), [], []
    plain, short, long = (tile(*arguments, name) for name in ("", "a.jpg", "folder/" * 20 + "a.jpg"))
    assert plain.shape == short.shape == long.shape == (256, 240, 3)
    assert np.array_equal(plain[:240], short[:240])
    for named in (short, long):
        assert not np.array_equal(plain[240:], named[240:])
    assert (long[240:, -3:] == plain[240:, -3:]).all()
    assert contact_sheet([plain] * 7).shape == (2 * 258 - 2, 6 * 242 - 2, 3)


def test_numbers_have_colours_of_their_own():
    assert len({distinct_colour(number) for number in range(40)}) == 40
    assert hex_colour(CLASS_COLOURS[1]) == "#e69f00"


# Hidden boxes


NOISE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)


def test_nothing_to_hide():
    hidden = hide_boxes(NOISE, np.zeros((0, 4)))
    assert np.array_equal(hidden, NOISE) and hidden is not NOISE


@pytest.mark.parametrize(
    ("box", "area"),
    [
        ([40, 30, 80, 70], np.s_[18:82, 28:92]),
        ([40, 30, 60, 110], np.s_[24:116, 34:66]),
        ([-30, -20, 20, 20], np.s_[:32, :32]),
        ([150, 100, 400, 300], np.s_[40:, 90:]),
        ([-1e6, -1e6, 1e6, 1e6], np.s_[:, :]),
        ([50.5, 60.5, 53, 62.5], np.s_[59:64, 49:54]),
    ],
)
def test_one_colour_is_left_of_a_box_and_all_of_the_rest(box, area):
    hidden = hide_boxes(NOISE, np.array([box]))
    assert (hidden[area] == NOISE[area].mean((0, 1)).round()).all()
    rest = np.ones(NOISE.shape[:2], bool)
    rest[area] = False
    assert np.array_equal(hidden[rest], NOISE[rest])


@pytest.mark.parametrize("box", [[10, 10, 5, 5], [200, 10, 300, 50], [-50, -50, -40, -40]])
def test_boxes_without_pixels(box):
    assert np.array_equal(hide_boxes(NOISE, np.array([box])), NOISE)
