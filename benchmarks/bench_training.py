"""Speed of a training step, of its loss and of the loader, against the plain version, interleaved in one run.

The step is batch 8 at 640x640, random weights and boxes; the plain loss is tests/plain/training.py.
Where there is a CUDA machine a third table gives images a second for large batches.

Examples:
  python3 benchmarks/bench_training.py
  python3 benchmarks/bench_training.py --repeats 9 --threads 4
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tables import machine, median_times, write_table
from data.annotations import ImageAnnotation, write_annotations
from data.config import cfg_mnet
from data.data_augment import TrainTransform
from data.wider_face import EpochSampler, Targets, WiderFaceDetection, make_loader
from layers.functions.prior_box import prior_boxes
from layers.modules.multibox_loss import MultiBoxLoss
from models.engine import Recipe, network_input, train_one_epoch
from models.retinaface import RetinaFace
from tests.plain import training as plain_training
from utils.cli import parser_of, run
from utils.image_names import sample_photos
from utils.images import read_image
from utils.processes import keep_freed_memory

SIZE, BATCH = 640, 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds; medians are shown")
    parser.add_argument("--image", default=sample_photos()[0], help="image, stretched to 1024x768")
    parser.add_argument("--out", default="benchmarks/results/training.md", help="table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    write_table(
        args.out,
        f"Training step, batch {BATCH} at {SIZE}x{SIZE}, milliseconds; {machine(args.threads)}",
        ["boxes", "forward", "backward", "loss", "loss / step", "plain loss", "plain / step", "plain / ours"],
        [step_row(boxes, args.repeats) for boxes in (30, 150)],
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder), args.image)
        write_table(
            args.out,
            "One 1024x768 image read and augmented to 640x640, one thread, milliseconds",
            ["imread", "ours", "/ imread", "plain", "/ imread"],
            [sample_row(dataset, args.repeats)],
            append=True,
        )
        write_table(
            args.out,
            "Loader, images a second; plain cv2.imread in one process for comparison",
            ["workers", "images/s", "/ imread"],
            loader_rows(dataset, args.repeats),
            append=True,
        )
        if torch.cuda.is_available():
            write_table(
                args.out,
                f"Training on {torch.cuda.get_device_name()}, {SIZE}x{SIZE}, 30 boxes, images a second "
                f"(share of time waiting for data); original: plain loss and augmentation, 4 workers",
                ["batch", "float32", "--amp", "as the original"],
                [cuda_row(dataset, batch) for batch in (24, 64, 256)],
                append=True,
            )
    return 0


def random_targets(boxes: int, batch: int) -> Targets:
    """Targets with so many boxes an image, sizes as in WIDER FACE: mostly small."""
    generator = torch.Generator().manual_seed(0)
    size = torch.exp(torch.rand(batch * boxes, 1, generator=generator) * 3.5 - 4.2)
    size = size * torch.exp(torch.randn(batch * boxes, 2, generator=generator) * 0.2)
    corner = torch.rand(batch * boxes, 2, generator=generator) * (1 - size)
    return Targets(
        torch.cat([corner, corner + size], 1),
        torch.randint(1, 3, (batch * boxes,), generator=generator),
        torch.full((batch,), boxes),
        torch.ones(batch, 2, dtype=torch.bool),
        ["random"] * batch,
    )


def step_row(boxes: int, repeats: int) -> list:
    """Forward, backward and loss, ours and plain, on the same outputs."""
    network = RetinaFace(cfg_mnet).to(memory_format=torch.channels_last).train()
    criterion, device = MultiBoxLoss(cfg_mnet), torch.device("cpu")
    images = network_input(torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8))
    targets = random_targets(boxes, BATCH)
    priors = prior_boxes(criterion.cfg, (SIZE, SIZE), device)
    unknown = torch.zeros(BATCH, 1, 2, dtype=torch.bool)
    loc, logits = (t.detach().requires_grad_() for t in network(images))
    outputs: list[torch.Tensor] = []

    def forward() -> None:
        outputs[:] = network(images)

    def backward() -> None:
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])

    def ours() -> None:
        losses = criterion(loc, logits, criterion.match(targets, (SIZE, SIZE)), priors, unknown)
        sum(losses.values()).backward()

    def plain() -> None:
        boxes_norm, labels = targets.boxes_norm.split(boxes), targets.labels.split(boxes)
        loc_loss, class_loss = plain_training.multibox_loss(loc, logits, priors, boxes_norm, labels)
        (2 * loc_loss + class_loss).backward()

    times = median_times({"forward": forward, "backward": backward, "ours": ours, "plain": plain}, repeats)
    bare = times["forward"] + times["backward"]
    return [
        boxes,
        *(f"{times[name]:.0f}" for name in ("forward", "backward", "ours")),
        f"{times['ours'] / (bare + times['ours']):.1%}",
        f"{times['plain']:.0f}",
        f"{times['plain'] / (bare + times['plain']):.1%}",
        f"{times['plain'] / times['ours']:.1f}",
    ]


def make_dataset(folder: Path, image: str, count: int = 160) -> WiderFaceDetection:
    """Copies of a photo at 1024x768 with 30 boxes each."""
    photo = cv2.resize(read_image(image), (1024, 768), interpolation=cv2.INTER_AREA)
    (folder / "images").mkdir()
    targets = random_targets(30, count)
    annotations = []
    for i, (corners, labels) in enumerate(
        zip(targets.boxes_norm.split(30), targets.labels.split(30), strict=True)
    ):
        cv2.imwrite(str(folder / "images" / f"{i}.jpg"), photo)
        boxes = corners.double().numpy()
        boxes[:, 2:] -= boxes[:, :2]
        annotations.append(ImageAnnotation(f"{i}.jpg", labels.numpy(), boxes))
    write_annotations(folder / "list.txt", annotations)
    return WiderFaceDetection([folder / "list.txt"], TrainTransform(SIZE))


def sample_row(dataset: WiderFaceDetection, repeats: int) -> list:
    """Reading alone, our sample and the plain one, mean over the images of the data set."""
    cv2.setNumThreads(1)
    index = iter(range(10**9))

    def plain() -> None:
        i = next(index) % len(dataset)
        boxes_norm, labels = dataset.annotation(i)
        plain_training.augment(
            cv2.imread(dataset.paths[i]), boxes_norm * np.tile((1024, 768), 2), labels, SIZE
        )

    actions: dict[str, Callable[[], object]] = {
        "imread": lambda: cv2.imread(dataset.paths[next(index) % len(dataset)]),
        "ours": lambda: dataset[(i := next(index)) % len(dataset), i],
        "plain": plain,
    }
    rounds = {name: (lambda action=action: [action() for _ in range(20)]) for name, action in actions.items()}
    times = {name: value / 20 for name, value in median_times(rounds, repeats).items()}
    return [
        f"{times['imread']:.2f}",
        *(
            cell
            for name in ("ours", "plain")
            for cell in (f"{times[name]:.2f}", f"{times[name] / times['imread']:.2f}")
        ),
    ]


def loader_rows(dataset: WiderFaceDetection, repeats: int) -> list[list]:
    """Images a second of reading alone and of the loader by workers, which are started beforehand."""

    def read_alone() -> None:
        for path in dataset.paths:
            cv2.imread(path)

    actions: dict[str, Callable[[], object]] = {"cv2.imread": read_alone}
    for workers in (0, 1, 2):
        actions[str(workers)] = partial(deque, loader_of(dataset, BATCH, workers), maxlen=0)
    times = median_times(actions, repeats)
    rates = {name: len(dataset) / milliseconds * 1e3 for name, milliseconds in times.items()}
    return [[name, f"{rate:.0f}", f"{rate / rates['cv2.imread']:.2f}"] for name, rate in rates.items()]


def loader_of(dataset: WiderFaceDetection, batch: int, workers: int, repeat: float = 1) -> DataLoader:
    """The loader of the training script."""
    sampler = EpochSampler(dataset.list_sizes, [repeat], batch)
    return make_loader(dataset, sampler, workers, torch.cuda.is_available())


def cuda_row(dataset: WiderFaceDetection, batch: int) -> list:
    """Thirty steps each with our engine in float32 and bf16, and with the original's settings."""
    device, cells = torch.device("cuda"), []
    for amp in (False, True):
        network = RetinaFace(cfg_mnet).to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            [{"params": list(network.parameters()), "initial_lr": 1e-3}],
            1e-3,
            momentum=0.9,
            weight_decay=5e-4,
        )
        recipe = Recipe(
            network,
            optimizer,
            lambda step: 1.0,
            MultiBoxLoss(cfg_mnet),
            torch.zeros(2, dtype=torch.bool, device=device),
            amp=amp,
        )
        loader = loader_of(dataset, batch, 8, repeat=30 * batch / len(dataset))
        train_one_epoch(recipe, [next(iter(loader))], 0, 1)
        totals, _ = train_one_epoch(recipe, loader, 0, len(loader))
        waiting = totals["seconds_waiting"] / totals["seconds"]
        cells.append(f"{totals['images'] / totals['seconds']:.0f} ({waiting:.0%})")
    return [batch, *cells, f"{as_the_original(dataset, batch, device):.0f}"]


