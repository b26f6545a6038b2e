"""The detection pipeline, once: preprocess, network, priors, decoding, cut, NMS, `Detections`; and its loop.

Example:
    >>> from models.detector import Detector
    >>> from utils.images import read_image
    >>> detector = Detector.from_checkpoint("weights/mobilenet0.25_2cls6anchors.pth")
    >>> found = detector(read_image("photo.jpg")).above(0.5)
    >>> found.boxes, found.scores, found.labels
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from data.config import PIXEL_MEAN_BGR
from data.predictions import Detections
from layers.functions.prior_box import PriorBox
from models.checkpoint import load_network
from models.onnx_network import OnnxNetwork, is_onnx
from models.retinaface import RetinaFace, fold_batch_norm
from utils.box_utils import decode
from utils.cli import DataError, UsageError
from utils.threads import Stopwatch, map_ahead

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Slack of the cut on logits that spares the softmax of priors that cannot pass the cut on scores.
_LOGIT_SLACK = 1e-3


@dataclass(frozen=True)
class Thresholds:
    """What becomes a detection, the published defaults.

    Attributes:
        score: least score, exclusive; recall, and with it AP, needs a low one.
        top_k: best candidates of a class that enter NMS.
        nms_iou: a box that overlaps a better one of its class by more is dropped.
        keep_top_k: best detections of a class that are kept.
    """

    score: float = 0.02
    top_k: int = 5000
    nms_iou: float = 0.4
    keep_top_k: int = 750

    def __post_init__(self) -> None:
        for name in ("score", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"expected a {name} threshold from 0 to 1, got {getattr(self, name)}")
        for name in ("top_k", "keep_top_k"):
            if getattr(self, name) < 1:
                raise UsageError(f"expected {name} of at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class InputSize:
    """The size at which the network sees an image; by default its own.

    Attributes:
        long_side: the longer side becomes this many pixels.
        target_size, max_size: the shorter side becomes ``target_size``, but the longer at most ``max_size``
            (1600 and 2150 is the published multi-scale protocol).
        fixed: the image fits into this (height, width), top left; the rest is filled with the pixel mean.
    """

    long_side: int | None = None
    target_size: int | None = None
    max_size: int | None = None
    fixed: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        sizes = (self.long_side, self.target_size, self.max_size, *(self.fixed or ()))
        if any(size is not None and size < 1 for size in sizes):
            raise UsageError(f"expected sizes of at least 1 pixel, got {[s for s in sizes if s is not None]}")
        rules = [self.long_side, self.target_size, self.fixed]
        if (self.target_size is None) != (self.max_size is None) or len(rules) - rules.count(None) > 1:
            raise UsageError(
                "expected either a long side, or a target and a max size, or a fixed size, or none of them"
            )

    def __call__(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels after resizing an image of ``image_size``."""
        height, width = image_size
        if self.long_side:
            scale = self.long_side / max(height, width)
        elif self.target_size and self.max_size:
            scale = self.target_size / min(height, width)
            if round(scale * max(height, width)) > self.max_size:
                scale = self.max_size / max(height, width)
        elif self.fixed:
            scale = min(self.fixed[0] / height, self.fixed[1] / width)
        else:
            return image_size
        return max(1, round(height * scale)), max(1, round(width * scale))

    def padded(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the network's input for an image of ``image_size``."""
        return self.fixed or self(image_size)


class Detector:
    """Finds faces and persons in images.

    Images of equal size go through the network together; nothing is resized unless ``input_size`` or the
    fixed size of an `OnnxNetwork` says so. On the CPU the scripts call `utils.processes.keep_freed_memory`
    first, which spares a quarter of the time.

    Args:
        network: the network; a folded copy is used, so training can go on. An `OnnxNetwork` runs on the CPU.
        device: where to run it.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        thresholds: what becomes a detection.
        classes: names of the classes to look for; all that the network knows by default.
        input_size: how images are resized.
        compile: run the network through ``torch.compile``; pays off for many images of one size.

    Attributes:
        stopwatch: seconds spent on ``preprocess``, ``network`` and ``postprocess``, which on a GPU waits for
            the network and counts its time.

    Raises:
        UsageError: a class that the network does not know, or options that an ONNX network does not have.
    """

    def __init__(
        self,
        network: RetinaFace | OnnxNetwork,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        thresholds: Thresholds | None = None,
        classes: Sequence[str] | None = None,
        input_size: InputSize | None = None,
        compile: bool = False,
    ) -> None:
        self.cfg = network.cfg
        self.device = torch.device(device)
        self.dtype = PRECISIONS[precision]
        self.thresholds = thresholds or Thresholds()
        self.input_size = input_size or InputSize()
        unknown = [name for name in classes or () if name not in self.cfg.class_names]
        if unknown:
            raise UsageError(
                f"the network finds {' and '.join(self.cfg.class_names)}, asked for was {unknown[0]}"
            )
        self.classes = tuple(classes or self.cfg.class_names)
        self.priors = PriorBox(self.cfg)
        self.stopwatch = Stopwatch()
        if isinstance(network, OnnxNetwork):
            self._check_options(network, compile)
            self.network = network
            self.input_size = InputSize(fixed=network.image_size) if network.image_size else self.input_size
        else:
            folded = fold_batch_norm(network).to(self.device, self.dtype, memory_format=torch.channels_last)
            self.network = torch.compile(folded) if compile else folded
        self._mean = torch.tensor(PIXEL_MEAN_BGR, device=self.device)

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike, network: str | None = None, **options) -> Detector:
        """A detector with the network of a checkpoint or, by its ending, an ``.onnx`` file.

        Options are those of `Detector`, errors also those of `load_network` and `OnnxNetwork`.
        """
        load = OnnxNetwork if is_onnx(path) else load_network
        return cls(load(path, network), **options)

    def _check_options(self, network: OnnxNetwork, compile: bool) -> None:
        """Raises UsageError for options that are settled by an ONNX file."""
        if self.device.type != "cpu":
            raise UsageError(f"{network.path}: runs on the CPU, not on {self.device}; give --device cpu")
        if self.dtype != torch.float32 or compile:
            raise UsageError(
                f"{network.path}: its precision is that of the file; leave out --precision and --compile "
                f"(convert_to_onnx.py --precision writes others)"
            )
        if network.image_size and self.input_size not in (InputSize(), InputSize(fixed=network.image_size)):
            height, width = network.image_size
            raise UsageError(
                f"{network.path}: takes {width}x{height} pixels and no other size; leave out the sizes, or "
                f"convert with --dynamic"
            )

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> Detections | list[Detections]:
        """Detections of one image, or one of each of several in their order.

        Args:
            images: uint8[height, width, 3], BGR, at least 1x1; or a sequence of such of any sizes.

        Raises:
            DataError: images too large for the memory.
        """
        if isinstance(images, np.ndarray) and images.ndim == 3:
            return self([images])[0]
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            check_image(image)
            size = self.input_size.padded(image.shape[:2])
            by_size.setdefault(size, []).append(index)
        found: dict[int, Detections] = {}
        for size, indices in by_size.items():
            sizes = [images[i].shape[:2] for i in indices]
            try:
                with self.stopwatch("preprocess"):
                    batch = self.preprocess([images[i] for i in indices])
                with self.stopwatch("network"):
                    outputs = self.forward(batch)
                with self.stopwatch("postprocess"):
                    detections = self.postprocess(*outputs, size, sizes)
            except (MemoryError, RuntimeError, cv2.error) as error:
                raise _out_of_memory(error, len(indices), size) from None
            found.update(zip(indices, detections, strict=True))
        return [found[i] for i in range(len(found))]

    @torch.inference_mode()
    def preprocess(self, images: Sequence[np.ndarray]) -> Tensor:
        """Network input of images that have one size once resized and padded: Tensor[N, 3, height, width]."""
        size = self.input_size.padded(images[0].shape[:2])
        batch = torch.stack([torch.from_numpy(self._fit(image, size)) for image in images]).to(self.device)
        pixels = batch.view(*batch.shape[:2], -1).float()
        pixels -= self._mean.repeat(size[1])  # row by row: three times faster than pixel by pixel
        return pixels.view(batch.shape).permute(0, 3, 1, 2).to(self.dtype)

    def _fit(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """``image`` resized and, up to ``size``, padded with the mean colour on the right and below."""
        height, width = resized = self.input_size(image.shape[:2])
        if image.shape[:2] != resized:
            image = cv2.resize(image, resized[::-1], interpolation=cv2.INTER_LINEAR)
        if resized != size:
            border = (0, size[0] - height, 0, size[1] - width)
            image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=PIXEL_MEAN_BGR)
        return np.ascontiguousarray(image)

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Raw outputs in float32 of `preprocess`ed images: loc [N, P, 4] and logits [N, P, classes]."""
        # TF32 would move boxes by a hundredth of a pixel; benchmark mode costs a search for every new size.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
            loc, logits = self.network(batch)
        return loc.float(), logits.float()

    @torch.inference_mode()
    def postprocess(
        self,
        loc: Tensor,
        logits: Tensor,
        input_size: tuple[int, int],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Detections of raw outputs.

        Args:
            loc: Tensor[N, P, 4].
            logits: Tensor[N, P, classes], background first.
            input_size: (height, width) of the network's input.
            image_sizes: (height, width) of the N original images.
        """
        cut = self.thresholds.score
        # A score above the cut needs a logit that beats the background's by this much: only those go on.
        margin = math.log(cut / (1 - cut)) - _LOGIT_SLACK if 0 < cut < 1 else math.inf if cut else -math.inf
        ahead = torch.stack([logits[..., label] - logits[..., 0] for label in range(1, logits.shape[2])])
        kind, image, prior = (ahead > margin).nonzero(as_tuple=True)
        scores = logits[image, prior].T.contiguous().softmax(0)  # by planes: ten times faster
        scores, order = scores.gather(0, kind[None] + 1)[0].sort(descending=True, stable=True)
        scores = scores[: int((scores > cut).sum())]
        image, prior, kind = (index[order[: len(scores)]] for index in (image, prior, kind))
        priors = self.priors(tuple(input_size), loc.device)
        boxes = decode(loc[image, prior], priors[prior], self.cfg.variances)

        found = []
        for index, (height, width) in enumerate(image_sizes):
            # The factors are 1 unless the input is padded.
            resized = self.input_size((height, width))
            scale = [width * (input_size[1] / resized[1]), height * (input_size[0] / resized[0])]
            scaled = boxes * torch.tensor(scale * 2, dtype=torch.float32, device=loc.device)
            parts = []
            for name in self.classes:
                number = self.cfg.class_names.index(name)
                own = ((image == index) & (kind == number)).nonzero()[: self.thresholds.top_k, 0]
                own = own[self._suppress(scaled[own], scores[own])]
                parts.append((scaled[own], scores[own], torch.full_like(own, number + 1)))
            found.append(
                Detections(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))
            )
        return found

    def _suppress(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Indices that NMS keeps of the boxes of one class, which come by descending score."""
        # The published NMS counts pixels, so a box from x1 to x2 is x2 - x1 + 1 wide; it compares in float32.
        threshold = float(np.float32(self.thresholds.nms_iou))
        keep = nms(boxes + boxes.new_tensor([0, 0, 1, 1]), scores, threshold)
        return keep[: self.thresholds.keep_top_k]


def _out_of_memory(error: Exception, count: int, size: tuple[int, int]) -> Exception:
    """What to raise for an error that may be about memory."""
    if not isinstance(error, MemoryError | torch.OutOfMemoryError | cv2.error) and "alloc" not in str(error):
        return error
    return DataError(
        f"images of {size[1]}x{size[0]} pixels, {count} at once, need more memory than is free; "
        f"take a smaller batch or smaller images (--long_side)"
    )


def check_image(image: np.ndarray) -> None:
    """Raises ValueError unless ``image`` is uint8[height, width, 3] with at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"expected uint8[height, width, 3], but got {image.dtype}{list(image.shape)}")


