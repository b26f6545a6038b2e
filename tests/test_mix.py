"""Averages of networks, and mixing with their parent."""

from __future__ import annotations

import pytest
import torch

from data.config import cfg_mnet, one_class
from models.arguments import DEFAULT_WEIGHTS
from models.checkpoint import init_from_face, load_network, save_checkpoint
from models.retinaface import RetinaFace
from results.mix import BEFORE_HEADS, main
from utils.cli import DataError, UsageError


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("layers", [(), ("body.stage2", "fpn")])
def test_layers_go_the_share_of_the_way(reference, tmp_path, share, layers):
    parent, out = reference / "weights" / "mobilenet0.25_Final.pth", tmp_path / "out.pth"
    trained = load_network(DEFAULT_WEIGHTS)
    start = RetinaFace(trained.cfg)
    init_from_face(start, parent)
    first, last = trained.state_dict(), start.state_dict()
    argv = [str(DEFAULT_WEIGHTS), "--parent", str(parent), "--share", str(share), "--out", str(out)]
    assert main([*argv, *(("--layers", *layers) if layers else ())]) == 0
    for name, values in load_network(out).state_dict().items():
        moves = name.startswith(layers or BEFORE_HEADS)
        if moves and values.is_floating_point():
            torch.testing.assert_close(values, (1 - share) * first[name] + share * last[name])
        else:
            assert torch.equal(values, first[name])


def test_the_smallest_and_the_largest_faces_and_all_persons_are_lowered(tmp_path):
    out = tmp_path / "out.pth"
    lowered = ("--lower_faces", "0.75", "--lower_large_faces", "1.5", "--lower_persons", "2")
    assert main([str(DEFAULT_WEIGHTS), *lowered, "--out", str(out)]) == 0
    images = torch.rand(1, 3, 64, 96) * 100
    before, after = (load_network(path).eval()(images) for path in (DEFAULT_WEIGHTS, out))
    drop = (before[1] - after[1]).detach()[0]
    smallest = torch.arange(8 * 12 * 6) % 6 < 3  # of the finest level
    largest = torch.arange(2 * 3 * 6) % 6 >= 3  # of the coarsest one
    expected = torch.zeros_like(drop)
    expected[:, 2] = 2
    expected[: len(smallest), 1] = 0.75 * smallest
    expected[-len(largest) :, 1] = 1.5 * largest
    torch.testing.assert_close(drop, expected, rtol=0, atol=1e-4)
    assert torch.equal(before[0], after[0])


@pytest.mark.parametrize("count", [1, 3])
def test_the_average_of_networks(tmp_path, count):
    networks = []
    for i in range(count):
        torch.manual_seed(i)
        networks.append(RetinaFace(load_network(DEFAULT_WEIGHTS).cfg))
        save_checkpoint(tmp_path / f"{i}.pth", networks[-1])
    argv = [*(str(tmp_path / f"{i}.pth") for i in range(count)), "--out", str(tmp_path / "mean.pth")]
    assert main(argv) == 0
    mean = load_network(tmp_path / "mean.pth").state_dict()
    for name, values in mean.items():
        expected = torch.stack([network.state_dict()[name].double() for network in networks]).mean(0)
        torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "more",
    [["--share", "0.5"], ["--parent", "x.pth"], ["--parent", "x.pth", "--share", "1", "--layers", "Bbox"]],
)
def test_what_does_not_go_together(more, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([str(DEFAULT_WEIGHTS), "--out", str(tmp_path / "out.pth"), *more])
    assert stop.value.code == 2


def test_a_network_of_faces_alone_is_no_start(tmp_path):
    save_checkpoint(tmp_path / "face.pth", RetinaFace(one_class(cfg_mnet)))
    with pytest.raises(DataError, match="two-class checkpoints, these know face alone"):
        main([str(tmp_path / "face.pth"), "--out", str(tmp_path / "out.pth")])
    assert not (tmp_path / "out.pth").exists()


def test_layers_that_the_network_does_not_have(reference, tmp_path):
    argv = [str(DEFAULT_WEIGHTS), "--parent", str(reference / "weights" / "mobilenet0.25_Final.pth")]
    with pytest.raises(UsageError, match="body.stage9"):
        main([*argv, "--share", "1", "--layers", "body.stage9", "--out", str(tmp_path / "out.pth")])
    assert not (tmp_path / "out.pth").exists()


def test_networks_of_two_kinds_have_no_average(tmp_path):
    save_checkpoint(tmp_path / "face.pth", RetinaFace(one_class(cfg_mnet)))
    with pytest.raises(DataError, match="face and person and mobile0.25 with face$"):
        main([str(DEFAULT_WEIGHTS), str(tmp_path / "face.pth"), "--out", str(tmp_path / "out.pth")])
