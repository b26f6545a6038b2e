"""Trains the two-class RetinaFace on any mix of face and person data.

Without further arguments this is the published training: SGD, 250 epochs, batches of 24 at 640x640. A run
writes to --save_folder: last.pth (everything that --resume needs), best.pth, ..._Final.pth, without --preset
also the published numbered files (..._epoch_10.pth), results.csv and results.png, TensorBoard curves and
run.json with its arguments and versions.

Examples:
  # a better network for your own photos, from the one that is shipped
  python3 train_changeclass.py --preset finetune --training_dataset datasets/mine/train/wider_train_gt.txt \\
      --val_dataset datasets/mine/val/wider_val_gt.txt --save_folder runs/mine

  # as published, on a list with its images in images/ beside it
  python3 train_changeclass.py --training_dataset datasets/wider_OIpersonface1103/train/wider_train_gt.txt

  # go on from a published checkpoint, at the rate that epoch 150 has
  CUDA_VISIBLE_DEVICES=0 python3 train_changeclass.py --network mobile0.25 \\
      --weights weights/mobilenet0.25_2cls6anchors_130324_epoch_150.pth --resume_epoch 150

  # faces here, persons there: start from the one-class parent, keep its faces, learn persons from labels
  # and from a two-class teacher
  python3 train_changeclass.py --training_dataset faces/train/list.txt persons/train/list.txt \\
      --init_from_face weights/mobilenet0.25_Final.pth --freeze_bn \\
      --teacher weights/mobilenet0.25_Final.pth weights/mobilenet0.25_2cls6anchors_130324_epoch_150.pth \\
      --optimizer adamw --lr 8e-4 --schedule cosine --epochs 10 --batch_size 10 --image_size 512 \\
      --ema 0.999 --val_dataset faces/val/list.txt persons/val/list.txt --save_folder runs/faces_and_persons

  # stop with Ctrl-C or SIGTERM at any time, and go on
  python3 train_changeclass.py ...the same arguments... --resume

  # two GPUs; --batch_size counts the images of both
  torchrun --nproc_per_node=2 train_changeclass.py --training_dataset ...
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import sys
from contextlib import nullcontext
from functools import partial
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.config import CLASS_COLOURS, CLASS_LABELS, CLASS_NAMES, NETWORKS, label_name
from data.data_augment import TrainTransform
from data.outputs import counted
from data.wider_face import EpochSampler, WiderFaceDetection, detection_collate, make_loader
from layers.functions.matching import prior_grids
from layers.modules.multibox_loss import LOC_LOSSES, MultiBoxLoss
from models.arguments import check_settings, pick_device
from models.checkpoint import (
    init_from_face,
    load_backbone,
    load_network,
    load_strictly,
    read_checkpoint,
    weights_path,
)
from models.engine import Recipe, RunningAverage, make_optimizer, make_schedule, validate
from models.retinaface import PARTS, RetinaFace
from models.teachers import load_teachers
from models.training_run import RunLog, TrainingRun, describe_run, misfits
from utils.cli import (
    DataError,
    Number,
    StopSignal,
    UsageError,
    at_least_zero,
    count,
    natural,
    option,
    parser_of,
    pixels,
    positive,
    run,
    share,
    warn,
)
from utils.draw import draw_boxes
from utils.files import locked, write_text
from utils.images import write_image
from utils.processes import cores, keep_freed_memory, processes, rank, world_size
from wider_openimagespersonface_evaluate.evaluation import evaluate

#: Arguments that may differ between a run and its continuation.
FREE_ON_RESUME = {"resume", "num_workers", "cache", "device", "cpu", "save_folder", "images"}
FREE_ON_RESUME |= {"val_dataset", "val_every", "patience", "debug_images"}

#: Values of arguments by --preset; an argument that is given counts more.
PRESETS = {
    "finetune": {
        "epochs": 20,
        "batch_size": 16,
        "image_size": 512,
        "loc_loss": "giou",
        "freeze_bn": True,
        "optimizer": "adamw",
        "lr": 3e-4,
        "shared_lr_factor": 0.5,
        "schedule": "cosine",
        "warmup": 20,
        "clip_grad": 20.0,
        "ema": 0.998,
    }
}

#: What a disk says that takes no more.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

#: Arguments of numbers that only training has.
repeats = Number(float, 0, 10_000, above=True, metavar="R")
workers = Number(int, 0, 256)
enlargement = Number(float, 1, 100, metavar="F")
scale = Number(float, 0, 100, above=True)
decay = Number(float, 0, 0.999999, metavar="DECAY")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    add_data_arguments(parser.add_argument_group("data"))
    add_start_arguments(parser.add_argument_group("start"))
    add_loss_arguments(parser.add_argument_group("loss"))
    add_step_arguments(parser.add_argument_group("optimisation"))
    add_output_arguments(parser.add_argument_group("output"))
    args = parser.parse_args(argv)
    if args.preset:
        parser.set_defaults(**PRESETS[args.preset])
        args = parser.parse_args(argv)
        if not args.init_from_face:
            args.weights = args.weights or str(weights_path(None))
        if args.teacher is None:
            args.teacher = [args.weights or args.init_from_face]
    args.teacher = args.teacher or []

    args.repeat = args.repeat or [1.0] * len(args.training_dataset)
    if len(args.repeat) != len(args.training_dataset):
        parser.error(
            f"--repeat: expected {len(args.training_dataset)} numbers, one a list, got {len(args.repeat)}"
        )
    if len(args.distil) not in (1, len(CLASS_NAMES)):
        parser.error(f"--distil: expected 1 or {len(CLASS_NAMES)} weights, got {len(args.distil)}")
    if args.windows and args.windows[0] > args.windows[1]:
        parser.error(f"--windows: expected the smaller factor first, got {args.windows[0]} {args.windows[1]}")
    if args.weights and args.init_from_face:
        parser.error("--weights and --init_from_face are two ways to start; give one")
    if args.patience and not args.val_dataset:
        parser.error("--patience: waits for a better validation; give --val_dataset")
    cfg = NETWORKS[args.network]
    args.epochs = args.epochs or cfg.epochs
    args.image_size = args.image_size or cfg.image_size
    return args


def add_data_arguments(group: argparse._ArgumentGroup) -> None:
    option(
        group,
        "--training_dataset",
        "annotation lists; a dataset.json beside or above one says which classes it is labelled for",
        default=["datasets/wider_OIpersonface1103/train/wider_train_gt.txt"],
        nargs="+",
        metavar="LIST",
    )
    images = "folder of the training images (default: that of each list)"
    option(group, "--images --images_dir", images, metavar="FOLDER")
    repeat = "how often each list is seen in an epoch, e.g. 2 0.5 (default: once)"
    option(group, "--repeat", repeat, repeats, nargs="+")
    option(group, "--image_size --imgsz", "side of training images (default: the network's)", pixels)
    option(group, "--zoom_out", "show half of the images up to F times smaller; 1: none", enlargement, 1.0)
    windows = """cut windows that are resized by a factor between these two, instead of crops by the image's
        size; what they cut is ignored, not background"""
    option(group, "--windows", windows, scale, nargs=2, metavar=("MIN", "MAX"))
    option(group, "--aspect", "with --windows: stretch windows by up to this factor", enlargement, 1.0)
    small = "with --windows: ignore boxes with a side of fewer pixels"
    option(group, "--min_box", small, at_least_zero, 0.0)
    reading = "processes that read images; 0: none (default: one a core, at most 16)"
    option(group, "--num_workers --workers", reading, workers, cores(most=16))
    cache = "keep decoded images in memory, at most so many GiB (a photo of 1024x768 takes 2.3 MiB); 0: none"
    option(group, "--cache", cache, at_least_zero, 0.0, metavar="GIB")


def add_start_arguments(group: argparse._ArgumentGroup) -> None:
    preset = """finetune: start from the shipped weights, which also teach what they know, with values for few
        photos; options that are given count more"""
    option(group, "--preset", preset, choices=list(PRESETS))
    option(group, "--network", "network to train", default="mobile0.25", choices=list(NETWORKS))
    option(group, "--resume", "go on with the run in --save_folder, exactly where it stopped")
    start = "start from the weights of a two-class checkpoint"
    option(group, "--weights --resume_net", start, metavar="FILE")
    done = "epochs that --weights has had; the schedule goes on from there"
    option(group, "--resume_epoch", done, natural, 0, metavar="E")
    parent = "start from a one-class checkpoint, a face detector"
    option(group, "--init_from_face", parent, metavar="FILE")
    backbone = "ImageNet weights of the backbone, where no other start is given (resnet50: torchvision's)"
    option(group, "--pretrain", backbone, default="weights/mobilenetV1X0.25_pretrain.tar", metavar="FILE")
    nothing = {"dest": "pretrain", "action": "store_const", "const": None}
    group.add_argument("--no-pretrain", **nothing, help="start from random weights")


def add_loss_arguments(group: argparse._ArgumentGroup) -> None:
    option(group, "--loc_loss", "localisation loss", default="smooth_l1", choices=LOC_LOSSES)
    mine = "take hard negatives from the whole batch, wherever they are, not so many from each image"
    option(group, "--mine_batch", mine)
    balance = "weigh a box by the root of the number of its priors, so that large ones do not dominate"
    option(group, "--balance", balance)
    by_score = "weigh the priors of a box by their scores, so that boxes fit best where the network is surest"
    option(group, "--loc_by_score", by_score)
    teachers = "checkpoints whose scores and boxes are kept; the first that knows a class on a prior counts"
    option(group, "--teacher", teachers, nargs="*", metavar="FILE")
    weights = "weight of the teachers in the loss, one for all or one a class (face person)"
    option(group, "--distil", weights, at_least_zero, [1.0], nargs="+", metavar="W")
    trusted = """classes for which teachers go before labels: boxes are learned, but where a labelled image
        has none the teacher's score is the target; for other classes that is background"""
    classes = list(CLASS_LABELS)
    option(group, "--trust_teacher", trusted, default=["face"], nargs="*", choices=classes, metavar="CLASS")


