"""Finds faces and persons in images, folders, videos and cameras.

Examples:
  python3 detect.py                            # sample photos of installed packages
  python3 detect.py photo.jpg holiday/ "scans/*.png" clip.mp4
  python3 detect.py holiday/ --classes face --save_json found.json --no-save_image
  python3 detect.py 0 --show --realtime                # camera 0, q ends it
  python3 detect.py clip.mp4 -m detector_576x320.onnx --no-save_image --save_json found.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data.config import CLASS_LABELS, CLASS_NAMES
from data.predictions import Detections, write_prediction
from models.arguments import (
    add_detection_arguments,
    add_network_arguments,
    add_scales_argument,
    build_detector,
)
from models.detector import Detector, InputSize, detect_images
from utils.cli import (
    BAD_DATA,
    OK,
    DataError,
    UsageError,
    count,
    option,
    parser_of,
    pixels,
    report,
    run,
    score,
)
from utils.files import output_path, write_text
from utils.image_names import Source, expand_inputs, sample_photos
from utils.images import Stopped, check_display, frames, read_image, show, video_file, write_image
from utils.processes import keep_freed_memory
from utils.threads import Stopwatch, background_thread, iterate_ahead, iterate_latest

#: Frame rate of a video whose source does not tell its own.
DEFAULT_FRAME_RATE = 25.0

#: Stages by which the time of a run is told.
STAGES = ("read", "preprocess", "network", "postprocess", "draw", "write")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    option(
        parser,
        "inputs",
        "images, folders with their subfolders, globs, .txt lists with one image a line, videos, "
        "a camera's number or a stream's address (default: sample photos of installed packages)",
        nargs="*",
        metavar="INPUT",
    )
    add_network_arguments(parser)
    add_detection_arguments(parser)
    group = parser.add_argument_group("input")
    option(group, "--long_side --imgsz", "resize to this longer side (default: keep)", pixels)
    add_scales_argument(group, "auto")
    option(group, "--batch_size --batch", "images or frames that go through the network together", count, 1)
    option(
        group, "--realtime", "play videos at their own pace and leave out frames that there is no time for"
    )
    group = parser.add_argument_group("output")
    option(group, "--save_folder --name", "where everything is written", Path, "detections", metavar="DIR")
    group.add_argument(
        "-s",
        "--save_image",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="annotated images and videos (default: yes)",
    )
    option(group, "--vis_thres", "least score that is drawn, cropped or counted", score, 0.5)
    option(group, "--save_json", "all detections as one COCO-style file", Path, metavar="FILE")
    option(group, "--save_txt", "all detections as labels/<name>.txt: x y w h score class")
    option(group, "--save_crops", "cut-outs as crops/<class>/<name>_<number>.jpg")
    option(group, "--show", "show in a window; a key goes on, q ends")
    args = parser.parse_args(argv)
    if args.realtime and args.batch_size > 1:
        parser.error(f"--realtime: takes one frame at a time, --batch_size is {args.batch_size}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    sources, faults = expand_inputs(args.inputs or sample_photos())
    for fault in faults:
        report(fault)
    if not sources:
        return BAD_DATA
    if args.save_json:
        output_path(args.save_json)
    if args.save_image:
        check_no_input_is_written_over(sources, args.save_folder)
    if args.show:
        check_display()
    keep_freed_memory()
    detector = build_detector(args, InputSize(args.long_side))
    results = Results(
        folder=args.save_folder,
        save_image=args.save_image,
        save_txt=args.save_txt,
        save_crops=args.save_crops,
        save_json=args.save_json,
        show=args.show,
        least_visible=args.vis_thres,
        stopwatch=detector.stopwatch,
        faults=len(faults),
        dropped=0 if args.realtime else None,
    )
    interruption = None
    start = time.perf_counter()
    try:
        images = [source for source in sources if source.kind == "image"]
        detect_in_images(detector, images, results, args.batch_size)
        for source in sources:
            if source.kind != "image":
                try:
                    detect_in_video(detector, source, results, args.batch_size, args.realtime)
                except DataError as error:  # it cannot be written
                    results.fault(error)
    except Stopped:
        pass
    except KeyboardInterrupt as stop:
        interruption = stop
    finally:
        seconds = time.perf_counter() - start
        results.write_json()
    print(results.summary(seconds, detector.classes) + (" (interrupted)" if interruption else ""))
    if interruption:
        raise interruption
    return BAD_DATA if results.faults else OK


def check_no_input_is_written_over(sources: list[Source], folder: Path) -> None:
    """Raises UsageError where an annotated copy in ``folder`` would replace its original."""
    for source in sources:
        path = folder / source.output
        if os.path.exists(path) and os.path.exists(source.path) and path.samefile(source.path):  # noqa: PTH110
            raise UsageError(
                f"{path} would be written over by its annotated copy; give another --save_folder"
            )


@dataclass
class Results:
    """Writes and shows what is found, and counts it.

    Attributes:
        folder: where everything is written but the JSON file.
        save_image, save_txt, save_crops: what is written there.
        save_json: COCO-style file of all detections, or None.
        show: whether images and frames are shown in a window.
        least_visible: least score that is drawn, cropped or counted.
        stopwatch: the detector's; drawing and writing are added to it.
        faults: inputs that gave nothing.
        dropped: frames left out in real time; None where that cannot be.
    """

    folder: Path
    save_image: bool
    save_txt: bool
    save_crops: bool
    save_json: Path | None
    show: bool
    least_visible: float
    stopwatch: Stopwatch
    faults: int = 0
    dropped: int | None = None
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)

    def fault(self, message: object) -> None:
        """Reports an input that gave nothing; the others go on."""
        self.faults += 1
        report(message)

    def add(self, source: Source, image: np.ndarray, found: Detections, frame: int | None = None) -> None:
        """Counts and keeps the detections of one image or frame, and shows them where asked for."""
        height, width = image.shape[:2]
        entry = {"id": len(self.images) + 1, "file_name": source.path, "width": width, "height": height}
        self.images.append(entry if frame is None else {**entry, "frame": frame})
        self.counts.update(found.above(self.least_visible).labels.tolist())
        if self.save_json:
            self.annotations += coco_annotations(found, entry["id"], len(self.annotations) + 1)
        if self.show:
            show(self.annotate(image, found), wait=0 if frame is None else 1)

    def annotate(self, image: np.ndarray, found: Detections) -> np.ndarray:
        """A copy of ``image`` with what is visible of ``found``."""
        with self.stopwatch("draw"):
            return found.above(self.least_visible).draw(image)

    def write(
        self,
        name: Path,
        image: np.ndarray,
        found: Detections,
        write: Callable[[np.ndarray], object],
        times: int = 1,
    ) -> None:
        """Writes text and cut-outs under ``name``, and by ``write`` an annotated copy, ``times`` times."""
        try:
            if self.save_txt:
                path = self.folder / "labels" / name.with_name(f"{name.name}.txt")
                write_prediction(path, name.name, found.boxes_xywh, found.scores, found.labels)
            if self.save_crops:
                save_crops(self.folder / "crops", name, image, found.above(self.least_visible))
            if self.save_image:
                annotated = self.annotate(image, found)
                with self.stopwatch("write"):
                    for _ in range(times):
                        write(annotated)
        except DataError as error:  # e.g. a name that is too long with what is added to it
            self.fault(error)

    def write_json(self) -> None:
        """Writes all detections, where asked for."""
        if self.save_json:
            categories = [{"id": label, "name": name} for label, name in CLASS_NAMES.items()]
            content = {"images": self.images, "categories": categories, "annotations": self.annotations}
            write_text(self.save_json, json.dumps(content))

    def summary(self, seconds: float, classes: tuple[str, ...]) -> str:
        """The last line: what was found, how fast and where the time went (stages overlap), where it is."""
        found = ", ".join(counted(self.counts[CLASS_LABELS[name]], name) for name in classes)
        spent, images = self.stopwatch.seconds, max(len(self.images), 1)
        stages = ", ".join(f"{stage} {spent[stage] / images * 1e3:.1f}" for stage in STAGES if stage in spent)
        parts = [f"{counted(len(self.images), 'image')}: {found} at score {self.least_visible:g} or above"]
        parts.append(f"{len(self.images) / seconds:.1f} images/s, ms an image: {stages}")
        if self.dropped is not None:
            parts.append(f"{counted(self.dropped, 'frame')} dropped")
        written = [str(self.folder)] if self.save_image or self.save_txt or self.save_crops else []
        written += [str(self.save_json)] if self.save_json else []
        if written and self.images:
            parts.append(f"written: {', '.join(written)}")
        if self.faults:
            parts.append(f"{self.faults} failed")
        return "; ".join(parts)


def counted(number: int, name: str) -> str:
    """E.g. "1 face" or "3 faces"."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def detect_in_images(detector: Detector, sources: list[Source], results: Results, batch_size: int) -> None:
    """Images: read ahead, detected in batches, and written by another thread."""
    found = detect_images(detector, sources, lambda s: read_image(s.path), batch_size, results.fault)
    with background_thread() as submit:
        for source, image, detections in tqdm(
            found, total=len(sources), unit="image", disable=None, leave=False
        ):
            detections = detections.clipped()
            results.add(source, image, detections)
            write = partial(write_image, results.folder / source.output)
            submit(results.write, source.output.with_suffix(""), image, detections, write)


