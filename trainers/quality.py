"""How a clip moves, in two numbers: how far what is seen goes, and how much it stays itself on the way. No host import."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from kornia.feature import DenseSIFTDescriptor
from kornia.filters import spatial_gradient
from torch import Tensor

WIDTH = 256  # pixels that clips are measured at: those of different sizes can be compared
LEAST_HEIGHT = 32  # below it optical flow has too few patches
STRIDE, PADDING = 4, 6  # of descriptors: one every 4 pixels, from the edge on
BATCH = 8  # frames described at once


@dataclass(frozen=True)
class Motion:
    """flow: how far things go from a frame to the next, in widths of the clip: pixels a frame are flow * width.

    consistency: how much they look the same there, the correlation of SIFT descriptors (1: the same; noise: about 0).
    Both are means over pairs of neighbouring frames and over positions, weighted by the contrast that each has: where there
    is none, nothing is seen to move.
    """

    flow: float
    consistency: float


@torch.no_grad()
def motion_of(images: Tensor) -> Motion | None:
    """Of a clip [frames, h, w, 3] in 0..1; None for a single frame, and, logged once, where OpenCV is not installed.

    Flow by DIS (arXiv:1603.03590), descriptors by dense SIFT (Lowe 2004, doi:10.1023/B:VISI.0000029664.99615.94). They are
    compared along the flow, so that moving itself is no inconsistency. A constant clip has flow 0 and consistency 1.
    """
    estimator = _flow_estimator()
    if estimator is None or len(images) < 2:
        return None
    grey = images.detach().float().cpu().nan_to_num().clamp(0, 1).mean(-1).unsqueeze(1)
    height = max(LEAST_HEIGHT, round(grey.shape[2] * WIDTH / grey.shape[3]))
    grey = F.interpolate(grey, (height, WIDTH), mode="bilinear", antialias=True, align_corners=False)
    contrast = spatial_gradient(grey).norm(dim=2)
    pixels = (grey[:, 0] * 255).round().byte().numpy()
    flow = torch.stack([torch.from_numpy(estimator.calc(one, other, None)) for one, other in pairwise(pixels)])
    describe = DenseSIFTDescriptor(stride=STRIDE, padding=PADDING)
    found = torch.cat([describe(frames) for frames in grey.split(BATCH)])
    alike = F.cosine_similarity(_centred(found[:-1]), _centred(_followed(found[1:], flow)))
    seen = F.adaptive_avg_pool2d(contrast, (alike.shape[1], alike.shape[2]))[:, 0]
    return Motion(
        _mean(flow.norm(dim=-1), contrast[:-1, 0], of_nothing=0.0) / WIDTH,
        _mean(alike, seen[:-1] + seen[1:], of_nothing=1.0),
    )


def mean_motion(clips: Iterable[Tensor]) -> Motion | None:
    """Of several clips, as motion_of of each; None where none has one."""
    found = [motion for clip in clips if (motion := motion_of(clip)) is not None]
    if not found:
        return None
    return Motion(*(sum(values) / len(found) for values in zip(*((m.flow, m.consistency) for m in found), strict=True)))


def _followed(values: Tensor, flow: Tensor) -> Tensor:
    """values [n, c, h, w] of each second frame, from where flow [n, height, width, 2] (pixels) says that each position went."""
    count, _, *size = values.shape
    positions = F.affine_grid(torch.eye(2, 3).expand(count, -1, -1), [count, 1, *size], align_corners=True)
    moved = F.interpolate(flow.movedim(-1, 1), size, mode="bilinear", align_corners=True).movedim(1, -1)
    moved = moved * torch.tensor([2 / flow.shape[2], 2 / flow.shape[1]])  # a grid spans -1 to 1
    return F.grid_sample(values, positions + moved, padding_mode="border", align_corners=True)


def _centred(descriptors: Tensor) -> Tensor:
    # those of noise have a bit of every direction: without their mean they are not alike for that
    return descriptors - descriptors.mean(1, keepdim=True)


def _mean(values: Tensor, weights: Tensor, of_nothing: float) -> float:
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total > 0 else of_nothing


@cache
def _flow_estimator() -> Any:
    try:
        import cv2
    except ImportError:
        logging.info(
            "DiffDirector: flow and consistency of clips are left out: they need OpenCV. Install it into ComfyUI's Python with "
            '"pip install opencv-python-headless".'
        )
        return None
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
