"""The scripts of results/: with an interpreter that does nothing, and in earnest on a few scenes."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_changeclass
from benchmarks.bench_evaluation import write_mat_files
from data.annotations import labelled_classes, read_annotations, write_list
from data.config import cfg_mnet, one_class
from data.download import SPLITS
from models.checkpoint import save_checkpoint
from models.retinaface import RetinaFace
from results.runs import read_runs
from results.tables import METRICS
from tests.e2e.scenes import HEIGHT, PERSONS, WIDTH, make_scenes, serve, write_open_images, write_wider
from tests.test_readme import SCRIPTS
from utils.images import write_image

MODULES = SCRIPTS | {"results/tables.py": "results.tables", "results/mix.py": "results.mix"}

SMALL_RUN = "--epochs 1 --image_size 64 --batch_size 4 --num_workers 0"

#: What a machine or a person chooses; everything else makes the network.
OWN = {"training_dataset", "val_dataset", "init_from_face", "weights", "teacher"}
OWN |= {"save_folder", "num_workers", "cpu"}

#: Options that are gone, with what they always were.
GONE = {"match_iou": 0.45, "compile": False}

#: Runs of reproduce_small.sh, one after another.
RUNS = ("run4", "run5", "run6", "run7", "run8", "run13", "run15", "run16")

#: Networks that it makes of others.
MIXES = ("run5_mixed", "run6_mixed", "run7_mixed", "mean13", "mean15", "start16", "network")


full = pytest.mark.skipif("RETINAFACE_FULL" not in os.environ, reason="minutes; set RETINAFACE_FULL=1")


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict[str, str]:
    """What both scripts take: teachers of random weights that find something, and short training."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    for name, cfg in (("FACE_TEACHER", one_class(cfg_mnet)), ("PERSON_TEACHER", cfg_mnet)):
        save_checkpoint(folder / f"{name}.pth", RetinaFace(cfg))
    return {
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TRAIN_OPTIONS": SMALL_RUN,
        **{name: str(folder / f"{name}.pth") for name in ("FACE_TEACHER", "PERSON_TEACHER")},
    }


def reproduce(repository: Path, script: str, **settings: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", f"results/{script}.sh"],
        cwd=repository,
        env=os.environ | {name: str(value) for name, value in settings.items()},
        capture_output=True,
        text=True,
        check=False,
    )


def numbers(output: str) -> list[float]:
    """What was measured of the row below easy,medium,hard,ap_face,ap_person and so on."""
    lines = output.splitlines()
    return [float(number) for number in lines[lines.index(",".join(METRICS)) + 1].split(",") if number]


@pytest.fixture
def recorded(repository, tmp_path):
    """Runs a script with an interpreter that does nothing; returns the Python commands it would have run."""

    def record(script: str, **settings: object) -> list[list[str]]:
        python, record = tmp_path / "python", tmp_path / "commands"
        python.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" '' >> {record}\n")
        python.chmod(0o755)
        names = ["FACES", "PERSONS", "GROUND_TRUTH", "ARCHIVES", "FACE_TEACHER", "PERSON_TEACHER"]
        paths = dict.fromkeys(names, tmp_path)
        run = reproduce(
            repository,
            script,
            **paths | {"PYTHON": python, "OUT": tmp_path / "out", "PROCESSES": 1} | settings,
        )
        assert run.returncode == 0, run.stderr
        return [command.split("\n") for command in record.read_text().rstrip("\n").split("\n\n")]

    for name in ("WIDER_train", "WIDER_val", "wider_face_split", "eval_tools"):
        (tmp_path / f"{name}.zip").touch()
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "best.pth").touch()
    (tmp_path / "out" / "network.pth").touch()
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"wider_{part}_gt.txt").write_text("# a.jpg\n1 0 0 1 1\n")
    return record


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("reproduce_small", "FACES"),
        ("reproduce_kinds", "FIRST"),
        ("reproduce_full", "ARCHIVES"),
        ("score", "MODEL"),
    ],
)
def test_what_is_missing_is_named(repository, script, wanted):
    run = reproduce(repository, script, **{wanted: ""})
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {wanted} is not set; expected ")
    if wanted != "MODEL":
        run = reproduce(repository, script, **{wanted: "/nowhere"})
        assert (run.returncode, run.stderr.count("\n")) == (2, 1)
        assert run.stderr.startswith(f"error: {wanted}=/nowhere: no ")


def test_the_commands_are_understood(recorded):
    commands = recorded("reproduce_full", LIMIT=3, BASE_URL="http://127.0.0.1")
    for script, *arguments in commands:
        importlib.import_module(MODULES[script]).parse_args(arguments)
    steps = {command[1] for command in commands if command[0] == "prep_data.py"}
    every = "check clean download merge openimages pseudo_label split stats unpack widerface"
    assert " ".join(sorted(steps)) == every
    assert {command[0] for command in commands} == MODULES.keys() - {"detect.py", "results/mix.py"}
    # All is done; what is left are the numbers.
    assert recorded("reproduce_full")[len(commands) :] == [commands[-1]]


