"""Anchors: frames of a clip that are given and held while the others are sampled. Pure tensors."""

from __future__ import annotations

import re

import torch
from torch import Tensor


def frame_indices(text: str, frames: int) -> list[int]:
    """The frames that text names, in its order: `0`, `-1` (the last), `50%` (in the middle), separated by commas, spaces or lines.

    Raises ValueError for a word that is none of these, a frame that the clip does not have and one that is named twice.
    """
    words = re.findall(r"[^\s,;]+", text)
    if not words:
        raise ValueError("indices: expected frames such as 0, 8, -1 or 50%, found nothing.")
    found: list[int] = []
    for word in words:
        if re.fullmatch(r"-?\d{1,9}", word):
            index = int(word)
        elif re.fullmatch(r"\d{1,9}(\.\d{1,9})?%", word):
            index = round(float(word[:-1]) / 100 * (frames - 1))
        else:
            raise ValueError(f"indices: expected frames such as 0, 8, -1 or 50%, found {word!r}.")
        if not -frames <= index < frames:
            raise ValueError(
                f"indices: the clip has {frames} frames, 0 to {frames - 1} or -{frames} to -1; found {word}."
            )
        found.append(index % frames)
    twice = [index for index in found if found.count(index) > 1]
    if twice:
        raise ValueError(f"indices: frame {twice[0]} is named twice in {text!r}. Name it once.")
    return found


def pictures_of(indices: list[int], frames: int, pictures: int) -> list[int]:
    """Which of so many pictures is for each index: one each, one for all, or those at the indices of a clip as long.

    Raises ValueError for any other number of pictures.
    """
    if pictures == len(indices):
        return list(range(pictures))
    if pictures == 1:
        return [0] * len(indices)
    if pictures == frames:
        return list(indices)
    raise ValueError(
        f"images: expected {len(indices)}, one for each of the indices {', '.join(map(str, indices))}, or 1 for all of them, "
        f"or {frames}, one for each frame of the clip; found {pictures}."
    )


def anchor(
    latents: Tensor, anchors: Tensor, indices: list[int], strength: float = 1.0, reach: int = 0
) -> tuple[Tensor, Tensor]:
    """latents [frames, c, h, w] with anchors [len(indices), c, h, w] in their places, and the mask [frames, 1, h, w] of what is sampled.

    The mask is 1 - strength at an anchor and rises to 1 over reach further frames on each side; those hold the anchor
    that is nearest, for a sampler mixes what it makes with what it is given by the mask.
    """
    places = torch.tensor(indices)
    distance, nearest = (torch.arange(len(latents))[:, None] - places).abs().min(1)
    held = strength * (1 - distance / (reach + 1)).clamp(min=0)
    reached = distance <= reach
    result = latents.clone()
    result[reached] = anchors.to(latents)[nearest[reached]]
    mask = (1 - held).view(-1, 1, 1, 1).expand(-1, 1, *latents.shape[2:])
    return result, mask.to(latents.device).contiguous()
