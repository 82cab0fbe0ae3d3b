"""Attention over time: exact chunking. Rows are pixel positions, so there are thousands of very short sequences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Launch grids of the CUDA kernels behind SDPA and xformers end at 65,535 (pytorch#142228, xformers#845)
KERNEL_ROWS = 65535

Kernel = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, kernel: Kernel) -> Tensor:
    """kernel(q, k, v, heads) in as many calls as the kernels' limit on rows * heads asks for; the same numbers.

    q, k, v: [rows, frames, channels]; returns the same shape.
    """
    calls = -(-q.shape[0] * heads // KERNEL_ROWS)
    if calls <= 1:
        return kernel(q, k, v, heads)
    parts = zip(q.chunk(calls), k.chunk(calls), v.chunk(calls), strict=True)
    return torch.cat([kernel(a, b, c, heads) for a, b, c in parts])


def positions_per_chunk(device: torch.device, itemsize: int, frames: int, widest: int) -> int:
    """How many pixel positions to take through a motion module at a time.

    widest: channels of the widest intermediate (GEGLU's projection: 8 x channels). On a GPU the bound is memory. On
    a CPU it is the cache: a chunk that stays in it makes norms, GELU and sums nearly free, and allocations below
    32 MiB are reused by malloc instead of being mapped and zeroed anew (GEGLU of 16 frames at 32x32: 187 -> 25 ms).
    """
    if device.type == "cpu":
        tokens = max(512, 8 * 2**20 // (widest * itemsize))
    else:
        tokens = 256 * 2**20 // (widest * itemsize)
    return max(1, tokens // frames)
