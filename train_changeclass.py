"""Train the two-class RetinaFace on any mix of face and person data.

Without further arguments this is the published training: SGD, 250 epochs, batches of 24 at 640x640. A run
writes to --save_folder: last.pth (everything that --resume needs), best.pth, numbered files to use or to
start from, results.csv, TensorBoard curves and run.json with its arguments and versions.

Examples:
  # as published, on a list with its images in images/ beside it
  python3 train_changeclass.py --training_dataset data/wider_OIpersonface1103/train/wider_train_gt.txt

  # go on from a published checkpoint, at the rate that epoch 150 has
  CUDA_VISIBLE_DEVICES=0 python3 train_changeclass.py --network mobile0.25 \\
      --resume_net weights/mobilenet0.25_2cls6anchors_130324_epoch_150.pth --resume_epoch 150

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
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from data.config import CLASS_COLOURS, CLASS_LABELS, CLASS_NAMES, NETWORKS, ModelConfig
from data.data_augment import TrainTransform
from data.wider_face import EpochSampler, WiderFaceDetection, detection_collate
from layers.modules.distillation import DistillationLoss
from layers.modules.multibox_loss import LOC_LOSSES, MultiBoxLoss
from models.arguments import pick_device
from models.checkpoint import (
    Checkpoint,
    init_from_face,
    load_backbone,
    load_network,
    load_strictly,
    load_torchvision_backbone,
    read_checkpoint,
    save_checkpoint,
)
from models.engine import Recipe, bare, train_one_epoch, validate, weight_average
from models.journal import Journal
from models.retinaface import RetinaFace
from models.teachers import Teachers
from utils.cli import OK, DataError, Interruption, UsageError, number, parser_of, run
from utils.draw import draw_boxes
from utils.files import write_text
from utils.images import write_image
from utils.processes import (
    keep_freed_memory,
    processes,
    rank,
    sum_over_processes,
    synchronise_batch_norm,
    wait_for_all,
    world_size,
)
from wider_openimagespersonface_evaluate.evaluation import evaluate

#: Arguments that may differ between a run and its continuation.
FREE_ON_RESUME = {"resume", "num_workers", "device", "cpu", "compile", "save_folder", "images_dir"}
FREE_ON_RESUME |= {"val_dataset", "val_every", "debug_images"}


#: What a disk says that takes no more.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--training_dataset",
        nargs="+",
        metavar="LIST",
        default=["./data/wider_OIpersonface1103/train/wider_train_gt.txt"],
        help="annotation lists; a dataset.json beside or above one says which classes it is labelled for",
    )
    data.add_argument(
        "--images_dir", metavar="DIR", help="folder of the training images (default: images/ beside a list)"
    )
    data.add_argument(
        "--repeat",
        nargs="+",
        type=number(float, 0, 10_000, above=True),
        metavar="R",
        help="how often each list is seen in an epoch, e.g. 2 0.5 (default: once)",
    )
    data.add_argument(
        "--image_size",
        type=number(int, 1, 2**14),
        metavar="PX",
        help="side of training images (default: the network's)",
    )
    data.add_argument(
        "--zoom_out",
        type=number(float, 1, 100),
        default=1.0,
        metavar="F",
        help="show images up to F times smaller, half of the time",
    )
    data.add_argument(
        "--min_box",
        type=number(float, 0),
        default=0.0,
        metavar="PX",
        help="crops drop boxes with a side below this",
    )
    data.add_argument(
        "--num_workers",
        type=number(int, 0, 256),
        default=4,
        metavar="N",
        help="processes that read images; 0: none",
    )

    start = parser.add_argument_group("start")
    start.add_argument("--network", choices=list(NETWORKS), default="mobile0.25", help="network to train")
    start.add_argument(
        "--resume", action="store_true", help="go on with the run in --save_folder, exactly where it stopped"
    )
    start.add_argument(
        "--resume_net", metavar="FILE", help="start with the weights of a two-class checkpoint"
    )
    start.add_argument(
        "--resume_epoch",
        type=number(int, 0),
        default=0,
        metavar="E",
        help="epochs done already; the schedule goes on from there",
    )
    start.add_argument(
        "--init_from_face", metavar="FILE", help="start as the face detector that a one-class checkpoint is"
    )
    start.add_argument(
        "--pretrain",
        metavar="FILE",
        default="weights/mobilenetV1X0.25_pretrain.tar",
        help="ImageNet weights of the backbone, without another start (resnet50: torchvision's)",
    )
    start.add_argument(
        "--no-pretrain", dest="pretrain", action="store_const", const=None, help="start from nothing"
    )

    loss = parser.add_argument_group("loss")
    loss.add_argument("--loc_loss", choices=list(LOC_LOSSES), default="smooth_l1", help="localisation loss")
    loss.add_argument(
        "--match_iou",
        type=number(float, 0, 1),
        default=0.45,
        metavar="IOU",
        help="overlap from which a prior learns a box",
    )
    loss.add_argument(
        "--teacher",
        nargs="+",
        metavar="FILE",
        default=[],
        help="checkpoints whose scores and boxes are kept; for a class and a prior the first one speaks "
        "that knows them",
    )
    loss.add_argument(
        "--distil",
        nargs="+",
        type=number(float, 0),
        default=[1.0],
        metavar="W",
        help="weight of the teachers, one for all or one a class (face person)",
    )
    loss.add_argument(
        "--trust_teacher",
        nargs="*",
        choices=list(CLASS_LABELS),
        default=["face"],
        metavar="CLASS",
        help="classes for which teachers go before labels: boxes are learned, but where a labelled image "
        "has none the teachers decide; for other classes that is background",
    )

    step = parser.add_argument_group("optimisation")
    step.add_argument(
        "--epochs", type=number(int, 1), metavar="N", help="length of the run (default: the network's)"
    )
    step.add_argument(
        "--batch_size",
        type=number(int, 1),
        default=24,
        metavar="N",
        help="images of a step, over all processes",
    )
    step.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd")
    step.add_argument(
        "--lr",
        "--learning-rate",
        type=number(float, 0, above=True),
        default=1e-3,
        metavar="R",
        help="learning rate",
    )
    step.add_argument(
        "--shared_lr_factor",
        type=number(float, 0),
        default=1.0,
        metavar="F",
        help="rate of all layers before the heads, as a share of --lr",
    )
    step.add_argument("--momentum", type=number(float, 0, 1), default=0.9, metavar="M", help="of SGD")
    step.add_argument("--weight_decay", type=number(float, 0), default=5e-4, metavar="D")
    step.add_argument(
        "--schedule",
        choices=["step", "cosine"],
        default="step",
        help="step: times --gamma at the network's epochs; cosine: to zero at the end",
    )
    step.add_argument(
        "--gamma", type=number(float, 0), default=0.1, metavar="G", help="factor of a step of the schedule"
    )
    step.add_argument(
        "--warmup",
        type=number(int, 0),
        default=0,
        metavar="STEPS",
        help="steps in which the rate rises to --lr",
    )
    step.add_argument(
        "--clip_grad",
        type=number(float, 0, above=True),
        default=math.inf,
        metavar="NORM",
        help="largest norm of the gradient",
    )
    step.add_argument(
        "--accumulate",
        type=number(int, 1),
        default=1,
        metavar="K",
        help="send a step's images through the network in K parts, for less memory",
    )
    step.add_argument(
        "--ema",
        type=number(float, 0, 0.999999),
        default=0.0,
        metavar="DECAY",
        help="keep a running average of the weights, e.g. 0.999, and save and validate that (0: none)",
    )
    step.add_argument(
        "--freeze_bn",
        action="store_true",
        help="keep the statistics of batch norm, for small data or batches",
    )
    step.add_argument("--sync_bn", action="store_true", help="batch norm over the images of all processes")
    step.add_argument("--amp", action="store_true", help="bfloat16 in the network")
    step.add_argument("--compile", action="store_true", help="torch.compile; pays off in long runs on a GPU")
    step.add_argument("--seed", type=number(int, 0), default=0, help="of weights, order and augmentation")
    step.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes the fastest there is"
    )
    step.add_argument("--cpu", action="store_true", help="same as --device cpu")

    output = parser.add_argument_group("output")
    output.add_argument("--save_folder", default="runs/train", metavar="DIR", help="where the run writes")
    output.add_argument(
        "--val_dataset",
        nargs="+",
        default=[],
        metavar="LIST",
        help="annotation lists to validate on, for the classes that they label",
    )
    output.add_argument(
        "--val_every", type=number(int, 1), default=1, metavar="E", help="epochs between validations"
    )
    output.add_argument(
        "--debug_images",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="write N training images with boxes and matched priors",
    )
    args = parser.parse_args(argv)

    args.repeat = args.repeat or [1.0] * len(args.training_dataset)
    if len(args.repeat) != len(args.training_dataset):
        parser.error(
            f"--repeat: expected {len(args.training_dataset)} numbers, one a list, got {len(args.repeat)}"
        )
    if len(args.distil) not in (1, len(CLASS_NAMES)):
        parser.error(f"--distil: expected 1 or {len(CLASS_NAMES)} weights, got {len(args.distil)}")
    if args.resume_net and args.init_from_face:
        parser.error("--resume_net and --init_from_face are two ways to start; give one")
    cfg = NETWORKS[args.network]
    args.epochs = args.epochs or cfg.epochs
    args.image_size = args.image_size or cfg.image_size
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with processes(pick_device(args.device, args.cpu)) as device:
        try:
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
    """The whole run of this process; returns its exit code."""
    folder, cfg = Path(args.save_folder), NETWORKS[args.network]
    last = folder / "last.pth"
    if last.exists() and not (args.resume or args.resume_net):
        raise UsageError(f"{last}: a run is there; go on with it (--resume) or choose another --save_folder")
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(args.seed)

    dataset = WiderFaceDetection(
        args.training_dataset, TrainTransform(args.image_size, args.zoom_out, args.min_box), args.images_dir
    )
    validation = WiderFaceDetection(args.val_dataset) if args.val_dataset else None
    sampler = EpochSampler(dataset.list_sizes, args.repeat, args.batch_size, args.seed, rank(), world_size())
    steps = len(sampler)
    if not steps:
        raise UsageError(f"{world_size()} processes for {len(dataset)} images; expected an image each")
    journal = Journal(folder, active=rank() == 0)
    dropped = f", {dataset.dropped} boxes without area left out" if dataset.dropped else ""
    journal.say(f"{len(dataset)} images in {len(dataset.list_sizes)} lists{dropped}; {steps} steps an epoch")

    network = RetinaFace(cfg)
    state = None
    if args.resume:
        state = read_checkpoint(last)
        _check_settings(args, state.extra.get("settings"), last)
        load_strictly(network, state.state_dict, last)
    else:
        journal.say(_start(network, args))
    if args.sync_bn:
        network = synchronise_batch_norm(network, device)
    network.to(device, memory_format=torch.channels_last)
    average = weight_average(network, args.ema) if args.ema else None
    recipe = Recipe(
        network=_wrap(network, args.compile, device),
        optimizer=_optimizer(network, args),
        learning_rate=_schedule(args, cfg, steps),
        criterion=MultiBoxLoss(cfg, match_iou=args.match_iou, loc_loss=args.loc_loss),
        trusted=torch.tensor([name in args.trust_teacher for name in cfg.class_names], device=device),
        average=average,
        freeze_bn=args.freeze_bn,
        amp=args.amp,
        accumulate=args.accumulate,
        clip=args.clip_grad,
    )
    if args.teacher:
        try:
            recipe.teachers = Teachers([load_network(path) for path in args.teacher], cfg)
        except ValueError as error:
            raise DataError(str(error)) from None
        recipe.teachers.to(device, memory_format=torch.channels_last)
        weights = args.distil * len(cfg.class_names) if len(args.distil) == 1 else args.distil
        recipe.distillation = DistillationLoss(dict(zip(cfg.class_names, weights, strict=True))).to(device)

    progress = {"epoch": args.resume_epoch, "totals": {}, "best": -1.0}
    if state:
        progress = _restore(state, recipe)
        done = progress["totals"].get("steps", 0)
        journal.say(f"{last}: going on in epoch {progress['epoch'] + 1} after step {done}")
    if journal.active:
        write_text(folder / "run.json", json.dumps(_describe(args, argv), indent=2) + "\n")
        for i, key in enumerate(islice(chain.from_iterable(sampler), args.debug_images)):
            write_image(folder / "debug" / f"{i:03d}.jpg", _debug_image(dataset[key], recipe.criterion))
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=args.num_workers,
        collate_fn=detection_collate,
        worker_init_fn=start_worker,
        pin_memory=device.type == "cuda",
        persistent_workers=args.num_workers > 0,
    )
    step = progress["epoch"] * steps + progress["totals"].get("steps", 0)
    with Interruption() as interrupted, journal.open(progress["epoch"], step):
        return _epochs(args, recipe, loader, validation, progress, journal, interrupted)


def _epochs(
    args: argparse.Namespace,
    recipe: Recipe,
    loader: DataLoader,
    validation: WiderFaceDetection | None,
    progress: dict,
    journal: Journal,
    interrupted: Interruption,
) -> int:
    """Trains, validates and saves until the last epoch or a signal; returns the exit code."""
    folder, cfg, sampler = journal.folder, NETWORKS[args.network], loader.batch_sampler
    network = bare(recipe.network)
    result = recipe.average.module if recipe.average else network

    def save(name: str) -> None:
        if journal.active:
            save_checkpoint(folder / f"{name}.pth", result)

    def save_last() -> None:
        if journal.active:
            save_checkpoint(
                folder / "last.pth",
                network,
                optimizer=recipe.optimizer.state_dict(),
                progress=progress,
                settings=_settings(args),
                **({"average": recipe.average.state_dict()} if recipe.average else {}),
            )

    for epoch in range(progress["epoch"], args.epochs):
        sampler.set_epoch(epoch, progress["totals"].get("steps", 0))
        totals = train_one_epoch(
            recipe, loader, epoch, len(sampler), progress["totals"], interrupted, journal.step
        )
        if totals["steps"] < len(sampler):
            progress["totals"] = totals
            save_last()
            journal.say(
                f"stopped in epoch {epoch + 1} after step {totals['steps']}; "
                f"to go on: the same command and --resume"
            )
            return interrupted.exit_code
        row = _summary(totals, epoch, recipe)
        progress |= {"epoch": epoch + 1, "totals": {}}
        if validation and ((epoch + 1) % args.val_every == 0 or epoch + 1 == args.epochs):
            row |= validate(result, validation, recipe.trusted.device, evaluate)
            if row["ap"] > progress["best"]:
                progress["best"] = row["ap"]
                save("best")
        journal.epoch(row)
        if _is_numbered(epoch + 1, cfg):
            save(f"{cfg.backbone}_2cls6anchors_epoch_{epoch + 1}")
        save_last()
        if sum_over_processes(torch.tensor(int(interrupted()), device=recipe.trusted.device)):
            journal.say(f"stopped after epoch {epoch + 1}; to go on: the same command and --resume")
            return interrupted.exit_code
    save(f"{cfg.backbone}_2cls6anchors_Final")
    wait_for_all()
    return OK


def _is_numbered(epoch: int, cfg: ModelConfig) -> bool:
    """Whether an epoch's weights are kept: every tenth, every fifth after the first step of the schedule."""
    return epoch % 10 == 0 or (epoch % 5 == 0 and epoch > cfg.lr_decay_epochs[0])


