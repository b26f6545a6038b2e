"""Checkpoints: the only place that reads and writes files of weights, and what a new run starts with.

Read: files of this project, the published two-class files, a one-class RetinaFace of the parent project
(its landmark head is left out), the ImageNet backbone of MobileNetV1 x0.25, with or without ``module.``
prefixes. Nothing that a file holds is ever run.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from data.config import NETWORKS, ModelConfig, one_class
from layers.functions.prior_box import priors_per_cell
from models.retinaface import RetinaFace
from utils.cli import DataError, UsageError
from utils.files import atomic_path, reading

#: Loaded where no other file is named.
DEFAULT_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "mobilenet0.25_2cls6anchors.pth"

#: Value of the key ``format`` in the project's own files.
FORMAT = "retinaface_2cls/1"

#: Parameters of the parent project that this network does not have.
LANDMARK_HEAD = "LandmarkHead."

#: Probability at which new classes and new priors start after `init_from_face`: far below any threshold.
START_PROBABILITY = 0.005


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes:
        path, state_dict: the file, and its tensors by name, on the CPU, without prefixes of wrappers.
        cfg: network configuration stored in the file or, where there is none, derived from the heads' shapes;
            None if it is not a RetinaFace.
        extra: whatever else was saved with it (training state), plain data and tensors.
    """

    path: Path
    state_dict: dict[str, Tensor]
    cfg: ModelConfig | None
    extra: dict = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Reads a checkpoint of any known layout.

    Raises:
        DataError: no such file, not a checkpoint, damaged, or one that would have to run code to load.
    """
    path = Path(path)
    with reading(path, "a checkpoint"):
        content = _read_torch(path)
    tensors = content.pop("state_dict", None)
    if tensors is None:
        tensors, content = content, {}
    if (
        not isinstance(tensors, dict)
        or not tensors
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items())
    ):
        raise DataError(f"{path}: holds no table of weights; expected a checkpoint of a network")
    if odd := next((name for name, tensor in tensors.items() if not _is_plain(tensor)), None):
        found = f"{tensors[odd].dtype} {tensors[odd].layout} on {tensors[odd].device}".replace("torch.", "")
        raise DataError(f"{path}: {odd} is {found}; expected numbers alone")
    state_dict = {  # without what DataParallel, DDP, torch.compile and thop put there
        name.removeprefix("module.").removeprefix("_orig_mod."): tensor
        for name, tensor in tensors.items()
        if not name.endswith("total_ops")
    }
    try:
        stored = content.pop("config", None)
        cfg = _derive_config(path, state_dict) if stored is None else ModelConfig.from_dict(stored)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    content.pop("format", None)
    return Checkpoint(path, state_dict, cfg, content)


def _read_torch(path: Path) -> dict:
    try:
        if zipfile.is_zipfile(path):  # torch does not look at the sums
            with zipfile.ZipFile(path) as file:
                if any(item.compress_type != zipfile.ZIP_STORED for item in file.infolist()):
                    raise ValueError("compressed, which torch never does")
                if broken := file.testzip():
                    raise ValueError(broken)
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols; what counts is raised
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError:
        raise DataError(
            f"{path}: refused, it is no torch file or would have to run code to load; "
            f"expected tensors and plain data alone"
        ) from None
    except Exception:  # anything at all, from zipfile, zlib, pickle and torch
        raise DataError(
            f"{path}: damaged or not a torch file; expected a checkpoint (fetch it again?)"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected a dictionary of weights")
    return dict(content)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is a table of real numbers."""
    dense = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)
    return dense and not tensor.is_complex()


