"""Averages trained networks and moves the result towards the one-class parent they started from.

The average of networks that were trained from one start is often better than each of them (model soups,
Wortsman et al. 2022). Towards the parent faces come back and persons pay; the heads stay as trained, since
the parent has no persons. Scores of the smallest and the largest faces can be too high beside those of the
others, which --lower_faces and --lower_large_faces mend; those of persons can be too high for a threshold of
0.5: --lower_persons.

Examples:
  python3 results/mix.py runs/a/best.pth runs/b/best.pth --output mean.pth
  python3 results/mix.py mean.pth --parent parent.pth --share 0.4 --layers body.stage2 --output new.pth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.config import CLASS_LABELS
from models.checkpoint import init_from_face, load_network, save_checkpoint
from models.retinaface import RetinaFace
from utils.cli import OK, DataError, UsageError, at_least_zero, option, parser_of, run, share

BEFORE_HEADS = ("body", "fpn", "ssh")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("trained", type=Path, nargs="+", help="two-class checkpoints")
    option(parser, "--parent", "one-class checkpoint that they started from", type=Path, metavar="FILE")
    option(parser, "--share", "of the parent (default: 0)", share, 0.0, metavar="S")
    layers = "what goes towards the parent: starts of names, as body.stage2 (default: all before the heads)"
    option(parser, "--layers", layers, default=list(BEFORE_HEADS), nargs="+", metavar="NAME")
    lower = "take this from the logit of faces on the priors of the smallest size (default: 0)"
    option(parser, "--lower_faces", lower, at_least_zero, 0.0, metavar="LOGIT")
    lower = "take this from the logit of faces on the priors of the largest size (default: 0)"
    option(parser, "--lower_large_faces", lower, at_least_zero, 0.0, metavar="LOGIT")
    lower = "take this from the logit of persons on all priors (default: 0)"
    option(parser, "--lower_persons", lower, at_least_zero, 0.0, metavar="LOGIT")
    option(parser, "--output --out", "checkpoint to write", type=Path, required=True, metavar="FILE")
    args = parser.parse_args(argv)
    if bool(args.parent) != bool(args.share):
        parser.error("--parent and --share go together")
    for layer in args.layers:
        if not layer.startswith(BEFORE_HEADS):
            parser.error(f"--layers: expected names that start with {', '.join(BEFORE_HEADS)}, got {layer}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    network = average([load_network(path) for path in args.trained])
    if args.parent:
        network = mix(network, args.parent, args.share, args.layers)
    lower_scores(network, args.lower_faces, args.lower_large_faces, args.lower_persons)
    save_checkpoint(args.output, network)
    return OK


def average(networks: Sequence[RetinaFace]) -> RetinaFace:
    """The first network with the mean of all values.

    Raises:
        DataError: the networks are of different kinds, or do not know both classes.
    """
    first, *others = networks
    if len(first.cfg.class_names) < len(CLASS_LABELS):
        known = " and ".join(first.cfg.class_names)
        raise DataError(
            f"expected two-class checkpoints, these know {known} alone; give a parent by --parent"
        )
    for other in others:
        if other.cfg != first.cfg:
            kinds = [f"{cfg.name} with {' and '.join(cfg.class_names)}" for cfg in (first.cfg, other.cfg)]
            raise DataError(f"expected networks of one kind, but got {kinds[0]} and {kinds[1]}")
    for name, values in first.state_dict().items():
        if values.is_floating_point():
            for other in others:
                values += other.state_dict()[name]
            values /= len(networks)
    return first


def mix(
    trained: RetinaFace, parent_file: Path, share: float, layers: Sequence[str] = BEFORE_HEADS
) -> RetinaFace:
    """``trained`` itself, every value of ``layers`` moved by ``share`` of the way to the parent's.

    Raises:
        UsageError: no value has a name that starts with one of ``layers``.
    """
    for layer in layers:
        if not any(name.startswith(layer) for name in trained.state_dict()):
            raise UsageError(
                f"--layers: the network has nothing that starts with {layer}; such as body.stage2"
            )
    parent = RetinaFace(trained.cfg)
    init_from_face(parent, parent_file)
    start = parent.state_dict()
    for name, values in trained.state_dict().items():
        if values.is_floating_point() and name.startswith(tuple(layers)):
            values.lerp_(start[name], share)
    return trained


def lower_scores(network: RetinaFace, smallest_faces: float, largest_faces: float, persons: float) -> None:
    """Takes something from the logits of faces on the priors of the smallest and of the largest size, and of
    all persons."""
    face, person, ratios = CLASS_LABELS["face"], CLASS_LABELS["person"], len(network.cfg.heights_over_widths)
    biases = [head.conv1x1.bias.data.view(-1, network.cfg.num_classes) for head in network.ClassHead]
    biases[0][:ratios, face] -= smallest_faces
    biases[-1][-ratios:, face] -= largest_faces
    for bias in biases:
        bias[:, person] -= persons


if __name__ == "__main__":
    run(main)
