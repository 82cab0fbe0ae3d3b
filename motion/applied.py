"""One motion model at work on one MODEL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention import Kernel
from .live_lora import loras_at_work
from .module import MotionModel, MotionModelHandle
from .moment import ClipFrames
from .picture import Picture
from .strength import ATTENTION, EFFECT, Factor, MotionStrength, check_curves, product, varying_product
from .topology import Block


@dataclass(frozen=True)
class AppliedMotion:
    """sites: UNet block -> name of the motion module that follows it. stretch_to: see PositionalEncoding. picture: what a PIA animates."""

    handle: MotionModelHandle
    sites: dict[Block, str]
    strength: float
    start_percent: float
    end_percent: float
    group_norm: str
    stretch_to: int
    strengths: tuple[MotionStrength, ...] = ()
    picture: Picture | None = None

    @property
    def model(self) -> MotionModel:
        return self.handle.patcher.model

    @property
    def max_frames(self) -> int:
        return max(self.handle.config.max_frames, self.stretch_to)

    @property
    def ranged(self) -> bool:
        return self.start_percent > 0 or self.end_percent < 1

    @property
    def over_steps(self) -> bool:
        return any(part.over_steps is not None for part in (*self.strengths, *self.handle.live))

    def active(self, sigma: float | None, sampling: Any) -> bool:
        """At a step of this sigma of this noise schedule; None: a call from outside of any sampling."""
        if self.strength == 0 or sigma is None:
            return self.strength != 0
        return sampling.percent_to_sigma(self.end_percent) <= sigma <= sampling.percent_to_sigma(self.start_percent)

    def check(self, total: int, at_once: int, source: str) -> None:
        """Raises ValueError for a clip of total frames that it cannot move, at_once of them together. source: the batch has, ..."""
        for part in (*self.strengths, *self.handle.live):
            check_curves(part.over_frames, part.over_steps, total)
        if self.picture is not None:
            self.picture.similarities(total)
        self.check_frames(at_once, source)

    def check_frames(self, frames: int, source: str = "the batch has") -> None:
        if frames > self.max_frames:
            raise ValueError(
                f"{self.handle.name}: this motion model moves at most {self.max_frames} frames at a time, {source} {frames}. "
                f"Use {self.max_frames} frames or fewer, add Context Windows (of at most {self.max_frames}), "
                "or stretch the positional encoding with stretch_to_frames."
            )

    def move(self, x: Tensor, block: Block, shown: ClipFrames, percent: float, kernel: Kernel) -> Tensor:
        """x [clips * frames, channels, h, w] with this motion model's effect after that UNet block, percent into the sampling."""
        site = self.sites.get(block)
        if site is None:
            return x
        self.check_frames(shown.length)
        effect = self.strength * product(self.strengths, EFFECT, site, percent)
        if effect == 0:
            return x
        attention: Factor = product(self.strengths, ATTENTION, site, percent)
        varying = varying_product(self.strengths, ATTENTION, x, shown)
        attention = attention if varying is None else attention * varying
        module = self.model.at(site)
        if self.handle.live:
            # a LoRA over frames has other strengths in each of several windows: those go one by one
            alike = all(clip == shown.clips[0] for clip in shown.clips)
            size = len(x) if alike else shown.length
            result = torch.empty_like(x)
            for start in range(0, len(x), size):
                part = slice(start, start + size)
                own = attention[part] if isinstance(attention, Tensor) else attention
                clip = shown.clips[start // shown.length]
                with loras_at_work(module, site, self.handle.live, x, percent, clip, shown.total):
                    result[part] = module(x[part], shown.length, effect, self.stretch_to, kernel, own)
        else:
            result = module(x, shown.length, effect, self.stretch_to, kernel, attention)
        varying = varying_product(self.strengths, EFFECT, x, shown)
        return result if varying is None else torch.lerp(x, result, varying)