def _summary(totals: dict[str, float], epoch: int, recipe: Recipe) -> dict[str, float]:
    """An epoch's row of results.csv: means of the loss parts, rate, speed, share of time waiting for data."""
    counted = ("steps", "images", "seconds", "seconds_waiting")
    means = {name: value / totals["steps"] for name, value in totals.items() if name not in counted}
    return {
        "epoch": epoch + 1,
        "steps": totals["steps"],
        "lr": max(group["lr"] for group in recipe.optimizer.param_groups),
        **means,
        "images_per_second": totals["images"] / totals["seconds"],
        "waiting_share": totals["seconds_waiting"] / totals["seconds"],
    }


def _start(network: RetinaFace, args: argparse.Namespace) -> object:
    """Loads the weights that a new run starts with; returns what to tell about it."""
    if args.resume_net:
        checkpoint = load_network(args.resume_net, args.network)
        load_strictly(network, checkpoint.state_dict(), Path(args.resume_net))
        return f"{args.resume_net}: all weights loaded"
    if args.init_from_face:
        return init_from_face(network, args.init_from_face)
    if args.pretrain is None:
        return "started from nothing"
    if network.cfg.backbone == "resnet50":
        return load_torchvision_backbone(network)
    if not Path(args.pretrain).exists():
        raise UsageError(
            f"{args.pretrain}: no such ImageNet weights; give them with --pretrain, start from a detector "
            f"with --init_from_face or --resume_net, or from nothing with --no-pretrain"
        )
    return load_backbone(network, args.pretrain)


