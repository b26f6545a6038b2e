"""Stopping a run between two steps when Ctrl-C or SIGTERM asks for it."""

from __future__ import annotations

import signal

from utils.cli import warn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Notes a signal while it is entered; called, it says whether one came. A second one stops at once."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> bool:
        return self.number != 0

    @property
    def exit_code(self) -> int:
        """What shells expect of a process that a signal stopped; SIGTERM if another process got it."""
        return 128 + (self.number or signal.SIGTERM)

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.number = number
        signal.signal(number, self._before[number])
        warn(f"{signal.Signals(number).name}: stopping after the step")
