"""Pictures that are given to a sampling, fitted to the clip that is sampled."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def cut(pictures: Tensor, height: int, width: int) -> Tensor:
    """The centre of pictures [n, 3, h, w] in that size, scaled as the original does: what the host does loses thin lines."""
    tall, wide = pictures.shape[2:]
    size = min(tall, round(wide * height / width)), min(wide, round(tall * width / height))
    top, left = ((whole - part) // 2 for whole, part in zip((tall, wide), size, strict=True))
    centre = pictures[:, :, top : top + size[0], left : left + size[1]]
    return F.interpolate(centre, size=(height, width), mode="bilinear", antialias=True, align_corners=False)


def encoded(pictures: Tensor, vae: Any, height: int, width: int) -> Tensor:
    """The VAE's latents [n, 4, height, width] of pictures [n, 3, h, w], cut to fit. Raises ValueError for a VAE of another kind."""
    scale = vae.spacial_compression_encode()
    latents = vae.encode(cut(pictures, height * scale, width * scale).movedim(1, -1))
    if latents.shape[1:] != (4, height, width):
        raise ValueError(
            f"vae: expected one that makes {[4, height, width]} of a picture, as SD1.5's does; found {list(latents.shape[1:])}. "
            "Connect the checkpoint's."
        )
    return latents
