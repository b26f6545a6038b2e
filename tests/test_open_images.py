"""Open Images CSVs to lists: the published list, choices, every kind of broken file."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import open_images
from data.annotations import labelled_classes, read_annotations
from data.open_images import image_ids, label_of_ids
from data.predictions import write_prediction
from tests.conftest import prep
from utils.cli import DataError
from wider_openimagespersonface_evaluate import evaluation

FACE, PERSON, MAN, CAT = "/m/0dzct", "/m/01g317", "/m/04yx4", "/m/01yrx"
LABELS = {FACE: 1, PERSON: 2, MAN: 2}
HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)


def row(image="a" * 16, label=FACE, box=(0.1, 0.3, 0.2, 0.5), group_of=0, depiction=0, inside=0) -> str:
    """A line of a box CSV; ``box`` is XMin, XMax, YMin, YMax."""
    return f"{image},xclick,{label},1,{','.join(map(str, box))},0,0,{group_of},{depiction},{inside}"


def write(path: Path, *lines: str, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def convert(path: Path, output: Path, *options: str | Path) -> None:
    assert prep("openimages", path, "--output", output, *options) == 0


def converted(path: Path, *options: str | Path) -> dict[str, list[list[float]]]:
    output = path.parent / "out" / "list.txt"
    convert(path, output, *options)
    return as_dict(output)


def counts_in(text: str) -> dict[str, int]:
    """The rows of counts that the step prints, by name."""
    lines = (line.rsplit(maxsplit=1) for line in text.splitlines() if ": " not in line)
    return {name: int(number) for name, number in lines}


def as_dict(path: Path) -> dict[str, list[list[float]]]:
    return {a.path: np.column_stack([a.labels, a.boxes_xywh_norm]).tolist() for a in read_annotations(path)}


def plain(path: Path) -> dict[str, list[list[float]]]:
    """The slow plain version: a dictionary filled row by row."""
    images: dict[str, list[list[float]]] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            if line["LabelName"] in LABELS and line["IsDepiction"] != "1":
                x1, x2, y1, y2 = (float(line[name]) for name in ("XMin", "XMax", "YMin", "YMax"))
                boxes = images.setdefault(line["ImageID"] + ".jpg", [])
                boxes.append([LABELS[line["LabelName"]], x1, y1, x2 - x1, y2 - y1])
    return images


@pytest.mark.parametrize("lines", [[], [row(label=CAT)]])
def test_no_box_of_the_classes(tmp_path, lines):
    with pytest.raises(DataError, match=r"boxes\.csv: no box of face or person in it"):
        converted(write(tmp_path / "boxes.csv", *lines))
    assert not list(tmp_path.glob("out/*"))


def test_two_images_of_both_classes_in_file_order(tmp_path):
    path = write(
        tmp_path / "boxes.csv",
        row("b", PERSON, (0, 1, 0.25, 0.75)),
        row("b", CAT),
        row("b", FACE),
        row("a", MAN, (0.5, 0.5, 0, 1)),
    )
    found = converted(path)
    assert list(found) == ["b.jpg", "a.jpg"]
    assert found["b.jpg"] == [[2, 0, 0.25, 1, 0.5], [1, 0.1, 0.2, pytest.approx(0.2), pytest.approx(0.3)]]
    assert found["a.jpg"] == [[2, 0.5, 0, 0, 1]]
    assert labelled_classes(tmp_path / "out" / "list.txt") == ("face", "person")


rows_of_csv = st.lists(
    st.builds(
        row,
        image=st.sampled_from("abcde"),
        label=st.sampled_from([FACE, PERSON, MAN, CAT]),
        box=st.tuples(*[st.floats(0, 0.4), st.floats(0.5, 1)] * 2),
        depiction=st.sampled_from([0, 1, -1]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_csv, slice_rows=st.sampled_from([1, 2, 1000]))
def test_same_as_the_plain_version_for_any_order_and_slice(tmp_path_factory, rows, slice_rows):
    path = write(tmp_path_factory.mktemp("csv") / "boxes.csv", *rows)
    expected = plain(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_images, "_SLICE_ROWS", slice_rows)
        if not expected:
            with pytest.raises(DataError, match="no box of"):
                converted(path)
            return
        found = converted(path)
        assert image_ids(path, {CAT: 1}).to_list() == list(
            dict.fromkeys(r.split(",")[0] for r in rows if r.split(",")[2] == CAT)
        )
    assert list(found) == list(expected)
    for name, boxes in expected.items():
        np.testing.assert_allclose(found[name], boxes, atol=6e-10)


def test_odd_rows_of_other_classes_are_passed_over(tmp_path):
    rows = [row(f"i{n}", PERSON, (n / 7, 1, n / 9, n / 9 + 1e-9)) for n in range(7)]
    expected = converted(write(tmp_path / "boxes.csv", *rows))
    odd = [row(label=CAT, box=("wide", "", 3, "1e"), depiction="maybe"), row("../x", CAT)]
    assert len(expected) == 7
    for more in ([*odd, *rows], [*rows, *odd]):
        assert converted(write(tmp_path / "boxes.csv", *more)) == expected


def test_other_header_order_quotes_unknown_columns_bom_crlf_and_gzip(tmp_path):
    text = (
        'YMax,"Note, of somebody",XMax,,LabelName,IsDepiction,ImageID,,YMin,XMin\r\n'
        f'0.5,"a, ""b""",0.3,,"{FACE}",0,x,,0.25,0.2\r\n'
    )
    path = tmp_path / "boxes.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    assert converted(path) == {"x.jpg": [[1, 0.2, 0.25, pytest.approx(0.1), 0.25]]}


