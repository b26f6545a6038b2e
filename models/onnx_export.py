"""Writing networks as ONNX: the graph with what follows the network in it, int8, and the metadata."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from data.config import PIXEL_MEAN_BGR, ModelConfig
from models.detector import Thresholds
from models.onnx_network import ONNX_FORMAT, OUTPUTS
from models.retinaface import RetinaFace, fold_batch_norm
from utils.box_utils import decode
from utils.cli import import_package

INPUT = "images"

#: Sizes for tracing where they stay free: batch, height and width differ, on every level, and none is 1.
_EXAMPLE = (2, 96, 160)

#: Beginnings of the weights' names that stay in float in an int8 file: of maps finer than stride 8, in either
#: backbone. Measured for mobilenet0.25 (benchmarks/results/onnx.md): rounding them costs points of AP, the
#: rest nearly nothing; being of few channels, they cost no size and little time.
FLOAT_PARTS = (*(f"network.body.stage1.{i}." for i in range(4)), "network.body.conv1.", "network.body.layer1")


class ExportedNetwork(nn.Module):
    """The folded network in ``dtype``, and ``logits``, ``scores`` or ``boxes``; all else is float32."""

    def __init__(self, network: RetinaFace, outputs: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = fold_batch_norm(network).to("cpu", dtype)
        self.outputs, self.dtype = outputs, dtype

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of Tensor[N, 3, height, width]; ``boxes`` are xyxy in pixels of the input."""
        features = self.network.features(images.to(self.dtype))
        loc, logits = (output.float() for output in self.network.heads(features))
        if self.outputs == "logits":
            return loc, logits
        scores = logits.softmax(-1)
        if self.outputs == "scores":
            return loc, scores
        sizes = [level.shape[2:] for level in features]
        priors = priors_in_pixels(self.network.cfg, sizes, images.shape[2:])
        return decode(loc, priors, self.network.cfg.variances), scores


def priors_in_pixels(cfg: ModelConfig, feature_sizes: Sequence, image_size: Sequence) -> Tensor:
    """`prior_boxes` in pixels, in operations that can be traced for sizes that are not known yet."""
    height, width = image_size
    levels = []
    for (rows, columns), stride, shapes in zip(feature_sizes, cfg.strides, cfg.prior_shapes(), strict=True):
        wide, high = torch.tensor(shapes).T
        x, y = ((torch.arange(cells) + 0.5) * stride for cells in (columns, rows))
        if cfg.clip_priors:
            x, wide = x.clamp(max=width), wide.clamp(max=width)
            y, high = y.clamp(max=height), high.clamp(max=height)
        grid = (rows, columns, len(shapes))
        axes = (x[None, :, None], y[:, None, None], wide, high)
        levels.append(torch.stack([axis.expand(grid) for axis in axes], -1).reshape(-1, 4))
    return torch.cat(levels)


def export(
    network: RetinaFace,
    outputs: str = "logits",
    *,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = 1,
    precision: str = "fp32",
    thresholds: Thresholds | None = None,
    calibration: Iterable[np.ndarray] = (),
):
    """The network as an ``onnx.ModelProto``.

    Args:
        outputs: key of `OUTPUTS`.
        image_size: (height, width) that it takes, None for any.
        batch_size: 1, or None for any number.
        precision: ``fp32``, ``fp16`` or ``int8``.
        thresholds: of the NMS node, for ``detections``; its ``top_k`` does not apply.
        calibration: inputs for int8, see `quantise`.

    Raises:
        UsageError: onnx, onnxscript or, for int8, onnxruntime is not installed.
    """
    traced = "boxes" if outputs == "detections" else outputs
    dtype = torch.float16 if precision == "fp16" else torch.float32
    model = _trace(ExportedNetwork(network, traced, dtype), image_size, batch_size)
    if precision == "int8":
        model = quantise(model, calibration)
    thresholds = thresholds or Thresholds()
    if outputs == "detections":
        model = append_nms(model, thresholds)
    describe(model, network.cfg, outputs, precision, thresholds)
    import_package("onnx", "ONNX").checker.check_model(model, full_check=True)
    return model


def _trace(exported: ExportedNetwork, image_size: tuple[int, int] | None, batch_size: int | None):
    """The graph of a network, without what the exporter tells of its origin: a quarter of an int8 file."""
    import_package("onnx", "ONNX")
    import_package("onnxscript", "ONNX")
    example = torch.zeros(batch_size or _EXAMPLE[0], 3, *(image_size or _EXAMPLE[1:]))
    free = {0: "batch"} if batch_size is None else {}
    if image_size is None:
        free |= {2: "height", 3: "width"}
    with _quiet():
        program = torch.onnx.export(
            exported.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=list(OUTPUTS[exported.outputs]),
            dynamic_shapes={INPUT: dict.fromkeys(free, torch.export.Dim.DYNAMIC)} if free else None,
        )
    model = program.model_proto
    graph = model.graph
    for axis, name in free.items():
        graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    for output in graph.output:
        shape = output.type.tensor_type.shape.dim
        if batch_size is None:
            shape[0].dim_param = "batch"
        if image_size is None:
            shape[1].dim_param = "priors"
    del graph.value_info[:]
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings and log lines of exporter and quantiser to themselves; what counts is raised."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


