"""Prepares data: Open Images and WIDER FACE to clean two-class lists, step by step.

Every step reads and writes annotation lists, prints what it changed and can be run again. The usual order:

  python3 prep_data.py download --split validation --save_folder data/open_images
  python3 prep_data.py openimages data/open_images/validation/boxes.csv --output data/oi/val/wider_val_gt.txt
  python3 prep_data.py link data/open_images/validation/images data/oi/val
  python3 prep_data.py pseudo_label data/oi/val/wider_val_gt.txt --classes face \\
      --trained_model weights/mobilenet0.25_Final.pth --output data/oi_faces/val/wider_val_gt.txt
  python3 prep_data.py clean data/oi_faces/val/wider_val_gt.txt --output data/oi_clean/val/wider_val_gt.txt
  python3 prep_data.py check data/oi_clean/val/wider_val_gt.txt
  python3 prep_data.py draw data/oi_clean/val/wider_val_gt.txt --output val.jpg
  python3 prep_data.py anchors data/oi_clean/val/wider_val_gt.txt --output anchors.png

`python3 prep_data.py STEP -h` explains a step. A list is text, `# image` then `label x y w h` a box (1 face,
2 person, shares of the image's size); its images are in the folder `images` beside it, or in --images.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from importlib import import_module

from utils.cli import Formatter, parser_of, run

#: Module and one line of help by step. The module has `<step>_arguments(parser)` and `<step>(args) -> int`.
STEPS: dict[str, tuple[str, str]] = {
    "download": ("data.download", "Open Images: box CSV, class names and images by plain HTTPS"),
    "unpack": ("data.download", "says where WIDER FACE is, and unpacks its archives"),
    "openimages": ("data.open_images", "Open Images box CSVs (V4 to V7, MIAP) to an annotation list"),
    "widerface": ("data.wider_text", "the official WIDER FACE text annotation to a list of faces"),
    "pseudo_label": ("models.pseudo_label", "adds boxes of a class that another model finds"),
    "clean": ("data.clean", "cuts boxes to the image, joins repeated ones, reports what looks wrong"),
    "anchors": ("data.anchors", "box statistics, and how well the priors cover the boxes"),
    "link": ("data.lists", "makes the symbolic link images beside a list"),
    "split": ("data.lists", "splits a list into training and validation by image"),
    "merge": ("data.lists", "merges lists that are labelled for the same classes"),
    "check": ("data.lists", "decodes every image of a list and looks at every box"),
    "stats": ("data.lists", "counts images and boxes of a list"),
    "draw": ("data.lists", "a contact sheet of images of a list with their boxes"),
    "export": ("data.convert", "a list to COCO JSON or to a YOLO folder"),
    "import": ("data.convert", "COCO JSON or YOLO labels to a list"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    argv = sys.argv[1:] if argv is None else argv
    parser = parser_of(__doc__)
    steps = parser.add_subparsers(title="steps", metavar="STEP", required=True)
    for name, (_, line) in STEPS.items():
        step = steps.add_parser(name, help=line, formatter_class=Formatter, allow_abbrev=False)
        if argv[:1] == [name]:
            add_step(step, name)
    return parser.parse_args(argv)


def add_step(parser: argparse.ArgumentParser, name: str) -> None:
    """Gives ``parser`` the arguments of a step, its docstring and what it runs; imports its module alone."""
    module = import_module(STEPS[name][0])
    function = getattr(module, "import_" if name == "import" else name)
    getattr(module, f"{name}_arguments")(parser)
    parser.description = inspect.getdoc(function)
    parser.set_defaults(function=function)
<<<<<<< HEAD
=======
    return parser


def _add_list(parser: argparse.ArgumentParser, with_images: bool = True) -> None:
    parser.add_argument("list", type=Path, help="annotation list")
    if with_images:
        parser.add_argument(
            "--images", type=Path, metavar="FOLDER", help="images (default: images beside the list)"
        )


def _add_output(parser: argparse.ArgumentParser, help: str = "list to write") -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=help)


def _say(rows: Iterable[tuple[str, object]]) -> None:
    rows = [(str(name), str(value)) for name, value in rows]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _add_download(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, download, "--split validation --output data/open_images --limit 1000")
    parser.add_argument("--split", choices=["train", "validation", "test"], required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    group = parser.add_argument_group("what")
    group.add_argument(
        "--classes",
        nargs="+",
        default=["Human face", "Person", "Man", "Woman", "Boy", "Girl"],
        metavar="NAME",
        help="images with a box of these (default: Human face, Person, Man, Woman, Boy, Girl)",
    )
    group.add_argument("--list", type=Path, metavar="FILE", help="the images of this annotation list instead")
    group.add_argument("--limit", type=number(int, 1), metavar="N", help="at most the first N images")
    group.add_argument("--annotations_only", action="store_true", help="no images")
    group.add_argument("--image_labels", action="store_true", help="also the image-level labels")
    group.add_argument("--miap", action="store_true", help="also the MIAP boxes, which have all persons")
    group.add_argument("--verify", action="store_true", help="only compare the files with the manifest")
    group = parser.add_argument_group("how")
    group.add_argument("--base_url", metavar="URL", help="a mirror with the layout of the official servers")
    group.add_argument(
        "--workers", type=number(int, 1, 256), default=16, metavar="N", help="downloads at once"
    )
    group.add_argument("--tries", type=number(int, 1, 100), default=6, metavar="N", help="attempts a file")
    seconds = number(float, 0, 3600, above=True)
    group.add_argument("--timeout", type=seconds, default=30.0, metavar="S", help="seconds without data")
    group.add_argument(
        "--wait",
        type=number(float, 0, 3600),
        default=0.5,
        metavar="S",
        help="first pause, doubled every time",
    )


def download(args: argparse.Namespace) -> int:
    """Open Images: box CSV, class names and images by plain HTTPS. What is there already stays; a run
    that was cut off goes on where it was."""
    from data import download as d
    from data.open_images import Source, image_ids, label_ids
    from utils.files import locked

    folder = args.output / args.split
    if args.verify:
        problems = list(d.verify(folder))
        print("\n".join(problems) if problems else f"{folder}: every file is as it was downloaded")
        return BAD_DATA if problems else OK
    base = args.base_url.rstrip("/") if args.base_url else None
    policy = d.Policy(args.tries, args.timeout, args.wait)
    names = {"class-descriptions.csv": d.CLASS_DESCRIPTIONS, "boxes.csv": d.BOXES[args.split]}
    if args.image_labels:
        names["image-labels.csv"] = d.IMAGE_LABELS.format(split=args.split)
    if args.miap:
        names["miap-boxes.csv"] = d.MIAP.format(split="val" if args.split == "validation" else args.split)
    with locked(folder):
        tables = [d.Item(f"{base or d.ANNOTATIONS_URL}/{url}", name) for name, url in names.items()]
        complete = args.list is not None or _download(tables, folder, policy, 2, "annotations")
        if complete and not args.annotations_only:
            if args.list is not None:
                ids: Iterable[str] = (Path(a.path).stem for a in iter_annotations(args.list))
            else:
                labels = label_ids(args.classes, folder / "class-descriptions.csv")
                ids = image_ids(Source((folder / "boxes.csv",), dict.fromkeys(labels.values(), 1)))
            ids = islice(dict.fromkeys(ids), args.limit)
            items = [d.image_item(image_id, args.split, base) for image_id in ids]
            complete = _download(items, folder, policy, args.workers, "images")
    return OK if complete else BAD_DATA


def _download(items: list, folder: Path, policy: object, workers: int, what: str) -> bool:
    """Downloads and says what happened; whether all that the server has is there."""
    from data.download import MISSING, download_all

    with tqdm(total=len(items), desc=what, unit="file", disable=None) as bar:
        summary = download_all(items, folder, policy, workers, bar.update)
    _say(
        [
            (f"{what} downloaded", f"{summary.fetched} ({summary.bytes / 1e6:.1f} MB)"),
            ("there already", summary.there),
            (
                "not on the server",
                f"{len(summary.missing)}{f', see {folder / MISSING}' if summary.missing else ''}",
            ),
            ("failed", len(summary.failed)),
        ]
    )
    for path, reason in list(summary.failed.items())[:5]:
        warn(f"{path}: {reason}")
    if summary.failed:
        warn(f"{len(summary.failed)} files are not there yet; start the same command again")
    if what == "annotations" and summary.missing:
        raise DataError(
            f"{next(iter(summary.missing.values()))}: the server does not have it; check --base_url"
        )
    return not summary.failed


def _add_unpack(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, unpack, "WIDER_train.zip WIDER_val.zip wider_face_split.zip --output data/wider")
    parser.add_argument("zip", type=Path, nargs="*", help="archives; none: where to get them")
    parser.add_argument("--output", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--max_gb",
        type=number(float, 0, 2**20, above=True),
        default=10.0,
        metavar="GB",
        help="unpacked size of an archive",
    )


def unpack(args: argparse.Namespace) -> int:
    """Says where WIDER FACE is, and unpacks its archives. Names are checked before anything is written;
    files that are there already stay."""
    from data.archives import WIDER_FACE
    from data.archives import unpack as unpack_archive
    from utils.files import locked

    if not args.zip:
        print(WIDER_FACE)
        return OK
    if args.output is None:
        raise UsageError("give the folder to unpack to with --output")
    with locked(args.output):
        for archive in args.zip:
            counts: Counter[str] = Counter()
            unpack_archive(archive, args.output, int(args.max_gb * 1e9), counts)
            print(f"{archive}: {', '.join(f'{count} {name}' for name, count in counts.items()) or 'empty'}")
    return OK


def _add_openimages(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, openimages, "train-annotations-bbox.csv --output data/oi/train/wider_train_gt.txt")
    parser.add_argument("csv", type=Path, nargs="+", help="box CSV, plain or .gz")
    _add_output(parser, "list to write; dataset.json goes beside it")
    group = parser.add_argument_group("classes")
    names = {"face": ["Human face"], "person": ["Person", "Man", "Woman", "Boy", "Girl"]}
    for class_name, default in names.items():
        group.add_argument(
            f"--{class_name}",
            nargs="*",
            default=default,
            metavar="NAME",
            help=f"names of the boxes that become {class_name}; none to leave the class out "
            f"(default: {', '.join(default)})",
        )
    group.add_argument(
        "--class_descriptions",
        type=Path,
        metavar="CSV",
        help="label ids and names, e.g. oidv7-class-descriptions-boxable.csv (default: the six names above)",
    )
    group.add_argument(
        "--miap",
        type=Path,
        nargs="+",
        metavar="CSV",
        help="take the persons from these MIAP files, which box all of them, and only the images in them",
    )
    group = parser.add_argument_group("choices")
    for name, what, default in (
        ("group_of", "one box around more than five that touch", "keep"),
        ("depiction", "drawings, statues and the like", "drop"),
        ("inside", "seen from within", "keep"),
    ):
        group.add_argument(
            f"--{name}",
            choices=["keep", "drop", "drop_image"],
            default=default,
            help=f"boxes marked so ({what}): keep, drop them, or drop their images",
        )
    group.add_argument(
        "--one_class",
        choices=["keep", "drop", "split"],
        default="keep",
        help="images with boxes of one class alone, where the other may be there unlabelled: keep, drop, or "
        "split them into the folders both, face and person beside --output, each with its dataset.json",
    )
    group.add_argument(
        "--image_labels",
        type=Path,
        nargs="+",
        metavar="CSV",
        help="human-verified image labels; a class that is verified, present or absent, counts as labelled",
    )
    group.add_argument("--images", type=Path, metavar="FOLDER", help="leave out images that are not there")
    group.add_argument(
        "--skip_bad", action="store_true", help="pass over faulty rows, counted (default: stop at the first)"
    )


def openimages(args: argparse.Namespace) -> int:
    """Open Images box CSVs (V4 to V7, MIAP) to an annotation list. All boxes of the chosen classes are
    taken, whichever class an image was picked for."""
    from data.open_images import Choices, Source, convert, label_ids

    labels = {
        mid: CLASS_LABELS[name]
        for name in CLASS_LABELS
        for mid in label_ids(getattr(args, name), args.class_descriptions).values()
    }
    if not labels:
        raise UsageError("no class is left: give names to --face or --person")
    sources = [Source(tuple(args.csv), labels)]
    if args.miap:
        persons = {mid: label for mid, label in labels.items() if label == CLASS_LABELS["person"]}
        faces = {mid: label for mid, label in labels.items() if mid not in persons}
        sources = [Source(tuple(args.miap), persons), Source(tuple(args.csv), faces, known_images_only=True)]
    choices = Choices(args.group_of, args.depiction, args.inside, args.one_class, args.skip_bad)
    image_labels = Source(tuple(args.image_labels), labels) if args.image_labels else None
    report = convert(sources, args.output, choices, args.images, image_labels)
    for message in report.bad_rows[:10]:
        warn(message)
    _say(
        [
            ("rows read", report.rows),
            *((f"boxes of {name}", count) for name, count in report.boxes.items()),
            *(
                (f"boxes marked {name}, {getattr(args, name)}", count)
                for name, count in report.dropped.items()
            ),
            ("images with boxes", report.images["all"]),
            *(
                (f"  of {name}{'' if name == 'both' else ' alone'}", report.images[name])
                for name in ("both", *CLASS_LABELS)
            ),
            ("images whose rows were apart, joined", report.scattered),
            ("images without a file, left out", report.without_file),
            ("faulty rows passed over", len(report.bad_rows)),
        ]
    )
    for path, images in report.lists.items():
        print(f"{path}: {images} images, labelled for {' and '.join(labelled_classes(path))}")
    alone = report.images["face"] + report.images["person"]
    if args.one_class == "keep" and alone and args.face and args.person:
        warn("images of one class may hold the other, unlabelled: see pseudo_label and --one_class split")
    return OK


def _add_widerface(steps: argparse._SubParsersAction) -> None:
    parser = _step(
        steps,
        widerface,
        "wider_face_val_bbx_gt.txt --images WIDER_val/images --output data/widerface/val/wider_val_gt.txt",
    )
    parser.add_argument("text", type=Path, help="official text annotation, wider_face_{train,val}_bbx_gt.txt")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="images, by event")
    _add_output(parser, "list to write; dataset.json goes beside it")
    parser.add_argument("--keep_invalid", action="store_true", help="keep faces that are marked invalid")
    parser.add_argument("--skip_missing", action="store_true", help="leave out images without a usable file")


def widerface(args: argparse.Namespace) -> int:
    """The official WIDER FACE text annotation to an annotation list of faces. Images without faces are
    kept; faces without area or marked invalid are left out and counted."""
    from data.wider_text import wider_annotations
    from utils.images import image_folder

    counts: Counter[str] = Counter()
    images_dir = image_folder(args.text, args.images)
    faces = wider_annotations(args.text, images_dir, counts, args.keep_invalid, args.skip_missing)
    images = write_list(args.output, faces, ["face"])
    _say(counts.items())
    print(f"{args.output}: {images} images, labelled for face")
    return OK


def _add_pseudo_label(steps: argparse._SubParsersAction) -> None:
    parser = _step(
        steps,
        pseudo_label,
        "oi/val/gt.txt --classes face --trained_model mobilenet0.25_Final.pth --output oi_faces/val/gt.txt\n"
        "  python3 prep_data.py pseudo_label wf/val/gt.txt --classes person --detections yolo.json \\\n"
        "      --category 0=person --output wf_persons/val/gt.txt\n"
        "  torchrun --nproc_per_node 4 prep_data.py pseudo_label ...    # the images shared out\n"
        "  python3 prep_data.py pseudo_label oi_faces/val/gt.txt --take_out --score 0.9 --output sure/gt.txt",
    )
    _add_list(parser)
    _add_output(parser, "list to write; FILE.pseudo.jsonl beside it says where each added box comes from")
    parser.add_argument(
        "--classes", nargs="+", choices=list(CLASS_LABELS), default=["face"], help="classes to add"
    )
    group = parser.add_argument_group("where the boxes come from")
    group.add_argument(
        "--trained_model", type=Path, metavar="FILE", help="checkpoint of one or two classes, or an ONNX file"
    )
    group.add_argument("--detections", type=Path, metavar="JSON", help="detections in COCO's result format")
    group.add_argument(
        "--category", nargs="+", default=[], metavar="ID=CLASS", help="COCO category ids, e.g. 0=person"
    )
    group.add_argument(
        "--coco_images", type=Path, metavar="JSON", help="COCO file that names the image ids' files"
    )
    group.add_argument("--source", metavar="NAME", help="name in the side file (default: the file's)")
    group.add_argument(
        "--take_out", action="store_true", help="take out what scores less than --score instead"
    )
    group.add_argument(
        "--side_file", type=Path, metavar="FILE", help="added boxes of the list (default: beside it)"
    )
    group = parser.add_argument_group("which are added")
    group.add_argument("--score", type=number(float, 0, 1), default=0.7, metavar="S", help="least score")
    group.add_argument(
        "--min_size", type=number(float, 0), default=8.0, metavar="PIXELS", help="least width and height"
    )
    group.add_argument(
        "--max_iou",
        type=number(float, 0, 1),
        default=0.3,
        metavar="IOU",
        help="overlap allowed with a box of the class",
    )
    group = parser.add_argument_group("how")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes the fastest")
    group.add_argument(
        "--long_side", type=number(int, 1, 2**16), metavar="PIXELS", help="resize to this longer side"
    )
    group.add_argument(
        "--batch_size", type=number(int, 1), default=1, metavar="N", help="images a forward pass"
    )


def pseudo_label(args: argparse.Namespace) -> int:
    """Adds boxes of a class from another model where the list has none. The model is a checkpoint of this
    project, a one-class RetinaFace, an ONNX file, or any other by its detections as COCO JSON."""
    from models import pseudo_label as p
    from utils.images import image_folder

    if args.take_out:
        return _take_out(args)
    if (args.trained_model is None) == (args.detections is None):
        raise UsageError("expected one of --trained_model, --detections and --take_out")
    limits = p.Limits(args.score, args.min_size, args.max_iou)
    images_dir = image_folder(args.list, args.images)
    labelled = {*labelled_classes(args.list), *args.classes}
    check_labelled_classes(args.output, labelled)
    with ExitStack() as stack:
        if args.detections:
            coco = p.CocoDetections(args.detections, _categories(args), args.coco_images)
            found = p.detections_of(coco, iter_annotations(args.list), images_dir)
            source, first = args.source or coco.source, True
        else:
            from models.arguments import pick_device
            from models.detector import Detector, InputSize, Thresholds
            from models.onnx_network import is_onnx
            from utils.processes import keep_freed_memory, processes, rank, world_size

            keep_freed_memory()
            on_cpu = is_onnx(args.trained_model) and args.device == "auto"
            device = stack.enter_context(processes(pick_device(args.device, on_cpu)))
            detector = Detector.from_checkpoint(
                args.trained_model,
                device=device,
                thresholds=Thresholds(score=max(0.0, args.score - 1e-6)),
                classes=args.classes,
                input_size=InputSize(args.long_side),
            )
            own = islice(iter_annotations(args.list), rank(), None, world_size())
            found = p.detect_in(detector, own, images_dir, args.batch_size)
            source, first = args.source or args.trained_model.name, rank() == 0
        total = sum(1 for _ in iter_annotations(args.list)) if first else None
        added: dict[str, list[p.AddedBox]] = {}
        for annotation, image_size, detections in tqdm(
            found, desc="images", total=total, disable=not first or None
        ):
            if boxes := p.boxes_to_add(annotation, detections, image_size, limits, source):
                added[annotation.path] = boxes
        if args.trained_model:
            from utils.processes import gather_from_processes

            added = gather_from_processes(added)
    if not first:
        return OK
    labels = Counter(CLASS_NAMES[box.label] for boxes in added.values() for box in boxes)
    noted = p.read_side_file(args.side_file or p.side_file(args.list))

    def merged() -> Iterator[ImageAnnotation]:
        for annotation in iter_annotations(args.list):
            boxes = added.get(annotation.path, [])
            noted.extend(boxes)
            yield p.with_boxes(annotation, boxes)

    images = write_list(args.output, merged(), labelled)
    p.write_side_file(p.side_file(args.output), noted)
    _say([(f"boxes of {name} added", labels[name]) for name in args.classes] + [("in images", len(added))])
    if args.detections and (unused := coco.unused()):
        warn(f"{args.detections}: {len(unused)} of its images are not in the list, e.g. {unused[0]}")
    print(f"{args.output}: {images} images, labelled for {' and '.join(labelled_classes(args.output))}")
    return OK


def _categories(args: argparse.Namespace) -> dict[int, str]:
    found = {}
    for text in args.category:
        number, _, name = text.partition("=")
        if not number.isdecimal() or name not in args.classes:
            raise UsageError(f"--category {text}: expected ID=CLASS with one of {', '.join(args.classes)}")
        found[int(number)] = name
    if not found:
        raise UsageError("give the detections' category ids, e.g. --category 0=person")
    return found


def _take_out(args: argparse.Namespace) -> int:
    from models import pseudo_label as p

    side = args.side_file or p.side_file(args.list)
    noted = p.read_side_file(side)
    if not noted:
        raise DataError(f"{side}: no boxes that pseudo_label added; nothing to take out")
    classes = {CLASS_LABELS[name] for name in args.classes}
    out = [
        box
        for box in noted
        if box.label in classes and box.score < args.score and args.source in (None, box.source)
    ]
    counts: Counter[str] = Counter()
    images = write_list(
        args.output, p.taken_out(iter_annotations(args.list), out, counts), labelled_classes(args.list)
    )
    p.write_side_file(p.side_file(args.output), [box for box in noted if box not in set(out)])
    _say([("boxes noted", len(noted)), ("to take out", len(out)), *counts.items()])
    print(f"{args.output}: {images} images")
    return OK


def _add_clean(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, clean, "data/oi/val/wider_val_gt.txt --output data/oi_clean/val/wider_val_gt.txt")
    _add_list(parser)
    _add_output(parser, "list to write; FILE.findings.jsonl and FILE.findings.jpg go beside it")
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--min_side",
        type=number(float, 0, 1),
        default=0.0,
        metavar="S",
        help="drop boxes with a side of at most this share",
    )
    group.add_argument(
        "--merge_iou", type=number(float, 0, 1), default=0.9, metavar="IOU", help="drop repeats above this"
    )
    group.add_argument(
        "--face_inside",
        type=number(float, 0, 1),
        default=0.5,
        metavar="S",
        help="report faces with less than this share inside every person",
    )


def clean(args: argparse.Namespace) -> int:
    """Boxes cut to the image, those without area dropped, repeated ones merged within a class, faces
    outside of every person reported. Images named again are joined."""
    from data.clean import REMOVING, RULES, Finding, Limits, iter_joined
    from data.clean import clean as clean_images
    from data.sheets import findings_sheet

    labelled = labelled_classes(args.list)
    limits = Limits(args.min_side, args.merge_iou, args.face_inside)
    if len(labelled) < len(
        CLASS_LABELS
    ):  # where persons are not labelled, every face would be outside of them
        limits = replace(limits, face_inside=0.0)
    joined: Counter[str] = Counter()
    by_rule: Counter[str] = Counter()
    boxes: Counter[str] = Counter()
    findings: list[Finding] = []

    def cleaned():
        for annotation, found in clean_images(iter_joined(args.list, joined), limits):
            findings.extend(found)
            by_rule.update(finding.rule for finding in found)
            boxes["kept"] += len(annotation)
            yield annotation

    images = write_list(args.output, cleaned(), labelled)
    report = args.output.with_name(f"{args.output.stem}.findings.jsonl")
    write_text(report, "".join(json.dumps(asdict(finding)) + "\n" for finding in findings))
    removed = sum(by_rule[rule] for rule in REMOVING)
    _say(
        [
            ("boxes read", boxes["kept"] + removed),
            *((f"  {rule}, {'dropped' if rule in REMOVING else 'kept'}", by_rule[rule]) for rule in RULES),
            ("boxes kept", boxes["kept"]),
            ("images named again, joined", joined["images joined"]),
        ]
    )
    print(f"{args.output}: {images} images; every finding is in {report}")
    images_dir = args.images or args.list.parent / "images"
    if findings and images_dir.is_dir():
        sheet = report.with_suffix(".jpg")
        findings_sheet(findings, args.list, images_dir, sheet)
        print(f"{sheet}: what was found, some of each rule")
    return OK


def _add_anchors(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, anchors, "data/oi/val/wider_val_gt.txt --output anchors.png")
    _add_list(parser)
    _add_output(parser, "plot to write; the numbers and the proposed configuration go to FILE.json")
    parser.add_argument(
        "--network", choices=list(NETWORKS), default="mobile0.25", help="whose priors to judge"
    )
    parser.add_argument(
        "--side", type=number(int, 1, 2**16), metavar="PIXELS", help="training side (default: the network's)"
    )
    parser.add_argument(
        "--image_size",
        type=number(int, 1, 2**16),
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="take this size for every image, where the images are not at hand",
    )
    parser.add_argument(
        "--clusters", type=number(int, 1, 1000), default=12, metavar="K", help="k-means for 1 to K clusters"
    )
    parser.add_argument("--seed", type=number(int, 0), default=0, metavar="N", help="of k-means")


def anchors(args: argparse.Namespace) -> int:
    """Box statistics, k-means of box shapes, and how well the priors cover the boxes. Sizes are pixels of
    the square training image. A configuration that covers more is proposed, if there is one."""
    from data import anchors as a
    from utils.images import image_folder

    cfg = NETWORKS[args.network]
    side = args.side or cfg.image_size
    images_dir = None if args.image_size else image_folder(args.list, args.images)
    shapes = a.read_shapes(args.list, side, images_dir, args.image_size)
    found = a.statistics(shapes)
    print(f"{len(shapes)} boxes in a square of {side} px; percentiles {', '.join(map(str, a.PERCENTILES))}")
    for name, columns in found.items():
        _say((f"{name} {key}", "".join(f"{v:8.2f}" for v in values)) for key, values in columns.items())

    sample = shapes.sample(a.FIT_BOXES, args.seed).boxes_cxcywh[:, 2:]
    clusters = [a.k_means(sample, k, args.seed) for k in range(1, args.clusters + 1)]
    print("\nk-means of the shapes: clusters, mean IoU, width x height")
    for k, (centres, mean_iou) in enumerate(clusters, 1):
        print(f"{k:3d}  {mean_iou:.3f}  {' '.join(f'{w:.0f}x{h:.0f}' for w, h in centres)}")

    recall = a.prior_recall(shapes, cfg)
    print(f"\nboxes with a prior of {cfg.name} at IoU {', '.join(map(str, a.IOUS))} or more")
    for row in recall:
        size = "all sizes" if row.bounds == a.ALL_SIZES else "{:g} to {:g} px".format(*row.bounds)
        print(f"{row.name:7} {size:14} {row.boxes:8d}" + "".join(f"{share:8.1%}" for share in row.shares))
    steps = a.ratio_steps(shapes, cfg)
    print("\nheight / width of the priors, and the mean of the classes' recalls at IoU 0.45")
    _say((", ".join(map(str, ratios)), f"{share:.1%}") for ratios, share in steps)

    proposal, before, after = a.propose(shapes, cfg)
    shown = {"min_sizes": proposal.min_sizes, "heights_over_widths": proposal.heights_over_widths}
    print(
        f"\nproposal, {before:.1%} to {after:.1%}: {json.dumps(shown)}" if after > before else "\nno proposal"
    )
    numbers = {
        "side": side,
        "percentiles": a.PERCENTILES,
        "statistics": found,
        "k_means": [{"mean_iou": mean_iou, "sizes": centres.tolist()} for centres, mean_iou in clusters],
        "recall": [asdict(row) | {"ious": a.IOUS} for row in recall],
        "ratio_steps": steps,
        "config": proposal.to_dict(),
    }
    a.plot(shapes, cfg, clusters, args.output)
    write_text(
        args.output.with_suffix(".json"), json.dumps(numbers, indent=1).replace("Infinity", "null") + "\n"
    )
    print(f"{args.output}, {args.output.with_suffix('.json')}: written")
    return OK


def _add_link(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, link, "WIDER_train/images data/widerface/train")
    parser.add_argument("source", type=Path, help="folder of the images")
    parser.add_argument("folder", type=Path, help="folder of the list, where the link images is made")


def link(args: argparse.Namespace) -> int:
    """Makes the symbolic link images beside a list."""
    from data.lists import link_images

    made = link_images(args.source, args.folder)
    print(f"{made} -> {made.readlink()}")
    return OK


def _add_split(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, split, "data/all/wider_gt.txt --output data/parts --val_share 0.1")
    _add_list(parser)
    _add_output(parser, "folder; the lists become train/wider_train_gt.txt and val/wider_val_gt.txt in it")
    parser.add_argument(
        "--val_share", type=number(float, 0, 1), default=0.1, metavar="S", help="for validation"
    )
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, metavar="N", help="another seed, another split"
    )
    parser.add_argument(
        "--by_name", action="store_true", help="do not read the images; equal ones may end in both parts"
    )


def split(args: argparse.Namespace) -> int:
    """Splits a list into training and validation by image. Equal images stay together; each part gets
    its link to the images."""
    from data.lists import link_images, split_annotations
    from utils.images import image_folder

    if not 0 < args.val_share < 1:
        raise UsageError(f"expected --val_share between 0 and 1, got {args.val_share}")
    images_dir = None if args.by_name else image_folder(args.list, args.images)
    parts = split_annotations(iter_annotations(args.list), args.val_share, args.seed, images_dir)
    for name, part in zip(("train", "val"), parts, strict=True):
        if not part:
            raise DataError(f"{args.list}: no image for {name}; expected two different images or more")
    for name, part in zip(("train", "val"), parts, strict=True):
        target = args.output / name / f"wider_{name}_gt.txt"
        write_list(target, part, labelled_classes(args.list))
        if images_dir is not None:
            link_images(images_dir, target.parent)
        print(f"{target}: {len(part)} images, {sum(map(len, part))} boxes")
    return OK


def _add_merge(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, merge, "a/train/gt.txt b/train/gt.txt --prefix a b --output ab/train/gt.txt")
    parser.add_argument("lists", type=Path, nargs="+", help="annotation lists")
    _add_output(parser)
    parser.add_argument(
        "--prefix", nargs="+", metavar="NAME", help="folder put before the image paths, one a list"
    )
    parser.add_argument(
        "--on_repeat",
        choices=["error", "first"],
        default="error",
        help="an image in two lists: stop, or keep the first",
    )


def merge(args: argparse.Namespace) -> int:
    """Merges lists that are labelled for the same classes. With --prefix the images are expected in one
    folder a prefix."""
    from data.lists import merge_annotations

    prefixes = args.prefix or [""] * len(args.lists)
    if len(prefixes) != len(args.lists):
        raise UsageError(f"expected one --prefix a list, got {len(prefixes)} for {len(args.lists)} lists")
    labelled = [labelled_classes(path) for path in args.lists]
    for path, names in zip(args.lists, labelled, strict=True):
        if names != labelled[0]:
            first = f"{args.lists[0]} for {' and '.join(labelled[0])}"
            raise DataError(
                f"{path} is labelled for {' and '.join(names)}, {first}: "
                f"add what is missing with pseudo_label first, or train on both lists"
            )
    merged = merge_annotations(args.lists, prefixes, args.on_repeat)
    images = write_list(args.output, merged, labelled[0])
    print(f"{args.output}: {images} images of {len(args.lists)} lists")
    return OK


def _add_check(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, check, "data/oi/val/wider_val_gt.txt")
    _add_list(parser)
    parser.add_argument("--no_cache", action="store_true", help="decode every image again")


def check(args: argparse.Namespace) -> int:
    """Decodes every image of a list and looks at every box. Images that decoded are remembered in
    .check.json beside the list; the exit code is 1 if anything is wrong."""
    from data.lists import check_list
    from utils.images import image_folder

    counts: Counter[str] = Counter()
    cache = None if args.no_cache else args.list.parent / ".check.json"
    problems, shown = 0, 20
    for problem in check_list(args.list, image_folder(args.list, args.images), cache, counts):
        problems += 1
        if problems <= shown:
            print(problem)
    if problems > shown:
        print(f"... and {problems - shown} more")
    _say([*counts.items(), ("problems", problems)])
    return BAD_DATA if problems else OK


def _add_stats(steps: argparse._SubParsersAction) -> None:
    _add_list(_step(steps, stats, "data/oi/val/wider_val_gt.txt"), with_images=False)


def stats(args: argparse.Namespace) -> int:
    """Counts images and boxes of a list."""
    from data.lists import list_statistics

    _say([*list_statistics(args.list).rows(), ("labelled for", " and ".join(labelled_classes(args.list)))])
    return OK


def _add_draw(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, draw, "data/oi/val/wider_val_gt.txt --output val.jpg --number 24")
    _add_list(parser)
    _add_output(parser, "image to write")
    parser.add_argument(
        "--number", type=number(int, 1, 10_000), default=24, metavar="N", help="images to show"
    )
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, metavar="N", help="another seed, other images"
    )


def draw(args: argparse.Namespace) -> int:
    """A contact sheet of images drawn by chance from a list, with their boxes."""
    from data.sheets import list_sheet
    from utils.images import image_folder

    shown = list_sheet(args.list, image_folder(args.list, args.images), args.output, args.number, args.seed)
    print(f"{args.output}: {shown} images; {CLASS_NAMES[1]} orange, {CLASS_NAMES[2]} blue")
    return OK


def _add_export(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, export, "data/oi/val/wider_val_gt.txt --format coco --output val.json")
    _add_list(parser)
    parser.add_argument("--format", choices=["coco", "yolo"], required=True)
    _add_output(parser, "JSON file for coco, folder for yolo")


def export(args: argparse.Namespace) -> int:
    """A list as COCO JSON or as a YOLO folder."""
    from data.convert import write_coco, write_yolo
    from utils.images import image_folder

    write = write_coco if args.format == "coco" else write_yolo
    images, boxes = write(args.output, iter_annotations(args.list), image_folder(args.list, args.images))
    print(f"{args.output}: {images} images, {boxes} boxes")
    return OK


def _add_import(steps: argparse._SubParsersAction) -> None:
    parser = _step(steps, import_, "instances_val.json --format coco --output data/coco/val/wider_val_gt.txt")
    parser.add_argument("source", type=Path, help="JSON file for coco, folder of label files for yolo")
    parser.add_argument("--format", choices=["coco", "yolo"], required=True)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="images; needed for yolo")
    parser.add_argument(
        "--category",
        nargs="+",
        default=[],
        metavar="NAME=CLASS",
        help="coco: names of categories, besides face and person; yolo: numbers (default: 0=face 1=person)",
    )
    _add_output(parser)


def import_(args: argparse.Namespace) -> int:
    """COCO JSON or YOLO labels to a list. The classes that the source names count as labelled."""
    from data.convert import read_coco, read_yolo
    from utils.images import image_folder

    classes = {}
    for text in args.category:
        name, _, class_name = text.rpartition("=")
        if not name or class_name not in CLASS_LABELS:
            raise UsageError(f"--category {text}: expected NAME=CLASS with one of {', '.join(CLASS_LABELS)}")
        classes[name] = class_name
    if args.format == "yolo":
        if args.images is None:
            raise UsageError(
                "give the images' folder with --images: a YOLO label file does not name its image"
            )
        if not all(name.isdecimal() for name in classes):
            raise UsageError("expected class numbers in --category, e.g. 0=person")
        numbers = {int(k): v for k, v in classes.items()} or {v - 1: k for k, v in CLASS_LABELS.items()}
        labelled = set(numbers.values())
        found = read_yolo(args.source, image_folder(args.source, args.images), numbers)
    else:
        labelled, found = read_coco(args.source, classes)
    images = write_list(args.output, found, labelled)
    print(f"{args.output}: {images} images, labelled for {' and '.join(labelled_classes(args.output))}")
    return OK
>>>>>>> b1a8c41 (One loop over many images: detect_images; threads by executors; building a Detector changes nothing in the process)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return args.function(args)


if __name__ == "__main__":
    run(main)
