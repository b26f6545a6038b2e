"""What `detect.py` makes of detections: pairs of face and person, tracks, counts, pictures, files."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from data.config import CLASS_LABELS, CLASS_NAMES
from data.predictions import Detections
from utils.box_utils import intersections, xywh_to_cxcywh, xyxy_to_xywh
from utils.cli import DataError, import_package, report
from utils.draw import distinct_colour, hide_boxes
from utils.files import write_text
from utils.image_names import Source
from utils.images import show, write_image
from utils.threads import Stopwatch

#: Least score of what is hidden: a wrong box costs little, a face that is left may cost a lot.
BLUR_SCORE = 0.1

#: Least score of a detection that goes on with a track, as in ByteTrack (Zhang et al. 2022).
LEAST_SCORE = 0.1

#: Share of a face that must lie in the upper half of its person.
LEAST_INSIDE = 0.5

#: Stages by which the time of a run is told.
STAGES = ("read", "preprocess", "network", "postprocess", "draw", "write")

_ALONE = (190, 190, 190)  # BGR of what is in no pair

Item = TypeVar("Item")


@dataclass(frozen=True)
class Findings:
    """What is told of one image or frame.

    Attributes:
        detections: what is counted, drawn and saved.
        pairs, tracks: int64[N], number of the pair of face and person, and of the track, from 1 on, 0 in
            none; None: not asked for.
        hidden, hidden_tracks: [M, 4], boxes xyxy in pixels to be hidden, and int64[M], as ``tracks``.
    """

    detections: Detections
    pairs: np.ndarray | None
    tracks: np.ndarray | None
    hidden: np.ndarray
    hidden_tracks: np.ndarray


@dataclass(frozen=True)
class Selection:
    """Which detections are told of.

    Attributes:
        score: they score above this.
        min_size: neither of their sides is shorter, in pixels.
        pairs: whether each face is to be given its person.
        hidden: labels of what is to be hidden, from `BLUR_SCORE` or, if it is lower, ``score`` on.
    """

    score: float
    min_size: int = 1
    pairs: bool = False
    hidden: tuple[int, ...] = ()

    def __call__(self, found: Detections, tracks: np.ndarray | None = None) -> Findings:
        """Findings of all that was found, and its tracks if there are any."""
        numbers = np.zeros(len(found), np.int64) if tracks is None else tracks
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        large = (sides >= self.min_size).all(1) if self.min_size > 1 else True
        above = large & (found.scores > self.score)
        hidden = np.isin(found.labels, self.hidden) & large & (found.scores >= min(self.score, BLUR_SCORE))
        kept = found[above]
        return Findings(
            detections=kept,
            pairs=pair_numbers(kept) if self.pairs else None,
            tracks=None if tracks is None else tracks[above],
            hidden=found.boxes[hidden],
            hidden_tracks=numbers[hidden],
        )


def pair_faces(faces: np.ndarray, persons: np.ndarray) -> np.ndarray:
    """The person of each face, xyxy [F, 4] and [P, 4]: int64[F], -1 for none.

    No person has two, and all pairs together fit as well as they can: the better, the more of the face lies
    in the upper half of the person, and the nearer it is to the middle of its edge, in heights of the face.
    """
    faces, persons = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (faces, persons))
    found = np.full(len(faces), -1)
    upper = persons.copy()
    upper[:, 3] = persons[:, [1, 3]].mean(1)
    height = np.maximum(faces[:, 3] - faces[:, 1], 1e-9)
    area = np.maximum((faces[:, 2] - faces[:, 0]) * height, 1e-9)
    inside = intersections(faces, upper) / area[:, None]
    across = (faces[:, None, [0, 2]].mean(2) - persons[None, :, [0, 2]].mean(2)) / height[:, None]
    down = (faces[:, None, 1] - persons[None, :, 1]) / height[:, None]
    fit = np.where(inside >= LEAST_INSIDE, inside / (1 + np.hypot(across, down)), 0)
    face, person = linear_sum_assignment(fit, maximize=True)
    real = fit[face, person] > 0
    found[face[real]] = person[real]
    return found


def pair_numbers(found: Detections) -> np.ndarray:
    """int64[N]: the number that a face and its person share, from 1 on; 0 for those alone."""
    numbers = np.zeros(len(found), np.int64)
    faces, persons = (np.flatnonzero(found.labels == CLASS_LABELS[name]) for name in ("face", "person"))
    person = pair_faces(found.boxes[faces], found.boxes[persons])
    paired = person >= 0
    numbers[faces[paired]] = numbers[persons[person[paired]]] = np.arange(1, paired.sum() + 1)
    return numbers


class Tracker:
    """Gives the objects of a video numbers that stay the same over its frames, by ByteTrack.

    A detection from ``score`` on begins a track; weaker ones can only go on with one.
    """

    def __init__(self, score: float) -> None:
        self._new = import_package("trackers", "--track").ByteTrackTracker
        self._boxes = import_package("supervision", "--track").Detections
        self._score = score
        self._by_class: dict[int, object] = {}
        self._numbers: dict[tuple[int, int], int] = {}

    def update(self, found: Detections, seconds: float) -> np.ndarray:
        """Numbers of the detections of the next frame, ``seconds`` after the first, of all scores from
        `LEAST_SCORE` on: int64[N], from 1 on, 0 where there is no track yet."""
        numbers = np.zeros(len(found), np.int64)
        for label in {*found.labels.tolist(), *self._by_class}:
            rows = np.flatnonzero((found.labels == label) & (found.scores >= LEAST_SCORE))
            if label not in self._by_class:
                self._by_class[label] = self._new(
                    track_activation_threshold=self._score,
                    high_conf_det_threshold=self._score,
                    minimum_consecutive_frames=1,
                )
            boxes = self._boxes(xyxy=found.boxes[rows], confidence=found.scores[rows], class_id=rows)
            tracked = self._by_class[label].update(boxes, timestamp=seconds)
            for row, track in zip(tracked.class_id, tracked.tracker_id, strict=True):
                if track >= 0:
                    numbers[row] = self._numbers.setdefault((label, int(track)), len(self._numbers) + 1)
        return numbers


def fill_gaps(
    frames: Iterable[tuple[Item, np.ndarray, np.ndarray]], most: int
) -> Iterator[tuple[Item, np.ndarray]]:
    """Adds the boxes of tracks that were lost for at most ``most`` frames, on the straight line in between.

    Of ``frames``, what stands for each, its boxes [N, 4] and their tracks int[N], 0 for none, ``most`` are
    held back; yields each frame and its boxes, [M, 4].
    """
    waiting: deque[tuple[Item, list[np.ndarray]]] = deque()
    last: dict[int, tuple[int, np.ndarray]] = {}
    for now, (item, boxes, tracks) in enumerate(frames):
        waiting.append((item, list(boxes)))
        for track, box in zip(tracks.tolist(), boxes, strict=True):
            if not track:
                continue
            before, start = last.get(track, (now, box))
            last[track] = now, box
            if now - before - 1 <= most:
                for frame in range(before + 1, now):
                    share = (frame - before) / (now - before)
                    waiting[frame - now - 1][1].append(start + share * (box - start))
        while len(waiting) > most:
            item, boxes = waiting.popleft()
            yield item, np.reshape(boxes, (-1, 4))
    for item, boxes in waiting:
        yield item, np.reshape(boxes, (-1, 4))


@dataclass
class Results:
    """Writes and shows what is found, and counts it; the first attributes are options of `detect.py`.

    Attributes:
        folder: where everything is written but the JSON file.
        score: what is found scores above this.
        stopwatch: the detector's; drawing and writing are added to it.
        blur: whether images are anonymised instead of annotated.
        least_drawn: least score that is drawn.
        faults: inputs that gave nothing.
        dropped: frames left out in real time; None where that cannot be.
        images, annotations: what goes into the JSON file, as COCO has it; empty without one, a camera may run
            for days.
        looked_at: how many images and frames.
        counts: boxes by label.
    """

    folder: Path
    score: float
    stopwatch: Stopwatch
    save_image: bool = True
    save_txt: bool = False
    save_conf: bool = False
    save_crops: bool = False
    save_json: Path | None = None
    show: bool = False
    verbose: bool = False
    blur: bool = False
    least_drawn: float = 0.0
    faults: int = 0
    dropped: int | None = None
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)
    looked_at: Counter[str] = field(default_factory=Counter)
    counts: Counter[int] = field(default_factory=Counter)

    def fault(self, message: object) -> None:
        """Reports an input that gave nothing; the others go on."""
        self.faults += 1
        report(message)

    def add(self, source: Source, image: np.ndarray, findings: Findings, frame: int | None = None) -> None:
        """Counts and keeps the detections of one image or frame, and shows them where asked for."""
        self.looked_at["image" if frame is None else "frame"] += 1
        counts = Counter(findings.detections.labels.tolist())
        self.counts += counts
        if self.verbose:
            name = source.path if frame is None else f"{source.path}, frame {frame}"
            tqdm.write(f"{name}: {counted_classes(counts, CLASS_NAMES.values())}")
        if self.save_json:
            number, (height, width) = len(self.images) + 1, image.shape[:2]
            entry = {"id": number, "file_name": source.path, "width": width, "height": height}
            self.images.append(entry if frame is None else {**entry, "frame": frame})
            self.annotations += coco_annotations(findings, number, len(self.annotations) + 1)
        if self.show:
            show(self.picture(image, findings), wait=0 if frame is None else 1)

    def picture(self, image: np.ndarray, findings: Findings) -> np.ndarray:
        """An anonymised copy of ``image``, or one that is annotated: one colour a pair, tracks by number."""
        with self.stopwatch("draw"):
            if self.blur:
                return hide_boxes(image, findings.hidden)
            seen = findings.detections.scores >= self.least_drawn
            found, names, colours = findings.detections[seen], None, None
            if findings.pairs is not None:
                pairs = findings.pairs[seen].tolist()
                colours = [distinct_colour(pair - 1) if pair else _ALONE for pair in pairs]
            if findings.tracks is not None:
                tracks = zip(found.class_names, findings.tracks[seen].tolist(), strict=True)
                names = [f"{name} #{track}" if track else name for name, track in tracks]
            return found.draw(image, names, colours)

    def write(
        self,
        name: Path,
        image: np.ndarray,
        findings: Findings,
        write: Callable[[np.ndarray], object],
        times: int = 1,
    ) -> None:
        """Writes text and cut-outs under ``name``, and by ``write`` a picture, ``times`` times."""
        found = findings.detections
        try:
            if self.save_txt:
                path = self.folder / "labels" / name.with_name(f"{name.name}.txt")
                write_text(path, yolo_text(found, image.shape[:2], self.save_conf))
            if self.save_image or self.blur:
                picture = self.picture(image, findings)
            if self.save_crops:
                save_crops(self.folder / "crops", name, picture if self.blur else image, found)
            if self.save_image:
                with self.stopwatch("write"):
                    for _ in range(times):
                        write(picture)
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
        seen = self.looked_at
        kinds = [counted(seen[kind], kind) for kind in ("image", "frame") if seen[kind]] or ["0 images"]
        unit, each = ("frame", "a frame") if seen["frame"] and not seen["image"] else ("image", "an image")
        number = max(seen.total(), 1)
        spent = self.stopwatch.seconds
        stages = ", ".join(f"{stage} {spent[stage] / number * 1e3:.1f}" for stage in STAGES if stage in spent)
        parts = [f"{' and '.join(kinds)}: {counted_classes(self.counts, classes)} above score {self.score:g}"]
        parts.append(f"{seen.total() / seconds:.1f} {unit}s/s, ms {each}: {stages}")
        if self.dropped is not None:
            parts.append(f"{counted(self.dropped, 'frame')} dropped")
        written = [str(self.folder)] if self.save_image or self.save_txt or self.save_crops else []
        written += [str(self.save_json)] if self.save_json else []
        if written and seen:
            parts.append(f"written: {', '.join(written)}")
        if self.faults:
            parts.append(f"{self.faults} failed")
        return "; ".join(parts)


def counted(number: int, name: str) -> str:
    """E.g. "1 face" or "3 faces"."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def counted_classes(counts: Counter[int], classes: Iterable[str]) -> str:
    """E.g. "1 face, 3 persons"."""
    return ", ".join(counted(counts[CLASS_LABELS[name]], name) for name in classes)


