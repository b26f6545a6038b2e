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
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data.config import CLASS_LABELS, CLASS_NAMES
from data.predictions import Detections, draw_detections, write_prediction
from models.arguments import add_detection_arguments, add_network_arguments, build_detector, parser_of
from models.detector import Detector, InputSize, batches, detect_batch, try_to_read
from utils.cli import BAD_DATA, OK, DataError, UsageError, number, report, run
from utils.files import atomic_path, output_path, write_text
from utils.images import write_image
from utils.inputs import Source, expand_inputs, sample_photos
from utils.stopwatch import Stopwatch
from utils.threads import Behind, iterate_ahead, iterate_latest, map_ahead

#: Frame rate of a video whose source does not tell its own.
DEFAULT_FRAME_RATE = 25.0

#: Stages by which the time of a run is told.
STAGES = ("read", "preprocess", "network", "postprocess", "draw", "write")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="images, folders (searched to the bottom), globs, .txt lists with one image a line, videos, "
        "a camera's number or a stream's address (default: sample photos of installed packages)",
    )
    add_network_arguments(parser)
    add_detection_arguments(parser)
    group = parser.add_argument_group("input")
    group.add_argument(
        "--long_side",
        type=number(int, 1, 2**16),
        metavar="PIXELS",
        help="resize to this longer side (default: keep)",
    )
    group.add_argument(
        "--batch_size", type=number(int, 1), default=1, metavar="N", help="images or frames a forward pass"
    )
    group.add_argument(
        "--realtime",
        action="store_true",
        help="play videos at their own pace and leave out the frames that there is no time for",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--save_folder", default="detections", metavar="DIR", help="where everything is written"
    )
    group.add_argument(
        "-s",
        "--save_image",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="annotated images and videos (default: yes)",
    )
    group.add_argument(
        "--vis_thres",
        type=number(float, 0, 1),
        default=0.5,
        metavar="S",
        help="least score that is drawn or cropped",
    )
    group.add_argument("--save_json", metavar="FILE", help="all detections as one COCO-style file")
    group.add_argument(
        "--save_txt", action="store_true", help="all detections as labels/<name>.txt: x y w h score class"
    )
    group.add_argument(
        "--save_crops", action="store_true", help="cut-outs as crops/<class>/<name>_<number>.jpg"
    )
    group.add_argument("--show", action="store_true", help="show in a window; a key goes on, q ends")
    args = parser.parse_args(argv)
    if args.realtime and args.batch_size > 1:
        parser.error(f"--realtime: takes one frame at a time, --batch_size is {args.batch_size}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    input_size = InputSize(args.long_side)
    sources, faults = expand_inputs(args.inputs or sample_photos())
    results = Results(args)
    for fault in faults:
        results.fault(fault)
    if not sources:
        return BAD_DATA
    check_output(args, sources)
    detector = build_detector(args, input_size)
    interruption = None
    start = time.perf_counter()
    try:
        images = [source for source in sources if source.kind == "image"]
        with Behind() as behind:
            detect_images(detector, images, results, behind, args)
        for source in sources:
            if source.kind != "image":
                try:
                    detect_video(detector, source, results, args)
                except DataError as error:  # it cannot be written
                    results.fault(error)
    except Stopped:
        pass
    except KeyboardInterrupt as stop:
        interruption = stop
    finally:
        seconds = time.perf_counter() - start
        results.close()
    print(results.summary(seconds, detector.stopwatch) + (" (interrupted)" if interruption else ""))
    if interruption:
        raise interruption
    return BAD_DATA if results.faults else OK


def check_output(args: argparse.Namespace, sources: list[Source]) -> None:
    """Whether the run can give its output.

    Raises:
        UsageError: an input would be written over, or a window is asked for without a display.
        DataError: the file of the detections cannot be one.
    """
    if args.save_json:
        output_path(args.save_json)
    for source in sources if args.save_image else ():
        path = Path(args.save_folder) / source.output
        if os.path.exists(path) and os.path.exists(source.path) and path.samefile(source.path):  # noqa: PTH110
            raise UsageError(
                f"{path} would be written over by its annotated copy; give another --save_folder"
            )
    if (
        args.show
        and sys.platform.startswith("linux")
        and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    ):
        raise UsageError("--show: there is no display here (DISPLAY is not set)")


class Stopped(Exception):
    """The person closed the window."""


class Results:
    """Everything that is written of the detections, but for the annotated images and videos."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = Path(args.save_folder)
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.counts: Counter[int] = Counter()
        self.faults = self.dropped = 0

    def fault(self, message: object) -> None:
        """Reports an input that gave nothing; the others go on."""
        self.faults += 1
        report(message)

    def add(
        self, file_name: str, output: Path, image: np.ndarray, found: Detections, frame: int | None = None
    ) -> None:
        """Keeps the detections of one image or frame, and writes text and cut-outs where asked for."""
        height, width = image.shape[:2]
        entry = {"id": len(self.images) + 1, "file_name": file_name, "width": width, "height": height}
        self.images.append(entry if frame is None else {**entry, "frame": frame})
        visible = found.above(self.args.vis_thres)
        self.counts.update(visible.labels.tolist())
        if self.args.save_json:
            self.annotations += coco_annotations(found, entry["id"], len(self.annotations) + 1)
        name = output.with_suffix("") if frame is None else output.with_suffix("") / f"{frame:06d}"
        try:
            if self.args.save_txt:
                path = self.folder / "labels" / name.with_name(f"{name.name}.txt")
                write_prediction(path, name.name, found.boxes_xywh, found.scores, found.labels)
            if self.args.save_crops:
                save_crops(self.folder / "crops", name, image, visible)
        except DataError as error:  # e.g. a name that is too long with what is added to it
            self.fault(error)

    def close(self) -> None:
        if self.args.save_json:
            categories = [{"id": label, "name": name} for label, name in CLASS_NAMES.items()]
            content = {"images": self.images, "categories": categories, "annotations": self.annotations}
            write_text(self.args.save_json, json.dumps(content))

    def summary(self, seconds: float, stopwatch: Stopwatch) -> str:
        """The last line: what was found, how fast and where the time went (stages overlap), where it is."""
        found = ", ".join(
            f"{self.counts[label]} {name}{'' if self.counts[label] == 1 else 's'}"
            for name, label in CLASS_LABELS.items()
            if name in (self.args.classes or CLASS_LABELS)
        )
        images = f"{len(self.images)} image{'' if len(self.images) == 1 else 's'}"
        stages = ", ".join(
            f"{stage} {stopwatch.seconds[stage] / max(len(self.images), 1) * 1e3:.1f}"
            for stage in STAGES
            if stage in stopwatch.seconds
        )
        rate = f"{len(self.images) / seconds:.1f} images/s, ms an image: {stages}"
        rate += (
            f"; {self.dropped} frame{'' if self.dropped == 1 else 's'} dropped" if self.args.realtime else ""
        )
        written = (
            [str(self.folder)] if self.args.save_image or self.args.save_txt or self.args.save_crops else []
        )
        written += [self.args.save_json] if self.args.save_json else []
        where = f"; written: {', '.join(written)}" if written and self.images else ""
        failed = f"; {self.faults} failed" if self.faults else ""
        return f"{images}: {found} at score {self.args.vis_thres:g} or above; {rate}{where}{failed}"


def detect_images(
    detector: Detector, sources: list[Source], results: Results, behind: Behind, args: argparse.Namespace
) -> None:
    """Images: read ahead, found in batches, annotated and written behind."""
    progress = tqdm(total=len(sources), unit="image", disable=None, leave=False)

    def read(source: Source) -> np.ndarray | DataError:
        with detector.stopwatch("read"):
            return try_to_read(source.path)

    reader = map_ahead(read, sources, workers=2, ahead=2 * args.batch_size)
    with progress:
        for batch in batches(zip(sources, reader, strict=True), args.batch_size):
            progress.update(len(batch))
            readable = []
            for source, image in batch:
                if isinstance(image, DataError):
                    results.fault(image)
                else:
                    readable.append((source, image))
            for source, image, found in detect_batch(detector, readable, results.fault):
                results.add(source.path, source.output, image, found)
                if args.save_image:
                    visible = found.above(args.vis_thres)
                    behind.submit(save_annotated, results, source, image, visible, detector.stopwatch)
                if args.show:
                    show(annotate(image, found.above(args.vis_thres), detector.stopwatch), wait=0)


def detect_video(detector: Detector, source: Source, results: Results, args: argparse.Namespace) -> None:
    """A video, camera or stream, frame by frame; what is done when it ends early is kept.

    Reading, the network, and drawing with writing go on at the same time, in three threads.
    """
    capture = cv2.VideoCapture(int(source.path) if source.path.isdecimal() else source.path)
    if not capture.isOpened():
        return results.fault(f"{source.path}: cannot be opened as a {source.kind}")
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate < 1000 else DEFAULT_FRAME_RATE
    expected = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if source.kind == "video" else 0
    pace = rate if args.realtime and source.kind == "video" else None
    stopwatch = detector.stopwatch
    reader = (iterate_latest if args.realtime else iterate_ahead)(frames(capture, stopwatch, pace))
    last, interruption = -1, None
    progress = tqdm(total=expected if expected > 0 else None, unit="frame", disable=None, leave=False)
    with ExitStack() as stack:
        stack.callback(capture.release)
        stack.enter_context(progress)
        video = None
        try:
            for batch in batches(reader, args.batch_size):
                named = [((source, index), frame) for index, frame in batch]
                for (_, index), frame, found in detect_batch(detector, named, results.fault):
                    passed, last = index - last, index
                    results.dropped += passed - 1
                    progress.update(passed)
                    results.add(source.path, source.output, frame, found, index)
                    if args.save_image:
                        video = video or stack.enter_context(
                            VideoWriter(results.folder / source.output, rate, frame, stopwatch)
                        )
                        video.write(frame, found.above(args.vis_thres), passed)
                    if args.show:
                        show(annotate(frame, found.above(args.vis_thres), stopwatch), wait=1)
        except (KeyboardInterrupt, Stopped) as stop:
            interruption = stop
    if interruption:
        raise interruption
    if last < 0:
        return results.fault(f"{source.path}: no frame of this {source.kind} can be decoded")
    if last + 1 < 0.98 * expected - 1:
        results.fault(
            f"{source.path}: ended after {last + 1} of {expected} frames; the file is damaged or cut off"
        )


def frames(
    capture: cv2.VideoCapture, stopwatch: Stopwatch, pace: float | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers and frames until there are no more, at most ``pace`` of them a second."""
    start = time.perf_counter()
    for index in count():
        with stopwatch("read"):
            done, frame = capture.read()
        if not done:
            return
        if pace:
            time.sleep(max(0.0, start + index / pace - time.perf_counter()))
        yield index, frame


class VideoWriter:
    """An mp4 file that appears under its name once it is closed; drawn and written by a thread of its own."""

    def __init__(self, path: Path, rate: float, first: np.ndarray, stopwatch: Stopwatch) -> None:
        self.path, self.rate, self.size = path, rate, first.shape[1::-1]
        self.stopwatch, self.frames = stopwatch, 0
        self._stack = ExitStack()

    def __enter__(self) -> VideoWriter:
        temporary = self._stack.enter_context(atomic_path(self.path))
        self._video = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, self.size)
        if not self._video.isOpened():
            raise DataError(
                f"{self.path}: a video of {self.size[0]}x{self.size[1]} pixels cannot be written here"
            )
        self._stack.push(lambda error, *_: error or self._check(temporary))
        self._stack.callback(self._video.release)
        self._behind = self._stack.enter_context(Behind())
        return self

    def write(self, frame: np.ndarray, found: Detections, times: int) -> None:
        """Writes an annotated frame; several times where frames were left out, to keep the video's length."""
        self._behind.submit(self._write, frame, found, times)

    def _write(self, frame: np.ndarray, found: Detections, times: int) -> None:
        frame = annotate(frame, found, self.stopwatch)
        with self.stopwatch("write"):
            for _ in range(times):
                self._video.write(frame)
        self.frames += times

    def _check(self, temporary: Path) -> None:
        """Raises DataError where frames lack: OpenCV does not tell of a disk that is full."""
        video = cv2.VideoCapture(str(temporary))
        frames = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
        video.release()
        if frames != self.frames:
            raise DataError(
                f"{self.path}: {frames} of {self.frames} frames could be written; is the disk full?"
            )

    def __exit__(self, *exception: object) -> None:
        self._stack.__exit__(*exception)


