"""Damaged files in every reader: valid values come out, or one line that names the file.

HOSTILE_EXAMPLES=1000 pytest tests/test_hostile_files.py    # many more, others each time
"""

from __future__ import annotations

import gzip
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hostile import BOXES_CSV, COCO, DETECTIONS, WIDER_TEXT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

import wider_openimagespersonface_evaluate.evaluation as openimages
import widerface_evaluate.evaluation as widerface
from data import predictions
from data.annotations import ImageAnnotation, iter_annotations, labelled_classes, read_annotations
from data.config import cfg_mnet
from data.download import read_sums, unpack_zip
from data.foreign import Part, match_classes
from data.formats import read_coco, read_voc, read_wider_text
from data.open_images import image_ids
from data.yolo import read_yolo
from models.checkpoint import load_network, read_checkpoint, save_checkpoint
from models.pseudo_label import read_coco_detections
from models.retinaface import RetinaFace
from models.training_run import RunLog
from prep_data import main
from utils.cli import DataError
from utils.image_names import expand_inputs, read_image_list
from utils.images import read_image, read_size

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "0"))

hostile = settings(
    max_examples=EXAMPLES or 15,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

TOKENS = [
    *(b"nan", b"inf", b"-1", b"0", b"2.5", b"1e308", b"1e309", b"9" * 30, b"9" * 5000, b"1_0", b"0_1", b" 1"),
    *(b"", b"null", b"true", b"[]", b"{}", b'""', b"\xff\xfe", b"a\0b", b"1\x0b2", b"\xc2\xa01", b"\xd9\xa1"),
]

#: What is no such file at all.
STRANGERS = {
    "empty": b"",
    "newline": b"\n",
    "NUL": b"\0" * 64,
    "UTF-16": "# a.jpg\n1 0 0 1 1\n".encode("utf-16"),
    "binary": bytes(range(256)) * 8,
    "deep": b"[" * 100_000,
    "digits": b"9" * 6000,
}


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """``whole`` with one to three faults."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(
            st.sampled_from(["flip", "cut", "gap", "token", "again", "ends", "mark", "junk", "lines"])
        )
        if kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[place:]
        elif kind == "gap":
            del content[place : place + draw(st.integers(1, 100))]
        elif kind == "token":  # in the place of the word there
            ends = [content.find(end, place) for end in b' \n,":]}']
            end = min([found for found in ends if found >= 0], default=place)
            start = max(content.rfind(mark, 0, place) for mark in b' \n,":[{') + 1
            content[start:end] = draw(st.sampled_from(TOKENS))
        elif kind == "again":
            content[place:place] = content[place : place + draw(st.integers(1, 100))]
        elif kind == "ends":
            content = content.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\n\n"])))
        elif kind == "mark":
            content[:0] = b"\xef\xbb\xbf"
        elif kind == "junk":
            content[place:place] = draw(st.binary(max_size=20))
        else:
            lines = content.split(b"\n")
            del lines[draw(st.integers(0, len(lines) - 1))]
            content = bytearray(b"\n".join(lines))
    return bytes(content)


def check_annotations(found: list[ImageAnnotation]) -> None:
    for annotation in found:
        assert annotation.path and not set("\0\n") & set(annotation.path)
        assert np.isfinite(annotation.boxes_xywh_norm).all() and set(annotation.labels.tolist()) <= {1, 2}


def read_list(path: Path) -> None:
    check_annotations(read_annotations(path))


def at(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Reads the folder of a file that has this name in it."""

    def read_folder(path: Path) -> object:
        path.rename(path.with_name(name)) if path.exists() else None
        return read(path.parent)

    return read_folder


def read_prediction(path: Path) -> None:
    found, _ = predictions.read_predictions(path.parent, [path.stem, path.stem])
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
    assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all() and set(found.labels.tolist()) <= {1, 2}


LABELS = {"/m/0dzct": 1, "/m/04yx4": 2, "/m/01g317": 2}


def read_boxes_csv(path: Path) -> None:
    output = path.parent / "list" / "list.txt"
    main(["openimages", str(path), "--output", str(output)])
    read_list(output)


def read_image_labels(path: Path) -> None:
    boxes = path.with_name("boxes.csv")
    boxes.write_text(BOXES_CSV)
    output = path.parent / "list" / "list.txt"
    options = "--output", str(output), "--one_class", "drop", "--image_labels", str(path)
    main(["openimages", str(boxes), *options])
    openimages.read_ground_truth(boxes, path)


def read_wider(path: Path) -> None:
    for image in read_wider_text(path):
        assert np.isfinite(image.boxes_xywh).all() and "\0" not in image.path
    widerface.read_ground_truth(path)


VOC = """<annotation>
<filename>a.jpg</filename><size><width>10</width><height>20</height></size>
<object><name>person</name><bndbox><xmin>1</xmin><xmax>5</xmax><ymin>2</ymin><ymax>9</ymax></bndbox></object>
</annotation>
"""


def read_labels_of_yolo(folder: Path) -> None:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "a.jpg").touch()
    (part,) = read_yolo(folder, folder / "images")
    names = {"0": "face", "1": "person"}
    check_part(folder, part, {name: names[name] for name in part.names if name in names})