def quantise(model, calibration: Iterable[np.ndarray]):
    """An int8 copy of a float32 model: weights int8 by channel, maps uint8, in the QDQ format.

    What follows the heads stays in float, and so do the convolutions of `FLOAT_PARTS`. ``calibration`` are
    float32[1, 3, height, width] inputs: the least and greatest values of a map over all are its range.
    """
    import_package("onnxruntime", "ONNX")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    onnx = import_package("onnx", "ONNX")

    inputs = ({INPUT: images} for images in calibration)
    reader = SimpleNamespace(get_next=lambda: next(inputs, None))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder, "int8.onnx")
        quantize_static(
            copy.deepcopy(model),  # it is written to
            path,
            reader,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=_float_nodes(model),
        )
        return onnx.load(path)


def _float_nodes(model) -> list[str]:
    """Names of the convolutions of `FLOAT_PARTS`, their activations, and all that follows the heads."""
    early, behind, names = set(), set(), []
    for node in model.graph.node:  # in the order of execution
        weights = node.input[1] if node.op_type == "Conv" else ""
        if weights.startswith(FLOAT_PARTS):
            early.update(node.output)
        elif behind.intersection(node.input):
            behind.update(node.output)
        elif not (node.op_type in ("LeakyRelu", "Relu") and node.input[0] in early):
            if "Head." in weights:
                behind.update(node.output)
            continue
        names.append(node.name)
    return names


def append_nms(model, thresholds: Thresholds):
    """Puts the cut on scores and NMS behind a model of ``boxes`` and ``scores``.

    The result's outputs are ``boxes`` [K, 4], ``scores`` [K], ``labels`` int64[K] and ``image_index``
    int64[K], by image, class and descending score. As in `Detector`, a box from x1 to x2 is x2 - x1 + 1
    pixels wide; other than there, no number of candidates limits what enters NMS.
    """
    onnx = import_package("onnx", "ONNX")
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    tail = onnx.parser.parse_model(
        f"""
        <ir_version: {model.ir_version}, opset_import: ["": {opset}]>
        suppress (float[n, p, 4] nms_boxes, float[n, p, c] nms_scores)
            => (float[k, 4] boxes, float[k] scores, int64[k] labels, int64[k] image_index)
        <
            float[4] pixel = {{0, 0, 1, 1}}, int64[1] one = {{1}}, int64[1] last = {{9223372036854775807}},
            int64[1] axis = {{2}}, int64[3] columns = {{1, 1, 1}},
            int64[1] kept = {{{thresholds.keep_top_k}}},
            float[1] overlap = {{{thresholds.nms_iou!r}}}, float[1] least = {{{thresholds.score!r}}}
        >
        {{
            counted = Add (nms_boxes, pixel)
            of_classes = Slice (nms_scores, one, last, axis)
            by_class = Transpose <perm = [0, 2, 1]> (of_classes)
            picked = NonMaxSuppression (counted, by_class, kept, overlap, least)
            image, class, prior = Split <axis = 1> (picked, columns)
            where = Concat <axis = 1> (image, prior)
            boxes = GatherND (nms_boxes, where)
            scores = GatherND (by_class, picked)
            label = Add (class, one)
            labels = Squeeze (label, one)
            image_index = Squeeze (image, one)
        }}
        """
    )
    joined = [(output.name, f"nms_{output.name}") for output in model.graph.output]
    renamed = onnx.compose.add_prefix(model, "all_", rename_inputs=False, rename_outputs=True)
    return onnx.compose.merge_models(renamed, tail, [(f"all_{name}", target) for name, target in joined])


def describe(model, cfg: ModelConfig, outputs: str, precision: str, thresholds: Thresholds) -> None:
    """Writes the metadata that `OnnxNetwork` and other programs read; values are text, most of it JSON."""
    entries = {
        "format": ONNX_FORMAT,
        "outputs": outputs,
        "precision": precision,
        "class_names": json.dumps(cfg.class_names),
        "pixel_mean_bgr": json.dumps(PIXEL_MEAN_BGR),
        "config": json.dumps(cfg.to_dict()),
    }
    if outputs == "detections":
        names = ("score", "nms_iou", "keep_top_k")
        entries["nms"] = json.dumps({name: getattr(thresholds, name) for name in names})
    del model.metadata_props[:]
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name = "retinaface-2cls"
