"""What a training run is told. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from ..motion.scribbles import LINES, METHODS
from ..motion.sparse_formats import SparseKind

NEW_MODULE_FRAMES = 32
PRECISIONS = ("auto", "float32", "bfloat16")
SCHEDULES = ("constant", "cosine")
SPARSE_KINDS = tuple(kind.name.lower() for kind in SparseKind)
ORIGINAL, DIFFUSERS = "original", "diffusers"
LAYOUTS = (ORIGINAL, DIFFUSERS)

Config = TypeVar("Config", bound="TrainConfig")


class ConfigError(ValueError):
    """A setting that cannot be; the message names it, what was expected and what was found."""


@dataclass(frozen=True)
class TrainConfig:
    """What every recipe has in common.

    batch_size counts clips; accumulate batches make one optimizer step. warmup_steps: the learning rate rises over them
    from zero; lr_schedule then keeps it ("constant") or lowers it to zero ("cosine"). min_snr_gamma: 0 is off
    (arXiv:2303.09556). truncated_snr_cap: 0 is off; weighs noisy samples up to so much more (arXiv:2202.00512).
    timestep_bias: 0 draws timesteps evenly, more prefers noisy ones, where the order of frames is decided. ema_decay: 0
    is off; the averaged weights are what is saved. optimizer: one of optimizers.KINDS. noise_offset: 0 is off; adds to the
    noise of a whole clip and channel, which teaches its brightness too. held_out: so many clips are not trained on; their
    loss is measured every validate_every steps and after the last, and what it is lowest for is kept, too. tensorboard: write
    logs for it. precision: what layers compute in ("float32", "bfloat16", or "auto": bfloat16 where the device is good at
    it); weights are kept and updated in float32. gradient_checkpointing: less memory for more time. save_every: 0 only at
    the end.
    """

    name: str
    steps: int = 1000
    batch_size: int = 1
    accumulate: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    warmup_steps: int = 0
    lr_schedule: str = "constant"
    max_grad_norm: float = 1.0
    min_snr_gamma: float = 0.0
    truncated_snr_cap: float = 0.0
    timestep_bias: float = 0.0
    optimizer: str = "AdamW"
    noise_offset: float = 0.0
    caption_dropout: float = 0.1
    ema_decay: float = 0.0
    held_out: int = 0
    validate_every: int = 50
    tensorboard: bool = False
    precision: str = "auto"
    gradient_checkpointing: bool = True
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        _check(
            bool(self.name) and not set(self.name) & set('/\\:*?"<>|'), "name", "a file name without folders", self.name
        )
        for key in ("steps", "batch_size", "accumulate", "validate_every"):
            _check(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in ("learning_rate", "max_grad_norm"):
            _check(getattr(self, key) > 0, key, "more than 0", getattr(self, key))
        for key in ("held_out", "noise_offset", "min_snr_gamma", "truncated_snr_cap", "timestep_bias", "weight_decay"):
            _check(getattr(self, key) >= 0, key, "0 or more", getattr(self, key))
        for key in ("caption_dropout", "ema_decay"):
            _check(0 <= getattr(self, key) < 1, key, "from 0 to below 1", getattr(self, key))
        _check(self.precision in PRECISIONS, "precision", " or ".join(map(repr, PRECISIONS)), self.precision)
        _check(self.lr_schedule in SCHEDULES, "lr_schedule", " or ".join(map(repr, SCHEDULES)), self.lr_schedule)


@dataclass(frozen=True)
class MotionModuleConfig(TrainConfig):
    """Stage 2 of AnimateDiff (arXiv:2307.04725, section 4.2).

    trainable: the weights to train are those whose name contains one of these ("motion_modules." is all of them;
    "to_q" only the queries). image_fraction: share of batches that are single pictures, so that the module learns to
    leave a picture alone. max_frames: the longest clip it can ever see; 0 is as the motion model that it starts from, or
    NEW_MODULE_FRAMES; more than that one has continues its positional encoding, less leaves it. middle: whether a new module
    sits in the UNet's middle too, as v2's do; one without is v3's where it has 32 frames, else v1's. sharded: several processes
    keep a part each of its weights, gradients and optimizer state (sharding.py), for less memory and more traffic.
    """

    trainable: tuple[str, ...] = ("motion_modules.",)
    image_fraction: float = 0.0
    max_frames: int = 0
    middle: bool = True
    sharded: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(0 <= self.image_fraction < 1, "image_fraction", "from 0 to below 1", self.image_fraction)
        _check(self.max_frames >= 0, "max_frames", "0 or more", self.max_frames)
        _check(bool(self.trainable), "trainable", "at least one part of a weight's name", self.trainable)


@dataclass(frozen=True)
class LoraConfig(TrainConfig):
    """What recipes that train LoRAs have in common.

    alpha: 0 is the rank.
    """

    rank: int = 64
    alpha: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.rank >= 1, "rank", "at least 1", self.rank)
        _check(self.alpha >= 0, "alpha", "0 (the rank) or more", self.alpha)
        _check(0 <= self.dropout < 1, "dropout", "from 0 to below 1", self.dropout)


@dataclass(frozen=True)
class MotionDirectorConfig(LoraConfig):
    """MotionDirector (arXiv:2310.08465). learning_rate is the temporal LoRA's.

    targets: layers whose name ends in one of these. spatial_probability: share of steps that have a spatial path. debias:
    weight of a clip's anchor frame in the appearance-debiased loss; 0 is the plain loss.
    """

    learning_rate: float = 5e-4
    spatial_learning_rate: float = 1e-4
    spatial_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in")
    temporal_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    spatial_probability: float = 0.8
    debias: float = 1.0
    steps: int = 300
    caption_dropout: float = 0.0
    save_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(0 <= self.spatial_probability <= 1, "spatial_probability", "from 0 to 1", self.spatial_probability)
        _check(self.debias >= 0, "debias", "0 or more", self.debias)
        _check(self.spatial_learning_rate > 0, "spatial_learning_rate", "more than 0", self.spatial_learning_rate)


@dataclass(frozen=True)
class DomainAdapterConfig(LoraConfig):
    """Stage 1 of AnimateDiff (arXiv:2307.04725, section 4.1). Rank and layers are those of v3_sd15_adapter.

    targets: layers of the image model whose name ends in one of these. batch_size counts frames, each of a random clip.
    """

    rank: int = 128
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    batch_size: int = 4


@dataclass(frozen=True)
class MotionLoraConfig(LoraConfig):
    """Stage 3 of AnimateDiff, MotionLoRA (arXiv:2307.04725, section 4.3). Rank and layers are those of the official ones.

    targets: layers of the motion model whose name ends in one of these.
    """

    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    steps: int = 2000


@dataclass(frozen=True)
class SparseCtrlConfig(TrainConfig):
    """SparseCtrl (arXiv:2311.16933).

    kind: what is shown, "rgb" pictures or a "scribble" of them. In ends of all clips the first, the last or both frames are
    shown, in the others 1 to shown of any. trainable: the weights to train are those whose name in the file contains one of
    these; "" is in all of them. max_frames: length of the positional encoding; one that is fine-tuned keeps its own.
    scribble_method, scribble_threshold: how scribbles are made (motion/scribbles.py). layout: of the file, "original" or
    "diffusers", a folder that SparseControlNetModel.from_pretrained() takes.
    """

    kind: str = "rgb"
    trainable: tuple[str, ...] = ("",)
    ends: float = 0.5
    shown: int = 4
    max_frames: int = 32
    scribble_method: str = LINES
    scribble_threshold: float = 0.1
    layout: str = ORIGINAL

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.kind in SPARSE_KINDS, "kind", " or ".join(map(repr, SPARSE_KINDS)), self.kind)
        _check(0 <= self.ends <= 1, "ends", "from 0 to 1", self.ends)
        _check(self.shown >= 1, "shown", "at least 1", self.shown)
        _check(
            self.scribble_method in METHODS, "scribble_method", " or ".join(map(repr, METHODS)), self.scribble_method
        )
        _check(self.layout in LAYOUTS, "layout", " or ".join(map(repr, LAYOUTS)), self.layout)
        _check(bool(self.trainable), "trainable", "at least one part of a weight's name", self.trainable)


def make_config(kind: type[Config], settings: Mapping[str, Any]) -> Config:
    """kind(**settings) with a message that lists the known names for one that is not. Lists become tuples."""
    known = [field.name for field in fields(kind)]
    for key in settings:
        _check(key in known, key, f"one of {', '.join(known)}", key)
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    return kind(**values)


def _check(right: bool, key: str, expected: str, found: object) -> None:
    if not right:
        raise ConfigError(f"{key}: expected {expected}, found {found!r}")
