"""The detection pipeline, once: preprocess, network, priors, decoding, cut, NMS, `Detections`; and its loop.

Example:
    >>> from models.detector import Detector
    >>> found = Detector()("photo.jpg").above(0.5)
    >>> found.boxes, found.scores, found.labels
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple, NoReturn, TypeAlias, TypeVar

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.config import PIXEL_MEAN_BGR, PYRAMID
from data.predictions import Detections
from layers.functions.prior_box import prior_boxes
from models.checkpoint import load_network, weights_path
from models.onnx_network import RUNTIMES, OnnxNetwork, is_onnx
from models.retinaface import RetinaFace, fold_batch_norm, pack_for_cpu
from models.scales import InputSize, above, check_scales, suppress, trust, vote
from utils.cli import DataError, UsageError
from utils.images import shrink, to_bgr
from utils.threads import Stopwatch, map_ahead

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: What `Detector` takes for an image.
Picture: TypeAlias = str | os.PathLike | Image.Image | np.ndarray

#: Boxes float32[N, 4] in pixels of an image and scores float32[N], in no order, of each class looked for.
Candidates: TypeAlias = list[tuple[np.ndarray, np.ndarray]]


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
        shares, counts = (self.score, self.nms_iou), (self.top_k, self.keep_top_k)
        if not all(0 <= share <= 1 for share in shares) or min(counts) < 1:
            raise UsageError(f"expected score and nms_iou from 0 to 1, both counts from 1 on; got {self}")


class View(NamedTuple):
    """One image of a batch.

    Attributes:
        image_size, resized: (height, width) of its photo, and of itself without what it is padded with.
        finer, coarser: how many finer and coarser scales of the photo there are.
    """

    image_size: tuple[int, int]
    resized: tuple[int, int]
    finer: int = 0
    coarser: int = 0

    def pixels(self, input_size: tuple[int, int]) -> list[float]:
        """Width and height of the network's input, padding included, in pixels of the photo."""
        (height, width), (rows, columns) = self.image_size, self.resized
        return [width * (input_size[1] / columns), height * (input_size[0] / rows)]


