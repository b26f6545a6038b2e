"""Mixes a trained network with the one-class parent it started from: faces come back, persons pay a little.

Every value before the heads becomes (1 - share) x trained + share x parent; the heads stay as trained, since
the parent has no persons (weight-space ensembles of fine-tuned networks, Wortsman et al. 2022).

Example:
  python3 results/mix.py runs/a/best.pth mobilenet0.25_Final.pth --share 0.3 --out mixed.pth
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.checkpoint import init_from_face, load_network, save_checkpoint
from models.retinaface import RetinaFace
from utils.cli import OK, number, parser_of, run

HEADS = ("ClassHead.", "BboxHead.")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("trained", type=Path, help="two-class checkpoint")
    parser.add_argument("parent", type=Path, help="one-class checkpoint that it started from")
    parser.add_argument("--share", type=number(float, 0, 1), required=True, metavar="S", help="of the parent")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    save_checkpoint(args.out, mix(load_network(args.trained), args.parent, args.share))
    return OK


def mix(trained: RetinaFace, parent_file: Path, share: float) -> RetinaFace:
    """``trained`` itself, every value before its heads moved by ``share`` of the way to the parent's."""
    parent = RetinaFace(trained.cfg)
    init_from_face(parent, parent_file)
    start = parent.state_dict()
    for name, values in trained.state_dict().items():
        if values.is_floating_point() and not name.startswith(HEADS):
            values.lerp_(start[name], share)
    return trained


if __name__ == "__main__":
    run(main)
