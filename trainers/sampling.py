"""What a training run looks like from outside: clips sampled from the model being trained, by the host's own sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

STEPS, CFG, SAMPLER, SCHEDULER = 20, 7.5, "euler", "normal"
FRAME_RATE = 8  # AnimateDiff's


@dataclass(frozen=True)
class Previews:
    """A clip after every so many steps (0: only after the last), handed to on_sample(images, step); before is called when
    sampling begins. frames, width, height: of the clip; images: [frames, h, w, 3] in 0..1.

    positive, negative, decode: the host's conditioning and VAE decoder; made before training, so that the text encoder may go.
    """

    positive: Any
    negative: Any
    decode: Callable[[Tensor], Tensor]
    frames: int
    width: int
    height: int
    every: int = 0
    seed: int = 0
    cfg: float = CFG
    before: Callable[[], object] = lambda: None
    on_sample: Callable[[Tensor, int], object] = lambda images, step: None

    @classmethod
    def of(cls, prompt: str, clip: Any, vae: Any, **settings: Any) -> Previews:
        """With the host's text encoder and VAE."""
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
        return cls(positive, negative, vae.decode, **settings)

    def due(self, step: int, steps: int) -> bool:
        return step == steps or bool(self.every and step % self.every == 0)

    def sample(self, model: ModelPatcher) -> Tensor:
        """Images [frames, h, w, 3] of model as it is, on the CPU."""
        latent = torch.zeros(self.frames, model.model.latent_format.latent_channels, self.height // 8, self.width // 8)
        with torch.no_grad():
            samples = comfy.sample.sample(
                model, comfy.sample.prepare_noise(latent, self.seed), STEPS, self.cfg, SAMPLER, SCHEDULER,
                self.positive, self.negative, latent, disable_pbar=True, seed=self.seed,
            )  # fmt: skip
            return self.decode(samples).cpu().clone()