def detect_in_video(
    detector: Detector, source: Source, results: Results, batch_size: int, realtime: bool
) -> None:
    """A video, camera or stream, frame by frame; what is done when it ends early is kept.

    Reading, the network, and drawing with writing go on at the same time, in three threads.
    """
    capture = cv2.VideoCapture(int(source.path) if source.path.isdecimal() else source.path)
    if not capture.isOpened():
        return results.fault(f"{source.path}: cannot be opened as a {source.kind}")
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate < 1000 else DEFAULT_FRAME_RATE
    expected = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if source.kind == "video" else 0
    pace = rate if realtime and source.kind == "video" else None
    done, submit, interruption = 0, None, None
    with ExitStack() as stack:
        stack.callback(capture.release)
        reader = (iterate_latest if realtime else iterate_ahead)(frames(capture, detector.stopwatch, pace))
        stack.enter_context(closing(reader))
        progress = stack.enter_context(tqdm(total=expected or None, unit="frame", disable=None, leave=False))
        try:
            for (index, _), frame, detections in detect_images(
                detector, reader, lambda item: item[1], batch_size, results.fault, workers=0
            ):
                passed, done = index + 1 - done, index + 1
                progress.update(passed)
                if results.dropped is not None:
                    results.dropped += passed - 1
                detections = detections.clipped()
                results.add(source, frame, detections, index)
                if submit is None:  # the first frame, which tells the size
                    path, size = results.folder / source.output, frame.shape[1::-1]
                    video = video_file(path, rate, size) if results.save_image else nullcontext()
                    write = stack.enter_context(video)
                    submit = stack.enter_context(background_thread())
                name = source.output.with_suffix("") / f"{index:06d}"
                # Frames that were left out are made up for, so that the video keeps its length.
                submit(results.write, name, frame, detections, write, passed)
        except (KeyboardInterrupt, Stopped) as stop:
            interruption = stop
    if interruption:
        raise interruption
    if not done:
        results.fault(f"{source.path}: no frame of this {source.kind} can be decoded")
    elif done < 0.98 * expected - 1:
        results.fault(
            f"{source.path}: ended after {done} of {expected} frames; the file is damaged or cut off"
        )


def save_crops(folder: Path, name: Path, image: np.ndarray, found: Detections) -> None:
    """Writes what is inside of each box, which must lie in the image."""
    for index, one in enumerate(found, 1):
        x1, y1, x2, y2 = one.box.round().astype(int)
        if x2 > x1 and y2 > y1:
            path = folder / one.name / name.with_name(f"{name.name}_{index}.jpg")
            write_image(path, image[y1:y2, x1:x2])


def coco_annotations(found: Detections, image_id: int, first_id: int) -> list[dict]:
    """COCO entries with ``bbox`` x y w h in pixels and ``score``."""
    boxes, scores = found.boxes_xywh.round(4).tolist(), found.scores.astype(np.float64).round(6).tolist()
    rows = zip(boxes, scores, found.labels.tolist(), strict=True)
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": label,
            "bbox": box,
            "area": round(box[2] * box[3], 4),
            "iscrowd": 0,
            "score": score,
        }
        for number, (box, score, label) in enumerate(rows, first_id)
    ]


if __name__ == "__main__":
    run(main)
