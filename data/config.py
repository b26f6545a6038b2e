"""Networks, class names and pixel mean: every constant that the rest derives from."""

from __future__ import annotations

import reprlib
from dataclasses import asdict, dataclass, fields, replace
from math import inf, sqrt

#: Names of the foreground classes by label; label 0 is the background.
CLASS_NAMES: dict[int, str] = {1: "face", 2: "person"}

#: Labels by class name: ``{"face": 1, "person": 2}``.
CLASS_LABELS: dict[str, int] = {name: label for label, name in CLASS_NAMES.items()}

#: BGR by label, told apart by colour-blind eyes too (Okabe and Ito).
CLASS_COLOURS: dict[int, tuple[int, int, int]] = {1: (0, 159, 230), 2: (233, 180, 86)}

#: Subtracted from the blue, green and red channel of a 0..255 image; the input is not scaled.
PIXEL_MEAN_BGR: tuple[float, float, float] = (104.0, 117.0, 123.0)


def label_name(label: int) -> str:
    """The class of a label; ``ignore face`` or ``ignore person`` of a negative one."""
    return CLASS_NAMES[label] if label > 0 else f"ignore {CLASS_NAMES[-label]}"


@dataclass(frozen=True)
class ModelConfig:
    """A network and its published training schedule.

    Attributes:
        name: value of ``--network``.
        backbone: ``mobilenet0.25`` or ``resnet50``.
        fpn_channels: channels of every pyramid level; up to 64 the pyramid uses leaky ReLU, else ReLU.
        backbone_channels: channels of the three backbone outputs, finest first.
        strides: pixels between two cells, one a level.
        min_sizes: prior sizes in pixels, one tuple a level.
        heights_over_widths: ratios of the priors of each size, in their order within a cell.
        clip_priors: whether prior coordinates are clipped to [0, 1].
        variances: scale of the centre and of the size offsets (SSD, Liu et al. 2016).
        class_names: foreground classes by ascending label.
        image_size: side in pixels of a square training image.
        batch_size, epochs, lr_decay_epochs: the published schedule.
    """

    name: str
    backbone: str
    fpn_channels: int
    backbone_channels: tuple[int, ...]
    image_size: int
    epochs: int
    lr_decay_epochs: tuple[int, ...]
    clip_priors: bool
    batch_size: int = 24
    strides: tuple[int, ...] = (8, 16, 32)
    min_sizes: tuple[tuple[int, ...], ...] = ((16, 32), (64, 128), (256, 512))
    heights_over_widths: tuple[float, ...] = (1.0, 2.5, 3.33)
    variances: tuple[float, float] = (0.1, 0.2)
    class_names: tuple[str, ...] = tuple(CLASS_NAMES.values())

    @property
    def num_classes(self) -> int:
        """Foreground classes and the background."""
        return len(self.class_names) + 1

    def prior_shapes(self) -> list[list[tuple[float, float]]]:
        """(width, height) in pixels of a cell's priors, for every level: each size with every ratio."""
        return [
            [(size / sqrt(ratio), size * sqrt(ratio)) for size in sizes for ratio in self.heights_over_widths]
            for sizes in self.min_sizes
        ]

    def to_dict(self) -> dict:
        """Plain data for checkpoints and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        """Inverse of `to_dict`; lists become tuples again.

        Raises:
            ValueError: a field is missing or unknown, or holds another kind of value than in `NETWORKS`.
        """

        def freeze(value: object, depth: int = 2) -> object:
            if not isinstance(value, list | tuple):
                return value
            if not depth or len(value) > _MOST_VALUES:  # a pickle of a few lines can unfold without end
                raise ValueError
            return tuple(freeze(v, depth - 1) for v in value)

        try:
            cfg = cls(**{key: freeze(value) for key, value in dict(values).items()})
            known = next(network for network in NETWORKS.values() if network.backbone == cfg.backbone)
            names = known.class_names[: len(cfg.class_names)]
            fits = cfg.class_names == names and len(cfg.variances) == len(known.variances)
            fits &= cfg.strides == known.strides  # they are those of the backbone
            fits &= all(_is_alike(getattr(cfg, f.name), getattr(known, f.name)) for f in fields(cls))
        except (TypeError, ValueError, StopIteration):
            fits = False
        if not fits:
            raise ValueError(f"not a network configuration: {reprlib.repr(values):.200}")
        return cfg


#: More values than any field has.
_MOST_VALUES = 100


def _is_alike(value: object, known: object) -> bool:
    """Whether a value could stand for ``known``: of its type, tuples with elements, numbers above 0."""
    if isinstance(known, tuple):
        return isinstance(value, tuple) and bool(value) and all(_is_alike(v, known[0]) for v in value)
    if isinstance(known, bool | str):
        return isinstance(value, type(known))
    return type(value) in (int, type(known)) and 0 < value < inf


cfg_mnet = ModelConfig(
    name="mobile0.25",
    backbone="mobilenet0.25",
    fpn_channels=64,
    backbone_channels=(64, 128, 256),
    image_size=640,
    epochs=250,
    lr_decay_epochs=(190, 220),
    clip_priors=True,
)

cfg_re50 = ModelConfig(
    name="resnet50",
    backbone="resnet50",
    fpn_channels=256,
    backbone_channels=(512, 1024, 2048),
    image_size=840,
    epochs=100,
    lr_decay_epochs=(70, 90),
    clip_priors=False,
)

#: Networks by the value of ``--network``.
NETWORKS: dict[str, ModelConfig] = {cfg.name: cfg for cfg in (cfg_mnet, cfg_re50)}


#: How far a photo may be enlarged.
GREATEST_SCALE = 16


@dataclass(frozen=True)
class Pyramid:
    """How boxes that were found in a photo, at one scale or several, are joined.

    The larger a box is at a scale, the likelier it is a part of something that the network cannot see whole,
    and the more a coarser scale is to be believed. Chosen on validation photos and enlargements of them.

    Attributes:
        coarsest_long_side: longer side in pixels of a photo at its coarsest scale, so that what fills a photo
            is seen alike, whatever the photo's size; of photos less than 1.4 times as long, their own.
        coarser_long_side, coarser_share: the other coarser scales have this longer side and, doubled again
            and again, every greater one, as far as a scale has at most this share of the photo's pixels.
        enlarged_long_side: greatest longer side of a photo that is enlarged, at its finest scale; enlarging
            finds the small faces and persons of small photos, and larger photos have pixels enough.
        least_side: boxes whose longer side at their scale is less are left to the finer scales; 64 would
            halve the looks at a small person, and looks that agree are worth more than doubtful boxes cost.
        whole_sides: by ascending label, the longer side up to which scores keep their full weight; a part of
            a face does not look like a face, a part of a person does look like a person.
        greatest_sides: the longer side at which nothing of a score is left: with one coarser scale, that of
            the training photos; with several, half of it.
        voters_iou, voters_share: a box that NMS keeps becomes the mean, weighted by their scores, of all
            that overlap it by so much and score at least this share of it (box voting, Gidaris and Komodakis
            2015).
        lone_shares, many_voters: by ascending label, what is left of the score of a box that no other agrees
            with, and how many voters more bring back about two thirds of the rest: what few boxes agree on is
            seldom there, unless it is small, as faces are.
    """

    coarsest_long_side: int = 416
    coarser_long_side: int = 640
    coarser_share: float = 0.3
    enlarged_long_side: int = 1024
    least_side: int = 24
    whole_sides: tuple[int, ...] = (128, 0)
    greatest_sides: tuple[int, int] = (640, 320)
    voters_iou: float = 0.6
    voters_share: float = 0.5
    lone_shares: tuple[float, ...] = (0.8, 0.5)
    many_voters: float = 8.0

    def scales(self, long_side: int, enlarge: bool = True) -> tuple[float, ...]:
        """Scales in descending order, 1 among them, for a photo whose longer side has these pixels."""
        scales = [1.0]
        while enlarge and long_side * scales[0] * 2 <= self.enlarged_long_side and scales[0] < GREATEST_SCALE:
            scales.insert(0, scales[0] * 2)
        sides = [self.coarsest_long_side] if self.coarsest_long_side * sqrt(2) < long_side else []
        side = self.coarser_long_side
        while side * side <= self.coarser_share * long_side * long_side:
            sides.append(side)
            side *= 2
        return (*scales, *(side / long_side for side in reversed(sides)))


#: Measured with mobile0.25, for which 640 is the side of a training photo.
PYRAMID = Pyramid()


def one_class(cfg: ModelConfig) -> ModelConfig:
    """The face detector that ``cfg`` descends from: square, unclipped priors and the class face alone."""
    return replace(cfg, heights_over_widths=(1.0,), clip_priors=False, class_names=("face",))