def test_attributes_keep_or_drop(tmp_path):
    path = write(
        tmp_path / "boxes.csv",
        row("a", FACE),
        row("a", PERSON, group_of=1),
        row("b", FACE, depiction=1),
        row("c", PERSON, inside=1),
        row("c", PERSON, group_of=-1),
    )
    assert {k: len(v) for k, v in converted(path).items()} == {"a.jpg": 2, "c.jpg": 2}
    assert set(converted(path, "--depiction", "keep")) == {"a.jpg", "b.jpg", "c.jpg"}
    assert {k: len(v) for k, v in converted(path, "--group_of", "drop").items()} == {"a.jpg": 1, "c.jpg": 2}


def test_images_of_one_class(tmp_path, capsys):
    path = write(
        tmp_path / "boxes.csv",
        row("a", FACE),
        row("a", MAN),
        row("b", FACE),
        row("c", PERSON),
        row("d", FACE),
    )
    verified = write(
        tmp_path / "labels.csv", f"d,verification,{PERSON},0", header="ImageID,Source,LabelName,Confidence"
    )
    assert set(converted(path, "--one_class", "drop")) == {"a.jpg"}
    assert set(converted(path, "--one_class", "drop", "--image_labels", verified)) == {"a.jpg", "d.jpg"}
    capsys.readouterr()
    convert(path, tmp_path / "split" / "list.txt", "--one_class", "split", "--image_labels", verified)
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"{tmp_path / 'split' / 'both' / 'list.txt'}: 2 images, labelled for face and person",
        f"{tmp_path / 'split' / 'face' / 'list.txt'}: 1 images, labelled for face",
        f"{tmp_path / 'split' / 'person' / 'list.txt'}: 1 images, labelled for person",
    ]
    assert labelled_classes(tmp_path / "split" / "both" / "list.txt") == ("face", "person")
    assert labelled_classes(tmp_path / "split" / "face" / "list.txt") == ("face",)
    assert set(as_dict(tmp_path / "split" / "person" / "list.txt")) == {"c.jpg"}


