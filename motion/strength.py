"""How much a motion model does: over the frames of a clip, over the steps of a sampling, over the picture, and block by block. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor

from .curves import Curve
from .moment import ClipFrames

EFFECT, ATTENTION = "effect", "attention scale"
KINDS = [EFFECT, ATTENTION]
_NUMBER = re.compile(r"[-+]?(\d{1,9}\.?\d*|\.\d+)")
_BLOCK = re.compile(r"(down|up)(?:\.(\d+)(?:\.(\d+))?)?|mid")

Factor = float | Tensor
_masks_by_size: WeakKeyDictionary[MotionStrength, dict[Any, Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class MotionStrength:
    """One factor on a motion model, the product of all that it is made of.

    kind: of its effect, x + factor * motion(x); or of its attention's queries, where more than 1 makes each frame look
    at fewer others, and movement larger. over_frames: one value for each frame. over_steps: over the sampling, as
    start_percent counts it. mask: [n, h, w], 0 to 1, one for all frames or from the start again where there are fewer.
    blocks: factors by "down", "down.1", "down.1.0", "mid", "up.2", ...; of several that hold, the longest counts.
    """

    kind: str = EFFECT
    amount: float = 1.0
    over_frames: Curve | None = None
    over_steps: Curve | None = None
    mask: Tensor | None = None
    blocks: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected {' or '.join(KINDS)}, found {self.kind!r}.")
        for name in self.blocks:
            if not _BLOCK.fullmatch(name):
                raise ValueError(f"blocks: expected down, down.1, down.1.0, mid, up or the like, found {name!r}.")

    def check_blocks(self, sites: Iterable[str]) -> None:
        """Raises ValueError for blocks without a motion module. sites: of a motion model, as its file names them."""
        known = {prefix for site in sites for prefix in _prefixes(site)}
        strangers = [name for name in self.blocks if name not in known]
        if strangers:
            raise ValueError(
                f"blocks: this motion model has no block {strangers[0]!r}. It has {', '.join(sorted(known))}."
            )

    def constant(self, site: str, percent: float) -> float:
        """The part that is the same for all frames and positions: in this block, this far into the sampling (0 to 1)."""
        of_block = next((self.blocks[name] for name in reversed(_prefixes(site)) if name in self.blocks), 1.0)
        return self.amount * of_block * (1.0 if self.over_steps is None else self.over_steps.at(percent))

    def varying(self, x: Tensor, shown: ClipFrames) -> Tensor | None:
        """The part that differs from frame to frame or from place to place, [n, 1, 1 or h, 1 or w]; None where none does.

        x: [n, channels, h, w], the frames of all clips.
        """
        if self.over_frames is None and self.mask is None:
            return None
        frames = [frame for clip in shown.clips for frame in clip]
        result = x.new_ones(len(frames), 1, 1, 1)
        if self.over_frames is not None:
            values = self.over_frames.over_frames(shown.total)
            result = x.new_tensor([values[frame] for frame in frames]).view(-1, 1, 1, 1)
        if self.mask is not None:
            masks = self._masks(x)
            result = result * (masks if len(masks) == 1 else masks[[frame % len(masks) for frame in frames]])
        return result

    def _masks(self, x: Tensor) -> Tensor:
        """The mask at the size of x, [n, 1, h, w]: made once for each size that the blocks of a network have."""
        assert self.mask is not None
        sizes = _masks_by_size.setdefault(self, {})
        kind = (*x.shape[2:], x.device, x.dtype)
        if kind not in sizes:
            full = self.mask.float().unsqueeze(1)  # scaled in float32: half precision has no antialiasing on a CPU
            sizes[kind] = F.interpolate(full, size=x.shape[2:], mode="bilinear", antialias=True).to(x)
        return sizes[kind]


def check_curves(over_frames: Curve | None, over_steps: Curve | None, frames: int) -> None:
    """Raises ValueError for curves that a clip of so many frames, or a sampling, cannot follow."""
    if over_frames is not None:
        over_frames.over_frames(frames)
    if over_steps is not None:
        over_steps.at(0.0)


def parse_blocks(text: str) -> dict[str, float]:
    """Factors of blocks from "down.1: 0.5, mid: 0", with commas or line by line. Raises ValueError with what was expected."""
    found: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in re.split(r"[,\n]", text))):
        name, _, value = (part.strip() for part in entry.partition(":"))
        if not _NUMBER.fullmatch(value):
            raise ValueError(f"blocks: expected a block and its strength, such as down.1: 0.5, found {entry!r}.")
        if name in found:
            raise ValueError(f"blocks: expected {name} once, found it again.")
        found[name] = float(value)
    return found


def product(strengths: Iterable[MotionStrength], kind: str, site: str, percent: float) -> float:
    """Of the constant parts of all strengths of this kind."""
    result = 1.0
    for strength in strengths:
        if strength.kind == kind:
            result *= strength.constant(site, percent)
    return result


def varying_product(strengths: Iterable[MotionStrength], kind: str, x: Tensor, shown: ClipFrames) -> Tensor | None:
    """Of the varying parts of all strengths of this kind; None where there is none."""
    result = None
    for strength in strengths:
        part = strength.varying(x, shown) if strength.kind == kind else None
        if part is not None:
            result = part if result is None else result * part
    return result


def _prefixes(site: str) -> list[str]:
    """down_blocks.1.motion_modules.0 -> down, down.1, down.1.0."""
    group, *numbers = re.sub(r"_block(s)?|motion_modules\.", "", site).split(".")
    if group == "mid":
        return [group]
    return [".".join([group, *numbers[:length]]) for length in range(len(numbers) + 1)]
