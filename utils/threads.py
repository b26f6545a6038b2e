"""Work beside the network: reading ahead and writing behind in threads, in order and in bounded memory."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = 2, ahead: int = 8
) -> Iterator[Result]:
    """``map(function, items)`` by ``workers`` threads, at most ``ahead`` results in front; in order."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def iterate_ahead(items: Iterable[Item], ahead: int = 4) -> Iterator[Item]:
    """``items``, drawn by a thread that is at most ``ahead`` of them in front; its errors are raised here."""
    line: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
    left = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> None:
        while not left.is_set():
            try:
                return line.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def draw() -> None:
        try:
            for item in items:
                put(item, None)
                if left.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # handed over to whoever waits
            put(None, error)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        while True:
            item, error = line.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        left.set()
        thread.join()


def iterate_latest(items: Iterable[Item]) -> Iterator[Item]:
    """The newest of ``items``, drawn by a thread that never waits: what is not taken in time is left out."""
    fresh = threading.Condition()
    newest: deque[Item] = deque(maxlen=1)
    errors: list[BaseException] = []
    left, over = threading.Event(), threading.Event()

    def draw() -> None:
        try:
            for item in items:
                with fresh:
                    newest.append(item)
                    fresh.notify()
                if left.is_set():
                    return
        except BaseException as error:  # handed over to whoever waits
            errors.append(error)
        finally:
            with fresh:
                over.set()
                fresh.notify()

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        while True:
            with fresh:
                fresh.wait_for(lambda: newest or over.is_set())
                if not newest:
                    break
                item = newest.popleft()
            yield item
        if errors:
            raise errors[0]
    finally:
        left.set()
        thread.join()


class Behind:
    """One thread that does calls in the order given; at most ``behind`` of them wait.

    Use as a context manager: leaving it waits for all calls. The first error of a call is raised by the next
    `submit` or on leaving.
    """

    def __init__(self, behind: int = 4) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future] = deque()
        self._behind = behind

    def submit(self, function: Callable[..., object], *args: object) -> None:
        self._waiting.append(self._pool.submit(function, *args))
        while len(self._waiting) > self._behind or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        while self._waiting:
            future = self._waiting.popleft()
            if kind is None:
                future.result()
