"""Finds faces and persons in images, folders, videos and cameras.

Examples:
  python3 detect.py                            # sample photos of installed packages
  python3 detect.py photo.jpg holiday/ "scans/*.png" clip.mp4
  python3 detect.py holiday/ --classes face --save_json found.json --no-save_image
  python3 detect.py party.mp4 --blur face --track      # an anonymised copy
  python3 detect.py 0 --show --realtime                # camera 0, q ends it
  python3 detect.py clip.mp4 -m detector_576x320.onnx --no-save_image --save_json found.json
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data.config import CLASS_LABELS
from data.outputs import BLUR_SCORE, LEAST_SCORE, Findings, Results, Selection, Tracker, fill_gaps
from data.predictions import Detections
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
    natural,
    option,
    parser_of,
    pixels,
    report,
    run,
    score,
)
from utils.draw import hide_boxes
from utils.files import output_path
from utils.image_names import Source, expand_inputs, sample_photos
from utils.images import Stopped, check_display, frames, read_image, video_file, write_image
from utils.processes import keep_freed_memory
from utils.threads import background_thread, iterate_ahead, iterate_latest

#: Frame rate of a video whose source does not tell its own.
DEFAULT_FRAME_RATE = 25.0

#: What is counted, drawn and saved by default.
DEFAULT_SCORE = 0.5

#: Classes that ``--blur`` hides: a person's face is hidden even where the person is not found.
BLURRED = {"face": ("face",), "person": ("face", "person")}

#: An anonymised copy is looked at again, at most so often, and what still scores this is hidden too.
MOST_LOOKS, LEFT_SCORE = 3, 0.3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    help = """images, folders with their subfolders, globs, .txt lists with one image a line, videos, a
        camera's number or a stream's address (default: sample photos of installed packages)"""
    option(parser, "inputs", help, nargs="*", metavar="INPUT")
    add_network_arguments(parser)
    add_detection_arguments(parser)
    parser.set_defaults(confidence_threshold=DEFAULT_SCORE)
    group = parser.add_argument_group(
        "selection", "What scores above --confidence_threshold is counted, drawn and saved."
    )
    option(group, "--min_size", "leave out boxes with a side shorter than this", pixels, 1)
    option(group, "--pairs", "give each face its person: one colour a pair, pair_id in --save_json")
    option(group, "--track", "number objects over the frames of a video: track_id in --save_json")
    group = parser.add_argument_group("input")
    option(group, "--long_side --imgsz", "resize to this longer side (default: keep)", pixels)
    add_scales_argument(group, "auto")
    option(group, "--batch_size --batch", "images or frames that go through the network together", count, 1)
    option(group, "--realtime", "play videos at their own pace and skip frames that there is no time for")
    group = parser.add_argument_group("output")
    where = "where everything is written"
    option(group, "--save_folder --name", where, Path, "runs/detect", metavar="FOLDER")
    yes_or_no, help = argparse.BooleanOptionalAction, "annotated images and videos (default: yes)"
    group.add_argument("-s", "--save_image", action=yes_or_no, default=True, help=help)
    option(group, "--vis_thres", "draw only what scores at least this (default: all)", score)
    help = f"instead of drawing boxes, hide these for good, from score {BLUR_SCORE:g} on (person: faces too)"
    option(group, "--blur", help, choices=list(BLURRED))
    help = "with --blur and --track, also hide what is lost for up to so many frames"
    option(group, "--max_gap", help, natural, 15)
    option(group, "--save_json", "one COCO-style file; a bare name goes into --save_folder", metavar="FILE")
    option(group, "--save_txt", "YOLO text, labels/<name>.txt: class cx cy w h, in shares of the image")
    option(group, "--save_conf", "the score at the end of each line of --save_txt")
    option(group, "--save_crops", "cut-outs as crops/<class>/<name>_<number>.jpg")
    option(group, "--verbose", "print a line for each image and frame")
    option(group, "--show", "show in a window; any key goes on, q ends")
    args = parser.parse_args(argv)
    if args.realtime and args.batch_size > 1:
        parser.error(f"--realtime: takes one frame at a time, --batch_size is {args.batch_size}")
    if args.save_conf and not args.save_txt:
        parser.error("--save_conf: adds to the lines of --save_txt, which is not given")
    if args.save_json:
        args.save_json = Path("" if os.path.dirname(args.save_json) else args.save_folder, args.save_json)  # noqa: PTH120
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
    if args.track:
        if all(source.kind == "image" for source in sources):
            raise UsageError("--track: follows objects over the frames of a video, and none is named")
        Tracker(args.confidence_threshold)  # tells now what is missing
    keep_freed_memory()
    detector = build_detector(args, InputSize(args.long_side))
    selection = selection_of(args, detector)
    results = Results(
        folder=args.save_folder,
        score=args.confidence_threshold,
        stopwatch=detector.stopwatch,
        **{name: getattr(args, name) for name in ("save_image", "save_txt", "save_conf", "save_crops")},
        **{name: getattr(args, name) for name in ("save_json", "show", "verbose")},
        blur=bool(args.blur),
        least_drawn=args.vis_thres or 0,
        faults=len(faults),
        dropped=0 if args.realtime else None,
    )
    videos = Videos(args.batch_size, args.realtime, args.track, args.max_gap)
    interruption = None
    start = time.perf_counter()
    try:
        images = [source for source in sources if source.kind == "image"]
        detect_in_images(detector, images, results, selection, args.batch_size)
        for source in sources:
            if source.kind != "image":
                try:
                    detect_in_video(detector, source, results, selection, videos)
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


def selection_of(args: argparse.Namespace, detector: Detector) -> Selection:
    """Which detections are told of; ``detector`` gives those that blurring and tracking need besides.

    Raises:
        UsageError: a class that blurring or pairing needs is not looked for.
    """
    hidden = BLURRED.get(args.blur, ())
    needs = [(f"--blur {args.blur}", name) for name in hidden]
    needs += [("--pairs", name) for name in CLASS_LABELS] if args.pairs else []
    for flag, name in needs:
        if name not in detector.classes:
            raise UsageError(f"{flag}: needs the class {name}; looked for is {', '.join(detector.classes)}")
    least = [args.confidence_threshold]
    least += [BLUR_SCORE] if args.blur else []
    least += [LEAST_SCORE] if args.track else []
    detector.thresholds = replace(detector.thresholds, score=min(least))
    labels = tuple(CLASS_LABELS[name] for name in hidden)
    return Selection(args.confidence_threshold, args.min_size, args.pairs, labels)


def hide_what_is_left(
    detector: Detector, image: np.ndarray, findings: Findings, labels: tuple[int, ...]
) -> Findings:
    """Findings that also hide what ``detector`` still finds of ``labels`` once the others are hidden."""
    for _ in range(MOST_LOOKS if labels else 0):
        found = detector(hide_boxes(image, findings.hidden))
        left = found.boxes[np.isin(found.labels, labels) & (found.scores >= LEFT_SCORE)]
        if not len(left):
            break
        findings = replace(
            findings,
            hidden=np.concatenate([findings.hidden, left]),
            hidden_tracks=np.append(findings.hidden_tracks, np.zeros(len(left), np.int64)),
        )
    return findings


def detect_in_images(
    detector: Detector, sources: list[Source], results: Results, selection: Selection, batch_size: int
) -> None:
    """Images: read ahead, detected in batches, and written by another thread."""
    found = detect_images(detector, sources, lambda s: read_image(s.path), batch_size, results.fault)
    with background_thread() as submit:
        bar = tqdm(found, total=len(sources), unit="image", disable=None, leave=False)
        for source, image, detections in bar:
            findings = selection(detections.clipped())
            findings = hide_what_is_left(detector, image, findings, selection.hidden)
            results.add(source, image, findings)
            write = partial(write_image, results.folder / source.output)
            submit(results.write, source.output.with_suffix(""), image, findings, write)


@dataclass(frozen=True)
class Videos:
    """How videos are gone through, see the options of the same names."""

    batch_size: int
    realtime: bool
    track: bool
    max_gap: int

    def select(
        self,
        detector: Detector,
        found: Iterable[tuple[tuple[int, np.ndarray], np.ndarray, Detections]],
        selection: Selection,
        rate: float,
    ) -> Iterator[tuple[int, np.ndarray, Findings]]:
        """Number, image and findings of each frame that `detect_images` gives, at ``rate`` a second."""
        tracker = Tracker(selection.score) if self.track else None

        def selected() -> Iterator[tuple[int, np.ndarray, Findings]]:
            for (index, _), frame, detections in found:
                detections = detections.clipped()
                tracks = tracker.update(detections, index / rate) if tracker else None
                findings = selection(detections, tracks)
                yield index, frame, hide_what_is_left(detector, frame, findings, selection.hidden)

        most = self.max_gap if tracker and selection.hidden else 0
        followed = ((item, item[2].hidden, item[2].hidden_tracks) for item in selected())
        for (index, frame, findings), hidden in fill_gaps(followed, most):
            yield index, frame, replace(findings, hidden=hidden)


def detect_in_video(
    detector: Detector, source: Source, results: Results, selection: Selection, videos: Videos
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
    pace = rate if videos.realtime and source.kind == "video" else None
    done, submit, interruption = 0, None, None
    with ExitStack() as stack:
        stack.callback(capture.release)
        draw = iterate_latest if videos.realtime else iterate_ahead
        reader = draw(frames(capture, detector.stopwatch, pace))
        stack.enter_context(closing(reader))
        progress = stack.enter_context(tqdm(total=expected or None, unit="frame", disable=None, leave=False))
        found = detect_images(
            detector, reader, lambda item: item[1], videos.batch_size, results.fault, workers=0
        )
        try:
            for index, frame, findings in videos.select(detector, found, selection, rate):
                passed, done = index + 1 - done, index + 1
                progress.update(passed)
                if results.dropped is not None:
                    results.dropped += passed - 1
                results.add(source, frame, findings, index)
                if submit is None:  # the first frame, which tells the size
                    path, size = results.folder / source.output, frame.shape[1::-1]
                    video = video_file(path, rate, size) if results.save_image else nullcontext()
                    write = stack.enter_context(video)
                    submit = stack.enter_context(background_thread())
                name = source.output.with_suffix("") / f"{index:06d}"
                # Frames that were left out are made up for, so that the video keeps its length.
                submit(results.write, name, frame, findings, write, passed)
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


if __name__ == "__main__":
    run(main)
