"""The house: imports point one way, and no room grows too large."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Folders from the ground up; a module imports from its own and from those before it.
ORDER = ("utils", "data", "layers", "models", "widerface_evaluate", "wider_openimagespersonface_evaluate")

#: Most lines of a file and of a function.
FILE_LINES, FUNCTION_LINES = 450, 70


def modules(repository: Path) -> list[Path]:
    """Product code: the folders of `ORDER` and the scripts beside them."""
    inside = [path for folder in ORDER for path in sorted((repository / folder).rglob("*.py"))]
    return [*inside, *sorted(repository.glob("*.py"))]


def floor(name: str) -> int:
    """Height of a module by the first part of its path or dotted name; scripts stand on top."""
    return ORDER.index(name) if name in ORDER else len(ORDER)


def imported(source: str) -> Iterator[str]:
    """Dotted names of the modules that a source text imports, also within functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def arrows_up(place: str, source: str, scripts: set[str]) -> list[str]:
    """Imports of ``source``, a module of the folder ``place``, that lead to a folder above it."""
    tops = ((name, name.partition(".")[0]) for name in imported(source))
    own = {*ORDER, *scripts}
    return [f"{place} -> {name}" for name, top in tops if top in own and floor(top) > floor(place)]


def test_imports_point_one_way(repository):
    scripts = {path.stem for path in repository.glob("*.py")}
    found = []
    for path in modules(repository):
        relative = path.relative_to(repository)
        found += [f"{relative}: {arrow}" for arrow in arrows_up(relative.parts[0], path.read_text(), scripts)]
    assert not found


@pytest.mark.parametrize(
    ("place", "source", "expected"),
    [
        ("data", "", []),
        ("data", "from utils.cli import DataError\nimport numpy", []),
        ("utils", "from data.config import CLASS_NAMES", ["utils -> data.config"]),
        ("layers", "def f():\n    import models.net", ["layers -> models.net"]),
        ("models", "import detect", ["models -> detect"]),
        ("detect.py", "import models.net", []),
    ],
)
def test_an_arrow_up_is_seen(place, source, expected):
    assert arrows_up(place, source, {"detect"}) == expected


def lengths(source: str) -> dict[str, int]:
    """Lines of a source text, under "", and of each of its functions by name."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return {"": len(source.splitlines())} | {f.name: f.end_lineno - f.lineno + 1 for f in functions}


def test_no_file_and_no_function_is_long(repository):
    found = []
    for path in modules(repository):
        for name, lines in lengths(path.read_text()).items():
            if lines > (FUNCTION_LINES if name else FILE_LINES):
                found.append(f"{path.relative_to(repository)} {name}: {lines} lines")
    assert not found


def test_lengths_by_hand():
    assert lengths("") == {"": 0}
    assert lengths("x = 1\ndef f():\n    return 1\n\n\nclass A:\n    def g(self): ...\n") == {
        "": 7,
        "f": 2,
        "g": 1,
    }
