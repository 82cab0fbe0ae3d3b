"""Reads back from pictures what the demo's world says: background, colour, shape, place, size, movement.

It knows the world's palette and shapes but nothing of how a picture was made, so that it judges sampled pictures, too.
Only a body counts: tails, halos and pale middles are looked at for one reading alone, `mark`. Pictures are square;
lengths are in px of a 64x64 picture, whatever the size given.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .world import BACKGROUNDS, COLOURS, MOVEMENTS

Array = np.ndarray

SMOOTHING = 0.7  # px
CONTRAST = 0.2  # between a body and its background, as a distance in RGB; with less there is no body
SOLID = 0.66  # of a picture's strongest contrast; trails have less
SMALLEST = 50.0  # px^2, of a body
STRAIGHT = 3.0  # px that the centroids of a straight movement are astray at most
EVEN = 2.0  # steadiness of an even movement at most

_CROSS = np.pad(ndimage.generate_binary_structure(2, 1)[None], ((1, 1), (0, 0), (0, 0)))  # neighbours in a frame


@dataclass(frozen=True)
class Picture:
    """One frame. bodies: 0 is lost, more than 1 doubled; without one, the rest is None or NaN.

    x, y: centroid of the largest body; size: diameter of the circle of its area; mark: the movement that this frame
    alone shows, by its trail.
    """

    background: str
    bodies: int
    colour: str | None
    shape: str | None
    x: float
    y: float
    size: float
    mark: str | None


@dataclass(frozen=True)
class Clip:
    """A whole clip; background, colour and shape are those of most frames.

    movement: None where it is none of the world's. travel: what a straight line through the frames makes of x, y and
    size, in px per clip; astray: how far from it their centroids are, in px (root of the mean square).
    steadiness: largest step of the centroid over the median one (taken as 0.5 px at least).
    lost, doubled: frames with no body and with several.
    """

    pictures: tuple[Picture, ...]
    background: str
    colour: str | None
    shape: str | None
    movement: str | None
    travel: tuple[float, float, float]
    astray: float
    steadiness: float
    lost: int
    doubled: int

    @property
    def even(self) -> bool:
        """One step like the other, and along a line: both are needed to tell 8 shuffled frames from a movement."""
        return self.steadiness <= EVEN and self.astray <= STRAIGHT


def read_clip(frames: Tensor | Array) -> Clip:
    """frames [f, 3, h, w], float in 0..1 or uint8, as a movement."""
    pictures = read_pictures(frames)
    track = np.array([(picture.x, picture.y, picture.size) for picture in pictures])
    travel, astray = _line(track)
    steps = np.linalg.norm(np.diff(track[:, :2], axis=0), axis=1)
    steps = steps[np.isfinite(steps)]
    kinds = (Counter(getattr(picture, kind) for picture in pictures) for kind in ("background", "colour", "shape"))
    return Clip(
        tuple(pictures),
        *(counts.most_common(1)[0][0] for counts in kinds),
        movement=_movement(travel, astray),
        travel=travel,
        astray=astray,
        steadiness=float(steps.max() / max(np.median(steps), 0.5)) if len(steps) else math.nan,
        lost=sum(picture.bodies == 0 for picture in pictures),
        doubled=sum(picture.bodies > 1 for picture in pictures),
    )


def read_pictures(frames: Tensor | Array) -> list[Picture]:
    """Pictures [n, 3, h, w], float in 0..1 or uint8, each on its own."""
    pixels = torch.as_tensor(frames)
    rgb = pixels.permute(0, 2, 3, 1).float().cpu().numpy() / (1 if pixels.is_floating_point() else 255)
    pixel = 64 / rgb.shape[2]
    rgb = ndimage.gaussian_filter(rgb, (0, SMOOTHING / pixel, SMOOTHING / pixel, 0))

    edge = np.ones(rgb.shape[1:3], bool)
    edge[2:-2, 2:-2] = False
    ground = np.median(rgb[:, edge], axis=1)
    contrast = np.linalg.norm(rgb - ground[:, None, None], axis=-1)
    strongest = np.quantile(contrast, 0.99, axis=(1, 2), keepdims=True)
    cover = contrast / np.maximum(strongest, CONTRAST)
    solid = ndimage.binary_fill_holes((cover > SOLID) & (strongest > CONTRAST), _CROSS)
    bodies, inside = _bodies(solid, SMALLEST / pixel**2)
    weight = np.clip((cover - 0.5) / 0.3, 0, 1) * ndimage.maximum_filter(inside, (1, 3, 3))
    weight[ndimage.minimum_filter(inside, (1, 3, 3))] = 1
    reach = 2 * max(1, round(2 / pixel)) + 1
    trail = np.where(ndimage.maximum_filter(inside, (1, reach, reach)), 0, cover)

    rows, columns = (np.mgrid[: rgb.shape[1], : rgb.shape[2]] + 0.5) * pixel
    found = []
    for n, background in enumerate(_nearest(colour, BACKGROUNDS) for colour in ground):
        if not bodies[n]:
            found.append(Picture(background, 0, None, None, math.nan, math.nan, math.nan, None))
            continue
        total = weight[n].sum()
        x, y = float((weight[n] * columns).sum() / total), float((weight[n] * rows).sum() / total)
        size = 2 * math.sqrt(total / math.pi) * pixel
        around = (columns - x + 1j * (rows - y)) / size
        purest = inside[n] & (cover[n] >= 0.85 * cover[n][inside[n]].max())
        colour = _nearest(np.median(rgb[n][purest], axis=0), COLOURS)
        mark = _mark(cover[n], trail[n] / total, around)
        found.append(Picture(background, bodies[n], colour, _shape(weight[n] / total, around), x, y, size, mark))
    return found


def _shape(weight: Array, around: Array) -> str:
    """By how much of an outline comes back after a third and after a quarter of a turn.

    weight: share of the body in each pixel [h, w]; around: places about its centroid, complex, in sizes.
    """
    third, fourth = (abs((weight * around**turns).sum()) for turns in (3, 4))
    return "triangle" if third > 0.018 else "square" if fourth > 0.0042 else "circle"


def _mark(cover: Array, trail: Array, around: Array) -> str:
    """The movement that a body's trail shows: a pale middle, a tail on one side, a halo on all, or none of these.

    cover, trail: of each pixel by anything, and by what is not the body, as a share of its area [h, w].
    """
    distance = np.abs(around)
    if cover[distance < 0.2].mean() < 0.8:
        return "growing"
    trail = np.where((cover > 0.12) & (distance < 1.8), trail, 0)
    amount = trail.sum()
    centre = (trail * around).sum() / max(amount, 1e-6)
    if amount > 0.1 and abs(centre) > 0.35:
        if abs(centre.real) > abs(centre.imag):
            return "left" if centre.real > 0 else "right"
        return "up" if centre.imag > 0 else "down"
    return "shrinking" if amount > 0.19 else "still"


def _movement(travel: tuple[float, float, float], astray: float) -> str | None:
    """The movement that a line of this travel (px per clip in x, y, size) is, if the centroids keep to it."""
    x, y, size = travel
    across, along = sorted((abs(x), abs(y)))
    travels, rests = along >= max(10, 2 * across), along <= 6
    if not (astray <= STRAIGHT and (travels or rests)):
        return None
    signs = (travels * np.sign(x) * (abs(x) == along), travels * np.sign(y) * (abs(y) == along))
    grows = rests * np.sign(size) * (abs(size) >= 4)
    return next(name for name, change in MOVEMENTS.items() if change[:3] == (*signs, grows))


def _line(track: Array) -> tuple[tuple[float, float, float], float]:
    """The straight line through x, y, size [f, 3] over time (frames without a body left out): see Clip."""
    time = np.linspace(-0.5, 0.5, len(track))
    seen = np.isfinite(track[:, 0])
    if seen.sum() < 2:
        return (math.nan, math.nan, math.nan), math.nan
    slope, start = np.polyfit(time[seen], track[seen], 1)
    rest = track[seen] - start - time[seen, None] * slope
    return tuple(slope.tolist()), float(np.sqrt((rest[:, :2] ** 2).sum(1).mean()))


def _bodies(mask: Array, smallest: float) -> tuple[list[int], Array]:
    """How many connected parts of at least `smallest` pixels each mask [n, h, w] has, and the largest of them alone."""
    parts, count = ndimage.label(mask, _CROSS)
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    bodies, largest = [], []
    for part_of in parts:
        found = [part for part in np.unique(part_of) if part and areas[part] >= smallest]
        bodies.append(len(found))
        largest.append(max(found, key=lambda part: areas[part], default=-1))
    return bodies, parts == np.array(largest)[:, None, None]


def _nearest(rgb: Array, palette: dict[str, tuple[float, float, float]]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(rgb - np.array(palette[name]))))