def test_small_are_the_runs_of_the_weights(recorded):
    stored, commands = read_runs(), recorded("reproduce_small")
    for script, *arguments in commands:
        if script in MODULES:
            importlib.import_module(MODULES[script]).parse_args(arguments)
    runs = [command for command in commands if command[0] == "train_changeclass.py"]
    for name, command in zip(RUNS, runs, strict=True):
        arguments = GONE | vars(train_changeclass.parse_args(command[1:]))
        for key, value in stored[name]["arguments"].items():
            own = arguments[key] if arguments[key] != math.inf else None
            assert key in OWN or own == value, (name, key)


def test_the_commands_for_more_kinds_are_understood(recorded, tmp_path):
    (tmp_path / "scenes.json").touch()
    names = ["FIRST", "SCENES", "CLOTHING", "FLICKR", "ANIMALS", "BOXES"]
    commands = recorded("reproduce_kinds", **dict.fromkeys(names, tmp_path))
    for script, *arguments in commands:
        if script in MODULES:
            importlib.import_module(MODULES[script]).parse_args(arguments)
    runs = [command for command in commands if command[0] == "train_changeclass.py"]
    lists = [command[2] for command in commands if command[0] == "prep_data.py"]
    assert len(lists) == 12 and len(runs) >= 5


@full
def test_small(repository, settings, tmp_path):
    scenes = {"train": make_scenes(8, 0), "val": make_scenes(6, 1)}
    for name, objects in (("face", ("Human face",)), ("person", PERSONS)):
        for part in scenes:
            folder = tmp_path / name / part
            annotations = [
                scene.annotation(f"0--Parade/0_Parade_{i}.jpg", objects)
                for i, scene in enumerate(scenes[part])
            ]
            for scene, annotation in zip(scenes[part], annotations, strict=True):
                write_image(folder / "images" / annotation.path, scene.image)
            if (name, part) == ("person", "train"):
                annotations[0].boxes_xywh_norm *= 0.1
            write_list(folder / f"wider_{part}_gt.txt", annotations, [name])
            if (name, part) == ("face", "val"):
                write_mat_files(tmp_path / "ground_truth", annotations, (HEIGHT, WIDTH))
    given = {
        "FACES": tmp_path / "face",
        "PERSONS": tmp_path / "person",
        "GROUND_TRUTH": tmp_path / "ground_truth",
        "OUT": tmp_path / "out",
    }
    run = reproduce(repository, "reproduce_small", **settings, **given, PROCESSES=1)
    assert run.returncode == 0, run.stderr
    assert len(numbers(run.stdout)) == 5
    assert (tmp_path / "face" / "train" / "names_only.txt").read_text().count("\n") == 8
    small = read_annotations(tmp_path / "person" / "train" / "small_persons.txt")
    assert [annotation.path for annotation in small] == ["0--Parade/0_Parade_0.jpg"]
    done = sorted(path.name for path in (tmp_path / "out" / "done").iterdir())
    assert done == sorted([*RUNS, *MIXES, "names_only", "score", "small_persons"])
    again = reproduce(repository, "reproduce_small", **settings, **given)
    assert again.returncode == 0 and again.stdout.count("done before") == len(done)


@full
def test_full(repository, settings, tmp_path):
    for seed, split in enumerate(SPLITS[:2]):
        write_open_images(tmp_path / "mirror", split, make_scenes(12, seed))
    write_wider(tmp_path / "archives", make_scenes(12, 2), make_scenes(6, 3))
    with serve(tmp_path / "mirror") as url:
        given = {"ARCHIVES": tmp_path / "archives", "BASE_URL": url, "LIMIT": 10, "VAL_SHARE": 0.5}
        run = reproduce(repository, "reproduce_full", **settings, **given, OUT=tmp_path / "out", PROCESSES=2)
    assert run.returncode == 0, run.stderr
    assert len(numbers(run.stdout)) == 5
    lists = tmp_path / "out" / "lists"
    for name, images, labelled in (("open_images", 10, ("face", "person")), ("wider_face", 12, ("face",))):
        parts = [lists / name / part / f"wider_{part}_gt.txt" for part in ("train", "val")]
        assert all(labelled_classes(part) == labelled for part in parts)
        assert sum(len(read_annotations(part)) for part in parts) == images
    for name in ("best.pth", "best.onnx"):
        assert (tmp_path / "out" / "train" / name).stat().st_size > 1e6