def _wrap(network: nn.Module, compiled: bool, device: torch.device) -> nn.Module:
    if compiled:
        network = torch.compile(network)
    if world_size() > 1:
        network = DistributedDataParallel(network, [device] if device.type == "cuda" else None)
    return network


def _optimizer(network: RetinaFace, args: argparse.Namespace) -> torch.optim.Optimizer:
    heads = [p for name, p in network.named_parameters() if name.startswith(("ClassHead.", "BboxHead."))]
    shared = [p for name, p in network.named_parameters() if not name.startswith(("ClassHead.", "BboxHead."))]
    groups = [
        {"params": heads, "lr": args.lr, "initial_lr": args.lr},
        {"params": shared, "lr": args.lr, "initial_lr": args.lr * args.shared_lr_factor},
    ]
    if args.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=args.weight_decay)
    return torch.optim.SGD(groups, momentum=args.momentum, weight_decay=args.weight_decay)


def _schedule(args: argparse.Namespace, cfg: ModelConfig, steps: int) -> Callable[[int], float]:
    """Share of the learning rate at a step of the whole run; it depends on nothing else."""

    def share(step: int) -> float:
        warm = min(1.0, (step + 1) / (args.warmup + 1))
        if args.schedule == "cosine":
            return warm * (1 + math.cos(math.pi * step / (steps * args.epochs))) / 2
        return warm * args.gamma ** sum(step // steps >= epoch for epoch in cfg.lr_decay_epochs)

    return share


def _settings(args: argparse.Namespace) -> dict:
    """What a continuation must not change; a cosine ends with the run, so its length counts too."""
    free = FREE_ON_RESUME if args.schedule == "cosine" else FREE_ON_RESUME | {"epochs"}
    return {key: value for key, value in vars(args).items() if key not in free}


def _check_settings(args: argparse.Namespace, saved: dict | None, path: Path) -> None:
    """Raises UsageError with every difference between the arguments and those of the run in ``path``."""
    if saved is None:
        raise DataError(f"{path}: weights alone, no run to go on with; start from them with --resume_net")
    now = _settings(args)
    changed = [
        f"--{key} {now.get(key)} (was {saved.get(key)})"
        for key in sorted(now.keys() | saved.keys())
        if now.get(key) != saved.get(key)
    ]
    if changed:
        raise UsageError(
            f"{path}: a run of other settings: {', '.join(changed)}; give the same or start anew"
        )


def _restore(state: Checkpoint, recipe: Recipe) -> dict:
    """Gives optimizer and average what a run left; returns its progress.

    Raises:
        DataError: a part of it is not there or does not fit.
    """
    try:
        recipe.optimizer.load_state_dict(state.extra["optimizer"])
        if recipe.average:
            recipe.average.load_state_dict(state.extra["average"])
        progress = state.extra["progress"]
        return {
            "epoch": int(progress["epoch"]),
            "totals": dict(progress["totals"]),
            "best": float(progress["best"]),
        }
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{state.path}: the state of its run is damaged ({reason}); start from its weights: --resume_net"
        ) from None


