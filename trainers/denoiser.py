"""What every recipe here trains for: predict the noise in noisy clips, on the host's model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor

from . import host, objectives, processes
from .config import TrainConfig


@dataclass(frozen=True)
class Noised:
    """Clips x [n, frames, c, h, w] and the noise for them, at timesteps t [n]."""

    x: Tensor
    noise: Tensor
    t: Tensor

    def frame(self, number: Tensor) -> Noised:
        """One frame of each clip, by its number [n], as clips of one."""
        clips = torch.arange(len(number))
        return Noised(self.x[clips, number].unsqueeze(1), self.noise[clips, number].unsqueeze(1), self.t)


@dataclass(frozen=True)
class Prediction:
    """What the network made of noised clips, what it should have, and how much each clip counts, [n]; on its device."""

    predicted: Tensor
    expected: Tensor
    weight: Tensor

    def loss(self) -> Tensor:
        return objectives.denoising_loss(self.predicted, self.expected, self.weight)


class Denoiser:
    """model with its noise schedule, weighted as config says."""

    def __init__(self, model: ModelPatcher, config: TrainConfig) -> None:
        self.model, self.config = model, config
        self.alpha_bars, self.v_prediction = host.alpha_bars(model), host.is_v_prediction(model)

    def draw(self, x: Tensor, generator: Generator) -> Noised:
        """Timesteps and noise for clips x [n, frames, c, h, w]; one timestep a clip. Drawn for the clips of all processes."""
        clips = processes.count() * len(x)
        u = torch.rand(clips, generator=generator) ** (1 / (1 + self.config.timestep_bias))
        noise = torch.randn(clips, *x.shape[1:], generator=generator)
        if self.config.noise_offset:
            # https://www.crosslabs.org/blog/diffusion-with-offset-noise, the same for all frames: a clip does not flicker
            noise += self.config.noise_offset * torch.randn(clips, 1, x.shape[2], 1, 1, generator=generator)
        t = (u * len(self.alpha_bars)).long()
        return Noised(x, processes.share(noise), processes.share(t))

    def predict(self, noised: Noised, context: Tensor, control: dict[str, list[Tensor]] | None = None) -> Prediction:
        """context: text, [n, tokens, dim]. control: what a ControlNet adds to the UNet."""
        x, noise, t, device = noised.x, noised.noise, noised.t, self.model.load_device
        alpha_bar = self.alpha_bars[t]
        noisy = objectives.add_noise(x, noise, alpha_bar)
        weight = objectives.min_snr_weight(alpha_bar, self.config.min_snr_gamma, self.v_prediction)
        weight *= objectives.truncated_snr_weight(alpha_bar, self.config.truncated_snr_cap, self.v_prediction)
        return Prediction(
            host.predict(self.model, noisy.to(device), t.float().to(device), context.to(device), control),
            objectives.target(x, noise, alpha_bar, self.v_prediction).to(device),
            weight.to(device),
        )

    def loss(self, x: Tensor, context: Tensor, generator: Generator) -> Tensor:
        """The denoising loss of clips x with text context, at timesteps and noise drawn from generator."""
        return self.predict(self.draw(x, generator), context).loss()
