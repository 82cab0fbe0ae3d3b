"""The picture that a PIA motion model animates, and what its frames see of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .curves import Curve
from .fitted import encoded
from .moment import ClipFrames
from .settings import check
from .similarity import MOTIONS, similarities


class Picture:
    """pixels: [1, 3, height, width] in 0 to 1. motion and frame: see similarity.py; over_frames: a curve in their place.

    Raises ValueError for settings that no clip can have.
    """

    def __init__(
        self, pixels: Tensor, vae: Any, motion: str = MOTIONS[0], frame: int = 0, over_frames: Curve | None = None
    ) -> None:
        check(vae is not None, "vae", "the checkpoint's", "none")
        check(len(pixels) == 1, "image", "one picture", f"{len(pixels)}")
        check(motion in MOTIONS, "motion", " or ".join(MOTIONS), motion)
        self.pixels, self.vae = pixels, vae
        self.motion, self.frame, self.over_frames = motion, frame, over_frames
        self._latents: dict[tuple[int, int], Tensor] = {}

    def similarities(self, frames: int) -> list[float]:
        """Of each frame of such a clip to the picture. Raises ValueError for a clip that the settings do not fit."""
        if self.over_frames is not None:
            return self.over_frames.over_frames(frames)
        return similarities(self.motion, frames, self.frame)

    def fit(self, height: int, width: int, process_in: Callable[[Tensor], Tensor]) -> None:
        """Encode the picture for latents of this size; once for each size.

        process_in: the model's way from the VAE's latents to its own. Raises ValueError for a VAE of another kind.
        """
        if (height, width) not in self._latents:
            self._latents[height, width] = process_in(encoded(self.pixels, self.vae, height, width))

    def shown(self, x: Tensor, conv: nn.Module, frames: ClipFrames) -> Tensor:
        """x, what the UNet's first convolution made of [clips * frames, 4, h, w], with PIA's share of it.

        conv: PIA's share of that convolution, [similarity, picture's latent] -> channels. A convolution is linear: the
        original's of 9 channels is the checkpoint's own of 4, its bias included, plus this one of 5. And of these, one
        part is the same in all frames and the other differs by a factor: two evaluations serve for all frames.
        """
        latent = self._latents.get((x.shape[2], x.shape[3]))
        if latent is None:
            raise ValueError(
                f"PIA sees its picture as a whole, at the size of the clip; found latents of {x.shape[3]}x{x.shape[2]}, a part of them. "
                "Sample without tiles."
            )
        parts = x.new_zeros(2, 1 + latent.shape[1], *latent.shape[2:])
        parts[0, 0], parts[1, 1:] = 1, latent[0]
        of_similarity, of_picture = conv(parts).split(1)
        every = self.similarities(frames.total)
        factors = x.new_tensor([every[frame] for clip in frames.clips for frame in clip]).view(-1, 1, 1, 1)
        return torch.addcmul(x + of_picture, of_similarity, factors)
