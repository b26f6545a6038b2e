"""What the hostile tests share: a folder with a small input of every kind, and a light command a stage."""

from __future__ import annotations

import contextlib
import io
import json
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

from training_data import make_list

import prep_data
import wider_openimagespersonface_evaluate.evaluation as openimages
import widerface_evaluate.evaluation as widerface
from utils.cli import exit_code

BOXES_CSV = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
    "000a,x,/m/0dzct,1,0.1,0.2,0.1,0.2,0,0,0,0,0\n"
    "000a,x,/m/04yx4,1,0.1,0.7,0.1,0.9,0,0,1,0,0\n"
    "000b,x,/m/01g317,1,0.3,0.7,0.1,0.9,0,0,0,0,0\n"
)
WIDER_TEXT = (
    "0--A/a.jpg\n1\n10 10 20 20 0 0 0 0 0 0\n"
    "0--A/b.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n"
    "1--B/c.jpg\n2\n1 2 3 4 0 0 0 1 0 0\n5 6 7 8 0 0 0 0 0 0\n"
)
COCO = {
    "categories": [{"id": 1, "name": "face"}, {"id": 2, "name": "person"}],
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 10, "height": 20},
        {"id": 2, "file_name": "b.jpg", "width": 10, "height": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [1.5, 2, 3, 4]},
    ],
}
DETECTIONS = [
    {"image_id": "0", "category_id": 0, "bbox": [1, 2, 20, 20], "score": 0.9},
    {"image_id": 1, "category_id": 0, "bbox": [1, 2, 30.5, 40], "score": 0.8},
]

#: Arguments of a light command by name; relative paths are those of `make_folder`.
STAGES: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "unpack": (prep_data.main, "unpack z.zip --save_folder out/z"),
    "openimages": (prep_data.main, "openimages boxes.csv --output out/oi/list.txt"),
    "widerface": (prep_data.main, "widerface wider.txt --images . --output out/w/list.txt --skip_missing"),
    "pseudo_label": (
        prep_data.main,
        "pseudo_label set/list.txt --output out/p/list.txt --detections det.json --category 0=face",
    ),
    "clean": (prep_data.main, "clean set/list.txt --output out/c/list.txt"),
    "link": (prep_data.main, "link set/images out/l"),
    "split": (prep_data.main, "split set/list.txt --save_folder out/s --val_share 0.5"),
    "merge": (prep_data.main, "merge set/list.txt --output out/m/list.txt"),
    "check": (prep_data.main, "check set/list.txt"),
    "stats": (prep_data.main, "stats set/list.txt"),
    "draw": (prep_data.main, "draw set/list.txt --output out/d.jpg"),
    "export coco": (prep_data.main, "export set/list.txt --format coco --output out/x.json"),
    "export yolo": (prep_data.main, "export set/list.txt --format yolo --output out/yolo"),
    "import coco": (prep_data.main, "import coco.json --output out/i/list.txt"),
    "import yolo": (
        prep_data.main,
        "import set --format yolo --category 0=person --output out/y/list.txt",
    ),
    "widerface_evaluate": (widerface.main, "-p faces -g wider.txt --json out/w.json"),
    "wider_openimagespersonface_evaluate": (openimages.main, "-p found -g set/list.txt --json out/o.json"),
}


def make_folder(folder: Path) -> None:
    """Writes the inputs of `STAGES`."""
    make_list(folder / "set", 4)
    (folder / "set" / "labels").mkdir()
    (folder / "set" / "labels" / "0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    for name, content in (("boxes.csv", BOXES_CSV), ("wider.txt", WIDER_TEXT)):
        (folder / name).write_text(content)
    for name, content in (("coco.json", COCO), ("det.json", DETECTIONS)):
        (folder / name).write_text(json.dumps(content))
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.writestr("big.txt", "x" * 20_000)
    for name in ("0--A/a", "0--A/b", "1--B/c"):
        path = folder / "faces" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("name\n1\n10 10 30 30 0.9 1\n")
    for number in range(4):
        path = folder / "found" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("name\n1\n0.1 0.1 0.3 0.3 0.9 1\n")


def run(main: Callable[[list[str]], int], arguments: list[str]) -> tuple[int, list[str]]:
    """Exit code of a command and the lines on standard error that are no warnings.

    Any other exception than those that become a line is a traceback, which fails the test.
    """
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = exit_code(main, arguments)
        except SystemExit as stop:
            code = stop.code
        except Exception:
            raise AssertionError(f"{arguments}: {traceback.format_exc()}") from None
    return code, [line for line in said.getvalue().splitlines() if not line.startswith("warning: ")]
