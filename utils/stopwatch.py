"""Where the time of a run goes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds by stage; threads may share one.

    Example:
        >>> stopwatch = Stopwatch()
        >>> with stopwatch("read"):
        ...     pass
        >>> list(stopwatch.seconds)
        ['read']
    """

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