def save_crops(folder: Path, name: Path, image: np.ndarray, found: Detections) -> None:
    """Writes what is inside of each box, which must lie in the image."""
    for index, one in enumerate(found, 1):
        x1, y1, x2, y2 = one.box.round().astype(int)
        if x2 > x1 and y2 > y1:
            path = folder / one.name / name.with_name(f"{name.name}_{index}.jpg")
            write_image(path, image[y1:y2, x1:x2])


def yolo_text(found: Detections, image_size: tuple[int, int], scores: bool) -> str:
    """Lines ``class cx cy w h`` and, if asked for, the score.

    Classes count from 0 (face); boxes are cut to the image and divided by its (height, width).
    """
    height, width = image_size
    inside = np.clip(found.boxes.astype(np.float64) / [width, height, width, height], 0, 1)
    boxes = xywh_to_cxcywh(xyxy_to_xywh(inside))
    lines = []
    for (x, y, w, h), score, label in zip(boxes.tolist(), found.scores, found.labels, strict=True):
        if w > 0 and h > 0:
            lines.append(f"{label - 1} {x:.6f} {y:.6f} {w:.6f} {h:.6f}{f' {score:.6f}' if scores else ''}\n")
    return "".join(lines)


def coco_annotations(findings: Findings, image_id: int, first_id: int) -> list[dict]:
    """COCO entries with ``bbox`` x y w h in pixels and ``score``.

    Where asked for also ``pair_id`` and ``track_id``, None for what has none.
    """
    found = findings.detections
    boxes, scores = found.boxes_xywh.round(4).tolist(), found.scores.astype(np.float64).round(6).tolist()
    rows = zip(boxes, scores, found.labels.tolist(), strict=True)
    entries = []
    for index, (box, score, label) in enumerate(rows):
        entry = {"id": first_id + index, "image_id": image_id, "category_id": label, "bbox": box}
        entry |= {"area": round(box[2] * box[3], 4), "iscrowd": 0, "score": score}
        for key, numbers in (("pair_id", findings.pairs), ("track_id", findings.tracks)):
            if numbers is not None:
                entry[key] = int(numbers[index]) or None
        entries.append(entry)
    return entries
