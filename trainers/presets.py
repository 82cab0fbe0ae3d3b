"""Named settings for MotionDirector: low, preferred and best as ExponentialML's AnimateDiff-MotionDirector has them (its
configs.py), and consumer for a GPU with 8 GB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Preset(NamedTuple):
    """What it sets of a dataset and of a training."""

    dataset: Mapping[str, Any]
    training: Mapping[str, Any]


def _preset(side: int, rank: int, aspect_buckets: bool, **training: Any) -> Preset:
    dataset = {"width": side, "height": side, "aspect_buckets": aspect_buckets}
    return Preset(dataset, {"rank": rank, "gradient_checkpointing": True, **training})


PRESETS = {
    "consumer": _preset(384, 32, aspect_buckets=True, batch_size=1, precision="auto"),
    "low": _preset(256, 32, aspect_buckets=False),
    "preferred": _preset(384, 64, aspect_buckets=True),
    "best": _preset(512, 64, aspect_buckets=True),
}
CUSTOM = "custom"
