"""Processes that work as one, their GPUs, and signals that stop a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from utils.cli import StopSignal, UsageError
from utils.processes import processes


@pytest.fixture
def two_gpus(monkeypatch) -> dict:
    """A machine that pretends to have two GPUs; what is asked of torch is noted."""
    asked: dict = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.update(set_device=device))
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **more: asked.update(init=(args, more)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: asked.update(destroyed=True))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return asked


def as_rank(monkeypatch, local: int, count: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(count))
    monkeypatch.setenv("LOCAL_RANK", str(local))


@pytest.mark.parametrize("name, number", [("cuda", 0), ("cuda:1", 1)])
def test_one_process_works_on_the_gpu_that_was_asked_for(two_gpus, name, number):
    with processes(torch.device(name)) as device:
        assert device == torch.device("cuda", number) == two_gpus["set_device"]
    assert "init" not in two_gpus


def test_each_process_has_a_gpu_and_says_so(two_gpus, monkeypatch):
    as_rank(monkeypatch, 1, 2)
    with processes(torch.device("cuda")) as device:
        assert device == torch.device("cuda:1") == two_gpus["set_device"]
    (backend,), more = two_gpus["init"]
    assert backend == "nccl" and more["device_id"] == device and more["timeout"].total_seconds() > 3600
    assert two_gpus["destroyed"]


def test_more_processes_than_gpus_are_refused(two_gpus, monkeypatch):
    as_rank(monkeypatch, 2, 3)
    with (
        pytest.raises(UsageError, match="no GPU for process 3 of this machine, which has 2; "),
        processes(torch.device("cuda")),
    ):
        pass
    assert not two_gpus


def test_on_the_cpu_there_may_be_any_number(two_gpus, monkeypatch):
    as_rank(monkeypatch, 2, 3)
    with processes(torch.device("cpu")) as device:
        assert device == torch.device("cpu")
    assert two_gpus["init"][0] == ("gloo",) and two_gpus["init"][1]["device_id"] is None


def test_any_text_can_be_printed(repository):
    code = "from utils.cli import run; run(lambda argv: print('caf\\u00e9 \\udcff') or 0)"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, env=env, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "caf\\xe9 \\udcff\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_handlers_come_back(number, capsys):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop() and stop.exit_code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert capsys.readouterr().err == f"warning: {number.name}: stopping after the step\n"


def test_sigterm_may_come_again_and_a_second_ctrl_c_stops_at_once(capsys):
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second Ctrl-C did nothing")
    assert capsys.readouterr().err.count("stopping after the step") == 1
