"""ONNX files as networks: what they hold, and running them in onnxruntime."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.config import NETWORKS, ModelConfig, one_class
from layers.functions.prior_box import feature_sizes, priors_per_cell
from utils.cli import DataError, UsageError

#: Value of the metadata key ``format`` in the project's own files.
ONNX_FORMAT = "retinaface_2cls_onnx/1"

#: Outputs by the metadata key ``outputs``; the first is offsets or boxes. Only raw ones make a network.
OUTPUTS = {
    "logits": ("loc", "logits"),
    "scores": ("loc", "scores"),
    "boxes": ("boxes", "scores"),
    "detections": ("boxes", "scores", "labels", "image_index"),
}
RAW = ("logits", "scores")

#: Operators that leave values as they are, passed over in the search for a softmax.
_MOVES = ("Concat", "Reshape", "Transpose", "Identity", "Cast", "Flatten", "Squeeze", "Unsqueeze")


def is_onnx(path: str | os.PathLike) -> bool:
    """Whether a file is ONNX, by its ending."""
    return Path(path).suffix.lower() == ".onnx"


def import_package(name: str):
    """The optional package ``name``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return __import__(name)
    except ImportError as error:
        raise UsageError(
            f"ONNX files need the package {name}, which cannot be imported ({error}); pip install {name}"
        ) from None