def as_the_original(dataset: WiderFaceDetection, batch: int, device: torch.device) -> float:
    """Images a second with the plain augmentation in 4 workers, float32 images, plain loss."""
    network = RetinaFace(cfg_mnet).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    priors = prior_boxes(cfg_mnet, (SIZE, SIZE), device)
    loader = DataLoader(
        _PlainDataset(dataset), batch, shuffle=True, num_workers=4, collate_fn=lambda samples: samples
    )
    start, count = 0.0, 0
    for step, samples in enumerate(loader):
        if step == 1:
            start, count = time.perf_counter(), 0
        images = torch.stack([torch.from_numpy(image) for image, _, _ in samples]).float().to(device)
        boxes_norm = [torch.from_numpy(boxes).float().to(device) for _, boxes, _ in samples]
        labels = [torch.from_numpy(labels).to(device) for _, _, labels in samples]
        losses = plain_training.multibox_loss(*network(images), priors, boxes_norm, labels)
        optimizer.zero_grad()
        (2 * losses[0] + losses[1]).backward()
        optimizer.step()
        count += len(samples)
    torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


class _PlainDataset(torch.utils.data.Dataset):
    """Plain samples."""

    def __init__(self, dataset: WiderFaceDetection) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 8 * len(self.dataset)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        i %= len(self.dataset)
        boxes_norm, labels = self.dataset.annotation(i)
        image = cv2.imread(self.dataset.paths[i])
        return plain_training.augment(image, boxes_norm * np.tile(image.shape[1::-1], 2), labels, SIZE)


if __name__ == "__main__":
    run(main)