def add_step_arguments(group: argparse._ArgumentGroup) -> None:
    option(group, "--epochs", "length of the run in epochs (default: the network's)", count)
    option(group, "--batch_size --batch", "images a step, of all processes together", count, 24)
    option(group, "--optimizer", "how the weights are updated", default="sgd", choices=["sgd", "adamw"])
    option(group, "--lr --learning-rate", "learning rate", positive, 1e-3, metavar="R")
    before_heads = "rate of all layers before the heads, as a share of --lr"
    option(group, "--shared_lr_factor", before_heads, at_least_zero, 1.0, metavar="F")
    option(group, "--momentum", "momentum of SGD", share, 0.9, metavar="M")
    option(group, "--weight_decay", "pull of the weights towards zero", at_least_zero, 5e-4, metavar="D")
    schedule = "step: the rate times --gamma at the network's epochs; cosine: down to zero at the end"
    option(group, "--schedule", schedule, default="step", choices=["step", "cosine"])
    option(group, "--gamma", "with --schedule step: factor of a step", at_least_zero, 0.1, metavar="G")
    option(group, "--warmup", "steps in which the rate rises to --lr; 0: none", natural, 0, metavar="STEPS")
    largest = "largest norm of the gradient (default: no limit)"
    option(group, "--clip_grad", largest, positive, math.inf, metavar="NORM")
    average = "keep a running average of the weights, e.g. 0.999, and save and validate that; 0: none"
    option(group, "--ema", average, decay, 0.0)
    frozen = "keep the statistics of batch norm, for small data or batches"
    switch = argparse.BooleanOptionalAction
    group.add_argument("--freeze_bn", action=switch, default=False, help=frozen)
    parts = f"train these alone of {', '.join(PARTS)}; the others, and all statistics of batch norm, stay"
    option(group, "--train_only", parts, nargs="+", choices=PARTS, default=[], metavar="PART")
    option(group, "--sync_bn", "batch norm over the images of all processes, on CUDA")
    option(group, "--amp", "bfloat16 in the network")
    option(group, "--seed", "seed of weights, order and augmentation", natural, 0)
    devices = "cpu, cuda, cuda:1, mps; auto takes the fastest there is"
    option(group, "--device", devices, default="auto", metavar="DEVICE")
    option(group, "--cpu", "same as --device cpu")


