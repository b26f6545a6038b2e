"""Training data: annotation lists and their images as a torch data set."""

from __future__ import annotations

import atexit
import mmap
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.annotations import image_folder, labelled_classes, read_annotations
from data.config import CLASS_NAMES
from data.data_augment import TrainTransform
from data.predictions import BoxTable
from utils.box_utils import xywh_to_xyxy
from utils.cli import DataError, UsageError
from utils.images import read_image
from utils.processes import keep_freed_memory, local_processes


class WiderFaceDetection(Dataset):
    """Images and boxes of one or several annotation lists.

    Boxes are cut to the image; those without area are dropped and counted in ``dropped``; what is left stands
    in ``table``, normalised. An image without boxes is a sample like any other.

    An item is asked for by ``(index, seed)``: the seed decides the augmentation, so that a sample does not
    depend on which worker makes it; an index alone is its own seed. An item is a pair of the image, uint8
    Tensor[S, S, 3], BGR, and a dict:

    - ``boxes_norm`` float32 Tensor[N, 4], x1 y1 x2 y2 as shares of the image, ``labels`` int64 Tensor[N],
      negative for ignore regions;
    - ``labelled`` bool Tensor[classes]: whether the list is labelled for face, person;
    - ``name``: the image's path.

    Args:
        lists: annotation lists.
        transform: augmentation; None for images that are only `read`.
        images_dir: folder of all images; None: that of each list (`data.annotations.image_folder`).
        cache: GiB of memory for decoded images, see `ImageCache`; the machine's processes share it out.

    Raises:
        UsageError: a cache of more than the machine's memory.
        DataError: no images, an image that does not exist, with the line that names it; see
            `read_annotations`.
    """

    def __init__(
        self,
        lists: Sequence[str | os.PathLike],
        transform: TrainTransform | None = None,
        images_dir: str | os.PathLike | None = None,
        cache: float = 0,
    ) -> None:
        self.transform = transform
        self.paths: list[str] = []
        self.origins: list[str] = []
        self.list_sizes: list[int] = []
        labelled, labels, boxes, missing = [], [], [], []
        for path in map(Path, lists):
            annotations = read_annotations(path)
            if not annotations:
                raise DataError(f"{path}: names no image; expected lines '# <image path>'")
            names, folder = labelled_classes(path), image_folder(path, images_dir)
            for annotation in annotations:
                self.paths.append(os.fspath(folder / annotation.path))
                self.origins.append(f"{path}:{annotation.line}")
                if not Path(self.paths[-1]).is_file():
                    missing.append(f"{self.origins[-1]}: {self.paths[-1]}: no such image")
                labels.append(annotation.labels)
                boxes.append(annotation.boxes_xywh_norm)
            labelled += [[name in names for name in CLASS_NAMES.values()]] * len(annotations)
            self.list_sizes.append(len(annotations))
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(f"{missing[0]}{more}; give the folder of the images with --images")
        self.labelled = torch.tensor(labelled)
        cache = int(cache * 2**30) // local_processes()
        self.cache = ImageCache(len(self.paths), cache) if cache else None

        table = BoxTable.from_images(self.paths, boxes, labels)
        table.boxes = xywh_to_xyxy(table.boxes).clip(0, 1).astype(np.float32)
        kept = (table.boxes[:, 2:] > table.boxes[:, :2]).all(1)
        self.dropped = int((~kept).sum())
        self.table = table.select(kept)

    def __len__(self) -> int:
        return len(self.paths)

    def annotation(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """``boxes_norm`` float32[N, 4], x1 y1 x2 y2, and labels int64[N] of an image, regions too."""
        rows = slice(*self.table.offsets[index : index + 2])
        return self.table.boxes[rows], self.table.labels[rows]

    def read(self, index: int) -> np.ndarray:
        """The image itself, not to be written to.

        Raises:
            DataError: it cannot be read; with the line that names it.
        """
        image = self.cache.get(index) if self.cache else None
        if image is not None:
            return image
        try:
            image = read_image(self.paths[index])
        except DataError as error:
            raise DataError(f"{self.origins[index]}: {error}") from None
        if self.cache:
            self.cache.put(index, image)
        return image

    def __getitem__(self, key: int | tuple[int, int | Sequence[int]]) -> tuple[Tensor, dict]:
        index, seed = key if isinstance(key, tuple) else (key, key)
        image = self.read(index)
        boxes_norm, labels = self.annotation(index)
        height, width = image.shape[:2]
        boxes = boxes_norm * np.float32([width, height, width, height])
        image, boxes_norm, labels = self.transform(image, boxes, labels, np.random.default_rng(seed))
        target = {
            "boxes_norm": torch.from_numpy(boxes_norm),
            "labels": torch.from_numpy(labels),
            "labelled": self.labelled[index],
            "name": self.paths[index],
        }
        return torch.from_numpy(image), target


class ImageCache:
    """Decoded images in one block of ``size`` bytes that a loader's processes share, who are forked after it
    is made. It fills as images are read, and takes no more memory than that; what does not fit is left out.

    Raises:
        UsageError: more than the machine's memory.
    """

    def __init__(self, images: int, size: int) -> None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > memory:
            asked, there = size / 2**30, memory / 2**30
            raise UsageError(f"--cache: {asked:.0f} GiB for images, the machine has {there:.0f}; take fewer")
        self._pixels = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        self._places = np.frombuffer(mmap.mmap(-1, 24 * images), np.int64).reshape(images, 3)
        self._used = multiprocessing.get_context("fork").Value("q", 0)

    def get(self, index: int) -> np.ndarray | None:
        """uint8[height, width, 3] that cannot be written to; None: not there."""
        with self._used:
            first, height, width = self._places[index].tolist()
        if not height:
            return None
        image = self._pixels[first : first + height * width * 3].reshape(height, width, 3)
        image.flags.writeable = False
        return image

    def put(self, index: int, image: np.ndarray) -> None:
        """Keeps an image if there is room."""
        with self._used:
            first = self._used.value
            if self._places[index].any() or first + image.size > len(self._pixels):
                return
            self._used.value += image.size
        self._pixels[first : first + image.size] = image.reshape(-1)
        with self._used:
            self._places[index] = first, *image.shape[:2]


class Targets(NamedTuple):
    """What is known about the N images of a batch, their M boxes one after another.

    Attributes:
        boxes_norm, labels: float32 Tensor[M, 4], x1 y1 x2 y2 as shares of the image, and int64 Tensor[M].
        counts: int64 Tensor[N], boxes of each image.
        labelled: bool Tensor[N, classes]: whether the image's list is labelled for face, person.
        names: paths of the images.
        regions_norm: float32 Tensor[R, 4], x1 y1 x2 y2 of all ignore regions.
        region_of: int64 Tensor[R, 2], the image in the batch and the class (0 face, 1 person) of each.
    """

    boxes_norm: Tensor
    labels: Tensor
    counts: Tensor
    labelled: Tensor
    names: list[str]
    regions_norm: Tensor = torch.zeros(0, 4)
    region_of: Tensor = torch.zeros(0, 2, dtype=torch.int64)

    def to(self, device: torch.device) -> Targets:
        """The same on a device; a copy out of pinned memory keeps nobody waiting."""
        return Targets(*(v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for v in self))


def detection_collate(batch: Sequence[tuple[Tensor, dict]]) -> tuple[Tensor, Targets]:
    """Stacks images to uint8 Tensor[N, S, S, 3] and joins their targets.

    A tensor that a worker sends takes a file descriptor, so a batch is a few tensors however many its images.
    """
    images, targets = zip(*batch, strict=True)
    boxes_norm = torch.cat([target["boxes_norm"] for target in targets])
    labels = torch.cat([target["labels"] for target in targets])
    image = torch.repeat_interleave(torch.tensor([len(target["labels"]) for target in targets]))
    truth, region = labels > 0, labels < 0
    return torch.stack(images), Targets(
        boxes_norm[truth],
        labels[truth],
        torch.bincount(image[truth], minlength=len(images)),
        torch.stack([target["labelled"] for target in targets]),
        [target["name"] for target in targets],
        boxes_norm[region],
        torch.stack([image[region], -labels[region] - 1], 1),
    )


class EpochSampler(Sampler):
    """Batches of ``(index, seed)`` keys of one epoch, the same however many processes share it.

    A last batch with fewer images than processes is left out.

    Args:
        list_sizes: images of each annotation list.
        repeats: how often each list is seen in an epoch; a fraction takes a random part of it.
        batch_size: images of a step, over all processes.
        seed: of order and augmentation.
        rank, world_size: this process and how many there are; each batch is cut into contiguous shares.
    """

    def __init__(
        self,
        list_sizes: Sequence[int],
        repeats: Sequence[float],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.list_sizes, self.repeats = list(list_sizes), list(repeats)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.epoch, self.first_step = 0, 0

    def __len__(self) -> int:
        """Steps of an epoch."""
        pairs = zip(self.list_sizes, self.repeats, strict=True)
        full, rest = divmod(sum(round(size * repeat) for size, repeat in pairs), self.batch_size)
        return full + (rest >= self.world_size)

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Chooses the epoch and the step within it that the next iteration starts at."""
        self.epoch, self.first_step = epoch, first_step

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, int, int]]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        parts, first = [], 0
        for size, repeat in zip(self.list_sizes, self.repeats, strict=True):
            whole, rest = divmod(round(size * repeat), size)
            parts += [np.arange(first, first + size)] * whole + [first + rng.permutation(size)[:rest]]
            first += size
        order = rng.permutation(np.concatenate(parts)).tolist()
        for step in range(self.first_step, len(self)):
            positions = range(step * self.batch_size, min((step + 1) * self.batch_size, len(order)))
            first, end = (len(positions) * rank // self.world_size for rank in (self.rank, self.rank + 1))
            yield [(order[i], (self.seed, self.epoch, i)) for i in positions[first:end]]


def make_loader(
    dataset: WiderFaceDetection, sampler: EpochSampler, num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """Batches of a training set, as `detection_collate` makes them, read by ``num_workers`` processes."""
    atexit.unregister(_kill_workers)
    atexit.register(_kill_workers)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=detection_collate,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        multiprocessing_context="fork" if num_workers and dataset.cache else None,
    )


def start_worker(number: int) -> None:
    """A worker reads with one thread, reuses its memory, and leaves signals to the main process.

    Ctrl-C, ``timeout``, ``torchrun`` and batch systems signal all processes; workers that ended with it would
    take the epoch with them before the run can save it.
    """
    cv2.setNumThreads(0)
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _kill_workers() -> None:
    """Ends workers that an error has left; multiprocessing would ask them by SIGTERM and wait for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes them for crashed
    for worker in multiprocessing.active_children():
        worker.kill()