def _describe(args: argparse.Namespace, argv: list[str]) -> dict:
    """The run for run.json: command line, arguments, commit, versions."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return {
        "argv": argv,
        "arguments": {key: value if value != math.inf else None for key, value in vars(args).items()},
        "commit": git.stdout.strip() or None,
        "processes": world_size(),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "opencv": cv2.__version__,
        },
    }


def _debug_image(sample: tuple[Tensor, dict], criterion: MultiBoxLoss) -> np.ndarray:
    """A training image with its boxes and, faint, the priors that match them."""
    image, target = sample
    side = image.shape[0]
    grids = criterion.grids((side, side), torch.device("cpu"))
    matches = criterion.match([target], (side, side), torch.device("cpu"))
    labels = target["labels"].tolist()
    priors = grids.corners[matches.prior].numpy() * side
    drawn = draw_boxes(image.numpy(), priors, [""] * len(priors), [(255, 255, 255)] * len(priors))
    return draw_boxes(
        cv2.addWeighted(drawn, 0.3, image.numpy(), 0.7, 0),
        target["boxes_norm"].numpy() * side,
        [CLASS_NAMES[label] for label in labels],
        [CLASS_COLOURS[label] for label in labels],
    )


def start_worker(number: int) -> None:
    """A worker reads with one thread, reuses its memory, and leaves Ctrl-C to the main process."""
    cv2.setNumThreads(0)
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    run(main)
