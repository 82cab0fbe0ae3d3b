"""Training objectives: one function each, over plain tensors. Pure."""

from __future__ import annotations

from torch import Tensor


def add_noise(x: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """q(x_t | x_0) of DDPM (arXiv:2006.11239, equation 4). x, noise: [n, ...]; alpha_bar: [n]."""
    alpha_bar = _like(alpha_bar, x)
    return alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise


def target(x: Tensor, noise: Tensor, alpha_bar: Tensor, v_prediction: bool) -> Tensor:
    """What the network should predict: the noise, or v (arXiv:2202.00512, appendix D)."""
    if not v_prediction:
        return noise
    alpha_bar = _like(alpha_bar, x)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x


def min_snr_weight(alpha_bar: Tensor, gamma: float, v_prediction: bool) -> Tensor:
    """Min-SNR-gamma weight of each sample's loss, [n] (arXiv:2303.09556, equation 2); ones for gamma 0."""
    if not gamma:
        return alpha_bar.new_ones(alpha_bar.shape)
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (snr + 1 if v_prediction else snr)


def denoising_loss(predicted: Tensor, expected: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error per sample in float32, weighted and averaged. predicted, expected: [n, ...]; weight: [n]."""
    per_sample = (predicted.float() - expected.float()).square().flatten(1).mean(1)
    return (weight * per_sample).mean()


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
