"""Checkpoints of every layout, the warm start, and files that must be refused."""

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from data.config import cfg_mnet, cfg_re50, one_class
from models.checkpoint import (
    init_from_face,
    load_backbone,
    load_network,
    load_strictly,
    read_checkpoint,
    save_checkpoint,
)
from models.retinaface import PackedConv, RetinaFace, can_pack, fold_batch_norm, pack_for_cpu
from utils.cli import DataError

PUBLISHED = [f"mobilenet0.25_2cls6anchors_130324_epoch_{epoch}.pth" for epoch in (150, 295)]


def seeded(cfg=cfg_mnet) -> RetinaFace:
    """A network with random weights and random batch-norm statistics."""
    torch.manual_seed(1)
    network = RetinaFace(cfg)
    for name, values in network.state_dict().items():
        if "running" in name:
            values.copy_(torch.rand_like(values) + 0.5)
    return network.eval()


def equal(a: RetinaFace, b: RetinaFace) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_number_of_values():
    state = RetinaFace(cfg_mnet).state_dict()
    assert len(state) == 294
    assert sum(tensor.numel() for tensor in state.values()) == 435_293


@pytest.mark.parametrize("cfg", [cfg_mnet, cfg_re50, one_class(cfg_mnet)])
def test_outputs_have_a_row_a_prior_at_any_size(cfg):
    with torch.inference_mode():
        loc, logits = RetinaFace(cfg).eval()(torch.zeros(2, 3, 33, 1))
    priors = 6 if cfg.num_classes == 3 else 2
    assert loc.shape == (2, (5 + 3 + 2) * priors, 4)
    assert logits.shape == (2, (5 + 3 + 2) * priors, cfg.num_classes)