def read_data_yaml(folder: Path) -> None:
    for kind, text in (("images", ""), ("labels", "0 0.5 0.5 0.2 0.2\n")):
        (folder / "train" / kind).mkdir(parents=True, exist_ok=True)
        (folder / "train" / kind / f"a.{'txt' if text else 'jpg'}").write_text(text)
    for part in read_yolo(folder):
        check_part(folder, part)


def read_voc_file(path: Path) -> None:
    check_part(path, read_voc(path.parent))


def check_part(path: Path, part: Part, given: dict[str, str] | None = None) -> None:
    check_annotations(list(part.annotations(match_classes(path, [part], given or {}))))


def read_results(folder: Path) -> None:
    with RunLog(folder).open(2, 3):
        pass


def read_picture(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # Pillow's about odd EXIF
        try:
            height, width = read_size(path)
            assert height > 0 < width
        except DataError:
            pass
        image = read_image(path)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size


def cells(items: list) -> np.ndarray:
    column = np.empty((len(items), 1), object)
    for row, item in enumerate(items):
        column[row, 0] = item
    return column


def write_mat_files(folder: Path) -> None:
    """The benchmark's four files for two events and three images."""
    boxes = [[np.array([[1, 2, 3, 4], [5, 6, 7, 8.0]]), np.zeros((0, 4))], [np.array([[1, 1, 9, 9.0]])]]
    faces = {
        "face_bbx_list": cells([cells(event) for event in boxes]),
        "event_list": cells(["0--A", "1--B"]),
        "file_list": cells([cells(["a", "b"]), cells(["c"])]),
    }
    savemat(folder / "wider_face_val.mat", faces, do_compression=True)
    counted = [[np.array([[1], [2]]), np.zeros((0, 1))], [np.array([[1]])]]
    for name in widerface.SUBSETS:
        content = {"gt_list": cells([cells(event) for event in counted])}
        savemat(folder / f"wider_{name}_val.mat", content, do_compression=True)


def read_mat(name: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        folder = path.parent / "mat"
        folder.mkdir()
        write_mat_files(folder)
        (folder / name).unlink()
        if path.exists():
            path.rename(folder / name)
        truths = widerface.read_ground_truth(folder)
        assert truths.boxes.shape == (truths.offsets[-1], 4) and np.isfinite(truths.boxes).all()

    return read


def mat_file(name: str) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        write_mat_files(folder)
        return (folder / name).read_bytes()

    return make


def picture(kind: str, **options: object) -> Callable[[Path], bytes]:
    def make(_: Path) -> bytes:
        noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
        image = Image.fromarray(cv2.resize(noise, (64, 48))).convert("CMYK" if "cmyk" in options else "RGB")
        buffer = io.BytesIO()
        image.save(buffer, kind, **{k: v for k, v in options.items() if k != "cmyk"})
        return buffer.getvalue()

    return make


def weights_file(_: Path) -> bytes:
    buffer = io.BytesIO()
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.zeros(3)}
    torch.save({"epoch": 3, "state_dict": tensors}, buffer)
    return buffer.getvalue()


def zip_file(_: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", b"hello" * 100)
        archive.writestr("c.jpg", b"x" * 50)
    return buffer.getvalue()


LIST = "# 0--A/a b.jpg\n1 0.1 0.1 0.2 0.2\n# c.png\n# d.jpg\n2 0 0 1 1\n1 0 0 .5 5e-1\n"

#: By kind: the file's ending, a good one (text, or what makes it), and its reader.
READERS: dict[str, tuple[str, str | Callable[[Path], bytes], Callable[[Path], object]]] = {
    "annotation list": (".txt", LIST, read_list),
    "dataset.json": (
        ".json",
        '{"labelled_classes": ["face", "person"]}',
        at("dataset.json", lambda folder: labelled_classes(folder / "list.txt")),
    ),
    "list of images": (".txt", "/a.jpg\n/b c.png\n", read_image_list),
    "list for detect": (".txt", "a.jpg\nb c.png\n", lambda path: expand_inputs([str(path)])),
    "prediction": (".txt", "a\n2\n541.25 354.5 36.75 45.1 0.99 1\n12 8.5 20 41 0.4321 2\n", read_prediction),
    "boxes.csv": (".csv", BOXES_CSV, read_boxes_csv),
    "boxes.csv.gz": (".csv.gz", lambda _: gzip.compress(BOXES_CSV.encode()), read_boxes_csv),
    "boxes.csv of the evaluator": (".csv", BOXES_CSV, openimages.read_ground_truth),
    "boxes.csv.gz of the evaluator": (
        ".csv.gz",
        lambda _: gzip.compress(BOXES_CSV.encode()),
        openimages.read_ground_truth,
    ),
    "ids of boxes.csv": (".csv", BOXES_CSV, lambda path: image_ids(path, LABELS)),
    "image labels": (
        ".csv",
        "ImageID,Source,LabelName,Confidence\n000a,verification,/m/0dzct,1\n000b,verification,/m/0dzct,0\n",
        read_image_labels,
    ),
    "WIDER text": (".txt", WIDER_TEXT, read_wider),
    "wider_face_val.mat": (".mat", mat_file("wider_face_val.mat"), read_mat("wider_face_val.mat")),
    "wider_easy_val.mat": (".mat", mat_file("wider_easy_val.mat"), read_mat("wider_easy_val.mat")),
    "COCO": (".json", json.dumps(COCO), lambda path: check_part(path, read_coco(path))),
    "COCO detections": (
        ".json",
        json.dumps(DETECTIONS),
        lambda path: read_coco_detections(path, {"0": "person"}),
    ),
    "data.yaml": (
        ".yaml",
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['face', 'person']\n",
        at("data.yaml", read_data_yaml),
    ),
    "Pascal VOC": (".xml", VOC, read_voc_file),
    "YOLO": (".txt", "0 0.5 0.5 0.2 0.2\n1 0.1 0.2 0.3 0.4\n", at("a.txt", read_labels_of_yolo)),
    "sums": ("", f"{'a' * 64}  images/1.jpg\n{'b' * 64}  images/2.jpg\n", read_sums),
    "results.csv": (".csv", "epoch,steps,lr\n1,10,0.001\n2,10,0.001\n", at("results.csv", read_results)),
    "zip": (".zip", zip_file, lambda path: unpack_zip(path, path.parent / "out", 10**6)),
    "weights": (".pth", weights_file, read_checkpoint),
    "jpg": (".jpg", picture("JPEG"), read_picture),
    "jpg, progressive": (".jpg", picture("JPEG", progressive=True), read_picture),
    "jpg, CMYK": (".jpg", picture("JPEG", cmyk=True), read_picture),
    "png": (".png", picture("PNG"), read_picture),
    "gif": (".gif", picture("GIF"), read_picture),
    "webp": (".webp", picture("WEBP"), read_picture),
    "bmp": (".bmp", picture("BMP"), read_picture),
    "tif": (".tif", picture("TIFF", compression="tiff_lzw"), read_picture),
    "png, named jpg": (".jpg", picture("PNG"), read_picture),
}


def made(kind: str, factory: pytest.TempPathFactory) -> tuple[bytes, Callable[[], Path]]:
    """The good file of a kind, and what gives a fresh path for the next one."""
    suffix, content, _ = READERS[kind]
    whole = content.encode() if isinstance(content, str) else content(factory.mktemp("whole"))
    return whole, lambda: factory.mktemp("case") / f"file{suffix}"


def read(kind: str, path: Path) -> None:
    """Reads a file; nothing but a DataError of one line that names it may come."""
    try:
        READERS[kind][2](path)
    except DataError as error:
        named = str(path.parent) in str(error) or path.name in str(error)
        assert named and "\n" not in str(error), str(error)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files(kind, tmp_path_factory, capsys):
    whole, fresh = made(kind, tmp_path_factory)
    path = fresh()
    path.write_bytes(whole)
    READERS[kind][2](path)

    @hostile
    @given(damaged(whole))
    def attack(content: bytes) -> None:
        path = fresh()
        path.write_bytes(content)
        read(kind, path)

    attack()


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.filterwarnings("ignore")
def test_files_of_another_kind(kind, tmp_path_factory, capsys):
    _, fresh = made(kind, tmp_path_factory)
    read(kind, fresh())  # no such file
    path = fresh()
    path.mkdir()
    read(kind, path)
    for content in STRANGERS.values():
        path = fresh()
        path.write_bytes(content)
        read(kind, path)


class Evil:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def odd_checkpoints(network: RetinaFace) -> dict[str, object]:
    """What a file could hold in the place of a network."""
    weights = {name: tensor for name, tensor in network.state_dict().items() if "Head.0." in name}
    config = network.cfg.to_dict()
    good = {"format": "retinaface_2cls/1", "config": config, "state_dict": weights}
    head = "BboxHead.0.conv1x1.weight"
    fields = {
        "backbone": ["x", 5, None, []],
        "name": [5, None],
        "fpn_channels": [0, -1, 10**9, "x", 2.5, None, True],
        "backbone_channels": [5, (0, 0, 0), ("a", "b", "c"), (10**9,) * 3],
        "strides": [(0, 0, 0), (-8, -16, -32), "abc"],
        "min_sizes": [(), 5, (1, 2, 3), ((), (), ()), (("a",),) * 3, ((1,) * 10**5,) * 3],
        "heights_over_widths": [(), 5, (0,), ("a",), (-1.0,), (float("nan"),) * 3],
        "variances": [(), (0, 0), 5, ("a", "b"), (0.1,)],
        "class_names": [(), 5, (1, 2), ("x",), ("face", "person", "dog")],
        "image_size": ["x", -1],
        "clip_priors": ["x", None],
    }
    tensors = [
        torch.tensor(1.0),
        torch.zeros(0),
        torch.zeros(24, 64, 1, 1).to_sparse(),
        torch.zeros(24, 64, 1, 1, device="meta"),
        torch.zeros(24, 64, 1, 1, dtype=torch.complex64),
    ]
    return (
        {"code": Evil(), "code beside weights": {**good, "x": Evil()}}
        | {f"value {v}": v for v in (None, 1, "x", [], {}, {"a": 1}, {1: torch.zeros(1)})}
        | {f"table {v}": {"state_dict": v} for v in (None, 5, [], {}, {1: torch.zeros(1)})}
        | {f"config {v}": good | {"config": v} for v in (None, 5, "x", [], {}, {"a": 1})}
        | {
            f"{name} {str(v)[:30]}": good | {"config": config | {name: v}}
            for name, values in fields.items()
            for v in values
        }
        | {f"head {i}": {"state_dict": {**weights, head: v}} for i, v in enumerate(tensors)}
        | {f"own head {i}": good | {"state_dict": {**weights, head: v}} for i, v in enumerate(tensors)}
    )


def test_checkpoints_of_anything_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    for name, content in odd_checkpoints(RetinaFace(cfg_mnet)).items():
        torch.save(content, path)
        with pytest.raises(DataError) as error:
            load_network(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value), name


def test_a_byte_that_changed_in_the_weights_is_noticed(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, RetinaFace(cfg_mnet))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        load_network(path)


def test_faces_that_an_image_does_not_have_are_refused(tmp_path):
    write_mat_files(tmp_path)
    for index in (0, 3):
        counted = [cells([np.array([[1], [index]]), np.zeros((0, 1))]), cells([np.array([[1]])])]
        savemat(tmp_path / "wider_hard_val.mat", {"gt_list": cells(counted)})
        with pytest.raises(DataError, match=r"wider_hard_val\.mat: found face . of 0--A/a, which has 2"):
            widerface.read_ground_truth(tmp_path)


def test_byte_order_marks_are_no_part_of_a_name(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(LIST, encoding="utf-8-sig")
    assert next(iter_annotations(path)).path == "0--A/a b.jpg"
    assert read_image_list(path) == ["0--A/a b.jpg", "c.png", "d.jpg"]