def add_output_arguments(group: argparse._ArgumentGroup) -> None:
    option(group, "--save_folder --name", "where the run writes", default="runs/train", metavar="FOLDER")
    lists = "annotation lists to validate on, for the classes that they label"
    option(group, "--val_dataset", lists, default=[], nargs="+", metavar="LIST")
    option(group, "--val_every", "epochs between validations", count, 1, metavar="E")
    patience = "end after so many epochs without a better validation; 0: never"
    option(group, "--patience", patience, natural, 0, metavar="E")
    option(group, "--debug_images", "write N training images with boxes and matched priors", natural, 0)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_start(args)
    with processes(pick_device(args.device, args.cpu)) as device:
        try:
            with locked(args.save_folder) if rank() == 0 else nullcontext():
                return train(args, device, sys.argv[1:] if argv is None else argv)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise DataError(
                f"{args.save_folder}: {error.strerror}; the last good files there are whole: make room, or "
                f"choose another --save_folder, and go on with --resume"
            ) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{reason}; a reading process died, often for want of memory: take fewer --num_workers, "
                f"and --resume to go on with the last finished epoch"
            ) from None


def train(args: argparse.Namespace, device: torch.device, argv: list[str]) -> int:
    """Puts the run together from the arguments and runs it; returns the exit code."""
    folder, cfg = Path(args.save_folder), NETWORKS[args.network]
    last = folder / "last.pth"
    if last.exists() and not args.resume:
        raise UsageError(f"{last}: a run is there; go on with it (--resume) or choose another --save_folder")
    if args.sync_bn and device.type != "cuda":
        raise UsageError(f"--sync_bn: works on CUDA alone, this is {device}; leave it out or use --freeze_bn")
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(args.seed)

    log = RunLog(folder, active=rank() == 0)
    transform = TrainTransform(args.image_size, args.zoom_out, args.windows, args.aspect, args.min_box)
    dataset = WiderFaceDetection(args.training_dataset, transform, args.images, args.cache)
    validation = WiderFaceDetection(args.val_dataset) if args.val_dataset else None
    sampler = EpochSampler(dataset.list_sizes, args.repeat, args.batch_size, args.seed, rank(), world_size())
    steps = len(sampler)
    if not steps:
        raise UsageError(f"{world_size()} processes for {len(dataset)} images; expected an image each")
    images, lists = counted(len(dataset), "image"), counted(len(dataset.list_sizes), "list")
    dropped = f", {dataset.dropped} boxes without area left out" if dataset.dropped else ""
    if log.active:
        for misfit in misfits(dataset, cfg, args.image_size):
            warn(misfit)
    number = counted(len(validation), "image") if validation else ""
    validated = f"; validated on {number}, also before epoch 1" if validation else ""
    log.say(f"{images} in {lists}{dropped}; {steps} steps an epoch{validated}")

    network, settings, state = RetinaFace(cfg), settings_of(vars(args)), None
    if args.resume:
        state = read_checkpoint(last)
        if "settings" not in state.extra:
            raise DataError(f"{last}: weights alone, no run to go on with; start from them with --weights")
        check_settings(settings, state.extra["settings"], last)
        load_strictly(network, state.state_dict, last)
    else:
        log.say(load_start(network, args.weights, args.init_from_face, args.pretrain))
    if args.sync_bn:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network.to(device, memory_format=torch.channels_last)
    recipe = make_recipe(args, network, steps, device)
    training = TrainingRun(
        recipe,
        make_loader(dataset, sampler, args.num_workers, pin_memory=device.type == "cuda"),
        args.epochs,
        log,
        settings,
        partial(validate, dataset=validation, device=device, evaluate=evaluate) if validation else None,
        args.val_every,
        args.patience,
        numbered=not args.preset,
        epoch=args.resume_epoch,
    )
    if state:
        training.restore(state)
        done = training.totals.get("steps", 0)
        log.say(f"{last}: going on in epoch {training.epoch + 1} after step {done}")
    if log.active:
        arguments = {key: value if value != math.inf else None for key, value in vars(args).items()}
        write_text(folder / "run.json", json.dumps(describe_run(argv, arguments), indent=2) + "\n")
        for i, key in enumerate(islice(chain.from_iterable(sampler), args.debug_images)):
            write_image(folder / "debug" / f"{i:03d}.jpg", debug_image(dataset[key], recipe.criterion))
    with StopSignal() as stop, log.open(training.epoch, training.step):
        return training.train(stop)


