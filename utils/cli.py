"""What every script shares: its errors, exit codes and the way a warning looks."""

from __future__ import annotations

import argparse
import difflib
import io
import math
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from tqdm import tqdm

OK, BAD_DATA, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130

#: What shells show of a process that SIGTERM ended.
TERMINATED = 128 + signal.SIGTERM


class DataError(Exception):
    """Input that cannot be used (exit code 1): what was found, what was expected, what to do."""


class UsageError(Exception):
    """Arguments that do not fit together or this machine (exit code 2)."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a script as Ctrl-C does: temporary files are removed on the way out."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows a default only where there is one worth showing, a value's name once, and paths in one piece."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default is not False and action.default not in (None, [], "")
        if not shown or "default:" in (action.help or ""):
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class _Parser(argparse.ArgumentParser):
    """Complains in one line, with the nearest option for one that is not known."""

    def error(self, message: str) -> NoReturn:
        kind, _, unknown = message.partition("unrecognized arguments: ")
        if unknown and not kind:
            name = next((text.partition("=")[0] for text in unknown.split() if text.startswith("--")), "")
            near = difflib.get_close_matches(name, self._option_string_actions, 1, 0.6)
            message = f"{unknown}: not known" + (f"; did you mean {near[0]}?" if near else "")
        self.exit(BAD_USAGE, f"error: {message}; {self.prog} -h explains\n")


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring, examples laid out as written, and every default."""
    return _Parser(description=docstring, formatter_class=Formatter, allow_abbrev=False)


@dataclass(frozen=True)
class Number:
    """The type of an argument: numbers in a range, with ``above`` without ``least`` itself."""

    kind: type
    least: float
    most: float = 2**31 - 1
    above: bool = False
    metavar: str = "N"

    def __call__(self, text: str) -> float:
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not (self.least < value <= self.most if self.above else self.least <= value <= self.most):
            what, start = "whole number" if self.kind is int else "number", "above" if self.above else "from"
            raise argparse.ArgumentTypeError(
                f"expected a {what} {start} {self.least} to {self.most}, got {text}"
            )
        return value


count = Number(int, 1)
natural = Number(int, 0)
pixels = Number(int, 1, 2**16, metavar="PIXELS")
share = Number(float, 0, 1, metavar="SHARE")
score = Number(float, 0, 1, metavar="SCORE")
overlap = Number(float, 0, 1, metavar="IOU")
positive = Number(float, 0, above=True, metavar="X")
at_least_zero = Number(float, 0, metavar="X")


def option(
    group: argparse._ActionsContainer,
    flags: str,
    help: str,
    type: Callable[[str], object] | None = None,
    default: object = None,
    **more: object,
) -> None:
    """Adds one argument in one line: ``option(group, "--top_k", "candidates before NMS", count, 5000)``.

    In ``flags`` the name that gives the attribute comes first, then other spellings: "--trained_model -m".
    Without ``type``, ``choices`` and ``nargs`` it is a switch that is off.
    """
    if type is None and not more:
        group.add_argument(*flags.split(), action="store_true", help=help)
        return
    if "metavar" not in more and "choices" not in more and hasattr(type, "metavar"):
        more["metavar"] = type.metavar
    group.add_argument(*flags.split(), help=help, type=type, default=default, **more)


def import_package(name: str, user: str) -> ModuleType:
    """The optional package ``name``, which ``user`` needs; UsageError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        what = f"the package {name}, which cannot be imported ({error}); pip install {name}"
        raise UsageError(f"{user} needs {what}") from None


def print_rows(rows: Iterable[tuple[object, object]]) -> None:
    """Prints names and their values in two columns."""
    texts = [(str(name), str(value)) for name, value in rows]
    width = max((len(name) for name, _ in texts), default=0)
    for name, value in texts:
        print(f"{name:<{width}}  {value}")


def printable(text: str) -> str:
    """``text`` with escapes for line breaks and what else would move the cursor of a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def some_of(names: Sequence[str], what: str, most: int = 5) -> str:
    """How many names there are, ``what`` is the matter with them, and the first: "2 images are odd: a, b"."""
    return f"{len(names)} {what}: {', '.join(names[:most])}{', ...' if len(names) > most else ''}"


def warn(message: object) -> None:
    """Writes one line to standard error, clear of any progress bar."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def report(message: object) -> None:
    """Writes one line about an input that gave nothing; the others go on, and the script ends with 1."""
    tqdm.write(f"error: {message}", file=sys.stderr)


def run(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Runs a script's ``main`` and leaves with its exit code, see `exit_code`."""
    signal.signal(signal.SIGTERM, _terminate)
    silence_opencv()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be one that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    code = exit_code(main)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to be done or told
    sys.exit(code)


def silence_opencv() -> None:
    """Keeps OpenCV and its video library from printing: bad files are reported by errors of our own."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # of an OpenCV that is imported later
    if "cv2" in sys.modules:
        sys.modules["cv2"].utils.logging.setLogLevel(0)


def exit_code(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """What ``main`` returns; foreseen errors become one line on standard error, and their exit code.

    A bug in the code itself still shows its traceback.
    """
    try:
        return main(argv)
    except UsageError as error:
        message, code = str(error), BAD_USAGE
    except DataError as error:
        message, code = str(error), BAD_DATA
    except Terminated:
        message, code = "terminated; finished files are kept", TERMINATED
    except KeyboardInterrupt:
        message, code = "interrupted; finished files are kept", INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.errno is None:  # not from the system
            raise
        place = error.filename2 or error.filename or "an output"
        message, code = f"{place}: {error.strerror}", BAD_DATA
    print(f"error: {message}", file=sys.stderr)
    return code


def _terminate(*_: object) -> NoReturn:
    raise Terminated


class StopSignal:
    """Notes SIGINT and SIGTERM while it is entered; called, it says whether one came.

    A second Ctrl-C stops at once. A second SIGTERM does not: a batch system and torchrun may both send one.
    """

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> bool:
        return self.number != 0

    @property
    def exit_code(self) -> int:
        """What shells expect of a process that a signal stopped; SIGTERM if another process got it."""
        return 128 + (self.number or signal.SIGTERM)

    def __enter__(self) -> StopSignal:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if not self.number:
            warn(f"{signal.Signals(number).name}: stopping after the step")
        self.number = number
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