def test_persons_from_miap_and_images_without_file(tmp_path, capsys):
    miap_header = (
        "ImageID,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepictionOf,"
        "IsInsideOf,GenderPresentation,AgePresentation"
    )
    miap = write(
        tmp_path / "miap.csv",
        f"a,{PERSON},1,0,0.5,0,0.5,0,0,0,0,0,Unknown,Young",
        f"a,{PERSON},1,0,0.5,0,0.5,0,0,0,1,0,Unknown,Young",
        f"b,{PERSON},1,0,0.5,0,0.5,0,0,0,0,0,Unknown,Young",
        header=miap_header,
    )
    boxes = write(tmp_path / "boxes.csv", row("a", FACE), row("a", PERSON), row("z", FACE))
    convert(boxes, tmp_path / "out.txt", "--miap", miap)
    assert counts_in(capsys.readouterr().out)["boxes marked depiction, drop"] == 1
    assert {k: [b[0] for b in v] for k, v in as_dict(tmp_path / "out.txt").items()} == {
        "a.jpg": [2, 1],
        "b.jpg": [2],
    }
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.jpg").touch()
    convert(boxes, tmp_path / "out.txt", "--miap", miap, "--images", tmp_path / "images")
    assert set(as_dict(tmp_path / "out.txt")) == {"b.jpg"}
    assert counts_in(capsys.readouterr().out)["images without a file, left out"] == 1