def _derive_config(path: Path, state_dict: dict[str, Tensor]) -> ModelConfig | None:
    """The configuration of a RetinaFace file that stores none, from its names and head shapes."""
    box_head, class_head = (state_dict.get(f"{head}.0.conv1x1.weight") for head in ("BboxHead", "ClassHead"))
    if box_head is None or class_head is None:
        return None
    backbone = "resnet50" if "body.layer1.0.conv1.weight" in state_dict else "mobile0.25"
    known = {}
    for cfg in (NETWORKS[backbone], one_class(NETWORKS[backbone])):
        priors = priors_per_cell(cfg)
        known[priors * 4, priors * cfg.num_classes] = cfg
    found = (*box_head.shape[:1], *class_head.shape[:1])
    if found not in known:
        expected = " or ".join(f"{boxes} and {classes}" for boxes, classes in known)
        raise DataError(
            f"{path}: its heads have {' box and '.join(map(str, found))} class channels; expected {expected} "
            f"(two classes with 6 priors a cell, or one class with 2)"
        )
    return known[found]


def weights_path(trained_model: str | None) -> Path:
    """The file of ``--trained_model``.

    Raises:
        UsageError: none is given and the default is not there.
    """
    if trained_model is None and not DEFAULT_WEIGHTS.exists():
        raise UsageError(
            f"weights/{DEFAULT_WEIGHTS.name} is not there; give --trained_model FILE. Published "
            f"weights: mobilenet0.25_2cls6anchors_130324_epoch_150.pth in the folder weights of "
            f"github.com/NN-RTK/Pytorch_Retinaface_2cls"
        )
    return Path(trained_model or DEFAULT_WEIGHTS)


def load_network(path: str | os.PathLike, network: str | None = None) -> RetinaFace:
    """The network of a checkpoint, in evaluation mode on the CPU; of a one-class one, it finds faces alone.

    ``network`` is the expected value of ``--network``; None takes what the file holds.

    Raises:
        DataError: see `read_checkpoint`; also a network of another kind, missing or unexpected weights.
    """
    checkpoint = read_checkpoint(path)
    path, cfg = checkpoint.path, checkpoint.cfg
    if cfg is None:
        some = ", ".join(list(checkpoint.state_dict)[:3])
        raise DataError(
            f"{path}: not a RetinaFace (its weights are named {some}, ...); expected ClassHead and BboxHead"
        )
    check_network(cfg, network, path)
    state_dict = {k: v for k, v in checkpoint.state_dict.items() if not k.startswith(LANDMARK_HEAD)}
    try:
        with torch.device("meta"):  # takes no memory, whatever size the file claims
            model = RetinaFace(cfg)
    except RuntimeError as error:
        raise DataError(
            f"{path}: its configuration makes no network ({str(error).splitlines()[0]})"
        ) from None
    load_strictly(model, state_dict, path)
    return model.eval()


def check_network(cfg: ModelConfig, wanted: str | None, path: Path) -> None:
    """Raises DataError if ``path`` holds another network than the value of ``--network``."""
    if wanted not in (None, cfg.name):
        raise DataError(
            f"{path}: holds the network {cfg.name}, asked for was {wanted}; give --network {cfg.name}"
        )


def load_strictly(model: nn.Module, state_dict: dict[str, Tensor], path: Path) -> None:
    """Loads every weight or none; a network on the meta device moves to the CPU.

    Raises:
        DataError: names missing, unexpected or of another shape, the first of each listed.
    """
    own = model.state_dict()
    faults = {
        "missing": [name for name in own if name not in state_dict],
        "unexpected": [name for name in state_dict if name not in own],
        "of another shape": [
            f"{name} {tuple(state_dict[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state_dict and state_dict[name].shape != tensor.shape
        ],
    }
    found = [f"{len(names)} {kind} ({', '.join(names[:2])}, ...)" for kind, names in faults.items() if names]
    if found:
        raise DataError(f"{path}: weights do not fit the network: {'; '.join(found)}")
    if next(model.parameters()).is_meta:
        model.to_empty(device="cpu")
    model.load_state_dict(state_dict)


