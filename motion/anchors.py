"""Anchors: frames of a clip that are given and held while the others are sampled. Pure tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def anchor(
    latents: Tensor, anchors: Tensor, indices: Sequence[int], strengths: Sequence[float], reach: int = 0
) -> tuple[Tensor, Tensor]:
    """latents [frames, c, h, w] with anchors [len(indices), c, h, w] in their places, and the mask [frames, 1, h, w] of what is sampled.

    The mask is 1 - its strength at an anchor and rises to 1 over reach further frames on each side; those hold the anchor
    that is nearest, for a sampler mixes what it makes with what it is given by the mask.
    """
    places = torch.tensor(indices)
    distance, nearest = (torch.arange(len(latents))[:, None] - places).abs().min(1)
    held = torch.tensor(strengths)[nearest] * (1 - distance / (reach + 1)).clamp(min=0)
    reached = distance <= reach
    result = latents.clone()
    result[reached] = anchors.to(latents)[nearest[reached]]
    mask = (1 - held).view(-1, 1, 1, 1).expand(-1, 1, *latents.shape[2:])
    return result, mask.to(latents.device).contiguous()
