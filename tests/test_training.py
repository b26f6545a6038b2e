"""The training script: bit-exact resume, processes, faults, and what it writes."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from data import wider_face
from data.annotations import ImageAnnotation, write_annotations, write_labelled_classes
from data.config import cfg_mnet
from data.predictions import BoxTable
from data.wider_face import WiderFaceDetection
from models import engine
from models.checkpoint import DEFAULT_WEIGHTS, load_network, read_checkpoint, save_checkpoint
from models.retinaface import RetinaFace
from models.training_run import misfits
from tests.training_data import make_list, one_thread  # noqa: F401
from train_changeclass import main, parse_args
from utils.cli import DataError, UsageError
from utils.files import locked
from wider_openimagespersonface_evaluate.evaluation import evaluate


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[str, str]:
    """Two lists of eight images, one labelled for faces, one for persons."""
    folder = tmp_path_factory.mktemp("data")
    return tuple(str(make_list(folder / name, 8, (name,))) for name in ("face", "person"))


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A two-class checkpoint with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("start") / "start.pth"
    save_checkpoint(path, RetinaFace(cfg_mnet))
    return str(path)


def arguments(data: tuple[str, str], start: str, folder: Path, *more: str) -> list[str]:
    return [
        *("--training_dataset", *data, "--weights", start, "--save_folder", str(folder)),
        *("--image_size", "64", "--batch_size", "4", "--epochs", "2", "--num_workers", "0", "--cpu"),
        *more,
    ]


def rows(folder: Path) -> list[dict]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def losses(folder: Path) -> list[list[str]]:
    """The columns of results.csv that do not depend on the clock, as written."""
    clock = ("images_per_second", "waiting_share")
    return [[value for key, value in row.items() if key not in clock] for row in rows(folder)]


def assert_same(one: object, other: object) -> None:
    """Bit by bit, whatever is nested in whatever."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


EVERYTHING = (
    *("--optimizer", "adamw", "--schedule", "cosine", "--warmup", "2", "--ema", "0.9", "--amp"),
    *("--windows", "0.5", "2", "--aspect", "1.2", "--min_box", "4", "--mine_batch", "--balance"),
    *("--clip_grad", "10", "--shared_lr_factor", "0.5", "--repeat", "1", "0.6", "--loc_by_score"),
)


@pytest.mark.parametrize(
    "more, stop_after",
    [((), 2), (("--zoom_out", "1.5"), 4), (EVERYTHING, 3)],
    ids=["published", "end of epoch", "everything"],
)
def test_a_stopped_run_goes_on_bit_by_bit(data, start, tmp_path, monkeypatch, capsys, more, stop_after):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(arguments(data, start, whole, *more)) == 0

    steps = []
    original = engine.training_step

    def step_and_signal(*args, **kwargs):
        steps.append(1)
        if len(steps) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "training_step", step_and_signal)
        assert main(arguments(data, start, parts, *more)) == 128 + signal.SIGTERM
    assert "--resume" in capsys.readouterr().out
    assert len(steps) <= stop_after + 1
    assert main([*arguments(data, start, parts, *more), "--resume"]) == 0

    assert losses(whole) == losses(parts)
    one, other = (read_checkpoint(folder / "last.pth") for folder in (whole, parts))
    assert_same(dict(one.state_dict), dict(other.state_dict))
    for name in ("optimizer", "progress", *(["average"] if "--ema" in more else [])):
        assert_same(one.extra[name], other.extra[name])