def test_a_test_split_of_miap_is_scored(tmp_path, capsys):
    header = (
        "ImageID,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepictionOf,"
    )
    miap = write(
        tmp_path / "open_images_extended_miap_boxes_test.csv",
        f"a,{PERSON},1,0,0.5,0,0.5,0,0,0,0,0,Unknown,Young",
        f"a,{PERSON},1,0.5,1,0,1,0,0,1,0,0,Unknown,Unknown",
        f"b,{PERSON},1,0,0.5,0,0.5,0,0,1,0,0,Unknown,Unknown",
        header=header + "IsInsideOf,GenderPresentation,AgePresentation",
    )
    boxes, output = write(tmp_path / "boxes.csv", row("a", FACE), row("z", PERSON)), tmp_path / "list.txt"
    options = "--classes", "person", "--group_of", "ignore", "--output", str(output)
    assert prep("openimages", boxes, "--miap", miap, *options) == 0
    told = dict(line.strip().rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["boxes marked group_of, ignore"] == told["of person alone"] == "2"
    assert told["boxes of person"] == "1" and told["of face alone"] == "0"
    labels = {name: [line[0] for line in lines] for name, lines in as_dict(output).items()}
    assert labels == {"a.jpg": [2, -2], "b.jpg": [-2]} and labelled_classes(output) == ("person",)
    # The person, and one in each group: the latter are ignored.
    found = {"a": [[0, 0, 0.5, 0.5], [0.6, 0.5, 0.2, 0.2]], "b": [[0, 0, 0.4, 0.4]]}
    for name, rows in found.items():
        scores, kinds = np.linspace(0.5, 0.9, len(rows)), np.full(len(rows), 2)
        write_prediction(tmp_path / "dump" / f"{name}.txt", name, np.array(rows), scores, kinds)
    assert evaluation.main(["-p", str(tmp_path / "dump"), "-g", str(output)]) == 0
    assert "Person Val AP: 1.0\n" in capsys.readouterr().out


GOOD = row("good")
FAULTS = {
    "cut off in a field": (f"{GOOD}\n{GOOD[:40]}".encode(), r":3: cut off after 9 of 13 fields"),
    "cut off before a field": (f"{GOOD}\n{row(label=CAT)[:30]}".encode(), ":3: cut off"),
    "no coordinate": (f"{GOOD}\nx,s,{FACE},1,,1,0,1,0,0,0,0,0\n".encode(), ":3: no XMin"),
    "not a number": (
        row(box=(0, "wide", 0, 1)).encode(),
        ":2: found XMax 'wide'; expected a number divided by",
    ),
    "infinite": (row(box=(0, "inf", 0, 1)).encode(), ":2: found XMax 'inf'"),
    "nan": (row(box=(0, "nan", 0, 1)).encode(), ":2: found XMax 'nan'"),
    "pixels": (row(box=(10, 200, 5, 90)).encode(), ":2: found XMin '10'"),
    "xmax below xmin": (
        f"{GOOD}\n\n{row(box=(0.6, 0.5, 0, 1))}".encode(),
        ":4: found XMin 0.6 above XMax 0.5",
    ),
    "ymax below ymin": (row(box=(0, 1, 0.9, 0.1)).encode(), ":2: found YMin 0.9 above YMax 0.1"),
    "attribute": (row(depiction="maybe").encode(), ":2: found IsDepiction 'maybe'; expected 1, 0 or -1"),
    "not UTF-8": (f"{GOOD}\n{GOOD}\n".encode() + b"\xff\xfe" + GOOD.encode(), ":4: not UTF-8 text"),
    "open quote": (f'{GOOD}\n"{GOOD}\n{GOOD}\n'.encode(), ":3: not a CSV line"),
    "id that goes up": (row(image="../../x").encode(), r":2: the image id '\.\./\.\./x' leads out"),
    "absolute id": (row(image="/etc/x").encode(), ":2: the image id '/etc/x' leads out"),
    "blank before an id": (f"{GOOD}\n{row(image=' x')}".encode(), ":3: the image id ' x' leads out"),
    "no image id": (row(image="").encode(), ":2: no ImageID"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_row_is_named_and_nothing_is_written(tmp_path, name):
    text, message = FAULTS[name]
    path = tmp_path / "boxes.csv"
    path.write_bytes(HEADER.encode() + b"\n" + text)
    with pytest.raises(DataError, match=rf"boxes\.csv{message}"):
        converted(path)
    assert not list(tmp_path.glob("out/*"))


def test_faults_of_the_file(tmp_path):
    path = tmp_path / "boxes.csv"
    with pytest.raises(DataError, match="no such file; expected a CSV"):
        converted(path)
    path.write_text("")
    with pytest.raises(DataError, match=":1: empty; expected a header"):
        converted(path)
    write(path, GOOD, header=HEADER.replace("XMin", "xmin"))
    with pytest.raises(DataError, match=r":1: no column XMin; found ImageID,"):
        converted(path)
    write(path, GOOD, header=HEADER.replace("Source", "XMax"))
    with pytest.raises(DataError, match=r":1: the column XMax is there more than once"):
        converted(path)
    write(path, f"a,{FACE},0,1,0,1", header="ImageID,LabelName,XMin,XMax,YMin,YMax")
    with pytest.raises(DataError, match=r":1: no column IsDepiction; .* --depiction keep"):
        converted(path)
    assert set(converted(path, "--depiction", "keep")) == {"a.jpg"}
    whole = gzip.compress("\n".join([HEADER, *[GOOD] * 50]).encode())
    broken = tmp_path / "boxes.csv.gz"
    for content in (whole[:-20], whole[:60] + b"\0\0\0" + whole[63:], b"no gzip"):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=r"boxes\.csv\.gz"):
            converted(broken)
    endless = b"a" * (5 * open_images.LONGEST_LINE // 2)
    broken.write_bytes(gzip.compress(HEADER.encode() + b"\n" + endless))
    with pytest.raises(DataError, match=r"boxes\.csv\.gz: a line of more than 1048576 bytes"):
        converted(broken)
    broken.write_bytes(gzip.compress(endless))
    with pytest.raises(DataError, match=r"boxes\.csv\.gz:1: not a CSV line: b.a{80}"):
        converted(broken)


def test_a_compressed_csv_of_far_too_many_rows_is_refused(tmp_path):
    path = tmp_path / "boxes.csv.gz"
    few = 1000 * f"{GOOD}\n".encode()
    path.write_bytes(gzip.compress(HEADER.encode() + b"\n" + few))
    assert len(few) > open_images.MOST_TIMES * path.stat().st_size and converted(path)  # small: no harm in it
    many = few * (open_images.SMALL // len(few) + 2)
    path.write_bytes(gzip.compress(HEADER.encode() + b"\n" + many, 1))
    with pytest.raises(DataError, match=r"boxes\.csv\.gz: unpacks to more than 50 times its size, .* gunzip"):
        converted(path)


def test_a_full_disk_leaves_the_old_list(tmp_path, monkeypatch):
    path = write(tmp_path / "boxes.csv", GOOD)
    before = converted(path)

    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(open_images, "format_table", full)
    with pytest.raises(OSError, match="No space"):
        converted(path)
    assert as_dict(tmp_path / "out" / "list.txt") == before
    assert sorted(p.name for p in tmp_path.glob("out/*")) == ["dataset.json", "list.txt"]


def test_one_class_is_taken_alone(tmp_path, capsys):
    path, output = (
        write(tmp_path / "boxes.csv", row("a", FACE), row("a", MAN), row("b", MAN)),
        tmp_path / "f.txt",
    )
    assert prep("openimages", path, "--output", output, "--classes", "face") == 0
    assert {k: [b[0] for b in v] for k, v in as_dict(output).items()} == {"a.jpg": [1]}
    assert labelled_classes(output) == ("face",)
    assert "warning" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        prep("openimages", path, "--output", output, "--classes", "cat")


def test_published_list(reference, tmp_path, capsys):
    """The published validation list comes out of its CSV, but for what is written below.

    Five images stand twice in the CSV (once under a broken name, which only the list of names shows),
    so the published list has them twice; here their rows are joined into one image.
    """
    (source,) = (reference / "openimages_val").glob("*.csv.gz")
    (listed,) = (reference / "openimages_val").glob("wider_val_gt*.gz")
    published = tmp_path / "published.txt"
    published.write_bytes(gzip.decompress(listed.read_bytes()))
    convert(source, tmp_path / "out" / "list.txt")
    found = {a.path: a for a in read_annotations(tmp_path / "out" / "list.txt")}
    assert counts_in(capsys.readouterr().out) == {
        "boxes of face": 13964,
        "boxes of person": 16091,
        "images with boxes": 7572,
        "  of both": 5923,
        "  of face alone": 171,
        "  of person alone": 1478,
        "images whose rows were apart, joined": 5,
    }
    repeated = []
    last = ""
    for expected in read_annotations(published):
        got = found[expected.path]
        if len(got) != len(expected):
            repeated.append(expected.path)
            half = len(expected)
            assert len(got) == 2 * half
            np.testing.assert_array_equal(got.boxes_xywh_norm[:half], got.boxes_xywh_norm[half:])
        np.testing.assert_array_equal(got.labels[: len(expected)], expected.labels)
        np.testing.assert_allclose(
            got.boxes_xywh_norm[: len(expected)], expected.boxes_xywh_norm, rtol=0, atol=1e-9
        )
        last = expected.path
    assert last == next(reversed(found))
    assert len(repeated) == 10
    assert len(set(repeated)) == 5
    assert set(found) == {a.path for a in read_annotations(published)}


def test_label_ids_come_from_the_class_descriptions(tmp_path):
    assert label_of_ids(["face"]) == {"/m/0dzct": 1}
    path = tmp_path / "class-descriptions.csv"
    path.write_text('LabelName,DisplayName\n/m/1,"Bee, wild"\n/m/7,Human face\n')
    assert label_of_ids(["face"], path) == {"/m/7": 1}
    with pytest.raises(DataError, match=r"descriptions\.csv: the class 'Person' is not in it; expected"):
        label_of_ids(["face", "person"], path)