def save_checkpoint(path: str | os.PathLike, model: RetinaFace, **extra: object) -> None:
    """Writes weights and configuration of an unwrapped network, atomically.

    ``extra`` are further plain data and tensors, e.g. training state, which come back in `Checkpoint.extra`.
    """
    state_dict = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = io.BytesIO()  # written by Python, a full disk is an OSError
    torch.save({"format": FORMAT, "config": model.cfg.to_dict(), "state_dict": state_dict, **extra}, content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_backbone(model: RetinaFace, path: str | os.PathLike | None = None) -> str:
    """Loads ImageNet weights of MobileNetV1 x0.25 or ResNet50 into the backbone; returns what was loaded.

    Without a ``path`` they are torchvision's of ResNet50, downloaded at first use.

    Raises:
        DataError: see `read_checkpoint`; a backbone of another kind, or no download.
    """
    if path is None:
        path, found = _download_resnet50()
    else:
        found = read_checkpoint(path).state_dict
    wanted = {name: tensor for name, tensor in found.items() if not name.startswith("fc.")}
    load_strictly(model.body, wanted, Path(path))
    return f"{path}: {len(wanted)} tensors loaded, without the classifier; started anew: fpn, ssh, heads"


def _download_resnet50() -> tuple[str, dict[str, Tensor]]:
    from torchvision.models import ResNet50_Weights

    weights = ResNet50_Weights.IMAGENET1K_V2
    try:
        return weights.url, weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise DataError(
            f"torchvision's {weights} cannot be downloaded ({error}); use --no-pretrain"
        ) from None


def init_from_face(model: RetinaFace, path: str | os.PathLike) -> str:
    """Starts a two-class network as the face detector that a one-class checkpoint is; returns what was done.

    Backbone, pyramid and context modules are copied. The parent's priors are square, so its class and box
    rows go to the ratio-1 priors of the same size. On these priors the logit of person is the background's
    less a constant; the other priors start at fixed probabilities: in both cases nothing fires but faces.

    Raises:
        DataError: see `load_network`; not a one-class RetinaFace of the same backbone.
    """
    parent, cfg = load_network(path), model.cfg
    if parent.cfg != one_class(cfg):
        raise DataError(f"{path}: {_kind(parent.cfg)}; expected {_kind(one_class(cfg))}")
    shared = {k: v for k, v in parent.state_dict().items() if not k.startswith(("ClassHead.", "BboxHead."))}
    model.load_state_dict(shared, strict=False)
    ratios = len(cfg.heights_over_widths)
    square = [
        size * ratios + cfg.heights_over_widths.index(1.0) for size in range(priors_per_cell(cfg) // ratios)
    ]
    face = cfg.class_names.index("face") + 1
    margin = math.log(1 / START_PROBABILITY)
    with torch.no_grad():
        for own, old in zip(model.ClassHead, parent.ClassHead, strict=True):
            weight, bias = _rows(own, cfg.num_classes)
            weight.zero_()
            bias.fill_(-margin)[:, 0] = 0
            old_weight, old_bias = _rows(old, 2)
            weight[square], bias[square] = old_weight[:, :1], old_bias[:, :1] - margin
            for label, old_label in ((0, 0), (face, 1)):
                weight[square, label], bias[square, label] = old_weight[:, old_label], old_bias[:, old_label]
        for own, old in zip(model.BboxHead, parent.BboxHead, strict=True):
            for rows, old_rows in zip(_rows(own, 4), _rows(old, 4), strict=True):
                rows.zero_()[square] = old_rows
    priors = f"{', '.join(str(i + 1) for i in square)} of {priors_per_cell(cfg)} (ratio 1)"
    return (
        f"{path}: {len(parent.state_dict())} tensors loaded, without the landmark head\n"
        f"  face rows of both heads copied to priors {priors}\n"
        f"  started so that nothing fires: the other priors, and person on every prior"
    )


def _rows(head: nn.Module, values: int) -> tuple[Tensor, Tensor]:
    """Views of a head's weight [priors, values, channels] and bias [priors, values]."""
    weight, bias = head.conv1x1.weight, head.conv1x1.bias
    return weight.view(-1, values, weight.shape[1]), bias.view(-1, values)


def _kind(cfg: ModelConfig) -> str:
    classes = " and ".join(cfg.class_names)
    return f"{cfg.name} with {priors_per_cell(cfg)} priors a cell, class {classes}"