def make_recipe(args: argparse.Namespace, network: RetinaFace, steps: int, device: torch.device) -> Recipe:
    """What a training step needs, for a network on its device and epochs of so many steps."""
    cfg = network.cfg
    teachers, distillation = load_teachers(args.teacher, args.distil, cfg, device)
    for part in PARTS if args.train_only else ():
        getattr(network, part).requires_grad_(part in args.train_only)
    shared = network
    if world_size() > 1:
        shared = DistributedDataParallel(network, [device] if device.type == "cuda" else None)
    return Recipe(
        average=RunningAverage(network, args.ema) if args.ema else None,
        network=shared,
        optimizer=make_optimizer(
            network, args.optimizer, args.lr, args.shared_lr_factor, args.momentum, args.weight_decay
        ),
        learning_rate=make_schedule(args.schedule, cfg, steps, args.epochs, args.warmup, args.gamma),
        criterion=MultiBoxLoss(
            cfg,
            mine_batch=args.mine_batch,
            balance=args.balance,
            by_score=args.loc_by_score,
            loc_loss=args.loc_loss,
        ),
        teacher_first=torch.tensor([name in args.trust_teacher for name in cfg.class_names], device=device),
        teachers=teachers,
        distillation=distillation,
        freeze_bn=args.freeze_bn or bool(args.train_only),
        amp=args.amp,
        clip=args.clip_grad,
    )


