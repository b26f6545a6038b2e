"""What every script shares: its errors, exit codes and the way a warning looks."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable

from tqdm import tqdm

OK, BAD_DATA, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


class DataError(Exception):
    """Input that cannot be used (exit code 1): what was found, what was expected, what to do."""


class UsageError(Exception):
    """Arguments that do not fit together or this machine (exit code 2)."""


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring, examples laid out as written, and every default."""
    return argparse.ArgumentParser(
        description=docstring, formatter_class=type("Formatter", (_Defaults, _Layout), {}), allow_abbrev=False
    )


_Layout = argparse.RawDescriptionHelpFormatter


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where there is one worth showing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, [], "") or "default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def warn(message: object) -> None:
    """Writes one line to standard error, clear of any progress bar."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def report(message: object) -> None:
    """Writes one line about an input that gave nothing; the others go on, and the script ends with 1."""
    tqdm.write(f"error: {message}", file=sys.stderr)


def run(main: Callable[[list[str] | None], int]) -> None:
    """Runs a script's ``main`` and leaves with its exit code; foreseen errors become one line.

    A bug in the code itself still shows its traceback.
    """
    try:
        code = main(None)
    except UsageError as error:
        code = _complain(error, BAD_USAGE)
    except DataError as error:
        code = _complain(error, BAD_DATA)
    except KeyboardInterrupt:
        code = _complain("interrupted; finished files are kept", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        code = _complain(f"{error.strerror}: {error.filename or 'no space for the output'}", BAD_DATA)
    sys.exit(code)


def _complain(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
