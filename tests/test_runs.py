"""The file of runs: what a folder says becomes a line, and is read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from results.runs import main, read_runs
from utils.cli import DataError


def make_run(folder: Path, seed: int) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"argv": ["--seed", str(seed)], "commit": "abc"}))
    (folder / "results.csv").write_text("epoch,loss,ap\n1,2.3456789012,\n2,1e-12,0.5\n")
    return folder


def test_a_run_is_added_and_replaced(tmp_path):
    output = tmp_path / "runs.jsonl"
    folders = [str(make_run(tmp_path / f"run{i}", i)) for i in range(3)]
    assert main([*folders, "--output", str(output)]) == 0
    (tmp_path / "run1" / "run.json").write_text('{"argv": []}')
    assert main([folders[1], "--output", str(output)]) == 0
    runs = read_runs(output)
    assert list(runs) == ["run0", "run1", "run2"]
    assert runs["run1"]["argv"] == [] and runs["run2"]["argv"] == ["--seed", "2"]
    assert runs["run0"]["curves"] == {"epoch": [1, 2], "loss": [2.34568, 1e-12], "ap": [None, 0.5]}


@pytest.mark.parametrize("name, text", [("run.json", "[]"), ("run.json", "{"), ("results.csv", "epoch\nx\n")])
def test_what_is_no_run_is_refused(tmp_path, name, text):
    folder = make_run(tmp_path / "run0", 0)
    (folder / name).write_text(text)
    with pytest.raises(DataError, match="run0: its run.json and results.csv are not"):
        main([str(folder), "--output", str(tmp_path / "runs.jsonl")])
    assert not (tmp_path / "runs.jsonl").exists()


def test_the_runs_of_the_trials_have_curves():
    for name, run in read_runs().items():
        assert run["argv"] and run["commit"] and run["curves"]["epoch"], name
        assert len({len(column) for column in run["curves"].values()}) == 1
