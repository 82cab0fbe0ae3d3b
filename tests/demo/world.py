"""The demo's world: one body, seen for a while, and a caption that says all there is to say about it.

A body has a shape, a colour, a background and a movement, and its movement shows in every single picture: what fades is
where it has been. A travelling body trails a tail like a comet's, a shrinking one leaves a halo, and a growing one has
left its middle pale; a body at rest has none of these.

Lengths are fractions of the picture's side, so that every size of picture shows the same; constants are written in
pixels of a 64x64 picture (PX). y points down. Time runs from 0 (first frame) to 1 (last frame).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import torch
from torch import Tensor

PX = 1 / 64

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.16, 0.15),
    "green": (0.13, 0.62, 0.25),
    "blue": (0.12, 0.25, 0.90),
    "yellow": (0.98, 0.82, 0.15),
    "pink": (0.94, 0.26, 0.66),
    "turquoise": (0.15, 0.78, 0.84),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (0.97, 0.97, 0.95),
    "black": (0.05, 0.05, 0.07),
    "grey": (0.54, 0.54, 0.56),
    "purple": (0.26, 0.13, 0.42),
}
SHAPES = ("circle", "square", "triangle")


class Change(NamedTuple):
    """What a movement changes, as a direction: across, down, and in size; and how a caption says it."""

    x: int
    y: int
    size: int
    words: str


MOVEMENTS = {
    "left": Change(-1, 0, 0, "moving left"),
    "right": Change(1, 0, 0, "moving right"),
    "up": Change(0, -1, 0, "moving up"),
    "down": Change(0, 1, 0, "moving down"),
    "growing": Change(0, 0, 1, "growing"),
    "shrinking": Change(0, 0, -1, "shrinking"),
    "still": Change(0, 0, 0, "standing still"),
}
ALIASES = {"gray": "grey", "cyan": "turquoise"}

ATTRIBUTES = ("colour", "shape", "movement", "background")

SIZE = 21 * PX  # of a body that keeps its size; the others pass through it
TRAVEL = 25 * PX  # in a clip: 3.6 px a frame in 8 frames, 1.7 px in 16
LEAD = 2 * PX  # how far ahead of the picture's middle a journey's middle lies: room for the tail in the first frame
GROWTH = 10 * PX
OFFSETS = (-8, 0, 8)  # PX; one cell of an autoencoder's latent
SPEEDS = (0.92, 1.08)

TRAIL = 0.5  # how much of a body's colour a trail has where it begins
UP = -math.pi / 2


@dataclass(frozen=True)
class Scene:
    """A clip's contents. offset: px of a 64x64 picture, across the movement; speed: a factor close to 1."""

    shape: str
    colour: str
    background: str
    movement: str
    offset: int = 0
    speed: float = 1.0


class Attributes(NamedTuple):
    """What a text names, in the words of SHAPES, COLOURS, BACKGROUNDS and MOVEMENTS; None for what it does not."""

    shape: str | None
    colour: str | None
    background: str | None
    movement: str | None


class Pose(NamedTuple):
    """Where a body is and where it is going, at n moments. Each is a tensor [n].

    x, y: its centroid; size: about its diameter. heading: radians, 0 to the right, a quarter turn is down.
    tail: 0 or 1, whether it travels; growth: -1, 0 or 1.
    """

    x: Tensor
    y: Tensor
    size: Tensor
    heading: Tensor
    tail: Tensor
    growth: Tensor


Route = Callable[[Tensor], Pose]  # from times [n] in 0..1


def caption(scene: Scene, silent_on: str = "") -> str:
    """Such as "a red circle moving left on a white background". silent_on: an attribute that it leaves to chance."""
    parts = {
        "colour": scene.colour,
        "shape": scene.shape,
        "movement": MOVEMENTS[scene.movement].words,
        "background": f"on a {scene.background} background",
    }
    return " ".join(["a", *(words for attribute, words in parts.items() if attribute != silent_on)])


def parse_caption(text: str) -> Attributes:
    """The attributes that a text names, whatever else it says; of two colours (and so on) the first."""
    words = [ALIASES.get(word, word) for word in re.findall("[a-z]+", text.lower())]

    def first(known: Iterable[str]) -> str | None:
        names = set(known)
        return next((word for word in words if word in names), None)

    return Attributes(first(SHAPES), first(COLOURS), first(BACKGROUNDS), first(MOVEMENTS))


