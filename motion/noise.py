"""The noise that a clip's sampling starts from: FreeInit's low-pass filters, and noise that frames have in common. Pure.

FreeInit (arXiv:2312.07537): what a model makes of a clip leaves its low frequencies in the noise that it was trained on, which
pure noise lacks; so sample, diffuse the result again, keep its low frequencies, and sample from those.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .settings import check

CLIP_AXES = (0, 2, 3)  # frames, height and width of [frames, channels, height, width]
LONGEST_RANGE = 10_000  # seeds that one "first-last" may stand for
NEXT_SEED = 0x9E3779B97F4A7C15  # far beyond seeds that people try

DEFAULT, CONSTANT, REPEATED, FREENOISE = "default", "constant", "repeated", "FreeNoise"
TRAVEL, TRAVEL_AND_BACK = "seed travel", "seed travel and back"
KINDS = [DEFAULT, CONSTANT, REPEATED, FREENOISE, TRAVEL, TRAVEL_AND_BACK]

# From frequencies along frames, height and width in units of the cut-off, and the order, to what passes: 1 at frequency 0.
_RESPONSES: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "gaussian": lambda t, y, x, order: torch.exp(-(t**2 + y**2 + x**2) / 2),
    "butterworth": lambda t, y, x, order: 1 / (1 + (t**2 + y**2 + x**2) ** order),
    "ideal": lambda t, y, x, order: (t**2 + y**2 + x**2 <= 1).double(),
    "box": lambda t, y, x, order: ((t <= 1) & (y <= 1) & (x <= 1)).double(),
}
FILTERS = list(_RESPONSES)


@dataclass(frozen=True)
class FreeInit:
    """Settings of FreeInit. Raises ValueError for those that no sampling can have.

    iterations: how often the clip is sampled; once is without FreeInit. d_s, d_t: where the filter cuts off in space and in
    time, in parts of the highest frequency. order: how steeply butterworth does. next_seed: from one iteration's fresh noise
    to the next one's.
    """

    iterations: int = 2
    filter: str = "butterworth"
    d_s: float = 0.25
    d_t: float = 0.25
    order: int = 4
    next_seed: int = NEXT_SEED

    def __post_init__(self) -> None:
        check(self.iterations >= 1, "iterations", "at least 1", self.iterations)
        check(self.filter in FILTERS, "filter", " or ".join(FILTERS), self.filter)
        check(0 < self.d_s <= 1, "d_s", "more than 0 and at most 1", self.d_s)
        check(0 < self.d_t <= 1, "d_t", "more than 0 and at most 1", self.d_t)
        check(self.order >= 1, "order", "at least 1", self.order)


def low_pass(settings: FreeInit, frames: int, height: int, width: int) -> Tensor:
    """What the filter lets pass of each frequency of rfftn over a clip: [frames, height, width // 2 + 1], double.

    Gaussian, Butterworth's and the ideal filter are round when frequencies are measured in units of their cut-offs.
    """
    double = torch.float64
    in_time = 2 * torch.fft.fftfreq(frames, dtype=double).abs() / settings.d_t
    down = 2 * torch.fft.fftfreq(height, dtype=double).abs() / settings.d_s
    across = 2 * torch.fft.rfftfreq(width, dtype=double) / settings.d_s
    return _RESPONSES[settings.filter](in_time[:, None, None], down[:, None], across, settings.order)


def renewed(settings: FreeInit, diffused: Tensor, fresh: Tensor) -> Tensor:
    """diffused's low frequencies and fresh's high ones. All [frames, channels, height, width]; the result is like diffused.

    In float32 on the CPU, which every machine can do, and to the same bits whatever it samples on.
    """
    frames, _, height, width = diffused.shape
    passed = low_pass(settings, frames, height, width).float().unsqueeze(1)
    low, high = (torch.fft.rfftn(clip.to("cpu", torch.float32), dim=CLIP_AXES) for clip in (diffused, fresh))
    mixed = torch.fft.irfftn(low * passed + high * (1 - passed), s=(frames, height, width), dim=CLIP_AXES)
    return mixed.to(diffused)


@dataclass(frozen=True)
class Drawing:
    """How a clip's noise is drawn where not as the host does.

    seed: in place of the sampler's. further: added to either. skipped: frames before the first. seed_each: every frame of a
    seed of its own, one more than the last one's, and not all of one.
    """

    seed: int | None = None
    further: int = 0
    skipped: int = 0
    seed_each: bool = False

    def first_seed(self, samplers: int) -> int:
        return ((samplers if self.seed is None else self.seed) + self.further) % 2**64

    def noise(self, seed: int, like: Tensor) -> Tensor:
        """From first_seed, in the shape of like."""
        frames = range(self.skipped, self.skipped + like.shape[0])
        if self.seed_each:
            return torch.cat([_of_still((seed + frame) % 2**64, like) for frame in frames])
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((frames.stop, *like.shape[1:]), generator=generator)[frames.start :].to(like)


@dataclass(frozen=True)
class ClipNoise:
    """What the starting noise of a clip's frames has in common. Raises ValueError for settings that no noise can have.

    period: of repeated noise, and the window of FreeNoise, in frames; overlap: of FreeNoise's windows. seeds: of the first
    frames, one each, and again from the start; none: the sampler's seed for all. to_seed: where seed travel leads to. drawing:
    of the noise that this is made of; None: the sampler's own.
    """

    kind: str = DEFAULT
    period: int = 16
    overlap: int = 4
    seeds: tuple[int, ...] = ()
    to_seed: int = 0
    drawing: Drawing | None = None

    def __post_init__(self) -> None:
        check(self.kind in KINDS, "kind", " or ".join(KINDS), self.kind)
        check(self.period >= 1, "period", "at least 1", self.period)
        if self.kind == FREENOISE:
            check(0 <= self.overlap < self.period, "overlap", f"less than period ({self.period})", self.overlap)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from "5, 6, 10-13": a comma or white space between them, ranges with both ends. Raises ValueError with the part that is wrong."""
    seeds: list[int] = []
    for part in re.sub(r"\s*-\s*", "-", text).replace(",", " ").split():
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not (0 <= last - first < LONGEST_RANGE and last < 2**64):
            raise ValueError(
                f'seeds: expected seeds such as "5, 6, 10-13", each less than 2^64, in ranges of at most {LONGEST_RANGE}; found {part!r}.'
            )
        seeds += range(first, last + 1)
    return tuple(seeds)


def arranged(settings: ClipNoise, noise: Tensor) -> Tensor:
    """Starting noise [frames, channels, height, width] with what its frames are to have in common; FreeNoise excepted.

    noise is the sampler's own. With seeds, a frame's noise is what a still of that seed starts from.
    """
    frames = noise.shape[0]
    if settings.seeds:
        seeds = settings.seeds
        noise = torch.cat([_of_still(seeds[frame % len(seeds)], noise) for frame in range(frames)])
    if settings.kind == CONSTANT:
        return noise[[0] * frames]
    if settings.kind == REPEATED:
        return noise[[frame % settings.period for frame in range(frames)]]
    if settings.kind == TRAVEL:
        return between(noise[:1], _of_still(settings.to_seed, noise), torch.linspace(0, 1, frames))
    if settings.kind == TRAVEL_AND_BACK:  # the frame after the last would be the first
        return between(noise[:1], _of_still(settings.to_seed, noise), 1 - (1 - 2 * torch.arange(frames) / frames).abs())
    return noise


def between(first: Tensor, last: Tensor, way: Tensor) -> Tensor:
    """Noise on the way [n], 0..1, from first to last, both [1, ...]: [n, ...]. On the sphere, so that its variance stays."""
    a, b = first.float(), last.float()
    way = way.view(-1, *[1] * (first.ndim - 1)).to(a)
    angle = torch.acos((a.flatten() @ b.flatten() / (a.norm() * b.norm())).clamp(-1, 1))
    if angle < 1e-3:  # the same noise
        return first.expand(len(way), *first.shape[1:]).clone()
    return ((a * torch.sin((1 - way) * angle) + b * torch.sin(way * angle)) / torch.sin(angle)).to(first.dtype)


def _of_still(seed: int, like: Tensor) -> Tensor:
    """As the host makes it for one latent."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, *like.shape[1:]), generator=generator).to(like)