def raise_error(error: Exception) -> NoReturn:
    """The ``on_error`` of `detect_images` that stops at the first bad image."""
    raise error


Item = TypeVar("Item")


def detect_images(
    detector: Detector,
    items: Iterable[Item],
    read: Callable[[Item], np.ndarray],
    batch_size: int = 1,
    on_error: Callable[[DataError], object] = raise_error,
    workers: int = 2,
) -> Iterator[tuple[Item, np.ndarray, Detections]]:
    """Detects in many images, one batch after the other; bad images are reported and left out.

    Args:
        detector: finds faces and persons.
        items: paths, annotations or whatever else stands for an image.
        read: gives the image of an item as `Detector` takes it; a DataError means that there is none.
        batch_size: images that go through the network together.
        on_error: called with the error of an image that cannot be read or is too large for the memory.
        workers: threads that read ahead; with 0 an image is read when its turn comes.

    Yields:
        Item, image and detections of every good image, in order.
    """

    def try_to_read(item: Item) -> tuple[Item, np.ndarray | DataError]:
        with detector.stopwatch("read"):
            try:
                return item, read(item)
            except DataError as error:
                return item, error

    ahead = workers + 2 * batch_size
    pairs = map_ahead(try_to_read, items, workers, ahead) if workers else map(try_to_read, items)
    while batch := list(islice(pairs, batch_size)):
        images = []
        for item, image in batch:
            if isinstance(image, DataError):
                on_error(image)
            else:
                images.append((item, image))
        yield from _detect_batch(detector, images, on_error)


def _detect_batch(
    detector: Detector, batch: list[tuple[Item, np.ndarray]], on_error: Callable[[DataError], object]
) -> Iterator[tuple[Item, np.ndarray, Detections]]:
    """Detections of images at once or, where that takes too much memory, one by one."""
    try:
        found = detector([image for _, image in batch])
    except DataError as error:
        if len(batch) == 1:
            on_error(error)
            return
        for pair in batch:
            yield from _detect_batch(detector, [pair], on_error)
        return
    for (item, image), detections in zip(batch, found, strict=True):
        yield item, image, detections
