"""Networks, class names and pixel mean: every constant that the rest derives from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace

#: Names of the foreground classes by label; label 0 is the background.
CLASS_NAMES: dict[int, str] = {1: "face", 2: "person"}

#: Labels by class name: ``{"face": 1, "person": 2}``.
CLASS_LABELS: dict[str, int] = {name: label for label, name in CLASS_NAMES.items()}

#: BGR by label, told apart by colour-blind eyes too (Okabe and Ito).
CLASS_COLOURS: dict[int, tuple[int, int, int]] = {1: (0, 159, 230), 2: (233, 180, 86)}

#: Subtracted from the blue, green and red channel of a 0..255 image; the input is not scaled.
PIXEL_MEAN_BGR: tuple[float, float, float] = (104.0, 117.0, 123.0)


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
    batch_size: int
    epochs: int
    lr_decay_epochs: tuple[int, ...]
    clip_priors: bool
    strides: tuple[int, ...] = (8, 16, 32)
    min_sizes: tuple[tuple[int, ...], ...] = ((16, 32), (64, 128), (256, 512))
    heights_over_widths: tuple[float, ...] = (1.0, 2.5, 3.33)
    variances: tuple[float, float] = (0.1, 0.2)
    class_names: tuple[str, ...] = tuple(CLASS_NAMES.values())

    def __post_init__(self) -> None:
        if not len(self.strides) == len(self.min_sizes) == len(self.backbone_channels):
            raise ValueError(
                f"expected one stride, one tuple of sizes and one channel count a level, got "
                f"{self.strides}, {self.min_sizes} and {self.backbone_channels}"
            )
        if len({len(sizes) for sizes in self.min_sizes}) != 1:
            raise ValueError(f"expected as many prior sizes on every level, got {self.min_sizes}")

    @property
    def num_classes(self) -> int:
        """Foreground classes and the background."""
        return len(self.class_names) + 1

    def to_dict(self) -> dict:
        """Plain data for checkpoints and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        """Inverse of `to_dict`; lists become tuples again.

        Raises:
            ValueError: a field is missing, unknown or does not fit the others.
        """

        def freeze(value: object) -> object:
            return tuple(freeze(v) for v in value) if isinstance(value, list | tuple) else value

        try:
            cfg = cls(**{key: freeze(value) for key, value in dict(values).items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a network configuration: {error}") from None
        known = next((known for known in NETWORKS.values() if known.backbone == cfg.backbone), None)
        if known is None:
            raise ValueError(f"not a network configuration: backbone {cfg.backbone!r}")
        for field in fields(cls):
            if not _is_alike(value := getattr(cfg, field.name), getattr(known, field.name)):
                raise ValueError(f"not a network configuration: {field.name} {str(value)[:80]}")
        if cfg.class_names != tuple(CLASS_NAMES.values())[: len(cfg.class_names)] or len(cfg.variances) != 2:
            raise ValueError(f"not a network configuration: {cfg.class_names[:9]}, {cfg.variances[:9]}")
        return cfg


def _is_alike(value: object, known: object) -> bool:
    """Whether a value could stand for ``known``: of its type, tuples with elements, numbers above 0."""
    if isinstance(known, tuple):
        return isinstance(value, tuple) and bool(value) and all(_is_alike(v, known[0]) for v in value)
    if isinstance(known, bool | str):
        return isinstance(value, type(known))
    return type(value) in (int, type(known)) and 0 < value < math.inf


cfg_mnet = ModelConfig(
    name="mobile0.25",
    backbone="mobilenet0.25",
    fpn_channels=64,
    backbone_channels=(64, 128, 256),
    image_size=640,
    batch_size=24,
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
    batch_size=24,
    epochs=100,
    lr_decay_epochs=(70, 90),
    clip_priors=False,
)

#: Networks by the value of ``--network``.
NETWORKS: dict[str, ModelConfig] = {cfg.name: cfg for cfg in (cfg_mnet, cfg_re50)}


def one_class(cfg: ModelConfig) -> ModelConfig:
    """The face detector that ``cfg`` descends from: square, unclipped priors and the class face alone."""
    return replace(cfg, heights_over_widths=(1.0,), clip_priors=False, class_names=("face",))
