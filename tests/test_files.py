"""Folders that one run holds alone, and what stopped runs leave."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from utils.cli import DataError
from utils.files import atomic_path, locked, write_text

HOLD = """
import os, sys, time
from utils.files import atomic_path, locked
with locked(sys.argv[1]), atomic_path(sys.argv[1] + "/deep/file") as path:
    path.touch()
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""


def test_a_killed_run_leaves_no_lock_and_its_temporary_files_are_swept(tmp_path, repository):
    run = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], cwd=repository, stdout=subprocess.PIPE, text=True
    )
    worker = int(run.stdout.readline())  # a process that outlives the run for a while
    try:
        with pytest.raises(DataError, match="another run is writing to this folder"), locked(tmp_path):
            pass
        assert len(list(tmp_path.rglob(".tmp-*"))) == 1
        run.kill()
        run.wait()
        write_text(tmp_path / "deep" / "kept.txt", "")
        with atomic_path(tmp_path / "file") as own:
            own.touch()
            (tmp_path / ".tmp-of-another").touch()
            with locked(tmp_path):
                left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
        assert left == sorted([own.name, ".tmp-of-another", "kept.txt"])
    finally:
        run.kill()
        os.kill(worker, 9)
        run.stdout.close()
        run.wait()


def test_a_folder_is_free_after_the_block(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            pass
