"""Threads that work ahead of a loop or behind it, in order and in bounded memory; seconds by stage."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int = 2,
    ahead: int = 8,
    stop: threading.Event | None = None,
) -> Iterator[Result]:
    """``map(function, items)`` by ``workers`` threads, at most ``ahead`` results in front; in order.

    At the end, also that by an error, ``stop`` is set before calls that still run are waited for.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            if stop:
                stop.set()
            for future in waiting:
                future.cancel()


def iterate_ahead(items: Iterable[Item], ahead: int = 4) -> Iterator[Item]:
    """``items``, drawn by a thread that is at most ``ahead`` of them in front; its errors are raised here."""
    source, end = iter(items), object()
    for item in map_ahead(lambda _: next(source, end), repeat(None), workers=1, ahead=ahead):
        if item is end:
            return
        yield item


def iterate_latest(items: Iterable[Item]) -> Iterator[Item]:
    """The newest of ``items``, drawn by a thread that never waits: what is not taken in time is left out."""
    newest: deque[Item] = deque(maxlen=1)
    fresh, left = threading.Event(), threading.Event()

    def draw() -> None:
        for item in items:
            newest.append(item)
            fresh.set()
            if left.is_set():
                return

    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(draw)
        drawing.add_done_callback(lambda _: fresh.set())
        try:
            while not drawing.done() or newest:
                fresh.wait()
                fresh.clear()
                if newest:
                    yield newest.pop()
        finally:
            left.set()
        drawing.result()


@contextmanager
def background_thread(queued: int = 4) -> Iterator[Callable[..., None]]:
    """Yields ``submit(function, *arguments)``: one thread makes the calls in their order.

    At most ``queued`` calls wait; the block ends once all are done. The first error of a call is raised by
    the next ``submit`` or at the end of the block.
    """
    waiting: deque[Future] = deque()

    def submit(function: Callable[..., object], *arguments: object) -> None:
        waiting.append(pool.submit(function, *arguments))
        while len(waiting) > queued or (waiting and waiting[0].done()):
            waiting.popleft().result()

    with ThreadPoolExecutor(1) as pool:
        yield submit
    for future in waiting:
        future.result()


class Stopwatch:
    """Adds up ``seconds`` by stage, which threads may share: ``with stopwatch("read"): ...``."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts the time of a block towards ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - start
