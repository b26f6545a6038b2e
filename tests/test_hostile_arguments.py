"""Every argument of every script wrong in turn; full disks. `tests/README.md` tells what else was tried."""

from __future__ import annotations

import argparse
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import STAGES, make_folder, run

import convert_to_onnx
import detect
import prep_data
import test_widerface_personface as dump
import train_changeclass
import wider_openimagespersonface_evaluate.evaluation as openimages
import widerface_evaluate.evaluation as widerface
from utils.cli import parser_of

SCRIPTS = (train_changeclass, detect, dump, convert_to_onnx, widerface, openimages)

NO_NUMBERS = ("nan", "inf", "-inf", "1e400", "9" * 5000, "many", "", "0x10")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parser_made_by(parse_args: Callable) -> argparse.ArgumentParser:
    """The parser of a script."""
    made: list[argparse.ArgumentParser] = []

    class Seen(Exception):
        pass

    def note(self: argparse.ArgumentParser, *_: object) -> None:
        made.append(self)
        raise Seen

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Seen):
        patch.setattr(argparse.ArgumentParser, "parse_args", note)
        parse_args([])
    return made[0]


def parser_of_step(name: str) -> argparse.ArgumentParser:
    parser = parser_of(name)
    prep_data.add_step(parser, name)
    return parser


PARSERS = [
    *(parser_made_by(script.parse_args) for script in SCRIPTS),
    *(parser_of_step(name) for name in prep_data.STEPS),
]


NAMES = [f"{parser.prog}-{id(parser) % 997}" for parser in PARSERS]
each_parser = pytest.mark.parametrize("parser", PARSERS, ids=NAMES)


@each_parser
def test_every_option_stands_in_a_named_group(parser):
    outside = [action.option_strings[0] for action in parser._optionals._group_actions]
    assert outside == ["-h"]


def test_help_shows_a_default_of_zero_and_paths_in_one_piece(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = parser_made_by(train_changeclass.parse_args).format_help()
    assert text.count("wider_OIpersonface1103/train/wider_train_gt.txt)") == 1
    words = " ".join(text.split())
    assert "order and augmentation (default: 0)" in words and "bfloat16 in the network --seed" in words


@each_parser
def test_what_is_no_number_of_the_kind_is_refused_in_one_line(parser, capsys):
    for action in parser._actions:
        kind = action.type
        if kind in (None, str, Path) and not action.choices:
            continue
        for text in NO_NUMBERS:
            values = [text] * (action.nargs if isinstance(action.nargs, int) else 1)
            with pytest.raises(SystemExit) as stop:
                parser.parse_args([*action.option_strings[-1:], *values])
            assert stop.value.code == 2
            assert capsys.readouterr().err.count("\n") == 1, (action.option_strings, text)


@pytest.mark.parametrize("name", STAGES)
def test_paths_that_are_wrong_give_one_line(name, folder):
    main, text = STAGES[name]
    arguments = text.split()
    assert run(main, arguments)[0] == 0
    shutil.rmtree("out", ignore_errors=True)
    Path("binary").write_bytes(bytes(range(256)) * 20)
    places = [i for i, word in enumerate(arguments) if "/" in word or "." in word]
    for place in places:
        for wrong in ("absent/none.txt", "set", "binary", "n" * 300, "binary/below"):
            code, lines = run(main, [*arguments[:place], wrong, *arguments[place + 1 :]])
            assert code in (0, 1, 2), (place, wrong)
            assert len(lines) <= 1 and (code == 0 or lines or name == "check"), (place, wrong, lines)
            assert not list(folder.rglob(".tmp*")), (place, wrong)
            shutil.rmtree("out", ignore_errors=True)
            Path("binary").write_bytes(bytes(range(256)) * 20)


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(name, folder):
    main, text = STAGES[name]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        code, lines = run(main, text.split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if name in ("stats", "link", "check"):  # what they write is nothing or a link
        assert (code, lines) == (0, [])
    else:
        assert code == 1 and len(lines) == 1 and "File too large" in lines[0], lines
    assert not list(folder.rglob(".*tmp*"))
    assert run(main, text.split()) == (0, [])