def test_parts_that_are_not_trained_stay_bit_by_bit(data, start, tmp_path):
    more = "--train_only", "BboxHead", "ssh1", "--loc_by_score", "--ema", "0.5", "--optimizer", "adamw"
    assert main(arguments(data, start, tmp_path, *more)) == 0
    before, after = (read_checkpoint(path).state_dict for path in (Path(start), tmp_path / "last.pth"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key.split(".")[0] for key in changed} == {"BboxHead", "ssh1"}
    assert not any("running" in key or "num_batches" in key for key in changed)


def test_two_processes_with_half_the_batch_each_give_the_same_losses(data, start, tmp_path, two_processes):
    slowly = ("--lr", "1e-5", "--clip_grad", "1")  # random weights are chaotic
    variants = {
        "labels": ("--freeze_bn", *slowly, "--val_dataset", data[0]),
        "teacher": ("--freeze_bn", "--teacher", start, "--lr", "1e-4", "--clip_grad", "1"),
    }
    for name, more in variants.items():
        assert main(arguments(data, start, tmp_path / name, *more)) == 0
        both = two_processes("train_changeclass", *arguments(data, start, tmp_path / f"{name}_2", *more))
        assert [one.code for one in both] == [0, 0], both
        assert ["16 images" in one.out for one in both] == [True, False]  # one process speaks
        for one, other in zip(rows(tmp_path / name), rows(tmp_path / f"{name}_2"), strict=True):
            for column in one.keys() - {"images_per_second", "waiting_share", "gradient"}:
                expected = pytest.approx(float(one[column] or -1), rel=1e-5, abs=1e-5)
                assert float(other[column] or -1) == expected, (name, column)


def test_two_processes_validate_the_network_that_is_saved(data, start, tmp_path, two_processes):
    """Each has its own statistics of batch norm; those of the first are saved."""
    argv = arguments(data, start, tmp_path, "--epochs", "1", "--val_dataset", *data)
    both = two_processes("train_changeclass", *argv)
    assert [one.code for one in both] == [0, 0], both
    best = load_network(tmp_path / "best.pth")
    alone = engine.validate(best, WiderFaceDetection(data), torch.device("cpu"), evaluate)
    _, row = rows(tmp_path)  # the start, the epoch
    assert {name: float(row[name]) for name in alone} == pytest.approx(alone, rel=1e-9)


def test_validation_counts_no_ignore_region(tmp_path):
    path = make_list(tmp_path, 2)
    write_annotations(path, [ImageAnnotation("0.png", [-1, 2], [[0, 0, 1, 1], [0, 0, 0.5, 1]])])
    seen = {}

    def note(found: BoxTable, truths: BoxTable) -> dict[str, dict]:
        seen.update(labels=truths.labels.tolist(), boxes=truths.boxes.tolist())
        points = {"precision_at_half": float("nan"), "recall_at_half": 0.0}
        return {"face": {"ap": 0.0, "boxes": 0}, "person": {"ap": 0.5, "boxes": 1, **points}}

    found = engine.validate(
        RetinaFace(cfg_mnet).eval(), WiderFaceDetection([path]), torch.device("cpu"), note
    )
    assert seen == {"labels": [2], "boxes": [[0, 0, 0.5, 1]]}
    assert found == {"ap_person": 0.5, "ap": 0.5, "recall_person": 0.0}  # nothing scores 0.5: no precision


@pytest.mark.parametrize(
    "launcher", [(), ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")]
)
def test_a_signal_to_all_processes_saves_the_run(data, start, tmp_path, repository, launcher):
    argv = arguments(data, start, tmp_path, "--epochs", "100000", "--num_workers", "2")
    process = subprocess.Popen(
        [sys.executable, *launcher, repository / "train_changeclass.py", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "results.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert "stopped in epoch" in out and "reading process died" not in out, out
    assert launcher or process.returncode == 128 + signal.SIGTERM
    assert read_checkpoint(tmp_path / "last.pth").extra["progress"]["totals"]["steps"] > 0


def test_a_run_that_is_killed_while_it_validates_goes_on_there(data, start, tmp_path, monkeypatch):
    argv = arguments(data, start, tmp_path / "killed", "--val_dataset", data[0])

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("train_changeclass.validate", die)
        with pytest.raises(KeyboardInterrupt):
            main(argv)
    assert main([*argv, "--resume"]) == 0
    assert main(arguments(data, start, tmp_path / "whole", "--val_dataset", data[0])) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_frozen_batch_norm_stays_frozen_when_it_is_synchronised():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(RetinaFace(cfg_mnet)).train()
    engine.freeze_batch_norm(network)
    norms = [module for module in network.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert norms and not any(norm.training for norm in norms)


def test_synchronised_batch_norm_needs_cuda(data, start, tmp_path):
    with pytest.raises(UsageError, match="--sync_bn: works on CUDA alone, this is cpu"):
        main(arguments(data, start, tmp_path, "--sync_bn"))


def test_the_published_schedule_goes_on_where_it_is(data, start, tmp_path):
    argv = arguments(data, start, tmp_path, "--resume_epoch", "219", "--epochs", "221")
    assert main(argv) == 0
    assert [float(row["lr"]) for row in rows(tmp_path)] == pytest.approx([1e-4, 1e-5])
    assert [row["epoch"] for row in rows(tmp_path)] == ["220", "221"]
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {
        "last.pth",
        "mobilenet0.25_2cls6anchors_epoch_220.pth",
        "mobilenet0.25_2cls6anchors_Final.pth",
    }


def test_finetuning_keeps_no_numbered_files(data, start, tmp_path):
    preset = ("--preset", "finetune", "--teacher", "--image_size", "64")
    assert main(arguments(data, start, tmp_path, *preset, "--resume_epoch", "9", "--epochs", "10")) == 0
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"last.pth", "mobilenet0.25_2cls6anchors_Final.pth"}


def test_what_a_run_writes(data, start, tmp_path, capsys):
    more = ("--val_dataset", *data, "--debug_images", "2", "--num_workers", "1", "--ema", "0.9")
    argv = arguments(data, start, tmp_path, *more)
    assert main(argv) == 0
    out = capsys.readouterr()
    assert "16 images in 2 lists; 4 steps an epoch" in out.out and not out.err
    for row in rows(tmp_path):
        assert {"lr", "loss", "loc", "class", "waiting_share", "ap_face", "ap_person", "ap"} <= row.keys()
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["argv"] == argv and described["arguments"]["image_size"] == 64
    assert len(list((tmp_path / "debug").glob("*.jpg"))) == 2 and list((tmp_path / "tensorboard").iterdir())
    best, final = (
        load_network(tmp_path / f"{name}.pth") for name in ("best", "mobilenet0.25_2cls6anchors_Final")
    )
    assert best.cfg == final.cfg == cfg_mnet


def test_finetuning_has_its_own_values_and_what_is_given_counts_more(start):
    args = parse_args(["--preset", "finetune", "--lr", "1e-5", "--no-freeze_bn"])
    assert (args.lr, args.freeze_bn) == (1e-5, False)
    assert (args.optimizer, args.schedule, args.batch_size, args.clip_grad) == ("adamw", "cosine", 16, 20)
    assert args.weights == str(DEFAULT_WEIGHTS) and args.teacher == [args.weights] and args.ema > 0.9
    args = parse_args(["--preset", "finetune", "--weights", start, "--teacher"])
    assert args.weights == start and args.teacher == [] and args.freeze_bn and args.epochs == 20
    args = parse_args(["--preset", "finetune", "--init_from_face", "face.pth"])
    assert args.weights is None and args.teacher == ["face.pth"]
    published = parse_args([])
    assert (published.optimizer, published.epochs, published.image_size) == ("sgd", 250, 640)
    assert published.weights is None and published.teacher == [] and not published.freeze_bn


def test_the_published_training_says_at_once_what_it_lacks(data, tmp_path):
    argv = ["--training_dataset", "absent.txt", "--pretrain", str(tmp_path / "x.tar")]
    with pytest.raises(UsageError, match=r"x\.tar: not there, .*download --weights.*--preset finetune"):
        main([*argv, "--save_folder", str(tmp_path / "run"), "--cpu"])
    assert not (tmp_path / "run").exists()


def test_the_end_of_a_run_tells_everything(data, start, tmp_path, monkeypatch, capsys):
    scores = iter([0.25, 0.5, 0.375])

    def pretended(*_: object, **__: object) -> dict[str, float]:
        ap = next(scores)
        points = {"recall_face": 2 * ap} if ap < 0.5 else {}  # there may be nothing to tell
        return {"ap_face": ap, "ap": ap, **points}

    monkeypatch.setattr("train_changeclass.validate", pretended)
    assert main(arguments(data, start, tmp_path, "--val_dataset", data[0])) == 0
    lines = capsys.readouterr().out.splitlines()
    words = [line.split() for line in lines]
    first, table = (next(i for i, of_line in enumerate(words) if w in of_line) for w in ("loss", "start"))
    assert len({len(line) for line in lines[first : first + 3]}) == 1  # a head and two epochs
    left = [of_line[words[first].index("left")] for of_line in words[first + 1 : first + 3]]
    assert re.fullmatch(r"\d:\d\d:\d\d", left[0]) and left[1] == "0:00:00"
    assert words[table - 1 : table + 3] == [
        ["epoch", "ap_face", "ap", "recall_face"],
        ["start", "0", "0.2500", "0.2500", "0.5000"],
        ["best", "1", "0.5000", "0.5000", "-"],
        ["last", "2", "0.3750", "0.3750", "0.7500"],
    ]
    assert lines[-1] == f"use it: python3 detect.py PHOTO -m {tmp_path / 'best.pth'}"
    assert (tmp_path / "results.png").stat().st_size > 10_000
    assert [row["ap"] for row in rows(tmp_path)] == ["0.25", "0.5", "0.375"]


def test_patience_ends_a_run_and_the_start_may_be_the_best(data, start, tmp_path, monkeypatch, capsys):
    scores = iter([0.5, 0.4, 0.5, 0.3])
    monkeypatch.setattr("train_changeclass.validate", lambda *_, **__: {"ap": next(scores)})
    more = ("--epochs", "9", "--patience", "3", "--val_dataset", data[0])
    assert main(arguments(data, start, tmp_path, *more)) == 0
    said = capsys.readouterr().out
    assert "no better validation in 3 epochs" in said and "no epoch was better than the start" in said
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]
    best, begun = (load_network(path).state_dict() for path in (tmp_path / "best.pth", start))
    assert all(torch.equal(best[name], begun[name]) for name in begun)


def test_data_that_does_not_fit_is_warned_of(tmp_path):
    tiny = [[0.1, 0.1, 0.02, 0.03], [0.5, 0.5, 0.02, 0.05], [0, 0, 0.5, 0.5]]
    path = make_list(tmp_path, 1)
    write_annotations(path, [ImageAnnotation("0.png", [1, 1, 1], tiny)])
    none, small = misfits(WiderFaceDetection([path]), cfg_mnet, 100)
    assert none.startswith("no person in lists that are labelled for person")
    assert small.startswith("67% of the boxes are below 7 pixels")
    write_labelled_classes(path, ["face"])
    assert misfits(WiderFaceDetection([path]), cfg_mnet, 640) == []


def test_the_loss_falls(data, start, tmp_path):
    argv = arguments(data, start, tmp_path, "--epochs", "6", "--optimizer", "adamw", "--lr", "3e-3")
    assert main(argv) == 0
    means = [float(row["loss"]) for row in rows(tmp_path)]
    assert means[-1] < 0.8 * means[0]


def test_a_run_is_not_overwritten_nor_continued_with_other_settings(data, start, tmp_path):
    argv = arguments(data, start, tmp_path, "--epochs", "1")
    assert main(argv) == 0
    before = (tmp_path / "last.pth").read_bytes()
    without = [*argv]
    del without[without.index("--weights") : without.index("--weights") + 2]
    for anew in (argv, [*without, "--no-pretrain"]):
        with pytest.raises(UsageError, match="a run is there; go on with it"):
            main(anew)
    assert (tmp_path / "last.pth").read_bytes() == before
    with pytest.raises(UsageError, match=r"--batch_size 3 \(was 4\), --lr 0.5 \(was 0.001\)"):
        main([*argv, "--resume", "--lr", "0.5", "--batch_size", "3"])
    # The step schedule does not depend on the end of the run, so a run may be made longer.
    assert main([*argv, "--resume", "--epochs", "2", "--num_workers", "1"]) == 0
    assert len(rows(tmp_path)) == 2


def test_two_runs_do_not_train_into_one_folder(data, start, tmp_path):
    with locked(tmp_path), pytest.raises(DataError, match="another run is writing to this folder"):
        main(arguments(data, start, tmp_path))
    assert not list(tmp_path.iterdir())


def test_weights_alone_are_no_run_to_resume(data, start, tmp_path):
    save_checkpoint(tmp_path / "last.pth", RetinaFace(cfg_mnet))
    with pytest.raises(DataError, match="weights alone, no run"):
        main([*arguments(data, start, tmp_path), "--resume"])


def test_a_loss_that_is_not_finite_stops_with_its_images(data, start, tmp_path):
    argv = arguments(data, start, tmp_path, "--lr", "2e9", "--freeze_bn")
    with pytest.raises(DataError, match=r"step 1: the loss is not finite \(loss .*, loc .*\) on .*\.png"):
        main(argv)


@pytest.mark.parametrize("lost", ["optimizer", "progress", "epoch"])
def test_a_damaged_state_of_a_run_is_refused(data, start, tmp_path, lost):
    argv = arguments(data, start, tmp_path)
    main([*argv, "--epochs", "1"])
    last = tmp_path / "last.pth"
    content = torch.load(last, weights_only=True)
    holder = next(
        part for part in (content, *content.values()) if isinstance(part, dict) and "progress" in part
    )
    if lost == "epoch":
        holder["progress"]["epoch"] = "x"
    else:
        del holder[lost]
    torch.save(content, last)
    with pytest.raises(DataError, match=r"last\.pth: the state of its run is damaged .*--weights"):
        main([*argv, "--epochs", "1", "--resume"])


def test_a_corrupt_image_is_named_with_its_line_in_one_line(start, tmp_path):
    path = make_list(tmp_path / "data", 4)
    (tmp_path / "data" / "images" / "2.png").write_bytes(b"")
    argv = arguments((str(path),), start, tmp_path / "run", "--num_workers", "1")
    with pytest.raises(DataError, match=r"^\S*list\.txt:7: \S*2\.png: an empty file; expected an image$"):
        main(argv)


def test_a_dead_worker_is_named(data, start, tmp_path, monkeypatch):
    monkeypatch.setattr(wider_face, "start_worker", lambda number: os._exit(9))
    argv = arguments(data, start, tmp_path, "--num_workers", "1")
    with pytest.raises(DataError, match=r"DataLoader worker \(pid.*\d+\).*; a reading process died"):
        main(argv)


def test_a_full_disk_leaves_the_last_good_file(data, start, tmp_path):
    argv = arguments(data, start, tmp_path, "--epochs", "1")
    assert main(argv) == 0
    before = (tmp_path / "last.pth").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(DataError, match="File too large; the last good files there are whole"):
            main([*argv, "--resume", "--epochs", "2"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last.pth").read_bytes() == before
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize(
    "more, message",
    [
        (["--repeat", "1"], "--repeat: expected 2 numbers"),
        (["--distil", "1", "2", "3"], "--distil: expected 1 or 2 weights"),
        (["--windows", "2", "0.5"], "--windows: expected the smaller factor first, got 2.0 0.5"),
        (["--init_from_face", "x.pth"], "two ways to start"),
        (["--patience", "3"], "--patience: waits for a better validation; give --val_dataset"),
        (["--batch_size", "0"], "expected a whole number from 1"),
    ],
)
def test_arguments_that_do_not_fit(data, start, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit, match="2"):
        main([*arguments(data, start, tmp_path), *more])
    assert message in capsys.readouterr().err