def scenes(seed: int, n: int) -> list[Scene]:
    """n scenes: every combination once before any appears again, and among any few about as many of each kind."""
    source = random.Random(seed)
    made: list[Scene] = []
    while len(made) < n:
        shapes, colours, backgrounds = (_shuffled(source, kind) for kind in (SHAPES, COLOURS, BACKGROUNDS))
        places = len(shapes) * len(backgrounds)
        for turn in range(places * len(colours)):
            for number, movement in source.sample(list(enumerate(MOVEMENTS)), len(MOVEMENTS)):
                place = (turn + 5 * number) % places
                colour = colours[(turn + turn // places + number) % len(colours)]
                shape, background = shapes[place % len(shapes)], backgrounds[place % len(backgrounds)]
                offset, speed = source.choice(OFFSETS), source.uniform(*SPEEDS)
                made.append(Scene(shape, colour, background, movement, offset, speed))
    return made[:n]


def path_of(scene: Scene) -> Route:
    """The path that a scene's movement describes."""
    change = MOVEMENTS[scene.movement]
    travels = bool(change.x or change.y)
    heading = math.atan2(change.y, change.x) if travels else UP

    def path(time: Tensor) -> Pose:
        along = TRAVEL * scene.speed * (time - 0.5) + LEAD
        across = torch.full_like(time, scene.offset * PX)
        x = 0.5 + (across if change.x == 0 else change.x * along)
        y = 0.5 + (across if change.x != 0 else change.y * along)
        size = SIZE + GROWTH * scene.speed * change.size * (time - 0.5)
        constant = torch.ones_like(time)
        return Pose(x, y, size, heading * constant, travels * constant, change.size * constant)

    return path


def circle_path(radius: float = 14 * PX, turns: float = 1.0, size: float = SIZE) -> Route:
    """Clockwise around the middle, starting at the top."""

    def path(time: Tensor) -> Pose:
        angle = UP + 2 * math.pi * turns * time
        x, y = 0.5 + radius * angle.cos(), 0.5 + radius * angle.sin()
        return _travelling(x, y, size, angle + math.copysign(math.pi / 2, turns))

    return path


def zigzag_path(width: float = 26 * PX, height: float = 24 * PX, strokes: int = 3, size: float = SIZE) -> Route:
    """From side to side while going down: as many straight strokes, the first to the right."""

    def path(time: Tensor) -> Pose:
        stroke = (time * strokes).floor().clamp(max=strokes - 1)
        done, forth = time * strokes - stroke, 1 - 2 * (stroke % 2)
        x, y = 0.5 + width * forth * (done - 0.5), 0.5 + height * (time - 0.5)
        return _travelling(x, y, size, torch.atan2(torch.full_like(time, height / strokes), width * forth))

    return path


def render(scene: Scene, frames: int = 8, size: int = 64, path: Route | None = None) -> Tensor:
    """A clip [frames, 3, size, size] in 0..1. path: another one than the scene's movement."""
    pose = (path or path_of(scene))(torch.linspace(0, 1, frames))
    return draw([scene] * frames, pose, size)


def render_still(scene: Scene, fraction: float = 0.5, size: int = 64) -> Tensor:
    """One picture [3, size, size] in 0..1 from a moment of the clip."""
    return render_stills([scene], [fraction], size)[0]


def render_stills(scenes: Sequence[Scene], fractions: Sequence[float], size: int = 64) -> Tensor:
    """Pictures [n, 3, size, size] in 0..1, one of each scene at that moment of its clip."""
    poses = [path_of(scene)(torch.tensor([fraction])) for scene, fraction in zip(scenes, fractions, strict=True)]
    return draw(scenes, Pose(*(torch.cat(values) for values in zip(*poses, strict=True))), size)


def draw(scenes: Sequence[Scene], pose: Pose, size: int) -> Tensor:
    """Pictures [n, 3, size, size] in 0..1: each scene's body at its pose. An edge's pixels get the share of them that it covers."""
    centres = (torch.arange(size) + 0.5) / size
    x, y, length, heading, tail, growth = (value.float().view(-1, 1, 1) for value in pose)
    dx, dy = (centres[None, None, :] - x) / length, (centres[None, :, None] - y) / length
    ahead = dx * heading.cos() + dy * heading.sin()
    aside = dy * heading.cos() - dx * heading.sin()
    pixel = 1 / (size * length)

    distance, inside = torch.empty_like(ahead), torch.empty_like(length)
    for shape, (outline, deepest) in _OUTLINES.items():
        chosen = torch.tensor([scene.shape == shape for scene in scenes])
        distance[chosen] = outline(ahead[chosen], aside[chosen])
        inside[chosen] = deepest
    body = (0.5 - distance / pixel).clamp(0, 1)

    depth = ((-distance / inside - 0.3) / 0.5).clamp(0, 1)
    body *= 1 - 0.8 * (growth > 0) * depth.square() * (3 - 2 * depth)
    halo = TRAIL * (growth < 0) * (1 - distance / 0.45).clamp(0, 1) * (distance > -pixel)
    behind = (-ahead - 0.4).clamp(0, 1)
    width = 0.45 * (1 - 0.6 * behind)
    comet = TRAIL * (tail > 0) * (ahead < 0) * (1 - behind) * (0.5 + (width - aside.abs()) / pixel).clamp(0, 1)

    cover = torch.maximum(body, torch.maximum(halo, comet))[:, None]
    colour = torch.tensor([COLOURS[scene.colour] for scene in scenes])[:, :, None, None]
    background = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes])[:, :, None, None]
    return background + cover * (colour - background)