@pytest.mark.parametrize("cfg", [cfg_mnet, cfg_re50])
def test_folding_keeps_the_outputs_and_the_original(cfg):
    network = seeded(cfg)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.randn(1, 3, 64, 48)
    with torch.inference_mode():
        for ours, folded in zip(network(images), fold_batch_norm(network)(images), strict=True):
            assert torch.allclose(ours, folded, atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("cfg", [cfg_mnet, cfg_re50])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_packed_for_the_cpu_it_gives_the_same(cfg, kind, tolerance):
    if not can_pack(kind):
        pytest.skip(f"this processor, or this torch, does not pack convolutions of {kind}")
    network = seeded(cfg)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # as seeded, a slope makes no difference
    folded = fold_batch_norm(network).to(kind, memory_format=torch.channels_last)
    sizes = [(1, 64, 48), (2, 33, 1), (1, 64, 48)]
    images = [torch.randn(n, 3, height, width).to(kind) for n, height, width in sizes]
    with torch.inference_mode():
        expected = [folded(batch) for batch in images]
        packed = pack_for_cpu(folded)
        kinds = {type(module) for module in packed.modules()}
        assert PackedConv in kinds and not kinds & {torch.nn.Conv2d, torch.nn.LeakyReLU}
        for batch, outputs in zip(images, expected, strict=True):
            for ours, theirs in zip(packed(batch), outputs, strict=True):
                scale = max(1, float(theirs.float().abs().max()))
                assert torch.allclose(ours.float(), theirs.float(), atol=tolerance * scale)


def test_a_torch_that_cannot_pack_goes_without(monkeypatch):
    folded = fold_batch_norm(seeded())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not any(isinstance(module, PackedConv) for module in pack_for_cpu(folded).modules())


def test_folding_knows_synchronised_batch_norm():
    network = seeded()
    folded = fold_batch_norm(torch.nn.SyncBatchNorm.convert_sync_batchnorm(seeded()))
    assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in folded.modules())
    images = torch.randn(1, 3, 64, 48)
    with torch.inference_mode():
        for ours, theirs in zip(network(images), folded(images), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_saved_and_loaded_again(tmp_path):
    network = seeded()
    save_checkpoint(tmp_path / "a.pth", network)
    assert equal(load_network(tmp_path / "a.pth", "mobile0.25"), network)


def test_a_changed_configuration_comes_back(tmp_path):
    cfg = replace(cfg_mnet, heights_over_widths=(1.0, 2.0))
    save_checkpoint(tmp_path / "a.pth", seeded(cfg), epoch=3)
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert checkpoint.cfg == cfg
    assert checkpoint.extra == {"epoch": 3}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_stripped(tmp_path, prefix):
    network = seeded()
    torch.save({prefix + name: tensor for name, tensor in network.state_dict().items()}, tmp_path / "a.pth")
    assert equal(load_network(tmp_path / "a.pth"), network)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.pth", seeded())
    before = (tmp_path / "a.pth").read_bytes()

    def fail(path, content):
        with path.open("wb") as file:
            file.write(content[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "a.pth", seeded())
    assert (tmp_path / "a.pth").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def write_pickle(path):
    path.write_bytes(pickle.dumps({"weights": Harmful()}))


def write_torch_pickle(path):
    torch.save({"state_dict": Harmful()}, path)


def write_text(path):
    path.write_text("<html>not found</html>")


def write_half(path):
    save_checkpoint(path, seeded())
    path.write_bytes(path.read_bytes()[:100_000])


def write_compressed(path):
    """As a bomb would be: torch stores its files as they are."""
    save_checkpoint(path, seeded())
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)


def write_giant(path):
    torch.save(
        {"config": replace(cfg_mnet, fpn_channels=8192).to_dict(), "state_dict": seeded().state_dict()}, path
    )


def write_strides(path):
    config = replace(cfg_mnet, strides=(1, 1, 1)).to_dict()
    torch.save({"config": config, "state_dict": seeded().state_dict()}, path)


def write_folded_lists(path):
    """A few lines that name each other: unfolded, they are 10^40 values."""
    value = [1.0]
    for _ in range(40):
        value = [value] * 10
    config = cfg_mnet.to_dict() | {"min_sizes": value}
    torch.save({"config": config, "state_dict": seeded().state_dict()}, path)


def write_nothing(path):
    path.touch()


def write_list(path):
    torch.save([torch.zeros(1)], path)


def write_numbers(path):
    torch.save({"epoch": 3}, path)


def write_resnet(path):
    torch.save(resnet18(weights=None).state_dict(), path)


def write_other_heads(path):
    network = RetinaFace(replace(cfg_mnet, min_sizes=((16,), (64,), (256,))))
    torch.save(network.state_dict(), path)


def write_missing_weight(path):
    state = seeded().state_dict()
    del state["fpn.output1.0.weight"]
    torch.save(state, path)


def write_wrong_shape(path):
    state = seeded().state_dict()
    state["fpn.output1.0.weight"] = torch.zeros(3)
    torch.save(state, path)


def write_odd_config(path):
    torch.save({"config": {"name": 3}, "state_dict": seeded().state_dict()}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_pickle, "refused"),
        (write_torch_pickle, "refused"),
        (write_text, "refused|damaged"),
        (write_half, "damaged"),
        (write_compressed, "damaged"),
        (write_giant, r"64.* instead of .*8192"),
        (write_strides, "not a network configuration"),
        (write_folded_lists, "not a network configuration"),
        (write_nothing, "damaged"),
        (write_list, "holds a list"),
        (write_numbers, "no table of weights"),
        (write_resnet, "not a RetinaFace"),
        (write_other_heads, "12 box and 9 class channels; expected 24 and 18 or 8 and 4"),
        (write_missing_weight, "1 missing .fpn.output1.0.weight"),
        (write_wrong_shape, r"\(3,\) instead of \(64, 64, 1, 1\)"),
        (write_odd_config, "not a network configuration"),
        (lambda path: None, "no such file; expected a checkpoint"),
        (lambda path: path.mkdir(), "a folder"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, write, message):
    path = tmp_path / "a.pth"
    write(path)
    with pytest.raises(DataError, match=message) as error:
        load_network(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_another_network_than_asked_for(tmp_path):
    save_checkpoint(tmp_path / "a.pth", seeded())
    with pytest.raises(DataError, match=r"holds the network mobile0.25, asked for was resnet50"):
        load_network(tmp_path / "a.pth", "resnet50")


def test_strict_loading_changes_nothing_on_a_fault():
    network, other = seeded(), RetinaFace(cfg_mnet)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = other.state_dict()
    del state["ssh3.conv3X3.0.weight"]
    with pytest.raises(DataError):
        load_strictly(network, state, "x")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_two_class_files(reference, name):
    network = load_network(reference / "weights" / name, "mobile0.25")
    assert network.cfg == cfg_mnet


def test_published_parent_is_a_face_detector(reference):
    network = load_network(reference / "weights" / "mobilenet0.25_Final.pth")
    assert network.cfg == one_class(cfg_mnet)


def test_published_backbone(reference):
    network = RetinaFace(cfg_mnet)
    report = load_backbone(network, reference / "weights" / "mobilenetV1X0.25_pretrain.tar")
    assert "162 tensors loaded, without the classifier" in report


def check_warm_start(parent: RetinaFace, path) -> str:
    """Starts from ``path``: the same faces and boxes on ratio-1 priors, and nothing else fires."""
    network = seeded()
    report = init_from_face(network, path)
    images = torch.randn(1, 3, 70, 90) * 50
    with torch.inference_mode():
        loc, logits = network.eval()(images)
        parent_loc, parent_logits = parent(images)
    loc, scores = loc.view(-1, 6, 4), logits.softmax(-1).view(-1, 6, 3)
    parent_loc, parent_scores = parent_loc.view(-1, 2, 4), parent_logits.softmax(-1).view(-1, 2, 2)
    assert torch.equal(loc[:, [0, 3]], parent_loc)
    assert torch.allclose(scores[:, [0, 3], 1], parent_scores[:, :, 1], atol=0.005)
    assert scores[:, :, 2].max() < 0.0051
    assert scores[:, [1, 2, 4, 5], 1:].max() < 0.0051
    return report


def test_warm_start_from_a_one_class_network(tmp_path):
    parent = seeded(one_class(cfg_mnet))
    save_checkpoint(tmp_path / "face.pth", parent)
    assert "294 tensors loaded" in check_warm_start(parent, tmp_path / "face.pth")


def test_warm_start_from_the_published_parent(reference):
    path = reference / "weights" / "mobilenet0.25_Final.pth"
    report = check_warm_start(load_network(path), path)
    assert "priors 1, 4 of 6" in report
    assert "294 tensors loaded, without the landmark head" in report


def test_warm_start_refuses_a_two_class_network(tmp_path):
    save_checkpoint(tmp_path / "two.pth", seeded())
    with pytest.raises(DataError, match="class face and person; expected mobile0[.]25 with 2 priors a cell"):
        init_from_face(RetinaFace(cfg_mnet), tmp_path / "two.pth")
