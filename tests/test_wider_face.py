"""The training data set, its batches and its order."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.annotations import ImageAnnotation, write_annotations
from data.data_augment import TrainTransform
from data.wider_face import EpochSampler, WiderFaceDetection, detection_collate, make_loader
from tests.training_data import make_list
from utils.cli import DataError, UsageError


def test_images_without_boxes_and_classes_without_labels(tmp_path):
    faces = make_list(tmp_path / "a", 4, ("face",))
    both = make_list(tmp_path / "b", 2, size=60)
    dataset = WiderFaceDetection([faces, both], TrainTransform(32))
    assert len(dataset) == 6 and dataset.list_sizes == [4, 2] and dataset.dropped == 0
    image, target = dataset[3, 7]
    assert image.shape == (32, 32, 3) and image.dtype == torch.uint8
    assert target["boxes_norm"].shape == (0, 4) and target["labels"].shape == (0,)
    assert [dataset[i, 0][1]["labelled"].tolist() for i in (0, 5)] == [[True, False], [True, True]]
    assert torch.equal(dataset[1][0], dataset[1, 1][0]) and not torch.equal(dataset[1][0], dataset[1, 2][0])
    images, targets = detection_collate([dataset[0, 0], dataset[3, 0]])
    assert images.shape == (2, 32, 32, 3)
    assert targets.counts.tolist() == [len(dataset[0, 0][1]["labels"]), 0]
    assert targets.labelled.tolist() == [[True, False]] * 2 and targets.names == dataset.paths[0:4:3]
    assert torch.equal(targets.boxes_norm, dataset[0, 0][1]["boxes_norm"])


def test_ignore_regions_are_apart_from_the_boxes_of_a_batch(tmp_path):
    path = make_list(tmp_path, 2)
    boxes = [[0, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1]]
    annotations = [ImageAnnotation("0.png", [1], boxes[:1]), ImageAnnotation("1.png", [-2, 2, -1], boxes)]
    write_annotations(path, annotations)
    dataset = WiderFaceDetection([path], lambda image, boxes, labels, rng: (image, boxes / 80, labels))
    _, targets = detection_collate([dataset[0], dataset[1]])
    assert targets.labels.tolist() == [1, 2] and targets.counts.tolist() == [1, 1]
    assert targets.boxes_norm.tolist() == [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]
    assert targets.regions_norm.tolist() == [[0, 0, 0.5, 0.5], [0, 0, 1, 1]]
    assert targets.region_of.tolist() == [[1, 1], [1, 0]]  # both in the second image: a person, a face


def test_boxes_are_cut_to_the_image_and_those_without_area_dropped(tmp_path):
    path = make_list(tmp_path, 1)
    boxes = [[-0.1, 0.2, 0.3, 0.9], [0.5, 0.5, 0.0, 0.1], [1.2, 0.1, 0.2, 0.2], [0.3, 0.3, -0.1, 0.1]]
    write_annotations(path, [ImageAnnotation("0.png", [1, 2, 1, 2], boxes)])
    dataset = WiderFaceDetection([path])
    assert dataset.dropped == 3
    boxes_norm, labels = dataset.annotation(0)
    np.testing.assert_allclose(boxes_norm, [[0, 0.2, 0.2, 1]], atol=1e-7)
    assert labels.tolist() == [1]


def test_faults_name_the_line(tmp_path):
    path = make_list(tmp_path, 2)
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    dataset = WiderFaceDetection([path], TrainTransform(32))
    with pytest.raises(DataError, match=r"list\.txt:4: .*1\.png: not an image"):
        dataset[1, 0]
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"list\.txt:4: .*1\.png: no such image; .*--images"):
        WiderFaceDetection([path])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty\.txt: names no image"):
        WiderFaceDetection([tmp_path / "empty.txt"])


def test_images_in_a_folder_of_their_own(tmp_path):
    path = make_list(tmp_path, 2)
    (tmp_path / "images").rename(tmp_path / "photos")
    assert len(WiderFaceDetection([path], images_dir=tmp_path / "photos")) == 2


def epoch_of(sampler: EpochSampler, epoch: int, first_step: int = 0) -> list:
    sampler.set_epoch(epoch, first_step)
    return list(sampler)


def test_an_epoch_sees_every_image_once_and_epochs_differ():
    sampler = EpochSampler([5, 6], [1, 1], 4)
    epoch = epoch_of(sampler, 0)
    assert len(sampler) == 3 and [len(batch) for batch in epoch] == [4, 4, 3]
    assert sorted(index for batch in epoch for index, _ in batch) == list(range(11))
    assert epoch_of(sampler, 0) == epoch and epoch_of(sampler, 1) != epoch
    assert epoch_of(sampler, 0, 2) == epoch[2:]
    seeds = [seed for epoch in range(2) for batch in epoch_of(sampler, epoch) for _, seed in batch]
    assert len(set(seeds)) == 22
    assert epoch_of(EpochSampler([5, 6], [1, 1], 4, seed=1), 0) != epoch


def test_lists_are_repeated_and_thinned():
    epoch = epoch_of(EpochSampler([4, 8], [2.5, 0.25], 100), 3)
    count = np.bincount([index for batch in epoch for index, _ in batch], minlength=12)
    assert count[:4].sum() == 10 and set(count[:4]) == {2, 3}
    assert count[4:].sum() == 2 and count[4:].max() == 1


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_same_batches(processes):
    whole = epoch_of(EpochSampler([10], [1], 4), 0)
    shares = [epoch_of(EpochSampler([10], [1], 4, 0, rank, processes), 0) for rank in range(processes)]
    whole = whole[: len(shares[0])]
    joined = [[key for part in parts for key in part] for parts in zip(*shares, strict=True)]
    assert joined == whole
    assert all(batch for share in shares for batch in share)


def test_large_batches_need_few_file_descriptors(tmp_path):
    dataset = WiderFaceDetection([make_list(tmp_path, 8)], TrainTransform(16))
    sampler = EpochSampler(dataset.list_sizes, [64], 256)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, limits[1]))
    try:
        batches = list(make_loader(dataset, sampler, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [len(images) for images, _ in batches] == [256, 256]
    assert all(len(targets.labels) == targets.counts.sum() for _, targets in batches)


def test_decoded_images_are_kept_once_for_all_processes(tmp_path):
    path = make_list(tmp_path, 8)
    transform = TrainTransform(16)
    expected = [dataset[i, 5] for dataset in [WiderFaceDetection([path], transform)] for i in range(8)]
    dataset = WiderFaceDetection([path], transform, cache=6.5 * 80 * 80 * 3 / 2**30)
    loader = make_loader(dataset, EpochSampler(dataset.list_sizes, [1], 4), 2)
    assert dataset.cache.get(0) is None
    assert len(list(loader)) == 2  # filled by the workers, seen here
    kept = [dataset.cache.get(i) for i in range(8)]
    assert sum(image is not None for image in kept) == 6 and not any(
        i is not None and i.flags.writeable for i in kept
    )
    for image in (tmp_path / "images").iterdir():
        if kept[int(image.stem)] is not None:
            image.write_bytes(b"")
    for i in range(8):
        found = dataset[i, 5]
        assert torch.equal(found[0], expected[i][0])
        assert torch.equal(found[1]["boxes_norm"], expected[i][1]["boxes_norm"])
    with pytest.raises(UsageError, match=r"--cache: \d+ GiB for images, the machine has \d+; take fewer"):
        WiderFaceDetection([path], transform, cache=2**20)


def test_workers_outlive_sigterm_but_not_the_main_process(tmp_path, repository):
    path = make_list(tmp_path, 4)
    code = f"""
import multiprocessing
from data.wider_face import *
dataset = WiderFaceDetection([{str(path)!r}], TrainTransform(16))
batches = iter(make_loader(dataset, EpochSampler(dataset.list_sizes, [1], 1), 1))
next(batches)
for worker in multiprocessing.active_children():
    worker.terminate()
print(len(list(batches)), len(multiprocessing.active_children()))
"""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=120, check=False
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "3 1\n", "")
