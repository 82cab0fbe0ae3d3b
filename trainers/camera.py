"""Camera moves over any footage, still pictures included: a frame that zooms, shifts or turns within the picture. Pure.

So AnimateDiff's MotionLoRAs were made (arXiv:2307.04725, section 4.3): shots of one kind, cut by rule from whatever is filmed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.geometry.transform import crop_and_resize
from torch import Tensor

NONE = "none"
CORNERS = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])


@dataclass(frozen=True)
class Move:
    """What the camera does, each 1 or -1: x to the right, y down, zoom nearer, roll clockwise. What it sees does the opposite."""

    x: int = 0
    y: int = 0
    zoom: int = 0
    roll: int = 0


MOVES = {
    "zoom_in": Move(zoom=1),
    "zoom_out": Move(zoom=-1),
    "pan_left": Move(x=-1),
    "pan_right": Move(x=1),
    "tilt_up": Move(y=-1),
    "tilt_down": Move(y=1),
    "roll_clockwise": Move(roll=1),
    "roll_anticlockwise": Move(roll=-1),
}
CAMERAS = (NONE, *MOVES)


def film(picture: Tensor, camera: str, amount: float, time: float, height: int, width: int) -> Tensor:
    """What the camera sees of picture [3, h, w] in [0, 1] at a time from 0 to 1 of its move, [3, height, width].

    amount, above 0 and at most 1, of the whole move: things get 1 + amount times as large or as small, shift by that
    share of the frame, or turn by that share of a quarter turn, upright halfway. The frame is never squashed, never
    leaves the picture, and begins (or ends) as large as that allows.
    """
    move, frame = MOVES[camera], torch.tensor([width, height])
    most = abs(move.roll) * amount * math.pi / 4
    reach = frame * torch.tensor([
        _spanned(height / width, most) + amount * abs(move.x), _spanned(width / height, most) + amount * abs(move.y),
    ])  # fmt: skip
    size = _size(picture)
    # pixels of the picture in one of the frame
    scale = float((size / reach).min()) * (1 + amount) ** -{1: time, -1: 1 - time}.get(move.zoom, 0.0)
    reduced = picture[None]
    if scale > 1:  # fine patterns would flicker
        smaller = [round(side / scale) for side in picture.shape[1:]]
        reduced = F.interpolate(reduced, size=smaller, mode="bicubic", antialias=True, align_corners=False)
    turn, shift = move.roll * amount * math.pi / 2 * (time - 0.5), amount * (time - 0.5)
    axes = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    # middles of the pixels in the corners
    corners = (CORNERS * (frame - 1) + shift * frame * torch.tensor([move.x, move.y])) @ axes * scale + size / 2
    box = corners * _size(reduced[0]) / size - 0.5
    (seen,) = crop_and_resize(reduced, box[None], (height, width), mode="bicubic", padding_mode="border")
    return seen.clamp(0, 1)


def _size(picture: Tensor) -> Tensor:
    return torch.tensor([picture.shape[2], picture.shape[1]])


def _spanned(ratio: float, angle: float) -> float:
    """How wide a frame of width 1 and height ratio gets at most on its way to this angle."""
    angle = min(angle, math.atan(ratio))
    return math.cos(angle) + ratio * math.sin(angle)