class Detector:
    """Finds faces and persons in images.

    The network sees about 300 pixels around a point, and little in the smallest of faces, so an image is
    looked at in several sizes (`data.config.Pyramid`), each padded to whole cells of 32 pixels; equal ones
    go through the network together. Beyond that nothing is resized unless ``input_size`` or the fixed size of
    an `OnnxNetwork` says so.
    Threads may share a detector; of processes and memory see docs/python.md.

    Args:
        network: a folded copy is used, so training can go on. An `OnnxNetwork` runs on the CPU. None: that of
            `DEFAULT_WEIGHTS`.
        device: where to run it.
        precision: ``fp32``, ``bf16`` or ``fp16``; of an `OnnxNetwork` it is given there.
        thresholds: what becomes a detection.
        classes: names of the classes to look for; all that the network knows by default.
        input_size: how images are resized.
        scales: sizes at which an image is looked at, as factors of its own. ``auto`` takes 1,
            doubles up to 1024 pixels unless ``input_size`` settles the size, and adds a longer side of 416
            and in large images 640, 1280 and so on; or 1 alone where the input has a fixed size. 1 is the
            published protocol: one look without padding, plain NMS, and boxes may reach beyond the image;
            else they vote and are clipped.

    Attributes:
        stopwatch: seconds spent on ``preprocess``, ``network`` and ``postprocess``, which on a GPU waits for
            the network and counts its time.

    Raises:
        UsageError: a class that the network does not know, scales that are none or that its fixed size does
            not allow, options that an ONNX network does not have, or no default weights.
    """

    def __init__(
        self,
        network: RetinaFace | OnnxNetwork | None = None,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        thresholds: Thresholds | None = None,
        classes: Sequence[str] | None = None,
        input_size: InputSize | None = None,
        scales: Literal["auto"] | float | Sequence[float] = "auto",
    ) -> None:
        network = load_network(weights_path(None)) if network is None else network
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
        self.stopwatch = Stopwatch()
        if isinstance(network, OnnxNetwork):
            self._check_options(network)
            self.network = network
            self.input_size = InputSize(fixed=network.image_size) if network.image_size else self.input_size
        else:
            folded = fold_batch_norm(network)
            folded.to(self.device, self.dtype, memory_format=torch.channels_last)
            self.network = pack_for_cpu(folded) if self.device.type == "cpu" else folded
        self.scales = check_scales(scales)
        self._as_published = self.scales == (1,)
        if self.input_size.fixed:
            if self.scales not in ("auto", (1,)):
                raise UsageError("an input of fixed size shows an image at one scale; leave out --scales")
            self.scales = (1.0,)
        self._mean = torch.tensor(PIXEL_MEAN_BGR, dtype=self.dtype, device=self.device)

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike, network: str | None = None, runtime: str = RUNTIMES[0], **options
    ) -> Detector:
        """A detector with the network of a checkpoint or, by its ending, an ``.onnx`` file.

        ``network`` is as for `load_network`, ``runtime`` as for `OnnxNetwork`, and so are the errors; other
        options are those of `Detector`.
        """
        if is_onnx(path):
            precision = options.pop("precision", "fp32")
            return cls(OnnxNetwork(path, network, runtime, precision), **options)
        if runtime != RUNTIMES[0]:
            raise UsageError(
                f"--runtime {runtime}: runs .onnx files, which convert_to_onnx.py writes; not {path}"
            )
        return cls(load_network(path, network), **options)

    def _check_options(self, network: OnnxNetwork) -> None:
        """Raises UsageError for options that are settled by an ONNX file."""
        if self.device.type != "cpu":
            raise UsageError(f"{network.path}: runs on the CPU, not on {self.device}; give --device cpu")
        if self.dtype != torch.float32:
            raise UsageError(f"{network.path}: an OnnxNetwork has its own precision; give it there")
        if network.image_size and self.input_size not in (InputSize(), InputSize(fixed=network.image_size)):
            height, width = network.image_size
            raise UsageError(
                f"{network.path}: takes {width}x{height} pixels and no other size; leave out the sizes, or "
                f"convert with --dynamic"
            )

    def __call__(
        self, images: Picture | Sequence[Picture], rgb: bool = False
    ) -> Detections | list[Detections]:
        """Detections of one image, or one of each of several in their order.

        Args:
            images: a path, an image of Pillow, or uint8[height, width, 3], BGR; or several of any sizes.
            rgb: whether the channels of arrays are red, green, blue instead.

        Raises:
            DataError: images too large for the memory, or that cannot be read.
            ValueError: an array that is not such an image.
        """
        if isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 0) == 3:
            return self([images], rgb)[0]
        photos = [to_bgr(image, rgb) for image in images]
        batches: dict[tuple[int, int], list[tuple[int, View]]] = {}
        for index, photo in enumerate(photos):
            if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
                found = f"{photo.dtype}{list(photo.shape)}"
                raise ValueError(f"expected uint8[height, width, 3], but got {found}")
            sizes = self._sizes(photo.shape[:2])
            for level, size in enumerate(sizes):
                view = View(photo.shape[:2], size, level, len(sizes) - 1 - level)
                batches.setdefault(self._padded(size), []).append((index, view))
        copies = [self._copies(photo) for photo in photos]
        candidates: list[list[Candidates]] = [[] for _ in photos]
        for size in sorted(batches, key=math.prod, reverse=True):  # a photo's copies in their order
            indices, views = zip(*batches[size], strict=True)
            with self._explain_memory(len(views), size):
                with self.stopwatch("preprocess"):
                    batch = self._to_input([next(copies[index]) for index in indices])
                with self.stopwatch("network"):
                    outputs = self.forward(batch)
                with self.stopwatch("postprocess"):
                    for index, found in zip(indices, self._candidates(*outputs, size, views), strict=True):
                        candidates[index].append(found)
        with self.stopwatch("postprocess"):
            found = [self._join(parts, p.shape[:2]) for parts, p in zip(candidates, photos, strict=True)]
        return found if self._as_published else [one.clipped() for one in found]

    def _sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(height, width) at every scale of an image of ``image_size``, finest first, without padding."""
        height, width = self.input_size(image_size)
        scales = self.scales
        if scales == "auto":
            scales = PYRAMID.scales(max(height, width), enlarge=self.input_size == InputSize())
        return [(max(1, round(height * scale)), max(1, round(width * scale))) for scale in scales]

    def _padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the network's input for an image that was resized to ``size``.

        On a CPU oneDNN prepares every layer anew for a size that it has not seen, which takes half as long as
        the network itself; whole cells of the coarsest level leave few sizes.
        """
        if self.input_size.fixed or self._as_published:
            return self.input_size.fixed or size
        cell = self.cfg.strides[-1]
        return -(-size[0] // cell) * cell, -(-size[1] // cell) * cell

    def _copies(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """``image`` in each of its `_sizes`, padded; a smaller copy is made from the next larger one."""
        whole = self.input_size(image.shape[:2])
        for size in self._sizes(image.shape[:2]):
            if size < whole:
                image = shrink(image, size)
            yield self._fit(image, size)

    def preprocess(self, images: Sequence[np.ndarray]) -> Tensor:
        """Network input of images that have one size once resized and padded: Tensor[N, 3, height, width]."""
        return self._to_input([self._fit(image, self.input_size(image.shape[:2])) for image in images])

    def _fit(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """``image`` resized to ``size`` and padded with the mean colour on the right and below."""
        if image.shape[:2] != size:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        height, width = self._padded(size)
        if size != (height, width):
            border = (0, height - size[0], 0, width - size[1])
            image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=PIXEL_MEAN_BGR)
        return image

    @torch.inference_mode()
    def _to_input(self, images: Sequence[np.ndarray]) -> Tensor:
        """Network input of images of one size."""
        arrays = [torch.from_numpy(np.require(image, requirements="CW")) for image in images]
        batch = torch.stack(arrays).to(self.device)
        pixels = batch.view(*batch.shape[:2], -1).to(self.dtype)  # exact in every precision, as is the mean
        pixels -= self._mean.repeat(batch.shape[2])  # row by row: three times faster than pixel by pixel
        return pixels.view(batch.shape).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Raw outputs in float32 of `preprocess`ed images: loc [N, P, 4] and logits [N, P, classes]."""
        # TF32 would move boxes by a hundredth of a pixel; benchmark mode costs a search for every new size.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
            loc, logits = self.network(batch)
        return loc.float(), logits.float()

    @torch.inference_mode()
    def postprocess(
        self, loc: Tensor, logits: Tensor, input_size: tuple[int, int], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of raw outputs, Tensor[N, P, 4] and Tensor[N, P, classes], background first.

        Sizes are (height, width) of the network's input, and of the N original images.
        """
        views = [View(size, self.input_size(size)) for size in image_sizes]
        candidates = self._candidates(loc, logits, input_size, views)
        return [self._join([one], size) for one, size in zip(candidates, image_sizes, strict=True)]

    @torch.inference_mode()
    def _candidates(
        self, loc: Tensor, logits: Tensor, input_size: tuple[int, int], views: Sequence[View]
    ) -> list[Candidates]:
        """What scores above the cut in each image of a batch."""
        cut = self.thresholds.score * (1 if self._as_published else PYRAMID.voters_share)
        priors = prior_boxes(self.cfg, tuple(input_size), loc.device)
        labels, images, scores, boxes = above(cut, loc, logits, priors, self.cfg.variances)
        if any(view.finer or view.coarser for view in views):
            widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
            sides = np.maximum(widths * input_size[1], heights * input_size[0])
            finer, coarser = np.array([view[2:] for view in views]).T
            scores = scores * trust(sides, labels, finer[images], coarser[images])
            passed = scores > cut
            labels, images, scores, boxes = labels[passed], images[passed], scores[passed], boxes[passed]
        factors = np.float32([view.pixels(input_size) * 2 for view in views])
        boxes = boxes * (factors[images] if len(views) > 1 else factors)
        # By class, then by image: so they come.
        count = len(views)
        ends = (labels * count + images).searchsorted(np.arange(1, count * len(self.cfg.class_names)))
        chunks = list(zip(np.split(boxes, ends), np.split(scores, ends), strict=True))
        numbers = [self.cfg.class_names.index(name) for name in self.classes]
        return [[chunks[number * count + i] for number in numbers] for i in range(count)]

    def _join(self, parts: Sequence[Candidates], image_size: tuple[int, int]) -> Detections:
        """The detections of an image, of its candidates at every scale."""
        least, columns = self.thresholds.score, []
        for name, *chunks in zip(self.classes, *parts, strict=True):
            boxes, scores = map(np.concatenate, zip(*chunks, strict=True))
            label = self.cfg.class_names.index(name) + 1
            if len(scores) > self.thresholds.top_k:
                best = (-scores).argsort(kind="stable")[: self.thresholds.top_k]
                boxes, scores = boxes[best], scores[best]
            able = np.flatnonzero(scores > least)  # the others only vote
            able = able[(-scores[able]).argsort(kind="stable")]
            limits = self.thresholds.nms_iou, self.thresholds.keep_top_k
            kept = able[suppress(boxes[able], scores[able], *limits)]
            if self._as_published:
                boxes, scores = boxes[kept], scores[kept]
            else:
                boxes, scores = vote(boxes, scores, kept, label)
                order = (-scores).argsort(kind="stable")[: np.count_nonzero(scores > least)]
                boxes, scores = boxes[order], scores[order]
            columns.append((boxes, scores, np.full(len(scores), label)))
        return Detections(*map(np.concatenate, zip(*columns, strict=True)), tuple(image_size))

    @contextmanager
    def _explain_memory(self, count: int, size: tuple[int, int]) -> Iterator[None]:
        """Turns errors that are about memory into a DataError."""
        try:
            yield
        except (MemoryError, RuntimeError, cv2.error) as error:
            said = str(error).lower()
            is_plain = isinstance(error, MemoryError | torch.OutOfMemoryError | cv2.error)
            if not is_plain and "alloc" not in said and "out of memory" not in said:  # CUDA, cuDNN, cuBLAS
                raise
            fewer = "" if self.scales == (1,) else " or one scale (--scales 1)"
            raise DataError(
                f"images of {size[1]}x{size[0]} pixels, {count} at once, need more memory than is free; "
                f"take a smaller batch or smaller images (--long_side){fewer}"
            ) from None


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
        detector: a `Detector`, or what is called as it is.
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
    found = None
    try:
        found = detector([image for _, image in batch])
    except DataError as error:
        if len(batch) == 1:
            on_error(error)
            return
    if found is None:  # tried again out here, where the error no longer holds the memory of the whole batch
        for pair in batch:
            yield from _detect_batch(detector, [pair], on_error)
        return
    for (item, image), detections in zip(batch, found, strict=True):
        yield item, image, detections
