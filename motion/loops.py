"""Clips that lead back to their beginning. Pure tensors."""

from __future__ import annotations

import torch
from torch import Tensor

CROSSFADE, PING_PONG = "crossfade", "ping-pong"
METHODS = [CROSSFADE, PING_PONG]


def crossfade(clip: Tensor, frames: int) -> Tensor:
    """clip [n, ...] -> [n - frames, ...], whose first frames come out of what were its last ones.

    Raises ValueError unless there are frames to blend and twice as many in the clip.
    """
    if not 1 <= frames <= len(clip) // 2:
        raise ValueError(
            f"frames: expected 1 to {len(clip) // 2}, half of the clip's {len(clip)} frames, found {frames}. A crossfade needs at least 2 frames."
        )
    share = torch.arange(1, frames + 1, device=clip.device) / (frames + 1)
    share = share.to(clip.dtype).view(-1, *[1] * (clip.ndim - 1))
    return torch.cat([clip[-frames:].lerp(clip[:frames], share), clip[frames:-frames]])


def ping_pong(clip: Tensor) -> Tensor:
    """clip [n, ...] forth and back, [2n - 2, ...]: neither end is shown twice. One or two frames are a loop already."""
    return torch.cat([clip, clip[1:-1].flip(0)])