def open_session(path: str | os.PathLike, name: str | os.PathLike | None = None):
    """An onnxruntime session on the CPU, with as many threads as torch has.

    Args:
        path: the file.
        name: what errors call it, by default its path.

    Raises:
        UsageError: onnxruntime is not installed.
        DataError: no such file, damaged, or not ONNX.
    """
    runtime = import_package("onnxruntime")
    name = name or path
    if not Path(path).is_file():
        what = "a folder; expected an ONNX file" if Path(path).is_dir() else "no such ONNX file"
        raise DataError(f"{name}: {what}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    # Threads that wait in a loop take the cores from reading, drawing and torch, which work in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors share no class of their own
        raise DataError(
            f"{name}: damaged, or not an ONNX file that onnxruntime can run ({_brief(error)})"
        ) from None


def _brief(error: Exception) -> str:
    """The last part of a message of the runtime, without its codes and paths."""
    return str(error).strip().splitlines()[0].rsplit("failed:", 1)[-1].split(" : ")[-1][:160]


@dataclass(frozen=True)
class Description:
    """What an ONNX file holds.

    Attributes:
        cfg: configuration of the network.
        outputs: key of `OUTPUTS`.
        names: names of the outputs, offsets or boxes first.
    """

    cfg: ModelConfig
    outputs: str
    names: tuple[str, ...]


class OnnxNetwork:
    """A network in an ONNX file; called like `RetinaFace`, it gives the same outputs.

    Files of this project are described by their metadata, others by their graph (which needs the package
    onnx). Probabilities are returned as their logarithms, which are as good as logits: softmax restores them.

    Args:
        path: the file.
        network: expected value of ``--network``; None takes what the file holds.

    Attributes:
        cfg: its configuration.
        image_size: (height, width) that it takes, None if any.
        batch_size: images that it takes at once, None if any.

    Raises:
        UsageError: a package is not installed.
        DataError: no such file, damaged, not a RetinaFace, one whose boxes are decoded already, or of another
            network than asked for.
    """

    def __init__(self, path: str | os.PathLike, network: str | None = None) -> None:
        self.path = Path(path)
        self.session = open_session(self.path)
        self.input, self.batch_size, self.image_size = self._read_input()
        metadata = self.session.get_modelmeta().custom_metadata_map
        described = _from_metadata if metadata.get("format") == ONNX_FORMAT else _from_graph
        try:
            found = described(self.path, self.session, metadata)
        except (ValueError, KeyError, RecursionError) as error:
            raise DataError(f"{self.path}: {error}") from None
        if found.outputs not in RAW:
            raise DataError(
                f"{self.path}: its boxes are decoded already (--decode or --nms), by settings of its own; it "
                f"is for programs without this project. Convert again without --decode and --nms"
            )
        self.cfg, self.outputs, self.names = found.cfg, found.outputs, found.names
        if network is not None and network != self.cfg.name:
            raise DataError(
                f"{self.path}: holds the network {self.cfg.name}, asked for was {network}; "
                f"give --network {self.cfg.name}"
            )
        self._try_out()

    def _read_input(self) -> tuple[str, int | None, tuple[int, int] | None]:
        inputs = self.session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or shape[1] != 3 or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{i.type} {i.shape}" for i in inputs)
            raise DataError(
                f"{self.path}: takes {found}; expected one input tensor(float) [N, 3, height, width]"
            )
        batch, height, width = (shape[i] if isinstance(shape[i], int) else None for i in (0, 2, 3))
        if (height is None) != (width is None) or batch not in (None, 1):
            raise DataError(
                f"{self.path}: takes {shape}; expected one image or any number, and height and width both "
                f"fixed or both free"
            )
        return inputs[0].name, batch, (height, width) if height and width else None

    def _try_out(self) -> None:
        """Runs the network once, which tells a file of another kind before the first image does."""
        height, width = self.image_size or (64, 64)
        loc, logits = self(torch.zeros(1, 3, height, width))
        count = sum(rows * columns for rows, columns in feature_sizes(self.cfg, (height, width)))
        expected = (1, count * priors_per_cell(self.cfg))
        if loc.shape != (*expected, 4) or logits.shape != (*expected, self.cfg.num_classes):
            raise DataError(
                f"{self.path}: gives {list(loc.shape)} and {list(logits.shape)} for an image of "
                f"{width}x{height}; expected {[*expected, 4]} and {[*expected, self.cfg.num_classes]} "
                f"({priors_per_cell(self.cfg)} priors a cell)"
            )

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``loc`` and ``logits`` of float32 Tensor[N, 3, height, width], see `RetinaFace.forward`.

        Raises:
            DataError: images of another size than the file takes.
        """
        size = tuple(images.shape[2:])
        if self.image_size not in (None, size):
            raise DataError(
                f"{self.path}: takes images of {self.image_size[1]}x{self.image_size[0]} pixels, "
                f"got {size[1]}x{size[0]}"
            )
        parts = images.split(self.batch_size) if self.batch_size else [images]
        results = [self._run(part.contiguous().numpy()) for part in parts]
        loc, logits = (
            np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for arrays in zip(*results, strict=True)
        )
        if self.outputs == "scores":
            logits = np.log(np.maximum(logits, np.finfo(np.float32).tiny))
        return torch.from_numpy(loc), torch.from_numpy(logits)

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        try:
            return self.session.run(list(self.names), {self.input: images})
        except Exception as error:  # the runtime's errors share no class of their own
            if "alloc" in str(error):
                raise MemoryError(str(error)) from None
            raise DataError(f"{self.path}: onnxruntime cannot run it ({_brief(error)})") from None


def _from_metadata(path: Path, session, metadata: dict[str, str]) -> Description:
    """Of a file of this project."""
    cfg, outputs = ModelConfig.from_dict(json.loads(metadata["config"])), metadata["outputs"]
    if outputs not in OUTPUTS:
        raise ValueError(f"its outputs are {outputs}; expected {', '.join(OUTPUTS)}")
    return Description(cfg, outputs, OUTPUTS[outputs])


def _from_graph(path: Path, session, metadata: dict[str, str]) -> Description:
    """Of any other file: heads tell the network, a softmax tells what the class output is."""
    onnx = import_package("onnx")
    graph = onnx.load(os.fspath(path), load_external_data=False).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    convolutions = Counter(shapes.get(node.input[1]) for node in graph.node if node.op_type == "Conv")
    for cfg in (c for known in NETWORKS.values() for c in (known, one_class(known))):
        priors, channels = priors_per_cell(cfg), cfg.fpn_channels
        heads = [(priors * values, channels, 1, 1) for values in (4, cfg.num_classes)]
        if all(convolutions[head] == len(cfg.strides) for head in heads):
            break
    else:
        raise ValueError("not a RetinaFace: no heads of 6 priors and two classes, or 2 priors and one class")
    names = []
    for values in (4, cfg.num_classes):
        fitting = [output.name for output in session.get_outputs() if output.shape[-1:] == [values]]
        if len(fitting) != 1:
            found = ", ".join(f"{output.name} {output.shape}" for output in session.get_outputs())
            raise ValueError(
                f"gives {found}; expected one output of 4 and one of {cfg.num_classes} values a prior"
            )
        names += fitting
    makers = {name: node for node in graph.node for name in node.output}
    return Description(cfg, "scores" if _ends_in_softmax(names[1], makers) else "logits", tuple(names))


def _ends_in_softmax(name: str, makers: dict) -> bool:
    """Whether the values of ``name`` come out of a softmax; ``makers`` are nodes by output."""
    while name in makers and makers[name].op_type in _MOVES:
        name = makers[name].input[0]
    return name in makers and makers[name].op_type == "Softmax"
