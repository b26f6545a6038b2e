"""Tables of the texts, made from files."""

from __future__ import annotations

import json
import shlex

import pytest

from results.tables import ACCURACY, COLUMNS, accuracy_table, filled, first_table, main, measured, read_rows
from utils.cli import DataError


def row(**values: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {"table": "t", "network": "n", "source": "s"} | values


def test_text_without_tables():
    assert filled("nothing\n", "README.md", []) == ("nothing\n", [])


def test_the_projects_texts_are_what_their_files_say():
    assert main(["--check"]) == 0


def test_commands_of_the_measurements_name_files_of_the_project(repository):
    for measurement in read_rows(ACCURACY):
        for command in filter(None, measurement["command"].split(" && ")):
            assert (repository / shlex.split(command)[1]).is_file(), command


def test_columns_are_those_with_numbers_and_what_is_shared_stands_below():
    rows = [
        row(easy="0.7385", data="d", protocol="p", command="c", source="", commit="abc", date="2026"),
        row(network="m", ap_face="0.5", data="d", protocol="q", commit="def", date="2025"),
        row(network="k", easy="1.0", data="d", protocol="q"),
    ]
    assert accuracy_table(rows).splitlines() == [
        "| network | protocol | easy | faces, AP | from |",
        "|---|---|---:|---:|---:|",
        "| n | p | 0.739 | - | 1 |",
        "| m | q | - | 0.500 | 2 |",
        "| k | q | 1.000 | - | 3 |",
        "",
        "Data: d.",
        "",
        "1. `c` (abc, 2026)",
        "2. s (def, 2025)",
        "3. s",
    ]


def test_filling_changes_what_differs_and_nothing_else():
    text = "a\n<!-- table: t -->\nold\n<!-- end -->\nb\n<!-- table: u -->\n<!-- end -->\n"
    rows = [row(hard="0.1"), row(table="u", hard="0.2")]
    once, changed = filled(text, "README.md", rows)
    assert (
        changed == ["t", "u"] and once.startswith("a\n<!-- table: t -->\n| network |") and "old" not in once
    )
    assert filled(once, "README.md", rows) == (once, [])
    assert filled(once, "README.md", [row(hard="0.1"), row(table="u", hard="0.3")])[1] == ["u"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: t -->\n", "<!-- table: t --> stands alone"),
        ("<!-- end -->\n", "<!-- end --> stands alone"),
        ("<!-- table: x -->\n<!-- end -->\n", "no table x; expected one of t"),
        ("<!-- table: no.md -->\n<!-- end -->\n", "no.md: no such file"),
    ],
)
def test_faulty_markers(text, message):
    with pytest.raises(DataError, match=message):
        filled(text, "README.md", [row()])


def test_check_names_what_differs(tmp_path, capsys):
    path = tmp_path / "text.md"
    before = "<!-- table: wider_val -->\n0.999\n<!-- end -->\n"
    path.write_text(before)
    assert main([str(path), "--check"]) == 1
    assert f"{path}: table wider_val is not what its file says" in capsys.readouterr().err
    assert path.read_text() == before
    assert main([str(path)]) == 0
    assert main([str(path), "--check"]) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("t,n,d,p,1.2,,,,,,,,,,,,s,,", ":2: found easy '1.2'"),
        ("t,n,d,p,0.2,,,,,,,,,,,c,,,", ":2: expected command, commit and date"),
        ("t,n,d,p,0.2", ":2: expected 19 fields"),
        ("t,n,d,p,0.2,,,,,,,,,,,,s,,,more", ":2: expected 19 fields"),
    ],
)
def test_faulty_rows(tmp_path, line, message):
    path = tmp_path / "accuracy.csv"
    path.write_text(f"{','.join(COLUMNS)}\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_rows(path)
    path.write_text("a,b\n")
    with pytest.raises(DataError, match="expected table,network"):
        read_rows(path)


def test_first_table_of_a_file(tmp_path):
    path = tmp_path / "speed.md"
    path.write_text("Title\n\n| a |\n|--:|\n| 1 |\n\nOther\n\n| b |\n")
    assert first_table(path) == "Title\n\n| a |\n|--:|\n| 1 |"
    path.write_text("| a |\n|--:|\n")
    assert first_table(path) == "| a |\n|--:|"
    path.write_text("Title\n")
    with pytest.raises(DataError, match="no table in it"):
        first_table(path)


def test_numbers_of_the_evaluators(tmp_path, capsys):
    wider, both = tmp_path / "wider.json", tmp_path / "both.json"
    wider.write_text(json.dumps({"subsets": {"easy": {"ap": 0.5}, "all": {"ap": 0.4}, "hard": {"ap": None}}}))
    both.write_text(json.dumps({"classes": {"person": {"ap": 0.25}}}))
    assert measured([wider, both]) == {"easy": 0.5, "ap_person": 0.25}
    assert main(["--measured", str(wider), str(both)]) == 0
    names, numbers = capsys.readouterr().out.splitlines()
    assert names.startswith("easy,medium,hard,ap_face,ap_person,")
    assert numbers == "0.5000,,,,0.2500,,,,,,"
