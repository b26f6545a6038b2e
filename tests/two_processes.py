"""Two processes that work as one, with the variables of ``torchrun``.

They stay for all tests of a session, since importing torch takes them longer than what they are asked to do.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import socket
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

from utils.cli import exit_code

COUNT = 2


class Outcome(NamedTuple):
    """What a script did in one of the processes."""

    code: int
    out: str
    err: str


class TwoProcesses:
    """Starts the processes; called with a script's module and its arguments, runs its ``main`` in both."""

    def __init__(self, repository: os.PathLike) -> None:
        common = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(repository)}
        common |= {"WORLD_SIZE": str(COUNT), "MASTER_ADDR": "127.0.0.1"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.two_processes"],
                cwd=repository,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(COUNT)
        ]

    def __call__(self, module: str, *arguments: object) -> list[Outcome]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for process in self.processes:
            process.stdin.write(json.dumps([module, [*map(str, arguments)], port]) + "\n")
            process.stdin.flush()
        return [Outcome(*json.loads(process.stdout.readline())) for process in self.processes]

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
            process.terminate()  # a loader's worker of a failed test may hold the other end of the pipe
            process.wait()
            process.stdout.close()


def work() -> None:
    """Does what the lines of standard input ask for, and answers with a line each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    for line in sys.stdin:
        module, arguments, port = json.loads(line)
        os.environ["MASTER_PORT"] = str(port)
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                code = exit_code(importlib.import_module(module).main, arguments)
            except BaseException:
                code = -1
                traceback.print_exc()
        answers.write(json.dumps([code, out.getvalue(), err.getvalue()]) + "\n")
        answers.flush()


if __name__ == "__main__":
    work()