def check_start(args: argparse.Namespace) -> None:
    """Says at once, before lists are read, what a new run lacks and where it is."""
    given = args.resume or args.weights or args.init_from_face or args.pretrain is None
    if given or args.network == "resnet50" or Path(args.pretrain).exists():
        return
    raise UsageError(
        f"{args.pretrain}: not there, the published training starts from these ImageNet weights; fetch them: "
        f"python3 prep_data.py download --weights. Else start from a detector (--preset finetune takes the "
        f"one that is shipped; --weights FILE, --init_from_face FILE), or from nothing (--no-pretrain)"
    )


def load_start(
    network: RetinaFace, weights: str | None, init_from: str | None, pretrain: str | None
) -> object:
    """Loads the weights that a new run starts with, from the first file given; returns what to tell of it."""
    if weights:
        load_strictly(network, load_network(weights, network.cfg.name).state_dict(), Path(weights))
        return f"{weights}: all weights loaded"
    if init_from:
        return init_from_face(network, init_from)
    if pretrain is None:
        return "started from nothing"
    return load_backbone(network, None if network.cfg.backbone == "resnet50" else pretrain)


def settings_of(arguments: dict) -> dict:
    """What a continuation must not change; a cosine ends with the run, so its length counts too."""
    free = FREE_ON_RESUME if arguments["schedule"] == "cosine" else FREE_ON_RESUME | {"epochs"}
    return {key: value for key, value in arguments.items() if key not in free}


def debug_image(sample: tuple[Tensor, dict], criterion: MultiBoxLoss) -> np.ndarray:
    """A training image with its boxes and, faint, the priors that match them."""
    image, target = sample
    side, cpu = image.shape[0], torch.device("cpu")
    _, targets = detection_collate([sample])
    matches = criterion.match(targets, (side, side))
    priors = prior_grids(criterion.cfg, (side, side), cpu).corners[matches.prior].numpy() * side
    drawn = draw_boxes(image.numpy(), priors, [""] * len(priors), [(255, 255, 255)] * len(priors))
    labels = target["labels"].tolist()
    return draw_boxes(
        cv2.addWeighted(drawn, 0.3, image.numpy(), 0.7, 0),
        target["boxes_norm"].numpy() * side,
        [label_name(label) for label in labels],
        [CLASS_COLOURS[abs(label)] for label in labels],
    )


if __name__ == "__main__":
    run(main)
