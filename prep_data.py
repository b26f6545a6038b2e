"""Prepares data: from Open Images and WIDER FACE to clean two-class lists, step by step.

Every step reads and writes annotation lists, prints what it changed and can be run again. The usual order:

  python3 prep_data.py download --split validation --save_folder datasets/open_images
  python3 prep_data.py openimages datasets/open_images/validation/boxes.csv \\
      --images datasets/open_images/validation/images --output datasets/oi/val/wider_val_gt.txt
  python3 prep_data.py pseudo_label datasets/oi/val/wider_val_gt.txt --classes face \\
      --trained_model weights/mobilenet0.25_Final.pth --output datasets/oi_faces/val/wider_val_gt.txt
  python3 prep_data.py clean datasets/oi_faces/val/wider_val_gt.txt \\
      --output datasets/oi_clean/val/wider_val_gt.txt
  python3 prep_data.py check datasets/oi_clean/val/wider_val_gt.txt
  python3 prep_data.py draw datasets/oi_clean/val/wider_val_gt.txt --output val.jpg
  python3 prep_data.py anchors datasets/oi_clean/val/wider_val_gt.txt --output anchors.png

`python3 prep_data.py STEP -h` explains a step. A list is text, `# image` then `label x y w h` a box (1 face,
2 person, shares of the image's size). It remembers its images in `dataset.json` beside it; else they are in
`images` beside it, or in --images. `import` reads sets of other tools, `export` writes them.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from importlib import import_module

from utils.cli import Formatter, parser_of, run

#: Module and one line of help by step. The module has `<step>_arguments(parser)` and `<step>(args) -> int`.
STEPS: dict[str, tuple[str, str]] = {
    "download": ("data.download", "downloads Open Images or, with --weights, the published weights"),
    "unpack": ("data.download", "says where WIDER FACE is, and unpacks its archives"),
    "openimages": ("data.open_images", "turns Open Images box CSVs (V4 to V7, MIAP) into an annotation list"),
    "widerface": ("data.convert", "turns the official WIDER FACE text annotation into a list of faces"),
    "pseudo_label": ("models.pseudo_label", "adds boxes of a class that another model finds"),
    "clean": ("data.clean", "cuts boxes to the image, merges repeated ones, reports what looks wrong"),
    "anchors": ("data.anchors", "shows box statistics, and how well the priors cover the boxes"),
    "link": ("data.lists", "makes the symbolic link to the images beside a list"),
    "split": ("data.lists", "splits a list into training and validation by image"),
    "merge": ("data.lists", "merges lists that are labelled for the same classes"),
    "check": ("data.lists", "decodes every image of a list and looks at every box"),
    "stats": ("data.lists", "counts images and boxes of a list"),
    "draw": ("data.lists", "makes a contact sheet of images of a list with their boxes"),
    "export": ("data.convert", "writes lists as a YOLO folder with its parts, or a list as COCO JSON"),
    "import": ("data.convert", "turns sets of other tools (YOLO, COCO, Pascal VOC, CrowdHuman) into lists"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    argv = sys.argv[1:] if argv is None else argv
    chosen = parser = parser_of(__doc__)
    steps = parser.add_subparsers(title="steps", metavar="STEP", required=True)
    for name, (_, line) in STEPS.items():
        step = steps.add_parser(name, help=line, formatter_class=Formatter, allow_abbrev=False)
        if argv[:1] == [name]:
            add_step(step, name)
            chosen = step
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")  # it knows the nearest option
    return args


def add_step(parser: argparse.ArgumentParser, name: str) -> None:
    """Gives ``parser`` the arguments of a step, its docstring and what it runs; imports its module alone."""
    module = import_module(STEPS[name][0])
    function = getattr(module, "import_" if name == "import" else name)
    getattr(module, f"{name}_arguments")(parser)
    parser.description = inspect.getdoc(function)
    parser.set_defaults(function=function)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return args.function(args)


if __name__ == "__main__":
    run(main)
