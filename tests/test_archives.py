"""Unpacking: whole, again, and every archive that must be refused."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest

from data.download import unpack_zip
from prep_data import main
from utils.cli import DataError, UsageError


def archive(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return path


def unpack(path: Path, *options: str) -> list[str]:
    output = path.parent / "out"
    assert main(["unpack", str(path), "--save_folder", str(output), *options]) == 0
    return sorted(p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file())


def test_without_archives_it_says_where_they_are(capsys):
    assert main(["unpack"]) == 0
    assert "WIDER_train.zip" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--save_folder"):
        main(["unpack", "some.zip"])


def test_empty_whole_and_again(tmp_path, capsys):
    assert unpack(archive(tmp_path / "a.zip")) == []
    path = archive(
        tmp_path / "a.zip", ("WIDER/images/1.jpg", b"one"), ("WIDER/empty/", b""), ("top.txt", b"")
    )
    assert unpack(path) == ["WIDER/images/1.jpg", "top.txt"]
    (tmp_path / "out" / "top.txt").write_text("changed")
    unpack(path)
    assert "1 files there already, 1 files unpacked" in capsys.readouterr().out
    assert (tmp_path / "out" / "top.txt").read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../out.txt", "leads out of the folder"),
        ("a/../../b", "leads out"),
        ("/etc/x", "leads out"),
        ("a\\..\\b", "leads out"),
        ("C:/x", "leads out"),
    ],
)
def test_what_leaves_the_folder_is_refused_before_anything_is_written(tmp_path, name, message):
    path = archive(tmp_path / "a.zip", ("good.txt", b"good"), (name, b"/etc"))
    with pytest.raises(DataError, match=message):
        unpack(path)
    assert not list((tmp_path / "out").iterdir())


def test_a_path_of_a_thousand_folders_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"a\.zip: 'a/a/.* lies below 1000 folders; .* nothing") as error:
        unpack_zip(archive(tmp_path / "a.zip", ("b", b""), ("a/" * 1000 + "b", b"")), tmp_path / "out")
    assert len(str(error.value)) < 300 + len(str(tmp_path)) and not (tmp_path / "out").exists()


def test_links_in_the_folder_are_not_followed(tmp_path):
    path = archive(tmp_path / "a.zip", ("top", b"new"), ("sub/deep/b", b"new"))
    for name in ("elsewhere", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere" / "top").write_text("old")
    (tmp_path / "out" / "top").symlink_to(tmp_path / "elsewhere" / "top")
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="out/sub: a link; remove it"):
        unpack_zip(path, tmp_path / "out")
    (tmp_path / "out" / "sub").unlink()
    unpack_zip(path, tmp_path / "out")
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["top"]
    assert (tmp_path / "elsewhere" / "top").read_text() == "old"
    assert (tmp_path / "out" / "top").read_text() == "new"


def test_size_bound(tmp_path):
    path = archive(tmp_path / "bomb.zip", ("zeros", bytes(2_000_000)))
    with pytest.raises(DataError, match=r"unpacks to 0\.002 GB; expected at most 0\.001"):
        unpack_zip(path, tmp_path / "out", 1_000_000)
    assert not (tmp_path / "out").exists()


def test_damaged_archives_leave_no_part_of_a_file(tmp_path):
    path = archive(tmp_path / "a.zip", ("a.txt", b"some text " * 1000))
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[:-30], whole[:40] + b"\xff\xff\xff\xff" + whole[44:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a zip file, or damaged"):
            unpack(path)
        assert not list((tmp_path / "out").iterdir())
    with pytest.raises(DataError, match="no such archive"):
        unpack(tmp_path / "b.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_damage_within_a_file_is_one_line_for_every_compression(tmp_path, method):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as opened:
        opened.writestr("a.txt", random.Random(0).randbytes(5000))
    whole = path.read_bytes()
    for place in (45, len(whole) // 2):
        path.write_bytes(whole[:place] + b"\xff" * 9 + whole[place + 9 :])
        with pytest.raises(DataError, match="not a zip file, or damaged"):
            unpack(path)
        assert not list((tmp_path / "out").iterdir())


def test_a_link_becomes_a_file(tmp_path):
    """Its target is what it holds; nothing follows it."""
    info = zipfile.ZipInfo("images")
    info.external_attr = 0o120777 << 16
    assert unpack(archive(tmp_path / "a.zip", (info, b"/etc"))) == ["images"]
    assert not (tmp_path / "out" / "images").is_symlink()
