"""Reading, writing and drawing of images."""

import cv2
import numpy as np
import pytest
from PIL import Image

from data.config import CLASS_COLOURS
from data.predictions import draw_detections
from utils.cli import DataError
from utils.draw import draw_boxes
from utils.images import read_image, write_image

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
        ("none.jpg", "no such image"),
        ("", "a folder"),
    ]:
        with pytest.raises(DataError, match=message):
            read_image(tmp_path / name)


def test_unwritable_formats_and_sizes(tmp_path):
    with pytest.raises(DataError, match=r"60x40 pixels cannot be written as \.xyz"):
        write_image(tmp_path / "a.xyz", PICTURE)
    with pytest.raises(DataError, match=r"70000x1 pixels cannot be written as \.jpg"):
        write_image(tmp_path / "a.jpg", np.zeros((1, 70000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_nothing_to_draw():
    drawn = draw_detections(PICTURE, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert np.array_equal(drawn, PICTURE)
    assert drawn is not PICTURE


@pytest.mark.parametrize("size", [(1, 1), (4, 700), (700, 4), (200, 300)])
def test_boxes_beyond_the_image_can_be_drawn(size):
    image = np.zeros((*size, 3), np.uint8)
    boxes = [[-1e9, -5, 1e9, 20], [0, 0, 0, 0], [np.nan, 1, 2, np.inf], [150, 100, 140, 90]]
    assert draw_boxes(image, np.array(boxes), ["a"] * 4, [(255, 0, 0)] * 4).shape == image.shape


def test_a_box_has_the_colour_of_its_class():
    image = np.zeros((300, 300, 3), np.uint8)
    drawn = draw_detections(image, np.array([[50.0, 60, 200, 250]]), np.array([0.9]), np.array([2]))
    assert tuple(drawn[150, 50]) == CLASS_COLOURS[2]
    assert not drawn[150, 120].any()