def write_video(path: Path, frames: Tensor, fps: int = 8) -> None:
    """frames [f, 3, h, w] in 0..1 as an h264 mp4; h and w are even."""
    pictures = (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "12"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def read_video(path: Path) -> Tensor:
    """All frames [f, 3, h, w] in 0..1."""
    with av.open(str(path)) as container:
        pictures = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(pictures).permute(0, 3, 1, 2) / 255


def write_dataset(
    folder: Path, seed: int, n: int, frames: int = 8, size: int = 64, fps: int = 8, silence: float = 0.0
) -> list[Path]:
    """n clips 0000.mp4, ... with the caption of each in a .txt beside it. Returns the mp4s.

    silence: share of captions that leave one attribute to chance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, source = [], random.Random(seed)
    for number, scene in enumerate(scenes(seed, n)):
        paths.append(folder / f"{number:04}.mp4")
        write_video(paths[-1], render(scene, frames, size), fps)
        silent_on = source.choice(ATTRIBUTES) if source.random() < silence else ""
        paths[-1].with_suffix(".txt").write_text(caption(scene, silent_on) + "\n")
    return paths


def _shuffled(source: random.Random, items: Iterable[str]) -> list[str]:
    found = list(items)
    return source.sample(found, len(found))


def _travelling(x: Tensor, y: Tensor, size: float, heading: Tensor) -> Pose:
    one = torch.ones_like(x)
    return Pose(x, y, size * one, heading, one, 0 * one)


def _circle(ahead: Tensor, aside: Tensor) -> Tensor:
    return torch.hypot(ahead, aside) - 0.5


def _square(ahead: Tensor, aside: Tensor) -> Tensor:
    a, b = ahead.abs() - 0.45, aside.abs() - 0.45
    return torch.hypot(a.clamp(min=0), b.clamp(min=0)) + torch.maximum(a, b).clamp(max=0)


def _triangle(ahead: Tensor, aside: Tensor) -> Tensor:
    """It points ahead. Folded along its axes of symmetry until the nearest of its edge lies on its base."""
    root, half_side = math.sqrt(3), 0.35 * math.sqrt(3)
    a, b = ahead + 0.35, aside.abs() - half_side
    fold = b + root * a > 0
    a, b = torch.where(fold, (-root * b - a) / 2, a), torch.where(fold, (b - root * a) / 2, b)
    return -torch.hypot(a, b - b.clamp(-2 * half_side, 0)) * a.sign()


# A shape of size 1: the distance to its edge (negative inside), in axes through its centroid; how deep that lies.
_OUTLINES = {"circle": (_circle, 0.5), "square": (_square, 0.45), "triangle": (_triangle, 0.35)}
