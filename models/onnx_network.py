"""ONNX files as networks: what they hold, and running them in onnxruntime or OpenVINO."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.config import NETWORKS, ModelConfig, one_class
from layers.functions.prior_box import feature_sizes, priors_per_cell
from models.checkpoint import check_network
from utils.cli import DataError, UsageError, import_package
from utils.files import reading

#: Value of the metadata key ``format`` in the project's own files.
ONNX_FORMAT = "retinaface_2cls_onnx/1"

#: Outputs by the metadata key ``outputs``; the first is offsets or boxes. Only those with loc make a network.
OUTPUTS = {
    "logits": ("loc", "logits"),
    "scores": ("loc", "scores"),
    "boxes": ("boxes", "scores"),
    "detections": ("boxes", "scores", "labels", "image_index"),
}

#: What runs ONNX files.
RUNTIMES = ("onnxruntime", "openvino")

#: Values of OpenVINO's ``INFERENCE_PRECISION_HINT`` by those of ``--precision``.
OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def is_onnx(path: str | os.PathLike) -> bool:
    """Whether a file is ONNX, by its ending."""
    return Path(path).suffix.lower() == ".onnx"


def open_session(file: str | os.PathLike | bytes):
    """An onnxruntime session on the CPU of a path or a file's content, with as many threads as torch has.

    Raises:
        UsageError: onnxruntime is not installed.
        DataError: no such file, damaged, or not ONNX.
    """
    runtime = import_package("onnxruntime", "ONNX")
    if not isinstance(file, bytes):
        file = os.fspath(file)
        with reading(file, "an ONNX file"):
            Path(file).open("rb").close()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    # Threads that wait in a loop take the cores from reading, drawing and torch, which work in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors share no class of their own
        name = "the model" if isinstance(file, bytes) else file
        raise DataError(
            f"{name}: damaged, or not an ONNX file that onnxruntime can run ({_brief(error)})"
        ) from None


def _brief(error: Exception) -> str:
    """The last part of a message of the runtime, without its codes and paths."""
    return str(error).strip().splitlines()[0].rsplit("failed:", 1)[-1].split(" : ")[-1][:160]


def openvino_model(path: Path, precision: str) -> Callable[[np.ndarray, Sequence[str]], Sequence[np.ndarray]]:
    """A function of float32[N, 3, height, width] and names of outputs that OpenVINO computes on the CPU.

    Raises:
        UsageError: OpenVINO is not installed.
        DataError: it cannot run the file so.
    """
    openvino = import_package("openvino", "--runtime openvino")
    settings = {
        # Of its own accord it would compute in bfloat16 where it can, which moves boxes by pixels.
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        compiled = openvino.Core().compile_model(os.fspath(path), "CPU", settings)
    except RuntimeError as error:
        raise DataError(
            f"{path}: not a file that OpenVINO can run in {precision} ({_brief(error)})"
        ) from None

    def call(images: np.ndarray, names: Sequence[str]) -> Sequence[np.ndarray]:
        found = compiled.create_infer_request().infer([images])  # one a call: threads may share the model
        return [found[name] for name in names]

    return call


class OnnxNetwork:
    """A network in an ONNX file; called like `RetinaFace`, it gives the same outputs.

    Files of this project are described by their metadata, others by their graph (which needs the package
    onnx). ONNX is a language: a file from a stranger may compute for ever, which nothing here stops.
    Probabilities are returned as their logarithms, which are as good as logits: softmax restores them.

    Args:
        network: expected value of ``--network``; None takes what the file holds.
        runtime: of `RUNTIMES`, what runs it; onnxruntime reads the file in any case.
        precision: arithmetic of OpenVINO, ``fp32`` or ``bf16``; for onnxruntime that of the file.

    Attributes:
        cfg, outputs: its configuration, and a key of `OUTPUTS`.
        image_size: (height, width) that it takes, None if any.
        batch_size: images that it takes at once, None if any.

    Raises:
        UsageError: a package is not installed.
        DataError: no such file, damaged, not a RetinaFace, one whose boxes are decoded already, or of another
            network than asked for.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        network: str | None = None,
        runtime: str = "onnxruntime",
        precision: str = "fp32",
    ) -> None:
        if precision not in (OPENVINO_PRECISIONS if runtime == "openvino" else ("fp32",)):
            raise UsageError(
                f"--precision {precision}: {runtime} does not compute a .onnx file in it, its precision is "
                f"that of the file; leave it out (convert_to_onnx.py --precision writes others)"
            )
        self.path, self.runtime = Path(path), runtime
        self.session = open_session(self.path)
        self.input, self.batch_size, self.image_size = self._read_input()
        metadata = self.session.get_modelmeta().custom_metadata_map
        try:
            if metadata.get("format") == ONNX_FORMAT:
                self.cfg = ModelConfig.from_dict(json.loads(metadata["config"]))
                self.outputs = metadata["outputs"]
                self.names = OUTPUTS[self.outputs]
            else:
                self.cfg, self.names = _read_graph(self.path, self.session.get_outputs())
                self.outputs = "unknown"
        except (ValueError, KeyError, RecursionError) as error:
            raise DataError(f"{self.path}: cannot be used as a network ({error})") from None
        if len(self.names) != 2 or self.names[0] == "boxes":
            raise DataError(
                f"{self.path}: its boxes are decoded already, by settings of its own; it is for programs "
                f"without this project. Convert again with --outputs logits"
            )
        check_network(self.cfg, network, self.path)
        self._openvino = openvino_model(self.path, precision) if runtime == "openvino" else None
        self._try_out()

    def _read_input(self) -> tuple[str, int | None, tuple[int, int] | None]:
        """Name, batch size and image size of the input."""
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
        """Runs the network once: that tells a file of another kind now, and scores, which sum to 1."""
        height, width = self.image_size or (64, 64)
        try:
            loc, values = self._run(np.zeros((1, 3, height, width), np.float32))
        except MemoryError:
            raise DataError(
                f"{self.path}: needs more memory than is free for an image of {width}x{height}"
            ) from None
        count = sum(rows * columns for rows, columns in feature_sizes(self.cfg, (height, width)))
        expected = (1, count * priors_per_cell(self.cfg))
        if loc.shape != (*expected, 4) or values.shape != (*expected, self.cfg.num_classes):
            raise DataError(
                f"{self.path}: gives {list(loc.shape)} and {list(values.shape)} for an image of "
                f"{width}x{height}; expected {[*expected, 4]} and {[*expected, self.cfg.num_classes]} "
                f"({priors_per_cell(self.cfg)} priors a cell)"
            )
        if self.outputs == "unknown":
            self.outputs = "scores" if np.allclose(values.sum(-1), 1, atol=1e-2) else "logits"

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``loc`` and ``logits`` of float32 Tensor[N, 3, height, width], see `RetinaFace.forward`."""
        parts = [part.contiguous().numpy() for part in images.split(self.batch_size or len(images))]
        loc, logits = map(np.concatenate, zip(*map(self._run, parts), strict=True))
        if self.outputs == "scores":
            logits = np.log(np.maximum(logits, np.finfo(np.float32).tiny))
        return torch.from_numpy(loc), torch.from_numpy(logits)

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        try:
            if self._openvino:
                return self._openvino(images, self.names)
            return self.session.run(list(self.names), {self.input: images})
        except Exception as error:  # the runtime's errors share no class of their own
            if "alloc" in str(error):
                raise MemoryError(str(error)) from None
            raise DataError(f"{self.path}: {self.runtime} cannot run it ({_brief(error)})") from None


def _read_graph(path: Path, outputs: Sequence) -> tuple[ModelConfig, tuple[str, str]]:
    """Network of a file of other origin, told by its heads, and the names of its two outputs.

    Raises:
        ValueError: not a RetinaFace.
    """
    onnx = import_package("onnx", "ONNX")
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
    names = {output.shape[-1]: output.name for output in outputs}
    if not {4, cfg.num_classes} <= set(names):
        found = ", ".join(f"{output.name} {output.shape}" for output in outputs)
        raise ValueError(
            f"gives {found}; expected one output of 4 and one of {cfg.num_classes} values a prior"
        )
    return cfg, (names[4], names[cfg.num_classes])
