"""What every script shares: its errors, exit codes and the way a warning looks."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
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
    """Shows a default only where there is one worth showing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, [], "") or "default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Complains in one line, as everything else does."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"error: {message}; {self.prog} -h explains\n")


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring, examples laid out as written, and every default."""
    return _Parser(description=docstring, formatter_class=Formatter, allow_abbrev=False)


def warn(message: object) -> None:
    """Writes one line to standard error, clear of any progress bar."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def report(message: object) -> None:
    """Writes one line about an input that gave nothing; the others go on, and the script ends with 1."""
    tqdm.write(f"error: {message}", file=sys.stderr)


def number(kind: type, least: float, most: float = 2**31 - 1, above: bool = False) -> Callable[[str], float]:
    """An argument's type: numbers of ``kind`` from ``least`` (with ``above``: above it) to ``most``."""

    def parse(text: str) -> float:
        value = kind(text)
        if not (least < value <= most if above else least <= value <= most):
            what, start = "whole number" if kind is int else "number", "above" if above else "from"
            raise argparse.ArgumentTypeError(f"expected a {what} {start} {least} to {most}, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def run(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Runs a script's ``main`` and leaves with its exit code, see `exit_code`."""
    signal.signal(signal.SIGTERM, _terminate)
    code = exit_code(main)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to be done or told
    sys.exit(code)


def exit_code(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """What ``main`` returns; foreseen errors become one line on standard error, and their exit code.

    A bug in the code itself still shows its traceback.
    """
    try:
        return main(argv)
    except UsageError as error:
        return _complain(error, BAD_USAGE)
    except DataError as error:
        return _complain(error, BAD_DATA)
    except KeyboardInterrupt as stop:
        kept = "finished files are kept"
        if isinstance(stop, Terminated):
            return _complain(f"terminated; {kept}", TERMINATED)
        return _complain(f"interrupted; {kept}", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.errno is None:  # not from the system
            raise
        return _complain(f"{error.filename2 or error.filename or 'an output'}: {error.strerror}", BAD_DATA)


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def _complain(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
