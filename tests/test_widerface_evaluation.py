"""The WIDER FACE evaluator: reference numbers, the plain loops, its command line and bad input."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench_evaluation import make_set, write_mat_files
from data.annotations import ImageAnnotation
from data.predictions import BoxTable, prediction_path, read_predictions, write_prediction
from tests.conftest import json_of, table_of
from tests.plain.evaluation import curve_area, image_curve, match_image, widerface
from utils.box_utils import xywh_to_xyxy, xyxy_to_xywh
from utils.cli import DataError, UsageError
from widerface_evaluate import matching
from widerface_evaluate.evaluation import evaluate, faces_of, main, read_ground_truth, score

compiled = pytest.mark.skipif(matching.kernel is None, reason="kernels are not built (make build)")


@pytest.fixture(scope="session")
def published(reference, tmp_path_factory) -> Path:
    """The reference predictions, unpacked."""
    folder = tmp_path_factory.mktemp("published")
    with zipfile.ZipFile(reference / "fixtures" / "widerface_val_epoch150_predictions.zip") as file:
        file.extractall(folder)
    return folder


@pytest.fixture
def made(tmp_path) -> tuple[Path, Path]:
    """Folders of 40 made prediction files and of their .mat files."""
    faces = make_set(tmp_path / "faces", 40, 30, pixels=True)
    write_mat_files(tmp_path / "mat", faces)
    return tmp_path / "faces", tmp_path / "mat"


scores_of = partial(json_of, main)


def aps(numbers: dict) -> list[float]:
    return [subset["ap"] for subset in numbers["subsets"].values()]


@pytest.mark.parametrize("protocol", ["standard", "legacy"])
def test_reference_numbers(published, reference, protocol):
    numbers = scores_of("-p", published, "-g", reference / "widerface_ground_truth", "--protocol", protocol)
    expected = [0.8910370995924117, 0.8538560427663836, 0.6181357717664443]
    assert aps(numbers) == pytest.approx(expected, rel=0, abs=1e-12)
    assert [subset["faces"] for subset in numbers["subsets"].values()] == [7211, 13319, 31958]
    assert numbers["images"] == 3226


def test_numbers_of_the_official_tool(published, reference, capsys):
    """Of the tool itself, run on the same files under Octave, faces alone in five columns."""
    arguments = "-p", published, "-g", reference / "widerface_ground_truth", "--protocol", "matlab"
    said = [float(f"{ap:.15g}") for ap in aps(scores_of(*arguments))]
    assert said == [0.891208528333103, 0.853552862934362, 0.618076373158159]
    with pytest.raises(UsageError, match="--protocol matlab"):
        main([*map(str, arguments), "--iou", "0.3"])


@pytest.mark.parametrize("kernel", [matching.kernel, None])
@pytest.mark.parametrize(
    ("faces", "boxes", "standard", "matlab"),
    [
        # 10 x 10 pixels against 10 x 5: one half exactly is a hit by both.
        ([[0, 0, 9, 9]], [[0, 0, 9, 4]], [1], [1]),
        # 999 of 2000 pixels: 0.4995 is no hit, and rounds to 0.
        ([[0, 0, 1999, 0]], [[0, 0, 998, 0]], [0], [0]),
        # A side at .5 goes up to the next pixel: 10 x 4.5 of 10 x 10 is 0.45, and 10 x 5 of 95 - 50.
        ([[0, 0, 9, 9]], [[0, 0, 9, 3.5]], [0], [1]),
        # One below it goes down: 4 rows of 95.
        ([[0, 0, 9, 9]], [[0, 0, 9, 3.49]], [0], [0]),
        # Halves go away from zero, not to the even neighbour: 0.5 to 1, and 4.5 to 5.
        ([[0, 0, 9, 9]], [[0.5, 0, 4.4, 9]], [1], [0]),
        ([[0, 0, 9, 9]], [[0, 0, 9, 4.5]], [1], [1]),
        # Two faces that both round to 1: the tool takes the first, which the second detection finds taken.
        ([[0, 0, 9, 9], [0, 0, 9, 8]], [[0, 0, 9, 8], [0, 0, 9, 9]], [1, 1], [1, 0]),
        ([], [[0, 0, 9, 9]], [-1], [-1]),
    ],
)
def test_where_the_tool_differs(faces, boxes, standard, matlab, kernel, monkeypatch):
    monkeypatch.setattr(matching, "kernel", kernel)
    truths = truths_of([faces], all=[True] * len(faces))
    found = table_of([(boxes, np.linspace(0.9, 0.5, len(boxes)), [1] * len(boxes))])
    for protocol, outcome in (("standard", standard), ("matlab", matlab)):
        faces_found = faces_of(found, protocol)
        assert score(faces_found, truths, protocol=protocol)["all"].outcome.tolist() == outcome


@pytest.mark.parametrize(
    ("iou", "expected"), [(0.5, [0.849509, 0.775701, 0.418764]), (0.3, [0.867159, 0.791400, 0.431074])]
)
def test_published_table_comes_from_cut_scores_and_corners(published, reference, iou, expected):
    truths = read_ground_truth(reference / "widerface_ground_truth")
    found, _ = read_predictions(published, truths.images)
    found = found.select(found.scores >= 0.5)
    numbers = evaluate(replace(found, boxes=np.trunc(found.boxes)), truths, iou)
    assert [subset["ap"] for subset in numbers.values()] == pytest.approx(expected, abs=5e-4)


def truths_of(images: list, **counted: list) -> BoxTable:
    """Faces of images, each given as boxes x y w h."""
    boxes = [xywh_to_xyxy(np.array(rows, float).reshape(-1, 4)) for rows in images]
    truths = BoxTable.from_images(
        [f"event/{i}" for i in range(len(images))], boxes, [[1] * len(b) for b in boxes]
    )
    truths.counted = {name: np.array(values, bool) for name, values in counted.items()}
    return truths


def to_truths(images) -> BoxTable:
    flat = [row for _, _, rows in images for row in rows]
    boxes = [[row[:4] for row in rows] for _, _, rows in images]
    return truths_of(boxes, one=[row[4] for row in flat], other=[row[5] for row in flat])


# Few different corners, so that boxes coincide, scores are equal and overlaps lie on the threshold.
side = st.one_of(st.integers(0, 9), st.floats(0, 9))
box = st.tuples(side, side, side, side)
detection = st.tuples(box, st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1)))
image = st.tuples(
    st.lists(detection, max_size=8),
    st.just(None),
    st.lists(st.tuples(side, side, side, side, st.booleans(), st.booleans()), max_size=5),
)


@given(
    st.lists(image, min_size=1, max_size=4),
    st.sampled_from([0.3, 0.5]),
    st.sampled_from(["standard", "legacy"]),
)
def test_plain_loops_give_the_same(images, iou, protocol):
    parts = [([d[0] for d in rows], [d[1] for d in rows], [1] * len(rows)) for rows, _, _ in images]
    parts = [(np.array(b, float).reshape(-1, 4), np.array(s, float), labels) for b, s, labels in parts]
    found, truths = table_of(parts), to_truths(images)
    numbers = evaluate(found, truths, iou, protocol)
    flat = found.scores
    least, greatest = min([1.0, *flat]), max([0.0, *flat])
    for name, counted in truths.counted.items():
        curve = np.zeros((1000, 2))
        for i, (boxes, scores, _) in enumerate(parts):
            here = slice(*truths.offsets[i : i + 2])
            if not len(boxes) or here.start == here.stop:
                continue
            order = np.argsort(-scores, kind="stable") if protocol == "standard" else np.arange(len(scores))
            hits, proposals = match_image(boxes[order], xyxy_to_xywh(truths.boxes[here]), counted[here], iou)
            stretched = (scores - least) / (greatest - least) if greatest > least else np.ones(len(scores))
            curve += image_curve(stretched[order], proposals, hits)
        if counted.any():
            assert numbers[name]["ap"] == pytest.approx(curve_area(curve, counted.sum()), abs=1e-12)
        else:
            assert np.isnan(numbers[name]["ap"])


@compiled
@given(st.lists(image, max_size=4), st.booleans(), st.integers(0, 2), st.sampled_from([1, 7, 1 << 18]))
def test_numpy_and_the_kernel_give_the_same(images, plus, kind, piece):
    parts = [(np.array([d[0] for d in r], float), [d[1] for d in r], [1] * len(r)) for r, _, _ in images]
    found, truths = faces_of(table_of(parts)), to_truths(images)
    arguments = found.boxes, found.offsets, truths.boxes, truths.offsets, plus, kind
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "PIECE", piece)
        slow = matching.best_overlaps_numpy(*arguments)
    for fast_column, slow_column in zip(matching.kernel.best_overlaps(*arguments), slow, strict=True):
        np.testing.assert_array_equal(fast_column, slow_column)


@pytest.mark.parametrize("kernel", [matching.kernel, None])
def test_rule_by_hand(kernel, monkeypatch):
    monkeypatch.setattr(matching, "kernel", kernel)
    # A counted face, an ignored one, and: a hit, a second hit, one on the ignored face, one on nothing.
    truths = truths_of([[[0, 0, 9, 9], [50, 50, 9, 9]]], all=[True, False])
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 8], [50, 50, 9, 9], [20, 20, 9, 9.0]])
    found = table_of([(boxes, [0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1])])
    assert score(found, truths)["all"].outcome.tolist() == [1, 0, -1, 0]
    # The pixel convention: 10 x 10 pixels against 10 x 5 is exactly one half.
    half = table_of([([[0, 0, 9, 4]], [0.9], [1])])
    assert score(half, truths, 0.5)["all"].outcome.tolist() == [1]
    assert score(half, truths, 0.51)["all"].outcome.tolist() == [0]


def test_perfect_detections(made):
    truths = read_ground_truth(made[1])
    scores = np.concatenate([np.linspace(1, 0.5, count) for count in np.diff(truths.offsets)])
    found = replace(truths, scores=scores)
    assert evaluate(found, truths)["hard"]["ap"] == pytest.approx(1.0, abs=1e-12)
    persons = replace(found, labels=found.labels + 1)
    assert evaluate(persons, truths)["hard"]["ap"] == 0.0


def test_files_and_plain_loops(made, capsys):
    folder, mat = made
    expected = widerface(folder, mat)
    numbers = scores_of("-p", folder, "-g", mat)
    assert aps(numbers) == pytest.approx(list(expected.values()), rel=0, abs=1e-12)
    shown = capsys.readouterr().out
    assert f"Easy   Val AP: {numbers['subsets']['easy']['ap']}" in shown


@pytest.mark.parametrize("inside", [True, False])
def test_runs_inside_its_folder_and_from_the_root(repository, made, inside):
    script = "evaluation.py" if inside else "widerface_evaluate/evaluation.py"
    cwd = repository / "widerface_evaluate" if inside else repository
    done = subprocess.run(
        [sys.executable, script, "-p", made[0], "-g", made[1]], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Hard   Val AP: 0." in done.stdout
    done = subprocess.run(
        [sys.executable, script, "-p", made[0], "-g", "absent"], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 1 and "no such ground truth" in done.stderr and "Traceback" not in done.stderr


def test_order_of_lines(made):
    folder, mat = made
    for path in folder.rglob("*.txt"):  # no equal scores, whose order would matter
        head, count, *rows = path.read_text().splitlines()
        rows = [" ".join([*row.split()[:4], str(0.9 - 0.01 * i), "1"]) for i, row in enumerate(rows)]
        path.write_text("\n".join([head, count, *rows]))
    sorted_numbers = scores_of("-p", folder, "-g", mat)
    for path in folder.rglob("*.txt"):
        head, count, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, count, *rows[10:], *rows[:10]]))
    assert aps(scores_of("-p", folder, "-g", mat)) == pytest.approx(aps(sorted_numbers), abs=1e-12)
    legacy = scores_of("-p", folder, "-g", mat, "--protocol", "legacy")
    assert aps(legacy) == pytest.approx(list(widerface(folder, mat).values()), abs=1e-12)
    assert aps(legacy) != aps(sorted_numbers)


def test_missing_files(made, capsys):
    folder, mat = made
    whole = scores_of("-p", folder, "-g", mat)
    gone = sorted(folder.rglob("*.txt"))[:2]
    for path in gone:
        path.unlink()
    gone[0].parent.rmdir()
    with pytest.raises(DataError, match="2 of 40 files are missing"):
        main(["-p", str(folder), "-g", str(mat)])
    shown = capsys.readouterr().err
    assert all(str(path.relative_to(folder)) in shown for path in gone) and "1 folders are missing" in shown
    numbers = scores_of("-p", folder, "-g", mat, "--allow_missing")
    assert len(numbers["missing"]) == 2 and numbers["detections"] == whole["detections"] - 60
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DataError, match="40 of 40 files are missing"):
        main(["-p", str(folder), "-g", str(mat)])
    assert aps(scores_of("-p", folder, "-g", mat, "--allow_missing")) == [0.0, 0.0, 0.0]
    with pytest.raises(DataError, match="no such folder of predictions"):
        main(["-p", str(folder / "absent"), "-g", str(mat)])


def rewrite(folder: Path, change) -> None:
    for path in folder.rglob("*.txt"):
        head, count, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, count, *(" ".join(change(row.split())) for row in rows)]) + "\n")


def test_wrong_boxes(made, capsys):
    folder, mat = made
    rewrite(folder, lambda row: [*row[:5], "2"])
    with pytest.raises(DataError, match="not one face in 1200 detections"):
        main(["-p", str(folder), "-g", str(mat)])
    rewrite(folder, lambda row: [*(str(float(v) / 1000) for v in row[:4]), row[4]])
    with pytest.raises(DataError, match="normalised"):
        main(["-p", str(folder), "-g", str(mat)])


def test_five_columns_equal_scores_and_no_detections(made, capsys):
    folder, mat = made
    whole = scores_of("-p", folder, "-g", mat)
    rewrite(folder, lambda row: row[:5])
    assert scores_of("-p", folder, "-g", mat) == whole
    assert "40 prediction files have lines without a class" in capsys.readouterr().err
    rewrite(folder, lambda row: [*row[:4], "0.7"])
    for protocol in ("standard", "legacy"):
        assert all(np.isfinite(aps(scores_of("-p", folder, "-g", mat, "--protocol", protocol))))
    for path in folder.rglob("*.txt"):
        path.write_text("")
    assert aps(scores_of("-p", folder, "-g", mat)) == [0.0, 0.0, 0.0]
    shown = capsys.readouterr().err
    assert "no detections at all" in shown and "40 prediction files do not have as many lines" in shown


def test_min_score(made):
    folder, mat = made
    cut = scores_of("-p", folder, "-g", mat, "--confidence_threshold", "0.3")
    for path in folder.rglob("*.txt"):
        head, _, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, "0", *(row for row in rows if float(row.split()[4]) >= 0.3)]))
    assert aps(scores_of("-p", folder, "-g", mat)) == aps(cut)


def test_image_list(made, tmp_path, capsys):
    folder, mat = made
    truths = read_ground_truth(mat)
    some = truths.take([0, 7, 8])
    found, _ = read_predictions(folder, some.images)
    expected = [subset["ap"] for subset in evaluate(found, some).values()]
    lines = [f"/{image}.jpg" for image in some.images]
    path = tmp_path / "held out.txt"
    path.write_text("\n".join([*lines, lines[0], "/6ff9809f93ee9ae9.jpg.2888Ac4d", "e/unknown.v2.jpg", ""]))
    numbers = scores_of("-p", folder, "-g", mat, "--image_list", path)
    assert numbers["images"] == 3 and aps(numbers) == expected
    shown = capsys.readouterr().err
    assert "6ff9809f93ee9ae9.jpg.2888Ac4d" in shown and "e/unknown.v2.jpg" in shown and "named again" in shown
    path.write_text("e/unknown.jpg\n")
    with pytest.raises(DataError, match="none of its 1 images"):
        main(["-p", str(folder), "-g", str(mat), "--image_list", str(path)])


def test_text_annotation(tmp_path, capsys):
    path = tmp_path / "wider_face_val_bbx_gt.txt"
    path.write_text(
        "e/a.b c.jpg\n3\n0 0 9 9 0 0 0 0 0 0\n50 50 9 9 0 0 0 1 0 0 \n1 1 0 5 0 0 0 0 0 0\n"
        "e/none.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n"
        "e/a.b c.jpg\n1\n5 5 5 5 0 0 0 0 0 0\n"
    )
    truths = read_ground_truth(path)
    assert truths.images == ["e/a.b c", "e/none"] and truths.offsets.tolist() == [0, 2, 2]
    assert truths.boxes.tolist() == [[0, 0, 9, 9], [50, 50, 59, 59]]
    assert truths.counted["all"].tolist() == [True, False]  # marked invalid: ignored
    shown = capsys.readouterr().err
    assert "1 faces without width or height" in shown and "come again" in shown and "a.b c.jpg" in shown
    folder = tmp_path / "predictions"
    write_prediction(
        prediction_path(folder, "e/a.b c"), "a.b c", np.array([[0, 0, 9, 9]]), np.ones(1), np.ones(1, int)
    )
    write_prediction(prediction_path(folder, "e/none"), "none", np.zeros((0, 4)), np.ones(0), np.ones(0, int))
    assert scores_of("-p", folder, "-g", path)["subsets"]["all"]["ap"] == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no image in it"),
        ("e/a.jpg\n2\n0 0 9 9 0 0 0 0 0 0\n", r":3: cut off"),
        ("e/a.jpg\n1\n0 0 9\n", r":3: found '0 0 9'"),
        ("# e/a.jpg\n1 0 0 1 1\n", "annotation list"),
    ],
)
def test_faulty_text_annotation(tmp_path, text, said):
    path = tmp_path / "truth.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_ground_truth(path)


def test_faulty_mat_files(made):
    _, mat = made
    (mat / "wider_easy_val.mat").write_text("nothing")
    with pytest.raises(DataError, match=r"wider_easy_val\.mat: not a WIDER FACE ground truth"):
        read_ground_truth(mat)
    (mat / "wider_easy_val.mat").unlink()
    with pytest.raises(DataError, match=r"wider_easy_val\.mat: no such file"):
        read_ground_truth(mat)


@pytest.mark.parametrize(
    "flags", [["--iou", "0"], ["--iou", "1.5"], ["--worst", "3"], ["--worst", "1", "--images", "absent"]]
)
def test_usage(made, flags):
    with pytest.raises((UsageError, SystemExit)):
        main(["-p", str(made[0]), "-g", str(made[1]), *flags])


def test_images(tmp_path, capsys):
    annotations = [
        ImageAnnotation(f"e/{name}.jpg", [1], [box])
        for name, box in (
            ("good", [0.1, 0.1, 0.2, 0.2]),
            ("bad", [0.1, 0.5, 0.3, 0.3]),
            ("gone", [0, 0, 0.5, 0.5]),
        )
    ]
    write_mat_files(tmp_path / "mat", annotations)
    for name, boxes in (("good", [[100, 100, 200, 200]]), ("bad", [[600, 100, 300, 300]]), ("gone", [])):
        boxes = np.array(boxes, float).reshape(-1, 4)
        ones = np.ones(len(boxes))
        write_prediction(tmp_path / "p" / "e" / f"{name}.txt", name, boxes, ones * 0.9, ones.astype(int))
    for name in ("good", "bad"):
        (tmp_path / "images" / "e").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / "e" / f"{name}.jpg"), np.full((1000, 1000, 3), 60, np.uint8))
    flags = ["--plot", tmp_path / "curves.png", "--worst", "3", "--images", tmp_path / "images"]
    scores_of("-p", tmp_path / "p", "-g", tmp_path / "mat", *flags)
    assert cv2.imread(str(tmp_path / "curves.png")).shape[1] > 600
    drawn = sorted(path.name for path in (tmp_path / "p_worst").iterdir())
    assert drawn == ["001_e_bad.jpg"] and "e/gone" in capsys.readouterr().err
    picture = cv2.imread(str(tmp_path / "p_worst" / drawn[0])).astype(int)
    assert picture.shape[0] > 1000
    missed, false = picture[650, 100], picture[250, 900]
    assert missed[2] > missed[1] > missed[0] and false[1] > 150 and false[2] > 150 and false[0] < 120
    with pytest.raises(UsageError, match="ends with .png"):
        main(["-p", str(tmp_path / "p"), "-g", str(tmp_path / "mat"), "--plot", str(tmp_path / "curves.odd")])


@pytest.mark.parametrize("folder", ["widerface_evaluate", "wider_openimagespersonface_evaluate"])
def test_builds_from_any_folder(repository, folder):
    setup = repository / folder / "setup.py"
    done = subprocess.run(
        [sys.executable, setup, "--quiet", "build_ext", "--inplace"], cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list((repository / folder).glob("kernel.*.so"))
