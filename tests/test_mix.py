"""Mixing a network with its parent."""

from __future__ import annotations

import torch

from models.checkpoint import init_from_face, load_network
from models.retinaface import RetinaFace
from results.mix import HEADS, main
from utils.arguments import DEFAULT_WEIGHTS


def test_all_but_the_heads_go_the_share_of_the_way(reference, tmp_path):
    parent = reference / "weights" / "mobilenet0.25_Final.pth"
    trained = load_network(DEFAULT_WEIGHTS)
    start = RetinaFace(trained.cfg)
    init_from_face(start, parent)
    first, last = trained.state_dict(), start.state_dict()
    for share in (0.0, 0.25, 1.0):
        out = tmp_path / f"{share}.pth"
        assert main([str(DEFAULT_WEIGHTS), str(parent), "--share", str(share), "--out", str(out)]) == 0
        for name, values in load_network(out).state_dict().items():
            head = name.startswith(HEADS) or not values.is_floating_point()
            expected = first[name] if head else (1 - share) * first[name] + share * last[name]
            torch.testing.assert_close(values, expected)