def annotate(image: np.ndarray, found: Detections, stopwatch: Stopwatch) -> np.ndarray:
    with stopwatch("draw"):
        return draw_detections(image, found.boxes, found.scores, found.labels)


def save_annotated(
    results: Results, source: Source, image: np.ndarray, found: Detections, stopwatch: Stopwatch
) -> None:
    """Writes one annotated image."""
    annotated = annotate(image, found, stopwatch)
    try:
        with stopwatch("write"):
            write_image(results.folder / source.output, annotated)
    except DataError as error:
        results.fault(error)


def save_crops(folder: Path, name: Path, image: np.ndarray, found: Detections) -> None:
    """Writes the part of each box that lies in the image."""
    height, width = image.shape[:2]
    corners = np.clip(found.boxes.round(), 0, [width, height, width, height]).astype(int)
    for index, ((x1, y1, x2, y2), label) in enumerate(
        zip(corners.tolist(), found.labels.tolist(), strict=True), 1
    ):
        if x2 > x1 and y2 > y1:
            path = folder / CLASS_NAMES[label] / name.with_name(f"{name.name}_{index}.jpg")
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


def show(image: np.ndarray, wait: int) -> None:
    """Shows an image for ``wait`` milliseconds (0: until a key); q stops everything."""
    try:
        cv2.imshow("detections", image)
        key = cv2.waitKey(wait) & 0xFF
    except cv2.error:
        raise UsageError("--show: this OpenCV opens no windows (opencv-python-headless does not)") from None
    if key == ord("q"):
        raise Stopped


if __name__ == "__main__":
    run(main)
